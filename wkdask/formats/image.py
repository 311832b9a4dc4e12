"""Images of any origin: lazy levels `(c, x, y, z)`, and what is known of them; it knows no formats.

Whoever reads a format makes an `Image`, and whoever writes one takes it. Nothing is read before.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any

import dask
import dask.array as da
import numpy as np

from wkdask.arrays.view import View
from wkdask.dataset.dataset import Layer, MagView
from wkdask.errors import ArgumentError, FormatError, WkdaskError, storage_error
from wkdask.geometry import BoundingBox, Mag, MagLike, Vec3, absolute, mag_list, whole
from wkdask.grids import Chunks, cut_axis, region_of
from wkdask.storage.volume import Voxels, as_voxels

__all__ = [
    "FileArray",
    "Image",
    "Level",
    "check_axes",
    "of_array",
    "of_layer",
    "of_npy",
    "of_view",
    "stored_dtype",
    "time_point",
    "version_of",
]

_AXES = "cxyz"
_FLAT_AXES = {2: "xy", 3: "xyz", 4: "cxyz"}


@dataclass(frozen=True, slots=True)
class FileArray:
    """An array in a file of another format, indexed as `(c, x, y, z)` whatever its own axes are.

    Examples
    --------
    >>> np.save("tissue.npy", np.arange(6, dtype=np.uint8).reshape(1, 2, 3))
    >>> array = of_npy("tissue.npy", "zyx").levels[0].source
    >>> array.shape, array[:, 1:, :, :].ravel()
    ((1, 3, 2, 1), array([1, 4, 2, 5], dtype=uint8))
    """

    path: str
    """Where, absolute."""
    open: Callable[[str], Any]
    """Returns something that is indexed like a NumPy array with the axes of the file."""
    axes: str
    """The axes of the file, such as `"zyx"`."""
    file_shape: tuple[int, ...]
    """Positions per axis of the file."""
    dtype: np.dtype[np.generic]
    """Of one channel, in the machine's byte order."""
    version: tuple[int, ...] = ()
    """Differs after the file was changed."""
    t: int | None = None
    """Which time point; None is the only one."""

    def __post_init__(self) -> None:
        check_axes(self.axes, len(self.file_shape), self.path)
        times = dict(zip(self.axes, self.file_shape, strict=True)).get("t", 1)
        object.__setattr__(self, "t", time_point(times, self.t, self.path))
        object.__setattr__(self, "dtype", stored_dtype(self.dtype))

    @property
    def shape(self) -> tuple[int, ...]:
        """Positions per axis, `(c, x, y, z)`."""
        sizes = dict(zip(self.axes, self.file_shape, strict=True))
        return tuple(sizes.get(axis, 1) for axis in _AXES)

    @property
    def ndim(self) -> int:
        """Always 4."""
        return 4

    def __getitem__(self, index: tuple[slice, ...]) -> Voxels:
        """Read a part, given by four slices `(c, x, y, z)`."""
        wanted = dict(zip(_AXES, index, strict=True)) | {"t": self.t}
        place = tuple(wanted[axis] for axis in self.axes)
        try:
            part = self.open(self.path)[place]
        except WkdaskError:
            raise
        except Exception as error:
            # Whatever a library says of a broken file.
            raise FormatError(f"{self.path} can't be read at {place} ({error!r}).") from error
        kept = [axis for axis in self.axes if axis in _AXES]
        voxels = np.asarray(part).astype(self.dtype, copy=False)
        arranged: Voxels = _arranged(voxels, "".join(kept))
        return arranged

    def __dask_tokenize__(self) -> tuple[object, ...]:
        return (self.path, self.axes, self.file_shape, str(self.dtype), self.version, self.t)


