"""A backtest as one HTML file that needs nothing beside it: no network, no script, no library."""

from collections.abc import Iterable, Iterator, Sequence
from html import escape
from pathlib import Path

import numpy as np

from streamlstm.backtest import ENOUGH, Scores
from streamlstm.peers import Comparison
from streamlstm.rolling import Backtest, Judged
from streamlstm.svg import Chart
from streamlstm.tables import TITLES
from streamlstm.terminal import printable, steps_ahead, when

STEPS_SHOWN = 24
"""Rows at most of the table by step; charts show every step."""
SERIES_SHOWN = 200
COLOURS = {"model": "#d95f02", "last_value": "#7f7f7f", "seasonal_naive": "#1f77b4"}
SHADES = ("#6a3d9a", "#33a02c", "#e31a1c", "#ff7f00", "#1f78b4", "#b15928")
MEASURES = {
    "mae": "MAE",
    "rmse": "RMSE",
    "mase": "MASE",
    "smape": "sMAPE, %",
    "coverage": "within the interval",
    "winkler": "Winkler score",
    "pinball_lower": "pinball loss, lower",
    "pinball_upper": "pinball loss, upper",
    "crps": "CRPS",
}
_STYLE = """
body { font: 15px/1.45 system-ui, sans-serif; color: #222; background: #fff;
  max-width: 1440px; margin: 2em auto; padding: 0 1em; }
h1 { font-size: 1.5em; } h2 { font-size: 1.15em; margin-top: 2em; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: 0.1em 1.2em; }
dt { color: #666; } dd { margin: 0; overflow-wrap: anywhere; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: 0.87em; }
th, td { padding: 0.2em 0.7em; text-align: right; border-bottom: 1px solid #e4e4e4;
  white-space: nowrap; }
th { font-weight: 600; background: #f5f5f5; } th.name, td.name { text-align: left; }
td.best { font-weight: 700; } .first { border-left: 1px solid #ccc; }
.charts { display: grid; grid-template-columns: repeat(auto-fit, minmax(400px, 1fr)); gap: 1em; }
svg { width: 100%; height: auto; }
.small { color: #666; font-size: 0.87em; max-width: 75em; }
"""


def write_report(
    path: Path, found: Backtest, unit: str = "", peers: Comparison | None = None
) -> None:
    """Write it.

    Raises:
        OSError: it cannot be written.
    """
    path.write_text(report(found, unit, peers), encoding="utf-8")


def report(found: Backtest, unit: str = "", peers: Comparison | None = None) -> str:
    """The whole page; ``unit`` is that of the values."""
    sections = (
        _about(found),
        "<h2>All steps ahead</h2>",
        *_each_target(found),
        f'<p class="small">{_explained(found)}</p>',
        _peers(peers) if peers else "",
        "<h2>By step ahead</h2>",
        _drawn(charts_by_step(found, unit)),
        _by_step(found.scores),
        "<h2>The latest forecast of some series</h2>",
        _drawn(charts_of_series(found)),
        "<h2>By series, the worst first</h2>",
        _by_series(found),
    )
    title = escape(printable(f"Backtest of model {found.model.id} on {found.data}"))
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{title}</title>\n<style>{_STYLE}</style>\n</head>\n<body>\n<h1>{title}</h1>\n"
        + "\n".join(sections)
        + "\n</body>\n</html>\n"
    )


def _about(found: Backtest) -> str:
    spec, scores = found.model.spec, found.scores
    begin, end = map(when, found.period_ns)
    skipped = f", {found.skipped:,} more too short" if found.skipped else ""
    lines = {
        "model": f"{found.model.id}, {spec.layers} x {spec.cell.upper()} of {spec.hidden}",
        "data": f"{found.data}, {len(found.series):,} series{skipped}",
        "forecast": f"{begin} to {end} UTC, {steps_ahead(spec.horizon, spec.step_ns)}",
        "season": f"{spec.season} steps" if spec.season else "none",
        "forecasts": f"{scores.forecasts:,}, one at each tick; {scores.targets:,} targets came",
        "interval": f"{scores.coverages[0]:.3g} of all targets are to lie in it",
        "learning": "each series goes on learning from its own errors"
        if found.learning
        else "off: the model as it stands",
    }
    told = [*lines.items(), *(("note", note) for note in found.notes)]
    items = (f"<dt>{name}</dt><dd>{escape(printable(text))}</dd>" for name, text in told)
    return f"<dl>{''.join(items)}</dl>"


