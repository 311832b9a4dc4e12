"""What is told of views, layers and datasets, as plain values; `cards` makes text and HTML."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod

import numpy as np
from numpy.typing import NDArray

__all__ = ["FileFacts", "LayerFacts", "MagFacts"]


@dataclass(frozen=True, slots=True)
class FileFacts:
    """Which files of a box exist. Of many files, some are looked at."""

    total: int
    """Files that the box has room for."""
    seen: int
    """Files that were looked at."""
    found: int
    """Those of them that exist."""
    size_bytes: int
    """Bytes of those that were found."""
    all_found: int
    """Files that exist, as far as can be told from those that were looked at."""
    all_bytes: int
    """Bytes of these."""
    borders: tuple[tuple[float, ...], ...]
    """Where cells of `share` begin and end along x, y and z, as parts of the box from 0 to 1."""
    share: NDArray[np.float64]
    """Which part of the files of each cell exists, `(x, y, z)`, from 0 to 1."""

    @property
    def is_sampled(self) -> bool:
        """Whether some files were not looked at."""
        return self.seen < self.total


@dataclass(frozen=True, slots=True)
class MagFacts:
    """A mag, or a view of a part of it."""

    name: str
    """The mag, such as `2-2-1`; empty where it is not known."""
    shape: tuple[int, ...] = ()
    """Voxels `(c, x, y, z)`."""
    corner: tuple[int, ...] = (0, 0, 0)
    """The first voxel `(x, y, z)`."""
    voxel_size_nm: tuple[float, ...] | None = None
    """Edges of a voxel, if known."""
    dtype: str = ""
    """Of one channel."""
    blocks: str = ""
    """How voxels are stored."""
    file_size: tuple[int, ...] = ()
    """Voxels of a file `(x, y, z)`."""
    files: FileFacts | None = None
    """Which files exist, if it was looked at."""
    error: str = ""
    """Why it can't be opened; then nothing else is known."""

    @property
    def lengths_nm(self) -> tuple[float, ...] | None:
        """Edges of the box, if known."""
        if self.voxel_size_nm is None:
            return None
        return tuple(n * nm for n, nm in zip(self.shape[1:], self.voxel_size_nm, strict=True))

    @property
    def size_bytes(self) -> int:
        """Bytes of all voxels, before compression."""
        return prod(self.shape) * np.dtype(self.dtype).itemsize


@dataclass(frozen=True, slots=True)
class LayerFacts:
    """A layer and its mags."""

    name: str
    category: str = ""
    dtype: str = ""
    num_channels: int = 1
    size: tuple[int, ...] = (0, 0, 0)
    """Voxels of mag 1 `(x, y, z)`."""
    corner: tuple[int, ...] = (0, 0, 0)
    """The first voxel `(x, y, z)`."""
    voxel_size_nm: tuple[float, ...] | None = None
    """Edges of a voxel of mag 1, if known."""
    mag_names: Sequence[str] = ()
    """From fine to coarse."""
    unread_format: str = ""
    """How the layer is stored, if wkdask does not read that."""
    largest_segment_id: int | None = None
    error: str = ""
    """Why it can't be understood; then nothing else is known."""

    @property
    def lengths_nm(self) -> tuple[float, ...] | None:
        """Edges of the box, if known."""
        if self.voxel_size_nm is None:
            return None
        return tuple(n * nm for n, nm in zip(self.size, self.voxel_size_nm, strict=True))

    @property
    def voxel_type(self) -> str:
        """What a voxel holds."""
        return self.dtype + (f" x {self.num_channels} channels" if self.num_channels > 1 else "")
