"""Views as lazy arrays: which chunks, which voxels are read and when, and names that never lie."""

from __future__ import annotations

import math
import os
import pickle
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from itertools import pairwise
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import cloudpickle
import dask
import dask.array as da
import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import wkdask
from wkdask.arrays.labelled import Labels, to_dataarray
from wkdask.arrays.lazy import VolumeArray, to_dask
from wkdask.errors import ArgumentError, MissingError, WkdaskError
from wkdask.geometry import BoundingBox
from wkdask.storage.header import VolumeHeader
from wkdask.storage.wkw import WkwVolume

EDGE = 16  # of a file: 4 blocks of 4 voxels
SIZE = (30, 25, 20)
CORNER = (5, 18, 3)
# Chunks "file" of that box: borders on absolute multiples of 16, clipped.
FILES = ((2,), (11, 16, 3), (14, 11), (13, 7))

Change = Callable[[Any], Any]

# A process pool can't import this file, so what it runs is sent to it whole.
cloudpickle.register_pickle_by_value(sys.modules[__name__])


@pytest.fixture(scope="module")
def volume(tmp_path_factory: pytest.TempPathFactory) -> WkwVolume:
    """Two channels of random uint16 around the box; one file is missing."""
    header = VolumeHeader("uint16", 2, block_edge=4, blocks_per_file_edge=4, block_type="lz4")
    volume = WkwVolume.create(tmp_path_factory.mktemp("volume") / "1", header)
    voxels = np.random.default_rng(0).integers(1, 2**16, (2, 48, 48, 48), np.uint16)
    volume.write(BoundingBox((0, 0, 0), (48, 48, 48)), voxels)
    os.unlink(volume.file_path((1, 1, 0)))
    return volume


@pytest.fixture(scope="module")
def view(volume: WkwVolume) -> wkdask.View:
    return wkdask.View(volume.path, volume.header.to_wkw(), SIZE, CORNER)


@pytest.fixture(scope="module")
def voxels(view: wkdask.View) -> np.ndarray:
    array = view.read()
    assert (array == 0).any()
    return array


# --- chunks -----------------------------------------------------------------------------------

# what is given, the chunks per axis, why
CHUNKS = [
    ("file", FILES, "borders of files, absolute, clipped at the view"),
    (-1, ((2,), (30,), (25,), (20,)), "-1 spans the axis"),
    (16, FILES, "an edge counts for x, y, z and cuts on absolute multiples"),
    (np.int64(16), FILES, "a NumPy integer is an integer"),
    (10, ((2,), (5, 10, 10, 5), (2, 10, 10, 3), (7, 10, 3)), "no power of two"),
    (1000, ((2,), (30,), (25,), (20,)), "larger than the view"),
    ((8, -1, 16), ((2,), (3, 8, 8, 8, 3), (25,), (13, 7)), "three are x, y, z"),
    ([8, -1, 16], ((2,), (3, 8, 8, 8, 3), (25,), (13, 7)), "a list is as good"),
    (np.array([8, -1, 16]), ((2,), (3, 8, 8, 8, 3), (25,), (13, 7)), "so is an array"),
    ((1, 16, 16, 16), ((1, 1), *FILES[1:]), "four are c, x, y, z"),
    ((-1, 16, 16, 16), FILES, "-1 for the channels"),
    (((2,), (1, 29), (25,), (20,)), ((2,), (1, 29), (25,), (20,)), "given one by one, relative"),
    (((1, 29), 16, -1), ((2,), (1, 29), (14, 11), (20,)), "one by one on one axis"),
    ((2**40, 16, 16), ((2,), (30,), (14, 11), (13, 7)), "no limit above"),
]


@pytest.mark.parametrize(("chunks", "expected", "why"), CHUNKS)
def test_chunks(view: wkdask.View, voxels: Any, chunks: Any, expected: Any, why: str) -> None:
    array = view.to_dask(chunks)
    assert array.chunks == expected, why
    np.testing.assert_array_equal(array.compute(), voxels)


def test_chunks_of_an_array_are_chunks_to_give(view: wkdask.View) -> None:
    array = view.to_dask((7, 8, 9))
    assert view.to_dask(array.chunks).chunks == array.chunks


