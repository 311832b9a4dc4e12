"""Speed of reading from a web server on this machine, beside tensorstore and zarr-python.

Run with `pytest tests/benchmarks/test_bench_remote.py --benchmark-enable -s`: it says how many
times as long the others take to read a shard of a Zarr layer from nginx, and how many requests
wkdask sends. WKW has no other reader over http. Without that option each read happens once.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest
from servers import Nginx

import wkdask
from wkdask.testing import Tissue

pytest.importorskip("pytest_benchmark")
pytest.importorskip("obstore")
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


@pytest.mark.parametrize("kind", ["zarr3", "wkw"])
def test_read(nginx: Nginx, request: pytest.FixtureRequest, kind: Any) -> None:
    from obstore.store import HTTPStore
    from zarr.storage import ObjectStore

    edge, rounds = (512, 7) if request.config.getoption("benchmark_enable") else (64, 0)
    box = wkdask.BoundingBox((0, 0, 0), (edge,) * 3)
    voxels = Tissue(seed=7).grey((0, 0, 0), box.size)[None]
    name = f"bench-{kind}"
    layer = wkdask.create(nginx.files / name, voxel_size=(8, 8, 8)).add_layer(
        "color", "color", "uint8", bounding_box=box, data_format=kind
    )
    layer.add_mag(1, blocks_per_file_edge=edge // 32).write(voxels)
    url = f"{nginx.url}/{name}/color/1"
    volume = wkdask.open(f"{nginx.url}/{name}")["color"][1].volume
    calls: dict[str, Callable[..., Any]] = {
        "wkdask": lambda part: volume.read(tuple(range(s.start, s.stop) for s in part[1:]))
    }
    if kind == "zarr3":
        theirs = ts.open(
            {"driver": "zarr3", "kvstore": {"driver": "http", "base_url": f"{url}/"}}
        ).result()
        store = HTTPStore.from_url(url, client_options={"allow_http": True})
        array = zarr.open_array(ObjectStore(store, read_only=True), mode="r")
        calls["tensorstore"] = lambda part: theirs[part].read().result()
        calls["zarr-python"] = lambda part: array[part]
    whole = slice(0, edge)
    for what, part in {
        "whole": (slice(None), whole, whole, whole),
        "plane xy": (slice(None), whole, whole, slice(PLANE, PLANE + 1)),
        "ten cubed": (slice(None), *[slice(20, 30)] * 3),
    }.items():
        for call in calls.values():
            np.testing.assert_array_equal(call(part), voxels[part])
        with nginx.requests() as sent:
            calls["wkdask"](part)
        took = {who: seconds(partial(call, part), rounds) for who, call in calls.items()}
        ours = took.pop("wkdask")
        ratios = ", ".join(f"{who} {long / ours:.1f}" for who, long in took.items()) or "-"
        sys.stdout.write(
            f"\n{kind} {what}: {ours * 1e3:.1f} ms, {len(sent)} requests; times as long: {ratios}\n"
        )
