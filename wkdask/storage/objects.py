"""Objects of web servers and object stores: a few bytes whole, and many parts at a time.

It knows addresses, byte ranges, and how sure an answer is. `obstore` sends the requests, tries
again what may pass, and finds credentials; it is imported at the first request.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import threading
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import timedelta
from functools import lru_cache
from typing import TYPE_CHECKING, Any, BinaryIO, Literal, NamedTuple
from urllib.parse import unquote, urlsplit

from wkdask.errors import (
    AccessError,
    ArgumentError,
    FormatError,
    RemoteError,
    WkdaskError,
    extra_error,
)

if TYPE_CHECKING:
    from obstore import ObjectMeta
    from obstore.store import ObjectStore

__all__ = ["Credentials", "Object", "Part", "Version", "list_objects"]

_ATTEMPTS = 3
"""How often a body is asked for that comes shorter than announced."""
_CLIENT = {"timeout": "120s", "connect_timeout": "10s"}
_RETRY = {"max_retries": 5, "retry_timeout": timedelta(seconds=120)}
_CONCURRENT = 256
_OUTSIDE = "416 Range Not Satisfiable"
# What says which store an address is in, and is no secret.
_STORES = ("endpoint", "endpoint_url", "aws_endpoint", "aws_endpoint_url", "account_name")
_ENDPOINTS = ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL", "AWS_ENDPOINT")


class Version(NamedTuple):
    """What tells an object from the one that replaces it."""

    size_bytes: int
    """Its size."""
    e_tag: str | None
    """A name of its content, where the server gives one."""
    modified: float
    """When it was written, in seconds since 1970."""


class Part(NamedTuple):
    """Bytes of an object."""

    start: int
    """Where they begin."""
    data: Any
    """A buffer."""
    version: Version
    """Of which object."""


@dataclass(frozen=True, slots=True)
class Credentials:
    """The options for a store, as `storage_options=` gives them; they are never shown.

    Nor do they enter comparisons, hashes or names of tasks.
    """

    options: Mapping[str, Any] = field(default_factory=dict, repr=False, compare=False)
    """What obstore takes for a store."""

    def __dask_tokenize__(self) -> str:
        return "credentials"

    def endpoint(self) -> str:
        """Return the address of the store's server, if it is not the usual one."""
        given = (self.options.get(name) for name in _STORES[:-1])
        found = (os.environ.get(name) for name in _ENDPOINTS)
        return str(next((each for each in (*given, *found) if each), ""))

    def store(self) -> str:
        """Return what tells the store from others with the same addresses; nothing secret."""
        endpoint = self.endpoint().rpartition("@")[2]
        return " ".join(filter(None, [endpoint, str(self.options.get("account_name") or "")]))

    def text(self) -> str:
        """Return a text that differs for other options, for use within this process only."""
        return repr(sorted(self.options.items()))


