"""For demos and tests: synthetic brain tissue, voxels for a header, what libwkw reads.

It knows how a voxel's position becomes a segment id and a grey value. It must not know datasets,
chunks or dask. Every value of the tissue depends on the seed and the absolute position only, so
any box can be computed on its own and neighbouring boxes fit together exactly.

Seeds of the tissue are not points but endless curves: three families run through a jittered lattice
along x, y and z, and a smooth noise bends space. A voxel belongs to the nearest curve, in the power
distance (Aurenhammer 1987), so that calibres differ. The distance to the border comes from the two
nearest curves, as in cellular noise (Worley 1996). Smooth noise is value noise on hashed knots
under cubic B-splines; the hash is the 32-bit finalizer of MurmurHash3 (Appleby). Only exactly
rounded elementwise arithmetic is used: a matrix product or `sin` may depend on the array's shape.
"""

from __future__ import annotations

import itertools
import math
import operator
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, NamedTuple, SupportsIndex, cast

import numpy as np
import wkw
from numpy.typing import NDArray

from wkdask._compile import compiled
from wkdask.errors import WkdaskError
from wkdask.geometry import BoundingBox
from wkdask.storage.header import BLOCK_TYPES, DTYPES, VolumeHeader
from wkdask.storage.volume import Voxels

if TYPE_CHECKING:
    from hypothesis.strategies import SearchStrategy

__all__ = [
    "Tissue",
    "boxes",
    "headers",
    "read_by_libwkw",
    "snapshot",
    "voxels_for",
    "write_by_libwkw",
]

Vec3 = tuple[int, int, int]
Ints = NDArray[np.int64]
Hashes = NDArray[np.uint32]
Floats = NDArray[np.float64]

TILE = (256, 128, 64)  # voxels computed at once: bounds the temporary arrays to about 50 MB
SPACING = 1.6  # lattice spacing per `cell_size_nm`; the lattice spacing is the unit of length below
SAMPLES = 8  # table samples per unit, between which the kernel interpolates linearly
BEND = ((4.5, 18), (0.8, 6))  # octaves of the warp: amplitude in units, knot period in samples
REACH = sum(amplitude for amplitude, _ in BEND) / 2
WIND = 12  # knot period of the curves, in samples
MEMBRANE_NM = 23.0  # from the border between two neurites to where the cytoplasm begins
RIM_NM = 14.0  # the membrane of an organelle
ONE, TWO, THREE, FOUR = (np.uint64(i) for i in range(1, 5))  # numba tests signed indices for < 0
TILE_UNITS = 8  # longest edge of a tile: bounds the tables where voxels are large
FAR = 1e9  # a power distance beyond all others


