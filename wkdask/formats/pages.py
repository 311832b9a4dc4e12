"""The pages of a TIFF file, and what the file says of them; both must agree. It knows no stacks.

tifffile reads what it can of a broken file and logs the rest. So its answers are compared with the
directories, with the places of all voxels in the file, and with each other.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from wkdask.errors import FormatError, MissingError, WkdaskError, extra_error, storage_error
from wkdask.formats.ifd import Directory, directories, orphan_marks

__all__ = [
    "Contents",
    "Layout",
    "Place",
    "checked_page",
    "contents",
    "decodes_to",
    "grid",
    "opened",
]

_UNCOMPRESSED = 1
# Decoders that end where the voxels should end, whether or not there is more.
_CUTTING = (5, 34925)
# LZW, deflate and PackBits, of which a byte becomes 1400, 1032 and 64 bytes at most.
_LITTLE = (5, 8, 32946, 32773)
# Of pages of one bit.
_FAX = (2, 3, 4)
_OFFSETS = (273, 324)
_OME_TYPES = {"float": "float32", "double": "float64", "bit": "bool"}


class Place(NamedTuple):
    """Where a page lies."""

    path: str
    """The file; empty for a page of zeros."""
    offset: int = 0
    """Where its directory begins."""
    shift: int = 0
    """Bytes from the voxels that the directory tells to those of the page."""


@dataclass(frozen=True, slots=True)
class Layout:
    """What pages of one stack have in common."""

    width: int
    height: int
    depth: int
    """Slices in a page; more than one if its tiles are volumes."""
    samples: int
    """Values per voxel that a page holds."""
    dtype: np.dtype[np.generic]
    """Of one value, in the machine's byte order."""
    bits: int | tuple[int, ...]
    """Of one value in the file."""
    page_axes: str
    """The axes of a page, such as `"yx"` or `"yxc"`."""

    @property
    def page_size(self) -> int:
        """Values in a page."""
        return self.width * self.height * self.depth * self.samples

    def __str__(self) -> str:
        size = [self.depth] * (self.depth > 1) + [self.height, self.width]
        return f"{'x'.join(map(str, size))} of {self.dtype}" + (
            f" with {self.samples} channels" if self.samples > 1 else ""
        )


@dataclass(frozen=True, slots=True)
class Contents:
    """Pages that are one image."""

    axes: str
    """Of the pages among each other, a letter of tifffile for each."""
    sizes: tuple[int, ...]
    """Positions on each of them."""
    layout: Layout
    """Of every page."""
    places: tuple[Place, ...]
    """Of every page, the last axis being the fastest."""

    def __str__(self) -> str:
        axes = zip(self.sizes, self.axes, strict=True)
        return "".join(f"{n} {axis} x " for n, axis in axes if n > 1) + str(self.layout)


def contents(path: str, *, is_slice: bool = False) -> Contents:
    """Return what a file says that it holds, if all of it is there.

    Parameters
    ----------
    path
        The file. What it says of other files of the same image counts too.
    is_slice
        Whether it may be a part of an image.
    """
    _tifffile()
    main, below = directories(path)
    with opened(path) as file:
        try:
            series = list(file.series)
            pages = _checked_pages(file, path, main, below, series)
            found = _Claims(file, path, pages, len(main) == 1).agreed(series, is_slice)
            for other in {place.path for place in found.places} - {path}:
                _check_part(other, found)
            return found
        except WkdaskError:
            raise
        except Exception as error:
            # Whatever is made of broken bytes.
            raise FormatError(f"{path} holds no images that can be read ({error!r}).") from None


def _check_part(path: str, whole: Contents) -> None:
    """Raise unless another file of an image has its pages and no others."""
    main, below = directories(path)
    with opened(path) as file:
        pages = _checked_pages(file, path, main, below, ())
    used = {place.offset for place in whole.places if place.path == path}
    if used != set(pages) or set(pages.values()) != {whole.layout}:
        seen = ", ".join(sorted(set(map(str, pages.values()))))
        raise FormatError(
            f"{path} has {len(pages)} pages ({seen}), of which the image has {len(used)} of "
            f"{whole.layout}. It belongs to another one, or is not all of the file."
        )


