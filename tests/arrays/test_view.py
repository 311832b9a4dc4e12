"""`wkdask.View`: what it does when all is well; test_view_errors.py has what it refuses."""

from __future__ import annotations

import operator
import os
import pickle
import subprocess
import sys
import tracemalloc
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import wkw
from dask.base import tokenize
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

import wkdask
from wkdask import BoundingBox, View
from wkdask.errors import (
    ArgumentError,
    BoundsError,
    FormatError,
    MissingError,
    ReadOnlyError,
    StateError,
)

EDGE = 8
"""Voxels per edge of a file in these tests: two blocks of edge 4."""

BLOCK_TYPES = {
    "raw": wkw.Header.BLOCK_TYPE_RAW,
    "lz4": wkw.Header.BLOCK_TYPE_LZ4,
    "lz4hc": wkw.Header.BLOCK_TYPE_LZ4HC,
}
COMPRESSED = ("lz4", "lz4hc")


def header_of(block_type: str = "raw", dtype: Any = np.uint8, num_channels: int = 1) -> wkw.Header:
    return wkw.Header(
        dtype, num_channels, block_len=4, file_len=2, block_type=BLOCK_TYPES[block_type]
    )


def voxels_of(shape: tuple[int, ...], dtype: Any = np.uint8, seed: int = 0) -> NDArray[Any]:
    """Random voxels, none of them 0, so that what is missing shows."""
    return np.random.default_rng(seed).integers(1, 127, shape).astype(dtype)


def new_mag(path: Path, header: wkw.Header, voxels: NDArray[Any] | None = None) -> Path:
    """Make a mag directory with libwkw, and write whole files from position 0."""
    with wkw.Dataset.create(str(path), header) as dataset:
        if voxels is not None:
            dataset.write((0, 0, 0), np.asfortranarray(voxels))
    return path


def read_with_wkw(path: Path, size: tuple[int, int, int]) -> NDArray[Any]:
    with wkw.Dataset.open(str(path)) as dataset:
        return dataset.read((0, 0, 0), size)


@contextmanager
def raised_warnings() -> Iterator[list[warnings.WarningMessage]]:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        yield caught


NOWHERE = "nowhere/color/1"


class TestConstruction:
    def test_touches_no_disk(self, tmp_path: Path) -> None:
        path = tmp_path / "not" / "there"
        view = View(path, header_of(), (8, 8, 8))
        part = view.get_view((1, 1, 1), (2, 2, 2))
        assert "there" in repr(part)
        assert pickle.loads(pickle.dumps(part)) == part
        assert tokenize(part)
        assert list(tmp_path.iterdir()) == []

    def test_arguments_by_position(self) -> None:
        box = BoundingBox((1, 1, 1), (9, 9, 9))
        view = View(NOWHERE, header_of(), (5, 6, 7), (1, 2, 3), False, True, box)
        named = View(
            path_to_mag_view=NOWHERE,
            header=header_of(),
            size=(5, 6, 7),
            global_offset=(1, 2, 3),
            is_bounded=False,
            read_only=True,
            mag_view_bbox_at_creation=box,
        )
        assert view == named
        assert (view.size, view.global_offset, view.read_only) == ((5, 6, 7), (1, 2, 3), True)

    def test_defaults(self) -> None:
        view = View(NOWHERE, header_of(), (5, 6, 7))
        assert view == View(NOWHERE, header_of(), (5, 6, 7), (0, 0, 0), True, False, None)
        assert (view.global_offset, view.read_only) == ((0, 0, 0), False)

    @pytest.mark.parametrize(
        "numbers",
        [[5, 6, 7], np.array([5, 6, 7], np.uint32), (np.int64(5), np.uint8(6), 7)],
        ids=["list", "array", "numpy scalars"],
    )
    def test_sizes_and_offsets_become_tuples_of_int(self, numbers: Any) -> None:
        view = View(NOWHERE, header_of(), numbers, numbers)
        for value in (view.size, view.global_offset):
            assert value == (5, 6, 7)
            assert type(value) is tuple
            assert [type(part) for part in value] == [int] * 3

    @pytest.mark.parametrize("name", ["header", "size", "global_offset", "read_only"])
    def test_properties_are_read_only(self, name: str) -> None:
        view = View(NOWHERE, header_of(), (8, 8, 8))
        with pytest.raises(AttributeError):
            setattr(view, name, getattr(view, name))

    @pytest.mark.parametrize("dtype", wkw.Header.VALID_VOXEL_TYPES)
    def test_get_dtype_is_the_numpy_type(self, dtype: type[np.generic]) -> None:
        assert View(NOWHERE, header_of(dtype=dtype), (1, 1, 1)).get_dtype() is dtype

    @pytest.mark.parametrize("block_type", BLOCK_TYPES)
    def test_header_is_that_of_wkw(self, block_type: str) -> None:
        given_header = header_of(block_type, np.uint16, 3)
        header = View(NOWHERE, given_header, (1, 1, 1)).header
        assert isinstance(header, wkw.Header)
        for name in ("voxel_type", "num_channels", "block_len", "file_len", "block_type"):
            assert getattr(header, name) == getattr(given_header, name)

    @pytest.mark.parametrize("path_type", [str, Path])
    def test_repr_names_path_offset_and_size(self, path_type: type) -> None:
        text = repr(View(path_type(NOWHERE), header_of(), (5, 6, 7), (1, 2, 3)))
        assert os.path.join("nowhere", "color", "1") in text
        assert "(1, 2, 3)" in text
        assert "(1, 5, 6, 7)" in text


