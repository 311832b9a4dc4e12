"""`wkdask.storage.volume`: what it promises without a format, shown by a volume in memory."""

from __future__ import annotations

import pickle
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import cloudpickle
import numpy as np
import pytest

from wkdask.arrays.lazy import to_dask
from wkdask.arrays.store import aligned_array, store_graph
from wkdask.errors import AlignmentError, ArgumentError, DtypeError
from wkdask.geometry import BoundingBox, Vec3
from wkdask.grids import Region, check_apart, chunk_grid, overlaps, region_of, slices_in
from wkdask.storage.header import VolumeHeader
from wkdask.storage.opening import create_volume, is_volume, new_layout, open_volume, volume_at
from wkdask.storage.place import LOCAL
from wkdask.storage.volume import (
    FileNames,
    Produce,
    Volume,
    Voxels,
    VoxelType,
    WriteOptions,
    add_written,
    count_writes,
)
from wkdask.storage.wkw import WkwVolume, as_wkw


@dataclass(frozen=True, slots=True)
class Slabs:
    """A layout whose files and blocks are no cubes."""

    dtype: str = "uint16"
    num_channels: int = 1
    voxel_bytes: int = 2
    file_size: Vec3 = (8, 4, 2)
    block_size: Vec3 = (4, 4, 1)
    write_size: Vec3 = (8, 4, 2)
    write_unit: str = "file"

    @property
    def voxel_type(self) -> VoxelType:
        return VoxelType(self.dtype, self.num_channels)

    def difference_to(self, demanded: Any) -> str:
        return "" if self == demanded else f"{self} instead of {demanded}"

    def describe(self) -> dict[str, Any]:
        return {"file_size": self.file_size}


# As other stores are, it is known to all threads by its path.
FILES: dict[str, dict[Vec3, Voxels]] = {}


@dataclass(frozen=True, slots=True)
class FakeVolume(Volume):
    """A volume in memory."""

    layout: Slabs = field(default_factory=Slabs)

    @property
    def stored(self) -> dict[Vec3, Voxels]:
        return FILES.setdefault(self.path, {})

    def read(self, region: Region) -> Voxels:
        out = np.zeros((1, *map(len, region)), self.layout.dtype, order="F")
        for part in overlaps(region, self.layout.file_size):
            if part.cell in self.stored:
                whole = self.stored[part.cell]
                out[(slice(None), *part.target)] = whole[(slice(None), *part.source_slices)]
        return out

    def write(self, box: BoundingBox, voxels: Voxels) -> None:
        self.check_voxels(voxels.dtype, voxels.shape)
        self.fill(box, lambda part: voxels[(slice(None), *slices_in(part, box.topleft))])

    def fill(self, box: BoundingBox, produce: Produce, *, threads: int = 1) -> None:
        for cell in self.cells(box):
            whole = self.file_box(cell)
            common = whole.intersected_with(box)
            file = self.stored.setdefault(cell, np.zeros((1, *whole.size), self.layout.dtype))
            voxels = produce(common)
            place = (slice(None), *slices_in(common, whole.topleft))
            file[place] = 0 if voxels is None else voxels
            add_written(common.volume, common.volume * 2)

    def is_missing(self, box: BoundingBox) -> bool:
        return not any(cell in self.stored for cell in self.cells(box))

    @property
    def names(self) -> FileNames:
        return FileNames("none", (), (0, 1, 2))

    def file_path(self, cell: Vec3) -> str:
        return f"{self.path}#{cell}"

    def file_bytes(self, cell: Vec3) -> int | None:
        return dict(self.files()).get(cell)

    def files(self) -> Iterator[tuple[Vec3, int]]:
        return ((cell, voxels.nbytes) for cell, voxels in self.stored.items())

    def check(self) -> None: ...

    def check_file(self, cell: Vec3, *, decode: bool = False) -> int:
        return 0

    def sweep(self, tag: str, box: BoundingBox) -> int:
        return 0

    def remove(self, box: BoundingBox) -> None:
        self.stored.clear()

    def version(self) -> tuple[int, int]:
        return 0, 0

    def note_change(self) -> None: ...


@pytest.fixture
def volume(tmp_path: Any) -> FakeVolume:
    return FakeVolume(f"memory://{tmp_path}")


