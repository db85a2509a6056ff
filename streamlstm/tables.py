"""Tables and lines of how good forecasts were, for a terminal."""

from collections.abc import Sequence

import numpy as np
from rich.table import Table
from rich.text import Text

from streamlstm.backtest import Scores
from streamlstm.peers import Comparison
from streamlstm.rolling import Judged
from streamlstm.terminal import printable

TITLES = {
    "model": "streamlstm",
    "last_value": "last value",
    "seasonal_naive": "one season before",
}


def scores_table(scores: Scores, unit: str, target: str = "") -> Table:
    """MAE, MASE and coverage of the steps shown; target: of which, where there are several."""
    whose, of_unit = f"{printable(target)}: " * bool(target), f", {unit}" * bool(unit)
    title = f"{whose}mean absolute error{of_unit} (MASE in brackets)"
    table = Table(title=Text(title, style="table.title"))
    table.add_column("steps ahead", justify="right")
    for name in scores.names:
        table.add_column(TITLES[name], justify="right")
    table.add_column(f"within the {scores.coverages[0]:.0%} interval", justify="right")
    mae = {name: scores.by_step("mae", name) for name in scores.names}
    mase = {name: scores.by_step("mase", name) for name in scores.names}
    coverage = scores.by_step("coverage")
    for k in scores.shown:
        best = min(scores.names, key=lambda name: mae[name][k - 1])
        cells = []
        for name in scores.names:
            scaled = mase[name][k - 1]
            text = f"{mae[name][k - 1]:,.4g}" + f" ({scaled:.3f})" * bool(np.isfinite(scaled))
            cells.append(Text(text, style="bold green" if name == best else ""))
        table.add_row(str(k), *cells, f"{coverage[k - 1]:.1%}")
    return table


def intervals_line(scores: Scores, target: str = "") -> str:
    """How the intervals did, over all steps; target: as above."""
    kept, promised = scores.mean("coverage"), scores.coverages[0]
    whose = f"{printable(target)}: " * bool(target)
    line = f"{whose}{kept:.1%} of all targets within their {promised:.0%} interval; "
    measures = {"winkler": "Winkler score", "crps": "CRPS"}
    told = [
        f"{title} {scores.mean(of):,.4g}, of the same around the naive forecast"
        f" {scores.mean(of, scores.names[-1]):,.4g}"
        for of, title in measures.items()
        if of in scores.measures
    ]
    return line + "; ".join(told)


def peers_table(found: Comparison, unit: str) -> Table:
    """All forecasters at the same origins, over all steps; the least error of each kind stands out.

    Figures of a forecaster that failed at some origins are of the others.
    """
    rows = found.rows
    table = Table(title=f"at the same {found.origins:,} origins{f', {unit}' if unit else ''}")
    table.add_column("forecast")
    within = f"within the {found.coverage:.0%} interval"
    for title in ("MAE", "MASE", within, "Winkler score", "seconds", "failed"):
        table.add_column(title, justify="right")
    for row in rows:
        told: tuple[tuple[float, str, list[float]], ...] = (
            (row.mae, ",.4g", [other.mae for other in rows]),
            (row.mase, ".3f", []),
            (row.coverage, ".1%", []),
            (row.winkler, ",.4g", [other.winkler for other in rows]),
            (row.seconds, ",.1f", []),
        )
        cells = []
        for value, how, all_of_them in told:
            best = value == min(filter(np.isfinite, all_of_them), default=np.nan)
            text = format(value, how) if np.isfinite(value) else "–"
            cells.append(Text(text, "bold green" if best else ""))
        table.add_row(
            TITLES.get(row.name, row.name), *cells, f"{row.failed:,}" if row.failed else ""
        )
    return table


def series_table(series: Sequence[Judged]) -> Table:
    """The first of the ``series``, which come the worst first; over all steps."""
    shown = series[:10]
    table = Table(title=f"the worst {len(shown):,} of {len(series):,} series, over all steps")
    table.add_column("series")
    naive = series[0].scores.names[-1]
    for title in ("forecasts", "MAE", "RMSE", "MASE", TITLES[naive], "within"):
        table.add_column(title, justify="right")
    for one in shown:
        scores = one.scores
        table.add_row(
            Text(printable(one.name)),
            f"{scores.forecasts:,}",
            f"{scores.mean('mae'):,.4g}",
            f"{scores.mean('rmse'):,.4g}",
            f"{scores.mean('mase'):.3f}",
            f"{scores.mean('mase', naive):.3f}",
            f"{scores.mean('coverage'):.1%}",
        )
    return table
