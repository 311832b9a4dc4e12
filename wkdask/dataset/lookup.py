"""What lies at a path: a dataset, a layer or a mag, with its JSON or without."""

from __future__ import annotations

import contextlib
import os
import warnings
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple

from wkdask.dataset.dataset import Dataset, Layer, MagView, mag_named, open_mag
from wkdask.dataset.properties import FILE_NAME
from wkdask.errors import MissingError, NameLookupError, WkdaskError
from wkdask.geometry import Mag, MagLike, is_remote
from wkdask.storage.opening import HEAD_FILES, is_volume
from wkdask.storage.place import Address
from wkdask.storage.remote import place_of

__all__ = ["Found", "Kind", "can_open", "find", "is_bare_mag", "is_dataset", "kind_of", "other_mag"]

Path_ = str | os.PathLike[str]
Options = Mapping[str, Any] | None
Opener = Callable[[], MagView]
Kind = Literal["mag", "layer", "dataset"]

# Names of nodes in a tree begin below what a path leads to.
_NODES: dict[Kind, str] = {"mag": "/", "layer": "/{mag}", "dataset": "/{name}/{mag}"}
_BELOW: dict[Kind, Kind] = {"dataset": "layer", "layer": "mag", "mag": "mag"}


def is_dataset(path: Path_, storage_options: Options = None) -> bool:
    """Return whether a dataset lies at a path; nothing is listed or read."""
    if is_remote(os.fspath(path)):
        where, place = place_of(path, storage_options)
        return place.size_bytes(os.path.join(where, FILE_NAME)) is not None
    return os.path.isfile(os.path.join(path, FILE_NAME))


def is_bare_mag(path: Path_, storage_options: Options = None) -> bool:
    """Return whether a mag directory lies at a path, and no dataset; nothing is listed or read."""
    return not is_dataset(path, storage_options) and is_volume(path, storage_options)


def kind_of(path: Path_, storage_options: Options = None) -> Kind | None:
    """Return what lies at a path, by the names of the files there; None if it is nothing of ours.

    Examples
    --------
    >>> ds = wkdask.create("tissue", voxel_size=(8, 8, 8))
    >>> _ = ds.add_layer("color", "color", "uint8").add_mag(1)
    >>> [kind_of(path) for path in ("tissue", "tissue/color", "tissue/color/1", "tissue/none")]
    ['dataset', 'layer', 'mag', None]
    """
    return _kind(_where(path, storage_options))


def _where(path: Path_, storage_options: Options) -> _Where:
    text, _ = place_of(path, storage_options)
    return _Where(Address(text) if is_remote(text) else Path(text), storage_options)


class _Where(NamedTuple):
    """A directory, and how it is reached."""

    directory: Path | Address
    options: Options

    @property
    def parent(self) -> _Where:
        return self._replace(directory=self.directory.parent)


def _kind(where: _Where) -> Kind | None:
    if is_dataset(*where):
        return "dataset"
    if is_volume(*where):
        return "mag"
    with contextlib.suppress(WkdaskError):  # a broken JSON around it makes it no layer
        if next(_mags_in(where.directory), None) or _layer_at(where):
            return "layer"
    return None


@dataclass(frozen=True, slots=True)
class Found:
    """Mags at a path."""

    mags: dict[str, dict[Mag | None, Opener]]
    """What opens them, by layer, from fine to coarse; so that a broken one does not hide others."""
    attrs: dict[str, Any]
    """What is known of all of them."""
    name: str
    """Of the dataset, or else of the directory."""
    kind: Kind
    """What the path leads to."""

    def views(self) -> dict[str, MagView]:
        """Return the mags by their paths in a tree, `/color/2-2-1`, or `/` for a mag itself."""
        named = ((name, mag, at) for name, mags in self.mags.items() for mag, at in mags.items())
        return {self._node(name, mag): opener() for name, mag, opener in named}

    def within(self, group: str | None) -> Found:
        """Return what lies at a node of the tree, such as `color` or `/color/2-2-1`."""
        node = "/" + (group or "").strip("/")
        if node == "/":
            return self
        chosen = {
            name: {
                m: v for m, v in mags.items() if f"{self._node(name, m)}/".startswith(f"{node}/")
            }
            for name, mags in self.mags.items()
        }
        chosen = {name: mags for name, mags in chosen.items() if mags}
        if not chosen:
            nodes = ", ".join(self._node(n, m) for n, mags in self.mags.items() for m in mags)
            raise NameLookupError(f"{self.name!r} has no group {node}; it has {nodes or 'none'}.")
        kind = self.kind
        for _ in range(node.count("/")):
            kind = _BELOW[kind]
        return Found(chosen, self.attrs, node.rpartition("/")[2], kind)

    def _node(self, name: str, mag: Mag | None) -> str:
        return _NODES[self.kind].format(name=name, mag=mag)

    def at(self, mag: MagLike | None) -> dict[str, MagView]:
        """Return one mag of each layer that has it; None is the finest that all have."""
        if not self.mags:
            raise NameLookupError(
                f"{self.name!r} has no layers left to open. Give fewer names as drop_variables=; "
                "layers without mags, or in formats that wkdask does not read, are never opened."
            )
        if mag is None:
            common = [m for m in self._all() if all(m in mags for mags in self.mags.values())]
            wanted = common[0] if common else None
        else:
            wanted = Mag(mag)
        found = {name: mags[wanted]() for name, mags in self.mags.items() if wanted in mags}
        if not found:
            has = "; ".join(f"{n}: {_listed(mags)}" for n, mags in self.mags.items())
            problem = "no mag that all layers have" if mag is None else f"no mag {Mag(mag)}"
            raise NameLookupError(
                f"{self.name!r} has {problem} ({has}). Give mag= one of these, leave layers out by "
                "drop_variables=, or open all with xarray.open_datatree."
            )
        return found

    def _all(self) -> list[Mag | None]:
        return [mag for mags in self.mags.values() for mag in mags]


