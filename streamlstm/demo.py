"""``streamlstm demo``: fit, serve, publish, listen, judge; the daemon is a real process."""

import contextlib
import json
import math
import signal
import subprocess
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import msgspec
import numpy as np
from numpy.typing import NDArray
from prometheus_client.parser import text_string_to_metric_families

from streamlstm import children
from streamlstm.backtest import Actual, Issued, Scores, score
from streamlstm.client import Feed, Listener, in_time_order
from streamlstm.datasets.frames import SeriesData, Table, heads
from streamlstm.features import grid_places
from streamlstm.model import Model
from streamlstm.model_file import save_model
from streamlstm.train import FitOptions, Progress, fit
from streamlstm.vitals import quantile

UNSEEN = 0.2
"""Share of each series, its latest, that the model is not fitted on."""
HORIZON = 48
COVERAGE = 0.9
IN_FLIGHT = 32
"""Predictions awaited at most: what is shown is the daemon's latency, not that of a full queue."""
PATIENCE = 60.0
"""Seconds to wait for the daemon."""


class DemoError(RuntimeError):
    """The daemon did not do its part; the message is one line."""


@dataclass(frozen=True)
class Fitted:
    """A model, and for each of its series how many ticks it was fitted on."""

    model: Model
    series: list[SeriesData]
    known: list[int]
    seconds: float
    skill: float
    notes: list[str]


@dataclass(frozen=True)
class Summary:
    """What the demo found."""

    scores: Scores
    ticks: int
    predictions: int
    ticks_per_second: float
    latency: dict[str, float]
    fit_seconds: float
    total_seconds: float

    def as_json(self) -> str:
        """One object; steps ahead are keys."""
        scores = self.scores
        covered = scores.by_step("coverage").tolist()
        report = {
            "mae": self._by_step("mae"),
            "mase": self._by_step("mase"),
            "coverage": scores.mean("coverage"),
            "coverage_by_step": dict(enumerate(covered, 1)),
            "winkler": {name: scores.mean("winkler", name) for name in scores.names},
            "ticks": self.ticks,
            "predictions": self.predictions,
            "ticks_per_second": self.ticks_per_second,
            "latency_seconds": self.latency,
            "fit_seconds": self.fit_seconds,
            "total_seconds": self.total_seconds,
        }
        return msgspec.json.encode(report).decode()  # NaN is null

    def _by_step(self, measure: str) -> dict[int, dict[str, float]]:
        found = {name: self.scores.by_step(measure, name) for name in self.scores.names}
        return {
            k: {name: float(of[k - 1]) for name, of in found.items()} for k in self.scores.shown
        }


def fitted(table: Table, season: int | None, progress: Progress | None) -> Fitted:
    """Fit a small model on all but the latest part of each series."""
    known = [len(s.ts) - round(UNSEEN * len(s.ts)) for s in table.series]
    past = heads(table.series, known)
    horizon = max(1, min(HORIZON, min(map(len, (s.ts for s in table.series))) // 10))
    began = time.perf_counter()
    model, report = fit(past, FitOptions(horizon=horizon, season=season), progress, name=table.name)
    if report.interrupted:
        raise KeyboardInterrupt
    seconds = time.perf_counter() - began
    judged = report.skill[np.isfinite(report.skill)]
    skill = float(judged.mean()) if len(judged) else float("nan")
    return Fitted(model, table.series, known, seconds, skill, report.notes)


@contextlib.contextmanager
def ended_in_order() -> Iterator[None]:
    """Take the signals that end a process, or its terminal, for Ctrl-C: the daemon ends too."""

    def interrupt(*_: object) -> NoReturn:
        raise KeyboardInterrupt

    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGHUP)}
    before = {number: old for number, old in before.items() if old is not signal.SIG_IGN}  # nohup
    for number in before:
        signal.signal(number, interrupt)
    try:
        yield
    finally:
        for number, old in before.items():
            signal.signal(number, old)


@contextlib.contextmanager
def daemon(model: Path) -> Iterator[dict[str, Any]]:
    """The real daemon on free local ports; yields where it is reached.

    Raises:
        DemoError: it did not start.
    """
    local = "tcp://127.0.0.1:*"
    options = {"model": model, "input.bind": local, "output.bind": local, "metrics.port": 0}
    options |= {"service.log_level": "warning", "input.hwm": 1_000_000, "output.hwm": 1_000_000}
    flags = [text for name, value in options.items() for text in ("--set", f"{name}={value}")]
    process = subprocess.Popen(
        [*children.command("streamlstm"), "run", "--announce", *flags],
        env=children.environment(),
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,  # Ctrl-C is for the demo, which then stops the daemon in order
    )
    assert process.stdout is not None
    try:
        announced = process.stdout.readline()
        if not announced:
            raise DemoError(f"the daemon did not start (exit code {process.wait(PATIENCE)})")
        yield json.loads(announced)
    finally:
        process.terminate()
        try:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(PATIENCE)
        finally:  # a second Ctrl-C does not wait
            process.kill()
            process.stdout.close()


