"""The zarr groups around the mags of a Zarr layer, with what OME-Zarr says of them.

A zarr reader finds the mags by them, and their voxel sizes. They are what `webknossos` 4.3.3
writes: `multiscales` of OME-Zarr 0.5 in `zarr.json`, or of 0.4 in `.zattrs`.
"""

from __future__ import annotations

import json
import os
from typing import Any

from wkdask.dataset.properties import DatasetProperties, LayerProperties, PropertiesFile
from wkdask.errors import FormatError, storage_error
from wkdask.storage import atomic

__all__ = ["describe"]

_MOST_BYTES = 2**24


def describe(properties: PropertiesFile, name: str) -> None:
    """Let the groups of a dataset and of a layer say what the JSON says; WKW has none."""
    content = properties.content
    layer = content.layer(name)
    if layer.data_format == "wkw":
        return
    root = str(properties.directory)
    home = os.path.join(root, name)
    try:
        if layer.data_format == "zarr3":
            _add(os.path.join(root, "zarr.json"), _GROUP_3)
            said = {**_GROUP_3, **_read(os.path.join(home, "zarr.json"))}
            ome = {"version": "0.5", "multiscales": [_multiscale(content, layer)]}
            said["attributes"] = {**said.get("attributes", {}), "ome": ome}
            _write(os.path.join(home, "zarr.json"), said)
        else:
            for directory in (root, home):
                _add(os.path.join(directory, ".zgroup"), _GROUP_2)
            said = _read(os.path.join(home, ".zattrs"))
            said["multiscales"] = [{"version": "0.4", **_multiscale(content, layer)}]
            _write(os.path.join(home, ".zattrs"), said)
    except OSError as error:
        raise storage_error(error, home, "describing the Zarr layer") from None


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


def _read(path: str) -> dict[str, Any]:
    """Return what a group says of itself; nothing, if there is none that can be read."""
    try:
        said = json.loads(atomic.read_file(path, _MOST_BYTES))
    except (FileNotFoundError, ValueError, RecursionError, FormatError):
        return {}
    return said if isinstance(said, dict) else {}


def _add(path: str, said: dict[str, Any]) -> None:
    if not os.path.lexists(path):
        _write(path, said)


def _write(path: str, said: dict[str, Any]) -> None:
    with atomic.replacing(path) as descriptor:
        atomic.write_all(descriptor, json.dumps(said, indent=4).encode(), 0)
