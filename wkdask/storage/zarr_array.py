"""Zarr arrays of any order of axes, codec or grid of chunks, which are read through zarr-python.

It is for what `zarr` does not read by itself; nothing is written to such arrays. Voxels come in the
order of every volume, `(c, x, y, z)`.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
from collections.abc import AsyncIterator, Iterable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wkdask.errors import (
    FormatError,
    MissingError,
    ReadOnlyError,
    WkdaskError,
    extra_error,
    storage_error,
)
from wkdask.geometry import BoundingBox, Vec3
from wkdask.grids import Region, region_of
from wkdask.storage.files import FileVolume
from wkdask.storage.header import DTYPES
from wkdask.storage.memory import new_array
from wkdask.storage.place import LOCAL, CheckedFile, Fetch, Place
from wkdask.storage.volume import FileNames, VoxelType
from wkdask.storage.zarr_layout import usual_layout

__all__ = ["ArrayLayout", "ArrayVolume"]

_HEADS = ("zarr.json", ".zarray")
_MOST_HEAD_BYTES = 2**24
_DEFAULT = {4: "cxyz", 3: "xyz"}
_NUMBER = "(0|[1-9][0-9]*)"
# Blosc tells its length here, but what is missing of it is read from beyond the chunk.
_BLOSC_LENGTH = slice(12, 16)


@dataclass(frozen=True, slots=True)
class ArrayLayout:
    """How an array is stored that zarr-python reads."""

    dtype: str
    """Name of the NumPy dtype of one channel."""
    num_channels: int
    """Values per voxel."""
    block_size: Vec3
    """Voxels per axis of what is decoded alone: an inner chunk, or a chunk."""
    file_size: Vec3
    """Voxels per axis of a file: a shard, or a chunk."""
    data_format: str
    """`"zarr3"` or `"zarr"`."""
    fill_value: float
    """What a voxel holds that was never written."""
    axes: str
    """The axes in their order, such as `"zyx"`; others than c, x, y and z have one position."""
    codec: str
    """What zarr calls the codecs."""
    keys: str
    """The name of a chunk, with a place for each number."""

    @property
    def voxel_type(self) -> VoxelType:
        """What a voxel holds."""
        return VoxelType(self.dtype, self.num_channels)

    @property
    def voxel_bytes(self) -> int:
        """Bytes of a voxel, all channels."""
        return np.dtype(self.dtype).itemsize * self.num_channels

    @property
    def write_size(self) -> Vec3:
        """Voxels per axis of a file, though nothing is written."""
        return self.file_size

    @property
    def write_unit(self) -> str:
        """What a box of `write_size` is called."""
        return "file"

    def stored_as(self, block_type: str | None) -> Any:
        """Return how a new mag of the same layer is stored: as WEBKNOSSOS does."""
        return usual_layout(self.data_format, self.dtype, self.num_channels, codec=block_type)

    def with_edges(self, block_edge: int | None, blocks_per_file_edge: int | None) -> Any:
        """Return how a new mag of the same layer is stored, with these edges or the usual ones."""
        return usual_layout(
            self.data_format, self.dtype, self.num_channels, block_edge or 32, blocks_per_file_edge
        )

    def difference_to(self, demanded: object) -> str:
        """Return in words what differs from another layout; an empty text if nothing does."""
        return "" if self == demanded else f"{self} instead of {demanded}"

    def describe(self) -> dict[str, Any]:
        """Return what the format calls its parts, as plain values."""
        return {
            "block_type": self.codec,
            "block_edge": list(self.block_size),
            "file_edge": list(self.file_size),
            "axes": self.axes,
        }


@dataclass(frozen=True, slots=True)
class ArrayVolume(FileVolume):
    """A zarr array that is read and not written. Making one touches no disk."""

    layout: ArrayLayout
    """How the voxels are stored."""
    shape: Vec3 = field(default=(0, 0, 0), compare=False, kw_only=True)
    """Voxels `(x, y, z)` of the array when it was opened."""

    @classmethod
    def open(
        cls, path: str | os.PathLike[str], place: Place = LOCAL, axes: str | None = None
    ) -> ArrayVolume:
        """Return the volume of an array.

        Parameters
        ----------
        path, place
            Where it is.
        axes
            The order of its axes, such as `"zyx"`; None is what its metadata say, or
            `(c, x, y, z)`.

        Raises
        ------
        MissingError
            If there is no array.
        FormatError
            If zarr can't read it, or it is no volume.
        """
        directory = place.absolute(os.fspath(path))
        array = _array(directory, place, _head(directory, place))
        layout, shape = _understood(directory, array, axes)
        return cls(directory, layout, shape=shape, place=place)

    @property
    def names(self) -> FileNames:
        """What the files are called."""
        pattern = re.escape(self.layout.keys).replace(r"\{\}", _NUMBER)
        x, y, z = (self.layout.axes.index(axis) for axis in "xyz")
        head = _HEADS[self.layout.data_format == "zarr"]
        return FileNames(head, tuple(pattern.split("/")), (x, y, z), (".zattrs",))

    def file_path(self, cell: Vec3) -> str:
        """Return where the chunk of a cell `(x, y, z)` lies, that of the first channel."""
        at = dict(zip("xyz", cell, strict=True))
        key = self.layout.keys.format(*(at.get(axis, 0) for axis in self.layout.axes))
        return os.path.join(self.path, key)

    def check(self) -> None:
        """Raise unless the metadata still say what this volume's layout says."""
        self._opened()

    def is_missing(self, box: BoundingBox) -> bool:
        """Return False: each channel may have files of its own."""
        return False

    def box_on_disk(self) -> BoundingBox:
        """Return the box of the array."""
        return BoundingBox((0, 0, 0), self.shape)

    def read(self, region: Region) -> NDArray[np.generic]:
        """Return the voxels of a region; see `Volume.read`."""
        layout = self.layout
        array = self._opened()
        out, _ = new_array((layout.num_channels, *map(len, region)), layout.dtype)
        ends = dict(zip(layout.axes, array.shape, strict=True))
        inside = {
            axis: wanted[: sum(at < ends[axis] for at in wanted)]
            for axis, wanted in zip("xyz", region, strict=True)
        }
        if any(len(inside[a]) < len(wanted) for a, wanted in zip("xyz", region, strict=True)):
            out[...] = layout.fill_value
        if all(inside.values()):
            inside["c"] = range(layout.num_channels)
            place = tuple(_slice(inside[a]) if a in inside else 0 for a in layout.axes)
            found = self._read(array, place)
            order = [a for a in layout.axes if a in inside]
            voxels = found.transpose([order.index(a) for a in "cxyz" if a in order])
            target = (slice(None), *(slice(len(inside[a])) for a in "xyz"))
            out[target] = voxels if "c" in order else voxels[None]
        # Of an array that is gone by now, all chunks would be missing.
        self.check()
        return out

    def check_file(self, cell: Vec3, *, decode: bool = False) -> int:
        """Raise unless a chunk can be read; see `Volume.check_file`."""
        if decode:
            self.read(region_of(self.file_box(cell)))
        return 0

    def _read(self, array: Any, place: tuple[int | slice, ...]) -> NDArray[Any]:
        try:
            found: NDArray[Any] = np.asarray(array[place])
        except WkdaskError:
            raise
        except Exception as error:
            raise FormatError(
                f"{self.path} can't be read at {place} ({error!r}). It is not read as zeros: "
                "restore it."
            ) from None
        return found

    def _opened(self) -> Any:
        array = _array(self.path, self.place, _head(self.path, self.place))
        found, _ = _understood(self.path, array, self.layout.axes)
        if found != self.layout:
            raise FormatError(
                f"{self.path} has {found.difference_to(self.layout)}, which is what the view was "
                "made with. Open it again."
            )
        return array

    @property
    def can_be_written(self) -> bool:
        """No."""
        return False

    # --- what is not done -------------------------------------------------------------------

    def _prepare(self, box: BoundingBox) -> None:
        raise ReadOnlyError(
            f"{self.path} is stored as {self.layout.codec} with the axes {self.layout.axes}, which "
            "wkdask reads and does not write. Copy the layer first, wkdask.copy, and write to the "
            "copy."
        )

    @property
    def head(self) -> tuple[int, int]:
        """Nothing, since zarr opens the files."""
        return 0, 0

    def checked(self, descriptor: int, path: str, fetch: Fetch) -> CheckedFile:
        """Never called, since zarr opens the files."""
        raise AssertionError(path)

    @property
    def _format(self) -> Any:
        raise AssertionError(self.path)

    def _missing_head(self) -> Exception:
        return _no_array(self.path)


