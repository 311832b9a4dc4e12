"""Files that get their name when they are whole, and what is left of them when a writer dies.

It knows paths, locks and bytes, and nothing of what a file holds.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import os
import re
import shutil
import stat
import time
import uuid
from collections.abc import Iterable, Iterator
from contextvars import ContextVar
from functools import cache
from typing import Any

from wkdask.errors import ExistsError, FormatError, WkdaskError, storage_error

__all__ = [
    "TEMPORARY_SUFFIX",
    "OvertakenError",
    "alone",
    "check_missing",
    "claim",
    "commit",
    "fsync_directory",
    "fsync_names",
    "is_dangling",
    "is_leftover",
    "is_missing",
    "make_durable",
    "missing_directories",
    "new_directory",
    "os_errors",
    "private",
    "read_all",
    "read_file",
    "remove",
    "remove_empty",
    "replacing",
    "sweep_beside",
    "sweep_leftover",
    "tagged",
    "try_exchange",
    "try_fallocate",
    "write_all",
]

TEMPORARY_SUFFIX = ".wkdask-tmp"
"""What the names of unfinished files end with; no reader of WKW takes them for data."""

_tag: ContextVar[str] = ContextVar("wkdask-tag", default="")

# What file systems without hard links say: FAT, and some of networks and of users.
_NO_LINKS = (errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK)
_NO_NEW_NAME = "this file system has neither hard links nor renameat2 with RENAME_NOREPLACE"
_TRIES = 3

# Of the C function renameat2.
_AT_FDCWD, _RENAME_NOREPLACE, _RENAME_EXCHANGE = -100, 1, 2


class OvertakenError(Exception):
    """Another writer made the file in the meantime; nothing was written."""


@contextlib.contextmanager
def private(path: str) -> Iterator[tuple[int, str]]:
    """Open a new, locked file beside `path`; yield its descriptor and its name.

    It is gone at the end, unless it was given another name.
    """
    with os_errors(path, "writing"):
        os.makedirs(os.path.dirname(path), exist_ok=True)
        descriptor, temporary = _locked_file(path)
    try:
        yield descriptor, temporary
    finally:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        with contextlib.suppress(OSError):
            os.close(descriptor)


@contextlib.contextmanager
def replacing(path: str, *, fsync: bool = False) -> Iterator[int]:
    """Open a private file that takes the place of `path` when the block ends without an error."""
    with private(path) as (descriptor, temporary):
        yield descriptor
        with os_errors(path, "writing"):
            commit(descriptor, temporary, path, fsync)


def commit(
    descriptor: int, temporary: str, path: str, fsync: bool, *, is_new: bool = False
) -> None:
    """Rename a private file that is whole to its final name; an older file is replaced.

    With `is_new` there must be no older file: `OvertakenError` says that there is one.
    """
    if fsync:
        os.fsync(descriptor)
    # Network file systems report a full disk when a file is closed. Closing a copy keeps the lock.
    os.close(os.dup(descriptor))
    if not is_new:
        os.replace(temporary, path)
    elif not claim(temporary, path):
        raise OvertakenError(path)
    if fsync:
        fsync_names(path)


@contextlib.contextmanager
def alone(path: str) -> Iterator[bool]:
    """Keep others who do the same from replacing a file inside the block; yield whether it exists.

    They wait. Where there is no file yet, `claim` tells who was first. A file system without locks
    keeps nobody away.
    """
    descriptor = _current(path)
    try:
        yield descriptor is not None
    finally:
        if descriptor is not None:
            os.close(descriptor)


def _current(path: str) -> int | None:
    """Open and lock the file that has a name now; None if there is none."""
    while True:
        try:
            descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        except OSError:
            # Missing, or not to be read: whoever reads it tells what is wrong.
            return None
        with contextlib.suppress(OSError):
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        with contextlib.suppress(OSError):
            if os.path.samestat(os.fstat(descriptor), os.stat(path)):
                return descriptor
        # Somebody replaced or removed it while we waited.
        os.close(descriptor)


def claim(temporary: str, path: str) -> bool:
    """Rename a private file to its final name; return False if another file has it.

    `os.replace` would remove the file of another task, which may have written voxels to it.
    """
    try:
        try:
            os.link(temporary, path)
        except OSError as error:
            if error.errno not in _NO_LINKS:
                raise
            if not _try_rename_new(temporary, path):
                raise OSError(error.errno, f"{error.strerror}; {_NO_NEW_NAME}") from None
    except FileExistsError:
        return False
    return True


def remove(path: str, fsync: bool) -> None:
    """Delete a file, if there is one."""
    try:
        os.unlink(path)
    except FileNotFoundError:
        return
    if fsync:
        fsync_names(path)


def make_durable(directory: str) -> None:
    """Make a directory and those above it that are missing; their names are on the disk then."""
    if os.path.isdir(directory):
        return
    parent = os.path.dirname(directory)
    make_durable(parent)
    os.makedirs(directory, exist_ok=True)
    fsync_directory(parent)


def missing_directories(path: str) -> list[str]:
    """Return a directory and those above it that do not exist, the deepest first."""
    missing = []
    path = os.path.abspath(path)
    while not os.path.lexists(path):
        missing.append(path)
        path = os.path.dirname(path)
    return missing


def remove_empty(directories: Iterable[str]) -> None:
    """Delete directories, in their order, up to the first that is not empty."""
    with contextlib.suppress(OSError):
        for directory in directories:
            os.rmdir(directory)


@contextlib.contextmanager
def new_directory(path: str) -> Iterator[str]:
    """Make a private directory that gets the name `path` when the block ends without an error.

    What a process left of the same when it was killed is deleted.

    Raises
    ------
    ExistsError
        If there is something at `path`.
    """
    check_missing(path)
    with os_errors(path, "making a directory"):
        os.makedirs(os.path.dirname(path), exist_ok=True)
        _sweep_directories(path)
        temporary = f"{path}.{uuid.uuid4().hex}{TEMPORARY_SUFFIX}"
        os.mkdir(temporary)
        descriptor = os.open(temporary, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        with contextlib.suppress(OSError):
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield temporary
        check_missing(path)
        with os_errors(path, "naming a directory"):
            os.rename(temporary, path)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
        os.close(descriptor)


def check_missing(path: str) -> None:
    """Raise `ExistsError` if there is something at a path."""
    if os.path.lexists(path):
        raise ExistsError(f"{path} exists: delete it, or choose another path.")


def _sweep_directories(path: str) -> None:
    """Delete the private directories of dead processes; those of living ones are locked."""
    parent, base = os.path.split(path)
    name = re.compile(rf"{re.escape(base)}\.[0-9a-f]{{32}}{re.escape(TEMPORARY_SUFFIX)}")
    for left in filter(name.fullmatch, os.listdir(parent)):
        with contextlib.suppress(OSError):
            descriptor = os.open(os.path.join(parent, left), os.O_RDONLY | os.O_DIRECTORY)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(os.path.join(parent, left), ignore_errors=True)
            finally:
                os.close(descriptor)


def fsync_names(path: str) -> None:
    """Bring the names of a file and of its two directories, or their absence, to the disk.

    All of them, because another task may have made a directory and not be so far yet.
    """
    for _ in range(3):
        path = os.path.dirname(path)
        fsync_directory(path)


def fsync_directory(path: str) -> None:
    """Bring the names in a directory to the disk, where the file system can do that."""
    directory = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(directory)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.EOPNOTSUPP):
            raise
    finally:
        os.close(directory)


@contextlib.contextmanager
def tagged(tag: str) -> Iterator[None]:
    """Put a tag into the names of this thread's unfinished files, so that they can be swept."""
    token = _tag.set(tag)
    try:
        yield
    finally:
        _tag.reset(token)


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
    """Remove an unfinished file of a writer that is dead; see `is_leftover`.

    Parameters
    ----------
    path
        The file.
    older_than_seconds
        How long ago it must have been modified, for file systems that keep locks on one machine.
    """
    # Network file systems lock a file for one alone only if it is open for writing.
    with _taken_over(path, os.O_RDWR, fcntl.LOCK_EX) as status, contextlib.suppress(OSError):
        # The clock of a file server may be ahead.
        if status and max(time.time() - status.st_mtime, 0) >= older_than_seconds:
            # A writer that was about to lock it sees that its file has no name, and makes another.
            os.unlink(path)
            return True
    return False


