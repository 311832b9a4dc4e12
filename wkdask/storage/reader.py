"""One `.wkw` file: read a region of it, patch blocks of a raw one.

It knows a path and the header that the volume demands. Everything is read from one descriptor,
after the file's own header, its size and its jump table were checked, so that a file is never read
as something that it is not. Only a file that does not exist counts as zeros. Large results take
over the memory of earlier ones.
"""

from __future__ import annotations

import contextlib
import errno
import math
import mmap
import os
import stat
import weakref
from collections import deque
from dataclasses import dataclass

import numpy as np
from numpy.typing import DTypeLike, NDArray

from wkdask.errors import ArgumentError, FormatError, storage_error
from wkdask.geometry import BoundingBox
from wkdask.grids import Overlap, Region, overlaps, region_of
from wkdask.storage import codec
from wkdask.storage.atomic import (
    claim,
    fsync_directory,
    fsync_names,
    make_durable,
    os_errors,
    private,
    read_all,
    sweep_beside,
    write_all,
)
from wkdask.storage.header import HEADER_BYTES, VolumeHeader
from wkdask.storage.volume import Voxels, WriteOptions, is_zero
from wkdask.storage.writer import pieces_of

__all__ = [
    "KEPT_BYTES",
    "SMALLEST_BYTES",
    "WkwFile",
    "create_header",
    "is_missing",
    "new_array",
    "patch",
    "read_into",
]

_NO_ENDS = np.empty(0, dtype=np.int64)
_READ_ATTEMPTS = 3
# LZ4 expands at most 255 times: a length byte stands for no more than 255 voxels' bytes.
_LZ4_MAX_RATIO = 255


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
            # Without O_NONBLOCK, opening a pipe would wait for its writer.
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
            # Raises the error of the system, unless that has passed, as signals do.
            self._read_bytes(*self._span(block))
        error = OSError(errno.EIO, f"Block {block} can be read at times only")
        raise storage_error(error, self.path, "reading")

    def decode_all(self) -> None:
        """Read every block and keep nothing."""
        for piece in pieces_of(self.header):
            shape = (self.header.num_channels, *piece.size)
            self.read_into(np.empty(shape, self.header.dtype, order="F"), region_of(piece))

    def patch_block(self, part: Overlap, voxels: Voxels) -> None:
        """Write voxels `(c, x, y, z)` into one block of a raw file."""
        start, count = self._span(part.cell)
        data = bytearray(self._read_bytes(start, count))
        block = np.frombuffer(data, self.header.dtype).reshape(_shape(self.header), order="F")
        block[(slice(None), *part.source_slices)] = voxels
        with os_errors(self.path, "writing"):
            write_all(self.descriptor, data, start)

    def reserve(self, parts: list[Overlap]) -> None:
        """Reserve disk space for blocks of a raw file, so that it can't run out halfway."""
        with os_errors(self.path, "writing"):
            for part in parts:
                _allocate(self.descriptor, *self._span(part.cell))

    def trailing_bytes(self) -> int:
        """Return how many bytes stand behind the last block, which no reader looks at."""
        header = self.header
        blocks_end = header.data_offset_bytes + header.blocks_per_file * header.block_bytes
        end = int(self.ends[-1]) if header.is_compressed else blocks_end
        with os_errors(self.path, "reading"):
            return os.fstat(self.descriptor).st_size - end

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
        with os_errors(self.path, "reading"):
            data = read_all(self.descriptor, count, start)
        if len(data) != count:
            # The file was longer when it was opened, so the error does not advise to delete it.
            raise FormatError(
                f"{self.path} was cut while it was read: it ends at byte {start + len(data)}, but "
                f"is needed to byte {start + count}. Read it again when nobody writes it."
            )
        return data


