"""Values as colours: grey values between black and white, a colour for each id, PNG files.

The same colours are made by `viewer.js`; a test compares them.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wkdask.errors import extra_error

__all__ = ["LABELS_OPACITY", "blend", "colors_of", "grey_limits", "greys", "png"]

LABELS_OPACITY = 90
"""Opacity, of 255, of ids that are drawn over grey values."""

Pixels = NDArray[Any]
Colors = NDArray[np.uint8]


def colors_of(ids: Pixels) -> Colors:
    """Return a colour for each id, the same everywhere; 0 is black.

    Parameters
    ----------
    ids
        Whole numbers, of any shape.

    Examples
    --------
    >>> colors_of(np.array([[0, 7]], dtype=np.uint32)).shape
    (1, 2, 3)
    """
    # In steps of the golden ratio and its like, neighbouring ids get colours far apart. The
    # remainder keeps ids of 64 bits within what a float holds exactly.
    small = (ids.astype(np.uint64) % np.uint64(2**32)).astype(np.float64)
    hue, saturation, value = (small * step % 1 for step in (0.618034, 0.754878, 0.569840))
    parts = [_hue_to_part(hue + shift) for shift in (0, 2 / 3, 1 / 3)]
    strength = 0.35 + 0.4 * saturation
    bright = (0.6 + 0.4 * value) * (ids != 0)
    colors = np.stack([bright * (1 - strength * (1 - part)) for part in parts], axis=-1)
    return (colors * 255).astype(np.uint8)


def grey_limits(pixels: Sequence[Pixels]) -> tuple[float, float]:
    """Return what is black and white: all of a byte or a bool, or else what most pixels span."""
    values = np.concatenate([plane.ravel() for plane in pixels])
    if values.dtype in (np.bool_, np.uint8):
        return 0.0, 255.0 if values.dtype == np.uint8 else 1.0
    finite = values[np.isfinite(values)] if values.dtype.kind == "f" else values
    if not finite.size:
        return 0.0, 1.0
    low, high = np.percentile(finite, (0.5, 99.5))
    return float(low), float(high) if high > low else float(low) + 1


def greys(pixels: Pixels, low: float, high: float) -> Colors:
    """Return grey values `(c, rows, columns)` as RGB; three channels of bytes are its parts."""
    shown = pixels[:3] if len(pixels) >= 3 and pixels.dtype == np.uint8 else pixels[:1]
    scaled = (shown.astype(np.float64) - low) / max(high - low, 1e-300)
    bytes_ = (np.clip(np.nan_to_num(scaled), 0, 1) * 255).astype(np.uint8)
    return np.ascontiguousarray(np.moveaxis(np.broadcast_to(bytes_, (3, *pixels.shape[1:])), 0, -1))


def blend(under: Colors, ids: Pixels, opacity: float = LABELS_OPACITY / 255) -> Colors:
    """Return colours with those of ids over them, but not where the id is 0."""
    part = np.where(ids == 0, 0.0, opacity)[..., np.newaxis]
    mixed: Colors = (under * (1 - part) + colors_of(ids) * part).round().astype(np.uint8)
    return mixed


def png(colors: Colors, *, stretch: tuple[int, int] | None = None) -> bytes:
    """Return RGB pixels `(rows, columns, 3)` as a PNG file; `stretch` is its width and height."""
    try:
        from PIL import Image
    except ImportError:
        raise extra_error("pillow", "plot") from None
    image = Image.fromarray(colors)
    if stretch is not None:
        image = image.resize(stretch, Image.Resampling.NEAREST)
    file = io.BytesIO()
    image.save(file, "png")
    return file.getvalue()


def _hue_to_part(hue: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return how much of one primary colour a hue has, from 0 to 1."""
    part: NDArray[np.float64] = np.clip(np.abs(hue % 1 * 6 - 3) - 1, 0, 1)
    return part
