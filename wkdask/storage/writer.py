"""One file of voxels written whole and atomically, piece by piece; and how a `.wkw` file is.

Voxels come in boxes that fit into memory, each of whole blocks, and go to a private file that
takes its name at the end. Several threads may make and pack pieces; one writes them, in order. How
blocks are packed, and what stands around them, is the matter of a `FileFormat`.
"""

from __future__ import annotations

import contextlib
import errno
import os
from collections import deque
from collections.abc import Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextvars import copy_context
from dataclasses import dataclass
from functools import cache
from itertools import cycle
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from wkdask.errors import ArgumentError
from wkdask.geometry import BoundingBox
from wkdask.storage import codec
from wkdask.storage.atomic import commit, os_errors, private, remove, try_fallocate, write_all
from wkdask.storage.header import VolumeHeader
from wkdask.storage.memory import new_array
from wkdask.storage.volume import Produce, Voxels, WriteOptions, is_zero

__all__ = [
    "FileFormat",
    "Output",
    "Packer",
    "PieceWriter",
    "WkwFormat",
    "pieces_of",
    "writing",
    "writing_as",
]

Sizes = NDArray[np.int64]

# Whether a piece is all zeros, and the bytes of its blocks in batches, each with the blocks' sizes.
_Packed = tuple[bool, Iterable[tuple[memoryview, NDArray[np.int64]]]]

_PIECE_BYTES = 2**23
_RESERVE_BYTES, _RESERVE_FROM_BYTES = 2**23, 2**20
# Free bytes of a disk above which writers may reserve space.
_ROOMY_BYTES = 2**30
_FULL = (errno.ENOSPC, errno.EDQUOT)
# Pieces that are made or wait to be written, per thread.
_AHEAD = 2


class Packer(Protocol):
    """Turns the voxels of pieces into the bytes of their blocks."""

    def pack(self, voxels: Voxels) -> Iterator[tuple[memoryview, Sizes]]:
        """Yield the bytes of a piece's blocks in batches, each with the sizes of its blocks."""


class FileFormat(Protocol):
    """What a file looks like around the blocks, and how these are packed."""

    @property
    def start(self) -> int:
        """Where the first block begins, in bytes."""

    @property
    def dtype(self) -> str:
        """Name of the NumPy dtype of one channel."""

    @property
    def num_channels(self) -> int:
        """Values per voxel."""

    def pieces(self) -> Iterator[BoundingBox]:
        """Yield the boxes of the pieces, in order, counted from the first voxel of the file."""

    def packer(self) -> Packer:
        """Return what packs one piece at a time."""

    def put_zeros(self, output: Output, box: BoundingBox) -> Sizes:
        """Write the blocks of a piece of zeros; return their sizes in bytes."""

    def finish(self, output: Output, sizes: Sizes) -> None:
        """Write what stands before or behind the blocks, of which the sizes are given."""


class PieceWriter:
    """Takes the voxels of a file piece by piece; get one from `writing`."""

    def __init__(self, output: Output, path: str, format_: FileFormat, keep_zeros: bool) -> None:
        self._output = output
        self._path = path
        self._format = format_
        self._keep_zeros = keep_zeros
        self._packer = format_.packer()
        self._sizes: list[Sizes] = []
        self._left = format_.pieces()
        self._next = next(self._left, None)
        self._is_zero = True

    @property
    def size_bytes(self) -> int:
        """The bytes of the file so far; 0 if it holds only zeros, which need no file."""
        return self._output.end if self.is_needed else 0

    @property
    def is_needed(self) -> bool:
        """Whether a file must be written: for zeros alone it is not."""
        return self._keep_zeros or not self._is_zero

    @property
    def pieces(self) -> Iterator[BoundingBox]:
        """The boxes to append, in order, counted from the first voxel of the file."""
        return self._format.pieces()

    def append(self, voxels: Voxels | None) -> None:
        """Write the next piece, `(c, x, y, z)`; None is one of zeros, and costs next to nothing."""
        if voxels is None:
            self._append(None)
        else:
            self._check(voxels, self._following())
            self._append((is_zero(voxels), self._packer.pack(voxels)))

    def fill(self, produce: Produce, inside: BoundingBox, threads: int = 1) -> None:
        """Write all pieces.

        Parameters
        ----------
        produce
            Called with the boxes of pieces, by several threads at a time.
        inside
            Outside of this box all voxels are zero, and nothing is produced.
        threads
            How many threads may make and pack pieces; fewer where the process has fewer cores.
        """
        threads = min(threads, _cores())
        if threads > 1:
            self._fill_by(threads, produce, inside)
            return
        for box in self.pieces:
            self.append(produce(box) if _touches(box, inside) else None)

    def _fill_by(self, threads: int, produce: Produce, inside: BoundingBox) -> None:
        # Each piece has the packer of a piece that was written before, so that the bytes of a file
        # do not depend on which thread is faster.
        count = _AHEAD * threads
        packers = cycle([self._format.packer() for _ in range(count)])
        with ThreadPoolExecutor(threads, "wkdask-writer") as pool:
            calls = (
                pool.submit(copy_context().run, self._pack, next(packers), produce, box)
                if _touches(box, inside)
                else None
                for box in self.pieces
            )
            with contextlib.closing(_in_order(calls, count - 1)) as results:
                for packed in results:
                    self._append(packed)

    def _pack(self, packer: Packer, produce: Produce, box: BoundingBox) -> _Packed | None:
        """Make and pack a piece, in any thread."""
        voxels = produce(box)
        if voxels is None:
            return None
        self._check(voxels, box)
        batches = [(_copy(data), sizes.copy()) for data, sizes in packer.pack(voxels)]
        return is_zero(voxels), batches

    def _append(self, packed: _Packed | None) -> None:
        """Write the next piece, which is packed already; None is one of zeros."""
        box = self._following()
        if packed is None:
            with os_errors(self._path, "writing"):
                self._sizes.append(self._format.put_zeros(self._output, box))
        else:
            self._is_zero = self._is_zero and packed[0]
            for data, sizes in packed[1]:
                with os_errors(self._path, "writing"):
                    self._output.write(data)
                self._sizes.append(sizes.copy())
        self._next = next(self._left, None)

    def _following(self) -> BoundingBox:
        """Return the box of the next piece."""
        if self._next is None:
            raise ArgumentError(f"{self._path} has all its pieces: append each of them once.")
        return self._next

    def _check(self, voxels: Voxels, box: BoundingBox) -> None:
        """Raise unless voxels can be those of a piece, which compiled code trusts."""
        shape, dtype = (self._format.num_channels, *box.size), np.dtype(self._format.dtype)
        if (voxels.shape, voxels.dtype) != (shape, dtype):
            raise ArgumentError(
                f"the voxels have shape {voxels.shape} and dtype {voxels.dtype}, but the next "
                f"piece of {self._path} has {shape} and {dtype}. Append those of its box."
            )

    def check_complete(self) -> None:
        """Raise `ArgumentError` unless all pieces were appended."""
        if self._next is not None:
            raise ArgumentError(
                f"{self._path} lacks its voxels from {self._next.topleft} on: append all pieces, "
                "in order. The old file, if there is one, stays as it was."
            )

    def finish(self) -> None:
        """Write what stands around the blocks."""
        self._format.finish(self._output, np.concatenate(self._sizes))


