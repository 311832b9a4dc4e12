"""Writes to parts of one compressed file at the same time: no voxel is lost."""

from __future__ import annotations

import multiprocessing
import threading
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from wkdask.geometry import BoundingBox
from wkdask.storage import atomic
from wkdask.storage.header import VolumeHeader
from wkdask.storage.wkw import WkwVolume

EDGE = 64
PARTS = [(x, y, z) for x in range(0, EDGE, 16) for y in range(0, EDGE, 32) for z in (0, 32)]


def new_volume(tmp_path: Path, block_type: str = "lz4") -> WkwVolume:
    return WkwVolume.create(tmp_path / "1", VolumeHeader("uint16", 1, 16, 4, block_type))


def write_part(volume: WkwVolume, number: int) -> None:
    box = BoundingBox(PARTS[number], (16, 32, 32))
    volume.write(box, np.full((1, *box.size), number + 1, np.uint16, order="F"))


def expected() -> np.ndarray:
    voxels = np.zeros((1, EDGE, EDGE, EDGE), np.uint16)
    for number, (x, y, z) in enumerate(PARTS):
        voxels[0, x : x + 16, y : y + 32, z : z + 32] = number + 1
    return voxels


def read(volume: WkwVolume) -> np.ndarray:
    return volume.read((range(EDGE), range(EDGE), range(EDGE)))


@pytest.mark.parametrize("is_there", [False, True], ids=["no file yet", "a file"])
@pytest.mark.parametrize("block_type", ["lz4", "lz4hc"])
def test_threads(tmp_path: Path, block_type: str, is_there: bool) -> None:
    for round_ in range(5):
        volume = new_volume(tmp_path / str(round_), block_type)
        if is_there:
            write_part(volume, 0)
        with ThreadPoolExecutor(8) as pool:
            list(pool.map(write_part, [volume] * len(PARTS), range(len(PARTS))))
        np.testing.assert_array_equal(read(volume), expected())


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*fork")
def test_processes(tmp_path: Path) -> None:
    # Forked, because other processes can't import the tests.
    with ProcessPoolExecutor(3, mp_context=multiprocessing.get_context("fork")) as pool:
        for round_ in range(10):
            volume = new_volume(tmp_path / str(round_))
            list(pool.map(write_part, [volume] * len(PARTS), range(len(PARTS))))
            np.testing.assert_array_equal(read(volume), expected())


def test_a_file_that_goes_while_others_wait(tmp_path: Path) -> None:
    """Zeros remove the file; who waited for it begins a new one."""
    volume = new_volume(tmp_path)
    write_part(volume, 0)
    path = volume.file_path((0, 0, 0))
    with atomic.alone(path) as exists:
        assert exists
        waiting = threading.Thread(target=write_part, args=(volume, 3))
        waiting.start()
        waiting.join(0.2)
        assert waiting.is_alive()
        Path(path).unlink()
    waiting.join(10)
    only = np.zeros_like(expected())
    only[expected() == 4] = 4
    np.testing.assert_array_equal(read(volume), only)


def test_a_file_that_comes_in_between(tmp_path: Path) -> None:
    """Who found no file, and finds one in the end, merges with it."""
    volume = new_volume(tmp_path)
    box = BoundingBox(PARTS[5], (16, 32, 32))
    calls = []

    def produce(part: BoundingBox) -> np.ndarray:
        if not calls:
            write_part(volume, 2)
        calls.append(part)
        return np.full((1, *part.size), 6, np.uint16, order="F")

    volume.fill(box, produce)
    both = np.where(np.isin(expected(), (3, 6)), expected(), 0)
    np.testing.assert_array_equal(read(volume), both)
    assert not [path for path in tmp_path.rglob("*") if path.name.endswith(".wkdask-tmp")]


def test_zeros_remove_no_file_that_came_in_between(tmp_path: Path) -> None:
    volume = new_volume(tmp_path)

    def produce(part: BoundingBox) -> None:
        if not Path(volume.file_path((0, 0, 0))).exists():
            write_part(volume, 2)

    volume.fill(BoundingBox(PARTS[5], (16, 32, 32)), produce)
    np.testing.assert_array_equal(read(volume) > 0, expected() == 3)
