"""Datasets that somebody else made, or broke: an answer at once, little memory, one clear error."""

from __future__ import annotations

import contextlib
import json
import os
import resource
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import wkdask
from wkdask.errors import WkdaskError
from wkdask.storage.volume import JOURNALS_NAME

JSON = "datasource-properties.json"
HEADER = "color/1/header.wkw"
FILE = "color/1/z0/y0/x0.wkw"
EDGE = 16


@pytest.fixture
def path(tmp_path: Path) -> Path:
    dataset = wkdask.create(tmp_path / "tissue", voxel_size=(8, 8, 8))
    box = wkdask.BoundingBox((0, 0, 0), (EDGE,) * 3)
    for name in ("color", "other"):
        mag = dataset.add_layer(name, "color", "uint8", bounding_box=box).add_mag(1, 8, 2)
        mag.write(np.full((EDGE,) * 3, 7, np.uint8))
    return dataset.path


def fifo(place: Path) -> None:
    os.mkfifo(place)


def zeros(place: Path) -> None:
    place.symlink_to("/dev/zero")


def huge(place: Path) -> None:
    with open(place, "wb") as file:
        file.truncate(2**42)


def socket(place: Path) -> None:
    os.mknod(place, 0o600 | 0o140000)


def loop(place: Path) -> None:
    place.symlink_to(place)


SPECIAL: list[Callable[[Path], None]] = [fifo, zeros, huge, socket, loop]


@pytest.fixture
def at_once() -> Iterator[None]:
    """Fail if a test takes long, or much memory."""
    start, before = time.perf_counter(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    yield
    assert time.perf_counter() - start < 20
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 300 * 1024


def uses(path: Path) -> list[Callable[[], Any]]:
    """Ways to look at a dataset."""
    return [
        lambda: wkdask.open(path)["color"][1].read((0, 0, 0), (EDGE,) * 3).sum(),
        lambda: wkdask.check(path, level=2).as_dict(),
        lambda: xr.open_dataset(path, engine="wkw")["color"].sum().item(),
        lambda: wkdask.equal(wkdask.open(path), wkdask.open(path)),
        lambda: wkdask.open_mag(path / "color" / "1").read().sum(),
    ]


@pytest.mark.usefixtures("at_once")
@pytest.mark.filterwarnings("ignore:left out")
class TestSpecialFiles:
    @pytest.mark.parametrize("make", SPECIAL)
    @pytest.mark.parametrize("name", [JSON, HEADER, FILE])
    def test_in_place_of_a_file(self, path: Path, name: str, make: Callable[[Path], None]) -> None:
        (path / name).unlink()
        make(path / name)
        raised = []
        for use in uses(path):
            try:
                use()
            except WkdaskError as error:
                raised.append(str(error))
        # `huge` in place of a file has no whole header, and the bare mag needs no JSON.
        assert len(raised) >= 2
        assert any(Path(name).name in text for text in raised)

    @pytest.mark.parametrize("make", [fifo, zeros, huge])
    @pytest.mark.parametrize("name", ["all", "0/0.json"])
    def test_in_place_of_a_journal(
        self, path: Path, name: str, make: Callable[[Path], None]
    ) -> None:
        mag = wkdask.open(path)["color"][1]

        def work(chunk: Any) -> None:
            chunk[0].write(np.full(chunk[0].size, 9, np.uint8))

        mag.for_each_chunk(work, resume="job")
        place = Path(mag.path, JOURNALS_NAME, "job", name)
        place.parent.mkdir(exist_ok=True)
        place.unlink(missing_ok=True)
        make(place)
        with contextlib.suppress(WkdaskError):
            mag.for_each_chunk(work, resume="job")

    @pytest.mark.parametrize("make", [fifo, zeros, huge])
    def test_in_place_of_a_claim(self, path: Path, make: Callable[[Path], None]) -> None:
        make(path / "color" / "1.claim.wkdask-tmp")
        with pytest.raises(WkdaskError, match="rechunked"):
            wkdask.open(path)["color"][1].rechunk(8)


BAD_LAYERS: list[Any] = [
    None, 3, "color", [], {}, {"name": "x"}, {"name": 7}, {"name": "../x"}, {"name": "color"},
]  # fmt: skip
BAD_VALUES: list[tuple[str, Any]] = [
    ("category", "raw"), ("category", None), ("elementClass", "uint48"), ("elementClass", 8),
    ("boundingBox", None), ("boundingBox", {"topLeft": [0, 0, 0], "width": "a"}),
    ("boundingBox", {"topLeft": [0, 0], "width": 1, "height": 1, "depth": 1}),
    ("dataFormat", None), ("mags", 3), ("numChannels", -1), ("largestSegmentId", "many"),
    ("name", ""), ("name", "a/b"), ("name", "\x00"),
]  # fmt: skip


@pytest.mark.usefixtures("at_once")
@pytest.mark.filterwarnings("ignore:left out")
class TestOneBadLayer:
    def check(self, path: Path, said: dict[str, Any]) -> None:
        """All others can be used, and the JSON keeps what it said of the bad one."""
        text = json.dumps(said)
        (path / JSON).write_text(text)
        dataset = wkdask.open(path)
        assert dataset["other"][1].read((0, 0, 0), (EDGE,) * 3).min() == 7
        assert "other" in repr(dataset)
        assert set(xr.open_dataset(path, engine="wkw").data_vars) >= {"other"}
        assert not wkdask.check(path).ok
        dataset["other"].largest_segment_id = 5
        kept = json.loads((path / JSON).read_text())["dataLayers"]
        assert [kept[at] for at in (0, 2)] == [said["dataLayers"][at] for at in (0, 2)]

    def said(self, path: Path) -> dict[str, Any]:
        value: dict[str, Any] = json.loads((path / JSON).read_text())
        value["dataLayers"].insert(2, {})
        return value

    @pytest.mark.parametrize("layer", BAD_LAYERS, ids=str)
    def test_that_is_no_layer(self, path: Path, layer: Any) -> None:
        said = self.said(path)
        said["dataLayers"][0] = layer
        if layer == {"name": "color"}:
            said["dataLayers"][2] = {"name": "color"}
        self.check(path, said)

    @pytest.mark.parametrize(("key", "value"), BAD_VALUES, ids=str)
    def test_with_a_bad_value(self, path: Path, key: str, value: Any) -> None:
        said = self.said(path)
        said["dataLayers"][0][key] = value
        self.check(path, said)

    @settings(
        max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
    )
    @given(data=st.data())
    def test_any_value_anywhere(self, path: Path, data: st.DataObject) -> None:
        self.look(path, data)

    @pytest.mark.slow
    @settings(
        max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
    )
    @given(data=st.data())
    def test_200_datasets_answer_at_once(self, path: Path, data: st.DataObject) -> None:
        start = time.perf_counter()
        self.look(path, data)
        assert time.perf_counter() - start < 2

    def look(self, path: Path, data: st.DataObject) -> None:
        """Put any value anywhere in the first layer, and look at what is left."""
        said = json.loads((path / JSON).read_text())
        original = json.dumps(said)
        values = st.recursive(
            st.none() | st.booleans() | st.integers() | st.text(max_size=3),
            lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner),
            max_leaves=4,
        )
        node = said["dataLayers"][0]
        key = data.draw(st.sampled_from(list(node)))
        if isinstance(node[key], dict) and data.draw(st.booleans()):
            node = node[key]
            key = data.draw(st.sampled_from(list(node)))
        node[key] = data.draw(values)
        (path / JSON).write_text(json.dumps(said))
        try:
            dataset = wkdask.open(path)
            assert dataset["other"][1].read((0, 0, 0), (EDGE,) * 3).min() == 7
            repr(dataset)
            dataset._repr_html_()
            wkdask.check(path)
            for name in ("color", *dataset.layers):
                try:
                    dataset[name]._repr_html_()
                    dataset[name][1].read((0, 0, 0), (EDGE,) * 3)
                except WkdaskError:
                    continue
        finally:
            (path / JSON).write_text(original)