@pytest.fixture
def view(tmp_path: Path) -> View:
    """A raw view of voxels [1, 13), with random voxels in and around it."""
    voxels = voxels_of((1, 16, 16, 16))
    return View(new_mag(tmp_path / "1", header_of(), voxels), header_of(), (12,) * 3, (1,) * 3)


def is_open(view: View) -> bool:
    """Find out as a user can: only an open view can be closed."""
    try:
        view.close()
    except StateError:
        return False
    view.open()
    return True


class TestOpen:
    def test_open_returns_the_view(self, view: View) -> None:
        assert view.open() is view
        assert is_open(view)

    def test_views_begin_closed(self, view: View) -> None:
        assert not is_open(view)
        assert not is_open(view.open().get_view())

    @pytest.mark.parametrize("was_open", [False, True])
    def test_access_leaves_the_view_as_it_was(self, view: View, was_open: bool) -> None:
        if was_open:
            view.open()
        view.read()
        assert is_open(view) is was_open
        view.write(np.ones((1, 1, 1), np.uint8))
        assert is_open(view) is was_open

    @pytest.mark.parametrize("was_open", [False, True])
    @pytest.mark.parametrize("failing", ["read", "write"])
    def test_failing_access_leaves_the_view_as_it_was(
        self, view: View, was_open: bool, failing: str
    ) -> None:
        if was_open:
            view.open()
        (Path(view.path) / "z0" / "y0" / "x0.wkw").write_bytes(b"no WKW file")
        with pytest.raises(FormatError):
            view.read() if failing == "read" else view.write(np.ones((1, 1, 1), np.uint8))
        assert is_open(view) is was_open

    def test_close_lets_it_open_again(self, view: View) -> None:
        view.open().close()
        assert not is_open(view)
        assert view.open() is view

    def test_with_opens_a_closed_view_and_closes_it(self, view: View) -> None:
        with view as entered:
            assert entered is view
            assert is_open(view)
        assert not is_open(view)

    def test_with_takes_an_open_view_and_closes_it(self, view: View) -> None:
        with view.open() as entered:
            assert entered is view
            assert is_open(view)
        assert not is_open(view)

    def test_with_closes_after_an_error_and_lets_it_through(self, view: View) -> None:
        with pytest.raises(ZeroDivisionError), view:
            raise ZeroDivisionError
        assert not is_open(view)

    def test_with_takes_a_view_that_was_closed_inside(self, view: View) -> None:
        with view:
            view.close()
        assert not is_open(view)

    def test_with_on_a_missing_volume_leaves_it_closed(self, tmp_path: Path) -> None:
        view = View(tmp_path / "gone", header_of(), (8, 8, 8))
        with pytest.raises(MissingError), view:
            pass  # pragma: no cover
        assert not is_open(view)

    def test_open_views_read_and_write_the_same(self, view: View) -> None:
        closed = view.read()
        with view:
            np.testing.assert_array_equal(view.read(), closed)
            view.write(closed[:, ::-1])
            np.testing.assert_array_equal(view.read(), closed[:, ::-1])
        np.testing.assert_array_equal(view.read(), closed[:, ::-1])


