"""Datasets and layers that are made as a whole: after an error nothing of them is left.

What others have put into them by then stays. A process that is killed leaves what is not finished
unlisted, so that the same call with `resume=True` goes on. It must not know how voxels are made.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from wkdask.dataset import properties
from wkdask.dataset.dataset import Dataset, Layer, create
from wkdask.dataset.lookup import is_dataset
from wkdask.dataset.properties import DatasetProperties, LayerProperties
from wkdask.errors import ExistsError
from wkdask.storage.atomic import missing_directories, remove_empty

__all__ = ["new_dataset", "new_layer"]


@contextlib.contextmanager
def new_dataset(
    path: Path, voxel_size: tuple[float, float, float], unit: str, *, keep: bool
) -> Iterator[Dataset]:
    """Create a dataset, or open the one that is there; delete a new one after an error.

    Parameters
    ----------
    path
        Its directory.
    voxel_size, unit
        See `create`.
    keep
        Whether it stays after an error, so that the call can be resumed.
    """
    is_new = not is_dataset(path)
    missing = missing_directories(str(path))
    dataset = create(path, voxel_size, unit, exist_ok=True)
    try:
        yield dataset
    except BaseException:
        if is_new and not keep:
            with contextlib.suppress(OSError), properties.locked(path):
                if not properties.load(path).layers:
                    (path / properties.FILE_NAME).unlink()
            remove_empty(missing)
        raise


@contextlib.contextmanager
def new_layer(dataset: Dataset, new: LayerProperties, *, resume: bool) -> Iterator[Layer]:
    """List a layer without mags, which the block makes; take it from the list after an error.

    Parameters
    ----------
    dataset
        Where to.
    new
        What its JSON says.
    resume
        Whether a layer that an earlier run has left is taken, and stays after an error.

    Raises
    ------
    ExistsError
        If there is such a layer, or with `resume` one with other properties.
    """

    def added(found: DatasetProperties) -> DatasetProperties:
        for layer in found.layers:
            if layer.name == new.name:
                _check_same(dataset, layer, new, resume=resume)
                return found
        if new.name in found.names():
            found.layer(new.name)
        return found.with_layer(replace(new, mags=(), unreadable=()))

    def removed(found: DatasetProperties) -> DatasetProperties:
        layers = (layer for layer in found.layers if layer.name != new.name or layer.mags)
        return replace(found, layers=tuple(layers))

    dataset.json.change(added)
    try:
        yield dataset[new.name]
    except BaseException:
        if not resume:
            with contextlib.suppress(OSError):
                dataset.json.change(removed)
        raise


def _check_same(
    dataset: Dataset, found: LayerProperties, new: LayerProperties, *, resume: bool
) -> None:
    if not resume:
        raise ExistsError(
            f"{dataset.path} has a layer {new.name!r} already: choose another layer_name, or pass "
            "resume=True to go on with a run of the same call that was interrupted."
        )
    facts = [(each.category, each.voxel_type, each.bounding_box) for each in (found, new)]
    if facts[0] != facts[1]:
        raise ExistsError(
            f"{dataset.path} has a layer {new.name!r} of other properties: {facts[0]}, not "
            f"{facts[1]}. Choose another layer_name."
        )
