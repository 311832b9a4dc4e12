"""What a run over many chunks tells when it is over; plain values."""

from __future__ import annotations

from dataclasses import dataclass
from html import escape

from wkdask.geometry import BoundingBox

__all__ = ["ChunkFailure", "RunReport"]

_SHOWN_FAILURES = 5


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
        """Return a table, as Jupyter shows it."""
        cells = "".join(
            f"<tr><th style='text-align:left'>{escape(name)}</th><td>{escape(value)}</td></tr>"
            for name, value in _rows(self)
        )
        lines = "".join(f"<li>{escape(line)}</li>" for line in _failure_lines(self))
        return f"<table>{cells}</table>" + (f"<ul>{lines}</ul>" if lines else "")


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
