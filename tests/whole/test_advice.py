"""Mistakes of beginners: each error says what to do instead."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import Executor, ProcessPoolExecutor, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import dask.array as da
import numpy as np
import pytest
from distributed import Client, LocalCluster

import wkdask
from wkdask.errors import WkdaskError

SIZE = (64, 48, 32)
BOX = wkdask.BoundingBox((0, 0, 0), SIZE)


@pytest.fixture
def dataset(tissue: wkdask.Dataset) -> wkdask.Dataset:
    color = tissue.add_layer("color", "color", "uint8", bounding_box=BOX)
    for mag in (1, 2):
        color.add_mag(mag, 8, 2)
    tissue.add_layer("rgb", "color", "uint8", num_channels=3, bounding_box=BOX).add_mag(1, 8, 2)
    return tissue


def zeros(*shape: int, dtype: str = "uint8") -> Any:
    return np.zeros(shape, dtype)


MISTAKES: list[tuple[str, Callable[[wkdask.Dataset], object], str]] = [
    ("axes of another order", lambda ds: ds["color"][1].store(zeros(32, 48, 64)), "data.T"),
    ("written so", lambda ds: ds["color"][1].get_view().write(zeros(32, 48, 64)), "data.T"),
    ("no channels", lambda ds: ds["rgb"][1].write(zeros(*SIZE)), "np.stack"),
    ("channels last", lambda ds: ds["rgb"][1].write(zeros(*SIZE, 3)), "np.moveaxis(data, -1, 0)"),
    ("mag 1", lambda ds: ds["color"][2].get_view((48, 40, 16), (8, 8, 8)), "voxels of mag 2"),
    ("a layer", lambda ds: wkdask.open(ds.path / "color"), "['color']"),
    ("a mag", lambda ds: wkdask.open(ds.path / "color" / "1"), "['color']['1']"),
    ("floats", lambda ds: ds["color"][1].write(np.ones(SIZE)), ".round().clip(0, 255).astype"),
    (
        "dask floats",
        lambda ds: ds["color"][1].store(da.ones(SIZE)),
        '.clip(0, 255).astype("uint8")',
    ),
    ("da.store", lambda ds: da.store(da.zeros(SIZE, dtype="u1"), ds["color"][1]), "view.store(x)"),
    ("a dtype", lambda ds: ds.add_layer("a", "color", "uint48"), "uint8, uint16"),
]


@pytest.mark.parametrize(("what", "mistake", "advice"), MISTAKES, ids=[row[0] for row in MISTAKES])
def test_advice(dataset: wkdask.Dataset, what: str, mistake: Any, advice: str) -> None:
    del what
    with pytest.raises(WkdaskError) as caught:
        mistake(dataset)
    assert advice in str(caught.value)


def test_home(dataset: wkdask.Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(dataset.path.parent))
    assert wkdask.open(f"~/{dataset.path.name}").path == dataset.path
    monkeypatch.chdir(dataset.path)
    assert wkdask.open(".").path == Path(dataset.path)


def run(dataset: wkdask.Dataset, executor: Any) -> None:
    dataset["color"][1].for_each_chunk(print, executor=executor)


@pytest.mark.parametrize("kind", [ThreadPoolExecutor, ProcessPoolExecutor])
def test_a_pool_that_was_shut_down(dataset: wkdask.Dataset, kind: type[Executor]) -> None:
    pool = kind()
    pool.shutdown()
    with pytest.raises(WkdaskError, match="make a new one"):
        run(dataset, pool)


def test_clients(dataset: wkdask.Dataset) -> None:
    async def asynchronously(address: str) -> None:
        async with Client(address, asynchronous=True) as client:
            with pytest.raises(WkdaskError, match="asynchronous"):
                run(dataset, client)

    with LocalCluster(1, processes=False, dashboard_address=":0") as cluster:
        with pytest.raises(WkdaskError, match=r"distributed\.Client\(cluster\)"):
            run(dataset, cluster)
        client = Client(cluster)
        client.close()
        with pytest.raises(WkdaskError, match="is closed"):
            run(dataset, client)
        asyncio.run(asynchronously(cluster.scheduler_address))
