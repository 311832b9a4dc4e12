"""Whether chunks fit into memory is known before anything runs."""

from __future__ import annotations

import math
import os
from concurrent.futures import Executor, ThreadPoolExecutor
from typing import Any

import dask
import dask.array as da
import distributed.system
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import wkdask
from wkdask.errors import MemoryLimitError
from wkdask.geometry import BoundingBox, Vec3
from wkdask.runtime import executors, memory
from wkdask.runtime.executors import workers_of

MIB = 2**20
GIB = 2**30


class Pool(Executor):
    """Something that has workers, and is never asked to work."""

    def __init__(self, workers: int) -> None:
        self._max_workers = workers

    def submit(self, *call: Any, **options: Any) -> Any:
        raise AssertionError("nothing may run")


class Workers:
    """What a client says of its cluster."""

    def __init__(self, *workers: tuple[int, int]) -> None:
        self._workers = workers

    def scheduler_info(self, n_workers: int = 5) -> dict[str, Any]:
        assert n_workers == -1  # else it is only the first few
        return {
            "workers": {
                f"tcp://{i}": {"nthreads": threads, "memory_limit": limit}
                for i, (threads, limit) in enumerate(self._workers)
            }
        }


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine with 10 GiB."""
    monkeypatch.setattr("distributed.system.MEMORY_LIMIT", 10 * GIB)


def use(monkeypatch: pytest.MonkeyPatch, *workers: tuple[int, int]) -> None:
    monkeypatch.setattr(executors, "active_client", lambda executor: Workers(*workers))


# --- check_memory -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "workers"),
    [
        ({"scheduler": "synchronous", "num_workers": 7}, 1),
        ({"scheduler": "threads", "num_workers": 7}, 7),
        ({"scheduler": "processes", "num_workers": 3}, 3),
        ({"scheduler": "pool", "num_workers": 3}, 5),
    ],
)
def test_what_dask_is_configured_for(options: dict[str, Any], workers: int) -> None:
    with ThreadPoolExecutor(5) as pool:
        if options["scheduler"] == "pool":
            options = {**options, "scheduler": pool}
        with dask.config.set(options):
            assert workers_of(None) == workers
            assert [host.threads for host in executors.hosts_of(None)] == [workers]


@pytest.mark.usefixtures("machine")
@pytest.mark.parametrize(
    ("task_bytes", "tasks", "threads", "fits"),
    [
        (2 * GIB, 100, 4, True),  # 8 of 10 GiB is the share that may be filled
        (2 * GIB + 1, 100, 4, False),
        (2 * GIB, 100, 5, False),
        (2 * GIB, 4, 100, True),  # only so many tasks run at once
        (8 * GIB, 1, 100, True),
        (8 * GIB + 1, 1, 100, False),
        (1, 10**9, 2, True),
        (GIB, 0, 100, True),  # nothing to do
    ],
)
def test_this_machine(task_bytes: int, tasks: int, threads: int, fits: bool) -> None:
    if fits:
        memory.check_memory(task_bytes, (8, 8, 8), tasks, Pool(threads))
    else:
        with pytest.raises(MemoryLimitError, match="this machine"):
            memory.check_memory(task_bytes, (8, 8, 8), tasks, Pool(threads))


@pytest.mark.parametrize(
    ("workers", "task_bytes", "culprit"),
    [
        ([(2, 10 * GIB)], 4 * GIB, None),
        ([(2, 10 * GIB)], 4 * GIB + 1, "tcp://0"),
        ([(2, 10 * GIB), (2, 5 * GIB)], 4 * GIB, "tcp://1"),  # the smallest decides
        ([(2, 10 * GIB), (8, 10 * GIB)], 2 * GIB, "tcp://1"),  # or that with most threads
        ([(64, 0)], 100 * GIB, None),  # without a limit
        ([(64, 0), (1, GIB)], GIB, "tcp://1"),
        ([], 100 * GIB, None),  # none has come yet
    ],
)
def test_workers(
    monkeypatch: pytest.MonkeyPatch,
    workers: list[tuple[int, int]],
    task_bytes: int,
    culprit: str | None,
) -> None:
    use(monkeypatch, *workers)
    if culprit is None:
        memory.check_memory(task_bytes, (8, 8, 8), 1000, None)
    else:
        with pytest.raises(MemoryLimitError, match=f"worker {culprit} runs"):
            memory.check_memory(task_bytes, (8, 8, 8), 1000, None)


@pytest.mark.usefixtures("machine")
@pytest.mark.parametrize(
    ("task_bytes", "advice"), [(3 * GIB, "2 thread(s) per worker"), (9 * GIB, None)]
)
def test_error_says_what_would_fit(task_bytes: int, advice: str | None) -> None:
    with pytest.raises(MemoryLimitError) as caught:
        memory.check_memory(task_bytes, (1024, 1024, 512), 100, Pool(4))
    text = str(caught.value)
    wanted = ["(1024, 1024, 512)", "10.00 GiB", '"auto"', "check_memory=False", "4 at once"]
    assert all(part in text for part in wanted)
    assert f"{task_bytes / GIB:.2f} GiB" in text
    assert ("thread(s)" in text) == bool(advice)
    assert (advice or "") in text
    assert isinstance(caught.value, MemoryError | ValueError)


def test_advice_is_good(monkeypatch: pytest.MonkeyPatch) -> None:
    """With as many threads as the error names, the run is not refused; with one more it is."""
    monkeypatch.setattr("distributed.system.MEMORY_LIMIT", 10 * GIB)
    memory.check_memory(3 * GIB, (8, 8, 8), 100, Pool(2))
    with pytest.raises(MemoryLimitError):
        memory.check_memory(3 * GIB, (8, 8, 8), 100, Pool(3))


# --- auto_size --------------------------------------------------------------------------------


def cube_bytes(size: Vec3) -> int:
    return math.prod(size)


@pytest.mark.usefixtures("machine")
@given(
    smallest=st.sampled_from([4, 8, 32]),
    size=st.integers(1, 5000),
    threads=st.integers(1, 64),
    voxel_bytes=st.sampled_from([1, 8, 1000, 10**6]),
)
def test_largest_that_fits(smallest: int, size: int, threads: int, voxel_bytes: int) -> None:
    """The largest power of two that fits and leaves a chunk for every thread; by trying all."""

    def bytes_of(edge: int) -> int:
        return min(edge, size) ** 3 * voxel_bytes

    def chunks_of(edge: int) -> int:
        return (-(-size // edge)) ** 3

    limit = distributed.system.MEMORY_LIMIT * 0.8 // threads
    candidates = [smallest]
    while chunks_of(2 * candidates[-1]) < chunks_of(candidates[-1]):
        candidates.append(2 * candidates[-1])
    good = [e for e in candidates if bytes_of(e) <= limit and chunks_of(e) >= threads]
    expected = max(good, default=smallest)
    found = memory.auto_size(
        lambda cube: bytes_of(cube[0]),
        lambda cube: chunks_of(cube[0]),
        (smallest,) * 3,
        Pool(threads),
    )
    assert found == (expected,) * 3


@pytest.mark.usefixtures("machine")
def test_boxes_that_are_no_cubes_keep_their_ratio() -> None:
    limit = distributed.system.MEMORY_LIMIT * 0.8
    x, y, z = memory.auto_size(math.prod, lambda size: 10**9 // size[0], (4, 8, 2), Pool(1))
    assert (y, z) == (2 * x, x // 2)
    assert x * y * z <= limit < 8 * x * y * z


@pytest.mark.parametrize(
    ("workers", "edge"),
    [
        ([(1, 0)], 512),  # without a limit, one chunk for the one thread
        ([(8, 0)], 256),  # a chunk for every thread
        ([(8, 0), (1, 0)], 128),  # of all workers together
        ([(1, 64**3 * 10 // 8)], 64),
        ([(1, 64**3 * 10 // 8 - 10)], 32),
        ([(1, 0), (1, 64**3 * 10 // 8)], 64),  # the smallest worker decides
        ([(1, 1)], 8),  # nothing fits; whoever runs it is told by check_memory
        ([], 8),  # nobody knows
    ],
)
def test_workers_decide(
    monkeypatch: pytest.MonkeyPatch, workers: list[tuple[int, int]], edge: int
) -> None:
    use(monkeypatch, *workers)
    found = memory.auto_size(cube_bytes, lambda size: (512 // size[0]) ** 3, (8, 8, 8), None)
    assert found == (edge,) * 3


# --- runs -------------------------------------------------------------------------------------


@pytest.fixture
def mag(tissue: wkdask.Dataset) -> wkdask.MagView:
    """4 x 4 x 4 files of edge 8; uint8."""
    box = BoundingBox((0, 0, 0), (32, 32, 32))
    return tissue.add_layer("color", "color", "uint8", bounding_box=box).add_mag(1, 4, 2)


def never(chunk: Any) -> None:
    raise AssertionError("it was to be refused")


def task_bytes(voxels: int) -> int:
    """What a chunk function with a source and a result of so many voxels needs."""
    return 2 * voxels + memory.TASK_BYTES


class TestRuns:
    @pytest.fixture(autouse=True)
    def small_machine(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Room for two chunks of 16 voxels cubed, one chunk of 16 and one of 8, not two of 16."""
        wanted = 2 * task_bytes(16**3) - 1
        monkeypatch.setattr("distributed.system.MEMORY_LIMIT", int(wanted / 0.8))

    def test_refuses_before_anything_runs(self, mag: wkdask.MagView) -> None:
        with ThreadPoolExecutor(2) as pool:
            with pytest.raises(MemoryLimitError, match=r"\(16, 16, 16\)"):
                mag.for_each_chunk(never, 16, pool)
            with pytest.raises(MemoryLimitError):
                mag.for_each_chunk(never, 16, pool, resume="named")
            with pytest.raises(MemoryLimitError):
                mag.store(da.ones(mag.shape, dtype=np.uint8, chunks=(1, 32, 32, 16)), executor=pool)
        assert [*mag.volume.files()] == []
        assert sorted(os.listdir(mag.path)) == ["header.wkw"]

    def test_smaller_chunks_or_fewer_threads(self, mag: wkdask.MagView) -> None:
        with ThreadPoolExecutor(2) as two, ThreadPoolExecutor(1) as one:
            assert mag.for_each_chunk(lambda chunk: None, 8, two).done == 64
            assert mag.for_each_chunk(lambda chunk: None, 16, one).done == 8

    def test_clipped_chunks_take_less(self, mag: wkdask.MagView) -> None:
        """A chunk of a million voxels cubed in a view of 8 has 8 voxels."""
        part = mag.get_view((0, 0, 0), (8, 8, 8))
        with ThreadPoolExecutor(2) as pool:
            assert part.for_each_chunk(lambda chunk: None, 2**20, pool).done == 1

    def test_one_chunk_runs_alone(self, mag: wkdask.MagView) -> None:
        part = mag.get_view((0, 0, 0), (16, 16, 16))
        with ThreadPoolExecutor(64) as pool:
            assert part.for_each_chunk(lambda chunk: None, 16, pool).done == 1

    def test_override(self, mag: wkdask.MagView) -> None:
        with ThreadPoolExecutor(2) as pool:
            assert mag.for_each_chunk(lambda chunk: None, 16, pool, check_memory=False).done == 8
            ones = da.ones(mag.shape, dtype=np.uint8, chunks=(1, 32, 32, 16))
            assert mag.store(ones, executor=pool, check_memory=False).done == 2

    @pytest.mark.parametrize(("missing", "fits"), [(0, True), (1, False)])
    def test_zipped_counts_both(
        self,
        mag: wkdask.MagView,
        tissue: wkdask.Dataset,
        monkeypatch: pytest.MonkeyPatch,
        missing: int,
        fits: bool,
    ) -> None:
        target = tissue["color"].add_mag(2, 4, 2)
        wanted = 2 * (16**3 + 8**3 + memory.TASK_BYTES)
        monkeypatch.setattr("distributed.system.MEMORY_LIMIT", int(wanted / 0.8) + 1 - 4 * missing)
        with ThreadPoolExecutor(2) as pool:
            if not fits:
                with pytest.raises(MemoryLimitError, match=r"\(8, 8, 8\)"):
                    mag.for_zipped_chunks(never, target, 16, 8, pool)
            run = mag.for_zipped_chunks(lambda chunk: None, target, 16, 8, pool, check_memory=fits)
            assert run.done == 8

    def test_auto_fits_where_a_larger_one_does_not(self, mag: wkdask.MagView) -> None:
        seen: list[Any] = []
        with ThreadPoolExecutor(2) as pool:
            mag.for_each_chunk(lambda chunk: seen.append(chunk[0].size), "auto", pool)
        assert set(seen) == {(8, 8, 8)}
        with ThreadPoolExecutor(1) as pool:
            seen.clear()
            mag.for_each_chunk(lambda chunk: seen.append(chunk[0].size), "auto", pool)
        assert set(seen) == {(32, 32, 32)}


@pytest.mark.parametrize(
    ("threads", "edge"),
    [
        (1, 32),  # all of it
        (2, 16),  # 8 chunks, since 1 is less than the threads
        (8, 16),
        (9, 8),
        (64, 8),
        (1000, 8),  # a file is the smallest
    ],
)
def test_auto_leaves_a_chunk_for_every_thread(
    mag: wkdask.MagView, monkeypatch: pytest.MonkeyPatch, threads: int, edge: int
) -> None:
    monkeypatch.setattr("distributed.system.MEMORY_LIMIT", 2**50)
    boxes: list[BoundingBox] = []
    with ThreadPoolExecutor(threads) as pool:
        mag.for_each_chunk(lambda chunk: boxes.append(chunk[0].bounding_box), "auto", pool)
    assert {box.size for box in boxes} == {(edge, edge, edge)}
    assert sum(box.volume for box in boxes) == 32**3


def test_only_auto_is_a_word(mag: wkdask.MagView) -> None:
    with pytest.raises(wkdask.errors.ArgumentError, match='"auto" or numbers'):
        mag.for_each_chunk(never, "largest")  # type: ignore[arg-type]
