"""Downsampling of one NumPy array; knows voxels, blocks of voxels and rules to reduce them.

It must not know dask, paths, WKW files, mags or the borders of a layer: who calls it has already
padded the array to multiples of the factor.

Three layers, each a few lines: a *rule* reduces the voxels of one block to one voxel, a *walk*
visits the blocks of an array, and a *loop* is one rule in one walk, compiled once per dtype. The
walks for the factors of nearly every pyramid, 2-2-1 and 2-2-2, hand the block over as a tuple,
which LLVM unrolls and turns into vector instructions: the rules for tuples must therefore be free
of branches. The walk for any other factor gathers the block into a small array. Everything runs in
one thread and without the GIL.

Inside the loops an array is `(z, y, x)` in C order, the same bytes as `(x, y, z)` in Fortran order.
The voxels of a block always come in the order y fastest, then x, then z.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, TypeVar, cast

import numba
import numpy as np
from numba.extending import overload
from numba.np.numpy_support import as_dtype

from wkdask.compiling import compiled
from wkdask.errors import ArgumentError, DtypeError

__all__ = ["DTYPES", "MODES", "Kernel", "downsample"]

Voxels = np.ndarray[Any, np.dtype[Any]]
Factor = tuple[int, int, int]
Loop = Callable[[Voxels, Voxels, Factor, Voxels], None]
"""`(source, target, factor, block)`, axes z, y, x: fills `target`; `block` has room for a block."""

DTYPES = tuple(
    np.dtype(f"{kind}{bits}")
    for kind, widths in {"uint": (8, 16, 32, 64), "int": (8, 16, 32, 64), "float": (32, 64)}.items()
    for bits in widths
)
"""The dtypes of WKW, in the byte order of the machine."""


def downsample(array: Voxels, factor: Sequence[int], mode: str) -> Voxels:
    """Reduce every block of `factor` voxels to one voxel, each channel separately.

    Parameters
    ----------
    array
        Voxels of shape `(c, x, y, z)` and one of `DTYPES`. Fortran order with one channel is read
        in place; anything else is copied channel by channel. It may be read-only.
    factor
        Voxels per block along x, y and z: whole numbers from 1 on, which divide the shape.
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

    Returns
    -------
    ndarray
        A new array of shape `(c, x // fx, y // fy, z // fz)` in Fortran order, same dtype.

    Raises
    ------
    ArgumentError
        Unknown `mode`, not four axes, not three positive factors, or a size that is no multiple.
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
    """
    kernel = MODES.get(mode)
    if kernel is None:
        raise ArgumentError(f"unknown mode {mode!r}: use one of {', '.join(sorted(MODES))}")
    array = np.asarray(array)
    _check_voxels(array)
    return kernel(array, _checked_factor(array.shape, factor))


def _check_voxels(array: Voxels) -> None:
    if array.ndim != 4:
        raise ArgumentError(
            f"got an array of shape {array.shape}: downsampling takes the four axes (c, x, y, z). "
            "Add the missing ones with array[np.newaxis]."
        )
    if array.dtype not in DTYPES:
        raise DtypeError(
            f"got voxels of dtype {array.dtype.str!r}: WKW has {', '.join(map(str, DTYPES))} in "
            "native byte order. Convert with array.astype(...)."
        )


def _checked_factor(shape: tuple[int, ...], factor: Sequence[int]) -> Factor:
    try:
        x, y, z = map(operator.index, factor)
    except (TypeError, ValueError):
        x = y = z = 0
    if min(x, y, z) < 1:
        raise ArgumentError(
            f"got the factor {factor!r}: use three whole numbers from 1 on, for x, y and z"
        )
    if any(size % step for size, step in zip(shape[1:], (x, y, z), strict=True)):
        raise ArgumentError(
            f"the sizes (x, y, z) = {shape[1:]} are not multiples of the factor {(x, y, z)}: "
            "pad the array first, for example with np.pad(mode='symmetric')"
        )
    return x, y, z


@dataclass(frozen=True, slots=True)
class Kernel:
    """One mode: `kernel(array, factor) -> array`, on arguments that `downsample` has checked."""

    general: Loop
    """Serves every factor."""

    special: Mapping[Factor, Loop] = field(default_factory=dict)
    """Faster loops, by factor `(fx, fy, fz)`."""

    def __call__(self, array: Voxels, factor: Factor) -> Voxels:
        """Reduce `array`, `(c, x, y, z)`, by `factor`, `(fx, fy, fz)`; see `downsample`."""
        loop = self.special.get(factor, self.general)
        sizes = [size // step for size, step in zip(array.shape[1:], factor, strict=True)]
        result: Voxels = np.empty((len(array), *sizes), array.dtype, order="F")
        for source, target in zip(array, result, strict=True):
            _fill(loop, source, target.T, factor[::-1])
        return result


def _fill(loop: Loop, source: Voxels, target: Voxels, factor: Factor) -> None:
    """Run `loop` on arrays whose layout never varies, so that it is compiled once per dtype."""
    planes: Voxels = np.require(source, requirements=["F", "A"]).T.view()
    planes.flags.writeable = False
    filled = target if target.flags.c_contiguous else np.empty(target.shape, target.dtype)
    loop(planes, filled, factor, np.empty(math.prod(factor), planes.dtype))
    if filled is not target:
        target[...] = filled


# --- numba, typed -----------------------------------------------------------------------------

_F = TypeVar("_F", bound=Callable[..., Any])


def _loop(function: _F) -> _F:
    """Compile a loop at its first use with a dtype, and keep it on disk."""
    return compiled(function, error_model="numpy")


def _inlined(function: _F) -> _F:
    """Compile a rule as a part of every loop that uses it."""
    bare = {"no_cpython_wrapper": True, "no_cfunc_wrapper": True}  # never called from outside
    return cast(_F, numba.njit(forceinline=True, error_model="numpy", **bare)(function))


def _pasted(function: _F) -> _F:
    """Copy a walk into every loop before it is compiled: halves the compile time."""
    return cast(_F, numba.njit(inline="always", error_model="numpy")(function))


def _by_type(name: _F) -> Callable[[_F], _F]:
    """Let the decorated function choose, from numba's types, what `name` means inside a loop."""
    return cast(Callable[[_F], _F], overload(name, jit_options={"error_model": "numpy"}))