class TestRead:
    @pytest.mark.parametrize("block_type", BLOCK_TYPES)
    @pytest.mark.parametrize("channels", [1, 3])
    def test_layout(self, tmp_path: Path, block_type: str, channels: int) -> None:
        header = header_of(block_type, np.uint16, channels)
        view = View(new_mag(tmp_path / "1", header), header, (9, 10, 11), (3, 3, 3))
        read = view.read()
        assert (read.shape, read.dtype) == ((channels, 9, 10, 11), np.uint16)
        assert read.flags.f_contiguous
        assert read.flags.writeable
        assert not read.any(), "nothing is on disk, so all is zero"

    def test_offset_is_relative_and_size_is_not_the_remainder(self, view: View) -> None:
        whole = read_with_wkw(Path(view.path), (16, 16, 16))
        np.testing.assert_array_equal(view.read(), whole[:, 1:13, 1:13, 1:13])
        part = view.read((1, 2, 3), (4, 5, 6))
        np.testing.assert_array_equal(part, whole[:, 2:6, 3:8, 4:10])
        with pytest.raises(BoundsError):
            view.read((1, 0, 0))

    def test_unbounded_views_read_beyond_their_size(self, view: View) -> None:
        unbounded = View(view.path, view.header, (2, 2, 2), (1, 1, 1), is_bounded=False)
        np.testing.assert_array_equal(unbounded.read((0, 0, 0), (12, 12, 12)), view.read())
        assert unbounded.read((5, 5, 5)).shape == (1, 2, 2, 2)
        assert not unbounded.read((100, 0, 0), (3, 3, 3)).any()

    def test_read_bbox(self, view: View) -> None:
        np.testing.assert_array_equal(view.read_bbox(), view.read())
        box = BoundingBox((1, 2, 3), (4, 5, 6))
        np.testing.assert_array_equal(view.read_bbox(box), view.read((1, 2, 3), (4, 5, 6)))
        np.testing.assert_array_equal(view.read_bbox(bbox=box), view.read_bbox(box))

    @pytest.mark.parametrize(
        "number", [np.int8, np.uint64, np.int64, int], ids=lambda number: number.__name__
    )
    def test_integers_of_numpy_count(self, view: View, number: Callable[[int], Any]) -> None:
        read = view.read([number(1)] * 3, tuple(number(2) for _ in range(3)))
        np.testing.assert_array_equal(read, view.read()[:, 1:3, 1:3, 1:3])
        np.testing.assert_array_equal(view.read(np.array([1, 1, 1]), np.array([2, 2, 2])), read)

    def test_last_voxel_that_uint32_can_name(self, tmp_path: Path) -> None:
        last = (2**32 - 1,) * 3
        view = View(new_mag(tmp_path / "1", header_of()), header_of(), (1, 1, 1), is_bounded=False)
        assert view.read(last, (1, 1, 1)).tolist() == [[[[0]]]]

    @settings(deadline=None, max_examples=40)
    @given(data=st.data(), block_type=st.sampled_from(sorted(BLOCK_TYPES)))
    def test_agrees_with_libwkw_on_every_box(
        self, worlds: Worlds, data: st.DataObject, block_type: str
    ) -> None:
        path, header, voxels = worlds[block_type]
        outer, inner = data.draw(nested_boxes())
        view = View(path, header, outer.size, outer.topleft)
        read = view.read(inner.topleft, inner.size)
        absolute = inner.moved_by(outer.topleft)
        np.testing.assert_array_equal(read, voxels[at(absolute)])
        with wkw.Dataset.open(str(path)) as dataset:
            expected = dataset.read(absolute.topleft, absolute.size)
        np.testing.assert_array_equal(read, expected)


WORLD = (24, 24, 24)
Worlds = dict[str, tuple[Path, wkw.Header, NDArray[Any]]]


@pytest.fixture(scope="module")
def worlds(tmp_path_factory: pytest.TempPathFactory) -> Worlds:
    """Per block type a volume of 3 x 3 x 3 files of two channels; the last corner file is missing.

    Only for reading.
    """
    result = {}
    for block_type in BLOCK_TYPES:
        header = header_of(block_type, np.uint16, 2)
        voxels = voxels_of((2, *WORLD), np.uint16)
        path = new_mag(tmp_path_factory.mktemp("world") / block_type, header, voxels)
        (path / "z2" / "y2" / "x2.wkw").unlink()
        voxels[:, 16:, 16:, 16:] = 0
        result[block_type] = (path, header, voxels)
    return result


def at(box: BoundingBox) -> tuple[slice, ...]:
    axes = zip(box.topleft, box.bottomright, strict=True)
    return (slice(None), *(slice(start, stop) for start, stop in axes))


@st.composite
def boxes_within(draw: st.DrawFn, size: tuple[int, ...]) -> BoundingBox:
    start = [draw(st.integers(0, length - 1)) for length in size]
    stop = [draw(st.integers(a + 1, length)) for a, length in zip(start, size, strict=True)]
    return BoundingBox.from_corners(start, stop)


@st.composite
def nested_boxes(draw: st.DrawFn) -> tuple[BoundingBox, BoundingBox]:
    """A box in the world, and a part of it relative to it."""
    outer = draw(boxes_within(WORLD))
    return outer, draw(boxes_within(outer.size))


