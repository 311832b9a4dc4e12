"""What a job is, as a name: two runs have the same one only if they do the same.

It looks into functions, so that a function which was edited is another one. It knows neither chunks
nor volumes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from types import (
    BuiltinFunctionType,
    CodeType,
    FunctionType,
    GetSetDescriptorType,
    MemberDescriptorType,
    MethodType,
    ModuleType,
)
from typing import Any

from dask.base import tokenize
from dask.tokenize import TokenizationError, normalize_object, normalize_token

from wkdask.errors import ArgumentError

__all__ = ["job_name"]

_LONGEST = 200

# What a class has beside its members, some of it with a line or an address.
_PLACES = ("__dict__", "__weakref__", "__firstlineno__", "__abstractmethods__", "_abc_impl")

_DESCRIPTORS = GetSetDescriptorType, MemberDescriptorType


def job_name(resume: bool | str, function: Callable[..., Any] | None, *facts: Any) -> str:
    """Return the name of a job.

    Parameters
    ----------
    resume
        A name that the user gave, or True to have one computed.
    function
        What is called: its code, its defaults, what it encloses, and the global names that it uses
        count; so do functions and classes of its own module that it uses, but not those of others.
    *facts
        What else makes a difference: paths, boxes, chunk sizes.

    Examples
    --------
    >>> job_name("membranes-3", print)
    'membranes-3'
    """
    if isinstance(resume, str):
        return _checked(resume)
    try:
        code = _fingerprint(function, getattr(function, "__module__", None), set())
        return str(tokenize(code, *facts, ensure_deterministic=True))
    except (TokenizationError, RecursionError) as error:
        raise ArgumentError(
            f"nobody can tell whether {function!r} is the same function in another run: {error}. "
            'Name the job yourself: resume="a-name", and change it with what the function does.'
        ) from None


def _checked(name: str) -> str:
    is_good = name and not name.startswith(".") and all(c.isalnum() or c in "-_." for c in name)
    if not is_good or len(name.encode()) > _LONGEST:
        raise ArgumentError(
            f"resume is {name!r}, but the name of a job has only letters, digits, -, _ and dots, "
            f"does not begin with a dot, and has at most {_LONGEST} bytes."
        )
    return name


def _fingerprint(value: Any, module: str | None, seen: set[int]) -> Any:
    """Return plain values that differ between functions that do different things.

    Classes count with their functions if they are of this module, and by their names otherwise.
    """
    look = partial(_fingerprint, module=module, seen=seen)
    if type(value) in (list, tuple):
        return type(value).__name__, [look(each) for each in value]
    if type(value) in (set, frozenset):
        # Their order differs between processes.
        return type(value).__name__, sorted(map(look, value), key=repr)
    if type(value) is dict:
        return "dict", [(look(name), look(each)) for name, each in value.items()]
    if isinstance(value, partial):
        look = partial(_fingerprint, module=getattr(value.func, "__module__", None), seen=seen)
        return "partial", look(value.func), look(value.args), look(value.keywords)
    if isinstance(value, MethodType):
        function = value.__func__
        owner = _fingerprint(value.__self__, getattr(function, "__module__", None), seen)
        return "method", look(function), owner
    if isinstance(value, FunctionType):
        return _of_function(value, seen)
    if isinstance(value, CodeType):
        return _of_code(value, seen)
    if isinstance(value, BuiltinFunctionType):
        return value.__module__, value.__name__, look(value.__self__)
    if isinstance(value, ModuleType):
        return "module", value.__name__
    if isinstance(value, type):
        return _of_class(value, seen) if value.__module__ == module else _class_name(value)
    # What lru_cache or numba made of a function.
    if isinstance(wrapped := getattr(value, "__wrapped__", None), FunctionType):
        return _class_name(type(value)), look(wrapped)
    return _of_object(value, module, seen)


def _of_function(function: FunctionType, seen: set[int]) -> Any:
    name = function.__module__, function.__qualname__
    if id(function) in seen:
        return name
    seen.add(id(function))
    look = partial(_fingerprint, module=function.__module__, seen=seen)
    cells = [look(_content(cell)) for cell in function.__closure__ or ()]
    used = {
        each: _of_global(function, function.__globals__[each], seen)
        for each in sorted(_names(function.__code__))
        if each in function.__globals__
    }
    defaults = look(function.__defaults__), look(function.__kwdefaults__)
    return name, _of_code(function.__code__, seen), defaults, cells, used


def _of_global(function: FunctionType, value: Any, seen: set[int]) -> Any:
    is_foreign = isinstance(value, FunctionType) and value.__module__ != function.__module__
    if is_foreign:
        return value.__module__, value.__qualname__
    return _fingerprint(value, function.__module__, seen)


def _of_class(kind: type, seen: set[int]) -> Any:
    if id(kind) in seen:
        return _class_name(kind)
    seen.add(id(kind))
    look = partial(_fingerprint, module=kind.__module__, seen=seen)
    members = [
        (name, look(_plain(each))) for name, each in vars(kind).items() if name not in _PLACES
    ]
    return _class_name(kind), look(kind.__bases__), members


def _class_name(kind: type) -> Any:
    return "class", kind.__module__, kind.__qualname__


def _plain(member: Any) -> Any:
    """Return the functions of a member of a class."""
    if isinstance(member, property):
        return [member.fget, member.fset, member.fdel]
    if isinstance(member, staticmethod | classmethod):
        return [type(member).__name__, member.__func__]
    return None if isinstance(member, _DESCRIPTORS) else member


def _of_object(value: Any, module: str | None, seen: set[int]) -> Any:
    """Return what an object is made of, or the object itself if dask can tell."""
    kind = type(value)
    is_own = kind.__module__ == module and normalize_token.dispatch(kind) is normalize_object
    if not is_own or hasattr(value, "__dask_tokenize__"):
        return value
    try:
        parts = value.__reduce_ex__(2)
    except TypeError:
        return value
    if not isinstance(parts, str):
        # Items of lists and dicts come as iterators.
        parts = [list(each) if isinstance(each, Iterator) else each for each in parts]
    return _of_class(kind, seen), _fingerprint(parts, module, seen)


def _of_code(code: CodeType, seen: set[int]) -> Any:
    """Return what code does, without where it stands."""
    constants = _fingerprint(code.co_consts, None, seen)
    names = code.co_names, code.co_varnames, code.co_freevars
    return code.co_code, code.co_exceptiontable, constants, names


def _names(code: CodeType) -> set[str]:
    inner = (_names(each) for each in code.co_consts if isinstance(each, CodeType))
    return set(code.co_names).union(*inner)


def _content(cell: Any) -> Any:
    try:
        return cell.cell_contents
    except ValueError:  # a name that has no value yet
        return None
