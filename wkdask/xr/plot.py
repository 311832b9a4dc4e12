"""Planes of a labelled array for `show.planes`: which voxels are drawn, and where they lie.

Only the voxels of the planes are read, and of large planes only as many as there are pixels.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from wkdask.errors import ArgumentError
from wkdask.show.planes import PLANES, Axis, Planes, draw_labels_over, draw_planes
from wkdask.xr.coordinates import SPATIAL, edge_of_voxel, grid_of, is_physical

if TYPE_CHECKING:
    import xarray as xr
    from matplotlib.axes import Axes

__all__ = ["plot_planes"]

MAX_PIXELS = 1024
"""Pixels of a plane per axis; beyond that, voxels are left out and not read."""


def plot_planes(
    array: xr.DataArray,
    at: Mapping[str, float],
    *,
    channel: int = 0,
    vmin: float | None = None,
    vmax: float | None = None,
    labels: xr.DataArray | None = None,
) -> dict[str, Axes]:
    """Draw the planes of an array through a point; see `wkw.plot`."""
    if channel not in range(array.sizes.get("c", 1)):
        raise ArgumentError(f"channel is {channel}, but the array has {array.sizes.get('c', 1)}.")
    volume = _volume(array, channel)
    axes = _axes(volume, at)
    over = None if labels is None else _volume(labels, channel)
    over_axes = {} if over is None else _axes_over(axes, over)
    are_ids = array.attrs.get("category") == "segmentation"
    drawn = draw_planes(axes, _pixels(volume, axes), are_ids=are_ids, vmin=vmin, vmax=vmax)
    if over is not None:
        draw_labels_over(drawn, over_axes, _pixels(over, over_axes))
    return drawn


def _volume(array: xr.DataArray, channel: int) -> xr.DataArray:
    """Return one channel of an array that has x, y and z, as axes or as coordinates."""
    if "c" in array.dims:
        array = array.isel(c=channel if array.sizes["c"] > 1 else 0)
    others = [dim for dim in array.dims if dim not in SPATIAL]
    if others or any(dim not in array.coords for dim in SPATIAL):
        raise ArgumentError(
            f"the array has dimensions {array.dims}, but a plot needs x, y and z with coordinates, "
            "and no others besides c."
        )
    if 0 in array.shape:
        raise ArgumentError(f"the array has shape {array.shape}: there is nothing to plot.")
    return array


def _axes(volume: xr.DataArray, at: Mapping[str, float]) -> dict[str, Axis]:
    grid = grid_of(volume)
    axes = {}
    for i, dim in enumerate(SPATIAL):
        values = np.atleast_1d(volume[dim].values)
        edge = grid.mag.factors[i] * edge_of_voxel(volume, dim, grid)
        is_centred = is_physical(volume, dim)
        nm = None if grid.voxel_size is None else grid.spacing_nm[i] / edge
        axis = Axis(values, edge, is_centred, nm, _unit(volume, dim), len(values) // 2)
        axes[dim] = replace(axis, point=_point(axis, dim, at[dim])) if dim in at else axis
    return axes


def _point(axis: Axis, dim: str, at: float) -> int:
    """Return the voxel at a coordinate."""
    values = np.asarray(axis.values, np.float64)
    firsts = values - (axis.edge / 2 if axis.is_centred else 0)
    inside = (firsts <= at) & (at < firsts + axis.edge)
    if not inside.any():
        low, high = values.min(), values.max()
        raise ArgumentError(f"{dim} is {at}, but the array reaches from {low:g} to {high:g}.")
    return int(inside.argmax())


def _axes_over(axes: Mapping[str, Axis], labels: xr.DataArray) -> dict[str, Axis]:
    """Return the axes of labels that are drawn over others, through the same point."""
    counts, wanted = ({_unit(labels, dim) for dim in axes}, {a.unit for a in axes.values()})
    if counts != wanted:
        raise ArgumentError(
            f"labels count in {', '.join(counts)}, but the array in {', '.join(wanted)}: open both "
            "with the same coords=."
        )
    return _axes(labels, {dim: axis.place for dim, axis in axes.items()})


def _unit(volume: xr.DataArray, dim: str) -> str:
    known = volume[dim].attrs if dim in volume.coords else {}
    return str(known.get("units", "voxels of mag 1"))


def _pixels(volume: xr.DataArray, axes: Mapping[str, Axis]) -> Planes:
    """Read the planes, with rows that go down and columns that go right."""
    planes = {}
    for name, (right, down) in PLANES.items():
        index: dict[object, int | slice] = {dim: axis.point for dim, axis in axes.items()}
        for dim in (right, down):
            index[dim] = slice(None, None, -(-len(axes[dim].values) // MAX_PIXELS))
        flat = volume.isel({dim: index[dim] for dim in volume.dims}).compute()
        whole = flat.expand_dims([dim for dim in (right, down) if dim not in flat.dims])
        planes[name] = whole.transpose(down, right).values
    return planes
