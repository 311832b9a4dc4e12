"""`Layer.downsample` and `Layer.upsample`: pyramids in one run, resumed, interrupted, refused."""

from __future__ import annotations

import json
import shutil
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import wkdask
from wkdask import errors, kernels
from wkdask.geometry import BoundingBox, Mag
from wkdask.pyramid import fill as filling
from wkdask.pyramid import sampling
from wkdask.pyramid.fill import Step, fill_volumes
from wkdask.storage import writer as filewriter
from wkdask.storage.header import VolumeHeader
from wkdask.storage.wkw import WkwVolume

Voxels = np.ndarray[Any, np.dtype[Any]]
SMALL: dict[str, Any] = {"block_edge": 4, "blocks_per_file_edge": 2}
"""Files of 8 voxels per edge."""
OFFSET = (5, 2, 9)
SIZE = (43, 22, 27)


def new_layer(
    path: Path,
    voxels: Voxels,
    topleft: Any = OFFSET,
    category: str = "color",
    mag: Any = 1,
    voxel_size: Any = (8, 8, 8),
) -> wkdask.Layer:
    ds = wkdask.create(path, voxel_size)
    box = BoundingBox(topleft, voxels.shape[1:]).scaled_by(Mag(mag))
    layer = ds.add_layer("a", category, voxels.dtype, len(voxels), box)
    layer.add_mag(mag, **SMALL, block_type="lz4").get_view().write(voxels)
    return layer


def random_voxels(
    dtype: str = "uint8", channels: int = 1, size: Any = SIZE, seed: int = 0
) -> Voxels:
    rng = np.random.default_rng(seed)
    high = 5 if np.dtype(dtype).kind in "ui" and np.dtype(dtype).itemsize > 1 else 250
    return rng.integers(0, high, (channels, *size)).astype(dtype)


def whole(layer: wkdask.Layer, mag: Any) -> Voxels:
    view = layer[mag]
    return view.read(view.bounding_box.topleft, view.bounding_box.size)


def one_step(voxels: Voxels, topleft: Any, factors: Any, mode: str) -> Voxels:
    """Downsample a whole layer at once: pad by mirroring, and run the kernel."""
    around = kernels.halo(mode, factors)
    axes = list(zip(topleft, voxels.shape[1:], factors, around, strict=True))
    pads = [(start % f + h, -(start + size) % f + h) for start, size, f, h in axes]
    padded = np.pad(voxels, [(0, 0), *pads], mode="symmetric")
    return kernels.downsample(padded, factors, mode)


