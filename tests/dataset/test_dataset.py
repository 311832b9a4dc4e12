"""`wkdask.dataset.dataset`: layers and mags; what is refused, and that nothing changes then."""

from __future__ import annotations

import dataclasses
import errno
import json
import os
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import wkdask
from wkdask import errors
from wkdask.geometry import BoundingBox, Mag
from wkdask.storage.header import BLOCK_TYPES, DTYPES, VolumeHeader
from wkdask.storage.wkw import WkwVolume

JSON = "datasource-properties.json"
BOX = BoundingBox((3, 5, 7), (20, 30, 40))
SMALL: dict[str, Any] = {"block_edge": 4, "blocks_per_file_edge": 2, "block_type": "raw"}
"""Files of 8 voxels per edge, which may be written in any parts."""

Snapshot = Callable[[Path], dict[str, bytes | None]]


def text_of(dataset: wkdask.Dataset | Path) -> dict[str, Any]:
    """Return what the JSON of a dataset says."""
    path = dataset if isinstance(dataset, Path) else dataset.path
    value: dict[str, Any] = json.loads((path / JSON).read_text())
    return value


def rewrite(dataset: wkdask.Dataset, change: Callable[[dict[str, Any]], object]) -> None:
    """Change the JSON behind the back of wkdask."""
    value = text_of(dataset)
    change(value)
    (dataset.path / JSON).write_text(json.dumps(value))


def random_voxels(shape: tuple[int, ...], dtype: str = "uint8", seed: int = 0) -> np.ndarray:
    """Return voxels without a single zero, so that missing ones show."""
    return np.random.default_rng(seed).integers(1, 100, shape).astype(dtype)


@pytest.fixture
def color(tissue: wkdask.Dataset) -> wkdask.Layer:
    return tissue.add_layer("color", "color", "uint8", bounding_box=BOX)


class TestNames:
    """Every name that the README and the documentation promise."""

    def test_create_and_open(self, tmp_path):
        made = wkdask.create(
            tmp_path / "deep" / "cortex", voxel_size=(4, 4.5, 30), unit="micrometer"
        )
        for ds in (made, wkdask.open(tmp_path / "deep" / "cortex"), wkdask.open(str(made.path))):
            assert isinstance(ds, wkdask.Dataset)
            assert (ds.name, ds.path) == ("cortex", tmp_path / "deep" / "cortex")
            assert (ds.voxel_size, ds.unit) == ((4.0, 4.5, 30.0), "micrometer")
            assert ds.layers == {}
        assert [entry.name for entry in made.path.iterdir()] == [JSON]

    def test_defaults_of_create(self, tmp_path):
        ds = wkdask.create(tmp_path / "a", (11.24, 11.24, 28))
        assert ds.unit == "nanometer"
        assert text_of(ds)["version"] == 1

    def test_a_relative_path_means_the_same_after_a_change_of_directory(
        self, tmp_path, monkeypatch
    ):
        monkeypatch.chdir(tmp_path)
        ds = wkdask.create("a", (1, 1, 1))
        (tmp_path / "b").mkdir()
        monkeypatch.chdir(tmp_path / "b")
        assert ds.add_layer("color", "color", "uint8").add_mag(1).path == str(
            tmp_path / "a" / "color" / "1"
        )

    def test_create_in_an_empty_directory(self, tmp_path):
        assert wkdask.create(tmp_path, (1, 1, 1)).path == tmp_path

    def test_create_with_exist_ok_opens(self, tissue, snapshot):
        tissue.add_layer("color", "color", "uint8")
        before = snapshot(tissue.path)
        again = wkdask.create(tissue.path, tissue.voxel_size, exist_ok=True)
        assert [*again.layers] == ["color"]
        assert snapshot(tissue.path) == before

    def test_add_layer(self, tissue):
        layer = tissue.add_layer(
            "color", category="color", dtype="uint8", num_channels=3, bounding_box=BOX
        )
        for found in (layer, tissue["color"], tissue.layers["color"], reopened(layer)):
            assert isinstance(found, wkdask.Layer)
            assert (found.name, found.category) == ("color", "color")
            assert (found.dtype, found.num_channels) == (np.dtype("uint8"), 3)
            assert found.bounding_box == BOX
            assert found.largest_segment_id is None
            assert found.mags == {}
        assert text_of(tissue)["dataLayers"][0]["elementClass"] == "uint24"

    def test_defaults_of_add_layer(self, tissue):
        layer = tissue.add_layer("color", "color", "uint8")
        assert layer.num_channels == 1
        assert layer.bounding_box.is_empty

    @pytest.mark.parametrize("dtype", ["uint16", np.uint16, np.dtype("uint16"), ">u2"])
    def test_dtypes_are_those_of_numpy(self, tissue, dtype):
        assert tissue.add_layer("a", "color", dtype).dtype == np.uint16

    @pytest.mark.parametrize("dtype", DTYPES)
    @pytest.mark.parametrize("channels", [1, 3])
    def test_every_dtype_can_be_written(self, tissue, dtype, channels):
        mag = tissue.add_layer("a", "color", dtype, channels).add_mag(1, **SMALL)
        voxels = random_voxels((channels, 3, 4, 5), dtype)
        mag.write(voxels, (6, 1, 2))
        found = wkdask.open(tissue.path)["a"]
        assert (found.dtype, found.num_channels) == (np.dtype(dtype), channels)
        assert found[1].get_view().read().dtype == dtype
        np.testing.assert_array_equal(found[1].get_view().read(), voxels)

    @pytest.mark.parametrize("dtype", [d for d in DTYPES if "float" not in d])
    def test_segmentations_hold_whole_numbers(self, tissue, dtype):
        assert tissue.add_layer("a", "segmentation", dtype).category == "segmentation"

    def test_largest_segment_id(self, tissue):
        layer = tissue.add_layer("a", "segmentation", "uint64", largest_segment_id=5)
        assert reopened(layer).largest_segment_id == 5
        for value in (2**64 - 1, 0, None):
            layer.largest_segment_id = value
            assert layer.largest_segment_id == value
            assert reopened(layer).largest_segment_id == value

    def test_numpy_counts_are_whole_numbers(self, tissue):
        two = np.uint8(2)
        layer = tissue.add_layer("a", "segmentation", "uint8", two, largest_segment_id=np.uint8(9))
        assert (layer.num_channels, reopened(layer).largest_segment_id) == (2, 9)
        layer.largest_segment_id = random_voxels((2, 3)).max()
        assert type(reopened(layer).largest_segment_id) is int
        assert layer.add_mag(two, two, two).header.block_len == 2

    def test_bounding_box(self, color):
        color.bounding_box = BoundingBox((0, 0, 1), (8, 9, 10))
        assert color.bounding_box == reopened(color).bounding_box
        assert reopened(color).bounding_box == BoundingBox((0, 0, 1), (8, 9, 10))

    def test_add_mag(self, color):
        mag = color.add_mag("2-2-1", block_edge=8, blocks_per_file_edge=4, block_type="lz4")
        assert isinstance(mag, wkdask.MagView)
        for found in (mag, color["2-2-1"], reopened(color)[2, 2, 1]):
            assert (found.mag, found.layer.name) == (Mag("2-2-1"), "color")
            assert found.path == str(color.dataset.path / "color" / "2-2-1")
            assert (found.header.block_len, found.header.file_len) == (8, 4)
            assert (found.header.block_type, found.num_channels) == (2, 1)
            assert found.get_dtype() is np.uint8
        entry = {"mag": [2, 2, 1], "path": "./color/2-2-1", "cubeLength": 32}
        written = text_of(color.dataset)["dataLayers"][0]["mags"]
        assert written == [{**entry, "axisOrder": {"c": 0, "x": 1, "y": 2, "z": 3}}]

    def test_defaults_of_add_mag(self, color):
        header = color.add_mag(1).header
        assert (header.block_len, header.file_len, header.block_type) == (32, 32, 3)

    @pytest.mark.parametrize("block_type", BLOCK_TYPES)
    def test_block_types(self, color, block_type):
        mag = color.add_mag(1, block_type=block_type)
        assert mag.volume.header.block_type == block_type

    def test_mags_go_from_fine_to_coarse(self, color):
        for mag in (16, "2-2-1", 2, (4, 4, 1), 1):
            color.add_mag(mag, **SMALL)
        assert [str(mag) for mag in color.mags] == ["1", "2-2-1", "2", "4-4-1", "16"]
        assert [str(mag) for mag in reopened(color).mags] == ["1", "2-2-1", "2", "4-4-1", "16"]
        names = {entry.name for entry in (color.dataset.path / "color").iterdir()}
        assert names == {"1", "2-2-1", "2", "4-4-1", "16"}

    @pytest.mark.parametrize("key", [2, (2, 2, 2), "2", "2-2-2", Mag(2), np.int64(2)])
    def test_ways_to_name_a_mag(self, color, key):
        color.add_mag(2, **SMALL)
        assert color[key].mag == Mag(2)

    def test_every_mag_has_the_box_of_the_layer(self, color):
        for mag in (1, "2-2-1", 4):
            color.add_mag(mag, **SMALL)
        assert color[1].bounding_box == BOX
        assert color["2-2-1"].bounding_box == BoundingBox((1, 2, 7), (11, 16, 40))
        assert color[4].bounding_box == BoundingBox((0, 1, 1), (6, 8, 11))

    def test_reprs_name_what_there_is(self, color):
        color.add_mag("2-2-1", **SMALL)
        assert all(part in repr(color.dataset) for part in ("tissue", "11.24", "color"))
        assert all(part in repr(color) for part in ("color", "uint8", "2-2-1", "at (3,"))

    def test_the_root_of_all_errors(self):
        ours = [value for value in vars(errors).values() if isinstance(value, type)]
        for kind in ours:
            if issubclass(kind, Exception) and kind.__module__ == errors.__name__:
                assert issubclass(kind, wkdask.errors.WkdaskError)


