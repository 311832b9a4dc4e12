"""Runs under fire: workers, clients and schedulers that are killed or stopped, files that are bad.

Whatever happens, a run ends, done or with an error of ours; the same call again with `resume=True`
does the rest; and the voxels are those that NumPy computes. Processes are real and die by signals.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import dask
import numpy as np
import pytest
from distributed import Client, LocalCluster

import wkdask
from wkdask.errors import (
    BoundsError,
    ChunkErrors,
    ClusterError,
    FormatError,
    WorkerLostError,
)
from wkdask.runtime.cluster import WINDOW, _Window
from wkdask.storage.atomic import TEMPORARY_SUFFIX

# Functions for workers are closures: what a module of tests defines they could not import.

ADDED = 7
Function = Callable[[Any], object]
slow = pytest.mark.slow


@dataclass(frozen=True)
class Job:
    """A dataset with a layer `raw`, and an empty one `sum` that shall become raw + 7."""

    path: Path
    data: np.ndarray
    source: wkdask.MagView
    target: wkdask.MagView

    def run(self, function: Function | None = None, **options: Any) -> Any:
        return self.source.for_zipped_chunks(function or adding(), self.target, **options)

    def files_done(self) -> int:
        return sum(1 for _ in self.target.volume.files())

    def leftovers(self) -> list[Path]:
        return list(self.path.rglob(f"*{TEMPORARY_SUFFIX}"))

    def check(self) -> None:
        """Raise unless all is done and nothing else is left."""
        np.testing.assert_array_equal(self.target.get_view().read(), self.data + np.uint8(ADDED))
        assert self.leftovers() == []
        with dask.config.set(scheduler="threads"):
            assert wkdask.check(self.path, level=2).findings == ()


def make_job(path: Path, files: tuple[int, int, int] = (8, 4, 2), edge: int = 8) -> Job:
    box = wkdask.BoundingBox((0, 0, 0), [count * edge for count in files])
    dataset = wkdask.create(path, voxel_size=(8, 8, 8))
    source, target = (
        dataset.add_layer(name, "color", "uint8", bounding_box=box).add_mag(
            1, block_edge=edge, blocks_per_file_edge=1
        )
        for name in ("raw", "sum")
    )
    data = np.random.default_rng(0).integers(1, 200, source.shape).astype(np.uint8)
    with dask.config.set(scheduler="threads"):
        source.store(data)
    return Job(path, data, source, target)


@pytest.fixture
def job(tmp_path: Path) -> Job:
    return make_job(tmp_path / "tissue")


def adding(seconds: float = 0.0) -> Function:
    """Return the job's function, with a nap in which something may happen."""
    added = np.uint8(ADDED)

    def add(chunks: Any) -> None:
        source, target, _ = chunks
        time.sleep(seconds)
        target.write(source.read() + added)

    return add


