"""`datasource-properties.json` <-> frozen values; it keeps what it does not know.

This module knows JSON and one file name. It must not know arrays, volumes or where voxels lie: what
stands in the file is neither compared with `header.wkw` nor is a mag's `path` followed.

Both forms are read: the current one, and the legacy one (`scale` as a list in nanometre,
`wkwResolutions`). Only the current one is written. Keys that no field stands for are in `extra`;
unknown keys inside `id`, `scale` and `boundingBox` are there too, under that name. A `path` or
`largestSegmentId` of null is read as absent, and absent is how it is written.

Facts of the format that are marked *measured* are what webknossos 4.3.3 writes and accepts.
"""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import json
import math
import numbers
import os
import re
import reprlib
import stat
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from wkdask.errors import (
    ArgumentError,
    FormatError,
    MissingError,
    NameLookupError,
    PropertiesError,
    StorageError,
    storage_error,
)
from wkdask.geometry import BoundingBox, Mag, is_remote, whole
from wkdask.storage.atomic import os_errors, replacing, write_all
from wkdask.storage.place import LOCAL, Address, Place
from wkdask.storage.remote import place_of
from wkdask.storage.volume import VoxelType
from wkdask.units import UNITS

__all__ = [
    "CATEGORIES",
    "DATA_FORMATS",
    "FILE_NAME",
    "DatasetProperties",
    "LayerProperties",
    "MagProperties",
    "PropertiesFile",
    "Unreadable",
    "check_data_format",
    "check_layer_name",
    "check_new_layer",
    "check_unit",
    "element_class",
    "load",
    "locked",
    "parse",
    "render",
    "save",
]

FILE_NAME = "datasource-properties.json"

CATEGORIES = ("color", "segmentation")
"""What a layer may show."""

DATA_FORMATS = ("wkw", "zarr3", "zarr")
"""What is read and written; layers of other formats are only listed."""

_KINDS = {"uint": (8, 16, 32, 64), "int": (8, 16, 32, 64), "float": (32, 64)}
_BITS = {f"{kind}{bits}": (kind, bits) for kind, sizes in _KINDS.items() for bits in sizes}
_FLOAT_CLASSES = {"float32": "float", "float64": "double"}
_MAX_JSON_INTEGER = 2**53 - 1
_MOST_BYTES = 2**26

_Keys = Mapping[str, Sequence[str]]
# The keys that fields stand for, with the keys inside those that are objects; all others are extra.
_MAG_KEYS: _Keys = {"mag": (), "path": ()}
_LAYER_KEYS: _Keys = {
    **dict.fromkeys(("name", "category", "dataFormat", "mags", "wkwResolutions"), ()),
    **dict.fromkeys(("numChannels", "elementClass", "largestSegmentId"), ()),
    "boundingBox": ("topLeft", "width", "height", "depth"),
}
_LAYERS = "dataLayers"
_DATASET_KEYS: _Keys = {"id": ("name", "team"), "scale": ("factor", "unit"), "dataLayers": ()}

_T = TypeVar("_T")
_D = TypeVar("_D")


@dataclass(frozen=True, slots=True)
class Unreadable:
    """A part of the file that can't be understood; it is written again as it was read."""

    key: str
    """The key that holds it: `"scale"`, `"id"`, or the list in which it stands."""
    position: int
    """Where it stands in the list."""
    name: str
    """The name or mag, as far as it can be told."""
    value: Any
    """As read."""
    error: str
    """What is wrong with it."""


@dataclass(frozen=True, slots=True)
class MagProperties:
    """A resolution level of a layer, as the file lists it."""

    mag: Mag
    """Which level."""
    path: str | None = None
    """Where its files are, as in the JSON: relative to the dataset. None: `<layer>/<mag>`."""
    extra: Mapping[str, Any] = field(default_factory=dict)
    """Every other key as read: `cubeLength`, `axisOrder`, unknown ones."""

    def __post_init__(self) -> None:
        _check_extra(self.extra, _MAG_KEYS)

    def __repr__(self) -> str:
        # An address may have a password in it.
        path = None if self.path is None else re.sub("//[^/@]*@", "//", self.path)
        return f"MagProperties({self.mag!r}, {path!r}, {self.extra!r})"


