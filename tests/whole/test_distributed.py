"""Everything that runs on a cluster of processes, on one of ours and on one made by commands."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import dask
import numpy as np
import pytest

import wkdask
from wkdask.errors import ArgumentError, ChunkErrors, FormatError, WkdaskError

# Functions for workers are closures: what a module of tests defines they could not import.

EDGE = 8  # of a file


def make_layer(path: Path, dtype: str = "uint8") -> wkdask.Layer:
    """Mags 1 (filled) and 2 (empty), 2 x 2 x 1 files of mag 1 and a bit, at an offset."""
    dataset = wkdask.create(path, voxel_size=(8, 8, 8))
    layer = dataset.add_layer(
        "color", "color", dtype, bounding_box=wkdask.BoundingBox((3, 0, 2), (19, 17, 8))
    )
    fine = layer.add_mag(1, block_edge=4, blocks_per_file_edge=2)
    layer.add_mag(2, block_edge=4, blocks_per_file_edge=2)
    data = np.random.default_rng(0).integers(0, 200, fine.shape).astype(dtype)
    fine.store(data)
    return layer


@pytest.fixture
def layer(tmp_path: Path) -> wkdask.Layer:
    return make_layer(tmp_path / "tissue")


# --- the routes, each on any cluster ----------------------------------------------------------


def adds(value: int) -> Callable[[Any], None]:
    def add(chunk: Any) -> None:
        view, _ = chunk
        view.write(view.read() + np.uint8(value))

    return add


def route_compute(layer: wkdask.Layer, client: Any) -> None:
    mag = layer[1]
    before = mag.get_view().read()
    np.testing.assert_array_equal(mag.to_dask().compute(), before)
    np.testing.assert_array_equal((mag[:, ::-3, 2:9, 1] + 1).compute(), before[:, ::-3, 2:9, 1] + 1)
    assert mag.to_dask().max().compute() == before.max()
    assert mag.to_xarray().isel(z=3).sum().compute() == before[..., 3].sum()


def route_store(layer: wkdask.Layer, client: Any) -> None:
    mag = layer[1]
    before = mag.get_view().read()
    mag.store(before + 1)
    np.testing.assert_array_equal(mag.get_view().read(), before + 1)
    mag.store(before + 2, executor=client)
    np.testing.assert_array_equal(mag.get_view().read(), before + 2)
    for executor in (None, client):
        # A task that runs twice would add 1 twice.
        with pytest.raises(ArgumentError, match=r"computed from .* itself"):
            mag.store(mag[:] + 1, executor=executor)
    np.testing.assert_array_equal(mag.get_view().read(), before + 2)


def route_for_each_chunk(layer: wkdask.Layer, client: Any) -> None:
    view = layer[1].get_view()
    before = view.read()
    view.for_each_chunk(adds(1))
    view.for_each_chunk(adds(2), executor=client)
    view.for_each_chunk(adds(4), compute=False).compute()
    np.testing.assert_array_equal(view.read(), before + 7)


def route_for_zipped_chunks(layer: wkdask.Layer, client: Any) -> None:
    source = layer[1].get_view((8, 0, 0), (8, 16, 8))
    target = layer[1].get_view((16, 0, 0), (8, 16, 8), read_only=True)
    target = wkdask.View(target.path, target.header, target.size, target.global_offset)

    def copy(chunks: Any) -> None:
        source, target, i = chunks
        target.write(source.read() + np.uint8(i))

    expected = source.read()
    for executor in (None, client):
        source.for_zipped_chunks(copy, target, executor=executor)
        np.testing.assert_array_equal(target.read()[:, :, :8], expected[:, :, :8])
        np.testing.assert_array_equal(target.read()[:, :, 8:], expected[:, :, 8:] + 1)


def route_downsample(layer: wkdask.Layer, client: Any) -> None:
    wkdask.downsample(layer[1], layer[2], "max")
    on_cluster = layer[2].get_view().read()
    assert on_cluster.any()
    layer[2].store(np.zeros(layer[2].shape, np.uint8))
    with ThreadPoolExecutor(1) as pool:
        wkdask.downsample(layer[1], layer[2], "max", executor=pool)
    np.testing.assert_array_equal(layer[2].get_view().read(), on_cluster)


# A pool of processes starts anew for each test.
PROCESS_POOL = pytest.param("process pool", marks=pytest.mark.slow)
ROUTES = [
    route_compute,
    route_store,
    route_for_each_chunk,
    route_for_zipped_chunks,
    route_downsample,
]


@pytest.mark.filterwarnings("ignore:writing parts of compressed files:RuntimeWarning")
@pytest.mark.parametrize("route", ROUTES)
def test_on_a_local_cluster(layer: wkdask.Layer, client: Any, route: Any) -> None:
    route(layer, client)


def test_the_work_is_done_by_the_workers(layer: wkdask.Layer, client: Any, tmp_path: Path) -> None:
    seen = str(tmp_path)

    def leave_pid(chunk: Any) -> None:
        Path(seen, f"{os.getpid()}-{chunk[1]}").touch()

    view = layer[1].get_view(read_only=True)
    workers = set(client.run(os.getpid).values())
    for executor in (None, client):
        view.for_each_chunk(leave_pid, executor=executor)
        pids = {int(name.split("-")[0]) for name in os.listdir(seen) if "-" in name}
        assert pids
        assert pids <= workers
    with ThreadPoolExecutor(1) as pool:
        view.for_each_chunk(leave_pid, executor=pool)
    assert (Path(seen) / f"{os.getpid()}-0").exists(), "an executor that is given beats the client"


def test_each_chunk_runs_once(layer: wkdask.Layer, client: Any, tmp_path: Path) -> None:
    folder = str(tmp_path)

    def note(chunk: Any) -> None:
        view, i = chunk
        with open(os.path.join(folder, f"chunk-{i}"), "a") as file:
            file.write(f"{view.global_offset} {view.size}\n")

    layer[1].get_view(read_only=True).for_each_chunk(note, 8)
    notes = {path.name: path.read_text().splitlines() for path in tmp_path.glob("chunk-*")}
    grid = list(layer[1].bounding_box.chunk((8, 8, 8), (8, 8, 8)))
    assert notes == {f"chunk-{i}": [f"{box.topleft} {box.size}"] for i, box in enumerate(grid)}, (
        "x outermost, z fastest, clipped at the view"
    )


# --- errors -----------------------------------------------------------------------------------


class NoSegmentError(LookupError):
    """An error with an own constructor and data."""

    def __init__(self, segment: int) -> None:
        super().__init__(segment)
        self.segment = segment


def failing(numbers: set[int], error: type[Exception], *args: Any) -> Callable[[Any], None]:
    def fail(chunk: Any) -> None:
        if chunk[1] in numbers:
            raise error(*args)

    return fail


@contextlib.contextmanager
def executor_named(name: str, client: Any) -> Iterator[Any]:
    if name == "active client":
        yield None
    elif name == "client":
        yield client
    elif name == "threads":
        with dask.config.set(scheduler="threads"):
            yield None
    else:
        with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
            yield pool


@pytest.mark.parametrize("name", ["active client", "client", "threads", PROCESS_POOL])
@pytest.mark.parametrize(
    ("error", "args"), [(KeyError, ("no soma",)), (FormatError, ("bad",)), (OSError, (28, "full"))]
)
def test_an_exception_keeps_its_type_and_names_its_chunk(
    layer: wkdask.Layer, client: Any, name: str, error: type[Exception], args: Any
) -> None:
    view = layer[1].get_view(read_only=True)
    with executor_named(name, client) as executor, pytest.raises(error) as info:
        view.for_each_chunk(failing({4}, error, *args), executor=executor)
    assert type(info.value) is error
    assert info.value.args == args
    assert "in chunk 4, x [3, 8), y [16, 17), z [2, 8)" in note_of(info.value)


def note_of(error: BaseException) -> str:
    return "\n".join(getattr(error, "__notes__", []))


@pytest.mark.parametrize("name", ["active client", "threads", PROCESS_POOL])
def test_collect_runs_all_and_reports_all(
    layer: wkdask.Layer, client: Any, tmp_path: Path, name: str
) -> None:
    folder = str(tmp_path)

    def work(chunk: Any) -> None:
        Path(folder, f"chunk-{chunk[1]}").touch()
        if chunk[1] % 5 == 0:
            raise ZeroDivisionError(chunk[1])

    view = layer[1].get_view(read_only=True)
    with executor_named(name, client) as executor, pytest.raises(ChunkErrors) as info:
        view.for_each_chunk(work, executor=executor, on_error="collect")
    count = len(list(view.bounding_box.chunk((8, 8, 8), (8, 8, 8))))
    assert len(list(tmp_path.glob("chunk-*"))) == count
    errors = info.value.exceptions
    assert [error.args for error in errors] == [(i,) for i in range(0, count, 5)]
    assert all(type(error) is ZeroDivisionError for error in errors)
    assert all(f"in chunk {error.args[0]}, x [" in note_of(error) for error in errors)
    assert str(count) in str(info.value)


def test_an_error_that_cannot_travel_is_told(layer: wkdask.Layer, client: Any) -> None:
    def work(chunk: Any) -> None:
        class Local(Exception):  # noqa: N818
            def __init__(self, one: int, two: int) -> None:
                super().__init__("one argument only, so that it can't be made again")

        raise Local(1, 2)

    view = layer[1].get_view((8, 0, 2), (8, 8, 6), read_only=True)
    with pytest.raises(ChunkErrors) as info:
        view.for_each_chunk(work, on_error="collect")
    (error,) = info.value.exceptions
    assert isinstance(error, WkdaskError)
    assert "one argument only" in str(error)
    assert "in chunk 0" in note_of(error)


@pytest.mark.parametrize(
    "name",
    ["active client", "client", "threads", PROCESS_POOL],
)
def test_after_a_failure_no_new_chunk_starts(
    layer: wkdask.Layer, client: Any, tmp_path: Path, name: str
) -> None:
    folder = str(tmp_path)

    def work(chunk: Any) -> None:
        Path(folder, f"chunk-{chunk[1]:04}").touch()
        with contextlib.suppress(FileExistsError), open(os.path.join(folder, "first"), "x"):
            raise ZeroDivisionError
        time.sleep(0.05)

    view = layer[1].get_view(read_only=True)
    chunks = len(list(view.bounding_box.chunk((1, 8, 8), (1, 8, 8))))
    assert chunks > 100
    with executor_named(name, client) as executor, pytest.raises(ZeroDivisionError):
        view.for_each_chunk(work, (1, 8, 8), executor=executor)
    time.sleep(0.3)  # what has started may end
    started = len(list(tmp_path.glob("chunk-*")))
    assert started < chunks / 2
    time.sleep(0.5)
    assert len(list(tmp_path.glob("chunk-*"))) == started


def test_an_unreadable_file_is_an_error_on_a_worker(layer: wkdask.Layer, client: Any) -> None:
    broken = Path(layer[1].volume.file_path((1, 1, 0)))
    broken.write_bytes(b"junk")
    with pytest.raises(FormatError, match=r"x1\.wkw") as info:
        layer[1].to_dask().compute()
    assert type(info.value) is FormatError
    with pytest.raises(FormatError, match=r"x1\.wkw"):
        layer[1].store(np.ones(layer[1].shape, np.uint8) * np.uint8(3))
    assert broken.read_bytes() == b"junk"


@pytest.mark.parametrize("executor", ["threads", 2, print, dask.threaded.get])
def test_no_executor(layer: wkdask.Layer, executor: Any) -> None:
    with pytest.raises(ArgumentError, match=r"executor is .* must be a distributed"):
        layer[1].get_view().for_each_chunk(print, executor=executor)


# --- paths and progress -----------------------------------------------------------------------


def test_relative_paths_mean_the_same_on_workers(
    tmp_path: Path, client: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_layer(tmp_path / "tissue")
    monkeypatch.chdir(tmp_path)
    assert set(client.run(os.getcwd).values()) != {str(tmp_path)}
    mag = wkdask.open("tissue")["color"][1]
    assert mag.to_dask().compute().any()
    mag.store(np.full(mag.shape, 9, np.uint8))
    view = wkdask.open_mag(os.path.join("tissue", "color", "1")).get_view((3, 0, 2), (19, 17, 8))
    assert os.path.isabs(view.path)
    assert (view.to_dask().compute() == 9).all()

    def check(chunk: Any) -> None:
        assert (chunk[0].read() == 9).all()

    wkdask.View("tissue/color/1", view.header, view.size, view.global_offset, read_only=True)
    view.get_view(read_only=True).for_each_chunk(check)


@pytest.mark.parametrize("name", ["active client", "threads", PROCESS_POOL])
def test_progress_is_shown_on_request(
    layer: wkdask.Layer, client: Any, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    view = layer[1].get_view(read_only=True)

    def nothing(chunk: Any) -> None:
        pass

    with executor_named(name, client) as executor:
        view.for_each_chunk(nothing, executor=executor)
        assert capsys.readouterr().err == ""
        view.for_each_chunk(nothing, executor=executor, progress=True)
        assert "100%" in capsys.readouterr().err
        layer[1].store(np.ones(view.shape, np.uint8), executor=executor, progress=True)
        assert "100%" in capsys.readouterr().err
        wkdask.downsample(layer[1], layer[2], executor=executor, progress=True)
        assert "100%" in capsys.readouterr().err
    assert (layer[2].get_view().read() == 1).all()


@pytest.mark.parametrize("name", ["active client", "threads"])
def test_progress_does_not_swallow_errors(layer: wkdask.Layer, client: Any, name: str) -> None:
    view = layer[1].get_view(read_only=True)
    with executor_named(name, client) as executor, pytest.raises(ZeroDivisionError):
        view.for_each_chunk(failing({2}, ZeroDivisionError), executor=executor, progress=True)


# --- a scheduler and workers started by commands ----------------------------------------------


@pytest.fixture(scope="module")
def commanded(commanded_cluster: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The scheduler file of `dask scheduler` with two workers of `dask worker`."""
    with commanded_cluster(tmp_path_factory.mktemp("commands")) as cluster:
        yield cluster.file


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:writing parts of compressed files:RuntimeWarning")
@pytest.mark.parametrize("route", ROUTES)
def test_on_a_cluster_made_by_commands(layer: wkdask.Layer, commanded: str, route: Any) -> None:
    from distributed import Client

    with Client(scheduler_file=commanded) as client:
        client.wait_for_workers(2, timeout=60)
        route(layer, client)


