"""What a job is, as a name: two runs have the same one only if they do the same.

It looks into functions, so that a function which was edited is another one. It knows neither chunks
nor volumes.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import partial
from types import BuiltinFunctionType, CodeType, FunctionType, MethodType, ModuleType
from typing import Any

from dask.base import tokenize
from dask.tokenize import TokenizationError

from wkdask.errors import ArgumentError

__all__ = ["job_name"]


def job_name(resume: bool | str, function: Callable[..., Any] | None, *facts: Any) -> str:
    """Return the name of a job.

    Parameters
    ----------
    resume
        A name that the user gave, or True to have one computed.
    function
        What is called: its code, its defaults, what it encloses, and the global names that it uses
        count; so do functions of its own module that it calls, but not those of others.
    *facts
        What else makes a difference: paths, boxes, chunk sizes.

    Raises
    ------
    ArgumentError
        If the name can't be one, or none can be computed.

    Examples
    --------
    >>> job_name("membranes-3", print)
    'membranes-3'
    """
    if isinstance(resume, str):
        return _checked(resume)
    try:
        return str(tokenize(_fingerprint(function, set()), *facts, ensure_deterministic=True))
    except TokenizationError as error:
        raise ArgumentError(
            f"nobody can tell whether {function!r} is the same function in another run: {error}. "
            'Name the job yourself: resume="a-name", and change it with what the function does.'
        ) from None


def _checked(name: str) -> str:
    if not name or name.startswith(".") or not all(c.isalnum() or c in "-_." for c in name):
        raise ArgumentError(
            f"resume is {name!r}, but the name of a job has only letters, digits, -, _ and dots, "
            "and does not begin with a dot."
        )
    return name


def _fingerprint(value: Any, seen: set[int]) -> Any:
    """Return plain values that differ between functions that do different things."""
    if isinstance(value, partial):
        arguments = [_fingerprint(each, seen) for each in value.args]
        keywords = {name: _fingerprint(each, seen) for name, each in value.keywords.items()}
        return "partial", _fingerprint(value.func, seen), arguments, keywords
    if isinstance(value, MethodType):
        return "method", _fingerprint(value.__func__, seen), value.__self__
    if isinstance(value, FunctionType):
        return _of_function(value, seen)
    if isinstance(value, BuiltinFunctionType | ModuleType):
        return getattr(value, "__module__", None), value.__name__
    if isinstance(value, type):
        return "class", value.__module__, value.__qualname__
    call = inspect.getattr_static(type(value), "__call__", None)
    return (_fingerprint(call, seen), value) if isinstance(call, FunctionType) else value


def _of_function(function: FunctionType, seen: set[int]) -> Any:
    name = function.__module__, function.__qualname__
    if id(function) in seen:
        return name
    seen.add(id(function))
    cells = [_fingerprint(_content(cell), seen) for cell in function.__closure__ or ()]
    used = {
        each: _of_global(function, function.__globals__[each], seen)
        for each in sorted(_names(function.__code__))
        if each in function.__globals__
    }
    defaults = function.__defaults__, function.__kwdefaults__
    return name, _of_code(function.__code__), defaults, cells, used


def _of_global(function: FunctionType, value: Any, seen: set[int]) -> Any:
    is_foreign = isinstance(value, FunctionType) and value.__module__ != function.__module__
    return (value.__module__, value.__qualname__) if is_foreign else _fingerprint(value, seen)


def _of_code(code: CodeType) -> Any:
    """Return what code does, without where it stands."""
    constants = [_of_code(each) if isinstance(each, CodeType) else each for each in code.co_consts]
    return code.co_code, constants, code.co_names, code.co_varnames, code.co_freevars


def _names(code: CodeType) -> set[str]:
    inner = (_names(each) for each in code.co_consts if isinstance(each, CodeType))
    return set(code.co_names).union(*inner)


def _content(cell: Any) -> Any:
    try:
        return cell.cell_contents
    except ValueError:  # a name that has no value yet
        return None
