"""`wkdask.storage.header`: round trips, every wrong byte, and the header that libwkw writes."""

from __future__ import annotations

import struct
from itertools import product
from pathlib import Path

import numpy as np
import pytest
import wkw
from hypothesis import given, settings
from hypothesis import strategies as st

from wkdask.errors import ArgumentError, FormatError
from wkdask.storage.header import BLOCK_TYPES, DTYPES, HEADER_BYTES, VolumeHeader

NUMBERS = {
    "uint8": 1,
    "uint16": 2,
    "uint32": 3,
    "uint64": 4,
    "float32": 5,
    "float64": 6,
    "int8": 7,
    "int16": 8,
    "int32": 9,
    "int64": 10,
}
"""The format's numbers of the voxel types."""

powers = st.integers(0, 7).map(lambda n: 1 << n)
headers = st.builds(
    VolumeHeader,
    st.sampled_from(DTYPES),
    st.integers(1, 31),
    powers,
    powers,
    st.sampled_from(BLOCK_TYPES),
)


def test_every_dtype_of_the_format():
    assert dict(zip(DTYPES, range(1, 11), strict=True)) == NUMBERS


class TestBytes:
    @pytest.mark.parametrize(
        ("header", "offset_bytes", "expected"),
        [
            (VolumeHeader("uint8"), 0, "574b57 01 55 01 01 01 0000000000000000"),
            (VolumeHeader("uint8"), 16, "574b57 01 55 01 01 01 1000000000000000"),
            (VolumeHeader("int64", 3, 8, 2, "lz4"), 0, "574b57 01 13 02 0a 18 0000000000000000"),
            (
                VolumeHeader("uint16", 1, 32, 32, "lz4hc"),
                262160,
                "574b57 01 55 03 02 02 1000040000000000",
            ),
            (VolumeHeader("float32", 2, 1, 128), 0, "574b57 01 70 01 05 08 0000000000000000"),
        ],
    )
    def test_layout(self, header, offset_bytes, expected):
        assert header.to_bytes(offset_bytes) == bytes.fromhex(expected)

    @pytest.mark.parametrize("channels", [1, 2, 3])
    @pytest.mark.parametrize("dtype", DTYPES)
    def test_round_trip(self, dtype, channels):
        edges = (1, 2, 8, 32, 64, 128)
        for block, blocks, kind in product(edges, edges, BLOCK_TYPES):
            header = VolumeHeader(dtype, channels, block, blocks, kind)
            assert VolumeHeader.from_bytes(header.to_bytes()) == header
            in_file = header.to_bytes(header.data_offset_bytes)
            assert VolumeHeader.from_file_bytes(in_file) == header
            assert len(in_file) == HEADER_BYTES

    @given(headers, st.binary(max_size=5))
    @settings(deadline=None)
    def test_what_follows_does_not_count(self, header, rest):
        assert VolumeHeader.from_bytes(header.to_bytes() + rest) == header

    @pytest.mark.parametrize("channels", [1, 2, 3])
    @pytest.mark.parametrize("dtype", DTYPES)
    def test_header_of_libwkw(self, tmp_path: Path, dtype, channels):
        edges = ((1, 1), (2, 64), (32, 32), (64, 8), (128, 128))
        for number, ((block, blocks), kind) in enumerate(product(edges, BLOCK_TYPES)):
            header = VolumeHeader(dtype, channels, block, blocks, kind)
            path = tmp_path / str(number)
            with wkw.Dataset.create(str(path), header.to_wkw()):
                pass
            theirs = (path / "header.wkw").read_bytes()
            assert theirs == header.to_bytes()
            assert VolumeHeader.from_bytes(theirs) == header


