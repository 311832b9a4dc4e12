"""Where dask collections are computed: a cluster, an executor, or dask's own scheduler.

It knows schedulers and progress bars, and nothing of volumes or views.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import time
import warnings
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor, wait
from datetime import timedelta
from functools import partial
from pkgutil import resolve_name
from typing import Any
from weakref import WeakSet

import cloudpickle
import dask
import dask.array
import dask.local
import dask.multiprocessing
import dask.threaded
from dask.base import get_scheduler
from dask.diagnostics import ProgressBar
from dask.local import get_async
from distributed import Client
from distributed import progress as show_progress

from wkdask.errors import ArgumentError, ClusterError, WkdaskError
from wkdask.runtime.pickling import pack_exception

__all__ = [
    "Bar",
    "active_client",
    "asking",
    "check_cluster",
    "check_executor",
    "local_pool",
    "refuse_query_planning",
    "run",
    "run_all",
    "workers_of",
]


def run(
    collection: Any,
    executor: Client | Executor | None = None,
    *,
    progress: bool = False,
) -> Any:
    """Compute a dask collection and return its value.

    Parameters
    ----------
    collection
        What to compute.
    executor
        A `distributed.Client`; any `concurrent.futures.Executor`; or None for dask's current
        scheduler: the active client if there is one, else what dask is configured for (threads).
    progress
        Whether to show a bar while it runs, in a terminal or in Jupyter.

    Raises
    ------
    ArgumentError
        If `executor` is something else.
    """
    check_executor(executor)
    client = active_client(executor)
    if client is not None and progress:
        return _run_with_bar(collection, client)
    if client is not None:
        return collection.compute(scheduler=client)
    with ProgressBar() if progress else contextlib.nullcontext():
        return _run_here(collection, executor)


def run_all(
    tasks: Iterable[Callable[[], Any]],
    executor: Client | Executor | None = None,
    *,
    progress: bool = False,
) -> list[Any]:
    """Call functions that take nothing, in parallel, and return what they return, in order.

    See `run` for the other arguments.
    """
    calls = [dask.delayed(task, pure=False)() for task in tasks]
    results: list[Any] = run(dask.delayed(calls), executor, progress=progress)
    return results


def check_executor(executor: object) -> None:
    """Raise unless `executor` is something that runs tasks.

    Raises
    ------
    ArgumentError
        With what is allowed.
    """
    if executor is not None and not isinstance(executor, Client | Executor):
        raise ArgumentError(
            f"executor is {executor!r}, but must be a distributed.Client, a "
            "concurrent.futures.Executor, or None for dask's current scheduler."
        )


def check_cluster(client: Client) -> None:
    """Raise unless wkdask can be imported all over a cluster; warn of other versions there.

    A cluster is asked once it has workers; those that join it later are taken for like the others.

    Raises
    ------
    ClusterError
        If the scheduler or a worker can't import wkdask, or does not answer.
    """
    if client in _checked_clients:
        return
    # By a function of the standard library, which every process can unpickle.
    where = "wkdask:__version__"
    here = resolve_name(where)
    try:
        with asking():
            found = {"the scheduler": client.run_on_scheduler(resolve_name, where)}
            found |= client.run(resolve_name, where)
    except ImportError as error:
        raise ClusterError(
            f"the scheduler or a worker of this cluster can't import wkdask ({error}). Install it "
            f"in its environment too: pip install wkdask=={here}"
        ) from None
    others = {place: version for place, version in found.items() if version != here}
    if others:
        place, version = next(iter(others.items()))
        warnings.warn(
            f"here is wkdask {here}, but {version} on {place} and {len(others) - 1} other places "
            "of the cluster. Install the same version everywhere.",
            RuntimeWarning,
            stacklevel=2,
        )
    if len(found) > 1:
        _checked_clients.add(client)


_checked_clients: WeakSet[Client] = WeakSet()


@contextlib.contextmanager
def asking() -> Iterator[None]:
    """Let it be an error of ours that a cluster does not answer a question asked meanwhile."""
    try:
        yield
    except OSError as error:
        raise ClusterError(
            f"the scheduler or a worker does not answer, so it was lost ({error}). Run again on a "
            "cluster that works; resume=True skips what was finished, if this run had it too."
        ) from None


def workers_of(executor: Executor | None) -> int:
    """Return how many tasks a pool, or without one dask's local scheduler, runs at a time."""
    executor = executor or _configured_executor()
    if executor is None and get_scheduler() is dask.local.get_sync:
        return 1
    configured = dask.config.get("num_workers", None) if executor is None else None
    return configured or getattr(executor, "_max_workers", None) or os.cpu_count() or 1


def _configured_executor() -> Executor | None:
    configured = dask.config.get("scheduler", None)
    return configured if isinstance(configured, Executor) else None


@contextlib.contextmanager
def local_pool(executor: Executor | None) -> Iterator[Executor]:
    """Provide a pool: the one that is given, or what dask is configured for (threads)."""
    executor = executor or _configured_executor()
    get = get_scheduler() or dask.threaded.get
    if executor is not None:
        yield executor
    elif get is dask.threaded.get:
        with _own_threads() as pool:
            yield pool
    elif get is dask.local.get_sync:
        yield dask.local.synchronous_executor
    elif get is dask.multiprocessing.get:
        spawn = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(workers_of(None), mp_context=spawn) as pool:
            yield pool
    else:
        yield _ByScheduler(get)


