"""`for_each_chunk` and `for_zipped_chunks` on every scheduler but a cluster.

What a function sees is recorded in files, because it may run in another process.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import re
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from fractions import Fraction
from functools import partial
from itertools import combinations, product
from pathlib import Path
from typing import Any

import cloudpickle
import dask
import dask.array as da

# Its import lets all errors that exist be pickled, so it has to come before those of the tests.
import distributed  # noqa: F401
import numpy as np
import pytest
import wkw
from dask.blockwise import Blockwise
from dask.utils import key_split
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

import wkdask
from wkdask import BoundingBox, View
from wkdask.errors import (
    AlignmentError,
    ArgumentError,
    BoundsError,
    ChunkErrors,
    ReadOnlyError,
    WkdaskError,
)

# The worker processes of a pool can't import a test module.
cloudpickle.register_pickle_by_value(sys.modules[__name__])

Vec3 = tuple[int, int, int]
BLOCK_TYPES = {"raw": wkw.Header.BLOCK_TYPE_RAW, "lz4": wkw.Header.BLOCK_TYPE_LZ4}
EDGE = 8
"""Voxels per edge of a file in these tests: two blocks of edge 4."""


# --- schedulers -----------------------------------------------------------------------------


class Newcomers(Executor):
    """An executor of somebody else: a new thread per task, and no `_max_workers`."""

    def submit(self, function: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        future: Future[Any] = Future()

        def work() -> None:
            if not future.set_running_or_notify_cancel():
                return
            try:
                future.set_result(function(*args, **kwargs))
            except BaseException as error:
                future.set_exception(error)

        threading.Thread(target=work).start()
        return future


@pytest.fixture(scope="module")
def pools() -> Iterator[dict[str, Executor | None]]:
    context = multiprocessing.get_context("spawn")
    with ThreadPoolExecutor(3) as threads, ProcessPoolExecutor(2, mp_context=context) as processes:
        yield {
            "threads": None,
            "synchronous": None,
            "thread pool": threads,
            "process pool": processes,
            "home-made": Newcomers(),
        }


SCHEDULERS = ("threads", "synchronous", "thread pool", "process pool", "home-made")
IN_PROCESS = ("threads", "synchronous", "thread pool")


@pytest.fixture(params=SCHEDULERS)
def executor(request: pytest.FixtureRequest, pools: dict[str, Executor | None]) -> Any:
    """What to pass as `executor`; the synchronous scheduler is configured."""
    with scheduler(request.param):
        yield pools[request.param]


def scheduler(name: str) -> AbstractContextManager[object]:
    return dask.config.set(scheduler="synchronous") if name == "synchronous" else nullcontext()


# --- volumes --------------------------------------------------------------------------------


def make_view(
    folder: Path,
    size: Vec3,
    offset: Vec3 = (0, 0, 0),
    block_type: str = "raw",
    dtype: type[np.generic] = np.uint16,
    **options: Any,
) -> View:
    """Return a view of a new volume; files have the edge 8, blocks 4."""
    header = wkw.Header(dtype, block_len=4, file_len=2, block_type=BLOCK_TYPES[block_type])
    path = folder / uuid.uuid4().hex
    wkw.Dataset.create(str(path), header).close()
    return View(path, header, size, offset, **options)


def planned(size: Vec3, offset: Vec3 = (0, 0, 0), block_type: str = "raw", **options: Any) -> View:
    """Return a view of a volume that is not there, to plan runs without running them."""
    header = wkw.Header(np.uint16, block_len=4, file_len=2, block_type=BLOCK_TYPES[block_type])
    return View("nowhere", header, size, offset, **options)


def voxels_of(size: Vec3, seed: int = 0) -> NDArray[np.uint16]:
    return np.random.default_rng(seed).integers(1, 60_000, size, np.uint16)


def boxes_of(offset: Vec3, size: Vec3, chunk: Vec3) -> list[tuple[Vec3, Vec3]]:
    """Return (offset, size) of each chunk, found voxel by voxel: x outermost, z fastest."""
    axes = []
    for start, length, edge in zip(offset, size, chunk, strict=True):
        cells: dict[int, list[int]] = {}
        for voxel in range(start, start + length):
            cells.setdefault(voxel // edge, []).append(voxel)
        axes.append([(cell[0], len(cell)) for _, cell in sorted(cells.items())])
    return [
        ((x[0], y[0], z[0]), (x[1], y[1], z[1]))
        for x, y, z in product(*axes)
    ]  # fmt: skip


# --- functions of chunks --------------------------------------------------------------------


def record(folder: Path, chunk: tuple[Any, ...]) -> None:
    """Write down what a function gets, one file a call."""
    *views, index = chunk
    seen = [[view.global_offset, view.size, view.read_only] for view in views]
    (folder / f"{index}-{uuid.uuid4().hex}").write_text(json.dumps([index, seen]))


def recorded(folder: Path) -> list[tuple[int, list[tuple[Vec3, Vec3, bool]]]]:
    """Return what `record` wrote, by index."""
    entries = sorted(json.loads(path.read_text()) for path in folder.iterdir())
    return [
        (index, [(tuple(start), tuple(size), frozen) for start, size, frozen in seen])
        for index, seen in entries
    ]


def add_index(chunk: tuple[View, int]) -> None:
    view, index = chunk
    view.write((view.read() + np.uint16(index)).astype(np.uint16))


class TooFewError(Exception):
    """An error of the user's own."""


class TwoArgumentsError(Exception):
    """An error that pickles but can't be unpickled, as many do."""

    def __init__(self, what: str, why: str) -> None:
        super().__init__(f"{what}: {why}")