class TestWrongBytes:
    GOOD = VolumeHeader("uint16", 2, 8, 4, "lz4")

    @pytest.mark.parametrize("length", range(HEADER_BYTES))
    def test_too_short(self, length):
        data = self.GOOD.to_bytes(self.GOOD.data_offset_bytes)[:length]
        for parse in (VolumeHeader.from_bytes, VolumeHeader.from_file_bytes):
            with pytest.raises(FormatError, match=str(length)):
                parse(data)

    @pytest.mark.parametrize(
        ("place", "good", "text"),
        [
            (0, {ord("W")}, "instead of b'WKW'"),
            (1, {ord("K")}, "instead of b'WKW'"),
            (2, {ord("W")}, "instead of b'WKW'"),
            (3, {1}, "version"),
            (4, set(range(256)) - {n for n in range(256) if n & 15 > 9 or n >> 4 > 8}, "block"),
            (5, {1, 2, 3}, "block type"),
            # of 4 bytes per voxel: all but the two types of 8 bytes and double
            (6, {1, 2, 3, 5, 7, 8, 9}, "voxel type|no channels"),
            # of type uint16: 1 to 127 channels
            (7, set(range(2, 256, 2)), "no channels of uint16"),
        ],
    )
    def test_every_value_of_every_byte(self, place, good, text):
        for value in range(256):
            data = bytearray(self.GOOD.to_bytes())
            data[place] = value
            if value in good:
                # What is accepted is what was said, to the bit.
                assert VolumeHeader.from_bytes(bytes(data)).to_bytes() == data
                continue
            with pytest.raises(FormatError, match=text):
                VolumeHeader.from_bytes(bytes(data))

    @given(st.binary(min_size=HEADER_BYTES, max_size=HEADER_BYTES))
    @settings(deadline=None)
    def test_any_bytes_are_said_back_or_refused(self, data):
        for begin in (b"", b"WKW\x01"):
            changed = begin + data[len(begin) :]
            try:
                header = VolumeHeader.from_bytes(changed)
            except FormatError:
                continue
            assert header.to_bytes(struct.unpack("<Q", changed[8:])[0]) == changed

    @pytest.mark.parametrize("kind", BLOCK_TYPES)
    def test_offset_in_a_file(self, kind):
        header = VolumeHeader("uint8", 1, 8, 2, kind)
        good = 16 if kind == "raw" else 16 + 8 * 8
        assert header.data_offset_bytes == good
        for wrong in (0, 15, 17, good - 1, good + 1, good + 8, 1 << 40, (1 << 64) - 1):
            with pytest.raises(FormatError, match=f"byte {wrong}, .*{good}"):
                VolumeHeader.from_file_bytes(header.to_bytes(wrong))

    def test_block_type_and_offset_belong_together(self):
        raw, lz4 = (VolumeHeader("uint8", 1, 8, 2, kind) for kind in ("raw", "lz4"))
        for header, other in ((raw, lz4), (lz4, raw)):
            with pytest.raises(FormatError, match="voxel data"):
                VolumeHeader.from_file_bytes(header.to_bytes(other.data_offset_bytes))


