"""Bytes at an address, for compiled code: the words of a message lie wherever its key ends.

Little endian, as the wire is and every machine that Numba compiles for; nothing is aligned. The
caller keeps the memory alive: ``array.ctypes.data`` is the address of an array's first byte.
"""

from collections.abc import Callable
from typing import Any

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

copy: Any = types.ExternalFunction("memcpy", types.intp(types.intp, types.intp, types.uintp))
"""copy(to, from, count) in compiled code: C's memcpy"""

_BYTE = ir.IntType(8)


def _loader(kind: Any, native: ir.Type) -> Any:
    def load(typing: Any, address: Any) -> Any:
        def generate(context: Any, builder: Any, sig: Any, args: Any) -> Any:
            return builder.load(builder.inttoptr(args[0], native.as_pointer()), align=1)

        return kind(types.intp), generate

    return intrinsic(load)


def _storer(kind: Any, native: ir.Type) -> Any:
    def store(typing: Any, address: Any, value: Any) -> Any:
        def generate(context: Any, builder: Any, sig: Any, args: Any) -> Any:
            builder.store(args[1], builder.inttoptr(args[0], native.as_pointer()), align=1)
            return context.get_dummy_value()

        return types.void(types.intp, kind), generate

    return intrinsic(store)


load_u8: Callable[[int], Any] = _loader(types.uint8, _BYTE)
load_u16: Callable[[int], Any] = _loader(types.uint16, ir.IntType(16))
load_u32: Callable[[int], Any] = _loader(types.uint32, ir.IntType(32))
load_u64: Callable[[int], Any] = _loader(types.uint64, ir.IntType(64))
load_i64: Callable[[int], Any] = _loader(types.int64, ir.IntType(64))
load_f64: Callable[[int], Any] = _loader(types.float64, ir.DoubleType())
store_u8: Callable[[int, Any], None] = _storer(types.uint8, _BYTE)
store_u16: Callable[[int, Any], None] = _storer(types.uint16, ir.IntType(16))
store_u32: Callable[[int, Any], None] = _storer(types.uint32, ir.IntType(32))
store_u64: Callable[[int, Any], None] = _storer(types.uint64, ir.IntType(64))
store_f64: Callable[[int, Any], None] = _storer(types.float64, ir.DoubleType())
