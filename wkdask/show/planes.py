"""Three orthogonal planes of a volume through a point, drawn to scale.

It takes pixels and the places of voxels along each axis, and must not know where they come from. No
other module knows matplotlib.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypedDict

import numpy as np
from numpy.typing import NDArray

from wkdask.errors import extra_error
from wkdask.show.pixels import LABELS_OPACITY, colors_of, grey_limits

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["PLANES", "Axis", "Planes", "draw_labels_over", "draw_planes"]

PLANES = {"xy": ("x", "y"), "zy": ("z", "y"), "xz": ("x", "z")}
"""The planes, each with the axis that goes to the right and the one that goes down."""

Pixels = NDArray[np.generic]
Planes = dict[str, Pixels]
"""Pixels of each plane, by its name; rows go down and columns go right."""

INCHES = 6.0
LEAST_SHARE = 0.25
"""Share of the longest axis that a shorter axis gets at least; below it there is one tick."""


@dataclass(frozen=True, slots=True)
class Axis:
    """Where the voxels of a volume lie along one axis."""

    values: NDArray[np.generic]
    """The coordinate of each voxel."""
    edge: float
    """The edge of a voxel, in the unit of the coordinate."""
    is_centred: bool
    """Whether coordinates are centres of voxels; else they are their first corners."""
    nm: float | None
    """The unit of the coordinate in nm, if known."""
    unit: str
    """What the coordinate counts, for the title."""
    point: int
    """The voxel where the planes meet, counted from the first."""

    @property
    def scale(self) -> float:
        """The unit of the coordinate in nm, or 1 where it is not known."""
        return 1.0 if self.nm is None else self.nm

    @property
    def length(self) -> float:
        """The length of all voxels, in nm or, where that is not known, in the unit."""
        return len(self.values) * self.edge * self.scale

    @property
    def ends(self) -> tuple[float, float]:
        """The outer borders of the first and of the last voxel."""
        low, high = float(self.values.min()), float(self.values.max())
        shift = self.edge / 2 if self.is_centred else 0
        ends = (low - shift, high - shift + self.edge)
        return ends if self.values[-1] >= self.values[0] else ends[::-1]

    @property
    def place(self) -> float:
        """The coordinate of the centre of the voxel where the planes meet."""
        value = float(self.values[self.point])
        return value if self.is_centred else value + self.edge / 2


class _Look(TypedDict, total=False):
    cmap: str
    vmin: float
    vmax: float


def draw_planes(
    axes: Mapping[str, Axis],
    planes: Planes,
    *,
    are_ids: bool = False,
    vmin: float | None = None,
    vmax: float | None = None,
) -> dict[str, Axes]:
    """Draw three planes in a new figure, with a scale bar if lengths are known.

    Parameters
    ----------
    axes
        The axes `x`, `y` and `z`.
    planes
        Their pixels; fewer than voxels are stretched.
    are_ids
        Whether each value gets a colour of its own, instead of a grey value.
    vmin, vmax
        What is black and what is white.
    """
    drawn = _figure(axes)
    look = _Look() if are_ids else _limits(planes, vmin, vmax)
    for name, pixels in planes.items():
        _paint(drawn[name], axes, name, colors_of(pixels) if are_ids else pixels, look)
        _mark(drawn[name], axes, name, "white" if are_ids else "orange")
    if axes["x"].nm is not None:
        _draw_bar(drawn["xy"], axes["x"])
    return drawn


def draw_labels_over(drawn: Mapping[str, Axes], axes: Mapping[str, Axis], ids: Planes) -> None:
    """Draw ids over planes, half transparent, and not at all where the id is 0."""
    for name, ax in drawn.items():
        limits = ax.axis()
        opacity = np.where(ids[name] == 0, 0, LABELS_OPACITY).astype(np.uint8)
        _paint(ax, axes, name, np.dstack([colors_of(ids[name]), opacity]), _Look())
        ax.axis(limits)


def _figure(axes: Mapping[str, Axis]) -> dict[str, Axes]:
    """Return the axes of a new figure; however thin the volume is, there is room for numbers."""
    try:
        import matplotlib.pyplot as plt
    except ImportError:
        raise extra_error("matplotlib", "plot") from None
    least = _least_length(axes)
    across, down, deep = (max(axes[dim].length, least) for dim in "xyz")
    scale = INCHES / max(across + deep, down + deep)
    size = (across + deep) * scale + 1.5, (down + deep) * scale + 1.2
    figure = plt.figure(figsize=size, layout="constrained")
    grid = figure.add_gridspec(2, 2, width_ratios=(across, deep), height_ratios=(down, deep))
    places = {"xy": grid[0, 0], "zy": grid[0, 1], "xz": grid[1, 0]}
    return {name: figure.add_subplot(places[name]) for name in PLANES}


def _least_length(axes: Mapping[str, Axis]) -> float:
    """Return the room that an axis gets at least; a shorter one has a single tick."""
    return LEAST_SHARE * max(axis.length for axis in axes.values())


def _paint(ax: Axes, axes: Mapping[str, Axis], plane: str, pixels: Pixels, look: _Look) -> None:
    right, down = (axes[dim] for dim in PLANES[plane])
    first, last = down.ends
    extent, aspect = (*right.ends, last, first), down.scale / right.scale
    ax.imshow(pixels, extent=extent, aspect=aspect, interpolation="nearest", **look)


def _mark(ax: Axes, axes: Mapping[str, Axis], plane: str, color: str) -> None:
    """Draw the lines of the other planes, and name the axes."""
    right, down = PLANES[plane]
    ax.axvline(axes[right].place, color=color, linewidth=0.7, alpha=0.7)
    ax.axhline(axes[down].place, color=color, linewidth=0.7, alpha=0.7)
    least = _least_length(axes)
    for axis, dim in ((ax.xaxis, right), (ax.yaxis, down)):
        axis.set_label_text(f"{dim} ({axes[dim].unit})")
        if axes[dim].length < least:
            axis.set_ticks([float(axes[dim].values[axes[dim].point])])


def _draw_bar(ax: Axes, x_axis: Axis) -> None:
    """Draw a bar of a round length, at most a third of the axis."""
    length_nm = _round_down(x_axis.length / 3)
    (left, right), (bottom, top) = ax.get_xlim(), ax.get_ylim()
    x, y = left + 0.05 * (right - left), bottom + 0.06 * (top - bottom)
    end = x + math.copysign(length_nm / x_axis.scale, right - left)
    for width, color in ((6, "black"), (3, "white")):
        ax.plot([x, end], [y, y], color=color, linewidth=width, solid_capstyle="butt")
    ax.annotate(
        f"{length_nm:,.0f} nm" if length_nm >= 1 else f"{length_nm:g} nm",
        ((x + end) / 2, y), (0, 5), textcoords="offset points",
        ha="center", color="white", fontsize=9,
        bbox={"facecolor": "black", "alpha": 0.5, "edgecolor": "none", "pad": 1.5},
    )  # fmt: skip


def _limits(planes: Planes, vmin: float | None, vmax: float | None) -> _Look:
    """Return how grey values are drawn."""
    low, high = grey_limits(list(planes.values()))
    return _Look(
        cmap="gray", vmin=low if vmin is None else vmin, vmax=high if vmax is None else vmax
    )


def _round_down(length: float) -> float:
    """Return the largest of 1, 2, 5, 10 and so on that is no longer."""
    power = 10.0 ** math.floor(math.log10(length))
    return max(step for step in (1, 2, 5, 10) if step * power <= length) * power
