"""A box drawn in perspective as SVG: lengths of its edges, files on its faces, which of them exist.

It takes plain values. Colours are those of the text around it, so that light and dark pages fit.
"""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

import numpy as np

from wkdask.show.facts import FileFacts
from wkdask.show.text import length_text

__all__ = ["LEGEND", "bars_svg", "box_svg"]

WIDTH, HEIGHT = 310, 165
_ROOM = (150.0, 125.0)
"""Room of the drawing itself; the rest is for names and lengths of the axes."""
_SLANT = (0.55, -0.35)
"""Where the axis z leads to, in parts of its length; x leads to the right and y down."""
_LEAST = 0.12
"""Length of an edge at least, as a part of the longest."""

LEGEND = {"all": "every file exists", "some": "some exist", "none": "missing (zeros)"}
_OPACITY = {"all": 0.55, "some": 0.25, "none": 0.03}
_BLUE = "#4a90d9"

Point = tuple[float, float]


def box_svg(
    size: Sequence[int], lengths_nm: Sequence[float] | None, files: FileFacts | None
) -> str:
    """Return a drawing of a box.

    Parameters
    ----------
    size
        Voxels `(x, y, z)`.
    lengths_nm
        Lengths of its edges, if known.
    files
        Which files of it exist, for the colours of its three visible faces.
    """
    if not all(size):
        return ""
    frame = _Frame(lengths_nm or size)
    faces = "".join(_face(frame, axis, files) for axis in (1, 0, 2))
    names = [
        f"{dim} {length_text(lengths_nm[i]) if lengths_nm else f'{size[i]:,}'}"
        for i, dim in enumerate("xyz")
    ]
    return (
        f'<svg class="wk-box" width="{WIDTH}" height="{HEIGHT}" role="img" '
        f'viewBox="0 0 {WIDTH} {HEIGHT}" aria-label="{escape(", ".join(names))}">'
        f"{faces}{_names(frame, names)}</svg>"
    )


def bars_svg(counts: Sequence[int], low: float, high: float) -> str:
    """Return a histogram, with the values where it begins and ends."""
    most, wide = max(*counts, 1), WIDTH / len(counts)
    bars = "".join(
        f"M{i * wide:.1f} 120v{-110 * count / most:.1f}h{wide:.1f}V120Z"
        for i, count in enumerate(counts)
        if count
    )
    ends = ((0, "start", low), (WIDTH, "end", high))
    texts = "".join(
        f'<text x="{x}" y="136" text-anchor="{anchor}" font-size="11" fill="currentColor">'
        f"{value:,g}</text>"
        for x, anchor, value in ends
    )
    return (
        f'<svg width="{WIDTH}" height="142" role="img" aria-label="histogram">'
        f'<path d="{bars}" fill="{_BLUE}"/><path d="M0 120H{WIDTH}" stroke="currentColor"/>'
        f"{texts}</svg>"
    )


class _Frame:
    """Where points of the unit cube lie in the drawing."""

    def __init__(self, lengths: Sequence[float]) -> None:
        longest = max(lengths)
        x, y, z = (max(length / longest, _LEAST) for length in lengths)
        wide, high = x + _SLANT[0] * z, y - _SLANT[1] * z
        scale = min(_ROOM[0] / wide, _ROOM[1] / high)
        self.edges = (x * scale, y * scale, z * scale)
        self.left = 85 + (_ROOM[0] - wide * scale) / 2
        self.top = 8 - _SLANT[1] * self.edges[2] + (_ROOM[1] - high * scale) / 2

    def at(self, x: float, y: float, z: float) -> Point:
        """Return where a point is, each coordinate from 0 to 1."""
        deep = z * self.edges[2]
        return (
            self.left + x * self.edges[0] + _SLANT[0] * deep,
            self.top + y * self.edges[1] + _SLANT[1] * deep,
        )


def _face(frame: _Frame, axis: int, files: FileFacts | None) -> str:
    """Return the visible face across an axis: the front, the top or the right one."""
    # Seen are z = 0, y = 0 and x = 1.
    at = 1.0 if axis == 0 else 0.0
    across = [i for i in range(3) if i != axis]
    outline = _quad(frame, axis, at, across, (0, 1), (0, 1))
    edges = f'<path d="{outline}" fill="none" stroke="currentColor" stroke-opacity=".8"/>'
    if files is None:
        return edges
    paths = dict.fromkeys(_OPACITY, "")
    mean = files.share.mean(axis=axis)
    first, second = (files.borders[i] for i in across)
    for i, j in np.ndindex(mean.shape):
        kind = "all" if mean[i, j] >= 1 else "some" if mean[i, j] > 0 else "none"
        quad = _quad(frame, axis, at, across, first[i : i + 2], second[j : j + 2])
        paths[kind] += quad
    cells = "".join(
        f'<path d="{path}" fill="{_BLUE}" fill-opacity="{_OPACITY[kind]}" stroke="currentColor" '
        f'stroke-opacity=".25" stroke-width=".5"/>'
        for kind, path in paths.items()
        if path
    )
    return cells + edges


def _quad(
    frame: _Frame,
    axis: int,
    at: float,
    across: Sequence[int],
    first: Sequence[float],
    second: Sequence[float],
) -> str:
    """Return the outline of a part of a face."""
    corners = ((0, 0), (1, 0), (1, 1), (0, 1))
    points = []
    for i, j in corners:
        place = [at, at, at]
        place[across[0]], place[across[1]] = first[i], second[j]
        points.append("{:.0f} {:.0f}".format(*frame.at(place[0], place[1], place[2])))
    return f"M{'L'.join(points)}Z"


def _names(frame: _Frame, names: Sequence[str]) -> str:
    """Return the texts that stand at the edges."""
    x, y, z = frame.at(0.5, 1, 0), frame.at(0, 0.5, 0), frame.at(1, 1, 0.5)
    places = (
        (x[0], x[1] + 15, "middle"), (y[0] - 6, y[1] + 4, "end"), (z[0] + 7, z[1] + 11, "start")
    )  # fmt: skip
    return "".join(
        f'<text x="{left:.0f}" y="{top:.0f}" text-anchor="{anchor}" font-size="11" '
        f'fill="currentColor">{escape(name)}</text>'
        for name, (left, top, anchor) in zip(names, places, strict=True)
    )
