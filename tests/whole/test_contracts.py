"""What must stay true of the code as a whole: layers, public names, light imports, versions."""

from __future__ import annotations

import ast
import importlib
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from functools import cache
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

import wkdask

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "wkdask"

# The rooms of the house: a room uses itself and those in earlier rows; docs/architecture.md says
# what each one knows. Files directly in the package are rooms of their own.
ROOMS: tuple[set[str], ...] = (
    {"_compile", "errors"},
    {"geometry", "units"},
    {"grids", "kernels", "show"},
    {"storage"},
    {"runtime"},
    {"arrays"},
    {"pyramid"},
    {"dataset"},
    {"formats", "testing", "xr"},
    {"cli"},
)
ROWS = {room: row for row, rooms in enumerate(ROOMS) for room in rooms}
# Modules that are found by their name in a string, because the library behind it asks for it so.
BY_NAME = {("arrays.labelled", "xr.accessor")}


def _dotted(path: Path) -> str:
    return ".".join(path.relative_to(PACKAGE).with_suffix("").parts).removesuffix(".__init__")


FILES = {_dotted(path): path for path in sorted(PACKAGE.rglob("*.py"))}
MODULES = [module for module in FILES if module != "__init__"]

# Packages that only a few rooms may know, and which.
KNOWN_BY = {
    "dask": {"arrays", "formats", "runtime"},
    "distributed": {"cli", "runtime"},
    "xarray": {"arrays", "xr"},
    "pandas": {"arrays"},
    "matplotlib": {"show"},
    "PIL": {"show"},
    "IPython": {"show"},
    "anywidget": {"show"},
    "traitlets": {"show"},
    "numba": {"_compile", "kernels", "storage"},
    "llvmlite": {"storage"},
    "lz4": {"storage"},
    "obstore": {"storage"},
    "ctypes": {"storage"},
    "fcntl": {"dataset", "storage"},
    "wkw": {"arrays", "cli", "storage", "testing"},
    "click": {"cli"},
    "json": {"cli", "dataset", "runtime", "storage"},
    "threading": {"storage"},
    "tifffile": {"formats"},
    "zarr": {"formats", "storage"},
    "webknossos": set(),
}
# These may be named for type checkers as well.
NAMED_BY = {"matplotlib": {"arrays", "dataset", "xr"}, "xarray": {"dataset"}}


@cache
def tree_of(module: str) -> ast.Module:
    return ast.parse(FILES[module].read_text(encoding="utf-8"))


