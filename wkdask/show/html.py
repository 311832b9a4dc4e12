"""HTML for notebooks, from plain values: tables and lists, with everything escaped."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape

__all__ = ["items", "table"]


def table(rows: Iterable[Sequence[object]], *, head: Sequence[object] = ()) -> str:
    """Return a table; the first cell of each row is its name.

    Examples
    --------
    >>> table([("chunks", 8)])
    "<table><tr><th style='text-align:left'>chunks</th><td>8</td></tr></table>"
    """
    top = f"<tr>{''.join(map(_name, head))}</tr>" if head else ""
    return f"<table>{top}{''.join(map(_row, rows))}</table>"


def items(lines: Iterable[object]) -> str:
    """Return a list with an item for each line, or nothing if there are no lines."""
    found = "".join(f"<li>{escape(str(line))}</li>" for line in lines)
    return f"<ul>{found}</ul>" if found else ""


def _row(cells: Sequence[object]) -> str:
    values = "".join(f"<td>{escape(str(cell))}</td>" for cell in cells[1:])
    return f"<tr>{_name(cells[0])}{values}</tr>"


def _name(cell: object) -> str:
    return f"<th style='text-align:left'>{escape(str(cell))}</th>"