class TestWrite:
    @pytest.mark.filterwarnings("ignore:writing parts of compressed files")
    @pytest.mark.parametrize("block_type", BLOCK_TYPES)
    @settings(deadline=None, max_examples=20)
    @given(data=st.data())
    def test_changes_the_box_and_nothing_else(
        self, tmp_path_factory: pytest.TempPathFactory, block_type: str, data: st.DataObject
    ) -> None:
        """Also what lies outside of the view and of the layer's box stays as it is."""
        header = header_of(block_type, np.int16, 2)
        model = voxels_of((2, *WORLD), np.int16)
        path = new_mag(tmp_path_factory.mktemp("write") / "1", header, model)
        for seed in range(1, 4):
            outer, inner = data.draw(nested_boxes())
            view = View(path, header, outer.size, outer.topleft, mag_view_bbox_at_creation=outer)
            voxels = voxels_of((2, *inner.size), np.int16, seed)
            view.write(voxels, inner.topleft)
            model[at(inner.moved_by(outer.topleft))] = voxels
        np.testing.assert_array_equal(read_with_wkw(path, WORLD), model)
        np.testing.assert_array_equal(View(path, header, WORLD).read(), model)

    @pytest.mark.parametrize("block_type", BLOCK_TYPES)
    @pytest.mark.parametrize("dtype", wkw.Header.VALID_VOXEL_TYPES)
    def test_every_dtype(self, tmp_path: Path, block_type: str, dtype: type[np.generic]) -> None:
        header = header_of(block_type, dtype, 3)
        path = new_mag(tmp_path / "1", header)
        voxels = voxels_of((3, 8, 8, 16), dtype)
        View(path, header, (8, 8, 16)).write(voxels)
        np.testing.assert_array_equal(read_with_wkw(path, (8, 8, 16)), voxels)

    @pytest.mark.parametrize("shape", [(4, 8, 12), (1, 4, 8, 12)], ids=["x,y,z", "1,x,y,z"])
    def test_one_channel_with_and_without_its_axis(
        self, tmp_path: Path, shape: tuple[int, ...]
    ) -> None:
        view = View(new_mag(tmp_path / "1", header_of()), header_of(), (16, 16, 16), (2, 0, 0))
        voxels = voxels_of(shape)
        view.write(voxels, offset=(1, 2, 3))
        whole = read_with_wkw(tmp_path / "1", (16, 16, 16))
        np.testing.assert_array_equal(whole[0, 3:7, 2:10, 3:15], voxels.reshape(4, 8, 12))
        assert np.count_nonzero(whole) == 4 * 8 * 12

    @pytest.mark.parametrize(
        "laid",
        [
            np.ascontiguousarray,
            np.asfortranarray,
            lambda voxels: np.repeat(voxels, 2, axis=2)[:, :, ::2],
            lambda voxels: voxels[:, ::-1].copy()[:, ::-1],
            lambda voxels: np.broadcast_to(voxels, voxels.shape),
            lambda voxels: voxels.copy().view(np.memmap),
        ],
        ids=["C", "Fortran", "step", "negative step", "broadcast, not writable", "subclass"],
    )
    def test_memory_layout_does_not_matter(
        self, tmp_path: Path, laid: Callable[[NDArray[Any]], NDArray[Any]]
    ) -> None:
        view = View(new_mag(tmp_path / "1", header_of("lz4")), header_of("lz4"), (8, 8, 8))
        voxels = voxels_of((1, 8, 8, 8))
        view.write(laid(voxels))
        np.testing.assert_array_equal(read_with_wkw(tmp_path / "1", (8, 8, 8)), voxels)

    def test_unbounded_views_write_beyond_their_size(self, tmp_path: Path) -> None:
        path = new_mag(tmp_path / "1", header_of())
        view = View(path, header_of(), (2, 2, 2), (1, 1, 1), is_bounded=False)
        view.write(np.full((3, 3, 3), 7, np.uint8), (9, 9, 9))
        whole = read_with_wkw(path, (16, 16, 16))
        assert (whole[0, 10:13, 10:13, 10:13] == 7).all()
        assert np.count_nonzero(whole) == 27

    @pytest.mark.filterwarnings("ignore:writing parts of compressed files")
    def test_unaligned_writes_need_memory_for_one_file_only(self, tmp_path: Path) -> None:
        header = wkw.Header(np.uint8, block_len=16, file_len=2, block_type=BLOCK_TYPES["lz4"])
        path = new_mag(tmp_path / "1", header)
        view = View(path, header, (160, 160, 160))
        voxels = voxels_of((1, 158, 158, 158))
        view.write(voxels, (1, 1, 1))  # whatever is loaded or kept once is there now
        tracemalloc.start()
        try:
            view.write(voxels, (1, 1, 1))
            _, peak_bytes = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        file_bytes = 32**3
        assert peak_bytes < 16 * file_bytes < voxels.nbytes / 7
        np.testing.assert_array_equal(view.read((1, 1, 1), (158,) * 3), voxels)