@dataclass(frozen=True, slots=True)
class Level:
    """An image at one resolution."""

    mag: Mag
    """Its voxel factors, relative to voxels of mag 1."""
    corner: Vec3
    """Its first voxel, `(x, y, z)`, in absolute voxels of this mag."""
    source: Any
    """Its voxels `(c, x, y, z)`: a `View`, a dask array or a `FileArray`."""

    @property
    def box(self) -> BoundingBox:
        """Where it lies, in voxels of this mag."""
        return BoundingBox(self.corner, self.source.shape[1:])

    @property
    def dtype(self) -> np.dtype[np.generic]:
        """The dtype of one channel."""
        dtype: np.dtype[np.generic] = np.dtype(self.source.dtype)
        return dtype

    @property
    def num_channels(self) -> int:
        """Values per voxel."""
        return int(self.source.shape[0])

    @property
    def kind(self) -> str:
        """What its voxels are, in words."""
        return f"{self.dtype} in {self.num_channels} channels"

    @property
    def is_computed(self) -> bool:
        """Whether the voxels are what dask computes, and can't be read box by box."""
        return isinstance(self.source, da.Array)

    def read(self, box: BoundingBox) -> Voxels:
        """Read a box in absolute voxels of this mag, unless they are computed."""
        if isinstance(self.source, View):
            return self.source.volume.read(region_of(box))
        inside = box.moved_by(-at for at in self.corner)
        axes = zip(inside.topleft, inside.bottomright, strict=True)
        channels = slice(0, self.num_channels)
        voxels: Voxels = self.source[(channels, *(slice(a, b) for a, b in axes))]
        return voxels

    def cut(self, edge: Vec3) -> da.Array:
        """Return the voxels lazily, all channels in one chunk, cut at absolute multiples of edges.

        Voxels that lie in files are read by the very task that needs them.
        """
        box = self.box
        axes = zip(box.topleft, box.bottomright, edge, strict=True)
        return self.chunked(((self.num_channels,), *(cut_axis(*axis) for axis in axes)))

    def chunked(self, chunks: Chunks) -> da.Array:
        """Return the voxels lazily, in these chunks."""
        if isinstance(self.source, da.Array):
            rechunked: da.Array = self.source.rechunk(chunks)
            return rechunked
        if isinstance(self.source, View):
            return self.source.to_dask(chunks)
        array: da.Array = da.from_array(
            self.source,
            chunks=chunks,
            name=f"wkdask-file-{dask.base.tokenize(self.source, chunks)}",
            lock=False,
            asarray=False,
            meta=np.empty((0,) * 4, dtype=self.dtype),
        )
        return array


@dataclass(frozen=True, slots=True)
class Image:
    """A pyramid of levels, and what is known of it."""

    levels: tuple[Level, ...]
    """At least one, of the same dtype and channels, from fine to coarse."""
    name: str | None = None
    """What it is called."""
    category: str | None = None
    """`"color"` or `"segmentation"`, if known."""
    voxel_size: tuple[float, float, float] | None = None
    """Edges of a voxel of mag 1, `(x, y, z)`, in `unit`, if known."""
    unit: str | None = None
    """A unit of length, if known."""
    bounding_box: BoundingBox | None = None
    """Where there are data, in voxels of mag 1; None is around the levels."""
    largest_segment_id: int | None = None
    """Of a segmentation, if known."""
    refused: tuple[FormatError, ...] = ()
    """Why other levels of the source are none of these."""

    @property
    def box(self) -> BoundingBox:
        """Where there are data, in voxels of mag 1; no level reaches beyond its coarse voxels."""
        finest = self.levels[0]
        box = self.bounding_box or finest.box.scaled_by(finest.mag)
        for level in self.levels:
            inside = box.align_with_mag(level.mag, ceil=True)
            if not inside.contains_bbox(level.box.scaled_by(level.mag)):
                box = box.extended_by(level.box.scaled_by(level.mag))
        return box

    def with_mags(self, mags: Iterable[MagLike] | None) -> Image:
        """Return the image with some of its levels; None is all of them.

        Raises
        ------
        ArgumentError
            If it lacks one.
        FormatError
            If all are wanted, but some are refused.
        """
        if mags is None:
            if self.refused:
                raise self.refused[0]
            return self
        wanted = set(mag_list(mags))
        has = [level.mag for level in self.levels]
        if lacking := sorted(wanted - set(has)):
            raise ArgumentError(
                f"there is no mag {', '.join(map(str, lacking))} in {self.name or 'the source'}; "
                f"it has {', '.join(map(str, has))}."
            )
        kept = tuple(each for each in self.levels if each.mag in wanted)
        return replace(self, levels=kept, refused=())


def of_layer(layer: Layer) -> Image:
    """Return all mags of a layer."""
    mags = layer.mags
    if not mags or layer.bounding_box.is_empty:
        raise ArgumentError(
            f"layer {layer.name!r} has no mags or an empty bounding box: there is nothing to take."
        )
    return Image(
        tuple(Level(mag, view.bounding_box.topleft, view) for mag, view in mags.items()),
        layer.name,
        layer.category,
        layer.dataset.voxel_size,
        layer.dataset.unit,
        layer.bounding_box,
        layer.largest_segment_id,
    )


def of_view(view: View) -> Image:
    """Return what a view covers, as one level; of an unknown mag, as mag 1."""
    box, known = view.bounding_box, view.labels
    if box.is_empty:
        raise ArgumentError(f"the view of {view.path} is empty: there is nothing to take.")
    layer = view.layer if isinstance(view, MagView) else None
    return Image(
        (Level(known.mag or Mag(1), box.topleft, view),),
        known.name,
        known.category,
        known.voxel_size,
        known.unit,
        layer.bounding_box if layer else None,
        layer.largest_segment_id if layer else None,
    )


