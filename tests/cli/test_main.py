"""The command line: it starts fast, shows everything, and its errors are one line."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result

import wkdask
from wkdask.cli.main import main
from wkdask.geometry import BoundingBox
from wkdask.storage.header import VolumeHeader
from wkdask.storage.wkw import WkwVolume

JSON = "datasource-properties.json"
HEAVY = {"numpy", "dask", "distributed", "numba", "wkw", "xarray", "pandas", "lz4"}
LARGEST = 2**60 + 1


def python(*arguments: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    """Run Python with this wkdask, wherever the current directory is."""
    root = str(Path(wkdask.__file__).parents[1])
    path = os.pathsep.join([root, *filter(None, [os.environ.get("PYTHONPATH")])])
    return subprocess.run(
        [sys.executable, *arguments],
        capture_output=True,
        text=True,
        timeout=60,
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": path},
    )


def wkdask_command(*arguments: Any) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


@pytest.fixture
def furnished(tissue: wkdask.Dataset) -> wkdask.Dataset:
    """A dataset with a bit of everything."""
    box = BoundingBox((3, 5, 7), (20, 30, 40))
    color = tissue.add_layer("color", "color", "uint8", 3, box)
    for mag, block_type in (("1", "raw"), ("2-2-1", "lz4")):
        view = color.add_mag(mag, 4, 2, block_type).get_view()
        view.write(np.ones(view.shape, np.uint8))
    cells = tissue.add_layer("cells", "segmentation", "uint64", largest_segment_id=LARGEST)
    cells.add_mag(4, 8, 8)
    tissue.add_layer("later", "color", "float32")
    value = json.loads((tissue.path / JSON).read_text())
    value["id"]["name"] = "another name"
    value["dataLayers"].append({**value["dataLayers"][0], "name": "remote", "dataFormat": "n5"})
    (tissue.path / JSON).write_text(json.dumps(value))
    return wkdask.open(tissue.path)


class TestStart:
    @pytest.mark.parametrize(
        "code",
        [
            "import wkdask; wkdask.__version__; dir(wkdask)",
            "import wkdask; wkdask.errors.WkdaskError",
            "import wkdask.cli.main",
        ],
    )
    def test_import_is_light(self, code):
        done = python("-c", f"{code}\nimport sys; print(*sys.modules)")
        assert done.returncode == 0, done.stderr
        assert "wkdask" in done.stdout.split()
        assert HEAVY & {*done.stdout.split()} == set()

    @pytest.mark.parametrize("arguments", [["--help"], ["--version"], ["demo", "--help"]])
    def test_help_is_light(self, arguments):
        done = python(
            "-X", "importtime", "-c", "from wkdask.cli.main import main; main()", *arguments
        )
        assert done.returncode == 0
        imported = {line.split("|")[-1].strip() for line in done.stderr.splitlines()}
        assert "wkdask.cli.main" in imported
        assert HEAVY & imported == set()

    def test_help_names_the_commands(self):
        result = wkdask_command("--help")
        assert result.exit_code == 0
        assert all(word in result.output for word in ("info", "demo", "WEBKNOSSOS"))
        assert wkdask_command("-h").output == result.output

    def test_help_of_the_commands_names_their_options(self):
        assert "--json" in wkdask_command("info", "--help").output
        assert "--output" in wkdask_command("demo", "--help").output

    def test_version(self):
        assert wkdask.__version__ in wkdask_command("--version").output

    def test_every_public_name_is_there(self):
        for name in wkdask.__all__:
            assert getattr(wkdask, name) is not None
        with pytest.raises(AttributeError, match="'nothing'"):
            wkdask.nothing  # noqa: B018


def mag_facts(layer: wkdask.Layer, mag: str, box: BoundingBox, **facts: Any) -> dict[str, Any]:
    """Return what a mag must say; its files and bytes are counted here."""
    path = layer.dataset.path / layer.name / mag
    sizes = [file.stat().st_size for file in path.rglob("x*.wkw")]
    return {
        "mag": mag,
        "path": str(path),
        "dtype": str(layer.dtype),
        "num_channels": layer.num_channels,
        "bounding_box": box_facts(box),
        "files": len(sizes),
        "bytes": sum(sizes),
        **facts,
    }


def box_facts(box: BoundingBox) -> dict[str, list[int]]:
    return {"topleft": list(box.topleft), "size": list(box.size)}


class TestInfo:
    def test_json_of_a_dataset(self, furnished):
        result = wkdask_command("info", furnished.path, "--json")
        assert result.exit_code == 0
        facts = json.loads(result.output)
        layers = {layer["name"]: layer for layer in facts.pop("layers")}
        assert facts == {
            "path": str(furnished.path),
            "name": "another name",
            "voxel_size": [11.24, 11.24, 28.0],
            "unit": "nanometer",
        }
        color = furnished["color"]
        edges = {"block_edge": 4, "file_edge": 8}
        coarse = BoundingBox((1, 2, 7), (11, 16, 40))
        remote = {
            "name": "remote",
            "category": "color",
            "data_format": "n5",
            "dtype": "uint8",
            "num_channels": 3,
            "bounding_box": box_facts(color.bounding_box),
            "largest_segment_id": None,
        }
        assert layers.pop("remote") == remote
        assert layers.pop("color") == {
            **remote,
            "name": "color",
            "data_format": "wkw",
            "mags": [
                mag_facts(color, "1", color.bounding_box, block_type="raw", **edges),
                mag_facts(color, "2-2-1", coarse, block_type="lz4", **edges),
            ],
        }
        cells = layers.pop("cells")
        assert cells["largest_segment_id"] == LARGEST
        assert (cells["mags"][0]["files"], cells["mags"][0]["bytes"]) == (0, 0)
        assert layers.pop("later")["mags"] == []
        assert layers == {}

    def test_text_of_a_dataset(self, furnished):
        result = wkdask_command("info", furnished.path)
        assert result.exit_code == 0
        lines = result.output.splitlines()
        for words in (
            [str(furnished.path)],
            ["another name"],
            ["11.24 x 11.24 x 28 nanometer"],
            ["color", "uint8", "3 channels"],
            ["20 x 30 x 40 at (3, 5, 7)", "mag 1"],
            ["mag 1 ", "raw", "block edge 4", "file edge 8", "90 files", "KiB"],
            ["mag 2-2-1", "11 x 16 x 40 at (1, 2, 7)", "lz4", "36 files", "KiB"],
            ["cells", "segmentation", "uint64", str(LARGEST)],
            ["mag 4", "lz4hc", "0 files", "0 bytes"],
            ["later", "float32"],
            ["no mags"],
            ["n5"],
        ):
            assert any(all(word in line for word in words) for line in lines), words

    def test_a_bare_mag(self, tmp_path):
        volume = WkwVolume.create(tmp_path / "4-4-2", VolumeHeader("int16", 3, 4, 2))
        volume.write(BoundingBox((9, 0, 17), (1, 1, 1)), np.ones((3, 1, 1, 1), np.int16))
        facts = json.loads(wkdask_command("info", tmp_path / "4-4-2", "--json").output)
        assert facts == {
            "path": volume.path,
            "mags": [
                {
                    "mag": "4-4-2",
                    "path": volume.path,
                    "dtype": "int16",
                    "num_channels": 3,
                    "bounding_box": {"topleft": [8, 0, 16], "size": [8, 8, 8]},
                    "block_type": "raw",
                    "block_edge": 4,
                    "file_edge": 8,
                    "files": 1,
                    "bytes": 16 + 8**3 * 6,
                }
            ],
        }
        text = wkdask_command("info", tmp_path / "4-4-2").output
        for word in ("4-4-2", "int16 x 3 channels", "8 x 8 x 8 at (8, 0, 16)", "1 file", "3.0 KiB"):
            assert word in text

    def test_a_bare_mag_without_a_name(self, tmp_path):
        WkwVolume.create(tmp_path / "raw", VolumeHeader("uint8"))
        assert (
            json.loads(wkdask_command("info", tmp_path / "raw", "--json").output)["mags"][0]["mag"]
            is None
        )
        assert "mag ?" in wkdask_command("info", tmp_path / "raw").output

    def test_an_empty_dataset(self, tissue):
        result = wkdask_command("info", tissue.path)
        assert result.exit_code == 0
        assert "no layers" in result.output

    def test_nothing_is_changed(self, furnished, tmp_path, snapshot):
        before = snapshot(tmp_path)
        wkdask_command("info", furnished.path)
        assert snapshot(tmp_path) == before


class TestCheck:
    def bad(self, dataset: wkdask.Dataset) -> Path:
        path = next(iter(sorted((dataset.path / "color" / "1").rglob("x*.wkw"))))
        path.write_bytes(b"no")
        return path

    def test_clean(self, furnished, tmp_path, snapshot):
        before = snapshot(tmp_path)
        for level in ("1", "2"):
            result = wkdask_command("check", furnished.path, "--level", level)
            assert result.exit_code == 0
            assert f"level {level}: 0 errors, 0 other" in result.output
        assert snapshot(tmp_path) == before

    def test_damage(self, furnished):
        path = self.bad(furnished)
        result = wkdask_command("check", furnished.path)
        assert result.exit_code == 1
        first, last = result.output.splitlines()
        assert first.startswith(f"unreadable: {path} has 2 bytes")
        assert "1 errors" in last

    def test_json(self, furnished):
        path = self.bad(furnished)
        result = wkdask_command("check", furnished.path, "--json", "--level", "2")
        assert result.exit_code == 1
        value = json.loads(result.output)
        assert (value["ok"], value["level"]) == (False, 2)
        assert [found["path"] for found in value["findings"]] == [str(path)]

    def test_oddities_are_no_failure(self, furnished):
        (furnished.path / "color" / "1" / "notes.txt").touch()
        result = wkdask_command("check", furnished.path)
        assert result.exit_code == 0
        assert result.output.startswith("stray: ")

    def test_bar(self, furnished):
        assert "%" not in wkdask_command("check", furnished.path).output
        assert "100%" in wkdask_command("check", furnished.path, "--progress").output

    def test_level(self, furnished):
        assert wkdask_command("check", furnished.path, "--level", "3").exit_code == 2

    def test_help(self):
        text = wkdask_command("check", "--help").output
        assert all(word in text for word in ("--level", "--json", "--progress", "exit code"))
        assert "check" in wkdask_command("--help").output

    def test_nothing_there(self, tmp_path):
        result = wkdask_command("check", tmp_path / "nowhere")
        assert result.exit_code == 1
        assert result.output.startswith("Error: ")

    def test_json_with_a_bar(self, furnished):
        result = wkdask_command("check", furnished.path, "--json", "--progress")
        assert json.loads(result.stdout)["ok"]


ERRORS = [
    # what is broken, words of the text, reason
    (lambda path: path / "nowhere", ["nowhere", "not a directory"], "nothing there"),
    (lambda path: path / JSON, [JSON, "not a directory"], "a file"),
    (lambda path: path / "color", ["color", JSON], "neither a dataset nor a mag"),
    (lambda path: spoiled(path / JSON, b"{"), [JSON, "not JSON"], "cut short"),
    (lambda path: spoiled(path / "color/1/header.wkw", b"x"), ["header.wkw", "1 bytes"], "header"),
    (
        lambda path: spoiled(path / "color/1/header.wkw", b"x").parent,
        ["header.wkw", "1 bytes"],
        "header of a bare mag",
    ),
]


def spoiled(path: Path, data: bytes) -> Path:
    """Overwrite a file, and return the dataset that it is in."""
    path.write_bytes(data)
    return path if path.name == "header.wkw" else path.parent


@pytest.mark.parametrize(("broken", "words", "reason"), ERRORS, ids=[row[-1] for row in ERRORS])
@pytest.mark.parametrize("command", [["info"], ["info", "--json"], ["demo"]])
def test_errors_are_one_line(
    furnished, tmp_path, monkeypatch, snapshot, broken, words, reason, command
):
    path = broken(furnished.path)
    if reason == "header":
        path = furnished.path
    if command == ["demo"] and "bare" in reason:
        words = [JSON]
    elif command == ["demo"] and reason == "neither a dataset nor a mag":
        words = ["color", JSON]
    monkeypatch.chdir(tmp_path)
    before = snapshot(tmp_path)
    result = wkdask_command(*command, path)
    assert result.exit_code == 1
    assert isinstance(result.exception, SystemExit)
    if command[0] == "info" and reason == "header":
        # The other mags are shown all the same.
        assert all(word in result.output for word in ["segmentation", *words])
        return
    lines = result.output.splitlines()
    assert len(lines) == 1
    assert lines[0].startswith("Error: ")
    assert [word for word in words if word not in lines[0]] == [], lines[0]
    assert snapshot(tmp_path) == before


def test_errors_in_a_process_of_its_own(tmp_path):
    done = python("-c", "from wkdask.cli.main import main; main()", "info", "nowhere", cwd=tmp_path)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("Error: ")
    assert "Traceback" not in done.stderr
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize("arguments", [["info"], ["infos"], ["info", "a", "b"], ["--loud"]])
def test_wrong_usage(arguments):
    result = wkdask_command(*arguments)
    assert result.exit_code == 2
    assert "Usage" in result.output


class TestVerbosity:
    def test_quiet(self, furnished):
        done = wkdask_command("-q", "info", furnished.path)
        assert (done.exit_code, done.output) == (0, "")
        done = wkdask_command("-q", "info", furnished.path, "--json")
        assert json.loads(done.output)["name"] == furnished.name
        done = wkdask_command("-q", "info", "nowhere")
        assert done.exit_code == 1
        assert done.output.startswith("Error: ")

    def test_verbose(self):
        done = wkdask_command("-v", "info", "nowhere")
        assert done.exit_code == 1
        assert "Traceback" in done.output
        assert "Traceback" not in wkdask_command("info", "nowhere").output

    @pytest.mark.parametrize("name", sorted(main.commands))
    def test_every_command_has_an_example(self, name):
        text = wkdask_command(name, "--help").output
        assert f"wkdask {name}" in text.split("Example:")[1]
