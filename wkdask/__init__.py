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
    "Dataset": "dataset.dataset",
    "Layer": "dataset.dataset",
    "Mag": "geometry",
    "MagView": "dataset.dataset",
    "View": "arrays.view",
    "check": "dataset.check",
    "clear_journals": "runtime.journal",
    "convert": "formats.convert",
    "copy": "dataset.copy",
    "create": "dataset.dataset",
    "downsample": "pyramid.resample",
    "equal": "dataset.compare",
    "journals": "runtime.journal",
    "open": "dataset.dataset",
    "open_mag": "dataset.dataset",
    "upsample": "pyramid.resample",
}

if TYPE_CHECKING:
    from wkdask import errors
    from wkdask.arrays.view import View
    from wkdask.dataset.check import check
    from wkdask.dataset.compare import equal
    from wkdask.dataset.copy import copy
    from wkdask.dataset.dataset import Dataset, Layer, MagView, create, open, open_mag  # noqa: A004
    from wkdask.formats.convert import convert
    from wkdask.geometry import BoundingBox, Mag
    from wkdask.pyramid.resample import downsample, upsample
    from wkdask.runtime.journal import clear_journals, journals


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