def _explained(found: Backtest) -> str:
    scores, said = found.scores, []
    unit = "season" if found.model.spec.season else "step"
    said.append(
        "Every forecast knows only what came before it. The naive forecasts stand beside it on the"
        " same targets, with intervals of the same kind, learned from their own errors. MASE: the"
        f" error over the mean absolute change of the history from one {unit} to the next. Winkler"
        " score: the width of the interval and a penalty for each miss; pinball loss is that of its"
        " two ends."
    )
    if len(scores.coverages) >= ENOUGH:
        levels = ", ".join(f"{c:.4g}" for c in sorted(scores.coverages))
        said.append(
            f" CRPS: approximated from the pinball losses of the intervals of {levels} and of the"
            " point forecast, taken for the median."
        )
    return escape("".join(said))


def _number(value: float, measure: str) -> str:
    if not np.isfinite(value):
        return "–"
    if measure == "coverage":
        return f"{value:.1%}"
    if measure == "mase":
        return f"{value:.3f}"
    return f"{value:,.0f}" if value >= 1000 else f"{value:#.4g}"


def _best(values: Sequence[float], measure: str) -> int:
    """Which is the best of the forecasters; -1: none, as where more is not better."""
    if measure == "coverage" or not np.isfinite(values).any():
        return -1
    return int(np.nanargmin(values))


def _cells(scores: Scores, measure: str, step: int) -> str:
    values = [float(scores.by_step(measure, name)[step - 1]) for name in scores.names]
    best = _best(values, measure)
    return "".join(
        f'<td class="{"first" * (i == 0)}{" best" * (i == best)}">{_number(value, measure)}</td>'
        for i, value in enumerate(values)
    )


def _table(head: Iterable[str], rows: Iterable[str]) -> str:
    lines = "".join(f"<tr>{row}</tr>" for row in rows)
    heads = "".join(f"<tr>{row}</tr>" for row in head)
    return f'<div class="wide"><table><thead>{heads}</thead><tbody>{lines}</tbody></table></div>'


def _names(scores: Scores) -> str:
    return "".join(f"<th>{escape(TITLES[name])}</th>" for name in scores.names)


def _overall(scores: Scores) -> str:
    whole = scores.over_steps()
    rows = [
        f'<td class="name">{escape(title)}</td>{_cells(whole, measure, 1)}'
        for measure, title in MEASURES.items()
        if measure in scores.measures
    ]
    return _table([f"<th></th>{_names(scores)}"], rows)


def _each_target(found: Backtest) -> Iterator[str]:
    """A table of each, and what those have that count all together."""
    several = len(found.by_target) > 1
    for name, scores in found.by_target.items():
        yield f"<h3>{escape(printable(name))}</h3>" * several + _overall(scores)
    if several:
        yield (
            '<p class="small">Steps ahead, below, are of all targets together; where their units'
            " differ, go by their MASE.</p>"
        )


def _grouped(scores: Scores, first: str) -> list[str]:
    """Two rows of heads: measures, and below each the forecasters."""
    shown = [title for measure, title in MEASURES.items() if measure in scores.measures]
    groups = "".join(
        f'<th class="first" colspan="{len(scores.names)}">{escape(title)}</th>' for title in shown
    )
    names = _names(scores) * len(shown)
    return [f'<th rowspan="2" class="name">{escape(first)}</th>{groups}', names]


def _by_step(scores: Scores) -> str:
    steps = np.unique(np.round(np.linspace(1, scores.horizon, STEPS_SHOWN)).astype(int)).tolist()
    measures = [measure for measure in MEASURES if measure in scores.measures]
    rows = [
        f'<td class="name">{k}</td>' + "".join(_cells(scores, of, k) for of in measures)
        for k in steps
        if scores.came(k)
    ]
    return _table(_grouped(scores, "steps ahead"), rows)


def _by_series(found: Backtest) -> str:
    measures = [measure for measure in MEASURES if measure in found.scores.measures]
    shown = found.worst_first()[:SERIES_SHOWN]
    rows = [
        f'<td class="name">{escape(printable(one.name))}</td>'
        + "".join(_cells(one.scores, of, 1) for of in measures)
        for one in shown
    ]
    table = _table(_grouped(found.scores, "series"), rows)
    if left := len(found.series) - len(shown):
        table += f'<p class="small">{left:,} more series, better than these, are left out.</p>'
    return table