def _slice(wanted: range) -> slice:
    return slice(wanted.start, wanted[-1] + 1, wanted.step)


def _head(directory: str, place: Place) -> tuple[str, bytes]:
    """Return the name and the content of the metadata."""
    for name in _HEADS:
        path = os.path.join(directory, name)
        try:
            return name, place.read(path, _MOST_HEAD_BYTES)
        except FileNotFoundError:
            continue
        except OSError as error:
            raise storage_error(error, path, "reading the metadata") from None
    raise _no_array(directory)


def _no_array(directory: str) -> MissingError:
    return MissingError(f"{directory} has neither zarr.json nor .zarray, so it is no zarr array.")


def _understood(directory: str, array: Any, axes: str | None) -> tuple[ArrayLayout, Vec3]:
    """Return the layout and the shape `(x, y, z)` of an array."""
    named = _named(array)
    if axes and named and _spatial(axes) != _spatial(named):
        raise FormatError(
            f"{directory} names its axes {tuple(named)}, but the dataset says {tuple(axes)}. "
            "Correct the one that is wrong."
        )
    names = axes or named or _DEFAULT.get(array.ndim, "")
    sizes = dict(zip(names, array.shape, strict=False))
    lengths_fit = len(names) == array.ndim == len(sizes) and set("xyz") <= set(names)
    if not lengths_fit or any(sizes[a] != 1 for a in set(names) - set("cxyz")):
        raise FormatError(
            f"{directory} has the shape {array.shape} and the axes {tuple(names) or 'unknown'}, "
            "but wkdask reads x, y, z and channels, and other axes of one position only."
        )
    dtype = array.dtype.name if array.dtype.kind in "uif" else str(array.dtype)
    if dtype not in DTYPES:
        raise FormatError(f"{directory} holds {dtype}, but wkdask reads {', '.join(DTYPES)}.")
    files = dict(zip(names, array.shards or array.chunks, strict=True))
    blocks = dict(zip(names, array.chunks, strict=True))
    metadata = array.metadata
    key = metadata.encode_chunk_key(tuple(range(9000, 9000 + array.ndim)))
    layout = ArrayLayout(
        dtype, sizes.get("c", 1), _vec3(blocks), _vec3(files),
        "zarr3" if metadata.zarr_format == 3 else "zarr",
        0 if metadata.fill_value is None else np.asarray(metadata.fill_value).item(),
        names, _codecs(array), re.sub(r"90\d\d", "{}", key),
    )  # fmt: skip
    return layout, _vec3(sizes)