@dataclass(frozen=True, slots=True)
class Object:
    """An object at an address; it may not exist."""

    url: str
    """The address."""
    credentials: Credentials
    """How the store is asked."""

    def read(self, most_bytes: int) -> bytes:
        """Return the bytes of a small object; see `Place.read` for errors."""
        with _errors(self.url, "reading"):
            store, path = self._at()
            return _whole(store, path, most_bytes, self.url)

    def version(self) -> Version | None:
        """Return which version of the object there is; None if there is no object."""
        try:
            with _errors(self.url, "looking for the object"):
                store, path = self._at()
                return _version(store, path)
        except FileNotFoundError:
            return None

    def part(self, start: int, count: int | None) -> Part:
        """Return bytes of the object, fewer if it ends before.

        Parameters
        ----------
        start
            Where they begin; negative, the last `count` bytes are meant.
        count
            How many; None is up to the end.

        Raises
        ------
        FileNotFoundError
            If the store says that there is no such object.
        AccessError
            If the store refuses.
        RemoteError
            If it does not answer as it should, after several attempts.
        """
        with _errors(self.url, "reading"):
            store, path = self._at()
            return _first_part(store, path, start, count)

    def parts(self, spans: Sequence[tuple[int, int]]) -> list[Part]:
        """Return several parts, each a start and a number of bytes, asked for at the same time."""
        with _errors(self.url, "reading"):
            store, path = self._at()
            return _all_parts(store, path, spans)

    def put(self, data: bytes | BinaryIO, old: str | Literal[False] | None) -> bool:
        """Write the object whole; return False, and write nothing, if another one is there.

        Parameters
        ----------
        data
            Bytes, or an open file.
        old
            The `ETag` of the object that is replaced; False, there must be none; None, any.
        """
        _import_obstore()
        import obstore
        from obstore.exceptions import AlreadyExistsError, PreconditionError

        mode: Any = {"e_tag": old}
        if not isinstance(old, str):
            mode = "overwrite" if old is None else "create"
        store, path = self._at()
        with _errors(self.url, "writing"):
            try:
                obstore.put(store, path, data, mode=mode)
            except (AlreadyExistsError, PreconditionError):
                return False
        return True

    def delete(self) -> None:
        """Delete the object, if there is one."""
        _import_obstore()
        import obstore

        store, path = self._at()
        with contextlib.suppress(FileNotFoundError), _errors(self.url, "deleting"):
            obstore.delete(store, path)

    def check_preconditions(self) -> None:
        """Raise unless the store refuses to replace an object that is not the one that was read.

        Else two writers of parts of one file could lose what the other has written.
        """
        base, _ = _parted(self.url)
        if not _has_preconditions(self, base):
            raise RemoteError(
                errno.ENOTSUP,
                "the store can't make a write depend on what is there (If-Match), so that two "
                "writers of parts of a file could lose voxels. Write whole files: boxes on "
                "multiples of the file edge",
                self.url,
            )

    def _at(self) -> tuple[ObjectStore, str]:
        _check_not_forked()
        base, path = _parted(self.url)
        return _store(base, self.credentials), path


_PRECONDITIONS: dict[tuple[str, str], bool] = {}
_probing = threading.Lock()


def _has_preconditions(of: Object, base: str) -> bool:
    """Return whether a store keeps preconditions, which is tried once in each process."""
    key = base, of.credentials.text()
    with _probing:
        if key not in _PRECONDITIONS:
            probe = Object(f"{of.url}.{uuid.uuid4().hex}.wkdask-probe", of.credentials)
            probe.put(b"1", None)
            try:
                is_kept = not probe.put(b"2", False) and not probe.put(b"3", '"none"')
            except RemoteError as error:
                if not re.search("NotImplemented|not implemented|501", str(error)):
                    raise
                is_kept = False
            finally:
                probe.delete()
            _PRECONDITIONS[key] = is_kept
        return _PRECONDITIONS[key]


def list_objects(url: str, credentials: Credentials) -> Iterator[tuple[str, int]]:
    """Yield the paths below an address, and the sizes in bytes, of all objects there."""
    _import_obstore()
    import obstore

    base, prefix = _parted(url)
    with _errors(url, "listing the objects; web servers can't, unlike object stores"):
        for batch in obstore.list(_store(base, credentials), prefix):
            for each in batch:
                yield each["path"].removeprefix(f"{prefix}/"), int(each["size"])


def _import_obstore() -> None:
    """Raise the error that names the extra unless obstore is installed."""
    try:
        import obstore  # noqa: F401
    except ImportError:
        raise extra_error("obstore", "remote") from None


# --- requests -----------------------------------------------------------------------------------


def _whole(store: ObjectStore, path: str, most_bytes: int, url: str) -> bytes:
    import obstore

    result = obstore.get(store, path)
    if result.meta["size"] > most_bytes:
        raise FormatError(
            f"{url} has {result.meta['size']} bytes, but at most {most_bytes} are plausible."
        )
    return bytes(result.bytes())


