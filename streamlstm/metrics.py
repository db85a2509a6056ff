"""What Prometheus reads: one record that compiled code writes."""

import math
from collections.abc import Callable, Iterator, Mapping
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    InfoMetricFamily,
    Metric,
)
from prometheus_client.registry import Collector

from streamlstm.jit import njit

PREFIX = "streamlstm_"
LATENCIES = tuple(float(f"{1e-5 * 1.8**k:.2g}") for k in range(25))
"""Seconds: bounds of the buckets, from 10 us to 13 s."""
SIZES = tuple(float(1 << k) for k in range(17))
"""Ticks: bounds of the buckets, powers of 2."""
COUNTERS: Mapping[str, str] = MappingProxyType(
    {
        "ticks_received": "Ticks taken from the input.",
        "predictions_published": "Predictions handed to the output.",
        "batches": "Batches stepped.",
        "ticks_warm": "Ticks that moved their series in silence.",
        "ticks_coalesced": "Ticks skipped because a later one of their series waited.",
        "series_started": "Series seen for the first time.",
        "anomalies": "Ticks at which a series was anomalous: a likelihood of 0.99999 or more.",
        "drifts": "Times that the forecasts of a series lost ground to its latest value for good.",
        "series_quarantined": "Series begun anew since their state or forecast was not finite.",
        "input_gaps": "Ticks that came after at least one was missed.",
        "publisher_gaps": "Ticks that publishers numbered and that did not come.",
        "publisher_repeats": "Ticks with the number of the one before.",
        "publisher_restarts": "Times that a publisher's numbers fell back.",
        "publisher_unfollowed": "Ticks numbered by publishers beyond those followed.",
        "snapshots_served": "Snapshots sent whole.",
        "snapshots_refused": "Requests for one that were refused or given up.",
        "subscriber_overflows": "Times that a subscriber's queue was found full; it loses what"
        " follows until it has read half of it.",
        "connections_refused": "Connections to the sockets for ticks and predictions that ended"
        " with the handshake: of another protocol, a wrong key, or one that is not allowed.",
        "connections_ended": "Connections ended because there were too many, or because peers had"
        " the daemon hold too much.",
        "model_reloads": "Times that another model took the place of the one that served.",
        "model_reload_failures": "Times that one could not, so that the one before still serves.",
        "checkpoint_failures": "Checkpoints that could not be written.",
        "journal_bytes": "Bytes written to the journal.",
        "journal_failures": "Times that the journal could not be written or synced.",
        "ticks_not_journalled": "Ticks stepped while the journal could not be written.",
        "series_parked": "Series whose state was put on file when they were evicted.",
        "series_returned": "Series that came back from there.",
        "parked_series_refused": "Series that could not, since what was kept of them is damaged.",
        "parking_failures": "Times that the file of parked series could not be read or written.",
        "functions_compiled": "Functions compiled since the start; none are once ready.",
    }
)
SCORES: Mapping[str, str] = MappingProxyType(
    {
        "forecasts_scored": "Forecasts whose tick came.",
        "forecasts_covered": "Those of them whose tick lay within their interval.",
        "forecast_errors": "Sum of their absolute errors, in units of the scale of their series.",
        "last_value_errors": "The same, had the latest value been the forecast.",
        "seasonal_naive_errors": "The same, had the value of the season before been the forecast.",
    }
)
"""By step ahead."""
GAUGES: Mapping[str, str] = MappingProxyType(
    {
        "active_series": "Series kept.",
        "state_bytes": "Memory taken by the series kept.",
        "parking_bytes": "Size of the file of parked series, its log included.",
        "pending_ticks": "Ticks taken from the input and not yet stepped.",
        "event_lag_seconds": "From the latest timestamp in the latest batch to its arrival.",
        "checkpoint_last_success_timestamp_seconds": "When a checkpoint was last written.",
    }
)
HISTOGRAMS: Mapping[str, tuple[tuple[float, ...], str]] = MappingProxyType(
    {
        "tick_to_publish_seconds": (
            LATENCIES,
            "From taking a tick from the input to handing its prediction to the output.",
        ),
        "decode_duration_seconds": (LATENCIES, "Decoding a batch."),
        "step_duration_seconds": (LATENCIES, "Stepping a batch."),
        "encode_duration_seconds": (LATENCIES, "Encoding the predictions of a batch."),
        "publish_duration_seconds": (LATENCIES, "Handing them to the output."),
        "batch_size": (SIZES, "Ticks in a batch."),
    }
)
LAYOUT = np.dtype(
    [
        *((name, np.int64) for name in COUNTERS),
        *((name, np.float64) for name in GAUGES),
        *(
            (name, [("counts", np.int64, (len(bounds) + 1,)), ("sum", np.float64)])
            for name, (bounds, _) in HISTOGRAMS.items()
        ),
    ]
)
"""The record of all values. Of a histogram: how many fell into each bucket, the last beyond all
bounds, and the sum of all."""


