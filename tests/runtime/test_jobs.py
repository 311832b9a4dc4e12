"""Jobs that end are submitted again while a run goes on; here they are processes of this machine.

What a real batch system does is in tests/whole/test_slurm.py.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import dask
import pytest
from distributed import Client, LocalCluster

from wkdask.runtime.jobs import Jobs
from wkdask.runtime.stream import stream_calls

pytestmark = [
    pytest.mark.slow,
    # dask-jobqueue leaves the streams of the processes that stand for jobs.
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]


@pytest.fixture(params=[1, 2], ids=["a process", "two processes"])
def jobs(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Any]:
    """A cluster whose jobs have one process each, or two."""
    local = pytest.importorskip("dask_jobqueue.local")
    count = request.param
    with (
        dask.config.set({"distributed.deploy.lost-worker-timeout": "1s"}),
        local.LocalCluster(
            cores=count, processes=count, memory="1GB", local_directory=str(tmp_path / "dask"),
            worker_extra_args=["--no-dashboard"],
            scheduler_options={"dashboard_address": "127.0.0.1:0", "host": "127.0.0.1"},
        ) as cluster,
    ):  # fmt: skip
        yield cluster


def wait_until(ready: Callable[[], object], seconds: float = 30) -> None:
    deadline = time.monotonic() + seconds
    while not ready():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_the_only_job_dies(jobs: Any, tmp_path: Path) -> None:
    folder = str(tmp_path)

    def work(i: int) -> int:
        Path(folder, f"begun-{i}-{os.getpid()}").touch()
        while i == 5 and not Path(folder, "go").exists():
            time.sleep(0.02)
        return i

    jobs.scale(jobs=1)
    with Client(jobs) as client, ThreadPoolExecutor(1) as thread:
        client.wait_for_workers(1)
        run = thread.submit(
            lambda: [each.value for each in stream_calls(work, range(40), client, name="work")]
        )
        wait_until(lambda: list(tmp_path.glob("begun-5-*")))
        (job,) = jobs.workers.values()
        os.kill(int(job.job_id), signal.SIGKILL)
        (tmp_path / "go").touch()
        assert sorted(run.result(60)) == list(range(40))
        (other,) = jobs.workers.values()
        assert other is not job


def test_what_is_left_alone(jobs: Any) -> None:
    """Jobs that work, and those that nobody wants, at first or any more."""
    with Client(jobs) as client:
        watched = Jobs(client)
        watched.look()
        assert jobs.workers == {}, "it wants none"
        jobs.scale(jobs=1)
        client.wait_for_workers(1)
        (job,) = jobs.workers.values()
        for _ in range(3):
            watched.look()
            time.sleep(0.6)
        assert list(jobs.workers.values()) == [job]
        jobs.scale(jobs=0)
        wait_until(lambda: not jobs.workers)
        time.sleep(1.2)
        watched.look()
        time.sleep(0.5)
        assert jobs.workers == {}


def test_other_clusters_have_no_jobs(cluster: LocalCluster) -> None:
    with Client(cluster, set_as_default=False) as client:
        Jobs(client).look()
    with Client(cluster.scheduler_address, set_as_default=False) as client:
        Jobs(client).look()
    assert len(cluster.workers) == 2
