"""An image of any origin into a layer of a dataset: boxes, mags, and one task per file."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

from wkdask.arrays.view import View
from wkdask.dataset.dataset import Dataset, Layer, MagView
from wkdask.dataset.new import new_layer
from wkdask.dataset.properties import LayerProperties, check_new_layer
from wkdask.formats.image import Image, Level
from wkdask.geometry import BoundingBox, Vec3
from wkdask.grids import slices_in
from wkdask.runtime import config, memory
from wkdask.runtime.run import Run
from wkdask.storage.header import check_addressable
from wkdask.storage.opening import new_layout
from wkdask.storage.volume import Layout, Voxels

__all__ = ["Stored", "check", "image_added"]

# What a task reads of a source at a time.
_READ_BYTES = 2**28


@dataclass(frozen=True, slots=True)
class Stored:
    """How a layer that is made is stored."""

    data_format: str = "wkw"
    """`"wkw"` or `"zarr3"`."""
    blocks: int = 32
    """Blocks per edge of a file, a power of two."""


_USUAL = Stored()


def check(image: Image, name: str, run: Run, stored: Stored = _USUAL) -> None:
    """Raise if an image could not be added, before anything is made.

    Raises
    ------
    ArgumentError
        If WKW can't hold the image.
    MemoryLimitError
        If files are too large for the workers.
    """
    finest = image.levels[0]
    header = _layout(finest, stored)
    check_new_layer(_layer(image, name, stored))
    check_addressable(image.box)
    unit = header.file_size if finest.is_computed else _unit_size(header)
    size = list(map(min, unit, finest.box.size))
    files = math.prod(
        -(-length // edge) for length, edge in zip(finest.box.size, header.file_size, strict=True)
    )
    copies = 2 if finest.is_computed else 1
    needed = copies * math.prod(size) * header.voxel_bytes + memory.TASK_BYTES
    memory.check_memory(needed, (size[0], size[1], size[2]), files, run.executor)


@contextlib.contextmanager
def image_added(
    dataset: Dataset,
    image: Image,
    name: str,
    *,
    run: Run,
    resume: bool = False,
    stored: Stored = _USUAL,
) -> Iterator[Layer]:
    """Add a layer with all levels of an image.

    The JSON lists the mags when the block ends without an error. After an error nothing of the
    layer is left, unless the call can be resumed.

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
        Whether to go on with a layer that an earlier run of the same call has left unfinished.
    stored
        How voxels are stored.
    """
    with new_layer(dataset, _layer(image, name, stored), resume=resume) as layer:
        new = [
            layer.directories.new_mag(level.mag, _layout(level, stored), level.box)
            for level in image.levels
        ]
        with layer.directories.made(new, "converted to", resume=resume):
            for each, level in zip(new, image.levels, strict=True):
                _store(layer.open_new(each), level, run, resume)
            yield layer


def _layer(image: Image, name: str, stored: Stored) -> LayerProperties:
    """Return what the JSON says of an image, but for its mags."""
    finest = image.levels[0]
    return LayerProperties(
        name, image.category or "color", image.box, finest.dtype.name, finest.num_channels,
        data_format=stored.data_format, largest_segment_id=image.largest_segment_id,
    )  # fmt: skip


def _layout(level: Level, stored: Stored) -> Layout:
    kind = stored.data_format
    return new_layout(
        kind, level.dtype.name, level.num_channels, 32, stored.blocks,
        config.blocks_of_new(None, kind),
    )  # fmt: skip


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

    volume.fill(box, produce)


def _unit_size(layout: Layout) -> Vec3:
    """Return the size of what is read at a time: a file, or a part of one that is too large.

    The larger, the fewer chunks, strips and tiles of the source are decoded more than once.
    """
    x, y, z = layout.file_size
    while x * y * z * layout.voxel_bytes > _READ_BYTES and x > layout.block_size[0]:
        x, y, z = x // 2, y // 2, z // 2
    return x, y, z
