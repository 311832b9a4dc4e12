"""`wkdask.dataset.properties`: good and bad files, round trips, webknossos as the oracle."""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import errno
import json
import os
import stat
import warnings
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from wkdask.dataset import properties as props
from wkdask.dataset.properties import (
    FILE_NAME,
    UNITS,
    DatasetProperties,
    LayerProperties,
    MagProperties,
    check_layer_name,
    check_unit,
    element_class,
    load,
    parse,
    render,
    save,
)
from wkdask.errors import (
    AccessError,
    ArgumentError,
    DirectoryError,
    MissingError,
    NameLookupError,
    PropertiesError,
    StorageError,
)
from wkdask.geometry import BoundingBox, Mag
from wkdask.storage import atomic

BOX = BoundingBox((0, 0, 0), (64, 64, 64))
INTEGERS = tuple(f"{kind}{bits}" for kind in ("uint", "int") for bits in (8, 16, 32, 64))
DTYPES = (*INTEGERS, "float32", "float64")

CURRENT: dict[str, Any] = {
    "id": {"name": "cortex", "team": "lab", "organization": "kept"},
    "scale": {"factor": [11.24, 11.24, 28], "unit": "nanometer", "source": "kept"},
    "dataLayers": [
        {
            "name": "color",
            "category": "color",
            "boundingBox": {"topLeft": [1, 2, 3], "width": 10, "height": 20, "depth": 30, "t": 1},
            "elementClass": "uint24",
            "numChannels": 3,
            "dataFormat": "wkw",
            "mags": [
                {"mag": [2, 2, 1], "path": "../other/color/2-2-1", "cubeLength": 1024},
                {"mag": [1, 1, 1], "axisOrder": {"c": 0, "x": 1, "y": 2, "z": 3}, "new": [None]},
            ],
            "defaultViewConfiguration": {"color": [255, 0, 0]},
            "coordinateTransformations": [{"type": "affine", "matrix": [[1.5]]}],
            "future": {"deep": [1, {"er": None}]},
        },
        {
            "name": "cells",
            "category": "segmentation",
            "boundingBox": {"topLeft": [0, 0, 0], "width": 1, "height": 1, "depth": 1},
            "elementClass": "uint64",
            "numChannels": 1,
            "dataFormat": "wkw",
            "mags": [],
            "largestSegmentId": {"customJsonEncoding": "bigint", "value": "18446744073709551615"},
            "mappings": ["agglomerate_50"],
        },
        {
            "name": "remote",
            "category": "color",
            "boundingBox": {"topLeft": [-5, 0, 0], "width": 1, "height": 1, "depth": 1},
            "additionalAxes": [{"name": "t", "bounds": [0, 5], "index": 1}],
            "elementClass": "uint8",
            "numChannels": 3,
            "dataFormat": "zarr3",
            "mags": [{"mag": [1, 1, 1], "path": "https://example.org/1", "credentialId": "x"}],
        },
    ],
    "version": 1,
    "defaultViewConfiguration": None,
    "später": "µ",
}


def changed(change: Any) -> str:
    value = copy.deepcopy(CURRENT)
    change(value)
    return json.dumps(value)


def setting(*path: Any, to: Any) -> str:
    """Return the text of CURRENT with another value in one place."""

    def change(value: Any) -> None:
        for key in path[:-1]:
            value = value[key]
        value[path[-1]] = to

    return changed(change)


def lacking(*path: Any) -> str:
    def change(value: Any) -> None:
        for key in path[:-1]:
            value = value[key]
        del value[path[-1]]

    return changed(change)


def layer_of(**keys: Any) -> LayerProperties:
    """Return the layer that a file with one minimal layer and these keys holds."""
    layer = {**CURRENT["dataLayers"][1], "mags": [], **keys}
    layer = {key: value for key, value in layer.items() if value is not ...}
    return parse(json.dumps({**CURRENT, "dataLayers": [layer]}), "text").layers[0]


