"""Volumes at an address: read like those of this machine, and in stores written file by file.

A format reads a file by a descriptor. Of a file at an address it gets a mirror, a file in memory
that is as long and holds what was fetched; so the checks and the compiled loops are the same. Head
and index of a file are kept by the process, and used while the file stays what it was.

An object is replaced whole, so that it needs neither locks nor renaming. What is merged with older
voxels is written on condition that these are still there.
"""

from __future__ import annotations

import base64
import contextlib
import errno
import os
import posixpath
import re
import tempfile
import threading
from collections import Counter, OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, cast
from urllib.parse import unquote, urlsplit, urlunsplit

import numpy as np

from wkdask.errors import ArgumentError, ReadOnlyError, RemoteError
from wkdask.geometry import is_remote
from wkdask.grids import Region
from wkdask.storage.atomic import OvertakenError, os_errors
from wkdask.storage.objects import (
    Credentials,
    Object,
    Part,
    Version,
    list_objects,
)
from wkdask.storage.place import (
    ANY,
    LOCAL,
    CheckedFile,
    Edit,
    FoundFile,
    Old,
    Opener,
    OpenFile,
    Place,
    Spans,
)
from wkdask.storage.volume import Voxels, WriteOptions
from wkdask.storage.writer import FileFormat, Output, PieceWriter

__all__ = ["RemotePlace", "joined", "place_of"]

_MOST_BYTES = 2**26
"""Of a file, that are in memory at a time."""
_REQUEST_BYTES = 2**23
"""The most that one request asks for."""
_WASTE = 10
"""At most one byte in so many is fetched only because it lies between two that are needed."""
_KEPT_BYTES = 2**26
"""Of heads of files, that a process keeps."""
_CHANGES: Counter[str] = Counter()

_ATTEMPTS = 3
"""How often a file is begun that is replaced while it is read."""


@dataclass(frozen=True, slots=True)
class RemotePlace:
    """Web servers and object stores."""

    credentials: Credentials = field(default_factory=Credentials)
    """How stores are asked."""
    can_be_written: bool = True
    """Whether it is a store, and no web server."""
    store: str = ""
    """Which one, where the address does not tell, such as by an endpoint."""

    def absolute(self, path: str) -> str:
        """Return the address without a slash at its end."""
        return path.rstrip("/")

    def read(self, path: str, most_bytes: int) -> bytes:
        """Return the bytes of a small object; see `Place.read`."""
        return self._object(path).read(most_bytes)

    def part(self, path: str, start: int, count: int | None) -> bytes:
        """Return bytes of an object that may be large; see `Place.part`."""
        return bytes(self._object(path).part(start, count).data)

    def open(self, path: str, opener: Opener) -> OpenFile:
        """Open and check a file of voxels."""
        return _RemoteFile(self._object(path), opener)

    def size_bytes(self, path: str) -> int | None:
        """Return the size of an object; None if there is none."""
        version = self._object(path).version()
        return None if version is None else version.size_bytes

    def is_missing(self, path: str, depth: int) -> bool:
        """Return False: that is found out when the object is read, by the same request."""
        return False

    def files(self, directory: str, patterns: Sequence[str]) -> Iterator[FoundFile]:
        """Yield the objects whose paths below an address match."""
        if not self.can_be_written:
            raise RemoteError(
                errno.ENOTSUP,
                "web servers can't list files. Give the box, bounding_box=, or open the dataset "
                "around it",
                directory,
            )
        pattern = re.compile("/".join(patterns), re.ASCII)
        for path, size_bytes in list_objects(directory, self.credentials):
            if match := pattern.fullmatch(path):
                yield tuple(map(int, match.groups())), size_bytes

    def version(self, directory: str) -> tuple[int, int]:
        """Return how often this process has changed something; others don't say so."""
        return 0, _CHANGES[directory]

    def note_change(self, directory: str) -> None:
        """Make `version` differ from now on, for this process."""
        _CHANGES[directory] += 1

    @property
    def can_patch(self) -> bool:
        """No: objects are written whole."""
        return False

    def check_writable(self, path: str) -> None:
        """Raise `ReadOnlyError` if the address is that of a web server."""
        if not self.can_be_written:
            raise ReadOnlyError(
                f"{path} lies on a web server, where wkdask only reads. Copy it first, "
                "wkdask.copy(dataset, path), and write to the copy."
            )

    @contextlib.contextmanager
    def alone(self, path: str, *, is_part: bool) -> Iterator[Old]:
        """Yield which object is there; that another has replaced it is found when it is written."""
        if not is_part:
            yield ANY
            return
        source = self._object(path)
        source.check_preconditions()
        version = source.version()
        yield Old(version is not None, None if version is None else _tag(version, path))

    @contextlib.contextmanager
    def writing(
        self, path: str, format_: FileFormat, options: WriteOptions, old: Old
    ) -> Iterator[PieceWriter]:
        """Write a file of this machine, and put it in place of the object at the end."""
        source = self._object(path)
        # An object can't be deleted on condition that it is still the same.
        keeps = options.keep_zeros or (old.exists and not old.is_any)
        with tempfile.TemporaryFile() as file:
            writer = PieceWriter(Output(file.fileno(), format_.start), path, format_, keeps)
            yield writer
            writer.check_complete()
            if writer.is_needed:
                with os_errors(path, "writing a temporary file"):
                    writer.finish()
                file.seek(0)
                if not source.put(file, None if old.is_any else old.e_tag or False):
                    raise OvertakenError(path)
            elif old.is_any:
                source.delete()

    def create(self, path: str, data: bytes) -> bool:
        """Make a small object; return False if there is one, which stays."""
        self.check_writable(path)
        source = self._object(path)
        # Looked for first, because some stores overwrite what they are told to create.
        return source.version() is None and source.put(data, False)

    def change(self, path: str, edit: Edit) -> None:
        """Replace a small object by what a function makes of it, again if others were faster."""
        self.check_writable(path)
        source = self._object(path)
        source.check_preconditions()
        while True:
            part: Part | None = None
            with contextlib.suppress(FileNotFoundError):
                part = source.part(0, None)
            data = edit(None if part is None else bytes(part.data))
            if data is None or source.put(data, part is not None and _tag(part.version, path)):
                return

    def remove(self, path: str) -> None:
        """Delete an object, if there is one."""
        self._object(path).delete()

    def _object(self, url: str) -> Object:
        return Object(url, self.credentials)