@dataclass(frozen=True, slots=True)
class LayerProperties:
    """A layer of a dataset, in any data format.

    Examples
    --------
    >>> layer = LayerProperties("color", "color", BoundingBox((0, 0, 0), (64, 64, 64)), "uint8", 3)
    >>> layer = layer.with_mag(MagProperties(Mag("2-2-1"))).with_mag(MagProperties(Mag(1)))
    >>> [str(entry.mag) for entry in layer.mags]
    ['1', '2-2-1']
    """

    name: str
    """Also the name of its directory."""
    category: str
    """`"color"` or `"segmentation"`."""
    bounding_box: BoundingBox
    """Where there are data, in voxels of mag 1."""
    dtype: str
    """NumPy name of one channel; as read, if the layer is of another format and it is not known."""
    num_channels: int = 1
    """Values per voxel."""
    data_format: str = "wkw"
    """How voxels are stored: one of `DATA_FORMATS`, or a format that is only passed on."""
    mags: tuple[MagProperties, ...] = ()
    """The levels; always in the order from fine to coarse."""
    largest_segment_id: int | None = None
    """The largest id of a segmentation; None if nobody counted."""
    extra: Mapping[str, Any] = field(default_factory=dict)
    """Every other key as read. In other formats, an `elementClass` that is not understood too."""
    unreadable: tuple[Unreadable, ...] = ()
    """Entries of mags that can't be understood."""

    def __post_init__(self) -> None:
        check_layer_name(self.name)
        if self.category not in CATEGORIES:
            raise ArgumentError(
                f"category is {self.category!r}, but must be {_either(CATEGORIES)}."
            )
        if "elementClass" not in self.extra:
            _check_dtype(self.dtype)
        if self.num_channels < 1:
            raise ArgumentError(f"num_channels is {self.num_channels}, but must be at least 1.")
        if not isinstance(self.bounding_box, BoundingBox):
            raise ArgumentError(
                f"bounding_box is {self.bounding_box!r}, but must be a wkdask.BoundingBox."
            )
        if self.largest_segment_id is not None:
            largest = whole(self.largest_segment_id, "largest_segment_id")
            object.__setattr__(self, "largest_segment_id", largest)
        known = dict(_LAYER_KEYS)
        if self.data_format != "wkw":
            del known["elementClass"]
        _check_extra(self.extra, known)
        _check_unique([entry.mag for entry in self.mags], f"layer {self.name!r} lists mag")
        ordered = tuple(sorted(self.mags, key=lambda entry: entry.mag))
        object.__setattr__(self, "mags", ordered)

    @property
    def voxel_type(self) -> VoxelType:
        """What a voxel holds."""
        return VoxelType(self.dtype, self.num_channels)

    @property
    def can_be_read(self) -> bool:
        """Whether the layer is stored in a format that wkdask reads."""
        return self.data_format in DATA_FORMATS

    def check_readable(self, mag: str | None = None) -> None:
        """Raise the error of a mag that can't be understood; None is any mag."""
        for each in self.unreadable:
            if mag in (None, each.name):
                raise PropertiesError(each.error)

    def with_data_format(self, data_format: str) -> LayerProperties:
        """Return a layer of another format, which only one without mags can take."""
        if self.mags or self.unreadable:
            raise ArgumentError(
                f"data_format is {data_format!r}, but layer {self.name!r} has mags of "
                f"{self.data_format}, and all mags of a layer have one format."
            )
        return dataclasses.replace(self, data_format=data_format)

    def with_mag(self, mag_properties: MagProperties) -> LayerProperties:
        """Return a layer that lists this mag, in place of an entry for the same mag."""
        others = [entry for entry in self.mags if entry.mag != mag_properties.mag]
        return dataclasses.replace(self, mags=(*others, mag_properties))


