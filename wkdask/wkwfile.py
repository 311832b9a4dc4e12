"""One `.wkw` file: read a region of it, write it whole and atomically, patch blocks of a raw one.

It knows a path and the header that the volume demands. Everything is read from one descriptor,
after the file's own header, its size and its jump table were checked, so that a file is never read
as something that it is not. Only a file that does not exist counts as zeros.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
import uuid
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from wkdask.codec import block_at, decode_block, encode_block, morton_index
from wkdask.errors import FormatError, storage_error
from wkdask.geometry import BoundingBox
from wkdask.grid import Overlap, Region, overlaps, region_of
from wkdask.header import HEADER_BYTES, VolumeHeader

__all__ = ["TEMPORARY_SUFFIX", "patch", "read_into", "replacing", "write"]

TEMPORARY_SUFFIX = ".wkdask-tmp"
"""What the names of unfinished files end with; no reader of WKW takes them for data."""

Voxels = NDArray[np.generic]


def read_into(out: Voxels, path: str, header: VolumeHeader, region: Region) -> bool:
    """Read a region of one file into `out`.

    Parameters
    ----------
    out
        Zeros of shape `(c, x, y, z)`, the region's; any strides.
    path
        The file.
    header
        What the volume demands; the file may only differ in its block type.
    region
        Voxels counted from the first one of the file.

    Returns
    -------
    bool
        False if the file does not exist: `out` is left as it is.

    Raises
    ------
    FormatError
        If the file is not a whole WKW file of this volume.
    StorageError
        If the file system refuses for another reason than that the file does not exist.
    """
    try:
        opened = _open(path, header, os.O_RDONLY)
    except FileNotFoundError:
        return False
    with opened as file:
        for part in overlaps(region, (header.block_edge,) * 3):
            block = file.read_block(part)
            out[(slice(None), *part.target)] = block[(slice(None), *part.source_slices)]
    return True


def write(path: str, header: VolumeHeader, voxels: Voxels) -> None:
    """Write a whole file; a reader sees the old or the new one, never a mixture.

    Parameters
    ----------
    path
        The file; its directories are made.
    header
        How to store it.
    voxels
        All voxels of the file, `(c, file_edge, file_edge, file_edge)`.

    Raises
    ------
    StorageError
        If the file system refuses; the old file stays as it was.
    """
    with replacing(path) as descriptor:
        ends = [header.data_offset_bytes]
        os.lseek(descriptor, header.data_offset_bytes, os.SEEK_SET)
        for index in range(header.blocks_per_file):
            data = encode_block(_block_of(voxels, index, header.block_edge), header)
            _write_all(descriptor, data)
            ends.append(ends[-1] + len(data))
        os.lseek(descriptor, 0, os.SEEK_SET)
        _write_all(descriptor, header.to_bytes(header.data_offset_bytes))
        if header.is_compressed:
            _write_all(descriptor, np.array(ends[1:], dtype="<u8").tobytes())


def patch(path: str, header: VolumeHeader, box: BoundingBox, voxels: Voxels) -> None:
    """Write a box into a raw file in place; other blocks are not touched.

    Two tasks may patch one file at the same time if they patch different blocks.

    Parameters
    ----------
    path
        The file; if it does not exist it is made, full of zeros.
    header
        What the volume demands.
    box
        Voxels counted from the first one of the file.
    voxels
        The box's voxels, `(c, x, y, z)`.

    Raises
    ------
    FormatError
        If the file is not a whole raw WKW file of this volume.
    StorageError
        If the file system refuses.
    """
    with _open_or_create(path, header) as file:
        if file.header.is_compressed:
            raise file.error("is compressed inside a raw volume, so no part can be written alone")
        for part in overlaps(region_of(box), (header.block_edge,) * 3):
            block = file.read_block(part).copy(order="K")
            block[(slice(None), *part.source_slices)] = voxels[(slice(None), *part.target)]
            file.write_raw_block(part, encode_block(block, file.header))


@contextlib.contextmanager
def replacing(path: str) -> Iterator[int]:
    """Open a private file that takes the place of `path` when the block ends without an error."""
    temporary = _temporary_name(path)
    try:
        os.makedirs(os.path.dirname(path), exist_ok=True)
        descriptor = os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o666)
        try:
            yield descriptor
        finally:
            os.close(descriptor)
        os.replace(temporary, path)
    except OSError as error:
        raise storage_error(error, path, "writing") from error
    finally:
        with contextlib.suppress(OSError):
            os.unlink(temporary)


@dataclass(frozen=True, slots=True)
class _OpenFile:
    """A file whose header, size and jump table were checked."""

    descriptor: int
    path: str
    header: VolumeHeader
    """The file's own header, which decides how its blocks are decoded."""
    ends: NDArray[np.uint64] | None
    """Where each block ends, in bytes; None for raw files, where it follows from the header."""

    def __enter__(self) -> _OpenFile:
        return self

    def __exit__(self, *exception: object) -> None:
        os.close(self.descriptor)

    def read_block(self, part: Overlap) -> Voxels:
        """Return the voxels of a block, `(c, x, y, z)`."""
        start, stop = self._block_bytes(part)
        data = _read_at(self, start, stop - start)
        try:
            return decode_block(data, self.header)
        except FormatError as error:
            raise self.error(f"block {part.cell} {error}") from None

    def write_raw_block(self, part: Overlap, data: bytes) -> None:
        """Write the bytes of a block of a raw file."""
        start, _ = self._block_bytes(part)
        try:
            os.lseek(self.descriptor, start, os.SEEK_SET)
            _write_all(self.descriptor, data)
        except OSError as error:
            raise storage_error(error, self.path, "writing") from error

    def error(self, reason: str) -> FormatError:
        """Return the error that names this file."""
        return _format_error(self.path, reason)

    def _block_bytes(self, part: Overlap) -> tuple[int, int]:
        index = morton_index(part.cell, self.header.blocks_per_file_edge)
        if self.ends is None:
            start = self.header.data_offset_bytes + index * self.header.block_bytes
            return start, start + self.header.block_bytes
        start = int(self.ends[index - 1]) if index else self.header.data_offset_bytes
        return start, int(self.ends[index])


