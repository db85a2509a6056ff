"""What people look at in a terminal: charts, sparklines, tables of scores."""

from collections.abc import Callable, Sequence
from datetime import UTC, datetime

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from streamlstm.backtest import MODELS, Scores
from streamlstm.peers import Comparison
from streamlstm.rolling import Judged

Floats = NDArray[np.float64]
TITLES = {
    "model": "streamlstm",
    "last_value": "last value",
    "seasonal_naive": "one season before",
}
_BARS = "▁▂▃▄▅▆▇█"


def printable(text: str) -> str:
    """``text`` on one line, harmless to a terminal: what is not printable becomes U+FFFD."""
    return "".join(c if c.isprintable() else "\ufffd" for c in text)


def sparkline(values: Sequence[float]) -> str:
    """One character a value; a space where it is not finite."""
    array = np.array(values, np.float64)
    finite = array[np.isfinite(array)]
    if not len(finite):
        return " " * len(array)
    low, span = finite.min(), np.ptp(finite) or 1.0
    return "".join(
        _BARS[int((v - low) / span * (len(_BARS) - 1) + 0.5)] if np.isfinite(v) else " "
        for v in array
    )


class FitBar:
    """A progress bar on stderr that shows the losses."""

    def __init__(self, console: Console) -> None:
        """Show nothing yet, and nothing at all where ``console`` is no terminal."""
        self._bar = Progress(
            TextColumn("fitting"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(),
            TextColumn("loss {task.fields[loss]:.4f}, unseen {task.fields[unseen]:.4f}"),
            console=console, transient=True, disable=not console.is_terminal,
        )  # fmt: skip
        self._task = self._bar.add_task("fitting", total=None, loss=np.nan, unseen=np.nan)

    def __enter__(self) -> Callable[[int, int, float, float], None]:
        """Show it; what is returned is to be called as ``train.Progress`` says."""
        self._bar.start()
        return self._update

    def __exit__(self, *_: object) -> None:
        """Take it away."""
        self._bar.stop()

    def _update(self, done: int, total: int, loss: float, unseen: float) -> None:
        self._bar.update(self._task, completed=done, total=total, loss=loss, unseen=unseen)


class Canvas:
    """Dots in braille characters, 2 x 4 a character; the latest colour of a character stands."""

    def __init__(self, width: int, height: int, x: tuple[float, float], y: tuple[float, float]):
        """A canvas of ``width`` x ``height`` characters over the ranges ``x`` and ``y``."""
        self.dots = np.zeros((4 * height, 2 * width), bool)
        self.styles = np.full((height, width), "", object)
        self._x, self._y = x, y

    def line(self, x: Floats, y: Floats, style: str) -> None:
        """Join the finite ones of points that follow one another, (n,)."""
        rows, columns = self._place(x, y)
        for i in range(len(x) - 1):
            if np.isfinite(y[i : i + 2]).all():
                steps = int(max(abs(rows[i + 1] - rows[i]), abs(columns[i + 1] - columns[i]), 1))
                self._dot(
                    np.linspace(rows[i], rows[i + 1], steps + 1),
                    np.linspace(columns[i], columns[i + 1], steps + 1),
                    style,
                )

    def band(self, x: Floats, lower: Floats, upper: Floats, style: str) -> None:
        """Fill between two curves, (n,), with every second dot."""
        columns = np.arange(self.dots.shape[1])
        at = self._x[0] + columns / max(len(columns) - 1, 1) * (self._x[1] - self._x[0])
        top, _ = self._place(at, np.interp(at, x, upper, np.nan, np.nan))
        bottom, _ = self._place(at, np.interp(at, x, lower, np.nan, np.nan))
        for column in columns[np.isfinite(top) & np.isfinite(bottom)]:
            rows = np.arange(round(top[column]), round(bottom[column]) + 1)
            rows = rows[(rows + column) % 2 == 0]
            self._dot(rows, np.full(len(rows), column), style)

    def text(self) -> list[Text]:
        """The lines, from the top."""
        bits = np.array([[0x01, 0x08], [0x02, 0x10], [0x04, 0x20], [0x40, 0x80]])
        height, width = self.styles.shape
        cells = (self.dots.reshape(height, 4, width, 2) * bits[:, None]).sum(axis=(1, 3))
        lines = []
        for row, styles in zip(cells, self.styles, strict=True):
            line = Text()
            for cell, style in zip(row, styles, strict=True):
                line.append(chr(0x2800 + cell) if cell else " ", style)
            lines.append(line)
        return lines

    def _place(self, x: Floats, y: Floats) -> tuple[Floats, Floats]:
        height, width = self.dots.shape
        (left, right), (low, high) = self._x, self._y
        return (high - y) / (high - low) * (height - 1), (x - left) / (right - left) * (width - 1)

    def _dot(self, rows: Floats, columns: Floats, style: str) -> None:
        height, width = self.dots.shape
        down, along = np.round(rows).astype(int), np.round(columns).astype(int)
        inside = (down >= 0) & (down < height) & (along >= 0) & (along < width)
        self.dots[down[inside], along[inside]] = True
        self.styles[down[inside] // 4, along[inside] // 2] = style


def fan_chart(
    actual: Floats, forecast: Floats, lower: Floats, upper: Floats, width: int, height: int
) -> Text:
    """Draw what came, (n,), and from there on a forecast and its interval, (horizon,)."""
    ahead = np.arange(len(actual), len(actual) + len(forecast), dtype=np.float64)
    everything = np.concatenate([actual, forecast, lower, upper])
    known = everything[np.isfinite(everything)]
    low, high = (known.min(), known.max()) if len(known) else (0.0, 0.0)
    height = max(1, height)
    margin = 0.05 * (high - low) or 1.0
    low, high = low - margin, high + margin
    labels = [f"{value:,.5g}" for value in np.linspace(high, low, height)]
    gutter = max(map(len, labels)) + 1
    canvas = Canvas(max(1, width - gutter - 1), height, (0.0, max(ahead[-1], 1.0)), (low, high))
    canvas.band(ahead, lower, upper, "bright_black")
    canvas.line(np.arange(len(actual), dtype=np.float64), actual, "bright_blue")
    joined = np.concatenate([actual[-1:], forecast])
    canvas.line(np.concatenate([ahead[:1] - 1, ahead]), joined, "yellow")
    chart = Text()
    for row, (label, line) in enumerate(zip(labels, canvas.text(), strict=True)):
        shown = label if row % max(1, height // 4) == 0 else ""
        chart.append(f"{shown:>{gutter}}", "dim").append("│", "dim").append(line).append("\n")
    for name, style in (("actual", "bright_blue"), ("forecast", "yellow")):
        chart.append(" " * gutter if name == "actual" else "  ").append("━ ", style).append(name)
    return chart.append("  ⠕ ", "bright_black").append("interval")


def when(ts_ns: int) -> str:
    """A timestamp, UTC, to the second."""
    return f"{datetime.fromtimestamp(ts_ns // 1_000_000_000, UTC):%Y-%m-%d %H:%M:%S}"


def scores_table(scores: Scores, unit: str) -> Table:
    """MAE, MASE and coverage of the steps shown."""
    table = Table(title=f"mean absolute error{f', {unit}' if unit else ''} (MASE in brackets)")
    table.add_column("steps ahead", justify="right")
    for name in MODELS:
        table.add_column(TITLES[name], justify="right")
    table.add_column(f"within the {scores.coverages[0]:.0%} interval", justify="right")
    mae = {name: scores.by_step("mae", name) for name in MODELS}
    mase = {name: scores.by_step("mase", name) for name in MODELS}
    coverage = scores.by_step("coverage")
    for k in scores.shown:
        best = min(MODELS, key=lambda name: mae[name][k - 1])
        cells = []
        for name in MODELS:
            text = f"{mae[name][k - 1]:,.4g} ({mase[name][k - 1]:.3f})"
            cells.append(Text(text, style="bold green" if name == best else ""))
        table.add_row(str(k), *cells, f"{coverage[k - 1]:.1%}")
    return table


def intervals_line(scores: Scores) -> str:
    """How the intervals did, over all steps."""
    kept, promised = scores.mean("coverage"), scores.coverages[0]
    line = f"{kept:.1%} of all targets within their {promised:.0%} interval; "
    measures = {"winkler": "Winkler score", "crps": "CRPS"}
    told = [
        f"{title} {scores.mean(of):,.4g}, of the same around the naive forecast"
        f" {scores.mean(of, 'seasonal_naive'):,.4g}"
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


def series_table(series: Sequence[Judged], most: int = 10) -> Table:
    """The first of the ``series``, which come the worst first; over all steps."""
    shown = series[:most]
    table = Table(title=f"the worst {len(shown):,} of {len(series):,} series, over all steps")
    table.add_column("series")
    for title in ("forecasts", "MAE", "RMSE", "MASE", "one season before", "within"):
        table.add_column(title, justify="right")
    for one in shown:
        scores = one.scores
        table.add_row(
            Text(printable(one.name)),
            f"{scores.forecasts:,}",
            f"{scores.mean('mae'):,.4g}",
            f"{scores.mean('rmse'):,.4g}",
            f"{scores.mean('mase'):.3f}",
            f"{scores.mean('mase', 'seasonal_naive'):.3f}",
            f"{scores.mean('coverage'):.1%}",
        )
    return table
