"""Planes as pixels: which mag is read, where pixels lie, colours."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import wkdask
from wkdask import BoundingBox
from wkdask.errors import ArgumentError, NameLookupError
from wkdask.show.pictures import draw_plane, window_around
from wkdask.show.pixels import blend, colors_of, grey_limits, greys, png
from wkdask.show.shown import ShownLayer, ShownMag, plane_axes, read_plane

BOX = BoundingBox((10, 20, 3), (300, 200, 60))


@pytest.fixture
def dataset(tmp_path: Path) -> wkdask.Dataset:
    """A dataset whose voxels tell where they are."""
    ds = wkdask.create(tmp_path / "tissue", voxel_size=(4, 4, 16))
    rng = np.random.default_rng(1)
    color = ds.add_layer("color", "color", "uint8", bounding_box=BOX)
    color.add_mag(1, blocks_per_file_edge=4).write(
        rng.integers(1, 255, BOX.size, np.uint8), BOX.topleft
    )
    color.downsample(coarsest_mag="4-4-1")
    cells = ds.add_layer("cells", "segmentation", "uint64", bounding_box=BOX)
    cells.add_mag(1, blocks_per_file_edge=4).write(
        rng.integers(0, 2**63, BOX.size, np.uint64), BOX.topleft
    )
    return ds


def layer_of(size: tuple[int, int, int], *factors: tuple[int, int, int]) -> tuple[ShownLayer, list]:
    """Return a layer of zeros, and the list of what is read of it."""
    regions: list[Any] = []

    def read(region: Any) -> np.ndarray:
        regions.append(region)
        return np.zeros((1, *map(len, region)), np.uint8)

    box = BoundingBox((0, 0, 0), size)
    mags = [ShownMag(f, box.align_with_mag(f, ceil=True).in_mag(f), read) for f in factors]
    return ShownLayer("color", "color", "uint8", 1, box, mags), regions


@pytest.mark.parametrize("axis", "xyz")
def test_a_plane_is_what_numpy_has(dataset: wkdask.Dataset, axis: str) -> None:
    layer = dataset["color"].shown()
    voxels = dataset["color"][1].get_view().read()
    at = 25
    number, (right, down) = "xyz".index(axis), plane_axes(axis)
    plane = read_plane(layer, axis, at, window=layer.box)
    expected = np.take(voxels[0], at - BOX.topleft[number], axis=number)
    if right < down:
        expected = expected.T
    # Borders of the coarsest mag are not those of the box, but of mag 1 they are.
    np.testing.assert_array_equal(plane.pixels[0], expected)
    assert plane.start == (BOX.topleft[right], BOX.topleft[down])
    assert plane.steps == (1, 1)


@pytest.mark.parametrize(
    ("most", "factors", "steps"),
    [(1000, 1, (1, 1)), (500, 2, (2, 2)), (250, 4, (4, 4)), (100, 4, (12, 12))],
)
def test_the_finest_mag_that_fits_is_read(most: int, factors: int, steps: tuple[int, int]) -> None:
    layer, regions = layer_of((1000, 1000, 50), (1, 1, 1), (2, 2, 1), (4, 4, 2))
    plane = read_plane(layer, "z", 11, window=layer.box, most=most)
    assert plane.steps == steps
    assert max(plane.pixels.shape) <= most
    assert regions[0][2] == range(11 // max(1, factors // 2), 11 // max(1, factors // 2) + 1)


@pytest.mark.parametrize("axis", "xyz")
def test_a_picture_is_to_scale(dataset: wkdask.Dataset, axis: str) -> None:
    layers = [dataset["color"].shown(), dataset["cells"].shown()]
    colors = draw_plane(layers, axis)
    right, down = plane_axes(axis)
    nm = (4, 4, 16)
    size = [BOX.size[i] * nm[i] / 4 for i in (down, right)]
    assert list(colors.shape) == [*size, 3]


def test_labels_lie_over_the_same_voxels(dataset: wkdask.Dataset) -> None:
    color, cells = dataset["color"], dataset["cells"]
    window = BoundingBox((40, 50, 0), (30, 20, 60))
    colors = draw_plane([color.shown(), cells.shown()], "z", 30, window=window)
    grey = color[1].get_view().read((30, 30, 27), (30, 20, 1))[0, :, :, 0].T
    ids = cells[1].get_view().read((30, 30, 27), (30, 20, 1))[0, :, :, 0].T
    np.testing.assert_array_equal(colors, blend(greys(grey[None], 0, 255), ids))


def test_only_a_window_is_read() -> None:
    layer, regions = layer_of((10**6, 10**6, 10**6), (1, 1, 1))
    window = window_around(layer, layer.centre, 512)
    assert window.size == (512, 512, 512)
    draw_plane([layer], "y", window=window)
    assert [len(axis) for axis in regions[0]] == [512, 1, 512]


def test_a_position_outside(dataset: wkdask.Dataset) -> None:
    with pytest.raises(ArgumentError, match="z is 63, but layer 'color' reaches from 3 to 62"):
        draw_plane([dataset["color"].shown()], "z", 63)


def test_limits_of_values() -> None:
    assert grey_limits([np.array([3, 4], np.uint8)]) == (0, 255)
    assert grey_limits([np.array([np.nan, np.inf], np.float32)]) == (0, 1)
    assert grey_limits([np.array([5, 5], np.uint16)]) == (5, 6)
    low, high = grey_limits([np.arange(1001, dtype=np.float64)])
    assert (low, high) == (5, 995)


def test_three_channels_of_bytes_are_colours() -> None:
    pixels = np.arange(12, dtype=np.uint8).reshape(3, 2, 2)
    np.testing.assert_array_equal(greys(pixels, 0, 255), np.moveaxis(pixels, 0, -1))
    np.testing.assert_array_equal(greys(pixels[:1], 0, 255)[..., 1], pixels[0])


@given(st.lists(st.integers(0, 2**64 - 1), min_size=1, max_size=50))
def test_colours_of_ids(ids: list[int]) -> None:
    array = np.array(ids, np.uint64)
    colors = colors_of(array)
    assert (colors[array == 0] == 0).all()
    np.testing.assert_array_equal(colors, colors_of(array[::-1])[::-1])


def test_png_there_and_back() -> None:
    image = pytest.importorskip("PIL.Image")
    colors = np.random.default_rng(0).integers(0, 255, (5, 7, 3), np.uint8)
    np.testing.assert_array_equal(np.asarray(image.open(io.BytesIO(png(colors)))), colors)


class TestPlots:
    @pytest.fixture(autouse=True)
    def _no_window(self, monkeypatch: pytest.MonkeyPatch) -> None:
        plt = pytest.importorskip("matplotlib.pyplot")
        plt.switch_backend("agg")

    def test_view(self, dataset: wkdask.Dataset) -> None:
        view = dataset["color"][1].get_view((40, 50, 10), (30, 20, 10))
        axes = view.plot(z=12)
        expected = view.read((0, 0, 2), (30, 20, 1))[0, :, :, 0].T
        np.testing.assert_array_equal(axes["xy"].images[0].get_array(), expected)

    def test_layer_with_labels(self, dataset: wkdask.Dataset) -> None:
        axes = dataset["color"].plot(x=100, labels=dataset["cells"])
        assert [len(each.images) for each in axes.values()] == [2, 2, 2]

    def test_layer_takes_a_mag_that_fits(
        self, dataset: wkdask.Dataset, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("wkdask.dataset.dataset._MOST_PLOTTED", 160)
        assert dataset["color"].to_plot().mag == wkdask.Mag("2-2-1")
        axes = dataset["color"].plot(mag=1)
        assert axes["xy"].images[0].get_array().shape == (200, 300)

    def test_no_mags(self, tmp_path: Path) -> None:
        ds = wkdask.create(tmp_path / "other", voxel_size=(8, 8, 8))
        with pytest.raises(NameLookupError, match="no mag"):
            ds.add_layer("color", "color", "uint8").plot()
