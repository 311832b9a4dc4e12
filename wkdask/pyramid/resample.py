"""Mags made from other mags: which boxes correspond, and which mode is meant.

It knows views, mags and modes. `sampling` makes the voxels of a box; `fill` decides in which order
files are made.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Literal

from wkdask import kernels
from wkdask.arrays.runs import Job, finish, journal_of
from wkdask.arrays.view import View
from wkdask.errors import ArgumentError
from wkdask.geometry import BoundingBox, Vec3
from wkdask.pyramid.fill import Step, fill_volumes
from wkdask.pyramid.sampling import Downsampling, Upsampling
from wkdask.runtime.executors import ExecutorLike
from wkdask.runtime.run import Run, RunReport
from wkdask.storage.volume import sharing

__all__ = ["SAMPLING_BYTES", "Direction", "check_mode", "downsample", "sample_mags", "upsample"]

Direction = Literal["down", "up"]

SAMPLING_BYTES = 2**27
"""What a task takes in memory: a piece of 8 MiB of the target file, what it is made of, and the
tables and blocks of LZ4."""

DEFAULT = "default"
"""The mode that stands for the one that fits a layer's category."""


def downsample(
    source_view: View,
    target_view: View,
    mode: str = DEFAULT,
    executor: ExecutorLike = None,
    *,
    retries: int = 0,
    resume: bool | str = False,
    force: bool = False,
    progress: bool = False,
) -> RunReport:
    """Fill a view of a coarser mag from a view of a finer one, one task per target file.

    Where there are fewer files than workers, a task takes several threads. Target voxels
    whose source block leaves the layer's box in the source mag see its voxels mirrored at the
    border, as in WEBKNOSSOS. Source voxels outside of `source_view` but inside the layer's box are
    read where a target voxel needs them, so that the result does not depend on how a volume is cut
    into views.

    Parameters
    ----------
    source_view
        The finer mag. A `MagView` counts with its bounding box.
    target_view
        The coarser mag: the source's box, aligned outwards to the factors and divided by them.
    mode
        `"median"`, `"mode"`, `"max"`, `"min"`, `"mean"`, `"nearest"`, `"bilinear"`, `"bicubic"`, or
        `"default"`: `"mode"` for a segmentation and `"median"` for all else.
    executor
        A `distributed.Client`, a `concurrent.futures.Executor`, or None for the active client or
        dask's threads.
    retries
        How often a task is tried again after an exception.
    resume
        Whether files that an earlier run of the same job finished are skipped; see
        `View.for_each_chunk`.
    force
        Whether a segmentation may be sampled by a mode that invents ids.
    progress
        Whether to show a bar.

    Returns
    -------
    RunReport
        What was done, skipped and written; its chunks are files.

    Raises
    ------
    ArgumentError
        If the mode is unknown or does not fit, dtype or channels differ, or the boxes do not
        correspond; nothing is written then.
    ReadOnlyError
        If the target is read-only.

    Examples
    --------
    >>> ds = wkdask.create("tissue", voxel_size=(8, 8, 8))
    >>> box = wkdask.BoundingBox((1, 1, 1), (5, 5, 5))
    >>> layer = ds.add_layer("color", "color", "uint8", bounding_box=box)
    >>> fine, coarse = layer.add_mag(1), layer.add_mag(2)
    >>> fine.write(np.full((5, 5, 5), 9, np.uint8), offset=(1, 1, 1))
    >>> wkdask.downsample(layer[1], layer[2]).done
    1
    >>> layer[2].bounding_box
    BoundingBox(topleft=(0, 0, 0), size=(3, 3, 3))
    >>> int(layer[2].to_dask().min().compute())
    9
    """
    views = _two_views(source_view, target_view)
    run = Run(executor, retries=retries, progress=progress, name="downsample")
    return sample_mags(views, mode, "down", run, resume=resume, force=force)


def upsample(
    source_view: View,
    target_view: View,
    mode: str = DEFAULT,
    executor: ExecutorLike = None,
    *,
    retries: int = 0,
    resume: bool | str = False,
    force: bool = False,
    progress: bool = False,
) -> RunReport:
    """Fill a view of a finer mag from a view of a coarser one, one task per target file.

    Parameters
    ----------
    source_view
        The coarser mag. A `MagView` counts with its bounding box.
    target_view
        A part of the finer mag that the source covers.
    mode
        `"nearest"`, which is the `"default"`: each voxel fills its block; or `"bilinear"`: linear
        along each axis, mirrored at the border of the layer.
    executor, retries, resume, force, progress
        See `downsample`.

    Returns
    -------
    RunReport
        What was done, skipped and written; its chunks are files.

    Raises
    ------
    ArgumentError, ReadOnlyError
        As `downsample`.

    Examples
    --------
    >>> ds = wkdask.create("tissue", voxel_size=(8, 8, 8))
    >>> box = wkdask.BoundingBox((0, 0, 0), (4, 4, 4))
    >>> layer = ds.add_layer("cells", "segmentation", "uint32", bounding_box=box)
    >>> coarse, fine = layer.add_mag(2), layer.add_mag(1)
    >>> coarse.write(np.arange(8, dtype=np.uint32).reshape(2, 2, 2))
    >>> wkdask.upsample(layer[2], layer[1]).done
    1
    >>> layer[1].read((0, 0, 0), (4, 1, 1)).ravel()
    array([0, 0, 4, 4], dtype=uint32)
    """
    views = _two_views(source_view, target_view)
    run = Run(executor, retries=retries, progress=progress, name="upsample")
    return sample_mags(views, mode, "up", run, resume=resume, force=force)


