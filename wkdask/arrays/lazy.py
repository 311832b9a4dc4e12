"""Volumes as lazy dask arrays. It knows no views.

A lazy array is one graph layer over a handle: path, header and region, a few hundred bytes and
never an open file. A slice becomes a `VolumeArray`, which reads exactly the voxels of the slice.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Sequence
from dataclasses import dataclass
from types import EllipsisType
from typing import TYPE_CHECKING, SupportsIndex, TypeGuard
from weakref import WeakValueDictionary

import dask
import numpy as np

from wkdask.errors import ArgumentError
from wkdask.geometry import BoundingBox
from wkdask.grids import (
    AxisChunks,
    BasicIndex,
    Chunks,
    ChunksLike,
    axis_overlaps,
    cut_axis,
    region_of,
)
from wkdask.runtime.executors import refuse_query_planning
from wkdask.storage.volume import Volume, Voxels

if TYPE_CHECKING:
    import dask.array as da

__all__ = [
    "VolumeArray",
    "chunked",
    "file_lengths",
    "handle_of",
    "narrowed",
    "part_of",
    "to_dask",
]


@dataclass(frozen=True, slots=True, weakref_slot=True)
class VolumeArray:
    """A region of a volume; a basic index reads the voxels that it asks for.

    Examples
    --------
    >>> volume = WkwVolume.create("tissue/1", VolumeHeader("uint8", block_edge=8))
    >>> array = VolumeArray.of_box(volume, BoundingBox((5, 5, 5), (100, 100, 100)))
    >>> array.narrowed(np.s_[0, ..., ::-25]).shape
    (100, 100, 4)
    >>> array[0, 10:20, ::-25, -1].shape
    (10, 4)
    """

    volume: Volume
    positions: tuple[range, range, range, range]
    """Channels and absolute positions of voxels, `(c, x, y, z)`; any step."""
    axes: tuple[int, ...] = (0, 1, 2, 3)
    """The axes of the array among `(c, x, y, z)`; each other one has one position."""

    @classmethod
    def of_box(cls, volume: Volume, box: BoundingBox) -> VolumeArray:
        """Return the array `(c, x, y, z)` of a box in absolute positions."""
        return cls(volume, (range(volume.layout.num_channels), *region_of(box)))

    @property
    def shape(self) -> tuple[int, ...]:
        """Positions per axis."""
        return tuple(len(self.positions[axis]) for axis in self.axes)

    @property
    def ndim(self) -> int:
        """Number of axes, at most 4."""
        return len(self.axes)

    @property
    def dtype(self) -> np.dtype[np.generic]:
        """The dtype of one channel."""
        return np.dtype(self.volume.layout.dtype)

    def narrowed(self, index: BasicIndex) -> VolumeArray:
        """Return the part that a basic index asks for, without new axes for None; read nothing."""
        positions, axes = list(self.positions), []
        parts = (part for part in _full_index(index, self.ndim) if part is not None)
        for axis, part in zip(self.axes, parts, strict=True):
            positions[axis] = _chosen(part, positions[axis])
            if isinstance(part, slice):
                axes.append(axis)
        c, x, y, z = positions
        return VolumeArray(self.volume, (c, x, y, z), tuple(axes))

    def transposed(self, order: Sequence[int]) -> VolumeArray:
        """Return the array with its axes in another order; read nothing."""
        return VolumeArray(self.volume, self.positions, tuple(self.axes[at] for at in order))

    def read(self) -> Voxels:
        """Read all its voxels."""
        c, x, y, z = self.positions
        voxels = self.volume.read((_ascending(x), _ascending(y), _ascending(z)))
        turned = (slice(None, None, 1 if axis.step > 0 else -1) for axis in (x, y, z))
        part = voxels[(_as_slice(c), *turned)]
        dropped = tuple(axis for axis in range(4) if axis not in self.axes)
        return part.squeeze(dropped).transpose(np.argsort(np.argsort(self.axes)))

    def __getitem__(self, index: BasicIndex) -> Voxels:
        return self.narrowed(index).read()[_new_axes(index, self.ndim)]


# Handles by the names of their arrays; a handle stays while a graph refers to it.
_HANDLES: WeakValueDictionary[str, VolumeArray] = WeakValueDictionary()


def to_dask(volume: Volume, box: BoundingBox, chunks: ChunksLike = "file") -> da.Array:
    """Return a lazy array `(c, x, y, z)` of a box in absolute positions; see `View.to_dask`.

    Besides an edge length, an axis may have a tuple with the lengths of all its chunks. Edge
    lengths cut on absolute multiples, so that chunks lie within files wherever the box begins.
    """
    handle = VolumeArray.of_box(volume, box)
    return chunked(handle, _chunk_lengths(handle, chunks))


def part_of(volume: Volume, box: BoundingBox, index: object) -> da.Array:
    """Return a lazy part of a box, by an index into the array `(c, x, y, z)` of its voxels.

    A basic index becomes a `VolumeArray`, so that no other voxels are read: dask itself reads whole
    chunks for negative steps and most chains of slices. It handles all other indices.
    """
    if not _is_basic(index):
        whole: da.Array = to_dask(volume, box)[index]
        return whole
    handle = VolumeArray.of_box(volume, box).narrowed(index)
    part: da.Array = chunked(handle, file_lengths(handle))[_new_axes(index, 4)]
    return part


def chunked(handle: VolumeArray, lengths: Chunks) -> da.Array:
    """Return a handle as a lazy array with chunks of the given lengths per axis."""
    import dask.array as da

    refuse_query_planning()
    volume = handle.volume
    lengths = tuple(map(tuple, lengths))
    # The version gives a changed volume another name, so that dask returns no older voxels.
    token = dask.base.tokenize(
        volume.identity, volume.layout, handle.positions, handle.axes, lengths, volume.version()
    )
    name = f"wkdask-{volume.key}-{token}"
    _HANDLES[name] = handle
    array: da.Array = da.from_array(
        handle,
        chunks=lengths,
        name=name,
        lock=False,
        asarray=False,
        inline_array=True,
        meta=np.empty((0,) * handle.ndim, dtype=handle.dtype),
    )
    return array


def handle_of(array: da.Array) -> VolumeArray | None:
    """Return the handle of an array that `chunked` made in this process, or None for another."""
    from dask.blockwise import Blockwise

    # A persisted array has the same name, but its layer holds results instead of reads.
    is_read = isinstance(array.dask.layers.get(array.name), Blockwise)
    return _HANDLES.get(array.name) if is_read else None


def narrowed(array: da.Array, handle: VolumeArray, index: BasicIndex) -> da.Array:
    """Return a part of the array of a handle, by a basic index, that reads no other voxels.

    Its chunks end where those of the array end.
    """
    parts = zip(_full_index(index, handle.ndim), array.chunks, strict=True)
    lengths = (_kept_lengths(part, axis) for part, axis in parts if isinstance(part, slice))
    return chunked(handle.narrowed(index), tuple(lengths))


def _kept_lengths(part: slice, lengths: tuple[int, ...]) -> tuple[int, ...]:
    """Return how many positions of a slice lie in each chunk, in the slice's order."""
    owners = np.searchsorted(np.cumsum(lengths), np.arange(sum(lengths))[part], side="right")
    _, firsts, counts = np.unique(owners, return_index=True, return_counts=True)
    return tuple(counts[np.argsort(firsts)].tolist()) or (0,)


