"""Run a function over the chunks of a grid: streamed, or as a lazy graph; errors and reports.

It knows chunk grids, receipts and journals. What a chunk *is* (a view, a pair of views) is the
caller's secret: the work is any function of a chunk's position.
"""

from __future__ import annotations

import logging
import os
import time
import traceback
import uuid
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass, field, fields, replace
from functools import partial
from importlib.util import find_spec
from itertools import product
from typing import TYPE_CHECKING, Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from wkdask.errors import ArgumentError, ChunkErrors
from wkdask.geometry import BoundingBox, Vec3, whole
from wkdask.grids import ChunkGrid
from wkdask.runtime.executors import ExecutorLike, check_executor, refuse_query_planning
from wkdask.runtime.journal import Journal
from wkdask.runtime.pickling import ByValue, portable
from wkdask.runtime.progress import Progress
from wkdask.runtime.queues import Outcomes
from wkdask.runtime.stream import stream_calls
from wkdask.show import html
from wkdask.storage.volume import count_writes

if TYPE_CHECKING:
    import dask.array as da

__all__ = [
    "ChunkFailure",
    "ChunkReceipt",
    "Grid",
    "OnError",
    "Places",
    "Run",
    "RunReport",
    "Tally",
    "chunk_graph",
    "run_chunk",
    "run_chunks",
    "run_graph",
    "told_briefly",
]

OnError = Literal["raise", "collect"]
Work = Callable[[Vec3], object]

_LOG = logging.getLogger("wkdask")
_SHOWN_FAILURES = 5

# Where the code lies that runs a user's function.
_NOT_OF_USERS = (
    os.path.dirname(os.path.dirname(__file__)),
    *(
        os.path.dirname(spec.origin)
        for spec in map(find_spec, ("dask", "distributed", "concurrent.futures"))
        if spec is not None and spec.origin is not None
    ),
)


@dataclass(frozen=True, slots=True)
class Run:
    """How chunks are run, as the user said."""

    executor: ExecutorLike = None
    on_error: OnError = "raise"
    retries: int = 0
    progress: bool = False
    tag: str = field(default_factory=lambda: uuid.uuid4().hex[:16])
    """What marks unfinished files of this run, so that those of dead workers can be swept."""
    is_resumed: bool = False
    """Whether an earlier run of the same job may have left some."""
    name: str = "chunks"
    """What is done, for dashboards: an operation, or what `task_name` makes of it."""

    def __post_init__(self) -> None:
        check_executor(self.executor)
        _check_on_error(self.on_error)
        if whole(self.retries, "retries") < 0:
            raise ArgumentError(f"retries is {self.retries}, but must not be negative.")

    def of(self, journal: Journal | None) -> Run:
        """Return the run of a job, which also sweeps what earlier runs of it left over."""
        return self if journal is None else replace(self, tag=journal.job, is_resumed=True)


@dataclass(frozen=True, slots=True)
class ChunkFailure:
    """A chunk that could not be finished."""

    index: int
    """The chunk's number, from 0, x outermost and z fastest."""
    box: BoundingBox
    """Its voxels, in absolute positions."""
    error: Exception
    """Why, after all retries."""

    def __str__(self) -> str:
        return f"chunk {self.index}, {self.box}: {type(self.error).__name__}: {self.error}"


@dataclass(frozen=True, slots=True, repr=False)
class RunReport:
    """How a run went; what chunk functions and stores return."""

    chunks: int
    """How many there are."""
    done: int = 0
    """How many ran to their end now."""
    skipped: int = 0
    """How many were finished by an earlier run that this one resumed."""
    failures: tuple[ChunkFailure, ...] = ()
    """Those that failed, by their numbers."""
    voxels: int = 0
    """Voxels written by tasks that ended well, counted once per channel."""
    size_bytes: int = 0
    """Bytes that were written to files for them."""
    seconds: float = 0.0
    """From the call to its end."""

    @property
    def failed(self) -> int:
        """How many failed."""
        return len(self.failures)

    @property
    def ok(self) -> bool:
        """Whether every chunk is done, now or by an earlier run."""
        return self.done + self.skipped == self.chunks

    def as_dict(self) -> dict[str, object]:
        """Return the report as plain values, ready for JSON; failures as text."""
        facts: dict[str, object] = {each.name: getattr(self, each.name) for each in fields(self)}
        return facts | {"failures": [str(failure) for failure in self.failures]}

    def __repr__(self) -> str:
        """Return the counts, which stay short however much failed."""
        return (
            f"RunReport(chunks={self.chunks}, done={self.done}, skipped={self.skipped}, "
            f"failed={self.failed}, voxels={self.voxels}, size_bytes={self.size_bytes}, "
            f"seconds={self.seconds:.1f})"
        )

    def __str__(self) -> str:
        return "\n".join([_sentence(self), *_failure_lines(self)])

    def _repr_html_(self) -> str:
        """Return a card, as Jupyter shows it."""
        parts = [html.facts(_rows(self)), html.items(_failure_lines(self))]
        return html.card("RunReport", "", parts)


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


