"""OME-Zarr and zarr: valid for others, bit-identical on the way back, one task per shard."""

from __future__ import annotations

import json
import math
import os
import shutil
import signal
import warnings
from pathlib import Path
from typing import Any

import dask
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import wkdask
from wkdask.arrays.view import View
from wkdask.errors import ArgumentError, ExistsError, FormatError, WkdaskError
from wkdask.formats import ome_zarr as zarrs
from wkdask.formats.image import of_layer
from wkdask.geometry import BoundingBox, Mag
from wkdask.runtime.run import Run
from wkdask.storage import atomic
from wkdask.storage.header import DTYPES

zarr = pytest.importorskip("zarr")

# Files of the default size hold many blocks of zeros here, which take their time.
SMALL = {"blocks_per_file_edge": 2}

BOX = BoundingBox((77, 41, 13), (140, 100, 60))


@pytest.fixture(scope="module")
def models() -> Any:
    """What checks the metadata of OME-Zarr 0.5, by others."""
    return pytest.importorskip("ome_zarr_models.v05")


def add_layer(
    dataset: wkdask.Dataset,
    name: str,
    dtype: str = "uint8",
    channels: int = 1,
    *,
    category: str = "color",
    box: BoundingBox = BOX,
    mags: tuple[str, ...] = ("1", "2-2-1", "4-4-2"),
    **options: Any,
) -> wkdask.Layer:
    layer = dataset.add_layer(name, category, dtype, channels, box, **options)
    rng = np.random.default_rng(0)
    for mag in mags:
        view = layer.add_mag(mag, blocks_per_file_edge=2)
        view.get_view().store(rng.integers(0, 99, view.shape).astype(dtype), align="rechunk")
    return layer


@pytest.fixture
def furnished(tissue: wkdask.Dataset) -> wkdask.Dataset:
    """A dataset of an image and two segmentations."""
    add_layer(tissue, "em")
    add_layer(tissue, "cells", "uint32", category="segmentation", largest_segment_id=98)
    add_layer(tissue, "mitos", "uint16", category="segmentation")
    return tissue


class TestRoundTrip:
    def test_a_dataset_with_labels(self, furnished, tmp_path):
        path = wkdask.convert(furnished, tmp_path / "brain.ome.zarr")
        assert path == tmp_path / "brain.ome.zarr"
        back = wkdask.convert(path, tmp_path / "back", blocks_per_file_edge=4)
        assert list(back.layers) == ["em", "cells", "mitos"]
        assert wkdask.equal(furnished, back)
        assert back["cells"].largest_segment_id == 98

    @settings(max_examples=6, deadline=None)
    @given(
        st.sampled_from(DTYPES),
        st.integers(1, 3),
        st.tuples(*[st.integers(0, 300)] * 3),
        st.tuples(*[st.integers(1, 50)] * 3),
        st.sampled_from([("1",), ("1", "2"), ("2-2-1", "4-4-2"), ("1", "3-3-1"), ("8-8-4",)]),
        st.tuples(*[st.floats(0.1, 99)] * 3),
        st.sampled_from(["nanometer", "micrometer", "angstrom"]),
    )
    def test_any_layer(self, tmp_path_factory, dtype, channels, corner, size, mags, edges, unit):
        folder = tmp_path_factory.mktemp("zarr")
        ds = wkdask.create(folder / "ds", edges, unit)
        add_layer(ds, "x", dtype, channels, box=BoundingBox(corner, size), mags=mags)
        path = wkdask.convert(ds, folder / "x.zarr")
        assert wkdask.equal(ds, wkdask.convert(path, folder / "back", **SMALL))

    def test_a_few_voxels_keep_their_mags(self, tissue, tmp_path):
        """Of which nobody could tell by their sizes what they are."""
        box = BoundingBox((0, 0, 0), (3, 3, 4))
        for name, category in (("em", "color"), ("cells", "segmentation")):
            add_layer(tissue, name, box=box, mags=("1", "3-3-2", "6-6-2"), category=category)
        path = wkdask.convert(tissue, tmp_path / "x.zarr")
        assert wkdask.equal(tissue, wkdask.convert(path, tmp_path / "back", **SMALL))

    def test_without_what_is_ours_all_but_the_exact_box_survives(self, furnished, tmp_path):
        path = wkdask.convert(furnished["em"], tmp_path / "em.zarr")
        group = zarr.open_group(path, mode="r+")
        del group.attrs["wkdask"]
        assert wkdask.equal(furnished["em"], wkdask.convert(path, tmp_path / "back", **SMALL)["em"])

    def test_what_is_ours_does_not_outlive_a_change(self, furnished, tmp_path):
        path = wkdask.convert(furnished["em"], tmp_path / "em.zarr")
        text = (path / "zarr.json").read_text()
        value = json.loads(text)
        for dataset in value["attributes"]["ome"]["multiscales"][0]["datasets"]:
            for transform in dataset["coordinateTransformations"]:
                kind = transform["type"]
                transform[kind] = [number * 1.7 for number in transform[kind]]
        (path / "zarr.json").write_text(json.dumps(value))
        image = zarrs.read(path)[0]
        assert image.voxel_size == pytest.approx([edge * 1.7 for edge in (11.24, 11.24, 28)])
        assert [level.corner for level in image.levels] == [(77, 41, 13), (38, 20, 13), (19, 10, 6)]

    def test_a_part(self, furnished, tmp_path):
        view = furnished["em"]["2-2-1"].get_view((40, 25, 20), (30, 20, 10))
        path = wkdask.convert(view, tmp_path / "part.zarr")
        image = zarrs.read(path)[0]
        assert [level.box for level in image.levels] == [view.bounding_box]
        assert image.levels[0].mag == Mag("2-2-1")
        back = wkdask.convert(path, tmp_path / "back", **SMALL)["em"]["2-2-1"]
        assert wkdask.equal(view, back.get_view((40, 25, 20), (30, 20, 10)))

    def test_plain_arrays(self, furnished, tmp_path):
        path = wkdask.convert(furnished, tmp_path / "a", layer_name="em", mags=["2-2-1"], to="zarr")
        array = zarr.open_array(path, mode="r")
        assert array.metadata.dimension_names == ("z", "y", "x")
        expected = furnished["em"]["2-2-1"].get_view().read()[0]
        np.testing.assert_array_equal(array[:].transpose(2, 1, 0), expected)
        back = wkdask.convert(path, tmp_path / "back", **SMALL)
        assert back.voxel_size == furnished.voxel_size
        assert wkdask.equal(furnished["em"]["2-2-1"], back["em"]["2-2-1"])
        with pytest.raises(ArgumentError, match="one mag, but there are 1, 2-2-1, 4-4-2"):
            wkdask.convert(furnished["em"], tmp_path / "b", to="zarr")
        assert not (tmp_path / "b").exists()

    def test_real_data(self, real_volume, tmp_path):
        ds = wkdask.open(real_volume)
        path = wkdask.convert(ds, tmp_path / "real.zarr")
        back = wkdask.convert(path, tmp_path / "back", blocks_per_file_edge=8)
        assert wkdask.equal(ds, back)