def _named(array: Any) -> str | None:
    """Return the axes that the metadata name, if they do."""
    names = getattr(array.metadata, "dimension_names", None)
    if not names or any(not isinstance(n, str) or len(n) != 1 for n in names):
        return None
    return "".join(names).lower()


def _spatial(axes: str) -> dict[str, int]:
    return {axis: at for at, axis in enumerate(axes) if axis in "cxyz"}


def _codecs(array: Any) -> str:
    names = [type(each).__name__.removesuffix("Codec").lower() for each in array.compressors]
    return ", ".join(names) or "raw"


def _vec3(lengths: Mapping[str, int]) -> Vec3:
    return lengths["x"], lengths["y"], lengths["z"]


# --- zarr ---------------------------------------------------------------------------------------


def _array(directory: str, place: Place, head: tuple[str, bytes]) -> Any:
    """Return the array of zarr-python; one with the same metadata is made once."""
    key = place.credentials.text() if place.credentials else ""
    return _arrays(directory, key, head, _Holder(place))


class _Holder:
    """Carries a place to a cached function, whose key it is no part of."""

    def __init__(self, place: Place) -> None:
        self.place = place

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Holder)

    def __hash__(self) -> int:
        return 0


@lru_cache(maxsize=64)
def _arrays(directory: str, key: str, head: tuple[str, bytes], holder: _Holder) -> Any:
    try:
        import zarr
    except ImportError:
        raise extra_error("zarr", "zarr") from None
    name, data = head
    try:
        has_length = _ends_with_blosc(json.loads(data))
        store = _store(directory, holder.place, has_length=has_length)
        return zarr.open_array(store, mode="r", zarr_format=3 if name == "zarr.json" else 2)
    except WkdaskError:
        raise
    except Exception as error:
        raise FormatError(
            f"{os.path.join(directory, name)} can't be understood by zarr ({error!r})."
        ) from None