def _own_threads() -> ThreadPoolExecutor:
    """Return a pool of our own, because tasks that run can't be waited for in the one of dask."""
    return ThreadPoolExecutor(workers_of(None), thread_name_prefix="wkdask")


class _ByScheduler(Executor):
    """Calls functions one after the other, by a dask scheduler of the user's choice."""

    _max_workers = 1

    def __init__(self, get: Callable[..., Any]) -> None:
        self._get = get

    def submit(self, function: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        future: Future[Any] = Future()
        try:
            call = partial(function, *args, **kwargs)
            future.set_result(self._get({"wkdask-call": (call,)}, "wkdask-call"))
        except BaseException as error:
            future.set_exception(error)
        return future


class Bar:
    """A bar in the terminal or in Jupyter, for work of which the amount is known."""

    _WIDTH, _SECONDS = 20, 0.1

    def __init__(self, total: int, is_shown: bool) -> None:
        self._total, self._is_shown = total, is_shown
        self._start = self._next = time.perf_counter()
        self._done = self._skipped = self._failed = self._voxels = self._width = 0

    def __enter__(self) -> Bar:
        return self

    def __exit__(self, *exception: object) -> None:
        if self._is_shown:
            self._print()
            print(flush=True)  # noqa: T201

    def show(self, done: int, *, skipped: int = 0, failed: int = 0, voxels: int = 0) -> None:
        """Show how far the work is, unless that was shown a moment ago.

        Parameters
        ----------
        done
            How much needs no more work, with what was skipped and what failed.
        skipped
            How much of it took no time, and says nothing of the time that is left.
        failed
            How much of it failed.
        voxels
            Voxels that were worked on so far.
        """
        self._done, self._skipped, self._failed, self._voxels = done, skipped, failed, voxels
        if self._is_shown and time.perf_counter() >= self._next:
            self._print()
            self._next = time.perf_counter() + self._SECONDS

    def _print(self) -> None:
        line = self._line(max(time.perf_counter() - self._start, 1e-9))
        # Blanks hide what is left of a longer line.
        print(f"\r{line:{self._width}}", end="", flush=True)  # noqa: T201
        self._width = len(line)

    def _line(self, seconds: float) -> str:
        share = self._done / self._total if self._total else 1.0
        worked, left = self._done - self._skipped, self._total - self._done
        parts = [
            f"[{'#' * int(share * self._WIDTH):{self._WIDTH}}]",
            f"{share:4.0%}",
            f"{self._done:,} of {self._total:,}",
        ]
        if self._voxels:
            rate = self._voxels / seconds / 1e6
            parts.append(f"{rate:,.{0 if rate >= 10 else 1}f} MVx/s")
        rest = f", {_duration(seconds * left / worked)} left" if worked and left > 0 else ""
        parts.append(_duration(seconds) + rest)
        if self._failed:
            parts.append(f"{self._failed:,} failed")
        return " | ".join(parts)


def _duration(seconds: float) -> str:
    """Return a time as `4.2 s` or `1:02:03`."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    return str(timedelta(seconds=round(seconds)))


def refuse_query_planning() -> None:
    """Raise if dask arrays are expressions, which can't be stored or sliced lazily."""
    if dask.config.get("array.query-planning", False):
        raise WkdaskError(
            "dask's array.query-planning is on, but its array expressions can neither be stored "
            'nor sliced lazily. Switch it off: dask.config.set({"array.query-planning": False}).'
        )


def active_client(executor: Client | Executor | None) -> Client | None:
    """Return the client that `run` would use now, if it is one."""
    if isinstance(executor, Client):
        return executor
    owner = None if executor else getattr(get_scheduler(), "__self__", None)
    return owner if isinstance(owner, Client) else None


def _run_with_bar(collection: Any, client: Client) -> Any:
    future = client.compute(collection)
    try:
        # The text bar blocks until all is done, also in Jupyter, where the widget would not.
        show_progress(future, notebook=False)
        return future.result()
    finally:
        future.cancel()


def _run_here(collection: Any, executor: Executor | None) -> Any:
    if executor is not None:
        return _run_on_executor(collection, executor)
    if get_scheduler(collections=[collection]) is not dask.threaded.get:
        return collection.compute()
    with _own_threads() as pool:
        return _run_on_executor(collection, pool)


def _run_on_executor(collection: Any, executor: Executor) -> Any:
    unfinished: set[Future[Any]] = set()

    def submit(*call: Any) -> Future[Any]:
        future = executor.submit(*call)
        unfinished.add(future)
        future.add_done_callback(unfinished.discard)
        return future

    try:
        return collection.compute(scheduler=_getter(executor, submit))
    finally:
        # After an error no task starts, and none goes on writing behind the caller's back.
        wait([future for future in list(unfinished) if not future.cancel()])


def _getter(executor: Executor, submit: Callable[..., Future[Any]]) -> Callable[..., Any]:
    """Return a dask scheduler that runs tasks by `submit`."""
    get = partial(get_async, submit, workers_of(executor))
    if isinstance(executor, ThreadPoolExecutor):
        return partial(get, pack_exception=_keep_exception)
    return partial(
        get,
        dumps=cloudpickle.dumps,
        loads=cloudpickle.loads,
        pack_exception=pack_exception,
        raise_exception=dask.multiprocessing.reraise,
    )


def _keep_exception(error: BaseException, _dumps: object) -> tuple[BaseException, object]:
    return error, error.__traceback__
