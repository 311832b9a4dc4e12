"""`wkdask.codec`: one block and the order of blocks, with libwkw and lz4 as oracles."""

from __future__ import annotations

from itertools import product
from pathlib import Path

import lz4.block
import numpy as np
import pytest
import wkw
from hypothesis import given, settings
from hypothesis import strategies as st

from wkdask.codec import block_at, decode_block, encode_block, morton_index
from wkdask.errors import FormatError
from wkdask.header import BLOCK_TYPES, DTYPES, VolumeHeader

COMPRESSED = ("lz4", "lz4hc")


def random_block(header: VolumeHeader, seed: int) -> np.ndarray:
    """Return any bits, NaN and all, as the voxels of a block; every third seed compresses well."""
    rng = np.random.default_rng(seed)
    data = rng.bytes(header.block_bytes) if seed % 3 else bytes(header.block_bytes)
    shape = (header.num_channels, *(header.block_edge,) * 3)
    return np.frombuffer(data, header.dtype).reshape(shape, order="F")


headers = st.builds(
    VolumeHeader,
    st.sampled_from(DTYPES),
    st.integers(1, 3),
    st.sampled_from([1, 2, 4, 8, 16]),
    st.just(2),
    st.sampled_from(BLOCK_TYPES),
)


class TestMorton:
    @pytest.mark.parametrize(
        ("block", "index"),
        [
            ((0, 0, 0), 0),
            ((1, 0, 0), 1),  # x is bit 0
            ((0, 1, 0), 2),
            ((0, 0, 1), 4),
            ((1, 1, 1), 7),
            ((2, 0, 0), 8),
            ((0, 2, 0), 16),
            ((0, 0, 2), 32),
            ((3, 5, 6), 0b110_101_011),  # (z, y, x) of bits 2, 1, 0: 110, 101, 011
            ((31, 31, 31), 32**3 - 1),
        ],
    )
    def test_examples(self, block, index):
        assert morton_index(block, 32) == index
        assert block_at(index) == block

    @pytest.mark.parametrize("edge", [1, 2, 4, 8, 16])
    def test_every_block_has_its_own_place(self, edge):
        blocks = list(product(range(edge), repeat=3))
        places = [morton_index(block, edge) for block in blocks]
        assert sorted(places) == list(range(edge**3))
        assert [block_at(place) for place in places] == blocks

    @given(st.tuples(*[st.integers(0, 2**15 - 1)] * 3))
    @settings(deadline=None)
    def test_largest_files(self, block):
        assert block_at(morton_index(block, 2**15)) == block

    @pytest.mark.parametrize("edge", [1, 2, 4, 8])
    def test_files_of_libwkw(self, tmp_path: Path, edge):
        # Each block holds one number, its position; libwkw decides where it goes.
        header = VolumeHeader("uint16", 1, 2, edge)
        numbers = np.arange(edge**3, dtype=np.uint16).reshape((edge,) * 3, order="F")
        voxels = np.asfortranarray(numbers.repeat(2, 0).repeat(2, 1).repeat(2, 2)[None])
        with wkw.Dataset.create(str(tmp_path / "v"), header.to_wkw()) as dataset:
            dataset.write((0, 0, 0), voxels)
        data = (tmp_path / "v" / "z0" / "y0" / "x0.wkw").read_bytes()[header.data_offset_bytes :]
        for block in product(range(edge), repeat=3):
            start = morton_index(block, edge) * header.block_bytes
            assert set(np.frombuffer(data, "<u2", 8, start)) == {numbers[block]}


