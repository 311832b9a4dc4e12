"""Blocks of a file to and from voxels of an array, in compiled loops that need no GIL.

Inside a block the channel is fastest, then x, y, z, which is the Fortran order of an array
`(c, x, y, z)`. Blocks follow each other in Morton order with x as bit 0. It knows descriptors and
bytes, and trusts its caller to have checked header, size and jump table.

Blocks are read and decoded a row along x at a time, into a buffer that stays in the processor's
cache, and then copied as whole rows of voxels, so that the array is written once and in order.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wkdask._compile import Inferred, compiled, part
from wkdask.geometry import Vec3
from wkdask.grids import Region
from wkdask.storage.header import VolumeHeader
from wkdask.storage.intrinsics import (
    address_of,
    byte_at,
    call_lz4,
    call_pread,
    call_unlz4,
    copy_bytes,
    finish_streams,
    state_bytes,
    stream_16_bytes,
)
from wkdask.storage.runs import pack_runs, workspace
from wkdask.storage.volume import Voxels

__all__ = [
    "STREAM_BYTES",
    "BlockPacker",
    "Bytes",
    "Cells",
    "address_in",
    "block_at",
    "block_bound",
    "cells_of_axis",
    "copy_pieces",
    "ends_summary",
    "fill_from",
    "gather_row",
    "is_in_line",
    "morton_index",
    "row_blocks",
    "scratch_memory",
    "unpack",
]

Bytes = NDArray[np.uint8]
Cells = NDArray[np.int64]

# Buffer for one row of decoded blocks.
_ROW_BYTES = 2**22
_RUN_BYTES = 2**18
_FEW_BLOCKS = 2  # that lie behind each other, in Morton order
# Of the working memory that a thread keeps: fresh pages cost a small read half of its time.
_KEPT_BYTES = 2**23
# Buffers of blocks a whole power of two apart would fall into the same sets of the cache.
_STAGGER_BYTES = 192
# An output of that size does not stay in the cache, so that it need not go through it.
STREAM_BYTES = 2**25
# Bytes that are read rather than skipped, because a system call costs as much.
_GAP_BYTES = 4096

_FAILED_READ, _FAILED_DECODE = 1, 2

# The levels of LZ4HC for blocks that fast LZ4 makes less than a sixteenth, such as large labels,
# and for others; docs/decisions has the measurements.
_LEVELS = 10, 5

_thread = threading.local()


def morton_index(block: Vec3) -> int:
    """Return the place of a block in its file.

    Examples
    --------
    >>> [morton_index(block) for block in ((0, 0, 0), (1, 0, 0), (0, 1, 0), (1, 1, 1))]
    [0, 1, 2, 7]
    """
    x, y, z = block
    return int(_spread(x) | _spread(y) << 1 | _spread(z) << 2)


def block_at(index: int) -> Vec3:
    """Return the position `(x, y, z)` of the block at a place of the file.

    Examples
    --------
    >>> block_at(7)
    (1, 1, 1)
    """
    return int(_gathered(index)), int(_gathered(index >> 1)), int(_gathered(index >> 2))


def block_bound(header: VolumeHeader) -> int:
    """Return the most bytes that a block can have in a file, as `LZ4_compressBound` says."""
    raw = header.block_bytes
    return raw + raw // 255 + 16 if header.is_compressed else raw


def unpack(
    descriptor: int, header: VolumeHeader, ends: NDArray[np.int64], region: Region, out: Voxels
) -> tuple[str, Vec3] | None:
    """Read a region of an open file into `out`.

    Parameters
    ----------
    descriptor
        The file; its position is neither used nor moved.
    header
        The file's own header.
    ends
        Where each block ends, in bytes, ascending and within the file; empty for a raw file, which
        must hold all its blocks.
    region
        Voxels counted from the first one of the file; not empty.
    out
        Shape `(c, x, y, z)` of the region; channels and x must follow each other in memory.
    """
    row, row_bytes, run_bytes = _row_sizes(header, region)
    scratch = scratch_memory(row_bytes + run_bytes)
    kind, code = _unpack(
        address_of("pread"),
        address_of("LZ4_decompress_safe") if header.is_compressed else 0,
        descriptor,
        ends,
        header.data_offset_bytes,
        (scratch[:row_bytes], row),
        scratch[row_bytes:],
        tuple((axis.start, axis.step, len(axis)) for axis in region),
        (header.block_edge, header.voxel_bytes, _slot_head(header)),
        (out.ctypes.data, out.strides[2], out.strides[3], int(out.nbytes >= STREAM_BYTES)),
    )
    if not kind:
        return None
    return ("read" if kind == _FAILED_READ else "decode"), block_at(code)


def _row_sizes(header: VolumeHeader, region: Region) -> tuple[int, int, int]:
    """Return how many blocks are decoded before they are copied, their bytes, and packed bytes."""
    bound = block_bound(header)
    row = row_blocks(region, header.block_size, header.block_bytes)
    run_bytes = max(bound, min(_RUN_BYTES, row * bound)) if header.is_compressed else 0
    return row, row * (_slot_head(header) + header.block_bytes), run_bytes


def row_blocks(region: Region, block_size: Vec3, block_bytes: int) -> int:
    """Return how many blocks along x are decoded before they are copied."""
    x, y, z = (
        axis[-1] // edge - axis[0] // edge + 1
        for axis, edge in zip(region, block_size, strict=True)
    )
    # The less is needed of each block, the less do long rows matter, and the more does the cache.
    whole = y * block_size[1] * z * block_size[2]
    share = min(1.0, len(region[1]) * len(region[2]) / whole)
    return min(x, max(_FEW_BLOCKS, int(_ROW_BYTES * share) // block_bytes))


def _slot_head(header: VolumeHeader) -> int:
    """Return the bytes before each block in the buffer: room for what precedes plain voxels."""
    head = _literal_head(header.block_bytes) if header.is_compressed else 0
    return -(-max(_STAGGER_BYTES, head) // 64) * 64


def scratch_memory(size_bytes: int) -> Bytes:
    """Return working memory, which the thread keeps for its next read."""
    kept: Bytes | None = getattr(_thread, "scratch", None)
    if kept is None or len(kept) < size_bytes:
        kept = np.empty(size_bytes, dtype=np.uint8)
        if size_bytes <= _KEPT_BYTES:
            _thread.scratch = kept
    return kept[:size_bytes]


def ends_summary(ends: NDArray[np.int64], first: int) -> tuple[int, int, int]:
    """Return the last end of a jump table, and the least and most bytes of a block.

    The least is negative if the table does not ascend from `first` on.
    """
    return _ends_summary(ends, first)


class BlockPacker:
    """Turns cubes of voxels into the bytes of their blocks, in Morton order.

    Blocks of labels are searched for runs of equal voxels; see `runs`. The others are for LZ4HC: a
    block that fast LZ4 can't shrink is kept as fast LZ4 made it, because LZ4HC could not shrink
    it either. Of the others some are compressed by LZ4HC as samples: where that saves too little on
    blocks of like compressibility, it is left out, because it costs twenty times as long.
    """

    def __init__(self, header: VolumeHeader, hc_level: int | None = None) -> None:
        self._header = header
        self._levels = _LEVELS if hc_level is None else (hc_level, hc_level)
        self._lz4 = address_of("LZ4_compress_fast_extState") if header.is_compressed else 0
        is_hc = header.block_type == "lz4hc"
        self._hc = address_of("LZ4_compress_HC_extStateHC") if is_hc else 0
        batch = max(1, _ROW_BYTES // block_bound(header))
        self._sizes = np.zeros(min(batch, header.blocks_per_file), dtype=np.int64)
        # One block more: each encoder writes behind the one before.
        self._packed = np.empty((len(self._sizes) + 1) * block_bound(header), dtype=np.uint8)
        self._state = _working_memory("LZ4_sizeofState", bool(self._lz4))
        self._hc_state = _working_memory("LZ4_sizeofStateHC", bool(self._hc))
        self._raw = np.empty(header.block_bytes, dtype=np.uint8)
        self._samples = np.zeros((_CLASSES, 3), dtype=np.int64)
        has_runs = is_hc and hc_level is None
        self._work = workspace(header.block_edge**3 if has_runs else 0, header.voxel_bytes)

    def pack(self, voxels: Voxels) -> Iterator[tuple[memoryview, NDArray[np.int64]]]:
        """Yield the bytes of a cube's blocks in batches, each with the sizes of its blocks.

        Parameters
        ----------
        voxels
            `(c, x, y, z)`: a cube of a power of two blocks per edge.
        """
        blocks = (voxels.shape[1] // self._header.block_edge) ** 3
        lines = voxels if is_in_line(voxels) else np.asfortranarray(voxels)
        for first in range(0, blocks, len(self._sizes)):
            sizes = self._sizes[: blocks - first]
            used = self._pack_batch(lines, first, sizes)
            yield memoryview(self._packed[:used].data), sizes

    def _pack_batch(self, voxels: Voxels, first: int, sizes: NDArray[np.int64]) -> int:
        used: int = _pack(
            (self._lz4, self._hc),
            (self._state.ctypes.data, self._hc_state.ctypes.data),
            self._levels,
            (voxels.ctypes.data, voxels.strides[2], voxels.strides[3]),
            self._header.block_edge,
            self._header.voxel_bytes,
            first,
            sizes,
            self._packed,
            self._raw,
            self._samples,
            self._work,
        )
        if used < 0:
            raise AssertionError("LZ4 refused a block that fits into its buffer")
        return used


def is_in_line(voxels: Voxels) -> bool:
    """Return whether the channels and x of an array follow each other in memory."""
    wanted = (voxels.itemsize, voxels.itemsize * voxels.shape[0])
    axes = zip(voxels.shape, voxels.strides, wanted, strict=False)
    return all(length == 1 or stride == right for length, stride, right in axes)


def _working_memory(name: str, is_needed: bool) -> Bytes:
    """Return what a compression function writes to, a quarter of a MiB for LZ4HC."""
    return np.empty(state_bytes(name) if is_needed else 0, dtype=np.uint8)


# --- compiled -----------------------------------------------------------------------------------

_CLASSES = 16
_SAMPLE_EVERY = 32
_FEW_RUNS = 8  # runs that make a block so many times smaller leave nothing to fast LZ4
_WORTH = 16  # LZ4HC must save a sixteenth of what fast LZ4 makes of a block


@compiled
def _spread(number: int) -> int:
    """Move the bits of a number to every third place."""
    spread = 0
    bit = 0
    while number >> bit:
        spread |= (number >> bit & 1) << 3 * bit
        bit += 1
    return spread


@compiled
def _gathered(number: int) -> int:
    """Take every third bit of a number."""
    gathered = 0
    bit = 0
    while number >> 3 * bit:
        gathered |= (number >> 3 * bit & 1) << bit
        bit += 1
    return gathered


@part
def address_in(array: Bytes) -> Any:
    """Return where an array begins, as a signed number like all others here.

    With one that has no sign numba would go on in floating point, and compile functions twice.
    """
    return np.int64(array.ctypes.data)


@part
def cells_of_axis(axis: tuple[int, int, int], edge: int) -> Cells:
    """Return per block of an axis: spread number, first voxel, voxels, where they go, number."""
    start, step, count = axis
    cells = np.empty((((count - 1) * step + start) // edge - start // edge + 1, 5), np.int64)
    used = 0
    done = 0
    while done < count:
        at = start + done * step
        cell = at // edge
        stop = min(count, ((cell + 1) * edge - start + step - 1) // step)
        cells[used, 0] = _spread(cell)
        cells[used, 1] = at - cell * edge
        cells[used, 2] = stop - done
        cells[used, 3] = done
        cells[used, 4] = cell
        used += 1
        done = stop
    return cells[:used]


@compiled
def _ends_summary(ends: NDArray[np.int64], first: int) -> tuple[int, int, int]:
    least = most = ends[0] - first
    is_ascending = ends[0] >= first
    for i in range(1, len(ends)):
        is_ascending &= ends[i] >= ends[i - 1]
        # It may wrap, but only where the table does not ascend.
        length = ends[i] - ends[i - 1]
        least, most = min(least, length), max(most, length)
    return int(ends[-1]), int(least) if is_ascending else -1, int(most)


@part
def fill_from(pread: int, descriptor: int, target: int, start: int, count: int) -> bool:
    """Read bytes from a file to an address; False if there are not that many."""
    done = 0
    while done < count:
        got = call_pread(pread, (np.int64(descriptor), target + done, count - done, start + done))
        if got <= 0:
            return False
        done += got
    return True


@compiled
def _unpack(
    pread: int,
    unlz4: int,
    descriptor: int,
    ends: NDArray[np.int64],
    data_offset: int,
    row_of: tuple[Bytes, int],
    packed: Bytes,
    region: tuple[tuple[int, int, int], ...],
    sizes: tuple[int, int, int],
    out: tuple[int, int, int, int],
) -> tuple[int, int]:
    edge, voxel_bytes, slot_head = sizes
    xs, ys, zs = (
        cells_of_axis(region[0], edge),
        cells_of_axis(region[1], edge),
        cells_of_axis(region[2], edge),
    )
    steps = region[0][1], region[1][1], region[2][1]
    row_bytes = edge * voxel_bytes
    block_bytes = edge * edge * row_bytes
    pitch = slot_head + block_bytes
    row, group = row_of
    blocks = address_in(row) + slot_head
    address, pitch_y, pitch_z, is_streamed = out
    for z in range(len(zs)):
        for y in range(len(ys)):
            code_yz = ys[y, 0] << 1 | zs[z, 0] << 2
            # The first and the last row of voxels that are needed of each block, in bytes.
            head = (zs[z, 1] * edge + ys[y, 1]) * row_bytes
            last_z = zs[z, 1] + (zs[z, 2] - 1) * steps[2]
            last_y = ys[y, 1] + (ys[y, 2] - 1) * steps[1]
            tail = (last_z * edge + last_y + 1) * row_bytes
            for first in range(0, len(xs), group):
                cells = xs[first : first + group]
                if unlz4:
                    kind, code = _decode_row(
                        (pread, unlz4, descriptor, data_offset), ends, cells, code_yz, packed,
                        (blocks, pitch, block_bytes), (head, tail),
                    )  # fmt: skip
                else:
                    kind, code = _fetch_row(
                        (pread, descriptor, data_offset), cells, code_yz,
                        (blocks, pitch, block_bytes), (head, tail),
                    )  # fmt: skip
                if kind:
                    return kind, code
                gather_row(
                    (
                        address + zs[z, 3] * pitch_z + ys[y, 3] * pitch_y,
                        pitch_y,
                        pitch_z,
                    ),
                    (
                        blocks + head,
                        pitch,
                        steps[1] * row_bytes,
                        steps[2] * edge * row_bytes,
                    ),
                    cells,
                    (ys[y, 2], zs[z, 2]),
                    (steps[0], edge, voxel_bytes),
                    is_streamed,
                )
    if is_streamed:
        finish_streams()
    return 0, 0


@part
def _fetch_row(
    file: tuple[int, int, int],
    cells: Cells,
    code_yz: int,
    slots: tuple[int, int, int],
    needed: tuple[int, int],
) -> tuple[int, int]:
    """Read the needed rows of a row of raw blocks."""
    pread, descriptor, data_offset = file
    blocks, pitch, block_bytes = slots
    head, tail = needed
    for k in range(len(cells)):
        code = cells[k, 0] | code_yz
        start = data_offset + code * block_bytes + head
        if not fill_from(pread, descriptor, blocks + k * pitch + head, start, tail - head):
            return _FAILED_READ, code
    return 0, 0


@part
def _decode_row(
    file: tuple[int, int, int, int],
    ends: NDArray[np.int64],
    cells: Cells,
    code_yz: int,
    packed: Bytes,
    slots: tuple[int, int, int],
    needed: tuple[int, int],
) -> tuple[int, int]:
    """Read and decode a row of compressed blocks; neighbours in the file are read at once."""
    pread, unlz4, descriptor, data_offset = file
    blocks, pitch, block_bytes = slots
    plain_bytes = _literal_head(block_bytes) + block_bytes
    k = 0
    while k < len(cells):
        code = cells[k, 0] | code_yz
        begin = ends[code - 1] if code else data_offset
        stop = ends[code]
        if stop - begin == plain_bytes:
            slot = blocks + k * pitch
            found = _fetch_plain(pread, descriptor, begin, slot, block_bytes, needed)
            if found < 0:
                return _FAILED_READ, code
            if found:
                k += 1
                continue
        top = k + 1
        while top < len(cells):
            following = cells[top, 0] | code_yz
            start = ends[following - 1]
            gap = start - stop
            if gap < 0 or gap > _GAP_BYTES or ends[following] - begin > len(packed):
                break
            if ends[following] - start == plain_bytes:
                break
            stop = ends[following]
            top += 1
        if not fill_from(pread, descriptor, address_in(packed), begin, stop - begin):
            return _FAILED_READ, _unreadable(
                pread, descriptor, ends, data_offset, cells[k:top], code_yz, packed
            )
        for i in range(k, top):
            code = cells[i, 0] | code_yz
            start = ends[code - 1] if code else data_offset
            arguments = (
                address_in(packed) + start - begin,
                blocks + i * pitch,
                ends[code] - start,
                block_bytes,
            )
            if call_unlz4(unlz4, arguments) != block_bytes:
                return _FAILED_DECODE, code
        k = top
    return 0, 0


@compiled
def _literal_head(count: int) -> int:
    """Return the bytes by which LZ4 says that `count` bytes follow as they are: 15 or more."""
    return 2 + (count - 15) // 255


@part
def _fetch_plain(
    pread: int,
    descriptor: int,
    begin: int,
    slot: int,
    block_bytes: int,
    needed: tuple[int, int],
) -> int:
    """Read the needed rows of a block that LZ4 could not shrink, if it is one.

    Such a block is one sequence of literals: a token, their number, and all voxels as they are,
    which is what many blocks of micrographs are. It has nothing to decode, and no byte that could
    be wrong but those that say so.
    """
    head, tail = needed
    count = _literal_head(block_bytes)
    # What precedes the voxels comes with them, unless they lie far behind.
    is_near = head <= _GAP_BYTES
    if not fill_from(pread, descriptor, slot - count, begin, count + (tail if is_near else 0)):
        return -1
    last = byte_at(slot - 1)
    is_plain = byte_at(slot - count) >> 4 == 15 and last == (block_bytes - 15) % 255
    for i in range(1, count - 1):
        is_plain &= byte_at(slot - count + i) == 255
    if not is_plain:
        return 0
    rest = tail - head
    if not is_near and not fill_from(pread, descriptor, slot + head, begin + count + head, rest):
        return -1
    return 1


@part
def _unreadable(
    pread: int,
    descriptor: int,
    ends: NDArray[np.int64],
    data_offset: int,
    cells: Cells,
    code_yz: int,
    packed: Bytes,
) -> int:
    """Return the first block of some that can't be read."""
    code = 0
    for i in range(len(cells)):
        code = cells[i, 0] | code_yz
        start = ends[code - 1] if code else data_offset
        if not fill_from(pread, descriptor, address_in(packed), start, ends[code] - start):
            break
    return code