# The mag's box is [3, 21) on each axis of a volume whose file edge is 8.
MAG_BOX = BoundingBox((3, 3, 3), (18, 18, 18))
WARNING_ROWS = [
    # id, box of the write, does it warn with the mag's box, does it warn without
    ("one whole file", (8, 8, 8), (16, 16, 16), False, False),
    ("several whole files", (0, 8, 0), (24, 16, 16), False, False),
    ("the mag's box", (3, 3, 3), (21, 21, 21), False, True),
    ("from the mag's box to a border", (3, 3, 3), (16, 8, 16), False, True),
    ("from a border to the mag's box", (8, 16, 8), (21, 21, 21), False, True),
    ("mixed sides on mixed axes", (3, 8, 0), (8, 21, 21), False, True),
    ("wider than the mag's box, on borders", (0, 0, 0), (24, 24, 24), False, False),
    ("one voxel short at the end", (3, 3, 3), (21, 21, 20), True, True),
    ("one voxel late at the start", (4, 3, 3), (21, 21, 21), True, True),
    ("one voxel beyond the mag's box", (3, 3, 3), (21, 22, 21), True, True),
    ("starts where the mag's box ends", (8, 8, 21), (16, 16, 24), True, True),
    ("ends where the mag's box starts", (8, 0, 8), (16, 3, 16), True, True),
    ("on the borders of blocks only", (4, 4, 4), (12, 12, 12), True, True),
    ("two axes aligned, one not", (8, 8, 8), (16, 16, 15), True, True),
]


class TestWarning:
    @pytest.mark.parametrize("block_type", BLOCK_TYPES)
    @pytest.mark.parametrize(
        ("start", "stop", "with_box", "without_box"),
        [row[1:] for row in WARNING_ROWS],
        ids=[row[0] for row in WARNING_ROWS],
    )
    def test_exactly_where_files_are_merged_inside_the_mag(
        self,
        tmp_path: Path,
        block_type: str,
        start: tuple[int, int, int],
        stop: tuple[int, int, int],
        with_box: bool,
        without_box: bool,
    ) -> None:
        header = header_of(block_type)
        path = new_mag(tmp_path / "1", header)
        for mag_box, warns in ((MAG_BOX, with_box), (None, without_box)):
            box = BoundingBox.from_corners(start, stop)
            view = View(path, header, (24, 24, 24), (0, 0, 0), True, False, mag_box)
            with raised_warnings() as caught:
                view.write(np.ones(box.size, np.uint8), box.topleft)
                view.get_view(box.topleft, box.size).write(np.ones(box.size, np.uint8))
            expected = [RuntimeWarning] * 2 if warns and block_type in COMPRESSED else []
            assert [warning.category for warning in caught] == expected
            assert all(warning.filename == __file__ for warning in caught)

    @settings(deadline=None, max_examples=60)
    @given(box=boxes_within(WORLD), mag_box=st.none() | boxes_within(WORLD))
    def test_rule(
        self, tmp_path_factory: pytest.TempPathFactory, box: BoundingBox, mag_box: Any
    ) -> None:
        expected = False
        for axis in range(3):
            for corner in ("topleft", "bottomright"):
                side = getattr(box, corner)[axis]
                on_border = mag_box is not None and side == getattr(mag_box, corner)[axis]
                expected |= not (side % EDGE == 0 or on_border)
        path = new_mag(tmp_path_factory.mktemp("rule") / "1", header_of("lz4"))
        view = View(path, header_of("lz4"), WORLD, mag_view_bbox_at_creation=mag_box)
        with raised_warnings() as caught:
            view.write(np.ones(box.size, np.uint8), box.topleft)
        assert bool(caught) is expected

    def test_as_an_error_it_comes_before_anything_is_written(self, tmp_path: Path) -> None:
        path = new_mag(tmp_path / "1", header_of("lz4"))
        with pytest.raises(RuntimeWarning, match="slow"):
            View(path, header_of("lz4"), (8, 8, 8)).write(np.ones((3, 3, 3), np.uint8))
        assert [entry.name for entry in path.iterdir()] == ["header.wkw"]