def reopened(layer: wkdask.Layer) -> wkdask.Layer:
    """Return the layer as another process finds it."""
    return wkdask.open(layer.dataset.path)[layer.name]


class TestOpenMag:
    def test_the_box_is_that_of_the_files(self, color):
        mag = color.add_mag("2-2-1", **SMALL)
        mag.write(random_voxels((1, 1, 1)), (9, 0, 17))
        mag.write(random_voxels((1, 1, 1)), (30, 8, 17))
        bare = wkdask.open_mag(mag.path)
        assert isinstance(bare, wkdask.MagView)
        assert (bare.mag, bare.layer) == (Mag("2-2-1"), None)
        assert bare.bounding_box == BoundingBox((8, 0, 16), (24, 16, 8))
        np.testing.assert_array_equal(bare.read((8, 0, 16), (24, 16, 8)), bare.get_view().read())

    def test_no_files(self, color):
        bare = wkdask.open_mag(color.add_mag(1, **SMALL).path)
        assert bare.bounding_box.is_empty
        with pytest.raises(errors.ArgumentError, match="empty bounding box"):
            bare.get_view()

    @pytest.mark.parametrize(
        ("name", "mag"),
        [("1", 1), ("4-4-2", "4-4-2"), ("8", 8), ("raw", None), ("0", None), ("1-2", None)],
    )
    def test_the_name_of_the_directory_is_the_mag(self, tmp_path, name, mag):
        WkwVolume.create(tmp_path / name, VolumeHeader("uint8"))
        assert wkdask.open_mag(tmp_path / name).mag == (mag and Mag(mag))

    def test_writing_extends_the_box(self, tmp_path):
        WkwVolume.create(tmp_path / "1", VolumeHeader("uint8", 1, 4, 2))
        bare = wkdask.open_mag(tmp_path / "1")
        bare.write(random_voxels((3, 3, 3)), (2, 2, 2))
        assert bare.bounding_box == BoundingBox((2, 2, 2), (3, 3, 3))

    def test_other_files_are_not_counted(self, color):
        mag = color.add_mag(1, **SMALL)
        mag.write(random_voxels((1, 1, 1)))
        (Path(mag.path) / "z0" / "y0" / "x5.wkw.0123.wkdask-tmp").touch()
        (Path(mag.path) / "z0" / "y0" / "x5.wkw_tmp").touch()
        (Path(mag.path) / "z9x").mkdir()
        assert wkdask.open_mag(mag.path).bounding_box.size == (8, 8, 8)

    @pytest.mark.parametrize("name", ["z0", "z0/y0"])
    def test_a_file_in_place_of_a_directory(self, color, name):
        mag = color.add_mag(1, **SMALL)
        (Path(mag.path) / name).parent.mkdir(exist_ok=True)
        (Path(mag.path) / name).touch()
        with pytest.raises(errors.StorageError, match=name) as caught:
            wkdask.open_mag(mag.path)
        assert caught.value.errno == errno.ENOTDIR


# --- what can't be opened -----------------------------------------------------------------------


def without(*keys: Any) -> Callable[[Path], None]:
    """Return a change that drops a key of the JSON."""

    def change(path: Path) -> None:
        value = text_of(path)
        place = value
        for key in keys[:-1]:
            place = place[key]
        del place[keys[-1]]
        (path / JSON).write_text(json.dumps(value))

    return change


def set_layer(**keys: Any) -> Callable[[Path], None]:
    """Return a change that sets keys of the first layer in the JSON."""

    def change(path: Path) -> None:
        value = text_of(path)
        value["dataLayers"][0].update(keys)
        (path / JSON).write_text(json.dumps(value))

    return change


def put(name: str, data: bytes) -> Callable[[Path], object]:
    return lambda path: (path / name).write_bytes(data)


def header_of(*args: Any) -> Callable[[Path], object]:
    return put("color/1/header.wkw", VolumeHeader(*args).to_bytes())


def make_directory(name: str) -> Callable[[Path], None]:
    def change(path: Path) -> None:
        (path / name).unlink()
        (path / name).mkdir()

    return change