def _ends_with_blosc(said: Any) -> bool:
    """Return whether the bytes of a chunk are those of Blosc."""
    last = said.get("compressor") if said.get("zarr_format") == 2 else said["codecs"][-1]
    return isinstance(last, dict) and "blosc" in (last.get("id"), last.get("name"))


def _store(directory: str, place: Place, *, has_length: bool) -> Any:
    """Return a store of zarr that reads files as volumes do: what is not sure is an error."""
    from zarr.abc.store import (
        OffsetByteRequest,
        RangeByteRequest,
        Store,
        SuffixByteRequest,
    )

    class PlaceStore(Store):
        supports_writes = False
        supports_deletes = False
        supports_listing = False

        def __init__(self) -> None:
            super().__init__(read_only=True)

        def __eq__(self, other: object) -> bool:
            return self is other

        async def get(self, key: str, prototype: Any, byte_range: Any = None) -> Any:
            path = os.path.join(directory, key)
            start, count = 0, None
            if isinstance(byte_range, RangeByteRequest):
                start, count = byte_range.start, byte_range.end - byte_range.start
            elif isinstance(byte_range, SuffixByteRequest):
                start, count = -1, byte_range.suffix
            elif isinstance(byte_range, OffsetByteRequest):
                start = byte_range.offset
            try:
                data = await asyncio.to_thread(place.part, path, start, count)
            except FileNotFoundError:
                return None
            if os.path.basename(key) not in (*_HEADS, ".zattrs"):
                _check_whole(path, data, count, has_length=has_length and byte_range is None)
            return prototype.buffer.from_bytes(data)

        async def get_partial_values(self, prototype: Any, key_ranges: Iterable[Any]) -> list[Any]:
            return list(
                await asyncio.gather(*(self.get(k, prototype, each) for k, each in key_ranges))
            )

        async def exists(self, key: str) -> bool:
            path = os.path.join(directory, key)
            return await asyncio.to_thread(place.size_bytes, path) is not None

        async def set(self, key: str, value: Any) -> None:
            raise ReadOnlyError(f"{directory} is read only.")

        async def delete(self, key: str) -> None:
            raise ReadOnlyError(f"{directory} is read only.")

        async def list(self) -> AsyncIterator[str]:
            return
            yield

        async def list_prefix(self, prefix: str) -> AsyncIterator[str]:
            return
            yield

        async def list_dir(self, prefix: str) -> AsyncIterator[str]:
            return
            yield

    return PlaceStore()


def _check_whole(path: str, data: bytes, count: int | None, *, has_length: bool) -> None:
    """Raise unless all of a chunk came that was asked for, and as much as Blosc says."""
    is_cut = not data or (count is not None and len(data) < count)
    if has_length and not is_cut:
        is_cut = len(data) < 16 or int.from_bytes(data[_BLOSC_LENGTH], "little") != len(data)
    if is_cut:
        raise FormatError(
            f"{path} is cut or broken: {len(data)} bytes came. It is not read as zeros: restore "
            "it, or delete it to make it zeros."
        )
