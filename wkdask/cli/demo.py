"""The story that `wkdask demo` tells: every part of wkdask once, on a cluster, verified.

What wkdask wrote is read back by libwkw and compared with plain NumPy, so that nothing vouches for
itself.
"""

from __future__ import annotations

import importlib.util
import itertools
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import wkw
from distributed import Client, LocalCluster
from numpy.typing import NDArray

from wkdask.arrays.view import View
from wkdask.dataset.dataset import Dataset, Layer, MagView, create
from wkdask.errors import ArgumentError, ExistsError
from wkdask.geometry import BoundingBox, Mag, MagLike, Vec3
from wkdask.pyramid.resample import downsample
from wkdask.storage.header import BlockType
from wkdask.testing import Tissue

__all__ = ["run_demo"]

Voxels = NDArray[np.generic]

_VOXEL_SIZE_NM = (11.24, 11.24, 28.0)
# Neither corner lies on a block or a file, and the size is odd.
_BOX = BoundingBox((77, 41, 13), (301, 275, 97))
_BLOCKS_PER_FILE_EDGE = 4
_LARGEST_EDGE = 512
_MODES = {"color": "median", "segmentation": "mode"}


def run_demo(
    source: str | None, output: str | None, echo: Callable[[str], None], *, workers: int = 2
) -> bool:
    """Run every step and return whether all voxels are right.

    Parameters
    ----------
    source
        A dataset, which is only read; None makes a synthetic one.
    output
        A directory that does not exist yet; None chooses `wkdask-demo` or, where that exists, a
        numbered name.
    echo
        Prints a line.
    workers
        Worker processes of the cluster.
    """
    story = _Story(echo)
    given = Dataset(source) if source is not None else None
    sources = _sources(given) if given else []
    result = _new_dataset(output, given)
    with _cluster(workers) as client:
        address = client.dashboard_link
        hint = "" if importlib.util.find_spec("bokeh") else ' (pip install "wkdask[dashboard]")'
        echo(f"cluster: {workers} worker processes, dashboard {address}{hint}")
        truth = _copied(sources, result, story) if sources else _painted(result, story)
        for layer in list(result.layers.values()):
            _slice_lazily(layer, truth[layer.name], story)
        first = next(iter(result.layers))
        negative = _unused(f"{first}_negative", lambda name: name in result.layers)
        truth[negative] = _negative(result, first, negative, truth[first], story)
        for name, category in [(layer.name, layer.category) for layer in result.layers.values()]:
            _halve(result[name], _MODES[category], truth[name], story)
    echo(f"{story.compared:,} voxels compared with NumPy, {story.wrong:,} differ")
    echo(f"result: {result.path}, after {story.seconds:.1f} s")
    return story.wrong == 0 and story.compared > 0


@dataclass
class _Story:
    """Prints steps with their times, and counts the voxels that were compared."""

    echo: Callable[[str], None]
    compared: int = 0
    wrong: int = 0
    begun: float = field(default_factory=time.perf_counter)

    @property
    def seconds(self) -> float:
        return time.perf_counter() - self.begun

    @contextmanager
    def step(self, text: str) -> Iterator[None]:
        begun = time.perf_counter()
        yield
        self.echo(f"{time.perf_counter() - begun:6.2f} s  {text}")

    def compare(self, found: Voxels, expected: Voxels) -> None:
        if found.shape != expected.shape or found.dtype != expected.dtype:
            self.wrong += expected.size
        else:
            both_nan = (found != found) & (expected != expected)
            self.wrong += int(np.count_nonzero((found != expected) & ~both_nan))
        self.compared += expected.size


@contextmanager
def _cluster(workers: int) -> Iterator[Client]:
    with (
        LocalCluster(
            n_workers=workers,
            threads_per_worker=1,
            processes=True,
            # The default would open the dashboard to the whole network.
            dashboard_address="127.0.0.1:0",
            host="127.0.0.1",
        ) as cluster,
        Client(cluster) as client,
    ):
        yield client


def _new_dataset(output: str | None, given: Dataset | None) -> Dataset:
    if output is not None and os.path.lexists(output):
        raise ExistsError(f"{output} exists: name a new directory with --output.")
    path = Path(output or _unused("wkdask-demo", os.path.lexists))
    if given is None:
        return create(path, voxel_size=_VOXEL_SIZE_NM)
    if path.resolve().is_relative_to(Path(given.path).resolve()):
        raise ArgumentError(
            f"{path} lies in {given.path}, which is only read: name another with --output."
        )
    return create(path, voxel_size=given.voxel_size, unit=given.unit)


