"""Regular grids over voxels: which cells a region touches, and the chunks of a box.

Files in a volume, blocks in a file and chunks in a view are such cells; the module knows none of
them. Cells lie on absolute multiples of their size. A region has one `range` per axis, so that it
may skip voxels (`x[::4]`); a box is a region with step 1.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import pairwise, product
from types import EllipsisType
from typing import SupportsIndex

import numpy as np
from numpy.typing import NDArray

from wkdask.errors import AlignmentError, ArgumentError
from wkdask.geometry import BoundingBox, Vec3, positive3

__all__ = [
    "AxisChunks",
    "BasicIndex",
    "ChunkGrid",
    "Chunks",
    "ChunksLike",
    "Overlap",
    "Region",
    "axis_overlaps",
    "box_of",
    "check_apart",
    "chunk_grid",
    "cut_axis",
    "edge_text",
    "overlaps",
    "paired_grids",
    "region_of",
    "slices_in",
]

Region = tuple[range, range, range]
"""Voxel positions wanted per axis `(x, y, z)`, each an ascending `range`."""

Slices = tuple[slice, slice, slice]


@dataclass(frozen=True, slots=True)
class Overlap:
    """The voxels that one cell and a region have in common."""

    cell: Vec3
    """The cell's place in the grid, `(x, y, z)`."""
    source: Region
    """The common voxels, counted from the cell's first one."""
    target: Slices
    """The same voxels in an array of the region's shape, `(x, y, z)`."""

    @property
    def source_slices(self) -> Slices:
        """`source` as slices of an array of the whole cell, `(x, y, z)`."""
        x, y, z = (slice(axis.start, axis.stop, axis.step) for axis in self.source)
        return x, y, z


def region_of(box: BoundingBox) -> Region:
    """Return the region of every voxel of `box`."""
    x, y, z = (range(a, b) for a, b in zip(box.topleft, box.bottomright, strict=True))
    return x, y, z


def slices_in(part: BoundingBox, corner: Vec3) -> Slices:
    """Return the slices of a part in an array `(x, y, z)` whose first voxel is at `corner`.

    Examples
    --------
    >>> slices_in(BoundingBox((5, 5, 5), (2, 1, 1)), (4, 5, 5))
    (slice(1, 3, None), slice(0, 1, None), slice(0, 1, None))
    """
    starts = (at - first for at, first in zip(part.topleft, corner, strict=True))
    x, y, z = (slice(at, at + size) for at, size in zip(starts, part.size, strict=True))
    return x, y, z


def box_of(region: Region) -> BoundingBox:
    """Return the smallest box around a region that is not empty."""
    return BoundingBox.from_corners((axis[0] for axis in region), (axis[-1] + 1 for axis in region))


def overlaps(region: Region, cell_size: Vec3) -> Iterator[Overlap]:
    """Cut a region into its parts per cell, z outermost and x fastest, as files and blocks lie.

    Invariants: the targets partition an array of the region's shape, and no part is empty.

    Examples
    --------
    >>> [(part.cell[0], part.target[0]) for part in overlaps(
    ...     (range(30, 70), range(1), range(1)), (32, 32, 32))]
    [(0, slice(0, 2, None)), (1, slice(2, 34, None)), (2, slice(34, 40, None))]
    """
    xs, ys, zs = (
        list(axis_overlaps(axis, edge)) for axis, edge in zip(region, cell_size, strict=True)
    )
    for (cz, sz, tz), (cy, sy, ty), (cx, sx, tx) in product(zs, ys, xs):
        yield Overlap((cx, cy, cz), (sx, sy, sz), (tx, ty, tz))


