"""Conversion as a whole: arrays in, what is refused, who runs it, and that it streams."""

from __future__ import annotations

import json
import math
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import dask.array as da
import numpy as np
import pytest
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st

import wkdask
from wkdask.cli.main import main
from wkdask.cli.options import Scheduler
from wkdask.errors import (
    ArgumentError,
    ExistsError,
    FormatError,
    MemoryLimitError,
    MissingError,
    MissingExtraError,
    NameLookupError,
)
from wkdask.formats import wkw as importing
from wkdask.formats.image import FileArray, Image, Level, of_array, of_layer
from wkdask.geometry import BoundingBox, Mag
from wkdask.runtime.run import Run
from wkdask.storage.header import DTYPES

SIZE = (8.0, 8.0, 30.0)


def voxels_of(shape: tuple[int, ...], dtype: str = "uint8", seed: int = 0) -> Any:
    return np.random.default_rng(seed).integers(0, 100, shape).astype(dtype)


def arranged(array: Any, axes: str) -> Any:
    """Return an array as `(c, x, y, z)`, by NumPy in another way than the package."""
    for axis in "cz":
        if axis not in axes:
            array, axes = array[..., np.newaxis], axes + axis
    return np.einsum(f"{axes}->cxyz", array)


def into(array: Any, target: Any, **options: Any) -> wkdask.MagView:
    facts = {"layer_name": "em", "voxel_size": SIZE, "blocks_per_file_edge": 1}
    return wkdask.convert(array, target, **(facts | options))["em"][1]


class TestArrays:
    @pytest.mark.parametrize("dtype", DTYPES)
    def test_every_dtype(self, tmp_path, dtype):
        array = voxels_of((50, 40, 33), dtype)
        mag = into(array, tmp_path / "ds")
        assert mag.dtype == dtype
        np.testing.assert_array_equal(mag[0].compute(), array)
        assert mag.layer.dataset.voxel_size == SIZE
        assert mag.layer.dataset.unit == "nanometer"
        assert (mag.layer.category, mag.bounding_box.topleft) == ("color", (0, 0, 0))

    def test_units_by_their_signs(self, tmp_path):
        for unit in ("um", "Microns"):
            mag = into(voxels_of((5, 5, 5)), tmp_path / unit, unit=unit)
            assert mag.layer.dataset.unit == "micrometer"

    @pytest.mark.parametrize("wrap", [np.asarray, da.asarray])
    def test_the_other_byte_order(self, tmp_path, wrap):
        array = voxels_of((9, 8, 7), ">u2")
        mag = into(wrap(array), tmp_path / "ds")
        assert mag.dtype == "uint16"
        np.testing.assert_array_equal(mag[0].compute(), array)

    @pytest.mark.parametrize(
        ("shape", "axes", "meant"),
        [
            pytest.param((40, 30), None, "xy", id="a plane"),
            pytest.param((40, 30, 20), None, "xyz", id="as everywhere in wkdask"),
            pytest.param((3, 40, 30, 20), None, "cxyz", id="with channels"),
            pytest.param((20, 30, 40), "zyx", "zyx", id="as most others"),
            pytest.param((3, 20, 30, 40), "czyx", "czyx", id="OME"),
            pytest.param((20, 40, 30, 3), "zyxc", "zyxc", id="RGB slices"),
        ],
    )
    @pytest.mark.parametrize("kind", ["numpy", "dask", "npy", "memory map"])
    def test_axes(self, tmp_path, shape, axes, meant, kind):
        array = source = voxels_of(shape)
        if kind == "dask":
            source = da.from_array(array, chunks=13)
        elif kind != "numpy":
            source = tmp_path / "a.npy"
            np.save(source, array)
        if kind == "memory map":
            source = np.load(source, mmap_mode="r")
        mag = into(source, tmp_path / "ds", axes=axes)
        np.testing.assert_array_equal(mag.get_view().read(), arranged(array, meant))

    @pytest.mark.parametrize("kind", ["numpy", "dask", "npy"])
    @pytest.mark.parametrize(("dtype", "stored"), [("bool", "uint8"), ("float16", "float32")])
    def test_dtypes_that_fit_into_wider_ones(self, tmp_path, kind, dtype, stored):
        array = source = (voxels_of((9, 8, 7)) % 2).astype(dtype)
        if kind == "npy":
            source = tmp_path / "a.npy"
            np.save(source, array)
        mag = into(da.from_array(array) if kind == "dask" else source, tmp_path / "ds")
        assert mag.dtype == stored
        np.testing.assert_array_equal(mag[0].compute(), array.astype(stored))

    @pytest.mark.parametrize("kind", ["numpy", "dask", "npy"])
    def test_a_time_point(self, tmp_path, kind):
        array = source = voxels_of((3, 9, 8, 7))
        if kind == "npy":
            source = tmp_path / "a.npy"
            np.save(source, array)
        source = da.from_array(array) if kind == "dask" else source
        mag = into(source, tmp_path / "ds", axes="tzyx", t=2)
        np.testing.assert_array_equal(mag[0].compute(), array[2].transpose(2, 1, 0))
        assert into(array[:1], tmp_path / "one", axes="tzyx").bounding_box.size == (7, 8, 9)

    @settings(max_examples=10, deadline=None)
    @given(
        st.permutations("cxyz"),
        st.integers(1, 3),
        st.tuples(*[st.integers(1, 50)] * 3),
        st.tuples(*[st.integers(0, 99)] * 3),
        st.integers(11, 40),
    )
    def test_any_shape_at_any_place(self, tmp_path_factory, axes, channels, size, offset, chunk):
        axes = "".join(axes)
        sizes = dict(zip("cxyz", (channels, *size), strict=True))
        array = voxels_of(tuple(sizes[axis] for axis in axes))
        source = da.from_array(array, chunks=chunk)
        mag = into(source, tmp_path_factory.mktemp("c") / "ds", axes=axes, offset=offset)
        assert mag.bounding_box == BoundingBox(offset, size)
        np.testing.assert_array_equal(mag.get_view().read(), arranged(array, axes))

    def test_byte_order_is_that_of_the_machine(self, tmp_path):
        array = voxels_of((9, 9, 9), ">u4")
        np.save(tmp_path / "a.npy", array)
        mag = into(tmp_path / "a.npy", tmp_path / "ds", category="segmentation")
        assert (mag.dtype, mag.layer.category) == ("uint32", "segmentation")
        np.testing.assert_array_equal(mag[0].compute(), array)

    def test_webknossos_opens_it(self, tmp_path, webknossos):
        array = voxels_of((3, 50, 40, 30))
        into(array, tmp_path / "ds", offset=(5, 6, 7))
        layer = webknossos.Dataset.open(tmp_path / "ds").get_layer("em")
        assert layer.bounding_box.topleft.to_tuple() == (5, 6, 7)
        np.testing.assert_array_equal(layer.get_mag(1).read(), array)

    def test_into_a_dataset_that_exists(self, tissue):
        for name, target in (("a", tissue), ("b", tissue.path), ("c", str(tissue.path))):
            ds = wkdask.convert(voxels_of((9, 9, 9)), target, layer_name=name)
            assert ds.voxel_size == tissue.voxel_size
        assert list(wkdask.open(tissue.path).layers) == ["a", "b", "c"]


