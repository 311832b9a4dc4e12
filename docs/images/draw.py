"""Draw the pictures of the docs: `python docs/images/draw.py` rewrites the SVG files beside it.

Where chunks lie is not drawn by hand but asked of wkdask.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from pathlib import Path

import dask.array as da

import wkdask
from wkdask.arrays.labelled import Coords, Labels, to_dataarray
from wkdask.geometry import BoundingBox, Mag, Vec3
from wkdask.grids import ChunkGrid

PACKAGE = Path(wkdask.__file__).parent
INK, FAINT, PAPER = "#24292f", "#8c959f", "#ffffff"
BLUE, PALE_BLUE, RED, PALE_RED, PALE = "#0969da", "#ddf4ff", "#cf222e", "#ffebe9", "#f6f8fa"

FILE_EDGE, BLOCKS_PER_FILE_EDGE = 64, 4
VIEW = BoundingBox((20, 24, 0), (204, 120, 1))


def svg(width: int, height: int, parts: Iterable[str]) -> str:
    """Return a picture on white paper, so that it is legible on a dark page too."""
    arrow = (
        '<defs><marker id="tip" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" '
        f'markerHeight="7" orient="auto"><path d="M0 0 8 4 0 8z" fill="{INK}"/></marker></defs>'
    )
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" '
            f'width="{width}" height="{height}" font-family="sans-serif" font-size="13">',
            arrow,
            f'<rect width="{width}" height="{height}" rx="8" fill="{PAPER}"/>',
            *parts,
            "</svg>\n",
        ]
    )


def rect(x: float, y: float, w: float, h: float, style: str) -> str:
    """Return a rectangle."""
    return f'<rect x="{x:g}" y="{y:g}" width="{w:g}" height="{h:g}" {style}/>'


def text(x: float, y: float, words: str, style: str = "") -> str:
    """Return a line of text."""
    return f'<text x="{x:g}" y="{y:g}" fill="{INK}" {style}>{words}</text>'


# --- rooms --------------------------------------------------------------------------------------

ROOM = re.compile(r"^\| (\d+) \| `(\w+)` \| ([^|]*) \|", re.MULTILINE)


def draw_rooms() -> str:
    """Show the rooms as stairs, as the table of the page about the architecture lists them."""
    page = Path(__file__).parents[1].joinpath("architecture.md").read_text(encoding="utf-8")
    rows: dict[int, list[str]] = {}
    for row, room, _ in ROOM.findall(page):
        rows.setdefault(int(row), []).append(room)
    height, last = 34, max(rows)
    parts = [text(20, 28, "each room uses itself and the rooms below it", 'font-weight="bold"')]
    for row, rooms in rows.items():
        top, left = 44 + (last - row) * height, 20 + row * 24
        for number, room in enumerate(rooms):
            is_folder = (PACKAGE / room).is_dir()
            style = (
                f'fill="{PALE_BLUE if is_folder else PALE}" stroke="{BLUE if is_folder else FAINT}"'
            )
            x = left + number * 130
            parts += [
                rect(x, top, 122, 26, f'rx="4" {style}'),
                text(x + 61, top + 18, room, 'text-anchor="middle"'),
            ]
    bottom = 44 + (last + 1) * height
    parts += [
        rect(20, bottom + 6, 18, 14, f'fill="{PALE_BLUE}" stroke="{BLUE}"'),
        text(46, bottom + 18, "a room, which is a folder"),
        rect(230, bottom + 6, 18, 14, f'fill="{PALE}" stroke="{FAINT}"'),
        text(256, bottom + 18, "a file of the hall"),
    ]
    return svg(660, bottom + 34, parts)


# --- chunks -------------------------------------------------------------------------------------


def draw_chunks() -> str:
    """Show one view under two chunk sizes."""
    edge = FILE_EDGE
    left = _panel(30, (edge, edge, 1), f"chunk_size = {edge}, the file edge: one file per task")
    right = _panel(400, (48, 48, 1), "chunk_size = 48: tasks share the red files, refused")
    legend = [
        rect(30, 290, 22, 14, f'fill="none" stroke="{INK}" stroke-width="1.5"'),
        text(58, 302, f"file, {edge} voxels"),
        rect(170, 290, 14, 14, f'fill="none" stroke="{FAINT}" stroke-width="0.6"'),
        text(190, 302, f"block, {edge // BLOCKS_PER_FILE_EDGE} voxels"),
        rect(310, 290, 22, 14, f'fill="none" stroke="{BLUE}" stroke-width="2.5"'),
        text(338, 302, "view"),
        rect(390, 290, 22, 14, f'fill="{PALE_BLUE}" stroke="{BLUE}" stroke-dasharray="4 3"'),
        text(418, 302, "chunk, with the number i that its task gets"),
    ]
    return svg(740, 322, [*left, *right, *legend])


def _panel(left: int, chunk_size: Vec3, title: str) -> list[str]:
    scale, top = 1.2, 44

    def place(box: BoundingBox, style: str) -> str:
        (x, y, _), (w, h, _) = box.topleft, box.size
        return rect(left + x * scale, top + y * scale, w * scale, h * scale, style)

    grid = ChunkGrid(VIEW, chunk_size)
    whole = BoundingBox((0, 0, 0), (4 * FILE_EDGE, 3 * FILE_EDGE, 1))
    files = list(ChunkGrid(whole, (FILE_EDGE, FILE_EDGE, 1)))
    block_edge = FILE_EDGE // BLOCKS_PER_FILE_EDGE
    blocks = ChunkGrid(whole, (block_edge, block_edge, 1))
    parts = [text(left, 28, title, 'font-weight="bold"')]
    parts += [place(file, f'fill="{PALE_RED if _shared(file, grid) else PALE}"') for file in files]
    parts += [place(chunk, f'fill="{PALE_BLUE}" fill-opacity="0.6"') for chunk in grid]
    parts += [place(b, f'fill="none" stroke="{FAINT}" stroke-width="0.3"') for b in blocks]
    parts += [place(f, f'fill="none" stroke="{INK}" stroke-width="1.5"') for f in files]
    parts += [
        place(file, f'fill="{RED}" fill-opacity="0.12" stroke="{RED}" stroke-width="1.5"')
        for file in files
        if _shared(file, grid)
    ]
    parts += [place(chunk, f'fill="none" stroke="{BLUE}" stroke-dasharray="4 3"') for chunk in grid]
    parts.append(place(VIEW, f'fill="none" stroke="{BLUE}" stroke-width="2.5"'))
    for number, chunk in enumerate(grid):
        x, y = (a + n / 2 for a, n in zip(chunk.topleft[:2], chunk.size[:2], strict=True))
        parts.append(
            text(left + x * scale, top + y * scale + 5, str(number), 'text-anchor="middle"')
        )
    return parts


def _shared(file: BoundingBox, grid: ChunkGrid) -> bool:
    return sum(not file.intersected_with(c, dont_assert=True).is_empty for c in grid) > 1


# --- walks --------------------------------------------------------------------------------------


def draw_read() -> str:
    """Show the walk of `view[...].compute()`."""
    parts = [
        *_lane(20, 20, 700, 110, "in your process: no voxel is touched"),
        *_lane(20, 160, 700, 226, "on a worker"),
        *_step(40, 52, "view[0, :, ::2, 48]", "arrays/view.py"),
        *_step(280, 52, "one graph layer", "arrays/lazy.py"),
        *_step(520, 52, "the slice goes into it", "dask"),
        _arrow(220, 82, 280, 82),
        _arrow(460, 82, 520, 82),
        _arrow(610, 112, 610, 192),
        text(620, 150, "path, header, box"),
        *_step(520, 192, "VolumeArray[...]", "arrays/lazy.py"),
        *_step(280, 192, "Volume.read(region)", "storage/wkw.py: the seam"),
        *_step(40, 192, "which files, which slices", "grids.py"),
        *_step(280, 302, "one file, checked", "storage/reader.py"),
        *_step(40, 302, "which blocks, which slices", "storage/codec.py"),
        *_step(520, 302, "decode and gather", "storage/codec.py"),
        _arrow(520, 222, 460, 222),
        _arrow(280, 214, 220, 214),
        _arrow(220, 232, 280, 232),
        _arrow(370, 252, 370, 302),
        text(380, 282, "per file; if there is none: zeros"),
        _arrow(280, 324, 220, 324),
        _arrow(220, 342, 280, 342),
        _arrow(460, 324, 520, 324),
        _arrow(520, 342, 460, 342),
    ]
    return svg(740, 406, parts)


def draw_downsample() -> str:
    """Show the walk of `Layer.downsample`."""
    parts = [
        *_lane(20, 20, 700, 110, "in your process: everything is checked"),
        *_lane(20, 160, 700, 226, "on a worker"),
        *_step(40, 52, "layer.downsample()", "pyramid/build.py"),
        *_step(280, 52, "files, depth first", "pyramid/fill.py"),
        *_step(520, 52, "a task per file", "runtime/stream.py"),
        _arrow(220, 82, 280, 82),
        _arrow(460, 82, 520, 82),
        _arrow(610, 112, 610, 192),
        text(600, 150, "boxes, factors, mode", 'text-anchor="end"'),
        *_step(520, 192, "read a piece, mirrored", "pyramid/sampling.py"),
        *_step(280, 192, "reduce it", "kernels"),
        *_step(40, 192, "Volume.fill", "storage/wkw.py: the seam"),
        *_step(40, 302, "append its blocks", "storage/writer.py"),
        *_step(280, 302, "receipt", "a few bytes, no voxels"),
        _arrow(520, 214, 460, 214),
        f'<path d="M370 252v18h240v-18" fill="none" stroke="{INK}" marker-end="url(#tip)"/>',
        text(490, 286, "piece by piece", 'text-anchor="middle"'),
        _arrow(280, 214, 220, 214),
        _arrow(130, 252, 130, 302),
        _arrow(220, 332, 280, 332),
        f'<path d="M460 332H710V82H702" fill="none" stroke="{INK}" marker-end="url(#tip)"/>',
    ]
    return svg(740, 406, parts)


def _lane(x: int, y: int, w: int, h: int, title: str) -> list[str]:
    return [
        rect(x, y, w, h, f'rx="6" fill="{PALE}"'),
        text(x + 20, y + 22, title, 'font-weight="bold"'),
    ]


def _step(x: int, y: int, what: str, where: str) -> list[str]:
    return [
        rect(x, y, 180, 60, f'rx="6" fill="{PALE_BLUE}" stroke="{BLUE}"'),
        text(x + 90, y + 26, what, 'text-anchor="middle"'),
        text(x + 90, y + 46, where, f'text-anchor="middle" style="fill:{BLUE};font-size:12px"'),
    ]


def _arrow(x1: int, y1: int, x2: int, y2: int) -> str:
    return f'<line x1="{x1}" y1="{y1}" x2="{x2}" y2="{y2}" stroke="{INK}" marker-end="url(#tip)"/>'


# --- coordinates --------------------------------------------------------------------------------


def draw_coordinates() -> str:
    """Show corners and centres of the same eight voxels in three mags."""
    parts = [
        *_axis(64, "voxel", 'coords="voxel": corners, in voxels of mag 1'),
        *_axis(424, "physical", 'coords="physical": centres, here in nm'),
        text(64, 236, "A corner has one number in every mag: mags align."),
        text(424, 236, "A middle has another number in the next mag."),
    ]
    for row, mag in enumerate(COORDINATE_MAGS):
        parts.append(text(8, 70 + 56 * row, f"mag {mag}"))
    return svg(740, 254, parts)


COORDINATE_MAGS, NM, COUNT, PIXELS = (1, 2, 4), 8.0, 8, 36


def _axis(left: int, coords: Coords, title: str) -> list[str]:
    parts = [text(left, 28, title.replace('"', "&quot;"), 'font-weight="bold"')]
    pixels = PIXELS if coords == "voxel" else PIXELS / NM
    for row, mag in enumerate(COORDINATE_MAGS):
        top, width = 48 + 56 * row, mag * PIXELS
        for number, at in enumerate(_numbers(mag, coords)):
            x = left + at * pixels
            parts += [
                rect(
                    left + number * width, top, width, 30,
                    f'fill="{PALE_BLUE}" fill-opacity="0.6" stroke="{FAINT}"',
                ),
                f'<circle cx="{x:g}" cy="{top + 15}" r="4" fill="{RED}"/>',
                text(x, top + 45, f"{at:g}", 'text-anchor="middle"'),
            ]  # fmt: skip
    return parts


def _numbers(mag: int, coords: Coords) -> list[float]:
    """Ask wkdask for the coordinates of a row of voxels."""
    box = BoundingBox((0, 0, 0), (COUNT // mag, 1, 1))
    labels = Labels(Mag(mag), voxel_size=(NM,) * 3, unit="nanometer")
    array = to_dataarray(da.zeros((1, *box.size)), box, labels, coords)
    return [float(at) for at in array.x]


PICTURES: dict[str, Callable[[], str]] = {
    "rooms.svg": draw_rooms,
    "chunks.svg": draw_chunks,
    "coordinates.svg": draw_coordinates,
    "walk-read.svg": draw_read,
    "walk-downsample.svg": draw_downsample,
}

if __name__ == "__main__":
    for name, draw in PICTURES.items():
        (Path(__file__).parent / name).write_text(draw(), encoding="utf-8")