def _peers(found: Comparison) -> str:
    columns = ("mae", "mase", "coverage", "winkler", "seconds")
    best = {of: _best([getattr(row, of) for row in found.rows], of) for of in columns[:-1]}
    heads = "".join(f"<th>{escape(MEASURES.get(of, of))}</th>" for of in (*columns, "failed"))
    rows = [
        f'<td class="name">{escape(TITLES.get(row.name, row.name))}</td>'
        + "".join(
            f'<td class="{"best" * (best.get(of, -1) == i)}">{_number(getattr(row, of), of)}</td>'
            for of in columns
        )
        + f"<td>{row.failed or ''}</td>"
        for i, row in enumerate(found.rows)
    ]
    return (
        "<h2>Beside other forecasters</h2>"
        + _table([f'<th class="name">forecast</th>{heads}'], rows)
        + f'<p class="small">All at the same {found.origins:,} origins, all steps ahead; intervals'
        f" of {found.coverage:.4g}. Seconds: of all these forecasts, fitting included but for the"
        " model, which was fitted before; failed: origins without a forecast, which its figures"
        " leave out.</p>"
    )


def _drawn(charts: Iterable[Chart]) -> str:
    return f'<div class="charts">{"".join(chart.svg() for chart in charts)}</div>'


def charts_by_step(found: Backtest, unit: str) -> Iterator[Chart]:
    """Errors by step ahead, and how many targets lay within the intervals."""
    scores, ahead = found.scores, "steps ahead"
    steps = np.arange(1.0, scores.horizon + 1)
    units = f", {unit}" if unit else ""
    titles = {"mae": f"Mean absolute error{units}", "mase": "Scaled error (MASE)"}
    if "crps" in scores.measures:
        titles["crps"] = f"CRPS{units}"
    for measure, title in titles.items():
        chart = Chart(title, ahead, from_zero=True)
        for name in reversed(scores.names):
            chart.line(steps, scores.by_step(measure, name), COLOURS[name], TITLES[name])
        yield chart
    chart = Chart("Coverage of the intervals, and what was promised", ahead)
    for c, colour in zip(sorted(scores.coverages), _shades(len(scores.coverages)), strict=True):
        chart.line(steps, np.full(len(steps), c), colour, dashes="3 3")
        chart.line(steps, scores.by_step("coverage", "model", c), colour, f"{c:.4g}")
    yield chart


def _shades(count: int) -> list[str]:
    return [SHADES[i % len(SHADES)] for i in range(count)]


def _chosen(found: Backtest) -> dict[str, Judged]:
    """The best, the median and the worst series, each once."""
    order = found.worst_first()
    order = [one for one in order if np.isfinite(one.scores.mean("mase"))] or order
    chosen: dict[str, Judged] = {}
    for what, one in (("best", order[-1]), ("median", order[len(order) // 2]), ("worst", order[0])):
        if all(one is not before for before in chosen.values()):
            chosen[what] = one
    return chosen


def charts_of_series(found: Backtest) -> Iterator[Chart]:
    """The latest forecast of the best, the median and the worst series."""
    chosen = _chosen(found)
    for what, one in chosen.items():
        fan, name = one.fan, printable(one.name)
        name = name if len(name) <= 32 else f"{name[:31]}…"
        title = f"{name}: MASE {_number(one.scores.mean('mase'), 'mase')}"
        title += f", the {what}" if len(chosen) > 1 else ""
        chart = Chart(title, f"steps from {when(fan.origin_ns)} UTC")
        ahead = np.arange(1.0, len(fan.point) + 1)
        for c in sorted(fan.intervals, reverse=True):
            label = f"{c:.4g}" if c == max(fan.intervals) else ""
            label = f"intervals up to {label}" if label else ""
            chart.band(ahead, *fan.intervals[c], COLOURS["model"], label)
        past = np.arange(1.0 - len(fan.past), 1.0)
        chart.line(
            np.concatenate([past, ahead]),
            np.concatenate([fan.past, fan.came]),
            COLOURS["seasonal_naive"],
            "actual",
        )
        chart.line(ahead, fan.point, COLOURS["model"], "forecast")
        yield chart
