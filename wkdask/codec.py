"""One block: bytes to voxels and back, and the order of blocks in a file.

Inside a block the channel is fastest, then x, y, z, which is the Fortran order of an array
`(c, x, y, z)`. Blocks follow each other in Morton order with x as bit 0. It knows no files.
"""

from __future__ import annotations

import lz4.block
import numpy as np
from numpy.typing import NDArray

from wkdask.errors import FormatError
from wkdask.geometry import Vec3
from wkdask.header import VolumeHeader

__all__ = ["block_at", "decode_block", "encode_block", "morton_index"]

# The level that libwkw uses for LZ4HC.
_HC_LEVEL = 9


def morton_index(block: Vec3, blocks_per_file_edge: int) -> int:
    """Return the place of a block in its file.

    Examples
    --------
    >>> [morton_index(block, 2) for block in ((0, 0, 0), (1, 0, 0), (0, 1, 0), (1, 1, 1))]
    [0, 1, 2, 7]
    """
    x, y, z = block
    return sum(
        (x >> bit & 1 | (y >> bit & 1) << 1 | (z >> bit & 1) << 2) << 3 * bit
        for bit in range(blocks_per_file_edge.bit_length() - 1)
    )


def block_at(index: int) -> Vec3:
    """Return the position `(x, y, z)` of the block at a place of the file.

    Examples
    --------
    >>> block_at(7)
    (1, 1, 1)
    """
    x, y, z = (
        sum((index >> 3 * bit + axis & 1) << bit for bit in range(index.bit_length() // 3 + 1))
        for axis in range(3)
    )
    return x, y, z


def decode_block(data: bytes, header: VolumeHeader) -> NDArray[np.generic]:
    """Return the voxels of a block, `(c, x, y, z)` in Fortran order.

    Raises
    ------
    FormatError
        If the bytes do not decode to exactly one block.
    """
    raw = _decompress(data, header.block_bytes) if header.is_compressed else data
    if len(raw) != header.block_bytes:
        raise FormatError(f"holds {len(raw)} bytes instead of {header.block_bytes}")
    edge = header.block_edge
    shape = (header.num_channels, edge, edge, edge)
    return np.frombuffer(raw, dtype=header.dtype).reshape(shape, order="F")


def encode_block(voxels: NDArray[np.generic], header: VolumeHeader) -> bytes:
    """Return the bytes of a block from its voxels, `(c, x, y, z)`."""
    raw = voxels.tobytes(order="F")
    if header.block_type == "raw":
        return raw
    mode = "high_compression" if header.block_type == "lz4hc" else "default"
    packed: bytes = lz4.block.compress(raw, mode=mode, compression=_HC_LEVEL, store_size=False)
    return packed


def _decompress(data: bytes, size_bytes: int) -> bytes:
    try:
        raw: bytes = lz4.block.decompress(data, uncompressed_size=size_bytes)
    except lz4.block.LZ4BlockError as error:
        raise FormatError(f"is no LZ4 block of {size_bytes} bytes ({error})") from None
    return raw