class TestGoodFiles:
    def test_current_form(self):
        dataset = parse(json.dumps(CURRENT), "text")
        assert (dataset.name, dataset.team, dataset.unit) == ("cortex", "lab", "nanometer")
        assert dataset.voxel_size == (11.24, 11.24, 28.0)
        color, cells, remote = dataset.layers
        assert color.bounding_box == BoundingBox((1, 2, 3), (10, 20, 30))
        assert (color.dtype, color.num_channels, color.category) == ("uint8", 3, "color")
        assert [str(entry.mag) for entry in color.mags] == ["1", "2-2-1"]
        assert [entry.path for entry in color.mags] == [None, "../other/color/2-2-1"]
        assert color.mags[1].extra == {"cubeLength": 1024}
        assert cells.largest_segment_id == 2**64 - 1
        assert cells.extra == {"mappings": ["agglomerate_50"]}
        assert (remote.data_format, remote.bounding_box.topleft) == ("zarr3", (-5, 0, 0))
        assert dataset.extra["id"] == {"organization": "kept"}

    def test_nothing_is_lost(self):
        again = json.loads(render(parse(json.dumps(CURRENT), "text")))
        expected = copy.deepcopy(CURRENT)
        expected["dataLayers"][0]["mags"].reverse()
        assert again == expected

    def test_parsing_what_was_rendered_changes_nothing(self):
        dataset = parse(json.dumps(CURRENT), "text")
        assert parse(render(dataset), "text") == dataset

    def test_legacy_form_becomes_the_current_one(self):
        layer = {key: CURRENT["dataLayers"][1][key] for key in CURRENT["dataLayers"][1]}
        del layer["mags"], layer["numChannels"]
        layer["wkwResolutions"] = [
            {"resolution": [4, 4, 2], "cubeLength": 512, "why": "kept"},
            {"resolution": 1, "cubeLength": 1024},
        ]
        legacy = {"id": {"name": "old"}, "scale": [4, 4, 35], "dataLayers": [layer]}
        written = json.loads(render(parse(json.dumps(legacy), "text")))
        assert written["scale"] == {"factor": [4, 4, 35], "unit": "nanometer"}
        assert "wkwResolutions" not in written["dataLayers"][0]
        assert written["dataLayers"][0]["mags"] == [
            {"mag": [1, 1, 1], "cubeLength": 1024},
            {"mag": [4, 4, 2], "cubeLength": 512, "why": "kept"},
        ]

    def test_entries_of_both_forms_are_merged(self):
        layer = layer_of(
            mags=[{"mag": 1, "path": "here"}],
            wkwResolutions=[{"resolution": 1, "path": "there"}, {"resolution": 2}],
        )
        assert [(str(entry.mag), entry.path) for entry in layer.mags] == [
            ("1", "here"),
            ("2", None),
        ]

    @pytest.mark.parametrize(
        ("written", "expected"),
        [
            (2, "2"),
            ([2, 2, 1], "2-2-1"),
            ("4-4-1", "4-4-1"),
            ("8", "8"),
            ([2.0, 2.0, 1.0], "2-2-1"),
        ],
    )
    def test_ways_to_write_a_mag(self, written, expected):
        assert str(layer_of(mags=[{"mag": written}]).mags[0].mag) == expected

    @pytest.mark.parametrize(
        ("written", "expected"),
        [
            (5, 5),
            (None, None),
            (..., None),
            (2**60, 2**60),
            (5.0, 5),
            ({"customJsonEncoding": "bigint", "value": "12"}, 12),
        ],
    )
    def test_ways_to_write_the_largest_segment_id(self, written, expected):
        assert layer_of(largestSegmentId=written).largest_segment_id == expected

    @pytest.mark.parametrize(
        ("value", "written"),
        [
            (2**53 - 1, 2**53 - 1),
            (2**53, {"customJsonEncoding": "bigint", "value": "9007199254740992"}),
        ],
    )
    def test_large_segment_ids_are_wrapped(self, value, written):
        layer = dataclasses.replace(layer_of(), largest_segment_id=value)
        text = render(DatasetProperties("a", (1, 1, 1), layers=(layer,)))
        assert json.loads(text)["dataLayers"][0]["largestSegmentId"] == written

    @pytest.mark.parametrize(
        ("name", "channels", "data_format", "expected"),
        [
            ("uint24", ..., "wkw", ("uint8", 3)),  # RGB before there was numChannels
            ("uint8", ..., "wkw", ("uint8", 1)),
            ("float32", 1, "wkw", ("float32", 1)),  # NumPy's names are understood
            ("double", 2, "wkw", ("float32", 2)),
            ("uint64", 2, "wkw", ("uint32", 2)),
            ("uint8", 3, "zarr", ("uint8", 3)),  # a contradiction that is not ours
            ("float16", 1, "n5", ("float16", 1)),
        ],
    )
    def test_element_classes(self, name, channels, data_format, expected):
        layer = layer_of(elementClass=name, numChannels=channels, dataFormat=data_format)
        assert (layer.dtype, layer.num_channels) == expected

    @pytest.mark.parametrize("data_format", ["zarr", "zarr3", "n5", "neuroglancerPrecomputed"])
    def test_other_formats_are_passed_on(self, data_format):
        layer = layer_of(elementClass="float16", numChannels=2, dataFormat=data_format)
        text = render(DatasetProperties("a", (1, 1, 1), layers=(layer,)))
        written = json.loads(text)["dataLayers"][0]
        assert (written["elementClass"], written["dataFormat"]) == ("float16", data_format)

    def test_an_unknown_unit_is_kept(self):
        text = setting("scale", "unit", to="furlong")
        assert json.loads(render(parse(text, "text")))["scale"]["unit"] == "furlong"

    def test_half_a_surrogate_pair_is_kept(self):
        text = setting("später", to="\ud800")
        assert json.loads(render(parse(text, "text")))["später"] == "\ud800"