# --- rules: the voxels of one block -> one voxel ----------------------------------------------
# `values` is a tuple or an array; in a rule named `of_many` an array, which may be reordered.


@_inlined
def _smaller(a: Any, b: Any) -> Any:
    """`np.minimum`: NaN wins. For integers the test for NaN costs nothing."""
    return a if (a <= b) | (a != a) else b


@_inlined
def _larger(a: Any, b: Any) -> Any:
    """`np.maximum`: NaN wins."""
    return a if (a >= b) | (a != a) else b


@_inlined
def _smallest(values: Any) -> Any:
    result = values[0]
    for value in values:
        result = _smaller(result, value)
    return result


@_inlined
def _largest(values: Any) -> Any:
    result = values[0]
    for value in values:
        result = _larger(result, value)
    return result


def _midpoint(low: Any, high: Any) -> Any:
    """Halfway between two voxels, `low <= high`; integers truncate toward zero."""
    raise NotImplementedError


@_by_type(_midpoint)
def _midpoint_for(low: Any, high: Any) -> Any:
    half = as_dtype(low).type(0.5)

    # low + high = 2 * (low & high) + (low ^ high), so nothing overflows, not even 64 bits.
    def of_unsigned(low: Any, high: Any) -> Any:
        return (low & high) + ((low ^ high) >> 1)

    def of_signed(low: Any, high: Any) -> Any:
        floor = (low & high) + ((low ^ high) >> 1)
        return floor + ((low ^ high) & (floor < 0))

    def of_floats(low: Any, high: Any) -> Any:
        return (low + high) * half

    return {"u": of_unsigned, "i": of_signed, "f": of_floats}[as_dtype(low).kind]


@_inlined
def _sorted_4(a: Any, b: Any, c: Any, d: Any) -> Any:
    """Sort by a network of five comparators; NaN spreads over all that it is compared with."""
    a, b = _smaller(a, b), _larger(a, b)
    c, d = _smaller(c, d), _larger(c, d)
    a, c = _smaller(a, c), _larger(a, c)
    b, d = _smaller(b, d), _larger(b, d)
    b, c = _smaller(b, c), _larger(b, c)
    return a, b, c, d


@_inlined
def _median_of_4(values: Any) -> Any:
    a, b, c, d = values
    low = _larger(_smaller(a, b), _smaller(c, d))
    high = _smaller(_larger(a, b), _larger(c, d))
    return _midpoint(_smaller(low, high), _larger(low, high))


@_inlined
def _median_of_8(values: Any) -> Any:
    """Sort both halves; Batcher's bitonic split then gives the lower and the upper four."""
    a, b, c, d = _sorted_4(values[0], values[1], values[2], values[3])
    h, g, f, e = _sorted_4(values[4], values[5], values[6], values[7])
    low = _largest((_smaller(a, e), _smaller(b, f), _smaller(c, g), _smaller(d, h)))
    high = _smallest((_larger(a, e), _larger(b, f), _larger(c, g), _larger(d, h)))
    return _midpoint(low, high)


