"""Speed of reading and writing one file beside libwkw, in one run.

Run with `pytest tests/benchmarks/test_bench_files.py --benchmark-enable`: the last lines say how
many times faster wkdask was, by the medians and by the best rounds. Every benchmark is also a test
that compares voxels: without that option files are small and each one runs once.

`WKDASK_BENCH_EDGE` sets the edge of the files in voxels, `WKDASK_BENCH_ROUNDS` the rounds.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import wkw
from voxels import DTYPES, Voxels, voxels_of

import wkdask
from wkdask.geometry import BoundingBox
from wkdask.grids import region_of
from wkdask.storage.header import BlockType, VolumeHeader
from wkdask.storage.wkw import WkwVolume

pytest.importorskip("pytest_benchmark")

SMALL_EDGE, FULL_EDGE = 64, 512
WHO = ("wkdask", "libwkw")
# The order of axes is that of (x, y, z): the plane is one voxel thick along the axis of the 1.
PLANES = {"xy": (0, 0, 1), "xz": (0, 1, 0), "yz": (1, 0, 0)}

# What was asked for: how many times as fast as libwkw.
TARGETS = {
    "read": 1.5,
    "read, 2 threads": 1.5,
    "raw plane xy": 5,
    "raw plane xz": 2,
    "raw plane yz": 1,
    "lz4 plane": 1.2,
    "write lz4 uint8": 1.5,
    "write lz4hc uint8": 8,
    "write lz4hc uint32": 8,
}


@dataclass(frozen=True)
class Scene:
    """What is measured in one session, and what came of it."""

    edge: int
    rounds: int
    voxels: dict[str, Voxels]
    """By dtype: grey values in uint8, labels in uint32; (1, x, y, z), Fortran order."""
    directory: Path
    seconds: dict[tuple[str, str], tuple[float, float]]
    """By group and library: the median and the least of all rounds."""
    bytes: dict[tuple[str, str], int]
    """By group and library: the size of the file that was written."""

    @property
    def box(self) -> BoundingBox:
        return BoundingBox((0, 0, 0), (self.edge,) * 3)

    def header(self, dtype: str, kind: BlockType) -> VolumeHeader:
        return VolumeHeader(dtype, 1, 32, self.edge // 32, kind)

    def written(self, dtype: str, kind: BlockType, name: str = "") -> WkwVolume:
        """Return a volume of one file with the voxels of a dtype, written by libwkw."""
        path = self.directory / f"{dtype}-{kind}{name}"
        if not path.exists():
            with wkw.Dataset.create(str(path), self.header(dtype, kind).to_wkw()) as reference:
                reference.write((0, 0, 0), self.voxels[dtype])
        return WkwVolume.open(path)


@pytest.fixture(scope="module")
def scene(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Scene]:
    """Files of a real volume, tiled by mirrored copies, or else of synthetic tissue."""
    option = request.config.getoption
    is_measured = option("benchmark_enable") or not option("benchmark_disable")
    edge = int(os.environ.get("WKDASK_BENCH_EDGE", FULL_EDGE if is_measured else SMALL_EDGE))
    rounds = int(os.environ.get("WKDASK_BENCH_ROUNDS", 7))
    try:
        path = request.getfixturevalue("real_volume")
    except pytest.skip.Exception:
        path = None
    voxels = {dtype: voxels_of(path, name, edge)[np.newaxis] for name, dtype in DTYPES.items()}
    directory = tmp_path_factory.mktemp("files")
    scene = Scene(edge, rounds if is_measured else 1, voxels, directory, {}, {})
    yield scene
    for file in directory.rglob("*.wkw"):
        file.unlink()


def measure(
    benchmark: Any,
    scene: Scene,
    group: str,
    who: str,
    call: Callable[[], Any],
    *,
    most: int = 99,
    repeats: int = 1,
) -> Any:
    """Run a call as a benchmark, keep its times for the table, and return what it returns.

    `most` is how often at most; `repeats` says of how many equal parts the call consists.
    """
    benchmark.group = f"{group}, {scene.edge} cubed"
    rounds = min(most, scene.rounds)
    result = benchmark.pedantic(call, rounds=rounds, warmup_rounds=1 if rounds > 1 else 0)
    if benchmark.stats is not None:
        stats = benchmark.stats.stats
        scene.seconds[group, who] = stats.median / repeats, stats.min / repeats
    return result


def reader(who: str, volume: WkwVolume, box: BoundingBox) -> Callable[[], Voxels]:
    """Return a function that reads a box, by a library that knows the volume already."""
    if who == "wkdask":
        return lambda: volume.read(region_of(box))
    reference = wkw.Dataset.open(volume.path)
    return lambda: reference.read(box.topleft, box.size)


@pytest.mark.parametrize("who", WHO)
@pytest.mark.parametrize("dtype", DTYPES.values())
@pytest.mark.parametrize("kind", ["raw", "lz4"])
def test_read(benchmark: Any, scene: Scene, kind: BlockType, dtype: str, who: str) -> None:
    call = reader(who, scene.written(dtype, kind), scene.box)
    found = measure(benchmark, scene, f"read {kind} {dtype}", who, call)
    assert np.array_equal(found, scene.voxels[dtype])


@pytest.mark.parametrize("who", WHO)
@pytest.mark.parametrize("dtype", DTYPES.values())
@pytest.mark.parametrize("kind", ["raw", "lz4"])
def test_read_with_two_threads(
    benchmark: Any, scene: Scene, kind: BlockType, dtype: str, who: str
) -> None:
    calls = [reader(who, scene.written(dtype, kind, name), scene.box) for name in ("", "-2")]
    with ThreadPoolExecutor(2) as threads:
        found = measure(
            benchmark,
            scene,
            f"read, 2 threads, {kind} {dtype}",
            who,
            lambda: list(threads.map(lambda call: call(), calls)),
        )
    for each in found:
        assert np.array_equal(each, scene.voxels[dtype])


@pytest.mark.parametrize("who", WHO)
@pytest.mark.parametrize("plane", PLANES)
@pytest.mark.parametrize("kind", ["raw", "lz4"])
def test_plane(benchmark: Any, scene: Scene, kind: BlockType, plane: str, who: str) -> None:
    axes = PLANES[plane]
    at = scene.edge // 2 + 5
    box = BoundingBox(
        [at * is_thin for is_thin in axes], [1 if thin else scene.edge for thin in axes]
    )
    call = reader(who, scene.written("uint8", kind), box)
    repeats = 50 if scene.rounds > 1 else 1  # so short that a few calls say little
    found = measure(
        benchmark,
        scene,
        f"{kind} plane {plane}",
        who,
        lambda: [call() for _ in range(repeats)],
        repeats=repeats,
    )[-1]
    x, y, z = (slice(a, b) for a, b in zip(box.topleft, box.bottomright, strict=True))
    assert np.array_equal(found, scene.voxels["uint8"][:, x, y, z])


@pytest.mark.parametrize("who", WHO)
@pytest.mark.parametrize("dtype", DTYPES.values())
@pytest.mark.parametrize("kind", ["raw", "lz4", "lz4hc"])
def test_write(
    benchmark: Any, scene: Scene, tmp_path: Path, kind: BlockType, dtype: str, who: str
) -> None:
    voxels, header = scene.voxels[dtype], scene.header(dtype, kind)
    volume = WkwVolume.create(tmp_path / "ours", header)
    with wkw.Dataset.create(str(tmp_path / "theirs"), header.to_wkw()) as reference:
        call = {
            "wkdask": lambda: volume.write(scene.box, voxels),
            "libwkw": lambda: reference.write((0, 0, 0), voxels),
        }[who]
        group = f"write {kind} {dtype}"
        measure(benchmark, scene, group, who, call, most=2 if kind == "lz4hc" else 99)
    written = volume if who == "wkdask" else WkwVolume.open(tmp_path / "theirs")
    path = Path(written.file_path((0, 0, 0)))
    scene.bytes[group, who] = benchmark.extra_info["file_bytes"] = path.stat().st_size
    # Each is read by the other one.
    found = reader({"wkdask": "libwkw", "libwkw": "wkdask"}[who], written, scene.box)()
    assert np.array_equal(found, voxels)
    path.unlink()


def test_sizes(scene: Scene) -> None:
    for (group, who), size in scene.bytes.items():
        if who == "wkdask" and (group, "libwkw") in scene.bytes:
            most = 1.1 if group == "write lz4hc uint32" else 1.01
            assert size <= most * scene.bytes[group, "libwkw"], group


FIRST_READ = {
    "wkdask": """
