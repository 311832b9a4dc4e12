"""Where labelled voxels lie: from coordinates back to whole voxels of a mag.

Coordinates that carry a length in `units` are centres, all others are corners in voxels of mag 1.
They must lie on the grid of the mag; none is rounded to the next voxel. It knows no files.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from wkdask.errors import ArgumentError
from wkdask.geometry import BoundingBox, Mag, Vec3
from wkdask.units import nm_per

if TYPE_CHECKING:
    import xarray as xr

__all__ = [
    "SPATIAL",
    "VoxelGrid",
    "box_in",
    "edge_of_voxel",
    "grid_of",
    "is_physical",
    "placed",
    "voxels_of",
]

SPATIAL = ("x", "y", "z")
TOLERANCE = 1e-3
"""By how much of a voxel a centre may be off, because lengths are rounded."""


@dataclass(frozen=True, slots=True)
class VoxelGrid:
    """The voxels of a mag, and how long they are."""

    mag: Mag
    """Its factors."""
    voxel_size: tuple[float, float, float] | None = None
    """Edges of a voxel of mag 1, `(x, y, z)`, in `unit`."""
    unit: str | None = None
    """A unit of length."""

    @property
    def spacing_nm(self) -> tuple[float, float, float]:
        """Edges of a voxel of this mag, `(x, y, z)`, in nm.

        Raises
        ------
        ArgumentError
            If nobody knows the voxel size.
        """
        if self.voxel_size is None or self.unit is None:
            raise ArgumentError(
                "the array has no voxel size. Set its attributes voxel_size, of mag 1, and unit: "
                'array.attrs.update(voxel_size=[8, 8, 8], voxel_size_unit="nanometer").'
            )
        nm = nm_per(self.unit)
        x, y, z = (f * s * nm for f, s in zip(self.mag, self.voxel_size, strict=True))
        return x, y, z


def grid_of(array: xr.DataArray, fine: VoxelGrid | None = None) -> VoxelGrid:
    """Return the grid on which an array lies, by the distance of its coordinates.

    Where an axis has one position, or none, its factor is that of the attribute `mag`, or 1. The
    voxel size is that of `fine`, the grid of mag 1, or else that of the attributes.
    """
    if fine is None:
        size = array.attrs.get("voxel_size")
        known = None if size is None else (float(size[0]), float(size[1]), float(size[2]))
        # Before 1.0 the key was "unit", which xarray takes for the unit of the values.
        unit = array.attrs.get("voxel_size_unit", array.attrs.get("unit"))
        fine = VoxelGrid(Mag(1), known, unit)
    said = Mag(array.attrs.get("mag", 1))
    factors = [_factor(array, dim, fine, said.factors[i]) for i, dim in enumerate(SPATIAL)]
    return VoxelGrid(Mag(factors), fine.voxel_size, fine.unit)


def voxels_of(array: xr.DataArray, grid: VoxelGrid) -> tuple[range, range, range]:
    """Return which voxels of a grid an array holds, in its order; steps are 1 or -1."""
    x, y, z = (_voxels(array, dim, grid) for dim in SPATIAL)
    return x, y, z


def placed(array: xr.DataArray, grid: VoxelGrid, num_channels: int) -> tuple[xr.DataArray, Vec3]:
    """Return an array with the dimensions c, x, y, z, all ascending, and its first voxel in a grid.

    Parameters
    ----------
    array
        Dimensions in any order; those that were selected away come back, by their coordinate.
    grid
        Where it shall go.
    num_channels
        How many there must be.
    """
    others = [str(dim) for dim in array.dims if dim not in ("c", *SPATIAL)]
    if others:
        raise ArgumentError(
            f"the array has dimensions {', '.join(others)} besides c, x, y, z: select from them, "
            "or reduce them, before it is stored."
        )
    _check_channels(array, num_channels)
    axes = dict(zip(SPATIAL, voxels_of(array, grid), strict=True))
    turned = {dim: slice(None, None, -1) for dim, axis in axes.items() if axis.step < 0}
    missing = [dim for dim in ("c", *SPATIAL) if dim not in array.dims]
    whole = array.isel(turned).expand_dims(missing).transpose("c", *SPATIAL)
    x, y, z = (min(axis, default=0) for axis in axes.values())
    return whole, (x, y, z)


def box_in(array: xr.DataArray, grid: VoxelGrid) -> BoundingBox:
    """Return the box of an array in voxels of a grid; see `voxels_of`."""
    axes = voxels_of(array, grid)
    return BoundingBox((min(axis, default=0) for axis in axes), map(len, axes))


def is_physical(array: xr.DataArray, dim: str = "x") -> bool:
    """Return whether coordinates are lengths."""
    return "units" in array[dim].attrs if dim in array.coords else False


def edge_of_voxel(array: xr.DataArray, dim: str, grid: VoxelGrid) -> float:
    """Return how long a voxel of mag 1 is, in what the coordinates count."""
    if not is_physical(array, dim):
        return 1.0
    if grid.voxel_size is None or grid.unit is None:
        raise ArgumentError(
            f"the coordinates of {dim} are lengths, but no voxel size is known that would tell "
            'which voxels they are. Use coords="voxel".'
        )
    size = grid.voxel_size[SPATIAL.index(dim)]
    return size * nm_per(grid.unit) / nm_per(array[dim].attrs["units"])


@dataclass(frozen=True, slots=True)
class _Axis:
    """Evenly spaced coordinates."""

    first: float
    step: float | None
    """None for one position."""
    count: int


def _axis(array: xr.DataArray, dim: str) -> _Axis:
    index = array.indexes.get(dim)
    if index is not None and hasattr(index, "step"):
        return _Axis(index.start, index.step if len(index) > 1 else None, len(index))
    if dim not in array.coords:
        raise ArgumentError(
            f"the array has no coordinate {dim}, so nobody can say where it lies. Assign one, or "
            "use View.store with an offset."
        )
    if array[dim].dims not in ((), (dim,)):
        raise ArgumentError(
            f"the coordinate {dim} lies along {array[dim].dims}, but must lie along {dim}: voxels "
            "aslant are no box. Store boxes, each on its own."
        )
    values = np.atleast_1d(array[dim].values)
    if values.dtype.kind not in "iuf" or not np.isfinite(values).all():
        raise ArgumentError(
            f"the coordinate {dim} = {_few(values)} is {values.dtype}, but must be finite numbers: "
            "assign those of the target, as view.to_xarray() has them."
        )
    if len(values) < 2:
        return _Axis(values[0].item() if len(values) else 0, None, len(values))
    even = np.linspace(values[0], values[-1], len(values))
    step = float(even[1] - even[0])
    if step == 0 or np.abs(values - even).max() > TOLERANCE * abs(step):
        raise ArgumentError(
            f"the coordinates {dim} = {_few(values)} are not evenly spaced: store each piece "
            "without gaps on its own, or reindex before."
        )
    return _Axis(values[0].item(), step, len(values))


def _factor(array: xr.DataArray, dim: str, fine: VoxelGrid, said: int) -> int:
    """Return how many voxels of mag 1 lie between two coordinates."""
    axis = _axis(array, dim)
    if axis.step is None:
        return said
    exact = abs(axis.step) / edge_of_voxel(array, dim, fine)
    factor = round(exact)
    if factor < 1 or abs(exact - factor) > TOLERANCE * factor:
        raise ArgumentError(
            f"the coordinates of {dim} are {abs(axis.step):g} apart, {exact:g} voxels of mag 1, "
            "but a mag has whole factors."
        )
    return factor


def _voxels(array: xr.DataArray, dim: str, grid: VoxelGrid) -> range:
    axis, edge = _axis(array, dim), edge_of_voxel(array, dim, grid)
    factor = grid.mag.factors[SPATIAL.index(dim)]
    scale, shift, tolerance = (float(factor), 0.0, 0.0)
    if is_physical(array, dim):
        scale, shift, tolerance = factor * edge, 0.5, TOLERANCE
    exact = axis.first / scale - shift
    start = round(exact)
    if abs(exact - start) > tolerance:
        raise ArgumentError(
            f"the coordinate {dim} = {axis.first:g} is no voxel of mag {grid.mag}, of which "
            f"{_rule(array, dim, scale)}. wkdask rounds no coordinates: take those of the target, "
            "as view.to_xarray() has them."
        )
    said = array.attrs.get("mag")
    if axis.step is None and said is not None:
        # One coordinate does not tell how long its voxel is.
        stride = Mag(said).factors[SPATIAL.index(dim)] / factor
    else:
        stride = 1.0 if axis.step is None else axis.step / scale
    if abs(abs(stride) - 1) * max(1, axis.count - 1) > tolerance:
        raise ArgumentError(
            f"the voxels of the array span {abs(stride):g} of mag {grid.mag} along {dim}, but must "
            "be those of that mag: store them into a mag of their own, or downsample before."
        )
    return range(start, start + axis.count) if stride > 0 else range(start, start - axis.count, -1)


def _check_channels(array: xr.DataArray, num_channels: int) -> None:
    count = array.sizes.get("c", 1)
    if count != num_channels:
        raise ArgumentError(f"the array has {count} channels (c), but the target {num_channels}.")
    if "c" in array.coords and np.atleast_1d(array["c"].values).tolist() != list(range(count)):
        raise ArgumentError(
            f"the channels are labelled {array['c'].values}, but must be 0, 1 and so on, all of "
            "them in this order."
        )


def _rule(array: xr.DataArray, dim: str, scale: float) -> str:
    if is_physical(array, dim):
        return f"centres lie at (i + 0.5) * {scale:g} {array[dim].attrs['units']}"
    return f"corners lie at multiples of {scale:g}"


def _few(values: Any) -> str:
    first = values[:5].tolist()
    shown = ", ".join(f"{value:g}" if isinstance(value, float) else str(value) for value in first)
    return f"{shown}, ..." if len(values) > 5 else shown