@dataclass(frozen=True, slots=True)
class DatasetProperties:
    """All that `datasource-properties.json` says.

    Examples
    --------
    >>> dataset = DatasetProperties("cortex", (11.2, 11.2, 28.0))
    >>> parse(render(dataset), "cortex") == dataset
    True
    """

    name: str
    """As in `id`; WEBKNOSSOS itself goes by the directory's name."""
    voxel_size: tuple[float, float, float] | None
    """Edges of a voxel of mag 1 `(x, y, z)`, in `unit`; None if they can't be understood."""
    unit: str = "nanometer"
    """Unit of `voxel_size`, as read; `check_unit` knows which are good to write."""
    layers: tuple[LayerProperties, ...] = ()
    """In the order of the file."""
    team: str = ""
    """As in `id`; not used any more."""
    extra: Mapping[str, Any] = field(default_factory=dict)
    """Every other key as read: `version`, `defaultViewConfiguration`, unknown ones."""
    unreadable: tuple[Unreadable, ...] = ()
    """Layers, and what is known of the whole dataset, that can't be understood."""
    notes: tuple[str, ...] = field(default=(), compare=False)
    """What is not as it should be in the file, but is no obstacle."""

    def __post_init__(self) -> None:
        if self.voxel_size is not None:
            if len(self.voxel_size) != 3 or not all(map(_is_length, self.voxel_size)):
                raise ArgumentError(
                    f"voxel_size is {self.voxel_size!r}, but must be three positive numbers "
                    "(x, y, z)."
                )
            object.__setattr__(self, "voxel_size", tuple(map(float, self.voxel_size)))
        object.__setattr__(self, "layers", tuple(self.layers))
        _check_extra(self.extra, _DATASET_KEYS)
        _check_unique([layer.name for layer in self.layers], f"dataset {self.name!r} lists layer")

    def layer(self, name: str) -> LayerProperties:
        """Return a layer by its name."""
        for layer in self.layers:
            if layer.name == name:
                return layer
        self.check_readable(name)
        names = ", ".join(layer.name for layer in self.layers) or "no layers at all"
        raise NameLookupError(f"dataset {self.name!r} has no layer {name!r}; it has {names}.")

    def check_readable(self, name: str | None = None) -> None:
        """Raise the error of a layer that can't be understood; None is any layer."""
        for each in self.unreadable:
            if each.key == _LAYERS and name in (None, each.name):
                raise PropertiesError(each.error)

    def all_unreadable(self) -> Iterator[Unreadable]:
        """Yield what can't be understood, mags included."""
        yield from self.unreadable
        for layer in self.layers:
            yield from layer.unreadable

    def known_voxel_size(self) -> tuple[float, float, float]:
        """Return the voxel size, or raise if it can't be understood."""
        if self.voxel_size is None:
            error = next(each.error for each in self.unreadable if each.key == "scale")
            raise PropertiesError(error)
        return self.voxel_size

    def names(self) -> set[str]:
        """Return the names of all layers, also of those that can't be understood."""
        readable = {layer.name for layer in self.layers}
        return readable | {each.name for each in self.unreadable if each.key == _LAYERS}

    def with_layer(self, layer: LayerProperties) -> DatasetProperties:
        """Return a dataset with this layer, in place of one of its name or behind the others."""
        layers = {old.name: old for old in self.layers} | {layer.name: layer}
        return dataclasses.replace(self, layers=tuple(layers.values()))


def check_layer_name(name: str) -> None:
    """Refuse names that would leave the dataset or hide in it.

    webknossos *opens* all other names; it only *creates* names of the letters a to z, digits and
    `_-.$` (measured).
    """
    if not isinstance(name, str) or not re.fullmatch(r"[^./\\\0][^/\\\0]*", name):
        raise ArgumentError(
            f"layer name is {name!r}, but must be the name of a directory in the dataset: "
            "not empty, no dot in front, no slash, backslash or NUL."
        )


