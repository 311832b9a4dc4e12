"""`wkdask.storage.wkw`: many files, with libwkw as the oracle in both directions."""

from __future__ import annotations

import contextlib
import errno
import itertools
import os
import pickle
import shutil
import subprocess
import sys
import tempfile
import zlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import wkw
from hypothesis import given, settings
from hypothesis import strategies as st

from wkdask.errors import (
    AccessError,
    ArgumentError,
    BoundsError,
    DirectoryError,
    DtypeError,
    ExistsError,
    FormatError,
    MissingError,
    StorageError,
    WkdaskError,
)
from wkdask.geometry import BoundingBox
from wkdask.grids import Region, region_of
from wkdask.storage import place as places
from wkdask.storage import wkw as volume_module
from wkdask.storage.header import BLOCK_TYPES, DTYPES, BlockType, VolumeHeader
from wkdask.storage.volume import WriteOptions
from wkdask.storage.wkw import HEADER_NAME, WkwVolume
from wkdask.testing import read_by_libwkw, snapshot, voxels_for, write_by_libwkw

COMPRESSED = ("lz4", "lz4hc")
EDGE = 8
"""Voxels per edge of the files of most tests: 2 x 2 x 2 blocks of 4 voxels."""


def small(kind: str = "raw", dtype: str = "uint8", channels: int = 1) -> VolumeHeader:
    return VolumeHeader(dtype, channels, 4, 2, kind)  # type: ignore[arg-type]


def slices(region: Region) -> tuple[slice, ...]:
    return (slice(None), *(slice(axis.start, axis.stop, axis.step) for axis in region))


def box_at(*numbers: int) -> BoundingBox:
    return BoundingBox(numbers[:3], numbers[3:])


def read(volume: WkwVolume, box: BoundingBox) -> Any:
    return volume.read(region_of(box))


def assert_same(found: Any, expected: Any) -> None:
    """Assert that two arrays agree to the bit, NaN and all."""
    assert (found.dtype, found.shape) == (expected.dtype, expected.shape)
    assert found.tobytes("F") == expected.tobytes("F")


@pytest.fixture(params=BLOCK_TYPES)
def kind(request: pytest.FixtureRequest) -> BlockType:
    return request.param


@pytest.fixture
def volume(tmp_path: Path, kind: BlockType) -> WkwVolume:
    return WkwVolume.create(tmp_path / "v", small(kind))


class TestOracle:
    """What libwkw writes we read, and the reverse, to the bit."""

    BOX = box_at(8, 0, 0, 16, 8, 8)

    @pytest.mark.parametrize("channels", [1, 2, 3])
    @pytest.mark.parametrize("dtype", DTYPES)
    def test_dtypes_and_channels(self, tmp_path, kind, dtype, channels):
        self.check_both_directions(tmp_path, small(kind, dtype, channels), self.BOX)

    @pytest.mark.parametrize(
        ("block_edge", "blocks_per_file_edge"),
        [(1, 1), (1, 8), (2, 4), (4, 1), (8, 2), (16, 2), (32, 1), (64, 1)],
    )
    def test_edges(self, tmp_path, kind, block_edge, blocks_per_file_edge):
        header = VolumeHeader("uint16", 2, block_edge, blocks_per_file_edge, kind)
        edge = header.file_edge
        self.check_both_directions(tmp_path, header, box_at(0, edge, 0, edge, edge, edge))

    def check_both_directions(self, tmp_path: Path, header: VolumeHeader, box: BoundingBox) -> None:
        voxels = voxels_for(header, box.size)
        write_by_libwkw(tmp_path / "theirs", header, box, voxels)
        theirs = WkwVolume.open(tmp_path / "theirs")
        assert theirs.header == header
        assert_same(read(theirs, box), voxels)
        ours = WkwVolume.create(tmp_path / "ours", header)
        ours.write(box, voxels)
        assert_same(read_by_libwkw(ours.path, box), voxels)
        assert sorted(ours.files()) == sorted(
            (cell, Path(ours.file_path(cell)).stat().st_size) for cell, _ in theirs.files()
        )

    def test_file_positions(self, tmp_path, kind):
        # x, y and z must not be mixed up: one file, far away, another number on each axis.
        header = small(kind)
        box = box_at(3 * EDGE, 5 * EDGE, 7 * EDGE, EDGE, EDGE, EDGE)
        write_by_libwkw(tmp_path / "v", header, box, voxels_for(header, box.size))
        volume = WkwVolume.open(tmp_path / "v")
        assert [cell for cell, _ in volume.files()] == [(3, 5, 7)]
        assert volume.file_path((3, 5, 7)).endswith(os.path.join("z7", "y5", "x3.wkw"))
        assert volume.box_on_disk() == box


