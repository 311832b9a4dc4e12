"""What datasets, layers and views look like: facts in text and HTML, files, sizes, escapes."""

from __future__ import annotations

import time
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import wkdask
from wkdask import BoundingBox
from wkdask.arrays.facts import file_facts
from wkdask.show.cards import layer_html
from wkdask.show.drawing import box_svg
from wkdask.show.facts import LayerFacts
from wkdask.show.text import bytes_text, columns, length_text, lengths_text, times

EVIL = "<script>alert('\"&')</script>"


class Reader(HTMLParser):
    """Collects tags and text, and checks that every tag is closed."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: set[str] = set()
        self.text = ""
        self.feed(html)
        self.close()
        assert not self.open, f"not closed: {self.open}"

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self.tags.add(tag)
        self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: Any) -> None:
        self.tags.add(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open[-1:] != ["style"]:
            self.text += data + " "


@pytest.fixture
def dataset(tmp_path: Path) -> wkdask.Dataset:
    ds = wkdask.create(tmp_path / "tissue", voxel_size=(11.24, 11.24, 28))
    box = BoundingBox((10, 20, 0), (300, 200, 100))
    color = ds.add_layer("color", "color", "uint8", bounding_box=box)
    mag = color.add_mag(1, blocks_per_file_edge=2)
    mag.write(np.full((128, 192, 64), 7, np.uint8), (64, 0, 0))
    color.downsample(coarsest_mag="2-2-1")
    ds.add_layer("cells", "segmentation", "uint64", bounding_box=box, largest_segment_id=12345)
    return ds


@pytest.mark.parametrize("form", ["text", "html"])
class TestFacts:
    def told(self, value: Any, form: str) -> str:
        return repr(value) if form == "text" else Reader(value._repr_html_()).text

    def test_dataset(self, dataset: wkdask.Dataset, form: str) -> None:
        text = self.told(dataset, form)
        for part in ("tissue", "11.24 x 11.24 x 28", "nanometer", "color", "cells", "uint64"):
            assert part in text
        assert "1, 2-2-1" in text
        assert "3.372 x 2.473 x 2.8 µm" in text

    def test_layer(self, dataset: wkdask.Dataset, form: str) -> None:
        text = self.told(dataset["color"], form)
        for part in ("(1, 300, 220, 100)", "22.48 x 22.48 x 28", "lz4hc, edge 32", "at (10, 0, 0)"):
            assert part in text
        if form == "html":
            assert "6 of 40" in text
            assert "4 of 12" in text

    def test_layer_without_mags(self, dataset: wkdask.Dataset, form: str) -> None:
        text = self.told(dataset["cells"], form)
        assert "add_mag" in text
        assert "12,345" in text

    def test_mag_and_view(self, dataset: wkdask.Dataset, form: str) -> None:
        mag = dataset["color"]["2-2-1"]
        assert "(1, 150, 110, 100)" in self.told(mag, form)
        part = mag.get_view((32, 0, 0), (64, 64, 64))
        text = self.told(part, form)
        assert "(1, 64, 64, 64)" in text
        assert "(32, 0, 0)" in text
        if form == "html":
            assert "2 of 2" in text

    def test_one_mag_that_cannot_be_opened(self, dataset: wkdask.Dataset, form: str) -> None:
        (dataset.path / "color" / "1" / "header.wkw").write_bytes(b"no header")
        text = self.told(wkdask.open(dataset.path)["color"], form)
        assert "can't be opened" in text
        assert "(1, 150, 110, 100)" in text


def test_bare_mag_without_voxel_size(dataset: wkdask.Dataset) -> None:
    mag = wkdask.open_mag(dataset.path / "color" / "1")
    assert "µm" not in Reader(mag._repr_html_()).text
    assert "voxel size" not in repr(mag)


def test_empty_box(tmp_path: Path) -> None:
    ds = wkdask.create(tmp_path / "tissue", voxel_size=(8, 8, 8))
    mag = ds.add_layer("color", "color", "uint8").add_mag(1)
    for each in (ds, ds["color"], mag):
        Reader(each._repr_html_())
        assert repr(each)


def test_what_a_dataset_says_is_escaped(tmp_path: Path) -> None:
    ds = wkdask.create(tmp_path / "tissue", voxel_size=(8, 8, 8))
    text = (ds.path / "datasource-properties.json").read_text()
    (ds.path / "datasource-properties.json").write_text(
        text.replace('"name": "tissue"', '"name": "<script>x</script>"')
    )
    html = wkdask.open(ds.path)._repr_html_()
    assert "<script" not in html
    assert "&lt;script&gt;" in html


@given(st.text(max_size=30))
def test_any_text_is_escaped(text: str) -> None:
    layer = LayerFacts(EVIL + text, category=text, dtype=EVIL, unread_format=EVIL)
    assert "script" not in Reader(layer_html(layer, [])).tags


def test_a_million_files_are_sampled(tmp_path: Path) -> None:
    ds = wkdask.create(tmp_path / "tissue", voxel_size=(8, 8, 8))
    box = BoundingBox((0, 0, 0), (102400, 102400, 102400))
    layer = ds.add_layer("color", "color", "uint8", bounding_box=box)
    for mag in (1, 2, 4):
        layer.add_mag(mag)
    layer[1]._repr_html_()
    start = time.perf_counter()
    html = layer._repr_html_()
    took = time.perf_counter() - start
    assert len(html) < 20_000
    assert took < 0.5, "50 ms alone on a machine"
    assert "about 0 of 1,000,000" in Reader(html).text
    assert "files that were looked at" in html


@pytest.mark.parametrize("offset", [(0, 0, 0), (10, 20, 0), (63, 1, 65)])
def test_files_are_counted_exactly_if_they_are_few(
    tmp_path: Path, offset: tuple[int, int, int]
) -> None:
    ds = wkdask.create(tmp_path / "tissue", voxel_size=(8, 8, 8))
    box = BoundingBox(offset, (300, 200, 100))
    mag = ds.add_layer("color", "color", "uint8", bounding_box=box).add_mag(
        1, blocks_per_file_edge=2
    )
    mag.write(np.full((64, 64, 64), 7, np.uint8), (64, 64, 0))
    mag.write(np.full((64, 64, 64), 7, np.uint8), (128, 64, 64))
    facts = file_facts(mag.volume, box)
    cells = set(mag.volume.cells(box))
    there = {cell: size for cell, size in mag.volume.files() if cell in cells}
    assert (facts.total, facts.found) == (len(cells), len(there))
    assert facts.seen == facts.total
    assert facts.size_bytes == sum(there.values())
    assert facts.share.sum() == len(there)
    assert all(borders[0] == 0 and borders[-1] == 1 for borders in facts.borders)


def test_a_sample_is_spread_evenly(tmp_path: Path) -> None:
    ds = wkdask.create(tmp_path / "tissue", voxel_size=(8, 8, 8))
    box = BoundingBox((0, 0, 0), (16 * 20, 16 * 20, 16 * 20))
    mag = ds.add_layer("color", "color", "uint8", bounding_box=box).add_mag(
        1, block_edge=16, blocks_per_file_edge=1
    )
    half = np.full((16 * 10, 16 * 20, 16 * 20), 7, np.uint8)
    mag.write(half)
    facts = file_facts(mag.volume, box, most=1000)
    assert facts.seen <= 1000 < facts.total
    assert abs(facts.all_found - 4000) < 800


@pytest.mark.parametrize("size", [(1, 1, 1), (100_000, 1, 1), (1, 5, 100_000), (30, 2, 7)])
def test_drawing_stays_in_its_frame(size: tuple[int, int, int]) -> None:
    svg = box_svg(size, None, None)
    assert "nan" not in svg
    assert svg.count("<text") == 3
    numbers = [float(n) for n in svg.replace("M", " ").replace("L", " ").split() if n.isdigit()]
    assert all(0 <= n <= 310 for n in numbers)
    assert box_svg((0, 5, 5), None, None) == ""


@pytest.mark.parametrize(
    ("call", "expected"),
    [
        (lambda: times((1024, 5, 11.24)), "1,024 x 5 x 11.24"),
        (lambda: bytes_text(0), "0 bytes"),
        (lambda: bytes_text(1023), "1023 bytes"),
        (lambda: bytes_text(1024), "1.0 KiB"),
        (lambda: bytes_text(5 * 2**50), "5.0 PiB"),
        (lambda: length_text(0.5), "0.5 nm"),
        (lambda: length_text(2.5e9), "2.5 m"),
        (lambda: lengths_text((10, 2000, 3)), "0.01 x 2 x 0.003 µm"),
        (lambda: columns([("a", "b"), ("long", 1)]), ["a     b", "long  1"]),
    ],
    ids=["times", "zero", "bytes", "KiB", "PiB", "nm", "m", "lengths", "columns"],
)
def test_numbers(call: Any, expected: object) -> None:
    assert call() == expected


def test_reports_and_findings(dataset: wkdask.Dataset) -> None:
    (dataset.path / "color" / "1" / "z0" / "y0" / "x1.wkw").write_bytes(b"cut")
    report = wkdask.check(dataset.path)
    assert not report.ok
    assert "x1.wkw" in Reader(report._repr_html_()).text
    plan = dataset["color"].downsample("2-2-1", mags=["4-4-2"], dry_run=True)
    assert "4-4-2" in Reader(plan._repr_html_()).text
    done = dataset["color"].downsample("2-2-1", mags=["4-4-2"])
    assert "voxels written" in Reader(done._repr_html_()).text
