"""Down- and upsampling: examples with reasons, properties against a slow reference, oracles."""

from __future__ import annotations

import importlib
import math
import subprocess
import sys
import warnings
from collections import Counter
from collections.abc import Callable
from fractions import Fraction
from itertools import product
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from wkdask import kernels
from wkdask.errors import ArgumentError, DtypeError
from wkdask.kernels import DTYPES, MODES, UPSAMPLING_MODES, blockwise, downsample, halo, upsample

NAN = math.nan
INF = math.inf
U64 = 2**64 - 1
I64 = 2**63 - 1

# --- examples ---------------------------------------------------------------------------------

# mode, dtype, the block in the order y fastest, then x, then z; the voxel; the reason
# (4 voxels are a 2x2x1 block, 8 are 2x2x2, others are 1xNx1: each has its own compiled loop)
EXAMPLES = [
    ("median", "uint8", [254, 255, 254, 255], 254, "half truncates; the sum leaves 8 bits"),
    ("median", "uint8", [1, 9, 5], 5, "odd count: the middle"),
    ("median", "uint8", [255] * 4 + [254] * 4, 254, "the same in 8 voxels"),
    ("median", "uint8", [8, 1, 7, 2, 6, 3, 5, 4], 4, "(4 + 5) // 2, unsorted"),
    ("median", "uint8", [0, 0, 0, 0, 0, 200, 200, 200], 0, "a minority has no say"),
    ("median", "uint8", [7, 9], 8, "two voxels"),
    ("median", "int8", [-2, -1, -2, -1], -1, "toward zero, not down"),
    ("median", "int8", [-2, -1], -1, "toward zero in the general loop"),
    ("median", "int8", [-128, -127, -127, -128], -127, "toward zero at the lower end"),
    ("median", "int8", [-1, 0, -1, 0], 0, "-0.5 becomes 0"),
    ("median", "int8", [-128, 127, 127, -128], 0, "the middle of the range, no overflow"),
    ("median", "uint64", [U64, U64 - 1, U64, U64 - 1], U64 - 1, "exact where float64 is not"),
    ("median", "uint64", [U64, U64 - 2] * 4, U64 - 1, "exact in 8 voxels"),
    ("median", "uint64", [U64, U64 - 2], U64 - 1, "exact in the general loop"),
    ("median", "int64", [-I64 - 1, -I64] * 2, -I64, "exact and toward zero at the lower end"),
    ("median", "float64", [1, 2, 3, 4], 2.5, "floats keep the half"),
    ("median", "float64", [1, NAN, 3, 4], NAN, "np.median: any NaN gives NaN"),
    ("median", "float64", [1, 2, 3, 4, 5, 6, 7, NAN], NAN, "NaN last in 8 voxels"),
    ("median", "float64", [NAN, 2, 3, 4, 5, 6, 7, 8], NAN, "NaN first in 8 voxels"),
    ("median", "float64", [1, NAN, 3], NAN, "NaN in the general loop"),
    ("median", "float64", [-INF, INF, INF, INF], INF, "infinities are ordinary values"),
    ("mode", "uint8", [7, 9, 9, 7], 7, "tie: the first"),
    ("mode", "uint8", [9, 7, 7, 9], 9, "tie: the first, not the smallest"),
    ("mode", "uint8", [1, 2, 3, 3], 3, "a pair beats singles"),
    ("mode", "uint8", [1, 2, 3, 4], 1, "all differ: the first"),
    ("mode", "uint8", [0, 0, 0, 5], 0, "0 is a value"),
    ("mode", "uint8", [1, 2, 2, 3, 3, 3, 1, 1], 1, "tie of three each in 8 voxels: the first"),
    ("mode", "uint8", [4, 5, 6, 6, 5, 4, 6, 5], 5, "tie of 5 and 6: 5 comes first"),
    ("mode", "uint8", [5, 6, 6], 6, "odd count"),
    ("mode", "uint64", [U64, U64 - 1, U64 - 1, 1], U64 - 1, "labels that float64 can't tell apart"),
    ("mode", "float64", [1, NAN, NAN, 2], NAN, "NaN is one value"),
    ("mode", "float64", [1, NAN, 1, NAN], 1, "NaN ties like a value"),
    ("mode", "float64", [1, NAN, NAN], NAN, "the same in the general loop"),
    ("max", "int8", [-128, -1, -3, -2], -1, "signed"),
    ("max", "uint64", [U64, 1, 2, 3], U64, "unsigned"),
    ("max", "float64", [1, NAN, 3, 4], NAN, "np.max: NaN wins"),
    ("max", "float64", [NAN, 1, 2], NAN, "NaN first, in the general loop"),
    ("min", "int8", [-128, 5, 6, 7], -128, "signed"),
    ("min", "float64", [1, 2, 3, 4, 5, 6, 7, NAN], NAN, "np.min: NaN wins"),
    ("min", "float64", [3, 1, INF], 1, "odd count"),
    ("mean", "uint8", [255] * 8, 255, "the sum leaves 8 bits"),
    ("mean", "uint8", [0, 1, 0, 1], 0, "0.5 to even: down"),
    ("mean", "uint8", [1, 2, 1, 2], 2, "1.5 to even: up"),
    ("mean", "uint8", [2, 3], 2, "2.5 to even in the general loop"),
    ("mean", "uint8", [0, 0, 0, 0, 0, 1, 1, 3], 1, "0.625 rounds up"),
    ("mean", "uint8", [0, 0, 1], 0, "a third rounds down"),
    ("mean", "int8", [-1, 0, -1, 0], 0, "-0.5 to even: up"),
    ("mean", "int8", [-1, -2, -1, -2], -2, "-1.5 to even: down"),
    ("mean", "int8", [-128] * 8, -128, "the sum leaves 8 bits"),
    ("mean", "int8", [-128, -128, -127], -128, "-127.67 in the general loop"),
    ("mean", "int8", [-128, 127, 127, -128], 0, "-0.5 to even"),
    ("mean", "uint64", [U64, U64, U64, U64 - 1], U64, "the sum leaves 64 bits"),
    ("mean", "uint64", [U64, U64, U64 - 1], U64, "the same in the general loop"),
    ("mean", "int64", [-I64 - 1] * 8, -I64 - 1, "the sum leaves 64 bits downwards"),
    ("mean", "int64", [-I64 - 1] * 3, -I64 - 1, "the same in the general loop"),
    ("mean", "float32", [2.0**24, 1, 1, 2], 2.0**22 + 1, "float32 would lose the ones"),
    ("mean", "float64", [1, NAN, 3, 4], NAN, "NaN spreads"),
    ("bilinear", "uint8", [0, 1, 0, 1], 0, "the mean of 2x2x1: 0.5 to even"),
    ("bilinear", "uint8", [9, 1, 2, 9, 9, 9], 6, "the middle two of six: 5.5 to even"),
    ("bilinear", "uint8", [9, 1, 9], 1, "odd: the centre"),
    ("bilinear", "uint64", [0, 0, U64, U64 - 1, 0, 0], U64 - 1, "exact, half to even"),
    ("bilinear", "int64", [0, 0, -I64 - 1, -I64, 0, 0], -I64 - 1, "the same at the lower end"),
    ("bilinear", "float64", [0, 0, 1, NAN, 0, 0], NAN, "NaN spreads"),
    ("bicubic", "uint8", [9, 9, 1, 9, 9], 1, "odd: the centre"),
    ("bicubic", "uint8", [0, 0, 255, 255, 0, 0], 255, "an overshoot of 287 is clipped"),
    ("bicubic", "uint8", [0, 255, 0, 0, 255, 0], 0, "an undershoot of -32 is clipped"),
    ("bicubic", "int8", [0, 8, 0, 0, 0, 0], 0, "-0.5 to even: up"),
    ("bicubic", "int8", [0, 24, 0, 0, 0, 0], -2, "-1.5 to even: down"),
    ("bicubic", "uint64", [0, U64, U64, U64, U64, 0], U64, "the sum leaves 64 bits"),
    ("bicubic", "uint64", [0, 0, U64, U64, 0, 0], U64, "clipped in 64 bits"),
    ("bicubic", "uint64", [0, U64, 0, 0, U64, 0], 0, "clipped below in 64 bits"),
    ("bicubic", "uint64", [0, 1, 2**60 + 1, 2**60 + 1, 1, 0], 18 * 2**56 + 1, "exact"),
    ("bicubic", "int64", [0, I64, -I64 - 1, -I64 - 1, I64, 0], -I64 - 1, "clipped at the low end"),
    ("bicubic", "float64", [0, INF, 1, 1, 0, 0], -INF, "the outer weights are negative"),
    ("nearest", "uint8", [1, 2, 3, 4], 1, "factor 2: the first"),
    ("nearest", "uint8", [1, 2, 3], 2, "factor 3: the centre"),
    ("nearest", "float64", [1, NAN, 3], NAN, "NaN is copied"),
]


