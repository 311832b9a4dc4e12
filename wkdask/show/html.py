"""HTML for notebooks, from plain values: cards, tables and lists, with everything escaped."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape

__all__ = ["STYLE", "beside", "card", "facts", "figure", "items", "page", "table", "text"]

# Colours are those of the page, lighter or darker by opacity, so that dark and light themes fit.
STYLE = (
    ".wk{font-size:13px;line-height:1.4;max-width:100%;overflow-x:auto}"
    ".wk h4{margin:0 0 4px;font-size:14px;font-weight:600}"
    ".wk h4 span{opacity:.65;font-weight:400}"
    ".wk table{border-collapse:collapse;margin:4px 0;width:auto}"
    ".wk th,.wk td{text-align:left!important;padding:2px 9px 2px 0;vertical-align:top;"
    "white-space:nowrap;background:none;color:inherit;border:0}"
    ".wk td.wk-long{white-space:normal;max-width:60em;overflow-wrap:anywhere}"
    ".wk tr{background:none!important}"
    ".wk thead th,.wk-facts th{font-weight:400;opacity:.65}"
    ".wk p{margin:2px 0;opacity:.75}"
    ".wk-row{display:flex;flex-wrap:wrap;gap:16px;align-items:flex-start}"
    ".wk i{display:inline-block;width:10px;height:10px;margin:0 4px 0 2px;"
    "border:1px solid currentColor;vertical-align:-1px}"
    ".wk-all{background:rgba(74,144,217,.55)}.wk-some{background:rgba(74,144,217,.25)}"
)
_LONG = 60
"""Characters of a cell from which on its text is broken into lines."""


def card(kind: str, title: str, parts: Iterable[str]) -> str:
    """Return parts, which are HTML already, under a heading."""
    heading = f"<h4><span>wkdask.{escape(kind)}</span> {escape(title)}</h4>"
    return f"<div class='wk'><style>{STYLE}</style>{heading}{''.join(parts)}</div>"


def beside(*parts: str) -> str:
    """Return parts, which are HTML already, beside each other where there is room."""
    return f"<div class='wk-row'>{''.join(f'<div>{part}</div>' for part in parts if part)}</div>"


def facts(rows: Iterable[tuple[str, object]]) -> str:
    """Return names and what they stand for."""
    return f"<table class='wk-facts'>{''.join(map(_row, rows))}</table>"


def table(rows: Iterable[Sequence[object]], *, head: Sequence[object] = ()) -> str:
    """Return a table; the first cell of each row is its name.

    Examples
    --------
    >>> table([("chunks", 8)])
    "<table><tr><th style='text-align:left'>chunks</th><td>8</td></tr></table>"
    """
    top = f"<thead><tr>{''.join(map(_name, head))}</tr></thead>" if head else ""
    return f"<table>{top}{''.join(map(_row, rows))}</table>"


def figure(address: str, caption: str) -> str:
    """Return a picture with what it shows under it."""
    return (
        f"<figure style='margin:4px 0'><img alt='{escape(caption)}' src='{escape(address)}' "
        f"style='max-width:100%;display:block'><figcaption>{escape(caption)}</figcaption></figure>"
    )


def page(title: str, parts: Iterable[str]) -> str:
    """Return a whole page, whose colours follow the reader's theme."""
    style = (
        ":root{color-scheme:light dark}body{font-family:sans-serif;margin:20px;max-width:1200px}"
    )
    body = "".join(f"<section style='margin:0 0 28px'>{part}</section>" for part in parts)
    return (
        "<!DOCTYPE html><html lang='en'><head><meta charset='utf-8'>"
        "<meta name='viewport' content='width=device-width'>"
        f"<title>{escape(title)}</title><style>{style}</style></head><body>{body}</body></html>"
    )


def text(line: object) -> str:
    """Return a line of text."""
    return f"<p>{escape(str(line))}</p>"


def items(lines: Iterable[object]) -> str:
    """Return a list with an item for each line, or nothing if there are no lines."""
    found = "".join(f"<li>{escape(str(line))}</li>" for line in lines)
    return f"<ul>{found}</ul>" if found else ""


def _row(cells: Sequence[object]) -> str:
    return f"<tr>{_name(cells[0])}{''.join(map(_cell, cells[1:]))}</tr>"


def _cell(cell: object) -> str:
    text = escape(str(cell))
    return f"<td class='wk-long'>{text}</td>" if len(text) > _LONG else f"<td>{text}</td>"


def _name(cell: object) -> str:
    return f"<th style='text-align:left'>{escape(str(cell))}</th>"