class TestForOthers:
    def test_the_metadata_are_valid(self, furnished, models, tmp_path):
        path = wkdask.convert(furnished, tmp_path / "x.zarr")
        image = models.Image.from_zarr(zarr.open_group(path, mode="r"))
        multiscale = image.attributes.ome.multiscales[0]
        assert [axis.name for axis in multiscale.axes] == ["z", "y", "x"]
        assert {axis.unit for axis in multiscale.axes} == {"nanometer"}
        models.Labels.from_zarr(zarr.open_group(path / "labels", mode="r"))
        for name in ("cells", "mitos"):
            label = models.ImageLabel.from_zarr(zarr.open_group(path / "labels" / name, mode="r"))
            assert label.attributes.ome.image_label.source.image == "../../"
        alone = wkdask.convert(furnished["cells"], tmp_path / "cells.zarr")
        models.ImageLabel.from_zarr(zarr.open_group(alone, mode="r"))

    def test_channels_come_first(self, tissue, models, tmp_path):
        add_layer(tissue, "rgb", channels=3)
        path = wkdask.convert(tissue, tmp_path / "x.zarr")
        image = models.Image.from_zarr(zarr.open_group(path, mode="r"))
        axes = image.attributes.ome.multiscales[0].axes
        assert [(axis.name, axis.type) for axis in axes][:2] == [("c", "channel"), ("z", "space")]
        assert zarr.open_array(path / "0").chunks == (1, 64, 64, 64)

    def test_tensorstore_reads_the_same(self, furnished, tmp_path):
        tensorstore = pytest.importorskip("tensorstore")
        path = wkdask.convert(furnished, tmp_path / "x.zarr")
        for name, place in (("em", path), ("cells", path / "labels" / "cells")):
            for number, mag in enumerate(furnished[name].mags.values()):
                store = {"driver": "file", "path": str(place / str(number))}
                found = tensorstore.open({"driver": "zarr3", "kvstore": store}).result()
                voxels = found.read().result().transpose(2, 1, 0)
                np.testing.assert_array_equal(voxels, mag.get_view().read()[0])

    def test_levels_lie_over_each_other(self, furnished, tmp_path):
        """Each voxel's centre is at its place, counted from the centre of voxel 0 of mag 1."""
        path = wkdask.convert(furnished["em"], tmp_path / "x.zarr")
        multiscale = zarr.open_group(path).attrs["ome"]["multiscales"][0]
        for dataset, mag in zip(multiscale["datasets"], furnished["em"].mags.values(), strict=True):
            scale, translation = dataset["coordinateTransformations"]
            size = np.array([28, 11.24, 11.24])
            factors, corner = (
                np.array(list(mag.mag))[::-1],
                np.array(mag.bounding_box.topleft)[::-1],
            )
            np.testing.assert_allclose(scale["scale"], size * factors)
            centre = (corner * factors + (factors - 1) / 2) * size
            np.testing.assert_allclose(translation["translation"], centre)

    def test_labels_have_as_many_levels_as_their_image(self, furnished, tmp_path):
        add_layer(furnished, "few", "uint8", category="segmentation", mags=("2-2-1",))
        with pytest.raises(ArgumentError, match=r"label 'few' has 1 levels.* has 3"):
            wkdask.convert(furnished, tmp_path / "x.zarr")
        assert not (tmp_path / "x.zarr").exists()
        path = wkdask.convert(furnished, tmp_path / "x.zarr", mags=["2-2-1"])
        assert [len(image.levels) for image in zarrs.read(path)] == [1, 1, 1, 1]


