"""Downsampling of one mag into another: pairs target files with source boxes and runs a kernel.

It knows views, factors and borders. How a block of voxels becomes one voxel is the kernels' secret.
"""

from __future__ import annotations

from concurrent.futures import Executor
from functools import partial
from math import prod

import numpy as np
from distributed import Client
from numpy.typing import NDArray

from wkdask import kernels
from wkdask.chunking import ChunkGrid
from wkdask.errors import ArgumentError
from wkdask.geometry import BoundingBox, Vec3
from wkdask.grid import region_of
from wkdask.view import View

__all__ = ["downsample"]

# Source voxels of one piece, before the kernel runs: bounds the memory of a task beside its file.
_PIECE_VOXELS = 2**26


def downsample(
    source_view: View,
    target_view: View,
    mode: str = "median",
    executor: Client | Executor | None = None,
    *,
    progress: bool = False,
) -> None:
    """Fill a view of a coarser mag from a view of a finer one, one task per target file.

    Target voxels whose source block leaves the layer's box in the source mag see its voxels
    mirrored at the border, as in WEBKNOSSOS. Source voxels outside of `source_view` but inside the
    layer's box are read where a target voxel needs them, so that the result does not depend on how
    a volume is cut into views.

    Parameters
    ----------
    source_view
        The finer mag. A `MagView` counts with its bounding box.
    target_view
        The coarser mag: the source's box, aligned outwards to the factors and divided by them.
    mode
        `"median"`, `"mode"`, `"max"`, `"min"`, `"mean"` or `"nearest"`.
    executor
        A `distributed.Client`, a `concurrent.futures.Executor`, or None for the active client or
        dask's threads.
    progress
        Whether to show a bar.

    Raises
    ------
    ArgumentError
        If the mode is unknown, dtype or channels differ, or the boxes do not correspond; nothing is
        written then.
    ReadOnlyError
        If the target is read-only.

    Examples
    --------
    >>> ds = wkdask.create("tissue", voxel_size=(8, 8, 8))
    >>> box = wkdask.BoundingBox((1, 1, 1), (5, 5, 5))
    >>> layer = ds.add_layer("color", "color", "uint8", bounding_box=box)
    >>> fine, coarse = layer.add_mag(1), layer.add_mag(2)
    >>> fine.write(np.full((5, 5, 5), 9, np.uint8), offset=(1, 1, 1))
    >>> wkdask.downsample(layer[1], layer[2])
    >>> layer[2].bounding_box
    BoundingBox(topleft=(0, 0, 0), size=(3, 3, 3))
    >>> int(layer[2].to_dask().min().compute())
    9
    """
    if mode not in tuple(kernels.MODES):
        raise ArgumentError(f"mode is {mode!r}, but must be one of {', '.join(kernels.MODES)}.")
    for view in (source_view, target_view):
        if not isinstance(view, View):
            raise ArgumentError(f"a view is {view!r}, but must be a View.")
    source, target = source_view._whole(), target_view._whole()
    target._check_writable()
    _check_voxels(source, target)
    factors = _factors(source, target)
    _check_boxes(source.bounding_box, target.bounding_box, factors)
    layer_box = _layer_box(source)
    # What lies beyond the layer's box is never read: `_read_mirrored` maps it back inside.
    around = source._part(target.bounding_box.scaled_by(factors), read_only=True)
    work = partial(_downsample_chunk, factors=factors, mode=mode, layer_box=layer_box)
    # A task reads its source in pieces, and holds no whole chunk of it.
    around.for_zipped_chunks(work, target, executor=executor, progress=progress, check_memory=False)


def _downsample_chunk(
    chunk: tuple[View, View, int], *, factors: Vec3, mode: str, layer_box: BoundingBox
) -> None:
    source, target, _ = chunk
    box = target.bounding_box
    shape = (target.num_channels, *box.size)
    out: NDArray[np.generic] = np.empty(shape, target.dtype, order="F")
    for piece in ChunkGrid(box, _piece_size(factors)):
        voxels = _read_mirrored(source, piece.scaled_by(factors), layer_box)
        start = (a - b for a, b in zip(piece.topleft, box.topleft, strict=True))
        place = (slice(a, a + n) for a, n in zip(start, piece.size, strict=True))
        out[(slice(None), *place)] = kernels.downsample(voxels, factors, mode)
    target.volume.write(box, out)


def _piece_size(factors: Vec3) -> Vec3:
    """Return the edge of a cubic piece of the target, a power of two."""
    edge = 1
    while prod(edge * 2 * factor for factor in factors) <= _PIECE_VOXELS:
        edge *= 2
    return edge, edge, edge


def _read_mirrored(source: View, box: BoundingBox, inside: BoundingBox) -> NDArray[np.generic]:
    """Read a box; what lies outside of `inside` is mirrored, the voxel at the border first."""
    if inside.contains_bbox(box):
        return source.volume.read(region_of(box))
    axes = zip(box.topleft, box.bottomright, inside.topleft, inside.bottomright, strict=True)
    positions = [_mirrored(np.arange(a, b), low, high) for a, b, low, high in axes]
    starts = [int(axis.min()) for axis in positions]
    region = tuple(range(a, int(axis.max()) + 1) for a, axis in zip(starts, positions, strict=True))
    voxels = source.volume.read((region[0], region[1], region[2]))
    for axis, (start, wanted) in enumerate(zip(starts, positions, strict=True), start=1):
        voxels = voxels.take(wanted - start, axis=axis)
    return voxels


def _mirrored(positions: NDArray[np.int64], low: int, high: int) -> NDArray[np.int64]:
    """Map positions into [low, high) as `np.pad(mode="symmetric")`: c b a | a b c | c b a."""
    size = high - low
    phase = (positions - low) % (2 * size)
    return low + np.minimum(phase, 2 * size - 1 - phase)


def _layer_box(source: View) -> BoundingBox:
    """Return the box at whose border voxels are mirrored: the layer's, where it is known."""
    if source.layer_box is None or source.layer_box.is_empty:
        return source.bounding_box
    if source.layer_box.intersected_with(source.bounding_box, dont_assert=True).is_empty:
        raise ArgumentError(
            f"the source view covers {source.bounding_box}, outside of its layer's box "
            f"{source.layer_box}: there is nothing to downsample."
        )
    return source.layer_box


def _check_voxels(source: View, target: View) -> None:
    if (source.dtype, source.num_channels) != (target.dtype, target.num_channels):
        raise ArgumentError(
            f"the source has {source.num_channels} channel(s) of {source.dtype}, but the target "
            f"{target.num_channels} of {target.dtype}. Both must be the same."
        )


def _factors(source: View, target: View) -> Vec3:
    """Return source voxels per target voxel, by the mags or else by the sizes of the views."""
    if source.mag is not None and target.mag is not None:
        return target.mag.factors_from(source.mag)
    if any(a % b for a, b in zip(source.size, target.size, strict=True)):
        raise ArgumentError(
            f"the mags of the views are not known, and size {source.size} is no whole multiple of "
            f"{target.size}. Get the views from the mags of a layer."
        )
    x, y, z = (a // b for a, b in zip(source.size, target.size, strict=True))
    return x, y, z


def _check_boxes(source: BoundingBox, target: BoundingBox, factors: Vec3) -> None:
    fitting = source.align_with_mag(factors, ceil=True).in_mag(factors)
    if target != fitting:
        raise ArgumentError(
            f"the target view covers {target}, but what becomes of the source view ({source}) at "
            f"factors {factors} is {fitting}. Get that part of the target: "
            f"get_view({fitting.topleft}, {fitting.size}) from its mag."
        )
