"""The mag directories of one layer: where they lie, made, opened, and listed in the JSON.

It knows the JSON and volumes. It must not know views, or what is written to a mag.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import reduce
from pathlib import Path
from typing import Any

from wkdask.dataset import groups
from wkdask.dataset.properties import (
    DATA_FORMATS,
    FILE_NAME,
    LayerProperties,
    MagProperties,
    PropertiesFile,
)
from wkdask.errors import (
    ArgumentError,
    ExistsError,
    FormatError,
    PropertiesError,
    StorageError,
    storage_error,
)
from wkdask.geometry import BoundingBox, Mag, is_remote
from wkdask.storage import claims
from wkdask.storage.opening import create_volume, is_volume, open_volume, volume_at
from wkdask.storage.place import Address
from wkdask.storage.volume import JOURNALS_NAME, Layout, Volume

__all__ = ["MagDirectories", "NewMag"]

_MOST_HEAD_BYTES = 2**24
_AXIS_ORDER = {"c": 0, "x": 1, "y": 2, "z": 3}


@dataclass(frozen=True, slots=True)
class NewMag:
    """A mag that a run makes."""

    entry: MagProperties
    """What the JSON will say of it."""
    layout: Layout
    """How it is stored."""
    box: BoundingBox
    """The voxels that the run writes, in their own unit."""


@dataclass(frozen=True, slots=True)
class MagDirectories:
    """The directories of a layer; making one of these touches no disk."""

    json: PropertiesFile
    """The JSON of the dataset."""
    name: str
    """The layer."""

    @property
    def properties(self) -> LayerProperties:
        """What the JSON says of the layer."""
        return self.json.content.layer(self.name)

    @property
    def listed(self) -> list[Mag]:
        """The mags that the JSON lists, from fine to coarse."""
        return [entry.mag for entry in self.properties.mags]

    @property
    def listed_anywhere(self) -> list[Mag]:
        """The mags that the JSON lists of any layer."""
        return [entry.mag for layer in self.json.content.layers for entry in layer.mags]

    def refresh(self) -> None:
        """Read the JSON again, which other processes may have changed."""
        self.json.refresh()

    def change(self, change: Callable[[LayerProperties], LayerProperties]) -> None:
        """Change what the JSON says of the layer."""
        self.json.change_layer(self.name, change)

    def add(self, mag: Mag, layout: Layout) -> MagProperties:
        """Make the directory of a mag and list it."""
        entry = self._new_entry(mag, layout)

        def added(layer: LayerProperties) -> LayerProperties:
            if any(other.mag == mag for other in layer.mags):
                raise ExistsError(f"layer {self.name!r} has a mag {mag} already.")
            # While nobody else may change the dataset: another process may add the same mag.
            box = layer.bounding_box.align_with_mag(mag, ceil=True).in_mag(mag)
            self._create(path, layout, box)
            return layer.with_mag(entry)

        self.check_format()
        path = self._default_path(mag)
        with self._claimed(path, "added"):
            self.change(added)
        groups.describe(self.json, self.name)
        return entry

    def new_mag(self, mag: Mag, layout: Layout, box: BoundingBox) -> NewMag:
        """Return what stands for a mag until it is made."""
        return NewMag(self._new_entry(mag, layout), layout, box)

    def _new_entry(self, mag: Mag, layout: Layout) -> MagProperties:
        said: dict[str, object] = {"axisOrder": _AXIS_ORDER}
        if layout.data_format == "wkw":
            said["cubeLength"] = layout.file_size[0]
        return MagProperties(mag, f"./{self.name}/{mag}", said)

    @contextlib.contextmanager
    def made(self, new: Sequence[NewMag], doing: str, *, resume: bool) -> Iterator[None]:
        """Make the directories of mags; list them at the end, or delete what the block has made.

        Nobody else can use them inside the block.

        Raises
        ------
        BusyError
            If another run works on one of the mags.
        ExistsError
            If one of them is listed, or its directory holds voxels.
        """
        self.json.check_writable()
        if resume and isinstance(self.json.directory, Address):
            raise ArgumentError(
                f"resume is {resume!r}, but {self.json.directory} is remote, and a journal lies "
                "beside the files on this machine. Leave resume out."
            )
        with contextlib.ExitStack() as claimed:
            for each in new:
                claimed.enter_context(self._claimed(self._path(each.entry), doing))
            # Others may have added mags until they were claimed.
            self.refresh()
            self.check_new((each.entry.mag for each in new), resume=resume)
            with contextlib.ExitStack() as undone:
                for each in new:
                    self._begin(each, undone, resume=resume)
                yield
                undone.pop_all()
            self.change(
                lambda layer: reduce(LayerProperties.with_mag, (e.entry for e in new), layer)
            )
            groups.describe(self.json, self.name)

    def _begin(self, new: NewMag, undone: contextlib.ExitStack, *, resume: bool) -> None:
        """Make a volume, unless an earlier run did; how to delete it goes onto a stack."""
        path = self._path(new.entry)
        if resume and is_volume(path):
            found = open_volume(path).layout
            if found != new.layout:
                raise ExistsError(
                    f"{path} was begun with {found.difference_to(new.layout)}: "
                    "delete the directory, or use the same options."
                )
            return
        older = self._create(path, new.layout, new.box)
        if not resume:
            volume = volume_at(path, new.layout, self._options_of(path))
            undone.callback(_remove, volume, new.box, older)

    def check_new(self, mags: Iterable[Mag], *, resume: bool) -> None:
        """Raise if a mag that is to be made is there, unless a run that can be resumed made it."""
        for mag in mags:
            is_resumable = resume and os.path.isdir(self._default_path(mag) / JOURNALS_NAME)
            if mag in self.listed and not is_resumable:
                raise ExistsError(
                    f"layer {self.name!r} has a mag {mag} already"
                    f"{', which no earlier run with resume=True has made' if resume else ''}: "
                    "choose other mags."
                )

    def open(self, entry: MagProperties) -> Volume:
        """Return the volume of a mag, whether it is listed or not.

        Raises
        ------
        FormatError
            If the layer is stored in a way that wkdask does not read.
        PropertiesError
            If the JSON says something else of the voxels than the volume.
        """
        layer = self.check_format()
        path = self._path(entry)
        options = self.json.storage_options if is_remote(str(path)) else None
        volume = open_volume(path, options, layer.data_format, _axes(entry))
        kind, found = volume.layout.data_format, volume.layout.voxel_type
        if (kind, found) != (layer.data_format, layer.voxel_type):
            is_kind = kind != layer.data_format
            says, is_ = (layer.data_format, kind) if is_kind else (layer.voxel_type, found)
            raise PropertiesError(
                f"{self.json.directory / FILE_NAME} says that layer {self.name!r} has "
                f"{says}, but {os.path.join(volume.path, volume.names.head)} says {is_}. "
                "Correct the one that is wrong."
            )
        return volume

    def note_file_edge(self, mag: Mag, file_edge: int) -> None:
        """Update `cubeLength` of a mag, where the JSON has it."""

        def noted(layer: LayerProperties) -> LayerProperties:
            for entry in layer.mags:
                if entry.mag == mag and "cubeLength" in entry.extra:
                    extra = {**entry.extra, "cubeLength": file_edge}
                    return layer.with_mag(replace(entry, extra=extra))
            return layer

        self.change(noted)

    def extend(self, written: BoundingBox, mag: Mag) -> None:
        """Make the layer's box contain what was written to a mag."""

        def extended(found: LayerProperties) -> LayerProperties:
            box, new = found.bounding_box, written.scaled_by(mag)
            # A coarse voxel at the border reaches beyond the box, but is no new one.
            if box.align_with_mag(mag, ceil=True).contains_bbox(new):
                return found
            return replace(found, bounding_box=box.extended_by(new))

        self.change(extended)

    def is_inside(self, path: str | os.PathLike[str]) -> bool:
        """Return whether a path stays in the dataset, symbolic links followed."""
        directory = self.json.directory
        if isinstance(directory, Address):
            return os.fspath(path).startswith(f"{directory}/")
        if is_remote(os.fspath(path)):
            return False
        return Path(path).resolve().is_relative_to(directory.resolve())

    def check_format(self) -> LayerProperties:
        """Return what the JSON says of the layer; raise `FormatError` if it can't be read."""
        layer = self.properties
        if not layer.can_be_read:
            raise FormatError(
                f"layer {self.name!r} is stored as {layer.data_format}, but wkdask reads "
                f"{', '.join(DATA_FORMATS)} only. Convert it, for example by downloading it from "
                "WEBKNOSSOS, which writes one of these."
            )
        return layer

    def _create(self, path: Path | Address, layout: Layout, box: BoundingBox) -> bytes | None:
        """Make a volume; return the header that it replaces, such as one that a crash has left."""
        if isinstance(path, Path) and not self.is_inside(path):
            raise ArgumentError(
                f"{path} leads out of the dataset {self.json.directory}, so it is not written to."
            )
        options = self._options_of(path)
        volume = volume_at(path, layout, options)
        is_listed = isinstance(path, Address) or path.is_dir()
        if is_listed and next(volume.files(), None) is not None:
            raise ExistsError(
                f"{path} holds voxels, though {FILE_NAME} does not list it: delete the "
                "directory, or open it with wkdask.open_mag."
            )
        header, place = os.path.join(volume.path, volume.names.head), self.json.place
        if isinstance(path, Address):
            # Nobody has claimed it: another process may be about to list it.
            create_volume(path, layout, box.bottomright, options)
            return None
        try:
            older = place.read(header, _MOST_HEAD_BYTES) if place.size_bytes(header) else None
            place.remove(header)
        except OSError as error:
            raise storage_error(error, path, "replacing an unused header") from None
        create_volume(path, layout, box.bottomright, options)
        return older

    def _options_of(self, path: Path | Address) -> Mapping[str, Any] | None:
        return self.json.storage_options if isinstance(path, Address) else None

    def _claimed(
        self, path: Path | Address, doing: str
    ) -> contextlib.AbstractContextManager[object]:
        """Claim a mag whole; in a store, where nobody can, each object is whole by itself."""
        if isinstance(path, Address):
            return contextlib.nullcontext()
        return claims.whole(str(path), doing)

    def _path(self, entry: MagProperties) -> Path | Address:
        directory = self.json.directory
        if entry.path is not None and is_remote(entry.path):
            return Address(entry.path)
        if entry.path is not None:
            if isinstance(directory, Address) and entry.path.startswith("/"):
                raise FormatError(
                    f"mag {entry.mag} of layer {self.name!r} lies at {entry.path} of the machine "
                    f"of {directory}, which can't be reached from here."
                )
            return directory / entry.path
        path = directory / self.name / str(entry.mag)
        # Older writers name isotropic mags by three numbers.
        name = "-".join(map(str, entry.mag))
        if name == str(entry.mag) or self._is_there(path):
            return path
        long_name = directory / self.name / name
        return long_name if self._is_there(long_name) else path

    def _is_there(self, path: Path | Address) -> bool:
        if isinstance(path, Path):
            return path.exists()
        return is_volume(path, self.json.storage_options)

    def _default_path(self, mag: Mag) -> Path | Address:
        """Return the directory of a new mag."""
        self.json.check_writable()
        return self.json.directory / self.name / str(mag)


def _axes(entry: MagProperties) -> str | None:
    """Return the order of axes that the JSON says, such as `"zyx"`; a digit is an unnamed axis."""
    said = entry.extra.get("axisOrder")
    if said is None:
        return None
    places = said.values() if isinstance(said, dict) else [-1]
    is_order = all(type(at) is int and 0 <= at < 10 for at in places)
    if not is_order or len(set(places)) < len(places) or any(len(name) != 1 for name in said):
        raise PropertiesError(
            f"mag {entry.mag} has the axisOrder {said!r}, but it must be an object such as "
            '{"c": 0, "x": 1, "y": 2, "z": 3}.'
        )
    names = {at: name for name, at in said.items()}
    return "".join(names.get(at, str(at)) for at in range(max(places) + 1))


def _remove(volume: Volume, box: BoundingBox, older_header: bytes | None) -> None:
    """Delete a volume and its files in a box; what somebody else has put there stays."""
    with contextlib.suppress(StorageError):
        volume.remove(box)
    if older_header is not None and not is_remote(volume.path):
        # Where it can't be put back, the error that comes to this tells more.
        with contextlib.suppress(OSError):
            Path(volume.path).mkdir(exist_ok=True)
            (Path(volume.path) / volume.names.head).write_bytes(older_header)