class TestGetView:
    def parent(self, **options: Any) -> View:
        return View(NOWHERE, header_of(), (10, 10, 10), (5, 6, 7), **options)

    def test_defaults_are_the_view_itself(self) -> None:
        parent = self.parent()
        assert parent.get_view() == parent
        assert parent.get_view(None, None, None) == parent

    def test_size_defaults_to_the_parents_size(self) -> None:
        part = self.parent().get_view((1, 0, 0), read_only=True)
        assert (part.global_offset, part.size) == ((6, 6, 7), (10, 10, 10))
        with pytest.raises(BoundsError):
            self.parent().get_view((1, 0, 0))

    @pytest.mark.parametrize(
        ("parent", "asked", "result"),
        [
            (False, None, False),
            (False, False, False),
            (False, True, True),
            (True, None, True),
            (True, True, True),
            (False, np.True_, True),
            (True, np.True_, True),
        ],
    )
    def test_read_only_is_inherited(self, parent: bool, asked: bool | None, result: bool) -> None:
        part = self.parent(read_only=parent).get_view(read_only=asked)
        assert part.read_only is result

    @pytest.mark.parametrize("asked", [False, np.False_, 0])
    def test_read_only_parents_have_no_writable_part(self, asked: Any) -> None:
        with pytest.raises(ReadOnlyError):
            self.parent(read_only=True).get_view(read_only=asked)

    def test_offsets_add_up(self) -> None:
        part = self.parent().get_view((1, 2, 3), (7, 7, 7)).get_view((2, 2, 2), (1, 2, 3))
        assert (part.global_offset, part.size) == ((8, 10, 12), (1, 2, 3))

    def test_parts_are_bounded(self) -> None:
        part = self.parent(is_bounded=False).get_view((0, 0, 0), (2, 2, 2))
        with pytest.raises(BoundsError):
            part.read((0, 0, 0), (3, 2, 2))

    def test_writable_parts_of_unbounded_views_stay_inside_too(self) -> None:
        with pytest.raises(BoundsError):
            self.parent(is_bounded=False).get_view((0, 0, 0), (11, 1, 1))

    def test_read_only_parts_may_exceed_and_so_may_theirs(self) -> None:
        part = self.parent().get_view((8, 8, 8), (20, 20, 20), read_only=True)
        own = part.get_view((15, 15, 15), (100, 1, 1))
        assert (own.global_offset, own.size) == ((28, 29, 30), (100, 1, 1))
        assert own.read_only
        assert self.parent(read_only=True).get_view((8, 8, 8), (20, 20, 20)).read_only

    def test_read_only_parts_that_exceed_are_bounded_by_their_own_box(self, view: View) -> None:
        part = view.get_view((8, 8, 8), (20, 20, 20), read_only=True)
        whole = read_with_wkw(Path(view.path), (29, 29, 29))
        np.testing.assert_array_equal(part.read(), whole[:, 9:, 9:, 9:])
        with pytest.raises(BoundsError):
            part.read((0, 0, 0), (21, 1, 1))

    @settings(deadline=None, max_examples=40)
    @given(boxes=nested_boxes())
    def test_reading_a_part_is_reading_there(
        self, worlds: Worlds, boxes: tuple[BoundingBox, BoundingBox]
    ) -> None:
        path, header, voxels = worlds["lz4"]
        outer, inner = boxes
        part = View(path, header, WORLD).get_view(outer.topleft, outer.size)
        part = part.get_view(inner.topleft, inner.size)
        np.testing.assert_array_equal(part.read(), voxels[at(inner.moved_by(outer.topleft))])


class TestOptions:
    def test_parts_and_copies_keep_them(self, view: View) -> None:
        careful = view.with_options(fsync=True).with_options(keep_zeros=True, hc_level=7)
        for each in (careful, careful.get_view(), pickle.loads(pickle.dumps(careful))):
            options = each.volume.options
            assert (options.fsync, options.keep_zeros, options.hc_level) == (True, True, 7)
        assert careful != view
        assert not view.volume.options.fsync, "the view itself stays as it was"

    def test_of_a_mag_they_reach_its_views_stores_and_chunks(self, tissue: wkdask.Dataset) -> None:
        box = BoundingBox((0, 0, 0), (16, 8, 8))
        layer = tissue.add_layer("zeros", "color", "uint8", bounding_box=box)
        mag = layer.add_mag(1, block_edge=8, blocks_per_file_edge=1).with_options(keep_zeros=True)
        zeros = np.zeros((1, 8, 8, 8), np.uint8)
        writes: list[Callable[[], object]] = [
            lambda: mag.write(zeros),
            lambda: mag.get_view((0, 0, 0), (8, 8, 8)).write(zeros),
            lambda: mag.store(zeros),
            lambda: mag.for_each_chunk(lambda chunk: chunk[0].write(zeros)),
        ]
        for write in writes:
            write()
            files = list(Path(mag.path).rglob("*.wkw"))
            assert len(files) > 1, "header.wkw and a file of zeros"
            for file in files:
                if file.name != "header.wkw":
                    file.unlink()

    @pytest.mark.parametrize("resume", [None, 1, Path("job")])
    def test_what_is_no_way_to_resume(self, view: View, resume: Any) -> None:
        before = sorted(Path(view.path).rglob("*"))
        with pytest.raises(ArgumentError, match="resume is"):
            view.for_each_chunk(lambda chunk: None, resume=resume)
        assert sorted(Path(view.path).rglob("*")) == before

    @pytest.mark.parametrize("level", [2, 13, 3.5])
    def test_levels_that_do_not_exist(self, view: View, level: Any) -> None:
        with pytest.raises(ArgumentError, match="hc_level"):
            view.with_options(hc_level=level)


@pytest.fixture
def layer(tissue: wkdask.Dataset) -> wkdask.Layer:
    box = BoundingBox((3, 5, 7), (10, 10, 10))
    return tissue.add_layer("color", category="color", dtype="uint8", bounding_box=box)


