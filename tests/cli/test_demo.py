"""The demo: it passes, it writes only where it may, and it fails where a voxel is wrong."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result

import wkdask
from wkdask.cli import demo
from wkdask.cli.main import main
from wkdask.geometry import BoundingBox

JSON = "datasource-properties.json"
BOX = BoundingBox((9, 5, 3), (30, 27, 21))
Snapshot = Callable[[Path], dict[str, bytes | None]]
ROOT = str(Path(wkdask.__file__).parents[1])


def in_a_process(*arguments: Any, cwd: Path) -> subprocess.CompletedProcess[str]:
    """Run the command as a user does, with worker processes of its own."""
    path = os.pathsep.join([ROOT, *filter(None, [os.environ.get("PYTHONPATH")])])
    return subprocess.run(
        [
            sys.executable,
            "-c",
            "from wkdask.cli.main import main; main()",
            "demo",
            *map(str, arguments),
        ],
        capture_output=True,
        text=True,
        timeout=240,
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": path},
    )


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch, client: Any, tmp_path: Path) -> Path:
    """The current directory of a command that runs in this process, on the tests' cluster."""

    @contextlib.contextmanager
    def shared(_: int) -> Iterator[Any]:
        yield client

    monkeypatch.setattr(demo, "_cluster", shared)
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    return tmp_path / "here"


def demo_command(*arguments: Any) -> Result:
    return CliRunner().invoke(main, ["demo", *map(str, arguments)])


def voxels_of(shape: tuple[int, ...], dtype: str, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 5, shape).astype(dtype)


def add(ds: wkdask.Dataset, name: str, category: str, dtype: str, mag: Any = 1, channels: int = 1):
    layer = ds.add_layer(name, category, dtype, channels, BOX)
    view = layer.add_mag(mag, 4, 4, "lz4").get_view()
    view.write(voxels_of(view.shape, dtype))
    return layer


@pytest.fixture
def given(tissue: wkdask.Dataset) -> wkdask.Dataset:
    """A small dataset with color and segmentation."""
    add(tissue, "color", "color", "uint8", channels=2)
    add(tissue, "cells", "segmentation", "uint64").largest_segment_id = 2**60
    return tissue


@pytest.mark.slow
class TestSynthetic:
    @pytest.fixture(scope="class")
    @staticmethod
    def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
        """The directory in which `wkdask demo` ran, and what it printed."""
        path = tmp_path_factory.mktemp("demo")
        return path, in_a_process(cwd=path)

    def test_it_passes(self, made):
        path, done = made
        assert done.returncode == 0, done.stdout + done.stderr
        lines = done.stdout.splitlines()
        assert lines[-1] == "PASS"
        assert [entry.name for entry in path.iterdir()] == ["wkdask-demo"]
        for words in (
            ["dashboard", "http://127.0.0.1:"],
            ["painted", "color", " s "],
            ["painted", "segmentation"],
            ["sliced", "color", "::2"],
            ["function"],
            ["downsampled", "color", "2-2-1", "median"],
            ["downsampled", "segmentation", "2-2-1", "mode"],
            ["voxels compared", "0 differ"],
            [str(path / "wkdask-demo")],
        ):
            assert any(all(word in line for word in words) for line in lines), words
        assert done.stderr == ""

    def test_what_it_made(self, made):
        ds = wkdask.open(made[0] / "wkdask-demo")
        assert [*ds.layers] == ["color", "segmentation", "color_negative"]
        for layer in ds.layers.values():
            assert [*map(str, layer.mags)] == ["1", "2-2-1"]
            box = layer.bounding_box
            assert all(a % 32 and b % 32 for a, b in zip(box.topleft, box.bottomright, strict=True))
            # Nothing that a run leaves behind by accident.
            assert not list((ds.path / layer.name).rglob("*tmp*"))
        labels = ds["segmentation"][1].get_view().read()
        assert ds["segmentation"].largest_segment_id == labels.max()
        assert len(np.unique(labels)) > 50
        grey = ds["color"][1].get_view().read()
        borders = (labels[:, 1:] != labels[:, :-1])[:, :, 1:] | (
            labels[:, :, 1:] != labels[:, :, :-1]
        )[:, 1:]
        inner = grey[:, 1:, 1:]
        # Membranes are dark: a wrong axis would not show this.
        assert inner[borders].mean() + 20 < inner[~borders].mean()
        np.testing.assert_array_equal(ds["color_negative"][1].get_view().read(), ~grey)

    @pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")
    def test_webknossos_opens_it(self, made, webknossos):
        ours = wkdask.open(made[0] / "wkdask-demo")
        theirs = webknossos.Dataset.open(ours.path)
        assert sorted(theirs.layers) == sorted(ours.layers)
        for layer in ours.layers.values():
            for mag, view in layer.mags.items():
                found = theirs.get_layer(layer.name).get_mag(str(mag)).read()
                np.testing.assert_array_equal(found, view.get_view().read())