LAYER = "dataLayers[0]"
BAD_FILES = [
    # text, what the error must name, why it is refused
    ("{", "line 1", "cut short"),
    ("", "not JSON", "empty"),
    ("[]", "the file is []", "a list at the top"),
    ("[" * 100_000, "not JSON", "too deep"),
    ('{"a": NaN}', "NaN", "NaN is not JSON"),
    ('{"a": 1e999}', "1e999", "could not be written again"),
    ("{}", "dataLayers is missing", "no key at all"),
    (lacking("scale"), "scale is missing", "no voxel size"),
    (lacking("dataLayers"), "dataLayers is missing", "no layers"),
    (setting("id", to="x"), "id is 'x'", "not an object"),
    (setting("id", "name", to=3), "id.name is 3", "not text"),
    (setting("scale", to=8), "scale is 8", "neither form"),
    (setting("scale", to=[1, 2]), "scale is [1, 2]", "two axes"),
    (setting("scale", to=[1, 2, 0]), "scale[2] is 0", "a voxel without depth"),
    (lacking("scale", "factor"), "scale.factor is missing", "no factor"),
    (setting("scale", "factor", to=[1, "2", 3]), "scale.factor[1] is '2'", "text for a number"),
    (setting("scale", "factor", to=[True, 2, 3]), "scale.factor[0] is True", "true is no number"),
    (setting("scale", "factor", to=[1, 10**400, 3]), "scale.factor[1] is 1000", "no float"),
    (setting("scale", "unit", to=1), "scale.unit is 1", "not text"),
    (setting("dataLayers", to={}), "dataLayers is {}", "not a list"),
    (setting("dataLayers", 0, to=None), f"{LAYER} is None", "not an object"),
    *(
        (lacking("dataLayers", 0, key), f"{LAYER}.{key} is missing", "needed")
        for key in ("name", "category", "boundingBox", "elementClass", "dataFormat", "mags")
    ),
    *(
        (setting("dataLayers", 0, "name", to=name), f"{LAYER}.name", "leaves the dataset")
        for name in ("../x", "a/b", "", ".hidden", "..", "a\\b", "a\0b", 7)
    ),
    (setting("dataLayers", 0, "name", to="cells"), "'cells', but must be a name", "which of them?"),
    (setting("dataLayers", 0, "category", to="mask"), f"{LAYER}.category is 'mask'", "unknown"),
    (setting("dataLayers", 0, "category", to=[]), f"{LAYER}.category is []", "not text"),
    (setting("dataLayers", 0, "dataFormat", to=1), f"{LAYER}.dataFormat is 1", "not text"),
    (setting("dataLayers", 0, "numChannels", to=0), f"{LAYER}.numChannels is 0", "no channel"),
    (
        setting("dataLayers", 0, "numChannels", to="3"),
        f"{LAYER}.numChannels is '3'",
        "not a number",
    ),
    (setting("dataLayers", 0, "elementClass", to="uint8"), f"{LAYER}.elementClass", "3 x 2.7 bits"),
    (
        setting("dataLayers", 0, "elementClass", to="float"),
        "float96",
        "the text lists what is good",
    ),
    (setting("dataLayers", 0, "numChannels", to=2), "numChannels is 2", "2 x 12 bits"),
    (
        lacking("dataLayers", 1, "boundingBox", "width"),
        "dataLayers[1].boundingBox.width is missing",
        "half a box",
    ),
    (
        setting("dataLayers", 1, "boundingBox", "width", to=-1),
        "dataLayers[1].boundingBox.width is -1",
        "a negative size",
    ),
    (
        setting("dataLayers", 1, "boundingBox", "depth", to=1.5),
        "dataLayers[1].boundingBox.depth is 1.5",
        "half a voxel",
    ),
    (
        setting("dataLayers", 1, "boundingBox", "topLeft", to=[0, 0]),
        "dataLayers[1].boundingBox.topLeft is [0, 0]",
        "two axes",
    ),
    (setting("dataLayers", 0, "mags", to=3), f"{LAYER}.mags is 3", "not a list"),
    (setting("dataLayers", 0, "mags", 1, to=1), f"{LAYER}.mags[1] is 1", "not an object"),
    (lacking("dataLayers", 0, "mags", 1, "mag"), f"{LAYER}.mags[1].mag is missing", "needed"),
    (setting("dataLayers", 0, "mags", 1, "mag", to=0), f"{LAYER}.mags[1].mag", "factors count"),
    (setting("dataLayers", 0, "mags", 1, "mag", to="a"), f"{LAYER}.mags[1].mag", "not a mag"),
    (setting("dataLayers", 0, "mags", 1, "mag", to=[2]), f"{LAYER}.mags[1].mag", "one axis"),
    (
        setting("dataLayers", 0, "mags", 1, "mag", to={"x": 1, "y": 1, "z": 1}),
        f"{LAYER}.mags[1].mag is {{'x'",
        "webknossos refuses that too",
    ),
    (
        setting("dataLayers", 0, "mags", 1, "mag", to=[2, 2, 1]),
        f"{LAYER}.mags[1].mag is [2, 2, 1]",
        "which of them?",
    ),
    (setting("dataLayers", 0, "mags", 0, "path", to=1), f"{LAYER}.mags[0].path is 1", "not text"),
    (
        setting("dataLayers", 0, "wkwResolutions", to=[{"cubeLength": 32}]),
        f"{LAYER}.wkwResolutions[0].resolution is missing",
        "the legacy list counts too",
    ),
    (
        setting("dataLayers", 1, "largestSegmentId", to="7"),
        "dataLayers[1].largestSegmentId is '7'",
        "text for a number",
    ),
    (
        setting("dataLayers", 1, "largestSegmentId", "value", to="1_0"),
        "dataLayers[1].largestSegmentId.value is '1_0'",
        "only digits",
    ),
    (
        setting("dataLayers", 1, "largestSegmentId", "customJsonEncoding", to="hex"),
        "dataLayers[1].largestSegmentId.customJsonEncoding is 'hex'",
        "unknown",
    ),
]