class LockError(Exception):
    """An error that can't be pickled."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.lock = threading.Lock()


def fail_in(numbers: tuple[int, ...], error: Callable[[], Exception], chunk: Any) -> None:
    if chunk[-1] in numbers:
        raise error()


def too_few() -> Exception:
    return TooFewError("seven are too few")


class Doubler:
    """Has a method to be called per chunk."""

    def __init__(self, factor: int) -> None:
        self.factor = factor

    def run(self, chunk: tuple[View, int]) -> None:
        view, _ = chunk
        view.write((view.read() * self.factor).astype(np.uint16))


# --- for_each_chunk -------------------------------------------------------------------------


class TestChunks:
    @pytest.mark.parametrize("read_only", [False, True])
    def test_the_example_of_the_docs(
        self, tmp_path: Path, executor: Executor | None, read_only: bool
    ) -> None:
        """Offset 10, size 100, chunk 64: [10, 64) and [64, 110), here on x and z."""
        view = planned((100, 3, 100), (10, 5, 10), read_only=read_only)
        assert view.for_each_chunk(partial(record, tmp_path), (64, 64, 64), executor).done == 4
        assert recorded(tmp_path) == [
            (0, [((10, 5, 10), (54, 3, 54), read_only)]),
            (1, [((10, 5, 64), (54, 3, 46), read_only)]),
            (2, [((64, 5, 10), (46, 3, 54), read_only)]),
            (3, [((64, 5, 64), (46, 3, 46), read_only)]),
        ]

    @settings(deadline=None, max_examples=60)
    @given(
        offset=st.tuples(*[st.integers(0, 40)] * 3),
        size=st.tuples(*[st.integers(1, 30)] * 3),
        chunk=st.tuples(*[st.integers(7, 40)] * 3),
    )
    def test_grid_lies_on_absolute_multiples(self, offset: Vec3, size: Vec3, chunk: Vec3) -> None:
        seen: list[tuple[View, int]] = []
        with scheduler("synchronous"):
            planned(size, offset, read_only=True).for_each_chunk(seen.append, chunk)
        seen.sort(key=lambda pair: pair[1])
        assert [index for _, index in seen] == list(range(len(seen)))
        boxes = [(view.global_offset, view.size) for view, _ in seen]
        assert boxes == boxes_of(offset, size, chunk)

    @pytest.mark.parametrize(
        ("chunk_size", "count"),
        [
            (None, 3 * 2 * 2),
            (8, 3 * 2 * 2),
            (np.int64(16), 2 * 1 * 1),
            ((24, 16, 8), 1 * 1 * 2),
            (np.array([8, 16, 16]), 3),
            ([24, 16, 16], 1),
            ((10**12, 10**12, 10**12), 1),
        ],
        ids=["a file", "int", "NumPy int", "tuple", "array", "list", "larger than all"],
    )
    def test_chunk_sizes(self, chunk_size: Any, count: int) -> None:
        graph = planned((24, 16, 16), block_type="lz4").for_each_chunk(
            print, chunk_size, compute=False
        )
        assert graph.npartitions == count

    def test_chunks_of_a_mag_cover_its_box(
        self, tmp_path: Path, tissue: wkdask.Dataset, executor: Executor | None
    ) -> None:
        box = BoundingBox((4, 0, 9), (20, 6, 7))
        layer = tissue.add_layer("color", category="color", dtype="uint16", bounding_box=box)
        mag = layer.add_mag(1, block_edge=4, blocks_per_file_edge=2)
        folder = tmp_path / "seen"
        folder.mkdir()
        mag.for_each_chunk(partial(record, folder), (16, 8, 8), executor)
        assert recorded(folder) == [
            (0, [((4, 0, 9), (12, 6, 7), False)]),
            (1, [((16, 0, 9), (8, 6, 7), False)]),
        ]

    @pytest.mark.parametrize("block_type", BLOCK_TYPES)
    @pytest.mark.filterwarnings("ignore:writing parts of compressed files")
    def test_writes_land_where_they_belong(
        self, tmp_path: Path, executor: Executor | None, block_type: str
    ) -> None:
        """Chunks of files that the view covers partly: what lies outside of it stays."""
        whole = make_view(tmp_path, (32, 16, 24), block_type=block_type)
        voxels = voxels_of(whole.size)
        whole.write(voxels)
        view = whole.get_view((3, 1, 5), (26, 14, 17))
        view.for_each_chunk(add_index, (16, 8, 8), executor)
        for index, (start, size) in enumerate(boxes_of((3, 1, 5), (26, 14, 17), (16, 8, 8))):
            x, y, z = (slice(a, a + b) for a, b in zip(start, size, strict=True))
            voxels[x, y, z] += np.uint16(index)
        np.testing.assert_array_equal(whole.read()[0], voxels)

    def test_writing_outside_of_the_chunk_is_refused(
        self, tmp_path: Path, executor: Executor | None
    ) -> None:
        view = make_view(tmp_path, (16, 8, 8))

        def write_next(chunk: tuple[View, int]) -> None:
            chunk[0].write(np.ones((8, 8, 8), np.uint16), (8, 0, 0))

        with pytest.raises(BoundsError):
            view.for_each_chunk(write_next, 8, executor)
        assert not view.read().any()

    def test_writing_to_read_only_chunks_is_refused(
        self, tmp_path: Path, executor: Executor | None
    ) -> None:
        view = make_view(tmp_path, (16, 8, 8))
        with pytest.raises(ReadOnlyError):
            view.get_view(read_only=True).for_each_chunk(add_index, 8, executor)

    def test_read_again_after_a_run_is_new(self, tmp_path: Path, executor: Executor | None) -> None:
        view = make_view(tmp_path, (16, 8, 8))
        held = view.to_dask().persist()
        view.for_each_chunk(add_index, 8, executor)
        assert view[0, 8:].compute().tolist() == np.ones((8, 8, 8)).tolist()
        assert not held.compute().any()


class TestFunctions:
    def test_partial(self, tmp_path: Path, executor: Executor | None) -> None:
        view = planned((16, 8, 8))
        view.for_each_chunk(partial(record, tmp_path), 8, executor)
        assert len(recorded(tmp_path)) == 2

    def test_lambda_and_closure(self, tmp_path: Path, executor: Executor | None) -> None:
        folder = tmp_path
        planned((16, 8, 8)).for_each_chunk(lambda chunk: record(folder, chunk), 8, executor)

        def closure(chunk: tuple[View, int]) -> None:
            record(folder, (chunk[0], chunk[1] + 2))

        planned((16, 8, 8)).for_each_chunk(closure, 8, executor)
        assert [index for index, _ in recorded(folder)] == [0, 1, 2, 3]

    def test_bound_method(self, tmp_path: Path, executor: Executor | None) -> None:
        view = make_view(tmp_path, (16, 8, 8), block_type="lz4")
        view.write(np.full((16, 8, 8), 3, np.uint16))
        view.for_each_chunk(Doubler(5).run, None, executor)
        assert (view.read() == 15).all()

    def test_results_are_dropped_where_they_are_made(self, executor: Executor | None) -> None:
        """A lock can't leave its process, nor shall an array."""

        def returns_a_lock(_: object) -> Any:
            return threading.Lock(), np.zeros((1000, 1000))

        planned((16, 8, 8)).for_each_chunk(returns_a_lock, 8, executor)
        graph = planned((16, 8, 8)).for_each_chunk(returns_a_lock, 8, compute=False)
        assert len(cloudpickle.dumps(graph.compute())) < 1500

    @pytest.mark.parametrize("name", IN_PROCESS)
    def test_shared_state_is_shared(self, pools: dict[str, Executor | None], name: str) -> None:
        """Nothing is copied between threads, so that a lock and a list work as usual."""
        lock, seen = threading.Lock(), []

        def keep(chunk: tuple[View, int]) -> None:
            with lock:
                seen.append(chunk[1])

        with scheduler(name):
            planned((64, 8, 8)).for_each_chunk(keep, 8, pools[name])
        assert sorted(seen) == list(range(8))