def place_of(
    path: str | os.PathLike[str], storage_options: Mapping[str, Any] | None = None
) -> tuple[str, Place]:
    """Return where a path leads, as `(path, place)`: to this machine, or to an address.

    A name and a password in an address become a header, so that they stand in no text.

    Raises
    ------
    ArgumentError
        If the address is of no kind that wkdask knows, or options are given for a local path.
    """
    text = os.fspath(path)
    if storage_options is not None and not isinstance(storage_options, Mapping):
        raise ArgumentError(f"storage_options are {storage_options!r}, but must be a dictionary.")
    if not is_remote(text):
        if storage_options:
            raise ArgumentError(
                f"storage_options are for addresses, but {text} is a path of this machine."
            )
        return LOCAL.absolute(text), LOCAL
    try:
        parts = urlsplit(text)
    except ValueError as error:
        raise ArgumentError(f"the address can't be understood: {error}.") from None
    if parts.scheme not in _SCHEMES:
        raise ArgumentError(
            f"{parts.scheme}:// is not known; addresses begin with one of "
            f"{', '.join(f'{scheme}://' for scheme in _SCHEMES)}."
        )
    if parts.query or parts.fragment:
        raise ArgumentError(
            "the address has a part behind ? or #, which can't be kept when paths are added. Give "
            'tokens as headers: storage_options={"headers": {"Authorization": ...}}.'
        )
    options, host = dict(storage_options or {}), parts.netloc
    is_web = parts.scheme in ("http", "https")
    if "@" in host:
        if not is_web:
            raise ArgumentError(
                f"a {parts.scheme}:// address has no name and password. Give credentials by "
                "storage_options=, or as the store's own programs find them."
            )
        user, _, host = host.rpartition("@")
        code = base64.b64encode(unquote(user).encode()).decode()
        headers = options.get("headers") or {}
        if isinstance(headers, Mapping):
            options["headers"] = {"Authorization": f"Basic {code}", **headers}
    where = posixpath.normpath(f"/{parts.path}").rstrip("/")
    url = urlunsplit((parts.scheme, host, where.replace("//", "/"), "", ""))
    credentials = Credentials(options)
    return url, RemotePlace(credentials, not is_web, "" if is_web else credentials.store())


_SCHEMES = ("http", "https", "s3", "gs", "az")


def _tag(version: Version, url: str) -> str:
    if version.e_tag is None:
        raise RemoteError(errno.ENOTSUP, "the store gives the object no ETag", url)
    return version.e_tag


# --- files --------------------------------------------------------------------------------------


