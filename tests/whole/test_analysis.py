"""The recipes of docs/analysis.md, on threads and on a cluster, against NumPy on whole volumes."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr

import wkdask
from wkdask.testing import Tissue

PAGE = Path(__file__).parents[2] / "docs" / "analysis.md"
BOX = wkdask.BoundingBox((77, 41, 13), (140, 100, 60))
UM = 11.24e-3, 11.24e-3, 28e-3


@pytest.fixture(params=["threads", pytest.param("cluster", marks=pytest.mark.slow)])
def recipes(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> dict[str, Any]:
    """What the names of the page stand for when all its code has run."""
    if request.param == "cluster":
        request.getfixturevalue("client")
    monkeypatch.chdir(tmp_path)
    ds = wkdask.create("wkdask-demo", voxel_size=(11.24, 11.24, 28.0))
    tissue = Tissue()
    for name, dtype, paint, mode in (
        ("color", "uint8", tissue.grey, "median"),
        ("segmentation", "uint32", tissue.labels, "mode"),
    ):
        layer = ds.add_layer(name, name, dtype, bounding_box=BOX)
        fine = layer.add_mag(1, blocks_per_file_edge=2, block_type="lz4")
        fine.get_view().write(paint(BOX.topleft, BOX.size))
        wkdask.downsample(fine, layer.add_mag("2-2-1", blocks_per_file_edge=2), mode)
    # As in a script, so that functions travel to worker processes by value.
    names: dict[str, Any] = {"__name__": "__main__"}
    for code in re.findall(r"^```python\n(.*?)^```", PAGE.read_text("utf-8"), re.DOTALL | re.M):
        exec(compile(code, PAGE.name, "exec"), names)
    return names


@pytest.mark.filterwarnings("ignore:writing parts of compressed files:RuntimeWarning")
def test_recipes_are_what_numpy_says(recipes: dict[str, Any]) -> None:
    ds = wkdask.open("wkdask-demo")
    grey = np.asarray(ds["color"][1])[0].astype(float)
    ids = np.asarray(ds["segmentation"][1])[0]
    nm = [(np.arange(a, b) + 0.5) * edge * 1000
          for a, b, edge in zip(BOX.topleft, BOX.bottomright, UM, strict=True)]  # fmt: skip

    # a region in nanometres
    wanted = ((1000, 2000), (600, 1200), (500, 1500))
    inside = [(at >= a) & (at <= b) for at, (a, b) in zip(nm, wanted, strict=True)]
    part = grey[np.ix_(*inside)]
    np.testing.assert_array_equal(recipes["region"], part)

    # the same at three mags: the coarse voxels that touch it
    for mag, array in recipes["at_mags"].items():
        factors = wkdask.Mag(mag).factors
        offset = [a + int(np.argmax(i)) for a, i in zip(BOX.topleft, inside, strict=True)]
        ends = [a + int(i.sum()) for a, i in zip(offset, inside, strict=True)]
        corner = [a // f for a, f in zip(offset, factors, strict=True)]
        size = [-(-b // f) - c for b, f, c in zip(ends, factors, corner, strict=True)]
        np.testing.assert_array_equal(array, ds["color"][mag].read(corner, size)[0])

    # a profile
    np.testing.assert_allclose(recipes["profile"], grey.mean((0, 1)))
    np.testing.assert_allclose(recipes["profile"].z, nm[2])

    # a mask
    mask = ids == recipes["segment"]
    assert recipes["inside_mean"] == pytest.approx(grey[mask].mean())
    np.testing.assert_array_equal(recipes["only"], np.where(mask, grey, 0))

    # groups of a region
    slab = (nm[2] >= 500) & (nm[2] <= 700)
    for segment, mean in recipes["means"].to_series().items():
        assert mean == pytest.approx(grey[..., slab][ids[..., slab] == segment].mean())

    # volume and mean grey value of every segment
    table = recipes["segments"]
    assert table.index.tolist() == np.unique(ids).tolist()
    for segment, row in table.iterrows():
        there = ids == segment
        assert row.um3 == pytest.approx(there.sum() * np.prod(UM))
        assert row.grey == pytest.approx(grey[there].mean())

    # a derived layer
    large = [i for i in np.unique(ids) if i and (ids == i).sum() * np.prod(UM) > 0.01]
    assert recipes["large"].tolist() == large
    written = xr.open_dataset("wkdask-demo/large").large
    np.testing.assert_array_equal(written[0], np.where(np.isin(ids, large), ids, 0))
    assert written.attrs["category"] == "segmentation"
    assert written.attrs["largest_segment_id"] == max(large)
