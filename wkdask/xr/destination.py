"""Where a labelled array is written as a new mag: what is there, and what has to be made."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from wkdask.arrays.labelled import layer_name
from wkdask.dataset.dataset import Dataset, Layer
from wkdask.dataset.lookup import is_dataset
from wkdask.dataset.new import new_dataset, new_layer
from wkdask.dataset.properties import LayerProperties
from wkdask.errors import ArgumentError, DtypeError, ExistsError
from wkdask.geometry import BoundingBox, Mag, absolute
from wkdask.storage.volume import Layout
from wkdask.xr.coordinates import VoxelGrid, grid_of

if TYPE_CHECKING:
    import xarray as xr

__all__ = ["Destination"]

Path_ = str | os.PathLike[str]


@dataclass(frozen=True, slots=True)
class Destination:
    """Where a new mag goes."""

    target: Path_ | Dataset | Layer
    """As it was given."""
    path: Path
    """The directory of the layer."""
    name: str
    """Of the layer."""
    category: str
    """Of the layer."""

    @classmethod
    def of(
        cls,
        target: Path_ | Dataset | Layer,
        array: xr.DataArray,
        name: str | None,
        category: str | None,
    ) -> Destination:
        """Return where `ArrayAccessor.to_wkw` is told to write an array."""
        if isinstance(target, Layer):
            path = Path(absolute(target.dataset.path)) / target.name
            return cls(target, path, target.name, target.category)
        if not isinstance(target, Dataset | str | os.PathLike):
            raise ArgumentError(
                f"target is a {type(target).__name__}, but must be a layer, a dataset or a path; "
                "store() writes into a mag that is there."
            )
        name = layer_name(str(array.name)) if name is None and array.name is not None else name
        if name is None:
            raise ArgumentError("the array has no name; give one to its layer by name=.")
        root = Path(absolute(target.path if isinstance(target, Dataset) else target))
        kind = category or str(array.attrs.get("category", "color"))
        return cls(target, root / name, name, kind)

    def dataset(self) -> Dataset | None:
        """Return the dataset, if there is one already."""
        if isinstance(self.target, Layer):
            return self.target.dataset
        if isinstance(self.target, Dataset):
            return self.target
        root = self.path.parent
        return Dataset(root) if is_dataset(root) else None

    def grid(self, array: xr.DataArray) -> VoxelGrid:
        """Return the grid of an array, by the voxel size of the dataset into which it goes."""
        dataset = self.dataset()
        fine = None if dataset is None else VoxelGrid(Mag(1), dataset.voxel_size, dataset.unit)
        return grid_of(array, fine)

    def check(self, grid: VoxelGrid, layout: Layout, box: BoundingBox, *, resume: bool) -> None:
        """Refuse what can't be made; a box in voxels of mag 1 will be written to it."""
        if isinstance(self.target, Layer):
            found = self.target.properties.voxel_type
            if found != layout.voxel_type:
                raise DtypeError(
                    f"the array has {layout.voxel_type}, but the layer {self.name!r} has {found}."
                )
            return
        self._layer(layout, box)
        dataset = self.dataset()
        if dataset is not None and self.name in dataset.layers and not resume:
            raise ExistsError(
                f"{dataset.path} has a layer {self.name!r} already: choose another name, or pass "
                "resume=True to go on with a call that was interrupted."
            )
        grid.spacing_nm  # noqa: B018 - raises if no voxel size is known

    @contextlib.contextmanager
    def made(
        self, grid: VoxelGrid, layout: Layout, box: BoundingBox, *, resume: bool
    ) -> Iterator[Layer]:
        """Make the layer if need be; what was made is gone after an error in the block."""
        if isinstance(self.target, Layer):
            yield self.target
            return
        with contextlib.ExitStack() as stack:
            dataset = self.dataset()
            if dataset is None:
                assert grid.voxel_size is not None
                assert grid.unit is not None
                dataset = stack.enter_context(
                    new_dataset(self.path.parent, grid.voxel_size, grid.unit, keep=resume)
                )
            new = self._layer(layout, box)
            yield stack.enter_context(new_layer(dataset, new, resume=resume))

    def _layer(self, layout: Layout, box: BoundingBox) -> LayerProperties:
        return LayerProperties(self.name, self.category, box, *layout.voxel_type)
