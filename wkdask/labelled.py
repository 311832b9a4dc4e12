"""A lazy array with xarray labels; the only module that knows xarray.

Coordinates are the position of each voxel's corner in voxels of mag 1, so that mags align with each
other. They are ranges, which take no memory whatever their length.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from wkdask.geometry import BoundingBox, Mag

if TYPE_CHECKING:
    import dask.array as da
    import xarray as xr

__all__ = ["Labels", "to_dataarray"]


@dataclass(frozen=True, slots=True)
class Labels:
    """What is known of a volume beyond its voxels."""

    mag: Mag | None = None
    """The resolution level, if known."""
    name: str | None = None
    """The layer's name."""
    category: str | None = None
    """`"color"` or `"segmentation"`."""
    voxel_size: tuple[float, float, float] | None = None
    """Edges of a voxel of mag 1, `(x, y, z)`, in `unit`."""
    unit: str | None = None
    """A unit of length, such as `"nanometer"`."""


def to_dataarray(array: da.Array, box: BoundingBox, labels: Labels) -> xr.DataArray:
    """Return `array` with dimensions c, x, y, z and a coordinate for each spatial one.

    Parameters
    ----------
    array
        Voxels of the box, `(c, x, y, z)`.
    box
        Where they lie, in voxels of their own mag.
    labels
        What goes into the coordinates (`mag`) and attributes. Without a mag the coordinates count
        the volume's own voxels.
    """
    import pandas as pd
    import xarray as xr
    from xarray.indexes import PandasIndex

    factors = labels.mag or Mag(1)
    coords = xr.Coordinates()
    for dim, start, stop, factor in zip("xyz", box.topleft, box.bottomright, factors, strict=True):
        positions = pd.RangeIndex(start * factor, stop * factor, factor)
        coords = coords.merge(xr.Coordinates.from_xindex(PandasIndex(positions, dim))).coords
    return xr.DataArray(array, coords, dims=tuple("cxyz"), name=labels.name, attrs=_attrs(labels))


def _attrs(labels: Labels) -> dict[str, object]:
    known = {
        "mag": labels.mag and str(labels.mag),
        "category": labels.category,
        "voxel_size": labels.voxel_size and list(labels.voxel_size),
        "unit": labels.unit,
    }
    return {key: value for key, value in known.items() if value is not None}
