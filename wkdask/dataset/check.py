"""Whether the files of a dataset are what they must be; it reads, reports, and sweeps if asked to.

Level 1 looks at headers, sizes and jump tables, level 2 decodes every block. Files are looked at in
batches, which dask runs in parallel.
"""

from __future__ import annotations

import contextlib
import os
import re
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Literal

from wkdask.dataset.dataset import Dataset, Layer
from wkdask.dataset.lookup import is_bare_mag
from wkdask.dataset.properties import FILE_NAME
from wkdask.errors import ArgumentError, WkdaskError, storage_error
from wkdask.geometry import BoundingBox, Vec3, absolute, is_remote
from wkdask.runtime.executors import ExecutorLike, check_executor
from wkdask.runtime.progress import Progress
from wkdask.runtime.stream import stream_calls
from wkdask.show import html
from wkdask.show.text import printable
from wkdask.storage import atomic
from wkdask.storage.atomic import TEMPORARY_SUFFIX
from wkdask.storage.opening import is_volume, open_volume
from wkdask.storage.volume import JOURNALS_NAME, FileNames, Volume

__all__ = ["CheckReport", "Finding", "check"]

_FILES_PER_TASK = 256
_SWEPT_AFTER_SECONDS = 3600
_SHOWN_FINDINGS = 50

_File = tuple[Vec3, int]  # its cell (x, y, z), and its bytes

Kind = Literal[
    "unreadable", "properties", "outside", "stray", "link", "leftover", "note", "trailing"
]
_ERRORS = ("unreadable", "properties")


@dataclass(frozen=True, slots=True)
class Finding:
    """Something that is not as it should be."""

    kind: Kind
    """`"unreadable"` and `"properties"` are errors: voxels can't be read. The others are worth a
    look: files outside of the layer's box, strays that no reader knows, links that leave the
    dataset, what dead writers left over, bytes behind the end of a file, and notes on the JSON."""
    path: str
    """Where."""
    text: str
    """What, and what to do."""

    @property
    def is_error(self) -> bool:
        """Whether voxels can't be read."""
        return self.kind in _ERRORS


@dataclass(frozen=True, slots=True)
class CheckReport:
    """What `check` found."""

    path: str
    level: int
    files: int
    """Files looked at."""
    size_bytes: int
    """Bytes of these files."""
    findings: tuple[Finding, ...] = field(default=())

    @property
    def ok(self) -> bool:
        """Whether every voxel can be read."""
        return not any(finding.is_error for finding in self.findings)

    def as_dict(self) -> dict[str, object]:
        """Return the report as plain values, ready for JSON."""
        return {
            "path": self.path,
            "level": self.level,
            "ok": self.ok,
            "files": self.files,
            "bytes": self.size_bytes,
            "findings": [
                {"kind": found.kind, "path": found.path, "text": found.text}
                for found in self.findings
            ],
        }

    def _repr_html_(self) -> str:
        """Return a card with a table of the findings, as Jupyter shows it."""
        rows = [(each.kind, each.path, each.text) for each in self.findings[:_SHOWN_FINDINGS]]
        more = len(self.findings) - len(rows)
        parts = [
            html.text(str(self).splitlines()[-1]),
            html.table(rows, head=("kind", "path", "what")) if rows else "",
            html.items([f"and {more:,} more"] if more else []),
        ]
        return html.card("CheckReport", self.path, parts)

    def __repr__(self) -> str:
        lines = str(self).splitlines()
        more = len(lines) - 1 - _SHOWN_FINDINGS
        told = [*lines[:_SHOWN_FINDINGS], f"and {more:,} more", lines[-1]] if more > 0 else lines
        return "\n".join([f"<wkdask.CheckReport {self.path!r}>", *(f"  {line}" for line in told)])

    def __str__(self) -> str:
        errors = sum(finding.is_error for finding in self.findings)
        lines = [f"{finding.kind}: {printable(finding.text)}" for finding in self.findings]
        lines.append(
            f"{self.files} files, {self.size_bytes} bytes, level {self.level}: {errors} errors, "
            f"{len(self.findings) - errors} other findings"
        )
        return "\n".join(lines)


