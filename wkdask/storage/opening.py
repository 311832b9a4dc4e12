"""Volumes by their path or layout: which implementation of `Volume` each one needs."""

from __future__ import annotations

import os

from wkdask.storage.header import VolumeHeader
from wkdask.storage.volume import Layout, Volume
from wkdask.storage.wkw import HEADER_NAME, WkwVolume

__all__ = ["create_volume", "is_volume", "open_volume", "volume_at"]


def open_volume(path: str | os.PathLike[str]) -> Volume:
    """Return the volume at a path, after reading how it is stored.

    Examples
    --------
    >>> volume = create_volume("tissue/1", VolumeHeader("uint8", block_edge=8))
    >>> open_volume("tissue/1") == volume
    True
    """
    return WkwVolume.open(path)


def create_volume(path: str | os.PathLike[str], layout: Layout) -> Volume:
    """Make an empty volume."""
    return WkwVolume.create(path, _header(layout))


def volume_at(path: str | os.PathLike[str], layout: Layout) -> Volume:
    """Return the volume of a layout at a path, where it may not have been made yet."""
    return WkwVolume(os.fspath(path), _header(layout))


def is_volume(path: str | os.PathLike[str]) -> bool:
    """Return whether a volume lies at a path."""
    return os.path.isfile(os.path.join(path, HEADER_NAME))


def _header(layout: Layout) -> VolumeHeader:
    if not isinstance(layout, VolumeHeader):
        raise TypeError(f"the layout is {layout!r}, but volumes are made as WKW only")
    return layout
