"""Voxels with xarray labels: coordinates, attributes, trees of mags.

Coordinates are the position of each voxel's corner in voxels of mag 1, so that mags align with each
other; they are ranges, which take no memory whatever their length. Physical ones are lengths, and
stand in the middle of each voxel.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING, Any, Literal

from wkdask.arrays.lazy import VolumeArray, file_lengths
from wkdask.errors import ArgumentError
from wkdask.geometry import BoundingBox, Mag
from wkdask.grids import ChunksLike
from wkdask.storage.volume import Volume

if TYPE_CHECKING:
    import dask.array as da
    import xarray as xr

__all__ = [
    "DIMS",
    "Coords",
    "Labels",
    "register_accessors",
    "to_dataarray",
    "to_dataset",
    "to_datatree",
    "to_groups",
]

DIMS = ("c", "x", "y", "z")
Coords = Literal["voxel", "physical"]


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
    largest_segment_id: int | None = None
    """Of a segmentation, if known."""
    dataset: str | None = None
    """The directory of the dataset."""


def to_dataarray(
    array: da.Array | VolumeArray,
    box: BoundingBox,
    labels: Labels,
    coords: Coords = "voxel",
    volume: Volume | None = None,
) -> xr.DataArray:
    """Return `array` with dimensions c, x, y, z and a coordinate for each spatial one.

    Parameters
    ----------
    array
        Voxels of the box, `(c, x, y, z)`; those of a `VolumeArray` are read without dask.
    box
        Where they lie, in voxels of their own mag.
    labels
        What goes into the coordinates (`mag`) and attributes. Without a mag the coordinates count
        the volume's own voxels.
    coords
        `"voxel"`: corners, in voxels of mag 1. `"physical"`: centres, in the unit of the voxel
        size.
    volume
        Where they come from, if somebody may ask.

    Raises
    ------
    ArgumentError
        If `coords` is neither, or there is no voxel size.
    """
    import xarray as xr

    from wkdask.arrays.variable import voxel_variable

    register_accessors()
    variable = voxel_variable(array, DIMS, _attrs(labels))
    if volume is not None:
        variable.encoding = _encoding(volume, box, labels)
    # By way of a dataset, because an array would make a plain variable of a lazy one.
    name = labels.name or "voxels"
    labelled = xr.Dataset({name: variable}, _coordinates(box, labels, coords))[name]
    return labelled.rename(labels.name)


def to_dataset(arrays: Mapping[str, xr.DataArray], attrs: Mapping[str, object]) -> xr.Dataset:
    """Return arrays over the same positions as variables of a dataset."""
    import xarray as xr

    # Their coordinates are the same; telling xarray so spares it to compare them.
    coords = next(iter(arrays.values())).coords if arrays else {}
    variables = {name: array.variable for name, array in arrays.items()}
    return xr.Dataset(variables, coords, dict(attrs))


def to_groups(
    views: Mapping[str, Any],
    attrs: Mapping[str, object],
    chunks: ChunksLike = "file",
    coords: Coords = "voxel",
) -> dict[str, xr.Dataset]:
    """Return views as datasets of one variable, by their paths in a tree, below a root without any.

    Parameters
    ----------
    views
        What has a `to_xarray`, by paths such as `"/color/2-2-1"`.
    attrs
        What is known of all of them.
    chunks, coords
        See `View.to_xarray`.
    """
    groups = {path: view.to_xarray(chunks, coords) for path, view in views.items()}
    nodes = {
        path: to_dataset({array.name or "voxels": array}, {**attrs, "mag": array.attrs.get("mag")})
        for path, array in groups.items()
    }
    return {"/": to_dataset({}, attrs), **nodes}


def to_datatree(groups: Mapping[str, xr.Dataset], name: str | None = None) -> xr.DataTree:
    """Return what `to_groups` returned as a tree."""
    import xarray as xr

    register_accessors()
    return xr.DataTree.from_dict(groups, name=name)


def register_accessors() -> None:
    """Give every array and dataset of xarray its `wkw`."""
    import xarray as xr

    # The classes stand further down in the layers; like an entry point they are found by name.
    if not hasattr(xr.DataArray, "wkw"):
        xr.register_dataarray_accessor("wkw")(_array_accessor)  # type: ignore[no-untyped-call]
    if not hasattr(xr.Dataset, "wkw"):
        xr.register_dataset_accessor("wkw")(_dataset_accessor)  # type: ignore[no-untyped-call]


def _array_accessor(array: xr.DataArray) -> Any:
    return import_module("wkdask.xr.accessor").ArrayAccessor(array)


def _dataset_accessor(dataset: xr.Dataset) -> Any:
    return import_module("wkdask.xr.accessor").DatasetAccessor(dataset)


def _coordinates(box: BoundingBox, labels: Labels, coords: Coords) -> xr.Coordinates:
    import pandas as pd
    import xarray as xr
    from xarray.indexes import PandasIndex

    if coords not in ("voxel", "physical"):
        raise ArgumentError(f'coords is {coords!r}, but must be "voxel" or "physical".')
    if coords == "physical" and labels.voxel_size is None:
        raise ArgumentError(
            'coords="physical" needs a voxel size, which only a dataset has: open the directory '
            'with datasource-properties.json, or a layer or mag in it, or use coords="voxel".'
        )
    factors = labels.mag or Mag(1)
    sizes = labels.voxel_size or (1, 1, 1)
    indexes: dict[str, Any] = {}
    variables: dict[str, Any] = {}
    axes = zip("xyz", box.topleft, box.bottomright, factors, sizes, strict=True)
    for dim, start, stop, factor, size in axes:
        positions = pd.RangeIndex(start * factor, stop * factor, factor)
        attrs = {}
        if coords == "physical":
            # Doubled whole numbers, so that equal places are equal numbers in every mag.
            positions = pd.Index((2 * positions.to_numpy() + factor) * (size / 2))
            attrs = {"units": labels.unit}
        indexes[dim] = PandasIndex(positions, dim)
        variables |= indexes[dim].create_variables()
        variables[dim].attrs.update(attrs)
    return xr.Coordinates(variables, indexes)


def _attrs(labels: Labels) -> dict[str, object]:
    known = {
        "mag": labels.mag and str(labels.mag),
        "category": labels.category,
        "voxel_size": labels.voxel_size and list(labels.voxel_size),
        "unit": labels.unit,
        "largest_segment_id": labels.largest_segment_id,
    }
    return {key: value for key, value in known.items() if value is not None}


def _encoding(volume: Volume, box: BoundingBox, labels: Labels) -> dict[str, object]:
    """Return how voxels are stored, and where; it is lost when other voxels are computed."""
    lengths = file_lengths(VolumeArray.of_box(volume, box))
    known = {
        "preferred_chunks": dict(zip(DIMS, lengths, strict=True)),
        "source": volume.path,
        "dataset": labels.dataset,
        "layer": labels.name,
    }
    return {key: value for key, value in known.items() if value is not None}
