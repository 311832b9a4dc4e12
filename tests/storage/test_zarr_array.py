"""Zarr arrays of others: any order of axes, any codec, read as zarr-python reads them."""

from __future__ import annotations

import itertools
import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from servers import Nginx

import wkdask
from wkdask.dataset.describe import describe
from wkdask.dataset.lookup import kind_of
from wkdask.dataset.properties import element_class
from wkdask.errors import FormatError, PropertiesError, ReadOnlyError, WkdaskError

zarr = pytest.importorskip("zarr")

SIZE = {"c": 2, "x": 50, "y": 40, "z": 30, "t": 1}
BOX = wkdask.BoundingBox((0, 0, 0), (50, 40, 30))


def voxels_of(axes: str, dtype: Any = "uint16") -> np.ndarray:
    """Return random voxels `(c, x, y, z)`; some of them are zero."""
    count = SIZE["c"] if "c" in axes else 1
    voxels = np.random.default_rng(0).integers(0, 200, (count, *BOX.size)).astype(dtype)
    voxels[:, :20] = 0
    return voxels


def layer_of(
    path: Path, axes: str = "zyx", dtype: Any = "uint16", version: int = 3, **options: Any
) -> tuple[wkdask.Dataset, np.ndarray]:
    """Make a dataset whose only mag is an array with its axes in an order; return its voxels."""
    voxels = voxels_of(axes, dtype)
    order = ["cxyz".index(axis) for axis in axes if axis in "cxyz"]
    data = (voxels if "c" in axes else voxels[0]).transpose(
        order if "c" in axes else [at - 1 for at in order]
    )
    for at, axis in enumerate(axes):
        if axis not in "cxyz":
            data = np.expand_dims(data, at)
    shape = tuple(SIZE.get(axis, 1) for axis in axes)
    chunks = tuple({"c": 1, "x": 16, "y": 16, "z": 8}.get(axis, 1) for axis in axes)
    array = zarr.create_array(
        path / "color" / "1", shape=shape, dtype=dtype, zarr_format=version,
        **{"chunks": chunks, **options},
    )  # fmt: skip
    array[...] = data
    said = {
        "id": {"name": "tissue", "team": ""},
        "scale": {"factor": [8, 8, 40], "unit": "nanometer"},
        "dataLayers": [
            {
                "name": "color", "category": "color", "numChannels": len(voxels),
                "dataFormat": "zarr3" if version == 3 else "zarr",
                "elementClass": element_class(
                    np.dtype(dtype).name, len(voxels)
                ),
                "boundingBox": {"topLeft": [0, 0, 0], "width": 50, "height": 40, "depth": 30},
                "mags": [
                    {
                        "mag": [1, 1, 1], "path": "./color/1",
                        "axisOrder": {a: at for at, a in enumerate(axes) if a in "cxyz"},
                    }
                ],
            }
        ],
    }  # fmt: skip
    (path / "datasource-properties.json").write_text(json.dumps(said))
    return wkdask.open(path), voxels


ORDERS = ["zyx", "xyz", "cxyz", "czyx", "zyxc", "tczyx", "yxz"]


@pytest.mark.parametrize("version", [2, 3])
@pytest.mark.parametrize("axes", ORDERS)
def test_orders(tmp_path: Path, axes: str, version: int) -> None:
    ds, voxels = layer_of(tmp_path, axes, version=version)
    mag = ds["color"][1]
    assert np.array_equal(mag.read(), voxels)
    view = mag.get_view()
    for part in itertools.product(
        (slice(0, 50), slice(19, 20), slice(3, 45, 7)), (slice(5, 40, 2),), (slice(7, 9), 29)
    ):
        assert np.array_equal(view[(0, *part)].compute(), voxels[(0, *part)])
    assert np.array_equal(view.to_dask().compute(), voxels)
    beyond = mag.volume.read((range(40, 60), range(38, 44), range(28, 33)))
    assert np.array_equal(beyond[:, :10, :2, :2], voxels[:, 40:, 38:, 28:])
    assert not beyond[:, 10:].any()
    assert not beyond[:, :, 2:].any()


