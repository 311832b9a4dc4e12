"""Whether the files of a dataset are what they must be; it reads, reports, and sweeps if asked to.

Level 1 looks at headers, sizes and jump tables, level 2 decodes every block. Files are looked at in
batches, which dask runs in parallel.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from concurrent.futures import Executor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Literal

from distributed import Client

from wkdask import wkwfile
from wkdask.dataset import Dataset, Layer, MagView, open_mag
from wkdask.errors import ArgumentError, WkdaskError
from wkdask.geometry import BoundingBox, Vec3
from wkdask.properties import FILE_NAME
from wkdask.scheduling import run_all
from wkdask.volume import HEADER_NAME, JOURNALS_NAME, Volume
from wkdask.wkwfile import TEMPORARY_SUFFIX, WkwFile

__all__ = ["CheckReport", "Finding", "as_json", "check"]

_FILES_PER_TASK = 256

Kind = Literal["unreadable", "properties", "outside", "stray", "link", "leftover"]
_ERRORS = ("unreadable", "properties")


@dataclass(frozen=True, slots=True)
class Finding:
    """Something that is not as it should be."""

    kind: Kind
    """`"unreadable"` and `"properties"` are errors: voxels can't be read. The others are worth a
    look: files outside of the layer's box, strays that no reader knows, links that leave the
    dataset, and what dead writers left over."""
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

    def __str__(self) -> str:
        errors = sum(finding.is_error for finding in self.findings)
        lines = [f"{finding.kind}: {finding.text}" for finding in self.findings]
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
    executor: Client | Executor | None = None,
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
        Whether to delete what dead writers left over; what a living one writes always stays.
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
    root = os.path.abspath(path)
    findings: list[Finding] = []
    tasks, files, size_bytes = [], 0, 0
    for mag in _mags(root, findings):
        findings += _link(mag.path, os.path.realpath(root))
        try:
            found = list(mag.volume.files())
            findings += _entries(mag.path, os.path.realpath(root), sweep)
        except (WkdaskError, OSError) as error:
            findings.append(Finding("unreadable", mag.path, str(error)))
            continue
        cells = [cell for cell, _ in found]
        files += len(cells)
        size_bytes += sum(count for _, count in found)
        findings += _outside(mag, cells)
        batches = (cells[i : i + _FILES_PER_TASK] for i in range(0, len(cells), _FILES_PER_TASK))
        tasks += [partial(_check_files, mag.volume, batch, level) for batch in batches]
    for some in run_all(tasks, executor, progress=progress):
        findings += some
    return CheckReport(root, level, files, size_bytes, tuple(findings))


def _mags(root: str, findings: list[Finding]) -> Iterator[MagView]:
    """Yield the mags that can be opened; what can't be is a finding."""
    if os.path.exists(os.path.join(root, HEADER_NAME)) and not os.path.exists(
        os.path.join(root, FILE_NAME)
    ):
        yield open_mag(root)
        return
    for layer in Dataset(root).layers.values():
        if layer.data_format != "wkw":
            continue
        for entry in layer.properties.mags:
            try:
                yield layer[entry.mag]
            except WkdaskError as error:
                findings.append(Finding("properties", root, str(error)))
        findings += _unlisted(layer)


def _unlisted(layer: Layer) -> Iterator[Finding]:
    """Yield mag directories of a layer that the JSON does not name."""
    listed = {
        name
        for entry in layer.properties.mags
        for name in (str(entry.mag), "-".join(map(str, entry.mag)), Path(entry.path or "").name)
    }
    for header in sorted((layer.dataset.path / layer.name).glob(f"*/{HEADER_NAME}")):
        path = str(header.parent)
        if header.parent.name not in listed:
            yield Finding("stray", path, f"{path} is a mag that {FILE_NAME} does not list")


def _check_files(volume: Volume, cells: list[Vec3], level: int) -> list[Finding]:
    return [found for cell in cells for found in _check_file(volume, cell, level)]


def _check_file(volume: Volume, cell: Vec3, level: int) -> Iterator[Finding]:
    path = volume.file_path(cell)
    try:
        with WkwFile.open(path, volume.header) as file:
            if level > 1:
                file.decode_all()
    except (WkdaskError, FileNotFoundError) as error:
        yield Finding("unreadable", path, str(error))


def _outside(mag: MagView, cells: list[Vec3]) -> Iterator[Finding]:
    """Yield the files of which no voxel is shown, because the layer's box does not reach them."""
    edge = mag.volume.header.file_edge
    for cell in cells if mag.layer else ():
        box = BoundingBox((at * edge for at in cell), (edge,) * 3)
        if mag.bounding_box.intersected_with(box, dont_assert=True).is_empty:
            path = mag.volume.file_path(cell)
            yield Finding("outside", path, f"{path} lies outside of the layer's box")


# What may lie in a mag directory, in its z directories, and in their y directories.
_KNOWN = (r"header\.wkw|\.wkdask-journal|z(0|[1-9]\d*)", r"y(0|[1-9]\d*)", r"x(0|[1-9]\d*)\.wkw")


def _entries(directory: str, root: str, sweep: bool, depth: int = 0) -> Iterator[Finding]:
    """Yield what is odd about the names in a mag directory."""
    for entry in sorted(os.scandir(directory), key=lambda entry: entry.name):
        if entry.is_symlink():
            yield from _link(entry.path, root)
        if entry.name.endswith(TEMPORARY_SUFFIX):
            yield from _unfinished(entry.path, sweep)
        elif not re.fullmatch(_KNOWN[depth], entry.name):
            yield Finding("stray", entry.path, f"{entry.path} is nothing that belongs here")
        elif depth < len(_KNOWN) - 1 and entry.is_dir() and entry.name != JOURNALS_NAME:
            yield from _entries(entry.path, root, sweep, depth + 1)


def _link(path: str, root: str) -> Iterator[Finding]:
    """Yield a finding if a path leads out of the dataset, of which the real path is given."""
    real = os.path.realpath(path)
    if not Path(real).is_relative_to(root):
        yield Finding("link", path, f"{path} leads to {real}, outside of the dataset")


def _unfinished(path: str, sweep: bool) -> Iterator[Finding]:
    """Yield a finding unless the writer of an unfinished file is at work."""
    if wkwfile.sweep_leftover(path) if sweep else wkwfile.is_leftover(path):
        fate = "was deleted" if sweep else "can be deleted: wkdask check --sweep"
        yield Finding("leftover", path, f"{path} was left by a writer that died, and {fate}")


def as_json(report: CheckReport) -> dict[str, Any]:
    """Return a report as plain values."""
    return {
        "path": report.path,
        "level": report.level,
        "ok": report.ok,
        "files": report.files,
        "bytes": report.size_bytes,
        "findings": [
            {"kind": found.kind, "path": found.path, "text": found.text}
            for found in report.findings
        ],
    }
