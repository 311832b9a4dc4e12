"""A pyramid of a layer from beginning to end: chosen, planned, made, and listed when it is whole.

It sees a layer through two protocols. It must not know the JSON, or how files are made.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, Protocol, TypeVar

from wkdask.arrays.view import View
from wkdask.errors import NothingToDoError
from wkdask.geometry import BoundingBox, Mag, MagLike
from wkdask.pyramid import mags as chains
from wkdask.pyramid.mags import SamplingMode
from wkdask.pyramid.plan import PyramidPlan, plan_pyramid
from wkdask.pyramid.resample import SAMPLING_BYTES, Direction, check_mode, sample_mags
from wkdask.runtime.run import Run, RunReport
from wkdask.storage.volume import Layout

__all__ = ["Coarser", "DatasetLike", "Directories", "Finer", "How", "LayerLike", "build"]

Entry = TypeVar("Entry")


class Directories(Protocol[Entry]):
    """The mag directories of a layer; an entry stands for one that is made."""

    @property
    def listed(self) -> list[Mag]:
        """The mags that there are, from fine to coarse."""

    @property
    def listed_anywhere(self) -> list[Mag]:
        """The mags of all layers of the dataset."""

    def check_new(self, mags: Iterable[Mag], *, resume: bool) -> None:
        """Raise `ExistsError` if one is there already."""

    def new_mag(self, mag: Mag, layout: Layout, box: BoundingBox) -> Entry:
        """Return what stands for a new mag."""

    def made(
        self, new: Sequence[Entry], doing: str, *, resume: bool
    ) -> contextlib.AbstractContextManager[None]:
        """Make their directories; list them at the end, or delete them after an error."""


class DatasetLike(Protocol):
    """What a pyramid asks of the dataset around a layer; see `Dataset`."""

    @property
    def voxel_size(self) -> tuple[float, float, float]:
        """Edges of a voxel of mag 1."""

    @property
    def unit(self) -> str:
        """The unit of `voxel_size`."""


class LayerLike(Protocol[Entry]):
    """What a pyramid asks of a layer; see `Layer`."""

    @property
    def name(self) -> str:
        """The name, for messages."""

    @property
    def category(self) -> str:
        """What the voxels are, which decides the mode."""

    @property
    def bounding_box(self) -> BoundingBox:
        """Where there are data, in voxels of mag 1."""

    @property
    def dataset(self) -> DatasetLike:
        """The dataset around it."""

    @property
    def directories(self) -> Directories[Entry]:
        """Its mag directories."""

    def __getitem__(self, mag: MagLike) -> View:
        """Return the view of a mag that is listed."""

    def open_new(self, new: Entry) -> View:
        """Return the view of a mag that is not listed yet."""


@dataclass(frozen=True, slots=True)
class Coarser:
    """Which coarser mags are made; see `Layer.downsample`."""

    from_mag: MagLike | None
    coarsest_mag: MagLike | None
    mags: Iterable[MagLike] | None
    sampling_mode: SamplingMode
    direction: ClassVar[Direction] = "down"

    def start(self, listed: Sequence[Mag]) -> Mag:
        """Return the mag to begin with, if none was named."""
        return max(listed)

    def chosen(
        self, start: Mag, box: BoundingBox, voxel_size: Sequence[float], others: Sequence[Mag]
    ) -> list[Mag]:
        """Return the mags to make, each from the one before it."""
        if self.mags is not None:
            return chains.given_mags(start, self.mags, coarser=True)
        mode = "constant_z" if box.size[2] == 1 else self.sampling_mode
        if self.coarsest_mag is None:
            coarsest = chains.default_coarsest(box, mode, start)
        else:
            coarsest = Mag(self.coarsest_mag)
        return chains.coarser_mags(start, coarsest, voxel_size, mode, others)


@dataclass(frozen=True, slots=True)
class Finer:
    """Which finer mags are made; see `Layer.upsample`."""

    from_mag: MagLike | None
    finest_mag: MagLike
    mags: Iterable[MagLike] | None
    sampling_mode: SamplingMode
    direction: ClassVar[Direction] = "up"

    def start(self, listed: Sequence[Mag]) -> Mag:
        """Return the mag to begin with, if none was named."""
        return min(listed)

    def chosen(
        self, start: Mag, box: BoundingBox, voxel_size: Sequence[float], others: Sequence[Mag]
    ) -> list[Mag]:
        """Return the mags to make, each from the one before it."""
        if self.mags is not None:
            return chains.given_mags(start, self.mags, coarser=False)
        finest = Mag(self.finest_mag)
        return chains.finer_mags(start, finest, voxel_size, self.sampling_mode)


@dataclass(frozen=True, slots=True)
class How:
    """How mags are made."""

    mode: str
    """How voxels become one; `"default"` is what fits the category of the layer."""
    blocks: str | None
    """How blocks are stored; None is as those of the mag that others are made from."""
    run: Run
    """Where."""


def build(
    layer: LayerLike[Entry],
    way: Coarser | Finer,
    how: How,
    *,
    resume: bool,
    force: bool,
    dry_run: bool,
) -> RunReport | PyramidPlan:
    """Make mags of a layer, each from the one before it, as one run; or plan them.

    The mags are listed when all are finished. After an error nothing is left of them, unless the
    run can be resumed.

    Parameters
    ----------
    layer
        The layer.
    way
        Which mags.
    how
        By which mode, with which blocks, and where.
    resume, force, dry_run
        See `Layer.downsample`.
    """
    chains.check_sampling_mode(way.sampling_mode)
    directories = layer.directories
    start = _start(layer, way)
    others = directories.listed_anywhere
    chosen = way.chosen(start, layer.bounding_box, layer.dataset.voxel_size, others)
    if resume and not chosen and way.from_mag is None:
        return RunReport(0)  # the run that is resumed was over
    mode = check_mode(how.mode, way.direction, layer.category, force=force)
    directories.check_new(chosen, resume=resume)
    plan = _plan(layer, start, chosen, replace(how, mode=mode))
    return plan if dry_run else _make(layer, plan, way.direction, how.run, resume=resume)


def _start(layer: LayerLike[Entry], way: Coarser | Finer) -> Mag:
    """Return the mag that others are made from."""
    if way.from_mag is not None:
        return layer[way.from_mag].mag or Mag(way.from_mag)
    listed = layer.directories.listed
    if not listed:
        raise NothingToDoError(
            f"layer {layer.name!r} has no mag to begin with: add one, and write."
        )
    return way.start(listed)


def _plan(layer: LayerLike[Entry], start: Mag, mags: list[Mag], how: How) -> PyramidPlan:
    if not mags:
        raise NothingToDoError(
            f"there is nothing to make from mag {start} of layer {layer.name!r}. Name the mags, "
            "or another one to end with."
        )
    if layer.bounding_box.is_empty:
        raise NothingToDoError(
            f"layer {layer.name!r} has an empty bounding_box: write to it, or set it."
        )
    return plan_pyramid(
        layer=layer.name,
        source=start,
        mags=mags,
        mode=how.mode,
        header=layer[start].volume.layout.stored_as(how.blocks),
        box=layer.bounding_box,
        voxel_size=layer.dataset.voxel_size,
        unit=layer.dataset.unit,
        task_bytes=SAMPLING_BYTES,
    )


def _make(
    layer: LayerLike[Entry], plan: PyramidPlan, direction: Direction, run: Run, *, resume: bool
) -> RunReport:
    """Make the mags of a plan, and list them when all are there."""
    directories = layer.directories
    new = [directories.new_mag(made.mag, plan.header, made.box) for made in plan.mags]
    doing = "downsampled to" if direction == "down" else "upsampled to"
    with directories.made(new, doing, resume=resume):
        views = [view.bounded() for view in (layer[plan.source], *map(layer.open_new, new))]
        return sample_mags(views, plan.mode, direction, run, resume=resume, force=True)
