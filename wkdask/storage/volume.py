"""`Volume` and `Layout`: what the rest of the package knows of stored voxels, whatever the format.

A volume is a small frozen value without an open file, so that it can be sent to any worker. This
module names no format: `storage.wkw` implements the protocol, and `storage.opening` finds out which
implementation a path needs. Nothing above `storage` implements it.
"""

from __future__ import annotations

import contextlib
import hashlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, Self

import numpy as np
from numpy.typing import NDArray

from wkdask.errors import ArgumentError, DtypeError
from wkdask.geometry import BoundingBox, Vec3, is_remote, whole
from wkdask.grids import Region, overlaps, region_of
from wkdask.storage import claims
from wkdask.storage.atomic import tagged

if TYPE_CHECKING:
    from wkdask.storage.objects import Credentials

__all__ = [
    "JOURNALS_NAME",
    "FileNames",
    "Layout",
    "Produce",
    "Volume",
    "VoxelType",
    "Voxels",
    "WriteOptions",
    "Written",
    "add_written",
    "as_voxels",
    "count_writes",
    "is_zero",
    "sharing",
]

JOURNALS_NAME = ".wkdask-journal"
"""Where runs that can be resumed note what is done; no reader of voxels looks there."""

Voxels = NDArray[Any]
Produce = Callable[[BoundingBox], Voxels | None]
"""Returns the voxels `(c, x, y, z)` of a box; None stands for zeros."""


class VoxelType(NamedTuple):
    """What one voxel holds. Voxels can be copied between volumes where this is equal."""

    dtype: str
    """Name of the NumPy dtype of one channel."""
    num_channels: int
    """Values per voxel."""

    def __str__(self) -> str:
        return f"{self.num_channels} channel(s) of {self.dtype}"


class FileNames(NamedTuple):
    """What the files of a volume are called, from its directory inwards."""

    head: str
    """The file that says how voxels are stored, such as `header.wkw`."""
    patterns: tuple[str, ...]
    """Regular expressions of the names of directories and, last, of files; groups are numbers."""
    axes: tuple[int, int, int]
    """Which of all numbers are those of a cell `(x, y, z)`."""
    others: tuple[str, ...] = ()
    """What else may lie in the directory."""

    def cell(self, numbers: tuple[int, ...]) -> Vec3:
        """Return the cell of a file by the numbers in its path."""
        x, y, z = (numbers[axis] for axis in self.axes)
        return x, y, z


class Layout(Protocol):
    """How the voxels of a volume are stored, wherever that is; a frozen, hashable value."""

    @property
    def voxel_type(self) -> VoxelType:
        """What a voxel holds."""

    @property
    def dtype(self) -> str:
        """Name of the NumPy dtype of one channel."""

    @property
    def num_channels(self) -> int:
        """Values per voxel."""

    @property
    def voxel_bytes(self) -> int:
        """Bytes of a voxel, all channels, before compression."""

    @property
    def file_size(self) -> Vec3:
        """Voxels per axis of a file, which is what one task writes."""

    @property
    def block_size(self) -> Vec3:
        """Voxels per axis of a block, the smallest box that is read or decoded alone."""

    @property
    def data_format(self) -> str:
        """What the JSON of a dataset calls the format: `"wkw"`, `"zarr3"` or `"zarr"`."""

    @property
    def fill_value(self) -> float:
        """What a voxel holds that was never written."""

    @property
    def write_size(self) -> Vec3:
        """Voxels per axis of the smallest box that two tasks must not share: a file or a block."""

    @property
    def write_unit(self) -> str:
        """What a box of `write_size` is called: `"file"` or `"block"`."""

    def stored_as(self, block_type: str | None) -> Self:
        """Return the same layout with other blocks; None keeps them."""

    def with_edges(self, block_edge: int | None, blocks_per_file_edge: int | None) -> Self:
        """Return the same layout with other edges of blocks and files; None keeps an edge."""

    def difference_to(self, demanded: object) -> str:
        """Return in words what differs from another layout; an empty text if nothing does."""

    def describe(self) -> dict[str, Any]:
        """Return what the format calls its parts, as plain values for people and for JSON."""


@dataclass(frozen=True, slots=True)
class WriteOptions:
    """How files are written; the defaults are right for nearly everybody."""

    fsync: bool = False
    """Whether each file and its name are on the disk, and not only in the system's memory, when it
    counts as written. Without it a power cut, but no killed process, can lose what was written
    last."""
    keep_zeros: bool = False
    """Whether files of nothing but zeros are written. A missing file means the same."""
    hc_level: int | None = None
    """How hard LZ4HC tries, from 3 to 12: smaller files against time. By default 10 for blocks
    that shrink to less than a sixteenth, where it pays, and 5 for others."""

    def __post_init__(self) -> None:
        for name in ("fsync", "keep_zeros"):
            value = getattr(self, name)
            if not isinstance(value, bool):
                raise ArgumentError(f"{name} is {value!r}, but must be True or False.")
        if self.hc_level is None:
            return
        object.__setattr__(self, "hc_level", whole(self.hc_level, "hc_level"))
        if not 3 <= self.hc_level <= 12:
            raise ArgumentError(f"hc_level is {self.hc_level}, but LZ4HC has levels 3 to 12.")