def check_new_layer(layer: LayerProperties) -> None:
    """Refuse a segmentation of fractions; layers that are there already may hold anything."""
    if layer.category == "segmentation" and not layer.dtype.startswith(("uint", "int")):
        raise ArgumentError(f"a segmentation holds whole numbers, but dtype is {layer.dtype}.")


def check_data_format(data_format: str) -> None:
    """Refuse a format that wkdask does not write."""
    if data_format not in DATA_FORMATS:
        raise ArgumentError(f"data_format is {data_format!r}, but must be {_either(DATA_FORMATS)}.")


def check_unit(unit: str) -> None:
    """Refuse a unit that webknossos does not write."""
    if unit not in UNITS:
        raise ArgumentError(f"unit is {unit!r}, but must be {_either(UNITS)}.")


def element_class(dtype: str, num_channels: int) -> str:
    """Return the `elementClass` of voxels: the kind of number, and the bits of all channels.

    webknossos writes and reads the same for every dtype and count of channels (measured). `float`
    and `double` are 32 and 64 bits *in all*: two float32 are `double`, three are `float96`. It
    reads `float` with two channels as float16, which WKW can't store: `parse` refuses that.

    Parameters
    ----------
    dtype
        NumPy name of one channel.
    num_channels
        Values per voxel.

    Examples
    --------
    >>> element_class("uint8", 3), element_class("float32", 1), element_class("float32", 2)
    ('uint24', 'float', 'double')
    """
    _check_dtype(dtype)
    kind, bits = _BITS[dtype]
    name = f"{kind}{bits * num_channels}"
    return _FLOAT_CLASSES.get(name, name)


def load(directory: str | os.PathLike[str], place: Place = LOCAL) -> DatasetProperties:
    """Read the properties of a dataset."""
    path = os.path.join(directory, FILE_NAME)
    try:
        text = _decoded(place.read(path, _MOST_BYTES), path)
    except (FileNotFoundError, NotADirectoryError):
        raise _missing(directory) from None
    except StorageError:
        raise
    except OSError as error:
        raise storage_error(error, path, "reading properties") from error
    except PropertiesError:
        raise
    except FormatError as error:
        raise PropertiesError(str(error)) from None
    return parse(text, path)


def _decoded(data: bytes, path: str) -> str:
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise _not_json(path, error) from None


@contextlib.contextmanager
def locked(directory: str | os.PathLike[str]) -> Iterator[None]:
    """Keep other processes that ask for the same from changing the file meanwhile.

    Where a directory can't be locked, as on some network file systems, nothing is kept.
    """
    with contextlib.ExitStack() as stack:
        with contextlib.suppress(OSError):
            descriptor = os.open(directory, os.O_RDONLY)
            stack.callback(os.close, descriptor)
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield


def save(directory: str | os.PathLike[str], properties: DatasetProperties) -> None:
    """Write the properties of a dataset: the file is the old one or the new one, never half of it.

    An existing file keeps its permissions.
    """
    data = render(properties).encode()
    path = os.path.join(directory, FILE_NAME)
    if not os.path.isdir(directory):
        raise _missing(directory)
    with replacing(path) as descriptor, os_errors(path, "writing properties"):
        with contextlib.suppress(FileNotFoundError):
            os.fchmod(descriptor, stat.S_IMODE(os.stat(path).st_mode))
        write_all(descriptor, data, 0)
        os.fsync(descriptor)


