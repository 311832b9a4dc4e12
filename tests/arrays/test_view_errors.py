"""Every error condition of `wkdask.View` and of bounding boxes, one row each.

Each row is tried on volumes with data on disk: the error is of the right class and says what is
needed, and no byte on disk has changed. What the original `View` refused by an `assert` is an
`AssertionError` here too.
"""

from __future__ import annotations

import functools
import pickle
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import wkw

import wkdask
from wkdask import BoundingBox, View
from wkdask.errors import (
    AlignmentError,
    ArgumentError,
    BoundsError,
    DirectoryError,
    DtypeError,
    FormatError,
    MissingError,
    ReadOnlyError,
    StateError,
    WkdaskError,
)

BLOCK_TYPES = {"raw": wkw.Header.BLOCK_TYPE_RAW, "lz4": wkw.Header.BLOCK_TYPE_LZ4}
BEYOND = 2**32


@dataclass(frozen=True)
class World:
    """Volumes of 24-cubed voxels with data in their first file; blocks of 4, files of 8 voxels.

    Views of them lie at (8, 8, 8) and have the size (16, 16, 16).
    """

    root: Path

    def view(self, volume: str = "raw", **options: Any) -> View:
        """Return a view of a volume: "raw", "lz4", and with three channels "raw3", "lz43"."""
        path = self.root / volume
        with wkw.Dataset.open(str(path)) as dataset:
            header = dataset.header
        return View(path, header, **{"size": (16,) * 3, "global_offset": (8,) * 3, **options})

    @property
    def frozen(self) -> View:
        return self.view(read_only=True)

    @property
    def unbounded(self) -> View:
        return self.view(is_bounded=False)

    @property
    def missing(self) -> View:
        """A view of a directory that is not there."""
        return View(self.root / "missing", wkw.Header(np.uint8), (8, 8, 8))

    @property
    def mag(self) -> wkdask.MagView:
        return wkdask.open(self.root / "tissue")["color"][1]

    @property
    def frozen_mag(self) -> View:
        return self.mag.get_view(read_only=True)

    def snapshot(self) -> dict[str, bytes | None]:
        """Return the content of every file; None for directories."""
        return {
            str(path.relative_to(self.root)): path.read_bytes() if path.is_file() else None
            for path in self.root.rglob("*")
        }


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    """The volumes; the tests check themselves that they never change."""
    root = tmp_path_factory.mktemp("world")
    for block_type, number in BLOCK_TYPES.items():
        for channels in (1, 3):
            header = wkw.Header(np.uint8, channels, block_len=4, file_len=2, block_type=number)
            with wkw.Dataset.create(str(root / f"{block_type}{channels}"), header) as dataset:
                dataset.write((8, 8, 8), np.full((channels, 8, 8, 8), 7, np.uint8, order="F"))
    for name in BLOCK_TYPES:
        (root / f"{name}1").rename(root / name)
    ds = wkdask.create(root / "tissue", voxel_size=(8, 8, 8))
    box = BoundingBox((8, 8, 8), (16, 16, 16))
    layer = ds.add_layer("color", category="color", dtype="uint8", bounding_box=box)
    mag = layer.add_mag(1, block_edge=4, blocks_per_file_edge=2, block_type="lz4")
    mag.write(np.full((8, 8, 8), 7, np.uint8), (8, 8, 8))
    ds.add_layer("empty", category="color", dtype="uint8").add_mag(1)
    return World(root)


@dataclass(frozen=True)
class Row:
    name: str
    act: Callable[[World], object]
    error: type[WkdaskError]
    words: str
    """Words that the message must contain, separated by blanks."""
    asserted: bool = True
    """Whether the original raised an `AssertionError` here, or took it by mistake."""


def ones(*shape: int, dtype: Any = np.uint8) -> np.ndarray[Any, Any]:
    return np.ones(shape, dtype)


def nothing(_: object) -> None:
    raise RuntimeError("a refused run calls no function")