def _unused(name: str, is_used: Callable[[str], bool]) -> str:
    """Return a name, with a number behind it if it is used."""
    names = itertools.chain([name], (f"{name}-{i}" for i in itertools.count(2)))
    return next(name for name in names if not is_used(name))


# --- where voxels come from ---------------------------------------------------------------------


def _painted(result: Dataset, story: _Story) -> dict[str, Voxels]:
    """Make synthetic layers, a file at a time, and return what they must hold."""
    tissue = Tissue(voxel_size=_VOXEL_SIZE_NM)
    for name, dtype in {"color": "uint8", "segmentation": "uint32"}.items():
        layer = result.add_layer(name, name, dtype, bounding_box=_BOX)
        view = _add_mag(layer, 1, "lz4").get_view()
        with story.step(f"painted {name}, {_text(view.size)} voxels, a file per task"):
            view.for_each_chunk(partial(_paint, tissue, name))
    truth: dict[str, Voxels] = {
        "color": tissue.grey(_BOX.topleft, _BOX.size)[np.newaxis],
        "segmentation": tissue.labels(_BOX.topleft, _BOX.size)[np.newaxis],
    }
    result["segmentation"].largest_segment_id = int(np.max(truth["segmentation"]))
    for name, layer in result.layers.items():
        story.compare(_by_libwkw(layer[1]), truth[name])
    return truth


def _paint(tissue: Tissue, name: str, chunk: tuple[View, int]) -> None:
    view, _ = chunk
    make = tissue.grey if name == "color" else tissue.labels
    view.write(make(view.global_offset, view.size))


def _sources(given: Dataset) -> list[tuple[Layer, MagView]]:
    """Return the layers that wkdask can read, with their finest mag."""
    layers = [layer for layer in given.layers.values() if layer.properties.can_be_read]
    sources = [
        (layer, _finest(layer)) for layer in layers if layer.mags and layer.bounding_box.volume
    ]
    if not sources:
        raise ArgumentError(f"{given.path} has no layer with voxels that are stored as WKW.")
    return sources


def _copied(
    sources: list[tuple[Layer, MagView]], result: Dataset, story: _Story
) -> dict[str, Voxels]:
    """Store the finest mag of each layer into the result, and return what it must hold."""
    truth = {}
    for layer, source in sources:
        view = _middle(source)
        copy = result.add_layer(layer.name, layer.category, layer.dtype, layer.num_channels)
        copy.largest_segment_id = layer.largest_segment_id
        copy.bounding_box = view.bounding_box.scaled_by(source.mag or Mag(1))
        target = _add_mag(copy, source.mag or 1, "lz4")
        with story.step(f"stored {layer.name}, {_text(view.size)} voxels, aligned to files"):
            target.store(view.to_dask(), align="rechunk")
        truth[layer.name] = _by_libwkw(view)
        story.compare(_by_libwkw(target), truth[layer.name])
    return truth


