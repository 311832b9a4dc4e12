"""`wkdask.storage.runs`: what it writes is LZ4, as LZ4 itself and libwkw read it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lz4.block
import numpy as np
import pytest
import wkw
from hypothesis import given, settings
from hypothesis import strategies as st

import wkdask
from wkdask.storage.codec import BlockPacker
from wkdask.storage.header import VolumeHeader
from wkdask.storage.runs import WIDTHS, pack_runs, workspace

WIDTH_OF = {1: "uint8", 2: "uint16", 4: "uint32", 8: "uint64"}


def packed(voxels: np.ndarray) -> bytes:
    """Return the block, or nothing if it is none of labels; nothing is written behind the bound."""
    raw = voxels.view(np.uint8)
    bound = len(raw) + len(raw) // 255 + 16
    out = np.full(bound + 64, 0xEE, np.uint8)
    work = workspace(len(voxels), voxels.itemsize)
    count = pack_runs(*work, raw, voxels.itemsize, out.ctypes.data)
    assert 0 <= count <= bound
    assert (out[count:] == 0xEE).all()
    return out[:count].tobytes()


def check(voxels: np.ndarray, *, is_of_runs: bool | None = None) -> int:
    """Return the size of a block, after LZ4 has decoded it."""
    block = packed(voxels)
    if is_of_runs is not None:
        assert bool(block) == is_of_runs
    if block:
        size = voxels.nbytes
        assert lz4.block.decompress(block, uncompressed_size=size) == voxels.tobytes()
    return len(block)


def of_lengths(lengths: Any, values: Any, width: int) -> np.ndarray:
    return np.repeat(np.asarray(values).astype(WIDTH_OF[width]), lengths)


@pytest.mark.parametrize("width", WIDTHS)
@settings(max_examples=150, deadline=None)
@given(
    lengths=st.lists(
        st.one_of(st.integers(1, 12), st.integers(1, 300), st.just(5000)), min_size=2, max_size=200
    ),
    seed=st.integers(0, 2**32 - 1),
    labels=st.integers(1, 9),
)
def test_random_runs(width: int, lengths: list[int], seed: int, labels: int) -> None:
    rng = np.random.default_rng(seed)
    ids = rng.integers(0, 2**63, labels, np.uint64) | np.uint64(1)
    check(of_lengths(lengths, rng.choice(ids, len(lengths)), width))


@pytest.mark.parametrize("width", WIDTHS)
@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), shift=st.integers(0, 3), noise=st.integers(0, 30))
def test_rows_that_shift(width: int, seed: int, shift: int, noise: int) -> None:
    """Like tissue: each row is the one before, moved by a few voxels, with some that differ."""
    rng = np.random.default_rng(seed)
    row = of_lengths(rng.integers(5, 40, 20), rng.integers(0, 9, 20), width)[:128]
    row = np.resize(row, 128)
    rows = [np.roll(row, int(rng.integers(-shift, shift + 1)) * i) for i in range(64)]
    voxels = np.concatenate(rows)
    voxels[rng.integers(0, len(voxels), noise)] = rng.integers(0, 9, noise)
    size = check(voxels)
    assert size < voxels.nbytes // 2


@pytest.mark.parametrize("width", WIDTHS)
def test_extremes(width: int) -> None:
    far = 65535 // width
    head = of_lengths([40, 50, 60], [1, 2, 3], width)
    for gap in range(far - 152, far - 146):
        # The same runs again, at offsets around the largest one.
        middle = of_lengths([gap], [9], width)
        check(np.concatenate([head, middle, head]), is_of_runs=True)
    for tail in range(1, 20):
        check(of_lengths([100, tail], [1, 2], width), is_of_runs=True)
        check(of_lengths([100, 7, tail], [1, 2, 1], width), is_of_runs=True)
    for length in (14, 15, 16, 18, 19, 20, 269, 270, 271, 272, 273, 274, 275, 530, 65535, 100_000):
        check(of_lengths([length, 64], [5, 6], width), is_of_runs=True)
    # Runs of which no two are alike: nothing but literals and the voxel before.
    check(of_lengths([7] * 250, range(250), width), is_of_runs=True)
    check(of_lengths([6] * 250, range(250), width))


@pytest.mark.parametrize("width", WIDTHS)
def test_what_is_left_to_others(width: int) -> None:
    noise = np.random.default_rng(0).integers(0, 200, 4096).astype(WIDTH_OF[width])
    check(noise, is_of_runs=False)
    check(of_lengths([2] * 1000, range(1000), width), is_of_runs=False)
    check(of_lengths([8], [1], width), is_of_runs=False)
    assert not len(workspace(2**18 + 1, width).starts)
    assert not len(workspace(4096, 3).starts)


@pytest.mark.parametrize(
    ("dtype", "channels"),
    [
        *[(f"{sign}int{bits}", 1) for sign in ("", "u") for bits in (8, 16, 32, 64)],
        ("float32", 1), ("float64", 1), ("uint8", 2), ("uint8", 3), ("uint16", 4), ("uint64", 2),
    ],
)  # fmt: skip
def test_libwkw_reads_them(tmp_path: Path, dtype: str, channels: int) -> None:
    x, y, z = np.ogrid[:64, :64, :64]
    labels = ((x + 3 * np.sin(y / 5) + z / 3) // 9 % 5 + (y // 20) * 7).astype(dtype)
    voxels = np.stack([labels + np.array(c, dtype) for c in range(channels)])
    box = wkdask.BoundingBox((0, 0, 0), (64, 64, 64))
    ds = wkdask.create(tmp_path / "tissue", voxel_size=(8, 8, 8))
    layer = ds.add_layer("labels", "color", dtype, num_channels=channels, bounding_box=box)
    layer.add_mag(1, block_type="lz4hc", blocks_per_file_edge=2).write(voxels)
    with wkw.Dataset.open(str(tmp_path / "tissue/labels/1")) as theirs:
        found = theirs.read((0, 0, 0), (64, 64, 64))
    np.testing.assert_array_equal(found, voxels)
    np.testing.assert_array_equal(layer[1].read(), voxels)


@pytest.mark.parametrize("dtype", ["uint32", "uint64"])
def test_not_far_from_the_best_of_lz4hc(dtype: str) -> None:
    """Labels of cells with rough borders, as in tissue."""
    rng = np.random.default_rng(0)
    x, y, z = np.meshgrid(*[np.arange(32)] * 3, indexing="ij")
    rough = x + rng.integers(0, 2, x.shape)
    labels = ((rough * 3 + y * 2 + z) // 23 * 1000 + (y + z) // 15).astype(dtype)
    voxels = np.asfortranarray(labels[None])
    sizes = {}
    for block_type in ("lz4", "lz4hc"):
        header = VolumeHeader(dtype, block_type=block_type, blocks_per_file_edge=1)
        [(_, of_blocks)] = BlockPacker(header).pack(voxels)
        sizes[block_type] = int(of_blocks.sum())
    nine = lz4.block.compress(
        voxels.ravel(order="K").tobytes(), mode="high_compression", compression=9, store_size=False
    )
    assert sizes["lz4hc"] < 0.6 * sizes["lz4"]
    # Of real labels it is as small; these are more regular than tissue.
    assert sizes["lz4hc"] < 1.25 * len(nine)