class TestShards:
    @pytest.mark.parametrize(
        ("dtype", "channels", "size", "blocks", "shard", "chunk"),
        [
            pytest.param("uint8", 1, (300, 300, 300), 32, (320,) * 3, 64, id="no more than needed"),
            pytest.param("uint8", 1, (999, 999, 999), 32, (512,) * 3, 64, id="not above 256 MiB"),
            pytest.param("uint64", 1, (999, 999, 999), 32, (256,) * 3, 64, id="wide voxels"),
            pytest.param("uint8", 1, (999, 999, 999), 4, (128,) * 3, 64, id="a file"),
            pytest.param("uint8", 1, (999, 999, 999), 1, (32,) * 3, 32, id="small files"),
            pytest.param("uint8", 1, (999, 999, 20), 32, (512, 512, 64), 64, id="thin"),
        ],
    )
    def test_sizes(self, tissue, dtype, channels, size, blocks, shard, chunk):
        layer = tissue.add_layer("x", "color", dtype, channels, BoundingBox((5, 5, 5), size))
        layer.add_mag(1, blocks_per_file_edge=blocks)
        level = of_layer(layer).levels[0]
        assert zarrs._shard(level) == shard
        assert all(edge % chunk == 0 for edge in shard)

    def test_one_task_writes_one_shard(self, tissue, tmp_path, monkeypatch):
        layer = add_layer(tissue, "x", mags=("1",))
        reads = []
        read = View.to_dask
        monkeypatch.setattr(View, "to_dask", lambda *a: reads.append(a) or read(*a))
        path = wkdask.convert(layer, tmp_path / "x.zarr", blocks_per_file_edge=32)
        array = zarr.open_array(path / "0", mode="r")
        assert array.shards == (64,) * 3
        assert [chunks for _, chunks in reads] == [((1,), (64, 64, 12), (64, 36), (60,))]
        files = [name for name in (path / "0" / "c").rglob("*") if name.is_file()]
        assert len(files) == 3 * 2 * 1

    def test_shards_of_zeros_are_not_written(self, tissue, tmp_path):
        layer = tissue.add_layer("x", "color", "uint8", 1, BoundingBox((0, 0, 0), (640, 64, 64)))
        mag = layer.add_mag(1, blocks_per_file_edge=2)
        mag.write(np.ones((64, 64, 64), np.uint8), (128, 0, 0))
        path = wkdask.convert(layer, tmp_path / "x.zarr")
        files = [name for name in (path / "0" / "c").rglob("*") if name.is_file()]
        assert [name.relative_to(path).as_posix() for name in files] == ["0/c/0/0/2"]
        assert wkdask.equal(layer, wkdask.convert(path, tmp_path / "back", **SMALL)["x"])

    def test_an_export_that_was_killed_is_repeated(self, furnished, tmp_path):
        target = tmp_path / "x.zarr"
        child = os.fork()
        if not child:
            zarrs._write_shard = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
            with dask.config.set(scheduler="synchronous"):
                wkdask.convert(furnished["em"], target)
        os.waitpid(child, 0)
        left = [path.name for path in tmp_path.glob("x.zarr*")]
        assert len(left) == 1
        assert left[0].endswith(".wkdask-tmp")
        wkdask.convert(furnished["em"], target)
        assert [path.name for path in tmp_path.glob("x.zarr*")] == ["x.zarr"]
        assert wkdask.equal(furnished["em"], wkdask.convert(target, tmp_path / "b", **SMALL)["em"])

    def test_nothing_is_left_after_an_error(self, furnished, tmp_path, monkeypatch):
        def fail(*_: Any) -> None:
            raise RuntimeError("lost")

        monkeypatch.setattr(zarrs, "_write_shard", fail)
        for to in ("ome-zarr", "zarr"):
            with pytest.raises(RuntimeError, match="lost"):
                wkdask.convert(furnished["em"], tmp_path / "x.zarr", to=to, mags=[1])
            assert not list(tmp_path.glob("x.zarr*"))

    def test_a_living_export_is_left_alone(self, furnished, tmp_path):
        with atomic.new_directory(str(tmp_path / "x.zarr")) as private:
            wkdask.convert(furnished["em"], tmp_path / "x.zarr", mags=[1])
            assert os.path.isdir(private)
            with pytest.raises(ExistsError, match="choose another path"):
                atomic.check_missing(str(tmp_path / "x.zarr"))
            shutil.rmtree(tmp_path / "x.zarr")
        assert os.path.isdir(tmp_path / "x.zarr")

    def test_errors_name_the_file(self, furnished, tmp_path):
        volume = furnished["em"][1].volume
        Path(volume.file_path((2, 1, 0))).write_bytes(b"nonsense")
        with pytest.raises(FormatError, match=r"x2\.wkw"):
            wkdask.convert(furnished["em"], tmp_path / "x.zarr")

    def test_bars(self, furnished, tmp_path, capsys):
        image = of_layer(furnished["em"])
        zarrs.write([image], tmp_path / "x.zarr", run=Run(progress=True))
        assert capsys.readouterr().err.count("100%") >= 3


def write_ome(
    path: Path,
    levels: list[Any],
    scales: list[Any],
    translations: list[Any] | None = None,
    *,
    axes: str = "zyx",
    unit: str | None = "micrometer",
    version: str = "0.4",
    **more: Any,
) -> Path:
    """Write an image as others do, by zarr itself."""
    group = zarr.open_group(path, mode="w", zarr_format=2 if version == "0.4" else 3)
    types = {"c": "channel", "t": "time"}
    described = [{"name": axis, "type": types.get(axis, "space")} for axis in axes]
    for axis in described:
        if axis["type"] == "space" and unit is not None:
            axis["unit"] = unit
    datasets = []
    for number, (array, scale) in enumerate(zip(levels, scales, strict=True)):
        chunks = tuple(min(n, 16) for n in array.shape)
        made = group.create_array(str(number), shape=array.shape, dtype=array.dtype, chunks=chunks)
        made[...] = array
        transforms = [{"type": "scale", "scale": list(scale)}]
        if translations is not None:
            transforms.append({"type": "translation", "translation": list(translations[number])})
        datasets.append({"path": str(number), "coordinateTransformations": transforms})
    multiscales = [{"axes": described, "datasets": datasets, "version": version, **more}]
    if version == "0.4":
        group.attrs["multiscales"] = multiscales
    else:
        group.attrs["ome"] = {"version": version, "multiscales": multiscales}
    return path


