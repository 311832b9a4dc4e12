"""`wkdask.storage.zarr`: arrays of zarr-python and tensorstore are the oracles, both ways."""

from __future__ import annotations

import itertools
import json
import random
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from wkdask.errors import (
    ArgumentError,
    BoundsError,
    DtypeError,
    ExistsError,
    FormatError,
    MissingError,
    WkdaskError,
)
from wkdask.geometry import BoundingBox
from wkdask.grids import region_of
from wkdask.storage.header import DTYPES
from wkdask.storage.opening import is_volume, new_layout, open_volume, volume_at
from wkdask.storage.shard import ShardFormat
from wkdask.storage.zarr import ZarrVolume
from wkdask.storage.zarr_layout import UnusualError, ZarrLayout, from_metadata
from wkdask.testing import snapshot

zarr = pytest.importorskip("zarr")
ts = pytest.importorskip("tensorstore")

SIZE = (40, 24, 20)


def layout_of(
    data_format: str = "zarr3", dtype: str = "uint8", channels: int = 1, codec: str = "zstd"
) -> ZarrLayout:
    """Return a layout of small blocks, 4 x 4 x 4 in a shard."""
    layout = new_layout(data_format, dtype, channels, 4, 4, codec)
    assert isinstance(layout, ZarrLayout)
    return layout


