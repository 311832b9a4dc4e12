"""`wkdask.check`: every kind of damage is found, nothing else is, and nothing is changed."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

import wkdask
from wkdask.cli.main import main
from wkdask.dataset import check as checking
from wkdask.dataset.check import CheckReport, Finding
from wkdask.errors import ArgumentError, MissingError, PropertiesError, StorageError
from wkdask.geometry import BoundingBox
from wkdask.storage.atomic import TEMPORARY_SUFFIX
from wkdask.storage.header import VolumeHeader
from wkdask.storage.wkw import WkwVolume
from wkdask.storage.writer import writing

JSON = "datasource-properties.json"
BOX = BoundingBox((0, 0, 0), (16, 8, 8))
"""Two files."""


@pytest.fixture
def dataset(tissue: wkdask.Dataset) -> wkdask.Dataset:
    """Two layers, three mags, six files."""
    for name, category, dtype in (("color", "color", "uint8"), ("cells", "segmentation", "uint32")):
        layer = tissue.add_layer(name, category, dtype, bounding_box=BOX)  # type: ignore[arg-type]
        for mag, kind in ((1, "lz4"), *([(2, "raw")] if name == "color" else [])):
            view = layer.add_mag(mag, 4, 2, kind)
            rng = np.random.default_rng(mag)
            view.volume.write(BOX, rng.integers(1, 200, (1, 16, 8, 8)).astype(dtype))
    # Mag 2 of this box is smaller than its files, which is how all layers end.
    value = json.loads((tissue.path / JSON).read_text())
    for layer in value["dataLayers"]:
        layer["boundingBox"] = {"topLeft": [0, 0, 0], "width": 32, "height": 16, "depth": 16}
    (tissue.path / JSON).write_text(json.dumps(value))
    return wkdask.open(tissue.path)


def file_of(dataset: wkdask.Dataset, layer: str = "color", mag: str = "1", x: int = 0) -> Path:
    return dataset.path / layer / mag / "z0" / "y0" / f"x{x}.wkw"


def kinds(report: CheckReport) -> list[str]:
    return [finding.kind for finding in report.findings]


def only(report: CheckReport) -> Finding:
    """Return the only finding."""
    assert len(report.findings) == 1, str(report)
    return report.findings[0]


class TestClean:
    @pytest.mark.parametrize("level", [1, 2])
    def test_dataset(self, dataset, level, snapshot):
        before = snapshot(dataset.path)
        report = wkdask.check(dataset.path, level=level)
        sizes = [path.stat().st_size for path in dataset.path.rglob("x*.wkw")]
        assert (report.ok, report.findings, report.level) == (True, (), level)
        assert (report.files, report.size_bytes) == (6, sum(sizes))
        assert snapshot(dataset.path) == before

    @pytest.mark.parametrize("level", [1, 2])
    def test_a_bare_mag(self, dataset, level):
        report = wkdask.check(str(dataset.path / "color" / "1"), level=level)
        assert (report.ok, report.files, report.findings) == (True, 2, ())

    def test_nothing_to_look_at(self, tissue):
        report = wkdask.check(tissue.path)
        assert (report.ok, report.files, report.size_bytes) == (True, 0, 0)

    def test_layers_of_another_format_are_left_out(self, dataset):
        value = json.loads((dataset.path / JSON).read_text())
        value["dataLayers"].append({**value["dataLayers"][0], "name": "z", "dataFormat": "n5"})
        (dataset.path / JSON).write_text(json.dumps(value))
        assert wkdask.check(dataset.path).ok

    def test_raw_files_in_a_compressed_mag(self, dataset):
        volume = dataset["color"][1].volume
        raw = WkwVolume(volume.path, VolumeHeader("uint8", 1, 4, 2, "raw"))
        raw.write(BOX, np.ones((1, 16, 8, 8), np.uint8))
        assert wkdask.check(dataset.path, level=2).findings == ()

    @pytest.mark.parametrize("level", [0, 3, "1", None])
    def test_other_levels(self, dataset, level):
        with pytest.raises(ArgumentError, match="level is"):
            wkdask.check(dataset.path, level=level)

    def test_paths_that_are_neither(self, tmp_path):
        with pytest.raises(MissingError):
            wkdask.check(tmp_path / "nowhere")
        with pytest.raises(MissingError):
            wkdask.check(tmp_path)
        (tmp_path / JSON).write_text("{")
        with pytest.raises(PropertiesError):
            wkdask.check(tmp_path)


def cut(length: int) -> Callable[[bytes], bytes]:
    return lambda data: data[:length]


DAMAGE: list[tuple[str, Callable[[bytes], bytes], str]] = [
    ("empty", cut(0), "0 bytes where a header"),
    ("in the header", cut(15), "15 bytes where a header"),
    ("magic", lambda data: b"wkw" + data[3:], "instead of b'WKW'"),
    ("dtype", lambda data: data[:6] + b"\x07" + data[7:], "int8"),
    ("geometry", lambda data: data[:4] + b"\x13" + data[5:], "instead of"),
    ("in the jump table", cut(50), "needs at least"),
    ("truncated", lambda data: data[:-1], "jump table"),
    ("jump table", lambda data: data[:16] + bytes(8) + data[24:], "points into itself"),
    ("order", lambda data: data[:16] + data[24:32] + data[16:24] + data[32:], "jump table|block"),
]


class TestDamage:
    @pytest.mark.parametrize("level", [1, 2])
    @pytest.mark.parametrize(("name", "damage", "text"), DAMAGE, ids=[row[0] for row in DAMAGE])
    def test_what_level_1_finds(self, dataset, level, name, damage, text, snapshot):
        path = file_of(dataset, x=1)
        path.write_bytes(damage(path.read_bytes()))
        before = snapshot(dataset.path)
        report = wkdask.check(dataset.path, level=level)
        finding = only(report)
        assert not report.ok
        assert (finding.kind, finding.path, finding.is_error) == ("unreadable", str(path), True)
        assert str(path) in finding.text
        assert re.search(text, finding.text)
        assert report.files == 6
        assert snapshot(dataset.path) == before

    @pytest.mark.parametrize("block", range(8))
    def test_what_only_level_2_finds(self, dataset, block):
        path = file_of(dataset, "cells")
        data = path.read_bytes()
        ends = [80, *np.frombuffer(data, "<u8", 8, 16)]
        start, end = int(ends[block]), int(ends[block + 1])
        path.write_bytes(data[:start] + b"\xff" * (end - start) + data[end:])
        assert wkdask.check(dataset.path, level=1).findings == ()
        finding = only(wkdask.check(dataset.path, level=2))
        assert (finding.kind, finding.path) == ("unreadable", str(path))
        assert "no LZ4 block" in finding.text

    def test_a_raw_file_that_is_cut(self, dataset):
        path = file_of(dataset, mag="2")
        os.truncate(path, path.stat().st_size - 1)
        assert only(wkdask.check(dataset.path)).path == str(path)

    def test_every_file_is_looked_at_though_all_are_bad(self, dataset):
        paths = sorted(dataset.path.rglob("x*.wkw"))
        for path in paths:
            path.write_bytes(b"no")
        report = wkdask.check(dataset.path)
        assert sorted(finding.path for finding in report.findings) == [*map(str, paths)]
        assert set(kinds(report)) == {"unreadable"}

    def test_a_directory_in_place_of_a_file(self, dataset):
        path = file_of(dataset)
        path.unlink()
        path.mkdir()
        finding = only(wkdask.check(dataset.path))
        assert (finding.kind, finding.path) == ("unreadable", str(path))

    @pytest.mark.timeout(20)
    @pytest.mark.parametrize("level", [1, 2])
    def test_a_pipe_in_place_of_a_file(self, dataset, level):
        path = file_of(dataset)
        path.unlink()
        os.mkfifo(path)
        assert only(wkdask.check(dataset.path, level=level)).kind == "unreadable"

    @pytest.mark.parametrize("name", ["z1", "z0/y1"])
    def test_one_directory_that_can_not_be_listed_does_not_hide_the_others(self, dataset, name):
        loop = dataset.path / "color" / "1" / name
        loop.symlink_to(loop)
        file_of(dataset).write_bytes(b"no")
        report = wkdask.check(dataset.path)
        assert {finding.path for finding in report.findings} == {str(loop), str(file_of(dataset))}
        assert set(kinds(report)) == {"unreadable"}
        assert report.files == 6

    def test_a_file_that_is_removed_meanwhile_holds_zeros(self, dataset, monkeypatch):
        stream_calls = checking.stream_calls

        def remove_and_run(*arguments: Any, **options: Any) -> Any:
            file_of(dataset).unlink()
            return stream_calls(*arguments, **options)

        monkeypatch.setattr(checking, "stream_calls", remove_and_run)
        assert wkdask.check(dataset.path).findings == ()

    def test_a_directory_that_is_removed_meanwhile_holds_zeros(self, dataset, monkeypatch):
        scandir, gone = os.scandir, file_of(dataset).parent

        def remove_and_list(path: str) -> Any:
            if path == str(gone):
                shutil.rmtree(gone)
            return scandir(path)

        monkeypatch.setattr(checking.os, "scandir", remove_and_list)
        assert wkdask.check(dataset.path).findings == ()


class TestProperties:
    def change(self, dataset: wkdask.Dataset, change: Callable[[Any], object]) -> CheckReport:
        value = json.loads((dataset.path / JSON).read_text())
        change({layer["name"]: layer for layer in value["dataLayers"]})
        (dataset.path / JSON).write_text(json.dumps(value))
        return wkdask.check(dataset.path)

    @pytest.mark.parametrize(
        ("changes", "text"),
        [
            ({"elementClass": "uint16"}, "uint16"),
            ({"elementClass": "int8"}, "int8"),
            ({"elementClass": "uint24", "numChannels": 3}, "3 channel"),
        ],
    )
    def test_json_against_headers(self, dataset, changes, text):
        report = self.change(dataset, lambda layers: layers["color"].update(changes))
        assert kinds(report) == ["properties", "properties"]  # one per mag
        assert not report.ok
        assert all(text in found.text and "header.wkw" in found.text for found in report.findings)
        assert report.files == 2, "the other layer is looked at"

    def test_a_mag_that_is_not_there(self, dataset):
        report = self.change(dataset, lambda layers: layers["cells"]["mags"].append({"mag": 8}))
        finding = only(report)
        assert (finding.kind, report.ok) == ("properties", False)
        assert os.path.join("cells", "8") in finding.text

    @pytest.mark.parametrize("data", [b"", b"wkw" + bytes(13)])
    def test_a_header_that_is_bad(self, dataset, data):
        path = dataset.path / "cells" / "1" / "header.wkw"
        path.write_bytes(data)
        finding = only(wkdask.check(dataset.path))
        assert finding.kind == "properties"
        assert str(path) in finding.text

    def test_a_header_that_fits_neither_json_nor_files(self, dataset):
        path = dataset.path / "cells" / "1" / "header.wkw"
        path.write_bytes(VolumeHeader("uint32", 1, 8, 2, "lz4").to_bytes())
        report = wkdask.check(dataset.path)
        assert kinds(report) == ["unreadable"] * 2


class TestOddities:
    """What is worth a look, though every voxel can be read."""

    def oddity(self, dataset: wkdask.Dataset) -> Finding:
        report = wkdask.check(dataset.path, level=2)
        assert report.ok
        assert not only(report).is_error
        return only(report)

    @pytest.mark.parametrize("at", [(2, 0, 0), (0, 1, 0), (0, 0, 1), (9, 9, 9)])
    def test_a_file_outside_of_the_box(self, dataset, at):
        # mag 2 of (32, 16, 16) is (16, 8, 8): two files of edge 8
        mag = dataset["color"][2].volume
        box = BoundingBox((8 * n for n in at), (1, 1, 1))
        mag.write(box, np.ones((1, 1, 1, 1), np.uint8))
        found = self.oddity(dataset)
        assert (found.kind, found.path) == ("outside", mag.file_path(at))

    def test_a_file_at_the_edge_of_the_box(self, dataset):
        """Of mag 1 the box of 32 voxels holds four files."""
        volume = dataset["color"][1].volume
        volume.write(BoundingBox((31, 15, 15), (1, 1, 1)), np.ones((1, 1, 1, 1), np.uint8))
        assert wkdask.check(dataset.path).findings == ()
        volume.write(BoundingBox((32, 0, 0), (1, 1, 1)), np.ones((1, 1, 1, 1), np.uint8))
        assert self.oddity(dataset).path.endswith("x4.wkw")

    def test_a_bare_mag_has_no_box(self, dataset):
        volume = dataset["color"][1].volume
        volume.write(BoundingBox((800, 0, 0), (1, 1, 1)), np.ones((1, 1, 1, 1), np.uint8))
        assert wkdask.check(volume.path).findings == ()

    @pytest.mark.parametrize(
        "name",
        [
            "notes.txt",
            "z0/notes.txt",
            "z0/y0/notes.txt",
            "z0/y0/x.wkw",
            "z0/y0/x00.wkw",
            "z0/y0/x-1.wkw",
            "z0/y0/x1\N{ARABIC-INDIC DIGIT THREE}.wkw",
            "z0/y0/x1.wkw_tmp",  # of libwkw
            "z01",
            "y0",
            "z0/x0.wkw",
        ],
    )
    def test_a_stray(self, dataset, name):
        path = dataset.path / "color" / "1" / name
        path.write_bytes(b"?")
        found = self.oddity(dataset)
        assert (found.kind, found.path) == ("stray", str(path))

    @pytest.mark.parametrize("name", ["z1", "z0/y1"])
    @pytest.mark.parametrize("bare", [False, True])
    def test_a_file_in_place_of_a_directory(self, dataset, name, bare):
        path = dataset.path / "color" / "1" / name
        path.write_bytes(b"?")
        report = wkdask.check(dataset.path / "color" / "1" if bare else dataset.path, level=2)
        found = only(report)
        assert (found.kind, found.path, report.ok) == ("unreadable", str(path), False)
        assert report.files == (2 if bare else 6), "the rest of the mag is looked at"
        with pytest.raises(StorageError, match=name):
            dataset["color"][1].read((0, 0, 0), (8, 16, 16))

    @pytest.mark.parametrize("make", [os.mkdir, os.mkfifo], ids=["directory", "pipe"])
    def test_only_files_are_leftovers(self, dataset, make):
        path = dataset.path / "color" / "1" / "z0" / f"y0{TEMPORARY_SUFFIX}"
        make(path)
        found = self.oddity(dataset)
        assert (found.kind, found.path) == ("stray", str(path))

    def test_a_mag_that_the_json_does_not_list(self, dataset):
        WkwVolume.create(dataset.path / "color" / "8", VolumeHeader("uint8"))
        found = self.oddity(dataset)
        assert (found.kind, found.path) == ("stray", str(dataset.path / "color" / "8"))

    def test_mappings_beside_the_mags_are_none(self, dataset):
        (dataset.path / "cells" / "mappings").mkdir()
        (dataset.path / "cells" / "mappings" / "a.json").write_text("{}")
        assert wkdask.check(dataset.path).findings == ()

    @pytest.mark.parametrize("name", ["z0", "z0/y0", "z0/y0/x0.wkw", "header.wkw", "."])
    def test_a_link_that_leaves_the_dataset(self, dataset, tmp_path, name):
        path = (dataset.path / "color" / "1" / name).absolute()
        path.rename(tmp_path / "elsewhere")
        path.symlink_to(tmp_path / "elsewhere")
        found = self.oddity(dataset)
        assert (found.kind, found.path) == ("link", str(path))
        assert str(tmp_path / "elsewhere") in found.text

    @pytest.mark.parametrize("name", ["z0", "z0/y0/x0.wkw"])
    def test_a_link_that_stays(self, dataset, name):
        path = dataset.path / "color" / "1" / name
        path.rename(dataset.path / "moved")
        path.symlink_to(dataset.path / "moved")
        assert wkdask.check(dataset.path, level=2).findings == ()

    def test_a_dataset_that_is_reached_by_a_link(self, dataset, tmp_path):
        (tmp_path / "link").symlink_to(dataset.path)
        assert wkdask.check(tmp_path / "link", level=2).findings == ()

    @pytest.mark.parametrize("name", ["z0/y0/x0.wkw", "z0/y0", "z0"])
    @pytest.mark.parametrize("target", ["nowhere", "itself"])
    def test_a_link_to_nothing(self, dataset, tmp_path, name, target):
        path = dataset.path / "color" / "1" / name
        path.rename(tmp_path / "moved")
        path.symlink_to(path if target == "itself" else tmp_path / "nowhere")
        report = wkdask.check(dataset.path)
        assert not report.ok
        assert "unreadable" in kinds(report)
        assert set(kinds(report)) <= {"unreadable", "link"}
        assert report.files >= 4


WRITER = """
import sys
from wkdask.storage import writer as filewriter
from wkdask.storage.header import VolumeHeader