def some(*shape: int, dtype: str = "uint8") -> Any:
    return np.random.default_rng(1).integers(0, 99, shape).astype(dtype)


class TestFromOthers:
    @pytest.mark.parametrize("version", ["0.4", "0.5"])
    def test_a_pyramid(self, tmp_path, version):
        fine, coarse = some(20, 40, 60), some(20, 20, 30)
        path = write_ome(
            tmp_path / "cortex.ome.zarr", [fine, coarse], [(0.04, 0.01, 0.01), (0.04, 0.02, 0.02)],
            version=version,
        )  # fmt: skip
        ds = wkdask.convert(path, tmp_path / "ds", **SMALL)
        assert (ds.voxel_size, ds.unit) == ((0.01, 0.01, 0.04), "micrometer")
        layer = ds["cortex"]
        assert list(layer.mags) == [Mag(1), Mag("2-2-1")]
        np.testing.assert_array_equal(layer[1].get_view().read()[0], fine.transpose(2, 1, 0))
        np.testing.assert_array_equal(
            layer["2-2-1"].get_view().read()[0], coarse.transpose(2, 1, 0)
        )

    @pytest.mark.parametrize(
        ("axes", "shape", "expected"),
        [
            ("tczyx", (1, 2, 5, 6, 7), (2, 7, 6, 5)),
            ("czyx", (3, 5, 6, 7), (3, 7, 6, 5)),
            ("tzyx", (1, 5, 6, 7), (1, 7, 6, 5)),
            ("yx", (6, 7), (1, 7, 6, 1)),
        ],
    )
    def test_axes(self, tmp_path, axes, shape, expected):
        path = write_ome(tmp_path / "x.zarr", [some(*shape)], [[1.0] * len(shape)], axes=axes)
        image = zarrs.read(path)[0]
        assert image.levels[0].source.shape == expected

    @pytest.mark.parametrize(
        ("translations", "corners"),
        [
            pytest.param(None, [(0, 0, 0), (0, 0, 0)], id="none"),
            pytest.param([(8, 6, 4), (8, 6, 4)], [(4, 6, 8), (2, 3, 4)], id="of corners"),
            pytest.param([(8, 6, 4), (8.5, 6.5, 4.5)], [(4, 6, 8), (2, 3, 4)], id="of centres"),
            pytest.param([(8.3, 6, 4), (8.8, 6.5, 4.5)], [(4, 6, 8), (2, 3, 4)], id="of a stage"),
        ],
    )
    def test_places(self, tmp_path, translations, corners):
        levels = [some(20, 20, 20), some(10, 10, 10)]
        path = write_ome(tmp_path / "x.zarr", levels, [(1, 1, 1), (2, 2, 2)], translations)
        assert [level.corner for level in zarrs.read(path)[0].levels] == corners
        moved = zarrs.read(path, offset=(20, 0, 2))[0]
        assert [level.corner for level in moved.levels] == [(20, 0, 2), (10, 0, 1)]

    def test_a_scale_of_the_whole_image(self, tmp_path):
        transforms = [{"type": "scale", "scale": [3, 2, 2]}]
        path = write_ome(
            tmp_path / "x.zarr", [some(9, 9, 9)], [(1, 1, 1)], [(4, 5, 6)],
            coordinateTransformations=transforms,
        )  # fmt: skip
        image = zarrs.read(path)[0]
        assert image.voxel_size == (2, 2, 3)
        assert image.levels[0].corner == (6, 5, 4)

    def test_factors_from_sizes_that_were_rounded(self, tmp_path):
        levels = [some(1001, 9, 9), some(500, 4, 4)]
        path = write_ome(tmp_path / "x.zarr", levels, [(1, 1, 1), (1001 / 500, 2, 2)])
        ds = wkdask.convert(path, tmp_path / "ds", **SMALL)
        assert list(ds["x"].mags) == [Mag(1), Mag(2)]
        assert ds["x"].bounding_box == BoundingBox((0, 0, 0), (9, 9, 1001))
        np.testing.assert_array_equal(
            ds["x"][2].get_view((0, 0, 0), (4, 4, 500)).read()[0], levels[1].transpose(2, 1, 0)
        )

    @pytest.mark.parametrize(
        ("sizes", "factors"),
        [
            pytest.param(
                [1000, 500, 250, 125, 62, 31, 15, 7], [1, 2, 4, 8, 16, 32, 64, 128], id="down"
            ),
            pytest.param(
                [1000, 500, 250, 125, 63, 32, 16, 8], [1, 2, 4, 8, 16, 32, 64, 128], id="up"
            ),
            pytest.param([9, 5, 3], [1, 2, 4], id="up, of few voxels"),
            pytest.param([1000, 333, 111, 37, 12], [1, 3, 9, 27, 81], id="thirds"),
            pytest.param([1024, 256, 64], [1, 4, 16], id="without rounding"),
        ],
    )
    @pytest.mark.parametrize("digits", [None, 2])
    def test_scales_that_are_ratios_of_sizes(self, tmp_path, sizes, factors, digits):
        levels = [some(1, 1, size) for size in sizes]
        ratios = [sizes[0] / size for size in sizes]
        scales = [(4, 1, ratio if digits is None else round(ratio, digits)) for ratio in ratios]
        path = write_ome(tmp_path / "x.zarr", levels, scales)
        image = zarrs.read(path)[0]
        assert not image.refused
        assert [tuple(level.mag) for level in image.levels] == [(f, 1, 1) for f in factors]
        assert {level.corner for level in image.levels} == {(0, 0, 0)}
        middles = [(0, 0, (ratio - 1) / 2) for ratio in ratios]
        path = write_ome(tmp_path / "y.zarr", levels, scales, middles)
        assert {level.corner for level in zarrs.read(path)[0].levels} == {(0, 0, 0)}

    @pytest.mark.parametrize(
        ("sizes", "scales", "words"),
        [
            pytest.param(
                [100, 67, 44], [1, 1.5, 2.25], r"level 1 .* whole factors.*--mag", id="1.5"
            ),
            pytest.param([100, 40], [1, 2.5], r"level 1 .* whole factors", id="2.5"),
            pytest.param([100, 25], [1, 2], "its scale says that it is mag 2", id="another size"),
            pytest.param([100, 50], [1, 4], "its scale says that it is mag 4", id="another scale"),
            pytest.param([200, 5], [1, 40], None, id="a whole scale that fits"),
            pytest.param([200, 6], [1, 200 / 6], None, id="a power of two that fits"),
            pytest.param([200, 20, 3], [1, 9.9, 66.7], r"level 2 .* whole factors", id="unclear"),
        ],
    )
    def test_levels_that_are_no_mags(self, tmp_path, sizes, scales, words):
        levels = [some(3, 4, size) for size in sizes]
        path = write_ome(tmp_path / "x.zarr", levels, [(1, 1, scale) for scale in scales])
        if words is None:
            assert not zarrs.read(path)[0].refused
            return
        with pytest.raises(FormatError, match=words):
            wkdask.convert(path, tmp_path / "ds")
        assert not (tmp_path / "ds").exists()
        ds = wkdask.convert(path, tmp_path / "ds", mags=[1], **SMALL)
        assert list(ds["x"].mags) == [Mag(1)]
        assert wkdask.equal(
            ds["x"][1], wkdask.convert(path, ds, mags=[1], layer_name="y", **SMALL)["y"][1]
        )

    def test_levels_of_another_dtype(self, tmp_path):
        levels = [some(10, 10, 10), some(5, 5, 5, dtype="uint16")]
        path = write_ome(tmp_path / "x.zarr", levels, [(1, 1, 1), (2, 2, 2)])
        with pytest.raises(FormatError, match="uint16 in 1 channels, unlike"):
            wkdask.convert(path, tmp_path / "ds")
        assert list(wkdask.convert(path, tmp_path / "ds", mags=[1])["x"].mags) == [Mag(1)]

    def test_the_coarsest_is_listed_first(self, tmp_path):
        fine, coarse = some(20, 40, 60), some(20, 20, 30)
        path = write_ome(tmp_path / "x.zarr", [coarse, fine], [(1, 2, 2), (1, 1, 1)])
        ds = wkdask.convert(path, tmp_path / "ds", **SMALL)
        assert list(ds["x"].mags) == [Mag(1), Mag("2-2-1")]
        np.testing.assert_array_equal(ds["x"][1].get_view().read()[0], fine.transpose(2, 1, 0))

    def test_sizes_that_were_rounded_up_to_shards(self, tmp_path):
        """As WEBKNOSSOS does, and as its axes are."""
        path = write_ome(
            tmp_path / "x.zarr",
            [some(1, 64, 64, 64)] * 2,
            [(1, 1, 1, 1), (1, 2, 2, 2)],
            axes="cxyz",
        )
        assert [level.mag for level in zarrs.read(path)[0].levels] == [Mag(1), Mag(2)]
        for size in (15, 40):
            levels = [some(1, 64, 64, 64), some(1, size, size, size)]
            path = write_ome(tmp_path / str(size), levels, [(1,) * 4, (1, 2, 2, 2)], axes="cxyz")
            assert "its scale says that it is mag 2" in str(zarrs.read(path)[0].refused[0])

    def test_reading_metadata_reads_no_voxels(self, tmp_path):
        path = write_ome(tmp_path / "x.zarr", [some(20, 40, 60)], [(1, 1, 1)], version="0.5")
        shutil.rmtree(path / "0" / "c")
        image = zarrs.read(path)[0]
        assert image.levels[0].cut((32,) * 3).shape == (1, 60, 40, 20)

    @pytest.mark.parametrize(
        ("options", "error", "words"),
        [
            ({"unit": "smoot"}, FormatError, "the unit 'smoot', .* pass unit"),
            ({"unit": None}, ArgumentError, "not of what unit: pass unit"),
            ({"axes": "qyx"}, FormatError, "an axis 'q'"),
            ({"axes": "zyc"}, FormatError, "must have x and y"),
            ({"scales": [(1, 1, 1), (1.5, 2, 2)]}, FormatError, "whole factors"),
            ({"scales": [(1, 1, 0), (2, 2, 2)]}, FormatError, "voxels of size"),
            ({"scales": [(1, 1, 1), (1, 1, 1)]}, FormatError, "levels of the same scale"),
            ({"scales": [(1, 1, 1), (1, 1)]}, FormatError, "can't be understood"),
            ({"datasets": None}, FormatError, "lists no levels"),
            ({"translations": [(0, 0, -5)] * 2}, FormatError, "begins at voxel .* Pass an offset"),
            ({"translations": [(3, 3, 3)] * 2}, FormatError, "multiples of its factors"),
            ({"coordinateTransformations": [{"type": "affine"}]}, FormatError, "'affine'"),
        ],
    )
    def test_what_wkw_lacks(self, tmp_path, options, error, words):
        facts = {"scales": [(1, 1, 1), (2, 2, 2)]} | options
        path = write_ome(tmp_path / "x.zarr", [some(10, 10, 10), some(5, 5, 5)], **facts)
        with pytest.raises(error, match=words):
            wkdask.convert(path, tmp_path / "ds")
        assert not (tmp_path / "ds").exists()

    @pytest.mark.parametrize(
        ("attributes", "words"),
        [
            ({"ome": None}, "can't be understood"),
            ({"ome": {"multiscales": [{"axes": [], "datasets": []}]}}, "must have x and y"),
            ({"ome": {"multiscales": [{"axes": ["y", "x"], "datasets": []}]}}, "no levels"),
            ({"wkdask": 5}, "can't be understood"),
            ({"wkdask": {"voxel_size": [8, 8]}}, "can't be understood"),
            ({"wkdask": {"voxel_size": [0, 8, 8]}}, "can't be understood"),
            ({"wkdask": {"bounding_box": {"size": [1, 1, 1]}}}, "can't be understood"),
            ({"wkdask": {"largest_segment_id": "many"}}, "largest_segment_id"),
        ],
    )
    def test_attributes_that_are_nonsense(self, tmp_path, attributes, words):
        path = write_ome(tmp_path / "x.zarr", [some(5, 5, 5)], [(1, 1, 1)], version="0.5")
        said = json.loads((path / "zarr.json").read_text())
        said["attributes"] |= attributes
        (path / "zarr.json").write_text(json.dumps(said))
        with pytest.raises(WkdaskError, match=words):
            wkdask.convert(path, tmp_path / "ds")
        assert not (tmp_path / "ds").exists()

    def test_several_time_points(self, tmp_path):
        path = write_ome(tmp_path / "x.zarr", [some(2, 5, 5, 5)], [(1,) * 4], axes="tzyx")
        with pytest.raises(FormatError, match="no time"):
            zarrs.read(path)

    def test_groups_without_an_image(self, tmp_path):
        write_ome(tmp_path / "x" / "0", [some(5, 5, 5)], [(1, 1, 1)], version="0.5")
        zarr.create_group(tmp_path / "x", overwrite=False)
        with pytest.raises(FormatError, match=r"without an OME-Zarr image .* Convert one of .*x/0"):
            zarrs.read(tmp_path / "x")

    def test_levels_that_are_missing_or_broken(self, tmp_path):
        path = write_ome(tmp_path / "x.zarr", [some(5, 5, 5)], [(1, 1, 1)], version="0.5")
        chunk = next(name for name in (path / "0" / "c").rglob("*") if name.is_file())
        chunk.write_bytes(b"nonsense")
        with pytest.raises(FormatError, match=r"x\.zarr/0 can't be read at"):
            wkdask.convert(path, tmp_path / "ds")
        shutil.rmtree(path / "0")
        with pytest.raises(FormatError, match="lists a level '0', but there is none"):
            zarrs.read(path)
        (path / "zarr.json").write_text("{")
        with pytest.raises(FormatError, match="can't be opened as zarr"):
            zarrs.read(path)


