"""Where dask collections are computed: a cluster, an executor, or dask's own scheduler.

It knows schedulers and progress bars, and nothing of volumes or views.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterable
from concurrent.futures import Executor, Future, ThreadPoolExecutor, wait
from functools import partial
from typing import Any

import cloudpickle
import dask
import dask.array
import dask.multiprocessing
import dask.threaded
from dask.base import get_scheduler
from dask.diagnostics import ProgressBar
from dask.local import get_async
from distributed import Client, get_worker
from distributed import progress as show_progress

from wkdask.errors import ArgumentError, WkdaskError

__all__ = [
    "active_client",
    "is_on_worker",
    "portable",
    "refuse_query_planning",
    "run",
    "run_all",
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
    if executor is not None and not isinstance(executor, Client | Executor):
        raise ArgumentError(
            f"executor is {executor!r}, but must be a distributed.Client, a "
            "concurrent.futures.Executor, or None for dask's current scheduler."
        )
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
    workers = dask.config.get("num_workers", None) or os.cpu_count() or 1
    # A pool of our own, because tasks that run can't be waited for in the one of dask.
    with ThreadPoolExecutor(workers, thread_name_prefix="wkdask") as pool:
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
    workers = getattr(executor, "_max_workers", None) or os.cpu_count() or 1
    get = partial(get_async, submit, workers)
    if isinstance(executor, ThreadPoolExecutor):
        return partial(get, pack_exception=_keep_exception)
    return partial(
        get,
        dumps=cloudpickle.dumps,
        loads=cloudpickle.loads,
        pack_exception=_pack_exception,
        raise_exception=dask.multiprocessing.reraise,
    )


def is_on_worker() -> bool:
    """Return whether this runs as a task of a distributed worker."""
    try:
        get_worker()
    except ValueError:
        return False
    return True


def portable(error: Exception) -> Exception:
    """Return the error, or one of ours that says the same if it can't leave its process."""
    try:
        cloudpickle.loads(cloudpickle.dumps(error))
    except Exception:
        stand_in = WkdaskError(repr(error))
        stand_in.__notes__ = list(getattr(error, "__notes__", ()))
        return stand_in
    return error


def _pack_exception(error: BaseException, dumps: Callable[[object], bytes]) -> Any:
    travels = portable(error) if isinstance(error, Exception) else error
    return dask.multiprocessing.pack_exception(travels, dumps)


def _keep_exception(error: BaseException, _dumps: object) -> tuple[BaseException, object]:
    return error, error.__traceback__
