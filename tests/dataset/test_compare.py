"""Equality: exact, the same whoever runs it, and no voxel is read that need not be."""

from __future__ import annotations

import json
import math
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st

import wkdask
from wkdask.cli.main import main
from wkdask.cli.options import Scheduler
from wkdask.dataset.compare import Comparison, Difference
from wkdask.errors import ArgumentError, FormatError, MissingError, NameLookupError
from wkdask.geometry import BoundingBox, Mag
from wkdask.storage.wkw import WkwVolume

BOX = BoundingBox((5, 3, 1), (60, 40, 20))
SMALL = {"block_edge": 8, "blocks_per_file_edge": 2}


def noise(box: BoundingBox, dtype: str = "uint8", channels: int = 1, seed: int = 0) -> Any:
    voxels = np.random.default_rng(seed).integers(1, 200, (channels, *box.size))
    return voxels.astype(dtype)


def filled(
    dataset: wkdask.Dataset, name: str, dtype: str = "uint8", channels: int = 1, **options: Any
) -> wkdask.MagView:
    layer = dataset.add_layer(name, "color", dtype, channels, BOX)
    mag = layer.add_mag(1, **{**SMALL, **options})
    mag.get_view().store(noise(BOX, dtype, channels), align="rechunk")
    return mag


def put(mag: wkdask.View, at: tuple[int, int, int], values: Any) -> None:
    """Write some voxels, `(x, y, z)`, without a warning that it is slow."""
    voxels = np.asarray(values, mag.dtype)
    voxels = voxels.reshape((1,) * (4 - voxels.ndim) + voxels.shape)
    mag.volume.write(BoundingBox(at, voxels.shape[1:]), voxels)


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many voxels each read of a volume took."""
    counts: list[int] = []
    read = WkwVolume.read

    def counted(volume: WkwVolume, region: Any) -> Any:
        voxels = read(volume, region)
        counts.append(voxels.size)
        return voxels

    monkeypatch.setattr(WkwVolume, "read", counted)
    return counts


class TestEqual:
    @pytest.mark.parametrize(
        "options",
        [
            pytest.param({}, id="the same"),
            pytest.param({"block_type": "raw"}, id="another block type"),
            pytest.param({"block_edge": 16}, id="another block edge"),
            pytest.param({"blocks_per_file_edge": 8}, id="another file edge"),
        ],
    )
    def test_storage_does_not_count(self, tissue, options):
        a, b = filled(tissue, "a"), filled(tissue, "b", **options)
        for found in (wkdask.equal(a, b), wkdask.equal(b, a)):
            assert found
            assert found == Comparison(None, math.prod(BOX.size))
            assert str(found) == "equal"

    def test_a_file_of_zeros_equals_none(self, tissue):
        a, b = (tissue.add_layer(n, "color", "uint8", 1, BOX).add_mag(1, **SMALL) for n in "ab")
        zeros = np.zeros((1, 16, 16, 16), np.uint8)
        put(b.with_options(keep_zeros=True), (16, 16, 0), zeros)
        assert list(b.volume.files()) != list(a.volume.files())
        assert wkdask.equal(a, b)

    def test_layers_and_datasets(self, tissue, tmp_path):
        filled(tissue, "a", "float32", 3)
        filled(tissue, "b", "uint32").layer.add_mag(2, **SMALL)
        shutil.copytree(tissue.path, tmp_path / "copy")
        copy = wkdask.open(tmp_path / "copy")
        found = wkdask.equal(tissue, copy)
        assert found
        assert found.voxels == 4 * math.prod(BOX.size)
        assert wkdask.equal(tissue["b"], copy["b"], mags=["2"]).voxels == 0
        assert wkdask.equal(tissue.path, str(copy.path))

    def test_bare_mags_count_with_all_files(self, tissue):
        a, b = filled(tissue, "a"), filled(tissue, "b", blocks_per_file_edge=8)
        assert wkdask.open_mag(a.path).bounding_box != wkdask.open_mag(b.path).bounding_box
        assert wkdask.equal(a.path, b.path)
        put(b, BOX.topleft, 0)
        assert wkdask.equal(a.path, b).difference.position == BOX.topleft

    @pytest.mark.parametrize(
        ("a", "b", "is_equal"),
        [
            (math.nan, math.nan, True),
            (0.0, -0.0, False),
            (math.nan, 0.0, False),
            (math.inf, -math.inf, False),
            (1.5, 1.5, True),
        ],
    )
    @pytest.mark.parametrize("dtype", ["float32", "float64"])
    def test_floats(self, tissue, dtype, a, b, is_equal):
        mags = [tissue.add_layer(n, "color", dtype, 1, BOX).add_mag(1, **SMALL) for n in "ab"]
        for mag, value in zip(mags, (a, b), strict=True):
            put(mag, BOX.topleft, value)
        assert bool(wkdask.equal(*mags)) is is_equal

    def test_payloads_of_nan_do_not_count(self, tissue):
        mags = [tissue.add_layer(n, "color", "float32", 1, BOX).add_mag(1, **SMALL) for n in "ab"]
        for mag, bits in zip(mags, (0x7FC00000, 0xFFC00001), strict=True):
            put(mag, BOX.topleft, np.full((1, 1, 1), bits, np.uint32).view(np.float32))
        assert wkdask.equal(*mags)


class TestDifferences:
    def test_the_first_voxel(self, tissue):
        a, b = filled(tissue, "a", channels=3), filled(tissue, "b", channels=3)
        change = b.read((40, 20, 10), (1, 2, 3))
        old = int(change[1, 0, 0, 1])
        change[1:, 0, 0, 1], change[2, 0, 1, 2] = 201, 202
        b.get_view((40, 20, 10), (1, 2, 3)).store(change, align="rechunk")
        found = wkdask.equal(a, b)
        assert not found
        assert found.difference == Difference(
            "voxels", old, 201, "a", Mag(1), (40, 20, 11), 1, BoundingBox((40, 20, 11), (1, 2, 2))
        )
        assert str(found) == (
            f"different: voxels in layer a, mag 1, voxel (40, 20, 11), channel 1: {old} and 201 "
            f"(differences around it in the box {found.difference.box})"
        )

    @pytest.mark.parametrize(
        ("change", "kind", "a", "b"),
        [
            pytest.param({"category": "segmentation"}, "category", "color", "segmentation"),
            pytest.param({"dtype": "int8"}, "dtype", np.dtype("uint8"), np.dtype("int8")),
            pytest.param({"num_channels": 2}, "num_channels", 1, 2),
            pytest.param({"bounding_box": BoundingBox((0,) * 3, (9,) * 3)}, "bounding_box", BOX,
                         BoundingBox((0,) * 3, (9,) * 3)),
        ],
    )  # fmt: skip
    def test_layers(self, tissue, reads, change, kind, a, b):
        facts = {"category": "color", "dtype": "uint8", "num_channels": 1, "bounding_box": BOX}
        first = tissue.add_layer("first", **facts)
        second = tissue.add_layer("second", **(facts | change))
        for layer in (first, second):
            layer.add_mag(1, **SMALL)
        found = wkdask.equal(first, second)
        assert found.difference == Difference(kind, a, b, "first")
        assert reads == []

    def test_mags_and_layers_that_one_side_lacks(self, tissue, tmp_path):
        filled(tissue, "a")
        other = wkdask.create(tmp_path / "other", tissue.voxel_size)
        filled(other, "a").layer.add_mag("2-2-1")
        found = wkdask.equal(tissue, other)
        assert found.difference == Difference("mags", (), (Mag("2-2-1"),), "a")
        assert wkdask.equal(tissue["a"], other["a"], mags=[1])
        other.add_layer("more", "color", "uint8")
        assert wkdask.equal(tissue, other).difference == Difference("layers", (), ("more",))

    def test_datasets(self, tissue, tmp_path):
        other = wkdask.create(tmp_path / "other", (1, 1, 1))
        found = wkdask.equal(tissue, other).difference
        assert found == Difference("voxel_size", tissue.voxel_size, (1.0, 1.0, 1.0))
        micro = wkdask.create(tmp_path / "micro", tissue.voxel_size, "micrometer")
        assert wkdask.equal(tissue, micro).difference == Difference(
            "unit", "nanometer", "micrometer"
        )

    def test_views(self, tissue):
        mag = filled(tissue, "a")
        first, second = mag.get_view((5, 3, 1), (9, 9, 9)), mag.get_view((6, 3, 1), (9, 9, 9))
        assert wkdask.equal(first, first)
        assert wkdask.equal(first, second).difference.kind == "bounding_box"
        coarse = mag.layer.add_mag(2)
        assert wkdask.equal(mag, coarse).difference == Difference("mag", Mag(1), Mag(2), "a")

    def test_one_differs_in_every_way(self, tissue):
        a, b = filled(tissue, "a"), filled(tissue, "b")
        b.get_view().store(noise(BOX, seed=1), align="rechunk")
        found = wkdask.equal(a, b).difference
        assert BOX.contains_bbox(found.box)
        # Of the file that was compared first, which threads decide.
        assert BOX.contains_bbox(BoundingBox(found.position, (1, 1, 1)))


class TestLaziness:
    def test_missing_on_both_sides_is_not_read(self, tissue, reads):
        box = BoundingBox((0, 0, 0), (4096, 64, 64))
        a, b = (tissue.add_layer(n, "color", "uint8", 1, box).add_mag(1, **SMALL) for n in "ab")
        assert wkdask.equal(a, b)
        assert reads == []
        a.write(np.ones((16, 16, 16), np.uint8), (1024, 0, 0))
        b.write(np.ones((16, 16, 16), np.uint8), (1024, 0, 0))
        assert wkdask.equal(a, b)
        assert reads == [16**3] * 2

    def test_it_stops_early(self, tissue, reads):
        box = BoundingBox((0, 0, 0), (1024, 16, 16))
        a, b = (tissue.add_layer(n, "color", "uint8", 1, box).add_mag(1, **SMALL) for n in "ab")
        a.get_view().store(np.full(box.size, 1, np.uint8), align="rechunk")
        b.get_view().store(np.full(box.size, 2, np.uint8), align="rechunk")
        with ThreadPoolExecutor(1) as pool:
            assert wkdask.equal(a, b, executor=pool).difference.position == (0, 0, 0)
        assert len(reads) == 2

    def test_files_are_read_in_pieces(self, tissue, reads, monkeypatch):
        monkeypatch.setattr("wkdask.dataset.compare._PIECE_BYTES", 4**3 * 8)
        a, b = filled(tissue, "a", "float64"), filled(tissue, "b", "float64")
        assert wkdask.equal(a, b).voxels == math.prod(BOX.size)
        assert max(reads) == 4**3


class TestExecutors:
    @pytest.mark.parametrize("name", ["threads", pytest.param("processes", marks=pytest.mark.slow)])
    def test_pools_find_the_same(self, tissue, name):
        a, b = filled(tissue, "a"), filled(tissue, "b")
        for at in ((60, 40, 15), (20, 30, 4), (20, 4, 16)):
            put(b, at, 250)
        with Scheduler(name, 2).executor() as pool:
            found = wkdask.equal(a, b, executor=pool, progress=True)
        assert found.difference.position in {(60, 40, 15), (20, 30, 4), (20, 4, 16)}

    def test_a_cluster_finds_the_same(self, tissue, client):
        a, b = filled(tissue, "a"), filled(tissue, "b")
        assert wkdask.equal(a, b)
        b.get_view().store(noise(BOX, seed=1), align="rechunk")
        found = wkdask.equal(a, b).difference
        assert found.box.contains_bbox(BoundingBox(found.position, (1, 1, 1)))

    @settings(max_examples=12, deadline=None)
    @given(
        st.lists(st.tuples(*(st.integers(0, n - 1) for n in (40, 20, 20))), max_size=4),
        st.integers(1, 3),
    )
    def test_what_is_found_is_the_first_of_its_file(self, tmp_path_factory, places, workers):
        """Of several files that differ, any may be found first; each is one piece here."""
        ds = wkdask.create(tmp_path_factory.mktemp("equal") / "ds", (1, 1, 1))
        box = BoundingBox((0, 0, 0), (40, 20, 20))
        a, b = (ds.add_layer(n, "color", "uint8", 1, box).add_mag(1, **SMALL) for n in "ab")
        for place in places:
            put(b, place, 1)
        with ThreadPoolExecutor(workers) as pool:
            found = wkdask.equal(a, b, executor=pool)
        firsts = {tuple(n // 16 for n in at): at for at in sorted(places, reverse=True)}
        assert bool(found) is not bool(places)
        if places:
            assert found.difference.position in firsts.values()


class TestErrors:
    @pytest.mark.parametrize(
        ("a", "b", "words"),
        [
            ("layer", "mag", "a Layer and a MagView can't be compared: give two of a kind."),
            ("mag", 3, "3 can't be compared"),
        ],
    )
    def test_kinds(self, tissue, a, b, words):
        mag = filled(tissue, "a")
        sides = {"layer": mag.layer, "mag": mag}
        with pytest.raises(ArgumentError, match=words):
            wkdask.equal(sides[a], sides.get(b, b))

    def test_mags(self, tissue):
        mag = filled(tissue, "a")
        with pytest.raises(ArgumentError, match="mags choose from layers and datasets"):
            wkdask.equal(mag, mag, mags=[1])
        with pytest.raises(NameLookupError, match="no mag 4"):
            wkdask.equal(mag.layer, mag.layer, mags=[4])

    def test_an_unreadable_file_is_neither_equal_nor_different(self, tissue):
        a, b = filled(tissue, "a"), filled(tissue, "b")
        for mag in (a, b):
            Path(mag.volume.file_path((1, 1, 1))).write_bytes(b"nonsense")
        with pytest.raises(FormatError) as caught:
            wkdask.equal(a, b)
        assert "while comparing" in caught.value.__notes__[-1]

    def test_a_directory_that_vanishes_is_not_zeros(self, tissue):
        a, b = filled(tissue, "a"), filled(tissue, "b")
        for mag in (a, b):
            shutil.rmtree(mag.path)
        with pytest.raises(MissingError):
            wkdask.equal(a, b)

    def test_paths(self, tmp_path):
        with pytest.raises(MissingError):
            wkdask.equal(tmp_path / "a", tmp_path / "b")


class TestCommand:
    def run(self, *arguments: Any) -> Any:
        return CliRunner().invoke(main, ["equal", *map(str, arguments)])

    def test_it_says_so_by_its_exit_code(self, tissue, tmp_path):
        filled(tissue, "a", "float32")
        filled(tissue, "b").layer.add_mag(2, **SMALL)
        copy = tmp_path / "copy"
        shutil.copytree(tissue.path, copy)
        assert (result := self.run(tissue.path, copy)).exit_code == 0
        assert result.output == "equal\n"
        put(wkdask.open(copy)["a"][1], (5, 3, 2), np.nan)
        assert (result := self.run(tissue.path, copy, "--scheduler", "threads")).exit_code == 1
        assert result.output.startswith("different: voxels in layer a, mag 1, voxel (5, 3, 2)")
        result = self.run(tissue.path, copy, "--json")
        facts = json.loads(result.output)
        assert facts["equal"] is False
        assert facts["difference"]["position"] == [5, 3, 2]
        assert facts["difference"]["mag"] == "1"
        assert facts["difference"]["b"] == "nan"
        assert facts["difference"]["box"] == {"topleft": [5, 3, 2], "size": [1, 1, 1]}
        assert self.run(tissue.path, copy, "--layer-name", "b", "--mag", "1").exit_code == 0
        assert self.run(tissue.path, copy, "--mag", "2", "--mag", "4").exit_code == 2
        assert self.run(tissue.path, copy, "--layer-name", "c").exit_code == 2
        result = self.run(tissue.path, tmp_path / "nowhere")
        assert result.exit_code == 2
        assert result.output.startswith("Error: ")

    def test_bars(self, tissue):
        filled(tissue, "a")
        result = self.run(tissue.path, tissue.path, "--progress")
        assert "100%" in result.output


@pytest.mark.parametrize(
    ("difference", "shown"),
    [
        (Difference("dtype", np.dtype("uint8"), np.dtype("int8")), ["uint8", "int8"]),
        (Difference("mags", (Mag(1), Mag("2-2-1")), ()), [["1", "2-2-1"], []]),
        (Difference("voxel_size", (1.5, 1.0, 1.0), (1.0, 1.0, 1.0)), [[1.5, 1, 1], [1, 1, 1]]),
        (Difference("voxels", math.inf, 2**63), ["inf", 2**63]),
    ],
)
def test_everything_has_a_form_in_json(difference, shown):
    facts = json.loads(json.dumps(Comparison(difference).as_dict(), allow_nan=False))
    assert [facts["difference"][side] for side in "ab"] == shown


def test_real_data(real_volume):
    for layer in wkdask.open(real_volume).layers.values():
        mag = layer.mags[max(layer.mags)]
        assert wkdask.equal(mag, mag)
