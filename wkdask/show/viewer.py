"""The viewer in notebooks: an anywidget whose module `viewer.js` asks for tiles of planes.

It knows layers as `shown` has them. Tiles go through the connection of the kernel, so that no port
is opened. It keeps no voxels; the page keeps a bounded number of tiles.
"""

from __future__ import annotations

import base64
import contextlib
import html
import math
import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from wkdask.errors import ArgumentError, WkdaskError, extra_error
from wkdask.geometry import BoundingBox
from wkdask.show.pictures import Look, draw_plane, window_around
from wkdask.show.pixels import LABELS_OPACITY, grey_limits, png
from wkdask.show.shown import AXES, Pixels, ShownLayer, as_rows, plane_axes, read_plane

try:
    import anywidget
    import traitlets
except ImportError:
    raise extra_error("anywidget", "viewer") from None

__all__ = ["TILE", "Viewer", "read_tile"]

TILE = 256
"""Voxels of a tile per axis; `viewer.js` has the same number."""
_TRAITS = ("position", "zoom", "layers", "planes", "height")
_AXIS_OF = {"xy": "z", "zy": "x", "xz": "y"}
_HERE = Path(__file__).parent
_FIRST_PIXELS = 512
"""About how many screen pixels a plane has at first, for the zoom that shows all of it."""
_LEAST_EDGE = 0.5
"""Screen pixels of a voxel of the coarsest mag at first; below that, tiles become too many."""