HEADER = "color/1/header.wkw"
MISSING, FORMAT, PROPERTIES = errors.MissingError, errors.FormatError, errors.PropertiesError
DATASETS_THAT_CAN_NOT_BE_OPENED: list[tuple[Callable[[Path], object], type, list[str], str]] = [
    # change, class, words of the text, reason
    (lambda path: shutil.rmtree(path), MISSING, ["tissue", "not a directory"], "nothing there"),
    (lambda path: (path / JSON).unlink(), MISSING, ["no " + JSON], "some other directory"),
    (make_directory(JSON), errors.DirectoryError, [JSON, "move the directory"], "no file"),
    (put(JSON, b""), PROPERTIES, [JSON, "not JSON"], "empty"),
    (put(JSON, b"{"), PROPERTIES, [JSON, "not JSON"], "cut short"),
    (put(JSON, b"\xff\xfe"), PROPERTIES, [JSON, "UTF-8"], "another encoding"),
    (put(JSON, b"[]"), PROPERTIES, [JSON, "an object"], "JSON of something else"),
    (without("dataLayers"), PROPERTIES, [JSON, "dataLayers is missing"], "no layers"),
]
LAYERS_THAT_CAN_NOT_BE_UNDERSTOOD: list[tuple[Callable[[Path], object], type, list[str], str]] = [
    (without("dataLayers", 0, "boundingBox"), PROPERTIES, ["boundingBox is missing"], "no box"),
    (without("dataLayers", 0, "elementClass"), PROPERTIES, ["elementClass is"], "no dtype"),
    (set_layer(elementClass="uint7"), PROPERTIES, ["uint7", "uint8"], "an unknown dtype"),
    (set_layer(name="../color"), PROPERTIES, ["'../color'"], "a name that leaves the dataset"),
]
MAGS_THAT_CAN_NOT_BE_OPENED: list[tuple[Callable[[Path], object], type, list[str], str]] = [
    (set_layer(elementClass="uint16"), PROPERTIES, ["uint16", "uint8", HEADER], "other dtype"),
    (set_layer(numChannels=3, elementClass="uint24"), PROPERTIES, ["3 channel"], "channels"),
    (set_layer(elementClass="uint16", numChannels=2), PROPERTIES, ["2 channel"], "same bytes"),
    (header_of("uint8", 3), PROPERTIES, ["1 channel", "3 channel(s) of uint8"], "the header lies"),
    (header_of("int8"), PROPERTIES, ["uint8", "int8"], "signs"),
    (lambda path: shutil.rmtree(path / "color/1"), MISSING, ["color/1", "not a dir"], "no mag"),
    (lambda path: (path / HEADER).unlink(), MISSING, ["color/1 has no header.wkw"], "no header"),
    (make_directory(HEADER), errors.DirectoryError, [HEADER], "a directory"),
    (put(HEADER, b""), FORMAT, [HEADER, "0 bytes", "16"], "empty"),
    (put(HEADER, b"WKW\x01\x00"), FORMAT, [HEADER, "5 bytes"], "cut short"),
    (put(HEADER, b"PNG\x01\x55\x01\x01\x01" + bytes(8)), FORMAT, [HEADER, "PNG"], "wrong magic"),
    (put(HEADER, b"WKW\x02\x55\x01\x01\x01" + bytes(8)), FORMAT, ["version 2"], "version"),
    (put(HEADER, b"WKW\x01\x55\x04\x01\x01" + bytes(8)), FORMAT, ["block type 4"], "block type"),
    (put(HEADER, b"WKW\x01\x55\x01\x0b\x01" + bytes(8)), FORMAT, ["voxel type 11"], "dtype"),
    (set_layer(mags=[{"mag": 1, "path": "color/7"}]), MISSING, ["color/7"], "path to nowhere"),
    (
        set_layer(mags=[{"mag": 1, "path": "ftp://x.org/1"}]),
        errors.WkdaskError,
        ["ftp://", "https://"],
        "remote",
    ),
    (
        set_layer(mags=[{"mag": 1, "path": "gopher://bucket/1"}]),
        errors.WkdaskError,
        ["gopher://", "s3://"],
        "S3",
    ),
]


def reasons(rows: list[tuple[Any, ...]]) -> list[str]:
    return [row[-1] for row in rows]


