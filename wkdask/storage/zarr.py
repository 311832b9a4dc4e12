"""A zarr array as a volume: a directory with `zarr.json` or `.zarray` and a grid of files.

The array's axes are `(c, x, y, z)`; it begins at voxel (0, 0, 0) of its mag, as WKW does. It has an
extent, which grows when voxels are written beyond it.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from wkdask.errors import ExistsError, FormatError, MissingError, storage_error
from wkdask.geometry import BoundingBox, Vec3, is_remote
from wkdask.grids import Region
from wkdask.storage.files import FileVolume
from wkdask.storage.place import LOCAL, Fetch, Place
from wkdask.storage.shard import ShardFile, ShardFormat, bound
from wkdask.storage.volume import FileNames, WriteOptions
from wkdask.storage.zarr_layout import UnusualError, ZarrLayout, from_metadata

__all__ = ["HEAD_NAMES", "ZarrVolume", "is_array"]

HEAD_NAMES = {"zarr3": "zarr.json", "zarr": ".zarray"}
"""The file that says how an array is stored, by its format."""

_NUMBER = "(0|[1-9][0-9]*)"
_MOST_HEAD_BYTES = 2**24


@dataclass(frozen=True, slots=True)
class ZarrVolume(FileVolume):
    """The directory of a zarr array and how its voxels are stored. Making one touches no disk.

    Examples
    --------
    >>> layout = ZarrLayout("uint8", file_size=(64, 64, 64))
    >>> volume = ZarrVolume.create("tissue/color/1", layout)
    >>> volume.write(BoundingBox((5, 0, 0), (1, 2, 3)), np.full((1, 1, 2, 3), 7, np.uint8))
    >>> volume.read((range(4, 7), range(1), range(1)))[0, :, 0, 0]
    array([0, 7, 0], dtype=uint8)
    """

    layout: ZarrLayout
    """What the metadata say of every file."""
    extent: Vec3 = field(default=(0, 0, 0), compare=False, kw_only=True)
    """Voxels `(x, y, z)` of the array when the volume was opened; it may have grown since."""

    @classmethod
    def open(
        cls, path: str | os.PathLike[str], place: Place = LOCAL, data_format: str | None = None
    ) -> ZarrVolume:
        """Return the volume of an existing array, after reading its metadata.

        Raises
        ------
        MissingError
            If there is no array.
        FormatError
            If it is stored in a way that wkdask does not read.
        """
        directory = place.absolute(os.fspath(path))
        first = HEAD_NAMES.get(data_format or "")
        for name in sorted(HEAD_NAMES.values(), key=lambda name: name != first):
            with contextlib.suppress(MissingError):
                layout, extent = _read_head(os.path.join(directory, name), place)
                return cls(directory, layout, extent=extent, place=place)
        raise _no_head(directory)

    @classmethod
    def create(
        cls,
        path: str | os.PathLike[str],
        layout: ZarrLayout,
        extent: Vec3 = (0, 0, 0),
        place: Place = LOCAL,
    ) -> ZarrVolume:
        """Make a directory with the metadata of an array.

        Parameters
        ----------
        path
            The directory.
        layout
            How to store voxels.
        extent
            Voxels `(x, y, z)`; it is rounded up to whole files, and grows when more is written.

        Raises
        ------
        ExistsError
            If there are metadata already; nothing is changed.
        StorageError
            If the file system refuses; no metadata are left behind.
        """
        extent = _rounded(extent, layout.file_size)
        volume = cls(os.fspath(path), layout, extent=extent, place=place)
        data = _to_bytes(layout.to_metadata(volume.extent))
        if not place.create(volume.head_path, data):
            raise ExistsError(
                f"{volume.head_path} exists: open the volume, or choose another path."
            )
        return volume

    @property
    def head_path(self) -> str:
        """The file with the metadata."""
        return os.path.join(self.path, self.names.head)

    @property
    def names(self) -> FileNames:
        """What the files are called."""
        layout = self.layout
        key = layout.key_prefix + layout.key_separator.join(["(0)", *[_NUMBER] * 3])
        patterns = key.split("/") if layout.key_separator == "/" else [key.replace(".", r"\.")]
        return FileNames(HEAD_NAMES[layout.data_format], tuple(patterns), (1, 2, 3), (".zattrs",))

    def check(self) -> None:
        """Raise unless the metadata on disk still say what this volume's layout says."""
        self._checked_extent()

    def file_path(self, cell: Vec3) -> str:
        """Return where the file of a cell `(x, y, z)` of the file grid lies."""
        layout = self.layout
        numbers = layout.key_separator.join(map(str, (0, *cell)))
        return os.path.join(self.path, f"{layout.key_prefix}{numbers}")

    @property
    def head(self) -> tuple[int, int]:
        """The index of a shard; a chunk is read whole."""
        layout = self.layout
        if not layout.is_sharded:
            return 0, bound(layout.block_bytes)
        return -layout.index_bytes if layout.index_at_end else 0, layout.index_bytes

    def checked(self, descriptor: int, path: str, fetch: Fetch) -> ShardFile:
        """Return a file by its descriptor, after checking its size and its index."""
        return ShardFile.checked(descriptor, path, self.layout)

    def read(self, region: Region) -> NDArray[np.generic]:
        """Return the voxels of a region; what lies beyond the array holds the fill value."""
        out = FileVolume.read(self, region)
        if _leaves(region, self.extent):
            extent = self._checked_extent()
            for axis, (indices, end) in enumerate(zip(region, extent, strict=True), 1):
                first = sum(index < end for index in indices)
                out[(slice(None),) * axis + (slice(first, None),)] = self.layout.fill_value
        return out

    def box_on_disk(self) -> BoundingBox:
        """Return the smallest box around the files; at an address, the array."""
        if self.place is LOCAL:
            return FileVolume.box_on_disk(self)
        return BoundingBox((0, 0, 0), self._checked_extent())

    def extent_of(self, box: BoundingBox) -> Vec3:
        """Return how far the array reaches, at least to the end of a box."""
        x, y, z = map(max, self._checked_extent(), box.bottomright)
        return x, y, z

    def _prepare(self, box: BoundingBox) -> None:
        """Raise unless a box can be written, and let the array reach that far."""
        self.place.check_writable(self.path)
        extent = self._checked_extent()
        if any(end > have for end, have in zip(box.bottomright, extent, strict=True)):
            self._grow(box.bottomright)

    def _grow(self, needed: Sequence[int]) -> None:
        """Make the array larger; several processes may do so at the same time."""

        def grown(data: bytes | None) -> bytes | None:
            if data is None:
                raise self._missing_head()
            _, extent = _understood(self.head_path, data)
            x, y, z = (max(a, b) for a, b in zip(needed, extent, strict=True))
            if (x, y, z) == extent:
                return None
            said = json.loads(data)
            shape = _rounded((x, y, z), self.layout.file_size)
            said["shape"] = [self.layout.num_channels, *shape]
            return _to_bytes(said)

        self.place.change(self.head_path, grown)

    @property
    def _format(self) -> ShardFormat:
        return ShardFormat(self.layout)

    @property
    def _file_options(self) -> WriteOptions:
        # A missing file is no file of zeros if the fill value is another.
        keeps = self.options.keep_zeros or bool(self.layout.fill_value)
        return replace(self.options, keep_zeros=keeps)

    def _checked_extent(self) -> Vec3:
        """Return the extent of the array now; raise if it is stored in another way."""
        found, extent = _read_head(self.head_path, self.place)
        if found != self.layout:
            raise FormatError(
                f"{self.head_path} has {found.difference_to(self.layout)}, which is what the view "
                "was made with. Open it again."
            )
        return extent

    def _missing_head(self) -> Exception:
        return _no_head(self.path)


