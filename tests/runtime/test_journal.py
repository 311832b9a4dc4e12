"""Journals: a chunk counts as done only while its record and its files agree."""

from __future__ import annotations

import json
import os
import re
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import dask
import dask.array as da
import numpy as np
import pytest
import wkw
from click.testing import CliRunner
from numpy.typing import NDArray

import wkdask
from wkdask.cli.main import main
from wkdask.errors import ArgumentError, ChunkErrors, MissingError, ReadOnlyError
from wkdask.geometry import BoundingBox
from wkdask.runtime.journal import JOB_NAME, Journal
from wkdask.storage.header import VolumeHeader
from wkdask.storage.volume import JOURNALS_NAME
from wkdask.storage.wkw import WkwVolume

Vec3 = tuple[int, int, int]

EDGE = 8
"""Voxels per edge of a file in these tests: two blocks of edge 4."""

FIRST = BoundingBox((0, 0, 0), (EDGE,) * 3)
SECOND = BoundingBox((EDGE, 0, 0), (EDGE,) * 3)
BOTH = BoundingBox((0, 0, 0), (2 * EDGE, EDGE, EDGE))
BLOCK = BoundingBox((0, 0, 0), (4, 4, 4))
NEXT_BLOCK = BoundingBox((4, 0, 0), (4, 4, 4))


def volume_at(path: Path, block_type: str = "lz4") -> WkwVolume:
    header = VolumeHeader("uint8", block_edge=4, blocks_per_file_edge=2, block_type=block_type)  # type: ignore[arg-type]
    return WkwVolume.create(path, header)


def fill(volume: WkwVolume, box: BoundingBox, value: int) -> None:
    volume.write(box, np.full((1, *box.size), value, np.uint8))


def file_of(volume: WkwVolume, cell: Vec3 = (0, 0, 0)) -> Path:
    return Path(volume.file_path(cell))


def records(path: Path) -> list[Path]:
    return sorted(path.rglob(f"{JOURNALS_NAME}/*/*/*.json"))


# --- records ----------------------------------------------------------------------------------