class TestWhatCanNotBeOpened:
    @pytest.mark.parametrize(
        ("change", "kind", "words", "reason"),
        DATASETS_THAT_CAN_NOT_BE_OPENED,
        ids=reasons(DATASETS_THAT_CAN_NOT_BE_OPENED),
    )
    def test_datasets(self, color, snapshot, change, kind, words, reason):
        path = color.dataset.path
        change(path)
        before = snapshot(path)
        with pytest.raises(kind) as caught:
            wkdask.open(path)
        assert_clear(caught.value, words)
        assert snapshot(path) == before

    @pytest.mark.parametrize(
        ("change", "kind", "words", "reason"),
        LAYERS_THAT_CAN_NOT_BE_UNDERSTOOD,
        ids=reasons(LAYERS_THAT_CAN_NOT_BE_UNDERSTOOD),
    )
    def test_layers(self, color, snapshot, change, kind, words, reason):
        path = color.dataset.path
        color.dataset.add_layer("other", "color", "uint8")
        change(path)
        before = snapshot(path)
        dataset = wkdask.open(path)
        assert list(dataset.layers) == ["other"]
        assert "unreadable: " in repr(dataset)
        [unreadable] = dataset.json.content.unreadable
        for attempt in (
            lambda: dataset[unreadable.name],
            lambda: wkdask.copy(dataset, path.parent / "copy"),
            lambda: wkdask.convert(path, path.parent / "copy"),
            lambda: wkdask.equal(dataset, dataset),
        ):
            with pytest.raises(kind) as caught:
                attempt()
            assert_clear(caught.value, words)
        with pytest.raises(errors.WkdaskError):
            dataset.add_layer(unreadable.name, "color", "uint8")
        assert snapshot(path) == before
        [found] = [each for each in wkdask.check(path).findings if each.is_error]
        assert found.text == unreadable.error
        written = json.loads((path / JSON).read_text())["dataLayers"][0]
        dataset["other"].largest_segment_id = 3
        dataset.add_layer("third", "color", "uint8")
        assert json.loads((path / JSON).read_text())["dataLayers"][0] == written

    def test_a_voxel_size(self, color):
        path = color.dataset.path
        color.add_mag(1)
        without("scale")(path)
        dataset = wkdask.open(path)
        with pytest.raises(PROPERTIES, match="scale is missing"):
            dataset.voxel_size  # noqa: B018
        mag = dataset["color"][1]
        assert mag.to_xarray().sizes["x"] == mag.bounding_box.size[0]
        dataset["color"].largest_segment_id = 3
        assert "scale" not in json.loads((path / JSON).read_text())

    def test_a_mag(self, color):
        path = color.dataset.path
        color.add_mag(1)
        entry = {"mag": [3, 0, 1], "path": "somewhere", "more": 1}
        listed = json.loads((path / JSON).read_text())["dataLayers"][0]["mags"]
        set_layer(mags=[entry, *listed])(path)
        layer = wkdask.open(path)["color"]
        assert list(layer.mags) == [wkdask.Mag(1)]
        assert not wkdask.check(path).ok
        with pytest.raises(PROPERTIES, match=r"mags\[0\]"):
            wkdask.copy(layer, layer.dataset, layer_name="copy")
        layer.add_mag(2)
        assert entry in json.loads((path / JSON).read_text())["dataLayers"][0]["mags"]

    def test_what_a_reader_can_do_without(self, color):
        path = color.dataset.path
        without("id")(path)
        said = json.loads((path / JSON).read_text())
        said["scale"]["unit"] = "furlong"
        (path / JSON).write_text(json.dumps(said))
        dataset = wkdask.open(path)
        assert (dataset.name, dataset.unit) == (path.name, "furlong")
        report = wkdask.check(path)
        assert report.ok
        assert [found.kind for found in report.findings] == ["note", "note"]

    def test_a_file_instead_of_a_directory(self, tmp_path):
        (tmp_path / "file").touch()
        for function in (wkdask.open, wkdask.open_mag):
            with pytest.raises(errors.MissingError, match="file is not a directory"):
                function(tmp_path / "file")

    def test_a_path_that_no_system_can_hold(self, tmp_path):
        for function in (wkdask.open, wkdask.open_mag, lambda p: wkdask.create(p, (1, 1, 1))):
            with pytest.raises(errors.WkdaskError, match="NUL"):
                function(f"{tmp_path}/a\0b")

    @pytest.mark.parametrize(
        ("change", "kind", "words", "reason"),
        MAGS_THAT_CAN_NOT_BE_OPENED,
        ids=reasons(MAGS_THAT_CAN_NOT_BE_OPENED),
    )
    def test_mags(self, color, snapshot, change, kind, words, reason):
        color.add_mag(1, **SMALL)
        path = color.dataset.path
        change(path)
        before = snapshot(path)
        layer = wkdask.open(path)["color"]
        for attempt in (lambda: layer[1], lambda: layer.mags):
            with pytest.raises(kind) as caught:
                attempt()
            assert_clear(caught.value, words)
        assert snapshot(path) == before

    @pytest.mark.parametrize(
        ("change", "kind", "words", "reason"),
        [row for row in MAGS_THAT_CAN_NOT_BE_OPENED if row[1] in (FORMAT, errors.DirectoryError)],
    )
    def test_bare_mags(self, color, change, kind, words, reason):
        path = color.add_mag(1, **SMALL).path
        change(color.dataset.path)
        with pytest.raises(kind) as caught:
            wkdask.open_mag(path)
        assert_clear(caught.value, words)

    def test_open_mag_of_a_dataset_says_what_to_open(self, color):
        with pytest.raises(errors.MissingError, match=r"wkdask\.open"):
            wkdask.open_mag(color.dataset.path)

    def test_no_permission(self, color, monkeypatch):
        # root may read everything, so the refusal is played.
        def refuse(*_: object, **__: object) -> None:
            raise PermissionError(errno.EACCES, "Permission denied")

        path = color.add_mag(1, **SMALL).path
        with monkeypatch.context() as patched:
            patched.setattr(os, "open", refuse)
            with pytest.raises(errors.AccessError, match=JSON):
                wkdask.open(color.dataset.path)
            with pytest.raises(errors.AccessError, match=r"header\.wkw"):
                wkdask.open_mag(path)
        monkeypatch.setattr("wkdask.storage.wkw.os.scandir", refuse)
        with pytest.raises(errors.AccessError, match="1"):
            wkdask.open_mag(path)


def assert_clear(error: BaseException, words: list[str]) -> None:
    """Check that an error is ours and that its text is one line with these words."""
    assert isinstance(error, wkdask.errors.WkdaskError)
    text = str(error)
    assert "\n" not in text
    assert [word for word in words if word not in text] == [], text
    assert error.__cause__ is None or isinstance(error.__cause__, OSError)


# --- what is refused ----------------------------------------------------------------------------

ARGUMENT, EXISTS = errors.ArgumentError, errors.ExistsError
Attempt = Callable[[wkdask.Dataset], object]
TISSUE_SIZE = (11.24, 11.24, 28)


def create(**keys: Any) -> Attempt:
    good: dict[str, Any] = {"path": "new", "voxel_size": (1, 1, 1)}
    return lambda ds: wkdask.create(
        **{**good, **keys, "path": ds.path.parent / {**good, **keys}["path"]}
    )


def add_layer(**keys: Any) -> Attempt:
    good: dict[str, Any] = {"name": "new", "category": "color", "dtype": "uint8"}
    return lambda ds: ds.add_layer(**{**good, **keys})


def add_mag(mag: Any = 2, **keys: Any) -> Attempt:
    return lambda ds: ds["color"].add_mag(mag, **{**SMALL, **keys})


def write(data: Any, offset: Any = (0, 0, 0)) -> Attempt:
    return lambda ds: ds["color"][1].write(data, offset)


def assign(attribute: str, value: Any) -> Attempt:
    return lambda ds: setattr(ds["color"], attribute, value)


