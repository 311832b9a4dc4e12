"""Streams: only a window is in flight, whatever happens; and what runs over chunks tell.

Nothing here starts a cluster of processes; a client of threads of this process stands for one.
"""

from __future__ import annotations

import importlib
import multiprocessing
import os
import sys
import threading
import time
import tracemalloc
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import (
    BrokenExecutor,
    Executor,
    Future,
    ProcessPoolExecutor,
    ThreadPoolExecutor,
)
from concurrent.futures.process import BrokenProcessPool
from contextlib import closing
from itertools import chain, count, islice
from pathlib import Path
from typing import Any

import cloudpickle
import dask
import dask.array as da
import numpy as np
import pytest
from distributed import Client
from hypothesis import given, settings
from hypothesis import strategies as st

import wkdask
from wkdask.errors import ArgumentError, ChunkErrors, ClusterError, WkdaskError, WorkerLostError
from wkdask.geometry import BoundingBox
from wkdask.runtime import blocks as streaming
from wkdask.runtime.blocks import stream_blocks
from wkdask.runtime.cluster import WINDOW, launch_calls, on_cluster
from wkdask.runtime.pickling import ByValue, Portable
from wkdask.runtime.queues import WAITING, Items, Outcome, on_pool
from wkdask.runtime.stream import stream_calls
from wkdask.storage.header import VolumeHeader

THREADS = 3


class Counted:
    """An iterator of numbers that knows how far it was advanced."""

    def __init__(self, items: Iterable[int]) -> None:
        self._items = iter(items)
        self.taken = 0

    def __iter__(self) -> Iterator[int]:
        return self

    def __next__(self) -> int:
        item = next(self._items)
        self.taken += 1
        return item