class TestRecord:
    @pytest.fixture(params=["raw", "lz4"])
    def volume(self, tmp_path: Path, request: pytest.FixtureRequest) -> WkwVolume:
        volume = volume_at(tmp_path / "mag", request.param)
        fill(volume, BOTH, 7)
        return volume

    def test_only_what_was_recorded_is_done(self, volume: WkwVolume) -> None:
        journal = Journal(volume, "job")
        assert not journal.is_done(0, FIRST)
        journal.record(0, FIRST)
        assert journal.is_done(0, FIRST)
        assert not journal.is_done(1, SECOND)
        assert not journal.is_done(1, FIRST)  # of another number
        assert not journal.is_done(0, SECOND)  # another box of this number
        assert not journal.is_done(0, BOTH)
        assert not Journal(volume, "other").is_done(0, FIRST)
        assert Journal(WkwVolume.open(volume.path), "job").is_done(0, FIRST)

    def changed(self, path: Path) -> None:
        data = path.read_bytes()
        path.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
        os.utime(path, ns=(1, 1))  # as clocks are coarse

    def longer(self, path: Path) -> None:
        status = path.stat()
        path.write_bytes(path.read_bytes() + b"\0")
        os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))

    def replaced(self, path: Path) -> None:
        """By one of the same bytes and times, as a copy would be."""
        status = path.stat()
        other = path.with_suffix(".other")
        other.write_bytes(path.read_bytes())
        os.utime(other, ns=(status.st_atime_ns, status.st_mtime_ns))
        os.replace(other, path)

    def touched(self, path: Path) -> None:
        os.utime(path)

    def removed(self, path: Path) -> None:
        path.unlink()

    @pytest.mark.parametrize("damage", [changed, longer, replaced, touched, removed])
    def test_counts_while_files_agree(
        self, volume: WkwVolume, damage: Callable[[Any, Path], None]
    ) -> None:
        journal = Journal(volume, "job")
        for index, box in enumerate((FIRST, SECOND, BOTH)):
            journal.record(index, box)
        damage(self, file_of(volume, (1, 0, 0)))
        assert journal.is_done(0, FIRST)  # of another file
        assert not journal.is_done(1, SECOND)
        assert not journal.is_done(2, BOTH)  # one of its two files

    @pytest.mark.parametrize(
        "write", [lambda volume: fill(volume, SECOND, 7), lambda volume: fill(volume, SECOND, 8)]
    )
    def test_whoever_writes_again_undoes_it(
        self, volume: WkwVolume, write: Callable[[WkwVolume], None]
    ) -> None:
        journal = Journal(volume, "job")
        journal.record(1, SECOND)
        write(volume)
        assert not journal.is_done(1, SECOND)

    def test_missing_file_is_recorded_as_missing(self, volume: WkwVolume) -> None:
        journal = Journal(volume, "job")
        fill(volume, SECOND, 0)
        assert not file_of(volume, (1, 0, 0)).exists()
        journal.record(1, SECOND)
        assert journal.is_done(1, SECOND)
        fill(volume, SECOND, 1)
        assert not journal.is_done(1, SECOND)

    @pytest.mark.parametrize(
        "text",
        [
            "",
            "[",
            "null",
            "{}",
            "[]",
            "[[]]",
            "\0",
            "\N{SNOWMAN}",
            '"done"',
            "1" * 5000,
        ],
        ids=lambda text: text[:8].encode("unicode_escape").decode(),
    )
    def test_corrupt_record_is_not_done(self, volume: WkwVolume, text: str) -> None:
        journal = Journal(volume, "job")
        journal.record(0, FIRST)
        [record] = records(Path(volume.path))
        record.write_bytes(text.encode("utf-16" if text == "\N{SNOWMAN}" else "utf-8"))
        assert not journal.is_done(0, FIRST)
        journal.record(0, FIRST)
        assert journal.is_done(0, FIRST)

    def test_truncated_record_is_not_done(self, volume: WkwVolume) -> None:
        journal = Journal(volume, "job")
        journal.record(0, BOTH)
        [record] = records(Path(volume.path))
        whole = record.read_bytes()
        for length in range(len(whole)):
            record.write_bytes(whole[:length])
            assert not journal.is_done(0, BOTH)

    def test_records_are_whole_and_small(self, volume: WkwVolume) -> None:
        journal = Journal(volume, "job")
        for index in (0, 999, 1000, 123_456_789):
            journal.record(index, FIRST)
            assert journal.is_done(index, FIRST)
        names = [str(path.relative_to(volume.path)) for path in records(Path(volume.path))]
        assert names == [
            f"{JOURNALS_NAME}/job/0/0.json",
            f"{JOURNALS_NAME}/job/0/999.json",
            f"{JOURNALS_NAME}/job/1/1000.json",
            f"{JOURNALS_NAME}/job/123456/123456789.json",
        ]  # fmt: skip
        assert all(path.stat().st_size < 300 for path in records(Path(volume.path)))
        left = [path for path in Path(volume.path, JOURNALS_NAME).rglob("*") if path.is_file()]
        assert len(left) == 4  # and nothing private beside them


class TestSharedRawFiles:
    """Chunks of whole blocks may share a raw file; each counts by its own voxels."""

    @pytest.fixture
    def volume(self, tmp_path: Path) -> WkwVolume:
        volume = volume_at(tmp_path / "mag", "raw")
        fill(volume, FIRST, 7)
        return volume

    def test_neighbours_do_not_matter(self, volume: WkwVolume) -> None:
        journal = Journal(volume, "job")
        journal.record(0, BLOCK)
        fill(volume, NEXT_BLOCK, 1)
        os.utime(file_of(volume))
        assert journal.is_done(0, BLOCK)
        fill(volume, BLOCK, 1)
        assert not journal.is_done(0, BLOCK)
        fill(volume, BLOCK, 7)
        assert journal.is_done(0, BLOCK)  # the same voxels again

    def test_every_voxel_counts(self, volume: WkwVolume) -> None:
        journal = Journal(volume, "job")
        journal.record(0, BLOCK)
        for corner in np.ndindex(4, 4, 4):
            voxel = BoundingBox(corner, (1, 1, 1))
            fill(volume, voxel, 8)
            assert not journal.is_done(0, BLOCK)
            fill(volume, voxel, 7)
        assert journal.is_done(0, BLOCK)

    def test_order_of_voxels_counts(self, volume: WkwVolume) -> None:
        rng = np.random.default_rng(0)
        voxels = rng.integers(1, 255, (1, 4, 4, 4), np.uint8)
        volume.write(BLOCK, voxels)
        journal = Journal(volume, "job")
        journal.record(0, BLOCK)
        volume.write(BLOCK, voxels.transpose(0, 2, 1, 3))
        assert not journal.is_done(0, BLOCK)

    def test_shape_counts(self, volume: WkwVolume) -> None:
        """A slab along x is not done because one along y has the same voxels."""
        journal = Journal(volume, "job")
        journal.record(0, BoundingBox((0, 0, 0), (8, 4, 4)))
        assert not journal.is_done(0, BoundingBox((0, 0, 0), (4, 8, 4)))

    @pytest.mark.parametrize("spoil", [b"", b"WKW", b"x" * 528])
    def test_unreadable_file_is_not_done(self, volume: WkwVolume, spoil: bytes) -> None:
        journal = Journal(volume, "job")
        journal.record(0, BLOCK)
        file_of(volume).write_bytes(spoil)
        assert not journal.is_done(0, BLOCK)

    def test_missing_file_is_zeros(self, volume: WkwVolume) -> None:
        journal = Journal(volume, "job")
        file_of(volume).unlink()
        journal.record(0, BLOCK)
        assert journal.is_done(0, BLOCK)
        fill(volume, BLOCK, 1)
        assert not journal.is_done(0, BLOCK)


