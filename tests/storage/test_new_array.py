"""`new_array` of `wkdask.storage.memory`: memory is taken over, and never while an array lives."""

from __future__ import annotations

import gc
import pickle
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from wkdask.geometry import BoundingBox
from wkdask.storage import memory as reader
from wkdask.storage.header import VolumeHeader
from wkdask.storage.memory import SMALLEST_BYTES, new_array
from wkdask.storage.wkw import WkwVolume

pytestmark = pytest.mark.skipif(reader.KEPT_BYTES < 2**24, reason="keeps next to nothing here")

SHAPE = (1, 128, 256, 256)


@pytest.fixture(autouse=True)
def nothing_kept() -> Iterator[None]:
    gc.collect()
    reader._kept.clear()
    yield
    reader._kept.clear()


def kept_bytes() -> int:
    return sum(map(len, reader._kept))


@pytest.mark.parametrize("dtype", ["uint8", "int64", "float32"])
def test_new_memory_is_zero_and_as_numpy_makes_it(dtype: str) -> None:
    array, is_zero = new_array(SHAPE, dtype)
    expected = np.zeros(SHAPE, dtype, order="F")
    assert is_zero
    assert np.array_equal(array, expected)
    assert (array.dtype, array.strides) == (expected.dtype, expected.strides)
    assert array.flags.writeable
    assert array.flags.aligned


def test_the_next_array_takes_memory_over() -> None:
    array, _ = new_array(SHAPE, "uint8")
    array[...] = 7
    address = array.ctypes.data
    del array
    array, is_zero = new_array((1, 120, 256, 256), "uint8")
    assert not is_zero
    assert array.ctypes.data == address


def test_no_memory_is_taken_from_a_view() -> None:
    array, _ = new_array(SHAPE, "uint32")
    array[...] = 3
    view = array[:, 5:9, ::-1].T[::2].view("int32")
    assert np.shares_memory(array, view)
    del array
    gc.collect()
    assert kept_bytes() == 0
    others = [new_array(SHAPE, "uint32")[0] for _ in range(3)]
    for other in others:
        other[...] = 9
    assert (view == 3).all()
    del view
    assert kept_bytes() == 4 * np.prod(SHAPE)


def test_memory_of_other_sizes_is_not_taken() -> None:
    array, _ = new_array(SHAPE, "uint8")
    del array
    assert new_array((1, 256, 256, 256), "uint8")[1]
    assert new_array((1, 64, 256, 256), "uint8")[1]
    assert kept_bytes() == 28 * 2**20  # all three


def test_small_and_huge_arrays_are_left_to_numpy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reader, "KEPT_BYTES", 2**23)
    for size in (0, 1, SMALLEST_BYTES - 1, 2**23 + 1):
        assert new_array((size,), "uint8")[0].base is None
    assert kept_bytes() == 0


def test_no_more_is_kept_than_allowed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reader, "KEPT_BYTES", 5 * 2**23)
    arrays = [new_array(SHAPE, "uint8")[0] for _ in range(9)]
    arrays.clear()
    assert kept_bytes() == 5 * 2**23


def test_arrays_travel_like_others() -> None:
    array, _ = new_array(SHAPE, "uint8")
    array[0, 1, 2, 3] = 4
    assert np.array_equal(pickle.loads(pickle.dumps(array)), array)


def test_threads_never_share_memory() -> None:
    def work(number: int) -> bool:
        for _ in range(30):
            array, is_zero = new_array((SMALLEST_BYTES + number,), "uint8")
            if is_zero and array.any():
                return False
            array[...] = number
            if not (array == number).all():
                return False
        return True

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(work, range(8)))


def test_voxels_that_are_missing_are_zero_in_memory_that_was_used(tmp_path: Path) -> None:
    header = VolumeHeader("uint8", block_edge=32, blocks_per_file_edge=4, block_type="lz4")
    volume = WkwVolume.create(tmp_path / "1", header)
    box = BoundingBox((128, 0, 0), (128, 128, 128))
    volume.write(box, np.full((1, *box.size), 5, np.uint8))
    region = (range(200), range(256), range(256))
    dirty, _ = new_array((1, 200, 256, 256), "uint8")
    dirty[...] = 99
    address = dirty.ctypes.data
    del dirty
    found = volume.read(region)
    assert found.ctypes.data == address
    assert (found[:, 128:, :128, :128] == 5).all()
    assert int(found.sum(dtype=np.int64)) == 5 * 72 * 128 * 128