def find(path: Path_, leave_out: Collection[str] = (), storage_options: Options = None) -> Found:
    """Return the mags at a path, which may be that of a dataset, a layer or a mag.

    Parameters
    ----------
    path
        A directory or its address. Below a dataset, its labels are known; else only what the files
        say.
    leave_out
        Layers that are left out.
    storage_options
        See `dataset.open`.
    """
    found = _found(_where(path, storage_options))
    mags = {name: mags for name, mags in found.mags.items() if name not in leave_out}
    return replace(found, mags=mags)


def _found(where: _Where) -> Found:
    kind = _kind(where)
    if kind == "dataset":
        return _of_dataset(Dataset(*where))
    if kind == "mag":
        return _of_mag(where)
    if layer := _layer_at(where):
        return _of_layer(layer)
    if kind == "layer":
        return _of_bare_mags(Path(where.directory))
    raise MissingError(
        f"{where.directory} is no dataset ({FILE_NAME}), no mag ({', '.join(HEAD_FILES)}) and no "
        "directory of mags such as 1 and 2-2-1."
    )


def can_open(path: Any) -> bool:
    """Return whether `find` would find something at a path, of any kind; it never raises.

    No server is asked: an address is opened by those who say that it is ours.
    """
    if not isinstance(path, str | os.PathLike) or is_remote(str(os.fspath(path))):
        return False
    try:
        return kind_of(path) is not None
    except (WkdaskError, OSError, ValueError, TypeError):
        return False


def other_mag(encoding: Any, mag: MagLike) -> MagView:
    """Return another mag of the layer from which lazy voxels come, by what xarray keeps of them."""
    if "dataset" in encoding and "layer" in encoding:
        credentials = encoding.get("credentials")
        options = credentials and credentials.options
        return Dataset(encoding["dataset"], options)[encoding["layer"]][mag]
    if "source" not in encoding:
        raise MissingError(
            "the array does not know from which layer it comes: it was computed, or not opened by "
            "wkdask. Select the region from the other mag itself, array.sel(x=slice(...))."
        )
    layer = Path(encoding["source"]).parent
    mags = _bare_mags(layer)
    if Mag(mag) not in mags:
        raise NameLookupError(f"{layer} has no mag {Mag(mag)}; it has {_listed(mags)}.")
    return mags[Mag(mag)]()


def _of_dataset(dataset: Dataset) -> Found:
    for each in dataset.json.content.all_unreadable():
        warnings.warn(f"left out: {each.error}", RuntimeWarning, stacklevel=2)
    layers = [
        layer
        for layer in dataset.layers.values()
        if layer.properties.can_be_read and layer.properties.mags
    ]
    return Found(
        {layer.name: _mags_of(layer) for layer in layers}, dataset.attrs, dataset.name, "dataset"
    )


def _of_layer(layer: Layer) -> Found:
    return Found({layer.name: _mags_of(layer)}, layer.dataset.attrs, layer.name, "layer")


def _mags_of(layer: Layer) -> dict[Mag | None, Opener]:
    return {entry.mag: partial(layer.__getitem__, entry.mag) for entry in layer.properties.mags}


def _of_mag(where: _Where) -> Found:
    """Return a mag, with the labels of its layer if it belongs to one."""
    directory, options = where
    layer = _layer_at(where.parent)
    for mag, open_ in _mags_of(layer).items() if layer else ():
        with contextlib.suppress(WkdaskError):
            if layer and _is_same(open_().path, directory):
                return Found({layer.name: {mag: open_}}, layer.dataset.attrs, layer.name, "mag")
    view = open_mag(directory, storage_options=options)
    name = directory.name if view.mag is None else directory.parent.name
    return Found({name: {view.mag: partial(_named, where, name)}}, {}, name, "mag")


def _is_same(path: str, directory: Path | Address) -> bool:
    if isinstance(directory, Address):
        return path == str(directory)
    return Path(path).resolve() == directory.resolve()


def _layer_at(where: _Where) -> Layer | None:
    """Return the layer of which this is the directory, if there is a dataset around it."""
    if not is_dataset(*where.parent):
        return None
    layer = Dataset(*where.parent).layers.get(where.directory.name)
    return layer if layer is not None and layer.properties.can_be_read else None


def _of_bare_mags(directory: Path) -> Found:
    return Found({directory.name: _bare_mags(directory)}, {}, directory.name, "layer")


def _bare_mags(directory: Path) -> dict[Mag | None, Opener]:
    """Return the mags in a directory, from fine to coarse, by nothing but their names."""
    found = {mag: name for name, mag in sorted(_mags_in(directory))}
    return {
        mag: partial(_named, _Where(directory / found[mag], None), directory.name)
        for mag in sorted(found)
    }


def _mags_in(directory: Path | Address) -> Iterator[tuple[str, Mag]]:
    """Yield the names of mags in a directory; what lies at an address can't be listed."""
    if isinstance(directory, Path) and directory.is_dir():
        with os.scandir(directory) as entries:
            for entry in entries:
                mag = mag_named(entry.name)
                if mag is not None and is_volume(entry.path):
                    yield entry.name, mag


def _named(where: _Where, name: str) -> MagView:
    """Open a mag directory as that of a layer."""
    view = open_mag(where.directory, storage_options=where.options)
    labels = replace(view.labels, name=name)
    return MagView(view.volume, view.bounding_box, labels, read_only=view.read_only)


def _listed(mags: Collection[Mag | None]) -> str:
    return ", ".join(map(str, mags))