def test_part_of_a_file_is_not_all_of_it(tmp_path: Path) -> None:
    """A layer that grew within its last file has voxels that no run has written."""
    volume = volume_at(tmp_path / "mag")
    fill(volume, FIRST, 7)
    journal = Journal(volume, "named")
    journal.record(0, BLOCK)
    assert not journal.is_done(0, FIRST)


# --- runs -------------------------------------------------------------------------------------


class Runs:
    """A mag of 3 x 2 x 1 files, and a function over its chunks that counts its calls."""

    def __init__(self, dataset: wkdask.Dataset, block_type: str = "lz4") -> None:
        box = BoundingBox((0, 0, 0), (3 * EDGE, 2 * EDGE, EDGE))
        self.dataset = dataset
        self.layer = dataset.add_layer("color", "color", "uint8", bounding_box=box)
        self.mag = self.layer.add_mag(1, 4, 2, block_type)
        self.calls: list[int] = []
        self.failing: set[int] = set()

    def work(self, chunk: tuple[wkdask.View, int]) -> None:
        view, index = chunk
        self.calls.append(index)
        if index in self.failing:
            raise ValueError(f"no {index}")
        view.write(np.full(view.size, index + 1, np.uint8))

    def run(self, **options: Any) -> tuple[list[int], wkdask.runtime.run.RunReport]:
        """Run over all chunks; return which were called, and the report."""
        self.calls.clear()
        options = {"resume": "named", "chunk_size": EDGE, **options}
        try:
            report = self.mag.for_each_chunk(self.work, **options)
        except ChunkErrors as errors:
            report = errors.report
        return sorted(self.calls), report

    def voxels(self) -> NDArray[Any]:
        return self.mag.get_view().read()

    def spoil(self, cell: Vec3) -> None:
        os.utime(self.mag.volume.file_path(cell), ns=(1, 1))


@pytest.fixture(params=["raw", "lz4"])
def runs(tissue: wkdask.Dataset, request: pytest.FixtureRequest) -> Runs:
    return Runs(tissue, request.param)


