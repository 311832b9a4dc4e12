"""Where dask collections are computed: a cluster, an executor, or dask's own scheduler.

It knows schedulers, and must not know volumes or views.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import sys
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor, wait
from dataclasses import dataclass
from functools import partial
from pkgutil import resolve_name
from typing import TYPE_CHECKING, Any, TypeAlias, TypeGuard
from weakref import WeakSet

import cloudpickle
import dask
import dask.local
import dask.multiprocessing
import dask.threaded
from dask.base import DaskMethodsMixin, get_scheduler
from dask.local import get_async

from wkdask.errors import ArgumentError, ClusterError, WkdaskError
from wkdask.runtime.pickling import pack_exception

if TYPE_CHECKING:
    from distributed import Client

__all__ = [
    "ExecutorLike",
    "Host",
    "active_client",
    "check_cluster",
    "check_executor",
    "cluster_errors",
    "hosts_of",
    "local_pool",
    "refuse_query_planning",
    "run",
    "threads_of",
    "workers_of",
]


ExecutorLike: TypeAlias = "Client | Executor | None"
"""Where tasks run: on a cluster, in a pool, or, if None, where dask is configured to run them."""


def run(collection: DaskMethodsMixin, executor: ExecutorLike = None) -> Any:
    """Compute a dask collection and return its value.

    Parameters
    ----------
    collection
        What to compute.
    executor
        A `distributed.Client`; any `concurrent.futures.Executor`; or None for dask's current
        scheduler: the active client if there is one, else what dask is configured for (threads).
    """
    check_executor(executor)
    client = active_client(executor)
    if client is not None:
        return collection.compute(scheduler=client)
    return _run_here(collection, executor if isinstance(executor, Executor) else None)


def check_executor(executor: object) -> None:
    """Raise unless `executor` is something that runs tasks."""
    if executor is not None and not (isinstance(executor, Executor) or _is_client(executor)):
        advice = ""
        if hasattr(executor, "scheduler_address"):
            advice = " Of a cluster, take a client: distributed.Client(cluster)."
        raise ArgumentError(
            f"executor is {executor!r}, but must be a distributed.Client, a "
            f"concurrent.futures.Executor, or None for dask's current scheduler.{advice}"
        )


def check_cluster(client: Client) -> None:
    """Raise unless wkdask can be imported all over a cluster; warn of other versions there.

    A cluster is asked once it has workers; those that join it later are taken for like the others.
    """
    if client in _checked_clients:
        return
    # By a function of the standard library, which every process can unpickle.
    where = "wkdask:__version__"
    here = resolve_name(where)
    try:
        with cluster_errors():
            found = {"the scheduler": client.run_on_scheduler(resolve_name, where)}
            found |= _answers(client.run(resolve_name, where, on_error="return"))
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


def _answers(answers: dict[str, Any]) -> dict[str, Any]:
    """Return what workers answered, without those that died; raise what else went wrong."""
    for answer in answers.values():
        if isinstance(answer, Exception) and not isinstance(answer, OSError):
            raise answer
    return {place: a for place, a in answers.items() if not isinstance(a, Exception)}


_checked_clients: WeakSet[Client] = WeakSet()


@contextlib.contextmanager
def cluster_errors() -> Iterator[None]:
    """Raise `ClusterError` if the cluster does not answer inside the block."""
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


@dataclass(frozen=True, slots=True)
class Host:
    """A process that runs tasks in threads, or a machine that runs them in processes."""

    name: str
    threads: int
    limit_bytes: int
    """The limit of memory; 0 if there is none."""


def hosts_of(executor: ExecutorLike) -> Iterator[Host]:
    """Yield the workers of a cluster, or this machine."""
    client = active_client(executor)
    if client is None:
        from distributed.system import MEMORY_LIMIT

        pool = executor if isinstance(executor, Executor) else None
        yield Host("this machine", workers_of(pool), int(MEMORY_LIMIT))
        return
    with cluster_errors():
        workers = client.scheduler_info(n_workers=-1)["workers"]
    for address, worker in workers.items():
        yield Host(f"worker {address}", worker["nthreads"], worker["memory_limit"])


def threads_of(executor: ExecutorLike) -> int:
    """Return how many tasks run at a time; at least one, because workers may be yet to come."""
    client = active_client(executor)
    if client is None:
        return workers_of(executor if isinstance(executor, Executor) else None)
    return max(1, sum(host.threads for host in hosts_of(client)))


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


def _forget_threads() -> None:
    """Forget pools and clients of the parent in a forked process, which has none of their threads.

    Whatever would wait for these threads would wait for ever.
    """
    dask.threaded.default_pool = None
    dask.threaded.pools.clear()
    if distributed := sys.modules.get("distributed"):
        _inherited.update(getattr(distributed.Client, "_instances", ()))


_inherited: WeakSet[Client] = WeakSet()
os.register_at_fork(after_in_child=_forget_threads)


def refuse_query_planning() -> None:
    """Raise if dask arrays are expressions, which can't be stored or sliced lazily."""
    if dask.config.get("array.query-planning", False):
        raise WkdaskError(
            "dask's array.query-planning is on, but its array expressions can neither be stored "
            'nor sliced lazily. Switch it off: dask.config.set({"array.query-planning": False}).'
        )


def active_client(executor: ExecutorLike) -> Client | None:
    """Return the client that `run` would use now, if it is one."""
    owner = executor or getattr(get_scheduler(), "__self__", None)
    if not _is_client(owner):
        return None
    _check_client(owner)
    return owner


def _is_client(value: object) -> TypeGuard[Client]:
    """Tell whether something is a client; where distributed was not imported, nothing is."""
    distributed = sys.modules.get("distributed")
    return distributed is not None and isinstance(value, distributed.Client)


def _check_client(client: Client) -> None:
    """Raise unless one can wait for what a client does."""
    if client in _inherited:
        raise ClusterError(
            "this process was forked from the one that made the client, and has none of its "
            'threads: make a client here, or start processes by multiprocessing\'s "spawn".'
        )
    if client.status in ("closed", "closing"):
        raise ClusterError(f"the client {client!r} is closed: make a new one, Client(address).")
    if client.asynchronous:
        raise ArgumentError(
            "the client is asynchronous, but wkdask waits for its results: make one without "
            "asynchronous=True, and call wkdask in a thread, such as by asyncio.to_thread."
        )


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
        raise_exception=dask.local.reraise,
    )


def _keep_exception(error: BaseException, _dumps: object) -> tuple[BaseException, object]:
    return error, error.__traceback__
