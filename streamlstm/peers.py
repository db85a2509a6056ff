"""``streamlstm backtest --peers``: other forecasters beside the model, on the same targets.

They cannot be fitted again at each tick, so all are compared at some origins of each series, evenly
spread over the part that is judged. Those of statsforecast are fitted at each origin to all that
came before it; the LSTM of neuralforecast is fitted once, to what comes before the first origin of
each series, and forecasts from each. All have the options that their libraries take by default, and
the seasons of the model.
"""

import importlib.util
import logging
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from streamlstm.backtest import Actual, Floats, Issued, Scores, run, score
from streamlstm.config import ConfigError
from streamlstm.datasets.frames import SeriesData
from streamlstm.model import Model, Spec

PEERS = {
    "autoets": "statsforecast",
    "autotheta": "statsforecast",
    "mstl": "statsforecast",
    "lstm": "neuralforecast",
}
"""The library of each."""
LSTM_UPDATES = 1000
"""neuralforecast's default."""
SEEN = 3
"""Horizons that its LSTM looks back on, which is its default too."""


class PeerError(RuntimeError):
    """A peer that cannot be run here; the message is one line and says the mend."""


@dataclass(frozen=True)
class Compared:
    """How one forecaster did at the origins."""

    name: str
    """of :data:`.backtest.MODELS` or :data:`PEERS`"""
    mae: float
    mase: float
    coverage: float
    """of its intervals; NaN where it gives none"""
    winkler: float
    seconds: float
    """that it took for all, fitted anew or not; NaN: hardly any"""
    failed: int
    """origins at which it made no forecast; all figures are of the others"""


@dataclass(frozen=True)
class Comparison:
    """All of them, on the same targets."""

    coverage: float
    """that their intervals are to have"""
    origins: int
    """of all series together"""
    rows: list[Compared]

    def as_json(self) -> dict[str, Any]:
        """Records, NaN where not known."""
        rows = [vars(row) for row in self.rows]
        return {"coverage": self.coverage, "origins": self.origins, "forecasts": rows}


@dataclass(frozen=True)
class Task:
    """A series, as peers are shown it."""

    grid: Floats
    """(places,) values by step, NaN where a tick is missing"""
    origins: NDArray[np.int64]
    """(m,) places, rising"""

    def past(self, origin: int) -> Floats:
        """All that came up to ``origin``; what is missing lies on the line between neighbours."""
        seen = self.grid[: origin + 1]
        there = np.flatnonzero(np.isfinite(seen))
        return np.interp(np.arange(len(seen)), there, seen[there])


Peer = Callable[[Task], tuple[Floats, Floats, Floats]]
"""Forecasts (m, horizon) at the origins, and both ends of their intervals; NaN where it failed."""
Made = Callable[[Spec, Sequence[Task], float, Callable[[], None]], Peer]
"""Makes a peer for the tasks, of a coverage; calls after each origin."""


def check_peers(names: Sequence[str], spec: Spec | None = None) -> None:
    """Refuse early what could not be run later.

    Raises:
        ConfigError: an unknown peer.
        PeerError: its library is missing, or it needs a season.
    """
    for name in names:
        if name not in PEERS:
            raise ConfigError(f"--peers {name}: unknown; there is: {', '.join(PEERS)}")
        if importlib.util.find_spec(PEERS[name]) is None:
            raise PeerError(f"--peers {name}: needs {PEERS[name]}: pip install 'streamlstm[bench]'")
    if spec and "mstl" in names and not _seasons(spec):
        raise PeerError("--peers mstl: the model knows no season to take apart; leave it out")


def effort(series: Sequence[SeriesData], names: Sequence[str], origins: int) -> int:
    """Origins that :func:`compare` tells of, at most: of the peers, and one for the model."""
    return len(series) * (len(names) * origins + 1)


def compare(
    model: Model,
    series: Sequence[SeriesData],
    known: Sequence[int],
    names: Sequence[str],
    *,
    origins: int = 20,
    coverage: float = 0.9,
    learning: bool = True,
    progress: Callable[[int], None] = lambda done: None,
) -> Comparison:
    """Judge ``model``, the naive forecasts and the peers at the same origins.

    Args:
        model, series, known, learning: as :func:`streamlstm.rolling.backtest` has them.
        names: of :data:`PEERS`.
        origins: of each series, at most.
        coverage: of the intervals.
        progress: told how much of :func:`effort` is done.

    Raises:
        BacktestError: a series cannot be judged.
        PeerError: a peer cannot be run.
    """
    check_peers(names, model.spec)
    judged = [
        (s, max(past, 1)) for s, past in zip(series, known, strict=True) if max(past, 1) < len(s.ts)
    ]
    began = time.perf_counter()
    actual, issued = [], []
    for s, past in judged:
        actual.append(Actual.of(s.ts, s.values[:, 0], model.spec.step_ns, model.spec.season, past))
        every = run(model, s.ts, s.values, past, coverage=coverage, learning=learning)
        rows = _rows(every.place, len(actual[-1].y) - 1 - model.spec.horizon, origins)
        issued.append(_at(every, rows))
        progress(1)
    seconds = time.perf_counter() - began
    found = score(list(zip(actual, issued, strict=True)))
    compared = [
        _row(name, found, name, seconds if name == "model" else np.nan, 0) for name in found.names
    ]
    tasks = [Task(of.y, made.place) for of, made in zip(actual, issued, strict=True)]
    for name in names:
        began = time.perf_counter()
        with _quiet():
            peer = _MADE[name](model.spec, tasks, coverage, lambda: progress(1))
            said = [_by_peer(task.origins, peer(task), coverage) for task in tasks]
        failed = sum(int(np.isnan(of.point[:, 0]).sum()) for of in said)
        scores = score(list(zip(actual, said, strict=True)))
        compared.append(_row(name, scores, "model", time.perf_counter() - began, failed))
    return Comparison(coverage, sum(len(task.origins) for task in tasks), compared)


