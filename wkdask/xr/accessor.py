"""`array.wkw` and `dataset.wkw`: what wkdask adds to xarray."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from math import prod
from typing import TYPE_CHECKING, Any

from wkdask.arrays import labelled
from wkdask.arrays.labelled import layer_name
from wkdask.arrays.lazy import VolumeArray, file_lengths
from wkdask.arrays.store import Align, aligned_array
from wkdask.arrays.view import View
from wkdask.dataset.dataset import Dataset, Layer, MagView
from wkdask.dataset.lookup import other_mag
from wkdask.errors import ArgumentError, BoundsError
from wkdask.geometry import BoundingBox, Mag, MagLike
from wkdask.runtime import config
from wkdask.runtime.run import RunReport
from wkdask.storage.header import BlockType, VolumeHeader, check_addressable
from wkdask.storage.opening import volume_at
from wkdask.storage.volume import Volume
from wkdask.xr.coordinates import (
    SPATIAL,
    VoxelGrid,
    box_in,
    grid_of,
    is_physical,
    placed,
    voxels_of,
)
from wkdask.xr.destination import Destination
from wkdask.xr.plot import plot_planes

if TYPE_CHECKING:
    import xarray as xr

__all__ = ["ArrayAccessor", "DatasetAccessor", "OnGrid"]

Path_ = str | os.PathLike[str]


class OnGrid:
    """Where an array lies, by its coordinates and attributes; a dataset, by its first variable."""

    _array: xr.DataArray

    @property
    def grid(self) -> VoxelGrid:
        """The voxels on which it lies: mag, voxel size and unit."""
        return grid_of(self._array)

    @property
    def mag(self) -> Mag:
        """The resolution level, by the distance of the coordinates."""
        return self.grid.mag

    @property
    def box(self) -> BoundingBox:
        """Where it lies, in voxels of its mag."""
        return box_in(self._array, self.grid)

    @property
    def voxel_size(self) -> tuple[float, float, float] | None:
        """Edges of a voxel of mag 1, `(x, y, z)`, in `unit`, if known."""
        return self.grid.voxel_size

    @property
    def unit(self) -> str | None:
        """The unit of `voxel_size`."""
        return self.grid.unit

    @property
    def spacing_nm(self) -> tuple[float, float, float]:
        """Edges of a voxel of `mag`, `(x, y, z)`, in nm."""
        return self.grid.spacing_nm

    @property
    def voxel_um3(self) -> float:
        """The volume of a voxel of `mag`, in cubic micrometres."""
        return prod(self.spacing_nm) / 1e9

    @property
    def size_nm(self) -> tuple[float, float, float]:
        """How far it reaches, `(x, y, z)`, in nm."""
        sizes = (self._array.sizes.get(dim, 1) for dim in SPATIAL)
        x, y, z = (n * edge for n, edge in zip(sizes, self.spacing_nm, strict=True))
        return x, y, z


class ArrayAccessor(OnGrid):
    """What an array knows of the volume in which it lies; `array.wkw`.

    Everything comes from the coordinates and attributes of the array, so that it holds for what was
    selected or computed, too.

    Examples
    --------
    >>> ds = wkdask.create("tissue", voxel_size=(8, 8, 8))
    >>> box = wkdask.BoundingBox((10, 0, 0), (100, 64, 64))
    >>> layer = ds.add_layer("color", "color", "uint8", bounding_box=box)
    >>> array = layer.add_mag(1).to_xarray().sel(x=slice(20, 29))
    >>> array.wkw.box.topleft, array.wkw.size_nm
    ((20, 0, 0), (80.0, 512.0, 512.0))
    >>> bright = ds.add_layer("bright", "color", "uint8", bounding_box=box).add_mag(1)
    >>> _ = (array + 50).transpose("z", "y", "x", "c").wkw.store(bright)
    >>> int(bright.read((20, 0, 0), (1, 1, 1)).item())
    50
    """

    def __init__(self, array: xr.DataArray) -> None:
        self._array = array

    def at_mag(self, mag: MagLike) -> xr.DataArray:
        """Return the same region of the same layer in another mag, lazily.

        Parameters
        ----------
        mag
            A mag of the layer. Where its voxels do not end with the region, it is extended to whole
            ones. Channels are not selected.

        Raises
        ------
        MissingError
            If the array was computed, so that it does not come from a layer any more.
        NameLookupError
            If the layer has no such mag.
        """
        array = self._array
        view = other_mag(array.encoding, mag)
        factors = view.mag or Mag(1)
        box = self.box.scaled_by(self.mag).align_with_mag(factors, ceil=True).in_mag(factors)
        part = view.get_view(box.topleft, box.size, read_only=True)
        coords: labelled.Coords = "physical" if is_physical(array) else "voxel"
        other = part.to_xarray(None if array.chunks is None else "file", coords)
        gone = [dim for dim in SPATIAL if dim not in array.dims]
        if "c" not in array.dims and other.sizes["c"] == 1:
            gone.append("c")
        return other.isel(dict.fromkeys(gone, 0)).transpose(..., *array.dims)

    def store(
        self, target: View, align: Align = "raise", compute: bool = True, **options: Any
    ) -> Any:
        """Write the array into a view, to where its coordinates say.

        Parameters
        ----------
        target
            A view of the mag to which the coordinates belong. Dimensions may come in any order, and
            those that were selected away are put back.
        align, compute, options
            See `View.store`.

        Returns
        -------
        RunReport
            What was done and written; or a dask array if `compute` is False.

        Raises
        ------
        ArgumentError
            If the coordinates are none of the target's voxels, or the array has other dimensions.
        BoundsError
            If it leaves the target.
        ReadOnlyError, AlignmentError, DtypeError
            As `View.store`; nothing was written.
        """
        if not isinstance(target, View):
            raise ArgumentError(
                f"target is a {type(target).__name__}, but must be a view, such as layer[1]."
            )
        labels = target.labels
        grid = VoxelGrid(target.mag or Mag(1), labels.voxel_size, labels.unit)
        data, box = _voxels(self._array, grid, target.volume)
        bounds = target.bounding_box
        if not bounds.contains_bbox(box):
            raise BoundsError(
                f"the array lies at {box} in mag {grid.mag}, which leaves the target {bounds}. "
                "Select the part that lies inside, or take a larger view."
            )
        start = box.moved_by(-a for a in bounds.topleft).topleft
        return target.store(data, start, align, compute, **options)

    def to_wkw(
        self,
        target: Path_ | Dataset | Layer,
        *,
        name: str | None = None,
        category: str | None = None,
        block_edge: int = 32,
        blocks_per_file_edge: int = 32,
        block_type: BlockType | None = None,
        align: Align = "raise",
        **options: Any,
    ) -> MagView:
        """Write the array as a new mag.

        Parameters
        ----------
        target
            A layer, which gets the mag of the array. Or a dataset or its path, which gets a layer;
            at a path where there is none, one is made.
        name, category
            Of the layer; None is the name of the array, and its attribute or `"color"`.
        block_edge, blocks_per_file_edge, block_type
            See `Layer.add_mag`.
        align, options
            See `View.store`.

        Returns
        -------
        MagView
            What was written.

        Raises
        ------
        ExistsError
            If there is such a layer or mag already.
        ArgumentError, AlignmentError
            As `store`. Nothing is made then.
        """
        writing = _prepared(
            self, self._array, target, name=name, category=category, align=align,
            block_edge=block_edge, blocks_per_file_edge=blocks_per_file_edge,
            block_type=block_type, **options,
        )  # fmt: skip
        with writing as (layer, mag):
            pass
        return layer[mag]

    def plot(
        self,
        x: float | None = None,
        y: float | None = None,
        z: float | None = None,
        *,
        labels: xr.DataArray | None = None,
        channel: int = 0,
        vmin: float | None = None,
        vmax: float | None = None,
    ) -> dict[str, Any]:
        """Draw the three planes through a point, to scale, with a scale bar; needs matplotlib.

        Only the planes are read, and of large ones only as many voxels as there are pixels.

        Parameters
        ----------
        x, y, z
            The point, in coordinates of the array; None is the middle.
        labels
            A segmentation that is drawn over it, half transparent; it may be of another mag.
        channel
            Which one is drawn.
        vmin, vmax
            What is black and what is white. Segmentations have a colour for each id instead.

        Returns
        -------
        dict
            The axes of matplotlib, by `"xy"`, `"zy"` and `"xz"`.

        Raises
        ------
        MissingExtraError
            If matplotlib is not installed.
        ArgumentError
            If the point lies outside.
        """
        given = zip(SPATIAL, (x, y, z), strict=True)
        at = {dim: value for dim, value in given if value is not None}
        return plot_planes(self._array, at, channel=channel, vmin=vmin, vmax=vmax, labels=labels)


class DatasetAccessor(OnGrid):
    """What the variables of a dataset have in common, for all that have x, y and z; `dataset.wkw`.

    Examples
    --------
    >>> ds = wkdask.create("tissue", voxel_size=(8, 8, 8))
    >>> box = wkdask.BoundingBox((10, 0, 0), (100, 64, 64))
    >>> for name in ("color", "bright"):
    ...     _ = ds.add_layer(name, "color", "uint8", bounding_box=box).add_mag(1)
    >>> import xarray as xr
    >>> part = xr.open_dataset("tissue").sel(x=slice(20, 29))
    >>> part.wkw.box.size
    (10, 64, 64)
    >>> wkdask.open(part.wkw.to_wkw("part").path).layers.keys()
    dict_keys(['color', 'bright'])
    """

    def __init__(self, dataset: xr.Dataset) -> None:
        self._dataset = dataset

    @property
    def _array(self) -> xr.DataArray:  # type: ignore[override]
        return self._dataset[next(self._accessors())[0]]

    def at_mag(self, mag: MagLike) -> xr.Dataset:
        """Return the same region in another mag; see `ArrayAccessor.at_mag`."""
        arrays = {name: accessor.at_mag(mag) for name, accessor in self._accessors()}
        return labelled.to_dataset(arrays, {**self._dataset.attrs, "mag": str(Mag(mag))})

    def store(
        self, target: Dataset, align: Align = "raise", **options: Any
    ) -> dict[str, RunReport]:
        """Write each variable into the layer of its name, at the mag of its coordinates.

        See `ArrayAccessor.store`. Every layer and mag must be there.

        Returns
        -------
        dict
            The report of each.
        """
        views = {
            name: target[layer_name(name)][accessor.mag] for name, accessor in self._accessors()
        }
        return {n: a.store(views[n], align, **options) for n, a in self._accessors()}

    def to_wkw(self, target: Path_ | Dataset, **options: Any) -> Dataset:
        """Write each variable as a new layer of a dataset; see `ArrayAccessor.to_wkw`.

        Returns
        -------
        Dataset
            What was written. If one variable is refused, none is.
        """
        prepared = [
            _prepared(accessor, self._dataset[name], target, name=layer_name(name), **options)
            for name, accessor in self._accessors()
        ]
        with contextlib.ExitStack() as stack:
            for writing in prepared:
                stack.enter_context(writing)
        return target if isinstance(target, Dataset) else Dataset(target)

    def plot(
        self, x: float | None = None, y: float | None = None, z: float | None = None, **options: Any
    ) -> dict[str, Any]:
        """Draw the first variable that is grey, with the first segmentation over it.

        See `ArrayAccessor.plot`. Where there is but one kind, its first variable is drawn.
        """
        arrays = [self._dataset[name] for name, _ in self._accessors()]
        ids = [array for array in arrays if array.attrs.get("category") == "segmentation"]
        grey = [array for array in arrays if array.attrs.get("category") != "segmentation"]
        if grey and ids:
            options = {"labels": ids[0], **options}
        return ArrayAccessor((grey or ids)[0]).plot(x, y, z, **options)

    def _accessors(self) -> Iterator[tuple[str, ArrayAccessor]]:
        spatial = [
            (str(name), array)
            for name, array in self._dataset.data_vars.items()
            if all(dim in array.coords for dim in SPATIAL)
        ]
        if not spatial:
            raise ArgumentError("the dataset has no variable with coordinates x, y and z.")
        yield from ((name, ArrayAccessor(array)) for name, array in spatial)


def _prepared(
    accessor: ArrayAccessor,
    array: xr.DataArray,
    target: Path_ | Dataset | Layer,
    *,
    name: str | None = None,
    category: str | None = None,
    block_edge: int = 32,
    blocks_per_file_edge: int = 32,
    block_type: BlockType | None = None,
    align: Align = "raise",
    resume: bool = False,
    **options: Any,
) -> contextlib.AbstractContextManager[tuple[Layer, Mag]]:
    """Return what writes a mag and then lists it; all that may be refused is refused here."""
    if "compute" in options:
        raise ArgumentError(
            "to_wkw always computes. To write later, make a mag with add_mag, and pass "
            "compute=False to store."
        )
    edges = (block_edge, blocks_per_file_edge)
    header = VolumeHeader(str(array.dtype), array.sizes.get("c", 1), *edges).stored_as(
        config.blocks_of_new(block_type)
    )
    place = Destination.of(target, array, name, category)
    grid = place.grid(array)
    future = volume_at(place.path / str(grid.mag), header)
    data, box = _voxels(array, grid, future)
    check_addressable(box)
    aligned_array(data, future, box.topleft, align=align, is_new=True)
    around = box.scaled_by(grid.mag)
    place.check(grid, header, around, resume=resume)

    @contextlib.contextmanager
    def written() -> Iterator[tuple[Layer, Mag]]:
        with place.made(grid, header, around, resume=resume) as layer:
            directories = layer.directories
            new = directories.new_mag(grid.mag, header, box)
            with directories.made([new], "written", resume=resume):
                part = layer.open_new(new).restricted_to(box, read_only=False)
                accessor.store(part, align, resume=resume, **options)
                yield layer, grid.mag
            directories.extend(box, grid.mag)

    return written()


def _voxels(array: xr.DataArray, grid: VoxelGrid, volume: Volume) -> tuple[Any, BoundingBox]:
    """Return an array as dask voxels `(c, x, y, z)`, and their box in a grid."""
    axes = voxels_of(array, grid)
    num_channels = volume.layout.num_channels
    if array.chunks is None:
        # Before anything else, because xarray reads lazy voxels when it adds a dimension to them.
        handle = VolumeArray(volume, (range(num_channels), *axes))
        lengths = dict(zip(labelled.DIMS, file_lengths(handle), strict=True))
        lengths["c"] = (array.sizes.get("c", 1),)
        array = array.chunk({dim: lengths[dim] for dim in array.dims if dim in lengths})
    whole, corner = placed(array, grid, num_channels)
    return whole.data, BoundingBox(corner, whole.shape[1:])
