"""The commands that draw: pictures and reports."""

from __future__ import annotations

import base64
import io
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result

import wkdask
from wkdask import BoundingBox
from wkdask.cli.main import main
from wkdask.show.pixels import blend, greys

image = pytest.importorskip("PIL.Image")
BOX = BoundingBox((10, 20, 3), (60, 50, 20))


@pytest.fixture
def dataset(tmp_path: Path) -> wkdask.Dataset:
    ds = wkdask.create(tmp_path / "tissue", voxel_size=(4, 4, 4))
    rng = np.random.default_rng(1)
    color = ds.add_layer("color", "color", "uint8", bounding_box=BOX)
    color.add_mag(1, blocks_per_file_edge=4).write(
        rng.integers(1, 255, BOX.size, np.uint8), BOX.topleft
    )
    color.downsample(coarsest_mag=2)
    cells = ds.add_layer("cells", "segmentation", "uint32", bounding_box=BOX)
    cells.add_mag(1, blocks_per_file_edge=4).write(
        rng.integers(0, 3, BOX.size, np.uint32), BOX.topleft
    )
    return ds


def command(*arguments: Any) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def pixels_of(path: Path) -> np.ndarray:
    return np.asarray(image.open(path))


class TestSlice:
    def test_pixels_are_voxels(self, dataset: wkdask.Dataset, tmp_path: Path) -> None:
        out = tmp_path / "plane.png"
        done = command(
            "slice", dataset.path, "--layer-name", "color", "--axis", "z", "--at", 7,
            "--output", out,
        )  # fmt: skip
        assert (done.exit_code, done.output) == (0, f"{out}: 60 x 50 pixels\n")
        plane = dataset["color"][1].get_view().read((0, 0, 4), (60, 50, 1))[0, :, :, 0].T
        np.testing.assert_array_equal(pixels_of(out), np.dstack([plane] * 3))

    def test_overlay(self, dataset: wkdask.Dataset, tmp_path: Path) -> None:
        out = tmp_path / "plane.png"
        done = command("slice", dataset.path, "--overlay", "cells", "--axis", "x", "--output", out)
        assert done.exit_code == 0
        at = (30, 0, 0), (1, 50, 20)
        grey = dataset["color"][1].get_view().read(*at)[0, 0]
        ids = dataset["cells"][1].get_view().read(*at)[0, 0]
        np.testing.assert_array_equal(pixels_of(out), blend(greys(grey[None], 0, 255), ids))

    def test_mag(self, dataset: wkdask.Dataset, tmp_path: Path) -> None:
        out = tmp_path / "plane.png"
        assert command("slice", dataset.path, "--mag", 2, "--output", out).exit_code == 0
        assert pixels_of(out).shape == (25, 30, 3)

    def test_max_pixels(self, dataset: wkdask.Dataset, tmp_path: Path) -> None:
        out = tmp_path / "plane.png"
        assert command("slice", dataset.path, "--max-pixels", 10, "--output", out).exit_code == 0
        assert max(pixels_of(out).shape) <= 10

    @pytest.mark.parametrize(
        ("options", "part"),
        [
            (["--layer-name", "none"], "no layer 'none'"),
            (["--at", 999], "z is 999, but layer 'color' reaches from 3 to 22"),
            (["--mag", 8], "no mag 8"),
        ],
        ids=["layer", "at", "mag"],
    )
    def test_mistakes(
        self, dataset: wkdask.Dataset, tmp_path: Path, options: list[Any], part: str
    ) -> None:
        out = tmp_path / "plane.png"
        done = command("slice", dataset.path, *options, "--output", out)
        assert done.exit_code == 1
        assert part in done.output
        assert "Traceback" not in done.output
        assert not out.exists()

    def test_a_folder_that_is_not_there(self, dataset: wkdask.Dataset, tmp_path: Path) -> None:
        done = command("slice", dataset.path, "--output", tmp_path / "plane.jpg")
        assert done.exit_code == 1
        assert ".png" in done.output
        assert not (tmp_path / "plane.jpg").exists()
        done = command("slice", dataset.path, "--output", tmp_path / "none" / "plane.png")
        assert done.exit_code == 1
        assert "none/plane.png" in done.output


class TestReport:
    def test_a_page_of_its_own(self, dataset: wkdask.Dataset, tmp_path: Path) -> None:
        out = tmp_path / "report.html"
        assert command("report", dataset.path, "--output", out).exit_code == 0
        page = out.read_text(encoding="utf-8")
        assert not re.search(r"(src|href)=['\"](?!data:)", page)
        for part in ("tissue", "(1, 60, 50, 20)", "histogram", "ids in three planes", "0 errors"):
            assert part in page
        pictures = re.findall(r"data:image/png;base64,([^'\"]+)", page)
        assert len(pictures) == 2
        plane = np.asarray(image.open(io.BytesIO(base64.b64decode(pictures[0]))))
        voxels = dataset["color"][1].get_view().read((0, 0, 10), (60, 50, 1))[0, :, :, 0].T
        np.testing.assert_array_equal(plane[..., 0], voxels)

    def test_what_is_broken_is_told(self, dataset: wkdask.Dataset, tmp_path: Path) -> None:
        (dataset.path / "color" / "1" / "z0" / "y0" / "x0.wkw").write_bytes(b"cut")
        dataset.add_layer("empty", "color", "float32")
        out = tmp_path / "report.html"
        assert command("report", dataset.path, "--output", out).exit_code == 0
        page = out.read_text(encoding="utf-8")
        assert "x0.wkw" in page
        assert "No picture" in page
        assert "1 errors" in page