def _copy(data: memoryview) -> memoryview:
    """Return a copy, in memory that is used again and again."""
    copy, _ = new_array((len(data),), np.uint8)
    copy[:] = data
    return copy.data


def _in_order(
    calls: Iterator[Future[_Packed | None] | None], ahead: int
) -> Generator[_Packed | None, None, None]:
    """Yield the results of calls in their order, while `ahead` more of them are under way."""
    flying: deque[Future[_Packed | None] | None] = deque()
    try:
        for call in calls:
            flying.append(call)
            if len(flying) > ahead:
                yield _result(flying.popleft())
        while flying:
            yield _result(flying.popleft())
    finally:
        # After an error, no further piece begins.
        for call in filter(None, flying):
            call.cancel()


def _result(call: Future[_Packed | None] | None) -> _Packed | None:
    return None if call is None else call.result()


def _touches(box: BoundingBox, inside: BoundingBox) -> bool:
    return not box.intersected_with(inside, dont_assert=True).is_empty


def _cores() -> int:
    """Return how many cores this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


class Output:
    """A private file that grows, and reserves disk space ahead."""

    def __init__(self, descriptor: int, start: int) -> None:
        self.descriptor = descriptor
        self.end = start
        """Where the next bytes go."""
        self._reserved = 0
        self._is_hole = False

    def write(self, data: memoryview) -> None:
        """Write the next bytes."""
        self._reserve(len(data))
        try:
            write_all(self.descriptor, data, self.end)
        except OSError as error:
            if error.errno not in _FULL or not self._reserved:
                raise
            # There may be room in what was reserved ahead.
            self._give_back()
            write_all(self.descriptor, data, self.end)
        self.end += len(data)
        self._is_hole = False

    def put(self, data: bytes, start: int) -> None:
        """Write bytes at another place."""
        write_all(self.descriptor, data, start)

    def skip(self, count: int) -> None:
        """Leave a hole, which reads as zeros."""
        self.end += count
        self._is_hole = True

    def finish(self) -> None:
        """Let the file end where its bytes do."""
        self._give_back()
        if self._is_hole:
            os.ftruncate(self.descriptor, self.end)

    def _reserve(self, count: int) -> None:
        """Reserve disk space for the next bytes, if they are many and the disk has plenty.

        ext4 would otherwise look for space for every page, and hold up the renaming: a large file
        takes three times as long.
        """
        if count < _RESERVE_FROM_BYTES or self.end + count <= self._reserved:
            return
        if _free_bytes(self.descriptor) <= _ROOMY_BYTES:
            return
        self._reserved = self.end + max(count, _RESERVE_BYTES)
        taken = self._reserved - self.end
        if not try_fallocate(self.descriptor, self.end, taken):
            # A part may have been reserved.
            self._give_back()

    def _give_back(self) -> None:
        """Free the space that was reserved ahead."""
        if self._reserved:
            os.ftruncate(self.descriptor, self.end)
            self._reserved = 0


@contextlib.contextmanager
def writing_as(
    format_: FileFormat, path: str, options: WriteOptions, *, is_new: bool = False
) -> Iterator[PieceWriter]:
    """Write a whole file, which takes its place when the `with` block ends without an error.

    A reader sees the old or the new file, never a mixture, also if the process is killed. A file of
    zeros is not written, and the old one is removed, unless the options keep it.

    Parameters
    ----------
    format_
        What the file looks like.
    path
        The file; its directories are made.
    options
        How careful to be.
    is_new
        Whether there must be no file yet; else `atomic.OvertakenError` is raised.
    """
    with private(path) as (descriptor, temporary):
        output = Output(descriptor, format_.start)
        writer = PieceWriter(output, path, format_, options.keep_zeros)
        yield writer
        writer.check_complete()
        with os_errors(path, "writing"):
            if not writer.is_needed:
                if not is_new:
                    remove(path, options.fsync)
                return
            writer.finish()
            commit(descriptor, temporary, path, options.fsync, is_new=is_new)


def _free_bytes(descriptor: int) -> int:
    """Return how much this process may still write to the file's disk."""
    status = os.fstatvfs(descriptor)
    return status.f_bavail * status.f_frsize


