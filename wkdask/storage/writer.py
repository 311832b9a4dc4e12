"""One `.wkw` file written whole and atomically, piece by piece.

It knows the header of the file and the order of its blocks. Voxels come in cubes that fit into
memory, each a run of blocks in Morton order, and go to a private file that takes its name at the
end. Several tasks can share the work: each packs a part, and one joins them.
"""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import NDArray

from wkdask.errors import ArgumentError
from wkdask.geometry import BoundingBox
from wkdask.storage import codec
from wkdask.storage.atomic import commit, naming, private, remove, try_fallocate, write_all
from wkdask.storage.header import VolumeHeader
from wkdask.storage.volume import Voxels, WriteOptions, is_zero

__all__ = [
    "Part",
    "PieceWriter",
    "piece_count",
    "pieces_of",
    "write_part",
    "writing",
]

_PIECE_BYTES = 2**23
_RESERVE_BYTES, _RESERVE_FROM_BYTES = 2**23, 2**20
# Of free space, from which on many writers may each take some ahead.
_ROOMY_BYTES = 2**30
_FULL = (errno.ENOSPC, errno.EDQUOT)
# Why `copy_file_range` may refuse what reading and writing can do.
_CANT_COPY = (errno.EXDEV, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL, errno.EPERM)


def pieces_of(header: VolumeHeader, pieces: range | None = None) -> Iterator[BoundingBox]:
    """Yield cubes of a file, each a run of its blocks, small enough to be held in memory.

    Parameters
    ----------
    header
        Of the file.
    pieces
        Which of them, by their numbers in the file; None is all.

    Examples
    --------
    >>> [box.size for box in pieces_of(VolumeHeader("uint32", blocks_per_file_edge=8))][:1]
    [(128, 128, 128)]
    """
    edge = _piece_edge(header)
    for index in range(piece_count(header)) if pieces is None else pieces:
        yield BoundingBox([at * edge for at in codec.block_at(index)], (edge,) * 3)