def some(layout: ZarrLayout, size: Any = SIZE, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    voxels = rng.integers(0, 100, (layout.num_channels, *size)).astype(layout.dtype)
    voxels[:, : size[0] // 2, :7] = 0
    return voxels


def written(path: Path, layout: ZarrLayout, voxels: np.ndarray, corner: Any = (0, 0, 0)) -> Any:
    volume = ZarrVolume.create(path, layout)
    volume.write(BoundingBox(corner, voxels.shape[1:]), voxels)
    return volume


def by_tensorstore(path: Path, data_format: str) -> Any:
    return ts.open(
        {"driver": data_format, "kvstore": {"driver": "file", "path": str(path)}}
    ).result()


FORMATS = [(kind, codec) for kind in ("zarr3", "zarr") for codec in ("zstd", "raw")]


class TestOthersRead:
    """What we write."""

    @pytest.mark.parametrize(("kind", "codec"), FORMATS)
    @pytest.mark.parametrize("dtype", DTYPES)
    @pytest.mark.parametrize("channels", [1, 3])
    def test_both(self, tmp_path: Path, kind: str, codec: str, dtype: str, channels: int) -> None:
        layout = layout_of(kind, dtype, channels, codec)
        voxels = some(layout)
        written(tmp_path / "a", layout, voxels, (3, 5, 7))
        place = (slice(None), slice(3, 43), slice(5, 29), slice(7, 27))
        for array in (zarr.open_array(str(tmp_path / "a"), mode="r")[:],
                      by_tensorstore(tmp_path / "a", kind).read().result()):  # fmt: skip
            np.testing.assert_array_equal(array[place], voxels)
            assert array.sum() == voxels.sum()

    def test_the_codecs_are_those_of_webknossos(self) -> None:
        inner = layout_of().to_metadata((16, 16, 16))["codecs"][0]["configuration"]
        assert [codec["name"] for codec in inner["codecs"]] == ["transpose", "bytes", "zstd"]
        assert inner["codecs"][2]["configuration"] == {"level": 5, "checksum": True}

    def test_blocks_of_zeros_are_left_out(self, tmp_path: Path) -> None:
        layout = layout_of(codec="raw")
        volume = written(tmp_path / "a", layout, np.zeros((1, 16, 16, 16), np.uint8))
        assert list(volume.files()) == []
        voxels = np.zeros((1, 16, 16, 16), np.uint8)
        voxels[0, 5, 5, 5] = 1
        volume.write(BoundingBox((0, 0, 0), (16, 16, 16)), voxels)
        assert [size for _, size in volume.files()] == [64 + layout.index_bytes]

    def test_zeros_that_are_kept(self, tmp_path: Path) -> None:
        volume = ZarrVolume.create(tmp_path / "a", layout_of()).with_options(keep_zeros=True)
        volume.write(BoundingBox((0, 0, 0), (16, 16, 16)), np.zeros((1, 16, 16, 16), np.uint8))
        assert len(list(volume.files())) == 1
        assert not volume.read((range(16),) * 3).any()


class TestWhatOthersWrite:
    @pytest.mark.parametrize(
        ("separator", "name"), [("/", "default"), (".", "default"), (".", "v2")]
    )
    @pytest.mark.parametrize("location", ["end", "start"])
    def test_keys_and_index(self, tmp_path: Path, separator: str, name: str, location: str) -> None:
        said = layout_of("zarr3", "uint16").to_metadata((32, 32, 32))
        said["chunk_key_encoding"] = {"name": name, "configuration": {"separator": separator}}
        said["codecs"][0]["configuration"]["index_location"] = location
        (tmp_path / "a").mkdir()
        (tmp_path / "a" / "zarr.json").write_text(json.dumps(said))
        voxels = some(layout_of("zarr3", "uint16"), (30, 20, 32))
        array = by_tensorstore(tmp_path / "a", "zarr3")
        array[:, :30, :20, :].write(voxels).result()
        volume = open_volume(tmp_path / "a")
        np.testing.assert_array_equal(volume.read((range(30), range(20), range(32))), voxels)
        assert {volume.file_path(cell) for cell, _ in volume.files()} == {
            str(path)
            for path in (tmp_path / "a").rglob("*")
            if path.is_file() and path.name != "zarr.json"
        }
        volume.write(BoundingBox((9, 9, 9), (3, 3, 3)), voxels[:, :3, :3, :3])
        voxels[:, 9:12, 9:12, 9:12] = voxels[:, :3, :3, :3]
        found = by_tensorstore(tmp_path / "a", "zarr3")[:, :30, :20].read().result()
        np.testing.assert_array_equal(found, voxels)

    def test_arrays_without_shards(self, tmp_path: Path) -> None:
        layout = replace(layout_of(), is_sharded=False, file_size=(4, 4, 4))
        voxels = some(layout, (9, 9, 9))
        volume = written(tmp_path / "a", layout, voxels)
        np.testing.assert_array_equal(volume.read((range(9),) * 3), voxels)
        array = zarr.open_array(str(tmp_path / "a"), mode="r")
        np.testing.assert_array_equal(array[:, :9, :9, :9], voxels)

    @pytest.mark.parametrize("kind", ["zarr3", "zarr"])
    def test_another_fill_value(self, tmp_path: Path, kind: str) -> None:
        layout = replace(layout_of(kind), fill_value=7)
        volume = ZarrVolume.create(tmp_path / "a", layout, (32, 32, 32))
        assert (volume.read((range(9),) * 3) == 7).all()
        assert not volume.is_missing(BoundingBox((0, 0, 0), (9, 9, 9)))
        volume.write(BoundingBox((1, 1, 1), (5, 5, 5)), np.zeros((1, 5, 5, 5), np.uint8))
        array = zarr.open_array(str(tmp_path / "a"), mode="r")
        assert not array[:, 1:6, 1:6, 1:6].any()
        assert (array[:].sum() == 7 * (32**3 - 125)).all()
        np.testing.assert_array_equal(volume.read((range(32),) * 3), array[:])

    def test_padding_behind_the_end_is_not_read(self, tmp_path: Path) -> None:
        layout = layout_of(codec="raw")
        volume = written(tmp_path / "a", layout, np.full((1, 16, 16, 16), 9, np.uint8))
        said = json.loads((tmp_path / "a" / "zarr.json").read_text())
        said["shape"] = [1, 10, 16, 16]
        (tmp_path / "a" / "zarr.json").write_text(json.dumps(said))
        found = open_volume(tmp_path / "a").read((range(20), range(2), range(2)))
        assert found[0, :, 0, 0].tolist() == [9] * 10 + [0] * 10
        assert volume.layout == open_volume(tmp_path / "a").layout


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_writes_and_reads_agree_with_numpy(tmp_path_factory: Any, data: Any) -> None:
    kind, codec = data.draw(st.sampled_from(FORMATS))
    layout = layout_of(
        kind, data.draw(st.sampled_from(DTYPES)), data.draw(st.integers(1, 3)), codec
    )
    volume = ZarrVolume.create(tmp_path_factory.mktemp("a") / "a", layout)
    model = np.zeros((layout.num_channels, 40, 40, 40), layout.dtype)
    starts, sizes = st.tuples(*[st.integers(0, 30)] * 3), st.tuples(*[st.integers(1, 10)] * 3)
    for seed in range(data.draw(st.integers(1, 4))):
        box = BoundingBox(data.draw(starts), data.draw(sizes))
        voxels = some(layout, box.size, seed)
        volume.write(box, voxels)
        model[(slice(None), *(slice(r.start, r.stop) for r in region_of(box)))] = voxels
    steps = data.draw(st.tuples(*[st.integers(1, 7)] * 3))
    corner = data.draw(starts)
    region = tuple(range(at, 40, step) for at, step in zip(corner, steps, strict=True))
    slices = (slice(None), *(slice(r.start, r.stop, r.step) for r in region))
    np.testing.assert_array_equal(volume.read(region), model[slices])
    np.testing.assert_array_equal(open_volume(volume.path).read((range(40),) * 3), model)


class TestGrowth:
    def test_the_array_reaches_as_far_as_what_is_written(self, tmp_path: Path) -> None:
        volume = ZarrVolume.create(tmp_path / "a", layout_of(), (20, 5, 5))
        assert volume.extent == (32, 16, 16)
        said = json.loads((tmp_path / "a" / "zarr.json").read_text())
        said["attributes"] = {"mine": 1}
        (tmp_path / "a" / "zarr.json").write_text(json.dumps(said))
        volume.write(BoundingBox((40, 0, 0), (1, 1, 1)), np.ones((1, 1, 1, 1), np.uint8))
        said = json.loads((tmp_path / "a" / "zarr.json").read_text())
        assert (said["shape"], said["attributes"]) == ([1, 48, 16, 16], {"mine": 1})
        # A value that was made before knows it too.
        assert volume.read((range(40, 41), range(1), range(1))).item() == 1

    def test_many_at_once(self, tmp_path: Path) -> None:
        volume = ZarrVolume.create(tmp_path / "a", layout_of())
        one = np.ones((1, 1, 1, 1), np.uint8)
        boxes = [BoundingBox((16 * x, 16 * y, 0), (1, 1, 1)) for x in range(6) for y in range(6)]
        with ThreadPoolExecutor(8) as pool:
            list(pool.map(lambda box: volume.write(box, one), boxes))
        assert open_volume(tmp_path / "a").extent == (96, 96, 16)
        assert volume.read((range(96), range(96), range(1))).sum() == 36

    def test_parts_of_one_file_at_once(self, tmp_path: Path) -> None:
        volume = ZarrVolume.create(tmp_path / "a", layout_of())
        one = np.ones((1, 1, 1, 1), np.uint8)
        boxes = [BoundingBox((x, y, 3), (1, 1, 1)) for x in range(6) for y in range(6)]
        with ThreadPoolExecutor(8) as pool:
            list(pool.map(lambda box: volume.write(box, one), boxes))
        assert volume.read((range(16),) * 3).sum() == 36


REFUSED = [
    ("order", lambda said: said["codecs"][0]["configuration"]["codecs"].pop(0), "codecs"),
    ("gzip", lambda said: said["codecs"][0]["configuration"]["codecs"].append("gzip"), "codecs"),
    ("axes", lambda said: said.update(dimension_names=["c", "z", "y", "x"]), "order of axes"),
    ("three axes", lambda said: said.update(shape=[1, 2, 3]), "3 axes"),
    ("grid", lambda said: said["chunk_grid"].update(name="rectilinear"), "chunk grid"),
    ("dtype", lambda said: said.update(data_type="complex64"), "complex64"),
    ("channels", lambda said: said.update(shape=[2, 16, 16, 16]), "channels"),
    ("NaN", lambda said: said.update(fill_value="NaN"), "fill value"),
    ("no byte", lambda said: said.update(fill_value=300), "fill value"),
    ("infinite", lambda said: said.update(data_type="float32", fill_value="Infinity"), "fill"),
    ("no shape", lambda said: said.pop("shape"), "no metadata"),
    ("a negative shape", lambda said: said.update(shape=[1, -1, 1, 1]), "lengths"),
    ("a group", lambda said: said.update(node_type="group"), "array"),
    ("version 4", lambda said: said.update(zarr_format=4), "zarr 2 or 3"),
]  # fmt: skip


class TestRefused:
    @pytest.mark.parametrize(
        ("change", "words"), [r[1:] for r in REFUSED], ids=[r[0] for r in REFUSED]
    )
    def test_metadata(self, change: Any, words: str) -> None:
        said = layout_of().to_metadata((16, 16, 16))
        change(said)
        with pytest.raises(FormatError, match=words):
            from_metadata(json.dumps(said).encode())

    @pytest.mark.parametrize(
        "change",
        [
            {"order": "C"},
            {"compressor": {"id": "blosc"}},
            {"dtype": ">u2"},
            {"filters": [{"id": "delta"}]},
        ],
        ids=["order", "blosc", "big-endian", "filters"],
    )
    def test_metadata_of_version_2(self, change: Any) -> None:
        said = {**layout_of("zarr", "uint16").to_metadata((16, 16, 16)), **change}
        with pytest.raises(UnusualError, match="by itself"):
            from_metadata(json.dumps(said).encode())

    @pytest.mark.parametrize("data", [b"", b"[]", b"{", b"\xff", b"[" * 10**5, b"{}"])
    def test_no_metadata(self, data: bytes) -> None:
        with pytest.raises(FormatError):
            from_metadata(data)

    def test_calls(self, tmp_path: Path) -> None:
        volume = ZarrVolume.create(tmp_path / "a", layout_of())
        before = snapshot(tmp_path)
        one = np.ones((1, 1, 1, 1), np.uint8)
        with pytest.raises(ExistsError):
            ZarrVolume.create(tmp_path / "a", layout_of())
        with pytest.raises(DtypeError):
            volume.write(BoundingBox((0, 0, 0), (1, 1, 1)), one.astype(np.uint16))
        with pytest.raises(ArgumentError):
            volume.write(BoundingBox((0, 0, 0), (2, 1, 1)), one)
        with pytest.raises(BoundsError):
            volume.write(BoundingBox((-1, 0, 0), (1, 1, 1)), one)
        with pytest.raises(ArgumentError, match="block_type"):
            layout_of(codec="lz4")
        assert snapshot(tmp_path) == before

    def test_arrays_that_are_gone(self, tmp_path: Path) -> None:
        volume = volume_at(tmp_path / "a", layout_of())
        for call in (
            volume.check,
            lambda: volume.read((range(1),) * 3),
            volume.version,
            lambda: list(volume.files()),
        ):
            with pytest.raises(MissingError):
                call()
        assert not is_volume(tmp_path / "a")

    def test_an_array_that_was_made_again(self, tmp_path: Path) -> None:
        volume = ZarrVolume.create(tmp_path / "a", layout_of())
        (tmp_path / "a" / "zarr.json").unlink()
        ZarrVolume.create(tmp_path / "a", layout_of(dtype="uint16"))
        with pytest.raises(FormatError, match="uint16 instead of uint8"):
            volume.read((range(1),) * 3)


# --- files that are damaged -----------------------------------------------------------------------


def damaged(data: bytes, rng: random.Random, layout: ZarrLayout) -> bytes:
    """Return a cut, or a change of one byte or some, of a file."""
    kind = rng.randrange(4)
    if kind == 0:
        return data[: rng.randrange(len(data))]
    changed = bytearray(data)
    if kind == 1 and layout.is_sharded:
        changed[-rng.randrange(1, layout.index_bytes + 1)] ^= 1 << rng.randrange(8)
    elif kind == 2:
        at = rng.randrange(len(data))
        changed[at : at + 8] = rng.randbytes(8)
    else:
        changed[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    return bytes(changed)


def check_mutants(tmp_path: Path, layout: ZarrLayout, count: int) -> None:
    """Each damaged file holds the right voxels or is refused, when zstd has its checksum."""
    voxels = some(layout, layout.file_size)
    volume = written(tmp_path / "a", layout, voxels)
    path = Path(volume.file_path((0, 0, 0)))
    data, rng, refused = path.read_bytes(), random.Random(5), 0
    for _ in range(count):
        path.write_bytes(damaged(data, rng, layout))
        try:
            found = volume.read(tuple(map(range, layout.file_size)))
        except WkdaskError as error:
            refused += str(path) in str(error)
        else:
            np.testing.assert_array_equal(found, voxels)
    assert refused > count // 2


def test_some_mutants(tmp_path: Path) -> None:
    check_mutants(tmp_path, layout_of(), 400)


@pytest.mark.slow
def test_many_mutants(tmp_path: Path) -> None:
    check_mutants(tmp_path / "large", layout_of(dtype="uint32"), 10_000)
    small = replace(layout_of(), block_size=(8, 8, 8), file_size=(8, 8, 8), is_sharded=False)
    check_mutants(tmp_path / "small", small, 10_000)


@pytest.mark.parametrize("count", [0, 1, 19, 20, 1000])
def test_cut_files_of_raw_blocks(tmp_path: Path, count: int) -> None:
    volume = written(tmp_path / "a", layout_of(codec="raw"), some(layout_of()) | 1)
    path = Path(volume.file_path((0, 0, 0)))
    path.write_bytes(path.read_bytes()[:count])
    with pytest.raises(FormatError, match="not read as zeros"):
        volume.read((range(3),) * 3)
    with pytest.raises(FormatError):
        volume.check_file((0, 0, 0))
    # What is not touched can be read.
    assert volume.read((range(20, 21), range(3), range(3))).all()


def test_links_to_nothing_are_no_zeros(tmp_path: Path) -> None:
    volume = ZarrVolume.create(tmp_path / "a", layout_of(), SIZE)
    (tmp_path / "a" / "c").symlink_to(tmp_path / "unmounted")
    with pytest.raises(FormatError, match="link to nothing"):
        volume.read((range(3),) * 3)
    assert not volume.is_missing(BoundingBox((0, 0, 0), (3, 3, 3)))


def test_pieces_stay_in_one_part_before_they_enter_the_next() -> None:
    layout = new_layout("zarr3", "uint8", 1, 32, 32)
    volume = ZarrVolume("a", layout)  # type: ignore[arg-type]
    pieces = list(ShardFormat(volume.layout).pieces())
    assert sum(piece.volume for piece in pieces) == 1024**3
    parts = [tuple(at // 512 for at in piece.topleft) for piece in pieces]
    changes = sum(a != b for a, b in itertools.pairwise(parts))
    assert changes == 7
    assert max(piece.volume for piece in pieces) <= 2**23


@pytest.mark.parametrize("blocks", [(3, 5, 7), (1, 1, 9), (33, 2, 1)])
def test_files_of_any_number_of_blocks(tmp_path: Path, blocks: Any) -> None:
    size = tuple(16 * n for n in blocks)
    layout = replace(layout_of(), block_size=(16, 16, 16), file_size=size)
    voxels = some(layout, size)
    volume = written(tmp_path / "a", layout, voxels)
    np.testing.assert_array_equal(volume.read(tuple(map(range, size))), voxels)
    array = zarr.open_array(str(tmp_path / "a"), mode="r")
    np.testing.assert_array_equal(array[:], voxels)


ODD = [None, -1, 0, 2**70, 1.5, "", "x", [], {}, [1], {"name": 3}, True, [[]], "zstd", 10**400]


@pytest.mark.parametrize("kind", ["zarr3", "zarr"])
def test_odd_metadata_are_refused_or_understood(kind: str) -> None:
    """Every value of the metadata, at any depth, replaced by something else or left out."""

    def places(node: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
        items = node.items() if isinstance(node, dict) else enumerate(node)
        for key, value in items:
            yield (*path, key)
            if isinstance(value, dict | list):
                yield from places(value, (*path, key))

    text = json.dumps(layout_of(kind, "uint16").to_metadata((16, 16, 16)))
    refused = 0
    for *above, last in list(places(json.loads(text))):
        for odd in [*ODD, "left out"]:
            said = json.loads(text)
            node = said
            for key in above:
                node = node[key]
            if odd == "left out":
                del node[last]
            else:
                node[last] = odd
            try:
                layout, _ = from_metadata(json.dumps(said).encode())
            except FormatError:
                refused += 1
            else:
                assert layout.block_bytes < 2**31
    assert refused > 100