def check(
    path: str | os.PathLike[str],
    *,
    level: Literal[1, 2] = 1,
    sweep: bool = False,
    executor: ExecutorLike = None,
    progress: bool = False,
) -> CheckReport:
    """Look at every file of a dataset or of a bare mag directory.

    Parameters
    ----------
    path
        The directory.
    level
        1: headers, sizes, jump tables, and the JSON against the headers. 2: every block as well.
    sweep
        Whether to delete what dead writers left over. What was modified within the last hour stays,
        because file systems may hide that its writer lives on another machine; so does what lies
        outside of the directory, behind a link or a `path` in the JSON.
    executor
        A `distributed.Client`, a `concurrent.futures.Executor`, or None for the active client or
        dask's threads.
    progress
        Whether to show a bar.

    Raises
    ------
    ArgumentError
        If the level is unknown.
    MissingError, PropertiesError
        If the path is neither a dataset nor a mag directory.

    Examples
    --------
    >>> ds = wkdask.create("tissue", voxel_size=(8, 8, 8))
    >>> mag = ds.add_layer("color", "color", "uint8").add_mag(1, block_type="raw")
    >>> mag.write(np.ones((5, 5, 5), np.uint8))
    >>> report = check("tissue", level=2)
    >>> report.ok, report.files, report.findings
    (True, 1, ())
    """
    if level not in (1, 2):
        raise ArgumentError(f"level is {level!r}, but must be 1 (headers) or 2 (every block).")
    check_executor(executor)
    root = absolute(path)
    real = os.path.realpath(root)
    findings: list[Finding] = []
    tasks, files, size_bytes = [], 0, 0
    layers = _layers(root)
    findings += _properties(root)
    seen = set()
    for volume, box in _volumes(root, layers, findings):
        found: list[_File] = []
        findings += _link(volume.path, real)
        findings += _entries(volume.path, real, sweep, found, volume.names)
        seen.add(os.path.realpath(volume.path))
        cells = [cell for cell, _ in found]
        files += len(cells)
        size_bytes += sum(count for _, count in found)
        findings += _outside(volume, box, cells)
        batches = (cells[i : i + _FILES_PER_TASK] for i in range(0, len(cells), _FILES_PER_TASK))
        tasks += [partial(_check_files, volume, batch, level) for batch in batches]
    findings += _beside(root, layers, seen, sweep)
    findings += _found_in(tasks, executor, progress)
    return CheckReport(root, level, files, size_bytes, tuple(findings))


def _found_in(
    tasks: Sequence[Callable[[], list[Finding]]], executor: ExecutorLike, progress: bool
) -> list[Finding]:
    """Run tasks in parallel and return what they found, in their order."""
    found: dict[int, list[Finding]] = {}
    outcomes = stream_calls(_call_numbered, enumerate(tasks), executor, name="check")
    with contextlib.closing(outcomes), Progress(len(tasks), progress) as bar:
        for outcome in outcomes:
            if outcome.error is not None:
                raise outcome.error
            found[outcome.item[0]] = outcome.value
            bar.show(len(found))
    return [finding for index in sorted(found) for finding in found[index]]


def _call_numbered(task: tuple[int, Callable[[], list[Finding]]]) -> list[Finding]:
    return task[1]()


def _layers(root: str) -> list[Layer]:
    """Return the layers that can be read; a bare mag directory has none."""
    if is_bare_mag(root):
        return []
    return [layer for layer in Dataset(root).layers.values() if layer.properties.can_be_read]


def _properties(root: str) -> Iterator[Finding]:
    """Yield what is wrong with the JSON."""
    if is_bare_mag(root):
        return
    known = Dataset(root).json.content
    yield from (Finding("properties", root, each.error) for each in known.all_unreadable())
    yield from (Finding("note", root, text) for text in known.notes)


def _volumes(
    root: str, layers: list[Layer], findings: list[Finding]
) -> Iterator[tuple[Volume, BoundingBox | None]]:
    """Yield the mags that can be opened, and what is shown of them; what can't be is a finding."""
    if is_bare_mag(root):
        yield open_volume(root), None
    for layer in layers:
        for entry in layer.properties.mags:
            try:
                mag = layer[entry.mag]
            except WkdaskError as error:
                findings.append(Finding("properties", root, str(error)))
            else:
                if is_remote(mag.path):
                    text = f"{mag.path} is remote, so its files are not checked"
                    findings.append(Finding("link", mag.path, text))
                    continue
                yield mag.volume, mag.bounding_box
        findings += _unlisted(layer)


def _unlisted(layer: Layer) -> Iterator[Finding]:
    """Yield mag directories of a layer that the JSON does not name."""
    listed = {
        name
        for entry in layer.properties.mags
        for name in (str(entry.mag), "-".join(map(str, entry.mag)), Path(entry.path or "").name)
    }
    for directory in sorted(Path(layer.dataset.path / layer.name).glob("*")):
        path = str(directory)
        if directory.name not in listed and is_volume(directory):
            yield Finding("stray", path, f"{path} is a mag that {FILE_NAME} does not list")


def _check_files(volume: Volume, cells: list[Vec3], level: int) -> list[Finding]:
    return [found for cell in cells for found in _check_file(volume, cell, level)]


def _check_file(volume: Volume, cell: Vec3, level: int) -> Iterator[Finding]:
    path = volume.file_path(cell)
    try:
        trailing = volume.check_file(cell, decode=level > 1)
    except WkdaskError as error:
        yield Finding("unreadable", path, str(error))
    else:
        if trailing:
            text = f"{path} has {trailing:,} bytes behind its last block"
            yield Finding("trailing", path, f"{text}, which belong to nothing: write it again")


def _outside(volume: Volume, shown: BoundingBox | None, cells: list[Vec3]) -> Iterator[Finding]:
    """Yield the files of which no voxel is shown, because the layer's box does not reach them."""
    if shown is None:
        return
    for cell in cells:
        if shown.intersected_with(volume.file_box(cell), dont_assert=True).is_empty:
            path = volume.file_path(cell)
            yield Finding("outside", path, f"{path} lies outside of the layer's box")