@_inlined
def _select(values: Any, rank: int) -> Any:
    """Hoare's quickselect: put the value of `rank` into place and nothing larger before it."""
    left, right = 0, len(values) - 1
    while left < right:
        pivot = values[(left + right) // 2]
        i, j = left, right
        while i <= j:
            while values[i] < pivot:
                i += 1
            while pivot < values[j]:
                j -= 1
            if i <= j:
                values[i], values[j] = values[j], values[i]
                i += 1
                j -= 1
        if j < rank < i:
            break
        left, right = (left, j) if rank <= j else (i, right)
    return values[rank]


@_inlined
def _median_of_many(values: Any) -> Any:
    for value in values:
        if value != value:
            return value
    middle = len(values) // 2
    high = _select(values, middle)
    if len(values) % 2:
        return high
    return _midpoint(_largest(values[:middle]), high)


@_inlined
def _same(a: Any, b: Any) -> Any:
    """Equal, or both NaN."""
    return (a == b) | ((a != a) & (b != b))


def _votes(candidate: Any, values: Any) -> Any:
    """How many of a tuple's values are the candidate, in a type as wide as a voxel."""
    raise NotImplementedError


@_by_type(_votes)
def _votes_for(candidate: Any, values: Any) -> Any:
    count = _unsigned(candidate)  # any other width would halve the vectors or worse

    def votes(candidate: Any, values: Any) -> Any:
        total = count(0)
        for value in values:
            total = count(total + count(_same(candidate, value)))
        return total

    return votes


@_inlined
def _mode(values: Any) -> Any:
    winner = values[0]
    most = _votes(winner, values)
    for value in values:
        votes = _votes(value, values)
        wins = votes > most
        winner = value if wins else winner
        most = votes if wins else most
    return winner


@_inlined
def _mode_of_many(values: Any) -> Any:
    """Count for each value only itself and what follows: the first of equals has the full count."""
    winner, most = values[0], 0
    for i in range(len(values)):
        if most >= len(values) - i:  # also the early way out when all voxels agree
            break
        votes = 0
        for j in range(i, len(values)):
            votes += _same(values[i], values[j])
        if votes > most:
            winner, most = values[i], votes
    return winner


def _mean(values: Any) -> Any:
    """Mean of a tuple or an array; integers come modulo 2**bits, as unsigned numbers."""
    raise NotImplementedError


@_by_type(_mean)
def _mean_for(values: Any) -> Any:
    voxel = as_dtype(values.dtype)
    wide = np.int64 if voxel.kind == "i" else np.uint64
    narrow = _unsigned(values.dtype)

    def of_floats(values: Any) -> Any:
        total = 0.0
        for value in values:
            total += value
        return total / len(values)

    # Quotients and remainders summed apart need no type that is wider than a voxel: at most 8
    # remainders below 8 fit into 8 bits.
    def of_tuple(values: Any) -> Any:
        count = wide(len(values))
        size = narrow(count)
        quotient = remainder = narrow(0)
        for value in values:
            quotient = narrow(quotient + narrow(value // count))
            remainder = narrow(remainder + narrow(value % count))
        quotient = narrow(quotient + remainder // size)
        remainder = narrow(remainder % size)
        up = narrow(remainder + remainder + (quotient & narrow(1))) > size
        return narrow(quotient + narrow(up))

    # Sums of the upper and the lower 32 bits are exact for up to 2**31 voxels of any type.
    def of_array(values: Any) -> Any:
        upper, lower = wide(0), np.uint64(0)
        for value in values:
            upper += wide(value) >> wide(32)
            lower += np.uint64(value) & np.uint64(0xFFFFFFFF)
        count = wide(len(values))
        size = np.uint64(count)
        rest = (np.uint64(upper % count) << np.uint64(32)) + lower
        quotient = (np.uint64(upper // count) << np.uint64(32)) + rest // size
        remainder = rest % size
        up = remainder + remainder + (quotient & np.uint64(1)) > size
        return quotient + np.uint64(up)

    if voxel.kind == "f":
        return of_floats
    return of_tuple if isinstance(values, numba.types.UniTuple) else of_array


def _unsigned(voxel: Any) -> Any:
    """Return the unsigned NumPy type that is as wide as numba's type `voxel`."""
    return np.dtype(f"u{as_dtype(voxel).itemsize}").type


# --- walks: visit the blocks of (z, y, x) arrays ----------------------------------------------


@_pasted
def _walk_2x2x1(source: Any, target: Any, rule: Any) -> None:
    for z in range(target.shape[0]):
        for y in range(target.shape[1]):
            a, b = source[z, 2 * y], source[z, 2 * y + 1]
            row = target[z, y]
            for x in range(len(row)):
                i, j = 2 * x, 2 * x + 1
                row[x] = rule((a[i], b[i], a[j], b[j]))


@_pasted
def _walk_2x2x2(source: Any, target: Any, rule: Any) -> None:
    for z in range(target.shape[0]):
        for y in range(target.shape[1]):
            a, b = source[2 * z, 2 * y], source[2 * z, 2 * y + 1]
            c, d = source[2 * z + 1, 2 * y], source[2 * z + 1, 2 * y + 1]
            row = target[z, y]
            for x in range(len(row)):
                i, j = 2 * x, 2 * x + 1
                row[x] = rule((a[i], b[i], a[j], b[j], c[i], d[i], c[j], d[j]))


@_pasted
def _walk(source: Any, target: Any, factor: Any, block: Any, rule: Any) -> None:
    depth, height, width = factor
    for z in range(target.shape[0]):
        for y in range(target.shape[1]):
            for x in range(target.shape[2]):
                i = 0
                for dz in range(z * depth, (z + 1) * depth):
                    for dx in range(x * width, (x + 1) * width):
                        for dy in range(y * height, (y + 1) * height):
                            block[i] = source[dz, dy, dx]
                            i += 1
                target[z, y, x] = rule(block)


# --- loops: one rule in one walk --------------------------------------------------------------
# Written out, because numba can't keep on disk what a factory or a function argument made.


@_loop
def _median_2x2x1(source: Any, target: Any, factor: Any, block: Any) -> None:
    _walk_2x2x1(source, target, _median_of_4)


@_loop
def _median_2x2x2(source: Any, target: Any, factor: Any, block: Any) -> None:
    _walk_2x2x2(source, target, _median_of_8)


@_loop
def _median_any(source: Any, target: Any, factor: Any, block: Any) -> None:
    _walk(source, target, factor, block, _median_of_many)


@_loop
def _mode_2x2x1(source: Any, target: Any, factor: Any, block: Any) -> None:
    _walk_2x2x1(source, target, _mode)


@_loop
def _mode_2x2x2(source: Any, target: Any, factor: Any, block: Any) -> None:
    _walk_2x2x2(source, target, _mode)


@_loop
def _mode_any(source: Any, target: Any, factor: Any, block: Any) -> None:
    _walk(source, target, factor, block, _mode_of_many)


@_loop
def _max_2x2x1(source: Any, target: Any, factor: Any, block: Any) -> None:
    _walk_2x2x1(source, target, _largest)


@_loop
def _max_2x2x2(source: Any, target: Any, factor: Any, block: Any) -> None:
    _walk_2x2x2(source, target, _largest)


@_loop
def _max_any(source: Any, target: Any, factor: Any, block: Any) -> None:
    _walk(source, target, factor, block, _largest)


@_loop
def _min_2x2x1(source: Any, target: Any, factor: Any, block: Any) -> None:
    _walk_2x2x1(source, target, _smallest)


@_loop
def _min_2x2x2(source: Any, target: Any, factor: Any, block: Any) -> None:
    _walk_2x2x2(source, target, _smallest)


@_loop
def _min_any(source: Any, target: Any, factor: Any, block: Any) -> None:
    _walk(source, target, factor, block, _smallest)


@_loop
def _mean_2x2x1(source: Any, target: Any, factor: Any, block: Any) -> None:
    _walk_2x2x1(source, target, _mean)


@_loop
def _mean_2x2x2(source: Any, target: Any, factor: Any, block: Any) -> None:
    _walk_2x2x2(source, target, _mean)


@_loop
def _mean_any(source: Any, target: Any, factor: Any, block: Any) -> None:
    _walk(source, target, factor, block, _mean)


def _nearest(source: Voxels, target: Voxels, factor: Factor, block: Voxels) -> None:
    target[...] = source[tuple(slice((step - 1) // 2, None, step) for step in factor)]


def _blockwise(general: Loop, flat: Loop, cubic: Loop) -> Kernel:
    special = {(1, 1, 1): _nearest, (2, 2, 1): flat, (2, 2, 2): cubic}
    return Kernel(general, MappingProxyType(special))


MODES: Mapping[str, Kernel] = MappingProxyType(
    {
        "median": _blockwise(_median_any, _median_2x2x1, _median_2x2x2),
        "mode": _blockwise(_mode_any, _mode_2x2x1, _mode_2x2x2),
        "max": _blockwise(_max_any, _max_2x2x1, _max_2x2x2),
        "min": _blockwise(_min_any, _min_2x2x1, _min_2x2x2),
        "mean": _blockwise(_mean_any, _mean_2x2x1, _mean_2x2x2),
        "nearest": Kernel(_nearest),
    }
)
"""The modes by name; `downsample` says what they do."""
