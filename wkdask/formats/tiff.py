"""TIFF stacks as lazy images: slices in many files, or pages of one; it alone knows tifffile.

A slice is read by the tasks whose files it crosses, each time only the strips or tiles that matter.
"""

from __future__ import annotations

import glob
import math
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from wkdask.errors import FormatError, MissingError, extra_error, storage_error
from wkdask.formats.image import Image, Level, version_of
from wkdask.geometry import Mag, absolute
from wkdask.storage.volume import Voxels

__all__ = ["TiffStack", "is_tiff", "read"]

_ENDINGS = (".tif", ".tiff")

# What the axes of tifffile mean; samples are the channels of a pixel.
_Z, _C = ("Z", "I", "Q"), ("C", "S")


@dataclass(frozen=True, slots=True)
class TiffStack:
    """Slices of one shape, indexed as `(c, x, y, z)`."""

    directory: str
    """Where the files lie."""
    names: tuple[str, ...]
    """Their names: one file per slice, or one file of many pages."""
    shape: tuple[int, int, int, int]
    """Positions per axis, `(c, x, y, z)`."""
    dtype: np.dtype[np.generic]
    """Of one channel."""
    page_steps: tuple[int, int] = (0, 0)
    """Pages from one channel to the next, 0 if they are in one page, and from one slice to the
    next, 0 if each has its file."""
    version: tuple[int, ...] = field(default=())
    """Differs after a file was changed."""

    @property
    def ndim(self) -> int:
        """Always 4."""
        return 4

    def __getitem__(self, index: tuple[slice, ...]) -> Voxels:
        """Read a part, given by four slices of step 1."""
        cs, xs, ys, zs = (
            range(*part.indices(size)) for part, size in zip(index, self.shape, strict=True)
        )
        shape = (len(cs), len(xs), len(ys), len(zs))
        out: Voxels = np.zeros(shape, self.dtype, order="F")
        for name, slices in self._by_file(zs):
            path = os.path.join(self.directory, name)
            with _opened(path) as file:
                for at, z in slices:
                    self._read_slice(file, path, z, cs, out[..., at], xs, ys)
        return out

    def _by_file(self, zs: range) -> Iterator[tuple[str, list[tuple[int, int]]]]:
        """Yield each file that is needed, with the slices in it: where they go, and which."""
        if len(self.names) == 1:
            yield self.names[0], list(enumerate(zs))
        else:
            yield from ((self.names[z], [(at, z)]) for at, z in enumerate(zs))

    def _read_slice(
        self, file: Any, path: str, z: int, cs: range, out: Voxels, xs: range, ys: range
    ) -> None:
        c_step, z_step = self.page_steps
        in_page = range(cs[0], cs[-1] + 1) if not c_step else range(1)
        for at, c in enumerate(cs if c_step else (0,)):
            page = _series(file, path).pages[z * z_step + c * c_step]
            frame = page.keyframe
            target = out[at : at + 1] if c_step else out
            channels = 1 if c_step else self.shape[0]
            size = frame.imagewidth, frame.imagelength, frame.samplesperpixel
            if size != (*self.shape[1:3], channels) or frame.dtype != self.dtype:
                raise FormatError(
                    f"slice {z} in {path} is {frame.shape} of {frame.dtype}, unlike the first."
                )
            try:
                _read_page(page, target, in_page, xs, ys)
            except (ValueError, RuntimeError, OSError, KeyError) as error:
                raise FormatError(f"slice {z} in {path} can't be decoded ({error}).") from None

    def __dask_tokenize__(self) -> tuple[object, ...]:
        return (self.directory, self.names, self.shape, str(self.dtype), self.version)


def is_tiff(path: str | os.PathLike[str]) -> bool:
    """Return whether a path is a TIFF file, a directory with some, or a pattern for some."""
    path = os.fspath(path)
    if os.path.isdir(path):
        return any(name.lower().endswith(_ENDINGS) for name in os.listdir(path))
    return path.lower().endswith(_ENDINGS) or (glob.has_magic(path) and not os.path.exists(path))


def read(path: str | os.PathLike[str]) -> Image:
    """Return a stack of TIFF slices as an image of mag 1; voxels are read when they are needed.

    Parameters
    ----------
    path
        A directory of 2-D slices, a pattern for such files (`"slices/*.tif"`), or one file with a
        slice per page. Files are taken in the order of the numbers in their names. Colours of a
        pixel become channels.

    Raises
    ------
    MissingError
        If there is no such file.
    FormatError
        If files are no TIFF, or no stack.
    MissingExtraError
        If tifffile is not installed.
    """
    directory, names = _listed(absolute(path))
    first = os.path.join(directory, names[0])
    with _opened(first) as file:
        series = _series(file, first)
        axes, sizes, dtype = series.axes, series.shape, series.dtype
        if len(series.pages) == 1 and math.prod(series.pages[0].shape) != math.prod(sizes):
            raise FormatError(
                f"{first} describes one page only, of {sizes}. Save it with a page per slice."
            )
    by_axis, c_step, z_step = _page_steps(first, axes, sizes)
    if len(names) > 1:
        if by_axis["z"] > 1:
            raise FormatError(f"{first} has {by_axis['z']} slices; convert stacks one by one.")
        by_axis["z"], z_step = len(names), 0
    stack = TiffStack(
        directory,
        tuple(names),
        (by_axis["c"], by_axis["x"], by_axis["y"], by_axis["z"]),
        np.dtype(dtype).newbyteorder("="),
        (c_step, z_step),
        version_of(directory if len(names) > 1 else first),
    )
    name = os.path.basename(directory if len(names) > 1 else os.path.splitext(first)[0])
    return Image((Level(Mag(1), (0, 0, 0), stack),), name=name.removesuffix(".ome"))


