"""How a zarr array stores voxels: its metadata as a frozen value, read and written.

What is understood is what WEBKNOSSOS and `webknossos` 4.3.3 write: axes `(c, x, y, z)`, all
channels in one chunk, voxels in Fortran order, plain or compressed by zstd; in format 3 with shards
or without, in format 2 without. Everything else is refused with its reason. The facts are those of
the specifications zarr v2 and v3, and of the sharding codec, version 1.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal, cast

import numpy as np

from wkdask.errors import ArgumentError, FormatError
from wkdask.geometry import Vec3
from wkdask.storage.header import DTYPES
from wkdask.storage.volume import VoxelType

__all__ = [
    "CODECS",
    "ZARR_FORMATS",
    "Codec",
    "UnusualError",
    "ZarrFormat",
    "ZarrLayout",
    "from_metadata",
    "usual_layout",
]

ZarrFormat = Literal["zarr3", "zarr"]
ZARR_FORMATS: tuple[ZarrFormat, ...] = ("zarr3", "zarr")
"""What WEBKNOSSOS calls the formats 3 and 2."""

Codec = Literal["zstd", "raw"]
CODECS: tuple[Codec, ...] = ("zstd", "raw")
"""How a block is stored."""

_AXES = ["c", "x", "y", "z"]
_TRANSPOSED = {"name": "transpose", "configuration": {"order": [3, 2, 1, 0]}}
_CRC32C = {"name": "crc32c"}
_LITTLE = {"name": "bytes", "configuration": {"endian": "little"}}
_LEVEL = 5
_MOST_BLOCK_BYTES = 2**31 - 1
# The index of a shard is read whole when the shard is opened.
_MOST_BLOCKS = 2**24


@dataclass(frozen=True, slots=True)
class ZarrLayout:
    """How the voxels of a zarr array are stored; a file is a shard, or a chunk without shards.

    Raises
    ------
    ArgumentError
        If a value is not one that wkdask writes.

    Examples
    --------
    >>> layout = ZarrLayout("uint8", file_size=(256, 256, 256))
    >>> layout.blocks_per_file
    (8, 8, 8)
    """

    dtype: str
    """Name of the NumPy dtype of one channel of a voxel."""
    num_channels: int = 1
    """Values per voxel."""
    block_size: Vec3 = (32, 32, 32)
    """Voxels per axis of a block, which zarr calls the inner chunk."""
    file_size: Vec3 = (1024, 1024, 1024)
    """Voxels per axis of a file."""
    codec: Codec = "zstd"
    """How blocks are stored."""
    data_format: ZarrFormat = "zarr3"
    """Which format."""
    is_sharded: bool = True
    """Whether a file is a shard of blocks with an index."""
    key_prefix: str = "c/"
    """What stands before the first number in the name of a file."""
    key_separator: str = "/"
    """What stands between numbers in the name of a file."""
    index_at_end: bool = field(default=True, kw_only=True)
    """Whether the index of a shard is its end, and not its beginning."""
    fill_value: float = field(default=0, kw_only=True)
    """What a voxel holds that was never written."""
    level: int = field(default=_LEVEL, kw_only=True, compare=False)
    """How hard zstd tries."""
    has_checksum: bool = field(default=True, kw_only=True, compare=False)
    """Whether zstd writes a checksum of the voxels of each block."""

    def __post_init__(self) -> None:
        if self.dtype not in DTYPES:
            raise ArgumentError(f"dtype is {self.dtype!r}, but must be one of {', '.join(DTYPES)}.")
        if self.codec not in CODECS:
            raise ArgumentError(
                f"block_type is {self.codec!r}, but in a Zarr layer must be one of "
                f"{', '.join(CODECS)}."
            )
        for name in ("block_size", "file_size"):
            size = getattr(self, name)
            if min(size) < 1:
                raise ArgumentError(f"{name} is {size}, but must be positive.")
        if any(f % b for f, b in zip(self.file_size, self.block_size, strict=True)):
            raise ArgumentError(
                f"a file of {self.file_size} voxels is not made of blocks of {self.block_size}."
            )
        if not self.is_sharded and self.file_size != self.block_size:
            raise ArgumentError("without shards a file is one block.")
        if self.block_bytes > _MOST_BLOCK_BYTES or math.prod(self.blocks_per_file) > _MOST_BLOCKS:
            raise ArgumentError(
                f"blocks of {self.block_size} voxels in files of {self.file_size} are too large or "
                "too many. Use other edges."
            )

    @property
    def voxel_type(self) -> VoxelType:
        """What a voxel holds."""
        return VoxelType(self.dtype, self.num_channels)

    @property
    def voxel_bytes(self) -> int:
        """Bytes of a voxel, all channels."""
        return np.dtype(self.dtype).itemsize * self.num_channels

    @property
    def block_bytes(self) -> int:
        """Bytes of a block before compression."""
        return math.prod(self.block_size) * self.voxel_bytes

    @property
    def blocks_per_file(self) -> Vec3:
        """Blocks per axis of a file."""
        x, y, z = (f // b for f, b in zip(self.file_size, self.block_size, strict=True))
        return x, y, z

    @property
    def index_bytes(self) -> int:
        """Bytes of the index of a shard, with its checksum."""
        return 16 * math.prod(self.blocks_per_file) + 4 if self.is_sharded else 0

    @property
    def write_size(self) -> Vec3:
        """Voxels per axis of the smallest box that two tasks must not share: a file."""
        return self.file_size

    @property
    def write_unit(self) -> str:
        """What a box of `write_size` is called."""
        return "file"

    def stored_as(self, block_type: str | None) -> ZarrLayout:
        """Return the same layout with another codec; None keeps it."""
        return self if block_type is None else replace(self, codec=cast(Codec, block_type))

    def with_edges(self, block_edge: int | None, blocks_per_file_edge: int | None) -> ZarrLayout:
        """Return the same layout with cubes as blocks and files; None keeps an edge."""
        block = self.block_size if block_edge is None else (block_edge,) * 3
        blocks = self.blocks_per_file
        if blocks_per_file_edge is not None and self.is_sharded:
            blocks = (blocks_per_file_edge,) * 3
        x, y, z = (a * b for a, b in zip(block, blocks, strict=True))
        return replace(self, block_size=block, file_size=(x, y, z))

    def describe(self) -> dict[str, Any]:
        """Return codec, block edge and file edge, as plain values; a list if they are no cubes."""
        return {
            "block_type": self.codec,
            "block_edge": _edge(self.block_size),
            "file_edge": _edge(self.file_size),
        }

    def difference_to(self, demanded: object) -> str:
        """Return in words what differs from another layout; an empty text if nothing does."""
        if not isinstance(demanded, ZarrLayout):
            return f"{self} instead of {demanded}"
        pairs = ((n, getattr(self, n), getattr(demanded, n)) for n in _COMPARED)
        return ", ".join(
            f"{name} {mine} instead of {theirs}" for name, mine, theirs in pairs if mine != theirs
        )

    def to_metadata(self, extent: Vec3) -> dict[str, Any]:
        """Return `zarr.json` or `.zarray` of an array of so many voxels, as plain values."""
        shape = [self.num_channels, *extent]
        fill = self.fill_value if self.dtype.startswith("float") else int(self.fill_value)
        chunks = [self.num_channels, *self.file_size]
        if self.data_format == "zarr":
            zstd = {"id": "zstd", "level": self.level}
            return {
                "zarr_format": 2,
                "shape": shape,
                "chunks": chunks,
                "dtype": np.dtype(self.dtype).newbyteorder("<").str,
                "fill_value": fill,
                "order": "F",
                "compressor": zstd if self.codec == "zstd" else None,
                "filters": None,
                "dimension_separator": self.key_separator,
            }
        return {
            "zarr_format": 3,
            "node_type": "array",
            "shape": shape,
            "data_type": self.dtype,
            "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": chunks}},
            "chunk_key_encoding": {
                "name": "default", "configuration": {"separator": self.key_separator},
            },
            "fill_value": fill,
            "codecs": self._codecs(),
            "dimension_names": list(_AXES),
            "attributes": {},
        }  # fmt: skip

    def _codecs(self) -> list[Any]:
        is_byte = np.dtype(self.dtype).itemsize == 1
        inner: list[Any] = [_TRANSPOSED, {"name": "bytes"} if is_byte else _LITTLE]
        if self.codec == "zstd":
            options = {"level": self.level, "checksum": self.has_checksum}
            inner.append({"name": "zstd", "configuration": options})
        if not self.is_sharded:
            return inner
        sharding = {
            "chunk_shape": [self.num_channels, *self.block_size],
            "codecs": inner,
            "index_codecs": [_LITTLE, _CRC32C],
            "index_location": "end" if self.index_at_end else "start",
        }
        return [{"name": "sharding_indexed", "configuration": sharding}]


def usual_layout(
    data_format: str,
    dtype: str,
    num_channels: int,
    block_edge: int = 32,
    blocks_per_file_edge: int | None = None,
    codec: str | None = None,
) -> ZarrLayout:
    """Return how WEBKNOSSOS stores a new array; see `opening.new_layout`."""
    is_sharded = data_format == "zarr3"
    blocks = 1 if not is_sharded else 32 if blocks_per_file_edge is None else blocks_per_file_edge
    return ZarrLayout(
        dtype, num_channels, (block_edge,) * 3, (block_edge * blocks,) * 3,
        cast(Codec, codec or "zstd"), cast(ZarrFormat, data_format),
        is_sharded, "c/" if is_sharded else "", has_checksum=is_sharded,
    )  # fmt: skip


_COMPARED = (
    "dtype", "num_channels", "block_size", "file_size", "codec", "data_format", "is_sharded",
    "key_prefix", "key_separator", "index_at_end", "fill_value",
)  # fmt: skip


class UnusualError(FormatError):
    """An array may be in order, but its layout is none that is read in place."""


def from_metadata(data: bytes) -> tuple[ZarrLayout, Vec3]:
    """Return the layout and the extent in voxels `(x, y, z)` that `zarr.json` or `.zarray` says.

    Raises
    ------
    FormatError
        If it is no metadata of an array, or of one that wkdask does not read.
    """
    try:
        said = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise FormatError(f"is not JSON: {error}") from None
    if not isinstance(said, dict):
        raise FormatError("is not a JSON object")
    try:
        layout, shape = _read_v2(said) if said.get("zarr_format") == 2 else _read_v3(said)
    except FormatError:
        raise
    except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
        raise FormatError(
            f"is no metadata of a zarr array: {type(error).__name__} {error}"
        ) from None
    except ArgumentError as error:
        raise FormatError(f"says that {str(error).rstrip('.')}") from None
    if shape[0] != layout.num_channels:
        raise UnusualError(
            f"says that chunks hold {layout.num_channels} of {shape[0]} channels, but wkdask reads "
            "arrays with all channels in one chunk only"
        )
    x, y, z = shape[1:]
    return layout, (x, y, z)


def _read_v2(said: Mapping[str, Any]) -> tuple[ZarrLayout, list[int]]:
    shape, chunks = _lengths(said["shape"], 0), _lengths(said["chunks"], 1)
    if said.get("filters"):
        raise _unknown("filters", said["filters"])
    if said["order"] != "F":
        raise _unknown("order of voxels", said["order"])
    compressor = said["compressor"] or {"id": "raw"}
    if compressor["id"] not in CODECS:
        raise _unknown("compressor", compressor["id"])
    dtype = np.dtype(said["dtype"])
    if dtype.itemsize > 1 and dtype != dtype.newbyteorder("<"):
        raise _unknown("byte order", said["dtype"])
    separator = said.get("dimension_separator", ".")
    layout = ZarrLayout(
        dtype.name, chunks[0], _vec3(chunks), _vec3(chunks), compressor["id"], "zarr", False, "",
        _separator(separator), fill_value=_fill(said["fill_value"], dtype.name),
        level=int(compressor.get("level", _LEVEL)), has_checksum=False,
    )  # fmt: skip
    return layout, shape


def _read_v3(said: Mapping[str, Any]) -> tuple[ZarrLayout, list[int]]:
    if said["zarr_format"] != 3 or said["node_type"] != "array":
        raise FormatError("is not the metadata of an array of zarr 2 or 3")
    if said.get("storage_transformers"):
        raise _unknown("storage transformers", said["storage_transformers"])
    if said["chunk_grid"]["name"] != "regular":
        raise _unknown("chunk grid", said["chunk_grid"]["name"])
    shape = _lengths(said["shape"], 0)
    chunks = _lengths(said["chunk_grid"]["configuration"]["chunk_shape"], 1)
    names = said.get("dimension_names")
    if names is not None and names != _AXES and any(name is not None for name in names):
        raise _unknown("order of axes", names)
    prefix, separator = _read_keys(said["chunk_key_encoding"])
    codecs, index_at_end = [_codec(each) for each in said["codecs"]], True
    is_sharded = len(codecs) == 1 and codecs[0][0] == "sharding_indexed"
    blocks = chunks
    if is_sharded:
        sharding = codecs[0][1]
        blocks = _lengths(sharding["chunk_shape"], 1)
        index_at_end = {"end": True, "start": False}[sharding.get("index_location", "end")]
        index = [_codec(each)[0] for each in sharding["index_codecs"]]
        if index != ["bytes", "crc32c"] or _codec(sharding["index_codecs"][0])[1] != {
            "endian": "little"
        }:
            raise _unknown("codecs of the index", index)
        codecs = [_codec(each) for each in sharding["codecs"]]
    if len(chunks) != 4 or len(blocks) != 4 or blocks[0] != chunks[0]:
        raise _unknown("shape of chunks", blocks)
    _check_inner(codecs, blocks)
    options: Mapping[str, Any] = codecs[2][1] if len(codecs) > 2 else {}
    layout = ZarrLayout(
        said["data_type"], chunks[0], _vec3(blocks), _vec3(chunks),
        "zstd" if len(codecs) > 2 else "raw", "zarr3", is_sharded, prefix, separator,
        index_at_end=index_at_end, fill_value=_fill(said["fill_value"], said["data_type"]),
        level=int(options.get("level", _LEVEL)), has_checksum=bool(options.get("checksum", False)),
    )  # fmt: skip
    return layout, shape


def _check_inner(codecs: list[tuple[str, Mapping[str, Any]]], blocks: list[int]) -> None:
    """Raise unless blocks hold their voxels in Fortran order, little endian, plain or by zstd."""
    names = [name for name, _ in codecs]
    if names not in (["transpose", "bytes"], ["transpose", "bytes", "zstd"]):
        raise _unknown("codecs", names)
    if codecs[0][1]["order"] not in ([3, 2, 1, 0], "F"):
        raise _unknown("transposition", codecs[0][1]["order"])
    if codecs[1][1].get("endian", "little") != "little":
        raise _unknown("byte order", codecs[1][1]["endian"])


def _read_keys(said: Any) -> tuple[str, str]:
    name, options = _codec(said)
    if name == "v2":
        return "", _separator(options.get("separator", "."))
    if name != "default":
        raise _unknown("names of files", name)
    separator = _separator(options.get("separator", "/"))
    return f"c{separator}", separator


def _codec(said: Any) -> tuple[str, Mapping[str, Any]]:
    """Return the name and the options of a codec, which may be given by its name alone."""
    if isinstance(said, str):
        return said, {}
    return said["name"], said.get("configuration") or {}


def _separator(said: Any) -> str:
    if said not in ("/", "."):
        raise _unknown("separator in names of files", said)
    return str(said)


def _lengths(said: Any, least: int) -> list[int]:
    if not isinstance(said, list) or not all(type(n) is int and n >= least for n in said):
        raise ValueError(f"{said!r} are no lengths")
    if len(said) != 4:
        raise UnusualError(f"has {len(said)} axes, but wkdask reads arrays (c, x, y, z) only")
    return said


def _fill(said: Any, dtype: str) -> float:
    """Return the fill value, which is exact in the dtype."""
    if said is None:
        return 0
    if dtype.startswith("float"):
        value = float(said)
        if not math.isfinite(value):
            raise _unknown("fill value", said)
        return value
    limits = np.iinfo(dtype) if dtype in DTYPES else None
    is_whole = type(said) in (int, bool)
    if not is_whole or (limits and not limits.min <= said <= limits.max):
        raise _unknown("fill value", said)
    return int(said)


def _unknown(what: str, found: object) -> UnusualError:
    return UnusualError(f"has the {what} {found!r}, which wkdask does not read by itself")


def _vec3(lengths: list[int]) -> Vec3:
    return lengths[1], lengths[2], lengths[3]


def _edge(size: Vec3) -> int | list[int]:
    return size[0] if len(set(size)) == 1 else list(size)