class TestResume:
    def test_skips_what_is_done(self, runs: Runs) -> None:
        calls, report = runs.run()
        assert (calls, report.done, report.skipped, report.ok) == ([*range(6)], 6, 0, True)
        before = runs.voxels()
        calls, report = runs.run()
        assert (calls, report.done, report.skipped, report.ok) == ([], 0, 6, True)
        assert (report.chunks, report.voxels, report.size_bytes) == (6, 0, 0)
        np.testing.assert_array_equal(runs.voxels(), before)

    def test_without_resume_all_run(self, runs: Runs) -> None:
        runs.run(resume=False)
        assert wkdask.journals(runs.mag.path) == []
        runs.run()
        calls, report = runs.run(resume=False)
        assert (calls, report.skipped) == ([*range(6)], 0)

    def test_runs_again_what_was_changed(self, runs: Runs) -> None:
        runs.run()
        runs.spoil((1, 1, 0))  # chunk 3
        Path(runs.mag.volume.file_path((2, 0, 0))).unlink()  # chunk 4
        calls, report = runs.run()
        assert (calls, report.done, report.skipped) == ([3, 4], 2, 4)
        assert runs.run()[0] == []

    def test_runs_again_what_failed(self, runs: Runs) -> None:
        runs.failing = {1, 4}
        calls, report = runs.run(on_error="collect")
        assert (calls, report.done, report.skipped) == ([*range(6)], 4, 0)
        assert [failure.index for failure in report.failures] == [1, 4]
        runs.failing = {4}
        calls, report = runs.run(on_error="collect")
        assert (calls, report.done, report.skipped, report.failed) == ([1, 4], 1, 4, 1)
        runs.failing = set()
        calls, report = runs.run()
        assert (calls, report.done, report.skipped, report.ok) == ([4], 1, 5, True)
        expected = np.repeat(np.arange(1, 7, dtype=np.uint8).reshape(3, 2), EDGE, 0).repeat(EDGE, 1)
        np.testing.assert_array_equal(runs.voxels()[0], expected[..., np.newaxis].repeat(EDGE, 2))

    def test_error_stops_and_the_rest_is_resumed(self, runs: Runs) -> None:
        runs.failing = {3}
        with dask.config.set(scheduler="synchronous"):
            with pytest.raises(ValueError, match="no 3"):
                runs.run()
            assert runs.calls == [0, 1, 2, 3]
            runs.failing = set()
            calls, report = runs.run()
        assert (calls, report.skipped) == ([3, 4, 5], 3)

    def test_other_names_are_other_jobs(self, runs: Runs) -> None:
        runs.run(resume="one")
        assert runs.run(resume="two")[0] == [*range(6)]
        # Their files are those of the second run now.
        assert runs.run(resume="one")[0] == [*range(6)]

    def test_other_chunks_are_not_done(self, runs: Runs) -> None:
        """Also where a name that the user gave stands for the job."""
        runs.run()
        assert runs.run(chunk_size=(2 * EDGE, EDGE, EDGE))[0] == [0, 1, 2, 3]

    def test_grown_layer_has_chunks_that_are_not_done(self, runs: Runs) -> None:
        runs.run()
        runs.layer.bounding_box = BoundingBox((0, 0, 0), (3 * EDGE, 2 * EDGE, 2 * EDGE))
        runs.mag = wkdask.open(runs.dataset.path)["color"][1]
        calls, _ = runs.run()
        # Chunk 0 has the number and the box that it had.
        assert calls == [*range(1, 12)]

    def test_read_only_views_have_no_journal(self, runs: Runs) -> None:
        view = runs.mag.get_view(read_only=True)
        with pytest.raises(ReadOnlyError):
            view.for_each_chunk(runs.work, EDGE, resume=True)
        assert runs.calls == []

    def test_parts_of_a_raw_file(self, tissue: wkdask.Dataset) -> None:
        runs = Runs(tissue, "raw")
        calls, _ = runs.run(chunk_size=4)
        assert len(calls) == 6 * 8
        before = runs.voxels()
        assert runs.run(chunk_size=4)[0] == []
        runs.mag.write(np.full((1, 4, 4, 4), 99, np.uint8), (4, 0, 0))
        [again], report = runs.run(chunk_size=4)
        assert report.skipped == 47
        np.testing.assert_array_equal(runs.voxels(), before)
        assert before[0, 4, 0, 0] == again + 1


class TestComputedNames:
    """`resume=True`: the job is the function, the view and the chunks."""

    @pytest.fixture
    def runs(self, tissue: wkdask.Dataset) -> Runs:
        return Runs(tissue)

    @staticmethod
    def fills(value: int, log: str) -> Callable[[Any], None]:
        def fill(chunk: Any) -> None:
            view, index = chunk
            with open(log, "a") as file:
                file.write(f"{index}\n")
            view.write(np.full(view.size, value, np.uint8))

        return fill

    def test_same_and_other_functions(self, runs: Runs, tmp_path: Path) -> None:
        log = str(tmp_path / "log")
        reports = [
            runs.mag.for_each_chunk(self.fills(value, log), resume=True) for value in (1, 1, 2, 1)
        ]
        # The last one finds files that the second job has written.
        assert [report.done for report in reports] == [6, 0, 6, 6]
        assert len(Path(log).read_text().split()) == 18

    @pytest.mark.parametrize("chunk_size", [(16, 8, 8), (8, 16, 8)])
    def test_other_chunks(self, runs: Runs, tmp_path: Path, chunk_size: Vec3) -> None:
        work = self.fills(1, str(tmp_path / "log"))
        runs.mag.for_each_chunk(work, 8, resume=True)
        assert runs.mag.for_each_chunk(work, chunk_size, resume=True).skipped == 0
        assert runs.mag.for_each_chunk(work, chunk_size, resume=True).done == 0

    def test_unrecognisable_function(self, runs: Runs) -> None:
        token = object()

        def work(chunk: Any) -> None:
            assert token

        with pytest.raises(ArgumentError, match=r'resume="a-name"'):
            runs.mag.for_each_chunk(work, resume=True)
        assert wkdask.journals(runs.mag.path) == []
        assert runs.mag.for_each_chunk(work, resume="a-name").done == 6
        assert runs.mag.for_each_chunk(work, resume="a-name").skipped == 6

    @pytest.mark.parametrize("name", ["", ".", "..", "a/b", "../../b", ".b", "a b"])
    def test_bad_names(self, runs: Runs, name: str) -> None:
        with pytest.raises(ArgumentError, match=r"resume is "):
            runs.mag.for_each_chunk(runs.work, resume=name)
        assert runs.calls == []
        assert not Path(runs.mag.path, JOURNALS_NAME).exists()

    def test_zipped_depends_on_the_source(self, runs: Runs) -> None:
        target = runs.layer.add_mag(2, 4, 2)

        def copy(chunk: Any) -> None:
            source, target, _ = chunk
            target.write(source.read()[:, ::2, ::2, ::2])

        def run() -> wkdask.runtime.run.RunReport:
            source = wkdask.open(runs.dataset.path)["color"][1]
            return source.for_zipped_chunks(copy, target, resume=True)

        runs.run()
        first = run()
        assert (first.done, first.chunks) == (first.chunks, 2)
        assert run().skipped == 2
        runs.mag.write(np.full((1, 8, 8, 8), 99, np.uint8))
        assert run().done == 2  # another source is another job
        assert target[0, 0, 0, 0].compute() == 99
        assert [
            each.path for each in wkdask.journals(runs.dataset.path) if target.path in each.path
        ]


