"""`wkdask.storage.claims`: who may use a mag directory, in one process, in several, after kills."""

from __future__ import annotations

import contextlib
import json
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from wkdask.errors import BusyError
from wkdask.storage import atomic, claims

HOLD = """
import sys, time
from wkdask.storage import claims
with getattr(claims, sys.argv[1])(sys.argv[2], *sys.argv[3:]):
    print("held", flush=True)
    time.sleep(100)
"""


@pytest.fixture
def mag(tmp_path: Path) -> Path:
    path = tmp_path / "color" / "1"
    path.mkdir(parents=True)
    return path


@contextlib.contextmanager
def holder(kind: str, mag: Path, *doing: str) -> Iterator[subprocess.Popen[str]]:
    """Run another process that has a claim."""
    command = [sys.executable, "-c", HOLD, kind, str(mag), *doing]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        try:
            yield process
        finally:
            process.kill()


def names(mag: Path) -> list[str]:
    return sorted(path.name for path in mag.parent.iterdir())


class TestOneProcess:
    @pytest.mark.parametrize(
        ("first", "second", "together"),
        [("whole", "whole", False), ("whole", "shared", False), ("shared", "whole", False),
         ("shared", "shared", True)],
    )  # fmt: skip
    def test_pairs(self, mag: Path, first: str, second: str, together: bool) -> None:
        def claim(kind: str) -> contextlib.AbstractContextManager[None]:
            path = str(mag)
            return claims.whole(path, "rechunked") if kind == "whole" else claims.shared(path)

        with claim(first):
            if together:
                with claim(second):
                    pass
            else:
                with pytest.raises(BusyError, match="now"), claim(second):
                    pass
        with claim(second):
            pass
        assert names(mag) == ["1"]

    def test_the_owner_is_named(self, mag: Path) -> None:
        with claims.whole(str(mag), "rechunked"):
            found = claims.owner_of(mag)
            assert found is not None
            assert (found.doing, found.pid) == ("rechunked", os.getpid())
            text = f"it is being rechunked by process {os.getpid()} of .* since 20.* UTC"
            with pytest.raises(BusyError, match=text), claims.whole(str(mag), "compressed"):
                pass
            with pytest.raises(BusyError, match=text), claims.shared(str(mag)):
                pass
        assert claims.owner_of(mag) is None

    def test_writers_are_said_to_be_there(self, mag: Path) -> None:
        with (
            claims.shared(str(mag)),
            pytest.raises(BusyError, match=r"can't be rechunked now: other runs write to it"),
            claims.whole(str(mag), "rechunked"),
        ):
            pass

    def test_a_missing_directory(self, mag: Path) -> None:
        other = mag.parent / "deep" / "2"
        with claims.shared(str(other)):
            assert not other.exists()
        with claims.whole(str(other), "made"):
            assert other.is_dir()
        assert not other.parent.exists()
        with claims.whole(str(other), "made"):
            (other / "file").touch()
        assert (other / "file").exists()

    def test_links_are_followed(self, mag: Path) -> None:
        link = mag.parent / "link"
        link.symlink_to(mag)
        with claims.whole(str(mag), "rechunked"):
            for claim in (claims.shared(str(link)), claims.whole(str(link), "compressed")):
                with pytest.raises(BusyError), claim:
                    pass

    def test_a_directory_that_takes_its_place(self, mag: Path) -> None:
        new = mag.parent / "new"
        new.mkdir()
        with claims.whole(str(mag), "rechunked"):
            assert atomic.try_exchange(str(new), str(mag))
            # The lock is that of the old directory; the file beside it still names the owner.
            assert claims.owner_of(mag) is not None
        with claims.whole(str(mag), "rechunked"):
            pass

    def test_a_file_of_a_user_is_no_claim(self, mag: Path) -> None:
        file = Path(f"{mag}{claims.CLAIM_SUFFIX}")
        file.write_text("mine")
        with pytest.raises(BusyError), claims.whole(str(mag), "rechunked"):
            pass
        assert file.read_text() == "mine"

    def test_where_nothing_can_be_written_beside(
        self, mag: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def refuse(path: str) -> None:
            raise PermissionError(13, "no", path)

        monkeypatch.setattr(atomic, "private", refuse)
        with claims.whole(str(mag), "rechunked"):
            assert names(mag) == ["1"]
            with pytest.raises(BusyError), claims.shared(str(mag)):
                pass

    @settings(deadline=None, max_examples=40)
    @given(st.lists(st.sampled_from(["whole", "shared", "end"]), max_size=12))
    def test_as_a_lock_of_readers_and_a_writer(
        self, tmp_path_factory: pytest.TempPathFactory, steps: list[str]
    ) -> None:
        path = str(tmp_path_factory.mktemp("mag"))
        held: list[tuple[str, contextlib.ExitStack]] = []
        for step in steps:
            if step == "end":
                if held:
                    held.pop(0)[1].close()
                continue
            kinds = [kind for kind, _ in held]
            fits = not kinds or (step == "shared" and "whole" not in kinds)
            stack = contextlib.ExitStack()
            claim = claims.whole(path, "made") if step == "whole" else claims.shared(path)
            try:
                stack.enter_context(claim)
            except BusyError:
                assert not fits
            else:
                assert fits
                held.append((step, stack))
        for _, stack in held:
            stack.close()


class TestProcesses:
    @pytest.mark.parametrize("kind", [("whole", "compressed"), ("shared",)], ids=str)
    def test_another_process(self, mag: Path, kind: tuple[str, ...]) -> None:
        with holder(kind[0], mag, *kind[1:]) as process:
            with pytest.raises(BusyError) as error, claims.whole(str(mag), "rechunked"):
                pass
            if kind[0] == "whole":
                assert f"being compressed by process {process.pid}" in str(error.value)
                with pytest.raises(BusyError), claims.shared(str(mag)):
                    pass
            else:
                with claims.shared(str(mag)):
                    pass

    def test_a_killed_owner_is_dead_at_once(self, mag: Path) -> None:
        with holder("whole", mag, "compressed") as process:
            process.send_signal(signal.SIGKILL)
            process.wait()
            assert names(mag) == ["1", "1.claim.wkdask-tmp"]
            assert claims.owner_of(mag) is None
            with claims.shared(str(mag)):
                pass
            with claims.whole(str(mag), "rechunked"):
                assert claims.owner_of(mag) is not None
        assert names(mag) == ["1"]

    def test_what_is_swept(self, mag: Path) -> None:
        with holder("whole", mag, "compressed") as process:
            file = f"{mag}{claims.CLAIM_SUFFIX}"
            assert not atomic.sweep_leftover(file)
            process.kill()
            process.wait()
            assert atomic.sweep_leftover(file)
        assert names(mag) == ["1"]

    def test_what_is_left_of_its_file(self, mag: Path) -> None:
        left = Path(f"{mag}{claims.CLAIM_SUFFIX}.0{atomic.TEMPORARY_SUFFIX}")
        left.touch()
        (mag.parent / "2.claim.wkdask-tmp.mine").touch()
        with claims.whole(str(mag), "rechunked"):
            assert not left.exists()
        assert names(mag) == ["1", "2.claim.wkdask-tmp.mine"]

    def test_a_stopped_owner_lives(self, mag: Path) -> None:
        with holder("whole", mag, "compressed") as process:
            process.send_signal(signal.SIGSTOP)
            with pytest.raises(BusyError), claims.whole(str(mag), "rechunked"):
                pass

    def test_forked_children_do_not_keep_a_claim(self, mag: Path) -> None:
        fork = multiprocessing.get_context("fork")
        with claims.whole(str(mag), "rechunked"):
            pool = ProcessPoolExecutor(1, mp_context=fork)
            assert pool.submit(int).result() == 0
        try:
            with claims.whole(str(mag), "compressed"):
                pass
        finally:
            pool.shutdown()

    def test_only_one_of_many_threads_gets_it(self, mag: Path) -> None:
        inside, most, done = 0, 0, 0
        guard = threading.Lock()

        def work() -> None:
            nonlocal inside, most, done
            for _ in range(50):
                with contextlib.suppress(BusyError), claims.whole(str(mag), "made"):
                    with guard:
                        inside += 1
                        most, done = max(most, inside), done + 1
                    time.sleep(0.0002)
                    with guard:
                        inside -= 1

        threads = [threading.Thread(target=work) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert most == 1
        assert done > 10
        assert names(mag) == ["1"]


class TestOtherMachines:
    """Their locks may not be seen here, so the file is all that there is."""

    def foreign(self, mag: Path, silent_seconds: float) -> Path:
        file = Path(f"{mag}{claims.CLAIM_SUFFIX}")
        owner = claims.Owner("copied to", "ada", "node7", 77, "another", time.time(), True)
        file.write_text(json.dumps({name: getattr(owner, name) for name in owner.__slots__}))
        at = time.time() - silent_seconds
        os.utime(file, (at, at))
        return file

    def test_a_living_one(self, mag: Path) -> None:
        file = self.foreign(mag, 100)
        for claim in (claims.whole(str(mag), "rechunked"), claims.shared(str(mag))):
            with pytest.raises(BusyError, match="copied to by process 77 of ada on node7"), claim:
                pass
        assert file.exists()

    def test_a_dead_one(self, mag: Path) -> None:
        self.foreign(mag, 1000)
        with claims.shared(str(mag)):
            pass
        with claims.whole(str(mag), "rechunked"):
            found = claims.owner_of(mag)
            assert found is not None
            assert found.pid == os.getpid()
        assert names(mag) == ["1"]

    def test_an_owner_touches_its_file(self, mag: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(claims, "_BEAT_SECONDS", 0.01)
        file = Path(f"{mag}{claims.CLAIM_SUFFIX}")
        with claims.whole(str(mag), "rechunked"):
            os.utime(file, (0, 0))
            until = time.monotonic() + 10
            while file.stat().st_mtime < 1 and time.monotonic() < until:
                time.sleep(0.01)
            assert file.stat().st_mtime > 1

    def test_without_locks(self, mag: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        def refuse(descriptor: int, kind: int) -> None:
            raise OSError(95, "no locks here")

        monkeypatch.setattr(claims.fcntl, "flock", refuse)
        with claims.whole(str(mag), "rechunked"):
            for claim in (claims.whole(str(mag), "compressed"), claims.shared(str(mag))):
                with pytest.raises(BusyError, match="being rechunked"), claim:
                    pass
        assert names(mag) == ["1"]