@dataclass(frozen=True, slots=True)
class Tissue:
    """Endless tissue, isotropic in nm, sampled on a grid of voxels.

    Examples
    --------
    >>> tissue = Tissue(seed=7)
    >>> tissue.labels((1000, 0, 50), (8, 6, 4)).shape
    (8, 6, 4)
    >>> whole, part = tissue.grey((0, 0, 0), (9, 9, 9)), tissue.grey((3, 4, 5), (6, 5, 4))
    >>> bool((whole[3:, 4:, 5:] == part).all())
    True
    """

    seed: int = 0
    """Any integer; its low 32 bits choose the tissue."""
    cell_size_nm: float = 350.0
    """Typical diameter of a neurite, in nm."""
    voxel_size: tuple[float, float, float] = (11.24, 11.24, 28.0)
    """Edges of a voxel along (x, y, z), in nm."""

    def __post_init__(self) -> None:
        """Refuse sizes that are not positive and finite."""
        if len(self.voxel_size) != 3:
            raise ValueError(f"voxel_size is {self.voxel_size}; give three edges (x, y, z) in nm")
        for size_nm in (self.cell_size_nm, *self.voxel_size):
            if not 0 < size_nm < math.inf:
                raise ValueError(f"a size is {size_nm} nm; sizes must be positive and finite")

    def labels(self, topleft: Sequence[SupportsIndex], size: Sequence[SupportsIndex]) -> Hashes:
        """Return the segment id of every voxel; ids are spread over 1 to 2**24, there is no 0.

        Parameters
        ----------
        topleft
            First voxel of the box, (x, y, z), not negative.
        size
            Voxels of the box along (x, y, z).

        Returns
        -------
        ndarray
            uint32, axes (x, y, z), Fortran order.
        """
        box = _vec3(topleft, "topleft"), _vec3(size, "size")
        out = np.empty(box[1], np.uint32, order="F")
        for first, shape, part in _tiles(*box, self._tile):
            out[part] = self._trace(first, shape)[0].T
        return out

    def grey(
        self, topleft: Sequence[SupportsIndex], size: Sequence[SupportsIndex]
    ) -> NDArray[np.uint8]:
        """Return the grey value of every voxel: cytoplasm about 140, membranes about 75.

        Parameters
        ----------
        topleft
            First voxel of the box, (x, y, z), not negative.
        size
            Voxels of the box along (x, y, z).

        Returns
        -------
        ndarray
            uint8, axes (x, y, z), Fortran order.
        """
        box = _vec3(topleft, "topleft"), _vec3(size, "size")
        out = np.empty(box[1], np.uint8, order="F")
        for first, shape, part in _tiles(*box, self._tile):
            grey = self._trace(first, shape)[1]
            grey += _grain(self.seed, first, shape)
            out[part] = np.clip(grey, 0, 255, out=grey).T
        return out

    @property
    def _tile(self) -> Vec3:
        """Voxels to compute at once."""
        longest_nm = TILE_UNITS * SPACING * self.cell_size_nm
        x, y, z = (
            max(1, min(edge, int(longest_nm / edge_nm)))
            for edge, edge_nm in zip(TILE, self.voxel_size, strict=True)
        )
        return x, y, z

    def _trace(self, first: Vec3, shape: Vec3) -> tuple[Hashes, NDArray[np.float32]]:
        """Return labels and grey values without noise of a tile, axes (z, y, x)."""
        unit_nm = SPACING * self.cell_size_nm
        edge_nm = np.array(self.voxel_size, np.float64)
        low, high = (np.array(v) * edge_nm for v in (first, np.add(first, shape)))
        first_sample, warp = _warp(self.seed, low / unit_nm, high / unit_nm)
        curves = _curves(self.seed, low / unit_nm, high / unit_nm)
        labels, grey = np.empty(shape[::-1], np.uint32), np.empty(shape[::-1], np.float32)
        _fill(np.array(first), edge_nm, unit_nm, first_sample, warp, *curves, labels, grey)
        return labels, grey


class _Curves(NamedTuple):
    """Three families of curves; family `k` runs along axis `k` through cells along the others."""

    first: Ints
    """First cell along (x, y, z)."""
    ids: tuple[Hashes, ...]
    """Axes (cell along k + 1, cell along k + 2)."""
    points: tuple[Floats, ...]
    """Axes (cell, cell, sample, what); what: two offsets, power weight, radius of organelles."""


def _vec3(value: Sequence[SupportsIndex], what: str) -> Vec3:
    x, y, z = (operator.index(part) for part in value)
    if min(x, y, z) < 0:
        raise ValueError(f"{what} is {(x, y, z)}; it must not be negative")
    return x, y, z


def _tiles(topleft: Vec3, size: Vec3, tile: Vec3) -> Iterator[tuple[Vec3, Vec3, tuple[slice, ...]]]:
    """Yield (first voxel, shape, slices of the box) of tiles that partition the box."""
    starts = (range(0, length, edge) for length, edge in zip(size, tile, strict=True))
    for x, y, z in itertools.product(*starts):
        first = topleft[0] + x, topleft[1] + y, topleft[2] + z
        shape = min(tile[0], size[0] - x), min(tile[1], size[1] - y), min(tile[2], size[2] - z)
        yield first, shape, (slice(x, x + shape[0]), slice(y, y + shape[1]), slice(z, z + shape[2]))


def _mix(h: Hashes) -> Hashes:
    """Scramble in place: MurmurHash3's finalizer."""
    h ^= h >> 16
    h *= np.uint32(0x85EBCA6B)
    h ^= h >> 13
    h *= np.uint32(0xC2B2AE35)
    h ^= h >> 16
    return h


def _hash(seed: int, what: int, *axes: Ints) -> Hashes:
    """Return a hash for every combination of the coordinates in `axes`, one axis each."""
    h = np.array([seed & 0xFFFFFFFF], np.uint32)
    for axis in (np.array([what]), *axes):
        words = (axis & 0xFFFFFFFF).astype(np.uint32) * np.uint32(0x9E3779B9)
        h = _mix(h[..., None] + words)
    return cast(Hashes, h[0, 0])