OPENING = [
    Row("open twice", lambda w: w.view().open().open(), StateError, "open already close"),
    Row("close unopened", lambda w: w.view().close(), StateError, "not open"),
    Row("close twice", lambda w: (v := w.view().open(), v.close(), v.close()), StateError, "not"),
    Row("close after with", lambda w: _with(w.view()).close(), StateError, "not open"),
    Row("open what is missing", lambda w: w.missing.open(), MissingError, "missing", False),
    Row("read what is missing", lambda w: w.missing.read(), MissingError, "missing", False),
    Row(
        "write what is missing",
        lambda w: w.missing.write(ones(8, 8, 8)),
        MissingError,
        "missing",
        False,
    ),
    Row(
        "another dtype than on disk",
        lambda w: View(
            w.root / "raw", wkw.Header(np.uint16, block_len=4, file_len=2), (8,) * 3
        ).open(),
        FormatError,
        "header.wkw uint8 uint16",
        False,
    ),
]


def _with(view: View) -> View:
    with view:
        return view


VIEWS = [
    Row("view: size below 0", lambda w: w.view(size=(1, -1, 1)), ArgumentError, "size -1 negative"),
    Row(
        "view: size of floats", lambda w: w.view(size=(1, 1.5, 1)), ArgumentError, "size 1.5 whole"
    ),
    Row(
        "view: offset of floats", lambda w: w.view(global_offset=(1, 2.0, 3)), ArgumentError, "2.0"
    ),
    Row(
        "view: offset below 0", lambda w: w.view(global_offset=(0, -1, 0)), BoundsError, "negative"
    ),
    Row(
        "view: offset too large",
        lambda w: w.view(global_offset=(BEYOND, 0, 0)),
        BoundsError,
        "2**32",
    ),
    Row("view: size too large", lambda w: w.view(size=(1, 1, BEYOND)), BoundsError, "2**32"),
    Row(
        "view: path with NUL", lambda w: View("a\0b", w.mag.header, (1, 1, 1)), ArgumentError, "NUL"
    ),
]

READING = [
    Row(
        "read: negative offset",
        lambda w: w.view().read((0, -1, 0)),
        BoundsError,
        "offset -1 negative",
    ),
    Row(
        "read: negative offset, unbounded",
        lambda w: w.unbounded.read((0, 0, -1)),
        BoundsError,
        "offset -1 negative",
    ),
    Row(
        "read: negative offset, mag",
        lambda w: w.mag.read((-8, 0, 0), (1, 1, 1)),
        BoundsError,
        "offset -8 negative",
    ),
    Row(
        "read: size 0", lambda w: w.view().read((0, 0, 0), (0, 1, 1)), BoundsError, "size (0, 1, 1)"
    ),
    Row(
        "read: size 0, unbounded", lambda w: w.unbounded.read(size=(1, 1, 0)), BoundsError, "size 1"
    ),
    Row("read: negative size", lambda w: w.view().read(size=(1, -3, 1)), BoundsError, "size -3"),
    Row("read: empty view", lambda w: w.view(size=(0, 1, 1)).read(), BoundsError, "size 0 least"),
    Row("read: beyond the end", lambda w: w.view().read(size=(17, 1, 1)), BoundsError, "leaves 16"),
    Row(
        "read: remainder not meant",
        lambda w: w.view().read((1, 0, 0)),
        BoundsError,
        "[1, 17) leaves",
    ),
    Row("read: far outside", lambda w: w.view().read((99, 0, 0), (1, 1, 1)), BoundsError, "leaves"),
    Row(
        "read: bbox outside",
        lambda w: w.view().read_bbox(BoundingBox((8, 8, 8), (8, 8, 9))),
        BoundsError,
        "leaves",
    ),
    Row(
        "read: bbox empty",
        lambda w: w.view().read_bbox(BoundingBox((8, 8, 8), (8, 8, 0))),
        BoundsError,
        "size",
    ),
    Row(
        "read: a file cut short",
        lambda w: w.view("cut").read(),
        FormatError,
        "x1.wkw bytes not zeros",
        False,
    ),
    Row(
        "read: a directory in place of a file",
        lambda w: w.view("folder").read(),
        DirectoryError,
        "x1.wkw directory",
        False,
    ),
]

