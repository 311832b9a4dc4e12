"""From any format that wkdask knows into any that it writes: looks what it is, and delegates."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, SupportsIndex, TypeAlias

import numpy as np

from wkdask.arrays.view import View
from wkdask.dataset.dataset import Dataset, Layer, open_mag
from wkdask.dataset.lookup import is_bare_mag, is_dataset
from wkdask.dataset.new import new_dataset
from wkdask.dataset.properties import check_unit
from wkdask.errors import ArgumentError, ExistsError, FormatError, MissingError
from wkdask.formats import ome_zarr, tiff
from wkdask.formats.image import Image, of_array, of_layer, of_npy, of_view
from wkdask.formats.names import Gaps
from wkdask.formats.wkw import Stored, check, image_added
from wkdask.geometry import MagLike, Vec3Like, absolute, whole
from wkdask.runtime.executors import ExecutorLike
from wkdask.runtime.run import Run
from wkdask.units import unit_named

__all__ = ["TARGET_FORMATS", "TargetFormat", "convert", "read"]

Source: TypeAlias = Any
"""What is read: a path, an array, or a dataset, layer or view of wkdask."""

TargetFormat = Literal["wkw", "zarr3", "ome-zarr", "zarr"]
TARGET_FORMATS: tuple[TargetFormat, ...] = ("wkw", "zarr3", "ome-zarr", "zarr")
"""What can be written."""
_DATASETS = ("wkw", "zarr3")

Path_ = str | os.PathLike[str]

# Names by which somebody seems to want a format that is not written.
_NOT_WRITTEN = (".npy", ".tif", ".tiff", ".n5", ".h5", ".hdf5", ".nrrd", ".nii")


def convert(
    source: Source,
    target: Path_ | Dataset,
    *,
    layer_name: str | None = None,
    category: str | None = None,
    voxel_size: tuple[float, float, float] | None = None,
    unit: str | None = None,
    axes: str | None = None,
    t: int | None = None,
    gaps: Gaps | None = None,
    offset: Vec3Like | None = None,
    mags: Iterable[MagLike] | None = None,
    to: TargetFormat | None = None,
    blocks_per_file_edge: SupportsIndex = 32,
    executor: ExecutorLike = None,
    retries: int = 0,
    resume: bool = False,
    progress: bool = False,
) -> Dataset | Path:
    """Convert an image to WKW, or a layer to OME-Zarr, with its mags, boxes, voxel size and unit.

    Voxels stream: each task reads what one file or shard of the target needs and writes it.

    Parameters
    ----------
    source
        A path: of a WKW dataset or mag directory, an OME-Zarr image or a zarr array, a `.npy` file,
        or a TIFF stack (a directory of slices, a pattern such as `"slices/*.tif"`, or a file of
        many pages). Or a `Dataset`, `Layer` or `View`; or a NumPy or dask array.
    target
        A dataset, or the path of one, which may exist: a layer is added to it. A name that ends in
        `.zarr` is a new OME-Zarr image.
    layer_name
        Of a dataset, the only layer to convert. Else the name of the layer that is made; None is
        that of the source.
    category
        `"color"` or `"segmentation"`; None is what the source says, else color.
    voxel_size, unit
        Edges of a voxel of mag 1, `(x, y, z)`, and their unit; None is what the source says, or the
        target, if it exists. Without a unit the voxel size is in nanometer.
    axes
        Of an array, what its axes are, such as `"zyx"` or `"czyx"`. None is `"xyz"` or `"cxyz"`
        for NumPy and dask, and what a zarr array says, else `"zyx"` or `"czyx"`. Of a TIFF stack,
        None is what the files say.
    t
        Which time point, counted from 0, if the source has several.
    gaps
        Where numbers are missing in the names of slices: `"zeros"` puts slices of zeros there,
        `"close"` takes the slices as neighbours. None is an error.
    offset
        Where the first voxel goes, `(x, y, z)`; None is what the source says, else (0, 0, 0).
        WKW sources keep their place.
    mags
        The only mags to convert.
    to
        `"wkw"`; `"zarr3"` for a dataset with [Zarr layers](zarr.md); `"ome-zarr"`; or `"zarr"` for
        an array of zarr v3 of one mag. None is as the target is named.
    blocks_per_file_edge
        Of files of a dataset that are made, a power of two. A task holds one file of a dask array,
        and at most 256 MiB of other sources.
    executor
        A `distributed.Client`, a `concurrent.futures.Executor`, or None for the active client or
        dask's threads.
    retries
        How often a task is tried again after an exception.
    resume
        Whether to go on with a layer that an earlier run of the same call began, and to skip the
        files that it finished, if it had resume too. Only datasets can be resumed.
    progress
        Whether to show bars.

    Returns
    -------
    Dataset or Path
        The dataset; or where the zarr is.

    Raises
    ------
    MissingError
        If there is no source.
    FormatError
        If it is in no format that wkdask knows, or holds what the target can't.
    ExistsError
        If the target has such a layer already, or is something else.
    ArgumentError
        If an argument can't be used, several layers could be meant, or the voxel size is not known.
    MissingExtraError
        If the package of a format is not installed; the text says what to install.

    Examples
    --------
    >>> tissue = np.arange(64**3, dtype=np.uint32).reshape(64, 64, 64)
    >>> ds = wkdask.convert(tissue, "tissue", layer_name="cells", voxel_size=(8, 8, 40))
    >>> int(ds["cells"][1][0, 1, 2, 3].compute())
    4227
    """
    run = Run(executor, "raise", retries, progress, name="convert")
    kind = _kind(target, to)
    if resume and kind not in _DATASETS:
        raise ArgumentError(f"resume works for WKW only, but the target is {kind}. Leave it out.")
    meant = _Meant(axes, offset, t, gaps)
    images = _chosen(source, layer_name, kind, meant)
    first = replace(images[0], name=layer_name or images[0].name)
    images = [replace(first, category=category or first.category), *images[1:]]
    images = [image.with_mags(mags) for image in images]
    known = _measured(images, target if kind in _DATASETS else None, voxel_size, unit)
    if kind == "ome-zarr":
        ome_zarr.write(known, _path(target), run=run)
        return Path(_path(target))
    if kind == "zarr":
        ome_zarr.write_array(known[0], _path(target), run=run)
        return Path(_path(target))
    stored = Stored(kind, whole(blocks_per_file_edge, "blocks_per_file_edge"))
    return _into_dataset(known, target, run, resume, stored)


@dataclass(frozen=True, slots=True)
class _Meant:
    """What a caller says of a source."""

    axes: str | None
    offset: Vec3Like | None
    t: int | None
    gaps: Gaps | None

    def check_none_but(self, names: Sequence[str], what: str) -> None:
        """Raise if more was said than counts for a source."""
        for name in ("axes", "offset", "t", "gaps"):
            if name not in names and getattr(self, name) is not None:
                raise ArgumentError(f"{name} does not count for {what} as source: leave it out.")

    def moved(self, image: Image) -> Image:
        """Return an image of one level at the offset."""
        if self.offset is None:
            return image
        level = image.levels[0]
        box = level.box.moved_by(self.offset)
        return replace(image, levels=(replace(level, corner=box.topleft),))


def read(
    source: Source,
    *,
    axes: str | None = None,
    offset: Vec3Like | None = None,
    t: int | None = None,
    gaps: Gaps | None = None,
) -> tuple[Image, ...]:
    """Return what a source holds as lazy images; the first is the image, the others its labels.

    Parameters
    ----------
    source, axes, offset, t, gaps
        As in `convert`.

    Raises
    ------
    MissingError, FormatError, ArgumentError, MissingExtraError
        As in `convert`.
    """
    return _read(source, _Meant(axes, offset, t, gaps))


def _read(source: Source, meant: _Meant) -> tuple[Image, ...]:
    axes, t = meant.axes, meant.t
    if isinstance(source, Dataset | Layer | View):
        meant.check_none_but((), "WKW")
    if isinstance(source, Dataset):
        source.json.content.check_readable()
        return tuple(map(of_layer, source.layers.values()))
    if isinstance(source, Layer):
        return (of_layer(source),)
    if isinstance(source, View):
        return (of_view(source),)
    if not isinstance(source, str | os.PathLike):
        meant.check_none_but(("axes", "offset", "t"), "an array")
        return (meant.moved(of_array(source, axes, t)),)
    path = absolute(source)
    if is_dataset(path):
        return _read(Dataset(path), meant)
    if is_bare_mag(path) and not ome_zarr.is_zarr(path):
        meant.check_none_but((), "WKW")
        return (of_view(open_mag(path)),)
    if tiff.is_tiff(path) and not ome_zarr.is_zarr(path):
        return (meant.moved(tiff.read(path, axes=axes, t=t, gaps=meant.gaps)),)
    meant.check_none_but(("axes", "offset", "t"), "all but TIFF")
    if ome_zarr.is_zarr(path):
        return ome_zarr.read(path, axes=axes, offset=meant.offset, t=t)
    if path.endswith(".npy") and os.path.isfile(path):
        return (meant.moved(of_npy(path, axes, t)),)
    if not os.path.lexists(path):
        raise MissingError(f"{path} does not exist.")
    raise FormatError(
        f"{path} is in no format that wkdask knows: a WKW dataset or mag directory, OME-Zarr, a "
        "zarr array, a .npy file, or a TIFF file or directory of TIFF slices."
    )


def _kind(target: Path_ | Dataset, to: TargetFormat | None) -> TargetFormat:
    if to is not None and to not in TARGET_FORMATS:
        raise ArgumentError(f"to is {to!r}, but must be one of {', '.join(TARGET_FORMATS)}.")
    if isinstance(target, Dataset):
        if to not in (None, *_DATASETS):
            raise ArgumentError(f"to is {to!r}, but the target is a WKW dataset.")
        return to or "wkw"
    name = os.fspath(target).rstrip(os.sep)
    if to is None and name.lower().endswith(_NOT_WRITTEN):
        raise ArgumentError(
            f"{name} sounds like a format that wkdask does not write. Name a directory for a WKW "
            "dataset, or a path that ends in .zarr for OME-Zarr."
        )
    return to or ("ome-zarr" if name.endswith(".zarr") else "wkw")


def _path(target: Path_ | Dataset) -> str:
    return absolute(target.path if isinstance(target, Dataset) else target)


def _chosen(
    source: Source, layer_name: str | None, kind: TargetFormat, meant: _Meant
) -> list[Image]:
    """Return the images to convert; of a dataset, those of one layer or of all."""
    if isinstance(source, str | os.PathLike) and is_dataset(source):
        source = Dataset(source)
    if not isinstance(source, Dataset):
        images = list(_read(source, meant))
        return images[:1] if kind == "zarr" else images
    meant.check_none_but((), "WKW")
    if layer_name is None:
        source.json.content.check_readable()
    if not source.layers:
        raise ArgumentError(f"{source.path} has no layers: there is nothing to convert.")
    layers = list(source.layers.values()) if layer_name is None else [source[layer_name]]
    if kind in _DATASETS or len(layers) == 1:
        return list(map(of_layer, layers))
    names = ", ".join(layer.name for layer in layers)
    colors = [layer for layer in layers if layer.category == "color"]
    if kind == "zarr" or len(colors) != 1:
        raise ArgumentError(
            f"{source.path} has the layers {names}, but one {kind} holds "
            f"{'one' if kind == 'zarr' else 'one of color, with segmentations as its labels'}. "
            "Choose one by layer_name (--layer-name)."
        )
    labels = [layer for layer in layers if layer.category != "color"]
    return [of_layer(layer) for layer in (*colors, *labels)]


def _measured(
    images: list[Image],
    target: Path_ | Dataset | None,
    voxel_size: tuple[float, float, float] | None,
    unit: str | None,
) -> list[Image]:
    """Return images of which voxel size and unit are known."""
    dataset = _existing(target)
    known = images[0]
    if voxel_size is None and known.voxel_size is None and dataset is not None:
        voxel_size, unit = dataset.voxel_size, unit or dataset.unit
    size = voxel_size or known.voxel_size
    if size is None:
        raise ArgumentError(
            "nobody says how large a voxel is: pass voxel_size=(x, y, z) (--voxel-size X,Y,Z), the "
            "edges of one of mag 1."
        )
    unit = unit or ("nanometer" if voxel_size is not None else known.unit)
    if unit is None:
        raise ArgumentError(
            f"the source says that voxels are {size}, but not of what unit: pass unit (--unit)."
        )
    if unit == known.unit and unit_named(unit) is None:
        raise FormatError(f"the source has the unit {unit!r}, which WEBKNOSSOS lacks: pass unit.")
    unit = unit_named(unit) or unit
    check_unit(unit)
    if not all(np.isfinite(edge) and edge > 0 for edge in size) or len(size) != 3:
        raise ArgumentError(f"voxel_size is {size!r}, but must be three positive lengths.")
    return [replace(image, voxel_size=size, unit=unit) for image in images]


def _existing(target: Path_ | Dataset | None) -> Dataset | None:
    if target is None or isinstance(target, Dataset):
        return target
    return Dataset(target) if is_dataset(absolute(target)) else None


def _into_dataset(
    images: list[Image],
    target: Path_ | Dataset,
    run: Run,
    resume: bool,
    stored: Stored,
) -> Dataset:
    named = {image.name or "": image for image in images}
    if "" in named:
        raise ArgumentError("the layer has no name: pass layer_name (--layer-name).")
    if len(named) < len(images):
        raise ArgumentError(
            f"the image {images[0].name!r} has a label of the same name: pass another layer_name "
            "(--layer-name)."
        )
    for name, image in named.items():
        check(image, name, run, stored)
    found = _existing(target)
    taken = [name for name in named if found is not None and name in found.layers]
    if found is not None and taken and not resume:
        raise ExistsError(
            f"{found.path} has a layer {taken[0]!r} already: choose another layer_name "
            "(--layer-name), or resume what an earlier run began."
        )
    image = images[0]
    assert image.voxel_size is not None
    assert image.unit is not None
    with contextlib.ExitStack() as stack:
        # Also of a dataset that is given the voxel size is compared.
        made = stack.enter_context(
            new_dataset(Path(_path(target)), image.voxel_size, image.unit, keep=resume)
        )
        dataset = target if isinstance(target, Dataset) else made
        for name, image in named.items():
            stack.enter_context(
                image_added(dataset, image, name, run=run, resume=resume, stored=stored)
            )
    return dataset
