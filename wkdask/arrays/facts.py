"""What is told of a view when it is shown: sizes, and which of its files exist.

Of many files it looks at some. It reads no voxels.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import product
from typing import Protocol

import numpy as np

from wkdask.arrays.labelled import Labels
from wkdask.errors import ArgumentError
from wkdask.geometry import BoundingBox, Vec3, is_remote
from wkdask.show.facts import FileFacts, MagFacts
from wkdask.storage.volume import Volume
from wkdask.units import nm_per

__all__ = ["MOST_FILES", "AnyView", "file_facts", "mag_facts", "voxel_size_nm"]

MOST_FILES = 1000
"""Files that are looked at; each costs a question to the file system."""
_MOST_CELLS = 6
"""Cells along an axis for which is told how many of their files exist."""


class AnyView(Protocol):
    """A view, as far as it is looked at."""

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """The shape `(c, x, y, z)`."""

    @property
    def bounding_box(self) -> BoundingBox:
        """The voxels of the view."""

    @property
    def volume(self) -> Volume:
        """Where they are stored."""

    @property
    def labels(self) -> Labels:
        """What is known beyond the voxels."""


def mag_facts(view: AnyView, most_files: int = 0) -> MagFacts:
    """Return what is told of a view; of its files only if some may be looked at.

    Files at an address are not: each would be a request.
    """
    layout, labels, box = view.volume.layout, view.labels, view.bounding_box
    most_files = 0 if is_remote(view.volume.path) else most_files
    told = layout.describe()
    return MagFacts(
        name="" if labels.mag is None else str(labels.mag),
        shape=view.shape,
        corner=box.topleft,
        voxel_size_nm=voxel_size_nm(labels),
        dtype=layout.dtype,
        blocks=f"{told['block_type']}, edge {layout.block_size[0]}",
        file_size=layout.file_size,
        files=file_facts(view.volume, box, most_files) if most_files else None,
    )


def voxel_size_nm(labels: Labels) -> tuple[float, float, float] | None:
    """Return the edges of a voxel in nm, of the mag itself; None if nobody knows them."""
    if labels.voxel_size is None or labels.unit is None or labels.mag is None:
        return None
    try:
        nm = nm_per(labels.unit)
    except ArgumentError:
        return None
    x, y, z = (f * s * nm for f, s in zip(labels.mag, labels.voxel_size, strict=True))
    return x, y, z


def file_facts(volume: Volume, box: BoundingBox, most: int = MOST_FILES) -> FileFacts:
    """Look which files of a box exist, at `most` of them, evenly spread."""
    size = volume.layout.file_size
    files = box.align_with_mag(size, ceil=True).in_mag(size)
    axes = [_cut(a, n) for a, n in zip(files.topleft, files.size, strict=True)]
    share = np.zeros([len(axis) for axis in axes])
    each = max(1, most // max(1, share.size))
    seen = found = size_bytes = 0
    all_found = all_bytes = 0.0
    for index in np.ndindex(share.shape):
        cells = _some([axes[i][at] for i, at in enumerate(index)], each)
        there = [n for n in (volume.file_bytes(cell) for cell in cells) if n is not None]
        share[index] = len(there) / len(cells)
        seen, found, size_bytes = seen + len(cells), found + len(there), size_bytes + sum(there)
        files_per_seen = math.prod(len(axes[i][at]) for i, at in enumerate(index)) / len(cells)
        all_found += len(there) * files_per_seen
        all_bytes += sum(there) * files_per_seen
    borders = tuple(_borders(axes[i], size[i], box, i) for i in range(3))
    return FileFacts(
        files.volume, seen, found, size_bytes, round(all_found), round(all_bytes), borders, share
    )


def _cut(start: int, count: int) -> list[range]:
    """Return the files along an axis in at most a few groups of equal numbers."""
    step = max(1, math.ceil(count / _MOST_CELLS))
    return [range(at, min(at + step, start + count)) for at in range(start, start + count, step)]


def _some(axes: Sequence[range], most: int) -> list[Vec3]:
    """Return at most so many cells of a group, evenly spread, and all if there are no more."""
    total = math.prod(map(len, axes))
    if total <= most:
        return list(product(*axes))  # type: ignore[arg-type]
    numbers = {int((i + 0.5) * total / most) for i in range(most)}
    places = (np.unravel_index(number, tuple(map(len, axes))) for number in sorted(numbers))
    return [(axes[0][int(x)], axes[1][int(y)], axes[2][int(z)]) for x, y, z in places]


def _borders(groups: Sequence[range], edge: int, box: BoundingBox, axis: int) -> tuple[float, ...]:
    first, length = box.topleft[axis], max(1, box.size[axis])
    at = [(group.start * edge - first) / length for group in groups] + [1.0]
    return tuple(min(1.0, max(0.0, place)) for place in at)
