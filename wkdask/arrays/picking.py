"""Vectorized indexing: voxels of a volume by arrays of positions, with the rules of NumPy.

Axes whose indices vary independently (rows and columns) are read as boxes; axes whose indices vary
together (points) are read point by point. It knows neither dask nor xarray.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np
from numpy.typing import ArrayLike, NDArray

from wkdask.storage.volume import Volume, Voxels

__all__ = ["EXACT_PIECES", "pick"]

EXACT_PIECES = 512
"""Up to how many pieces an index is read exactly, without any other voxel.

With more pieces, the voxels of one block are read in one box; the whole block is decoded anyway.
"""

Ints = NDArray[np.int64]


def pick(volume: Volume, index: Sequence[ArrayLike]) -> Voxels:
    """Return the voxels at absolute positions, each read once, in the shape of the index.

    The index has integers or an array of them for each axis `(c, x, y, z)`; the four are broadcast
    against each other.

    Examples
    --------
    >>> volume = WkwVolume.create("tissue/1", VolumeHeader("uint8", block_edge=8))
    >>> pick(volume, (0, np.array([5, 900]), np.array([7, 0]), 3))  # two points
    array([0, 0], dtype=uint8)
    >>> pick(volume, (0, np.array([[5], [900]]), np.array([7, 0, 7]), 3)).shape  # two rows of three
    (2, 3)
    """
    arrays = [np.asarray(axis, dtype=np.int64) for axis in index]
    shape = np.broadcast_shapes(*(array.shape for array in arrays))
    if 0 in shape:
        return np.zeros(shape, volume.layout.dtype)
    # Broadcasting adds dimensions in front.
    arrays = [array.reshape((1,) * (len(shape) - array.ndim) + array.shape) for array in arrays]
    groups = [_Group.of(axes, arrays, shape) for axes in _joined(arrays)]
    found = _read(volume, groups)
    for number, group in enumerate(groups):
        found = group.spread(found, number)
    dims = [dim for group in groups for dim in group.dims]
    found = found.reshape([shape[dim] for dim in dims]).transpose(np.argsort(dims))
    return found.reshape(shape)


@dataclass(frozen=True, slots=True)
class _Group:
    """Axes whose positions vary together."""

    axes: tuple[int, ...]
    """Which of `(c, x, y, z)`."""
    dims: tuple[int, ...]
    """The dimensions of the index along which they vary."""
    points: Ints
    """The positions without repetition, `(points, axes)`."""
    places: Ints | None
    """The number of the point at each place of `dims`, flat; None if they are 0, 1, 2, ..."""

    @classmethod
    def of(cls, axes: tuple[int, ...], arrays: Sequence[Ints], shape: tuple[int, ...]) -> _Group:
        dims = tuple(d for d in range(len(shape)) if any(arrays[a].shape[d] > 1 for a in axes))
        within = [shape[d] if d in dims else 1 for d in range(len(shape))]
        flat = np.stack([np.broadcast_to(arrays[a], within).ravel() for a in axes], axis=1)
        if len(axes) == 1 and (np.diff(flat[:, 0]) > 0).all():
            return cls(axes, dims, flat, None)
        points, places = np.unique(flat, axis=0, return_inverse=True)
        return cls(axes, dims, points, places.ravel())

    def spread(self, found: Voxels, axis: int) -> Voxels:
        return found if self.places is None else np.take(found, self.places, axis)

    def exact(self) -> Iterator[_Piece]:
        """Yield pieces of which every voxel is asked for."""
        if len(self.axes) == 1:
            for run, start in _runs(self.points[:, 0]):
                yield _Piece((run,), np.arange(start, start + len(run)), (np.arange(len(run)),))
        else:
            for number, point in enumerate(self.points.tolist()):
                spans = tuple(range(at, at + 1) for at in point)
                yield _Piece(spans, np.array([number]), (np.zeros(1, np.int64),) * len(spans))

    def by_block(self, edges: Sequence[int]) -> Iterator[_Piece]:
        """Yield one piece for each block: the smallest box around the points in the block."""
        cells = self.points // [edges[axis] for axis in self.axes]
        _, owner = np.unique(cells, axis=0, return_inverse=True)
        order = np.argsort(owner.ravel(), kind="stable")
        ends = np.flatnonzero(np.diff(owner.ravel()[order])) + 1
        for targets in np.split(order, ends):
            here = self.points[targets]
            lows, highs = here.min(axis=0), here.max(axis=0)
            spans = tuple(range(int(a), int(b) + 1) for a, b in zip(lows, highs, strict=True))
            yield _Piece(spans, targets, tuple((here - lows).T))


@dataclass(frozen=True, slots=True)
class _Piece:
    """A part of a group that is read in one box."""

    spans: tuple[range, ...]
    """Positions to read, for each axis of the group."""
    targets: Ints
    """The numbers of the points that lie in this piece."""
    sources: tuple[Ints, ...]
    """The places of these points within `spans`, for each axis of the group."""


def _joined(arrays: Sequence[Ints]) -> list[tuple[int, ...]]:
    """Group the axes that vary along a common dimension."""
    groups: list[tuple[set[int], set[int]]] = []
    for axis, array in enumerate(arrays):
        dims, axes = {d for d, n in enumerate(array.shape) if n > 1}, {axis}
        for group in [group for group in groups if group[0] & dims]:
            groups.remove(group)
            dims, axes = dims | group[0], axes | group[1]
        groups.append((dims, axes))
    return [tuple(sorted(axes)) for _, axes in groups]


def _read(volume: Volume, groups: Sequence[_Group]) -> Voxels:
    """Return the voxels at every combination of points, one axis per group."""
    layout = volume.layout
    found: Voxels = np.empty([len(group.points) for group in groups], layout.dtype)
    edges = (layout.num_channels, *layout.block_size)
    pieces = [list(group.exact()) for group in groups]
    if math.prod(map(len, pieces)) > EXACT_PIECES:
        pieces = [list(group.by_block(edges)) for group in groups]
    axes = [axis for group in groups for axis in group.axes]
    for combination in product(*pieces):
        spans = [span for piece in combination for span in piece.spans]
        c, x, y, z = (spans[axes.index(axis)] for axis in range(4))
        box = volume.read((x, y, z))[c.start : c.stop : c.step].transpose(axes)
        found[np.ix_(*(piece.targets for piece in combination))] = _sources_of(box, combination)
    return found


def _sources_of(box: Voxels, combination: Sequence[_Piece]) -> Voxels:
    """Return the points of all pieces out of the box that was read, one axis per piece."""
    index: list[Ints] = []
    for number, piece in enumerate(combination):
        shape = [1] * len(combination)
        shape[number] = -1
        index += [source.reshape(shape) for source in piece.sources]
    return box[tuple(index)]


def _runs(positions: Ints) -> Iterator[tuple[range, int]]:
    """Cut ascending positions into ranges; yield each with the number of its first position."""
    start, count = 0, len(positions)
    steps = np.diff(positions)
    changes = [*(np.flatnonzero(steps[1:] != steps[:-1]) + 1).tolist(), count - 1]
    for change in changes:
        # A run that has one position so far goes on with the next step.
        if change > start or change == start == count - 1:
            stop = change + 1
            step = int(steps[start]) if stop - start > 1 else 1
            yield range(int(positions[start]), int(positions[stop - 1]) + 1, step), start
            start = stop
