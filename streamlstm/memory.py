"""Bytes and functions at an address, for compiled code; records of several fields.

The words of a message lie wherever its key ends.

Little endian, as the wire is and every machine that Numba compiles for; nothing is aligned. The
caller keeps the memory alive: ``array.ctypes.data`` is the address of an array's first byte.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import numpy as np
from llvmlite import ir
from numba import typeof, types
from numba.core import cgutils
from numba.extending import intrinsic
from numpy.typing import NDArray

from streamlstm.jit import emitted

Fields = Mapping[str, tuple[type, tuple[int, ...]]]
"""Name -> dtype and shape of what one record keeps."""
LINE = 64
"""Bytes of a cache line."""

_BYTE = ir.IntType(8)


def record_layout(fields: Fields) -> np.dtype[np.void]:
    """How the fields of a record lie, side by side."""
    named = [(name, kind, shape) for name, (kind, shape) in fields.items()]
    return np.dtype(named, align=True)


def records(fields: Fields, n: int) -> dict[str, NDArray[Any]]:
    """Zeros, (n, ...) for each field; what belongs to one record lies in the same cache lines.

    There are two at least: to Numba the arrays of a single one would be of another type.
    """
    table = np.zeros(max(n, 2), record_layout(fields))
    return {name: table[name] for name in fields}


@emitted(types.void, types.intp, types.intp, types.intp)
def copy(builder: Any, to: Any, source: Any, count: Any) -> None:
    """copy(to, source, count): bytes from one address to another, which do not overlap."""
    target, origin = (builder.inttoptr(each, _BYTE.as_pointer()) for each in (to, source))
    cgutils.raw_memcpy(builder, target, origin, count, 1)


@emitted(types.void, types.intp, types.intp)
def clear(builder: Any, to: Any, count: Any) -> None:
    """clear(to, count): zeros to an address."""
    cgutils.memset(builder, builder.inttoptr(to, _BYTE.as_pointer()), count, 0)


@emitted(types.void, types.intp)
def prefetch(builder: Any, address: Any) -> None:
    """prefetch(address): bring its cache line near, to be read and written."""
    byte, word = _BYTE.as_pointer(), ir.IntType(32)
    kind = ir.FunctionType(ir.VoidType(), [byte, word, word, word])
    hint = cgutils.get_or_insert_function(builder.module, kind, "llvm.prefetch.p0")
    constants = [ir.Constant(word, value) for value in (1, 3, 1)]
    builder.call(hint, [builder.inttoptr(address, byte), *constants])


def _loader(kind: Any, native: ir.Type) -> Any:
    @emitted(kind, types.intp)
    def load(builder: Any, address: Any) -> Any:
        return builder.load(builder.inttoptr(address, native.as_pointer()), align=1)

    return load


def _storer(kind: Any, native: ir.Type) -> Any:
    @emitted(types.void, types.intp, kind)
    def store(builder: Any, address: Any, value: Any) -> None:
        builder.store(value, builder.inttoptr(address, native.as_pointer()), align=1)

    return store


load_u8: Callable[[int], Any] = _loader(types.uint8, _BYTE)
load_u16: Callable[[int], Any] = _loader(types.uint16, ir.IntType(16))
load_u32: Callable[[int], Any] = _loader(types.uint32, ir.IntType(32))
load_u64: Callable[[int], Any] = _loader(types.uint64, ir.IntType(64))
load_i64: Callable[[int], Any] = _loader(types.int64, ir.IntType(64))
load_f32: Callable[[int], Any] = _loader(types.float32, ir.FloatType())
load_f64: Callable[[int], Any] = _loader(types.float64, ir.DoubleType())
store_u8: Callable[[int, Any], None] = _storer(types.uint8, _BYTE)
store_u16: Callable[[int, Any], None] = _storer(types.uint16, ir.IntType(16))
store_u32: Callable[[int, Any], None] = _storer(types.uint32, ir.IntType(32))
store_u64: Callable[[int, Any], None] = _storer(types.uint64, ir.IntType(64))
store_f32: Callable[[int, Any], None] = _storer(types.float32, ir.FloatType())
store_f64: Callable[[int, Any], None] = _storer(types.float64, ir.DoubleType())


@emitted(types.float32, types.intp, types.intp, types.intp)
def dot(builder: Any, one: Any, other: Any, size: Any) -> Any:
    """dot(one, other, size) -> inner product of float32 at two addresses, ``size`` bytes each.

    A multiple of 32, that is; of eight sums side by side, so that the bits are the same everywhere.
    """
    eight = ir.VectorType(ir.FloatType(), 8)
    total = cgutils.alloca_once_value(builder, ir.Constant(eight, [0.0] * 8))
    start, step = ir.Constant(size.type, 0), ir.Constant(size.type, 32)
    with cgutils.for_range_slice(builder, start, size, step) as (at, _):
        x, y = (
            builder.load(builder.inttoptr(builder.add(address, at), eight.as_pointer()), align=4)
            for address in (one, other)
        )
        builder.store(builder.fadd(builder.load(total), builder.fmul(x, y)), total)
    sums = [
        builder.extract_element(builder.load(total), ir.Constant(ir.IntType(32), lane))
        for lane in range(8)
    ]
    while len(sums) > 1:
        half = len(sums) // 2
        sums = [builder.fadd(a, b) for a, b in zip(sums[:half], sums[half:], strict=True)]
    return sums[0]


@emitted(types.int64, types.intp)
def load_shared(builder: Any, address: Any) -> Any:
    """load_shared(address) -> int64 that another thread wrote, with all that it wrote before."""
    pointer = builder.inttoptr(address, ir.IntType(64).as_pointer())
    return builder.load_atomic(pointer, "acquire", 8)


@emitted(types.void, types.intp, types.int64)
def store_shared(builder: Any, address: Any, value: Any) -> None:
    """store_shared(address, value) an int64, for another thread's :data:`load_shared`."""
    pointer = builder.inttoptr(address, ir.IntType(64).as_pointer())
    builder.store_atomic(value, pointer, "release", 8)


