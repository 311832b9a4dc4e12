"""One file of a zarr array, a shard or a chunk: read a region of it, write it whole.

A shard is blocks in any order and an index with the place of each (the sharding codec of zarr v3).
Everything is read from one descriptor, after size and index were checked. Only a file that does not
exist, and a block that the index leaves out, hold the fill value.
"""

from __future__ import annotations

import ctypes
import math
import os
import threading
import weakref
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from itertools import product
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wkdask._compile import compiled, part
from wkdask.errors import extra_error
from wkdask.geometry import BoundingBox
from wkdask.grids import Region, region_of
from wkdask.storage import codec
from wkdask.storage.atomic import read_all
from wkdask.storage.codec import (
    Bytes,
    address_in,
    cells_of_axis,
    copy_pieces,
    fill_from,
    gather_row,
)
from wkdask.storage.intrinsics import (
    address_of,
    c_function,
    call_unzstd,
    call_zstd,
    copy_bytes,
    finish_streams,
)
from wkdask.storage.reader import (
    READ_ATTEMPTS,
    check_target,
    read_at_times,
    read_span,
    regular_bytes,
    unreadable,
)
from wkdask.storage.volume import Voxels
from wkdask.storage.writer import Output
from wkdask.storage.zarr_layout import ZarrLayout

__all__ = ["ShardFile", "ShardFormat", "ShardPacker", "bound"]

Index = NDArray[np.int64]
"""Of each block of a file, in C order of `(x, y, z)`: where it begins, and its bytes. A block that
is missing begins at -1."""

_PIECE_BYTES = 2**23
_MISSING = 2**64 - 1
_FAILED_READ, _FAILED_DECODE = 1, 2
# Of zstd.h: parameters of a context, and the most bytes that a block may have.
_LEVEL_PARAMETER, _CHECKSUM_PARAMETER = 100, 201
_STAGGER_BYTES = 192

_thread = threading.local()


