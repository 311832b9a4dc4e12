"""wkdask beside the libraries that do the same, on the same voxels, alternating in one run.

    python tests/benchmarks/peers.py --edge 512 --json peers.json --picture peers.png

Libraries that are not installed are left out: `wkw`, `webknossos`, `tensorstore`, `zarr` and
`tinybrain` are known. Every result is compared before anything is timed. Igneous and cloud-volume
read neither WKW nor Zarr v3, so that they can't be given the same files.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import importlib.util
import json
import os
import platform
import shutil
import statistics
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from distributed import Client, LocalCluster
from voxels import DTYPES, Voxels, voxels_of

import wkdask
from wkdask import BoundingBox
from wkdask.grids import region_of
from wkdask.kernels import downsample
from wkdask.storage.header import VolumeHeader
from wkdask.storage.opening import new_layout
from wkdask.storage.wkw import WkwVolume
from wkdask.storage.zarr import ZarrVolume

OURS = "wkdask"
LIBRARIES = ("wkw", "webknossos", "tensorstore", "zarr", "tinybrain")
MAGS = (2, 4, 8)
LONG_SECONDS = 4
"""What takes so long is timed once."""


@dataclass(frozen=True)
class Case:
    """Something that several libraries do."""

    name: str
    calls: dict[str, Callable[[Any], Any]]
    """By library; each takes what was prepared for it, and returns what is compared."""
    prepare: Callable[[str], Any] = lambda who: None
    """Makes ready what a call of a library takes; its time does not count."""
    same: Callable[[Any, Any], bool] = lambda ours, theirs: np.array_equal(ours, theirs)


@dataclass
class Result:
    """The seconds of one library in one case."""

    case: str
    who: str
    seconds: list[float] = field(default_factory=list)

    @property
    def median(self) -> float:
        return statistics.median(self.seconds)


@dataclass(frozen=True)
class Scene:
    """Where the volumes lie, and what they hold."""

    directory: Path
    edge: int
    voxels: dict[str, Voxels]
    """By layer."""

    @property
    def box(self) -> BoundingBox:
        return BoundingBox((0, 0, 0), (self.edge,) * 3)

    def path(self, *names: str) -> Path:
        return self.directory / "-".join(names)


# --- cases --------------------------------------------------------------------------------------


def planes(scene: Scene) -> dict[str, BoundingBox]:
    """Return what is read of a volume."""
    sizes = {"xy": (1, 1, 0), "xz": (1, 0, 1), "yz": (0, 1, 1)}
    middle = scene.edge // 2 + 5
    return {"all": scene.box} | {
        f"plane {name}": BoundingBox(
            [0 if long else middle for long in axes], [scene.edge if long else 1 for long in axes]
        )
        for name, axes in sizes.items()
    }


def wkw_reads(scene: Scene) -> Iterator[Case]:
    """Whole reads and planes of one file of WKW, by one thread."""
    import wkw

    for layer, dtype in DTYPES.items():
        for kind in ("raw", "lz4"):
            path = scene.path("read", layer, kind)
            header = VolumeHeader(dtype, 1, 32, scene.edge // 32, kind)
            with wkw.Dataset.create(str(path), header.to_wkw()) as reference:
                reference.write((0, 0, 0), scene.voxels[layer])
            volume, theirs = WkwVolume.open(path), wkw.Dataset.open(str(path))
            for what, box in planes(scene).items():
                calls = {
                    OURS: lambda _, v=volume, b=box: v.read(region_of(b)),
                    "wkw": lambda _, t=theirs, b=box: t.read(b.topleft, b.size),
                }
                yield Case(f"read {what}, WKW {kind} {dtype}", calls)


def wkw_writes(scene: Scene) -> Iterator[Case]:
    """Writes of one file of WKW, by one thread."""
    import wkw

    for layer, dtype in DTYPES.items():
        for kind in ("raw", "lz4", "lz4hc"):
            voxels = scene.voxels[layer][None]
            header = VolumeHeader(dtype, 1, 32, scene.edge // 32, kind)
            volume = WkwVolume.create(scene.path("write", layer, kind, "ours"), header)
            path = scene.path("write", layer, kind, "theirs")
            theirs = wkw.Dataset.create(str(path), header.to_wkw())

            def ours(_: object, volume: Any = volume, voxels: Voxels = voxels) -> Path:
                volume.write(scene.box, voxels)
                return Path(volume.path)

            def others(
                _: object, theirs: Any = theirs, voxels: Voxels = voxels, path: Path = path
            ) -> Path:
                theirs.write((0, 0, 0), voxels)
                return path

            def same(ours: Path, theirs: Path, voxels: Voxels = voxels) -> bool:
                found = [WkwVolume.open(path).read(region_of(scene.box)) for path in (ours, theirs)]
                return all(np.array_equal(each, voxels) for each in found)

            name = f"write all, WKW {kind} {dtype}"
            yield Case(name, {OURS: ours, "wkw": others}, same=same)


def zarr_reads(scene: Scene) -> Iterator[Case]:
    """Reads of one shard of Zarr v3, by one thread each."""
    for layer, dtype in DTYPES.items():
        layout = new_layout("zarr3", dtype, 1, 32, scene.edge // 32)
        volume = ZarrVolume.create(scene.path("zarr", layer), layout)
        volume.write(scene.box, scene.voxels[layer][None])
        for what, box in planes(scene).items():
            part = (slice(None), *map(slice, box.topleft, box.bottomright))
            calls: dict[str, Callable[[Any], Any]] = {
                OURS: lambda _, v=volume, b=box: v.read(region_of(b))
            }
            if has("tensorstore"):
                array = opened_by_tensorstore(volume.path)
                calls["tensorstore"] = lambda _, a=array, p=part: a[p].read().result()
            if has("zarr"):
                calls["zarr"] = lambda _, path=volume.path, p=part: read_by_zarr(path, p)
            yield Case(f"read {what}, Zarr zstd {dtype}", calls)


def opened_by_tensorstore(path: str) -> Any:
    import tensorstore as ts

    one = {"data_copy_concurrency": {"limit": 1}, "file_io_concurrency": {"limit": 1}}
    place = {"driver": "zarr3", "kvstore": {"driver": "file", "path": path}}
    return ts.open(place, context=ts.Context(one)).result()


def read_by_zarr(path: str, part: tuple[slice, ...]) -> Any:
    import zarr

    with zarr.config.set({"async.concurrency": 1, "threading.max_workers": 1}):
        return zarr.open_array(path, mode="r")[part]


def kernels(scene: Scene) -> Iterator[Case]:
    """Downsampling in memory by 2 x 2 x 2, by one thread."""
    import tinybrain

    grey = np.asfortranarray(scene.voxels["color"])[None]
    same_order = np.ascontiguousarray(scene.voxels["color"])
    yield Case(
        "downsample in memory, max of 2-2-2, uint8",
        {
            OURS: lambda _: downsample(grey, (2, 2, 2), "max")[0],
            "tinybrain": lambda _: tinybrain.downsample_with_max_pooling(same_order, (2, 2, 2))[0],
        },
    )


def pyramids(scene: Scene) -> Iterator[Case]:
    """Mags 2, 4 and 8 of a layer; two threads, two processes, and two processes of webknossos."""
    dataset = wkdask.create(scene.path("pyramid"), (8, 8, 8))
    for name, dtype in DTYPES.items():
        layer = dataset.add_layer(name, name, dtype, bounding_box=scene.box)
        layer.add_mag(1, block_type="lz4", blocks_per_file_edge=16).write(scene.voxels[name])
    cluster = LocalCluster(
        n_workers=2, threads_per_worker=1, host="127.0.0.1", dashboard_address="127.0.0.1:0"
    )
    with cluster, Client(cluster, set_as_default=False) as client:
        for name, dtype in DTYPES.items():

            def ours(path: Path, executor: Any, name: str = name) -> Any:
                layer = wkdask.open(path)[name]
                layer.downsample(mags=MAGS, executor=executor)
                return layer

            calls = {
                OURS: lambda path, ours=ours: ours(path, None),
                f"{OURS}, 2 processes": lambda path, ours=ours: ours(path, client),
            }
            if has("webknossos"):
                calls["webknossos"] = lambda path, name=name: downsampled_by_webknossos(path, name)
            yield Case(
                f"mags 2, 4, 8, {dtype}", calls, lambda who: fresh(scene, who), same=same_mags
            )


def downsampled_by_webknossos(path: Path, name: str) -> Any:
    import webknossos

    options = argparse.Namespace(distribution_strategy="multiprocessing", jobs=2)
    layer = webknossos.Dataset.open(path).get_layer(name)
    with webknossos.utils.get_executor_for_args(options) as executor:
        layer.downsample(coarsest_mag=webknossos.Mag(8), executor=executor)
    return wkdask.open(path)[name]


def fresh(scene: Scene, who: str) -> Path:
    """Return a copy of the dataset in which nothing was made yet."""
    path = scene.path("pyramid", who.replace(" ", "-"))
    shutil.rmtree(path, ignore_errors=True)
    shutil.copytree(scene.path("pyramid"), path, copy_function=os.link)
    said = path / "datasource-properties.json"
    data = said.read_bytes()
    said.unlink()  # a link to that of the source, which stays
    said.write_bytes(data)
    return path


def same_mags(ours: Any, theirs: Any) -> bool:
    return all(wkdask.equal(ours[mag], theirs[mag]) for mag in MAGS)


CASES = {
    "reads": (wkw_reads, "wkw"),
    "writes": (wkw_writes, "wkw"),
    "zarr": (zarr_reads, "numcodecs"),
    "kernels": (kernels, "tinybrain"),
    "pyramids": (pyramids, "numba"),
}
"""What makes the cases, and what has to be installed for any of them."""


def has(library: str) -> bool:
    """Return whether a library is installed."""
    return importlib.util.find_spec(library) is not None


# --- timing -------------------------------------------------------------------------------------


def timed(case: Case, who: str) -> tuple[float, Any]:
    prepared = case.prepare(who)
    start = time.perf_counter()
    found = case.calls[who](prepared)
    return time.perf_counter() - start, found


def run(case: Case, rounds: int) -> list[Result]:
    """Compare what the libraries make, then time them, one after the other in each round."""
    results = {who: Result(case.name, who) for who in case.calls}
    expected = None
    for who, result in results.items():
        took, found = timed(case, who)
        expected = found if who == OURS else expected
        if not case.same(expected, found):
            raise AssertionError(f"{case.name}: {who} and {OURS} differ")
        if took > LONG_SECONDS:
            result.seconds.append(took)
        del found
    for _ in range(rounds):
        for who, result in results.items():
            if not result.seconds or result.seconds[0] <= LONG_SECONDS:
                result.seconds.append(timed(case, who)[0])
    return list(results.values())


# --- what is shown ------------------------------------------------------------------------------


def table(results: list[Result]) -> str:
    """Return the results as a table in Markdown."""
    lines = [
        "| what | library | median | least to most | rounds | times as long as wkdask |",
        "|---|---|---|---|---|---|",
    ]
    ours = {each.case: each.median for each in results if each.who == OURS}
    for each in results:
        low, high = min(each.seconds) * 1e3, max(each.seconds) * 1e3
        ratio = "" if each.who == OURS else f"{each.median / ours[each.case]:.2f}"
        name = each.case if each.who == OURS else ""
        lines.append(
            f"| {name} | {each.who} | {each.median * 1e3:.1f} ms | {low:.1f} to {high:.1f} | "
            f"{len(each.seconds)} | {ratio} |"
        )
    return "\n".join(lines)


def facts(arguments: argparse.Namespace) -> dict[str, Any]:
    """Return what the figures depend on."""
    installed = [OURS, *(name for name in LIBRARIES if has(name))]
    return {
        "edge": arguments.edge,
        "volume": "real" if arguments.volume else "synthetic tissue",
        "cores": len(os.sched_getaffinity(0)),
        "machine": platform.machine(),
        "python": platform.python_version(),
        "versions": {name: importlib.metadata.version(name) for name in installed},
    }


def draw(results: list[Result], path: str) -> None:
    """Draw how many times as long the others take, on a logarithmic axis."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    ours = {each.case: each.median for each in results if each.who == OURS}
    others = [each for each in results if each.who != OURS][::-1]
    libraries = list(dict.fromkeys(each.who for each in others[::-1]))
    figure, axes = pyplot.subplots(figsize=(8, 0.19 * len(others) + 1), layout="constrained")
    for at, each in enumerate(others):
        color = f"C{libraries.index(each.who)}"
        ratio = each.median / ours[each.case]
        axes.barh(at, ratio - 1, left=1, color=color, height=0.7)
        axes.text(max(ratio, 1) * 1.04, at, f"{ratio:.1f}", va="center", fontsize=6)
    axes.set_xscale("log")
    axes.axvline(1, color="black", linewidth=0.8)
    axes.set_yticks(range(len(others)), [f"{e.case}: {e.who}" for e in others], fontsize=6)
    axes.set_ylim(-0.6, len(others) - 0.4)
    axes.set_xlabel("times as long as wkdask", fontsize=7)
    axes.tick_params("x", labelsize=7)
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=130)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--volume", type=Path, help="a dataset with layers color and segmentation")
    parser.add_argument("--edge", type=int, default=256, help="voxels per axis, a multiple of 32")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--only", nargs="+", choices=CASES, default=list(CASES))
    parser.add_argument("--json", type=Path, help="a file for the figures")
    parser.add_argument("--picture", help="a file for a drawing of the ratios")
    return parser.parse_args()


def say(text: str) -> None:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


def main(given: argparse.Namespace) -> list[Result]:
    """Run the cases and show the results."""
    results: list[Result] = []
    with tempfile.TemporaryDirectory() as directory, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        voxels = {name: voxels_of(given.volume, name, given.edge) for name in DTYPES}
        scene = Scene(Path(directory), given.edge, voxels)
        for name in given.only:
            cases, library = CASES[name]
            if not has(library):
                say(f"{name}: {library} is not installed")
                continue
            for case in cases(scene):
                results += run(case, given.rounds)
                say(case.name)
    say(f"\n{json.dumps(facts(given))}\n\n{table(results)}")
    if given.json:
        found = {"facts": facts(given), "results": [asdict(each) for each in results]}
        given.json.write_text(json.dumps(found, indent=1) + "\n")
    if given.picture:
        draw(results, given.picture)
    return results


if __name__ == "__main__":
    main(arguments())
