"""Pictures of forecasts, as PNG; needs matplotlib (the extra ``plot``)."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from streamlstm.backtest import Actual, Issued, Scores
from streamlstm.svg import Chart
from streamlstm.tables import TITLES

ACROSS = 3
"""Charts in a row."""


class PlotError(RuntimeError):
    """No picture can be made; the message is one line and says the mend."""


def check_plot() -> None:
    """Refuse early what could not be drawn later.

    Raises:
        PlotError: no matplotlib.
    """
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        raise PlotError("pictures need matplotlib: pip install 'streamlstm[plot]'") from None


def plot_charts(path: Path, charts: Sequence[Chart]) -> None:
    """Draw the charts of a report, three a row."""
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    rows = -(-len(charts) // ACROSS)
    figure = Figure(figsize=(5.4 * ACROSS, 3.8 * rows), layout="constrained")
    grid = figure.subplots(rows, ACROSS, squeeze=False).ravel()
    for axes, chart in zip(grid, charts, strict=False):
        for x, lower, upper, colour, how in chart.curves:
            if how == "band":
                axes.fill_between(x, lower, upper, color=colour, alpha=0.22, linewidth=0)
            else:
                axes.plot(x, upper, color=colour, linewidth=1.2, linestyle="--" if how else "-")
        handles = [
            Patch(color=colour, alpha=0.5, label=label)
            if filled
            else Line2D([], [], color=colour, label=label)
            for label, colour, filled in chart.legend
        ]
        axes.legend(handles=handles, fontsize=8, frameon=False)
        axes.set_title(chart.title, fontsize=10, parse_math=False)
        axes.set_xlabel(chart.x_label)
        if chart.from_zero:
            axes.set_ylim(bottom=0)
    for axes in grid[len(charts) :]:
        axes.set_axis_off()
    figure.savefig(path, dpi=110)


def plot_forecasts(
    path: Path, title: str, unit: str, actual: Actual, issued: Issued, scores: Scores
) -> None:
    """Draw one series' forecasts against what came, the last fan, and errors by step."""
    from matplotlib.figure import Figure

    steps = scores.shown
    ahead = steps[len(steps) // 2]
    horizon = issued.point.shape[1]
    figure = Figure(figsize=(12, 7), layout="constrained")
    top, bottom = figure.subplots(2, 1, height_ratios=(3, 1.4))
    shown = slice(-min(len(issued.place), 8 * horizon), None)
    place = issued.place[shown]
    last = place[-1]
    top.fill_between(
        place + ahead, issued.lower[shown, ahead - 1], issued.upper[shown, ahead - 1],
        color="tab:orange", alpha=0.2, linewidth=0, label="interval",
    )  # fmt: skip
    top.plot(place + ahead, issued.point[shown, ahead - 1], color="tab:orange", linewidth=1.2,
             label=f"forecast made {ahead} steps before")  # fmt: skip
    fan = last + np.arange(1, horizon + 1)
    top.fill_between(fan, issued.lower[-1], issued.upper[-1], color="tab:red", alpha=0.15)
    top.plot(fan, issued.point[-1], color="tab:red", linewidth=1.2, label="the latest forecast")
    seen = np.arange(place[0], last + 1)
    top.plot(seen, actual.y[seen], color="tab:blue", linewidth=1.2, label="actual")
    top.axvline(last, color="gray", linewidth=0.8)
    top.set(title=title, ylabel=unit, xlabel="steps since the first tick")
    top.legend(loc="upper left", ncols=4, frameon=False)

    at = np.arange(len(steps))
    middle = (len(scores.names) - 1) / 2
    for i, name in enumerate(scores.names):
        heights = scores.by_step("mae", name)[np.array(steps) - 1]
        bars = bottom.bar(at + 0.27 * (i - middle), heights, 0.25, label=TITLES[name])
        bottom.bar_label(bars, fmt="{:,.4g}", fontsize=8)
    bottom.set_xticks(at, [f"{k} ahead" for k in steps])
    bottom.set(ylabel=f"mean absolute error{f', {unit}' if unit else ''}")
    bottom.margins(y=0.15)
    bottom.legend(frameon=False, ncols=3)
    figure.savefig(path, dpi=120)
