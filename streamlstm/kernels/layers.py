"""One layer over a tile of series, for each kind of cell: packed weights and compiled step.

Sixteen units at a time, the pre-activations of all gates meet a function of the cell in registers
(`gates.preactivate`), which writes the new state straight to the records.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from streamlstm.jit import njit
from streamlstm.kernels import cell, gates, simd
from streamlstm.kernels.cell import UNITS, Floats, padded
from streamlstm.memory import prefetch

FLOAT_BYTES = 4


class Plan(NamedTuple):
    """What compiled code knows of a layer; offsets and strides in float32, addresses in bytes."""

    hidden: int
    inputs: int
    weights: int  # address of what `pack` gave
    bias: int  # address
    activation: int
    recurrent: int
    scaled: int  # 1 where the weights carry the scales of tanh and sigmoid
    state: int  # offset of h in a record; an LSTM's c follows `units` later
    tile: int  # offset in the scratch of a worker: rows of [h (H), inputs (padded I)]
    stride: int
    gated: int  # offset in the scratch: rows of r * h, then of z (both padded H)


class Place(NamedTuple):
    """Where the cells of a register tile find and leave what is theirs: addresses and strides."""

    scaled: int
    activation: int
    recurrent: int
    rows: int  # of the record addresses
    h: int  # in a record, float32
    c: int
    onward: int  # of the next layer's inputs
    stride: int
    gated: int
    z: int
    gated_stride: int
    sums: int  # room for the pre-activations of a register block
    ahead: int  # of the record addresses of the tile after this one, or 0
    parts: int  # h, and of an LSTM c
    backwards: int  # 1: begin with the last units, whose weights the tile before has left near


# --- weights --------------------------------------------------------------------------------------


def is_scaled(layer: cell.Layer) -> bool:
    """Whether the quicker formulas of tanh and sigmoid serve; they want scaled weights."""
    return (layer.activation, layer.recurrent_activation) == ("tanh", "sigmoid")


def pack(layer: cell.Layer) -> tuple[Floats, Floats]:
    """(weights, bias) as the compiled steps below take them, flat."""
    hidden = layer.weight_hh.shape[1]
    ih, hh = (w.reshape(-1, hidden, w.shape[1]) for w in (layer.weight_ih, layer.weight_hh))
    bias = layer.bias.reshape(-1, hidden, 1)
    if layer.cell == "lstm":
        return _packed(layer, "ssts", _beside(hh, ih)), _packed(layer, "ssts", bias)
    if layer.cell == "rnn":
        return _packed(layer, "t", _beside(hh, ih)), _packed(layer, "t", bias)
    if layer.reset_after:  # gates r, z, n of the input, n of h
        own = layer.bias_hh.reshape(3, hidden, 1)
        biases = np.concatenate([bias[:2] + own[:2], bias[2:], own[2:]])
        return _packed(layer, "sst", hh, ih), _packed(layer, "sstt", biases)
    first = _packed(layer, "ss", _beside(hh[:2], ih[:2])), _packed(layer, "ss", bias[:2])
    second = _packed(layer, "t", hh[2:], ih[2:]), _packed(layer, "t", bias[2:])
    return np.concatenate([first[0], second[0]]), np.concatenate([first[1], second[1]])


def _beside(hh: Floats, ih: Floats) -> Floats:
    """Both products as one, over h and then the input."""
    return np.concatenate([hh, ih], axis=2)


def _packed(layer: cell.Layer, kinds: str, *products: Floats) -> Floats:
    """(G, H, K) each -> [group of 16 units] of each product's [K][G][16]; units beyond H are zero.

    kinds: "s" for a gate of sigmoid, "t" of tanh.
    """
    scales = [cell.SIGMOID_SCALE if kind == "s" else cell.TANH_SCALE for kind in kinds]
    parts = []
    for product in products:
        number, hidden, terms = product.shape
        full = np.zeros((number, padded(hidden), terms), np.float32)
        full[:, :hidden] = product
        if is_scaled(layer):
            full *= np.array(scales)[:, None, None]
        lined = full.reshape(number, -1, UNITS, terms).transpose(1, 3, 0, 2)
        parts.append(lined.reshape(padded(hidden) // UNITS, -1))
    return np.hstack(parts).ravel()


def flops(layer: cell.Layer) -> int:
    """Operations of one step, padding included."""
    number, inputs = layer.weight_ih.shape[0] // layer.weight_hh.shape[1], layer.weight_ih.shape[1]
    hidden = layer.weight_hh.shape[1]
    return 2 * number * padded(hidden) * (hidden + inputs)


# --- compiled -------------------------------------------------------------------------------------


@njit(cache=True)
def _groups(
    block: Any,
    layout: Any,
    hidden: int,
    full: int,
    first: Any,
    second: Any,
    weights: int,
    panel: int,
    bias: int,
    then: Any,
    place: Any,
) -> None:
    """`gates.preactivate` over a tile: groups of units outside, so that their weights stay near.

    full: as `whole` gives it.
    """
    together = gates.groups_of(block, layout)
    single = gates.one_group(block, layout)
    short = simd.shorter(block)
    short_single = gates.one_group(short, layout)
    few = simd.rows_of(short)
    groups = -(-hidden // UNITS)
    done = 0
    while done < groups:
        some = together if done + together <= groups else 1
        group = groups - done - some if place.backwards else done
        for lane in range(0, UNITS, simd.lanes_of(block)):
            unit = group * UNITS + lane
            w = weights + (group * panel + lane) * FLOAT_BYTES
            b = bias + (group * gates.number_of(layout) * UNITS + lane) * FLOAT_BYTES
            r = 0
            while r < full:
                left = full - r
                tall = left % simd.rows_of(block) == 0 or (left != few and left != 2 * few)
                rows = simd.rows_of(block) if tall else few
                if place.ahead and lane == 0:
                    _prefetch(place, r, rows, unit)
                x = first[0], first[1] + r * first[2] * FLOAT_BYTES, first[2]
                y = second[0], second[1] + r * second[2] * FLOAT_BYTES, second[2]
                out = place.sums
                if some == together and tall:
                    gates.preactivate(block, layout, x, y, w, panel, b, out, then, place, r, unit)
                elif some == together:
                    gates.preactivate(short, layout, x, y, w, panel, b, out, then, place, r, unit)
                elif tall:
                    gates.preactivate(single, layout, x, y, w, panel, b, out, then, place, r, unit)
                else:
                    gates.preactivate(
                        short_single, layout, x, y, w, panel, b, out, then, place, r, unit
                    )
                r += rows
        done += some


@njit(cache=True)
def whole(block: Any, rows: int) -> int:
    """Rows rounded up to what register blocks make up: tall ones and, at last, short ones."""
    step = max(simd.rows_of(block) // 3, 1)
    return max(-(-rows // step) * step, simd.rows_of(simd.shorter(block)))


@njit(cache=True)
def _prefetch(place: Any, row: int, rows: int, unit: int) -> None:
    """Call a part of the next tile's records, from a table that may be far larger than the caches.

    A little at a time, since a core has only so many lines under way.
    """
    for r in range(row, row + rows):
        record = simd.word(place.ahead, r)
        prefetch(record + (place.h + unit) * FLOAT_BYTES)
        if place.parts > 1:
            prefetch(record + (place.c + unit) * FLOAT_BYTES)


@njit(cache=True, inline="always")
def _joined(
    block: Any, layout: Any, layer: Any, place: Any, tile: int, full: int, then: Any
) -> None:
    """`_groups` of one product, over h and then the inputs."""
    terms = layer.hidden + layer.inputs
    both, none = (terms, tile, layer.stride), (0, 0, 0)
    panel = terms * gates.number_of(layout) * UNITS
    _groups(
        block, layout, layer.hidden, full, both, none,
        layer.weights, panel, layer.bias, then, place,
    )  # fmt: skip


@njit(cache=True)
def lstm(block: Any, layer: Any, place: Any, tile: int, full: int) -> None:
    """A layer of LSTM cells over the first `full` rows of a tile."""
    layout = gates.layout(0b1111, 0)
    _joined(block, layout, layer, place, tile, full, simd.function(_lstm_cells))


@njit(cache=True)
def rnn(block: Any, layer: Any, place: Any, tile: int, full: int) -> None:
    """A layer of simple recurrent cells."""
    _joined(block, gates.layout(0b1, 0), layer, place, tile, full, simd.function(_rnn_cells))


@njit(cache=True)
def gru(block: Any, layer: Any, place: Any, tile: int, full: int) -> None:
    """A layer of GRU cells that reset after the product: r, z and n of the input, u of h."""
    h = layer.hidden, tile, layer.stride
    x = layer.inputs, tile + layer.hidden * FLOAT_BYTES, layer.stride
    panel = (layer.hidden + layer.inputs) * 3 * UNITS
    layout = gates.layout(0b1011, 0b0111)
    _groups(
        block, layout, layer.hidden, full, h, x,
        layer.weights, panel, layer.bias, simd.function(_gru_cells), place,
    )  # fmt: skip


@njit(cache=True)
def gru_before(block: Any, layer: Any, place: Any, tile: int, full: int) -> None:
    """A layer of GRU cells that reset h before the product: all of r * h, then n."""
    terms = layer.hidden + layer.inputs
    _joined(block, gates.layout(0b11, 0), layer, place, tile, full, simd.function(_reset_cells))
    units = place.gated_stride
    weights = layer.weights + terms * 2 * units * FLOAT_BYTES
    bias = layer.bias + 2 * units * FLOAT_BYTES
    h = layer.hidden, place.gated, units
    x = layer.inputs, tile + layer.hidden * FLOAT_BYTES, layer.stride
    new = gates.layout(0b1, 0b1)
    _groups(
        block, new, layer.hidden, full, h, x,
        weights, terms * UNITS, bias, simd.function(_new_cells), place,
    )  # fmt: skip


# The cells of some vectors: activations and update, new state to the records, h onward.


@njit(cache=True, forceinline=True)
def _leave(place: Any, span: Any, row: int, at: int, h: Any) -> None:
    gates.store_records(span, place.rows, row, place.h + at, h)
    gates.store_rows(span, place.onward, place.stride, row, at, h)


@njit(cache=True, forceinline=True)
def _lstm_cells(place: Any, span: Any, row: int, at: int, i: Any, f: Any, g: Any, o: Any) -> None:
    c = gates.load_records(span, place.rows, row, place.c + at)
    if place.scaled:
        h, c = cell.update_scaled(i, f, g, o, c)
    else:
        h, c = cell.update(place.activation, place.recurrent, i, f, g, o, c)
    gates.store_records(span, place.rows, row, place.c + at, c)
    _leave(place, span, row, at, h)


@njit(cache=True, forceinline=True)
def _rnn_cells(place: Any, span: Any, row: int, at: int, n: Any) -> None:
    h = cell.scaled_tanh(n) if place.scaled else cell.activate(place.activation, n)
    _leave(place, span, row, at, h)


@njit(cache=True, forceinline=True)
def _gru_cells(place: Any, span: Any, row: int, at: int, r: Any, z: Any, n: Any, u: Any) -> None:
    h = gates.load_records(span, place.rows, row, place.h + at)
    if place.scaled:
        h = cell.gru_scaled(r, z, n, u, h)
    else:
        h = cell.gru(place.activation, place.recurrent, r, z, n, u, h)
    _leave(place, span, row, at, h)


@njit(cache=True, forceinline=True)
def _reset_cells(place: Any, span: Any, row: int, at: int, r: Any, z: Any) -> None:
    h = gates.load_records(span, place.rows, row, place.h + at)
    if place.scaled:
        r, z = cell.scaled_sigmoid(r), cell.scaled_sigmoid(z)
    else:
        r, z = cell.activate(place.recurrent, r), cell.activate(place.recurrent, z)
    gates.store_rows(span, place.gated, place.gated_stride, row, at, r * h)
    gates.store_rows(span, place.z, place.gated_stride, row, at, z)


@njit(cache=True, forceinline=True)
def _new_cells(place: Any, span: Any, row: int, at: int, n: Any) -> None:
    h = gates.load_records(span, place.rows, row, place.h + at)
    z = gates.load_rows(span, place.z, place.gated_stride, row, at)
    n = cell.scaled_tanh(n) if place.scaled else cell.activate(place.activation, n)
    _leave(place, span, row, at, cell.blend(z, n, h))