def _listed(path: str) -> tuple[str, list[str]]:
    """Return the directory and the names of the files of a stack, in order."""
    if os.path.isdir(path):
        found = [os.path.join(path, name) for name in os.listdir(path)]
        found = [name for name in found if name.lower().endswith(_ENDINGS)]
    else:
        found = [path] if os.path.exists(path) else glob.glob(path)
    if not found:
        raise MissingError(f"there is no TIFF file at {path}.")
    directories = {os.path.dirname(name) for name in found}
    if len(directories) > 1:
        raise FormatError(f"{path} leads to files in {len(directories)} directories, not in one.")
    return directories.pop(), sorted(map(os.path.basename, found), key=_natural)


def _natural(name: str) -> list[tuple[bool, int, str]]:
    """Return a key by which `s10` comes after `s9`."""
    parts = re.split(r"(\d+)", name)
    return [(part.isdigit(), int(part) if part.isdigit() else 0, part) for part in parts]


def _page_steps(path: str, axes: str, sizes: tuple[int, ...]) -> tuple[dict[str, int], int, int]:
    """Return positions per axis, and pages from one channel and from one slice to the next."""
    by_axis = {"c": 1, "x": 1, "y": 1, "z": 1}
    steps = {"c": 0, "z": 0}
    page = 1
    for axis, size in reversed(list(zip(axes, sizes, strict=True))):
        ours = "c" if axis in _C else "z" if axis in _Z else axis.lower()
        if ours in "xy" or axis == "S":
            by_axis[ours] *= size
            continue
        if size > 1 and (ours not in steps or by_axis[ours] > 1):
            raise FormatError(f"{path} has axes {axes} of {sizes}, which are no stack of slices.")
        if ours in steps:
            by_axis[ours], steps[ours] = by_axis[ours] * size, page
        page *= size
    if by_axis["c"] == 1:
        steps["c"] = 0
    return by_axis, steps["c"], steps["z"] or 1


def _read_page(page: Any, out: Voxels, cs: range, xs: range, ys: range) -> None:
    """Read a part of a page into `out`, `(c, x, y)`, by the segments that it touches."""
    handle = page.parent.filehandle
    for index in _segments(page, xs, ys):
        offset, count = page.dataoffsets[index], page.databytecounts[index]
        if not count:
            continue
        handle.seek(offset)
        decoded, (sample, _, top, left, _), (_, height, width, samples) = page.decode(
            handle.read(count), index
        )
        if decoded is None:
            continue
        y0, y1 = max(top, ys[0]), min(top + height, ys[-1] + 1)
        x0, x1 = max(left, xs[0]), min(left + width, xs[-1] + 1)
        c0, c1 = max(sample, cs[0]), min(sample + samples, cs[-1] + 1)
        if y0 >= y1 or x0 >= x1 or c0 >= c1:
            continue
        part = decoded[0, y0 - top : y1 - top, x0 - left : x1 - left, c0 - sample : c1 - sample]
        place = slice(c0 - cs[0], c1 - cs[0]), slice(x0 - xs[0], x1 - xs[0])
        out[(*place, slice(y0 - ys[0], y1 - ys[0]))] = part.transpose(2, 1, 0)


def _segments(page: Any, xs: range, ys: range) -> Iterator[int]:
    """Yield the numbers of the strips or tiles that a part touches, for all samples."""
    frame = page.keyframe
    height, width = frame.rowsperstrip, frame.imagewidth
    if frame.is_tiled:
        height, width = frame.tilelength, frame.tilewidth
    down, across = -(-frame.imagelength // height), -(-frame.imagewidth // width)
    planes = len(page.dataoffsets) // max(1, down * across)
    for plane in range(planes):
        for y in range(ys[0] // height, ys[-1] // height + 1):
            for x in range(xs[0] // width, xs[-1] // width + 1):
                yield (plane * down + y) * across + x


def _series(file: Any, path: str) -> Any:
    """Return the pages that belong together, of which a file may have several sets."""
    try:
        return file.series[0]
    except Exception as error:
        # Whatever is made of broken bytes.
        raise FormatError(f"{path} holds no images that can be read ({error!r}).") from None


def _opened(path: str) -> Any:
    try:
        import tifffile
    except ImportError:
        raise extra_error("tifffile", "tiff") from None
    try:
        return tifffile.TiffFile(path)
    except FileNotFoundError:
        raise MissingError(f"{path} is gone.") from None
    except OSError as error:
        raise storage_error(error, path, "opening the slice") from None
    except Exception as error:
        # Whatever is made of broken bytes.
        raise FormatError(f"{path} is no TIFF file ({error}).") from None
