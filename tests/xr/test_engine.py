"""The engine `wkw` of xarray: what it opens, how it is indexed, and which voxels that reads."""

from __future__ import annotations

import pickle
import shutil
import subprocess
import sys
import threading
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import dask.array as da
import numpy as np
import pandas as pd
import pytest
import wkw
import xarray as xr
import xarray.testing.strategies as xrst
from hypothesis import given, settings
from hypothesis import strategies as st

import wkdask
from wkdask.errors import ArgumentError, FormatError, MissingError, NameLookupError, PropertiesError
from wkdask.geometry import BoundingBox
from wkdask.xr.engine import WkwBackendEntrypoint

BOX = BoundingBox((20, 40, 5), (60, 40, 30))
MAGS = ("1", "2-2-1", "4-4-2")
SMALL: dict[str, Any] = {"block_edge": 8, "blocks_per_file_edge": 2, "block_type": "raw"}

pytestmark = pytest.mark.filterwarnings("ignore:writing parts of compressed files:RuntimeWarning")


def noise(shape: Any, dtype: str, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(1, 250, shape).astype(dtype)


def make(path: Path) -> wkdask.Dataset:
    """Two layers of three mags, with files of 16 voxels."""
    ds = wkdask.create(path, (11.24, 11.24, 28))
    for number, (name, category, dtype) in enumerate(
        [("color", "color", "uint8"), ("cells", "segmentation", "uint32")]
    ):
        layer = ds.add_layer(name, category, dtype, bounding_box=BOX)
        for mag in MAGS:
            view = layer.add_mag(mag, **SMALL).get_view()
            view.write(noise(view.shape, dtype, number))
    ds["cells"].largest_segment_id = 249
    return ds


@pytest.fixture(scope="module")
def tissue_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Read-only for the tests of this file."""
    path = tmp_path_factory.mktemp("backend") / "tissue"
    make(path)
    return path


@pytest.fixture(scope="module")
def voxels(tissue_path: Path) -> np.ndarray:
    """The finest mag of the layer color."""
    return np.asarray(wkdask.open(tissue_path)["color"][1])


# --- what is found ------------------------------------------------------------------------------


def test_xarray_knows_the_engine() -> None:
    engine = xr.backends.list_engines()["wkw"]
    assert isinstance(engine, WkwBackendEntrypoint)
    assert engine.supports_groups
    assert "WKW" in repr(engine)


def test_it_is_found_without_importing_wkdask(tissue_path: Path) -> None:
    code = (
        "import sys, xarray as xr\n"
        "assert 'wkdask' not in sys.modules\n"
        f"ds = xr.open_dataset({str(tissue_path)!r})\n"
        "print(ds.color.wkw.box.size, ds.wkw.mag)"
    )
    output = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert output.stdout == f"{BOX.size} 1\n"


def test_a_dataset(tissue_path: Path, voxels: np.ndarray) -> None:
    opened = xr.open_dataset(tissue_path, engine="wkw")
    assert list(opened.data_vars) == ["color", "cells"]
    assert opened.color.dims == ("c", "x", "y", "z")
    assert (opened.color.dtype, opened.cells.dtype) == (np.uint8, np.uint32)
    assert opened.attrs == {
        "name": "tissue", "voxel_size": [11.24, 11.24, 28.0], "mag": "1",
        "voxel_size_unit": "nanometer",
    }  # fmt: skip
    assert opened.cells.attrs == {
        "mag": "1", "category": "segmentation", "voxel_size": [11.24, 11.24, 28.0],
        "voxel_size_unit": "nanometer", "largest_segment_id": 249,
    }  # fmt: skip
    assert opened.encoding["source"] == str(tissue_path)
    assert opened.color.encoding["preferred_chunks"] == {
        "c": (1,), "x": (12, 16, 16, 16), "y": (8, 16, 16), "z": (11, 16, 3),
    }  # fmt: skip
    np.testing.assert_array_equal(opened.color, voxels)


def test_coordinates_are_ranges(tissue_path: Path) -> None:
    index = xr.open_dataset(tissue_path, mag="2-2-1").indexes["x"]
    assert index.equals(pd.RangeIndex(20, 80, 2))
    assert isinstance(index, pd.RangeIndex)


@pytest.mark.parametrize("mag", [*MAGS, (2, 2, 1), wkdask.Mag("4-4-2")])
def test_a_mag_of_a_dataset(tissue_path: Path, mag: Any) -> None:
    opened = xr.open_dataset(tissue_path, mag=mag)
    assert opened.attrs["mag"] == opened.cells.attrs["mag"] == str(wkdask.Mag(mag))
    np.testing.assert_array_equal(opened.cells, wkdask.open(tissue_path)["cells"][mag])


@pytest.mark.parametrize(("place", "mag"), [("cells", 1), ("cells/1", 1), ("cells/2-2-1", "2-2-1")])
def test_a_layer_and_a_mag(tissue_path: Path, place: str, mag: Any) -> None:
    opened = xr.open_dataset(tissue_path / place)
    view = wkdask.open(tissue_path)["cells"][mag]
    xr.testing.assert_identical(opened.cells, view.to_xarray())
    by_group = xr.open_dataset(tissue_path, group=place)
    xr.testing.assert_identical(opened, by_group)


def test_layers_are_left_out(tissue_path: Path) -> None:
    assert list(xr.open_dataset(tissue_path, drop_variables="color").data_vars) == ["cells"]
    assert list(xr.open_dataset(tissue_path, drop_variables=["cells"]).data_vars) == ["color"]
    tree = xr.open_datatree(tissue_path, drop_variables="color")
    assert list(tree.children) == ["cells"]


def test_a_broken_layer_can_be_left_out(tmp_path: Path) -> None:
    path = make(tmp_path / "tissue").path
    (path / "color/1/header.wkw").write_bytes(b"broken")
    with pytest.raises(FormatError, match=r"header\.wkw"):
        xr.open_dataset(path, engine="wkw")
    assert list(xr.open_dataset(path, engine="wkw", drop_variables="color").data_vars) == ["cells"]


def test_a_missing_mag_does_not_hide_the_others(tmp_path: Path) -> None:
    path = make(tmp_path / "tissue").path
    shutil.rmtree(path / "color/4-4-2")
    assert xr.open_dataset(path).mag == "1"
    assert xr.open_dataset(path / "color/2-2-1").mag == "2-2-1"
    assert xr.open_datatree(path, group="cells").attrs["name"] == "tissue"
    with pytest.raises(MissingError, match="4-4-2 is not a directory"):
        xr.open_datatree(path, engine="wkw")


def test_the_finest_mag_that_all_have(tmp_path: Path) -> None:
    ds = make(tmp_path / "tissue")
    ds.add_layer("coarse", "color", "uint8", bounding_box=BOX).add_mag("2-2-1", **SMALL)
    opened = xr.open_dataset(ds.path)
    assert (list(opened.data_vars), opened.mag) == (["color", "cells", "coarse"], "2-2-1")
    assert list(xr.open_dataset(ds.path, mag=1).data_vars) == ["color", "cells"]
    ds.add_layer("other", "color", "uint8", bounding_box=BOX).add_mag(8, **SMALL)
    with pytest.raises(NameLookupError, match=r"no mag that all.*other: 8.*drop_variables"):
        xr.open_dataset(ds.path)


def test_layers_with_other_boxes_lie_in_one(tmp_path: Path) -> None:
    """Where a layer ends, the voxels are zero, as its files say."""
    ds = make(tmp_path / "tissue")
    other = ds.add_layer(
        "other", "color", "uint8", bounding_box=BoundingBox((70, 70, 0), (20,) * 3)
    )
    other.add_mag(1, **SMALL).get_view().write(np.full((20,) * 3, 9, np.uint8))
    opened = xr.open_dataset(ds.path)
    assert (opened.wkw.box.topleft, opened.wkw.box.bottomright) == ((20, 40, 0), (90, 90, 35))
    inside = {"x": slice(20, 79), "y": slice(40, 79), "z": slice(5, 34)}
    np.testing.assert_array_equal(opened.color.sel(inside), ds["color"][1])
    assert int((opened.other == 9).sum()) == 20**3
    assert not opened.other.sel(x=slice(20, 69)).any()
    assert int(opened.color.astype(int).sum()) == int(np.asarray(ds["color"][1]).astype(int).sum())


def test_layers_with_more_channels(tmp_path: Path) -> None:
    ds = make(tmp_path / "tissue")
    view = ds.add_layer("rgb", "color", "uint8", 3, BOX).add_mag(1, **SMALL).get_view()
    view.write(noise(view.shape, "uint8", 5))
    opened = xr.open_dataset(ds.path)
    assert opened.rgb.dims == ("c", "x", "y", "z")
    assert opened.color.dims == ("x", "y", "z"), "one channel beside three"
    np.testing.assert_array_equal(opened.rgb, view)
    assert xr.open_dataset(ds.path, chunks={}).color.chunks[0] == (12, 16, 16, 16)
    ds.add_layer("two", "color", "uint8", 2, BOX).add_mag(1, **SMALL)
    with pytest.raises(ArgumentError, match=r"rgb: 3, two: 2.*drop_variables"):
        xr.open_dataset(ds.path)


# what is opened, options, error, its text
REFUSED: list[tuple[str, dict[str, Any], type[Exception], str]] = [
    (".", {"mag": 16}, NameLookupError, "no mag 16.*color: 1, 2-2-1, 4-4-2"),
    (".", {"mag": "two"}, ArgumentError, "mag is 'two'"),
    (".", {"coords": "nm"}, ArgumentError, '"voxel" or "physical"'),
    (".", {"group": "axons"}, NameLookupError, "no group /axons.*/color/1"),
    ("color", {"group": "3"}, NameLookupError, "no group /3.*/1, /2-2-1"),
    ("..", {}, MissingError, "is no dataset"),
    ("nowhere", {}, MissingError, "is no dataset"),
    (".", {"drop_variables": ["color", "cells"]}, NameLookupError, "no layers left"),
    ("color/1", {"drop_variables": "color"}, NameLookupError, "no layers left"),
]


@pytest.mark.parametrize(("place", "options", "error", "text"), REFUSED)
def test_what_is_refused(
    tissue_path: Path, place: str, options: Any, error: type[Exception], text: str
) -> None:
    with pytest.raises(error, match=text):
        xr.open_dataset(tissue_path / place, engine="wkw", **options)


def test_a_bare_mag_has_no_lengths(tmp_path: Path) -> None:
    with wkw.Dataset.create(str(tmp_path / "1"), wkw.Header(np.uint8)) as dataset:
        dataset.write((0, 0, 0), np.ones((1, 32, 32, 32), np.uint8))
    with pytest.raises(ArgumentError, match="voxel size"):
        xr.open_dataset(tmp_path / "1", coords="physical")


@pytest.mark.parametrize("place", [".", "color", "cells/4-4-2"])
def test_guesses_what_it_can_open(tissue_path: Path, place: str) -> None:
    guess = WkwBackendEntrypoint().guess_can_open
    assert guess(tissue_path / place)
    assert guess(str(tissue_path / place))


def test_guesses_what_it_can_not_open(tissue_path: Path, tmp_path: Path) -> None:
    guess = WkwBackendEntrypoint().guess_can_open
    (tmp_path / "datasource-properties.json").write_text("no JSON")
    (tmp_path / "file.nc").write_bytes(b"CDF")
    paths = [tissue_path / "nowhere", tissue_path / "color/1/z0", tissue_path.parent]
    others = [
        *paths,
        tmp_path / "file.nc",
        tmp_path / "color",
        7,
        None,
        "s3://tissue",
        "a\0b",
        b"a",
    ]
    assert [other for other in others if guess(other)] == []
    with pytest.raises(PropertiesError):
        xr.open_dataset(tmp_path)


# --- trees --------------------------------------------------------------------------------------


def test_a_tree_of_a_dataset(tissue_path: Path) -> None:
    tree = xr.open_datatree(tissue_path)
    nodes = {node.path for node in tree.leaves}
    assert nodes == {f"/{name}/{mag}" for name in ("color", "cells") for mag in MAGS}
    assert tree.attrs["voxel_size"] == [11.24, 11.24, 28.0]
    ds = wkdask.open(tissue_path)
    for layer in ds.layers.values():
        for mag, view in layer.mags.items():
            xr.testing.assert_identical(tree[f"{layer.name}/{mag}"][layer.name], view.to_xarray())
    assert set(xr.open_groups(tissue_path)) == {"/", *nodes}


def test_a_tree_of_a_layer_and_of_a_mag(tissue_path: Path) -> None:
    layer = xr.open_datatree(tissue_path / "color")
    assert [node.path for node in layer.leaves] == ["/1", "/2-2-1", "/4-4-2"]
    assert xr.open_datatree(tissue_path, group="color").identical(layer)
    mag = xr.open_datatree(tissue_path / "color/2-2-1")
    assert (list(mag.children), mag.dataset.sizes["x"]) == ([], 30)


def test_the_same_from_our_side(tissue_path: Path) -> None:
    ds = wkdask.open(tissue_path)
    for coords in ("voxel", "physical"):
        ours, theirs = ds.to_datatree(coords=coords), xr.open_datatree(tissue_path, coords=coords)
        assert ours.identical(theirs)
        assert (
            ds["color"]
            .to_datatree(coords=coords)
            .identical(xr.open_datatree(tissue_path / "color", coords=coords))
        )
        array = ds["color"].to_xarray("2-2-1", None, coords)
        xr.testing.assert_identical(
            array, xr.open_dataset(tissue_path, mag="2-2-1", coords=coords).color
        )
    assert ds["color"].to_xarray().wkw.mag == wkdask.Mag(1), "the finest"
    assert ds.to_datatree()["color/1"].color.chunks[1] == (12, 16, 16, 16)
    assert ds.to_datatree(chunks=None)["color/1"].color.chunks is None


@pytest.mark.parametrize("chunks", [None, {}])
def test_a_tree_of_a_pyramid_by_libwkw(tmp_path: Path, chunks: Any) -> None:
    """Mag directories beside each other, and nothing else."""
    expected = {}
    for number, mag in enumerate(("1", "2-2-1", "4-4-2")):
        header = wkw.Header(np.uint16, block_type=1, block_len=8, file_len=2)
        expected[mag] = noise((1, 32, 32, 16 >> number), "uint16", number)
        with wkw.Dataset.create(str(tmp_path / "color" / mag), header) as dataset:
            dataset.write((0, 0, 0), expected[mag])
    tree = xr.open_datatree(tmp_path / "color", chunks=chunks)
    assert [node.path for node in tree.leaves] == ["/1", "/2-2-1", "/4-4-2"]
    for mag, voxels in expected.items():
        array = tree[mag].color
        assert (array.attrs, array.wkw.mag) == ({"mag": mag}, wkdask.Mag(mag))
        np.testing.assert_array_equal(array[..., : voxels.shape[3]], voxels)
    coarse = tree["1"].color.sel(x=slice(0, 7), y=slice(0, 7)).wkw.at_mag("4-4-2")
    np.testing.assert_array_equal(coarse[..., :4], expected["4-4-2"][:, :2, :2])


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")
def test_a_tree_of_a_pyramid_by_webknossos(webknossos: Any, tmp_path: Path) -> None:
    theirs = webknossos.Dataset(tmp_path / "theirs", voxel_size=(4, 4, 40))
    layer = theirs.add_layer("color", "color", data_format="wkw", dtype_per_channel="uint8")
    written = {"1": (1, 64, 64, 16), "2-2-1": (1, 32, 32, 16), "4-4-2": (1, 16, 16, 8)}
    for number, (mag, shape) in enumerate(written.items()):
        voxels = noise(shape, "uint8", number)
        layer.add_mag(mag).write(voxels, absolute_offset=(0, 0, 0), allow_resize=True)
    tree = xr.open_datatree(tmp_path / "theirs")
    assert [node.path for node in tree.leaves] == [f"/color/{mag}" for mag in written]
    for number, (mag, shape) in enumerate(written.items()):
        np.testing.assert_array_equal(tree[f"color/{mag}"].color, noise(shape, "uint8", number))


def test_layers_in_other_formats_are_left_out(tmp_path: Path) -> None:
    ds = make(tmp_path / "tissue")
    file = ds.path / "datasource-properties.json"
    text = file.read_text()
    at = text.index('"dataFormat": "wkw"', text.index('"cells"'))
    file.write_text(text[:at] + '"dataFormat": "n5"' + text[at + len('"dataFormat": "wkw"') :])
    assert list(xr.open_dataset(ds.path).data_vars) == ["color"]
    assert list(xr.open_datatree(ds.path).children) == ["color"]
    assert list(wkdask.open(ds.path).to_datatree().children) == ["color"]


# --- indexing -----------------------------------------------------------------------------------

Change = Any
# by xarray, the same by NumPy on (c, x, y, z), voxels to read
EXACT: list[tuple[str, Change, Change, int]] = [
    ("a box", lambda a: a[:, 3:9, 4:8, 5:7], lambda v: v[:, 3:9, 4:8, 5:7], 6 * 4 * 2),
    ("a point", lambda a: a.isel(x=3, y=-4, z=5), lambda v: v[:, 3, -4, 5], 1),
    ("steps", lambda a: a.isel(x=slice(1, 50, 7)), lambda v: v[:, 1:50:7], 7 * 40 * 30),
    ("backwards", lambda a: a[:, ::-5, :, ::-1], lambda v: v[:, ::-5, :, ::-1], 12 * 40 * 30),
    ("a label", lambda a: a.sel(x=24), lambda v: v[:, 4], 40 * 30),
    ("labels", lambda a: a.sel(x=slice(30, 39)), lambda v: v[:, 10:20], 10 * 40 * 30),
    ("nearest", lambda a: a.sel(x=25.4, method="nearest"), lambda v: v[:, 5], 40 * 30),
    ("twice", lambda a: a[:, 10:][:, ::3][:, :4], lambda v: v[:, 10:22:3], 4 * 40 * 30),
    ("nothing", lambda a: a[:, 5:5], lambda v: v[:, 5:5], 0),
    (
        "turned",
        lambda a: a[:, 3:9].transpose("z", "c", "y", "x")[5, :, ::-3, 1:3].T,
        lambda v: v[:, 3:9, :, 5].transpose(0, 2, 1)[:, ::-3, 1:3].T,
        14 * 2,
    ),
]
# These are read like that without dask only: dask reads the chunks in which they lie.
ROWS: list[tuple[str, Change, Change, int]] = [
    ("rows", lambda a: a.isel(x=[1, 5, 8]), lambda v: v[:, [1, 5, 8]], 3 * 40 * 30),
    ("rows backwards", lambda a: a[:, [8, 1, 8]], lambda v: v[:, [8, 1, 8]], 2 * 40 * 30),
    (
        "rows and columns",
        lambda a: a.isel(x=[1, 5], y=[-1, 3], z=slice(0, 4)),
        lambda v: v[:, [1, 5]][:, :, [-1, 3], :4],
        2 * 2 * 4,
    ),
    ("a mask", lambda a: a[:, np.arange(60) % 20 == 1], lambda v: v[:, 1::20], 3 * 40 * 30),
    ("labels in a list", lambda a: a.sel(z=[7, 30]), lambda v: v[..., [2, 25]], 2 * 60 * 40),
    (
        "points",
        lambda a: a.isel(x=("p", [1, 30, 59]), y=("p", [0, 39, 7]), z=("p", [2, 29, 11])),
        lambda v: v[:, [1, 30, 59], [0, 39, 7], [2, 29, 11]],
        3,
    ),
    (
        "columns at points",
        lambda a: a.isel(x=("p", [1, 30]), y=("p", [0, 39])),
        lambda v: v[:, [1, 30], [0, 39]],
        2 * 30,
    ),
]  # fmt: skip


@pytest.mark.parametrize("chunks", [None, {}], ids=["lazy", "dask"])
@pytest.mark.parametrize(("name", "select", "same", "count"), EXACT)
def test_voxels_read_are_voxels_asked_for(
    tissue_path: Path, voxels: np.ndarray, read_counts: list[int], chunks: Any, name: str,
    select: Change, same: Change, count: int,
) -> None:  # fmt: skip
    selected = select(xr.open_dataset(tissue_path, chunks=chunks).color)
    assert read_counts == []
    values = selected.compute(scheduler="sync").values
    np.testing.assert_array_equal(values, same(voxels))
    assert sum(read_counts) == count, name


@pytest.mark.parametrize(("name", "select", "same", "count"), ROWS)
def test_rows_and_points_read_what_they_need(
    tissue_path: Path, voxels: np.ndarray, read_counts: list[int], name: str, select: Change,
    same: Change, count: int,
) -> None:  # fmt: skip
    selected = select(xr.open_dataset(tissue_path).color)
    assert read_counts == []
    np.testing.assert_array_equal(selected.values, same(voxels))
    assert sum(read_counts) == count, name
    by_dask = select(xr.open_dataset(tissue_path, chunks={}).color)
    np.testing.assert_array_equal(by_dask.values, same(voxels))


INDEXERS = {
    "basic": xrst.basic_indexers,
    "outer": xrst.outer_array_indexers,
    "vectorized": xrst.vectorized_indexers,
}


@pytest.mark.parametrize("kind", INDEXERS)
@pytest.mark.parametrize("chunks", [None, {}], ids=["lazy", "dask"])
@settings(max_examples=15, deadline=None)
@given(data=st.data())
def test_random_indexers_are_equal_to_numpy(
    tissue_path: Path, voxels: np.ndarray, kind: str, chunks: Any, data: st.DataObject
) -> None:
    check_indexers(tissue_path, voxels, kind, chunks, data)


@pytest.mark.slow
@pytest.mark.parametrize("kind", INDEXERS)
@pytest.mark.parametrize("chunks", [None, {}], ids=["lazy", "dask"])
@settings(max_examples=500, deadline=None)
@given(data=st.data())
def test_500_indexers_of_each_kind_are_equal_to_numpy(
    tissue_path: Path, voxels: np.ndarray, kind: str, chunks: Any, data: st.DataObject
) -> None:
    check_indexers(tissue_path, voxels, kind, chunks, data)


def check_indexers(
    tissue_path: Path, voxels: np.ndarray, kind: str, chunks: Any, data: st.DataObject
) -> None:
    """Index by what xarray's own strategies make, and by slices of the result."""
    lazy = xr.open_dataset(tissue_path, chunks=chunks).color.drop_vars(list("xyz"))
    loaded = xr.DataArray(voxels, dims=lazy.dims)
    indexers = data.draw(INDEXERS[kind](sizes=dict(lazy.sizes)))
    lazy, loaded = lazy.isel(indexers), loaded.isel(indexers)
    if lazy.size and lazy.ndim:
        indexers = data.draw(xrst.basic_indexers(sizes=dict(lazy.sizes)))
        lazy, loaded = lazy.isel(indexers), loaded.isel(indexers)
    assert lazy.dims == loaded.dims
    np.testing.assert_array_equal(lazy.values, loaded.values, strict=True)
    np.testing.assert_array_equal(lazy.transpose().values, loaded.values.T)


# --- chunks -------------------------------------------------------------------------------------


def test_chunks_on_the_borders_of_files(tissue_path: Path) -> None:
    array = xr.open_dataset(tissue_path, chunks={}).color
    assert array.chunks == ((1,), (12, 16, 16, 16), (8, 16, 16), (11, 16, 3))
    assert array.data.name == wkdask.open(tissue_path)["color"][1].to_dask().name
    (layer,) = array.data.dask.layers.values()
    assert not layer.is_materialized()


@pytest.mark.parametrize(
    ("chunks", "expected"),
    [
        ({"x": (28, 32)}, ((1,), (28, 32), (8, 16, 16), (11, 16, 3))),
        ({"x": -1, "y": -1, "z": -1}, ((1,), (60,), (40,), (30,))),
        (16, ((1,), (16, 16, 16, 12), (16, 16, 8), (16, 14))),
        ("auto", ((1,), (60,), (40,), (30,))),
    ],
)
@pytest.mark.filterwarnings("ignore:The specified chunks separate the stored:UserWarning")
def test_chunks_of_other_sizes(
    tissue_path: Path, voxels: np.ndarray, chunks: Any, expected: Any
) -> None:
    array = xr.open_dataset(tissue_path, chunks=chunks).color
    assert array.chunks == expected
    np.testing.assert_array_equal(array, voxels)


def test_chunks_made_later(tissue_path: Path, voxels: np.ndarray, read_counts: list[int]) -> None:
    opened = xr.open_dataset(tissue_path)
    array = opened.color.isel(z=slice(None, None, -2)).chunk({"x": 20})
    assert array.chunks == ((1,), (20, 20, 20), (40,), (15,))
    assert read_counts == []
    assert "wkdask-" in array.data.name
    part = array[:, 5:8, 3]
    np.testing.assert_array_equal(part, voxels[:, 5:8, 3, ::-2])
    assert sum(read_counts) == 3 * 15
    rows = opened.color.isel(x=[1, 7, 20]).chunk(y=10)
    np.testing.assert_array_equal(rows, voxels[:, [1, 7, 20]])
    whole = opened.chunk(30)
    assert whole.color.chunks[1:] == ((30, 30), (30, 10), (30,))
    np.testing.assert_array_equal(whole.color, voxels)


def test_rows_have_names_that_tell_their_volume(tmp_path: Path) -> None:
    """A store into the volume from which they come is refused on a cluster by that name."""
    view = make(tmp_path / "tissue")["color"][1]
    opened = xr.open_dataset(tmp_path / "tissue")
    seen = set()
    for rows in ([1, 5, 6], [1, 5, 7]):
        seen |= {opened.color.isel(x=rows).chunk(y=10).data.name for _ in range(2)}
        seen.add(opened.isel(x=rows).chunk(y=20).color.data.name)
    assert len(seen) == 4, "the same for the same, and another for another"
    assert all(name.startswith(f"wkdask-{view.volume.key}-") for name in seen)
    view.get_view().write(np.ones(view.shape, np.uint8))
    assert opened.color.isel(x=[1, 5, 6]).chunk(y=10).data.name not in seen


def test_what_is_held_is_not_read_again(tissue_path: Path, read_counts: list[int]) -> None:
    held = xr.open_dataset(tissue_path, chunks={}).persist(scheduler="sync")
    read_counts.clear()
    assert held.color[:, 3:9, ::-1].sum() > 0
    assert read_counts == []


@pytest.mark.slow
def test_what_is_held_on_a_cluster_is_not_read_again(tmp_path: Path, client: Any) -> None:
    view = make(tmp_path / "tissue")["color"][1].get_view()
    before = view.read()
    held = xr.open_dataset(tmp_path / "tissue", chunks={}).persist()
    held.color.sum().compute()
    view.write(np.full(view.shape, 7, np.uint8))
    np.testing.assert_array_equal(held.color[:, 3:9], before[:, 3:9])


def test_what_was_loaded_is_chunked_from_memory(tissue_path: Path, read_counts: list[int]) -> None:
    array = xr.open_dataset(tissue_path).color.load()
    read_counts.clear()
    assert array.chunk(x=20).sum() == array.sum()
    assert read_counts == []


# --- coordinates --------------------------------------------------------------------------------


def test_physical_coordinates_are_centres(tissue_path: Path) -> None:
    for mag, factors in (("1", (1, 1, 1)), ("2-2-1", (2, 2, 1)), ("4-4-2", (4, 4, 2))):
        opened = xr.open_dataset(tissue_path, mag=mag, coords="physical")
        for dim, factor, size, start in zip(
            "xyz", factors, (11.24, 11.24, 28), BOX.topleft, strict=True
        ):
            first = start // factor * factor
            assert opened[dim].attrs == {"units": "nanometer"}
            np.testing.assert_allclose(opened[dim][0], (first + factor / 2) * size)
            np.testing.assert_allclose(np.diff(opened[dim]), factor * size)


def test_selections_by_length(
    tissue_path: Path, voxels: np.ndarray, read_counts: list[int]
) -> None:
    opened = xr.open_dataset(tissue_path, coords="physical")
    part = opened.color.sel(x=slice(300, 400)).sel(z=200, method="nearest")
    # Centres (i + 0.5) * 11.24 from 27 to 35; z 200 lies in voxel 7 of 28 nm.
    np.testing.assert_array_equal(part, voxels[:, 7:16, :, 2])
    assert sum(read_counts) == part.size
    with pytest.raises(KeyError):
        opened.color.sel(x=300)


def test_mags_align(tissue_path: Path) -> None:
    tree = xr.open_datatree(tissue_path)
    fine, coarse = tree["color/1"].color, tree["color/2-2-1"].color
    difference = fine - coarse
    assert difference.x.values.tolist() == list(range(20, 80, 2))
    assert difference.sizes["z"] == 30
    inner, _ = xr.align(fine, coarse, join="inner")
    np.testing.assert_array_equal(inner, fine[:, ::2, ::2])
    # Each fine voxel gets the coarse one in which it lies.
    blown = coarse.reindex(x=fine.x, y=fine.y, method="ffill")
    np.testing.assert_array_equal(blown, coarse.values.repeat(2, 1).repeat(2, 2))
    near = coarse.sel(x=[21, 22.9], method="nearest", drop=True)
    assert near.shape == (1, 2, 20, 30)


def test_neighbouring_boxes_are_joined(tissue_path: Path, voxels: np.ndarray) -> None:
    for chunks in (None, {}):
        array = xr.open_dataset(tissue_path, chunks=chunks).color
        joined = xr.concat([array[:, :25], array[:, 25:]], "x")
        xr.testing.assert_identical(joined, array)
        assert isinstance(joined.indexes["x"], pd.RangeIndex)
        combined = xr.combine_by_coords([array[..., 15:], array[..., :15]])
        np.testing.assert_array_equal(combined.color, voxels)


def test_attributes_are_plain(tissue_path: Path) -> None:
    """As files of other formats can hold them."""
    opened = xr.open_dataset(tissue_path, coords="physical")
    for attrs in (opened.attrs, opened.cells.attrs, opened.x.attrs):
        for value in attrs.values():
            assert isinstance(value, str | int | float | list)


@pytest.mark.parametrize("chunks", [None, {}], ids=["lazy", "dask"])
def test_real_tissue(real_volume: Path, chunks: Any) -> None:
    tree = xr.open_datatree(real_volume, chunks=chunks)
    for leaf in tree.leaves:
        (array,) = leaf.dataset.data_vars.values()
        box = array.wkw.box
        part = array.isel(x=slice(5, 70, 3), y=slice(40, 8, -1), z=[0, 3, 9])
        with wkw.Dataset.open(array.encoding["source"]) as dataset:
            offset = (box.topleft[0], box.topleft[1], box.topleft[2])
            voxels = dataset.read(offset, (70, 41, 10))
        np.testing.assert_array_equal(part, voxels[:, 5:70:3, 40:8:-1, [0, 3, 9]])


# --- reuse --------------------------------------------------------------------------------------


def test_pickles_are_small_and_work_in_processes(tissue_path: Path, voxels: np.ndarray) -> None:
    for chunks in (None, {}):
        opened = xr.open_dataset(tissue_path, chunks=chunks, cache=False)
        data = pickle.dumps(opened)
        assert len(data) < 10_000
        np.testing.assert_array_equal(pickle.loads(data).color, voxels)
    lazy = xr.open_dataset(tissue_path).color
    with ProcessPoolExecutor(1, get_context("spawn")) as pool:
        parts = [lazy[:, :30], lazy[:, 30:, ::-1], lazy.isel(x=[3, 5])]
        found = list(pool.map(np.asarray, parts))
    for part, values in zip(parts, found, strict=True):
        np.testing.assert_array_equal(part, values)


def test_threads_share_a_dataset(tissue_path: Path, voxels: np.ndarray) -> None:
    opened = xr.open_dataset(tissue_path).color
    wrong = []

    def read(seed: int) -> None:
        generator = np.random.default_rng(seed)
        for _ in range(50):
            x, y = generator.integers(0, 40, 2)
            if not np.array_equal(opened[:, x : x + 9, y], voxels[:, x : x + 9, y]):
                wrong.append((x, y))

    threads = [threading.Thread(target=read, args=(seed,)) for seed in (1, 2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


@pytest.mark.parametrize("chunks", [None, {}], ids=["lazy", "dask"])
def test_files_that_change_give_new_data(tmp_path: Path, chunks: Any) -> None:
    view = make(tmp_path / "tissue")["color"][1].get_view()
    opened = xr.open_dataset(tmp_path / "tissue", chunks=chunks)
    for value in (3, 4):
        view.write(np.full(view.shape, value, np.uint8))
        assert (opened.color[:, 5:9].values == value).all(), "of what was opened before"
        assert (opened.color.compute().values == value).all()
        again = xr.open_dataset(tmp_path / "tissue", chunks=chunks)
        if chunks is not None:  # so that older results, held somewhere, are not taken for these
            assert again.color.data.name != opened.color.data.name
        assert (again.color.values == value).all()


@pytest.mark.slow
def test_an_older_result_on_a_cluster_is_not_taken_for_new_data(
    tmp_path: Path, client: Any
) -> None:
    view = make(tmp_path / "tissue")["color"][1].get_view()
    held = xr.open_dataset(tmp_path / "tissue", chunks={}).persist()
    view.write(np.full(view.shape, 7, np.uint8))
    assert (xr.open_dataset(tmp_path / "tissue", chunks={}).color.compute() == 7).all()
    assert isinstance(held.color.data, da.Array)
