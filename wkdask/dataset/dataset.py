"""Datasets, layers and mags: what WEBKNOSSOS shows of a directory.

It brings `datasource-properties.json` and mag directories together and checks one against the
other. Voxels are the business of views; `MagView` is the view of a whole mag.
"""

from __future__ import annotations

import contextlib
import os
import re
import warnings
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, SupportsIndex, overload

import numpy as np
from numpy.typing import DTypeLike, NDArray

from wkdask.arrays import labelled
from wkdask.arrays.labelled import Coords, Labels
from wkdask.arrays.shown import shown_layer
from wkdask.arrays.view import View
from wkdask.dataset import facts, properties
from wkdask.dataset.directories import MagDirectories, NewMag
from wkdask.dataset.properties import (
    DatasetProperties,
    LayerProperties,
    MagProperties,
    PropertiesFile,
)
from wkdask.errors import (
    ArgumentError,
    ExistsError,
    NameLookupError,
    WkdaskError,
    storage_error,
)
from wkdask.geometry import (
    BoundingBox,
    Mag,
    MagLike,
    Vec3,
    Vec3Like,
    vec3,
    whole,
)
from wkdask.grids import ChunksLike
from wkdask.pyramid import build, rewrite
from wkdask.pyramid.mags import SamplingMode
from wkdask.pyramid.plan import PyramidPlan
from wkdask.runtime import config
from wkdask.runtime.executors import ExecutorLike
from wkdask.runtime.run import Run, RunReport
from wkdask.show import cards
from wkdask.show.facts import LayerFacts, MagFacts
from wkdask.show.shown import ShownLayer
from wkdask.storage.header import DTYPES, BlockType, check_addressable
from wkdask.storage.opening import new_layout, open_volume
from wkdask.storage.place import LOCAL, Address
from wkdask.storage.remote import place_of
from wkdask.storage.volume import Layout, Volume
from wkdask.storage.zarr_layout import Codec

if TYPE_CHECKING:
    import xarray as xr
    from matplotlib.axes import Axes

    from wkdask.show.viewer import Viewer

__all__ = ["Dataset", "Layer", "MagView", "create", "mag_named", "open", "open_mag"]

Path_ = str | os.PathLike[str]
DataFormat = Literal["wkw", "zarr3", "zarr"]
_MOST_PLOTTED = 1024
_EMPTY = BoundingBox((0, 0, 0), (0, 0, 0))


def open(  # noqa: A001
    path: Path_, *, storage_options: Mapping[str, Any] | None = None
) -> Dataset:
    """Open a dataset, a directory with `datasource-properties.json`.

    Parameters
    ----------
    path
        The directory, or its address, `"https://..."` or `"s3://..."`, which needs
        `wkdask[remote]`. Web servers are read, object stores are written to as well.
    storage_options
        How an address is reached: settings of obstore's store of that kind, such as
        `{"endpoint": ..., "skip_signature": True}` for S3 or `{"headers": {...}}` for a web server.
        They also count for mags that lie at other addresses. Without them, credentials are found
        as the programs of the store find them.

    Raises
    ------
    MissingError
        If the directory or the file is missing.
    PropertiesError
        If the file can't be understood.
    RemoteError
        If a server does not answer.

    Examples
    --------
    >>> _ = wkdask.create("tissue", voxel_size=(11.24, 11.24, 28))
    >>> wkdask.open("tissue").voxel_size
    (11.24, 11.24, 28.0)
    """
    return Dataset(path, storage_options)


def create(
    path: Path_,
    voxel_size: tuple[float, float, float],
    unit: str = "nanometer",
    exist_ok: bool = False,
    *,
    storage_options: Mapping[str, Any] | None = None,
) -> Dataset:
    """Make a dataset without layers.

    Parameters
    ----------
    path
        The directory, or its address in an object store such as `"s3://..."`, which needs
        `wkdask[remote]`; the last part is the dataset's name.
    voxel_size
        Edges of a voxel of mag 1, `(x, y, z)`, in `unit`.
    unit
        A unit of length that WEBKNOSSOS knows.
    exist_ok
        Whether an existing dataset is opened; its voxel size and unit must be the same.
    storage_options
        See `open`.

    Raises
    ------
    ExistsError
        If something else is there.
    ArgumentError
        If the voxel size or the unit can't be used.
    """
    where, place = place_of(path, storage_options)
    properties.check_unit(unit)
    new = DatasetProperties(
        name=os.path.basename(where),
        voxel_size=_voxel_size(voxel_size),
        unit=unit,
        extra={"version": 1},
    )
    if place is not LOCAL:
        data = properties.render(new).encode()
        if not place.create(os.path.join(where, properties.FILE_NAME), data):
            return _existing(Dataset(where, storage_options), new, exist_ok)
        return Dataset(where, storage_options)
    directory = Path(where)
    if os.path.lexists(directory / properties.FILE_NAME):
        return _existing(Dataset(directory), new, exist_ok)
    if os.path.lexists(directory) and (not directory.is_dir() or any(directory.iterdir())):
        raise ExistsError(f"{directory} exists and is no empty directory: choose another path.")
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise storage_error(error, directory, "creating the dataset") from None
    properties.save(directory, new)
    return Dataset(directory)


