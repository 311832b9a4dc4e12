"""Where the files of a volume lie, and how they are reached: on this machine or at an address.

`LocalPlace` asks the operating system; `remote` has the other place. A format says how one of its
files is opened by the protocol `Opener`, and is not told where the file lies.
"""

from __future__ import annotations

import contextlib
import os
import posixpath
import re
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from wkdask.errors import storage_error
from wkdask.geometry import absolute
from wkdask.grids import Region
from wkdask.storage import atomic
from wkdask.storage.reader import create_head, opening, regular_bytes
from wkdask.storage.volume import Layout, Voxels, WriteOptions
from wkdask.storage.writer import FileFormat, PieceWriter, writing_as

if TYPE_CHECKING:
    from wkdask.storage.objects import Credentials

__all__ = [
    "ANY",
    "LOCAL",
    "Address",
    "CheckedFile",
    "Edit",
    "Fetch",
    "FoundFile",
    "LocalPlace",
    "Old",
    "OpenFile",
    "Opener",
    "Place",
    "Spans",
    "matching",
]

Spans = NDArray[np.int64]
"""Parts of a file, shape `(n, 2)`: where each begins, and its bytes."""
Fetch = Callable[[Spans], None]
"""Makes parts of a file ready to be read by its descriptor."""
FoundFile = tuple[tuple[int, ...], int]
"""The numbers in the path of a file, and its size in bytes."""
Edit = Callable[[bytes | None], bytes | None]
"""Makes the content of a file from what it was; None is no file, and no change."""

_MOST_BYTES = 2**26

# Changes by this process per directory, where two changes have the same modification time.
_CHANGES: Counter[str] = Counter()


class Old(NamedTuple):
    """What is known of a file that is to be replaced."""

    exists: bool
    """Whether there is one."""
    e_tag: str | None = None
    """Which one, where the place tells."""
    is_any: bool = False
    """Whether it does not matter."""


ANY = Old(exists=True, is_any=True)
"""Whatever is there is replaced."""


@dataclass(frozen=True, slots=True)
class Address(os.PathLike[str]):
    """Where something lies on another machine; paths are added to it as to a `pathlib.Path`.

    Examples
    --------
    >>> str(Address("https://host/data/tissue") / "./color/1")
    'https://host/data/tissue/color/1'
    """

    url: str
    """Without a slash at its end."""

    def __truediv__(self, path: str | os.PathLike[str]) -> Address:
        scheme, _, rest = self.url.partition("://")
        host, _, place = rest.partition("/")
        # No step up leads out of the host.
        joined = posixpath.normpath(posixpath.join("/", place, os.fspath(path)))
        return Address(f"{scheme}://{host}{joined}".rstrip("/"))

    def __fspath__(self) -> str:
        return self.url

    def __str__(self) -> str:
        return self.url

    @property
    def name(self) -> str:
        """The last part."""
        return self.url.rpartition("/")[2]

    @property
    def parent(self) -> Address:
        """What is around it."""
        return self / ".."


class OpenFile(Protocol):
    """A file that was opened and checked; positions count from its first voxel."""

    def __enter__(self) -> OpenFile: ...

    def __exit__(self, *exception: object) -> None: ...

    def read_into(self, out: Voxels, region: Region) -> None:
        """Read a region, which is not empty, into an array `(c, x, y, z)` of its shape.

        Raises
        ------
        FormatError
            If a block can't be decoded.
        """

    def decode_all(self) -> None:
        """Read every block and keep nothing."""

    def trailing_bytes(self) -> int:
        """Return how many bytes belong to nothing."""


class CheckedFile(OpenFile, Protocol):
    """A file as its format opens it, by a descriptor."""

    def spans(self, region: Region) -> Spans:
        """Return which parts of the file hold the blocks of a region."""

    @property
    def head_bytes(self) -> int:
        """Bytes of memory that what is known of the file takes, about."""

    def with_descriptor(self, descriptor: int) -> CheckedFile:
        """Return the same file, read by another descriptor."""


class Opener(Protocol):
    """How a format opens a file; a volume is one."""

    @property
    def layout(self) -> Layout:
        """How the voxels are stored."""

    @property
    def depth(self) -> int:
        """How many directories lie between a file and the directory of its volume."""

    @property
    def head(self) -> tuple[int, int]:
        """What is read first: the start, negative counted from the end, and the number of bytes."""

    def checked(self, descriptor: int, path: str, fetch: Fetch) -> CheckedFile:
        """Return a file by a descriptor that is open, after checking what is in its head.

        Parameters
        ----------
        descriptor
            The file, or one of the same size in which at least the head is there.
        path
            What errors call it.
        fetch
            Brings other parts of it.
        """


