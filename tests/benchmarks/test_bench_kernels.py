"""Speed of the downsampling kernels beside NumPy, a plain copy and tinybrain, in one run.

Every benchmark is also a test: with `--benchmark-disable` it runs once and checks the voxels.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from wkdask.kernels import downsample

pytest.importorskip("pytest_benchmark")

EDGE = 128
FACTOR = (2, 2, 2)
CASES = [("median", "uint8"), ("mean", "uint8"), ("mode", "uint32"), ("max", "uint8")]


def tissue(dtype: str) -> np.ndarray:
    """Noise for images; for labels noisy cells of about 16 voxels. Shape (1, x, y, z)."""
    generator = np.random.default_rng(0)
    if dtype == "uint8":
        voxels = generator.integers(0, 256, (EDGE,) * 3, dtype)
    else:
        cells = generator.integers(0, 2**32, (EDGE // 16,) * 3, dtype)
        voxels = cells.repeat(16, 0).repeat(16, 1).repeat(16, 2)
        stray = generator.random(voxels.shape) < 0.05
        voxels[stray] = generator.integers(0, 4, int(stray.sum()), dtype)
    return np.asfortranarray(voxels)[np.newaxis]


def octets(array: np.ndarray) -> np.ndarray:
    """(1, x, y, z) -> (8, x/2, y/2, z/2), voxels in the order y fastest, then x, then z."""
    corners = [array[0, x::2, y::2, z::2] for z in (0, 1) for x in (0, 1) for y in (0, 1)]
    return np.stack(corners)


def numpy_mode(voxels: np.ndarray) -> np.ndarray:
    votes = np.stack([(voxels == candidate).sum(axis=0) for candidate in voxels])
    return np.take_along_axis(voxels, votes.argmax(axis=0)[np.newaxis], axis=0)[0]


REFERENCES: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "median": lambda voxels: np.median(voxels, axis=0).astype(voxels.dtype),
    "mean": lambda voxels: np.rint(voxels.mean(axis=0)).astype(voxels.dtype),
    "mode": numpy_mode,
    "max": lambda voxels: voxels.max(axis=0),
}


def report(benchmark: Any, mode: str, array: np.ndarray) -> None:
    benchmark.group = f"{mode} {array.dtype} {FACTOR}"
    benchmark.extra_info["source_voxels"] = array.size


@pytest.mark.parametrize(("mode", "dtype"), CASES)
def test_wkdask(benchmark: Any, mode: str, dtype: str) -> None:
    array = tissue(dtype)
    expected = REFERENCES[mode](octets(array))
    downsample(array, FACTOR, mode)  # compiles
    report(benchmark, mode, array)
    result = benchmark(downsample, array, FACTOR, mode)
    np.testing.assert_array_equal(result[0], expected)


@pytest.mark.parametrize(("mode", "dtype"), CASES)
def test_numpy(benchmark: Any, mode: str, dtype: str) -> None:
    array = tissue(dtype)
    report(benchmark, mode, array)
    result = benchmark(lambda: REFERENCES[mode](octets(array)))
    np.testing.assert_array_equal(result, downsample(array, FACTOR, mode)[0])


@pytest.mark.parametrize(("mode", "dtype"), CASES)
def test_copy_of_the_same_bytes(benchmark: Any, mode: str, dtype: str) -> None:
    array = tissue(dtype)
    target = np.empty_like(array)
    report(benchmark, mode, array)
    benchmark(np.copyto, target, array)
    np.testing.assert_array_equal(target, array)


@pytest.mark.parametrize(
    ("mode", "dtype", "function"),
    [("mean", "uint8", "downsample_with_averaging"), ("mode", "uint32", "downsample_segmentation")],
)
def test_tinybrain(benchmark: Any, mode: str, dtype: str, function: str) -> None:
    tinybrain = pytest.importorskip("tinybrain")
    array = tissue(dtype)
    report(benchmark, mode, array)
    (result,) = benchmark(getattr(tinybrain, function), array[0], FACTOR, num_mips=1)
    # Its rules for halves and for ties are others, so it may differ by one or in few voxels.
    ours = downsample(array, FACTOR, mode)[0]
    close = np.abs(result.astype(float) - ours) <= 1 if mode == "mean" else result == ours
    assert close.mean() > 0.95
