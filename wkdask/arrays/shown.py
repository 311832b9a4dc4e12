"""Views of one layer as what is shown of it: `show` reads voxels through this."""

from __future__ import annotations

from collections.abc import Sequence

from wkdask.arrays.facts import AnyView, voxel_size_nm
from wkdask.errors import ArgumentError
from wkdask.geometry import BoundingBox
from wkdask.show.shown import ShownLayer, ShownMag

__all__ = ["shown_layer"]


def shown_layer(views: Sequence[AnyView], box: BoundingBox | None = None) -> ShownLayer:
    """Return a layer that is shown.

    Parameters
    ----------
    views
        The same box in mags from fine to coarse. A view whose mag is not known stands alone.
    box
        The box in voxels of mag 1; None is that of the finest view.
    """
    finest = views[0]
    factors = (1, 1, 1) if finest.labels.mag is None else finest.labels.mag.factors
    box = box or finest.bounding_box.scaled_by(factors)
    if box.is_empty:
        raise ArgumentError(f"the view of {finest.volume.path} is empty: there is nothing to show.")
    mags = [
        ShownMag(
            (1, 1, 1) if view.labels.mag is None else view.labels.mag.factors,
            view.bounding_box,
            view.volume.read,
        )
        for view in views
    ]
    nm = voxel_size_nm(finest.labels)
    return ShownLayer(
        finest.labels.name or "voxels",
        finest.labels.category or "color",
        finest.volume.layout.dtype,
        finest.shape[0],
        box,
        mags,
        None if nm is None else (nm[0] / factors[0], nm[1] / factors[1], nm[2] / factors[2]),
    )
