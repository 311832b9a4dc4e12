"""Calls without number, of which only a window is in flight at any time.

It sends them to a cluster or a pool, and knows nothing of chunks or voxels. Items are taken from an
iterator as places get free, so that a million of them cost no more memory than a few hundred.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from concurrent.futures import Executor
from typing import Any

from wkdask.runtime.cluster import launch_calls, on_cluster
from wkdask.runtime.executors import ExecutorLike, active_client, check_cluster, local_pool
from wkdask.runtime.pickling import unpacked
from wkdask.runtime.queues import WAITING, Outcomes, on_pool

__all__ = ["WAITING", "stream_calls", "task_name"]


def task_name(operation: str, directory: str) -> str:
    """Return what the tasks of a mag are called: operation, layer and mag.

    Dask's dashboard has one colour and one bar for all tasks whose names are the same before the
    first hyphen. So the name has none.

    Examples
    --------
    >>> task_name("downsample", "/lab/tissue/my-cells/2-2-1")
    'downsample my_cells 2x2x1'
    """
    layer, mag = ("", *directory.split("/"))[-2:]
    mag = mag.partition(".")[0].replace("-", "x")
    return f"{operation} {layer} {mag}".replace("-", "_")


def stream_calls(
    call: Callable[[Any], Any],
    items: Iterable[Any],
    executor: ExecutorLike = None,
    *,
    name: str | Callable[[Any], str],
    retries: int = 0,
) -> Outcomes:
    """Call a function on each item, on a cluster or in a pool; see `on_cluster` and `on_pool`.

    Items go off in the order of the iterator. Where the next one depends on what becomes of others,
    the iterator yields `WAITING`: it is asked again when the next outcome was yielded.

    Parameters
    ----------
    name
        What tasks are called on a dashboard, all of them or the one of an item; see `task_name`.
    """
    client = active_client(executor)
    if client is not None:
        check_cluster(client)
        launch = launch_calls(client, call, name)
        yield from on_cluster(client, launch, items, retries=retries, unpack=unpacked)
        return
    with local_pool(executor if isinstance(executor, Executor) else None) as pool:
        yield from on_pool(call, items, pool, retries=retries)