class Place(Protocol):
    """How files are reached; a small frozen value that can be sent to any worker."""

    def absolute(self, path: str) -> str:
        """Return a path that means the same in every process."""

    def read(self, path: str, most_bytes: int) -> bytes:
        """Return the bytes of a small file.

        Raises
        ------
        FileNotFoundError
            If there is none.
        FormatError
            If it is larger than such a file ever is.
        OSError
            If it can't be read.
        """

    def part(self, path: str, start: int, count: int | None) -> bytes:
        """Return bytes of a file that may be large, fewer if it ends before.

        Parameters
        ----------
        path
            The file.
        start
            Where they begin; negative, the last `count` bytes are meant.
        count
            How many; None is up to the end.

        Raises
        ------
        FileNotFoundError
            If there is no such file.
        StorageError
            If it can't be read.
        """

    def open(self, path: str, opener: Opener) -> OpenFile:
        """Open and check a file of voxels; `FileNotFoundError` only if it does not exist."""

    def size_bytes(self, path: str) -> int | None:
        """Return the size of a file; None if there is none."""

    def is_missing(self, path: str, depth: int) -> bool:
        """Return whether it is known, without opening it, that a file does not exist."""

    def files(self, directory: str, patterns: Sequence[str]) -> Iterator[FoundFile]:
        """Yield the files whose paths below a directory match, part by part.

        Raises
        ------
        FileNotFoundError
            If there is no such directory.
        """

    def version(self, directory: str) -> tuple[int, int]:
        """Return a value that differs after each noted change; see `Volume.version`."""

    def note_change(self, directory: str) -> None:
        """Make `version` differ from now on."""

    @property
    def store(self) -> str:
        """What tells paths here from the same ones elsewhere; empty if nothing has to."""

    @property
    def credentials(self) -> Credentials | None:
        """How the place is asked; None if it is this machine."""

    @property
    def can_be_written(self) -> bool:
        """Whether anything can be written here."""

    @property
    def can_patch(self) -> bool:
        """Whether parts of a file can be written in place."""

    def check_writable(self, path: str) -> None:
        """Raise `ReadOnlyError` if nothing can be written here."""

    def alone(self, path: str, *, is_part: bool) -> contextlib.AbstractContextManager[Old]:
        """Keep others from replacing a file inside the block, or find out that they did.

        Parameters
        ----------
        path
            The file.
        is_part
            Whether what is there now will be merged into what replaces it.
        """

    def writing(
        self, path: str, format_: FileFormat, options: WriteOptions, old: Old
    ) -> contextlib.AbstractContextManager[PieceWriter]:
        """Write a whole file, which takes its place when the block ends without an error.

        A file of zeros is not written, and the old one is removed, unless the options keep it.

        Raises
        ------
        OvertakenError
            If there is another file now than `old` says.
        """

    def create(self, path: str, data: bytes) -> bool:
        """Make a small file; return False if there is one, which stays."""

    def change(self, path: str, edit: Edit) -> None:
        """Replace a small file by what a function makes of it, which is None where there is none.

        Nobody else replaces it in between. What the function returns is written, unless it is None.
        """

    def remove(self, path: str) -> None:
        """Delete a file, if there is one."""


