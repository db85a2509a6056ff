"""What a warp does: 64 gates of 4 * `rows` series, from a product to new states.

Lane `p + 8 * q` has the gates p * 4 and on, and 32 + p * 4 and on, four each, of rows `q * rows`
and on. The gates of a unit stand side by side, so a lane has 2 units of an LSTM or GRU, 4 of a
GRU's r and z, 8 of what has one gate.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numba import float32, int64

from streamlstm.kernels import cell, layers
from streamlstm.kernels.cell import Floats, padded
from streamlstm.kernels.device import fma, in_lane, load, load4, on_device, store

LANES = 32
LANE_UNITS = 8  # lanes side by side in a warp
LANE_ROWS = 4  # lanes above each other
CELLS = 2 * 4  # gates of a lane
GROUP = LANE_UNITS * CELLS  # gates of a warp, and its weights for a term
ALL, OF_H, OF_X = 0b1111, 0b1011, 0b0111  # what a product adds to; a GRU's gates are r, z, n, u

LSTM, GRU, RNN, RESET, NEW = range(5)  # passes over a layer; a GRU that resets before has two
GATES = (4, 4, 1, 2, 1)  # of a unit in each pass
PASSES = {"lstm": (LSTM,), "gru": (GRU,), "rnn": (RNN,), "gru_before": (RESET, NEW)}


class Kind(NamedTuple):
    """What is known of a pass when it is compiled."""

    code: int
    gates: int  # of a unit
    activation: int
    recurrent: int
    scaled: bool  # whether weights carry the scales of tanh and sigmoid


class Places(NamedTuple):
    """Where things stand in shared memory, and where the lane is."""

    stride: int  # from a term, or unit, to the next
    terms: int
    new: int  # h', and z until there is an h'
    gated: int  # r * h
    weights: int
    column: int  # of the warp's gates, the first of the lane
    row: int  # of the tile
    beside: int  # warps to the left


# --- weights --------------------------------------------------------------------------------------


def pack(layer: cell.Layer) -> list[tuple[Floats, Floats]]:
    """(weights [group of 64 gates][H + I][unit][gate], bias [group][unit][gate]) of each pass."""
    hidden = layer.weight_hh.shape[1]
    ih, hh = (w.reshape(-1, hidden, w.shape[1]) for w in (layer.weight_ih, layer.weight_hh))
    bias = layer.bias.reshape(-1, hidden, 1)
    if layer.cell == "gru" and layer.reset_after:
        own = layer.bias_hh.reshape(3, hidden, 1)
        bias = np.concatenate([bias[:2] + own[:2], bias[2:], own[2:]])
        hh = np.concatenate([hh[:2], np.zeros_like(hh[:1]), hh[2:]])
        ih = np.concatenate([ih, np.zeros_like(ih[:1])])
    terms = np.concatenate([hh, ih], axis=2)
    if layer.cell == "gru" and not layer.reset_after:
        parts = [("ss", slice(2)), ("t", slice(2, 3))]
    else:
        parts = [({"lstm": "ssts", "gru": "sstt", "rnn": "t"}[layer.cell], slice(None))]
    return [
        (_by_group(layer, kinds, terms[gates]), _by_group(layer, kinds, bias[gates]))
        for kinds, gates in parts
    ]


def _by_group(layer: cell.Layer, kinds: str, terms: Floats) -> Floats:
    """(G, H, K) -> [group][K][unit][gate]; units beyond H are zero.

    kinds: "s" for a gate of sigmoid, "t" of tanh.
    """
    gates, hidden, width = terms.shape
    units = GROUP // gates
    full = np.zeros((gates, -(-padded(hidden) // units) * units, width), np.float32)
    full[:, :hidden] = terms
    if layers.is_scaled(layer):
        scales = [cell.SIGMOID_SCALE if kind == "s" else cell.TANH_SCALE for kind in kinds]
        full *= np.array(scales)[:, None, None]
    return full.reshape(gates, -1, units, width).transpose(1, 3, 2, 0)


# --- compiled -------------------------------------------------------------------------------------

# Local arrays stand in registers: their lengths are constants wherever these functions are inlined,
# and so are kinds, gates and masks. A `range` whose step is no constant would divide 64-bit
# integers, which takes a GPU a hundred instructions: there are `while` loops instead.


@in_lane
def _term(shared: Any, a: int, w: int, mask: int, x: Any, y: Any, sums: Any) -> None:
    """sums[row][gate] += input * weight of one term; x, y: room for the row and the gates."""
    if len(x) % 4 == 0:
        for r in range(0, len(x), 4):
            x[r], x[r + 1], x[r + 2], x[r + 3] = load4(shared, a + r)
    else:
        for r in range(len(x)):
            x[r] = load(shared, a + r)
    y[0], y[1], y[2], y[3] = load4(shared, w)
    y[4], y[5], y[6], y[7] = load4(shared, w + GROUP // 2)
    for r in range(len(x)):
        for k in range(CELLS):
            if mask >> k % 4 & 1:
                sums[r * CELLS + k] = fma(x[r], y[k], sums[r * CELLS + k])


@in_lane
def _four_terms(
    shared: Any, a: int, stride: int, w: int, mask: int, x: Any, y: Any, sums: Any
) -> None:
    _term(shared, a, w, mask, x, y, sums)
    _term(shared, a + stride, w + GROUP, mask, x, y, sums)
    _term(shared, a + 2 * stride, w + 2 * GROUP, mask, x, y, sums)
    _term(shared, a + 3 * stride, w + 3 * GROUP, mask, x, y, sums)


@in_lane
def _multiply(
    shared: Any, a: int, stride: int, w: int, terms: int, mask: int, x: Any, y: Any, sums: Any
) -> None:
    """`_term` after term, eight in a turn of the loop; mask: the gates, of each four."""
    for _ in range(terms // 8):
        _four_terms(shared, a, stride, w, mask, x, y, sums)
        _four_terms(shared, a + 4 * stride, stride, w + 4 * GROUP, mask, x, y, sums)
        a += 8 * stride
        w += 8 * GROUP
    for _ in range(terms % 8):
        _term(shared, a, w, mask, x, y, sums)
        a += stride
        w += GROUP


@in_lane
def multiply(
    kind: Any, shared: Any, p: Any, w: int, k: int, count: int, hidden: int,
    x: Any, y: Any, sums: Any,
) -> None:  # fmt: skip
    """sums += terms k:k + count of a pass over h, then x; w: where the lane's weights of k are."""
    a = p.terms + p.row
    if kind.code == GRU or kind.code == NEW:
        of_h = min(max(hidden - k, 0), count)
        if kind.code == GRU:
            _multiply(shared, a, p.stride, w, of_h, OF_H, x, y, sums)
        else:
            _multiply(shared, p.gated + k * p.stride + p.row, p.stride, w, of_h, ALL, x, y, sums)
        mask = OF_X if kind.code == GRU else ALL
        a, w, rest = a + of_h * p.stride, w + of_h * GROUP, count - of_h
        _multiply(shared, a, p.stride, w, rest, mask, x, y, sums)
    else:
        _multiply(shared, a, p.stride, w, count, ALL, x, y, sums)