@pytest.fixture(scope="module", params=BLOCK_TYPES)
def written(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A volume by libwkw of 3 x 3 x 3 files of which two are missing, and its voxels."""
    header = small(request.param, "uint16", 3)
    voxels = voxels_for(header, (24, 24, 24))
    path = tmp_path_factory.mktemp("oracle") / "v"
    write_by_libwkw(path, header, box_at(0, 0, 0, 24, 24, 24), voxels)
    (path / "z0" / "y0" / "x0.wkw").unlink()
    shutil.rmtree(path / "z1" / "y2")
    voxels[:, :8, :8, :8] = 0
    voxels[:, :, 16:, 8:16] = 0
    return WkwVolume.open(path), voxels


def axis_ranges(extent: int) -> st.SearchStrategy[range]:
    ends, steps = st.integers(0, extent), st.integers(1, 9)
    return st.builds(lambda a, b, step: range(min(a, b), max(a, b), step), ends, ends, steps)


class TestReading:
    @given(st.tuples(*[axis_ranges(24)] * 3))
    @settings(deadline=None, max_examples=80)
    def test_reading_is_indexing(self, written, region):
        volume, voxels = written
        found = volume.read(region)
        assert found.flags.f_contiguous
        assert_same(found, voxels[slices(region)])

    def test_beyond_everything_are_zeros(self, volume):
        before = snapshot(volume.path)
        found = volume.read((range(100, 107), range(3), range(2**40, 2**40 + 2)))
        assert (found.shape, found.any()) == ((1, 7, 3, 2), False)
        assert snapshot(volume.path) == before

    def test_result_belongs_to_the_caller(self, volume):
        box = box_at(0, 0, 0, 4, 4, 4)
        volume.write(box, voxels_for(volume.header, box.size))
        found = read(volume, box)
        found[:] = 0
        assert read(volume, box).all()

    def test_only_touched_files_are_opened(self, volume, monkeypatch):
        volume.write(box_at(0, 0, 0, 16, 8, 8), voxels_for(volume.header, (16, 8, 8)))
        Path(volume.file_path((0, 0, 0))).write_bytes(b"damaged")
        assert volume.read((range(8, 16), range(8), range(8))).all()
        # A step of 16 from 8 never touches the first file either.
        assert volume.read((range(8, 9, 16), range(1), range(1))).all()
        with pytest.raises(FormatError, match=r"x0\.wkw"):
            volume.read((range(7, 16), range(8), range(8)))


class TestWriting:
    @pytest.mark.parametrize("kind", BLOCK_TYPES)
    @given(st.data())
    @settings(deadline=None, max_examples=30)
    def test_any_boxes_are_assignments(self, kind, data):
        check_assignments(kind, data)

    @pytest.mark.slow
    @pytest.mark.parametrize("kind", BLOCK_TYPES)
    @given(st.data())
    @settings(deadline=None, max_examples=500)
    def test_many_boxes_are_assignments(self, kind, data):
        check_assignments(kind, data)

    def test_a_partly_covered_file_keeps_what_lies_outside(self, volume):
        old = voxels_for(volume.header, (16, 8, 8))
        volume.write(box_at(0, 0, 0, 16, 8, 8), old)
        box = box_at(5, 1, 2, 6, 3, 3)
        new = voxels_for(volume.header, box.size, seed=2)
        volume.write(box, new)
        old[slices(region_of(box))] = new
        assert_same(read(volume, box_at(0, 0, 0, 16, 8, 8)), old)
        assert_same(read_by_libwkw(volume.path, box_at(0, 0, 0, 16, 8, 8)), old)

    def test_files_beside_the_box_are_not_touched(self, volume):
        volume.write(box_at(0, 0, 0, 24, 8, 8), voxels_for(volume.header, (24, 8, 8)))
        paths = [Path(volume.file_path((x, 0, 0))) for x in (0, 2)]
        before = [(path.stat().st_ino, path.stat().st_mtime_ns) for path in paths]
        volume.write(box_at(8, 0, 0, 8, 8, 8), voxels_for(volume.header, (8, 8, 8), seed=2))
        assert [(path.stat().st_ino, path.stat().st_mtime_ns) for path in paths] == before

    @pytest.mark.parametrize("kind", ["raw"])
    def test_raw_patches_keep_the_bytes_of_other_blocks(self, volume):
        volume.write(box_at(0, 0, 0, 8, 8, 8), voxels_for(volume.header, (8, 8, 8)))
        path = Path(volume.file_path((0, 0, 0)))
        before = path.read_bytes()
        volume.write(box_at(1, 1, 5, 2, 2, 2), voxels_for(volume.header, (2, 2, 2), seed=2))
        after = path.read_bytes()
        changed = [i for i, (a, b) in enumerate(zip(before, after, strict=True)) if a != b]
        # block (0, 0, 1) is the fifth
        assert changed
        assert {(i - 16) // 64 for i in changed} == {4}

    def test_views_and_c_order(self, volume):
        larger = voxels_for(volume.header, (10, 11, 12))
        part = larger[:, 1:9, ::-1, 2:10][:, :, :8]
        volume.write(box_at(0, 0, 0, 8, 8, 8), part)
        assert_same(read(volume, box_at(0, 0, 0, 8, 8, 8)), part)
        volume.write(box_at(1, 0, 0, 5, 8, 8), np.ascontiguousarray(part[:, :5]))
        assert_same(read(volume, box_at(1, 0, 0, 5, 8, 8)), part[:, :5])

    @pytest.mark.parametrize(
        ("dtype", "shape", "error"),
        [
            ("uint16", (1, 4, 4, 4), DtypeError),
            ("int8", (1, 4, 4, 4), DtypeError),
            ("float64", (1, 4, 4, 4), DtypeError),
            ("bool", (1, 4, 4, 4), DtypeError),
            ("uint8", (2, 4, 4, 4), ArgumentError),
            ("uint8", (4, 4, 4), ArgumentError),
            ("uint8", (1, 4, 4), ArgumentError),
            ("uint8", (1, 1, 4, 4, 4), ArgumentError),
            ("uint8", (1, 4, 4, 5), ArgumentError),
            ("uint8", (1, 4, 1, 4), ArgumentError),  # never broadcast
            ("uint8", (1, 1, 1, 1), ArgumentError),
        ],
    )
    def test_refused_voxels(self, volume, dtype, shape, error):
        before, version = snapshot(volume.path), volume.version()
        with pytest.raises(error):
            volume.write(box_at(2, 2, 2, 4, 4, 4), np.ones(shape, dtype))
        assert snapshot(volume.path) == before
        assert volume.version() == version

    @pytest.mark.parametrize("kind", ["raw"])
    def test_other_byte_order_is_refused(self, tmp_path, kind):
        volume = WkwVolume.create(tmp_path / "v", small(kind, "uint16"))
        with pytest.raises(DtypeError):
            volume.write(box_at(0, 0, 0, 1, 1, 1), np.ones((1, 1, 1, 1), ">u2"))

    @pytest.mark.parametrize("axis", range(3))
    def test_negative_positions_are_refused(self, volume, axis):
        # There is no file x-1.wkw that any reader of WKW would find.
        before = snapshot(volume.path)
        corner = [0, 0, 0]
        corner[axis] = -1
        with pytest.raises(BoundsError, match="negative"):
            volume.write(BoundingBox(corner, (2, 2, 2)), np.ones((1, 2, 2, 2), np.uint8))
        assert snapshot(volume.path) == before

    def test_an_empty_box_writes_nothing(self, volume):
        before = snapshot(volume.path)
        volume.write(box_at(3, 3, 3, 0, 5, 5), np.ones((1, 0, 5, 5), np.uint8))
        assert snapshot(volume.path) == before


def check_assignments(kind: BlockType, data: st.DataObject) -> None:
    """Write random boxes, and compare with assignments to an array."""
    header = replace(small(kind), num_channels=2, dtype="uint16")
    model = np.zeros((2, 20, 20, 20), np.uint16, order="F")
    whole = box_at(0, 0, 0, 20, 20, 20)
    starts, stops = st.integers(0, 19), st.integers(1, 20)
    with tempfile.TemporaryDirectory() as directory:
        volume = WkwVolume.create(Path(directory) / "v", header)
        for seed in range(data.draw(st.integers(1, 4), "writes")):
            pairs = [
                data.draw(st.tuples(starts, stops).filter(lambda p: p[0] < p[1])) for _ in "xyz"
            ]
            box = BoundingBox.from_corners((a for a, _ in pairs), (b for _, b in pairs))
            voxels = voxels_for(header, box.size, seed)
            volume.write(box, voxels)
            model[slices(region_of(box))] = voxels
            assert_same(read(volume, whole), model)
        assert_same(read_by_libwkw(volume.path, whole), model)
        assert not [name for name in snapshot(volume.path) if "tmp" in name]


class TestMixedBlockTypes:
    """Raw files inside an LZ4 volume are legal and occur; the file's own header decides."""

    BOX = box_at(0, 0, 0, 24, 8, 8)

    @pytest.fixture
    def mixed(self, tmp_path: Path, kind: BlockType) -> tuple[WkwVolume, Any]:
        """A volume whose three files have three block types, and its voxels."""
        volume = WkwVolume.create(tmp_path / "v", small(kind))
        voxels = voxels_for(volume.header, self.BOX.size)
        for x, other in enumerate(BLOCK_TYPES):
            box = box_at(x * 8, 0, 0, 8, 8, 8)
            part = voxels[:, x * 8 : x * 8 + 8]
            WkwVolume(volume.path, small(other)).write(box, part)
        types = [Path(volume.file_path((x, 0, 0))).read_bytes()[5] for x in range(3)]
        assert types == [1, 2, 3]
        return volume, voxels

    def test_reading(self, mixed):
        volume, voxels = mixed
        assert_same(read(volume, self.BOX), voxels)
        assert_same(read_by_libwkw(volume.path, self.BOX), voxels)
        region = (range(1, 24, 3), range(0, 8, 5), range(2, 3))
        assert_same(volume.read(region), voxels[slices(region)])

    @pytest.mark.parametrize("kind", COMPRESSED)
    def test_merging_makes_files_of_the_volumes_type(self, mixed, kind):
        volume, voxels = mixed
        box = box_at(3, 2, 1, 18, 4, 4)
        new = voxels_for(volume.header, box.size, seed=2)
        volume.write(box, new)
        voxels[slices(region_of(box))] = new
        assert_same(read(volume, self.BOX), voxels)
        assert_same(read_by_libwkw(volume.path, self.BOX), voxels)
        number = BLOCK_TYPES.index(kind) + 1
        files = [Path(volume.file_path((x, 0, 0))).read_bytes() for x in range(3)]
        assert {data[5] for data in files} == {number}

    @pytest.mark.parametrize("kind", ["raw"])
    def test_no_block_of_a_compressed_file_is_patched(self, mixed):
        volume, voxels = mixed
        before = snapshot(volume.path)
        with pytest.raises(FormatError, match=r"x1\.wkw .*compressed"):
            volume.write(box_at(9, 0, 0, 1, 1, 1), np.ones((1, 1, 1, 1), np.uint8))
        assert snapshot(volume.path) == before
        # but the raw file may be patched, and the whole compressed one replaced
        volume.write(box_at(0, 0, 0, 1, 1, 1), np.full((1, 1, 1, 1), 77, np.uint8))
        voxels[0, 0, 0, 0] = 77
        volume.write(box_at(8, 0, 0, 8, 8, 8), voxels[:, 16:])
        voxels[:, 8:16] = voxels[:, 16:]
        assert_same(read(volume, self.BOX), voxels)


class TestZeros:
    """Missing means zero, so files of zeros are not kept, unless it is asked for."""

    WHOLE = box_at(0, 0, 0, 16, 8, 8)

    def test_zeros_over_voxels_remove_the_file(self, volume):
        voxels = voxels_for(volume.header, self.WHOLE.size)
        volume.write(self.WHOLE, voxels)
        before = volume.version()
        volume.write(box_at(8, 0, 0, 8, 8, 8), np.zeros((1, 8, 8, 8), np.uint8))
        voxels[:, 8:] = 0
        assert [cell for cell, _ in volume.files()] == [(0, 0, 0)]
        assert volume.version() != before
        assert_same(read(volume, self.WHOLE), voxels)
        assert_same(read_by_libwkw(volume.path, self.WHOLE), voxels)

    @pytest.mark.parametrize("kind", COMPRESSED)
    def test_also_if_they_come_in_parts(self, volume):
        volume.write(self.WHOLE, voxels_for(volume.header, self.WHOLE.size))
        for x in (0, 8, 4, 12):
            assert read(volume, box_at(x, 0, 0, 4, 8, 8)).all()
            volume.write(box_at(x, 0, 0, 4, 8, 8), np.zeros((1, 4, 8, 8), np.uint8))
        assert list(volume.files()) == []
        assert not read(volume, self.WHOLE).any()

    def test_one_voxel_keeps_the_file(self, volume):
        voxels = np.zeros((1, 16, 8, 8), np.uint8)
        voxels[0, 15, 7, 7] = 1
        volume.write(self.WHOLE, voxels)
        assert [cell for cell, _ in volume.files()] == [(1, 0, 0)]
        assert_same(read(volume, self.WHOLE), np.asfortranarray(voxels))

    def test_option_to_keep_them(self, volume):
        careful = replace(volume, options=WriteOptions(keep_zeros=True))
        careful.write(self.WHOLE, np.zeros((1, 16, 8, 8), np.uint8))
        assert sorted(cell for cell, _ in volume.files()) == [(0, 0, 0), (1, 0, 0)]
        assert not read_by_libwkw(volume.path, self.WHOLE).any()

    @pytest.mark.parametrize("keep_zeros", [False, True])
    def test_of_a_part(self, volume, keep_zeros):
        options = WriteOptions(keep_zeros=keep_zeros)
        part = np.zeros((1, 3, 2, 1), np.uint8)
        replace(volume, options=options).write(box_at(7, 0, 0, 3, 2, 1), part)
        assert len([*volume.files()]) == (2 if keep_zeros else 0)


class TestOptions:
    def test_they_travel(self, volume):
        options = WriteOptions(fsync=True, keep_zeros=True, hc_level=12)
        again = pickle.loads(pickle.dumps(replace(volume, options=options)))
        assert again.options == options
        assert again != volume
        assert len(pickle.dumps(again)) < 1000

    @pytest.mark.parametrize("box", [box_at(0, 0, 0, 8, 8, 8), box_at(1, 2, 3, 4, 3, 2)])
    @pytest.mark.parametrize("wanted", [False, True])
    def test_fsync(self, volume, monkeypatch, box, wanted):
        fsync, calls = os.fsync, []
        monkeypatch.setattr(os, "fsync", lambda fd: calls.append(fd) or fsync(fd))
        careful = pickle.loads(pickle.dumps(replace(volume, options=WriteOptions(fsync=wanted))))
        for seed in (1, 2):
            calls.clear()
            careful.write(box, voxels_for(volume.header, box.size, seed))
            assert bool(calls) == wanted
            assert_same(read(volume, box), voxels_for(volume.header, box.size, seed))

    @pytest.mark.parametrize("kind", ["lz4hc"])
    def test_the_level_arrives(self, tmp_path, kind):
        header = VolumeHeader("uint32", 1, 32, 1, kind)
        x, y, z = np.indices((32, 32, 32))
        voxels = ((x + y // 3) // 5 * 77 + (y + z) // 7 * 1313)[None].astype(np.uint32)
        sizes = []
        for level in (3, 12):
            volume = WkwVolume.create(tmp_path / str(level), header)
            replace(volume, options=WriteOptions(hc_level=level)).write(
                box_at(0, 0, 0, 32, 32, 32), voxels
            )
            sizes += [size for _, size in volume.files()]
        assert sizes[1] < sizes[0]


class TestMergingByPieces:
    """Files larger than a piece: each piece takes what is new, and the rest from the old file."""

    @pytest.mark.parametrize("kind", COMPRESSED)
    @given(st.data())
    @settings(deadline=None, max_examples=20)
    def test_boxes(self, kind, data):
        header = VolumeHeader("uint16", 2, 2, 8, kind)
        old = voxels_for(header, (16, 16, 16))
        starts, stops = st.integers(0, 15), st.integers(1, 16)
        pairs = [data.draw(st.tuples(starts, stops).filter(lambda p: p[0] < p[1])) for _ in "xyz"]
        box = BoundingBox.from_corners((a for a, _ in pairs), (b for _, b in pairs))
        new = voxels_for(header, box.size, seed=2)
        with (
            pytest.MonkeyPatch.context() as patch,
            tempfile.TemporaryDirectory() as directory,
        ):
            patch.setattr(volume_module.writer, "_PIECE_BYTES", 8 * header.block_bytes)
            volume = WkwVolume.create(Path(directory) / "v", header)
            volume.write(box_at(0, 0, 0, 16, 16, 16), old)
            volume.write(box, new)
            old[slices(region_of(box))] = new
            assert_same(read(volume, box_at(0, 0, 0, 16, 16, 16)), old)
            assert_same(read_by_libwkw(volume.path, box_at(0, 0, 0, 16, 16, 16)), old)

    @pytest.mark.parametrize("kind", COMPRESSED)
    def test_a_damaged_block_that_must_be_kept(self, tmp_path, kind, monkeypatch):
        header = VolumeHeader("uint8", 1, 4, 4, kind)
        volume = WkwVolume.create(tmp_path / "v", header)
        whole = box_at(0, 0, 0, 16, 16, 16)
        volume.write(whole, voxels_for(header, whole.size))
        path = Path(volume.file_path((0, 0, 0)))
        data = path.read_bytes()
        start = int.from_bytes(data[16 + 8 * 62 : 16 + 8 * 63], "little")
        path.write_bytes(data[:start] + b"\xff" * (len(data) - start))
        before = snapshot(volume.path)
        monkeypatch.setattr(volume_module.writer, "_PIECE_BYTES", 1)
        with pytest.raises(FormatError, match=r"x0\.wkw block \(3, 3, 3\)"):
            volume.write(box_at(0, 0, 0, 4, 4, 5), voxels_for(header, (4, 4, 5), seed=2))
        assert snapshot(volume.path) == before
        # All of that block is new, so nothing of the damaged one is needed.
        volume.write(box_at(12, 12, 12, 4, 4, 4), voxels_for(header, (4, 4, 4), seed=2))
        assert read(volume, whole).all()

    @pytest.mark.parametrize("kind", COMPRESSED)
    def test_no_descriptor_leaks(self, volume):
        def opened() -> list[str]:
            # Other threads of the test run open files of their own.
            found = []
            for each in Path("/proc/self/fd").iterdir():
                with contextlib.suppress(OSError):
                    found.append(os.readlink(each))
            return [path for path in found if path.startswith(volume.path)]

        if not Path("/proc/self/fd").exists():
            pytest.skip("descriptors can't be listed here")
        volume.write(box_at(0, 0, 0, 8, 8, 8), voxels_for(volume.header, (8, 8, 8)))
        for seed in range(5):
            volume.write(box_at(1, 1, 1, 2, 2, 2), voxels_for(volume.header, (2, 2, 2), seed))
        assert not opened()


def actions(volume: WkwVolume) -> dict[str, Callable[[], object]]:
    """Everything that goes to the disk."""
    whole = voxels_for(volume.header, (EDGE,) * 3)
    part = voxels_for(volume.header, (2, 2, 2))
    return {
        "read": lambda: volume.read((range(EDGE),) * 3),
        "write part": lambda: volume.write(box_at(1, 1, 1, 2, 2, 2), part),
        "write whole": lambda: volume.write(box_at(0, 0, 0, 8, 8, 8), whole),
        "check": volume.check,
        "open": lambda: WkwVolume.open(volume.path),
        "version": volume.version,
        "files": lambda: list(volume.files()),
        "box": volume.box_on_disk,
    }


class TestGone:
    @pytest.mark.parametrize("action", [*actions(WkwVolume("v", small()))])
    def test_mag_directory(self, volume, action):
        # A write must not bring back what somebody deleted, without its header.
        volume.write(box_at(0, 0, 0, 8, 8, 8), voxels_for(volume.header, (8, 8, 8)))
        shutil.rmtree(volume.path)
        with pytest.raises(MissingError, match="is not a directory") as caught:
            actions(volume)[action]()
        assert volume.path in str(caught.value)
        assert not os.path.exists(volume.path)

    @pytest.mark.parametrize("action", ["read", "write part", "write whole", "check", "open"])
    def test_header(self, volume, action):
        os.unlink(os.path.join(volume.path, HEADER_NAME))
        with pytest.raises(MissingError, match=f"has no {HEADER_NAME}"):
            actions(volume)[action]()
        assert snapshot(volume.path) == {}

    @pytest.mark.parametrize("action", ["read", "write part", "write whole", "check", "open"])
    def test_a_file_in_place_of_the_directory(self, volume, action):
        shutil.rmtree(volume.path)
        Path(volume.path).write_bytes(b"")
        with pytest.raises(WkdaskError) as caught:
            actions(volume)[action]()
        assert volume.path in str(caught.value)
        assert Path(volume.path).read_bytes() == b""


class TestBadFiles:
    """An unreadable file is an error that names it, for reads and for merges; nothing changes.

    `test_files.py` has every way in which a file can be damaged.
    """

    def bad(self, volume: WkwVolume, name: str) -> None:
        """Make the file of cell (1, 0, 0) bad in some way."""
        path = Path(volume.file_path((1, 0, 0)))
        if name == "directory":
            path.mkdir(parents=True)
        elif name in ("z", "y"):
            parent = path.parents[0 if name == "y" else 1]
            parent.parent.mkdir(exist_ok=True)
            parent.write_bytes(b"no directory")
        else:
            volume.write(box_at(8, 0, 0, 8, 8, 8), voxels_for(volume.header, (8, 8, 8)))
            data = path.read_bytes()
            path.write_bytes({"magic": b"no" + data[2:], "cut": data[:-1], "empty": b""}[name])

    @pytest.mark.parametrize(
        ("name", "error"),
        [
            ("magic", FormatError),
            ("cut", FormatError),
            ("empty", FormatError),
            ("directory", DirectoryError),
            ("y", StorageError),
            ("z", StorageError),
        ],
    )
    def test_one_bad_file(self, volume, name, error):
        self.bad(volume, name)
        before = snapshot(volume.path)
        path = volume.file_path((1, 0, 0))
        for action in (
            lambda: volume.read((range(16), range(8), range(8))),
            lambda: volume.read((range(15, 16), range(1), range(1))),
            lambda: volume.write(box_at(9, 1, 1, 1, 1, 1), np.ones((1, 1, 1, 1), np.uint8)),
        ):
            with pytest.raises(error) as caught:
                action()
            assert isinstance(caught.value, WkdaskError)
            # (in place of a directory it is another file of that directory that comes first)
            assert (os.path.dirname(path) if name in "yz" else path) in str(caught.value)
            assert snapshot(volume.path) == before

    @pytest.mark.parametrize("name", ["y", "z"])
    def test_listing_over_a_file_in_place_of_a_directory(self, volume, name):
        self.bad(volume, name)
        with pytest.raises(StorageError, match=volume.path):
            list(volume.files())

    def test_no_permission(self, volume, monkeypatch):
        # root may read everything, so the refusal is played.
        volume.write(box_at(0, 0, 0, 8, 8, 8), voxels_for(volume.header, (8, 8, 8)))

        def refuse(path: Any, *_: Any, **__: Any) -> Any:
            raise PermissionError(errno.EACCES, "Permission denied", path)

        names = ("open", "scandir", "stat")
        for name in names:
            monkeypatch.setattr(os, name, refuse)
        monkeypatch.setattr(volume_module, "open", refuse, raising=False)
        found = {}
        for name, action in actions(volume).items():
            with pytest.raises(WkdaskError) as caught:
                action()
            found[name] = type(caught.value)
            assert volume.path in str(caught.value)
        monkeypatch.undo()
        assert set(found.values()) == {AccessError}, found

    @pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="root may do everything")
    def test_no_permission_for_the_directory(self, volume):
        os.chmod(volume.path, 0)
        try:
            for action in ("read", "write part", "write whole", "open"):
                with pytest.raises(AccessError):
                    actions(volume)[action]()
        finally:
            os.chmod(volume.path, 0o755)


class TestOpenAndCreate:
    def test_round_trip(self, tmp_path, kind):
        made = WkwVolume.create(tmp_path / "a" / "b" / "2-2-1", small(kind, "float32", 2))
        assert WkwVolume.open(made.path) == made
        assert [*snapshot(made.path)] == [HEADER_NAME]
        with wkw.Dataset.open(made.path) as dataset:
            assert VolumeHeader.from_wkw(dataset.header) == made.header

    def test_nothing_is_overwritten(self, volume):
        before = snapshot(volume.path)
        with pytest.raises(ExistsError, match=HEADER_NAME):
            WkwVolume.create(volume.path, small("raw", "uint16"))
        assert snapshot(volume.path) == before

    def test_of_two_creators_one_is_told(self, tmp_path, monkeypatch):
        # Both see that there is no header before either of them writes it.
        first = WkwVolume.create(tmp_path / "v", small())
        monkeypatch.setattr(os.path, "lexists", lambda _: False)
        with pytest.raises(ExistsError, match=HEADER_NAME):
            WkwVolume.create(tmp_path / "v", small("lz4", "uint16"))
        assert WkwVolume.open(first.path) == first
        assert [*snapshot(first.path)] == [HEADER_NAME]

    def test_a_header_that_takes_many_calls(self, tmp_path, monkeypatch):
        # The operating system may write less than it was asked to.
        write, pwrite = os.write, os.pwrite
        monkeypatch.setattr(os, "write", lambda fd, data: write(fd, bytes(data)[:5]))
        monkeypatch.setattr(os, "pwrite", lambda fd, data, at: pwrite(fd, bytes(data)[:5], at))
        made = WkwVolume.create(tmp_path / "v", small())
        assert WkwVolume.open(made.path) == made

    def test_a_disk_without_room_for_the_header(self, tmp_path, monkeypatch):
        def fail(*_: object) -> int:
            raise OSError(errno.ENOSPC, "No space left on device")

        monkeypatch.setattr(os, "write", fail)
        monkeypatch.setattr(os, "pwrite", fail)
        with pytest.raises(StorageError, match="free space") as caught:
            WkwVolume.create(tmp_path / "v", small())
        assert caught.value.filename == str(tmp_path / "v" / HEADER_NAME)
        assert [*snapshot(tmp_path / "v")] == []

    def test_making_the_object_touches_no_disk(self, tmp_path):
        assert WkwVolume(str(tmp_path / "nowhere"), small()).header == small()
        assert snapshot(tmp_path) == {}

    def test_relative_paths_become_absolute(self, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        made = WkwVolume.create("v", small())
        assert made.path == str(tmp_path / "v")
        assert WkwVolume.open(Path("v")) == made

    def test_nul_in_the_path(self):
        # libwkw cuts the path there.
        for make in (lambda: WkwVolume("a\0b", small()), lambda: WkwVolume.open("a\0b")):
            with pytest.raises(ArgumentError, match="NUL"):
                make()

    @pytest.mark.parametrize(
        ("content", "error", "text"),
        [
            (b"", FormatError, "0 bytes"),
            (b"WKW\x01\x55", FormatError, "5 bytes"),
            (b"wkw" + small().to_bytes()[3:], FormatError, "instead of b'WKW'"),
            (b"WKW\x02" + small().to_bytes()[4:], FormatError, "version 2"),
            (
                small().to_bytes()[:5] + b"\x07" + small().to_bytes()[6:],
                FormatError,
                "block type 7",
            ),
            (
                small().to_bytes()[:6] + b"\x00" + small().to_bytes()[7:],
                FormatError,
                "voxel type 0",
            ),
            (
                small().to_bytes()[:4] + b"\xff" + small().to_bytes()[5:],
                FormatError,
                "block of edge",
            ),
            (..., DirectoryError, "directory"),
            (None, MissingError, "no mag directory"),
        ],
        ids=["empty", "short", "magic", "version", "block", "voxel", "edges", "directory", "none"],
    )
    def test_bad_headers(self, tmp_path, content, error, text):
        path = tmp_path / HEADER_NAME
        if content is ...:
            path.mkdir()
        elif content is not None:
            path.write_bytes(content)
        before = snapshot(tmp_path)
        with pytest.raises(error, match=text) as caught:
            WkwVolume.open(tmp_path)
        assert str(tmp_path) in str(caught.value)
        assert snapshot(tmp_path) == before

    def test_missing_directory_and_file_in_its_place(self, tmp_path):
        (tmp_path / "file").touch()
        for name in ("nowhere", "file"):
            with pytest.raises(MissingError, match=f"{name} is not a directory"):
                WkwVolume.open(tmp_path / name)

    def test_check(self, volume):
        volume.check()
        path = Path(volume.path) / HEADER_NAME
        path.write_bytes(small("lz4").to_bytes())
        volume.check()  # each file decides its block type, so this is no contradiction
        path.write_bytes(small("raw", "int8").to_bytes())
        with pytest.raises(FormatError, match="int8"):
            volume.check()

    def test_every_byte_of_the_header(self, volume):
        # A header that lies is found out by the files, whatever it says.
        voxels = voxels_for(volume.header, (8, 8, 8))
        volume.write(box_at(0, 0, 0, 8, 8, 8), voxels)
        path = Path(volume.path) / HEADER_NAME
        good = path.read_bytes()
        for place, value in itertools.product(range(8), range(0, 256, 5)):
            path.write_bytes(good[:place] + bytes([value]) + good[place + 1 :])
            try:
                found = read(WkwVolume.open(volume.path), box_at(0, 0, 0, 8, 8, 8))
            except FormatError:
                continue
            assert_same(found, voxels)


class TestListing:
    def test_only_files_at_their_place_count(self, volume):
        volume.write(box_at(8, 16, 24, 1, 1, 1), np.ones((1, 1, 1, 1), np.uint8))
        root = Path(volume.path)
        size = Path(volume.file_path((1, 2, 3))).stat().st_size
        for name in ("notes.txt", "z3/y2/x1.wkw_tmp", "z3/y2/x.wkw", "z3/y2/x01.wkw", "z3/y2/a"):
            (root / name).write_bytes(b"?")
        for name in ("z", "z03/y0", "zz1", "z3/yy", "backup"):
            (root / name).mkdir(parents=True)
        (root / "z03" / "y0" / "x0.wkw").write_bytes(b"?")
        assert list(volume.files()) == [((1, 2, 3), size)]
        assert volume.box_on_disk() == box_at(8, 16, 24, 8, 8, 8)

    def test_a_link_to_nothing_is_listed(self, volume):
        # Somebody's voxels are elsewhere: reading must say so, and so must a list of files.
        path = Path(volume.file_path((0, 0, 0)))
        path.parent.mkdir(parents=True)
        path.symlink_to("nowhere")
        assert list(volume.files()) == [((0, 0, 0), 0)]
        with pytest.raises(FormatError, match="link"):
            read(volume, volume.box_on_disk())

    def test_files_are_listed_without_a_header(self, volume):
        # Voxels that a crash left behind must be seen before a new header is put over them.
        volume.write(box_at(0, 0, 0, 1, 1, 1), np.ones((1, 1, 1, 1), np.uint8))
        os.unlink(os.path.join(volume.path, HEADER_NAME))
        assert [cell for cell, _ in volume.files()] == [(0, 0, 0)]

    def test_box_of_nothing_is_empty(self, volume):
        assert list(volume.files()) == []
        assert volume.box_on_disk().is_empty

    def test_box_around_files(self, volume):
        for corner in ((0, 8, 40), (16, 8, 0)):
            volume.write(BoundingBox(corner, (1, 1, 1)), np.ones((1, 1, 1, 1), np.uint8))
        box = volume.box_on_disk()
        assert box == BoundingBox.from_corners((0, 8, 0), (24, 16, 48))
        assert {type(n) for n in (*box.topleft, *box.size)} == {int}


class TestVersion:
    ONE = np.ones((1, 1, 1, 1), np.uint8)

    def test_changes_after_each_write_and_only_then(self, volume):
        seen = {volume.version()}
        for x in range(50):
            assert volume.version() in seen
            read(volume, box_at(0, 0, 0, 8, 8, 8))
            assert volume.version() in seen
            volume.write(box_at(x, 0, 0, 1, 1, 1), self.ONE)
            assert volume.version() not in seen
            seen.add(volume.version())

    def test_changes_after_writes_of_other_processes(self, volume, monkeypatch):
        # Another process has its own counter: this one sees the directory only.
        seen = {volume.version()}
        for _ in range(50):
            volume.write(box_at(0, 0, 0, 1, 1, 1), self.ONE)
            places._CHANGES.clear()
            assert volume.version() not in seen
            seen.add(volume.version())

    def test_changes_after_a_write_that_failed_halfway(self, volume):
        # The first file was written, so what was read before is old now.
        Path(volume.file_path((1, 0, 0))).mkdir(parents=True)
        before = volume.version()
        with pytest.raises(DirectoryError):
            volume.write(box_at(0, 0, 0, 16, 8, 8), voxels_for(volume.header, (16, 8, 8)))
        assert read(volume, box_at(0, 0, 0, 8, 8, 8)).all()
        assert volume.version() != before

    def test_belongs_to_one_directory(self, tmp_path, volume):
        other = WkwVolume.create(tmp_path / "other", volume.header)
        before = other.version()
        volume.write(box_at(0, 0, 0, 1, 1, 1), self.ONE)
        assert other.version() == before

    def test_same_through_another_object(self, volume):
        again = pickle.loads(pickle.dumps(volume))
        volume.write(box_at(0, 0, 0, 1, 1, 1), self.ONE)
        assert again.version() == volume.version()


class TestPickle:
    def test_is_small(self, volume):
        volume.write(box_at(0, 0, 0, 8, 8, 8), voxels_for(volume.header, (8, 8, 8)))
        read(volume, box_at(0, 0, 0, 8, 8, 8))
        assert len(pickle.dumps(volume)) < 1000

    def test_round_trip(self, volume):
        again = pickle.loads(pickle.dumps(volume))
        assert again == volume
        assert hash(again) == hash(volume)

    def test_long_paths_cost_their_length(self):
        assert len(pickle.dumps(WkwVolume("/" + "d" * 500, small()))) < 1000


WRITER = """
import sys
import numpy as np
from wkdask.geometry import BoundingBox
from wkdask.storage.wkw import WkwVolume

volume, number = WkwVolume.open(sys.argv[1]), int(sys.argv[2])
for line in sys.stdin:
    *corner, dx, dy, dz = map(int, line.split())
    voxels = np.random.default_rng(number).integers(1, 256, (1, dx, dy, dz), dtype=np.uint8)
    volume.write(BoundingBox(corner, (dx, dy, dz)), voxels)
    print("done", flush=True)
"""


class Writers:
    """Two processes that write their own voxels to boxes, at the same time."""

    def __init__(self, volume: WkwVolume) -> None:
        self._processes = [
            subprocess.Popen(
                [sys.executable, "-c", WRITER, volume.path, str(number)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
            )
            for number in range(2)
        ]

    @staticmethod
    def voxels(number: int, box: BoundingBox) -> Any:
        rng = np.random.default_rng(number)
        return rng.integers(1, 256, (1, *box.size), dtype=np.uint8)

    def start(self, *boxes: BoundingBox) -> None:
        """Let each process write its box."""
        for process, box in zip(self._processes, boxes, strict=True):
            print(*box.topleft, *box.size, file=process.stdin, flush=True)

    def wait(self) -> None:
        """Wait until both have written."""
        for process in self._processes:
            assert process.stdout.readline() == "done\n"

    def __enter__(self) -> Writers:
        return self

    def __exit__(self, *_: object) -> None:
        for process in self._processes:
            process.communicate(timeout=60)
            assert process.returncode == 0


class TestTwoProcesses:
    @pytest.mark.parametrize("kind", COMPRESSED)
    def test_different_data_in_one_compressed_file(self, volume):
        # libwkw leaves the file unreadable in most of such races.
        box = box_at(0, 0, 0, 8, 8, 8)
        allowed = [Writers.voxels(number, box).tobytes() for number in range(2)]
        with Writers(volume) as writers:
            for _ in range(30):
                writers.start(box, box)
                for _ in range(3):
                    found = read(volume, box)
                    assert found.tobytes() in allowed or not found.any()
                writers.wait()
                assert read(volume, box).tobytes() in allowed
        assert sorted(each for each in snapshot(volume.path) if each.endswith("kw")) == [
            HEADER_NAME,
            os.path.join("z0", "y0", "x0.wkw"),
        ]
        assert not [name for name in snapshot(volume.path) if "tmp" in name]

    @pytest.mark.parametrize("kind", ["raw"])
    @pytest.mark.parametrize("box", [box_at(0, 0, 0, 4, 8, 8), box_at(1, 2, 0, 2, 5, 4)])
    def test_different_blocks_of_one_raw_file(self, volume, box):
        # Each round makes another file: the first writes race for its creation.
        with Writers(volume) as writers:
            for x in range(40):
                mine, other = box.moved_by((8 * x, 0, 0)), box.moved_by((8 * x + 4, 0, 0))
                for _ in range(2):
                    writers.start(mine, other)
                    writers.wait()
                    assert_same(read(volume, mine), Writers.voxels(0, mine))
                    assert_same(read(volume, other), Writers.voxels(1, other))
        assert not [name for name in snapshot(volume.path) if "tmp" in name]

    def test_version_of_the_other_process(self, volume):
        box = box_at(0, 0, 0, 8, 8, 8)
        with Writers(volume) as writers:
            for _ in range(5):
                before = volume.version()
                writers.start(box, box)
                writers.wait()
                assert volume.version() != before


def test_checksum_of_a_raw_volume(tmp_path):
    """Bytes on disk are part of the format: they must never change by accident."""
    volume = WkwVolume.create(tmp_path / "v", small("raw", "uint16", 2))
    voxels = np.arange(2 * 8**3, dtype=np.uint16).reshape((2, 8, 8, 8), order="F")
    volume.write(box_at(0, 0, 0, 8, 8, 8), voxels)
    ours = Path(volume.file_path((0, 0, 0))).read_bytes()
    write_by_libwkw(tmp_path / "w", volume.header, box_at(0, 0, 0, 8, 8, 8), voxels)
    assert zlib.crc32(ours) == zlib.crc32((tmp_path / "w/z0/y0/x0.wkw").read_bytes())


def test_other_processes_see_the_same_version(tmp_path: Path) -> None:
    """So that a store of what was computed from a volume is the same job there."""
    volume = WkwVolume.create(tmp_path / "1", small())
    versions = [volume.version()]
    for _ in range(50):
        volume.note_change()
        versions.append(volume.version())
    assert len(set(versions)) == 51
    code = (
        "import sys; from wkdask.storage.wkw import WkwVolume\n"
        "print(WkwVolume.open(sys.argv[1]).version())"
    )
    command = [sys.executable, "-c", code, volume.path]
    seen = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert seen.strip() == str(versions[-1])