with filewriter.writing(sys.argv[1], VolumeHeader("uint8", 1, 4, 2, "lz4")):
    print("writing", flush=True)
    sys.stdin.read()
"""


def age(path: Path, seconds: float = 3700) -> None:
    modified = time.time() - seconds
    os.utime(path, (modified, modified))


def leftover(directory: Path, seconds: float = 3700) -> Path:
    """Return a file that a writer left there before it died."""
    path = directory / f"x0.wkw.0123456789abcdef{TEMPORARY_SUFFIX}"
    path.write_bytes(b"half a file")
    age(path, seconds)
    return path


class TestLeftovers:
    def test_of_a_dead_writer_but_not_of_a_living_one(self, dataset):
        root = str(Path(wkdask.__file__).parents[1])
        process = subprocess.Popen(
            [sys.executable, "-c", WRITER, str(file_of(dataset))],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": root},
        )
        try:
            assert process.stdout
            assert process.stdout.readline() == b"writing\n"
            (path,) = dataset.path.rglob(f"*{TEMPORARY_SUFFIX}")
            assert wkdask.check(dataset.path).findings == ()
        finally:
            process.kill()
            process.communicate(timeout=20)
        found = only(report := wkdask.check(dataset.path, level=2, sweep=True))
        assert report.ok
        assert (found.kind, found.path) == ("leftover", str(path))
        assert "modified less than an hour ago: it stays" in found.text
        age(path)
        assert "can be deleted" in only(wkdask.check(dataset.path)).text
        swept = only(wkdask.check(dataset.path, sweep=True))
        assert (swept.kind, swept.path) == ("leftover", str(path))
        assert "was deleted" in swept.text
        assert not path.exists()
        assert wkdask.check(dataset.path).findings == ()

    def test_of_this_process(self, dataset):
        header = VolumeHeader("uint8", 1, 4, 2, "lz4")
        with writing(str(file_of(dataset)), header) as file:
            assert wkdask.check(dataset.path, sweep=True).findings == ()
            for box in file.pieces:
                file.append(np.full((1, *box.size), 9, np.uint8))
        # The file was finished under the name that sweeping left alone.
        assert wkdask.check(dataset.path, level=2).findings == ()
        assert dataset["color"][1].read((0, 0, 0), (1, 1, 1)).item() == 9

    def test_sweeping_by_the_command(self, dataset):
        path = leftover(file_of(dataset).parent)
        result = CliRunner().invoke(main, ["check", str(dataset.path), "--sweep"])
        assert result.exit_code == 0
        assert "leftover" in result.output
        assert not path.exists()

    @pytest.mark.parametrize("sweep", [False, True])
    def test_young_ones_stay(self, dataset, sweep):
        path = leftover(file_of(dataset).parent, seconds=3500)
        found = only(wkdask.check(dataset.path, sweep=sweep))
        assert (found.kind, found.path) == ("leftover", str(path))
        assert "its writer may be alive on another machine" in found.text
        assert path.exists()

    def test_one_that_can_not_be_deleted(self, dataset, monkeypatch):
        path = leftover(file_of(dataset).parent, seconds=3500)
        # It was old when it was looked at, and is written to in the instant before it is deleted.
        monkeypatch.setattr(checking, "_is_young", lambda _: False)
        assert "could not be deleted" in only(wkdask.check(dataset.path, sweep=True)).text
        assert path.exists()

    @pytest.mark.parametrize("name", ["z0", "z0/y0", "."])
    def test_nothing_is_deleted_behind_a_link_that_leaves(self, dataset, tmp_path, name):
        path = (dataset.path / "color" / "1" / name).absolute()
        elsewhere = path.rename(tmp_path / "elsewhere")
        path.symlink_to(elsewhere)
        left = leftover(elsewhere)
        report = wkdask.check(dataset.path, sweep=True)
        assert sorted(kinds(report)) == ["leftover", "link"]
        assert "lies outside of the dataset: it stays" in str(report)
        assert left.exists()

    def test_nothing_is_deleted_in_a_mag_that_lies_elsewhere(self, dataset, tmp_path):
        elsewhere = (dataset.path / "color" / "1").rename(tmp_path / "elsewhere")
        value = json.loads((dataset.path / JSON).read_text())
        value["dataLayers"][0]["mags"][0]["path"] = "../elsewhere"
        (dataset.path / JSON).write_text(json.dumps(value))
        left = leftover(elsewhere)
        report = wkdask.check(dataset.path, sweep=True)
        assert report.files == 6
        assert sorted(kinds(report)) == ["leftover", "link"]
        assert left.exists()

    def test_behind_a_link_that_stays(self, dataset):
        path = dataset.path / "color" / "1" / "z0"
        path.symlink_to(path.rename(dataset.path / "moved"))
        left = leftover(dataset.path / "moved")
        found = only(wkdask.check(dataset.path, sweep=True))
        assert found.path == str(path / left.name)
        assert not left.exists()

    @pytest.mark.parametrize("name", [".", "color", "color/8", "color/8/z0", "color/8/z0/y0"])
    def test_beside_the_mags_that_are_listed(self, dataset, name):
        (dataset.path / name).mkdir(parents=True, exist_ok=True)
        path = leftover(dataset.path / name)
        assert only(wkdask.check(dataset.path)).path == str(path)
        found = only(wkdask.check(dataset.path, sweep=True))
        assert (found.kind, found.path) == ("leftover", str(path))
        assert not path.exists()

    def test_in_a_mag_that_can_not_be_opened(self, dataset):
        (dataset.path / "cells" / "1" / "header.wkw").unlink()
        path = leftover(dataset.path / "cells" / "1")
        assert kinds(wkdask.check(dataset.path, sweep=True)) == ["properties", "leftover"]
        assert not path.exists()

    def test_in_a_bare_mag(self, dataset):
        path = leftover(dataset.path / "color" / "1")
        assert only(wkdask.check(path.parent)).path == str(path)
        assert only(wkdask.check(path.parent, sweep=True)).path == str(path)
        assert not path.exists()


class TestReport:
    def test_text(self, dataset):
        file_of(dataset).write_bytes(b"no")
        (dataset.path / "color" / "1" / "notes.txt").touch()
        report = wkdask.check(dataset.path)
        *lines, last = str(report).splitlines()
        assert sorted(line.split(":")[0] for line in lines) == ["stray", "unreadable"]
        assert last.startswith(f"6 files, {report.size_bytes} bytes, level 1: 1 errors, 1 other")

    def test_json(self, dataset):
        file_of(dataset).write_bytes(b"no")
        report = wkdask.check(dataset.path)
        value = json.loads(json.dumps(report.as_dict()))
        assert value == {
            "path": str(dataset.path),
            "level": 1,
            "ok": False,
            "files": 6,
            "bytes": report.size_bytes,
            "findings": [
                {
                    "kind": "unreadable",
                    "path": str(file_of(dataset)),
                    "text": report.findings[0].text,
                }
            ],
        }

    def test_only_errors_make_it_bad(self):
        odd = [Finding(kind, "p", "t") for kind in ("outside", "stray", "link", "leftover")]
        assert CheckReport("p", 1, 0, 0, tuple(odd)).ok
        for kind in ("unreadable", "properties"):
            assert not CheckReport("p", 1, 0, 0, (*odd, Finding(kind, "p", "t"))).ok


@pytest.fixture(scope="module")
def thousand(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A mag of 1,000 files, of which the last and one of each batch are bad."""
    path = tmp_path_factory.mktemp("thousand") / "1"
    volume = WkwVolume.create(path, VolumeHeader("uint8", 1, 1, 2, "lz4"))
    volume.write(BoundingBox((0, 0, 0), (20, 20, 20)), np.ones((1, 20, 20, 20), np.uint8))
    for z in range(0, 10, 3):
        Path(volume.file_path((z, 9 - z, z))).write_bytes(b"bad")
    return path


