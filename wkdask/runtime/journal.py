"""Which chunks of a job are done: one small record per chunk, beside the files it tells of.

A record counts only while the files are those that its chunk left: it holds size, time and inode of
each file, or a hash of the voxels where chunks share a raw file. When a job is complete, hashes of
its records are put into one file. It knows volumes and boxes, and
nothing of what the job does; the job's name stands for that.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from wkdask.errors import FormatError, MissingError
from wkdask.geometry import BoundingBox, absolute
from wkdask.grids import overlaps, region_of
from wkdask.storage import atomic
from wkdask.storage.volume import JOURNALS_NAME, Volume

__all__ = ["Journal", "JournalInfo", "clear_journals", "journals"]

_RECORDS_PER_DIRECTORY = 1000
_DIGEST_BYTES = 16
_MOST_BYTES = 2**30
# The file of all records of a job that is complete, one after the other.
_ALL = "all"


@dataclass(frozen=True, slots=True)
class Journal:
    """The records of one job on one volume."""

    volume: Volume
    """What the job writes."""
    job: str
    """A name that another function, source or chunk size would change; also a directory's name."""

    @property
    def path(self) -> str:
        """Its directory."""
        return os.path.join(self.volume.path, JOURNALS_NAME, self.job)

    def record(self, index: int, box: BoundingBox) -> None:
        """Note that a chunk is done."""
        with atomic.replacing(self._file(index), fsync=self.volume.options.fsync) as descriptor:
            atomic.write_all(descriptor, self._text(box), 0)

    def is_done(self, index: int, box: BoundingBox) -> bool:
        """Return whether a chunk was done and its files have not been changed since."""
        known = self._digest(index)
        try:
            return known is not None and known == _digest(self._text(box))
        except (FileNotFoundError, ValueError):
            return False

    def shrink(self) -> None:
        """Put the records into one file; for a job of which all chunks are done."""
        loose = {int(record.stem): _digest(_read(str(record))) for record in _loose(self.path)}
        if not loose:
            return
        whole = os.path.join(self.path, _ALL)
        data = bytearray(_read(whole))
        data.extend(bytes(max(0, (max(loose) + 1) * _DIGEST_BYTES - len(data))))
        for index, digest in loose.items():
            data[index * _DIGEST_BYTES : (index + 1) * _DIGEST_BYTES] = digest
        with atomic.replacing(whole, fsync=self.volume.options.fsync) as descriptor:
            atomic.write_all(descriptor, data, 0)
        for index in loose:
            atomic.remove(self._file(index), fsync=False)
            atomic.remove_empty([os.path.dirname(self._file(index))])

    def _file(self, index: int) -> str:
        directory = str(index // _RECORDS_PER_DIRECTORY)
        return os.path.join(self.path, directory, f"{index}.json")

    def _digest(self, index: int) -> bytes | None:
        """Return what is noted of a chunk, in a file of its own or in that of all."""
        if alone := _read(self._file(index)):
            return _digest(alone)
        with contextlib.suppress(OSError):
            descriptor = os.open(os.path.join(self.path, _ALL), os.O_RDONLY | os.O_NONBLOCK)
            try:
                return os.pread(descriptor, _DIGEST_BYTES, index * _DIGEST_BYTES)
            finally:
                os.close(descriptor)
        return None

    def _text(self, box: BoundingBox) -> bytes:
        return json.dumps(self._state(box)).encode()

    def _state(self, box: BoundingBox) -> list[Any]:
        """Return plain values that say what a box is, and what its files are."""
        layout = self.volume.layout
        size = layout.file_size
        # A layer may have grown within its last files, under the name of the same job.
        place = [*box.topleft, *box.size]
        sides = zip((*box.topleft, *box.bottomright), (*size, *size), strict=True)
        if layout.write_size != size and any(at % edge for at, edge in sides):
            # Other chunks may write blocks of the same file after this one.
            return [place, self._content(box)]
        parts = overlaps(region_of(box), size)
        files = [[*part.cell, *_identity(self.volume.file_path(part.cell))] for part in parts]
        return [place, *files]

    def _content(self, box: BoundingBox) -> str:
        """Return a hash of the voxels of a box."""
        voxels = self.volume.read(region_of(box))
        return hashlib.blake2b(voxels.T.data, digest_size=16).hexdigest()


@dataclass(frozen=True, slots=True)
class JournalInfo:
    """A journal on disk."""

    path: str
    """Its directory, inside the mag directory that it tells of."""
    records: int
    """How many chunks it says are done."""
    size_bytes: int
    """Bytes of its records."""


def journals(path: str | os.PathLike[str]) -> list[JournalInfo]:
    """List the journals of resumable runs below a directory.

    Parameters
    ----------
    path
        A mag directory, a layer or a dataset.

    Raises
    ------
    MissingError
        If there is no such directory.

    Examples
    --------
    >>> ds = wkdask.create("tissue", voxel_size=(8, 8, 8))
    >>> box = wkdask.BoundingBox((0, 0, 0), (64, 64, 64))
    >>> mag = ds.add_layer("color", "color", "uint8", bounding_box=box).add_mag(1)
    >>> def brighten(chunk):
    ...     view, _ = chunk
    ...     view.write(np.full(view.size, 200, np.uint8))
    >>> mag.for_each_chunk(brighten, resume=True).done
    1
    >>> mag.for_each_chunk(brighten, resume=True).skipped
    1
    >>> [journal.records for journal in wkdask.journals("tissue")]
    [1]
    >>> wkdask.clear_journals("tissue")
    1
    """
    return [_info(directory) for directory in _directories(path)]


def clear_journals(path: str | os.PathLike[str]) -> int:
    """Delete the journals below a directory, and return how many there were.

    Runs with `resume=True` then begin from the start. No voxel is touched.

    Raises
    ------
    MissingError
        If there is no such directory.
    """
    found = list(_directories(path))
    for directory in found:
        shutil.rmtree(directory)
        # The directory of all journals, if this was the last one.
        if not os.listdir(directory.parent):
            directory.parent.rmdir()
    return len(found)


def _directories(path: str | os.PathLike[str]) -> Iterator[Path]:
    root = Path(absolute(path))
    if not root.is_dir():
        raise MissingError(f"{root} is not a directory; a dataset, layer or mag was expected.")
    # A journal lies in a mag, a mag in a layer, a layer in a dataset.
    for depth in ("", "*/", "*/*/"):
        yield from sorted(each for each in root.glob(f"{depth}{JOURNALS_NAME}/*") if each.is_dir())


def _info(directory: Path) -> JournalInfo:
    loose = {int(record.stem): record.stat().st_size for record in _loose(str(directory))}
    whole = directory / _ALL
    data = _read(str(whole))
    cut = len(data) // _DIGEST_BYTES * _DIGEST_BYTES
    done = np.frombuffer(data[:cut], f"V{_DIGEST_BYTES}").astype(bool)
    count = len(loose.keys() | set(np.flatnonzero(done).tolist()))
    return JournalInfo(str(directory), count, sum(loose.values()) + len(data))


def _loose(directory: str) -> Iterator[Path]:
    """Yield the files of single records."""
    return (each for each in Path(directory).glob("*/*.json") if each.stem.isdigit())


def _read(path: str) -> bytes:
    """Return the bytes of a file of the journal; none of what can't be read, or is no file."""
    try:
        return atomic.read_file(path, _MOST_BYTES)
    except (OSError, FormatError):
        return b""


def _digest(text: bytes) -> bytes:
    return hashlib.blake2b(text, digest_size=_DIGEST_BYTES).digest()


def _identity(path: str) -> list[int]:
    """Return what changes when a file is replaced or written to; nothing if there is none."""
    try:
        status = os.stat(path)
    except FileNotFoundError:
        return []
    return [status.st_size, status.st_mtime_ns, status.st_ino]
