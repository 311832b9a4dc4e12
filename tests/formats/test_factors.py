"""What scales mean that are ratios of rounded sizes."""

from __future__ import annotations

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from wkdask.formats.factors import Ratio, factors_of, follows_sizes


def found(sizes: list[tuple[int, ...]], scales: list[tuple[float, ...]] | None = None) -> list:
    """Return the factors of levels; scales are ratios of sizes, unless given."""
    finest = sizes[0]
    scales = scales or [tuple(n / m for n, m in zip(finest, size, strict=True)) for size in sizes]
    levels = [
        [Ratio(*each) for each in zip(scale, finest, size, strict=True)]
        for scale, size in zip(scales, sizes, strict=True)
    ]
    before = [(1, size) for size in finest]
    factors = []
    for level, size in zip(levels, sizes, strict=True):
        of_level = factors_of(level, before, by_size=follows_sizes(levels))
        factors.append(of_level)
        before = list(zip(of_level, size, strict=True)) if of_level else before
    return factors


@pytest.mark.parametrize(
    ("sizes", "expected"),
    [
        pytest.param([(512, 512, 3), (256, 256, 1)], (2, 2, 2), id="three slices"),
        pytest.param([(512, 512, 5), (256, 256, 2), (128, 128, 1)], (4, 4, 4), id="five slices"),
        pytest.param([(101, 101, 7), (50, 50, 7), (25, 25, 3)], (4, 4, 2), id="slices later"),
        pytest.param([(100, 100, 1), (33, 33, 1)], (3, 3, 1), id="thirds of a slice"),
        pytest.param([(90, 60, 30), (30, 20, 10)], (3, 3, 3), id="thirds without rounding"),
        pytest.param([(60, 60, 60), (30, 30, 30), (20, 20, 20)], (3, 3, 3), id="no multiples"),
        pytest.param([(100, 100, 100), (9, 9, 9)], None, id="10, 11 or 12"),
    ],
)
def test_few_voxels(sizes, expected):
    assert found(sizes)[-1] == expected


@pytest.mark.parametrize(
    ("scale", "expected"),
    [(3, (3, 3, 3)), (2.99, (3, 3, 3)), (1e300, None), (2.5, None), (0.5, None)],
)
def test_scales(scale, expected):
    sizes = [(100, 100, 100), (33, 33, 33)]
    assert found(sizes, [(1.0,) * 3, (float(scale),) * 3])[1] == expected


def test_whole_numbers_that_were_rounded():
    sizes = [(n,) * 3 for n in (1000, 500, 250, 125, 62, 31, 15, 7)]
    scales = [(float(round(1000 / n)),) * 3 for (n, _, _) in sizes]
    assert [factors[0] for factors in found(sizes, scales)] == [2**n for n in range(8)]


@settings(max_examples=200)
@given(
    st.integers(300, 5000),
    st.sampled_from([math.floor, math.ceil, round]),
    st.sampled_from([2, 3, 4]),
    st.booleans(),
)
def test_however_sizes_were_rounded(size, rounding, step, is_repeated):
    sizes, factors = [size], [1]
    while sizes[-1] // step > 2 * step:
        factors.append(factors[-1] * step)
        sizes.append(rounding(sizes[-1] / step if is_repeated else size / factors[-1]))
    for scales in (None, [(float(factor),) * 3 for factor in factors]):
        of_levels = found([(n,) * 3 for n in sizes], scales)
        assert of_levels == [(factor,) * 3 for factor in factors]
