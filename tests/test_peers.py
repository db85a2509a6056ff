"""Peers see only what came before their origins, and are judged on the targets of the model."""

import importlib.util
import json
import sys
from collections.abc import Callable
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pandas as pd
import pytest

from streamlstm.backtest import run
from streamlstm.cli import main
from streamlstm.config import ConfigError
from streamlstm.datasets.frames import SeriesData
from streamlstm.peers import Compared, Comparison, PeerError, check_peers, compare, effort
from streamlstm.report import report
from streamlstm.rolling import backtest
from streamlstm.tables import peers_table
from tests.models import HOUR, random_model, random_model_file
from tests.test_cli import series_file
from tests.test_rolling import table

MODEL = random_model(season=24, base="seasonal")
KNOWN = [150, 100, 10]
Forecast = Callable[[np.ndarray, int], dict[str, np.ndarray]]


def statsforecast(monkeypatch: pytest.MonkeyPatch, forecast: Forecast) -> None:
    """Put a library in the place of statsforecast, whose AutoTheta forecasts so."""

    class AutoTheta:
        def __init__(self, season_length: int) -> None:
            assert season_length == 24

        def forecast(self, y: np.ndarray, h: int, level: list[float]) -> dict[str, Any]:
            assert level == [80.0]
            return forecast(y, h)

    library, models = ModuleType("statsforecast"), ModuleType("statsforecast.models")
    library.__spec__ = ModuleSpec("statsforecast", None)
    library.models, models.AutoTheta = models, AutoTheta  # type: ignore[attr-defined]
    models.AutoETS = None  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "statsforecast", library)
    monkeypatch.setitem(sys.modules, "statsforecast.models", models)


def compared(series: list[SeriesData], known: list[int], **options: Any) -> dict[str, Compared]:
    found = compare(MODEL, series, known, ["autotheta"], coverage=0.8, **options)
    return {row.name: row for row in found.rows}


def test_a_peer_that_repeats_the_last_value_is_the_last_value(monkeypatch) -> None:
    statsforecast(monkeypatch, lambda y, h: {"mean": np.full(h, y[-1])})
    rows = compared(table(), KNOWN)
    assert [*rows] == ["model", "last_value", "seasonal_naive", "autotheta"]
    assert rows["autotheta"].mae == pytest.approx(rows["last_value"].mae)
    assert rows["autotheta"].mase == pytest.approx(rows["last_value"].mase)
    assert rows["autotheta"].mae != pytest.approx(rows["seasonal_naive"].mae)
    assert np.isnan(rows["autotheta"].coverage)  # it gives no intervals
    assert np.isnan(rows["autotheta"].winkler)
    assert rows["last_value"].winkler > 0
    assert rows["autotheta"].failed == 0


def test_it_sees_what_came_up_to_its_origin_and_nothing_after(monkeypatch) -> None:
    seen: list[np.ndarray] = []
    statsforecast(monkeypatch, lambda y, h: {"mean": np.zeros(h)} if seen.append(y) is None else {})
    full = table()[0]
    kept = np.delete(np.arange(200), [170, 171, 180])
    gaps = SeriesData("a", full.ts[kept], full.values[kept])
    done: list[int] = []
    found = compare(
        MODEL, [gaps], [150], ["autotheta"], origins=4, coverage=0.8, progress=done.append
    )
    assert found.origins == len(seen) == 4
    assert sum(done) == effort([gaps], ["autotheta"], 4)
    y = full.values[:, 0]
    for past in seen:
        there = np.isin(np.arange(len(past)), kept)
        np.testing.assert_array_equal(past[there], y[: len(past)][there])
        if len(past) > 171:
            between = y[169] + (y[172] - y[169]) * np.array([1, 2]) / 3
            np.testing.assert_allclose(past[170:172], between)
    lengths = [len(past) for past in seen]
    assert lengths[0] == 150
    assert lengths[-1] == 197  # all three steps came
    assert np.ptp(np.diff(lengths)) <= 3