_DEFAULTS = WriteOptions()


@dataclass(frozen=True, slots=True)
class Volume(ABC):
    """Voxels `(c, x, y, z)` over many files, at one place. Making a volume touches no file.

    Positions are absolute voxels of the volume's own mag.
    """

    path: str
    """Where the volume lies; it means the same in every process."""
    layout: Layout
    """How the voxels are stored."""
    options: WriteOptions = field(default=_DEFAULTS, kw_only=True)
    """How files are written; what they hold does not depend on it."""
    is_claimed: bool = field(default=False, kw_only=True)
    """Whether this value belongs to the run that has claimed the volume whole."""

    @property
    def credentials(self) -> Credentials | None:
        """How the place of the volume is asked; None if that is this machine."""
        return None

    # --- voxels -----------------------------------------------------------------------------

    @abstractmethod
    def read(self, region: Region) -> NDArray[np.generic]:
        """Return the voxels of a region, `(c, x, y, z)` in Fortran order; missing files are zeros.

        Raises
        ------
        FormatError
            If a file that the region touches is unreadable.
        MissingError
            If the whole volume is gone.
        """

    @abstractmethod
    def write(self, box: BoundingBox, voxels: Voxels) -> None:
        """Write a box; what it does not cover of its files stays.

        Parameters
        ----------
        box
            Where, in absolute voxels.
        voxels
            What, `(c, x, y, z)`, of exactly the volume's dtype and the box's size.

        Raises
        ------
        ArgumentError
            If dtype, shape or position do not fit; nothing is written.
        FormatError
            If a file that has to be merged is unreadable; it stays as it is.
        """

    @abstractmethod
    def fill(self, box: BoundingBox, produce: Produce, *, threads: int = 1) -> None:
        """Write a box whose voxels are made when they are needed, in pieces of at most 8 MiB.

        Of a volume that is claimed, files that are patched in place otherwise are replaced whole.

        Parameters
        ----------
        box
            Where, in absolute voxels.
        produce
            Called with boxes inside of it; returns their voxels `(c, x, y, z)`, of exactly the
            volume's dtype, or None for zeros.
        threads
            How many threads may call `produce` and pack what it returns, for files that are written
            whole; fewer where the process may run on fewer cores.

        Raises
        ------
        BoundsError
            If the box has negative positions.
        ArgumentError
            If what is produced does not fit; the file it belongs to stays as it is.
        FormatError
            If a file that has to be merged is unreadable; it stays as it is.
        """

    @abstractmethod
    def is_missing(self, box: BoundingBox) -> bool:
        """Return whether no file of a box exists, so that it is zero; none is opened."""

    @property
    def can_be_written(self) -> bool:
        """Whether `write` and `fill` are possible at all."""
        return True

    # --- files ------------------------------------------------------------------------------

    @property
    @abstractmethod
    def names(self) -> FileNames:
        """What the files are called."""

    @abstractmethod
    def file_path(self, cell: Vec3) -> str:
        """Return where the file of a cell `(x, y, z)` of the file grid lies."""

    @abstractmethod
    def files(self) -> Iterator[tuple[Vec3, int]]:
        """Yield the cell `(x, y, z)` and the size in bytes of every file that exists."""

    @abstractmethod
    def file_bytes(self, cell: Vec3) -> int | None:
        """Return the size of the file of a cell, without opening it; None if there is none."""

    @abstractmethod
    def check(self) -> None:
        """Raise unless what is stored still has the layout that this value says."""

    @abstractmethod
    def check_file(self, cell: Vec3, *, decode: bool = False) -> int:
        """Raise unless a file can be read, which a missing one can; `decode` reads every block.

        Return how many bytes it has more than it should.
        """

    @abstractmethod
    def sweep(self, tag: str, box: BoundingBox) -> int:
        """Delete what dead writers with a tag left of the files of a box; return how many files."""

    @abstractmethod
    def remove(self, box: BoundingBox) -> None:
        """Delete the files of a box and what says how they are stored; other files stay."""

    @abstractmethod
    def version(self) -> tuple[int, int]:
        """Return a value that differs after each change made through wkdask, by any process."""

    @abstractmethod
    def note_change(self) -> None:
        """Make `version` differ from now on, for other processes too where that is possible."""

    # --- what follows -----------------------------------------------------------------------

    def with_options(self, **changes: Any) -> Self:
        """Return the same volume, whose files are written with other `WriteOptions`."""
        return replace(self, options=replace(self.options, **changes))

    @property
    def identity(self) -> str:
        """What tells the volume from all others: its path, and at an address the store too."""
        return self.path

    @property
    def key(self) -> str:
        """A short text that stands for the volume in the names of tasks."""
        return hashlib.blake2b(self.identity.encode(), digest_size=6).hexdigest()

    def cells(self, box: BoundingBox) -> Iterator[Vec3]:
        """Yield the cells `(x, y, z)` of the files that a box touches."""
        return (part.cell for part in overlaps(region_of(box), self.layout.file_size))

    def file_box(self, cell: Vec3) -> BoundingBox:
        """Return the voxels of the file of a cell, in absolute positions."""
        size = self.layout.file_size
        return BoundingBox([at * edge for at, edge in zip(cell, size, strict=True)], size)

    def box_on_disk(self) -> BoundingBox:
        """Return the smallest box around the files that exist, in voxels."""
        corners = np.array([cell for cell, _ in self.files()], dtype=np.int64).reshape(-1, 3)
        if not len(corners):
            return BoundingBox((0, 0, 0), (0, 0, 0))
        size = np.array(self.layout.file_size)
        return BoundingBox.from_corners(
            corners.min(axis=0) * size, (corners.max(axis=0) + 1) * size
        )

    def extent_of(self, box: BoundingBox) -> Vec3:
        """Return how far the volume reaches, at least to the end of a box, where it has an end."""
        return box.bottomright

    def check_voxels(self, dtype: np.dtype[np.generic], shape: tuple[int, ...]) -> None:
        """Raise unless an array of this dtype and shape `(c, x, y, z)` can be written here."""
        wanted, num_channels = self.layout.voxel_type
        if dtype != np.dtype(wanted):
            cast = f'.astype("{wanted}")'
            if dtype.kind == "f" and np.dtype(wanted).kind in "iu":
                limits = np.iinfo(wanted)
                cast = f".round().clip({limits.min}, {limits.max}){cast}"
            raise DtypeError(
                f"the voxels are {dtype}, but {self.path} stores {wanted}. "
                f"Convert on purpose: data{cast}."
            )
        if len(shape) != 4 or shape[0] != num_channels:
            raise ArgumentError(
                f"the data have shape {shape}, but must be (c, x, y, z) with "
                f"c = {num_channels}, the number of channels of {self.path}."
                f"{_advice(shape, num_channels)}"
            )