NOT_THREE_WHOLE_NUMBERS = [
    ("floats", (1.0, 1.0, 1.0)),
    ("NumPy floats", np.ones(3)),
    ("one float", (1, 1, 1.5)),
    ("not a number", (1, 1, float("nan"))),
    # NumPy below 2.3 takes its bools for indices, and warns.
    *(
        [("NumPy bools", np.ones(3, bool))]
        if np.lib.NumpyVersion(np.__version__) >= "2.3.0"
        else []
    ),
    ("None inside", (1, None, 1)),
    ("text", "111"),
    ("texts", ("1", "1", "1")),
    ("two", (1, 1)),
    ("four", (1, 1, 1, 1)),
    ("none", ()),
    ("a number", 1),
    ("nested", ((1, 1, 1),)),
]


def bad_numbers(name: str, value: Any) -> list[Row]:
    """Return the rows for numbers that are none: the original floored or failed in NumPy."""
    actions: dict[str, Callable[[World], object]] = {
        "read offset": lambda w: w.view().read(value, (1, 1, 1)),
        "read size": lambda w: w.view().read((0, 0, 0), value),
        "write offset": lambda w: w.view().write(ones(1, 1, 1), value),
        "get_view offset": lambda w: w.view().get_view(value, (1, 1, 1)),
        "get_view size": lambda w: w.view().get_view((0, 0, 0), value),
        "mag get_view offset": lambda w: w.mag.get_view(value, (1, 1, 1)),
        "mag get_view size": lambda w: w.mag.get_view((8, 8, 8), value),
    }
    return [
        Row(f"{where}: {name}", act, ArgumentError, f"{where.split()[-1]} whole numbers", False)
        for where, act in actions.items()
    ]


BAD_NUMBERS = [row for given in NOT_THREE_WHOLE_NUMBERS for row in bad_numbers(*given)]

# Beyond uint32: libwkw wrapped 2**32 to 0, so that an unbounded view read or wrote something else.
TOO_LARGE = [
    Row(
        "read at 2**32", lambda w: w.unbounded.read((BEYOND, 0, 0), (1, 1, 1)), BoundsError, "2**32"
    ),
    Row("read 2**32", lambda w: w.unbounded.read((0, 0, 0), (1, BEYOND, 1)), BoundsError, "2**32"),
    Row("mag: 2**32", lambda w: w.mag.read((0, 0, 0), (1, BEYOND, 1)), BoundsError, "2**32"),
    Row(
        "read across 2**32",
        lambda w: w.unbounded.read((BEYOND - 9, 0, 0), (2, 1, 1)),
        BoundsError,
        "2**32",
    ),
    Row("read at 2**64", lambda w: w.unbounded.read((0, 2**64, 0)), BoundsError, "2**32"),
    Row(
        "write at 2**32",
        lambda w: w.unbounded.write(ones(1, 1, 1), (0, 0, BEYOND)),
        BoundsError,
        "2**32",
    ),
    Row(
        "mag: write at 2**32",
        lambda w: w.mag.write(ones(8, 8, 8), (0, 0, BEYOND)),
        BoundsError,
        "2**32",
    ),
    Row(
        "get_view at 2**32",
        lambda w: w.frozen.get_view((BEYOND, 0, 0), (1, 1, 1)),
        BoundsError,
        "2**32",
    ),
    Row("get_view of 2**32", lambda w: w.frozen.get_view(size=(BEYOND,) * 3), BoundsError, "2**32"),
]

