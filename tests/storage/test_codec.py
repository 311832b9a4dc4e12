"""`wkdask.storage.codec`: blocks of real files, with libwkw and lz4 as oracles."""

from __future__ import annotations

import os
import tempfile
from itertools import product
from pathlib import Path
from typing import Any

import lz4.block
import numpy as np
import pytest
import wkw
from hypothesis import given, settings
from hypothesis import strategies as st

from wkdask.errors import FormatError
from wkdask.grids import Region
from wkdask.storage import codec
from wkdask.storage.codec import BlockPacker, block_at, morton_index
from wkdask.storage.header import BLOCK_TYPES, DTYPES, BlockType, VolumeHeader
from wkdask.storage.reader import WkwFile
from wkdask.storage.writer import WriteOptions, writing

COMPRESSED = ("lz4", "lz4hc")


def voxels_for(header: VolumeHeader, seed: int, edge: int | None = None) -> Any:
    """Return any bits, NaN and all; every third seed compresses well."""
    rng = np.random.default_rng(seed)
    edge = edge or header.file_edge
    count = edge**3 * header.voxel_bytes
    data = bytearray(rng.bytes(count) if seed % 3 else b"\x07" * count)
    data[count // 2] = 1
    return np.frombuffer(data, header.dtype).reshape((header.num_channels, *(edge,) * 3), order="F")


def pack(header: VolumeHeader, voxels: Any, level: int | None = None) -> list[bytes]:
    """Return the bytes of each block of a cube, in the order of the file."""
    blocks = []
    for data, sizes in BlockPacker(header, level).pack(voxels):
        ends = np.cumsum(sizes)
        assert len(data) == ends[-1]
        blocks += [bytes(data[end - size : end]) for end, size in zip(ends, sizes, strict=True)]
    return blocks


def write(path: Path, header: VolumeHeader, voxels: Any, **options: Any) -> None:
    with writing(str(path), header, WriteOptions(keep_zeros=True, **options)) as file:
        for box in file.pieces:
            place = (slice(a, b) for a, b in zip(box.topleft, box.bottomright, strict=True))
            file.append(voxels[:, *place])


def write_blocks(path: Path, header: VolumeHeader, blocks: list[bytes]) -> None:
    """Write a compressed file of given bytes."""
    ends = header.data_offset_bytes + np.cumsum([len(block) for block in blocks])
    table = ends.astype("<u8").tobytes()
    path.write_bytes(header.to_bytes(header.data_offset_bytes) + table + b"".join(blocks))


def read(path: Path, header: VolumeHeader, region: Region | None = None) -> Any:
    region = region or (range(header.file_edge),) * 3
    shape = (header.num_channels, *map(len, region))
    out = np.full(shape, 99).astype(header.dtype, order="F")
    with WkwFile.open(str(path), header) as file:
        file.read_into(out, region)
    return out


def write_by_libwkw(path: Path, header: VolumeHeader, voxels: Any) -> Path:
    """Let libwkw write one file; return where."""
    with wkw.Dataset.create(str(path), header.to_wkw()) as dataset:
        dataset.write((0, 0, 0), np.asfortranarray(voxels))
    return path / "z0" / "y0" / "x0.wkw"


def read_by_libwkw(path: Path, header: VolumeHeader, voxels: Any, **options: Any) -> Any:
    """Write a file ourselves, and let libwkw read it."""
    (path / "header.wkw").parent.mkdir(parents=True)
    (path / "header.wkw").write_bytes(header.to_bytes())
    write(path / "z0" / "y0" / "x0.wkw", header, voxels, **options)
    with wkw.Dataset.open(str(path)) as dataset:
        return dataset.read((0, 0, 0), voxels.shape[1:])


def same(found: Any, expected: Any) -> bool:
    """Return whether two arrays agree to the bit, NaN and all."""
    return (found.shape, found.dtype) == (expected.shape, expected.dtype) and found.tobytes(
        "F"
    ) == expected.tobytes("F")


def slices(region: Region) -> tuple[slice, ...]:
    return (slice(None), *(slice(r.start, r.stop, r.step) for r in region))


def headers(largest_file_edge: int = 32) -> st.SearchStrategy[VolumeHeader]:
    edges = [
        (block, blocks)
        for block in (1, 2, 4, 8, 16, 32, 64)
        for blocks in (1, 2, 4, 8, 16)
        if block * blocks <= largest_file_edge or blocks == 1
    ]
    return st.builds(
        lambda dtype, channels, edges, kind: VolumeHeader(dtype, channels, *edges, kind),
        st.sampled_from(DTYPES),
        st.integers(1, 3),
        st.sampled_from(edges),
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
        assert morton_index(block) == index
        assert block_at(index) == block

    @pytest.mark.parametrize("edge", [1, 2, 4, 8, 16])
    def test_every_block_has_its_own_place(self, edge):
        blocks = list(product(range(edge), repeat=3))
        places = [morton_index(block) for block in blocks]
        assert sorted(places) == list(range(edge**3))
        assert [block_at(place) for place in places] == blocks

    @given(st.tuples(*[st.integers(0, 2**15 - 1)] * 3))
    @settings(deadline=None)
    def test_largest_files(self, block):
        assert block_at(morton_index(block)) == block

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
            start = morton_index(block) * header.block_bytes
            assert set(np.frombuffer(data, "<u2", 8, start)) == {numbers[block]}


class TestBlocks:
    @given(headers(16), st.integers(0, 1000))
    @settings(deadline=None, max_examples=50)
    def test_bytes_of_blocks(self, header, seed):
        """Each block is what lz4 makes bare of a Fortran-ordered cube, or that cube itself."""
        voxels = voxels_for(header, seed)
        blocks = pack(header, voxels)
        assert len(blocks) == header.blocks_per_file
        edge = header.block_edge
        for index, data in enumerate(blocks):
            x, y, z = (at * edge for at in block_at(index))
            wanted = voxels[:, x : x + edge, y : y + edge, z : z + edge].tobytes("F")
            if header.is_compressed:
                assert len(data) <= codec.block_bound(header)
                data = lz4.block.decompress(data, uncompressed_size=header.block_bytes)
            assert data == wanted

    @given(headers(), st.integers(0, 1000))
    @settings(deadline=None, max_examples=40)
    def test_the_memory_layout_of_the_voxels_does_not_matter(self, header, seed):
        voxels = voxels_for(header, seed, header.block_edge)
        expected = pack(header, voxels)
        edge = header.block_edge
        shape = (header.num_channels + 1, *(edge + 3,) * 3)
        c_order, f_order = np.zeros(shape, header.dtype), np.zeros(shape, header.dtype, order="F")
        for part in (
            np.empty(voxels.shape, header.dtype),
            c_order[:-1, 1:-2, 2:-1, 3:],
            f_order[:-1, 1:-2, 2:-1, 3:],
            f_order[1:, 3:, :-3, 1:-2],
            np.empty(voxels.shape, header.dtype, order="F")[:, ::-1, ::-1, ::-1],
            np.empty(voxels.shape, header.dtype, order="F")[:, :, ::-1, ::-1],
            np.empty(voxels.shape[::-1], header.dtype).T,
            np.empty(voxels.shape, header.dtype, order="F").transpose(0, 1, 3, 2),
        ):
            part[...] = voxels
            part.flags.writeable = False
            assert pack(header, part) == expected

    def test_order_inside_a_block(self, tmp_path: Path):
        header = VolumeHeader("uint8", 2, 2, 1)
        (tmp_path / "x").write_bytes(header.to_bytes(16) + bytes(range(16)))
        voxels = read(tmp_path / "x", header)
        # channel fastest, then x, y, z
        places = [voxels[at] for at in ((1, 0, 0, 0), (0, 1, 0, 0), (0, 0, 1, 0), (0, 0, 0, 1))]
        assert places == [1, 2, 4, 8]
        assert pack(header, voxels) == [bytes(range(16))]

    def test_bytes_are_little_endian(self, tmp_path: Path):
        header = VolumeHeader("uint32", 1, 1, 1)
        (tmp_path / "x").write_bytes(header.to_bytes(16) + b"\x01\x02\x03\x04")
        assert read(tmp_path / "x", header)[0, 0, 0, 0] == 0x04030201


class TestLibwkw:
    """What libwkw writes we read, and the reverse: everything that the format allows."""

    @pytest.mark.parametrize("kind", BLOCK_TYPES)
    @pytest.mark.parametrize("channels", [1, 2, 3])
    @pytest.mark.parametrize("dtype", DTYPES)
    def test_dtypes_and_channels(self, tmp_path: Path, dtype, channels, kind):
        check_against_libwkw(tmp_path, VolumeHeader(dtype, channels, 8, 2, kind))

    @pytest.mark.parametrize("kind", BLOCK_TYPES)
    @pytest.mark.parametrize(
        "edges", [(1, 1), (1, 16), (2, 1), (2, 8), (4, 8), (8, 4), (16, 4), (32, 1), (32, 2)]
    )
    def test_edges(self, tmp_path: Path, edges, kind):
        check_against_libwkw(tmp_path, VolumeHeader("uint16", 3, *edges, kind))

    @pytest.mark.parametrize("kind", BLOCK_TYPES)
    @pytest.mark.parametrize("blocks", [1, 2])
    def test_blocks_of_64(self, tmp_path: Path, blocks, kind):
        check_against_libwkw(tmp_path, VolumeHeader("uint8", 1, 64, blocks, kind))

    @given(headers(), st.integers(0, 1000))
    @settings(deadline=None, max_examples=40)
    def test_any(self, header, seed):
        with tempfile.TemporaryDirectory() as directory:
            check_against_libwkw(Path(directory), header, seed)

    @pytest.mark.slow
    @given(headers(128), st.integers(0, 1000))
    @settings(deadline=None, max_examples=500)
    def test_many(self, header, seed):
        with tempfile.TemporaryDirectory() as directory:
            check_against_libwkw(Path(directory), header, seed)


def check_against_libwkw(directory: Path, header: VolumeHeader, seed: int = 1) -> None:
    for number in (seed, seed + 1):
        voxels = voxels_for(header, number)
        theirs = write_by_libwkw(directory / f"theirs{number}", header, voxels)
        assert same(read(theirs, header), voxels)
        assert same(read_by_libwkw(directory / f"ours{number}", header, voxels), voxels)
        assert same(read(directory / f"ours{number}/z0/y0/x0.wkw", header), voxels)


@pytest.fixture(scope="module", params=BLOCK_TYPES)
def kind(request: pytest.FixtureRequest) -> BlockType:
    return request.param


CASES = {
    # name: what is read of 32 voxels an axis, in blocks of 8
    "whole": (range(32), range(32), range(32)),
    "first voxel": (range(1), range(1), range(1)),
    "last voxel": (range(31, 32), range(31, 32), range(31, 32)),
    "a voxel at a block's corner": (range(8, 9), range(15, 16), range(16, 17)),
    "one block": (range(8, 16), range(16, 24), range(24, 32)),
    "yz plane": (range(13, 14), range(32), range(32)),
    "xz plane": (range(32), range(13, 14), range(32)),
    "xy plane": (range(32), range(32), range(13, 14)),
    "yz plane, partial": (range(8, 9), range(3, 29), range(5, 32)),
    "xz plane, partial": (range(3, 29), range(7, 8), range(31)),
    "xy plane, partial": (range(1, 31), range(3, 29), range(31, 32)),
    "x line": (range(2, 30), range(9, 10), range(20, 21)),
    "y line": (range(9, 10), range(2, 30), range(20, 21)),
    "z line": (range(9, 10), range(20, 21), range(2, 30)),
    "first and last blocks partial": (range(3, 29), range(5, 27), range(1, 31)),
    "first block partial": (range(3, 32), range(7, 32), range(1, 32)),
    "last block partial": (range(29), range(25), range(31)),
    "two blocks, both partial": (range(5, 12), range(7, 9), range(1, 15)),
    "within a block": (range(9, 15), range(17, 18), range(25, 31)),
    "steps within blocks": (range(1, 32, 3), range(0, 32, 5), range(2, 30, 7)),
    "steps of a block": (range(3, 32, 8), range(0, 32, 8), range(7, 32, 8)),
    "steps over blocks": (range(1, 32, 17), range(0, 32, 31), range(5, 32, 12)),
    "steps on x": (range(0, 32, 2), range(32), range(32)),
    "steps on y": (range(32), range(1, 32, 2), range(32)),
    "steps on z": (range(32), range(32), range(1, 31, 4)),
    "a step beyond the end": (range(4, 6, 100), range(31, 32, 9), range(0, 1, 32)),
}


def make(directory: Path, header: VolumeHeader) -> tuple[Path, VolumeHeader, Any]:
    voxels = voxels_for(header, 1)
    return write_by_libwkw(directory / "v", header, voxels), header, voxels


@pytest.fixture(scope="module")
def file(kind: BlockType, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A file by libwkw, its header and its voxels."""
    return make(tmp_path_factory.mktemp("file"), VolumeHeader("uint16", 1, 8, 4, kind))


@pytest.fixture(scope="module")
def three(kind: BlockType, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The same with three channels and smaller blocks."""
    return make(tmp_path_factory.mktemp("file"), VolumeHeader("uint8", 3, 4, 8, kind))


class TestRegions:
    """Reading a region is slicing the whole."""

    @pytest.mark.parametrize("name", CASES)
    def test_examples(self, file, three, name):
        for path, header, voxels in (file, three):
            assert same(read(path, header, CASES[name]), voxels[slices(CASES[name])])

    def test_every_plane(self, file):
        path, header, voxels = file
        for axis, at in product(range(3), range(32)):
            region = [range(32)] * 3
            region[axis] = range(at, at + 1)
            assert same(read(path, header, tuple(region)), voxels[slices(tuple(region))])

    @given(st.data())
    @settings(deadline=None, max_examples=100)
    def test_any(self, file, three, data):
        for path, header, voxels in (file, three):
            region = data.draw(st.tuples(*[axes(32)] * 3))
            assert same(read(path, header, region), voxels[slices(region)])

    @pytest.mark.slow
    @given(st.data())
    @settings(deadline=None, max_examples=2000)
    def test_many(self, file, three, data):
        for path, header, voxels in (file, three):
            region = data.draw(st.tuples(*[axes(32)] * 3))
            assert same(read(path, header, region), voxels[slices(region)])

    @given(headers(), st.data())
    @settings(deadline=None, max_examples=60)
    def test_any_file(self, header, data):
        voxels = voxels_for(header, data.draw(st.integers(0, 100)))
        region = data.draw(st.tuples(*[axes(header.file_edge)] * 3))
        with tempfile.TemporaryDirectory() as directory:
            path = Path(directory) / "x"
            write(path, header, voxels)
            assert same(read(path, header, region), voxels[slices(region)])

    @pytest.mark.parametrize("limits", [(1, 1, 0), (5000, 600, 1 << 20), (1 << 20, 1 << 20, 0)])
    def test_rows_longer_than_the_buffers(self, file, monkeypatch, limits):
        """Rows of blocks are cut into groups, runs of bytes into reads: with any limits the same.

        The loops are compiled anew, because compiled code does not see a patched constant.
        """
        path, header, voxels = file
        region = (range(3, 31), range(7, 17), range(8, 10))
        names = ("_ROW_BYTES", "_RUN_BYTES", "_GAP_BYTES")
        for name, limit in zip(names, limits, strict=True):
            monkeypatch.setattr(codec, name, limit)
        monkeypatch.setattr(codec, "_unpack", recompiled(codec._unpack))
        monkeypatch.setattr(codec, "_decode_row", recompiled(codec._decode_row))
        assert same(read(path, header, region), voxels[slices(region)])

    def test_nothing_beside_the_array_is_written(self, file):
        path, header, voxels = file
        region = (range(3, 29), range(5, 27), range(1, 31, 2))
        larger = np.full((1, 30, 30, 30), 7, np.uint16, order="F")
        inside = larger[:, 2:28, 4:26, 3:18]
        with WkwFile.open(str(path), header) as opened:
            opened.read_into(inside, region)
        assert same(inside, voxels[slices(region)])
        inside[...] = 7
        assert (larger == 7).all()


def recompiled(function: Any) -> Any:
    """Return a function that is compiled anew, with the constants of now, and not kept."""
    from numba import njit

    return njit(function.py_func)


def axes(edge: int) -> st.SearchStrategy[range]:
    """Draw what is read of an axis; not empty."""
    bounds = st.tuples(st.integers(0, edge - 1), st.integers(1, edge)).filter(lambda b: b[0] < b[1])
    return st.builds(lambda b, step: range(*b, step), bounds, st.integers(1, edge + 1))


def tissue(name: str) -> Any:
    """Return 64-cubed uint32 voxels of some kind."""
    rng = np.random.default_rng(0)
    if name == "random":
        return rng.integers(0, 1 << 32, (1, 64, 64, 64), dtype=np.uint32)
    if name == "constant":
        return np.full((1, 64, 64, 64), 123456, np.uint32)
    cells = rng.integers(1, 1 << 20, (1, 12, 12, 12), dtype=np.uint32)
    x, y, z = np.indices((64, 64, 64))
    if name == "segments":
        wave = (3 * np.sin(y / 7) + 2 * np.cos(z / 5)).astype(int)
        return cells[:, (x + wave) // 7 % 12, (y + wave) // 6 % 12, z // 9]
    # A bit of each, block by block.
    kinds = rng.integers(0, 3, (8, 8, 8)).repeat(8, 0).repeat(8, 1).repeat(8, 2)
    return np.choose(kinds, [tissue("random"), tissue("constant"), tissue("segments")])


class TestAdaptive:
    """LZ4HC where it is worth it, and nowhere more bytes than fast LZ4 makes."""

    NAMES = ("random", "constant", "segments", "mixed")

    @pytest.mark.parametrize("name", NAMES)
    @pytest.mark.parametrize("level", [3, None, 12])
    def test_never_larger_than_fast_lz4(self, name, level):
        fast = pack(VolumeHeader("uint32", 1, 8, 8, "lz4"), tissue(name))
        slow = pack(VolumeHeader("uint32", 1, 8, 8, "lz4hc"), tissue(name), level)
        assert len(fast) == len(slow) == 512
        assert all(len(b) <= len(a) for a, b in zip(fast, slow, strict=True))
        unpacked = [lz4.block.decompress(data, uncompressed_size=2048) for data in slow]
        assert unpacked == pack(VolumeHeader("uint32", 1, 8, 8), tissue(name))

    @pytest.mark.parametrize("name", NAMES)
    def test_libwkw_reads_it(self, tmp_path: Path, name):
        voxels = tissue(name).astype(np.uint32)
        header = VolumeHeader("uint32", 1, 8, 8, "lz4hc")
        assert same(read_by_libwkw(tmp_path / "v", header, voxels, hc_level=9), voxels)

    def test_segments_are_smaller(self):
        fast = pack(VolumeHeader("uint32", 1, 32, 2, "lz4"), tissue("segments"))
        slow = pack(VolumeHeader("uint32", 1, 32, 2, "lz4hc"), tissue("segments"))
        assert sum(map(len, slow)) < 0.9 * sum(map(len, fast))

    def test_close_to_libwkw(self, tmp_path: Path):
        header = VolumeHeader("uint32", 1, 32, 2, "lz4hc")
        voxels = tissue("segments").astype(np.uint32)
        theirs = write_by_libwkw(tmp_path / "v", header, voxels).stat().st_size
        ours = sum(map(len, pack(header, voxels))) + header.data_offset_bytes
        assert ours <= 1.3 * theirs

    def test_higher_levels_are_not_larger(self):
        header = VolumeHeader("uint32", 1, 32, 2, "lz4hc")
        low, high = (sum(map(len, pack(header, tissue("segments"), n))) for n in (3, 12))
        assert high < low

    def test_a_block_that_does_not_shrink_is_left_as_fast_lz4_makes_it(self):
        fast = pack(VolumeHeader("uint32", 1, 8, 8, "lz4"), tissue("random"))
        assert pack(VolumeHeader("uint32", 1, 8, 8, "lz4hc"), tissue("random")) == fast

    def test_hc_is_tried_again_when_the_voxels_change(self):
        """Where HC saved nothing at first, samples find out that it does later."""
        header = VolumeHeader("uint32", 1, 8, 8, "lz4hc")
        packer = BlockPacker(header)
        for _ in packer.pack(tissue("constant")):
            pass
        later = sum(int(sizes.sum()) for _ in range(4) for _, sizes in packer.pack(segments()))
        alone = 4 * sum(map(len, pack(header, segments())))
        assert later <= 1.1 * alone

    def test_samples(self):
        """Two blocks of a kind are tried, then one of 32, or all if it saves a sixteenth."""
        useless, useful = np.array([2, 1600, 1501]), np.array([2, 1600, 1500])
        assert sum(codec._is_worth(useless) for _ in range(320)) == 10
        assert all(codec._is_worth(useful) for _ in range(320))
        fresh = np.zeros(3, np.int64)
        codec._is_worth(fresh)
        assert fresh[0] == 1
        assert codec._is_worth(fresh)

    @pytest.mark.parametrize(("hc", "kept"), [(9, b"b" * 9), (10, b"a" * 10), (11, b"a" * 10)])
    def test_the_smaller_one_is_kept(self, hc, kept):
        buffer = np.frombuffer(bytearray(b"a" * 10 + b"b" * 11), np.uint8)
        sample = np.zeros(3, np.int64)
        size = codec._smaller(buffer.ctypes.data, np.int64(10), np.int64(hc), sample)
        assert bytes(buffer[:size]) == kept
        assert list(sample) == [0, 10, len(kept)]

    def test_same_voxels_same_bytes(self):
        header = VolumeHeader("uint32", 1, 8, 8, "lz4hc")
        assert pack(header, tissue("mixed")) == pack(header, tissue("mixed"))


def segments() -> Any:
    return tissue("segments")


class TestBadBlocks:
    HEADER = VolumeHeader("uint16", 1, 4, 1)
    GOOD = 64 * 2

    @pytest.fixture
    def path(self, tmp_path: Path) -> Path:
        return tmp_path / "x0.wkw"

    def decode(self, path: Path, data: bytes, kind: BlockType) -> Any:
        """Read a file of one block; the error names it."""
        header = VolumeHeader("uint16", 1, 4, 1, kind)
        write_blocks(path, header, [data])
        return read(path, header)

    @pytest.mark.parametrize("length", [0, 1, GOOD - 1])
    def test_raw_of_a_wrong_length(self, path, length):
        path.write_bytes(self.HEADER.to_bytes(16) + bytes(length))
        with pytest.raises(FormatError, match=f"{length + 16} bytes.*{self.GOOD + 16}"):
            read(path, self.HEADER)

    @pytest.mark.parametrize("kind", COMPRESSED)
    @pytest.mark.parametrize("length", [0, 1, GOOD - 2, GOOD - 1, GOOD + 1, GOOD + 2, 100 * GOOD])
    def test_lz4_of_another_size(self, path, kind, length):
        # Blocks of zeros, which would be zeros if their size were not looked at.
        packed = lz4.block.compress(bytes(length), store_size=False)
        with pytest.raises(FormatError, match=r"block \(0, 0, 0\) is no LZ4 block of 128 bytes"):
            self.decode(path, packed, kind)

    @pytest.mark.parametrize("kind", COMPRESSED)
    @pytest.mark.parametrize("seed", range(6))
    def test_lz4_cut_at_every_place(self, path, kind, seed):
        header = VolumeHeader("uint16", 1, 4, 1, kind)
        (packed,) = pack(header, voxels_for(header, seed))
        for length in range(len(packed)):
            with pytest.raises(FormatError):
                self.decode(path, packed[:length], kind)

    @pytest.mark.parametrize("kind", COMPRESSED)
    def test_lz4_with_something_behind(self, path, kind):
        header = VolumeHeader("uint16", 1, 4, 1, kind)
        (packed,) = pack(header, voxels_for(header, 1))
        for rest in (b"\0", b"\x10A", packed):
            with pytest.raises(FormatError):
                self.decode(path, packed + rest, kind)

    @pytest.mark.parametrize("data", [b"", b"\xff" * 50, b"\xf0", b"WKW", bytes(145)])
    def test_no_lz4(self, path, data):
        with pytest.raises(FormatError):
            self.decode(path, data, "lz4")

    @given(st.binary(max_size=145))
    @settings(deadline=None, max_examples=200)
    def test_any_bytes_decode_to_what_lz4_makes_of_them_or_raise(self, data):
        try:
            wanted = lz4.block.decompress(data, uncompressed_size=self.GOOD)
        except lz4.block.LZ4BlockError:
            wanted = b""
        with tempfile.TemporaryDirectory() as directory:
            try:
                voxels = self.decode(Path(directory) / "x", data, "lz4")
            except FormatError:
                assert len(wanted) != self.GOOD
            else:
                assert voxels.tobytes("F") == wanted

    @pytest.mark.parametrize("kind", COMPRESSED)
    def test_the_block_that_is_bad_is_named(self, path, kind):
        header = VolumeHeader("uint8", 1, 4, 4, kind)
        voxels = voxels_for(header, 1)
        good = pack(header, voxels)
        for index in range(64):
            write_blocks(path, header, [*good[:index], b"\xff" * 60, *good[index + 1 :]])
            x, y, z = block_at(index)
            with pytest.raises(FormatError, match=rf"block \({x}, {y}, {z}\) is no LZ4"):
                read(path, header)
            if x:
                region = (range(4 * x), range(16), range(16))
                assert same(read(path, header, region), voxels[slices(region)])

    @pytest.mark.parametrize("kind", COMPRESSED)
    def test_the_block_where_the_file_ends_is_named(self, path, kind):
        """Also if it is one of several that are read at once."""
        header = VolumeHeader("uint8", 1, 4, 4, kind)
        write_blocks(path, header, pack(header, voxels_for(header, 1)))
        with WkwFile.open(str(path), header) as file:
            for index in range(63, -1, -1):
                os.truncate(path, int(file.ends[index]) - 1)
                block = block_at(index)
                row = tuple(range(4 * at, 4 * at + 4) for at in block[1:])
                out = np.zeros((1, 4 * block[0] + 4, 4, 4), np.uint8, order="F")
                failure = codec.unpack(
                    file.descriptor, header, file.ends, (range(out.shape[1]), *row), out
                )
                assert failure == ("read", block)

    def test_a_jump_table_with_gaps_of_any_size(self, path):
        """Nobody writes such files, but the table allows blocks in ascending order only."""
        header = VolumeHeader("uint8", 1, 4, 2, "lz4")
        voxels = voxels_for(header, 1)
        write_blocks(path, header, pack(header, voxels))
        path.write_bytes(path.read_bytes() + b"behind")
        assert same(read(path, header), voxels)


class TestPlainBlocks:
    """Blocks that LZ4 could not shrink are voxels behind a few bytes, and are read as such."""

    HEADERS = tuple(
        VolumeHeader(dtype, channels, edge, 4, "lz4")
        for dtype, channels, edge in (
            ("uint8", 1, 4),
            ("uint8", 3, 8),
            ("uint16", 1, 8),
            ("uint32", 2, 16),
            ("uint8", 1, 32),
        )
    )

    def scene(self, path: Path, header: VolumeHeader) -> tuple[Any, list[bytes]]:
        voxels = voxels_for(header, seed=1)
        blocks = pack(header, voxels)
        plain = header.block_bytes + codec._literal_head(header.block_bytes)
        assert plain in map(len, blocks)
        write_blocks(path, header, blocks)
        return voxels, blocks

    @pytest.mark.parametrize("header", HEADERS, ids=str)
    def test_each_row_is_found(self, tmp_path: Path, header: VolumeHeader) -> None:
        path = tmp_path / "x0.wkw"
        voxels, _ = self.scene(path, header)
        edge = header.file_edge
        with WkwFile.open(str(path), header) as file:
            for axis, at in product(range(3), range(edge)):
                region = [range(edge)] * 3
                region[axis] = range(at, at + 1)
                out = np.empty((header.num_channels, *map(len, region)), header.dtype, order="F")
                file.read_into(out, (region[0], region[1], region[2]))
                expected = voxels.take([at], axis=axis + 1)
                assert out.tobytes() == expected.tobytes()

    @pytest.mark.parametrize("header", HEADERS, ids=str)
    def test_a_byte_before_the_voxels_is_never_wrong(
        self, tmp_path: Path, header: VolumeHeader
    ) -> None:
        path = tmp_path / "x0.wkw"
        _, blocks = self.scene(path, header)
        count = codec._literal_head(header.block_bytes)
        last = header.file_edge - 1
        out = np.empty((header.num_channels, 1, 1, 1), header.dtype, order="F")
        for at, change in product({0, 1, count // 2, count - 2, count - 1}, (0x10, 0x80, 0xFF)):
            broken = bytearray(blocks[-1])
            broken[at] ^= change
            write_blocks(path, header, [*blocks[:-1], bytes(broken)])
            with (
                WkwFile.open(str(path), header) as file,
                pytest.raises(FormatError, match="is no LZ4 block"),
            ):
                file.read_into(out, (range(last, last + 1),) * 3)

    def test_a_block_of_their_size_may_have_to_be_decoded(self, tmp_path: Path) -> None:
        header = VolumeHeader("uint8", 1, 4, 1, "lz4")
        first = bytes([0xF0, 0, *range(15), 15, 0])  # 15 voxels, and 4 as 15 voxels before
        block = first + bytes([0xF0, 45 - 15, *range(45)])
        assert len(block) == header.block_bytes + codec._literal_head(header.block_bytes)
        path = tmp_path / "x0.wkw"
        write_blocks(path, header, [block])
        out = np.empty((1, 4, 4, 4), np.uint8, order="F")
        with WkwFile.open(str(path), header) as file:
            file.read_into(out, (range(4),) * 3)
        assert out.tobytes("F") == lz4.block.decompress(block, uncompressed_size=64)
