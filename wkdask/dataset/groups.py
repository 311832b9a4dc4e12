"""The zarr groups around the mags of a Zarr layer, with what OME-Zarr says of them.

A zarr reader finds the mags by them, and their voxel sizes. They are what `webknossos` 4.3.3
writes: `multiscales` of OME-Zarr 0.5 in `zarr.json`, or of 0.4 in `.zattrs`.
"""

from __future__ import annotations

import json
import os
from typing import Any

from wkdask.dataset.properties import DatasetProperties, LayerProperties, PropertiesFile

__all__ = ["describe"]

_MOST_BYTES = 2**24


def describe(properties: PropertiesFile, name: str) -> None:
    """Let the groups of a dataset and of a layer say what the JSON says; WKW has none."""
    content = properties.content
    layer = content.layer(name)
    if layer.data_format == "wkw":
        return
    root, place = str(properties.directory), properties.place
    home = os.path.join(root, name)
    if layer.data_format == "zarr3":
        place.create(os.path.join(root, "zarr.json"), _to_bytes(_GROUP_3))
        ome = {"version": "0.5", "multiscales": [_multiscale(content, layer)]}

        def told(data: bytes | None) -> bytes:
            said = {**_GROUP_3, **_understood(data)}
            said["attributes"] = {**said.get("attributes", {}), "ome": ome}
            return _to_bytes(said)

        place.change(os.path.join(home, "zarr.json"), told)
        return
    for directory in (root, home):
        place.create(os.path.join(directory, ".zgroup"), _to_bytes(_GROUP_2))
    scales = [{"version": "0.4", **_multiscale(content, layer)}]
    place.change(
        os.path.join(home, ".zattrs"),
        lambda data: _to_bytes({**_understood(data), "multiscales": scales}),
    )


_GROUP_3: dict[str, Any] = {"zarr_format": 3, "node_type": "group"}
_GROUP_2: dict[str, Any] = {"zarr_format": 2}


def _multiscale(content: DatasetProperties, layer: LayerProperties) -> dict[str, Any]:
    size = content.voxel_size or (1.0, 1.0, 1.0)
    space = [{"name": name, "type": "space", "unit": content.unit} for name in "xyz"]
    mags = [
        {
            "path": os.path.basename(entry.path or str(entry.mag)),
            "coordinateTransformations": [
                {
                    "type": "scale",
                    "scale": [1.0, *(a * b for a, b in zip(size, entry.mag, strict=True))],
                }
            ],
        }
        for entry in layer.mags
    ]
    return {"axes": [{"name": "c", "type": "channel"}, *space], "datasets": mags}


def _understood(data: bytes | None) -> dict[str, Any]:
    """Return what a group says of itself; nothing, if there is none that can be read."""
    try:
        said = json.loads(data or b"")
    except (ValueError, RecursionError):
        return {}
    return said if isinstance(said, dict) else {}


def _to_bytes(said: dict[str, Any]) -> bytes:
    return json.dumps(said, indent=4).encode()