def test_the_model_is_judged_as_plain_loops_do_at_the_same_origins(monkeypatch) -> None:
    ends: dict[int, np.ndarray] = {}

    def around(y: np.ndarray, h: int) -> dict[str, np.ndarray]:
        ends[len(y) - 1] = np.full(h, y[-1])
        return {
            "mean": np.full(h, y[-1]),
            "lo-80": np.full(h, y[-1] - 0.5),
            "hi-80": y[-1] + [1.0] * h,
        }

    statsforecast(monkeypatch, around)
    s = table()[0]
    rows, y = compared([s], [150], origins=5), s.values[:, 0]
    every = run(MODEL, s.ts, s.values, 150, coverage=0.8)
    errors, within, winkler, covered = [], [], [], []
    for origin, last in ends.items():
        at = int(np.flatnonzero(every.place == origin)[0])
        for k in (1, 2, 3):
            target = y[origin + k]
            errors.append(abs(target - every.point[at, k - 1]))
            covered.append(every.lower[at, k - 1] <= target <= every.upper[at, k - 1])
            off = target - last[k - 1]
            within.append(-0.5 <= off <= 1)
            winkler.append(1.5 + 10 * max(0, -0.5 - off, off - 1))
    assert rows["model"].mae == pytest.approx(np.mean(errors))
    assert rows["model"].coverage == pytest.approx(np.mean(covered))
    assert rows["autotheta"].coverage == pytest.approx(np.mean(within))
    assert rows["autotheta"].winkler == pytest.approx(np.mean(winkler))


def neuralforecast(monkeypatch: pytest.MonkeyPatch, frames: list[pd.DataFrame]) -> None:
    """Put a library in the place of neuralforecast, whose LSTM repeats the last value."""

    class NeuralForecast:
        def __init__(self, models: list[dict[str, Any]], freq: int) -> None:
            (self.options,) = models

        def fit(self, df: pd.DataFrame) -> None:
            frames.append(df)

        def predict(self, df: pd.DataFrame) -> pd.DataFrame:
            frames.append(df)
            last = df.groupby("unique_id").last().reset_index()  # "10" comes before "2"
            parts = [
                last.assign(ds=last.ds + k, **{"LSTM-median": last.y, "LSTM-lo-80": last.y - 1,
                                               "LSTM-hi-80": last.y + 1})
                for k in range(1, self.options["h"] + 1)
            ]  # fmt: skip
            return pd.concat(parts).drop(columns="y")

    library = ModuleType("neuralforecast")
    library.__spec__ = ModuleSpec("neuralforecast", None)
    losses, models = ModuleType("losses"), ModuleType("models")
    library.NeuralForecast = NeuralForecast  # type: ignore[attr-defined]
    losses.MQLoss = lambda level: level  # type: ignore[attr-defined]
    models.LSTM = lambda **options: options  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "neuralforecast", library)
    monkeypatch.setitem(sys.modules, "neuralforecast.losses", ModuleType("losses"))
    monkeypatch.setitem(sys.modules, "neuralforecast.losses.pytorch", losses)
    monkeypatch.setitem(sys.modules, "neuralforecast.models", models)


def test_the_lstm_is_fitted_once_to_what_comes_before_and_asked_at_each_origin(monkeypatch) -> None:
    frames: list[pd.DataFrame] = []
    neuralforecast(monkeypatch, frames)
    found = compare(MODEL, table(), KNOWN, ["lstm"], origins=12, coverage=0.8)
    rows = {row.name: row for row in found.rows}
    assert rows["lstm"].mae == pytest.approx(rows["last_value"].mae)
    assert 0 < rows["lstm"].coverage < 1
    fitted, *asked = frames
    assert fitted.groupby("unique_id").size().tolist() == [150, 100]
    assert [len(frame.unique_id.unique()) for frame in asked] == [12, 12]
    longest = [frame.groupby("unique_id").size().max() for frame in asked]
    assert longest == [197, 147]  # of 200 and 150: all three steps came