class TestBadFiles:
    @pytest.mark.parametrize(
        ("text", "named"), [row[:2] for row in BAD_FILES], ids=[row[1] for row in BAD_FILES]
    )
    def test_the_error_names_file_and_place(self, tmp_path: Path, text: str, named: str):
        path = tmp_path / FILE_NAME
        path.write_text(text, encoding="utf-8")
        try:
            content = load(tmp_path)
        except PropertiesError as caught:
            error = str(caught)
        else:
            [unreadable] = content.all_unreadable()
            error = unreadable.error
            assert parse(render(content), str(path)) == content
        assert str(path) in error
        assert named in error
        assert len(error) < 600
        assert path.read_text(encoding="utf-8") == text
        assert os.listdir(tmp_path) == [FILE_NAME]

    def test_not_utf8(self, tmp_path):
        (tmp_path / FILE_NAME).write_bytes(b'{"a": "\xff"}')
        with pytest.raises(PropertiesError, match="UTF-8"):
            load(tmp_path)

    def test_a_byte_order_mark_is_no_harm(self, tmp_path):
        (tmp_path / FILE_NAME).write_text("\ufeff" + json.dumps(CURRENT), encoding="utf-8")
        assert load(tmp_path).name == "cortex"


class TestBadValues:
    @pytest.mark.parametrize(
        "name", ["", ".", "..", ".hidden", "a/b", "../a", "/a", "a\\b", "a\0b", 3, None]
    )
    def test_layer_names_that_leave_the_dataset(self, name):
        with pytest.raises(ArgumentError, match="layer name"):
            check_layer_name(name)
        with pytest.raises(ArgumentError, match="layer name"):
            LayerProperties(name, "color", BOX, "uint8")

    @pytest.mark.parametrize("name", ["color", "a.b", "-a", "_", "1", "a b", "ä", "a$", "a\n"])
    def test_layer_names_that_stay(self, name):
        check_layer_name(name)

    def test_units(self):
        check_unit("micrometer")
        with pytest.raises(ArgumentError, match=r"'nm'.*nanometer"):
            check_unit("nm")

    @pytest.mark.parametrize(
        ("keys", "text"),
        [
            ({"category": "mask"}, "color, segmentation"),
            ({"dtype": "bool"}, "uint8, uint16"),
            ({"dtype": "uint24"}, "float64"),
            ({"num_channels": 0}, "at least 1"),
            ({"mags": (MagProperties(Mag(1)),) * 2}, "'1' twice"),
            ({"extra": {"name": "b"}}, "'name'"),
            ({"extra": {"elementClass": "uint8"}}, "'elementClass'"),
            ({"extra": {"wkwResolutions": []}}, "'wkwResolutions'"),
            ({"extra": {"boundingBox": {"width": 1}}}, "'boundingBox'"),
        ],
    )
    def test_layers_that_can_not_be(self, keys, text):
        good: dict[str, Any] = {
            "name": "a",
            "category": "color",
            "bounding_box": BOX,
            "dtype": "uint8",
        }
        with pytest.raises(ArgumentError, match=text):
            LayerProperties(**{**good, **keys})

    @pytest.mark.parametrize(
        "keys",
        [
            {"voxel_size": (1, 1)},
            {"voxel_size": (1, 1, 0)},
            {"voxel_size": (1, 1, float("nan"))},
            {"voxel_size": (1, 1, float("inf"))},
            {"voxel_size": (1, 1, "1")},
            {"layers": (LayerProperties("a", "color", BOX, "uint8"),) * 2},
            {"extra": {"dataLayers": []}},
            {"extra": {"id": {"name": "b"}}},
            {"extra": {"scale": 8}},
        ],
    )
    def test_datasets_that_can_not_be(self, keys):
        with pytest.raises(ArgumentError):
            DatasetProperties(**{"name": "a", "voxel_size": (1, 1, 1), **keys})

    def test_element_class_of_an_unknown_dtype(self):
        with pytest.raises(ArgumentError, match=r"'bool'.*uint8"):
            element_class("bool", 1)

    def test_mags_that_can_not_be(self):
        with pytest.raises(ArgumentError, match="'path'"):
            MagProperties(Mag(1), extra={"path": "x"})

    @pytest.mark.parametrize("value", [object(), float("nan"), {1, 2}])
    def test_extras_that_json_can_not_hold(self, tmp_path, value):
        with pytest.raises(ArgumentError, match="JSON"):
            save(tmp_path, DatasetProperties("a", (1, 1, 1), extra={"x": value}))
        assert os.listdir(tmp_path) == []


