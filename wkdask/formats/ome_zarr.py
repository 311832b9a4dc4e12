"""OME-Zarr images and plain zarr arrays, read and written; the only module that knows zarr.

Read are OME-Zarr 0.4 and 0.5 and arrays of zarr v2 and v3; written are OME-Zarr 0.5 and arrays of
zarr v3, in shards that one task each writes. What OME has no words for, such as a layer's exact
box, is in an attribute of our own, which is used as far as it agrees with the rest.
"""

from __future__ import annotations

import itertools
import os
import stat
from collections.abc import Sequence
from functools import partial
from typing import Any

import dask.array as da
import numpy as np
from dask.layers import ArrayBlockIdDep
from numpy.typing import NDArray

from wkdask.arrays.view import View
from wkdask.dataset.properties import check_layer_name
from wkdask.errors import (
    ArgumentError,
    FormatError,
    WkdaskError,
    extra_error,
    storage_error,
)
from wkdask.formats.image import FileArray, Image, Level, version_of
from wkdask.formats.multiscales import (
    VERSION,
    Multiscales,
    describe,
    extras,
    parsed_box,
    parsed_size,
)
from wkdask.geometry import BoundingBox, Mag, Vec3, Vec3Like, absolute, vec3
from wkdask.grids import ChunkGrid
from wkdask.runtime.run import Run, run_chunk, run_graph
from wkdask.storage.atomic import check_missing, new_directory
from wkdask.storage.volume import Voxels

__all__ = ["is_zarr", "read", "write", "write_array"]

_OURS = "wkdask"
_FILES = ("zarr.json", ".zarray", ".zgroup", ".zattrs")
_FLAT_AXES = {2: "yx", 3: "zyx", 4: "czyx", 5: "tczyx"}

_CHUNK_EDGE = 64
_SHARD_EDGE, _SHARD_BYTES = 512, 2**28


# --- read ----------------------------------------------------------------------------------------


_MOST_BYTES = 2**26


def is_zarr(path: str | os.PathLike[str]) -> bool:
    """Return whether a directory holds a zarr array or group."""
    return any(os.path.exists(os.path.join(path, name)) for name in _FILES)


def read(
    path: str | os.PathLike[str],
    *,
    axes: str | None = None,
    offset: Vec3Like | None = None,
    t: int | None = None,
) -> tuple[Image, ...]:
    """Return the image of an OME-Zarr group and its labels, or a zarr array; no voxels are read.

    Parameters
    ----------
    path
        The directory of a group or array.
    axes
        Of an array, what its axes are; None is what it says itself, or `"zyx"`, or `"czyx"` with
        channels.
    offset
        Where the finest level begins, in its own voxels; None is what the translations say, to the
        nearest voxel.
    t
        Which time point, if there are several.

    Raises
    ------
    FormatError
        If it is neither, or holds what WKW can't.
    MissingExtraError
        If zarr is not installed.
    """
    path = absolute(path)
    try:
        return _read(path, axes, offset, t)
    except WkdaskError:
        raise
    except (AttributeError, LookupError, TypeError, ValueError, ArithmeticError) as error:
        # Attributes may hold anything.
        raise FormatError(f"{path} has attributes that can't be understood ({error!r}).") from None


def _read(path: str, axes: str | None, offset: Vec3Like | None, t: int | None) -> tuple[Image, ...]:
    found = _opened(path)
    if not hasattr(found, "members"):
        return (_array_image(path, found, axes, offset, t),)
    described = _described(found.attrs)
    if not described.get("multiscales"):
        raise _no_image(path, found)
    image, shift = _ome_image(path, offset, t)
    if axes is not None and axes != image.levels[0].source.axes:
        raise ArgumentError(
            f"axes are {axes!r}, but {path} says that they are {image.levels[0].source.axes!r}. "
            "Leave axes out, or convert one of its arrays."
        )
    labels = (os.path.join(path, "labels", name) for name in _labels(path))
    return image, *(_label(each, image, shift, offset, t) for each in labels)


