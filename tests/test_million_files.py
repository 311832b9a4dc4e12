"""A dataset of a million files, of which only headers exist: everything is small and lazy."""

from __future__ import annotations

import os
import pickle
from pathlib import Path

import dask
import numpy as np
import pytest

import wkdask

EDGE = 102_400  # voxels; files of edge 1024, so 100 of them per axis
INDEX = np.s_[:, 5_000:5_010, 60_000:60_010, 100_000:100_010]


@pytest.fixture(scope="module")
def mag(tmp_path_factory: pytest.TempPathFactory) -> wkdask.MagView:
    dataset = wkdask.create(tmp_path_factory.mktemp("million") / "tissue", voxel_size=(4, 4, 40))
    box = wkdask.BoundingBox((0, 0, 0), (EDGE, EDGE, EDGE))
    return dataset.add_layer("color", "color", "uint8", bounding_box=box).add_mag(1)


def keys_of(collection: object) -> int:
    (optimized,) = dask.optimize(collection)
    return len(dict(optimized.__dask_graph__()))


def test_a_million_chunks_are_one_layer(mag: wkdask.MagView) -> None:
    array = mag.to_dask()
    assert array.npartitions == 1_000_000
    assert len(array.dask.layers) == 1
    assert len(pickle.dumps(array.dask)) < 10_000


def test_a_slice_is_a_task_or_two(mag: wkdask.MagView) -> None:
    for part in (mag.to_dask()[INDEX], mag[INDEX], mag[INDEX] + 1):
        assert keys_of(part) <= 2
        assert len(pickle.dumps(dask.optimize(part)[0].dask)) < 4_000


def test_nothing_is_listed(mag: wkdask.MagView, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("a directory was listed")

    for name in ("scandir", "listdir", "walk"):
        monkeypatch.setattr(os, name, refuse)
    again = wkdask.open(Path(mag.path).parents[1])["color"][1]
    assert not again[INDEX].compute(scheduler="synchronous").any()


def test_opening_tells_the_box(mag: wkdask.MagView) -> None:
    again = wkdask.open(Path(mag.path).parents[1])["color"][1]
    assert again.bounding_box.size == (EDGE, EDGE, EDGE)
    assert again.to_xarray().sizes == {"c": 1, "x": EDGE, "y": EDGE, "z": EDGE}


def test_a_slice_is_computed_on_a_cluster(mag: wkdask.MagView, client: object) -> None:
    assert mag[INDEX].compute().shape == (1, 10, 10, 10)