def with_axes(path: Path, change: Any) -> Path:
    """Change what an image of OME-Zarr 0.4 says of its axes."""
    said = json.loads((path / ".zattrs").read_text())
    said["multiscales"][0]["axes"] = change(said["multiscales"][0]["axes"])
    (path / ".zattrs").write_text(json.dumps(said))
    return path


def add_label(path: Path, directory: str, array: Any, scale: Any, **more: Any) -> None:
    write_ome(path / "labels" / directory, [array], [scale], **more)
    labels = zarr.open_group(path / "labels", mode="a", zarr_format=2)
    labels.attrs["labels"] = [*labels.attrs.get("labels", []), directory]
    label = zarr.open_group(path / "labels" / directory, mode="a")
    label.attrs["image-label"] = {}


class TestWords:
    """What others write otherwise, and mean the same."""

    @pytest.mark.parametrize("unit", ["um", "µm", "μm", "micron", "Microns", "UM", "Micrometers"])
    def test_units(self, tmp_path, unit):
        path = write_ome(tmp_path / "x.zarr", [some(5, 5, 5)], [(3, 2, 1)], unit=unit)
        ds = wkdask.convert(path, tmp_path / "ds", **SMALL)
        assert (ds.voxel_size, ds.unit) == ((1, 2, 3), "micrometer")

    @pytest.mark.parametrize("told", ["smoot", None, "nanometer"])
    def test_the_caller_knows_better(self, tmp_path, told):
        path = write_ome(tmp_path / "x.zarr", [some(5, 5, 5)], [(3, 2, 1)], unit=told)
        ds = wkdask.convert(path, tmp_path / "ds", unit="um", **SMALL)
        assert (ds.voxel_size, ds.unit) == ((1, 2, 3), "micrometer")

    def test_units_of_each_axis(self, tmp_path):
        levels = [some(9, 10, 10), some(9, 5, 5)]
        path = write_ome(tmp_path / "x.zarr", levels, [(0.04, 8, 8), (0.04, 16, 16)])
        units = ["micrometer", "nm", "nanometers"]
        with_axes(path, lambda axes: [a | {"unit": u} for a, u in zip(axes, units, strict=True)])
        ds = wkdask.convert(path, tmp_path / "ds", **SMALL)
        assert ds.voxel_size == pytest.approx((8, 8, 40))
        assert (ds.unit, list(ds["x"].mags)) == ("nanometer", [Mag(1), Mag("2-2-1")])
        with_axes(path, lambda axes: [axes[0] | {"unit": "second"}, *axes[1:]])
        with pytest.raises(FormatError, match="don't convert into each other"):
            zarrs.read(path)

    @pytest.mark.parametrize("axes", [["z", "y", "x"], "zyx", ["Z", "Y", "X"]])
    def test_axes_without_types(self, tmp_path, axes):
        path = write_ome(tmp_path / "x.zarr", [some(4, 5, 6)], [(3, 2, 1)])
        with_axes(path, lambda _: axes)
        image = zarrs.read(path)[0]
        assert (image.levels[0].source.shape, image.voxel_size) == ((1, 6, 5, 4), (1, 2, 3))

    def test_levels_without_scales(self, tmp_path):
        """As before 0.4, and without axes before 0.3."""
        path = write_ome(tmp_path / "x.zarr", [some(1, 1, 9, 10, 10), some(1, 1, 9, 5, 5)],
                         [(1,) * 5] * 2, axes="tczyx")  # fmt: skip
        said = json.loads((path / ".zattrs").read_text())
        said["multiscales"][0]["datasets"] = [{"path": "0"}, {"path": "1"}]
        del said["multiscales"][0]["axes"]
        (path / ".zattrs").write_text(json.dumps(said))
        with pytest.raises(ArgumentError, match="pass voxel_size"):
            wkdask.convert(path, tmp_path / "ds")
        ds = wkdask.convert(path, tmp_path / "ds", voxel_size=(8, 8, 40), **SMALL)
        assert list(ds["x"].mags) == [Mag(1), Mag("2-2-1")]

    def test_axes_that_are_given(self, tmp_path):
        path = write_ome(tmp_path / "x.zarr", [some(4, 5, 6)], [(3, 2, 1)])
        assert zarrs.read(path, axes="zyx")
        with pytest.raises(ArgumentError, match="says that they are 'zyx'"):
            zarrs.read(path, axes="xyz")

    @pytest.mark.parametrize(("dtype", "stored"), [("bool", "uint8"), ("float16", "float32")])
    def test_dtypes_that_fit_into_wider_ones(self, tmp_path, dtype, stored):
        array = (some(4, 5, 6) % 2).astype(dtype)
        path = write_ome(tmp_path / "x.zarr", [array], [(3, 2, 1)])
        mag = wkdask.convert(path, tmp_path / "ds", **SMALL)["x"][1]
        assert mag.dtype == stored
        np.testing.assert_array_equal(mag[0].compute(), array.astype(stored).transpose(2, 1, 0))

    def test_a_time_point(self, tmp_path):
        array = some(3, 4, 5, 6)
        path = write_ome(tmp_path / "x.zarr", [array], [(1,) * 4], axes="tzyx")
        mag = wkdask.convert(path, tmp_path / "ds", t=1, **SMALL)["x"][1]
        np.testing.assert_array_equal(mag[0].compute(), array[1].transpose(2, 1, 0))


