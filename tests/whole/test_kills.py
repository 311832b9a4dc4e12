"""Every operation that writes, killed at a random moment: the dataset opens, a rerun completes it.

Each round begins the operation in a process of its own, sometimes two of them at a time, and kills
it after a random time. What another operation has written must never change.
"""

from __future__ import annotations

import multiprocessing
import os
import random
import signal
import time
from collections.abc import Callable
from multiprocessing.process import BaseProcess
from pathlib import Path

import numpy as np
import pytest

import wkdask
from wkdask.testing import snapshot

EDGE = 64
ROUNDS = int(os.environ.get("WKDASK_TEST_KILLS", "4"))

OPERATIONS = {
    "downsample": "layer.downsample(1, mags=[2, 4], mode='max', resume=True)",
    "upsample": "ds['coarse'].upsample(resume=True)",
    "compress": "layer[1].compress()",
    "rechunk": "layer[1].rechunk(blocks_per_file_edge=random.choice([1, 4]))",
    "copy": "wkdask.copy(ds['other'], ds, layer_name='copied', resume=True)",
    "copy of all": "wkdask.copy(ds, path + '-copy', resume=True)",
    "import": "wkdask.convert(voxels(), ds, layer_name='imported', resume=True)",
    "export": "wkdask.convert(ds['other'], path + '.zarr')",
    "to_wkw": "ds['other'].to_xarray().wkw.to_wkw(ds, name='labelled', resume=True, **small)",
    "store": "layer[1].store(voxels()[None], resume=True, align='rechunk')",
    "for_each_chunk": "layer[1].for_each_chunk(work, resume=True)",
    "write": "layer[1].write(voxels())",
    "json": "ds['other'].bounding_box = ds['other'].bounding_box",
}

PROGRAM = f"""
import random
import numpy as np
import wkdask

def voxels():
    return np.random.default_rng(0).integers(1, 255, ({EDGE},) * 3, dtype=np.uint8)

def work(chunk):
    view, _ = chunk
    box = view.bounding_box
    view.write(voxels()[tuple(map(slice, box.topleft, box.bottomright))])

small = {{"block_edge": 8, "blocks_per_file_edge": 2}}
ds = wkdask.open(path)
layer = ds["color"]
is_ready.set()
try:
    exec(operation)
except wkdask.errors.BusyError:
    raise SystemExit(7)
except wkdask.errors.ExistsError:
    raise SystemExit(8)
"""
BUSY, EXISTS = 7, 8


def voxels() -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
    return np.random.default_rng(0).integers(1, 255, (EDGE,) * 3, dtype=np.uint8)


@pytest.fixture(params=["wkw", "zarr3"])
def path(tmp_path: Path, request: pytest.FixtureRequest) -> Path:
    kind = request.param
    blocks = "lz4" if kind == "wkw" else "raw"
    dataset = wkdask.create(tmp_path / "tissue", voxel_size=(8, 8, 8))
    box = wkdask.BoundingBox((0, 0, 0), (EDGE,) * 3)
    for name in ("color", "other"):
        layer = dataset.add_layer(name, "color", "uint8", bounding_box=box, data_format=kind)
        layer.add_mag(1, 8, 2, blocks).write(voxels())
    coarse = dataset.add_layer("coarse", "color", "uint8", bounding_box=box, data_format=kind)
    coarse.add_mag(2, 8, 2, blocks).write(voxels()[::2, ::2, ::2])
    return dataset.path


@pytest.fixture(scope="module")
def begin() -> Callable[[Path, str], BaseProcess]:
    """A function that begins an operation in a process of its own."""
    server = multiprocessing.get_context("forkserver")
    server.set_forkserver_preload(["wkdask.cli.main", "wkdask.formats.convert", "xarray", "zarr"])

    def begun(path: Path, operation: str) -> BaseProcess:
        is_ready = server.Event()
        names = {"path": str(path), "operation": operation, "is_ready": is_ready}
        process = server.Process(target=exec, args=(PROGRAM, names))
        process.start()
        assert is_ready.wait(60)
        return process

    return begun


def check_voxels(path: Path) -> None:
    """Read all that is listed, by names that may have been made."""
    dataset = wkdask.open(path)
    fine = voxels()
    for name, layer in dataset.layers.items():
        for mag, view in layer.mags.items():
            found = view.read((0, 0, 0), view.bounding_box.size)[0]
            if name == "coarse":
                expected = fine[::2, ::2, ::2]
                if mag == wkdask.Mag(1):
                    expected = expected.repeat(2, 0).repeat(2, 1).repeat(2, 2)
            else:
                factor = mag.factors[0]
                edge = EDGE // factor
                cubes = fine.reshape(edge, factor, edge, factor, edge, factor)
                expected = cubes.max(axis=(1, 3, 5))
            assert np.array_equal(found, expected), (name, mag)
    assert wkdask.check(path, level=2).ok


@pytest.mark.slow
@pytest.mark.parametrize("name", OPERATIONS)
def test_one_is_killed(path: Path, begin: Callable[[Path, str], BaseProcess], name: str) -> None:
    rng = random.Random(name)
    for _ in range(ROUNDS):
        process = begin(path, OPERATIONS[name])
        time.sleep(rng.uniform(0, 0.3))
        process.kill()
        process.join()
        check_voxels(path)
    process = begin(path, OPERATIONS[name])
    process.join()
    assert process.exitcode in (0, EXISTS if name == "export" else 0)
    check_voxels(path)
    assert not any("rechunked" in file for file in snapshot(path))


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(2))
def test_two_at_a_time(path: Path, begin: Callable[[Path, str], BaseProcess], seed: int) -> None:
    rng = random.Random(seed)
    for _ in range(4 * ROUNDS):
        chosen = rng.choices(list(OPERATIONS), k=2)
        if rng.random() < 0.3:
            chosen[1] = chosen[0]
        processes = []
        for name in chosen:
            processes.append(begin(path, OPERATIONS[name]))
            time.sleep(rng.uniform(0, 0.05))
        if rng.random() < 0.5:
            time.sleep(rng.uniform(0, 0.2))
            rng.choice(processes).kill()
        for process in processes:
            process.join()
        codes = [process.exitcode for process in processes]
        assert set(codes) <= {0, BUSY, EXISTS, -signal.SIGKILL}, (chosen, codes)
        check_voxels(path)
