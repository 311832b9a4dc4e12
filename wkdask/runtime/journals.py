"""The journals below a directory: which jobs there are, how far they are, and what failed.

It reads what jobs noted, on any machine that sees the files, also while they run.
"""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from wkdask.errors import FormatError, MissingError
from wkdask.geometry import absolute
from wkdask.runtime.journal import DIGEST_BYTES, JOB_NAME, digests_of, failures_of, records_of
from wkdask.show.text import printable
from wkdask.storage import atomic
from wkdask.storage.volume import JOURNALS_NAME

__all__ = ["JournalInfo", "clear_journals", "journals"]

_MOST_JOB_BYTES = 2**16
_SHOWN_FAILURES = 5


@dataclass(frozen=True, slots=True)
class JournalInfo:
    """A journal on disk: what a job has done."""

    path: str
    """Its directory, inside the mag directory that it tells of."""
    records: int
    """How many chunks it says are done."""
    size_bytes: int
    """Bytes of its records."""
    name: str = ""
    """What the job does, as on dask's dashboard: operation, layer and mag."""
    chunks: int | None = None
    """How many chunks there are; None if the job did not say."""
    failures: tuple[str, ...] = ()
    """Of each chunk that failed in the last run, where it lies and why."""
    chunks_per_second: float = 0.0
    """How fast chunks were done in the last run."""
    idle_seconds: float | None = None
    """How long ago the last chunk was done, or the run began; None if nobody knows."""

    @property
    def is_complete(self) -> bool:
        """Whether all chunks are done."""
        return self.chunks is not None and self.records >= self.chunks

    @property
    def seconds_left(self) -> float | None:
        """How long the rest takes at the same rate; None if nobody can tell."""
        if self.chunks is None or not self.chunks_per_second:
            return None
        return max(0, self.chunks - self.records) / self.chunks_per_second

    def as_dict(self) -> dict[str, Any]:
        """Return the facts as plain values, ready for JSON."""
        return asdict(self) | {"seconds_left": self.seconds_left, "is_complete": self.is_complete}

    def __str__(self) -> str:
        of_all = "" if self.chunks is None else f" of {self.chunks:,}"
        facts = [f"{self.records:,}{of_all} chunks done"]
        if not self.is_complete and self.chunks is not None:
            if self.seconds_left is not None:
                facts.append(f"{self.chunks_per_second:.3g} per second")
                facts.append(f"{_duration(self.seconds_left)} left")
            if self.idle_seconds is not None:
                facts.append(f"the last one {_duration(self.idle_seconds)} ago")
        if self.failures:
            facts.append(f"{len(self.failures):,} failed")
        name = f"{printable(self.name)}: " if self.name else ""
        lines = [f"{name}{', '.join(facts)}", f"  {printable(self.path)}"]
        lines += [f"  {printable(text)}" for text in self.failures[:_SHOWN_FAILURES]]
        more = len(self.failures) - _SHOWN_FAILURES
        return "\n".join([*lines, f"  and {more:,} more"] if more > 0 else lines)


def journals(path: str | os.PathLike[str]) -> list[JournalInfo]:
    """List the journals of resumable runs below a directory; also of those that run now.

    Parameters
    ----------
    path
        A mag directory, a layer or a dataset.

    Raises
    ------
    MissingError
        If there is no such directory.

    Examples
    --------
    >>> ds = wkdask.create("tissue", voxel_size=(8, 8, 8))
    >>> box = wkdask.BoundingBox((0, 0, 0), (64, 64, 64))
    >>> mag = ds.add_layer("color", "color", "uint8", bounding_box=box).add_mag(1)
    >>> def brighten(chunk):
    ...     view, _ = chunk
    ...     view.write(np.full(view.size, 200, np.uint8))
    >>> mag.for_each_chunk(brighten, resume=True).done
    1
    >>> mag.for_each_chunk(brighten, resume=True).skipped
    1
    >>> [(job.name, job.records, job.chunks) for job in wkdask.journals("tissue")]
    [('brighten color 1', 1, 1)]
    >>> wkdask.clear_journals("tissue")
    1
    """
    return [_info(str(directory)) for directory in _directories(path)]


def clear_journals(path: str | os.PathLike[str]) -> int:
    """Delete the journals below a directory, and return how many there were.

    Runs with `resume=True` then begin from the start. No voxel is touched.

    Raises
    ------
    MissingError
        If there is no such directory.
    """
    found = list(_directories(path))
    for directory in found:
        shutil.rmtree(directory)
        # The directory of all journals, if this was the last one.
        if not os.listdir(directory.parent):
            directory.parent.rmdir()
    return len(found)


def _directories(path: str | os.PathLike[str]) -> Iterator[Path]:
    root = Path(absolute(path))
    if not root.is_dir():
        raise MissingError(f"{root} is not a directory; a dataset, layer or mag was expected.")
    # A journal lies in a mag, a mag in a layer, a layer in a dataset.
    for depth in ("", "*/", "*/*/"):
        yield from sorted(each for each in root.glob(f"{depth}{JOURNALS_NAME}/*") if each.is_dir())


def _info(directory: str) -> JournalInfo:
    states = {number: state for number, path in records_of(directory) if (state := _stat(path))}
    data = digests_of(directory)
    whole = data[: len(data) // DIGEST_BYTES * DIGEST_BYTES]
    # Those in the file of all, where a record is not zeros.
    done = np.flatnonzero(np.frombuffer(whole, f"V{DIGEST_BYTES}").astype(bool)).tolist()
    numbers = states.keys() | set(done)
    failures = failures_of(directory)
    name, chunks, started = _job(directory)
    times = [state.st_mtime for state in states.values() if state.st_mtime >= (started or 0)]
    last = max(times, default=started)
    running = 0.0 if started is None or last is None else last - started
    return JournalInfo(
        directory,
        len(numbers),
        sum(state.st_size for state in states.values()) + len(data),
        name,
        chunks,
        tuple(failures[number] for number in sorted(failures.keys() - numbers)),
        len(times) / running if running > 0 else 0.0,
        None if last is None else max(0.0, time.time() - last),
    )


def _stat(path: str) -> os.stat_result | None:
    """Return what is known of a file; None if the job has just put it into the file of all."""
    try:
        return os.stat(path)
    except FileNotFoundError:
        return None


def _job(directory: str) -> tuple[str, int | None, float | None]:
    """Return what a job does, how many chunks it has and when it began, as far as it says so."""
    try:
        said = json.loads(atomic.read_file(os.path.join(directory, JOB_NAME), _MOST_JOB_BYTES))
        return str(said["name"]), int(said["chunks"]), float(said["started"])
    except (OSError, FormatError, ValueError, KeyError, TypeError, OverflowError):
        return "", None, None


def _duration(seconds: float) -> str:
    """Return a time that people can read, such as `3 min` or `2.5 days`."""
    for unit, length in (("days", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:.{0 if seconds >= 10 * length else 1}f} {unit}"
    return f"{seconds:.0f} s"