class ByHand(Executor):
    """Calls wait until somebody runs, fails or breaks them."""

    def __init__(self, workers: int = THREADS) -> None:
        self._max_workers = workers
        self.waiting: list[tuple[Future[Any], Callable[[], Any]]] = []

    def submit(self, function: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        future: Future[Any] = Future()
        self.waiting.append((future, lambda: function(*args, **kwargs)))
        return future


class AtOnce(Executor):
    """Runs calls within `submit`, and notes how many were submitted."""

    def __init__(self, workers: int = THREADS) -> None:
        self._max_workers = workers
        self.submitted = 0

    def submit(self, function: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        self.submitted += 1
        future: Future[Any] = Future()
        try:
            future.set_result(function(*args, **kwargs))
        except BaseException as error:
            future.set_exception(error)
        return future


@pytest.fixture(scope="module")
def client() -> Iterator[Client]:
    """A cluster of four threads in this process, which is not the active client."""
    with Client(
        processes=False,
        n_workers=2,
        threads_per_worker=2,
        dashboard_address="127.0.0.1:0",
        memory_limit=0,
        set_as_default=False,
    ) as client:
        yield client


@pytest.fixture(scope="module")
def processes() -> Iterator[ProcessPoolExecutor]:
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        # The process begins here, with the path as it is before any test changes it.
        pool.submit(int).result()
        yield pool


@pytest.fixture(scope="module")
def threads() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(THREADS) as pool:
        yield pool


@pytest.fixture(params=["threads", "home-made", "processes", "client"])
def executor(request: pytest.FixtureRequest) -> Any:
    """What runs calls; all kinds that there are."""
    return AtOnce() if request.param == "home-made" else request.getfixturevalue(request.param)


@pytest.fixture(params=["threads", "home-made", "client"])
def here(request: pytest.FixtureRequest) -> Any:
    """What runs calls in this process, so that they can be counted."""
    return AtOnce() if request.param == "home-made" else request.getfixturevalue(request.param)


def values(outcomes: Iterable[Outcome]) -> dict[Any, Any]:
    return {outcome.item: outcome.error or outcome.value for outcome in outcomes}


def calls(call: Callable[[Any], Any], items: Iterable[Any], executor: Any, **options: Any) -> Any:
    return stream_calls(call, items, executor, name="test", **options)


def wait_until(condition: Callable[[], bool], seconds: float = 10) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.005)


# --- what comes out ---------------------------------------------------------------------------


class TestCalls:
    @pytest.mark.parametrize("size", [0, 1, 2, 30])
    def test_each_item_once(self, executor: Any, size: int) -> None:
        found = list(calls(lambda i: i * 10, range(size), executor))
        assert sorted(outcome.item for outcome in found) == [*range(size)]
        assert all(outcome.value == outcome.item * 10 for outcome in found)
        assert all(outcome.error is None for outcome in found)

    def test_errors_are_outcomes(self, executor: Any) -> None:
        found = values(calls(lambda i: 6 // i, [1, 0, 3], executor))
        assert (found[1], found[3]) == (6, 2)
        assert isinstance(found[0], ZeroDivisionError)
        trace = found[0].__traceback__
        while trace.tb_next:
            trace = trace.tb_next
        assert trace.tb_frame.f_code.co_name == "<lambda>"  # the line that failed

    def test_notes_travel(self, executor: Any) -> None:
        def work(i: int) -> None:
            error = ValueError("no")
            error.add_note("in the kitchen")
            raise error

        [outcome] = calls(work, [1], executor)
        assert outcome.error.__notes__ == ["in the kitchen"]

    def test_closures_travel(self, executor: Any) -> None:
        number, table = 5, {"a": [1, 2]}

        def helper(i: int) -> int:
            return i + number

        assert values(calls(lambda i: helper(i) + table["a"][1], [1], executor)) == {1: 8}

    def test_falsy_values_are_values(self, executor: Any) -> None:
        falsy = [None, 0, "", [], False]
        assert values(calls(lambda i: falsy[i], range(5), executor)) == dict(enumerate(falsy))

    def test_function_that_nobody_can_pickle(self, client: Client) -> None:
        lock = threading.Lock()
        for executor in (AtOnce(), client):
            with pytest.raises(Exception, match="pickle"):
                list(calls(lambda i: lock, [1], executor))

    def test_threads_need_not_pickle(self, threads: Executor) -> None:
        lock = threading.Lock()
        assert values(calls(lambda i: lock, [1], threads)) == {1: lock}

    def test_error_that_nobody_can_pickle(self, executor: Any) -> None:
        def work(i: int) -> None:
            import threading

            class LockError(Exception):
                def __init__(self) -> None:
                    super().__init__("locked in")
                    self.lock = threading.Lock()

            error = LockError()
            error.add_note("by accident")
            raise error

        [outcome] = calls(work, [1], executor)
        assert "locked in" in repr(outcome.error)
        assert outcome.error.__notes__ == ["by accident"]
        assert values(calls(lambda i: i, [1], executor)) == {1: 1}  # it still works

    def test_error_that_nobody_can_load(self, executor: Any) -> None:
        def work(i: int) -> None:
            class TwoError(Exception):
                def __init__(self, what: str, why: str) -> None:
                    super().__init__(f"{what}: {why}")

            raise TwoError("a", "b")

        [outcome] = calls(work, [1], executor)
        assert "a: b" in str(outcome.error)
        assert values(calls(lambda i: i, [1], executor)) == {1: 1}

    def test_result_that_nobody_can_pickle(self, processes: Executor) -> None:
        def work(i: int) -> Any:
            import threading

            return threading.Lock() if i else i

        found = values(calls(work, [0, 1, 0], processes))
        assert found[0] == 0
        assert "pickle" in str(found[1])

    def test_not_an_executor(self) -> None:
        view = wkdask.View("nowhere", VolumeHeader("uint8").to_wkw(), (8, 8, 8))
        with pytest.raises(ArgumentError, match="executor is 4"):
            view.for_each_chunk(print, executor=4)  # type: ignore[arg-type]


class TestByValue:
    def test_is_itself_here_and_a_copy_elsewhere(self) -> None:
        seen: list[int] = []
        call = ByValue(seen.append)
        call(1)
        cloudpickle.loads(cloudpickle.dumps(call))(2)
        assert seen == [1]

    @pytest.mark.parametrize(
        "kind", [pytest.param("processes", marks=pytest.mark.slow), "threads", "client"]
    )
    def test_lazy_runs_compose(
        self, mag: wkdask.MagView, kind: str, request: pytest.FixtureRequest
    ) -> None:
        """Closures reach a pool that dask gives tasks as they are."""

        def fill(chunk: Any) -> None:
            import numpy as np

            chunk[0].write(np.full(chunk[0].shape, 7, np.uint16))

        executor = request.getfixturevalue(kind)
        lazy = mag.for_each_chunk(fill, compute=False)
        receipts, number = dask.compute(lazy, da.ones(10, chunks=5).sum(), scheduler=executor)
        assert (receipts.shape, number) == ((3, 2, 1), 10)
        assert (mag.get_view().read() == 7).all()


class TestMissingModules:
    """A function of a module that a worker can't import."""

    @pytest.fixture
    def work(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
        (tmp_path / "only_here.py").write_text("def work(i): return i")
        monkeypatch.syspath_prepend(str(tmp_path))
        yield importlib.import_module("only_here").work
        sys.modules.pop("only_here", None)

    def test_is_an_error_of_the_call(self, work: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        travelling = cloudpickle.dumps(Portable(work))
        assert cloudpickle.loads(travelling)(3) == 3
        monkeypatch.delitem(sys.modules, "only_here")
        monkeypatch.setattr(sys, "path", sys.path[1:])
        streaming_again = cloudpickle.loads(travelling)  # does not fail
        wkdask.runtime.pickling._loaded.cache_clear()
        with pytest.raises(ModuleNotFoundError, match="only_here"):
            streaming_again(3)

    def test_in_a_process(
        self, work: Any, processes: Executor, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        [outcome] = calls(work, [1], processes)
        assert isinstance(outcome.error, ModuleNotFoundError)
        assert values(calls(lambda i: i, [1], processes)) == {1: 1}  # it still lives


# --- retries ----------------------------------------------------------------------------------


class TestRetries:
    @pytest.mark.parametrize("retries", [0, 1, 4])
    def test_exact_attempts(self, here: Any, retries: int) -> None:
        tried: Counter[int] = Counter()
        lock = threading.Lock()
        box = {"tried": tried, "lock": lock}
        key = register(box)

        def work(i: int) -> int:
            with registered(key)["lock"]:
                registered(key)["tried"][i] += 1
            if i % 3 == 0:
                raise ValueError(f"never {i}")
            return i

        found = list(calls(work, range(9), here, retries=retries))
        assert tried == {i: retries + 1 if i % 3 == 0 else 1 for i in range(9)}
        assert sorted(outcome.item for outcome in found) == [*range(9)]
        assert {outcome.item for outcome in found if outcome.error} == {0, 3, 6}

    @pytest.mark.parametrize(
        ("failures", "retries", "ok"), [(1, 1, True), (2, 1, False), (2, 3, True), (0, 3, True)]
    )
    def test_success_after_failures(self, here: Any, failures: int, retries: int, ok: bool) -> None:
        left: dict[int, int] = dict.fromkeys(range(6), failures)
        key = register(left)

        def work(i: int) -> int:
            registered(key)[i] -= 1
            if registered(key)[i] >= 0:
                raise ValueError("not yet")
            return i

        found = values(calls(work, range(6), here, retries=retries))
        if ok:
            assert found == {i: i for i in range(6)}
        else:
            assert {str(error) for error in found.values()} == {"not yet"}

    def test_memory_is_that_of_failures(self) -> None:
        source = Items(range(1000), 2)
        for item in islice(source, 500):
            assert list(source.judged(Outcome(item, value=1)))
        assert not source._tried

    def test_lost_workers_are_not_tried_again(self) -> None:
        source = Items([7], 5)
        item = next(source)
        assert list(source.judged(Outcome(item, error=WorkerLostError("gone"))))
        with pytest.raises(StopIteration):
            next(source)

    @given(
        failing=st.dictionaries(st.integers(0, 20), st.integers(1, 5)),
        retries=st.integers(0, 4),
        workers=st.integers(1, 5),
    )
    def test_any_pattern(self, failing: dict[int, int], retries: int, workers: int) -> None:
        left, tried = dict(failing), Counter[int]()
        box = register((left, tried))

        def work(i: int) -> int:
            left, tried = registered(box)
            tried[i] += 1
            if left.get(i, 0):
                left[i] -= 1
                raise ValueError(i)
            return i

        found = list(on_pool(work, range(21), AtOnce(workers), retries=retries))
        assert sorted(outcome.item for outcome in found) == [*range(21)]
        bad = {outcome.item for outcome in found if outcome.error}
        assert bad == {i for i, times in failing.items() if times > retries}
        assert tried == {i: min(failing.get(i, 0), retries) + 1 for i in range(21)}


_REGISTERED: list[Any] = []


def register(value: Any) -> int:
    """Keep something that functions find in this process, though they travel by value."""
    _REGISTERED.append(value)
    holder = sys.modules.setdefault("wkdask_test_registry", type(sys)("wkdask_test_registry"))
    holder.values = _REGISTERED  # type: ignore[attr-defined]
    return len(_REGISTERED) - 1


class _Registered:
    """`registered(key)`, which travels as an import of a module of this process."""

    def __call__(self, key: int) -> Any:
        return sys.modules["wkdask_test_registry"].values[key]  # type: ignore[attr-defined]


registered = _Registered()
cloudpickle.register_pickle_by_value(sys.modules[__name__])


# --- windows ----------------------------------------------------------------------------------


class TestPoolWindow:
    @pytest.mark.parametrize("workers", [1, 2, 7])
    def test_never_more_than_workers_ahead(self, workers: int) -> None:
        items, ended = Counted(count()), 0
        with closing(on_pool(lambda i: i, items, AtOnce(workers))) as stream:
            assert items.taken == 0  # nothing happens before somebody asks
            for _ in islice(stream, 200):
                ended += 1
                assert items.taken - ended < workers
        assert items.taken <= 200 + workers

    def test_never_more_at_once_than_workers(self, threads: Executor) -> None:
        running, most, lock = 0, 0, threading.Lock()

        def work(i: int) -> None:
            nonlocal running, most
            with lock:
                running += 1
                most = max(most, running)
            time.sleep(0.001)
            with lock:
                running -= 1

        assert len(list(on_pool(work, range(60), threads))) == 60
        assert 1 < most <= THREADS

    def test_close_cancels_and_waits(self, threads: Executor) -> None:
        started, ended, go = [], [], threading.Event()

        def work(i: int) -> None:
            started.append(i)
            if i:
                go.wait(10)
                time.sleep(0.02)
            ended.append(i)

        stream = on_pool(work, Counted(count()), threads)
        next(stream)
        wait_until(lambda: len(started) == THREADS)
        threading.Timer(0.05, go.set).start()
        stream.close()
        assert sorted(started) == sorted(ended)  # what ran is over
        before = len(started)
        time.sleep(0.03)
        assert len(started) == before  # and nothing begins

    def test_close_cancels_what_waits(self) -> None:
        pool = ByHand(4)
        stream = on_pool(lambda i: i, Counted(count()), pool)
        threading.Timer(
            0.01, lambda: pool.waiting[0][0].set_result(cloudpickle.dumps((1, None, None)))
        ).start()
        next(stream)
        stream.close()
        assert [future.cancelled() for future, _ in pool.waiting] == [False, True, True, True]

    @pytest.mark.parametrize("after", [0, 1, 5, 50])
    def test_items_that_raise(self, here: Any, after: int) -> None:
        def items() -> Iterator[int]:
            yield from range(after)
            raise LookupError("no more")

        with pytest.raises(LookupError, match="no more"):
            list(calls(lambda i: i, items(), here))
        assert values(calls(lambda i: i, [1], here)) == {1: 1}

    def test_base_exceptions_end_it(self, threads: Executor) -> None:
        def work(i: int) -> None:
            raise SystemExit(3)

        with pytest.raises(SystemExit):
            list(on_pool(work, range(5), threads))


class Tree:
    """Pairs `(level, i)` of a binary tree, of which each is ready when both below it are done."""

    def __init__(self, levels: int) -> None:
        self.levels = levels
        self.ready = deque((0, i) for i in range(2 ** (levels - 1)))
        self.done: set[tuple[int, int]] = set()

    def items(self) -> Iterator[Any]:
        while len(self.done) < 2**self.levels - 1:
            yield self.ready.popleft() if self.ready else WAITING

    def note(self, level: int, i: int) -> None:
        assert (level, i) not in self.done
        self.done.add((level, i))
        if level < self.levels - 1 and (level, i ^ 1) in self.done:
            self.ready.append((level + 1, i // 2))


class TestWaiting:
    """Items that depend on what became of others."""

    @pytest.mark.parametrize("levels", [1, 2, 6])
    def test_a_tree(self, executor: Any, levels: int) -> None:
        tree = Tree(levels)
        for outcome in calls(lambda item: item, tree.items(), executor):
            assert outcome.value == outcome.item
            tree.note(*outcome.item)
        assert len(tree.done) == 2**levels - 1

    def test_no_item_before_those_it_needs(self, here: Any) -> None:
        ended: set[tuple[int, int]] = set()
        key = register(ended)

        def work(item: tuple[int, int]) -> None:
            level, i = item
            below = {(level - 1, 2 * i), (level - 1, 2 * i + 1)} if level else set()
            assert below <= registered(key)
            time.sleep(0.001)
            registered(key).add(item)

        tree = Tree(6)
        for outcome in calls(work, tree.items(), here):
            assert outcome.error is None
            tree.note(*outcome.item)
        assert len(ended) == 63

    @given(seed=st.integers(0, 9), workers=st.integers(1, 5), levels=st.integers(1, 5))
    def test_with_retries(self, seed: int, workers: int, levels: int) -> None:
        """What failed is tried again, while others wait for it."""
        tree, tried = Tree(levels), Counter[Any]()
        key = register(tried)

        def work(item: tuple[int, int]) -> None:
            registered(key)[item] += 1
            if registered(key)[item] <= (sum(item) + seed) % 3:
                raise ValueError("not yet")

        for outcome in on_pool(work, tree.items(), AtOnce(workers), retries=2):
            assert outcome.error is None
            tree.note(*outcome.item)
        assert len(tree.done) == 2**levels - 1
        assert tried == {item: (sum(item) + seed) % 3 + 1 for item in tree.done}

    def test_asked_once_per_outcome(self) -> None:
        """An iterator that waits is not asked again and again."""
        asked, ended = 0, 0

        def items() -> Iterator[Any]:
            nonlocal asked
            yield from range(3)
            while ended < 3:
                asked += 1
                yield WAITING
            yield 3

        for _ in on_pool(lambda i: i, items(), AtOnce(4)):
            ended += 1
        assert (asked, ended) == (3, 4)

    def test_order_is_kept(self) -> None:
        """Items that got ready go behind those that were ready before."""
        tree = Tree(4)
        seen: list[Any] = []
        for outcome in on_pool(lambda item: item, tree.items(), AtOnce(1)):
            seen.append(outcome.item)
            tree.note(*outcome.item)
        assert seen == [(level, i) for level in range(4) for i in range(2 ** (3 - level))]

    @pytest.mark.parametrize("before", [0, 1, 20])
    def test_for_nothing(self, here: Any, before: int) -> None:
        items = chain(range(before), [WAITING] * 100)
        stream = calls(lambda i: i, items, here)
        assert len(list(islice(stream, before))) == before
        with pytest.raises(RuntimeError, match="none is in flight"):
            next(stream)
        assert values(calls(lambda i: i, [1], here)) == {1: 1}


class TestLostPools:
    def test_a_process_that_dies(self) -> None:
        def work(i: int) -> None:
            os._exit(3)

        spawn = multiprocessing.get_context("spawn")
        with (
            ProcessPoolExecutor(1, mp_context=spawn) as pool,
            pytest.raises(WorkerLostError, match="a new pool"),
        ):
            list(on_pool(work, count(), pool))

    def test_a_pool_that_is_broken_already(self) -> None:
        class Broken(Executor):
            def submit(self, *call: Any, **options: Any) -> Any:
                raise BrokenProcessPool("it is dead")

        with pytest.raises(WorkerLostError, match="it is dead"):
            list(on_pool(print, count(), Broken()))

    @pytest.mark.parametrize("retries", [0, 3])
    def test_a_pool_that_breaks(self, retries: int) -> None:
        class Breaking(AtOnce):
            def submit(self, function: Any, /, *args: Any, **kwargs: Any) -> Future[Any]:
                future = super().submit(function, *args, **kwargs)
                if self.submitted < 5:
                    return future
                broken: Future[Any] = Future()
                broken.set_exception(BrokenExecutor("out of memory"))
                return broken

        pool, items = Breaking(), Counted(count())
        with pytest.raises(WorkerLostError, match="out of memory"):
            list(on_pool(lambda i: i, items, pool, retries=retries))
        assert items.taken < 5 + THREADS  # no retry brings a pool back


class TestClusterWindow:
    @pytest.mark.parametrize("least", [8, 32])
    def test_never_more_in_flight(self, client: Client, least: int) -> None:
        sent: list[int] = []
        launch = launch_calls(client, lambda i: i, f"window-{least}")

        def counted(items: list[Any]) -> list[Any]:
            sent.append(len(items))
            return launch(items)

        items, ended = Counted(range(4 * least + 3)), 0
        for _ in on_cluster(client, counted, items, least=least):
            ended += 1
            assert items.taken == sum(sent)
        assert ended == sum(sent) == 4 * least + 3
        assert max(sent) <= least
        # A new launch is worth its message.
        assert len(sent) <= 8 * 4 + 2

    def test_in_flight_by_the_iterator(self, client: Client) -> None:
        """At each moment at most a window was taken, and its results not yet seen or in a batch."""
        most = 0
        launch = launch_calls(client, lambda i: i, "flying")

        def counted(items: list[Any]) -> list[Any]:
            nonlocal most
            most = max(most, sum(not future.done() for future in every) + len(items))
            futures = launch(items)
            every.extend(futures)
            return futures

        every: list[Any] = []
        assert len(list(on_cluster(client, counted, range(100), least=16))) == 100
        assert 8 < most <= 16

    def test_window_of_a_large_cluster(self, client: Client) -> None:
        """Each thread has a task to go on with, however small the window was to be."""
        threads = sum(client.nthreads().values())
        sent: list[int] = []
        launch = launch_calls(client, lambda i: i, "large")

        def counted(items: list[Any]) -> list[Any]:
            sent.append(len(items))
            return launch(items)

        list(on_cluster(client, counted, range(50), least=1))
        assert sent[0] == 2 * threads

    def test_close_cancels_and_waits(self, client: Client) -> None:
        state: dict[str, Any] = {"started": [], "ended": [], "go": threading.Event()}
        key = register(state)

        def work(i: int) -> None:
            state = registered(key)
            state["started"].append(i)
            if i:
                state["go"].wait(10)
            state["ended"].append(i)

        launch = launch_calls(client, work, "closed")
        items = Counted(count())
        stream = on_cluster(client, launch, items, least=16)
        next(stream)
        wait_until(lambda: len(state["started"]) >= 5)
        threading.Timer(0.1, state["go"].set).start()
        stream.close()
        assert items.taken <= 32
        wait_until(lambda: not client.processing() or not any(client.processing().values()))
        assert sorted(state["ended"]) == sorted(state["started"])
        before = len(state["started"])
        time.sleep(0.05)
        assert len(state["started"]) == before < items.taken

    def test_no_worker_ever(self) -> None:
        options = {"dashboard_address": "127.0.0.1:0", "set_as_default": False}
        with (
            Client(processes=False, n_workers=0, **options) as empty,
            dask.config.set({"wkdask.no-workers-timeout": "2s"}),
            pytest.warns(RuntimeWarning, match="no worker; waiting"),
            pytest.raises(ClusterError, match=r"had no worker for [1-9] s.*no-workers-timeout"),
        ):
            list(calls(lambda i: i, range(9), empty))

    def test_workers_that_come_late(self) -> None:
        options = {"dashboard_address": "127.0.0.1:0", "set_as_default": False}
        with (
            Client(processes=False, n_workers=0, **options) as late,
            dask.config.set({"wkdask.no-workers-timeout": None}),
        ):
            timer = threading.Timer(0.3, late.cluster.scale, [1])
            timer.start()
            assert len(list(calls(lambda i: i, range(9), late))) == 9
            timer.join()

    def test_results_are_let_go(self, client: Client) -> None:
        """Workers hold no result of what was seen."""
        launch = launch_calls(client, lambda i: np.zeros(1000), "held")
        for _ in on_cluster(client, launch, range(60), least=8):
            pass
        wait_until(
            lambda: not any("held" in str(client.has_what()[at]) for at in client.has_what())
        )


# --- blocks -----------------------------------------------------------------------------------


def lazy(blocks: int = 40, seed: int = 0) -> da.Array:
    x = np.random.default_rng(seed).integers(0, 100, blocks * 2)
    return da.from_array(x, chunks=2)


ARRAYS: dict[str, tuple[Callable[[], da.Array], bool]] = {
    "as it is": (lazy, True),
    "chunk by chunk": (lambda: (lazy() * 2 + 1).astype("f4"), True),
    "two arrays": (lambda: lazy() + lazy(seed=1), True),
    "a slice": (lambda: lazy()[3:-3], True),
    "reversed": (lambda: lazy()[::-1], True),
    "rechunked": (lambda: lazy(60).rechunk(3), True),
    "a window": (lambda: da.overlap.overlap(lazy(), 1, "none"), True),
    "less its mean": (lambda: lazy() - lazy().mean(), False),
    "cumulated": (lambda: lazy().cumsum(0), False),
    "sorted by the last": (lambda: lazy() + lazy()[-1:] + lazy().max(), False),
    "in one block": (lambda: lazy().rechunk(-1), True),
    "empty": (lambda: da.zeros(0), True),
}


def positions(array: da.Array) -> list[tuple[int, ...]]:
    return [*np.ndindex(*array.numblocks)]


@pytest.fixture
def small_windows(monkeypatch: pytest.MonkeyPatch) -> int:
    """Windows of four blocks."""
    monkeypatch.setattr(streaming, "WINDOW", 4)
    return 4


class TestBlocks:
    @pytest.mark.parametrize("name", ARRAYS)
    @pytest.mark.parametrize("kind", ["threads", "synchronous", "client"])
    @pytest.mark.usefixtures("small_windows")
    def test_windows_give_what_compute_gives(
        self, name: str, kind: str, request: pytest.FixtureRequest
    ) -> None:
        array = ARRAYS[name][0]()
        executor = None if kind == "synchronous" else request.getfixturevalue(kind)
        with dask.config.set(scheduler="synchronous"):
            found = values(stream_blocks(array, positions(array), executor))
            assert set(found) == set(positions(array))
            for at, value in found.items():
                np.testing.assert_array_equal(value, array.blocks[at].compute())

    @settings(max_examples=25, deadline=None)
    @given(data=st.data())
    def test_any_blocks_of_any_array(self, data: st.DataObject) -> None:
        shape = data.draw(st.tuples(st.integers(1, 9), st.integers(1, 9)))
        x = np.arange(np.prod(shape)).reshape(shape)
        array = da.from_array(x, chunks=data.draw(st.integers(1, 4)))
        array = array.rechunk(data.draw(st.integers(1, 4))) + 1
        wanted = data.draw(st.lists(st.sampled_from(positions(array)), unique=True))
        old = streaming.WINDOW
        streaming.WINDOW = data.draw(st.integers(1, 8))
        try:
            with dask.config.set(scheduler="synchronous"):
                found = list(stream_blocks(array, iter(wanted)))
        finally:
            streaming.WINDOW = old
        assert [outcome.item for outcome in found] == wanted
        for outcome in found:
            assert_same_block(outcome, x + 1, array)

    @pytest.mark.parametrize(
        "name", [name for name in ARRAYS if name not in ("empty", "in one block")]
    )
    def test_what_is_shared_is_computed_once(
        self, name: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        make, is_local = ARRAYS[name]
        array = make()
        monkeypatch.setattr(streaming, "WINDOW", 4)
        windows = positions(array)[:4], streaming._last_blocks(array)
        assert all(streaming._is_local(array, window) for window in windows) == is_local

    @pytest.mark.parametrize(
        "name", [name for name in ARRAYS if name not in ("empty", "in one block")]
    )
    def test_items_are_taken_as_needed(self, name: str, small_windows: int) -> None:
        make, is_local = ARRAYS[name]
        array = make()
        items = Counted(positions(array))  # type: ignore[arg-type]
        with (
            dask.config.set(scheduler="synchronous"),
            closing(stream_blocks(array, items)) as stream,  # type: ignore[arg-type]
        ):
            next(stream)
        assert items.taken == (small_windows if is_local else array.npartitions)

    def test_blocks_are_read_once(self, small_windows: int) -> None:
        """However many windows: each source block is computed once where none is shared."""
        seen: Counter[Any] = Counter()

        def source(block: Any, block_info: Any = None) -> Any:
            if block_info:
                seen[block_info[None]["chunk-location"]] += 1
            return block

        array = lazy().map_blocks(source, dtype=int, meta=np.empty(0, int))
        shifted = array - array.mean()
        for each in (array + 1, shifted):
            seen.clear()
            with dask.config.set(scheduler="synchronous"):
                assert len(list(stream_blocks(each, positions(each)))) == 40
            assert set(seen.values()) == {1}
            assert len(seen) == 40

    @pytest.mark.parametrize("name", ARRAYS)
    def test_windows_agree_about_keys(self, name: str) -> None:
        """A cluster knows tasks by their keys, and the windows of an array share some."""
        array = ARRAYS[name][0]()
        known: dict[Any, Any] = {}
        every = positions(array)
        for start in range(0, len(every), 3):
            fake = GraphOnly()
            window = every[start : start + 3]
            streaming._launch_blocks(fake, array, 0, window)  # type: ignore[arg-type]
            assert set(fake.keys) == {(array.name, *at) for at in window}
            for key, task in fake.graph.items():
                assert dask.tokenize.tokenize(known.setdefault(key, task)) == (
                    dask.tokenize.tokenize(task)
                )

    def test_errors_are_raised(self, client: Client) -> None:
        def fail(block: Any) -> Any:
            if block.size and block[0] == 6:
                raise ValueError("no six")
            return block

        array = da.arange(20, chunks=2).map_blocks(fail, dtype=int, meta=np.empty(0, int))
        with pytest.raises(ValueError, match="no six"), dask.config.set(scheduler="synchronous"):
            list(stream_blocks(array, positions(array)))
        found = values(stream_blocks(array, positions(array), client))
        assert [at for at, value in found.items() if isinstance(value, Exception)] == [(3,)]

    @pytest.mark.parametrize(("retries", "ok"), [(0, False), (2, True)])
    @pytest.mark.parametrize("kind", ["synchronous", "client"])
    def test_retries(
        self, request: pytest.FixtureRequest, kind: str, retries: int, ok: bool
    ) -> None:
        key = register(Counter())

        def fail(block: Any) -> Any:
            if block.size and block[0] == 6:
                registered(key)["tried"] += 1
                if registered(key)["tried"] <= 2:
                    raise ValueError("not yet")
            return block

        array = da.arange(20, chunks=2).map_blocks(fail, dtype=int, meta=np.empty(0, int))
        executor = None if kind == "synchronous" else request.getfixturevalue(kind)
        with dask.config.set(scheduler="synchronous"):
            stream = stream_blocks(array, positions(array), executor, retries=retries)
            if kind == "client":
                errors = [outcome for outcome in stream if outcome.error]
                assert len(errors) == (not ok)
            elif ok:
                assert len(list(stream)) == 10
            else:
                with pytest.raises(ValueError, match="not yet"):
                    list(stream)
        assert _REGISTERED[key]["tried"] == retries + 1

    @pytest.mark.parametrize("scheduler", ["synchronous", "threads"])
    def test_what_is_done_is_not_tried_again(self, scheduler: str) -> None:
        key = register(Counter())
        lock = threading.Lock()

        def count_it(block: Any) -> Any:
            if block.size:
                with lock:
                    registered(key)[int(block[0])] += 1
                    tried = registered(key)[int(block[0])]
                if block[0] == 18 and tried == 1:
                    time.sleep(0.1)  # the others are over by then
                    raise ValueError("not yet")
            return block

        array = da.arange(20, chunks=2).map_blocks(count_it, dtype=int, meta=np.empty(0, int))
        with dask.config.set(scheduler=scheduler):
            found = list(stream_blocks(array, positions(array), retries=1))
        assert [outcome.item for outcome in found] == positions(array)
        for outcome in found:
            assert_same_block(outcome, np.arange(20), array)
        again = [number for number, times in registered(key).items() if times > 1]
        assert again == [18]


def assert_same_block(outcome: Outcome, whole: Any, array: da.Array) -> None:
    starts = [np.cumsum([0, *lengths]) for lengths in array.chunks]
    at = tuple(slice(start[i], start[i + 1]) for start, i in zip(starts, outcome.item, strict=True))
    np.testing.assert_array_equal(outcome.value, whole[at])


class GraphOnly:
    """A client that keeps what it is given."""

    def get(self, graph: Any, keys: list[Any], sync: bool, retries: int) -> list[Any]:
        assert (sync, retries) == (False, 0)
        self.graph, self.keys = dict(graph), keys
        return []


# --- runs over chunks -------------------------------------------------------------------------


@pytest.fixture
def mag(tissue: wkdask.Dataset) -> wkdask.MagView:
    """3 x 2 x 1 files of edge 8, LZ4, uint16, two channels."""
    box = BoundingBox((0, 0, 0), (24, 16, 8))
    layer = tissue.add_layer("color", "color", "uint16", 2, box)
    return layer.add_mag(1, 4, 2)


def huge(edge: int, **options: Any) -> wkdask.View:
    """A view of `edge` x `edge` x `edge` files, of which none is there."""
    header = VolumeHeader("uint8", block_edge=4, blocks_per_file_edge=1).to_wkw()
    return wkdask.View("nowhere", header, (4 * edge,) * 3, read_only=True, **options)


class TestManyChunks:
    def test_first_task_of_a_million(self) -> None:
        """The list of chunks is not made before the first one runs."""
        view, pool = huge(100), AtOnce(2)

        def work(chunk: Any) -> None:
            raise InterruptedError("enough")

        with pytest.raises(InterruptedError) as caught:
            view.for_each_chunk(work, executor=pool)
        assert pool.submitted <= 2
        assert caught.value.__notes__ == ["in chunk 0, x [0, 4), y [0, 4), z [0, 4)"]

    def test_first_task_of_a_million_on_a_cluster(
        self, client: Client, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        launched: list[int] = []
        map_calls = client.map

        def counted(function: Any, items: list[Any], **options: Any) -> Any:
            launched.append(len(items))
            return map_calls(function, items, **options)

        monkeypatch.setattr(client, "map", counted)

        def work(chunk: Any) -> None:
            raise InterruptedError("enough")

        with pytest.raises(InterruptedError):
            huge(100).for_each_chunk(work, executor=client)
        assert 0 < sum(launched) <= 2 * WINDOW

    @pytest.mark.parametrize("edge", [16, pytest.param(47, marks=pytest.mark.slow)])
    def test_memory_of_many(self, edge: int) -> None:
        """What remains of a chunk is a few counts."""
        view = huge(edge)
        with dask.config.set(scheduler="synchronous"):
            view.for_each_chunk(lambda chunk: None, (4, 4 * edge, 4 * edge))
            tracemalloc.start()
            try:
                report = view.for_each_chunk(lambda chunk: None)
                _, peak = tracemalloc.get_traced_memory()
            finally:
                tracemalloc.stop()
        assert report.done == edge**3
        # Other threads of this process take some of it.
        assert peak < 4 * 2**20


class TestReports:
    @pytest.mark.parametrize("kind", ["threads", "home-made", "processes", "client", "none"])
    def test_counts(self, mag: wkdask.MagView, kind: str, request: pytest.FixtureRequest) -> None:
        executor = {"home-made": AtOnce(), "none": None}.get(kind)
        if kind not in ("home-made", "none"):
            executor = request.getfixturevalue(kind)

        def fill(chunk: Any) -> None:
            import numpy as np

            view, index = chunk
            voxels = np.random.default_rng(index).integers(1, 999, view.shape, np.uint16)
            if index:
                view.write(voxels)

        started = time.perf_counter()
        report = mag.for_each_chunk(fill, executor=executor, progress=False)
        assert (report.chunks, report.done, report.skipped, report.failures) == (6, 6, 0, ())
        assert report.voxels == 5 * 2 * 8**3
        assert report.size_bytes == sum(size for _, size in mag.volume.files()) > 0
        assert 0 < report.seconds <= time.perf_counter() - started
        assert report.ok

    @pytest.mark.parametrize("kind", ["threads", "none", "processes", "client"])
    def test_store_counts(
        self, mag: wkdask.MagView, kind: str, request: pytest.FixtureRequest
    ) -> None:
        executor = None if kind == "none" else request.getfixturevalue(kind)
        x = np.random.default_rng(0).integers(1, 999, mag.shape, np.uint16)
        report = mag.store(da.from_array(x, chunks=(2, 8, 8, 8)), executor=executor)
        assert (report.chunks, report.done, report.voxels) == (6, 6, x.size)
        assert report.size_bytes == sum(size for _, size in mag.volume.files())
        np.testing.assert_array_equal(mag.get_view().read(), x)

    @pytest.mark.parametrize(
        ("block_type", "size_bytes"),
        [("raw", 4 * 4 * 4), ("lz4", None)],  # a patch; a whole file
    )
    def test_bytes_of_parts(
        self, tissue: wkdask.Dataset, block_type: Any, size_bytes: int | None
    ) -> None:
        box = BoundingBox((0, 0, 0), (4, 4, 4))
        mag = tissue.add_layer("a", "color", "uint8", 1, box).add_mag(1, 4, 2, block_type)
        report = mag.store(np.ones((4, 4, 4), np.uint8))
        [(_, on_disk)] = mag.volume.files()
        assert report.voxels == 64
        assert report.size_bytes == (size_bytes or on_disk)

    @pytest.mark.parametrize("retries", [0, 2])
    def test_what_failed(self, mag: wkdask.MagView, here: Any, retries: int) -> None:
        key = register(Counter())

        def work(chunk: Any) -> None:
            view, index = chunk
            registered(key)[index] += 1
            if index in (1, 4):
                raise ValueError(f"no {index}")
            view.write(view.read() + 1)

        with pytest.raises(ChunkErrors, match="2 of 6 chunks failed") as caught:
            mag.for_each_chunk(work, executor=here, on_error="collect", retries=retries)
        report = caught.value.report
        assert (report.chunks, report.done, report.failed, report.ok) == (6, 4, 2, False)
        assert [failure.index for failure in report.failures] == [1, 4]
        assert [failure.box.topleft for failure in report.failures] == [(0, 8, 0), (16, 0, 0)]
        assert [str(failure.error) for failure in report.failures] == ["no 1", "no 4"]
        assert caught.value.exceptions == tuple(failure.error for failure in report.failures)
        for failure in report.failures:
            assert failure.error.__notes__ == [f"in chunk {failure.index}, {failure.box}"]
        assert report.voxels == 4 * 2 * 8**3  # of those that ended well
        tried = {index: retries + 1 if index in (1, 4) else 1 for index in range(6)}
        assert _REGISTERED[key] == tried
        assert "no 4" in str(report)

    def test_first_failure_ends_the_run(self, mag: wkdask.MagView) -> None:
        calls: list[int] = []

        def work(chunk: Any) -> None:
            calls.append(chunk[1])
            if chunk[1] == 2:
                raise WkdaskError("stop")

        with (
            dask.config.set(scheduler="synchronous"),
            pytest.raises(WkdaskError, match="stop") as caught,
        ):
            mag.for_each_chunk(work, retries=1)
        assert calls == [0, 1, 2, 2]
        assert len(caught.value.__notes__) == 1

    def test_success_after_a_failure_is_a_success(self, mag: wkdask.MagView, here: Any) -> None:
        key = register(Counter())

        def work(chunk: Any) -> None:
            view, index = chunk
            registered(key)[index] += 1
            view.write(np.full(view.shape, index + 1, np.uint16))
            if registered(key)[index] <= index % 3:
                raise ValueError("not yet")

        report = mag.for_each_chunk(work, executor=here, retries=2)
        assert (report.done, report.failed, report.ok) == (6, 0, True)
        assert report.voxels == 6 * 2 * 8**3  # what failed attempts wrote does not count
        assert _REGISTERED[key] == {index: index % 3 + 1 for index in range(6)}

    @pytest.mark.parametrize("retries", [-1, 1.5, "two"])
    def test_retries_that_make_no_sense(self, mag: wkdask.MagView, retries: Any) -> None:
        with pytest.raises(ArgumentError, match="retries"):
            mag.for_each_chunk(print, retries=retries)