@part
def gather_row(
    target: tuple[int, int, int],
    source: tuple[int, int, int, int],
    cells: Cells,
    counts: tuple[int, int],
    x_axis: tuple[int, int, int],
    is_streamed: int,
) -> None:
    """Copy what is needed of a row of blocks to its place in the array."""
    address, pitch_y, pitch_z = target
    start, pitch, skip_y, skip_z = source
    ny, nz = counts
    step, edge, size = x_axis
    # Only the first and the last block of a row can be needed in part.
    first_full = 0 if cells[0, 2] == edge else 1
    last_full = len(cells) if cells[len(cells) - 1, 2] == edge else len(cells) - 1
    if step > 1:
        last_full = first_full = len(cells)
    for k in range(len(cells)):
        if first_full <= k < last_full:
            continue
        from_ = start + k * pitch + cells[k, 1] * size
        to = address + cells[k, 3] * size
        pieces, length = (1, cells[k, 2] * size) if step == 1 else (cells[k, 2], size)
        for z in range(nz):
            for x in range(pieces):
                copy_pieces(
                    to + z * pitch_z + x * size, pitch_y,
                    from_ + z * skip_z + x * step * size, skip_y, ny, length,
                )  # fmt: skip
    if first_full < last_full:
        from_ = start + first_full * pitch
        to = address + cells[first_full, 3] * size
        count, length = last_full - first_full, edge * size
        for z in range(nz):
            for y in range(ny):
                row, voxels = to + z * pitch_z + y * pitch_y, from_ + z * skip_z + y * skip_y
                if is_streamed and not (row | length) & 15:
                    _stream_each(row, length, voxels, pitch, count, length)
                else:
                    copy_pieces(row, length, voxels, pitch, count, length)


