"""The docs say what is true: their code runs, their pictures are current, what they name exists."""

from __future__ import annotations

import ast
import contextlib
import doctest
import io
import re
import runpy
import subprocess
import sys
import tomllib
import zlib
from collections.abc import Iterator
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from pkgutil import walk_packages
from types import ModuleType
from typing import Any

import numpy as np
import pytest

import wkdask
from wkdask.runtime import config as _config
from wkdask.testing import Tissue

ROOT = Path(__file__).parents[2]
SETTINGS = {f"wkdask.{name}" for name in _config.dask.config.get("wkdask")}
PAGES = sorted([ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").rglob("*.md")])
ALL_MODULES = sorted(module.name for module in walk_packages(wkdask.__path__, "wkdask."))
# The front of a room is one docstring and has no `__all__`.
MODULES = [name for name in ALL_MODULES if hasattr(import_module(name), "__all__")]

ROOMS = {name.split(".")[1] for name in ALL_MODULES if name.count(".") == 2}

PYTHON = re.compile(r"^```python\n(.*?)^```", re.DOTALL | re.MULTILINE)
SHELL = re.compile(r"^```sh\n(.*?)^```", re.DOTALL | re.MULTILINE)
ANCHOR = re.compile(r"\]\(([^)#:]*)#([^)]+)\)")
LINK = re.compile(r"\]\(([^)#:]+)(?:#[^)]*)?\)")
STATED = re.compile(r"# (\(.*?\)|\['.*?\]|True|False|\d+)(:|$)")
IN_BACKTICKS = re.compile(r"(?<!`)`([^`\n]+)`(?!`)")


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def code_of(page: Path) -> list[str]:
    return PYTHON.findall(page.read_text(encoding="utf-8"))


def starts_cluster(page: Path) -> bool:
    return any("Cluster(" in code or "Pool" in code for code in code_of(page))


def prose_of(page: Path) -> str:
    return re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL | re.M)


@pytest.fixture
def demo_dataset(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> wkdask.Dataset:
    """A small stand-in for what `wkdask demo` leaves behind; its layout is compared below."""
    monkeypatch.chdir(tmp_path)
    ds = wkdask.create("wkdask-demo", voxel_size=(11.24, 11.24, 28.0))
    box = wkdask.BoundingBox((77, 41, 13), (140, 100, 60))
    tissue = Tissue()
    for name, dtype, paint, mode in (
        ("color", "uint8", tissue.grey, "median"),
        ("segmentation", "uint32", tissue.labels, "mode"),
    ):
        layer = ds.add_layer(name, name, dtype, bounding_box=box)
        fine = layer.add_mag(1, blocks_per_file_edge=4, block_type="lz4")
        fine.get_view().store(paint(box.topleft, box.size), align="rechunk")
        coarse = layer.add_mag("2-2-1", blocks_per_file_edge=4)
        wkdask.downsample(layer[1], coarse, mode)
    return ds


@pytest.mark.parametrize(
    "page",
    [
        pytest.param(page, marks=pytest.mark.slow if starts_cluster(page) else ())
        for page in PAGES
        if code_of(page)
    ],
    ids=name_of,
)
def test_code_of_the_docs_runs(page: Path, demo_dataset: wkdask.Dataset) -> None:
    """Each block runs after those before it, and `expression  # (a, value)` has that value."""
    # As in a script, so that functions travel to worker processes by value.
    namespace: dict[str, Any] = {"__name__": "__main__"}
    with contextlib.redirect_stdout(io.StringIO()):
        for code in code_of(page):
            for statement in ast.parse(code).body:
                run_statement(statement, code, page, namespace)


def run_statement(statement: ast.stmt, code: str, page: Path, namespace: dict[str, Any]) -> None:
    if not isinstance(statement, ast.Expr):
        exec(compile(ast.Module([statement], []), page.name, "exec"), namespace)
        return
    value = eval(compile(ast.Expression(statement.value), page.name, "eval"), namespace)
    last_line = code.splitlines()[(statement.end_lineno or 0) - 1]
    if stated := STATED.search(last_line):
        assert value == ast.literal_eval(stated[1]), last_line


def _doctests() -> Iterator[Any]:
    finder = doctest.DocTestFinder(exclude_empty=True)
    names = {
        name: value
        for module in map(import_module, MODULES)
        for name, value in vars(module).items()
        if name in module.__all__ and isinstance(value, type)
    }
    for module_name in MODULES:
        module = import_module(module_name)
        public = {name: getattr(module, name) for name in module.__all__}
        globs = {"wkdask": wkdask, "np": np, **names, **public}
        for test in finder.find(module, globs=globs):
            if test.examples:
                yield pytest.param(test, id=test.name)


@pytest.mark.parametrize("test", list(_doctests()))
def test_examples_of_docstrings_run(
    test: doctest.DocTest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    out = io.StringIO()
    runner = doctest.DocTestRunner(optionflags=doctest.NORMALIZE_WHITESPACE)
    runner.run(test, out=out.write)
    assert runner.failures == 0, out.getvalue()


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_links_lead_somewhere(page: Path) -> None:
    for target in LINK.findall(page.read_text(encoding="utf-8")):
        assert (page.parent / target).exists(), f"{page.name} links to {target}"


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_links_lead_to_a_heading(page: Path) -> None:
    for target, anchor in ANCHOR.findall(page.read_text(encoding="utf-8")):
        assert anchor in anchors_of(page.parent / target if target else page), (target, anchor)


def anchors_of(page: Path) -> set[str]:
    """Return the names of headings, as Sphinx and GitHub make them, and of labels."""
    text = page.read_text(encoding="utf-8")
    headings = re.findall(
        r"^#{1,3} (.*)$", re.sub(r"^```.*?^```", "", text, flags=re.S | re.M), re.M
    )
    slugs = (re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings)
    return {*slugs, *re.findall(r"^\((.*)\)=$", text, re.M)}


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_files_and_names_of_ours_exist(page: Path) -> None:
    for words in IN_BACKTICKS.findall(prose_of(page)):
        if re.fullmatch(r"(wkdask|docs|tests|notebooks|\.ci)/[\w./-]+", words):
            assert (ROOT / words).exists(), f"{page.name} names {words}"
        elif words in SETTINGS:
            continue
        elif re.fullmatch(r"wkdask(\.\w+)+", words):
            assert resolved(words) is not None, f"{page.name} names {words}"
        elif words.split(".")[0] in ROOMS - {"xr"} and re.fullmatch(r"\w+(\.\w+)+", words):
            assert resolved(f"wkdask.{words}") is not None, f"{page.name} names {words}"


def test_the_rooms_name_all_their_files() -> None:
    page = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    lists = dict(re.findall(r"^- \*\*(\w+)\*\*: (.*?)\.$", page, re.MULTILINE | re.DOTALL))
    for room, words in lists.items():
        files = {path.stem for path in (ROOT / "wkdask" / room).glob("*.py")} - {"__init__"}
        assert files <= set(IN_BACKTICKS.findall(words)), room


def resolved(dotted: str) -> Any:
    """Return what `wkdask.a.b` names, or None."""
    value: Any = wkdask
    for part in dotted.split(".")[1:]:
        if isinstance(value, ModuleType) and f"{value.__name__}.{part}" in ALL_MODULES:
            value = import_module(f"{value.__name__}.{part}")
        elif (value := getattr(value, part, None)) is None:
            return None
    return value


def test_the_view_page_names_every_method() -> None:
    page = (ROOT / "docs" / "view.md").read_text(encoding="utf-8")
    words = set(re.findall(r"\w+", " ".join(IN_BACKTICKS.findall(page))))
    for kind in (wkdask.View, wkdask.MagView):
        public = {name for name in dir(kind) if not name.startswith("_")}
        assert public <= words, f"docs/view.md lacks {public - words}"


def test_the_api_page_has_every_public_name() -> None:
    page = (ROOT / "docs" / "api.md").read_text(encoding="utf-8")
    documented = re.findall(r"^(?:   |\.\. automodule:: wkdask\.)(\w+)$", page, re.MULTILINE)
    assert set(wkdask.__all__) <= set(documented)


@pytest.mark.slow
def test_the_built_pages_hold_every_public_name(tmp_path: Path) -> None:
    """Names are found by the search of the site and by links from other sites."""
    for package in ("furo", "myst_nb", "sphinx", "sphinx_design"):
        if find_spec(package) is None:
            pytest.skip(f"{package} is not installed")
    html = tmp_path / "html"
    options = ["-W", "-q", "-D", "nb_execution_mode=off"]
    command = [sys.executable, "-m", "sphinx", *options, str(ROOT / "docs"), str(html)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    packed = (html / "objects.inv").read_bytes().split(b"zlib.\n")[1]
    names = {line.split()[0] for line in zlib.decompress(packed).decode().splitlines()}
    public = {f"wkdask.{name}" for name in wkdask.__all__}
    public |= {f"wkdask.errors.{name}" for name in wkdask.errors.__all__}
    for kind in (wkdask.Dataset, wkdask.Layer, wkdask.View, wkdask.MagView):
        members = (name for name in dir(kind) if not name.startswith("_"))
        public |= {f"wkdask.{kind.__name__}.{name}" for name in members}
    assert not public - names
    index = (html / "searchindex.js").read_text(encoding="utf-8")
    assert not [name for name in wkdask.__all__ if f'"{name}"' not in index]


def test_the_errors_page_shows_the_tree() -> None:
    page = (ROOT / "docs" / "errors.md").read_text(encoding="utf-8")
    lines = [line.rstrip() for line in page.split("```text\n")[1].split("```")[0].splitlines()]
    assert lines == tree_lines()


def tree_lines() -> list[str]:
    """Return the tree in the docstring of `wkdask.errors`."""
    text = wkdask.errors.__doc__ or ""
    block = re.findall(r"^    (\S.*|[│ ].*)$", text, re.MULTILINE)
    return [line.rstrip() for line in block]


def test_the_tree_of_errors_is_that_of_the_classes() -> None:
    _, first, *_ = lines = tree_lines()
    bases_column, text_column = first.index("ValueError"), first.index("an argument")
    path = ["WkdaskError"]
    shown = {}
    for line in lines[1:]:
        name = re.search(r"── (\w+)", line)
        assert name, line
        del path[(name.start() + 4) // 4 :]
        bases = line[bases_column:text_column].strip()
        shown[name[1]] = ", ".join(filter(None, [path[-1], bases]))
        path.append(name[1])
    assert {"WkdaskError", *shown} == {name for name in wkdask.errors.__all__ if name[0].isupper()}
    for name, bases in shown.items():
        kind = getattr(wkdask.errors, name)
        assert ", ".join(base.__name__ for base in kind.__bases__) == bases, name


def test_pictures_are_current() -> None:
    script = ROOT / "docs" / "images" / "draw.py"
    for name, draw in runpy.run_path(str(script))["PICTURES"].items():
        saved = script.with_name(name).read_text(encoding="utf-8")
        assert draw() == saved, f"{name} is old: run python docs/images/draw.py"


def test_the_two_commands_are_one_line_each() -> None:
    blocks = SHELL.findall((ROOT / "README.md").read_text(encoding="utf-8"))
    assert [len(block.splitlines()) for block in blocks] == [1, 1]
    assert blocks[0].endswith("wkdask demo\n")
    assert blocks[1].endswith("-m pytest -n 2\n")


def test_dependencies_are_explained() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    page = (ROOT / "docs" / "dependencies.md").read_text(encoding="utf-8")
    hard, extras = page.split("## Extras")
    rows = re.findall(r"^\| `([\w\[\]]+)` \|", hard, re.MULTILINE)
    assert sorted(rows) == sorted(re.split("[><=]", name)[0] for name in project["dependencies"])
    rows = re.findall(r"^\| `(\w+)` \|", extras, re.MULTILINE)
    groups = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    assert sorted(rows) == sorted([*project["optional-dependencies"], *groups["dependency-groups"]])


@pytest.mark.slow
def test_the_stand_in_has_the_layout_of_the_demo(demo_dataset: wkdask.Dataset) -> None:
    from wkdask.cli.demo import run_demo

    assert run_demo(None, "made-by-demo", lambda line: None)
    made = wkdask.open("made-by-demo")
    assert made.voxel_size == demo_dataset.voxel_size
    for name, layer in demo_dataset.layers.items():
        assert made[name].dtype == layer.dtype
        assert list(made[name].mags) == list(layer.mags)
        assert made[name].bounding_box.topleft == layer.bounding_box.topleft