class TestMethods:
    def test_layer(self):
        dataset = parse(json.dumps(CURRENT), "text")
        assert dataset.layer("cells") is dataset.layers[1]
        with pytest.raises(NameLookupError, match="color, cells, remote"):
            dataset.layer("nuclei")
        with pytest.raises(NameLookupError, match="no layers"):
            DatasetProperties("a", (1, 1, 1)).layer("nuclei")

    def test_with_layer_replaces_in_place_or_appends(self):
        dataset = parse(json.dumps(CURRENT), "text")
        other = LayerProperties("cells", "color", BOX, "int8")
        new = dataset.with_layer(other).with_layer(dataclasses.replace(other, name="new"))
        assert [layer.name for layer in new.layers] == ["color", "cells", "remote", "new"]
        assert new.layer("cells") is other
        assert dataset == parse(json.dumps(CURRENT), "text")

    def test_with_mag_replaces_or_adds_and_sorts(self):
        layer = layer_of()
        for mag in (4, "2-2-1", 1, 2, 4):
            layer = layer.with_mag(MagProperties(Mag(mag), path=f"p{mag}"))
        assert [str(entry.mag) for entry in layer.mags] == ["1", "2-2-1", "2", "4"]


class TestDisk:
    dataset = parse(json.dumps(CURRENT), "text")

    def test_round_trip(self, tmp_path):
        save(tmp_path, self.dataset)
        assert load(str(tmp_path)) == self.dataset
        assert os.listdir(tmp_path) == [FILE_NAME]
        assert (tmp_path / FILE_NAME).read_text(encoding="utf-8").startswith('{\n    "id"')

    def test_missing(self, tmp_path):
        with pytest.raises(MissingError, match=f"has no {FILE_NAME}"):
            load(tmp_path)
        for attempt in (load, lambda path: save(path, self.dataset)):
            with pytest.raises(MissingError, match="nowhere is not a directory"):
                attempt(tmp_path / "nowhere")
        (tmp_path / "file").touch()
        with pytest.raises(MissingError, match="file is not a directory"):
            load(tmp_path / "file")

    def test_a_directory_in_its_place(self, tmp_path):
        (tmp_path / FILE_NAME).mkdir()
        for attempt in (load, lambda path: save(path, self.dataset)):
            with pytest.raises(DirectoryError, match=FILE_NAME):
                attempt(tmp_path)
        assert os.listdir(tmp_path) == [FILE_NAME]

    def test_no_permission(self, tmp_path, monkeypatch):
        # root may read everything, so the refusal is played.
        def refuse(*_: object) -> None:
            raise PermissionError(errno.EACCES, "Permission denied")

        monkeypatch.setattr(props, "open", refuse, raising=False)
        monkeypatch.setattr(props.os, "open", refuse)
        for attempt in (load, lambda path: save(path, self.dataset)):
            with pytest.raises(AccessError, match=f"ask for permission.*{FILE_NAME}"):
                attempt(tmp_path)

    @pytest.mark.parametrize("step", ["replace", "fsync", "fchmod"])
    @pytest.mark.parametrize("error", [OSError(28, "No space left"), KeyboardInterrupt()])
    def test_a_failed_save_leaves_the_old_file_alone(self, tmp_path, monkeypatch, step, error):
        (tmp_path / FILE_NAME).write_text("old")

        def fail(*_: object) -> None:
            raise error

        monkeypatch.setattr(props.os, step, fail)
        with pytest.raises((StorageError, KeyboardInterrupt)):
            save(tmp_path, self.dataset)
        assert (tmp_path / FILE_NAME).read_text() == "old"
        assert os.listdir(tmp_path) == [FILE_NAME]

    @pytest.mark.parametrize("step", ["fsync", "replace"])
    def test_the_unfinished_file_is_locked_until_it_has_its_name(self, tmp_path, monkeypatch, step):
        do, seen = getattr(os, step), []

        def look(*arguments: Any) -> None:
            seen.extend(map(atomic.is_leftover, map(str, tmp_path.glob("*.wkdask-tmp"))))
            do(*arguments)

        monkeypatch.setattr(props.os, step, look)
        save(tmp_path, self.dataset)
        assert seen == [False]

    def test_a_file_system_without_locks(self, tmp_path, monkeypatch):
        def refuse(*_: object) -> None:
            raise OSError(errno.ENOLCK, "No locks available")

        monkeypatch.setattr(props.fcntl, "flock", refuse)
        save(tmp_path, self.dataset)
        assert load(tmp_path) == self.dataset

    @pytest.mark.parametrize("mode", [0o600, 0o644, 0o664, 0o440])
    def test_permissions_of_an_existing_file_are_kept(self, tmp_path, mode):
        (tmp_path / FILE_NAME).touch()
        (tmp_path / FILE_NAME).chmod(mode)
        save(tmp_path, self.dataset)
        assert stat.S_IMODE((tmp_path / FILE_NAME).stat().st_mode) == mode

    def test_a_new_file_obeys_the_umask(self, tmp_path):
        before = os.umask(0o027)
        try:
            save(tmp_path, self.dataset)
        finally:
            os.umask(before)
        assert stat.S_IMODE((tmp_path / FILE_NAME).stat().st_mode) == 0o640