def test_where_a_peer_fails_is_counted(monkeypatch) -> None:
    def fails(y: np.ndarray, h: int) -> dict[str, np.ndarray]:
        if len(y) < 160:
            raise ValueError("too short")
        return {"mean": np.full(h, y[-1])}

    statsforecast(monkeypatch, fails)
    rows = compared([table()[0]], [150], origins=48)
    assert rows["autotheta"].failed == 10
    assert np.isfinite(rows["autotheta"].mae)


def test_what_cannot_be_run_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match="--peers prophet: unknown; there is: autoets, autotheta"):
        check_peers(["prophet"])
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(PeerError, match=r"--peers lstm: needs neuralforecast: pip install 'stream"):
        check_peers(["lstm"])
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: name)
    with pytest.raises(PeerError, match="--peers mstl: the model knows no season"):
        check_peers(["mstl"], random_model().spec)
    check_peers(["mstl", "lstm"], MODEL.spec)


def test_the_command_shows_them_everywhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    statsforecast(monkeypatch, lambda y, h: {"mean": np.full(h, y[-1])})
    model, data = random_model_file(tmp_path, season=24, base="seasonal"), series_file(tmp_path)
    page, picture = tmp_path / "r.html", tmp_path / "r.png"
    line = ["backtest", str(model), str(data), "--levels", "none", "--coverage", "0.8"]
    line += ["--peers", "autotheta", "--peer-origins", "7"]
    assert main([*line, "--json", "--html", str(page), "--png", str(picture)]) == 0
    told = json.loads(capfd.readouterr().out)["peers"]
    assert (told["origins"], told["coverage"]) == (14, 0.8)
    mae = {row["name"]: row["mae"] for row in told["forecasts"]}
    assert mae["autotheta"] == pytest.approx(mae["last_value"])
    assert f'<td class="name">autotheta</td><td class="">{mae["autotheta"]:#.4g}</td>' in (
        page.read_text()
    )
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert main(line) == 0
    out = capfd.readouterr().out
    assert "at the same 14 origins" in out
    assert "autotheta" in out


def test_the_least_errors_stand_out_and_what_is_not_known_is_a_dash() -> None:
    rows = [
        Compared("model", 1.0, 0.5, 0.91, 4.0, 0.1, 0),
        Compared("autoets", 2.0, 1.0, np.nan, np.nan, 7.0, 3),
    ]
    found = Comparison(0.9, 20, rows)
    drawn = peers_table(found, "MW")
    cells = [[str(cell) for cell in column.cells] for column in drawn.columns]
    assert cells[1] == ["1", "2"]
    assert cells[3:] == [["91.0%", "–"], ["4", "–"], ["0.1", "7.0"], ["", "3"]]
    assert [cell.style for cell in drawn.columns[1].cells] == ["bold green", ""]  # type: ignore[union-attr]
    page = report(backtest(MODEL, "t", table(), KNOWN, (0.9,)), "MW", found)
    assert '<td class="name">autoets</td><td class="">2.000</td><td class="">1.000</td>' in page
    assert "Beside other" not in report(backtest(MODEL, "t", table(), KNOWN, (0.9,)))


@pytest.mark.skipif(
    importlib.util.find_spec("statsforecast") is None, reason="without the extra bench"
)
def test_statsforecast_itself_knows_a_wave() -> None:
    hours = np.arange(300)
    y = 10 + np.sin(2 * np.pi * hours / 24) + 0.01 * np.random.default_rng(0).normal(size=300)
    wave = SeriesData("w", hours * HOUR, y[:, None])
    found = compare(MODEL, [wave], [240], ["autoets", "autotheta", "mstl"], origins=2)
    rows = {row.name: row for row in found.rows}
    for name in ("autoets", "autotheta", "mstl"):
        assert rows[name].failed == 0
        assert rows[name].mae < 0.5 * rows["last_value"].mae
        assert rows[name].winkler > 0
        assert rows[name].seconds > 0
