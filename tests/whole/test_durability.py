"""Files under fire: damaged, cut short, written by two, killed, overwritten, out of space.

Whatever happens to a file, it reads as what was written or raises an error of ours. The dangerous
part runs in a process of its own, because what is tested may end it: this file is also a script,
whose tasks print what they found as JSON.
"""

from __future__ import annotations

import contextlib
import json
import os
import resource
import signal
import struct
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import wkw

import wkdask
from wkdask.errors import FormatError, StorageError
from wkdask.geometry import BoundingBox
from wkdask.grids import region_of
from wkdask.storage import atomic
from wkdask.storage import reader as wkwfile
from wkdask.storage import writer as filewriter
from wkdask.storage.header import BLOCK_TYPES, VolumeHeader
from wkdask.storage.wkw import WkwVolume

Report = dict[str, Any]

SCALE = pytest.mark.parametrize(
    "scale", ["some", pytest.param("many", marks=pytest.mark.slow)], ids=str
)
KINDS = pytest.mark.parametrize("kind", BLOCK_TYPES)

# dtype, channels, voxels per block edge, blocks per file edge
GEOMETRIES = [
    ("uint8", 1, 4, 2),  # files of 8 blocks
    ("uint16", 3, 8, 2),  # several channels, of which LZ4 can't make less
    ("float64", 1, 2, 4),  # a jump table longer than most blocks
    ("uint32", 1, 1, 4),  # blocks of one voxel
    ("int64", 2, 8, 1),  # one block
]
MEMORY_BYTES = 2**27


def run_alone(task: str, *arguments: Any, seconds: float = 340) -> Report:
    """Run a task of this file in a process of its own; return what it reports."""
    command = [sys.executable, __file__, task, *map(str, arguments)]
    path = [str(Path(wkdask.__file__).parents[1]), os.environ.get("PYTHONPATH", "")]
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        timeout=seconds,
        check=False,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, path))},
    )
    assert done.returncode == 0, f"{command} ended with {done.returncode}:\n{done.stderr}"
    report: Report = json.loads(done.stdout)
    return report


def of_each_kind(task: str, directory: Path, *arguments: Any) -> list[Report]:
    """Run a task for every block type, in one process; return what it reports."""
    return [*run_alone("each_kind", task, directory, *arguments).values()]


