"""Vector registers inside Numba: a `Vector` type, memory, lane-wise arithmetic.

LLVM vector instructions are emitted directly, so that speed does not hang on the auto-vectoriser
and every fused multiply-add is an explicit one.

Compile-time parameters travel as a `Tile`, a value without data whose Numba type holds `rows`,
`vectors` and `lanes`: a register block of `rows` x (`vectors` x `lanes`) accumulators.
`host_tile()` (inside compiled code) is the best one for the host; `tile(6, 4, 16)` names one.

Memory is an array or an integer address (as `address(array)` gives it); then the caller keeps it
alive. What `emit_...` functions and those ending in `_of` with a builder do is for other modules
that emit instructions.
"""

from __future__ import annotations

import operator
import platform
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import llvmlite.binding as llvm
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.core.typing.templates import AbstractTemplate, infer_global, signature
from numba.extending import intrinsic as numba_intrinsic
from numba.extending import lower_builtin, models, register_model

from streamlstm.jit import emitted

FLOAT = ir.FloatType()
POINTER = FLOAT.as_pointer()
INDEX = ir.IntType(64)
UNITS = 16  # hidden units are packed in groups of as many


def intrinsic(define: Callable[..., Any]) -> Any:
    """Numba's, with constants kept; untyped, since callers leave out the first argument."""
    return numba_intrinsic(prefer_literal=True)(define)


class Shape(NamedTuple):
    """A register block: rows x vectors accumulators of `lanes` float32 each."""

    rows: int
    vectors: int
    lanes: int


def shape_for(features: Mapping[str, bool], machine: str) -> Shape:
    """The register block for a host.

    features: as `llvmlite.binding.get_host_cpu_features()` gives them; machine: as
    `platform.machine()`. Accumulators, one row of B and a broadcast element must fit the
    registers: 32 with AVX-512 and NEON, 16 with AVX2 and SSE.
    """
    if features.get("avx512f"):
        return Shape(6, 4, 16)
    if features.get("avx2"):
        return Shape(3, 4, 8)
    if machine.lower() in ("aarch64", "arm64"):
        return Shape(6, 4, 4)
    return Shape(3, 4, 4)


def host_features() -> Mapping[str, bool]:
    """What this machine's processor has, as LLVM tells; nothing where it cannot."""
    try:
        return dict(llvm.get_host_cpu_features())
    except RuntimeError:  # on some platforms
        return {}


def host_shape() -> Shape:
    """The register block that `host_tile` stands for on this machine."""
    return shape_for(host_features(), platform.machine())


# --- types ----------------------------------------------------------------------------------------


class Tile(types.Type):  # type: ignore[misc]
    """Numba type of a register block; its values hold no data."""

    def __init__(self, rows: int, vectors: int, lanes: int) -> None:
        self.rows, self.vectors, self.lanes = rows, vectors, lanes
        super().__init__(name=f"Tile({rows}x{vectors}x{lanes})")


register_model(Tile)(models.OpaqueModel)


class Vector(types.Type):  # type: ignore[misc]
    """Numba type of `parts` registers of `lanes` float32 each."""

    def __init__(self, lanes: int, parts: int = 1) -> None:
        self.lanes, self.parts = lanes, parts
        super().__init__(name=f"Vector({lanes}x{parts})")


@register_model(Vector)
class _VectorModel(models.PrimitiveModel):  # type: ignore[misc]
    def __init__(self, manager: Any, kind: Vector) -> None:
        register = ir.VectorType(FLOAT, kind.lanes)
        whole = register if kind.parts == 1 else ir.ArrayType(register, kind.parts)
        super().__init__(manager, kind, whole)


class Function(types.Type):  # type: ignore[misc]
    """Numba type of one compiled function; its values hold no data.

    To pass a compiled function itself would put its address in the code, and forbid to cache it.
    """

    def __init__(self, dispatcher: Any) -> None:
        self.dispatcher = dispatcher
        source = dispatcher.dispatcher.py_func
        super().__init__(name=f"Function({source.__module__}.{source.__qualname__})")


register_model(Function)(models.OpaqueModel)


@intrinsic
def function(typing: Any, compiled: Any) -> Any:
    """function(compiled) -> the compiled function as an argument for others, see `call`."""
    return Function(compiled)(compiled), no_data


@intrinsic
def call(typing: Any, function: Any, *args: Any) -> Any:
    """call(function, ...) -> what the compiled function returns."""
    called = function.dispatcher.get_call_type(typing, args, {})

    def generate(context: Any, builder: Any, sig: Any, values: Any) -> Any:
        unpacked = cgutils.unpack_tuple(builder, values[1])
        return context.get_function(function.dispatcher, called)(builder, unpacked)

    return called.return_type(function, types.BaseTuple.from_types(called.args)), generate


