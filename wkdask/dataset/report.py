"""A dataset as one HTML page: tables, a plane and the values of each layer, findings of `check`."""

from __future__ import annotations

import base64
import os
from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from wkdask.dataset.check import check
from wkdask.dataset.dataset import Dataset, Layer
from wkdask.errors import ArgumentError, MissingExtraError, NameLookupError, WkdaskError
from wkdask.geometry import Mag, is_remote
from wkdask.show import html
from wkdask.show.drawing import bars_svg
from wkdask.show.pictures import draw_plane, window_around
from wkdask.show.pixels import png
from wkdask.show.shown import ShownLayer, read_plane

__all__ = ["report_html", "shown_layers"]

Path_ = str | os.PathLike[str]

_PIXELS = 384
"""Voxels per axis of the planes that are drawn."""
_BINS = 64


def shown_layers(
    path: Path_, names: Sequence[str | None], mag: str | None = None
) -> list[ShownLayer]:
    """Return layers of a dataset by name, where None is the first; of `mag` only, if given."""
    dataset = Dataset(path)
    found: list[ShownLayer] = []
    for name in names:
        first = next(iter(dataset.layers), None) if name is None else name
        if first is None:
            raise NameLookupError(f"{dataset.path} has no layers.")
        layer = dataset[first]
        shown = layer.shown()
        if found and not shown.is_segmentation:
            raise ArgumentError(
                f"layer {first!r} holds grey values: only a segmentation can be drawn over another."
            )
        if mag is not None:
            wanted = layer[mag].shown()
            shown = replace(shown, mags=[m for m in wanted.mags if m.factors == Mag(mag).factors])
        found.append(shown)
    return found


def report_html(path: Path_) -> str:
    """Return a page that shows a dataset and needs no other file.

    Parameters
    ----------
    path
        The dataset.

    Raises
    ------
    MissingError, PropertiesError
        If there is no dataset that can be understood.
    MissingExtraError
        If pillow is not installed.
    """
    dataset = Dataset(path)
    parts = [dataset._repr_html_()]
    for layer in dataset.layers.values():
        parts += _layer_parts(layer)
    parts.append(
        html.text("Files at an address are not checked.")
        if is_remote(str(dataset.path))
        else check(path)._repr_html_()
    )
    return html.page(dataset.name, parts)


def _layer_parts(layer: Layer) -> Iterator[str]:
    yield layer._repr_html_()
    try:
        shown = layer.shown()
        yield html.beside(_thumbnail(shown), _histogram(shown))
    except MissingExtraError:
        raise
    except WkdaskError as error:
        yield html.text(f"No picture: {error}")


def _thumbnail(layer: ShownLayer) -> str:
    window = window_around(layer, layer.centre, _PIXELS)
    image = base64.b64encode(png(draw_plane([layer], "z", window=window, most=_PIXELS))).decode()
    at = f"z = {int(layer.centre[2]):,}"
    return html.figure(f"data:image/png;base64,{image}", f"plane {at} of {layer.name}")


def _histogram(layer: ShownLayer) -> str:
    """Return which values three planes through the middle have."""
    window = window_around(layer, layer.centre, _PIXELS)
    planes = [
        read_plane(layer, axis, at, window=window, most=_PIXELS).pixels.ravel()
        for axis, at in zip("xyz", layer.centre, strict=True)
    ]
    values = np.concatenate(planes)
    if layer.is_segmentation:
        ids, counts = np.unique(values[values != 0], return_counts=True)
        largest = sorted(zip(counts.tolist(), ids.tolist(), strict=True), reverse=True)[:8]
        facts = [("ids in three planes", f"{len(ids):,}")]
        facts += [(f"id {number:,}", f"{count / values.size:.1%}") for count, number in largest]
        return html.facts(facts)
    return _bars(values)


def _bars(values: NDArray[np.generic]) -> str:
    finite = values[np.isfinite(values)].astype(np.float64)
    if not finite.size:
        return html.text("no finite value in three planes")
    low, high = 0.0, 256.0
    if values.dtype != np.uint8:
        low, high = float(finite.min()), float(finite.max())
        high += values.dtype.kind != "f" or low == high
    counts, _ = np.histogram(finite, _BINS, (low, high))
    zeros = f"{(finite == 0).mean():.1%} zeros, mean {finite.mean():.4g}"
    return html.text(f"values of three planes: {zeros}") + bars_svg(counts.tolist(), low, high)