class TestFailure:
    def test_errors_keep_their_type_and_name_the_chunk(self, executor: Executor | None) -> None:
        view = planned((100, 8, 8), (10, 0, 0))
        with pytest.raises(TooFewError) as raised:
            view.for_each_chunk(partial(fail_in, (1,), too_few), 64, executor)
        assert type(raised.value) is TooFewError
        assert str(raised.value) == "seven are too few"
        (note,) = raised.value.__notes__
        assert "chunk 1" in note
        assert "x [64, 110), y [0, 8), z [0, 8)" in note

    @pytest.mark.parametrize("error", [ZeroDivisionError, KeyError, BoundsError, ChunkErrors])
    def test_any_class_of_error(self, executor: Executor | None, error: type[Exception]) -> None:
        args: tuple[Any, ...] = ("text", [ValueError()]) if error is ChunkErrors else ("text",)
        with pytest.raises(error) as raised:
            planned((16, 8, 8)).for_each_chunk(
                partial(fail_in, (0,), partial(error, *args)), 8, executor
            )
        assert type(raised.value) is error

    def test_no_chunk_starts_after_a_failure(
        self, tmp_path: Path, executor: Executor | None
    ) -> None:
        def fail_early(chunk: tuple[View, int]) -> None:
            record(tmp_path, chunk)
            if len(list(tmp_path.iterdir())) >= 3:
                raise TooFewError
            time.sleep(0.05)

        with pytest.raises(TooFewError):
            planned((8 * 100, 8, 8)).for_each_chunk(fail_early, 8, executor)
        started = len(recorded(tmp_path))
        time.sleep(0.2)
        assert len(recorded(tmp_path)) == started < 3 + (os.cpu_count() or 1) + 3

    def test_chunks_in_the_queue_of_a_busy_pool_are_cancelled(self, tmp_path: Path) -> None:
        def fail(chunk: tuple[View, int]) -> None:
            record(tmp_path, chunk)
            if len(list(tmp_path.iterdir())) == 1:
                raise TooFewError
            # The next chunk may begin before anybody hears of the error, but none after it.
            time.sleep(0.3)

        release = threading.Event()
        with ThreadPoolExecutor(4) as pool:
            others = [pool.submit(release.wait, 60) for _ in range(3)]
            with pytest.raises(TooFewError):
                planned((8 * 10, 8, 8)).for_each_chunk(fail, 8, pool)
            release.set()
            assert all(other.result() for other in others), "other work of the pool goes on"
        assert len(recorded(tmp_path)) <= 2

    def test_nothing_runs_behind_the_callers_back(self, tmp_path: Path) -> None:
        """With dask's threads the error comes when the chunks that had begun are done."""
        began, ended = tmp_path / "began", tmp_path / "ended"
        began.mkdir()
        ended.mkdir()

        def slow(chunk: tuple[View, int]) -> None:
            record(began, chunk)
            if chunk[1] == 5:
                raise TooFewError
            time.sleep(0.1)
            record(ended, chunk)

        with dask.config.set(num_workers=3), pytest.raises(TooFewError):
            planned((8 * 10, 8, 8)).for_each_chunk(slow, 8)
        assert len(recorded(began)) == len(recorded(ended)) + 1

    def test_the_pool_can_be_used_again(self, executor: Executor | None, tmp_path: Path) -> None:
        for _ in range(3):
            with pytest.raises(TooFewError):
                planned((32, 8, 8)).for_each_chunk(partial(fail_in, (1,), too_few), 8, executor)
        planned((32, 8, 8)).for_each_chunk(partial(record, tmp_path), 8, executor)
        assert [index for index, _ in recorded(tmp_path)] == [0, 1, 2, 3]

    def test_collect_runs_all_and_reports_every_failure(
        self, tmp_path: Path, executor: Executor | None
    ) -> None:
        def fail_on_odd(chunk: tuple[View, int]) -> None:
            record(tmp_path, chunk)
            if chunk[1] % 2:
                raise (TooFewError if chunk[1] % 4 == 1 else KeyError)(f"number {chunk[1]}")

        with pytest.raises(ChunkErrors) as raised:
            planned((80, 8, 8)).for_each_chunk(fail_on_odd, 8, executor, on_error="collect")
        assert [index for index, _ in recorded(tmp_path)] == list(range(10))
        assert isinstance(raised.value, WkdaskError)
        assert isinstance(raised.value, ExceptionGroup)
        assert "5 of 10 chunks failed" in str(raised.value)
        errors = raised.value.exceptions
        assert [type(error) for error in errors] == [
            TooFewError,
            KeyError,
            TooFewError,
            KeyError,
            TooFewError,
        ]
        assert [error.args for error in errors] == [(f"number {n}",) for n in range(1, 10, 2)]
        for number, error in zip(range(1, 10, 2), errors, strict=True):
            assert error.__notes__ == [
                f"in chunk {number}, x [{number * 8}, {number * 8 + 8}), y [0, 8), z [0, 8)"
            ]

    def test_collected_errors_split_by_type(self) -> None:
        with pytest.raises(ChunkErrors) as raised:
            planned((80, 8, 8)).for_each_chunk(
                partial(fail_in, (2, 3), too_few), 8, on_error="collect"
            )
        match, rest = raised.value.split(TooFewError)
        assert isinstance(match, ChunkErrors)
        assert (len(match.exceptions), rest) == (2, None)

    def test_collect_without_failures_raises_nothing(self, executor: Executor | None) -> None:
        planned((16, 8, 8)).for_each_chunk(
            partial(fail_in, (), too_few), 8, executor, on_error="collect"
        )

    @pytest.mark.parametrize("on_error", ["raise", "collect"])
    @pytest.mark.parametrize(
        "error",
        [partial(TwoArgumentsError, "no voxels", "too dark"), partial(LockError, "no voxels")],
        ids=["two arguments", "lock"],
    )
    def test_errors_that_cannot_travel(
        self,
        pools: dict[str, Executor | None],
        on_error: str,
        error: Callable[[], Exception],
    ) -> None:
        """From another process a stand-in comes, which says the same and names the chunk."""
        for name in SCHEDULERS:
            with scheduler(name), pytest.raises(Exception) as raised:
                planned((24, 8, 8)).for_each_chunk(
                    partial(fail_in, (1,), error), 8, pools[name], on_error=on_error
                )
            (failure,) = getattr(raised.value, "exceptions", [raised.value])
            expected = type(error()) if name in IN_PROCESS else WkdaskError
            assert type(failure) is expected, name
            assert "no voxels" in str(failure), name
            assert "chunk 1, x [8, 16)" in "".join(failure.__notes__), name

    @pytest.mark.parametrize("name", IN_PROCESS)
    @pytest.mark.parametrize("on_error", ["raise", "collect"])
    def test_tracebacks_lead_to_the_line_that_failed(
        self, pools: dict[str, Executor | None], name: str, on_error: str
    ) -> None:
        with scheduler(name), pytest.raises(Exception) as raised:
            planned((24, 8, 8)).for_each_chunk(
                partial(fail_in, (1,), too_few), 8, pools[name], on_error=on_error
            )
        (failure,) = getattr(raised.value, "exceptions", [raised.value])
        names = []
        at = failure.__traceback__
        while at:
            names.append(at.tb_frame.f_code.co_name)
            at = at.tb_next
        assert names[-1] == "fail_in"


