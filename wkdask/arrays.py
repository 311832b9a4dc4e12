"""Volumes as lazy dask arrays, and dask arrays stored into volumes; it knows no views.

A lazy array is one graph layer over a handle: path, header and box, a few hundred bytes and never
an open file. Which voxels a slice needs is decided by `VolumeArray`, which reads just those.
"""

from __future__ import annotations

import math
import operator
import uuid
from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import Any, Literal

import dask
import dask.array as da
import numpy as np
from dask.layers import ArraySliceDep
from numpy.typing import NDArray

from wkdask.errors import AlignmentError, ArgumentError
from wkdask.geometry import BoundingBox, Vec3
from wkdask.grid import Region, cut_axis
from wkdask.scheduling import refuse_query_planning
from wkdask.volume import Volume

__all__ = ["Align", "VolumeArray", "aligned_array", "store_graph", "to_dask"]

Align = Literal["raise", "rechunk"]
Chunks = tuple[tuple[int, ...], ...]

_AXES = "cxyz"


@dataclass(frozen=True, slots=True)
class VolumeArray:
    """A box of a volume that is indexed like an array and reads what the index asks for.

    Indices are those of basic NumPy indexing: integers, and slices with any step.

    Examples
    --------
    >>> volume = Volume.create("tissue/1", VolumeHeader("uint8", block_edge=8))
    >>> array = VolumeArray(volume, BoundingBox((5, 5, 5), (100, 100, 100)))
    >>> array[0, 10:20, ::-25, -1].shape
    (10, 4)
    """

    volume: Volume
    box: BoundingBox
    """Which voxels, in absolute positions."""

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """`(c, x, y, z)`."""
        return (self.volume.header.num_channels, *self.box.size)

    @property
    def ndim(self) -> int:
        """Always 4."""
        return 4

    @property
    def dtype(self) -> np.dtype[Any]:
        """The dtype of one channel."""
        return np.dtype(self.volume.header.dtype)

    def __getitem__(self, index: Any) -> NDArray[Any]:
        channel, *spatial = _full_index(index)
        starts_and_sizes = zip(spatial, self.box.topleft, self.box.size, strict=True)
        axes = [_wanted(part, start, size) for part, start, size in starts_and_sizes]
        voxels: NDArray[Any] = self.volume.read(_ascending(axes))
        # What `read` can't do is left to NumPy: descending axes, dropped axes, channels.
        rest = (_remaining(part, axis) for part, axis in zip(spatial, axes, strict=True))
        part: NDArray[Any] = voxels[(channel, *rest)]
        return part


def to_dask(volume: Volume, box: BoundingBox, chunks: Any = "file") -> da.Array:
    """Return a lazy array `(c, x, y, z)` of a box; nothing is read yet.

    Parameters
    ----------
    volume
        Where the voxels lie.
    box
        Which voxels, in absolute positions.
    chunks
        `"file"`, `"auto"`, an edge length, three of them `(x, y, z)` or four `(c, x, y, z)`, where
        -1 spans the axis and a tuple gives the chunks of an axis one by one. Edge lengths cut on
        absolute multiples, so that chunks lie within files wherever the view begins.

    Raises
    ------
    ArgumentError
        If `chunks` is none of these.
    MissingError
        If the directory is gone.
    """
    refuse_query_planning()
    handle = VolumeArray(volume, box)
    lengths = _chunk_lengths(handle, chunks)
    # The version makes the name new after every change, so that dask never returns older data.
    token = dask.base.tokenize(
        volume.path, volume.header, box.topleft, box.size, lengths, volume.version()
    )
    return da.from_array(
        handle,
        chunks=lengths,
        name=f"wkdask-{token}",
        lock=False,
        asarray=False,
        fancy=False,
        inline_array=True,
        meta=np.empty((0,) * 4, dtype=handle.dtype),
    )


