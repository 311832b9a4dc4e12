"""The steps that all three runs of a view share: check memory, open a journal, run, finish.

It knows views by a protocol and the run as a function. It must not know what a task does.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from math import prod
from typing import Protocol

from wkdask.errors import ArgumentError
from wkdask.geometry import BoundingBox, Vec3, is_remote
from wkdask.grids import ChunkGrid
from wkdask.runtime import memory
from wkdask.runtime.executors import active_client
from wkdask.runtime.fingerprint import job_name
from wkdask.runtime.journal import Journal
from wkdask.runtime.run import Run, RunReport, told_briefly
from wkdask.runtime.stream import task_name
from wkdask.storage.volume import Volume, sharing

__all__ = ["Job", "Tasks", "ViewLike", "bytes_of_chunk", "carry_out", "finish", "journal_of"]


class ViewLike(Protocol):
    """What a run asks of a view; see `View`."""

    @property
    def path(self) -> str:
        """The mag directory."""

    @property
    def volume(self) -> Volume:
        """The volume that is read or written; it holds the journal."""

    @property
    def bounding_box(self) -> BoundingBox:
        """The voxels of the view."""

    @property
    def read_only(self) -> bool:
        """Whether writing is refused."""

    def check_writable(self) -> None:
        """Raise `ReadOnlyError` if the view is read-only."""


@dataclass(frozen=True, slots=True)
class Tasks:
    """Numbers for the check of memory."""

    count: int
    size: Vec3
    """Voxels per axis of a chunk."""
    size_bytes: int
    """What one task needs at its peak."""


@dataclass(frozen=True, slots=True)
class Job:
    """A run as the journal identifies it: equal jobs continue each other."""

    target: ViewLike
    """The view that is written, or whose chunks are visited."""
    function: Callable[..., object] | None
    """A function of the user, or None."""
    facts: tuple[object, ...]
    """The other values on which the result depends."""
    sources: tuple[ViewLike, ...] = ()
    """Views that are read; a changed source makes another job."""


def carry_out(
    go: Callable[[Run, Journal | None], RunReport],
    job: Job,
    tasks: Tasks,
    run: Run,
    *,
    resume: bool | str,
    check_memory: bool,
) -> RunReport:
    """Check memory, open the journal, call `go`, and note that voxels may have changed.

    `go` works on all chunks and notes in the journal which ones are done. For `resume` and
    `check_memory` see `View.for_each_chunk`.
    """
    if check_memory:
        memory.check_memory(tasks.size_bytes, tasks.size, tasks.count, run.executor)
    target = job.target
    with sharing(*(() if target.read_only else (target.volume,))):
        journal = journal_of(job, resume)
        run = replace(run.of(journal), name=task_name(run.name, target.path))
        if journal is not None:
            journal.begin(run.name, tasks.count)
        try:
            report = go(run, journal)
        except Exception as error:
            raise told_briefly(error)  # noqa: B904 - the same error
        finally:
            finish(target, run)
        if journal is not None:
            journal.shrink()
        return report


def journal_of(job: Job, resume: bool | str) -> Journal | None:
    """Return the journal of a job, which lies beside the files of its target, or None."""
    if not isinstance(resume, bool | str):
        raise ArgumentError(f"resume is {resume!r}, but must be True, False or a job's name.")
    if resume is False:
        return None
    target = job.target
    target.check_writable()
    if is_remote(target.path):
        raise ArgumentError(
            f"resume is {resume!r}, but {target.path} is remote, and a journal lies beside the "
            "files on this machine. Leave resume out."
        )
    facts = (target.path, target.bounding_box, *job.sources, *job.facts)
    read = [(source, source.volume.version()[0]) for source in job.sources]
    name = job_name(resume, job.function, *facts, *read)
    return Journal(target.volume, name)


def finish(target: ViewLike, run: Run) -> None:
    """Note that voxels may have changed, and delete the temporary files of workers that died."""
    if target.read_only:
        return
    if run.is_resumed or run.executor is not None or active_client(None) is not None:
        target.volume.sweep(run.tag, target.bounding_box)
    target.volume.note_change()


def bytes_of_chunk(grid: ChunkGrid, volume: Volume) -> int:
    """Return the bytes of the largest chunk in memory, plus half of `TASK_BYTES`."""
    size = map(min, grid.chunk_size, grid.box.size)
    return prod(size) * volume.layout.voxel_bytes + memory.TASK_BYTES // 2
