"""Datasets, layers and views as people see them: text for a terminal, HTML for a notebook.

Everything that a dataset says of itself is escaped. Text and HTML tell the same facts.
"""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from wkdask.show import html
from wkdask.show.drawing import LEGEND, box_svg
from wkdask.show.facts import FileFacts, LayerFacts, MagFacts
from wkdask.show.text import bytes_text, columns, lengths_text, printable, times

__all__ = [
    "dataset_html",
    "dataset_text",
    "layer_html",
    "layer_text",
    "view_html",
    "view_text",
]

MOST_LAYERS = 40
"""Rows of layers that are shown; more are counted."""

_MAG_HEAD = ("mag", "shape (c, x, y, z)", "voxel size nm", "dtype", "blocks", "file edge")
_LAYER_HEAD = ("layer", "category", "dtype", "size (x, y, z)", "extent", "mags")


def dataset_text(name: str, path: str, size: Sequence[object], layers: Sequence[LayerFacts]) -> str:
    """Return a dataset as lines: its name, path, voxel size, and a row for each layer."""
    lines = [f"<wkdask.Dataset {name!r}>", f"  path        {printable(path)}", _size_line(size)]
    return "\n".join([*lines, *_layer_lines(layers)])


def dataset_html(name: str, path: str, size: Sequence[object], layers: Sequence[LayerFacts]) -> str:
    """Return a dataset as a card with a table of its layers."""
    rows = [_layer_cells(layer) for layer in layers[:MOST_LAYERS]]
    size_text = _size_line(size).split(maxsplit=2)[-1]
    parts = [
        html.facts([("path", path), ("voxel size", size_text)]),
        html.table(rows, head=_LAYER_HEAD) if rows else "no layers",
        html.items(_more(layers)),
    ]
    return html.card("Dataset", name, parts)


def layer_text(layer: LayerFacts, mags: Sequence[MagFacts]) -> str:
    """Return a layer as lines: what it holds, and a row for each mag."""
    lines = [f"<wkdask.Layer {layer.name!r}>", *_facts_lines(_layer_facts(layer))]
    if not mags:
        return "\n".join([*lines, f"  {_no_mags(layer)}"])
    rows = columns([_MAG_HEAD, *map(_mag_cells, mags)])
    return "\n".join([*lines, *(f"  {row}" for row in rows)])


def layer_html(layer: LayerFacts, mags: Sequence[MagFacts]) -> str:
    """Return a layer as a card: a table of its mags, and a drawing of the finest one's files."""
    rows = [(*_mag_cells(mag), *_file_cells(mag.files)) for mag in mags]
    table = html.table(rows, head=(*_MAG_HEAD, "files on disk", "bytes")) if rows else ""
    finest = next((mag for mag in mags if not mag.error), None)
    files = finest.files if finest else None
    drawing = box_svg(layer.size, layer.lengths_nm, files)
    facts = html.facts(_layer_facts(layer)) + (table or html.text(_no_mags(layer)))
    notes = _notes([mag.files for mag in mags], "" if finest is None else finest.name)
    return html.card("Layer", layer.name, [html.beside(facts, drawing), notes])


def view_text(kind: str, path: str, mag: MagFacts) -> str:
    """Return a view as lines."""
    return "\n".join([f"<wkdask.{kind} {path!r}>", *_facts_lines(_view_facts(mag))])


def view_html(kind: str, path: str, mag: MagFacts) -> str:
    """Return a view as a card with a drawing of its box."""
    facts = [("path", path), *_view_facts(mag)]
    if mag.files is not None:
        facts += zip(("files on disk", "bytes"), _file_cells(mag.files), strict=True)
    drawing = box_svg(mag.shape[1:], mag.lengths_nm, mag.files)
    title = f"mag {mag.name}" if mag.name else ""
    return html.card(kind, title, [html.beside(html.facts(facts), drawing), _notes([mag.files])])


def _size_line(size: Sequence[object]) -> str:
    return f"  voxel size  {' '.join(map(str, size)) or 'not known'}"


