"""Forecasts from Python, without a daemon: for a notebook, a script, a test.

    forecaster = Forecaster.fit("history.csv", horizon=24, season=24)
    forecaster.predict("history.csv")               # a DataFrame: what comes after it
    forecaster.step(412.5, ts="2026-01-05 10:00")   # a tick at a time, as the daemon would
    forecaster.save("model.safetensors")            # and the daemon runs the same

Data is in the long format of forecasting (``unique_id``, ``ds``, ``y``), a DataFrame or a file.
What was guessed, converted or left out in reading it is a warning.
"""

import time
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple, Self

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from streamlstm.client import in_time_order
from streamlstm.console import spacing
from streamlstm.datasets.bundled import table
from streamlstm.datasets.frames import Table, from_frame
from streamlstm.datasets.inputs import Columns
from streamlstm.datasets.times import DataError, epoch_unit
from streamlstm.engine import Engine
from streamlstm.fit_options import chosen
from streamlstm.forecast import at_the_end, extend, forecasts_frame
from streamlstm.model import Model
from streamlstm.model_file import load_model, save_model
from streamlstm.ticks import WARM, Arrivals, Keys
from streamlstm.train import FitReport
from streamlstm.train import fit as fit_model

Data = pd.DataFrame | pd.Series | str | Path
"""A DataFrame, a Series with its times as index, a CSV or Parquet file, or the name of a bundled
series."""
ROOM = 256
"""Ticks that are stepped at once."""
LONGEST = 1024
"""Bytes of a series' name: as many as a daemon can be told to take."""


class Prediction(NamedTuple):
    """What follows a tick."""

    series: str
    ts: NDArray[np.datetime64]
    """(horizon,) what each forecast is for, UTC; all the tick's own where the model does not know
    how far ticks are apart"""
    forecast: NDArray[np.float64]
    """(horizon,), or (horizon, targets) of several targets"""
    lower: NDArray[np.float64]
    """The lower end of the interval, likewise; NaN where it is not yet known"""
    upper: NDArray[np.float64]
    """The upper end"""


