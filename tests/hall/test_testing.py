"""Synthetic tissue: exact agreement of boxes, and the look that the demos rely on."""

from __future__ import annotations

import doctest
import pickle
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from wkdask import testing
from wkdask import testing as synthetic
from wkdask.geometry import BoundingBox
from wkdask.storage.header import VolumeHeader
from wkdask.storage.wkw import WkwVolume
from wkdask.testing import Tissue

ORIGIN = (0, 0, 0)
FUNCTIONS = ["labels", "grey"]
DTYPES = {"labels": np.uint32, "grey": np.uint8}


def volume(name: str, topleft: Any, size: Any, **tissue: Any) -> np.ndarray:
    return getattr(Tissue(**tissue), name)(topleft, size)


@pytest.mark.parametrize("name", FUNCTIONS)
@pytest.mark.parametrize(
    ("topleft", "size"),
    [
        pytest.param(ORIGIN, (1, 1, 1), id="one voxel"),
        pytest.param(ORIGIN, (5, 4, 3), id="a corner"),
        pytest.param(ORIGIN, (5, 0, 3), id="empty"),
        pytest.param((100_000, 200_000, 50_000), (7, 1, 2), id="far away"),
        pytest.param(np.array([1, 2, 3]), np.array([4, 5, 6]), id="numpy ints"),
    ],
)
def test_dtype_shape_and_order(name: str, topleft: Any, size: Any) -> None:
    out = volume(name, topleft, size)
    assert out.dtype == DTYPES[name]
    assert out.shape == tuple(size)
    assert out.flags.f_contiguous


@st.composite
def boxes_and_parts(draw: st.DrawFn) -> tuple[list[int], list[int], list[int], list[int]]:
    topleft = [draw(st.integers(0, 3000)) for _ in range(3)]
    size = [draw(st.integers(1, 40)) for _ in range(3)]
    skip = [draw(st.integers(0, edge - 1)) for edge in size]
    part = [draw(st.integers(1, edge - first)) for edge, first in zip(size, skip, strict=True)]
    return topleft, size, skip, part


@pytest.mark.parametrize("name", FUNCTIONS)
@settings(max_examples=30, deadline=None)
@given(box=boxes_and_parts(), seed=st.integers(-5, 2**40))
def test_part_is_slice_of_whole(name: str, box: Any, seed: int) -> None:
    topleft, size, skip, part = box
    whole = volume(name, topleft, size, seed=seed)
    alone = volume(name, np.add(topleft, skip), part, seed=seed)
    where = tuple(slice(a, a + n) for a, n in zip(skip, part, strict=True))
    np.testing.assert_array_equal(alone, whole[where])


@pytest.mark.parametrize("name", FUNCTIONS)
@pytest.mark.parametrize("voxel_size", [(11.24, 11.24, 28.0), (8.0, 8.0, 8.0), (80.0, 35.0, 16.0)])
def test_tiles_agree(monkeypatch: pytest.MonkeyPatch, name: str, voxel_size: Any) -> None:
    whole = volume(name, (3, 9, 1), (61, 47, 33), voxel_size=voxel_size)
    monkeypatch.setattr(synthetic, "TILE", (17, 23, 8))
    tiled = volume(name, (3, 9, 1), (61, 47, 33), voxel_size=voxel_size)
    np.testing.assert_array_equal(tiled, whole)


@pytest.mark.parametrize(
    "voxel_size", [(11.24, 11.24, 28.0), pytest.param((2e3, 2e3, 2e3), id="voxels above cells")]
)
def test_temporary_arrays_are_bounded(voxel_size: Any) -> None:
    tissue = Tissue(voxel_size=voxel_size)
    tissue.grey(ORIGIN, (1, 1, 1))
    size = (300, 200, 70) if voxel_size[0] < 100 else (9, 8, 7)
    tracemalloc.start()
    tissue.grey(ORIGIN, size)
    _, peak_bytes = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak_bytes < 100e6