def run_chunks(work: Work, grid: ChunkGrid, run: Run, journal: Journal | None = None) -> RunReport:
    """Call `work` for each chunk, with a bounded number of chunks in flight.

    Parameters
    ----------
    work
        Called with the position of each chunk in the grid; what it returns is dropped.
    grid
        The chunks.
    run
        Where, and what happens after an exception.
    journal
        Where chunks that are done are noted; those that it knows are skipped.
    """
    tally = Tally(grid, run)
    call = partial(run_chunk, work, grid, journal, run.tag)
    outcomes = stream_calls(
        call, _to_do(grid, journal, tally), run.executor, name=run.name, retries=run.retries
    )
    return tally.follow(outcomes)


class Places(Protocol):
    """Chunks that have a place each."""

    def __len__(self) -> int: ...

    def index(self, position: Any) -> int:
        """Return the number of a chunk."""

    def chunk_box(self, position: Any) -> BoundingBox:
        """Return the voxels of a chunk, in absolute positions."""


class Grid(Places, Protocol):
    """Chunks in rows and columns, such as a `ChunkGrid`."""

    @property
    def shape(self) -> Vec3:
        """Chunks per axis, `(x, y, z)`."""


def run_graph(graph: da.Array, grid: Grid, run: Run, journal: Journal | None = None) -> RunReport:
    """Compute a lazy array whose blocks do the work of the chunks, in windows of it.

    Parameters
    ----------
    graph
        One block `(0, x, y, z)` per chunk; its value is the voxels and bytes that were written.
    grid, run, journal
        As in `run_chunks`.
    """
    from wkdask.runtime.blocks import stream_blocks

    tally = Tally(grid, run)
    blocks = ((0, *position) for position in _to_do(grid, journal, tally))
    outcomes = stream_blocks(graph, blocks, run.executor, retries=run.retries)
    return tally.follow(
        replace(outcome, item=outcome.item[1:], value=outcome.value and outcome.value.item())
        for outcome in outcomes
    )


def _to_do(grid: Grid, journal: Journal | None, tally: Tally) -> Iterator[Vec3]:
    """Yield the positions of the chunks that a journal, if any, does not know as done."""
    x, y, z = map(range, grid.shape)
    for position in product(x, y, z):
        if journal and journal.is_done(grid.index(position), grid.chunk_box(position)):
            tally.skip()
        else:
            yield position


class Tally:
    """Counts what becomes of chunks, and shows it."""

    def __init__(self, grid: Places, run: Run) -> None:
        self._grid = grid
        self._run = run
        self._start = time.perf_counter()
        self._skipped = 0
        self._done = 0
        self._voxels = 0
        self._size_bytes = 0
        self._failures: list[ChunkFailure] = []

    def skip(self) -> None:
        """Count a chunk that was done before."""
        self._skipped += 1

    def follow(self, outcomes: Outcomes) -> RunReport:
        """Count outcomes until there are no more, or one is a failure that counts."""
        with closing(outcomes), Progress(len(self._grid), self._run.progress) as bar:
            for outcome in outcomes:
                if outcome.error is not None:
                    self._note_failure(outcome.item, outcome.error)
                else:
                    self._done += 1
                    voxels, size_bytes = outcome.value
                    self._voxels += voxels
                    self._size_bytes += size_bytes
                self._show(bar)
            # What was skipped last, or all.
            self._show(bar)
        report = self._report()
        if self._failures:
            errors = [failure.error for failure in report.failures]
            group = ChunkErrors(f"{len(errors)} of {report.chunks} chunks failed", errors)
            group.report = report
            raise group
        return report

    def _show(self, bar: Progress) -> None:
        failed = len(self._failures)
        done = self._done + self._skipped + failed
        bar.show(done, skipped=self._skipped, failed=failed, voxels=self._voxels)

    def _note_failure(self, position: Any, error: Exception) -> None:
        index, box = self._grid.index(position), self._grid.chunk_box(position)
        note = _note(index, box)
        if note not in getattr(error, "__notes__", ()):
            error.add_note(note)
        if self._run.on_error == "raise":
            raise error
        # The line that failed stays known, but not the arrays that were in use there.
        traceback.clear_frames(error.__traceback__)
        self._failures.append(ChunkFailure(index, box, error))

    def _report(self) -> RunReport:
        return RunReport(
            chunks=len(self._grid),
            done=self._done,
            skipped=self._skipped,
            failures=tuple(sorted(self._failures, key=lambda failure: failure.index)),
            voxels=self._voxels,
            size_bytes=self._size_bytes,
            seconds=time.perf_counter() - self._start,
        )


