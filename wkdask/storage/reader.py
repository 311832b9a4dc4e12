"""One `.wkw` file: read a region of it, patch blocks of a raw one.

It knows a path and the header that the volume demands. Everything is read from one descriptor,
after the file's own header, its size and its jump table were checked, so that a file is never read
as something that it is not. Only a file that does not exist counts as zeros.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from wkdask.errors import ArgumentError, FormatError, storage_error
from wkdask.geometry import BoundingBox, Vec3
from wkdask.grids import Overlap, Region, overlaps, region_of
from wkdask.storage import codec
from wkdask.storage.atomic import (
    claim,
    fsync_directory,
    fsync_names,
    is_dangling,
    make_durable,
    os_errors,
    private,
    read_all,
    sweep_beside,
    write_all,
)
from wkdask.storage.header import HEADER_BYTES, VolumeHeader
from wkdask.storage.volume import Layout, Voxels, WriteOptions, is_zero
from wkdask.storage.writer import pieces_of

__all__ = [
    "READ_ATTEMPTS",
    "WkwFile",
    "check_target",
    "create_head",
    "create_header",
    "opening",
    "patch",
    "read_at_times",
    "read_span",
    "regular_bytes",
    "unreadable",
]

_NO_ENDS = np.empty(0, dtype=np.int64)
READ_ATTEMPTS = 3
"""How often a block is read that the system refuses, such as because of a signal."""
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
        with opening(path, 2, flags) as descriptor:
            return cls.checked(descriptor, path, demanded)

    @classmethod
    def checked(
        cls,
        descriptor: int,
        path: str,
        demanded: VolumeHeader,
        fetch: Callable[[NDArray[np.int64]], None] | None = None,
    ) -> WkwFile:
        """Return an open file after checking it; see `place.Opener` for `fetch`."""
        header, size_bytes = _checked_header(descriptor, path, demanded)
        if fetch and header.is_compressed:
            fetch(np.array([[HEADER_BYTES, header.data_offset_bytes - HEADER_BYTES]]))
        ends = _checked_ends(descriptor, path, header, size_bytes)
        return cls(descriptor, path, header, ends)

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
        check_target(out, region, self.header)
        for _ in range(READ_ATTEMPTS):
            failure = codec.unpack(self.descriptor, self.header, self.ends, region, out)
            if failure is None:
                return
            kind, block = failure
            if kind == "decode":
                raise self.error(
                    f"block {block} is no LZ4 block of {self.header.block_bytes} bytes"
                )
            # Raises the error of the system, unless that has passed, as signals do.
            read_span(self.descriptor, self.path, *self._span(block))
        raise read_at_times(self.path, block)

    def decode_all(self) -> None:
        """Read every block and keep nothing."""
        for piece in pieces_of(self.header):
            shape = (self.header.num_channels, *piece.size)
            self.read_into(np.empty(shape, self.header.dtype, order="F"), region_of(piece))

    @property
    def head_bytes(self) -> int:
        """Bytes of memory that what is known of the file takes, about."""
        return self.ends.nbytes + 1024

    def with_descriptor(self, descriptor: int) -> WkwFile:
        """Return the same file, read by another descriptor."""
        return replace(self, descriptor=descriptor)

    def spans(self, region: Region) -> NDArray[np.int64]:
        """Return which parts of the file hold the blocks of a region; see `place.OpenFile`."""
        header = self.header
        x, y, z = (
            np.array(
                [codec.morton_index((int(n), 0, 0)) for n in np.unique(np.asarray(axis) // edge)]
            )
            for axis, edge in zip(region, header.block_size, strict=True)
        )
        codes = (x[:, None, None] | y[:, None] << 1 | z << 2).ravel()
        first = header.data_offset_bytes
        if not header.is_compressed:
            size = np.full(len(codes), header.block_bytes)
            return np.stack([first + codes * header.block_bytes, size], axis=1)
        starts = np.where(codes, self.ends[codes - 1], first)
        return np.stack([starts, self.ends[codes] - starts], axis=1)

    def patch_block(self, part: Overlap, voxels: Voxels) -> None:
        """Write voxels `(c, x, y, z)` into one block of a raw file."""
        start, count = self._span(part.cell)
        data = bytearray(read_span(self.descriptor, self.path, start, count))
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
        return unreadable(self.path, reason)

    def _span(self, block: tuple[int, int, int]) -> tuple[int, int]:
        """Return where the bytes of a block begin, and how many there are."""
        index = codec.morton_index(block)
        first, size = self.header.data_offset_bytes, self.header.block_bytes
        if not self.header.is_compressed:
            return first + index * size, size
        start = int(self.ends[index - 1]) if index else first
        return start, int(self.ends[index]) - start


@contextlib.contextmanager
def opening(path: str, depth: int, flags: int = os.O_RDONLY) -> Iterator[int]:
    """Open a file of voxels, which may be missing; it stays open unless the block raises.

    Parameters
    ----------
    path
        The file.
    depth
        How many directories lie between the file and the directory of its volume.
    flags
        `os.O_RDONLY` or `os.O_RDWR`.

    Raises
    ------
    FileNotFoundError
        If the file does not exist; the only error of the system that is left as it is.
    FormatError
        If it lies behind a link to nothing.
    StorageError
        If the file system refuses, also inside the block.
    """
    try:
        # Without O_NONBLOCK, opening a pipe would wait for its writer.
        descriptor = os.open(path, flags | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError:
        if is_dangling(path, depth):
            # Such as a disk that is not mounted: the voxels are elsewhere, and not zero.
            raise unreadable(path, "is or lies behind a link to nothing") from None
        raise
    except OSError as error:
        raise storage_error(error, path, "opening") from None
    try:
        yield descriptor
    except OSError as error:
        os.close(descriptor)
        raise storage_error(error, path, "reading") from None
    except BaseException:
        os.close(descriptor)
        raise


def read_span(descriptor: int, path: str, start: int, count: int) -> bytes:
    """Return bytes of a file that was long enough when it was opened."""
    with os_errors(path, "reading"):
        data = read_all(descriptor, count, start)
    if len(data) != count:
        # The file was longer when it was opened, so the error does not advise to delete it.
        raise FormatError(
            f"{path} was cut while it was read: it ends at byte {start + len(data)}, but "
            f"is needed to byte {start + count}. Read it again when nobody writes it."
        )
    return data


def read_at_times(path: str, block: Vec3) -> Exception:
    """Return the error of a block that compiled loops could not read, but Python could."""
    error = OSError(errno.EIO, f"Block {block} can be read at times only")
    return storage_error(error, path, "reading")


def check_target(out: Voxels, region: Region, layout: Layout) -> None:
    """Raise unless voxels of a region of a file fit into `out`, which compiled code trusts."""
    size, shape = layout.file_size, (layout.num_channels, *map(len, region))
    if not all(
        axis and axis[0] >= 0 and axis[-1] < edge and axis.step > 0
        for axis, edge in zip(region, size, strict=True)
    ):
        raise ArgumentError(f"the region {region} is empty or leaves a file of size {size}.")
    if (out.shape, out.dtype) != (shape, np.dtype(layout.dtype)):
        raise ArgumentError(
            f"the voxels have shape {shape} and dtype {layout.dtype}, but are read into "
            f"an array of shape {out.shape} and dtype {out.dtype}."
        )
    if not out.flags.writeable or not codec.is_in_line(out):
        raise ArgumentError(
            "the voxels are read into an array that is read-only or in which channels and x "
            'do not follow each other. Make it by np.empty(shape, dtype, order="F").'
        )


def create_header(path: str, header: VolumeHeader) -> bool:
    """Make a `header.wkw`; see `create_head`."""
    return create_head(path, header.to_bytes())


def create_head(path: str, data: bytes) -> bool:
    """Make the file that says how a volume is stored, whole or not at all.

    Return False if there is one, which stays. It is on the disk at the end, with the names of all
    directories that were made for it: no file can be read without.
    """
    with os_errors(path, "writing"):
        make_durable(os.path.dirname(path))
    sweep_beside(path)
    with private(path) as (descriptor, temporary), os_errors(path, "writing"):
        write_all(descriptor, data, 0)
        os.fsync(descriptor)
        is_new = claim(temporary, path)
        fsync_directory(os.path.dirname(path))
        return is_new


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


# --- checks -------------------------------------------------------------------------------------


def regular_bytes(descriptor: int, path: str) -> int:
    """Return the size of an open file, or raise if it is none that can hold voxels."""
    status = os.fstat(descriptor)
    if stat.S_ISDIR(status.st_mode):
        raise IsADirectoryError(errno.EISDIR, "Is a directory")
    if not stat.S_ISREG(status.st_mode):
        raise unreadable(path, "is no regular file")
    return status.st_size


def _checked_header(descriptor: int, path: str, demanded: VolumeHeader) -> tuple[VolumeHeader, int]:
    """Return the header of a file and its size in bytes."""
    size_bytes = regular_bytes(descriptor, path)
    try:
        header = VolumeHeader.from_file_bytes(os.pread(descriptor, HEADER_BYTES, 0))
    except FormatError as error:
        raise unreadable(path, str(error)) from None
    if not header.same_voxels_as(demanded):
        raise unreadable(path, f"does not fit: it has {header.difference_to(demanded)}")
    needed = header.data_offset_bytes
    if not header.is_compressed:
        needed += header.blocks_per_file * header.block_bytes
    if size_bytes < needed:
        raise unreadable(path, f"has {size_bytes} bytes, but needs at least {needed}")
    return header, size_bytes


def _checked_ends(
    descriptor: int, path: str, header: VolumeHeader, size_bytes: int
) -> NDArray[np.int64]:
    """Return the jump table of a file after checking that every block can be what it must."""
    if not header.is_compressed:
        return _NO_ENDS
    first = header.data_offset_bytes
    # Alone at first, so that a hole in place of a large table costs nothing.
    if int.from_bytes(read_all(descriptor, 8, HEADER_BYTES), "little") < first:
        raise unreadable(path, "has a jump table that points into itself")
    data = read_all(descriptor, first - HEADER_BYTES, HEADER_BYTES)
    if len(data) != first - HEADER_BYTES:
        raise unreadable(path, "has a jump table that is cut short")
    ends = np.frombuffer(data, dtype="<i8")
    last, least, most = codec.ends_summary(ends, first)
    # What ascends from the data on is no negative number either, such as one above 2**63.
    if least < 0 or last > size_bytes:
        raise unreadable(
            path, f"has a jump table that runs backwards or leaves its {size_bytes} bytes"
        )
    shortest, longest = header.block_bytes // _LZ4_MAX_RATIO, codec.block_bound(header)
    if least < shortest or most > longest:
        raise unreadable(
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


def unreadable(path: str, reason: str) -> FormatError:
    """Return the error of a file that can't be read, which says what to do."""
    return FormatError(
        f"{path} {reason}. It is not read as zeros: restore it, or delete it to make it zeros."
    )
