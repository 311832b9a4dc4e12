"""`MagView.compress`, `MagView.rechunk` and `wkdask.copy`: the same voxels, stored otherwise."""

from __future__ import annotations

import json
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import wkdask
from wkdask import errors
from wkdask.geometry import BoundingBox
from wkdask.pyramid import rewrite as rewriting
from wkdask.storage import atomic
from wkdask.storage.reader import WkwFile

BOX = BoundingBox((3, 5, 2), (40, 20, 30))
SMALL: dict[str, Any] = {"block_edge": 4, "blocks_per_file_edge": 2}


@pytest.fixture
def dataset(tmp_path: Path) -> wkdask.Dataset:
    ds = wkdask.create(tmp_path / "a", (4, 4, 40))
    rng = np.random.default_rng(0)
    for name, category, dtype, channels in (
        ("color", "color", "uint8", 3),
        ("cells", "segmentation", "uint32", 1),
    ):
        layer = ds.add_layer(name, category, dtype, channels, BOX)
        voxels = rng.integers(0, 9, (channels, *BOX.size)).astype(dtype)
        voxels[:, :16] = 0
        layer.add_mag(1, **SMALL, block_type="raw").get_view().write(voxels)
        layer.downsample(mags=["2-2-1"], block_type="lz4")
    ds["cells"].largest_segment_id = 8
    return ds


def everything(view: wkdask.MagView) -> Any:
    return view.read(BoundingBox((0, 0, 0), (1, 1, 1)).topleft, (64, 64, 64))


class TestCompress:
    @pytest.mark.parametrize("block_type", ["raw", "lz4", "lz4hc"])
    @pytest.mark.parametrize("mag", ["1", "2-2-1"])
    def test_voxels_stay(self, dataset: wkdask.Dataset, block_type: Any, mag: str) -> None:
        view = dataset["color"][mag]
        before = everything(view)
        files = {cell for cell, _ in view.volume.files()}
        report = view.compress(block_type)
        assert report.ok
        assert np.array_equal(everything(view), before)
        again = wkdask.open(dataset.path)["color"][mag]
        assert again.volume.header.block_type == block_type
        assert np.array_equal(everything(again), before)
        assert {cell for cell, _ in again.volume.files()} == files
        for cell in files:
            with WkwFile.open(again.volume.file_path(cell), again.volume.header) as file:
                assert file.header.block_type == block_type
        assert wkdask.check(dataset.path).ok

    def test_an_interrupted_run_leaves_what_can_be_read(self, dataset: wkdask.Dataset) -> None:
        view = dataset["color"][1]
        before = everything(view)
        broken = sorted(Path(view.path).rglob("x3.wkw"))[-1]
        good = broken.read_bytes()
        broken.write_bytes(good[:20])
        with ThreadPoolExecutor(1) as one, pytest.raises(errors.FormatError, match="x3"):
            view.compress(executor=one)
        assert broken.read_bytes() == good[:20]
        broken.write_bytes(good)
        assert np.array_equal(everything(wkdask.open(dataset.path)["color"][1]), before)
        view.compress()
        assert np.array_equal(everything(wkdask.open(dataset.path)["color"][1]), before)

    def test_of_a_cluster(self, dataset: wkdask.Dataset, client: Any) -> None:
        view = dataset["cells"][1]
        before = everything(view)
        view.compress(executor=client)
        assert np.array_equal(everything(view), before)

    def test_refused(self, dataset: wkdask.Dataset, snapshot: Any) -> None:
        before = snapshot(dataset.path)
        with pytest.raises(errors.ArgumentError, match="lz4hc"):
            dataset["color"][1].compress("zip")  # type: ignore[arg-type]
        with pytest.raises(errors.ArgumentError, match="executor"):
            dataset["color"][1].compress(executor=3)  # type: ignore[arg-type]
        assert snapshot(dataset.path) == before


