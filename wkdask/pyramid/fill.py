"""Files of one or several volumes, each made from what was made before; the tasks and their order.

It knows volumes, and which voxels a file needs of the volume before. What is computed is a
function of a box, which it does not look into. There is no barrier between volumes: a file is made
as soon as those under it are there, depth first, so that they are still in the system's memory.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import pairwise, product
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from wkdask.geometry import BoundingBox, Vec3
from wkdask.runtime.journal import Journal
from wkdask.runtime.memory import threads_of
from wkdask.runtime.queues import WAITING, Outcomes
from wkdask.runtime.run import Run, RunReport, Tally, run_chunk
from wkdask.runtime.stream import stream_calls
from wkdask.storage.volume import Volume, count_writes
from wkdask.storage.wkw import as_wkw
from wkdask.storage.writer import Part, piece_count, pieces_of

__all__ = ["Making", "Step", "fill_volumes"]

# Parts per thread of the files of a step, if these are fewer than threads.
_PARTS_PER_THREAD = 4


class Making(Protocol):
    """Makes the voxels of boxes; it must be possible to pickle it."""

    def __call__(self, box: BoundingBox) -> NDArray[Any] | None:
        """Return the voxels `(c, x, y, z)` of a box of the target, or None for zeros."""

    def reads(self, box: BoundingBox) -> BoundingBox:
        """Return which voxels of its source a box of the target is made of."""


@dataclass(frozen=True, slots=True)
class Step:
    """A volume that is to be filled."""

    target: Volume
    """Where they go."""
    box: BoundingBox
    """Which voxels; not empty."""
    making: Making
    """Makes them, of the target of the step before where there is one."""
    exclusive: bool = True
    """Whether nobody else writes to the files of the box meanwhile."""

    @property
    def cells(self) -> tuple[range, ...]:
        """The cells `(x, y, z)` of its files, per axis."""
        size = self.target.layout.file_size
        axes = zip(self.box.topleft, self.box.bottomright, size, strict=True)
        return tuple(range(start // edge, -(-stop // edge)) for start, stop, edge in axes)

    def part_box(self, cell: Vec3) -> BoundingBox:
        """Return the voxels that are written to the file of a cell."""
        return self.target.file_box(cell).intersected_with(self.box)

    def writes_whole(self, cell: Vec3) -> bool:
        """Return whether the file of a cell is written anew, and not patched in place."""
        is_whole = self.box.contains_bbox(self.target.file_box(cell))
        return is_whole or self.exclusive or self.target.layout.write_unit == "file"


def fill_volumes(
    steps: Sequence[Step], run: Run, journals: Sequence[Journal | None] | None = None
) -> RunReport:
    """Make the files of all steps, with a bounded number of tasks in flight.

    Parameters
    ----------
    steps
        The first is made of something that is there, each other one of the target before it.
    run
        Where; the first exception ends the run.
    journals
        Where the files of each step are noted; those that it knows, and of which nothing was made
        again that they are made of, are skipped.

    Raises
    ------
    Exception
        The first exception, with a note that names the file's box.
    """
    job = _Job(tuple(steps), tuple(journals or [None] * len(steps)), run.tag)
    tally = Tally(job, run)
    plan = _Plan(job, tally, threads_of(run.executor))
    outcomes = stream_calls(
        partial(_run_task, job), plan, run.executor, name="wkdask-files", retries=run.retries
    )
    try:
        return tally.follow(plan.followed(outcomes))
    except BaseException:
        # Parts whose tasks ended after the failure, of which nobody was told.
        for step in steps:
            step.target.sweep(run.tag, step.box)
        raise
    finally:
        plan.discard_parts()


@dataclass(frozen=True, slots=True)
class _Task:
    """A file, or a part of one, that a worker makes."""

    step: int
    cell: Vec3
    pieces: tuple[int, int] | None = None
    """Which pieces to pack, first and beyond the last; None makes the file."""
    parts: tuple[Part, ...] = field(default=(), compare=False)
    """What the file is joined of, if others have packed it."""


@dataclass(frozen=True, slots=True)
class _Job:
    """What all tasks of a run share, and the places of its files, `(step, x, y, z)`."""

    steps: tuple[Step, ...]
    journals: tuple[Journal | None, ...]
    tag: str

    def __len__(self) -> int:
        return sum(math.prod(map(len, step.cells)) for step in self.steps)

    def index(self, position: Any) -> int:
        """Return the number of a file within its step."""
        step, *cell = position
        cells = self.steps[step].cells
        x, y, z = (at - axis.start for axis, at in zip(cells, cell, strict=True))
        return int((x * len(cells[1]) + y) * len(cells[2]) + z)

    def chunk_box(self, position: Any) -> BoundingBox:
        """Return the voxels of a file that are written."""
        number, x, y, z = position
        step: Step = self.steps[number]
        return step.part_box((x, y, z))


def _run_task(job: _Job, task: _Task) -> Any:
    """Do a task, and return the part that was packed, or the voxels and bytes of a file."""
    step = job.steps[task.step]
    if task.pieces is not None:
        with count_writes(job.tag):
            return as_wkw(step.target).fill_part(
                task.cell, step.box, step.making, range(*task.pieces)
            )

    def make(_: Any) -> None:
        if task.parts:
            as_wkw(step.target).join(task.cell, step.box, task.parts)
        else:
            step.target.fill(step.part_box(task.cell), step.making, exclusive=step.exclusive)

    return run_chunk(make, job, job.journals[task.step], job.tag, (task.step, *task.cell))


class _Plan:
    """An iterator of tasks that are ready, which learns of their outcomes."""

    def __init__(self, job: _Job, tally: Tally, threads: int) -> None:
        self._job = job
        self._tally = tally
        self._threads = threads
        shapes = [tuple(map(len, step.cells)) for step in job.steps]
        self._seen = [np.zeros(shape, bool) for shape in shapes]
        self._done = [np.zeros(shape, bool) for shape in shapes]
        self._made = [np.zeros(shape, bool) for shape in shapes]
        self._files = self._depth_first()
        self._blocked: list[_Task] = []
        self._ready: deque[_Task] = deque()
        self._parts: dict[_Task, dict[tuple[int, int], Part | None]] = {}
        self._changed = False

    def __iter__(self) -> Iterator[Any]:
        return self

    def __next__(self) -> Any:
        while not self._ready:
            if self._changed:
                self._changed = False
                waiting, self._blocked = self._blocked, []
                for file in waiting:
                    self._look_at(file)
            elif (following := next(self._files, None)) is not None:
                self._look_at(following)
            elif self._blocked or self._parts:
                return WAITING
            else:
                raise StopIteration
        return self._ready.popleft()

    def followed(self, outcomes: Outcomes) -> Outcomes:
        """Yield the outcomes of files and of failures, and see what they make ready."""
        with closing(outcomes):
            for outcome in outcomes:
                task = outcome.item
                place = (task.step, *task.cell)
                if outcome.error is None and task.pieces is not None:
                    self._note_part(task, outcome.value)
                    continue
                if outcome.error is None:
                    for part in task.parts:
                        part.discard()
                    self._note_done(task, was_made=True)
                yield replace(outcome, item=place)

    def discard_parts(self) -> None:
        """Delete what was packed and not joined."""
        for parts in self._parts.values():
            for part in filter(None, parts.values()):
                part.discard()

    def _depth_first(self) -> Iterator[_Task]:
        """Yield all files, each behind those that it is made of."""
        for step in reversed(range(len(self._job.steps))):
            for cell in product(*self._job.steps[step].cells):
                yield from self._down_to(step, cell)

    def _down_to(self, step: int, cell: Any) -> Iterator[_Task]:
        place = self._place(step, cell)
        if self._seen[step][place]:
            return
        self._seen[step][place] = True
        for below in product(*self._below(step, cell)):
            yield from self._down_to(step - 1, below)
        yield _Task(step, cell)

    def _below(self, step: int, cell: Vec3) -> list[range]:
        """Return the cells of the step before whose files one is made of, per axis."""
        if step == 0:
            return [range(0)] * 3
        this, before = self._job.steps[step], self._job.steps[step - 1]
        needed = before.box.intersected_with(
            this.making.reads(this.part_box(cell)), dont_assert=True
        )
        return list(replace(before, box=needed).cells) if not needed.is_empty else [range(0)] * 3

    def _place(self, step: int, cell: Vec3) -> tuple[int, ...]:
        cells = self._job.steps[step].cells
        return tuple(at - axis.start for axis, at in zip(cells, cell, strict=True))

    def _look_at(self, file: _Task) -> None:
        """Skip a file that is done, or let it be made if all that it needs is there."""
        below = self._below(file.step, file.cell)
        is_remade = False
        if all(map(len, below)):
            cells = self._job.steps[file.step - 1].cells
            place = tuple(
                slice(axis.start - all_.start, axis.stop - all_.start)
                for axis, all_ in zip(below, cells, strict=True)
            )
            if not self._done[file.step - 1][place].all():
                self._blocked.append(file)
                return
            is_remade = bool(self._made[file.step - 1][place].any())
        journal = self._job.journals[file.step]
        position = (file.step, *file.cell)
        if (
            journal is not None
            and not is_remade
            and journal.is_done(self._job.index(position), self._job.chunk_box(position))
        ):
            self._tally.skip()
            self._note_done(file, was_made=False)
        else:
            self._start(file)

    def _start(self, file: _Task) -> None:
        cuts = self._cuts(file)
        if len(cuts) < 2:
            self._ready.append(file)
            return
        self._parts[file] = dict.fromkeys(cuts)
        self._ready.extend(replace(file, pieces=pieces) for pieces in cuts)

    def _cuts(self, file: _Task) -> list[tuple[int, int]]:
        """Cut the pieces of a file into parts, if there are fewer files than threads."""
        step = self._job.steps[file.step]
        wanted = _PARTS_PER_THREAD * self._threads // math.prod(map(len, step.cells))
        if self._threads < 2 or wanted < _PARTS_PER_THREAD or not step.writes_whole(file.cell):
            return []
        header, corner = as_wkw(step.target).header, step.target.file_box(file.cell).topleft
        inside = step.part_box(file.cell).moved_by(-at for at in corner)
        full = [
            number
            for number, piece in enumerate(pieces_of(header))
            if not piece.intersected_with(inside, dont_assert=True).is_empty
        ]
        count = min(wanted, len(full))
        borders = [full[len(full) * part // count] for part in range(1, count)]
        return list(pairwise([0, *borders, piece_count(header)]))

    def _note_part(self, task: _Task, part: Part) -> None:
        """Keep a part, and let the file be joined if it is the last one."""
        assert task.pieces is not None
        file = replace(task, pieces=None)
        parts = self._parts[file]
        parts[task.pieces] = part
        packed = [each for each in parts.values() if each is not None]
        if len(packed) == len(parts):
            self._ready.appendleft(replace(file, parts=tuple(packed)))

    def _note_done(self, file: _Task, *, was_made: bool) -> None:
        self._parts.pop(replace(file, parts=()), None)
        place = self._place(file.step, file.cell)
        self._done[file.step][place] = True
        self._made[file.step][place] = was_made
        self._changed = True
