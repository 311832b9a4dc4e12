"""The 16 bytes that begin `header.wkw` and every `.wkw` file, and what follows from them.

Only this module uses the names of the format, `file_len` and `block_len`; everywhere else it is
`blocks_per_file_edge` and `block_edge`. It knows bytes, not paths.

The layout is that of the WKW format, version 1, as the `wkw` package 1.1.24 reads and writes it:
`WKW`, version, `log2(blocks per file edge) << 4 | log2(block edge)`, block type, voxel type, bytes
per voxel with all channels, and the offset of the voxel data as little-endian uint64, which is 0 in
`header.wkw`.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any, Literal, cast

import numpy as np
import wkw

from wkdask.errors import ArgumentError, BoundsError, FormatError
from wkdask.geometry import BoundingBox, Vec3, whole
from wkdask.storage.volume import VoxelType

__all__ = [
    "BLOCK_TYPES",
    "DTYPES",
    "HEADER_BYTES",
    "BlockType",
    "VolumeHeader",
    "check_addressable",
]

HEADER_BYTES = 16

BlockType = Literal["raw", "lz4", "lz4hc"]
BLOCK_TYPES: tuple[BlockType, ...] = ("raw", "lz4", "lz4hc")
"""Block types; the format numbers them from 1."""

DTYPES: tuple[str, ...] = tuple(np.dtype(t).name for t in wkw.Header.VALID_VOXEL_TYPES)
"""Names of the NumPy dtypes that a voxel may have; the format numbers them from 1."""

_LAYOUT = struct.Struct("<3sBBBBBQ")
# What all files of a volume agree in.
_GEOMETRY = ("dtype", "num_channels", "block_edge", "blocks_per_file_edge")
_VERSION = 1
# Positions and sizes are unsigned 32-bit numbers in libwkw, the reference for WKW.
_POSITIONS = 2**32
_MAX_LOG2 = 15
_MAX_VOXEL_BYTES = 255
# LZ4 takes no more than this in one piece (LZ4_MAX_INPUT_SIZE of the LZ4 block format).
_MAX_BLOCK_BYTES = 0x7E000000
# A file is opened by reading its jump table whole: 256 blocks per edge, eight times the usual.
_MAX_TABLE_BYTES = 2**27


@dataclass(frozen=True, slots=True)
class VolumeHeader:
    """How the voxels of a volume are stored: the same facts as `wkw.Header`, frozen.

    Raises
    ------
    ArgumentError
        If a value is not one that the format can store.

    Examples
    --------
    >>> header = VolumeHeader("uint8", block_type="lz4")
    >>> header.file_edge
    1024
    >>> VolumeHeader.from_bytes(header.to_bytes()) == header
    True
    """

    dtype: str
    """Name of the NumPy dtype of one channel of a voxel."""
    num_channels: int = 1
    """Values per voxel."""
    block_edge: int = 32
    """Voxels per edge of a block."""
    blocks_per_file_edge: int = 32
    """Blocks per edge of a file."""
    block_type: BlockType = "raw"
    """How blocks are stored: as they are, or compressed one by one."""

    # What follows from these, once and not with each use.
    itemsize: int = field(init=False, repr=False, compare=False)
    """Bytes of one channel of a voxel."""
    voxel_bytes: int = field(init=False, repr=False, compare=False)
    """Bytes of a voxel, all channels."""
    block_bytes: int = field(init=False, repr=False, compare=False)
    """Bytes of a block before compression."""
    blocks_per_file: int = field(init=False, repr=False, compare=False)
    """Blocks of a file."""
    file_edge: int = field(init=False, repr=False, compare=False)
    """Voxels per edge of a file."""
    block_size: Vec3 = field(init=False, repr=False, compare=False)
    """Voxels per axis of a block."""
    file_size: Vec3 = field(init=False, repr=False, compare=False)
    """Voxels per axis of a file."""
    is_compressed: bool = field(init=False, repr=False, compare=False)
    """Whether blocks are compressed, so that a file can only be written whole."""
    write_size: Vec3 = field(init=False, repr=False, compare=False)
    """Voxels per axis of the smallest box that two tasks must not share: a file or a block."""
    write_unit: str = field(init=False, repr=False, compare=False)
    """What a box of `write_size` is called: `"file"` or `"block"`."""
    data_offset_bytes: int = field(init=False, repr=False, compare=False)
    """Where the voxel data begin in a file: behind the header and the jump table."""

    def __post_init__(self) -> None:
        if self.dtype not in DTYPES:
            raise ArgumentError(f"dtype is {self.dtype!r}, but WKW stores {', '.join(DTYPES)}.")
        if self.block_type not in BLOCK_TYPES:
            raise ArgumentError(
                f"block_type is {self.block_type!r}, but must be one of {', '.join(BLOCK_TYPES)}."
            )
        for name in ("num_channels", "block_edge", "blocks_per_file_edge"):
            object.__setattr__(self, name, whole(getattr(self, name), name))
        _check_power("block_edge", self.block_edge)
        _check_power("blocks_per_file_edge", self.blocks_per_file_edge)
        for name, value in self._facts():
            object.__setattr__(self, name, value)
        if not 1 <= self.num_channels <= _MAX_VOXEL_BYTES // self.itemsize:
            raise ArgumentError(
                f"num_channels is {self.num_channels}, but a voxel of {self.dtype} holds 1 to "
                f"{_MAX_VOXEL_BYTES // self.itemsize} (at most {_MAX_VOXEL_BYTES} bytes a voxel)."
            )
        if self.block_bytes > _MAX_BLOCK_BYTES:
            raise ArgumentError(
                f"a block of edge {self.block_edge} has {self.block_bytes} bytes, but at most "
                f"{_MAX_BLOCK_BYTES} can be stored as one. Use a smaller block_edge."
            )
        table_bytes = self.data_offset_bytes - HEADER_BYTES
        if table_bytes > _MAX_TABLE_BYTES:
            raise ArgumentError(
                f"a file of {self.blocks_per_file_edge}^3 compressed blocks has a jump table of "
                f"{table_bytes} bytes, but at most {_MAX_TABLE_BYTES} are read. Use a smaller "
                "blocks_per_file_edge."
            )

    def _facts(self) -> Iterator[tuple[str, Any]]:
        """Yield the name and the value of each fact that follows from the others."""
        itemsize = np.dtype(self.dtype).itemsize
        voxel_bytes = itemsize * self.num_channels
        blocks = self.blocks_per_file_edge**3
        file_edge = self.block_edge * self.blocks_per_file_edge
        block_size, file_size = (self.block_edge,) * 3, (file_edge,) * 3
        is_compressed = self.block_type != "raw"
        yield "itemsize", itemsize
        yield "voxel_bytes", voxel_bytes
        yield "block_bytes", self.block_edge**3 * voxel_bytes
        yield "blocks_per_file", blocks
        yield "file_edge", file_edge
        yield "block_size", block_size
        yield "file_size", file_size
        yield "is_compressed", is_compressed
        yield "write_size", file_size if is_compressed else block_size
        yield "write_unit", "file" if is_compressed else "block"
        yield "data_offset_bytes", HEADER_BYTES + (8 * blocks if is_compressed else 0)

    @property
    def fill_value(self) -> float:
        """What a voxel holds that was never written: WKW knows nothing but zero."""
        return 0

    @property
    def voxel_type(self) -> VoxelType:
        """What a voxel holds."""
        return VoxelType(self.dtype, self.num_channels)

    @property
    def data_format(self) -> str:
        """What the JSON of a dataset calls the format."""
        return "wkw"

    def stored_as(self, block_type: str | None) -> VolumeHeader:
        """Return the same header with other blocks; None keeps them."""
        return self if block_type is None else replace(self, block_type=cast(BlockType, block_type))

    def with_edges(self, block_edge: int | None, blocks_per_file_edge: int | None) -> VolumeHeader:
        """Return the same header with other edges; None keeps an edge."""
        given = {"block_edge": block_edge, "blocks_per_file_edge": blocks_per_file_edge}
        changes: dict[str, Any] = {k: v for k, v in given.items() if v is not None}
        return replace(self, **changes)

    def to_bytes(self, data_offset_bytes: int = 0) -> bytes:
        """Return the 16 bytes; `data_offset_bytes` is 0 in `header.wkw`."""
        edges = (self.blocks_per_file_edge.bit_length() - 1) << 4 | self.block_edge.bit_length() - 1
        return _LAYOUT.pack(
            b"WKW",
            _VERSION,
            edges,
            BLOCK_TYPES.index(self.block_type) + 1,
            DTYPES.index(self.dtype) + 1,
            self.voxel_bytes,
            data_offset_bytes,
        )

    @classmethod
    def from_bytes(cls, data: bytes) -> VolumeHeader:
        """Parse the 16 bytes of `header.wkw` or of a file.

        Raises
        ------
        FormatError
            If they are fewer, or say something that the format does not allow.
        """
        return _parse(data)[0]

    @classmethod
    def from_file_bytes(cls, data: bytes) -> VolumeHeader:
        """Parse the 16 bytes of a file, where the offset of the voxel data counts too.

        Raises
        ------
        FormatError
            As `from_bytes`, and if the offset is not the one that follows from the header.
        """
        header, offset_bytes = _parse(data)
        if offset_bytes != header.data_offset_bytes:
            raise FormatError(
                f"says that voxel data begin at byte {offset_bytes}, but they must begin at byte "
                f"{header.data_offset_bytes}"
            )
        return header

    @classmethod
    def from_wkw(cls, header: wkw.Header) -> VolumeHeader:
        """Return the frozen form of a `wkw.Header`.

        Raises
        ------
        ArgumentError
            If it was given a value that the format can't store.
        """
        if header.version != _VERSION:
            raise ArgumentError(f"version is {header.version!r}, but only {_VERSION} is known.")
        if header.block_type not in range(1, len(BLOCK_TYPES) + 1):
            raise ArgumentError(
                f"block_type is {header.block_type!r}, but must be one of "
                f"{wkw.Header.VALID_BLOCK_TYPES}."
            )
        return cls(
            dtype=np.dtype(header.voxel_type).name,
            num_channels=header.num_channels,
            block_edge=header.block_len,
            blocks_per_file_edge=header.file_len,
            block_type=BLOCK_TYPES[header.block_type - 1],
        )

    def to_wkw(self) -> wkw.Header:
        """Return the same as a `wkw.Header`, the type of the public API."""
        return wkw.Header(
            voxel_type=np.dtype(self.dtype).type,
            num_channels=self.num_channels,
            block_len=self.block_edge,
            file_len=self.blocks_per_file_edge,
            block_type=BLOCK_TYPES.index(self.block_type) + 1,
        )

    def same_voxels_as(self, other: VolumeHeader) -> bool:
        """Return whether files of both can lie in one volume: all but the block type agrees."""
        return all(getattr(self, name) == getattr(other, name) for name in _GEOMETRY)

    def describe(self) -> dict[str, Any]:
        """Return block type, block edge and file edge, as plain values."""
        return {
            "block_type": self.block_type,
            "block_edge": self.block_edge,
            "file_edge": self.file_edge,
        }

    def difference_to(self, demanded: object) -> str:
        """Return in words where files of this header do not fit into a volume of another one.

        The block type is named where nothing else differs.
        """
        if not isinstance(demanded, VolumeHeader):
            return f"{self} instead of {demanded}"
        is_fitting = self.same_voxels_as(demanded)
        names = ("block_type",) if is_fitting else _GEOMETRY
        pairs = ((name, getattr(self, name), getattr(demanded, name)) for name in names)
        return ", ".join(
            f"{name} {mine} instead of {theirs}" for name, mine, theirs in pairs if mine != theirs
        )


def check_addressable(box: BoundingBox, what: str = "the box") -> BoundingBox:
    """Return an absolute box, or raise if WKW has no numbers for its voxels."""
    if min(box.topleft) < 0:
        raise BoundsError(f"{what} {box} begins at a negative position; WKW begins at 0.")
    if max(box.bottomright) > _POSITIONS or max(box.size) == _POSITIONS:
        raise BoundsError(f"{what} {box} goes beyond 2**32 voxels, which WKW can't hold.")
    return box


def _parse(data: bytes) -> tuple[VolumeHeader, int]:
    if len(data) < HEADER_BYTES:
        raise FormatError(f"has {len(data)} bytes where a header of {HEADER_BYTES} must be")
    magic, version, edges, block_type, voxel_type, voxel_bytes, offset = _LAYOUT.unpack(
        data[:HEADER_BYTES]
    )
    if magic != b"WKW":
        raise FormatError(f"begins with {magic!r} instead of b'WKW'")
    if version != _VERSION:
        raise FormatError(f"has version {version}, but only version {_VERSION} is known")
    if not 1 <= block_type <= len(BLOCK_TYPES):
        raise FormatError(f"has block type {block_type}, but 1 to {len(BLOCK_TYPES)} are known")
    if not 1 <= voxel_type <= len(DTYPES):
        raise FormatError(f"has voxel type {voxel_type}, but 1 to {len(DTYPES)} are known")
    dtype = DTYPES[voxel_type - 1]
    num_channels, rest = divmod(voxel_bytes, np.dtype(dtype).itemsize)
    if rest or not num_channels:
        raise FormatError(f"has {voxel_bytes} bytes a voxel, which are no channels of {dtype}")
    try:
        header = VolumeHeader(
            dtype=dtype,
            num_channels=num_channels,
            block_edge=1 << (edges & 15),
            blocks_per_file_edge=1 << (edges >> 4),
            block_type=BLOCK_TYPES[block_type - 1],
        )
    except ArgumentError as error:
        raise FormatError(f"says that {str(error).rstrip('.')}") from None
    return header, cast(int, offset)


def _check_power(name: str, value: int) -> None:
    if not 0 < value <= 1 << _MAX_LOG2 or value & (value - 1):
        raise ArgumentError(
            f"{name} is {value}, but must be a power of two from 1 to {1 << _MAX_LOG2}."
        )