class Forecaster:
    """A model, and the states of the series that it has seen.

    Attributes:
        model: what was fitted or loaded.
        report: how the fit went; None where the model was loaded.
    """

    def __init__(
        self,
        model: Model,
        *,
        coverage: float = 0.9,
        learning: bool = True,
        max_series: int = 1000,
        report: FitReport | None = None,
    ) -> None:
        """Open ``model`` for up to ``max_series``.

        ``coverage`` is the share of values to fall within the interval, 0: no intervals;
        ``learning``: whether series learn from their own errors.

        Raises:
            ModelError: the model does not compute what its file says, or there is no room.
            ValueError: there is no such coverage.
        """
        if not 0 <= coverage < 1:
            raise ValueError(f"a coverage of {coverage}; a share from 0 to less than 1, as 0.9")
        self.model, self.report = model, report
        self._coverage, self._learning = coverage, learning
        self._engine = Engine(
            model, max_series=max_series, max_batch=ROOM, coverage=coverage, learning=learning,
            max_key=LONGEST,
        )  # fmt: skip

    @classmethod
    def load(cls, path: str | Path, **options: Any) -> Self:
        """Open a model file; ``options`` as of the class.

        Raises:
            ModelError, OSError: it is none, or cannot be read.
            ValueError: there is no such coverage.
        """
        return cls(load_model(Path(path)), **options)

    @classmethod
    def fit(
        cls,
        data: Data,
        *,
        horizon: int = 24,
        targets: str | Sequence[str] = (),
        features: str | Sequence[str] = (),
        known: str | Sequence[str] = (),
        static: str | Sequence[str] = (),
        read: dict[str, Any] | None = None,
        **options: Any,
    ) -> Self:
        """Fit a model to ``data`` and open it.

        Args:
            data: in the long format.
            horizon: steps ahead to forecast.
            targets, features, known, static: names of columns, one or several, that are what
                ``streamlstm fit`` has them for.
            read: how to read the table otherwise than by its names: ``id``, ``ds``, ``y``,
                ``wide``, ``timezone`` (the calendar's too) and so on, as
                :func:`.datasets.frames.read_table`.
            options: of :class:`.fit_options.FitOptions`.

        Raises:
            DataError: the data is not as described, or too short.
            ConfigError: there is no such option, or not with such a value.
        """
        zone = {"timezone": read["timezone"]} if read and "timezone" in read else {}
        asked = chosen({"horizon": horizon} | zone | options)
        columns = Columns.named(
            targets=targets, features=features, known=known, static=static, horizon=asked.horizon
        )
        found = _table(data, columns, read or {})
        _warn(found.notes, stacklevel=3)
        model, report = fit_model(found.series, asked, name=found.name, inputs=found.inputs)
        return cls(model, report=report)

    def save(self, path: str | Path) -> None:
        """Write the model file, which the daemon runs; states are not in it."""
        save_model(self.model, Path(path))

    def step(
        self,
        value: float | Sequence[float],
        ts: Any = None,
        series: str | int = "series",
    ) -> Prediction:
        """Move a series by a tick, and forecast what follows.

        Args:
            value: of the tick, or its values.
            ts: its time, as pandas reads times (UTC where it has no zone), or Unix time, its unit
                told by its size; None: now.
            series: its name, of which a number is one too; a new one begins anew.

        Raises:
            ValueError: the tick is refused (not after the one before, not finite, not as many
                values as the model takes, no room for a further series), and nothing has changed;
                or the forecast would not be finite, and the series begins anew.
        """
        series = str(series)
        values = np.atleast_1d(np.asarray(value, np.float64))
        at = time.time_ns() if ts is None else _nanoseconds(ts)
        spec, engine = self.model.spec, self._engine
        if values.shape != (spec.inputs,):
            raise ValueError(f"{values.size} values; the model takes {spec.inputs} a tick")
        before = engine.drops
        keys = Keys.of(self._names([series]))
        arrivals = Arrivals(keys, np.array([at]), values[None], np.zeros(1, np.uint8))
        made = engine.step(engine.place(arrivals), at)
        if not len(made.slot):
            reasons = [of for of, count in engine.drops.items() if count > before[of]]
            if reasons:
                raise ValueError(f"the tick of {series!r} is refused: {', '.join(reasons)}")
            raise ValueError(f"{series!r} has no finite forecast at {value}: it begins anew")
        ahead = np.arange(1, spec.horizon + 1) * spec.step_ns
        parts = (made.point[0], made.quantiles[0, 0], made.quantiles[0, 1])
        point, lower, upper = (p[:, 0].copy() if spec.targets == 1 else p.copy() for p in parts)
        return Prediction(series, (at + ahead).astype("datetime64[ns]"), point, lower, upper)

    def update(self, data: Data, *, warm: bool = False, **read: Any) -> int:
        """Move all series by all ticks of ``data``, in the order of their times.

        ``warm``: they are history, maybe that which the model was fitted on; intervals do not learn
        from it. Returns how many ticks were taken: left out are those that are late, or not finite,
        and of more series than there is room for.

        Raises:
            DataError: the data is not as described.
            ValueError: its values are not those that the model takes.
        """
        found = self._table(data, read)
        names = self._names([series.name for series in found.series])
        which, rows = in_time_order(found.series)
        at = np.cumsum([0, *(len(series.ts) for series in found.series)])[which] + rows
        ts = np.concatenate([series.ts for series in found.series])[at]
        values = np.concatenate([series.values for series in found.series])[at]
        packed, begin, end = Keys.of(names)
        flags = np.full(len(at), WARM if warm else 0, np.uint8)
        arrivals = Arrivals(Keys(packed, begin[which], end[which]), ts, values, flags)
        taken = 0
        for part in arrivals.parts(self._engine.max_batch):
            self._engine.step(self._engine.place(part), int(part.ts[-1]))
            taken += self._engine.taken
        return taken

    def predict(
        self, data: Data, horizon: int | None = None, *, timezone: str | None = None, **read: Any
    ) -> pd.DataFrame:
        """What comes after the end of each series: unique_id, ds, forecast, lower, upper.

        ``unique_id`` is text, of numbers too. Of several targets a row each, which its column
        ``target`` names. Times without a zone are read in ``timezone``, the model's where none is
        named, and those forecast are in it: in UTC without a zone, unless the data's have one. The
        series are run from their beginning, on states of their own: those of :meth:`step` stay.
        Steps beyond the model's horizon are rolled forward.

        Raises:
            DataError: the data is not as described.
            ForecastError: what cannot be forecast.
            ValueError: its values are not those that the model takes; or a horizon that is not a
                whole number of steps.
        """
        if horizon is not None and (horizon < 1 or horizon % 1):
            raise ValueError(f"a horizon of {horizon} steps; a whole number, 1 at least")
        zone = timezone or self.model.spec.timezone
        found = self._table(data, read | {"timezone": zone})
        self._names([series.name for series in found.series])
        ends = at_the_end(
            self.model, found.series, coverage=self._coverage, learning=self._learning,
            timezone=zone,
        )  # fmt: skip
        whole = extend(ends, int(horizon or self.model.spec.horizon))
        return forecasts_frame(whole, zone, found.zoned)

    def _names(self, series: Sequence[str]) -> list[bytes]:
        """Names as the engine takes them."""
        names = [name.encode() for name in series]
        for name, encoded in zip(series, names, strict=True):
            if not 0 < len(encoded) <= LONGEST or 0 in encoded:
                many = f"1 to {LONGEST} bytes"
                raise ValueError(f"{name!r}: a series has a name of {many} without NUL")
        return names

    def _table(self, data: Data, read: dict[str, Any]) -> Table:
        zone = {"timezone": self.model.spec.timezone}
        found = _table(data, Columns.of_model(self.model.spec), zone | read)
        has, takes = found.series[0].values.shape[1], self.model.spec.inputs
        if has != takes:
            raise ValueError(f"{found.name}: {has} values a tick; the model takes {takes}")
        _warn([*found.notes, *spacing(found, self.model.spec)], stacklevel=4)
        return found


def _table(data: Data, columns: Columns | None, read: dict[str, Any]) -> Table:
    if isinstance(data, pd.Series):
        data = data.rename("y").to_frame()
    if isinstance(data, pd.DataFrame):
        return from_frame(data, "data", columns=columns, **read)
    if not isinstance(data, str | Path):
        kind = type(data).__name__
        raise DataError(f"data of type {kind}; give a DataFrame with times and values, or a file")
    return table(str(data), columns, **read)


def _warn(notes: Sequence[str], stacklevel: int) -> None:
    """Say them of the line of whoever calls us; ``stacklevel``: seen from here."""
    for note in notes:
        warnings.warn(note, stacklevel=stacklevel)


def _nanoseconds(ts: Any) -> int:
    if isinstance(ts, int | float | np.integer | np.floating):
        found = epoch_unit(float(ts))
        if not found or np.isinf(ts):
            raise ValueError(f"{ts!r} is no Unix time; give one from 1973 on, or a date")
        ts = round(ts * found[1])
    stamp = pd.Timestamp(ts)
    if pd.isna(stamp):
        raise ValueError(f"{ts!r} is no time")
    return int((stamp if stamp.tzinfo else stamp.tz_localize("UTC")).as_unit("ns").value)