class TestMany:
    BAD = 4

    def check(self, path: Path, **arguments: Any) -> None:
        report = wkdask.check(path, **arguments)
        assert report.files == 1000
        assert kinds(report) == ["unreadable"] * self.BAD

    def test_on_threads(self, thousand):
        start = time.perf_counter()
        self.check(thousand)
        assert time.perf_counter() - start < 5, "1,000 files a second, if nothing else runs"

    def test_on_an_executor(self, thousand):
        with ThreadPoolExecutor(2) as pool:
            self.check(thousand, executor=pool)

    def test_on_a_cluster(self, thousand, client):
        self.check(thousand, executor=client, level=2)

    def test_on_the_active_client(self, thousand, client):
        self.check(thousand)

    def test_other_executors_are_refused(self, thousand):
        with pytest.raises(ArgumentError, match="executor"):
            wkdask.check(thousand, executor="threads")

    def test_bar(self, thousand, capsys):
        self.check(thousand, progress=True)
        assert "100%" in capsys.readouterr().err
        self.check(thousand)
        assert capsys.readouterr().err == ""

    def test_each_file_is_looked_at_once(self, tmp_path):
        volume = WkwVolume.create(tmp_path / "1", VolumeHeader("uint8", 1, 1, 1))
        paths = [Path(volume.file_path((x, 0, z))) for x in range(50) for z in range(20)]
        for path in paths:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(b"bad")
        report = wkdask.check(volume.path)
        assert sorted(found.path for found in report.findings) == sorted(map(str, paths))

    def test_work_is_cut_into_batches(self, thousand, monkeypatch):
        seen = []
        found_in = checking._found_in
        monkeypatch.setattr(
            checking, "_found_in", lambda tasks, *a: seen.append(len(tasks)) or found_in(tasks, *a)
        )
        self.check(thousand)
        assert seen == [4]
