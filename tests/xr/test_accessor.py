"""`array.wkw`: where labelled voxels lie, and the way back to disk by their coordinates."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import dask.array as da
import numpy as np
import pytest
import xarray as xr
from hypothesis import given, settings
from hypothesis import strategies as st

import wkdask
from wkdask.errors import (
    AlignmentError,
    ArgumentError,
    BoundsError,
    DtypeError,
    ExistsError,
    MissingError,
    NameLookupError,
    ReadOnlyError,
    WkdaskError,
)
from wkdask.geometry import BoundingBox
from wkdask.units import nm_per

pytestmark = pytest.mark.filterwarnings("ignore:writing parts of compressed files:RuntimeWarning")

BOX = BoundingBox((20, 40, 6), (60, 40, 30))
VOXEL_SIZE = (11.24, 11.24, 28.0)
SMALL: dict[str, Any] = {"block_edge": 4, "blocks_per_file_edge": 4}


def make(path: Path, mags: Any = ("1", "2-2-1", "4-4-2"), dtype: str = "uint8") -> wkdask.Dataset:
    """A layer of noise, with files of 16 voxels."""
    ds = wkdask.create(path, VOXEL_SIZE)
    layer = ds.add_layer("color", "color", dtype, bounding_box=BOX)
    for number, mag in enumerate(mags):
        view = layer.add_mag(mag, **SMALL, block_type="raw").get_view()
        view.write(np.random.default_rng(number).integers(1, 250, view.shape).astype(dtype))
    return ds


@pytest.fixture(scope="module")
def templates(tmp_path_factory: pytest.TempPathFactory) -> dict[bool, Path]:
    """A dataset, and one with a layer of zeros beside, to be copied: that is faster."""
    paths = {with_target: tmp_path_factory.mktemp("template") for with_target in (False, True)}
    for with_target, path in paths.items():
        ds = make(path / "tissue")
        if with_target:
            layer = ds.add_layer("target", "color", "uint8", bounding_box=BOX)
            for mag in ("1", "2-2-1", "4-4-2"):
                layer.add_mag(mag, **SMALL, block_type="lz4")
    return paths


@pytest.fixture
def ds(
    request: pytest.FixtureRequest, templates: dict[bool, Path], tmp_path: Path
) -> wkdask.Dataset:
    source = templates["empty" in request.fixturenames]
    shutil.copytree(source, tmp_path, dirs_exist_ok=True)
    return wkdask.open(tmp_path / "tissue")


@pytest.fixture
def empty(ds: wkdask.Dataset) -> wkdask.Layer:
    """A layer of zeros in the same mags."""
    return ds["target"]


# --- what it knows ------------------------------------------------------------------------------


@pytest.mark.parametrize("coords", ["voxel", "physical"])
@pytest.mark.parametrize("mag", ["1", "2-2-1", "4-4-2"])
def test_what_is_known_of_a_mag(ds: wkdask.Dataset, mag: str, coords: Any) -> None:
    view = ds["color"][mag]
    known = view.to_xarray(coords=coords).wkw
    factors = tuple(wkdask.Mag(mag))
    assert (known.mag, known.box) == (wkdask.Mag(mag), view.bounding_box)
    assert (known.voxel_size, known.unit) == (VOXEL_SIZE, "nanometer")
    assert known.spacing_nm == tuple(f * s for f, s in zip(factors, VOXEL_SIZE, strict=True))
    np.testing.assert_allclose(known.voxel_um3, np.prod(factors) * 11.24e-3**2 * 28e-3)
    sizes = zip(view.bounding_box.size, known.spacing_nm, strict=True)
    assert known.size_nm == tuple(n * edge for n, edge in sizes)


# a selection, its box in voxels of its mag, why
SELECTED: list[tuple[Any, BoundingBox, str]] = [
    (lambda a: a[:, 4:9, 5:, :7], BoundingBox((24, 45, 6), (5, 35, 7)), "slices"),
    (lambda a: a[:, 3, :, -1], BoundingBox((23, 40, 35), (1, 40, 1)), "axes that are gone"),
    (lambda a: a[0, ::-1], BOX, "backwards"),
    (lambda a: (a.astype(float) * 2).T, BOX, "computed and turned"),
    (lambda a: a[:, ::2, ::2], BoundingBox((10, 20, 6), (30, 20, 30)), "every second is mag 2-2-1"),
    (
        lambda a: a.coarsen(x=2, y=2, z=1, coord_func="min").max(),
        BoundingBox((10, 20, 6), (30, 20, 30)),
        "made coarser, with the corners of the coarse voxels",
    ),
]


@pytest.mark.parametrize("coords", ["voxel", "physical"])
@pytest.mark.parametrize(("select", "box", "why"), SELECTED)
def test_the_box_of_a_selection(
    ds: wkdask.Dataset, select: Any, box: BoundingBox, why: str, coords: Any
) -> None:
    array = select(ds["color"].to_xarray(coords=coords))
    if coords == "physical" and array.sizes.get("x") == 30:
        with pytest.raises(ArgumentError, match="centres lie at"):
            _ = array.wkw.box  # the centres of fine voxels are not those of coarse ones
    else:
        assert array.wkw.box == box, why


def test_centres_of_coarse_voxels_are_the_means_of_fine_ones(ds: wkdask.Dataset) -> None:
    array = ds["color"].to_xarray(coords="physical").coarsen(x=2, y=2, z=1).mean()
    assert array.wkw.mag == wkdask.Mag("2-2-1")
    np.testing.assert_allclose(array.x, ds["color"].to_xarray("2-2-1", coords="physical").x)


def test_a_dataset_knows_the_same(ds: wkdask.Dataset) -> None:
    opened = xr.open_dataset(ds.path, mag="2-2-1", coords="physical")
    for name in ("mag", "box", "voxel_size", "unit", "spacing_nm", "voxel_um3", "size_nm", "grid"):
        assert getattr(opened.wkw, name) == getattr(opened.color.wkw, name)
    with pytest.raises(ArgumentError, match="no variable"):
        _ = xr.Dataset({"a": 1}).wkw.box


# changes that leave no grid, the error's text
OFF_GRID: list[tuple[Any, str]] = [
    (lambda a: a.assign_coords(x=a.x * 1.5), "1.5 voxels of mag 1"),
    (lambda a: a.isel(x=[1, 2, 4]), "not evenly spaced"),
    (lambda a: a.isel(x=[1, 1, 1]), "not evenly spaced"),
    (lambda a: a.drop_vars("x"), "no coordinate x"),
    (
        lambda a: a.assign_coords(x=[f"{i}" for i in range(60)]),
        "x = 0, 1, 2.*must be finite numbers",
    ),
    (lambda a: a.pad(x=1), "x = nan, 20, 21.*must be finite numbers"),
    (lambda a: a.isel(x=("y", [1, 2, 3]), y=("y", [1, 2, 3])), r"x lies along \('y',\)"),
    (lambda a: a.isel(z=0).assign_coords(z=(("x", "y"), np.ones((60, 40)))), r"\('x', 'y'\)"),
    (lambda a: a[:, 1::2], "the coordinate x = 21"),
    (lambda a: a.coarsen(x=2).max(), r"the coordinate x = 20\.5"),
]


@pytest.mark.parametrize(("change", "text"), OFF_GRID)
def test_a_box_needs_a_grid(ds: wkdask.Dataset, change: Any, text: str) -> None:
    with pytest.raises(ArgumentError, match=text):
        _ = change(ds["color"].to_xarray()).wkw.box


def test_lengths_need_a_voxel_size(ds: wkdask.Dataset) -> None:
    array = wkdask.open_mag(ds["color"][1].path).to_xarray()
    assert array.wkw.box.topleft == (16, 32, 0), "where the files begin"
    with pytest.raises(ArgumentError, match=r"attrs\.update\(voxel_size"):
        _ = array.wkw.size_nm


@pytest.mark.parametrize(
    ("unit", "nm"),
    [("nanometer", 1), ("micrometer", 1e3), ("µm", 1e3), ("meter", 1e9), ("angstrom", 0.1),
     ("inch", 2.54e7), ("yard", 9.144e8), ("mile", 1.609344e12)],
)  # fmt: skip
def test_units(unit: str, nm: float) -> None:
    assert nm_per(unit) == pytest.approx(nm)


def test_every_unit_of_webknossos_is_known() -> None:
    from wkdask.units import UNITS

    assert all(nm_per(unit) > 0 for unit in UNITS)
    with pytest.raises(ArgumentError, match="length such as"):
        nm_per("second")


# --- other mags ---------------------------------------------------------------------------------


@pytest.mark.parametrize("chunks", [None, {}], ids=["lazy", "dask"])
@pytest.mark.parametrize("coords", ["voxel", "physical"])
def test_the_same_region_at_another_mag(ds: wkdask.Dataset, chunks: Any, coords: Any) -> None:
    fine = xr.open_dataset(ds.path, coords=coords, chunks=chunks).color[0, 5:14, 3, 4:7].T
    coarse = fine.wkw.at_mag("4-4-2")
    assert coarse.dims == ("z", "x")
    assert (coarse.chunks is None) == (chunks is None)
    # x [25, 34), y 43, z [10, 13) of mag 1.
    expected = ds["color"]["4-4-2"].read((6, 10, 5), (3, 1, 2))[0, :, 0].T
    np.testing.assert_array_equal(coarse, expected)
    back = coarse.wkw.at_mag(1)
    assert back.wkw.box == BoundingBox((24, 40, 10), (12, 1, 4))
    assert back.wkw.mag == wkdask.Mag(1)


def test_a_dataset_at_another_mag(ds: wkdask.Dataset, empty: wkdask.Layer) -> None:
    opened = xr.open_dataset(ds.path)[{"x": slice(0, 8)}].wkw.at_mag("2-2-1")
    assert list(opened.data_vars) == ["color", "target"]
    assert (opened.sizes["x"], opened.attrs["mag"]) == (4, "2-2-1")


def test_no_other_mag(ds: wkdask.Dataset) -> None:
    array = ds["color"].to_xarray()
    with pytest.raises(NameLookupError, match="no mag 16"):
        array.wkw.at_mag(16)
    with pytest.raises(MissingError, match="does not know from which layer"):
        (array + 1).wkw.at_mag(2)
    bare = wkdask.open_mag(ds["color"][1].path).to_xarray()[:, :4]
    assert bare.wkw.at_mag("2-2-1").sizes["x"] == 2, "of the directory beside it"
    with pytest.raises(NameLookupError, match="no mag 16; it has 1, 2-2-1"):
        bare.wkw.at_mag(16)


# --- stored by labels ---------------------------------------------------------------------------

Change = Any
STORED: list[tuple[str, Change]] = [
    ("a part", lambda a: a[:, 4:21, 4:12, 2:]),
    ("any order of dimensions", lambda a: a.transpose("z", "c", "y", "x")),
    ("without c", lambda a: a[0].T),
    ("a plane", lambda a: a.isel(z=5)),
    ("a row", lambda a: a[0, :, 3, 4]),
    ("a voxel", lambda a: a[0, 1, 3, 4]),
    ("backwards", lambda a: a[:, ::-1, :, ::-1]),
    ("loaded", lambda a: a.compute()),
]


@pytest.mark.parametrize(
    ("mag", "chunks", "coords"), [("1", None, "voxel"), ("4-4-2", "file", "physical")]
)
@pytest.mark.parametrize(("name", "select"), STORED)
def test_stored_where_the_coordinates_say(
    ds: wkdask.Dataset, empty: wkdask.Layer, name: str, select: Change, mag: str, chunks: Any,
    coords: Any,
) -> None:  # fmt: skip
    source = ds["color"][mag].to_xarray(chunks, coords)
    part = select(source)
    report = part.wkw.store(empty[mag])
    assert report.voxels == part.size
    expected = xr.zeros_like(ds["color"][mag].to_xarray().compute())
    box = part.wkw.box
    inside = tuple(slice(a - b, a - b + n) for a, b, n in zip(
        box.topleft, ds["color"][mag].bounding_box.topleft, box.size, strict=True))  # fmt: skip
    expected[(slice(None), *inside)] = np.asarray(ds["color"][mag])[(slice(None), *inside)]
    np.testing.assert_array_equal(np.asarray(empty[mag]), expected, name)


def other(array: xr.DataArray, **coords: Any) -> xr.DataArray:
    return array.assign_coords(coords)


# what is stored into mag 1 of `empty`, the error, its text
REFUSED: list[tuple[str, Change, type[WkdaskError], str]] = [
    ("half a voxel", lambda a: other(a, x=a.x + 0.5), ArgumentError, r"x = 20\.5.*multiples of 1"),
    ("every second", lambda a: a[:, ::2], ArgumentError, "span 2 of mag 1 along x"),
    ("gaps", lambda a: a.isel(z=[0, 1, 3]), ArgumentError, "not evenly spaced"),
    ("outside", lambda a: other(a, x=a.x + 1), BoundsError, "leaves the target"),
    ("below zero", lambda a: other(a, x=a.x - 30), BoundsError, "leaves the target"),
    ("no labels", lambda a: a.drop_vars("y"), ArgumentError, "no coordinate y"),
    ("too many", lambda a: a.expand_dims("t"), ArgumentError, "dimensions t besides"),
    ("other dtype", lambda a: a.astype("uint16"), DtypeError, "uint16"),
    ("two channels", lambda a: xr.concat([a, a], "c"), ArgumentError, "2 channels.*target 1"),
    ("a channel's number", lambda a: other(a, c=[1]), ArgumentError, r"channels are labelled"),
    ("a mean of corners", lambda a: a.coarsen(z=2).max(), ArgumentError, r"z = 6\.5"),
    ("chunks", lambda a: a.chunk({"x": 5}), AlignmentError, 'align="rechunk"'),
    (
        "lengths in seconds",
        lambda a: other(a, x=("x", a.x.values, {"units": "second"})),
        ArgumentError,
        "length such as",
    ),
]


@pytest.mark.parametrize(("name", "change", "error", "text"), REFUSED)
def test_what_is_refused(
    ds: wkdask.Dataset, empty: wkdask.Layer, snapshot: Any, name: str, change: Change,
    error: type[WkdaskError], text: str,
) -> None:  # fmt: skip
    array = change(ds["color"].to_xarray())
    before = snapshot(ds.path)
    with pytest.raises(error, match=text):
        array.wkw.store(empty[1])
    assert snapshot(ds.path) == before, name


@pytest.mark.parametrize("coords", ["voxel", "physical"])
@pytest.mark.parametrize("mag", ["2-2-1", "4-4-2"])
@pytest.mark.parametrize(
    "select", [lambda a: a, lambda a: a[:, :1, :1, :1], lambda a: a[0, 2, 2, 2]]
)
def test_voxels_of_another_mag_are_refused(
    ds: wkdask.Dataset, empty: wkdask.Layer, coords: Any, mag: str, select: Change
) -> None:
    array = select(ds["color"].to_xarray(mag, coords=coords))
    with pytest.raises(ArgumentError, match="mag 1"):
        array.wkw.store(empty[1])
    assert not np.asarray(empty[1]).any()


def test_physical_coordinates_in_another_unit(ds: wkdask.Dataset, tmp_path: Path) -> None:
    """A dataset in micrometres takes what is labelled in nanometres."""
    other = wkdask.create(tmp_path / "other", (0.01124, 0.01124, 0.028), "micrometer")
    target = other.add_layer("a", "color", "uint8", bounding_box=BOX).add_mag(1, **SMALL)
    array = ds["color"].to_xarray(coords="physical")
    array.wkw.store(target)
    np.testing.assert_array_equal(np.asarray(target), array)
    wrong = wkdask.create(tmp_path / "wrong", (11, 11, 28))
    target = wrong.add_layer("a", "color", "uint8", bounding_box=BOX).add_mag(1, **SMALL)
    with pytest.raises(ArgumentError, match=r"centres lie at \(i \+ 0\.5\) \* 11 nanometer"):
        array.wkw.store(target)


def test_read_only_and_no_view(ds: wkdask.Dataset, empty: wkdask.Layer) -> None:
    array = ds["color"].to_xarray()
    with pytest.raises(ReadOnlyError):
        array.wkw.store(empty[1].get_view(read_only=True))
    with pytest.raises(ArgumentError, match=r"target is a Layer.*layer\[1\]"):
        array.wkw.store(empty)


def test_chunks_can_be_moved(ds: wkdask.Dataset, empty: wkdask.Layer) -> None:
    array = ds["color"].to_xarray().chunk({"x": 5, "z": 7})
    lazy = array.wkw.store(empty[1], align="rechunk", compute=False)
    assert isinstance(lazy, da.Array)
    assert not np.asarray(empty[1]).any()
    assert int(lazy.sum().compute()) == array.size
    np.testing.assert_array_equal(np.asarray(empty[1]), array)


def test_channels(tmp_path: Path) -> None:
    ds = wkdask.create(tmp_path / "tissue", VOXEL_SIZE)
    views = [ds.add_layer(n, "color", "uint8", 3, BOX).add_mag(1, **SMALL) for n in "ab"]
    voxels = np.random.default_rng(0).integers(0, 250, views[0].shape, np.uint8)
    views[0].get_view().write(voxels)
    array = views[0].to_xarray()
    array[:, 3:].transpose("x", "y", "z", "c").assign_coords(c=[0, 1, 2]).wkw.store(views[1])
    np.testing.assert_array_equal(np.asarray(views[1])[:, 3:], voxels[:, 3:])
    for wrong in (array[1], array[:2], array[::-1].assign_coords(c=[2, 1, 0])):
        with pytest.raises(ArgumentError, match="channel"):
            wrong.wkw.store(views[1])


@st.composite
def stores(draw: st.DrawFn) -> dict[str, Any]:
    """A part of a mag, its form, and where it shall go."""
    mag = draw(st.sampled_from(["1", "2-2-1", "4-4-2"]))
    sizes = BOX.align_with_mag(mag, ceil=True).in_mag(mag).size
    index = []
    for size in sizes:
        start = draw(st.integers(0, size - 1))
        stop = draw(st.integers(start + 1, size))
        step = draw(st.sampled_from([1, 1, 1, 1, 1, 2, -1]))
        kept = slice(start, stop, step) if step > 0 else slice(start, stop)
        index.append((kept, step, draw(st.integers(0, 9)) == 0 and start))
    return {
        "mag": mag,
        "index": index,
        "order": draw(st.permutations(["c", "x", "y", "z"])),
        "target": draw(st.sampled_from([mag, mag, mag, "1", "2-2-1", "4-4-2"])),
        "chunks": draw(st.sampled_from([None, "file", 3, 5, 16, (16, 32, 3), -1])),
        "align": draw(st.sampled_from(["raise", "rechunk"])),
        "coords": draw(st.sampled_from(["voxel", "physical"])),
        "offset": draw(st.sampled_from([0, 0, 0, 1, 4, -2, 0.5])),
        "block_type": draw(st.sampled_from(["raw", "lz4"])),
    }


def expected_of(array: xr.DataArray, view: wkdask.View, coords: Any) -> np.ndarray:
    """What the target holds afterwards, by xarray's own alignment."""
    whole = view.to_xarray(coords=coords).compute()
    missing = [dim for dim in "cxyz" if dim not in array.dims]
    part = array.compute().expand_dims(missing).transpose("c", "x", "y", "z")
    for dim in "xyz":
        exact = whole.get_index(dim).get_indexer(part.get_index(dim), method="nearest")
        part = part.assign_coords({dim: whole[dim].values[exact]})
    return part.reindex_like(whole, fill_value=0).values


