"""``streamlstm publish``: a table as ticks, at the pace of its timestamps or as fast as can be."""

import argparse
import sys
import time
from collections import deque

import msgspec
import numpy as np
from rich.progress import BarColumn, Progress, TextColumn

from streamlstm.client import LINGER, Feed, Pace, in_time_order
from streamlstm.console import how, say
from streamlstm.datasets.bundled import table, table_for
from streamlstm.model_file import load_model
from streamlstm.terminal import LeavingConsole, print_lines, short_time
from streamlstm.transport import TransportError

TOLD = 10.0
"""Seconds from one line on the progress to the next, where no terminal shows a bar."""
_SHOWN = 0.5
"""Seconds from one look at the progress to the next."""
_LATELY = 10
"""Looks over which the rate is taken."""


def publish(options: argparse.Namespace) -> None:
    """``streamlstm publish``."""
    console = LeavingConsole(stderr=True)
    if options.model is None:
        data = table(options.data, **how(options))
    else:
        data = table_for(load_model(options.model).spec, options.data, **how(options))
    say(console, data.notes)
    which, rows = in_time_order(data.series)
    warm = np.array([round(options.warm * len(s.ts)) for s in data.series])
    feed = Feed(
        options.to,
        options.format,
        bind=options.bind,
        key=options.key,
        server_key=options.server_key,
    )
    sent, began, linger = 0, time.monotonic(), 0.0
    try:
        feed.wait(options.wait)
        pace = Pace(options.speed)
        last = max((int(s.ts[-1]) for s in data.series if len(s.ts)), default=0)
        with _Bar(console, len(which)) as bar:
            for i, row in zip(which.tolist(), rows.tolist(), strict=True):
                series, ts = data.series[i], int(data.series[i].ts[row])
                history = row < warm[i]
                while not history and (wait := pace.until(ts)):
                    bar.show(sent, wait + (last - ts) / 1e9 / options.speed)
                    feed.check(min(wait, _SHOWN))
                feed.send(series.name, ts, series.values[row].tolist(), warm=bool(history))
                sent += 1
                if sent % 1000 == 0:
                    bar.show(sent)
                    feed.check()
        feed.check()
        linger = LINGER
    except KeyboardInterrupt:
        linger = LINGER
        raise
    except TransportError as error:
        if not sent:
            raise
        raise TransportError(
            f"{error}; {sent:,} of {len(which):,} ticks were sent, how many came is not known"
        ) from None
    finally:
        feed.close(linger)
        if linger:
            seconds = time.monotonic() - began
            if options.json:
                said = {"sent": sent, "ticks": len(which), "seconds": round(seconds, 3)}
                print(msgspec.json.encode(said).decode())
            else:
                print_lines(
                    console, f"{sent:,} of {len(which):,} ticks published in {seconds:.1f} s"
                )


class _Bar:
    """How far it is: a bar on a terminal, else a line now and then."""

    def __init__(self, console: LeavingConsole, total: int) -> None:
        self._draws, self._total = console.draws, total
        self._bar = Progress(
            TextColumn("publishing"),
            BarColumn(),
            TextColumn("{task.fields[said]}"),
            console=console,
            transient=True,
            disable=not self._draws,
        )
        self._task = self._bar.add_task("", total=total, said="")
        self._next, self._tell = 0.0, time.monotonic() + TOLD
        self._lately: deque[tuple[float, int]] = deque([(time.monotonic(), 0)], _LATELY)

    def __enter__(self) -> "_Bar":
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def show(self, sent: int, left: float | None = None) -> None:
        """So many were sent; it takes ``left`` seconds more, where that is known."""
        now = time.monotonic()
        if now < self._next:
            return
        self._next = now + _SHOWN
        then, before = self._lately[0]
        rate = (sent - before) / max(now - then, 1e-9)
        self._lately.append((now, sent))
        if left is None:
            left = (self._total - sent) / rate if rate else float("inf")
        said = f"{sent:,} of {self._total:,} ticks, {rate:,.0f}/s, {short_time(left)} left"
        self._bar.update(self._task, completed=sent, said=said)
        if not self._draws and now >= self._tell:
            self._tell = now + TOLD
            print(f"published {said}", file=sys.stderr, flush=True)