REFUSED: list[tuple[Attempt, type[BaseException], list[str], str]] = [
    # attempt, class, words of the text, reason
    (create(path="tissue"), EXISTS, ["tissue", "exist_ok=True"], "a dataset is there"),
    (
        create(path="tissue", voxel_size=TISSUE_SIZE),
        EXISTS,
        ["exist_ok"],
        "also one that is the same",
    ),
    (
        create(path="tissue", exist_ok=True),
        EXISTS,
        ["(11.24, 11.24, 28.0)", "(1.0, 1.0, 1.0)"],
        "other voxels",
    ),
    (
        create(path="tissue", voxel_size=TISSUE_SIZE, unit="micrometer", exist_ok=True),
        EXISTS,
        ["nanometer", "micrometer"],
        "other unit",
    ),
    (create(path="tissue/color"), EXISTS, ["tissue/color", "no empty"], "other files are there"),
    (create(path=f"tissue/{JSON}"), EXISTS, [JSON], "a file is there"),
    (create(path=f"tissue/{JSON}/x"), errors.StorageError, [JSON], "a file above it"),
    (create(voxel_size=(1, 1)), ARGUMENT, ["voxel_size", "(1, 1)"], "two axes"),
    (create(voxel_size=8), ARGUMENT, ["voxel_size is 8"], "one number"),
    (create(voxel_size=None), ARGUMENT, ["voxel_size is None"], "nothing"),
    (create(voxel_size=(1, 1, 0)), ARGUMENT, ["voxel_size", "positive"], "no depth"),
    (create(voxel_size=(1, -1, 1)), ARGUMENT, ["voxel_size", "positive"], "negative"),
    (create(voxel_size=(1, float("nan"), 1)), ARGUMENT, ["nan"], "not a number"),
    (create(voxel_size=(1, float("inf"), 1)), ARGUMENT, ["inf"], "endless"),
    (create(voxel_size="abc"), ARGUMENT, ["'abc'"], "text"),
    (create(unit="nm"), ARGUMENT, ["'nm'", "nanometer", "micrometer"], "a short form"),
    (create(unit=None), ARGUMENT, ["None", "nanometer"], "no unit"),
    (add_layer(name="color"), EXISTS, ["'color'", "already"], "a layer of that name"),
    (add_layer(name=""), ARGUMENT, ["''"], "no name"),
    (add_layer(name="."), ARGUMENT, ["'.'"], "the dataset itself"),
    (add_layer(name=".."), ARGUMENT, ["'..'"], "its parent"),
    (add_layer(name="../color"), ARGUMENT, ["'../color'"], "leaves the dataset"),
    (add_layer(name="a/b"), ARGUMENT, ["'a/b'"], "a directory too many"),
    (add_layer(name="a/../../b"), ARGUMENT, ["'a/../../b'"], "leaves later"),
    (add_layer(name="/etc"), ARGUMENT, ["'/etc'"], "absolute"),
    (add_layer(name="a\\b"), ARGUMENT, ["slash"], "leaves on Windows"),
    (add_layer(name=".hidden"), ARGUMENT, ["'.hidden'"], "hidden"),
    (add_layer(name="a\0"), ARGUMENT, ["NUL"], "no system can hold it"),
    (add_layer(name=7), ARGUMENT, ["7"], "a number"),
    (add_layer(category="mask"), ARGUMENT, ["'mask'", "color, segmentation"], "no category"),
    (add_layer(category=None), ARGUMENT, ["None", "color, segmentation"], "no category at all"),
    (add_layer(dtype="uint7"), ARGUMENT, ["'uint7'"], "no dtype"),
    (add_layer(dtype="uint24"), ARGUMENT, ["'uint24'"], "an elementClass"),
    (add_layer(dtype=None), ARGUMENT, ["None", "uint8"], "NumPy would take float64"),
    (add_layer(dtype="bool"), ARGUMENT, ["bool", "uint8, uint16"], "WKW has none"),
    (add_layer(dtype="float16"), ARGUMENT, ["float16", "float32"], "WKW has none"),
    (add_layer(dtype="complex64"), ARGUMENT, ["complex64"], "WKW has none"),
    (add_layer(num_channels=0), ARGUMENT, ["num_channels is 0"], "none"),
    (add_layer(num_channels=-1), ARGUMENT, ["num_channels is -1"], "negative"),
    (add_layer(num_channels=1.0), ARGUMENT, ["num_channels", "1.0"], "a float"),
    (add_layer(num_channels=256), ARGUMENT, ["256", "255"], "voxels of 256 bytes"),
    (add_layer(dtype="uint64", num_channels=32), ARGUMENT, ["32", "31"], "voxels of 256 bytes"),
    (
        add_layer(category="segmentation", dtype="float32"),
        ARGUMENT,
        ["segmentation", "float32"],
        "no ids",
    ),
    (add_layer(bounding_box=((0, 0, 0), (1, 1, 1))), ARGUMENT, ["BoundingBox"], "a tuple"),
    (add_layer(largest_segment_id=3.5), ARGUMENT, ["3.5"], "would spoil the JSON"),
    (add_layer(largest_segment_id="3"), ARGUMENT, ["'3'"], "text"),
    (assign("largest_segment_id", 3.5), ARGUMENT, ["3.5"], "would spoil the JSON"),
    (assign("bounding_box", (1, 2, 3)), ARGUMENT, ["BoundingBox", "(1, 2, 3)"], "a tuple"),
    (assign("bounding_box", None), ARGUMENT, ["BoundingBox", "None"], "nothing"),
    (lambda ds: ds["nuclei"], errors.NameLookupError, ["'nuclei'", "color, remote"], "layer"),
    (lambda ds: ds["color"][4], errors.NameLookupError, ["mag 4", "it has 1"], "mag"),
    (lambda ds: ds["color"]["2-2"], ARGUMENT, ["'2-2'"], "no mag"),
    (lambda ds: ds["color"][0], ARGUMENT, ["0"], "a mag of nothing"),
    (lambda ds: ds["color"][1.0], ARGUMENT, ["1.0"], "a float"),
    (add_mag(1), EXISTS, ["mag 1 ", "already"], "a mag like this"),
    (add_mag("1-1-1"), EXISTS, ["mag 1 ", "already"], "under another name"),
    (add_mag("2-2"), ARGUMENT, ["'2-2'"], "two factors"),
    (add_mag("x"), ARGUMENT, ["'x'"], "text"),
    (add_mag("../1"), ARGUMENT, ["'../1'"], "a path"),
    (add_mag(0), ARGUMENT, ["0", "below 1"], "no factor"),
    (add_mag(1.5), ARGUMENT, ["1.5"], "a float"),
    (add_mag((2, 2, -1)), ARGUMENT, ["below 1"], "negative"),
    (add_mag(block_edge=0), ARGUMENT, ["block_edge is 0"], "empty blocks"),
    (add_mag(block_edge=24), ARGUMENT, ["block_edge is 24", "power of two"], "no power of two"),
    (add_mag(block_edge=-8), ARGUMENT, ["block_edge is -8"], "negative"),
    (add_mag(block_edge=8.0), ARGUMENT, ["block_edge", "8.0"], "a float"),
    (add_mag(block_edge=2**16), ARGUMENT, ["65536"], "no nibble for it"),
    (add_mag(block_edge=2**11), ARGUMENT, ["smaller block_edge"], "LZ4 can't compress it"),
    (add_mag(blocks_per_file_edge=3), ARGUMENT, ["blocks_per_file_edge is 3"], "no power of two"),
    (add_mag(blocks_per_file_edge="8"), ARGUMENT, ["blocks_per_file_edge", "'8'"], "text"),
    (add_mag(block_type="zip"), ARGUMENT, ["'zip'", "raw, lz4, lz4hc"], "an unknown block type"),
    (add_mag(block_type=1), ARGUMENT, ["block_type is 1", "raw"], "the format's number"),
    (lambda ds: ds["remote"][1], FORMAT, ["remote", "n5", "wkw"], "another format"),
    (lambda ds: ds["remote"].mags, FORMAT, ["remote", "n5"], "another format"),
    (lambda ds: ds["remote"].add_mag(2), FORMAT, ["remote", "n5"], "another format"),
    (write(np.zeros((1, 1, 1), "int8")), errors.DtypeError, ["int8", "uint8"], "dtype"),
    (write(np.zeros((2, 1, 1, 1), "uint8")), ARGUMENT, ["(2, 1, 1, 1)", "c = 1"], "channels"),
    (write(np.zeros((1, 1), "uint8")), ARGUMENT, ["(1, 1)"], "two axes"),
    (write(np.zeros((1, 0, 1), "uint8")), errors.BoundsError, ["at least 1"], "empty"),
    (write(np.ones((1, 1, 1), "uint8"), (0, 0, -1)), errors.BoundsError, ["-1"], "negative"),
    (write(np.ones((1, 1, 1), "uint8"), (0, 0, 0.0)), ARGUMENT, ["0.0"], "a float"),
    (write(np.ones((1, 1, 1), "uint8"), (2**32, 0, 0)), errors.BoundsError, ["2**32"], "far"),
]


@pytest.fixture
def furnished(color: wkdask.Layer) -> wkdask.Dataset:
    """A dataset with voxels in color and a layer that is stored elsewhere."""
    color.add_mag(1, **SMALL).write(random_voxels((5, 5, 5)), (3, 5, 7))
    remote = {**text_of(color.dataset)["dataLayers"][0], "name": "remote", "dataFormat": "n5"}
    rewrite(color.dataset, lambda value: value["dataLayers"].append(remote))
    return wkdask.open(color.dataset.path)