KEYS = ("id", "scale", "dataLayers", "name", "mags", "factor")
json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=5), inner, max_size=2)
    ),
    max_leaves=4,
)
# Names that no field can ever stand for.
extras = st.dictionaries(st.text(max_size=5).map("x".__add__), json_values, max_size=2)
whole = st.integers(-(2**40), 2**40)
boxes = st.builds(
    BoundingBox, st.tuples(whole, whole, whole), st.tuples(*[st.integers(0, 2**40)] * 3)
)
mags = st.tuples(*[st.integers(1, 64)] * 3).map(Mag)
mag_entries = st.builds(MagProperties, mags, st.none() | st.text(max_size=9), extras)
layer_names = st.from_regex(r"[a-zA-Z0-9_\-][a-zA-Z0-9_.\- ]{0,8}", fullmatch=True)
layers = st.builds(
    LayerProperties,
    name=layer_names,
    category=st.sampled_from(["color", "segmentation"]),
    bounding_box=boxes,
    dtype=st.sampled_from(DTYPES),
    num_channels=st.integers(1, 255),
    data_format=st.sampled_from(["wkw", "zarr3"]),
    mags=st.lists(mag_entries, max_size=3, unique_by=lambda entry: entry.mag).map(tuple),
    largest_segment_id=st.none() | st.integers(-1, 2**64),
    extra=extras,
)
lengths = st.floats(min_value=1e-300, max_value=1e300)
datasets = st.builds(
    DatasetProperties,
    name=st.text(max_size=9),
    voxel_size=st.tuples(lengths, lengths, lengths),
    unit=st.sampled_from(UNITS),
    layers=st.lists(layers, max_size=2, unique_by=lambda layer: layer.name).map(tuple),
    team=st.text(max_size=9),
    extra=extras,
)


