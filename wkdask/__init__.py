"""Lazy dask arrays on WKW volumes, the file format of WEBKNOSSOS.

Names are imported when they are first used, so that `import wkdask` costs next to nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

__all__ = [
    "BoundingBox",
    "CheckReport",
    "ChunkFailure",
    "Comparison",
    "Dataset",
    "Difference",
    "Finding",
    "Image",
    "JournalInfo",
    "Layer",
    "Level",
    "Mag",
    "MagView",
    "PlannedMag",
    "PyramidPlan",
    "RunReport",
    "View",
    "Volume",
    "VolumeHeader",
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
    "CheckReport": "dataset.check",
    "ChunkFailure": "runtime.run",
    "Comparison": "dataset.compare",
    "Dataset": "dataset.dataset",
    "Difference": "dataset.compare",
    "Finding": "dataset.check",
    "Image": "formats.image",
    "JournalInfo": "runtime.journals",
    "Layer": "dataset.dataset",
    "Level": "formats.image",
    "Mag": "geometry",
    "MagView": "dataset.dataset",
    "PlannedMag": "pyramid.plan",
    "PyramidPlan": "pyramid.plan",
    "RunReport": "runtime.run",
    "View": "arrays.view",
    "Volume": "storage.volume",
    "VolumeHeader": "storage.header",
    "check": "dataset.check",
    "clear_journals": "runtime.journals",
    "convert": "formats.convert",
    "copy": "dataset.copy",
    "create": "dataset.dataset",
    "downsample": "pyramid.resample",
    "equal": "dataset.compare",
    "journals": "runtime.journals",
    "open": "dataset.dataset",
    "open_mag": "dataset.dataset",
    "upsample": "pyramid.resample",
}

if TYPE_CHECKING:
    from wkdask import errors
    from wkdask.arrays.view import View
    from wkdask.dataset.check import CheckReport, Finding, check
    from wkdask.dataset.compare import Comparison, Difference, equal
    from wkdask.dataset.copy import copy
    from wkdask.dataset.dataset import Dataset, Layer, MagView, create, open, open_mag  # noqa: A004
    from wkdask.formats.convert import convert
    from wkdask.formats.image import Image, Level
    from wkdask.geometry import BoundingBox, Mag
    from wkdask.pyramid.plan import PlannedMag, PyramidPlan
    from wkdask.pyramid.resample import downsample, upsample
    from wkdask.runtime.journals import JournalInfo, clear_journals, journals
    from wkdask.runtime.run import ChunkFailure, RunReport
    from wkdask.storage.header import VolumeHeader
    from wkdask.storage.volume import Volume


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