def _described(attributes: Any) -> dict[str, Any]:
    """Return what OME says of a group: under a key of its own since 0.5, beside others before."""
    described: dict[str, Any] = dict(attributes).get("ome", attributes)
    return described


def _labels(path: str) -> list[str]:
    directory = os.path.join(path, "labels")
    if not is_zarr(directory):
        return []
    return [str(name) for name in _described(_opened(directory).attrs).get("labels", ())]


def _no_image(path: str, group: Any) -> FormatError:
    names = [os.path.join(path, name) for name, _ in sorted(group.members())]
    inside = f" Convert one of {', '.join(names)}." if names else ""
    return FormatError(f"{path} is a zarr group without an OME-Zarr image (multiscales).{inside}")


def _array_image(
    path: str, array: Any, axes: str | None, offset: Vec3Like | None, t: int | None
) -> Image:
    names = getattr(array.metadata, "dimension_names", None)
    names = names or dict(array.attrs).get("_ARRAY_DIMENSIONS")
    if axes is None and names and all(name and len(name) == 1 for name in names):
        axes = "".join(names).lower()
    source = _file_array(path, array, axes or _FLAT_AXES.get(array.ndim, ""), t)
    known = dict(array.attrs).get(_OURS, {})
    mag = Mag(known.get("mag", 1))
    corner = known.get("corner", (0, 0, 0)) if offset is None else vec3(offset, "offset")
    return Image(
        (Level(mag, vec3(corner, "corner"), source),),
        known.get("name") or _stem(path),
        known.get("category"),
        parsed_size(known.get("voxel_size")),
        known.get("unit"),
        parsed_box(known.get("bounding_box")) if offset is None else None,
        known.get("largest_segment_id"),
    )


def _ome_image(path: str, offset: Vec3Like | None, t: int | None) -> tuple[Image, Sequence[float]]:
    """Return an image, and by how many voxels it was moved."""
    scales, sources, known, is_label = _pyramid(path, t)
    voxel_size = scales.finest_scale
    ours = parsed_size(known.get("voxel_size"))
    if ours and scales.has_voxels_of(ours):
        voxel_size = ours
    edges = voxel_size or (1.0, 1.0, 1.0)
    finest = sources[0].shape
    is_exact = "voxel_size" in known
    mags = scales.mags(edges, _sizes(sources), (finest[1], finest[2], finest[3]), is_exact=is_exact)
    if isinstance(mags[0], FormatError):
        raise mags[0]
    shift = scales.shift(edges, mags[0], offset)
    levels, refused = _levels(scales, sources, mags, edges, shift)
    whole = parsed_box(known.get("bounding_box")) if offset is None else None
    if not all(_fits(level, whole) for level in levels):
        whole = None
    image = Image(
        levels,
        scales.name if _is_layer_name(scales.name) else _stem(path),
        "segmentation" if is_label else known.get("category"),
        voxel_size,
        scales.unit,
        whole,
        known.get("largest_segment_id"),
        refused,
    )
    return image, shift


def _label(
    path: str, image: Image, shift: Sequence[float], offset: Vec3Like | None, t: int | None
) -> Image:
    """Return a label, the mags and places of which are those of its image."""
    scales, sources, known, _ = _pyramid(path, t)
    scales.converted(image.unit)
    edges = image.voxel_size or (1.0, 1.0, 1.0)
    first = image.levels[0]
    finest = first.source.shape if first.mag == Mag(1) else sources[0].shape
    is_exact = "voxel_size" in known
    mags = scales.mags(edges, _sizes(sources), (finest[1], finest[2], finest[3]), is_exact=is_exact)
    if offset is not None and scales.is_unplaced and isinstance(mags[0], Mag):
        shift = scales.shift(edges, Mag(1), first.corner)
    levels, refused = _levels(scales, sources, mags, edges, shift)
    if not levels:
        raise refused[0]
    whole = parsed_box(known.get("bounding_box")) if offset is None else None
    if not all(_fits(level, whole) for level in levels):
        whole = None
    return Image(
        levels, _stem(path), "segmentation", image.voxel_size, image.unit, whole,
        known.get("largest_segment_id"), refused,
    )  # fmt: skip