def _open(path: str, demanded: VolumeHeader, flags: int) -> _OpenFile:
    """Open and check a file; only `FileNotFoundError` is left as it is."""
    try:
        descriptor = os.open(path, flags | getattr(os, "O_BINARY", 0))
    except FileNotFoundError:
        if _is_dangling(path):
            # Such as a disk that is not mounted: the voxels are elsewhere, and not zero.
            raise _format_error(path, "is or lies behind a link to nothing") from None
        raise
    except OSError as error:
        raise storage_error(error, path, "opening") from error
    try:
        return _checked(descriptor, path, demanded)
    except OSError as error:
        os.close(descriptor)
        raise storage_error(error, path, "reading") from error
    except BaseException:
        os.close(descriptor)
        raise


def _checked(descriptor: int, path: str, demanded: VolumeHeader) -> _OpenFile:
    status = os.fstat(descriptor)
    if stat.S_ISDIR(status.st_mode):
        raise IsADirectoryError(errno.EISDIR, "Is a directory")
    try:
        header = VolumeHeader.from_file_bytes(os.pread(descriptor, HEADER_BYTES, 0))
    except FormatError as error:
        raise _format_error(path, str(error)) from None
    if not header.same_voxels_as(demanded):
        raise _format_error(
            path, f"does not fit into its volume: it has {header.difference_to(demanded)}"
        )
    ends = _jump_table(descriptor, path, header, status.st_size)
    return _OpenFile(descriptor, path, header, ends)


def _jump_table(
    descriptor: int, path: str, header: VolumeHeader, size_bytes: int
) -> NDArray[np.uint64] | None:
    first = header.data_offset_bytes
    needed = first if header.is_compressed else first + header.blocks_per_file * header.block_bytes
    if size_bytes < needed:
        raise _format_error(path, f"has {size_bytes} bytes, but needs at least {needed}")
    if not header.is_compressed:
        return None
    data = os.pread(descriptor, first - HEADER_BYTES, HEADER_BYTES)
    if len(data) != first - HEADER_BYTES:
        raise _format_error(path, "has a jump table that is cut short")
    ends = np.frombuffer(data, dtype="<u8")
    if int(ends[0]) < first:
        raise _format_error(path, "has a jump table that points into itself")
    if bool((ends[1:] < ends[:-1]).any()) or int(ends[-1]) > size_bytes:
        raise _format_error(
            path, f"has a jump table that runs backwards or leaves its {size_bytes} bytes"
        )
    return ends


def _open_or_create(path: str, header: VolumeHeader) -> _OpenFile:
    try:
        return _open(path, header, os.O_RDWR)
    except FileNotFoundError:
        _create_zeros(path, header)
        return _open(path, header, os.O_RDWR)


def _create_zeros(path: str, header: VolumeHeader) -> None:
    """Make a raw file of zeros, unless another task was faster; nobody sees it half made."""
    temporary = _temporary_name(path)
    size_bytes = header.data_offset_bytes + header.blocks_per_file * header.block_bytes
    try:
        os.makedirs(os.path.dirname(path), exist_ok=True)
        with open(temporary, "xb") as file:
            file.write(header.to_bytes(header.data_offset_bytes))
            file.truncate(size_bytes)
        with contextlib.suppress(FileExistsError):
            os.link(temporary, path)
    except OSError as error:
        raise storage_error(error, path, "writing") from error
    finally:
        with contextlib.suppress(OSError):
            os.unlink(temporary)


def _read_at(file: _OpenFile, start: int, count: int) -> bytes:
    try:
        data = os.pread(file.descriptor, count, start)
    except OSError as error:
        raise storage_error(error, file.path, "reading") from error
    if len(data) != count:
        raise file.error(f"ends at byte {start + len(data)}, while it is read to {start + count}")
    return data


def _write_all(descriptor: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(descriptor, view) :]


def _block_of(voxels: Voxels, index: int, edge: int) -> Voxels:
    x, y, z = (slice(at * edge, (at + 1) * edge) for at in block_at(index))
    return voxels[:, x, y, z]


def _temporary_name(path: str) -> str:
    return f"{path}.{uuid.uuid4().hex}{TEMPORARY_SUFFIX}"


def _is_dangling(path: str) -> bool:
    """Return whether a file, or one of the two directories of its volume, links to nothing."""
    y_directory = os.path.dirname(path)
    parts = (path, y_directory, os.path.dirname(y_directory))
    return any(os.path.islink(part) and not os.path.exists(part) for part in parts)


def _format_error(path: str, reason: str) -> FormatError:
    return FormatError(
        f"{path} {reason}. It is not read as zeros: restore it, or delete it to make it zeros."
    )
