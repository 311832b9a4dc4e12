"""Resolution levels and bounding boxes: pure arithmetic on whole voxels, no arrays, no files.

Positions and sizes are tuples `(x, y, z)` of Python ints. Everything here is a frozen value that
checks itself once, when it is made.
"""

from __future__ import annotations

import math
import operator
import os
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import SupportsIndex

from wkdask.errors import ArgumentError, BoundsError

__all__ = [
    "BoundingBox",
    "Mag",
    "MagLike",
    "Vec3",
    "Vec3Like",
    "absolute",
    "is_remote",
    "mag_list",
    "per_axis",
    "positive3",
    "vec3",
    "whole",
]

Vec3 = tuple[int, int, int]
Vec3Like = Iterable[SupportsIndex]


def absolute(path: str | os.PathLike[str]) -> str:
    """Return an absolute path, which means the same in every process.

    A NUL character is refused, because other libraries would cut the path there.
    """
    text = os.fspath(path)
    if "\0" in text:
        raise ArgumentError(f"the path {text!r} has a NUL character.")
    if is_remote(text):
        raise ArgumentError(
            f"{text} is remote, but a path of this machine is needed here. What is remote can be "
            "opened and copied: wkdask.copy(wkdask.open(address), path)."
        )
    return os.path.abspath(os.path.expanduser(text))


def is_remote(path: str) -> bool:
    """Return whether a path is an address of another machine, such as `s3://...`."""
    return re.match(r"[A-Za-z][A-Za-z0-9+.-]+://", path) is not None


def whole(value: SupportsIndex, what: str) -> int:
    """Return `value` as a Python int; floats are refused, not rounded.

    The error calls the value `what`.
    """
    try:
        return operator.index(value)
    except TypeError:
        raise ArgumentError(f"{what} is {value!r}, but must be a whole number.") from None


def vec3(value: Vec3Like, what: str) -> Vec3:
    """Return `value` as three Python ints `(x, y, z)`; floats are refused, not rounded.

    The error calls the value `what`.
    """
    try:
        x, y, z = (operator.index(part) for part in value)
    except (TypeError, ValueError):
        raise ArgumentError(
            f"{what} is {value!r}, but must be three whole numbers (x, y, z). "
            "Round floats yourself: wkdask does not guess."
        ) from None
    return x, y, z


def per_axis(value: SupportsIndex | Vec3Like, what: str) -> Vec3:
    """Return three ints from three numbers, or from one number for all axes."""
    if isinstance(value, Iterable):
        return vec3(value, what)
    edge, _, _ = vec3((value,) * 3, what)
    return edge, edge, edge


