"""Each row of docs/from_webknossos.md, run by both libraries on copies of one dataset."""

from __future__ import annotations

import ast
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import wkdask
from wkdask.testing import Tissue

pytestmark = pytest.mark.filterwarnings("ignore")  # those of webknossos

PAGE = Path(__file__).parents[2] / "docs" / "from_webknossos.md"
BOX = wkdask.BoundingBox((77, 41, 13), (140, 100, 60))
ROW = re.compile(r"^\| ([^|]+?) \| `([^`|]+)` \| `([^`|]+)` \|$", re.MULTILINE)
HEADINGS = "| to do what | `webknossos` | `wkdask` |"


def rows(before: str = "What is different") -> list[tuple[str, str, str]]:
    """Return what, their call and ours, for each row above a heading."""
    text = PAGE.read_text(encoding="utf-8").split(f"\n## {before}\n")[0]
    return [row for row in ROW.findall(text) if row[0] != "to do what"]


def make_dataset(path: Path) -> None:
    """A raw mag 1, so that there is something to compress, and one coarse mag."""
    ds = wkdask.create(path, voxel_size=(11.24, 11.24, 28.0))
    layer = ds.add_layer("color", "color", "uint8", bounding_box=BOX)
    fine = layer.add_mag(1, blocks_per_file_edge=4, block_type="raw")
    fine.get_view().store(Tissue().grey(BOX.topleft, BOX.size), align="rechunk")
    wkdask.downsample(fine, layer.add_mag("2-2-1", blocks_per_file_edge=4))


def run(code: str, namespace: dict[str, Any]) -> Any:
    """Return the value of an expression, or None after a statement."""
    if isinstance(ast.parse(code).body[0], ast.Expr):
        return eval(code, namespace)
    exec(code, namespace)
    return None


def plain(value: Any) -> Any:
    """Return what both libraries have in common; None for objects of their own, such as layers."""
    if hasattr(value, "topleft"):
        return tuple(value.topleft), tuple(value.size)
    if isinstance(value, list):
        return [plain(item) for item in value]
    if type(value).__name__ == "Mag" or isinstance(value, (np.dtype, str)):
        return str(value)
    if hasattr(value, "to_tuple"):
        return value.to_tuple()
    return value if isinstance(value, (bool, tuple, np.ndarray)) else None


def test_the_page_has_the_rows() -> None:
    text = PAGE.read_text(encoding="utf-8")
    tables = text.split(HEADINGS)[1:]
    lines = [line for table in tables for line in table.split("\n\n")[0].splitlines()[2:]]
    assert len(rows()) == len(lines) > 25


@pytest.mark.parametrize(
    "before", ["Write", pytest.param("What is different", marks=pytest.mark.slow)]
)
def test_both_do_the_same(webknossos: Any, tmp_path: Path, before: str) -> None:
    make_dataset(tmp_path / "theirs")
    shutil.copytree(tmp_path / "theirs", tmp_path / "ours")
    page = PAGE.read_text(encoding="utf-8")
    common: dict[str, Any] = {"voxels": np.random.default_rng(0).integers(0, 255, BOX.size, "u1")}
    exec(page.split("```python\n")[1].split("```")[0], common)
    theirs = {**common, "wk": webknossos, "path": str(tmp_path / "theirs")}
    ours = {**common, "wkdask": wkdask, "path": str(tmp_path / "ours")}
    compared = 0
    for what, their_code, our_code in rows(before):
        expected, found = plain(run(their_code, theirs)), plain(run(our_code, ours))
        if found is not None:
            np.testing.assert_equal(found, expected, what)
            compared += 1
        assert wkdask.equal(wkdask.open(ours["path"]), wkdask.open(theirs["path"])), what
    assert compared >= 16
    for end in ("-new", "-copy") if before != "Write" else ():
        assert wkdask.equal(*(wkdask.open(names["path"] + end) for names in (ours, theirs)))