def told_briefly(error: Exception) -> Exception:
    """Return an error whose traceback begins in the user's code, if it went through some."""
    trace = error.__traceback__
    while trace is not None and trace.tb_frame.f_code.co_filename.startswith(_NOT_OF_USERS):
        trace = trace.tb_next
    return error if trace is None else error.with_traceback(trace)


def chunk_graph(
    work: Work, grid: ChunkGrid, *, name: str = "chunks", on_error: OnError = "raise"
) -> da.Array:
    """Return the lazy run of `work` over a grid: an object array of receipts, one per chunk.

    The function is not called while the graph is built. A graph of many thousand chunks costs the
    scheduler seconds and gigabytes, which `run_chunks` does not.

    Parameters
    ----------
    work
        Called with the position of each chunk in the grid; what it returns is dropped.
    grid
        The chunks.
    name
        What tasks are called on a dashboard.
    on_error
        `"raise"`: an exception of `work` is that of its task. `"collect"`: it is in the receipt.
    """
    import dask.array as da
    from dask.layers import ArrayBlockIdDep

    refuse_query_planning()
    _check_on_error(on_error)
    ones = tuple((1,) * count for count in grid.shape)
    receipts: da.Array = da.blockwise(
        ByValue(partial(_lazy_chunk, work, grid, on_error == "collect")),
        "xyz",
        ArrayBlockIdDep(ones),
        "xyz",
        name=f"{name}-{uuid.uuid4().hex}",
        align_arrays=False,
        dtype=object,
        meta=np.empty((0,) * 3, dtype=object),
    )
    return receipts


def run_chunk(
    work: Callable[[Any], object], grid: Places, journal: Journal | None, tag: str, position: Any
) -> tuple[int, int]:
    """Run one chunk, where its task runs, and return the voxels and bytes that it wrote.

    An exception gets a note that names the chunk. The journal, if any, learns of its end, and
    unfinished files carry the tag. The log `wkdask` of the process tells of each chunk.
    """
    index, box = grid.index(position), grid.chunk_box(position)
    start = time.perf_counter()
    with count_writes(tag) as written:
        try:
            work(position)
            if journal is not None:
                journal.record(index, box)
        except Exception as error:
            _LOG.info("chunk %d, %s: failed: %r", index, box, error)
            if journal is not None:
                journal.note_failure(index, box, error)
            error.add_note(_note(index, box))
            raise
    seconds = time.perf_counter() - start
    _LOG.info("chunk %d, %s: %d bytes in %.2f s", index, box, written.size_bytes, seconds)
    return written.voxels, written.size_bytes


def _lazy_chunk(work: Work, grid: ChunkGrid, collect: bool, position: Vec3) -> NDArray[np.object_]:
    receipt = ChunkReceipt(grid.index(position))
    try:
        run_chunk(work, grid, None, "", position)
    except Exception as error:
        if not collect:
            raise
        traceback.clear_frames(error.__traceback__)
        receipt = ChunkReceipt(receipt.index, error)
    block: NDArray[Any] = np.empty((1, 1, 1), dtype=object)
    block[0, 0, 0] = receipt
    return block


def _note(index: int, box: BoundingBox) -> str:
    """Return what is added to an error to say where it happened."""
    return f"in chunk {index}, {box}"


def _check_on_error(on_error: str) -> None:
    if on_error not in ("raise", "collect"):
        raise ArgumentError(f'on_error is {on_error!r}, but must be "raise" or "collect".')


def _sentence(report: RunReport) -> str:
    return ", ".join(f"{name} {value}" for name, value in _rows(report))


def _rows(report: RunReport) -> list[tuple[str, str]]:
    return [
        ("chunks", f"{report.chunks:,}"),
        ("done", f"{report.done:,}"),
        ("skipped", f"{report.skipped:,}"),
        ("failed", f"{report.failed:,}"),
        ("voxels written", f"{report.voxels:,}"),
        ("bytes written", f"{report.size_bytes:,}"),
        ("seconds", f"{report.seconds:.1f}"),
    ]


def _failure_lines(report: RunReport) -> list[str]:
    lines = [str(failure) for failure in report.failures[:_SHOWN_FAILURES]]
    more = report.failed - len(lines)
    return [*lines, f"and {more:,} more"] if more > 0 else lines
