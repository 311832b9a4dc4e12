"""How far reading and writing are from what the system alone takes, in one run.

Run with `pytest tests/benchmarks/test_bench_limits.py --benchmark-enable -s`. A plane of raw blocks
is compared with bare calls of `pread` for the same bytes, from compiled code; a raw file with the
same bytes in a new file that takes the place of the old one, and with writing over the old file,
which is what libwkw does. Without that option files are small, and each runs once.
"""

from __future__ import annotations

import ctypes
import os
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numba import njit
from voxels import DTYPES, voxels_of

from wkdask import BoundingBox
from wkdask.grids import region_of
from wkdask.storage.codec import morton_index
from wkdask.storage.header import VolumeHeader
from wkdask.storage.wkw import WkwVolume

BLOCK = 32
PLANES = {"xy": (0, 0, 1), "xz": (0, 1, 0), "yz": (1, 0, 0)}

pread = ctypes.CDLL(None).pread
pread.argtypes = (ctypes.c_int, ctypes.c_void_p, ctypes.c_size_t, ctypes.c_ssize_t)
pread.restype = ctypes.c_ssize_t


@njit
def read_spans(descriptor: int, spans: Any, address: int) -> int:
    count = 0
    for i in range(len(spans)):
        count += pread(descriptor, address, spans[i, 1], spans[i, 0])
    return count


def spans_of(volume: WkwVolume, box: BoundingBox) -> np.ndarray:
    """Return which bytes of the file are read: of each block, from its first row to its last."""
    header = volume.header
    cells = [range(a // BLOCK, (b - 1) // BLOCK + 1) for a, b in zip(*corners(box), strict=True)]
    first = [at % BLOCK for at in box.topleft]
    spans = []
    for x in cells[0]:
        for y in cells[1]:
            for z in cells[2]:
                rows = [0 if box.size[axis] > 1 else first[axis] for axis in (1, 2)]
                lasts = [BLOCK - 1 if box.size[axis] > 1 else first[axis] for axis in (1, 2)]
                head = (rows[1] * BLOCK + rows[0]) * BLOCK
                tail = (lasts[1] * BLOCK + lasts[0] + 1) * BLOCK
                start = header.data_offset_bytes + morton_index((x, y, z)) * header.block_bytes
                spans.append(
                    (start + head * header.voxel_bytes, (tail - head) * header.voxel_bytes)
                )
    return np.array(spans, np.int64)


def corners(box: BoundingBox) -> tuple[Any, Any]:
    return box.topleft, box.bottomright


def medians(calls: dict[str, Callable[[], Any]], rounds: int) -> dict[str, float]:
    """Return the seconds of each call, one after the other in each round."""
    found: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(rounds):
        for name, call in calls.items():
            start = time.perf_counter()
            call()
            found[name].append(time.perf_counter() - start)
    return {name: statistics.median(seconds) for name, seconds in found.items()}


def say(what: str, seconds: dict[str, float]) -> None:
    ours = seconds["wkdask"]
    rest = ", ".join(f"{name} {it * 1e3:.2f} ms ({ours / it:.2f})" for name, it in seconds.items())
    sys.stdout.write(f"\n{what}: {rest}\n")


@pytest.fixture
def size(request: pytest.FixtureRequest) -> tuple[int, int]:
    """Edge of the file in voxels, and rounds."""
    return (512, 15) if request.config.getoption("benchmark_enable") else (64, 1)


@pytest.mark.parametrize("plane", PLANES)
def test_planes(tmp_path: Path, size: tuple[int, int], plane: str) -> None:
    edge, rounds = size
    header = VolumeHeader("uint8", 1, BLOCK, edge // BLOCK, "raw")
    volume = WkwVolume.create(tmp_path / "a", header)
    volume.write(BoundingBox((0, 0, 0), (edge,) * 3), voxels_of(None, "color", edge)[None])
    box = BoundingBox(
        [(edge // 2 + 5) * thin for thin in PLANES[plane]],
        [1 if thin else edge for thin in PLANES[plane]],
    )
    spans = spans_of(volume, box)
    buffer = np.empty(int(spans[:, 1].max()), np.uint8)
    with open(volume.file_path((0, 0, 0)), "rb") as file:
        number = file.fileno()
        calls = {
            "wkdask": lambda: volume.read(region_of(box)),
            "bare pread": lambda: read_spans(number, spans, buffer.ctypes.data),
        }
        assert calls["bare pread"]() == spans[:, 1].sum()
        calls["wkdask"]()
        say(f"raw plane {plane}, {len(spans)} blocks", medians(calls, rounds))


@pytest.mark.parametrize("layer", DTYPES)
def test_writes(tmp_path: Path, size: tuple[int, int], layer: str) -> None:
    edge, rounds = size
    voxels = voxels_of(None, layer, edge)[None]
    header = VolumeHeader(DTYPES[layer], 1, BLOCK, edge // BLOCK, "raw")
    volume = WkwVolume.create(tmp_path / "a", header)
    box = BoundingBox((0, 0, 0), (edge,) * 3)
    volume.write(box, voxels)
    data = Path(volume.file_path((0, 0, 0))).read_bytes()
    assert len(data) == header.data_offset_bytes + voxels.nbytes

    def new_file() -> None:
        with open(tmp_path / "new", "wb", buffering=0) as file:
            os.posix_fallocate(file.fileno(), 0, len(data))
            put(file, data)
        os.replace(tmp_path / "new", tmp_path / "file")

    def over_it() -> None:
        with open(tmp_path / "over", "r+b", buffering=0) as file:
            put(file, data)

    (tmp_path / "over").write_bytes(data)
    calls = {"wkdask": lambda: volume.write(box, voxels), "new file": new_file, "over it": over_it}
    say(f"raw file of {DTYPES[layer]}", medians(calls, min(rounds, 7)))


def put(file: Any, data: bytes) -> None:
    view = memoryview(data)
    for start in range(0, len(view), 2**22):
        file.write(view[start : start + 2**22])