WRITING = [
    Row("write: read-only", lambda w: w.frozen.write(ones(8, 8, 8)), ReadOnlyError, "read-only"),
    Row(
        "write: read-only mag",
        lambda w: w.frozen_mag.write(ones(8, 8, 8)),
        ReadOnlyError,
        "read-only",
    ),
    Row(
        "write: negative offset",
        lambda w: w.view().write(ones(1, 1, 1), (0, -1, 0)),
        BoundsError,
        "offset -1 negative",
    ),
    Row(
        "write: negative offset, unbounded",
        lambda w: w.unbounded.write(ones(1, 1, 1), (-1, 0, 0)),
        BoundsError,
        "offset -1 negative",
    ),
    Row(
        "write: empty data", lambda w: w.view().write(ones(0, 8, 8)), BoundsError, "size 0 least 1"
    ),
    Row(
        "write: empty data, 4-D", lambda w: w.view().write(ones(1, 8, 8, 0)), BoundsError, "size 0"
    ),
    Row(
        "write: empty, unbounded", lambda w: w.unbounded.write(ones(8, 0, 8)), BoundsError, "size 0"
    ),
    Row("write: no channel", lambda w: w.view().write(ones(0, 8, 8, 8)), ArgumentError, "c = 1"),
    Row("write: too large", lambda w: w.view().write(ones(17, 1, 1)), BoundsError, "leaves 16"),
    Row(
        "write: beyond the end",
        lambda w: w.view().write(ones(1, 1, 1), (0, 0, 16)),
        BoundsError,
        "[16, 17) leaves",
    ),
    Row(
        "write: 0-D data",
        lambda w: w.view().write(np.uint8(1)),
        ArgumentError,
        "shape () (c, x, y, z)",
    ),
    Row(
        "write: 1-D data",
        lambda w: w.view().write(ones(8)),
        ArgumentError,
        "shape (8,) (c, x, y, z)",
    ),
    Row("write: 2-D data", lambda w: w.view().write(ones(8, 8)), ArgumentError, "shape (8, 8)"),
    Row(
        "write: 5-D data",
        lambda w: w.view().write(ones(1, 1, 8, 8, 8)),
        ArgumentError,
        "(1, 1, 8, 8, 8)",
    ),
    Row("write: no data", lambda w: w.view().write(None), DtypeError, "object uint8", False),
    Row(
        "write: a cut file to be merged",
        lambda w: w.view("cut").write(ones(4, 4, 4)),
        FormatError,
        "x1.wkw bytes",
        False,
    ),
]

# Where the data go: the original checked some of these and cast or broadcast on the others.
PLACES = {
    "aligned": ((8, 8, 8), (0, 0, 0)),
    "block-aligned": ((4, 8, 8), (4, 0, 0)),
    "unaligned": ((3, 8, 8), (0, 1, 0)),
    "over files": ((10, 10, 10), (3, 3, 3)),
}


def bad_data(volume: str, channels: int, place: str) -> list[Row]:
    """Return the rows for data of a wrong dtype or channel count, for one way to be written."""
    size, offset = PLACES[place]
    dtypes = ("float64", "float32", "uint16", "int8", "bool", "int64", "complex64", "U1")
    shapes = [(2, *size), (3, *size) if channels == 1 else (1, *size)]
    if channels == 3:
        shapes += [size, (4, *size)]

    def write(data: np.ndarray[Any, Any]) -> Callable[[World], object]:
        return lambda w: w.view(volume).write(data, offset)

    where = f"{volume}, {place}"
    return [
        Row(f"{where}: {name}", write(np.ones((channels, *size), name)), DtypeError, "uint8 astype")
        for name in dtypes
    ] + [
        Row(f"{where}: {shape}", write(ones(*shape)), ArgumentError, f"{shape} c = {channels}")
        for shape in shapes
    ]


BAD_DATA = [
    row
    for block_type in BLOCK_TYPES
    for place in PLACES
    for volume, channels in ((block_type, 1), (f"{block_type}3", 3))
    for row in bad_data(volume, channels, place)
]

GET_VIEW = [
    Row("get_view: read-only", lambda w: w.frozen.get_view(read_only=False), ReadOnlyError, "read"),
    Row(
        "get_view: part of a read-only part",
        lambda w: w.view().get_view(read_only=True).get_view(read_only=False),
        ReadOnlyError,
        "read-only",
    ),
    Row("get_view: offset < 0", lambda w: w.view().get_view((0, -1, 0)), BoundsError, "offset -1"),
    Row(
        "get_view: offset < 0, read-only",
        lambda w: w.view().get_view((0, -1, 0), (1, 1, 1), read_only=True),
        BoundsError,
        "offset -1 negative",
    ),
    Row("get_view: size 0", lambda w: w.view().get_view(size=(1, 0, 1)), BoundsError, "size 0"),
    Row("get_view: size < 0", lambda w: w.view().get_view(size=(1, -2, 1)), BoundsError, "-2"),
    Row(
        "get_view: size 0, read-only",
        lambda w: w.frozen.get_view((0, 0, 0), (1, 1, 0)),
        BoundsError,
        "size 0 least",
    ),
    Row("get_view: same size", lambda w: w.view().get_view((1, 0, 0)), BoundsError, "leaves 16"),
    Row("get_view: larger", lambda w: w.view().get_view(size=(1, 17, 1)), BoundsError, "leaves"),
    Row(
        "get_view: larger, unbounded",
        lambda w: w.unbounded.get_view(size=(1, 17, 1)),
        BoundsError,
        "leaves",
    ),
    Row(
        "mag get_view: offset < 0", lambda w: w.mag.get_view((0, 0, -1)), BoundsError, "-1 negative"
    ),
    Row(
        "mag get_view: behind the end",
        lambda w: w.mag.get_view((24, 8, 8)),
        BoundsError,
        "size 0 least",
    ),
    Row(
        "mag get_view: beyond the end",
        lambda w: w.mag.get_view((8, 8, 8), (17, 1, 1)),
        BoundsError,
        "leaves 24",
    ),
    Row(
        "mag get_view: nothing there",
        lambda w: wkdask.open(w.root / "tissue")["empty"][1].get_view(),
        ArgumentError,
        "empty",
    ),
]


