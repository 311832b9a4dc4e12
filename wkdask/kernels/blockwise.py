"""Rules that reduce a block of voxels to one voxel, compiled.

It knows blocks, and must not know where they lie in a layer, nor what a halo is.

Three layers, each a few lines: a *rule* reduces blocks, a *walk* visits the blocks of an array, and
a *loop* is one rule in one walk, compiled once per dtype. Everything runs in one thread and
without the GIL. There are two walks:

* For 2-2-1 and 2-2-2, the factors of nearly every pyramid, a rule takes one block as a tuple,
  which LLVM unrolls and turns into vector instructions over many blocks: such rules must be
  free of branches.
* For any other factor the walk gathers a batch of blocks, so that voxels at the same place of many
  blocks lie side by side: row `k` of the batch has the `k`-th voxel of each block. A rule for
  batches goes through whole rows, which gives vector instructions too.

Arrays are `(z, y, x)` in C order. The voxels of a block always come in the order y fastest, then x,
then z.

All that a loop is made of is in this file, because numba looks at no other when it decides whether
the machine code on disk is still good.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, TypeVar, cast

import numba
import numpy as np
from numba.extending import overload
from numba.np.numpy_support import as_dtype
from numpy.typing import NDArray

from wkdask._compile import Inferred, compiled

__all__ = ["GENERAL", "SPECIAL", "Factor", "Loop", "Voxels", "nearest", "spread"]

Voxels = NDArray[np.generic]
Factor = tuple[int, int, int]
Loop = Callable[[Voxels, Voxels, Factor], None]
"""`(source, target, factor)`, axes z, y, x: fills `target`."""

_BATCH_BYTES = 1 << 17
"""About how much is gathered at a time: it should stay in the processor's cache."""

_FEW_VOXELS = 4
"""Up to so many voxels in a block, comparing all pairs is faster than to count."""

_F = TypeVar("_F", bound=Callable[..., Any])


_OPTIONS: dict[str, Inferred] = {
    "error_model": "numpy",
    "no_cpython_wrapper": True,  # never called from outside
    "no_cfunc_wrapper": True,
}


def _loop(function: _F) -> _F:
    """Compile a loop at its first use with a dtype, and keep it on disk."""
    return compiled(function, error_model="numpy")


def _inlined(function: _F) -> _F:
    """Compile a rule as a part of every loop that uses it."""
    return cast(_F, numba.njit(forceinline=True, **_OPTIONS)(function))


def _apart(function: _F) -> _F:
    """Compile a short loop alone: inside of others LLVM makes no vector instructions of it."""
    return cast(_F, numba.njit(**_OPTIONS)(function))


def _pasted(function: _F) -> _F:
    """Copy a walk into every loop before it is compiled: halves the compile time."""
    return cast(_F, numba.njit(inline="always", error_model="numpy")(function))


def _by_type(name: _F) -> Callable[[_F], _F]:
    """Let the decorated function choose, from numba's types, what `name` means inside a loop."""
    return cast(Callable[[_F], _F], overload(name, jit_options={"error_model": "numpy"}))


# --- rules for tuples: one block -> one voxel -------------------------------------------------


@_inlined
def _smaller(a: Inferred, b: Inferred) -> Inferred:
    """`np.minimum`: NaN wins. For integers the test for NaN costs nothing."""
    return a if (a <= b) | (a != a) else b


@_inlined
def _larger(a: Inferred, b: Inferred) -> Inferred:
    """`np.maximum`: NaN wins."""
    return a if (a >= b) | (a != a) else b


@_inlined
def _smallest(values: Inferred) -> Inferred:
    result = values[0]
    for value in values:
        result = _smaller(result, value)
    return result


@_inlined
def _largest(values: Inferred) -> Inferred:
    result = values[0]
    for value in values:
        result = _larger(result, value)
    return result


def _midpoint(low: Inferred, high: Inferred) -> Inferred:
    """Halfway between two voxels, `low <= high`; integers truncate toward zero."""
    raise NotImplementedError


@_by_type(_midpoint)
def _midpoint_for(low: Inferred, high: Inferred) -> Inferred:
    half = as_dtype(low).type(0.5)

    # low + high = 2 * (low & high) + (low ^ high), so nothing overflows, not even 64 bits.
    def of_unsigned(low: Inferred, high: Inferred) -> Inferred:
        return (low & high) + ((low ^ high) >> 1)

    def of_signed(low: Inferred, high: Inferred) -> Inferred:
        floor = (low & high) + ((low ^ high) >> 1)
        return floor + ((low ^ high) & (floor < 0))

    def of_floats(low: Inferred, high: Inferred) -> Inferred:
        return (low + high) * half

    return {"u": of_unsigned, "i": of_signed, "f": of_floats}[as_dtype(low).kind]