class PropertiesFile:
    """The JSON of a dataset: what was read last, and changes that read it again under a lock."""

    def __init__(
        self,
        directory: str | os.PathLike[str],
        storage_options: Mapping[str, Any] | None = None,
    ) -> None:
        # Mags of a local dataset may lie at addresses too.
        of_place = storage_options if is_remote(os.fspath(directory)) else None
        path, self.place = place_of(directory, of_place)
        self.storage_options = storage_options
        self.directory: Path | Address = Address(path) if is_remote(path) else Path(path)
        self.content = load(path, self.place)

    def check_writable(self) -> None:
        """Raise `ReadOnlyError` if the dataset is that of another machine."""
        self.place.check_writable(str(self.directory))

    def refresh(self) -> None:
        """Read the file again, which another process may have changed."""
        self.content = load(self.directory, self.place)

    def change(self, change: Callable[[DatasetProperties], DatasetProperties]) -> None:
        """Read, change and write the file, while no other process of wkdask does the same."""
        self.check_writable()
        if isinstance(self.directory, Address):
            self._change_there(self.directory, change)
            return
        with locked(self.directory):
            found = load(self.directory)
            changed = change(found)
            if changed != found:
                save(self.directory, changed)
        self.content = changed

    def _change_there(
        self, directory: Address, change: Callable[[DatasetProperties], DatasetProperties]
    ) -> None:
        path = str(directory / FILE_NAME)

        def edited(data: bytes | None) -> bytes | None:
            if data is None:
                raise _missing(directory)
            found = parse(_decoded(data, path), path)
            self.content = change(found)
            return None if self.content == found else render(self.content).encode()

        self.place.change(path, edited)

    def change_layer(self, name: str, change: Callable[[LayerProperties], LayerProperties]) -> None:
        """Change the properties of one layer."""
        self.change(lambda found: found.with_layer(change(found.layer(name))))


def parse(text: str, source: str | os.PathLike[str]) -> DatasetProperties:
    """Return the properties from the text of the file.

    Parameters
    ----------
    text
        JSON.
    source
        What errors call it; a path, usually.
    """
    try:
        value = json.loads(text, parse_float=_json_number, parse_constant=_json_number)
    except (ValueError, RecursionError) as error:
        raise _not_json(source, error) from None
    return _read_dataset(_Node(value, os.fspath(source)))


def render(properties: DatasetProperties) -> str:
    """Return the text of the file, in the current form."""
    try:
        # Plain ASCII is UTF-8 too, and also holds half a surrogate pair, which JSON allows.
        return json.dumps(_dataset_json(properties), indent=4, allow_nan=False) + "\n"
    except (TypeError, ValueError, RecursionError) as error:
        raise ArgumentError(
            f"the properties of {properties.name!r} hold what JSON can't: {error}. "
            "Look into every extra, and for NumPy numbers."
        ) from None


class _Absent:
    """The value of a key that is not there."""

    def __reduce__(self) -> str:
        return "_ABSENT"


_ABSENT = _Absent()


@dataclass(frozen=True, slots=True)
class _Node:
    """A JSON value that knows its place, so that every error can name it."""

    value: Any
    source: str
    place: str = ""

    def __getitem__(self, key: str) -> _Node:
        """Return what is under `key`; if there is nothing, whoever reads it raises."""
        value = self.of(dict, "an object").get(key, _ABSENT)
        return _Node(value, self.source, f"{self.place}.{key}".lstrip("."))

    def optional(self, key: str, read: Callable[[_Node], _T], default: _D) -> _T | _D:
        """Return what is under `key`, or `default` if that is nothing or null."""
        node = self[key]
        return default if node.value in (None, _ABSENT) else read(node)

    def items(self) -> list[_Node]:
        """Return the values of a list."""
        values = self.of(list, "a list")
        return [_Node(v, self.source, f"{self.place}[{i}]") for i, v in enumerate(values)]

    def three(self, read: Callable[[_Node], _T]) -> tuple[_T, _T, _T]:
        """Return the values of a list of three."""
        if not isinstance(self.value, list) or len(self.value) != 3:
            raise self.error("a list of three (x, y, z)")
        x, y, z = map(read, self.items())
        return x, y, z

    def extra(self, known: _Keys) -> dict[str, Any]:
        """Return the unknown keys, and those inside known objects under the object's name."""
        rest = {key: value for key, value in self.value.items() if key not in known}
        for key, names in known.items():
            inner = self.value.get(key)
            if names and isinstance(inner, dict) and not inner.keys() <= {*names}:
                rest[key] = {k: v for k, v in inner.items() if k not in names}
        return rest

    def of(self, kind: type[_T], allowed: str) -> _T:
        """Return the value if it is of this JSON type."""
        if not isinstance(self.value, kind):
            raise self.error(allowed)
        return self.value

    def text(self) -> str:
        return self.of(str, "text")

    def one_of(self, allowed: Iterable[str]) -> str:
        if self.value not in allowed:
            raise self.error(_either(allowed))
        return str(self.value)

    def whole(self, least: int | None = None) -> int:
        """Return a whole number; 5.0 is one, for JSON and for webknossos (measured)."""
        value = self.value
        allowed = "a whole number" if least is None else f"a whole number of at least {least}"
        if not _is_number(value) or value != int(value):
            raise self.error(allowed)
        if least is not None and value < least:
            raise self.error(allowed)
        return int(value)

    def length(self) -> float:
        if not _is_length(self.value):
            raise self.error("a positive number")
        return float(self.value)

    def error(self, allowed: str) -> PropertiesError:
        came = "is missing" if self.value is _ABSENT else f"is {reprlib.repr(self.value)}"
        place = self.place or "the file"
        return PropertiesError(f"{self.source}: {place} {came}, but must be {allowed}.")

    @contextlib.contextmanager
    def checked(self) -> Iterator[None]:
        """Turn what a frozen value refuses into an error of the file."""
        try:
            yield
        except ArgumentError as error:
            place = self.place or "the file"
            raise PropertiesError(f"{self.source}: {place} can't be used: {error}") from None


