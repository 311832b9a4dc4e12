"""What is shown where something is broken, partial or odd: what there is, and why not more."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import dask
import numpy as np
import pytest

import wkdask
from wkdask import BoundingBox
from wkdask.arrays.facts import file_facts
from wkdask.dataset.report import report_html, shown_layers
from wkdask.errors import ArgumentError
from wkdask.show.pictures import draw_plane

pytest.importorskip("anywidget")
pytest.importorskip("matplotlib")

BOX = BoundingBox((0, 0, 0), (64, 64, 64))


@pytest.fixture
def dataset(tmp_path: Path) -> wkdask.Dataset:
    ds = wkdask.create(tmp_path / "tissue", voxel_size=(4, 4, 16))
    for name, category, dtype in (("color", "color", "uint16"), ("cells", "segmentation", "uint8")):
        mag = ds.add_layer(name, category, dtype, bounding_box=BOX).add_mag(
            1, blocks_per_file_edge=1
        )
        mag.write(np.full(BOX.size, 7, dtype))
    return ds


def break_files(dataset: wkdask.Dataset, name: str) -> None:
    volume = dataset[name][1].volume
    for cell, _ in volume.files():
        Path(volume.file_path(cell)).write_bytes(b"broken")


def test_a_viewer_opens_though_no_file_can_be_read(dataset: wkdask.Dataset, capsys: Any) -> None:
    break_files(dataset, "color")
    viewer = dataset.show()
    assert viewer.layers[0]["high"] == 65535
    viewer._ipython_display_()
    assert "No picture" in viewer._still()
    assert capsys.readouterr().err == ""


def test_a_layer_that_cannot_be_opened_is_left_out(dataset: wkdask.Dataset) -> None:
    (dataset.path / "color" / "1" / "header.wkw").write_bytes(b"WKW")
    with pytest.warns(UserWarning, match="'color' is left out"):
        viewer = dataset.show()
    assert [state["name"] for state in viewer.layers] == ["cells"]


def test_traits_of_a_viewer(dataset: wkdask.Dataset) -> None:
    import traitlets

    with pytest.raises(ArgumentError, match="no where; it has position"):
        dataset.show(where=(1, 2, 3))
    viewer = dataset.show(layers=[{"name": "cells", "visible": False}])
    assert [(state["name"], state["visible"]) for state in viewer.layers] == [
        ("color", True),
        ("cells", False),
    ]
    viewer.layers = []
    assert viewer.picture()
    with pytest.raises(traitlets.TraitError, match="'none', but the viewer has 'color'"):
        viewer.layers = [{"name": "none"}]


def test_the_picture_is_the_plane_that_is_shown(dataset: wkdask.Dataset) -> None:
    dataset["color"][1].write(np.full((64, 32, 64), 9000, np.uint16), (0, 32, 0))
    viewer = dataset["color"].show()
    pictures = set()
    for viewer.planes in ("xy", "xz"):
        pictures.add(viewer.picture())
    assert len(pictures) == 2


def test_the_picture_shows_what_the_zoom_shows(dataset: wkdask.Dataset) -> None:
    from PIL import Image

    viewer = dataset["color"].show()
    viewer.zoom, viewer.position = 32.0, [16, 16, 40]
    dataset["color"][1].write(np.full((32, 32, 32), 9000, np.uint16), (0, 0, 32))
    image = np.asarray(Image.open(io.BytesIO(viewer.picture())))
    assert image[..., 0].min() == image[..., 0].max()  # of 16 voxels per axis


@pytest.mark.parametrize("name", ["color", "cells"])
def test_labels_that_cover_a_part(dataset: wkdask.Dataset, name: str) -> None:
    box = BoundingBox((0, 0, 0), (9, 9, 9))
    part = dataset.add_layer("part", "segmentation", "uint8", bounding_box=box)
    part.add_mag(1).write(np.full((9, 9, 9), 3, np.uint8))
    assert dataset[name].plot(x=50, labels=part)
    assert dataset[name].plot(labels=part[1])


@pytest.mark.parametrize("labels", ["cells", 3])
def test_what_are_no_labels(dataset: wkdask.Dataset, labels: Any) -> None:
    with pytest.raises(ArgumentError, match="must be a view of a segmentation"):
        dataset["color"].plot(labels=labels)


def test_grey_values_are_no_labels(dataset: wkdask.Dataset) -> None:
    with pytest.raises(ArgumentError, match="grey values"):
        dataset["color"].plot(labels=dataset["color"])
    with pytest.raises(ArgumentError, match="grey values"):
        shown_layers(dataset.path, ["cells", "color"])


def test_pictures_of_very_flat_voxels_are_bounded(tmp_path: Path) -> None:
    ds = wkdask.create(tmp_path / "flat", voxel_size=(0.001, 100_000, 1))
    mag = ds.add_layer("color", "color", "uint8", bounding_box=BOX).add_mag(1)
    mag.write(np.full(BOX.size, 7, np.uint8))
    assert max(draw_plane([ds["color"].shown()], "z", most=100).shape) <= 400


def test_values_of_a_histogram_end_where_they_end(tmp_path: Path) -> None:
    ds = wkdask.create(tmp_path / "floats", voxel_size=(4, 4, 4))
    mag = ds.add_layer("color", "color", "float32", bounding_box=BOX).add_mag(1)
    mag.write(np.linspace(0, 1, 64**3, dtype=np.float32).reshape(BOX.size))
    page = report_html(ds.path)
    assert "1.99" not in page


def test_sampled_files_are_told_without_bias(tmp_path: Path) -> None:
    ds = wkdask.create(tmp_path / "many", voxel_size=(4, 4, 4))
    box = BoundingBox((0, 0, 0), (13 * 8,) * 3)
    mag = ds.add_layer("color", "color", "uint8", bounding_box=box).add_mag(
        1, block_edge=8, blocks_per_file_edge=1
    )
    # One plane of files at the border, where few are looked at beside each other.
    mag.write(np.full((8, 104, 104), 7, np.uint8), (96, 0, 0))
    facts = file_facts(mag.volume, box, 400)
    assert facts.is_sampled
    assert facts.all_found == pytest.approx(169, rel=0.05)


def test_names_cannot_control_a_terminal(tmp_path: Path) -> None:
    ds = wkdask.create(tmp_path / "tissue", voxel_size=(4, 4, 4))
    ds.add_layer("a\x1b[2J\nb", "color", "uint8")
    assert "\x1b" not in repr(ds)
    assert r"a\x1b[2J\nb" in repr(ds)


def test_a_bad_setting_is_named_as_one(dataset: wkdask.Dataset) -> None:
    with (
        dask.config.set({"wkdask.hc-level": 77}),
        pytest.raises(ArgumentError, match="a setting below wkdask can't be used: hc_level is 77"),
    ):
        dataset["color"][1]


def test_limits_are_those_of_what_is_there(dataset: wkdask.Dataset) -> None:
    """Grey values far from zero, and nothing in the middle plane."""
    voxels = np.full(BOX.size, 30_000, np.uint16)
    voxels[:40] = 20_000
    voxels[:, :, 32] = 0
    dataset["color"][1].write(voxels)
    viewer = dataset["color"].show()
    assert (viewer.layers[0]["low"], viewer.layers[0]["high"]) == (20_000, 30_000)
    assert viewer._described["layers"][0]["range"] == [0, 40_000]


def test_reports_are_short(dataset: wkdask.Dataset) -> None:
    break_files(dataset, "cells")
    for number in range(60):
        (dataset.path / "color" / "1" / f"{number}.txt").touch()
    report = wkdask.check(dataset.path)
    assert 20 < len(repr(report).splitlines()) < 60
    assert "more" in repr(report)
    assert len(str(report).splitlines()) == len(report.findings) + 1


def test_a_comparison_says_what_it_is(dataset: wkdask.Dataset) -> None:
    found = wkdask.equal(dataset["color"], dataset["cells"])
    assert repr(found).startswith("<wkdask.Comparison: ")
    assert repr(found.difference).startswith("Difference(")
