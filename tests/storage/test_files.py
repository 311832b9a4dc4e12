"""`wkdask.storage.reader`: one file; damaged ones are errors, failures leave no trace."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import signal
import socket
import stat
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextvars import ContextVar
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import wkw

import wkdask
from wkdask.errors import (
    AccessError,
    ArgumentError,
    DirectoryError,
    FormatError,
    StorageError,
    WkdaskError,
)
from wkdask.geometry import BoundingBox
from wkdask.grids import Region, region_of
from wkdask.storage import atomic, codec
from wkdask.storage import reader as wkwfile
from wkdask.storage import writer as filewriter
from wkdask.storage.codec import morton_index
from wkdask.storage.header import BLOCK_TYPES, DTYPES, VolumeHeader
from wkdask.storage.reader import WkwFile
from wkdask.storage.volume import WriteOptions
from wkdask.testing import snapshot, voxels_for

COMPRESSED = ("lz4", "lz4hc")
EDGE = 8
WHOLE: Region = (range(EDGE),) * 3
PART = BoundingBox((1, 2, 3), (4, 5, 2))


def small(kind: str = "raw", dtype: str = "uint8", channels: int = 1) -> VolumeHeader:
    """Return the header of files of 2 x 2 x 2 blocks of 4 voxels."""
    return VolumeHeader(dtype, channels, 4, 2, kind)  # type: ignore[arg-type]


def write(path: str, header: VolumeHeader, voxels: Any, **options: Any) -> None:
    """Write a whole file piece by piece."""
    with filewriter.writing(path, header, WriteOptions(**options)) as file:
        for piece in file.pieces:
            file.append(voxels[:, *(slice(r.start, r.stop) for r in region_of(piece))])


def read(path: Path, header: VolumeHeader, region: Region = WHOLE) -> Any:
    """Read a region; None if there is no file."""
    shape = (header.num_channels, *map(len, region))
    out = np.zeros(shape, header.dtype, order="F")
    try:
        opened = WkwFile.open(str(path), header)
    except FileNotFoundError:
        return None
    with opened as file:
        file.read_into(out, region)
    return out


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "z0" / "y0" / "x0.wkw"


@pytest.fixture(params=BLOCK_TYPES)
def header(request: pytest.FixtureRequest) -> VolumeHeader:
    return small(request.param)


@pytest.fixture
def voxels(path: Path, header: VolumeHeader) -> Any:
    """The voxels of the file that lies at `path`."""
    voxels = voxels_for(header, (EDGE,) * 3)
    write(str(path), header, voxels)
    return voxels


def expect(
    error: type[Exception], path: Path, action: Callable[[], object], text: str = "."
) -> str:
    """Assert that an action raises an error of ours that names the path; return its text."""
    with pytest.raises(error, match=text) as caught:
        action()
    assert isinstance(caught.value, WkdaskError)
    assert str(path) in str(caught.value)
    return str(caught.value)


class TestRoundTrip:
    @pytest.mark.parametrize("kind", BLOCK_TYPES)
    @pytest.mark.parametrize("channels", [1, 2, 3])
    @pytest.mark.parametrize("dtype", DTYPES)
    def test_dtypes_and_channels(self, path, dtype, channels, kind):
        header = small(kind, dtype, channels)
        voxels = voxels_for(header, (EDGE,) * 3)
        write(str(path), header, voxels)
        assert read(path, header).tobytes("F") == voxels.tobytes("F")

    @pytest.mark.parametrize("kind", BLOCK_TYPES)
    @pytest.mark.parametrize("edges", [(1, 1), (1, 8), (2, 4), (8, 1), (64, 1), (32, 2)])
    def test_edges(self, path, edges, kind):
        header = VolumeHeader("uint8", 1, *edges, kind)
        voxels = voxels_for(header, (header.file_edge,) * 3)
        write(str(path), header, voxels)
        assert path.read_bytes()[:16] == header.to_bytes(header.data_offset_bytes)
        np.testing.assert_array_equal(read(path, header, region_of(box(header))), voxels)

    def test_memory_layout_does_not_matter(self, tmp_path, header):
        voxels = voxels_for(header, (EDGE,) * 3)
        larger = np.zeros((1, 9, 10, 11), np.uint8)
        larger[:, 1:, 1:-1, 3:] = voxels
        layouts = (voxels, np.ascontiguousarray(voxels), larger[:, 1:, 1:-1, 3:])
        for name, layout in zip("abc", layouts, strict=True):
            write(str(tmp_path / name), header, layout)
        assert len({(tmp_path / name).read_bytes() for name in "abc"}) == 1

    def test_raw_files_are_those_of_libwkw(self, tmp_path, path):
        header = small("raw", "uint16", 3)
        voxels = voxels_for(header, (EDGE,) * 3)
        write(str(path), header, voxels)
        with wkw.Dataset.create(str(tmp_path / "theirs"), header.to_wkw()) as dataset:
            dataset.write((0, 0, 0), voxels)
        assert (tmp_path / "theirs/z0/y0/x0.wkw").read_bytes() == path.read_bytes()

    @pytest.mark.parametrize("kind", COMPRESSED)
    def test_jump_table_holds_the_ends_of_blocks(self, path, kind):
        header = small(kind)
        write(str(path), header, voxels_for(header, (EDGE,) * 3))
        data = path.read_bytes()
        ends = struct.unpack_from("<8Q", data, 16)
        assert ends[-1] == len(data)
        assert list(ends) == sorted(ends)
        assert ends[0] > header.data_offset_bytes

    @pytest.mark.parametrize(
        "region",
        [
            (range(3, 4), range(8), range(8)),
            (range(1, 8, 3), range(0, 8, 2), range(7, 8)),
            (range(0, 8, 7), range(2, 3), range(0, 8, 5)),
        ],
    )
    def test_regions(self, path, header, voxels, region):
        expected = voxels[:, *(slice(r.start, r.stop, r.step) for r in region)]
        np.testing.assert_array_equal(read(path, header, region), expected)

    def test_the_files_own_header_decides_how_it_is_decoded(self, path, header, voxels):
        for kind in BLOCK_TYPES:
            np.testing.assert_array_equal(read(path, small(kind)), voxels)

    def test_permissions_obey_the_umask(self, path, header):
        before = os.umask(0o027)
        try:
            write(str(path), header, voxels_for(header, (EDGE,) * 3))
        finally:
            os.umask(before)
        assert stat.S_IMODE(path.stat().st_mode) == 0o640

    def test_writes_and_reads_that_take_many_calls(self, path, header, monkeypatch):
        # The operating system may write less than it was asked to.
        pwrite, calls = os.pwrite, []

        def write_little(descriptor: int, data: Any, start: int) -> int:
            calls.append(start)
            return pwrite(descriptor, bytes(data)[:7], start)

        monkeypatch.setattr(os, "pwrite", write_little)
        voxels = voxels_for(header, (EDGE,) * 3)
        write(str(path), header, voxels)
        monkeypatch.undo()
        assert len(calls) > 16
        np.testing.assert_array_equal(read(path, header), voxels)


def box(header: VolumeHeader) -> BoundingBox:
    return BoundingBox((0, 0, 0), (header.file_edge,) * 3)


class TestMissing:
    def test_is_not_found_and_not_made(self, tmp_path, path, header):
        assert read(path, header) is None
        assert snapshot(tmp_path) == {}

    def test_directory_without_the_file(self, path, header):
        path.parent.mkdir(parents=True)
        assert read(path, header) is None

    def test_a_link_to_nothing_is_an_error(self, tmp_path, path, header):
        # Typically a disk that is not mounted: there are voxels, but not here.
        path.parent.mkdir(parents=True)
        path.symlink_to(tmp_path / "nowhere")
        expect(WkdaskError, path, lambda: read(path, header), "link")
        if not header.is_compressed:
            part = voxels_for(header, PART.size)
            expect(WkdaskError, path, lambda: wkwfile.patch(str(path), header, PART, part), "link")
        assert path.is_symlink()

    def test_a_link_to_a_file_is_that_file(self, tmp_path, path, header, voxels):
        path.rename(tmp_path / "elsewhere")
        path.symlink_to(tmp_path / "elsewhere")
        np.testing.assert_array_equal(read(path, header), voxels)


class TestPatch:
    @pytest.mark.parametrize(
        "patched",
        [
            PART,
            BoundingBox((0, 0, 0), (4, 4, 4)),  # exactly one block
            BoundingBox((3, 3, 3), (2, 2, 2)),  # a voxel of each block
            BoundingBox((7, 7, 7), (1, 1, 1)),
            BoundingBox((0, 0, 0), (8, 8, 8)),
        ],
    )
    @pytest.mark.parametrize("exists", [True, False])
    def test_only_the_box_changes(self, path, patched, exists):
        header = small("raw", "uint16", 2)
        expected = np.zeros((2, 8, 8, 8), np.uint16)
        if exists:
            expected[:] = voxels_for(header, (EDGE,) * 3)
            write(str(path), header, expected)
        part = voxels_for(header, patched.size, seed=2)
        wkwfile.patch(str(path), header, patched, part)
        inside = tuple(slice(r.start, r.stop) for r in region_of(patched))
        expected[:, *inside] = part
        np.testing.assert_array_equal(read(path, header), expected)
        assert [each.name for each in path.parent.iterdir()] == ["x0.wkw"]

    @pytest.mark.parametrize("code", [errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK])
    @pytest.mark.parametrize("is_slower", [False, True])
    def test_file_systems_without_links(self, path, monkeypatch, code, is_slower):
        """Where hard links are unknown, as on FAT; a faster task's file is not overwritten."""
        header = small("raw")
        first, second = BoundingBox((0, 0, 0), (4, 4, 4)), BoundingBox((4, 0, 0), (4, 4, 4))
        part = voxels_for(header, (4, 4, 4))
        patch = lambda box: wkwfile.patch(str(path), header, box, part)  # noqa: E731

        def refuse(*_: object) -> None:
            if is_slower and not path.exists():
                monkeypatch.setattr(os, "link", link)
                patch(first)
                monkeypatch.setattr(os, "link", refuse)
            raise OSError(code, os.strerror(code))

        link = os.link
        monkeypatch.setattr(os, "link", refuse)
        patch(second)
        if not is_slower:
            patch(first)
        expected = np.zeros((1, 8, 8, 8), np.uint8)
        expected[:, :, :4, :4] = np.concatenate([part, part], axis=1)
        np.testing.assert_array_equal(read(path, header), expected)
        assert [*path.parent.iterdir()] == [path]

    @pytest.mark.skipif(atomic._function("renameat2") is None, reason="not of this system")
    def test_renaming_that_replaces_nothing(self, tmp_path):
        source, target = tmp_path / "source", tmp_path / "target"
        source.write_bytes(b"new")
        assert atomic._try_rename_new(str(source), str(target))
        assert [*tmp_path.iterdir()] == [target]
        source.write_bytes(b"newer")
        with pytest.raises(FileExistsError):
            atomic._try_rename_new(str(source), str(target))
        assert target.read_bytes() == b"new"
        assert not atomic._try_rename_new(str(tmp_path / "nothing"), str(tmp_path / "other"))

    def test_a_file_system_that_can_do_neither_is_named(self, path, monkeypatch):
        def refuse(*_: object) -> None:
            raise PermissionError(errno.EPERM, "Operation not permitted")

        monkeypatch.setattr(os, "link", refuse)
        monkeypatch.setattr(atomic, "_function", lambda _: None)
        part = voxels_for(small(), PART.size)
        expect(
            StorageError, path, lambda: wkwfile.patch(str(path), small(), PART, part), "hard links"
        )
        assert [*path.parent.iterdir()] == []

    @pytest.mark.parametrize("exists", [True, False])
    @pytest.mark.parametrize("keep_zeros", [True, False])
    @pytest.mark.parametrize(("value", "is_zero"), [(0.0, True), (-0.0, False)])
    def test_zeros_make_a_file_only_if_asked_to(self, path, exists, keep_zeros, value, is_zero):
        header = small("raw", "float32")
        expected = np.zeros((1, 8, 8, 8), np.float32)
        if exists:
            expected[:] = 1
            write(str(path), header, expected)
        expected[:, *(slice(r.start, r.stop) for r in region_of(PART))] = value
        part = np.full((1, *PART.size), value, np.float32)
        wkwfile.patch(str(path), header, PART, part, WriteOptions(keep_zeros=keep_zeros))
        found = read(path, header)
        assert (found is None) == (is_zero and not exists and not keep_zeros)
        if found is not None:
            assert found.tobytes() == expected.tobytes()

    def test_other_blocks_are_not_even_read(self, path):
        # A block may be patched while another task writes the one beside it.
        header = small("raw")
        write(str(path), header, voxels_for(header, (EDGE,) * 3))
        before = path.read_bytes()
        block = BoundingBox((4, 0, 4), (4, 4, 4))
        wkwfile.patch(str(path), header, block, voxels_for(header, block.size, seed=3))
        after = path.read_bytes()
        start = 16 + morton_index((1, 0, 1)) * 64
        assert before[:start] == after[:start]
        assert before[start + 64 :] == after[start + 64 :]
        assert before[start : start + 64] != after[start : start + 64]

    @pytest.mark.parametrize("kind", COMPRESSED)
    def test_a_compressed_file_in_a_raw_volume_is_refused(self, tmp_path, path, kind):
        write(str(path), small(kind), voxels_for(small(kind)))
        before = snapshot(tmp_path)
        part = voxels_for(small(), PART.size)
        expect(
            FormatError,
            path,
            lambda: wkwfile.patch(str(path), small("raw"), PART, part),
            "compressed",
        )
        assert snapshot(tmp_path) == before


