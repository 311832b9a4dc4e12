"""A page with the viewer's module and a model that stands for the kernel's, in a real browser."""

from __future__ import annotations

import base64
import contextlib
import shutil
from collections.abc import Iterator
from typing import Any

import pytest

from wkdask.show.viewer import _HERE, Viewer, read_tile

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")

# What anywidget gives to a module, with a kernel that answers after some milliseconds.
MODEL = """
class Model {
  constructor(state) { this.state = state; this.handlers = {}; this.saves = 0; this.open = 0; this.most = 0; this.asked = 0; }
  get(name) { return this.state[name]; }
  set(name, value) { this.state[name] = value; this.emit("change:" + name); }
  save_changes() { this.saves++; }
  on(event, handler) { (this.handlers[event] ||= []).push(handler); }
  off(event, handler) { this.handlers[event] = (this.handlers[event] || []).filter((h) => h !== handler); }
  emit(event, ...values) { for (const handler of [...(this.handlers[event] || [])]) handler(...values); }
  async send(message) {
    this.open++; this.asked++; this.most = Math.max(this.most, this.open);
    const [header, data] = await window.answer(message);
    const bytes = Uint8Array.from(atob(data), (c) => c.charCodeAt(0));
    this.open--;
    // A byte before the voxels, as they may begin anywhere in a message.
    const shifted = new Uint8Array(bytes.length + 1);
    shifted.set(bytes, 1);
    this.emit("msg:custom", header, [new DataView(shifted.buffer, 1)]);
  }
}
"""


class Shown:
    """A viewer in a page."""

    def __init__(self, page: Any, viewer: Viewer) -> None:
        self.page = page
        self.viewer = viewer
        self.errors: list[str] = []
        self.asked: list[dict[str, Any]] = []
        page.on("pageerror", lambda error: self.errors.append(str(error)))
        page.on("console", lambda line: line.type == "error" and self.errors.append(line.text))

    def start(self, **traits: Any) -> None:
        names = ("position", "zoom", "layers", "planes", "height", "_described", "_key")
        state = {name: getattr(self.viewer, name) for name in names} | traits
        source = (_HERE / "viewer.js").read_bytes()
        self.page.expose_function("answer", self.answer)
        self.page.set_content("<body style='margin:0;width:800px'><div id=v></div></body>")
        self.page.add_style_tag(content=(_HERE / "viewer.css").read_text())
        self.page.evaluate(
            f"""async ([state, source]) => {{
            {MODEL}
            window.viewerModule = await import("data:text/javascript;base64," + source);
            window.model = new Model(state);
            window.close_viewer = window.viewerModule.default.render(
                {{ model: window.model, el: document.getElementById("v") }});
            window.viewer = document.getElementById("v").wkdaskViewer;
            }}""",
            [state, base64.b64encode(source).decode()],
        )
        self.wait()

    def answer(self, message: dict[str, Any]) -> list[Any]:
        self.asked.append(message)
        try:
            pixels = read_tile(self.viewer._shown, message)
        except Exception as error:
            return [{"kind": "error", "key": message["key"], "text": str(error)}, ""]
        about = {
            "kind": "tile",
            "key": message["key"],
            "shape": list(pixels.shape),
            "dtype": pixels.dtype.name,
        }
        return [about, base64.b64encode(pixels.tobytes()).decode()]

    def wait(self) -> None:
        """Wait until nothing is asked for and all is drawn."""
        idle = (
            "() => window.viewer && !viewer.isDirty && viewer.tiles.sent.size === 0"
            " && viewer.tiles.wanted.length === 0 && model.open === 0"
        )
        for _ in range(3):
            self.page.wait_for_function(idle, timeout=20_000)
            self.page.wait_for_timeout(40)

    def get(self, name: str) -> Any:
        return self.page.evaluate("(name) => model.get(name)", name)

    def set(self, name: str, value: Any) -> None:
        self.page.evaluate("([name, value]) => model.set(name, value)", [name, value])
        self.wait()

    def plane(self, name: str = "xy") -> Any:
        return self.page.locator(f"canvas[data-plane={name}]")

    def pixel(self, left: float, top: float, plane: str = "xy") -> list[int]:
        """Return red, green and blue at a point of a plane, in pixels of the page."""
        return self.page.evaluate(
            """([plane, left, top]) => { const c = document.querySelector(`canvas[data-plane=${plane}]`);
            return [...c.getContext("2d").getImageData(left, top, 1, 1).data].slice(0, 3); }""",
            [plane, left, top],
        )

    def at_voxel(self, voxel: tuple[float, float, float], plane: str = "xy") -> list[int]:
        """Return the colour that is drawn for a voxel of mag 1."""
        left, top = self.page.evaluate(
            "([plane, p]) => { const v = viewer.planes[plane]; return [v.left(p[v.right]), v.top(p[v.down])]; }",
            [plane, list(voxel)],
        )
        return self.pixel(left, top, plane)


@contextlib.contextmanager
def opened_browser() -> Iterator[Any]:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        try:
            yield browser
        finally:
            browser.close()


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """A headless Chromium."""
    pytest.importorskip("playwright")
    if CHROMIUM is None:
        pytest.skip("chromium is not installed")
    with opened_browser() as opened:
        yield opened


@pytest.fixture
def in_browser(browser: Any) -> Iterator[Any]:
    """Show a viewer in a page of its own, with traits that differ from the viewer's."""
    pages = []

    def show(viewer: Viewer, **traits: Any) -> Shown:
        page = browser.new_page(viewport={"width": 820, "height": 760})
        pages.append(page)
        shown = Shown(page, viewer)
        shown.start(**traits)
        return shown

    yield show
    for page in pages:
        page.close()