# --- kernels are compiled once ----------------------------------------------------------------

COMPILED = """
import numpy as np
from wkdask import kernels
from wkdask.kernels import blockwise

for mode in ("median", "mode", "mean"):
    kernels.downsample(np.ones((1, 4, 4, 4), np.uint8), (2, 2, 2), mode)
kept = [loop.stats for loop in vars(blockwise).values() if hasattr(loop, "stats")]
print(sum(sum(stats.cache_hits.values()) for stats in kept))
print(sum(sum(stats.cache_misses.values()) for stats in kept))
"""


def cache_use(cache: Path) -> tuple[int, int]:
    """Run three kernels in a fresh process; return how many loops came from the cache, or not."""
    environment = {**os.environ, "NUMBA_CACHE_DIR": str(cache)}
    output = subprocess.run(
        [sys.executable, "-c", COMPILED], env=environment, capture_output=True, check=True
    )
    hits, misses = map(int, output.stdout.split())
    return hits, misses


@pytest.mark.slow
def test_a_fresh_process_takes_its_kernels_from_disk(tmp_path: Path) -> None:
    hits, misses = cache_use(tmp_path)
    assert hits == 0
    assert misses >= 3, "one loop per mode, and what is inlined into it"
    assert cache_use(tmp_path) == (3, 0)


@pytest.mark.slow
def test_a_fresh_worker_takes_its_kernels_from_disk(layer: wkdask.Layer, client: Any) -> None:
    """Whatever this machine has compiled before, a restarted worker compiles nothing."""

    def cache_use() -> tuple[int, int]:
        from wkdask.kernels import blockwise

        kept = [loop.stats for loop in vars(blockwise).values() if hasattr(loop, "stats")]
        hits, misses = (stats.cache_hits for stats in kept), (stats.cache_misses for stats in kept)
        return sum(sum(hit.values()) for hit in hits), sum(sum(miss.values()) for miss in misses)

    wkdask.downsample(layer[1], layer[2])  # compiled now, if not before
    client.restart()
    wkdask.downsample(layer[1], layer[2])
    uses = client.run(cache_use).values()
    assert sum(hits for hits, _ in uses) >= 1
    assert all(misses == 0 for _, misses in uses)