def each(view: str, chunk_size: Any, **options: Any) -> Callable[[World], object]:
    return lambda w: _views(w)[view].for_each_chunk(nothing, chunk_size, **options)


def zipped(
    source: tuple[int, int], target: tuple[int, int], chunks: tuple[Any, Any], volume: str = "lz4"
) -> Callable[[World], object]:
    """Run over zipped chunks of two views, each given as [start, stop) on all axes."""

    def act(w: World) -> object:
        views = [
            w.view(volume, size=(b - a,) * 3, global_offset=(a,) * 3) for a, b in (source, target)
        ]
        return views[0].for_zipped_chunks(nothing, views[1], *chunks)

    return act


def _views(w: World) -> dict[str, View]:
    return {
        "raw": w.view(),
        "lz4": w.view("lz4"),
        "mag": w.mag,
        "frozen": w.frozen,
        "no voxel": w.view(size=(0, 8, 8), read_only=True),
        "empty mag": wkdask.open(w.root / "tissue")["empty"][1],
    }


CHUNKS = [
    Row("chunk in a file", each("lz4", (8, 4, 8)), AlignmentError, "(8, 4, 8) file 8 (8, 8, 8)"),
    Row("chunk over files", each("mag", 12), AlignmentError, "(8, 8, 8) or (16, 16, 16) read_only"),
    Row("chunk in a block", each("raw", (6, 8, 8)), AlignmentError, "block 4 (4, 8, 8) or (8, 8"),
    Row("chunk of 0", each("frozen", 0), ArgumentError, "chunk_size 0 least 1"),
    Row("chunk with a 0", each("lz4", (8, 0, 8)), ArgumentError, "chunk_size (8, 0, 8) least 1"),
    Row("chunk below 0", each("frozen", (8, 8, -8)), ArgumentError, "chunk_size -8 least 1"),
    Row("chunk of a float", each("frozen", 8.0), ArgumentError, "chunk_size 8.0 whole", False),
    Row("chunk of floats", each("lz4", (8.0, 8, 8)), ArgumentError, "chunk_size whole", False),
    Row("chunk of two", each("frozen", (8, 8)), ArgumentError, "chunk_size three", False),
    Row(
        "chunk of text",
        each("frozen", "file"),
        ArgumentError,
        "chunk_size 'file' auto numbers",
        False,
    ),
    Row("view without voxels", each("no voxel", 8), ArgumentError, "empty"),
    Row("mag without voxels", each("empty mag", 8), ArgumentError, "empty"),
    Row(
        "executor by name",
        each("lz4", 8, executor="threads"),
        ArgumentError,
        "executor 'threads' Client Executor None",
        False,
    ),
    Row(
        "executor that is a class",
        each("lz4", 8, executor=ThreadPoolExecutor),
        ArgumentError,
        "executor",
        False,
    ),
    Row(
        "unknown on_error",
        each("lz4", 8, on_error="ignore"),
        ArgumentError,
        "on_error 'ignore' raise collect",
        False,
    ),
    Row("zipped: no source", zipped((8, 8), (8, 24), (8, 8)), ArgumentError, "empty"),
    Row("zipped: no target", zipped((8, 24), (8, 8), (8, 8)), ArgumentError, "empty"),
    Row("zipped: another ratio", zipped((8, 24), (8, 16), (8, 8)), ArgumentError, "ratio"),
    Row("zipped: chunks of another ratio", zipped((0, 16), (0, 16), (16, 8)), ArgumentError, "rat"),
    Row("zipped: no whole chunk", zipped((0, 9), (0, 16), (None, 8)), ArgumentError, "whole"),
    Row("zipped: target in files", zipped((0, 24), (0, 24), (12, 12)), AlignmentError, "12 8 16"),
    Row(
        "zipped: target in raw files",
        zipped((0, 24), (0, 24), (4, 4), "raw"),
        AlignmentError,
        "target_chunk_size (4, 4, 4) multiple 8 (8, 8, 8)",
    ),
    # The original silently dropped [128, 160) of the source in this example.
    Row(
        "zipped: out of phase",
        zipped((32, 160), (0, 128), (64, 64)),
        AlignmentError,
        "axis x (32, 64, 32) (64, 64) offsets",
    ),
    Row(
        "zipped: out of phase, as many chunks",
        zipped((4, 20), (8, 24), (16, 16)),
        AlignmentError,
        "axis x (12, 4) (8, 8)",
    ),
    Row(
        "zipped: out of phase, same lengths summed",
        zipped((8, 16), (4, 12), (8, 8)),
        AlignmentError,
        "axis x (8) (4, 4)",
    ),
    Row(
        "zipped: source of 0",
        zipped((8, 24), (8, 24), (0, 8)),
        ArgumentError,
        "source_chunk_size 0",
    ),
    Row(
        "zipped: target of 0",
        zipped((8, 24), (8, 24), (8, 0)),
        ArgumentError,
        "target_chunk_size 0",
    ),
    Row("zipped: negative", zipped((8, 24), (8, 24), (-8, -8)), ArgumentError, "least 1"),
    Row("zipped: float", zipped((8, 24), (8, 24), (8.0, 8)), ArgumentError, "whole", False),
]

