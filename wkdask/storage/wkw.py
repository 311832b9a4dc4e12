"""A WKW volume: a mag directory with `header.wkw` and a grid of `.wkw` files.

It knows where the files lie, and patches those that are raw. `reader` and `writer` know what is in
one file.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from wkdask.errors import (
    ArgumentError,
    ExistsError,
    FormatError,
    MissingError,
    storage_error,
)
from wkdask.geometry import BoundingBox, Vec3, is_remote
from wkdask.storage import atomic, reader, writer
from wkdask.storage.files import FileVolume
from wkdask.storage.header import HEADER_BYTES, VolumeHeader
from wkdask.storage.place import LOCAL, Fetch, Place
from wkdask.storage.reader import WkwFile
from wkdask.storage.volume import FileNames, Produce, Volume

__all__ = ["HEADER_NAME", "WkwVolume", "as_wkw"]

HEADER_NAME = "header.wkw"

_NUMBER = "(0|[1-9][0-9]*)"
_NAMES = FileNames(HEADER_NAME, (f"z{_NUMBER}", f"y{_NUMBER}", rf"x{_NUMBER}\.wkw"), (2, 1, 0))
# Some writers make it as long as the head of a file.
_MOST_HEADER_BYTES = 2**20


@dataclass(frozen=True, slots=True)
class WkwVolume(FileVolume):
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

    @classmethod
    def open(cls, path: str | os.PathLike[str], place: Place = LOCAL) -> WkwVolume:
        """Return the volume of an existing directory, after reading its `header.wkw`.

        Raises
        ------
        MissingError
            If there is no directory or no `header.wkw` in it.
        FormatError
            If `header.wkw` is not a WKW header.
        """
        directory = place.absolute(os.fspath(path))
        return cls(directory, _read_header(directory, place), place=place)

    @classmethod
    def create(
        cls, path: str | os.PathLike[str], header: VolumeHeader, place: Place = LOCAL
    ) -> WkwVolume:
        """Make a directory with its `header.wkw`.

        Raises
        ------
        ExistsError
            If there is a `header.wkw` already; nothing is changed.
        StorageError
            If the file system refuses; no `header.wkw` is left behind.
        """
        volume = cls(os.fspath(path), header, place=place)
        target = os.path.join(volume.path, HEADER_NAME)
        if not place.create(target, header.to_bytes()):
            raise ExistsError(f"{target} exists: open the volume, or choose another path.")
        return volume

    @property
    def header(self) -> VolumeHeader:
        """The layout, by the name that WKW has for it."""
        return self.layout

    @property
    def names(self) -> FileNames:
        """What the files are called."""
        return _NAMES

    def check(self) -> None:
        """Raise unless `header.wkw` on disk still says what this volume's header says."""
        found = _read_header(self.path, self.place)
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

    def file_path(self, cell: Vec3) -> str:
        """Return where the file of a cell `(x, y, z)` of the file grid lies."""
        x, y, z = cell
        return f"{self.path}{os.sep}z{z}{os.sep}y{y}{os.sep}x{x}.wkw"

    @property
    def head(self) -> tuple[int, int]:
        """The header and the jump table of a file."""
        return 0, self.layout.data_offset_bytes

    def checked(self, descriptor: int, path: str, fetch: Fetch) -> WkwFile:
        """Return a file by its descriptor, after checking header, size and jump table."""
        return WkwFile.checked(descriptor, path, self.layout, fetch)

    @property
    def _format(self) -> writer.WkwFormat:
        return writer.WkwFormat(self.layout, self.options.hc_level)

    def _patch_file(self, cell: Vec3, inside: BoundingBox, produce: Produce, is_made: bool) -> int:
        """Write a box into a raw file in place, piece by piece."""
        path = self.file_path(cell)
        pieces = [inside] if is_made else writer.pieces_of(self.layout)
        with self._merging(cell, inside, produce) as (piece_of, _):
            for piece in pieces:
                common = piece.intersected_with(inside, dont_assert=True)
                if common.is_empty:
                    continue
                voxels = piece_of(common)
                if voxels is None:
                    shape = (self.layout.num_channels, *common.size)
                    voxels = np.zeros(shape, self.layout.dtype, order="F")
                reader.patch(path, self.layout, common, voxels, self.options)
        return inside.volume * self.layout.voxel_bytes

    def _file_directories(self, box: BoundingBox) -> Iterator[str]:
        """Yield the directories with files of a box; a directory has files along all of x."""
        edge = self.layout.file_edge
        _, ys, zs = (
            range(start // edge, -(-stop // edge))
            for start, stop in zip(box.topleft, box.bottomright, strict=True)
        )
        yield from (os.path.dirname(self.file_path((0, y, z))) for z in zs for y in ys)

    def _missing_head(self) -> Exception:
        return _no_header(self.path)


def as_wkw(volume: Volume) -> WkwVolume:
    """Return a volume as what it is, where only WKW will do."""
    if not isinstance(volume, WkwVolume):
        raise ArgumentError(f"{volume.path} is no WKW volume, which is needed here.")
    return volume


def _read_header(directory: str, place: Place) -> VolumeHeader:
    path = os.path.join(directory, HEADER_NAME)
    try:
        data = place.read(path, _MOST_HEADER_BYTES)
    except (FileNotFoundError, NotADirectoryError):
        raise _no_header(directory) from None
    except OSError as error:
        raise storage_error(error, path, "reading the header") from None
    try:
        return VolumeHeader.from_bytes(data[:HEADER_BYTES])
    except FormatError as error:
        raise FormatError(
            f"{path} {error}. Restore it: the voxels can't be read without."
        ) from None


def _no_header(directory: str) -> MissingError:
    if not is_remote(directory) and not os.path.isdir(directory):
        return MissingError(f"{directory} is not a directory; a mag directory was expected.")
    return MissingError(
        f"{directory} has no {HEADER_NAME}, so it is no mag directory. Open a directory such as "
        "color/1, or a dataset with wkdask.open."
    )
