"""Vector registers inside Numba: a `Vector` type, lane-wise arithmetic, a blocked matrix product.

LLVM vector instructions are emitted directly, so that speed does not hang on the auto-vectoriser
and every fused multiply-add is an explicit one. **Order of summation**: each element of a product
is one chain

    c = fma(a[k], b[k], c)    for k = 0, 1, ..., K - 1

whatever the register block, the vector width, the row or the column it is computed in; so results
are bit-identical on every path and for every width. (`dots` alone has 16 such chains, and says how
they are added.)

Compile-time parameters travel as a `Tile`, a value without data whose Numba type holds `rows`,
`vectors` and `lanes`: a register block of `rows` x (`vectors` x `lanes`) accumulators.
`host_tile()` (inside compiled code) is the best one for the host; `tile(6, 4, 16)` names one.

A matrix product for any caller (A, B, C are float32; `*_at` is the offset of their first element
and the others are strides, all counted in elements; columns of B and C are contiguous):

    @njit(cache=True)
    def matmul(a, b, c):                       # c += a @ b, C-contiguous; b.shape[1] % 16 == 0
        m, k = a.shape
        n = b.shape[1]
        simd.gemm(simd.host_tile(), m, n, k, a, 0, k, 1, b, 0, n, c, 0, n)

    simd.gemm(tile, m, n, k, a, 0, 1, m, b, 0, n, c, 0, n)      # c += a.T @ b, where a is (k, m)

`gemm` walks the whole product (any m and k; n a multiple of 16; fastest where n is a multiple of
`vectors` * `lanes`, 64 with AVX-512). `multiply_add` is its inner block, one register tile and
nothing else. Where an array is wanted, an integer address (as `address(array)` gives it) will do
too; then the caller keeps the memory alive. All strides and offsets are plain integers.
"""

from __future__ import annotations

import operator
import platform
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import llvmlite.binding as llvm
from llvmlite import ir
from numba import njit, types
from numba.core import cgutils
from numba.core.typing.templates import AbstractTemplate, infer_global, signature
from numba.extending import intrinsic as numba_intrinsic
from numba.extending import lower_builtin, models, register_model

FLOAT = ir.FloatType()
POINTER = FLOAT.as_pointer()
INDEX = ir.IntType(64)
UNITS = 16  # hidden units are packed in groups of as many
K_BLOCK = 256  # terms of a product taken at a time: a panel of B stays in the second-level cache


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


def host_shape() -> Shape:
    """The register block that `host_tile` stands for on this machine."""
    try:
        features: Mapping[str, bool] = llvm.get_host_cpu_features()
    except RuntimeError:  # LLVM cannot tell on some platforms
        features = {}
    return shape_for(features, platform.machine())


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


class Layout(types.Type):  # type: ignore[misc]
    """Numba type of which gates each of two products adds to; its values hold no data."""

    def __init__(self, first: int, second: int) -> None:
        self.gates = (first | second).bit_length()
        self.products = [
            [gate for gate in range(self.gates) if mask >> gate & 1] for mask in (first, second)
        ]
        super().__init__(name=f"Layout({first:b},{second:b})")


register_model(Layout)(models.OpaqueModel)


class Span(types.Type):  # type: ignore[misc]
    """Numba type of rows x groups of units, a vector of `lanes` each; its values hold no data."""

    def __init__(self, rows: int, groups: int, lanes: int) -> None:
        self.rows, self.groups, self.lanes = rows, groups, lanes
        super().__init__(name=f"Span({rows}x{groups}x{lanes})")


register_model(Span)(models.OpaqueModel)


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
    return Function(compiled)(compiled), _no_data


@intrinsic
def call(typing: Any, function: Any, *args: Any) -> Any:
    """call(function, ...) -> what the compiled function returns."""
    called = function.dispatcher.get_call_type(typing, args, {})

    def generate(context: Any, builder: Any, sig: Any, values: Any) -> Any:
        unpacked = cgutils.unpack_tuple(builder, values[1])
        return context.get_function(function.dispatcher, called)(builder, unpacked)

    return called.return_type(function, types.BaseTuple.from_types(called.args)), generate


