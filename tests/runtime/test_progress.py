"""The bar: how far, how fast, how many failures; and that it keeps silent when it is hidden."""

from __future__ import annotations

import subprocess
import sys
import time
from typing import Any

import pytest

from wkdask.runtime.progress import Progress, _Pace


@pytest.mark.parametrize(
    ("total", "shown", "texts", "reason"),
    [
        (10, (5, {}), ["50%", "5/10"], "a half"),
        (10, (5, {"voxels": 10**12}), ["5/10", " MVx/s]"], "the rate in voxels"),
        (10, (5, {"failed": 2}), ["5/10", "2 failed"], "failures"),
        (1, (1, {}), ["100%", "1/1"], "the end"),
        (0, (0, {}), ["0 chunks"], "nothing to do"),
    ],
)
def test_the_line_says(capsys: Any, total: int, shown: Any, texts: list[str], reason: str) -> None:
    done, keys = shown
    with Progress(total, True) as bar:
        bar.show(done, **keys)
    out, line = capsys.readouterr()
    assert out == "", "bars go to the error stream, which pipes leave alone"
    assert [text for text in texts if text not in line] == [], reason


def test_what_was_skipped_took_no_time() -> None:
    with Progress(100, True) as bar:
        time.sleep(0.05)
        bar.show(60, skipped=50)
        facts = bar._bar.format_dict  # type: ignore[union-attr]
    assert facts["initial"] == 50
    assert facts["rate"] == 0, "nobody can tell yet"


@pytest.mark.parametrize(
    ("times", "expected", "reason"),
    [
        ([], 0, "nothing is done"),
        ([5.0, 5.1, 5.2], 0, "too few to tell"),
        ([5.0, 5.0, *(5.1 + 0.1 * i for i in range(8))], 10, "compiling took 5 s"),
        ([60, 60.6, 120, 120.6], 2 / 60, "two workers, a minute each"),
        ([0.1 * i for i in range(1000)], 10, "many"),
    ],
    ids=lambda value: value if isinstance(value, str) else None,
)
def test_the_time_left_follows_the_later_half(
    times: list[float], expected: float, reason: str
) -> None:
    pace = _Pace()
    for number, now in enumerate(times, 1):
        pace.note(number, now)
    assert pace.rate() == pytest.approx(expected, rel=0.25), reason
    assert len(pace._notes) <= 256


def test_the_time_left_is_told_without_what_compiling_took(monkeypatch: Any) -> None:
    clock = [0.0]
    monkeypatch.setattr("wkdask.runtime.progress.time.perf_counter", lambda: clock[0])
    with Progress(100, True) as bar:
        for number, clock[0] in enumerate((5.0, 5.0, 5.1, 5.1, 5.2, 5.2, 5.3, 5.3), 1):
            bar.show(number)
        line = str(bar._bar)
    assert "<00:04" in line, line


def test_a_bar_is_drawn_seldom(capsys: Any) -> None:
    with Progress(1000, True) as bar:
        for number in range(1000):
            bar.show(number)
    assert capsys.readouterr().err.count("\r") < 15


def test_a_hidden_bar_is_silent_and_needs_no_tqdm(capsys: Any) -> None:
    with Progress(2, False) as bar:
        bar.show(1)
    assert capsys.readouterr() == ("", "")
    code = (
        "import sys; from wkdask.runtime.progress import Progress\n"
        "with Progress(2, False) as bar: bar.show(1)\n"
        "print('tqdm' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"