@pytest.mark.parametrize(("attempt", "kind", "words", "reason"), REFUSED, ids=reasons(REFUSED))
def test_refused(furnished, tmp_path, snapshot, attempt, kind, words, reason):
    before = snapshot(tmp_path)
    with pytest.raises(kind) as caught:
        attempt(furnished)
    assert_clear(caught.value, words)
    assert snapshot(tmp_path) == before


def test_other_formats_are_listed(furnished):
    assert [*furnished.layers] == ["color", "remote"]
    remote = furnished["remote"]
    assert (remote.data_format, remote.bounding_box) == ("n5", BOX)
    assert (remote.dtype, remote.num_channels) == (np.dtype("uint8"), 1)


def test_other_formats_survive_changes(furnished):
    before = text_of(furnished)["dataLayers"][1]
    furnished["color"].bounding_box = BoundingBox((0, 0, 0), (1, 1, 1))
    assert text_of(furnished)["dataLayers"][1] == before


class TestOutside:
    """What lies outside of the dataset is read but never written."""

    @pytest.fixture
    def elsewhere(self, tmp_path: Path) -> wkdask.Dataset:
        ds = wkdask.create(tmp_path / "elsewhere", (1, 1, 1))
        layer = ds.add_layer("color", "color", "uint8")
        layer.add_mag(1, **SMALL).write(random_voxels((8, 8, 8)))
        return ds

    @pytest.fixture(params=["relative", "absolute", "symlinked layer", "symlinked mag"])
    def linked(
        self, request: pytest.FixtureRequest, tissue: wkdask.Dataset, elsewhere: wkdask.Dataset
    ) -> wkdask.Layer:
        """A layer whose mag 1 is that of another dataset."""
        box = BoundingBox((0, 0, 0), (8, 8, 8))
        tissue.add_layer("color", "color", "uint8", bounding_box=box)
        entry: dict[str, Any] = {"mag": [1, 1, 1]}
        if request.param == "relative":
            entry["path"] = "../elsewhere/color/1"
        elif request.param == "absolute":
            entry["path"] = str(elsewhere.path / "color" / "1")
        elif request.param == "symlinked layer":
            (tissue.path / "color").symlink_to(elsewhere.path / "color")
        else:
            (tissue.path / "color").mkdir()
            (tissue.path / "color" / "1").symlink_to("../../elsewhere/color/1")
            entry["path"] = "./color/1"
        rewrite(tissue, lambda value: value["dataLayers"][0].update(mags=[entry]))
        return wkdask.open(tissue.path)["color"]

    def test_it_is_read(self, linked, elsewhere):
        expected = elsewhere["color"][1].get_view().read()
        assert expected.all()
        np.testing.assert_array_equal(linked[1].get_view().read(), expected)
        np.testing.assert_array_equal(linked.mags[Mag(1)].to_dask().compute(), expected)

    def test_it_is_not_written(self, linked, tmp_path, snapshot):
        before = snapshot(tmp_path)
        voxels = random_voxels((1, 8, 8, 8))
        mag = linked[1]
        assert mag.read_only
        attempts: list[Callable[[], object]] = [
            lambda: mag.write(voxels),
            lambda: mag.store(voxels),
            lambda: mag.get_view().write(voxels),
            lambda: mag.get_view(read_only=False),
            lambda: pickle.loads(pickle.dumps(mag)).write(voxels),
        ]
        for attempt in attempts:
            with pytest.raises(errors.ReadOnlyError, match="read-only"):
                attempt()
        assert snapshot(tmp_path) == before

    def test_it_is_no_target(self, linked, tmp_path, snapshot):
        source = linked.dataset.add_layer("source", "color", "uint8")
        source.add_mag(1, **SMALL).write(random_voxels((8, 8, 8)))
        before = snapshot(tmp_path)
        with pytest.raises(errors.ReadOnlyError):
            wkdask.downsample(source[1], linked[1], "max")
        assert snapshot(tmp_path) == before

    def test_no_mag_through_a_symlinked_layer(self, tissue, elsewhere, tmp_path, snapshot):
        layer = tissue.add_layer("color", "color", "uint8")
        (tissue.path / "color").symlink_to(elsewhere.path / "color")
        before = snapshot(tmp_path)
        with pytest.raises(errors.ArgumentError, match="leads out of the dataset") as caught:
            layer.add_mag(2)
        assert_clear(caught.value, ["color/2", str(tissue.path)])
        assert snapshot(tmp_path) == before

    def test_no_mag_through_a_symlinked_mag(self, tissue, elsewhere, tmp_path, snapshot):
        layer = tissue.add_layer("color", "color", "uint8")
        (tissue.path / "color").mkdir()
        (tissue.path / "color" / "2").symlink_to(tmp_path / "nowhere")
        before = snapshot(tmp_path)
        with pytest.raises(errors.ArgumentError, match="leads out of the dataset"):
            layer.add_mag(2)
        assert snapshot(tmp_path) == before

    def test_a_dataset_behind_a_symlink_is_inside(self, tissue, tmp_path):
        (tmp_path / "link").symlink_to(tissue.path)
        layer = wkdask.open(tmp_path / "link").add_layer("color", "color", "uint8")
        mag = layer.add_mag(1, **SMALL)
        mag.write(random_voxels((2, 2, 2)))
        assert not reopened(layer)[1].read_only

    def test_a_path_that_goes_out_and_comes_back_is_inside(self, color):
        color.add_mag(1, **SMALL)
        rewrite(
            color.dataset,
            lambda value: value["dataLayers"][0]["mags"][0].update(path="../tissue/color/1"),
        )
        assert not reopened(color)[1].read_only


# --- the JSON -----------------------------------------------------------------------------------