class TestLabels:
    def test_are_called_as_their_directory(self, tmp_path):
        path = write_ome(tmp_path / "x.zarr", [some(8, 8, 8)], [(1, 1, 1)], name="a/b")
        add_label(path, "cells", some(8, 8, 8), (1, 1, 1))
        add_label(path, "mitos", some(8, 8, 8), (1, 1, 1), name="x")
        ds = wkdask.convert(path, tmp_path / "ds", **SMALL)
        assert [(layer.name, layer.category) for layer in ds.layers.values()] == [
            ("x", "color"), ("cells", "segmentation"), ("mitos", "segmentation"),
        ]  # fmt: skip

    @pytest.mark.parametrize("unit", ["micrometer", "nanometer"])
    def test_have_the_mags_of_their_image(self, tmp_path, unit):
        """A label that is half as fine is no mag 1."""
        path = write_ome(tmp_path / "x.zarr", [some(8, 8, 8)], [(1, 1, 1)], [(0, 0, 2)])
        coarse = some(4, 4, 4)
        factor = 1000 if unit == "nanometer" else 1
        place = [(0.5 * factor, 0.5 * factor, 2.5 * factor)]
        add_label(path, "cells", coarse, (2 * factor,) * 3, translations=place, unit=unit)
        for options, corner in (({}, (1, 0, 0)), ({"offset": (4, 2, 0)}, (2, 1, 0))):
            label = zarrs.read(path, **options)[1]
            assert [(level.mag, level.corner) for level in label.levels] == [(Mag(2), corner)]
        ds = wkdask.convert(path, tmp_path / "ds", **SMALL)
        assert ds.voxel_size == (1, 1, 1)
        np.testing.assert_array_equal(
            ds["cells"][2].get_view((1, 0, 0), (4, 4, 4)).read()[0], coarse.transpose(2, 1, 0)
        )

    def test_that_say_no_place(self, tmp_path):
        path = write_ome(tmp_path / "x.zarr", [some(8, 8, 8)], [(1, 1, 1)], [(0, 0, 2)])
        add_label(path, "cells", some(8, 8, 8), (1, 1, 1))
        corners = [image.levels[0].corner for image in zarrs.read(path, offset=(0, 0, 0))]
        assert corners == [(0, 0, 0), (0, 0, 0)]