class TestWkw:
    def test_layers_and_views_into_another_dataset(self, tissue, tmp_path):
        into(voxels_of((40, 40, 40)), tissue, voxel_size=None, offset=(3, 4, 5))
        tissue["em"].add_mag("2-2-1")
        copy = wkdask.convert(tissue, tmp_path / "copy", blocks_per_file_edge=2)
        assert wkdask.equal(tissue, copy)
        again = wkdask.convert(tissue["em"], copy, layer_name="again", mags=[1])
        assert list(again["again"].mags) == [Mag(1)]
        part = tissue["em"][1].get_view((10, 10, 10), (5, 6, 7))
        ds = wkdask.convert(part, tmp_path / "part")
        assert ds["em"].bounding_box == part.bounding_box
        assert wkdask.equal(ds["em"][1], part)
        bare = wkdask.convert(part.path, tmp_path / "bare", layer_name="x", voxel_size=SIZE)
        assert wkdask.equal(bare["x"][1].get_view((10, 10, 10), (5, 6, 7)), part)

    def test_levels_keep_their_mags(self, tissue):
        em = tissue.add_layer("em", "color", "uint8", 1, BoundingBox((3, 3, 3), (9, 9, 9)))
        em.add_mag("2-2-1")
        em.add_mag(4)
        image = of_layer(em)
        assert [level.corner for level in image.levels] == [(1, 1, 3), (0, 0, 0)]
        assert image.box == em.bounding_box
        with pytest.raises(ArgumentError, match="no mag 8 in em; it has 2-2-1, 4"):
            image.with_mags([8])