@dataclass(frozen=True, slots=True)
class LocalPlace:
    """The file systems of this machine."""

    credentials = None
    """No one is asked."""

    def __reduce__(self) -> str:
        # `LOCAL` stays the only one in other processes too, where it is told by its identity.
        return "LOCAL"

    def absolute(self, path: str) -> str:
        """Return an absolute path; see `geometry.absolute`."""
        return absolute(path)

    def read(self, path: str, most_bytes: int) -> bytes:
        """Return the bytes of a small file; see `Place.read`."""
        return atomic.read_file(path, most_bytes)

    def part(self, path: str, start: int, count: int | None) -> bytes:
        """Return bytes of a file that may be large; see `Place.part`."""
        with opening(path, 0) as descriptor:
            size_bytes = regular_bytes(descriptor, path)
            if start < 0 and count is not None:
                start = max(0, size_bytes - count)
            wanted = size_bytes - start if count is None else count
            data = atomic.read_all(descriptor, wanted, start)
        os.close(descriptor)
        return data

    def open(self, path: str, opener: Opener) -> OpenFile:
        """Open and check a file of voxels."""
        with opening(path, opener.depth) as descriptor:
            return opener.checked(descriptor, path, _is_there)

    def size_bytes(self, path: str) -> int | None:
        """Return the size of a file; None if there is none."""
        try:
            return os.stat(path).st_size
        except FileNotFoundError:
            return None
        except OSError as error:
            raise storage_error(error, path, "looking for the file") from None

    def is_missing(self, path: str, depth: int) -> bool:
        """Return whether a file does not exist; see `atomic.is_missing`."""
        return atomic.is_missing(path, depth)

    def files(self, directory: str, patterns: Sequence[str]) -> Iterator[FoundFile]:
        """Yield the files whose paths below a directory match."""
        for numbers, entry in _found(directory, patterns):
            yield numbers, _size_bytes(entry)

    def version(self, directory: str) -> tuple[int, int]:
        """Return the time of the last change, and a count for changes of the same time."""
        return os.stat(directory).st_mtime_ns, _CHANGES[directory]

    def note_change(self, directory: str) -> None:
        """Make `version` differ from now on, for other processes too where that is possible."""
        with contextlib.suppress(OSError):
            before = os.stat(directory).st_mtime_ns
            # Clocks of file systems are coarse: two changes may have the same time.
            now = max(time.time_ns(), before + 1)
            os.utime(directory, ns=(now, now))
            if os.stat(directory).st_mtime_ns > before:
                return
        _CHANGES[directory] += 1

    @property
    def store(self) -> str:
        """Nothing: paths are those of this machine."""
        return ""

    @property
    def can_be_written(self) -> bool:
        """Yes, unless the file system refuses."""
        return True

    @property
    def can_patch(self) -> bool:
        """Yes."""
        return True

    def check_writable(self, path: str) -> None:
        """Do nothing: the file system itself refuses."""

    @contextlib.contextmanager
    def alone(self, path: str, *, is_part: bool) -> Iterator[Old]:
        """Keep others from replacing a file inside the block; they wait."""
        with atomic.alone(path) as exists:
            yield Old(exists)

    def writing(
        self, path: str, format_: FileFormat, options: WriteOptions, old: Old
    ) -> contextlib.AbstractContextManager[PieceWriter]:
        """Write a whole file; see `writer.writing_as`."""
        return writing_as(format_, path, options, is_new=not old.exists)

    def create(self, path: str, data: bytes) -> bool:
        """Make a small file; return False if there is one, which stays."""
        # Looked for first, because the directory of a finished volume may be read-only.
        return not os.path.lexists(path) and create_head(path, data)

    def change(self, path: str, edit: Edit) -> None:
        """Replace a small file by what a function makes of it; others wait."""
        with atomic.os_errors(path, "writing"), atomic.alone(path) as exists:
            data = edit(atomic.read_file(path, _MOST_BYTES) if exists else None)
            if data is not None:
                with atomic.replacing(path, fsync=True) as descriptor:
                    atomic.write_all(descriptor, data, 0)

    def remove(self, path: str) -> None:
        """Delete a file, if there is one."""
        atomic.remove(path, fsync=False)


LOCAL = LocalPlace()
"""The only one."""


def _is_there(spans: Spans) -> None:
    """Do nothing, since a file of this machine is there as a whole."""


def _found(
    directory: str, patterns: Sequence[str], above: tuple[int, ...] = ()
) -> Iterator[tuple[tuple[int, ...], os.DirEntry[str]]]:
    """Yield the files below a directory, with the numbers in their paths."""
    for match, entry in matching(directory, patterns[0]):
        numbers = (*above, *map(int, match.groups()))
        if len(patterns) == 1:
            yield numbers, entry
        else:
            yield from _found(entry.path, patterns[1:], numbers)


def matching(directory: str, pattern: str) -> Iterator[tuple[re.Match[str], os.DirEntry[str]]]:
    """Yield what is in a directory of this machine under names that match."""
    try:
        with os.scandir(directory) as entries:
            for entry in entries:
                if match := re.fullmatch(pattern, entry.name, re.ASCII):
                    yield match, entry
    except FileNotFoundError:
        raise
    except OSError as error:
        raise storage_error(error, directory, "listing files") from None


def _size_bytes(entry: os.DirEntry[str]) -> int:
    try:
        return entry.stat().st_size
    except OSError:
        # Such as a link to nothing: reading it raises the proper error.
        return 0
