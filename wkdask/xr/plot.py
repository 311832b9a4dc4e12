"""Three orthogonal planes through a point, drawn to scale; only this module knows matplotlib."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from wkdask.errors import ArgumentError, extra_error
from wkdask.xr.coordinates import SPATIAL, Grid, edge_of_voxel, grid_of, is_physical

if TYPE_CHECKING:
    import xarray as xr

__all__ = ["PLANES", "colors_of", "plot_planes"]

PLANES = {"xy": ("x", "y"), "zy": ("z", "y"), "xz": ("x", "z")}
"""The planes, with the axis that goes to the right and the one that goes down."""
MAX_PIXELS = 1024
"""Of each plane and axis; beyond that, voxels are left out and not read."""
INCHES = 6.0
LEAST_SHARE = 0.25
"""Of the longest axis: the room, and the numbers more than one, that a shorter one gets."""
LABELS_OPACITY = 90
"""Of 255, of ids that are drawn over grey values."""


def plot_planes(
    array: xr.DataArray,
    at: Mapping[str, float],
    channel: int = 0,
    vmin: float | None = None,
    vmax: float | None = None,
    labels: xr.DataArray | None = None,
) -> dict[str, Any]:
    """Draw the planes of an array through a point; see `wkw.plot`."""
    plt = _pyplot()
    if channel not in range(array.sizes.get("c", 1)):
        raise ArgumentError(f"channel is {channel}, but the array has {array.sizes.get('c', 1)}.")
    scene = _scene(array, at, channel)
    over = None if labels is None else _scene_over(scene, labels, channel)
    planes = {name: scene.pixels(name) for name in PLANES}
    if array.attrs.get("category") == "segmentation":
        planes, look = {name: colors_of(ids) for name, ids in planes.items()}, {}
    else:
        look = {"cmap": "gray", **_limits(planes, vmin, vmax)}
    sizes = [scene.size(dim) for dim in SPATIAL]
    # However thin the array is, its planes get room for their numbers and titles.
    across, down, deep = (max(size, LEAST_SHARE * max(sizes)) for size in sizes)
    scale = INCHES / max(across + deep, down + deep)
    figure = plt.figure(
        figsize=((across + deep) * scale + 1.5, (down + deep) * scale + 1.2), layout="constrained"
    )
    grid = figure.add_gridspec(2, 2, width_ratios=(across, deep), height_ratios=(down, deep))
    places = {"xy": grid[0, 0], "zy": grid[0, 1], "xz": grid[1, 0]}
    axes = {name: figure.add_subplot(places[name]) for name in PLANES}
    for name, pixels in planes.items():
        scene.draw(axes[name], name, pixels, look)
    if over is not None:
        for name, ax in axes.items():
            over.draw_over(ax, name)
    scene.draw_bar(axes["xy"])
    return axes


def colors_of(ids: NDArray[Any]) -> NDArray[np.uint8]:
    """Return a colour for each id, the same everywhere; 0 is black.

    Parameters
    ----------
    ids
        Whole numbers, of any shape.

    Returns
    -------
    ndarray
        Red, green and blue as a last axis.

    Examples
    --------
    >>> colors_of(np.array([[0, 7]], dtype=np.uint32)).shape
    (1, 2, 3)
    """
    # In steps of the golden ratio and its like, neighbouring ids get colours far apart. The
    # remainder keeps ids of 64 bits within what a float holds exactly.
    small = (ids.astype(np.uint64) % np.uint64(2**32)).astype(np.float64)
    hue, saturation, value = (small * step % 1 for step in (0.618034, 0.754878, 0.569840))
    parts = [_hue_to_part(hue + shift) for shift in (0, 2 / 3, 1 / 3)]
    strength = 0.35 + 0.4 * saturation
    bright = (0.6 + 0.4 * value) * (ids != 0)
    colors = np.stack([bright * (1 - strength * (1 - part)) for part in parts], axis=-1)
    return (colors * 255).astype(np.uint8)


@dataclass(frozen=True, slots=True)
class _Scene:
    volume: xr.DataArray
    """One channel; dimensions that were selected away have a coordinate still."""
    grid: Grid
    point: dict[str, int]
    """Where the planes meet, counted in voxels of the array."""

    def pixels(self, plane: str) -> NDArray[Any]:
        """Read a plane, with rows that go down and columns that go right."""
        right, down = PLANES[plane]
        index: dict[Any, Any] = dict(self.point)
        index |= {dim: slice(None, None, self.step(dim)) for dim in (right, down)}
        flat = self.volume.isel({dim: index[dim] for dim in self.volume.dims}).compute()
        whole = flat.expand_dims([dim for dim in (right, down) if dim not in flat.dims])
        pixels: NDArray[Any] = whole.transpose(down, right).values
        return pixels

    def step(self, dim: str) -> int:
        return -(-len(self.values(dim)) // MAX_PIXELS)

    def values(self, dim: str) -> NDArray[Any]:
        return np.atleast_1d(self.volume[dim].values)

    def unit(self, dim: str) -> float:
        """Return how many nm a coordinate counts in; 1 if the voxel size is not known."""
        if self.grid.voxel_size is None:
            return 1.0
        return self.grid.spacing_nm[SPATIAL.index(dim)] / self.edge(dim)

    def edge(self, dim: str) -> float:
        """Return the edge of a voxel in what the coordinate counts."""
        factor = self.grid.mag.factors[SPATIAL.index(dim)]
        return factor * edge_of_voxel(self.volume, dim, self.grid)

    def size(self, dim: str) -> float:
        return len(self.values(dim)) * self.edge(dim) * self.unit(dim)

    def ends(self, dim: str) -> tuple[float, float]:
        """Return the borders of the first and of the last voxel."""
        values, edge = self.values(dim), self.edge(dim)
        low, high = float(values.min()), float(values.max())
        shift = edge / 2 if is_physical(self.volume, dim) else 0
        ends = (low - shift, high - shift + edge)
        return ends if values[-1] >= values[0] else ends[::-1]

    def draw(self, ax: Any, plane: str, pixels: NDArray[Any], look: dict[str, Any]) -> None:
        right, down = PLANES[plane]
        self.paint(ax, plane, pixels, look)
        for dim, line in ((right, ax.axvline), (down, ax.axhline)):
            line(self.place(dim), color="orange" if look else "white", linewidth=0.7, alpha=0.7)
        for axis, dim in ((ax.xaxis, right), (ax.yaxis, down)):
            if self.size(dim) < LEAST_SHARE * max(map(self.size, SPATIAL)):
                axis.set_ticks([self.values(dim)[self.point[dim]]])
        ax.set_xlabel(self.title(right))
        ax.set_ylabel(self.title(down))

    def draw_over(self, ax: Any, plane: str) -> None:
        """Draw ids half transparent, and where there is none not at all."""
        limits = ax.axis()
        ids = self.pixels(plane)
        opacity = np.where(ids == 0, 0, LABELS_OPACITY).astype(np.uint8)
        self.paint(ax, plane, np.dstack([colors_of(ids), opacity]), {})
        ax.axis(limits)

    def paint(self, ax: Any, plane: str, pixels: NDArray[Any], look: dict[str, Any]) -> None:
        right, down = PLANES[plane]
        first, last = self.ends(down)
        ax.imshow(
            pixels,
            extent=(*self.ends(right), last, first),
            aspect=self.unit(down) / self.unit(right),
            interpolation="nearest",
            **look,
        )

    def place(self, dim: str) -> float:
        value = float(self.values(dim)[self.point[dim]])
        return value if is_physical(self.volume, dim) else value + self.edge(dim) / 2

    def title(self, dim: str) -> str:
        return f"{dim} ({_counted(self.volume, dim)})"

    def draw_bar(self, ax: Any) -> None:
        """Draw a bar of a round length, if lengths are known."""
        if self.grid.voxel_size is None:
            return
        length_nm = _round_down(self.size("x") / 3)
        (left, right), (bottom, top) = ax.get_xlim(), ax.get_ylim()
        x, y = left + 0.05 * (right - left), bottom + 0.06 * (top - bottom)
        end = x + math.copysign(length_nm / self.unit("x"), right - left)
        for width, color in ((6, "black"), (3, "white")):
            ax.plot([x, end], [y, y], color=color, linewidth=width, solid_capstyle="butt")
        ax.annotate(
            f"{length_nm:,.0f} nm" if length_nm >= 1 else f"{length_nm:g} nm",
            ((x + end) / 2, y), (0, 5), textcoords="offset points",
            ha="center", color="white", fontsize=9,
            bbox={"facecolor": "black", "alpha": 0.5, "edgecolor": "none", "pad": 1.5},
        )  # fmt: skip


def _scene(array: xr.DataArray, at: Mapping[str, float], channel: int) -> _Scene:
    volume = _volume(array, channel if array.sizes.get("c") != 1 else 0)
    scene = _Scene(volume, grid_of(array), {})
    for dim in SPATIAL:
        scene.point[dim] = _position(volume, dim, at.get(dim), scene.edge(dim))
    return scene


def _scene_over(scene: _Scene, labels: xr.DataArray, channel: int) -> _Scene:
    """Return the same planes of other voxels."""
    counts, wanted = ({_counted(a, dim) for dim in SPATIAL} for a in (labels, scene.volume))
    if counts != wanted:
        raise ArgumentError(
            f"labels count in {', '.join(counts)}, but the array in {', '.join(wanted)}: open both "
            "with the same coords=."
        )
    return _scene(labels, {dim: scene.place(dim) for dim in SPATIAL}, channel)


def _counted(array: xr.DataArray, dim: str) -> str:
    """Return what a coordinate counts."""
    known = array[dim].attrs if dim in array.coords else {}
    return str(known.get("units", "voxels of mag 1"))


def _volume(array: xr.DataArray, channel: int) -> xr.DataArray:
    """Return one channel of what can be plotted."""
    volume = array.isel(c=channel) if "c" in array.dims else array
    others = [dim for dim in volume.dims if dim not in SPATIAL]
    if others or any(dim not in volume.coords for dim in SPATIAL):
        raise ArgumentError(
            f"the array has dimensions {array.dims}, but a plot needs x, y and z with coordinates, "
            "and no others besides c."
        )
    if 0 in volume.shape:
        raise ArgumentError(f"the array has shape {volume.shape}: there is nothing to plot.")
    return volume


def _position(volume: xr.DataArray, dim: str, at: float | None, edge: float) -> int:
    """Return the voxel at a coordinate, or the one in the middle."""
    values = np.atleast_1d(volume[dim].values)
    if at is None:
        return len(values) // 2
    firsts = values - (edge / 2 if is_physical(volume, dim) else 0)
    inside = (firsts <= at) & (at < firsts + edge)
    if not inside.any():
        raise ArgumentError(
            f"{dim} is {at}, but the array reaches from {values.min():g} to {values.max():g}."
        )
    return int(inside.argmax())


def _limits(
    planes: Mapping[str, NDArray[Any]], vmin: float | None, vmax: float | None
) -> dict[str, float]:
    """Return what is black and white: all of a byte or a bool, or else what most pixels span."""
    pixels = np.concatenate([plane.ravel() for plane in planes.values()])
    if pixels.dtype in (np.bool_, np.uint8):
        low, high = 0, np.iinfo(np.uint8).max if pixels.dtype == np.uint8 else 1
    else:
        low, high = np.nanpercentile(pixels, (0.5, 99.5))
    return {"vmin": low if vmin is None else vmin, "vmax": high if vmax is None else vmax}


def _hue_to_part(hue: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return how much of one primary colour a hue has, from 0 to 1."""
    part: NDArray[np.float64] = np.clip(np.abs(hue % 1 * 6 - 3) - 1, 0, 1)
    return part


def _round_down(length: float) -> float:
    """Return the largest of 1, 2, 5, 10 and so on that is no longer."""
    power = 10.0 ** math.floor(math.log10(length))
    return max(step for step in (1, 2, 5, 10) if step * power <= length) * power


def _pyplot() -> Any:
    try:
        import matplotlib.pyplot as plt
    except ImportError:
        raise extra_error("matplotlib", "plot") from None
    return plt