def _middle(mag: MagView) -> View:
    """Return the middle of a mag, as much of it as a demo should take."""
    box = mag.bounding_box
    size = tuple(min(length, _LARGEST_EDGE) for length in box.size)
    start = (a + (n - m) // 2 for a, n, m in zip(box.topleft, box.size, size, strict=True))
    return mag.get_view(tuple(start), size, read_only=True)


# --- what is done with them ---------------------------------------------------------------------


def _slice_lazily(layer: Layer, truth: Voxels, story: _Story) -> None:
    view = _finest(layer).get_view()
    z = view.size[2] // 2
    plane = view[0, :, ::2, z]
    with story.step(f"sliced {layer.name}[0, :, ::2, {z}]: {plane.size:,} of {truth.size:,} read"):
        found = plane.compute()
    story.compare(found, truth[0, :, ::2, z])


def _negative(result: Dataset, name: str, new: str, truth: Voxels, story: _Story) -> Voxels:
    """Run a function over pairs of chunks: every voxel becomes its complement."""
    source = _finest(result[name])
    layer = result.add_layer(
        new,
        result[name].category,
        source.dtype,
        source.num_channels,
        bounding_box=result[name].bounding_box,
    )
    target = _add_mag(layer, source.mag or 1, "raw")
    with story.step(f"wrote {layer.name} by a function of chunk pairs"):
        source.for_zipped_chunks(_write_complement, target)
    expected = _complement(truth)
    story.compare(_by_libwkw(target), expected)
    return expected


def _write_complement(chunk: tuple[View, View, int]) -> None:
    source, target, _ = chunk
    target.write(_complement(source.read()))


def _complement(voxels: Voxels) -> Voxels:
    result: Voxels = np.negative(voxels) if voxels.dtype.kind == "f" else np.invert(voxels)
    return result


def _halve(layer: Layer, mode: str, truth: Voxels, story: _Story) -> None:
    source = _finest(layer)
    factors = _halving(layer.dataset.voxel_size, source.mag or Mag(1))
    mag = Mag(f * m for f, m in zip(factors, source.mag or Mag(1), strict=True))
    target = _add_mag(layer, mag, "lz4hc")
    with story.step(f"downsampled {layer.name} to mag {mag} by {mode}"):
        downsample(source, target, mode)
    expected = _plainly_downsampled(truth, source.bounding_box, factors, mode)
    story.compare(_by_libwkw(target), expected)


def _halving(voxel_size: tuple[float, float, float], mag: Mag) -> Vec3:
    """Return factors of 2 on the axes where voxels are shortest, 1 on much longer ones."""
    edges = [edge * factor for edge, factor in zip(voxel_size, mag, strict=True)]
    x, y, z = (2 if edge < 1.5 * min(edges) else 1 for edge in edges)
    return x, y, z


def _add_mag(layer: Layer, mag: MagLike, block_type: BlockType) -> MagView:
    """Add a mag whose files are small enough that there are several of them."""
    return layer.add_mag(mag, blocks_per_file_edge=_BLOCKS_PER_FILE_EDGE, block_type=block_type)


def _finest(layer: Layer) -> MagView:
    return min(layer.mags.items())[1]


# --- plain NumPy and libwkw, for comparison -----------------------------------------------------


def _by_libwkw(view: View) -> Voxels:
    box = view.bounding_box
    dataset = wkw.Dataset.open(view.path)
    try:
        voxels: Voxels = dataset.read(box.topleft, box.size)
    finally:
        dataset.close()
    return voxels


def _plainly_downsampled(voxels: Voxels, box: BoundingBox, factors: Vec3, mode: str) -> Voxels:
    outer = box.align_with_mag(factors, ceil=True)
    before = [a - b for a, b in zip(box.topleft, outer.topleft, strict=True)]
    after = [a - b for a, b in zip(outer.bottomright, box.bottomright, strict=True)]
    padding = [(0, 0), *zip(before, after, strict=True)]
    padded = np.pad(voxels, padding, mode="symmetric")
    fx, fy, fz = factors
    # In the order y fastest, then x, then z, which decides between equally frequent values.
    corners = itertools.product(range(fz), range(fx), range(fy))
    stacked = np.stack([padded[:, x::fx, y::fy, z::fz] for z, x, y in corners])
    return _plain_mode(stacked) if mode == "mode" else _plain_median(stacked)


def _plain_median(stacked: NDArray[Any]) -> Voxels:
    if stacked.dtype.kind == "f":
        median: Voxels = np.median(stacked, axis=0).astype(stacked.dtype)
        return median
    ordered = np.sort(stacked, axis=0)
    low, high = ordered[(len(ordered) - 1) // 2], ordered[len(ordered) // 2]
    # Python's whole numbers are exact also where the sum of two 64-bit ones is not.
    total = (
        low.astype(object) + high.astype(object) if low.itemsize == 8 else low + high.astype("i8")
    )
    midpoint: Voxels = (np.sign(total) * (abs(total) // 2)).astype(stacked.dtype)
    return midpoint


def _plain_mode(stacked: Voxels) -> Voxels:
    votes = [np.count_nonzero(stacked == candidate, axis=0) for candidate in stacked]
    winner = np.argmax(votes, axis=0)
    chosen: Voxels = np.take_along_axis(stacked, winner[np.newaxis], axis=0)[0]
    return chosen


def _text(size: Vec3) -> str:
    return " x ".join(map(str, size))