BOX = BoundingBox((1, 2, 3), (4, 5, 6))
BOXES = [
    Row("box: size < 0", lambda _: BoundingBox((0, 0, 0), (1, -1, 1)), ArgumentError, "negative"),
    Row("box: float", lambda _: BoundingBox((0, 0.5, 0), (1, 1, 1)), ArgumentError, "0.5 whole"),
    Row(
        "box: nothing in common",
        lambda _: BOX.intersected_with(BoundingBox((5, 2, 3), (1, 1, 1))),
        BoundsError,
        "common",
    ),
    Row("box: in_mag of a rest", lambda _: BOX.in_mag(2), ArgumentError, "multiples align"),
    Row("box: chunk of 0", lambda _: list(BOX.chunk((1, 0, 1))), ArgumentError, "least 1"),
    Row(
        "box: borders do not divide",
        lambda _: list(BOX.chunk((4, 4, 4), (4, 3, 4))),
        ArgumentError,
        "multiple (4, 4, 4) (4, 3, 4)",
    ),
]

ROWS = [
    *OPENING, *VIEWS, *READING, *BAD_NUMBERS, *TOO_LARGE, *WRITING, *BAD_DATA, *GET_VIEW, *CHUNKS,
    *BOXES,
]  # fmt: skip


@pytest.fixture(scope="module")
def damaged(world: World) -> World:
    """The same volumes, and two with a file that can't be read."""
    for name in ("cut", "folder"):
        path = world.root / name
        with wkw.Dataset.create(str(path), wkw.Header(np.uint8, block_len=4, file_len=2)) as data:
            data.write((8, 8, 8), np.full((8, 8, 8), 7, np.uint8, order="F"))
    cut = world.root / "cut" / "z1" / "y1" / "x1.wkw"
    cut.write_bytes(cut.read_bytes()[:-1])
    folder = world.root / "folder" / "z1" / "y1" / "x1.wkw"
    folder.unlink()
    folder.mkdir()
    return world


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_refused(damaged: World, row: Row) -> None:
    before = damaged.snapshot()
    with pytest.raises(row.error) as raised:
        row.act(damaged)
    assert damaged.snapshot() == before
    assert isinstance(raised.value, WkdaskError)
    assert isinstance(raised.value, AssertionError) or not row.asserted
    missing = [word for word in row.words.split() if word not in str(raised.value)]
    assert not missing, f"{missing} not in: {raised.value}"


