"""A WKW volume: a mag directory with `header.wkw` and a grid of `.wkw` files.

It knows where the files of a box lie and which of them are merged, patched or replaced. `reader`
and `writer` know what is in one file.
"""

from __future__ import annotations

import contextlib
import os
import re
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import partial

import numpy as np
from numpy.typing import NDArray

from wkdask.errors import (
    ArgumentError,
    BoundsError,
    ExistsError,
    FormatError,
    MissingError,
    storage_error,
)
from wkdask.geometry import BoundingBox, Vec3, absolute
from wkdask.grids import Overlap, Region, overlaps, region_of, slices_in
from wkdask.storage import atomic, reader, writer
from wkdask.storage.header import HEADER_BYTES, VolumeHeader
from wkdask.storage.reader import WkwFile, new_array
from wkdask.storage.volume import JOURNALS_NAME, Produce, Volume, Voxels, add_written

__all__ = ["HEADER_NAME", "WkwVolume", "as_wkw"]

HEADER_NAME = "header.wkw"

# Some writers make it as long as the head of a file.
_MOST_HEADER_BYTES = 2**20

# Changes by this process per directory, where two changes have the same modification time.
_CHANGES: Counter[str] = Counter()


@dataclass(frozen=True, slots=True)
class WkwVolume(Volume):
    """A mag directory and how its voxels are stored. Making one touches no disk.

    Examples
    --------
    >>> volume = WkwVolume.create("tissue/1", VolumeHeader("uint8", block_edge=8))
    >>> volume.write(BoundingBox((5, 0, 0), (1, 2, 3)), np.full((1, 1, 2, 3), 7, np.uint8))
    >>> volume.read((range(4, 7), range(1), range(1)))[0, :, 0, 0]
    array([0, 7, 0], dtype=uint8)
    """

    layout: VolumeHeader
    """What every file must hold; the block type is that of files to be written."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "path", absolute(self.path))

    @classmethod
    def open(cls, path: str | os.PathLike[str]) -> WkwVolume:
        """Return the volume of an existing directory, after reading its `header.wkw`.

        Raises
        ------
        MissingError
            If there is no directory or no `header.wkw` in it.
        FormatError
            If `header.wkw` is not a WKW header.
        """
        directory = absolute(path)
        return cls(directory, _read_header(directory))

    @classmethod
    def create(cls, path: str | os.PathLike[str], header: VolumeHeader) -> WkwVolume:
        """Make a directory with its `header.wkw`.

        Raises
        ------
        ExistsError
            If there is a `header.wkw` already; nothing is changed.
        StorageError
            If the file system refuses; no `header.wkw` is left behind.
        """
        volume = cls(os.fspath(path), header)
        target = os.path.join(volume.path, HEADER_NAME)
        # Looked for first, because the directory of a finished volume may be read-only.
        if os.path.lexists(target) or not reader.create_header(target, header):
            raise ExistsError(f"{target} exists: open the volume, or choose another path.")
        return volume

    @property
    def header(self) -> VolumeHeader:
        """The layout, by the name that WKW has for it."""
        return self.layout

    def check(self) -> None:
        """Raise unless `header.wkw` on disk still says what this volume's header says."""
        found = _read_header(self.path)
        if not found.same_voxels_as(self.layout):
            raise FormatError(
                f"{os.path.join(self.path, HEADER_NAME)} has {found.difference_to(self.layout)}, "
                "which is what the view was made with. Open it again."
            )

    def replace_header(self) -> None:
        """Let `header.wkw` say what this volume's header says."""
        with atomic.replacing(os.path.join(self.path, HEADER_NAME), fsync=True) as descriptor:
            os.write(descriptor, self.layout.to_bytes())
        self.note_change()

    def read(self, region: Region) -> NDArray[np.generic]:
        """Return the voxels of a region; see `Volume.read`."""
        shape = (self.layout.num_channels, *map(len, region))
        out, is_zero = new_array(shape, self.layout.dtype)
        complete = True
        for part in self._parts(region):
            target = out[(slice(None), *part.target)]
            path = self.file_path(part.cell)
            if not reader.read_into(target, path, self.layout, part.source):
                complete = False
                if not is_zero:
                    target[...] = 0
        if not complete:
            # Files of another size would lie elsewhere, and what is not found counts as zero.
            self.check()
        return out

    def write(self, box: BoundingBox, voxels: Voxels) -> None:
        """Write a box; files of compressed volumes that it covers partly are merged."""
        self.check_voxels(voxels.dtype, voxels.shape)
        if voxels.shape[1:] != box.size:
            raise ArgumentError(f"voxels of shape {voxels.shape} do not fill the box {box}.")
        self._fill(
            box,
            lambda part: voxels[(slice(None), *slices_in(part, box.topleft))],
            is_made=True,
        )

    def fill(self, box: BoundingBox, produce: Produce, *, threads: int = 1) -> None:
        """Write a box piece by piece; see `Volume.fill`."""
        self._fill(box, produce, threads=threads)

    def file_path(self, cell: Vec3) -> str:
        """Return where the file of a cell `(x, y, z)` of the file grid lies."""
        x, y, z = cell
        return f"{self.path}{os.sep}z{z}{os.sep}y{y}{os.sep}x{x}.wkw"

    def is_missing(self, box: BoundingBox) -> bool:
        """Return whether no file of a box exists."""
        parts = self._parts(region_of(box))
        return all(reader.is_missing(self.file_path(part.cell)) for part in parts)

    def file_bytes(self, cell: Vec3) -> int | None:
        """Return the size of a file; see `Volume.file_bytes`."""
        path = self.file_path(cell)
        try:
            return os.stat(path).st_size
        except FileNotFoundError:
            return None
        except OSError as error:
            raise storage_error(error, path, "looking for the file") from None

    def files(self) -> Iterator[tuple[Vec3, int]]:
        """Yield the cell `(x, y, z)` and the size in bytes of every file."""
        for z, z_entry in _numbered(self.path, "z", ""):
            for y, y_entry in _numbered(z_entry.path, "y", ""):
                for x, x_entry in _numbered(y_entry.path, "x", ".wkw"):
                    yield (x, y, z), _size_bytes(x_entry)

    def check_file(self, cell: Vec3, *, decode: bool = False) -> int:
        """Raise unless a file is a whole WKW file of this volume; see `Volume.check_file`."""
        try:
            opened = WkwFile.open(self.file_path(cell), self.layout)
        except FileNotFoundError:
            # Writers of zeros remove files: missing means zeros.
            return 0
        with opened as file:
            if decode:
                file.decode_all()
            return file.trailing_bytes()

    def sweep(self, tag: str, box: BoundingBox) -> int:
        """Delete what dead writers with a tag left beside the files of a box, and in journals."""
        # Those of other runs are left alone: some file systems keep locks on one machine, and do
        # not say here that a writer elsewhere is alive.
        ending = f".{tag}{atomic.TEMPORARY_SUFFIX}"
        return sum(
            atomic.sweep_leftover(path)
            for directory in self._directories(box)
            for path in _named(directory, ending)
        )

    def remove(self, box: BoundingBox) -> None:
        """Delete the files of a box and `header.wkw`; see `Volume.remove`."""
        with atomic.os_errors(self.path, "deleting files"):
            for cell, _ in list(self.files()):
                common = self.file_box(cell).intersected_with(box, dont_assert=True)
                if not common.is_empty:
                    atomic.remove(self.file_path(cell), fsync=False)
            atomic.remove(os.path.join(self.path, HEADER_NAME), fsync=False)
        for _, z_entry in list(_numbered(self.path, "z", "")):
            inner = [y_entry.path for _, y_entry in _numbered(z_entry.path, "y", "")]
            for directory in (*inner, z_entry.path):
                atomic.remove_empty([directory])

    def _directories(self, box: BoundingBox) -> Iterator[str]:
        """Yield the directories with files of a box, and the directories of journals."""
        edge = self.layout.file_edge
        _, ys, zs = (
            range(start // edge, -(-stop // edge))
            for start, stop in zip(box.topleft, box.bottomright, strict=True)
        )
        yield from (os.path.dirname(self.file_path((0, y, z))) for z in zs for y in ys)
        for directory, _, _ in os.walk(os.path.join(self.path, JOURNALS_NAME)):
            yield directory

    def version(self) -> tuple[int, int]:
        """Return the time of the last change, and a count for changes of the same time."""
        try:
            return os.stat(self.path).st_mtime_ns, _CHANGES[self.path]
        except OSError as error:
            raise _missing_or(error, self.path) from None

    def note_change(self) -> None:
        """Make `version` differ from now on."""
        with contextlib.suppress(OSError):
            before = os.stat(self.path).st_mtime_ns
            # Clocks of file systems are coarse: two changes may have the same time.
            now = max(time.time_ns(), before + 1)
            os.utime(self.path, ns=(now, now))
            if os.stat(self.path).st_mtime_ns > before:
                return
        _CHANGES[self.path] += 1

    def _parts(self, region: Region) -> Iterator[Overlap]:
        return overlaps(region, self.layout.file_size)

    def _fill(
        self, box: BoundingBox, produce: Produce, *, is_made: bool = False, threads: int = 1
    ) -> None:
        """Write a box; see `fill`. What is made already is patched into raw files at once."""
        if min(box.topleft) < 0:
            raise BoundsError(f"the box {box} has negative positions, which no file can hold.")
        self.check()
        try:
            for cell in self.cells(box):
                whole = self.file_box(cell)
                common = whole.intersected_with(box)
                inside = common.moved_by(-at for at in whole.topleft)
                if self.layout.is_compressed or self.is_claimed or common == whole:
                    size_bytes = self._replace_file(cell, inside, produce, threads)
                else:
                    size_bytes = inside.volume * self.layout.voxel_bytes
                    pieces = [inside] if is_made else writer.pieces_of(self.layout)
                    with self._merging(cell, inside, produce) as (piece_of, _):
                        self._patch_file(cell, inside, piece_of, pieces)
                add_written(inside.volume * self.layout.num_channels, size_bytes)
        finally:
            # Also after a failure: the files before it were written.
            self.note_change()

    def _replace_file(self, cell: Vec3, inside: BoundingBox, produce: Produce, threads: int) -> int:
        """Write a file whole, new inside a box and as it was elsewhere; return its bytes.

        Others who write to parts of the same file at the same time wait, so that no voxel is lost.
        """
        while True:
            try:
                return self._replace_once(cell, inside, produce, threads)
            except atomic.OvertakenError:
                # Somebody made the file in the meantime: it has to be merged now.
                continue

    def _replace_once(self, cell: Vec3, inside: BoundingBox, produce: Produce, threads: int) -> int:
        path = self.file_path(cell)
        others = contextlib.nullcontext(True) if self.is_claimed else atomic.alone(path)
        with (
            others as exists,
            self._merging(cell, inside, produce) as (piece_of, touched),
            writer.writing(path, self.layout, self.options, is_new=not exists) as file,
        ):
            file.fill(piece_of, touched, threads)
        return file.size_bytes

    def _patch_file(
        self, cell: Vec3, inside: BoundingBox, piece_of: Produce, pieces: Iterable[BoundingBox]
    ) -> None:
        """Write a box into a raw file in place, piece by piece."""
        for piece in pieces:
            common = piece.intersected_with(inside, dont_assert=True)
            voxels = None if common.is_empty else piece_of(common)
            if voxels is None:
                shape = (self.layout.num_channels, *common.size)
                voxels = np.zeros(shape, self.layout.dtype, order="F")
            if not common.is_empty:
                path = self.file_path(cell)
                reader.patch(path, self.layout, common, voxels, self.options)

    @contextlib.contextmanager
    def _merging(
        self, cell: Vec3, inside: BoundingBox, produce: Produce
    ) -> Iterator[tuple[Produce, BoundingBox]]:
        """Yield what makes pieces of a file, and the box outside of which they are zero.

        Voxels are new inside a box and old elsewhere; positions count from the file's first voxel.
        """
        whole = self.file_box(cell)

        def new_voxels(part: BoundingBox) -> Voxels | None:
            voxels = produce(part.moved_by(whole.topleft))
            if voxels is not None:
                self.check_voxels(voxels.dtype, voxels.shape)
            return voxels

        opened: contextlib.AbstractContextManager[WkwFile | None] = contextlib.nullcontext()
        if inside.size != whole.size:
            with contextlib.suppress(FileNotFoundError):
                opened = WkwFile.open(self.file_path(cell), self.layout)
        with opened as old:
            touched = BoundingBox((0, 0, 0), whole.size) if old else inside
            yield partial(_merged, old, inside, new_voxels, self.layout), touched


def _merged(
    old: WkwFile | None,
    inside: BoundingBox,
    new_voxels: Produce,
    header: VolumeHeader,
    piece: BoundingBox,
) -> Voxels | None:
    """Return the voxels of a piece of a file: new ones inside a box, old ones elsewhere."""
    common = piece.intersected_with(inside, dont_assert=True)
    voxels = None if common.is_empty else new_voxels(common)
    if common == piece or (old is None and voxels is None):
        return voxels
    out = np.zeros((header.num_channels, *piece.size), header.dtype, order="F")
    if old is not None:
        old.read_into(out, region_of(piece))
    if not common.is_empty:
        out[(slice(None), *slices_in(common, piece.topleft))] = 0 if voxels is None else voxels
    return out


def as_wkw(volume: Volume) -> WkwVolume:
    """Return a volume as what it is, where only WKW will do."""
    if not isinstance(volume, WkwVolume):
        raise ArgumentError(f"{volume.path} is no WKW volume, which is needed here.")
    return volume


def _read_header(directory: str) -> VolumeHeader:
    path = os.path.join(directory, HEADER_NAME)
    try:
        data = atomic.read_file(path, _MOST_HEADER_BYTES)
    except OSError as error:
        raise _missing_or(error, directory) from None
    try:
        return VolumeHeader.from_bytes(data[:HEADER_BYTES])
    except FormatError as error:
        raise FormatError(
            f"{path} {error}. Restore it: the voxels can't be read without."
        ) from None


def _missing_or(error: OSError, directory: str) -> Exception:
    if isinstance(error, FileNotFoundError | NotADirectoryError):
        return _no_header(directory)
    return storage_error(error, os.path.join(directory, HEADER_NAME), "reading the header")


def _no_header(directory: str) -> MissingError:
    if not os.path.isdir(directory):
        return MissingError(f"{directory} is not a directory; a mag directory was expected.")
    return MissingError(
        f"{directory} has no {HEADER_NAME}, so it is no mag directory. Open a directory such as "
        "color/1, or a dataset with wkdask.open."
    )


def _named(directory: str, ending: str) -> Iterator[str]:
    """Yield the files of a directory, if there is one, whose names have an ending."""
    with contextlib.suppress(OSError), os.scandir(directory) as entries:
        yield from (entry.path for entry in entries if entry.name.endswith(ending))


def _size_bytes(entry: os.DirEntry[str]) -> int:
    try:
        return entry.stat().st_size
    except OSError:
        # Such as a link to nothing: reading it raises the proper error.
        return 0


def _numbered(directory: str, prefix: str, suffix: str) -> Iterator[tuple[int, os.DirEntry[str]]]:
    pattern = re.compile(f"{prefix}(0|[1-9][0-9]*){re.escape(suffix)}")
    try:
        with os.scandir(directory) as entries:
            for entry in entries:
                if match := pattern.fullmatch(entry.name):
                    yield int(match[1]), entry
    except FileNotFoundError:
        raise _no_header(directory) from None
    except OSError as error:
        raise storage_error(error, directory, "listing files") from None