class _RemoteFile:
    """A file at an address, whose blocks are fetched before they are read."""

    def __init__(self, source: Object, opener: Opener) -> None:
        self._source = source
        self._opener = opener
        self._file, self._mirror = self._opened()

    def __enter__(self) -> _RemoteFile:
        return self

    def __exit__(self, *exception: object) -> None:
        self._mirror.close()

    def read_into(self, out: Voxels, region: Region) -> None:
        """Read a region; see `place.OpenFile`. If the file is replaced, it is read anew."""
        for _ in range(_ATTEMPTS):
            try:
                self._read(out, region)
                # Blocks that the head calls missing are not asked for, and may be there by now.
                self._mirror.verify()
            except _ReplacedError:
                self._mirror.close()
                self._file, self._mirror = self._opened(is_new=True)
            except FileNotFoundError:
                _HEADS.drop(self._source)
                raise
            else:
                return
        raise self._restless()

    def decode_all(self) -> None:
        """Read every block and keep nothing."""
        try:
            self._mirror.fetch(np.array([[0, self._mirror.version.size_bytes]]))
            self._file.decode_all()
        except _ReplacedError:
            raise self._restless() from None

    def trailing_bytes(self) -> int:
        """Return how many bytes belong to nothing."""
        return self._file.trailing_bytes()

    def _read(self, out: Voxels, region: Region) -> None:
        spans = self._file.spans(region)
        halves = _halved(region, self._opener.layout.block_size)
        if int(spans[:, 1].sum()) > _MOST_BYTES and halves:
            axis, first, second = halves
            count = len(first[axis])
            before = (slice(None),) * (axis + 1)
            self._read(out[(*before, slice(None, count))], first)
            self._read(out[(*before, slice(count, None))], second)
            return
        self._mirror.hold(spans)
        self._file.read_into(out, region)

    def _opened(self, *, is_new: bool = False) -> tuple[CheckedFile, _Mirror]:
        """Return the file and its mirror; what is known of it counts unless it is a new one."""
        kept = None if is_new else _HEADS.get(self._source)
        if kept is not None:
            mirror = _Mirror(self._source, kept.version)
            return kept.file.with_descriptor(mirror.descriptor), mirror
        for _ in range(_ATTEMPTS):
            head = self._source.part(*self._opener.head)
            mirror = _Mirror(self._source, head.version)
            try:
                mirror.put(head)
                file = self._opener.checked(mirror.descriptor, self._source.url, mirror.fetch)
            except _ReplacedError:
                mirror.close()
                continue
            except BaseException:
                mirror.close()
                raise
            _HEADS.put(self._source, _Head(head.version, file))
            return file, mirror
        raise self._restless()

    def _restless(self) -> RemoteError:
        text = "the file was replaced again and again while it was read"
        return RemoteError(errno.EREMOTEIO, text, self._source.url)


class _ReplacedError(Exception):
    """An object is not what it was when it was looked at before."""


class _Mirror:
    """A file in memory, as long as an object, that holds the parts of it that were fetched."""

    def __init__(self, source: Object, version: Version) -> None:
        self.version = version
        self._source = source
        self._is_current = False
        self._held: list[tuple[int, int]] = []
        self.descriptor = _memory_file()
        os.ftruncate(self.descriptor, version.size_bytes)

    def close(self) -> None:
        """Give the memory back."""
        if self.descriptor >= 0:
            os.close(self.descriptor)
        self.descriptor = -1

    def put(self, part: Part) -> None:
        """Keep a part of the object."""
        if part.version != self.version:
            raise _ReplacedError
        self._is_current = True
        view, at = memoryview(part.data), part.start
        self._held.append((at, at + len(view)))
        while view:
            count = os.pwrite(self.descriptor, view, at)
            view, at = view[count:], at + count

    def verify(self) -> None:
        """Raise unless the object was seen to be the same since the mirror was made."""
        if not self._is_current:
            version = self._source.version()
            if version is None:
                raise FileNotFoundError(errno.ENOENT, "no such object", self._source.url)
            if version != self.version:
                raise _ReplacedError
            self._is_current = True

    def fetch(self, spans: Spans) -> None:
        """Bring parts that are not there yet."""
        missing = joined(self._without_held(spans))
        if len(missing):
            wanted = [(int(a), int(n)) for a, n in _cut(missing)]
            for (start, count), part in zip(wanted, self._parts(wanted), strict=True):
                self.put(part)
                if (part.start, len(part.data)) != (start, count):
                    text = f"{len(part.data)} of {count} bytes from {start} on came, while reading"
                    raise RemoteError(errno.EREMOTEIO, text, self._source.url)

    def _parts(self, wanted: Sequence[tuple[int, int]]) -> list[Part]:
        try:
            return self._source.parts(wanted)
        except RemoteError:
            # Of a shorter object there may be no such part.
            if self._source.version() != self.version:
                raise _ReplacedError from None
            raise

    def hold(self, spans: Spans) -> None:
        """Bring parts; if there are many already, those are given up."""
        if sum(stop - start for start, stop in self._held) + int(spans[:, 1].sum()) > _MOST_BYTES:
            os.ftruncate(self.descriptor, 0)
            os.ftruncate(self.descriptor, self.version.size_bytes)
            self._held = []
        self.fetch(spans)

    def _without_held(self, spans: Spans) -> Spans:
        for start, stop in self._held:
            is_held = (spans[:, 0] >= start) & (spans.sum(axis=1) <= stop)
            spans = spans[~is_held]
        return spans


