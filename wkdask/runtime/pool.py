"""Calls in a pool of threads or processes, as many at a time as it has workers.

It knows executors and their futures, and nothing of clusters.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import BrokenExecutor, Executor, Future, ThreadPoolExecutor
from queue import SimpleQueue
from typing import Any

from dask.local import SynchronousExecutor

from wkdask.errors import WorkerLostError
from wkdask.runtime.executors import workers_of
from wkdask.runtime.items import Items, Outcome
from wkdask.runtime.pickling import Portable, unpacked

__all__ = ["on_pool"]

_IN_THIS_PROCESS = ThreadPoolExecutor, SynchronousExecutor


def on_pool(
    call: Callable[[Any], Any],
    items: Iterable[Any],
    pool: Executor,
    *,
    retries: int = 0,
) -> Iterator[Outcome]:
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

    Raises
    ------
    WorkerLostError
        If a process of the pool died.
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
