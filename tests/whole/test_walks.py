"""Random walks over everything that writes, against a model of NumPy arrays.

After each walk, what is on disk is read by wkdask, by `wkw` itself, and by `webknossos`.
"""

from __future__ import annotations

import shutil
import tempfile
import warnings
from pathlib import Path
from typing import Any

import dask.array as da
import numpy as np
import pytest
import wkw
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule
from numpy.typing import NDArray

import wkdask
from wkdask.geometry import Mag

EDGE = 32
BOX = wkdask.BoundingBox((0, 0, 0), (EDGE,) * 3)
NAMES = ("color", "cells", "x")
BLOCKS = st.sampled_from(["raw", "lz4", "lz4hc"])
FORMATS = st.sampled_from(["wkw", "zarr3", "zarr"])
Voxels = NDArray[Any]

pytestmark = pytest.mark.filterwarnings("ignore:writing parts of compressed files")


class Walk(RuleBasedStateMachine):
    """A dataset on disk, and what it must hold."""

    def __init__(self) -> None:
        super().__init__()
        self.root = Path(tempfile.mkdtemp())
        self.dataset = wkdask.create(self.root / "tissue", voxel_size=(8, 8, 8))
        self.model: dict[str, dict[Mag, Voxels]] = {}
        self.copies = 0

    def teardown(self) -> None:
        try:
            self.read_by_others()
        finally:
            shutil.rmtree(self.root)

    @initialize(seed=st.integers(0, 99))
    def begin(self, seed: int) -> None:
        self.rng = np.random.default_rng(seed)

    # --- what can be done -------------------------------------------------------------------

    @precondition(lambda self: len(self.model) < len(NAMES))
    @rule(
        dtype=st.sampled_from(["uint8", "uint32"]),
        block_type=BLOCKS,
        channels=st.integers(1, 2),
        kind=FORMATS,
    )
    def add_layer(self, dtype: str, block_type: Any, channels: int, kind: Any) -> None:
        name = NAMES[len(self.model)]
        category = "segmentation" if name == "cells" else "color"
        layer = self.dataset.add_layer(
            name, category, dtype, channels, bounding_box=BOX, data_format=kind
        )
        blocks = int(self.rng.integers(0, 2)) + 1
        layer.add_mag(1, 8, blocks, self.fitting(name, block_type))
        self.model[name] = {Mag(1): np.zeros((channels, EDGE, EDGE, EDGE), dtype)}

    def fitting(self, name: str, block_type: str) -> Any:
        """Return how blocks are stored in the format of a layer."""
        is_wkw = self.dataset[name].data_format == "wkw"
        return block_type if is_wkw or block_type == "raw" else "zstd"

    def drawn(self, data: Any) -> tuple[str, Mag, wkdask.MagView, Voxels]:
        name = data.draw(st.sampled_from(sorted(self.model)))
        mag = data.draw(st.sampled_from(sorted(self.model[name])))
        return name, mag, self.dataset[name][mag], self.model[name][mag]

    def noise(self, shape: tuple[int, ...], dtype: Any) -> Voxels:
        return self.rng.integers(0, 4, shape).astype(dtype)

    @precondition(lambda self: self.model)
    @rule(data=st.data())
    def write(self, data: Any) -> None:
        _, _, view, voxels = self.drawn(data)
        edge = voxels.shape[1]
        start = [data.draw(st.integers(0, edge - 1)) for _ in range(3)]
        stop = [data.draw(st.integers(at + 1, edge)) for at in start]
        part = (slice(None), *map(slice, start, stop))
        voxels[part] = self.noise(voxels[part].shape, voxels.dtype)
        view.write(voxels[part], start)

    @precondition(lambda self: self.model)
    @rule(data=st.data(), as_labelled=st.booleans())
    def store(self, data: Any, as_labelled: bool) -> None:
        _, _, view, voxels = self.drawn(data)
        voxels[...] = self.noise(voxels.shape, voxels.dtype)
        if as_labelled:
            array = view.to_xarray().copy(data=da.from_array(voxels, chunks=7))
            array.wkw.store(view, align="rechunk")
        else:
            view.store(da.from_array(voxels, chunks=5), align="rechunk", resume=True)

    @precondition(lambda self: self.model)
    @rule(data=st.data(), add=st.integers(1, 3))
    def work_on_chunks(self, data: Any, add: int) -> None:
        _, _, view, voxels = self.drawn(data)
        voxels += voxels.dtype.type(add)

        def work(chunk: Any) -> None:
            part, _ = chunk
            part.write(part.read() + voxels.dtype.type(add))

        view.for_each_chunk(work)

    @precondition(lambda self: self.model)
    @rule(data=st.data(), block_type=BLOCKS)
    def compress(self, data: Any, block_type: Any) -> None:
        name, _, view, _ = self.drawn(data)
        view.compress(self.fitting(name, block_type))

    @precondition(lambda self: self.model)
    @rule(data=st.data(), block_type=BLOCKS, blocks=st.sampled_from([1, 2, 4]))
    def rechunk(self, data: Any, block_type: Any, blocks: int) -> None:
        name, _, view, _ = self.drawn(data)
        view.rechunk(8, blocks, self.fitting(name, block_type))

    @precondition(lambda self: self.model)
    @rule(data=st.data())
    def downsample(self, data: Any) -> None:
        name = data.draw(st.sampled_from(sorted(self.model)))
        mags = self.model[name]
        start = max(mags)
        if start < Mag(8):
            coarser = 2 * start.factors[0]
            self.dataset[name].downsample(start, mags=[coarser], mode="max", force=True)
            c, x, y, z = mags[start].shape
            cubes = mags[start].reshape(c, x // 2, 2, y // 2, 2, z // 2, 2)
            mags[Mag(coarser)] = cubes.max(axis=(2, 4, 6))

    @precondition(lambda self: self.model)
    @rule(data=st.data())
    def downsample_a_view(self, data: Any) -> None:
        name = data.draw(st.sampled_from(sorted(self.model)))
        mags = self.model[name]
        if Mag(2) in mags:
            layer = self.dataset[name]
            wkdask.downsample(layer[1], layer[2], "max", force=True)
            c, x, y, z = mags[Mag(1)].shape
            cubes = mags[Mag(1)].reshape(c, x // 2, 2, y // 2, 2, z // 2, 2)
            mags[Mag(2)] = cubes.max(axis=(2, 4, 6))

    @precondition(lambda self: self.model)
    @rule(
        data=st.data(),
        by=st.sampled_from(["copy", "convert", "to_wkw"]),
        kind=st.one_of(st.none(), FORMATS),
    )
    def copy(self, data: Any, by: str, kind: Any) -> None:
        name, mag, view, voxels = self.drawn(data)
        self.copies += 1
        target = self.root / f"copy{self.copies}"
        if by == "copy":
            wkdask.copy(self.dataset, target, data_format=kind)
            assert wkdask.equal(self.dataset, wkdask.open(target))
            return
        if by == "convert":
            found = wkdask.convert(self.dataset[name], target, mags=[mag], blocks_per_file_edge=1)
        else:
            view.to_xarray().wkw.to_wkw(
                target, block_edge=8, blocks_per_file_edge=4, align="rechunk"
            )
            found = wkdask.open(target)
        assert np.array_equal(found[name][mag].read((0, 0, 0), voxels.shape[1:]), voxels)

    @rule()
    def open_again(self) -> None:
        self.dataset = wkdask.open(self.dataset.path)
        assert set(self.dataset.layers) == set(self.model)
        for name, mags in self.model.items():
            assert set(self.dataset[name].mags) == set(mags)
            for mag, voxels in mags.items():
                view = self.dataset[name][mag]
                assert np.array_equal(view.read((0, 0, 0), voxels.shape[1:]), voxels), (name, mag)
                assert np.array_equal(view.get_view()[...].compute(), voxels)
        assert wkdask.check(self.dataset.path, level=2).ok

    def read_by_others(self) -> None:
        self.open_again()
        for name, mags in self.model.items():
            for mag, voxels in mags.items():
                if self.dataset[name].data_format != "wkw":
                    continue
                with wkw.Dataset.open(str(self.dataset.path / name / str(mag))) as opened:
                    assert np.array_equal(opened.read((0, 0, 0), voxels.shape[1:]), voxels)
        if not self.model:
            return
        webknossos = pytest.importorskip("webknossos")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            other = webknossos.Dataset.open(self.dataset.path)
            for name, mags in self.model.items():
                for mag, voxels in mags.items():
                    found = other.get_layer(name).get_mag(str(mag)).read()
                    assert np.array_equal(found, voxels), (name, mag)


QUICK = settings(
    max_examples=2, stateful_step_count=12, deadline=None, suppress_health_check=list(HealthCheck)
)


class TestWalks(Walk.TestCase):  # type: ignore[misc,name-defined]
    """A few walks."""

    settings = QUICK


@pytest.mark.slow
class TestLongWalks(Walk.TestCase):  # type: ignore[misc,name-defined]
    """Many walks."""

    settings = settings(QUICK, max_examples=40, stateful_step_count=40)
