"""WKW for xarray: `open_dataset`, `open_datatree` and `open_groups` on datasets, layers and mags.

xarray finds it by the entry point `wkw`. Arrays are lazy without dask; `chunks=` makes dask arrays
of them.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import reduce
from typing import Any

import xarray as xr
from xarray.backends import BackendEntrypoint

from wkdask.arrays import labelled
from wkdask.arrays.labelled import Coords
from wkdask.arrays.lazy import VolumeArray
from wkdask.dataset.dataset import MagView
from wkdask.dataset.lookup import Found, can_open, find
from wkdask.errors import ArgumentError
from wkdask.geometry import BoundingBox, MagLike

__all__ = ["WkwBackendEntrypoint"]

_Path = Any
_Names = str | Iterable[str] | None


class WkwBackendEntrypoint(BackendEntrypoint):
    """The engine `wkw` of xarray.

    Examples
    --------
    >>> import xarray as xr
    >>> ds = wkdask.create("tissue", voxel_size=(8, 8, 8))
    >>> layer = ds.add_layer("color", "color", "uint8",
    ...                      bounding_box=wkdask.BoundingBox((10, 0, 0), (100, 64, 64)))
    >>> _ = layer.add_mag(1)
    >>> dict(xr.open_dataset("tissue").sel(x=slice(20, 29)).sizes)
    {'c': 1, 'x': 10, 'y': 64, 'z': 64}
    """

    description = "WKW volumes, the file format of WEBKNOSSOS"
    open_dataset_parameters = (
        "filename_or_obj",
        "drop_variables",
        "mag",
        "coords",
        "group",
        "storage_options",
    )
    supports_groups = True

    def guess_can_open(self, filename_or_obj: _Path) -> bool:
        """Return whether a path leads to a dataset, a layer or a mag."""
        return can_open(filename_or_obj)

    def open_dataset(
        self,
        filename_or_obj: _Path,
        *,
        drop_variables: _Names = None,
        mag: MagLike | None = None,
        coords: Coords = "voxel",
        group: str | None = None,
        storage_options: Mapping[str, Any] | None = None,
    ) -> xr.Dataset:
        """Return one mag of each layer at a path, as variables over the same positions.

        Parameters
        ----------
        filename_or_obj
            A dataset, a layer or a mag, or its address.
        drop_variables
            Layers that are left out.
        mag
            Which; None is the finest that all layers have. Layers that lack it are left out.
        coords
            See `View.to_xarray`.
        group
            A node of the tree, such as `"color/2-2-1"` or `"color"`.
        storage_options
            How an address is reached; see `wkdask.open`. Addresses need `engine="wkw"`.

        Raises
        ------
        MissingError
            If there is nothing at the path.
        NameLookupError
            If there is no such mag or group.
        """
        found = find(filename_or_obj, _names(drop_variables), storage_options).within(group)
        return _dataset(found, found.at(mag), coords)

    def open_groups_as_dict(
        self,
        filename_or_obj: _Path,
        *,
        drop_variables: _Names = None,
        coords: Coords = "voxel",
        group: str | None = None,
        storage_options: Mapping[str, Any] | None = None,
    ) -> dict[str, xr.Dataset]:
        """Return every mag at a path as a dataset, by paths such as `/color/2-2-1`.

        See `open_dataset` for the parameters and errors.
        """
        found = find(filename_or_obj, _names(drop_variables), storage_options).within(group)
        return _groups(found, coords)

    def open_datatree(
        self,
        filename_or_obj: _Path,
        *,
        drop_variables: _Names = None,
        coords: Coords = "voxel",
        group: str | None = None,
        storage_options: Mapping[str, Any] | None = None,
    ) -> xr.DataTree:
        """Return every mag at a path as a node of a tree, such as `/color/2-2-1`.

        See `open_dataset` for the parameters and errors.
        """
        found = find(filename_or_obj, _names(drop_variables), storage_options).within(group)
        return labelled.to_datatree(_groups(found, coords), found.name)


def _names(drop_variables: _Names) -> set[str]:
    return {drop_variables} if isinstance(drop_variables, str) else set(drop_variables or ())


def _groups(found: Found, coords: Coords) -> dict[str, xr.Dataset]:
    return labelled.to_groups(found.views(), found.attrs, None, coords)


def _dataset(found: Found, views: Mapping[str, MagView], coords: Coords) -> xr.Dataset:
    """Return mags as variables over the smallest box around all of them."""
    boxes = [view.bounding_box for view in views.values()]
    box = reduce(BoundingBox.extended_by, boxes)
    arrays = {
        labelled.variable_name(name): labelled.to_dataarray(
            VolumeArray.of_box(view.volume, box), box, view.labels, coords, view.volume
        )
        for name, view in views.items()
    }
    mag = next(iter(views.values())).mag
    attrs = found.attrs if mag is None else {**found.attrs, "mag": str(mag)}
    return labelled.to_dataset(_with_one_c(arrays), attrs)


def _with_one_c(arrays: Mapping[str, xr.DataArray]) -> dict[str, xr.DataArray]:
    """Return arrays of which those with one channel have no c, if others have more."""
    counts = sorted({array.sizes["c"] for array in arrays.values()})
    if len([count for count in counts if count > 1]) > 1:
        channels = ", ".join(f"{name}: {array.sizes['c']}" for name, array in arrays.items())
        raise ArgumentError(
            f"layers with several channels differ in how many ({channels}), so they are no "
            "variables of one dataset. Leave layers out by drop_variables=, or open a tree."
        )
    if len(counts) == 1:
        return dict(arrays)
    return {n: array.isel(c=0) if array.sizes["c"] == 1 else array for n, array in arrays.items()}
