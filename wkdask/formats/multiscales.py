"""The words of OME-Zarr for a pyramid, read and written; plain values, no arrays and no zarr.

Read are the multiscales of versions 0.4 and 0.5, which are the same; axes, units, scales and
translations become mags and corners. Written is 0.5, and beside it what OME has no words for.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wkdask.errors import FormatError
from wkdask.formats.factors import Ratio, factors_of, follows_sizes
from wkdask.formats.image import Image, Level
from wkdask.geometry import BoundingBox, Mag, Vec3, Vec3Like, vec3
from wkdask.units import UNITS, nm_per, unit_named

__all__ = ["VERSION", "Multiscales", "describe", "extras", "parsed_box", "parsed_size"]

VERSION = "0.5"
"""Of OME-Zarr, as it is written."""

_TYPES = {"channel": "c", "time": "t"}

# How far places may lie from multiples of factors: some writers round them.
_TOLERANCE = 0.05

# Edge of the smallest shard.
_BLOCK = 32

_Vec3f = tuple[float, float, float]


class Multiscales:
    """The metadata of one image, with the spatial axes in the order `(x, y, z)`.

    Parameters
    ----------
    path
        What errors call it.
    value
        An entry of `multiscales`.

    Examples
    --------
    >>> scale = {"type": "scale", "scale": [40, 4, 4]}
    >>> axes = [{"name": name, "type": "space", "unit": "nanometer"} for name in "zyx"]
    >>> datasets = [{"path": "0", "coordinateTransformations": [scale]}]
    >>> found = Multiscales("tissue.zarr", {"axes": axes, "datasets": datasets})
    >>> found.axes, found.finest_scale, found.unit
    ('zyx', (4.0, 4.0, 40.0), 'nanometer')
    """

    def __init__(self, path: str, value: dict[str, Any]) -> None:
        self._path = path
        self.name = str(value.get("name") or "")
        # Before 0.3 nobody named them.
        axes = value.get("axes", "tczyx")
        self.axes = "".join(map(self._letter, axes))
        if "x" not in self.axes or "y" not in self.axes:
            raise FormatError(f"{path} has axes {axes}, but an image must have x and y.")
        self.unit, self._in_unit = self._units(axes)
        whole = value.get("coordinateTransformations") or []
        levels = []
        if not value["datasets"]:
            raise FormatError(f"{path} lists no levels: there is nothing to take.")
        for dataset in value["datasets"]:
            transforms = [*(dataset.get("coordinateTransformations") or []), *whole]
            levels.append((*self._combined(transforms), str(dataset["path"]), bool(transforms)))
        # Some writers list the coarsest first.
        levels.sort(key=lambda level: math.prod(level[0]))
        self.paths = [path for _, _, path, _ in levels]
        self._scales = [scale for scale, _, _, _ in levels]
        self._translations = [translation for _, translation, _, _ in levels]
        self._has_scales = any(is_told for _, _, _, is_told in levels)

    @property
    def finest_scale(self) -> _Vec3f | None:
        """Edges of a voxel of the finest level, in `unit`; None if nobody says it."""
        return self._scales[0] if self._has_scales else None

    @property
    def is_unplaced(self) -> bool:
        """Whether there are no translations."""
        return not np.any(self._translations)

    def converted(self, unit: str | None) -> None:
        """Count in another unit, if both are known."""
        if unit in UNITS and self.unit in UNITS and unit != self.unit:
            factor = nm_per(self.unit) / nm_per(unit)
            self._scales = [_floats(np.array(each) * factor) for each in self._scales]
            self._translations = [_floats(np.array(each) * factor) for each in self._translations]
            self.unit = unit

    def has_voxels_of(self, voxel_size: _Vec3f) -> bool:
        """Return whether every scale is a whole multiple of a voxel size."""
        ratios = (a / b for scale in self._scales for a, b in zip(scale, voxel_size, strict=True))
        return all(round(r) and math.isclose(r, round(r), rel_tol=1e-9) for r in ratios)

    def mags(
        self, voxel_size: _Vec3f, sizes: Sequence[Vec3], finest: Vec3, *, is_exact: bool
    ) -> list[Mag | FormatError]:
        """Return the factors of each level of some size, or why it can't be a mag.

        Parameters
        ----------
        voxel_size
            Of mag 1.
        sizes
            Positions of each level.
        finest
            Positions of what the levels are compared with, the first level or an image.
        is_exact
            Whether scales are as we write them.
        """
        scales = [[a / b for a, b in zip(scale, voxel_size, strict=True)] for scale in self._scales]
        mags: list[Mag | FormatError] = []
        if is_exact and self.has_voxels_of(voxel_size):
            mags += [Mag([round(ratio) for ratio in scale]) for scale in scales]
        else:
            if not self._has_scales:
                scales = [[a / b for a, b in zip(finest, size, strict=True)] for size in sizes]
            mags += self._rounded(scales, sizes, finest)
        known = [mag for mag in mags if isinstance(mag, Mag)]
        if len(set(known)) < len(known):
            raise FormatError(
                f"{self._path} has levels of the same scale: they are mags "
                f"{', '.join(map(str, known))}, of which each must be another."
            )
        return mags

    def _rounded(
        self, scales: Sequence[Sequence[float]], sizes: Sequence[Vec3], finest: Vec3
    ) -> Iterator[Mag | FormatError]:
        """Yield what scales mean that may be ratios of rounded sizes."""
        levels = [
            [Ratio(*each) for each in zip(scale, finest, size, strict=True)]
            for scale, size in zip(scales, sizes, strict=True)
        ]
        by_size = follows_sizes(levels)
        before = [(1, size) for size in finest]
        for path, level in zip(self.paths, levels, strict=True):
            factors = factors_of(level, before, by_size=by_size)
            if factors is not None:
                before = [(f, ratio.size) for f, ratio in zip(factors, level, strict=True)]
                yield Mag(factors)
                continue
            yield FormatError(
                f"level {path} of {self._path} ({' x '.join(str(each.size) for each in level)} "
                f"voxels) is {', '.join(f'{each.scale:g}' for each in level)} times as coarse as "
                "the finest, but WKW needs whole factors. Convert without it: choose mags (--mag)."
            )

    def shift(self, voxel_size: _Vec3f, mag: Mag, offset: Vec3Like | None) -> list[float]:
        """Return by how many voxels of mag 1 levels are moved, so that the finest is at a voxel."""
        start = self._starts(voxel_size)[0]
        first = [_corner(u, f) * f for u, f in zip(start, mag, strict=True)]
        if offset is not None:
            first = [at * f for at, f in zip(vec3(offset, "offset"), mag, strict=True)]
        elif min(first) < 0:
            raise FormatError(
                f"{self._path} begins at voxel {tuple(first)}, but WKW begins at 0. Pass an offset "
                "for its first voxel, such as (0, 0, 0)."
            )
        return [at - _begin(u, f) for at, u, f in zip(first, start, mag, strict=True)]

    def _starts(self, voxel_size: _Vec3f) -> list[list[float]]:
        return [
            [a / b for a, b in zip(translation, voxel_size, strict=True)]
            for translation in self._translations
        ]

    def corner(
        self, number: int, mag: Mag, voxel_size: _Vec3f, shift: Sequence[float]
    ) -> Vec3 | FormatError:
        """Return the first voxel of a level, in its own voxels, or why it can't be placed."""
        ratios = [a / b for a, b in zip(self._scales[number], voxel_size, strict=True)]
        start = [u + s for u, s in zip(self._starts(voxel_size)[number], shift, strict=True)]
        corner = [_corner(u, f) for u, f in zip(start, mag, strict=True)]
        for u, f, at, ratio in zip(start, mag, corner, ratios, strict=True):
            # Where the voxel, or its centre, is; the latter also by the ratio of sizes.
            places = (u, u + 0.5 - f / 2, u + 0.5 - ratio / 2)
            if min(abs(place - at * f) for place in places) > _TOLERANCE * f:
                return FormatError(
                    f"level {self.paths[number]} of {self._path} does not begin at multiples of "
                    f"its factors {mag}, counted in voxels of the finest. Pass an offset that is "
                    "one for all levels, such as (0, 0, 0)."
                )
        if min(corner) < 0:
            return FormatError(f"level {self.paths[number]} of {self._path} begins before 0.")
        return corner[0], corner[1], corner[2]

    def misfit(self, number: int, level: Level, finest: Level) -> FormatError | None:
        """Return why the size of a level is not that of its mag, if it is not."""
        ends = list(zip(level.box.bottomright, finest.box.bottomright, strict=True))
        factors = zip(level.mag, finest.mag, strict=True)
        beyond = [(e * f - w * g, f, g) for (e, w), (f, g) in zip(ends, factors, strict=True)]
        if all(abs(more) < f + (g if g > 1 else 0) for more, f, g in beyond):
            return None
        # WEBKNOSSOS, which alone has this order of axes, rounds sizes up to whole shards.
        is_rounded = all(end % _BLOCK == 0 for each in ends for end in each)
        if self.axes.endswith("xyz") and is_rounded and all(more >= 0 for more, _, _ in beyond):
            return None
        return FormatError(
            f"level {self.paths[number]} of {self._path} has {level.box.size} voxels, but its "
            f"scale says that it is mag {level.mag} of {finest.box.size}. Convert without it: "
            "choose mags (--mag)."
        )

    def _letter(self, axis: Any) -> str:
        # Before 0.4 an axis was only a name.
        name, kind = (axis, None) if isinstance(axis, str) else (axis.get("name"), axis.get("type"))
        letter = _TYPES.get(str(kind), str(name).lower())
        if letter not in tuple("tczyx"):
            raise FormatError(f"{self._path} has an axis {name!r}, but WKW has only c, x, y, z.")
        return letter

    def _units(self, axes: Any) -> tuple[str | None, NDArray[np.float64]]:
        """Return the unit of x and what the axes are multiplied by to be counted in it.

        A unit that WEBKNOSSOS lacks is returned as it is: the caller may know better.
        """
        told = {
            self._letter(axis): axis.get("unit") if isinstance(axis, dict) else None
            for axis in axes
        }
        units = [told.get(letter, told["x"]) for letter in "xyz"]
        if len(set(units)) == 1:
            return unit_named(units[0]) or units[0], np.ones(3)
        named = [unit_named(unit) for unit in units]
        if None in named:
            raise FormatError(
                f"{self._path} has axes in the units {units}, which don't convert into each other. "
                "Convert its arrays one by one, with voxel_size and unit."
            )
        return named[0], np.array([nm_per(str(unit)) for unit in named]) / nm_per(str(named[0]))

    def _combined(self, transforms: list[dict[str, Any]]) -> tuple[_Vec3f, _Vec3f]:
        """Return the scale and the translation of transforms that follow each other."""
        scale, translation = np.ones(3), np.zeros(3)
        for transform in transforms:
            kind = transform.get("type")
            if kind == "scale":
                factors = self._spatial(transform["scale"], 1.0)
                scale, translation = scale * factors, translation * factors
            elif kind == "translation":
                translation = translation + self._spatial(transform["translation"], 0.0)
            elif kind != "identity":
                raise FormatError(f"{self._path} has a transform {kind!r}, which WKW lacks.")
        if not (np.isfinite(scale).all() and (scale > 0).all()):
            raise FormatError(f"{self._path} has voxels of size {_floats(scale)}.")
        return _floats(scale * self._in_unit), _floats(translation * self._in_unit)

    def _spatial(self, values: list[float], missing: float) -> NDArray[np.float64]:
        by_axis = dict(zip(self.axes, values, strict=True))
        return np.array([by_axis.get(axis, missing) for axis in "xyz"])


