"""LZ4 blocks of labels: a search over runs of equal voxels instead of bytes.

A block of a segmentation is a sequence of runs, along x first. What is new in it happens where a
run begins, and whatever repeats is a sequence of runs that was there before: the row above, the
plane before. So matches are looked for from run to run, and the cheapest way through the block is
found by dynamic programming over the voxels at which a match may begin.

The format is that of https://github.com/lz4/lz4/blob/dev/doc/lz4_Block_format.md: a sequence is a
token, literals, an offset of at most 65,535 bytes, and a match of at least 4 bytes. The last 5
bytes are literals, and no match begins in the last 12.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from wkdask._compile import compiled, inlined
from wkdask.storage.intrinsics import copy_bytes, put_byte

__all__ = ["WIDTHS", "Workspace", "pack_runs", "workspace"]

WIDTHS = (1, 2, 4, 8)
"""Bytes of a voxel, all channels, for which runs are found."""

_MOST_VOXELS = 2**18
_LEAST_VOXELS = 64
# A block of more runs is no block of labels.
_VOXELS_PER_RUN = 4
# Earlier runs that are compared: those before the same next label, and those of the same label.
_TRIES, _TRIES_ALONE = 16, 8
# Voxels after a run, from which on a match is not worth a further search.
_GOOD = 512
_HASH_BITS = 12
_FARTHEST_BYTES = 65535
_LEAST_MATCH_BYTES, _LAST_LITERALS, _LAST_MATCH_START = 4, 5, 12
_SEQUENCE_BYTES = 3  # a token and an offset
_UNREACHED = 2**30


class Workspace(NamedTuple):
    """Working memory for blocks of a size; one thread at a time uses it."""

    starts: NDArray[np.int32]
    """Of each run, its first voxel; behind the last, the number of voxels."""
    values: NDArray[np.uint64]
    """Of each run, its voxel."""
    heads: NDArray[np.int32]
    """The latest run per hash: of a voxel and the next run's voxel, and of a voxel alone."""
    links: NDArray[np.int32]
    """Of each run, the run before it of the same hash, likewise."""
    costs: NDArray[np.int32]
    """Of each voxel, the bytes of the cheapest way to it; when the way is known, where it goes on.
    """
    origins: NDArray[np.int32]
    """Of each voxel, from which one the cheapest way comes."""
    offsets: NDArray[np.int32]
    """Of each voxel, by which offset in voxels it comes; 0 is by literals."""
    found: NDArray[np.int32]
    """Of each candidate, the voxels of its run, the offset, how far it goes on after the run, and
    up to which end of a run."""


def workspace(num_voxels: int, voxel_bytes: int) -> Workspace:
    """Return working memory; it is empty if runs of such voxels are not looked for."""
    is_used = voxel_bytes in WIDTHS and _LEAST_VOXELS <= num_voxels <= _MOST_VOXELS
    count = num_voxels + 2 if is_used else 0
    return Workspace(
        np.empty(count, np.int32),
        np.empty(count, np.uint64),
        np.empty((2, 2**_HASH_BITS), np.int32),
        np.empty((count, 2), np.int32),
        np.empty(count, np.int32),
        np.empty(count, np.int32),
        np.empty(count, np.int32),
        np.empty((_TRIES, 4), np.int32),
    )


