"""Which mags a pyramid has: pure arithmetic on factors and voxel sizes.

It knows neither layers nor files. The rules are those of WEBKNOSSOS, so that a pyramid that was
begun there goes on here with the same mags, and the reverse.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Literal, get_args

from wkdask.errors import ArgumentError
from wkdask.geometry import BoundingBox, Mag, MagLike, mag_list

__all__ = [
    "SamplingMode",
    "check_sampling_mode",
    "coarser_mags",
    "default_coarsest",
    "finer_mags",
    "given_mags",
]

SamplingMode = Literal["anisotropic", "isotropic", "constant_z"]
"""Which axes are halved: all that keep voxels nearest to cubes, always all, or all but z."""

VoxelSize = Sequence[float]

_DEFAULT_PIXELS = 100


def check_sampling_mode(mode: str) -> None:
    """Raise `ArgumentError` unless it is a sampling mode."""
    if mode not in get_args(SamplingMode):
        names = ", ".join(get_args(SamplingMode))
        raise ArgumentError(f"sampling_mode is {mode!r}, but must be one of {names}.")


def default_coarsest(box: BoundingBox, mode: SamplingMode, finest: Mag) -> Mag:
    """Return where a pyramid ends by default: where a layer is about 100 voxels wide, at least 4.

    Parameters
    ----------
    box
        The layer's box, in voxels of mag 1.
    mode
        `"constant_z"` keeps the factor of z.
    finest
        Where the pyramid begins.

    Examples
    --------
    >>> default_coarsest(BoundingBox((0, 0, 0), (1000, 800, 50)), "isotropic", Mag(1))
    Mag('16')
    """
    pixels = max(box.size[0], box.size[1], 1)
    factor = max(4, 2 ** math.ceil(math.log2(pixels / _DEFAULT_PIXELS)))
    return Mag((factor, factor, finest.factors[2] if mode == "constant_z" else factor))


def coarser_mags(
    finest: Mag,
    coarsest: Mag,
    voxel_size: VoxelSize,
    mode: SamplingMode = "anisotropic",
    others: Iterable[Mag] = (),
) -> list[Mag]:
    """Return the mags from one that exists to the coarsest, without the first.

    Parameters
    ----------
    finest
        Where to begin.
    coarsest
        Where to end: its largest factor counts, the others limit their axes.
    voxel_size
        Edges of a voxel of mag 1, `(x, y, z)`.
    mode
        Which axes are halved.
    others
        Mags of other layers: where one has twice the largest factor of the last mag, it is taken,
        so that layers can be shown together.

    Examples
    --------
    >>> [str(mag) for mag in coarser_mags(Mag(1), Mag(8), (11.24, 11.24, 25))]
    ['2-2-1', '4-4-2', '8-8-4']
    """
    ladder: list[Mag] = []
    current, known = finest, list(others)
    while max(current) < max(coarsest):
        following = _aligned(current, known) or _doubled(current, coarsest, voxel_size, mode)
        if following == current:
            raise ArgumentError(
                f"mag {coarsest} can't be reached from {finest}: after {current} the voxels of "
                f"size {tuple(voxel_size)} have no axis left to halve. Choose another "
                'coarsest_mag, or sampling_mode="isotropic".'
            )
        if max(following) > max(current):
            ladder.append(following)
        current = following
    return ladder


def finer_mags(
    coarsest: Mag, finest: Mag, voxel_size: VoxelSize, mode: SamplingMode = "anisotropic"
) -> list[Mag]:
    """Return the mags from one that exists down to the finest, without the first.

    Examples
    --------
    >>> [str(mag) for mag in finer_mags(Mag("8-8-4"), Mag(1), (11.24, 11.24, 25))]
    ['4-4-2', '2-2-1', '1']
    """
    coarsest.factors_from(finest)
    ladder = []
    current = coarsest
    # Upwards, so that the mags are those which downsampling would have made.
    for mag in reversed([finest, *coarser_mags(finest, coarsest, voxel_size, mode)]):
        if mag != current and all(a % b == 0 for a, b in zip(current, mag, strict=True)):
            ladder.append(mag)
            current = mag
    return ladder


def given_mags(start: Mag, mags: Iterable[MagLike], *, coarser: bool) -> list[Mag]:
    """Return mags that the user named, in the order in which each is made from the one before."""
    ladder = sorted(mag_list(mags), reverse=not coarser)
    if not ladder:
        raise ArgumentError("mags is empty: name at least one, or leave it out.")
    for before, mag in zip([start, *ladder], ladder, strict=False):
        if mag == before:
            raise ArgumentError(f"mag {mag} is there already, or was named twice.")
        (mag.factors_from(before) if coarser else before.factors_from(mag))
    return ladder


def _aligned(current: Mag, others: list[Mag]) -> Mag | None:
    """Return the mag of another layer that comes next, if there is one."""
    for mag in others:
        is_multiple = all(b % a == 0 for a, b in zip(current, mag, strict=True))
        if max(mag) == 2 * max(current) and is_multiple:
            return mag
    return None


def _doubled(current: Mag, coarsest: Mag, voxel_size: VoxelSize, mode: SamplingMode) -> Mag:
    double_all = _clamped(current, (True, True, True), coarsest)
    if mode == "isotropic":
        return double_all
    if mode == "constant_z":
        return _clamped(current, (True, True, False), coarsest)
    edges = [size * factor for size, factor in zip(voxel_size, current, strict=True)]
    x, y, z = smallest = tuple(edge == min(edges) for edge in edges)
    if _ratio(edges) < _ratio([e * (2 if s else 1) for e, s in zip(edges, smallest, strict=True)]):
        return double_all
    return _clamped(current, (x, y, z), coarsest)


def _clamped(current: Mag, doubled: tuple[bool, bool, bool], coarsest: Mag) -> Mag:
    """Return a mag with some factors doubled, none beyond those of the coarsest."""
    axes = zip(current, doubled, coarsest, strict=True)
    return Mag([max(a, min(2 * a if is_doubled else a, most)) for a, is_doubled, most in axes])


def _ratio(edges: list[float]) -> float:
    return max(edges) / min(edges)
