"""Speed of lazy arrays on 1,000,000 files: building one, and a small slice out of the middle.

Every benchmark is also a test: with `--benchmark-disable` it runs once and checks the result.
Targets: `to_dask` 10 ms; a slice of 10 voxels cubed 10 ms with threads, 50 ms on a warm cluster.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import dask
import numpy as np
import pytest

import wkdask

pytest.importorskip("pytest_benchmark")

INDEX = np.s_[0, 50_000:50_010, 50_000:50_010, 50_000:50_010]
TARGET_MS = {"to_dask": 10, "slice": 10, "cluster": 50}

# How the same voxels are asked for.
SLICES: dict[str, Callable[[wkdask.View], Any]] = {
    "view[...]": lambda view: view[INDEX],
    "to_dask()[...]": lambda view: view.to_dask()[INDEX],
    "to_xarray().isel": lambda view: (
        view.to_xarray().isel(dict(zip("cxyz", INDEX, strict=True))).data
    ),
}


@pytest.fixture(scope="module")
def view(tmp_path_factory: pytest.TempPathFactory) -> wkdask.View:
    """100 x 100 x 100 files of 1024 cubed; the one that is sliced exists."""
    dataset = wkdask.create(tmp_path_factory.mktemp("million") / "tissue", voxel_size=(8, 8, 8))
    box = wkdask.BoundingBox((0, 0, 0), (102_400,) * 3)
    layer = dataset.add_layer("color", "color", "uint8", bounding_box=box)
    mag = layer.add_mag(1, block_type="raw")
    view = mag.get_view()
    view.write(np.arange(1000, dtype=np.uint8).reshape(10, 10, 10), (50_000,) * 3)
    return view


def note(benchmark: Any, target: str) -> None:
    benchmark.group = f"1,000,000 files: {target}"
    benchmark.extra_info["target_ms"] = TARGET_MS[target]


def check(voxels: np.ndarray) -> None:
    expected = np.arange(1000, dtype=np.uint8).reshape(10, 10, 10)
    np.testing.assert_array_equal(voxels, expected)


@pytest.mark.parametrize("chunks", ["file", "auto"])
def test_to_dask(benchmark: Any, view: wkdask.View, chunks: str) -> None:
    note(benchmark, "to_dask")
    array = benchmark(view.to_dask, chunks)
    assert array.npartitions >= 1_000_000


@pytest.mark.parametrize("how", SLICES)
def test_slice_with_threads(benchmark: Any, view: wkdask.View, how: str) -> None:
    note(benchmark, "slice")
    with dask.config.set(scheduler="threads"):
        check(benchmark(lambda: np.asarray(SLICES[how](view).compute())))


@pytest.mark.slow
@pytest.mark.parametrize("how", SLICES)
def test_slice_on_a_warm_cluster(benchmark: Any, view: wkdask.View, client: Any, how: str) -> None:
    note(benchmark, "cluster")
    check(SLICES[how](view).compute())  # warms it
    check(benchmark(lambda: np.asarray(SLICES[how](view).compute())))