BOX = BoundingBox((5, 3, 1), (12, 6, 3))


def voxels() -> Voxels:
    return np.arange(1, BOX.volume + 1, dtype=np.uint16).reshape(1, *BOX.size)


class TestAnyVolume:
    def test_what_follows_from_files_that_are_no_cubes(self, volume: FakeVolume) -> None:
        assert volume.file_box((1, 2, 3)) == BoundingBox((8, 8, 6), (8, 4, 2))
        assert [*volume.cells(BoundingBox((7, 0, 3), (2, 4, 1)))] == [(0, 0, 1), (1, 0, 1)]
        assert volume.box_on_disk().is_empty
        volume.write(BOX, voxels())
        assert volume.box_on_disk() == BoundingBox((0, 0, 0), (24, 12, 4))

    def test_arrays_are_cut_and_stored_by_its_files(self, volume: FakeVolume) -> None:
        array = aligned_array(voxels(), volume, BOX.topleft, align="raise")
        assert array.chunks[1:] == ((3, 8, 1), (1, 4, 1), (1, 2))
        assert store_graph(array, volume, BOX.topleft).sum().compute() == BOX.volume
        lazy = to_dask(volume, BOX)
        assert lazy.chunks == array.chunks
        np.testing.assert_array_equal(lazy.compute(), voxels())

    def test_tasks_must_not_share_a_file(self, volume: FakeVolume) -> None:
        layout = volume.layout
        check_apart(chunk_grid(BOX, (8, 8, 4)), layout.write_size, layout.write_unit)
        with pytest.raises(AlignmentError, match=r"share a file \(edge \(8, 4, 2\)\)") as caught:
            check_apart(chunk_grid(BOX, (8, 4, 1)), layout.write_size, layout.write_unit)
        assert "Use (8, 4, 2)" in str(caught.value)
        with pytest.raises(AlignmentError, match="ends inside a file of edge"):
            aligned_array(
                aligned_array(voxels(), volume, BOX.topleft, align="raise").rechunk(3),
                volume, BOX.topleft, align="raise",
            )  # fmt: skip

    def test_it_is_a_small_value(self, volume: FakeVolume) -> None:
        assert pickle.loads(pickle.dumps(volume)) == volume
        assert hash(volume) == hash(FakeVolume(volume.path))
        careful = volume.with_options(fsync=True)
        assert (careful.options, careful.key) == (WriteOptions(fsync=True), volume.key)
        assert careful != volume

    def test_voxels_must_fit(self, volume: FakeVolume) -> None:
        with pytest.raises(DtypeError, match=r'data\.astype\("uint16"\)'):
            volume.write(BOX, voxels().astype(np.uint8))
        with pytest.raises(ArgumentError, match="c = 1"):
            volume.write(BOX, np.repeat(voxels(), 2, axis=0))

    def test_writes_are_counted(self, volume: FakeVolume) -> None:
        with count_writes() as written:
            volume.write(BOX, voxels())
        volume.write(BOX, voxels())
        assert (written.voxels, written.size_bytes) == (BOX.volume, 2 * BOX.volume)

    def test_it_is_no_wkw(self, volume: FakeVolume) -> None:
        with pytest.raises(ArgumentError, match="is no WKW volume"):
            as_wkw(volume)
        with pytest.raises(TypeError, match="as WKW or zarr only"):
            volume_at("tissue/1", volume.layout)


def test_volumes_are_found_by_their_path(tmp_path: Any) -> None:
    header = VolumeHeader("uint8", block_edge=8)
    planned = volume_at(tmp_path / "1", header)
    assert not is_volume(planned.path)
    made = create_volume(tmp_path / "1", header)
    assert is_volume(made.path)
    assert made == planned == open_volume(tmp_path / "1")
    assert isinstance(made, WkwVolume)
    assert np.array_equal(made.read(region_of(BOX)), np.zeros((1, *BOX.size)))


def test_the_place_is_the_same_in_other_processes(tmp_path: Any) -> None:
    for layout in (VolumeHeader("uint8", block_edge=8), new_layout("zarr3", "uint8", 1)):
        volume = create_volume(tmp_path / layout.data_format, layout)
        assert pickle.loads(pickle.dumps(volume)).place is LOCAL
        assert cloudpickle.loads(cloudpickle.dumps(volume)).place is LOCAL
