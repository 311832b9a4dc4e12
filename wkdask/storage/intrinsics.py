"""C functions for compiled code: LZ4 of `lz4`, zstd of `numcodecs`, `pread` of the C library.

It knows symbols, addresses and how compiled code calls them. Python's own calls would cost about a
microsecond and the GIL for every block; an address is called from a loop that needs neither.
Addresses are arguments of compiled functions, never constants in them, so that numba can keep its
machine code on disk.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from functools import cache
from typing import Any

from llvmlite import ir
from llvmlite.ir import IRBuilder, Value
from lz4.block import _block
from numba import types
from numba.core import cgutils
from numba.core.base import BaseContext
from numba.extending import intrinsic as numba_intrinsic

from wkdask.errors import extra_error

__all__ = [
    "address_of",
    "byte_at",
    "c_function",
    "call_lz4",
    "call_pread",
    "call_unlz4",
    "call_unzstd",
    "call_zstd",
    "copy_bytes",
    "finish_streams",
    "put_byte",
    "state_bytes",
    "stream_16_bytes",
]


Values = list[Value]
Generated = tuple[types.Type, Callable[..., Value]]
"""The signature of a function, and what generates its code."""


def _intrinsic(function: Callable[..., Generated]) -> Callable[..., int]:
    """Make a code generator a function of compiled code."""
    made: Callable[..., int] = numba_intrinsic(function)
    return made


@cache
def address_of(name: str) -> int:
    """Return where a C function lies: of LZ4, of zstd, or else of the C library."""
    return ctypes.cast(c_function(name), ctypes.c_void_p).value or 0


def c_function(name: str) -> Any:
    """Return a C function for calls from Python.

    Raises
    ------
    MissingExtraError
        If it is one of zstd, which only Zarr layers need, and numcodecs is not installed.
    ImportError
        If a package was built without it.
    """
    package, path = _library(name)
    try:
        return getattr(ctypes.CDLL(path), name)
    except AttributeError:
        raise ImportError(
            f"the C function {name} is not to be found in {path}. "
            f"Install the {package} package as a wheel: pip install --force-reinstall {package}"
        ) from None


def _library(name: str) -> tuple[str, str | None]:
    """Return the package and the file of a C function, by the beginning of its name."""
    if name.startswith("LZ4_"):
        return "lz4", _block.__file__
    if not name.startswith("ZSTD_"):
        return "", None
    try:
        from numcodecs import zstd
    except ImportError:
        raise extra_error("zarr", "zarr") from None
    return "numcodecs", zstd.__file__


@cache
def state_bytes(name: str) -> int:
    """Return the bytes of working memory that a compression function needs."""
    size: int = ctypes.CFUNCTYPE(ctypes.c_int)(address_of(name))()
    return size


def _c_function(result: types.Type, *arguments: types.Type) -> Callable[..., int]:
    """Return an intrinsic that calls a C function by its address, which is the first argument."""

    @_intrinsic
    def call(typingctx: object, address: types.Type, values: types.Type) -> Generated:
        signature = result(types.int64, types.UniTuple(types.int64, len(arguments)))

        def generate(context: BaseContext, builder: IRBuilder, _: object, given: Values) -> Value:
            llvm_types = [context.get_value_type(argument) for argument in arguments]
            function_type = _llvm_function(context.get_value_type(result), llvm_types)
            function = builder.inttoptr(given[0], function_type.as_pointer())
            values = cgutils.unpack_tuple(builder, given[1])
            casts = zip(values, llvm_types, strict=True)
            return builder.call(function, [_fitted(builder, *pair) for pair in casts])

        return signature, generate

    return call


def _llvm_function(result: ir.Type, arguments: list[ir.Type]) -> ir.FunctionType:
    return ir.FunctionType(result, arguments)


def _fitted(builder: IRBuilder, value: Value, wanted: ir.Type) -> Value:
    return value if value.type == wanted else builder.trunc(value, wanted)


# Pointers and sizes are 64-bit integers here, on every platform that WKW's reference supports.
call_unlz4 = _c_function(types.int32, types.int64, types.int64, types.int32, types.int32)
"""`LZ4_decompress_safe(source, target, source_bytes, target_bytes)`."""

call_lz4 = _c_function(
    types.int32, types.int64, types.int64, types.int64, types.int32, types.int32, types.int32
)
"""`LZ4_compress_*_extState*(state, source, target, source_bytes, target_bytes, level)`."""

call_unzstd = _c_function(
    types.int64, types.int64, types.int64, types.int64, types.int64, types.int64
)
"""`ZSTD_decompressDCtx(context, target, target_bytes, source, source_bytes)`."""

call_zstd = call_unzstd
"""`ZSTD_compress2(context, target, target_bytes, source, source_bytes)`."""

call_pread = _c_function(types.int64, types.int32, types.int64, types.int64, types.int64)
"""`pread(descriptor, target, count, offset_bytes)`."""


@_intrinsic
def copy_bytes(
    typingctx: object, target: types.Type, source: types.Type, count: types.Type
) -> Generated:
    """Copy `count` bytes between two addresses."""

    def generate(context: BaseContext, builder: IRBuilder, _: object, given: Values) -> Value:
        pointer = cgutils.voidptr_t
        target, source = (builder.inttoptr(address, pointer) for address in given[:2])
        cgutils.raw_memcpy(builder, target, source, given[2], 1)
        return context.get_dummy_value()

    return types.void(types.int64, types.int64, types.int64), generate


@_intrinsic
def stream_16_bytes(typingctx: object, target: types.Type, source: types.Type) -> Generated:
    """Copy 16 bytes to an aligned address, past the cache."""

    def generate(context: BaseContext, builder: IRBuilder, _: object, given: Values) -> Value:
        pointer = ir.VectorType(ir.IntType(32), 4).as_pointer()
        target, source = (builder.inttoptr(address, pointer) for address in given)
        stored = builder.store(builder.load(source, align=1), target, align=16)
        one = ir.Constant(ir.IntType(32), 1)
        stored.set_metadata("nontemporal", builder.module.add_metadata([one]))
        return context.get_dummy_value()

    return types.void(types.int64, types.int64), generate


@_intrinsic
def finish_streams(typingctx: object) -> Generated:
    """Let other threads see what was copied past the cache."""

    def generate(context: BaseContext, builder: IRBuilder, _: object, given: Values) -> Value:
        builder.fence("seq_cst")
        return context.get_dummy_value()

    return types.void(), generate


@_intrinsic
def byte_at(typingctx: object, address: types.Type) -> Generated:
    """Return the byte at an address."""

    def generate(context: BaseContext, builder: IRBuilder, _: object, given: Values) -> Value:
        byte = builder.load(builder.inttoptr(given[0], cgutils.voidptr_t))
        return builder.zext(byte, ir.IntType(64))

    return types.int64(types.int64), generate


@_intrinsic
def put_byte(typingctx: object, address: types.Type, byte: types.Type) -> Generated:
    """Write the lower eight bits of a number to an address."""

    def generate(context: BaseContext, builder: IRBuilder, _: object, given: Values) -> Value:
        pointer = builder.inttoptr(given[0], cgutils.voidptr_t)
        builder.store(builder.trunc(given[1], ir.IntType(8)), pointer)
        return context.get_dummy_value()

    return types.void(types.int64, types.int64), generate
