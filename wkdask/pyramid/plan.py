"""What a pyramid will be before it is made: mags, files, bytes, memory; plain values.

It knows headers, boxes and units, and touches no disk.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from wkdask.geometry import BoundingBox, Mag, Vec3
from wkdask.grids import edge_text
from wkdask.show import html
from wkdask.storage.volume import Layout
from wkdask.units import nm_per

__all__ = ["PlannedMag", "PyramidPlan", "plan_pyramid"]

_HEADINGS = ("mag", "voxel size nm", "voxels", "files", "bytes at most")


@dataclass(frozen=True, slots=True)
class PlannedMag:
    """A mag that will be made."""

    mag: Mag
    """Which."""
    voxel_size_nm: tuple[float, float, float]
    """Edges of a voxel, `(x, y, z)`, in nanometres."""
    box: BoundingBox
    """Its voxels, in their own unit."""
    files: int
    """How many files it has at most: those of zeros are not written. Each is one task."""
    size_bytes: int
    """Bytes of its voxels, uncompressed."""


@dataclass(frozen=True, slots=True)
class PyramidPlan:
    """What `Layer.downsample` or `Layer.upsample` would do."""

    layer: str
    """The name of the layer."""
    source: Mag
    """The mag that the first one is made from; each other one is made from the one before it."""
    mode: str
    """How voxels become one, or one becomes many."""
    header: Layout
    """How the mags will be stored."""
    mags: tuple[PlannedMag, ...]
    """In the order in which they are made."""
    task_bytes: int
    """Memory that a task needs at its peak."""

    @property
    def files(self) -> int:
        """How many files there will be at most."""
        return sum(planned.files for planned in self.mags)

    @property
    def size_bytes(self) -> int:
        """Bytes of all voxels, uncompressed."""
        return sum(planned.size_bytes for planned in self.mags)

    def as_dict(self) -> dict[str, Any]:
        """Return plain values, for JSON."""
        return {
            "layer": self.layer,
            "source": str(self.source),
            "mode": self.mode,
            "block_type": self.header.describe()["block_type"],
            "mags": [
                {**asdict(planned), "mag": str(planned.mag), "box": asdict(planned.box)}
                for planned in self.mags
            ],
            "files": self.files,
            "size_bytes": self.size_bytes,
            "task_bytes": self.task_bytes,
        }

    def __repr__(self) -> str:
        return f"<wkdask.PyramidPlan\n{self}>"

    def __str__(self) -> str:
        rows = [_HEADINGS, *map(_cells, self.mags)]
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        lines = [
            "  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True))
            for row in rows
        ]
        return "\n".join([self._title, *lines, self._end])

    def _repr_html_(self) -> str:
        """Return a card, as Jupyter shows it."""
        table = html.table(map(_cells, self.mags), head=_HEADINGS)
        return html.card("PyramidPlan", self._title, [table, html.text(self._end)])

    @property
    def _title(self) -> str:
        edge, block_type = edge_text(self.header.file_size), self.header.describe()["block_type"]
        return (
            f"{self.layer}: from mag {self.source} by {self.mode}, files of edge {edge}, "
            f"{block_type}"
        )

    @property
    def _end(self) -> str:
        return (
            f"{self.files:,} files, {self.size_bytes / 2**30:.2f} GiB before compression, "
            f"{self.task_bytes / 2**20:.0f} MiB of memory per task"
        )


def plan_pyramid(
    *,
    layer: str,
    source: Mag,
    mags: Sequence[Mag],
    mode: str,
    header: Layout,
    box: BoundingBox,
    voxel_size: Sequence[float],
    unit: str,
    task_bytes: int,
) -> PyramidPlan:
    """Return the plan of a pyramid.

    Parameters
    ----------
    layer, source, mode, header, task_bytes
        See `PyramidPlan`.
    mags
        What is made, in that order.
    box
        The layer's box, in voxels of mag 1.
    voxel_size, unit
        Edges of a voxel of mag 1.
    """
    nm = nm_per(unit)
    planned = []
    for mag in mags:
        own = box.align_with_mag(mag, ceil=True).in_mag(mag)
        x, y, z = (size * nm * factor for size, factor in zip(voxel_size, mag, strict=True))
        size_bytes = own.volume * header.voxel_bytes
        planned.append(PlannedMag(mag, (x, y, z), own, _files(own, header.file_size), size_bytes))
    return PyramidPlan(layer, source, mode, header, tuple(planned), task_bytes)


def _files(box: BoundingBox, size: Vec3) -> int:
    return box.align_with_mag(size, ceil=True).in_mag(size).volume


def _cells(planned: PlannedMag) -> tuple[str, ...]:
    return (
        str(planned.mag),
        " x ".join(f"{edge:g}" for edge in planned.voxel_size_nm),
        " x ".join(f"{length:,}" for length in planned.box.size),
        f"{planned.files:,}",
        f"{planned.size_bytes:,}",
    )