class Viewer(anywidget.AnyWidget):  # type: ignore[misc]
    """Planes of layers, to look through; get one from `show()` of a view, a layer or a dataset.

    Attributes
    ----------
    position : list of float
        Where the planes meet, `[x, y, z]` in voxels of mag 1.
    zoom : float
        Screen pixels per voxel of mag 1, along the axis with the shortest voxels.
    layers : list of dict
        For each layer `name`, `visible`, `opacity` from 0 to 1, and what is black and white, `low`
        and `high`. Set a new list to change it; what it does not say stays as it was.
    planes : str
        `"three"`, or the one that is shown: `"xy"`, `"zy"` or `"xz"`.
    height : int
        Screen pixels of the planes together.

    Examples
    --------
    >>> ds = wkdask.create("tissue", voxel_size=(8, 8, 8))
    >>> box = wkdask.BoundingBox((0, 0, 0), (64, 64, 64))
    >>> mag = ds.add_layer("color", "color", "uint8", bounding_box=box).add_mag(1)
    >>> mag.write(np.full((64, 64, 64), 7, np.uint8))
    >>> viewer = ds.show()
    >>> viewer.position
    [32.0, 32.0, 32.0]
    >>> viewer.position = [10, 20, 30]
    """

    _esm = _HERE / "viewer.js"
    _css = _HERE / "viewer.css"

    position = traitlets.List(traitlets.Float(), minlen=3, maxlen=3).tag(sync=True)
    zoom = traitlets.Float(1.0).tag(sync=True)
    layers = traitlets.List(traitlets.Dict()).tag(sync=True)
    planes = traitlets.Enum(("three", "xy", "zy", "xz"), "three").tag(sync=True)
    height = traitlets.Int(560, min=100).tag(sync=True)
    _described = traitlets.Dict().tag(sync=True)
    _key = traitlets.Unicode().tag(sync=True)

    def __init__(self, layers: Sequence[ShownLayer], /, **traits: Any) -> None:
        if not layers:
            raise ArgumentError("there is no layer with voxels to show.")
        self._shown = sorted(layers, key=lambda layer: layer.is_segmentation)
        if unknown := set(traits) - set(_TRAITS):
            raise ArgumentError(
                f"a viewer has no {', '.join(sorted(unknown))}; it has {', '.join(_TRAITS)}."
            )
        first = self._shown[0]
        limits = [_limits(layer) for layer in self._shown]
        box = first.box
        for layer in self._shown[1:]:
            box = box.extended_by(layer.box)
        self._states = [
            _state(layer, ends, layer is first or layer.is_segmentation)
            for layer, ends in zip(self._shown, limits, strict=True)
        ]
        start = {
            "position": list(first.centre),
            "zoom": _first_zoom(first),
            "layers": self._states,
        }
        super().__init__(
            **{**start, **traits},
            _described=_described(self._shown, box, limits),
            _key=uuid.uuid4().hex,
        )
        self.on_msg(self._answer)

    def picture(self) -> bytes:
        """Return the plane of the layers that are visible, of three planes xy, as a PNG file.

        It shows what fits into 512 pixels at the viewer's position and zoom.
        """
        states = {state["name"]: state for state in self.layers}
        shown = [each for each in self._shown if states[each.name]["visible"]] or self._shown
        opacity = next((s["opacity"] for s in self.layers if "low" not in s), 1.0)
        limits = {s["name"]: (s["low"], s["high"]) for s in self.layers if "low" in s}
        window = _seen(shown[0], self.position, self.zoom)
        axis = _AXIS_OF.get(self.planes, "z")
        place = self.position[AXES.index(axis)]
        at = place if _is_inside(shown[0], axis, place) else None
        return png(draw_plane(shown, axis, at, window=window, look=Look(opacity, limits)))

    def refresh(self) -> None:
        """Read anew what is shown, such as after a `store`, or when a broken file was mended."""
        self.send({"kind": "refresh"})

    @traitlets.validate("layers")
    def _named(self, proposal: Any) -> Any:
        """Take what is given of the layers that are named; all else stays as it was."""
        given = {each.get("name"): each for each in proposal["value"]}
        known = {state["name"]: state for state in self._states}
        if unknown := given.keys() - known.keys():
            raise traitlets.TraitError(
                f"layers names {', '.join(map(repr, unknown))}, but the viewer has "
                f"{', '.join(map(repr, known))}."
            )
        self._states = [{**state, **given.get(name, {})} for name, state in known.items()]
        return self._states

    @traitlets.validate("position", "zoom")
    def _finite(self, proposal: Any) -> Any:
        if not np.isfinite(proposal["value"]).all() or (
            proposal["trait"].name == "zoom" and proposal["value"] <= 0
        ):
            raise traitlets.TraitError(
                f"{proposal['trait'].name} is {proposal['value']}, but must be finite, and a zoom "
                "above 0."
            )
        return proposal["value"]

    def _answer(self, _widget: Any, message: Any, _buffers: Any) -> None:
        """Send the tile that the page asks for, or why there is none."""
        if message.get("kind") != "tile":
            return
        key = message.get("key")
        try:
            pixels = read_tile(self._shown, message)
        except Exception as error:
            self.send({"kind": "error", "key": key, "text": f"{error}"})
            return
        about = {"kind": "tile", "key": key, "shape": pixels.shape, "dtype": pixels.dtype.name}
        self.send(about, [pixels.tobytes()])

    def _ipython_display_(self) -> None:
        """Show the viewer, and a picture that stays where there is no kernel."""
        from IPython.display import HTML, display

        display(HTML(f'<div data-wkdask-viewer="{self._key}">{self._still()}</div>'))
        bundle = self._repr_mimebundle_()
        data, about = bundle if isinstance(bundle, tuple) else (bundle, {})
        display(data, metadata=about, raw=True)

    def _still(self) -> str:
        """Return the picture that stays, as HTML; or why there is none, such as a broken file."""
        try:
            image = base64.b64encode(self.picture()).decode()
        except WkdaskError as error:
            return f"<p>No picture: {html.escape(str(error))}</p>"
        place = tuple(map(int, self.position))
        return f'<img alt="planes through {place}" src="data:image/png;base64,{image}">'


def read_tile(layers: Sequence[ShownLayer], message: Any) -> Pixels:
    """Return the pixels `(c, rows, columns)` of a tile, without what lies outside of the box.

    Parameters
    ----------
    layers
        The layers that are shown.
    message
        Numbers of `layer` and `mag`, the `axis` across the plane, where it is cut (`at`), and
        `column` and `row` of the tile, all in voxels or tiles of the mag.
    """
    layer = layers[int(message["layer"])]
    mag = layer.mags[int(message["mag"])]
    axis = str(message["axis"])
    number, (right, down) = AXES.index(axis), plane_axes(axis)
    starts = {right: int(message["column"]) * TILE, down: int(message["row"]) * TILE}
    region = []
    for i, (first, last) in enumerate(zip(mag.box.topleft, mag.box.bottomright, strict=True)):
        if i == number:
            start, stop = int(message["at"]), int(message["at"]) + 1
        else:
            start, stop = starts[i], starts[i] + TILE
        region.append(range(max(start, first), max(first, min(stop, last))))
    if not all(region):
        return np.zeros((layer.num_channels, 0, 0), layer.dtype)
    voxels = mag.read((region[0], region[1], region[2]))
    return np.ascontiguousarray(as_rows(voxels, axis))


