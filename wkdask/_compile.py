"""How functions are compiled: at their first call, without the GIL, and kept on disk if possible.

It knows numba's options, and nothing of what is compiled.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias, TypeVar, cast

from numba import njit

__all__ = ["Inferred", "compiled", "inlined", "part"]

Inferred: TypeAlias = Any
"""The type of a value in a compiled function. numba infers it at each call, from the arguments, and
compiles the function once for each combination; there is no one type to write down."""

F = TypeVar("F", bound=Callable[..., Any])


def compiled(function: F, **options: Any) -> F:
    """Compile a function at its first call; `options` are numba's."""
    try:
        return cast(F, njit(nogil=True, cache=True, **options)(function))
    except RuntimeError:
        # Nowhere to keep it: a read-only installation, and no home that can be written to.
        return cast(F, njit(nogil=True, **options)(function))


def part(function: F) -> F:
    """Compile a function that only compiled functions call: without a way in from Python.

    It is kept on disk as a part of those. That takes a third less time than `compiled`.
    """
    return cast(F, njit(nogil=True, no_cpython_wrapper=True, no_cfunc_wrapper=True)(function))


def inlined(function: F) -> F:
    """Compile a part into each function that calls it, where a call would cost more than its work.

    numba passes an array as seven numbers.
    """
    options = {"no_cpython_wrapper": True, "no_cfunc_wrapper": True, "forceinline": True}
    return cast(F, njit(nogil=True, **options)(function))
