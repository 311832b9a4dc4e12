"""Lazy dask arrays on WKW volumes, the file format of WEBKNOSSOS.

Names are imported when they are first used, so that `import wkdask` costs next to nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

__all__ = [
    "BoundingBox",
    "Dataset",
    "Layer",
    "Mag",
    "MagView",
    "View",
    "check",
    "clear_journals",
    "convert",
    "copy",
    "create",
    "downsample",
    "equal",
    "errors",
    "journals",
    "open",
    "open_mag",
    "upsample",
]

_HOMES = {
    "BoundingBox": "geometry",
    "Dataset": "dataset",
    "Layer": "dataset",
    "Mag": "geometry",
    "MagView": "dataset",
    "View": "view",
    "check": "checking",
    "clear_journals": "journal",
    "convert": "converting",
    "copy": "copying",
    "create": "dataset",
    "downsample": "pyramid",
    "equal": "comparing",
    "journals": "journal",
    "open": "dataset",
    "open_mag": "dataset",
    "upsample": "pyramid",
}

if TYPE_CHECKING:
    from wkdask import errors
    from wkdask.checking import check
    from wkdask.comparing import equal
    from wkdask.converting import convert
    from wkdask.copying import copy
    from wkdask.dataset import Dataset, Layer, MagView, create, open, open_mag  # noqa: A004
    from wkdask.geometry import BoundingBox, Mag
    from wkdask.journal import clear_journals, journals
    from wkdask.pyramid import downsample, upsample
    from wkdask.view import View


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        value = getattr(import_module(f"wkdask.{_HOMES[name]}"), name)
    elif name == "errors":
        value = import_module("wkdask.errors")
    else:
        raise AttributeError(f"module 'wkdask' has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