def _described(
    layers: Sequence[ShownLayer], box: BoundingBox, limits: Sequence[tuple[float, float]]
) -> dict[str, Any]:
    """Return what the page must know of the layers, as plain values."""
    return {
        "box": {"corner": list(box.topleft), "size": list(box.size)},
        "voxel_size_nm": layers[0].voxel_size_nm and list(layers[0].voxel_size_nm),
        "layers": [
            {
                "name": layer.name,
                "category": layer.category,
                "limits": list(ends),
                "range": list(_range(layer, ends)),
                "mags": [
                    {
                        "factors": list(mag.factors),
                        "corner": list(mag.box.topleft),
                        "size": list(mag.box.size),
                    }
                    for mag in layer.mags
                ],
            }
            for layer, ends in zip(layers, limits, strict=True)
        ],
    }


def _limits(layer: ShownLayer) -> tuple[float, float]:
    """Return what is black and white at first."""
    if layer.dtype == "uint8" or layer.is_segmentation:
        return 0.0, 255.0
    window = window_around(layer, layer.centre, _FIRST_PIXELS)
    # The tiles that can't be read say why.
    with contextlib.suppress(WkdaskError):
        planes = [
            read_plane(layer, axis, at, window=window).pixels
            for axis, at in zip(AXES, layer.centre, strict=True)
        ]
        values = [plane[plane != 0] for plane in planes]
        if any(len(each) for each in values):
            return grey_limits(values)
    dtype = np.dtype(layer.dtype)
    return (0.0, 1.0) if dtype.kind == "f" else (0.0, float(np.iinfo(dtype).max))


def _seen(layer: ShownLayer, position: Sequence[float], zoom: float) -> BoundingBox:
    """Return the part of a layer's box that is seen around a position; see `Viewer.zoom`."""
    edges = layer.voxel_size_nm or (1.0, 1.0, 1.0)
    size = [max(1, math.ceil(_FIRST_PIXELS / zoom * min(edges) / edge)) for edge in edges]
    corner = [math.floor(at - length / 2) for at, length in zip(position, size, strict=True)]
    part = layer.box.intersected_with(BoundingBox(corner, size), dont_assert=True)
    return layer.box if part.is_empty else part


def _range(layer: ShownLayer, limits: tuple[float, float]) -> tuple[float, float]:
    """Return between which values black and white can be chosen: wider than at first."""
    low, high = limits
    dtype = np.dtype(layer.dtype)
    least, most = (-np.inf, np.inf)
    if dtype.kind in "iu":
        least, most = float(np.iinfo(dtype).min), float(np.iinfo(dtype).max)
    return max(least, min(0.0, 2 * low - high)), min(most, 2 * high - low)


def _is_inside(layer: ShownLayer, axis: str, place: float) -> bool:
    number = AXES.index(axis)
    return layer.box.topleft[number] <= place < layer.box.bottomright[number]


def _state(layer: ShownLayer, limits: tuple[float, float], is_visible: bool) -> dict[str, Any]:
    opacity = LABELS_OPACITY / 255 if layer.is_segmentation else 1.0
    state = {"name": layer.name, "visible": is_visible, "opacity": opacity}
    return state if layer.is_segmentation else {**state, "low": limits[0], "high": limits[1]}


def _first_zoom(layer: ShownLayer) -> float:
    """Return the zoom at which the first plane is seen whole, if that takes few tiles."""
    edges = layer.voxel_size_nm or (1.0, 1.0, 1.0)
    longest = max(n * edge / min(edges) for n, edge in zip(layer.box.size, edges, strict=True))
    least = _LEAST_EDGE / max(layer.mags[-1].factors)
    return min(8.0, max(_FIRST_PIXELS / longest, least))
