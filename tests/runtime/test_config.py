"""Settings: defaults, what they change, and where they are seen."""

from __future__ import annotations

import math
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import dask
import pytest

import wkdask
from wkdask.errors import ArgumentError
from wkdask.runtime import config
from wkdask.runtime.progress import Progress

ROOT = Path(wkdask.__file__).parents[1]


def layer_in(tmp_path: Path) -> wkdask.Layer:
    ds = wkdask.create(tmp_path / "tissue", voxel_size=(8, 8, 8))
    return ds.add_layer("color", "color", "uint8")


def test_block_type(tmp_path: Path) -> None:
    layer = layer_in(tmp_path)
    assert layer.add_mag(1).volume.layout.describe()["block_type"] == "lz4hc"
    with dask.config.set({"wkdask.block-type": "raw"}):
        assert layer.add_mag(2).volume.layout.describe()["block_type"] == "raw"
        assert layer.add_mag(4, block_type="lz4").volume.layout.describe()["block_type"] == "lz4"


def test_write_options(tmp_path: Path) -> None:
    layer = layer_in(tmp_path)
    layer.add_mag(1)
    with dask.config.set({"wkdask.fsync": True, "wkdask.hc-level": 7, "wkdask.keep-zeros": True}):
        options = layer[1].volume.options
    assert (options.fsync, options.hc_level, options.keep_zeros) == (True, 7, True)
    assert not layer[1].volume.options.fsync


@pytest.mark.parametrize(
    ("name", "value", "call"),
    [
        ("block-type", "zip", lambda layer: layer.add_mag(1)),
        ("hc-level", 99, lambda layer: layer.add_mag(1)),
        ("fsync", "perhaps", lambda layer: layer.add_mag(1)),
        ("window", 0, lambda _: config.window()),
        ("progress-style", "loud", lambda _: config.progress_style()),
        ("no-workers-timeout", "5 min", lambda _: config.no_workers_timeout()),
        ("no-workers-timeout", [], lambda _: config.no_workers_timeout()),
    ],
    ids=["block-type", "hc-level", "fsync", "window", "progress-style", "a-unit", "no-time"],
)
def test_what_cannot_be_is_told(tmp_path: Path, name: str, value: Any, call: Any) -> None:
    layer = layer_in(tmp_path)
    with (
        dask.config.set({f"wkdask.{name}": value}),
        pytest.raises(ArgumentError, match=re.escape(str(value))),
    ):
        call(layer)


@pytest.mark.parametrize(
    ("value", "seconds"), [("300s", 300), ("2 hours", 7200), (20, 20), (None, math.inf)]
)
def test_times(value: Any, seconds: float) -> None:
    with dask.config.set({"wkdask.no-workers-timeout": value}):
        assert config.no_workers_timeout() == seconds


def test_defaults_are_in_order() -> None:
    assert config.no_workers_timeout() == 300
    assert config.window() == 512
    assert config.progress_style() == "auto"
    assert config.write_options() is None
    assert config.blocks_of_new(None) == "lz4hc"


def test_plain_progress_has_no_control_codes(capsys: Any) -> None:
    with dask.config.set({"wkdask.progress-style": "plain"}), Progress(100, True) as bar:
        for number in range(1, 101):
            bar.show(number, voxels=number * 10**6)
    text = capsys.readouterr().err
    assert "\r" not in text
    assert "\x1b" not in text
    assert "100/100" in text.splitlines()[-1]
    assert len(text.splitlines()) <= 2


def test_an_environment_variable_sets_it() -> None:
    code = "from wkdask.runtime.config import setting; print(setting('fsync'), setting('window'))"
    env = {**os.environ, "DASK_WKDASK__FSYNC": "True", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == ["True", "512"]


def test_every_setting_is_on_the_page() -> None:
    page = (ROOT / "docs" / "configuration.md").read_text(encoding="utf-8")
    for name in dask.config.get("wkdask"):
        assert f"`wkdask.{name}`" in page


def test_nothing_is_written_to_the_home_directory(tmp_path: Path) -> None:
    env = {**os.environ, "HOME": str(tmp_path), "PYTHONPATH": str(ROOT)}
    env.pop("NUMBA_CACHE_DIR", None)
    code = "import wkdask; wkdask.create; import wkdask.runtime.config"
    subprocess.run([sys.executable, "-c", code], env=env, check=True)
    assert not (tmp_path / ".config").exists()