@in_lane
def unit_of(gates: int, n: int) -> int:
    """The n-th unit of a lane, counted from its first."""
    each = 4 // gates  # of each half
    return n // each * (GROUP // 2 // gates) + n % each


@in_lane
def _cells(
    kind: Any, first: int, rows: int, sums: Any, old: Any, shared: Any, p: Any, to: int, units: int
) -> None:
    """New states of some rows of a lane from its pre-activations, to shared memory; c in place.

    old: c of an LSTM, h of a GRU; units: how many there are from that of `to` on.
    """
    activation, recurrent = kind.activation, kind.recurrent
    for r in range(rows):
        for n in range(CELLS // kind.gates):
            u = unit_of(kind.gates, n)
            if kind.gates == 4 or u < units:
                s, o = (first + r) * CELLS + n * kind.gates, r * (CELLS // kind.gates) + n
                at = to + r + u * p.stride
                if kind.code == LSTM:
                    a, b, c, d = sums[s], sums[s + 1], sums[s + 2], sums[s + 3]
                    if kind.scaled:
                        h, old[o] = cell.update_scaled(a, b, c, d, old[o])
                    else:
                        h, old[o] = cell.update(activation, recurrent, a, b, c, d, old[o])
                elif kind.code == GRU:
                    a, b, c, d = sums[s], sums[s + 1], sums[s + 2], sums[s + 3]
                    if kind.scaled:
                        h = cell.gru_scaled(a, b, c, d, old[o])
                    else:
                        h = cell.gru(activation, recurrent, a, b, c, d, old[o])
                elif kind.code == RESET:
                    if kind.scaled:
                        reset, h = cell.scaled_sigmoid(sums[s]), cell.scaled_sigmoid(sums[s + 1])
                    else:
                        reset = cell.activate(recurrent, sums[s])
                        h = cell.activate(recurrent, sums[s + 1])  # z, until there is an h
                    store(shared, at + p.gated - p.new, reset * old[o])
                else:
                    if kind.scaled:
                        h = cell.scaled_tanh(sums[s])
                    else:
                        h = cell.activate(activation, sums[s])
                    if kind.code == NEW:
                        h = cell.blend(load(shared, at), h, old[o])
                store(shared, at, h)


@on_device
def update(
    kind: Any, state: Any, size: int, slots: Any, of: int, unit: int, units: int,
    sums: Any, old: Any, shared: Any, p: Any,
) -> None:  # fmt: skip
    """The cells of a lane, its first unit `unit` of `units`; of: where c or h is in the states.

    As many rows at a time as `old` has room for: all of an LSTM's, so that every c is under way at
    once. The compiler would not unroll a loop over the others.
    """
    rows = len(sums) // CELLS
    n = min(rows, len(old) * kind.gates // CELLS)
    _rows(kind, state, size, slots, of, unit, units, sums, old, shared, p, 0, n)
    if n < rows:
        _rows(kind, state, size, slots, of, unit, units, sums, old, shared, p, n, n)
    if 2 * n < rows:
        _rows(kind, state, size, slots, of, unit, units, sums, old, shared, p, 2 * n, n)
        _rows(kind, state, size, slots, of, unit, units, sums, old, shared, p, 3 * n, n)


@on_device
def _rows(
    kind: Any, state: Any, size: int, slots: Any, of: int, unit: int, units: int,
    sums: Any, old: Any, shared: Any, p: Any, first: int, rows: int,
) -> None:  # fmt: skip
    """`update` of `rows` rows from row `first` on."""
    cells = CELLS // kind.gates
    if kind.code != RNN:
        for r in range(rows):
            slot = load(slots, p.row + first + r)
            at = int64(slot) * size + of + unit
            for n in range(cells):
                u = unit_of(kind.gates, n)
                old[r * cells + n] = float32(0)
                if slot >= 0 and (kind.gates == 4 or unit + u < units):
                    old[r * cells + n] = load(state, at + u)
    to = p.new + unit * p.stride + p.row + first
    _cells(kind, first, rows, sums, old, shared, p, to, units - unit)
    if kind.code == LSTM:
        for r in range(rows):
            slot = load(slots, p.row + first + r)
            if slot >= 0:
                at = int64(slot) * size + of + unit
                for n in range(cells):
                    store(state, at + unit_of(kind.gates, n), old[r * cells + n])
