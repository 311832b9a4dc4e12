"""What is in a dataset or mag directory, as plain values and as text for a terminal."""

from __future__ import annotations

import os
from typing import Any

from wkdask.dataset.dataset import Dataset, Layer, MagView, open_mag
from wkdask.dataset.lookup import find, is_bare_mag
from wkdask.errors import WkdaskError
from wkdask.geometry import Mag, is_remote
from wkdask.show.text import bytes_text, times

__all__ = ["as_text", "describe", "has_errors"]


def describe(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Return what a dataset, or a bare mag directory, holds; ready for JSON."""
    if is_bare_mag(path):
        # At an address, the dataset around it may know the box.
        found = find(path).views().values() if is_remote(os.fspath(path)) else [open_mag(path)]
        [mag] = found
        return {"path": mag.path, "mags": [_describe_mag(mag)]}
    dataset = Dataset(path)
    known = dataset.json.content
    facts: dict[str, Any] = {
        "path": str(dataset.path),
        "name": dataset.name,
        "voxel_size": list(known.voxel_size) if known.voxel_size else None,
        "unit": dataset.unit,
        "layers": [_describe_layer(layer) for layer in dataset.layers.values()],
    }
    errors = [{"name": each.name, "error": each.error} for each in known.all_unreadable()]
    return {**facts, "unreadable": errors} if errors else facts


def as_text(facts: dict[str, Any]) -> str:
    """Return what `describe` returned as lines for a terminal."""
    lines = [facts["path"]]
    if "layers" in facts:
        lines.append(f"  name       {facts['name']}")
        size = facts["voxel_size"]
        text = f"{times(size)} {facts['unit']}" if size else "can't be understood"
        lines.append(f"  voxel size {text}")
        lines += [] if facts["layers"] else ["  no layers"]
    for layer in facts.get("layers", ()):
        lines += _layer_lines(layer)
    lines += [f"{each['name']}: {each['error']}" for each in facts.get("unreadable", ())]
    return "\n".join([*lines, *_mag_lines(facts.get("mags", ()))])


def has_errors(facts: dict[str, Any]) -> bool:
    """Return whether a mag of what `describe` returned can't be opened."""
    if facts.get("unreadable"):
        return True
    return any("error" in mag for layer in facts.get("layers", ()) for mag in layer.get("mags", ()))


def _describe_layer(layer: Layer) -> dict[str, Any]:
    facts = {
        "name": layer.name,
        "category": layer.category,
        "data_format": layer.data_format,
        "dtype": layer.properties.dtype,
        "num_channels": layer.num_channels,
        "bounding_box": _describe_box(layer.bounding_box),
        "largest_segment_id": layer.largest_segment_id,
    }
    if layer.properties.can_be_read:
        facts["mags"] = [_describe_entry(layer, entry.mag) for entry in layer.properties.mags]
    return facts


def _describe_entry(layer: Layer, mag: Mag) -> dict[str, Any]:
    """Describe a mag, or why it can't be opened, so that one does not hide the others."""
    try:
        return _describe_mag(layer[mag])
    except WkdaskError as error:
        return {"mag": str(mag), "error": str(error)}


def _describe_mag(mag: MagView) -> dict[str, Any]:
    layout = mag.volume.layout
    files: dict[str, int | None] = {"files": None, "bytes": None}
    # Web servers don't list files, and object stores a thousand at a time.
    if not is_remote(mag.path):
        sizes_bytes = [size_bytes for _, size_bytes in mag.volume.files()]
        files = {"files": len(sizes_bytes), "bytes": sum(sizes_bytes)}
    return {
        "mag": None if mag.mag is None else str(mag.mag),
        "path": mag.path,
        "dtype": layout.dtype,
        "num_channels": layout.num_channels,
        "bounding_box": _describe_box(mag.bounding_box),
        **layout.describe(),
        **files,
    }


def _describe_box(box: Any) -> dict[str, list[int]]:
    return {"topleft": list(box.topleft), "size": list(box.size)}


def _layer_lines(layer: dict[str, Any]) -> list[str]:
    largest = layer["largest_segment_id"]
    ids = f", largest segment id {largest}" if largest is not None else ""
    lines = [
        f"{layer['name']}: {layer['category']}, {_voxel_type(layer)}{ids}",
        f"  box    {_box(layer['bounding_box'])} in mag 1",
    ]
    if "mags" not in layer:
        return [*lines, f"  stored as {layer['data_format']}, which wkdask does not read"]
    return [*lines, *(_mag_lines(layer["mags"]) or ["  no mags"])]


def _mag_lines(mags: Any) -> list[str]:
    return [f"  mag {mag['mag'] or '?':<8} {_mag_text(mag)}" for mag in mags]


def _mag_text(mag: dict[str, Any]) -> str:
    if "error" in mag:
        return f"can't be opened: {mag['error']}"
    files = "remote"
    if mag["files"] is not None:
        files = f"{mag['files']} files, {bytes_text(mag['bytes'])}"
    return (
        f"{_box(mag['bounding_box'])}, {_voxel_type(mag)}, {mag['block_type']}, "
        f"block edge {mag['block_edge']}, file edge {mag['file_edge']}, {files}"
    )


def _voxel_type(facts: dict[str, Any]) -> str:
    channels = facts["num_channels"]
    return f"{facts['dtype']} x {channels} channels" if channels > 1 else str(facts["dtype"])


def _box(box: dict[str, list[int]]) -> str:
    corner = ", ".join(map(str, box["topleft"]))
    return f"{times(box['size'])} at ({corner})"
