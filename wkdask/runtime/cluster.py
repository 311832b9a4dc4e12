"""Tasks on a cluster, of which only a window is in flight at any time.

It knows clients, their futures and workers that die, and nothing of chunks or voxels.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import time
import uuid
import warnings
from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator
from concurrent.futures import wait
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING, Any, TypeAlias
from weakref import WeakSet

from wkdask.errors import ClusterError, WorkerLostError
from wkdask.runtime import config
from wkdask.runtime.executors import cluster_errors
from wkdask.runtime.jobs import Jobs
from wkdask.runtime.pickling import Portable, portable
from wkdask.runtime.queues import Items, Outcome, Outcomes

if TYPE_CHECKING:
    from distributed import Client, Future
    from distributed.scheduler import KilledWorker

__all__ = ["WINDOW", "Launch", "launch_calls", "on_cluster"]

WINDOW = 512
"""Blocks of an array that are taken from its graph at a time."""

_PAUSE_SECONDS = 0.1
_FEW = 32
_LOOK_SECONDS = 10
_WARN_SECONDS = 30

Launch: TypeAlias = "Callable[[list[Any]], list[Future[object]]]"
"""Sends some items off at once and returns their futures, in order."""
Unpack: TypeAlias = "Callable[[Any], tuple[Any, Exception | None]]"


def on_cluster(
    client: Client,
    launch: Launch,
    items: Iterable[Any],
    *,
    retries: int = 0,
    least: int | None = None,
    unpack: Unpack | None = None,
) -> Outcomes:
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
        The window, unless the cluster has more than half as many threads; None is as configured.
    unpack
        Returns the value of a result, and the error that stands for it; None takes it as it is.
    """
    window = _Window(client, least or config.window())
    ends = _Ends(window)
    source = Items(items, retries)
    flying: dict[Future[object], Any] = {}
    suspects: deque[Any] = deque()
    ended: list[Future[object]] = []

    def send(some: list[Any]) -> None:
        flying.update(zip(launch(some), some, strict=True))

    def release() -> None:
        # Not left to the garbage collector, in which a Ctrl-C would be lost; and all at once, since
        # each would wake the client's thread.
        client.sync(_release, ended)
        ended.clear()

    try:
        while True:
            is_alone = bool(suspects) and not flying
            if is_alone:
                send([suspects.popleft()])
            elif not suspects and window.free(len(flying)):
                some = list(source.take(window.free(len(flying))))
                if some:
                    send(some)
            if ended:
                release()
            if not flying:
                source.check_end()
                return
            done = {future: flying.pop(future) for future in ends.of(flying)}
            for outcome in _results(window, done, unpack):
                if isinstance(outcome.error, WorkerLostError) and not is_alone:
                    # Another task on the same workers may have killed them: it is tried alone.
                    suspects.append(outcome.item)
                else:
                    yield from source.judged(outcome)
            ended += done
            del done
            if len(flying) > _FEW:
                # Before more is sent, or the scheduler would know too many tasks. Of few tasks,
                # the next one would wait for ten milliseconds, until the client sends again.
                release()
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
        self._jobs = Jobs(client)
        self._size = least
        self._next = -math.inf
        self._seen = time.monotonic()
        self._has_warned = False

    def free(self, flying: int) -> int:
        """Return how many may be sent now: none, or enough to be worth a message."""
        self.look()
        free = self._size - flying
        return free if free >= self._size // 8 else 0

    def gathered(self, futures: list[Future[object]]) -> list[Any]:
        """Return results, and meanwhile look: those that died with a worker are computed again."""
        loop: Any = self._client.loop
        gathering = asyncio.run_coroutine_threadsafe(
            self._client.gather(futures, asynchronous=True), loop.asyncio_loop
        )
        try:
            while not wait([gathering], _LOOK_SECONDS / 10).done:
                self.look()
            return list(gathering.result())
        finally:
            gathering.cancel()

    def look(self) -> None:
        """Ask from time to time how large the cluster is."""
        now = time.monotonic()
        if now < self._next:
            return
        with cluster_errors():
            threads = sum(self._client.nthreads().values())
            self._jobs.look()
        self._size = max(self._least, 2 * threads)
        self._next = now + (_LOOK_SECONDS if threads else 1)
        if threads:
            self._seen, self._has_warned = now, False
        else:
            self._wait_for_workers(now, config.no_workers_timeout())

    def _wait_for_workers(self, now: float, timeout: float) -> None:
        if now >= self._seen + timeout:
            raise ClusterError(
                f"the cluster has had no worker for {now - self._seen:.0f} s. Start workers and "
                "run again; resume=True skips what was finished, if this run had it too. The dask "
                'configuration "wkdask.no-workers-timeout" sets how long to wait.'
            )
        if not self._has_warned and now >= self._seen + min(_WARN_SECONDS, timeout / 2):
            self._has_warned = True
            warnings.warn(
                "the cluster has no worker; waiting for some", RuntimeWarning, stacklevel=2
            )


