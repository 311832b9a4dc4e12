"""`View.store`: what is refused before anything runs, and that all else arrives voxel by voxel."""

from __future__ import annotations

import math
import pickle
import re
import threading
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise, product
from pathlib import Path
from typing import Any

import dask
import dask.array as da
import numpy as np
import pytest
import wkw
import xarray as xr
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

import wkdask
from wkdask.errors import (
    AlignmentError,
    ArgumentError,
    BoundsError,
    DtypeError,
    FormatError,
    ReadOnlyError,
    WkdaskError,
)
from wkdask.geometry import BoundingBox
from wkdask.storage.header import BLOCK_TYPES, VolumeHeader
from wkdask.storage.wkw import WkwVolume

# Writing parts of files, without `store`, is how the tests set the scene.
pytestmark = pytest.mark.filterwarnings("ignore:writing parts of compressed files:RuntimeWarning")

EXTENT = 28  # of the volumes of this file, on every axis

Chunks = tuple[tuple[int, ...], ...]


def new_view(
    path: Path, header: VolumeHeader, size: Any = (EXTENT,) * 3, corner: Any = (0, 0, 0)
) -> wkdask.View:
    volume = WkwVolume.create(path / "1", header)
    return wkdask.View(volume.path, header.to_wkw(), size, corner)


def filled(view: wkdask.View, seed: int = 0) -> np.ndarray:
    """Fill the whole extent around a view with noise, and return it."""
    generator = np.random.default_rng(seed)
    shape = (view.num_channels, *(EXTENT,) * 3)
    old = generator.integers(1, 120, shape).astype(view.dtype)
    view.volume.write(BoundingBox((0, 0, 0), (EXTENT,) * 3), old)
    return old


def by_libwkw(view: wkdask.View) -> np.ndarray:
    """Read the whole extent with the reference implementation."""
    with wkw.Dataset.open(view.path) as dataset:
        return dataset.read((0, 0, 0), (EXTENT,) * 3)


def on_disk(path: str | Path) -> dict[str, bytes]:
    files = sorted(file for file in Path(path).rglob("*") if file.is_file())
    return {str(file.relative_to(path)): file.read_bytes() for file in files}


def pasted(old: np.ndarray, new: np.ndarray, corner: Any) -> np.ndarray:
    result = old.copy()
    x, y, z = (slice(a, a + n) for a, n in zip(corner, new.shape[-3:], strict=True))
    result[:, x, y, z] = new
    return result


@pytest.fixture(params=["lz4", "raw"])
def view(request: pytest.FixtureRequest, tmp_path: Path) -> wkdask.View:
    """Files of 8 voxels, blocks of 4; the view begins within both."""
    header = VolumeHeader("uint8", 1, 4, 2, request.param)
    return new_view(tmp_path, header, (20, 20, 20), (2, 3, 8))


@pytest.fixture
def lz4_view(tmp_path: Path) -> wkdask.View:
    return new_view(tmp_path, VolumeHeader("uint8", 1, 4, 2, "lz4"))


# --- refused beforehand -----------------------------------------------------------------------


class Source:
    """A lazy array that counts the chunks that are computed."""

    def __init__(self, shape: Any = (1, 8, 8, 8), chunks: Any = -1, dtype: Any = np.uint8) -> None:
        self.calls = 0
        base = da.ones(shape, chunks=chunks, dtype=dtype)
        self.array = base.map_blocks(self._seen, dtype=dtype, meta=base._meta)

    def _seen(self, block: np.ndarray) -> np.ndarray:
        self.calls += 1
        return block


Make = Callable[[], Any]


def masked() -> da.Array:
    return da.ma.masked_equal(da.ones((1, 8, 8, 8), dtype=np.uint8), 1)


def unknown() -> da.Array:
    array = Source((1, 8, 8, 8), 4).array
    return array[:, da.arange(8, chunks=4) > 3]


