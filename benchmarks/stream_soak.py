"""The daemon for long at half of what it can do: its memory, and what became of each tick."""

from __future__ import annotations

import urllib.request
from typing import Any

import numpy as np
import psutil

from benchmarks.stream_ends import RECEIVED, SENT
from benchmarks.stream_latency import scraping, soon
from benchmarks.stream_measure import FOREVER, LOOK, Ends
from benchmarks.stream_systems import System
from benchmarks.stream_ticks import spoilt_of, ticks_of

SAMPLES = 120
TAKEN, PUBLISHED, OVERFLOWS = (
    f"streamlstm_{name}_total"
    for name in ("ticks_received", "predictions_published", "subscriber_overflows")
)
COUNTED = {
    "coalesced": "streamlstm_ticks_coalesced_total",
    "warm": "streamlstm_ticks_warm_total",
    "quarantined": "streamlstm_ticks_quarantined_total",
    "pending": "streamlstm_pending_ticks",
}


def soak(ends: Ends, system: System, seconds: float, share: float = 0.5) -> dict[str, Any]:
    """A row: a share of the maximum rate, measured first, offered for so long, while scraped.

    Some ticks are warm, and some of a version that nobody knows. ``unaccounted`` should be 0: what
    the feeder sent, less what the sink got and what the daemon says it made of the rest. Where it
    is not, ``lost_before`` of them never came to the daemon, and ``lost_behind`` were published by
    it and never came to the sink: ``overflows`` says how often it was found too slow, with all of
    ``output.hwm`` waiting for it. How many it lost then ZeroMQ tells nobody.
    """
    ends.prime(system)
    maximum = float(np.median([ends.throughput(system, 3)["rate"] for _ in range(5)]))
    rate = share * maximum
    process = psutil.Process(system.pid)
    resident = []
    with ends.joined(system, spoilt=True), scraping(system.url):
        before = samples_of(system)
        start = soon(0.1)
        end = start + int(1e9 * seconds)
        ends.feeder.start("open_loop", start, end, rate)
        disorder = 0
        for place in range(1, SAMPLES + 1):
            until = start + (end - start) * place // SAMPLES
            disorder += ends.sink.call("drain", until, FOREVER, LOOK).disorder
            resident.append(process.memory_info().rss)
        ends.feeder.result()
        ends.settle(3)
        sent, received = int(ends.shared[SENT]), int(ends.shared[RECEIVED])
        after = samples_of(system)
    made = {
        name: int(after.get(sample, 0) - before.get(sample, 0)) for name, sample in COUNTED.items()
    }
    if COUNTED["warm"] not in after:  # by what the feeder knows of itself
        warm, _ = spoilt_of(len(ticks_of(system.format, system.case.series, False).rows))
        made["warm"] = int(np.resize(warm, sent).sum())
    dropped = {
        sample.split('"')[1]: int(after[sample] - before.get(sample, 0))
        for sample in after
        if sample.startswith("streamlstm_ticks_dropped_total{")
    }
    taken, published, overflows = (
        after[name] - before[name] for name in (TAKEN, PUBLISHED, OVERFLOWS)
    )
    tenths = np.median(np.reshape(resident, (10, -1)), axis=1)[1:]  # it settles in the first
    return {
        "system": system.name,
        "format": system.format,
        **system.case._asdict(),
        "soak_seconds": seconds,
        "maximum": maximum,
        "offered": rate,
        "ticks_per_second": sent / seconds,
        "sent": sent,
        "received": received,
        "dropped": {reason: count for reason, count in dropped.items() if count},
        **made,
        "unaccounted": sent - received - sum(dropped.values()) - sum(made.values()),
        "lost_before": sent - int(taken),
        "lost_behind": int(published) - received,
        "overflows": int(overflows),
        "disorder": disorder,
        "resident_bytes": resident,
        "resident_growth": float(tenths[-1] / tenths[0] - 1),
        "resident_range": float(tenths.max() / tenths.min() - 1),
    }


def samples_of(system: System) -> dict[str, float]:
    """All samples that the daemon exposes."""
    with urllib.request.urlopen(f"{system.url}/metrics", timeout=10) as answer:
        lines = answer.read().decode().splitlines()
    pairs = (line.rsplit(" ", 1) for line in lines if not line.startswith("#"))
    return {name: float(value) for name, value in pairs}