class _Ends:
    """Waits for the ends of futures.

    While few tasks are in flight, others may wait for them to begin, or a whole stage for the last
    one: the end of any wakes this thread at once. While they are many, workers have enough to do,
    and a look at all of them from time to time costs less than a message for each.
    """

    def __init__(self, window: _Window) -> None:
        self._window = window
        self._ended: SimpleQueue[Future[object]] = SimpleQueue()
        self._watched: WeakSet[Future[object]] = WeakSet()

    def of(self, flying: Collection[Future[object]]) -> list[Future[object]]:
        """Return those that have ended, well or not; at least one."""
        while True:
            if len(flying) <= _FEW:
                self._wait(flying)
            else:
                time.sleep(min(_PAUSE_SECONDS, len(flying) * _PAUSE_SECONDS / WINDOW))
            if done := [future for future in flying if future.done()]:
                return done
            self._window.look()

    def _wait(self, flying: Collection[Future[object]]) -> None:
        for future in flying:
            if future not in self._watched:
                self._watched.add(future)
                future.add_done_callback(self._ended.put)
        # Not for ever: a cluster may lose its last worker.
        with contextlib.suppress(Empty):
            self._ended.get(timeout=_PAUSE_SECONDS)


async def _release(futures: list[Future[object]]) -> None:
    for future in futures:
        future.release()
    # What it has put off is done before more is sent, or the scheduler would know too many tasks.
    await asyncio.sleep(0)


def _settle(client: Client, futures: list[Future[object]]) -> None:
    """Cancel what has not begun and wait for the rest, so that nothing writes afterwards."""
    while futures := [future for future in futures if not future.done()]:
        begun = {key for keys in client.processing().values() for key in keys}
        # Again each time: what ran on a worker that died meanwhile needs not begin elsewhere.
        client.cancel([future for future in futures if future.key not in begun])
        futures = [future for future in futures if future.key in begun]
        time.sleep(_PAUSE_SECONDS / 5)


_prepared: WeakSet[Client] = WeakSet()


def launch_calls(
    client: Client, call: Callable[[Any], Any], name: str | Callable[[Any], str]
) -> Launch:
    """Return a function that calls `call` on the workers, in tasks with this name."""
    travelling = Portable(call)
    mark = uuid.uuid4().hex
    sent = 0
    if client not in _prepared:
        _prepared.add(client)
        # All at once: workers that begin one after the other would import one after the other.
        client.run(travelling.prepare, wait=False, on_error="ignore")

    def launch(items: list[Any]) -> list[Future[object]]:
        nonlocal sent
        names = [name if isinstance(name, str) else name(item) for item in items]
        keys = [f"{each}-{mark}-{number}" for number, each in enumerate(names, sent)]
        sent += len(items)
        # Failures are results: the log of every worker would tell each of them.
        futures: list[Future[object]] = client.map(travelling.packed, items, key=keys, pure=False)
        return futures

    return launch


def _results(
    window: _Window, done: dict[Future[object], Any], unpack: Unpack | None
) -> Iterator[Outcome]:
    """Yield what became of futures that are finished, fetched in one message."""
    good = [future for future in done if future.status == "finished"]
    try:
        values = dict(zip(good, window.gathered(good), strict=True))
    except Exception:
        # A result was lost with its worker, and its task failed when it ran again.
        values = {}
    for future, item in done.items():
        outcome = (
            Outcome(item, values[future]) if future in values else _single(window, future, item)
        )
        if unpack is not None and outcome.error is None:
            outcome = Outcome(item, *unpack(outcome.value))
        yield outcome


def _single(window: _Window, future: Future[object], item: Any) -> Outcome:
    from distributed.scheduler import KilledWorker

    try:
        return Outcome(item, window.gathered([future])[0])
    except KilledWorker as error:
        return Outcome(item, error=_worker_lost(error))
    except Exception as error:
        if isinstance(error, ClusterError) and future.status != "error":
            raise  # not of the task
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