@part
def copy_pieces(
    target: int, target_pitch: int, source: int, source_pitch: int, count: int, size: int
) -> None:
    """Copy pieces of one size; the sizes that occur most without a call."""
    if size == 1:
        for k in range(count):
            copy_bytes(target + k * target_pitch, source + k * source_pitch, 1)
    elif size == 4:
        for k in range(count):
            copy_bytes(target + k * target_pitch, source + k * source_pitch, 4)
    elif size == 32:
        for k in range(count):
            copy_bytes(target + k * target_pitch, source + k * source_pitch, 32)
    elif size == 64:
        for k in range(count):
            copy_bytes(target + k * target_pitch, source + k * source_pitch, 64)
    elif size == 128:
        for k in range(count):
            copy_bytes(target + k * target_pitch, source + k * source_pitch, 128)
    else:
        for k in range(count):
            copy_bytes(target + k * target_pitch, source + k * source_pitch, size)


@part
def _stream_each(
    target: int, target_pitch: int, source: int, source_pitch: int, count: int, size: int
) -> None:
    """Copy pieces of a multiple of 16 bytes to an array that is larger than the cache."""
    for k in range(count):
        to, from_ = target + k * target_pitch, source + k * source_pitch
        for at in range(0, size, 16):
            stream_16_bytes(to + at, from_ + at)


