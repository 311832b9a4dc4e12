"""Lazy arrays over a million files: building one, and computing ten voxels cubed.

Figures to reach: 10 ms to build, 10 ms to compute with threads, 50 ms on a warm cluster.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import wkdask

INDEX = np.s_[:, 5_000:5_010, 60_000:60_010, 100_000:100_010]
EDGE = 102_400


@pytest.fixture(scope="module")
def mag(tmp_path_factory: pytest.TempPathFactory) -> wkdask.MagView:
    dataset = wkdask.create(tmp_path_factory.mktemp("million") / "tissue", voxel_size=(4, 4, 40))
    box = wkdask.BoundingBox((0, 0, 0), (EDGE, EDGE, EDGE))
    mag = dataset.add_layer("color", "color", "uint8", bounding_box=box).add_mag(
        1, block_type="raw"
    )
    corner = tuple(part.start for part in INDEX[1:])
    mag.write(np.full((10, 10, 10), 7, np.uint8), corner)
    return mag


@pytest.mark.benchmark(group="a million files")
def test_to_dask(benchmark: Any, mag: wkdask.MagView) -> None:
    assert benchmark(mag.to_dask).npartitions == 1_000_000


@pytest.mark.benchmark(group="a million files")
def test_ten_cubed_with_threads(benchmark: Any, mag: wkdask.MagView) -> None:
    array = mag.to_dask()
    assert benchmark(lambda: array[INDEX].compute(scheduler="threads")).min() == 7


@pytest.mark.benchmark(group="a million files")
def test_ten_cubed_on_a_cluster(benchmark: Any, mag: wkdask.MagView, client: object) -> None:
    array = mag.to_dask()
    array[INDEX].compute()
    assert benchmark(lambda: array[INDEX].compute()).min() == 7