class TestStore:
    @pytest.fixture
    def runs(self, tissue: wkdask.Dataset) -> Runs:
        return Runs(tissue)

    @staticmethod
    def counts(report: wkdask.runtime.run.RunReport) -> tuple[int, int]:
        return report.done, report.skipped

    def test_lazy_arrays(self, runs: Runs) -> None:
        x = np.random.default_rng(0).integers(1, 255, runs.mag.shape, np.uint8)
        lazy = da.from_array(x, chunks=(1, 8, 8, 8))
        assert self.counts(runs.mag.store(lazy, resume=True)) == (6, 0)
        again = da.from_array(x.copy(), chunks=(1, 8, 8, 8))
        assert self.counts(runs.mag.store(again, resume=True)) == (0, 6)
        runs.spoil((1, 0, 0))
        assert self.counts(runs.mag.store(again, resume=True)) == (1, 5)
        np.testing.assert_array_equal(runs.voxels(), x)
        assert self.counts(runs.mag.store(lazy + 1, resume=True)) == (6, 0)
        np.testing.assert_array_equal(runs.voxels(), x + 1)

    def test_other_chunks_and_other_place(self, runs: Runs) -> None:
        ones = da.ones((1, 8, 8, 8), dtype=np.uint8, chunks=8)
        assert self.counts(runs.mag.store(ones, resume=True)) == (1, 0)
        assert self.counts(runs.mag.store(ones, (8, 0, 0), resume=True)) == (1, 0)
        assert self.counts(runs.mag.store(ones, resume=True)) == (0, 1)
        assert runs.mag[0, 8, 0, 0].compute() == 1

    def test_numpy_arrays_by_their_values(self, runs: Runs) -> None:
        x = np.random.default_rng(0).integers(1, 255, runs.mag.shape, np.uint8)
        assert self.counts(runs.mag.store(x, resume=True)) == (6, 0)
        assert self.counts(runs.mag.store(x.copy(), resume=True)) == (0, 6)
        assert self.counts(runs.mag.store(x ^ 1, resume=True)) == (6, 0)

    def test_named(self, runs: Runs) -> None:
        x = da.random.default_rng().integers(1, 255, runs.mag.shape, np.uint8, chunks=(1, 8, 8, 8))
        assert self.counts(runs.mag.store(x, resume="noise")) == (6, 0)
        before = runs.voxels()
        assert self.counts(runs.mag.store(x ^ 1, resume="noise")) == (0, 6)
        np.testing.assert_array_equal(runs.voxels(), before)

    def test_failed_blocks_are_stored_by_the_next_run(self, runs: Runs) -> None:
        calls: list[int] = []

        def maybe(block: Any) -> Any:
            calls.append(1)
            if len(calls) == 4:
                raise ValueError("not yet")
            return block

        ones = da.ones(runs.mag.shape, dtype=np.uint8, chunks=(1, 8, 8, 8))
        x = ones.map_blocks(maybe, dtype=np.uint8, meta=np.empty((0,) * 4, np.uint8))
        with dask.config.set(scheduler="synchronous"):
            with pytest.raises(ValueError, match="not yet"):
                runs.mag.store(x, resume="later")
            assert len(records(Path(runs.mag.path))) == 3
            report = runs.mag.store(x, resume="later")
        assert (self.counts(report), report.ok) == ((3, 3), True)
        assert runs.voxels().all()


