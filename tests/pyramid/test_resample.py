"""`wkdask.pyramid.resample`: NumPy and webknossos as oracles, borders, what is written."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import wkdask
from wkdask import errors, kernels
from wkdask.arrays.view import View
from wkdask.geometry import BoundingBox, Mag
from wkdask.pyramid import sampling
from wkdask.storage.header import BLOCK_TYPES, DTYPES, VolumeHeader
from wkdask.storage.wkw import WkwVolume

Vec3 = tuple[int, int, int]
Voxels = np.ndarray[Any, np.dtype[Any]]
Snapshot = Callable[[Path], dict[str, bytes | None]]

MODES = ("median", "mode", "max", "min", "mean", "nearest")
SMALL: dict[str, Any] = {"block_edge": 4, "blocks_per_file_edge": 2, "block_type": "raw"}
"""Files of 8 voxels per edge."""

unaligned = pytest.mark.filterwarnings("ignore:writing parts of compressed files:RuntimeWarning")


def random_voxels(
    rng: np.random.Generator, channels: int, size: Vec3, dtype: str, mode: str = ""
) -> Voxels:
    """Return voxels over the dtype's whole range; few different ones where votes are counted."""
    shape = (channels, *size)
    if mode == "mode":
        return rng.integers(0, 4, shape).astype(dtype)
    if np.dtype(dtype).kind == "f":
        return rng.normal(0, 1000, shape).astype(dtype)
    limits = np.iinfo(dtype)
    return rng.integers(limits.min, limits.max, shape, dtype, endpoint=True)


