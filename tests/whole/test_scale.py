"""Many chunks and many worker threads: a real scheduler, and tasks that do nothing.

`WKDASK_TEST_CHUNKS=100000 pytest -m slow tests/whole/test_scale.py -s` prints the figures that
`docs/scale.md` quotes.
"""

from __future__ import annotations

import os
import statistics
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
from distributed import Client

import wkdask
from wkdask.runtime import config
from wkdask.storage.header import VolumeHeader

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3000)]
CHUNKS = int(os.environ.get("WKDASK_TEST_CHUNKS", 5_000))
WORKERS, THREADS = 4, 64
EDGE = 8


def planned(chunks: int) -> wkdask.View:
    """A read-only view of so many chunks; nothing of it is on the disk."""
    header = VolumeHeader("uint8", block_edge=EDGE, blocks_per_file_edge=1)
    size = (chunks // 50 * EDGE, 10 * EDGE, 5 * EDGE)
    return wkdask.View("nowhere", header.to_wkw(), size, read_only=True)


class Watch:
    """Asks from time to time how many tasks are in flight, until the block ends."""

    def __init__(self, client: Client) -> None:
        self.most = 0
        self._client = client
        self._ends = threading.Event()
        self._thread = threading.Thread(target=self._look)

    def __enter__(self) -> Watch:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ends.set()
        self._thread.join()

    def _look(self) -> None:
        while not self._ends.wait(0.2):
            self.most = max(self.most, tasks_in_flight(self._client))


def tasks_in_flight(client: Client) -> int:
    """Return how many tasks wait or run; those that have ended are known for a moment more."""
    # A lambda travels by value; the scheduler can't import this module.
    in_flight: int = client.run_on_scheduler(
        lambda dask_scheduler: sum(
            task.state not in ("memory", "released", "forgotten", "erred")
            for task in dask_scheduler.tasks.values()
        )
    )
    return in_flight


def known_tasks(client: Client) -> int:
    known: int = client.run_on_scheduler(lambda dask_scheduler: len(dask_scheduler.tasks))
    return known


def nothing_here() -> Callable[[object], None]:
    return lambda _: None


def seconds_of(client: Client, call: Callable[[], Any]) -> float:
    """Return how long a call takes, when the scheduler has forgotten what was before."""
    while known_tasks(client):
        time.sleep(0.05)
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def test_many_chunks(
    commanded_cluster: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    window = max(config.window(), 2 * WORKERS * THREADS)
    with (
        commanded_cluster(tmp_path, workers=WORKERS, threads=THREADS) as cluster,
        Client(scheduler_file=cluster.file) as client,
    ):
        client.wait_for_workers(WORKERS)
        function, view = nothing_here(), planned(CHUNKS)

        def by_map() -> None:
            for start in range(0, CHUNKS, window):
                count = min(window, CHUNKS - start)
                client.gather(client.map(function, range(start, start + count), pure=False))

        def ours() -> None:
            assert view.for_each_chunk(function, EDGE, client).done == CHUNKS

        planned(1000).for_each_chunk(function, EDGE, client)
        scheduler, here = psutil.Process(cluster.scheduler.pid), psutil.Process()
        before = [each.memory_info().rss for each in (here, scheduler)]
        times = sum(scheduler.cpu_times()[:2])
        with Watch(client) as watch:
            took = seconds_of(client, ours)
        times = sum(scheduler.cpu_times()[:2]) - times
        grown = [
            each.memory_info().rss - then
            for each, then in zip((here, scheduler), before, strict=True)
        ]
        rounds = 3 if CHUNKS <= 20_000 else 1
        others = [(seconds_of(client, by_map), seconds_of(client, ours)) for _ in range(rounds)]
        ratio = statistics.median(ours / theirs for theirs, ours in others)
    with capsys.disabled():
        sys.stdout.write(
            f"\n{CHUNKS} chunks, {WORKERS * THREADS} threads: {took / CHUNKS * 1e3:.2f} ms each, "
            f"{times / CHUNKS * 1e3:.2f} ms of the scheduler, {ratio:.2f} times Client.map in "
            f"windows of {window}; at most {watch.most} in flight; grown by MB: "
            f"client {grown[0] / 1e6:.0f}, scheduler {grown[1] / 1e6:.0f}\n"
        )
    assert watch.most <= window
    assert grown[0] < 100e6
