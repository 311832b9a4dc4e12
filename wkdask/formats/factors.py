"""The factors of levels from their scales and sizes, of which both may have been rounded.

Some writers give as scale what a level is coarser by, others what its rounded size says.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

from wkdask.geometry import Vec3

__all__ = ["Finer", "Ratio", "factors_of", "follows_sizes"]

# How far a scale may lie from a whole factor if sizes agree with the factor.
_ROUNDED = 0.05
# How far a scale is from what it means: some are written with few digits.
_EXACT, _DIGITS = 1e-6, 5e-3
# Beyond, nothing is coarser.
_MOST = 2**17


Finer: TypeAlias = tuple[int, int]
"""The factor and the size of the next finer level along an axis."""


@dataclass(frozen=True, slots=True)
class Ratio:
    """How much coarser a level is than the finest, along one axis."""

    scale: float
    """By the sizes of its voxels."""
    finest: int
    """Positions of the finest level."""
    size: int
    """Its own positions."""

    @property
    def is_whole(self) -> bool:
        """Whether the scale is a whole number."""
        return math.isclose(self.scale, max(1, round(self.scale)), rel_tol=_EXACT)

    @property
    def is_of_sizes(self) -> bool:
        """Whether the scale is the ratio of the sizes."""
        return math.isclose(self.scale, self.finest / self.size, rel_tol=_DIGITS)

    def choices(self, before: Finer, *, by_size: bool) -> list[int]:
        """Return the factors that the scale may mean, those of the next finer level being known."""
        if math.isclose(self.scale, 1, rel_tol=_EXACT):
            return [1]
        if self.scale > _MOST:
            return []
        whole = round(self.scale)
        if self.is_whole and (not self.is_of_sizes or (not by_size and _is_power(whole))):
            return [whole]
        exact = [whole] if self.is_whole and not by_size else []
        by_size = self.is_of_sizes and (by_size or self.is_whole)
        factor, size = before
        if by_size and size == self.size > 1:
            return [factor]
        highest = self.finest / (self.size - 1) if self.size > 1 else _MOST
        found = [
            each
            for each in range(factor, min(_MOST, math.ceil(highest)) + 1, factor)
            if abs(self.size - self.finest / each) < 1
            and (by_size or abs(self.scale - each) <= _ROUNDED * each)
        ]
        return found or exact


def follows_sizes(levels: Sequence[Sequence[Ratio]]) -> bool:
    """Return whether scales are ratios of sizes that were rounded: some are no whole numbers."""
    return any(ratio.is_of_sizes and not ratio.is_whole for level in levels for ratio in level)


def factors_of(ratios: Sequence[Ratio], before: Sequence[Finer], *, by_size: bool) -> Vec3 | None:
    """Return the factors of a level, None if they are not clear.

    Parameters
    ----------
    ratios
        Of its axes.
    before
        Factors and sizes of the next finer level, of which these are multiples where there is a
        choice. What it is coarser than that by on other axes, or a power of two, decides.
    by_size
        Whether scales are only ratios of sizes; see `follows_sizes`.

    Examples
    --------
    >>> sizes = (1000, 500, 250, 125, 62, 31, 15, 7)
    >>> levels = [[Ratio(1000 / size, 1000, size)] * 3 for size in sizes]
    >>> by_size, before = follows_sizes(levels), [(1, 1000)] * 3
    >>> for level, size in zip(levels, sizes):
    ...     factors = factors_of(level, before, by_size=by_size)
    ...     before = [(factor, size) for factor in factors]
    >>> factors
    (128, 128, 128)
    """
    choices = [
        ratio.choices(finer, by_size=by_size) for ratio, finer in zip(ratios, before, strict=True)
    ]
    steps = {
        choice[0] / factor
        for choice, (factor, _), ratio in zip(choices, before, ratios, strict=True)
        if len(choice) == 1 and ratio.scale != 1
    }
    found = []
    for choice, (factor, _), ratio in zip(choices, before, ratios, strict=True):
        alike = [each for each in choice if each / factor in steps]
        powers = [] if steps else [each for each in choice if _is_power(each)]
        if ratio.is_whole and choice and not by_size:
            powers = [round(ratio.scale)]
        found.append(next((few for few in (choice, alike, powers) if len(few) == 1), []))
    if not all(found):
        return None
    x, y, z = (few[0] for few in found)
    return x, y, z


def _is_power(number: int) -> bool:
    return number & (number - 1) == 0
