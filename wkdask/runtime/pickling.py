"""Functions and errors on their way to other processes and back.

It knows how they are pickled, and nothing of what runs them.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from functools import lru_cache
from typing import Any

import cloudpickle

# It lets tracebacks be pickled, too.
import dask.multiprocessing

from wkdask.errors import WkdaskError

__all__ = ["ByValue", "Portable", "pack_exception", "portable", "unpacked"]


class Portable:
    """A function as bytes, which any process can take.

    Where its module can't be imported, that is an error of the call. Were the function sent as it
    is, a worker would fail to read the message, and die of it.
    """

    def __init__(self, function: Callable[..., Any]) -> None:
        self._data = cloudpickle.dumps(function)

    async def prepare(self) -> None:
        """Import what the function needs, in a thread; its first call tells what goes wrong."""
        with contextlib.suppress(Exception):
            await asyncio.to_thread(_loaded, self._data)

    def __call__(self, *arguments: Any) -> Any:
        """Call the function."""
        try:
            return _loaded(self._data)(*arguments)
        except Exception as error:
            # An error that can't be pickled would be dropped on the way, and its notes with it.
            failure = portable(error)
            if failure is error:
                raise
        # Not in the handler, where the error would be its context, and be pickled too.
        raise failure

    def packed(self, *arguments: Any) -> bytes:
        """Call the function, and return as bytes what `unpacked` takes.

        A pool of processes dies of results that it can't pickle or load by itself.
        """
        try:
            result: tuple[Any, ...] = self(*arguments), None, None
        except Exception as error:
            result = None, error, error.__traceback__
        return bytes(cloudpickle.dumps(result))


class ByValue:
    """A function that is itself in this process, and `Portable` in others; for lazy graphs.

    Pools pickle functions by their names, if nobody prevents it.
    """

    def __init__(self, function: Callable[..., Any]) -> None:
        self._function = function

    def __call__(self, *arguments: Any) -> Any:
        """Call the function."""
        return self._function(*arguments)

    def __reduce__(self) -> tuple[Any, ...]:
        """Leave the process as bytes."""
        return _identity, (Portable(self._function),)


def _identity(portable: Portable) -> Portable:
    return portable


def unpacked(data: bytes) -> tuple[Any, Exception | None]:
    """Return what a function returned, and the exception that it raised instead."""
    value, error, trace = cloudpickle.loads(data)
    return value, error and error.with_traceback(trace)


@lru_cache(maxsize=2)
def _loaded(data: bytes) -> Callable[..., Any]:
    """Return the function that bytes stand for; tasks of one run share it in their process."""
    function: Callable[..., Any] = cloudpickle.loads(data)
    return function


def portable(error: Exception) -> Exception:
    """Return the error, or one of ours that says the same if it can't leave its process."""
    try:
        cloudpickle.loads(cloudpickle.dumps(error))
    except Exception:
        stand_in = WkdaskError(repr(error))
        stand_in.__notes__ = list(getattr(error, "__notes__", ()))
        return stand_in
    return error


def pack_exception(error: BaseException, dumps: Callable[[object], bytes]) -> Any:
    """Return an error and its traceback as dask's schedulers want them from a process."""
    travels = portable(error) if isinstance(error, Exception) else error
    return dask.multiprocessing.pack_exception(travels, dumps)