@dataclass(frozen=True, slots=True, init=False)
class Mag:
    """A resolution level: how many voxels of the finest level one voxel spans, per axis.

    Parameters
    ----------
    value
        A whole number (`2`), three of them (`(2, 2, 1)`), text (`"2-2-1"`, `"2"`) or a `Mag`.

    Raises
    ------
    ArgumentError
        If `value` is none of these, or a factor is below 1.

    Examples
    --------
    >>> Mag("2-2-1")
    Mag('2-2-1')
    >>> str(Mag((4, 4, 4)))
    '4'
    >>> Mag("4-4-2").factors_from(Mag("2-2-1"))
    (2, 2, 2)
    """

    factors: Vec3
    """Voxels of the finest level per voxel of this one, `(x, y, z)`."""

    def __init__(self, value: MagLike) -> None:
        factors = _mag_factors(value)
        if min(factors) < 1:
            raise ArgumentError(f"mag {value!r} has a factor below 1; factors count voxels.")
        object.__setattr__(self, "factors", factors)

    def __str__(self) -> str:
        x, y, z = self.factors
        return str(x) if x == y == z else f"{x}-{y}-{z}"

    def __repr__(self) -> str:
        return f"Mag({str(self)!r})"

    def __iter__(self) -> Iterator[int]:
        return iter(self.factors)

    def __lt__(self, other: Mag) -> bool:
        """Order from fine to coarse: by the largest factor, then by the factors in turn."""
        return (max(self), self.factors) < (max(other), other.factors)

    def factors_from(self, finer: Mag) -> Vec3:
        """Return how many voxels of `finer` one voxel of this mag spans, per axis.

        Raises
        ------
        ArgumentError
            If a factor is not a whole number.
        """
        if any(mine % theirs for mine, theirs in zip(self, finer, strict=True)):
            raise ArgumentError(
                f"mag {self} can't be made from mag {finer}: each factor must be a whole multiple."
            )
        x, y, z = (mine // theirs for mine, theirs in zip(self, finer, strict=True))
        return x, y, z


MagLike = Mag | SupportsIndex | Vec3Like | str


def mag_list(mags: Iterable[MagLike]) -> list[Mag]:
    """Return several mags; a single one is refused, because `"16"` would be read as 1 and 6."""
    if isinstance(mags, str | Mag) or not isinstance(mags, Iterable):
        raise ArgumentError(f"mags is {mags!r}, but must be a list of mags, such as [2, '4-4-2'].")
    return [Mag(mag) for mag in mags]


def _mag_factors(value: MagLike) -> Vec3:
    if isinstance(value, Mag):
        return value.factors
    try:
        if not isinstance(value, str):
            return per_axis(value, "mag")
        parts = value.split("-")
        # int() would also take "1_0", " 1" and digits of other scripts.
        if not (value.isascii() and all(part.isdigit() for part in parts)):
            raise ValueError(value)
        numbers = [int(part) for part in parts]
        return per_axis(numbers[0] if len(numbers) == 1 else numbers, "mag")
    except ValueError:
        raise ArgumentError(
            f"mag is {value!r}, but must be like 2, (2, 2, 1), '2-2-1' or a Mag."
        ) from None


@dataclass(frozen=True, slots=True, init=False)
class BoundingBox:
    """A half-open box of voxels, `[topleft, bottomright)` on each axis.

    Parameters
    ----------
    topleft
        The first voxel `(x, y, z)` inside.
    size
        Voxels per axis; 0 makes an empty box.

    Raises
    ------
    ArgumentError
        If a number is not whole, or a size is negative.

    Examples
    --------
    >>> box = BoundingBox((10, 0, 0), (100, 64, 64))
    >>> box.bottomright
    (110, 64, 64)
    >>> [chunk.size for chunk in box.chunk((64, 64, 64), (64, 64, 64))]
    [(54, 64, 64), (46, 64, 64)]
    """

    topleft: Vec3
    """The first voxel inside, `(x, y, z)`."""
    size: Vec3
    """Voxels per axis, `(x, y, z)`."""

    def __init__(self, topleft: Vec3Like, size: Vec3Like) -> None:
        object.__setattr__(self, "topleft", vec3(topleft, "topleft"))
        object.__setattr__(self, "size", vec3(size, "size"))
        if min(self.size) < 0:
            raise ArgumentError(f"size is {self.size}, but a box has no negative size.")

    @classmethod
    def from_corners(cls, topleft: Vec3Like, bottomright: Vec3Like) -> BoundingBox:
        """Return the box between two corners; empty where they cross.

        Examples
        --------
        >>> BoundingBox.from_corners((1, 1, 1), (4, 1, 0))
        BoundingBox(topleft=(1, 1, 1), size=(3, 0, 0))
        """
        start, stop = vec3(topleft, "topleft"), vec3(bottomright, "bottomright")
        return cls(start, (max(0, b - a) for a, b in zip(start, stop, strict=True)))

    @property
    def bottomright(self) -> Vec3:
        """The first voxel beyond the box on every axis, `(x, y, z)`."""
        (x, y, z), (width, height, depth) = self.topleft, self.size
        return x + width, y + height, z + depth

    @property
    def volume(self) -> int:
        """The number of voxels inside."""
        return math.prod(self.size)

    @property
    def is_empty(self) -> bool:
        """Whether no voxel is inside."""
        return 0 in self.size

    def __str__(self) -> str:
        axes = zip("xyz", self.topleft, self.bottomright, strict=True)
        return ", ".join(f"{axis} [{start}, {stop})" for axis, start, stop in axes)

    def moved_by(self, offset: Vec3Like) -> BoundingBox:
        """Return the box of the same size, `offset` voxels further."""
        moves = zip(self.topleft, vec3(offset, "offset"), strict=True)
        return BoundingBox((a + b for a, b in moves), self.size)

    def contains_bbox(self, inner: BoundingBox) -> bool:
        """Return whether every voxel of `inner` lies in this box; an empty one always does."""
        return inner.is_empty or self.intersected_with(inner, dont_assert=True) == inner

    def intersected_with(self, other: BoundingBox, *, dont_assert: bool = False) -> BoundingBox:
        """Return the voxels that lie in both boxes.

        Raises
        ------
        BoundsError
            If there are none, unless `dont_assert` is true: then the result is an empty box.
        """
        both = BoundingBox.from_corners(
            map(max, self.topleft, other.topleft), map(min, self.bottomright, other.bottomright)
        )
        if both.is_empty and not dont_assert:
            raise BoundsError(f"the boxes {self} and {other} have no voxel in common.")
        return both

    def extended_by(self, other: BoundingBox) -> BoundingBox:
        """Return the smallest box around both; an empty box adds nothing."""
        if self.is_empty or other.is_empty:
            return other if self.is_empty else self
        return BoundingBox.from_corners(
            map(min, self.topleft, other.topleft), map(max, self.bottomright, other.bottomright)
        )

    def align_with_mag(self, mag: MagLike, ceil: bool = False) -> BoundingBox:
        """Return the box with both corners on multiples of `mag`, in the same unit.

        Parameters
        ----------
        mag
            The factors to align with.
        ceil
            True: outwards, the result contains this box. False: inwards.

        Examples
        --------
        >>> BoundingBox((3, 3, 3), (4, 4, 4)).align_with_mag(2, ceil=True)
        BoundingBox(topleft=(2, 2, 2), size=(6, 6, 6))
        """
        factors = Mag(mag).factors
        if ceil:
            outer = BoundingBox.from_corners(
                _down(self.topleft, factors), _up(self.bottomright, factors)
            )
            # An axis without voxels stays without.
            sizes = zip(outer.size, self.size, strict=True)
            return BoundingBox(outer.topleft, (new if old else 0 for new, old in sizes))
        return BoundingBox.from_corners(
            _up(self.topleft, factors), _down(self.bottomright, factors)
        )

    def in_mag(self, mag: MagLike) -> BoundingBox:
        """Return the box in voxels of `mag`, from a box in voxels of mag 1.

        Raises
        ------
        ArgumentError
            If a corner is not divisible; `align_with_mag` makes it so.
        """
        factors = Mag(mag)
        if self != self.align_with_mag(factors, ceil=True):
            raise ArgumentError(
                f"the box {self} does not lie on multiples of mag {factors}. "
                f"Call align_with_mag({str(factors)!r}, ceil=True) before."
            )
        return BoundingBox(
            (a // f for a, f in zip(self.topleft, factors, strict=True)),
            (s // f for s, f in zip(self.size, factors, strict=True)),
        )

    def scaled_by(self, factors: Vec3Like) -> BoundingBox:
        """Return the box in finer voxels, `factors` of them per voxel of this box."""
        scale = vec3(factors, "factors")
        return BoundingBox(
            (a * f for a, f in zip(self.topleft, scale, strict=True)),
            (s * f for s, f in zip(self.size, scale, strict=True)),
        )

    def chunk(
        self, chunk_size: Vec3Like, chunk_border_alignments: Vec3Like | None = None
    ) -> Iterator[BoundingBox]:
        """Cut the box into chunks, x outermost and z fastest; the last of an axis may be smaller.

        Parameters
        ----------
        chunk_size
            Voxels per axis of a whole chunk.
        chunk_border_alignments
            If given, every border *between* two chunks is a multiple of it; it must divide
            `chunk_size`.

        Raises
        ------
        ArgumentError
            If a number is not positive, or the alignments do not divide `chunk_size`. Nothing is
            cut then.
        """
        sizes = positive3(chunk_size, "chunk_size")
        borders = sizes
        starts = list(self.topleft)
        if chunk_border_alignments is not None:
            borders = positive3(chunk_border_alignments, "chunk_border_alignments")
            starts = _down(starts, borders)
        if any(s % b for s, b in zip(sizes, borders, strict=True)):
            raise ArgumentError(
                f"chunk_size {sizes} is not a multiple of chunk_border_alignments {borders}."
            )
        return self._cut(starts, sizes)

    def _cut(self, starts: list[int], sizes: Vec3) -> Iterator[BoundingBox]:
        if self.is_empty:
            return
        xs, ys, zs = (
            range(a, b, s) for a, b, s in zip(starts, self.bottomright, sizes, strict=True)
        )
        for corner in ((x, y, z) for x in xs for y in ys for z in zs):
            yield self.intersected_with(BoundingBox(corner, sizes))


def _down(position: Iterable[int], factors: Vec3) -> list[int]:
    return [a // f * f for a, f in zip(position, factors, strict=True)]


def _up(position: Iterable[int], factors: Vec3) -> list[int]:
    return [-(-a // f) * f for a, f in zip(position, factors, strict=True)]


def positive3(value: Vec3Like, what: str) -> Vec3:
    """Return `value` as three ints of at least 1; see `vec3`."""
    numbers = vec3(value, what)
    if min(numbers) < 1:
        raise ArgumentError(f"{what} is {numbers}, but every number must be at least 1.")
    return numbers