def test_rows_have_names_of_their_own() -> None:
    assert len({row.name for row in ROWS}) == len(ROWS)


ORDER = [
    # id, action, words of the check that comes first, reason
    ("offset before size", lambda w: w.view().read((-1, 0, 0), (0, 0, 0)), "offset"),
    ("offset before bounds", lambda w: w.view().read((-1, 0, 0), (99, 1, 1)), "offset"),
    ("offset on another axis than size", lambda w: w.view().read((0, 0, -1), (0, 1, 1)), "offset"),
    ("size before bounds", lambda w: w.view().read((99, 0, 0), (1, 0, 1)), "size is"),
    ("write: offset before size", lambda w: w.view().write(ones(0, 8, 8), (-1, 0, 0)), "offset"),
    ("write: offset before bounds", lambda w: w.view().write(ones(99, 1, 1), (-1,) * 3), "offset"),
    ("write: size before bounds", lambda w: w.view().write(ones(0, 1, 1), (99,) * 3), "size is"),
    ("get_view: offset first", lambda w: w.view().get_view((-1,) * 3, (0, 99, 0)), "offset"),
    ("get_view: size before bounds", lambda w: w.view().get_view((99,) * 3, (0,) * 3), "size is"),
]


@pytest.mark.parametrize(("act", "word"), [row[1:] for row in ORDER], ids=[r[0] for r in ORDER])
def test_order_of_checks(world: World, act: Callable[[World], object], word: str) -> None:
    with pytest.raises(BoundsError, match=f"^{word}"):
        act(world)


@pytest.mark.parametrize(
    ("data", "offset"),
    [
        (ones(8, 8, 8), (-1, 0, 0)),
        (ones(8, 8, 8), (0.5, 0, 0)),
        (ones(99, 99, 99), (0, 0, 0)),
        (ones(0, 0, 0), (0, 0, 0)),
        (ones(8, 8), (0, 0, 0)),
        (ones(8, 8, 8, dtype=float), (0, 0, 0)),
        (None, None),
    ],
    ids=["offset", "float", "bounds", "empty", "2-D", "dtype", "nothing"],
)
def test_read_only_refuses_before_anything_else(world: World, data: Any, offset: Any) -> None:
    with pytest.raises(ReadOnlyError):
        world.frozen.write(data, offset)


@pytest.mark.parametrize("offset", [(0, -1, 0), (99, 99, 99)])
def test_read_only_parents_refuse_writable_parts_before_anything_else(
    world: World, offset: tuple[int, int, int]
) -> None:
    with pytest.raises(ReadOnlyError):
        world.frozen.get_view(offset, read_only=False)


@pytest.mark.parametrize("volume", ["raw", "lz4", "raw3", "lz43"])
def test_refused_on_open_views_too(world: World, volume: str) -> None:
    before = world.snapshot()
    channels = 3 if volume.endswith("3") else 1
    with world.view(volume) as view:
        for act, error in (
            (lambda: view.read((0, 0, -1)), BoundsError),
            (lambda: view.write(np.ones((channels, 4, 4, 4), np.uint16)), DtypeError),
            (lambda: view.write(np.ones((2, 4, 4, 4), np.uint8)), ArgumentError),
            (lambda: view.write(np.ones((channels, 4, 4, 17), np.uint8)), BoundsError),
        ):
            with pytest.raises(error):
                act()
        assert view.read().shape == (channels, 16, 16, 16)
    assert world.snapshot() == before


def test_every_class_of_error_pickles(damaged: World) -> None:
    """They travel from workers to the caller."""
    kinds = {row.error: row for row in ROWS}
    for kind, row in kinds.items():
        with pytest.raises(kind) as raised:
            row.act(damaged)
        copy = pickle.loads(pickle.dumps(raised.value))
        assert type(copy) is type(raised.value)
        assert str(copy) == str(raised.value)


def test_texts_name_the_volume_where_it_matters(world: World) -> None:
    for act in (
        functools.partial(world.frozen.write, ones(1, 1, 1)),
        functools.partial(world.view().write, ones(1, 1, 1, dtype=np.int8)),
        functools.partial(world.view().write, ones(2, 1, 1, 1)),
        world.view().close,
    ):
        with pytest.raises(WkdaskError, match=str(world.root / "raw")):
            act()
