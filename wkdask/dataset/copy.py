"""Copies of datasets, layers and boxes, with all that their JSON says.

It knows datasets and views. What is listed in the copy's JSON is whole: a mag is listed when its
last file is there.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

from wkdask.arrays.runs import Job, journal_of
from wkdask.arrays.view import View
from wkdask.dataset.dataset import Dataset, Layer, MagView, create
from wkdask.dataset.lookup import is_dataset
from wkdask.errors import ArgumentError, ExistsError
from wkdask.geometry import Mag, Vec3
from wkdask.pyramid import rewrite
from wkdask.runtime.executors import ExecutorLike
from wkdask.runtime.run import Run, RunReport
from wkdask.storage.header import BlockType, VolumeHeader
from wkdask.storage.wkw import as_wkw

__all__ = ["copy"]


def copy(
    source: Dataset | Layer | View,
    target: str | os.PathLike[str] | Dataset | View,
    *,
    layer_name: str | None = None,
    block_type: BlockType | None = None,
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
        `"raw"`, `"lz4"` or `"lz4hc"` for the files of new mags; None keeps that of each.
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
    run = Run(executor, retries=retries, progress=progress)
    if isinstance(source, Dataset) and isinstance(target, str | os.PathLike) and not layer_name:
        return _copy_dataset(source, Path(target), block_type, run, resume)
    if isinstance(source, Layer) and isinstance(target, Dataset):
        return _copy_layer(source, target, layer_name or source.name, block_type, run, resume)
    is_plain = layer_name is None and block_type is None
    if isinstance(source, View) and isinstance(target, View) and is_plain:
        return _copy_view(source.bounded(), target.bounded(), run, resume)
    raise ArgumentError(
        f"{source!r} can't be copied to {target!r} so. Copy a dataset to a path, a layer to a "
        "dataset (layer_name renames it), or a view to a view of the same size."
    )


def _copy_dataset(
    source: Dataset, path: Path, block_type: BlockType | None, run: Run, resume: bool
) -> RunReport:
    for layer in source.layers.values():
        _headers(layer, block_type)
    if is_dataset(path) and not resume:
        raise ExistsError(f"{path} is a dataset already: choose another path, or resume=True.")
    target = create(path, source.voxel_size, source.unit, exist_ok=resume)
    said = source.json.content
    target.json.change(lambda found: replace(found, extra=said.extra, team=said.team))
    return _total(
        _copy_layer(layer, target, name, block_type, run, resume)
        for name, layer in source.layers.items()
    )


def _copy_layer(
    source: Layer, target: Dataset, name: str, block_type: BlockType | None, run: Run, resume: bool
) -> RunReport:
    headers = _headers(source, block_type)
    if target.voxel_size != source.dataset.voxel_size or target.unit != source.dataset.unit:
        raise ArgumentError(
            f"the voxels of {source!r} are {source.dataset.voxel_size} {source.dataset.unit}, but "
            f"those of {target!r} {target.voxel_size} {target.unit}."
        )
    target.json.refresh()
    if name not in target.layers:
        new = replace(source.properties, name=name, mags=())
        target.json.change(lambda found: found.with_layer(new))
    elif not resume:
        raise ExistsError(
            f"{target.path} has a layer {name!r} already: pass layer_name, or resume=True."
        )
    layer = target[name]
    return _total(
        _copy_mag(source[mag], layer, header, run, resume)
        for mag, header in headers.items()
        if mag not in layer.directories.listed
    )


def _headers(layer: Layer, block_type: BlockType | None) -> dict[Mag, VolumeHeader]:
    """Return how the mags of a copy are stored; raise if one can't be opened."""
    layer.directories.check_format()
    headers = {mag: as_wkw(view.volume).header for mag, view in layer.mags.items()}
    if block_type is None:
        return headers
    return {mag: replace(header, block_type=block_type) for mag, header in headers.items()}


def _copy_mag(
    view: MagView, target: Layer, header: VolumeHeader, run: Run, resume: bool
) -> RunReport:
    assert view.mag is not None
    directories = target.directories
    entry = directories.new_entry(view.mag, header)
    directories.prepare(entry, header, resume=resume)
    copied = target.open_entry(entry)
    # All files, because voxels may lie outside of the layer's box.
    box = view.volume.box_on_disk()
    report = RunReport(0)
    if not box.is_empty:
        journal = journal_of(Job(copied, None, ("copy",), (view,)), resume)
        report = rewrite.copy_voxels(view.volume, copied.volume, box, run, journal=journal)
    directories.list_mags([entry])
    return report


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
    if source.path == target.path:
        common = source.bounding_box.intersected_with(target.bounding_box, dont_assert=True)
        if not common.is_empty:
            raise ArgumentError(f"the views overlap in {common}: read and write it by yourself.")
    journal = journal_of(Job(target, None, ("copy", shift), (source,)), resume)
    try:
        return rewrite.copy_voxels(
            source.volume, target.volume, target.bounding_box, run,
            shift=shift, journal=journal, exclusive=False,
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