@_inlined
def _sorted_4(a: Inferred, b: Inferred, c: Inferred, d: Inferred) -> Inferred:
    """Sort by a network of five comparators; NaN spreads over all that it is compared with."""
    a, b = _smaller(a, b), _larger(a, b)
    c, d = _smaller(c, d), _larger(c, d)
    a, c = _smaller(a, c), _larger(a, c)
    b, d = _smaller(b, d), _larger(b, d)
    b, c = _smaller(b, c), _larger(b, c)
    return a, b, c, d


@_inlined
def _median_of_4(values: Inferred) -> Inferred:
    a, b, c, d = values
    low = _larger(_smaller(a, b), _smaller(c, d))
    high = _smaller(_larger(a, b), _larger(c, d))
    return _midpoint(_smaller(low, high), _larger(low, high))


@_inlined
def _median_of_8(values: Inferred) -> Inferred:
    """Sort both halves; Batcher's bitonic split then gives the lower and the upper four."""
    a, b, c, d = _sorted_4(values[0], values[1], values[2], values[3])
    h, g, f, e = _sorted_4(values[4], values[5], values[6], values[7])
    low = _largest((_smaller(a, e), _smaller(b, f), _smaller(c, g), _smaller(d, h)))
    high = _smallest((_larger(a, e), _larger(b, f), _larger(c, g), _larger(d, h)))
    return _midpoint(low, high)


@_inlined
def _same(a: Inferred, b: Inferred) -> Inferred:
    """Equal, or both NaN."""
    return (a == b) | ((a != a) & (b != b))


def _votes(candidate: Inferred, values: Inferred) -> Inferred:
    """How many of a tuple's values are the candidate, in a type as wide as a voxel."""
    raise NotImplementedError


@_by_type(_votes)
def _votes_for(candidate: Inferred, values: Inferred) -> Inferred:
    count = _unsigned(candidate)  # any other width would halve the vectors or worse

    def votes(candidate: Inferred, values: Inferred) -> Inferred:
        total = count(0)
        for value in values:
            total = count(total + count(_same(candidate, value)))
        return total

    return votes


@_inlined
def _mode(values: Inferred) -> Inferred:
    winner = values[0]
    most = _votes(winner, values)
    for value in values:
        votes = _votes(value, values)
        wins = votes > most
        winner = value if wins else winner
        most = votes if wins else most
    return winner


def _mean(values: Inferred) -> Inferred:
    """Mean of a tuple; integers come modulo 2**bits, as unsigned numbers."""
    raise NotImplementedError


@_by_type(_mean)
def _mean_for(values: Inferred) -> Inferred:
    voxel = as_dtype(values.dtype)
    wide = np.int64 if voxel.kind == "i" else np.uint64
    narrow = _unsigned(values.dtype)

    # In pairs, so that the mean of equal voxels is that voxel and none leaves their range.
    def of_4_floats(values: Inferred) -> Inferred:
        a, b, c, d = values
        return ((np.float64(a) + b) + (np.float64(c) + d)) * 0.25

    def of_8_floats(values: Inferred) -> Inferred:
        a, b, c, d, e, f, g, h = values
        first = (np.float64(a) + b) + (np.float64(c) + d)
        return (first + ((np.float64(e) + f) + (np.float64(g) + h))) * 0.125

    # Quotients and remainders summed apart need no type that is wider than a voxel: at most 8
    # remainders below 8 fit into 8 bits.
    def of_integers(values: Inferred) -> Inferred:
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

    if voxel.kind == "f":
        return of_4_floats if len(values) == 4 else of_8_floats
    return of_integers


def _unsigned(voxel: Inferred) -> Inferred:
    """Return the unsigned NumPy type that is as wide as numba's type `voxel`."""
    return np.dtype(f"u{as_dtype(voxel).itemsize}").type


# --- rules for batches: many blocks -> a row of voxels ----------------------------------------
# `blocks[k, i]` is voxel `k` of block `i`; a rule may overwrite it.


@_apart
def _take(row: Inferred, voxels: Inferred, step: int) -> None:
    for i in range(len(row)):
        row[i] = voxels[i * step]