def _read_dataset(node: _Node) -> DatasetProperties:
    unreadable: list[Unreadable] = []
    layers: dict[str, LayerProperties] = {}
    for position, layer in enumerate(node[_LAYERS].items()):
        with _kept(unreadable, layer, _LAYERS, position, "name"):
            found = _read_layer(layer)
            if found.name in layers:
                raise layer["name"].error("a name that no layer before it has")
            layers[found.name] = found
    name, team = Path(node.source).parent.name, ""
    voxel_size, unit = None, "nanometer"
    with _kept(unreadable, node["id"], "id"):
        # webknossos needs `id` but nothing in it (measured).
        known = node.optional("id", lambda each: each, None)
        if known is not None:
            name, team = (known.optional(key, _Node.text, "") for key in ("name", "team"))
    with _kept(unreadable, node["scale"], "scale"):
        voxel_size, unit = _read_scale(node["scale"])
    kept = {each.key for each in unreadable}
    extra = {key: value for key, value in node.extra(_DATASET_KEYS).items() if key not in kept}
    notes = [] if "id" in node.value else [f"{node.source} has no id"]
    if unit not in UNITS:
        notes.append(f"{node.source}: the unit {unit!r} is none that webknossos writes")
    with node.checked():
        return DatasetProperties(
            name, voxel_size, unit, tuple(layers.values()), team, extra, tuple(unreadable),
            tuple(notes),
        )  # fmt: skip


@contextlib.contextmanager
def _kept(
    unreadable: list[Unreadable], node: _Node, key: str, position: int = 0, name: str = ""
) -> Iterator[None]:
    """Keep a node as it is if it can't be understood."""
    try:
        yield
    except PropertiesError as error:
        names = node.value.get(name) if isinstance(node.value, dict) else None
        text = names if isinstance(names, str) else node.place
        unreadable.append(Unreadable(key, position, text, node.value, str(error)))


def _read_scale(node: _Node) -> tuple[tuple[float, float, float], str]:
    if isinstance(node.value, list):
        return node.three(_Node.length), "nanometer"
    unit = node.optional("unit", _Node.text, "nanometer")
    return node["factor"].three(_Node.length), unit


def _read_layer(node: _Node) -> LayerProperties:
    name = node["name"].text()
    with node["name"].checked():
        check_layer_name(name)
    data_format = node["dataFormat"].text()
    dtype, num_channels, passed_on = _read_voxel_type(node, data_format)
    extra = node.extra(_LAYER_KEYS) | passed_on
    mags, unreadable = _read_mags(node)
    with node.checked():
        return LayerProperties(
            name=name,
            category=node["category"].one_of(CATEGORIES),
            bounding_box=_read_box(node["boundingBox"]),
            dtype=dtype,
            num_channels=num_channels,
            data_format=data_format,
            mags=mags,
            largest_segment_id=node.optional("largestSegmentId", _read_segment_id, None),
            extra=extra,
            unreadable=unreadable,
        )