def is_array(path: str | os.PathLike[str], place: Place = LOCAL) -> bool:
    """Return whether a zarr array lies in a directory that can be a mag."""
    # Of a server only "no such object" says that there is none.
    no_file: type[OSError] = OSError if place is LOCAL else FileNotFoundError
    for name in HEAD_NAMES.values():
        with contextlib.suppress(no_file, FormatError):
            data = place.read(os.path.join(path, name), _MOST_HEAD_BYTES)
            # One of another layout is read through zarr-python.
            with contextlib.suppress(UnusualError):
                from_metadata(data)
            return True
    return False


def _read_head(path: str, place: Place) -> tuple[ZarrLayout, Vec3]:
    """Return the layout and the extent that the metadata of an array say."""
    return _understood(path, _head_bytes(path, place))


def _head_bytes(path: str, place: Place) -> bytes:
    try:
        return place.read(path, _MOST_HEAD_BYTES)
    except (FileNotFoundError, NotADirectoryError):
        raise _no_head(os.path.dirname(path)) from None
    except OSError as error:
        raise storage_error(error, path, "reading the metadata") from None


def _understood(path: str, data: bytes) -> tuple[ZarrLayout, Vec3]:
    try:
        return from_metadata(data)
    except FormatError as error:
        raise type(error)(f"{path} {error}.") from None


def _no_head(directory: str) -> MissingError:
    if not is_remote(directory) and not os.path.isdir(directory):
        return MissingError(f"{directory} is not a directory; a mag directory was expected.")
    return MissingError(
        f"{directory} has neither zarr.json nor .zarray, so it is no mag of a Zarr layer."
    )


def _to_bytes(said: object) -> bytes:
    return json.dumps(said, separators=(",", ":")).encode()


def _rounded(extent: Sequence[int], size: Vec3) -> Vec3:
    """Return an extent rounded up to whole files."""
    x, y, z = (-(-end // edge) * edge for end, edge in zip(extent, size, strict=True))
    return x, y, z


def _leaves(region: Region, extent: Vec3) -> bool:
    return any(axis and axis[-1] >= end for axis, end in zip(region, extent, strict=True))
