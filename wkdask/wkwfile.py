"""One `.wkw` file: read a region of it, write it whole and atomically, patch blocks of a raw one.

It knows a path and the header that the volume demands. Everything is read from one descriptor,
after the file's own header, its size and its jump table were checked, so that a file is never read
as something that it is not. Only a file that does not exist counts as zeros.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import stat
import time
import uuid
from collections.abc import Iterator
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wkdask import clib, codec
from wkdask.errors import ArgumentError, FormatError, WkdaskError, storage_error
from wkdask.geometry import BoundingBox, whole
from wkdask.grid import Overlap, Region, overlaps, region_of
from wkdask.header import HEADER_BYTES, VolumeHeader

__all__ = [
    "TEMPORARY_SUFFIX",
    "PieceWriter",
    "WkwFile",
    "WriteOptions",
    "create_header",
    "is_leftover",
    "is_missing",
    "patch",
    "pieces_of",
    "read_into",
    "replacing",
    "sweep_leftover",
    "tagged",
    "writing",
]

TEMPORARY_SUFFIX = ".wkdask-tmp"
"""What the names of unfinished files end with; no reader of WKW takes them for data."""

Voxels = NDArray[Any]

_tag: ContextVar[str] = ContextVar("wkdask-tag", default="")

_PIECE_BYTES = 2**25
_RESERVE_BYTES, _RESERVE_FROM_BYTES = 2**23, 2**20
# Of free space, from which on many writers may each take some ahead.
_ROOMY_BYTES = 2**30
_FULL = (errno.ENOSPC, errno.EDQUOT)
# What file systems without hard links say: FAT, and some of networks and of users.
_NO_LINKS = (errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK)
_NO_ENDS = np.empty(0, dtype=np.int64)
_READ_ATTEMPTS = 3
# LZ4 expands at most 255 times: a length byte stands for no more than 255 voxels' bytes.
_LZ4_MAX_RATIO = 255
_TRIES = 3


@dataclass(frozen=True, slots=True)
class WriteOptions:
    """How files are written; the defaults are right for nearly everybody."""

    fsync: bool = False
    """Whether each file and its name are on the disk, and not only in the system's memory, when it
    counts as written. Without it a power cut, but no killed process, can lose what was written
    last."""
    keep_zeros: bool = False
    """Whether files of nothing but zeros are written. A missing file means the same."""
    hc_level: int | None = None
    """How hard LZ4HC tries, from 3 to 12: smaller files against time. By default 10 for blocks
    that shrink to less than a sixteenth, where it pays, and 5 for others."""

    def __post_init__(self) -> None:
        for name in ("fsync", "keep_zeros"):
            value = getattr(self, name)
            if not isinstance(value, bool):
                raise ArgumentError(f"{name} is {value!r}, but must be True or False.")
        if self.hc_level is None:
            return
        object.__setattr__(self, "hc_level", whole(self.hc_level, "hc_level"))
        if not 3 <= self.hc_level <= 12:
            raise ArgumentError(f"hc_level is {self.hc_level}, but LZ4HC has levels 3 to 12.")


@dataclass(frozen=True, slots=True)
class WkwFile:
    """A file whose header, size and jump table were checked; use it in a `with` statement."""

    descriptor: int
    path: str
    header: VolumeHeader
    """The file's own header, which decides how its blocks are decoded."""
    ends: NDArray[np.int64]
    """Where each block ends, in bytes; empty for raw files, where it follows from the header."""

    @classmethod
    def open(cls, path: str, demanded: VolumeHeader, flags: int = os.O_RDONLY) -> WkwFile:
        """Open and check a file.

        Parameters
        ----------
        path
            The file.
        demanded
            The header of the volume; the file may only differ in its block type.
        flags
            `os.O_RDONLY` or `os.O_RDWR`.

        Raises
        ------
        FileNotFoundError
            If the file does not exist; the only error of the system that is left as it is.
        FormatError
            If it is not a whole WKW file of this volume.
        StorageError
            If the file system refuses.
        """
        try:
            # Not to wait for a writer, should it be a pipe.
            descriptor = os.open(path, flags | os.O_NONBLOCK | os.O_CLOEXEC)
        except FileNotFoundError:
            if _is_dangling(path):
                # Such as a disk that is not mounted: the voxels are elsewhere, and not zero.
                raise _format_error(path, "is or lies behind a link to nothing") from None
            raise
        except OSError as error:
            raise storage_error(error, path, "opening") from None
        try:
            header, size_bytes = _checked_header(descriptor, path, demanded)
            return cls(
                descriptor, path, header, _checked_ends(descriptor, path, header, size_bytes)
            )
        except OSError as error:
            os.close(descriptor)
            raise storage_error(error, path, "reading") from None
        except BaseException:
            os.close(descriptor)
            raise

    def __enter__(self) -> WkwFile:
        return self

    def __exit__(self, *exception: object) -> None:
        os.close(self.descriptor)

    def read_into(self, out: Voxels, region: Region) -> None:
        """Read a region, counted from the first voxel of the file.

        Parameters
        ----------
        out
            Shape `(c, x, y, z)` of the region; channels and x follow each other in memory.
        region
            Which voxels; not empty.

        Raises
        ------
        ArgumentError
            If the region leaves the file, or `out` can't take it; nothing is read.
        FormatError
            If a block does not decode, or the file was cut short meanwhile.
        StorageError
            If the file system refuses.
        """
        self._check_target(out, region)
        for _ in range(_READ_ATTEMPTS):
            failure = codec.unpack(self.descriptor, self.header, self.ends, region, out)
            if failure is None:
                return
            kind, block = failure
            if kind == "decode":
                raise self.error(
                    f"block {block} is no LZ4 block of {self.header.block_bytes} bytes"
                )
            # Tells what is wrong, unless it has passed, as a signal or a network's hiccup does.
            self._read_bytes(*self._span(block))
        error = OSError(errno.EIO, f"Block {block} can be read at times only")
        raise storage_error(error, self.path, "reading")

    def decode_all(self) -> None:
        """Read every block and keep nothing.

        Raises
        ------
        FormatError, StorageError
            As `read_into`.
        """
        for piece in pieces_of(self.header):
            shape = (self.header.num_channels, *piece.size)
            self.read_into(np.empty(shape, self.header.dtype, order="F"), region_of(piece))

    def patch_block(self, part: Overlap, voxels: Voxels) -> None:
        """Write voxels `(c, x, y, z)` into one block of a raw file."""
        start, count = self._span(part.cell)
        data = bytearray(self._read_bytes(start, count))
        block = np.frombuffer(data, self.header.dtype).reshape(_shape(self.header), order="F")
        block[(slice(None), *part.source_slices)] = voxels
        with _naming(self.path, "writing"):
            _write_all(self.descriptor, data, start)

    def reserve(self, parts: list[Overlap]) -> None:
        """Take the space on the disk for blocks of a raw file, so that it can't run out halfway."""
        with _naming(self.path, "writing"):
            for part in parts:
                _allocate(self.descriptor, *self._span(part.cell))

    def error(self, reason: str) -> FormatError:
        """Return the error that names this file."""
        return _format_error(self.path, reason)

    def _check_target(self, out: Voxels, region: Region) -> None:
        """Raise unless voxels of a region can be written to `out`, which compiled code trusts."""
        edge, shape = self.header.file_edge, (self.header.num_channels, *map(len, region))
        if not all(axis and axis[0] >= 0 and axis[-1] < edge and axis.step > 0 for axis in region):
            raise ArgumentError(f"the region {region} is empty or leaves a file of edge {edge}.")
        if (out.shape, out.dtype) != (shape, np.dtype(self.header.dtype)):
            raise ArgumentError(
                f"the voxels have shape {shape} and dtype {self.header.dtype}, but are read into "
                f"an array of shape {out.shape} and dtype {out.dtype}."
            )
        if not out.flags.writeable or not codec.is_in_line(out):
            raise ArgumentError(
                "the voxels are read into an array that is read-only or in which channels and x "
                'do not follow each other. Make it by np.empty(shape, dtype, order="F").'
            )

    def _span(self, block: tuple[int, int, int]) -> tuple[int, int]:
        """Return where the bytes of a block begin, and how many there are."""
        index = codec.morton_index(block)
        first, size = self.header.data_offset_bytes, self.header.block_bytes
        if not self.header.is_compressed:
            return first + index * size, size
        start = int(self.ends[index - 1]) if index else first
        return start, int(self.ends[index]) - start

    def _read_bytes(self, start: int, count: int) -> bytes:
        with _naming(self.path, "reading"):
            data = _read_all(self.descriptor, count, start)
        if len(data) != count:
            # It was longer when it was opened, so that nothing of it shall be deleted.
            raise FormatError(
                f"{self.path} was cut while it was read: it ends at byte {start + len(data)}, but "
                f"is needed to byte {start + count}. Read it again when nobody writes it."
            )
        return data