def _read_voxel_type(node: _Node, data_format: str) -> tuple[str, int, dict[str, Any]]:
    """Return dtype, count of channels, and `elementClass` itself if it is only to be passed on."""
    name = node["elementClass"].text()
    # WEBKNOSSOS takes uint24 as RGB; webknossos refuses it without numChannels (measured).
    num_channels = node.optional("numChannels", lambda n: n.whole(1), 3 if name == "uint24" else 1)
    classes = {element_class(dtype, num_channels): dtype for dtype in _BITS}
    dtype = classes.get(_FLOAT_CLASSES.get(name, name))
    if dtype is not None:
        return dtype, num_channels, {}
    if data_format == "wkw":
        allowed = f"{_either(classes)}, as numChannels is {num_channels}"
        raise node["elementClass"].error(allowed)
    return name, num_channels, {"elementClass": name}


def _read_box(node: _Node) -> BoundingBox:
    topleft = node["topLeft"].three(_Node.whole)
    return BoundingBox(topleft, [node[key].whole(0) for key in ("width", "height", "depth")])


def _read_mags(node: _Node) -> tuple[tuple[MagProperties, ...], tuple[Unreadable, ...]]:
    """Return what `mags` lists, and what only `wkwResolutions` does; then what can't be read."""
    has_older = node.optional("wkwResolutions", _Node.items, None) is not None
    mags: dict[Mag, MagProperties] = {}
    unreadable: list[Unreadable] = []
    for key, name in (("mags", "mag"), ("wkwResolutions", "resolution")):
        if key == "mags" and not has_older:
            entries = node[key].items()
        else:
            entries = node.optional(key, _Node.items, [])
        before = set(mags)
        for position, entry in enumerate(entries):
            with _kept(unreadable, entry, key, position, name):
                found = _read_mag(entry, name)
                if found.mag in mags and found.mag not in before:
                    raise entry[name].error("a mag that is listed once")
                mags.setdefault(found.mag, found)
    return tuple(mags.values()), tuple(unreadable)


def _read_mag(node: _Node, key: str) -> MagProperties:
    mag = _read_factors(node[key])
    path = node.optional("path", _Node.text, None)
    with node.checked():
        return MagProperties(mag, path, node.extra({**_MAG_KEYS, key: ()}))


def _read_factors(node: _Node) -> Mag:
    # A list, a number, or text such as "2-2-1"; webknossos refuses {"x", "y", "z"} (measured).
    if not isinstance(node.value, list | int | str):
        raise node.error("a list of three, a whole number, or text such as '2-2-1'")
    with node.checked():
        return Mag(node.three(_Node.whole) if isinstance(node.value, list) else node.value)


def _read_segment_id(node: _Node) -> int:
    if not isinstance(node.value, dict):
        return node.whole()
    node["customJsonEncoding"].one_of(("bigint",))
    text = node["value"].text()
    if not re.fullmatch(r"-?[0-9]{1,30}", text):
        raise node["value"].error("digits")
    return int(text)


def _dataset_json(dataset: DatasetProperties) -> dict[str, Any]:
    layers = [_layer_json(layer) for layer in dataset.layers]
    known: dict[str, Any] = {
        "id": {"name": dataset.name, "team": dataset.team},
        "scale": {"factor": list(dataset.voxel_size or ()), "unit": dataset.unit},
        _LAYERS: layers,
    }
    result = _merged(known, dataset.extra)
    for each in dataset.unreadable:
        if each.key == _LAYERS:
            layers.insert(each.position, each.value)
        elif each.value is _ABSENT:
            del result[each.key]
        else:
            result[each.key] = each.value
    return result


