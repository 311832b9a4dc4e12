"""Speed of the downsampling kernels beside NumPy, a plain copy and tinybrain, in one run.

Every benchmark is also a test: with `--benchmark-disable` it runs once and checks the voxels.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import reduce
from itertools import product
from typing import Any

import numpy as np
import pytest

from wkdask.kernels import downsample, halo, upsample, upsampling_halo

pytest.importorskip("pytest_benchmark")

EDGE = 128
FACTORS = [(2, 2, 1), (2, 2, 2)]
MODES = [("median", "uint8"), ("mean", "uint8"), ("mode", "uint32"), ("max", "uint8")]
CASES = [(*case, factor) for case in MODES for factor in FACTORS]
OTHERS = [
    (mode, dtype, factor)
    for factor in [(1, 1, 2), (2, 1, 1), (3, 3, 1), (4, 4, 2), (4, 4, 4), (8, 8, 8)]
    for mode, dtype in [*MODES, ("mode", "uint8")]
]
TINYBRAIN = {
    "mean": ("downsample_with_averaging", "F"),
    "mode": ("downsample_segmentation", "F"),
    "max": ("downsample_with_max_pooling", "C"),
}
"""Its functions, and the order of voxels that each is fastest with."""


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


def corners(array: np.ndarray, factor: tuple[int, int, int]) -> list[np.ndarray]:
    """(1, x, y, z) -> a view per voxel of a block, in the order y fastest, then x, then z."""
    fx, fy, fz = factor
    places = product(range(fz), range(fx), range(fy))
    return [array[0, x::fx, y::fy, z::fz] for z, x, y in places]


def numpy_mode(corners: list[np.ndarray]) -> np.ndarray:
    voxels = np.stack(corners)
    votes = np.stack([(voxels == candidate).sum(axis=0) for candidate in voxels])
    return np.take_along_axis(voxels, votes.argmax(axis=0)[np.newaxis], axis=0)[0]


def numpy_mean(corners: list[np.ndarray]) -> np.ndarray:
    total = np.zeros(corners[0].shape, "uint16", order="F")
    for voxels in corners:
        total += voxels
    return np.rint(total / np.float32(len(corners))).astype("uint8")


REFERENCES: dict[str, Callable[[list[np.ndarray]], np.ndarray]] = {
    "median": lambda voxels: np.median(np.stack(voxels), axis=0).astype(voxels[0].dtype),
    "mean": numpy_mean,
    "mode": numpy_mode,
    "max": lambda voxels: reduce(np.maximum, voxels),
}


def report(benchmark: Any, mode: str, array: np.ndarray, factor: tuple[int, int, int]) -> None:
    benchmark.group = f"{mode} {array.dtype} {factor}"
    benchmark.extra_info["source_voxels"] = array.size


@pytest.mark.parametrize(("mode", "dtype", "factor"), CASES)
def test_wkdask(benchmark: Any, mode: str, dtype: str, factor: tuple[int, int, int]) -> None:
    array = tissue(dtype)
    expected = REFERENCES[mode](corners(array, factor))
    downsample(array, factor, mode)  # compiles
    report(benchmark, mode, array, factor)
    result = benchmark(downsample, array, factor, mode)
    np.testing.assert_array_equal(result[0], expected)


@pytest.mark.parametrize(("mode", "dtype", "factor"), CASES)
def test_numpy(benchmark: Any, mode: str, dtype: str, factor: tuple[int, int, int]) -> None:
    array = tissue(dtype)
    report(benchmark, mode, array, factor)
    result = benchmark(lambda: REFERENCES[mode](corners(array, factor)))
    np.testing.assert_array_equal(result, downsample(array, factor, mode)[0])


@pytest.mark.parametrize(("mode", "dtype", "factor"), CASES)
def test_copy_of_the_same_bytes(
    benchmark: Any, mode: str, dtype: str, factor: tuple[int, int, int]
) -> None:
    array = tissue(dtype)
    target = np.empty_like(array)
    report(benchmark, mode, array, factor)
    benchmark(np.copyto, target, array)
    np.testing.assert_array_equal(target, array)


@pytest.mark.filterwarnings("ignore:Passing more than 2 positional:DeprecationWarning")
@pytest.mark.parametrize(("mode", "dtype", "factor"), [c for c in CASES if c[0] in TINYBRAIN])
def test_tinybrain(benchmark: Any, mode: str, dtype: str, factor: tuple[int, int, int]) -> None:
    tinybrain = pytest.importorskip("tinybrain")
    array = tissue(dtype)
    report(benchmark, mode, array, factor)
    name, order = TINYBRAIN[mode]
    theirs = np.asarray(array[0], order=order)
    (result,) = benchmark(getattr(tinybrain, name), theirs, factor, num_mips=1)
    # Its rules for halves and for ties are others, so it may differ by one or in few voxels.
    ours = downsample(array, factor, mode)[0]
    close = np.abs(result.astype(float) - ours) <= 1 if mode == "mean" else result == ours
    assert close.mean() > 0.95


@pytest.mark.slow
@pytest.mark.parametrize(("mode", "dtype", "factor"), OTHERS)
def test_other_factors(benchmark: Any, mode: str, dtype: str, factor: tuple[int, int, int]) -> None:
    sizes = (EDGE - EDGE % step for step in factor)
    array = tissue(dtype)[(slice(None), *map(slice, sizes))].copy(order="F")
    downsample(array, factor, mode)  # compiles
    report(benchmark, mode, array, factor)
    benchmark(downsample, array, factor, mode)


@pytest.mark.parametrize("factor", FACTORS)
def test_bicubic(benchmark: Any, factor: tuple[int, int, int]) -> None:
    array = np.pad(tissue("uint8"), [(0, 0), *((n, n) for n in halo("bicubic", factor))])
    array = np.asfortranarray(array)
    downsample(array, factor, "bicubic")  # compiles
    report(benchmark, "bicubic", array, factor)
    benchmark(downsample, array, factor, "bicubic")


@pytest.mark.parametrize("mode", ["nearest", "bilinear"])
def test_upsample(benchmark: Any, mode: str) -> None:
    """`source_voxels` are those of the result, of which there are eight times as many."""
    around = upsampling_halo(mode, (2, 2, 2))
    array = np.pad(tissue("uint8")[:, :64, :64, :64], [(0, 0), *((n, n) for n in around)])
    array = np.asfortranarray(array)
    result = upsample(array, (2, 2, 2), mode)  # compiles
    report(benchmark, f"upsample {mode}", result, (2, 2, 2))
    benchmark(upsample, array, (2, 2, 2), mode)
