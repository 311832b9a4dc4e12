"""Names of jobs: an edited function is another job, a moved one is the same."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import wkdask
from wkdask.errors import ArgumentError
from wkdask.runtime.fingerprint import job_name

MODULE = "user_code"


@pytest.fixture
def load(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Callable[..., Any]]:
    """A function that loads source as an importable module and returns its function `work`."""

    def load(source: str, filename: str = "user_code.py") -> Callable[..., Any]:
        module = ModuleType(MODULE)
        monkeypatch.setitem(sys.modules, MODULE, module)
        exec(compile(source, filename, "exec"), module.__dict__)
        function: Callable[..., Any] = module.work  # type: ignore[attr-defined]
        return function

    return load


SAME = {
    "the very same": ("def work(c): return c + 1", "def work(c): return c + 1"),
    "another line": ("def work(c): return c + 1", "\n\n\ndef work(c):\n\n    return c + 1"),
    "a comment": ("def work(c): return c + 1", "def work(c):\n    # why\n    return c + 1"),
    "beside a new function": (
        "def work(c): return c + 1",
        "def other(c): return c\ndef work(c): return c + 1",
    ),
    "an unused global differs": ("A = 1\ndef work(c): return c", "A = 2\ndef work(c): return c"),
    "class moved": (
        "class A:\n    def h(self): return 1\ndef work(c): return A().h()",
        "\n\nclass A:\n    def h(self): return 1\ndef work(c): return A().h()",
    ),
    "method moved": (
        "class A:\n    def h(self): return 1\nwork = A().h",
        "\n\nclass A:\n    def h(self): return 1\nwork = A().h",
    ),
    "helper moved": (
        "def h(c): return c\ndef work(c): return h(c)",
        "def work(c): return h(c)\n\n\ndef h(c): return c",
    ),
    "inner function moved": (
        "def work(c):\n    return [x for x in c]",
        "def work(c):\n\n\n    return [x for x in c]",
    ),
    "a foreign function": (
        "import json\ndef work(c): return json.dumps(c)",
        "\nimport json\ndef work(c): return json.dumps(c)",
    ),
    "calls itself": (
        "def work(c): return work(c - 1) if c else 0",
        "\ndef work(c): return work(c - 1) if c else 0",
    ),
    "call each other": (
        "def a(c): return work(c)\ndef work(c): return a(c)",
        "\ndef a(c): return work(c)\ndef work(c): return a(c)",
    ),
}


@pytest.mark.parametrize(("before", "after"), SAME.values(), ids=SAME)
def test_same_job(load: Any, before: str, after: str) -> None:
    assert job_name(True, load(before)) == job_name(True, load(after, "elsewhere.py"))


EDITED = {
    "constant": ("def work(c): return c + 1", "def work(c): return c + 2"),
    "constant of another type": ("def work(c): return c * 1", "def work(c): return c * 1.0"),
    "sign of zero": ("def work(c): return c * 0.0", "def work(c): return c * -0.0"),
    "operator": ("def work(c): return c + 1", "def work(c): return c - 1"),
    "order": ("def work(c): return c - 1, 2", "def work(c): return 1 - c, 2"),
    "attribute": ("def work(c): return c.min()", "def work(c): return c.max()"),
    "default": ("def work(c, k=1): return c", "def work(c, k=2): return c"),
    "keyword default": ("def work(c, *, k=1): return c", "def work(c, *, k=2): return c"),
    "default that is a function": (
        "def h(c): return 1\ndef work(c, f=h): return f(c)",
        "def h(c): return 2\ndef work(c, f=h): return f(c)",
    ),
    "closure": (
        "def make(k):\n    def work(c): return c + k\n    return work\nwork = make(1)",
        "def make(k):\n    def work(c): return c + k\n    return work\nwork = make(2)",
    ),
    "function in a closure": (
        "def make(f):\n    def work(c): return f(c)\n    return work\nwork = make(lambda c: 1)",
        "def make(f):\n    def work(c): return f(c)\n    return work\nwork = make(lambda c: 2)",
    ),
    "global": ("K = 1\ndef work(c): return c + K", "K = 2\ndef work(c): return c + K"),
    "global of an inner function": (
        "K = 1\ndef work(c): return [lambda: x + K for x in c]",
        "K = 2\ndef work(c): return [lambda: x + K for x in c]",
    ),
    "helper": (
        "def h(c): return 1\ndef work(c): return h(c)",
        "def h(c): return 2\ndef work(c): return h(c)",
    ),
    "helper of a helper": (
        "def g(c): return 1\ndef h(c): return g(c)\ndef work(c): return h(c)",
        "def g(c): return 2\ndef h(c): return g(c)\ndef work(c): return h(c)",
    ),
    "global of a helper": (
        "K = 1\ndef h(c): return c + K\ndef work(c): return h(c)",
        "K = 2\ndef h(c): return c + K\ndef work(c): return h(c)",
    ),
    "helpers in a list": (
        "def h(c): return 1\nSTEPS = [h]\ndef work(c): return [s(c) for s in STEPS]",
        "def h(c): return 2\nSTEPS = [h]\ndef work(c): return [s(c) for s in STEPS]",
    ),
    "helpers in a table": (
        "def h(c): return 1\nMODES = {'h': h}\ndef work(c): return MODES['h'](c)",
        "def h(c): return 2\nMODES = {'h': h}\ndef work(c): return MODES['h'](c)",
    ),
    "inner function": (
        "def work(c):\n    def f(x): return x + 1\n    return f(c)",
        "def work(c):\n    def f(x): return x + 2\n    return f(c)",
    ),
    "inner lambda": ("def work(c): return map(lambda x: x, c)",
                     "def work(c): return map(lambda x: -x, c)"),
    "argument of a partial": (
        "from functools import partial\ndef h(k, c): return c\nwork = partial(h, 1)",
        "from functools import partial\ndef h(k, c): return c\nwork = partial(h, 2)",
    ),
    "function of a partial": (
        "from functools import partial\ndef h(k, c): return 1\nwork = partial(h, 1)",
        "from functools import partial\ndef h(k, c): return 2\nwork = partial(h, 1)",
    ),
    "keyword of a partial": (
        "from functools import partial\ndef h(c, k=0): return c\nwork = partial(h, k=1)",
        "from functools import partial\ndef h(c, k=0): return c\nwork = partial(h, k=2)",
    ),
    "method": (
        "class A:\n    def run(self, c): return 1\nwork = A().run",
        "class A:\n    def run(self, c): return 2\nwork = A().run",
    ),
    "attribute of a method's object": (
        "class A:\n    def __init__(self, k): self.k = k\n    def run(self, c): return c\n"
        "work = A(1).run",
        "class A:\n    def __init__(self, k): self.k = k\n    def run(self, c): return c\n"
        "work = A(2).run",
    ),
    "method that a method calls": (
        "class A:\n    def run(self, c): return self.h()\n    def h(self): return 1\n"
        "work = A().run",
        "class A:\n    def run(self, c): return self.h()\n    def h(self): return 2\n"
        "work = A().run",
    ),
    "method of a class that is used": (
        "class A:\n    def h(self): return 1\ndef work(c): return A().h()",
        "class A:\n    def h(self): return 2\ndef work(c): return A().h()",
    ),
    "method of an object that is used": (
        "class A:\n    def h(self): return 1\na = A()\ndef work(c): return a.h()",
        "class A:\n    def h(self): return 2\na = A()\ndef work(c): return a.h()",
    ),
    "callable object": (
        "class A:\n    def __call__(self, c): return 1\nwork = A()",
        "class A:\n    def __call__(self, c): return 2\nwork = A()",
    ),
    "method of a built-in object": (
        "work = {1: 2}.get",
        "work = {1: 3}.get",
    ),
    "what a wrapper wraps": (
        "import functools\ndef twice(f):\n    @functools.wraps(f)\n    def g(c): return f(f(c))\n"
        "    return g\n@twice\ndef work(c): return 1",
        "import functools\ndef twice(f):\n    @functools.wraps(f)\n    def g(c): return f(f(c))\n"
        "    return g\n@twice\ndef work(c): return 2",
    ),
    "what a cache wraps": (
        "import functools\n@functools.cache\ndef work(c): return 1",
        "import functools\n@functools.cache\ndef work(c): return 2",
    ),
    "what a cached helper does": (
        "import functools\n@functools.cache\ndef h(c): return 1\ndef work(c): return h(c)",
        "import functools\n@functools.cache\ndef h(c): return 2\ndef work(c): return h(c)",
    ),
    "property, static and class method": (
        "class A:\n    @property\n    def p(self): return 1\ndef work(c): return A().p",
        "class A:\n    @property\n    def p(self): return 2\ndef work(c): return A().p",
    ),
    "inherited method": (
        "class B:\n    def h(self): return 1\nclass A(B): pass\ndef work(c): return A().h()",
        "class B:\n    def h(self): return 2\nclass A(B): pass\ndef work(c): return A().h()",
    ),
    "what is tried": (
        "def work(c):\n    try:\n        c()\n        c()\n    except ValueError: pass",
        "def work(c):\n    c()\n    try:\n        c()\n    except ValueError: pass",
    ),
    "name": ("def a(c): return c\nwork = a", "def b(c): return c\nwork = b"),
}  # fmt: skip


@pytest.mark.parametrize(("before", "after"), EDITED.values(), ids=EDITED)
def test_edited_function_is_another_job(load: Any, before: str, after: str) -> None:
    names = [job_name(True, load(source)) for source in (before, before, after)]
    assert names[0] == names[1]
    assert names[0] != names[2]


@pytest.mark.parametrize(
    ("facts", "others"),
    [
        (("/data/a",), ("/data/b",)),
        (((8, 8, 8),), ((8, 8, 16),)),
        ((np.arange(3),), (np.arange(3.0),)),
        ((), (None,)),
    ],
)
def test_facts_count(facts: tuple[Any, ...], others: tuple[Any, ...]) -> None:
    assert job_name(True, print, *facts) == job_name(True, print, *facts)
    assert job_name(True, print, *facts) != job_name(True, print, *others)


def test_a_computed_name_is_a_good_one() -> None:
    name = job_name(True, print)
    assert job_name(name, None) == name


def test_same_in_every_process() -> None:
    """Nothing depends on the seed of hashes, nor on where things lie in memory."""
    source = """