class TestJson:
    def test_unknown_keys_survive_our_changes(self, color):
        color.add_mag(1, **SMALL)

        def spice(value: dict[str, Any]) -> None:
            layer = value["dataLayers"][0]
            for place in (value, value["id"], value["scale"], layer, layer["boundingBox"]):
                place["unknown"] = {"deep": [1, None, "µ"]}
            layer["mags"][0]["credentialId"] = "x"

        rewrite(color.dataset, spice)
        expected = text_of(color.dataset)
        ds = wkdask.open(color.dataset.path)
        ds["color"].largest_segment_id = 7
        ds["color"][1].write(random_voxels((2, 2, 2)), (90, 0, 0))
        ds["color"].add_mag(2, **SMALL)
        ds.add_layer("other", "segmentation", "uint32")
        found = text_of(ds)
        assert found["dataLayers"][0].pop("largestSegmentId") == 7
        assert found["dataLayers"][0]["mags"].pop()["mag"] == [2, 2, 2]
        assert found["dataLayers"].pop()["name"] == "other"
        box = expected["dataLayers"][0]["boundingBox"]
        box.update(topLeft=[3, 0, 0], width=89, height=35, depth=47)
        assert found == expected

    def test_legacy_form(self, tmp_path):
        path = tmp_path / "old"
        for name in ("1", "2-2-2", "4-4-1"):
            WkwVolume.create(path / "color" / name, VolumeHeader("uint8", 3, 4, 2))
        resolutions = [{"resolution": 1, "cubeLength": 8}, {"resolution": [2, 2, 2]}]
        layer = {
            "name": "color",
            "category": "color",
            "boundingBox": {"topLeft": [0, 0, 0], "width": 9, "height": 9, "depth": 9},
            "elementClass": "uint24",
            "dataFormat": "wkw",
            "wkwResolutions": [*resolutions, {"resolution": [4, 4, 1]}],
        }
        legacy = {"id": {"name": "old"}, "scale": [4, 4, 35], "dataLayers": [layer]}
        (path / JSON).write_text(json.dumps(legacy))
        ds = wkdask.open(path)
        assert (ds.voxel_size, ds.unit) == ((4, 4, 35), "nanometer")
        assert ds["color"].num_channels == 3
        assert [str(mag) for mag in ds["color"].mags] == ["1", "2", "4-4-1"]
        assert ds["color"][2].path.endswith("2-2-2")
        ds["color"][2].write(random_voxels((3, 8, 8, 8)))
        assert wkdask.open(path)["color"].bounding_box.size == (16, 16, 16)
        np.testing.assert_array_equal(
            wkdask.open(path)["color"][2].get_view().read(), random_voxels((3, 8, 8, 8))
        )

    def test_a_mag_without_path_lies_in_its_directory(self, color):
        color.add_mag("2-2-1", **SMALL)
        rewrite(color.dataset, lambda value: value["dataLayers"][0]["mags"][0].pop("path"))
        mag = reopened(color)["2-2-1"]
        assert mag.path == str(color.dataset.path / "color" / "2-2-1")
        assert not mag.read_only

    def test_two_datasets_on_one_path_keep_each_others_changes(self, tissue):
        mine, yours = wkdask.open(tissue.path), wkdask.open(tissue.path)
        a = mine.add_layer("a", "color", "uint8")
        b = yours.add_layer("b", "segmentation", "uint32")
        a.add_mag(1, **SMALL)
        b.add_mag(2, **SMALL)
        b.largest_segment_id = 5
        a.bounding_box = BOX
        b[2].write(random_voxels((2, 2, 2), "uint32"))
        mine["a"].add_mag(2, **SMALL)
        found = wkdask.open(tissue.path)
        assert [*found.layers] == ["a", "b"]
        assert [*map(str, found["a"].mags)] == ["1", "2"]
        assert [*map(str, found["b"].mags)] == ["2"]
        assert (found["a"].bounding_box, found["b"].largest_segment_id) == (BOX, 5)
        assert found["b"].bounding_box.size == (4, 4, 4)

    def test_two_datasets_do_not_add_one_layer_twice(self, tissue):
        mine, yours = wkdask.open(tissue.path), wkdask.open(tissue.path)
        mine.add_layer("a", "color", "uint8")
        with pytest.raises(errors.ExistsError, match="'a'"):
            yours.add_layer("a", "segmentation", "uint32")
        assert wkdask.open(tissue.path)["a"].category == "color"

    def test_two_datasets_do_not_add_one_mag_twice(self, color):
        yours = reopened(color)
        mag = color.add_mag(1, **SMALL)
        mag.write(random_voxels((8, 8, 8)))
        with pytest.raises(errors.ExistsError, match="1"):
            yours.add_mag(1, block_edge=8, blocks_per_file_edge=2)
        np.testing.assert_array_equal(
            wkdask.open(color.dataset.path)["color"][1].read((0, 0, 0), (8, 8, 8))[0],
            random_voxels((8, 8, 8)),
        )

    def test_an_empty_mag_of_another_dataset_object_is_not_replaced(self, color):
        yours = reopened(color)
        header = color.add_mag(1, **SMALL).volume.header
        with pytest.raises(errors.ExistsError, match="mag 1"):
            yours.add_mag(1, block_edge=8)
        assert reopened(color)[1].volume.header == header

    def test_writing_extends_what_the_file_says_and_not_what_we_remember(self, color):
        yours = reopened(color)
        yours_mag = yours.add_mag(1, **SMALL)
        wkdask.open(color.dataset.path)["color"].bounding_box = BoundingBox((0,) * 3, (1,) * 3)
        yours_mag.write(random_voxels((2, 2, 2)), (4, 6, 8))
        assert reopened(color).bounding_box == BoundingBox((0, 0, 0), (6, 8, 10))


class TestCrash:
    """Between the header of a new mag and the JSON that lists it."""

    @pytest.fixture
    def broken(self, color: wkdask.Layer, monkeypatch: pytest.MonkeyPatch) -> wkdask.Layer:
        def fail(*_: object) -> None:
            raise KeyboardInterrupt

        with monkeypatch.context() as patch:
            patch.setattr("wkdask.dataset.properties.save", fail)
            with pytest.raises(KeyboardInterrupt):
                color.add_mag(2, **SMALL)
        return reopened(color)

    def test_the_dataset_opens(self, broken):
        assert broken.mags == {}
        with pytest.raises(errors.NameLookupError):
            broken[2]

    def test_the_mag_can_be_added_again(self, broken):
        mag = broken.add_mag(2, block_edge=8, blocks_per_file_edge=4, block_type="raw")
        assert mag.volume.header == VolumeHeader("uint8", 1, 8, 4, "raw")
        assert reopened(broken)[2].volume.header == mag.volume.header

    @pytest.mark.parametrize("with_header", [True, False])
    def test_but_not_over_voxels(self, color, snapshot, with_header):
        volume = WkwVolume.create(
            color.dataset.path / "color" / "2", VolumeHeader("uint8", 1, 4, 2)
        )
        volume.write(BoundingBox((0, 0, 0), (8, 8, 8)), random_voxels((1, 8, 8, 8)))
        if not with_header:
            (Path(volume.path) / "header.wkw").unlink()
        before = snapshot(color.dataset.path)
        with pytest.raises(errors.ExistsError) as caught:
            color.add_mag(2, **SMALL)
        assert_clear(caught.value, ["color/2"])
        assert snapshot(color.dataset.path) == before

    def test_a_layer_that_could_not_be_saved_is_not_remembered(self, tissue, monkeypatch):
        def fail(*_: object) -> None:
            raise OSError(errno.ENOSPC, "No space left on device")

        monkeypatch.setattr("wkdask.dataset.properties.os.fsync", fail)
        with pytest.raises(errors.StorageError, match="No space left"):
            tissue.add_layer("a", "color", "uint8")
        assert tissue.layers == {}
        monkeypatch.undo()
        tissue.add_layer("a", "color", "uint8")
        assert [entry.name for entry in tissue.path.iterdir()] == [JSON]


# --- MagView ------------------------------------------------------------------------------------