class TestGiven:
    @pytest.mark.slow
    def test_in_a_process(self, given, tmp_path, snapshot):
        before = snapshot(given.path)
        done = in_a_process(given.path, "--output", tmp_path / "out", cwd=tmp_path)
        assert done.returncode == 0, done.stdout + done.stderr
        assert done.stdout.splitlines()[-1] == "PASS"
        assert snapshot(given.path) == before
        assert {entry.name for entry in tmp_path.iterdir()} == {"tissue", "out"}
        found = wkdask.open(tmp_path / "out")
        assert [*found.layers] == ["color", "cells", "color_negative"]
        assert (found.voxel_size, found.unit) == (given.voxel_size, given.unit)
        assert found["cells"].largest_segment_id == 2**60
        for name in ("color", "cells"):
            assert [*map(str, found[name].mags)] == ["1", "2-2-1"]
            assert found[name].bounding_box == BOX
            expected = given[name][1].get_view().read()
            np.testing.assert_array_equal(found[name][1].get_view().read(), expected)

    def test_output_is_numbered(self, given, here, snapshot):
        for name in ("wkdask-demo", "wkdask-demo-2", "wkdask-demo-3"):
            before = snapshot(here)
            result = demo_command(given.path)
            assert (result.exit_code, result.output.splitlines()[-1]) == (0, "PASS")
            assert str(here / name) in result.output
            assert before.items() <= snapshot(here).items()
        assert len(list(here.iterdir())) == 3

    def test_a_demo_of_a_demo(self, given, here):
        assert demo_command(given.path).exit_code == 0
        result = demo_command("wkdask-demo", "--output", "again")
        assert (result.exit_code, result.output.splitlines()[-1]) == (0, "PASS"), result.output
        assert [*wkdask.open("again").layers] == [
            "color",
            "cells",
            "color_negative",
            "color_negative-2",
        ]

    def test_only_what_can_be_read_is_shown(self, given, here):
        """Other formats, layers without mags and empty ones are left out."""
        add(given, "coarse", "color", "float32", "4-4-2")
        given.add_layer("no mags", "color", "uint8", bounding_box=BOX)
        given.add_layer("no box", "color", "uint8").add_mag(1)
        value = json.loads((given.path / JSON).read_text())
        remote = {**value["dataLayers"][0], "name": "remote", "dataFormat": "n5"}
        value["dataLayers"].insert(0, remote)
        (given.path / JSON).write_text(json.dumps(value))
        result = demo_command(given.path)
        assert (result.exit_code, result.output.splitlines()[-1]) == (0, "PASS"), result.output
        found = wkdask.open("wkdask-demo")
        assert [*found.layers] == ["color", "cells", "coarse", "color_negative"]
        assert [*map(str, found["coarse"].mags)] == ["4-4-2", "8-8-4"]

    @pytest.mark.parametrize("dtype", ["int8", "int64", "uint64", "float32", "float64"])
    def test_dtypes(self, tissue, here, dtype):
        view = add(tissue, "a", "color", dtype)[1].get_view()
        voxels = voxels_of(view.shape, dtype) * np.dtype(dtype).type(7)
        if np.dtype(dtype).kind == "f":
            voxels[0, 5:8, 5, 5] = np.nan
        view.write(voxels)
        result = demo_command(tissue.path)
        assert (result.exit_code, result.output.splitlines()[-1]) == (0, "PASS"), result.output

    @pytest.mark.slow
    def test_a_real_volume(self, real_volume, tmp_path, snapshot):
        before = snapshot(real_volume)
        done = in_a_process(real_volume, cwd=tmp_path)
        assert done.returncode == 0, done.stdout + done.stderr
        assert done.stdout.splitlines()[-1] == "PASS"
        assert snapshot(real_volume) == before
        found, source = wkdask.open(tmp_path / "wkdask-demo"), wkdask.open(real_volume)
        for name in ("color", "segmentation"):
            expected = source[name][1].get_view().read()
            np.testing.assert_array_equal(found[name][1].get_view().read(), expected)
            assert [*map(str, found[name].mags)] == ["1", "2"]


Prepare = Callable[[wkdask.Dataset], list[Any]]


def without_layers(given: wkdask.Dataset) -> list[Any]:
    ds = wkdask.create(given.path.parent / "empty", (1, 1, 1))
    ds.add_layer("a", "color", "uint8").add_mag(1)
    return [ds.path]