def _pyramid(path: str, t: int | None) -> tuple[Multiscales, list[FileArray], Any, bool]:
    """Return levels, what we said of them beside OME, and whether they are a label."""
    group = _opened(path)
    described = _described(group.attrs)
    scales = Multiscales(path, described["multiscales"][0])
    sources = [_file_array(os.path.join(path, p), _member(group, path, p), scales.axes, t)
               for p in scales.paths]  # fmt: skip
    known = dict(group.attrs).get(_OURS, {})
    return scales, sources, known, "image-label" in described


def _sizes(sources: Sequence[FileArray]) -> list[Vec3]:
    return [(x, y, z) for _, x, y, z in (source.shape for source in sources)]


def _is_layer_name(name: str) -> bool:
    try:
        check_layer_name(name)
    except ArgumentError:
        return False
    return bool(name)


def _levels(
    scales: Multiscales,
    sources: Sequence[FileArray],
    mags: Sequence[Mag | FormatError],
    voxel_size: tuple[float, float, float],
    shift: Sequence[float],
) -> tuple[tuple[Level, ...], tuple[FormatError, ...]]:
    """Return the levels that are mags, and why others are none."""
    levels: list[Level] = []
    refused: list[FormatError] = []
    for number, (mag, source) in enumerate(zip(mags, sources, strict=True)):
        problem = mag if isinstance(mag, FormatError) else None
        if isinstance(mag, Mag):
            corner = scales.corner(number, mag, voxel_size, shift)
            if isinstance(corner, FormatError):
                problem = corner
            else:
                level = Level(mag, corner, source)
                problem = scales.misfit(number, level, levels[0] if levels else level)
                if problem is None and levels and level.kind != levels[0].kind:
                    problem = FormatError(
                        f"{source.path} is {level.kind}, unlike {levels[0].source.path}. Convert "
                        "without it: choose mags (--mag)."
                    )
        if problem is None:
            levels.append(level)
        else:
            refused.append(problem)
    return tuple(levels), tuple(refused)


def _fits(level: Level, whole: BoundingBox | None) -> bool:
    """Return whether a level covers a box, as that of a layer."""
    if whole is None:
        return False
    return whole.align_with_mag(level.mag, ceil=True) == level.box.scaled_by(level.mag)


def _file_array(path: str, array: Any, axes: str, t: int | None) -> FileArray:
    metadata = next(p for name in _FILES if os.path.exists(p := os.path.join(path, name)))
    if 0 in array.shape:
        raise FormatError(f"{path} has the shape {array.shape}: there are no voxels to take.")
    sound = _Sound(path, array)
    sound.check_ends()
    return FileArray(path, _sound, axes, array.shape, array.dtype, version_of(metadata), t)


def _sound(path: str) -> _Sound:
    return _Sound(path, _opened(path))