class TestMagView:
    def test_writing_extends_the_box(self, tissue):
        layer = tissue.add_layer("color", "color", "uint8")
        mag = layer.add_mag(1, **SMALL)
        mag.write(random_voxels((2, 3, 4)), (10, 20, 30))
        box = BoundingBox((10, 20, 30), (2, 3, 4))
        assert mag.bounding_box == layer.bounding_box == reopened(layer).bounding_box == box
        mag.write(random_voxels((1, 1, 1)), (11, 22, 33))
        assert reopened(layer).bounding_box == box
        mag.write(random_voxels((1, 1, 1)), (0, 40, 33))
        assert reopened(layer).bounding_box == BoundingBox((0, 20, 30), (12, 21, 4))

    def test_writing_a_coarse_mag_extends_the_box_in_mag_1(self, tissue):
        layer = tissue.add_layer("color", "color", "uint8", 3)
        mag = layer.add_mag("4-4-2", **SMALL)
        mag.write(random_voxels((3, 2, 3, 4)), (1, 2, 3))
        assert reopened(layer).bounding_box == BoundingBox((4, 8, 6), (8, 12, 8))
        assert mag.bounding_box == BoundingBox((1, 2, 3), (2, 3, 4))

    def test_a_refused_write_does_not_extend(self, color, snapshot):
        mag = color.add_mag(1, **SMALL)
        before = snapshot(color.dataset.path)
        with pytest.raises(errors.DtypeError):
            mag.write(random_voxels((1, 1, 1), "uint16"), (100, 100, 100))
        assert mag.bounding_box == BOX
        assert snapshot(color.dataset.path) == before

    def test_writing_through_a_view_does_not_extend(self, color, snapshot):
        view = color.add_mag(1, **SMALL).get_view()
        view.write(random_voxels(BOX.size))
        assert reopened(color).bounding_box == BOX
        with pytest.raises(errors.BoundsError):
            view.write(random_voxels((1, 1, 1)), (20, 0, 0))

    def test_positions_are_absolute(self, color):
        mag = color.add_mag(1, **SMALL)
        assert (mag.global_offset, mag.size) == ((0, 0, 0), BOX.bottomright)
        mag.write(random_voxels((4, 4, 4)), (9, 9, 9))
        whole = mag.get_view()
        assert (whole.global_offset, whole.size) == (BOX.topleft, BOX.size)
        part = mag.get_view((8, 9, 10), (3, 2, 1))
        assert part.global_offset == (8, 9, 10)
        assert part.get_view((1, 1, 0), (1, 1, 1)).global_offset == (9, 10, 10)
        expected = np.zeros((1, 40, 40, 50), np.uint8)
        expected[0, 9:13, 9:13, 9:13] = random_voxels((4, 4, 4))
        np.testing.assert_array_equal(mag.read((0, 0, 0), (40, 40, 50)), expected)
        np.testing.assert_array_equal(part.read(), expected[:, 8:11, 9:11, 10:11])
        np.testing.assert_array_equal(whole.read(), expected[:, 3:23, 5:35, 7:47])
        np.testing.assert_array_equal(mag.to_dask(), expected[:, 3:23, 5:35, 7:47])
        np.testing.assert_array_equal(mag[0, 6], expected[0, 9, 5:35, 7:47])

    def test_the_default_size_reaches_to_the_end(self, color):
        view = color.add_mag(1, **SMALL).get_view((13, 5, 40))
        assert view.bounding_box == BoundingBox.from_corners((13, 5, 40), BOX.bottomright)

    def test_parts_outside_are_for_reading(self, color):
        mag = color.add_mag(1, **SMALL)
        assert mag.get_view((0, 0, 0), (3, 5, 7)).size == (3, 5, 7)
        with pytest.raises(errors.BoundsError):
            mag.get_view((0, 0, 0), (100, 1, 1))
        assert mag.get_view((0, 0, 0), (100, 1, 1), read_only=True).read().sum() == 0

    def test_arrays_and_chunks_cover_the_box(self, color):
        mag = color.add_mag(1, block_edge=8, blocks_per_file_edge=4)
        mag.store(random_voxels((1, *BOX.size)))
        np.testing.assert_array_equal(mag.get_view().read()[0], random_voxels(BOX.size))
        seen: list[BoundingBox] = []
        mag.for_each_chunk(lambda chunk: seen.append(chunk[0].bounding_box))
        assert min(box.topleft for box in seen) == BOX.topleft
        assert sum(box.volume for box in seen) == BOX.volume
        assert mag.to_xarray().shape == (1, *BOX.size)

    def test_xarray_knows_the_layer(self, color):
        array = color.add_mag("2-2-1", **SMALL).to_xarray()
        assert (array.name, array.dims) == ("color", ("c", "x", "y", "z"))
        assert array.attrs["voxel_size"] == [11.24, 11.24, 28.0]
        assert (array.attrs["voxel_size_unit"], array.attrs["mag"]) == ("nanometer", "2-2-1")

    def test_no_box_yet(self, tissue):
        mag = tissue.add_layer("color", "color", "uint8").add_mag(1, **SMALL)
        with pytest.raises(errors.ArgumentError, match="empty bounding box"):
            mag.get_view()
        assert mag.get_view((0, 0, 0), (8, 8, 8), read_only=True).read().sum() == 0

    def test_it_survives_pickling(self, color):
        mag = color.add_mag(1, **SMALL)
        mag.write(random_voxels((4, 4, 4)), (3, 5, 7))
        copy = pickle.loads(pickle.dumps(mag))
        assert copy == mag
        np.testing.assert_array_equal(copy.get_view().read(), mag.get_view().read())


positions = st.tuples(*[st.integers(0, 40)] * 3)
sizes = st.tuples(*[st.integers(1, 12)] * 3)


@settings(deadline=None, max_examples=30)
@given(
    writes=st.lists(st.tuples(positions, sizes), min_size=1, max_size=4),
    mag=st.sampled_from(["1", "2-2-1", "3"]),
    block_type=st.sampled_from(BLOCK_TYPES),
    channels=st.integers(1, 2),
)
@pytest.mark.filterwarnings("ignore:writing parts of compressed files:RuntimeWarning")
def test_the_box_contains_all_that_was_written(tmp_path_factory, writes, mag, block_type, channels):
    ds = wkdask.create(tmp_path_factory.mktemp("box"), (1, 1, 1))
    layer = ds.add_layer("color", "color", "int16", channels)
    view = layer.add_mag(mag, **{**SMALL, "block_type": block_type})
    expected = np.zeros((channels, 52, 52, 52), np.int16)
    box = BoundingBox((0, 0, 0), (0, 0, 0))
    for seed, (offset, size) in enumerate(writes):
        voxels = random_voxels((channels, *size), "int16", seed)
        view.write(voxels, offset)
        x, y, z = (slice(a, a + n) for a, n in zip(offset, size, strict=True))
        expected[:, x, y, z] = voxels
        box = box.extended_by(BoundingBox(offset, size))
    found = wkdask.open(ds.path)["color"]
    assert found.bounding_box == box.scaled_by(Mag(mag))
    assert found[mag].bounding_box == view.bounding_box == box
    np.testing.assert_array_equal(found[mag].read((0, 0, 0), (52, 52, 52)), expected)


def test_frozen_values_stay_as_they_are(color):
    with pytest.raises(dataclasses.FrozenInstanceError):
        color.properties.name = "other"
