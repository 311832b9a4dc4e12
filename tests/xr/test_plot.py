"""`array.wkw.plot`: planes in the right place and to scale, and no more read than is drawn."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Any

import matplotlib as mpl
import numpy as np
import pytest
import xarray as xr

import wkdask
from wkdask.errors import ArgumentError, MissingExtraError
from wkdask.show.pixels import LABELS_OPACITY, colors_of
from wkdask.xr import plot as plotting

mpl.use("Agg")

BOX = wkdask.BoundingBox((20, 40, 5), (60, 40, 30))


@pytest.fixture(autouse=True)
def closed() -> Iterator[None]:
    yield
    import matplotlib.pyplot as plt

    plt.close("all")


@pytest.fixture
def ds(tissue: wkdask.Dataset) -> wkdask.Dataset:
    for name, category, dtype in (("grey", "color", "uint8"), ("ids", "segmentation", "uint64")):
        layer = tissue.add_layer(name, category, dtype, bounding_box=BOX)
        view = layer.add_mag(1, block_edge=8, blocks_per_file_edge=8, block_type="raw").get_view()
        view.write(np.random.default_rng(0).integers(0, 250, view.shape).astype(dtype))
    return tissue


def image(axes: dict[str, Any], plane: str) -> np.ndarray:
    return np.asarray(axes[plane].images[0].get_array())


@pytest.mark.parametrize("chunks", [None, "file"], ids=["lazy", "dask"])
def test_planes_through_a_point(ds: wkdask.Dataset, read_counts: list[int], chunks: Any) -> None:
    voxels = np.asarray(ds["grey"][1])[0]
    read_counts.clear()
    axes = ds["grey"].to_xarray(chunks=chunks).wkw.plot(x=30, y=45, z=7)
    assert sum(read_counts) == 60 * 40 + 30 * 40 + 60 * 30, "the planes and nothing else"
    np.testing.assert_array_equal(image(axes, "xy"), voxels[:, :, 2].T)
    np.testing.assert_array_equal(image(axes, "zy"), voxels[10])
    np.testing.assert_array_equal(image(axes, "xz"), voxels[:, 5].T)
    assert axes["xy"].images[0].get_extent() == [20, 80, 80, 40]
    assert axes["zy"].images[0].get_extent() == [5, 35, 80, 40]


def test_planes_are_to_scale(ds: wkdask.Dataset) -> None:
    axes = ds["grey"].to_xarray().wkw.plot()
    assert axes["xy"].get_aspect() == 1
    assert axes["xz"].get_aspect() == pytest.approx(28 / 11.24)
    physical = ds["grey"].to_xarray(coords="physical").wkw.plot()
    assert physical["xz"].get_aspect() == 1
    np.testing.assert_allclose(physical["xy"].images[0].get_extent(),
                               np.array([20, 80, 80, 40]) * 11.24)  # fmt: skip
    assert physical["xy"].get_xlabel() == "x (nanometer)"


@pytest.mark.parametrize("coords", ["voxel", "physical"])
def test_the_scale_bar(ds: wkdask.Dataset, coords: Any) -> None:
    """60 voxels are 674.4 nm; the bar is the largest round length below a third."""
    ax = ds["grey"].to_xarray(coords=coords).wkw.plot()["xy"]
    (text,) = ax.texts
    assert text.get_text() == "200 nm"
    x = ax.lines[-1].get_xdata()
    assert x[1] - x[0] == pytest.approx(200 if coords == "physical" else 200 / 11.24)


def test_ids_have_colours(ds: wkdask.Dataset) -> None:
    axes = ds["ids"].to_xarray().wkw.plot()
    ids = np.asarray(ds["ids"][1])[0, :, :, 15].T
    np.testing.assert_array_equal(image(axes, "xy"), colors_of(ids))


def test_colours() -> None:
    ids = np.arange(1000, dtype=np.uint64)
    colors = colors_of(ids)
    assert (colors.shape, colors.dtype) == ((1000, 3), np.uint8)
    assert not colors[0].any()
    assert len(np.unique(colors[1:], axis=0)) > 950
    assert colors[1:].max(axis=1).min() > 100, "none but 0 is dark"
    np.testing.assert_array_equal(colors_of(np.array([2**64 - 1], np.uint64)).shape, (1, 3))
    np.testing.assert_array_equal(colors_of(ids.astype(np.int32)), colors)


def test_what_was_selected_away_is_one_voxel(ds: wkdask.Dataset) -> None:
    for array in (ds["grey"].to_xarray(chunks=None), ds["grey"].to_xarray()):
        axes = array.sel(z=9).isel(c=0).wkw.plot()
        assert image(axes, "zy").shape == (40, 1)
        assert axes["zy"].get_xticks().tolist() == [9], "numbers of a thin plane do not overlap"
        np.testing.assert_array_equal(image(axes, "xy"), array.sel(z=9)[0].T)


def test_large_planes_are_thinned(
    ds: wkdask.Dataset, read_counts: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(plotting, "MAX_PIXELS", 20)
    axes = ds["grey"].to_xarray(chunks=None).wkw.plot()
    assert sum(read_counts) == 20 * 20 + 15 * 20 + 20 * 15
    assert image(axes, "xy").shape == (20, 20)
    assert axes["xy"].images[0].get_extent() == [20, 80, 80, 40]


def test_limits(ds: wkdask.Dataset) -> None:
    array = ds["grey"].to_xarray()
    assert array.wkw.plot()["xy"].images[0].get_clim() == (0, 255)
    assert array.wkw.plot(vmin=3, vmax=99)["xy"].images[0].get_clim() == (3, 99)
    low, high = (array.astype(float) / 7).wkw.plot()["xy"].images[0].get_clim()
    assert 0 <= low < 1
    assert 30 < high < 36
    assert (array > 99).wkw.plot()["xy"].images[0].get_clim() == (0, 1)


@pytest.mark.parametrize(
    ("change", "at", "text"),
    [
        (lambda a: a, {"x": 80.0}, "x is 80.0, but the array reaches from 20 to 79"),
        (lambda a: a, {"z": 4}, "z is 4"),
        (lambda a: a.expand_dims("t"), {}, "no others besides c"),
        (lambda a: a.drop_vars("y"), {}, "with coordinates"),
        (lambda a: a[:, :0], {}, "nothing to plot"),
        (lambda a: a, {"channel": 1}, "channel is 1, but the array has 1"),
    ],
)
def test_what_can_not_be_drawn(ds: wkdask.Dataset, change: Any, at: Any, text: str) -> None:
    with pytest.raises(ArgumentError, match=text):
        change(ds["grey"].to_xarray()).wkw.plot(**at)


def test_a_point_between_corners(ds: wkdask.Dataset) -> None:
    voxels = np.asarray(ds["grey"][1])[0]
    axes = ds["grey"].to_xarray().wkw.plot(z=7.9, x=79.5)
    np.testing.assert_array_equal(image(axes, "xy"), voxels[:, :, 2].T)
    np.testing.assert_array_equal(image(axes, "zy"), voxels[59])
    backwards = ds["grey"].to_xarray()[:, ::-1].wkw.plot(x=30)
    np.testing.assert_array_equal(image(backwards, "zy"), voxels[10])
    assert backwards["xy"].images[0].get_extent() == [80, 20, 80, 40]


def test_without_voxel_size(ds: wkdask.Dataset) -> None:
    axes = wkdask.open_mag(ds["grey"][1].path).to_xarray().wkw.plot()
    assert (len(axes["xy"].texts), axes["xz"].get_aspect()) == (0, 1)


def test_without_matplotlib(ds: wkdask.Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(MissingExtraError, match=r'matplotlib is not .*"wkdask\[plot\]"'):
        ds["grey"].to_xarray().wkw.plot()


def test_a_dataset_is_drawn_with_its_labels(ds: wkdask.Dataset) -> None:
    opened = xr.open_dataset(ds.path)
    axes = opened.wkw.plot(z=7)
    grey, over = (np.asarray(drawn.get_array()) for drawn in axes["xy"].images)
    ids = opened.ids.sel(z=7)[0].values.T
    np.testing.assert_array_equal(grey, opened.grey.sel(z=7)[0].values.T)
    np.testing.assert_array_equal(over[..., :3], colors_of(ids))
    assert (over[..., 3] == np.where(ids == 0, 0, LABELS_OPACITY)).all()
    assert axes["xy"].images[0].get_extent() == axes["xy"].images[1].get_extent()
    assert len(opened[["ids"]].wkw.plot()["xy"].images) == 1
    # Labels of a part: the same planes, and the view stays that of the grey values.
    part = opened.ids.isel(x=slice(20, 60), z=slice(0, 20))
    axes = opened.grey.wkw.plot(labels=part)
    z = int(opened.z[len(opened.z) // 2])
    over = np.asarray(axes["xy"].images[1].get_array())
    np.testing.assert_array_equal(over[..., :3], colors_of(part.sel(z=z)[0].values.T))
    assert axes["xy"].get_xlim() == (20, 80)
    with pytest.raises(ArgumentError, match="labels count in nanometer"):
        opened.grey.wkw.plot(labels=xr.open_dataset(ds.path, coords="physical").ids)
    assert len(opened[["grey"]].wkw.plot()["xy"].images) == 1
