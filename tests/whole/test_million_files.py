"""A volume of 1,000,000 files of which none exists: nothing may depend on how many there are."""

from __future__ import annotations

import builtins
import os
import pickle
import threading
import timeit
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import dask
import dask.array as da
import numpy as np
import pytest
import xarray as xr

import wkdask

EDGE = 102_400
FILES_PER_AXIS = 100
# A slice that lies in one file, and one that lies in eight.
IN_ONE_FILE = np.s_[:, 50_000:50_010, 50_000:50_010, 50_000:50_010]
IN_EIGHT_FILES = np.s_[:, 51_195:51_205, 51_195:51_205, 51_195:51_205]


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("million") / "tissue"
    dataset = wkdask.create(path, voxel_size=(8, 8, 8))
    box = wkdask.BoundingBox((0, 0, 0), (EDGE,) * 3)
    layer = dataset.add_layer("color", "color", "uint8", bounding_box=box)
    assert layer.add_mag(1).volume.header.file_edge * FILES_PER_AXIS == EDGE
    return path


@pytest.fixture
def view(path: Path) -> wkdask.View:
    return wkdask.open(path)["color"][1].get_view()


@pytest.fixture
def no_listing(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Refuse to list any directory."""

    def refuse(*args: Any, **options: Any) -> Any:
        raise AssertionError(f"listed {args}")

    with monkeypatch.context() as patch:
        for name in ("scandir", "listdir", "walk"):
            patch.setattr(os, name, refuse)
        yield


def tasks(array: da.Array) -> dict[Any, Any]:
    (optimized,) = dask.optimize(array)
    return dict(optimized.dask)


def make_slice(view: wkdask.View, index: Any) -> list[da.Array]:
    """The same voxels, by the view and by the array."""
    return [view[index], view.to_dask()[index], view.to_xarray().data[index], view[index] + 1]


@pytest.mark.usefixtures("no_listing")
def test_opening_lists_nothing(path: Path) -> None:
    array = wkdask.open(path)["color"][1].to_dask()
    assert array.numblocks == (1, *(FILES_PER_AXIS,) * 3)
    assert array.npartitions == 1_000_000
    assert array.shape == (1, EDGE, EDGE, EDGE)


def test_opening_reads_two_files(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[str] = []
    real, here = builtins.open, threading.get_ident()

    def noting(file: Any, *args: Any, **options: Any) -> Any:
        # Monitors of clusters, which other tests use, read files of their own.
        if threading.get_ident() == here:
            opened.append(os.fspath(file))
        return real(file, *args, **options)

    monkeypatch.setattr(builtins, "open", noting)
    wkdask.open(path)["color"][1].to_dask()[IN_ONE_FILE]
    # `Path.read_text` may go around `builtins.open`; what is noted are these two at most.
    assert {os.path.basename(name) for name in opened} <= {
        "datasource-properties.json",
        "header.wkw",
    }
    assert len(opened) <= 3


@pytest.mark.usefixtures("no_listing")
@pytest.mark.parametrize(("index", "files"), [(IN_ONE_FILE, 1), (IN_EIGHT_FILES, 8)])
def test_a_slice_has_few_and_small_tasks(view: wkdask.View, index: Any, files: int) -> None:
    for array in make_slice(view, index):
        assert array.shape == (1, 10, 10, 10)
        graph = tasks(array)
        assert len(graph) <= 3 * files
        assert all(len(pickle.dumps(task)) < 1000 for task in graph.values())
    whole = view[index]
    assert whole.npartitions == files
    assert len(pickle.dumps(whole.dask)) < 2500, "no million of chunks travels to a scheduler"


@pytest.mark.usefixtures("no_listing")
@pytest.mark.parametrize("scheduler", ["threads", pytest.param("sync", marks=pytest.mark.slow)])
@pytest.mark.parametrize("index", [IN_ONE_FILE, IN_EIGHT_FILES, np.s_[0, -5:, ::-20_000, 7]])
def test_a_slice_computes_to_zeros(view: wkdask.View, index: Any, scheduler: str) -> None:
    expected = np.broadcast_to(np.uint8(0), view.shape)[index]
    for array in make_slice(view, index)[:3]:
        values = array.compute(scheduler=scheduler)
        assert (values.shape, values.dtype) == (expected.shape, np.dtype(np.uint8))
        assert not values.any()


@pytest.mark.parametrize("index", [IN_ONE_FILE, IN_EIGHT_FILES])
def test_a_slice_on_a_cluster(view: wkdask.View, client: Any, index: Any) -> None:
    for array in make_slice(view, index):
        expected = 1 if array.name.startswith("add") else 0
        values = array.compute()
        assert values.shape == (1, 10, 10, 10)
        assert (values == expected).all()


def test_selection_by_label(view: wkdask.View) -> None:
    array = view.to_xarray().sel(x=slice(50_000, 50_009), y=70_000, z=slice(0, 3))
    assert len(tasks(array.data)) <= 3
    assert array.compute(scheduler="sync").shape == (1, 10, 4)


@pytest.mark.usefixtures("no_listing")
def test_a_store_of_few_voxels_has_few_tasks(view: wkdask.View) -> None:
    data = da.ones((1, 40, 40, 40), chunks=-1, dtype=np.uint8)
    receipts = view.store(data, (51_200, 51_200, 51_200), compute=False)
    assert len(tasks(receipts)) <= 3


XARRAY: dict[str, Callable[[Path], Any]] = {
    "open": lambda path: xr.open_dataset(path),
    "open with chunks": lambda path: xr.open_dataset(path, chunks={}),
    "open in nm": lambda path: xr.open_dataset(path, coords="physical"),
    "a tree": lambda path: xr.open_datatree(path, chunks={}),
    "the first voxels": lambda path: xr.open_dataset(path, chunks={}).color[IN_EIGHT_FILES].values,
}
SHOWN: dict[str, Callable[[Any], str]] = {"repr": repr, "HTML": lambda shown: shown._repr_html_()}


@pytest.mark.usefixtures("no_listing")
@pytest.mark.parametrize("name", XARRAY)
def test_xarray_opens_at_once(path: Path, benchmark: Any, name: str) -> None:
    """Measured are 2 to 7 ms; a graph with a task per chunk would take minutes."""
    XARRAY[name](path)
    benchmark(XARRAY[name], path)
    assert shortest(XARRAY[name], path) < 0.1


@pytest.mark.usefixtures("no_listing")
@pytest.mark.parametrize("chunks", [None, {}], ids=["lazy", "dask"])
@pytest.mark.parametrize("form", SHOWN)
def test_xarray_shows_it_at_once(path: Path, benchmark: Any, chunks: Any, form: str) -> None:
    opened = xr.open_dataset(path, chunks=chunks)
    assert "color" in benchmark(SHOWN[form], opened)
    assert shortest(SHOWN[form], opened) < 0.5


def shortest(function: Callable[[Any], Any], argument: Any) -> float:
    """The least of five durations in seconds, since other work may come between."""
    return min(timeit.repeat(lambda: function(argument), number=1, repeat=5))


@pytest.mark.usefixtures("no_listing")
def test_a_slice_by_xarray_has_few_and_small_tasks(path: Path) -> None:
    array = xr.open_dataset(path, chunks={}).color[IN_EIGHT_FILES]
    graph = tasks(array.data)
    assert len(graph) == 8
    assert all(len(pickle.dumps(task)) < 1000 for task in graph.values())


BUILD: dict[str, Callable[[wkdask.View], da.Array]] = {
    "file": lambda view: view.to_dask(),
    "auto": lambda view: view.to_dask("auto"),
    "xarray": lambda view: view.to_xarray().data,
    "chunks function": lambda view: view.for_each_chunk(print, compute=False),
}


@pytest.mark.usefixtures("no_listing")
@pytest.mark.parametrize("name", BUILD)
def test_building_makes_one_layer_and_no_tasks(view: wkdask.View, name: str) -> None:
    array = BUILD[name](view)
    assert array.npartitions >= 1_000_000
    (layer,) = array.dask.layers.values()
    assert not layer.is_materialized()
    size_bytes = len(pickle.dumps((layer.task, layer.indices)))
    assert size_bytes < 20_000, "chunk borders per axis, not per chunk"