@intrinsic
def tile(typing: Any, rows: Any, vectors: Any, lanes: Any) -> Any:
    """tile(rows, vectors, lanes) -> the register block of these constants."""
    kind = Tile(rows.literal_value, vectors.literal_value, lanes.literal_value)
    return kind(rows, vectors, lanes), no_data


@intrinsic
def host_tile(typing: Any) -> Any:
    """host_tile() -> the register block that suits the host that compiles."""
    return Tile(*host_shape())(), no_data


@intrinsic
def with_rows(typing: Any, block: Any, rows: Any) -> Any:
    """with_rows(tile, rows) -> the same tile with another constant number of rows."""
    return Tile(rows.literal_value, block.vectors, block.lanes)(block, rows), no_data


@intrinsic
def shorter(typing: Any, block: Any) -> Any:
    """shorter(tile) -> the same tile with two thirds of its rows, for what is left of a batch."""
    return Tile(max(block.rows * 2 // 3, 1), block.vectors, block.lanes)(block), no_data


@intrinsic
def with_vectors(typing: Any, block: Any, vectors: Any) -> Any:
    """with_vectors(tile, vectors) -> the same tile with another constant number of vectors."""
    return Tile(block.rows, vectors.literal_value, block.lanes)(block, vectors), no_data


def no_data(context: Any, builder: Any, sig: Any, args: Any) -> Any:
    """Emit a value without data."""
    return context.get_dummy_value()


def _attribute(name: str) -> Any:
    def define(typing: Any, block: Any) -> Any:
        value = getattr(block, name)

        def generate(context: Any, builder: Any, sig: Any, args: Any) -> Any:
            return ir.Constant(INDEX, value)

        return types.intp(block), generate

    define.__name__ = define.__qualname__ = f"{name}_of"
    return intrinsic(define)


rows_of = _attribute("rows")  # rows_of(tile) -> int, a constant once compiled
vectors_of = _attribute("vectors")
lanes_of = _attribute("lanes")


# --- memory ---------------------------------------------------------------------------------------


def pointer_of(context: Any, builder: Any, kind: Any, value: Any) -> Any:
    """float* of a float32 array or of an integer address."""
    if isinstance(kind, types.Array):
        return context.make_array(kind)(context, builder, value).data
    return builder.inttoptr(value, POINTER)


def is_memory(kind: Any) -> bool:
    """Whether a Numba type is a float32 array or an address."""
    return isinstance(kind, types.Integer) or (
        isinstance(kind, types.Array) and kind.dtype == types.float32
    )


@intrinsic
def address(typing: Any, array: Any) -> Any:
    """address(array) -> the integer address of its first element (the caller keeps it alive)."""

    def generate(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        data = context.make_array(array)(context, builder, args[0]).data
        return builder.ptrtoint(data, INDEX)

    return types.intp(array), generate


@emitted(types.int64, types.intp, types.intp)
def word(builder: Any, address: Any, at: Any) -> Any:
    """word(address, at) -> element `at` of the int64 array at an integer address."""
    return builder.load(builder.gep(builder.inttoptr(address, INDEX.as_pointer()), [at]))


@emitted(types.int64, types.intp, types.intp)
def short_word(builder: Any, address: Any, at: Any) -> Any:
    """short_word(address, at) -> element `at` of the int32 array at an integer address."""
    start = builder.inttoptr(address, ir.IntType(32).as_pointer())
    return builder.sext(builder.load(builder.gep(start, [at])), INDEX)


@emitted(types.void, types.intp, types.intp, types.int64)
def set_word(builder: Any, address: Any, at: Any, value: Any) -> None:
    """set_word(address, at, value): set element `at` of the int64 array at an integer address."""
    builder.store(value, builder.gep(builder.inttoptr(address, INDEX.as_pointer()), [at]))


@emitted(types.float32, types.intp, types.intp)
def number(builder: Any, address: Any, at: Any) -> Any:
    """number(address, at) -> element `at` of the float32 array at an integer address."""
    return builder.load(builder.gep(builder.inttoptr(address, POINTER), [at]))


@emitted(types.void, types.intp, types.intp, types.float32)
def set_number(builder: Any, address: Any, at: Any, value: Any) -> None:
    """set_number(address, at, value): set element `at` of the float32 array at an address."""
    builder.store(value, builder.gep(builder.inttoptr(address, POINTER), [at]))


@intrinsic
def load(typing: Any, block: Any, memory: Any, at: Any) -> Any:
    """load(tile, memory, at) -> Vector of the `lanes` float32 from element `at` on."""
    if not is_memory(memory):
        return None
    kind = Vector(block.lanes)

    def generate(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        start = builder.gep(pointer_of(context, builder, memory, args[1]), [args[2]])
        return emit_load(builder, start, block.lanes)

    return kind(block, memory, types.intp), generate


@intrinsic
def splat(typing: Any, block: Any, value: Any) -> Any:
    """splat(tile, value) -> Vector of `lanes` times the float32 value."""
    kind = Vector(block.lanes)

    def generate(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        return emit_splat(builder, args[1], kind)

    return kind(block, types.float32), generate


@intrinsic
def store(typing: Any, memory: Any, at: Any, vector: Any) -> Any:
    """store(memory, at, vector): write the lanes of a vector to elements `at` and on."""
    if not (is_memory(memory) and isinstance(vector, Vector)):
        return None

    def generate(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        start = builder.gep(pointer_of(context, builder, memory, args[0]), [args[1]])
        emit_store(builder, args[2], start)
        return context.get_dummy_value()

    return types.void(memory, types.intp, vector), generate


def emit_load(builder: Any, pointer: Any, lanes: int) -> Any:
    """A register of the float32 at a pointer."""
    kind = ir.VectorType(FLOAT, lanes)
    return builder.load(builder.bitcast(pointer, kind.as_pointer()), align=4)


def emit_store(builder: Any, vector: Any, pointer: Any) -> None:
    """Write a register to a pointer."""
    builder.store(vector, builder.bitcast(pointer, vector.type.as_pointer()), align=4)


# --- lane-wise arithmetic, for float32 and Vector alike -------------------------------------------


def _common(*kinds: Any) -> Any:
    """The type of an operation on scalars and vectors (None: not ours)."""
    vectors = {kind for kind in kinds if isinstance(kind, Vector)}
    others = {kind for kind in kinds if not isinstance(kind, Vector)}
    if len(vectors) > 1 or not others <= {types.float32}:
        return None
    return vectors.pop() if vectors else types.float32


def parts_of(builder: Any, value: Any, kind: Any) -> list[Any]:
    """The registers of a vector, or as many copies of a scalar; where the kind is a scalar, it."""
    if not isinstance(kind, Vector):
        return [value]
    if isinstance(value.type, ir.ArrayType):
        return [builder.extract_value(value, part) for part in range(kind.parts)]
    return [emit_splat(builder, value, kind)] * kind.parts


def whole_of(builder: Any, parts: list[Any]) -> Any:
    """What `_parts` took apart."""
    if len(parts) == 1:
        return parts[0]
    whole = ir.Constant(ir.ArrayType(parts[0].type, len(parts)), ir.Undefined)
    for place, part in enumerate(parts):
        whole = builder.insert_value(whole, part, place)
    return whole


def _each(builder: Any, kind: Any, args: Any, emit: Callable[..., Any]) -> Any:
    """`emit` applied register by register: side by side, the core never waits on one of them."""
    parts = [parts_of(builder, arg, kind) for arg in args]
    return whole_of(builder, [emit(builder, *own) for own in zip(*parts, strict=True)])


def emit_splat(builder: Any, value: Any, kind: Any) -> Any:
    """The value itself, or a register with a scalar in each lane."""
    if not isinstance(kind, Vector) or isinstance(value.type, ir.VectorType):
        return value
    undefined = ir.Constant(ir.VectorType(value.type, kind.lanes), ir.Undefined)
    first = builder.insert_element(undefined, value, ir.Constant(ir.IntType(32), 0))
    zeros = ir.Constant(ir.VectorType(ir.IntType(32), kind.lanes), [0] * kind.lanes)
    return builder.shuffle_vector(first, undefined, zeros)


def emit_fma(builder: Any, a: Any, b: Any, c: Any) -> Any:
    """a * b + c of scalars or registers, rounded once."""
    kind = a.type
    suffix = f"v{kind.count}f32" if isinstance(kind, ir.VectorType) else "f32"
    function = cgutils.get_or_insert_function(
        builder.module, ir.FunctionType(kind, [kind] * 3), f"llvm.fma.{suffix}"
    )
    return builder.call(function, [a, b, c])


def _lanewise(kinds: tuple[Any, ...], emit: Callable[..., Any]) -> Any:
    """What an intrinsic returns that applies `emit` to each lane of its arguments."""
    kind = _common(*kinds)
    if kind is None:
        return None

    def generate(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        return _each(builder, kind, args, emit)

    return kind(*kinds), generate


@intrinsic
def fma(typing: Any, a: Any, b: Any, c: Any) -> Any:
    """fma(a, b, c) = a * b + c, rounded once."""
    return _lanewise((a, b, c), emit_fma)


@intrinsic
def product(typing: Any, a: Any, b: Any) -> Any:
    """product(a, b) = a * b, rounded before anything is added to it.

    Elsewhere `*` is that too; compilers for a GPU may fuse it with an addition that follows.
    """
    kind = _common(a, b)
    if kind is None:
        return None

    def generate(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        if context.target_name != "cuda":
            return _each(builder, kind, args, lambda ir, a, b: ir.fmul(a, b))
        signature = ir.FunctionType(FLOAT, [FLOAT, FLOAT])
        function = cgutils.get_or_insert_function(builder.module, signature, "llvm.nvvm.mul.rn.f")
        return builder.call(function, args)

    return kind(a, b), generate


@intrinsic
def power(typing: Any, shifted: Any) -> Any:
    """power(n + 127 + 1.5 * 2^23) = 2^n, for n from -126 to 127: its last bits are the exponent."""

    def emit(builder: Any, shifted: Any) -> Any:
        kind = shifted.type
        many = isinstance(kind, ir.VectorType)
        word = ir.VectorType(ir.IntType(32), kind.count) if many else ir.IntType(32)
        places = ir.Constant(word, [23] * kind.count if many else 23)
        return builder.bitcast(builder.shl(builder.bitcast(shifted, word), places), kind)

    return _lanewise((shifted,), emit)


@intrinsic
def minimum(typing: Any, a: Any, b: Any) -> Any:
    """minimum(a, b): the smaller one; b where a is not a number."""
    return _lanewise((a, b), lambda ir, a, b: ir.select(ir.fcmp_ordered("<", a, b), a, b))


@intrinsic
def maximum(typing: Any, a: Any, b: Any) -> Any:
    """maximum(a, b): the larger one; b where a is not a number."""
    return _lanewise((a, b), lambda ir, a, b: ir.select(ir.fcmp_ordered(">", a, b), a, b))


@intrinsic
def within(typing: Any, value: Any, bound: Any) -> Any:
    """within(x, bound): x, or the nearer of -bound and bound; one of them where it is not a number.

    One instruction where there is such a one, else two.
    """
    kind = _common(value, bound)
    if kind is None:
        return None
    at_once = getattr(kind, "lanes", 1) == 16 and host_features().get("avx512dq", False)
    return _lanewise((value, bound), _nearer_zero if at_once else _between)


def _between(builder: Any, value: Any, bound: Any) -> Any:
    least = builder.fsub(ir.Constant(bound.type, None), bound)
    value = builder.select(builder.fcmp_ordered("<", value, bound), value, bound)
    return builder.select(builder.fcmp_ordered(">", value, least), value, least)


def _nearer_zero(builder: Any, value: Any, bound: Any) -> Any:
    """AVX-512's vrangeps: the smaller size of the two, with the first one's sign."""
    kind, short, word = value.type, ir.IntType(16), ir.IntType(32)
    function = cgutils.get_or_insert_function(
        builder.module,
        ir.FunctionType(kind, [kind, kind, word, kind, short, word]),
        "llvm.x86.avx512.mask.range.ps.512",
    )
    smaller_size, all_lanes, rounding = word(0b0010), short(-1), word(4)
    return builder.call(function, [value, bound, smaller_size, value, all_lanes, rounding])


@intrinsic
def elsewhere(typing: Any, words: Any, value: Any) -> Any:
    """elsewhere(address, x): x as a function leaves it, lane by lane, that works in memory.

    At the address are that of a compiled function(code, memory, count) and the code. On a GPU, x.
    """
    kind = _common(value)
    given = (types.int64,) * 3

    def generate(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        if context.target_name == "cuda":
            return args[1]
        words = builder.inttoptr(args[0], INDEX.as_pointer())
        address, code = (builder.load(builder.gep(words, [INDEX(k)])) for k in range(2))
        room = cgutils.alloca_once(builder, args[1].type)
        builder.store(args[1], room)
        count = kind.lanes * kind.parts if isinstance(kind, Vector) else 1
        native = context.call_conv.get_function_type(types.none, given).as_pointer()
        called = [code, builder.ptrtoint(room, INDEX), INDEX(count)]
        function = builder.inttoptr(address, native)
        context.call_conv.call_function(builder, function, types.none, given, called)
        return builder.load(room)

    return kind(types.int64, value), generate


def _operator(symbol: Any, emit: Callable[..., Any]) -> None:
    @infer_global(symbol)
    class Template(AbstractTemplate):  # type: ignore[misc]
        def generic(self, args: Any, kws: Any) -> Any:
            kind = _common(*args) if len(args) == 2 else None
            return signature(kind, *args) if isinstance(kind, Vector) else None

    def generate(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        return _each(builder, sig.return_type, args, emit)

    for kinds in ((Vector, Vector), (Vector, types.Float), (types.Float, Vector)):
        lower_builtin(symbol, *kinds)(generate)


_operator(operator.add, lambda ir, a, b: ir.fadd(a, b))
_operator(operator.sub, lambda ir, a, b: ir.fsub(a, b))
_operator(operator.mul, lambda ir, a, b: ir.fmul(a, b))
_operator(operator.truediv, lambda ir, a, b: ir.fdiv(a, b))
