"""Volumes as lazy dask arrays, and dask arrays stored into volumes; it knows no views.

A lazy array is one graph layer over a handle: path, header and region, a few hundred bytes and
never an open file. Which voxels a slice needs is decided by `VolumeArray`, which reads just those.
"""

from __future__ import annotations

import math
import operator
import uuid
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
from wkdask.grid import axis_overlaps, cut_axis, region_of
from wkdask.scheduling import refuse_query_planning
from wkdask.volume import Volume

__all__ = ["Align", "VolumeArray", "aligned_array", "part_of", "store_graph", "to_dask"]

Align = Literal["raise", "rechunk"]
Chunks = tuple[tuple[int, ...], ...]

_AXES = "cxyz"


@dataclass(frozen=True, slots=True)
class VolumeArray:
    """A region of a volume that is indexed like an array and reads what the index asks for.

    Indices are those of basic NumPy indexing: integers, slices with any step, `...` and None.

    Examples
    --------
    >>> volume = Volume.create("tissue/1", VolumeHeader("uint8", block_edge=8))
    >>> array = VolumeArray.of_box(volume, BoundingBox((5, 5, 5), (100, 100, 100)))
    >>> array.narrowed(np.s_[0, ..., ::-25]).shape
    (100, 100, 4)
    >>> array[0, 10:20, ::-25, -1].shape
    (10, 4)
    """

    volume: Volume
    positions: tuple[range, range, range, range]
    """The channels and the voxels, in absolute positions, `(c, x, y, z)`; any step."""
    axes: tuple[int, ...] = (0, 1, 2, 3)
    """Which of the four are axes; the others have one position and are dropped."""

    @classmethod
    def of_box(cls, volume: Volume, box: BoundingBox) -> VolumeArray:
        """Return the array `(c, x, y, z)` of a box in absolute positions."""
        return cls(volume, (range(volume.header.num_channels), *region_of(box)))

    @property
    def shape(self) -> tuple[int, ...]:
        """Positions per axis."""
        return tuple(len(self.positions[axis]) for axis in self.axes)

    @property
    def ndim(self) -> int:
        """Number of axes, at most 4."""
        return len(self.axes)

    @property
    def dtype(self) -> np.dtype[Any]:
        """The dtype of one channel."""
        return np.dtype(self.volume.header.dtype)

    def narrowed(self, index: Any) -> VolumeArray:
        """Return the array of what a basic index asks for, Nones aside; nothing is read."""
        positions, axes = list(self.positions), []
        parts = (part for part in _full_index(index, self.ndim) if part is not None)
        for axis, part in zip(self.axes, parts, strict=True):
            positions[axis] = _chosen(part, positions[axis])
            if isinstance(part, slice):
                axes.append(axis)
        c, x, y, z = positions
        return VolumeArray(self.volume, (c, x, y, z), tuple(axes))

    def read(self) -> NDArray[Any]:
        """Read it all."""
        c, x, y, z = self.positions
        voxels = self.volume.read((_ascending(x), _ascending(y), _ascending(z)))
        turned = (slice(None, None, 1 if axis.step > 0 else -1) for axis in (x, y, z))
        part: NDArray[Any] = voxels[(_as_slice(c), *turned)]
        dropped = tuple(axis for axis in range(4) if axis not in self.axes)
        return part.squeeze(dropped)

    def __getitem__(self, index: Any) -> NDArray[Any]:
        part: NDArray[Any] = self.narrowed(index).read()[_new_axes(index, self.ndim)]
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
    handle = VolumeArray.of_box(volume, box)
    return _lazy(handle, _chunk_lengths(handle, chunks))


def part_of(volume: Volume, box: BoundingBox, index: Any) -> da.Array:
    """Return a lazy part of a box, by an index into the array `(c, x, y, z)` of its voxels.

    Integers, slices, `...` and None choose voxels before dask sees them, so that whatever follows,
    no others are read. Left to itself, dask reads whole chunks for negative steps and most chains
    of slices. Other indices are left to it.
    """
    if not _is_basic(index):
        return to_dask(volume, box)[index]
    handle = VolumeArray.of_box(volume, box).narrowed(index)
    return _lazy(handle, _file_lengths(handle))[_new_axes(index, 4)]


