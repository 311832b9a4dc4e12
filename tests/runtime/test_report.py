"""`RunReport`: what it counts, and how it looks as text, as HTML and in a prompt."""

from __future__ import annotations

import dataclasses
import pickle
from html.parser import HTMLParser

import pytest

from wkdask.geometry import BoundingBox
from wkdask.runtime.run import ChunkFailure, RunReport

BOX = BoundingBox((8, 0, 0), (8, 8, 8))


def failures(count: int, text: str = "no luck") -> tuple[ChunkFailure, ...]:
    return tuple(ChunkFailure(i, BOX, ValueError(text)) for i in range(count))


class Tags(HTMLParser):
    """Collects the tags and the text of some HTML, and whether every tag is closed."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.text = ""
        self._open: list[str] = []
        self.feed(text)
        self.close()
        assert self._open == []

    def handle_starttag(self, tag: str, attrs: object) -> None:
        self.tags.append(tag)
        self._open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


@pytest.mark.parametrize(
    ("report", "failed", "ok"),
    [
        (RunReport(0), 0, True),  # nothing to do is done
        (RunReport(3, done=3), 0, True),
        (RunReport(3, done=1, skipped=2), 0, True),  # an earlier run counts
        (RunReport(3, done=2, failures=failures(1)), 1, False),
        (RunReport(3, done=2), 0, False),  # one never ran
    ],
)
def test_counts(report: RunReport, failed: int, ok: bool) -> None:
    assert (report.failed, report.ok) == (failed, ok)


def test_is_frozen_and_travels() -> None:
    report = RunReport(2, done=1, failures=failures(1))
    with pytest.raises(dataclasses.FrozenInstanceError):
        report.done = 7  # type: ignore[misc]
    copied = pickle.loads(pickle.dumps(report))
    assert str(copied) == str(report)
    assert copied.failures[0].box == BOX


@pytest.mark.parametrize(
    ("report", "lines"),
    [
        (
            RunReport(1_000_000, 999_990, 10, (), 2_048_000, 1_234, 61.26),
            [
                "chunks 1,000,000, done 999,990, skipped 10, failed 0, voxels written 2,048,000, "
                "bytes written 1,234, seconds 61.3"
            ],
        ),
        (
            RunReport(2, done=1, failures=failures(1)),
            [
                "chunks 2, done 1, skipped 0, failed 1, voxels written 0, bytes written 0, "
                "seconds 0.0",
                f"chunk 0, {BOX}: ValueError: no luck",
            ],
        ),
    ],
)
def test_text(report: RunReport, lines: list[str]) -> None:
    assert str(report).splitlines() == lines


@pytest.mark.parametrize(
    ("count", "shown", "last"),
    [
        (5, 5, f"chunk 4, {BOX}: ValueError: no luck"),  # all
        (6, 5, "and 1 more"),
        (100_000, 5, "and 99,995 more"),
    ],
)
def test_many_failures_are_a_few_lines(count: int, shown: int, last: str) -> None:
    report = RunReport(count, failures=failures(count))
    lines = str(report).splitlines()[1:]
    assert sum("no luck" in line for line in lines) == shown
    assert lines[-1] == last
    assert report._repr_html_().count("<li>") == len(lines)


def test_prompt_shows_it_readably() -> None:
    """What a prompt shows names the type and the counts, and stays short whatever happened."""
    few = repr(RunReport(8, done=7, skipped=1))
    assert few.startswith("RunReport(")
    assert all(part in few for part in ("chunks=8", "done=7", "skipped=1"))
    many = repr(RunReport(50_000, failures=failures(50_000)))
    assert "failed=50000" in many
    assert len(many) < 2_000


@pytest.mark.parametrize(
    "text",
    ["<script>alert(1)</script>", 'a "quoted" & <b>bold</b> one', "</ul></table>", "&lt;"],
)
def test_html_escapes(text: str) -> None:
    html = Tags(RunReport(2, failures=failures(2, text))._repr_html_())
    assert "script" not in html.tags
    assert html.text.count(text) == 2


def test_html_says_what_the_text_says() -> None:
    report = RunReport(1_234, done=1_200, skipped=34, voxels=5_678, size_bytes=91, seconds=0.25)
    html = Tags(report._repr_html_())
    assert "ul" not in html.tags
    assert html.tags.count("tr") == 7
    for part in str(report).split(", "):
        name, value = part.rsplit(" ", 1)
        assert name + value in html.text
