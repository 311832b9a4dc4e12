"""Who works on a mag directory: one run that has it whole, or any number that write to parts of it.

Claims are locks of the directory, which the system takes away when their process dies. A whole
claim also leaves a file beside the directory, which names its owner and is seen from other
machines. It knows directories and processes, and must not know what a directory holds.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import getpass
import json
import os
import threading
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from functools import cache
from platform import node

from wkdask.errors import BusyError
from wkdask.storage import atomic

__all__ = ["CLAIM_SUFFIX", "Owner", "owner_of", "shared", "whole"]

CLAIM_SUFFIX = f".claim{atomic.TEMPORARY_SUFFIX}"
"""What the file beside a mag directory ends with, while one run has the mag whole. One of a dead
process is deleted like any unfinished file."""

_BEAT_SECONDS = 20.0
"""How often an owner touches its file, for machines that do not see its locks."""
_SILENT_SECONDS = 300.0
"""How long the file of an owner on another machine must not have been touched for it to be dead."""
_TRIES = 20
_IN_PART = "be written to or read for another mag"

_NO_LOCKS = (errno.EBADF, errno.EINVAL, errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)

_held: set[int] = set()


def _close_in_child() -> None:
    """Close the locks of the parent in a forked process, which would keep them alive."""
    for descriptor in _held:
        with contextlib.suppress(OSError):
            os.close(descriptor)
    _held.clear()


os.register_at_fork(after_in_child=_close_in_child)


@dataclass(frozen=True, slots=True)
class Owner:
    """The run that has a mag whole."""

    doing: str
    """What it does with the mag, such as `"rechunked"`."""
    user: str
    host: str
    pid: int
    machine: str
    """What distinguishes machines, and one machine before and after it was started anew."""
    since: float
    """When it began, in seconds since 1970."""
    has_lock: bool
    """Whether its file is locked; some file systems know no locks."""

    def __str__(self) -> str:
        since = datetime.fromtimestamp(self.since, UTC)
        return (
            f"process {self.pid} of {self.user} on {self.host} since {since:%Y-%m-%d %H:%M:%S} UTC"
        )


@contextlib.contextmanager
def whole(path: str, doing: str) -> Iterator[None]:
    """Claim a mag directory whole: nobody else may write to it, or claim it, inside the block.

    A directory that is missing is made, and is gone at the end if nothing was put into it.

    Raises
    ------
    BusyError
        At once, if another run has it whole or writes to it; the text names the owner.
    """
    path = os.path.realpath(path)
    made: list[str] = []
    with contextlib.ExitStack() as stack:
        for _ in range(_TRIES):
            made += _make(path)
            if stack.enter_context(_locked(path, fcntl.LOCK_EX, f"be {doing}")) is not None:
                break
        # While it is locked, so that nobody begins to use it.
        stack.callback(atomic.remove_empty, made)
        stack.enter_context(_signed(path, doing))
        yield


@contextlib.contextmanager
def shared(*paths: str) -> Iterator[None]:
    """Keep others from claiming mag directories whole inside the block; any number may do so.

    Raises
    ------
    BusyError
        At once, if another run has one of them whole; the text names the owner.
    """
    held: list[int] = []
    try:
        for path in paths:
            descriptor = _lock(path, fcntl.LOCK_SH, _IN_PART)
            if descriptor is None:
                continue
            held.append(descriptor)
            # Machines may not see each other's locks.
            real = _real_path(descriptor, path)
            found = owner_of(real) if os.path.lexists(f"{real}{CLAIM_SUFFIX}") else None
            if found is not None and not (found.has_lock and found.machine == _machine()):
                raise _busy(path, found, _IN_PART)
        yield
    finally:
        for descriptor in held:
            _unlock(descriptor)


def owner_of(path: str | os.PathLike[str]) -> Owner | None:
    """Return the run that has a mag directory whole, if it lives."""
    file = f"{os.fspath(path)}{CLAIM_SUFFIX}"
    found = _read(file)
    return None if found is None or _is_dead(file, found) else found


@contextlib.contextmanager
def _locked(path: str, kind: int, wanted: str) -> Iterator[int | None]:
    """Lock a directory, and yield its descriptor; None if it is missing."""
    descriptor = _lock(path, kind, wanted)
    if descriptor is None:
        yield None
        return
    try:
        yield descriptor
    finally:
        _unlock(descriptor)


def _unlock(descriptor: int) -> None:
    _held.discard(descriptor)
    with contextlib.suppress(OSError):
        # Said so, because a process that was started by forking has the descriptor too.
        fcntl.flock(descriptor, fcntl.LOCK_UN)
    os.close(descriptor)


def _lock(path: str, kind: int, wanted: str) -> int | None:
    for _ in range(_TRIES):
        try:
            descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError:
            # What wants to use the directory says what is wrong with it.
            return None
        try:
            fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in _NO_LOCKS:
                _held.add(descriptor)
                return descriptor
            os.close(descriptor)
            if isinstance(error, BlockingIOError):
                raise _busy(path, _awaited_owner(path), wanted) from None
            raise
        # Another directory may have taken its place before it was locked.
        with contextlib.suppress(OSError):
            if os.path.samestat(os.fstat(descriptor), os.stat(path)):
                _held.add(descriptor)
                return descriptor
        os.close(descriptor)
    raise _busy(path, None, wanted)


@contextlib.contextmanager
def _signed(path: str, doing: str) -> Iterator[None]:
    """Leave a file beside a locked directory that names this process, until the block ends."""
    with contextlib.ExitStack() as stack:
        # Beside some directories nothing may be made.
        with contextlib.suppress(OSError):
            _sign(f"{path}{CLAIM_SUFFIX}", path, doing, stack)
        yield


def _sign(file: str, path: str, doing: str, stack: contextlib.ExitStack) -> None:
    atomic.sweep_beside(file)
    descriptor, temporary = stack.enter_context(atomic.private(file))
    _held.add(descriptor)
    stack.callback(_held.discard, descriptor)
    owner = Owner(
        doing, _user(), node(), os.getpid(), _machine(), time.time(), _has_locks(descriptor)
    )
    atomic.write_all(descriptor, json.dumps(asdict(owner)).encode(), 0)
    while not atomic.claim(temporary, file):
        found = _read(file)
        if found is not None and _is_dead(file, found):
            _taken_away(file, found)
        elif os.path.lexists(file):
            raise _busy(path, found, f"be {doing}")
    os.unlink(temporary)
    stack.callback(_taken_away, file, owner)
    over = threading.Event()
    stack.callback(over.set)
    threading.Thread(target=_beat, args=(file, over), daemon=True).start()


def _beat(file: str, over: threading.Event) -> None:
    while not over.wait(_BEAT_SECONDS):
        with contextlib.suppress(OSError):
            os.utime(file)


def _has_locks(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


def _is_dead(file: str, found: Owner) -> bool:
    """Return whether the process that has left a file is gone."""
    if found.has_lock and found.machine == _machine():
        return atomic.is_leftover(file)
    try:
        return time.time() - os.stat(file).st_mtime > _SILENT_SECONDS
    except OSError:
        return True


def _taken_away(file: str, owner: Owner) -> bool:
    """Delete a file if it is still that of an owner; what is another's by now stays."""
    aside = f"{file}.{os.getpid()}-{threading.get_ident()}{atomic.TEMPORARY_SUFFIX}"
    try:
        # By renaming: only one of two that do this at the same time succeeds.
        os.rename(file, aside)
    except OSError:
        return False
    is_his = _read(aside) == owner
    with contextlib.suppress(OSError):
        if not is_his:
            os.link(aside, file)
        os.unlink(aside)
    return is_his


