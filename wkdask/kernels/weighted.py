"""Weighted sums of voxels: means and interpolation, exact for integers.

It knows weights and how to add; it must not know the names of modes, nor who fills a halo.

Along each axis a target voxel is a short list of source voxels, its *taps*, with whole weights and
one divisor. The weights of a voxel are the products over the axes. All is added up before anything
is divided, and rounded once, so that neither the order nor the cut of the work matters:

* integers of up to 32 bits are added in int64, those of 64 bits as their upper and their lower
  half, each in int64. Sums and quotients are exact, rounded half to even and clipped.
* floats are added in float64, first rows over z and y and then along x. float64 is split as well,
  into the leading and the trailing bits of its fraction: voxels that are equal come out as they
  are. Sums beyond 1e300 or so may overflow.

Linear interpolation at the centre of a target voxel is the source voxel there, or for an even
factor, where the centre lies between two voxels, half of each. Cubic interpolation is the
convolution with the kernel of Keys with a = -1/2, which for samples is the Catmull-Rom spline; at
the middle between two voxels it weighs four with (-1, 9, 9, -1) / 16. R. G. Keys (1981), "Cubic
convolution interpolation for digital image processing", IEEE Transactions on Acoustics, Speech, and
Signal Processing 29(6), 1153-1160, equation (15).

Arrays are `(z, y, x)` in C order.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar, cast

import numpy as np
from numba.extending import overload
from numba.np.numpy_support import as_dtype
from numpy.typing import NDArray

from wkdask._compile import Inferred, compiled

__all__ = ["Taps", "add_up", "between", "box", "cubic", "linear"]

Voxels = NDArray[np.generic]
_F = TypeVar("_F", bound=Callable[..., Any])


@dataclass(frozen=True, slots=True)
class Taps:
    """What the target voxels along one axis are made of.

    Voxel `t` is the sum over `k` of `weights[k, t] * source[starts[t] + k]`, over `divisor`.
    """

    starts: Voxels
    """The first tap of each target voxel, int64."""

    weights: Voxels
    """Whole numbers, shape (taps, target voxels), which sum up to `divisor` over the taps."""

    divisor: int
    """What the weights of a voxel sum up to."""


def box(count: int, factor: int) -> Taps:
    """Return the taps of a mean: each voxel of the block once."""
    return _repeated(count, factor, 0, [1] * factor)


def linear(count: int, factor: int) -> Taps:
    """Return the taps of linear interpolation at the centres of blocks; no halo."""
    weights = [1] if factor % 2 else [1, 1]
    return _repeated(count, factor, (factor - 1) // 2, weights)


def cubic(count: int, factor: int) -> Taps:
    """Return the taps of cubic interpolation at the centres of blocks; a halo of 1 for factor 2."""
    if factor % 2:
        return _repeated(count, factor, (factor - 1) // 2, [1])
    return _repeated(count, factor, max(factor // 2 - 2, 0), [-1, 9, 9, -1])


def _repeated(count: int, factor: int, offset: int, weights: list[int]) -> Taps:
    """Return the same taps for every block, beginning `offset` voxels after the block."""
    starts = np.arange(count, dtype=np.int64) * factor + offset
    return Taps(starts, np.repeat(np.array([weights], np.int64).T, count, axis=1), sum(weights))


def between(count: int, factor: int) -> Taps:
    """Return the taps of linear interpolation, `factor` voxels per source voxel.

    Target voxel `t` lies at source position `(t + 0.5) / factor - 0.5`. There is a halo of 1,
    unless the factor is 1.
    """
    if factor == 1:
        return _repeated(count, 1, 0, [1])
    source, phase = np.divmod(np.arange(count, dtype=np.int64), factor)
    beyond = 2 * phase + 1 - factor  # from the centre of the source voxel, in halves of a target's
    later = beyond % (2 * factor)  # the weight of the second tap
    return Taps(source + (beyond >= 0), np.stack([2 * factor - later, later]), 2 * factor)


def add_up(source: Voxels, target: Voxels, taps: tuple[Taps, Taps, Taps]) -> None:
    """Fill `target`, `(z, y, x)`, with weighted sums; `taps` are those of z, y and x."""
    exact = np.float64 if source.dtype.kind == "f" else np.int64
    starts = tuple(axis.starts for axis in taps)
    weights = tuple(axis.weights.astype(exact) for axis in taps)
    _add_up(source, target, starts, weights, exact(math.prod(axis.divisor for axis in taps)))


# --- one row ----------------------------------------------------------------------------------
# `sums` and `totals` have one row, or for voxels of 64 bits two: of upper and of lower parts.


def _by_type(name: _F) -> Callable[[_F], _F]:
    """Let the decorated function choose, from numba's types, what `name` means in the loop."""
    return cast(Callable[[_F], _F], overload(name, jit_options={"error_model": "numpy"}))


def _new_sums(row: Inferred, count: int) -> Inferred:
    """Return room for the sums of `count` voxels like those of `row`."""
    raise NotImplementedError


@_by_type(_new_sums)
def _new_sums_for(row: Inferred, count: int) -> Inferred:
    exact = np.float64 if as_dtype(row.dtype).kind == "f" else np.int64
    parts = 2 if as_dtype(row.dtype).itemsize == 8 else 1

    def new(row: Inferred, count: int) -> Inferred:
        return np.zeros((parts, count), exact)

    return new


