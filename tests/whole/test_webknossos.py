"""Exchange of whole datasets with the `webknossos` library, in both directions."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import wkdask
from wkdask.geometry import BoundingBox, Mag
from wkdask.storage.header import BLOCK_TYPES, DTYPES

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")
unaligned = pytest.mark.filterwarnings("ignore:writing parts of compressed files:RuntimeWarning")

# Aligned with no block, no file, and none of the mags.
OFFSET, SIZE = (13, 7, 21), (45, 38, 19)
MAGS = ("1", "2-2-1", "2", "4-4-2")
INTEGERS = [dtype for dtype in DTYPES if "float" not in dtype]
# What webknossos refuses to create; it opens them all.
NOT_CREATED = [("color", dtype) for dtype in ("uint64", "int64", "float64")]
VOXELS = [
    *(("color", dtype, channels) for dtype in DTYPES for channels in (1, 2, 3)),
    *(("segmentation", dtype, 1) for dtype in INTEGERS),
]
CREATED = [row for row in VOXELS if row[:2] not in NOT_CREATED]


def random_voxels(channels: int, size: Any, dtype: str, seed: int = 0) -> np.ndarray:
    """Return voxels over the whole range of the dtype."""
    rng = np.random.default_rng(seed)
    if np.dtype(dtype).kind == "f":
        return rng.normal(0, 1e6, (channels, *size)).astype(dtype)
    limits = np.iinfo(dtype)
    shape = (channels, *size)
    return rng.integers(limits.min, limits.max, shape, dtype, endpoint=True)


def box_of(theirs: Any) -> BoundingBox:
    """Return a box of webknossos as one of ours."""
    return BoundingBox(tuple(theirs.topleft), tuple(theirs.size))


class TestWhatWeWrite:
    """Datasets of ours, opened by webknossos."""

    @pytest.mark.parametrize(("category", "dtype", "channels"), VOXELS)
    def test_voxels(self, webknossos, tmp_path, category, dtype, channels):
        ds = wkdask.create(tmp_path / "ours", (11.24, 11.24, 28))
        layer = ds.add_layer("a", category, dtype, channels, BoundingBox(OFFSET, SIZE))
        voxels = random_voxels(channels, SIZE, dtype)
        layer.add_mag(1, block_edge=8, blocks_per_file_edge=4).get_view().write(voxels)
        theirs = webknossos.Dataset.open(ds.path).get_layer("a")
        assert (str(theirs.dtype_per_channel), theirs.num_channels) == (dtype, channels)
        assert (theirs.category, box_of(theirs.bounding_box)) == (category, layer.bounding_box)
        found = theirs.get_mag(1).read()
        assert found.dtype == voxels.dtype
        np.testing.assert_array_equal(found, voxels)

    @pytest.mark.parametrize("mag", MAGS)
    @pytest.mark.parametrize("block_type", BLOCK_TYPES)
    def test_mags_and_block_types(self, webknossos, tmp_path, mag, block_type):
        ds = wkdask.create(tmp_path / "ours", (1, 1, 1))
        layer = ds.add_layer("a", "color", "uint16", 2, BoundingBox(OFFSET, SIZE))
        ours = layer.add_mag(mag, 8, 2, block_type)
        voxels = random_voxels(2, ours.bounding_box.size, "uint16")
        ours.get_view().write(voxels)
        theirs = webknossos.Dataset.open(ds.path).get_layer("a").get_mag(mag)
        assert theirs.info.compression_mode == (block_type != "raw")
        assert tuple(theirs.info.chunk_shape) == (8, 8, 8)
        assert tuple(theirs.info.shard_shape) == (16, 16, 16)
        assert box_of(theirs.bounding_box) == ours.bounding_box.scaled_by(Mag(mag))
        np.testing.assert_array_equal(theirs.read(), voxels)

    def test_a_whole_pyramid(self, webknossos, tmp_path):
        ds = wkdask.create(tmp_path / "ours", (11.24, 11.24, 28), "micrometer")
        layer = ds.add_layer("cells", "segmentation", "uint64", 1, BoundingBox(OFFSET, SIZE))
        layer.add_mag(1, 8, 4).get_view().write(random_voxels(1, SIZE, "uint64"))
        for finer, coarser in ((1, "2-2-1"), ("2-2-1", "4-4-2")):
            layer.add_mag(coarser, 8, 2)
            wkdask.downsample(layer[finer], layer[coarser], "mode")
        layer.largest_segment_id = 2**64 - 1
        theirs = webknossos.Dataset.open(ds.path)
        assert theirs.voxel_size_with_unit.unit.value == "micrometer"
        assert tuple(theirs.voxel_size_with_unit.factor) == (11.24, 11.24, 28)
        cells = theirs.get_segmentation_layer("cells")
        assert cells.largest_segment_id == 2**64 - 1
        assert sorted(str(mag) for mag in cells.mags) == ["1", "2-2-1", "4-4-2"]
        for mag, ours in layer.mags.items():
            found = cells.get_mag(str(mag)).read()
            np.testing.assert_array_equal(found, ours.get_view().read())

    def test_what_was_written_piece_by_piece(self, webknossos, tmp_path):
        """The box grows with each write, and webknossos sees it."""
        ds = wkdask.create(tmp_path / "ours", (1, 1, 1))
        mag = ds.add_layer("a", "color", "uint8").add_mag("2-2-1", 4, 2, "raw")
        expected = np.zeros((1, 30, 30, 30), np.uint8)
        for seed, offset in enumerate([(13, 9, 2), (3, 20, 11), (17, 1, 19)]):
            voxels = random_voxels(1, (7, 8, 9), "uint8", seed)
            mag.write(voxels, offset)
            x, y, z = (slice(a, a + n) for a, n in zip(offset, (7, 8, 9), strict=True))
            expected[:, x, y, z] = voxels
            theirs = webknossos.Dataset.open(ds.path).get_layer("a").get_mag("2-2-1")
            assert box_of(theirs.bounding_box) == mag.bounding_box.scaled_by((2, 2, 1))
        x, y, z = (slice(3, 24), slice(1, 28), slice(2, 28))
        np.testing.assert_array_equal(theirs.read(), expected[:, x, y, z])

    def test_what_was_stored_lazily(self, webknossos, tmp_path):
        ds = wkdask.create(tmp_path / "ours", (1, 1, 1))
        layer = ds.add_layer("a", "color", "float32", 3, BoundingBox(OFFSET, SIZE))
        voxels = random_voxels(3, SIZE, "float32")
        layer.add_mag(1, 8, 2, "lz4").store(voxels)
        theirs = webknossos.Dataset.open(ds.path).get_layer("a").get_mag(1)
        np.testing.assert_array_equal(theirs.read(), voxels)

    def test_webknossos_goes_on_where_we_stop(self, webknossos, tmp_path):
        """It adds a mag and voxels to our dataset, and we read them."""
        ds = wkdask.create(tmp_path / "ours", (1, 1, 1))
        layer = ds.add_layer("a", "color", "uint8", 1, BoundingBox(OFFSET, SIZE))
        layer.add_mag(1, 8, 4).get_view().write(random_voxels(1, SIZE, "uint8"))
        theirs = webknossos.Dataset.open(ds.path).get_layer("a")
        patch = random_voxels(1, (8, 8, 8), "uint8", 1)
        theirs.get_mag(1).write(patch, absolute_offset=(16, 16, 24), allow_unaligned=True)
        theirs.add_mag(2, chunk_shape=8, shard_shape=16).write(
            patch, absolute_offset=(16, 16, 24), allow_unaligned=True
        )
        again = wkdask.open(ds.path)["a"]
        assert again.bounding_box == BoundingBox(OFFSET, SIZE)
        expected = random_voxels(1, SIZE, "uint8")
        expected[:, 3:11, 9:17, 3:11] = patch
        np.testing.assert_array_equal(again[1].get_view().read(), expected)
        np.testing.assert_array_equal(again[2].read((8, 8, 12), (8, 8, 8)), patch)


class TestWhatTheyWrite:
    """Datasets of webknossos, opened by us."""

    def new(self, webknossos: Any, path: Path, unit: str = "NANOMETER") -> Any:
        size = webknossos.VoxelSize((4.5, 4.5, 30), getattr(webknossos.LengthUnit, unit))
        return webknossos.Dataset(path, voxel_size_with_unit=size)

    @pytest.mark.parametrize(("category", "dtype", "channels"), CREATED)
    def test_voxels(self, webknossos, tmp_path, category, dtype, channels):
        layer = self.new(webknossos, tmp_path / "theirs").add_layer(
            "a", category, data_format="wkw", dtype_per_channel=dtype, num_channels=channels
        )
        voxels = random_voxels(channels, SIZE, dtype)
        layer.add_mag(1, chunk_shape=8, shard_shape=32).write(
            voxels, absolute_offset=OFFSET, allow_resize=True, allow_unaligned=True
        )
        ours = wkdask.open(tmp_path / "theirs")["a"]
        assert (ours.category, ours.dtype, ours.num_channels) == (category, dtype, channels)
        assert ours.bounding_box == ours[1].bounding_box == BoundingBox(OFFSET, SIZE)
        found = ours[1].get_view().read()
        assert found.dtype == voxels.dtype
        np.testing.assert_array_equal(found, voxels)
        np.testing.assert_array_equal(ours[1].to_dask().compute(), voxels)

    @pytest.mark.parametrize("mag", MAGS)
    @pytest.mark.parametrize("compress", [True, False])
    def test_mags(self, webknossos, tmp_path, mag, compress):
        layer = self.new(webknossos, tmp_path / "theirs").add_layer(
            "a", "color", data_format="wkw", dtype_per_channel="int16"
        )
        layer.bounding_box = webknossos.BoundingBox(OFFSET, SIZE)
        theirs = layer.add_mag(mag, chunk_shape=8, shard_shape=16, compress=compress)
        ours = wkdask.open(tmp_path / "theirs")["a"][mag]
        box = BoundingBox(OFFSET, SIZE).align_with_mag(mag, ceil=True)
        assert ours.bounding_box == box.in_mag(mag)
        voxels = random_voxels(1, ours.bounding_box.size, "int16")
        theirs.write(voxels, absolute_offset=box.topleft, allow_unaligned=True, allow_resize=True)
        assert (ours.volume.header.block_type != "raw") == compress
        assert (ours.header.block_len, ours.header.file_len) == (8, 2)
        np.testing.assert_array_equal(ours.get_view().read(), voxels)

    def test_what_else_it_says(self, webknossos, tmp_path):
        theirs = self.new(webknossos, tmp_path / "theirs", "MICROMETER")
        layer = theirs.add_layer(
            "cells", "segmentation", data_format="wkw", dtype_per_channel="uint32"
        )
        for mag in (4, "2-2-1", 1):
            layer.add_mag(mag, chunk_shape=8, shard_shape=8)
        layer.largest_segment_id = 2**53 + 1
        ours = wkdask.open(tmp_path / "theirs")
        assert (ours.name, ours.voxel_size, ours.unit) == ("theirs", (4.5, 4.5, 30), "micrometer")
        assert ours["cells"].largest_segment_id == 2**53 + 1
        assert [*map(str, ours["cells"].mags)] == ["1", "2-2-1", "4"]

    @unaligned
    def test_its_default_format(self, webknossos, tmp_path):
        theirs = self.new(webknossos, tmp_path / "theirs")
        voxels = random_voxels(1, SIZE, "uint8")
        layer = theirs.add_layer("a", "color", dtype_per_channel="uint8")
        layer.add_mag(1).write(voxels, absolute_offset=OFFSET, allow_resize=True)
        ours = wkdask.open(tmp_path / "theirs")["a"]
        assert ours.data_format == "zarr3"
        np.testing.assert_array_equal(ours[1].get_view().read(), voxels)

    @unaligned
    @pytest.mark.parametrize("compress", [True, False])
    def test_we_go_on_where_it_stops(self, webknossos, tmp_path, compress):
        """We write into its files and add a mag, and it reads them."""
        layer = self.new(webknossos, tmp_path / "theirs").add_layer(
            "a", "color", data_format="wkw", dtype_per_channel="uint8", num_channels=3
        )
        voxels = random_voxels(3, SIZE, "uint8")
        layer.add_mag(1, chunk_shape=8, shard_shape=32, compress=compress).write(
            voxels, absolute_offset=OFFSET, allow_resize=True, allow_unaligned=True
        )
        ours = wkdask.open(tmp_path / "theirs")["a"]
        patch = random_voxels(3, (5, 6, 7), "uint8", 1)
        ours[1].get_view().write(patch, (20, 10, 5))
        voxels[:, 20:25, 10:16, 5:12] = patch
        ours.add_mag("2-2-1", 8, 2)
        wkdask.downsample(ours[1], ours["2-2-1"], "max")
        again = webknossos.Dataset.open(tmp_path / "theirs").get_layer("a")
        np.testing.assert_array_equal(again.get_mag(1).read(), voxels)
        found = again.get_mag("2-2-1").read()
        np.testing.assert_array_equal(found, ours["2-2-1"].get_view().read())
        assert found.max() == voxels.max()