@compiled
def _pack(
    functions: tuple[int, int],
    states: tuple[int, int],
    levels: tuple[int, int],
    voxels: tuple[int, int, int],
    edge: int,
    voxel_bytes: int,
    first: int,
    sizes: NDArray[np.int64],
    packed: Bytes,
    raw: Bytes,
    samples: NDArray[np.int64],
    work: Inferred,
) -> int:
    """Pack blocks in Morton order; return the bytes used, or -1 if LZ4 failed."""
    lz4, hc = functions
    state, hc_state = states
    address, pitch_y, pitch_z = voxels
    row_bytes = edge * voxel_bytes
    block_bytes = edge * edge * row_bytes
    bound = block_bytes + block_bytes // 255 + 16
    starts, values, heads, links, costs, origins, offsets, found = work
    used = 0
    for k in range(len(sizes)):
        code = first + k
        x, y, z = _gathered(code), _gathered(code >> 1), _gathered(code >> 2)
        source = address + z * edge * pitch_z + y * edge * pitch_y + x * row_bytes
        target = address_in(packed) + used
        block = address_in(raw) if lz4 else target
        for dz in range(edge):
            copy_pieces(
                block + dz * edge * row_bytes,
                row_bytes,
                source + dz * pitch_z,
                pitch_y,
                edge,
                row_bytes,
            )
        size: Any = block_bytes
        if lz4:
            of_runs: Any = np.int64(0)
            if len(starts):
                of_runs = np.int64(
                    pack_runs(
                        starts,
                        values,
                        heads,
                        links,
                        costs,
                        origins,
                        offsets,
                        found,
                        raw,
                        voxel_bytes,
                        target,
                    )
                )
            size = of_runs
            # Fast LZ4 makes less of a block only where every run is something new.
            if of_runs == 0 or _FEW_RUNS * of_runs > block_bytes:
                behind = target + of_runs
                size = np.int64(call_lz4(lz4, (state, block, behind, block_bytes, bound, 1)))
                if size <= 0:
                    return -1
                if 0 < of_runs <= size:
                    size = of_runs
                elif of_runs:
                    copy_bytes(target, behind, size)
                elif hc and size < block_bytes:
                    sample = samples[size * _CLASSES // block_bytes]
                    if _is_worth(sample):
                        level = levels[0] if 16 * size < block_bytes else levels[1]
                        arguments = (hc_state, block, target + size, block_bytes, bound, level)
                        size = _smaller(target, size, np.int64(call_lz4(hc, arguments)), sample)
        sizes[k] = size
        used += size
    return used


@compiled
def _is_worth(sample: NDArray[np.int64]) -> bool:
    """Return whether to try LZ4HC on a block of this compressibility."""
    seen, fast_bytes, hc_bytes = sample
    sample[0] += 1
    saved = fast_bytes - hc_bytes
    return bool(seen < 2 or seen % _SAMPLE_EVERY == 0 or saved * _WORTH >= fast_bytes)


@compiled
def _smaller(target: int, size: int, hc_size: Any, sample: NDArray[np.int64]) -> Any:
    """Keep the smaller one of two encodings; the second lies behind the first."""
    sample[1] += size
    sample[2] += min(size, hc_size) if hc_size > 0 else size
    if 0 < hc_size < size:
        copy_bytes(target, target + size, hc_size)
        return hc_size
    return size


# With its first function numba loads much of itself. That happens here, not at the first read.
morton_index((0, 0, 0))