class TestRoundTrips:
    @given(datasets)
    @settings(max_examples=150, deadline=None)
    def test_render_then_parse(self, dataset):
        assert parse(render(dataset), "text") == dataset

    @given(st.data())
    @settings(max_examples=100, deadline=None)
    def test_unknown_keys_survive_wherever_they_are(self, data):
        value = copy.deepcopy(CURRENT)
        layer = value["dataLayers"][0]
        layer["mags"].reverse()
        for place in (value, value["id"], value["scale"], layer, layer["boundingBox"]):
            place.update(data.draw(extras))
        layer["mags"][0].update(data.draw(extras))
        assert json.loads(render(parse(json.dumps(value), "text"))) == value

    @given(st.recursive(json_values, lambda v: st.dictionaries(st.sampled_from(KEYS), v)))
    @settings(max_examples=150, deadline=None)
    def test_any_json_is_read_or_refused_with_our_error(self, value):
        with contextlib.suppress(PropertiesError):
            parse(json.dumps(value), "text")

    @given(st.data())
    @settings(max_examples=150, deadline=None)
    def test_any_value_in_any_place_is_read_or_refused_with_our_error(self, data):
        value = copy.deepcopy(CURRENT)
        node: Any = value
        while True:
            key = data.draw(
                st.sampled_from(range(len(node)) if isinstance(node, list) else [*node])
            )
            if not node[key] or not isinstance(node[key], list | dict) or data.draw(st.booleans()):
                break
            node = node[key]
        node[key] = data.draw(json_values)
        try:
            dataset = parse(json.dumps(value), "text")
        except PropertiesError:
            return
        assert parse(render(dataset), "text") == dataset


@pytest.fixture(scope="module")
def wk() -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return pytest.importorskip("webknossos")


