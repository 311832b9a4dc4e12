"""TIFF stacks as lazy images: slices in many files, or pages of one.

A slice is read by the tasks whose files it crosses, each time only the strips or tiles that matter.
"""

from __future__ import annotations

import glob
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any

import numpy as np

from wkdask.errors import ArgumentError, FormatError, MissingError, WkdaskError
from wkdask.formats.image import Image, Level, stored_dtype, time_point, version_of
from wkdask.formats.names import ENDINGS, Gaps, in_order, listed
from wkdask.formats.pages import (
    Contents,
    Layout,
    Place,
    checked_page,
    contents,
    decodes_to,
    grid,
    opened,
)
from wkdask.geometry import Mag, absolute
from wkdask.storage.volume import Voxels

__all__ = ["TiffStack", "is_tiff", "read"]

# What the axes of tifffile mean.
_MEANING = {"Z": "z", "I": "z", "Q": "z", "C": "c", "S": "c", "T": "t"}

_ZEROS = Place("")


@dataclass(frozen=True, slots=True)
class TiffStack:
    """Slices of one shape, indexed as `(c, x, y, z)`."""

    layout: Layout
    """Of every page."""
    places: tuple[Place, ...]
    """Of every page, all slices of a channel before those of the next."""
    channel_pages: int = 1
    """Channels that have pages of their own."""
    version: tuple[int, ...] = field(default=())
    """Differs after a file was changed."""

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """Positions per axis, `(c, x, y, z)`."""
        layout, pages = self.layout, len(self.places) // self.channel_pages
        channels = self.channel_pages * layout.samples
        return channels, layout.width, layout.height, layout.depth * pages

    @property
    def dtype(self) -> np.dtype[np.generic]:
        """Of one channel."""
        return stored_dtype(self.layout.dtype)

    @property
    def ndim(self) -> int:
        """Always 4."""
        return 4

    def __getitem__(self, index: tuple[slice, ...]) -> Voxels:
        """Read a part, given by four slices of step 1."""
        cs, xs, ys, zs = (
            range(*part.indices(size)) for part, size in zip(index, self.shape, strict=True)
        )
        out: Voxels = np.zeros((len(cs), len(xs), len(ys), len(zs)), self.dtype, order="F")
        if not out.size:
            return out
        for path, pages in groupby(self._pages(cs, zs), key=lambda each: each[0].path):
            if path:
                with opened(path) as file:
                    for place, channel, z in pages:
                        part = _Part(out, cs, xs, ys, zs, channel, z)
                        self._read_page(file, place, part)
        return out

    def _pages(self, cs: range, zs: range) -> Iterator[tuple[Place, int, int]]:
        """Yield the pages of a part, each with its first channel and slice."""
        depth, samples = self.layout.depth, self.layout.samples
        deep = len(self.places) // self.channel_pages
        for z in range(zs[0] // depth, zs[-1] // depth + 1):
            for c in range(cs[0] // samples, cs[-1] // samples + 1):
                yield self.places[c * deep + z], c * samples, z * depth

    def _read_page(self, file: Any, place: Place, part: _Part) -> None:
        page, layout = checked_page(file, place)
        if layout != self.layout:
            raise FormatError(
                f"slice {part.first_z} in {place.path} is {layout}, unlike the first: {self.layout}"
            )
        try:
            part.fill(page, place.shift)
        except WkdaskError:
            raise
        except Exception as error:
            # Whatever a decoder says of broken bytes.
            raise FormatError(
                f"slice {part.first_z} in {place.path} can't be decoded ({error!r})."
            ) from None

    def __dask_tokenize__(self) -> tuple[object, ...]:
        return (str(self.layout), self.places, self.channel_pages, self.version)


@dataclass(frozen=True, slots=True)
class _Part:
    """What is wanted of a page, and where it goes."""

    out: Voxels
    cs: range
    xs: range
    ys: range
    zs: range
    first_channel: int
    first_z: int

    def fill(self, page: Any, shift: int) -> None:
        """Read a page by the strips or tiles that are touched."""
        handle = page.parent.filehandle
        xs, ys = self.xs, self.ys
        zs = range(max(0, self.zs[0] - self.first_z), self.zs[-1] + 1 - self.first_z)
        is_checked = False
        for index in _segments(page, xs, ys, zs):
            offset, count = page.dataoffsets[index] + shift, page.databytecounts[index]
            data = None
            if count:
                handle.seek(offset)
                data = handle.read(count)
            decoded, start, shape = page.decode(
                data, index, jpegtables=page.jpegtables, jpegheader=page.jpegheader
            )
            if decoded is None:
                decoded = np.full(shape, page.nodata, page.dtype)
            elif not is_checked:
                is_checked = True
                if not decodes_to(page, data or b"", shape):
                    raise ValueError("there are more voxels than the page has")
            self._place(decoded, start)

    def _place(self, decoded: Voxels, start: tuple[int, ...]) -> None:
        """Copy what is wanted of a strip or tile, `(z, y, x, c)`."""
        sample, z, y, x, _ = start
        origin = (z + self.first_z, y, x, sample + self.first_channel)
        wanted = (self.zs, self.ys, self.xs, self.cs)
        into, taken = [], []
        for begin, size, axis in zip(origin, decoded.shape, wanted, strict=True):
            low, high = max(begin, axis[0]), min(begin + size, axis[-1] + 1)
            if low >= high:
                return
            into.append(slice(low - axis[0], high - axis[0]))
            taken.append(slice(low - begin, high - begin))
        self.out[tuple(into[::-1])] = decoded[tuple(taken)].transpose(3, 2, 1, 0)


def is_tiff(path: str | os.PathLike[str]) -> bool:
    """Return whether a path is a TIFF file, a directory with some, or a pattern for some."""
    path = os.fspath(path)
    if os.path.isdir(path):
        return bool(listed(path))
    return path.lower().endswith(ENDINGS) or (glob.has_magic(path) and not os.path.exists(path))


def read(
    path: str | os.PathLike[str],
    *,
    axes: str | None = None,
    t: int | None = None,
    gaps: Gaps | None = None,
) -> Image:
    """Return a stack of TIFF slices as an image of mag 1; voxels are read when they are needed.

    Every page is looked at now: what is cut off, or no stack, is told before anything is made.

    Parameters
    ----------
    path
        A directory of 2-D slices, a pattern for such files (`"slices/*.tif"`), or one file with a
        slice per page. Files are taken in the order of the numbers in their names. Colours of a
        pixel become channels.
    axes
        What the axes are, slices or pages first, such as `"zyx"` or `"zcyx"`; None is what files
        say themselves.
    t
        Which time point, if there are several.
    gaps
        What to do where numbers of names are missing: `"zeros"` or `"close"`; None is an error.

    Raises
    ------
    MissingError
        If there is no such file.
    FormatError
        If files are no TIFF, not whole, or no stack.
    ArgumentError
        If `axes` or `t` do not fit.
    MissingExtraError
        If tifffile is not installed.
    """
    found = listed(absolute(path))
    if not found:
        raise MissingError(f"there is no TIFF file at {os.fspath(path)}.")
    directories = sorted({os.path.dirname(name) for name in found})
    if len(directories) > 1:
        raise FormatError(
            f"{os.fspath(path)} leads to files in {len(directories)} directories, not in one."
        )
    whole = contents(found[0]) if len(found) == 1 else _of_files(found, axes, t, gaps)
    if isinstance(whole, Contents):
        channel_pages, places = _arranged(found[0], whole, axes, t)
        layout = whole.layout
    else:
        channel_pages, places, layout = whole
    stack = TiffStack(layout, places, channel_pages, _version(places))
    name = os.path.basename(directories[0] if len(found) > 1 else os.path.splitext(found[0])[0])
    return Image((Level(Mag(1), (0, 0, 0), stack),), name=name.removesuffix(".ome"))


def _version(places: tuple[Place, ...]) -> tuple[int, ...]:
    found = [version_of(path) for path in sorted({place.path for place in places} - {""})]
    return (hash(tuple(found)), len(found)) if len(found) > 1 else found[0]


def _of_files(
    paths: list[str], axes: str | None, t: int | None, gaps: Gaps | None
) -> Contents | tuple[int, tuple[Place, ...], Layout]:
    """Return the slices of files, or what one of them says of all."""
    if axes is not None and axes[:1] != "z":
        raise ArgumentError(
            f'axes are {axes!r}, but files are slices: z comes first, such as "zyx" or "zyxc".'
        )
    ordered: list[tuple[Place, ...]] = []
    layout: Layout | None = None
    channel_pages = 1
    for number, path in enumerate(in_order(paths, gaps)):
        if path is None:
            ordered.append((_ZEROS,) * channel_pages)
            continue
        found = contents(path, is_slice=True)
        files = {place.path for place in found.places}
        if files == set(paths):
            return found
        if len(files) > 1:
            raise FormatError(
                f"{path} is an image in {len(files)} files, but here are {len(paths)}: convert it "
                "by its name."
            )
        channels, places = _arranged(path, found, axes and axes[1:], t)
        if len(places) != channels or found.layout.depth > 1:
            raise FormatError(
                f"{path} has {len(places) // channels * found.layout.depth} slices; convert stacks "
                "one by one."
            )
        if layout is not None and (found.layout, channels) != (layout, channel_pages):
            raise FormatError(f"slice {number} in {path} is {found}, unlike the first: {layout}.")
        layout, channel_pages = found.layout, channels
        ordered.append(places)
    assert layout is not None
    by_channel = zip(*ordered, strict=True)
    return channel_pages, tuple(place for pages in by_channel for place in pages), layout


def _arranged(
    path: str, found: Contents, axes: str | None, t: int | None
) -> tuple[int, tuple[Place, ...]]:
    """Return how many channels have pages of their own, and the pages in the order of a stack."""
    sizes = dict.fromkeys("tcz", 1)
    order: list[str] = []
    for axis, size in zip(_letters(path, found, axes), found.sizes, strict=True):
        if size > 1:
            is_double = axis in order or (axis == "c" and found.layout.samples > 1)
            if axis not in sizes or is_double:
                raise _no_stack(path, found)
            sizes[axis] = size
            order.append(axis)
    point = time_point(sizes["t"], t, path)
    order = [axis for axis in "tcz" if sizes[axis] == 1] + order
    numbers = np.arange(len(found.places)).reshape([sizes[axis] for axis in order])
    chosen = numbers.transpose([order.index(axis) for axis in "tcz"])[point]
    return sizes["c"], tuple(found.places[number] for number in chosen.ravel())


def _letters(path: str, found: Contents, axes: str | None) -> list[str]:
    """Return what the axes of pages are: as the caller says, or the file."""
    if axes is None:
        return [_MEANING.get(axis, axis) for axis in found.axes]
    long, inner = [n for n in found.sizes if n > 1], found.layout.page_axes
    mine, pages = axes[: max(0, len(axes) - len(inner))], axes[-len(inner) :]
    is_good = pages == inner and set(mine) <= set("tcz") and len(set(mine)) == len(mine)
    if is_good and len(mine) == len(found.sizes):
        return list(mine)
    if is_good and (len(mine) == len(long) or not long):
        letters = iter(mine)
        return [next(letters) if size > 1 else "" for size in found.sizes]
    raise ArgumentError(
        f"axes are {axes!r}, but {path} holds {found}: pages are {inner!r}, after {len(long)} "
        "different ones of t, c and z."
    )


def _no_stack(path: str, found: Contents) -> FormatError:
    return FormatError(
        f"{path} holds {found} with the axes {found.axes}, which are no stack of slices. Say by "
        'axes (--axes) what they are, such as "zyx" or "zcyx".'
    )


def _segments(page: Any, xs: range, ys: range, zs: range) -> Iterator[int]:
    """Yield the numbers of the strips or tiles that a part touches, for all samples."""
    planes, deep, down, across = grid(page)
    depth, height, width = 1, min(page.rowsperstrip, page.imagelength), page.imagewidth
    if page.is_tiled:
        depth, height, width = page.tiledepth, page.tilelength, page.tilewidth
    last = min(zs[-1], page.imagedepth - 1)
    for plane in range(planes):
        for z in range(zs[0] // depth, last // depth + 1):
            for y in range(ys[0] // height, ys[-1] // height + 1):
                for x in range(xs[0] // width, xs[-1] // width + 1):
                    yield ((plane * deep + z) * down + y) * across + x
