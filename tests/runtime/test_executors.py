"""The bar: how far, how fast, how long, how many failures."""

from __future__ import annotations

from typing import Any

import pytest

from wkdask.runtime import executors as scheduling
from wkdask.runtime.executors import Bar


class Clock:
    """A clock that is set by hand."""

    now = 100.0

    def perf_counter(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    found = Clock()
    monkeypatch.setattr(scheduling, "time", found)
    return found


HALF = "[##########          ] |  50% | 5 of 10 | "


@pytest.mark.parametrize(
    ("seconds", "total", "shown", "line", "reason"),
    [
        (1, 10, (5, {}), HALF + "1.0 s, 1.0 s left", "a half is left"),
        (1, 10, (5, {"skipped": 4}), HALF + "1.0 s, 5.0 s left", "what was skipped took no time"),
        (1, 10, (5, {"skipped": 5}), HALF + "1.0 s", "nothing tells how long it will take"),
        (2, 10, (5, {"voxels": 10**10}), HALF + "5,000 MVx/s | 2.0 s, 2.0 s left", "the rate"),
        (2, 10, (5, {"voxels": 10**6}), HALF + "0.5 MVx/s | 2.0 s, 2.0 s left", "a slow rate"),
        (1, 10, (5, {"failed": 2}), HALF + "1.0 s, 1.0 s left | 2 failed", "failures"),
        (3723, 10, (5, {}), HALF + "1:02:03, 1:02:03 left", "hours"),
        (1, 1, (1, {}), f"[{'#' * 20}] | 100% | 1 of 1 | 1.0 s", "the end"),
        (1, 0, (0, {}), f"[{'#' * 20}] | 100% | 0 of 0 | 1.0 s", "nothing to do"),
        (1, 10, (0, {}), f"[{' ' * 20}] |   0% | 0 of 10 | 1.0 s", "the start"),
    ],
)
def test_lines(
    capsys: Any, clock: Clock, seconds: float, total: int, shown: Any, line: str, reason: str
) -> None:
    done, keys = shown
    with Bar(total, True) as bar:
        clock.now += seconds
        bar.show(done, **keys)
    lines = capsys.readouterr().out.split("\r")
    assert [each.rstrip() for each in lines] == ["", line, line], reason


def test_a_longer_line_is_covered(capsys: Any, clock: Clock) -> None:
    with Bar(2, True) as bar:
        clock.now += 50
        bar.show(1, voxels=10**12)
        bar.show(2, voxels=10**12)
    long, short = capsys.readouterr().out.rstrip("\n").split("\r")[1:]
    assert "left" in long
    assert len(short) == len(long)


def test_seldom(capsys: Any, clock: Clock) -> None:
    with Bar(1000, True) as bar:
        for number in range(1000):
            clock.now += 0.001
            bar.show(number)
    assert capsys.readouterr().out.count("\r") < 15


def test_hidden(capsys: Any) -> None:
    with Bar(2, False) as bar:
        bar.show(1)
    assert capsys.readouterr().out == ""