def _uniform(seed: int, what: int, *axes: Ints) -> Floats:
    """Return numbers in [-0.5, 0.5), hashed."""
    return _hash(seed, what, *axes).astype(np.float64) * 2.0**-32 - 0.5


def _knots(samples: Ints, period: int) -> Ints:
    return np.arange(samples[0] // period - 1, samples[-1] // period + 3)


def _spline(knots: Floats, axis: int, samples: Ints, period: int) -> Floats:
    """Turn `axis` from knots into samples, along cubic B-splines."""
    index = samples // period - samples[0] // period
    f = (samples % period) / period
    weights = (1 - f) ** 3, 4 + 3 * f * f * (f - 2), 1 + 3 * f * (1 + f * (1 - f)), f * f * f
    shape = np.where(np.arange(knots.ndim) == axis, len(f), 1)
    terms = (
        np.take(knots, index + i, axis) * (w / 6).reshape(shape) for i, w in enumerate(weights)
    )
    return cast(Floats, sum(terms))


def _field(seed: int, what: int, axes: list[Ints], period: int) -> Floats:
    """Return smooth noise in [-0.5, 0.5) at the samples in `axes`, one axis each."""
    field = _uniform(seed, what, *(_knots(samples, period) for samples in axes))
    for axis, samples in enumerate(axes):
        field = _spline(field, axis, samples, period)
    return field


def _warp(seed: int, low: Floats, high: Floats) -> tuple[Ints, Floats]:
    """Return the first sample (x, y, z) and how far space is bent there, in units.

    The axes of the bend are (component, z, y, x).
    """
    first, last = (np.floor(p * SAMPLES).astype(np.int64) for p in (low, high))
    axes = [np.arange(a - 1, b + 3) for a, b in zip(first, last, strict=True)]
    bend = [
        sum(a * _field(seed, 10 * i + k, axes, p) for i, (a, p) in enumerate(BEND))
        for k in range(3)
    ]
    return first - 1, np.stack(bend).transpose(0, 3, 2, 1).copy()


def _curves(seed: int, low: Floats, high: Floats) -> _Curves:
    """Return the three families of curves that can matter between two positions, in units."""
    first = np.floor(low - REACH).astype(np.int64) - 1
    stop = np.floor(high + REACH).astype(np.int64) + 2
    cells = [np.arange(a, b) for a, b in zip(first, stop, strict=True)]
    ids, points = zip(*(_family(seed, k, cells) for k in range(3)), strict=True)
    return _Curves(first, ids, points)


def _family(seed: int, k: int, cells: list[Ints]) -> tuple[Hashes, Floats]:
    across = cells[(k + 1) % 3], cells[(k + 2) % 3]
    samples = np.arange(cells[k][0] * SAMPLES, (cells[k][-1] + 1) * SAMPLES + 1)
    knots = _knots(samples, WIND)
    u, v, w, m = (
        _spline(_uniform(seed, 100 * k + i, *across, knots), 2, samples, WIND)
        for i in range(30, 34)
    )
    calibre = _uniform(seed, 100 * k + 40, *across)[..., None]
    points = (
        0.5 + 1.2 * u,
        0.5 + 1.2 * v,
        0.12 * calibre + 0.12 * w,
        0.06 + 0.6 * m + 0.12 * calibre,
    )
    ids = (_hash(seed, 100 * k + 41, *across) >> 8) + 1
    return ids.astype(np.uint32), np.stack(points, axis=-1)


@compiled
def _between(flat: Floats, i: Any, f: float) -> float:
    """Interpolate linearly between a sample and the next."""
    return float(flat[i] + (flat[i + FOUR] - flat[i]) * f)


@compiled
def _fill(
    first: Ints,
    edge_nm: Floats,
    unit_nm: float,
    first_sample: Ints,
    warp: Floats,
    first_cell: Ints,
    ids: tuple[Hashes, ...],
    points: tuple[Floats, ...],
    labels: Hashes,
    grey: NDArray[np.float32],
) -> None:
    """Fill `labels` and `grey`, axes (z, y, x), row by row.

    No named tuple comes in here: numba's cache on disk would break when its class is renamed.
    """
    nz, ny, nx = labels.shape
    at, near = np.empty((3, nx)), np.empty((9, nx))
    for k in range(nz):
        for j in range(ny):
            y_nm, z_nm = (first[1] + j) * edge_nm[1], (first[2] + k) * edge_nm[2]
            _bend(first_sample, warp, first[0], edge_nm[0], y_nm, z_nm, 1 / unit_nm, at)
            near[:] = FAR
            for axis in range(3):
                _scan(first_cell, points[axis], ids[axis], axis, at, near, labels[k, j])
            _stain(near, unit_nm, labels[k, j], grey[k, j])


@compiled
def _bend(
    first: Ints,
    warp: Floats,
    start: int,
    edge_nm: float,
    y_nm: float,
    z_nm: float,
    per_nm: float,
    at: Floats,
) -> None:
    """Set `at` to the bent positions of a row, in units."""
    y, z = y_nm * per_nm * SAMPLES, z_nm * per_nm * SAMPLES
    j, k = math.floor(y), math.floor(z)
    fy, fz = y - j, z - k
    j, k = j - first[1], k - first[2]
    low = warp[:, k, j] * (1 - fy) + warp[:, k, j + 1] * fy
    high = warp[:, k + 1, j] * (1 - fy) + warp[:, k + 1, j + 1] * fy
    bend = low * (1 - fz) + high * fz
    for n in range(at.shape[1]):
        x = (start + n) * edge_nm * per_nm * SAMPLES
        i = math.floor(x)
        f = x - i
        i -= first[0]
        at[0, n] = x / SAMPLES + bend[0, i] * (1 - f) + bend[0, i + 1] * f
        at[1, n] = y / SAMPLES + bend[1, i] * (1 - f) + bend[1, i + 1] * f
        at[2, n] = z / SAMPLES + bend[2, i] * (1 - f) + bend[2, i + 1] * f


@compiled
def _scan(
    first: Ints, points: Floats, ids: Hashes, k: int, at: Floats, near: Floats, labels: Hashes
) -> None:
    """Update the two nearest curves of a row with the four curves of a family around each voxel.

    `near` holds, nearest first: power distance, family `k`, offsets u and v, radius of the
    organelle; then the first four again for the second nearest.
    """
    ku, kv = (k + 1) % 3, (k + 2) % 3
    flat = points.ravel()
    for n in range(at.shape[1]):
        t, pu, pv = at[k, n] * SAMPLES, at[ku, n], at[kv, n]
        s, a, b = math.floor(t), math.floor(pu - 0.5), math.floor(pv - 0.5)
        f, fu, fv = t - s, pu - a, pv - b
        s, a, b = s - first[k] * SAMPLES, a - first[ku], b - first[kv]
        for c in range(4):
            da, db = c >> 1, c & 1
            i = np.uint64(((((a + da) * points.shape[1]) + b + db) * points.shape[2] + s) * 4)
            u = _between(flat, i, f) + da - fu
            v = _between(flat, i + ONE, f) + db - fv
            power = u * u + v * v - _between(flat, i + TWO, f)
            if power < near[5, n]:
                if power < near[0, n]:
                    near[5, n], near[6, n] = near[0, n], near[1, n]
                    near[7, n], near[8, n] = near[2, n], near[3, n]
                    near[0, n], near[1, n], near[2, n], near[3, n] = power, k, u, v
                    near[4, n] = _between(flat, i + THREE, f)
                    labels[n] = ids[a + da, b + db]
                else:
                    near[5, n], near[6, n], near[7, n], near[8, n] = power, k, u, v


@compiled
def _stain(near: Floats, unit_nm: float, labels: Hashes, grey: NDArray[np.float32]) -> None:
    """Set the grey values of a row, without noise.

    The border is where the power distances are equal; their difference over the length of its
    gradient is the distance to it. `gap` is the squared length of the difference of the offsets
    to the two curves; each lies in the plane across the axis of its family.
    """
    for n in range(len(grey)):
        u1, v1, u2, v2 = near[2, n], near[3, n], near[7, n], near[8, n]
        turn = near[6, n] - near[1, n]
        if turn == 0:
            gap = (u1 - u2) ** 2 + (v1 - v2) ** 2
        elif turn == 1 or turn == -2:
            gap = u1 * u1 + (v1 - u2) ** 2 + v2 * v2
        else:
            gap = (u1 - v2) ** 2 + v1 * v1 + u2 * u2
        depth_nm = (near[5, n] - near[0, n]) / (2 * math.sqrt(gap) + 1e-9) * unit_nm
        inside_nm = (near[4, n] - math.sqrt(u1 * u1 + v1 * v1)) * unit_nm
        inside_nm = min(inside_nm, depth_nm - 1.5 * MEMBRANE_NM)
        value = 126.0 + (labels[n] & 255) * (34 / 255)
        if inside_nm > 0:
            value -= 40
        value -= 24 * max(0.0, 1 - abs(inside_nm - RIM_NM / 2) / RIM_NM)
        wall = min(depth_nm / MEMBRANE_NM, 1.0)
        grey[n] = 72 + (value - 72) * wall * wall * (3 - 2 * wall)


def _grain(seed: int, first: Vec3, shape: Vec3) -> NDArray[np.float32]:
    """Return noise, axes (z, y, x): 2 x 2 voxels in plane share some, as in a blurred image."""
    (x0, y0, z0), (nx, ny, nz) = first, shape
    z, y, x = (np.arange(a, a + n) for a, n in ((z0, nz), (y0, ny + 1), (x0, nx + 1)))
    h = (_hash(seed, 60, z, y, x) >> 24).astype(np.int16)
    h = h[:, 1:] + h[:, :-1]
    return (h[..., 1:] + h[..., :-1] - np.int16(510)).astype(np.float32) * np.float32(0.075)


# --- for tests ------------------------------------------------------------------------------------


def voxels_for(header: VolumeHeader, size: Vec3 | None = None, seed: int = 1) -> Voxels:
    """Return random voxels `(c, x, y, z)` without a zero byte, half of them in runs that compress.

    Parameters
    ----------
    header
        Says dtype and channels.
    size
        Voxels per axis; None is one file.
    seed
        Chooses the voxels.

    Examples
    --------
    >>> from wkdask import VolumeHeader
    >>> voxels_for(VolumeHeader("uint16", num_channels=2), (4, 4, 4)).shape
    (2, 4, 4, 4)
    """
    size = header.file_size if size is None else size
    count = header.num_channels * math.prod(size) * header.itemsize
    data = np.random.default_rng(seed).integers(1, 256, count, dtype=np.uint8)
    data[: count // 2] = np.repeat(data[: count // 16 + 1], 8)[: count // 2]
    return data.view(header.dtype).reshape((header.num_channels, *size), order="F")


def read_by_libwkw(path: str | os.PathLike[str], box: BoundingBox) -> Voxels:
    """Return what libwkw, the reference, reads of a box of a mag directory, `(c, x, y, z)`."""
    with wkw.Dataset.open(os.fspath(path)) as dataset:
        voxels: Voxels = dataset.read(box.topleft, box.size)
        return voxels


def write_by_libwkw(
    path: str | os.PathLike[str], header: VolumeHeader, box: BoundingBox, voxels: Voxels
) -> None:
    """Let libwkw, the reference, write a box of an existing mag directory."""
    with wkw.Dataset.open(os.fspath(path), header.to_wkw()) as dataset:
        dataset.write(box.topleft, voxels)


def snapshot(path: str | os.PathLike[str]) -> dict[str, bytes | None]:
    """Return all that lies below a directory: the bytes of files by name, None for directories."""
    root = Path(path)
    return {
        str(each.relative_to(root)): each.read_bytes() if each.is_file() else None
        for each in sorted(root.rglob("*"))
    }


def boxes(*, most: int = 64) -> SearchStrategy[BoundingBox]:
    """Return a hypothesis strategy of boxes that are not empty and lie within `most` voxels."""
    st = _strategies()
    axis = st.tuples(st.integers(0, most - 1), st.integers(1, most)).map(
        lambda ends: (min(ends), max(min(ends) + 1, max(ends)))
    )
    return st.tuples(axis, axis, axis).map(
        lambda axes: BoundingBox.from_corners(*zip(*axes, strict=True))
    )


def headers(*, most_voxels: int = 32) -> SearchStrategy[VolumeHeader]:
    """Return a hypothesis strategy of headers whose files have at most `most_voxels` per edge."""
    st = _strategies()
    powers = [1 << n for n in range(most_voxels.bit_length())]
    edges = [(a, b) for a in powers for b in powers if a * b <= most_voxels]
    return st.builds(
        lambda dtype, channels, edges, kind: VolumeHeader(
            dtype, channels, edges[0], edges[1], kind
        ),
        st.sampled_from(DTYPES), st.integers(1, 3), st.sampled_from(edges),
        st.sampled_from(BLOCK_TYPES),
    )  # fmt: skip


def _strategies() -> ModuleType:
    try:
        return import_module("hypothesis.strategies")
    except ImportError:
        raise WkdaskError("hypothesis is not installed: pip install hypothesis") from None
