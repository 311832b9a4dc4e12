"""Speed of reading one shard of a Zarr layer beside tensorstore and zarr-python, in one run.

Run with `pytest tests/benchmarks/test_bench_zarr.py --benchmark-enable -s`: it says how many times
as long the others take, by medians, with one thread each. Without that option the shard is small
and each read happens once.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from wkdask.geometry import BoundingBox
from wkdask.storage.opening import new_layout
from wkdask.storage.zarr import ZarrVolume
from wkdask.testing import Tissue

pytest.importorskip("pytest_benchmark")
zarr = pytest.importorskip("zarr")
ts = pytest.importorskip("tensorstore")

PLANE = 37


def seconds(call: Callable[[], Any], rounds: int) -> float:
    """Return the median of some rounds, after one that does not count."""
    found = []
    for _ in range(rounds + 1):
        begin = time.perf_counter()
        call()
        found.append(time.perf_counter() - begin)
    return statistics.median(found[1:] or found)


@pytest.mark.parametrize("dtype", ["uint8", "uint32"])
def test_read(tmp_path: Path, request: pytest.FixtureRequest, dtype: str) -> None:
    is_timed = request.config.getoption("benchmark_enable")
    edge, rounds = (512, 7) if is_timed else (64, 0)
    tissue, corner = Tissue(seed=7), (0, 0, 0)
    make = tissue.labels if dtype == "uint32" else tissue.grey
    voxels = make(corner, (edge,) * 3)[None]
    volume = ZarrVolume.create(tmp_path / "a", new_layout("zarr3", dtype, 1, 32, edge // 32))
    volume.write(BoundingBox((0, 0, 0), (edge,) * 3), voxels)
    one = {"data_copy_concurrency": {"limit": 1}, "file_io_concurrency": {"limit": 1}}
    place = {"driver": "zarr3", "kvstore": {"driver": "file", "path": volume.path}}
    theirs = ts.open(place, context=ts.Context(one)).result()
    all_ = range(edge)
    for name, region in {
        "whole": (all_, all_, all_),
        "plane xy": (all_, all_, range(PLANE, PLANE + 1)),
        "plane yz": (range(PLANE, PLANE + 1), all_, all_),
    }.items():
        part = (slice(None), *(slice(axis.start, axis.stop) for axis in region))
        with zarr.config.set({"async.concurrency": 1, "threading.max_workers": 1}):
            array = zarr.open_array(volume.path, mode="r")
            calls = {
                "wkdask": lambda region=region: volume.read(region),
                "tensorstore": lambda part=part: theirs[part].read().result(),
                "zarr-python": lambda part=part, array=array: array[part],
            }
            for call in calls.values():
                np.testing.assert_array_equal(call(), voxels[part])
            took = {who: seconds(call, rounds) for who, call in calls.items()}
        ours = took.pop("wkdask")
        ratios = ", ".join(f"{who} {long / ours:.1f}" for who, long in took.items())
        sys.stdout.write(f"\n{dtype} {name}: {ours * 1e3:.1f} ms; times as long: {ratios}\n")