class Counted:
    """An array that knows which parts were read."""

    def __init__(self, array: Any) -> None:
        self.array, self.reads = array, []

    def __getitem__(self, index: tuple[slice, ...]) -> Any:
        self.reads.append(index)
        return self.array[index]


def counted_image(shape: tuple[int, int, int]) -> tuple[Image, Counted]:
    """Return a lazy image with axes `(z, y, x)` and what counts its reads."""
    counted = Counted(voxels_of(shape[::-1]))
    source = FileArray("/counted", lambda path: counted, "zyx", shape[::-1], np.dtype("uint8"))
    return Image((Level(Mag(1), (5, 40, 0), source),)), counted


def add_image(*args: Any, **options: Any) -> wkdask.Layer:
    with importing.image_added(*args, **options) as layer:
        pass
    return layer


class TestStreaming:
    def test_a_task_reads_what_its_file_needs(self, tissue):
        image, counted = counted_image((100, 60, 40))
        assert image.box == BoundingBox((5, 40, 0), (100, 60, 40))
        image.levels[0].cut((32,) * 3)
        assert counted.reads == []
        layer = add_image(tissue, image, "em", run=Run(), stored=importing.Stored(blocks=1))
        sizes = [math.prod(s.stop - s.start for s in index) for index in counted.reads]
        assert sum(sizes) == 100 * 60 * 40
        assert len(sizes) == len(list(layer[1].volume.files())) == 4 * 3 * 2
        assert max(sizes) == 32**3
        expected = counted.array.transpose(2, 1, 0)
        np.testing.assert_array_equal(layer[1].get_view().read()[0], expected)

    def test_large_files_are_read_in_parts(self, tissue, monkeypatch):
        monkeypatch.setattr(importing, "_READ_BYTES", 32**3)
        monkeypatch.setattr("wkdask.storage.writer._PIECE_BYTES", 16**3, raising=True)
        image, counted = counted_image((100, 60, 40))
        layer = add_image(tissue, image, "em", run=Run(), stored=importing.Stored(blocks=4))
        assert len(list(layer[1].volume.files())) == 1
        sizes = [math.prod(s.stop - s.start for s in index) for index in counted.reads]
        assert sum(sizes) == 100 * 60 * 40
        assert max(sizes) <= 32**3
        expected = counted.array.transpose(2, 1, 0)
        np.testing.assert_array_equal(layer[1].get_view().read()[0], expected)

    def test_a_second_run_reads_nothing(self, tissue):
        image, counted = counted_image((100, 60, 40))
        options = {"run": Run(), "resume": True, "stored": importing.Stored(blocks=1)}
        add_image(tissue, image, "em", **options)
        first = len(counted.reads)
        add_image(tissue, image, "em", **options)
        assert len(counted.reads) == first
        other = replace(image, category="segmentation")
        with pytest.raises(ExistsError, match="has a layer 'em' of other properties"):
            add_image(tissue, other, "em", **options)

    def test_a_run_that_failed_goes_on(self, tissue):
        image, counted = counted_image((100, 60, 40))
        array, counted.array = counted.array, None
        options = {"resume": True, "stored": importing.Stored(blocks=1)}
        with pytest.raises(FormatError, match="can't be read at"):
            add_image(tissue, image, "em", run=Run(), **options)
        assert not wkdask.open(tissue.path)["em"].mags
        counted.array = array
        layer = add_image(tissue, image, "em", run=Run(), **options)
        np.testing.assert_array_equal(layer[1].get_view().read()[0], array.transpose(2, 1, 0))

    def test_retries(self, tissue):
        image, counted = counted_image((20, 20, 20))
        array, counted.array = counted.array, None

        class Once(Counted):
            def __getitem__(self, index: Any) -> Any:
                if not self.reads:
                    self.reads.append(index)
                    raise OSError("a moment")
                return super().__getitem__(index)

        once = Once(array)
        source = replace(image.levels[0].source, open=lambda path: once)
        image = replace(image, levels=(replace(image.levels[0], source=source),))
        layer = add_image(tissue, image, "em", run=Run(retries=1))
        np.testing.assert_array_equal(layer[1].get_view().read()[0], array.transpose(2, 1, 0))

    @pytest.mark.parametrize("name", ["threads", pytest.param("processes", marks=pytest.mark.slow)])
    def test_pools(self, tmp_path, name):
        array = voxels_of((60, 50, 40))
        np.save(tmp_path / "a.npy", array)
        with Scheduler(name, 2).executor() as pool:
            mag = into(tmp_path / "a.npy", tmp_path / "ds", executor=pool)
        np.testing.assert_array_equal(mag[0].compute(), array)

    def test_a_cluster(self, tmp_path, client):
        array = voxels_of((60, 50, 40))
        np.save(tmp_path / "a.npy", array)
        ds = into(tmp_path / "a.npy", tmp_path / "ds").layer.dataset
        np.testing.assert_array_equal(ds["em"][1].get_view().read()[0], array)
        back = wkdask.convert(wkdask.convert(ds, tmp_path / "a.zarr"), tmp_path / "back")
        assert wkdask.equal(ds, back)


