"""A queue of items that are tried again when they fail, and the pools that work on it.

It knows executors and their futures. It must not know clusters, or what the items are.
"""

from __future__ import annotations

import contextlib
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import BrokenExecutor, Executor, Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from queue import SimpleQueue
from typing import Any, TypeAlias

from dask.local import SynchronousExecutor

from wkdask.errors import ArgumentError, WorkerLostError
from wkdask.runtime.executors import workers_of
from wkdask.runtime.pickling import Portable, unpacked

__all__ = ["WAITING", "Items", "Outcome", "Outcomes", "on_pool"]

_IN_THIS_PROCESS = ThreadPoolExecutor, SynchronousExecutor

WAITING = object()
"""What an iterator of items yields where none is ready before another outcome has been seen."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of an item."""

    item: Any
    value: Any = None
    error: Exception | None = None
    """Why it failed, after all retries; with its traceback where that could travel."""


Outcomes: TypeAlias = Generator[Outcome, None, None]
"""Outcomes as they come; closing it cancels what has not begun, and waits for the rest."""


class Items:
    """An iterator of items, to which those that failed come back for some time."""

    def __init__(self, items: Iterable[Any], retries: int) -> None:
        self._items = iter(items)
        self._retries = retries
        self._tried: dict[Any, int] = {}
        self._again: deque[Any] = deque()
        self._waits = False

    def __iter__(self) -> Iterator[Any]:
        return self

    def __next__(self) -> Any:
        return self._again.popleft() if self._again else next(self._items)

    def take(self, most: int) -> Iterator[Any]:
        """Yield some items; fewer where there are no more, or none is ready."""
        self._waits = False
        for item in islice(self, most):
            if item is WAITING:
                self._waits = True
                return
            yield item

    def check_end(self) -> None:
        """Raise if the iterator waits for outcomes, when there are none to come."""
        if self._waits:
            raise RuntimeError("the items wait for an outcome, but none is in flight")

    def judged(self, outcome: Outcome) -> Iterator[Outcome]:
        """Yield the outcome, unless its item is to be tried again."""
        tried = self._tried.pop(outcome.item, 0) if self._tried or outcome.error else 0
        is_final = outcome.error is None or isinstance(outcome.error, WorkerLostError)
        if is_final or tried >= self._retries:
            yield outcome
        else:
            self._tried[outcome.item] = tried + 1
            self._again.append(outcome.item)


def on_pool(
    call: Callable[[Any], Any],
    items: Iterable[Any],
    pool: Executor,
    *,
    retries: int = 0,
) -> Outcomes:
    """Call a function on each item in a pool, as many at a time as it has workers.

    When the iterator is closed, what has not begun is cancelled, and the rest is waited for.

    Parameters
    ----------
    call
        Any function; one that can't be pickled travels to processes by value.
    items
        Its arguments, taken one by one.
    pool
        Threads, processes, or anything with the same interface.
    retries
        How often an item is tried again after an exception.
    """
    workers = workers_of(pool)
    if not isinstance(pool, _IN_THIS_PROCESS):
        call = Portable(call).packed
    source = Items(items, retries)
    flying: dict[Future[Any], Any] = {}
    finished: SimpleQueue[Future[Any]] = SimpleQueue()
    try:
        while True:
            for item in source.take(workers - len(flying)):
                try:
                    future = pool.submit(call, item)
                except BrokenExecutor as error:
                    raise _pool_lost(error) from None
                except RuntimeError as error:
                    raise ArgumentError(
                        f"the executor {pool!r} takes no tasks ({error}): make a new one, and shut "
                        "it down when the run is over."
                    ) from None
                flying[future] = item
                future.add_done_callback(finished.put)
            if not flying:
                source.check_end()
                return
            future = finished.get()
            yield from source.judged(Outcome(flying.pop(future), *_local_result(future, pool)))
    finally:
        running = [future for future in flying if not future.cancel()]
        for future in running:
            with contextlib.suppress(BaseException):
                future.exception()


def _local_result(future: Future[Any], pool: Executor) -> tuple[Any, Exception | None]:
    error = future.exception()
    if error is None:
        value = future.result()
        return (value, None) if isinstance(pool, _IN_THIS_PROCESS) else unpacked(value)
    if isinstance(error, BrokenExecutor):
        raise _pool_lost(error)
    if not isinstance(error, Exception):
        raise error
    return None, error


def _pool_lost(error: BrokenExecutor) -> WorkerLostError:
    return WorkerLostError(
        f"a process of the pool died ({error}), and the pool with it. Most often that is memory: "
        "use smaller chunks or fewer processes, and run again with a new pool; resume=True skips "
        "what was finished, if this run had it too."
    )