import functools, numpy, numba, threading
from wkdask.runtime.fingerprint import job_name
TABLE = {"a": 1, "b": {"x", "y", "z"}}
@functools.cache
def cached(c): return c
class Model:
    weights = ("u", "v")
    def run(self, c): return self.weights
model = Model()
@numba.njit
def fast(x): return x + 1
def helper(c): return fast(cached(c)), numpy.sum(c), c in {"one", "two", "three", "four"}
def work(c, k=frozenset("abcdef")): return helper(c), TABLE, model.run(c), {"p", "q"} & k
print(job_name(True, work, "a", 1))
"""
    root = str(Path(wkdask.__file__).parents[1])
    started = [
        subprocess.Popen(
            [sys.executable, "-c", source],
            env={**os.environ, "PYTHONPATH": root, "PYTHONHASHSEED": str(seed)},
            stdout=subprocess.PIPE,
            text=True,
        )
        for seed in (1, 2)
    ]
    names = [process.communicate(timeout=60)[0].strip() for process in started]
    assert names[0]
    assert names[0] == names[1]


def with_lock() -> Callable[..., Any]:
    lock = threading.Lock()

    def work(c: Any) -> Any:
        with lock:
            return c

    return work


def with_object() -> Callable[..., Any]:
    token = object()
    return lambda c: (c, token)


def with_iterator() -> Callable[..., Any]:
    items = (i for i in range(3))
    return lambda c: (c, next(items))


@pytest.mark.parametrize(
    "function",
    [with_lock(), with_object(), with_iterator(), partial(print, threading.Lock())],
    ids=["lock", "object", "generator", "partial"],
)
def test_what_nobody_can_recognise(function: Callable[..., Any]) -> None:
    with pytest.raises(ArgumentError, match=r'resume="a-name"') as caught:
        job_name(True, function)
    assert repr(function) in str(caught.value)
    assert job_name("mine", function) == "mine"


def test_what_holds_itself() -> None:
    """A list that contains itself ends with a name or an error of ours, not with a crash."""
    items: list[Any] = []
    items.append(items)

    def work(c: Any) -> Any:
        return items

    try:
        assert job_name(True, work)
    except ArgumentError as error:
        assert "resume=" in str(error)  # noqa: PT017


@pytest.mark.parametrize("name", ["a", "membranes-3", "v1.2_final", "0", "größe", "a" * 100])
def test_good_names(name: str) -> None:
    assert job_name(name, None) == name
    assert job_name(name, print, "facts", "do", "not", "count") == name


@pytest.mark.parametrize(
    "name",
    ["", ".", "..", ".no", "a/b", "a\\b", "../a", "/a", "a b", "a\n", "a\0", "a*", "é" * 128],
)  # fmt: skip
def test_bad_names(name: str) -> None:
    with pytest.raises(ArgumentError, match=r"resume is "):
        job_name(name, None)


@given(st.text(max_size=20))
def test_a_name_is_one_component_of_a_path(name: str) -> None:
    try:
        job_name(name, None)
    except ArgumentError:
        return
    assert Path("/x", name).parent == Path("/x")
    assert Path("/x", name).name == name
    assert not name.startswith(".")
