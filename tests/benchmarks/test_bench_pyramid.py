"""Speed of whole pyramids and of compressing, beside `webknossos` and the sum of the parts.

Run with `pytest tests/benchmarks/test_bench_pyramid.py -m '' --benchmark-enable --timeout 0`: the
last lines say how many times faster wkdask was, in the same run. Every benchmark is also a test:
without that option volumes are small. Voxels are compared with those of `webknossos`.

`WKDASK_BENCH_EDGE` sets the edge of the volumes in voxels, `WKDASK_BENCH_ROUNDS` the rounds of
ours; `webknossos`, which takes minutes, runs once.
"""

from __future__ import annotations

import os
import shutil
import statistics
import time
import warnings
from argparse import Namespace
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
from voxels import DTYPES, voxels_of

import wkdask
from wkdask.geometry import BoundingBox, Mag
from wkdask.pyramid.sampling import Downsampling
from wkdask.storage import codec

SMALL_EDGE, FULL_EDGE = 128, 1024
MAGS = (2, 4, 8)
JOBS = 2
# What `webknossos` asks of a command line.
PROCESSES = Namespace(distribution_strategy="multiprocessing", jobs=JOBS)
TARGETS = {
    "pyramid color": "30",
    "pyramid segmentation": "20",
    "compress color": "8",
    "parts color": "at most 1.3",
    "parts segmentation": "at most 1.3",
}


@dataclass
class Scene:
    """A dataset, and the seconds that were taken."""

    edge: int
    rounds: int
    directory: Path
    lines: list[str] = field(default_factory=list)

    def fresh(self, name: str) -> Path:
        """Return a copy of the dataset in which nothing was made yet."""
        path = self.directory / name
        shutil.rmtree(path, ignore_errors=True)
        shutil.copytree(self.directory / "source", path, copy_function=os.link)
        # The JSON is written to, unlike the files of mag 1.
        said = path / "datasource-properties.json"
        data = said.read_bytes()
        said.unlink()
        said.write_bytes(data)
        return path

    def tell(self, what: str, ours: float, other: str, theirs: float, ratio: float) -> None:
        speed = self.edge**3 / ours / 1e6
        self.lines.append(
            f"{what:22} {ours:8.3f} s {speed:7.0f} MVx/s   {other} {theirs:8.3f} s   "
            f"ratio {ratio:6.2f}   asked {TARGETS.get(what, '-')}"
        )


@pytest.fixture(scope="module")
def scene(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Scene]:
    option = request.config.getoption
    is_measured = option("benchmark_enable", False) or not option("benchmark_disable", True)
    edge = int(os.environ.get("WKDASK_BENCH_EDGE", FULL_EDGE if is_measured else SMALL_EDGE))
    rounds = int(os.environ.get("WKDASK_BENCH_ROUNDS", 5)) if is_measured else 1
    try:
        path: Path | None = request.getfixturevalue("real_volume")
    except pytest.skip.Exception:
        path = None
    scene = Scene(edge, rounds, tmp_path_factory.mktemp("pyramid"))
    box = BoundingBox((0, 0, 0), (edge,) * 3)
    dataset = wkdask.create(scene.directory / "source", (8, 8, 8))
    for name, dtype in DTYPES.items():
        layer = dataset.add_layer(name, name, dtype, bounding_box=box, largest_segment_id=None)
        layer.add_mag(1, block_type="raw" if name == "color" else "lz4hc").get_view().write(
            voxels_of(path, name, edge)
        )
    yield scene
    shutil.rmtree(scene.directory)


