"""One progress bar for all runs, by tqdm: a widget in Jupyter, one line in a terminal.

It knows numbers: how much work there is, and how much is done.
"""

from __future__ import annotations

import time
import warnings
from typing import TYPE_CHECKING

from wkdask.runtime import config

if TYPE_CHECKING:
    from tqdm.std import tqdm

__all__ = ["Progress"]


class Progress:
    """A bar for work of a known amount; as a context manager it ends with the block.

    Parameters
    ----------
    total
        How many pieces of work there are.
    is_shown
        False shows nothing, and does not import tqdm.
    """

    def __init__(self, total: int, is_shown: bool) -> None:
        self._pace = _Pace()
        self._bar = _bar(total, self._pace) if is_shown else None
        self._start = time.perf_counter()

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *exception: object) -> None:
        if self._bar is not None:
            self._bar.close()

    def show(self, done: int, *, skipped: int = 0, failed: int = 0, voxels: int = 0) -> None:
        """Show how far the work is; tqdm limits how often that is drawn.

        Parameters
        ----------
        done
            Pieces that need no more work, including those skipped and failed.
        skipped
            Pieces that took no time. They do not count for the time that is left.
        failed
            Pieces that failed.
        voxels
            Voxels that were worked on so far.
        """
        if self._bar is None:
            return
        self._bar.initial = skipped
        self._pace.note(done - skipped, time.perf_counter())
        rate = voxels / max(time.perf_counter() - self._start, 1e-9) / 1e6
        facts = [f"{rate:,.{0 if rate >= 10 else 1}f} MVx/s"] if voxels else []
        facts += [f"{failed:,} failed"] if failed else []
        self._bar.set_postfix_str(", ".join(facts), refresh=False)
        self._bar.update(done - self._bar.n)


class _Pace:
    """How fast pieces come of late: the later half of those that are done.

    The first ones take longer, as functions are compiled and workers start, and must not count for
    the time that is left.
    """

    _LEAST = 4
    _MOST_NOTES = 256

    def __init__(self) -> None:
        self._notes: list[tuple[int, float]] = []

    def note(self, done: int, now: float) -> None:
        """Remember that so many pieces were done."""
        self._notes.append((done, now))
        if len(self._notes) > self._MOST_NOTES:
            del self._notes[1::2]

    def rate(self) -> float:
        """Return pieces per second, or 0 as long as nobody can tell."""
        if not self._notes or self._notes[-1][0] < self._LEAST:
            return 0.0
        done, now = self._notes[-1]
        before, then = next(note for note in self._notes if note[0] >= done // 2)
        return (done - before) / (now - then) if now > then else 0.0


def _bar(total: int, pace: _Pace) -> tqdm[None]:
    style = config.progress_style()
    with warnings.catch_warnings():
        # Without ipywidgets tqdm draws a line in Jupyter too, and need not say so.
        warnings.filterwarnings("ignore", "IProgress not found")
        if style == "auto":
            from tqdm.auto import tqdm
        else:
            from tqdm import tqdm

    class Bar(tqdm):  # type: ignore[misc]
        @property
        def format_dict(self) -> dict[str, object]:
            return {**super().format_dict, "rate": pace.rate()}

    class PlainBar(Bar):
        """A new line each minute, for the logs of batch jobs, without control codes."""

        _is_open = True

        def display(self, *_: object, **__: object) -> bool:
            self.fp.write(f"{self}\n")
            self.fp.flush()
            return True

        def close(self) -> None:
            if self._is_open:
                self.display()
            self._is_open, self.disable = False, True

    if style == "plain":
        return PlainBar(total=total, unit=" chunks", ncols=0, mininterval=60, delay=1e-9)
    return Bar(total=total, unit=" chunks", dynamic_ncols=True)