def opened(path: str) -> Any:
    """Return a file as tifffile opens it."""
    tifffile = _tifffile()
    try:
        return tifffile.TiffFile(path)
    except FileNotFoundError:
        raise MissingError(f"{path} is gone.") from None
    except OSError as error:
        raise storage_error(error, path, "opening the slice") from None
    except Exception as error:
        # Whatever is made of broken bytes.
        raise FormatError(f"{path} is no TIFF file ({error}).") from None


def _tifffile() -> Any:
    try:
        import tifffile
    except ImportError:
        raise extra_error("tifffile", "tiff") from None
    return tifffile


def checked_page(file: Any, place: Place) -> tuple[Any, Layout]:
    """Return a page of an open file, and its layout, if all voxels lie in the file."""
    page = _page(file, place)
    _extents(page, place.path)
    return page, _layout(page, place.path)


def _page(file: Any, place: Place) -> Any:
    try:
        file.filehandle.seek(place.offset)
        return _tifffile().TiffPage(file, index=0)
    except Exception as error:
        raise FormatError(
            f"{place.path} has no page that can be read at byte {place.offset} ({error!r})."
        ) from None


def _layout(page: Any, path: str) -> Layout:
    if page.dtype is None or 0 in page.shape or not page.shape:
        raise FormatError(
            f"{path} has a page of {page.shape} values of {page.bitspersample} bits, which NumPy "
            "lacks. Save it with 8, 16, 32 or 64 bits."
        )
    if page.compression in _FAX and page.bitspersample != 1:
        raise FormatError(f"{path} has a page of {page.bitspersample} bits, compressed as if one.")
    return Layout(
        page.imagewidth,
        page.imagelength,
        page.imagedepth,
        page.samplesperpixel,
        np.dtype(page.dtype).newbyteorder("="),
        page.bitspersample,
        page.axes.lower().replace("s", "c"),
    )


# --- voxels in the file --------------------------------------------------------------------------


def _checked_pages(
    file: Any,
    path: str,
    main: Sequence[Directory],
    below: Sequence[Directory],
    series: Sequence[Any],
) -> dict[int, Layout]:
    """Return the layouts of pages by their offsets, without smaller images of them."""
    pages = [_page(file, Place(path, each.offset)) for each in (*main, *below)]
    _check_order(path, main)
    extents = [_extents(page, path) for page in pages]
    is_one = len(main) == 1 and series and series[0].kind != "ome"
    if is_one and series[0].size > pages[0].size:
        extents[0] = _contiguous(path, pages[0], series[0])
    is_alone = len(pages) == 1 and pages[0].compression == _UNCOMPRESSED
    more = max(pages[0].nbytes, 16) if is_alone else 2**63
    _check_places(path, (*main, *below), np.concatenate(extents), more)
    layouts = [_layout(page, path) for page in pages]
    largest = max(each.page_size for each in layouts[: len(main)])
    for layout in layouts[len(main) :]:
        if layout.page_size >= largest:
            raise FormatError(
                f"{path} has {layout} below a page that is no larger. Save the pages that you "
                "mean one after the other."
            )
    return {
        each.offset: layout
        for each, page, layout in zip(main, pages, layouts, strict=False)
        if not page.is_reduced or layout.page_size == largest
    }


def _check_order(path: str, main: Sequence[Directory]) -> None:
    """Raise if tags have no order, and some of them no meaning: it may be that of a lost one."""
    for each in main:
        if list(each.tags) != sorted(set(each.tags)):
            strange = [tag for tag in each.tags if tag not in _tifffile().TIFF.TAGS]
            if strange or len(set(each.tags)) < len(each.tags):
                raise FormatError(
                    f"{path} has a page at byte {each.offset} whose tags have no order: "
                    f"{', '.join(map(str, each.tags))}. Save the file again by another program."
                )


