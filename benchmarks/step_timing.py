"""How `benchmarks.step` times calls: in turns, each after the threads of the one before rest."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np

SETTLE = 0.06  # seconds; the threads of a peer spin for up to 40 ms after its last call

Call = Callable[[], Any]


def seconds_per_call(call: Call, budget: float) -> float:
    """Mean over as many calls as fit the budget, at least one, after a few to wake its threads."""
    time.sleep(SETTLE)
    start = time.perf_counter()
    while time.perf_counter() - start < budget / 4:
        call()
    count = 0
    start = time.perf_counter()
    while True:
        call()
        count += 1
        spent = time.perf_counter() - start
        if spent >= budget:
            return spent / count


def alternate(calls: dict[str, Call], repeats: int, budget: float) -> dict[str, Any]:
    """Seconds of each call in each repeat, the calls in turns."""
    for call in calls.values():
        seconds_per_call(call, budget)
    times: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(repeats):
        for name, call in calls.items():
            times[name].append(seconds_per_call(call, budget))
    return {name: np.array(values) for name, values in times.items()}


def bounds(peer: Any, own: Any) -> tuple[float, float]:
    """95 % bounds of median(peer) / median(own), by bootstrap over the repeats."""
    pick = np.random.default_rng(0).integers(0, len(own), (2000, len(own)))
    ratios = np.median(peer[pick], axis=1) / np.median(own[pick], axis=1)
    low, high = np.percentile(ratios, [2.5, 97.5])
    return float(low), float(high)