def _rows(place: NDArray[np.int64], last: int, most: int) -> NDArray[np.int64]:
    """At most ``most`` rows, evenly spread; those of which all steps came, if there are any."""
    whole = int(np.searchsorted(place, last, side="right"))
    count = whole or len(place)
    return np.unique(np.round(np.linspace(0, count - 1, min(most, count))).astype(np.int64))


def _at(issued: Issued, rows: NDArray[np.int64]) -> Issued:
    ends = {c: (low[rows], high[rows]) for c, (low, high) in issued.intervals.items()}
    return Issued(issued.place[rows], issued.point[rows], ends)


def _by_peer(
    place: NDArray[np.int64], said: tuple[Floats, Floats, Floats], coverage: float
) -> Issued:
    point, lower, upper = said
    return Issued(place, point, {coverage: (lower, upper)})


def _row(name: str, scores: Scores, column: str, seconds: float, failed: int) -> Compared:
    winkler = scores.mean("winkler", column)
    return Compared(
        name,
        scores.mean("mae", column),
        scores.mean("mase", column),
        scores.mean("coverage", column) if np.isfinite(winkler) else np.nan,
        winkler,
        seconds,
        failed,
    )


def _seasons(spec: Spec) -> list[int]:
    long = {spec.blend.short, spec.blend.long} if spec.blend else set()
    return sorted(({spec.season} | long) - {0, 1})


@contextmanager
def _quiet() -> Iterator[None]:
    """Without what the libraries say of themselves."""
    before = logging.root.manager.disable
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        logging.disable(logging.WARNING)
        try:
            yield
        finally:
            logging.disable(before)


# --- statsforecast --------------------------------------------------------------------------------


def _classic(name: str) -> Made:
    def make(
        spec: Spec, tasks: Sequence[Task], coverage: float, progress: Callable[[], None]
    ) -> Peer:
        from statsforecast import models

        level = 100 * coverage

        def forecaster() -> Any:
            if name == "mstl":
                return models.MSTL(season_length=_seasons(spec))
            return {"autoets": models.AutoETS, "autotheta": models.AutoTheta}[name](
                season_length=max(spec.season, 1)
            )

        def forecast(task: Task) -> tuple[Floats, Floats, Floats]:
            found = np.full((3, len(task.origins), spec.horizon), np.nan)
            for row, origin in enumerate(task.origins.tolist()):
                try:
                    said = forecaster().forecast(y=task.past(origin), h=spec.horizon, level=[level])
                except Exception:  # whatever a series that is too short or too plain leads to
                    progress()
                    continue
                ends = [
                    next((key for key in said if key.startswith(of)), "") for of in ("lo", "hi")
                ]
                for part, key in enumerate(("mean", *ends)):
                    if key:
                        found[part, row] = said[key]
                progress()
            return found[0], found[1], found[2]

        return forecast

    return make


# --- neuralforecast -------------------------------------------------------------------------------


def _lstm(spec: Spec, tasks: Sequence[Task], coverage: float, progress: Callable[[], None]) -> Peer:
    import pandas as pd
    from neuralforecast import NeuralForecast
    from neuralforecast.losses.pytorch import MQLoss
    from neuralforecast.models import LSTM

    def frame(name: int, y: Floats) -> Any:
        return pd.DataFrame({"unique_id": str(name), "ds": np.arange(len(y)), "y": y})

    level = 100 * coverage
    network = LSTM(
        h=spec.horizon, input_size=SEEN * spec.horizon, max_steps=LSTM_UPDATES,
        loss=MQLoss(level=[level]), start_padding_enabled=True, enable_progress_bar=False,
        enable_model_summary=False, logger=False, enable_checkpointing=False,
    )  # fmt: skip
    fitted = NeuralForecast(models=[network], freq=1)
    fitted.fit(
        pd.concat([frame(k, task.past(int(task.origins[0]))) for k, task in enumerate(tasks)])
    )

    def forecast(task: Task) -> tuple[Floats, Floats, Floats]:
        past = [task.past(origin) for origin in task.origins.tolist()]
        # each origin a series of its own: the network knows them by what they were alone
        said = fitted.predict(df=pd.concat([frame(k, y) for k, y in enumerate(past)]))
        said = said.assign(number=said["unique_id"].astype(int)).sort_values(["number", "ds"])
        shape = len(past), spec.horizon
        columns = ("LSTM-median", "LSTM-lo-", "LSTM-hi-")
        point, lower, upper = (
            said[next(name for name in said if name.startswith(of))].to_numpy(float).reshape(shape)
            for of in columns
        )
        for _ in past:
            progress()
        return point, lower, upper

    return forecast


_MADE: dict[str, Made] = {name: _classic(name) for name in ("autoets", "autotheta", "mstl")}
_MADE["lstm"] = _lstm