# --- WKW ----------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class WkwFormat:
    """A `.wkw` file: its header, a jump table if it is compressed, and blocks in Morton order."""

    header: VolumeHeader
    """What the file says of itself."""
    hc_level: int | None = None
    """See `WriteOptions`."""

    @property
    def start(self) -> int:
        """Where the first block begins, in bytes."""
        return self.header.data_offset_bytes

    @property
    def dtype(self) -> str:
        """Name of the NumPy dtype of one channel."""
        return self.header.dtype

    @property
    def num_channels(self) -> int:
        """Values per voxel."""
        return self.header.num_channels

    def pieces(self) -> Iterator[BoundingBox]:
        """Yield cubes in Morton order."""
        return pieces_of(self.header)

    def packer(self) -> codec.BlockPacker:
        """Return what packs one piece at a time."""
        return codec.BlockPacker(self.header, self.hc_level)

    def put_zeros(self, output: Output, box: BoundingBox) -> Sizes:
        """Write the blocks of a piece of zeros; a hole, if they are raw."""
        blocks = (box.size[0] // self.header.block_edge) ** 3
        size_bytes = self.header.block_bytes
        if self.header.is_compressed:
            block = _zero_block(self.header)
            size_bytes = len(block)
            output.write(memoryview(block * blocks))
        else:
            output.skip(blocks * size_bytes)
        return np.full(blocks, size_bytes, np.int64)

    def finish(self, output: Output, sizes: Sizes) -> None:
        """Write what stands before the blocks."""
        head = self.header.to_bytes(self.start)
        if self.header.is_compressed:
            head += (self.start + np.cumsum(sizes)).astype("<u8").tobytes()
        # First, because the head lies in a hole, for which this may be the space.
        output.finish()
        output.put(head, 0)


def pieces_of(header: VolumeHeader) -> Iterator[BoundingBox]:
    """Yield cubes of a file, each a run of its blocks, small enough to be held in memory.

    Examples
    --------
    >>> [box.size for box in pieces_of(VolumeHeader("uint32", blocks_per_file_edge=8))][:1]
    [(128, 128, 128)]
    """
    edge = _piece_edge(header)
    for index in range((header.file_edge // edge) ** 3):
        yield BoundingBox([at * edge for at in codec.block_at(index)], (edge,) * 3)


def _piece_edge(header: VolumeHeader) -> int:
    blocks = header.blocks_per_file_edge
    while blocks > 1 and blocks**3 * header.block_bytes > _PIECE_BYTES:
        blocks //= 2
    return blocks * header.block_edge


@cache
def _zero_block(header: VolumeHeader) -> bytes:
    """Return the bytes of a compressed block of zeros."""
    shape = (header.num_channels, *(header.block_edge,) * 3)
    (data, _), *_ = codec.BlockPacker(header).pack(np.zeros(shape, header.dtype, order="F"))
    return bytes(data)


def writing(
    path: str, header: VolumeHeader, options: WriteOptions | None = None, *, is_new: bool = False
) -> contextlib.AbstractContextManager[PieceWriter]:
    """Write a whole `.wkw` file, which takes its place when the `with` block ends without an error.

    See `writing_as`.

    Parameters
    ----------
    path
        The file; its directories are made.
    header
        How to store it.
    options
        How careful to be.
    is_new
        Whether there must be no file yet; else `atomic.OvertakenError` is raised.

    Examples
    --------
    >>> header = VolumeHeader("uint8", block_edge=8, blocks_per_file_edge=2, block_type="lz4")
    >>> with writing("tissue/1/z0/y0/x0.wkw", header) as file:
    ...     for box in file.pieces:
    ...         file.append(np.full((1, *box.size), 7, np.uint8))
    """
    options = options or WriteOptions()
    return writing_as(WkwFormat(header, options.hc_level), path, options, is_new=is_new)