@compiled
def pack_runs(
    starts: NDArray[np.int32],
    values: NDArray[np.uint64],
    heads: NDArray[np.int32],
    links: NDArray[np.int32],
    costs: NDArray[np.int32],
    origins: NDArray[np.int32],
    offsets: NDArray[np.int32],
    found: NDArray[np.int32],
    raw: NDArray[np.uint8],
    voxel_bytes: int,
    target: int,
) -> int:
    """Write a block in the format of LZ4 to an address; return its bytes, 0 if it has no runs.

    Parameters
    ----------
    starts, values, heads, links, costs, origins, offsets, found
        A `Workspace`. As one value each access to an array of it would be counted.
    raw
        The voxels of the block.
    voxel_bytes
        Bytes of one, of `WIDTHS`.
    target
        Where to; there must be room for what `LZ4_compressBound` says.
    """
    if not len(starts):
        return 0
    if voxel_bytes == 1:
        runs = _find_runs(raw, starts, values)
    elif voxel_bytes == 2:
        runs = _find_runs(raw.view(np.uint16), starts, values)
    elif voxel_bytes == 4:
        runs = _find_runs(raw.view(np.uint32), starts, values)
    else:
        runs = _find_runs(raw.view(np.uint64), starts, values)
    if not runs:
        return 0
    block = len(raw) // voxel_bytes, voxel_bytes
    heads[:] = -1
    costs[: block[0] + 1] = _UNREACHED
    costs[0] = 0
    # Up to where a long match goes on from the start of a run: nothing is looked for inside of it.
    known = 0
    for run in range(runs):
        pair, alone = _hashes(values, run, runs)
        first = heads[0, pair]
        span = starts[run], starts[run + 1]
        count = best = 0
        same = 0, 0
        if span[1] > known:
            count, best = _candidates(starts, values, links, found, (run, runs), first, voxel_bytes)
            same = _same_label(starts, values, links, run, heads[1, alone], voxel_bytes)
            if best >= _GOOD and costs[span[0]] < _UNREACHED:
                known = min(span[1] + best, _last_end(block))
        for at in range(span[0], span[1] if span[1] > known or best >= _GOOD else span[0]):
            if costs[at] < _UNREACHED:
                _go_on(costs, origins, offsets, found, at, span, block, (count, same[0], same[1]))
        links[run, 0], links[run, 1] = heads[0, pair], heads[1, alone]
        heads[0, pair] = heads[1, alone] = run
    return _write(costs, origins, offsets, raw, block, target)


@inlined
def _find_runs(voxels: Any, starts: Any, values: Any) -> int:
    """Find the runs; return how many there are, or 0 if too many."""
    most = len(voxels) // _VOXELS_PER_RUN
    last = voxels[0]
    starts[0], values[0] = 0, last
    count = 1
    for i in range(1, len(voxels)):
        voxel = voxels[i]
        if voxel != last:
            if count == most:
                return 0
            starts[count], values[count] = i, voxel
            count += 1
            last = voxel
    starts[count] = len(voxels)
    return count


@inlined
def _hashes(values: Any, run: int, runs: int) -> tuple[int, int]:
    """Return the hashes of a run's voxel with the next one, and of the voxel alone."""
    value = values[run]
    following = values[run + 1] if run + 1 < runs else ~value
    one = value * np.uint64(0x9E3779B185EBCA87)
    both = one ^ (following * np.uint64(0xC2B2AE3D27D4EB4F))
    shift = np.uint64(64 - _HASH_BITS)
    return np.int64(both >> shift), np.int64(one >> shift)  # type: ignore[return-value]


@inlined
def _candidates(
    starts: Any,
    values: Any,
    links: Any,
    found: Any,
    of: tuple[int, int],
    other: int,
    size: int,
) -> tuple[int, int]:
    """Collect earlier runs of the same label that, laid end to end with a run, go on as it does.

    Return how many there are, and how far one goes on that is as long as the run.
    """
    run, runs = of
    end = starts[run + 1]
    length = end - starts[run]
    value = values[run]
    farthest = _FARTHEST_BYTES // size
    count = 0
    best = -1
    for _ in range(_TRIES):
        if other < 0:
            break
        offset = end - starts[other + 1]
        if offset > farthest:
            break
        if values[other] == value:
            other_length = starts[other + 1] - starts[other]
            # Of what follows both: how many voxels are equal, and how many of them are whole runs.
            more = whole = 0
            k = 1
            while run + k < runs and values[run + k] == values[other + k]:
                mine = starts[run + k + 1] - starts[run + k]
                theirs = starts[other + k + 1] - starts[other + k]
                more += min(mine, theirs)
                if mine != theirs:
                    break
                whole = more
                k += 1
            # One that is as long as the run and goes on farther is better everywhere in it.
            if more > best:
                found[count, 0], found[count, 1] = other_length, offset
                found[count, 2], found[count, 3] = more, whole
                count += 1
                if other_length >= length:
                    best = more
                    if more >= _GOOD:
                        break
        other = links[other, 0]
    return count, best


