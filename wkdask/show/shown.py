"""Layers as they are shown: a few facts, and for each mag a function that reads voxels.

It must not know where voxels come from. Positions are voxels of mag 1, unless said otherwise.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from numpy.typing import NDArray

from wkdask.geometry import BoundingBox, Vec3

__all__ = ["AXES", "Plane", "ShownLayer", "ShownMag", "as_rows", "plane_axes", "read_plane"]

AXES = "xyz"
_RIGHT_DOWN = {"z": ("x", "y"), "x": ("z", "y"), "y": ("x", "z")}

Pixels = NDArray[Any]


def plane_axes(axis: str) -> tuple[int, int]:
    """Return which axes of a plane across `axis` go to the right and down, as numbers."""
    right, down = _RIGHT_DOWN[axis]
    return AXES.index(right), AXES.index(down)


@dataclass(frozen=True, slots=True)
class ShownMag:
    """One mag of a layer."""

    factors: Vec3
    """Voxels of mag 1 along each edge of a voxel."""
    box: BoundingBox
    """Where there are voxels, in voxels of this mag."""
    read: Callable[[tuple[range, range, range]], Pixels]
    """Returns the voxels `(c, x, y, z)` at positions of this mag."""


@dataclass(frozen=True, slots=True)
class ShownLayer:
    """A layer and its mags."""

    name: str
    category: str
    """`"color"` or `"segmentation"`."""
    dtype: str
    num_channels: int
    box: BoundingBox
    """Where there are voxels."""
    mags: Sequence[ShownMag]
    """From fine to coarse; at least one."""
    voxel_size_nm: tuple[float, float, float] | None = None
    """Edges of a voxel of mag 1, if known."""

    @property
    def is_segmentation(self) -> bool:
        """Whether values are ids."""
        return self.category == "segmentation"

    @property
    def centre(self) -> tuple[float, float, float]:
        """The middle of the box."""
        x, y, z = (a + n / 2 for a, n in zip(self.box.topleft, self.box.size, strict=True))
        return x, y, z


@dataclass(frozen=True, slots=True)
class Plane:
    """A plane of a layer, or a part of it."""

    pixels: Pixels
    """Values `(c, rows, columns)`; rows go down."""
    start: tuple[int, int]
    """Where the first pixel begins, along the axes to the right and down."""
    steps: tuple[int, int]
    """Voxels of mag 1 from a pixel to the next, to the right and down."""


def read_plane(
    layer: ShownLayer, axis: str, at: float, *, window: BoundingBox, most: int = 1024
) -> Plane:
    """Read a plane of a layer at a position, from the finest mag that fits.

    Parameters
    ----------
    layer
        What is read.
    axis
        `"x"`, `"y"` or `"z"`, across the plane.
    at
        The position along it, inside of the layer.
    window
        Which part of the layer's box is read.
    most
        Pixels per axis. If the coarsest mag has more, voxels are left out and not read.
    """
    number, (right, down) = AXES.index(axis), plane_axes(axis)
    mag = _mag_for(layer, window, (right, down), most)
    part = window.align_with_mag(mag.factors, ceil=True).in_mag(mag.factors)
    part = part.intersected_with(mag.box, dont_assert=True)
    region = [range(a, b) for a, b in zip(part.topleft, part.bottomright, strict=True)]
    for i in (right, down):
        region[i] = region[i][:: -(-len(region[i]) // most) or 1]
    region[number] = range(int(at // mag.factors[number]), int(at // mag.factors[number]) + 1)
    voxels = mag.read((region[0], region[1], region[2]))
    return Plane(
        as_rows(voxels, axis),
        (region[right].start * mag.factors[right], region[down].start * mag.factors[down]),
        (region[right].step * mag.factors[right], region[down].step * mag.factors[down]),
    )


def _mag_for(layer: ShownLayer, window: BoundingBox, axes: tuple[int, int], most: int) -> ShownMag:
    """Return the finest mag with at most so many voxels per axis of a window, or the coarsest."""
    for mag in layer.mags:
        if all(window.size[i] <= most * mag.factors[i] for i in axes):
            return mag
    return layer.mags[-1]


def as_rows(voxels: Pixels, axis: str) -> Pixels:
    """Return voxels `(c, x, y, z)`, one thick along `axis`, as `(c, rows, columns)`."""
    right, down = plane_axes(axis)
    return voxels.transpose(0, down + 1, right + 1, AXES.index(axis) + 1)[..., 0]