def aligned_array(source: Any, volume: Volume, corner: Vec3, *, align: Align) -> da.Array:
    """Return `source` as a dask array of which no two chunks write one file or block.

    Parameters
    ----------
    source
        A dask or NumPy array, `(c, x, y, z)`, or `(x, y, z)` for one channel.
    volume
        Where it will be stored.
    corner
        Where its first voxel will be, in absolute positions.
    align
        `"raise"` refuses chunks that do not fit; `"rechunk"` moves their borders to where they do.

    Raises
    ------
    ArgumentError
        If dtype, shape or chunks can't be stored at all.
    AlignmentError
        If two chunks would write one file (compressed) or block (raw).
    """
    refuse_query_planning()
    if align not in ("raise", "rechunk"):
        raise ArgumentError(f'align is {align!r}, but must be "raise" or "rechunk".')
    if not isinstance(source, da.Array):
        if dask.is_dask_collection(source):
            raise ArgumentError(
                f"the data are a lazy {type(source).__name__}; pass its dask array (often x.data) "
                "with the axes (c, x, y, z)."
            )
        source = _wrapped(np.asarray(source), volume, corner)
    if any(math.isnan(length) for length in source.shape):
        raise ArgumentError(
            f"the array has unknown chunks (shape {source.shape}), so nobody can say where they "
            "belong. Call compute_chunk_sizes() on it before."
        )
    array = source[np.newaxis] if source.ndim == 3 else source
    volume.check_voxels(array.dtype, array.shape)
    aligned = _aligned_chunks(array.chunks, volume, corner)
    if aligned != _without_empty(array.chunks):
        if align == "raise":
            raise _misaligned(array.chunks, volume, corner, aligned)
        array = array.rechunk(aligned)
    return array


def store_graph(array: da.Array, volume: Volume, corner: Vec3) -> da.Array:
    """Return the lazy writes of an array from `aligned_array`: voxels written, per chunk."""
    # A fresh name each time: dask would not run a second store of the same name.
    return da.blockwise(
        partial(_store_chunk, volume, corner),
        _AXES,
        array,
        _AXES,
        ArraySliceDep(array.chunks),
        _AXES,
        name=f"wkdask-store-{uuid.uuid4().hex}",
        adjust_chunks={axis: lambda _: 1 for axis in _AXES},
        align_arrays=False,
        dtype=np.int64,
        meta=np.empty((0,) * 4, dtype=np.int64),
    )


def _store_chunk(
    volume: Volume, corner: Vec3, voxels: Any, place: tuple[slice, ...]
) -> NDArray[np.int64]:
    array = np.asarray(voxels)
    box = BoundingBox.from_corners(
        (axis.start for axis in place[1:]), (axis.stop for axis in place[1:])
    )
    if not box.is_empty:
        volume.write(box.moved_by(corner), array)
    return np.full((1,) * 4, box.volume, dtype=np.int64)


def _full_index(index: Any) -> list[Any]:
    parts = list(index) if isinstance(index, tuple) else [index]
    if Ellipsis in parts:
        at = parts.index(Ellipsis)
        parts[at : at + 1] = [slice(None)] * (5 - len(parts))
    return parts + [slice(None)] * (4 - len(parts))


def _wanted(part: Any, start: int, size: int) -> range:
    """Return the absolute positions that an index of one axis asks for, in its order."""
    if isinstance(part, slice):
        asked = range(*part.indices(size))
        return range(start + asked.start, start + asked.stop, asked.step)
    at = operator.index(part)
    if not -size <= at < size:
        raise IndexError(f"index {at} is out of bounds for an axis of {size} voxels")
    at = start + at % size
    return range(at, at + 1)


def _ascending(axes: Iterable[range]) -> Region:
    x, y, z = (axis if axis.step > 0 else axis[::-1] for axis in axes)
    return x, y, z


def _remaining(part: Any, axis: range) -> Any:
    if not isinstance(part, slice):
        return 0
    return slice(None) if axis.step > 0 else slice(None, None, -1)


def _chunk_lengths(handle: VolumeArray, chunks: Any) -> Chunks:
    header = handle.volume.header
    if isinstance(chunks, str):
        if chunks not in ("file", "auto"):
            raise _bad_chunks(chunks)
        edges = (header.file_edge,) * 3 if chunks == "file" else _auto_edges(handle)
        chunks = (-1, *edges)
    elif hasattr(chunks, "__index__"):
        chunks = (-1, chunks, chunks, chunks)
    try:
        given = tuple(chunks)
    except TypeError:
        raise _bad_chunks(chunks) from None
    if len(given) not in (3, 4):
        raise _bad_chunks(chunks)
    starts = (0, *handle.box.topleft)
    axes = zip(given if len(given) == 4 else (-1, *given), starts, handle.shape, strict=True)
    return tuple(_axis_lengths(part, start, size, chunks) for part, start, size in axes)


def _axis_lengths(part: Any, start: int, size: int, chunks: Any) -> tuple[int, ...]:
    if isinstance(part, tuple | list):
        lengths = tuple(int(length) for length in part)
        if sum(lengths) != size or min(lengths, default=1) < 1 or lengths != tuple(part):
            raise _bad_chunks(chunks, f" The chunks {part} do not fill an axis of {size} voxels.")
        return lengths
    if not hasattr(part, "__index__") or (operator.index(part) < 1 and part != -1):
        raise _bad_chunks(chunks)
    return cut_axis(start, start + size, operator.index(part)) if part != -1 else (size,)