class TestGraph:
    def test_the_function_is_not_called_while_building(self) -> None:
        graph = planned((24, 8, 8)).for_each_chunk(pytest.fail, 8, compute=False)
        assert isinstance(graph, da.Array)
        pair = planned((24, 8, 8)).for_zipped_chunks(
            pytest.fail, planned((24, 8, 8)), compute=False
        )
        assert (graph.npartitions, pair.npartitions) == (3, 3)

    def test_compute_false_composes(self, tmp_path: Path) -> None:
        view = make_view(tmp_path, (24, 8, 8))
        graph = view.for_each_chunk(add_index, 8, compute=False)
        receipts, total = dask.compute(graph, da.arange(10, chunks=3).sum())
        assert total == 45
        assert [receipt.index for receipt in receipts.flat] == [0, 1, 2]
        assert [int(view.read()[0, x, 0, 0]) for x in (0, 8, 16)] == [0, 1, 2]

    def test_a_graph_runs_as_often_as_it_is_computed(self, tmp_path: Path) -> None:
        graphs = [
            planned((16, 8, 8)).for_each_chunk(partial(record, tmp_path), 8, compute=False)
            for _ in range(2)
        ]
        assert graphs[0].name != graphs[1].name
        dask.compute(*graphs)
        assert [index for index, _ in recorded(tmp_path)] == [0, 0, 1, 1]

    @pytest.mark.parametrize("on_error", ["raise", "collect"])
    def test_graphs_are_small(self, on_error: Any) -> None:
        """One layer that is not written out, for any number of chunks, and tasks of a kilobyte."""
        view = planned((8_000, 8_000, 8_000), read_only=True)
        for graph in (
            view.for_each_chunk(print, 8, compute=False, on_error=on_error),
            view.for_zipped_chunks(print, view, 8, 8, compute=False, on_error=on_error),
        ):
            assert graph.npartitions == 10**9
            (layer,) = graph.dask.layers.values()
            assert isinstance(layer, Blockwise)
            assert not layer.is_materialized()
            assert (graph.dtype, graph.ndim) == (np.dtype(object), 3)

    def test_tasks_are_small(self) -> None:
        view = planned((16, 8, 8))
        for graph in (
            view.for_each_chunk(print, 8, compute=False),
            view.for_zipped_chunks(print, view, 8, 8, compute=False),
        ):
            sizes = [len(cloudpickle.dumps(task)) for task in dict(graph.dask).values()]
            assert len(sizes) == 2
            assert max(sizes) < 2500

    def test_names_of_tasks_are_readable(self) -> None:
        """They are what a dashboard shows."""
        view = planned((16, 8, 8))
        layer = Path(view.path).parent.name.replace("-", "_")
        for function, name in (
            (print, "print"),
            (partial(print, 1), "print"),
            (lambda _: 0, "lambda"),
        ):
            graph = view.for_each_chunk(function, 8, compute=False)
            assert key_split(graph.name) == f"{name} {layer} {Path(view.path).name}"
            graph = view.for_zipped_chunks(function, view, 8, 8, compute=False)
            assert key_split(graph.name).startswith(f"{name} ")

    def test_failures_of_a_composed_graph_reach_the_caller(self) -> None:
        graph = planned((16, 8, 8)).for_each_chunk(
            partial(fail_in, (1,), too_few), 8, compute=False
        )
        with pytest.raises(TooFewError):
            dask.compute(graph, da.ones(3))

    def test_query_planning_is_refused(self) -> None:
        with (
            dask.config.set({"array.query-planning": True}),
            pytest.raises(WkdaskError, match="query-planning"),
        ):
            planned((16, 8, 8)).for_each_chunk(print, 8, compute=False)