def axis_overlaps(axis: range, edge: int) -> Iterator[tuple[int, range, slice]]:
    """Cut one ascending axis of a region; yield cell, source and target as in `Overlap`."""
    done = 0
    while done < len(axis):
        cell = axis[done] // edge
        # Voxels of the axis that lie below the end of this cell.
        stop = min(len(axis), -(-((cell + 1) * edge - axis.start) // axis.step))
        base = cell * edge
        source = range(axis[done] - base, axis[stop - 1] - base + 1, axis.step)
        yield cell, source, slice(done, stop)
        done = stop


def cut_axis(start: int, stop: int, edge: int) -> tuple[int, ...]:
    """Return the lengths of the pieces of `[start, stop)` between absolute multiples of `edge`.

    Examples
    --------
    >>> cut_axis(10, 110, 64)
    (54, 46)
    """
    borders = [start, *range((start // edge + 1) * edge, stop, edge), stop]
    return tuple(b - a for a, b in pairwise(borders))


Chunks = tuple[tuple[int, ...], ...]
"""The lengths of chunks per axis, as dask gives them."""

AxisChunks = SupportsIndex | tuple[SupportsIndex, ...] | list[int] | NDArray[np.generic]
"""The chunks of one axis: their edge, -1 for one chunk, or the length of each."""

ChunksLike = str | SupportsIndex | Sequence[AxisChunks] | NDArray[np.generic]
"""Chunks as `View.to_dask` takes them: a word, an edge, or edges or lengths per axis."""

_Part = SupportsIndex | slice | EllipsisType | None
BasicIndex = _Part | tuple[_Part, ...]
"""An index of basic NumPy indexing: integers, slices with any step, `...` and None."""


@dataclass(frozen=True, slots=True)
class ChunkGrid:
    """The chunks of a box: cells of `chunk_size` on absolute multiples, clipped at the box.

    Chunks are counted from 0, x outermost and z fastest.
    """

    box: BoundingBox
    """The box that is cut; not empty."""
    chunk_size: Vec3
    """Voxels per axis of a chunk that is not clipped."""

    @property
    def shape(self) -> Vec3:
        """Chunks per axis, `(x, y, z)`."""
        x, y, z = (-(-stop // edge) - start // edge for start, stop, edge in self._axes())
        return x, y, z

    def __len__(self) -> int:
        return math.prod(self.shape)

    @property
    def chunks(self) -> tuple[tuple[int, ...], ...]:
        """The lengths of the chunks per axis, as dask gives them."""
        return tuple(cut_axis(*axis) for axis in self._axes())

    @property
    def borders(self) -> tuple[range, ...]:
        """Where two chunks meet, per axis: absolute multiples of `chunk_size` inside the box."""
        return tuple(
            range((start // edge + 1) * edge, stop, edge) for start, stop, edge in self._axes()
        )

    def index(self, position: Vec3) -> int:
        """Return the number of the chunk at a position of the grid."""
        _, ny, nz = self.shape
        x, y, z = position
        return (x * ny + y) * nz + z

    def chunk_box(self, position: Vec3) -> BoundingBox:
        """Return the box of the chunk at a position of the grid, in the unit of `box`."""
        corner = (
            (start // edge + cell) * edge
            for (start, _, edge), cell in zip(self._axes(), position, strict=True)
        )
        return self.box.intersected_with(BoundingBox(corner, self.chunk_size))

    def __iter__(self) -> Iterator[BoundingBox]:
        return (self.chunk_box(at) for at in product(*map(range, self.shape)))  # type: ignore[arg-type]

    def _axes(self) -> Iterator[tuple[int, int, int]]:
        return zip(self.box.topleft, self.box.bottomright, self.chunk_size, strict=True)


def chunk_grid(box: BoundingBox, chunk_size: Vec3) -> ChunkGrid:
    """Return the chunks of a box; an empty box and empty chunks are refused."""
    if box.is_empty:
        raise ArgumentError(f"the view ({box}) is empty: there is nothing to work on.")
    return ChunkGrid(box, positive3(chunk_size, "chunk_size"))


def check_apart(grid: ChunkGrid, size: Vec3, unit: str) -> None:
    """Raise if two chunks would write one `unit`, a box of `size` voxels."""
    axes = zip(grid.borders, size, strict=True)
    if all(border % edge == 0 for borders, edge in axes for border in borders):
        return
    raise AlignmentError(
        f"chunk_size is {grid.chunk_size}, but chunks of a writable view must not share a {unit} "
        f"(edge {edge_text(size)}), because two tasks would overwrite each other. Use "
        f"{_nearest(grid.chunk_size, size)}, or a view with read_only=True for a function that "
        "only reads."
    )


def paired_grids(
    source: BoundingBox,
    target: BoundingBox,
    source_size: Vec3 | None,
    target_size: Vec3 | None,
    file_size: Vec3,
) -> tuple[ChunkGrid, ChunkGrid]:
    """Return the chunks of two boxes that correspond one by one.

    The ratio of the boxes may differ between axes. Chunks of the target are multiples of
    `file_size`, the size of its files; None is one file. Chunks of the source have the ratio of the
    boxes, as None makes them.
    """
    if source.is_empty or target.is_empty:
        raise ArgumentError(f"a view is empty: source {source.size}, target {target.size}.")
    target_size = positive3(target_size or file_size, "target_chunk_size")
    if any(length % edge for length, edge in zip(target_size, file_size, strict=True)):
        raise AlignmentError(
            f"target_chunk_size is {target_size}, but must be a multiple of the target's file edge "
            f"{edge_text(file_size)}, so that no two chunks write one file. "
            f"Use {_nearest(target_size, file_size)}."
        )
    grids = (
        ChunkGrid(source, _source_size(source, target, source_size, target_size)),
        ChunkGrid(target, target_size),
    )
    _check_correspondence(*grids)
    return grids


def _source_size(
    source: BoundingBox, target: BoundingBox, given: Vec3 | None, target_size: Vec3
) -> Vec3:
    """Return the source's chunk size, which has the ratio of the boxes."""
    sizes = zip(source.size, target.size, target_size, strict=True)
    fitting: tuple[Fraction, ...] = tuple(Fraction(a, b) * length for a, b, length in sizes)
    if given is not None and list(positive3(given, "source_chunk_size")) != list(fitting):
        raise ArgumentError(
            f"chunks of {given} and {target_size} have another ratio than the sizes of the views, "
            f"{source.size} and {target.size}. Leave source_chunk_size out to have it computed."
        )
    if any(length.denominator != 1 for length in fitting):
        raise ArgumentError(
            f"the views have sizes {source.size} and {target.size}, a ratio that gives no whole "
            f"source chunk for target chunks of {target_size}. Choose other views or chunk sizes."
        )
    x, y, z = map(int, fitting)
    return x, y, z


def _check_correspondence(source: ChunkGrid, target: ChunkGrid) -> None:
    """Raise unless the chunks of both grids cover the same parts, one by one."""
    for axis, theirs, ours in zip("xyz", source.chunks, target.chunks, strict=True):
        ratio = Fraction(sum(theirs), sum(ours))
        if [length * ratio for length in ours] != list(theirs):
            raise AlignmentError(
                f"on axis {axis} the source's chunks {_first(theirs)} do not correspond to the "
                f"target's {_first(ours)}: chunks lie on absolute multiples of their size, so both "
                "views must begin at the same place of a chunk. Choose views whose offsets have "
                "the ratio of their sizes."
            )


def edge_text(size: Vec3) -> str:
    """Return the edge of a cube as text, or the size of a box that is none."""
    return str(size[0] if len(set(size)) == 1 else size)


def _nearest(chunk_size: Vec3, size: Vec3) -> str:
    """Name the chunk sizes next to `chunk_size` that are multiples of `size`."""
    axes = list(zip(chunk_size, size, strict=True))
    below = tuple(max(edge, length // edge * edge) for length, edge in axes)
    above = tuple(-(-length // edge) * edge for length, edge in axes)
    return f"{below}" if below == above else f"{below} or {above}"


def _first(lengths: tuple[int, ...]) -> str:
    return f"({', '.join(map(str, lengths[:4]))}{', ...' if len(lengths) > 4 else ''})"