def labelled() -> xr.DataArray:
    return xr.DataArray(Source().array, dims=tuple("cxyz"))


# what is stored, options of `store`, the error, its text, why
REFUSED: list[tuple[Make, dict[str, Any], type[WkdaskError], str, str]] = [
    (lambda: Source(dtype=np.uint16).array, {}, DtypeError, "uint16.*uint8", "another dtype"),
    (lambda: Source(dtype=np.int8).array, {}, DtypeError, "int8.*uint8", "as wide is not enough"),
    (lambda: Source(dtype=float).array, {}, DtypeError, "float64.*uint8", "floats"),
    (lambda: Source(dtype=bool).array, {}, DtypeError, "bool.*uint8", "no dtype of WKW"),
    (lambda: np.ones((1, 8, 8, 8)), {}, DtypeError, "float64.*uint8", "a NumPy array too"),
    (lambda: Source((3, 8, 8, 8)).array, {}, ArgumentError, "c = 1", "three channels into one"),
    (lambda: Source((0, 8, 8, 8)).array, {}, ArgumentError, "c = 1", "no channel"),
    (lambda: Source((8, 8)).array, {}, ArgumentError, r"\(c, x, y, z\)", "two axes"),
    (lambda: Source((1,) * 5).array, {}, ArgumentError, r"\(c, x, y, z\)", "five axes"),
    (lambda: Source(()).array, {}, ArgumentError, r"\(c, x, y, z\)", "no axis"),
    (lambda: np.ones((8, 8), np.uint8), {}, ArgumentError, r"\(c, x, y, z\)", "NumPy, two axes"),
    (lambda: np.uint8(1), {}, ArgumentError, r"\(c, x, y, z\)", "a number"),
    (lambda: Source((1, 21, 8, 8)).array, {}, BoundsError, "leaves the view", "too large"),
    (
        lambda: Source().array,
        {"offset": (13, 0, 0)},
        BoundsError,
        "leaves the view",
        "too far",
    ),
    (lambda: Source().array, {"offset": (-1, 0, 0)}, BoundsError, "negative", "before the view"),
    (lambda: Source().array, {"offset": (0.0, 0, 0)}, ArgumentError, "whole", "a float offset"),
    (lambda: Source().array, {"offset": (1.5, 0, 0)}, ArgumentError, "whole", "half a voxel"),
    (lambda: Source().array, {"offset": (0, 0)}, ArgumentError, "three", "two numbers"),
    (lambda: Source().array, {"offset": None}, ArgumentError, "three", "no offset"),
    (lambda: Source((1, 0, 8, 8)).array, {}, BoundsError, "at least 1", "no voxel"),
    (lambda: np.ones((1, 8, 0, 8), np.uint8), {}, BoundsError, "at least 1", "NumPy, no voxel"),
    (unknown, {}, ArgumentError, "compute_chunk_sizes", "unknown chunks"),
    (unknown, {"align": "rechunk"}, ArgumentError, "compute_chunk_sizes", "nor to be rechunked"),
    (
        lambda: Source().array,
        {"align": "yes"},
        ArgumentError,
        '"raise" or "rechunk"',
        "no such way",
    ),
    (lambda: Source().array, {"align": None}, ArgumentError, '"raise" or "rechunk"', "no way"),
    (lambda: Source().array, {"executor": "threads"}, ArgumentError, "executor is", "no executor"),
    (masked, {}, ArgumentError, "masked.*filled", "the mask would be lost"),
    (lambda: masked().compute(), {}, ArgumentError, "masked.*filled", "NumPy, likewise"),
    (labelled, {}, ArgumentError, r"DataArray.*x\.data", "labels: which axis is which?"),
    (lambda: dask.delayed(1), {}, ArgumentError, "a Delayed", "lazy, but no array"),
    (lambda: "voxels", {}, ArgumentError, r"\(c, x, y, z\)", "text"),
    (lambda: None, {}, ArgumentError, r"\(c, x, y, z\)", "nothing"),
]


