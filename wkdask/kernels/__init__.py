"""Down- and upsampling of one NumPy array; knows the modes by name, and what each one needs.

It must not know dask, paths, WKW files, mags or the borders of a layer: who calls it has already
padded the array to multiples of the factor, and by the halo.

A mode is a row in a table: loops that work on `(z, y, x)` arrays in C order, the same bytes as
`(x, y, z)` in Fortran order. `blockwise` has those that reduce a block to one voxel, `weighted`
those that add up voxels.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from types import MappingProxyType

import numpy as np

from wkdask.errors import ArgumentError, DtypeError
from wkdask.kernels import blockwise, weighted
from wkdask.kernels.blockwise import Factor, Loop, Voxels

__all__ = [
    "DTYPES",
    "MODES",
    "UPSAMPLING_MODES",
    "Kernel",
    "downsample",
    "halo",
    "upsample",
    "upsampling_halo",
]


DTYPES = tuple(
    np.dtype(f"{kind}{bits}")
    for kind, widths in {"uint": (8, 16, 32, 64), "int": (8, 16, 32, 64), "float": (32, 64)}.items()
    for bits in widths
)
"""The dtypes of WKW, in the byte order of the machine."""

_MOST_VOXELS = 2**27
"""Voxels per block, so that sums of weights, at most 8 per voxel, times 2**32 fit into int64."""


def downsample(
    array: Voxels, factor: Sequence[int], mode: str, *, out: Voxels | None = None
) -> Voxels:
    """Reduce every block of `factor` voxels to one voxel, each channel separately.

    Parameters
    ----------
    array
        Voxels of shape `(c, x, y, z)` and one of `DTYPES`. Fortran order with one channel is read
        in place; anything else is copied channel by channel. It may be read-only. On both sides of
        an axis it begins and ends with the voxels of the `halo`, which only `bicubic` has.
    factor
        Voxels per block along x, y and z: whole numbers from 1 on, which divide the shape without
        its halo.
    mode
        A name in `MODES`:

        * `median`: the middle of the sorted block. Of an even number of integers the midpoint of
          the two middle values, truncated toward zero; exact for 64 bits too. Floats as
          `np.median`, thus NaN if any voxel is NaN.
        * `mode`: the most frequent value; on a tie the one that comes first in the order y fastest,
          then x, then z. 0 is a value like others. NaN is one value too: all NaN vote together.
        * `max`, `min`: as `np.max` and `np.min`, thus NaN if any voxel is NaN.
        * `mean`: of integers the exact sum, divided, rounded half to even. Of floats the float64
          mean, cast back.
        * `nearest`: the voxel at `(factor - 1) // 2` of the block on each axis.
        * `bilinear`: linear interpolation at the centre of the block. Along an axis that is the
          voxel there, or for an even factor the mean of the two around it.
        * `bicubic`: cubic interpolation (Keys 1981, a = -1/2: Catmull-Rom) at the centre of the
          block. Along an axis that is the voxel there, or for an even factor the four around
          it with the weights (-1, 9, 9, -1) / 16.

        Interpolated integers are exact, rounded half to even once and clipped to the dtype; floats
        are computed in float64 and cast.
    out
        Where the result is put, an array like the one that is returned; None makes a new one.

    Returns
    -------
    ndarray
        An array of shape `(c, x // fx, y // fy, z // fz)` in Fortran order, same dtype, where
        x, y and z do not count the halo.

    Raises
    ------
    ArgumentError
        Unknown `mode`, not four axes, not three positive factors, a size that is no multiple, or
        an `out` of another kind.
    DtypeError
        A dtype that WKW lacks.

    Notes
    -----
    Same rule as webknossos 4.3.3, measured, for `median`, `mode`, `max` and `min`. Two exceptions:
    the median of 64-bit integers beyond 2**53, where theirs loses precision, and NaN in `mode`,
    where theirs counts every NaN as a value of its own.

    Examples
    --------
    >>> import numpy as np
    >>> voxels = np.array([[1, 2, 5, 5], [4, 9, 5, 6]], dtype="uint8").reshape(1, 2, 4, 1)
    >>> downsample(voxels, (2, 2, 1), "median").ravel().tolist()
    [3, 5]
    >>> downsample(voxels, (2, 2, 1), "max").ravel().tolist()
    [9, 6]

    A voxel more on both sides of x for the four weights along it:

    >>> line = np.array([0, 10, 20, 30, 80, 80], dtype="uint8").reshape(1, 6, 1, 1)
    >>> halo("bicubic", (2, 1, 1))
    (1, 0, 0)
    >>> downsample(line, (2, 1, 1), "bicubic").ravel().tolist()
    [15, 56]
    """
    return _sampled(MODES, array, factor, mode, operator.floordiv, out)


def halo(mode: str, factor: Sequence[int]) -> Factor:
    """Return how many voxels `downsample` needs around an array, on each side of x, y and z.

    Examples
    --------
    >>> halo("bicubic", (2, 2, 1)), halo("bicubic", (4, 4, 4)), halo("median", (2, 2, 1))
    ((1, 1, 0), (0, 0, 0), (0, 0, 0))
    """
    return _kernel(MODES, mode).halo(_checked_factor(factor))


def upsample(
    array: Voxels, factor: Sequence[int], mode: str, *, out: Voxels | None = None
) -> Voxels:
    """Make `factor` voxels of every voxel, each channel separately.

    Parameters
    ----------
    array
        Voxels of shape `(c, x, y, z)` and one of `DTYPES`, with the voxels of `upsampling_halo` on
        both sides of an axis. It may be read-only.
    factor
        Voxels of the result per voxel along x, y and z: whole numbers from 1 on.
    mode
        A name in `UPSAMPLING_MODES`:

        * `nearest`: each voxel fills its block.
        * `bilinear`: linear interpolation at `(t + 0.5) / factor - 0.5` for the voxel `t` of the
          result, along each axis. Integers are exact, rounded half to even once; floats are
          computed in float64 and cast.
    out
        Where the result is put, an array like the one that is returned; None makes a new one.

    Returns
    -------
    ndarray
        An array of shape `(c, x * fx, y * fy, z * fz)` in Fortran order, same dtype, where x, y
        and z do not count the halo.

    Raises
    ------
    ArgumentError
        Unknown `mode`, not four axes, not three positive factors, no place for the halo, or an
        `out` of another kind.
    DtypeError
        A dtype that WKW lacks.

    Examples
    --------
    >>> import numpy as np
    >>> line = np.array([0, 0, 80, 80], dtype="uint8").reshape(1, 4, 1, 1)
    >>> upsample(line, (2, 1, 1), "bilinear").ravel().tolist()
    [0, 20, 60, 80]
    >>> upsample(line, (2, 1, 1), "nearest").ravel().tolist()
    [0, 0, 0, 0, 80, 80, 80, 80]
    """
    return _sampled(UPSAMPLING_MODES, array, factor, mode, operator.mul, out)


def upsampling_halo(mode: str, factor: Sequence[int]) -> Factor:
    """Return how many voxels `upsample` needs around an array, on each side of x, y and z.

    Examples
    --------
    >>> upsampling_halo("bilinear", (2, 2, 1)), upsampling_halo("nearest", (2, 2, 1))
    ((1, 1, 0), (0, 0, 0))
    """
    return _kernel(UPSAMPLING_MODES, mode).halo(_checked_factor(factor))


@dataclass(frozen=True, slots=True)
class Kernel:
    """One mode: the loops that compute it, and what it needs and promises."""

    general: Loop
    """Serves every factor."""

    special: Mapping[Factor, Loop] = field(default_factory=dict)
    """Faster loops, by factor `(fx, fy, fz)`."""

    reach: Callable[[int], int] = lambda factor: 0
    """The voxels that are needed beyond the array along an axis, by its factor."""

    keeps_labels: bool = False
    """Whether each voxel of the result is a voxel of the source: other modes invent labels."""

    def halo(self, factor: Factor) -> Factor:
        """Return the voxels that are needed on each side of x, y and z."""
        x, y, z = map(self.reach, factor)
        return x, y, z

    def fill(self, source: Voxels, target: Voxels, factor: Factor) -> None:
        """Compute `target` from `source`, both `(c, x, y, z)`, with the factor of x, y and z."""
        loop = self.special.get(factor, self.general)
        for voxels, result in zip(source, target, strict=True):
            _fill(loop, voxels, result.T, factor[::-1])


def _sampled(
    modes: Mapping[str, Kernel],
    array: Voxels,
    factor: Sequence[int],
    mode: str,
    resize: Callable[[int, int], int],
    out: Voxels | None,
) -> Voxels:
    kernel = _kernel(modes, mode)
    array = np.asarray(array)
    _check_voxels(array)
    checked = _checked_factor(factor)
    sizes = _without_halo(array.shape, kernel.halo(checked))
    if modes is MODES:
        _check_multiple(sizes, checked)
    shape = (len(array), *map(resize, sizes, checked))
    if out is None:
        out = np.empty(shape, array.dtype, order="F")
    elif (out.shape, out.dtype) != (shape, array.dtype) or not out.flags.f_contiguous:
        raise ArgumentError(
            f"out has shape {out.shape} and dtype {out.dtype}, but the result has {shape} and "
            f'{array.dtype}, in Fortran order. Make it by np.empty(shape, dtype, order="F").'
        )
    if out.size:
        kernel.fill(array, out, checked)
    return out


def _kernel(modes: Mapping[str, Kernel], mode: str) -> Kernel:
    kernel = modes.get(mode)
    if kernel is None:
        raise ArgumentError(f"unknown mode {mode!r}: use one of {', '.join(sorted(modes))}")
    return kernel


def _check_voxels(array: Voxels) -> None:
    if array.ndim != 4:
        raise ArgumentError(
            f"got an array of shape {array.shape}: sampling takes the four axes (c, x, y, z). "
            "Add the missing ones with array[np.newaxis]."
        )
    if array.dtype not in DTYPES:
        raise DtypeError(
            f"got voxels of dtype {array.dtype.str!r}: WKW has {', '.join(map(str, DTYPES))} in "
            "native byte order. Convert with array.astype(...)."
        )


def _checked_factor(factor: Sequence[int]) -> Factor:
    try:
        x, y, z = map(operator.index, factor)
    except (TypeError, ValueError):
        x = y = z = 0
    if min(x, y, z) < 1:
        raise ArgumentError(
            f"got the factor {factor!r}: use three whole numbers from 1 on, for x, y and z"
        )
    if x * y * z > _MOST_VOXELS:
        raise ArgumentError(
            f"the factor {(x, y, z)} is too large: a block has at most {_MOST_VOXELS} voxels. "
            "Use several smaller factors, one after the other."
        )
    return x, y, z


def _without_halo(shape: tuple[int, ...], halo: Factor) -> Factor:
    x, y, z = (size - 2 * around for size, around in zip(shape[1:], halo, strict=True))
    if min(x, y, z) < 0:
        raise ArgumentError(
            f"the sizes (x, y, z) = {shape[1:]} leave no place for the halo {halo} on both sides: "
            "pad the array first, for example with np.pad(mode='symmetric')"
        )
    return x, y, z


def _check_multiple(sizes: Factor, factor: Factor) -> None:
    if any(size % step for size, step in zip(sizes, factor, strict=True)):
        raise ArgumentError(
            f"the sizes (x, y, z) = {sizes} are not multiples of the factor {factor}: "
            "pad the array first, for example with np.pad(mode='symmetric')"
        )


def _fill(loop: Loop, source: Voxels, target: Voxels, factor: Factor) -> None:
    """Run `loop` on arrays whose layout never varies, so that it is compiled once per dtype."""
    planes: Voxels = np.require(source, requirements=["F", "A"]).T.view()
    planes.flags.writeable = False
    filled = target if target.flags.c_contiguous else np.empty(target.shape, target.dtype)
    loop(planes, filled, factor)
    if filled is not target:
        target[...] = filled


def _weighted(
    source: Voxels, target: Voxels, factor: Factor, *, taps: Callable[[int, int], weighted.Taps]
) -> None:
    z, y, x = map(taps, target.shape, factor)
    weighted.add_up(source, target, (z, y, x))


def _blockwise(rule: str, *, keeps_labels: bool) -> Kernel:
    return Kernel(blockwise.GENERAL[rule], blockwise.SPECIAL[rule], keeps_labels=keeps_labels)


MODES: Mapping[str, Kernel] = MappingProxyType(
    {
        "median": _blockwise("median", keeps_labels=False),
        "mode": _blockwise("mode", keeps_labels=True),
        "max": _blockwise("max", keeps_labels=True),
        "min": _blockwise("min", keeps_labels=True),
        "mean": Kernel(partial(_weighted, taps=weighted.box), blockwise.SPECIAL["mean"]),
        "nearest": Kernel(blockwise.nearest, keeps_labels=True),
        # Between two voxels along each axis, linear interpolation is their mean.
        "bilinear": Kernel(partial(_weighted, taps=weighted.linear), blockwise.SPECIAL["mean"]),
        "bicubic": Kernel(
            partial(_weighted, taps=weighted.cubic),
            {(1, 1, 1): blockwise.nearest},
            reach=lambda factor: int(factor == 2),
        ),
    }
)
"""The modes of `downsample`, by name."""

UPSAMPLING_MODES: Mapping[str, Kernel] = MappingProxyType(
    {
        "nearest": Kernel(blockwise.spread, keeps_labels=True),
        "bilinear": Kernel(
            partial(_weighted, taps=weighted.between),
            {(1, 1, 1): blockwise.nearest},
            reach=lambda factor: int(factor > 1),
        ),
    }
)
"""The modes of `upsample`, by name."""