def _read(file: str) -> Owner | None:
    try:
        with open(os.open(file, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as opened:
            return Owner(**json.loads(opened.read(2**16)))
    except (OSError, ValueError, TypeError):
        return None


def _awaited_owner(path: str) -> Owner | None:
    """Return the owner of a locked directory, who signs right after he has locked it."""
    file = f"{os.path.realpath(path)}{CLAIM_SUFFIX}"
    for _ in range(_TRIES):
        if (found := _read(file)) is not None:
            return found
        time.sleep(0.002)
    return None


def _busy(path: str, owner: Owner | None, wanted: str) -> BusyError:
    if owner is None:
        text = "other runs write to it, or read it for another mag"
    else:
        text = f"it is being {owner.doing} by {owner}"
    return BusyError(f"{path} can't {wanted} now: {text}. Try again when that has ended.")


def _real_path(descriptor: int, path: str) -> str:
    try:
        return os.readlink(f"/proc/self/fd/{descriptor}")
    except OSError:
        return os.path.realpath(path)


def _make(path: str) -> list[str]:
    """Make a directory and those above it that are missing, and return them, the deepest first."""
    missing = atomic.missing_directories(path)
    with atomic.os_errors(path, "making a directory"):
        os.makedirs(path, exist_ok=True)
    return missing


def _user() -> str:
    try:
        return getpass.getuser()
    except (OSError, KeyError):
        return str(os.getuid())


@cache
def _machine() -> str:
    try:
        with open("/proc/sys/kernel/random/boot_id") as file:
            return file.read().strip()
    except OSError:
        return node()