class Stream:
    """The replay of a fitted model's series through a daemon, and the predictions that return."""

    def __init__(self, fitted: Fitted, reached: dict[str, Any]) -> None:
        """Connect both ends."""
        self.fitted, self._url = fitted, reached["metrics"]
        self.listener = Listener(reached["output"][0], "json")
        self.listener.wait(PATIENCE)
        self.feed = Feed(reached["input"][0], "json")
        self.feed.wait(PATIENCE)
        step_ns = fitted.model.spec.step_ns
        self.actual = [
            Actual.of(s.ts, s.values[:, 0], step_ns, fitted.model.spec.season, n)
            for s, n in zip(fitted.series, fitted.known, strict=True)
        ]
        horizon = fitted.model.spec.horizon
        self._place = [grid_places(step_ns, s.ts)[n - 1 :] for s, n in self._shown()]
        self._got = [np.full((3, len(place), horizon), np.nan) for place in self._place]
        self._index = {s.name: i for i, s in enumerate(fitted.series)}
        self._row = [
            {int(ts): row for row, ts in enumerate(s.ts[n - 1 :])} for s, n in self._shown()
        ]
        self.ticks = self.predictions = self.latest = 0
        self.expected = sum(len(place) for place in self._place)

    def _shown(self) -> Iterator[tuple[SeriesData, int]]:
        return zip(self.fitted.series, self.fitted.known, strict=True)

    def play(self, per_second: float, each: Callable[[], None]) -> float:
        """Send every tick, the history as warm ones, and take what returns; ticks per second.

        The unseen ticks go at ``per_second`` (0: as fast as can be); ``each`` is called now and
        then. The rate is that of all ticks, or of the history alone where the rest is held back.
        """
        series = self.fitted.series
        which, rows = in_time_order(series)
        unseen = rows >= np.array(self.fitted.known)[which] - 1
        began = time.perf_counter()
        for at in np.flatnonzero(~unseen):
            self._send(series[which[at]], rows[at], warm=True)
        rate = math.nan
        for number, at in enumerate(np.flatnonzero(unseen)):
            due = began + number / per_second if per_second and number else 0.0
            self._send(series[which[at]], rows[at], warm=False)
            self._receive(number + 1 - IN_FLIGHT, due)
            if per_second and self.predictions and math.isnan(rate):
                rate = self.ticks / (time.perf_counter() - began)
                began = time.perf_counter()
            each()
        self._receive(self.expected)
        each()
        return rate if per_second else self.ticks / (time.perf_counter() - began)

    def _send(self, series: SeriesData, row: int, warm: bool) -> None:
        self.feed.send(series.name, int(series.ts[row]), series.values[row].tolist(), warm=warm)
        self.ticks += 1

    def _receive(self, least: int, until: float = 0.0) -> None:
        """Take what comes until that time, and until there are ``least`` predictions in all."""
        patient = time.perf_counter() + PATIENCE
        while True:
            now = time.perf_counter()
            wait = patient - now if self.predictions < least else max(0.0, until - now)
            for prediction in self.listener.receive(max(0.0, wait)):
                i = self._index[prediction.series]
                self.latest = self._row[i][prediction.ts_ns]
                for part, steps in enumerate(prediction[2:5]):
                    self._got[i][part, self.latest] = steps[:, 0]
                self.predictions += 1
            now = time.perf_counter()
            if now >= patient or (now >= until and self.predictions >= least):
                return

    def view(self, back: int) -> tuple[NDArray[np.float64], ...]:
        """What came in the latest ``back`` steps of the first series, and the forecast from there.

        Actual (at most back,), forecast, lower and upper (horizon,).
        """
        now = int(self._place[0][self.latest])
        return self.actual[0].y[max(0, now - back) : now + 1], *self._got[0][:, self.latest]

    def issued(self) -> list[Issued]:
        """All predictions, by series."""
        return [
            Issued(place, point, {COVERAGE: (lower, upper)})
            for place, (point, lower, upper) in zip(self._place, self._got, strict=True)
        ]

    def scores(self) -> Scores:
        """How good they were."""
        return score(list(zip(self.actual, self.issued(), strict=True)))

    def latency(self) -> dict[str, float]:
        """Seconds from a tick's receipt to its publication, from the scraped histogram."""
        with urllib.request.urlopen(f"{self._url}/metrics", timeout=PATIENCE) as answer:
            text = answer.read().decode()
        name = "streamlstm_tick_to_publish_seconds"
        for family in text_string_to_metric_families(text):
            if family.name == name:
                buckets = [s for s in family.samples if s.name == f"{name}_bucket"]
                bounds = [(float(s.labels["le"]), s.value) for s in buckets]
                return {"p50": quantile(0.5, bounds), "p99": quantile(0.99, bounds)}
        raise DemoError(f"the daemon exposes no {name}")

    def close(self) -> None:
        """Leave both ends."""
        self.feed.close()
        self.listener.close()


def demo(
    table: Table,
    season: int | None,
    *,
    on_fit: Progress | None = None,
    on_fitted: Callable[[Fitted], None] = lambda fitted: None,
    on_tick: Callable[[Stream], None] = lambda stream: None,
    per_second: float = 0.0,
    on_end: Callable[[Stream, Summary, dict[str, Any]], None] = lambda stream, summary, at: None,
) -> Summary:
    """The whole of it; the callbacks show it to people. ``on_end`` runs while the daemon is up."""
    began = time.perf_counter()
    made = fitted(table, season, on_fit)
    on_fitted(made)
    with tempfile.TemporaryDirectory(prefix="streamlstm-") as folder:
        path = Path(folder) / "model.safetensors"
        save_model(made.model, path)
        with daemon(path) as reached:
            stream = Stream(made, reached)
            try:
                rate = stream.play(per_second, lambda: on_tick(stream))
                if stream.predictions != stream.expected:
                    raise DemoError(
                        f"{stream.predictions:,} of {stream.expected:,} predictions came"
                    )
                summary = Summary(
                    stream.scores(), stream.ticks, stream.predictions, rate, stream.latency(),
                    made.seconds, time.perf_counter() - began,
                )  # fmt: skip
                on_end(stream, summary, reached)
            finally:
                stream.close()
    return summary
