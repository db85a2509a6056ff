"""The gates of a register block, and the vectors in which their cells are computed.

A `Layout` says which gates each of two products adds to; a `Span` is some rows of some groups of 16
units, a register each. Both are values without data, as a `simd.Tile` is.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import models, register_model

from streamlstm.kernels.products import accumulate, cell_pointers, row_pointers
from streamlstm.kernels.simd import (
    INDEX,
    POINTER,
    UNITS,
    Tile,
    Vector,
    emit_load,
    emit_store,
    intrinsic,
    no_data,
    parts_of,
    whole_of,
)


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


@intrinsic
def layout(typing: Any, first: Any, second: Any) -> Any:
    """layout(first, second) -> a Layout of two constant masks, bit g for gate g."""
    return Layout(first.literal_value, second.literal_value)(first, second), no_data


@intrinsic
def one_group(typing: Any, block: Any, gates: Any) -> Any:
    """one_group(tile, layout) -> the same tile with a vector for each gate."""
    return Tile(block.rows, gates.gates, block.lanes)(block, gates), no_data


@intrinsic
def groups_of(typing: Any, block: Any, gates: Any) -> Any:
    """groups_of(tile, layout) -> for how many groups of units there are vectors, a constant."""

    def generate(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        return ir.Constant(INDEX, block.vectors // gates.gates)

    return types.intp(block, gates), generate


@intrinsic
def number_of(typing: Any, gates: Any) -> Any:
    """number_of(layout) -> how many gates there are, a constant."""

    def generate(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        return ir.Constant(INDEX, gates.gates)

    return types.intp(gates), generate


@intrinsic
def preactivate(
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
        start = [
            emit_load(builder, cell, block.lanes) for cell in cell_pointers(builder, bias_, offsets)
        ]
        sums = [list(start) for _ in range(block.rows)]
        for product, members in zip((first_, second_), layout.products, strict=True):
            if not members:
                continue
            count, a, a_row = (builder.extract_value(product, k) for k in range(3))
            vectors = []
            for group in range(groups):
                here = builder.gep(weights_, [builder.mul(panel_, ir.Constant(INDEX, group))])
                vectors += cell_pointers(builder, here, [k * UNITS for k in range(len(members))])
            own = [at for at, (_, gate) in enumerate(places) if gate in members]
            rows = row_pointers(builder, block, builder.inttoptr(a, POINTER), a_row)
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
            cell_pointers(builder, out_, [k * block.lanes for k in range(len(registers))]),
            registers,
            strict=True,
        ):
            emit_store(builder, value, cell)
        parts = span.rows * span.groups
        turns = ir.Constant(INDEX, block.rows * groups // parts)
        size = ir.Constant(INDEX, parts * number * block.lanes)
        with cgutils.for_range(builder, turns) as loop:
            here = builder.gep(out_, [builder.mul(loop.index, size)])
            cells = cell_pointers(builder, here, [k * block.lanes for k in range(parts * number)])
            values = [emit_load(builder, cell, block.lanes) for cell in cells]
            own_row = builder.add(row_, builder.mul(loop.index, ir.Constant(INDEX, span.rows)))
            target.get_function(then.dispatcher, called)(
                builder,
                (
                    context_,
                    target.get_dummy_value(),
                    own_row,
                    unit_,
                    *(whole_of(builder, values[gate::number]) for gate in range(number)),
                ),
            )
        return target.get_dummy_value()

    i = types.intp
    terms = types.UniTuple(i, 3)
    kinds = (block, layout, terms, terms, i, i, i, i, then, context, i, i)
    return types.void(*kinds), generate


# --- spans ----------------------------------------------------------------------------------------


def _span(rows: int, groups: int, lanes: int) -> Span:
    """What the cells of a register block are computed in: some three vectors, all its groups."""
    together = next(n for n in (3, 2, 1) if rows % n == 0) if groups == 1 else 1
    return Span(together, groups, lanes)


def _of_records(builder: Any, span: Span, table: Any, row: Any, at: Any) -> list[Any]:
    """Pointers to the vectors of a span in records whose addresses stand in a table."""
    words = builder.gep(builder.inttoptr(table, INDEX.as_pointer()), [row])
    cells = []
    for r in range(span.rows):
        record = builder.load(builder.gep(words, [ir.Constant(INDEX, r)]))
        start = builder.gep(builder.inttoptr(record, POINTER), [at])
        cells += cell_pointers(builder, start, [g * UNITS for g in range(span.groups)])
    return cells


def _of_rows(builder: Any, span: Span, memory: Any, stride: Any, row: Any, at: Any) -> list[Any]:
    """Pointers to the vectors of a span in rows of a stride."""
    first = builder.gep(builder.inttoptr(memory, POINTER), [builder.mul(stride, row)])
    cells = []
    for r in range(span.rows):
        start = builder.gep(first, [builder.add(at, builder.mul(stride, ir.Constant(INDEX, r)))])
        cells += cell_pointers(builder, start, [g * UNITS for g in range(span.groups)])
    return cells


def _span_vector(span: Any) -> Vector:
    return Vector(span.lanes, span.rows * span.groups)


def _load_all(builder: Any, span: Any, cells: list[Any]) -> Any:
    return whole_of(builder, [emit_load(builder, cell, span.lanes) for cell in cells])


def _store_all(builder: Any, span: Any, cells: list[Any], vector: Any) -> None:
    for cell, part in zip(cells, parts_of(builder, vector, _span_vector(span)), strict=True):
        emit_store(builder, part, cell)


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
