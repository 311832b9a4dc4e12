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
from pathlib import Path

import pytest

import wkdask

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "wkdask"

# A module imports only from rows above its own; docs/architecture.md says what each one knows.
LAYERS: tuple[set[str], ...] = (
    {"buffers", "compiling", "errors"},
    {
        "blockwise",
        "clib",
        "geometry",
        "jobs",
        "outcomes",
        "synthetic",
        "travelling",
        "units",
        "weighted",
    },
    {"grid", "header", "kernels", "ladder", "placing", "properties", "reports", "scheduling"},
    {"atomic", "chunking", "clusters", "codec", "memory", "planning", "plotting", "pools"},
    {"filewriter", "streaming"},
    {"wkwfile"},
    {"volume"},
    {"arrays", "journal", "picking", "sampling"},
    {"chunkmap", "lazy"},
    {"filling", "labelled", "storing"},
    {"view"},
    {"pyramid", "rewriting"},
    {"dataset"},
    {
        "checking",
        "cli_options",
        "comparing",
        "copying",
        "demo",
        "destination",
        "display",
        "images",
        "lookup",
    },
    {"accessor", "backend", "importing", "multiscales", "tiffs"},
    {"zarrs"},
    {"converting"},
    {"cli_convert", "cli_pyramid"},
    {"cli"},
)
ROWS = {module: row for row, modules in enumerate(LAYERS) for module in modules}
MODULES = sorted(path.stem for path in PACKAGE.glob("*.py") if path.stem != "__init__")

# Packages that only a few modules may know, and which.
KNOWN_BY = {
    "dask": {
        "arrays",
        "chunkmap",
        "clusters",
        "images",
        "jobs",
        "lazy",
        "memory",
        "pools",
        "scheduling",
        "storing",
        "streaming",
        "travelling",
        "view",
        "zarrs",
    },
    "distributed": {
        "checking",
        "chunkmap",
        "cli_options",
        "clusters",
        "comparing",
        "converting",
        "demo",
        "memory",
        "copying",
        "dataset",
        "pyramid",
        "scheduling",
        "streaming",
        "view",
    },
    "xarray": {"backend", "labelled", "lazy"},
    "pandas": {"labelled"},
    "matplotlib": {"plotting"},
    "numba": {"blockwise", "clib", "compiling", "weighted"},
    "llvmlite": {"clib"},
    "lz4": {"clib"},
    "ctypes": {"clib"},
    "fcntl": {"atomic", "properties"},
    "wkw": {"demo", "header", "view"},
    "click": {"cli", "cli_convert", "cli_options", "cli_pyramid"},
    "json": {"cli", "cli_pyramid", "cli_convert", "journal", "properties"},
    "threading": {"codec"},
    "tifffile": {"tiffs"},
    "zarr": {"zarrs"},
    "webknossos": set(),
}
# These may be named for type checkers as well.
NAMED_BY = {
    "dask": {"labelled"},
    "xarray": {"accessor", "dataset", "destination", "placing", "plotting", "view"},
}


@cache
def tree_of(module: str) -> ast.Module:
    return ast.parse((PACKAGE / f"{module}.py").read_text(encoding="utf-8"))


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


def ours_in(module: str) -> set[str]:
    """Return the modules of wkdask that a module imports."""
    names = (name.split(".") for name in imports_of(tree_of(module)))
    return {parts[1] for parts in names if parts[0] == "wkdask" and len(parts) > 1}


def run_python(code: str) -> str:
    return subprocess.run(
        [sys.executable, "-c", code], check=True, capture_output=True, text=True, timeout=60
    ).stdout


# --- layers -------------------------------------------------------------------------------------


def test_every_module_has_one_row() -> None:
    assert sorted(ROWS) == MODULES
    assert sum(map(len, LAYERS)) == len(MODULES)