def _layer_json(layer: LayerProperties) -> dict[str, Any]:
    sizes = zip(("width", "height", "depth"), layer.bounding_box.size, strict=True)
    mags = [
        _merged({"mag": list(entry.mag), "path": entry.path}, entry.extra) for entry in layer.mags
    ]
    for each in layer.unreadable:
        if each.key == "mags":
            mags.insert(each.position, each.value)
    known: dict[str, Any] = {
        "name": layer.name,
        "category": layer.category,
        "boundingBox": {"topLeft": list(layer.bounding_box.topleft), **dict(sizes)},
        "dataFormat": layer.data_format,
        "mags": mags,
        "wkwResolutions": [each.value for each in layer.unreadable if each.key != "mags"] or None,
        "largestSegmentId": _segment_id_json(layer.largest_segment_id),
        "numChannels": layer.num_channels,
    }
    if "elementClass" not in layer.extra:
        known["elementClass"] = element_class(layer.dtype, layer.num_channels)
    return _merged(known, layer.extra)


def _segment_id_json(value: int | None) -> Any:
    if value is None or abs(value) <= _MAX_JSON_INTEGER:
        return value
    return {"customJsonEncoding": "bigint", "value": str(value)}


def _merged(known: Mapping[str, Any], extra: Mapping[str, Any]) -> dict[str, Any]:
    """Return both as one object, without what is None in `known`."""
    result = {key: value for key, value in known.items() if value is not None}
    for key, value in extra.items():
        result[key] = {**result[key], **value} if key in result else value
    return result


def _check_extra(extra: Mapping[str, Any], known: _Keys) -> None:
    """Refuse an extra key that would contradict a field."""
    for key, names in known.items():
        inner = extra.get(key) if names else None
        if key in extra and (not isinstance(inner, Mapping) or any(n in inner for n in names)):
            raise ArgumentError(f"extra holds {key!r}, but a field stands for that. Set the field.")


def _check_dtype(dtype: str) -> None:
    if dtype not in _BITS:
        raise ArgumentError(f"dtype is {dtype!r}, but must be {_either(_BITS)}.")


def _check_unique(values: Sequence[object], text: str) -> None:
    for value in values:
        if values.count(value) > 1:
            raise ArgumentError(f"{text} {str(value)!r} twice, but it must be there once.")


def _is_number(value: Any) -> bool:
    return isinstance(value, numbers.Real) and not isinstance(value, bool)


def _is_length(value: Any) -> bool:
    return _is_number(value) and bool(0 < value <= sys.float_info.max)


def _either(allowed: Iterable[str]) -> str:
    return f"one of {', '.join(allowed)}"


def _json_number(text: str) -> float:
    """Return a number; NaN and infinity are not JSON, and 1e999 could not be written again."""
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"{text} is not a number that JSON holds")
    return value


def _not_json(source: str | os.PathLike[str], error: Exception) -> PropertiesError:
    return PropertiesError(
        f"{os.fspath(source)} is not JSON in UTF-8: {error}. If another machine has written it, "
        "this one may still see its old size: try again. Else repair it, or restore a copy."
    )


def _missing(directory: str | os.PathLike[str]) -> MissingError:
    where = os.fspath(directory)
    if is_remote(where):
        return MissingError(f"{where} has no {FILE_NAME}, so it is not a dataset.")
    if not os.path.isdir(where):
        return MissingError(f"{where} is not a directory that exists. Check the path.")
    return MissingError(f"{where} has no {FILE_NAME}, so it is not a dataset. {_advice(where)}")


def _advice(directory: str) -> str:
    """Return how to open what is no dataset."""
    path = Path(os.path.abspath(directory))
    for depth, around in enumerate(path.parents[:2]):
        if (around / FILE_NAME).is_file():
            names = "".join(f"[{name!r}]" for name in path.parts[-1 - depth :])
            return f"It lies in one: wkdask.open({str(around)!r}){names}."
    if (path / "header.wkw").is_file():
        return f"It is a mag: wkdask.open_mag({str(path)!r})."
    return "Open the directory that holds this file, or create a dataset."
