"""How numbers are told: sizes, lengths, bytes, and rows in columns. It knows plain values only."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

__all__ = ["bytes_text", "columns", "length_text", "lengths_text", "printable", "times"]

_LENGTHS = ((1e9, "m"), (1e6, "mm"), (1e3, "µm"), (1, "nm"))


def times(numbers: Iterable[float]) -> str:
    """Return numbers of the axes, such as `1,024 x 512 x 11.24`."""
    return " x ".join(f"{number:,g}" if number % 1 else f"{number:,.0f}" for number in numbers)


def bytes_text(count: float) -> str:
    """Return a number of bytes with a unit.

    Examples
    --------
    >>> bytes_text(512), bytes_text(3 * 2**30)
    ('512 bytes', '3.0 GiB')
    """
    if count < 1024:
        return f"{count:.0f} bytes"
    power = min(5, int(math.log(count, 1024)))
    return f"{count / 1024**power:.1f} {' KMGTP'[power]}iB"


def length_text(nm: float) -> str:
    """Return a length in the largest unit that it fills.

    Examples
    --------
    >>> length_text(11.24), length_text(1500)
    ('11.24 nm', '1.5 µm')
    """
    scale, unit = next((pair for pair in _LENGTHS if nm >= pair[0]), _LENGTHS[-1])
    return f"{nm / scale:.4g} {unit}"


def lengths_text(nm: Sequence[float]) -> str:
    """Return lengths of the axes in one unit, that of the longest.

    Examples
    --------
    >>> lengths_text((11510, 11510, 7168))
    '11.51 x 11.51 x 7.168 µm'
    """
    longest = max(nm)
    scale, unit = next((pair for pair in _LENGTHS if longest >= pair[0]), _LENGTHS[-1])
    return f"{' x '.join(f'{each / scale:.4g}' for each in nm)} {unit}"


def printable(text: str) -> str:
    r"""Return text in which characters that would control a terminal are written out.

    Examples
    --------
    >>> print(printable("tissue\n\x1b[2J"))
    tissue\n\x1b[2J
    """
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def columns(rows: Sequence[Sequence[object]]) -> list[str]:
    """Return rows of cells as lines whose columns stand under each other."""
    cells = [[printable(str(cell)) for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    lines = ("  ".join(map(str.ljust, row, widths)) for row in cells)
    return [line.rstrip() for line in lines]