@intrinsic
def layout(typing: Any, first: Any, second: Any) -> Any:
    """layout(first, second) -> a Layout of two constant masks, bit g for gate g."""
    return Layout(first.literal_value, second.literal_value)(first, second), _no_data


@intrinsic
def one_group(typing: Any, block: Any, gates: Any) -> Any:
    """one_group(tile, layout) -> the same tile with a vector for each gate."""
    return Tile(block.rows, gates.gates, block.lanes)(block, gates), _no_data


@intrinsic
def groups_of(typing: Any, block: Any, gates: Any) -> Any:
    """groups_of(tile, layout) -> for how many groups of units there are vectors, a constant."""

    def generate(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        return ir.Constant(INDEX, block.vectors // gates.gates)

    return types.intp(block, gates), generate


@intrinsic
def gates_of(typing: Any, gates: Any) -> Any:
    """gates_of(layout) -> how many gates there are, a constant."""

    def generate(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        return ir.Constant(INDEX, gates.gates)

    return types.intp(gates), generate


@intrinsic
def tile(typing: Any, rows: Any, vectors: Any, lanes: Any) -> Any:
    """tile(rows, vectors, lanes) -> the register block of these constants."""
    kind = Tile(rows.literal_value, vectors.literal_value, lanes.literal_value)
    return kind(rows, vectors, lanes), _no_data


@intrinsic
def host_tile(typing: Any) -> Any:
    """host_tile() -> the register block that suits the host that compiles."""
    return Tile(*host_shape())(), _no_data


@intrinsic
def with_rows(typing: Any, block: Any, rows: Any) -> Any:
    """with_rows(tile, rows) -> the same tile with another constant number of rows."""
    return Tile(rows.literal_value, block.vectors, block.lanes)(block, rows), _no_data


@intrinsic
def shorter(typing: Any, block: Any) -> Any:
    """shorter(tile) -> the same tile with two thirds of its rows, for what is left of a batch."""
    return Tile(max(block.rows * 2 // 3, 1), block.vectors, block.lanes)(block), _no_data


@intrinsic
def with_vectors(typing: Any, block: Any, vectors: Any) -> Any:
    """with_vectors(tile, vectors) -> the same tile with another constant number of vectors."""
    return Tile(block.rows, vectors.literal_value, block.lanes)(block, vectors), _no_data


def _no_data(context: Any, builder: Any, sig: Any, args: Any) -> Any:
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


def _pointer(context: Any, builder: Any, kind: Any, value: Any) -> Any:
    """float* of a float32 array or of an integer address."""
    if isinstance(kind, types.Array):
        return context.make_array(kind)(context, builder, value).data
    return builder.inttoptr(value, POINTER)


def _is_memory(kind: Any) -> bool:
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


@intrinsic
def word(typing: Any, memory: Any, at: Any) -> Any:
    """word(address, at) -> element `at` of the int64 array at an integer address."""

    def generate(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        return builder.load(builder.gep(builder.inttoptr(args[0], INDEX.as_pointer()), [args[1]]))

    return types.int64(types.intp, types.intp), generate


@intrinsic
def short_word(typing: Any, memory: Any, at: Any) -> Any:
    """short_word(address, at) -> element `at` of the int32 array at an integer address."""

    def generate(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        start = builder.inttoptr(args[0], ir.IntType(32).as_pointer())
        return builder.sext(builder.load(builder.gep(start, [args[1]])), INDEX)

    return types.int64(types.intp, types.intp), generate


@intrinsic
def set_word(typing: Any, memory: Any, at: Any, value: Any) -> Any:
    """set_word(address, at, value): set element `at` of the int64 array at an integer address."""

    def generate(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        start = builder.inttoptr(args[0], INDEX.as_pointer())
        builder.store(args[2], builder.gep(start, [args[1]]))
        return context.get_dummy_value()

    return types.void(types.intp, types.intp, types.int64), generate


@intrinsic
def number(typing: Any, memory: Any, at: Any) -> Any:
    """number(address, at) -> element `at` of the float32 array at an integer address."""

    def generate(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        return builder.load(builder.gep(builder.inttoptr(args[0], POINTER), [args[1]]))

    return types.float32(types.intp, types.intp), generate


@intrinsic
def set_number(typing: Any, memory: Any, at: Any, value: Any) -> Any:
    """set_number(address, at, value): set element `at` of the float32 array at an address."""

    def generate(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        builder.store(args[2], builder.gep(builder.inttoptr(args[0], POINTER), [args[1]]))
        return context.get_dummy_value()

    return types.void(types.intp, types.intp, types.float32), generate


@intrinsic
def load(typing: Any, block: Any, memory: Any, at: Any) -> Any:
    """load(tile, memory, at) -> Vector of the `lanes` float32 from element `at` on."""
    if not _is_memory(memory):
        return None
    kind = Vector(block.lanes)

    def generate(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        start = builder.gep(_pointer(context, builder, memory, args[1]), [args[2]])
        return _load(builder, start, block.lanes)

    return kind(block, memory, types.intp), generate


@intrinsic
def splat(typing: Any, block: Any, value: Any) -> Any:
    """splat(tile, value) -> Vector of `lanes` times the float32 value."""
    kind = Vector(block.lanes)

    def generate(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        return _splat(builder, args[1], kind)

    return kind(block, types.float32), generate


@intrinsic
def load_like(typing: Any, vector: Any, memory: Any, at: Any) -> Any:
    """load_like(vector, memory, at) -> Vector of as many lanes, from element `at` on."""

    def generate(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        start = builder.gep(_pointer(context, builder, memory, args[1]), [args[2]])
        return _load(builder, start, vector.lanes)

    return vector(vector, memory, types.intp), generate


@intrinsic
def store(typing: Any, memory: Any, at: Any, vector: Any) -> Any:
    """store(memory, at, vector): write the lanes of a vector to elements `at` and on."""
    if not (_is_memory(memory) and isinstance(vector, Vector)):
        return None

    def generate(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        start = builder.gep(_pointer(context, builder, memory, args[0]), [args[1]])
        _store(builder, args[2], start)
        return context.get_dummy_value()

    return types.void(memory, types.intp, vector), generate


@intrinsic
def prefetch(typing: Any, memory: Any) -> Any:
    """prefetch(address): bring the cache line of an integer address near, to be written."""

    def generate(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        byte = ir.IntType(8).as_pointer()
        word = ir.IntType(32)
        kind = ir.FunctionType(ir.VoidType(), [byte, word, word, word])
        hint = cgutils.get_or_insert_function(builder.module, kind, "llvm.prefetch.p0")
        constants = [ir.Constant(word, value) for value in (1, 3, 1)]
        builder.call(hint, [builder.inttoptr(args[0], byte), *constants])
        return context.get_dummy_value()

    return types.void(types.intp), generate


def _load(builder: Any, pointer: Any, lanes: int) -> Any:
    kind = ir.VectorType(FLOAT, lanes)
    return builder.load(builder.bitcast(pointer, kind.as_pointer()), align=4)


def _store(builder: Any, vector: Any, pointer: Any) -> None:
    builder.store(vector, builder.bitcast(pointer, vector.type.as_pointer()), align=4)


# --- lane-wise arithmetic, for float32 and Vector alike -------------------------------------------


def _common(*kinds: Any) -> Any:
    """The type of an operation on scalars and vectors (None: not ours)."""
    vectors = {kind for kind in kinds if isinstance(kind, Vector)}
    others = {kind for kind in kinds if not isinstance(kind, Vector)}
    if len(vectors) > 1 or not others <= {types.float32}:
        return None
    return vectors.pop() if vectors else types.float32


def _parts(builder: Any, value: Any, kind: Any) -> list[Any]:
    """The registers of a vector, or as many copies of a scalar; where the kind is a scalar, it."""
    if not isinstance(kind, Vector):
        return [value]
    if isinstance(value.type, ir.ArrayType):
        return [builder.extract_value(value, part) for part in range(kind.parts)]
    return [_splat(builder, value, kind)] * kind.parts


def _whole(builder: Any, parts: list[Any]) -> Any:
    """What `_parts` took apart."""
    if len(parts) == 1:
        return parts[0]
    whole = ir.Constant(ir.ArrayType(parts[0].type, len(parts)), ir.Undefined)
    for place, part in enumerate(parts):
        whole = builder.insert_value(whole, part, place)
    return whole


def _each(builder: Any, kind: Any, args: Any, emit: Callable[..., Any]) -> Any:
    """`emit` applied register by register: side by side, the core never waits on one of them."""
    parts = [_parts(builder, arg, kind) for arg in args]
    return _whole(builder, [emit(builder, *own) for own in zip(*parts, strict=True)])


def _splat(builder: Any, value: Any, kind: Any) -> Any:
    """The value itself, or a register with a scalar in each lane."""
    if not isinstance(kind, Vector) or isinstance(value.type, ir.VectorType):
        return value
    undefined = ir.Constant(ir.VectorType(value.type, kind.lanes), ir.Undefined)
    first = builder.insert_element(undefined, value, ir.Constant(ir.IntType(32), 0))
    zeros = ir.Constant(ir.VectorType(ir.IntType(32), kind.lanes), [0] * kind.lanes)
    return builder.shuffle_vector(first, undefined, zeros)


def _fma(builder: Any, a: Any, b: Any, c: Any) -> Any:
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
    return _lanewise((a, b, c), _fma)


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
def times_power(typing: Any, value: Any, shifted: Any) -> Any:
    """times_power(x, n + 1.5 * 2^23) = x * 2^n: n, in the last bits, is added to the exponent.

    Neither x nor the result may be zero or denormal.
    """

    def emit(builder: Any, value: Any, shifted: Any) -> Any:
        kind = value.type
        many = isinstance(kind, ir.VectorType)
        word = ir.VectorType(ir.IntType(32), kind.count) if many else ir.IntType(32)
        places = ir.Constant(word, [23] * kind.count if many else 23)
        n = builder.shl(builder.bitcast(shifted, word), places)
        return builder.bitcast(builder.add(builder.bitcast(value, word), n), kind)

    return _lanewise((value, shifted), emit)


@intrinsic
def minimum(typing: Any, a: Any, b: Any) -> Any:
    """minimum(a, b): the smaller one; b where a is not a number."""
    return _lanewise((a, b), lambda ir, a, b: ir.select(ir.fcmp_ordered("<", a, b), a, b))


@intrinsic
def maximum(typing: Any, a: Any, b: Any) -> Any:
    """maximum(a, b): the larger one; b where a is not a number."""
    return _lanewise((a, b), lambda ir, a, b: ir.select(ir.fcmp_ordered(">", a, b), a, b))


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


# --- products -------------------------------------------------------------------------------------


def accumulate(
    builder: Any,
    block: Any,
    start: list[list[Any]],
    count: Any,
    a_rows: list[Any],
    a_step: Any,
    b_vectors: list[Any],
    b_step: Any,
    lane_by_lane: bool = False,
) -> list[list[Any]]:
    """Emit the loop over k: sums[r][v] = fma(a_rows[r][k * a_step], b_vectors[v][k * b_step], ...).

    start: initial sums[row][vector]; a_rows, b_vectors: float pointers. Returns the final sums.
    lane_by_lane: the v-th vector of b meets the v-th vector of a row, not one element of it.
    """
    before = builder.block
    loop = builder.append_basic_block("k")
    after = builder.append_basic_block("k.end")
    zero = ir.Constant(INDEX, 0)
    builder.cbranch(builder.icmp_signed(">", count, zero), loop, after)

    builder.position_at_end(loop)
    k = builder.phi(INDEX)
    k.add_incoming(zero, before)
    sums = []
    for row in start:
        sums.append([builder.phi(value.type) for value in row])
        for phi, value in zip(sums[-1], row, strict=True):
            phi.add_incoming(value, before)
    at = builder.mul(k, b_step)
    b = [_load(builder, builder.gep(pointer, [at]), block.lanes) for pointer in b_vectors]
    at = builder.mul(k, a_step)
    new = []
    for pointer, row in zip(a_rows, sums, strict=True):
        here = builder.gep(pointer, [at])
        if lane_by_lane:
            cells = _cells(builder, here, [v * block.lanes for v in range(len(b))])
            a = [_load(builder, cell, block.lanes) for cell in cells]
        else:
            a = [_splat(builder, builder.load(here), Vector(block.lanes))] * len(b)
        new.append([_fma(builder, *terms) for terms in zip(a, b, row, strict=True)])
    following = builder.add(k, ir.Constant(INDEX, 1))
    k.add_incoming(following, loop)
    for row, updated in zip(sums, new, strict=True):
        for phi, value in zip(row, updated, strict=True):
            phi.add_incoming(value, loop)
    builder.cbranch(builder.icmp_signed("<", following, count), loop, after)

    builder.position_at_end(after)
    result = []
    for row, updated in zip(start, new, strict=True):
        result.append([builder.phi(value.type) for value in row])
        for phi, value, final in zip(result[-1], row, updated, strict=True):
            phi.add_incoming(value, before)
            phi.add_incoming(final, loop)
    return result


@intrinsic
def multiply_add(
    typing: Any,
    block: Any,
    k: Any,
    a: Any,
    a_at: Any,
    a_row: Any,
    a_k: Any,
    b: Any,
    b_at: Any,
    b_k: Any,
    c: Any,
    c_at: Any,
    c_row: Any,
) -> Any:
    """One register tile of C += A @ B.

    c[c_at + r * c_row + j] += sum over k of a[a_at + r * a_row + k * a_k] * b[b_at + k * b_k + j]
    for r < tile.rows, j < tile.vectors * tile.lanes.
    """
    if not (_is_memory(a) and _is_memory(b) and _is_memory(c)):
        return None

    def generate(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        _, count, a_, a_at_, a_row_, a_k_, b_, b_at_, b_k_, c_, c_at_, c_row_ = args
        a_start = builder.gep(_pointer(context, builder, a, a_), [a_at_])
        b_start = builder.gep(_pointer(context, builder, b, b_), [b_at_])
        c_start = builder.gep(_pointer(context, builder, c, c_), [c_at_])
        columns = [v * block.lanes for v in range(block.vectors)]
        c_cells = [_cells(builder, row, columns) for row in _rows(builder, block, c_start, c_row_)]
        sums = [[_load(builder, cell, block.lanes) for cell in cells] for cells in c_cells]
        a_rows = _rows(builder, block, a_start, a_row_)
        b_vectors = _cells(builder, b_start, columns)
        sums = accumulate(builder, block, sums, count, a_rows, a_k_, b_vectors, b_k_)
        for cells, values in zip(c_cells, sums, strict=True):
            for cell, value in zip(cells, values, strict=True):
                _store(builder, value, cell)
        return context.get_dummy_value()

    i = types.intp
    return types.void(block, i, a, i, i, i, b, i, i, c, i, i), generate


@intrinsic
def gates(
    typing: Any,
    block: Any,
    layout: Any,
    first: Any,
    second: Any,
    weights: Any,
    panel: Any,
    bias: Any,
    out: Any,
    then: Any,
    context: Any,
    row: Any,
    unit: Any,
) -> Any:
    """Pre-activations of the gates of `rows` series and `vectors` / gates groups of `lanes` units.

    Memory is by address. first, second: (terms, address of the inputs, stride of their rows) of the
    products that the layout speaks of; weights: packed [terms][gates of the product][16 units], the
    first product before the second, the next group `panel` further on; bias: packed
    [group][gates][16]. Each sum starts from its bias; the second product goes on where the first
    ended. The sums pass through `out`, which has room for a register block.

    Then calls `then(context, span, row, unit, *gates)`, a `function`, for some rows and groups at a
    time, counted from `row` and `unit`: the cells wait much on themselves, and side by side the
    core always has some to go on with.
    """
    number = layout.gates
    span = _span(block.rows, block.vectors // number, block.lanes)
    kinds = (context, span, types.intp, types.intp, *[_span_vector(span)] * number)
    called = then.dispatcher.get_call_type(typing, kinds, {})

    def generate(target: Any, builder: Any, sig: Any, args: Any) -> Any:
        _, _, first_, second_, weights_, panel_, bias_, out_, _, context_, row_, unit_ = args
        weights_, bias_, out_ = (builder.inttoptr(at, POINTER) for at in (weights_, bias_, out_))
        groups = block.vectors // number
        places = [(group, gate) for group in range(groups) for gate in range(number)]
        offsets = [(group * number + gate) * UNITS for group, gate in places]
        start = [_load(builder, cell, block.lanes) for cell in _cells(builder, bias_, offsets)]
        sums = [list(start) for _ in range(block.rows)]
        for product, members in zip((first_, second_), layout.products, strict=True):
            if not members:
                continue
            count, a, a_row = (builder.extract_value(product, k) for k in range(3))
            vectors = []
            for group in range(groups):
                here = builder.gep(weights_, [builder.mul(panel_, ir.Constant(INDEX, group))])
                vectors += _cells(builder, here, [k * UNITS for k in range(len(members))])
            own = [at for at, (_, gate) in enumerate(places) if gate in members]
            rows = _rows(builder, block, builder.inttoptr(a, POINTER), a_row)
            one, line = ir.Constant(INDEX, 1), ir.Constant(INDEX, len(members) * UNITS)
            before = [[row[at] for at in own] for row in sums]
            after = accumulate(builder, block, before, count, rows, one, vectors, line)
            for old, new in zip(sums, after, strict=True):
                for at, value in zip(own, new, strict=True):
                    old[at] = value
            weights_ = builder.gep(weights_, [builder.mul(count, line)])
        # through memory, so that the code of the cells is there once and has all registers
        registers = [value for row in sums for value in row]
        for cell, value in zip(
            _cells(builder, out_, [k * block.lanes for k in range(len(registers))]),
            registers,
            strict=True,
        ):
            _store(builder, value, cell)
        parts = span.rows * span.groups
        turns = ir.Constant(INDEX, block.rows * groups // parts)
        size = ir.Constant(INDEX, parts * number * block.lanes)
        with cgutils.for_range(builder, turns) as loop:
            here = builder.gep(out_, [builder.mul(loop.index, size)])
            cells = _cells(builder, here, [k * block.lanes for k in range(parts * number)])
            values = [_load(builder, cell, block.lanes) for cell in cells]
            own_row = builder.add(row_, builder.mul(loop.index, ir.Constant(INDEX, span.rows)))
            target.get_function(then.dispatcher, called)(
                builder,
                (
                    context_,
                    target.get_dummy_value(),
                    own_row,
                    unit_,
                    *(_whole(builder, values[gate::number]) for gate in range(number)),
                ),
            )
        return target.get_dummy_value()

    i = types.intp
    terms = types.UniTuple(i, 3)
    kinds = (block, layout, terms, terms, i, i, i, i, then, context, i, i)
    return types.void(*kinds), generate


def _span(rows: int, groups: int, lanes: int) -> Span:
    """Of a register block, what its cells are computed in: three vectors or so, all of its groups."""
    return Span(next(n for n in (3, 2, 1) if groups == 1 and rows % n == 0 or n == 1), groups, lanes)


def _of_records(builder: Any, span: Span, table: Any, row: Any, at: Any) -> list[Any]:
    """Pointers to the vectors of a span in records whose addresses stand in a table."""
    words = builder.gep(builder.inttoptr(table, INDEX.as_pointer()), [row])
    cells = []
    for r in range(span.rows):
        record = builder.load(builder.gep(words, [ir.Constant(INDEX, r)]))
        start = builder.gep(builder.inttoptr(record, POINTER), [at])
        cells += _cells(builder, start, [g * UNITS for g in range(span.groups)])
    return cells


def _of_rows(builder: Any, span: Span, memory: Any, stride: Any, row: Any, at: Any) -> list[Any]:
    """Pointers to the vectors of a span in rows of a stride."""
    first = builder.gep(builder.inttoptr(memory, POINTER), [builder.mul(stride, row)])
    cells = []
    for r in range(span.rows):
        start = builder.gep(first, [builder.add(at, builder.mul(stride, ir.Constant(INDEX, r)))])
        cells += _cells(builder, start, [g * UNITS for g in range(span.groups)])
    return cells


def _span_vector(span: Any) -> Vector:
    return Vector(span.lanes, span.rows * span.groups)


def _load_all(builder: Any, span: Any, cells: list[Any]) -> Any:
    return _whole(builder, [_load(builder, cell, span.lanes) for cell in cells])


def _store_all(builder: Any, span: Any, cells: list[Any], vector: Any) -> None:
    for cell, part in zip(cells, _parts(builder, vector, _span_vector(span)), strict=True):
        _store(builder, part, cell)


@intrinsic
def load_records(typing: Any, span: Any, table: Any, row: Any, at: Any) -> Any:
    """load_records(span, table, row, at) -> a span of records, from element `at` of each on.

    table: address of the records' int64 addresses.
    """

    def generate(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        return _load_all(builder, span, _of_records(builder, span, *args[1:]))

    return _span_vector(span)(span, *[types.intp] * 3), generate


@intrinsic
def store_records(typing: Any, span: Any, table: Any, row: Any, at: Any, vector: Any) -> Any:
    """store_records(span, table, row, at, vector): what `load_records` reads."""

    def generate(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        _store_all(builder, span, _of_records(builder, span, *args[1:4]), args[4])
        return context.get_dummy_value()

    return types.void(span, *[types.intp] * 3, _span_vector(span)), generate


@intrinsic
def load_rows(typing: Any, span: Any, memory: Any, stride: Any, row: Any, at: Any) -> Any:
    """load_rows(span, address, stride, row, at) -> a span of rows, from element `at` of each on."""

    def generate(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        return _load_all(builder, span, _of_rows(builder, span, *args[1:]))

    return _span_vector(span)(span, *[types.intp] * 4), generate


@intrinsic
def store_rows(
    typing: Any, span: Any, memory: Any, stride: Any, row: Any, at: Any, vector: Any
) -> Any:
    """store_rows(span, address, stride, row, at, vector): what `load_rows` reads."""

    def generate(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        _store_all(builder, span, _of_rows(builder, span, *args[1:5]), args[5])
        return context.get_dummy_value()

    return types.void(span, *[types.intp] * 4, _span_vector(span)), generate


@intrinsic
def dots(
    typing: Any, block: Any, groups: Any, a: Any, a_row: Any, b: Any, start: Any, c: Any, c_row: Any
) -> Any:
    """c[r * c_row] = start + sum over 16 * groups elements of a[r * a_row + k] * b[k], by address.

    For r < tile.rows. Element k goes to sum k % 16, and the sums are added in halves: 8 and 8, 4
    and 4, and so on, whatever the width; so this order suits few columns, where `multiply_add`
    would have idle lanes.
    """

    def generate(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        _, count, a_, a_row_, b_, start_, c_, c_row_ = args
        a_, b_, c_ = (builder.inttoptr(value, POINTER) for value in (a_, b_, c_))
        vectors = UNITS // block.lanes
        zero = _splat(builder, ir.Constant(FLOAT, 0.0), Vector(block.lanes))
        rows, step = _rows(builder, block, a_, a_row_), ir.Constant(INDEX, UNITS)
        cells = _cells(builder, b_, [v * block.lanes for v in range(vectors)])
        zeros = [[zero] * vectors for _ in range(block.rows)]
        sums = accumulate(builder, block, zeros, count, rows, step, cells, step, True)
        for parts, out in zip(sums, _rows(builder, block, c_, c_row_), strict=True):
            while len(parts) > 1:
                half = len(parts) // 2
                pairs = zip(parts[:half], parts[half:], strict=True)
                parts = [builder.fadd(low, high) for low, high in pairs]
            builder.store(builder.fadd(start_, _sum_in_halves(builder, parts[0])), out)
        return context.get_dummy_value()

    i = types.intp
    return types.void(block, i, i, i, i, types.float32, i, i), generate


def _sum_in_halves(builder: Any, vector: Any) -> Any:
    """The sum of the lanes of a vector."""
    word = ir.IntType(32)
    while (lanes := vector.type.count) > 1:
        low, high = (
            ir.Constant(ir.VectorType(word, lanes // 2), list(range(first, first + lanes // 2)))
            for first in (0, lanes // 2)
        )
        undefined = ir.Constant(vector.type, ir.Undefined)
        parts = [builder.shuffle_vector(vector, undefined, mask) for mask in (low, high)]
        vector = builder.fadd(*parts)
    return builder.extract_element(vector, ir.Constant(word, 0))


def _rows(builder: Any, block: Any, start: Any, stride: Any) -> list[Any]:
    """Pointers to the rows of a tile."""
    offsets = [builder.mul(stride, ir.Constant(INDEX, r)) for r in range(block.rows)]
    return [builder.gep(start, [offset]) for offset in offsets]


def _cells(builder: Any, start: Any, offsets: list[int]) -> list[Any]:
    return [builder.gep(start, [ir.Constant(INDEX, offset)]) for offset in offsets]


@njit(cache=True)
def gemm(
    block: Any,
    m: int,
    n: int,
    k: int,
    a: Any,
    a_at: int,
    a_row: int,
    a_k: int,
    b: Any,
    b_at: int,
    b_k: int,
    c: Any,
    c_at: int,
    c_row: int,
) -> None:
    """C (m, n) += A (m, k) @ B (k, n), strided as the module says; n a multiple of 16."""
    for k_at in range(0, k, K_BLOCK):
        terms = min(K_BLOCK, k - k_at)
        a_from = a_at + k_at * a_k
        b_from = b_at + k_at * b_k
        wide = vectors_of(block) * lanes_of(block)
        column = 0
        while column + wide <= n:
            _panel(
                block,
                m,
                terms,
                a,
                a_from,
                a_row,
                a_k,
                b,
                b_from + column,
                b_k,
                c,
                c_at + column,
                c_row,
            )
            column += wide
        narrow = with_vectors(block, 1)
        while column < n:
            _panel(
                narrow,
                m,
                terms,
                a,
                a_from,
                a_row,
                a_k,
                b,
                b_from + column,
                b_k,
                c,
                c_at + column,
                c_row,
            )
            column += lanes_of(block)


@njit(cache=True)
def _panel(
    block: Any,
    m: int,
    k: int,
    a: Any,
    a_at: int,
    a_row: int,
    a_k: int,
    b: Any,
    b_at: int,
    b_k: int,
    c: Any,
    c_at: int,
    c_row: int,
) -> None:
    """One column panel of `gemm`: full tiles, then the rows that are left, one at a time."""
    row = 0
    rows = rows_of(block)
    while row + rows <= m:
        multiply_add(
            block, k, a, a_at + row * a_row, a_row, a_k, b, b_at, b_k, c, c_at + row * c_row, c_row
        )
        row += rows
    single = with_rows(block, 1)
    while row < m:
        multiply_add(
            single, k, a, a_at + row * a_row, a_row, a_k, b, b_at, b_k, c, c_at + row * c_row, c_row
        )
        row += 1
