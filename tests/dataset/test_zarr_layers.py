"""Zarr layers: all that WKW layers do, beside `webknossos` as the other reader and writer."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import dask
import numpy as np
import pytest
import xarray as xr
from distributed import Client, LocalCluster

import wkdask
from wkdask.errors import ArgumentError, FormatError, PropertiesError

pytest.importorskip("zarr")
wk = pytest.importorskip("webknossos")

BOX = wkdask.BoundingBox((10, 20, 30), (100, 70, 50))
FORMATS = ["zarr3", "zarr"]


def some(dtype: str = "uint8", channels: int = 1, seed: int = 0) -> np.ndarray:
    voxels = np.random.default_rng(seed).integers(0, 9, (channels, *BOX.size)).astype(dtype)
    voxels[:, :40] = 0
    return voxels


def zarr_layer(path: Path, kind: Any = "zarr3", category: str = "color") -> wkdask.Layer:
    """Return a layer with voxels in files of 64 or 32."""
    ds = wkdask.create(path, voxel_size=(8, 8, 40))
    layer = ds.add_layer("tissue", category, "uint8", bounding_box=BOX, data_format=kind)
    layer.add_mag(1, blocks_per_file_edge=2).get_view().store(some())
    return layer


def of_webknossos(path: Path, dtype: str = "uint8", channels: int = 1, **options: Any) -> Any:
    """Return a layer that webknossos has written, at a box that aligns with nothing."""
    box = wk.BoundingBox(BOX.topleft, BOX.size)
    ds = wk.Dataset(path, voxel_size=(8, 8, 40))
    layer = ds.add_layer(
        "tissue", "color", dtype=dtype, num_channels=channels, bounding_box=box,
        data_format=options.pop("data_format"),
    )  # fmt: skip
    layer.add_mag(1, **options).write(some(dtype, channels), absolute_offset=BOX.topleft)
    return layer


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("compress", [True, False])
@pytest.mark.parametrize(("kind", "shard"), [("zarr3", 64), ("zarr3", 128), ("zarr", 32)])
def test_what_webknossos_wrote(
    tmp_path: Path, kind: str, shard: int, compress: bool, channels: int
) -> None:
    of_webknossos(
        tmp_path / "a", channels=channels, data_format=kind, compress=compress,
        chunk_shape=(32,) * 3, shard_shape=(shard,) * 3,
    )  # fmt: skip
    layer = wkdask.open(tmp_path / "a")["tissue"]
    voxels = some(channels=channels)
    view = layer[1].get_view()
    np.testing.assert_array_equal(view.read(), voxels)
    np.testing.assert_array_equal(view.to_dask().compute(), voxels)
    np.testing.assert_array_equal(view[:, 3:90:7, 5, ::3].compute(), voxels[:, 3:90:7, 5, ::3])
    changed = voxels[:, :30, :30, :30] + np.uint8(1)
    view.get_view((33, 1, 2), (30, 30, 30)).store(changed)
    voxels[:, 33:63, 1:31, 2:32] = changed
    layer.downsample(coarsest_mag="4-4-1")
    theirs = wk.Dataset.open(tmp_path / "a").get_layer("tissue")
    for mag, view in layer.mags.items():
        box = view.bounding_box
        found = theirs.get_mag(str(mag)).read(
            absolute_offset=[a * m for a, m in zip(box.topleft, mag, strict=True)],
            size=[a * m for a, m in zip(box.size, mag, strict=True)],
        )
        np.testing.assert_array_equal(found, view.get_view().read())
    np.testing.assert_array_equal(layer[1].get_view().read(), voxels)


@pytest.mark.parametrize(
    "dtype", ["uint8", "uint16", "uint32", "int8", "int16", "int32", "float32"]
)
def test_dtypes_of_webknossos(tmp_path: Path, dtype: str) -> None:
    of_webknossos(tmp_path / "a", dtype, data_format="zarr3", shard_shape=(64,) * 3)
    view = wkdask.open(tmp_path / "a")["tissue"][1].get_view()
    assert view.dtype == dtype
    np.testing.assert_array_equal(view.read(), some(dtype))


@pytest.mark.parametrize("kind", FORMATS)
def test_what_we_wrote(tmp_path: Path, kind: str) -> None:
    layer = zarr_layer(tmp_path / "a", kind)
    layer.downsample(coarsest_mag=4)
    theirs = wk.Dataset.open(tmp_path / "a").get_layer("tissue")
    assert theirs.data_format.value == kind
    assert {str(mag) for mag in theirs.mags} == {str(mag) for mag in layer.mags}
    found = theirs.get_mag(1).read(absolute_offset=BOX.topleft, size=BOX.size)
    np.testing.assert_array_equal(found, some())
    # They write, and we read.
    theirs.get_mag(1).write(some(seed=1)[0], absolute_offset=BOX.topleft, allow_unaligned=True)
    np.testing.assert_array_equal(layer[1].get_view().read(), some(seed=1))


@pytest.mark.parametrize("kind", FORMATS)
def test_groups_are_those_of_webknossos(tmp_path: Path, kind: str) -> None:
    ours = zarr_layer(tmp_path / "ours", kind)
    theirs = of_webknossos(tmp_path / "theirs", data_format=kind)
    for mag in ("2-2-1", "4"):
        ours.add_mag(mag)
        theirs.add_mag(mag)
    for name in {"zarr3": ["zarr.json"], "zarr": [".zattrs", ".zgroup"]}[kind]:
        mine, other = (
            json.loads((tmp_path / who / "tissue" / name).read_text()) for who in ("ours", "theirs")
        )
        if name == ".zgroup":
            assert int(mine["zarr_format"]) == int(other["zarr_format"])
        else:
            assert mine == other


def test_the_group_keeps_what_others_said(tmp_path: Path) -> None:
    layer = zarr_layer(tmp_path / "a")
    path = tmp_path / "a" / "tissue" / "zarr.json"
    said = json.loads(path.read_text())
    said["attributes"]["mine"] = [1]
    path.write_text(json.dumps(said))
    layer.downsample(coarsest_mag="2-2-1")
    said = json.loads(path.read_text())["attributes"]
    assert said["mine"] == [1]
    assert [each["path"] for each in said["ome"]["multiscales"][0]["datasets"]] == ["1", "2-2-1"]


@pytest.mark.parametrize("kind", FORMATS)
def test_compress_rechunk_copy_and_equal(tmp_path: Path, kind: Any) -> None:
    layer = zarr_layer(tmp_path / "a", kind)
    layer.downsample(coarsest_mag="2-2-1")
    mag = layer[1]
    (tmp_path / "a" / "tissue" / "1" / "notes.txt").write_text("mine")
    mag.compress("raw")
    assert layer[1].volume.layout.describe()["block_type"] == "raw"
    mag.compress()
    mag.rechunk(block_edge=16, blocks_per_file_edge=4)
    assert layer[1].volume.layout.block_size == (16, 16, 16)
    assert (tmp_path / "a" / "tissue" / "1" / "notes.txt").read_text() == "mine"
    np.testing.assert_array_equal(layer[1].get_view().read(), some())
    ds = layer.dataset
    for other in ("wkw", "zarr3", "zarr", None):
        wkdask.copy(ds, tmp_path / str(other), data_format=other)
        copied = wkdask.open(tmp_path / str(other))
        assert copied["tissue"].data_format == (other or kind)
        assert wkdask.equal(ds, copied)
        assert wkdask.check(tmp_path / str(other), level=2).findings == ()
    assert [f.kind for f in wkdask.check(tmp_path / "a", level=2).findings] == ["stray"]


def test_a_copy_of_wkw_as_zarr(tmp_path: Path) -> None:
    ds = wkdask.create(tmp_path / "a", voxel_size=(8, 8, 40))
    layer = ds.add_layer("tissue", "color", "uint8", bounding_box=BOX)
    layer.add_mag(1, blocks_per_file_edge=2).get_view().store(some())
    wkdask.copy(ds, tmp_path / "b", data_format="zarr3")
    found = wk.Dataset.open(tmp_path / "b").get_layer("tissue").get_mag(1)
    np.testing.assert_array_equal(found.read(absolute_offset=BOX.topleft, size=BOX.size), some())


def test_pyramids_are_those_of_wkw(tmp_path: Path) -> None:
    layer = zarr_layer(tmp_path / "a", "zarr3", "segmentation")
    wkdask.copy(layer.dataset, tmp_path / "b", data_format="wkw")
    other = wkdask.open(tmp_path / "b")["tissue"]
    for each in (layer, other):
        each.downsample(coarsest_mag=4)

    assert wkdask.equal(layer.dataset, other.dataset)


def test_a_cluster_of_processes(tmp_path: Path) -> None:
    layer = zarr_layer(tmp_path / "a")
    options = {"n_workers": 2, "threads_per_worker": 1, "dashboard_address": "127.0.0.1:0"}
    with LocalCluster(**options) as cluster, Client(cluster, set_as_default=False) as client:
        layer.downsample(coarsest_mag=4, executor=client, resume=True)
        target = layer.dataset.add_layer(
            "sum", "color", "uint8", bounding_box=BOX, data_format="zarr3"
        ).add_mag(1, blocks_per_file_edge=2)

        def add(chunks: Any) -> None:
            source, goal, _ = chunks
            goal.write(source.read() + np.uint8(1))

        report = layer[1].for_zipped_chunks(add, target, executor=client)
        assert report.ok
    np.testing.assert_array_equal(target.get_view().read(), some() + np.uint8(1))


def test_laziness(tmp_path: Path) -> None:
    layer = zarr_layer(tmp_path / "a")
    array = layer[1].get_view().to_dask()
    assert array.chunks == ((1,), (54, 46), (44, 26), (34, 16))
    path = Path(layer[1].volume.file_path((0, 0, 0)))
    path.write_bytes(b"")
    # Only the file that is touched.
    np.testing.assert_array_equal(array[:, 60:].compute(), some()[:, 60:])
    with dask.config.set(scheduler="threads"), pytest.raises(FormatError, match=str(path)):
        array.compute()


def test_xarray(tmp_path: Path) -> None:
    layer = zarr_layer(tmp_path / "a")
    layer.downsample(coarsest_mag="2-2-1")
    with xr.open_dataset(tmp_path / "a", engine="wkw") as ds:
        np.testing.assert_array_equal(ds["tissue"].sel(x=slice(20, 60)), some()[:, 10:51])
    with xr.open_datatree(tmp_path / "a", engine="wkw") as tree:
        assert set(tree["tissue"].children) == {"1", "2-2-1"}
    with xr.open_dataset(tmp_path / "a" / "tissue" / "1", engine="wkw") as ds:
        assert ds["tissue"].shape == (1, *BOX.size)


def test_it_is_shown(tmp_path: Path) -> None:
    layer = zarr_layer(tmp_path / "a")
    assert "zstd, edge 32" in repr(layer)
    assert "zstd" in layer._repr_html_()
    assert layer.shown()


def test_the_first_mag_chooses_the_format(tmp_path: Path) -> None:
    layer = wkdask.create(tmp_path / "a", (8, 8, 40)).add_layer("tissue", "color", "uint8")
    layer.add_mag(1, data_format="zarr3")
    assert layer.data_format == "zarr3"
    with pytest.raises(ArgumentError, match="all mags of a layer have one format"):
        layer.add_mag(2, data_format="wkw")
    with pytest.raises(ArgumentError, match="data_format is 'n5'"):
        layer.add_mag(2, data_format="n5")  # type: ignore[arg-type]
    with pytest.raises(ArgumentError, match="zstd"):
        layer.add_mag(2, block_type="lz4")
    assert list(layer.mags) == [wkdask.Mag(1)]


def test_what_does_not_fit(tmp_path: Path) -> None:
    zarr_layer(tmp_path / "a")
    path = tmp_path / "a" / "datasource-properties.json"
    said = json.loads(path.read_text())
    for change, error in (
        ({"dataFormat": "zarr"}, PropertiesError),
        ({"elementClass": "uint16"}, PropertiesError),
        ({"dataFormat": "neuroglancerPrecomputed"}, FormatError),
    ):
        layer = {**said["dataLayers"][0], **change}
        path.write_text(json.dumps({**said, "dataLayers": [layer]}))
        with pytest.raises(error):
            wkdask.open(tmp_path / "a")["tissue"][1]
    layer = json.loads(json.dumps(said["dataLayers"][0]))
    layer["mags"][0]["axisOrder"] = {"c": 0, "x": 3, "y": 2, "z": 1}
    path.write_text(json.dumps({**said, "dataLayers": [layer]}))
    with pytest.raises(FormatError, match="axes"):
        wkdask.open(tmp_path / "a")["tissue"][1]


@pytest.mark.parametrize("kind", FORMATS)
def test_a_run_that_fails_leaves_nothing(tmp_path: Path, kind: str) -> None:
    layer = zarr_layer(tmp_path / "a", kind)
    path = Path(layer[1].volume.file_path((1, 1, 1)))
    path.write_bytes(path.read_bytes()[:-1])
    before = {each for each in (tmp_path / "a").rglob("*") if ".wkdask" not in str(each)}
    with pytest.raises(FormatError):
        layer.downsample(coarsest_mag=4)
    after = {each for each in (tmp_path / "a").rglob("*") if ".wkdask" not in str(each)}
    assert after == before


def test_convert(tmp_path: Path) -> None:
    voxels = some()[0]
    ds = wkdask.convert(
        voxels, tmp_path / "a", layer_name="tissue", voxel_size=(8, 8, 40), to="zarr3",
        blocks_per_file_edge=2,
    )  # fmt: skip
    assert isinstance(ds, wkdask.Dataset)
    assert ds["tissue"].data_format == "zarr3"
    np.testing.assert_array_equal(ds["tissue"][1].get_view().read()[0], voxels)
    back = wkdask.convert(ds, tmp_path / "b")
    assert isinstance(back, wkdask.Dataset)
    assert back["tissue"].data_format == "wkw"
    assert wkdask.equal(ds, back)
