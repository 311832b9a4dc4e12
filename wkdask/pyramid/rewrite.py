"""Voxels that stay as they are and are stored in another way, or elsewhere.

It knows volumes and directories of mags. In place, either each file is replaced by one with the
same voxels, or the whole directory by another one; a run that is interrupted leaves one or the
other.
"""

from __future__ import annotations

import glob
import os
import shutil
import uuid
from collections.abc import Iterable
from dataclasses import dataclass, replace

from wkdask.geometry import BoundingBox, Vec3
from wkdask.grids import region_of
from wkdask.pyramid.fill import Step, fill_volumes
from wkdask.runtime.journal import Journal
from wkdask.runtime.run import Run, RunReport
from wkdask.storage.atomic import fsync_directory, os_errors, try_exchange
from wkdask.storage.header import BlockType, VolumeHeader
from wkdask.storage.volume import JOURNALS_NAME, Volume, Voxels, is_zero
from wkdask.storage.wkw import HEADER_NAME, WkwVolume

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
    exclusive: bool = True,
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
    exclusive
        Whether no other task writes to the files of the box.
    """
    run = run.of(journal)
    try:
        step = Step(target, box, Copying(source, shift), exclusive)
        return fill_volumes([step], run, [journal])
    finally:
        target.sweep(run.tag, box)


def recompress(volume: WkwVolume, block_type: BlockType, run: Run) -> RunReport:
    """Store the files of a volume with other blocks: each is replaced by one of the same voxels.

    An interrupted run leaves some files of either kind, which WKW allows; run it again.

    Parameters
    ----------
    volume
        No other task may write to it during the run.
    block_type
        `"raw"`, `"lz4"` or `"lz4hc"`.
    run
        Where and how the tasks run.
    """
    target = replace(volume, layout=replace(volume.layout, block_type=block_type))
    box = volume.box_on_disk()
    # First where files get compressed: these may be written while the header says so, but not while
    # it says that they are raw.
    becomes_compressed = target.layout.write_unit == "file"
    if becomes_compressed:
        target.replace_header()
    report = RunReport(0) if box.is_empty else copy_voxels(volume, target, box, run)
    if not becomes_compressed:
        target.replace_header()
    return report


def rechunk(volume: WkwVolume, header: VolumeHeader, run: Run) -> RunReport:
    """Store a volume with blocks and files of other edges, in a directory that replaces the old.

    Parameters
    ----------
    volume
        No other task may write to it during the run.
    header
        How to store it; dtype and channels are the same.
    run
        Where and how the tasks run.
    """
    # A link stays one, and what it leads to is replaced.
    path = os.path.realpath(volume.path)
    for leftover in glob.glob(f"{glob.escape(path)}.*{_SUFFIX}"):
        shutil.rmtree(leftover, ignore_errors=True)
    temporary = f"{path}.{uuid.uuid4().hex}{_SUFFIX}"
    target = replace(WkwVolume.create(temporary, header), options=volume.options)
    box = volume.box_on_disk()
    try:
        report = RunReport(0) if box.is_empty else copy_voxels(volume, target, box, run)
        _keep_others(path, temporary)
        with os_errors(path, "replacing"):
            _exchange(temporary, path)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    shutil.rmtree(temporary, ignore_errors=True)
    volume.note_change()
    return report


def _keep_others(old: str, new: str) -> None:
    """Copy what else lies in a mag directory, such as a user's notes."""
    for name in _others(old):
        source = os.path.join(old, name)
        copy = shutil.copytree if os.path.isdir(source) else shutil.copy2
        copy(source, os.path.join(new, name))


def _others(directory: str) -> Iterable[str]:
    for name in os.listdir(directory):
        is_ours = name in (HEADER_NAME, JOURNALS_NAME) or (name[:1] == "z" and name[1:].isdigit())
        if not is_ours:
            yield name


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