def sharing(*volumes: Volume) -> contextlib.AbstractContextManager[None]:
    """Keep others from claiming volumes whole inside the block; see `claims.shared`.

    At an address nothing is claimed, because nothing is changed there.
    """
    paths = [v.path for v in volumes if not v.is_claimed and not is_remote(v.path)]
    return claims.shared(*paths) if paths else contextlib.nullcontext()


def _advice(shape: tuple[int, ...], num_channels: int) -> str:
    """Return what may be meant by an array of a shape that does not fit."""
    if len(shape) == 4 and shape[-1] == num_channels:
        return " The channels come first: np.moveaxis(data, -1, 0)."
    if len(shape) == 3 and num_channels > 1:
        return " The axis of channels is missing: np.stack([first, second, ...])."
    return ""


# --- arrays -------------------------------------------------------------------------------------


def as_voxels(data: Any) -> Voxels:
    """Return data as a plain array, unless that would lose what it says of its voxels."""
    if isinstance(data, np.ma.MaskedArray):
        raise ArgumentError(
            "the array is masked, but WKW stores no mask. Say what is stored under it: "
            "x = np.ma.filled(x, 0), or da.ma.filled(x, 0)."
        )
    if hasattr(data, "dims"):
        raise ArgumentError(
            f"the data are a {type(data).__name__}, whose axes have labels; pass its array (often "
            "x.data) with the axes (c, x, y, z)."
        )
    return np.asarray(data)


def is_zero(voxels: Voxels) -> bool:
    """Return whether every bit of an array `(c, x, y, z)` is zero."""
    # By bits: -0.0 is no zero, and NaN no reason for a warning.
    bits = voxels.view(f"u{voxels.itemsize}")
    # Few first, because most arrays soon have a voxel that is not zero.
    return not (bits[:, ::17, ::19].any() or bits.any())


# --- counts -------------------------------------------------------------------------------------


@dataclass(slots=True)
class Written:
    """What was written inside a `count_writes` block."""

    voxels: int = 0
    """Once per channel."""
    size_bytes: int = 0
    """Bytes of files, as they are stored."""


_written: ContextVar[Written | None] = ContextVar("wkdask-written", default=None)


@contextlib.contextmanager
def count_writes(tag: str = "") -> Iterator[Written]:
    """Count what this thread writes to any volume; the names of unfinished files carry the tag."""
    written = Written()
    token = _written.set(written)
    try:
        with tagged(tag):
            yield written
    finally:
        _written.reset(token)


def add_written(voxels: int, size_bytes: int) -> None:
    """Add to the count of the block in which this thread is, if it is in one."""
    if written := _written.get():
        written.voxels += voxels
        written.size_bytes += size_bytes
