"""Two operations on one mag at the same time: refused at once, or both right; every pair.

A gate in the executor holds the first operation back in its middle while the second one is tried.
"""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import dask.array as da
import numpy as np
import pytest

import wkdask
from wkdask.errors import BusyError, ExistsError, FormatError, WkdaskError
from wkdask.testing import snapshot

pytestmark = pytest.mark.filterwarnings("ignore:writing parts of compressed files")

FINE = (32, 32, 32)
FILES = {"block_edge": 8, "blocks_per_file_edge": 2, "block_type": "raw"}


class Gate(ThreadPoolExecutor):
    """A thread that holds all tasks but the first few back, until the gate is open."""

    def __init__(self, first: int) -> None:
        super().__init__(1)
        self._places = itertools.count()
        self._first = first
        self.reached = threading.Event()
        self.is_open = threading.Event()

    def submit(self, function: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        def call() -> Any:
            if next(self._places) >= self._first:
                self.reached.set()
                assert self.is_open.wait(60)
            return function(*args, **kwargs)

        return super().submit(call)


def voxels(size: tuple[int, int, int] = FINE, seed: int = 0) -> np.ndarray[Any, Any]:
    return np.random.default_rng(seed).integers(1, 255, size, dtype=np.uint8)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A dataset with mags 1 and 2 of a layer, and one layer beside it."""
    dataset = wkdask.create(tmp_path / "tissue", voxel_size=(8, 8, 8))
    box = wkdask.BoundingBox((0, 0, 0), FINE)
    for name in ("color", "other"):
        layer = dataset.add_layer(name, "color", "uint8", bounding_box=box)
        layer.add_mag(1, **FILES).write(voxels())
    dataset["color"].downsample(mags=[2], mode="max", block_type="raw")
    return dataset.path


Operation = Callable[[Path, Any], object]


def keep(chunk: Any) -> None:
    view, _ = chunk
    view.write(view.read())


USES: dict[str, Operation] = {
    "store": lambda path, pool: wkdask.open(path)["color"][1].store(
        da.from_array(voxels(), chunks=16), executor=pool
    ),
    "for_each_chunk": lambda path, pool: wkdask.open(path)["color"][1].for_each_chunk(
        keep, executor=pool
    ),
    "for_zipped_chunks": lambda path, pool: wkdask.open(path)["other"][1].for_zipped_chunks(
        lambda pair: pair[1].write(pair[0].read()), wkdask.open(path)["color"][1], executor=pool
    ),
    "copy of a view": lambda path, pool: wkdask.copy(
        wkdask.open(path)["other"][1], wkdask.open(path)["color"][1], executor=pool
    ),
    "downsample from it": lambda path, pool: wkdask.open(path)["color"].downsample(
        1, mags=[4], executor=pool
    ),
    "copy of the layer": lambda path, pool: wkdask.copy(
        wkdask.open(path)["color"], wkdask.open(path), layer_name="copied", executor=pool
    ),
}
REWRITES: dict[str, Operation] = {
    "compress": lambda path, pool: wkdask.open(path)["color"][1].compress("lz4", executor=pool),
    "rechunk": lambda path, pool: wkdask.open(path)["color"][1].rechunk(
        blocks_per_file_edge=1, executor=pool
    ),
}
AT_ONCE: dict[str, Operation] = {
    "write": lambda path, _: wkdask.open(path)["color"][1].write(voxels()),
    "write of a part": lambda path, _: wkdask.open(path)["color"][1].write(
        voxels()[3:9, 5:7, 10:30], (3, 5, 10)
    ),
}
READS: dict[str, Operation] = {
    "read": lambda path, _: wkdask.open(path)["color"][1].read((0, 0, 0), FINE),
    "convert to zarr": lambda path, _: wkdask.convert(
        wkdask.open(path)["color"], path.parent / "out.zarr", mags=[1]
    ),
}


@contextmanager
def held(operation: Operation, path: Path, first: int = 3) -> Iterator[Callable[[], object]]:
    """Run an operation up to its middle; the function that is yielded lets it end."""
    gate = Gate(first)
    outcome: list[object] = []

    def run() -> None:
        try:
            outcome.append(operation(path, gate))
        except BaseException as error:
            outcome.append(error)

    thread = threading.Thread(target=run)

    def let_end() -> object:
        gate.is_open.set()
        thread.join()
        gate.shutdown()
        return outcome[0]

    thread.start()
    try:
        assert gate.reached.wait(60), outcome
        yield let_end
    finally:
        let_end()


def check_voxels(path: Path) -> None:
    dataset = wkdask.open(path)
    assert np.array_equal(dataset["color"][1].read((0, 0, 0), FINE)[0], voxels())
    assert wkdask.check(path).ok
    assert not list(path.rglob("*.wkdask-tmp"))
    assert not list(path.rglob("*rechunked*"))


def pairs() -> list[Any]:
    """Return all pairs; those that go together are slow."""
    every = itertools.product([*USES, *REWRITES], [*USES, *REWRITES, *AT_ONCE, *READS])
    return [
        pytest.param(a, b, marks=() if a in REWRITES or b in REWRITES else pytest.mark.slow)
        for a, b in every
    ]


@pytest.mark.parametrize(("first", "second"), pairs())
def test_a_mag_that_is_there(path: Path, first: str, second: str) -> None:
    every = USES | REWRITES | AT_ONCE | READS
    is_refused = (first in REWRITES and second not in READS) or second in REWRITES
    makes_the_same = first == second in ("downsample from it", "copy of the layer")
    # A downsample has a single file here.
    with held(every[first], path, 0 if first == "downsample from it" else 3) as let_end:
        if is_refused or makes_the_same:
            before = snapshot(path)
            with pytest.raises(BusyError if is_refused else (BusyError, ExistsError)):
                every[second](path, None)
            assert snapshot(path).keys() == before.keys()
        else:
            every[second](path, None)
        ended = let_end()
    assert not isinstance(ended, BaseException), ended
    check_voxels(path)
    if is_refused:
        every[second](path, None)
        check_voxels(path)


def test_a_view_that_was_opened_before(path: Path) -> None:
    view = wkdask.open(path)["color"][1]
    with held(REWRITES["rechunk"], path) as let_end:
        assert np.array_equal(view.read((0, 0, 0), FINE)[0], voxels())
        let_end()
    with pytest.raises(FormatError, match="Open it again"):
        view.write(voxels())
    check_voxels(path)


def new_mag(path: Path) -> wkdask.MagView:
    return wkdask.open_mag(path / "color" / "4")


MAKES: dict[str, Operation] = {
    "downsample": lambda path, pool: wkdask.open(path)["color"].downsample(
        1, mags=[4], mode="max", executor=pool
    ),
    "several": lambda path, pool: wkdask.open(path)["color"].downsample(
        2, mags=[4, 8], mode="max", executor=pool
    ),
    "resumable": lambda path, pool: wkdask.open(path)["color"].downsample(
        1, mags=[4], mode="max", resume=True, executor=pool
    ),
    "to_wkw": lambda path, pool: (
        wkdask.open(path)["other"][1]
        .to_xarray(chunks=32)
        .coarsen(x=4, y=4, z=4)
        .max()
        .assign_coords({dim: range(0, 32, 4) for dim in "xyz"})
        .wkw.to_wkw(wkdask.open(path)["color"], executor=pool, align="rechunk")
    ),
}
ON_IT: dict[str, Operation] = {
    **MAKES,
    "add_mag": lambda path, _: wkdask.open(path)["color"].add_mag(4),
    "write": lambda path, _: new_mag(path).write(voxels((8, 8, 8))),
    "compress": lambda path, _: new_mag(path).compress("lz4"),
    "rechunk": lambda path, _: new_mag(path).rechunk(16),
}


@pytest.mark.parametrize("fails", [False, True])
@pytest.mark.parametrize("second", ON_IT)
@pytest.mark.parametrize(
    "first",
    [
        "several",
        *(pytest.param(name, marks=pytest.mark.slow) for name in ("downsample", "resumable")),
    ],
)
def test_a_mag_that_is_made(path: Path, first: str, second: str, fails: bool) -> None:
    coarse = voxels().reshape(8, 4, 8, 4, 8, 4).max(axis=(1, 3, 5))
    with held(MAKES[first], path, 0) as let_end:
        with pytest.raises(BusyError):
            ON_IT[second](path, None)
        assert [str(mag) for mag in wkdask.open(path)["color"].mags] == ["1", "2"]
        if fails:
            for source in ("1", "2"):
                file = path / "color" / source / "z0" / "y0" / "x0.wkw"
                file.write_bytes(file.read_bytes()[:100])
        ended = let_end()
    if fails:
        assert isinstance(ended, WkdaskError)
        assert [str(mag) for mag in wkdask.open(path)["color"].mags] == ["1", "2"]
        assert (path / "color" / "4").exists() == (first == "resumable")
        assert not (path / "color" / "8").exists()
    else:
        assert not isinstance(ended, BaseException), ended
        assert np.array_equal(wkdask.open(path)["color"][4].read((0, 0, 0), (8,) * 3)[0], coarse)
        check_voxels(path)


class TestWhatOthersMade:
    """A run that fails deletes what it has made, and nothing else."""

    def spoil(self, path: Path) -> None:
        file = path / "color" / "2" / "z0" / "y0" / "x0.wkw"
        file.write_bytes(file.read_bytes()[:100])

    def test_files_of_a_user(self, path: Path) -> None:
        self.spoil(path)
        texts = [path / "color" / name for name in ("4/notes.txt", "8/sub/paper.tex", "8/z0/y0/a")]
        for text in texts:
            text.parent.mkdir(parents=True)
            text.write_text("mine")
        (path / "color" / "16").mkdir()
        before = snapshot(path)
        with pytest.raises(FormatError):
            wkdask.open(path)["color"].downsample(2, mags=[4, 8, 16])
        assert snapshot(path) == before

    def test_a_header_that_was_there(self, path: Path) -> None:
        self.spoil(path)
        (path / "color" / "4").mkdir()
        header = (path / "color" / "1" / "header.wkw").read_bytes()
        (path / "color" / "4" / "header.wkw").write_bytes(header)
        before = snapshot(path)
        with pytest.raises(FormatError):
            wkdask.open(path)["color"].downsample(2, mags=[4])
        assert snapshot(path) == before

    def test_files_outside_of_the_box(self, path: Path) -> None:
        with held(MAKES["downsample"], path, 0) as let_end:
            foreign = path / "color" / "4" / "z9" / "y9" / "x9.wkw"
            foreign.parent.mkdir(parents=True)
            foreign.write_bytes(b"mine")
            file = path / "color" / "1" / "z0" / "y0" / "x0.wkw"
            file.write_bytes(file.read_bytes()[:100])
            assert isinstance(let_end(), FormatError)
        assert foreign.read_bytes() == b"mine"
        assert not (path / "color" / "4" / "header.wkw").exists()

    def test_a_mag_that_was_added_before(self, path: Path) -> None:
        stale = wkdask.open(path)["color"]
        wkdask.open(path)["color"].add_mag(4, **FILES).write(voxels((8, 8, 8)))
        before = snapshot(path)
        with pytest.raises(ExistsError):
            stale.add_mag(4)
        with pytest.raises(ExistsError):
            stale.downsample(2, mags=[4])
        assert snapshot(path) == before


class TestCopiesThatFail:
    def spoil(self, path: Path) -> None:
        file = path / "other" / "1" / "z0" / "y0" / "x0.wkw"
        file.write_bytes(file.read_bytes()[:100])

    def test_a_dataset(self, path: Path) -> None:
        self.spoil(path)
        before = snapshot(path.parent)
        with pytest.raises(FormatError):
            wkdask.copy(wkdask.open(path), path.parent / "deep" / "copy")
        assert snapshot(path.parent) == before

    def test_a_relative_path(self, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.chdir(path.parent)
        assert wkdask.copy(wkdask.open(path), "copy").ok
        assert (
            wkdask.convert(wkdask.open(path)["other"], "image.zarr") == path.parent / "image.zarr"
        )
        self.spoil(path)
        before = snapshot(path.parent)
        with pytest.raises(FormatError):
            wkdask.copy(wkdask.open(path), "again")
        assert snapshot(path.parent) == before

    def test_a_directory_with_other_files_stays(self, path: Path) -> None:
        self.spoil(path)
        dataset = wkdask.create(path.parent / "copy", voxel_size=(8, 8, 8))
        dataset.add_layer("mine", "color", "uint8")
        before = snapshot(dataset.path)
        with pytest.raises(FormatError):
            wkdask.copy(wkdask.open(path)["other"], dataset)
        assert snapshot(dataset.path) == before

    def test_what_can_be_resumed(self, path: Path) -> None:
        good = (path / "other" / "1" / "z0" / "y0" / "x0.wkw").read_bytes()
        self.spoil(path)
        target = path.parent / "copy"
        with pytest.raises(FormatError):
            wkdask.copy(wkdask.open(path), target, resume=True)
        assert not any(layer.mags for layer in wkdask.open(target).layers.values())
        with pytest.raises(ExistsError, match="resume=True"):
            wkdask.copy(wkdask.open(path), target)
        (path / "other" / "1" / "z0" / "y0" / "x0.wkw").write_bytes(good)
        report = wkdask.copy(wkdask.open(path), target, resume=True)
        assert report.ok
        assert wkdask.equal(wkdask.open(path), wkdask.open(target))

    def test_an_import(self, path: Path) -> None:
        self.spoil(path)
        before = snapshot(path.parent)
        for target in (path.parent / "new", path):
            with pytest.raises(FormatError):
                wkdask.convert(wkdask.open(path)["other"], target, layer_name="again")
            assert snapshot(path.parent) == before

    @pytest.mark.parametrize("target", ["dataset", "path", "layer"])
    def test_an_array(self, path: Path, target: str) -> None:
        array = wkdask.open(path)["other"].to_xarray(1)
        self.spoil(path)
        if target == "layer":
            box = wkdask.BoundingBox((0, 0, 0), FINE)
            wkdask.open(path).add_layer("new", "color", "uint8", bounding_box=box)
        before = snapshot(path.parent)
        where = {
            "dataset": lambda: wkdask.open(path),
            "path": lambda: path.parent / "fresh",
            "layer": lambda: wkdask.open(path)["new"],
        }[target]()
        name = {} if target == "layer" else {"name": "new"}
        with pytest.raises(FormatError):
            array.wkw.to_wkw(where, align="rechunk", **name)
        assert snapshot(path.parent) == before

    def test_all_variables_or_none(self, path: Path) -> None:
        import xarray as xr

        variables = xr.open_dataset(path, engine="wkw", chunks={})
        assert set(variables.data_vars) == {"color", "other"}
        self.spoil(path)
        before = snapshot(path.parent)
        with pytest.raises(FormatError):
            variables.wkw.to_wkw(path.parent / "fresh", align="rechunk")
        assert snapshot(path.parent) == before