# --- on disk ----------------------------------------------------------------------------------


def command(*arguments: Any) -> Any:
    return CliRunner().invoke(main, ["journals", *map(str, arguments)])


class TestShrink:
    """The records of a complete job are one file."""

    def files(self, dataset: wkdask.Dataset) -> list[str]:
        found = dataset.path.rglob(f"{JOURNALS_NAME}/*/**/*")
        return sorted(file.name for file in found if file.is_file() and file.name != JOB_NAME)

    def test_a_complete_job(self, tissue: wkdask.Dataset) -> None:
        runs = Runs(tissue)
        assert runs.run()[1].done == 6
        assert self.files(tissue) == ["all"]
        assert runs.run()[1].skipped == 6
        [info] = wkdask.journals(tissue.path)
        assert info.records == 6

    def test_a_run_with_failures_keeps_its_records(self, tissue: wkdask.Dataset) -> None:
        runs = Runs(tissue)
        runs.failing = {3}
        assert runs.run(on_error="collect")[1].done == 5
        assert len(records(tissue.path)) == 5
        runs.failing = set()
        assert runs.run()[0] == [3]
        assert self.files(tissue) == ["all"]

    def test_a_changed_file_runs_again(self, tissue: wkdask.Dataset) -> None:
        runs = Runs(tissue)
        runs.run()
        runs.spoil((1, 0, 0))
        assert runs.run()[0] == [2]
        assert self.files(tissue) == ["all"]
        assert runs.run()[1].skipped == 6

    def test_an_incomplete_job_keeps_its_records(self, tmp_path: Path) -> None:
        volume = volume_at(tmp_path / "mag")
        fill(volume, BOTH, 7)
        journal = Journal(volume, "job")
        for index, box in ((0, FIRST), (5, SECOND)):
            journal.record(index, box)
        assert len(records(tmp_path)) == 2
        journal.shrink()
        assert not records(tmp_path)
        assert journal.is_done(0, FIRST)
        assert journal.is_done(5, SECOND)
        assert not any(journal.is_done(index, FIRST) for index in (1, 4, 5, 6, 10**6))
        fill(volume, FIRST, 8)
        assert not journal.is_done(0, FIRST)
        journal.record(0, FIRST)
        assert journal.is_done(0, FIRST)
        journal.shrink()
        assert journal.is_done(0, FIRST)
        journal.shrink()

    def test_a_file_of_all_that_was_cut(self, tmp_path: Path) -> None:
        volume = volume_at(tmp_path / "mag")
        fill(volume, BOTH, 7)
        journal = Journal(volume, "job")
        journal.record(0, FIRST)
        journal.record(1, SECOND)
        journal.shrink()
        whole = Path(journal.path, "all")
        for length in range(len(whole.read_bytes())):
            whole.write_bytes(whole.read_bytes()[:-1])
            assert journal.is_done(0, FIRST) == (length < 16)
            assert not journal.is_done(1, SECOND)
            assert wkdask.journals(volume.path)[0].size_bytes == 31 - length

    def test_a_pyramid(self, tissue: wkdask.Dataset) -> None:
        layer = Runs(tissue).layer
        first = layer.downsample(resume=True)
        assert set(self.files(tissue)) == {"all"}
        assert len(wkdask.journals(tissue.path)) == len(layer.mags) - 1
        clean = wkdask.open(tissue.path)[layer.name]
        assert clean.downsample(1, mags=[*clean.mags][1:], resume=True).skipped == first.done

    def test_checks_and_copies_pass_them_by(self, tissue: wkdask.Dataset, tmp_path: Path) -> None:
        Runs(tissue).run(resume="a")
        assert wkdask.check(tissue.path).ok
        assert not wkdask.check(tissue.path).findings
        wkdask.copy(tissue, tmp_path / "copy")
        assert not wkdask.journals(tmp_path / "copy")


