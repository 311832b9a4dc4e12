"""TIFF stacks: what tifffile writes in any way is read as it was, and no more of it than needed."""

from __future__ import annotations

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
        assert tiffs.read(folder).levels[0].source.names == ("S0.TIFF", "S1.TIFF", "S2.TIFF")

    def test_a_cluster_reads_them(self, tmp_path, client):
        array = some(4, 40, 50)
        folder = slices(tmp_path / "stack", array)
        ds = wkdask.convert(folder, tmp_path / "ds", voxel_size=SIZE, blocks_per_file_edge=1)
        np.testing.assert_array_equal(ds["stack"][1].get_view().read()[0], array.transpose(2, 1, 0))


class TestLaziness:
    @pytest.fixture
    def decoded(self, monkeypatch):
        """The segments that were decoded, one after the other."""
        found = []
        inner = tiffs._segments

        def counted(page: Any, xs: range, ys: range) -> Any:
            for index in inner(page, xs, ys):
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
        inner = tiffs._opened
        monkeypatch.setattr(tiffs, "_opened", lambda path: opened.append(path) or inner(path))
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
        with pytest.raises(FormatError, match="is no TIFF file"):
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

    def test_one_page_for_all(self, tmp_path):
        tifffile.imwrite(tmp_path / "a.tif", some(3, 9, 9), truncate=True, photometric="minisblack")
        with pytest.raises(FormatError, match="describes one page only"):
            tiffs.read(tmp_path / "a.tif")

    def test_time(self, tmp_path):
        metadata = {"axes": "TZYX"}
        tifffile.imwrite(tmp_path / "a.tif", some(2, 3, 9, 9), imagej=True, metadata=metadata)
        with pytest.raises(FormatError, match="no stack of slices"):
            tiffs.read(tmp_path / "a.tif")

    def test_files_in_several_directories(self, tmp_path):
        for name in "ab":
            slices(tmp_path / name, some(2, 9, 9))
        with pytest.raises(FormatError, match="2 directories"):
            tiffs.read(tmp_path / "*" / "*.tif")
