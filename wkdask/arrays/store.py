"""Dask arrays stored into volumes, so that no two tasks write one file. It knows no views.

Chunks are aligned before anything runs, so the tasks need no locks.
"""

from __future__ import annotations

import math
import uuid
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import TYPE_CHECKING, Literal

import numpy as np
from dask.base import is_dask_collection
from numpy.typing import ArrayLike, NDArray

from wkdask.errors import AlignmentError, ArgumentError
from wkdask.geometry import BoundingBox, Vec3
from wkdask.grids import Chunks, cut_axis
from wkdask.runtime.executors import refuse_query_planning
from wkdask.runtime.journal import Journal
from wkdask.runtime.run import Run, RunReport, run_chunk, run_graph
from wkdask.runtime.stream import task_name
from wkdask.storage.volume import Volume, Voxels, as_voxels, sharing

if TYPE_CHECKING:
    import dask.array as da

__all__ = ["Align", "aligned_array", "reads_from", "run_store", "store_graph"]

Align = Literal["raise", "rechunk"]

_AXES = "cxyz"


def aligned_array(
    source: ArrayLike, volume: Volume, corner: Vec3, *, align: Align, is_new: bool = False
) -> da.Array:
    """Return a dask array `(c, x, y, z)` of which no two chunks write one file or block.

    Its first voxel will be stored at `corner`, an absolute position. `is_new` says that the volume
    is not on disk yet, so that its header there is not checked. See `View.store` for the rest.
    """
    import dask.array as da

    refuse_query_planning()
    if align not in ("raise", "rechunk"):
        raise ArgumentError(f'align is {align!r}, but must be "raise" or "rechunk".')
    if not isinstance(source, da.Array):
        if is_dask_collection(source):
            raise ArgumentError(
                f"the data are a {type(source).__name__}; pass its array (often x.data) with the "
                "axes (c, x, y, z)."
            )
        source = _wrapped(as_voxels(source), volume, corner)
    as_voxels(source._meta)  # noqa: SLF001
    if not is_new:
        volume.check()
    if any(math.isnan(length) for length in source.shape):
        raise ArgumentError(
            f"the array has unknown chunks (shape {source.shape}), so their places in the volume "
            "are unknown too. Call compute_chunk_sizes() on it before."
        )
    array: da.Array = source[np.newaxis] if source.ndim == 3 else source
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
    import dask.array as da

    run = Run(name=task_name("store", volume.path), tag="")
    receipts = _receipts(array, volume, _ArrayGrid(array.chunks[1:], corner), None, run)
    voxels_of = partial(_voxels_of, array.shape[0])
    meta = np.empty((0,) * 4, np.int64)
    voxels: da.Array = da.map_blocks(voxels_of, receipts, dtype=np.int64, meta=meta)
    return voxels


def run_store(
    array: da.Array, volume: Volume, corner: Vec3, run: Run, journal: Journal | None = None
) -> RunReport:
    """Write an array from `aligned_array`, with a bounded number of chunks in flight.

    Arrays of many chunks are written as several graphs in turn, unless the chunks share so much (a
    mean of all, for example) that each graph would compute it again. Raises as `run_chunks`.
    """
    grid = _ArrayGrid(array.chunks[1:], corner)
    return run_graph(_receipts(array, volume, grid, journal, run), grid, run, journal)


def _receipts(
    array: da.Array, volume: Volume, grid: _ArrayGrid, journal: Journal | None, run: Run
) -> da.Array:
    """Return one block per chunk, whose task writes the chunk and returns its voxels and bytes."""
    import dask.array as da
    from dask.layers import ArrayBlockIdDep

    receipts: da.Array = da.blockwise(
        partial(_store_one, volume, grid, journal, run.tag), _AXES, array, _AXES,
        ArrayBlockIdDep(array.chunks), _AXES,
        # A new name each time, because dask does not run a second store of the same name.
        name=f"{run.name}-{uuid.uuid4().hex}",
        adjust_chunks={axis: lambda _: 1 for axis in _AXES},
        align_arrays=False, dtype=object, meta=np.empty((0,) * 4, dtype=object),
    )  # fmt: skip
    return receipts