@pytest.mark.parametrize("dtype", ["uint8", "int8", ">u2", "int32", "uint64", "float32", ">f8"])
def test_dtypes(tmp_path: Path, dtype: str) -> None:
    ds, voxels = layer_of(tmp_path, dtype=dtype)
    found = ds["color"][1].read()
    assert (found.dtype.name, found.tolist()) == (np.dtype(dtype).name, voxels.tolist())


def codecs(version: int) -> list[Any]:
    if version == 3:
        inner = [zarr.codecs.BloscCodec(), zarr.codecs.GzipCodec(), zarr.codecs.ZstdCodec()]
        return [*inner, None]
    import numcodecs

    return [numcodecs.Blosc(), numcodecs.GZip(), numcodecs.Zstd(), None]


@pytest.mark.parametrize("version", [2, 3])
@pytest.mark.parametrize("number", range(4))
def test_broken_chunks(tmp_path: Path, version: int, number: int) -> None:
    codec = codecs(version)[number]
    ds, voxels = layer_of(tmp_path, "cxyz", version=version, compressors=codec)
    mag = ds["color"][1]
    assert np.array_equal(mag.read(), voxels)
    [*files] = (Path(mag.volume.file_path(cell)) for cell, _ in mag.volume.files())
    path = files[-1]
    assert path.is_file()
    data = path.read_bytes()
    for cut in (0, 1, len(data) // 2, len(data) - 1):
        path.write_bytes(data[:cut])
        with pytest.raises(WkdaskError):
            mag.read()
    path.write_bytes(data)
    path.unlink()
    assert not np.array_equal(mag.read(), voxels)
    path.mkdir()
    with pytest.raises(WkdaskError):
        mag.read()


def test_shards(tmp_path: Path) -> None:
    for axes in ("zyx", "czyx"):
        at = tmp_path / axes
        shards = tuple({"c": 2, "x": 32, "y": 32, "z": 16}[axis] for axis in axes)
        ds, voxels = layer_of(at, axes, shards=shards, fill_value=5)
        mag = ds["color"][1]
        assert mag.volume.layout.file_size == (32, 32, 16)
        assert np.array_equal(mag.read(), voxels)
        assert (mag.volume.read((range(70, 72), range(1), range(1))) == 5).all()


def test_uses(tmp_path: Path) -> None:
    ds, voxels = layer_of(tmp_path / "tissue", "zyx")
    layer = ds["color"]
    assert len(pickle.dumps(layer[1].volume)) < 1000
    assert "tissue" in repr(layer[1])
    assert layer[1]._repr_html_()
    assert np.array_equal(layer[1].to_xarray().values, voxels)
    with pytest.raises(ReadOnlyError):
        layer[1].write(voxels)
    with pytest.raises(ReadOnlyError):
        layer[1].volume.write(BOX, voxels)
    with pytest.raises(ReadOnlyError):
        layer[1].compress()
    assert layer.downsample(coarsest_mag=4).done
    assert [str(mag) for mag in layer.mags] == ["1", "2-2-1", "4-4-1"]
    assert wkdask.check(ds.path, level=2).ok
    wkdask.copy(ds, tmp_path / "copy", data_format="wkw")
    copy = wkdask.open(tmp_path / "copy")
    assert wkdask.equal(layer, copy["color"])
    wkdask.copy(ds, tmp_path / "again")
    again = wkdask.open(tmp_path / "again")["color"]
    assert wkdask.equal(layer, again)
    again[1].write(voxels + 1)
    assert np.array_equal(again[1].read(), voxels + 1)


def test_remote(nginx: Nginx) -> None:
    for number, codec in enumerate(codecs(3)):
        path = nginx.files / f"others-{number}"
        _, voxels = layer_of(path, "czyx", compressors=codec)
        there = wkdask.open(f"{nginx.url}/{path.name}")
        assert np.array_equal(there["color"][1].read(), voxels)
        chunk = path / "color/1/c/0/3/2/3"
        chunk.write_bytes(chunk.read_bytes()[:-1])
        with pytest.raises(WkdaskError):
            there["color"][1].read()


@pytest.mark.parametrize(
    ("order", "error"),
    [
        ({"x": 0, "y": 1}, FormatError),
        ({"x": 0, "y": 1, "z": 2, "c": 3}, FormatError),
        ({"x": 0, "y": 0, "z": 2}, PropertiesError),
        ({"x": -1, "y": 0, "z": 2}, PropertiesError),
        ({"x": "0", "y": 1, "z": 2}, PropertiesError),
        ({"x": 0, "y": 1, "z": 10**9}, PropertiesError),
        ({"x": 0, "y": 1, "z": 2, "time": 3}, PropertiesError),
        ([0, 1, 2], PropertiesError),
        ("xyz", PropertiesError),
    ],
)
def test_bad_orders(tmp_path: Path, order: Any, error: type[Exception]) -> None:
    layer_of(tmp_path, "zyx")
    path = tmp_path / "datasource-properties.json"
    said = json.loads(path.read_text())
    said["dataLayers"][0]["mags"][0]["axisOrder"] = order
    path.write_text(json.dumps(said))
    with pytest.raises(error):
        wkdask.open(tmp_path)["color"][1]


def test_several_time_points_are_refused(tmp_path: Path) -> None:
    array = zarr.create_array(
        tmp_path / "1", shape=(3, 1, 8, 8, 8), chunks=(1, 1, 8, 8, 8), dtype="uint16",
        dimension_names=["t", "c", "z", "y", "x"],
    )  # fmt: skip
    array[...] = 1
    with pytest.raises(FormatError, match="one position"):
        wkdask.open_mag(tmp_path / "1")


def test_a_shard_that_is_cut(tmp_path: Path) -> None:
    """Its index is at the beginning, and says of blocks that they are behind the end."""
    data = np.random.default_rng(0).integers(1, 9, (32, 32, 32)).astype("uint16")
    codec = zarr.codecs.ShardingCodec(
        chunk_shape=(16, 16, 16), codecs=[zarr.codecs.BytesCodec()], index_location="start"
    )
    array = zarr.create(
        store=tmp_path / "1", shape=(32, 32, 32), chunks=(32, 32, 32), dtype="uint16",
        codecs=[codec], dimension_names=["z", "y", "x"], zarr_format=3,
    )  # fmt: skip
    array[...] = data
    mag = wkdask.open_mag(tmp_path / "1")
    region = (range(32),) * 3
    assert np.array_equal(mag.volume.read(region)[0], data.T)
    path = tmp_path / "1" / "c" / "0" / "0" / "0"
    whole = path.read_bytes()
    for cut in range(0, len(whole), 3000):
        path.write_bytes(whole[:cut])
        with pytest.raises(WkdaskError):
            mag.volume.read(region)


def test_blosc_in_other_places(tmp_path: Path) -> None:
    codecs = [zarr.codecs.GzipCodec()]
    ds, voxels = layer_of(tmp_path, "zyx", compressors=codecs, attributes={"was": "blosc"})
    assert np.array_equal(ds["color"][1].read(), voxels)


def test_xarray_and_commands(tmp_path: Path) -> None:
    import xarray as xr

    _, voxels = layer_of(tmp_path, "zyx")
    array = xr.open_dataset(tmp_path / "color" / "1", engine="wkw").color
    assert np.array_equal(array.values, voxels)
    assert kind_of(tmp_path / "color" / "1") == "mag"
    assert describe(tmp_path)["layers"][0]["mags"][0]["axes"] == "zyx"
