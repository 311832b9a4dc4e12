"""The viewer in a live JupyterLab: from a slider, through the kernel, to pixels."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import nbformat
import numpy as np
import pytest

import wkdask
from wkdask import BoundingBox

pytest.importorskip("anywidget")
pytest.importorskip("jupyterlab")

pytestmark = pytest.mark.slow
TOKEN = "tissue"
BOX = BoundingBox((0, 0, 0), (512, 512, 128))


@contextlib.contextmanager
def lab(folder: Path) -> Iterator[str]:
    """Run a JupyterLab server on this machine only, and yield its address."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    root = Path(wkdask.__file__).parents[1]
    process = subprocess.Popen(
        [
            sys.executable, "-m", "jupyterlab", "--no-browser", "--allow-root", "--ip=127.0.0.1",
            f"--port={port}", f"--IdentityProvider.token={TOKEN}", f"--notebook-dir={folder}",
            "--LabApp.news_url=None",
        ],
        env={**os.environ, "PYTHONPATH": str(root), "HOME": str(folder), "MPLBACKEND": "agg"},
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    address = f"http://127.0.0.1:{port}"
    try:
        for _ in range(300):
            with contextlib.suppress(OSError):
                urllib.request.urlopen(f"{address}/api?token={TOKEN}", timeout=2).read()
                break
            time.sleep(0.1)
        yield address
    finally:
        process.terminate()
        process.wait(20)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> wkdask.Dataset:
    ds = wkdask.create(tmp_path_factory.mktemp("lab") / "tissue", voxel_size=(4, 4, 16))
    color = ds.add_layer("color", "color", "uint8", bounding_box=BOX)
    # Every plane has a value of its own.
    planes = np.arange(128, dtype=np.uint8)[None, None, :]
    color.add_mag(1, blocks_per_file_edge=8, block_type="lz4").write(
        np.broadcast_to(planes + 50, BOX.size)
    )
    color.downsample(coarsest_mag="2-2-1")
    return ds


def notebook(dataset: wkdask.Dataset) -> nbformat.NotebookNode:
    cells = [
        f"import wkdask\nds = wkdask.open({str(dataset.path)!r})\nds['color']",
        "viewer = ds.show(planes='xy', position=(100, 100, 20), height=320)\nviewer",
        "viewer.position = [100, 100, 90]",
        "print('position', viewer.position, viewer.planes)",
    ]
    made = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in cells])
    made.metadata["kernelspec"] = {"name": "python3", "display_name": "Python 3"}
    return made


def grey(page: Any) -> int | None:
    """Return the value in the middle of the plane, beside the lines that cross there."""
    return page.evaluate(
        """() => { const c = document.querySelector("canvas[data-plane=xy]");
        if (!c || !c.width) return null;
        const [x, y] = [c.width / 2 + 40, c.height / 2 + 40];
        return c.getContext("2d").getImageData(x, y, 1, 1).data[0]; }"""
    )


def wait_for(page: Any, value: int) -> float:
    """Wait until a value is drawn, and return the seconds that took."""
    start = time.perf_counter()
    while time.perf_counter() - start < 30:
        if grey(page) == value:
            return time.perf_counter() - start
        page.wait_for_timeout(10)
    raise AssertionError(f"{value} is not drawn, but {grey(page)}")


def run_cell(page: Any, number: int) -> None:
    """Run a cell; again where JupyterLab took no notice, as it may before its kernel is there."""
    cell = page.locator(".jp-Notebook .jp-CodeCell").nth(number)
    prompt = cell.locator(".jp-InputPrompt")
    for _ in range(12):
        cell.locator(".cm-content").click(timeout=180_000)
        page.keyboard.press("Control+Enter")
        for _ in range(100):
            if prompt.inner_text().strip() not in ("[ ]:", ""):
                return
            page.wait_for_timeout(100)
    raise AssertionError(f"cell {number} does not run; the page says:\n{said(page)}")


def said(page: Any) -> str:
    """Return what a page says, for a message."""
    return str(page.locator("body").inner_text())[-3000:]


def shown(page: Any, selector: str) -> None:
    """Wait until something is on the page, or tell what is there instead."""
    from playwright.sync_api import TimeoutError as Late

    try:
        page.locator(selector).first.wait_for(timeout=120_000)
    except Late:
        raise AssertionError(f"no {selector}; the page says:\n{said(page)}") from None


def test_slider_to_pixels(
    dataset: wkdask.Dataset, tmp_path: Path, browser: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    nbformat.write(notebook(dataset), tmp_path / "viewer.ipynb")
    errors: list[str] = []
    with lab(tmp_path) as address:
        page = browser.new_page(viewport={"width": 1200, "height": 1100})
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.goto(f"{address}/lab/tree/viewer.ipynb?token={TOKEN}")
        run_cell(page, 0)
        shown(page, ".wk-box")
        run_cell(page, 1)
        shown(page, "canvas[data-plane=xy]")
        wait_for(page, 70)
        assert not page.locator("[data-wkdask-viewer]").first.is_visible()
        slider = page.locator("input[data-axis=z]")
        seconds = []
        for z in range(30, 60):
            slider.fill(str(z))
            seconds.append(wait_for(page, z + 50))
        assert np.median(seconds) < 1.0, "planes come as one looks"
        with capsys.disabled():
            sys.stdout.write(f" {1 / np.median(seconds):.0f} planes per second ")
        page.wait_for_timeout(2000)  # a position under way from the slider would win
        run_cell(page, 2)
        wait_for(page, 140)
        slider.fill("77")
        wait_for(page, 127)
        page.wait_for_timeout(500)
        run_cell(page, 3)
        page.get_by_text("77.5] xy").wait_for(timeout=20_000)
        if folder := os.environ.get("WKDASK_TEST_SCREENSHOTS"):
            page.screenshot(path=f"{folder}/jupyterlab.png")
        page.close()
    assert [error for error in errors if "wkdask" in error or "wkv" in error] == []


def test_a_static_export_has_a_picture(dataset: wkdask.Dataset) -> None:
    """Without a kernel, a page shows the tables and a picture of the viewer."""
    client = pytest.importorskip("nbclient")
    exporter = pytest.importorskip("nbconvert").HTMLExporter()
    made = notebook(dataset)
    environment = dict(os.environ)
    os.environ["PYTHONPATH"] = str(Path(wkdask.__file__).parents[1])
    try:
        client.NotebookClient(made, timeout=120).execute()
    finally:
        os.environ.clear()
        os.environ.update(environment)
    page, _ = exporter.from_notebook_node(made)
    assert "data-wkdask-viewer" in page
    assert "data:image/png;base64" in page
    assert "wk-box" in page
