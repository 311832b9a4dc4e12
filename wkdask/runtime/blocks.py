"""Blocks of a lazy array without number, of which only a window is in flight at any time.

It cuts windows from the array's graph, and knows nothing of chunks or voxels. It imports
`dask.array`, which takes a second, so that only runs of lazy arrays import it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from functools import partial
from itertools import chain, islice, product
from typing import Any

import dask
import dask.array as da
from dask.base import DaskMethodsMixin
from dask.callbacks import Callback
from distributed import Client, Future

from wkdask.runtime.cluster import WINDOW, on_cluster
from wkdask.runtime.executors import (
    ExecutorLike,
    active_client,
    check_cluster,
    refuse_query_planning,
    run,
)
from wkdask.runtime.queues import Outcome, Outcomes

__all__ = ["stream_blocks"]

# A window may need so many times the tasks of its share: the rest is computed more than once.
_SHARED_WORK = 1.5


def stream_blocks(
    array: da.Array,
    blocks: Iterable[tuple[int, ...]],
    executor: ExecutorLike = None,
    *,
    retries: int = 0,
) -> Outcomes:
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


class _Blocks(DaskMethodsMixin):
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
) -> list[Future[object]]:
    keys = [(array.name, *block) for block in blocks]
    # Fused tasks would differ between windows, under the same keys.
    with dask.config.set({"optimization.fuse.active": False}):
        graph = da.Array.__dask_optimize__(array.dask, keys)
    futures: list[Future[object]] = client.get(graph, keys, sync=False, retries=retries)
    return futures


def _on_this_machine(
    array: da.Array, blocks: list[tuple[int, ...]], executor: Any, retries: int
) -> Iterator[Outcome]:
    items = {(array.name, *block): block for block in blocks}
    done: dict[Any, Any] = {}

    def note(key: Any, value: Any, *_: object) -> None:
        if key in items:
            done[key] = value

    for left in reversed(range(retries + 1)):
        missing = [block for key, block in items.items() if key not in done]
        try:
            # What ends well is known from here even if the run fails, and not tried again.
            with Callback(posttask=note):
                values = run(_Blocks(array, missing), executor)
        except Exception:
            if not left:
                raise
        else:
            done.update(zip([(array.name, *block) for block in missing], values, strict=True))
            yield from (Outcome(block, done[key]) for key, block in items.items())
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