def _facts_lines(facts: Sequence[tuple[str, str]]) -> list[str]:
    return [f"  {line}" for line in columns(facts)]


def _layer_lines(layers: Sequence[LayerFacts]) -> list[str]:
    if not layers:
        return ["  no layers"]
    rows = columns([_LAYER_HEAD, *map(_layer_cells, layers[:MOST_LAYERS])])
    return [f"  {line}" for line in [*rows, *_more(layers)]]


def _more(layers: Sequence[LayerFacts]) -> list[str]:
    left = len(layers) - MOST_LAYERS
    return [f"and {left:,} more layers"] if left > 0 else []


def _layer_cells(layer: LayerFacts) -> tuple[str, ...]:
    if layer.error:
        return (layer.name, f"unreadable: {layer.error}", "", "", "", "")
    lengths = layer.lengths_nm
    return (
        layer.name,
        layer.category,
        layer.voxel_type,
        times(layer.size),
        lengths_text(lengths) if lengths else "",
        f"({layer.unread_format})" if layer.unread_format else ", ".join(layer.mag_names),
    )


def _layer_facts(layer: LayerFacts) -> list[tuple[str, str]]:
    lengths = layer.lengths_nm
    extent = f", {lengths_text(lengths)}" if lengths and any(lengths) else ""
    facts = [
        ("voxels", f"{layer.category}, {layer.voxel_type}"),
        ("box", f"{times(layer.size)} at ({', '.join(map(str, layer.corner))}) in mag 1{extent}"),
    ]
    if layer.largest_segment_id is not None:
        facts.append(("largest segment id", f"{layer.largest_segment_id:,}"))
    return facts


def _no_mags(layer: LayerFacts) -> str:
    if layer.unread_format:
        return f"stored as {layer.unread_format}, which wkdask does not read"
    return "no mags: add_mag makes one"


def _mag_cells(mag: MagFacts) -> tuple[str, ...]:
    if mag.error:
        return (mag.name, f"can't be opened: {mag.error}", "", "", "", "")
    return (
        mag.name,
        f"({', '.join(map(str, mag.shape))})",
        times(mag.voxel_size_nm) if mag.voxel_size_nm else "not known",
        mag.dtype,
        mag.blocks,
        _edges(mag.file_size),
    )


def _view_facts(mag: MagFacts) -> list[tuple[str, str]]:
    lengths = mag.lengths_nm
    known = [
        ("shape (c, x, y, z)", f"({', '.join(map(str, mag.shape))})"),
        ("dtype", f"{mag.dtype}, {bytes_text(mag.size_bytes)} before compression"),
        ("first voxel", f"({', '.join(map(str, mag.corner))})"),
        ("mag", mag.name),
        ("voxel size", f"{times(mag.voxel_size_nm)} nm" if mag.voxel_size_nm else ""),
        ("extent", lengths_text(lengths) if lengths and any(lengths) else ""),
        ("files", f"edge {_edges(mag.file_size)}, blocks {mag.blocks}"),
    ]
    return [(name, value) for name, value in known if value]


def _edges(size: Sequence[int]) -> str:
    return f"{size[0]:,}" if len(set(size)) == 1 else times(size)


def _file_cells(files: FileFacts | None) -> tuple[str, str]:
    if files is None:
        return "", ""
    about = "about " if files.is_sampled else ""
    found, size_bytes = files.all_found, files.all_bytes
    return f"{about}{found:,} of {files.total:,}", about + bytes_text(size_bytes)


def _notes(seen: Sequence[FileFacts | None], drawn: str = "") -> str:
    """Return what the colours mean, and whether all files were looked at."""
    known = [files for files in seen if files is not None and files.total]
    if not known:
        return ""
    legend = ", ".join(f'<i class="wk-{kind}"></i>{text}' for kind, text in LEGEND.items())
    of = f" of mag {escape(drawn)}" if drawn else ""
    sampled = sum(files.seen for files in known if files.is_sampled)
    note = f" Counts are estimates from {sampled:,} files that were looked at." if sampled else ""
    return f"<p>Files{of}: {legend}.{note}</p>"
