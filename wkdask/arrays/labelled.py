"""Voxels with xarray labels: coordinates, attributes, trees of mags.

Coordinates are the position of each voxel's corner in voxels of mag 1, so that mags align with each
other; they are ranges, which take no memory whatever their length. Physical ones are lengths, and
stand in the middle of each voxel.
"""

from __future__ import annotations

import re
from collections.abc import Hashable, Mapping
from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING, Any, Literal, Protocol

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
    "layer_name",
    "register_accessors",
    "to_dataarray",
    "to_dataset",
    "to_datatree",
    "to_groups",
    "variable_name",
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


def variable_name(layer: str) -> str:
    """Return what the variable of a layer is called: the same, but for names of dimensions.

    Examples
    --------
    >>> [variable_name(name) for name in ("color", "x", "x_")]
    ['color', 'x_', 'x__']
    """
    return f"{layer}_" if re.fullmatch("[cxyz]_*", layer) else layer


def layer_name(variable: str) -> str:
    """Return the layer that a variable stands for; the reverse of `variable_name`."""
    return variable[:-1] if re.fullmatch("[cxyz]_+", variable) else variable


def to_dataarray(
    array: da.Array | VolumeArray,
    box: BoundingBox,
    labels: Labels,
    coords: Coords = "voxel",
    volume: Volume | None = None,
) -> xr.DataArray:
    """Return the voxels `(c, x, y, z)` of a box with coordinates and attributes.

    A `VolumeArray` is read without dask. The box counts voxels of its own mag; without a mag in the
    labels, so do the coordinates. The encoding names the volume, where one is given.
    """
    import xarray as xr

    from wkdask.arrays.variable import voxel_variable

    register_accessors()
    variable = voxel_variable(array, DIMS, _attrs(labels))
    if volume is not None:
        variable.encoding = _encoding(volume, box, labels)
    # Built as a dataset: the constructor of an array would turn a lazy variable into a plain one.
    name = variable_name(labels.name or "voxels")
    labelled = xr.Dataset({name: variable}, _coordinates(box, labels, coords))[name]
    return labelled if labels.name else labelled.rename(None)


def to_dataset(arrays: Mapping[str, xr.DataArray], attrs: Mapping[str, object]) -> xr.Dataset:
    """Return arrays over the same positions as variables of a dataset."""
    import xarray as xr

    # One set of coordinates serves all arrays, so that xarray need not compare them.
    coords = next(iter(arrays.values())).coords if arrays else {}
    variables = {name: array.variable for name, array in arrays.items()}
    return xr.Dataset(variables, coords, dict(attrs))


def _only(attrs: Mapping[Any, object], key: str) -> dict[str, object]:
    return {key: attrs[key]} if key in attrs else {}


class _Labelled(Protocol):
    def to_xarray(self, chunks: ChunksLike | None = ..., coords: Coords = ...) -> xr.DataArray: ...


def to_groups(
    views: Mapping[str, _Labelled],
    attrs: Mapping[str, object],
    chunks: ChunksLike | None = "file",
    coords: Coords = "voxel",
) -> dict[str, xr.Dataset]:
    """Return one dataset for each view, and one without variables for the root `"/"`.

    The keys are paths in a tree, such as `"/color/2-2-1"`; `attrs` holds for all of them.
    """
    groups = {path: view.to_xarray(chunks, coords) for path, view in views.items()}
    nodes = {
        path: to_dataset(
            {str(array.name or "voxels"): array}, {**attrs, **_only(array.attrs, "mag")}
        )
        for path, array in groups.items()
    }
    return {"/": to_dataset({}, attrs), **nodes}


def to_datatree(groups: Mapping[str, xr.Dataset], name: str | None = None) -> xr.DataTree:
    """Return the datasets of `to_groups` as a tree."""
    import xarray as xr

    register_accessors()
    return xr.DataTree.from_dict(groups, name=name)


def register_accessors() -> None:
    """Register `wkw` on the arrays and datasets of xarray."""
    import xarray as xr

    # A later room holds the classes, so they are imported by name when `wkw` is first used.
    if not hasattr(xr.DataArray, "wkw"):
        xr.register_dataarray_accessor("wkw")(_array_accessor)  # type: ignore[no-untyped-call]
    if not hasattr(xr.Dataset, "wkw"):
        xr.register_dataset_accessor("wkw")(_dataset_accessor)  # type: ignore[no-untyped-call]


def _array_accessor(array: xr.DataArray) -> object:
    return import_module("wkdask.xr.accessor").ArrayAccessor(array)


def _dataset_accessor(dataset: xr.Dataset) -> object:
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
    indexes: dict[str, PandasIndex] = {}
    variables: dict[Hashable, xr.Variable] = {}
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
        "voxel_size_unit": labels.unit,
        "largest_segment_id": labels.largest_segment_id and _id(labels.largest_segment_id),
    }
    return {key: value for key, value in known.items() if value is not None}


def _id(value: int) -> int | str:
    """Return an id as a text if not every format of files has numbers that are exact so far."""
    return value if abs(value) <= 2**53 else str(value)


def _encoding(volume: Volume, box: BoundingBox, labels: Labels) -> dict[str, object]:
    """Return where voxels are stored, and the files as chunks; computations drop it."""
    lengths = file_lengths(VolumeArray.of_box(volume, box))
    known = {
        "preferred_chunks": dict(zip(DIMS, lengths, strict=True)),
        "source": volume.path,
        "dataset": labels.dataset,
        "layer": labels.name,
        "credentials": volume.credentials,
    }
    return {key: value for key, value in known.items() if value is not None}