import sys, time
from wkdask.storage.wkw import WkwVolume
start = time.perf_counter()
WkwVolume.open(sys.argv[1]).read((range(40), range(40), range(40)))
print(time.perf_counter() - start)
""",
    "libwkw": """
import sys, time
import wkw
start = time.perf_counter()
wkw.Dataset.open(sys.argv[1]).read((0, 0, 0), (40, 40, 40))
print(time.perf_counter() - start)
""",
}
FIRST_READ_MORE_SECONDS = 0.05


@pytest.mark.slow
def test_first_read_in_a_fresh_process(scene: Scene) -> None:
    """Without imports, and with numba's machine code on the disk."""
    volume = scene.written("uint8", "lz4")
    taken = {who: sorted(first_read(who, volume, scene.rounds)) for who in WHO}
    for who, seconds in taken.items():
        scene.seconds["first read", who] = statistics.median(seconds), seconds[0]
    # On a busy machine the best of some says what the code can do.
    assert taken["wkdask"][0] < taken["libwkw"][0] + FIRST_READ_MORE_SECONDS


def first_read(who: str, volume: WkwVolume, rounds: int) -> list[float]:
    path = [str(Path(wkdask.__file__).parents[1]), os.environ.get("PYTHONPATH", "")]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, path))}
    command = [sys.executable, "-c", FIRST_READ[who], volume.path]
    runs = [
        subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
        for _ in range(max(3, rounds))  # the first one may have to compile
    ]
    return [float(run.stdout) for run in runs]


