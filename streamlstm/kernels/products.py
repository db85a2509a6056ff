"""Matrix products in vector registers, each sum in a fixed order.

**Order of summation**: each element of a product is one chain

    c = fma(a[k], b[k], c)    for k = 0, 1, ..., K - 1

whatever the register block, the vector width, the row or the column it is computed in; so results
are bit-identical on every path and for every width. (`dots` alone has 16 such chains, and says how
they are added.)

A matrix product for any caller (A, B, C are float32; `*_at` is the offset of their first element
and the others are strides, all counted in elements; columns of B and C are contiguous):

    @njit(cache=True)
    def matmul(a, b, c):                       # c += a @ b, C-contiguous; b.shape[1] % 16 == 0
        m, k = a.shape
        n = b.shape[1]
        products.gemm(simd.host_tile(), m, n, k, a, 0, k, 1, b, 0, n, c, 0, n)

    products.gemm(tile, m, n, k, a, 0, 1, m, b, 0, n, c, 0, n)   # c += a.T @ b, where a is (k, m)

`gemm` walks the whole product (any m and k; n a multiple of 16; fastest where n is a multiple of
`vectors` * `lanes`, 64 with AVX-512). `multiply_add` is its inner block, one register tile and
nothing else. All strides and offsets are plain integers.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from operator import itemgetter
from typing import Any

from llvmlite import ir
from numba import types

from streamlstm.jit import njit
from streamlstm.kernels.simd import (
    FLOAT,
    INDEX,
    POINTER,
    UNITS,
    Vector,
    emit_fma,
    emit_load,
    emit_splat,
    emit_store,
    intrinsic,
    is_memory,
    lanes_of,
    pointer_of,
    rows_of,
    vectors_of,
    with_rows,
    with_vectors,
)

TERMS = 4  # of a sum in a turn of its loop: counting them takes instructions too
K_BLOCK = 256  # terms of a product taken at a time: a panel of B stays in the second-level cache


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

    def term(sums: list[list[Any]], k: Any) -> list[list[Any]]:
        at, a_at = builder.mul(k, b_step), builder.mul(k, a_step)

        @cache
        def left(r: int, v: int) -> Any:
            here = builder.gep(a_rows[r], [a_at])
            if lane_by_lane:
                cell = builder.gep(here, [ir.Constant(INDEX, v * block.lanes)])
                return emit_load(builder, cell, block.lanes)
            return emit_splat(builder, builder.load(here), Vector(block.lanes))

        @cache
        def right(v: int) -> Any:
            return emit_load(builder, builder.gep(b_vectors[v], [at]), block.lanes)

        # what there is less of is held in registers; then one is enough for the other
        cells = [(r, v) for r in range(len(sums)) for v in range(len(sums[0]))]
        if len(sums) < len(sums[0]):
            cells.sort(key=itemgetter(1))
        new: list[list[Any]] = [[None] * len(row) for row in sums]
        for r, v in cells:
            a = left(r, v if lane_by_lane else 0)
            new[r][v] = emit_fma(builder, a, right(v), sums[r][v])
        return new

    whole = ir.Constant(INDEX, 0)
    if not lane_by_lane:  # of which there are few
        whole = builder.and_(count, ir.Constant(INDEX, -TERMS))
        start = _loop(builder, start, ir.Constant(INDEX, 0), whole, TERMS, term)
    return _loop(builder, start, whole, count, 1, term)


def _loop(
    builder: Any, start: list[list[Any]], begin: Any, end: Any, step: int, term: Callable[..., Any]
) -> list[list[Any]]:
    """Emit sums = term(sums, k) for k from `begin` to `end`, `step` of them in a turn."""
    before = builder.block
    loop = builder.append_basic_block("k")
    after = builder.append_basic_block("k.end")
    builder.cbranch(builder.icmp_signed("<", begin, end), loop, after)

    builder.position_at_end(loop)
    k = builder.phi(INDEX)
    k.add_incoming(begin, before)
    sums = [[builder.phi(value.type) for value in row] for row in start]
    new = sums
    for own in range(step):
        new = term(new, builder.add(k, ir.Constant(INDEX, own)))
    following = builder.add(k, ir.Constant(INDEX, step))
    k.add_incoming(following, loop)
    builder.cbranch(builder.icmp_signed("<", following, end), loop, after)

    builder.position_at_end(after)
    result = [[builder.phi(value.type) for value in row] for row in start]
    rows = zip(start, sums, new, result, strict=True)
    for value, phi, updated, final in (cell for row in rows for cell in zip(*row, strict=True)):
        phi.add_incoming(value, before)
        phi.add_incoming(updated, loop)
        final.add_incoming(value, before)
        final.add_incoming(updated, loop)
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
    if not (is_memory(a) and is_memory(b) and is_memory(c)):
        return None

    def generate(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        _, count, a_, a_at_, a_row_, a_k_, b_, b_at_, b_k_, c_, c_at_, c_row_ = args
        a_start = builder.gep(pointer_of(context, builder, a, a_), [a_at_])
        b_start = builder.gep(pointer_of(context, builder, b, b_), [b_at_])
        c_start = builder.gep(pointer_of(context, builder, c, c_), [c_at_])
        columns = [v * block.lanes for v in range(block.vectors)]
        c_cells = [
            cell_pointers(builder, row, columns)
            for row in row_pointers(builder, block, c_start, c_row_)
        ]
        sums = [[emit_load(builder, cell, block.lanes) for cell in cells] for cells in c_cells]
        a_rows = row_pointers(builder, block, a_start, a_row_)
        b_vectors = cell_pointers(builder, b_start, columns)
        sums = accumulate(builder, block, sums, count, a_rows, a_k_, b_vectors, b_k_)
        for cells, values in zip(c_cells, sums, strict=True):
            for cell, value in zip(cells, values, strict=True):
                emit_store(builder, value, cell)
        return context.get_dummy_value()

    i = types.intp
    return types.void(block, i, a, i, i, i, b, i, i, c, i, i), generate


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
        zero = emit_splat(builder, ir.Constant(FLOAT, 0.0), Vector(block.lanes))
        rows, step = row_pointers(builder, block, a_, a_row_), ir.Constant(INDEX, UNITS)
        cells = cell_pointers(builder, b_, [v * block.lanes for v in range(vectors)])
        zeros = [[zero] * vectors for _ in range(block.rows)]
        sums = accumulate(builder, block, zeros, count, rows, step, cells, step, True)
        for parts, out in zip(sums, row_pointers(builder, block, c_, c_row_), strict=True):
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


def row_pointers(builder: Any, block: Any, start: Any, stride: Any) -> list[Any]:
    """Pointers to the rows of a tile."""
    offsets = [builder.mul(stride, ir.Constant(INDEX, r)) for r in range(block.rows)]
    return [builder.gep(start, [offset]) for offset in offsets]


def cell_pointers(builder: Any, start: Any, offsets: list[int]) -> list[Any]:
    """Pointers at some offsets from one."""
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