# what is given, why it is refused
BAD_CHUNKS = [
    (0, "no voxel"),
    (-2, "only -1 is special"),
    (16.0, "a float"),
    (math.nan, "a float that is not even a number"),
    (None, "nothing"),
    ("files", "an unknown word"),
    ("64 MiB", "dask's words are not ours"),
    (b"file", "bytes are no word"),
    ((16, 16), "two"),
    ((2, 2, 16, 16, 16), "five"),
    ((), "none"),
    ((16, 0, 16), "no voxel on an axis"),
    ((16, -3, 16), "negative on an axis"),
    ((16, 16.5, 16), "a float on an axis"),
    ((16, "auto", 16), "a word on an axis"),
    ((16, None, 16), "nothing on an axis"),
    (np.array([16.0, 16, 16]), "an array of floats"),
    (((10, 10), 16, 16), "the sum is less than the axis"),
    (((10, 21), 16, 16), "the sum is more than the axis"),
    (((0, 30), 16, 16), "an empty chunk"),
    (((-1, 31), 16, 16), "a negative chunk"),
    (((), 16, 16), "no chunk"),
    (((15.0, 15.0), 16, 16), "floats one by one"),
    (((10, math.nan), 16, 16), "unknown chunks"),
    (((10, "20"), 16, 16), "text one by one"),
    (((10, (20,)), 16, 16), "nested too deep"),
    (((1,), 16, 16, 16), "channels are left out"),
    ({1: 16, 2: 16, 3: 16}, "dask's dict by axis would be read as 1, 2, 3"),
]


@pytest.mark.parametrize(("chunks", "why"), BAD_CHUNKS)
def test_bad_chunks(view: wkdask.View, chunks: Any, why: str) -> None:
    with pytest.raises(ArgumentError, match=r'chunks is .*must be "file", "auto"') as info:
        view.to_dask(chunks)
    assert repr(chunks) in str(info.value), why


@st.composite
def auto_cases(draw: st.DrawFn) -> tuple[VolumeHeader, BoundingBox, int]:
    header = VolumeHeader(
        draw(st.sampled_from(["uint8", "uint32", "float64"])),
        draw(st.integers(1, 3)),
        block_edge=2 ** draw(st.integers(0, 5)),
        blocks_per_file_edge=2 ** draw(st.integers(0, 5)),
    )
    corner = draw(st.tuples(*[st.integers(0, 5000)] * 3))
    size = draw(st.tuples(*[st.integers(1, 5000)] * 3))
    return header, BoundingBox(corner, size), draw(st.integers(2**16, 2**26))


