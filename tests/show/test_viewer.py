"""The viewer: its traits and tiles, and its module in a real browser with a model in Python."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import wkdask
from wkdask import BoundingBox
from wkdask.errors import ArgumentError

pytest.importorskip("anywidget")

from traitlets import TraitError

from wkdask.show.pixels import colors_of
from wkdask.show.viewer import TILE, Viewer, read_tile

BOX = BoundingBox((10, 20, 3), (600, 500, 80))


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> wkdask.Dataset:
    ds = wkdask.create(tmp_path_factory.mktemp("viewer") / "tissue", voxel_size=(4, 4, 16))
    rng = np.random.default_rng(1)
    color = ds.add_layer("color", "color", "uint8", bounding_box=BOX)
    color.add_mag(1, blocks_per_file_edge=8, block_type="lz4").write(
        rng.integers(1, 255, BOX.size, np.uint8), BOX.topleft
    )
    color.downsample(coarsest_mag="4-4-1", block_type="lz4")
    cells = ds.add_layer("cells", "segmentation", "uint64", bounding_box=BOX)
    ids = np.zeros(BOX.size, np.uint64)
    ids[100:200, 100:200, :40] = 2**53 + 1
    ids[300:400, 100:200, 40:] = 2**32
    cells.add_mag(1, blocks_per_file_edge=8, block_type="lz4").write(ids, BOX.topleft)
    return ds


class TestTraits:
    def test_where_it_begins(self, dataset: wkdask.Dataset) -> None:
        viewer = dataset.show()
        assert viewer.position == [310, 270, 43]
        assert [layer["name"] for layer in viewer.layers] == ["color", "cells"]
        assert 0 < viewer.zoom < 1
        assert dataset["cells"].show().layers[0]["name"] == "cells"
        assert dataset.show(position=(1, 2, 3), planes="xy").position == [1, 2, 3]

    @pytest.mark.parametrize(
        "traits",
        [{"zoom": 0}, {"zoom": float("nan")}, {"position": [1, 2]}, {"planes": "yx"}],
        ids=str,
    )
    def test_what_cannot_be(self, dataset: wkdask.Dataset, traits: dict[str, Any]) -> None:
        with pytest.raises(TraitError):
            dataset.show(**traits)

    def test_a_mag_shows_itself_and_coarser_ones(self, dataset: wkdask.Dataset) -> None:
        shown = dataset["color"]["2-2-1"].shown()
        assert [mag.factors for mag in shown.mags] == [(2, 2, 1), (4, 4, 1)]
        part = dataset["color"][1].get_view((100, 100, 10), (50, 50, 10)).shown()
        assert (len(part.mags), part.box) == (1, BoundingBox((100, 100, 10), (50, 50, 10)))

    def test_mags_that_cannot_be_opened_are_left_out(self, tmp_path: Path) -> None:
        ds = wkdask.create(tmp_path / "tissue", voxel_size=(8, 8, 8))
        layer = ds.add_layer("color", "color", "uint8", bounding_box=BOX)
        layer.add_mag(1)
        layer.add_mag(2)
        (ds.path / "color" / "2" / "header.wkw").unlink()
        assert len(layer.shown().mags) == 1
        (ds.path / "color" / "1" / "header.wkw").unlink()
        with pytest.raises(wkdask.errors.MissingError):
            layer.show()

    def test_nothing_to_show(self, tmp_path: Path) -> None:
        ds = wkdask.create(tmp_path / "tissue", voxel_size=(8, 8, 8))
        mag = ds.add_layer("color", "color", "uint8").add_mag(1)
        for each in (ds, mag):
            with pytest.raises(ArgumentError):
                each.show()

    def test_a_picture_stays_where_there_is_no_kernel(
        self, dataset: wkdask.Dataset, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        pytest.importorskip("IPython")
        shown: list[Any] = []
        monkeypatch.setattr("IPython.display.display", lambda x, **_: shown.append(x))
        dataset.show()._ipython_display_()
        assert "data:image/png;base64," in shown[0].data
        assert any("widget-view" in kind for kind in shown[1])


class TestTiles:
    @pytest.mark.parametrize("axis", "xyz")
    @pytest.mark.parametrize(("mag", "column", "row"), [(0, 0, 0), (0, 1, 1), (1, 0, 0)])
    def test_are_what_numpy_has(
        self, dataset: wkdask.Dataset, axis: str, mag: int, column: int, row: int
    ) -> None:
        viewer = dataset["color"].show()
        view = list(dataset["color"].mags.values())[mag]
        message = {"layer": 0, "mag": mag, "axis": axis, "at": 30, "column": column, "row": row}
        found = read_tile(viewer._shown, message)
        right, down = {"z": "xy", "x": "zy", "y": "xz"}[axis]
        corner = {right: column * TILE, down: row * TILE, axis: 30}
        size = {right: TILE, down: TILE, axis: 1}
        tile = BoundingBox([corner[a] for a in "xyz"], [size[a] for a in "xyz"])
        part = tile.intersected_with(view.bounding_box, dont_assert=True)
        if part.is_empty:
            assert found.size == 0
            return
        voxels = view.read(part.topleft, part.size)
        order = [0, 1 + "xyz".index(down), 1 + "xyz".index(right), 1 + "xyz".index(axis)]
        np.testing.assert_array_equal(found, voxels.transpose(order)[..., 0])

    def test_an_answer_for_every_request(
        self, dataset: wkdask.Dataset, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        sent: list[Any] = []
        viewer = dataset.show()
        monkeypatch.setattr(viewer, "send", lambda *message: sent.append(message))
        good = {"layer": 0, "mag": 0, "axis": "z", "at": 30, "column": 0, "row": 0}
        for change in ({}, {"layer": 9}, {"axis": "t"}, {"at": None}, {"at": 10**9}):
            viewer._answer(viewer, {"kind": "tile", "key": "k", **good, **change}, [])
        assert [message[0]["kind"] for message in sent] == ["tile", *["error"] * 3, "tile"]
        assert all(message[0]["key"] == "k" for message in sent)
        viewer._answer(viewer, {"kind": "other"}, [])
        assert len(sent) == 5
        viewer.refresh()
        assert sent[5] == ({"kind": "refresh"},)


@pytest.mark.slow
class TestInABrowser:
    def test_refresh(self, dataset: wkdask.Dataset, in_browser: Callable) -> None:
        """Tiles that could not be read are red, and read anew."""
        mag = dataset["color"][1]
        voxel = (310, 270, 43)
        file = Path(mag.volume.file_path((1, 1, 0)))
        data = file.read_bytes()
        file.write_bytes(b"WKW")
        shown = in_browser(dataset["color"].show(), zoom=4, planes="xy")
        place = (voxel[0] + 0.3, voxel[1] + 0.3, voxel[2])
        assert shown.at_voxel(place) == [0x7A, 0x20, 0x20]
        file.write_bytes(data)
        shown.page.evaluate("model.emit('msg:custom', {kind: 'refresh'}, [])")
        shown.wait()
        value = int(mag.read(voxel, (1, 1, 1)).item())
        assert shown.at_voxel(place) == [value] * 3
        assert "WKW" not in shown.page.inner_text("#v")

    def test_pixels_are_voxels(self, dataset: wkdask.Dataset, in_browser: Callable) -> None:
        shown = in_browser(dataset["color"].show(), zoom=4, planes="xy")
        for voxel in [(310, 270, 43), (305, 275, 43), (330, 262, 43)]:
            value = int(dataset["color"][1].read(voxel, (1, 1, 1)).item())
            # In the middle of a voxel, beside the lines that cross at the centre.
            place = (voxel[0] + 0.3, voxel[1] + 0.3, voxel[2])
            assert shown.at_voxel(place) == [value] * 3
        assert shown.errors == []

    def test_colours_are_those_of_python(
        self, dataset: wkdask.Dataset, in_browser: Callable
    ) -> None:
        shown = in_browser(dataset["color"].show())
        ids = [1, 2, 7, 255, 256, 65_535, 2**31, 2**32 - 1, 123_456_789, *range(1000, 1100)]
        found = shown.page.evaluate("(ids) => ids.map((id) => viewerModule.colorOf(id))", ids)
        assert np.abs(np.array(found) - colors_of(np.array(ids, np.uint64)).astype(int)).max() <= 1

    def test_segments_and_what_is_told_of_them(
        self, dataset: wkdask.Dataset, in_browser: Callable
    ) -> None:
        shown = in_browser(dataset.show(), position=[160, 170, 20], zoom=2, planes="xy")
        assert shown.at_voxel((150.5, 160.5, 20)) != shown.at_voxel((20.5, 30.5, 20))
        left, top = shown.page.evaluate(
            "() => [viewer.planes.xy.left(150.5), viewer.planes.xy.top(160.5)]"
        )
        shown.plane().hover(position={"x": left, "y": top})
        text = shown.page.locator(".wkv-status").text_content()
        value = int(dataset["color"][1].read((150, 160, 20), (1, 1, 1)).item())
        assert "(150, 160, 20)" in text
        assert f"color {value}" in text
        assert f"cells {2**53 + 1}" in text
        assert "602, 642, 320 nm" in text

    def test_wheel_keys_slider_click_and_drag(
        self, dataset: wkdask.Dataset, in_browser: Callable
    ) -> None:
        shown = in_browser(dataset.show(), planes="three")
        page = shown.page
        plane = shown.plane()
        plane.hover(position={"x": 100, "y": 100})
        before = shown.get("position")
        page.mouse.wheel(0, 100)
        shown.wait()
        assert shown.get("position") == [*before[:2], before[2] + 1]
        plane.click(position={"x": 50, "y": 60})
        shown.wait()
        position = shown.get("position")
        assert position[0] < before[0]
        assert position[1] < before[1]
        for key, step in (("f", 1), ("d", -1), ("F", 5), ("D", -5)):
            at = shown.get("position")[2]
            page.keyboard.press(f"Shift+{key}" if key.isupper() else key)
            assert shown.get("position")[2] == pytest.approx(at + step)
        zoom = shown.get("zoom")
        page.keyboard.press("i")
        assert shown.get("zoom") == pytest.approx(zoom * 1.25)
        page.keyboard.press("3")
        assert [layer["visible"] for layer in shown.get("layers")] == [True, False]
        page.locator("input[data-axis=z]").fill("70")
        shown.wait()
        assert shown.get("position")[2] == 70.5
        at = shown.get("position")
        box = plane.bounding_box()
        page.mouse.move(box["x"] + 150, box["y"] + 150)
        page.mouse.down()
        page.mouse.move(box["x"] + 190, box["y"] + 130, steps=4)
        page.mouse.up()
        shown.wait()
        scale = shown.get("zoom")
        moved = [a - b for a, b in zip(at, shown.get("position"), strict=True)]
        assert moved == pytest.approx([40 / scale, -20 / scale, 0], abs=0.01)
        assert shown.errors == []

    def test_zoom_stays_at_the_pointer(self, dataset: wkdask.Dataset, in_browser: Callable) -> None:
        shown = in_browser(dataset.show(), planes="xy", zoom=1.0)
        under = "() => viewer.planes.xy.positionAt(120, 90)"
        before = shown.page.evaluate(under)
        shown.plane().hover(position={"x": 120, "y": 90})
        shown.page.keyboard.down("Control")
        shown.page.mouse.wheel(0, -120)
        shown.page.keyboard.up("Control")
        shown.wait()
        assert shown.get("zoom") > 1
        assert shown.page.evaluate(under) == pytest.approx(before, abs=0.51)

    def test_traits_set_by_code(self, dataset: wkdask.Dataset, in_browser: Callable) -> None:
        shown = in_browser(dataset.show(), planes="xy", zoom=4)
        shown.set("position", [200, 200, 10])
        value = int(dataset["color"][1].read((205, 205, 10), (1, 1, 1)).item())
        hidden = [{**layer, "visible": layer["name"] == "color"} for layer in shown.get("layers")]
        shown.set("layers", hidden)
        assert shown.at_voxel((205.3, 205.3, 10)) == [value] * 3
        shown.set("layers", [{**hidden[0], "low": 100, "high": 101}, hidden[1]])
        assert shown.at_voxel((205.3, 205.3, 10)) == [255 if value > 100 else 0] * 3
        shown.set("planes", "three")
        assert shown.page.locator("canvas.wkv-plane").count() == 3

    def test_coarse_first_and_only_what_is_needed(
        self, dataset: wkdask.Dataset, in_browser: Callable
    ) -> None:
        far = in_browser(dataset["color"].show(), planes="xy", zoom=0.25)
        assert {message["mag"] for message in far.asked} == {2}
        near = in_browser(dataset["color"].show(), planes="xy", zoom=1.0)
        assert near.asked[0]["mag"] == 2
        assert {message["mag"] for message in near.asked} == {0, 2}

    def test_an_unreadable_file_is_told(self, tmp_path: Path, in_browser: Callable) -> None:
        ds = wkdask.create(tmp_path / "tissue", voxel_size=(8, 8, 8))
        mag = ds.add_layer("color", "color", "uint8").add_mag(1, blocks_per_file_edge=2)
        mag.write(np.full((128, 64, 64), 200, np.uint8))
        (Path(mag.path) / "z0" / "y0" / "x1.wkw").write_bytes(b"WKW")
        shown = in_browser(ds.show(), planes="xy")
        assert "x1.wkw" in shown.page.locator(".wkv-status").text_content()

    def test_200_random_interactions(self, dataset: wkdask.Dataset, in_browser: Callable) -> None:
        shown = in_browser(dataset.show())
        rng = random.Random(5)
        page = shown.page
        for _ in range(200):
            plane = shown.plane(rng.choice(("xy", "zy", "xz")))
            if not plane.count():
                page.locator(".wkv select").select_option("three")
                continue
            box = plane.bounding_box()
            x, y = rng.random() * box["width"] * 0.95 + 2, rng.random() * box["height"] * 0.95 + 2
            page.mouse.move(box["x"] + x, box["y"] + y)
            kind = rng.randrange(7)
            if kind == 0:
                page.mouse.down()
                page.mouse.move(box["x"] + rng.random() * 300, box["y"] + rng.random() * 200)
                page.mouse.up()
            elif kind == 1:
                page.mouse.click(box["x"] + x, box["y"] + y)
            elif kind == 2:
                page.keyboard.press(rng.choice(["f", "d", "i", "o", "3", "ArrowLeft", "ArrowUp"]))
            elif kind == 3:
                page.keyboard.down("Control")
                page.mouse.wheel(0, rng.choice([-300, -50, 50, 300]))
                page.keyboard.up("Control")
            elif kind == 4:
                page.locator(".wkv select").select_option(rng.choice(["three", "xy", "zy"]))
            elif kind == 5:
                page.locator(f"input[data-axis={rng.choice('xyz')}]").fill(
                    str(rng.randrange(3, 80))
                )
            else:
                page.mouse.wheel(0, rng.choice([-100, 100]))
        shown.wait()
        assert shown.errors == []
        facts = shown.page.evaluate(
            "() => ({open: model.open, most: model.most, sent: viewer.tiles.sent.size,"
            " bytes: viewer.tiles.bytes})"
        )
        assert (facts["open"], facts["sent"]) == (0, 0)
        assert facts["most"] <= 6
        assert facts["bytes"] <= 97 * 2**20

    def test_a_fast_scroll_drops_planes_in_between(
        self, dataset: wkdask.Dataset, in_browser: Callable
    ) -> None:
        shown = in_browser(dataset["color"].show(), planes="xy", zoom=1.0, position=[300, 250, 5])
        before = len(shown.asked)
        shown.page.evaluate(
            """() => { for (let z = 5; z < 80; z++) viewer.moveTo([300, 250, z]); }"""
        )
        shown.wait()
        asked = shown.asked[before:]
        assert {message["at"] for message in asked} <= {5, 79}

    def test_close_leaves_nothing(self, dataset: wkdask.Dataset, in_browser: Callable) -> None:
        shown = in_browser(dataset.show())
        shown.page.evaluate("() => { close_viewer(); model.set('position', [100, 100, 10]); }")
        assert shown.page.evaluate("() => Object.values(model.handlers).flat().length") == 0

    def test_a_huge_volume_begins_fast(self, tmp_path: Path, in_browser: Callable) -> None:
        ds = wkdask.create(tmp_path / "tissue", voxel_size=(4, 4, 40))
        box = BoundingBox((0, 0, 0), (100_000, 100_000, 100_000))
        mag = ds.add_layer("color", "color", "uint8", bounding_box=box).add_mag(1, block_type="raw")
        mag.write(np.full((256, 256, 32), 200, np.uint8), (49_888, 49_888, 49_984))
        viewer = ds.show()
        shown = in_browser(viewer, zoom=viewer.zoom)
        assert len(shown.asked) < 60
        assert shown.at_voxel((49_950, 49_950, 50_000)) == [200] * 3
        assert isinstance(viewer, Viewer)