def _extents(page: Any, path: str) -> NDArray[np.int64]:
    """Return where the strips or tiles of a page lie, start and end, as they must be."""
    places = np.array([page.dataoffsets, page.databytecounts], np.int64).T
    number = math.prod(grid(page))
    told = [page.tags[tag].count for tag in _OFFSETS if tag in page.tags]
    if len(places) != number or any(count != number for count in told):
        raise FormatError(
            f"{path} has a page of {page.shape} with {told or len(places)} strips or tiles, but "
            f"they are {number}. It is broken; save it again."
        )
    is_there = places.any(axis=1)
    starts, lengths = places[is_there].T
    size = page.parent.filehandle.size
    if (lengths <= 0).any() or (starts < 8).any() or (starts + lengths > size).any():
        raise FormatError(
            f"{path} has a page of {page.shape} whose voxels lie at bytes {starts.min()} to "
            f"{(starts + lengths).max()}, but the file ends at {size}. It is not all of the file."
        )
    if isinstance(page.bitspersample, int) and not page.is_subsampled:
        expected = np.fromiter(_plain_lengths(page), np.int64, number)[is_there]
        is_plain = page.compression == _UNCOMPRESSED
        wrong = lengths != expected if is_plain else lengths * _most_shrunk(page) < expected
        if wrong.any():
            found, wanted = lengths[wrong][0], expected[wrong][0]
            raise FormatError(
                f"{path} has a page of {page.shape} of {page.dtype}, but {found} bytes for "
                f"{wanted} bytes of voxels{'' if is_plain else ', which can not be that small'}. "
                "It is broken; save it again."
            )
    return np.stack([starts, starts + lengths], axis=1)


def _most_shrunk(page: Any) -> int:
    """Return how many bytes one byte can become at most, 2^31 if that is not known."""
    return 2**11 if page.compression in _LITTLE else 2**31