def create_header(path: str, header: VolumeHeader) -> bool:
    """Make a `header.wkw`, whole or not at all; return False if there is one, which stays.

    It is on the disk at the end, with the names of all directories that were made for it: no file
    can be read without.
    """
    with os_errors(path, "writing"):
        make_durable(os.path.dirname(path))
    sweep_beside(path)
    with private(path) as (descriptor, temporary), os_errors(path, "writing"):
        write_all(descriptor, header.to_bytes(), 0)
        os.fsync(descriptor)
        is_new = claim(temporary, path)
        fsync_directory(os.path.dirname(path))
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
    """
    options = options or WriteOptions()
    parts = list(overlaps(region_of(box), (header.block_edge,) * 3))
    try:
        opened = WkwFile.open(path, header, os.O_RDWR)
    except FileNotFoundError:
        if not options.keep_zeros and is_zero(voxels):
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
            with os_errors(path, "writing"):
                os.fsync(file.descriptor)
                fsync_names(path)


def is_missing(path: str) -> bool:
    """Return whether a file reads as zeros because it does not exist; it is not opened."""
    try:
        os.stat(path)
    except FileNotFoundError:
        return not _is_dangling(path)
    except OSError:
        # Opening the file raises the proper error.
        return False
    return False


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
    if int.from_bytes(read_all(descriptor, 8, HEADER_BYTES), "little") < first:
        raise _format_error(path, "has a jump table that points into itself")
    data = read_all(descriptor, first - HEADER_BYTES, HEADER_BYTES)
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
    """Make a raw file of zeros, whole or not at all, unless another task was faster.

    It has the space for the voxels that are to be written: a full disk leaves no file behind.
    """
    size_bytes = header.data_offset_bytes + header.blocks_per_file * header.block_bytes
    with private(path) as (descriptor, temporary), os_errors(path, "writing"):
        write_all(descriptor, header.to_bytes(header.data_offset_bytes), 0)
        os.ftruncate(descriptor, size_bytes)
        WkwFile(descriptor, path, header, _NO_ENDS).reserve(parts)
        claim(temporary, path)


def _allocate(descriptor: int, start: int, count: int) -> None:
    """Reserve disk space for bytes of a file that may be a hole, where the system can do that."""
    if not hasattr(os, "posix_fallocate"):
        return
    try:
        os.posix_fallocate(descriptor, start, count)
    except OSError as error:
        if error.errno not in (errno.EOPNOTSUPP, errno.EINVAL):
            raise


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


# --- memory -------------------------------------------------------------------------------------

# The system hands out memory page by page and zeroed, which takes a third of the time of a large
# read. A process that reads chunk after chunk pays that once: the memory of an array that is gone
# is kept for the next one. It is marked as free, so that the system takes it when it needs it.

SMALLEST_BYTES = 2**22
"""Smaller arrays are left to NumPy, whose allocator keeps them itself."""

_PAGE_BYTES = 2**21
# A buffer serves arrays that fill at least so much of it.
_LEAST_SHARE = 0.75


def _kept_bytes() -> int:
    """Return an eighth of a core's share of the memory, at most 1 GiB."""
    try:
        memory_bytes = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (ValueError, OSError):
        return 0
    return min(2**30, memory_bytes // (8 * (os.cpu_count() or 1)))


KEPT_BYTES = _kept_bytes()
"""How much is kept at most, in all threads of a process together."""

# Appending and popping need no lock, which a finalizer in any thread could not wait for.
_kept: deque[mmap.mmap] = deque()


def new_array(shape: tuple[int, ...], dtype: DTypeLike) -> tuple[Voxels, bool]:
    """Return an array in Fortran order, and whether it is known to be all zeros.

    If it is not, it holds what another array left: write every element, or fill it.

    Examples
    --------
    >>> array, is_zero = new_array((1, 256, 256, 256), "uint8")
    >>> array.shape, array.flags.f_contiguous
    ((1, 256, 256, 256), True)
    """
    size_bytes = math.prod(shape) * np.dtype(dtype).itemsize
    if not SMALLEST_BYTES <= size_bytes <= KEPT_BYTES:
        return np.zeros(shape, dtype, order="F"), True
    buffer = _taken(size_bytes)
    is_new = buffer is None
    if buffer is None:
        buffer = _mapped(-(-size_bytes // _PAGE_BYTES) * _PAGE_BYTES)
    owner = np.frombuffer(buffer, np.uint8)
    # All views of an array keep alive the one at the end of their bases, which is this one.
    weakref.finalize(owner, _keep, buffer).atexit = False
    return owner[:size_bytes].view(dtype).reshape(shape, order="F"), is_new


def _taken(size_bytes: int) -> mmap.mmap | None:
    """Return a kept buffer of about a size."""
    for _ in range(len(_kept)):
        try:
            buffer = _kept.popleft()
        except IndexError:
            return None
        if _LEAST_SHARE * len(buffer) <= size_bytes <= len(buffer):
            return buffer
        _kept.append(buffer)
    return None


def _mapped(size_bytes: int) -> mmap.mmap:
    buffer = mmap.mmap(-1, size_bytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    _advise(buffer, "MADV_HUGEPAGE")
    return buffer


def _keep(buffer: mmap.mmap) -> None:
    """Keep a buffer whose array is gone, and let the oldest go if they are too many."""
    _advise(buffer, "MADV_FREE")
    _kept.append(buffer)
    while sum(map(len, tuple(_kept))) > KEPT_BYTES:
        with contextlib.suppress(IndexError):
            _kept.popleft()


def _advise(buffer: mmap.mmap, name: str) -> None:
    """Tell the system how memory is used, where it knows the word."""
    if (advice := getattr(mmap, name, None)) is not None:
        with contextlib.suppress(OSError):
            buffer.madvise(advice)