def block_array(values: list[float], dtype: str) -> tuple[np.ndarray, tuple[int, int, int]]:
    """One block of shape (1, x, y, z) from values in the order y fastest, then x, then z."""
    fx, fy, fz = {4: (2, 2, 1), 8: (2, 2, 2)}.get(len(values), (1, len(values), 1))
    block = np.array(values, dtype).reshape(fz, fx, fy).transpose(1, 2, 0)
    return block[np.newaxis], (fx, fy, fz)


@pytest.mark.parametrize(("mode", "dtype", "values", "expected", "reason"), EXAMPLES)
def test_example(mode: str, dtype: str, values: list[float], expected: float, reason: str) -> None:
    array, factor = block_array(values, dtype)
    np.testing.assert_array_equal(
        downsample(array, factor, mode), np.array(expected, dtype).reshape(1, 1, 1, 1), reason
    )


def test_nearest_takes_every_second_voxel() -> None:
    array = np.arange(64, dtype="uint8").reshape(1, 4, 4, 4)
    np.testing.assert_array_equal(downsample(array, (2, 2, 2), "nearest"), array[:, ::2, ::2, ::2])


def test_mean_of_a_block_too_large_for_narrow_sums() -> None:
    array = np.full((1, 16, 16, 16), -(2**63), "int64")
    array[0, 0, 0, 0] = 0
    total = 4095 * -(2**63)
    assert downsample(array, (16, 16, 16), "mean").item() == round(Fraction(total, 4096))


