"""What is told of datasets and layers when they are shown, from the JSON and mag by mag.

What can't be understood or opened is told too, so that one part does not hide the others.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from wkdask.arrays.facts import MOST_FILES, mag_facts, voxel_size_nm
from wkdask.arrays.labelled import Labels
from wkdask.arrays.view import View
from wkdask.dataset.properties import DatasetProperties, LayerProperties, MagProperties
from wkdask.errors import WkdaskError
from wkdask.geometry import Mag
from wkdask.show.facts import LayerFacts, MagFacts

__all__ = ["layer_facts", "layers_facts", "mags_facts", "size_told"]

Open = Callable[[MagProperties], View]


def size_told(dataset: DatasetProperties) -> tuple[str, ...]:
    """Return the voxel size and its unit as texts; nothing if the JSON has none."""
    if dataset.voxel_size is None:
        return ()
    return (" x ".join(f"{edge:g}" for edge in dataset.voxel_size), dataset.unit)


def layers_facts(dataset: DatasetProperties) -> list[LayerFacts]:
    """Return what is told of each layer, those that can't be understood included."""
    known = [layer_facts(layer, dataset) for layer in dataset.layers]
    return known + [LayerFacts(each.name, error=each.error) for each in dataset.unreadable]


def layer_facts(layer: LayerProperties, dataset: DatasetProperties) -> LayerFacts:
    """Return what is told of a layer."""
    labels = Labels(Mag(1), voxel_size=dataset.voxel_size, unit=dataset.unit)
    return LayerFacts(
        name=layer.name,
        category=layer.category,
        dtype=layer.dtype,
        num_channels=layer.num_channels,
        size=layer.bounding_box.size,
        corner=layer.bounding_box.topleft,
        voxel_size_nm=voxel_size_nm(labels),
        mag_names=[str(entry.mag) for entry in layer.mags],
        unread_format="" if layer.can_be_read else layer.data_format,
        largest_segment_id=layer.largest_segment_id,
    )


def mags_facts(layer: LayerProperties, open_mag: Open, *, with_files: bool) -> list[MagFacts]:
    """Return what is told of each mag of a layer; `with_files` looks which files exist."""
    if not layer.can_be_read:
        return []
    most = MOST_FILES // max(1, len(layer.mags)) if with_files else 0
    return [*_opened(layer.mags, open_mag, most)] + [
        MagFacts(each.name, error=each.error) for each in layer.unreadable
    ]


def _opened(entries: Sequence[MagProperties], open_mag: Open, most: int) -> Iterator[MagFacts]:
    for entry in entries:
        try:
            yield mag_facts(open_mag(entry), most)
        except WkdaskError as error:
            yield MagFacts(str(entry.mag), error=str(error))
