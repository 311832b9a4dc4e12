"""A volume whose voxels lie in a grid of files below one directory, whatever is in a file.

It knows which files a box touches, and which of them are read, merged, patched or replaced. What a
file is called and how it is opened and written is the matter of the formats, `wkw` and `zarr`.
"""

from __future__ import annotations

import contextlib
import os
from abc import abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from wkdask.errors import ArgumentError, BoundsError, storage_error
from wkdask.geometry import BoundingBox, Vec3
from wkdask.grids import Overlap, Region, overlaps, region_of, slices_in
from wkdask.storage import atomic
from wkdask.storage.memory import new_array
from wkdask.storage.place import (
    ANY,
    LOCAL,
    CheckedFile,
    Fetch,
    Old,
    OpenFile,
    Place,
    matching,
)
from wkdask.storage.volume import (
    JOURNALS_NAME,
    Layout,
    Produce,
    Volume,
    Voxels,
    WriteOptions,
    add_written,
)
from wkdask.storage.writer import FileFormat

if TYPE_CHECKING:
    from wkdask.storage.objects import Credentials

__all__ = ["FileVolume"]


@dataclass(frozen=True, slots=True)
class FileVolume(Volume):
    """Voxels in a grid of files. Making one touches no disk."""

    place: Place = field(default=LOCAL, kw_only=True, repr=False)
    """How the files are reached."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "path", self.place.absolute(self.path))

    @property
    def depth(self) -> int:
        """How many directories lie between a file and `path`."""
        return len(self.names.patterns) - 1

    @property
    def identity(self) -> str:
        """What tells the volume from all others."""
        return f"{self.place.store}{self.path}"

    @property
    def credentials(self) -> Credentials | None:
        """How the place of the files is asked; None if that is this machine."""
        return self.place.credentials

    @property
    def can_be_written(self) -> bool:
        """Whether files lie where something can be written."""
        return self.place.can_be_written

    @property
    @abstractmethod
    def head(self) -> tuple[int, int]:
        """What is read first of a file; see `place.Opener`."""

    @abstractmethod
    def checked(self, descriptor: int, path: str, fetch: Fetch) -> CheckedFile:
        """Return a file by its descriptor, after checking its head; see `place.Opener`."""

    def open_file(self, cell: Vec3) -> OpenFile:
        """Open and check the file of a cell.

        Raises
        ------
        FileNotFoundError
            If the file does not exist; the only error of the system that is left as it is.
        FormatError
            If it is not a whole file of this volume.
        """
        return self.place.open(self.file_path(cell), self)

    @property
    @abstractmethod
    def _format(self) -> FileFormat:
        """What files look like that are written."""

    @property
    def _file_options(self) -> WriteOptions:
        """How files are written."""
        return self.options

    @abstractmethod
    def _missing_head(self) -> Exception:
        """Return the error that says that the volume is gone."""

    def _prepare(self, box: BoundingBox) -> None:
        """Raise unless a box can be written, and make ready for it."""
        self.place.check_writable(self.path)
        self.check()

    def _patch_file(self, cell: Vec3, inside: BoundingBox, produce: Produce, is_made: bool) -> int:
        """Write a box into a file in place, and return the bytes that were written."""
        raise AssertionError(f"{self.path} has files that are written whole")

    # --- voxels -----------------------------------------------------------------------------

    def read(self, region: Region) -> NDArray[np.generic]:
        """Return the voxels of a region; see `Volume.read`."""
        shape = (self.layout.num_channels, *map(len, region))
        out, is_zero = new_array(shape, self.layout.dtype)
        background, complete = self.layout.fill_value, True
        for part in overlaps(region, self.layout.file_size):
            target = out[(slice(None), *part.target)]
            if not self._read_part(target, part):
                complete = False
                if background or not is_zero:
                    target[...] = background
        if not complete:
            # Files of another size would lie elsewhere, and what is not found counts as zero.
            self.check()
        return out

    def _read_part(self, out: Voxels, part: Overlap) -> bool:
        """Read what lies in one file; return whether there is one."""
        is_begun = False
        try:
            with self.open_file(part.cell) as file:
                is_begun = True
                file.read_into(out, part.source)
        except FileNotFoundError:
            if is_begun:
                # Deleted meanwhile: what was read before is no part of anything.
                out[...] = self.layout.fill_value
            return False
        return True

    def write(self, box: BoundingBox, voxels: Voxels) -> None:
        """Write a box; files that are written whole and that it covers partly are merged."""
        self.check_voxels(voxels.dtype, voxels.shape)
        if voxels.shape[1:] != box.size:
            raise ArgumentError(f"voxels of shape {voxels.shape} do not fill the box {box}.")
        self._fill(
            box,
            lambda part: voxels[(slice(None), *slices_in(part, box.topleft))],
            is_made=True,
        )

    def fill(self, box: BoundingBox, produce: Produce, *, threads: int = 1) -> None:
        """Write a box piece by piece; see `Volume.fill`."""
        self._fill(box, produce, threads=threads)

    def is_missing(self, box: BoundingBox) -> bool:
        """Return whether no file of a box exists, so that it is zero."""
        return not self.layout.fill_value and all(
            self.place.is_missing(self.file_path(cell), self.depth) for cell in self.cells(box)
        )

    def _fill(
        self, box: BoundingBox, produce: Produce, *, is_made: bool = False, threads: int = 1
    ) -> None:
        """Write a box; see `fill`. What is made already is patched in place at once."""
        if min(box.topleft) < 0:
            raise BoundsError(f"the box {box} has negative positions, which no file can hold.")
        self._prepare(box)
        is_whole = self.is_claimed or self.layout.write_unit == "file" or not self.place.can_patch
        try:
            for cell in self.cells(box):
                whole = self.file_box(cell)
                common = whole.intersected_with(box)
                inside = common.moved_by(-at for at in whole.topleft)
                if is_whole or common == whole:
                    size_bytes = self._replace_file(cell, inside, produce, threads)
                else:
                    size_bytes = self._patch_file(cell, inside, produce, is_made)
                add_written(inside.volume * self.layout.num_channels, size_bytes)
        finally:
            # Also after a failure: the files before it were written.
            self.note_change()

    def _replace_file(self, cell: Vec3, inside: BoundingBox, produce: Produce, threads: int) -> int:
        """Write a file whole, new inside a box and as it was elsewhere; return its bytes.

        Others who write to parts of the same file at the same time wait, so that no voxel is lost.
        """
        while True:
            try:
                return self._replace_once(cell, inside, produce, threads)
            except atomic.OvertakenError:
                # Somebody made the file in the meantime: it has to be merged now.
                continue

    def _replace_once(self, cell: Vec3, inside: BoundingBox, produce: Produce, threads: int) -> int:
        path, is_part = self.file_path(cell), inside.size != self.layout.file_size
        others: contextlib.AbstractContextManager[Old] = contextlib.nullcontext(ANY)
        if not self.is_claimed:
            others = self.place.alone(path, is_part=is_part)
        with (
            others as old,
            self._merging(cell, inside, produce) as (piece_of, touched),
            self.place.writing(path, self._format, self._file_options, old) as file,
        ):
            file.fill(piece_of, touched, threads)
        return file.size_bytes

    @contextlib.contextmanager
    def _merging(
        self, cell: Vec3, inside: BoundingBox, produce: Produce
    ) -> Iterator[tuple[Produce, BoundingBox]]:
        """Yield what makes pieces of a file, and the box outside of which they are zero.

        Voxels are new inside a box and old elsewhere; positions count from the file's first voxel.
        """
        whole = self.file_box(cell)

        def new_voxels(part: BoundingBox) -> Voxels | None:
            voxels = produce(part.moved_by(whole.topleft))
            if voxels is not None:
                self.check_voxels(voxels.dtype, voxels.shape)
            return voxels

        opened: contextlib.AbstractContextManager[OpenFile | None] = contextlib.nullcontext()
        if inside.size != whole.size:
            with contextlib.suppress(FileNotFoundError):
                opened = self.open_file(cell)
        with opened as old:
            is_needed = old is not None or self.layout.fill_value
            touched = BoundingBox((0, 0, 0), whole.size) if is_needed else inside
            yield partial(_merged, old, inside, new_voxels, self.layout), touched

    # --- files ------------------------------------------------------------------------------

    def file_bytes(self, cell: Vec3) -> int | None:
        """Return the size of a file; see `Volume.file_bytes`."""
        return self.place.size_bytes(self.file_path(cell))

    def files(self) -> Iterator[tuple[Vec3, int]]:
        """Yield the cell `(x, y, z)` and the size in bytes of every file."""
        try:
            for numbers, size_bytes in self.place.files(self.path, self.names.patterns):
                yield self.names.cell(numbers), size_bytes
        except FileNotFoundError:
            raise self._missing_head() from None

    def check_file(self, cell: Vec3, *, decode: bool = False) -> int:
        """Raise unless a file is a whole one of this volume; see `Volume.check_file`."""
        try:
            opened = self.open_file(cell)
        except FileNotFoundError:
            # Writers of zeros remove files: missing means zeros.
            return 0
        with opened as file:
            if decode:
                file.decode_all()
            return file.trailing_bytes()

    def sweep(self, tag: str, box: BoundingBox) -> int:
        """Delete what dead writers with a tag left beside the files of a box, and in journals."""
        if self.place is not LOCAL:
            return 0
        # Those of other runs are left alone: some file systems keep locks on one machine, and do
        # not say here that a writer elsewhere is alive.
        ending = f".{tag}{atomic.TEMPORARY_SUFFIX}"
        return sum(
            atomic.sweep_leftover(path)
            for directory in self._directories(box)
            for path in _named(directory, ending)
        )

    def _directories(self, box: BoundingBox) -> Iterator[str]:
        """Yield the directories with files of a box, and the directories of journals."""
        yield from self._file_directories(box)
        for directory, _, _ in os.walk(os.path.join(self.path, JOURNALS_NAME)):
            yield directory

    def _file_directories(self, box: BoundingBox) -> Iterator[str]:
        """Yield the directories with files of a box."""
        yield from dict.fromkeys(os.path.dirname(self.file_path(cell)) for cell in self.cells(box))

    def remove(self, box: BoundingBox) -> None:
        """Delete the files of a box and what says how they are stored; see `Volume.remove`."""
        with atomic.os_errors(self.path, "deleting files"):
            for cell, _ in list(self.files()):
                common = self.file_box(cell).intersected_with(box, dont_assert=True)
                if not common.is_empty:
                    self.place.remove(self.file_path(cell))
            self.place.remove(os.path.join(self.path, self.names.head))
        if self.place is LOCAL:
            self._remove_empty(self.path, 0)

    def _remove_empty(self, directory: str, depth: int) -> None:
        """Delete the directories of files in a directory that are empty."""
        if depth + 1 < len(self.names.patterns):
            for _, entry in list(matching(directory, self.names.patterns[depth])):
                if entry.is_dir(follow_symlinks=False):
                    self._remove_empty(entry.path, depth + 1)
                    atomic.remove_empty([entry.path])

    def version(self) -> tuple[int, int]:
        """Return a value that differs after each noted change; see `Volume.version`."""
        try:
            return self.place.version(self.path)
        except (FileNotFoundError, NotADirectoryError):
            raise self._missing_head() from None
        except OSError as error:
            raise storage_error(error, self.path, "looking for the directory") from None

    def note_change(self) -> None:
        """Make `version` differ from now on."""
        self.place.note_change(self.path)


def _merged(
    old: OpenFile | None,
    inside: BoundingBox,
    new_voxels: Produce,
    layout: Layout,
    piece: BoundingBox,
) -> Voxels | None:
    """Return the voxels of a piece of a file: new ones inside a box, old ones elsewhere."""
    common = piece.intersected_with(inside, dont_assert=True)
    voxels = None if common.is_empty else new_voxels(common)
    background = layout.fill_value
    if common == piece or (old is None and voxels is None and not background):
        return voxels
    out = np.full((layout.num_channels, *piece.size), background, layout.dtype, order="F")
    if old is not None:
        try:
            old.read_into(out, region_of(piece))
        except FileNotFoundError as error:
            raise atomic.OvertakenError(error.filename) from None
    if not common.is_empty:
        out[(slice(None), *slices_in(common, piece.topleft))] = 0 if voxels is None else voxels
    return out


def _named(directory: str, ending: str) -> Iterator[str]:
    """Yield the files of a directory, if there is one, whose names have an ending."""
    with contextlib.suppress(OSError), os.scandir(directory) as entries:
        yield from (entry.path for entry in entries if entry.name.endswith(ending))
