"""TIFF stacks: what tifffile writes in any way is read as it was, and no more of it than needed."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import wkdask
from wkdask.errors import ArgumentError, FormatError, MissingError
from wkdask.formats import tiff as tiffs
from wkdask.geometry import BoundingBox

tifffile = pytest.importorskip("tifffile")

SIZE = (4.0, 4.0, 40.0)


def some(*shape: int, dtype: str = "uint8") -> Any:
    return np.random.default_rng(1).integers(0, 200, shape).astype(dtype)


def slices(folder: Path, array: Any, name: str = "s{}.tif", **options: Any) -> Path:
    """Write a slice per file, `(z, y, x)` or `(z, y, x, samples)`."""
    folder.mkdir()
    for z, plane in enumerate(array):
        tifffile.imwrite(folder / name.format(z), plane, **options)
    return folder


# How a stack of pages is written, and the order of its axes.
WRITERS = [
    pytest.param((7, 50, 70), {}, "zyx", id="plain"),
    pytest.param((7, 50, 70), {"compression": "zlib", "rowsperstrip": 16}, "zyx", id="strips"),
    pytest.param((7, 50, 70), {"compression": "lzw", "predictor": True}, "zyx", id="predictor"),
    pytest.param((7, 50, 70), {"tile": (16, 32), "compression": "zlib"}, "zyx", id="tiles"),
    pytest.param((7, 50, 70), {"byteorder": ">"}, "zyx", id="other byte order"),
    pytest.param((7, 50, 70), {"bigtiff": True}, "zyx", id="BigTIFF"),
    pytest.param((7, 50, 70), {"imagej": True, "metadata": {"axes": "ZYX"}}, "zyx", id="ImageJ"),
    pytest.param((5, 3, 50, 70), {"imagej": True, "metadata": {"axes": "ZCYX"}}, "zcyx",
                 id="ImageJ with channels"),
    pytest.param((3, 5, 50, 70), {"ome": True, "metadata": {"axes": "CZYX"}}, "czyx", id="OME"),
    pytest.param((7, 50, 70, 3), {"photometric": "rgb"}, "zyxc", id="RGB"),
    pytest.param((7, 50, 70, 3), {"photometric": "rgb", "tile": (32, 32)}, "zyxc", id="RGB tiles"),
    pytest.param((7, 3, 50, 70), {"photometric": "rgb", "planarconfig": "separate"}, "zcyx",
                 id="RGB planes"),
    pytest.param((50, 70), {}, "yx", id="one slice"),
]  # fmt: skip


class TestPages:
    @pytest.mark.parametrize(("shape", "options", "axes"), WRITERS)
    @pytest.mark.parametrize("dtype", ["uint8", "uint16"])
    def test_every_way_to_write_them(self, tmp_path, shape, options, axes, dtype):
        array = some(*shape, dtype=dtype)
        options = {"photometric": "minisblack"} | options
        if options.get("imagej"):
            del options["photometric"]
        tifffile.imwrite(tmp_path / "a.tif", array, **options)
        stack = tiffs.read(tmp_path / "a.tif").levels[0].source
        expected = array
        for axis in "cz":
            if axis not in axes:
                expected, axes = expected[..., np.newaxis], axes + axis
        expected = np.einsum(f"{axes}->cxyz", expected)
        assert stack.shape == expected.shape
        assert stack.dtype == expected.dtype
        np.testing.assert_array_equal(stack[:, :, :, :], expected)
        part = np.s_[:, 11:60, 17:33, : expected.shape[3] // 2 + 1]
        np.testing.assert_array_equal(stack[part], expected[part])

    @settings(max_examples=15, deadline=None)
    @given(st.data())
    def test_read_then_slice_is_slice_then_read(self, tmp_path_factory, data):
        # tifffile takes a last axis of 1 for one sample per voxel.
        shape = data.draw(st.tuples(st.integers(1, 4), st.integers(1, 80), st.integers(2, 80)))
        options = data.draw(
            st.sampled_from([{"rowsperstrip": 7}, {"tile": (16, 16)}, {"compression": "zlib"}])
        )
        path = tmp_path_factory.mktemp("tiff") / "a.tif"
        array = some(*shape)
        tifffile.imwrite(path, array, photometric="minisblack", **options)
        stack = tiffs.read(path).levels[0].source
        expected = tifffile.imread(path).reshape(shape).transpose(2, 1, 0)[np.newaxis]
        index = [slice(None)]
        for size in stack.shape[1:]:
            start = data.draw(st.integers(0, size - 1))
            index.append(slice(start, data.draw(st.integers(start + 1, size))))
        np.testing.assert_array_equal(stack[tuple(index)], expected[tuple(index)])


class TestSlices:
    @pytest.mark.parametrize("pattern", ["", "*.tif", "s*"])
    def test_files_come_in_the_order_of_their_numbers(self, tmp_path, pattern):
        array = some(12, 40, 50)
        folder = slices(tmp_path / "stack", array)
        source = folder / pattern if pattern else folder
        ds = wkdask.convert(source, tmp_path / "ds", voxel_size=SIZE, blocks_per_file_edge=1)
        assert ds["stack"].bounding_box == BoundingBox((0, 0, 0), (50, 40, 12))
        np.testing.assert_array_equal(ds["stack"][1][0].compute(), array.transpose(2, 1, 0))

    def test_colours_become_channels(self, tmp_path):
        array = some(4, 40, 50, 3)
        folder = slices(tmp_path / "rgb", array, photometric="rgb", compression="zlib")
        ds = wkdask.convert(folder, tmp_path / "ds", voxel_size=SIZE, blocks_per_file_edge=1)
        expected = array.transpose(3, 2, 1, 0)
        np.testing.assert_array_equal(ds["rgb"][1].get_view().read(), expected)

    def test_other_files_are_left_alone(self, tmp_path):
        folder = slices(tmp_path / "stack", some(3, 20, 20), "S{}.TIFF")
        (folder / "notes.txt").write_text("mine")
        (folder / "._S0.TIFF").write_bytes(b"of macOS")
        (folder / "S3.TIFF").mkdir()
        places = tiffs.read(folder).levels[0].source.places
        assert [Path(place.path).name for place in places] == ["S0.TIFF", "S1.TIFF", "S2.TIFF"]

    def test_a_cluster_reads_them(self, tmp_path, client):
        array = some(4, 40, 50)
        folder = slices(tmp_path / "stack", array)
        ds = wkdask.convert(folder, tmp_path / "ds", voxel_size=SIZE, blocks_per_file_edge=1)
        np.testing.assert_array_equal(ds["stack"][1].get_view().read()[0], array.transpose(2, 1, 0))


def voxels(path: Path, **options: Any) -> Any:
    return tiffs.read(path, **options).levels[0].source[:, :, :, :]


def page_by_page(path: Path, planes: Any, **options: Any) -> Path:
    with tifffile.TiffWriter(path) as writer:
        for plane in planes:
            writer.write(plane, **({"photometric": "minisblack", "contiguous": False} | options))
    return path


class TestWholeFiles:
    """Every page of a file is a slice, or the file is refused and says what it saw."""

    @pytest.mark.parametrize("options", [{}, {"compression": "zlib"}, {"metadata": None}])
    def test_series_of_one_page(self, tmp_path, options):
        array = some(5, 40, 50)
        path = page_by_page(tmp_path / "a.tif", array, **options)
        np.testing.assert_array_equal(voxels(path)[0], array.transpose(2, 1, 0))

    @pytest.mark.parametrize("options", [{"imagej": True, "metadata": {"axes": "ZYX"}},
                                         {"photometric": "minisblack"}])  # fmt: skip
    def test_one_page_for_all(self, tmp_path, options):
        """As ImageJ does beyond 4 GB."""
        array = some(6, 40, 50, dtype="uint16")
        path = tmp_path / "a.tif"
        tifffile.imwrite(path, array, truncate=True, **options)
        np.testing.assert_array_equal(voxels(path)[0], array.transpose(2, 1, 0))
        path.write_bytes(path.read_bytes()[: -40 * 50 * 2])
        with pytest.raises(FormatError, match=r"not all of"):
            tiffs.read(path)

    @pytest.mark.parametrize(
        ("pages", "words"),
        [
            ([(5, 40, 50), (9, 9)], "6 pages, which are 2 images .*5 Q x 40x50 of uint8; 9x9"),
            ([(5, 40, 50), (5, 40, 50)], "10 pages, which are 2 images"),
            ([(40, 50), (40, 50, 3)], "with 3 channels"),
        ],
    )
    def test_pages_of_several_images(self, tmp_path, pages, words):
        with tifffile.TiffWriter(tmp_path / "a.tif") as writer:
            for shape in pages:
                writer.write(some(*shape), photometric="rgb" if shape[-1] == 3 else "minisblack")
        with pytest.raises(FormatError, match=words):
            tiffs.read(tmp_path / "a.tif")

    def test_smaller_images_of_pages_are_no_slices(self, tmp_path):
        array = some(3, 64, 64)
        with tifffile.TiffWriter(tmp_path / "a.tif") as writer:
            writer.write(array, subifds=1, tile=(16, 16), photometric="minisblack")
            writer.write(array[:, ::2, ::2], subfiletype=1, photometric="minisblack")
        np.testing.assert_array_equal(voxels(tmp_path / "a.tif")[0], array.transpose(2, 1, 0))
        small = {"subfiletype": 1, "metadata": None, "photometric": "minisblack"}
        with tifffile.TiffWriter(tmp_path / "b.tif") as writer:
            writer.write(array, metadata=None, photometric="minisblack")
            writer.write(array[0, ::2, ::2], **small)
        np.testing.assert_array_equal(voxels(tmp_path / "b.tif")[0], array.transpose(2, 1, 0))

    @pytest.mark.parametrize(
        "described", ["ImageJ=1.54\nimages=6\nslices=6\n", '{"shape": [6, 9, 9]}']
    )
    def test_descriptions_of_more(self, tmp_path, described):
        options = {"metadata": None, "photometric": "minisblack", "compression": "zlib"}
        tifffile.imwrite(tmp_path / "a.tif", some(5, 9, 9), description=described, **options)
        with pytest.raises(FormatError, match=r"says that|6"):
            tiffs.read(tmp_path / "a.tif")

    @pytest.mark.parametrize("compression", ["zlib", "lzw", "packbits"])
    def test_more_voxels_than_can_be(self, tmp_path, compression):
        path = tmp_path / "a.tif"
        options = {"compression": compression, "metadata": None, "rowsperstrip": 1000}
        tifffile.imwrite(path, np.zeros((1000, 999), "uint8"), **options)
        assert tiffs.read(path).levels[0].source.shape == (1, 999, 1000, 1)
        with tifffile.TiffFile(path, mode="r+") as file:
            file.pages[0].tags["ImageWidth"].overwrite(65000)
        with pytest.raises(FormatError, match="can not be that small"):
            tiffs.read(path)

    def test_what_is_no_file(self, tmp_path):
        os.mkfifo(tmp_path / "a.tif")
        with pytest.raises(FormatError, match="regular file"):
            tiffs.read(tmp_path / "a.tif")


class TestOfOthers:
    @pytest.mark.parametrize("tile", [(16, 16, 16), (8, 16, 32)])
    @pytest.mark.parametrize("compression", [None, "zlib"])
    def test_tiles_that_are_volumes(self, tmp_path, tile, compression):
        array = some(2, 20, 40, 50)
        options = {"tile": tile, "volumetric": True, "photometric": "minisblack"}
        path = tmp_path / "a.tif"
        tifffile.imwrite(path, array, compression=compression, **options)
        expected = array.reshape(40, 40, 50).transpose(2, 1, 0)[np.newaxis]
        np.testing.assert_array_equal(voxels(path), expected)
        part = np.s_[:, 11:34, 17:33, 13:27]
        np.testing.assert_array_equal(tiffs.read(path).levels[0].source[part], expected[part])
        np.testing.assert_array_equal(voxels(path, axes="czyx"), array.transpose(0, 3, 2, 1))

    @pytest.mark.parametrize("shape", [(3, 64, 64), (3, 64, 64, 3)])
    def test_jpeg_with_tables(self, tmp_path, shape):
        array = np.repeat(np.repeat(some(*shape)[:, :8, :8], 8, 1), 8, 2)
        photometric = "rgb" if len(shape) == 4 else "minisblack"
        path = tmp_path / "a.tif"
        tifffile.imwrite(path, array, tile=(32, 32), compression="jpeg", photometric=photometric)
        expected = tifffile.imread(path).reshape(3, 64, 64, -1).transpose(3, 2, 1, 0)
        np.testing.assert_array_equal(voxels(path), expected)

    @pytest.mark.parametrize("axes", ["ZYXS", None])
    def test_colours_of_imagej(self, tmp_path, axes):
        array = some(5, 40, 50, 3)
        metadata = {"axes": axes} if axes else {}
        path = tmp_path / "a.tif"
        tifffile.imwrite(path, array, imagej=True, photometric="rgb", metadata=metadata)
        np.testing.assert_array_equal(voxels(path), array.transpose(3, 2, 1, 0))

    @pytest.mark.parametrize(("dtype", "stored"), [("bool", "uint8"), ("float16", "float32")])
    def test_dtypes_that_fit_into_wider_ones(self, tmp_path, dtype, stored):
        array = (some(3, 16, 24) % 2).astype(dtype)
        tifffile.imwrite(tmp_path / "a.tif", array, photometric="minisblack")
        ds = wkdask.convert(tmp_path / "a.tif", tmp_path / "ds", voxel_size=SIZE)
        assert ds["a"].dtype == stored
        expected = array.astype(stored).transpose(2, 1, 0)
        np.testing.assert_array_equal(ds["a"][1].get_view().read()[0], expected)

    @pytest.mark.parametrize("broken", ["", "part", "gone", "cut"])
    def test_ome_in_several_files(self, tmp_path, broken):
        array = some(3, 40, 50)
        folder = tmp_path / "set"
        folder.mkdir()
        ids = [f"urn:uuid:00000000-0000-0000-0000-00000000000{z}" for z in range(3)]
        data = "".join(
            f'<TiffData IFD="0" FirstZ="{z}" FirstC="0" FirstT="0" PlaneCount="1">'
            f'<UUID FileName="p{z}.ome.tif">{ids[2 - z]}</UUID></TiffData>'
            for z in (2, 0, 1)
        )
        for z in range(3):
            pixels = (
                '<Pixels ID="Pixels:0" DimensionOrder="XYZCT" Type="uint8" SizeX="50" SizeY="40" '
                'SizeZ="3" SizeC="1" SizeT="1"><Channel ID="Channel:0:0" SamplesPerPixel="1"/>'
                f"{data}</Pixels>"
            )
            inside = f'<Image ID="Image:0">{pixels}</Image>'
            if broken == "part" and z:
                inside = f'<BinaryOnly MetadataFile="p0.ome.tif" UUID="{ids[2]}"/>'
            xml = (
                '<?xml version="1.0" encoding="UTF-8"?><OME xmlns="http://www.openmicroscopy.org/'
                f'Schemas/OME/2016-06" UUID="{ids[2 - z]}">{inside}</OME>'
            )
            tifffile.imwrite(
                folder / f"p{z}.ome.tif", array[z], description=xml, metadata=None,
                photometric="minisblack", ome=False,
            )  # fmt: skip
        master, other = folder / "p0.ome.tif", folder / "p1.ome.tif"
        if broken == "gone":
            other.unlink()
        elif broken == "cut":
            other.write_bytes(other.read_bytes()[:-100])
        if broken in ("gone", "cut"):
            with pytest.raises(FormatError, match=r"1 are missing|not all of"):
                tiffs.read(master)
            return
        for source in (master, folder):
            np.testing.assert_array_equal(voxels(source)[0], array.transpose(2, 1, 0))
        if broken == "part":
            with pytest.raises(FormatError, match="part of an image in several files"):
                tiffs.read(other)

    def test_a_time_point(self, tmp_path):
        array = some(2, 3, 40, 50)
        metadata = {"axes": "TZYX"}
        tifffile.imwrite(tmp_path / "a.tif", array, imagej=True, metadata=metadata)
        np.testing.assert_array_equal(
            voxels(tmp_path / "a.tif", t=1)[0], array[1].transpose(2, 1, 0)
        )


class TestAxes:
    @pytest.mark.parametrize(
        ("axes", "t", "expected"),
        [("zcyx", None, "zcyx"), ("czyx", None, "czyx"), ("ztyx", 2, "zyx")],
    )
    def test_of_pages(self, tmp_path, axes, t, expected):
        array = some(5, 3, 40, 50)
        tifffile.imwrite(tmp_path / "a.tif", array, photometric="minisblack")
        with pytest.raises(FormatError, match="Say by axes"):
            tiffs.read(tmp_path / "a.tif")
        found = voxels(tmp_path / "a.tif", axes=axes, t=t)
        chosen = array[:, 2, :, :, np.newaxis] if t else array
        names = "zyxc" if t else expected
        np.testing.assert_array_equal(found, np.einsum(f"{names}->cxyz", chosen))

    def test_with_axes_of_one(self, tmp_path):
        array = some(1, 5, 1, 40, 50)
        path = tmp_path / "a.tif"
        tifffile.imwrite(path, array, photometric="minisblack")
        for axes in ("tzcyx", "zyx"):
            np.testing.assert_array_equal(
                voxels(path, axes=axes)[0], array[0, :, 0].transpose(2, 1, 0)
            )
        tifffile.imwrite(path, array[0, 0, 0], photometric="minisblack")
        for axes in ("zyx", "czyx", "yx"):
            np.testing.assert_array_equal(voxels(path, axes=axes)[0, :, :, 0], array[0, 0, 0].T)

    @pytest.mark.parametrize("axes", ["xyz", "zxy", "zyxc", "yx", "ztcyx", "zzyx", "", "x"])
    def test_that_files_do_not_have(self, tmp_path, axes):
        tifffile.imwrite(tmp_path / "a.tif", some(5, 40, 50), photometric="minisblack")
        with pytest.raises(ArgumentError, match="axes are"):
            tiffs.read(tmp_path / "a.tif", axes=axes)

    def test_of_slices(self, tmp_path):
        array = some(4, 40, 50, 3)
        folder = slices(tmp_path / "rgb", array, photometric="rgb")
        np.testing.assert_array_equal(voxels(folder, axes="zyxc"), array.transpose(3, 2, 1, 0))
        for axes in ("zyx", "tyxc", "czyx"):
            with pytest.raises(ArgumentError, match="axes are"):
                tiffs.read(folder, axes=axes)


class TestGaps:
    def test_numbers_that_are_missing(self, tmp_path):
        array = some(5, 40, 50)
        folder = slices(tmp_path / "stack [1]", array)
        (folder / "s2.tif").unlink()
        with pytest.raises(FormatError, match="lack numbers after 1"):
            wkdask.convert(folder, tmp_path / "ds", voxel_size=SIZE)
        assert not (tmp_path / "ds").exists()
        ds = wkdask.convert(
            folder / "*.tif", tmp_path / "ds", voxel_size=SIZE, gaps="zeros", layer_name="a"
        )
        array[2] = 0
        np.testing.assert_array_equal(ds["a"][1].get_view().read()[0], array.transpose(2, 1, 0))
        ds = wkdask.convert(folder, ds, gaps="close", layer_name="b")
        expected = array[[0, 1, 3, 4]].transpose(2, 1, 0)
        np.testing.assert_array_equal(ds["b"][1].get_view().read()[0], expected)


class TestLaziness:
    @pytest.fixture
    def decoded(self, monkeypatch):
        """The segments that were decoded, one after the other."""
        found = []
        inner = tiffs._segments

        def counted(page: Any, *ranges: range) -> Any:
            for index in inner(page, *ranges):
                found.append(index)
                yield index

        monkeypatch.setattr(tiffs, "_segments", counted)
        return found

    def test_only_what_a_part_touches_is_decoded(self, tmp_path, decoded):
        array = some(3, 256, 256)
        tifffile.imwrite(tmp_path / "a.tif", array, tile=(64, 64), photometric="minisblack")
        stack = tiffs.read(tmp_path / "a.tif").levels[0].source
        assert decoded == []
        stack[:, 70:120, 0:65, 1:2]
        assert decoded == [1, 5]
        decoded.clear()
        tifffile.imwrite(tmp_path / "b.tif", array, rowsperstrip=32, photometric="minisblack")
        tiffs.read(tmp_path / "b.tif").levels[0].source[:, :9, 31:33, 0:1]
        assert decoded == [0, 1]

    def test_a_task_opens_only_its_slices(self, tmp_path, monkeypatch):
        folder = slices(tmp_path / "stack", some(70, 20, 20))
        image = tiffs.read(folder)
        opened = []
        inner = tiffs.opened
        monkeypatch.setattr(tiffs, "opened", lambda path: opened.append(path) or inner(path))
        array = image.levels[0].cut((32, 32, 32))
        assert array.numblocks == (1, 1, 1, 3)
        assert opened == []
        array.blocks[0, 0, 0, 1].compute()
        assert [Path(path).name for path in opened] == [f"s{z}.tif" for z in range(32, 64)]


class TestErrors:
    @pytest.mark.parametrize("source", ["nowhere.tif", "empty/*.tif"])
    def test_no_files(self, tmp_path, source):
        (tmp_path / "empty").mkdir()
        with pytest.raises(MissingError, match=r"no TIFF file|does not exist"):
            wkdask.convert(tmp_path / source, tmp_path / "ds", voxel_size=SIZE)
        assert not (tmp_path / "ds").exists()

    @pytest.mark.parametrize("data", [b"nonsense", b"II*", b"", b"II*\0\x08\0\0\0\xff"])
    def test_what_is_no_tiff(self, tmp_path, data):
        (tmp_path / "a.tif").write_bytes(data)
        with pytest.raises(FormatError, match="is no TIFF file, or not all of one"):
            tiffs.read(tmp_path / "a.tif")

    def test_pages_that_break(self, tmp_path):
        tifffile.imwrite(tmp_path / "a.tif", some(5, 9, 9), metadata=None)
        data = bytearray((tmp_path / "a.tif").read_bytes())
        first = int.from_bytes(data[4:8], "little")
        # Where the next page should be told, after two bytes of a count and twelve per tag.
        after = first + 2 + 12 * int.from_bytes(data[first : first + 2], "little")
        data[after : after + 4] = len(data).to_bytes(4, "little")
        data += b"\xff" * 64
        (tmp_path / "a.tif").write_bytes(data)
        with pytest.raises(FormatError, match=r"a\.tif"):
            wkdask.convert(tmp_path / "a.tif", tmp_path / "ds", voxel_size=SIZE)

    def test_voxels_have_no_size(self, tmp_path):
        with pytest.raises(ArgumentError, match="how large a voxel is"):
            wkdask.convert(slices(tmp_path / "s", some(2, 9, 9)), tmp_path / "ds")

    @pytest.mark.parametrize(
        "other",
        [some(9, 10), some(9, 9, dtype="uint16"), some(9, 9, 3)],
        ids=["another size", "another dtype", "colours"],
    )
    def test_slices_that_differ(self, tmp_path, other):
        folder = slices(tmp_path / "s", some(3, 9, 9))
        tifffile.imwrite(folder / "s1.tif", other)
        with pytest.raises(FormatError, match=r"slice 1 in .*s1\.tif is .* unlike the first"):
            wkdask.convert(folder, tmp_path / "ds", voxel_size=SIZE, blocks_per_file_edge=1)

    def test_slices_that_vanish_or_break(self, tmp_path):
        folder = slices(tmp_path / "s", some(3, 99, 99), compression="zlib")
        data = bytearray((folder / "s1.tif").read_bytes())
        data[300:700] = bytes(400)
        (folder / "s1.tif").write_bytes(data)
        source = tiffs.read(folder).levels[0].source
        with pytest.raises(FormatError, match=r"slice 1 in .*s1\.tif can't be decoded"):
            source[:, :, :, 1:2]
        (folder / "s2.tif").unlink()
        with pytest.raises(MissingError, match=r"s2\.tif is gone"):
            source[:, :, :, 2:3]

    def test_stacks_of_stacks(self, tmp_path):
        folder = slices(tmp_path / "s", some(2, 3, 9, 9), photometric="minisblack")
        with pytest.raises(FormatError, match="has 3 slices; convert stacks one by one"):
            tiffs.read(folder)

    def test_time(self, tmp_path):
        metadata = {"axes": "TZYX"}
        tifffile.imwrite(tmp_path / "a.tif", some(2, 3, 9, 9), imagej=True, metadata=metadata)
        with pytest.raises(FormatError, match=r"has 2 time points, .* choose one by t"):
            tiffs.read(tmp_path / "a.tif")
        with pytest.raises(ArgumentError, match="t is 2"):
            tiffs.read(tmp_path / "a.tif", t=2)

    def test_files_in_several_directories(self, tmp_path):
        for name in "ab":
            slices(tmp_path / name, some(2, 9, 9))
        with pytest.raises(FormatError, match="2 directories"):
            tiffs.read(tmp_path / "*" / "*.tif")