@_inlined
def _smallest_of_rows(blocks: Inferred, row: Inferred) -> None:
    _take(row, blocks[0], 1)
    for k in range(1, len(blocks)):
        _lower(row, blocks[k])


@_inlined
def _largest_of_rows(blocks: Inferred, row: Inferred) -> None:
    _take(row, blocks[0], 1)
    for k in range(1, len(blocks)):
        _raise(row, blocks[k])


@_apart
def _lower(row: Inferred, voxels: Inferred) -> None:
    for i in range(len(row)):
        row[i] = _smaller(row[i], voxels[i])


@_apart
def _raise(row: Inferred, voxels: Inferred) -> None:
    for i in range(len(row)):
        row[i] = _larger(row[i], voxels[i])


@_apart
def _compare(low: Inferred, high: Inferred) -> None:
    for i in range(len(low)):
        a, b = low[i], high[i]
        low[i] = _smaller(a, b)
        high[i] = _larger(a, b)


@_apart
def _sort_rows(blocks: Inferred) -> None:
    """Sort each block by merge exchange, whose comparators are the same for all blocks.

    D. E. Knuth, The Art of Computer Programming 3, section 5.2.2, algorithm M. NaN spreads to all
    voxels of its block.
    """
    step = 1
    while 2 * step < len(blocks):
        step *= 2
    half = step
    while step > 0:
        distance, width, offset = step, half, 0
        while True:
            for k in range(len(blocks) - distance):
                if k & step == offset:
                    _compare(blocks[k], blocks[k + distance])
            if width == step:
                break
            distance, width, offset = width - step, width // 2, step
        step //= 2