def test_table(
    scene: Scene, request: pytest.FixtureRequest, capsys: pytest.CaptureFixture[str]
) -> None:
    """Print how many times faster wkdask was; the last test, so that all others have run."""
    reporter = request.config.pluginmanager.get_plugin("terminalreporter")
    lines = list(table(scene))
    if scene.rounds > 1 and reporter is not None:
        with capsys.disabled():
            reporter.ensure_newline()
            for line in lines:
                reporter.write_line(line)


def table(scene: Scene) -> Iterator[str]:
    yield f"{f'{scene.edge} cubed':32} {'wkdask ms':>10} {'libwkw ms':>10} {'times faster':>12}"
    yield f"{'':32} {'median':>10} {'median':>10} {'median':>6} {'best':>5} {'size':>5} target"
    groups = dict.fromkeys(group for group, _ in scene.seconds)
    for group in groups:
        if (group, "wkdask") not in scene.seconds or (group, "libwkw") not in scene.seconds:
            continue
        (mine, best), (theirs, their_best) = (scene.seconds[group, who] for who in WHO)
        sizes = [scene.bytes.get((group, who), 0) for who in WHO]
        size = f"{sizes[0] / sizes[1]:5.2f}" if all(sizes) else " " * 5
        yield (
            f"{group:32} {mine * 1e3:10.2f} {theirs * 1e3:10.2f} {theirs / mine:6.2f} "
            f"{their_best / best:5.2f} {size} {target_of(group)}"
        )


def target_of(group: str) -> str:
    """Return what was asked for; the longest name that begins like the group counts."""
    names = [name for name in TARGETS if group.startswith(name)]
    return str(TARGETS[max(names, key=len)]) if names else "-"