def plainly(voxels: Voxels, topleft: Vec3, factors: Vec3, mode: str) -> Voxels:
    """Downsample a whole layer with NumPy alone, as the rules say it."""
    before = [start % f for start, f in zip(topleft, factors, strict=True)]
    sizes = zip(topleft, voxels.shape[1:], factors, strict=True)
    after = [-(start + size) % f for start, size, f in sizes]
    pads = [(0, 0), *zip(before, after, strict=True)]
    padded = np.pad(voxels, pads, mode="symmetric")
    fx, fy, fz = factors
    corners = itertools.product(range(fz), range(fx), range(fy))
    stacked = np.stack([padded[:, x::fx, y::fy, z::fz] for z, x, y in corners])
    return {
        "median": plain_median,
        "mode": plain_mode,
        "max": lambda parts: parts.max(axis=0),
        "min": lambda parts: parts.min(axis=0),
        "mean": plain_mean,
        "nearest": lambda parts: parts[((fz - 1) // 2 * fx + (fx - 1) // 2) * fy + (fy - 1) // 2],
    }[mode](stacked)


def plain_median(stacked: Voxels) -> Voxels:
    if stacked.dtype.kind == "f":
        return np.median(stacked, axis=0).astype(stacked.dtype)
    ordered = np.sort(stacked, axis=0).astype(object)
    total = ordered[(len(ordered) - 1) // 2] + ordered[len(ordered) // 2]
    return (np.sign(total) * (abs(total) // 2)).astype(stacked.dtype)


def plain_mode(stacked: Voxels) -> Voxels:
    votes = [np.count_nonzero(stacked == candidate, axis=0) for candidate in stacked]
    return np.take_along_axis(stacked, np.argmax(votes, axis=0)[np.newaxis], axis=0)[0]


def plain_mean(stacked: Voxels) -> Voxels:
    if stacked.dtype.kind == "f":
        return stacked.astype(np.float64).mean(axis=0).astype(stacked.dtype)
    total, count = stacked.astype(object).sum(axis=0), len(stacked)
    # Python's own rounding of a fraction to even, exact for numbers of any length.
    low, rest = total // count, total % count
    up = (2 * rest > count) | ((2 * rest == count) & (low % 2 == 1))
    return (low + up.astype(object)).astype(stacked.dtype)


def new_layer(
    path: Path,
    voxels: Voxels,
    topleft: Vec3,
    category: str = "color",
    mag: Any = 1,
    **header: Any,
) -> wkdask.Layer:
    """Make a dataset whose one layer ends where the voxels end."""
    ds = wkdask.create(path, (1, 1, 1))
    box = BoundingBox(topleft, voxels.shape[1:]).scaled_by(Mag(mag))
    layer = ds.add_layer("a", category, voxels.dtype, len(voxels), box)
    layer.add_mag(mag, **{**SMALL, **header}).get_view().write(voxels)
    return layer


def downsampled(layer: wkdask.Layer, mag: Any, mode: str, **keys: Any) -> Voxels:
    """Downsample the finest mag of a layer into a new one, and return all of it."""
    header = {key: keys.pop(key) for key in SMALL if key in keys}
    layer.add_mag(mag, **{**SMALL, **header})
    wkdask.downsample(next(iter(layer.mags.values())), layer[mag], mode, **keys)
    return wkdask.open(layer.dataset.path)["a"][mag].get_view().read()


@dataclass
class Case:
    """A random box of random voxels, and how it is downsampled."""

    topleft: Vec3
    voxels: Voxels
    factors: Vec3
    mode: str
    header: dict[str, Any]


FACTORS: list[Vec3] = [
    (2, 2, 1), (2, 2, 2), (4, 4, 2), (1, 2, 2), (2, 1, 1), (1, 1, 2), (4, 4, 4), (3, 2, 1),
    (3, 3, 3), (8, 8, 4), (5, 1, 2),
]  # fmt: skip


def random_case(
    seed: int,
    modes: tuple[str, ...],
    dtypes: tuple[str, ...] = DTYPES,
    all_factors: list[Vec3] = FACTORS,
) -> Case:
    """Return offsets and sizes that align with nothing; a third of the boxes are thin strips."""
    rng = np.random.default_rng(seed)
    size = rng.integers(1, 28, 3)
    if seed % 3 == 0:
        size[rng.integers(3)] = rng.integers(1, 4)
    topleft = rng.integers(0, 40, 3)
    mode, dtype = str(rng.choice(modes)), str(rng.choice(dtypes))
    factors = all_factors[rng.integers(len(all_factors))]
    voxels = random_voxels(rng, int(rng.integers(1, 4)), tuple(map(int, size)), dtype, mode)
    header = {
        "block_edge": int(rng.choice([4, 8])),
        "blocks_per_file_edge": int(rng.choice([1, 2, 4])),
        "block_type": str(rng.choice(BLOCK_TYPES)),
    }
    return Case(tuple(map(int, topleft)), voxels, factors, mode, header)


# --- NumPy --------------------------------------------------------------------------------------


class TestNumPy:
    def check(self, path: Path, seed: int) -> None:
        case = random_case(seed, MODES)
        layer = new_layer(path / str(seed), case.voxels, case.topleft)
        found = downsampled(layer, case.factors, case.mode, **case.header)
        expected = plainly(case.voxels, case.topleft, case.factors, case.mode)
        assert found.dtype == expected.dtype
        if case.mode == "mean" and expected.dtype.kind == "f":
            # The order of the sum is nobody's business; its last bit depends on it.
            error = np.finfo(expected.dtype).eps * np.abs(case.voxels).max()
            np.testing.assert_allclose(found, expected, rtol=0, atol=error, err_msg=repr(case))
        else:
            np.testing.assert_array_equal(found, expected, err_msg=repr(case))

    @pytest.mark.parametrize("seed", range(50))
    def test_random_boxes(self, tmp_path, seed):
        self.check(tmp_path, seed)

    @pytest.mark.slow
    def test_many_random_boxes(self, tmp_path):
        for seed in range(1000, 1200):
            self.check(tmp_path, seed)

    @pytest.mark.parametrize("mode", MODES)
    @pytest.mark.parametrize("dtype", ["uint8", "int64", "float32"])
    def test_every_mode(self, tmp_path, mode, dtype):
        voxels = random_voxels(np.random.default_rng(1), 2, (13, 11, 9), dtype, mode)
        found = downsampled(new_layer(tmp_path / "a", voxels, (3, 5, 7)), "2-2-1", mode)
        np.testing.assert_array_equal(found, plainly(voxels, (3, 5, 7), (2, 2, 1), mode))

    @pytest.mark.parametrize(
        ("topleft", "size", "factors", "expected"),
        [
            ((0,), [1, 2, 3, 4], 2, [2, 4]),
            ((1,), [1, 2, 3, 4], 2, [1, 3, 4]),  # the edge voxel is there twice
            ((0,), [1, 2, 3, 4, 5], 4, [4, 5]),  # 5 5 4 3
            ((3,), [9], 4, [9]),  # smaller than the factor: one voxel
            ((2,), [9], 4, [9]),
            ((3,), [1, 2], 4, [2, 2]),  # 2 1 1 -> 2 | 2 2 1 1
            ((5,), [1, 7, 3], 8, [7]),  # mirrored more than once
        ],
    )
    def test_borders_by_hand(self, tmp_path, topleft, size, factors, expected):
        voxels = np.array(size, np.uint8).reshape(1, -1, 1, 1)
        layer = new_layer(tmp_path / "a", voxels, (*topleft, 0, 0))
        assert downsampled(layer, (factors, 1, 1), "max").ravel().tolist() == expected

    def test_the_rules_by_hand(self, tmp_path):
        voxels = np.array([[3, 0], [9, 0]], np.int8).reshape(1, 2, 2, 1)
        layer = new_layer(tmp_path / "a", voxels, (0, 0, 0))
        results = {
            "median": 1,  # the midpoint of 0 and 3, truncated
            "mode": 0,
            "max": 9,
            "min": 0,
            "mean": 3,
            "nearest": 3,
        }
        layer.add_mag("2-2-1", **SMALL)
        for mode, expected in results.items():
            wkdask.downsample(layer[1], layer["2-2-1"], mode)
            assert layer["2-2-1"].get_view().read().item() == expected, mode

    def test_median_is_the_default(self, tmp_path):
        voxels = random_voxels(np.random.default_rng(1), 1, (8, 8, 8), "uint8")
        layer = new_layer(tmp_path / "a", voxels, (0, 0, 0))
        layer.add_mag(2, **SMALL)
        wkdask.downsample(layer[1], layer[2])
        expected = plainly(voxels, (0, 0, 0), (2, 2, 2), "median")
        np.testing.assert_array_equal(layer[2].get_view().read(), expected)

    def test_voxels_outside_of_the_layer_are_not_read(self, tmp_path):
        """Files hold more than the layer's box; the border is mirrored nevertheless."""
        voxels = random_voxels(np.random.default_rng(1), 1, (16, 16, 16), "uint8")
        layer = new_layer(tmp_path / "a", voxels, (0, 0, 0))
        layer.bounding_box = BoundingBox((3, 1, 5), (8, 8, 8))
        expected = plainly(voxels[:, 3:11, 1:9, 5:13], (3, 1, 5), (4, 2, 2), "max")
        np.testing.assert_array_equal(downsampled(layer, "4-2-2", "max"), expected)

    def test_the_bounding_box_does_not_change(self, tmp_path):
        voxels = random_voxels(np.random.default_rng(1), 1, (5, 6, 7), "uint8")
        layer = new_layer(tmp_path / "a", voxels, (1, 2, 3))
        downsampled(layer, 4, "max")
        assert wkdask.open(layer.dataset.path)["a"].bounding_box == layer.bounding_box
        assert layer.bounding_box == BoundingBox((1, 2, 3), (5, 6, 7))

    def test_no_voxels_on_disk_are_zeros(self, tmp_path):
        ds = wkdask.create(tmp_path / "a", (1, 1, 1))
        layer = ds.add_layer("a", "color", "uint8", bounding_box=BoundingBox((1, 1, 1), (9, 9, 9)))
        layer.add_mag(1, **SMALL)
        assert not downsampled(layer, 2, "max").any()

    def test_mag_from_mag(self, tmp_path):
        """Each mag is computed from the one before it: the median of medians."""
        voxels = random_voxels(np.random.default_rng(1), 1, (37, 29, 21), "uint8")
        layer = new_layer(tmp_path / "a", voxels, (5, 3, 7))
        first = downsampled(layer, "2-2-1", "median")
        layer.add_mag("4-4-2", **SMALL)
        wkdask.downsample(layer["2-2-1"], layer["4-4-2"], "median")
        second = layer["4-4-2"].get_view().read()
        np.testing.assert_array_equal(second, plainly(first, (2, 1, 7), (2, 2, 2), "median"))
        assert (second != plainly(voxels, (5, 3, 7), (4, 4, 2), "median")).any()

    def test_from_a_mag_that_is_not_the_finest(self, tmp_path):
        voxels = random_voxels(np.random.default_rng(1), 1, (9, 8, 7), "uint16")
        layer = new_layer(tmp_path / "a", voxels, (5, 3, 7), mag=2)
        found = downsampled(layer, "6-4-2", "mean")
        np.testing.assert_array_equal(found, plainly(voxels, (5, 3, 7), (3, 2, 1), "mean"))


# --- webknossos ---------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")
class TestWebknossos:
    """Bit-identical to the `webknossos` library, borders included."""

    # It can't make layers of 64-bit integers or float64; those are NumPy's to judge.
    DTYPES = ("uint8", "uint16", "uint32", "int8", "int16", "int32", "float32")
    MODES = ("median", "mode", "max", "min")
    # Nor mags that are no powers of two.
    FACTORS: list[Vec3] = [f for f in FACTORS if not {3, 5} & {*f}]  # noqa: RUF012

    @pytest.fixture
    def theirs(self, webknossos: Any) -> Callable[..., Voxels]:
        """A function that downsamples with webknossos, on a copy of its own."""
        import cluster_tools

        def run(path: Path, case: Case, mags: list[Vec3], **keys: Any) -> Voxels:
            ds = webknossos.Dataset(path, voxel_size=(1, 1, 1))
            layer = ds.add_layer(
                "a",
                "segmentation"
                if case.mode == "mode" and case.voxels.dtype.kind != "f"
                else "color",
                data_format="wkw",
                dtype_per_channel=str(case.voxels.dtype),
                num_channels=len(case.voxels),
            )
            finest = layer.add_mag(1, chunk_shape=8, shard_shape=64, compress=False)
            finest.write(
                case.voxels, absolute_offset=case.topleft, allow_resize=True, allow_unaligned=True
            )
            keys = {"chunk_shape": 8, "shard_shape": 64, **keys}
            for source, target in itertools.pairwise([(1, 1, 1), *mags]):
                with cluster_tools.get_executor("sequential") as executor:
                    layer.downsample_mag(
                        webknossos.Mag(source),
                        webknossos.Mag(target),
                        interpolation_mode=case.mode,
                        compress=case.header["block_type"] != "raw",
                        executor=executor,
                        **keys,
                    )
            box = layer.bounding_box.align_with_mag(webknossos.Mag(mags[-1]), ceil=True)
            voxels: Voxels = layer.get_mag(mags[-1]).read(absolute_bounding_box=box)
            return voxels

        return run

    def check(self, path: Path, seed: int, theirs: Callable[..., Voxels]) -> None:
        case = random_case(seed, self.MODES, self.DTYPES, self.FACTORS)
        layer = new_layer(path / f"ours{seed}", case.voxels, case.topleft)
        found = downsampled(layer, case.factors, case.mode, **case.header)
        expected = theirs(path / f"theirs{seed}", case, [case.factors])
        assert found.dtype == expected.dtype
        if case.mode == "mean" and expected.dtype.kind == "f":
            # The order of the sum is nobody's business; its last bit depends on it.
            error = np.finfo(expected.dtype).eps * np.abs(case.voxels).max()
            np.testing.assert_allclose(found, expected, rtol=0, atol=error, err_msg=repr(case))
        else:
            np.testing.assert_array_equal(found, expected, err_msg=repr(case))

    @pytest.mark.parametrize("seed", range(40))
    def test_random_boxes(self, tmp_path, theirs, seed):
        self.check(tmp_path, seed, theirs)

    @pytest.mark.slow
    def test_many_random_boxes(self, tmp_path, theirs):
        for seed in range(1000, 1150):
            self.check(tmp_path, seed, theirs)

    @pytest.mark.parametrize("mode", MODES)
    def test_mag_from_mag(self, tmp_path, theirs, mode):
        case = random_case(7, (mode,), ("uint8",))
        case.voxels = random_voxels(np.random.default_rng(1), 1, (37, 29, 21), "uint8", mode)
        mags: list[Vec3] = [(2, 2, 1), (4, 4, 2), (8, 8, 4)]
        layer = new_layer(tmp_path / "ours", case.voxels, case.topleft)
        for source, target in itertools.pairwise([(1, 1, 1), *mags]):
            layer.add_mag(target, **SMALL)
            wkdask.downsample(layer[source], layer[target], mode)
        expected = theirs(tmp_path / "theirs", case, mags)
        np.testing.assert_array_equal(layer[8, 8, 4].get_view().read(), expected)

    @pytest.mark.parametrize("end", [33, 34, 35, 64, 65])
    def test_factors_of_two_do_not_see_their_tiles(self, tmp_path, theirs, end):
        voxels = random_voxels(np.random.default_rng(end), 1, (end, 5, 3), "uint8")
        case = Case((0, 0, 0), voxels, (2, 2, 2), "max", {"block_type": "lz4"})
        layer = new_layer(tmp_path / "ours", voxels, (0, 0, 0))
        expected = theirs(tmp_path / "theirs", case, [(2, 2, 2)], shard_shape=8, buffer_shape=8)
        np.testing.assert_array_equal(downsampled(layer, 2, "max"), expected)

    def test_where_it_depends_on_its_tiles(self, tmp_path, theirs):
        """It mirrors within a tile, so that a voxel alone in the last tile is all that it sees.

        Only with factors from 3 on, and where the layer's last target voxel is the first one of a
        tile and less than half full. We mirror the layer, so that tiles do not matter.
        """
        voxels = np.arange(1, 34, dtype=np.uint8)[::-1].reshape(1, -1, 1, 1)
        case = Case((0, 0, 0), voxels, (4, 1, 1), "max", {"block_type": "raw"})
        layer = new_layer(tmp_path / "ours", voxels, (0, 0, 0))
        ours = downsampled(layer, "4-1-1", "max").ravel().tolist()
        whole = theirs(tmp_path / "whole", case, [(4, 1, 1)]).ravel().tolist()
        tiled = theirs(tmp_path / "tiled", case, [(4, 1, 1)], buffer_shape=8).ravel().tolist()
        assert ours == whole == [33, 29, 25, 21, 17, 13, 9, 5, 3]
        assert tiled == [33, 29, 25, 21, 17, 13, 9, 5, 1]


# --- independence of how the work is cut --------------------------------------------------------

OFFSET, SIZE = (5, 3, 7), (41, 27, 19)


@pytest.fixture(scope="module")
def voxels() -> Voxels:
    return random_voxels(np.random.default_rng(3), 2, SIZE, "uint16")


class TestIndependence:
    @pytest.mark.parametrize("block_type", BLOCK_TYPES)
    @pytest.mark.parametrize(("block_edge", "blocks"), [(1, 4), (2, 8), (8, 1), (8, 8)])
    def test_of_files(self, tmp_path, voxels, block_type, block_edge, blocks):
        header = {"block_edge": block_edge, "blocks_per_file_edge": blocks}
        layer = new_layer(tmp_path / "a", voxels, OFFSET, **header, block_type="lz4")
        found = downsampled(layer, "4-2-1", "median", block_type=block_type, **header)
        np.testing.assert_array_equal(found, plainly(voxels, OFFSET, (4, 2, 1), "median"))

    @pytest.mark.parametrize("mode", MODES)
    @pytest.mark.parametrize("piece", [1, 40, 300, 5000])
    def test_of_pieces(self, tmp_path, voxels, monkeypatch, mode, piece):
        monkeypatch.setattr(sampling, "_SOURCE_BYTES", piece)
        found = downsampled(new_layer(tmp_path / "a", voxels, OFFSET), "4-2-1", mode)
        np.testing.assert_array_equal(found, plainly(voxels, OFFSET, (4, 2, 1), mode))

    def test_memory_of_a_task_is_bounded(self, tmp_path, voxels, monkeypatch):
        sizes: list[int] = []
        kernel = kernels.downsample

        def watched(array: Voxels, *args: Any, **keys: Any) -> Voxels:
            sizes.append(array[0].size)
            return kernel(array, *args, **keys)

        monkeypatch.setattr(sampling, "_SOURCE_BYTES", 4096 * voxels.itemsize * len(voxels))
        monkeypatch.setattr(sampling.kernels, "downsample", watched)
        layer = new_layer(tmp_path / "a", voxels, OFFSET)
        downsampled(layer, "4-2-1", "max", block_edge=32, blocks_per_file_edge=1)
        assert 1024 < max(sizes) <= 4096
        assert sum(sizes) == 44 * 28 * 19

    @pytest.mark.parametrize("make", [ThreadPoolExecutor, ProcessPoolExecutor])
    @pytest.mark.filterwarnings("ignore::DeprecationWarning")
    def test_of_executors(self, tmp_path, voxels, make):
        with make(2) as executor:
            layer = new_layer(tmp_path / "a", voxels, OFFSET)
            found = downsampled(layer, "4-2-1", "median", executor=executor)
        np.testing.assert_array_equal(found, plainly(voxels, OFFSET, (4, 2, 1), "median"))

    def test_of_a_cluster(self, tmp_path, voxels, client):
        for number, executor in enumerate([None, client]):
            layer = new_layer(tmp_path / str(number), voxels, OFFSET, "segmentation")
            found = downsampled(layer, "4-2-1", "mode", executor=executor, block_type="lz4hc")
            np.testing.assert_array_equal(found, plainly(voxels, OFFSET, (4, 2, 1), "mode"))

    def test_progress(self, tmp_path, voxels, capsys):
        downsampled(new_layer(tmp_path / "a", voxels, OFFSET), "4-2-1", "max", progress=True)
        assert "100%" in capsys.readouterr().err

    @unaligned
    @settings(deadline=None, max_examples=15)
    @given(data=st.data())
    def test_of_cutting_the_target(self, tmp_path_factory, data, voxels):
        """Parts, one after the other, give what the whole gives, also at the borders."""
        factors = data.draw(st.sampled_from([(4, 2, 1), (3, 3, 3), (2, 2, 2)]))
        mode = data.draw(st.sampled_from(MODES))
        header = {**SMALL, "block_type": data.draw(st.sampled_from(BLOCK_TYPES))}
        layer = new_layer(tmp_path_factory.mktemp("parts"), voxels, OFFSET)
        target = layer.add_mag(factors, **header)
        chunk = data.draw(st.tuples(*[st.integers(4, 12)] * 3))
        for part in target.bounding_box.chunk(chunk):
            goal = target.get_view(part.topleft, part.size)
            inside = part.scaled_by(factors).intersected_with(layer.bounding_box)
            source = layer[1].get_view(inside.topleft, inside.size)
            wkdask.downsample(source, goal, mode)
        expected = plainly(voxels, OFFSET, factors, mode)
        np.testing.assert_array_equal(target.get_view().read(), expected)

    def test_a_part_alone(self, tmp_path, voxels):
        """A part sees what lies around it in the layer, and leaves the rest of the target alone."""
        layer = new_layer(tmp_path / "a", voxels, OFFSET)
        target = layer.add_mag("4-2-1", **SMALL)
        part = BoundingBox((3, 4, 9), (4, 5, 6))
        # One voxel short of the block that the part needs: what is missing is in the layer.
        source = layer[1].get_view((13, 9, 9), (14, 9, 6), read_only=True)
        wkdask.downsample(source, target.get_view(part.topleft, part.size), "max")
        whole = plainly(voxels, OFFSET, (4, 2, 1), "max")
        expected = np.zeros_like(whole)
        cut = (slice(None), slice(2, 6), slice(3, 8), slice(2, 8))
        expected[cut] = whole[cut]
        np.testing.assert_array_equal(target.get_view().read(), expected)

    def test_twice_is_once(self, tmp_path, voxels, snapshot):
        layer = new_layer(tmp_path / "a", voxels, OFFSET)
        downsampled(layer, "4-2-1", "max", block_type="lz4")
        before = snapshot(tmp_path)
        wkdask.downsample(layer[1], layer["4-2-1"], "max")
        assert snapshot(tmp_path) == before

    def test_what_was_there_is_replaced(self, tmp_path, voxels):
        layer = new_layer(tmp_path / "a", voxels, OFFSET)
        downsampled(layer, "4-2-1", "max", block_type="lz4")
        wkdask.downsample(layer[1], layer["4-2-1"], "min")
        expected = plainly(voxels, OFFSET, (4, 2, 1), "min")
        np.testing.assert_array_equal(layer["4-2-1"].get_view().read(), expected)


# --- views --------------------------------------------------------------------------------------


class TestViews:
    def bare(self, path: Path, header: VolumeHeader, box: BoundingBox) -> View:
        """Return a view of a volume whose mag nobody knows."""
        volume = WkwVolume.create(path, header)
        return View(volume.path, header.to_wkw(), box.size, box.topleft)

    def test_without_mags_the_sizes_decide(self, tmp_path):
        header = VolumeHeader("uint8", 1, 4, 2)
        source = self.bare(tmp_path / "fine", header, BoundingBox((12, 4, 6), (12, 8, 4)))
        target = self.bare(tmp_path / "coarse", header, BoundingBox((3, 2, 6), (3, 4, 4)))
        voxels = random_voxels(np.random.default_rng(1), 1, source.size, "uint8")
        source.write(voxels)
        assert (source.mag, target.mag) == (None, None)
        wkdask.downsample(source, target, "median")
        expected = plainly(voxels, source.global_offset, (4, 2, 1), "median")
        np.testing.assert_array_equal(target.read(), expected)

    def test_without_mags_and_without_a_whole_ratio(self, tmp_path, snapshot):
        header = VolumeHeader("uint8", 1, 4, 2)
        source = self.bare(tmp_path / "fine", header, BoundingBox((0, 0, 0), (13, 8, 4)))
        target = self.bare(tmp_path / "coarse", header, BoundingBox((0, 0, 0), (7, 4, 2)))
        source.write(np.ones((13, 8, 4), np.uint8))
        before = snapshot(tmp_path)
        with pytest.raises(errors.ArgumentError, match=r"mags .* not known.*\(13, 8, 4\)"):
            wkdask.downsample(source, target)
        assert snapshot(tmp_path) == before

    def test_opened_mags(self, tmp_path, voxels):
        """Bare directories count with the box of their files."""
        layer = new_layer(tmp_path / "a", np.ones((1, 16, 16, 16), np.uint8), (8, 8, 8))
        target = layer.add_mag(2, **SMALL)
        source = wkdask.open_mag(layer[1].path)
        goal = wkdask.open_mag(target.path).get_view((4, 4, 4), (8, 8, 8), read_only=True)
        with pytest.raises(errors.ReadOnlyError):
            wkdask.downsample(source, goal, "max")
        wkdask.downsample(source, target, "max")
        assert target.get_view().read().all()

    def test_views_and_mag_views_are_the_same(self, tmp_path, voxels):
        layer = new_layer(tmp_path / "a", voxels, OFFSET)
        layer.add_mag(2, **SMALL)
        for pair in itertools.product(
            (layer[1], layer[1].get_view(), layer[1].get_view(read_only=True)),
            (layer[2], layer[2].get_view()),
        ):
            layer[2].get_view().write(np.zeros((2, *layer[2].bounding_box.size), np.uint16))
            wkdask.downsample(*pair, "max")
            expected = plainly(voxels, OFFSET, (2, 2, 2), "max")
            np.testing.assert_array_equal(layer[2].get_view().read(), expected)


# --- what is written, what is refused -----------------------------------------------------------


class TestWhatIsWritten:
    def test_only_files_of_the_target(self, tmp_path, voxels, snapshot):
        layer = new_layer(tmp_path / "a", voxels, OFFSET)
        layer.add_mag("4-2-1", **{**SMALL, "block_type": "lz4"})
        before = snapshot(tmp_path)
        wkdask.downsample(layer[1], layer["4-2-1"], "max")
        after = snapshot(tmp_path)
        assert {path: after[path] for path in before} == before
        new = {Path(path) for path in after.keys() - before.keys() if after[path] is not None}
        # Voxels [1, 12), [1, 15), [7, 26) in files of 8.
        cells = itertools.product(range(2), range(2), range(4))
        root = Path(layer["4-2-1"].path).relative_to(tmp_path)
        assert new == {root / f"z{z}" / f"y{y}" / f"x{x}.wkw" for x, y, z in cells}

    def test_one_task_per_target_file(self, tmp_path, voxels, monkeypatch):
        boxes: list[BoundingBox] = []
        fill = WkwVolume.fill

        def watched(self: WkwVolume, box: BoundingBox, *args: Any, **keys: Any) -> None:
            boxes.append(box)
            fill(self, box, *args, **keys)

        layer = new_layer(tmp_path / "a", voxels, OFFSET)
        layer.add_mag("4-2-1", **{**SMALL, "block_type": "lz4"})
        monkeypatch.setattr(WkwVolume, "fill", watched)
        wkdask.downsample(layer[1], layer["4-2-1"], "max")
        box = layer["4-2-1"].bounding_box
        files = list(box.chunk((8, 8, 8), (8, 8, 8)))
        assert sorted(boxes, key=lambda b: b.topleft) == sorted(files, key=lambda b: b.topleft)

    def test_an_unreadable_source_file_is_an_error(self, tmp_path, voxels):
        layer = new_layer(tmp_path / "a", voxels, OFFSET)
        layer.add_mag(2, **SMALL)
        broken = Path(layer[1].path) / "z1" / "y1" / "x1.wkw"
        broken.write_bytes(b"WKW")
        with pytest.raises(errors.FormatError, match="x1"):
            wkdask.downsample(layer[1], layer[2], "max")


REFUSED: list[tuple[Callable[[wkdask.Dataset], object], type, list[str], str]] = [
    # attempt, class, words of the text, reason
    (
        lambda ds: wkdask.downsample(ds["a"][1], ds["a"][2], "average"),
        errors.ArgumentError,
        ["'average'", *MODES],
        "unknown mode",
    ),
    (
        lambda ds: wkdask.downsample(ds["a"][1], ds["a"][2], None),
        errors.ArgumentError,
        ["None", *MODES],
        "no mode",
    ),
    (
        lambda ds: wkdask.downsample(ds["a"][1], ds["a"][2], ["max"]),
        errors.ArgumentError,
        ["['max']", *MODES],
        "a list of modes",
    ),
    (
        lambda ds: wkdask.downsample(ds["a"][1], ds["rgb"][2]),
        errors.ArgumentError,
        ["1 channel(s) of uint8", "3 channel(s) of uint8"],
        "channels",
    ),
    (
        lambda ds: wkdask.downsample(ds["a"][1], ds["wide"][2]),
        errors.ArgumentError,
        ["1 channel(s) of uint8", "1 channel(s) of uint16"],
        "dtype",
    ),
    (
        lambda ds: wkdask.downsample(ds["a"][2], ds["a"][3]),
        errors.ArgumentError,
        ["mag 3", "mag 2", "whole multiple"],
        "factor 1.5",
    ),
    (
        lambda ds: wkdask.downsample(ds["a"][2], ds["a"][1]),
        errors.ArgumentError,
        ["mag 1", "mag 2", "whole multiple"],
        "upwards",
    ),
    (
        lambda ds: wkdask.downsample(ds["a"][1], ds["a"][2].get_view(size=(5, 5, 5))),
        errors.ArgumentError,
        ["get_view((1, 1, 2), (6, 5, 5))"],
        "a smaller target",
    ),
    (
        lambda ds: wkdask.downsample(ds["a"][1].get_view(size=(8, 8, 8)), ds["a"][2]),
        errors.ArgumentError,
        ["get_view((1, 1, 2), (5, 4, 4))"],
        "a smaller source",
    ),
    (
        lambda ds: wkdask.downsample(ds["a"][1], ds["far"][2]),
        errors.ArgumentError,
        ["get_view((1, 1, 2), (6, 5, 5))"],
        "another place",
    ),
    (
        lambda ds: wkdask.downsample(ds["empty"][1], ds["a"][2]),
        errors.ArgumentError,
        ["empty"],
        "no source",
    ),
    (
        lambda ds: wkdask.downsample(ds["a"][1], ds["empty"][2]),
        errors.ArgumentError,
        ["empty"],
        "no target",
    ),
    (
        lambda ds: wkdask.downsample(ds["a"][1], ds["a"][2].get_view(read_only=True)),
        errors.ReadOnlyError,
        ["read-only"],
        "target is read-only",
    ),
    (
        lambda ds: wkdask.downsample(ds["a"][1], ds["a"][2], executor=2),
        errors.ArgumentError,
        ["executor is 2"],
        "no executor",
    ),
]


@pytest.mark.parametrize(
    ("attempt", "kind", "words", "reason"), REFUSED, ids=[row[-1] for row in REFUSED]
)
def test_refused(tmp_path, snapshot, attempt, kind, words, reason):
    ds = wkdask.create(tmp_path / "a", (1, 1, 1))
    box = BoundingBox((3, 2, 4), (10, 10, 9))
    places = {
        "a": ("uint8", 1, box),
        "rgb": ("uint8", 3, box),
        "wide": ("uint16", 1, box),
        "far": ("uint8", 1, box.moved_by((2, 0, 0))),
        "empty": ("uint8", 1, None),
    }
    for name, (dtype, channels, place) in places.items():
        layer = ds.add_layer(name, "color", dtype, channels, place)
        for mag in (1, 2, 3):
            layer.add_mag(mag, **SMALL)
    ds["a"][1].get_view().write(np.ones(box.size, np.uint8))
    before = snapshot(tmp_path)
    with pytest.raises(kind) as caught:
        attempt(ds)
    assert isinstance(caught.value, errors.WkdaskError)
    assert [word for word in words if word not in str(caught.value)] == [], str(caught.value)
    assert snapshot(tmp_path) == before


def test_the_box_that_the_message_names_is_right(tmp_path, voxels):
    layer = new_layer(tmp_path / "a", voxels, OFFSET)
    target = layer.add_mag(2, **SMALL)
    source = layer[1].get_view((11, 5, 9), (7, 6, 5))
    with pytest.raises(errors.ArgumentError) as caught:
        wkdask.downsample(source, target, "max")
    assert "get_view((5, 2, 4), (4, 4, 3))" in str(caught.value)
    wkdask.downsample(source, target.get_view((5, 2, 4), (4, 4, 3)), "max")


def test_modes_are_those_of_the_kernels():
    assert {*MODES} <= {*kernels.MODES}