class Metrics(Collector):
    """All metrics of one daemon; a collector to be registered.

    Attributes:
        values: (1,) of :data:`LAYOUT`; a gauge that is not known yet is NaN.
        dropped: ticks dropped, by reason.
        evicted: series evicted, by reason.
        changed: ticks taken otherwise than as they came, by policy.
        refits: how many times the model was fitted anew, by outcome.
        scores: what became of forecasts, the columns of :data:`SCORES` by step ahead.
        model: labels of ``model_info``.
        refresh: called before each scrape, in the scraper's thread, to fetch what others count.
    """

    def __init__(self) -> None:
        """Begin with nothing counted."""
        self.values: NDArray[np.void] = np.zeros(1, LAYOUT)
        for name in GAUGES:
            self.values[name] = math.nan
        self.dropped: Mapping[str, int] = {}
        self.evicted: Mapping[str, int] = {}
        self.changed: Mapping[str, int] = {}
        self.refits: Mapping[str, int] = {}
        self.scores: Mapping[int, tuple[float, ...]] = {}
        self.model: dict[str, str] = {}
        self.refresh: Callable[[], None] = lambda: None

    def collect(self) -> Iterator[Metric]:
        """Every metric, as it stands."""
        self.refresh()
        values = self.values.copy()[0]  # of one moment, give or take a batch
        for name, help in COUNTERS.items():
            yield CounterMetricFamily(PREFIX + name, help, value=int(values[name]))
        for name, help, label, counts in (
            ("ticks_dropped", "Ticks dropped, by reason.", "reason", self.dropped),
            ("ticks_adjusted", "Ticks taken otherwise than as they came.", "policy", self.changed),
            ("series_evicted", "Series closed, by reason.", "reason", self.evicted),
            ("refits", "Times that the model was fitted anew.", "outcome", self.refits),
        ):
            counter = CounterMetricFamily(PREFIX + name, help, labels=[label])
            for value, count in counts.items():
                counter.add_metric([value], count)
            yield counter
        for column, (name, help) in enumerate(SCORES.items()):
            counter = CounterMetricFamily(PREFIX + name, help, labels=["step"])
            for step, score in self.scores.items():
                if not math.isnan(score[column]):  # so far back no value is kept
                    counter.add_metric([str(step)], score[column])
            yield counter
        for name, help in GAUGES.items():
            if not math.isnan(values[name]):
                yield GaugeMetricFamily(PREFIX + name, help, value=float(values[name]))
        for name, (bounds, help) in HISTOGRAMS.items():
            cumulated = np.cumsum(values[name]["counts"]).tolist()
            yield HistogramMetricFamily(
                PREFIX + name,
                help,
                buckets=list(zip([*map(str, bounds), "+Inf"], cumulated, strict=True)),
                sum_value=float(values[name]["sum"]),
            )
        yield InfoMetricFamily(f"{PREFIX}model", "The model served.", value=self.model)


# --- compiled -------------------------------------------------------------------------------------

_LATENCIES, _SIZES = np.array(LATENCIES), np.array(SIZES)
_LONGEST = 1 << 62
"""Nanoseconds that a lag is said to be at most: those of centuries do not fit."""


@njit(cache=True, nogil=True, error_model="numpy", _nrt=False)
def took(values: NDArray[np.void], ticks: int, decode: float) -> None:
    """Count a batch that was taken from the input, and decoded in so many seconds."""
    for record in values:
        record.ticks_received += ticks
        _observe(record.decode_duration_seconds, _LATENCIES, decode, 1)


@njit(cache=True, nogil=True, error_model="numpy", _nrt=False)
def stepped(
    values: NDArray[np.void],
    ts: NDArray[np.int64],
    published: int,
    warm: int,
    now: int,
    step: float,
    encode: float,
    publish: float,
    tick_to_publish: float,
) -> None:
    """Count a batch that was stepped, and its predictions that were handed to the output.

    Args:
        values: (1,) of :data:`LAYOUT`; none: nothing is counted.
        ts: (ticks,) ns since the epoch.
        published: predictions.
        warm: ticks without one, that were taken nevertheless.
        now: ns since the epoch.
        step, encode, publish: seconds that each stage took.
        tick_to_publish: seconds since the first of the ticks was taken from the input.
    """
    for record in values:
        record.predictions_published += published
        record.ticks_warm += warm
        record.batches += 1
        latest = ts[0] if len(ts) else now
        for i in range(1, len(ts)):
            latest = max(latest, ts[i])
        record.event_lag_seconds = (now - max(latest, now - _LONGEST)) / 1e9
        _observe(record.batch_size, _SIZES, len(ts), 1)
        _observe(record.step_duration_seconds, _LATENCIES, step, 1)
        _observe(record.encode_duration_seconds, _LATENCIES, encode, 1)
        _observe(record.publish_duration_seconds, _LATENCIES, publish, 1)
        _observe(record.tick_to_publish_seconds, _LATENCIES, tick_to_publish, published)


@njit(cache=True, error_model="numpy", _nrt=False)
def _observe(histogram: Any, bounds: NDArray[np.float64], value: float, times: int) -> None:
    """Count ``value``, ``times`` over, in the first bucket whose bound is not below it."""
    bucket, end = 0, len(bounds)
    while bucket < end:  # np.searchsorted, which would load all of Numba's arithmetic of arrays
        middle = (bucket + end) // 2
        if bounds[middle] < value:
            bucket = middle + 1
        else:
            end = middle
    histogram.counts[bucket] += times
    histogram.sum += value * times