@pytest.mark.parametrize(("make", "options", "error", "text", "why"), REFUSED)
def test_refused_before_anything_runs(
    view: wkdask.View, make: Make, options: Any, error: type[WkdaskError], text: str, why: str
) -> None:
    filled(view)
    before = on_disk(view.path)
    with pytest.raises(error, match=text):
        view.store(make(), **options)
    assert on_disk(view.path) == before, why


def test_the_source_is_not_computed_to_refuse_it(view: wkdask.View) -> None:
    source = Source((1, 20, 20, 20), 5)
    for options in ({}, {"align": "yes"}, {"offset": (1, 0, 0), "align": "rechunk"}):
        with pytest.raises(ArgumentError):
            view.store(source.array, **options)
    with pytest.raises(ReadOnlyError):
        view.get_view(read_only=True).store(source.array, align="rechunk")
    assert source.calls == 0
    view.store(source.array, align="rechunk")
    assert source.calls == 4**3


def test_a_read_only_view_refuses_first(view: wkdask.View) -> None:
    with pytest.raises(ReadOnlyError, match="read-only"):
        view.get_view(read_only=True).store("nonsense")


def test_bounds_are_those_of_the_part(view: wkdask.View) -> None:
    part = view.get_view((4, 4, 4), (8, 8, 8))
    with pytest.raises(BoundsError):
        part.store(da.ones((9, 8, 8), dtype=np.uint8), align="rechunk")
    part.store(da.ones((8, 8, 8), dtype=np.uint8), align="rechunk")
    assert view.read().sum() == 8**3
    assert part.read().sum() == 8**3


# --- alignment --------------------------------------------------------------------------------


def boxes(chunks: Chunks, corner: Any) -> Iterator[tuple[tuple[int, ...], list[tuple[int, int]]]]:
    """Yield the place of each chunk and its absolute extent on each axis."""
    starts = (0, *corner)
    axes = []
    for lengths, first in zip(chunks, starts, strict=True):
        borders = [first, *(first + sum(lengths[: i + 1]) for i in range(len(lengths)))]
        axes.append(list(enumerate(pairwise(borders))))
    for combination in product(*axes):
        yield tuple(i for i, _ in combination), [extent for _, extent in combination]