# Whatever may be a directory with files of voxels, in any format.
_ANY_NAMES = FileNames("", ("c|[zy]?[0-9]+",) * 6, (0, 0, 0))


def _entries(
    directory: str,
    root: str,
    sweep: bool,
    files: list[_File],
    names: FileNames,
    above: tuple[re.Match[str], ...] = (),
) -> Iterator[Finding]:
    """Yield what is odd about the names in a mag directory, and append its files to a list."""
    try:
        entries = _listed(directory)
    except OSError as error:
        yield from _unlistable(directory, error)
        return
    for entry in entries:
        path = entry.path
        match = re.fullmatch(names.patterns[len(above)], entry.name, re.ASCII)
        if entry.is_symlink():
            yield from _link(path, root)
        if _is_unfinished(entry):
            yield from _unfinished(path, root, sweep)
        elif match and len(above) + 1 < len(names.patterns):
            yield from _entries(path, root, sweep, files, names, (*above, match))
        elif match:
            numbers = [int(number) for each in (*above, match) for number in each.groups()]
            files.append((names.cell(tuple(numbers)), _size_bytes(entry)))
        elif above or entry.name not in (names.head, *names.others, JOURNALS_NAME):
            yield Finding("stray", path, f"{path} is nothing that belongs here")


def _listed(directory: str) -> list[os.DirEntry[str]]:
    with os.scandir(directory) as entries:
        return sorted(entries, key=lambda entry: entry.name)


def _unlistable(directory: str, error: OSError) -> Iterator[Finding]:
    """Yield why a directory of files can't be listed, unless it is gone, which means zeros."""
    if isinstance(error, NotADirectoryError):
        text = f"{directory} is no directory: move it away, because reads and writes there fail"
        yield Finding("unreadable", directory, text)
    elif os.path.islink(directory) or not isinstance(error, FileNotFoundError):
        text = str(storage_error(error, directory, "listing files"))
        yield Finding("unreadable", directory, text)


def _size_bytes(entry: os.DirEntry[str]) -> int:
    try:
        return entry.stat().st_size
    except OSError:
        # Such as a link to nothing, which is found when it is opened.
        return 0


def _link(path: str, root: str) -> Iterator[Finding]:
    """Yield a finding if a path leads out of the dataset, of which the real path is given."""
    if not _is_inside(path, root):
        real = os.path.realpath(path)
        yield Finding("link", path, f"{path} leads to {real}, outside of the dataset")


def _is_inside(path: str, root: str) -> bool:
    return Path(os.path.realpath(path)).is_relative_to(root)


# --- leftovers ----------------------------------------------------------------------------------


def _beside(root: str, layers: list[Layer], mags: set[str], sweep: bool) -> Iterator[Finding]:
    """Yield what writers left beside the mags of which the real paths are given.

    That is in the directories of the dataset and of its layers, and in mags that the JSON does not
    list or that can't be opened.
    """
    homes = [root, *(os.path.join(root, layer.name) for layer in layers)]
    seen = mags.union(map(os.path.realpath, homes))
    for home in homes:
        if os.path.realpath(home) not in mags:
            yield from _leftovers(home, os.path.realpath(root), sweep, seen)


def _leftovers(home: str, root: str, sweep: bool, seen: set[str]) -> Iterator[Finding]:
    """Yield what writers left in a directory, and in those in it that were not seen."""
    # A layer without mags has no directory.
    with contextlib.suppress(OSError):
        for entry in _listed(home):
            if _is_unfinished(entry):
                yield from _unfinished(entry.path, root, sweep)
            elif os.path.realpath(entry.path) not in seen:
                others = _entries(entry.path, root, sweep, [], _ANY_NAMES)
                yield from (found for found in others if found.kind == "leftover")


def _is_unfinished(entry: os.DirEntry[str]) -> bool:
    """Return whether a file has a name, and is of a kind, that only our writers make."""
    return entry.name.endswith(TEMPORARY_SUFFIX) and entry.is_file(follow_symlinks=False)


def _unfinished(path: str, root: str, sweep: bool) -> Iterator[Finding]:
    """Yield a finding unless the writer of an unfinished file is at work."""
    if atomic.is_leftover(path):
        fate = _fate(path, root, sweep)
        yield Finding("leftover", path, f"{path} has no writer on this machine, {fate}")


def _fate(path: str, root: str, sweep: bool) -> str:
    """Return what becomes of a leftover; delete it if that is asked for and safe."""
    if not _is_inside(path, root):
        return "but lies outside of the dataset: it stays"
    if _is_young(path):
        return (
            "but was modified less than an hour ago: it stays, because its writer may be alive on "
            "another machine"
        )
    if not sweep:
        return "and can be deleted: wkdask check --sweep"
    if atomic.sweep_leftover(path, older_than_seconds=_SWEPT_AFTER_SECONDS):
        return "and was deleted"
    return "but could not be deleted"


def _is_young(path: str) -> bool:
    with contextlib.suppress(OSError):
        return time.time() - os.lstat(path).st_mtime < _SWEPT_AFTER_SECONDS
    return False
