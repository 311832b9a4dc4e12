"""Volumes by their path or layout: which implementation of `Volume` each one needs."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from wkdask.errors import MissingError
from wkdask.geometry import Vec3
from wkdask.storage.header import VolumeHeader
from wkdask.storage.place import LOCAL, Place
from wkdask.storage.remote import place_of
from wkdask.storage.volume import Layout, Volume
from wkdask.storage.wkw import HEADER_NAME, WkwVolume
from wkdask.storage.zarr import HEAD_NAMES, ZarrVolume, is_array
from wkdask.storage.zarr_array import ArrayVolume
from wkdask.storage.zarr_layout import UnusualError, ZarrLayout, usual_layout

__all__ = ["HEAD_FILES", "create_volume", "is_volume", "new_layout", "open_volume", "volume_at"]

HEAD_FILES = (HEADER_NAME, *HEAD_NAMES.values())
"""The files that make a directory a mag, of all formats."""


def open_volume(
    path: str | os.PathLike[str],
    storage_options: Mapping[str, Any] | None = None,
    data_format: str | None = None,
    axes: str | None = None,
) -> Volume:
    """Return the volume at a path, after reading how it is stored.

    Parameters
    ----------
    path
        A directory of this machine, or an address.
    storage_options
        How an address is reached; see `remote.place_of`.
    data_format
        Which format is expected, which saves a request; None is any.
    axes
        The order of the axes of a zarr array, such as `"zyx"`; None is what it says itself.

    Examples
    --------
    >>> volume = create_volume("tissue/1", VolumeHeader("uint8", block_edge=8))
    >>> open_volume("tissue/1") == volume
    True
    """
    where, place = place_of(path, storage_options)
    open_wkw = partial(WkwVolume.open, where, place)
    open_zarr = partial(_open_zarr, where, place, axes, data_format)
    if place is LOCAL:
        is_wkw = os.path.lexists(os.path.join(where, HEADER_NAME))
        is_there = (os.path.lexists(os.path.join(where, name)) for name in HEAD_NAMES.values())
        return open_zarr() if not is_wkw and any(is_there) else open_wkw()
    kinds: list[Callable[[], Volume]] = [open_wkw, open_zarr]
    if data_format in HEAD_NAMES:
        kinds.reverse()
    for open_ in kinds:
        with contextlib.suppress(MissingError):
            return open_()
    raise MissingError(
        f"{where} has none of {', '.join(HEAD_FILES)}, so it is no mag. Open an address such as "
        "https://host/dataset/color/1, or a dataset with wkdask.open."
    )


def _open_zarr(where: str, place: Place, axes: str | None, data_format: str | None) -> Volume:
    """Return a zarr array by our own reader, or by zarr-python where its layout is another."""
    if axes in (None, "cxyz"):
        with contextlib.suppress(UnusualError):
            return ZarrVolume.open(where, place, data_format)
    return ArrayVolume.open(where, place, axes)


def create_volume(
    path: str | os.PathLike[str],
    layout: Layout,
    extent: Vec3 = (0, 0, 0),
    storage_options: Mapping[str, Any] | None = None,
) -> Volume:
    """Make an empty volume; of a zarr array the extent is known from the beginning."""
    where, place = place_of(path, storage_options)
    if isinstance(layout, ZarrLayout):
        return ZarrVolume.create(where, layout, extent, place)
    return WkwVolume.create(where, _header(layout), place)


def volume_at(
    path: str | os.PathLike[str],
    layout: Layout,
    storage_options: Mapping[str, Any] | None = None,
) -> Volume:
    """Return the volume of a layout at a path, where it may not have been made yet."""
    where, place = place_of(path, storage_options)
    if isinstance(layout, ZarrLayout):
        return ZarrVolume(where, layout, place=place)
    return WkwVolume(where, _header(layout), place=place)


def is_volume(
    path: str | os.PathLike[str], storage_options: Mapping[str, Any] | None = None
) -> bool:
    """Return whether a volume lies at a path."""
    where, place = place_of(path, storage_options)
    if place is LOCAL:
        return os.path.isfile(os.path.join(where, HEADER_NAME)) or is_array(where)
    return place.size_bytes(os.path.join(where, HEADER_NAME)) is not None or is_array(where, place)


def new_layout(
    data_format: str,
    dtype: str,
    num_channels: int,
    block_edge: int = 32,
    blocks_per_file_edge: int | None = None,
    block_type: str | None = None,
) -> Layout:
    """Return how a new volume of a format is stored.

    Parameters
    ----------
    data_format
        `"wkw"`, `"zarr3"` or `"zarr"`.
    dtype, num_channels
        What a voxel holds.
    block_edge
        Voxels per edge of a block.
    blocks_per_file_edge
        Blocks per edge of a file; None is 32, or 1 for `"zarr"`, which has no shards.
    block_type
        How blocks are stored; None is `"zstd"` for zarr, and must be given for WKW.
    """
    if data_format == "wkw":
        return VolumeHeader(
            dtype, num_channels, block_edge,
            32 if blocks_per_file_edge is None else blocks_per_file_edge,
            block_type or "lz4hc",  # type: ignore[arg-type]
        )  # fmt: skip
    return usual_layout(
        data_format, dtype, num_channels, block_edge, blocks_per_file_edge, block_type
    )


def _header(layout: Layout) -> VolumeHeader:
    if not isinstance(layout, VolumeHeader):
        raise TypeError(f"the layout is {layout!r}, but volumes are made as WKW or zarr only")
    return layout