def timed(call: Callable[[], object]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def median_of(scene: Scene, prepare: Callable[[], Any], call: Callable[[Any], object]) -> float:
    seconds = []
    for _ in range(scene.rounds + (scene.rounds > 1)):  # the first one may have to compile
        prepared = prepare()
        seconds.append(timed(lambda: call(prepared)))  # noqa: B023
    return statistics.median(seconds[-scene.rounds :])


@pytest.mark.slow
@pytest.mark.parametrize("name", DTYPES)
def test_pyramid(scene: Scene, webknossos: Any, name: str) -> None:
    ours = median_of(
        scene,
        lambda: wkdask.open(scene.fresh("ours"))[name],
        lambda layer: layer.downsample(mags=MAGS, executor=None),
    )
    theirs_path = scene.fresh("theirs")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        layer = webknossos.Dataset.open(theirs_path).get_layer(name)
        with webknossos.utils.get_executor_for_args(PROCESSES) as executor:
            theirs = timed(
                lambda: layer.downsample(coarsest_mag=webknossos.Mag(8), executor=executor)
            )
    scene.tell(f"pyramid {name}", ours, "webknossos", theirs, theirs / ours)
    found = wkdask.open(scene.directory / "ours")[name]
    expected = wkdask.open(theirs_path)[name]
    for mag in MAGS:
        assert wkdask.equal(found[mag], expected[mag])


@pytest.mark.parametrize("name", DTYPES)
def test_sum_of_parts(scene: Scene, name: str) -> None:
    """Read, kernel and write of all pieces by bare threads, beside the whole run of mag 2."""
    layer = wkdask.open(scene.fresh("ours"))[name]
    source, box = layer[1].volume, layer.bounding_box
    mode = "median" if name == "color" else "mode"
    edge = min(256 if name == "color" else 128, scene.edge // 2)
    making = Downsampling(source, box, (2, 2, 2), mode)
    half = BoundingBox((0, 0, 0), [scene.edge // 2] * 3)
    pieces = list(half.chunk((edge,) * 3))
    header = replace(source.header, block_type="lz4hc")

    def work(piece: BoundingBox) -> int:
        voxels = making(piece)
        assert voxels is not None
        packer = codec.BlockPacker(header)
        path = scene.directory / f"part-{'-'.join(map(str, piece.topleft))}"
        with path.open("wb") as file:
            return sum(file.write(data) for data, _ in packer.pack(voxels))

    def parts(_: object) -> None:
        with ThreadPoolExecutor(JOBS) as pool:
            list(pool.map(work, pieces))

    bare = median_of(scene, lambda: None, parts)
    whole = median_of(
        scene,
        lambda: wkdask.open(scene.fresh("ours"))[name],
        lambda layer: layer.downsample(mags=[2], executor=None),
    )
    scene.tell(f"parts {name}", whole, "bare parts", bare, whole / bare)


@pytest.mark.slow
def test_compress(scene: Scene, webknossos: Any) -> None:
    def ours() -> Any:
        return wkdask.open(scene.fresh("ours"))["color"][1]

    seconds = median_of(scene, ours, lambda mag: mag.compress())
    path = scene.fresh("theirs")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        mag = webknossos.Dataset.open(path).get_layer("color").get_mag(1)
        with webknossos.utils.get_executor_for_args(PROCESSES) as executor:
            theirs = timed(lambda: mag.compress(executor=executor))
    scene.tell("compress color", seconds, "webknossos", theirs, theirs / seconds)
    found = wkdask.open(scene.directory / "ours")["color"][1]
    assert found.volume.header.block_type == "lz4hc"
    assert wkdask.equal(found, wkdask.open(scene.directory / "source")["color"][1])


def test_time_per_voxel(scene: Scene) -> None:
    """A volume of an eighth takes about an eighth of the time."""
    whole = wkdask.open(scene.fresh("ours"))["color"]
    part = wkdask.open(scene.fresh("part"))["color"]
    part.bounding_box = BoundingBox((0, 0, 0), [scene.edge // 2] * 3)

    def run(layer: wkdask.Layer) -> float:
        name = layer.dataset.path.name
        return median_of(
            scene,
            lambda: _with_box(scene.fresh(name), layer.bounding_box),
            lambda fresh: fresh.downsample(mags=MAGS),
        )

    many, few = run(whole), run(part)
    scene.tell("eight times as large", many, "an eighth ", few, many / 8 / few)
    assert Mag(8) in wkdask.open(scene.directory / "part")["color"].mags


def _with_box(path: Path, box: BoundingBox) -> wkdask.Layer:
    layer = wkdask.open(path)["color"]
    layer.bounding_box = box
    return layer


def test_table(
    scene: Scene, request: pytest.FixtureRequest, capsys: pytest.CaptureFixture[str]
) -> None:
    """Print what was measured; the last test, so that all others have run."""
    reporter = request.config.pluginmanager.get_plugin("terminalreporter")
    if scene.rounds > 1 and reporter is not None:
        with capsys.disabled():
            reporter.ensure_newline()
            for line in scene.lines:
                reporter.write_line(line)
