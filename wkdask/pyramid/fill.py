"""The files of one or several volumes, each made from the volume before it; tasks and their order.

It knows volumes, and which voxels of the volume before a file needs. What is computed is a function
of a box, which it does not look into. There is no barrier between volumes: a file is made as soon
as the files that it needs are there, depth first, so that these are still in the system's memory.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from itertools import product
from typing import Any, Protocol

import numpy as np

from wkdask.geometry import BoundingBox, Vec3
from wkdask.runtime.executors import threads_of
from wkdask.runtime.journal import Journal
from wkdask.runtime.queues import WAITING, Outcomes
from wkdask.runtime.run import Run, RunReport, Tally, run_chunk
from wkdask.runtime.stream import stream_calls, task_name
from wkdask.storage.volume import Volume, Voxels, sharing

__all__ = ["Step", "VoxelSource", "fill_volumes"]

_Cells = tuple[range, range, range]
_NO_CELLS: _Cells = (range(0), range(0), range(0))
_Place = tuple[int, int, int, int]
"""A file: the number of its step, and its cell `(x, y, z)`."""


class VoxelSource(Protocol):
    """Computes the voxels of boxes; it must be possible to pickle it."""

    def __call__(self, box: BoundingBox) -> Voxels | None:
        """Return the voxels `(c, x, y, z)` of a box of the target, or None for zeros."""

    def reads(self, box: BoundingBox) -> BoundingBox:
        """Return which voxels of its own source a box of the target is made of."""


@dataclass(frozen=True, slots=True)
class Step:
    """One target volume of a run."""

    target: Volume
    """The volume that is written."""
    box: BoundingBox
    """Which of its voxels; not empty."""
    source: VoxelSource
    """Computes its voxels, from the previous step's target or, in the first step, from a volume
    that is there."""

    @property
    def cells(self) -> _Cells:
        """The cells `(x, y, z)` of its files, per axis."""
        return self.cells_of(self.box)

    def cells_of(self, box: BoundingBox) -> _Cells:
        """Return the cells `(x, y, z)` of the files that a box touches, per axis."""
        size = self.target.layout.file_size
        axes = zip(box.topleft, box.bottomright, size, strict=True)
        x, y, z = [range(start // edge, -(-stop // edge)) for start, stop, edge in axes]
        return x, y, z

    def part_box(self, cell: Vec3) -> BoundingBox:
        """Return the voxels that are written to the file of a cell."""
        return self.target.file_box(cell).intersected_with(self.box)


def fill_volumes(
    steps: Sequence[Step], run: Run, journals: Sequence[Journal | None] | None = None
) -> RunReport:
    """Make the files of all steps, one task a file, with a bounded number of tasks in flight.

    Where a step has fewer files than the run has workers, a task takes as many threads as there are
    workers per file, if its process may run on as many cores.

    Parameters
    ----------
    steps
        The first is made from a volume that is there, each other one from the target before it.
    run
        Where; the first exception ends the run.
    journals
        Where the files of each step are noted. Files that a journal knows are skipped, unless
        something that they are made from was made again.
    """
    job = _Job(
        tuple(steps), tuple(journals or [None] * len(steps)), run.tag, threads_of(run.executor)
    )
    tally = Tally(job, run)
    plan = _Plan(job, tally)
    names = [task_name(run.name, step.target.path) for step in steps]
    for name, step, journal in zip(names, steps, job.journals, strict=True):
        if journal is not None:
            journal.begin(name, math.prod(map(len, step.cells)))
    outcomes = stream_calls(
        partial(_make_file, job),
        plan,
        run.executor,
        name=lambda place: names[place[0]],
        retries=run.retries,
    )
    report = tally.follow(plan.followed(outcomes))
    for journal in filter(None, job.journals):
        journal.shrink()
    return report


@dataclass(frozen=True, slots=True)
class _Job:
    """What all tasks of a run share, and the places of its files."""

    steps: tuple[Step, ...]
    journals: tuple[Journal | None, ...]
    tag: str
    workers: int

    def __len__(self) -> int:
        return sum(math.prod(map(len, step.cells)) for step in self.steps)

    def index(self, place: _Place) -> int:
        """Return the number of a file within its step."""
        cells = self.steps[place[0]].cells
        x, y, z = (at - axis.start for axis, at in zip(cells, place[1:], strict=True))
        return (x * len(cells[1]) + y) * len(cells[2]) + z

    def chunk_box(self, place: _Place) -> BoundingBox:
        """Return the voxels of a file that are written."""
        return self.steps[place[0]].part_box(place[1:])


def _make_file(job: _Job, place: _Place) -> tuple[int, int]:
    """Make a file, and return the voxels and bytes that were written."""
    step = job.steps[place[0]]
    threads = job.workers // math.prod(map(len, step.cells))

    def make(_: _Place) -> None:
        # Here too, because a task may outlive the process that began the run.
        with sharing(step.target):
            box = job.chunk_box(place)
            step.target.fill(box, step.source, threads=threads)

    return run_chunk(make, job, job.journals[place[0]], job.tag, place)


class _Plan:
    """An iterator of files that can be made now, which learns of the outcomes of others."""

    def __init__(self, job: _Job, tally: Tally) -> None:
        self._job = job
        self._tally = tally
        shapes = [tuple(map(len, step.cells)) for step in job.steps]
        self._seen = [np.zeros(shape, bool) for shape in shapes]
        self._done = [np.zeros(shape, bool) for shape in shapes]
        self._made = [np.zeros(shape, bool) for shape in shapes]
        self._files = self._depth_first()
        self._blocked: list[_Place] = []
        self._ready: deque[_Place] = deque()
        self._changed = False

    def __iter__(self) -> Iterator[Any]:
        return self

    def __next__(self) -> Any:
        while not self._ready:
            if self._changed:
                self._changed = False
                waiting, self._blocked = self._blocked, []
                for place in waiting:
                    self._look_at(place)
            elif (following := next(self._files, None)) is not None:
                self._look_at(following)
            elif self._blocked:
                return WAITING
            else:
                raise StopIteration
        return self._ready.popleft()

    def followed(self, outcomes: Outcomes) -> Outcomes:
        """Yield outcomes, and note the files that were made."""
        with closing(outcomes):
            for outcome in outcomes:
                if outcome.error is None:
                    self._note_done(outcome.item, was_made=True)
                yield outcome

    def _depth_first(self) -> Iterator[_Place]:
        """Yield all files, each behind the files that it is made from."""
        for step in reversed(range(len(self._job.steps))):
            for x, y, z in product(*self._job.steps[step].cells):
                yield from self._down_to((step, x, y, z))

    def _down_to(self, place: _Place) -> Iterator[_Place]:
        step, at = place[0], self._index(place)
        if self._seen[step][at]:
            return
        self._seen[step][at] = True
        for x, y, z in product(*self._below(place)):
            yield from self._down_to((step - 1, x, y, z))
        yield place

    def _below(self, place: _Place) -> _Cells:
        """Return the cells of the step before whose files one is made from, per axis."""
        step = place[0]
        if step == 0:
            return _NO_CELLS
        before = self._job.steps[step - 1]
        reads = self._job.steps[step].source.reads(self._job.chunk_box(place))
        needed = before.box.intersected_with(reads, dont_assert=True)
        return _NO_CELLS if needed.is_empty else before.cells_of(needed)

    def _index(self, place: _Place) -> Vec3:
        """Return where a file stands in the arrays of its step."""
        cells = self._job.steps[place[0]].cells
        x, y, z = (at - axis.start for axis, at in zip(cells, place[1:], strict=True))
        return x, y, z

    def _look_at(self, place: _Place) -> None:
        """Skip a file that is done, or let it be made if all that it needs is there."""
        step, below = place[0], self._below(place)
        is_remade = False
        if all(map(len, below)):
            cells = self._job.steps[step - 1].cells
            needed = tuple(
                slice(axis.start - all_.start, axis.stop - all_.start)
                for axis, all_ in zip(below, cells, strict=True)
            )
            if not self._done[step - 1][needed].all():
                self._blocked.append(place)
                return
            is_remade = bool(self._made[step - 1][needed].any())
        journal, job = self._job.journals[step], self._job
        if (
            journal is not None
            and not is_remade
            and journal.is_done(job.index(place), job.chunk_box(place))
        ):
            self._tally.skip()
            self._note_done(place, was_made=False)
        else:
            self._ready.append(place)

    def _note_done(self, place: _Place, *, was_made: bool) -> None:
        self._done[place[0]][self._index(place)] = True
        self._made[place[0]][self._index(place)] = was_made
        self._changed = True