def pieces_of(header: VolumeHeader) -> Iterator[BoundingBox]:
    """Yield cubes of a file, each a run of its blocks, small enough to be held in memory.

    Examples
    --------
    >>> [box.size for box in pieces_of(VolumeHeader("uint32", blocks_per_file_edge=8))][:1]
    [(128, 128, 128)]
    """
    per_edge = blocks = header.blocks_per_file_edge
    while blocks > 1 and blocks**3 * header.block_bytes > _PIECE_BYTES:
        blocks //= 2
    edge = blocks * header.block_edge
    for index in range((per_edge // blocks) ** 3):
        yield BoundingBox([at * edge for at in codec.block_at(index)], (edge,) * 3)


class PieceWriter:
    """Takes the voxels of a whole file piece by piece; get one from `writing`."""

    def __init__(
        self, descriptor: int, path: str, header: VolumeHeader, options: WriteOptions
    ) -> None:
        self._descriptor = descriptor
        self._path = path
        self._header = header
        self._options = options
        self._packer = codec.BlockPacker(header, options.hc_level)
        self._sizes: list[NDArray[np.int64]] = []
        self._end = header.data_offset_bytes
        self._reserved = 0
        self._left = pieces_of(header)
        self._next = next(self._left, None)
        self.is_zero = True
        """Whether no voxel so far was anything but zero."""

    @property
    def size_bytes(self) -> int:
        """The bytes of the file so far; none if there is nothing to keep of it."""
        return 0 if self.is_zero and not self._options.keep_zeros else self._end

    @property
    def pieces(self) -> Iterator[BoundingBox]:
        """The boxes to append, in order, counted from the first voxel of the file."""
        return pieces_of(self._header)

    def append(self, voxels: Voxels) -> None:
        """Write the next piece, `(c, x, y, z)`.

        Raises
        ------
        ArgumentError
            If the voxels are not of the piece's shape and the file's dtype, or it is one too many.
        StorageError
            If the file system refuses.
        """
        self._check(voxels)
        self.is_zero = self.is_zero and _is_zero(voxels)
        for data, sizes in self._packer.pack(voxels):
            with _naming(self._path, "writing"):
                self._write(data)
            self._sizes.append(sizes.copy())
            self._end += len(data)
        self._next = next(self._left, None)

    def _check(self, voxels: Voxels) -> None:
        """Raise unless voxels can be those of the next piece, which compiled code trusts."""
        if self._next is None:
            raise ArgumentError(f"{self._path} has all its pieces: append each of them once.")
        shape, dtype = (self._header.num_channels, *self._next.size), np.dtype(self._header.dtype)
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

    def _write(self, data: memoryview) -> None:
        self._reserve(len(data))
        try:
            _write_all(self._descriptor, data, self._end)
        except OSError as error:
            if error.errno not in _FULL or not self._reserved:
                raise
            # Without what was taken ahead there may be room.
            self._give_back()
            _write_all(self._descriptor, data, self._end)

    def _reserve(self, count: int) -> None:
        """Take space on the disk for the next bytes, if they are many and it has plenty.

        ext4 would otherwise look for space for every page, and hold up the renaming: a large file
        takes three times as long.
        """
        if count < _RESERVE_FROM_BYTES or self._end + count <= self._reserved:
            return
        if _free_bytes(self._descriptor) <= _ROOMY_BYTES:
            return
        self._reserved = self._end + max(count, _RESERVE_BYTES)
        taken = self._reserved - self._end
        if not clib.try_fallocate(self._descriptor, self._end, taken):
            # It may have taken a part.
            self._give_back()

    def _give_back(self) -> None:
        """Let others have the space that was taken ahead."""
        if self._reserved:
            os.ftruncate(self._descriptor, self._end)
            self._reserved = 0

    def finish(self) -> None:
        """Write what stands before the blocks."""
        first = self._header.data_offset_bytes
        head = self._header.to_bytes(first)
        if self._header.is_compressed:
            ends = first + np.cumsum(np.concatenate(self._sizes))
            head += ends.astype("<u8").tobytes()
        # First, because the head lies in a hole, for which this may be the space.
        self._give_back()
        _write_all(self._descriptor, head, 0)


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
    with _private(path) as (descriptor, temporary):
        writer = PieceWriter(descriptor, path, header, options)
        yield writer
        writer.check_complete()
        with _naming(path, "writing"):
            if not writer.size_bytes:
                _remove(path, options.fsync)
                return
            writer.finish()
            _commit(descriptor, temporary, path, options.fsync)


@contextlib.contextmanager
def replacing(path: str, *, fsync: bool = False) -> Iterator[int]:
    """Open a private file that takes the place of `path` when the block ends without an error."""
    with _private(path) as (descriptor, temporary):
        yield descriptor
        with _naming(path, "writing"):
            _commit(descriptor, temporary, path, fsync)


def create_header(path: str, header: VolumeHeader) -> bool:
    """Make a `header.wkw`, whole or not at all; return False if there is one, which stays.

    It is on the disk at the end, with the names of all directories that were made for it: no file
    can be read without.

    Raises
    ------
    StorageError
        If the file system refuses.
    """
    with _naming(path, "writing"):
        _make_durable(os.path.dirname(path))
    with _private(path) as (descriptor, temporary), _naming(path, "writing"):
        _write_all(descriptor, header.to_bytes(), 0)
        os.fsync(descriptor)
        is_new = _claim(descriptor, temporary, path)
        _fsync_directory(os.path.dirname(path))
        return is_new


def read_into(out: Voxels, path: str, header: VolumeHeader, region: Region) -> bool:
    """Read a region of a file that may not exist.

    Parameters
    ----------
    out
        Shape `(c, x, y, z)`, the region's; channels and x follow each other in memory.
    path
        The file.
    header
        What the volume demands; the file may only differ in its block type.
    region
        Voxels counted from the first one of the file; not empty.

    Returns
    -------
    bool
        False if the file does not exist: `out` is left as it is.

    Raises
    ------
    FormatError, StorageError
        As `WkwFile.open` and `WkwFile.read_into`.
    """
    try:
        file = WkwFile.open(path, header)
    except FileNotFoundError:
        return False
    with file:
        file.read_into(out, region)
    return True


def patch(
    path: str,
    header: VolumeHeader,
    box: BoundingBox,
    voxels: Voxels,
    options: WriteOptions | None = None,
) -> None:
    """Write a box into a raw file in place; other blocks are not touched.

    Two tasks may patch one file at the same time if they patch different blocks.

    Parameters
    ----------
    path
        The file; if it does not exist it is made, full of zeros, unless there is nothing to write
        but zeros, which a missing file means already.
    header
        What the volume demands.
    box
        Voxels counted from the first one of the file.
    voxels
        The box's voxels, `(c, x, y, z)`.
    options
        How careful to be.

    Raises
    ------
    FormatError
        If the file is not a whole raw WKW file of this volume.
    StorageError
        If the file system refuses.
    """
    options = options or WriteOptions()
    parts = list(overlaps(region_of(box), (header.block_edge,) * 3))
    try:
        opened = WkwFile.open(path, header, os.O_RDWR)
    except FileNotFoundError:
        if not options.keep_zeros and _is_zero(voxels):
            return
        _create_zeros(path, header, parts)
        opened = WkwFile.open(path, header, os.O_RDWR)
    with opened as file:
        if file.header.is_compressed:
            raise file.error("is compressed inside a raw volume, so no part can be written alone")
        file.reserve(parts)
        for part in parts:
            file.patch_block(part, voxels[(slice(None), *part.target)])
        if options.fsync:
            with _naming(path, "writing"):
                os.fsync(file.descriptor)
                _fsync_names(path)


@contextlib.contextmanager
def tagged(tag: str) -> Iterator[None]:
    """Let unfinished files of this thread carry a tag in their names, by which they are swept."""
    token = _tag.set(tag)
    try:
        yield
    finally:
        _tag.reset(token)


def is_missing(path: str) -> bool:
    """Return whether a file reads as zeros because it does not exist; it is not opened."""
    try:
        os.stat(path)
    except FileNotFoundError:
        return not _is_dangling(path)
    except OSError:
        # Whoever reads it is told.
        return False
    return False


def is_leftover(path: str) -> bool:
    """Return whether an unfinished file belongs to a writer that is dead.

    A living writer holds a lock on its file, which the system takes away when it dies. Where the
    file system knows no locks, every writer counts as living; where it keeps them on one machine,
    writers on other machines count as dead.
    """
    # Shared, so that two who ask at the same time do not take each other for the writer.
    with _taken_over(path, os.O_RDONLY, fcntl.LOCK_SH) as status:
        return status is not None


def sweep_leftover(path: str, *, older_than_seconds: float = 0.0) -> bool:
    """Remove an unfinished file of a writer that is dead, as far as `is_leftover` can tell.

    Parameters
    ----------
    path
        The file.
    older_than_seconds
        How long ago it must have been modified, for file systems that keep locks on one machine.

    Returns
    -------
    bool
        Whether it was such a file and was removed.
    """
    # Network file systems lock a file for one alone only if it is open for writing.
    with _taken_over(path, os.O_RDWR, fcntl.LOCK_EX) as status, contextlib.suppress(OSError):
        # The clock of a file server may be ahead.
        if status and max(time.time() - status.st_mtime, 0) >= older_than_seconds:
            # A writer that was about to lock it sees that its file has no name, and makes another.
            os.unlink(path)
            return True
    return False


@contextlib.contextmanager
def _taken_over(path: str, flags: int, lock: int) -> Iterator[os.stat_result | None]:
    """Hold the lock of a dead writer, and yield the status of its file; None if there is none."""
    status = None
    with contextlib.ExitStack() as stack:
        with contextlib.suppress(OSError):
            descriptor = os.open(path, flags | os.O_NONBLOCK | os.O_NOFOLLOW)
            stack.callback(os.close, descriptor)
            fcntl.flock(descriptor, lock | fcntl.LOCK_NB)
            # Asked by name: a writer that finished meanwhile has given its file another one.
            status = os.lstat(path)
        yield status if status and stat.S_ISREG(status.st_mode) else None


# --- checks -------------------------------------------------------------------------------------


def _checked_header(descriptor: int, path: str, demanded: VolumeHeader) -> tuple[VolumeHeader, int]:
    """Return the header of a file and its size in bytes."""
    status = os.fstat(descriptor)
    if stat.S_ISDIR(status.st_mode):
        raise IsADirectoryError(errno.EISDIR, "Is a directory")
    if not stat.S_ISREG(status.st_mode):
        raise _format_error(path, "is no regular file")
    try:
        header = VolumeHeader.from_file_bytes(os.pread(descriptor, HEADER_BYTES, 0))
    except FormatError as error:
        raise _format_error(path, str(error)) from None
    if not header.same_voxels_as(demanded):
        raise _format_error(path, f"does not fit: it has {header.difference_to(demanded)}")
    needed = header.data_offset_bytes
    if not header.is_compressed:
        needed += header.blocks_per_file * header.block_bytes
    if status.st_size < needed:
        raise _format_error(path, f"has {status.st_size} bytes, but needs at least {needed}")
    return header, status.st_size


def _checked_ends(
    descriptor: int, path: str, header: VolumeHeader, size_bytes: int
) -> NDArray[np.int64]:
    """Return the jump table of a file after checking that every block can be what it must."""
    if not header.is_compressed:
        return _NO_ENDS
    first = header.data_offset_bytes
    # Alone at first, so that a hole in place of a large table costs nothing.
    if int.from_bytes(_read_all(descriptor, 8, HEADER_BYTES), "little") < first:
        raise _format_error(path, "has a jump table that points into itself")
    data = _read_all(descriptor, first - HEADER_BYTES, HEADER_BYTES)
    if len(data) != first - HEADER_BYTES:
        raise _format_error(path, "has a jump table that is cut short")
    ends = np.frombuffer(data, dtype="<i8")
    last, least, most = codec.ends_summary(ends, first)
    # What ascends from the data on is no negative number either, such as one above 2**63.
    if least < 0 or last > size_bytes:
        raise _format_error(
            path, f"has a jump table that runs backwards or leaves its {size_bytes} bytes"
        )
    shortest, longest = header.block_bytes // _LZ4_MAX_RATIO, codec.block_bound(header)
    if least < shortest or most > longest:
        raise _format_error(
            path,
            f"has blocks of {least} to {most} bytes, but LZ4 makes {shortest} to "
            f"{longest} of {header.block_bytes}",
        )
    return ends


# --- files --------------------------------------------------------------------------------------


def _create_zeros(path: str, header: VolumeHeader, parts: list[Overlap]) -> None:
    """Make a raw file of zeros, unless another task was faster; nobody sees it half made.

    It has the space for the voxels that are to be written: a full disk leaves no file behind.
    """
    size_bytes = header.data_offset_bytes + header.blocks_per_file * header.block_bytes
    with _private(path) as (descriptor, temporary), _naming(path, "writing"):
        _write_all(descriptor, header.to_bytes(header.data_offset_bytes), 0)
        os.ftruncate(descriptor, size_bytes)
        WkwFile(descriptor, path, header, _NO_ENDS).reserve(parts)
        _claim(descriptor, temporary, path)


@contextlib.contextmanager
def _private(path: str) -> Iterator[tuple[int, str]]:
    """Open a file that no one else knows, beside `path`; it is gone at the end, unless renamed."""
    with _naming(path, "writing"):
        os.makedirs(os.path.dirname(path), exist_ok=True)
        descriptor, temporary = _locked_file(path)
    try:
        yield descriptor, temporary
    finally:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        with contextlib.suppress(OSError):
            os.close(descriptor)


def _locked_file(path: str) -> tuple[int, str]:
    """Make a file beside `path` and lock it, for as long as its descriptor is open."""
    descriptor, temporary = _new_locked_file(path)
    for _ in range(_TRIES):
        # Somebody who sweeps leftovers may have taken it in the instant before it was locked. Some
        # file systems count no links of any file, so the name is looked for as well.
        if os.fstat(descriptor).st_nlink or os.path.lexists(temporary):
            break
        os.close(descriptor)
        descriptor, temporary = _new_locked_file(path)
    return descriptor, temporary


def _new_locked_file(path: str) -> tuple[int, str]:
    tag = _tag.get()
    mark = f".{tag}" if tag else ""
    temporary = f"{path}.{uuid.uuid4().hex}{mark}{TEMPORARY_SUFFIX}"
    descriptor = os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o666)
    with contextlib.suppress(OSError):
        fcntl.flock(descriptor, fcntl.LOCK_EX)
    return descriptor, temporary


def _commit(descriptor: int, temporary: str, path: str, fsync: bool) -> None:
    if fsync:
        os.fsync(descriptor)
    # Network file systems tell of a full disk when a file is closed; the lock stays with the other.
    os.close(os.dup(descriptor))
    os.replace(temporary, path)
    if fsync:
        _fsync_names(path)


def _claim(descriptor: int, temporary: str, path: str) -> bool:
    """Give a private file of a header and zeros its name; False if another file has it.

    Renaming would take the name from another task, which may have written voxels to its file.
    """
    try:
        try:
            os.link(temporary, path)
        except OSError as error:
            if error.errno not in _NO_LINKS:
                raise
            if not clib.try_rename_new(temporary, path):
                _copy_new(descriptor, path)
    except FileExistsError:
        return False
    return True


def _copy_new(descriptor: int, path: str) -> None:
    """Copy a file of a header and zeros to a name that nobody has.

    Others may see it for an instant without its header, which is an error and never zeros.
    """
    copy = os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR | os.O_CLOEXEC, 0o666)
    try:
        os.ftruncate(copy, os.fstat(descriptor).st_size)
        _write_all(copy, _read_all(descriptor, HEADER_BYTES, 0), 0)
        os.fsync(copy)
    except BaseException:
        os.unlink(path)
        raise
    finally:
        os.close(copy)


