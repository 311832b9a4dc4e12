"""The bar: how far, how fast, how many failures; and that it keeps silent when it is hidden."""

from __future__ import annotations

import subprocess
import sys
import time
from typing import Any

import pytest

from wkdask.runtime.progress import Progress


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
    assert facts["rate"] is None, "the rate is that of ten pieces since the start"


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