def open_mag(
    path: Path_,
    *,
    bounding_box: BoundingBox | None = None,
    storage_options: Mapping[str, Any] | None = None,
) -> MagView:
    """Open a bare mag directory; its box is that of the files on disk.

    Parameters
    ----------
    path
        A directory with `header.wkw`, `zarr.json` or `.zarray`, or its address. Where its name is a
        mag, such as `2-2-1`, that is its mag.
    bounding_box
        Which voxels of the mag it has, which is found out otherwise. Web servers don't list files,
        so that it must be given for WKW there.
    storage_options
        See `open`.

    Raises
    ------
    MissingError
        If there is no such directory, or no such file in it.
    FormatError
        If `header.wkw` is not a WKW header, or the array is none that wkdask reads.
    """
    volume = open_volume(path, storage_options)
    mag = mag_named(os.path.basename(volume.path))
    box = volume.box_on_disk() if bounding_box is None else bounding_box
    return MagView(volume, box, Labels(mag=mag), read_only=not volume.can_be_written)


def mag_named(name: str) -> Mag | None:
    """Return the mag whose directory has a name, if it is one, such as `2-2-1`."""
    return Mag(name) if re.fullmatch(r"[1-9]\d*(-[1-9]\d*-[1-9]\d*)?", name) else None


class Dataset:
    """A directory of layers; get one from `wkdask.open` or `wkdask.create`.

    Each change reads `datasource-properties.json` again and replaces it atomically.
    """

    def __init__(self, path: Path_, storage_options: Mapping[str, Any] | None = None) -> None:
        self._json = PropertiesFile(path, storage_options)

    @property
    def json(self) -> PropertiesFile:
        """The JSON, through which every change goes."""
        return self._json

    @property
    def path(self) -> Path | Address:
        """The directory, absolute; of a dataset at an address, that."""
        return self._json.directory

    @property
    def name(self) -> str:
        """The name in the JSON."""
        return self._json.content.name

    @property
    def voxel_size(self) -> tuple[float, float, float]:
        """Edges of a voxel of mag 1, `(x, y, z)`, in `unit`."""
        return self._json.content.known_voxel_size()

    @property
    def unit(self) -> str:
        """The unit of `voxel_size`."""
        return self._json.content.unit

    @property
    def layers(self) -> dict[str, Layer]:
        """The layers by name, also those in formats that wkdask does not read.

        Those whose JSON can't be understood are left out: `dataset[name]` raises what is wrong with
        such a layer, and the `repr` of the dataset names them.
        """
        return {layer.name: Layer(self, layer.name) for layer in self._json.content.layers}

    def __getitem__(self, name: str) -> Layer:
        self._json.content.layer(name)
        return Layer(self, name)

    def add_layer(
        self,
        name: str,
        category: str,
        dtype: DTypeLike,
        num_channels: SupportsIndex = 1,
        bounding_box: BoundingBox | None = None,
        *,
        largest_segment_id: int | None = None,
        data_format: DataFormat = "wkw",
    ) -> Layer:
        """Add a layer without mags.

        Parameters
        ----------
        name
            Also the name of its directory.
        category
            `"color"` or `"segmentation"`.
        dtype
            One of the ten dtypes of WKW; whole numbers for a segmentation.
        num_channels
            Values per voxel.
        bounding_box
            Where data will be, in voxels of mag 1; `MagView.write` extends it.
        largest_segment_id
            Of a segmentation, if known.
        data_format
            `"wkw"`; or `"zarr3"`, which needs `wkdask[zarr]`: shards of zarr version 3, as
            WEBKNOSSOS writes them; or `"zarr"`, version 2, in which each block is a file.

        Raises
        ------
        ExistsError
            If there is a layer of this name.
        ArgumentError
            If an argument can't be used, such as a name that leaves the dataset.
        """
        properties.check_data_format(data_format)
        voxel = new_layout(
            data_format, _dtype_name(dtype), whole(num_channels, "num_channels")
        ).voxel_type
        layer = LayerProperties(
            name=name,
            category=category,
            bounding_box=_checked_box(bounding_box or _EMPTY),
            dtype=voxel.dtype,
            num_channels=voxel.num_channels,
            data_format=data_format,
            largest_segment_id=largest_segment_id,
        )
        properties.check_new_layer(layer)

        def added(found: DatasetProperties) -> DatasetProperties:
            if name in found.names():
                raise ExistsError(f"{self.path} has a layer {name!r} already.")
            return found.with_layer(layer)

        self._json.change(added)
        return Layer(self, name)

    def to_datatree(self, chunks: ChunksLike = "file", coords: Coords = "voxel") -> xr.DataTree:
        """Return all layers as an `xarray.DataTree`, with nodes such as `/color/2-2-1`.

        Parameters
        ----------
        chunks, coords
            See `View.to_xarray`.

        Raises
        ------
        WkdaskError
            If a mag can't be opened. Layers in formats that wkdask does not read are left out.
        """
        layers = [layer for layer in self.layers.values() if layer.properties.can_be_read]
        views = {f"/{a.name}/{mag}": view for a in layers for mag, view in a.mags.items()}
        groups = labelled.to_groups(views, self.attrs, chunks, coords)
        return labelled.to_datatree(groups, self.name)

    @property
    def attrs(self) -> dict[str, Any]:
        """What xarray shows of the dataset: name, voxel size and unit, as plain values."""
        known = self._json.content
        size = {} if known.voxel_size is None else {"voxel_size": list(known.voxel_size)}
        return {"name": self.name, **size, "voxel_size_unit": self.unit}

    def show(self, **traits: Any) -> Viewer:
        """Show the layers in a viewer: segmentations over grey values; needs `wkdask[viewer]`.

        Of several layers with grey values the first one is visible at the beginning.

        Parameters
        ----------
        traits
            See `View.show`.

        Raises
        ------
        MissingExtraError
            If anywidget is not installed.
        ArgumentError
            If there is no layer with voxels.
        """
        from wkdask.show.viewer import Viewer

        shown = []
        for name, layer in self.layers.items():
            said = layer.properties
            if said.can_be_read and said.mags and not said.bounding_box.is_empty:
                try:
                    shown.append(layer.shown())
                except WkdaskError as error:
                    warnings.warn(f"layer {name!r} is left out: {error}", stacklevel=2)
        return Viewer(shown, **traits)

    def __repr__(self) -> str:
        return cards.dataset_text(*self._told)

    def _repr_html_(self) -> str:
        """Return a card with a table of the layers, as Jupyter shows it."""
        return cards.dataset_html(*self._told)

    @property
    def _told(self) -> tuple[str, str, tuple[str, ...], list[LayerFacts]]:
        known = self._json.content
        return known.name, str(self.path), facts.size_told(known), facts.layers_facts(known)