def _add_row(sums: Inferred, row: Inferred, weight: Inferred) -> None:
    """Add `weight * row` to the sums."""
    raise NotImplementedError


@_by_type(_add_row)
def _add_row_for(sums: Inferred, row: Inferred, weight: Inferred) -> Inferred:
    voxel = as_dtype(row.dtype)
    exact = as_dtype(sums.dtype).type

    def of_32_bits(sums: Inferred, row: Inferred, weight: Inferred) -> None:
        whole = sums[0]
        for i in range(len(row)):
            whole[i] += weight * exact(row[i])

    def of_integers(sums: Inferred, row: Inferred, weight: Inferred) -> None:
        upper, lower = sums[0], sums[1]
        for i in range(len(row)):
            upper[i] += weight * exact(row[i] >> 32)
            lower[i] += weight * exact(np.uint64(row[i]) & np.uint64(0xFFFFFFFF))

    def of_floats(sums: Inferred, row: Inferred, weight: Inferred) -> None:
        upper, lower = sums[0], sums[1]
        leading = (row.view(np.uint64) & np.uint64(0xFFFFFFFFF8000000)).view(np.float64)
        for i in range(len(row)):
            upper[i] += weight * leading[i]
            trailing = row[i] - leading[i]
            lower[i] += weight * (0.0 if row[i] == leading[i] else trailing)  # also of infinity

    if voxel.itemsize < 8:
        return of_32_bits
    return of_floats if voxel.kind == "f" else of_integers


def _divide(target: Inferred, totals: Inferred, divisor: Inferred) -> None:
    """Fill a row of voxels with the totals over the divisor."""
    raise NotImplementedError


@_by_type(_divide)
def _divide_for(target: Inferred, totals: Inferred, divisor: Inferred) -> Inferred:
    dtype = as_dtype(target.dtype)
    voxel = dtype.type
    low, high = (0, 0) if dtype.kind == "f" else (np.iinfo(dtype).min, np.iinfo(dtype).max)
    lowest, highest = np.int64(low >> 32), np.int64(high >> 32)
    of_32, half_of = np.uint64(32), np.uint64(2)

    def of_float32(target: Inferred, totals: Inferred, divisor: Inferred) -> None:
        for x in range(len(target)):
            target[x] = voxel(totals[0, x] / divisor)

    def of_float64(target: Inferred, totals: Inferred, divisor: Inferred) -> None:
        for x in range(len(target)):
            target[x] = totals[0, x] / divisor + totals[1, x] / divisor

    def of_32_bits(target: Inferred, totals: Inferred, divisor: Inferred) -> None:
        shift = 0
        while divisor >> shift > 1:
            shift += 1
        shifts = 1 << shift == divisor  # takes vector instructions, and division does not
        for x in range(len(target)):
            quotient = totals[0, x] >> shift if shifts else totals[0, x] // divisor
            twice = 2 * (totals[0, x] - quotient * divisor)
            quotient += (twice > divisor) | ((twice == divisor) & (quotient & 1 == 1))
            target[x] = voxel(min(max(quotient, low), high))

    def of_64_bits(target: Inferred, totals: Inferred, divisor: Inferred) -> None:
        size = np.uint64(divisor)
        for x in range(len(target)):
            upper = totals[0, x] + (totals[1, x] >> 32)
            lower = np.uint64(totals[1, x]) & np.uint64(0xFFFFFFFF)
            first = upper // divisor  # long division, in two digits of 32 bits
            rest = (np.uint64(upper - first * divisor) << of_32) + lower
            second = rest // size
            twice = half_of * (rest - second * size)
            quotient = voxel((np.uint64(first) << of_32) + second)
            up = (twice > size) | ((twice == size) & (second & np.uint64(1) == np.uint64(1)))
            if first < lowest:
                quotient = voxel(low)
            elif first > highest:
                quotient = voxel(high)
            elif up and quotient != voxel(high):
                quotient = voxel(quotient + voxel(1))
            target[x] = quotient

    return {
        ("f", True): of_float64,
        ("f", False): of_float32,
        ("i", True): of_64_bits,
        ("i", False): of_32_bits,
    }["f" if dtype.kind == "f" else "i", dtype.itemsize == 8]


def _loop(function: _F) -> _F:
    return compiled(function, error_model="numpy")


@_loop
def _add_up(
    source: Inferred, target: Inferred, starts: Inferred, weights: Inferred, divisor: Inferred
) -> None:
    """Add whole source rows first, which takes vector instructions, and then along x."""
    z_starts, y_starts, x_starts = starts
    z_weights, y_weights, x_weights = weights
    sums = _new_sums(source[0, 0], source.shape[2])
    totals = _new_sums(source[0, 0], target.shape[2])
    for z in range(target.shape[0]):
        for y in range(target.shape[1]):
            sums[...] = 0
            for i in range(len(z_weights)):
                for j in range(len(y_weights)):
                    row = source[z_starts[z] + i, y_starts[y] + j]
                    _add_row(sums, row, z_weights[i, z] * y_weights[j, y])
            totals[...] = 0
            for part in range(len(totals)):
                total, parts = totals[part], sums[part]
                for k in range(len(x_weights)):
                    weight = x_weights[k]
                    for x in range(len(total)):
                        total[x] += weight[x] * parts[x_starts[x] + k]
            _divide(target[z, y], totals, divisor)