def sample_mags(
    views: Sequence[View],
    mode: str,
    direction: Direction,
    run: Run,
    *,
    resume: bool | str = False,
    force: bool = False,
) -> RunReport:
    """Fill views of several mags, each from the one before it, as one run without barriers.

    Parameters
    ----------
    views
        The source, and at least one target.
    mode
        How voxels become one; `"default"` is what fits the category of the source.
    direction
        Whether the mags get coarser.
    run
        Where.
    resume, force
        See `downsample`.
    """
    source, *targets = views
    mode = check_mode(mode, direction, source.category, force=force)
    makings = [_making(*pair, mode, direction) for pair in pairwise(views)]
    steps = [
        Step(target.volume, target.bounding_box, making)
        for target, making in zip(targets, makings, strict=True)
    ]
    factors = [making.factors for making in makings]
    with sharing(*(view.volume for view in views)):
        journals = [
            journal_of(Job(target, None, (direction, mode, factors[: n + 1]), (source,)), resume)
            for n, target in enumerate(targets)
        ]
        run = run.of(journals[0])
        try:
            return fill_volumes(steps, run, journals)
        finally:
            for target in targets:
                finish(target, run)


def check_mode(mode: str, direction: Direction, category: str | None, *, force: bool) -> str:
    """Return the name of a mode that is known and fits a category of layers."""
    modes = kernels.MODES if direction == "down" else kernels.UPSAMPLING_MODES
    is_segmentation = category == "segmentation"
    if mode == DEFAULT:
        median = "mode" if is_segmentation else "median"
        return median if direction == "down" else "nearest"
    if not isinstance(mode, str) or mode not in modes:
        raise ArgumentError(f"mode is {mode!r}, but must be one of {', '.join([DEFAULT, *modes])}.")
    if is_segmentation and not modes[mode].keeps_labels and not force:
        fitting = ", ".join(name for name, each in modes.items() if each.keeps_labels)
        raise ArgumentError(
            f"mode {mode!r} would invent ids that the segmentation does not have. Use {fitting}, "
            "or pass force=True."
        )
    return mode


def _two_views(source: View, target: View) -> list[View]:
    for view in (source, target):
        if not isinstance(view, View):
            raise ArgumentError(f"a view is {view!r}, but must be a View.")
    return [source.bounded(), target.bounded()]


def _making(
    source: View, target: View, mode: str, direction: Direction
) -> Downsampling | Upsampling:
    target.check_writable()
    _check_voxels(source, target)
    if direction == "down":
        factors = _factors(source, target)
        _check_boxes(source.bounding_box, target.bounding_box, factors)
        return Downsampling(source.volume, _layer_box(source), factors, mode)
    factors = _factors(target, source)
    _check_covered(source.bounding_box, target.bounding_box, factors)
    return Upsampling(source.volume, _layer_box(source), factors, mode)


def _layer_box(source: View) -> BoundingBox:
    """Return the box at whose border voxels are mirrored: the layer's, where it is known."""
    if source.layer_box is None or source.layer_box.is_empty:
        return source.bounding_box
    if source.layer_box.intersected_with(source.bounding_box, dont_assert=True).is_empty:
        raise ArgumentError(
            f"the source view covers {source.bounding_box}, outside of its layer's box "
            f"{source.layer_box}: there is nothing to sample."
        )
    return source.layer_box


def _check_voxels(source: View, target: View) -> None:
    ours, theirs = source.volume.layout.voxel_type, target.volume.layout.voxel_type
    if ours != theirs:
        raise ArgumentError(
            f"the source has {ours}, but the target {theirs}. Both must be the same."
        )
    for name, view in (("source", source), ("target", target)):
        if view.bounding_box.is_empty:
            raise ArgumentError(f"the {name} view is empty: there is nothing to sample.")


def _factors(fine: View, coarse: View) -> Vec3:
    """Return fine voxels per coarse voxel, by the mags or else by the sizes of the views."""
    if fine.mag is not None and coarse.mag is not None:
        return coarse.mag.factors_from(fine.mag)
    if any(a % b for a, b in zip(fine.size, coarse.size, strict=True)):
        raise ArgumentError(
            f"the mags of the views are not known, and size {fine.size} is no whole multiple of "
            f"{coarse.size}. Get the views from the mags of a layer."
        )
    x, y, z = (a // b for a, b in zip(fine.size, coarse.size, strict=True))
    return x, y, z


def _check_boxes(source: BoundingBox, target: BoundingBox, factors: Vec3) -> None:
    fitting = source.align_with_mag(factors, ceil=True).in_mag(factors)
    if target != fitting:
        raise ArgumentError(
            f"the target view covers {target}, but what becomes of the source view ({source}) at "
            f"factors {factors} is {fitting}. Get that part of the target: "
            f"get_view({fitting.topleft}, {fitting.size}) from its mag."
        )


def _check_covered(source: BoundingBox, target: BoundingBox, factors: Vec3) -> None:
    covered = source.scaled_by(factors)
    if not covered.contains_bbox(target):
        raise ArgumentError(
            f"the target view covers {target}, but the source view ({source}) at factors {factors} "
            f"only {covered}. Get a part of the target that lies within."
        )