def wait_for(ready: Callable[[], Any], what: str, seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not ready():
        assert time.monotonic() < deadline, f"waited in vain for {what}"
        time.sleep(0.01)


@contextlib.contextmanager
def local_client(folder: Path) -> Iterator[Client]:
    """The client of a cluster of processes with a thread each, which nannies start again."""
    with (
        # By default a nanny is given up if its worker is away 15 s after it was lost before.
        dask.config.set({"distributed.deploy.lost-worker-timeout": "1 hour"}),
        LocalCluster(
            n_workers=2,
            threads_per_worker=1,
            host="127.0.0.1",
            dashboard_address="127.0.0.1:0",
            local_directory=str(folder / "dask"),
        ) as cluster,
        Client(cluster, set_as_default=False) as client,
    ):
        yield client


@contextlib.contextmanager
def striking(job: Job, moments: Sequence[int], strike: Callable[[], None]) -> Iterator[list[int]]:
    """Meanwhile call `strike` whenever so many files are done; provide the moments it was."""
    is_over = threading.Event()
    struck: list[int] = []

    def watch() -> None:
        for moment in moments:
            while job.files_done() < moment:
                if is_over.wait(0.005):
                    return
            strike()
            struck.append(moment)

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield struck
    finally:
        is_over.set()
        thread.join()


@contextlib.contextmanager
def sampling(client: Client, measure: Callable[..., int]) -> Iterator[list[int]]:
    """Meanwhile call a function on the scheduler again and again; provide what it returns."""
    is_over = threading.Event()
    samples: list[int] = []

    def watch() -> None:
        while not is_over.wait(0.01):
            samples.append(client.run_on_scheduler(measure))

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield samples
    finally:
        is_over.set()
        thread.join()


def notes_of(error: BaseException) -> str:
    return "\n".join(getattr(error, "__notes__", []))


# --- workers that die ---------------------------------------------------------------------------


def worker_pids(client: Client) -> list[int]:
    nannies = list(client.cluster.workers.values())
    return [nanny.pid for nanny in nannies if getattr(nanny, "pid", None)]


def kill(pids: Sequence[int]) -> None:
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def kills_one(client: Client, rng: random.Random) -> None:
    kill(rng.sample(worker_pids(client), 1))


def kills_all(client: Client, rng: random.Random) -> None:
    kill(worker_pids(client))


def kills_some_at_their_start(client: Client, rng: random.Random) -> None:
    wait_for(lambda: len(worker_pids(client)) == 2, "the workers' processes")
    time.sleep(rng.uniform(0, 1.5))  # importing, connecting, or at work
    kill(rng.sample(worker_pids(client), rng.randint(1, 2)))


def start_lacking(client: Client) -> None:
    """Wait for two workers; start others where nannies give up, as they do at deaths in a start."""
    time.sleep(0.5)  # until it is known who died
    for seconds in (10, 30, 30):
        with contextlib.suppress(TimeoutError):
            return client.wait_for_workers(2, timeout=seconds)
        client.cluster.scale(0)
        wait_for(lambda: not client.cluster.workers, "an empty cluster")
        client.cluster.scale(2)
    raise AssertionError("the cluster has no two workers")


@pytest.fixture(scope="module")
def nannied(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Client]:
    with local_client(tmp_path_factory.mktemp("nannied")) as client:
        yield client


# who dies, how often
KILLS = {
    "one": (kills_one, 1),
    "several": (kills_one, 3),
    "all": (kills_all, 1),
    "start-up": (kills_some_at_their_start, 1),
}
IN_SHORT = [("one", 0)]


@pytest.mark.parametrize(
    ("who", "seed"),
    [
        pytest.param(who, seed, marks=() if (who, seed) in IN_SHORT else slow)
        for who in KILLS
        for seed in range(5)
    ],
)
def test_workers_are_killed(job: Job, nannied: Client, who: str, seed: int) -> None:
    strike, count = KILLS[who]
    rng = random.Random(f"{who} {seed}")
    moments = sorted(rng.choices(range(50), k=count))
    if who == "start-up":
        moments = [0]
        nannied.cluster.scale(0)
        wait_for(lambda: not nannied.nthreads() and not nannied.cluster.workers, "an empty cluster")
        nannied.cluster.scale(2)
    else:
        start_lacking(nannied)
    strikes = iter(range(1, count + 1))

    def strike_now() -> None:
        strike(nannied, rng)
        if next(strikes) == count:
            start_lacking(nannied)

    # It is done, or says what is lost; any other error is a failure.
    with striking(job, moments, strike_now) as struck, contextlib.suppress(ClusterError):
        assert job.run(adding(0.03), executor=nannied, resume=True).ok
    assert struck == moments
    assert job.run(adding(0.03), executor=nannied, resume=True).ok
    job.check()


@slow
def test_a_chunk_that_kills_its_workers_is_named(job: Job, tmp_path: Path) -> None:
    def die(chunks: Any) -> None:
        source, target, i = chunks
        if i == 5:
            os._exit(3)
        target.write(source.read())

    named = "in chunk 5, x [0, 8), y [16, 24), z [8, 16)"
    with (
        dask.config.set({"distributed.scheduler.allowed-failures": 1}),
        local_client(tmp_path) as client,
    ):
        with pytest.raises(WorkerLostError, match="2 workers died") as lost:
            job.run(die, executor=client)
        assert named in notes_of(lost.value)
        with pytest.raises(ChunkErrors) as info:
            job.run(die, executor=client, on_error="collect")
    failures = {failure.index: failure for failure in info.value.report.failures}
    assert 5 in failures
    assert isinstance(failures[5].error, WorkerLostError)
    assert named in notes_of(failures[5].error)
    assert set(failures) == {5}, "its neighbours are innocent"
    assert info.value.report.done == 63
    assert job.files_done() == 63


# --- clients that die ---------------------------------------------------------------------------

CLIENT = """
import signal
import sys
import time

import wkdask
from distributed import Client, LocalCluster

# As in a terminal: what runs in the background inherits that Ctrl-C is ignored.
signal.signal(signal.SIGINT, signal.default_int_handler)
path, address = sys.argv[1:]


def add(chunks):
    source, target, _ = chunks
    time.sleep(0.05)
    target.write(source.read() + 7)


own = {"n_workers": 2, "threads_per_worker": 1, "dashboard_address": "127.0.0.1:0"}
with Client(address) if address else Client(**own) as client:
    dataset = wkdask.open(path)
    print("ready", flush=True)
    report = dataset["raw"][1].for_zipped_chunks(add, dataset["sum"][1], resume=True)
    print("all done" if report.ok else "failed", report.skipped)
"""


@contextlib.contextmanager
def running_client(job: Job, address: str) -> Iterator[subprocess.Popen[str]]:
    """Run the job in a process with a process group of its own, as a terminal does it."""
    with subprocess.Popen(
        [sys.executable, "-c", CLIENT, str(job.path), address],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        cwd=job.path.parent,
        text=True,
        start_new_session=True,
    ) as process:
        try:
            assert process.stdout
            first = process.stdout.readline()
            assert first == "ready\n", process.stderr and process.stderr.read()
            yield process
        finally:
            process.kill()


def finish(job: Job, address: str, *, skipping: int) -> None:
    """Run the job once more, to its end."""
    with running_client(job, address) as process:
        output, errors = process.communicate(timeout=60)
    assert output.startswith("all done "), errors
    assert int(output.split()[-1]) >= skipping
    job.check()


@pytest.fixture(params=["its own", "another's"])
def address(request: pytest.FixtureRequest) -> str:
    """Where the client's cluster is: another process's, or nowhere if the client makes its own."""
    if request.param == "its own":
        return ""
    return str(request.getfixturevalue("cluster").scheduler_address)


@slow
def test_the_client_is_killed_five_times(job: Job, address: str) -> None:
    moments = [0, *sorted(random.Random(address[:3]).sample(range(5, 55), 4))]
    for moment in moments:
        with running_client(job, address) as process:
            wait_for(lambda at=moment: job.files_done() >= at, f"{moment} files")
            process.kill()
            assert process.wait(10) == -signal.SIGKILL
        assert wkdask.check(job.path, level=2).ok
    finish(job, address, skipping=moments[-1] - 2)


@slow
def test_ctrl_c_leaves_whole_files(job: Job, address: str) -> None:
    with running_client(job, address) as process:
        wait_for(lambda: job.files_done() >= 20, "20 files")
        os.killpg(process.pid, signal.SIGINT)
        _, errors = process.communicate(timeout=30)
    assert process.returncode == -signal.SIGINT, errors
    assert errors.rstrip().endswith("KeyboardInterrupt"), errors
    wait_for(lambda: not job.leftovers(), "what was running", 5)
    report = wkdask.check(job.path, level=2)
    assert report.findings == ()
    done = job.files_done()
    assert 20 <= done < 60, "what has not started is cancelled"
    time.sleep(0.3)
    assert job.files_done() == done
    finish(job, address, skipping=done - 2)


@slow
def test_results_that_died_with_the_last_worker(tmp_path: Path, commanded_cluster: Any) -> None:
    """They are computed again, for which a run does not wait longer than for any worker."""
    with (
        commanded_cluster(tmp_path / "commands", workers=1) as cluster,
        Client(scheduler_file=cluster.file) as client,
        dask.config.set({"wkdask.no-workers-timeout": "2s"}),
    ):
        client.wait_for_workers(1, timeout=60)
        window = _Window(client, 1)
        future = client.submit(np.ones, 5)
        wait_for(future.done, "a result")
        window.look()
        cluster.workers[0].kill()
        with pytest.raises(ClusterError, match=r"had no worker for \d+ s"):
            window.gathered([future])


# --- schedulers that die ------------------------------------------------------------------------


def address_in(file: str) -> str:
    # The file appears before its text.
    wait_for(lambda: Path(file).exists() and Path(file).read_text(), "the scheduler's file")
    return str(json.loads(Path(file).read_text())["address"])


@slow
def test_the_scheduler_is_killed_five_times(
    job: Job, tmp_path: Path, commanded_cluster: Any
) -> None:
    moments = [0, *sorted(random.Random(1).sample(range(5, 55), 4))]
    with dask.config.set({"distributed.comm.timeouts.connect": "2s"}):
        for i, moment in enumerate(moments):
            with commanded_cluster(tmp_path / f"commands-{i}") as cluster:
                file = cluster.file
                with Client(scheduler_file=file) if i else Client(address_in(file)) as client:
                    client.wait_for_workers(2, timeout=60)
                    with (
                        striking(job, [moment], cluster.scheduler.kill),
                        pytest.raises(ClusterError, match=r"scheduler .*lost"),
                    ):
                        job.run(adding(0.05), executor=client, resume=True)
            assert wkdask.check(job.path, level=2).ok
    with local_client(tmp_path) as client:
        report = job.run(adding(0.05), executor=client, resume=True)
    assert report.ok
    assert report.skipped >= moments[-1] - 2
    job.check()


# --- a worker that was cut off ------------------------------------------------------------------


def stopping(folder: Path, index: int, moment: str) -> Function:
    """Return the job's function, whose process stops in one chunk, when it first comes there."""
    notes, added = str(folder), np.uint8(ADDED)

    def stop() -> None:
        os.kill(os.getpid(), signal.SIGSTOP)

    def add(chunks: Any) -> None:
        source, target, i = chunks
        voxels = source.read() + added
        if i == index:
            Path(notes, f"begun-{os.getpid()}").touch()
            with contextlib.suppress(FileExistsError), open(Path(notes, "stopped"), "x") as file:
                file.write(str(os.getpid()))
                file.flush()
                if moment == "before it writes":
                    stop()
                else:
                    replace = os.replace

                    def stop_and_replace(*names: str) -> None:
                        os.replace = replace
                        stop()
                        replace(*names)

                    os.replace = stop_and_replace
        target.write(voxels)
        if i == index:
            Path(notes, f"ended-{os.getpid()}").touch()

    return add


@slow
@pytest.mark.parametrize(
    ("moment", "until"),
    [
        ("before it writes", "the run is over"),
        ("before it renames", "another begins"),
        ("before it renames", "the run is over"),
    ],
)
def test_a_stopped_worker_goes_on_after_its_task_was_given_away(
    job: Job, tmp_path: Path, commanded_cluster: Any, moment: str, until: str
) -> None:
    notes = tmp_path / "notes"
    notes.mkdir()
    function = stopping(notes, 20, moment)
    patience = {
        "DASK_DISTRIBUTED__SCHEDULER__WORKER_TTL": "2s",
        "DASK_DISTRIBUTED__COMM__TIMEOUTS__TCP": "12s",
        "DASK_DISTRIBUTED__COMM__TIMEOUTS__CONNECT": "10s",
    }
    with (
        commanded_cluster(tmp_path / "commands", scheduler_environment=patience) as cluster,
        Client(scheduler_file=cluster.file) as client,
        ThreadPoolExecutor(1) as thread,
    ):
        client.wait_for_workers(2, timeout=60)
        run = thread.submit(job.run, function, executor=client, resume=True)
        try:
            wait_for(lambda: len(list(notes.glob("begun-*"))) == 2, "another worker")
            if until == "the run is over":
                assert run.result(timeout=60).ok
        finally:
            stopped = int((notes / "stopped").read_text())
            os.kill(stopped, signal.SIGCONT)
        assert run.result(timeout=60).ok
        (worker,) = (worker for worker in cluster.workers if worker.pid == stopped)
        ended = notes / f"ended-{stopped}"
        wait_for(lambda: ended.exists() or worker.poll() is not None, "the stopped worker")
        assert ended.exists(), "it did the work, too late"
        job.check()
        again = job.run(function, executor=client, resume=True)
    assert again.ok
    job.check()


# --- files that are bad -------------------------------------------------------------------------


@slow
def test_five_corrupt_files_of_a_thousand(tmp_path: Path) -> None:
    job = make_job(tmp_path / "tissue", (10, 10, 10), 4)
    bad = sorted(random.Random(0).sample(range(1000), 5))
    paths = {i: job.source.volume.file_path((i // 100, i // 10 % 10, i % 10)) for i in bad}
    for path in paths.values():
        os.truncate(path, os.path.getsize(path) * 2 // 3)
    with local_client(tmp_path) as client:
        with pytest.raises(FormatError) as info:
            job.run(executor=client)
        assert any(path in str(info.value) for path in paths.values())
        with pytest.raises(ChunkErrors) as collected:
            job.run(executor=client, on_error="collect")
    report = collected.value.report
    assert (report.chunks, report.done, report.failed) == (1000, 995, 5)
    assert [failure.index for failure in report.failures] == bad
    expected = job.data + np.uint8(ADDED)
    for failure in report.failures:
        i = failure.index
        corner = (i // 100 * 4, i // 10 % 10 * 4, i % 10 * 4)
        assert failure.box == wkdask.BoundingBox(corner, (4, 4, 4))
        assert isinstance(failure.error, FormatError)
        assert paths[i] in str(failure.error)
        expected[:, *map(slice, failure.box.topleft, failure.box.bottomright)] = 0
    np.testing.assert_array_equal(job.target.get_view().read(), expected)


# --- the same everywhere ------------------------------------------------------------------------


@slow
def test_the_same_files_by_whatever_runs_them(
    tmp_path: Path, commanded_cluster: Any, snapshot: Any
) -> None:
    def files_by(name: str, executor: Any) -> dict[str, bytes]:
        job = make_job(tmp_path / name)
        assert job.run(executor=executor).ok
        job.check()
        root = Path(job.target.path)
        return snapshot(root)

    with ThreadPoolExecutor(2) as threads:
        expected = files_by("threads", threads)
    assert sum(name.endswith(".wkw") for name in expected) > 64
    with ProcessPoolExecutor(2, mp_context=get_context("spawn")) as pool:
        assert files_by("pool", pool) == expected
    with local_client(tmp_path) as client:
        assert files_by("local-cluster", client) == expected
    with (
        commanded_cluster(tmp_path / "commands") as cluster,
        Client(scheduler_file=cluster.file) as client,
    ):
        client.wait_for_workers(2, timeout=60)
        assert files_by("commands-cluster", client) == expected


# --- functions of all kinds ---------------------------------------------------------------------


@contextlib.contextmanager
def executor_named(name: str, client: Client) -> Iterator[Any]:
    if name == "cluster":
        yield client
    elif name == "threads":
        with ThreadPoolExecutor(2) as threads:
            yield threads
    else:
        with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
            yield pool


def functions() -> dict[str, Function]:
    """Ways to write the job's function."""

    def add(value: int, chunks: Any) -> None:
        source, target, _ = chunks
        target.write(source.read() + np.uint8(value))

    class Adder:
        def __init__(self, value: int) -> None:
            self.value = value

        def add(self, chunks: Any) -> None:
            add(self.value, chunks)

        def __call__(self, chunks: Any) -> None:
            self.add(chunks)

    def nonsense(chunks: Any) -> Any:
        add(ADDED, chunks)
        return threading.Lock(), b"x" * 1000  # which nobody could pickle, but it is dropped

    def printing(chunks: Any) -> None:
        print("chunk", chunks[2], "\N{MICROSCOPE}")  # noqa: T201
        add(ADDED, chunks)

    value = ADDED
    return {
        "returns nonsense": nonsense,
        "prints": printing,
        "closure": lambda chunks: add(value, chunks),
        "partial": partial(add, ADDED),
        "lambda": lambda chunks: chunks[1].write(chunks[0].read() + np.uint8(7)),
        "bound method": Adder(ADDED).add,
        "instance": Adder(ADDED),
    }


@pytest.mark.parametrize("name", ["cluster", "threads", pytest.param("process pool", marks=slow)])
def test_functions_of_all_kinds(tmp_path: Path, client: Client, name: str) -> None:
    job = make_job(tmp_path / "tissue", (2, 2, 1))
    with executor_named(name, client) as executor:
        for kind, function in functions().items():
            report = job.run(function, executor=executor)
            assert (report.done, report.voxels) == (4, job.data.size), kind
            job.check()
            job.target.store(np.zeros_like(job.data), executor=executor)
            assert job.files_done() == 0


# what is tried, where the offset is relative to chunk 1 of the 64
OUTSIDE: list[tuple[str, Function]] = [
    ("too much", lambda view: view.write(np.ones((9, 8, 8), np.uint8))),
    ("moved", lambda view: view.write(np.ones((8, 8, 8), np.uint8), (0, 0, 1))),
    ("before", lambda view: view.write(np.ones((8, 8, 8), np.uint8), (0, 0, -8))),
    ("larger part", lambda view: view.get_view((0, 0, 0), (16, 8, 8)).write(np.ones((16, 8, 8)))),
    ("lazily", lambda view: view.store(np.ones((8, 8, 16), np.uint8), executor=None)),
]


@pytest.mark.parametrize(("what", "attempt"), OUTSIDE, ids=[what for what, _ in OUTSIDE])
@pytest.mark.parametrize("name", ["cluster", "threads"])
def test_no_write_leaves_its_chunk(
    job: Job, client: Client, snapshot: Any, name: str, what: str, attempt: Function
) -> None:
    job.target.store(job.data, executor=client)
    before = snapshot(Path(job.target.path))

    # The attempt is a global of this module, and travels as an argument.
    def leave(attempt: Function, chunks: Any) -> None:
        if chunks[2] == 1:
            attempt(chunks[1])

    with executor_named(name, client) as executor, pytest.raises(BoundsError) as info:
        job.run(partial(leave, attempt), executor=executor)
    assert "in chunk 1, x [0, 8), y [0, 8), z [8, 16)" in notes_of(info.value)
    assert snapshot(Path(job.target.path)) == before


# --- bounds on what is held ---------------------------------------------------------------------


def test_tasks_in_flight_stay_below_the_window(tissue: wkdask.Dataset, client: Client) -> None:
    box = wkdask.BoundingBox((0, 0, 0), (200, 80, 48))
    layer = tissue.add_layer("color", "color", "uint8", bounding_box=box)
    view = layer.add_mag(1, block_edge=8, blocks_per_file_edge=1).get_view(read_only=True)

    def nothing(chunk: Any) -> None:
        pass

    def tasks_known(dask_scheduler: Any) -> int:
        return len(dask_scheduler.tasks)

    with sampling(client, tasks_known) as samples:
        assert view.for_each_chunk(nothing, executor=client).done == 1500
    assert len(samples) > 20
    assert WINDOW / 2 < max(samples) <= WINDOW
    wait_for(lambda: client.run_on_scheduler(tasks_known) == 0, "tasks to be forgotten")


@slow
def test_a_store_holds_few_results(tmp_path: Path, client: Client) -> None:
    job = make_job(tmp_path / "tissue", (10, 10, 10), 32)
    assert job.data.nbytes > 30e6, "all results would be seen"

    def held_bytes(dask_scheduler: Any) -> int:
        tasks = list(dask_scheduler.tasks.values())
        return sum(task.get_nbytes() * len(task.who_has or ()) for task in tasks)

    lazy = job.source.to_dask() + np.uint8(ADDED)
    with sampling(client, held_bytes) as samples:
        assert job.target.store(lazy, executor=client).done == 1000
    assert len(samples) > 20
    assert 0 < max(samples) < 2e6
    job.check()


# --- clusters that don't fit --------------------------------------------------------------------


@slow
@pytest.mark.parametrize("where", ["scheduler", "worker"])
def test_wkdask_is_missing_somewhere(
    job: Job, tmp_path: Path, commanded_cluster: Any, where: str
) -> None:
    stub = tmp_path / "stub" / "wkdask"
    stub.mkdir(parents=True)
    (stub / "__init__.py").write_text("raise ImportError('no module named wkdask here')\n")
    hidden = {f"{where}_environment": {"PYTHONPATH": str(stub.parent)}}
    with (
        commanded_cluster(tmp_path / "commands", workers=1, **hidden) as cluster,
        Client(scheduler_file=cluster.file) as client,
    ):
        client.wait_for_workers(1, timeout=60)
        for run in (job.run, lambda **options: job.target.store(job.data, **options)):
            with pytest.raises(ClusterError, match=r"can't import wkdask .*pip install wkdask=="):
                run(executor=client)
    assert job.files_done() == 0


def test_other_versions_are_told_once(
    job: Job, client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    version = wkdask.__version__
    monkeypatch.setattr(wkdask, "__version__", "99.0")
    with pytest.warns(RuntimeWarning, match=f"here is wkdask 99.0, but {version} on") as warned:
        job.run(executor=client)
    assert len(warned) == 1
    job.run(executor=client)
    job.check()


# --- lazy forms compose -------------------------------------------------------------------------


def test_lazy_runs_are_combined(tmp_path: Path, client: Client) -> None:
    one, two, three = (make_job(tmp_path / name) for name in ("one", "two", "three"))

    def check(chunk: Any) -> None:
        view, _ = chunk
        assert view.read().any()

    lazy = [
        one.run(compute=False),
        two.target.store(two.source.to_dask() + np.uint8(ADDED), compute=False),
        three.run(on_error="collect", compute=False),
        one.source.get_view(read_only=True).for_each_chunk(check, compute=False),
        three.source.to_dask().max(),
    ]
    assert [job.files_done() for job in (one, two, three)] == [0, 0, 0], "nothing runs yet"
    receipts, voxels, collected, checked, largest = dask.compute(*lazy)
    assert [receipt.index for receipt in receipts.flat] == list(range(64))
    assert int(voxels.sum()) == two.data.size
    assert all(receipt.error is None for receipt in (*collected.flat, *checked.flat))
    assert largest == three.data.max()
    for job in (one, two, three):
        job.check()
