"""Copies of datasets, layers and boxes, with all that their JSON says.

It knows datasets and views. The JSON of a copy lists its mags when all of them are whole; after an
error nothing of the copy is left, unless it can be resumed.
"""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeAlias

from wkdask.arrays.runs import Job, journal_of
from wkdask.arrays.view import View
from wkdask.dataset.dataset import DataFormat, Dataset, Layer
from wkdask.dataset.lookup import is_dataset
from wkdask.dataset.new import new_dataset, new_layer
from wkdask.dataset.properties import check_data_format
from wkdask.errors import ArgumentError, ExistsError, RemoteError
from wkdask.geometry import BoundingBox, Mag, Vec3, absolute
from wkdask.pyramid import rewrite
from wkdask.runtime import config
from wkdask.runtime.executors import ExecutorLike
from wkdask.runtime.run import Run, RunReport
from wkdask.storage.header import BlockType
from wkdask.storage.opening import new_layout
from wkdask.storage.volume import Layout, sharing
from wkdask.storage.zarr_layout import Codec

__all__ = ["copy"]

Layouts: TypeAlias = Mapping[Mag, Layout]
"""How the mags of a copy are stored."""


@dataclass(frozen=True, slots=True)
class _Stored:
    """How a copy is stored, where it differs from its source."""

    blocks: str | None
    data_format: str | None


def copy(
    source: Dataset | Layer | View,
    target: str | os.PathLike[str] | Dataset | View,
    *,
    layer_name: str | None = None,
    block_type: BlockType | Codec | None = None,
    data_format: DataFormat | None = None,
    executor: ExecutorLike = None,
    retries: int = 0,
    resume: bool = False,
    progress: bool = False,
) -> RunReport:
    """Copy voxels, and what the JSON says of them.

    Parameters
    ----------
    source
        A dataset, a layer with all its mags, or a view.
    target
        For a dataset the directory of a new one; for a layer the dataset that gets it; for a view
        another view of the same size, dtype and channels, wherever it lies.
    layer_name
        The name of a copied layer; None keeps it.
    block_type
        `"raw"`, `"lz4"` or `"lz4hc"` for the files of new mags, or `"raw"` or `"zstd"` of Zarr
        layers; None keeps that of each, or takes the usual one of another format.
    data_format
        `"wkw"`, `"zarr3"` or `"zarr"` for new layers; None keeps that of each.
    executor
        A `distributed.Client`, a `concurrent.futures.Executor`, or None for the active client or
        dask's threads.
    retries
        How often a task is tried again after an exception.
    resume
        Whether to go on with what an earlier run with `resume=True` has left.
    progress
        Whether to show a bar.

    Returns
    -------
    RunReport
        What was done; its chunks are files.

    Raises
    ------
    ArgumentError
        If the two do not fit each other.
    ExistsError
        If the dataset or layer is there already.

    Examples
    --------
    >>> ds = wkdask.create("tissue", voxel_size=(8, 8, 8))
    >>> box = wkdask.BoundingBox((0, 0, 0), (64, 64, 64))
    >>> mag = ds.add_layer("color", "color", "uint8", bounding_box=box).add_mag(1)
    >>> mag.write(np.full((64, 64, 64), 7, np.uint8))
    >>> wkdask.copy(ds, "backup").done
    1
    >>> bool(wkdask.equal(ds, wkdask.open("backup")))
    True
    """
    run = Run(executor, retries=retries, progress=progress, name="copy")
    if data_format is not None:
        check_data_format(data_format)
    stored = _Stored(block_type, data_format)
    if isinstance(source, Dataset) and isinstance(target, str | os.PathLike) and not layer_name:
        return _copy_dataset(source, Path(absolute(target)), stored, run, resume)
    if isinstance(source, Layer) and isinstance(target, Dataset):
        return _copy_layer(source, target, layer_name or source.name, stored, run, resume)
    is_plain = layer_name is None and stored == _Stored(None, None)
    if isinstance(source, View) and isinstance(target, View) and is_plain:
        return _copy_view(source.bounded(), target.bounded(), run, resume)
    raise ArgumentError(
        f"a {_kind(source)} can't be copied to a {_kind(target)} so. Copy a dataset to a path, a "
        "layer to a dataset (layer_name renames it), or a view to a view of the same size."
    )


def _kind(value: object) -> str:
    return type(value).__name__


def _copy_dataset(
    source: Dataset, path: Path, stored: _Stored, run: Run, resume: bool
) -> RunReport:
    source.json.content.check_readable()
    layouts = {name: _layouts(layer, stored) for name, layer in source.layers.items()}
    if is_dataset(path) and not resume:
        raise ExistsError(
            f"{path} is a dataset already: choose another path, or pass resume=True to go on with "
            "a copy that was interrupted."
        )
    with contextlib.ExitStack() as stack:
        target = stack.enter_context(new_dataset(path, source.voxel_size, source.unit, keep=resume))
        said = source.json.content
        target.json.change(lambda found: replace(found, extra=said.extra, team=said.team))
        return _total(
            stack.enter_context(_copied(source[name], target, name, mags, run, resume))
            for name, mags in layouts.items()
        )


