"""What dask's dashboard shows of a run: a group of tasks for each operation, layer and mag."""

from __future__ import annotations

import re
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import dask.array as da
import numpy as np
import pytest
from dask.utils import key_split
from distributed import Client, get_task_stream

import wkdask
from wkdask.errors import ChunkErrors

BOX = wkdask.BoundingBox((0, 0, 0), (64, 64, 64))


@pytest.fixture
def layer(tmp_path: Path) -> wkdask.Layer:
    ds = wkdask.create(tmp_path / "tissue", voxel_size=(8, 8, 8))
    layer = ds.add_layer("my-cells", "color", "uint8", bounding_box=BOX)
    layer.add_mag(1, blocks_per_file_edge=1).write(np.full(BOX.size, 7, np.uint8))
    return layer


def test_groups(layer: wkdask.Layer, client: Client) -> None:
    def brighten(chunk: Any) -> None:
        source, target, _ = chunk
        target.write(source.read() + np.uint8(1))

    bright = layer.dataset.add_layer("bright", "color", "uint8", bounding_box=BOX)
    mag = bright.add_mag(1, blocks_per_file_edge=1)
    ones = da.ones((1, 64, 64, 64), dtype=np.uint8, chunks=(1, 32, 32, 32))
    groups: set[str] = set()
    for run in (
        lambda: layer.downsample(mags=(2, "4-4-2"), executor=client),
        lambda: layer[1].for_zipped_chunks(brighten, mag, executor=client),
        lambda: mag.store(ones, executor=client),
        lambda: mag.compress(executor=client),
        lambda: wkdask.copy(bright, layer.dataset, layer_name="other", executor=client),
    ):
        with get_task_stream(client=client) as stream:
            run()
        groups |= {key_split(each["key"]) for each in stream.data}
    assert groups == {
        "downsample my_cells 2",
        "downsample my_cells 4x4x2",
        "brighten bright 1",
        "store bright 1",
        "compress bright 1",
        "copy other 1",
    }


def test_log(layer: wkdask.Layer, caplog: pytest.LogCaptureFixture) -> None:
    def fail(chunk: Any) -> None:
        if chunk[1] == 1:
            raise ZeroDivisionError("no")

    caplog.set_level("INFO", "wkdask")
    layer.downsample(mags=(2,), executor=ThreadPoolExecutor(1))
    [line] = caplog.messages
    assert re.fullmatch(
        r"chunk 0, x \[0, 32\), y \[0, 32\), z \[0, 32\): [1-9]\d* bytes in \d\.\d\d s", line
    )
    caplog.clear()
    view = layer[1].get_view(read_only=True)
    with pytest.raises(ChunkErrors):
        view.for_each_chunk(fail, executor=ThreadPoolExecutor(1), on_error="collect")
    failed = [line for line in caplog.messages if "failed" in line]
    assert failed == ["chunk 1, x [0, 32), y [0, 32), z [32, 64): failed: ZeroDivisionError('no')"]