# --- refusals ---------------------------------------------------------------------------------

GOOD = np.zeros((1, 4, 4, 4), "uint8")
REFUSALS = [
    (GOOD, (2, 2, 2), "cubic", ArgumentError, "'cubic'.*max, mean, median", "unknown mode"),
    (GOOD[0], (2, 2, 2), "max", ArgumentError, r"\(4, 4, 4\).*newaxis", "three axes"),
    (GOOD, (2, 2), "max", ArgumentError, r"\(2, 2\).*three whole numbers", "two factors"),
    (GOOD, (2, 0, 2), "max", ArgumentError, "from 1 on", "zero"),
    (GOOD, (2, -2, 2), "max", ArgumentError, "from 1 on", "negative"),
    (GOOD, (2, 1.5, 2), "max", ArgumentError, "whole numbers", "a fraction"),
    (GOOD, 2, "max", ArgumentError, "three whole numbers", "one number"),
    (GOOD, (2, 3, 2), "max", ArgumentError, r"\(4, 4, 4\).*\(2, 3, 2\).*pad", "no multiple"),
    (GOOD, (2, 3, 2), "bicubic", ArgumentError, r"\(2, 4, 2\).*\(2, 3, 2\)", "without the halo"),
    (GOOD[:, :1], (2, 2, 2), "bicubic", ArgumentError, r"halo \(1, 1, 1\).*pad", "no halo"),
    (GOOD.astype(bool), (2, 2, 2), "max", DtypeError, "uint8, .*astype", "not a WKW dtype"),
    (GOOD.astype(">u2"), (2, 2, 2), "max", DtypeError, "'>u2'.*native", "other byte order"),
]


@pytest.mark.parametrize(("array", "factor", "mode", "error", "message", "reason"), REFUSALS)
def test_refusal(
    array: np.ndarray, factor: Any, mode: str, error: type[Exception], message: str, reason: str
) -> None:
    with pytest.raises(error, match=message):
        downsample(array, factor, mode)


@pytest.mark.parametrize(
    ("array", "factor", "mode", "message"),
    [
        (GOOD, (2, 2, 2), "bicubic", "'bicubic'.*bilinear, nearest"),
        (GOOD[0], (2, 2, 2), "nearest", "newaxis"),
        (GOOD, (2, 0, 2), "nearest", "from 1 on"),
        (GOOD[..., :1], (1, 1, 2), "bilinear", r"halo \(0, 0, 1\)"),
        (GOOD, (2**26, 2, 2), "bilinear", "too large.*134217728.*several"),
    ],
)
def test_upsampling_refusal(array: np.ndarray, factor: Any, mode: str, message: str) -> None:
    with pytest.raises(ArgumentError, match=message):
        upsample(array, factor, mode)


@pytest.mark.parametrize("call", [downsample, upsample])
def test_out(call: Callable[..., np.ndarray]) -> None:
    array = np.asfortranarray(np.arange(64, dtype=np.uint8).reshape(1, 4, 4, 4))
    expected = call(array, (2, 2, 1), "nearest")
    out = np.full_like(expected, 9, order="F")
    assert call(array, (2, 2, 1), "nearest", out=out) is out
    np.testing.assert_array_equal(out, expected)
    for wrong in (out[:, 1:], out.astype(np.uint16), np.ascontiguousarray(out)):
        with pytest.raises(ArgumentError, match=r"out has shape .* Make it by np\.empty"):
            call(array, (2, 2, 1), "nearest", out=wrong)


# --- properties -------------------------------------------------------------------------------