def _bad_chunks(chunks: Any, detail: str = "") -> ArgumentError:
    return ArgumentError(
        f'chunks is {chunks!r}, but must be "file", "auto", a positive edge length, or one for '
        f"each of (x, y, z) or (c, x, y, z), where -1 spans the axis.{detail}"
    )


def _auto_edges(handle: VolumeArray) -> list[int]:
    """Double a block's edges in turn while it stays within dask's `array.chunk-size`."""
    header, box = handle.volume.header, handle.box
    limit = dask.utils.parse_bytes(dask.config.get("array.chunk-size"))
    edges = [header.block_edge] * 3
    axis = 0
    while math.prod(edges) * header.voxel_bytes * 2 <= limit:
        room = [edge < -(-size // edge) * edge for edge, size in zip(edges, box.size, strict=True)]
        if not any(room):
            break
        edges[axis] *= 2 if room[axis] else 1
        axis = (axis + 1) % 3
    return edges


def _wrapped(source: NDArray[Any], volume: Volume, corner: Vec3) -> da.Array:
    """Return a NumPy array as a dask array with one chunk per file."""
    if source.ndim not in (3, 4):
        raise ArgumentError(f"the data have shape {source.shape}, but must be (c, x, y, z).")
    edge = volume.header.file_edge
    cuts = [
        cut_axis(start, start + size, edge)
        for start, size in zip(corner, source.shape[-3:], strict=True)
    ]
    return da.from_array(source, chunks=(*source.shape[:-3], *cuts), name=False)


def _aligned_chunks(chunks: Chunks, volume: Volume, corner: Vec3) -> Chunks:
    """Move each border between two chunks down to the grid on which tasks may meet."""
    unit = volume.header.write_edge
    axes = zip(chunks[1:], corner, strict=True)
    return ((sum(chunks[0]),), *(_snapped(lengths, start, unit) for lengths, start in axes))


def _snapped(lengths: tuple[int, ...], start: int, unit: int) -> tuple[int, ...]:
    ends = np.cumsum(lengths, dtype=np.int64) + start
    inner = {int(end) // unit * unit for end in ends[:-1]}
    borders = sorted({start, *(at for at in inner if at > start), int(ends[-1])})
    return tuple(b - a for a, b in pairwise(borders)) or (0,)


def _without_empty(chunks: Chunks) -> Chunks:
    return tuple(tuple(length for length in axis if length) or (0,) for axis in chunks)


def _misaligned(chunks: Chunks, volume: Volume, corner: Vec3, aligned: Chunks) -> AlignmentError:
    header = volume.header
    unit = "file" if header.is_compressed else "block"
    if len(chunks[0]) > 1:
        problem = f"the channels lie in {len(chunks[0])} chunks {chunks[0]}, but a {unit} holds all"
    else:
        problem = _first_collision(chunks, volume, corner, unit)
    return AlignmentError(
        f"{problem}: two tasks would write it. Use x.rechunk({_short(aligned)}), or pass "
        'align="rechunk".'
    )


def _first_collision(chunks: Chunks, volume: Volume, corner: Vec3, unit: str) -> str:
    """Describe the first chunk that ends within a file or block."""
    header = volume.header
    edge = header.write_edge
    for axis, (lengths, first) in enumerate(zip(chunks[1:], corner, strict=True)):
        stop = first
        for number, length in enumerate(lengths[:-1]):
            start, stop = stop, stop + length
            if length and stop % edge:
                at = list(corner)
                at[axis] = stop
                cell = tuple(position // header.file_edge for position in at)
                path = volume.file_path((cell[0], cell[1], cell[2]))
                return (
                    f"chunk {number} of axis {'xyz'[axis]}, voxels [{start}, {stop}), ends inside "
                    f"a {unit} of edge {edge} in {path}"
                )
    raise AssertionError("aligned chunks have no collision")


def _short(chunks: Chunks) -> str:
    """Return chunks as text that dask takes, with long axes written as they repeat."""
    return "(" + ", ".join(_short_axis(axis) for axis in chunks) + ")"


def _short_axis(axis: tuple[int, ...]) -> str:
    middle = set(axis[1:-1])
    if len(axis) <= 6 or len(middle) > 1:
        return repr(axis)
    return f"({axis[0]}, *[{middle.pop()}] * {len(axis) - 2}, {axis[-1]})"
