"""The page that puts both libraries side by side: each row of its first table, on one dataset."""

from __future__ import annotations

import re
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import wkdask

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # what it imports warns of its own
    wk = pytest.importorskip("webknossos")

PAGE = Path(__file__).parents[2] / "docs" / "from_webknossos.md"
ROW = re.compile(r"^\| ([^|`]+) \| `([^`]+)` \| `([^`]+)` \|$", re.MULTILINE)


def rows(heading: str) -> list[tuple[str, str, str]]:
    """Return what, their call and ours, for each row below a heading."""
    section = PAGE.read_text(encoding="utf-8").split(f"## {heading}\n")[1].split("\n## ")[0]
    return ROW.findall(section)


def evaluated(code: str, names: dict[str, Any]) -> Any:
    """Run `name = call`, or return the value of a call."""
    if assigned := re.match(r"(\w+) = (?!=)(.*)", code):
        names[assigned[1]] = eval(assigned[2], names)
        return None
    return eval(code, names)


def same(ours: Any, theirs: Any) -> bool:
    if isinstance(ours, np.ndarray):
        return np.array_equal(ours, theirs)
    if isinstance(ours, tuple):
        return ours == tuple(theirs)
    return ours == theirs


@pytest.mark.filterwarnings("ignore")
def test_both_sides_of_what_is_read(tmp_path: Path) -> None:
    path = tmp_path / "tissue"
    ds = wkdask.create(path, voxel_size=(11.24, 11.24, 28))
    box = wkdask.BoundingBox((77, 41, 13), (140, 100, 60))
    layer = ds.add_layer("color", "color", "uint8", bounding_box=box)
    voxels = np.random.default_rng(0).integers(0, 255, box.size, np.uint8)
    layer.add_mag(1, blocks_per_file_edge=4).get_view().store(voxels, align="rechunk")
    layer.downsample(coarsest_mag="2-2-1")
    theirs: dict[str, Any] = {"wk": wk, "path": path}
    ours: dict[str, Any] = {"wkdask": wkdask, "path": path}
    compared = 0
    for what, left, right in rows("What is read"):
        a, b = evaluated(left, theirs), evaluated(right, ours)
        assert same(b, a), what
        compared += b is not None
    assert compared >= 8


@pytest.mark.filterwarnings("ignore")
def test_both_sides_of_what_is_written(tmp_path: Path) -> None:
    """The calls of the second table, one after the other, make equal datasets."""
    data = np.random.default_rng(0).integers(0, 255, (64, 64, 64), np.uint8)
    calls = {what: (left, right) for what, left, right in rows("What is written")}
    made = {}
    for side, library in ((0, {"wk": wk}), (1, {"wkdask": wkdask})):
        path = tmp_path / str(side) / "tissue"
        names: dict[str, Any] = {**library, "path": path, "data": data}
        for what, name in (
            ("make a dataset", "ds"),
            ("add a layer", "layer"),
            ("add a mag", "mag"),
            ("write voxels", ""),
            ("a pyramid", ""),
        ):
            value = eval(calls[what][side], names)
            names |= {name: value, "wkds": names.get("wkds", value)} if name else {}
        made[side] = path
    assert wkdask.equal(made[0], made[1])
    assert len(calls) == 9