class TestChunks:
    @pytest.mark.parametrize("zarr_format", [2, 3])
    def test_that_were_cut(self, tmp_path, zarr_format):
        """Blosc does not see that a part is missing."""
        blosc = {"id": "blosc"} if zarr_format == 2 else {"name": "blosc", "configuration": {}}
        path = tmp_path / "a.zarr"
        array = some(16, 16, 16, dtype="uint16")
        zarr.create_array(path, data=array, zarr_format=zarr_format, compressors=blosc)
        source = zarrs.read(path)[0].levels[0].source
        np.testing.assert_array_equal(source[:, :, :, :][0], array.transpose(2, 1, 0))
        chunk = path / ("0.0.0" if zarr_format == 2 else "c/0/0/0")
        for data in (chunk.read_bytes()[:-9], b"short"):
            chunk.write_bytes(data)
            with pytest.raises(FormatError, match="is cut or broken"):
                source[:, :, :, :]

    @pytest.mark.parametrize("name", ["c/0/0/0", "zarr.json"])
    def test_that_are_no_files(self, tmp_path, name):
        path = tmp_path / "a.zarr"
        zarr.create_array(path, data=some(9, 9, 9), chunks=(9, 9, 9))
        (path / name).unlink()
        os.mkfifo(path / name)
        with pytest.raises(FormatError, match="file"):
            wkdask.convert(path, tmp_path / "ds", voxel_size=(1, 1, 1))

    def test_beyond_the_shape(self, tmp_path):
        path = tmp_path / "a.zarr"
        zarr.create_array(path, data=some(9, 9, 40), chunks=(9, 9, 9))
        text = (path / "zarr.json").read_text()
        (path / "zarr.json").write_text(text.replace("40", "20"))
        with pytest.raises(FormatError, match=r"c/0/0/3 is beyond"):
            zarrs.read(path)