class TestProgress:
    def test_a_bar_in_the_terminal(
        self, executor: Executor | None, capsys: pytest.CaptureFixture[str]
    ) -> None:
        view = planned((24, 8, 8))
        view.for_each_chunk(partial(fail_in, (), too_few), 8, executor, progress=True)
        view.for_zipped_chunks(
            partial(fail_in, (), too_few), planned((24, 8, 8)), executor=executor, progress=True
        )
        assert capsys.readouterr().err.count("100%") >= 2

    def test_none_unless_asked(
        self, executor: Executor | None, capsys: pytest.CaptureFixture[str]
    ) -> None:
        planned((24, 8, 8)).for_each_chunk(partial(fail_in, (), too_few), 8, executor)
        assert capsys.readouterr() == ("", "")


class TestExecutor:
    @pytest.mark.parametrize("executor", ["threads", 2, ThreadPoolExecutor, os, dask.get])
    @pytest.mark.parametrize("progress", [False, True])
    def test_anything_else_is_refused(self, tmp_path: Path, executor: Any, progress: bool) -> None:
        view = planned((16, 8, 8))
        with pytest.raises(ArgumentError, match=r"executor is .* must be a distributed\.Client"):
            view.for_each_chunk(partial(record, tmp_path), 8, executor, progress=progress)
        with pytest.raises(ArgumentError, match="executor is"):
            view.for_zipped_chunks(
                partial(record, tmp_path), view, executor=executor, progress=progress
            )
        assert recorded(tmp_path) == []

    @pytest.mark.parametrize("on_error", ["ignore", None, "", True])
    def test_unknown_on_error_is_refused(self, tmp_path: Path, on_error: Any) -> None:
        with pytest.raises(ArgumentError, match=r"on_error is .*raise.*collect"):
            planned((16, 8, 8)).for_each_chunk(partial(record, tmp_path), 8, on_error=on_error)
        with pytest.raises(ArgumentError, match=r"on_error is .*raise.*collect"):
            planned((16, 8, 8)).for_each_chunk(
                partial(record, tmp_path), 8, on_error=on_error, compute=False
            )
        assert recorded(tmp_path) == []

    def test_executors_get_all_the_work(self, tmp_path: Path) -> None:
        names = []

        def keep_thread(_: object) -> None:
            names.append(threading.current_thread().name)

        with ThreadPoolExecutor(2, thread_name_prefix="mine") as pool:
            planned((64, 8, 8)).for_each_chunk(keep_thread, 8, pool)
        assert len(names) == 8
        assert all(name.startswith("mine") for name in names)

    def test_process_pools_work_in_other_processes(
        self, tmp_path: Path, pools: dict[str, Executor | None]
    ) -> None:
        def keep_process(_: object) -> None:
            (tmp_path / str(os.getpid())).touch()

        planned((64, 8, 8)).for_each_chunk(keep_process, 8, pools["process pool"])
        assert os.getpid() not in {int(path.name) for path in tmp_path.iterdir()}

    def test_executors_that_dask_is_configured_for(self, tmp_path: Path) -> None:
        with ThreadPoolExecutor(2) as pool, dask.config.set(scheduler=pool):
            planned((16, 8, 8)).for_each_chunk(partial(record, tmp_path), 8)
        assert len(recorded(tmp_path)) == 2

    def test_dasks_number_of_workers_counts(self) -> None:
        busy, most, lock = 0, 0, threading.Lock()

        def count(_: object) -> None:
            nonlocal busy, most
            with lock:
                busy += 1
                most = max(most, busy)
            time.sleep(0.01)
            with lock:
                busy -= 1

        with dask.config.set(num_workers=3):
            planned((8 * 12, 8, 8)).for_each_chunk(count, 8)
        assert most == 3


# --- chunks of writable views ---------------------------------------------------------------