def steps(voxels: Voxels, topleft: Any, mags: list[str], mode: str) -> list[Voxels]:
    found, before = [], Mag(1)
    for mag in map(Mag, mags):
        factors = mag.factors_from(before)
        voxels = one_step(voxels, topleft, factors, mode)
        topleft = [at // f for at, f in zip(topleft, factors, strict=True)]
        found.append(voxels)
        before = mag
    return found


@pytest.fixture(params=[1, 4])
def threads(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    """How many threads write one file; if several, of pieces of one block each."""
    if request.param > 1:
        monkeypatch.setattr(filewriter, "_PIECE_BYTES", 1)
        monkeypatch.setattr(filewriter, "_cores", lambda: request.param)
        monkeypatch.setattr(filling, "threads_of", lambda _: 100)
    return int(request.param)


class TestDownsample:
    @pytest.mark.parametrize("mode", sorted(kernels.MODES))
    @pytest.mark.parametrize(
        ("dtype", "channels", "block_type"),
        [("uint8", 1, "lz4hc"), ("uint16", 2, "raw"), ("float32", 1, "lz4")],
    )
    def test_values(
        self, tmp_path: Path, threads: int, mode: str, dtype: str, channels: int, block_type: Any
    ) -> None:
        voxels = random_voxels(dtype, channels)
        layer = new_layer(tmp_path / "a", voxels)
        mags = ["2", "4", "8"]
        report = layer.downsample(mags=mags, mode=mode, block_type=block_type)
        assert report.done == report.chunks == 18 + 4 + 1
        for mag, expected in zip(mags, steps(voxels, OFFSET, mags, mode), strict=True):
            np.testing.assert_array_equal(whole(layer, mag), expected)
        assert not list(tmp_path.rglob("*wkdask-tmp"))

    @pytest.mark.parametrize("mags", [["2-2-1", "4-4-2"], ["3"], ["8"], ["1-1-2", "4-2-4"]])
    @pytest.mark.parametrize("mode", ["median", "bicubic", "bilinear"])
    def test_factors(self, tmp_path: Path, threads: int, mags: list[str], mode: str) -> None:
        voxels = random_voxels()
        layer = new_layer(tmp_path / "a", voxels)
        layer.downsample(mags=mags, mode=mode)
        for mag, expected in zip(mags, steps(voxels, OFFSET, mags, mode), strict=True):
            np.testing.assert_array_equal(whole(layer, mag), expected)

    @settings(max_examples=15, deadline=None, suppress_health_check=list(HealthCheck))
    @given(
        st.tuples(*[st.integers(0, 20)] * 3),
        st.tuples(*[st.integers(1, 30)] * 3),
        st.sampled_from(["median", "mode", "bicubic"]),
        st.integers(1, 2000),
    )
    def test_any_box(
        self, tmp_path_factory: Any, topleft: Any, size: Any, mode: str, piece_bytes: int
    ) -> None:
        voxels = random_voxels(size=size)
        layer = new_layer(tmp_path_factory.mktemp("a") / "a", voxels, topleft)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(sampling, "_SOURCE_BYTES", piece_bytes)
            layer.downsample(mags=[2, 4], mode=mode)
        for mag, expected in zip((2, 4), steps(voxels, topleft, ["2", "4"], mode), strict=True):
            np.testing.assert_array_equal(whole(layer, mag), expected)

    def test_the_mags_fit_the_voxels(self, tmp_path: Path) -> None:
        layer = new_layer(tmp_path / "a", random_voxels(), voxel_size=(11.24, 11.24, 25))
        layer.downsample(coarsest_mag=8)
        assert [str(mag) for mag in layer.mags] == ["1", "2-2-1", "4-4-2", "8-8-4"]

    def test_a_layer_of_depth_1_stays_flat(self, tmp_path: Path) -> None:
        voxels = random_voxels(size=(300, 40, 1))
        layer = new_layer(tmp_path / "a", voxels, (0, 0, 0))
        layer.downsample()
        assert [str(mag) for mag in layer.mags] == ["1", "2-2-1", "4-4-1"]
        expected = steps(voxels, (0, 0, 0), ["2-2-1"], "median")[0]
        np.testing.assert_array_equal(whole(layer, "2-2-1"), expected)

    def test_it_goes_on_from_the_coarsest(self, tmp_path: Path) -> None:
        voxels = random_voxels()
        layer = new_layer(tmp_path / "a", voxels)
        layer.downsample(mags=[2])
        layer.downsample(coarsest_mag=8)
        expected = steps(voxels, OFFSET, ["2", "4", "8"], "median")[-1]
        np.testing.assert_array_equal(whole(layer, 8), expected)

    def test_a_segmentation_keeps_its_ids(self, tmp_path: Path) -> None:
        voxels = random_voxels("uint32") * 1000
        layer = new_layer(tmp_path / "a", voxels, category="segmentation")
        for mode in ("median", "mean", "bilinear", "bicubic"):
            with pytest.raises(errors.ArgumentError, match=r"invent ids.*force=True"):
                layer.downsample(mode=mode)
        layer.downsample(mags=[2, 4])
        expected = steps(voxels, OFFSET, ["2", "4"], "mode")[-1]
        np.testing.assert_array_equal(whole(layer, 4), expected)
        assert layer.downsample(mags=[8], mode="median", force=True).done

    def test_missing_files_cost_nothing_and_write_nothing(self, tmp_path: Path) -> None:
        voxels = np.zeros((1, *SIZE), np.uint8)
        voxels[:, :3, :3, :3] = 9
        layer = new_layer(tmp_path / "a", voxels)
        layer.downsample(mags=[2])
        assert len(list((layer.dataset.path / "a" / "2").rglob("x*.wkw"))) == 1
        np.testing.assert_array_equal(whole(layer, 2), steps(voxels, OFFSET, ["2"], "median")[0])

    def test_json_and_files_are_webknossos(self, tmp_path: Path, webknossos: Any) -> None:
        voxels = random_voxels(size=(64, 64, 64))
        layer = new_layer(tmp_path / "a", voxels, (0, 0, 0))
        layer.downsample(mags=[2, 4])
        theirs = webknossos.Dataset.open(tmp_path / "a").get_layer("a")
        assert sorted(str(mag) for mag in theirs.mags) == ["1", "2", "4"]
        np.testing.assert_array_equal(theirs.get_mag(4).read(), whole(layer, 4))

    @pytest.mark.parametrize("where", ["threads", "cluster"])
    def test_executors(self, tmp_path: Path, client: Any, threads: int, where: str) -> None:
        voxels = random_voxels()
        layer = new_layer(tmp_path / "a", voxels)
        with ThreadPoolExecutor(3) as threads:
            layer.downsample(mags=[2, 4], executor=threads if where == "threads" else client)
        expected = steps(voxels, OFFSET, ["2", "4"], "median")[-1]
        np.testing.assert_array_equal(whole(layer, 4), expected)


class TestPlan:
    def test_nothing_is_touched(self, tmp_path: Path, snapshot: Any) -> None:
        layer = new_layer(tmp_path / "a", random_voxels(), voxel_size=(4, 4, 40))
        before = snapshot(tmp_path)
        plan = layer.downsample(coarsest_mag=4, dry_run=True)
        assert snapshot(tmp_path) == before
        assert [str(planned.mag) for planned in plan.mags] == ["2-2-1", "4-4-1"]
        assert plan.mags[0].voxel_size_nm == (8, 8, 40)
        assert plan.mags[0].box.size == (22, 11, 27)
        assert (plan.files, plan.mode) == (3 * 2 * 4 + 2 * 1 * 4, "median")
        assert "2-2-1" in str(plan)
        assert "<table>" in plan._repr_html_()
        assert json.loads(json.dumps(plan.as_dict()))["files"] == plan.files

    def test_in_other_units(self, tmp_path: Path) -> None:
        ds = wkdask.create(tmp_path / "a", (0.01, 0.01, 0.02), unit="micrometer")
        layer = ds.add_layer("a", "color", "uint8", bounding_box=BoundingBox((0, 0, 0), (8, 8, 8)))
        layer.add_mag(1)
        plan = layer.downsample(coarsest_mag=2, dry_run=True)
        assert plan.mags[0].voxel_size_nm == pytest.approx((20, 20, 20))


class TestRefused:
    @pytest.mark.parametrize(
        ("keys", "error", "match"),
        [
            ({"mode": "average"}, errors.ArgumentError, "one of default, median"),
            ({"mode": None}, errors.ArgumentError, "one of"),
            ({"sampling_mode": "cubic"}, errors.ArgumentError, "anisotropic, isotropic"),
            ({"block_type": "zip"}, errors.ArgumentError, "lz4hc"),
            ({"mags": []}, errors.ArgumentError, "empty"),
            ({"mags": [1]}, errors.ArgumentError, "there already"),
            ({"mags": [4, 6]}, errors.ArgumentError, "whole multiple"),
            ({"coarsest_mag": 1}, errors.ArgumentError, "nothing to make"),
            ({"from_mag": 16}, errors.NameLookupError, "no mag 16"),
            ({"executor": 3}, errors.ArgumentError, "executor"),
            ({"retries": -1}, errors.ArgumentError, "retries"),
            ({"resume": None}, errors.ArgumentError, "resume"),
            ({"mags": "16"}, errors.ArgumentError, "list of mags"),
            ({"mags": 2}, errors.ArgumentError, "list of mags"),
        ],
    )
    def test_arguments(
        self, tmp_path: Path, snapshot: Any, keys: dict[str, Any], error: Any, match: str
    ) -> None:
        layer = new_layer(tmp_path / "a", random_voxels(size=(9, 9, 9)))
        before = snapshot(tmp_path)
        with pytest.raises(error, match=match):
            layer.downsample(**keys)
        assert snapshot(tmp_path) == before

    def test_a_mag_that_is_there(self, tmp_path: Path, snapshot: Any) -> None:
        layer = new_layer(tmp_path / "a", random_voxels(size=(9, 9, 9)))
        layer.downsample(mags=[2])
        before = snapshot(tmp_path)
        with pytest.raises(errors.ExistsError, match="mag 2 already"):
            layer.downsample(from_mag=1, mags=[2, 4])
        with pytest.raises(errors.ExistsError, match="mag 2 already"):
            layer.downsample(from_mag=1, mags=[2, 4], dry_run=True)
        with pytest.raises(errors.ExistsError, match="no earlier run with resume=True"):
            layer.downsample(from_mag=1, mags=[2, 4], resume=True)
        assert snapshot(tmp_path) == before

    def test_a_directory_that_holds_voxels(self, tmp_path: Path, snapshot: Any) -> None:
        layer = new_layer(tmp_path / "a", random_voxels(size=(9, 9, 9)))
        root = layer.dataset.path / "a"
        shutil.copytree(root / "1", root / "4")
        before = snapshot(tmp_path)
        with pytest.raises(errors.ExistsError, match="holds voxels"):
            layer.downsample(mags=[2, 4])
        assert snapshot(tmp_path) == before

    def test_no_mag_and_no_box(self, tmp_path: Path) -> None:
        ds = wkdask.create(tmp_path / "a", (1, 1, 1))
        layer = ds.add_layer("a", "color", "uint8")
        with pytest.raises(errors.ArgumentError, match="no mag"):
            layer.downsample()
        layer.add_mag(1)
        with pytest.raises(errors.ArgumentError, match="empty bounding_box"):
            layer.downsample()


class TestFailures:
    def test_an_unreadable_file_leaves_the_dataset_as_it_was(
        self, tmp_path: Path, snapshot: Any, threads: int
    ) -> None:
        layer = new_layer(tmp_path / "a", random_voxels())
        broken = next((layer.dataset.path / "a" / "1").rglob("x3.wkw"))
        broken.write_bytes(b"WKW")
        before = snapshot(tmp_path)
        with pytest.raises(errors.FormatError, match=r"x3\.wkw") as caught:
            layer.downsample(mags=[2, 4])
        assert any("chunk" in note for note in caught.value.__notes__)
        assert snapshot(tmp_path) == before
        assert list(wkdask.open(tmp_path / "a")["a"].mags) == [Mag(1)]

    def test_no_part_is_left(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """Also of tasks that end when one beside them has failed."""
        monkeypatch.setattr(filewriter, "_PIECE_BYTES", 1)
        layer = new_layer(tmp_path / "a", random_voxels(size=(8, 8, 8)), (0, 0, 0))
        target = layer.add_mag(2, block_edge=2, blocks_per_file_edge=2)
        make, others = sampling.Downsampling.__call__, threading.Event()

        def fail_first(self: sampling.Downsampling, box: BoundingBox) -> Any:
            if box.topleft == (0, 0, 0):
                others.set()
                raise ValueError("first")
            others.wait(5)
            time.sleep(0.1)
            return make(self, box)

        monkeypatch.setattr(sampling.Downsampling, "__call__", fail_first)
        with pytest.raises(ValueError, match="first"):
            wkdask.downsample(layer[1], target)
        assert not list(tmp_path.rglob("*wkdask-tmp"))

    def test_resumed(self, tmp_path: Path, threads: int) -> None:
        voxels = random_voxels()
        layer = new_layer(tmp_path / "a", voxels)
        broken = sorted((layer.dataset.path / "a" / "1").rglob("x5.wkw"))[-1]
        good = broken.read_bytes()
        broken.write_bytes(b"WKW")
        with ThreadPoolExecutor(1) as one, pytest.raises(errors.FormatError):
            layer.downsample(mags=[2, 4], resume=True, executor=one)
        assert list(wkdask.open(tmp_path / "a")["a"].mags) == [Mag(1)]
        broken.write_bytes(good)
        report = layer.downsample(mags=[2, 4], resume=True)
        assert report.skipped > 0
        assert report.ok
        for mag, expected in zip((2, 4), steps(voxels, OFFSET, ["2", "4"], "median"), strict=True):
            np.testing.assert_array_equal(whole(layer, mag), expected)
        assert layer.downsample(from_mag=1, mags=[2, 4], resume=True).done == 0
        assert not list(tmp_path.rglob("*wkdask-tmp"))

    def test_what_is_made_of_a_file_that_was_made_again_is_made_again(self, tmp_path: Path) -> None:
        voxels = random_voxels()
        layer = new_layer(tmp_path / "a", voxels)
        layer.downsample(mags=[2, 4], resume=True)
        root = layer.dataset.path / "a"
        next((root / "2").rglob("x1.wkw")).unlink()
        report = layer.downsample(from_mag=1, mags=[2, 4], resume=True)
        assert report.done == 2
        np.testing.assert_array_equal(whole(layer, 2), steps(voxels, OFFSET, ["2"], "median")[0])

    def test_a_run_that_is_over(self, tmp_path: Path) -> None:
        layer = new_layer(tmp_path / "a", random_voxels(size=(9, 9, 9)))
        assert layer.downsample(resume=True).done
        again = layer.downsample(resume=True)
        assert again.ok
        assert again.chunks == 0
        with pytest.raises(errors.NothingToDoError):
            layer.downsample()

    def test_another_geometry_is_no_earlier_run(self, tmp_path: Path) -> None:
        layer = new_layer(tmp_path / "a", random_voxels(size=(9, 9, 9)))
        layer.downsample(mags=[2], resume=True)
        with pytest.raises(errors.ExistsError, match="same options"):
            layer.downsample(from_mag=1, mags=[2], resume=True, block_type="raw")


class TestUpsample:
    @pytest.mark.parametrize("mode", ["nearest", "bilinear"])
    @pytest.mark.parametrize("mags", [["2", "1"], ["1"], ["2-4-4", "2-2-1"]])
    def test_values(self, tmp_path: Path, threads: int, mode: str, mags: list[str]) -> None:
        voxels = random_voxels(size=(13, 7, 9))
        layer = new_layer(tmp_path / "a", voxels, (3, 0, 5), mag=4)
        layer.upsample(mags=mags, mode=mode)
        before = Mag(4)
        for mag in map(Mag, mags):
            factors = before.factors_from(mag)
            around = kernels.upsampling_halo(mode, factors)
            padded = np.pad(voxels, [(0, 0), *((h, h) for h in around)], mode="symmetric")
            voxels = kernels.upsample(padded, factors, mode)
            np.testing.assert_array_equal(whole(layer, mag), voxels)
            before = mag

    def test_the_defaults(self, tmp_path: Path) -> None:
        layer = new_layer(tmp_path / "a", random_voxels(size=(5, 5, 5)), mag=4)
        layer.upsample()
        assert [str(mag) for mag in layer.mags] == ["1", "2", "4"]
        np.testing.assert_array_equal(
            whole(layer, 1), whole(layer, 4).repeat(4, 1).repeat(4, 2).repeat(4, 3)
        )

    def test_ids_are_not_mixed(self, tmp_path: Path) -> None:
        layer = new_layer(
            tmp_path / "a", random_voxels("uint32", size=(5, 5, 5)), category="segmentation", mag=2
        )
        with pytest.raises(errors.ArgumentError, match="Use nearest"):
            layer.upsample(mode="bilinear")

    def test_of_views(self, tmp_path: Path) -> None:
        layer = new_layer(tmp_path / "a", random_voxels(size=(8, 8, 8)), (0, 0, 0), mag=2)
        layer.add_mag(1, **SMALL)
        part = layer[1].get_view((3, 4, 5), (6, 7, 8))
        wkdask.upsample(layer[2], part)
        expected = whole(layer, 2).repeat(2, 1).repeat(2, 2).repeat(2, 3)[:, 3:9, 4:11, 5:13]
        np.testing.assert_array_equal(part.read(), expected)
        with pytest.raises(errors.ArgumentError, match="only"):
            wkdask.upsample(layer[2].get_view((0, 0, 0), (4, 4, 4)), layer[1])


class _Counting:
    """Makes ones of boxes, and notes which files of the volume before were there."""

    def __init__(self, source: WkwVolume | None) -> None:
        self.source = source
        self.log: list[tuple[BoundingBox, bool]] = []

    def reads(self, box: BoundingBox) -> BoundingBox:
        return box.scaled_by((2, 2, 2))

    def __call__(self, box: BoundingBox) -> Voxels:
        is_there = self.source is None or not self.source.is_missing(self.reads(box))
        self.log.append((box, is_there))
        return np.ones((1, *box.size), np.uint8, order="F")


class TestOrder:
    def volumes(self, path: Path) -> list[WkwVolume]:
        header = VolumeHeader("uint8", 1, 4, 1, "lz4")
        return [WkwVolume.create(path / str(mag), header) for mag in (2, 4, 8)]

    def test_no_barrier_and_depth_first(self, tmp_path: Path) -> None:
        made: list[str] = []

        def counting(name: str, source: WkwVolume | None) -> _Counting:
            counter = _Counting(source)
            call = type(counter).__call__

            class Noting(_Counting):
                def __call__(self, box: BoundingBox) -> Voxels:
                    made.append(name)
                    return call(self, box)

            return Noting(source)

        two, four, eight = self.volumes(tmp_path)
        makings = [counting("2", None), counting("4", two), counting("8", four)]
        boxes = [BoundingBox((0, 0, 0), (edge,) * 3) for edge in (32, 16, 8)]
        todo = [
            Step(volume, box, making)
            for volume, box, making in zip((two, four, eight), boxes, makings, strict=True)
        ]
        with ThreadPoolExecutor(1) as one:
            report = fill_volumes(todo, filling.Run(one))
        assert report.done == 8**3 + 4**3 + 2**3
        assert all(is_there for making in makings for _, is_there in making.log)
        # A file of mag 8 follows on the 8 of mag 4 and the 64 of mag 2 that are under it.
        assert made[:73].count("8") == 1
        assert made[:9] == ["2"] * 8 + ["4"]

    def test_a_million_files_wait_in_little_memory(self, tmp_path: Path) -> None:
        import tracemalloc

        header = VolumeHeader("uint8", 1, 1, 1, "raw")
        volumes = [WkwVolume(str(tmp_path / name), header) for name in "ab"]
        boxes = [BoundingBox((0, 0, 0), (edge,) * 3) for edge in (100, 50)]
        todo = tuple(Step(v, b, _Counting(None)) for v, b in zip(volumes, boxes, strict=True))
        job = filling._Job(todo, (None, None), "tag", 1)
        tracemalloc.start()
        plan = filling._Plan(job, filling.Tally(job, filling.Run()))
        first = [next(plan) for _ in range(9)]
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert len(job) == 1_125_000
        assert {step for step, *_ in first[:8]} == {0}
        assert peak < 10e6


@pytest.mark.slow
def test_a_real_volume(tmp_path: Path, real_volume: Path, webknossos: Any) -> None:
    """Bit for bit what webknossos makes of it."""
    for name in ("ours", "theirs"):
        shutil.copytree(real_volume, tmp_path / name, symlinks=False)
        for each in (tmp_path / name).rglob("*"):
            each.chmod(0o755 if each.is_dir() else 0o644)
    ours = wkdask.open(tmp_path / "ours")
    theirs = webknossos.Dataset.open(tmp_path / "theirs")
    for name in ours.layers:
        layer = ours[name]
        coarsest = max(layer.mags)
        mags = [Mag([2 * f for f in coarsest])]
        layer.downsample(mags=mags)
        other = theirs.get_layer(name)
        other.downsample_mag(
            from_mag=webknossos.Mag(str(coarsest)), target_mag=webknossos.Mag(str(mags[0]))
        )
        mag = other.get_mag(str(mags[0]))
        np.testing.assert_array_equal(whole(layer, mags[0]), mag.read())