@settings(max_examples=20, deadline=None)
@given(stores())
def test_random_stores_are_right_or_refused(
    tmp_path_factory: pytest.TempPathFactory, case: dict[str, Any]
) -> None:
    check_store(tmp_path_factory.mktemp("stores"), case)


@pytest.mark.slow
@settings(max_examples=400, deadline=None)
@given(stores())
def test_400_stores_are_right_or_refused(
    tmp_path_factory: pytest.TempPathFactory, case: dict[str, Any]
) -> None:
    check_store(tmp_path_factory.mktemp("stores"), case)


def check_store(path: Path, case: dict[str, Any]) -> None:
    ds = make(path / "tissue", [case["mag"]])
    target = ds.add_layer("target", "color", "uint8", bounding_box=BOX)
    view = target.add_mag(case["target"], **SMALL, block_type=case["block_type"])
    array = ds["color"].to_xarray(case["mag"], case["chunks"], case["coords"])
    array = array.transpose(*case["order"])
    for dim, (kept, step, single) in zip("xyz", case["index"], strict=True):
        array = array.isel({dim: kept.start if single is not False else kept})
        if step < 0 and dim in array.dims:
            array = array.isel({dim: slice(None, None, -1)})
    if case["offset"]:
        moved = array.x + case["offset"] * (11.24 if case["coords"] == "physical" else 1)
        array = array.assign_coords(x=moved.assign_attrs(array.x.attrs))
    try:
        array.wkw.store(view, align=case["align"])
    except ArgumentError:
        assert not np.asarray(view).any()
        return
    assert case["target"] == case["mag"] or array.wkw.mag == wkdask.Mag(case["target"])
    np.testing.assert_array_equal(np.asarray(view), expected_of(array, view, case["coords"]))


