"""Two processes on two mounts of one directory, which share no locks and see changes late."""

from __future__ import annotations

import random
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from machines import Machine
from servers import mounted_twice

import wkdask
from wkdask import BoundingBox
from wkdask.kernels import downsample

pytestmark = pytest.mark.slow
BOX = BoundingBox((0, 0, 0), (64, 64, 64))
FILE = 32
STORED: dict[str, Any] = {"block_edge": 8, "blocks_per_file_edge": FILE // 8}


@pytest.fixture
def shared(tmp_path: Path) -> Iterator[tuple[Path, list[Machine]]]:
    """The directory itself, and two machines that mount it."""
    with mounted_twice(tmp_path) as places:
        if places is None:
            pytest.skip("sshfs is not installed, or nothing can be mounted here")
        directory, *mounts = places
        wkdask.create(directory / "tissue", (8, 8, 8))
        machines = [Machine(place) for place in mounts]
        yield directory / "tissue", machines
        for machine in machines:
            machine.close()


def new_layer(path: Path, name: str, block_type: Any) -> wkdask.Layer:
    layer = wkdask.open(path).add_layer(name, "color", "uint8", bounding_box=BOX)
    layer.add_mag(1, block_type=block_type, **STORED)
    return layer


def run(machine: Machine, what: str, layer: str, **options: Any) -> int:
    """Do something, again where a file has been seen as it was; return how often it was refused."""
    for refused in range(40):
        machine.begin(what, layer, **options)
        if (reason := machine.end()) is None:
            return refused
        time.sleep(0.25)
    raise AssertionError(reason)


def leftovers(path: Path) -> list[str]:
    names = {"datasource-properties.json", "header.wkw"}
    files = (each for each in path.rglob("*") if each.is_file() and each.suffix != ".wkw")
    return [str(each) for each in files if each.name not in names]


@pytest.mark.parametrize("block_type", ["raw", "lz4"])
def test_stores_by_turns(shared: tuple[Path, list[Machine]], block_type: str) -> None:
    """Each merges with what the other has just written."""
    path, machines = shared
    new_layer(path, "a", block_type)
    rng = random.Random(5)
    expected = np.zeros(BOX.size, np.uint8)
    refused = 0
    for value in range(1, 51):
        low = [rng.randrange(64) for _ in range(3)]
        size = [rng.randrange(1, 65 - at) for at in low]
        refused += run(rng.choice(machines), "write", "a", topleft=low, size=size, value=value)
        expected[tuple(slice(at, at + n) for at, n in zip(low, size, strict=True))] = value
        np.testing.assert_array_equal(wkdask.open(path)["a"][1].read()[0], expected)
    assert refused < 50
    assert leftovers(path) == []


def test_pyramids_at_once(shared: tuple[Path, list[Machine]]) -> None:
    """Of two runs on one layer both end alike, or one is refused; the mags are right."""
    path, machines = shared
    rng = random.Random(6)
    for number in range(10):
        name = f"p{number}"
        layer = new_layer(path, name, rng.choice(["raw", "lz4"]))
        voxels = np.random.default_rng(number).integers(0, 255, (1, *BOX.size), np.uint8)
        layer[1].write(voxels)
        for machine in machines:
            machine.begin("pyramid", name)
        refused = [machine.end() for machine in machines]
        if all(refused):
            # Nothing is listed, and nothing in the way of the next run.
            assert [str(mag) for mag in wkdask.open(path)[name].mags] == ["1"]
            run(machines[0], "pyramid", name)
        found = wkdask.open(path)[name]
        assert [str(mag) for mag in found.mags] == ["1", "2", "4"]
        for mag in (2, 4):
            voxels = downsample(np.asfortranarray(voxels), (2, 2, 2), "median")
            np.testing.assert_array_equal(found[mag].read(), voxels)
        np.testing.assert_array_equal(
            found[1].read()[0, :4, :4, :4], layer[1].read()[0, :4, :4, :4]
        )
        assert wkdask.check(path, level=2).ok
        assert leftovers(path) == []


@pytest.mark.parametrize("block_type", ["raw", "lz4"])
def test_files_at_once(shared: tuple[Path, list[Machine]], block_type: str) -> None:
    """Each writes files of its own into one mag."""
    path, machines = shared
    new_layer(path, "a", block_type)
    for value in range(1, 11):
        for number, machine in enumerate(machines):
            size = (FILE, 64, 64)
            machine.begin(
                "write", "a", topleft=(number * FILE, 0, 0), size=size, value=value + number
            )
        assert [machine.end() for machine in machines] == [None, None]
        found = wkdask.open(path)["a"][1].read()[0]
        assert (found[:FILE] == value).all()
        assert (found[FILE:] == value + 1).all()
    assert leftovers(path) == []