class TestList:
    @pytest.fixture
    def dataset(self, tissue: wkdask.Dataset) -> wkdask.Dataset:
        """Two layers, three mags, three journals in two of them."""
        color = Runs(tissue)
        color.run(resume="a")
        color.run(resume="b", chunk_size=(24, 16, 8))
        color.layer.add_mag(2, 4, 2)
        box = BoundingBox((0, 0, 0), (8, 8, 8))
        cells = tissue.add_layer("cells", "segmentation", "uint8", bounding_box=box)
        cells.add_mag(1, 4, 2).store(np.ones((8, 8, 8), np.uint8), resume="c")
        return tissue

    PLACES = pytest.mark.parametrize(
        ("place", "names"),
        [
            ("", ["c", "a", "b"]),  # a dataset; by path
            ("color", ["a", "b"]),
            ("color/1", ["a", "b"]),
            ("color/2", []),
            ("cells", ["c"]),
            ("cells/1", ["c"]),
        ],
    )

    @PLACES
    def test_lists(self, dataset: wkdask.Dataset, place: str, names: list[str]) -> None:
        root = Path(dataset.path, place)
        for path in (root, str(root)):
            found = wkdask.journals(path)
            assert [Path(each.path).name for each in found] == names
            assert all(Path(each.path).is_dir() for each in found)
            assert [each.records for each in found] == [
                {"a": 6, "b": 1, "c": 1}[name] for name in names
            ]
            assert [each.size_bytes for each in found] == [
                sum(
                    file.stat().st_size
                    for file in Path(each.path).rglob("*")
                    if file.is_file() and file.name != JOB_NAME
                )
                for each in found
            ]

    @PLACES
    def test_clears(
        self,
        dataset: wkdask.Dataset,
        place: str,
        names: list[str],
        snapshot: Callable[[Path], dict[str, bytes | None]],
    ) -> None:
        root = Path(dataset.path)
        before = snapshot(root)
        assert wkdask.clear_journals(root / place) == len(names)
        assert wkdask.journals(root / place) == []
        assert len(wkdask.journals(root)) == 3 - len(names)
        assert wkdask.clear_journals(root / place) == 0
        after = snapshot(root)
        gone = {name for name in before if name not in after}
        assert all(JOURNALS_NAME in name for name in gone)
        assert {name: data for name, data in before.items() if name not in gone} == after
        if not place:
            assert not [*root.rglob(f"{JOURNALS_NAME}*")]

    @PLACES
    def test_command(self, dataset: wkdask.Dataset, place: str, names: list[str]) -> None:
        path = Path(dataset.path, place)
        infos = wkdask.journals(path)
        listed = command(path)
        assert listed.exit_code == 0
        lines = listed.output.splitlines()
        assert lines[-1] == f"{len(names)} journals"
        assert lines[1:-1:2] == [f"  {info.path}" for info in infos]
        assert lines[:-1:2] == [
            f"{info.name}: {info.records} of {info.chunks} chunks done" for info in infos
        ]
        as_json = json.loads(command(path, "--json").output)
        assert [each["records"] for each in as_json] == [info.records for info in infos]
        cleared = command(path, "--clear")
        assert cleared.output.splitlines()[-1] == f"{len(names)} journals deleted"
        assert wkdask.journals(path) == []
        assert json.loads(command(path, "--clear", "--json").output) == []

    def test_runs_begin_again_after_it(self, dataset: wkdask.Dataset) -> None:
        mag = dataset["cells"][1]
        ones = np.ones((8, 8, 8), np.uint8)
        assert mag.store(ones, resume="c").skipped == 1
        wkdask.clear_journals(dataset.path)
        assert mag.store(ones, resume="c").done == 1

    def test_no_such_directory(self, tmp_path: Path) -> None:
        for call in (wkdask.journals, wkdask.clear_journals):
            with pytest.raises(MissingError, match="not a directory"):
                call(tmp_path / "none")
        (tmp_path / "file").touch()
        with pytest.raises(MissingError):
            wkdask.journals(tmp_path / "file")
        failed = command(tmp_path / "none")
        assert failed.exit_code == 1
        assert failed.output.startswith("Error: ")
        assert len(failed.output.splitlines()) == 1