@_inlined
def _median_of_rows(blocks: Inferred, row: Inferred) -> None:
    _sort_rows(blocks)
    low, high = blocks[(len(blocks) - 1) // 2], blocks[len(blocks) // 2]
    if len(blocks) % 2:
        _take(row, low, 1)
        return
    for i in range(len(row)):
        row[i] = _midpoint(low[i], high[i])


@_inlined
def _mode_of_rows(blocks: Inferred, row: Inferred) -> None:
    if len(blocks) <= _FEW_VOXELS:
        _mode_by_pairs(blocks, row)
    else:
        _mode_by_majority(blocks, row)


@_apart
def _mode_by_pairs(blocks: Inferred, row: Inferred) -> None:
    """Count for each voxel only what follows: the first of equals has the full count."""
    _take(row, blocks[0], 1)
    most = np.zeros(len(row), np.int32)
    votes = np.empty(len(row), np.int32)
    for k in range(len(blocks) - 1):
        votes.fill(0)
        for j in range(k + 1, len(blocks)):
            _count(votes, blocks[k], blocks[j])
        _elect(row, most, blocks[k], votes)


@_apart
def _mode_by_majority(blocks: Inferred, row: Inferred) -> None:
    """Take what has more than half of the votes, which most blocks have; count in the others.

    R. S. Boyer and J S. Moore (1991), "MJRTY: a fast majority vote algorithm".
    """
    _take(row, blocks[0], 1)
    votes = np.zeros(len(row), np.int32)
    for k in range(len(blocks)):
        _contest(row, votes, blocks[k])
    votes.fill(0)
    for k in range(len(blocks)):
        _count(votes, row, blocks[k])
    counter = _new_counter(blocks)
    for i in range(len(row)):
        if 2 * votes[i] <= len(blocks):
            row[i] = blocks[_most_frequent(blocks[:, i], counter), i]


@_apart
def _count(votes: Inferred, candidates: Inferred, voxels: Inferred) -> None:
    for i in range(len(votes)):
        votes[i] += np.int32(_same(candidates[i], voxels[i]))


@_apart
def _elect(winners: Inferred, most: Inferred, candidates: Inferred, votes: Inferred) -> None:
    for i in range(len(winners)):
        wins = votes[i] > most[i]
        winners[i] = candidates[i] if wins else winners[i]
        most[i] = votes[i] if wins else most[i]


@_apart
def _contest(candidates: Inferred, lead: Inferred, voxels: Inferred) -> None:
    """Let voxels strengthen the candidates or weaken them, or replace those without a lead."""
    for i in range(len(candidates)):
        fresh = lead[i] == 0
        agrees = _same(candidates[i], voxels[i])
        candidates[i] = voxels[i] if fresh else candidates[i]
        lead[i] += np.int32(1) if fresh | agrees else np.int32(-1)


def _new_counter(blocks: Inferred) -> Inferred:
    """Return room for `_most_frequent` and its hash function; two arrays share their memory."""
    raise NotImplementedError


@_by_type(_new_counter)
def _new_counter_for(blocks: Inferred) -> Inferred:
    unsigned = _unsigned(blocks.dtype)
    # A slot for each value of 8 bits; other values are spread by the golden ratio.
    least, odd = (256, 1) if unsigned is np.uint8 else (2, 0x9E3779B97F4A7C15)
    multiplier = np.uint64(odd)

    def new(blocks: Inferred) -> Inferred:
        size = least
        while size < 4 * len(blocks):
            size *= 2
        keys = np.empty(len(blocks), blocks.dtype)
        votes, slots = np.empty(len(blocks), np.int32), np.empty(size, np.int32)
        return keys, keys.view(unsigned), votes, slots, multiplier

    return new


@_apart
def _most_frequent(values: Inferred, counter: Inferred) -> Inferred:
    """Return where the most frequent value is first, with a hash table of first places."""
    keys, bits, votes, slots, multiplier = counter
    for k in range(len(values)):
        keys[k] = _canonical(values[k])
    votes.fill(0)
    slots.fill(-1)
    last = len(slots) - 1
    for k in range(len(bits)):
        hashed = np.uint64(bits[k]) * multiplier
        slot = np.int64(hashed ^ (hashed >> np.uint64(32))) & last
        while slots[slot] >= 0 and bits[slots[slot]] != bits[k]:
            slot = (slot + 1) & last
        first = slots[slot] if slots[slot] >= 0 else k
        slots[slot] = first
        votes[first] += 1
    best = 0
    for k in range(len(votes)):
        best = k if votes[k] > votes[best] else best
    return best


def _canonical(value: Inferred) -> Inferred:
    """Give what is the same value the same bits: both zeros, and all NaN."""
    raise NotImplementedError


@_by_type(_canonical)
def _canonical_for(value: Inferred) -> Inferred:
    voxel = as_dtype(value).type
    zero, nan = voxel(0), voxel("nan") if as_dtype(value).kind == "f" else voxel(0)

    def of_integers(value: Inferred) -> Inferred:
        return value

    def of_floats(value: Inferred) -> Inferred:
        return value + zero if value == value else nan

    return of_floats if as_dtype(value).kind == "f" else of_integers


# --- walks: visit the blocks of (z, y, x) arrays ----------------------------------------------


@_pasted
def _walk_2x2x1(source: Inferred, target: Inferred, rule: Inferred) -> None:
    for z in range(target.shape[0]):
        for y in range(target.shape[1]):
            a, b = source[z, 2 * y], source[z, 2 * y + 1]
            row = target[z, y]
            for x in range(len(row)):
                i, j = 2 * x, 2 * x + 1
                row[x] = rule((a[i], b[i], a[j], b[j]))


@_pasted
def _walk_2x2x2(source: Inferred, target: Inferred, rule: Inferred) -> None:
    for z in range(target.shape[0]):
        for y in range(target.shape[1]):
            a, b = source[2 * z, 2 * y], source[2 * z, 2 * y + 1]
            c, d = source[2 * z + 1, 2 * y], source[2 * z + 1, 2 * y + 1]
            row = target[z, y]
            for x in range(len(row)):
                i, j = 2 * x, 2 * x + 1
                row[x] = rule((a[i], b[i], a[j], b[j], c[i], d[i], c[j], d[j]))


@_pasted
def _walk_any(source: Inferred, target: Inferred, factor: Inferred, rule: Inferred) -> None:
    voxels = factor[0] * factor[1] * factor[2]
    flat = target.reshape(-1)
    batch = min(max(_BATCH_BYTES // (voxels * source.itemsize), 8), 512)
    gathered = np.empty(voxels * batch, source.dtype)
    for start in range(0, len(flat), batch):
        row = flat[start : start + batch]
        blocks = gathered[: voxels * len(row)].reshape((voxels, len(row)))
        _gather(source, target.shape, factor, start, blocks)
        rule(blocks, row)


@_inlined
def _gather(
    source: Inferred, shape: Inferred, factor: Inferred, start: int, blocks: Inferred
) -> None:
    """Fill a batch with the blocks from number `start` on, x fastest."""
    depth, height, width = factor
    done = 0
    while done < blocks.shape[1]:
        line, x = divmod(start + done, shape[2])
        z, y = divmod(line, shape[1])
        count = min(shape[2] - x, blocks.shape[1] - done)
        k = 0
        for dz in range(z * depth, (z + 1) * depth):
            for dx in range(x * width, (x + 1) * width):
                for dy in range(y * height, (y + 1) * height):
                    _take(blocks[k, done : done + count], source[dz, dy, dx:], width)
                    k += 1
        done += count


# --- loops: one rule in one walk --------------------------------------------------------------
# Written out, because numba can't keep on disk what a factory or a function argument made.


@_loop
def _median_2x2x1(source: Inferred, target: Inferred, factor: Inferred) -> None:
    _walk_2x2x1(source, target, _median_of_4)


@_loop
def _median_2x2x2(source: Inferred, target: Inferred, factor: Inferred) -> None:
    _walk_2x2x2(source, target, _median_of_8)


@_loop
def _median_any(source: Inferred, target: Inferred, factor: Inferred) -> None:
    _walk_any(source, target, factor, _median_of_rows)


@_loop
def _mode_2x2x1(source: Inferred, target: Inferred, factor: Inferred) -> None:
    _walk_2x2x1(source, target, _mode)


@_loop
def _mode_2x2x2(source: Inferred, target: Inferred, factor: Inferred) -> None:
    _walk_2x2x2(source, target, _mode)


@_loop
def _mode_any(source: Inferred, target: Inferred, factor: Inferred) -> None:
    _walk_any(source, target, factor, _mode_of_rows)


@_loop
def _max_2x2x1(source: Inferred, target: Inferred, factor: Inferred) -> None:
    _walk_2x2x1(source, target, _largest)


@_loop
def _max_2x2x2(source: Inferred, target: Inferred, factor: Inferred) -> None:
    _walk_2x2x2(source, target, _largest)


@_loop
def _max_any(source: Inferred, target: Inferred, factor: Inferred) -> None:
    _walk_any(source, target, factor, _largest_of_rows)


@_loop
def _min_2x2x1(source: Inferred, target: Inferred, factor: Inferred) -> None:
    _walk_2x2x1(source, target, _smallest)


@_loop
def _min_2x2x2(source: Inferred, target: Inferred, factor: Inferred) -> None:
    _walk_2x2x2(source, target, _smallest)


@_loop
def _min_any(source: Inferred, target: Inferred, factor: Inferred) -> None:
    _walk_any(source, target, factor, _smallest_of_rows)


@_loop
def _mean_2x2x1(source: Inferred, target: Inferred, factor: Inferred) -> None:
    _walk_2x2x1(source, target, _mean)


@_loop
def _mean_2x2x2(source: Inferred, target: Inferred, factor: Inferred) -> None:
    _walk_2x2x2(source, target, _mean)


# --- without a rule: NumPy is as fast ---------------------------------------------------------


def nearest(source: Voxels, target: Voxels, factor: Factor) -> None:
    """Take the voxel in the middle of each block, or just before it."""
    target[...] = source[tuple(slice((step - 1) // 2, None, step) for step in factor)]


def spread(source: Voxels, target: Voxels, factor: Factor) -> None:
    """Fill each block of `target` with one voxel of `source`."""
    depth, height, width = factor
    z, y, x = source.shape
    wide = source.repeat(width, axis=2)
    blocks = target.reshape(z, depth, y, height, x * width)
    blocks[...] = wide[:, np.newaxis, :, np.newaxis, :]


GENERAL: Mapping[str, Loop] = MappingProxyType(
    {"median": _median_any, "mode": _mode_any, "max": _max_any, "min": _min_any}
)
"""The loops for every factor, by rule."""

SPECIAL: Mapping[str, Mapping[Factor, Loop]] = MappingProxyType(
    {
        rule: MappingProxyType({(1, 1, 1): nearest, (2, 2, 1): flat, (2, 2, 2): cubic})
        for rule, flat, cubic in [
            ("median", _median_2x2x1, _median_2x2x2),
            ("mode", _mode_2x2x1, _mode_2x2x2),
            ("max", _max_2x2x1, _max_2x2x2),
            ("min", _min_2x2x1, _min_2x2x2),
            ("mean", _mean_2x2x1, _mean_2x2x2),
        ]
    }
)
"""The faster loops for a few factors, by rule and then by factor `(fx, fy, fz)`."""