class TestErrors:
    @pytest.mark.parametrize(
        ("source", "options", "error", "words"),
        [
            ("nowhere", {}, MissingError, "nowhere does not exist"),
            ("notes.txt", {}, FormatError, "in no format that wkdask knows"),
            ("broken.npy", {}, FormatError, "no .npy file that can be mapped"),
            ("two.npy", {"voxel_size": SIZE}, FormatError, "or holds several arrays"),
            ("cut.npy", {"voxel_size": SIZE}, FormatError, "no .npy file that can be mapped"),
            ("a.npy", {}, ArgumentError, "nobody says how large a voxel is"),
            ("a.npy", {"voxel_size": (1, 1)}, ArgumentError, "three positive lengths"),
            ("a.npy", {"voxel_size": (1, 1, -1)}, ArgumentError, "three positive lengths"),
            ("a.npy", {"voxel_size": SIZE, "unit": "smoot"}, ArgumentError, "unit is 'smoot'"),
            ("a.npy", {"voxel_size": SIZE, "axes": "zy"}, ArgumentError, "has 3 axes"),
            ("a.npy", {"voxel_size": SIZE, "axes": "zzx"}, ArgumentError, "different letters"),
            ("a.npy", {"voxel_size": SIZE, "mags": [2]}, ArgumentError, "it has 1"),
            ("a.npy", {"voxel_size": SIZE, "mags": "1"}, ArgumentError, "list of mags"),
            ("a.npy", {"voxel_size": SIZE, "category": "x"}, ArgumentError, "category is 'x'"),
            ("a.npy", {"voxel_size": SIZE, "layer_name": "a/b"}, ArgumentError, "layer name"),
            ("a.npy", {"voxel_size": SIZE, "offset": (-1, 0, 0)}, ArgumentError, "begins at 0"),
            (
                "a.npy",
                {"voxel_size": SIZE, "to": "n5"},
                ArgumentError,
                "wkw, zarr3, ome-zarr, zarr",
            ),
            ("a.npy", {"voxel_size": SIZE, "to": "zarr", "resume": True}, ArgumentError, "resume"),
            ("a.npy", {"voxel_size": SIZE, "blocks_per_file_edge": 3}, ArgumentError, "power"),
            ("complex.npy", {"voxel_size": SIZE}, ArgumentError, "dtype is 'complex64'"),
            ("a.npy", {"voxel_size": SIZE, "axes": "zyt", "t": 5}, ArgumentError, "x and y among"),
            ("a.npy", {"voxel_size": SIZE, "axes": "tyx", "t": 5}, ArgumentError, "t is 5"),
            ("a.npy", {"voxel_size": SIZE, "axes": "tyx"}, FormatError, "choose one by t"),
            ("five.npy", {"voxel_size": SIZE}, ArgumentError, "has 5 axes"),
            ("five.npy", {"voxel_size": SIZE, "axes": "tczyx"}, FormatError, "no time"),
            ("float.npy", {"voxel_size": SIZE, "category": "segmentation"}, ArgumentError, "whole"),
        ],
    )
    def test_nothing_is_made(self, tmp_path, snapshot, source, options, error, words):
        np.save(tmp_path / "a.npy", voxels_of((5, 5, 5)))
        np.save(tmp_path / "complex.npy", voxels_of((5, 5, 5), "complex64"))
        np.save(tmp_path / "float.npy", voxels_of((5, 5, 5), "float32"))
        np.save(tmp_path / "five.npy", voxels_of((2, 1, 5, 5, 5)))
        (tmp_path / "broken.npy").write_bytes(b"\x93NUMPY\x01\x00oh no")
        (tmp_path / "notes.txt").write_text("hello")
        data = (tmp_path / "a.npy").read_bytes()
        (tmp_path / "two.npy").write_bytes(data * 2)
        (tmp_path / "cut.npy").write_bytes(data[:-1])
        before = snapshot(tmp_path)
        with pytest.raises(error, match=words):
            wkdask.convert(tmp_path / source, tmp_path / "target", **options)
        assert snapshot(tmp_path) == before

    @pytest.mark.parametrize("target", ["x.npy", "x.TIF", "x.n5"])
    def test_formats_that_are_not_written(self, tmp_path, target):
        with pytest.raises(ArgumentError, match="does not write"):
            into(voxels_of((5, 5, 5)), tmp_path / target)

    @pytest.mark.parametrize(
        "said", [{"axes": "xyz"}, {"t": 0}, {"gaps": "close"}, {"offset": (1, 1, 1)}]
    )
    def test_words_that_do_not_count(self, tissue, tmp_path, said):
        into(voxels_of((5, 5, 5)), tissue, voxel_size=None)
        for source in (tissue, tissue.path, tissue["em"], tissue["em"][1], tissue["em"][1].path):
            with pytest.raises(ArgumentError, match="does not count for WKW"):
                into(source, tmp_path / "ds", layer_name="em", **said)
        with pytest.raises(ArgumentError, match="gaps does not count for an array"):
            into(voxels_of((5, 5, 5)), tmp_path / "ds", gaps="close")
        assert not (tmp_path / "ds").exists()

    def test_targets_that_exist(self, tissue, tmp_path, snapshot):
        array = voxels_of((5, 5, 5))
        into(array, tissue, voxel_size=None)
        (tmp_path / "other").mkdir()
        (tmp_path / "other" / "file").write_text("mine")
        before = snapshot(tmp_path)
        for target, options, words in (
            (tissue, {"voxel_size": None}, "has a layer 'em' already"),
            (tissue.path, {"layer_name": "x"}, "has voxels of"),
            (tmp_path / "other", {}, "is no empty directory"),
            (tmp_path / "other", {"to": "ome-zarr"}, "exists: delete it"),
            (tmp_path / "other", {"to": "zarr"}, "exists: delete it"),
        ):
            with pytest.raises(ExistsError, match=words):
                into(array, target, **options)
        assert snapshot(tmp_path) == before

    def test_layers_that_could_be_meant(self, tissue, tmp_path):
        for name, category in (("a", "color"), ("b", "color"), ("c", "segmentation")):
            array = voxels_of((5, 5, 5))
            wkdask.convert(array, tissue, layer_name=name, category=category)
        with pytest.raises(ArgumentError, match=r"has the layers a, b, c, .*--layer-name"):
            wkdask.convert(tissue, tmp_path / "x.zarr")
        with pytest.raises(NameLookupError, match="no layer 'd'"):
            wkdask.convert(tissue, tmp_path / "x.zarr", layer_name="d")
        with pytest.raises(ArgumentError, match="one zarr holds one"):
            wkdask.convert(tissue, tmp_path / "x", to="zarr")
        assert not (tmp_path / "x.zarr").exists()

    def test_there_is_nothing_to_convert(self, tissue, tmp_path):
        with pytest.raises(ArgumentError, match="has no layers"):
            wkdask.convert(tissue, tmp_path / "x.zarr")
        tissue.add_layer("empty", "color", "uint8")
        with pytest.raises(ArgumentError, match="nothing to take"):
            wkdask.convert(tissue, tmp_path / "x.zarr")
        assert not (tmp_path / "x.zarr").exists()

    def test_arrays_without_a_name(self, tmp_path):
        with pytest.raises(ArgumentError, match="pass layer_name"):
            wkdask.convert(voxels_of((5, 5, 5)), tmp_path / "ds", voxel_size=SIZE)

    def test_files_that_do_not_fit_into_memory(self, tmp_path, monkeypatch):
        monkeypatch.setattr("distributed.system.MEMORY_LIMIT", 2**25)
        with pytest.raises(MemoryLimitError):
            into(voxels_of((9, 9, 9)), tmp_path / "ds")
        assert not (tmp_path / "ds").exists()

    @pytest.mark.parametrize(
        ("package", "source", "extra"),
        [("zarr", "a.zarr", "zarr"), ("tifffile", "a.tif", "tiff")],
    )
    def test_packages_of_extras(self, tmp_path, monkeypatch, package, source, extra):
        path = tmp_path / source
        if extra == "zarr":
            path.mkdir()
            (path / "zarr.json").write_text("{}")
        else:
            path.write_bytes(b"II*\0")
        monkeypatch.setitem(sys.modules, package, None)
        with pytest.raises(MissingExtraError, match=rf'pip install "wkdask\[{extra}\]"') as caught:
            wkdask.convert(path, tmp_path / "ds", voxel_size=SIZE)
        assert isinstance(caught.value, ImportError)

    def test_the_extra_is_asked_for_before_anything_is_made(self, tmp_path, monkeypatch):
        monkeypatch.setitem(sys.modules, "zarr", None)
        with pytest.raises(MissingExtraError):
            into(voxels_of((5, 5, 5)), tmp_path / "x.zarr")
        assert not (tmp_path / "x.zarr").exists()