@inlined
def _same_label(
    starts: Any, values: Any, links: Any, run: int, other: int, size: int
) -> tuple[int, int]:
    """Return offset and length of the longest of the last runs of a label, from start to start."""
    length = starts[run + 1] - starts[run]
    farthest = _FARTHEST_BYTES // size
    offset = longest = 0
    for _ in range(_TRIES_ALONE):
        if other < 0 or starts[run] - starts[other] > farthest:
            break
        if values[other] == values[run] and starts[other + 1] - starts[other] > longest:
            offset, longest = starts[run] - starts[other], starts[other + 1] - starts[other]
            if longest >= length:
                break
        other = links[other, 1]
    return offset, longest


@inlined
def _go_on(
    costs: Any,
    origins: Any,
    offsets: Any,
    found: Any,
    at: int,
    span: tuple[int, int],
    block: tuple[int, int],
    options: tuple[int, int, int],
) -> None:
    """Reach further voxels from one: by literals, by a match, or by the voxel before it."""
    start, end = span
    num_voxels, size = block
    count, same, same_voxels = options
    rest = end - at
    can_match = (num_voxels - at) * size >= _LAST_MATCH_START
    if at == start or rest * size < _LEAST_MATCH_BYTES or not can_match:
        cost = costs[at] + size
        if cost < costs[at + 1]:
            costs[at + 1], origins[at + 1], offsets[at + 1] = cost, at, 0
    if not can_match:
        return
    best = -1
    chosen = 0
    for i in range(count):
        if found[i, 0] >= rest and found[i, 2] > best:
            best, chosen = found[i, 2], i
    if best >= 0:
        _reach(costs, origins, offsets, at, end + best, found[chosen, 1], block)
        if found[chosen, 3] < best:
            _reach(costs, origins, offsets, at, end + found[chosen, 3], found[chosen, 1], block)
    if at > start:
        if best <= 0:
            _reach(costs, origins, offsets, at, end, 1, block)
    elif best < 0 and same:
        _reach(costs, origins, offsets, at, at + min(same_voxels, rest), same, block)


@inlined
def _last_end(block: tuple[int, int]) -> int:
    """Return the last voxel at which a match may end."""
    return block[0] - (_LAST_LITERALS + block[1] - 1) // block[1]


@inlined
def _reach(
    costs: Any, origins: Any, offsets: Any, at: int, to: int, offset: int, block: tuple[int, int]
) -> None:
    """Reach a voxel by a match, or the last one at which a match may end."""
    size = block[1]
    to = min(to, _last_end(block))
    more = (to - at) * size - _LEAST_MATCH_BYTES
    if more < 0:
        return
    cost = costs[at] + _SEQUENCE_BYTES
    if more >= 15:
        cost += 1 + (more - 15) // 255
    if cost < costs[to]:
        costs[to], origins[to], offsets[to] = cost, at, offset


@inlined
def _write(
    onwards: Any, origins: Any, offsets: Any, raw: Any, block: tuple[int, int], target: int
) -> int:
    """Write the sequences of the cheapest way; return their bytes."""
    num_voxels, size = block
    at = num_voxels
    while at > 0:
        onwards[origins[at]] = at
        at = origins[at]
    source: Any = np.int64(raw.ctypes.data)
    out = target
    literals = at = 0
    while at < num_voxels:
        to = onwards[at]
        if offsets[to]:
            more = (to - at) * size - _LEAST_MATCH_BYTES
            first = source + literals * size
            out = _put_literals(out, first, (at - literals) * size, min(more, 15))
            put_byte(out, offsets[to] * size & 255)
            put_byte(out + 1, offsets[to] * size >> 8)
            out = _put_length(out + 2, more)
            literals = to
        at = to
    return _put_literals(out, source + literals * size, (num_voxels - literals) * size, 0) - target


@inlined
def _put_literals(out: int, source: Any, count: int, match: int) -> int:
    """Write a token and literals; return where the next byte goes."""
    put_byte(out, min(count, 15) << 4 | match)
    out = _put_length(out + 1, count)
    copy_bytes(out, source, count)
    return out + count


@inlined
def _put_length(out: int, count: int) -> int:
    """Write what of a length does not fit into the token; return where the next byte goes."""
    if count >= 15:
        count -= 15
        while count >= 255:
            put_byte(out, 255)
            out, count = out + 1, count - 255
        put_byte(out, count)
        out += 1
    return out