def sweep_beside(path: str) -> None:
    """Delete the unfinished files from which dead writers were to make a file."""
    directory, name = os.path.split(path)
    with contextlib.suppress(OSError):
        for each in os.listdir(directory):
            if each.startswith(f"{name}.") and each.endswith(TEMPORARY_SUFFIX):
                sweep_leftover(os.path.join(directory, each))


@contextlib.contextmanager
def os_errors(path: str, doing: str) -> Iterator[None]:
    """Turn an `OSError` into a `StorageError` that names the file."""
    try:
        yield
    except WkdaskError:
        raise
    except OSError as error:
        raise storage_error(error, path, doing) from None


def is_missing(path: str, depth: int) -> bool:
    """Return whether a file does not exist; it is not opened. See `is_dangling`."""
    try:
        os.stat(path)
    except FileNotFoundError:
        return not is_dangling(path, depth)
    except OSError:
        # Opening the file raises the proper error.
        return False
    return False


def is_dangling(path: str, depth: int) -> bool:
    """Return whether a file, or one of the `depth` directories around it, is a link to nothing.

    Such as to a disk that is not mounted: what is there is elsewhere, and not missing.
    """
    for _ in range(depth + 1):
        if os.path.islink(path) and not os.path.exists(path):
            return True
        path = os.path.dirname(path)
    return False


