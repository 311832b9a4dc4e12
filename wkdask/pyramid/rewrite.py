"""Voxels that stay as they are and are stored in another way, or elsewhere.

It knows volumes and directories of mags. In place, either each file is replaced by one with the
same voxels, or the whole directory by another one; a run that is interrupted leaves one or the
other.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import uuid
from collections.abc import Iterable
from dataclasses import dataclass, replace

from wkdask.errors import ArgumentError
from wkdask.geometry import BoundingBox, Vec3, is_remote
from wkdask.grids import region_of
from wkdask.pyramid.fill import Step, fill_volumes
from wkdask.runtime.journal import Journal
from wkdask.runtime.run import Run, RunReport
from wkdask.storage import claims
from wkdask.storage.atomic import TEMPORARY_SUFFIX, fsync_directory, os_errors, try_exchange
from wkdask.storage.header import VolumeHeader
from wkdask.storage.opening import create_volume
from wkdask.storage.volume import JOURNALS_NAME, FileNames, Layout, Volume, Voxels, is_zero
from wkdask.storage.wkw import WkwVolume

__all__ = ["Copying", "copy_voxels", "rechunk", "recompress"]

# What a run that is killed leaves, beside the mag; the next one deletes it.
_SUFFIX = ".rechunked"


@dataclass(frozen=True, slots=True)
class Copying:
    """Reads the voxels of a box from a volume, at the same or at another place."""

    source: Volume
    """The volume that is read."""
    shift: Vec3 = (0, 0, 0)
    """What is added to a position in the target to get the position in the source."""

    def __call__(self, box: BoundingBox) -> Voxels | None:
        """Return the voxels `(c, x, y, z)` of a box of the target; None if all are zero."""
        there = self.reads(box)
        if self.source.is_missing(there):
            self.source.check()
            return None
        voxels = self.source.read(region_of(there))
        return None if is_zero(voxels) else voxels

    def reads(self, box: BoundingBox) -> BoundingBox:
        """Return the voxels of the source that become a box of the target."""
        return box.moved_by(self.shift)


def copy_voxels(
    source: Volume,
    target: Volume,
    box: BoundingBox,
    run: Run,
    *,
    shift: Vec3 = (0, 0, 0),
    journal: Journal | None = None,
) -> RunReport:
    """Fill a box of a volume with the voxels of another one, one task per file.

    Parameters
    ----------
    source, target
        Volumes of the same dtype and channels; how they are stored may differ.
    box
        What is filled, in voxels of the target; not empty.
    run
        Where and how the tasks run.
    shift
        See `Copying`.
    journal
        Where files that are done are noted.
    """
    run = run.of(journal)
    try:
        step = Step(target, box, Copying(source, shift))
        return fill_volumes([step], run, [journal])
    finally:
        target.sweep(run.tag, box)


def recompress(volume: Volume, layout: Layout, run: Run) -> RunReport:
    """Store the files of a volume with other blocks: each is replaced by one of the same voxels.

    An interrupted run leaves some files of either kind, which WKW allows; run it again. A format
    whose files must all be alike is written anew; see `rechunk`.

    Parameters
    ----------
    volume
        What is claimed whole during the run.
    layout
        How to store it; only the blocks differ.
    run
        Where and how the tasks run.
    """
    if not isinstance(volume, WkwVolume) or not isinstance(layout, VolumeHeader):
        return rechunk(volume, layout, run)
    _check_local(volume)
    with claims.whole(volume.path, "compressed"):
        volume.check()
        target = replace(volume, layout=layout, is_claimed=True)
        box = volume.box_on_disk()
        # First where files get compressed: these may be written while the header says so, but not
        # while it says that they are raw.
        becomes_compressed = target.layout.write_unit == "file"
        if becomes_compressed:
            target.replace_header()
        report = RunReport(0) if box.is_empty else copy_voxels(volume, target, box, run)
        if not becomes_compressed:
            target.replace_header()
        return report


def _check_local(volume: Volume) -> None:
    if is_remote(volume.path):
        raise ArgumentError(
            f"{volume.path} is remote, where a mag can't be rewritten as a whole. Copy the layer: "
            "wkdask.copy(layer, dataset, layer_name=..., block_type=...)."
        )


def rechunk(volume: Volume, layout: Layout, run: Run) -> RunReport:
    """Store a volume with blocks and files of other edges, in a directory that replaces the old.

    Parameters
    ----------
    volume
        What is claimed whole during the run.
    layout
        How to store it; format, dtype and channels are the same.
    run
        Where and how the tasks run.
    """
    _check_local(volume)
    # A link stays one, and what it leads to is replaced.
    path = os.path.realpath(volume.path)
    with claims.whole(path, "rechunked"):
        volume.check()
        for leftover in _leftovers(path):
            _dissolve(leftover, path, volume.names)
        temporary = f"{path}.{uuid.uuid4().hex}{_SUFFIX}"
        try:
            box = volume.box_on_disk()
            target = create_volume(temporary, layout, volume.extent_of(box))
            target = replace(target, options=volume.options, is_claimed=True)
            report = RunReport(0) if box.is_empty else copy_voxels(volume, target, box, run)
            with os_errors(path, "replacing"):
                _exchange(temporary, path)
        finally:
            # The old files by now, or new ones after an error.
            _dissolve(temporary, path, volume.names)
    volume.note_change()
    return report


def _leftovers(path: str) -> Iterable[str]:
    """Return the directories that runs left beside a mag when they were killed."""
    name = re.compile(re.escape(os.path.basename(path)) + r"\.[0-9a-f]{32}" + re.escape(_SUFFIX))
    parent = os.path.dirname(path)
    return [os.path.join(parent, each) for each in os.listdir(parent) if name.fullmatch(each)]


def _dissolve(old: str, new: str, names: FileNames, depth: int = 0) -> None:
    """Delete the files of a volume; what else lies between them goes to the same place in another.

    Parameters
    ----------
    old
        A mag directory, or a directory in it.
    new
        The directory that stands for it in the other volume.
    names
        What the files of both are called.
    depth
        How many directories lie between it and the mag directory.
    """
    with contextlib.suppress(OSError):
        for name in os.listdir(old):
            path, kept = os.path.join(old, name), os.path.join(new, name)
            is_part = re.fullmatch(names.patterns[depth], name) is not None
            if depth + 1 < len(names.patterns) and is_part and os.path.isdir(path):
                _dissolve(path, kept, names, depth + 1)
            elif depth == 0 and name == JOURNALS_NAME:
                shutil.rmtree(path, ignore_errors=True)
            elif is_part or name.endswith(TEMPORARY_SUFFIX) or (depth, name) == (0, names.head):
                os.unlink(path)
            elif not os.path.lexists(kept):
                os.makedirs(new, exist_ok=True)
                os.rename(path, kept)
        os.rmdir(old)


def _exchange(new: str, old: str) -> None:
    """Exchange the names of two directories, at once where the file system can do that."""
    if not try_exchange(new, old):
        # Such as NFS and macOS: for an instant, no directory has the name.
        aside = f"{new}-old"
        os.rename(old, aside)
        try:
            os.rename(new, old)
        except OSError:
            os.rename(aside, old)
            raise
        os.rename(aside, new)
    fsync_directory(os.path.dirname(old))
