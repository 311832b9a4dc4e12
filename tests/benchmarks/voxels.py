"""The voxels that benchmarks work on: of a real volume, or else of synthetic tissue."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

import wkdask
from wkdask.testing import Tissue

Voxels = np.ndarray[Any, Any]
DTYPES = {"color": "uint8", "segmentation": "uint32"}


def voxels_of(path: Path | None, name: str, edge: int) -> Voxels:
    """Return `(x, y, z)` of a layer, a real one being tiled by mirrored copies.

    Parameters
    ----------
    path
        A dataset with layers `color` and `segmentation`; None is synthetic tissue.
    name
        Which of the two.
    edge
        Voxels per axis.
    """
    if path is None:
        tissue = Tissue(seed=7)
        make = tissue.grey if name == "color" else tissue.labels
        return make((0, 0, 0), (edge,) * 3)
    mag = wkdask.open(path)[name][1]
    voxels = mag.read(mag.bounding_box.topleft, mag.bounding_box.size)[0].astype(DTYPES[name])
    few = voxels[:edge, :edge, :edge].T  # so that what NumPy makes is in Fortran order at the end
    for axis, length in enumerate(few.shape):
        places = np.pad(np.arange(length), (0, edge - length), mode="symmetric")
        few = few.take(places, axis)
    return few.T