class TestOtherReaders:
    """A journal lies where no reader of WKW looks."""

    @pytest.fixture
    def runs(self, tissue: wkdask.Dataset) -> Runs:
        runs = Runs(tissue)
        runs.run()
        runs.layer.add_mag(2, 4, 2).store(np.ones((12, 8, 4), np.uint8), resume=True)
        assert len(wkdask.journals(tissue.path)) == 2
        return runs

    @pytest.mark.parametrize("level", [1, 2])
    def test_check_finds_nothing(self, runs: Runs, level: Any) -> None:
        report = wkdask.check(runs.dataset.path, level=level, sweep=True)
        assert report.ok
        assert report.findings == ()
        assert report.files == 6 + 2
        assert len(wkdask.journals(runs.dataset.path)) == 2
        assert runs.run()[0] == []

    def test_check_of_a_mag(self, runs: Runs) -> None:
        assert wkdask.check(runs.mag.path, level=2).findings == ()

    def test_wkdask_itself(self, runs: Runs) -> None:
        again = wkdask.open(runs.dataset.path)
        assert [str(mag) for mag in again["color"].mags] == ["1", "2"]
        files = {cell for cell, _ in runs.mag.volume.files()}
        assert files == {(x, y, 0) for x in range(3) for y in range(2)}
        info = CliRunner().invoke(main, ["info", str(runs.dataset.path)])
        assert info.exit_code == 0
        assert JOURNALS_NAME not in info.output

    def test_wkw(self, runs: Runs) -> None:
        with wkw.Dataset.open(runs.mag.path) as volume:
            found = volume.read((0, 0, 0), (24, 16, 8))
            assert {Path(name).suffix for name in volume.list_files()} == {".wkw"}
        np.testing.assert_array_equal(found, runs.voxels())

    def test_webknossos(self, runs: Runs, webknossos: Any) -> None:
        mag = webknossos.Dataset.open(runs.dataset.path).get_layer("color").get_mag(1)
        np.testing.assert_array_equal(mag.read(), runs.voxels())
        assert len([*mag.get_bounding_boxes_on_disk()]) == 6


class TestHowFar:
    """What another process sees of a job while it runs, and after it failed."""

    def test_a_job_that_runs(self, tissue: wkdask.Dataset) -> None:
        runs = Runs(tissue)
        seen: list[Any] = []

        def look(chunk: Any) -> None:
            time.sleep(0.02)
            seen.append(wkdask.journals(tissue.path)[0])

        runs.mag.for_each_chunk(look, EDGE, ThreadPoolExecutor(1), resume="look")
        assert [(each.name, each.records, each.chunks) for each in seen] == [
            ("look color 1", done, 6) for done in range(6)
        ]
        assert seen[0].seconds_left is None
        for each in seen[1:]:
            assert 0 < each.chunks_per_second < 50
            assert each.seconds_left == pytest.approx((6 - each.records) / each.chunks_per_second)
            assert 0 <= each.idle_seconds < 60
            assert re.match(
                r"look color 1: \d of 6 chunks done, [\d.]+ per second, 0 s left", str(each)
            )
        [after] = wkdask.journals(tissue.path)
        assert after.is_complete
        assert "look color 1: 6 of 6 chunks done\n" in command(tissue.path).output

    def test_failures(self, tissue: wkdask.Dataset) -> None:
        runs = Runs(tissue)
        runs.failing = {1, 4}
        assert runs.run(on_error="collect")[1].failed == 2
        [info] = wkdask.journals(tissue.path)
        assert (info.records, info.chunks, len(info.failures)) == (4, 6, 2)
        assert info.failures[0].startswith("chunk 1, x [")
        assert "2 failed" in command(tissue.path).output
        assert info.failures[1] in command(tissue.path).output
        assert json.loads(command(tissue.path, "--json").output)[0]["failures"] == [*info.failures]
        # What is done in the end is no failure any more, and another run forgets the others.
        runs.failing = {4}
        runs.run(on_error="collect")
        [info] = wkdask.journals(tissue.path)
        assert [text.split(",")[0] for text in info.failures] == ["chunk 4"]
        runs.failing = set()
        runs.run()
        assert wkdask.journals(tissue.path)[0].failures == ()

    def test_stages_of_a_pyramid(self, tissue: wkdask.Dataset) -> None:
        layer = Runs(tissue).dataset["color"]
        layer.downsample(mags=[2, 4], resume=True)
        names = {each.name: each.chunks for each in wkdask.journals(tissue.path)}
        assert names.keys() >= {"downsample color 2", "downsample color 4"}
        assert all(names.values())

    @pytest.mark.parametrize(
        "data", [b"", b"{", b"[]", b"null", b'{"name": "x"}', b'{"name": 1, "chunks": "many"}',
        b"\xff", b'{"name": "x", "chunks": 1e999, "started": 0}']
    )  # fmt: skip
    def test_a_job_file_that_was_damaged(self, tissue: wkdask.Dataset, data: bytes) -> None:
        runs = Runs(tissue)
        runs.run()
        [path] = tissue.path.rglob(JOB_NAME)
        path.write_bytes(data)
        [info] = wkdask.journals(tissue.path)
        assert (info.records, info.chunks, info.seconds_left) == (6, None, None)
        assert "6 chunks done" in command(tissue.path).output
        assert runs.run()[1].skipped == 6