@pytest.mark.parametrize("module", MODULES)
def test_imports_come_from_rows_above(module: str) -> None:
    for imported in ours_in(module):
        assert imported in ROWS, f"{module} imports {imported}, which has no row"
        assert ROWS[imported] < ROWS[module], f"{module} imports {imported} from its side or below"


@pytest.mark.parametrize("module", MODULES)
def test_imports_at_the_top_do_not_go_through_the_package(module: str) -> None:
    """`import wkdask` would hide what is imported; only the command needs it, for the version."""
    assert module == "cli" or "wkdask" not in set(imports_of(tree_of(module)))


def test_the_table_in_the_docs_is_the_same() -> None:
    page = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| (\d+) \| `(\w+)` \| \S", page, re.MULTILINE)
    assert len(rows) == len(MODULES)
    assert {module: int(row) for row, module in rows} == ROWS


@pytest.mark.parametrize("package", KNOWN_BY)
def test_packages_are_known_by_few_modules(package: str) -> None:
    def importers(*, types: bool) -> set[str]:
        return {
            module
            for module in MODULES
            for name in imports_of(tree_of(module), types=types)
            if name.split(".")[0] == package
        }

    assert importers(types=False) == KNOWN_BY[package]
    assert importers(types=True) == KNOWN_BY[package] | NAMED_BY.get(package, set())


MACHINERY = {"clusters", "jobs", "memory", "pools", "scheduling", "streaming", "travelling"}


def test_nothing_below_arrays_knows_threads_or_schedulers() -> None:
    for module in MODULES:
        if ROWS[module] < ROWS["arrays"] and module not in MACHINERY:
            packages = {name.split(".")[0] for name in imports_of(tree_of(module))}
            assert not packages & {"concurrent", "dask", "distributed", "multiprocessing"}, module


def test_only_header_uses_the_names_of_the_format() -> None:
    for path in PACKAGE.glob("*.py"):
        if path.stem != "header":
            assert not re.search(r"\b(file_len|block_len)\b", path.read_text("utf-8")), path.name


# --- names --------------------------------------------------------------------------------------


@pytest.mark.parametrize("module", MODULES)
def test_all_equals_the_public_names(module: str) -> None:
    """Every function and class without an underscore, and nothing that another module defines."""
    loaded = importlib.import_module(f"wkdask.{module}")
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
        pytest.param("wkdask.cli", HEAVY, id="wkdask --help is quick"),
        pytest.param("wkdask.volume", ("dask", "distributed", "xarray"), id="no dask at the seam"),
        pytest.param("wkdask.view", ("matplotlib", "bokeh"), id="no plots for a slice"),
    ],
)
def test_imports_are_light(imported: str, absent: tuple[str, ...]) -> None:
    code = f"import sys, {imported}; print(*sorted({set(absent)!r} & set(sys.modules)))"
    assert run_python(code).split() == []


@pytest.mark.slow
def test_every_module_can_be_imported_first() -> None:
    """No cycle is hidden by the order in which the tests import."""
    for module in ("errors", "clib", "codec", "volume", "labelled", "checking", "demo"):
        run_python(f"import wkdask.{module}")


def test_compiled_modules_need_no_place_on_the_disk() -> None:
    """In a read-only installation, without a home, nothing is kept; all else works."""
    code = (
        "from numba.core import caching; caching.CacheImpl._locator_classes = []\n"
        "from wkdask import codec, kernels, synthetic\n"
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
    by_extras = {re.split("[><=]", name)[0] for e in ("tiff", "zarr") for name in extras[e]}
    declared = {re.split(r"[\[><=]", name)[0] for name in project["dependencies"]}
    by_others = {"cloudpickle": "dask", "llvmlite": "numba", "pandas": "xarray"}
    # matplotlib is an extra.
    used = {
        name.split(".")[0]
        for module in (*MODULES, "__init__")
        for name in imports_of(tree_of(module))
    } - {*sys.stdlib_module_names, "matplotlib", "wkdask"}
    assert used - set(by_others) - by_extras == declared
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