def _view(context: Any, builder: Any, array: Any, data: Any, at: Any, size: Any) -> Any:
    """(size,) from ``at`` bytes beyond where ``data`` lies, of an array's numbers."""
    whole = context.make_array(array)(context, builder, data)
    view = context.make_array(types.Array(array.dtype, 1, "C"))(context, builder)
    begin = builder.gep(builder.bitcast(whole.data, _BYTE.as_pointer()), [at])
    context.populate_array(
        view,
        data=builder.bitcast(begin, view.data.type),
        shape=[size],
        strides=[whole.itemsize],
        itemsize=whole.itemsize,
        meminfo=None,
    )
    return view._getvalue()


# Views for inner loops: of an index that counts from 0 the compiler knows that it is not below 0,
# and takes many at a time.


@intrinsic
def row_of(typing: Any, array: Any, index: Any) -> Any:
    """row_of(array, index) -> (size,) all of array[index], not below 0, which is in one piece."""

    def generate(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        whole = context.make_array(array)(context, builder, args[0])
        size = whole.itemsize.type(1)
        for count in cgutils.unpack_tuple(builder, whole.shape)[1:]:
            size = builder.mul(size, count)
        stride = cgutils.unpack_tuple(builder, whole.strides)[0]
        return _view(context, builder, array, args[0], builder.mul(args[1], stride), size)

    return types.Array(array.dtype, 1, "C")(array, types.intp), generate


@intrinsic
def beyond(typing: Any, array: Any, begin: Any) -> Any:
    """beyond(array, begin) -> (size - begin,) from there on, of an array in one piece."""

    def generate(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        whole = context.make_array(array)(context, builder, args[0])
        size = whole.itemsize.type(1)
        for count in cgutils.unpack_tuple(builder, whole.shape):
            size = builder.mul(size, count)
        at = builder.mul(args[1], whole.itemsize)
        return _view(context, builder, array, args[0], at, builder.sub(size, args[1]))

    return types.Array(array.dtype, 1, "C")(array, types.intp), generate


Wanted = list[tuple[Any, tuple[types.Type, ...]]]
"""Functions that are to be compiled, and the types of their arguments."""
_postponed: ContextVar[Wanted | None] = ContextVar("postponed", default=None)


@contextmanager
def postponing() -> Iterator[Wanted]:
    """Compile nothing of what is required, but list it; addresses are 0, and nothing may be run."""
    wanted: Wanted = []
    before = _postponed.set(wanted)
    try:
        yield wanted
    finally:
        _postponed.reset(before)


def is_postponing() -> bool:
    """Whether nothing is to be compiled now, and so nothing can be run."""
    return _postponed.get() is not None


def require(compiled: Any, *like: Any) -> int:
    """Have a function compiled, or loaded, for arguments like these, or so typed.

    Returns where its machine code lies. What is called by this address is compiled once, on its
    own, however many callers it has.
    """
    kinds = tuple(each if isinstance(each, types.Type) else typeof(each) for each in like)
    if (wanted := _postponed.get()) is not None:
        wanted.append((compiled, kinds))
        return 0
    compiled.compile(kinds)
    found = compiled.overloads[kinds]
    return found.library.get_pointer_to_function(found.fndesc.llvm_func_name)


def _caller(result: Any) -> Any:
    def call(typing: Any, address: Any, *args: Any) -> Any:
        kinds = args[0].types if len(args) == 1 and isinstance(args[0], types.BaseTuple) else args

        def generate(context: Any, builder: Any, sig: Any, values: Any) -> Any:
            convention = context.call_conv
            native = convention.get_function_type(result, kinds).as_pointer()
            pointer = builder.inttoptr(values[0], native)
            given = cgutils.unpack_tuple(builder, values[1])
            _, returned = convention.call_function(builder, pointer, result, kinds, given)
            return context.get_dummy_value() if result is types.void else returned

        return result(types.intp, types.BaseTuple.from_types(kinds)), generate

    return intrinsic(call)


call: Callable[..., None] = _caller(types.none)
"""call(address, ...) of a compiled function that returns nothing and raises nothing"""
call_for_int: Callable[..., int] = _caller(types.int64)
"""call_for_int(address, ...) of a compiled function that returns an int64 and raises nothing"""
