"""What a terminal shows, and how it is spoken to: charts, sparklines, lines, progress."""

import contextlib
import math
import os
import signal
import termios
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.text import Text

Floats = NDArray[np.float64]
_DAY = 86_400 * 10**9
_BY_CALENDAR = {31: "1 month", 91.5: "3 months", 92: "3 months", 365: "1 year"}
"""Median spacing of dates by days."""
_BARS = "▁▂▃▄▅▆▇█"
_LEAVING = (signal.SIGTSTP, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT)
"""Signals that stop or end a process, and leave its terminal as it is at the moment."""


def printable(text: str) -> str:
    """``text`` on one line, harmless to a terminal: what is not printable becomes U+FFFD."""
    return "".join(c if c.isprintable() else "\ufffd" for c in text)


class LeavingConsole(Console):
    """A console that is left in order, by whom it is read or by us.

    A reader that leaves is for :func:`streamlstm.cli.main` to settle. Signals that stop us or end
    us while pictures are drawn find the terminal as it was before them.
    """

    @property
    def draws(self) -> bool:
        """Whether one picture may follow another: in a terminal that can, and is ours now."""
        if not self.file.isatty() or not self.is_terminal or self.is_dumb_terminal:
            return False
        try:
            return os.tcgetpgrp(self.file.fileno()) == os.getpgrp()
        except OSError:  # nobody's
            return True

    def on_broken_pipe(self) -> None:
        """Called where Rich would leave with 1."""
        raise BrokenPipeError

    def show_cursor(self, show: bool = True) -> bool:
        """Called by Rich, without ``show`` before it draws, with it after that."""
        if not show:
            self._take(signal.SIG_DFL, self._leave)
        shown = super().show_cursor(show)
        if show:
            self._take(self._leave, signal.SIG_DFL)
        return shown

    def _take(self, before: object, after: Any) -> None:
        for number in _LEAVING:
            if signal.getsignal(number) == before:
                signal.signal(number, after)

    def _leave(self, number: int, _: object) -> None:
        """Stop or end, as the signal says; whoever goes on goes on to draw."""
        elsewhere = self.is_alt_screen
        self._steer(b"\x1b[?25h" + b"\x1b[?1049l" * elsewhere)
        signal.signal(number, signal.SIG_DFL)
        signal.raise_signal(number)
        with contextlib.suppress(termios.error):
            termios.tcdrain(self.file.fileno())  # stops us once more where we are in the background
        signal.signal(number, self._leave)
        self._steer(b"\x1b[?1049h" * elsewhere + b"\x1b[?25l")

    def _steer(self, control: bytes) -> None:
        with contextlib.suppress(OSError):  # the terminal may be gone
            os.write(self.file.fileno(), control)


def print_lines(console: Console, text: str, style: str = "") -> None:
    """Print lines as they stand: names and paths hold neither markup nor control sequences."""
    for line in text.split("\n"):
        console.print(Text(printable(line), style), soft_wrap=True)


def sparkline(values: Sequence[float], low: float | None = None) -> str:
    """One character a value, from ``low``, or else the least; a space where it is not finite."""
    array = np.array(values, np.float64)
    finite = array[np.isfinite(array)]
    if not len(finite):
        return " " * len(array)
    low = finite.min() if low is None else low
    span = finite.max() - low or 1.0
    return "".join(
        _BARS[int((v - low) / span * (len(_BARS) - 1) + 0.5)] if np.isfinite(v) else " "
        for v in array
    )


def number(value: float) -> str:
    """Six digits; a dash where it is not known."""
    return f"{value:,.6g}" if math.isfinite(value) else "–"


def short_time(seconds: float) -> str:
    """A span of time in two or three digits, or in its two largest units; a dash: not known."""
    if not math.isfinite(seconds):
        return "–"
    for limit, unit in ((1e-3, 1e-6), (1.0, 1e-3), (100.0, 1.0)):
        if seconds < limit:
            value = max(0.0, seconds) / unit
            name = {1e-6: "us", 1e-3: "ms"}.get(unit, "s")
            return f"{value:.{int(0 < value < 10)}f} {name}"
    for size, large, part, small in ((86_400, "d", 3600, "h"), (3600, "h", 60, "min")):
        if seconds >= size:
            return f"{seconds // size:.0f} {large} {seconds % size // part:.0f} {small}"
    return f"{seconds // 60:.0f} min {seconds % 60 // 1:.0f} s"


def exact_time(ns: int) -> str:
    """A span between ticks, exactly, in the largest unit of which it has one: "1.5 h".

    As many days as most months, quarters or years have are called so.
    """
    if named := _BY_CALENDAR.get(ns / _DAY):
        return named
    units = (_DAY, "day"), (_DAY // 24, "h"), (60 * 10**9, "min"), (10**9, "s"), (10**6, "ms")
    size, unit = next((each for each in units if ns >= each[0]), (10**3, "us"))
    return f"{ns / size:g} {unit}{'s' * (unit == 'day' and ns != size)}"


def steps_ahead(horizon: int, step_ns: int) -> str:
    """How far forecasts reach: "24 steps of 1 h"; "24 ticks" where these are on no grid (0)."""
    what = "step" if step_ns else "tick"
    return f"{horizon} {what}{'s' * (horizon > 1)}" + f" of {exact_time(step_ns)}" * bool(step_ns)


def byte_size(count: float) -> str:
    """Bytes in three digits and their unit, of powers of 1,000; a dash: not known."""
    if not math.isfinite(count):
        return "–"
    power = min(int(math.log10(max(count, 1))) // 3, 4)
    return f"{count / 1000**power:.3g} {('B', 'kB', 'MB', 'GB', 'TB')[power]}"


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