# --- new mags, layers, datasets -----------------------------------------------------------------


def test_a_new_dataset(ds: wkdask.Dataset, tmp_path: Path) -> None:
    array = ds["color"].to_xarray("2-2-1")[:, 3:9]
    written = (array // 2).rename("half").wkw.to_wkw(tmp_path / "new", **SMALL)
    assert (written.mag, written.bounding_box) == (wkdask.Mag("2-2-1"), array.wkw.box)
    new = wkdask.open(tmp_path / "new")
    assert (new.voxel_size, new["half"].category) == (VOXEL_SIZE, "color")
    assert new["half"].bounding_box == array.wkw.box.scaled_by((2, 2, 1))
    np.testing.assert_array_equal(xr.open_dataset(new.path).half, array // 2)


def test_a_new_layer_and_a_new_mag(ds: wkdask.Dataset) -> None:
    array = ds["color"].to_xarray(coords="physical")
    options: dict[str, Any] = {**SMALL, "block_type": "lz4"}
    (array > 99).astype("uint8").wkw.to_wkw(ds, name="bright", category="segmentation", **options)
    assert wkdask.open(ds.path)["bright"].category == "segmentation"
    coarse = array.coarsen(x=2, y=2, z=1).max()
    view = coarse.wkw.to_wkw(ds["bright"], align="rechunk", **options)
    assert list(ds["bright"].mags) == [wkdask.Mag(1), wkdask.Mag("2-2-1")]
    np.testing.assert_array_equal(np.asarray(view), coarse)
    assert view.header.block_type == 2
    with pytest.raises(ExistsError):
        coarse.wkw.to_wkw(ds["bright"], align="rechunk")
    with pytest.raises(ExistsError):
        array.wkw.to_wkw(ds, align="rechunk")


def test_a_layer_grows(ds: wkdask.Dataset) -> None:
    array = ds["color"].to_xarray("4-4-2")
    layer = ds.add_layer("small", "color", "uint8", bounding_box=BoundingBox((0, 0, 0), (8, 8, 8)))
    view = array.wkw.to_wkw(layer, **SMALL)
    assert layer.bounding_box.contains_bbox(array.wkw.box.scaled_by((4, 4, 2)))
    np.testing.assert_array_equal(view.to_xarray().sel(array.coords), array)


NOT_MADE: list[tuple[Change, Any, type[WkdaskError], str]] = [
    (lambda a: a.rename(None), {}, ArgumentError, "no name"),
    (lambda a: a.chunk(x=5), {}, AlignmentError, 'align="rechunk"'),
    (lambda a: a > 3, {}, ArgumentError, "bool"),
    (lambda a: a[:, ::7, ::2], {}, ArgumentError, "the coordinate x = 20"),
    (lambda a: a.drop_attrs(), {}, ArgumentError, "voxel size"),
    (lambda a: a, {"category": "colour"}, ArgumentError, "category is 'colour'"),
    (lambda a: a, {"name": "../out"}, ArgumentError, "layer name is"),
    (lambda a: a, {"block_edge": 5}, ArgumentError, "block_edge"),
    (lambda a: a.assign_coords(x=a.x - 100), {}, BoundsError, "negative"),
]


@pytest.mark.parametrize(("change", "options", "error", "text"), NOT_MADE)
def test_nothing_is_made_when_it_is_refused(
    ds: wkdask.Dataset, tmp_path: Path, change: Change, options: Any, error: Any, text: str
) -> None:
    with pytest.raises(error, match=text):
        change(ds["color"].to_xarray()).wkw.to_wkw(tmp_path / "new", **{**SMALL, **options})
    assert not (tmp_path / "new").exists()


def test_lengths_in_voxels_of_another_size(ds: wkdask.Dataset, snapshot: Any) -> None:
    array = ds["color"].to_xarray(coords="physical")
    before = snapshot(ds.path)
    # By its own voxel size it would be of mag 3.
    lying = array[:, 1:].assign_attrs(voxel_size=[edge / 3 for edge in VOXEL_SIZE], mag="3")
    with pytest.raises(ExistsError, match="has a mag 1 already"):
        lying.wkw.to_wkw(ds["color"], **SMALL)
    with pytest.raises(ArgumentError, match=r"4\.5 voxels of mag 1"):
        lying.assign_coords(x=("x", lying.x.values * 4.5, lying.x.attrs)).wkw.to_wkw(ds["color"])
    assert snapshot(ds.path) == before
    view = lying.wkw.to_wkw(ds, name="truth", **SMALL)
    assert view.mag == wkdask.Mag(1)
    np.testing.assert_array_equal(
        view.read(array.wkw.box.topleft, (60, 40, 30))[:, 1:], array[:, 1:]
    )


def test_all_variables_are_written_or_none(ds: wkdask.Dataset, snapshot: Any) -> None:
    before = snapshot(ds.path)
    part = xr.open_dataset(ds.path, mag=1)
    both = part.rename(color="grey").assign(color=part.color)
    with pytest.raises(ExistsError, match="has a layer 'color' already"):
        both.wkw.to_wkw(ds, **SMALL)
    assert snapshot(ds.path) == before
    with pytest.raises(ArgumentError, match=r"target is a MagView.*store\(\)"):
        part.wkw.to_wkw(ds["color"][1])


def test_a_layer_of_another_dtype(ds: wkdask.Dataset, snapshot: Any) -> None:
    before = snapshot(ds.path)
    array = ds["color"].to_xarray("4-4-2")
    with pytest.raises(DtypeError, match=r"uint16.*'color'.*uint8"):
        array.astype("uint16").assign_coords(z=array.z).wkw.to_wkw(ds["color"], **SMALL)
    assert snapshot(ds.path) == before


def test_a_dataset_there_and_back(ds: wkdask.Dataset, tmp_path: Path) -> None:
    cells = ds.add_layer("cells", "segmentation", "uint32", bounding_box=BOX).add_mag(1, **SMALL)
    cells.get_view().write(np.arange(72_000, dtype=np.uint32).reshape(60, 40, 30))
    part = xr.open_dataset(ds.path, mag=1).isel(y=slice(3, 20))
    new = part.wkw.to_wkw(tmp_path / "new", **SMALL)
    found = xr.open_dataset(new.path)
    assert list(found.data_vars) == ["color", "cells"]
    assert found.cells.attrs["category"] == "segmentation"
    xr.testing.assert_equal(found, part.compute())
    reports = (part[["cells"]] + 1).astype("uint32").wkw.store(new)
    assert list(reports) == ["cells"]
    np.testing.assert_array_equal(np.asarray(new["cells"][1]), part.cells + 1)
