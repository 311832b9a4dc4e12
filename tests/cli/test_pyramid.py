"""`wkdask downsample`, `upsample`, `compress`: which layers, and what is told of them."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import wkdask
from wkdask.cli.main import main
from wkdask.geometry import BoundingBox

BOX = BoundingBox((3, 5, 7), (20, 30, 40))
SMALL: dict[str, Any] = {"block_edge": 8, "blocks_per_file_edge": 2}


@dataclass
class Result:
    """What a command printed, and how it ended."""

    exit_code: Any
    stdout: str
    stderr: str


@pytest.fixture
def command(capsys: Any) -> Callable[..., Result]:
    def run(*arguments: Any) -> Result:
        with pytest.raises(SystemExit) as end:
            main([str(argument) for argument in arguments])
        return Result(end.value.code, *capsys.readouterr())

    return run


@pytest.fixture
def dataset(tmp_path: Path) -> wkdask.Dataset:
    """A layer in another format, one without mags, and two with mag 1."""
    ds = wkdask.create(tmp_path / "tissue", (8, 8, 8))
    ds.add_layer("remote", "color", "uint8", bounding_box=BOX)
    ds.add_layer("later", "color", "uint8", bounding_box=BOX)
    for name in ("color", "cells"):
        mag = ds.add_layer(name, "color", "uint8", bounding_box=BOX).add_mag(1, **SMALL)
        mag.get_view().write(np.full(BOX.size, 7, np.uint8))
    path = ds.path / "datasource-properties.json"
    said = json.loads(path.read_text())
    said["dataLayers"][0]["dataFormat"] = "n5"
    path.write_text(json.dumps(said))
    return wkdask.open(ds.path)


def mags(dataset: wkdask.Dataset, name: str) -> list[str]:
    return [str(mag) for mag in wkdask.open(dataset.path)[name].mags]


class TestLayersWithNothingToMake:
    def test_the_others_are_made(self, command: Any, dataset: wkdask.Dataset) -> None:
        dataset["cells"].downsample()
        result = command("downsample", dataset.path)
        assert result.exit_code == 0
        told = result.stderr.splitlines()
        assert [line.split("layer ")[1].split("'")[1] for line in told] == [
            "remote", "later", "cells",
        ]  # fmt: skip
        assert mags(dataset, "color") == ["1", "2", "4"]
        assert result.stdout.startswith("color: chunks")

    def test_all_is_there(self, command: Any, dataset: wkdask.Dataset, snapshot: Any) -> None:
        command("downsample", dataset.path)
        before = snapshot(dataset.path)
        result = command("downsample", dataset.path, "--json")
        assert (result.exit_code, json.loads(result.stdout)) == (0, {})
        assert result.stderr.count("Skipped") == 4
        assert command("downsample", dataset.path, "--dry-run").stdout == ""
        assert command("upsample", dataset.path).exit_code == 0
        assert snapshot(dataset.path) == before

    def test_mags_that_were_named(self, command: Any, dataset: wkdask.Dataset) -> None:
        result = command("downsample", dataset.path, "--mag", "2")
        assert result.exit_code == 1
        assert "layer 'later' has no mag" in result.stderr

    def test_nothing_is_made_if_one_is_wrong(
        self, command: Any, dataset: wkdask.Dataset, snapshot: Any
    ) -> None:
        dataset["cells"].downsample(mags=[2])
        before = snapshot(dataset.path)
        names = ("--layer-name", "color", "--layer-name", "cells")
        result = command("downsample", dataset.path, *names, "--from-mag", "1", "--mag", "2")
        assert result.exit_code == 1
        assert "layer 'cells' has a mag 2 already" in result.stderr
        assert snapshot(dataset.path) == before


class TestCompress:
    def test_mags_elsewhere_are_skipped(
        self, command: Any, dataset: wkdask.Dataset, tmp_path: Path
    ) -> None:
        mag = dataset.path / "cells" / "1"
        mag.rename(tmp_path / "elsewhere")
        mag.symlink_to(tmp_path / "elsewhere")
        result = command("compress", dataset.path, "--block-type", "raw")
        assert result.exit_code == 0
        assert "mag 1 of layer 'cells' lies outside" in result.stderr
        assert result.stdout.startswith("color/1: ")
        named = command("compress", dataset.path, "--layer-name", "cells")
        assert "read-only" in named.stderr
        assert named.exit_code == 1

    def test_nothing_is_changed_if_one_is_wrong(
        self, command: Any, dataset: wkdask.Dataset, snapshot: Any
    ) -> None:
        (dataset.path / "cells" / "1" / "header.wkw").unlink()
        before = snapshot(dataset.path)
        assert command("compress", dataset.path, "--block-type", "raw").exit_code == 1
        assert snapshot(dataset.path) == before
