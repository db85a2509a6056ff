"""``streamlstm watch``: predictions as they come, a line each, or a table that is drawn anew.

The table counts every prediction, and reads whole only those that it shows, at most ``REDRAWN``
times a second: at 100,000 a second it is the drawing that is left out.
"""

import argparse
import gc
import json
import sys
import time
from array import array
from collections import OrderedDict, deque
from itertools import pairwise

import msgspec
from rich.cells import cell_len
from rich.console import Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from streamlstm.client import AT_ONCE, MOST_FOLLOWED, Continuity, Listener
from streamlstm.terminal import LeavingConsole, number, printable, short_time, sparkline, when
from streamlstm.wire.peer import Glance, Prediction, glance_at

REDRAWN = 10
"""Times a second at most."""
_GATHERED = 0.005
"""Seconds left for more to come, where fewer did: to take them in ones and twos costs more."""
WAITING = 100_000
"""Messages that may wait here to be taken; where more come, numbers are seen to be missing."""
MOST_SERIES = 100_000
"""Series of which recent forecasts are kept, some 500 bytes each; for one more, all are let go."""
MOST_SHOWN = 1000
"""Rows at most, of which the latest prediction is kept."""
RECENT = 16
"""Forecasts in a sparkline."""
_AHEAD = 24
_COLUMNS = ("series", "time (UTC)", "next", "lower", "upper", "recent", "ahead", "age")
_RIGHT = ("next", "lower", "upper", "age")
_APART = 2
_GIVES_WAY = (("ahead",), ("lower", "upper"), ("time (UTC)",), ("recent",), ("age",))
"""Columns that a narrow terminal lacks, the first one first."""
_NAME = 24
"""Characters of a name that are shown in any case, before columns are."""


def watch(options: argparse.Namespace) -> None:
    """``streamlstm watch``."""
    listener = Listener(
        options.endpoint,
        options.format,
        options.prefix,
        key=options.key,
        server_key=options.server_key,
        most_waiting=WAITING,
    )
    try:
        listener.wait(options.wait)
        which = f", the series {options.prefix}..." * bool(options.prefix)
        said = printable(f"watching {options.endpoint}{which}; Ctrl-C ends it")
        print(said, file=sys.stderr, flush=True)
        found = listener.catch_up(options.snapshot, options.wait) if options.snapshot else []
        first = [glance_at(prediction) for prediction in found]
        console = LeavingConsole()
        if options.json or not console.draws:
            _lines(listener, options, first)
        else:
            _table(console, listener, options, first)
    finally:
        listener.close()


def line(prediction: Prediction) -> str:
    """Time, series, and of the first step ahead forecast, lower and upper."""
    first = ", ".join(f"{part[0, 0]:.6g}" for part in prediction[2:5])
    return f"{when(prediction.ts_ns)} {printable(prediction.series)} {first}"


def json_line(prediction: Prediction) -> str:
    """All of it, as the daemon's own JSON has it."""
    said = prediction._asdict()
    further = [interval._asdict() for interval in said.pop("intervals")]
    for part in (said, *further):
        for name in {"forecast", "lower", "upper"} & part.keys():
            steps = part[name]
            part[name] = (steps[:, 0] if steps.shape[1] == 1 else steps).tolist()
    said |= {"intervals": further} if further else {}
    said |= {"quality": quality} if (quality := dict(said.pop("quality"))) else {}
    ts = {"series": said.pop("series"), "ts": prediction.ts_ns / 1_000_000_000}
    return msgspec.json.encode(ts | said).decode()  # NaN is null


def _json(seen: Glance) -> str:
    """The daemon's own, if that is JSON; one line, in which what steers a terminal is escaped."""
    if seen.format == "json" and not isinstance(seen.message, Prediction):
        text = seen.message[1].decode().replace("\n", " ").replace("\r", " ")
    else:
        text = json_line(seen.whole())
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else json.dumps(c)[1:-1] for c in text)


def _lines(listener: Listener, options: argparse.Namespace, first: list[Glance]) -> None:
    left = options.count or -1
    continuity = Continuity()
    while left:
        for each in first or listener.take(3600):
            if missed := continuity.broken(each):
                print(printable(missed), file=sys.stderr, flush=True)
            print(_json(each) if options.json else line(each.whole()))
            left -= 1
            if not left:
                break
        sys.stdout.flush()
        first = []


# --- the table ------------------------------------------------------------------------------------


def _table(
    console: LeavingConsole, listener: Listener, options: argparse.Namespace, first: list[Glance]
) -> None:
    board = Board()
    drawn, size, pause = -1.0, console.size, 1 / REDRAWN
    came = first
    gc.set_threshold(100_000, 20, 20)  # thousands come and go at once, and no cycle is among them
    try:
        with Live(console=console, screen=True, auto_refresh=False) as live:
            while left := options.count - board.count if options.count else -1:
                board.add(came[:left] if left > 0 else came)
                now, before, size = time.monotonic(), size, console.size
                idle = not came and size == before
                if now >= drawn + (1 if idle else pause):
                    live.update(board.view(*size), refresh=True)
                    drawn = time.monotonic()
                    pause = max(1 / REDRAWN, 4 * (drawn - now))  # a fifth of the time at most
                if len(came) < AT_ONCE:
                    time.sleep(_GATHERED)
                wait = max(0.0, min(1 / REDRAWN, drawn + pause - time.monotonic()))
                came = listener.take(wait)
    finally:
        console.print(board.view(*console.size))  # what was seen last stays when the screen goes