def _begin(start: float, factor: int) -> float:
    """Return where a level begins by its translation, as that of `_translation` does."""
    return start + 0.5 - factor / 2


def _corner(start: float, factor: int) -> int:
    """Return the voxel of a level in which the centre of its first voxel lies.

    `start` is its translation in voxels of mag 1. That is where the centre of its first voxel is,
    or its corner: writers differ, and this is right for both.
    """
    return math.floor((start + 0.5) / factor + 1e-9)


def describe(image: Image) -> dict[str, Any]:
    """Return an image as multiscales of OME-Zarr 0.5, its levels being called 0, 1, 2 and so on.

    Axes are z, y and x, after c if there are channels.
    """
    has_channels = image.levels[0].num_channels > 1
    axes: list[dict[str, Any]] = [{"name": "c", "type": "channel"}] if has_channels else []
    axes += [{"name": axis, "type": "space", "unit": image.unit} for axis in "zyx"]
    size = image.voxel_size or (1.0, 1.0, 1.0)
    datasets = [
        {"path": str(number), "coordinateTransformations": _transforms(level, size, has_channels)}
        for number, level in enumerate(image.levels)
    ]
    return {"name": image.name, "axes": axes, "datasets": datasets}


def _transforms(level: Level, size: _Vec3f, has_channels: bool) -> list[dict[str, Any]]:
    """Return where voxels are: their size, and the centre of the first one.

    The centre of voxel (0, 0, 0) of mag 1 is the origin, so that levels lie over each other.
    """
    axes = list(zip(size, level.mag, level.corner, strict=True))[::-1]
    scale = [edge * factor for edge, factor, _ in axes]
    translation = [edge * ((at + 0.5) * factor - 0.5) for edge, factor, at in axes]
    return [
        {"type": "scale", "scale": [1.0] * has_channels + scale},
        {"type": "translation", "translation": [0.0] * has_channels + translation},
    ]


def extras(image: Image) -> dict[str, Any]:
    """Return what OME has no words for."""
    box = image.bounding_box
    return {
        "category": image.category,
        "voxel_size": image.voxel_size and list(image.voxel_size),
        "bounding_box": box and {"topleft": list(box.topleft), "size": list(box.size)},
        "largest_segment_id": image.largest_segment_id,
    }


def _floats(values: NDArray[np.float64]) -> _Vec3f:
    x, y, z = map(float, values)
    return x, y, z


def parsed_size(value: Any) -> _Vec3f | None:
    """Return a voxel size from `extras`, if there is one."""
    return None if value is None else _floats(np.asarray(value, np.float64))


def parsed_box(value: Any) -> BoundingBox | None:
    """Return a box from `extras`, if there is one."""
    return None if value is None else BoundingBox(value["topleft"], value["size"])
