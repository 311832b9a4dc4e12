"""Datasets at addresses: what a local one gives, or an error; never anything else."""

from __future__ import annotations

import math
import pickle
import re
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import dask
import dask.array as da
import numpy as np
import pytest
import xarray as xr
from distributed import Client
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from servers import QUICK, S3, FaultyServer, Nginx, program, run_rclone

import wkdask
from wkdask.dataset.properties import MagProperties
from wkdask.errors import (
    AccessError,
    ArgumentError,
    ExistsError,
    FormatError,
    MissingError,
    ReadOnlyError,
    RemoteError,
    WkdaskError,
)
from wkdask.storage import objects
from wkdask.storage.header import VolumeHeader
from wkdask.storage.opening import volume_at
from wkdask.storage.place import Address
from wkdask.storage.remote import joined, place_of

pytestmark = pytest.mark.filterwarnings("ignore:writing parts of compressed files")

pytest.importorskip("obstore")
pytest.importorskip("zarr")

BOX = wkdask.BoundingBox((10, 20, 30), (300, 200, 100))
STORED = {
    "lz4": ("wkw", "lz4hc", 4),
    "raw": ("wkw", "raw", 4),
    "zarr3": ("zarr3", None, 4),
    "plain3": ("zarr3", "raw", 4),
    "zarr": ("zarr", None, None),
}
"""Of each layer: format, block type, blocks per edge of a file."""
SMALL = wkdask.BoundingBox((10, 20, 30), (140, 60, 40))


