"""Files of slices by their names: which number counts, in what order, and what is missing."""

from __future__ import annotations

import glob
import os
import re
from collections.abc import Sequence
from fractions import Fraction
from itertools import pairwise
from typing import Literal, TypeAlias

from wkdask.errors import ArgumentError, FormatError

__all__ = ["ENDINGS", "GAPS", "Gaps", "in_order", "listed"]

ENDINGS = (".tif", ".tiff", ".btf", ".tf8")
"""Of the names of TIFF files."""

Gaps: TypeAlias = Literal["zeros", "close"]
"""What to do where numbers are missing."""
GAPS: tuple[Gaps, ...] = ("zeros", "close")
"""The choices of `Gaps`."""

_NUMBER = re.compile(r"([-+]?\d+(?:\.\d+)?)")
# What stands before the number of a slice.
_SLICE = re.compile(r"(?:^|[^a-z])(?:z|slices?|sections?|sec|planes?|layers?)[ _.=-]*$")


def listed(path: str) -> list[str]:
    """Return the files of a directory or pattern that may be slices, without hidden ones."""
    if os.path.isdir(path):
        found = [os.path.join(path, name) for name in os.listdir(path)]
    elif os.path.exists(path):
        return [path]
    else:
        found = glob.glob(_pattern(path))
    found = [
        name
        for name in found
        if not os.path.basename(name).startswith(".") and not os.path.isdir(name)
    ]
    tiffs = [name for name in found if name.lower().endswith(ENDINGS)]
    return tiffs if tiffs or os.path.isdir(path) else found


def _pattern(path: str) -> str:
    """Return a pattern in which the names of directories that exist stand for themselves."""
    parts = path.split(os.sep)
    for number in range(len(parts), 0, -1):
        directory = os.sep.join(parts[:number])
        if os.path.isdir(directory):
            return os.path.join(glob.escape(directory), *parts[number:])
    return path


def in_order(paths: Sequence[str], gaps: Gaps | None = None) -> list[str | None]:
    """Return files in the order of the numbers in their names, None where one is missing.

    Parameters
    ----------
    paths
        Files in one directory.
    gaps
        What to do where numbers are missing: `"zeros"` is slices of zeros, `"close"` is none.

    Raises
    ------
    FormatError
        If numbers are missing or given twice, or if it is not clear which number counts.

    Examples
    --------
    >>> in_order(["em_z10.tif", "em_z9.tif", "em_z8.tif"])
    ['em_z8.tif', 'em_z9.tif', 'em_z10.tif']
    >>> in_order(["z-1.tif", "z2.tif", "z+0.tif"], "zeros")
    ['z-1.tif', 'z+0.tif', None, 'z2.tif']
    """
    if gaps not in (None, *GAPS):
        raise ArgumentError(f"gaps is {gaps!r}, but must be one of {', '.join(GAPS)}, or None.")
    if len(paths) == 1:
        return list(paths)
    columns = _columns(paths)
    if not columns and not any(map(_NUMBER.search, map(_stem, paths))):
        return [*sorted(paths, key=str.casefold)]
    numbers = _counting(paths, columns)
    order = [path for _, path in sorted(zip(numbers, paths, strict=True))]
    step, missing = _missing(numbers)
    if not missing or gaps == "close":
        return list(order)
    if gaps is None:
        raise FormatError(
            f"the names of slices lack numbers after {', '.join(map(str, missing[:3]))}"
            f'{" and others" if len(missing) > 3 else ""} ({_short(order)}). Pass gaps="zeros" '
            '(--gaps zeros) for slices of zeros there, or gaps="close" to take the slices as '
            "neighbours."
        )
    by_number = dict(zip(numbers, paths, strict=True))
    count = (max(numbers) - min(numbers)) / step
    if count.denominator != 1 or count > 100 * len(paths):
        raise FormatError(f'{_short(order)} have no common step; pass gaps="close", or rename.')
    return [by_number.get(min(numbers) + at * step) for at in range(int(count) + 1)]


def _stem(path: str) -> str:
    name = os.path.basename(path).casefold()
    for ending in (*ENDINGS, ".ome"):
        name = name.removesuffix(ending)
    return name


def _columns(paths: Sequence[str]) -> list[tuple[str, list[Fraction]]]:
    """Return the numbers that vary, by what stands before them, as far as names are alike."""
    parts = [_NUMBER.split(_stem(path)) for path in paths]
    columns: list[tuple[str, list[Fraction]]] = []
    for at in range(1, min(map(len, parts)), 2):
        signed = [part[at] for part in parts]
        is_signed = len({"" if number[0].isdigit() else number[0] for number in signed}) > 1
        signs = {"" if is_signed or number[0].isdigit() else number[0] for number in signed}
        if len({part[at - 1] for part in parts}) > 1 or len(signs) > 1:
            break
        before = parts[0][at - 1] + signs.pop()
        values = [number if is_signed else number.lstrip("+-") for number in signed]
        halves = [value.split(".") for value in values]
        if all(len(half) == 2 and half[0] == halves[0][0] for half in halves):
            columns.append((f"{before}{halves[0][0]}.", [Fraction(half[1]) for half in halves]))
        else:
            columns.append((before, [Fraction(value) for value in values]))
    return [column for column in columns if len(set(column[1])) > 1]


def _counting(
    paths: Sequence[str], columns: Sequence[tuple[str, list[Fraction]]]
) -> list[Fraction]:
    """Return the numbers of slices."""
    single = [column for column in columns if len(set(column[1])) == len(paths)]
    named = [numbers for before, numbers in single if _SLICE.search(before)]
    whole = [numbers for _, numbers in single if not _missing(numbers)[1]]
    for choice in (named, whole, [numbers for _, numbers in single]):
        orders = {tuple(_ranks(numbers)) for numbers in choice}
        if len(orders) == 1:
            return choice[0]
    raise FormatError(
        f"it is not clear which number counts the slices {_short(sorted(paths))}: "
        f"{len(columns)} numbers vary, of which {len(single)} tell all of them apart. Rename them, "
        "or give a pattern for those that you mean."
    )


def _ranks(numbers: Sequence[Fraction]) -> list[int]:
    """Return indices in the order of numbers."""
    return sorted(range(len(numbers)), key=numbers.__getitem__)


def _missing(numbers: Sequence[Fraction]) -> tuple[Fraction, list[Fraction]]:
    """Return the step from one slice to the next, and the numbers after which others are missing.

    Whole numbers count slices; others tell depths, which have any step.
    """
    ordered = sorted(numbers)
    steps = [b - a for a, b in pairwise(ordered)]
    is_whole = all(number.denominator == 1 for number in ordered)
    step = Fraction(1) if is_whole else min(steps)
    return step, [a for a, b in zip(ordered, steps, strict=False) if b != step]


def _short(paths: Sequence[str]) -> str:
    names = [os.path.basename(path) for path in paths]
    return ", ".join(names if len(names) < 7 else [*names[:3], "...", *names[-3:]])
