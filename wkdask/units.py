"""Units of length: the names that WEBKNOSSOS writes and reads, and their nanometres."""

from __future__ import annotations

import unicodedata

from wkdask.errors import ArgumentError

__all__ = ["UNITS", "nm_per", "unit_named"]

# The power of ten in metres, and the sign that stands for it.
_PREFIXES = {
    "yocto": (-24, "y"), "zepto": (-21, "z"), "atto": (-18, "a"), "femto": (-15, "f"),
    "pico": (-12, "p"), "nano": (-9, "n"), "micro": (-6, "µ"), "milli": (-3, "m"),
    "centi": (-2, "c"), "deci": (-1, "d"), "": (0, ""), "hecto": (2, "h"), "kilo": (3, "k"),
    "mega": (6, "M"), "giga": (9, "G"), "tera": (12, "T"), "peta": (15, "P"), "exa": (18, "E"),
    "zetta": (21, "Z"), "yotta": (24, "Y"),
}  # fmt: skip
_FEET = {"inch": 1 / 12, "foot": 1, "yard": 3, "mile": 5280}
UNITS = (*(f"{prefix}meter" for prefix in _PREFIXES), "angstrom", *_FEET, "parsec")
"""Units of the voxel size that webknossos writes (measured); it also reads "nm", "µm" and so on."""

_NM: dict[str, float] = {
    **{f"{prefix}meter": float(f"1e{power + 9}") for prefix, (power, _) in _PREFIXES.items()},
    **{f"{sign}m": float(f"1e{power + 9}") for power, sign in _PREFIXES.values()},
    **dict.fromkeys(("um", "μm"), 1e3),
    **dict.fromkeys(("angstrom", "Å"), 0.1),
    **{unit: feet * 304.8e6 for unit, feet in _FEET.items()},
    "parsec": 3.085677581491367e25,
}


def nm_per(unit: str) -> float:
    """Return how many nanometres a unit has.

    Raises
    ------
    ArgumentError
        If it is no known unit of length.

    Examples
    --------
    >>> nm_per("micrometer"), nm_per("nm")
    (1000.0, 1.0)
    """
    try:
        return _NM[unit]
    except (KeyError, TypeError):
        raise ArgumentError(
            f"the unit is {unit!r}, but must be a length such as nanometer or micrometer."
        ) from None


def unit_named(name: object) -> str | None:
    """Return the unit of `UNITS` that is meant by a sign, a plural or capitals; None if it is none.

    Examples
    --------
    >>> [unit_named(name) for name in ("nm", "UM", "Microns", "nanometres", "mm", "Mm", "smoot")]
    ['nanometer', 'micrometer', 'micrometer', 'nanometer', 'millimeter', 'megameter', None]
    """
    # One sign stands for micro, not two, and as some write it in ASCII.
    text = unicodedata.normalize("NFKC", str(name)).strip().replace("\\u00B5", "\u03bc")
    signs = {
        **{f"{sign}m": f"{prefix}meter" for prefix, (_, sign) in _PREFIXES.items()},
        "\u03bcm": "micrometer", "um": "micrometer", "\u00c5": "angstrom", "in": "inch",
        "ft": "foot", "yd": "yard", "mi": "mile", "pc": "parsec",
    }  # fmt: skip
    words = {unit: unit for unit in UNITS} | {"micron": "micrometer", "feet": "foot"}
    lower = text.lower().replace("metre", "meter")
    for word in (lower, lower.removesuffix("s"), lower.removesuffix("es")):
        if word in words:
            return words[word]
    return signs.get(text) or signs.get(text.lower())
