"""Voxels as an xarray variable, for `chunks=None`: lazily indexed, and read when values are needed.

`chunk` makes the same dask array as `View.to_dask`; the one that xarray itself would make takes a
second to slice if it has a million chunks.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from types import EllipsisType
from typing import Any, Literal, Self, TypeGuard

import dask.array as da
import numpy as np
import xarray as xr
from dask.base import tokenize
from xarray.backends import BackendArray
from xarray.core import indexing

from wkdask.arrays.lazy import VolumeArray, chunked, handle_of, narrowed
from wkdask.arrays.picking import pick
from wkdask.storage.volume import Voxels

__all__ = ["LazyVoxels", "VoxelVariable", "voxel_variable"]
_Basic = tuple[int | np.integer | slice, ...]


class LazyVoxels(BackendArray):
    """A box of a volume, for xarray to index."""

    def __init__(self, handle: VolumeArray) -> None:
        self.handle = handle
        self.shape = handle.shape
        self.dtype = handle.dtype

    def __getitem__(self, key: indexing.ExplicitIndexer) -> Voxels:
        if _is_basic(key.tuple):
            return self.handle[key.tuple]
        axes, positions = self.handle.axes, self.handle.positions
        parts = zip(axes, key.tuple, strict=True)
        chosen = [np.asarray(positions[axis])[part] for axis, part in parts]
        if isinstance(key, indexing.OuterIndexer):
            chosen = _orthogonal(chosen)
        index = [np.asarray(axis[:1])[0] if axis else 0 for axis in positions]
        for axis, part in zip(axes, chosen, strict=True):
            index[axis] = part
        return pick(self.handle.volume, index)

    def __dask_tokenize__(self) -> tuple[object, ...]:
        volume = self.handle.volume
        handle = (self.handle.positions, self.handle.axes)
        return (volume.identity, volume.layout, *handle, volume.version())


class VoxelVariable(xr.Variable):
    """A variable of voxels, lazy or as a dask array made of them, that indexes them itself."""

    __slots__ = ()

    def __getitem__(self, key: Any) -> Self:
        """Return a part that reads no other voxels; dask itself would read more for some slices."""
        own = self._data
        handle = handle_of(own) if isinstance(own, da.Array) else None
        index = key if isinstance(key, tuple) else (key,)
        if (
            handle is None
            or not isinstance(own, da.Array)
            or len(index) != self.ndim
            or not _is_basic(index)
        ):
            return super().__getitem__(key)
        dims = [dim for dim, part in zip(self.dims, index, strict=True) if isinstance(part, slice)]
        data = narrowed(own, handle, index)
        return type(self)(dims, data, self._attrs, self._encoding, fastpath=True)

    def transpose(
        self,
        *dim: Hashable | EllipsisType,
        missing_dims: Literal["raise", "warn", "ignore"] = "raise",
    ) -> Self:
        """Return the variable with its dimensions in another order; see `xarray.Variable`."""
        data = self._data
        handle = handle_of(data) if isinstance(data, da.Array) else _lazy_handle(data)
        if handle is None:
            return super().transpose(*dim, missing_dims=missing_dims)
        # xarray interprets `dim` on an array of the same shape that takes no memory.
        shape = np.broadcast_to(np.uint8(0), self.shape)
        dims = xr.Variable(self.dims, shape).transpose(*dim, missing_dims=missing_dims).dims
        order = [self.dims.index(name) for name in dims]
        turned = handle.transposed(order)
        lazy = (
            chunked(turned, tuple(data.chunks[at] for at in order))
            if isinstance(data, da.Array)
            else indexing.LazilyIndexedArray(LazyVoxels(turned))
        )
        return type(self)(dims, lazy, self._attrs, self._encoding, fastpath=True)

    def chunk(  # type: ignore[override]
        self,
        chunks: Any = {},  # noqa: B006
        name: str | None = None,
        lock: bool | None = None,
        inline_array: bool | None = None,
        chunked_array_type: Any = None,
        from_array_kwargs: Any = None,
        **chunks_kwargs: Any,
    ) -> xr.Variable:
        """Return the variable as a dask array; see `xarray.Variable.chunk`.

        What a basic index of a volume selects becomes an array of `chunked`.
        """
        handle = _lazy_handle(self._data)
        if handle is None or not _is_dask(chunked_array_type):
            options = {**(from_array_kwargs or {}), "inline_array": True}
            name = _name_of(self._data, chunks, chunks_kwargs) or options.pop("name", name)
            options = {key: value for key, value in options.items() if key != "name"}
            return super().chunk(
                chunks, name, lock, None, chunked_array_type, options, **chunks_kwargs
            )
        if not chunks or isinstance(chunks, Mapping):
            given = {**(chunks or {}), **chunks_kwargs}
            chunks = tuple(given.get(dim, -1) for dim in self.dims)
        lengths = da.core.normalize_chunks(chunks, handle.shape, dtype=handle.dtype)
        data = chunked(handle, lengths)
        return type(self)(self.dims, data, self._attrs, self._encoding, fastpath=True)


def voxel_variable(
    source: VolumeArray | da.Array, dims: tuple[Hashable, ...], attrs: Mapping[str, object]
) -> xr.Variable:
    """Return a variable of voxels; a handle is read when values are needed."""
    if isinstance(source, da.Array):
        return VoxelVariable(dims, source, attrs)
    return VoxelVariable(dims, indexing.LazilyIndexedArray(LazyVoxels(source)), attrs)


def _orthogonal(chosen: list[Voxels]) -> list[Voxels]:
    """Return indices as arrays of which each varies along its own dimension; numbers have none."""
    ndim = sum(part.ndim for part in chosen)
    shaped, seen = [], 0
    for part in chosen:
        shape = [1] * ndim
        if part.ndim:
            shape[seen] = part.size
        shaped.append(part.reshape(shape))
        seen += part.ndim
    return shaped


def _lazy_handle(data: object) -> VolumeArray | None:
    """Return the handle of a basic part of a volume that is not loaded, or None."""
    # xarray adds these wrappers to the arrays of backends.
    while isinstance(data, indexing.CopyOnWriteArray | indexing.MemoryCachedArray):
        data = data.array
    if not isinstance(data, indexing.LazilyIndexedArray) or not isinstance(data.array, LazyVoxels):
        return None
    index = data.key.tuple
    return data.array.handle.narrowed(index) if _is_basic(index) else None


def _name_of(data: Any, *chunks: object) -> str | None:
    """Return a name that holds the key of the volume, as `chunked` gives; see `reads_from`."""
    keys = []
    while not isinstance(data, LazyVoxels):
        if not hasattr(data, "array"):
            return None
        keys.append(getattr(getattr(data, "key", None), "tuple", None))
        data = data.array
    token = tokenize(data, keys, chunks)
    return f"wkdask-{data.handle.volume.key}-{token}"


def _is_basic(index: tuple[object, ...]) -> TypeGuard[_Basic]:
    return all(isinstance(part, int | np.integer | slice) for part in index)


def _is_dask(chunked_array_type: object) -> bool:
    if chunked_array_type is None or isinstance(chunked_array_type, str):
        return chunked_array_type in (None, "dask")
    return type(chunked_array_type).__name__ == "DaskManager"