@settings(deadline=None, max_examples=60)
@given(auto_cases())
def test_auto_chunks_are_blocks_doubled_to_about_the_limit(
    tmp_path_factory: pytest.TempPathFactory, case: tuple[VolumeHeader, BoundingBox, int]
) -> None:
    header, box, limit = case
    # The limit may leave few chunks only; else building the graph's chunks would be the test.
    limit = max(limit, box.volume * header.voxel_bytes // 1000)
    volume = WkwVolume(str(tmp_path_factory.getbasetemp()), header)
    with dask.config.set({"array.chunk-size": limit}):
        chunks = to_dask(volume, box, "auto").chunks
    assert chunks[0] == (header.num_channels,)
    edges = []
    for lengths, start, size in zip(chunks[1:], box.topleft, box.size, strict=True):
        assert sum(lengths) == size
        borders = start + np.cumsum(lengths)[:-1]
        edge = math.gcd(*borders.tolist())
        if len(borders) > 1:
            # One power of two of blocks is the grid of all borders: fractions of a file or files.
            edge = int(borders[1] - borders[0])
            assert set(np.diff(borders)) == {edge}
            assert edge & (edge - 1) == 0
        assert (borders % header.block_edge == 0).all()
        edges.append(edge if len(borders) > 1 else max(lengths))
    whole = math.prod(edges) * header.voxel_bytes
    block = header.block_bytes
    assert math.prod(max(axis) for axis in chunks[1:]) * header.voxel_bytes <= max(limit, block)
    # Not needlessly small: doubling an axis that has several chunks would exceed the limit, when
    # axes that end within their first chunk count as the blocks that they are stored in.
    if any(len(axis) > 2 for axis in chunks[1:]):
        room = [-(-size // header.block_edge) * header.block_edge for size in box.size]
        assert whole * 2 > limit or math.prod(edges) < math.prod(room)


# block edge, blocks per file edge, limit in bytes, size, chunks of x y z, why
AUTO = [
    (32, 32, "128 MiB", (2048,) * 3, (512, 512, 512), "2**27 bytes: an eighth of a file"),
    (32, 32, "1 GiB", (2048,) * 3, (1024, 1024, 1024), "one file"),
    (32, 32, "2 GiB", (2048,) * 3, (2048, 1024, 1024), "two files"),
    (32, 32, "256 MiB", (2048,) * 3, (1024, 512, 512), "x is doubled first"),
    (32, 32, "300 MiB", (2048,) * 3, (1024, 512, 512), "the largest below the limit"),
    (32, 32, "128 MiB", (4096, 4096, 32), (2048, 2048, 32), "a thin volume gets wide chunks"),
    (32, 4, "16 MiB", (512,) * 3, (256, 256, 256), "several small files"),
    (32, 4, "10 kiB", (64,) * 3, (32, 32, 32), "never less than a block"),
    (32, 4, "1 GiB", (64,) * 3, (64, 64, 64), "no more than there is"),
]


@pytest.mark.parametrize(("block", "blocks", "limit", "size", "edges", "why"), AUTO)
def test_auto_chunks(
    tmp_path: Path, block: int, blocks: int, limit: str, size: Any, edges: Any, why: str
) -> None:
    volume = WkwVolume(str(tmp_path), VolumeHeader("uint8", 1, block, blocks))
    with dask.config.set({"array.chunk-size": limit}):
        array = to_dask(volume, BoundingBox((0, 0, 0), size), "auto")
    assert array.chunksize[1:] == edges, why


# --- laziness in numbers ----------------------------------------------------------------------

# Written as functions of an array, so that NumPy runs the same; what is read is what is returned.
EXACT: dict[str, Change] = {
    "a box": lambda x: x[:, 2:9, 3:15, 1:20],
    "steps": lambda x: x[:, ::3, 3:25:5, 1:20:2],
    "integers": lambda x: x[:, 3, 4, 5],
    "a plane": lambda x: x[..., 5],
    "negative indices": lambda x: x[:, -3, -12:-2, -1],
    "ellipsis in the middle": lambda x: x[:, 4:8, ..., -1],
    "an integer first": lambda x: x[:, 7],
    "empty": lambda x: x[:, 5:5],
    "beyond the end": lambda x: x[:, 20:99, -99:4],
    "a following operation": lambda x: x[:, 3:20:2, 5, 2:9] + 1,
    "two following operations": lambda x: np.sqrt(x[:, 3:20] + 1) * 2,
    "transposed": lambda x: x[:, 3:5].T + 1,
}
# Likewise, but only for `view[...]`, where the index is ours before it is dask's.
EXACT_BY_VIEW: dict[str, Change] = {
    "all backwards": lambda x: x[:, ::-1, ::-1, ::-1],
    "negative steps": lambda x: x[:, 25:3:-5, ::-2, -1:-15:-3],
    "negative steps, operation": lambda x: x[:, ::-7, 3, -2::-6] * 2,
    "new axes": lambda x: x[None, :, 3:6, None, ..., 2, None],
    "new axes, operation": lambda x: x[:, 3:6, None] - 1,
    "NumPy integers": lambda x: x[:, np.int8(3), np.uint64(4)],
    "one slice more": lambda x: x[:, 3:20][:, 2:9],
    "steps, then steps": lambda x: x[:, 3:28:2][:, 2:12:3],
    "backwards, then a slice": lambda x: x[:, ::-1][:, 3:8],
    "a slice, then an integer": lambda x: x[:, 3:20][:, -4],
    "an integer, then a slice": lambda x: x[:, 3][:, 4:9],
    "a slice, then another axis": lambda x: x[:, 3:20][..., 7],
    "one more and an operation": lambda x: x[:, 3:20][:, 2:9] + 1,
    "parts put together": lambda x: (da if isinstance(x, da.Array) else np).concatenate(
        [x[:, 2:4], x[:, 25:27]], axis=1
    ),
}
# Right, but whole chunks may be read: what dask does not hand down to the reader.
NOT_EXACT: dict[str, Change] = {
    "an operation before the slice": lambda x: (x + 1)[:, 2:4],
    "three slices in a chain": lambda x: x[:, 3:20][:, 2:9][:, 1:4],
    "a list": lambda x: x[:, [3, 5, 7]],
    "a list out of order, twice": lambda x: x[:, [20, 5, 5, 7], 3:9],
    "a list after a slice": lambda x: x[:, :, 3:9][:, [3, 5]],
    "an array of indices": lambda x: x[..., np.array([19, 0, 3])],
    "an empty list": lambda x: x[:, []],
    "a mask": lambda x: x[:, np.arange(30) % 3 == 0],
    "an integer and a list": lambda x: x[0][3][[1, 2], 5:7],
    "new axes late": lambda x: x[0, 3][None, None],
    "a sum": lambda x: x[:, 3:5].sum(axis=1),
}


class ByView:
    """Indexes the view in the first place, and then the array that comes of it."""

    def __init__(self, view: wkdask.View) -> None:
        self.view = view

    def __getitem__(self, index: Any) -> da.Array:
        return self.view[index]

    def __add__(self, other: int) -> da.Array:
        return self.view[...] + other


def check(lazy: Any, eager: np.ndarray, change: Change) -> None:
    result = change(lazy)
    expected = change(eager)
    assert isinstance(result, da.Array)
    assert (result.shape, result.dtype) == (expected.shape, expected.dtype)
    computed = result.compute(scheduler="sync")
    assert (computed.shape, computed.dtype) == (expected.shape, expected.dtype)
    np.testing.assert_array_equal(computed, expected)


def asked(change: Change) -> int:
    """Count the voxels that are in the result; channels aside, of which there are two."""
    places = np.arange(math.prod(SIZE)).reshape(SIZE)
    return change(np.stack([places, places])).size // 2


@pytest.mark.parametrize("name", [*EXACT, *EXACT_BY_VIEW])
def test_a_view_reads_exactly_what_is_asked_for(
    view: wkdask.View, voxels: np.ndarray, read_counts: list[int], name: str
) -> None:
    change = (EXACT | EXACT_BY_VIEW)[name]
    change(ByView(view))
    assert read_counts == [], "nothing is read while building"
    check(ByView(view), voxels, change)
    assert sum(read_counts) == asked(change)


@pytest.mark.parametrize("chunks", ["file", -1, (7, 8, 9)])
@pytest.mark.parametrize("name", EXACT)
def test_one_slice_of_the_array_reads_exactly_what_is_asked_for(
    view: wkdask.View, voxels: np.ndarray, read_counts: list[int], name: str, chunks: Any
) -> None:
    check(view.to_dask(chunks), voxels, EXACT[name])
    assert sum(read_counts) == asked(EXACT[name])


def test_channels_are_not_counted_but_right(
    view: wkdask.View, voxels: np.ndarray, read_counts: list[int]
) -> None:
    check(ByView(view), voxels, lambda x: x[1, 3:5])
    check(ByView(view), voxels, lambda x: x[::-1, 3:5])
    check(ByView(view), voxels, lambda x: x[-1:, 3:5])
    check(ByView(view), voxels, lambda x: x[0][3:5])  # the channel is no slice of dask's
    assert sum(read_counts) == 4 * 2 * 25 * 20
    # An empty range of Python begins at -1 here, which is no index of NumPy.
    check(ByView(view), voxels, lambda x: x[-5::-1])
    check(ByView(view), voxels, lambda x: x[1::-1, -99::-1])


@pytest.mark.parametrize("make", [ByView, wkdask.View.to_dask])
@pytest.mark.parametrize("name", EXACT | EXACT_BY_VIEW | NOT_EXACT)
def test_any_index_is_right(
    view: wkdask.View, voxels: np.ndarray, read_counts: list[int], name: str, make: Any
) -> None:
    check(make(view), voxels, (EXACT | EXACT_BY_VIEW | NOT_EXACT)[name])
    assert sum(read_counts) <= math.prod(SIZE), "no voxel twice"


BAD_INDICES = [
    (np.s_[0, 30], "beyond the end"),
    (np.s_[0, -31], "before the start"),
    (np.s_[2], "no such channel"),
    (np.s_[0, 0, 0, 0, 0], "five axes"),
    (np.s_[..., 0, ...], "which axis?"),
    (np.s_["x"], "text"),
    (np.s_[:, 1.5], "a float"),
    (np.s_[:, 1.5:3], "a float in a slice"),
]


@pytest.mark.parametrize(("index", "why"), BAD_INDICES)
def test_bad_indices_are_refused_at_once(
    view: wkdask.View, read_counts: list[int], index: Any, why: str
) -> None:
    with pytest.raises((LookupError, TypeError)):
        view[index]
    assert read_counts == [], why


def test_a_slice_of_a_view_has_the_borders_of_files(view: wkdask.View) -> None:
    assert view[...].chunks == FILES
    assert view[:, 2:].chunks == ((2,), (9, 16, 3), *FILES[2:])
    assert view[0, ::-1, 5].chunks == ((3, 16, 11), (13, 7))
    assert view[:, ::4].chunks == ((2,), (3, 4, 1), *FILES[2:])
    assert view[1, 2, 3, 4].chunks == ()


# --- properties -------------------------------------------------------------------------------


def indices(size: int) -> st.SearchStrategy[Any]:
    bound = st.none() | st.integers(-size - 3, size + 3)
    steps = st.none() | st.integers(-7, 7).filter(bool)
    slices = st.builds(slice, bound, bound, steps)
    return slices | st.integers(-size, size - 1) if size else slices


def dask_is_right(index: tuple[Any, ...]) -> bool:
    """Leave out what dask gets wrong where `view[...]` is right.

    `da.arange(2)[-3::-1]` is not empty; `da.arange(4, chunks=2)[:-1:3] + 1` has two elements,
    because slices with a step leave empty chunks behind.
    """
    slices = [part for part in index if isinstance(part, slice) and part.step is not None]
    return not any(part.step > 1 or (part.start or 0) < 0 for part in slices)


@st.composite
def basic_indices(draw: st.DrawFn, shape: tuple[int, ...]) -> Any:
    parts: list[Any] = [draw(indices(size)) for size in shape]
    stop = draw(st.integers(0, len(parts)))
    if draw(st.booleans()):
        start = draw(st.integers(0, stop))
        parts[start:stop] = [Ellipsis]
    else:
        parts = parts[:stop]
    for _ in range(draw(st.integers(0, 2))):
        parts.insert(draw(st.integers(0, len(parts))), None)
    return tuple(parts)


def splits(size: int) -> st.SearchStrategy[tuple[int, ...]]:
    def cut(borders: set[int]) -> tuple[int, ...]:
        at = [0, *sorted(borders), size]
        return tuple(b - a for a, b in pairwise(at))

    return st.sets(st.integers(1, size - 1), max_size=4).map(cut) if size > 1 else st.just((1,))


@st.composite
def index_cases(draw: st.DrawFn) -> tuple[BoundingBox, Any, tuple[Any, ...], Any]:
    corner = draw(st.tuples(*[st.integers(0, 40)] * 3))
    size = tuple(draw(st.integers(1, min(36, 50 - at))) for at in corner)
    one_by_one = draw(st.tuples(splits(2), *map(splits, size)))
    edges = draw(st.tuples(*[st.integers(1, 20) | st.just(-1)] * 3))
    chunks = draw(st.sampled_from(["file", "auto", -1, one_by_one, edges]))
    return BoundingBox(corner, size), chunks, draw(basic_indices((2, *size))), draw(st.booleans())


def check_indexing(volume: WkwVolume, case: tuple[BoundingBox, Any, tuple[Any, ...], Any]) -> None:
    box, chunks, index, more = case
    view = wkdask.View(volume.path, volume.header.to_wkw(), box.size, box.topleft)
    expected = view.read()[index]
    with dask.config.set(scheduler="sync", **{"array.chunk-size": 4096}):
        lazies = [view[index], *([view.to_dask(chunks)[index]] if dask_is_right(index) else [])]
        for lazy in lazies:
            result = (lazy + 1 if more else lazy).compute()
            assert result.shape == expected.shape == lazy.shape
            assert result.dtype == lazy.dtype == view.dtype
            np.testing.assert_array_equal(result, expected + 1 if more else expected)


@settings(deadline=None, max_examples=60)
@given(case=index_cases())
def test_a_basic_index_is_that_of_numpy(volume: WkwVolume, case: Any) -> None:
    check_indexing(volume, case)


@pytest.mark.slow
@settings(deadline=None, max_examples=400)
@given(case=index_cases())
def test_a_basic_index_is_that_of_numpy_at_length(volume: WkwVolume, case: Any) -> None:
    check_indexing(volume, case)


@settings(deadline=None, max_examples=60)
@given(data=st.data())
def test_chained_basic_indices_are_those_of_numpy(
    view: wkdask.View, voxels: np.ndarray, data: st.DataObject
) -> None:
    lazy: Any = view
    expected: Any = voxels
    for _ in range(3):
        index = data.draw(basic_indices(expected.shape).filter(dask_is_right))
        lazy, expected = lazy[index], expected[index]
        if 0 in expected.shape:
            break
    result = lazy.compute(scheduler="sync")
    np.testing.assert_array_equal(result, expected)


@settings(deadline=None, max_examples=60)
@given(data=st.data())
def test_the_handle_is_an_array(view: wkdask.View, voxels: np.ndarray, data: st.DataObject) -> None:
    """A handle, and a handle of a part of it, index as NumPy does; that is all dask relies on."""
    handle = VolumeArray.of_box(view.volume, view.bounding_box)
    part, rest = voxels, handle
    for _ in range(2):
        index = data.draw(basic_indices(part.shape))
        np.testing.assert_array_equal(rest[index], part[index])
        index = tuple(at for at in index if at is not None)
        part, rest = part[index], rest.narrowed(index)
        assert (rest.shape, rest.ndim, rest.dtype) == (part.shape, part.ndim, part.dtype)
        np.testing.assert_array_equal(rest.read(), part)


# --- graphs -----------------------------------------------------------------------------------


def test_building_is_lazy_and_small(view: wkdask.View, read_counts: list[int]) -> None:
    array = view.to_dask()
    assert len(array.dask.layers) == 1
    assert len(view[:, 3:5, ::-1, 2].dask.layers) == 1
    assert len(pickle.dumps(VolumeArray.of_box(view.volume, view.bounding_box))) < 1000
    assert len(pickle.dumps(array.dask)) < 2000
    tasks = dict(dask.optimize(array[:, 3:5, 3:5, 3:5])[0].dask).values()
    assert len(tasks) <= 2, "one that reads, and its second name"
    assert all(len(pickle.dumps(task)) < 1000 for task in tasks)
    assert read_counts == []


def test_a_graph_holds_no_lock(view: wkdask.View) -> None:
    (array,) = dask.optimize(view.to_dask() + 1)
    assert b"Lock" not in pickle.dumps(array.dask)


def test_building_opens_no_file(view: wkdask.View, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: Any, **options: Any) -> Any:
        raise AssertionError(f"touched the disk: {args}")

    for name in ("open", "scandir", "listdir"):
        monkeypatch.setattr(os, name, refuse)
    monkeypatch.setattr("builtins.open", refuse)
    view.to_dask()
    view.to_dask("auto")[:, ::2] + 1
    view[:, ::-2, None]
    view.to_xarray().isel(x=3)


def test_dtype_meta_and_order(view: wkdask.View) -> None:
    array = view.to_dask()
    assert (array.dtype, array.shape, array.ndim) == (np.dtype("uint16"), (2, *SIZE), 4)
    assert type(array._meta) is np.ndarray
    assert (array._meta.dtype, array._meta.ndim) == (np.dtype("uint16"), 4)
    assert type(view[0, 3]._meta) is np.ndarray
    assert view[0, 3]._meta.ndim == 2
    handle = VolumeArray.of_box(view.volume, view.bounding_box)
    assert handle.read().flags.f_contiguous


def test_np_asarray(view: wkdask.View, voxels: np.ndarray) -> None:
    array = np.asarray(view)
    assert array.dtype == np.uint16
    np.testing.assert_array_equal(array, voxels)
    np.testing.assert_array_equal(np.asarray(view, dtype=float), voxels.astype(float))


def test_an_unreadable_file_is_an_error_and_not_zeros(tmp_path: Path) -> None:
    view = raw_view(tmp_path)
    Path(view.volume.file_path((1, 0, 0))).write_bytes(b"junk")
    array = view.to_dask()
    assert array[:, :8].compute().max() == 1
    with pytest.raises(wkdask.errors.FormatError, match=r"x1\.wkw"):
        array[:, 8:].compute()


def test_a_directory_that_is_gone(tmp_path: Path) -> None:
    header = VolumeHeader("uint8", block_edge=4, blocks_per_file_edge=2)
    with pytest.raises(MissingError, match="not a directory"):
        to_dask(WkwVolume(str(tmp_path / "gone"), header), BoundingBox((0, 0, 0), (8, 8, 8)))


def test_query_planning_is_refused(view: wkdask.View) -> None:
    with dask.config.set({"array.query-planning": True}):
        for use in (
            view.to_dask,
            lambda: view[0],
            lambda: view.store(np.zeros(1)),
            lambda: view.for_each_chunk(print, compute=False),
        ):
            with pytest.raises(WkdaskError, match=r"query-planning is on.*Switch it off"):
                use()


def test_query_planning_of_a_fresh_process_is_refused(view: wkdask.View) -> None:
    script = (
        "import sys, wkdask\n"
        "try:\n"
        "    wkdask.open_mag(sys.argv[1]).to_dask()\n"
        "except wkdask.errors.WkdaskError as error:\n"
        "    sys.exit(0 if 'query-planning is on' in str(error) else 2)\n"
        "sys.exit(3)\n"
    )
    environment = {**os.environ, "DASK_ARRAY__QUERY_PLANNING": "True"}
    done = subprocess.run([sys.executable, "-c", script, view.path], env=environment, check=False)
    assert done.returncode == 0


# --- names, and writes between two reads ------------------------------------------------------


def raw_view(path: Path, value: int = 1) -> wkdask.View:
    """A view of 2 files, full of one value."""
    header = VolumeHeader("uint8", block_edge=4, blocks_per_file_edge=2)
    volume = WkwVolume.create(path / "raw", header)
    view = wkdask.View(volume.path, header.to_wkw(), (16, 8, 8))
    view.write(np.full(view.shape, value, np.uint8))
    return view


def filler(value: int) -> Callable[[Any], None]:
    """A closure: distributed sends functions of this file by name, and workers can't import it."""

    def fill(chunk: tuple[wkdask.View, int]) -> None:
        view, _ = chunk
        view.write(np.full(view.shape, value, np.uint8))

    return fill


def data_of(view: wkdask.View, value: int) -> da.Array:
    return da.full(view.shape, value, chunks=(1, 8, 8, 8), dtype=np.uint8)


def write(view: wkdask.View, value: int) -> None:
    view.write(np.full(view.shape, value, np.uint8))


def write_a_part(view: wkdask.View, value: int) -> None:
    part = view.get_view((0, 0, 0), (8, 8, 8))
    write(part, value)
    write(view.get_view((8, 0, 0), (8, 8, 8)), value)


def store(view: wkdask.View, value: int) -> None:
    view.store(data_of(view, value))


def store_later(view: wkdask.View, value: int) -> None:
    view.store(data_of(view, value), compute=False).compute()


def for_each_chunk(view: wkdask.View, value: int) -> None:
    view.for_each_chunk(filler(value))


def for_zipped_chunks(view: wkdask.View, value: int) -> None:
    fill = filler(value)
    view.for_zipped_chunks(lambda chunks: fill(chunks[1:]), view)


WRITES = [write, write_a_part, store, store_later, for_each_chunk, for_zipped_chunks]


@pytest.fixture(scope="module")
def pool() -> Iterator[ProcessPoolExecutor]:
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        yield pool


def names(view: wkdask.View) -> tuple[str, ...]:
    return view.to_dask().name, view[:, ::2].name, view.to_xarray().data.name


def test_names_are_deterministic_and_tell_views_apart(tmp_path: Path) -> None:
    view = raw_view(tmp_path)
    again = wkdask.View(view.path, view.header, view.size, view.global_offset)
    assert names(view) == names(again) == names(pickle.loads(pickle.dumps(view)))
    others = [
        view.to_dask(),
        view.to_dask(4),
        view.get_view(size=(8, 8, 8)).to_dask(),
        view.get_view((8, 0, 0), (8, 8, 8)).to_dask(),
        raw_view(tmp_path / "other").to_dask(),
        view[:, ::-1],
        view[:, ::2],
        view[:, 0:8:2],
        view[0],
    ]
    assert len({array.name for array in others}) == len(others)


@pytest.mark.parametrize("change", WRITES)
def test_names_are_new_after_a_write(tmp_path: Path, change: Any) -> None:
    view = raw_view(tmp_path)
    seen = set(names(view))
    for value in range(2, 12):
        change(view, value)
        new = set(names(view))
        assert not new & seen
        assert new == set(names(view))
        seen |= new
        assert (view[...].compute() == value).all()


def test_names_are_new_after_a_failed_write(tmp_path: Path) -> None:
    view = raw_view(tmp_path)

    def half(block: np.ndarray, block_info: Any = None) -> np.ndarray:
        if block_info[0]["chunk-location"][1]:
            raise ZeroDivisionError
        return block

    before = view.to_dask().name
    data = data_of(view, 9).map_blocks(half, dtype=np.uint8, meta=np.empty((0,) * 4, np.uint8))
    with pytest.raises(ZeroDivisionError), dask.config.set(num_workers=1):
        view.store(data)
    assert view.to_dask().name != before


@pytest.mark.parametrize("change", [write, store_later])
def test_names_are_new_after_writes_of_another_process(
    tmp_path: Path, pool: ProcessPoolExecutor, change: Any
) -> None:
    """Only the disk tells us: also of writes that follow each other at once."""
    view = raw_view(tmp_path)
    seen = {view.to_dask().name}
    for value in range(2, 42):
        dask.delayed(change)(view, value).compute(scheduler="processes", pool=pool)
        assert view.to_dask().name not in seen
        seen.add(view.to_dask().name)
    assert (view[...].compute() == 41).all()


def test_names_are_new_after_chunks_in_a_process_pool(
    tmp_path: Path, pool: ProcessPoolExecutor
) -> None:
    view = raw_view(tmp_path)
    held = view.to_dask()
    view.for_each_chunk(filler(7), executor=pool)
    assert view.to_dask().name != held.name
    assert (view.to_dask().compute() == 7).all()


@pytest.mark.parametrize("change", WRITES)
def test_an_older_result_on_a_cluster_is_not_taken_for_the_new_data(
    tmp_path: Path, client: Any, change: Any
) -> None:
    view = raw_view(tmp_path)
    held = view.to_dask().persist()
    assert (held.compute() == 1).all()
    for value in (2, 3):
        change(view, value)
        assert (view.to_dask().compute() == value).all()
        assert (view[0, :, ::2].compute() == value).all()
        assert (view.to_xarray().isel(x=9).compute() == value).all()
    assert (held.compute() == 1).all(), "what was held is still what it was"


# --- xarray -----------------------------------------------------------------------------------


@pytest.fixture
def labelled(tissue: wkdask.Dataset) -> wkdask.View:
    box = wkdask.BoundingBox((20, 40, 5), (120, 80, 30))
    layer = tissue.add_layer("color", "color", "uint8", 2, bounding_box=box)
    mag = layer.add_mag("2-2-1", block_edge=4, blocks_per_file_edge=4, block_type="raw")
    view = mag.get_view()
    generator = np.random.default_rng(0)
    view.write(generator.integers(0, 255, view.shape, np.uint8))
    return view


def test_dims_coords_and_attrs(labelled: wkdask.View) -> None:
    array = labelled.to_xarray()
    assert array.dims == ("c", "x", "y", "z")
    assert array.shape == labelled.shape == (2, 60, 40, 30)
    assert set(array.coords) == {"x", "y", "z"}
    for dim, start, step in (("x", 20, 2), ("y", 40, 2), ("z", 5, 1)):
        index = array.indexes[dim]
        assert isinstance(index, pd.RangeIndex), "constant memory"
        assert (index.start, index.step, len(index)) == (start, step, array.sizes[dim])
    assert array.name == "color"
    assert array.attrs == {
        "mag": "2-2-1",
        "category": "color",
        "voxel_size": [11.24, 11.24, 28.0],
        "voxel_size_unit": "nanometer",
    }
    assert isinstance(array.data, da.Array)


def test_attrs_of_a_part_and_of_a_bare_directory(labelled: wkdask.View) -> None:
    part = labelled.get_view((5, 0, 0), (10, 10, 10)).to_xarray()
    assert part.x.values[0] == 30
    assert part.attrs["mag"] == "2-2-1"
    bare = wkdask.open_mag(labelled.path).to_xarray()
    assert bare.attrs == {"mag": "2-2-1"}


# a selection by label, the same by position, voxels that are asked for
SELECTIONS: list[tuple[Change, Change, int]] = [
    (lambda a: a.sel(x=24), lambda x: x[:, 2], 40 * 30),
    (lambda a: a.sel(x=slice(30, 39)), lambda x: x[:, 5:10], 5 * 40 * 30),
    (lambda a: a.sel(x=25.9, method="nearest"), lambda x: x[:, 3], 40 * 30),
    (lambda a: a.sel(x=24, y=slice(40, 44), z=7), lambda x: x[:, 2, :3, 2], 3),
    (lambda a: a.sel(z=slice(5, 9)), lambda x: x[..., :5], 60 * 40 * 5),
    (lambda a: a.isel(c=1, x=slice(None, None, 7)) + 1, lambda x: x[1, ::7] + 1, 9 * 40 * 30),
]


@pytest.mark.parametrize(("select", "same", "count"), SELECTIONS)
def test_a_selection_by_label_reads_what_it_needs(
    labelled: wkdask.View, read_counts: list[int], select: Change, same: Change, count: int
) -> None:
    selected = select(labelled.to_xarray())
    assert read_counts == []
    values = selected.compute(scheduler="sync").values
    assert sum(read_counts) == count
    np.testing.assert_array_equal(values, same(labelled.read()))


def test_labels_of_a_huge_volume_cost_nothing(tmp_path: Path) -> None:
    volume = WkwVolume.create(tmp_path / "1", VolumeHeader("uint8"))
    view = wkdask.View(volume.path, volume.header.to_wkw(), (2**31, 2**31, 2**14))
    array = to_dataarray(view.to_dask(-1), view.bounding_box, Labels())
    assert sum(index.memory_usage() for index in array.indexes.values()) < 1000
    assert int(array.sel(x=2**31 - 1, y=5, z=7).x) == 2**31 - 1
