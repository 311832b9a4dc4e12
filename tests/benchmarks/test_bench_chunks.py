"""What it costs to run a function over many chunks.

Run with `pytest tests/benchmarks/test_bench_chunks.py --benchmark-enable -s`: it prints ratios to
plain `Client.map` and the memory of the client. Without that option a few hundred chunks are run
once, and only results are compared.
"""

from __future__ import annotations

import resource
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import Any

import dask
import pytest

import wkdask
from wkdask.runtime.cluster import launch_calls, on_cluster
from wkdask.runtime.pickling import unpacked
from wkdask.runtime.queues import WAITING
from wkdask.storage.header import VolumeHeader

pytest.importorskip("pytest_benchmark")

EDGE = 8


@pytest.fixture
def is_measured(request: pytest.FixtureRequest) -> bool:
    option = request.config.getoption
    return bool(option("benchmark_enable") or not option("benchmark_disable"))


def planned(chunks: tuple[int, int, int]) -> wkdask.View:
    """A read-only view of so many chunks; nothing of it is on the disk."""
    header = VolumeHeader("uint8", block_edge=EDGE, blocks_per_file_edge=1)
    size = [count * EDGE for count in chunks]
    return wkdask.View("nowhere", header.to_wkw(), size, read_only=True)


def seconds_of(call: Callable[[], Any]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def most_resident() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def say(text: str) -> None:
    sys.stdout.write(f"\n{text}\n")


def nothing(_: object) -> None:
    pass


@pytest.mark.slow
def test_trivial_chunks_beside_client_map(client: Any, is_measured: bool) -> None:
    """10,000 chunks on 2 worker processes; what was asked for is at most 1.2 times the time."""
    shape = (100, 10, 10) if is_measured else (10, 5, 4)
    view, count = planned(shape), shape[0] * shape[1] * shape[2]

    def trivial(_: object) -> None:  # a closure, which workers need not import
        pass

    def plain() -> None:
        client.gather(client.map(trivial, range(count), pure=False))

    def ours() -> None:
        view.for_each_chunk(trivial, EDGE, client)

    assert view.for_each_chunk(trivial, EDGE, client).done == count
    if not is_measured:
        return
    ratios = []
    for _ in range(3):
        seconds = []
        for each in (ours, plain):
            # What the scheduler forgets after a run must not slow down the next one.
            while client.run_on_scheduler(lambda dask_scheduler: len(dask_scheduler.tasks)):
                time.sleep(0.05)
            seconds.append(seconds_of(each))
        ratios.append(seconds[0] / seconds[1])
    say(f"{count} trivial chunks: {statistics.median(ratios):.2f} times Client.map {ratios}")


def test_memory_of_a_million_chunks(is_measured: bool) -> None:
    """Without a cluster, so that only our own bookkeeping is seen; below 100 MB was asked for."""
    shape = (100, 100, 100) if is_measured else (10, 10, 10)
    with dask.config.set(scheduler="synchronous"):
        planned((10, 10, 10)).for_each_chunk(nothing, EDGE)
        before = most_resident()
        report = planned(shape).for_each_chunk(nothing, EDGE)
    grown = most_resident() - before
    assert report.done == shape[0] * shape[1] * shape[2]
    assert grown < 100e6
    if is_measured:
        say(f"{report.done} chunks: {grown / 1e6:.1f} MB more than before")


def test_time_to_the_first_chunk(client: Any, is_measured: bool) -> None:
    """One million chunks on a cluster; below 1 s was asked for. The first one ends the run."""
    view = planned((100, 100, 100))

    def tell(chunk: Any) -> None:
        raise ZeroDivisionError(time.time())

    view.get_view(size=(EDGE,) * 3).for_each_chunk(nothing_here(), EDGE, client)
    start = time.time()
    with pytest.raises(ZeroDivisionError) as raised:
        view.for_each_chunk(tell, EDGE, client)
    if is_measured:
        say(f"first of a million chunks after {raised.value.args[0] - start:.2f} s")


def test_time_between_stages(client: Any, is_measured: bool) -> None:
    """Each task waits for the one before, as stages of a pyramid do; 20 ms were asked for."""
    count, length = (20, 0.5) if is_measured else (3, 0.05)

    def slow(_: object) -> tuple[float, float]:
        start = time.time()
        time.sleep(length)
        return start, time.time()

    ended: list[bool] = []

    def stages() -> Iterator[object]:
        for i in range(count):
            while len(ended) < i:
                yield WAITING
            yield i

    times = []
    for outcome in on_cluster(
        client, launch_calls(client, slow, "stage"), stages(), unpack=unpacked
    ):
        times.append(outcome.value)
        ended.append(True)
    gaps = [start - end for (_, end), (start, _) in pairwise(times)]
    assert len(times) == count
    if is_measured:
        say(f"the next stage begins after {1000 * statistics.median(gaps):.1f} ms, {gaps}")


def nothing_here() -> Callable[[object], None]:
    return lambda _: None