class TestBlocks:
    @given(headers, st.integers(0, 1000))
    @settings(deadline=None)
    def test_round_trip(self, header, seed):
        voxels = random_block(header, seed)
        again = decode_block(encode_block(voxels, header), header)
        assert (again.dtype, again.shape) == (np.dtype(header.dtype), voxels.shape)
        assert again.flags.f_contiguous
        assert again.tobytes("F") == voxels.tobytes("F")

    @given(headers, st.integers(0, 1000))
    @settings(deadline=None)
    def test_the_memory_layout_of_the_voxels_does_not_matter(self, header, seed):
        voxels = random_block(header, seed)
        expected = encode_block(voxels, header)
        edge = header.block_edge
        larger = np.zeros((header.num_channels, *(edge + 3,) * 3), header.dtype)
        part = larger[:, 1:-2, 2:-1, 3:]
        part[:] = voxels
        for other in (np.ascontiguousarray(voxels), part):
            assert encode_block(other, header) == expected

    def test_order_inside_a_block(self):
        header = VolumeHeader("uint8", 2, 2, 1)
        voxels = decode_block(bytes(range(16)), header)
        # channel fastest, then x, y, z
        places = [voxels[at] for at in ((1, 0, 0, 0), (0, 1, 0, 0), (0, 0, 1, 0), (0, 0, 0, 1))]
        assert places == [1, 2, 4, 8]
        assert encode_block(voxels, header) == bytes(range(16))

    def test_bytes_are_little_endian(self):
        header = VolumeHeader("uint32", 1, 1, 1)
        assert decode_block(b"\x01\x02\x03\x04", header)[0, 0, 0, 0] == 0x04030201

    @pytest.mark.parametrize("kind", COMPRESSED)
    def test_compressed_blocks_are_bare_lz4(self, kind):
        # Without the four bytes of the size that the lz4 package likes to put in front.
        header = VolumeHeader("uint16", 3, 8, 1, kind)
        voxels = random_block(header, 1)
        packed = encode_block(voxels, header)
        unpacked = lz4.block.decompress(packed, uncompressed_size=header.block_bytes)
        assert unpacked == voxels.tobytes("F")

    def test_hc_compresses_better(self):
        header = VolumeHeader("uint8", 1, 16, 1, "lz4")
        rng = np.random.default_rng(0)
        voxels = rng.integers(0, 3, (1, 16, 16, 16), dtype=np.uint8)
        fast = encode_block(voxels, header)
        assert len(encode_block(voxels, VolumeHeader("uint8", 1, 16, 1, "lz4hc"))) < len(fast)

    @pytest.mark.parametrize("kind", BLOCK_TYPES)
    @pytest.mark.parametrize("dtype", DTYPES)
    def test_blocks_of_libwkw(self, tmp_path: Path, dtype, kind):
        header = VolumeHeader(dtype, 2, 8, 1, kind)
        voxels = random_block(header, 1)
        with wkw.Dataset.create(str(tmp_path / "v"), header.to_wkw()) as dataset:
            dataset.write((0, 0, 0), voxels)
        data = (tmp_path / "v" / "z0" / "y0" / "x0.wkw").read_bytes()
        found = decode_block(data[header.data_offset_bytes :], header)
        assert found.tobytes("F") == voxels.tobytes("F")


class TestBadBlocks:
    HEADER = VolumeHeader("uint16", 1, 4, 1)
    GOOD = 64 * 2

    @pytest.mark.parametrize("length", [0, 1, GOOD - 1, GOOD + 1, 2 * GOOD])
    def test_raw_of_a_wrong_length(self, length):
        with pytest.raises(FormatError, match=f"{length} bytes instead of {self.GOOD}"):
            decode_block(bytes(length), self.HEADER)

    @pytest.mark.parametrize("kind", COMPRESSED)
    @pytest.mark.parametrize("length", [0, 1, GOOD - 2, GOOD - 1, GOOD + 1, GOOD + 2, 100 * GOOD])
    def test_lz4_of_another_size(self, kind, length):
        # Blocks of zeros, which would be zeros if their size were not looked at.
        header = VolumeHeader("uint16", 1, 4, 1, kind)
        packed = lz4.block.compress(bytes(length), store_size=False)
        with pytest.raises(FormatError):
            decode_block(packed, header)

    @pytest.mark.parametrize("kind", COMPRESSED)
    @pytest.mark.parametrize("seed", range(6))
    def test_lz4_cut_at_every_place(self, kind, seed):
        header = VolumeHeader("uint16", 1, 4, 1, kind)
        packed = encode_block(random_block(header, seed), header)
        for length in range(len(packed)):
            with pytest.raises(FormatError):
                decode_block(packed[:length], header)

    @pytest.mark.parametrize("kind", COMPRESSED)
    def test_lz4_with_something_behind(self, kind):
        header = VolumeHeader("uint16", 1, 4, 1, kind)
        packed = encode_block(random_block(header, 1), header)
        for rest in (b"\0", b"\x10A", packed):
            with pytest.raises(FormatError):
                decode_block(packed + rest, header)

    @pytest.mark.parametrize("data", [b"", b"\xff" * 50, b"\xf0", b"WKW"])
    def test_no_lz4(self, data):
        with pytest.raises(FormatError, match="no LZ4 block of 128 bytes"):
            decode_block(data, VolumeHeader("uint16", 1, 4, 1, "lz4"))

    @given(st.binary(max_size=300))
    @settings(deadline=None, max_examples=200)
    def test_any_bytes_decode_to_one_block_or_raise(self, data):
        header = VolumeHeader("uint16", 1, 4, 1, "lz4")
        try:
            voxels = decode_block(data, header)
        except FormatError:
            return
        assert voxels.shape == (1, 4, 4, 4)
