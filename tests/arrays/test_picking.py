"""Voxels by arrays of positions: equal to NumPy, and no others read than asked for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from wkdask.arrays import picking
from wkdask.arrays.picking import pick
from wkdask.geometry import BoundingBox
from wkdask.storage.header import VolumeHeader
from wkdask.storage.wkw import WkwVolume

SHAPE = (2, 40, 30, 25)


@pytest.fixture(scope="module")
def voxels() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 65535, SHAPE, np.uint16)


@pytest.fixture(scope="module")
def volume(tmp_path_factory: pytest.TempPathFactory, voxels: np.ndarray) -> WkwVolume:
    """Files of 16 voxels, blocks of 8."""
    path: Path = tmp_path_factory.mktemp("picking") / "1"
    volume = WkwVolume.create(path, VolumeHeader("uint16", 2, 8, 2, "raw"))
    volume.write(BoundingBox((0, 0, 0), SHAPE[1:]), voxels)
    return volume


@st.composite
def indices(draw: st.DrawFn) -> tuple[np.ndarray, ...]:
    """Four arrays that can be broadcast, with dimensions of length 1 and 0 among them."""
    shape = draw(st.lists(st.integers(0, 4), max_size=3))

    def array(size: int) -> np.ndarray:
        kept = shape[draw(st.integers(0, len(shape))) :]
        own = [n if draw(st.booleans()) else 1 for n in kept]
        values = draw(st.lists(st.integers(0, size - 1), min_size=1, max_size=8))
        return np.resize(values, own).astype(np.int64)

    return tuple(array(size) for size in SHAPE)


@settings(max_examples=100, deadline=None)
@given(indices())
def test_the_same_as_numpy(volume: WkwVolume, voxels: np.ndarray, index: Any) -> None:
    found = pick(volume, index)
    expected = voxels[index]
    assert found.dtype == expected.dtype
    np.testing.assert_array_equal(found, expected, strict=True)


@settings(max_examples=100, deadline=None)
@given(indices())
def test_the_same_block_by_block(volume: WkwVolume, voxels: np.ndarray, index: Any) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(picking, "EXACT_PIECES", 0)
        np.testing.assert_array_equal(pick(volume, index), voxels[index], strict=True)


# an index, the reads it takes, the voxels they hold (all channels of a voxel count as one), why
READS: list[tuple[Any, int, int, str]] = [
    ((0, 3, 4, 5), 1, 1, "one voxel"),
    ((0, np.r_[3:9], 4, 5), 1, 6, "neighbours are one read"),
    ((0, np.r_[3:30:5], 4, 5), 1, 6, "so are even steps"),
    ((0, np.array([3, 4, 5, 20, 21, 39]), 4, 5), 3, 6, "three pieces"),
    ((0, np.array([9, 3, 9, 3]), 4, 5), 1, 2, "what comes twice is read once, in any order"),
    ((0, *np.ix_([1, 5, 8], [2, 3], [4])), 2, 6, "rows and columns"),
    (([0, 1], [3, 9], 4, [5, 5]), 2, 2, "two points, each of one channel"),
    ((0, [3, 30], [4, 20], [5, 21]), 2, 2, "two points, not the eight corners"),
    (([[0], [1]], [3, 30], [4, 20], [5, 21]), 2, 2, "two points in all channels"),
    ((0, [[3], [30]], [[4], [20]], np.arange(25)), 2, 50, "two columns"),
    ((0, [], 4, 5), 0, 0, "nothing"),
]


@pytest.mark.parametrize(("index", "reads", "count", "why"), READS)
def test_voxels_read(
    volume: WkwVolume, voxels: np.ndarray, read_counts: list[int], index: Any, reads: int,
    count: int, why: str,
) -> None:  # fmt: skip
    index = tuple(np.asarray(part, dtype=np.int64) for part in index)
    np.testing.assert_array_equal(pick(volume, index), voxels[index])
    assert (len(read_counts), sum(read_counts)) == (reads, count), why


def test_many_points_are_read_block_by_block(
    volume: WkwVolume, voxels: np.ndarray, read_counts: list[int]
) -> None:
    points = tuple(np.random.default_rng(1).integers(0, 25, (3, 5000)))
    np.testing.assert_array_equal(pick(volume, (1, *points)), voxels[(1, *points)])
    assert len(read_counts) <= 4**3, "one read for each block"
    assert sum(read_counts) <= 25**3, "nothing outside of the smallest boxes"


def test_points_far_apart_take_no_memory(tmp_path: Path) -> None:
    volume = WkwVolume.create(tmp_path / "1", VolumeHeader("uint8"))
    points = np.random.default_rng(2).integers(0, 2**31, (3, 100))
    assert not pick(volume, (0, *points)).any()


@pytest.mark.parametrize("count", [1, 2, 3, 7])
def test_ranges_hold_each_position_once(count: int) -> None:
    for seed in range(50):
        generator = np.random.default_rng(seed)
        positions = np.unique(generator.integers(0, 12, count))
        runs = list(picking._runs(positions))
        assert [at for run, _ in runs for at in run] == positions.tolist()
        assert [start for _, start in runs] == np.cumsum([0, *(len(r) for r, _ in runs)])[
            :-1
        ].tolist()