class TestCommand:
    def run(self, *arguments: Any) -> Any:
        return CliRunner().invoke(main, ["convert", *map(str, arguments)])

    def test_there_and_back(self, tmp_path):
        array = voxels_of((20, 30, 40))
        np.save(tmp_path / "a.npy", array)
        result = self.run(
            tmp_path / "a.npy", tmp_path / "ds", "--axes", "zyx", "--voxel-size", "4,4,40",
            "--unit", "micrometer", "--offset", "1,2,3", "--layer-name", "em", "--jobs", "1",
            "--blocks-per-file-edge", "2", "--category", "segmentation", "--json",
        )  # fmt: skip
        assert result.exit_code == 0, result.output
        facts = json.loads(result.output)
        assert (facts["voxel_size"], facts["unit"]) == ([4, 4, 40], "micrometer")
        assert facts["layers"][0]["category"] == "segmentation"
        result = self.run(tmp_path / "ds", tmp_path / "a.zarr", "--scheduler", "threads")
        assert (result.exit_code, result.output) == (0, f"made {tmp_path / 'a.zarr'}\n")
        result = self.run(tmp_path / "a.zarr", tmp_path / "back", "--progress", "--resume")
        assert result.exit_code == 0
        assert "100%" in result.output
        mag = wkdask.open(tmp_path / "back")["em"][1]
        assert mag.bounding_box.topleft == (1, 2, 3)
        np.testing.assert_array_equal(mag[0].compute(), array.transpose(2, 1, 0))
        result = self.run(tmp_path / "ds", tmp_path / "b", "--to", "zarr", "--mag", "1", "--json")
        assert json.loads(result.output) == {"path": str(tmp_path / "b")}

    @pytest.mark.parametrize(
        ("arguments", "exit_code", "words"),
        [
            (["nowhere", "ds"], 1, "nowhere does not exist"),
            (["a.npy", "ds"], 1, "--voxel-size X,Y,Z"),
            (["a.npy", "ds", "--voxel-size", "1,1"], 2, "three numbers with commas"),
            (["a.npy", "ds", "--offset", "1,1,x"], 2, "three numbers with commas"),
            (["a.npy", "ds", "--category", "nice"], 2, "'nice' is not one of"),
        ],
    )
    def test_errors_are_one_line(self, tmp_path, monkeypatch, arguments, exit_code, words):
        monkeypatch.chdir(tmp_path)
        np.save("a.npy", voxels_of((5, 5, 5)))
        result = self.run(*arguments)
        assert result.exit_code == exit_code
        assert words in result.output
        assert result.output.splitlines()[-1].startswith("Error: ")
        assert sorted(Path().iterdir()) == [Path("a.npy")]


def test_images_refuse_what_is_no_array():
    with pytest.raises(ArgumentError, match="masked"):
        of_array(np.ma.masked_array(np.zeros((3, 3, 3))))
    with pytest.raises(FormatError, match="no time"):
        of_array(np.zeros((2, 3, 3, 3, 3)), "tczyx")


def test_a_coarse_level_may_reach_beyond():
    """Some writers round sizes up: the box grows by what lies outside of its coarse voxels."""
    fine, coarse = (np.zeros((1, n, n, n), np.uint8) for n in (10, 6))
    levels = (Level(Mag(1), (0, 0, 0), fine), Level(Mag(2), (0, 0, 0), coarse[:, :5, :5, :5]))
    assert Image(levels).box == BoundingBox((0, 0, 0), (10, 10, 10))
    levels = (levels[0], Level(Mag(2), (0, 0, 0), coarse))
    assert Image(levels).box == BoundingBox((0, 0, 0), (12, 12, 12))