class TestTrailingBytes:
    @pytest.mark.parametrize("block_type", ["raw", "lz4"])
    @pytest.mark.parametrize("more", [1, 10**12])
    def test_are_found(self, path: Path, block_type: Any, more: int) -> None:
        wkdask.open(path)["color"][1].compress(block_type)
        assert not wkdask.check(path).findings
        os.truncate(path / FILE, (path / FILE).stat().st_size + more)
        report = wkdask.check(path)
        [finding] = report.findings
        assert (finding.kind, report.ok) == ("trailing", True)
        assert f"{more:,} bytes behind its last block" in finding.text
        assert wkdask.open(path)["color"][1].read((0, 0, 0), (EDGE,) * 3).min() == 7


@pytest.mark.parametrize(
    "address", ["https://x.org/d", "s3://bucket/d", "gs://bucket/d", "file:///tmp/d"]
)
def test_remote_paths_are_told(path: Path, address: str) -> None:
    for use in (wkdask.check, wkdask.journals):
        with pytest.raises(WkdaskError, match="remote"):
            use(address)
    for target in (address, f"{address}.zarr"):
        with pytest.raises(WkdaskError, match="remote"):
            wkdask.convert(path, target)
    assert not list(path.parent.glob("*:*"))


@pytest.mark.parametrize("address", ["ftp://127.0.0.1:9/1", "http://127.0.0.1:9/1"])
def test_mags_elsewhere_hide_no_others(path: Path, address: str) -> None:
    said = json.loads((path / JSON).read_text())
    said["dataLayers"][0]["mags"][0]["path"] = address
    (path / JSON).write_text(json.dumps(said))
    quick = {"retry_config": {"max_retries": 0}}
    dataset = wkdask.open(path, storage_options=quick)
    with pytest.raises(WkdaskError, match=address.partition(":")[0]):
        dataset["color"][1]
    assert dataset["other"][1].read((0, 0, 0), (EDGE,) * 3).min() == 7