class Board:
    """What was heard of the series: those heard of latest first.

    Attributes:
        count: predictions.
    """

    def __init__(self) -> None:
        """Nothing yet."""
        self.count = 0
        self._continuity = Continuity()
        self._recent: dict[str, array[float]] = {}
        self._latest: OrderedDict[str, tuple[Glance, float]] = OrderedDict()
        self._heard = time.monotonic()
        self._seconds: deque[tuple[float, int]] = deque([(self._heard, 0)], 31)

    def add(self, glances: list[Glance]) -> None:
        """Those that came now, in their order."""
        now, recent, latest = time.monotonic(), self._recent, self._latest
        broken = self._continuity.broken
        for each in glances:
            broken(each)
            past = recent.get(each.series)
            if past is None:
                if len(recent) >= MOST_SERIES:
                    recent.clear()
                past = recent[each.series] = array("d")
            elif len(past) == 2 * RECENT:
                del past[:RECENT]
            past.append(each.next)
        for each in glances[-MOST_SHOWN:]:
            latest[each.series] = each, now
            latest.move_to_end(each.series)
        while len(latest) > MOST_SHOWN:
            latest.popitem(last=False)
        if glances:
            self.count += len(glances)
            self._heard = now

    def view(self, width: int, height: int) -> Group:
        """All in so many columns and lines."""
        now, rows = time.monotonic(), list[dict[str, str]]()
        for name in reversed(self._latest):
            if len(rows) == max(1, height - 3):
                break
            seen, came = self._latest[name]
            rows.append(self._row(seen.whole(), now - came))
        table = Table(box=None, pad_edge=False, padding=(0, _APART, 0, 0), header_style="dim")
        columns = _fitting(rows, width)
        for column, room in columns.items():
            table.add_column(
                column,
                justify="right" if column in _RIGHT else "left",
                no_wrap=True,
                overflow="ellipsis",
                max_width=room,
            )
        for row in rows:
            table.add_row(*(Text(row[column]) for column in columns))
        return Group(table, self._summary(now, width))

    def _row(self, prediction: Prediction, age: float) -> dict[str, str]:
        ahead = prediction.forecast[:_AHEAD, 0].tolist()
        recent = self._recent.get(prediction.series, array("d"))[-RECENT:]
        return {
            "series": printable(prediction.series),
            "time (UTC)": when(prediction.ts_ns),
            "next": number(prediction.forecast[0, 0]),
            "lower": number(prediction.lower[0, 0]),
            "upper": number(prediction.upper[0, 0]),
            "recent": sparkline(recent),
            "ahead": sparkline(ahead),
            "age": short_time(age) if age >= 1 else "now",
        }

    def _summary(self, now: float, width: int) -> Text:
        """Rate, number of series, what was missed; where there is no room, first the past rates."""
        if now >= self._seconds[-1][0] + 1:
            self._seconds.append((now, self.count))
        seconds = self._seconds
        rates = [
            (count - before) / (at - then) for (then, before), (at, count) in pairwise(seconds)
        ]
        missing = self._continuity
        rate = rates[-1] if rates else self.count / max(now - seconds[0][0], 0.1)
        told = Text()
        if missing.gaps:
            gaps = f"{missing.gaps:,} gap{'s' * (missing.gaps > 1)} of seq"
            told.append(f"  {missing.missed:,} missed in {gaps}", "bold yellow")
        if missing.restarts:
            times = f"{missing.restarts:,} time{'s' * (missing.restarts > 1)}"
            told.append(f"  daemon started anew {times}", "yellow")
        if now > self._heard + 5:
            told.append(f"  silent for {short_time(now - self._heard)}", "yellow")
        told.append(f"  {missing.series:,}{'+' * (missing.series == MOST_FOLLOWED)} series")
        told.append(f"  {self.count:,} predictions")
        if not missing.gaps:
            told.append("  no gaps in seq", "dim")
        said = Text(no_wrap=True, overflow="ellipsis").append(f"{rate:,.0f}/s", "bold")
        room = max(0, width - said.cell_len - 1 - told.cell_len)
        if room:
            said.append(" ").append(sparkline(rates[-room:], 0.0), "cyan")
        return said.append(told)


def _fitting(rows: list[dict[str, str]], width: int) -> dict[str, int]:
    """The columns for which there is room, and the width of each."""
    widths = {
        column: max([cell_len(column), *(cell_len(row[column]) for row in rows)])
        for column in _COLUMNS
    }
    longest = widths["series"]
    widths["series"] = min(longest, _NAME)
    for columns in ((), *_GIVES_WAY):
        widths = {column: room for column, room in widths.items() if column not in columns}
        left = width - sum(widths.values()) - _APART * (len(widths) - 1)
        if left >= 0:
            break
    widths["series"] = max(1, min(longest, widths["series"] + left))
    return widths