def _lazy(handle: VolumeArray, lengths: Chunks) -> da.Array:
    refuse_query_planning()
    volume = handle.volume
    # The version makes the name new after every change, so that dask never returns older data.
    token = dask.base.tokenize(
        volume.path, volume.header, handle.positions, handle.axes, lengths, volume.version()
    )
    return da.from_array(
        handle,
        chunks=lengths,
        name=f"wkdask-{token}",
        lock=False,
        asarray=False,
        inline_array=True,
        meta=np.empty((0,) * handle.ndim, dtype=handle.dtype),
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
        source = _wrapped(np.asanyarray(source), volume, corner)
    _check_unmasked(source._meta)
    if any(math.isnan(length) for length in source.shape):
        raise ArgumentError(
            f"the array has unknown chunks (shape {source.shape}), so nobody can say where they "
            "belong. Call compute_chunk_sizes() on it before."
        )
    array = source[np.newaxis] if source.ndim == 3 else source
    volume.check_voxels(array.dtype, array.shape)
    chunks = _without_empty(array.chunks)
    aligned = _aligned_chunks(chunks, volume, corner)
    if aligned != chunks:
        if align == "raise":
            raise _misaligned(chunks, volume, corner, aligned[-source.ndim :])
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
    _check_unmasked(voxels)
    array = np.asarray(voxels)
    box = BoundingBox.from_corners(
        (axis.start for axis in place[1:]), (axis.stop for axis in place[1:])
    )
    if not box.is_empty:
        volume.write(box.moved_by(corner), array)
    return np.full((1,) * 4, box.volume, dtype=np.int64)


def _check_unmasked(array: Any) -> None:
    if isinstance(array, np.ma.MaskedArray):
        raise ArgumentError(
            "the array is masked, but WKW stores no mask. Say what is stored under it: "
            "x = da.ma.filled(x, 0)."
        )


def _is_basic(index: Any) -> bool:
    if isinstance(index, tuple):
        return not any(isinstance(part, tuple) for part in index) and all(map(_is_basic, index))
    if isinstance(index, bool):
        return False
    return index is None or index is Ellipsis or isinstance(index, slice | int | np.integer)


def _full_index(index: Any, ndim: int) -> list[Any]:
    """Return a basic index as one part for each of the axes, and the Nones between them."""
    parts = index if isinstance(index, tuple) else (index,)
    given = sum(part is not None and part is not Ellipsis for part in parts)
    ellipses = parts.count(Ellipsis)
    if given > ndim or ellipses > 1:
        raise IndexError(f"the index {parts} has too many parts for an array of {ndim} axes")
    at = parts.index(Ellipsis) if ellipses else len(parts)
    return [*parts[:at], *[slice(None)] * (ndim - given), *parts[at + 1 :]]


def _new_axes(index: Any, ndim: int) -> tuple[slice | None, ...]:
    """Return the index that adds the Nones of `index` when all else is done."""
    full = _full_index(index, ndim)
    kept = (part for part in full if part is None or isinstance(part, slice))
    return tuple(None if part is None else slice(None) for part in kept)


def _chosen(part: Any, axis: range) -> range:
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


def _file_lengths(handle: VolumeArray) -> Chunks:
    """Return how many positions of each axis lie in each file, in their order."""
    header = handle.volume.header
    edges = (header.num_channels, *(header.file_edge,) * 3)
    return tuple(_lengths_per_cell(handle.positions[axis], edges[axis]) for axis in handle.axes)


def _lengths_per_cell(axis: range, edge: int) -> tuple[int, ...]:
    lengths = [len(voxels) for _, voxels, _ in axis_overlaps(_ascending(axis), edge)] or [0]
    return tuple(lengths if axis.step > 0 else reversed(lengths))


def _chunk_lengths(handle: VolumeArray, chunks: Any) -> Chunks:
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


def _chunks_per_axis(handle: VolumeArray, chunks: Any) -> tuple[Any, ...]:
    """Return what `chunks` says of each of the axes `(c, x, y, z)`."""
    if isinstance(chunks, str):
        if chunks not in ("file", "auto"):
            raise ValueError("an unknown word")
        edge = handle.volume.header.file_edge
        return (-1, *((edge,) * 3 if chunks == "file" else _auto_edges(handle)))
    given = tuple(chunks) if isinstance(chunks, tuple | list | np.ndarray) else (chunks,) * 3
    if len(given) not in (3, 4):
        raise ValueError(f"these are {len(given)}")
    return given if len(given) == 4 else (-1, *given)


def _axis_lengths(part: Any, start: int, size: int) -> tuple[int, ...]:
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
    header = handle.volume.header
    limit = dask.utils.parse_bytes(dask.config.get("array.chunk-size"))
    edges = [header.block_edge] * 3
    axis = 0
    while math.prod(edges) * header.voxel_bytes * 2 <= limit:
        room = [
            edge < -(-size // edge) * edge
            for edge, size in zip(edges, handle.shape[1:], strict=True)
        ]
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
            if stop % edge:
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