class TestMagView:
    def test_is_an_unbounded_view_at_zero(self, layer: wkdask.Layer) -> None:
        mag = layer.add_mag(1, block_edge=4, blocks_per_file_edge=2)
        assert isinstance(mag, View)
        assert mag.global_offset == (0, 0, 0)
        assert not mag.read((100, 200, 300), (1, 2, 3)).any()
        mag.write(np.full((8, 8, 8), 9, np.uint8), (40, 40, 40))
        assert (mag.read((40, 40, 40), (8, 8, 8)) == 9).all()

    def test_get_view_is_absolute_and_defaults_to_the_box(self, layer: wkdask.Layer) -> None:
        mag = layer.add_mag(1, block_edge=4, blocks_per_file_edge=2)
        for view, start, size in (
            (mag.get_view(), (3, 5, 7), (10, 10, 10)),
            (mag.get_view((4, 5, 6)), (4, 5, 6), (9, 10, 11)),
            (mag.get_view((4, 5, 6), (1, 1, 1)), (4, 5, 6), (1, 1, 1)),
        ):
            assert (view.global_offset, view.size) == (start, size)

    def test_box_in_a_coarse_mag_is_aligned_outwards(self, layer: wkdask.Layer) -> None:
        mag = layer.add_mag("2-2-1", block_edge=4, blocks_per_file_edge=2)
        view = mag.get_view()
        assert (view.global_offset, view.size) == ((1, 2, 7), (6, 6, 10))
        assert mag.get_view((2, 2, 8)).size == (5, 6, 9)

    def test_default_view_reads_what_the_mag_reads_there(self, layer: wkdask.Layer) -> None:
        mag = layer.add_mag(1, block_edge=4, blocks_per_file_edge=2, block_type="raw")
        voxels = voxels_of((1, 10, 10, 10))
        mag.write(voxels, (3, 5, 7))
        np.testing.assert_array_equal(mag.get_view().read(), voxels)
        np.testing.assert_array_equal(mag.read((3, 5, 7), (10, 10, 10)), voxels)
        np.testing.assert_array_equal(mag.get_view((4, 5, 7)).read(), voxels[:, 1:])

    def test_parts_know_the_mags_box(self, layer: wkdask.Layer) -> None:
        """Writing the whole box of a mag is no reason to warn; a part of it is."""
        mag = layer.add_mag(1, block_edge=4, blocks_per_file_edge=2, block_type="lz4")
        view = mag.get_view()
        with raised_warnings() as caught:
            view.write(np.ones(view.size, np.uint8))
            view.get_view(size=(5, 10, 10)).write(np.ones((5, 10, 10), np.uint8))
        assert caught == []
        with pytest.warns(RuntimeWarning, match="slow"):
            view.write(np.ones((2, 2, 2), np.uint8))

    def test_the_mags_box_is_a_snapshot(self, layer: wkdask.Layer) -> None:
        mag = layer.add_mag(1, block_edge=4, blocks_per_file_edge=2, block_type="lz4")
        before = mag.get_view()
        mag.write(np.ones((8, 8, 8), np.uint8), (16, 16, 16))
        assert mag.get_view().size == (21, 19, 17)
        assert before.size == (10, 10, 10)
        with raised_warnings() as caught:
            before.write(np.ones(before.size, np.uint8))
        assert caught == []
        with pytest.warns(RuntimeWarning):
            mag.get_view().write(np.ones(before.size, np.uint8))

    def test_read_only_parts_may_leave_the_mag(self, layer: wkdask.Layer) -> None:
        mag = layer.add_mag(1, block_edge=4, blocks_per_file_edge=2)
        part = mag.get_view((12, 0, 0), (20, 20, 20), read_only=True)
        assert part.read_only
        assert not part.read().any()
        with pytest.raises(BoundsError):
            mag.get_view((12, 0, 0), (20, 20, 20))

    def test_views_survive_the_trip_to_another_process(self, layer: wkdask.Layer) -> None:
        mag = layer.add_mag(1, block_edge=4, blocks_per_file_edge=2, block_type="raw")
        mag.write(voxels_of((8, 8, 8)), (3, 5, 7))
        for view in (mag, mag.get_view()):
            copy = pickle.loads(pickle.dumps(view))
            assert type(copy) is type(view)
            assert copy == view
            assert (copy.bounding_box, copy.mag) == (view.bounding_box, view.mag)
            np.testing.assert_array_equal(copy.read(), view.read())


