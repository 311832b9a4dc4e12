"""An image of any origin into a layer of a dataset: boxes, mags, and one task per file."""

from __future__ import annotations

import math
from functools import partial
from typing import Any, SupportsIndex

from wkdask.arrays.view import View
from wkdask.dataset.dataset import Dataset, Layer, MagView
from wkdask.dataset.properties import LayerProperties, check_new_layer
from wkdask.errors import ExistsError
from wkdask.formats.image import Image, Level
from wkdask.geometry import BoundingBox, Mag, Vec3, whole
from wkdask.grids import slices_in
from wkdask.runtime import memory
from wkdask.runtime.run import Run
from wkdask.storage.header import VolumeHeader, check_addressable
from wkdask.storage.volume import Layout, Voxels

__all__ = ["add_image", "check"]

# What a task reads of a source at a time.
_READ_BYTES = 2**28


def check(image: Image, name: str, run: Run, blocks_per_file_edge: SupportsIndex = 32) -> None:
    """Raise if `add_image` could not add an image, before anything is made.

    Raises
    ------
    ArgumentError
        If WKW can't hold the image.
    MemoryLimitError
        If files are too large for the workers.
    """
    finest = image.levels[0]
    dtype, category = finest.dtype.name, image.category or "color"
    header = VolumeHeader(
        dtype, finest.num_channels, blocks_per_file_edge=whole(blocks_per_file_edge, "blocks")
    )
    layer = LayerProperties(
        name, category, image.box, dtype, finest.num_channels,
        largest_segment_id=image.largest_segment_id,
    )  # fmt: skip
    check_new_layer(layer)
    check_addressable(image.box)
    unit = header.file_size if finest.is_computed else _unit_size(header)
    size = list(map(min, unit, finest.box.size))
    files = math.prod(
        -(-length // edge) for length, edge in zip(finest.box.size, header.file_size, strict=True)
    )
    copies = 2 if finest.is_computed else 1
    needed = copies * math.prod(size) * header.voxel_bytes + memory.TASK_BYTES
    memory.check_memory(needed, (size[0], size[1], size[2]), files, run.executor)


def add_image(
    dataset: Dataset,
    image: Image,
    name: str,
    *,
    run: Run,
    resume: bool = False,
    blocks_per_file_edge: SupportsIndex = 32,
) -> Layer:
    """Add a layer with all levels of an image.

    The JSON lists the layer and its mags before there are voxels, so that a crash leaves a dataset
    that opens; what was not written yet reads as zeros.

    Parameters
    ----------
    dataset
        Where to; its voxel size is not compared with that of the image.
    image
        What.
    name
        The layer's name.
    run
        Where, how often tasks are tried again, and whether to show bars.
    resume
        Whether a layer of this name is one that an earlier run of the same call left unfinished.
    blocks_per_file_edge
        Blocks per edge of a file, a power of two.
    """
    layer = _layer_for(dataset, image, name, resume)
    mags = [_mag_for(layer, level.mag, blocks_per_file_edge, resume) for level in image.levels]
    for mag, level in zip(mags, image.levels, strict=True):
        _store(mag, level, run, resume)
    return layer


def _layer_for(dataset: Dataset, image: Image, name: str, resume: bool) -> Layer:
    finest = image.levels[0]
    category = image.category or "color"
    facts = (category, finest.dtype, finest.num_channels, image.box)
    if not resume or name not in dataset.layers:
        return dataset.add_layer(name, *facts, largest_segment_id=image.largest_segment_id)
    layer = dataset[name]
    found = (layer.category, layer.dtype, layer.num_channels, layer.bounding_box)
    if found != facts:
        raise ExistsError(
            f"{dataset.path} has a layer {name!r} of other properties: {found}, not {facts}. "
            "Choose another name."
        )
    return layer


def _mag_for(layer: Layer, mag: Mag, blocks_per_file_edge: SupportsIndex, resume: bool) -> MagView:
    if resume and any(entry.mag == mag for entry in layer.properties.mags):
        return layer[mag]
    return layer.add_mag(mag, blocks_per_file_edge=blocks_per_file_edge)


def _store(mag: MagView, level: Level, run: Run, resume: bool) -> None:
    view = mag.get_view(level.corner, level.box.size)
    options: dict[str, Any] = {
        "executor": run.executor,
        "retries": run.retries,
        "resume": resume,
        "check_memory": False,
        "progress": run.progress,
    }
    if level.is_computed:
        view.store(level.cut(mag.volume.layout.file_size), **options)
    else:
        view.for_each_chunk(partial(_fill_chunk, level), **options)


def _fill_chunk(level: Level, chunk: tuple[View, int]) -> None:
    """Write a file from a level, of which large parts are read at a time."""
    view, _ = chunk
    volume, box = view.volume, view.bounding_box
    size = _unit_size(volume.layout)
    unit = BoundingBox((0, 0, 0), (0, 0, 0))
    voxels: Any = None

    def produce(piece: BoundingBox) -> Voxels:
        nonlocal unit, voxels
        if not unit.contains_bbox(piece):
            # Before the next, because both would not fit.
            voxels = None
            corner = [at // edge * edge for at, edge in zip(piece.topleft, size, strict=True)]
            unit = BoundingBox(corner, size).intersected_with(box)
            voxels = level.read(unit)
        part: Voxels = voxels[(slice(None), *slices_in(piece, unit.topleft))]
        return part

    volume.fill(box, produce, exclusive=True)


def _unit_size(layout: Layout) -> Vec3:
    """Return the size of what is read at a time: a file, or a part of one that is too large.

    The larger, the fewer chunks, strips and tiles of the source are decoded more than once.
    """
    x, y, z = layout.file_size
    while x * y * z * layout.voxel_bytes > _READ_BYTES and x > layout.block_size[0]:
        x, y, z = x // 2, y // 2, z // 2
    return x, y, z