def set_byte(place: int, value: int) -> Callable[[bytes], bytes]:
    return lambda data: data[:place] + bytes([value]) + data[place + 1 :]


def set_word(place: int, value: int) -> Callable[[bytes], bytes]:
    return lambda data: data[:place] + struct.pack("<Q", value) + data[place + 8 :]


def keep(length: int) -> Callable[[bytes], bytes]:
    return lambda data: data[:length]


def entry(index: int) -> int:
    """Return where an entry of the jump table lies."""
    return 16 + 8 * index


HEADER_DAMAGE: list[tuple[str, Callable[[bytes], bytes], str]] = [
    ("empty file", keep(0), "0 bytes where a header"),
    ("one byte", keep(1), "1 bytes where a header"),
    ("cut in the magic", keep(2), "header"),
    ("cut in the header", keep(15), "15 bytes where a header"),
    ("cut behind the header", keep(16), "needs at least"),
    ("cut by one byte", lambda data: data[:-1], "."),
    ("cut in the voxels", lambda data: data[: len(data) * 2 // 3], "."),
    ("wrong magic", set_byte(0, ord("w")), "instead of b'WKW'"),
    ("another format", lambda data: b"\x89PNG" + data[4:], "instead of b'WKW'"),
    ("zeros all over", lambda data: bytes(len(data)), "instead of b'WKW'"),
    ("version 0", set_byte(3, 0), "version 0"),
    ("version 2", set_byte(3, 2), "version 2"),
    ("block type 0", set_byte(5, 0), "block type 0"),
    ("block type 4", set_byte(5, 4), "block type 4"),
    ("voxel type 0", set_byte(6, 0), "voxel type 0"),
    ("voxel type 11", set_byte(6, 11), "voxel type 11"),
    ("another voxel type", set_byte(6, 7), "int8"),
    ("0 bytes a voxel", set_byte(7, 0), "0 bytes a voxel"),
    ("2 bytes a voxel", set_byte(7, 2), "num_channels 2 instead of 1"),
    ("fewer blocks a file", set_byte(4, 0x02), "voxel data|instead of"),
    ("fewer, larger blocks", set_byte(4, 0x03), "voxel data|instead of"),
    ("more blocks a file", set_byte(4, 0x22), "voxel data|instead of"),
    ("smaller blocks", set_byte(4, 0x11), "instead of"),
    ("blocks of 2^15", set_byte(4, 0x1F), "block of edge"),
    ("2^15 blocks a file edge", set_byte(4, 0xF2), "jump table of|instead of"),
    ("both edges 2^15", set_byte(4, 0xFF), "block of edge"),
    ("offset 0", set_word(8, 0), "begin at byte 0"),
    ("offset 1 too far", set_byte(8, 81), "begin at byte 81"),
    ("offset 2^63", set_word(8, 1 << 63), "begin at byte"),
]
TABLE_DAMAGE: list[tuple[str, Callable[[bytes], bytes], str]] = [
    ("cut in the jump table", keep(16 + 20), "needs at least 80"),
    ("cut behind the jump table", keep(80), "jump table"),
    ("first entry in the header", set_word(entry(0), 8), "jump table"),
    ("first entry in the table", set_word(entry(0), 79), "jump table"),
    ("an empty first block", set_word(entry(0), 80), "block"),
    ("entry 0", set_word(entry(3), 0), "jump table"),
    ("entries all 0", lambda data: data[:16] + bytes(64) + data[80:], "jump table"),
    ("entries out of order", lambda data: swapped(data, 2, 5), "jump table"),
    ("an entry beyond the end", set_word(entry(3), 1 << 20), "jump table"),
    ("the last entry beyond the end", set_word(entry(7), 1 << 20), "jump table"),
    ("an entry of 2^64 - 1", set_word(entry(7), (1 << 64) - 1), "jump table"),
    ("an entry of 2^63", set_word(entry(4), 1 << 63), "jump table"),
    ("all entries at the end", lambda data: data[:16] + data[72:80] * 8 + data[80:], "block"),
    ("an entry one too small", lambda data: added(data, 3, -1), "block"),
    ("an entry one too large", lambda data: added(data, 3, 1), "block"),
    ("voxels of zero bytes", lambda data: data[:80] + bytes(len(data) - 80), "block"),
    ("voxels of 0xff", lambda data: data[:80] + b"\xff" * (len(data) - 80), "block"),
]


def swapped(data: bytes, a: int, b: int) -> bytes:
    ends = list(struct.unpack_from("<8Q", data, 16))
    ends[a], ends[b] = ends[b], ends[a]
    return data[:16] + struct.pack("<8Q", *ends) + data[80:]


def added(data: bytes, index: int, number: int) -> bytes:
    (end,) = struct.unpack_from("<Q", data, entry(index))
    return set_word(entry(index), end + number)(data)


DAMAGE = [
    pytest.param(kind, damage, text, id=f"{kind}-{name}")
    for kind in BLOCK_TYPES
    for name, damage, text in (HEADER_DAMAGE if kind == "raw" else HEADER_DAMAGE + TABLE_DAMAGE)
]


class TestDamaged:
    """Each damaged file is an error with its path, for reads and partial writes alike."""

    @pytest.mark.parametrize(("kind", "damage", "text"), DAMAGE)
    def test_contents(self, tmp_path, path, kind, damage, text):
        header = small(kind)
        voxels = voxels_for(header, (EDGE,) * 3)
        write(str(path), header, voxels)
        damaged = damage(path.read_bytes())
        assert damaged != path.read_bytes()
        path.write_bytes(damaged)
        before = snapshot(tmp_path)
        reason = expect(FormatError, path, lambda: read(path, header), text)
        assert "not read as zeros" in reason
        if kind == "raw":
            part = voxels_for(header, PART.size)
            expect(FormatError, path, lambda: wkwfile.patch(str(path), header, PART, part), text)
        assert snapshot(tmp_path) == before
        # Writing the whole file is the way to mend it.
        write(str(path), header, voxels)
        np.testing.assert_array_equal(read(path, header), voxels)

    @pytest.mark.parametrize("kind", BLOCK_TYPES)
    def test_cut_at_every_place(self, tmp_path, kind):
        header = small(kind)
        write(str(tmp_path / "whole"), header, voxels_for(header, (EDGE,) * 3))
        data = (tmp_path / "whole").read_bytes()
        path = tmp_path / "cut"
        for length in range(len(data)):
            path.write_bytes(data[:length])
            with pytest.raises(FormatError):
                read(path, header)

    def test_a_raw_file_longer_than_it_must_be_is_read(self, path):
        header = small("raw")
        write(str(path), header, voxels_for(header, (EDGE,) * 3))
        path.write_bytes(path.read_bytes() + b"more")
        np.testing.assert_array_equal(read(path, header), voxels_for(header, (EDGE,) * 3))

    @pytest.mark.parametrize(("shift", "good"), [(0, True), (-1, False)])
    @pytest.mark.parametrize("size", [16, 4096 + 16 + 16])
    def test_lengths_that_lz4_can_make(self, path, size, shift, good):
        """Blocks of 4096 bytes have 16 to 4128: known before anything is allocated or read."""
        header = VolumeHeader("uint8", 1, 16, 1, "lz4")
        size += shift if size == 16 else -shift
        path.parent.mkdir(parents=True)
        table = struct.pack("<Q", 24 + size)
        path.write_bytes(header.to_bytes(24) + table + b"\xff" * size)
        if good:
            with WkwFile.open(str(path), header) as file:
                assert list(file.ends) == [24 + size]
        else:
            opening = lambda: WkwFile.open(str(path), header)  # noqa: E731
            expect(FormatError, path, opening, "LZ4 makes 16 to 4128 of 4096")

    @pytest.mark.parametrize(
        ("blocks", "text"), [(256, "points into itself"), (512, "at most"), (32768, "at most")]
    )
    def test_a_huge_jump_table_is_a_hole(self, path, monkeypatch, blocks, text):
        """A sparse file of a few bytes on the disk must not cost gigabytes of memory."""
        pread, counts = os.pread, []
        monkeypatch.setattr(os, "pread", lambda *a: counts.append(a[1]) or pread(*a))
        header = VolumeHeader("uint8", 1, 1, blocks)
        data = bytearray(header.to_bytes(16 + 8 * blocks**3))
        data[5] = 2
        path.parent.mkdir(parents=True)
        path.write_bytes(data)
        os.truncate(path, min(16 + 8 * blocks**3 + 100, 2**43))
        expect(FormatError, path, lambda: WkwFile.open(str(path), header), text)
        assert max(counts) <= 16

    def test_reads_that_take_many_calls(self, path, header, voxels, monkeypatch):
        # The operating system may read less than it was asked to.
        pread = os.pread
        monkeypatch.setattr(os, "pread", lambda fd, n, at: pread(fd, min(n, 16), at))
        np.testing.assert_array_equal(read(path, header), voxels)
        if not header.is_compressed:
            wkwfile.patch(str(path), header, PART, voxels_for(header, PART.size, seed=2))

    @pytest.mark.parametrize("kind", COMPRESSED)
    def test_only_the_damaged_block_is_unreadable(self, path, kind):
        header = small(kind)
        voxels = voxels_for(header, (EDGE,) * 3)
        write(str(path), header, voxels)
        data = path.read_bytes()
        (first_end,) = struct.unpack_from("<Q", data, entry(0))
        path.write_bytes(data[:80] + b"\xff" * (first_end - 80) + data[first_end:])
        rest = (range(4, 8), range(8), range(8))
        np.testing.assert_array_equal(read(path, header, rest), voxels[:, 4:])
        reason = expect(FormatError, path, lambda: read(path, header))
        assert "block (0, 0, 0)" in reason

    @pytest.mark.parametrize(
        "other",
        [
            small(dtype="uint16"),
            small(channels=2),
            VolumeHeader("uint8", 1, 2, 4),  # the same file edge
            VolumeHeader("uint8", 1, 4, 1),
            VolumeHeader("uint8", 1, 4, 4),
        ],
        ids=["dtype", "channels", "block_edge", "fewer_blocks", "more_blocks"],
    )
    def test_a_good_file_of_another_volume(self, tmp_path, path, other, header):
        write(str(path), other, voxels_for(other, (other.file_edge,) * 3))
        before = snapshot(tmp_path)
        expect(FormatError, path, lambda: read(path, header), "instead of")
        assert snapshot(tmp_path) == before


class TestRefusals:
    """The file system refuses: an error with `errno` and path, and nothing changes."""

    def test_a_directory_in_place_of_the_file(self, tmp_path, path, header):
        path.mkdir(parents=True)
        self.check(tmp_path, path, header, DirectoryError, errno.EISDIR)

    @pytest.mark.parametrize("level", [0, 1])
    def test_a_file_in_place_of_a_directory(self, tmp_path, path, header, level):
        parent = path.parents[level]
        parent.parent.mkdir(parents=True, exist_ok=True)
        parent.write_bytes(b"not a directory")
        self.check(tmp_path, path, header, StorageError, None)

    @pytest.mark.parametrize(
        ("code", "error"),
        [
            (errno.EACCES, AccessError),
            (errno.EPERM, AccessError),
            (errno.EMFILE, StorageError),
            (errno.ENFILE, StorageError),
            (errno.EIO, StorageError),
            (errno.ESTALE, StorageError),
            (errno.ELOOP, StorageError),
        ],
        ids=errno.errorcode.get,
    )
    def test_open_is_refused(self, tmp_path, path, header, voxels, monkeypatch, code, error):
        def refuse(*_: object) -> None:
            raise OSError(code, os.strerror(code))

        monkeypatch.setattr(os, "open", refuse)
        before = tree_by_io(tmp_path)
        found = self.errors(path, header)
        monkeypatch.undo()
        assert [type(each) for each in found] == [error] * len(found)
        assert {each.errno for each in found} == {code}
        assert tree_by_io(tmp_path) == before
        np.testing.assert_array_equal(read(path, header), voxels)

    def test_a_read_fails_in_the_middle(self, path, header, voxels, monkeypatch):
        # Compiled code says where it failed, and Python asks again to hear why.
        pread = os.pread

        def fail_late(descriptor: int, count: int, offset: int) -> bytes:
            if offset >= header.data_offset_bytes:
                raise OSError(errno.EIO, "Input/output error")
            return pread(descriptor, count, offset)

        monkeypatch.setattr(os, "pread", fail_late)
        monkeypatch.setattr(codec, "unpack", lambda *_: ("read", (1, 0, 1)))
        expect(StorageError, path, lambda: read(path, header), "Input/output error")

    @pytest.mark.parametrize("failures", range(4))
    def test_a_read_that_fails_for_a_moment(self, path, header, voxels, monkeypatch, failures):
        """As after a signal, or on a network: the same bytes can be read again."""
        unpack, left = codec.unpack, ["read"] * failures
        monkeypatch.setattr(
            codec, "unpack", lambda *a: (left.pop(), (1, 0, 1)) if left else unpack(*a)
        )
        if failures < 3:
            np.testing.assert_array_equal(read(path, header), voxels)
        else:
            text = expect(StorageError, path, lambda: read(path, header), r"Block \(1, 0, 1\)")
            assert "delete" not in text

    def test_a_header_that_can_not_be_read(self, path, header, voxels, monkeypatch):
        def fail(*_: object) -> bytes:
            raise OSError(errno.EIO, "Input/output error")

        monkeypatch.setattr(os, "pread", fail)
        expect(StorageError, path, lambda: read(path, header), "Input/output error")

    def test_the_descriptor_fails_in_compiled_code(self, path, header, voxels):
        # Nothing is played here: the C function returns -1, since the descriptor can't be read.
        out = np.zeros((1, 8, 8, 8), np.uint8, order="F")
        with WkwFile.open(str(path), header) as file:
            write_only = os.open(path, os.O_WRONLY)
            try:
                bad = WkwFile(write_only, file.path, file.header, file.ends)
                expect(StorageError, path, lambda: bad.read_into(out, WHOLE), "descriptor")
            finally:
                os.close(write_only)

    def test_a_file_that_is_cut_between_check_and_read(self, path, header, voxels):
        out = np.zeros((1, 8, 8, 8), np.uint8, order="F")
        with WkwFile.open(str(path), header) as file:
            os.truncate(path, path.stat().st_size - 1)
            text = expect(FormatError, path, lambda: file.read_into(out, WHOLE), "ends at byte")
            assert "delete" not in text, "its other blocks are good"
            assert str(path.stat().st_size) in text
            os.truncate(path, header.data_offset_bytes)
            expect(FormatError, path, lambda: file.read_into(out, WHOLE), "ends at byte")

    def test_a_block_that_is_damaged_between_check_and_read(self, path, header, voxels):
        out = np.zeros((1, 8, 8, 8), np.uint8, order="F")
        first = header.data_offset_bytes
        with WkwFile.open(str(path), header) as file, path.open("r+b") as other:
            other.seek(first)
            other.write(b"\xff" * (path.stat().st_size - first))
            other.flush()
            if header.is_compressed:
                expect(FormatError, path, lambda: file.read_into(out, WHOLE), r"block \(0, 0, 0\)")
            else:
                file.read_into(out, WHOLE)
                assert (out == 0xFF).all()

    def test_a_file_that_becomes_shorter_while_it_is_read(self, path, header, voxels, monkeypatch):
        pread = os.pread

        def short(descriptor: int, count: int, offset: int) -> bytes:
            return pread(descriptor, count, offset)[: -1 if offset else None]

        monkeypatch.setattr(os, "pread", short)
        if header.is_compressed:  # of raw files, Python reads nothing but the header
            expect(FormatError, path, lambda: read(path, header), "cut short")
        part = voxels_for(header, PART.size)
        write(str(path), small("raw"), voxels)
        patching = lambda: wkwfile.patch(str(path), small("raw"), PART, part)  # noqa: E731
        expect(FormatError, path, patching, "ends at byte")

    @pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="root may do everything")
    def test_no_permission(self, tmp_path, path, header, voxels):
        path.chmod(0)
        try:
            expect(AccessError, path, lambda: read(path, header))
        finally:
            path.chmod(0o644)
        path.parent.chmod(0o555)
        try:
            expect(AccessError, path, lambda: write(str(path), header, voxels + 1))
            expect(AccessError, path, lambda: write(str(path), header, voxels * 0))
        finally:
            path.parent.chmod(0o755)
        np.testing.assert_array_equal(read(path, header), voxels)

    def check(
        self,
        tmp_path: Path,
        path: Path,
        header: VolumeHeader,
        error: type[StorageError],
        code: int | None,
    ) -> None:
        before = snapshot(tmp_path)
        for found in self.errors(path, header):
            assert isinstance(found, error)
            assert code in (None, found.errno)
        assert snapshot(tmp_path) == before

    def errors(self, path: Path, header: VolumeHeader) -> list[StorageError]:
        """Return what reading, writing and patching raise."""
        part, whole = voxels_for(header, PART.size), voxels_for(header, seed=5)
        actions = [
            lambda: read(path, header),
            lambda: write(str(path), header, whole),
            lambda: wkwfile.patch(str(path), small("raw"), PART, part),
        ]
        found = []
        for action in actions:
            with pytest.raises(StorageError) as caught:
                action()
            assert caught.value.filename == str(path)
            assert str(path) in str(caught.value)
            found.append(caught.value)
        return found


def tree_by_io(path: Path) -> list[str]:
    """Return the names below a directory, without opening a file."""
    return sorted(str(each) for each in path.rglob("*"))


class TestAtomic:
    """Temporary files never remain, and the old file stays until the new one is complete."""

    FAILURES: tuple[BaseException, ...] = (
        OSError(errno.ENOSPC, "No space left on device"),
        MemoryError("played"),
        KeyboardInterrupt(),
    )

    @pytest.mark.parametrize("exists", [True, False])
    @pytest.mark.parametrize("failure", FAILURES, ids=lambda e: type(e).__name__)
    @pytest.mark.parametrize("call", ["pack", "write", "head", "fsync", "replace", "close"])
    def test_write(self, tmp_path, path, header, monkeypatch, call, failure, exists):
        old = voxels_for(header, (EDGE,) * 3)
        path.parent.mkdir(parents=True)
        if exists:
            write(str(path), header, old)
        before = snapshot(tmp_path)
        play(monkeypatch, call, failure)
        from_disk = isinstance(failure, OSError) and call != "pack"
        with pytest.raises(StorageError if from_disk else type(failure)) as e:
            write(str(path), header, voxels_for(header, seed=2), fsync=call == "fsync")
        monkeypatch.undo()
        assert snapshot(tmp_path) == before
        if isinstance(e.value, StorageError):
            assert (e.value.errno, e.value.filename) == (errno.ENOSPC, str(path))
            assert "free space" in str(e.value)

    @pytest.mark.parametrize("failure", FAILURES, ids=lambda e: type(e).__name__)
    @pytest.mark.parametrize("call", ["link", "unlink"])
    def test_creation_of_a_raw_file(self, tmp_path, path, monkeypatch, call, failure):
        header = small("raw")
        path.parent.mkdir(parents=True)
        os_call = getattr(os, call)

        def fail(*arguments: Any) -> None:
            if call == "unlink":
                os_call(*arguments)  # a failure to report that it was done
            raise failure

        monkeypatch.setattr(os, call, fail)
        part = voxels_for(header, PART.size)
        try:
            wkwfile.patch(str(path), header, PART, part)
        except (StorageError, MemoryError, KeyboardInterrupt):
            assert call == "link" or not isinstance(failure, OSError)
        monkeypatch.undo()
        assert [name for name in snapshot(tmp_path) if name.endswith(atomic.TEMPORARY_SUFFIX)] == []

    def test_readers_see_the_old_file_until_the_end(self, path, header, voxels, monkeypatch):
        replace = os.replace
        seen = []

        def look(source: str, target: str) -> None:
            seen.append(read(path, header))
            replace(source, target)
            seen.append(read(path, header))

        monkeypatch.setattr(os, "replace", look)
        new = voxels_for(header, seed=2)
        write(str(path), header, new)
        np.testing.assert_array_equal(seen[0], voxels)
        np.testing.assert_array_equal(seen[1], new)

    def test_an_unfinished_file_lies_beside_and_is_not_taken_for_data(self, path, header, voxels):
        with filewriter.writing(str(path), header) as file:
            file.append(voxels)
            (unfinished,) = set(path.parent.iterdir()) - {path}
            assert unfinished.name.endswith(atomic.TEMPORARY_SUFFIX)
            assert not unfinished.name.endswith(".wkw")
        assert [*path.parent.iterdir()] == [path]

    def test_what_others_left_behind_does_not_matter(self, path, header, voxels):
        # libwkw writes to x0.wkw_tmp, always the same name, and may leave it of any size.
        left = [path.with_name(name) for name in ("x0.wkw_tmp", f"x0.wkw.0{'0' * 31}.wkdask-tmp")]
        for each in left:
            each.write_bytes(b"stale" * 10_000)
        new = voxels_for(header, seed=2)
        write(str(path), header, new)
        np.testing.assert_array_equal(read(path, header), new)
        assert all(each.exists() for each in left)

    def test_no_descriptor_leaks(self, path, header, voxels):
        def count() -> int:
            found = 0
            for name in os.listdir("/proc/self/fd"):
                with contextlib.suppress(OSError):  # sockets of other tests come and go
                    found += os.readlink(f"/proc/self/fd/{name}").startswith("/")
            return found

        if not Path("/proc/self/fd").exists():
            pytest.skip("descriptors can't be counted here")
        before = count()
        for _ in range(3):
            read(path, header)
            write(str(path), header, voxels)
            with pytest.raises(FormatError):
                read(path, small(dtype="uint16"))
        path.write_bytes(b"WKW")
        for _ in range(3):
            with pytest.raises(FormatError):
                read(path, header)
        assert count() <= before


class TestWriting:
    """A file is written piece by piece, with options."""

    @pytest.mark.parametrize("kind", BLOCK_TYPES)
    def test_pieces_are_runs_of_blocks(self, path, monkeypatch, kind):
        header = VolumeHeader("uint16", 2, 4, 8, kind)
        voxels = voxels_for(header, (32, 32, 32))
        write(str(path), header, voxels)
        whole = path.read_bytes()
        for piece_bytes in (1, 8 * header.block_bytes, 64 * header.block_bytes):
            monkeypatch.setattr(filewriter, "_PIECE_BYTES", piece_bytes)
            boxes = list(filewriter.pieces_of(header))
            assert len({box.size for box in boxes}) == 1
            size = int(np.prod(boxes[0].size)) * header.voxel_bytes
            assert size <= max(piece_bytes, header.block_bytes)
            assert sum(int(np.prod(box.size)) for box in boxes) == 32**3
            write(str(path), header, voxels)
            np.testing.assert_array_equal(read(path, header, region_of(box(header))), voxels)
            if kind != "lz4hc":  # whose samples may differ
                assert path.read_bytes() == whole

    def test_batches_of_blocks(self, path, header, voxels, monkeypatch):
        whole = path.read_bytes()
        for row_bytes in (1, 3 * codec.block_bound(header)):
            monkeypatch.setattr(codec, "_ROW_BYTES", row_bytes)
            write(str(path), header, voxels)
            assert path.read_bytes() == whole

    @pytest.mark.parametrize("exists", [True, False])
    def test_zeros_are_not_written(self, path, header, exists):
        if exists:
            write(str(path), header, voxels_for(header, (EDGE,) * 3))
        write(str(path), header, voxels_for(header, (EDGE,) * 3) * 0)
        assert read(path, header) is None
        assert [*path.parent.iterdir()] == []

    @pytest.mark.parametrize("exists", [True, False])
    def test_zeros_are_written_if_they_are_to_be_kept(self, path, header, exists):
        if exists:
            write(str(path), header, voxels_for(header, (EDGE,) * 3))
        write(str(path), header, voxels_for(header, (EDGE,) * 3) * 0, keep_zeros=True)
        assert not read(path, header).any()

    @pytest.mark.parametrize("at", [(0, 0, 0), (3, 4, 5), (7, 7, 7)])
    def test_one_voxel_makes_a_file(self, path, header, at):
        voxels = np.zeros((1, 8, 8, 8), np.uint8)
        voxels[:, *at] = 1
        write(str(path), header, voxels)
        np.testing.assert_array_equal(read(path, header), voxels)

    @pytest.mark.parametrize("dtype", ["float32", "float64"])
    @pytest.mark.parametrize("bits", [1 << 63, 1, 0x7FF0000000000001])
    def test_zeros_are_zeros_to_the_bit(self, path, dtype, bits):
        # Negative zero, the smallest number, and a signalling NaN, of which NumPy would warn.
        header = small("lz4", dtype)
        word = bits.to_bytes(8, "little")[-header.itemsize :]
        word = word if any(word) else b"\1" + word[1:]
        voxels = np.frombuffer(word * 512, dtype).reshape((1, 8, 8, 8), order="F")
        write(str(path), header, voxels)
        assert read(path, header).tobytes() == voxels.tobytes()

    def test_an_error_of_the_caller_leaves_the_old_file(self, tmp_path, path, header, voxels):
        before = snapshot(tmp_path)

        def fail_at_last() -> None:
            with filewriter.writing(str(path), header) as file:
                file.append(voxels + 1)
                raise KeyError("mine")

        with pytest.raises(KeyError, match="mine"):
            fail_at_last()
        assert snapshot(tmp_path) == before

    @pytest.mark.parametrize("value", [0, 1])
    @pytest.mark.parametrize("count", [0, 1, 7])
    def test_missing_pieces_leave_the_old_file(
        self, tmp_path, path, header, voxels, monkeypatch, count, value
    ):
        monkeypatch.setattr(filewriter, "_PIECE_BYTES", 1)
        before = snapshot(tmp_path)

        def append_some() -> None:
            with filewriter.writing(str(path), header) as file:
                for _ in range(count):
                    file.append(np.full((1, 4, 4, 4), value, np.uint8))

        expect(ArgumentError, path, append_some, "append all pieces")
        assert snapshot(tmp_path) == before

    @pytest.mark.parametrize(
        ("wrong", "text"),
        [
            (np.ones((1, 8, 8, 7), np.uint8), "shape"),
            (np.ones((1, 4, 4, 4), np.uint8), "shape"),
            (np.ones((2, 8, 8, 8), np.uint8), "shape"),
            (np.ones((8, 8, 8), np.uint8), "shape"),
            (np.ones((1, 8, 8, 8), np.int8), "dtype"),
            (np.ones((1, 8, 8, 8), np.uint16), "dtype"),
        ],
        ids=["short", "another edge", "channels", "axes", "dtype", "larger dtype"],
    )
    def test_wrong_pieces(self, tmp_path, path, header, voxels, wrong, text):
        before = snapshot(tmp_path)

        def append() -> None:
            with filewriter.writing(str(path), header) as file:
                file.append(wrong)

        expect(ArgumentError, path, append, text)
        assert snapshot(tmp_path) == before

    def test_one_piece_too_many(self, path, header, voxels):
        def append_twice() -> None:
            with filewriter.writing(str(path), header) as file:
                file.append(voxels + 1)
                file.append(voxels + 1)

        expect(ArgumentError, path, append_twice, "append each of them once")
        np.testing.assert_array_equal(read(path, header), voxels)

    @pytest.mark.parametrize("what", ["write", "remove", "patch", "create"])
    def test_fsync(self, path, monkeypatch, what):
        """Before the file gets its name, and its directories after."""
        header = small("raw")
        if what in ("remove", "patch"):
            write(str(path), header, voxels_for(header, (EDGE,) * 3))
        calls: list[str] = []
        for name in ("fsync", "replace", "unlink", "link", "pwrite"):
            monkeypatch.setattr(os, name, recorder(name, getattr(os, name), path, calls))
        for fsync in (False, True):
            if fsync and what == "create":
                path.unlink()
            calls.clear()
            if what in ("patch", "create"):
                part = voxels_for(header, PART.size)
                wkwfile.patch(str(path), header, PART, part, WriteOptions(fsync=fsync))
            else:
                voxels = voxels_for(header, (EDGE,) * 3) * (what != "remove")
                write(str(path), header, voxels, fsync=fsync)
                if not fsync and what == "remove":
                    write(str(path), header, voxels_for(header, (EDGE,) * 3))
            if not fsync:
                assert "fsync file" not in calls
                assert "fsync directory" not in calls
        wanted = {
            "write": ["pwrite file", "fsync file", "replace"],
            "remove": ["unlink"],
            "patch": ["pwrite file", "fsync file"],
            "create": ["link", "pwrite file", "fsync file"],
        }[what]
        assert in_order([*wanted, *["fsync directory"] * 3], calls), calls

    @pytest.mark.parametrize("patched", [False, True])
    def test_fsync_of_new_directories(self, tmp_path, path, monkeypatch, patched):
        """A file is lost with a directory whose name is not on the disk."""
        synced = note_synced(monkeypatch)
        if patched:
            part = voxels_for(small(), PART.size)
            wkwfile.patch(str(path), small(), PART, part, WriteOptions(fsync=True))
        else:
            write(str(path), small(), voxels_for(small()), fsync=True)
        assert inodes(path, *path.parents[:3]) <= synced

    def test_the_header_of_a_volume_is_always_on_the_disk(self, tmp_path, monkeypatch):
        synced = note_synced(monkeypatch)
        path = tmp_path / "new" / "color" / "1" / "header.wkw"
        assert wkwfile.create_header(str(path), small())
        assert inodes(path, *path.parents[:4]) <= synced

    @pytest.mark.parametrize("code", [errno.EINVAL, errno.EOPNOTSUPP], ids=errno.errorcode.get)
    def test_file_systems_that_can_not_sync_directories(self, path, monkeypatch, code):
        fsync = os.fsync

        def refuse(descriptor: int) -> None:
            if stat.S_ISDIR(os.fstat(descriptor).st_mode):
                raise OSError(code, os.strerror(code))
            fsync(descriptor)

        monkeypatch.setattr(os, "fsync", refuse)
        write(str(path), small(), voxels_for(small()), fsync=True)
        np.testing.assert_array_equal(read(path, small()), voxels_for(small()))

    @pytest.mark.parametrize("name", ["fsync", "keep_zeros"])
    @pytest.mark.parametrize("value", ["no", "", 0, 1, None, np.array([True])])
    def test_switches_that_are_neither_true_nor_false(self, name, value):
        with pytest.raises(ArgumentError, match=f"{name} is .*True or False"):
            WriteOptions(**{name: value})

    @pytest.mark.parametrize("level", [2, 13, 0, -1, 100])
    def test_levels_that_lz4hc_lacks(self, level):
        with pytest.raises(ArgumentError, match=f"hc_level is {level}.*3 to 12"):
            WriteOptions(hc_level=level)

    @pytest.mark.parametrize("level", [5.0, "5"])
    def test_levels_that_are_no_numbers(self, level):
        with pytest.raises(ArgumentError, match="whole number"):
            WriteOptions(hc_level=level)

    @pytest.mark.parametrize("level", range(3, 13))
    def test_every_level(self, path, level):
        header = small("lz4hc", "uint32")
        voxels = np.full((1, 8, 8, 8), 77, np.uint32)
        voxels[:, :, ::3] = 78
        write(str(path), header, voxels, hc_level=level)
        np.testing.assert_array_equal(read(path, header), voxels)


class TestSpaceAhead:
    """Space is taken ahead on disks that have plenty, and nobody fails for want of it."""

    @pytest.fixture(autouse=True)
    def eager(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(filewriter, "_RESERVE_FROM_BYTES", 1)
        monkeypatch.setattr(filewriter, "_free_bytes", lambda _: filewriter._ROOMY_BYTES + 1)

    def check(self, path: Path, header: VolumeHeader, expected_calls: int, calls: list) -> None:
        write(str(path), header, voxels_for(header, (EDGE,) * 3))
        assert len(calls) == expected_calls
        np.testing.assert_array_equal(read(path, header), voxels_for(header, (EDGE,) * 3))
        if header.is_compressed:
            assert path.stat().st_size == struct.unpack_from("<8Q", path.read_bytes(), 16)[-1]

    @pytest.mark.parametrize(("more", "count"), [(0, 0), (1, 1)])
    def test_only_of_plenty(self, path, header, monkeypatch, more, count):
        calls: list[int] = []
        monkeypatch.setattr(filewriter, "_free_bytes", lambda _: filewriter._ROOMY_BYTES + more)
        monkeypatch.setattr(filewriter, "try_fallocate", lambda *_: calls.append(1) or True)
        self.check(path, header, count, calls)

    def test_the_disk_is_asked(self, path, header, monkeypatch):
        monkeypatch.undo()
        path.parent.mkdir(parents=True)
        with open(path, "wb") as file:
            free = os.statvfs(path).f_bavail * os.statvfs(path).f_frsize
            assert filewriter._free_bytes(file.fileno()) == pytest.approx(free, rel=0.1)

    def test_what_could_not_be_taken_whole_is_given_back(self, path, header, monkeypatch):
        sizes: list[int] = []

        def take_a_part(descriptor: int, start: int, count: int) -> bool:
            os.ftruncate(descriptor, start + count // 2)
            return False

        self.note_sizes(monkeypatch, sizes)
        monkeypatch.setattr(filewriter, "try_fallocate", take_a_part)
        self.check(path, header, 2, sizes)
        assert sizes == [header.data_offset_bytes, path.stat().st_size]

    def test_it_is_given_back_before_the_head_is_written(self, path, header, monkeypatch):
        sizes: list[int] = []
        self.note_sizes(monkeypatch, sizes)
        self.check(path, header, 2, sizes)
        assert sizes[1] == path.stat().st_size

    @pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT], ids=errno.errorcode.get)
    def test_a_full_disk_has_room_without_it(self, path, header, monkeypatch, code):
        pwrite, calls = os.pwrite, []

        def fill_up(descriptor: int, data: Any, start: int) -> int:
            if start and os.fstat(descriptor).st_size > start:
                calls.append(start)
                pwrite(descriptor, data[:9], start)  # a part may have found its place
                raise OSError(code, os.strerror(code))
            return pwrite(descriptor, data, start)

        monkeypatch.setattr(os, "pwrite", fill_up)
        self.check(path, header, 1, calls)

    def test_where_nothing_can_be_taken(self):
        assert atomic.try_fallocate(-1, 0, 1) is False

    def note_sizes(self, monkeypatch: pytest.MonkeyPatch, sizes: list[int]) -> None:
        """Note how long the file is when something is written to it."""
        pwrite = os.pwrite

        def note(descriptor: int, data: Any, start: int) -> int:
            sizes.append(os.fstat(descriptor).st_size)
            return pwrite(descriptor, data, start)

        monkeypatch.setattr(os, "pwrite", note)


def recorder(name: str, real: Callable[..., Any], path: Path, calls: list[str]) -> Any:
    """Return a function of the system that notes its calls as far as they concern a file."""

    def record(*arguments: Any) -> Any:
        if name in ("fsync", "pwrite"):
            is_directory = stat.S_ISDIR(os.fstat(arguments[0]).st_mode)
            calls.append(f"{name} {'directory' if is_directory else 'file'}")
        elif str(arguments[-1]) == str(path):
            calls.append(name)
        return real(*arguments)

    return record


def note_synced(monkeypatch: pytest.MonkeyPatch) -> set[int]:
    """Return a set to which each file or directory comes when it is synced."""
    fsync, synced = os.fsync, set()
    note = lambda fd: synced.add(os.fstat(fd).st_ino) or fsync(fd)  # noqa: E731
    monkeypatch.setattr(os, "fsync", note)
    return synced


def inodes(*paths: Path) -> set[int]:
    return {path.stat().st_ino for path in paths}


def in_order(wanted: list[str], calls: list[str]) -> bool:
    """Return whether all that is wanted occurs in this order, perhaps with more between."""
    rest = iter(calls)
    return all(each in rest for each in wanted)


class TestTargets:
    """Compiled code trusts the array that it fills: whatever it can't fill is refused."""

    def out(self, **options: Any) -> Any:
        return np.zeros((2, 8, 8, 8), "uint16", **options)

    @pytest.fixture
    def file(self, path: Path, header: VolumeHeader) -> Any:
        header = small(header.block_type, "uint16", 2)
        write(str(path), header, voxels_for(header, (EDGE,) * 3))
        with WkwFile.open(str(path), header) as file:
            yield file

    def layouts(self) -> dict[str, Any]:
        larger = np.zeros((2, 9, 10, 11), np.uint16, order="F")
        return {
            "whole": self.out(order="F"),
            "part of a larger one": larger[:, 1:, 2:, 3:],
            "y and z exchanged": self.out(order="F").transpose(0, 1, 3, 2),
            "y backwards": self.out(order="F")[:, :, ::-1],
            "every other z": np.zeros((2, 8, 8, 16), np.uint16, order="F")[..., ::2],
        }

    @pytest.mark.parametrize(
        "name",
        ["whole", "part of a larger one", "y and z exchanged", "y backwards", "every other z"],
    )
    def test_good_ones(self, file, name):
        array = self.layouts()[name]
        file.read_into(array, WHOLE)
        np.testing.assert_array_equal(array, voxels_for(file.header, (EDGE,) * 3))
        if array.base is not None:
            assert array.base.astype(np.int64).sum() == array.astype(np.int64).sum()

    def test_axes_of_one_voxel_may_have_any_stride(self, file):
        out = np.zeros((1, 8, 2), np.uint16).transpose(2, 0, 1)[..., None]
        file.read_into(out, (range(5, 6), range(8), range(1)))
        np.testing.assert_array_equal(out, voxels_for(file.header, (EDGE,) * 3)[:, 5:6, :, :1])

    @pytest.mark.parametrize(
        ("array", "text"),
        [
            (np.zeros((2, 8, 8, 8), np.uint16), "channels and x"),
            (np.zeros((2, 16, 8, 8), np.uint16, order="F")[:, ::2], "channels and x"),
            (np.zeros((2, 8, 8, 8), np.uint16, order="F")[:, ::-1], "channels and x"),
            (np.zeros((4, 8, 8, 8), np.uint16, order="F")[:2], "channels and x"),
            (np.broadcast_to(np.uint16(0), (2, 8, 8, 8)), "read-only"),
            (np.zeros((2, 8, 8, 7), np.uint16, order="F"), "shape"),
            (np.zeros((1, 8, 8, 8), np.uint16, order="F"), "shape"),
            (np.zeros((2, 8, 8, 8), np.uint8, order="F"), "dtype"),
            (np.zeros((2, 8, 8, 8), ">u2", order="F"), "dtype"),
        ],
        ids=["C", "x steps", "x back", "c gap", "read-only", "short", "c", "dtype", "bytes"],
    )
    def test_bad_ones(self, file, array, text):
        with pytest.raises(ArgumentError, match=text):
            file.read_into(array, WHOLE)
        assert not array.any()

    @pytest.mark.parametrize(
        "axis", [range(8, 9), range(1, 9), range(-1, 2), range(3, 3), range(7, 0, -1)]
    )
    @pytest.mark.parametrize("place", range(3))
    def test_regions_that_leave_the_file(self, file, axis, place):
        region = [range(2)] * 3
        region[place] = axis
        array = np.zeros((2, *map(len, region)), np.uint16, order="F")
        with pytest.raises(ArgumentError, match="empty or leaves"):
            file.read_into(array, tuple(region))


class TestNoRegularFiles:
    """Neither waits forever, and neither counts as zeros."""

    def make(self, path: Path, kind: str) -> Any:
        path.parent.mkdir(parents=True)
        if kind == "pipe":
            os.mkfifo(path)
            return None
        if kind == "device":
            path.symlink_to("/dev/zero")
            return None
        server = socket.socket(socket.AF_UNIX)
        before = Path.cwd()
        os.chdir(path.parent)  # the name of a socket must be short
        try:
            server.bind(path.name)
        finally:
            os.chdir(before)
        return server

    @pytest.mark.timeout(20)
    @pytest.mark.parametrize("kind", ["pipe", "device", "socket"])
    def test_reading_and_patching(self, path, header, kind):
        server = self.make(path, kind)
        for action in (
            lambda: read(path, header),
            lambda: wkwfile.patch(str(path), small(), PART, voxels_for(header, PART.size)),
        ):
            with pytest.raises(WkdaskError, match=r"x0\.wkw"):
                action()
        if server:
            server.close()


WRITER = """
import sys
import time
import numpy as np
from wkdask.storage import writer as filewriter
from wkdask.storage.header import VolumeHeader

header = VolumeHeader("uint8", 1, 4, 2, "lz4")
with filewriter.writing(sys.argv[1], header) as file:
    print("writing", flush=True)
    sys.stdin.read()
    file.append(np.ones((1, 8, 8, 8), np.uint8))
"""


class Writer:
    """A process in the middle of writing a file."""

    def __init__(self, path: Path) -> None:
        root = str(Path(wkdask.__file__).parents[1])
        self.process = subprocess.Popen(
            [sys.executable, "-c", WRITER, str(path)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": root},
        )
        assert self.process.stdout
        assert self.process.stdout.readline() == "writing\n"

    def __enter__(self) -> Writer:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.communicate(timeout=20)


def unfinished(path: Path) -> list[Path]:
    return [each for each in path.parent.iterdir() if each.name.endswith(".wkdask-tmp")]


class TestLeftovers:
    def test_a_living_writer_and_then_a_dead_one(self, path, header, voxels):
        before = path.read_bytes()
        with Writer(path) as writer:
            (living,) = unfinished(path)
            assert not atomic.is_leftover(str(living))
            assert not atomic.is_leftover(str(living)), "asking must not take the lock away"
            writer.process.send_signal(signal.SIGKILL)
            writer.process.wait(20)
            assert atomic.is_leftover(str(living))
            assert atomic.is_leftover(str(living))
        assert path.read_bytes() == before
        np.testing.assert_array_equal(read(path, header), voxels)
        write(str(path), header, voxels + 1)
        assert living.exists()

    def test_a_writer_that_ends_well_leaves_nothing(self, path):
        with Writer(path) as writer:
            writer.process.communicate("", timeout=20)
            assert writer.process.returncode == 0
            assert [*path.parent.iterdir()] == [path]
        assert (read(path, small("lz4")) == 1).all()

    def test_writers_in_this_process_live(self, path, header):
        with filewriter.writing(str(path), header) as file:
            (living,) = unfinished(path)
            assert not atomic.is_leftover(str(living))
            file.append(voxels_for(header, (EDGE,) * 3))
        with atomic.replacing(str(path)):
            (living,) = unfinished(path)
            assert not atomic.is_leftover(str(living))

    def test_the_lock_is_held_until_the_file_has_its_name(self, path, header, monkeypatch):
        replace, seen = os.replace, []

        def look(source: str, target: str) -> None:
            seen.append(atomic.is_leftover(source))
            replace(source, target)

        monkeypatch.setattr(os, "replace", look)
        write(str(path), header, voxels_for(header, (EDGE,) * 3))
        assert seen == [False]

    def test_a_file_that_was_swept_before_it_was_locked(self, path, header, monkeypatch):
        flock, swept = atomic.fcntl.flock, []

        def sweep(descriptor: int, how: int) -> None:
            if not swept:
                swept.extend(unfinished(path))
                swept[0].unlink()
            flock(descriptor, how)

        monkeypatch.setattr(atomic.fcntl, "flock", sweep)
        write(str(path), header, voxels_for(header, (EDGE,) * 3))
        assert len(swept) == 1
        np.testing.assert_array_equal(read(path, header), voxels_for(header, (EDGE,) * 3))

    def test_a_file_system_without_locks(self, path, header, monkeypatch):
        def refuse(*_: object) -> None:
            raise OSError(errno.ENOLCK, "No locks available")

        path.parent.mkdir(parents=True)
        left = path.with_name("x0.wkw.0.wkdask-tmp")
        left.touch()
        assert atomic.is_leftover(str(left))
        monkeypatch.setattr(atomic.fcntl, "flock", refuse)
        write(str(path), header, voxels_for(header, (EDGE,) * 3))
        np.testing.assert_array_equal(read(path, header), voxels_for(header, (EDGE,) * 3))
        assert not atomic.is_leftover(str(left))

    @pytest.mark.timeout(20)
    def test_what_can_not_be_opened_is_no_leftover(self, tmp_path):
        for ask in (atomic.is_leftover, atomic.sweep_leftover):
            assert not ask(str(tmp_path / "nothing"))

    @pytest.mark.timeout(20)
    @pytest.mark.parametrize(
        "make",
        [os.mkdir, os.mkfifo, lambda path: os.symlink(__file__, path)],
        ids=["directory", "pipe", "link"],
    )
    def test_only_regular_files_are_leftovers(self, tmp_path, make):
        path = tmp_path / "x0.wkw.0.wkdask-tmp"
        make(path)
        for ask in (atomic.is_leftover, atomic.sweep_leftover):
            assert not ask(str(path))
        assert os.path.lexists(path)

    def test_a_writer_that_finishes_before_it_is_asked_about(self, tmp_path, monkeypatch):
        path, flock = tmp_path / "x0.wkw.0.wkdask-tmp", atomic.fcntl.flock

        def finish(descriptor: int, how: int) -> None:
            path.rename(tmp_path / "x0.wkw")
            flock(descriptor, how)

        monkeypatch.setattr(atomic.fcntl, "flock", finish)
        for ask in (atomic.is_leftover, atomic.sweep_leftover):
            path.touch()
            assert not ask(str(path))
            assert os.listdir(tmp_path) == ["x0.wkw"]

    @pytest.mark.timeout(20)
    def test_a_file_system_that_counts_no_links(self, path, header, monkeypatch):
        fstat, seen = os.fstat, []

        def count_none(descriptor: int) -> os.stat_result:
            seen.append(len(unfinished(path)))
            values = list(fstat(descriptor))
            values[stat.ST_NLINK] = 0
            return os.stat_result(values)

        monkeypatch.setattr(atomic.os, "fstat", count_none)
        write(str(path), header, voxels_for(header, (EDGE,) * 3))
        assert set(seen) == {1}, "one unfinished file is enough"
        assert [*path.parent.iterdir()] == [path]

    @pytest.mark.timeout(20)
    def test_a_writer_gives_up_if_each_of_its_files_is_swept(self, path, header, monkeypatch):
        flock = atomic.fcntl.flock

        def sweep(descriptor: int, how: int) -> None:
            for each in unfinished(path):
                each.unlink()
            flock(descriptor, how)

        monkeypatch.setattr(atomic.fcntl, "flock", sweep)
        with pytest.raises(StorageError, match=str(path)):
            write(str(path), header, voxels_for(header, (EDGE,) * 3))


class TestSweeping:
    def test_a_living_writer_and_then_a_dead_one(self, path):
        with Writer(path) as writer:
            (living,) = unfinished(path)
            assert not atomic.sweep_leftover(str(living))
            assert living.exists()
            writer.process.kill()
            writer.process.wait(20)
            assert atomic.sweep_leftover(str(living))
            assert not living.exists()

    @pytest.mark.parametrize(
        ("age", "older_than", "is_swept"),
        [
            (0, 0.0, True),
            (-100, 0.0, True),  # by the clock of a server that is ahead
            (-100, 50.0, False),
            (100, 50.0, True),
            (100, 150.0, False),
        ],
    )
    def test_age(self, tmp_path, age, older_than, is_swept):
        path = tmp_path / "x0.wkw.0.wkdask-tmp"
        path.touch()
        modified = time.time() - age
        os.utime(path, (modified, modified))
        assert atomic.sweep_leftover(str(path), older_than_seconds=older_than) == is_swept
        assert path.exists() != is_swept

    def test_the_file_is_open_for_writing_when_it_is_locked(self, tmp_path, monkeypatch):
        """NFS refuses a lock for one alone otherwise, with EBADF."""
        path, flock = tmp_path / "x0.wkw.0.wkdask-tmp", atomic.fcntl.flock

        def like_nfs(descriptor: int, how: int) -> None:
            writable = fcntl.fcntl(descriptor, fcntl.F_GETFL) & os.O_ACCMODE != os.O_RDONLY
            if how & fcntl.LOCK_EX and not writable:
                raise OSError(errno.EBADF, "Bad file descriptor")
            flock(descriptor, how)

        path.touch()
        monkeypatch.setattr(atomic.fcntl, "flock", like_nfs)
        assert atomic.is_leftover(str(path))
        assert atomic.sweep_leftover(str(path))

    def test_a_directory_that_refuses(self, tmp_path, monkeypatch):
        path = tmp_path / "x0.wkw.0.wkdask-tmp"
        path.touch()

        def refuse(*_: object) -> None:
            raise PermissionError(errno.EACCES, "Permission denied")

        monkeypatch.setattr(atomic.os, "unlink", refuse)
        assert not atomic.sweep_leftover(str(path))


def play(monkeypatch: pytest.MonkeyPatch, call: str, failure: BaseException) -> None:
    """Let the packing of blocks or a call of the system fail; a close after it was done."""
    module, name = {
        "pack": (codec, "_pack"),
        "write": (os, "pwrite"),  # of the voxels
        "head": (os, "pwrite"),  # of what stands before them
        "fsync": (os, "fsync"),
        "replace": (os, "replace"),
        "close": (os, "close"),
    }[call]
    real = getattr(module, name)

    def fail(*arguments: Any) -> Any:
        if call == "close":
            real(*arguments)
        if call == "head" and arguments[2]:
            return real(*arguments)
        raise failure

    monkeypatch.setattr(module, name, fail)


def mutated(data: bytes, places: int, rng: np.random.Generator) -> bytes:
    """Return a file of random changes: bytes, words, lengths, mostly in header and jump table."""
    changed = bytearray(data)
    for _ in range(rng.integers(1, 4)):
        what = rng.integers(7)
        at = int(rng.integers(places))
        if what == 0:
            changed[at] = rng.integers(256)
        elif what == 1:
            changed[at] ^= 1 << int(rng.integers(8))
        elif what == 2:
            changed[at : at + 8] = bytes(min(8, places - at))
        elif what == 3:
            word = at // 8 * 8
            (number,) = struct.unpack_from("<Q", changed, word)
            number += int(rng.integers(-70, 70))
            struct.pack_into("<Q", changed, word, number % (1 << 64))
        elif what == 4:
            word, other = at // 8 * 8, int(rng.integers(places)) // 8 * 8
            changed[word : word + 8], changed[other : other + 8] = (
                changed[other : other + 8],
                changed[word : word + 8],
            )
        elif what == 5:
            struct.pack_into("<Q", changed, at // 8 * 8, int(rng.integers(len(data) + 9)))
        elif what == 6 and rng.integers(4) == 0:
            length = int(rng.integers(len(data)))
            # Only cut what the next change does not reach into.
            return bytes(changed[: max(length, 0)])
    return bytes(changed)


def check_mutants(directory: Path, kind: str, count: int) -> None:
    """Read and patch mutants: each is what it was, or an error of ours."""
    header = small(kind, "uint16")
    voxels = voxels_for(header, (EDGE,) * 3)
    path = directory / "mutant.wkw"
    write(str(path), header, voxels)
    data = path.read_bytes()
    rng = np.random.default_rng(BLOCK_TYPES.index(kind))  # type: ignore[arg-type]
    part = voxels_for(header, PART.size, seed=2)
    raised = unchanged = 0
    for number in range(count):
        mutant = mutated(data, header.data_offset_bytes, rng)
        path.write_bytes(mutant)
        try:
            found = read(path, header)
        except FormatError as error:
            raised += str(path) in str(error)
        else:
            assert found.tobytes() == voxels.tobytes(), (number, mutant)
            unchanged += 1
        if kind == "raw":
            check_patch(path, header, part, mutant)
    assert raised + unchanged == count
    assert raised > count // 2


def check_patch(path: Path, header: VolumeHeader, part: Any, mutant: bytes) -> None:
    """Patch a mutant: it is done, or the file stays as it was."""
    try:
        wkwfile.patch(str(path), header, PART, part)
    except FormatError:
        assert path.read_bytes() == mutant
    else:
        x, y, z = region_of(PART)
        np.testing.assert_array_equal(read(path, header, (x, y, z)), part)


class TestMutants:
    @pytest.mark.parametrize("kind", BLOCK_TYPES)
    def test_some(self, tmp_path, kind):
        check_mutants(tmp_path, kind, 3_000)

    @pytest.mark.slow
    @pytest.mark.parametrize("kind", BLOCK_TYPES)
    def test_many(self, tmp_path, kind):
        check_mutants(tmp_path, kind, 10_000)

    @pytest.mark.parametrize("kind", BLOCK_TYPES)
    def test_every_byte_of_header_and_jump_table(self, tmp_path, kind):
        header = small(kind)
        voxels = voxels_for(header, (EDGE,) * 3)
        path = tmp_path / "mutant.wkw"
        write(str(path), header, voxels)
        data = path.read_bytes()
        for place, value in product(range(header.data_offset_bytes), (0, 1, 2, 0x7F, 0x80, 0xFF)):
            path.write_bytes(set_byte(place, value)(data))
            try:
                found = read(path, header)
            except FormatError:
                continue
            np.testing.assert_array_equal(found, voxels)


class TestThreads:
    """Pieces that several threads make become the file that one would have written."""

    @pytest.fixture(autouse=True)
    def pieces_of_one_block(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(filewriter, "_PIECE_BYTES", 1)
        monkeypatch.setattr(filewriter, "_cores", lambda: 64)

    @staticmethod
    def fill(path: str, header: VolumeHeader, produce: Any, threads: int, **keys: Any) -> None:
        inside = keys.pop("inside", BoundingBox((0, 0, 0), (header.file_edge,) * 3))
        with filewriter.writing(path, header, WriteOptions(**keys)) as file:
            file.fill(produce, inside, threads)

    @pytest.mark.parametrize("kind", BLOCK_TYPES)
    @pytest.mark.parametrize("threads", [1, 2, 3, 64])
    def test_the_same_voxels(self, tmp_path: Path, kind: Any, threads: int) -> None:
        header = VolumeHeader("uint8", 1, 4, 4, kind)
        voxels = np.random.default_rng(3).integers(0, 9, (1, 16, 16, 16)).astype("uint8")
        voxels[:, 4:, :4, :4] = 0
        voxels = np.asfortranarray(voxels)
        rng = np.random.default_rng(threads)

        def produce(box: BoundingBox) -> Any:
            time.sleep(rng.uniform(0, 0.003))
            part = voxels[(slice(None), *(slice(a, a + 4) for a in box.topleft))]
            return part if part.any() else None

        path = str(tmp_path / "z0" / "y0" / "x0.wkw")
        self.fill(path, header, produce, threads)
        with WkwFile.open(path, header) as opened:
            out = np.empty((1, 16, 16, 16), np.uint8, order="F")
            opened.read_into(out, (range(16),) * 3)
        assert np.array_equal(out, voxels)
        once = Path(path).read_bytes()
        self.fill(path, header, produce, threads)
        assert Path(path).read_bytes() == once
        assert [each.name for each in Path(path).parent.iterdir()] == ["x0.wkw"]

    @pytest.mark.parametrize("zeros", [None, np.zeros((1, 4, 4, 4), np.uint8, order="F")])
    def test_zeros_need_no_file(self, path: Path, zeros: Any) -> None:
        self.fill(str(path), small("lz4"), lambda _: zeros, 2)
        assert not path.exists()
        self.fill(str(path), small("lz4"), lambda _: zeros, 2, keep_zeros=True)
        assert not read(path, small("lz4")).any()

    def test_nothing_is_made_outside_of_the_box(self, path: Path) -> None:
        asked: list[BoundingBox] = []
        ones = np.ones((1, 4, 4, 4), np.uint8, order="F")
        inside = BoundingBox((1, 5, 5), (2, 2, 2))
        produce = lambda box: asked.append(box) or ones  # noqa: E731
        self.fill(str(path), small("lz4"), produce, 2, inside=inside)
        assert asked == [BoundingBox((0, 4, 4), (4, 4, 4))]
        assert read(path, small("lz4")).sum() == 64

    @pytest.mark.parametrize("error", [ZeroDivisionError, KeyboardInterrupt])
    def test_an_error_ends_the_file(self, path: Path, error: type[BaseException]) -> None:
        header = VolumeHeader("uint8", 1, 4, 8, "lz4")
        asked = 0

        def produce(box: BoundingBox) -> Any:
            nonlocal asked
            asked += 1
            if box.topleft == (4, 0, 0):
                raise error("here")
            return np.ones((1, 4, 4, 4), np.uint8, order="F")

        with pytest.raises(error, match="here"):
            self.fill(str(path), header, produce, 2)
        assert asked < 20, "what had not begun was cancelled"
        assert [*path.parent.iterdir()] == []
        assert not [t for t in threading.enumerate() if t.name.startswith("wkdask-writer")]

    def test_voxels_that_do_not_fit_are_refused(self, path: Path) -> None:
        expect(
            ArgumentError, path,
            lambda: self.fill(str(path), small("lz4"), lambda _: np.ones((1, 4, 4, 5), "u1"), 2),
            "(1, 4, 4, 5)",
        )  # fmt: skip

    def test_a_full_disk_while_others_work(self, path: Path, monkeypatch: Any) -> None:
        def refuse(*_: object) -> None:
            raise OSError(errno.ENOSPC, "No space left on device")

        monkeypatch.setattr(filewriter, "write_all", refuse)
        ones = np.ones((1, 4, 4, 4), np.uint8, order="F")
        expect(
            StorageError, path, lambda: self.fill(str(path), small(), lambda _: ones, 2), "No space"
        )
        assert [*path.parent.iterdir()] == []

    @pytest.mark.parametrize("threads", [2, 4])
    def test_few_pieces_are_in_flight(self, path: Path, threads: int) -> None:
        """However many pieces a file has, memory is taken for a few per thread."""
        header = VolumeHeader("uint8", 1, 4, 8, "lz4")
        begun = done = most = 0

        def produce(_: BoundingBox) -> Any:
            nonlocal begun, most
            begun += 1
            most = max(most, begun - done)
            return np.ones((1, 4, 4, 4), np.uint8, order="F")

        append = filewriter.PieceWriter._append

        def slowly(self: Any, packed: Any) -> None:
            nonlocal done
            time.sleep(0.001)
            append(self, packed)
            done += 1

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(filewriter.PieceWriter, "_append", slowly)
            self.fill(str(path), header, produce, threads)
        assert threads <= most <= 2 * threads + 1

    def test_context_goes_along(self, path: Path) -> None:
        word: ContextVar[str] = ContextVar("word", default="nothing")
        word.set("something")
        found = set()

        def produce(_: BoundingBox) -> None:
            found.add((word.get(), threading.current_thread().name.startswith("wkdask-writer")))

        self.fill(str(path), small(), produce, 2)
        assert found == {("something", True)}

    def test_no_more_threads_than_cores(self, path: Path, monkeypatch: Any) -> None:
        monkeypatch.setattr(filewriter, "_cores", lambda: 1)
        names = set()
        produce = lambda _: names.add(threading.current_thread().name)  # noqa: E731
        self.fill(str(path), small(), produce, 8)
        assert names == {threading.current_thread().name}