class TestConstructor:
    @pytest.mark.parametrize(
        ("keys", "text"),
        [
            ({"dtype": "bool"}, "dtype is 'bool', but WKW stores uint8, uint16"),
            ({"dtype": "float16"}, "float32, float64"),
            ({"dtype": "complex64"}, "dtype"),
            ({"dtype": ">u2"}, "dtype"),
            ({"dtype": ""}, "dtype"),
            ({"dtype": None}, "dtype"),
            ({"block_type": "LZ4"}, "raw, lz4, lz4hc"),
            ({"block_type": 1}, "raw, lz4, lz4hc"),
            ({"block_type": None}, "raw, lz4, lz4hc"),
            ({"num_channels": 0}, "num_channels is 0"),
            ({"num_channels": -1}, "num_channels"),
            ({"num_channels": 256}, "1 to 255"),
            ({"num_channels": 1.0}, "num_channels"),
            ({"num_channels": "1"}, "num_channels"),
            ({"num_channels": None}, "num_channels"),
            ({"dtype": "uint16", "num_channels": 128}, "1 to 127"),
            ({"dtype": "float64", "num_channels": 32}, "1 to 31"),
            ({"block_edge": 0}, "block_edge is 0, .*power of two"),
            ({"block_edge": -8}, "power of two"),
            ({"block_edge": 3}, "power of two"),
            ({"block_edge": 8.0}, "block_edge"),
            ({"block_edge": "8"}, "block_edge"),
            ({"block_edge": 65536}, "from 1 to 32768"),
            ({"block_edge": 2048}, "a block of edge 2048 has 8589934592 bytes"),
            ({"blocks_per_file_edge": 0}, "blocks_per_file_edge is 0"),
            ({"blocks_per_file_edge": 48}, "power of two"),
            ({"blocks_per_file_edge": 65536}, "from 1 to 32768"),
            ({"blocks_per_file_edge": None}, "blocks_per_file_edge"),
            ({"blocks_per_file_edge": 512, "block_type": "lz4"}, "table of 1073741824 bytes"),
            ({"blocks_per_file_edge": 32768, "block_type": "lz4hc"}, "at most 134217728"),
        ],
    )
    def test_bad_values(self, keys, text):
        with pytest.raises(ArgumentError, match=text):
            VolumeHeader(**{"dtype": "uint8", **keys})

    def test_jump_tables_have_a_limit_and_raw_files_have_none(self):
        assert VolumeHeader("uint8", 1, 8, 256, "lz4").data_offset_bytes == 16 + 2**27
        assert VolumeHeader("uint8", 1, 8, 32768).data_offset_bytes == 16

    def test_numbers_of_numpy_become_python_ints(self):
        header = VolumeHeader("uint8", np.int64(3), np.uint8(8), np.int32(4))  # type: ignore[arg-type]
        assert header == VolumeHeader("uint8", 3, 8, 4)
        numbers = (header.num_channels, header.block_edge, header.blocks_per_file_edge)
        assert {type(number) for number in numbers} == {int}

    def test_facts(self):
        header = VolumeHeader("uint16", 3, 8, 4, "lz4")
        assert (header.itemsize, header.voxel_bytes, header.block_bytes) == (2, 6, 512 * 6)
        assert (header.blocks_per_file, header.file_edge) == (64, 32)
        assert (header.is_compressed, header.write_size) == (True, (32, 32, 32))
        assert header.data_offset_bytes == 16 + 8 * 64
        raw = VolumeHeader("uint16", 3, 8, 4)
        assert (raw.is_compressed, raw.write_size, raw.data_offset_bytes) == (False, (8, 8, 8), 16)

    def test_is_frozen(self):
        with pytest.raises(AttributeError):
            VolumeHeader("uint8").dtype = "uint16"  # type: ignore[misc]

    def test_same_voxels(self):
        header = VolumeHeader("uint8", 1, 8, 4, "raw")
        assert header.same_voxels_as(VolumeHeader("uint8", 1, 8, 4, "lz4hc"))
        for other in (
            VolumeHeader("int8", 1, 8, 4),
            VolumeHeader("uint8", 2, 8, 4),
            VolumeHeader("uint8", 1, 16, 4),
            VolumeHeader("uint8", 1, 8, 2),
            VolumeHeader("uint8", 1, 16, 2),  # the same file edge
        ):
            assert not header.same_voxels_as(other)


class TestWkwHeader:
    @given(headers)
    @settings(deadline=None)
    def test_round_trip(self, header):
        theirs = header.to_wkw()
        assert isinstance(theirs, wkw.Header)
        assert VolumeHeader.from_wkw(theirs) == header
        assert theirs.num_channels == header.num_channels
        assert np.dtype(theirs.voxel_type).name == header.dtype

    def test_edges_count_blocks_and_voxels(self):
        header = VolumeHeader.from_wkw(wkw.Header(np.uint8, block_len=8, file_len=4))
        assert (header.block_edge, header.blocks_per_file_edge) == (8, 4)

    @pytest.mark.parametrize(
        ("block_type", "expected"),
        [
            (wkw.Header.BLOCK_TYPE_RAW, "raw"),
            (wkw.Header.BLOCK_TYPE_LZ4, "lz4"),
            (wkw.Header.BLOCK_TYPE_LZ4HC, "lz4hc"),
        ],
    )
    def test_block_types(self, block_type, expected):
        header = wkw.Header(np.uint8, block_type=block_type)
        assert VolumeHeader.from_wkw(header).block_type == expected

    @pytest.mark.parametrize(
        ("name", "value"),
        [
            ("block_len", 0),
            ("file_len", 0),
            ("num_channels", 256),
            ("num_channels", 1.5),
            ("block_type", 0),  # as an index it would be the last type
            ("block_type", 4),
            ("version", 2),
            ("voxel_type", np.float16),
        ],
    )
    def test_values_that_wkw_lets_pass(self, name, value):
        header = wkw.Header(np.uint8)
        setattr(header, name, value)
        with pytest.raises(ArgumentError):
            VolumeHeader.from_wkw(header)