def read_file(path: str, most_bytes: int) -> bytes:
    """Return the bytes of a regular file, which may be named by somebody else.

    Raises
    ------
    FormatError
        If it is a pipe, a device or the like, or has more bytes than such a file ever has.
    OSError
        If it can't be read.
    """
    # Without O_NONBLOCK, opening a pipe would wait for its writer.
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        status = os.fstat(descriptor)
        if stat.S_ISREG(status.st_mode) and status.st_size > most_bytes:
            raise FormatError(
                f"{path} has {status.st_size} bytes, but at most {most_bytes} are plausible. "
                "Restore a copy."
            )
        if not stat.S_ISREG(status.st_mode) and not stat.S_ISDIR(status.st_mode):
            raise FormatError(f"{path} is a pipe or a device, but must be a regular file.")
        return read_all(descriptor, status.st_size, 0)
    finally:
        os.close(descriptor)


def read_all(descriptor: int, count: int, start: int) -> bytes:
    """Return bytes of a file, fewer only at its end; the system may give fewer at a time."""
    data = os.pread(descriptor, count, start)
    while len(data) < count and (
        more := os.pread(descriptor, count - len(data), start + len(data))
    ):
        data += more
    return data


def write_all(descriptor: int, data: bytes | bytearray | memoryview, start: int) -> None:
    """Write bytes to a file; the system may take fewer at a time."""
    view = memoryview(data)
    while view:
        count = os.pwrite(descriptor, view, start)
        view, start = view[count:], start + count


def try_fallocate(descriptor: int, start: int, count: int) -> bool:
    """Make a file longer with space on the disk behind it, and return whether that was possible.

    Unlike `os.posix_fallocate` nothing is written where it can't; nor is a full disk an error.
    """
    function = _function("fallocate")
    if function is None:
        return False
    failed: int = function(descriptor, 0, ctypes.c_int64(start), ctypes.c_int64(count))
    return not failed


def try_exchange(one: str, other: str) -> bool:
    """Exchange the names of two files or directories, and return whether that was possible."""
    function = _function("renameat2")
    if function is None:
        return False
    first, second = os.fsencode(one), os.fsencode(other)
    return not function(_AT_FDCWD, first, _AT_FDCWD, second, _RENAME_EXCHANGE)


@contextlib.contextmanager
def _taken_over(path: str, flags: int, lock: int) -> Iterator[os.stat_result | None]:
    """Hold the lock of a dead writer, and yield the status of its file; None if there is none."""
    status = None
    with contextlib.ExitStack() as stack:
        with contextlib.suppress(OSError):
            descriptor = os.open(path, flags | os.O_NONBLOCK | os.O_NOFOLLOW)
            stack.callback(os.close, descriptor)
            fcntl.flock(descriptor, lock | fcntl.LOCK_NB)
            # By name: a writer that has finished since then has renamed its file.
            status = os.lstat(path)
        yield status if status and stat.S_ISREG(status.st_mode) else None


def _locked_file(path: str) -> tuple[int, str]:
    """Make a file beside `path` and lock it, for as long as its descriptor is open."""
    descriptor, temporary = _new_locked_file(path)
    for _ in range(_TRIES):
        # A sweep may have deleted the file in the instant before it was locked. Some
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


def _try_rename_new(source: str, target: str) -> bool:
    """Rename a file to a new name, and return whether the file system can do that."""
    function = _function("renameat2")
    if function is None:
        return False
    old, new = os.fsencode(source), os.fsencode(target)
    failed: int = function(_AT_FDCWD, old, _AT_FDCWD, new, _RENAME_NOREPLACE)
    if failed and ctypes.get_errno() == errno.EEXIST:
        raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), target)
    return not failed


@cache
def _function(name: str) -> Any:
    """Return a function of the C library for calls from Python; None if it lacks it."""
    return getattr(ctypes.CDLL(None, use_errno=True), name, None)