def collide(chunks: Chunks, corner: Any, edge: int) -> bool:
    """Try every pair of chunk and cell: does any cell get two writers?"""
    writers = defaultdict(set)
    for chunk, (channels, *extents) in boxes(chunks, corner):
        if channels[0] == channels[1] or any(a == b for a, b in extents):
            continue
        for cell in product(*(range(a // edge, -(-b // edge)) for a, b in extents)):
            writers[cell].add(chunk)
    return any(len(chunks) > 1 for chunks in writers.values())


@dataclass(frozen=True)
class Case:
    header: VolumeHeader
    corner: tuple[int, int, int]
    """Of the view, absolute."""
    offset: tuple[int, int, int]
    """Of the array in the view."""
    chunks: Chunks
    seed: int

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(map(sum, self.chunks))

    @property
    def start(self) -> tuple[int, ...]:
        return tuple(a + b for a, b in zip(self.corner, self.offset, strict=True))

    def view(self, path: Path) -> wkdask.View:
        size = [EXTENT - a for a in self.corner]
        return new_view(path, self.header, size, self.corner)

    def voxels(self) -> np.ndarray:
        generator = np.random.default_rng(self.seed)
        return generator.integers(121, 250, self.shape).astype(self.header.dtype)

    def array(self) -> da.Array:
        return da.from_array(self.voxels(), chunks=self.chunks)


@st.composite
def chunk_lengths(draw: st.DrawFn, start: int, unit: int) -> tuple[int, ...]:
    """Return chunks of an axis: on the grid of `unit`, off it, or with one border off it."""
    size = draw(st.integers(1, EXTENT - start))
    inner = range(start + 1, start + size)
    kind = draw(st.sampled_from(["grid", "grid", "any", "nudged"]))
    choices = [at for at in inner if at % unit == 0] if kind != "any" else list(inner)
    borders = draw(st.sets(st.sampled_from(choices), max_size=3)) if choices else set()
    if kind == "nudged" and inner:
        borders |= {draw(st.sampled_from(inner))}
    lengths = [b - a for a, b in pairwise([start, *sorted(borders), start + size])]
    if draw(st.integers(0, 5)) == 0:
        lengths.insert(draw(st.integers(0, len(lengths))), 0)
    return tuple(lengths)


# Of blocks, and blocks per file; files of less than 4 voxels would be thousands.
EDGES = [(2, 2), (2, 4), (4, 1), (4, 2), (4, 4), (8, 1), (8, 2)]


@st.composite
def cases(draw: st.DrawFn) -> Case:
    header = VolumeHeader(
        draw(st.sampled_from(["uint8", "uint16", "float32", "int64"])),
        draw(st.sampled_from([1, 1, 3])),
        *draw(st.sampled_from(EDGES)),
        block_type=draw(st.sampled_from(BLOCK_TYPES)),
    )
    corner = draw(st.tuples(*[st.integers(0, 12)] * 3))
    offset = draw(st.tuples(*[st.integers(0, 12)] * 3))
    spatial = [
        draw(chunk_lengths(a + b, header.write_size[0]))
        for a, b in zip(corner, offset, strict=True)
    ]
    channels = (header.num_channels,)
    if header.num_channels > 1 and draw(st.integers(0, 4)) == 0:
        channels = (1, header.num_channels - 1)
    return Case(header, corner, offset, (channels, *spatial), draw(st.integers(0, 99)))


def advised(error: BaseException) -> Chunks:
    """Return the chunks that the message names, as Python reads them."""
    match = re.search(r"Use x\.rechunk\((.*)\), or pass align=\"rechunk\"", str(error))
    assert match, str(error)
    return eval(match[1], {"__builtins__": {}})  # our own message, and what a user would type


@settings(deadline=None, max_examples=60)
@given(case=cases())
def test_raise_refuses_exactly_what_collides(
    tmp_path_factory: pytest.TempPathFactory, case: Case
) -> None:
    view = case.view(tmp_path_factory.mktemp("store"))
    array = case.array()
    edge = view.volume.header.write_size[0]
    if not collide(case.chunks, case.start, edge):
        receipts = view.store(array, case.offset, compute=False)
        assert isinstance(receipts, da.Array)
        assert receipts.numblocks == array.numblocks, "it is stored in the chunks that it has"
        return
    with pytest.raises(AlignmentError, match="two tasks would write it") as info:
        view.store(array, case.offset)
    assert list(on_disk(view.path)) == ["header.wkw"]
    advice = array.rechunk(advised(info.value))
    assert advice.chunks == advised(info.value)
    assert not collide(advice.chunks, case.start, edge)
    view.store(advice, case.offset)
    np.testing.assert_array_equal(view.read(case.offset, case.shape[1:]), case.voxels())


@settings(deadline=None, max_examples=60)
@given(case=cases())
def test_rechunk_moves_borders_no_further_than_to_the_next_cell(
    tmp_path_factory: pytest.TempPathFactory, case: Case
) -> None:
    view = case.view(tmp_path_factory.mktemp("store"))
    receipts = view.store(case.array(), case.offset, "rechunk", compute=False)
    edge = case.header.write_size[0]
    written = np.asarray(receipts.compute(scheduler="sync"))
    assert written.sum() == math.prod(case.shape[1:]), "receipts count voxels"
    assert max(written.shape) <= max(len(axis) for axis in case.chunks)
    if not collide(case.chunks, case.start, edge):
        assert receipts.numblocks == tuple(map(len, case.chunks)), "left alone"
    np.testing.assert_array_equal(view.read(case.offset, case.shape[1:]), case.voxels())


# chunks of x, offset, block type, what the message says, why
MESSAGES = [
    (
        (4, 8, 8),
        (0, 0, 0),
        "lz4",
        r"chunk 0 of axis x, voxels \[0, 4\).*file.*edge 8.*x0\.wkw",
        "x",
    ),
    ((8, 8, 12), (0, 0, 0), "lz4", r"chunk 0 of axis z, voxels \[0, 12\).*z1/y0/x0\.wkw", "z"),
    ((8, 8, 8), (0, 2, 0), "lz4", r"chunk 0 of axis y, voxels \[2, 10\).*z0/y1/x0\.wkw", "offset"),
    ((8, 8, 8), (8, 9, 8), "lz4", r"axis y, voxels \[9, 17\).*z1/y2/x1\.wkw", "not the first file"),
    ((6, 8, 8), (0, 0, 0), "raw", r"axis x, voxels \[0, 6\), ends inside a block of edge 4", "raw"),
]


@pytest.mark.parametrize(("chunks", "offset", "block_type", "text", "why"), MESSAGES)
def test_the_message_names_chunk_file_and_remedies(
    tmp_path: Path, chunks: Any, offset: Any, block_type: Any, text: str, why: str
) -> None:
    view = new_view(tmp_path, VolumeHeader("uint8", 1, 4, 2, block_type), (32, 32, 32))
    x = da.ones((1, 20, 20, 20), chunks=(1, *chunks), dtype=np.uint8)
    with pytest.raises(AlignmentError, match=text) as info:
        view.store(x, offset)
    assert view.path in str(info.value), why
    view.store(x.rechunk(advised(info.value)), offset)
    assert (view.read(offset, (20, 20, 20)) == 1).all()


@pytest.mark.parametrize("shape", [(20, 20, 20), (1, 20, 20, 20)])
def test_the_advice_fits_the_axes_that_the_array_has(lz4_view: wkdask.View, shape: Any) -> None:
    x = da.ones(shape, chunks=5, dtype=np.uint8)
    with pytest.raises(AlignmentError) as info:
        lz4_view.store(x, (3, 3, 3))
    lz4_view.store(x.rechunk(advised(info.value)), (3, 3, 3))
    assert lz4_view.read().sum() == 20**3


def test_the_message_on_long_axes_is_short(tmp_path: Path) -> None:
    view = new_view(tmp_path, VolumeHeader("uint8", 1, 4, 2, "lz4"), (80_000, 8, 8), (4, 0, 0))
    x = da.ones((1, 80_000, 8, 8), chunks=(1, 8, 8, 8), dtype=np.uint8)
    with pytest.raises(AlignmentError) as info:
        view.store(x)
    assert len(str(info.value)) < 1000
    assert advised(info.value)[1][:2] == (4, 8)
    assert sum(advised(info.value)[1]) == 80_000


def test_channels_in_several_chunks(tmp_path: Path) -> None:
    view = new_view(tmp_path, VolumeHeader("uint8", 3, 4, 2, "raw"))
    x = da.ones((3, 8, 8, 8), chunks=(1, 8, 8, 8), dtype=np.uint8)
    with pytest.raises(AlignmentError, match=r"channels lie in 3 chunks \(1, 1, 1\)") as info:
        view.store(x)
    view.store(x.rechunk(advised(info.value)))
    view.store(x, (8, 0, 0), align="rechunk")
    assert view.read().sum() == 3 * 2 * 8**3


# --- what arrives -----------------------------------------------------------------------------


def check_store(path: Path, case: Case, align: str, with_old: bool) -> None:
    """Store once, and compare the whole extent with NumPy, as libwkw reads it."""
    view = case.view(path)
    old = filled(view, case.seed + 1) if with_old else np.zeros_like(by_libwkw(view))
    before = on_disk(view.path)
    collides = collide(case.chunks, case.start, case.header.write_size[0])
    try:
        view.store(case.array(), case.offset, align)
    except AlignmentError:
        assert collides
        assert align == "raise"
        assert on_disk(view.path) == before
        return
    assert align == "rechunk" or not collides
    expected = pasted(old, case.voxels(), case.start)
    np.testing.assert_array_equal(by_libwkw(view), expected)
    np.testing.assert_array_equal(view.to_dask().compute(), view.read())
    assert not list(Path(view.path).rglob("*tmp*"))


ALIGN = st.sampled_from(["raise", "rechunk"])


@settings(deadline=None, max_examples=25)
@given(case=cases(), align=ALIGN, with_old=st.booleans())
def test_random_stores_with_threads(
    tmp_path_factory: pytest.TempPathFactory, case: Case, align: str, with_old: bool
) -> None:
    check_store(tmp_path_factory.mktemp("store"), case, align, with_old)


# The client serves all examples alike.
on_cluster = settings(
    deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=15
)


@pytest.mark.slow
@on_cluster
@given(case=cases(), align=ALIGN, with_old=st.booleans())
def test_random_stores_on_a_cluster(
    tmp_path_factory: pytest.TempPathFactory, client: Any, case: Case, align: str, with_old: bool
) -> None:
    check_store(tmp_path_factory.mktemp("store"), case, align, with_old)


@pytest.mark.slow
@settings(on_cluster, max_examples=200)
@given(case=cases(), align=ALIGN, with_old=st.booleans())
def test_200_random_stores_on_a_cluster(
    tmp_path_factory: pytest.TempPathFactory, client: Any, case: Case, align: str, with_old: bool
) -> None:
    check_store(tmp_path_factory.mktemp("store"), case, align, with_old)


@pytest.mark.parametrize("make", [np.asarray, np.asfortranarray, lambda a: a[::-1][::-1]])
@pytest.mark.parametrize("shape", [(10, 9, 8), (1, 10, 9, 8)])
def test_numpy_arrays(view: wkdask.View, shape: Any, make: Any) -> None:
    old = filled(view)
    new = make(np.random.default_rng(1).integers(0, 255, shape, np.uint8))
    view.store(new, (1, 2, 3))
    np.testing.assert_array_equal(by_libwkw(view), pasted(old, new, (3, 5, 11)))


def test_three_axes(view: wkdask.View) -> None:
    old = filled(view)
    new = np.random.default_rng(1).integers(0, 255, (20, 20, 20), np.uint8)
    view.store(da.from_array(new, chunks=7), align="rechunk")
    np.testing.assert_array_equal(by_libwkw(view), pasted(old, new, (2, 3, 8)))


def test_a_mag_stores_relative_to_its_box(tissue: wkdask.Dataset) -> None:
    box = BoundingBox((5, 6, 7), (20, 20, 20))
    layer = tissue.add_layer("color", "color", "uint8", bounding_box=box)
    mag = layer.add_mag(1, block_edge=4, blocks_per_file_edge=2)
    new = np.random.default_rng(1).integers(1, 255, (1, 20, 20, 20), np.uint8)
    mag.store(da.from_array(new, chunks=9), align="rechunk")
    np.testing.assert_array_equal(mag.to_dask().compute(), new)
    np.testing.assert_array_equal(mag.read((5, 6, 7), (20, 20, 20)), new)
    assert layer.bounding_box == box
    with pytest.raises(BoundsError):
        mag.store(new, (1, 0, 0))


def test_voxels_of_the_volume_itself(lz4_view: wkdask.View) -> None:
    old = filled(lz4_view)
    lz4_view.store(lz4_view.to_dask() + 1)
    np.testing.assert_array_equal(by_libwkw(lz4_view), old + 1)


def test_partly_covered_files_are_merged_without_their_neighbours(lz4_view: wkdask.View) -> None:
    old = filled(lz4_view)
    before = on_disk(lz4_view.path)
    lz4_view.store(da.full((1, 2, 2, 2), 200, dtype=np.uint8), (7, 3, 3))
    new = np.full((1, 2, 2, 2), 200, np.uint8)
    np.testing.assert_array_equal(by_libwkw(lz4_view), pasted(old, new, (7, 3, 3)))
    changed = {name for name, data in on_disk(lz4_view.path).items() if data != before[name]}
    assert changed == {"z0/y0/x0.wkw", "z0/y0/x1.wkw"}


def test_an_unreadable_file_is_not_replaced(lz4_view: wkdask.View) -> None:
    filled(lz4_view)
    broken = Path(lz4_view.volume.file_path((1, 0, 0)))
    broken.write_bytes(b"WKW, but no more")
    with pytest.raises(FormatError, match=r"x1\.wkw"):
        lz4_view.store(da.ones((1, 12, 8, 8), chunks=8, dtype=np.uint8))
    assert broken.read_bytes() == b"WKW, but no more"


# --- graphs and receipts ----------------------------------------------------------------------


def test_compute_false_is_lazy_and_returns_small_receipts(view: wkdask.View) -> None:
    source = Source((1, 20, 20, 20), 5)
    receipts = view.store(source.array, align="rechunk", compute=False)
    assert isinstance(receipts, da.Array)
    assert source.calls == 0
    assert list(on_disk(view.path)) == ["header.wkw"]
    assert (receipts.dtype, receipts.ndim) == (np.dtype(np.int64), 4)
    assert receipts.chunksize == (1, 1, 1, 1)
    blocks = dask.get(dict(receipts.dask), receipts.__dask_keys__()[0][0][0][0])
    assert len(pickle.dumps(blocks)) < 300
    assert receipts.sum().compute() == 20**3
    assert view.read().sum() == 20**3


def test_a_store_that_computes_reports(view: wkdask.View) -> None:
    report = view.store(np.ones((1, 2, 2, 2), np.uint8))
    assert (report.chunks, report.done, report.voxels) == (1, 1, 8)
    assert report.size_bytes > 0


def test_lazy_stores_compose(tmp_path: Path) -> None:
    header = VolumeHeader("uint8", 1, 4, 2, "lz4")
    one, two = new_view(tmp_path / "one", header), new_view(tmp_path / "two", header)
    source = Source((1, EXTENT, EXTENT, EXTENT), (1, 16, 16, 16))
    stores = [one.store(source.array, compute=False), two.store(source.array + 1, compute=False)]
    counts = dask.compute(*(receipts.sum() for receipts in stores))
    assert counts == (EXTENT**3,) * 2
    assert source.calls == 8, "the source is computed once for both"
    assert (one.read().min(), two.read().min()) == (1, 2)


def test_two_identical_stores_both_happen(view: wkdask.View) -> None:
    x = da.full(view.shape, 9, dtype=np.uint8)
    for _ in range(2):
        view.write(np.zeros(view.shape, np.uint8))
        view.store(x, align="rechunk")
        assert (view.read() == 9).all()
    first, second = (view.store(x, align="rechunk", compute=False) for _ in range(2))
    assert first.name != second.name


def test_two_identical_stores_both_happen_while_a_receipt_is_held(
    view: wkdask.View, client: Any
) -> None:
    x = da.full(view.shape, 9, dtype=np.uint8)
    held = view.store(x, align="rechunk", compute=False).persist()
    assert held.sum().compute() == 20**3
    for _ in range(2):
        view.write(np.zeros(view.shape, np.uint8))
        view.store(x, align="rechunk")
        assert (view.read() == 9).all()
        view.write(np.zeros(view.shape, np.uint8))
        client.compute(view.store(x, align="rechunk", compute=False)).result()
        assert (view.read() == 9).all()


def test_no_lock_in_the_graph_and_tasks_overlap(lz4_view: wkdask.View) -> None:
    together = threading.Barrier(2, timeout=20)

    def wait(block: np.ndarray) -> np.ndarray:
        together.wait()
        return block

    plain = da.ones((1, 16, 8, 8), chunks=(1, 8, 8, 8), dtype=np.uint8)
    receipts = lz4_view.store(plain, compute=False)
    assert b"Lock" not in pickle.dumps(dask.optimize(receipts)[0].dask)
    with dask.config.set(num_workers=2):
        lz4_view.store(plain.map_blocks(wait, dtype=np.uint8, meta=plain._meta))
    assert lz4_view.read().sum() == 2 * 8**3


def lying(change: Callable[[np.ndarray], Any]) -> da.Array:
    """Two chunks; what is computed for the second is not what dask believes."""

    def second(block: np.ndarray, block_info: Any = None) -> Any:
        return change(block) if block_info[0]["chunk-location"][1] else block

    base = da.full((1, 16, 8, 8), 9, chunks=(1, 8, 8, 8), dtype=np.uint8)
    return base.map_blocks(second, dtype=np.uint8, meta=base._meta)


# what the chunk really is, the error, why
LIES: list[tuple[Callable[[np.ndarray], Any], type[WkdaskError], str]] = [
    (lambda b: b + 300.9, DtypeError, "floats would be cut"),
    (lambda b: b.astype(np.uint16), DtypeError, "wider"),
    (lambda b: b.astype(np.int8), DtypeError, "as wide"),
    (lambda b: b[:, :4], ArgumentError, "smaller"),
    (lambda b: b[:, :1, :1, :1], ArgumentError, "would be broadcast"),
    (lambda b: b[0], ArgumentError, "an axis less"),
    (lambda b: b[np.newaxis], ArgumentError, "an axis more"),
    (lambda b: np.concatenate([b, b]), ArgumentError, "channels more"),
    (lambda b: np.concatenate([b, b], axis=3), ArgumentError, "larger: the next file"),
    (lambda b: b.reshape(1, 4, 16, 8), ArgumentError, "as many voxels in another shape"),
    (lambda b: np.ma.masked_equal(b, 9), ArgumentError, "a mask that nobody announced"),
    (lambda b: None, ArgumentError, "nothing"),
]


@pytest.mark.parametrize(("change", "error", "why"), LIES)
def test_a_chunk_that_is_not_what_it_seemed_is_not_written(
    lz4_view: wkdask.View, change: Any, error: type[WkdaskError], why: str
) -> None:
    old = filled(lz4_view)
    with pytest.raises(error):
        lz4_view.store(lying(change))
    first = np.full((1, 8, 8, 8), 9, np.uint8)
    now = by_libwkw(lz4_view)
    assert any(np.array_equal(now, there) for there in (old, pasted(old, first, (0, 0, 0)))), why


@pytest.mark.parametrize("block_type", BLOCK_TYPES)
def test_a_failing_chunk_leaves_its_file(tmp_path: Path, block_type: Any) -> None:
    view = new_view(tmp_path, VolumeHeader("uint8", 1, 4, 2, block_type))
    old = filled(view)

    def fail(block: np.ndarray) -> Any:
        raise KeyError("no such segment")

    with pytest.raises(KeyError, match="no such segment"):
        view.store(lying(fail))
    np.testing.assert_array_equal(by_libwkw(view)[:, 8:], old[:, 8:])


@settings(deadline=None, max_examples=20)
@given(case=cases())
def test_a_store_can_be_repeated(tmp_path_factory: pytest.TempPathFactory, case: Case) -> None:
    """A task that runs twice, as after the death of a worker, writes the same."""
    view = case.view(tmp_path_factory.mktemp("store"))
    assume(not collide(case.chunks, case.start, case.header.write_size[0]))
    receipts = view.store(case.array(), case.offset, compute=False)
    receipts.compute(scheduler="sync")
    once = on_disk(view.path)
    receipts.compute(scheduler="sync")
    assert on_disk(view.path) == once
