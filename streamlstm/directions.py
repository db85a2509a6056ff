"""The directions of a fitted model: what its series learn from on the stream.

All that the network knows at a tick, its input vector and its last layer's state, is turned into
numbers of mean 0 and variance 1 that do not correlate over the data of the fit: its principal
components (Jolliffe 2002), the largest first. They are further outputs of the network, linear ones.
"""

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from streamlstm import adapt
from streamlstm.features import features_of
from streamlstm.golden import network_of
from streamlstm.kernels import cpu
from streamlstm.kernels.cell import Head, Network
from streamlstm.memory import Fields
from streamlstm.model import Spec
from streamlstm.samples import Pairs, evenly

Singles = NDArray[np.float32]
Floats = NDArray[np.float64]
BYTES = 1024
"""Of a series that what it learns may take, unless more directions are asked for."""
MOST = 64
"""Directions taken unless more are asked for."""
LEAST = 1e-3
"""Variance of a component, over that of the largest, below which it is noise."""
ROWS = 20_000
"""Ticks that are looked at, evenly spaced."""
SERIES = 256
"""And series."""


def with_directions(
    spec: Spec,
    weights: dict[str, Singles],
    pairs: Pairs,
    count: int | None = None,
    *,
    exact: bool = False,
) -> tuple[Spec, dict[str, Singles]]:
    """Spec and weights with directions, found in (ts, values) pairs.

    ``count`` of them at most; None: as many as a series has room for in ``BYTES``. Where there are
    to be ``exact``ly so many, those that are not found are 0.
    """
    most = room(spec) if count is None else count
    if most == 0:
        return spec, weights
    few = evenly(len(pairs), SERIES)
    known = np.concatenate([_known(spec, weights, *pairs[i]) for i in few])
    known = known[evenly(len(known), ROWS)]
    mean, rows = components(known, most)
    if exact:
        rows = np.pad(rows, ((0, most - len(rows)), (0, 0)))
    parts = {
        "head.skip": rows[:, : spec.width],
        "head.weight": rows[:, spec.width :],
        "head.bias": -rows @ mean,
    }
    joined = {name: np.concatenate([weights[name], part]) for name, part in parts.items()}
    singles = {name: part.astype(np.float32) for name, part in joined.items()}
    return spec.model_copy(update={"directions": len(rows)}), weights | singles


def components(known: Floats, most: int) -> tuple[Floats, Floats]:
    """Mean (n,) of rows (rows, n), and (components, n) what makes of them their components.

    The principal components, scaled to variance 1, the largest first, ``most`` at most.
    """
    mean, deviation = known.mean(axis=0), known.std(axis=0) + 1e-9
    standard = (known - mean) / deviation
    variance, vectors = np.linalg.eigh(standard.T @ standard / len(standard))
    taken = np.flatnonzero(variance > LEAST * variance[-1])[::-1][:most]
    return mean, (vectors[:, taken] / np.sqrt(variance[taken]) / deviation[:, None]).T


def room(spec: Spec) -> int:
    """Directions that a series can learn from in ``BYTES``."""
    fields = [_bytes(spec.model_copy(update={"directions": count})) for count in (1, 2)]
    count = 1 + (BYTES - fields[0]) // (fields[1] - fields[0])
    return max(0, min(MOST, count if count < 8 else count & ~7))  # vectors are filled


def _bytes(spec: Spec) -> int:
    fields: Fields = adapt.learned_fields(adapt.plan(spec, spec.scored), spec)
    sizes = [np.dtype(kind).itemsize * int(np.prod(shape)) for kind, shape in fields.values()]
    return int(sum(sizes))


def _known(
    spec: Spec, weights: dict[str, Singles], ts: NDArray[np.int64], values: NDArray[np.float64]
) -> NDArray[np.float64]:
    """(ticks, width + hidden) input vector and last state at each tick past the first history."""
    x = features_of(spec, ts, values).x
    early = min(spec.history, len(x) // 3)
    return np.concatenate([x, state_of(spec, weights, x)], axis=1)[early:].astype(np.float64)


def state_of(spec: Spec, weights: Mapping[str, Singles], x: Singles) -> Singles:
    """(ticks, hidden) last layer's state at each of a series' input vectors (ticks, width)."""
    units = spec.hidden
    shown = np.zeros((units, spec.width), np.float32)
    head = Head(np.eye(units, dtype=np.float32), np.zeros(units, np.float32), shown, "linear")
    return _run(network_of(spec, weights)._replace(head=head), x, units)


def answers_of(spec: Spec, weights: Mapping[str, Singles], x: Singles) -> Singles:
    """(ticks, answers) what the network answers to each of them."""
    return _run(network_of(spec, weights), x, spec.answers)


def _run(network: Network, x: Singles, outputs: int) -> Singles:
    """(ticks, outputs) of a series alone, from its first tick on."""
    n = len(x)
    found = np.empty((n, outputs), np.float32)
    cpu.step(cpu.allocate(network, 1, 1), np.zeros(n, np.int32), x, np.arange(n + 1), found)
    return found
