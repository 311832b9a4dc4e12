"""Calls and graphs without number, of which only a window is in flight at any time.

It knows clusters, pools and futures, and nothing of chunks or voxels. Items are taken from an
iterator as places get free, so that a million of them cost no more memory than a few hundred.
"""

from __future__ import annotations

import contextlib
import math
import time
import uuid
import warnings
from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator
from concurrent.futures import BrokenExecutor, Executor, ThreadPoolExecutor
from concurrent.futures import Future as LocalFuture
from dataclasses import dataclass
from functools import partial
from itertools import chain, islice, product
from queue import SimpleQueue
from typing import Any

import dask
import dask.array as da
from dask.base import DaskMethodsMixin
from dask.local import SynchronousExecutor
from distributed import Client, Future
from distributed.scheduler import KilledWorker

from wkdask.errors import ClusterError, WorkerLostError
from wkdask.scheduling import (
    Portable,
    active_client,
    asking,
    check_cluster,
    local_pool,
    portable,
    refuse_query_planning,
    run,
    unpacked,
    workers_of,
)

__all__ = [
    "WAITING",
    "WINDOW",
    "Outcome",
    "launch_calls",
    "on_cluster",
    "on_pool",
    "stream_blocks",
    "stream_calls",
]

WINDOW = 512
"""Tasks in flight on a cluster, unless it has more than half as many threads."""

WAITING = object()
"""What an iterator of items yields where none is ready before another outcome has been seen."""

_PAUSE_SECONDS = 0.1
_LOOK_SECONDS = 10
_TIMEOUT_SECONDS = 300

# A window may need so many times the tasks of its share: the rest is computed more than once.
_SHARED_WORK = 1.5

_IN_THIS_PROCESS = ThreadPoolExecutor, SynchronousExecutor