def varied() -> dict[str, View]:
    """Views that differ from the first one in one thing each."""
    base: dict[str, Any] = {
        "path_to_mag_view": NOWHERE,
        "header": header_of(),
        "size": (5, 6, 7),
        "global_offset": (1, 2, 3),
        "is_bounded": True,
        "read_only": False,
        "mag_view_bbox_at_creation": None,
    }
    changes: dict[str, dict[str, Any]] = {
        "base": {},
        "path": {"path_to_mag_view": NOWHERE + "0"},
        "dtype": {"header": header_of(dtype=np.int8)},
        "channels": {"header": header_of(num_channels=2)},
        "block type": {"header": header_of("lz4")},
        "block edge": {"header": wkw.Header(np.uint8, block_len=8, file_len=2)},
        "file edge": {"header": wkw.Header(np.uint8, block_len=4, file_len=4)},
        "size": {"size": (5, 6, 8)},
        "offset": {"global_offset": (1, 2, 4)},
        "bounded": {"is_bounded": False},
        "read-only": {"read_only": True},
        "mag's box": {"mag_view_bbox_at_creation": BoundingBox((0, 0, 0), (9, 9, 9))},
        "another mag's box": {"mag_view_bbox_at_creation": BoundingBox((0, 0, 1), (9, 9, 9))},
    }
    return {name: View(**{**base, **change}) for name, change in changes.items()}


class TestIdentity:
    def test_equal_views_are_equal_in_every_way(self) -> None:
        for one, other in zip(varied().values(), varied().values(), strict=True):
            assert one is not other
            assert one == other
            assert not operator.ne(one, other)
            assert hash(one) == hash(other)
            assert tokenize(one) == tokenize(other)
            assert len({one, other}) == 1

    def test_views_that_differ_in_one_thing_differ(self) -> None:
        views = varied()
        assert len({tokenize(view) for view in views.values()}) == len(views)
        # A set tells by equality which views of one path, and so of one hash, are the same.
        assert len(set(views.values())) == len(views)

    def test_numbers_of_another_type_do_not_matter(self) -> None:
        view = View(Path(NOWHERE), header_of(), np.array([5, 6, 7]), [1, 2, np.int8(3)])
        assert view == varied()["base"]
        assert tokenize(view) == tokenize(varied()["base"])

    def test_relative_and_absolute_paths_are_the_same(self) -> None:
        view = View(os.path.abspath(NOWHERE), header_of(), (5, 6, 7), (1, 2, 3))
        assert view == varied()["base"]

    @pytest.mark.parametrize("other", [None, 1, "view", NOWHERE])
    def test_nothing_else_is_equal(self, other: object) -> None:
        assert varied()["base"] != other
        assert operator.ne(other, varied()["base"])

    def test_open_views_equal_closed_ones(self, view: View) -> None:
        opened = View(view.path, view.header, view.size, view.global_offset).open()
        assert opened == view
        assert (hash(opened), tokenize(opened)) == (hash(view), tokenize(view))

    def test_a_whole_mag_is_not_a_view_of_the_same_box(self, layer: wkdask.Layer) -> None:
        """Its arrays and chunks cover another box, so that they need another name in a graph."""
        mag = layer.add_mag(1, block_edge=4, blocks_per_file_edge=2)
        view = View(mag.path, mag.header, mag.size, (0, 0, 0), False, False, mag.bounding_box)
        assert view.shape != mag.shape
        assert view != mag
        assert tokenize(view) != tokenize(mag)
        assert layer[1] == mag
        assert tokenize(layer[1]) == tokenize(mag)

    def test_tokens_are_the_same_in_every_process(self, layer: wkdask.Layer) -> None:
        mag = layer.add_mag(1, block_edge=4, blocks_per_file_edge=2)
        views = [*varied().values(), mag, mag.get_view(), pickle.loads(pickle.dumps(mag))]
        program = (
            "import pickle, sys; from dask.base import tokenize; "
            "print([tokenize(view) for view in pickle.load(sys.stdin.buffer)])"
        )
        answer = subprocess.run(
            [sys.executable, "-c", program],
            input=pickle.dumps(views),
            capture_output=True,
            check=True,
            env={**os.environ, "PYTHONHASHSEED": "12345"},
        )
        assert answer.stdout.decode().strip() == str([tokenize(view) for view in views])

    def test_tokens_are_deterministic_by_dasks_own_measure(self) -> None:
        for view in varied().values():
            assert tokenize(view, ensure_deterministic=True) == tokenize(view)

    @pytest.mark.parametrize("name", varied())
    def test_pickles_are_small_and_equal(self, name: str) -> None:
        view = varied()[name]
        data = pickle.dumps(view)
        assert len(data) < 1000
        copy = pickle.loads(data)
        assert copy == view
        assert (copy.size, copy.global_offset, copy.read_only) == (
            view.size,
            view.global_offset,
            view.read_only,
        )

    def test_open_views_pickle_as_closed_ones(self, view: View) -> None:
        with view:
            copy = pickle.loads(pickle.dumps(view))
            assert not is_open(copy)
            assert is_open(view), "the original stays open"
            np.testing.assert_array_equal(copy.read(), view.read())
        assert copy.open() is copy