def _version(store: ObjectStore, path: str) -> Version:
    import obstore

    return _version_of(obstore.head(store, path))


def _version_of(meta: ObjectMeta) -> Version:
    return Version(int(meta["size"]), meta["e_tag"], meta["last_modified"].timestamp())


def _first_part(store: ObjectStore, path: str, start: int, count: int | None) -> Part:
    """Return a part of an object of which nothing is known, such as whether it is long enough."""
    from obstore.exceptions import BaseError, NotSupportedError

    if count is None:
        return _part(store, path, {"offset": start} if start else None)
    asked: Any = {"suffix": count} if start < 0 else (start, start + count)
    try:
        return _part(store, path, asked)
    except BaseError as error:
        if not isinstance(error, NotSupportedError) and _OUTSIDE not in str(error):
            raise
        # Stores without ranges from the end, and objects that are too short for any range.
        version = _version(store, path)
        if start < 0 and version.size_bytes >= count:
            return _part(store, path, (version.size_bytes - count, version.size_bytes))
        if start > 0 and version.size_bytes <= start:
            return Part(start, b"", version)
        if version.size_bytes > max(start, 0) + count:
            raise
        return _part(store, path, None)


def _all_parts(store: ObjectStore, path: str, spans: Sequence[tuple[int, int]]) -> list[Part]:
    if len(spans) == 1:
        return [_part(store, path, (spans[0][0], sum(spans[0])))]
    futures = [_threads().submit(_part, store, path, (at, at + count)) for at, count in spans]
    try:
        return [future.result() for future in futures]
    finally:
        for future in futures:
            future.cancel()


def _part(store: ObjectStore, path: str, asked: Any) -> Part:
    """Return what was asked for, and see that all of it came."""
    import obstore

    for attempt in range(_ATTEMPTS):
        if attempt:
            time.sleep(0.1 * 4**attempt)
        options: Any = None if asked is None else {"range": asked}
        result = obstore.get(store, path, options=options)
        start, stop = result.range
        try:
            data = result.bytes()
        except obstore.exceptions.BaseError:
            if attempt == _ATTEMPTS - 1:
                raise
            continue
        if len(data) == stop - start:
            return Part(start, data, _version_of(result.meta))
    raise _ShortError(f"{len(data)} bytes came instead of {stop - start}")


class _ShortError(Exception):
    """A server sent less than it announced."""


# --- stores -------------------------------------------------------------------------------------


def _parted(url: str) -> tuple[str, str]:
    """Return the address of a store, and the path of an object in it."""
    parts = urlsplit(url)
    path = unquote(parts.path) if parts.scheme in ("http", "https") else parts.path
    return f"{parts.scheme}://{parts.netloc}", path.strip("/")


def _store(base: str, credentials: Credentials) -> ObjectStore:
    return _stores(base, credentials.text()).get(base, credentials)


class _Stores:
    """The store of one address with certain options, once it was asked for."""

    def __init__(self) -> None:
        self._store: ObjectStore | None = None

    def get(self, base: str, credentials: Credentials) -> ObjectStore:
        if self._store is None:
            self._store = _new_store(base, credentials.options)
        return self._store


@lru_cache(maxsize=16)
def _stores(base: str, options: str) -> _Stores:
    return _Stores()


