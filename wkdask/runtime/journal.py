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
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from wkdask.errors import FormatError, StorageError
from wkdask.geometry import BoundingBox
from wkdask.grids import overlaps, region_of
from wkdask.storage import atomic
from wkdask.storage.volume import JOURNALS_NAME, Volume

__all__ = ["DIGEST_BYTES", "JOB_NAME", "Journal", "digests_of", "failures_of", "records_of"]

_RECORDS_PER_DIRECTORY = 1000
DIGEST_BYTES = 16
"""Bytes of a record in the file of all."""
_MOST_BYTES = 2**30
_MOST_ERROR_CHARACTERS = 1000
# The file of all records of a job that is complete, one after the other.
_ALL = "all"
JOB_NAME = "job.json"
"""The file that says what the job is, how many chunks it has, and when it began."""
_FAILED = "failed"


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

    def begin(self, name: str, chunks: int) -> None:
        """Note what is done and how much there is to do; earlier failures are forgotten."""
        shutil.rmtree(os.path.join(self.path, _FAILED), ignore_errors=True)
        job = {"name": name, "chunks": chunks, "started": time.time()}
        self._write(os.path.join(self.path, JOB_NAME), json.dumps(job).encode())

    def note_failure(self, index: int, box: BoundingBox, error: Exception) -> None:
        """Note why a chunk failed; it is no failure any more when it is done after all."""
        text = f"chunk {index}, {box}: {type(error).__name__}: {error}"[:_MOST_ERROR_CHARACTERS]
        with contextlib.suppress(OSError, StorageError):
            self._write(os.path.join(self.path, _FAILED, f"{index}.txt"), text.encode())

    def record(self, index: int, box: BoundingBox) -> None:
        """Note that a chunk is done."""
        self._write(self._file(index), self._text(box))

    def is_done(self, index: int, box: BoundingBox) -> bool:
        """Return whether a chunk was done and its files have not been changed since."""
        known = self._digest(index)
        try:
            return known is not None and known == _digest(self._text(box))
        except (FileNotFoundError, ValueError):
            return False

    def shrink(self) -> None:
        """Put the records into one file; for a job of which all chunks are done."""
        loose = {number: _digest(_read(path)) for number, path in records_of(self.path)}
        if not loose:
            return
        whole = os.path.join(self.path, _ALL)
        data = bytearray(_read(whole))
        data.extend(bytes(max(0, (max(loose) + 1) * DIGEST_BYTES - len(data))))
        for index, digest in loose.items():
            data[index * DIGEST_BYTES : (index + 1) * DIGEST_BYTES] = digest
        self._write(whole, data)
        for index in loose:
            atomic.remove(self._file(index), fsync=False)
            atomic.remove_empty([os.path.dirname(self._file(index))])

    def _write(self, path: str, data: bytes | bytearray) -> None:
        with atomic.replacing(path, fsync=self.volume.options.fsync) as descriptor:
            atomic.write_all(descriptor, data, 0)

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
                return os.pread(descriptor, DIGEST_BYTES, index * DIGEST_BYTES)
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


def records_of(directory: str) -> Iterator[tuple[int, str]]:
    """Yield the files of single records, each with the number of its chunk."""
    for each in Path(directory).glob("*/*.json"):
        if each.stem.isdigit():
            yield int(each.stem), str(each)


def failures_of(directory: str) -> dict[int, str]:
    """Return what is noted of chunks that failed, by their numbers."""
    found = Path(directory, _FAILED).glob("*.txt")
    return {
        int(e.stem): _read(str(e)).decode("utf-8", "replace") for e in found if e.stem.isdigit()
    }


def digests_of(directory: str) -> bytes:
    """Return the file of all records, of which only whole ones count."""
    return _read(os.path.join(directory, _ALL))


def _read(path: str) -> bytes:
    """Return the bytes of a file of the journal; none of what can't be read, or is no file."""
    try:
        return atomic.read_file(path, _MOST_BYTES)
    except (OSError, FormatError):
        return b""


def _digest(text: bytes) -> bytes:
    return hashlib.blake2b(text, digest_size=DIGEST_BYTES).digest()


def _identity(path: str) -> list[int]:
    """Return what changes when a file is replaced or written to; nothing if there is none."""
    try:
        status = os.stat(path)
    except FileNotFoundError:
        return []
    return [status.st_size, status.st_mtime_ns, status.st_ino]