def _voxels_of(channels: int, receipts: NDArray[np.object_]) -> NDArray[np.int64]:
    return np.full((1,) * 4, receipts.item()[0] // channels, dtype=np.int64)


@dataclass(frozen=True, slots=True)
class _ArrayGrid:
    """The chunks of an array that is stored at a corner in a volume; see `Grid`."""

    chunks: Chunks
    corner: Vec3

    @property
    def shape(self) -> Vec3:
        x, y, z = map(len, self.chunks)
        return x, y, z

    def __len__(self) -> int:
        return math.prod(self.shape)

    def index(self, position: Vec3) -> int:
        x, y, z = position
        return (x * self.shape[1] + y) * self.shape[2] + z

    def chunk_box(self, position: Vec3) -> BoundingBox:
        axes = list(zip(self.chunks, position, self.corner, strict=True))
        starts = (sum(lengths[:at]) + first for lengths, at, first in axes)
        return BoundingBox(starts, (lengths[at] for lengths, at, _ in axes))


def _store_one(
    volume: Volume,
    grid: _ArrayGrid,
    journal: Journal | None,
    tag: str,
    voxels: ArrayLike,
    place: tuple[int, ...],
) -> NDArray[np.object_]:
    def write(position: Vec3) -> None:
        box = grid.chunk_box(position)
        if not box.is_empty:
            # Here too, because a task may outlive the process that began the run.
            with sharing(volume):
                volume.write(box, as_voxels(voxels))

    block: NDArray[np.object_] = np.empty((1,) * 4, dtype=object)
    block[0, 0, 0, 0] = run_chunk(write, grid, journal, tag, (place[1], place[2], place[3]))
    return block


def reads_from(array: da.Array, volume: Volume) -> bool:
    """Return whether an array is computed from voxels of a volume."""
    return any(str(layer).startswith(f"wkdask-{volume.key}-") for layer in array.dask.layers)


def _wrapped(source: Voxels, volume: Volume, corner: Vec3) -> da.Array:
    """Return a NumPy array as a dask array with one chunk per file."""
    import dask.array as da

    if source.ndim not in (3, 4):
        raise ArgumentError(f"the data have shape {source.shape}, but must be (c, x, y, z).")
    axes = zip(corner, source.shape[-3:], volume.layout.file_size, strict=True)
    cuts = [cut_axis(start, start + size, edge) for start, size, edge in axes]
    array: da.Array = da.from_array(source, chunks=(*source.shape[:-3], *cuts), name=False)
    return array


def _aligned_chunks(chunks: Chunks, volume: Volume, corner: Vec3) -> Chunks:
    """Move each border between two chunks down to a border of files or blocks."""
    axes = zip(chunks[1:], corner, volume.layout.write_size, strict=True)
    return ((sum(chunks[0]),), *(_snapped(*axis) for axis in axes))


def _snapped(lengths: tuple[int, ...], start: int, unit: int) -> tuple[int, ...]:
    ends = np.cumsum(lengths, dtype=np.int64) + start
    inner = {int(end) // unit * unit for end in ends[:-1]}
    borders = sorted({start, *(at for at in inner if at > start), int(ends[-1])})
    return tuple(b - a for a, b in pairwise(borders)) or (0,)


def _without_empty(chunks: Chunks) -> Chunks:
    return tuple(tuple(length for length in axis if length) or (0,) for axis in chunks)


def _misaligned(chunks: Chunks, volume: Volume, corner: Vec3, aligned: Chunks) -> AlignmentError:
    unit = volume.layout.write_unit
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
    axes = zip(chunks[1:], corner, volume.layout.write_size, strict=True)
    for axis, (lengths, first, edge) in enumerate(axes):
        stop = first
        for number, length in enumerate(lengths[:-1]):
            start, stop = stop, stop + length
            if stop % edge:
                at = list(corner)
                at[axis] = stop
                file = next(volume.cells(BoundingBox(at, (1, 1, 1))))
                path = volume.file_path(file)
                return (
                    f"chunk {number} of axis {'xyz'[axis]}, voxels [{start}, {stop}), ends inside "
                    f"a {unit} of edge {edge} in {path}"
                )
    raise AssertionError("aligned chunks have no collision")


def _short(chunks: Chunks) -> str:
    """Return chunks as Python code, with a repeated length written once."""
    return "(" + ", ".join(_short_axis(axis) for axis in chunks) + ")"


def _short_axis(axis: tuple[int, ...]) -> str:
    middle = set(axis[1:-1])
    if len(axis) <= 6 or len(middle) > 1:
        return repr(axis)
    return f"({axis[0]}, *[{middle.pop()}] * {len(axis) - 2}, {axis[-1]})"