@dataclass(frozen=True, slots=True)
class ShardFile:
    """A file whose size and index were checked; use it in a `with` statement."""

    descriptor: int
    path: str
    layout: ZarrLayout
    index: Index
    """Where its blocks are."""
    size_bytes: int
    """Its size."""

    @classmethod
    def checked(cls, descriptor: int, path: str, layout: ZarrLayout) -> ShardFile:
        """Return an open file after checking it.

        Raises
        ------
        FormatError
            If it is not a whole file of this array.
        """
        size_bytes = regular_bytes(descriptor, path)
        index = _checked_index(descriptor, path, layout, size_bytes)
        return cls(descriptor, path, layout, index, size_bytes)

    def __enter__(self) -> ShardFile:
        return self

    def __exit__(self, *exception: object) -> None:
        os.close(self.descriptor)

    def read_into(self, out: Voxels, region: Region) -> None:
        """Read a region; see `reader.WkwFile.read_into`."""
        check_target(out, region, self.layout)
        for _ in range(READ_ATTEMPTS):
            failure = self._unpack(out, region)
            if failure is None:
                return
            kind, number = failure
            x, y, z = map(int, np.unravel_index(number, self.layout.blocks_per_file))
            block = x, y, z
            if kind == _FAILED_DECODE:
                raise unreadable(
                    self.path,
                    f"block {block} is no zstd block of {self.layout.block_bytes} bytes",
                )
            # Raises the error of the system, unless that has passed, as signals do.
            read_span(self.descriptor, self.path, *map(int, self.index[number]))
        raise read_at_times(self.path, block)

    def decode_all(self) -> None:
        """Read every block and keep nothing."""
        for piece in _pieces(self.layout):
            shape = (self.layout.num_channels, *piece.size)
            self.read_into(np.empty(shape, self.layout.dtype, order="F"), region_of(piece))

    @property
    def head_bytes(self) -> int:
        """Bytes of memory that what is known of the file takes, about."""
        return self.index.nbytes + 1024

    def with_descriptor(self, descriptor: int) -> ShardFile:
        """Return the same file, read by another descriptor."""
        return replace(self, descriptor=descriptor)

    def spans(self, region: Region) -> NDArray[np.int64]:
        """Return which parts of the file hold the blocks of a region; see `place.OpenFile`."""
        layout = self.layout
        x, y, z = (
            np.unique(np.asarray(axis) // edge)
            for axis, edge in zip(region, layout.block_size, strict=True)
        )
        blocks = layout.blocks_per_file
        numbers = (x[:, None, None] * blocks[1] + y[:, None]) * blocks[2] + z
        spans: Index = self.index[numbers.ravel()]
        return spans[spans[:, 0] >= 0]

    def trailing_bytes(self) -> int:
        """Return how many bytes belong to no block; blocks that were replaced may have some."""
        used = int(self.index[:, 1].sum()) + self.layout.index_bytes
        return max(0, self.size_bytes - used)

    def _unpack(self, out: Voxels, region: Region) -> tuple[int, int] | None:
        layout = self.layout
        is_zstd = layout.codec == "zstd"
        row = codec.row_blocks(region, layout.block_size, layout.block_bytes)
        pitch = layout.block_bytes + _STAGGER_BYTES
        most = int(self.index[:, 1].max()) if is_zstd else 0
        memory = codec.scratch_memory(row * pitch + most)
        kind, number = _unpack(
            address_of("pread"),
            address_of("ZSTD_decompressDCtx") if is_zstd else 0,
            _decoder().address if is_zstd else 0,
            self.descriptor,
            self.index,
            (memory[: row * pitch], row),
            memory[row * pitch :],
            tuple((axis.start, axis.step, len(axis)) for axis in region),
            (layout.block_size, layout.blocks_per_file, layout.voxel_bytes, pitch),
            (
                out.ctypes.data,
                out.strides[2],
                out.strides[3],
                int(out.nbytes >= codec.STREAM_BYTES),
            ),
            _background(layout),
        )
        return (kind, number) if kind else None


def _checked_index(descriptor: int, path: str, layout: ZarrLayout, size_bytes: int) -> Index:
    """Return the index of a file after checking that every block can be what it must."""
    is_zstd = layout.codec == "zstd"
    if not layout.is_sharded:
        if not is_zstd and size_bytes != layout.block_bytes:
            raise unreadable(path, f"has {size_bytes} bytes, but must have {layout.block_bytes}")
        index = np.array([[0, size_bytes]], np.int64)
    else:
        index = _read_index(descriptor, path, layout, size_bytes)
    there = index[:, 0] >= 0
    sizes = index[there, 1]
    if not len(sizes):
        return index
    least, most = int(sizes.min()), int(sizes.max())
    shortest, longest = (1, bound(layout.block_bytes)) if is_zstd else (layout.block_bytes,) * 2
    if least < shortest or most > longest:
        raise unreadable(
            path, f"has blocks of {least} to {most} bytes, but {shortest} to {longest} are possible"
        )
    if int((index[there, 0] + sizes).max()) > size_bytes:
        raise unreadable(path, f"has an index that leaves its {size_bytes} bytes")
    return index


def _read_index(descriptor: int, path: str, layout: ZarrLayout, size_bytes: int) -> Index:
    count = layout.index_bytes
    if size_bytes < count:
        raise unreadable(path, f"has {size_bytes} bytes, but its index alone needs {count}")
    data = read_all(descriptor, count, size_bytes - count if layout.index_at_end else 0)
    if len(data) != count:
        raise unreadable(path, "has an index that is cut short")
    if _crc32c(data[:-4]) != int.from_bytes(data[-4:], "little"):
        raise unreadable(path, "has an index whose checksum is wrong")
    pairs = np.frombuffer(data[:-4], "<u8").reshape(-1, 2)
    is_missing = (pairs == _MISSING).all(axis=1)
    if not is_missing.all() and int(pairs[~is_missing].max()) > size_bytes:
        raise unreadable(path, f"has an index that leaves its {size_bytes} bytes")
    index = pairs.astype(np.int64)
    index[is_missing] = -1, 0
    return index


# --- writing ------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class ShardFormat:
    """What a file of a zarr array looks like; see `writer.FileFormat`."""

    layout: ZarrLayout

    @property
    def start(self) -> int:
        """Where the first block begins, in bytes."""
        return 0 if self.layout.index_at_end else self.layout.index_bytes

    @property
    def dtype(self) -> str:
        """Name of the NumPy dtype of one channel."""
        return self.layout.dtype

    @property
    def num_channels(self) -> int:
        """Values per voxel."""
        return self.layout.num_channels

    @property
    def leaves_out_zeros(self) -> bool:
        """Whether blocks of zeros are not written, since a missing block means the same."""
        return self.layout.is_sharded and not self.layout.fill_value

    def pieces(self) -> Iterator[BoundingBox]:
        """Yield boxes of whole blocks."""
        return _pieces(self.layout)

    def packer(self) -> ShardPacker:
        """Return what packs one piece at a time."""
        return ShardPacker(self.layout, leaves_out_zeros=self.leaves_out_zeros)

    def put_zeros(self, output: Output, box: BoundingBox) -> NDArray[np.int64]:
        """Write the blocks of a piece of zeros; none, where a missing block means the same."""
        if self.leaves_out_zeros:
            return np.zeros(_blocks_in(box, self.layout), np.int64)
        shape = (self.num_channels, *box.size)
        sizes = []
        for data, of_blocks in self.packer().pack(np.zeros(shape, self.dtype, order="F")):
            output.write(data)
            sizes.append(of_blocks.copy())
        return np.concatenate(sizes)

    def finish(self, output: Output, sizes: NDArray[np.int64]) -> None:
        """Write the index, if it is a shard."""
        if not self.layout.is_sharded:
            output.finish()
            return
        index = np.full((len(sizes), 2), _MISSING, "<u8")
        order, is_there = _block_order(self.layout), sizes > 0
        starts = self.start + np.cumsum(sizes) - sizes
        index[order[is_there], 0] = starts[is_there]
        index[order[is_there], 1] = sizes[is_there]
        data = index.tobytes()
        data += _crc32c(data).to_bytes(4, "little")
        if self.layout.index_at_end:
            output.write(memoryview(data))
            output.finish()
        else:
            output.finish()
            output.put(data, 0)


class ShardPacker:
    """Turns boxes of voxels into the bytes of their blocks, in C order of `(x, y, z)`."""

    def __init__(self, layout: ZarrLayout, *, leaves_out_zeros: bool) -> None:
        self._layout = layout
        self._leaves_out_zeros = leaves_out_zeros
        is_zstd = layout.codec == "zstd"
        self._encoder = _Encoder(layout) if is_zstd else None
        self._bound = bound(layout.block_bytes) if is_zstd else layout.block_bytes
        self._batch = max(1, _PIECE_BYTES // self._bound)
        self._packed = np.empty(self._batch * self._bound, np.uint8)
        self._raw = np.empty(layout.block_bytes, np.uint8)

    def pack(self, voxels: Voxels) -> Iterator[tuple[memoryview, NDArray[np.int64]]]:
        """Yield the bytes of a box's blocks in batches, each with the sizes of its blocks.

        Parameters
        ----------
        voxels
            `(c, x, y, z)`: whole blocks along each axis. A block of zeros that is left out has the
            size 0.
        """
        layout = self._layout
        x, y, z = (n // b for n, b in zip(voxels.shape[1:], layout.block_size, strict=True))
        lines = voxels if codec.is_in_line(voxels) else np.asfortranarray(voxels)
        for first in range(0, x * y * z, self._batch):
            sizes = np.zeros(min(self._batch, x * y * z - first), np.int64)
            used: int = _pack(
                address_of("ZSTD_compress2") if self._encoder else 0,
                self._encoder.address if self._encoder else 0,
                (lines.ctypes.data, lines.strides[2], lines.strides[3]),
                (layout.block_size, (x, y, z), layout.voxel_bytes, self._bound),
                first,
                sizes,
                self._packed,
                self._raw,
                self._leaves_out_zeros,
            )
            if used < 0:
                raise AssertionError("zstd refused a block that fits into its buffer")
            yield memoryview(self._packed[:used].data), sizes


def _pieces(layout: ZarrLayout) -> Iterator[BoundingBox]:
    """Yield the pieces of a file in order: boxes of whole blocks that fit into memory.

    Neighbours follow each other, as in Morton order: who makes pieces from large parts of a source
    needs each part once.
    """
    blocks = list(layout.blocks_per_file)
    while math.prod(blocks) * layout.block_bytes > _PIECE_BYTES and max(blocks) > 1:
        # x last: long rows are copied at once.
        axis = max((2, 1, 0), key=lambda i: blocks[i])
        blocks[axis] = -(-blocks[axis] // 2)
    sizes = [n * b for n, b in zip(blocks, layout.block_size, strict=True)]
    counts = [-(-f // s) for f, s in zip(layout.file_size, sizes, strict=True)]
    for place in sorted(product(*map(range, counts)), key=partial(_along_halves, counts)):
        corner = [at * s for at, s in zip(place, sizes, strict=True)]
        ends = zip(corner, sizes, layout.file_size, strict=True)
        yield BoundingBox(corner, [min(s, f - at) for at, s, f in ends])


def _along_halves(counts: Sequence[int], place: tuple[int, ...]) -> int:
    """Return a number that ascends through one half of all axes before it enters the other."""
    bits = [(count - 1).bit_length() for count in counts]
    x, y, z = (at << (max(bits) - own) for at, own in zip(place, bits, strict=True))
    return codec.morton_index((x, y, z))


def _blocks_in(box: BoundingBox, layout: ZarrLayout) -> int:
    return math.prod(n // b for n, b in zip(box.size, layout.block_size, strict=True))


@lru_cache(maxsize=16)
def _block_order(layout: ZarrLayout) -> NDArray[np.int64]:
    """Return the number of each block in the order in which pieces hold them."""
    numbers = np.arange(math.prod(layout.blocks_per_file)).reshape(layout.blocks_per_file)
    of_pieces = []
    for box in _pieces(layout):
        spans = zip(box.topleft, box.bottomright, layout.block_size, strict=True)
        of_pieces.append(numbers[tuple(slice(a // b, e // b) for a, e, b in spans)].ravel())
    return np.concatenate(of_pieces)


@lru_cache(maxsize=16)
def _background(layout: ZarrLayout) -> Bytes:
    """Return a block that was never written."""
    shape = (layout.num_channels, *layout.block_size)
    block = np.full(shape, layout.fill_value, layout.dtype, order="F")
    return block.ravel(order="K").view(np.uint8)


def _crc32c(data: bytes) -> int:
    try:
        import google_crc32c
    except ImportError:
        raise extra_error("zarr", "zarr") from None
    return int(google_crc32c.value(data))


# --- zstd ---------------------------------------------------------------------------------------


class _Context:
    """A working memory of zstd, for one thread at a time."""

    def __init__(self, kind: str) -> None:
        make, free = c_function(f"ZSTD_create{kind}"), c_function(f"ZSTD_free{kind}")
        make.restype, make.argtypes = ctypes.c_void_p, []
        free.argtypes = [ctypes.c_void_p]
        self.address: int = make() or 0
        if not self.address:
            raise MemoryError("zstd has no memory for its context")
        weakref.finalize(self, free, self.address)


class _Encoder(_Context):
    """A working memory for compressing as a layout says."""

    def __init__(self, layout: ZarrLayout) -> None:
        super().__init__("CCtx")
        set_ = c_function("ZSTD_CCtx_setParameter")
        set_.restype = ctypes.c_size_t
        set_.argtypes = [ctypes.c_void_p, ctypes.c_int, ctypes.c_int]
        set_(self.address, _LEVEL_PARAMETER, layout.level)
        set_(self.address, _CHECKSUM_PARAMETER, int(layout.has_checksum))


def _decoder() -> _Context:
    """Return the working memory of this thread."""
    kept: _Context | None = getattr(_thread, "decoder", None)
    if kept is None:
        kept = _thread.decoder = _Context("DCtx")
    return kept


def bound(count: int) -> int:
    """Return the most bytes that zstd makes of so many, as `ZSTD_COMPRESSBOUND` says, and some.

    Frames of other writers may have headers and checksums that ours have not.
    """
    return count + (count >> 8) + (((128 << 10) - count) >> 11 if count < 128 << 10 else 0) + 64


# --- compiled -----------------------------------------------------------------------------------


@compiled
def _unpack(
    pread: int,
    unzstd: int,
    context: int,
    descriptor: int,
    index: Index,
    row_of: tuple[Bytes, int],
    packed: Bytes,
    region: tuple[tuple[int, int, int], ...],
    sizes: tuple[tuple[int, int, int], tuple[int, int, int], int, int],
    out: tuple[int, int, int, int],
    background: Bytes,
) -> tuple[int, int]:
    """Read the blocks of a region, row by row along x, and copy what is needed of them."""
    block, blocks, voxel_bytes, pitch = sizes
    xs = cells_of_axis(region[0], block[0])
    ys = cells_of_axis(region[1], block[1])
    zs = cells_of_axis(region[2], block[2])
    steps = region[0][1], region[1][1], region[2][1]
    row_bytes = block[0] * voxel_bytes
    row, group = row_of
    address, pitch_y, pitch_z, is_streamed = out
    for z in range(len(zs)):
        for y in range(len(ys)):
            # The first and the last row of voxels that are needed of each block, in bytes.
            head = (zs[z, 1] * block[1] + ys[y, 1]) * row_bytes
            last_z = zs[z, 1] + (zs[z, 2] - 1) * steps[2]
            last_y = ys[y, 1] + (ys[y, 2] - 1) * steps[1]
            tail = (last_z * block[1] + last_y + 1) * row_bytes
            for first in range(0, len(xs), group):
                cells = xs[first : first + group]
                for k in range(len(cells)):
                    number = (cells[k, 4] * blocks[1] + ys[y, 4]) * blocks[2] + zs[z, 4]
                    kind = _load(
                        (pread, unzstd, context, descriptor), index[number], packed,
                        (address_in(row) + k * pitch, block[2] * block[1] * row_bytes),
                        (head, tail), background,
                    )  # fmt: skip
                    if kind:
                        return kind, number
                gather_row(
                    (address + zs[z, 3] * pitch_z + ys[y, 3] * pitch_y, pitch_y, pitch_z),
                    (
                        address_in(row) + head,
                        pitch,
                        steps[1] * row_bytes,
                        steps[2] * block[1] * row_bytes,
                    ),
                    cells,
                    (ys[y, 2], zs[z, 2]),
                    (steps[0], block[0], voxel_bytes),
                    is_streamed,
                )
    if is_streamed:
        finish_streams()
    return 0, 0


@part
def _load(
    file: tuple[int, int, int, int],
    place: Any,
    packed: Bytes,
    slot: tuple[int, int],
    needed: tuple[int, int],
    background: Bytes,
) -> int:
    """Bring the needed rows of a block to an address; return 0, or what failed."""
    pread, unzstd, context, descriptor = file
    target, block_bytes = slot
    head, tail = needed
    start, count = place[0], place[1]
    if start < 0:
        copy_bytes(target + head, address_in(background) + head, tail - head)
    elif not unzstd:
        if not fill_from(pread, descriptor, target + head, start + head, tail - head):
            return _FAILED_READ
    else:
        if not fill_from(pread, descriptor, address_in(packed), start, count):
            return _FAILED_READ
        arguments = (context, target, block_bytes, address_in(packed), count)
        if call_unzstd(unzstd, arguments) != block_bytes:
            return _FAILED_DECODE
    return 0


@compiled
def _pack(
    zstd: int,
    context: int,
    voxels: tuple[int, int, int],
    sizes_of: tuple[tuple[int, int, int], tuple[int, int, int], int, int],
    first: int,
    sizes: NDArray[np.int64],
    packed: Bytes,
    raw: Bytes,
    leaves_out_zeros: bool,
) -> int:
    """Pack blocks; return the bytes used, or -1 if zstd failed."""
    block, blocks, voxel_bytes, bound = sizes_of
    address, pitch_y, pitch_z = voxels
    row_bytes = block[0] * voxel_bytes
    block_bytes = block[2] * block[1] * row_bytes
    used = 0
    for k in range(len(sizes)):
        number = first + k
        z = number % blocks[2]
        y = number // blocks[2] % blocks[1]
        x = number // blocks[2] // blocks[1]
        source = address + z * block[2] * pitch_z + y * block[1] * pitch_y + x * row_bytes
        for dz in range(block[2]):
            copy_pieces(
                address_in(raw) + dz * block[1] * row_bytes, row_bytes,
                source + dz * pitch_z, pitch_y, block[1], row_bytes,
            )  # fmt: skip
        if leaves_out_zeros and _all_zero(raw):
            sizes[k] = 0
            continue
        target = address_in(packed) + used
        size: Any = block_bytes
        if zstd:
            size = np.int64(call_zstd(zstd, (context, target, bound, address_in(raw), block_bytes)))
            # Errors are numbers just below 2**64.
            if size <= 0:
                return -1
        else:
            copy_bytes(target, address_in(raw), block_bytes)
        sizes[k] = size
        used += size
    return used


@part
def _all_zero(raw: Bytes) -> bool:
    bits = 0
    for i in range(len(raw)):
        bits |= raw[i]
    return bits == 0