def cells_of(offset: Vec3, size: Vec3, edge: int) -> set[Vec3]:
    """Return the files (or blocks) that a box touches, found voxel by voxel."""
    axes = [
        sorted({voxel // edge for voxel in range(start, start + length)})
        for start, length in zip(offset, size, strict=True)
    ]
    return set(product(*axes))


def collide(offset: Vec3, size: Vec3, chunk: Vec3, edge: int) -> bool:
    """Return whether two chunks touch the same file (or block)."""
    cells = [cells_of(*box, edge) for box in boxes_of(offset, size, chunk)]
    return any(one & other for one, other in combinations(cells, 2))


CHUNK_CASES = {
    "block_type": st.sampled_from(sorted(BLOCK_TYPES)),
    "offset": st.tuples(*[st.integers(0, 20)] * 3),
    "size": st.tuples(*[st.integers(1, 24)] * 3),
    "chunk": st.tuples(
        *[st.integers(3, 33) | st.sampled_from([4, 8, 12, 16, 20, 24])] * 3
    ),
}  # fmt: skip


def check_refused_if_chunks_collide(block_type: str, offset: Vec3, size: Vec3, chunk: Vec3) -> None:
    view = planned(size, offset, block_type)
    expected = collide(offset, size, chunk, EDGE if block_type == "lz4" else EDGE // 2)
    if not expected:
        assert view.for_each_chunk(print, chunk, compute=False) is not None
        return
    with pytest.raises(AlignmentError) as raised:
        view.for_each_chunk(print, chunk, compute=False)
    for size_that_works in sizes_named(raised.value):
        assert view.for_each_chunk(print, size_that_works, compute=False) is not None
    frozen = view.get_view(read_only=True)
    assert frozen.for_each_chunk(print, chunk, compute=False) is not None


def sizes_named(error: Exception) -> list[Vec3]:
    """Return the sizes that an error tells to use."""
    advice = str(error).split("Use ")[1]
    sizes = [(int(x), int(y), int(z)) for x, y, z in re.findall(r"\((\d+), (\d+), (\d+)\)", advice)]
    assert sizes
    return sizes


class TestAlignment:
    @settings(deadline=None, max_examples=80)
    @given(**CHUNK_CASES)
    def test_refused_exactly_if_two_chunks_share_a_file_or_block(self, **case: Any) -> None:
        check_refused_if_chunks_collide(**case)

    @pytest.mark.slow
    @settings(deadline=None, max_examples=3000)
    @given(**CHUNK_CASES)
    def test_refused_exactly_if_two_chunks_share_a_file_or_block_often(self, **case: Any) -> None:
        check_refused_if_chunks_collide(**case)

    @pytest.mark.parametrize(
        ("block_type", "offset", "size", "chunk", "named"),
        [
            # The original's own example failed in the original.
            ("lz4", (0, 0, 0), (200,) * 3, (100,) * 3, [(96,) * 3, (104,) * 3]),
            ("raw", (0, 0, 0), (200,) * 3, (100,) * 3, None),
            ("raw", (0, 0, 0), (200,) * 3, (101,) * 3, [(100,) * 3, (104,) * 3]),
            ("lz4", (0, 0, 0), (16, 16, 16), (16, 3, 16), [(16, 8, 16)]),
            ("lz4", (0, 0, 0), (24, 3, 24), (8, 3, 8), None),
            ("lz4", (0, 0, 0), (99, 99, 99), (99, 99, 99), None),
            ("lz4", (5, 5, 5), (2, 2, 2), (1, 2, 2), [(8, 8, 8)]),
            ("lz4", (20, 0, 0), (8, 8, 8), (12, 8, 8), None),
        ],
        ids=[
            "no multiple of a file",
            "a multiple of a block",
            "no multiple of a block",
            "smaller than a file on one axis",
            "one chunk on that axis",
            "one chunk",
            "two chunks in one file",
            "the only border lies on a file",
        ],
    )
    def test_examples(
        self, block_type: str, offset: Vec3, size: Vec3, chunk: Vec3, named: list[Vec3] | None
    ) -> None:
        view = planned(size, offset, block_type)
        if named is None:
            view.for_each_chunk(print, chunk, compute=False)
            return
        with pytest.raises(AlignmentError, match="read_only=True") as raised:
            view.for_each_chunk(print, chunk, compute=False)
        assert sizes_named(raised.value) == named

    def test_read_only_views_take_any_size(self, tmp_path: Path) -> None:
        view = planned((10, 10, 10), (1, 2, 3), "lz4", read_only=True)
        view.for_each_chunk(partial(record, tmp_path), (3, 5, 7))
        boxes = [seen[0][:2] for _, seen in recorded(tmp_path)]
        assert boxes == boxes_of((1, 2, 3), (10, 10, 10), (3, 5, 7))


# --- for_zipped_chunks ----------------------------------------------------------------------


def pairs_of(
    source: View, target: View, *sizes: Any, executor: Executor | None = None, folder: Path
) -> list[tuple[tuple[Vec3, Vec3], tuple[Vec3, Vec3]]]:
    """Return the boxes of each pair, after checking their numbers."""
    source.for_zipped_chunks(partial(record, folder), target, *sizes, executor=executor)
    seen = recorded(folder)
    assert [index for index, _ in seen] == list(range(len(seen)))
    return [(views[0][:2], views[1][:2]) for _, views in seen]


def halve(chunk: tuple[View, View, int]) -> None:
    source, target, _ = chunk
    target.write(np.asfortranarray(source.read()[:, ::2, ::2, ::2]))


def enlarge(chunk: tuple[View, View, int]) -> None:
    source, target, _ = chunk
    target.write(source.read().repeat(2, axis=1).repeat(2, axis=2))


class TestZipped:
    def test_pairs_in_order(self, tmp_path: Path, executor: Executor | None) -> None:
        source, target = planned((32, 16, 32)), planned((16, 16, 16))
        boxes = pairs_of(source, target, (16, 8, 16), 8, executor=executor, folder=tmp_path)
        assert boxes == list(
            zip(
                boxes_of((0, 0, 0), (32, 16, 32), (16, 8, 16)),
                boxes_of((0, 0, 0), (16, 16, 16), (8, 8, 8)),
                strict=True,
            )
        )

    @pytest.mark.parametrize("source_frozen", [False, True])
    @pytest.mark.parametrize("target_frozen", [False, True])
    def test_sources_are_read_only_and_targets_inherit(
        self, tmp_path: Path, source_frozen: bool, target_frozen: bool
    ) -> None:
        source, target = (
            planned((16, 8, 8), read_only=frozen) for frozen in (source_frozen, target_frozen)
        )
        source.for_zipped_chunks(partial(record, tmp_path), target)
        for _, (seen_source, seen_target) in recorded(tmp_path):
            assert seen_source[2] is True
            assert seen_target[2] is target_frozen

    def test_sources_cannot_be_written(self, tmp_path: Path, executor: Executor | None) -> None:
        view = make_view(tmp_path, (16, 8, 8))

        def write_source(chunk: tuple[View, View, int]) -> None:
            chunk[0].write(np.ones((8, 8, 8), np.uint16))

        with pytest.raises(ReadOnlyError):
            view.for_zipped_chunks(write_source, view, executor=executor)
        assert not view.read().any()

    @pytest.mark.parametrize("block_type", BLOCK_TYPES)
    @pytest.mark.filterwarnings("ignore:writing parts of compressed files")
    def test_halving_with_offsets_and_a_ragged_end(
        self, tmp_path: Path, executor: Executor | None, block_type: str
    ) -> None:
        source = make_view(tmp_path, (44, 20, 30), (12, 16, 2), "raw")
        target = make_view(tmp_path, (22, 10, 15), (6, 8, 1), block_type)
        voxels = voxels_of(source.size)
        source.write(voxels)
        source.for_zipped_chunks(halve, target, executor=executor)
        np.testing.assert_array_equal(target.read()[0], voxels[::2, ::2, ::2])

    @pytest.mark.filterwarnings("ignore:writing parts of compressed files")
    def test_enlarging(self, tmp_path: Path, executor: Executor | None) -> None:
        source = make_view(tmp_path, (11, 9, 10), (3, 4, 1), "lz4")
        target = make_view(tmp_path, (22, 18, 10), (6, 8, 1), "lz4")
        voxels = voxels_of(source.size)
        with pytest.warns(RuntimeWarning):
            source.write(voxels)
        source.for_zipped_chunks(enlarge, target, (4, 4, 8), (8, 8, 8), executor)
        np.testing.assert_array_equal(target.read()[0], voxels.repeat(2, 0).repeat(2, 1))

    def test_mags_are_restricted_to_their_boxes(
        self, tissue: wkdask.Dataset, tmp_path: Path
    ) -> None:
        box = BoundingBox((16, 0, 32), (32, 48, 16))
        layer = tissue.add_layer("color", category="color", dtype="uint16", bounding_box=box)
        mags = [layer.add_mag(m, block_edge=4, blocks_per_file_edge=2) for m in (1, "2-2-1")]
        folder = tmp_path / "seen"
        folder.mkdir()
        boxes = pairs_of(mags[0], mags[1], folder=folder)
        assert boxes == list(
            zip(
                boxes_of(box.topleft, box.size, (16, 16, 8)),
                boxes_of((8, 0, 32), (16, 24, 16), (8, 8, 8)),
                strict=True,
            )
        )

    @pytest.mark.parametrize(
        ("source", "target", "sizes", "expected"),
        [
            ((32, 32, 32), (16, 16, 16), (), ((16, 16, 16), (8, 8, 8))),
            ((32, 32, 16), (16, 16, 16), (None, 16), ((32, 32, 16), (16, 16, 16))),
            ((16, 16, 16), (32, 32, 32), (), ((4, 4, 4), (8, 8, 8))),
            ((16, 16, 32), (32, 32, 32), (None, (16, 8, 8)), ((8, 4, 8), (16, 8, 8))),
            ((24, 24, 24), (16, 16, 16), (), ((12, 12, 12), (8, 8, 8))),
            ((48, 16, 16), (16, 16, 16), (24, None), None),
            ((48, 16, 16), (16, 16, 16), ((24, 8, 8), None), ((24, 8, 8), (8, 8, 8))),
        ],
        ids=[
            "half",
            "half on two axes, chunks of two files",
            "double",
            "double on two axes, longer chunks",
            "two thirds",
            "one third, source given wrongly",
            "one third, source given",
        ],
    )
    def test_chunk_sizes_left_out(
        self, tmp_path: Path, source: Vec3, target: Vec3, sizes: Any, expected: Any
    ) -> None:
        if expected is None:
            with pytest.raises(ArgumentError, match="ratio"):
                planned(source).for_zipped_chunks(print, planned(target), *sizes)
            return
        boxes = pairs_of(planned(source), planned(target), *sizes, folder=tmp_path)
        assert boxes == list(
            zip(
                boxes_of((0, 0, 0), source, expected[0]),
                boxes_of((0, 0, 0), target, expected[1]),
                strict=True,
            )
        )

    def test_a_ragged_last_chunk(self, tmp_path: Path) -> None:
        """96/48 with chunks 64/32: the ratio holds."""
        boxes = pairs_of(planned((96,) * 3), planned((48,) * 3), 64, 32, folder=tmp_path)
        assert len(boxes) == 8
        assert boxes[-1] == (((64,) * 3, (32,) * 3), ((32,) * 3, (16,) * 3))

    @pytest.mark.parametrize(
        ("source", "target", "sizes", "text"),
        [
            # (offset, size) on all axes. This pair lost [128, 160) in the original.
            ((32, 128), (0, 128), (64, 64), "axis x"),
            ((8, 96), (0, 48), (64, 32), "axis x"),
            ((0, 96), (8, 48), (64, 32), "axis x"),
            ((4, 16), (8, 16), (16, 16), "axis x"),
            ((33, 128), (16, 64), (64, 32), "axis x"),
        ],
        ids=["the spec's", "source begins late", "target begins late", "as many", "by one voxel"],
    )
    def test_out_of_phase(
        self, source: tuple[int, int], target: tuple[int, int], sizes: Any, text: str
    ) -> None:
        views = [planned((size,) * 3, (offset,) * 3) for offset, size in (source, target)]
        with pytest.raises(AlignmentError, match=text):
            views[0].for_zipped_chunks(print, views[1], *sizes, compute=False)

    @pytest.mark.parametrize("axis", [0, 1, 2])
    def test_out_of_phase_on_any_axis(self, axis: int) -> None:
        offset = [0, 0, 0]
        offset[axis] = 32
        source = planned((128,) * 3, (offset[0], offset[1], offset[2]))
        with pytest.raises(AlignmentError, match=f"axis {'xyz'[axis]}"):
            source.for_zipped_chunks(print, planned((128,) * 3), 64, 64, compute=False)

    def test_in_phase_at_different_places(self, tmp_path: Path) -> None:
        boxes = pairs_of(
            planned((24, 8, 8), (16, 0, 0)), planned((24, 8, 8), (80, 8, 0)), 8, 8, folder=tmp_path
        )
        assert [(source[0][0], target[0][0]) for source, target in boxes] == [
            (16, 80),
            (24, 88),
            (32, 96),
        ]

    @pytest.mark.parametrize("block_type", BLOCK_TYPES)
    @pytest.mark.parametrize("target_size", [4, 12, (8, 8, 4), 1, 20])
    def test_targets_come_in_whole_files(self, block_type: str, target_size: Any) -> None:
        """Also for raw targets, and for one chunk: that is what was asked for."""
        source, target = planned((24,) * 3), planned((24,) * 3, block_type=block_type)
        with pytest.raises(AlignmentError, match=r"multiple of the target's file edge 8") as raised:
            source.for_zipped_chunks(print, target, target_size, target_size)
        for size in sizes_named(raised.value):
            assert source.for_zipped_chunks(print, target, size, size, compute=False) is not None

    @pytest.mark.parametrize("empty", ["source", "target"])
    @pytest.mark.parametrize("size", [(0, 8, 8), (8, 8, 0), (0, 0, 0)])
    def test_empty_views(self, empty: str, size: Vec3) -> None:
        views = [planned(size if empty == name else (8, 8, 8)) for name in ("source", "target")]
        with pytest.raises(ArgumentError, match="empty"):
            views[0].for_zipped_chunks(print, views[1])

    @pytest.mark.parametrize(
        ("source", "target", "sizes"),
        [
            ((32, 32, 32), (16, 16, 16), (8, 8)),
            ((32, 32, 32), (16, 16, 16), (16, 16)),
            ((32, 32, 16), (16, 16, 16), (16, 8)),
            ((33, 32, 32), (16, 16, 16), (16, 8)),
            ((32, 32, 32), (17, 16, 16), (16, 8)),
            ((33, 32, 32), (16, 16, 16), (None, 8)),
        ],
    )
    def test_ratios_that_differ(self, source: Vec3, target: Vec3, sizes: Any) -> None:
        with pytest.raises(ArgumentError, match="ratio"):
            planned(source).for_zipped_chunks(print, planned(target), *sizes)

    def test_errors_name_the_pair(self, executor: Executor | None) -> None:
        with pytest.raises(TooFewError) as raised:
            planned((32, 16, 16)).for_zipped_chunks(
                partial(fail_in, (1,), too_few), planned((16, 8, 8)), executor=executor
            )
        assert "chunk 1" in raised.value.__notes__[0]
        assert "x [8, 16), y [0, 8), z [0, 8)" in raised.value.__notes__[0]

    def test_collect(self, executor: Executor | None) -> None:
        with pytest.raises(ChunkErrors, match="2 of 3 chunks failed") as raised:
            planned((48, 16, 16)).for_zipped_chunks(
                partial(fail_in, (0, 2), too_few),
                planned((24, 8, 8)),
                executor=executor,
                on_error="collect",
            )
        assert [type(error) for error in raised.value.exceptions] == [TooFewError, TooFewError]

    @settings(deadline=None, max_examples=80)
    @given(data=st.data())
    def test_accepted_pairs_correspond_and_cover_everything(self, data: st.DataObject) -> None:
        """Every voxel of the target is paired with those at its place, or the run is refused."""
        ratios, starts, sizes, source_starts = [], [], [], []
        for _ in range(3):
            ratio = data.draw(st.sampled_from([Fraction(1), Fraction(2), Fraction(1, 2)]))
            start, size = data.draw(st.integers(0, 12)) * 2, data.draw(st.integers(1, 12)) * 2
            shift = data.draw(st.sampled_from([0, 0, 0, 4, 8, 16]))
            ratios.append(ratio)
            starts.append(start)
            sizes.append(size)
            source_starts.append(int(start * ratio) + shift)
        chunk = data.draw(st.sampled_from([8, 16, (8, 16, 8)]))
        target_size = (chunk,) * 3 if isinstance(chunk, int) else chunk
        source_size = tuple(int(c * r) for c, r in zip(target_size, ratios, strict=True))
        source = planned(
            tuple(int(s * r) for s, r in zip(sizes, ratios, strict=True)), tuple(source_starts)
        )
        target = planned(tuple(sizes), tuple(starts))
        expected = [
            boxes_of(source.global_offset, source.size, source_size),
            boxes_of(target.global_offset, target.size, target_size),
        ]
        corresponds = len(expected[0]) == len(expected[1]) and all(
            (start - first) * 1 == (other - other_first) * ratio and size == other_size * ratio
            for (box, other_box) in zip(*expected, strict=True)
            for start, size, other, other_size, first, other_first, ratio in zip(
                *box, *other_box, source.global_offset, target.global_offset, ratios, strict=True
            )
        )
        seen: list[tuple[View, View, int]] = []
        try:
            with scheduler("synchronous"):
                source.for_zipped_chunks(seen.append, target, source_size, target_size)
        except AlignmentError:
            assert not corresponds, "refused without need"
            assert seen == []
            return
        assert corresponds, "chunks that do not correspond were paired"
        seen.sort(key=lambda pair: pair[2])
        for number, boxes in enumerate(expected):
            views = [pair[number] for pair in seen]
            assert [(view.global_offset, view.size) for view in views] == boxes
