"""`wkdask.pyramid.mags`: which mags a pyramid has, with `webknossos` as the oracle."""

from __future__ import annotations

import warnings

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from wkdask.errors import ArgumentError
from wkdask.geometry import BoundingBox, Mag
from wkdask.pyramid.mags import (
    check_sampling_mode,
    coarser_mags,
    default_coarsest,
    finer_mags,
    given_mags,
)


def names(mags: list[Mag]) -> str:
    return " ".join(map(str, mags))


@pytest.mark.parametrize(
    ("voxel_size", "coarsest", "expected"),
    [
        ((11.24, 11.24, 25), 16, "2-2-1 4-4-2 8-8-4 16-16-8"),
        ((4, 4, 40), 64, "2-2-1 4-4-1 8-8-1 16-16-2 32-32-4 64-64-8"),
        ((10.5, 10.5, 30), 16, "2-2-1 4-4-1 8-8-2 16-16-4"),
        ((1, 2, 4), 16, "2-1-1 4-2-1 8-4-2 16-8-4"),
        ((8, 8, 8), 4, "2 4"),
        ((8, 8, 8), 1, ""),
    ],
)
def test_anisotropic(voxel_size: tuple[float, ...], coarsest: int, expected: str) -> None:
    assert names(coarser_mags(Mag(1), Mag(coarsest), voxel_size)) == expected


@pytest.mark.parametrize(
    ("mode", "coarsest", "expected"),
    [
        ("isotropic", "8", "2 4 8"),
        ("isotropic", "8-8-2", "2 4-4-2 8-8-2"),
        ("constant_z", "8-8-1", "2-2-1 4-4-1 8-8-1"),
        ("constant_z", "8", "2-2-1 4-4-1 8-8-1"),
    ],
)
def test_other_modes(mode: str, coarsest: str, expected: str) -> None:
    check_sampling_mode(mode)
    found = coarser_mags(Mag(1), Mag(coarsest), (4, 4, 40), mode)  # type: ignore[arg-type]
    assert names(found) == expected


def test_a_step_that_grows_no_largest_factor_is_passed_over() -> None:
    assert names(coarser_mags(Mag("4-4-2"), Mag(16), (1, 1, 1))) == "8 16"


def test_mags_of_other_layers_come_first() -> None:
    others = [Mag("2-2-1"), Mag("4-4-1"), Mag("3-3-3")]
    assert names(coarser_mags(Mag(1), Mag(8), (8, 8, 8), others=others)) == "2-2-1 4-4-1 8"


def test_what_can_not_be_reached_is_an_error() -> None:
    with pytest.raises(ArgumentError, match="can't be reached"):
        coarser_mags(Mag(1), Mag("1-8-8"), (1, 100, 100))


@pytest.mark.parametrize(
    ("size", "mode", "expected"),
    [
        ((1000, 800, 9), "anisotropic", "16"),
        ((64, 64, 64), "anisotropic", "4"),
        ((100_000, 5, 5), "isotropic", "1024"),
        ((800, 800, 1), "constant_z", "8-8-1"),
        ((0, 0, 0), "anisotropic", "4"),
    ],
)
def test_default_coarsest(size: tuple[int, int, int], mode: str, expected: str) -> None:
    box = BoundingBox((7, 7, 7), size)
    assert str(default_coarsest(box, mode, Mag(1))) == expected  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("coarsest", "finest", "expected"),
    [
        ("8-8-4", "1", "4-4-2 2-2-1 1"),
        ("2", "1", "2-2-1 1"),
        ("4-4-1", "2-2-1", "2-2-1"),
        ("1", "1", ""),
    ],
)
def test_finer(coarsest: str, finest: str, expected: str) -> None:
    assert names(finer_mags(Mag(coarsest), Mag(finest), (11.24, 11.24, 25))) == expected


def test_given() -> None:
    assert names(given_mags(Mag(1), ["4-4-2", 2, 8], coarser=True)) == "2 4-4-2 8"
    assert names(given_mags(Mag(8), [1, "4-4-2"], coarser=False)) == "4-4-2 1"
    for mags, match in (
        ([], "empty"),
        ([1], "there already"),
        ([2, 2], "twice"),
        ([2, 3], "whole"),
    ):
        with pytest.raises(ArgumentError, match=match):
            given_mags(Mag(1), mags, coarser=True)
    with pytest.raises(ArgumentError, match="sampling_mode"):
        check_sampling_mode("median")


FACTORS = st.sampled_from([1, 2, 4])
EDGES = st.sampled_from([1.0, 2.0, 4.0, 10.5, 11.24, 25.0, 30.0, 40.0, 0.1])


@settings(deadline=None)
@given(
    st.tuples(FACTORS, FACTORS, FACTORS),
    st.sampled_from([4, 8, 32]),
    st.tuples(EDGES, EDGES, EDGES),
)
def test_the_same_as_webknossos(
    finest: tuple[int, int, int], coarsest: int, voxel_size: tuple[float, float, float]
) -> None:
    utils = pytest.importorskip("webknossos.dataset.layer._downsampling_utils")
    from webknossos import Mag as TheirMag

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            expected = utils.calculate_mags_to_downsample(
                TheirMag(finest), TheirMag(coarsest), None, voxel_size
            )
        except RuntimeError:
            with pytest.raises(ArgumentError):
                coarser_mags(Mag(finest), Mag(coarsest), voxel_size)
            return
    found = coarser_mags(Mag(finest), Mag(coarsest), voxel_size)
    assert [mag.factors for mag in found] == [tuple(mag.to_list()) for mag in expected]
