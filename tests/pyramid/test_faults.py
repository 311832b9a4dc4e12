"""Pyramids whose process, workers or disk fail in the middle: resumed, they are the same."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import wkdask
from wkdask.geometry import BoundingBox, Mag

MAGS = ("2", "4", "8")
EDGE = 128

SCRIPT = """
import sys, time
import wkdask
from wkdask.pyramid import fill
run = fill._make_file
def slowly(job, place):
    time.sleep(0.02)
    return run(job, place)
fill._make_file = slowly
layer = wkdask.open(sys.argv[1])["cells"]
print("begun", flush=True)
layer.downsample(from_mag=1, mags=["2", "4", "8"], resume=True)
print("done", flush=True)
"""


def new_layer(path: Path, blocks_per_file_edge: int) -> wkdask.Layer:
    ds = wkdask.create(path, (8, 8, 8))
    box = BoundingBox((3, 0, 5), (EDGE, EDGE - 9, EDGE))
    layer = ds.add_layer("cells", "segmentation", "uint32", bounding_box=box)
    voxels = np.random.default_rng(1).integers(0, 4, box.size).astype("uint32")
    mag = layer.add_mag(
        1, block_edge=8, blocks_per_file_edge=blocks_per_file_edge, block_type="lz4"
    )
    mag.get_view().write(voxels)
    return layer


def pyramid_of(layer: wkdask.Layer) -> list[Any]:
    views = [layer[mag] for mag in MAGS]
    return [view.read(view.bounding_box.topleft, view.bounding_box.size) for view in views]


@pytest.fixture(scope="module", params=[4, 32], ids=["many files", "one file by threads"])
def expected(request: pytest.FixtureRequest, tmp_path_factory: Any) -> tuple[int, list[Any]]:
    layer = new_layer(tmp_path_factory.mktemp("expected") / "a", request.param)
    layer.downsample(mags=MAGS)
    return request.param, pyramid_of(layer)


def check_resumed(path: Path, expected: list[Any], **keys: Any) -> None:
    layer = wkdask.open(path)["cells"]
    assert layer.downsample(from_mag=1, mags=MAGS, resume=True, **keys).ok
    for found, voxels in zip(pyramid_of(wkdask.open(path)["cells"]), expected, strict=True):
        assert np.array_equal(found, voxels)
    assert not list(path.rglob("*wkdask-tmp"))
    report = wkdask.check(path, level=2)
    assert report.ok, str(report)


def kill_after(path: Path, seconds: float) -> bool:
    """Run a pyramid in a process of its own, kill it, and return whether it was not done yet."""
    command = [sys.executable, "-c", SCRIPT, str(path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "begun\n"
        time.sleep(seconds)
        process.send_signal(signal.SIGKILL)
        return "done" not in process.stdout.read()


@pytest.mark.parametrize("seconds", [0.1, pytest.param(0.4, marks=pytest.mark.slow)])
def test_a_killed_process(tmp_path: Path, expected: tuple[int, list[Any]], seconds: float) -> None:
    blocks, voxels = expected
    path = tmp_path / "a"
    new_layer(path, blocks)
    was_killed = kill_after(path, seconds)
    mags = list(wkdask.open(path)["cells"].mags)
    assert mags == [Mag(1)] or not was_killed
    check_resumed(path, voxels)


@pytest.mark.slow
def test_kills_at_random(tmp_path: Path, expected: tuple[int, list[Any]]) -> None:
    blocks, voxels = expected
    rng = np.random.default_rng(0)
    for number in range(6):
        path = tmp_path / str(number)
        new_layer(path, blocks)
        for _ in range(3):
            kill_after(path, float(rng.uniform(0, 0.6)))
        check_resumed(path, voxels)


@pytest.mark.slow
def test_killed_workers(tmp_path: Path, expected: tuple[int, list[Any]]) -> None:
    from distributed import Client, LocalCluster

    blocks, voxels = expected
    rng = np.random.default_rng(0)
    options: dict[str, Any] = {
        "n_workers": 2,
        "threads_per_worker": 1,
        "host": "127.0.0.1",
        "dashboard_address": None,
        "local_directory": str(tmp_path / "dask"),
    }
    with LocalCluster(**options) as cluster, Client(cluster, set_as_default=False) as client:
        for number in range(4):
            path = tmp_path / str(number)
            new_layer(path, blocks)
            layer = wkdask.open(path)["cells"]
            pids = list(client.run(os.getpid).values())
            victim = int(rng.choice(pids))
            killer = threading.Timer(rng.uniform(0.05, 0.5), os.kill, (victim, signal.SIGKILL))
            killer.start()
            with contextlib.suppress(wkdask.errors.WkdaskError):  # a clear error, or none
                layer.downsample(mags=MAGS, resume=True, executor=client)
            killer.join()
            client.wait_for_workers(2, timeout=60)
            check_resumed(path, voxels, executor=client)