Launch = Callable[[list[Any]], list[Future]]


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of an item."""

    item: Any
    value: Any = None
    error: Exception | None = None
    """Why it failed, after all retries; with its traceback where that could travel."""


def stream_calls(
    call: Callable[[Any], Any],
    items: Iterable[Any],
    executor: Client | Executor | None = None,
    *,
    name: str,
    retries: int = 0,
) -> Iterator[Outcome]:
    """Call a function on each item, on a cluster or in a pool; see `on_cluster` and `on_pool`.

    Items go off in the order of the iterator. Where the next one depends on what becomes of others,
    the iterator yields `WAITING`: it is asked again when the next outcome was yielded.

    Parameters
    ----------
    name
        What tasks are called on a dashboard.

    Raises
    ------
    RuntimeError
        If the iterator waits although every outcome was yielded.
    """
    client = active_client(executor)
    if client is not None:
        check_cluster(client)
        launch = launch_calls(client, call, f"{name}-{uuid.uuid4().hex}")
        yield from on_cluster(client, launch, items, retries=retries)
        return
    with local_pool(executor if isinstance(executor, Executor) else None) as pool:
        yield from on_pool(call, items, pool, retries=retries)


def stream_blocks(
    array: da.Array,
    blocks: Iterable[tuple[int, ...]],
    executor: Client | Executor | None = None,
    *,
    retries: int = 0,
) -> Iterator[Outcome]:
    """Compute blocks of a lazy array, in windows of its graph.

    Where blocks have so much in common that it would be computed again for every window, there is
    one window with all of them.

    Parameters
    ----------
    array
        Any dask array.
    blocks
        Positions of blocks, taken from the iterator as places get free.
    executor, retries
        As in `stream_calls`.
    """
    refuse_query_planning()
    client = active_client(executor)
    items = iter(blocks)
    first = list(islice(items, WINDOW))
    if not first:
        return
    if not _is_local(array, first) or not _is_local(array, _last_blocks(array)):
        first += items
    if client is not None:
        check_cluster(client)
        # By the cluster itself: were they sent again, their keys would still stand for the failure.
        launch = partial(_launch_blocks, client, array, retries)
        window = max(WINDOW, len(first))
        yield from on_cluster(client, launch, chain(first, items), least=window)
        return
    while first:
        yield from _on_this_machine(array, first, executor, retries)
        first = list(islice(items, WINDOW))


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
    source = _Retrying(items, retries)
    flying: dict[LocalFuture[Any], Any] = {}
    finished: SimpleQueue[LocalFuture[Any]] = SimpleQueue()
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


def on_cluster(
    client: Client,
    launch: Launch,
    items: Iterable[Any],
    *,
    retries: int = 0,
    least: int = WINDOW,
) -> Iterator[Outcome]:
    """Run items on a cluster, at most a window of them at a time.

    When the iterator is closed, what has not begun is cancelled, and the rest is waited for, except
    after Ctrl-C, when it goes on to its end alone.

    Parameters
    ----------
    client
        The cluster.
    launch
        Sends some items off at once and returns their futures, in order.
    items
        Taken from the iterator as places get free.
    retries
        How often an item is tried again after an exception. A dead worker's items run again by
        themselves.
    least
        The window, unless the cluster has more than half as many threads.

    Raises
    ------
    ClusterError
        If the scheduler is lost, or all workers are for some minutes.
    """
    window = _Window(client, least)
    source = _Retrying(items, retries)
    flying: dict[Future, Any] = {}
    suspects: deque[Any] = deque()

    def send(some: list[Any]) -> None:
        flying.update(zip(launch(some), some, strict=True))

    try:
        while True:
            is_alone = bool(suspects) and not flying
            if is_alone:
                send([suspects.popleft()])
            elif not suspects and window.free(len(flying)):
                some = list(source.take(window.free(len(flying))))
                if some:
                    send(some)
            if not flying:
                source.check_end()
                return
            done = {future: flying.pop(future) for future in _finished(flying, window)}
            for outcome in _results(client, done):
                if isinstance(outcome.error, WorkerLostError) and not is_alone:
                    # Another task on the same workers may have killed them: it is tried alone.
                    suspects.append(outcome.item)
                else:
                    yield from source.judged(outcome)
            # Not left to the garbage collector, in which a Ctrl-C would be lost; and all at once,
            # since each would wake the client's thread.
            client.loop.add_callback(_release, list(done))
            del done
    except KeyboardInterrupt:
        client.cancel(list(flying))
        raise
    finally:
        # A lost cluster has nothing left to be cancelled.
        with contextlib.suppress(Exception):
            _settle(client, list(flying))


class _Window:
    """How many tasks may be in flight; a cluster may grow or vanish while it works."""

    def __init__(self, client: Client, least: int) -> None:
        self._client, self._least = client, least
        self._size = least
        self._asked = -math.inf
        self._seen: float | None = None
        self._has_warned = False

    def free(self, flying: int) -> int:
        """Return how many may be sent now: none, or enough to be worth a message."""
        self.look()
        free = self._size - flying
        return free if free >= self._size // 8 else 0

    def look(self) -> None:
        """Ask from time to time how large the cluster is.

        Raises
        ------
        ClusterError
            If it had workers, and has had none for too long.
        """
        now = time.monotonic()
        if now < self._asked + _LOOK_SECONDS:
            return
        self._asked = now
        with asking():
            threads = sum(self._client.nthreads().values())
        self._size = max(self._least, 2 * threads)
        if threads:
            self._seen, self._has_warned = now, False
        elif self._seen is None:
            return
        elif now > self._seen + dask.config.get("wkdask.no-workers-timeout", _TIMEOUT_SECONDS):
            raise ClusterError(
                f"the cluster has had no worker for {now - self._seen:.0f} s. Start workers and "
                "run again; resume=True skips what was finished, if this run had it too. The dask "
                'configuration "wkdask.no-workers-timeout" sets these seconds.'
            )
        elif not self._has_warned and now > self._seen + 3 * _LOOK_SECONDS:
            self._has_warned = True
            warnings.warn(
                "the cluster has no worker left; waiting for some", RuntimeWarning, stacklevel=2
            )


def _finished(flying: Collection[Future], window: _Window) -> list[Future]:
    """Wait for some futures; short tasks end in quick succession, and are taken together."""
    while True:
        # One look at all of them costs less than one message for each.
        time.sleep(_PAUSE_SECONDS if len(flying) > 1 else _PAUSE_SECONDS / 5)
        if done := [future for future in flying if future.done()]:
            return done
        window.look()


def _release(futures: list[Future]) -> None:
    for future in futures:
        future.release()


def _settle(client: Client, futures: list[Future]) -> None:
    """Cancel what has not begun and wait for the rest, so that nothing writes afterwards."""
    while futures := [future for future in futures if not future.done()]:
        begun = {key for keys in client.processing().values() for key in keys}
        # Again each time: what ran on a worker that died meanwhile needs not begin elsewhere.
        client.cancel([future for future in futures if future.key not in begun])
        futures = [future for future in futures if future.key in begun]
        time.sleep(_PAUSE_SECONDS / 5)


def launch_calls(client: Client, call: Callable[[Any], Any], name: str) -> Launch:
    """Return a function that calls `call` on the workers, in tasks with this name."""
    travelling = Portable(call)
    sent = 0

    def launch(items: list[Any]) -> list[Future]:
        nonlocal sent
        keys = [f"{name}-{sent + i}" for i in range(len(items))]
        sent += len(items)
        futures: list[Future] = client.map(travelling, items, key=keys, pure=False)
        return futures

    return launch


class _Blocks(DaskMethodsMixin):  # type: ignore[misc]
    """Some blocks of an array as a dask collection."""

    def __init__(self, array: da.Array, blocks: list[tuple[int, ...]]) -> None:
        self._array = array
        self._keys = [(array.name, *block) for block in blocks]

    def __dask_graph__(self) -> Any:
        return self._array.dask

    def __dask_keys__(self) -> list[Any]:
        return self._keys

    def __dask_layers__(self) -> tuple[str, ...]:
        return (self._array.name,)

    __dask_optimize__ = staticmethod(da.Array.__dask_optimize__)
    __dask_scheduler__ = staticmethod(da.Array.__dask_scheduler__)

    def __dask_postcompute__(self) -> tuple[Callable[..., Any], tuple[()]]:
        return list, ()

    def __dask_tokenize__(self) -> Any:
        return self._keys


def _launch_blocks(
    client: Client, array: da.Array, retries: int, blocks: list[tuple[int, ...]]
) -> list[Future]:
    keys = [(array.name, *block) for block in blocks]
    # Fused tasks would differ between windows, under the same keys.
    with dask.config.set({"optimization.fuse.active": False}):
        graph = da.Array.__dask_optimize__(array.dask, keys)
    futures: list[Future] = client.get(graph, keys, sync=False, retries=retries)
    return futures


def _on_this_machine(
    array: da.Array, blocks: list[tuple[int, ...]], executor: Any, retries: int
) -> Iterator[Outcome]:
    for left in reversed(range(retries + 1)):
        try:
            values = run(_Blocks(array, blocks), executor)
        except Exception:
            if not left:
                raise
        else:
            yield from map(Outcome, blocks, values)
            return


def _is_local(array: da.Array, blocks: list[tuple[int, ...]]) -> bool:
    """Tell whether blocks need about their share of the tasks of all blocks, and not many more."""
    keys = {(array.name, *block) for block in blocks}
    tasks = sum(map(len, array.dask.cull(keys).layers.values()))
    return bool(tasks / len(blocks) <= _SHARED_WORK * len(array.dask) / array.npartitions + 1)


def _last_blocks(array: da.Array) -> list[tuple[int, ...]]:
    """Return a window of blocks from the end, where a cumulated sum needs all before them."""
    backwards = product(*(range(count - 1, -1, -1) for count in array.numblocks))
    return list(islice(backwards, WINDOW))


class _Retrying:
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


def _local_result(future: LocalFuture[Any], pool: Executor) -> tuple[Any, Exception | None]:
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


def _results(client: Client, done: dict[Future, Any]) -> Iterator[Outcome]:
    """Yield what became of futures that are finished, fetched in one message."""
    good = [future for future in done if future.status == "finished"]
    try:
        values = dict(zip(good, client.gather(good), strict=True))
    except Exception:
        # A result was lost with its worker, and its task failed when it ran again.
        values = {}
    for future, item in done.items():
        yield Outcome(item, values[future]) if future in values else _single(future, item)


def _single(future: Future, item: Any) -> Outcome:
    try:
        return Outcome(item, future.result())
    except KilledWorker as error:
        return Outcome(item, error=_worker_lost(error))
    except Exception as error:
        if future.status in ("cancelled", "lost"):
            raise ClusterError(
                f"the cluster no longer knows a task ({error}): the scheduler was lost, or "
                "somebody cancelled the task. Run again on a cluster that works; resume=True skips "
                "what was finished, if this run had it too."
            ) from None
        return Outcome(item, error=portable(error))


def _worker_lost(error: KilledWorker) -> WorkerLostError:
    where = getattr(error.last_worker, "address", error.last_worker)
    return WorkerLostError(
        f"{error.allowed_failures + 1} workers died while they ran this chunk alone, the last one "
        f"at {where}. Most often that is memory: use smaller chunks or fewer threads per worker. "
        "The worker's log tells more."
    )
