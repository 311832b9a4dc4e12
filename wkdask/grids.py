"""Regular grids over voxels: which cells does a region touch, and which slices of each.

The same arithmetic serves files in a volume and blocks in a file; it knows neither. Cells lie on
absolute multiples of their size. A region is given as one `range` per axis, so that it may skip
voxels (`x[::4]`); a box is the region with step 1.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise, product

from wkdask.geometry import BoundingBox, Vec3

__all__ = [
    "Overlap",
    "Region",
    "axis_overlaps",
    "box_of",
    "cut_axis",
    "overlaps",
    "region_of",
    "slices_in",
]

Region = tuple[range, range, range]
"""Voxel positions wanted per axis `(x, y, z)`, each an ascending `range`."""

Slices = tuple[slice, slice, slice]


@dataclass(frozen=True, slots=True)
class Overlap:
    """What one cell and a region have in common."""

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
    """Return where a part lies in an array `(x, y, z)` whose first voxel is at a position.

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
