"""Run a function over the chunks of a grid: graph, errors, receipts.

It knows dask graphs and chunk grids. What a chunk *is* (a view, a pair of views) is the caller's
secret: the work is any function of a chunk's position.
"""

from __future__ import annotations

import traceback
import uuid
from collections.abc import Callable
from concurrent.futures import Executor
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import dask.array as da
import numpy as np
from dask.layers import ArrayBlockIdDep
from distributed import Client
from numpy.typing import NDArray

from wkdask.chunking import ChunkGrid
from wkdask.errors import ArgumentError, ChunkErrors
from wkdask.geometry import Vec3
from wkdask.scheduling import is_on_worker, portable, refuse_query_planning, run

__all__ = ["ChunkReceipt", "OnError", "chunk_graph", "run_chunks"]

OnError = Literal["raise", "collect"]
Work = Callable[[Vec3], object]


@dataclass(frozen=True, slots=True)
class ChunkReceipt:
    """What remains of a chunk when it is done."""

    index: int
    """The chunk's number, from 0, x outermost and z fastest."""
    error: Exception | None = None
    """Why it failed, if failures are collected; a note names the chunk."""

    def __reduce__(self) -> tuple[Any, ...]:
        """Let an error that can't leave its process travel as one that can."""
        return ChunkReceipt, (self.index, self.error and portable(self.error))


def chunk_graph(work: Work, grid: ChunkGrid, *, on_error: OnError = "raise") -> da.Array:
    """Return the lazy run of `work` over a grid: an object array of receipts, one per chunk.

    The function is not called while the graph is built.

    Parameters
    ----------
    work
        Called with the position of each chunk in the grid; what it returns is dropped.
    grid
        The chunks.
    on_error
        `"raise"`: an exception of `work` is that of its task. `"collect"`: it is in the receipt.

    Raises
    ------
    ArgumentError
        If `on_error` is something else.
    """
    refuse_query_planning()
    if on_error not in ("raise", "collect"):
        raise ArgumentError(f'on_error is {on_error!r}, but must be "raise" or "collect".')
    ones = tuple((1,) * count for count in grid.shape)
    return da.blockwise(
        partial(_run_chunk, work, grid, on_error == "collect"),
        "xyz",
        ArrayBlockIdDep(ones),
        "xyz",
        name=f"wkdask-chunks-{uuid.uuid4().hex}",
        align_arrays=False,
        dtype=object,
        meta=np.empty((0,) * 3, dtype=object),
    )


def run_chunks(
    graph: da.Array, executor: Client | Executor | None = None, *, progress: bool = False
) -> None:
    """Compute the result of `chunk_graph`.

    Raises
    ------
    Exception
        The first exception of the function, with a note that names the chunk; chunks that have not
        started are not run.
    ChunkErrors
        All of them, if failures are collected.
    """
    receipts = run(graph, executor, progress=progress)
    errors = [receipt.error for receipt in receipts.flat if receipt.error is not None]
    if errors:
        raise ChunkErrors(f"{len(errors)} of {receipts.size} chunks failed", errors)


def _run_chunk(work: Work, grid: ChunkGrid, collect: bool, position: Vec3) -> NDArray[np.object_]:
    index = grid.index(position)
    receipt = ChunkReceipt(index)
    try:
        work(position)
    except Exception as error:
        error.add_note(f"in chunk {index}, {grid.chunk_box(position)}")
        if not collect and is_on_worker():
            # distributed would drop an error that can't be pickled, and the note with it.
            raise portable(error) from error.__cause__
        if not collect:
            raise
        # The line that failed stays known, but not the arrays that were in use there.
        traceback.clear_frames(error.__traceback__)
        receipt = ChunkReceipt(index, error)
    return _as_block(receipt)


def _as_block(receipt: ChunkReceipt) -> NDArray[np.object_]:
    block: NDArray[Any] = np.empty((1, 1, 1), dtype=object)
    block[0, 0, 0] = receipt
    return block