def with_a_broken_file(given: wkdask.Dataset) -> list[Any]:
    (given.path / "color" / "1" / "header.wkw").write_bytes(b"WKW")
    return [given.path]


REFUSED: list[tuple[Prepare, list[str], str]] = [
    # arguments, words of the text, reason
    (lambda given: [given.path, "--output", given.path], ["exists", "--output"], "itself"),
    (lambda given: [given.path, "--output", given.path / JSON], ["exists"], "a file"),
    (lambda given: ["--output", given.path.parent], ["exists"], "a directory"),
    (lambda given: [given.path, "--output", given.path / "x"], ["x lies in"], "inside"),
    (lambda given: [given.path, "--output", given.path / "color" / "x"], ["lies in"], "deeper"),
    (
        lambda given: [given.path, "--output", given.path / ".." / "tissue" / "x"],
        ["lies in"],
        "inside by another way",
    ),
    (lambda given: ["nowhere"], ["nowhere", "not a directory"], "no dataset"),
    (lambda given: [given.path / "color"], [JSON], "a layer"),
    (without_layers, ["no layer with voxels"], "nothing to show"),
    (with_a_broken_file, ["header.wkw", "3 bytes"], "unreadable"),
]


class TestRefused:
    @pytest.mark.parametrize(
        ("prepare", "words", "reason"), REFUSED, ids=[row[-1] for row in REFUSED]
    )
    def test_nothing_is_written(
        self, given, tmp_path, monkeypatch, snapshot, prepare, words, reason
    ):
        monkeypatch.chdir(tmp_path)
        arguments = prepare(given)
        before = snapshot(tmp_path)
        result = demo_command(*arguments)
        assert result.exit_code == 1
        assert result.output.startswith("Error: ")
        assert len(result.output.splitlines()) == 1
        assert [word for word in words if word not in result.output] == [], result.output
        assert snapshot(tmp_path) == before

    def test_a_link_into_the_dataset(self, given, tmp_path, monkeypatch, snapshot):
        (tmp_path / "link").symlink_to(given.path)
        monkeypatch.chdir(tmp_path)
        before = snapshot(tmp_path)
        assert demo_command(given.path, "--output", "link/x").exit_code == 1
        assert snapshot(tmp_path) == before

    def test_standing_in_the_dataset(self, given, monkeypatch, snapshot):
        monkeypatch.chdir(given.path)
        before = snapshot(given.path)
        result = demo_command(".")
        assert (result.exit_code, "--output" in result.output) == (1, True), result.output
        assert snapshot(given.path) == before


def one_voxel_off(function: Callable[..., Any]) -> Callable[..., Any]:
    """Return a function whose result differs in the last voxel."""

    def wrong(*args: Any) -> Any:
        voxels = np.array(function(*args), order="F")
        voxels[(-1,) * voxels.ndim] += 1
        return voxels

    return wrong


class TestFail:
    """One wrong voxel anywhere is enough."""

    @pytest.mark.parametrize("name", ["_plain_median", "_plain_mode", "_by_libwkw"])
    def test_a_result_that_is_not_expected(self, given, here, monkeypatch, name):
        monkeypatch.setattr(demo, name, one_voxel_off(getattr(demo, name)))
        self.check_fail(demo_command(given.path))

    def test_a_chunk_function_that_is_wrong(self, given, here, monkeypatch):
        # The workers have the right one; it is the expectation that is another.
        monkeypatch.setattr(demo, "_complement", one_voxel_off(np.invert))
        self.check_fail(demo_command(given.path))

    def test_a_voxel_on_disk(self, given, here, monkeypatch):
        right = demo.downsample

        def wrong(source: Any, target: Any, mode: str) -> None:
            right(source, target, mode)
            if source.layer.name == "cells":
                corner = target.bounding_box.bottomright
                last = tuple(at - 1 for at in corner)
                target.write(target.read(last, (1, 1, 1)) + np.uint64(1), last)

        monkeypatch.setattr(demo, "downsample", wrong)
        with pytest.warns(RuntimeWarning, match="parts of compressed files"):
            result = demo_command(given.path)
        self.check_fail(result, "1 differ")

    def test_a_lazy_slice_that_is_wrong(self, given, here, monkeypatch):
        right = wkdask.View.__getitem__

        def wrong(self: wkdask.View, index: Any) -> Any:
            return right(self, index) + 1

        monkeypatch.setattr(wkdask.View, "__getitem__", wrong)
        self.check_fail(demo_command(given.path))

    def check_fail(self, result: Result, text: str = "differ") -> None:
        assert result.exit_code == 1, result.output
        lines = result.output.splitlines()
        assert lines[-1] == "FAIL"
        assert any(text in line for line in lines)
        assert " 0 differ" not in result.output
