"""Voxels of one mag made from those of another, box by box: borders, halos, pieces.

It knows volumes, factors and the layer's box. How voxels become one voxel is the kernels' secret,
and which boxes are wanted is the caller's.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wkdask import kernels
from wkdask.geometry import BoundingBox, Vec3
from wkdask.grids import ChunkGrid, region_of, slices_in
from wkdask.storage.memory import new_array
from wkdask.storage.volume import Volume, is_zero

__all__ = ["Downsampling", "Upsampling"]

Voxels = NDArray[Any]

# Of the source, read at once: it shall stay in the processor's cache until the kernel has seen it.
_SOURCE_BYTES = 2**24


@dataclass(frozen=True, slots=True)
class Downsampling:
    """Makes boxes of a coarser mag from a finer one."""

    source: Volume
    """The finer mag."""
    layer_box: BoundingBox
    """Where the source has data, in its voxels: what lies beyond is mirrored at its border, as by
    `np.pad(mode="symmetric")`, and never read."""
    factors: Vec3
    """Source voxels per target voxel, `(x, y, z)`."""
    mode: str
    """A name in `kernels.MODES`."""

    def __call__(self, box: BoundingBox) -> Voxels | None:
        """Return the voxels `(c, x, y, z)` of a box of the target; None if all are zero."""
        return _assembled(self.source, box, self._edge(), self._piece)

    def reads(self, box: BoundingBox) -> BoundingBox:
        """Return the voxels of the source that a box of the target is made of."""
        return _inside(self._around(box), self.layer_box)

    def _edge(self) -> int:
        """Return the edge of a cubic piece of the target, a power of two."""
        edge = 1
        scale = prod(self.factors) * self.source.layout.voxel_bytes
        while (2 * edge) ** 3 * scale <= _SOURCE_BYTES:
            edge *= 2
        return edge

    def _around(self, box: BoundingBox) -> BoundingBox:
        return _grown(box.scaled_by(self.factors), kernels.halo(self.mode, self.factors))

    def _piece(self, box: BoundingBox) -> Voxels | None:
        voxels = _read(self.source, self._around(box), self.layer_box)
        if voxels is None:
            return None
        out, _ = new_array((len(voxels), *box.size), voxels.dtype)
        return kernels.downsample(voxels, self.factors, self.mode, out=out)


@dataclass(frozen=True, slots=True)
class Upsampling:
    """Makes boxes of a finer mag from a coarser one."""

    source: Volume
    """The coarser mag."""
    layer_box: BoundingBox
    """Where the source has data, in its voxels; mirrored as in `Downsampling`."""
    factors: Vec3
    """Target voxels per source voxel, `(x, y, z)`."""
    mode: str
    """A name in `kernels.UPSAMPLING_MODES`."""

    def __call__(self, box: BoundingBox) -> Voxels | None:
        """Return the voxels `(c, x, y, z)` of a box of the target; None if all are zero."""
        edge = 1
        while (2 * edge) ** 3 * self.source.layout.voxel_bytes <= _SOURCE_BYTES:
            edge *= 2
        return _assembled(self.source, box, edge, self._piece)

    def reads(self, box: BoundingBox) -> BoundingBox:
        """Return the voxels of the source that a box of the target is made of."""
        around = _grown(self._coarse(box), kernels.upsampling_halo(self.mode, self.factors))
        return _inside(around, self.layer_box)

    def _coarse(self, box: BoundingBox) -> BoundingBox:
        return box.align_with_mag(self.factors, ceil=True).in_mag(self.factors)

    def _piece(self, box: BoundingBox) -> Voxels | None:
        coarse = self._coarse(box)
        around = _grown(coarse, kernels.upsampling_halo(self.mode, self.factors))
        voxels = _read(self.source, around, self.layer_box)
        if voxels is None:
            return None
        out, _ = new_array((len(voxels), *coarse.scaled_by(self.factors).size), voxels.dtype)
        fine = kernels.upsample(voxels, self.factors, self.mode, out=out)
        start = coarse.scaled_by(self.factors).topleft
        return fine[(slice(None), *slices_in(box, start))]


def _assembled(source: Volume, box: BoundingBox, edge: int, piece_of: Any) -> Voxels | None:
    """Return a box put together from pieces on multiples of an edge; None if all are zero."""
    out: Voxels | None = None
    for piece in ChunkGrid(box, (edge,) * 3):
        voxels = piece_of(piece)
        if voxels is None:
            continue
        if piece == box:
            return np.asfortranarray(voxels)
        if out is None:
            shape = (source.layout.num_channels, *box.size)
            out = np.zeros(shape, source.layout.dtype, order="F")
        out[(slice(None), *slices_in(piece, box.topleft))] = voxels
    return out


def _read(source: Volume, box: BoundingBox, inside: BoundingBox) -> Voxels | None:
    """Read a box, mirrored where it leaves another one; None if all voxels are zero."""
    needed = _inside(box, inside)
    if source.is_missing(needed):
        source.check()
        return None
    voxels = source.read(region_of(needed))
    if is_zero(voxels):
        return None
    if needed == box:
        return voxels
    for axis, wanted in enumerate(_positions(box, inside), start=1):
        voxels = voxels.take(wanted - needed.topleft[axis - 1], axis=axis)
    return voxels


def _inside(box: BoundingBox, inside: BoundingBox) -> BoundingBox:
    """Return the smallest box of what a box needs of another one, mirrored at its border."""
    if inside.contains_bbox(box):
        return box
    axes = list(_positions(box, inside))
    return BoundingBox.from_corners((int(a.min()) for a in axes), (int(a.max()) + 1 for a in axes))


def _positions(box: BoundingBox, inside: BoundingBox) -> Iterator[NDArray[np.int64]]:
    axes = zip(box.topleft, box.bottomright, inside.topleft, inside.bottomright, strict=True)
    return (_mirrored(np.arange(a, b), low, high) for a, b, low, high in axes)


def _mirrored(positions: NDArray[np.int64], low: int, high: int) -> NDArray[np.int64]:
    """Map positions into [low, high) as `np.pad(mode="symmetric")`: c b a | a b c | c b a."""
    size = high - low
    phase = (positions - low) % (2 * size)
    return low + np.minimum(phase, 2 * size - 1 - phase)


def _grown(box: BoundingBox, halo: Vec3) -> BoundingBox:
    sizes = [size + 2 * around for size, around in zip(box.size, halo, strict=True)]
    return BoundingBox([at - around for at, around in zip(box.topleft, halo, strict=True)], sizes)