class Layer:
    """A layer of a dataset: the same tissue in one or more mags; get one by `dataset[name]`."""

    def __init__(self, dataset: Dataset, name: str) -> None:
        self._dataset = dataset
        self._directories = MagDirectories(dataset.json, name)

    @property
    def dataset(self) -> Dataset:
        """The dataset of the layer."""
        return self._dataset

    @property
    def properties(self) -> LayerProperties:
        """What the JSON says of the layer."""
        return self._directories.properties

    @property
    def name(self) -> str:
        """The name, unique in the dataset."""
        return self._directories.name

    @property
    def directories(self) -> MagDirectories:
        """The mag directories, for what works on a layer as a whole."""
        return self._directories

    @property
    def category(self) -> str:
        """`"color"` or `"segmentation"`."""
        return self.properties.category

    @property
    def dtype(self) -> np.dtype[Any]:
        """The dtype of one channel."""
        return np.dtype(self.properties.dtype)

    @property
    def num_channels(self) -> int:
        """Values per voxel."""
        return self.properties.num_channels

    @property
    def data_format(self) -> str:
        """How voxels are stored; wkdask reads and writes `"wkw"`, `"zarr3"` and `"zarr"`."""
        return self.properties.data_format

    @property
    def largest_segment_id(self) -> int | None:
        """The largest id of a segmentation, if known."""
        return self.properties.largest_segment_id

    @largest_segment_id.setter
    def largest_segment_id(self, value: int | None) -> None:
        self._directories.change(lambda found: replace(found, largest_segment_id=value))

    @property
    def bounding_box(self) -> BoundingBox:
        """Where there are data, in voxels of mag 1."""
        return self.properties.bounding_box

    @bounding_box.setter
    def bounding_box(self, value: BoundingBox) -> None:
        box = _checked_box(value)
        self._directories.change(lambda found: replace(found, bounding_box=box))

    @property
    def mags(self) -> dict[Mag, MagView]:
        """The mags, from fine to coarse."""
        return {entry.mag: self.open_entry(entry) for entry in self._entries}

    def __getitem__(self, mag: MagLike) -> MagView:
        wanted = Mag(mag)
        for entry in self._entries:
            if entry.mag == wanted:
                return self.open_entry(entry)
        self.properties.check_readable(str(wanted))
        names = ", ".join(str(entry.mag) for entry in self._entries)
        raise NameLookupError(
            f"layer {self.name!r} has no mag {wanted}; it has {names or 'none: add_mag makes one'}."
        )

    def add_mag(
        self,
        mag: MagLike,
        block_edge: SupportsIndex = 32,
        blocks_per_file_edge: SupportsIndex | None = None,
        block_type: BlockType | Codec | None = None,
        *,
        data_format: DataFormat | None = None,
    ) -> MagView:
        """Add a mag without voxels, that is, full of zeros.

        Parameters
        ----------
        mag
            Its factors, such as `2` or `"2-2-1"`.
        block_edge
            Voxels per edge of a block, a power of two.
        blocks_per_file_edge
            Blocks per edge of a file, a power of two; None is 32, or 1 for `"zarr"`, which has no
            files of several blocks.
        block_type
            `"raw"`, `"lz4"`, or `"lz4hc"`, which is smaller and slower to write; None is what
            dask's setting `wkdask.block-type` says, `"lz4hc"` at first. Of Zarr layers `"raw"` or
            `"zstd"`; None is `"zstd"`.
        data_format
            None is that of the layer; another one only for its first mag, of which the layer takes
            the format.

        Raises
        ------
        ExistsError
            If the layer has this mag, or its directory holds voxels.
        ArgumentError
            If an argument can't be used.
        """
        self._directories.refresh()
        found = self.properties
        if data_format is None:
            self._directories.check_format()
        else:
            properties.check_data_format(data_format)
        kind = data_format or found.data_format
        blocks = blocks_per_file_edge
        layout = new_layout(
            kind,
            found.dtype,
            found.num_channels,
            whole(block_edge, "block_edge"),
            None if blocks is None else whole(blocks, "blocks_per_file_edge"),
            config.blocks_of_new(block_type, kind),
        )
        if kind != found.data_format:
            self._directories.change(lambda layer: layer.with_data_format(kind))
        return self.open_entry(self._directories.add(Mag(mag), layout))

    def open_new(self, new: NewMag) -> MagView:
        """Return the view of a mag that is being made, which the JSON does not list yet."""
        view = self.open_entry(new.entry)
        return view.with_volume(replace(view.volume, is_claimed=True))

    def open_entry(self, entry: MagProperties) -> MagView:
        """Return the view of a mag, also of one that the JSON does not list yet."""
        volume = self._directories.open(entry)
        found, dataset = self.properties, self._dataset
        labels = Labels(
            entry.mag, found.name, found.category, dataset.json.content.voxel_size, dataset.unit,
            found.largest_segment_id, str(dataset.path),
        )  # fmt: skip
        factors = entry.mag.factors
        box = found.bounding_box.align_with_mag(factors, ceil=True).in_mag(factors)
        is_outside = not self._directories.is_inside(volume.path)
        read_only = is_outside or not volume.can_be_written
        return MagView(volume, box, labels, layer=self, read_only=read_only)

    @overload
    def downsample(
        self, from_mag: MagLike | None = ..., coarsest_mag: MagLike | None = ...,
        mags: Iterable[MagLike] | None = ..., *, dry_run: Literal[False] = ...,
        sampling_mode: SamplingMode = ..., mode: str = ...,
        block_type: BlockType | Codec | None = ...,
        executor: ExecutorLike = ..., retries: int = ..., resume: bool = ...,
        force: bool = ..., progress: bool = ...,
    ) -> RunReport: ...  # fmt: skip

    @overload
    def downsample(
        self, from_mag: MagLike | None = ..., coarsest_mag: MagLike | None = ...,
        mags: Iterable[MagLike] | None = ..., *, dry_run: Literal[True],
        sampling_mode: SamplingMode = ..., mode: str = ...,
        block_type: BlockType | Codec | None = ...,
        executor: ExecutorLike = ..., retries: int = ..., resume: bool = ...,
        force: bool = ..., progress: bool = ...,
    ) -> PyramidPlan: ...  # fmt: skip

    @overload
    def downsample(
        self, from_mag: MagLike | None = ..., coarsest_mag: MagLike | None = ...,
        mags: Iterable[MagLike] | None = ..., *, dry_run: bool,
        sampling_mode: SamplingMode = ..., mode: str = ...,
        block_type: BlockType | Codec | None = ...,
        executor: ExecutorLike = ..., retries: int = ..., resume: bool = ...,
        force: bool = ..., progress: bool = ...,
    ) -> RunReport | PyramidPlan: ...  # fmt: skip

    def downsample(
        self,
        from_mag: MagLike | None = None,
        coarsest_mag: MagLike | None = None,
        mags: Iterable[MagLike] | None = None,
        *,
        sampling_mode: SamplingMode = "anisotropic",
        mode: str = "default",
        block_type: BlockType | Codec | None = None,
        executor: ExecutorLike = None,
        retries: int = 0,
        resume: bool = False,
        force: bool = False,
        dry_run: bool = False,
        progress: bool = False,
    ) -> RunReport | PyramidPlan:
        """Make coarser mags, each from the one before it, as one run.

        A file is made as soon as the files under it are there. The mags are listed in the JSON when
        all are finished; until then the dataset opens as it was.

        Parameters
        ----------
        from_mag
            Where to begin; None is the coarsest mag that there is.
        coarsest_mag
            Where to end, by its largest factor; None is where the layer is about 100 voxels wide,
            and at least mag 4.
        mags
            The mags to make, instead of the two rules that `sampling_mode` and `coarsest_mag` are.
        sampling_mode
            `"anisotropic"`: halve the axes that bring voxels nearest to cubes. `"isotropic"`: all.
            `"constant_z"`: x and y; also for a layer of depth 1.
        mode
            See `wkdask.downsample`; `"default"` is `"mode"` for a segmentation, else `"median"`.
        block_type
            `"raw"`, `"lz4"` or `"lz4hc"`.
        executor
            A `distributed.Client`, a `concurrent.futures.Executor`, or None for the active client
            or dask's threads.
        retries
            How often a task is tried again after an exception.
        resume
            Whether to go on with what an earlier run with `resume=True` has left.
        force
            Whether a segmentation may be sampled by a mode that invents ids.
        dry_run
            Whether only to tell what would be made.
        progress
            Whether to show a bar.

        Returns
        -------
        RunReport or PyramidPlan
            What was done; its chunks are files. With `dry_run` what would be done.

        Raises
        ------
        ExistsError
            If a mag is there already.
        ArgumentError
            If an argument can't be used.
        NothingToDoError
            If there is nothing to make, or no voxels to make it from.

        Examples
        --------
        >>> ds = wkdask.create("tissue", voxel_size=(11.24, 11.24, 25))
        >>> box = wkdask.BoundingBox((0, 0, 0), (64, 64, 64))
        >>> layer = ds.add_layer("color", "color", "uint8", bounding_box=box)
        >>> layer.add_mag(1).write(np.full((64, 64, 64), 7, np.uint8))
        >>> print(layer.downsample(dry_run=True))
        color: from mag 1 by median, files of edge 1024, lz4hc
          mag       voxel size nm        voxels  files  bytes at most
        2-2-1  22.48 x 22.48 x 25  32 x 32 x 64      1         65,536
        4-4-2  44.96 x 44.96 x 50  16 x 16 x 32      1          8,192
        2 files, 0.00 GiB before compression, 128 MiB of memory per task
        >>> layer.downsample().done
        2
        >>> list(layer.mags)
        [Mag('1'), Mag('2-2-1'), Mag('4-4-2')]
        """
        way = build.Coarser(from_mag, coarsest_mag, mags, sampling_mode)
        how = build.How(
            mode,
            config.blocks_of_new(block_type, self.data_format),
            Run(executor, retries=retries, progress=progress, name="downsample"),
        )
        return build.build(self, way, how, resume=resume, force=force, dry_run=dry_run)

    @overload
    def upsample(
        self, from_mag: MagLike | None = ..., finest_mag: MagLike = ...,
        mags: Iterable[MagLike] | None = ..., *, dry_run: Literal[False] = ...,
        sampling_mode: SamplingMode = ..., mode: str = ...,
        block_type: BlockType | Codec | None = ...,
        executor: ExecutorLike = ..., retries: int = ..., resume: bool = ...,
        force: bool = ..., progress: bool = ...,
    ) -> RunReport: ...  # fmt: skip

    @overload
    def upsample(
        self, from_mag: MagLike | None = ..., finest_mag: MagLike = ...,
        mags: Iterable[MagLike] | None = ..., *, dry_run: Literal[True],
        sampling_mode: SamplingMode = ..., mode: str = ...,
        block_type: BlockType | Codec | None = ...,
        executor: ExecutorLike = ..., retries: int = ..., resume: bool = ...,
        force: bool = ..., progress: bool = ...,
    ) -> PyramidPlan: ...  # fmt: skip

    @overload
    def upsample(
        self, from_mag: MagLike | None = ..., finest_mag: MagLike = ...,
        mags: Iterable[MagLike] | None = ..., *, dry_run: bool,
        sampling_mode: SamplingMode = ..., mode: str = ...,
        block_type: BlockType | Codec | None = ...,
        executor: ExecutorLike = ..., retries: int = ..., resume: bool = ...,
        force: bool = ..., progress: bool = ...,
    ) -> RunReport | PyramidPlan: ...  # fmt: skip

    def upsample(
        self,
        from_mag: MagLike | None = None,
        finest_mag: MagLike = 1,
        mags: Iterable[MagLike] | None = None,
        *,
        sampling_mode: SamplingMode = "anisotropic",
        mode: str = "default",
        block_type: BlockType | Codec | None = None,
        executor: ExecutorLike = None,
        retries: int = 0,
        resume: bool = False,
        force: bool = False,
        dry_run: bool = False,
        progress: bool = False,
    ) -> RunReport | PyramidPlan:
        """Make finer mags, each from the one before it, as one run.

        Parameters
        ----------
        from_mag
            Where to begin; None is the finest mag that there is.
        finest_mag
            Where to end.
        mags
            The mags to make, instead of what downsampling from `finest_mag` would have made.
        mode
            `"nearest"`, which is the default, or `"bilinear"`.
        sampling_mode, block_type, executor, retries, resume, force, dry_run, progress
            See `downsample`.

        Returns
        -------
        RunReport or PyramidPlan
            What was done; its chunks are files. With `dry_run` what would be done.

        Raises
        ------
        ExistsError, ArgumentError, NothingToDoError
            As `downsample`.

        Examples
        --------
        >>> ds = wkdask.create("tissue", voxel_size=(8, 8, 8))
        >>> box = wkdask.BoundingBox((0, 0, 0), (64, 64, 64))
        >>> layer = ds.add_layer("cells", "segmentation", "uint32", bounding_box=box)
        >>> layer.add_mag(4).write(np.full((16, 16, 16), 7, np.uint32))
        >>> layer.upsample().done
        2
        >>> list(layer.mags)
        [Mag('1'), Mag('2'), Mag('4')]
        """
        way = build.Finer(from_mag, finest_mag, mags, sampling_mode)
        how = build.How(
            mode,
            config.blocks_of_new(block_type, self.data_format),
            Run(executor, retries=retries, progress=progress, name="upsample"),
        )
        return build.build(self, way, how, resume=resume, force=force, dry_run=dry_run)

    def to_xarray(
        self, mag: MagLike | None = None, chunks: ChunksLike = "file", coords: Coords = "voxel"
    ) -> xr.DataArray:
        """Return a mag as a lazy `xarray.DataArray`; see `View.to_xarray`.

        Parameters
        ----------
        mag
            None is the finest one.
        chunks, coords
            See `View.to_xarray`.

        Raises
        ------
        NameLookupError
            If there is no such mag.
        """
        if mag is None and self._entries:
            mag = self._entries[0].mag
        return self[Mag(1) if mag is None else mag].to_xarray(chunks, coords)

    def to_datatree(self, chunks: ChunksLike = "file", coords: Coords = "voxel") -> xr.DataTree:
        """Return all mags as an `xarray.DataTree`, with nodes such as `/2-2-1`.

        Parameters
        ----------
        chunks, coords
            See `View.to_xarray`.
        """
        views = {f"/{mag}": view for mag, view in self.mags.items()}
        groups = labelled.to_groups(views, self._dataset.attrs, chunks, coords)
        return labelled.to_datatree(groups, self.name)

    def plot(
        self,
        x: float | None = None,
        y: float | None = None,
        z: float | None = None,
        *,
        mag: MagLike | None = None,
        labels: Layer | View | None = None,
        **options: Any,
    ) -> dict[str, Axes]:
        """Draw the three planes through a point, from a mag that fits; see `View.plot`.

        Parameters
        ----------
        x, y, z
            The point, in voxels of mag 1; None is the middle.
        mag
            None is the finest whose box has at most 1,024 voxels along each axis, or the coarsest.
        labels
            A segmentation that is drawn over it, or a view of one.
        options
            `channel`, `vmin` and `vmax`, as in `ArrayAccessor.plot`.
        """
        over = labels.to_plot() if isinstance(labels, Layer) else labels
        drawn = self.to_plot() if mag is None else self[mag]
        return drawn.plot(x, y, z, labels=over, **options)

    def to_plot(self) -> MagView:
        """Return the finest mag with at most 1,024 voxels along each axis, or the coarsest."""
        mags = self._to_show()
        small = (mag for mag in mags if max(mag.bounding_box.size) <= _MOST_PLOTTED)
        return next(small, mags[-1])

    def shown(self) -> ShownLayer:
        """Return what `show` and pictures need to know of the layer; it reads from there."""
        return shown_layer(self._to_show(), self.bounding_box)

    def coarser(self, mag: Mag) -> list[MagView]:
        """Return the mags that can be opened and whose voxels are larger along every axis."""
        factors = mag.factors
        larger = (
            view for view in self._to_show() if view.mag is not None and view.mag != mag
            and all(a >= b for a, b in zip(view.mag, factors, strict=True))
        )  # fmt: skip
        return list(larger)

    def show(self, **traits: Any) -> Viewer:
        """Show all mags of the layer in a viewer; see `View.show`."""
        from wkdask.show.viewer import Viewer

        return Viewer([self.shown()], **traits)

    def __repr__(self) -> str:
        return cards.layer_text(*self._told(with_files=False))

    def _repr_html_(self) -> str:
        """Return a card: a table of the mags and a drawing of the files, as Jupyter shows it."""
        return cards.layer_html(*self._told(with_files=True))

    def _to_show(self) -> list[MagView]:
        """Return the mags that can be opened, from fine to coarse, or raise if there is none."""
        error: WkdaskError = NameLookupError(f"layer {self.name!r} has no mag to be shown.")
        self._directories.check_format()
        found = []
        for entry in self._entries:
            try:
                found.append(self.open_entry(entry))
            except WkdaskError as caught:
                error = caught
        if not found:
            raise error
        return found

    def _told(self, *, with_files: bool) -> tuple[LayerFacts, list[MagFacts]]:
        said, content = self.properties, self._dataset.json.content
        mags = facts.mags_facts(said, self.open_entry, with_files=with_files)
        return facts.layer_facts(said, content), mags

    @property
    def _entries(self) -> tuple[MagProperties, ...]:
        return self.properties.mags