def imports_of(node: ast.AST, *, types: bool = True) -> Iterator[str]:
    """Yield what is imported anywhere below, in functions too; `types`: below TYPE_CHECKING too."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Import):
            yield from (alias.name for alias in child.names)
        elif isinstance(child, ast.ImportFrom):
            assert child.level == 0, "imports are absolute"
            yield from (f"{child.module}.{alias.name}" for alias in child.names)
        elif isinstance(child, ast.If) and ast.unparse(child.test) == "TYPE_CHECKING":
            if types:
                yield from imports_of(child, types=types)
        else:
            yield from imports_of(child, types=types)


def room_of(module: str) -> str:
    return module.split(".")[0]


def _module_of(name: str) -> str | None:
    """Return the module of ours that a dotted name means: itself, or where what it names lies."""
    dotted = name.removeprefix("wkdask").lstrip(".")
    if not name.startswith("wkdask.") or not dotted:
        return None
    return dotted if dotted in FILES else dotted.rpartition(".")[0] or None


def ours_in(module: str, *, types: bool = True) -> set[str]:
    """Return the modules of wkdask that a module imports."""
    names = imports_of(tree_of(module), types=types)
    return {ours for name in names if (ours := _module_of(name)) is not None}


def named_in(module: str) -> set[str]:
    """Return the modules of wkdask that strings of a module name, docstrings aside."""
    texts = {
        node.value
        for node in ast.walk(tree_of(module))
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
    }
    return {text[7:] for text in texts if text.startswith("wkdask.") and text[7:] in FILES}


def run_python(code: str) -> str:
    return subprocess.run(
        [sys.executable, "-c", code], check=True, capture_output=True, text=True, timeout=60
    ).stdout


# --- layers -------------------------------------------------------------------------------------


def test_every_room_has_one_row() -> None:
    assert set(ROWS) == {room_of(module) for module in MODULES}
    assert sum(map(len, ROOMS)) == len(ROWS)


def test_the_hall_is_small() -> None:
    assert len(list(PACKAGE.glob("*.py"))) <= 9
    assert all(path.parent.parent == PACKAGE for path in PACKAGE.rglob("*/*.py"))


@pytest.mark.parametrize("module", MODULES)
def test_rooms_use_those_above(module: str) -> None:
    for used in ours_in(module) | named_in(module):
        mine, theirs = room_of(module), room_of(used)
        if mine != theirs and (module, used) not in BY_NAME:
            assert ROWS[theirs] < ROWS[mine], f"{module} uses {used}, which is no room above"


def test_no_file_imports_itself_by_way_of_others() -> None:
    TopologicalSorter({module: ours_in(module) - {module} for module in MODULES}).prepare()


def test_what_is_found_by_its_name() -> None:
    found = {(module, used) for module in MODULES for used in named_in(module)}
    assert found == BY_NAME


@pytest.mark.parametrize("module", MODULES)
def test_imports_at_the_top_do_not_go_through_the_package(module: str) -> None:
    """`import wkdask` would hide what is imported; only the command needs it, for the version."""
    assert module == "cli.main" or "wkdask" not in set(imports_of(tree_of(module)))


def test_the_rooms_in_the_docs_are_the_same() -> None:
    page = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| (\d+) \| `(\w+)` \| \S", page, re.MULTILINE)
    assert {room: int(row) for row, room in rows} == ROWS


@pytest.mark.parametrize("package", KNOWN_BY)
def test_packages_are_known_by_few_rooms(package: str) -> None:
    def importers(*, types: bool) -> set[str]:
        return {
            room_of(module)
            for module in MODULES
            for name in imports_of(tree_of(module), types=types)
            if name.split(".")[0] == package
        }

    assert importers(types=False) == KNOWN_BY[package]
    assert importers(types=True) == KNOWN_BY[package] | NAMED_BY.get(package, set())


def test_only_runtime_and_those_below_it_know_threads_and_schedulers() -> None:
    for module in MODULES:
        if ROWS[room_of(module)] < ROWS["runtime"]:
            packages = {name.split(".")[0] for name in imports_of(tree_of(module))}
            # Several threads pack one file, and end with it; others send requests.
            own = {"concurrent"} if module in ("storage.writer", "storage.objects") else set()
            found = packages & {"concurrent", "dask", "distributed", "multiprocessing"}
            assert found == own, module


def test_only_header_uses_the_names_of_the_format() -> None:
    for module, path in FILES.items():
        if module != "storage.header":
            assert not re.search(r"\b(file_len|block_len)\b", path.read_text("utf-8")), path.name


# What only WKW has. Other rooms ask a `Layout`, which has sizes per axis, or its `describe()`.
WKW_FACTS = {
    "block_bytes",
    "block_edge",
    "block_type",
    "blocks_per_file",
    "blocks_per_file_edge",
    "data_offset_bytes",
    "file_edge",
    "is_compressed",
}


def test_only_storage_implements_volumes() -> None:
    for module in MODULES:
        for node in ast.walk(tree_of(module)):
            if isinstance(node, ast.ClassDef) and room_of(module) != "storage":
                bases = {ast.unparse(base).split(".")[-1] for base in node.bases}
                assert not bases & {"Layout", "Volume", "WkwVolume"}, node.name


def test_only_storage_names_what_only_wkw_has() -> None:
    for module in MODULES:
        if room_of(module) != "storage":
            nodes = [n for n in ast.walk(tree_of(module)) if isinstance(n, ast.Attribute)]
            named = {node.attr for node in nodes} & WKW_FACTS
            assert not named, f"{module} names {named}"


# --- names --------------------------------------------------------------------------------------


@pytest.mark.parametrize("module", MODULES)
def test_all_equals_the_public_names(module: str) -> None:
    """Every function and class without an underscore, and nothing that another module defines."""
    loaded = importlib.import_module(f"wkdask.{module}")
    if not tree_of(module).body[1:]:
        return  # the front of a room: one docstring
    assert list(loaded.__all__) == sorted(set(loaded.__all__), key=_ruff_order)
    defined = {
        node.name
        for node in tree_of(module).body
        if isinstance(node, ast.FunctionDef | ast.ClassDef)
        and not node.name.startswith("_")
        and not is_command(node)
    }
    assert defined <= set(loaded.__all__)
    for name in loaded.__all__:
        assert not name.startswith("_")
        assert hasattr(loaded, name)
        home = getattr(getattr(loaded, name), "__module__", None)
        assert home is None or not home.startswith("wkdask.") or home == f"wkdask.{module}"


def is_command(node: ast.FunctionDef | ast.ClassDef) -> bool:
    """Return whether a function is a command of the command line, reached through its group."""
    decorators = {ast.unparse(decorator) for decorator in node.decorator_list}
    return bool(decorators & {"main.command()", "click.command()"})


def _ruff_order(name: str) -> tuple[int, str]:
    """Constants, then classes, then the rest: the order of ruff's RUF022."""
    kind = 0 if name.isupper() else 1 if name[0].isupper() else 2
    return kind, name


@pytest.mark.parametrize("name", wkdask.__all__)
def test_public_names_come_from_their_home(name: str) -> None:
    if name == "errors":
        assert wkdask.errors is importlib.import_module("wkdask.errors")
        return
    home = importlib.import_module(f"wkdask.{wkdask._HOMES[name]}")
    assert name in home.__all__
    assert getattr(wkdask, name) is getattr(home, name)