@pytest.mark.parametrize("name", FUNCTIONS)
def test_seeds_differ(name: str) -> None:
    first, second = (volume(name, ORIGIN, (30, 30, 10), seed=seed) for seed in (0, 1))
    assert (first != second).mean() > 0.8


def test_ids_are_plausible() -> None:
    ids = np.unique(Tissue().labels(ORIGIN, (150, 150, 40)))
    assert 20 < len(ids) < 1000
    assert ids[0] >= 1
    assert ids[-1] <= 2**24
    assert np.ptp(ids) > 1_000_000


def test_membranes_are_darker_than_insides() -> None:
    labels, grey = (volume(name, (50, 60, 70), (150, 150, 20)) for name in FUNCTIONS)
    border = np.zeros(labels.shape, bool)
    for axis in (0, 1):
        border |= (labels != np.roll(labels, 1, axis)) | (labels != np.roll(labels, -1, axis))
    border, grey = border[1:-1, 1:-1], grey[1:-1, 1:-1]
    assert 60 < grey[border].mean() < 100
    assert 125 < np.median(grey[~border]) < 155


def test_structures_are_isotropic_in_nm() -> None:
    labels = Tissue(voxel_size=(10.0, 10.0, 30.0)).labels(ORIGIN, (300, 300, 100))
    changes = [(np.diff(labels, axis=axis) != 0).mean() for axis in range(3)]
    assert 2 < changes[2] / np.mean(changes[:2]) < 4


@pytest.mark.parametrize(
    ("tissue", "box", "message"),
    [
        pytest.param({"cell_size_nm": 0}, None, "positive", id="no size"),
        pytest.param({"voxel_size": (1, 1, np.nan)}, None, "positive", id="not a number"),
        pytest.param({"voxel_size": (1, 1)}, None, "three edges", id="two edges"),
        pytest.param({}, ((0, -1, 0), (1, 1, 1)), "topleft", id="negative topleft"),
        pytest.param({}, (ORIGIN, (1, 1, -1)), "size", id="negative size"),
    ],
)
def test_refusals(tissue: Any, box: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        volume("labels", *(box or (ORIGIN, (1, 1, 1))), **tissue)


def test_fractions_are_refused() -> None:
    with pytest.raises(TypeError):
        Tissue().labels((0.5, 0, 0), (1, 1, 1))  # type: ignore[list-item]


def test_is_small_and_picklable() -> None:
    tissue = Tissue(seed=3, cell_size_nm=200.0)
    assert pickle.loads(pickle.dumps(tissue)) == tissue
    assert len(pickle.dumps(tissue)) < 300


def test_examples_of_the_docstrings() -> None:
    results = doctest.testmod(synthetic)
    assert results.attempted > 0
    assert results.failed == 0


class TestHelpers:
    def test_voxels_for_a_header(self) -> None:
        header = VolumeHeader("float32", 2, 4, 2)
        voxels = testing.voxels_for(header)
        assert (voxels.shape, voxels.dtype) == ((2, 8, 8, 8), np.float32)
        assert 0 not in voxels.T.view(np.uint8)
        assert not np.array_equal(voxels, testing.voxels_for(header, seed=2), equal_nan=True)

    def test_libwkw_reads_what_it_wrote(self, tmp_path: Path) -> None:
        header = VolumeHeader("uint8", 1, 4, 2, "lz4")
        volume = WkwVolume.create(tmp_path / "1", header)
        box, voxels = BoundingBox((0, 0, 0), (8, 8, 8)), testing.voxels_for(header)
        testing.write_by_libwkw(volume.path, header, box, voxels)
        assert np.array_equal(testing.read_by_libwkw(volume.path, box), voxels)
        assert set(testing.snapshot(tmp_path)) >= {"1", "1/header.wkw", "1/z0/y0/x0.wkw"}

    @given(testing.boxes(most=20), testing.headers(most_voxels=8))
    def test_strategies(self, box: BoundingBox, header: VolumeHeader) -> None:
        assert not box.is_empty
        assert max(box.bottomright) <= 20
        assert header.file_size[0] <= 8