def _remove(path: str, fsync: bool) -> None:
    try:
        os.unlink(path)
    except FileNotFoundError:
        return
    if fsync:
        _fsync_names(path)


def _make_durable(directory: str) -> None:
    """Make a directory and those above it that are missing; their names are on the disk then."""
    if os.path.isdir(directory):
        return
    parent = os.path.dirname(directory)
    _make_durable(parent)
    os.makedirs(directory, exist_ok=True)
    _fsync_directory(parent)


def _fsync_names(path: str) -> None:
    """Let the names of a file and of its two directories, or that it has gone, be on the disk.

    All of them, because another task may have made a directory and not be so far yet.
    """
    for _ in range(3):
        path = os.path.dirname(path)
        _fsync_directory(path)


def _fsync_directory(path: str) -> None:
    """Let the names in a directory be on the disk, where the file system can do that."""
    directory = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(directory)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.EOPNOTSUPP):
            raise
    finally:
        os.close(directory)


@contextlib.contextmanager
def _naming(path: str, doing: str) -> Iterator[None]:
    """Let errors of the file system name the file."""
    try:
        yield
    except WkdaskError:
        raise
    except OSError as error:
        raise storage_error(error, path, doing) from None


def _allocate(descriptor: int, start: int, count: int) -> None:
    """Take the space for bytes of a file that may be a hole, where the system can do that."""
    if not hasattr(os, "posix_fallocate"):
        return
    try:
        os.posix_fallocate(descriptor, start, count)
    except OSError as error:
        if error.errno not in (errno.EOPNOTSUPP, errno.EINVAL):
            raise