def _new_store(base: str, options: Mapping[str, Any]) -> ObjectStore:
    _import_obstore()
    from obstore.exceptions import BaseError
    from obstore.store import HTTPStore, from_url

    rest = dict(options)
    for name in ("client_options", "retry_config", "headers"):
        if not isinstance(rest.get(name, {}), Mapping):
            raise ArgumentError(f"storage_options has {name} {rest[name]!r}, no dictionary.")
    client: Any = {**_CLIENT, **rest.pop("client_options", {})}
    headers = rest.pop("headers", None)
    if headers is not None:
        client["default_headers"] = {**client.get("default_headers", {}), **headers}
    if base.startswith("http://") or Credentials(options).endpoint().startswith("http://"):
        client.setdefault("allow_http", True)
    retry: Any = {**_RETRY, **rest.pop("retry_config", {})}
    try:
        if base.startswith("http"):
            if rest:
                raise ArgumentError(
                    f"storage_options has {', '.join(sorted(rest))}, but for a web server may "
                    "have headers, client_options and retry_config only."
                )
            return HTTPStore.from_url(base, client_options=client, retry_config=retry)
        make: Any = from_url
        given = {k: rest.pop(k) for k in ("credential_provider",) if k in rest}
        made: ObjectStore = make(
            base, config=rest, client_options=client, retry_config=retry, **given
        )
        return made
    except (BaseError, ValueError, TypeError) as error:
        if isinstance(error, WkdaskError):
            raise
        raise ArgumentError(
            f"storage_options can't be used for {base}: {_reason(error)} They go to obstore's "
            "store of that address: its settings, and client_options, retry_config, headers."
        ) from None


# --- threads ------------------------------------------------------------------------------------

_forked: list[bool] = []


@lru_cache(maxsize=1)
def _threads() -> ThreadPoolExecutor:
    """Return what sends the requests of this process that are under way at the same time.

    Not by asyncio: threads of obstore would touch Python's objects, also while Python ends.
    """
    return ThreadPoolExecutor(_CONCURRENT, thread_name_prefix="wkdask-requests")


@lru_cache(maxsize=1)
def _note_forks() -> None:
    os.register_at_fork(after_in_child=lambda: _forked.append(True))


def _check_not_forked() -> None:
    """Raise in a fork of a process that has sent requests; it would wait for ever."""
    _note_forks()
    if _forked:
        raise RemoteError(
            errno.ENOTSUP,
            "this process was forked from one that has read from servers, whose connections a "
            "fork does not have. Start processes by spawn: multiprocessing.get_context('spawn')",
        )


# --- errors -------------------------------------------------------------------------------------


@contextlib.contextmanager
def _errors(url: str, doing: str) -> Iterator[None]:
    """Turn errors of obstore into ours; only "no such object" stays a `FileNotFoundError`."""
    try:
        yield
    except WkdaskError:
        raise
    except FileNotFoundError as error:
        if "NoSuchBucket" not in str(error):
            raise FileNotFoundError(errno.ENOENT, "no such object", url) from None
        raise RemoteError(errno.EREMOTEIO, f"no such bucket, while {doing}", url) from None
    except Exception as error:
        raise _remote_error(error, url, doing) from None


def _remote_error(error: Exception, url: str, doing: str) -> Exception:
    reason = _reason(error)
    # Answers to HEAD have no kind.
    if isinstance(error, PermissionError) or re.search("code: 40[13]", reason):
        return AccessError(
            errno.EACCES,
            f"{reason}, while {doing}. Some stores say so of what does not exist, so it is not "
            "read as zeros. Give credentials: storage_options=, or as the store's own programs "
            "find them",
            url,
        )
    if type(error).__name__ == "NotSupportedError":
        reason += (
            " (the server answers no byte ranges, which are needed; nginx and all object stores do)"
        )
    if isinstance(error, _ShortError | ValueError) or type(error).__module__.startswith("obstore"):
        return RemoteError(errno.EREMOTEIO, f"{reason}, while {doing}", url)
    return error


def _reason(error: Exception) -> str:
    """Return what a store said, in one line, without what stands in queries of addresses."""
    text = str(error).strip().split("\n")[0]
    text = re.sub(r"(https?://)[^/@\s]*@", r"\1", text)
    text = re.sub(r"\?\S*", "", text)
    found = re.search(r"(status code: .*|HTTP error: .*)", text)
    return (found[1] if found else text).removesuffix(":").split("<")[0].strip(" :")