class TestRechunk:
    @pytest.mark.parametrize("can_exchange", [True, False])
    @pytest.mark.parametrize(
        ("keys", "file_edge"),
        [
            ({"block_edge": 8}, 16),
            ({"blocks_per_file_edge": 8, "block_type": "lz4hc"}, 32),
            pytest.param({"block_edge": 2, "blocks_per_file_edge": 1}, 2, marks=pytest.mark.slow),
            ({}, 8),
        ],
    )
    def test_voxels_stay(
        self,
        dataset: wkdask.Dataset,
        monkeypatch: pytest.MonkeyPatch,
        can_exchange: bool,
        keys: dict[str, Any],
        file_edge: int,
    ) -> None:
        if not can_exchange:
            monkeypatch.setattr(atomic, "_function", lambda _: None)
        view = dataset["color"][1]
        Path(view.path, "notes.txt").write_text("mine")
        before = everything(view)
        view.rechunk(**keys)
        assert np.array_equal(everything(view), before)
        again = wkdask.open(dataset.path)["color"][1]
        assert again.volume.header.file_edge == file_edge
        assert np.array_equal(everything(again), before)
        assert Path(view.path, "notes.txt").read_text() == "mine"
        entries = sorted(each.name for each in (dataset.path / "color").iterdir())
        assert entries == ["1", "2-2-1"]
        said = json.loads((dataset.path / "datasource-properties.json").read_text())
        mags = next(each for each in said["dataLayers"] if each["name"] == "color")["mags"]
        assert next(m for m in mags if m["mag"] == [1, 1, 1])["cubeLength"] == file_edge

    def test_a_file_that_can_not_be_read(self, dataset: wkdask.Dataset, snapshot: Any) -> None:
        view = dataset["color"][1]
        next(Path(view.path).rglob("x3.wkw")).write_bytes(b"WKW")
        before = snapshot(dataset.path)
        with pytest.raises(errors.FormatError, match="x3"):
            view.rechunk(blocks_per_file_edge=4)
        assert snapshot(dataset.path) == before

    def test_a_rename_that_fails(
        self, dataset: wkdask.Dataset, snapshot: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        view = dataset["color"][1]
        before = snapshot(dataset.path)

        def fail(*_: str) -> bool:
            raise OSError(5, "broken")

        monkeypatch.setattr(rewriting, "_exchange", fail)
        with pytest.raises(errors.StorageError):
            view.rechunk(block_edge=8)
        assert snapshot(dataset.path) == before

    def test_refused(self, dataset: wkdask.Dataset, snapshot: Any) -> None:
        before = snapshot(dataset.path)
        with pytest.raises(errors.ArgumentError, match="block_edge"):
            dataset["color"][1].rechunk(block_edge=3)
        assert snapshot(dataset.path) == before

    @pytest.mark.parametrize("can_exchange", [True, False])
    def test_a_link_stays_one(
        self, dataset: wkdask.Dataset, monkeypatch: pytest.MonkeyPatch, can_exchange: bool
    ) -> None:
        if not can_exchange:
            monkeypatch.setattr(rewriting, "try_exchange", lambda *_: False)
        view = dataset["color"][1]
        before = everything(view)
        link, home = Path(view.path), dataset.path / "elsewhere"
        link.rename(home)
        link.symlink_to(home)
        assert wkdask.open(dataset.path)["color"][1].rechunk(8).ok
        assert link.is_symlink()
        assert np.array_equal(everything(wkdask.open(dataset.path)["color"][1]), before)
        assert not list(dataset.path.rglob("*rechunked*"))

    def test_what_a_killed_run_left_is_deleted(self, dataset: wkdask.Dataset) -> None:
        view = dataset["color"][1]
        left, foreign = Path(f"{view.path}.{'0' * 32}.rechunked"), Path(f"{view.path}.1.rechunked")
        for directory in (left, foreign):
            shutil.copytree(view.path, directory)
            (directory / "z0" / "notes.txt").write_text("by a user")
        assert view.rechunk(8).ok
        assert list(dataset.path.rglob("*rechunked*")) == [foreign]
        assert (Path(view.path) / "z0" / "notes.txt").read_text() == "by a user"

    def test_what_a_user_put_into_the_mag_stays(self, dataset: wkdask.Dataset) -> None:
        view = dataset["color"][1]
        texts = [Path(view.path, *place, "notes.txt") for place in ((), ("sub",), ("z0", "y0"))]
        for text in texts:
            text.parent.mkdir(parents=True, exist_ok=True)
            text.write_text("by a user")
        Path(view.path, "empty").mkdir()
        assert view.rechunk(8).ok
        assert [text.read_text() for text in texts] == ["by a user"] * 3
        assert Path(view.path, "empty").is_dir()

    def test_read_only(self, dataset: wkdask.Dataset, tmp_path: Path) -> None:
        said = dataset.path / "datasource-properties.json"
        (dataset.path / "color" / "1").rename(tmp_path / "elsewhere")
        (dataset.path / "color" / "1").symlink_to(tmp_path / "elsewhere")
        assert said.exists()
        view = wkdask.open(dataset.path)["color"][1]
        for attempt in (view.compress, view.rechunk):
            with pytest.raises(errors.ReadOnlyError):
                attempt()


class TestCopy:
    def test_a_dataset(self, dataset: wkdask.Dataset, tmp_path: Path) -> None:
        report = wkdask.copy(dataset, tmp_path / "b", block_type="lz4hc")
        assert report.ok
        copied = wkdask.open(tmp_path / "b")
        assert wkdask.equal(dataset, copied)
        assert copied["cells"].largest_segment_id == 8
        assert copied["color"][1].volume.header.block_type == "lz4hc"
        assert wkdask.check(copied.path).ok
        with pytest.raises(errors.ExistsError):
            wkdask.copy(dataset, tmp_path / "b")

    def test_resumed(self, dataset: wkdask.Dataset, tmp_path: Path) -> None:
        broken = sorted(Path(dataset["cells"][1].path).rglob("x3.wkw"))[-1]
        good = broken.read_bytes()
        broken.write_bytes(b"WKW")
        with ThreadPoolExecutor(1) as one, pytest.raises(errors.FormatError):
            wkdask.copy(dataset, tmp_path / "b", resume=True, executor=one)
        assert "color" in wkdask.open(tmp_path / "b").layers
        broken.write_bytes(good)
        assert wkdask.copy(dataset, tmp_path / "b", resume=True).skipped
        assert wkdask.equal(dataset, wkdask.open(tmp_path / "b"))

    def test_a_layer_under_another_name(self, dataset: wkdask.Dataset) -> None:
        wkdask.copy(dataset["cells"], dataset, layer_name="more cells")
        assert list(dataset["more cells"].mags) == list(dataset["cells"].mags)
        assert wkdask.equal(dataset["cells"][1], dataset["more cells"][1])

    @pytest.mark.parametrize("block_type", ["raw", "lz4"])
    def test_a_box(self, dataset: wkdask.Dataset, block_type: Any) -> None:
        source = dataset["color"][1].get_view((4, 6, 3), (30, 11, 20))
        layer = dataset.add_layer("other", "color", "uint8", 3, BoundingBox((0, 0, 0), (50,) * 3))
        target = layer.add_mag(1, **SMALL, block_type=block_type)
        target.get_view().write(np.full((3, 50, 50, 50), 77, np.uint8))
        wkdask.copy(source, target.get_view((9, 1, 2), (30, 11, 20)))
        expected = np.full((3, 50, 50, 50), 77, np.uint8)
        expected[:, 9:39, 1:12, 2:22] = source.read()
        assert np.array_equal(target.get_view().read(), expected)

    def test_refused(self, dataset: wkdask.Dataset, tmp_path: Path, snapshot: Any) -> None:
        before = snapshot(tmp_path)
        view = dataset["color"][1]
        attempts = [
            (dataset, dataset, "can't be copied"),
            (dataset["color"], tmp_path / "c", "can't be copied"),
            (view, dataset["cells"][1], "Both must"),
            (view.get_view((4, 6, 3), (9, 9, 9)), view.get_view((5, 6, 3), (9, 9, 9)), "overlap"),
        ]
        for source, target, match in attempts:
            with pytest.raises(errors.ArgumentError, match=match):
                wkdask.copy(source, target)  # type: ignore[arg-type]
        with pytest.raises(errors.ExistsError, match="layer_name"):
            wkdask.copy(dataset["color"], dataset)
        keys: dict[str, Any] = {"block_type": "zip"}
        with pytest.raises(errors.ArgumentError, match="block_type"):
            wkdask.copy(dataset, tmp_path / "c", **keys)
        with pytest.raises(errors.ArgumentError, match="block_type"):
            wkdask.copy(dataset["color"], dataset, layer_name="c", **keys)
        header = dataset.path / "cells" / "1" / "header.wkw"
        header.rename(header.with_name("gone"))
        with pytest.raises(errors.MissingError, match=r"header\.wkw"):
            wkdask.copy(dataset, tmp_path / "c")
        header.with_name("gone").rename(header)
        assert snapshot(tmp_path) == before