def _free_bytes(descriptor: int) -> int:
    """Return how much this process may still write to the file's disk."""
    status = os.fstatvfs(descriptor)
    return status.f_bavail * status.f_frsize


def _read_all(descriptor: int, count: int, start: int) -> bytes:
    """Return bytes of a file, fewer only at its end; the system may give fewer at a time."""
    data = os.pread(descriptor, count, start)
    while len(data) < count and (
        more := os.pread(descriptor, count - len(data), start + len(data))
    ):
        data += more
    return data


def _write_all(descriptor: int, data: Any, start: int) -> None:
    view = memoryview(data)
    while view:
        count = os.pwrite(descriptor, view, start)
        view, start = view[count:], start + count


def _is_zero(voxels: Voxels) -> bool:
    # By bits: -0.0 is no zero, and NaN no reason for a warning.
    return not voxels.view(f"u{voxels.itemsize}").any()


def _shape(header: VolumeHeader) -> tuple[int, int, int, int]:
    edge = header.block_edge
    return header.num_channels, edge, edge, edge


def _is_dangling(path: str) -> bool:
    """Return whether a file, or one of the two directories of its volume, links to nothing."""
    y_directory = os.path.dirname(path)
    parts = (path, y_directory, os.path.dirname(y_directory))
    return any(os.path.islink(part) and not os.path.exists(part) for part in parts)


def _format_error(path: str, reason: str) -> FormatError:
    return FormatError(
        f"{path} {reason}. It is not read as zeros: restore it, or delete it to make it zeros."
    )