def slow_median(block: list[Any], dtype: np.dtype) -> Any:
    if dtype.kind == "f":
        return np.median(np.array(block, dtype))
    ordered, half = sorted(block), len(block) // 2
    if len(block) % 2:
        return ordered[half]
    return math.trunc(Fraction(ordered[half - 1] + ordered[half], 2))


def slow_mode(block: list[Any], dtype: np.dtype) -> Any:
    return Counter(block).most_common(1)[0][0]  # equal counts come in order of appearance


def slow_mean(block: list[Any], dtype: np.dtype) -> Any:
    if dtype.kind == "f":
        return sum(block) / len(block)
    return round(Fraction(sum(block), len(block)))


SLOW = {
    "median": slow_median,
    "mode": slow_mode,
    "mean": slow_mean,
    "max": lambda block, dtype: max(block),
    "min": lambda block, dtype: min(block),
}


def blocks_of(array: np.ndarray, factor: tuple[int, ...]) -> np.ndarray:
    """(c, x, y, z) -> (c, x, y, z, voxel of the block: y fastest, then x, then z)."""
    fx, fy, fz = factor
    c, x, y, z = array.shape
    split = array.reshape(c, x // fx, fx, y // fy, fy, z // fz, fz)
    return split.transpose(0, 1, 3, 5, 6, 2, 4).reshape(c, x // fx, y // fy, z // fz, -1)


def linear(distance: Fraction) -> Fraction:
    return max(1 - abs(distance), Fraction(0))


def keys(distance: Fraction) -> Fraction:
    """The cubic convolution kernel for a = -1/2."""
    s = abs(distance)
    if s <= 1:
        return Fraction(3, 2) * s**3 - Fraction(5, 2) * s**2 + 1
    return -Fraction(1, 2) * s**3 + Fraction(5, 2) * s**2 - 4 * s + 2 if s < 2 else Fraction(0)


INTERPOLATION: dict[str, Callable[[Fraction], Fraction]] = {"bilinear": linear, "bicubic": keys}


def slow_weighted(
    array: np.ndarray, around: tuple[int, ...], pitch: tuple[Fraction, ...], mode: str
) -> np.ndarray:
    """Interpolate at `(t + 1/2) * pitch - 1/2`, with a halo and one sum over all three axes."""
    inner = [size - 2 * beyond for size, beyond in zip(array.shape[1:], around, strict=True)]
    sizes = [int(size / step) for size, step in zip(inner, pitch, strict=True)]
    half = Fraction(1, 2)
    taps: list[list[list[tuple[int, Fraction]]]] = []
    for size, step, beyond in zip(sizes, pitch, around, strict=True):
        positions = [(t + half) * step - half + beyond for t in range(size)]
        near = [range(math.floor(position) - 1, math.floor(position) + 3) for position in positions]
        weigh = INTERPOLATION[mode]
        weights = [
            [(i, weigh(i - p)) for i in nearby] for p, nearby in zip(positions, near, strict=True)
        ]
        taps.append([[(i, weight) for i, weight in row if weight] for row in weights])
    result = np.empty((len(array), *sizes), array.dtype)
    for c, x, y, z in np.ndindex(result.shape):
        around_it = list(product(taps[0][x], taps[1][y], taps[2][z]))
        voxels = [array[c, i, j, k].item() for (i, _), (j, _), (k, _) in around_it]
        weighs = [u * v * w for (_, u), (_, v), (_, w) in around_it]
        result[c, x, y, z] = slow_sum(voxels, weighs, array.dtype)
    return result


def slow_sum(voxels: list[Any], weights: list[Fraction], dtype: np.dtype) -> Any:
    if not all(map(math.isfinite, voxels)):
        return sum(float(w) * v for v, w in zip(voxels, weights, strict=True))
    total = sum(Fraction(v) * w for v, w in zip(voxels, weights, strict=True))
    if dtype.kind == "f":
        return float(total)
    return min(max(round(total), np.iinfo(dtype).min), np.iinfo(dtype).max)


def slow_downsample(array: np.ndarray, factor: tuple[int, ...], mode: str) -> np.ndarray:
    if mode in INTERPOLATION:
        pitch = tuple(map(Fraction, factor))
        return slow_weighted(array, halo(mode, factor), pitch, mode)
    blocks = blocks_of(array, factor)
    if mode == "nearest":
        fx, fy, _ = factor
        x, y, z = ((f - 1) // 2 for f in factor)
        return blocks[..., y + fy * x + fx * fy * z]
    result = np.empty(blocks.shape[:-1], array.dtype)
    for where in np.ndindex(result.shape):
        result[where] = SLOW[mode](blocks[where].tolist(), array.dtype)
    return result


def slow_upsample(array: np.ndarray, factor: tuple[int, ...], mode: str) -> np.ndarray:
    if mode == "nearest":
        return np.kron(array, np.ones((1, *factor), array.dtype))
    around = kernels.upsampling_halo(mode, factor)
    return slow_weighted(array, around, tuple(Fraction(1, step) for step in factor), mode)


# Every mode and dtype is one more compilation: the loops for 2-2-2 are tried with every dtype,
# the others with two; what signs and 64 bits change there is among the examples.
slow = pytest.mark.slow
FEW_DTYPES = tuple(map(np.dtype, ["uint8", "float64"]))
# Each dtype is compiled on its own; the fast tests take three.
EACH_DTYPE = [
    pytest.param(dtype, marks=() if str(dtype) in ("uint8", "uint32", "float32") else slow)
    for dtype in DTYPES
]


def elements(dtype: np.dtype) -> st.SearchStrategy[Any]:
    """Few values, so that ties are frequent, and the whole range."""
    if dtype.kind == "f":
        wild = st.floats(-(2.0**99), 2.0**99, width=dtype.itemsize * 8, allow_subnormal=False)
        return st.integers(0, 3).map(float) | wild
    info = np.iinfo(dtype)
    near_ends = st.sampled_from([info.min, info.min + 1, info.max - 1, info.max])
    return st.integers(0, 3) | near_ends | st.integers(info.min, info.max)


@st.composite
def cases(
    draw: st.DrawFn, mode: str = "mean", dtypes: tuple[np.dtype, ...] = FEW_DTYPES
) -> tuple[np.ndarray, tuple[int, int, int]]:
    """An array in either order, and a factor that divides its shape; with the mode's halo."""
    common = st.sampled_from([(2, 2, 1), (2, 2, 2)])
    factor = draw(common | st.tuples(*[st.integers(1, 4)] * 3))
    around = halo(mode, factor)
    sizes = [step * draw(st.integers(1, 3)) for step in factor]
    return draw(
        arrays(dtypes, [n + 2 * beyond for n, beyond in zip(sizes, around, strict=True)])
    ), factor


@st.composite
def upsampling_cases(
    draw: st.DrawFn, mode: str, dtypes: tuple[np.dtype, ...] = FEW_DTYPES
) -> tuple[np.ndarray, tuple[int, int, int]]:
    """An array in either order with the mode's halo, and a factor."""
    factor = draw(st.tuples(*[st.integers(1, 4)] * 3))
    around = kernels.upsampling_halo(mode, factor)
    sizes = [draw(st.integers(1, 3)) + 2 * beyond for beyond in around]
    return draw(arrays(dtypes, sizes)), factor


@st.composite
def arrays(draw: st.DrawFn, dtypes: tuple[np.dtype, ...], sizes: list[int]) -> np.ndarray:
    dtype = draw(st.sampled_from(dtypes))
    shape = (draw(st.integers(1, 2)), *sizes)
    array = draw(hnp.arrays(dtype, shape, elements=elements(dtype), fill=st.nothing()))
    return np.asarray(array, order=draw(st.sampled_from("CF")))


def random_array(dtype: np.dtype, shape: tuple[int, ...], seed: int = 0) -> np.ndarray:
    """Small values, half of them, and bits of the whole range."""
    generator = np.random.default_rng(seed)
    small = generator.integers(0, 4, shape).astype(dtype)
    if dtype.kind == "f":
        wide = generator.normal(0, 1e6, shape).astype(dtype)
    else:
        wide = np.frombuffer(generator.bytes(small.nbytes), dtype).reshape(shape)
    return np.where(generator.random(shape) < 0.5, small, wide)


def assert_same(actual: np.ndarray, expected: np.ndarray, mode: str) -> None:
    assert actual.dtype == expected.dtype
    if mode in ("mean", *INTERPOLATION) and actual.dtype.kind == "f":  # additions round
        eps = np.finfo(actual.dtype).eps
        np.testing.assert_allclose(actual, expected, rtol=8 * eps, atol=2.0**99 * 64 * 2.0**-52)
    else:
        np.testing.assert_array_equal(actual, expected)


@pytest.mark.parametrize("dtype", EACH_DTYPE, ids=str)
@pytest.mark.parametrize("mode", ["median", "mode", "mean", "max"])
def test_agrees_with_the_slow_reference_for_every_dtype(mode: str, dtype: np.dtype) -> None:
    array = random_array(dtype, (1, 140, 4, 4))  # only long rows reach the vector instructions
    factor = (2, 2, 2)
    assert_same(downsample(array, factor, mode), slow_downsample(array, factor, mode), mode)


@pytest.mark.parametrize("dtype", EACH_DTYPE, ids=str)
def test_interpolation_agrees_with_fractions_for_every_dtype(dtype: np.dtype) -> None:
    array = random_array(dtype, (1, 22, 8, 6))
    for mode, factor in product(("bilinear", "bicubic"), [(2, 3, 4), (4, 2, 2), (2, 2, 1)]):
        fitting = array[:, :, : 5 + 3 * (factor[1] < 3)]
        around = halo(mode, factor)
        sizes = (
            n - (n - 2 * h) % f for n, h, f in zip(fitting.shape[1:], around, factor, strict=True)
        )
        part = fitting[(slice(None), *map(slice, sizes))]
        assert_same(downsample(part, factor, mode), slow_downsample(part, factor, mode), mode)
    some = array[:, :4, :4, :3]
    for factor in [(2, 2, 1), (3, 1, 2)]:
        expected = slow_upsample(some, factor, "bilinear")
        assert_same(upsample(some, factor, "bilinear"), expected, "bilinear")


@pytest.mark.parametrize("mode", MODES)
@given(data=st.data())
@settings(deadline=None, max_examples=30)
def test_agrees_with_the_slow_reference(mode: str, data: Any) -> None:
    array, factor = data.draw(cases(mode))
    before = array.copy()
    result = downsample(array, factor, mode)
    assert result.flags.f_contiguous
    assert_same(result, slow_downsample(array, factor, mode), mode)
    np.testing.assert_array_equal(array, before)


@pytest.mark.parametrize("mode", ["mean", "bilinear", "bicubic"])
@given(data=st.data())
@settings(deadline=None, max_examples=30)
def test_sums_of_64_bit_integers_are_exact(mode: str, data: Any) -> None:
    array, factor = data.draw(cases(mode, (np.dtype("uint64"), np.dtype("int64"))))
    assert_same(downsample(array, factor, mode), slow_downsample(array, factor, mode), mode)


@pytest.mark.parametrize("mode", UPSAMPLING_MODES)
@given(data=st.data())
@settings(deadline=None, max_examples=30)
def test_upsampling_agrees_with_the_slow_reference(mode: str, data: Any) -> None:
    array, factor = data.draw(upsampling_cases(mode))
    before = array.copy()
    result = upsample(array, factor, mode)
    assert result.flags.f_contiguous
    assert_same(result, slow_upsample(array, factor, mode), mode)
    np.testing.assert_array_equal(array, before)


@pytest.mark.parametrize("factor", [(3, 3, 2), (4, 4, 2), (4, 4, 4), (5, 3, 3)])
@pytest.mark.parametrize("mode", ["median", "mode", "max"])
def test_large_blocks_agree_with_the_slow_reference(mode: str, factor: tuple[int, ...]) -> None:
    """More blocks than a batch has, of few labels and of many, so that some have a majority."""
    generator = np.random.default_rng(0)
    shape = (1, *(step * n for step, n in zip(factor, (13, 9, 5), strict=True)))
    many = generator.integers(0, 256, shape, "uint8")
    few = np.where(generator.random(shape) < 0.5, many % 2, many)
    for array in (many, few, few.astype("float64")):
        expected = slow_downsample(array, factor, mode)
        np.testing.assert_array_equal(downsample(array, factor, mode), expected)


@pytest.mark.parametrize("mode", MODES)
@given(data=st.data())
@settings(deadline=None, max_examples=25)
def test_memory_layout_does_not_matter(mode: str, data: Any) -> None:
    array, factor = data.draw(cases(mode))
    expected = downsample(np.asfortranarray(array), factor, mode)
    shifted = np.empty(array.nbytes + 1, "uint8")[1:].view(array.dtype).reshape(array.shape)
    shifted[...] = array
    read_only = array.copy(order="F")
    read_only.flags.writeable = False
    backwards = array[:, ::-1].copy()[:, ::-1]
    for same in (np.ascontiguousarray(array), shifted, read_only, backwards):
        np.testing.assert_array_equal(downsample(same, factor, mode), expected)


def cut(array: np.ndarray, axis: int, place: int, around: int) -> list[np.ndarray]:
    """Cut an array in two at `place`; both parts keep their halo."""
    stop = array.shape[axis]
    return [
        array.take(range(place + 2 * around), axis),
        array.take(range(place, stop), axis),
    ]


@pytest.mark.parametrize("mode", MODES)
@given(data=st.data())
@settings(deadline=None, max_examples=25)
def test_parts_give_the_same_as_the_whole(mode: str, data: Any) -> None:
    array, factor = data.draw(cases(mode))
    axis = data.draw(st.integers(0, 3))
    step, around = (1, *factor)[axis], (0, *halo(mode, factor))[axis]
    place = step * data.draw(st.integers(0, (array.shape[axis] - 2 * around) // step))
    parts = [downsample(part, factor, mode) for part in cut(array, axis, place, around)]
    np.testing.assert_array_equal(np.concatenate(parts, axis), downsample(array, factor, mode))


@pytest.mark.parametrize("mode", UPSAMPLING_MODES)
@given(data=st.data())
@settings(deadline=None, max_examples=25)
def test_upsampled_parts_give_the_same_as_the_whole(mode: str, data: Any) -> None:
    array, factor = data.draw(upsampling_cases(mode))
    axis = data.draw(st.integers(0, 3))
    around = (0, *kernels.upsampling_halo(mode, factor))[axis]
    place = data.draw(st.integers(0, array.shape[axis] - 2 * around))
    parts = [upsample(part, factor, mode) for part in cut(array, axis, place, around)]
    np.testing.assert_array_equal(np.concatenate(parts, axis), upsample(array, factor, mode))


@pytest.mark.parametrize("mode", [mode for mode in MODES if MODES[mode].keeps_labels])
@given(data=st.data())
@settings(deadline=None, max_examples=25)
def test_never_invents_a_label(mode: str, data: Any) -> None:
    array, factor = data.draw(cases(mode))
    result = downsample(array, factor, mode)
    assert (blocks_of(array, factor) == result[..., np.newaxis]).any(axis=-1).all()


def test_which_modes_keep_labels() -> None:
    assert [m for m in MODES if MODES[m].keeps_labels] == ["mode", "max", "min", "nearest"]
    assert [m for m in UPSAMPLING_MODES if UPSAMPLING_MODES[m].keeps_labels] == ["nearest"]
    labels = np.array([1, 3], "uint8").repeat(2).reshape(1, 4, 1, 1)
    for mode in ("median", "mean", "bilinear", "bicubic"):
        array = np.pad(labels[:, 1:3], [(0, 0), *((n, n) for n in halo(mode, (2, 1, 1)))], "edge")
        assert downsample(array, (2, 1, 1), mode).item() == 2, "the flag is right to be false"


@pytest.mark.parametrize("mode", ["median", "mean", "max", "min", "bilinear"])
@given(data=st.data())
@settings(deadline=None, max_examples=25)
def test_stays_within_the_range_of_a_block(mode: str, data: Any) -> None:
    array, factor = data.draw(cases(mode))
    result, blocks = downsample(array, factor, mode), blocks_of(array, factor)
    slack = abs(blocks).max(axis=-1) * 1e-15 if array.dtype.kind == "f" else 0
    assert (blocks.min(axis=-1) - slack <= result).all()
    assert (result <= blocks.max(axis=-1) + slack).all()


ALL_FACTORS = [(1, 1, 1), (2, 2, 1), (2, 2, 2), (3, 1, 2), (3, 5, 7), (4, 4, 2), (6, 2, 3)]


@given(data=st.data(), dtype=st.sampled_from(FEW_DTYPES), factor=st.sampled_from(ALL_FACTORS))
@settings(deadline=None)
def test_what_is_constant_stays_so(data: Any, dtype: np.dtype, factor: tuple[int, ...]) -> None:
    value = np.array(data.draw(elements(dtype)), dtype)
    for mode in MODES:
        sizes = (2 * step + 2 * n for step, n in zip(factor, halo(mode, factor), strict=True))
        result = downsample(np.full((1, *sizes), value), factor, mode)
        assert result.dtype == dtype
        assert (result == value).all(), mode
    for mode in UPSAMPLING_MODES:
        sizes = (1 + 2 * n for n in kernels.upsampling_halo(mode, factor))
        assert (upsample(np.full((1, *sizes), value), factor, mode) == value).all(), mode


@pytest.mark.parametrize("mode", MODES)
def test_factor_one_returns_a_copy(mode: str) -> None:
    array = random_array(np.dtype("int32"), (2, 3, 4, 5))
    sample = [downsample, upsample] if mode in UPSAMPLING_MODES else [downsample]
    for function in sample:
        result = function(array, (1, 1, 1), mode)
        np.testing.assert_array_equal(result, array)
        assert not np.shares_memory(result, array)


@pytest.mark.parametrize("shape", [(0, 2, 2, 2), (1, 0, 2, 2), (2, 2, 2, 0)])
@pytest.mark.parametrize("mode", MODES)
def test_empty_stays_empty(mode: str, shape: tuple[int, ...]) -> None:
    around = halo(mode, (2, 2, 2))
    padded = (shape[0], *(n + 2 * beyond for n, beyond in zip(shape[1:], around, strict=True)))
    result = downsample(np.zeros(padded, "uint8"), (2, 2, 2), mode)
    assert result.shape == (shape[0], *(size // 2 for size in shape[1:]))


def test_one_compilation_per_dtype_whatever_the_layout() -> None:
    loop: Any = blockwise.SPECIAL["max"][2, 2, 2]
    array = np.zeros((1, 2, 2, 2), "uint16")
    downsample(array, (2, 2, 2), "max")
    before = len(loop.signatures)
    read_only = np.broadcast_to(array, (3, 2, 2, 2))
    for other in (np.asfortranarray(array), read_only, np.zeros((2, 4, 1, 6), "uint16")[:, :, :0]):
        downsample(other, (2, 2, 2), "max")
    assert len(loop.signatures) == before


def test_nothing_is_compiled_before_it_is_used() -> None:
    code = (
        "from wkdask import kernels\nfrom wkdask.kernels import blockwise, weighted\n"
        "names = {**vars(blockwise), **vars(weighted)}\n"
        "loops = [loop for loop in names.values() if hasattr(loop, 'signatures')]\n"
        "assert len(loops) > 20\n"
        "assert not any(loop.signatures for loop in loops)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


# --- oracles ----------------------------------------------------------------------------------


FACTORS = [(2, 2, 1), (2, 2, 2), (1, 1, 2), (4, 2, 1), (3, 3, 2)]


@pytest.mark.parametrize(
    ("dtype", "factor"),
    [*product(FEW_DTYPES, FACTORS), *product(map(np.dtype, ["int16", "u4", "i8"]), [(2, 2, 2)])],
    ids=str,
)
@pytest.mark.parametrize("mode", ["median", "mode", "max", "min"])
def test_webknossos_agrees(mode: str, dtype: np.dtype, factor: tuple[int, int, int]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it warns of optional packages that are missing
        pytest.importorskip("webknossos")
        theirs = importlib.import_module("webknossos.dataset.layer._downsampling_utils")
    array = random_array(dtype, (1, 12, 12, 4))
    if mode == "median" and dtype.itemsize == 8 and dtype.kind in "iu":
        array %= 2**52  # beyond 2**53 theirs loses precision
    expected = theirs.downsample_cube(
        array[0], list(factor), theirs.InterpolationModes[mode.upper()]
    )
    np.testing.assert_array_equal(downsample(array, factor, mode)[0], expected)


@pytest.mark.parametrize("factor", [(2, 2, 1), (2, 2, 2), (3, 1, 2)])
@pytest.mark.parametrize("mode", ["median", "max", "min"])
def test_numpy_agrees_on_nan_and_infinity(mode: str, factor: tuple[int, int, int]) -> None:
    array = random_array(np.dtype("float64"), (2, 12, 12, 4))
    special = np.random.default_rng(1).choice(
        [0, NAN, INF, -INF], array.shape, p=[0.85, *[0.05] * 3]
    )
    array += special
    with np.errstate(invalid="ignore"):  # the midpoint of both infinities is NaN
        expected = getattr(np, mode)(blocks_of(array, factor), axis=-1)
    np.testing.assert_array_equal(downsample(array, factor, mode), expected)


@pytest.mark.parametrize("factor", [(2, 2, 1), (2, 2, 2), (4, 1, 3)])
@pytest.mark.parametrize("mode", ["bilinear", "bicubic"])
def test_nan_and_infinity_go_into_all_that_is_made_of_them(
    mode: str, factor: tuple[int, ...]
) -> None:
    array = random_array(np.dtype("float64"), (1, 22, 10, 5))
    special = np.random.default_rng(1).choice(
        [0, NAN, INF, -INF], array.shape, p=[0.91, *[0.03] * 3]
    )
    array += special
    around = halo(mode, factor)
    sizes = (n - (n - 2 * h) % f for n, h, f in zip(array.shape[1:], around, factor, strict=True))
    array = array[(slice(None), *map(slice, sizes))]
    expected = slow_downsample(array, factor, mode)
    np.testing.assert_allclose(downsample(array, factor, mode), expected, rtol=1e-12)
    some = array[:, :4, :4, :3]
    expected = slow_upsample(some, (2, 2, 1), "bilinear")
    np.testing.assert_allclose(upsample(some, (2, 2, 1), "bilinear"), expected, rtol=1e-12)


def test_public_names() -> None:
    assert sorted(MODES) == sorted(
        ["bicubic", "bilinear", "max", "mean", "median", "min", "mode", "nearest"]
    )
    assert sorted(UPSAMPLING_MODES) == ["bilinear", "nearest"]


def test_docstring_example_runs() -> None:
    import doctest

    result = doctest.testmod(kernels)
    assert result.attempted > 0
    assert result.failed == 0