def _is_basic(index: object) -> TypeGuard[BasicIndex]:
    if isinstance(index, tuple):
        return not any(isinstance(part, tuple) for part in index) and all(map(_is_basic, index))
    if isinstance(index, bool):
        return False
    return index is None or index is Ellipsis or isinstance(index, slice | int | np.integer)


def _full_index(index: BasicIndex, ndim: int) -> list[SupportsIndex | slice | None]:
    """Return a basic index with one part for each axis, and None where it adds an axis."""
    parts = index if isinstance(index, tuple) else (index,)
    full = [part for part in parts if not isinstance(part, EllipsisType)]
    given = sum(part is not None for part in full)
    ellipses = parts.count(Ellipsis)
    if given > ndim or ellipses > 1:
        raise IndexError(f"the index {parts} has too many parts for an array of {ndim} axes")
    at = parts.index(Ellipsis) if ellipses else len(parts)
    return [*full[:at], *[slice(None)] * (ndim - given), *full[at:]]


def _new_axes(index: BasicIndex, ndim: int) -> tuple[slice | None, ...]:
    """Return the index that adds the new axes of `index` once its other parts are applied."""
    full = _full_index(index, ndim)
    kept = (part for part in full if part is None or isinstance(part, slice))
    return tuple(None if part is None else slice(None) for part in kept)