def piece_count(header: VolumeHeader) -> int:
    """Return how many pieces a file has."""
    return (header.file_edge // _piece_edge(header)) ** 3


def _piece_edge(header: VolumeHeader) -> int:
    blocks = header.blocks_per_file_edge
    while blocks > 1 and blocks**3 * header.block_bytes > _PIECE_BYTES:
        blocks //= 2
    return blocks * header.block_edge


@dataclass(frozen=True, slots=True)
class Part:
    """Some consecutive pieces of a file, packed in a private file until all are joined."""

    path: str
    """Where they are; empty if they are all zeros, and nowhere."""
    pieces: int
    """How many."""
    sizes: bytes = b""
    """The bytes of each block, as numbers of 64 bits."""

    def discard(self) -> None:
        """Delete the private file."""
        if self.path:
            with contextlib.suppress(OSError):
                os.unlink(self.path)


class PieceWriter:
    """Takes the voxels of a file piece by piece; get one from `writing`."""

    def __init__(
        self,
        output: _Output,
        path: str,
        header: VolumeHeader,
        options: WriteOptions,
        pieces: range | None = None,
    ) -> None:
        self._output = output
        self._path = path
        self._header = header
        self._options = options
        self._packer = codec.BlockPacker(header, options.hc_level)
        self._sizes: list[NDArray[np.int64]] = []
        self._left = pieces_of(header, pieces)
        self._next = next(self._left, None)
        self.is_zero = True
        """Whether no voxel so far was anything but zero."""

    @property
    def size_bytes(self) -> int:
        """The bytes of the file so far; none if there is nothing to keep of it."""
        return 0 if self.is_zero and not self._options.keep_zeros else self._output.end

    @property
    def pieces(self) -> Iterator[BoundingBox]:
        """The boxes to append, in order, counted from the first voxel of the file."""
        return pieces_of(self._header)

    @property
    def sizes(self) -> NDArray[np.int64]:
        """The bytes of each block so far, in order."""
        return np.concatenate(self._sizes) if self._sizes else np.empty(0, np.int64)

    def append(self, voxels: Voxels | None) -> None:
        """Write the next piece, `(c, x, y, z)`; None is one of zeros, and costs next to nothing.

        Raises
        ------
        ArgumentError
            If the voxels are not of the piece's shape and the file's dtype, or it is one too many.
        StorageError
            If the file system refuses.
        """
        box = self._following()
        if voxels is None:
            self._append_zeros(box)
        else:
            self._check(voxels, box)
            self.is_zero = self.is_zero and is_zero(voxels)
            for data, sizes in self._packer.pack(voxels):
                with naming(self._path, "writing"):
                    self._output.write(data)
                self._sizes.append(sizes.copy())
        self._next = next(self._left, None)

    def append_part(self, part: Part) -> None:
        """Write the next pieces, which `write_part` has packed.

        Raises
        ------
        StorageError
            If the file system refuses, or the part has gone.
        """
        if not part.path:
            for _ in range(part.pieces):
                self.append(None)
            return
        sizes = np.frombuffer(part.sizes, np.int64)
        with naming(self._path, "writing"), open(part.path, "rb", buffering=0) as source:
            self._output.copy(source.fileno(), int(sizes.sum()))
        self._sizes.append(sizes)
        self.is_zero = False
        for _ in range(part.pieces):
            self._following()
            self._next = next(self._left, None)

    def _append_zeros(self, box: BoundingBox) -> None:
        blocks = (box.size[0] // self._header.block_edge) ** 3
        size_bytes = self._header.block_bytes
        with naming(self._path, "writing"):
            if self._header.is_compressed:
                block = _zero_block(self._header)
                size_bytes = len(block)
                self._output.write(memoryview(block * blocks))
            else:
                self._output.skip(blocks * size_bytes)
        self._sizes.append(np.full(blocks, size_bytes, np.int64))

    def _following(self) -> BoundingBox:
        """Return the box of the next piece."""
        if self._next is None:
            raise ArgumentError(f"{self._path} has all its pieces: append each of them once.")
        return self._next

    def _check(self, voxels: Voxels, box: BoundingBox) -> None:
        """Raise unless voxels can be those of the next piece, which compiled code trusts."""
        shape, dtype = (self._header.num_channels, *box.size), np.dtype(self._header.dtype)
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
        """Write what stands before the blocks."""
        first = self._header.data_offset_bytes
        head = self._header.to_bytes(first)
        if self._header.is_compressed:
            head += (first + np.cumsum(self.sizes)).astype("<u8").tobytes()
        # First, because the head lies in a hole, for which this may be the space.
        self._output.finish()
        write_all(self._output.descriptor, head, 0)


class _Output:
    """A private file that grows, and takes space on the disk ahead."""

    def __init__(self, descriptor: int, start: int) -> None:
        self.descriptor = descriptor
        self.end = start
        """Where the next bytes go."""
        self._reserved = 0
        self._is_hole = False

    def write(self, data: memoryview) -> None:
        self._reserve(len(data))
        try:
            write_all(self.descriptor, data, self.end)
        except OSError as error:
            if error.errno not in _FULL or not self._reserved:
                raise
            # Without what was taken ahead there may be room.
            self._give_back()
            write_all(self.descriptor, data, self.end)
        self.end += len(data)
        self._is_hole = False

    def skip(self, count: int) -> None:
        """Leave a hole, which reads as zeros."""
        self.end += count
        self._is_hole = True

    def copy(self, source: int, count: int) -> None:
        """Write the first bytes of another file."""
        self._reserve(count)
        done = 0
        while done < count and (got := self._copy_some(source, done, count - done)):
            done += got
        if done < count:
            raise OSError(errno.EIO, "A part of the file was cut short")
        self.end += count
        self._is_hole = False

    def _copy_some(self, source: int, start: int, count: int) -> int:
        """Copy bytes within the system, where it can do that."""
        at = self.end + start
        if hasattr(os, "copy_file_range"):
            try:
                return os.copy_file_range(source, self.descriptor, count, start, at)
            except OSError as error:
                if error.errno not in _CANT_COPY:
                    raise
        data = os.pread(source, min(count, _RESERVE_BYTES), start)
        write_all(self.descriptor, data, at)
        return len(data)

    def finish(self) -> None:
        """Let the file end where its bytes do."""
        self._give_back()
        if self._is_hole:
            os.ftruncate(self.descriptor, self.end)

    def _reserve(self, count: int) -> None:
        """Take space on the disk for the next bytes, if they are many and it has plenty.

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
            # It may have taken a part.
            self._give_back()

    def _give_back(self) -> None:
        """Let others have the space that was taken ahead."""
        if self._reserved:
            os.ftruncate(self.descriptor, self.end)
            self._reserved = 0


@cache
def _zero_block(header: VolumeHeader) -> bytes:
    """Return the bytes of a compressed block of zeros."""
    shape = (header.num_channels, *(header.block_edge,) * 3)
    (data, _), *_ = codec.BlockPacker(header).pack(np.zeros(shape, header.dtype, order="F"))
    return bytes(data)


@contextlib.contextmanager
def writing(
    path: str, header: VolumeHeader, options: WriteOptions | None = None
) -> Iterator[PieceWriter]:
    """Write a whole file, which takes its place when the `with` block ends without an error.

    A reader sees the old or the new file, never a mixture, also if the process is killed. A file of
    zeros is not written, and the old one is removed, unless the options keep it.

    Parameters
    ----------
    path
        The file; its directories are made.
    header
        How to store it.
    options
        How careful to be.

    Raises
    ------
    ArgumentError
        If a piece is missing; the old file stays as it was.
    StorageError
        If the file system refuses; likewise.

    Examples
    --------
    >>> header = VolumeHeader("uint8", block_edge=8, blocks_per_file_edge=2, block_type="lz4")
    >>> with writing("tissue/1/z0/y0/x0.wkw", header) as file:
    ...     for box in file.pieces:
    ...         file.append(np.full((1, *box.size), 7, np.uint8))
    """
    options = options or WriteOptions()
    with private(path) as (descriptor, temporary):
        writer = PieceWriter(_Output(descriptor, header.data_offset_bytes), path, header, options)
        yield writer
        writer.check_complete()
        with naming(path, "writing"):
            if not writer.size_bytes:
                remove(path, options.fsync)
                return
            writer.finish()
            commit(descriptor, temporary, path, options.fsync)


def write_part(
    path: str,
    header: VolumeHeader,
    pieces: range,
    produce: Callable[[BoundingBox], Voxels | None],
    options: WriteOptions | None = None,
) -> Part:
    """Pack some consecutive pieces of a file, so that several tasks can share the work of one file.

    Parameters
    ----------
    path
        The file that they shall be part of; they stay beside it until `Part.discard`.
    header
        How to store it.
    pieces
        Their numbers in the file.
    produce
        Called with the box of each piece, counted from the first voxel of the file; returns its
        voxels `(c, x, y, z)`, or None for zeros.

    Raises
    ------
    ArgumentError
        If the voxels do not fit.
    StorageError
        If the file system refuses.
    """
    options = options or WriteOptions()
    with private(path, is_kept=True) as (descriptor, temporary):
        output = _Output(descriptor, 0)
        writer = PieceWriter(output, path, header, options, pieces)
        for box in pieces_of(header, pieces):
            writer.append(produce(box))
        with naming(path, "writing"):
            output.finish()
    part = Part(temporary, len(pieces), writer.sizes.tobytes())
    if writer.is_zero:
        part.discard()
        return Part("", len(pieces))
    return part


def _free_bytes(descriptor: int) -> int:
    """Return how much this process may still write to the file's disk."""
    status = os.fstatvfs(descriptor)
    return status.f_bavail * status.f_frsize