class MagView(View):
    """The view of a whole mag.

    Positions in `read`, `write` and `get_view` are absolute, and writing is not bounded. Arrays
    (`to_dask`, `[...]`, `to_xarray`, `store`) and chunk functions cover `bounding_box`.
    """

    def __init__(
        self,
        volume: Volume,
        bounding_box: BoundingBox,
        labels: Labels,
        *,
        layer: Layer | None = None,
        read_only: bool = False,
    ) -> None:
        # Not by the constructor of a view, which takes a path and a header of `wkw`.
        self._is_bounded = False
        self._mag_box = None
        box = BoundingBox((0, 0, 0), bounding_box.bottomright)
        self._begin(volume, box, read_only, labels)
        self._data_box = bounding_box
        self._layer = layer

    @property
    def bounding_box(self) -> BoundingBox:
        """The layer's box in voxels of this mag, aligned outwards; it grows with the layer."""
        if self._layer is None or self.mag is None:
            return self._data_box
        return self._layer.bounding_box.align_with_mag(self.mag, ceil=True).in_mag(self.mag)

    @property
    def layer_box(self) -> BoundingBox:
        """The same as `bounding_box`."""
        return self.bounding_box

    @property
    def size(self) -> Vec3:
        """Where `bounding_box` ends: a mag begins at (0, 0, 0)."""
        return self.bounding_box.bottomright

    @property
    def layer(self) -> Layer | None:
        """The layer, if the mag was opened through one."""
        return self._layer

    def get_view(
        self,
        offset: Vec3Like | None = None,
        size: Vec3Like | None = None,
        read_only: bool | None = None,
    ) -> View:
        """Return a view of a part.

        Parameters
        ----------
        offset
            Its first voxel, absolute; None is the first one of `bounding_box`.
        size
            Its voxels per axis; None reaches to the end of `bounding_box`.
        read_only
            None inherits. Only a read-only part may leave the box [0, end of `bounding_box`).

        Raises
        ------
        BoundsError, ReadOnlyError
            As in `View.get_view`.
        """
        box = self.bounding_box
        if box.is_empty and (offset is None or size is None):
            raise ArgumentError(
                f"{self._short} has an empty bounding box: give offset and size with "
                "read_only=True, write to it, or set the bounding_box of its layer."
            )
        start = vec3(box.topleft if offset is None else offset, "offset")
        if size is None:
            size = [b - a for a, b in zip(start, box.bottomright, strict=True)]
        return super().get_view(start, size, read_only)

    def write(self, data: NDArray[Any], offset: Vec3Like = (0, 0, 0)) -> None:
        """Write voxels at an absolute position, and extend the layer's box to contain them.

        See `View.write`. The box is kept in the JSON: write from one process at a time, or set the
        layer's `bounding_box` before and write through views of it.
        """
        written = self._write(data, offset)
        self._data_box = self._data_box.extended_by(written)
        if self._layer is not None and self.mag is not None:
            self._layer.directories.extend(written, self.mag)

    def compress(
        self,
        block_type: BlockType | Codec | None = None,
        executor: ExecutorLike = None,
        *,
        retries: int = 0,
        progress: bool = False,
    ) -> RunReport:
        """Store the files with other blocks, in place.

        Each file is replaced by one that holds the same voxels. An interrupted run leaves files of
        either kind, which can be read as before; run it again. A Zarr array has one codec for all
        its files: it is written anew, as by `rechunk`.

        Parameters
        ----------
        block_type
            `"lz4hc"`, `"lz4"`, or `"raw"` for the reverse; of Zarr layers `"zstd"` or `"raw"`. None
            is `"lz4hc"` or `"zstd"`.
        executor
            A `distributed.Client`, a `concurrent.futures.Executor`, or None for the active client
            or dask's threads.
        retries
            How often a task is tried again after an exception.
        progress
            Whether to show a bar.

        Raises
        ------
        ReadOnlyError
            If the mag is read-only, such as one that lies outside of the dataset.
        FormatError
            If a file can't be read; it stays as it is.

        Examples
        --------
        >>> ds = wkdask.create("tissue", voxel_size=(8, 8, 8))
        >>> box = wkdask.BoundingBox((0, 0, 0), (64, 64, 64))
        >>> layer = ds.add_layer("color", "color", "uint8", bounding_box=box)
        >>> mag = layer.add_mag(1, block_type="raw")
        >>> mag.write(np.full((64, 64, 64), 7, np.uint8))
        >>> mag.compress().done
        1
        >>> ds["color"][1].volume.layout.describe()["block_type"]
        'lz4hc'
        """
        self.check_writable()
        volume = self.volume
        wanted = block_type or ("lz4hc" if volume.layout.data_format == "wkw" else "zstd")
        layout = volume.layout.stored_as(wanted)
        run = Run(executor, retries=retries, progress=progress, name="compress")
        return self._rewritten(rewrite.recompress(volume, layout, run), layout)

    def rechunk(
        self,
        block_edge: SupportsIndex | None = None,
        blocks_per_file_edge: SupportsIndex | None = None,
        block_type: BlockType | Codec | None = None,
        executor: ExecutorLike = None,
        *,
        retries: int = 0,
        progress: bool = False,
    ) -> RunReport:
        """Store the voxels in blocks and files of other edges, in place.

        A new directory is written beside the old one, and takes its place when it is whole.

        Parameters
        ----------
        block_edge
            Voxels per edge of a block, a power of two; None keeps it.
        blocks_per_file_edge
            Blocks per edge of a file, a power of two; None keeps it.
        block_type
            `"raw"`, `"lz4"` or `"lz4hc"`; None keeps it.
        executor, retries, progress
            See `compress`.

        Raises
        ------
        ReadOnlyError, FormatError
            As `compress`; all stays as it was.
        ArgumentError
            If an edge is none that WKW has.

        Examples
        --------
        >>> ds = wkdask.create("tissue", voxel_size=(8, 8, 8))
        >>> box = wkdask.BoundingBox((0, 0, 0), (64, 64, 64))
        >>> mag = ds.add_layer("color", "color", "uint8", bounding_box=box).add_mag(1)
        >>> mag.write(np.full((64, 64, 64), 7, np.uint8))
        >>> mag.rechunk(blocks_per_file_edge=16).done
        8
        """
        self.check_writable()
        block, blocks = (
            None if edge is None else whole(edge, name)
            for edge, name in (
                (block_edge, "block_edge"),
                (blocks_per_file_edge, "blocks_per_file_edge"),
            )
        )
        layout = self.volume.layout.with_edges(block, blocks).stored_as(block_type)
        run = Run(executor, retries=retries, progress=progress, name="rechunk")
        return self._rewritten(rewrite.rechunk(self.volume, layout, run), layout)

    def _rewritten(self, report: RunReport, layout: Layout) -> RunReport:
        """Let the view, and the JSON where there is one, know how the voxels are stored now."""
        self._volume = replace(self._volume, layout=layout)
        if self._layer is not None and self.mag is not None:
            self._layer.directories.note_file_edge(self.mag, layout.file_size[0])
        return report

    def shown(self) -> ShownLayer:
        """Return what is shown: this mag and, of its layer, the coarser ones."""
        if self._layer is None or self.mag is None:
            return super().shown()
        return shown_layer([self, *self._layer.coarser(self.mag)], self._layer.bounding_box)

    def bounded(self) -> View:
        """Return the view of `bounding_box`, which chunk functions and arrays cover."""
        return self.get_view()