def _chosen(part: SupportsIndex | slice, axis: range) -> range:
    """Return the positions that an integer or slice asks for, in its order."""
    if isinstance(part, slice):
        return axis[part]
    at = operator.index(part)
    if not -len(axis) <= at < len(axis):
        raise IndexError(f"index {at} is out of bounds for an axis of {len(axis)} voxels")
    return range(axis[at], axis[at] + 1)


def _as_slice(axis: range) -> slice:
    if not axis:
        return slice(0)
    return slice(axis.start, axis.stop if axis.stop >= 0 else None, axis.step)


def _ascending(axis: range) -> range:
    return axis if axis.step > 0 else axis[::-1]


def file_lengths(handle: VolumeArray) -> Chunks:
    """Return how many positions of each axis lie in each file, in their order."""
    layout = handle.volume.layout
    edges = (layout.num_channels, *layout.file_size)
    return tuple(_lengths_per_cell(handle.positions[axis], edges[axis]) for axis in handle.axes)


def _lengths_per_cell(axis: range, edge: int) -> tuple[int, ...]:
    lengths = [len(voxels) for _, voxels, _ in axis_overlaps(_ascending(axis), edge)] or [0]
    return tuple(lengths if axis.step > 0 else reversed(lengths))


def _chunk_lengths(handle: VolumeArray, chunks: ChunksLike) -> Chunks:
    try:
        given = _chunks_per_axis(handle, chunks)
        starts = (axis.start for axis in handle.positions)
        axes = zip(given, starts, handle.shape, strict=True)
        return tuple(_axis_lengths(part, start, size) for part, start, size in axes)
    except (TypeError, ValueError) as error:
        raise ArgumentError(
            f'chunks is {chunks!r}, but must be "file", "auto", a positive edge length, or one for '
            f"each of (x, y, z) or (c, x, y, z), where -1 spans the axis ({error})."
        ) from None


def _chunks_per_axis(handle: VolumeArray, chunks: ChunksLike) -> tuple[AxisChunks, ...]:
    """Return what `chunks` says of each of the axes `(c, x, y, z)`."""
    if isinstance(chunks, str):
        if chunks not in ("file", "auto"):
            raise ValueError("an unknown word")
        is_file = chunks == "file"
        return (-1, *(handle.volume.layout.file_size if is_file else _auto_edges(handle)))
    given = tuple(chunks) if isinstance(chunks, tuple | list | np.ndarray) else (chunks,) * 3
    if len(given) not in (3, 4):
        raise ValueError(f"these are {len(given)}")
    return given if len(given) == 4 else (-1, *given)


def _axis_lengths(part: AxisChunks, start: int, size: int) -> tuple[int, ...]:
    if isinstance(part, tuple | list | np.ndarray):
        lengths = tuple(operator.index(length) for length in part)
        if sum(lengths) != size or min(lengths, default=0) < 1:
            raise ValueError(f"{lengths} do not fill an axis of {size} voxels")
        return lengths
    edge = operator.index(part)
    if edge < 1 and edge != -1:
        raise ValueError(f"{edge} is no length")
    return cut_axis(start, start + size, edge) if edge != -1 else (size,)


def _auto_edges(handle: VolumeArray) -> list[int]:
    """Double a block's edges in turn while it stays within dask's `array.chunk-size`."""
    layout = handle.volume.layout
    limit = dask.utils.parse_bytes(dask.config.get("array.chunk-size"))
    edges = list(layout.block_size)
    axis = 0
    while math.prod(edges) * layout.voxel_bytes * 2 <= limit:
        room = [edge < size for edge, size in zip(edges, handle.shape[1:], strict=True)]
        if not any(room):
            break
        edges[axis] *= 2 if room[axis] else 1
        axis = (axis + 1) % 3
    return edges