def tissue_of(path: Path, box: wkdask.BoundingBox = BOX) -> wkdask.Dataset:
    """Make a dataset with a layer in each format; some files of each are missing."""
    rng = np.random.default_rng(0)
    voxels = rng.integers(0, 30, box.size).astype(np.uint16)
    voxels[: box.size[0] // 2] = 0
    ds = wkdask.create(path, voxel_size=(8, 8, 40))
    for name, (kind, block_type, blocks) in STORED.items():
        layer = ds.add_layer(name, "color", "uint16", bounding_box=box, data_format=kind)
        mag = layer.add_mag(1, block_type=block_type, blocks_per_file_edge=blocks)
        mag.get_view().write(voxels)
    return ds


@pytest.fixture(scope="module")
def served(nginx: Nginx) -> wkdask.Dataset:
    """The local dataset that nginx serves as `/tissue`."""
    return tissue_of(nginx.files / "tissue")


@pytest.fixture
def there(served: wkdask.Dataset, nginx: Nginx) -> wkdask.Dataset:
    """The same dataset by its address."""
    return wkdask.open(f"{nginx.url}/tissue")


def regions() -> st.SearchStrategy[tuple[slice, ...]]:
    def of(length: int) -> st.SearchStrategy[slice]:
        ends = st.tuples(st.integers(0, length - 1), st.integers(1, length))
        return ends.map(lambda e: slice(e[0], max(e[0] + 1, e[1]), 1 + e[1] % 3))

    return st.tuples(*map(of, BOX.size))


class TestReads:
    @pytest.mark.parametrize("name", STORED)
    def test_all(self, served: wkdask.Dataset, there: wkdask.Dataset, name: str) -> None:
        here = served[name][1].read()
        assert here.any()
        assert np.array_equal(there[name][1].read(), here)
        assert wkdask.equal(served[name], there[name])

    @pytest.mark.parametrize("name", STORED)
    @settings(
        max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
    )
    @given(region=regions())
    def test_slices(
        self, served: wkdask.Dataset, there: wkdask.Dataset, name: str, region: Any
    ) -> None:
        here, away = (ds[name][1].get_view()[(0, *region)] for ds in (served, there))
        assert np.array_equal(away.compute(), here.compute())

    @pytest.mark.parametrize("name", STORED)
    def test_in_parts(
        self,
        served: wkdask.Dataset,
        there: wkdask.Dataset,
        name: str,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        monkeypatch.setattr("wkdask.storage.remote._MOST_BYTES", 100_000)
        monkeypatch.setattr("wkdask.storage.remote._REQUEST_BYTES", 3_000)
        assert np.array_equal(there[name][1].read(), served[name][1].read())

    def test_bare_mags(self, served: wkdask.Dataset, nginx: Nginx) -> None:
        for name in ("zarr3", "zarr"):
            mag = wkdask.open_mag(f"{nginx.url}/tissue/{name}/1")
            wanted = served[name][1].volume.read(region_of(BOX))
            assert np.array_equal(mag.volume.read(region_of(BOX)), wanted)
        with pytest.raises(RemoteError, match="web servers can't"):
            wkdask.open_mag(f"{nginx.url}/tissue/lz4/1")
        mag = wkdask.open_mag(f"{nginx.url}/tissue/lz4/1", bounding_box=BOX)
        assert np.array_equal(mag.get_view().read(), served["lz4"][1].get_view().read())

    def test_mag_elsewhere(self, served: wkdask.Dataset, nginx: Nginx, tmp_path: Path) -> None:
        import json

        said = json.loads((nginx.files / "tissue" / "datasource-properties.json").read_text())
        for layer in said["dataLayers"]:
            layer["mags"][0]["path"] = f"{nginx.url}/tissue/{layer['name']}/1"
        (tmp_path / "datasource-properties.json").write_text(json.dumps(said))
        ds = wkdask.open(tmp_path)
        assert np.array_equal(ds["zarr3"][1].read(), served["zarr3"][1].read())
        assert wkdask.check(tmp_path).ok
        assert "remote" in wkdask.check(tmp_path).findings[0].text
        for use in (
            lambda: ds["lz4"][1].write(np.zeros((1, 1, 1), np.uint16)),
            lambda: ds["lz4"][1].compress("raw"),
        ):
            with pytest.raises(ReadOnlyError):
                use()


def region_of(box: wkdask.BoundingBox) -> Any:
    return tuple(range(a, b) for a, b in zip(box.topleft, box.bottomright, strict=True))


class TestUses:
    def test_chunk_functions(self, there: wkdask.Dataset, client: Client) -> None:
        sums = (
            there["lz4"][1]
            .get_view()
            .to_dask()
            .map_blocks(lambda block: block.sum(dtype="u8", keepdims=True))
        )
        assert int(sums.sum().compute()) == int(there["lz4"][1].read().sum(dtype="u8"))

    def test_a_task_is_small(self, there: wkdask.Dataset) -> None:
        for name in STORED:
            assert len(pickle.dumps(there[name][1].volume)) < 1000
            [task, *_] = dict(there[name][1].get_view().to_dask().dask).values()
            assert len(pickle.dumps(task)) < 2000

    @pytest.mark.parametrize("name", ["lz4", "zarr3"])
    def test_copy_and_downsample(
        self,
        served: wkdask.Dataset,
        there: wkdask.Dataset,
        tmp_path: Path,
        client: Client,
        name: str,
    ) -> None:
        target = wkdask.create(tmp_path / "copy", voxel_size=(8, 8, 40))
        report = wkdask.copy(there[name], target, executor=client)
        assert report.done
        assert wkdask.equal(target[name], served[name])
        target[name].downsample(executor=client)
        assert wkdask.check(target.path).ok

    def test_pyramid_of_a_mag_elsewhere(
        self, served: wkdask.Dataset, nginx: Nginx, tmp_path: Path, client: Client
    ) -> None:
        for name in ("lz4", "zarr3"):
            ds = wkdask.create(tmp_path / name, voxel_size=(8, 8, 40))
            kind = STORED[name][0]
            layer = ds.add_layer("new", "color", "uint16", bounding_box=BOX, data_format=kind)
            entry = MagProperties(wkdask.Mag(1), f"{nginx.url}/tissue/{name}/1")
            ds.json.change_layer("new", lambda found, entry=entry: found.with_mag(entry))
            assert layer.downsample(coarsest_mag=4, executor=client).done
            wkdask.copy(served[name], ds)
            assert ds[name].downsample(coarsest_mag=4).done
            assert np.array_equal(layer["4-4-1"].read(), ds[name]["4-4-1"].read())

    def test_copy_of_a_dataset(
        self, served: wkdask.Dataset, there: wkdask.Dataset, tmp_path: Path
    ) -> None:
        whole = wkdask.copy(there, tmp_path / "all")
        assert whole.done
        assert wkdask.equal(served, wkdask.open(tmp_path / "all"))

    def test_convert(self, served: wkdask.Dataset, nginx: Nginx, tmp_path: Path) -> None:
        wkdask.convert(f"{nginx.url}/tissue", tmp_path / "new", layer_name="zarr3")
        here, there = served["zarr3"][1].get_view(), wkdask.open(tmp_path / "new")["zarr3"][1]
        assert np.array_equal(there.get_view().read(), here.read())

    def test_xarray(self, served: wkdask.Dataset, nginx: Nginx) -> None:
        for path in ("tissue", "tissue/lz4", "tissue/zarr3/1"):
            here = xr.open_dataset(nginx.files / path, engine="wkw")
            away = xr.open_dataset(f"{nginx.url}/{path}", engine="wkw", storage_options=QUICK)
            part = {"x": slice(100, 140), "y": slice(30, 50)}
            xr.testing.assert_identical(here.sel(part).load(), away.sel(part).load())
        tree = xr.open_datatree(f"{nginx.url}/tissue", engine="wkw")
        assert set(tree.children) == set(STORED)

    def test_shown(self, there: wkdask.Dataset, nginx: Nginx) -> None:
        pytest.importorskip("PIL")
        with nginx.requests() as requests:
            assert nginx.url in there._repr_html_()
            assert nginx.url in there["lz4"][1]._repr_html_()
            assert "lz4hc" in there["lz4"]._repr_html_()
        assert len(requests) < 5
        assert there["zarr3"].shown().mags

    def test_command(self, served: wkdask.Dataset, nginx: Nginx, tmp_path: Path) -> None:
        pytest.importorskip("PIL")
        from click.testing import CliRunner

        from wkdask.cli.main import main

        output = tmp_path / "plane.png"
        for command in (
            ["info", f"{nginx.url}/tissue"],
            ["info", f"{nginx.url}/tissue/zarr3/1"],
            ["slice", f"{nginx.url}/tissue", "--output", str(output)],
            ["report", f"{nginx.url}/tissue", "--output", str(tmp_path / "report.html")],
        ):
            result = CliRunner().invoke(main, command)
            assert result.exit_code == 0, result.output
        assert output.stat().st_size > 1000

    def test_changes_are_refused(self, there: wkdask.Dataset) -> None:
        for change in (
            lambda: there.add_layer("new", "color", "uint8"),
            lambda: there["lz4"].add_mag(2),
            lambda: there["lz4"].downsample(),
            lambda: there["lz4"][1].write(np.zeros((1, 1, 1), np.uint16)),
            lambda: there["zarr3"][1].volume.write(BOX, np.zeros((1, *BOX.size), np.uint16)),
            lambda: there["lz4"][1].rechunk(blocks_per_file_edge=2),
            lambda: setattr(there["lz4"], "bounding_box", BOX),
            lambda: wkdask.copy(there["zarr"][1], there["lz4"][1]),
        ):
            with pytest.raises(ReadOnlyError):
                change()


class TestRequests:
    @pytest.mark.parametrize("name", ["lz4", "raw", "zarr3", "plain3"])
    def test_of_a_small_slice(self, nginx: Nginx, name: str, tmp_path: Path) -> None:
        """Of a volume of 1,000 cubed voxels, most of it not there, ten cubed are read."""
        kind, block_type, _ = STORED[name]
        box = wkdask.BoundingBox((0, 0, 0), (1000,) * 3)
        path = nginx.files / f"large-{name}"
        layer = wkdask.create(path, voxel_size=(8, 8, 8)).add_layer(
            "color", "color", "uint8", bounding_box=box, data_format=kind
        )
        noise = np.random.default_rng(0).integers(0, 256, (128,) * 3, dtype=np.uint8)
        layer.add_mag(1, block_type=block_type, blocks_per_file_edge=16).write(
            noise, offset=(512, 512, 512)
        )
        view = wkdask.open(f"{nginx.url}/large-{name}")["color"][1].get_view()
        for start, most in ((580, 2), (612, 1), (545, 1)):
            with nginx.requests() as requests:
                voxels = view[0, *[slice(start, start + 10)] * 3].compute()
            assert np.array_equal(voxels, noise[(slice(start - 512, start - 502),) * 3])
            assert len(requests) == most, requests
            bytes_of_blocks = requests[-1][3]
            assert bytes_of_blocks <= 1.1 * (32**3 + 200)

    @pytest.mark.parametrize("name", ["lz4", "zarr3"])
    def test_plane_in_few_round_trips(self, tmp_path: Path, name: str) -> None:
        kind, block_type, _ = STORED[name]
        box = wkdask.BoundingBox((0, 0, 0), (512,) * 3)
        layer = wkdask.create(tmp_path / "tissue", voxel_size=(8, 8, 8)).add_layer(
            "color", "color", "uint8", bounding_box=box, data_format=kind
        )
        thin = np.random.default_rng(0).integers(0, 256, (512, 512, 32), dtype=np.uint8)
        voxels = np.tile(thin, (1, 1, 2))
        layer.add_mag(1, block_type=block_type, blocks_per_file_edge=16).write(voxels)
        server = FaultyServer(tmp_path, delay=0.05)
        with server.running() as url:
            view = wkdask.open(f"{url}/tissue")["color"][1].get_view()
            start = time.perf_counter()
            plane = view[0, :, :, 7].compute()
            seconds = time.perf_counter() - start
        assert np.array_equal(plane, voxels[:, :, 7])
        # The server is Python and shares two cores with the tests, so that time tells little.
        assert server.most > 4, seconds / 0.05


class TestCertainty:
    """Missing is zero, and all else that is not right is an error."""

    @pytest.fixture
    def faulty(self, tmp_path: Path) -> Iterator[tuple[FaultyServer, wkdask.Dataset, Any]]:
        here = tissue_of(tmp_path / "tissue", SMALL)
        server = FaultyServer(tmp_path)
        with server.running() as url:
            yield server, wkdask.open(f"{url}/tissue", storage_options=QUICK), here

    @pytest.mark.parametrize("name", STORED)
    def test_now_and_then(self, faulty: Any, name: str) -> None:
        server, there, here = faulty
        wanted = here[name][1].read()
        for fault in (short_body, no_answer, error_500, wrong_part):
            server.fault = lambda *a, fault=fault: a[2] % 5 == 0 and fault(*a)
            try:
                found = there[name][1].read()
            except RemoteError:
                continue
            assert np.array_equal(found, wanted)

    @pytest.mark.parametrize("name", STORED)
    @pytest.mark.parametrize("fault", ["short_body", "no_answer", "error_500", "wrong_part"])
    def test_always(self, faulty: Any, name: str, fault: str) -> None:
        server, there, _ = faulty
        mag = there[name][1]
        server.fault = globals()[fault]
        with pytest.raises(RemoteError) as failed:
            mag.read()
        assert "tissue" in str(failed.value)

    def test_no_ranges(self, faulty: Any) -> None:
        server, there, _ = faulty
        server.fault = lambda handler, data, _: handler.reply(200, data, {}) or True
        for name in ("lz4", "raw", "zarr3"):
            with pytest.raises(RemoteError, match="no byte ranges"):
                there[name][1].read()

    @pytest.mark.parametrize("status", [401, 403])
    def test_refusals(self, faulty: Any, status: int) -> None:
        server, there, _ = faulty
        mag = there["lz4"][1]
        server.fault = lambda handler, data, _: handler.reply(status, b"no", {}) or True
        with pytest.raises(AccessError, match="not read as zeros") as failed:
            mag.read()
        assert str(status) in str(failed.value)

    def test_gone_volume(self, faulty: Any, tmp_path: Path) -> None:
        _, there, _ = faulty
        for name in STORED:
            mag = there[name][1]
            (tmp_path / "tissue" / name).rename(tmp_path / name)
            with pytest.raises(MissingError):
                mag.read()

    def test_replaced_file(self, faulty: Any) -> None:
        _, there, here = faulty
        for name in STORED:
            mag = there[name][1]
            assert np.array_equal(mag.read(), here[name][1].read())
            here[name][1].get_view().write(np.full(SMALL.size, 3, np.uint16))
            assert (mag.get_view().read() == 3).all()

    @pytest.mark.parametrize("name", ["zarr3", "plain3"])
    def test_blocks_that_were_missing(self, tmp_path: Path, name: str) -> None:
        """The index that is kept says that they are missing, which no answer contradicts."""
        kind, block_type, _ = STORED[name]
        box = wkdask.BoundingBox((0, 0, 0), (128, 128, 128))
        ds = wkdask.create(tmp_path / "tissue", voxel_size=(8, 8, 8))
        layer = ds.add_layer("new", "color", "uint8", bounding_box=box, data_format=kind)
        here = layer.add_mag(1, block_type=block_type, blocks_per_file_edge=4).get_view()
        here.write(np.full((32, 32, 32), 7, np.uint8))
        with FaultyServer(tmp_path).running() as url:
            there = wkdask.open(f"{url}/tissue", storage_options=QUICK)["new"][1].get_view()
            assert there.read((0, 0, 0), (32, 32, 32)).min() == 7
            for corner in ((64, 64, 64), (0, 32, 0), (96, 0, 96)):
                here.write(np.full((32, 32, 32), 9, np.uint8), offset=corner)
                assert there.read(corner, (32, 32, 32)).min() == 9

    def test_deleted_in_the_middle(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """What is left of a file that is gone is not shown in part."""
        tissue_of(tmp_path / "tissue", SMALL)
        server = FaultyServer(tmp_path)
        monkeypatch.setattr("wkdask.storage.remote._MOST_BYTES", 50_000)
        seen: list[int] = []

        def gone(handler: Any, data: bytes, number: int) -> bool:
            if number <= 6 or handler.path.endswith(("json", "header.wkw")):
                return False
            seen.append(number)
            handler.reply(404, b"gone", {})
            return True

        for name in ("lz4", "raw", "plain3"):
            server.fault = None
            seen.clear()
            with server.running() as url:
                mag = wkdask.open(f"{url}/tissue", storage_options=QUICK)[name][1]
                server.count, server.fault = 0, gone
                whole = mag.volume.read(tuple(map(range, (64, 0, 0), (128, 80, 70))))
            assert seen
            assert not whole.any()

    def test_deleted_file(self, faulty: Any) -> None:
        _, there, here = faulty
        for name in STORED:
            mag = there[name][1]
            assert mag.read().any()
            here[name][1].get_view().write(np.zeros(SMALL.size, np.uint16))
            assert not mag.read().any()

    @pytest.mark.parametrize("name", ["lz4", "raw", "zarr3", "plain3", "zarr"])
    def test_cut_files(self, faulty: Any, name: str) -> None:
        _, there, here = faulty
        [(cell, size), *_] = sorted(here[name][1].volume.files())
        path = Path(here[name][1].volume.file_path(cell))
        data = path.read_bytes()
        for cut in (0, 1, 15, 16, 100, size // 2, size - 1):
            path.write_bytes(data[:cut])
            with pytest.raises(FormatError):
                there[name][1].read()
        path.write_bytes(data)
        assert np.array_equal(there[name][1].read(), here[name][1].read())


def short_body(handler: Any, data: bytes, number: int) -> bool:
    """Announce all, and hang up after half of it."""
    status, part, headers = handler.ranged(data)
    handler.reply(status, part[: len(part) // 2], headers, len(part))
    return True


def no_answer(handler: Any, data: bytes, number: int) -> bool:
    """Hang up."""
    handler.close_connection = True
    return True


def error_500(handler: Any, data: bytes, number: int) -> bool:
    handler.reply(500, b"out of order", {})
    return True


def wrong_part(handler: Any, data: bytes, number: int) -> bool:
    """Send less than was asked for, and say so."""
    status, part, headers = handler.ranged(data)
    if status == 206 and len(part) > 1:
        start = int(headers["Content-Range"].split()[1].split("-")[0])
        half = len(part) // 2
        headers = {"Content-Range": f"bytes {start}-{start + half - 1}/{len(data)}"}
        handler.reply(206, part[:half], headers)
    else:
        handler.reply(500, b"out of order", {})
    return True


class TestProcesses:
    def test_the_end_of_one(self, served: wkdask.Dataset, nginx: Nginx) -> None:
        start = "from wkdask.cli.main import main; main()"
        command = [sys.executable, "-c", start, "info", f"{nginx.url}/tissue/zarr3/1"]
        for _ in range(4):
            done = subprocess.run(command, capture_output=True, text=True, timeout=60)
            assert (done.returncode, done.stderr) == (0, "")
            assert "zstd" in done.stdout

    def test_forks_are_told(self, served: wkdask.Dataset, nginx: Nginx) -> None:
        script = f"""
import multiprocessing, warnings
import wkdask
warnings.simplefilter("ignore")
view = wkdask.open({nginx.url + "/tissue"!r})["lz4"][1].get_view()
view.read((0, 0, 0), (9, 9, 9))
def child(queue):
    try:
        queue.put(str(view.read((0, 0, 0), (9, 9, 9)).shape))
    except Exception as error:
        queue.put(f"{{type(error).__name__}} {{error}}")
context = multiprocessing.get_context("fork")
queue = context.Queue()
process = context.Process(target=child, args=(queue,))
process.start()
print(queue.get(timeout=30))
process.join()
"""
        done = subprocess.run(
            [sys.executable, "-c", script], capture_output=True, text=True, timeout=100
        )
        assert "RemoteError" in done.stdout, done.stderr
        assert "spawn" in done.stdout


class TestAddresses:
    def test_passwords_in_paths_are_not_shown(self) -> None:
        entry = MagProperties(wkdask.Mag(1), "http://someone:hush@host/tissue/1")
        assert repr(entry) == "MagProperties(Mag('1'), 'http://host/tissue/1', {})"

    def test_stores_are_told_apart(self) -> None:
        layout = VolumeHeader("uint8")
        volumes = [
            volume_at("s3://bucket/1", layout, {"endpoint": f"http://host{i}", "region": "x"})
            for i in range(2)
        ]
        assert volumes[0] != volumes[1]
        assert volumes[0].key != volumes[1].key
        assert dask.base.tokenize(volumes[0]) != dask.base.tokenize(volumes[1])
        secrets = [volume_at("s3://b/1", layout, {"secret_access_key": i}) for i in "ab"]
        assert secrets[0] == secrets[1]

    def test_steps_up_stay_on_the_host(self) -> None:
        for path in ("../..", "a/../../..", "/", ".."):
            assert str(Address("https://host/a") / path) == "https://host"
        assert str(Address("https://host").parent) == "https://host"
        assert str(Address("s3://bucket/a/b").parent / "./c") == "s3://bucket/a/c"

    def test_nothing_shows_credentials(self, served: wkdask.Dataset, nginx: Nginx) -> None:
        secret = "hush-hush"
        address = f"http://someone:{secret}@127.0.0.1:{nginx.port}/tissue"
        options = {**QUICK, "headers": {"X-Token": secret}}
        ds = wkdask.open(address, storage_options=options)
        mag = ds["lz4"][1]
        array = mag.get_view().to_dask()
        assert array.sum().compute()
        shown = [
            repr(ds), repr(mag), repr(mag.volume), repr(mag.volume.place), mag.path, str(ds.path),
            ds._repr_html_(), mag._repr_html_(), str(array.dask.keys()), array.name,
            str(mag.to_xarray().encoding), repr(mag.to_xarray()), dask.base.tokenize(mag.volume),
        ]  # fmt: skip
        assert not [text for text in shown if secret in text or "someone" in text]
        other = mag.to_xarray().wkw.at_mag(1)
        assert other.encoding["credentials"].options == mag.volume.credentials.options
        nginx_down = wkdask.open(address, storage_options=options)
        with pytest.raises(WkdaskError) as failed:
            nginx_down["none"]
        assert secret not in str(failed.value)
        with pytest.raises(WkdaskError) as failed:
            wkdask.open(f"http://someone:{secret}@127.0.0.1:{nginx.port}/down/x")
        assert secret not in str(failed.value)

    @pytest.mark.parametrize(
        ("address", "options", "said"),
        [
            ("https://x.org/tissue?token=1", None, "headers"),
            ("ftp://x.org/tissue", None, "https://"),
            ("http://127.0.0.1/tissue", {"endpoint": "x"}, "headers"),
            ("s3://bucket/tissue", {"nonsense": 1}, "nonsense"),
            ("tissue", {"headers": {}, "x": 1}, "this machine"),
            ("s3://id:secret@bucket/tissue", None, "storage_options"),
            ("http://[::1/x", None, "understood"),
            ("https://x.org/tissue", "text", "dictionary"),
            ("https://x.org/tissue", {"headers": "x"}, "headers"),
            ("https://x.org/tissue", {"retry_config": 3}, "retry_config"),
            ("https://x.org/tissue", {"client_options": None}, "client_options"),
        ],
    )
    def test_bad_ones(self, address: str, options: Any, said: str) -> None:
        with pytest.raises(ArgumentError, match=said):
            wkdask.open_mag(address, storage_options=options)

    def test_odd_names(self, nginx: Nginx) -> None:
        ds = wkdask.create(nginx.files / "a b%20ü", voxel_size=(8, 8, 8))
        layer = ds.add_layer("lä yer", "color", "uint8")
        layer.add_mag(1).write(np.full((3, 3, 3), 7, np.uint8))
        there = wkdask.open(f"{nginx.url}/a%20b%2520%C3%BC/")
        assert there["lä yer"][1].read().min() == 7

    def test_a_server_that_is_out_of_order_is_not_empty(self, tmp_path: Path) -> None:
        tissue_of(tmp_path / "tissue", SMALL)
        server = FaultyServer(tmp_path)
        with server.running() as url:
            server.fault = lambda handler, *_: (
                "zarr.json" in handler.path and error_500(handler, b"", 0)
            )
            with pytest.raises(RemoteError):
                xr.open_dataset(f"{url}/tissue/zarr3/1", engine="wkw", storage_options=QUICK)

    def test_nothing_there(self, nginx: Nginx) -> None:
        for use in (wkdask.open, wkdask.open_mag, wkdask.Dataset):
            with pytest.raises(MissingError, match="nowhere"):
                use(f"{nginx.url}/nowhere")
        with pytest.raises(AccessError, match="403"):
            wkdask.open(f"{nginx.url}/private/x")
        with pytest.raises(RemoteError, match="503"):
            wkdask.open(f"{nginx.url}/down/x", storage_options=QUICK)

    def test_without_the_library(self, nginx: Nginx, monkeypatch: pytest.MonkeyPatch) -> None:
        import sys

        monkeypatch.setitem(sys.modules, "obstore", None)
        with pytest.raises(wkdask.errors.MissingExtraError, match=r"wkdask\[remote\]"):
            wkdask.open(f"{nginx.url}/other", storage_options={"headers": {"a": "b"}})


class TestJoined:
    @given(st.lists(st.tuples(st.integers(0, 5000), st.integers(1, 300)), min_size=1, max_size=40))
    def test_holds_all(self, spans: list[tuple[int, int]]) -> None:
        found = joined(np.array(spans))
        covered = np.zeros(6000, bool)
        for start, count in found.tolist():
            assert not covered[start : start + count].any()
            covered[start : start + count] = True
        wanted = np.zeros(6000, bool)
        for start, count in spans:
            wanted[start : start + count] = True
        assert (covered >= wanted).all()
        assert (covered & ~wanted).sum() * 10 <= sum(count for _, count in spans)

    def test_nothing(self) -> None:
        assert len(joined(np.empty((0, 2), np.int64))) == 0


def test_places() -> None:
    assert place_of("https://u:p@host/a/b/")[0] == "https://host/a/b"
    assert place_of("s3://bucket/a")[0] == "s3://bucket/a"


@pytest.fixture(scope="module")
def stored(s3: S3, tmp_path_factory: pytest.TempPathFactory) -> wkdask.Dataset:
    """A local dataset whose files are also objects of the store, below `lab/tissue`."""
    import obstore
    from obstore.store import from_url

    ds = tissue_of(tmp_path_factory.mktemp("s3-source") / "tissue", SMALL)
    store = from_url(s3.url, config=s3.options, client_options={"allow_http": True})
    for path in Path(ds.path).rglob("*"):
        if path.is_file():
            obstore.put(store, f"lab/tissue/{path.relative_to(ds.path)}", path)
    return ds


@pytest.mark.slow
class TestS3:
    def test_reads(self, s3: S3, stored: wkdask.Dataset) -> None:
        there = wkdask.open(f"{s3.url}/lab/tissue", storage_options=s3.options)
        assert wkdask.equal(stored, there)
        for name in STORED:
            mag = wkdask.open_mag(f"{s3.url}/lab/tissue/{name}/1", storage_options=s3.options)
            assert mag.bounding_box.contains_bbox(SMALL) or name == "lz4" or name == "raw"
            assert math.prod(mag.shape) > 0
        assert "a-secret" not in repr(there) + pickle.dumps(there["lz4"][1].path).decode("latin1")

    def test_no_bucket_is_no_zeros(self, s3: S3) -> None:
        with pytest.raises(RemoteError, match="bucket"):
            wkdask.open("s3://bucket9/lab/tissue", storage_options=s3.options)
        with pytest.raises(MissingError):
            wkdask.open(f"{s3.url}/lab/none", storage_options=s3.options)

    def test_wrong_credentials(self, s3: S3) -> None:
        options = {**s3.options, **QUICK, "endpoint": "http://127.0.0.1:9"}
        with pytest.raises(RemoteError) as failed:
            wkdask.open(f"{s3.url}/lab/tissue", storage_options=options)
        assert "secret" not in str(failed.value)


@pytest.mark.slow
class TestKills:
    """A server that dies in the middle of reads: right voxels or an error, never others."""

    def test_of_a_server(self, tmp_path: Path) -> None:
        if program("nginx") is None:
            pytest.skip("nginx is not installed")
        rng = np.random.default_rng(0)
        server = Nginx(tmp_path)
        here = tissue_of(server.files / "tissue")
        wanted = {name: here[name][1].get_view().read() for name in STORED}
        there = wkdask.open(f"{server.url}/tissue", storage_options=QUICK)
        mags = {name: there[name][1].get_view() for name in STORED}
        outcomes = {"right": 0, "refused": 0}
        for i in range(100):
            name = [*STORED][i % len(STORED)]
            killer = threading.Timer(float(rng.uniform(0, 0.03)), server.kill)
            killer.start()
            try:
                for _ in range(3):
                    assert np.array_equal(mags[name].read(), wanted[name])
                outcomes["right"] += 1
            except RemoteError:
                outcomes["refused"] += 1
            killer.join()
            server.start()
            if i % 10 == 9:
                assert np.array_equal(mags[name].read(), wanted[name])
        server.kill()
        assert outcomes["refused"] > 10, outcomes

    @pytest.mark.parametrize("name", STORED)
    def test_of_faults(self, tmp_path: Path, name: str) -> None:
        here = tissue_of(tmp_path / "tissue", SMALL)
        wanted = here[name][1].read()
        server = FaultyServer(tmp_path)
        rng = np.random.default_rng(1)
        faults = [short_body, no_answer, error_500, wrong_part]
        outcomes = {"right": 0, "refused": 0}
        with server.running() as url:
            mag = wkdask.open(f"{url}/tissue", storage_options=QUICK)[name][1]
            for i in range(100):
                share, fault = rng.uniform(0.02, 0.9), faults[i % 4]
                server.fault = lambda *a, f=fault, s=share: bool(rng.random() < s) and f(*a)
                try:
                    assert np.array_equal(mag.read(), wanted)
                    outcomes["right"] += 1
                except RemoteError:
                    outcomes["refused"] += 1
        assert min(outcomes.values()) > 5, outcomes


@pytest.mark.slow
class TestS3Writes:
    """Objects are replaced whole; parts are merged on condition that nobody else was faster."""

    @pytest.fixture
    def empty(self, s3: S3, request: pytest.FixtureRequest) -> wkdask.Dataset:
        name = re.sub(r"\W", "-", request.node.name)
        return wkdask.create(f"{s3.url}/{name}", (8, 8, 40), storage_options=s3.options)

    @pytest.mark.parametrize("name", STORED)
    def test_all_ways(
        self, empty: wkdask.Dataset, tmp_path: Path, client: Client, name: str
    ) -> None:
        here = tissue_of(tmp_path / "here", SMALL)
        kind, block_type, blocks = STORED[name]
        layer = empty.add_layer("new", "color", "uint16", bounding_box=SMALL, data_format=kind)
        mag = layer.add_mag(1, block_type=block_type, blocks_per_file_edge=blocks)
        assert not mag.read().any()
        voxels = here[name][1].get_view().read()
        mag.get_view().write(voxels)
        assert np.array_equal(mag.get_view().read(), voxels)
        for start in ((0, 0, 0), (100, 3, 7), (64, 30, 30)):
            part = np.full((1, 9, 8, 7), 77, np.uint16)
            mag.get_view().write(part, offset=start)
            x, y, z = (slice(a, a + n) for a, n in zip(start, part.shape[1:], strict=True))
            voxels[:, x, y, z] = 77
        assert np.array_equal(mag.get_view().read(), voxels)
        mag.get_view().store(da.from_array(voxels + 1), align="rechunk", executor=client)
        assert np.array_equal(mag.get_view().read(), voxels + 1)
        assert layer.downsample(coarsest_mag=4, executor=client).done
        here[name][1].get_view().write(voxels + 1)
        here[name].downsample(coarsest_mag=4)
        there = wkdask.open(str(empty.path), storage_options=empty.json.storage_options)
        assert [*there["new"].mags] == [*here[name].mags]
        assert wkdask.equal(there["new"], here[name])
        mag.get_view().write(np.zeros_like(voxels))
        assert not mag.read().any()

    def test_copies(self, empty: wkdask.Dataset, tmp_path: Path) -> None:
        here = tissue_of(tmp_path / "here", SMALL)
        for name in STORED:
            assert wkdask.copy(here[name], empty).done
        assert wkdask.equal(here, empty)

    @pytest.mark.parametrize("name", ["lz4", "raw", "zarr3"])
    def test_writers_of_one_file(self, empty: wkdask.Dataset, name: str) -> None:
        kind, block_type, _ = STORED[name]
        box = wkdask.BoundingBox((0, 0, 0), (64, 64, 64))
        layer = empty.add_layer("new", "color", "uint16", bounding_box=box, data_format=kind)
        view = layer.add_mag(1, block_type=block_type, blocks_per_file_edge=2).get_view()
        corners = [(x, y, 0) for x in (0, 16, 32, 48) for y in (0, 32)]

        def write(i: int) -> None:
            view.write(np.full((1, 16, 32, 64), i + 1, np.uint16), offset=corners[i])

        objects._PRECONDITIONS.clear()
        with ThreadPoolExecutor(8) as threads:
            list(threads.map(write, range(len(corners))))
        voxels = view.read()[0]
        for i, (x, y, z) in enumerate(corners):
            assert (voxels[x : x + 16, y : y + 32, z:] == i + 1).all(), i

    @pytest.mark.parametrize("name", ["zarr3", "plain3", "lz4"])
    def test_parts_of_large_files(self, empty: wkdask.Dataset, name: str) -> None:
        """Of a file that is merged in several pieces, most of which hold nothing at first."""
        kind, block_type, _ = STORED[name]
        box = wkdask.BoundingBox((0, 0, 0), (512, 512, 512))
        layer = empty.add_layer("new", "color", "uint8", bounding_box=box, data_format=kind)
        view = layer.add_mag(1, block_type=block_type, blocks_per_file_edge=16).get_view()
        corners = [(480, 480, 480), (0, 0, 0), (256, 256, 256), (256, 0, 0), (0, 0, 256)]
        for i, corner in enumerate(corners, 1):
            view.write(np.full((32, 32, 32), i, np.uint8), offset=corner)
        for i, corner in enumerate(corners, 1):
            assert (view.read(corner, (32, 32, 32)) == i).all()
        fresh = wkdask.open(str(empty.path), storage_options=empty.json.storage_options)
        assert [int(n) for n in np.unique(fresh["new"][1].read())] == [0, 1, 2, 3, 4, 5]

    def test_a_part_of_what_was_deleted(self, empty: wkdask.Dataset) -> None:
        for name in ("lz4", "zarr3"):
            kind, block_type, _ = STORED[name]
            box = wkdask.BoundingBox((0, 0, 0), (64, 64, 64))
            layer = empty.add_layer(name, "color", "uint8", bounding_box=box, data_format=kind)
            view = layer.add_mag(1, block_type=block_type, blocks_per_file_edge=2).get_view()
            view.write(np.ones((9, 9, 9), np.uint8))
            assert view.read().any()
            view.write(np.zeros((64, 64, 64), np.uint8))
            view.write(np.full((5, 5, 5), 3, np.uint8))
            assert view.read().sum() == 3 * 125

    def test_two_change_the_json(self, empty: wkdask.Dataset) -> None:
        def add(i: int) -> None:
            ds = wkdask.open(str(empty.path), storage_options=empty.json.storage_options)
            ds.add_layer(f"layer{i}", "color", "uint8")

        with ThreadPoolExecutor(4) as threads:
            list(threads.map(add, range(8)))
        empty.json.refresh()
        assert len(empty.layers) == 8

    def test_what_is_refused(self, empty: wkdask.Dataset, s3: S3) -> None:
        mag = empty.add_layer("new", "color", "uint16", bounding_box=SMALL).add_mag(1)
        mag.get_view().write(np.ones((1, *SMALL.size), np.uint16))
        for change in (
            lambda: mag.compress("raw"),
            lambda: mag.rechunk(blocks_per_file_edge=2),
            lambda: mag.get_view().store(mag.get_view().to_dask() + 1, resume=True),
            lambda: wkdask.copy(empty["new"], empty, layer_name="other", resume=True),
        ):
            with pytest.raises(ArgumentError, match="remote"):
                change()
        with pytest.raises(ExistsError):
            wkdask.create(str(empty.path), (8, 8, 40), storage_options=s3.options)
        with pytest.raises(ExistsError):
            empty["new"].add_mag(1)
        with pytest.raises(ReadOnlyError, match="web server"):
            wkdask.create("http://127.0.0.1:9/new", (8, 8, 8))
        wkdask.create(str(empty.path), (8, 8, 40), exist_ok=True, storage_options=s3.options)

    def test_a_store_without_preconditions(self, tmp_path: Path) -> None:
        """What could lose voxels or layers of another writer is refused; whole files are not."""
        if program("rclone") is None:
            pytest.skip("rclone is not installed")
        with run_rclone(tmp_path) as store:
            here = tissue_of(tmp_path / "bucket1" / "tissue", SMALL)
            ds = wkdask.open(f"{store.url}/tissue", storage_options=store.options)
            for name in ("lz4", "raw", "zarr3"):
                mag = ds[name][1]
                size = mag.volume.layout.file_size
                mag.volume.write(
                    wkdask.BoundingBox((0, 0, 0), size), np.full((1, *size), 5, np.uint16)
                )
                # This server answers ranges by the status 200, which obstore refuses.
                written = here[name][1].volume
                assert written.read(tuple(map(range, size))).min() == 5
                with pytest.raises(RemoteError, match="If-Match"):
                    mag.get_view().write(np.ones((1, 3, 3, 3), np.uint16))
                assert written.read(tuple(map(range, size))).min() == 5
            with pytest.raises(RemoteError, match="If-Match"):
                ds.add_layer("new", "color", "uint8")
            with pytest.raises(ExistsError):
                wkdask.create(f"{store.url}/tissue", (8, 8, 40), storage_options=store.options)
            here.json.refresh()
            assert [*here.layers] == [*STORED]
            left = [path.name for path in tmp_path.rglob("*") if "probe" in path.name]
            assert not left
