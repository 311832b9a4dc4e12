"""Forked children, in which the threads of their parent do not exist."""

from __future__ import annotations

import multiprocessing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from distributed import Client

import wkdask
from wkdask.errors import ClusterError


def work(chunk: Any) -> None:
    view, number = chunk
    view.write(np.full(view.size, number + 1, np.uint8))


def use(path: Path) -> tuple[int, int]:
    """Use everything that has threads."""
    mag = wkdask.open(path)["a"][1]
    done = mag.for_each_chunk(work).done
    assert wkdask.check(path).ok
    return done, int(mag.get_view()[...].max().compute())


def refused(path: Path) -> str:
    try:
        use(path)
    except ClusterError as error:
        return str(error)
    return ""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    dataset = wkdask.create(tmp_path / "tissue", voxel_size=(1, 1, 1))
    box = wkdask.BoundingBox((0, 0, 0), (32, 32, 32))
    dataset.add_layer("a", "color", "uint8", bounding_box=box).add_mag(1, 8, 2)
    return dataset.path


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
class TestForks:
    def test_after_threads(self, path: Path) -> None:
        assert use(path) == (8, 8)
        with multiprocessing.get_context("fork").Pool(1) as pool:
            assert pool.map_async(use, [path]).get(60) == [(8, 8)]

    def test_after_a_client(self, path: Path) -> None:
        with (
            Client(processes=False, n_workers=1, threads_per_worker=1, dashboard_address=":0"),
            multiprocessing.get_context("fork").Pool(1) as pool,
        ):
            [text] = pool.map_async(refused, [path]).get(60)
            assert "was forked" in text