class TestArraysOfOthers:
    @pytest.mark.parametrize("zarr_format", [2, 3])
    def test_axes_have_no_names(self, tmp_path, zarr_format):
        array = some(2, 20, 30, 40, dtype=">u2" if zarr_format == 2 else "u2")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            zarr.create_array(tmp_path / "a.zarr", data=array, zarr_format=zarr_format)
        ds = wkdask.convert(tmp_path / "a.zarr", tmp_path / "ds", voxel_size=(1, 2, 3), **SMALL)
        np.testing.assert_array_equal(ds["a"][1].get_view().read(), array.transpose(0, 3, 2, 1))
        ds = wkdask.convert(tmp_path / "a.zarr", ds, layer_name="b", axes="cxyz", **SMALL)
        np.testing.assert_array_equal(ds["b"][1].get_view().read(), array)

    def test_axes_have_names(self, tmp_path):
        array = some(20, 30, 40)
        zarr.create_array(tmp_path / "a.zarr", data=array, dimension_names=("x", "y", "z"))
        assert zarrs.read(tmp_path / "a.zarr")[0].levels[0].source.shape == (1, 20, 30, 40)
        moved = zarrs.read(tmp_path / "a.zarr", offset=(1, 2, 3))[0]
        assert moved.box == BoundingBox((1, 2, 3), (20, 30, 40))

    def test_axes_have_the_names_of_xarray(self, tmp_path):
        array = zarr.create_array(tmp_path / "a.zarr", data=some(20, 30, 40), zarr_format=2)
        array.attrs["_ARRAY_DIMENSIONS"] = ["X", "Y", "Z"]
        assert zarrs.read(tmp_path / "a.zarr")[0].levels[0].source.shape == (1, 20, 30, 40)

    def test_no_voxels(self, tmp_path):
        zarr.create_array(tmp_path / "a.zarr", shape=(0, 3, 3), chunks=(1, 3, 3), dtype="uint8")
        with pytest.raises(FormatError, match="no voxels to take"):
            zarrs.read(tmp_path / "a.zarr")

    def test_many_axes(self, tmp_path):
        zarr.create_array(tmp_path / "a.zarr", data=some(1, 1, 1, 2, 2, 2))
        with pytest.raises(ArgumentError, match="has 6 axes"):
            zarrs.read(tmp_path / "a.zarr")


def test_a_volume_that_is_larger_than_a_shard(tissue, tmp_path):
    box = BoundingBox((3, 5, 7), (200, 90, 70))
    layer = add_layer(tissue, "x", "uint16", 2, box=box, mags=("1",))
    path = wkdask.convert(layer, tmp_path / "x.zarr")
    assert math.prod(zarr.open_array(path / "0").shards) == 2 * 64**3
    assert wkdask.equal(layer, wkdask.convert(path, tmp_path / "back", **SMALL)["x"])


@pytest.mark.parametrize("to", ["ome-zarr", "zarr"])
@pytest.mark.parametrize("mag", ["1", "4-4-2"])
def test_after_an_error_nothing_is_left(tissue, tmp_path, snapshot, to, mag):
    layer = add_layer(tissue, "em")
    next(Path(layer[mag].path).rglob("x*.wkw")).write_bytes(b"WKW")
    before = snapshot(tmp_path)
    options = {"mags": [mag]} if to == "zarr" else {}
    with pytest.raises(FormatError, match=r"x\d+\.wkw"):
        wkdask.convert(tissue, tmp_path / "out.zarr", to=to, **options)
    assert snapshot(tmp_path) == before
