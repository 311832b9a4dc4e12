"""Downsampling: examples with reasons, properties against a slow reference, oracles."""

from __future__ import annotations

import importlib
import math
import warnings
from collections import Counter
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
from wkdask.kernels import DTYPES, MODES, downsample

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
    (GOOD.astype(bool), (2, 2, 2), "max", DtypeError, "uint8, .*astype", "not a WKW dtype"),
    (GOOD.astype(">u2"), (2, 2, 2), "max", DtypeError, "'>u2'.*native", "other byte order"),
]


@pytest.mark.parametrize(("array", "factor", "mode", "error", "message", "reason"), REFUSALS)
def test_refusal(
    array: np.ndarray, factor: Any, mode: str, error: type[Exception], message: str, reason: str
) -> None:
    with pytest.raises(error, match=message):
        downsample(array, factor, mode)


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


def slow_downsample(array: np.ndarray, factor: tuple[int, ...], mode: str) -> np.ndarray:
    blocks = blocks_of(array, factor)
    if mode == "nearest":
        fx, fy, _ = factor
        x, y, z = ((f - 1) // 2 for f in factor)
        return blocks[..., y + fy * x + fx * fy * z]
    result = np.empty(blocks.shape[:-1], array.dtype)
    for where in np.ndindex(result.shape):
        result[where] = SLOW[mode](blocks[where].tolist(), array.dtype)
    return result


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
    draw: st.DrawFn, dtypes: tuple[np.dtype, ...] = DTYPES
) -> tuple[np.ndarray, tuple[int, int, int]]:
    """An array in either order, and a factor that divides its shape."""
    dtype = draw(st.sampled_from(dtypes))
    common = st.sampled_from([(2, 2, 1), (2, 2, 2)])
    factor = draw(common | st.tuples(*[st.integers(1, 4)] * 3))
    channels = draw(st.integers(1, 3))
    sizes = [step * draw(st.integers(1, 3)) for step in factor]
    fill = st.nothing()
    array = draw(hnp.arrays(dtype, (channels, *sizes), elements=elements(dtype), fill=fill))
    return np.asarray(array, order=draw(st.sampled_from("CF"))), factor


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
    if mode == "mean" and actual.dtype.kind == "f":  # the order of the additions is free
        eps = np.finfo(actual.dtype).eps
        np.testing.assert_allclose(actual, expected, rtol=8 * eps, atol=2.0**99 * 64 * 2.0**-52)
    else:
        np.testing.assert_array_equal(actual, expected)


# Every mode and dtype is one more compilation: the loops for 2-2-2 are tried with every dtype,
# the others with two; what signs and 64 bits change there is among the examples.
FEW_DTYPES = tuple(map(np.dtype, ["uint8", "float64"]))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("mode", ["median", "mode", "mean", "max"])
def test_agrees_with_the_slow_reference_for_every_dtype(mode: str, dtype: np.dtype) -> None:
    array = random_array(dtype, (1, 140, 4, 4))  # only long rows reach the vector instructions
    factor = (2, 2, 2)
    assert_same(downsample(array, factor, mode), slow_downsample(array, factor, mode), mode)


@pytest.mark.parametrize("mode", MODES)
@given(case=cases(FEW_DTYPES))
@settings(deadline=None, max_examples=30)
def test_agrees_with_the_slow_reference(mode: str, case: tuple[Any, Any]) -> None:
    array, factor = case
    before = array.copy()
    result = downsample(array, factor, mode)
    assert result.flags.f_contiguous
    assert_same(result, slow_downsample(array, factor, mode), mode)
    np.testing.assert_array_equal(array, before)


@pytest.mark.parametrize("mode", MODES)
@given(case=cases(FEW_DTYPES))
@settings(deadline=None, max_examples=25)
def test_memory_layout_does_not_matter(mode: str, case: tuple[Any, Any]) -> None:
    array, factor = case
    expected = downsample(np.asfortranarray(array), factor, mode)
    shifted = np.empty(array.nbytes + 1, "uint8")[1:].view(array.dtype).reshape(array.shape)
    shifted[...] = array
    read_only = array.copy(order="F")
    read_only.flags.writeable = False
    backwards = array[:, ::-1].copy()[:, ::-1]
    for same in (np.ascontiguousarray(array), shifted, read_only, backwards):
        np.testing.assert_array_equal(downsample(same, factor, mode), expected)


@pytest.mark.parametrize("mode", MODES)
@given(case=cases(FEW_DTYPES), data=st.data())
@settings(deadline=None, max_examples=25)
def test_parts_give_the_same_as_the_whole(mode: str, case: tuple[Any, Any], data: Any) -> None:
    array, factor = case
    axis = data.draw(st.integers(0, 3))
    step = (1, *factor)[axis]
    cut = step * data.draw(st.integers(0, array.shape[axis] // step))
    parts = [downsample(part, factor, mode) for part in np.split(array, [cut], axis)]
    np.testing.assert_array_equal(np.concatenate(parts, axis), downsample(array, factor, mode))


@pytest.mark.parametrize("mode", ["mode", "nearest", "max", "min"])
@given(case=cases(FEW_DTYPES))
@settings(deadline=None, max_examples=25)
def test_never_invents_a_value(mode: str, case: tuple[Any, Any]) -> None:
    array, factor = case
    result = downsample(array, factor, mode)
    assert (blocks_of(array, factor) == result[..., np.newaxis]).any(axis=-1).all()


@pytest.mark.parametrize("mode", MODES)
def test_factor_one_returns_a_copy(mode: str) -> None:
    array = random_array(np.dtype("int32"), (2, 3, 4, 5))
    result = downsample(array, (1, 1, 1), mode)
    np.testing.assert_array_equal(result, array)
    assert not np.shares_memory(result, array)


@pytest.mark.parametrize("shape", [(0, 2, 2, 2), (1, 0, 2, 2), (2, 2, 2, 0)])
@pytest.mark.parametrize("mode", MODES)
def test_empty_stays_empty(mode: str, shape: tuple[int, ...]) -> None:
    result = downsample(np.zeros(shape, "uint8"), (2, 2, 2), mode)
    assert result.shape == (shape[0], *(size // 2 for size in shape[1:]))


def test_one_compilation_per_dtype_whatever_the_layout() -> None:
    loop: Any = MODES["max"].special[2, 2, 2]
    array = np.zeros((1, 2, 2, 2), "uint16")
    downsample(array, (2, 2, 2), "max")
    before = len(loop.signatures)
    read_only = np.broadcast_to(array, (3, 2, 2, 2))
    for other in (np.asfortranarray(array), read_only, np.zeros((2, 4, 1, 6), "uint16")[:, :, :0]):
        downsample(other, (2, 2, 2), "max")
    assert len(loop.signatures) == before


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


def test_public_names() -> None:
    assert sorted(kernels.__all__) == ["DTYPES", "Kernel", "MODES", "downsample"]
    assert sorted(MODES) == ["max", "mean", "median", "min", "mode", "nearest"]


def test_docstring_example_runs() -> None:
    import doctest

    result = doctest.testmod(kernels)
    assert result.attempted > 0
    assert result.failed == 0
