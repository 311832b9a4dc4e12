"""Memory: what a file needs while it is written, merged or read does not grow with the file.

Each measurement runs in a process of its own, because memory that was once taken says nothing about
what comes later: this file is also a script, whose tasks print the peak in bytes. The peak is that
of resident memory above what the process had after imports and after a tiny file had loaded the
compiled code.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import wkdask
from wkdask.errors import ArgumentError, FormatError
from wkdask.geometry import BoundingBox
from wkdask.storage import writer as filewriter
from wkdask.storage.header import BLOCK_TYPES, VolumeHeader
from wkdask.storage.wkw import WkwVolume

MIB = 2**20
WRITE_BYTES = 384 * MIB
READ_BYTES = 16 * MIB
PYRAMID_BYTES = 128 * MIB
"""Of one thread."""

pytestmark = pytest.mark.skipif(
    not Path("/proc/self/clear_refs").exists(), reason="peaks are measured with Linux' /proc"
)


def peak_of(task: str, *arguments: Any) -> int:
    """Return the peak of a task of this file in a process of its own, in bytes."""
    path = [str(Path(wkdask.__file__).parents[1]), os.environ.get("PYTHONPATH", "")]
    done = subprocess.run(
        [sys.executable, __file__, task, *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=290,
        check=False,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, path))},
    )
    assert done.returncode == 0, done.stderr
    return int(done.stdout)


@pytest.fixture
def volume(tmp_path: Path, request: pytest.FixtureRequest) -> Any:
    """Nothing but a path; what is written there goes when the test ends."""
    path = tmp_path / "1"
    yield path
    for file in path.rglob("*.wkw"):
        file.unlink()


class TestPeaks:
    @pytest.mark.parametrize(
        ("kind", "edge"),
        [
            pytest.param("lz4", 512, marks=pytest.mark.slow),
            pytest.param("lz4", 1024, marks=pytest.mark.slow),
            pytest.param("lz4hc", 1024, marks=pytest.mark.slow),
        ],
    )
    def test_one_compressed_file(self, volume: Path, kind: str, edge: int):
        assert peak_of("stream", volume, kind, edge) < WRITE_BYTES
        assert peak_of("read_little", volume) < READ_BYTES
        assert peak_of("merge", volume) < WRITE_BYTES
        assert peak_of("merge_through_view", volume) < WRITE_BYTES

    @pytest.mark.slow
    def test_reading_through_a_raw_file(self, volume: Path):
        assert peak_of("stream", volume, "raw", 256) < WRITE_BYTES
        assert peak_of("read_little", volume) < READ_BYTES
        assert peak_of("merge", volume) < READ_BYTES

    @pytest.mark.slow
    def test_headers_that_claim_much_allocate_nothing(self, tmp_path: Path):
        assert peak_of("huge_claims", tmp_path) < 4 * MIB

    @pytest.mark.slow
    @pytest.mark.parametrize("edge", [256, 1024])
    def test_a_pyramid(self, volume: Path, edge: int):
        """Of 4 GiB too, in as many threads as there are cores."""
        root = volume.parent / "dataset"
        layer = wkdask.create(root, (8, 8, 8)).add_layer(
            "cells", "segmentation", "uint32", bounding_box=BoundingBox((0, 0, 0), (edge,) * 3)
        )
        layer.add_mag(1, block_type="lz4")
        peak_of("stream_layer", root)
        threads = os.cpu_count() or 1
        assert peak_of("downsample", root) < PYRAMID_BYTES * threads
        for file in root.rglob("*.wkw"):
            file.unlink()

    @pytest.mark.slow
    def test_the_measure_sees_what_is_taken(self, tmp_path: Path):
        assert 60 * MIB < peak_of("take", 64 * MIB) < 80 * MIB


# --- tasks --------------------------------------------------------------------------------------


def made(box: BoundingBox) -> Any:
    """Return voxels that depend on the place, (1, x, y, z): cells of 8 voxels, none of them 0."""
    x, y, z = (
        np.arange(a, b, dtype=np.uint32) // 8 + 1
        for a, b in zip(box.topleft, box.bottomright, strict=True)
    )
    out = np.empty((1, *box.size), np.uint32, order="F")
    np.multiply(x[:, None, None], y[:, None] * np.uint32(7919), out=out[0])
    out[0] ^= z << np.uint32(8)
    return out


def stream(path: str, kind: Any, edge: str) -> None:
    """Write one file of a volume from voxels that are made piece by piece."""
    header = VolumeHeader("uint32", 1, 32, int(edge) // 32, kind)
    volume = WkwVolume.create(path, header)
    with filewriter.writing(volume.file_path((0, 0, 0)), header) as file:
        for piece in file.pieces:
            file.append(made(piece))


def stream_layer(path: str) -> None:
    """Fill mag 1 of a layer."""
    mag = wkdask.open(path)["cells"][1]
    dataclasses.replace(mag.volume, is_claimed=True).fill(mag.bounding_box, made)


def downsample(path: str) -> None:
    assert wkdask.open(path)["cells"].downsample(mags=[2, 4]).ok


def middle(volume: WkwVolume, edge: int) -> BoundingBox:
    """Return a box across the middle of the first file, on no border of a block."""
    half = volume.header.file_edge // 2
    return BoundingBox((half - edge // 2 + 1,) * 3, (edge - 1,) * 3)


def read_little(path: str) -> None:
    volume = WkwVolume.open(path)
    box = middle(volume, 64)
    starts = zip(box.topleft, box.bottomright, strict=True)
    x, y, z = (range(a, b) for a, b in starts)
    assert np.array_equal(volume.read((x, y, z)), made(box))


def merge(path: str) -> None:
    volume = WkwVolume.open(path)
    box = middle(volume, 100)
    voxels = made(box) + np.uint32(1)
    volume.write(box, voxels)
    check_merged(volume, box, voxels)


def merge_through_view(path: str) -> None:
    volume = WkwVolume.open(path)
    edge = volume.header.file_edge
    box = BoundingBox((edge - 65, 3, 5), (60, 70, 80))
    voxels = made(box) + np.uint32(2)
    view = wkdask.View(path, volume.header.to_wkw(), (edge,) * 3)
    # Its border lies on no file's, which is slow and said so.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        view.write(voxels, box.topleft)
    check_merged(volume, box, voxels)


def check_merged(volume: WkwVolume, box: BoundingBox, voxels: Any) -> None:
    """Compare what was written, and a layer of old voxels beside it."""
    grown = BoundingBox((a - 1 for a in box.topleft), (n + 2 for n in box.size))
    expected = made(grown)
    expected[:, 1:-1, 1:-1, 1:-1] = voxels
    x, y, z = (range(a, b) for a, b in zip(grown.topleft, grown.bottomright, strict=True))
    assert np.array_equal(volume.read((x, y, z)), expected)


def huge_claims(directory: str) -> None:
    """Read files whose headers claim anything, in volumes that demand it or something small."""
    small = VolumeHeader("uint8", block_edge=4, blocks_per_file_edge=2)
    pairs = ((header, demanded) for header in huge_headers() for demanded in (header, small))
    for number, (header, demanded) in enumerate(pairs):
        volume = WkwVolume.create(f"{directory}/{number}", demanded)
        path = Path(volume.file_path((0, 0, 0)))
        path.parent.mkdir(parents=True)
        path.write_bytes(header.to_bytes(header.data_offset_bytes) + bytes(10_000))
        refuse(volume)


def huge_headers() -> Iterator[VolumeHeader]:
    """Yield headers of files that are far beyond 10,000 bytes, up to what the format can say."""
    for kind, block_log2, blocks_log2 in product(BLOCK_TYPES, range(16), (0, 5, 10, 15)):
        with contextlib.suppress(ArgumentError):  # a block beyond 2 GiB can't be stored
            header = VolumeHeader("uint8", 1, 1 << block_log2, 1 << blocks_log2, kind)
            if header.file_edge >= 2**9:
                yield header


def refuse(volume: WkwVolume) -> None:
    try:
        volume.read((range(1, 2),) * 3)
    except FormatError:
        return
    raise AssertionError(f"{volume.header} was read from 10,016 bytes")


def take(count: str) -> None:
    np.ones(int(count), np.uint8)


TASKS: dict[str, Callable[..., None]] = {
    task.__name__: task
    for task in (
        stream,
        stream_layer,
        downsample,
        read_little,
        merge,
        merge_through_view,
        huge_claims,
        take,
    )
}


def warm_up(directory: Path) -> None:
    """Load the compiled code and whatever else is loaded at first use, on tiny files."""
    for kind in BLOCK_TYPES:
        volume = WkwVolume.create(directory / kind, VolumeHeader("uint32", 1, 8, 2, kind))
        box = BoundingBox((0, 0, 0), (16, 16, 16))
        volume.write(box, made(box))
        volume.write(BoundingBox((1, 1, 1), (3, 3, 3)), made(box)[:, :3, :3, :3])
        volume.read((range(1, 9),) * 3)
        wkdask.View(volume.path, volume.header.to_wkw(), box.size).write(made(box))


def resident(name: str) -> int:
    """Return VmRSS or VmHWM, its peak, in bytes; `ru_maxrss` would begin with the parent's."""
    lines = Path("/proc/self/status").read_text().splitlines()
    (kib,) = (line.split()[1] for line in lines if line.startswith(name))
    return int(kib) * 1024


def main(name: str, *arguments: str) -> None:
    import tempfile

    with tempfile.TemporaryDirectory() as directory:
        warm_up(Path(directory))
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins with what there is now
    before = resident("VmRSS")
    TASKS[name](*arguments)
    sys.stdout.write(str(resident("VmHWM") - before))


if __name__ == "__main__":
    main(*sys.argv[1:])