def _checked_box(box: BoundingBox) -> BoundingBox:
    """Return a layer's box, or raise if WKW has no numbers for its voxels."""
    return check_addressable(box, "bounding_box") if isinstance(box, BoundingBox) else box


def _dtype_name(dtype: DTypeLike) -> str:
    try:
        # NumPy would take None for float64.
        return np.dtype(dtype if dtype is not None else "none").name
    except TypeError:
        raise ArgumentError(
            f"dtype is {dtype!r}, but must be one of {', '.join(DTYPES)}."
        ) from None


def _voxel_size(value: Any) -> tuple[float, float, float]:
    with contextlib.suppress(TypeError, ValueError):
        x, y, z = map(float, value)
        if all(0 < edge < float("inf") for edge in (x, y, z)):
            return x, y, z
    raise ArgumentError(f"voxel_size is {value!r}, but must be three positive lengths (x, y, z).")


def _existing(dataset: Dataset, new: DatasetProperties, exist_ok: bool) -> Dataset:
    if not exist_ok:
        raise ExistsError(f"{dataset.path} is a dataset already: open it, or pass exist_ok=True.")
    if (dataset.voxel_size, dataset.unit) != (new.voxel_size, new.unit):
        raise ExistsError(
            f"{dataset.path} has voxels of {dataset.voxel_size} {dataset.unit}, not of "
            f"{new.voxel_size} {new.unit}. Open it, or choose another path."
        )
    return dataset