def _copy_layer(
    source: Layer, target: Dataset, name: str, stored: _Stored, run: Run, resume: bool
) -> RunReport:
    if target.voxel_size != source.dataset.voxel_size or target.unit != source.dataset.unit:
        raise ArgumentError(
            f"the voxels of layer {source.name!r} are {source.dataset.voxel_size} "
            f"{source.dataset.unit}, but those of {target.path} {target.voxel_size} {target.unit}."
        )
    with _copied(source, target, name, _layouts(source, stored), run, resume) as report:
        return report


@contextlib.contextmanager
def _copied(
    source: Layer, target: Dataset, name: str, layouts: Layouts, run: Run, resume: bool
) -> Iterator[RunReport]:
    """Copy a layer; its mags are listed when the block ends without an error."""
    said = replace(source.properties, name=name)
    for layout in layouts.values():
        said = replace(said, data_format=layout.data_format)
    with new_layer(target, said, resume=resume) as layer:
        directories = layer.directories
        views = [source[mag] for mag in layouts if mag not in directories.listed]
        new = [
            directories.new_mag(mag, layouts[mag], _box_of(view))
            for view in views
            if (mag := view.mag) is not None
        ]
        with (
            sharing(*(view.volume for view in views)),
            directories.made(new, "copied to", resume=resume),
        ):
            yield _total(
                _copy_mag(view, layer.open_new(each), each.box, run, resume)
                for view, each in zip(views, new, strict=True)
            )


def _box_of(view: View) -> BoundingBox:
    """Return what is copied of a mag: all files, because voxels may lie outside of its box."""
    try:
        return view.volume.box_on_disk()
    except RemoteError as error:
        if error.errno != errno.ENOTSUP:
            raise
        # Of a web server, which can't list files.
        return view.bounding_box


def _layouts(layer: Layer, stored: _Stored) -> Layouts:
    """Return how the mags of a copy are stored; raise if one can't be opened."""
    layer.directories.check_format()
    layer.properties.check_readable()
    return {mag: _layout(view.volume.layout, stored) for mag, view in layer.mags.items()}


def _layout(of_source: Layout, stored: _Stored) -> Layout:
    kind = stored.data_format or of_source.data_format
    if kind == of_source.data_format:
        return of_source.stored_as(stored.blocks)
    block, file = of_source.block_size[0], of_source.file_size[0]
    blocks = file // block
    if blocks == 1 or set(map(len, map(set, (of_source.block_size, of_source.file_size)))) != {1}:
        # Of files of one block, or that are no cubes, the usual edges.
        block, blocks = 32, 32
    return new_layout(
        kind, *of_source.voxel_type, block, blocks, config.blocks_of_new(stored.blocks, kind)
    )


def _copy_mag(source: View, target: View, box: BoundingBox, run: Run, resume: bool) -> RunReport:
    if box.is_empty:
        return RunReport(0)
    journal = journal_of(Job(target, None, ("copy",), (source,)), resume)
    return rewrite.copy_voxels(source.volume, target.volume, box, run, journal=journal)


def _copy_view(source: View, target: View, run: Run, resume: bool) -> RunReport:
    target.check_writable()
    what = [(view.size, *view.volume.layout.voxel_type) for view in (source, target)]
    if what[0] != what[1] or 0 in source.size:
        raise ArgumentError(
            f"the source has size, dtype and channels {what[0]}, but the target {what[1]}. Both "
            "must be the same, and not empty."
        )
    starts = zip(source.bounding_box.topleft, target.bounding_box.topleft, strict=True)
    x, y, z = (a - b for a, b in starts)
    shift: Vec3 = (x, y, z)
    if source.volume.identity == target.volume.identity:
        common = source.bounding_box.intersected_with(target.bounding_box, dont_assert=True)
        if not common.is_empty:
            raise ArgumentError(f"the views overlap in {common}: read and write it by yourself.")
    journal = journal_of(Job(target, None, ("copy", shift), (source,)), resume)
    with sharing(source.volume, target.volume):
        try:
            return rewrite.copy_voxels(
                source.volume, target.volume, target.bounding_box, run,
                shift=shift, journal=journal,
            )  # fmt: skip
        finally:
            target.volume.note_change()


def _total(reports: Iterable[RunReport]) -> RunReport:
    """Return one report of runs that followed each other."""
    total = RunReport(0)
    for report in reports:
        total = RunReport(
            chunks=total.chunks + report.chunks,
            done=total.done + report.done,
            skipped=total.skipped + report.skipped,
            voxels=total.voxels + report.voxels,
            size_bytes=total.size_bytes + report.size_bytes,
            seconds=total.seconds + report.seconds,
        )
    return total