def grid(page: Any) -> tuple[int, int, int, int]:
    """Return numbers of strips or tiles: planes of samples, in depth, down, across."""
    planes = page.samplesperpixel if page.planarconfig == 2 else 1
    if page.is_tiled:
        return (
            planes,
            -(-page.imagedepth // page.tiledepth),
            -(-page.imagelength // page.tilelength),
            -(-page.imagewidth // page.tilewidth),
        )
    rows = min(page.rowsperstrip, page.imagelength)
    return planes, page.imagedepth, -(-page.imagelength // rows), 1


def _plain_lengths(page: Any) -> Iterator[int]:
    """Yield the bytes of each strip or tile that is not compressed."""
    samples = 1 if page.planarconfig == 2 else page.samplesperpixel
    planes, deep, down, across = grid(page)
    if page.is_tiled:
        row = -(-page.tilewidth * samples * page.bitspersample // 8)
        yield from (page.tiledepth * page.tilelength * row,) * (planes * deep * down * across)
        return
    row = -(-page.imagewidth * samples * page.bitspersample // 8)
    rows = min(page.rowsperstrip, page.imagelength)
    for _ in range(planes * deep):
        yield from (row * min(rows, page.imagelength - y * rows) for y in range(down))


def _contiguous(path: str, page: Any, series: Any) -> NDArray[np.int64]:
    """Return where the voxels of a series lie of which only the first page is described."""
    number, rest = divmod(series.size, page.size)
    start, size = page.dataoffsets[0], page.parent.filehandle.size
    end = start + number * page.nbytes
    if rest or not page.is_final or end > size:
        raise FormatError(
            f"{path} has one page of {page.shape}, but says that it is an image of "
            f"{series.shape}, for which it has {size - start} bytes of voxels. It is not all of "
            "the file, or no stack."
        )
    return np.array([[start, end]], np.int64)


def _check_places(
    path: str, found: Sequence[Directory], data: NDArray[np.int64], more: int
) -> None:
    """Raise if voxels lie where other things are, or if so many bytes more lie behind them."""
    size = os.path.getsize(path)
    told = sorted({(0, 8), *(place for each in found for place in each.extents)})
    united: list[list[int]] = []
    for start, end in told:
        if united and start <= united[-1][1]:
            united[-1][1] = max(united[-1][1], end)
        else:
            united.append([start, end])
    single = np.unique(data, axis=0)
    every = np.concatenate([single, np.array(united, np.int64)])
    every = every[np.argsort(every[:, 0], kind="stable")]
    if (every[1:, 0] < every[:-1, 1]).any():
        at = int(every[1:, 0][every[1:, 0] < every[:-1, 1]][0])
        raise FormatError(
            f"{path} has voxels at byte {at} where others, or words of the file, lie as well. It "
            "is broken; save it again."
        )
    holes = np.stack([every[:, 1], np.append(every[1:, 0], size)], axis=1)
    lengths = holes[:, 1] - holes[:, 0]
    if len(single) < len(data) and (lengths >= np.diff(single).min()).any():
        raise FormatError(f"{path} has pages of the same voxels, and voxels of no page.")
    behind = lengths[holes[:, 0] == single[:, 1].max(initial=0)].sum()
    if behind >= more:
        raise FormatError(
            f"{path} has {behind} bytes after its page that it does not describe. It is not all of "
            "the file, or broken; save it again."
        )
    if lengths.sum() >= np.diff(single).min(initial=size):
        _check_holes(path, holes[lengths > 0])


def _check_holes(path: str, holes: NDArray[np.int64]) -> None:
    marks = orphan_marks(path)
    with open(path, "rb") as file:
        for start, end in holes.tolist():
            file.seek(start)
            data = file.read(end - start)
            if any(mark in data for mark in marks):
                raise FormatError(
                    f"{path} has a page between bytes {start} and {end} to which no other leads. "
                    "It is broken; save it again."
                )


# --- what the file says --------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Claims:
    """What a file says of its pages."""

    file: Any
    path: str
    pages: dict[int, Layout]
    """The layouts of pages that count, by their offsets."""
    is_alone: bool
    """Whether there is one directory only."""

    def agreed(self, series: Sequence[Any], is_slice: bool) -> Contents:
        """Return the one image that all pages are."""
        kept = [each for each in map(self._one, series) if each is not None]
        used = {place.offset for each in kept for place in each.places if place.path == self.path}
        told = "; ".join(map(str, kept)) or "no image"
        if used != set(self.pages):
            raise FormatError(
                f"{self.path} has {len(self.pages)} pages, of which its description names "
                f"{len(used)} ({told}). Save the pages that you mean as a file of their own."
            )
        if not is_slice and self._is_part:
            raise FormatError(
                f"{self.path} is a part of an image in several files, which another of them "
                "describes: convert that one, or their directory."
            )
        first = kept[0]
        is_stack = all(len(each.places) == 1 and each.layout == first.layout for each in kept)
        if len(kept) == 1:
            return first
        if not is_stack or self.file.is_ome:
            raise FormatError(
                f"{self.path} has {len(self.pages)} pages, which are {len(kept)} images and not "
                f"one: {told}. Save the one that you mean as a file of its own."
            )
        places = tuple(each.places[0] for each in kept)
        return Contents("Z", (len(kept),), first.layout, places)

    @property
    def _is_part(self) -> bool:
        """Whether another file describes this one."""
        return "<BinaryOnly" in (self.file.ome_metadata or "")

    def _one(self, series: Any) -> Contents | None:
        """Return what a series of tifffile is, None if it is made of smaller images of pages."""
        first, path = series.keyframe, self.path
        is_here = first.parent is self.file
        if isinstance(first.index, tuple) or (is_here and first.offset not in self.pages):
            return None
        layout = _layout(first, path)
        number, rest = divmod(series.size, layout.page_size)
        places = self._places(series, number)
        shape, axes = series.get_shape(squeeze=False), series.get_axes(squeeze=False)
        # The more axes, the more of them the caller may name, also those of one position.
        most = range(len(shape) - len(first.shape), -1, -1)
        outer = next((k for k in most if math.prod(shape[:k]) == number), 0)
        inner = [n for n in shape[outer:] if n != 1]
        if rest or len(places) != number or inner != [n for n in first.shape if n != 1]:
            raise FormatError(
                f"{path} says that it is an image of {shape} ({axes}), but has {len(places)} pages "
                f"of {layout}. It is not all of the file, or broken."
            )
        self._check_description(series, layout, shape)
        for place in places:
            if place.path == path and self.pages.get(place.offset) != layout:
                other = self.pages.get(place.offset, "smaller images")
                raise FormatError(f"{path} has pages of {layout} and of {other}: no stack.")
        names = axes[:outer]
        if series.kind == "imagej" and layout.samples > 1 and number == shape[axes.index("C")]:
            # ImageJ has no channels of colours, but some writers count slices so.
            names = names.replace("Z", "Q").replace("C", "Z")
        return Contents(names, tuple(shape[:outer]), layout, places)

    def _places(self, series: Any, number: int) -> tuple[Place, ...]:
        """Return where the pages of a series lie."""
        first, path = series.keyframe, self.path
        if self.is_alone and number > 1 and first.parent is self.file and len(series) != number:
            return tuple(Place(path, first.offset, at * first.nbytes) for at in range(number))
        parts = [series[at] for at in range(len(series))]
        if None in parts:
            raise FormatError(
                f"{path} describes {len(parts)} pages of one image, of which {parts.count(None)} "
                "are missing. Bring the other files of the image to their place."
            )
        return tuple(
            Place(path if each.parent is self.file else each.parent.filehandle.path, each.offset)
            for each in parts
        )

    def _check_description(self, series: Any, layout: Layout, shape: tuple[int, ...]) -> None:
        """Raise if a description says otherwise; tifffile passes by those that it can't follow."""
        path, size = self.path, series.size
        match = re.search(r'"shape": *\[([\d, ]+)\]', series.keyframe.shaped_description or "")
        told = tuple(map(int, match[1].split(","))) if match else shape
        if told != shape if series.kind == "shaped" else math.prod(told) > size:
            raise FormatError(
                f"{path} says that it is an image of {told}, but is one of {shape}. It is not all "
                "of the file, or broken."
            )
        of_imagej = self.file.imagej_metadata or {}
        axes = [of_imagej.get(name, 1) for name in ("frames", "slices", "channels")]
        claimed, number = max(of_imagej.get("images", 1), math.prod(axes)), size // layout.page_size
        if claimed > number * max(layout.samples, layout.depth):
            raise FormatError(
                f"{path} says that it has {claimed} images, but there are {number}. It is not all "
                "of the file, or broken."
            )
        if self.file.is_ome and series.kind != "ome" and not self._is_part:
            raise FormatError(f"{path} has a description (OME-XML) that can't be followed.")
        if series.kind == "ome":
            found = re.findall(r'<Pixels[^>]*\sType="([\w-]+)"', self.file.ome_metadata)
            types = {_OME_TYPES.get(each, each) for each in found}
            if layout.dtype.name not in types:
                raise FormatError(
                    f"{path} says that its voxels are {', '.join(types)}, but they are "
                    f"{layout.dtype}."
                )


def decodes_to(page: Any, data: bytes, shape: tuple[int, ...]) -> bool:
    """Return whether data decode to a strip or tile, as far as their decoder does not check it."""
    depth, height, width, samples = shape
    bits, compression = page.bitspersample, page.compression
    of_images = {_UNCOMPRESSED, *_FAX, *_tifffile().TIFF.IMAGE_COMPRESSIONS}
    if compression in of_images or page.fillorder != 1 or not isinstance(bits, int):
        return True
    if bits % 8 == 0 and compression not in _CUTTING:
        return True
    expected = depth * height * -(-width * samples * bits // 8)
    decode = _tifffile().TIFF.DECOMPRESSORS[compression]
    return len(decode(data, out=expected + 1)) == expected