def of_array(array: Any, axes: str | None = None, t: int | None = None) -> Image:
    """Return a NumPy or dask array as an image of mag 1 that begins at (0, 0, 0).

    Parameters
    ----------
    array
        Its voxels.
    axes
        What its axes are, such as `"zyx"`; None is `"xyz"`, or `"cxyz"` with channels.
    t
        Which time point, if there are several.
    """
    if not isinstance(array, da.Array):
        array = as_voxels(array)
    axes = check_axes(axes or _FLAT_AXES.get(array.ndim, ""), array.ndim, "the array")
    times = array.shape[axes.index("t")] if "t" in axes else 1
    point = time_point(times, t, "the array")
    array = array[tuple(point if axis == "t" else slice(None) for axis in axes)]
    arranged = _arranged(array, axes.replace("t", ""))
    arranged = arranged.astype(stored_dtype(arranged.dtype), copy=False)
    if not isinstance(arranged, da.Array):
        arranged = da.from_array(arranged, chunks=-1)
    return Image((Level(Mag(1), (0, 0, 0), arranged),))


def of_npy(path: str | os.PathLike[str], axes: str | None = None, t: int | None = None) -> Image:
    """Return the array of a `.npy` file as an image; see `of_array`. It is mapped, not read."""
    path = absolute(path)
    mapped = _mapped(path)
    axes = axes or _FLAT_AXES.get(mapped.ndim, "")
    array = FileArray(path, _mapped, axes, mapped.shape, mapped.dtype, version_of(path), t)
    return Image((Level(Mag(1), (0, 0, 0), array),), name=_stem(path))


def check_axes(axes: str, ndim: int, what: str) -> str:
    """Return `axes` if they can be those of an array."""
    is_good = isinstance(axes, str) and len(set(axes)) == len(axes) == ndim
    if not is_good or not {"x", "y"} <= set(axes) <= set("tcxyz"):
        raise ArgumentError(
            f"axes are {axes!r}, but {what} has {ndim} axes, which must be named by as many "
            'different letters of t, c, z, y, x with x and y among them, such as "zyx" or "czyx".'
        )
    return axes


def stored_dtype(dtype: Any) -> np.dtype[np.generic]:
    """Return the dtype that holds all values of another and that WKW may know."""
    wider = {"bool": "uint8", "float16": "float32"}
    stored: np.dtype[np.generic] = np.dtype(wider.get(np.dtype(dtype).name, dtype))
    return stored.newbyteorder("=")


def time_point(count: int, t: int | None, what: str) -> int:
    """Return which of some time points is meant.

    Raises
    ------
    ArgumentError
        If there is no such time point.
    FormatError
        If there are several, and none is named.
    """
    if t is None:
        if count != 1:
            raise FormatError(
                f"{what} has {count} time points, but WKW has no time: choose one by t (--t), from "
                f"0 to {count - 1}."
            )
        return 0
    point = whole(t, "t")
    if not 0 <= point < count:
        raise ArgumentError(f"t is {point}, but {what} has {count} time points, counted from 0.")
    return point


def version_of(path: str) -> tuple[int, ...]:
    """Return what differs after a file was changed."""
    try:
        state = os.stat(path)
    except OSError as error:
        raise storage_error(error, path, "looking at the source") from None
    return state.st_mtime_ns, state.st_size, state.st_ino


def _arranged(array: Any, axes: str) -> Any:
    """Return an array with the axes `(c, x, y, z)`; those that it lacks have one position."""
    kept = [axis for axis in _AXES if axis in axes]
    array = array.transpose([axes.index(axis) for axis in kept])
    return array[tuple(slice(None) if axis in axes else np.newaxis for axis in _AXES)]


def _mapped(path: str) -> Voxels:
    try:
        array: Voxels = np.load(path, mmap_mode="r", allow_pickle=False)
    except OSError as error:
        raise storage_error(error, path, "mapping the array") from None
    except ValueError as error:
        raise FormatError(f"{path} is no .npy file that can be mapped ({error}).") from None
    told, size = getattr(array, "offset", 0) + array.nbytes, os.path.getsize(path)
    if told != size and array.size:
        raise FormatError(
            f"{path} has {size} bytes, but an array of {array.shape} takes {told}. It is broken, "
            "or holds several arrays: save the one that you mean as a file of its own."
        )
    return array


def _stem(path: str) -> str:
    return os.path.splitext(os.path.basename(path))[0]
