"""Words at an address, most significant byte first, for compiled code; nothing is aligned.

Integers are int64 and floats float64, whatever their width in memory. The caller keeps the memory
alive, as in :mod:`streamlstm.memory`.
"""

from collections.abc import Callable
from typing import Any

from llvmlite import ir
from numba import types

from streamlstm.jit import emitted

_LONG, _REAL = ir.IntType(64), ir.DoubleType()


def _loader(bits: int, kind: Any, widen: Callable[[Any, Any], Any]) -> Any:
    @emitted(kind, types.intp)
    def load(builder: Any, address: Any) -> Any:
        word = builder.load(builder.inttoptr(address, ir.IntType(bits).as_pointer()), align=1)
        return widen(builder, builder.bswap(word) if bits > 8 else word)

    return load


def _storer(bits: int, kind: Any, narrow: Callable[[Any, Any], Any]) -> Any:
    @emitted(types.void, types.intp, kind)
    def store(builder: Any, address: Any, value: Any) -> None:
        pointer = builder.inttoptr(address, ir.IntType(bits).as_pointer())
        builder.store(builder.bswap(narrow(builder, value)), pointer, align=1)

    return store


def _unsigned(bits: int) -> Any:
    return _loader(bits, types.int64, lambda builder, word: builder.zext(word, _LONG))


def _signed(bits: int) -> Any:
    return _loader(bits, types.int64, lambda builder, word: builder.sext(word, _LONG))


def _float32(builder: Any, word: Any) -> Any:
    return builder.fpext(builder.bitcast(word, ir.FloatType()), _REAL)


def _integers(bits: int) -> Any:
    return _storer(bits, types.int64, lambda builder, value: builder.trunc(value, ir.IntType(bits)))


load_u8: Callable[[int], int] = _unsigned(8)
load_u16: Callable[[int], int] = _unsigned(16)
load_u32: Callable[[int], int] = _unsigned(32)
load_i8: Callable[[int], int] = _signed(8)
load_i16: Callable[[int], int] = _signed(16)
load_i32: Callable[[int], int] = _signed(32)
load_i64: Callable[[int], int] = _signed(64)
load_f32: Callable[[int], float] = _loader(32, types.float64, _float32)
load_f64: Callable[[int], float] = _loader(
    64, types.float64, lambda builder, word: builder.bitcast(word, _REAL)
)
store_16: Callable[[int, int], None] = _integers(16)
store_32: Callable[[int, int], None] = _integers(32)
store_64: Callable[[int, int], None] = _integers(64)
store_f64: Callable[[int, float], None] = _storer(
    64, types.float64, lambda builder, value: builder.bitcast(value, _LONG)
)