def noise(header: VolumeHeader, seed: int, *, smooth: bool = False) -> Any:
    """Return the voxels of a file without a zero byte; smooth ones can be compressed."""
    rng = np.random.default_rng(seed)
    edge, step = header.file_edge, 4 if smooth else 1
    few = max(1, edge // step)
    size = few**3 * header.num_channels * header.itemsize
    cells = rng.integers(1, 256, size, np.uint8).view(header.dtype)
    voxels = cells.reshape((header.num_channels, few, few, few), order="F")
    for axis in (1, 2, 3):
        voxels = voxels.repeat(edge // few, axis)
    return np.asfortranarray(voxels)


def whole_box(header: VolumeHeader) -> BoundingBox:
    return BoundingBox((0, 0, 0), (header.file_edge,) * 3)


def names_below(path: Path) -> dict[str, bytes]:
    return {str(each): each.read_bytes() for each in path.rglob("*") if each.is_file()}


def unfinished(path: str) -> list[str]:
    return [str(each) for each in Path(path).rglob(f"*{atomic.TEMPORARY_SUFFIX}")]


# --- damage -------------------------------------------------------------------------------------


def mutant_of(data: bytes, head: int, rng: np.random.Generator) -> bytes:
    """Return a file with one to three changes of its header or jump table, now and then cut."""
    changed = bytearray(data)
    for _ in range(rng.integers(1, 4)):
        at = int(rng.integers(head))
        word = min(at, head - 8) // 8 * 8
        match int(rng.integers(8)):
            case 0:
                changed[at] = rng.integers(256)
            case 1:
                changed[at] ^= 1 << int(rng.integers(8))
            case 2:  # a field of the header rather than the jump table
                changed[int(rng.integers(3, 16))] = rng.integers(256)
            case 3:
                changed[4] = rng.integers(256)  # edges
                changed[5:7] = rng.integers(1, 11, 2, np.uint8).tobytes()
            case 4:
                (number,) = struct.unpack_from("<Q", changed, word)
                number += int(rng.integers(-70, 70))
                struct.pack_into("<Q", changed, word, number % 2**64)
            case 5:
                other = int(rng.integers(head // 8)) * 8
                a, b = changed[word : word + 8], changed[other : other + 8]
                changed[word : word + 8], changed[other : other + 8] = b, a
            case 6:
                choices = (0, 16, head, len(data), len(data) + 1, 2**31, 2**32, 2**63, 2**64 - 1)
                struct.pack_into("<Q", changed, word, choices[int(rng.integers(len(choices)))])
            case 7:
                changed[word:head] = bytes(head - word)
    if rng.integers(8) == 0:
        del changed[int(rng.integers(len(changed))) :]
    return bytes(changed)


def outcome_of(call: Callable[[], Any], expected: Any) -> str:
    """Return in a word what came of a call that returns voxels or raises."""
    try:
        found = call()
    except (FormatError, StorageError):
        return "refused"
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    if found is None or found.tobytes() == expected.tobytes():
        return "same"
    return "other voxels" if found.all() else "silent zeros"


def uses_of(volume: WkwVolume, path: str, voxels: Any) -> Iterator[tuple[Callable[[], Any], Any]]:
    """Yield all ways to use a damaged file, each with the voxels that are right.

    The ones that write come last.
    """
    box = whole_box(volume.header)
    edge = volume.header.file_edge
    part = BoundingBox((edge // 2, 0, edge - 1), (edge - edge // 2, 1, 1))
    pieces = tuple(slice(a, b) for a, b in zip(part.topleft, part.bottomright, strict=True))
    few = voxels[(slice(None), *pieces)]
    yield lambda: volume.read(region_of(box)), voxels
    yield lambda: volume.read(region_of(part)), few

    def decode() -> None:
        with wkwfile.WkwFile.open(path, volume.header) as file:
            file.decode_all()

    yield decode, None

    def merge() -> Any:
        volume.write(part, few)
        return volume.read(region_of(box))

    yield merge, voxels


def mutants(directory: str, rounds: str, first_seed: str) -> Report:
    """Damage files of every geometry and block type, and use them."""
    cases = list(product(GEOMETRIES, BLOCK_TYPES))
    outcomes: Counter[str] = Counter()
    limit_memory()
    before = peak_bytes()
    for number, (geometry, kind) in enumerate(cases):
        volume = WkwVolume.create(f"{directory}/{number}", VolumeHeader(*geometry, kind))
        voxels = noise(volume.header, number, smooth=number % 2 == 0)
        volume.write(whole_box(volume.header), voxels)
        path = Path(volume.file_path((0, 0, 0)))
        data = path.read_bytes()
        rng = np.random.default_rng((int(first_seed), number))
        for turn in range(int(rounds) // len(cases) + 1):
            mutant = mutant_of(data, volume.header.data_offset_bytes, rng)
            path.write_bytes(mutant)
            first, *others = uses_of(volume, str(path), voxels)
            for call, expected in (first, others[turn % len(others)]):
                outcomes[outcome_of(call, expected)] += 1
            if unfinished(volume.path):
                outcomes["left something behind"] += 1
    return {"outcomes": outcomes, "bytes": peak_bytes() - before}


def limit_memory() -> None:
    """Let this process have little more than it has now."""
    with open("/proc/self/statm") as file:
        now = int(file.read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (now + 2 * MEMORY_BYTES,) * 2)


def peak_bytes() -> int:
    """Return the most memory that this process had; `ru_maxrss` would begin with its parent's."""
    lines = Path("/proc/self/status").read_text().splitlines()
    (peak,) = (line.split()[1] for line in lines if line.startswith("VmHWM"))
    return int(peak) * 1024


# Every field's legal numbers and the first illegal ones, and the ends of the range.
VALUES = (0, 1, 2, 3, 4, 5, 10, 11, 0x22, 0x7F, 0x80, 0xF0, 0xFF)


def headers(directory: str) -> Report:
    """Set each byte of `header.wkw` and of a file's own header to many values."""
    outcomes: Counter[str] = Counter()
    for number, (geometry, kind) in enumerate(product(GEOMETRIES, BLOCK_TYPES)):
        volume = WkwVolume.create(f"{directory}/{number}", VolumeHeader(*geometry, kind))
        voxels = noise(volume.header, number)
        volume.write(whole_box(volume.header), voxels)
        region = region_of(whole_box(volume.header))
        for path in (Path(volume.path, "header.wkw"), Path(volume.file_path((0, 0, 0)))):
            data = path.read_bytes()
            for place, value in product(range(16), VALUES):
                path.write_bytes(data[:place] + bytes([value]) + data[place + 1 :])
                read = lambda: WkwVolume.open(volume.path).read(region)  # noqa: B023, E731
                outcomes[outcome_of(read, voxels)] += 1
            path.write_bytes(data)
    return {"outcomes": outcomes}


def truncated(directory: str, most: str) -> Report:
    """Cut files at every byte of the head, around every block's border, and between."""
    outcomes: Counter[str] = Counter()
    for number, (geometry, kind) in enumerate(product(GEOMETRIES, BLOCK_TYPES)):
        volume = WkwVolume.create(f"{directory}/{number}", VolumeHeader(*geometry, kind))
        voxels = noise(volume.header, number, smooth=number % 2 == 0)
        volume.write(whole_box(volume.header), voxels)
        path = Path(volume.file_path((0, 0, 0)))
        data = path.read_bytes()
        for length in places(data, volume.header, int(most)):
            path.write_bytes(data[:length])
            for call, _ in uses_of(volume, str(path), voxels):
                # A file that lacks a byte is never right, not even where nobody needs that byte.
                outcomes[outcome_of(call, voxels[:0])] += 1
    return {"outcomes": outcomes}


def places(data: bytes, header: VolumeHeader, most: int) -> list[int]:
    """Return the lengths to which a file is cut."""
    head = header.data_offset_bytes
    if header.is_compressed:
        ends = np.frombuffer(data, "<u8", header.blocks_per_file, 16).astype(int).tolist()
    else:
        ends = [head + i * header.block_bytes for i in range(header.blocks_per_file + 1)]
    borders = {end + move for end in (head, *ends) for move in (-1, 0, 1)}
    between = np.random.default_rng(0).integers(len(data), size=most).tolist()
    chosen = sorted({n for n in (*range(head), *borders, *between) if n < len(data)})
    return [*chosen[:: max(1, len(chosen) // most)], len(data) - 1]


class TestDamage:
    # All that may come of using a damaged file.
    ALLOWED = frozenset({"same", "refused"})

    @pytest.mark.parametrize(
        ("rounds", "seed"),
        [(300, 0), *(pytest.param(50_000, i, marks=pytest.mark.slow) for i in (1, 2))],
    )
    def test_mutants(self, tmp_path: Path, rounds: int, seed: int):
        report = run_alone("mutants", tmp_path, rounds, seed)
        assert set(report["outcomes"]) == self.ALLOWED
        assert sum(report["outcomes"].values()) >= 2 * rounds
        assert report["outcomes"]["refused"] > rounds
        assert report["bytes"] < MEMORY_BYTES

    @pytest.mark.slow
    def test_every_header_byte(self, tmp_path: Path):
        report = run_alone("headers", tmp_path)
        assert set(report["outcomes"]) == self.ALLOWED
        assert report["outcomes"]["refused"] > report["outcomes"]["same"]

    @SCALE
    def test_truncated(self, tmp_path: Path, scale: str):
        report = run_alone("truncated", tmp_path, {"some": 60, "many": 10_000}[scale])
        assert set(report["outcomes"]) == {"refused"}
        assert report["outcomes"]["refused"] > 4 * 15 * 20

    @KINDS
    def test_cut_short_between_check_and_use(self, tmp_path: Path, kind: Any):
        header = VolumeHeader("uint16", 1, 8, 2, kind)
        volume = WkwVolume.create(tmp_path / "1", header)
        voxels = noise(header, 1)
        volume.write(whole_box(header), voxels)
        path = Path(volume.file_path((0, 0, 0)))
        data = path.read_bytes()
        region = region_of(whole_box(header))
        for length in range(0, len(data), 1 + len(data) // 50):
            path.write_bytes(data)
            with wkwfile.WkwFile.open(str(path), header) as file:
                os.truncate(path, length)
                out = np.zeros(voxels.shape, header.dtype, order="F")
                with pytest.raises(FormatError):
                    file.read_into(out, region)


# --- two writers --------------------------------------------------------------------------------


def forked(task: Callable[[], None]) -> int:
    """Run a task in a copy of this process; return the copy's id."""
    child = os.fork()
    if child:
        return child
    status = 1
    try:
        task()
        status = 0
    finally:
        os._exit(status)


def two_writers(directory: str, rounds: str, kind: Any) -> Report:
    """Let two processes write one file at the same time."""
    header = VolumeHeader("uint32", 1, 16, 4, kind)
    volume = WkwVolume.create(directory, header)
    box = whole_box(header)
    choices = [noise(header, 1), noise(header, 2, smooth=True)]
    for voxels in choices:  # everything is compiled before
        volume.write(box, voxels)
    outcomes: Counter[str] = Counter()
    for _ in range(int(rounds)):
        gate, opener = os.pipe()

        def write(voxels: Any, gate: int = gate, opener: int = opener) -> None:
            os.close(opener)
            os.read(gate, 1)  # returns when the other end is closed
            volume.write(box, voxels)

        children = [forked(lambda v=voxels: write(v)) for voxels in choices]  # type: ignore[misc]
        os.close(opener)
        failed = [os.waitpid(child, 0)[1] for child in children]
        os.close(gate)
        found = [outcome_of(lambda: volume.read(region_of(box)), each) for each in choices]
        outcomes["a writer failed" if any(failed) else " or ".join(sorted(found))] += 1
        outcomes["left behind"] += len(unfinished(directory))
    return {"outcomes": outcomes}


class TestTwoWriters:
    @SCALE
    def test_the_file_is_that_of_one_of_them(self, tmp_path: Path, scale: str):
        rounds = {"some": 10, "many": 200}[scale]
        for report in of_each_kind("two_writers", tmp_path, rounds):
            assert report["outcomes"] == {"other voxels or same": rounds, "left behind": 0}


# --- kills --------------------------------------------------------------------------------------


def versioned(piece: BoundingBox, version: int) -> Any:
    """Return voxels in which place and version can be seen, none of them zero."""
    x, y, z = (
        np.arange(a, b, dtype=np.uint32)
        for a, b in zip(piece.topleft, piece.bottomright, strict=True)
    )
    smooth = (x[:, None, None] // 8 << 8) + (y[:, None] << 16) + (z << 24)
    return np.asfortranarray((smooth + np.uint32(version % 255 + 1))[np.newaxis])


def kills(directory: str, rounds: str, kind: Any) -> Report:
    """Kill a process while it writes a file, then look at what is there."""
    filewriter._PIECE_BYTES = 2**19  # as large files have: 8 pieces
    header = VolumeHeader("uint32", 1, 16, 8, kind)
    volume = WkwVolume.create(directory, header)
    path = volume.file_path((0, 0, 0))
    pieces = list(filewriter.pieces_of(header))

    def write(version: int, told: int) -> None:
        with filewriter.writing(path, header) as file:
            for piece in file.pieces:
                file.append(versioned(piece, version))
                os.write(told, b".")
        os.write(told, b".")

    rng = np.random.default_rng(0)
    outcomes: Counter[str] = Counter()
    with open(os.devnull, "wb") as nowhere:
        write(0, nowhere.fileno())  # everything is compiled before
        version = 0
        left_before: set[str] = set()
        for number in range(int(rounds)):
            progress, told = os.pipe()
            child = forked(lambda v=version + 1, told=told: write(v, told))  # type: ignore[misc]
            os.close(told)
            for _ in range(number % (len(pieces) + 1)):
                os.read(progress, 1)
            alive = set(unfinished(directory)) - left_before
            # Before it has told anything, its file may not be locked yet; then it sees that it was
            # swept and makes another.
            if number % (len(pieces) + 1):
                outcomes["taken for dead"] += sum(map(atomic.is_leftover, alive))
            time.sleep(rng.uniform(0, 0.005))
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            os.close(progress)
            outcomes[visible(volume, version)] += 1
            left = unfinished(directory)
            outcomes["unfinished"] += len(set(left) - left_before)
            outcomes["taken for living"] += len(left) - sum(map(atomic.is_leftover, left))
            if number % 2:  # else the next writer finds it
                for each in left:
                    os.unlink(each)
            left_before = set(unfinished(directory))
            version += 2
            write(version, nowhere.fileno())
            if visible(volume, version) != "old":
                outcomes["the next write failed"] += 1
    return {"outcomes": outcomes, "strays": strays(directory)}


def visible(volume: WkwVolume, old: int) -> str:
    """Return which version is on disk, as our reader and libwkw see it."""
    box = whole_box(volume.header)
    try:
        found = volume.read(region_of(box))
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    with wkw.Dataset.open(volume.path) as reference:
        if not np.array_equal(reference.read((0, 0, 0), box.size), found):
            return "other for libwkw"
    for version, name in ((old, "old"), (old + 1, "new")):
        if np.array_equal(found, versioned(box, version)):
            return name
    return "corrupt"


def strays(directory: str) -> list[str]:
    """Return the names of files that nobody knows."""
    names = {path.name for path in Path(directory).rglob("*") if path.is_file()}
    known = {"header.wkw", "x0.wkw"}
    return [n for n in names - known if not n.endswith(atomic.TEMPORARY_SUFFIX)]


class TestKills:
    @SCALE
    def test_the_old_or_the_new_file(self, tmp_path: Path, scale: str):
        rounds = {"some": 9, "many": 100}[scale]
        for report in of_each_kind("kills", tmp_path, rounds):
            outcomes = Counter(report["outcomes"])
            assert outcomes["old"] + outcomes["new"] == rounds
            assert outcomes["unfinished"] > rounds // 3  # most were killed in the middle
            for never in ("taken for dead", "taken for living", "the next write failed"):
                assert outcomes[never] == 0, never
            assert report["strays"] == []


# --- readers ------------------------------------------------------------------------------------


def overwrites(directory: str, rounds: str, kind: Any) -> Report:
    """Read a file, whole and in part, while another process overwrites it."""
    header = VolumeHeader("uint16", 1, 16, 4, kind)
    volume = WkwVolume.create(directory, header)
    box = whole_box(header)

    def constant(value: int) -> Any:
        return np.full((1, *box.size), value % 60_000 + 1, header.dtype, order="F")

    volume.write(box, constant(0))
    outcomes: Counter[str] = Counter()
    seen: set[int] = set()

    def write() -> None:
        for number in range(int(rounds)):
            volume.write(box, constant(number))

    child = forked(write)
    part = (range(3, 61, 2), range(10, 50), range(64))
    while not (done := os.waitpid(child, os.WNOHANG))[0]:
        for region in (region_of(box), part):
            try:
                values = np.unique(volume.read(region)).tolist()
            except Exception as error:
                outcomes[f"{type(error).__name__}: {error}"] += 1
                continue
            outcomes["one version" if len(values) == 1 and values[0] else "mixture"] += 1
            seen.update(values)
    outcomes["the writer failed"] += done[1] != 0
    return {"outcomes": outcomes, "versions": len(seen)}


class TestReaders:
    @SCALE
    def test_a_reader_never_sees_a_mixture(self, tmp_path: Path, scale: str):
        rounds = {"some": 150, "many": 3_000}[scale]
        for report in of_each_kind("overwrites", tmp_path, rounds):
            assert set(report["outcomes"]) == {"one version", "the writer failed"}
            assert report["outcomes"]["the writer failed"] == 0
            assert report["versions"] > rounds // 50  # it did read meanwhile


# --- a full disk --------------------------------------------------------------------------------

LEVELS = 20
WRITES = ("whole", "part")


def disk_header(kind: Any) -> VolumeHeader:
    return VolumeHeader("uint32", 1, 16, 4, kind)  # 1 MiB


def change(volume: WkwVolume, what: str, seed: int = 2) -> None:
    """Write a whole file, or a part that reaches over all blocks' borders."""
    voxels = noise(volume.header, seed)
    if what == "whole":
        volume.write(whole_box(volume.header), voxels)
    else:
        volume.write(BoundingBox((1, 1, 1), (62, 62, 62)), voxels[:, 1:-1, 1:-1, 1:-1])


def refused(volume: WkwVolume, what: str) -> str:
    """Return what is wrong after a write for which there is no room; nothing, if all is well."""
    before = names_below(Path(volume.path))
    try:
        change(volume, what)
    except StorageError as error:
        problem = "" if error.filename else "names no file"
    except Exception as error:
        problem = f"{type(error).__name__}: {error}"
    else:
        problem = "no error"
    same = names_below(Path(volume.path)) == before
    return problem or ("" if same else "files differ")


def size_limits(directory: str, kind: Any) -> Report:
    """Write with less room than a file needs, as many bytes as may stand in one file."""
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    volume = WkwVolume.create(directory, disk_header(kind))
    _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)

    def limited(room: int, what: str) -> str:
        resource.setrlimit(resource.RLIMIT_FSIZE, (room, hard))
        try:
            return refused(volume, what)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))

    problems = []
    for what, exists in product(WRITES, (True, False)):
        if what == "part" and exists and not volume.header.is_compressed:
            continue  # in place: a file that is there does not grow
        size = prepare(volume, what, exists)
        rooms = [size * level // LEVELS for level in range(LEVELS)]
        texts = {room: limited(room, what) for room in rooms}
        problems += [(what, exists, room, text) for room, text in texts.items() if text]
        change(volume, what)  # and with room it works
    return {"problems": problems}


def prepare(volume: WkwVolume, what: str, exists: bool) -> int:
    """Make or remove the file; return how many bytes it will have."""
    path = Path(volume.file_path((0, 0, 0)))
    if exists:
        change(volume, "whole", 1)
        before = path.read_bytes()
    else:
        path.unlink(missing_ok=True)
    change(volume, what)
    size = path.stat().st_size
    if exists:
        path.write_bytes(before)
    else:
        path.unlink()
    return size


@contextlib.contextmanager
def small_disk(path: Path, size_bytes: int) -> Iterator[Path]:
    """Mount a small file system in memory; skip where that is not permitted."""
    path.mkdir()
    options = ["-t", "tmpfs", "-o", f"size={size_bytes}", "none", str(path)]
    try:
        done = subprocess.run(["mount", *options], capture_output=True, check=False)
    except FileNotFoundError:
        pytest.skip("there is no mount")
    if done.returncode:
        pytest.skip(f"may not mount: {done.stderr.decode().strip()}")
    try:
        yield path
    finally:
        subprocess.run(["umount", "-l", str(path)], check=True)


class TestFullDisk:
    @pytest.mark.slow
    def test_a_limit_of_file_sizes(self, tmp_path: Path):
        for report in of_each_kind("size_limits", tmp_path):
            assert report["problems"] == []

    @KINDS
    @pytest.mark.parametrize("exists", [True, False])
    @pytest.mark.parametrize("what", WRITES)
    def test_a_small_file_system(self, tmp_path: Path, kind: Any, what: str, exists: bool):
        if what == "part" and exists and kind == "raw":
            pytest.skip("its bytes have their place on the disk already")
        with small_disk(tmp_path / "disk", 2**22) as disk:
            volume = WkwVolume.create(disk / "1", disk_header(kind))
            size = prepare(volume, what, exists)
            problems = {
                level: self.filled(disk, volume, what, size, level) for level in range(LEVELS)
            }
            change(volume, what)  # and with room it works
        assert {level: problem for level, problem in problems.items() if problem} == {}

    @KINDS
    def test_what_was_taken_ahead_is_room_for_the_rest(
        self, tmp_path: Path, kind: Any, monkeypatch: pytest.MonkeyPatch
    ):
        monkeypatch.setattr(filewriter, "_ROOMY_BYTES", -1)
        monkeypatch.setattr(filewriter, "_RESERVE_FROM_BYTES", 1)
        with small_disk(tmp_path / "disk", 2**22) as disk:
            volume = WkwVolume.create(disk / "1", disk_header(kind))
            size = prepare(volume, "whole", False)
            for pages in range(1, 4):
                monkeypatch.setattr(filewriter, "_RESERVE_BYTES", size + pages * 4096)
                problem = self.filled(disk, volume, "whole", size + pages * 4096, LEVELS)
                assert problem == "no error", pages
                Path(volume.file_path((0, 0, 0))).unlink()

    def filled(self, disk: Path, volume: WkwVolume, what: str, size: int, level: int) -> str:
        """Leave room for some twentieths of a file, and try to write it."""
        filler = disk / "filler"
        status = os.statvfs(disk)
        room = size * level // LEVELS // status.f_frsize * status.f_frsize
        filler.write_bytes(b"1" * (status.f_bavail * status.f_frsize - room))
        try:
            return refused(volume, what)
        finally:
            filler.unlink()

    @pytest.mark.parametrize("what", WRITES)
    def test_holes_of_a_raw_file(self, tmp_path: Path, what: str):
        box, one = BoundingBox((1, 1, 1), (1, 1, 1)), np.full((1, 1, 1, 1), 7, np.uint32)
        problems = {}
        with small_disk(tmp_path / "disk", 2**22) as disk:
            volume = WkwVolume.create(disk / "1", disk_header("raw"))
            path = Path(volume.file_path((0, 0, 0)))
            for level in range(LEVELS - 1):  # the first block has a part of the last twentieth
                path.unlink(missing_ok=True)
                volume.write(box, one)
                size = path.stat().st_size
                problems[level] = self.filled(disk, volume, what, size, level)
        assert {level: problem for level, problem in problems.items() if problem} == {}


def each_kind(task: str, directory: str, *arguments: str) -> Report:
    """Run a task of block types for all of them."""
    return {kind: TASKS[task](f"{directory}/{kind}", *arguments, kind) for kind in BLOCK_TYPES}


TASKS: dict[str, Callable[..., Report]] = {
    "each_kind": each_kind,
    "mutants": mutants,
    "headers": headers,
    "truncated": truncated,
    "two_writers": two_writers,
    "kills": kills,
    "overwrites": overwrites,
    "size_limits": size_limits,
}

if __name__ == "__main__":
    json.dump(TASKS[sys.argv[1]](*sys.argv[2:]), sys.stdout)
