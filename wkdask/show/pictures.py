"""A plane of several layers as one picture: grey values, with the colours of ids over them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from wkdask.errors import ArgumentError
from wkdask.geometry import BoundingBox
from wkdask.show.pixels import LABELS_OPACITY, Colors, Pixels, blend, grey_limits, greys
from wkdask.show.shown import AXES, Plane, ShownLayer, plane_axes, read_plane

__all__ = ["Look", "draw_plane", "window_around"]


# Voxels that are longer along one axis are drawn longer: pixels per axis, for each voxel read.
_MOST_STRETCH = 4


@dataclass(frozen=True, slots=True)
class Look:
    """How layers are drawn; by default grey values as they need it, and ids half transparent."""

    opacity: float = LABELS_OPACITY / 255
    """Of ids over grey values, from 0 to 1."""
    limits: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    """What is black and what is white, by the layer's name."""


def draw_plane(
    layers: Sequence[ShownLayer],
    axis: str,
    at: float | None = None,
    *,
    window: BoundingBox | None = None,
    most: int = 1024,
    look: Look | None = None,
) -> Colors:
    """Return a plane through layers as RGB `(rows, columns, 3)`, to scale.

    Parameters
    ----------
    layers
        What is drawn, the first at the bottom. The plane is that of the first one's box.
    axis
        `"x"`, `"y"` or `"z"`, across the plane.
    at
        The position along it, in voxels of mag 1; None is the middle.
    window
        Which part is drawn; None is all.
    most
        Voxels that are read per axis of the plane, from the finest mag that has no more.
    look
        How it is drawn.

    Raises
    ------
    ArgumentError
        If the position lies outside of the first layer.
    """
    first, look, number = layers[0], look or Look(), AXES.index(axis)
    at = first.centre[number] if at is None else at
    low, high = first.box.topleft[number], first.box.bottomright[number]
    if not low <= at < high:
        raise ArgumentError(
            f"{axis} is {at:g}, but layer {first.name!r} reaches from {low} to {high - 1}, in "
            "voxels of mag 1."
        )
    window = first.box.intersected_with(window or first.box)
    drawn: Colors | None = None
    grid: _Grid | None = None
    for layer in layers:
        plane = _plane(layer, axis, at, window, most)
        if plane is None:
            continue
        grid = grid or _Grid.of(plane, layer, axis, window, _MOST_STRETCH * most)
        drawn = _over(drawn, grid.sampled(plane), layer, look)
    assert drawn is not None
    return drawn


def window_around(layer: ShownLayer, position: Sequence[float], size: int) -> BoundingBox:
    """Return the part of a layer's box around a position that has at most `size` coarse voxels."""
    factors = layer.mags[-1].factors
    corner = [int(p - size * f / 2) for p, f in zip(position, factors, strict=True)]
    around = BoundingBox(corner, [size * f for f in factors])
    part = layer.box.intersected_with(around, dont_assert=True)
    return layer.box if part.is_empty else part


@dataclass(frozen=True, slots=True)
class _Grid:
    """Where the pixels of a picture lie: positions along the axes to the right and down."""

    right: NDArray[np.floating]
    down: NDArray[np.floating]

    @classmethod
    def of(
        cls, plane: Plane, layer: ShownLayer, axis: str, window: BoundingBox, most: int
    ) -> _Grid:
        """Return square pixels as large as the smaller edge of a plane's, at most so many."""
        axes = plane_axes(axis)
        edges = [1.0 if layer.voxel_size_nm is None else layer.voxel_size_nm[i] for i in axes]
        pixel = min(step * edge for step, edge in zip(plane.steps, edges, strict=True))
        pixel = max(
            pixel, *(window.size[i] * edge / most for i, edge in zip(axes, edges, strict=True))
        )
        right, down = (
            window.topleft[i]
            + (np.arange(max(1, round(window.size[i] * edge / pixel))) + 0.5) * (pixel / edge)
            for i, edge in zip(axes, edges, strict=True)
        )
        return cls(right, down)

    def sampled(self, plane: Plane) -> Pixels:
        """Return the nearest pixels of a plane; 0 where it has none."""
        places = [
            ((at - start) // step).astype(np.int64)
            for at, start, step in zip(
                (self.right, self.down), plane.start, plane.steps, strict=True
            )
        ]
        columns, rows = places
        out = np.zeros((len(plane.pixels), len(rows), len(columns)), plane.pixels.dtype)
        has_row = (rows >= 0) & (rows < plane.pixels.shape[1])
        has_column = (columns >= 0) & (columns < plane.pixels.shape[2])
        inside = plane.pixels[:, rows[has_row]][:, :, columns[has_column]]
        out[np.ix_(range(len(out)), has_row.nonzero()[0], has_column.nonzero()[0])] = inside
        return out


def _plane(layer: ShownLayer, axis: str, at: float, window: BoundingBox, most: int) -> Plane | None:
    number = AXES.index(axis)
    part = layer.box.intersected_with(window, dont_assert=True)
    if part.is_empty or not layer.box.topleft[number] <= at < layer.box.bottomright[number]:
        return None
    return read_plane(layer, axis, at, window=part, most=most)


def _over(under: Colors | None, pixels: Pixels, layer: ShownLayer, look: Look) -> Colors:
    """Return colours with those of a layer over them."""
    if not layer.is_segmentation:
        return greys(pixels, *(look.limits.get(layer.name) or grey_limits([pixels])))
    if under is None:
        return blend(np.zeros((*pixels.shape[1:], 3), np.uint8), pixels[0], 1.0)
    return blend(under, pixels[0], look.opacity)