# webknossos refuses to create these itself, but reads them.
NOT_CREATED = [("color", dtype) for dtype in ("uint64", "int64", "float64")] + [
    ("segmentation", dtype) for dtype in ("float32", "float64")
]
VOXELS = [
    (category, dtype, channels)
    for category in ("color", "segmentation")
    for dtype in DTYPES
    for channels in (1, 2, 3)
]


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")
class TestOracle:
    """The `webknossos` library reads what we write, and the reverse, with the same values."""

    def test_what_webknossos_writes(self, wk, tmp_path):
        size = wk.VoxelSize((4.5, 4.5, 30), wk.LengthUnit.MICROMETER)
        theirs = wk.Dataset(tmp_path / "theirs", voxel_size_with_unit=size)
        created = [row for row in VOXELS if row[:2] not in NOT_CREATED]
        assert len(created) == len(VOXELS) - 3 * len(NOT_CREATED)
        for category, dtype, channels in created:
            layer = theirs.add_layer(
                f"{category}_{dtype}_{channels}",
                category,
                data_format="wkw",
                num_channels=channels,
                dtype_per_channel=dtype,
            )
            layer.bounding_box = wk.BoundingBox((1, 2, channels), (10, 20, 30))
        layer.largest_segment_id = 2**64 - 1
        for mag in ("4-4-1", 2, 1):
            layer.add_mag(mag, chunk_shape=32, shard_shape=64)
        ours = load(tmp_path / "theirs")
        assert (ours.name, ours.voxel_size, ours.unit) == ("theirs", (4.5, 4.5, 30), "micrometer")
        for layer, row in zip(ours.layers, created, strict=True):
            assert (layer.category, layer.dtype, layer.num_channels) == row
            assert layer.bounding_box == BoundingBox((1, 2, row[2]), (10, 20, 30))
        assert ours.layers[-1].largest_segment_id == 2**64 - 1
        assert [str(entry.mag) for entry in ours.layers[-1].mags] == ["1", "2", "4-4-1"]
        assert ours.layers[-1].mags[0].extra["cubeLength"] == 64
        theirs_json = json.loads((tmp_path / "theirs" / FILE_NAME).read_text())
        theirs_json["dataLayers"][-1]["mags"].sort(key=lambda entry: entry["mag"])
        assert json.loads(render(ours)) == theirs_json

    def test_what_we_write(self, wk, tmp_path):
        ours = DatasetProperties(
            "ours",
            (4.5, 4.5, 30),
            "micrometer",
            tuple(
                LayerProperties(f"{category}_{dtype}_{n}", category, BOX, dtype, n)
                for category, dtype, n in VOXELS
            ),
        )
        save(tmp_path, ours)
        theirs = wk.Dataset.open(tmp_path)
        assert tuple(theirs.voxel_size_with_unit.factor) == ours.voxel_size
        assert theirs.voxel_size_with_unit.unit.value == ours.unit
        for layer in ours.layers:
            other = theirs.get_layer(layer.name)
            assert (str(other.dtype_per_channel), other.num_channels) == (
                layer.dtype,
                layer.num_channels,
            )
            assert other.category == layer.category
            assert tuple(other.bounding_box.topleft) == layer.bounding_box.topleft
            assert tuple(other.bounding_box.size) == layer.bounding_box.size

    @pytest.mark.parametrize("largest", [None, 7, 2**53, 2**64 - 1])
    def test_what_we_save_again(self, wk, tmp_path, largest):
        theirs = wk.Dataset(tmp_path, voxel_size=(1, 2, 3))
        layer = theirs.add_layer(
            "cells", "segmentation", data_format="wkw", dtype_per_channel="uint64"
        )
        layer.add_mag("2-2-1", chunk_shape=32, shard_shape=32)
        layer.add_mag(1, chunk_shape=32, shard_shape=32)
        ours = load(tmp_path)
        cells = dataclasses.replace(
            ours.layer("cells"), largest_segment_id=largest, bounding_box=BOX
        )
        save(tmp_path, ours.with_layer(cells))
        again = wk.Dataset.open(tmp_path).get_layer("cells")
        assert again.largest_segment_id == largest
        assert sorted(str(mag) for mag in again.mags) == ["1", "2-2-1"]
        assert tuple(again.bounding_box.size) == (64, 64, 64)

    def test_units(self, wk):
        assert {unit.value for unit in wk.LengthUnit} == set(UNITS)

    @pytest.mark.parametrize("name", ["a.b", "-a", "_", "a$"])
    def test_names_that_webknossos_creates_are_good(self, wk, tmp_path, name):
        wk.Dataset(tmp_path, voxel_size=(1, 1, 1)).add_layer(name, "color", data_format="wkw")
        assert load(tmp_path).layers[0].name == name


@pytest.mark.parametrize(
    ("dtype", "bits"), [(dtype, int(dtype.lstrip("uintfloa"))) for dtype in DTYPES]
)
@pytest.mark.parametrize("channels", [1, 2, 3, 31])
def test_element_class_counts_all_bits(dtype, bits, channels):
    name = element_class(dtype, channels)
    total = {"float": 32, "double": 64}.get(name) or int(name.lstrip("uintfloa"))
    assert total == bits * channels
    layer = layer_of(elementClass=name, numChannels=channels)
    assert (layer.dtype, layer.num_channels) == (dtype, channels)