class _Sound:
    """An array whose chunks are looked at before zarr reads them."""

    def __init__(self, path: str, array: Any) -> None:
        self._path, self._array = path, array
        self._edges = array.shards or array.chunks
        names = {type(each).__name__ for each in array.compressors}
        # Blosc tells its length, but what is missing of it is read from beyond the chunk.
        self._has_length = array.shards is None and bool(names & {"Blosc", "BloscCodec"})

    def __getitem__(self, place: tuple[int | slice, ...]) -> Any:
        """Read a part, given by whole numbers and slices of step 1."""
        ranges = [
            range(*part.indices(size)) if isinstance(part, slice) else range(part, part + 1)
            for part, size in zip(place, self._array.shape, strict=True)
        ]
        if all(ranges):
            touched = (
                range(part[0] // edge, part[-1] // edge + 1)
                for part, edge in zip(ranges, self._edges, strict=True)
            )
            for position in itertools.product(*touched):
                self._check(self._chunk(position))
        return self._array[place]

    def _chunk(self, position: tuple[int, ...]) -> str:
        return os.path.join(self._path, self._array.metadata.encode_chunk_key(position))

    def _check(self, path: str) -> None:
        try:
            state = os.stat(path)
        except FileNotFoundError:
            return
        if not stat.S_ISREG(state.st_mode):
            raise FormatError(f"{path} is no chunk, but no file at all.")
        if self._has_length:
            with open(path, "rb") as file:
                start = file.read(16)
            if len(start) < 16 or int.from_bytes(start[12:], "little") != state.st_size:
                raise FormatError(f"{path} is cut or broken: it has {state.st_size} bytes only.")

    def check_ends(self) -> None:
        """Raise if there are chunks beyond the shape."""
        counts = [-(-n // edge) for n, edge in zip(self._array.shape, self._edges, strict=True)]
        for axis, count in enumerate(counts):
            beyond = self._chunk(tuple(count if at == axis else 0 for at in range(len(counts))))
            if os.path.exists(beyond):
                raise FormatError(
                    f"{self._path} has the shape {self._array.shape}, but {beyond} is beyond. Its "
                    "metadata are broken, or chunks are left of a larger array: delete them."
                )


def _member(group: Any, path: str, name: str) -> Any:
    try:
        return group[name]
    except KeyError:
        raise FormatError(
            f"{path} lists a level {name!r}, but there is none. Convert its arrays one by one."
        ) from None


# --- write ---------------------------------------------------------------------------------------


def write(images: Sequence[Image], path: str | os.PathLike[str], *, run: Run) -> None:
    """Write an OME-Zarr 0.5 image, and others as its labels; one task per shard.

    It gets its name when it is whole.

    Parameters
    ----------
    images
        The image, then segmentations; each with voxel size and unit.
    path
        A directory that does not exist.
    run
        Where, how often tasks are tried again, and whether to show bars.
    """
    image, *labels = images
    check_missing(path := absolute(path))
    for each in labels:
        check_layer_name(str(each.name))
        if len(each.levels) != len(image.levels):
            raise ArgumentError(
                f"the label {each.name!r} has {len(each.levels)} levels, but the image "
                f"{image.name!r} has {len(image.levels)}, and OME-Zarr demands as many. Choose "
                "mags that both have (--mag), or one layer by layer_name (--layer-name)."
            )
    with new_directory(path) as private:
        root = _created(private)
        _write_image(root, private, image, run)
        if labels:
            _write_labels(root.create_group("labels"), private, labels, run)


def write_array(image: Image, path: str | os.PathLike[str], *, run: Run) -> None:
    """Write an image of one level as an array of zarr v3, `(z, y, x)` or `(c, z, y, x)`."""
    if len(image.levels) != 1:
        has = ", ".join(str(level.mag) for level in image.levels)
        raise ArgumentError(f"a zarr array holds one mag, but there are {has}. Choose one of them.")
    level = image.levels[0]
    known = extras(image) | {"mag": str(level.mag), "corner": list(level.corner)}
    with new_directory(absolute(path)) as private:
        _write_level(private, level, run, {_OURS: known | {"name": image.name, "unit": image.unit}})


def _write_labels(group: Any, path: str, labels: Sequence[Image], run: Run) -> None:
    for each in labels:
        name = str(each.name)
        inside = os.path.join(path, "labels", name)
        _write_image(group.create_group(name), inside, each, run, is_label=True)
    group.attrs["ome"] = {"version": VERSION, "labels": [str(each.name) for each in labels]}


def _write_image(group: Any, path: str, image: Image, run: Run, *, is_label: bool = False) -> None:
    for number, level in enumerate(image.levels):
        _write_level(os.path.join(path, str(number)), level, run, {})
    ome: dict[str, Any] = {"version": VERSION, "multiscales": [describe(image)]}
    if image.category == "segmentation":
        ome["image-label"] = {"source": {"image": "../../"}} if is_label else {}
    group.attrs.update({"ome": ome, _OURS: extras(image)})


def _write_level(path: str, level: Level, run: Run, attributes: dict[str, Any]) -> None:
    shard = _shard(level)
    chunk = (min(_CHUNK_EDGE, min(shard)),) * 3
    has_channels = level.num_channels > 1
    channels = level.num_channels
    _zarr().create_array(
        path,
        shape=_stored((channels, *level.box.size), has_channels),
        chunks=_stored((1, *chunk), has_channels),
        shards=_stored((channels, *shard), has_channels),
        dtype=level.dtype,
        fill_value=0,
        dimension_names=_stored(tuple("cxyz"), has_channels),
        attributes=attributes,
    )
    grid = ChunkGrid(BoundingBox((0, 0, 0), level.box.size), shard)
    array = level.chunked(((channels,), *grid.chunks))
    run_graph(_shard_graph(array, path, grid, run.tag), grid, run)


def _shard(level: Level) -> Vec3:
    """Return voxels per shard: about a file, at most some memory, and no more than there are."""
    edge = (
        level.source.volume.layout.file_size[0] if isinstance(level.source, View) else _SHARD_EDGE
    )
    voxel_bytes = level.num_channels * level.dtype.itemsize
    while edge > _CHUNK_EDGE and edge**3 * voxel_bytes > _SHARD_BYTES:
        edge //= 2
    unit = min(edge, _CHUNK_EDGE)
    x, y, z = (min(edge, -(-size // unit) * unit) for size in level.box.size)
    return x, y, z


def _stored(values: tuple[Any, ...], has_channels: bool) -> tuple[Any, ...]:
    """Return values for `(c, x, y, z)` in the order of the axes on disk."""
    c, x, y, z = values
    return (c, z, y, x) if has_channels else (z, y, x)


def _shard_graph(array: da.Array, path: str, grid: ChunkGrid, tag: str) -> da.Array:
    """Return the lazy writes of an array whose chunks are shards."""
    axes = "cxyz"
    receipts: da.Array = da.blockwise(
        partial(_write_shard, path, grid, tag), axes, array, axes,
        ArrayBlockIdDep(array.chunks), axes,
        adjust_chunks={axis: lambda _: 1 for axis in axes},
        align_arrays=False, dtype=object, meta=np.empty((0,) * 4, dtype=object),
    )  # fmt: skip
    return receipts


def _write_shard(
    path: str, grid: ChunkGrid, tag: str, voxels: Voxels, place: tuple[int, ...]
) -> NDArray[np.object_]:
    def write(position: Vec3) -> None:
        box = grid.chunk_box(position)
        slices = (slice(a, b) for a, b in zip(box.topleft, box.bottomright, strict=True))
        target = _opened(path, "r+")
        has_channels = target.ndim == 4
        part = np.transpose(voxels, (0, 3, 2, 1))
        try:
            target[_stored((slice(None), *slices), has_channels)] = (
                part if has_channels else part[0]
            )
        except OSError as error:
            raise storage_error(error, path, "writing a shard") from None

    run_chunk(write, grid, None, tag, (place[1], place[2], place[3]))
    block: Voxels = np.empty((1,) * 4, dtype=object)
    block[0, 0, 0, 0] = (voxels.size, voxels.nbytes)
    return block


def _created(path: str) -> Any:
    try:
        return _zarr().create_group(path)
    except OSError as error:
        raise storage_error(error, path, "creating the image") from None


# --- zarr ----------------------------------------------------------------------------------------


def _zarr() -> Any:
    try:
        import zarr
    except ImportError:
        raise extra_error("zarr", "zarr") from None
    return zarr


def _opened(path: str, mode: str = "r") -> Any:
    """Return a zarr array or group."""
    zarr = _zarr()
    for name in _FILES:
        told = os.path.join(path, name)
        if os.path.exists(told) and not os.path.isfile(told):
            raise FormatError(f"{told} must be a file.")
        if os.path.exists(told) and os.path.getsize(told) > _MOST_BYTES:
            raise FormatError(f"{told} is far too large: restore a copy.")
    try:
        return zarr.open(path, mode=mode)
    except PermissionError as error:
        raise storage_error(error, path, "opening") from None
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise FormatError(f"{path} can't be opened as zarr ({error}).") from None


def _stem(path: str) -> str:
    """Return the name of a directory without what tells its format."""
    name = os.path.basename(path)
    for ending in (".zarr", ".ome"):
        name = name.removesuffix(ending)
    return name