def test_every_home_is_public() -> None:
    assert {*wkdask._HOMES, "errors"} == set(wkdask.__all__)
    assert set(wkdask.__all__) <= set(dir(wkdask))


def test_type_checkers_see_the_same_names() -> None:
    named = {
        alias.name
        for node in ast.walk(tree_of("__init__"))
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("wkdask")
        for alias in node.names
    }
    assert named == set(wkdask.__all__)


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'Volumes'"):
        _ = wkdask.Volumes


# --- imports are light --------------------------------------------------------------------------


HEAVY = ("numpy", "dask", "distributed", "numba", "xarray", "pandas", "wkw", "lz4")


@pytest.mark.parametrize(
    ("imported", "absent"),
    [
        pytest.param("wkdask", HEAVY, id="the package is names only"),
        pytest.param("wkdask.errors", HEAVY, id="errors can be caught without arrays"),
        pytest.param("wkdask.geometry", HEAVY, id="boxes are pure Python"),
        pytest.param("wkdask.cli.main", HEAVY, id="wkdask --help is quick"),
        pytest.param(
            "wkdask.storage.opening", ("dask", "distributed", "xarray"), id="no dask at the seam"
        ),
        pytest.param(
            "wkdask.dataset.dataset",
            ("dask.array", "distributed", "xarray", "pandas", "matplotlib", "bokeh"),
            id="datasets open, and are read, without dask.array",
        ),
    ],
)
def test_imports_are_light(imported: str, absent: tuple[str, ...]) -> None:
    code = f"import sys, {imported}; print(*sorted({set(absent)!r} & set(sys.modules)))"
    assert run_python(code).split() == []


@pytest.mark.slow
def test_every_module_can_be_imported_first() -> None:
    """No cycle is hidden by the order in which the tests import; one module of each room."""
    for module in {room_of(module): module for module in MODULES}.values():
        run_python(f"import wkdask.{module}")


def test_compiled_modules_need_no_place_on_the_disk() -> None:
    """In a read-only installation, without a home, nothing is kept; all else works."""
    code = (
        "from numba.core import caching; caching.CacheImpl._locator_classes = []\n"
        "from wkdask import kernels\nfrom wkdask.storage import codec\nfrom wkdask import testing\n"
        "print(codec.block_at(7))"
    )
    assert run_python(code) == "(1, 1, 1)\n"


# --- the project --------------------------------------------------------------------------------


def test_the_package_is_typed() -> None:
    assert (PACKAGE / "py.typed").exists()


def test_the_changelog_knows_the_version() -> None:
    text = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    versions = re.findall(r"^## \[?(\d+\.\d+\.\d+)", text, re.MULTILINE)
    assert versions[0] == wkdask.__version__
    assert text.index("## Unreleased") < text.index(f"## {versions[0]}")


def test_imported_packages_are_declared() -> None:
    """Each third-party import is a dependency, or comes with one that promises it."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = project["optional-dependencies"]
    optional = [name for extra in ("remote", "tiff", "viewer", "zarr") for name in extras[extra]]
    by_extras = {re.split("[><=]", name)[0].replace("-", "_") for name in optional}
    declared = {re.split(r"[\[><=]", name)[0] for name in project["dependencies"]}
    by_others = {"cloudpickle": "dask", "yaml": "dask", "llvmlite": "numba", "pandas": "xarray"}
    # These come with anywidget; pillow is imported by another name.
    by_anywidget = {"IPython", "traitlets"}
    # matplotlib is an extra; hypothesis is for those who test by `wkdask.testing`.
    used = {
        name.split(".")[0]
        for module in (*MODULES, "__init__")
        for name in imports_of(tree_of(module))
    } - {*sys.stdlib_module_names, "hypothesis", "matplotlib", "PIL", "wkdask"}
    assert used - set(by_others) - by_extras - by_anywidget == declared
    assert set(by_others.values()) <= declared


def test_there_is_no_package_called_tests() -> None:
    """The wkw wheel installs one: ours would be shadowed by it or shadow it."""
    assert not (ROOT / "tests" / "__init__.py").exists()


def test_ci_runs_what_the_readme_says() -> None:
    script = (ROOT / ".ci" / "run").read_text(encoding="utf-8")
    pattern = re.search(r"s/(.*?)/\\1/p' README\.md", script)
    assert pattern
    python_pattern = pattern[1].replace(r"\(", "(").replace(r"\)", ")")
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert len(re.findall(python_pattern, readme, re.MULTILINE)) == 1


def test_every_case_has_a_name_that_tells_it(request: pytest.FixtureRequest) -> None:
    assert [item.nodeid for item in request.session.items if "<lambda>" in item.nodeid] == []
