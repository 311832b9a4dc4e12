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
# Which earlier runs are compared with a run. They are chained by what they have in common: label,
# next label and length of the next run; label and next label; the label alone.
_NEXT_RUN, _NEXT_LABEL, _LABEL = range(3)
# How many are compared, more in a block of few runs; up to which one those of the first chain; and
# how many of the third.
_LEAST_TRIES, _MOST_TRIES, _TRIES_PER_BLOCK = 4, 128, 2**13
_TRIES_NEXT_RUN, _TRIES_LABEL = 3, 8
# Voxels behind the run: from so many on, per try, others are not compared; and from so many on
# nothing is looked for inside of the match.
_ENOUGH_PER_TRY, _GOOD = 8, 256
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
    """The latest run of each chain, by the hash of what its runs have in common."""
    links: NDArray[np.int32]
    """Of each run, the one before it in each chain."""
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
        np.empty((3, 2**_HASH_BITS), np.int32),
        np.empty((count, 3), np.int32),
        np.empty(count, np.int32),
        np.empty(count, np.int32),
        np.empty(count, np.int32),
        np.empty((_MOST_TRIES + 1, 4), np.int32),
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
    # Of a block of one value fast LZ4 makes the same.
    if runs < 2:
        return 0
    num_voxels = len(raw) // voxel_bytes
    # Divided once, which is slow: voxels, bytes of one, and the last one at which a match may end.
    last_end = num_voxels - (_LAST_LITERALS + voxel_bytes - 1) // voxel_bytes
    block = num_voxels, voxel_bytes, last_end
    farthest = _FARTHEST_BYTES // voxel_bytes
    tries = min(max(_LEAST_TRIES, _TRIES_PER_BLOCK // runs), _MOST_TRIES)
    heads[:] = -1
    costs[: num_voxels + 1] = _UNREACHED
    costs[0] = 0
    # Up to where a long match goes on from the start of a run: nothing is looked for inside of it.
    known = 0
    # What is best for a run goes on, most often, with what is best for the next one.
    following = -1
    for run in range(runs):
        hashes = _hashes(starts, values, run, runs)
        span = starts[run], starts[run + 1]
        count = best = 0
        same = 0, 0
        chosen = following
        if span[1] > known:
            firsts = following, heads[_NEXT_RUN, hashes[0]], heads[_NEXT_LABEL, hashes[1]]
            count, best, chosen = _candidates(
                starts, values, links, found, (run, runs), firsts, (tries, farthest)
            )
            if best < 0:
                first = heads[_LABEL, hashes[2]]
                same = _same_label(starts, values, links, run, first, farthest)
            if best >= _GOOD and costs[span[0]] < _UNREACHED:
                known = min(span[1] + best, last_end)
        following = chosen + 1 if chosen >= 0 else -1
        for at in range(span[0], span[1] if span[1] > known or best >= _GOOD else span[0]):
            if costs[at] < _UNREACHED:
                _go_on(costs, origins, offsets, found, at, span, block, (count, same[0], same[1]))
        links[run, _NEXT_RUN] = heads[_NEXT_RUN, hashes[0]]
        links[run, _NEXT_LABEL] = heads[_NEXT_LABEL, hashes[1]]
        links[run, _LABEL] = heads[_LABEL, hashes[2]]
        heads[_NEXT_RUN, hashes[0]] = heads[_NEXT_LABEL, hashes[1]] = heads[_LABEL, hashes[2]] = run
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
    starts[count], values[count] = len(voxels), last
    return count


@inlined
def _hashes(starts: Any, values: Any, run: int, runs: int) -> tuple[int, int, int]:
    """Return the hashes of what a run has in common with others of its chains."""
    value = values[run]
    following = values[run + 1] if run + 1 < runs else ~value
    length = np.uint64(starts[run + 2] - starts[run + 1]) if run + 1 < runs else np.uint64(0)
    label = value * np.uint64(0x9E3779B185EBCA87)
    next_label = label ^ (following * np.uint64(0xC2B2AE3D27D4EB4F))
    next_run = next_label ^ (length * np.uint64(0x9E3779B185EBCA87))
    shift = np.uint64(64 - _HASH_BITS)
    return (  # type: ignore[return-value]
        np.int64(next_run >> shift),
        np.int64(next_label >> shift),
        np.int64(label >> shift),
    )


@inlined
def _candidates(
    starts: Any,
    values: Any,
    links: Any,
    found: Any,
    of: tuple[int, int],
    firsts: tuple[int, int, int],
    limits: tuple[int, int],
) -> tuple[int, int, int]:
    """Collect earlier runs of the same label that, laid end to end with a run, go on as it does.

    Return how many there are, how far one goes on that is as long as the run, and which one it is.
    `firsts` are a run that may be a good one, and the latest of the first two chains.
    """
    run, runs = of
    tries, farthest = limits
    enough = _ENOUGH_PER_TRY * tries
    end = starts[run + 1]
    length = end - starts[run]
    nearest = end - farthest
    value = values[run]
    count = 0
    best = chosen = -1
    # Of what follows the run, the whole runs that the best one shares: how many, what comes behind
    # them, and where that begins.
    shared = 0
    wanted, place = values[run + 1], 0
    other, chain = firsts[0], -1
    for i in range(tries):
        if chain < 0 and (i > 0 or other < 0 or starts[other + 1] < nearest):
            other, chain = firsts[1], _NEXT_RUN
        if chain == _NEXT_RUN and (i > _TRIES_NEXT_RUN or other < 0 or starts[other + 1] < nearest):
            other, chain = firsts[2], _NEXT_LABEL
        if other < 0 or starts[other + 1] < nearest:
            break
        its_end = starts[other + 1]
        # A better one must share those runs too, and go on with the same label.
        if (
            (values[other] == value)
            & (values[other + 1 + shared] == wanted)
            & (starts[other + 1 + shared] - its_end == place)
        ):
            # Of what follows both: how many voxels are equal, and how many of them are whole runs.
            more = whole = k = 0
            while run + 1 + k < runs and values[run + 1 + k] == values[other + 1 + k]:
                mine = starts[run + 2 + k] - end
                theirs = starts[other + 2 + k] - its_end
                more = min(mine, theirs)
                if mine != theirs:
                    break
                whole = more
                k += 1
            # One that is as long as the run and goes on farther is better everywhere in it.
            if more > best:
                other_length = its_end - starts[other]
                found[count, 0], found[count, 1] = other_length, end - its_end
                found[count, 2], found[count, 3] = more, whole
                count += 1
                if other_length >= length:
                    best, shared, chosen = more, k, other
                    wanted, place = values[run + 1 + k], starts[run + 1 + k] - end
                    if more >= enough or run + 1 + k >= runs:
                        break
        if chain >= 0:
            other = links[other, chain]
    return count, best, chosen


@inlined
def _same_label(
    starts: Any, values: Any, links: Any, run: int, other: int, farthest: int
) -> tuple[int, int]:
    """Return offset and length of the longest of the last runs of a label, from start to start."""
    length = starts[run + 1] - starts[run]
    offset = longest = 0
    for _ in range(_TRIES_LABEL):
        if other < 0 or starts[run] - starts[other] > farthest:
            break
        if values[other] == values[run] and starts[other + 1] - starts[other] > longest:
            offset, longest = starts[run] - starts[other], starts[other + 1] - starts[other]
            if longest >= length:
                break
        other = links[other, _LABEL]
    return offset, longest


@inlined
def _go_on(
    costs: Any,
    origins: Any,
    offsets: Any,
    found: Any,
    at: int,
    span: tuple[int, int],
    block: tuple[int, int, int],
    options: tuple[int, int, int],
) -> None:
    """Reach further voxels from one: by literals, by a match, or by the voxel before it."""
    start, end = span
    num_voxels, size, _ = block
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
        offset, whole = found[chosen, 1], found[chosen, 3]
        _reach(costs, origins, offsets, at, end + best, offset, block)
        if whole < best:
            _reach(costs, origins, offsets, at, end + whole, offset, block)
    if at > start:
        if best <= 0:
            _reach(costs, origins, offsets, at, end, 1, block)
    elif best < 0 and same:
        _reach(costs, origins, offsets, at, at + min(same_voxels, rest), same, block)


@inlined
def _reach(
    costs: Any,
    origins: Any,
    offsets: Any,
    at: int,
    to: int,
    offset: int,
    block: tuple[int, int, int],
) -> None:
    """Reach a voxel by a match, or the last one at which a match may end."""
    _, size, last_end = block
    to = min(to, last_end)
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
    onwards: Any, origins: Any, offsets: Any, raw: Any, block: tuple[int, int, int], target: int
) -> int:
    """Write the sequences of the cheapest way; return their bytes."""
    num_voxels, size, _ = block
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