def joined(spans: Spans) -> Spans:
    """Join parts of a file that are neighbours, or between which few bytes lie.

    The smallest gaps are closed first, while at most a tenth more is read.

    Examples
    --------
    >>> joined(np.array([[0, 1000], [5000, 1000], [1000, 500], [1600, 900]])).tolist()
    [[0, 2500], [5000, 1000]]
    """
    if not len(spans):
        return spans
    spans = spans[np.argsort(spans[:, 0], kind="stable")]
    starts, stops = spans[:, 0], np.maximum.accumulate(spans.sum(axis=1))
    gaps = np.maximum(starts[1:] - stops[:-1], 0)
    order = np.argsort(gaps, kind="stable")
    is_joined = np.zeros(len(gaps), bool)
    is_joined[order] = np.cumsum(gaps[order]) <= int(spans[:, 1].sum()) // _WASTE
    firsts = np.flatnonzero(np.concatenate([[True], ~is_joined]))
    lasts = np.concatenate([firsts[1:] - 1, [len(spans) - 1]])
    return np.stack([starts[firsts], stops[lasts] - starts[firsts]], axis=1)


def _cut(spans: Spans) -> Iterator[tuple[int, int]]:
    """Yield parts of a size for which one request is good."""
    for start, count in spans:
        for at in range(0, count, _REQUEST_BYTES):
            yield start + at, min(_REQUEST_BYTES, count - at)


def _halved(region: Region, block: Sequence[int]) -> tuple[int, Region, Region] | None:
    """Return an axis, and the two halves of a region along it; None if it lies in one block."""
    for axis in (2, 1, 0):
        wanted = region[axis]
        first, last = wanted[0] // block[axis], wanted[-1] // block[axis]
        if first < last:
            middle = (first + last + 1) // 2 * block[axis]
            count = len(range(wanted.start, middle, wanted.step))
            halves = [list(region), list(region)]
            halves[0][axis], halves[1][axis] = wanted[:count], wanted[count:]
            one, other = (cast(Region, tuple(half)) for half in halves)
            return axis, one, other
    return None


def _memory_file() -> int:
    """Return the descriptor of a new file that takes no space on a disk, where that is possible."""
    if hasattr(os, "memfd_create"):
        return os.memfd_create("wkdask")
    with tempfile.TemporaryFile() as file:
        return os.dup(file.fileno())


# --- heads --------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Head:
    """What was read of a file, and which version of it that was."""

    version: Version
    file: CheckedFile
    """The file; its descriptor is that of a mirror."""


class _Heads:
    """The heads that were used last, by address; of any thread."""

    def __init__(self) -> None:
        self._heads: OrderedDict[tuple[str, str], _Head] = OrderedDict()
        self._size_bytes = 0
        self._lock = threading.Lock()

    def get(self, source: Object) -> _Head | None:
        with self._lock:
            if head := self._heads.get(_key(source)):
                self._heads.move_to_end(_key(source))
            return head

    def drop(self, source: Object) -> None:
        with self._lock:
            if head := self._heads.pop(_key(source), None):
                self._size_bytes -= head.file.head_bytes

    def put(self, source: Object, head: _Head) -> None:
        key = _key(source)
        with self._lock:
            if key in self._heads:
                self._size_bytes -= self._heads.pop(key).file.head_bytes
            self._heads[key] = head
            self._size_bytes += head.file.head_bytes
            while self._size_bytes > _KEPT_BYTES and self._heads:
                self._size_bytes -= self._heads.popitem(last=False)[1].file.head_bytes


def _key(source: Object) -> tuple[str, str]:
    return source.url, source.credentials.text()


_HEADS = _Heads()
