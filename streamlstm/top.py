"""``streamlstm top`` and ``streamlstm status``: how a daemon is, now and from second to second."""

import argparse
import math
import time
from collections import deque
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

import msgspec
from rich.console import Console, Group
from rich.live import Live
from rich.text import Text

from streamlstm.config import ConfigError
from streamlstm.terminal import (
    LeavingConsole,
    byte_size,
    printable,
    short_time,
    sparkline,
    when,
)
from streamlstm.vitals import Daemon, Scrape, Vitals, VitalsError, password_of, vitals

EVERY = 1.0
"""Seconds from one look at the daemon to the next."""
_LABEL = 12
"""Characters before what is told."""
_VALUE = 14
"""Characters of a figure beside its sparkline."""
_LOOK = 0.1
"""Seconds after which a window of another size is drawn anew."""


def top(options: argparse.Namespace) -> None:
    """``streamlstm top``."""
    daemon, console = _daemon(options), LeavingConsole()
    before = daemon.scrape()
    if options.once:
        time.sleep(EVERY)
        now = vitals(daemon.scrape(), before)
        if options.json:
            _print_json(daemon, now)
        else:
            _print(console, [*_head(daemon, now), *_lines(now)])
    elif options.json or not console.draws:
        while True:
            time.sleep(EVERY)
            before, now = _next(daemon, before)
            if options.json:
                _print_json(daemon, now)
            else:
                print(_one_line(now), flush=True)
    else:
        _live(console, daemon, before)


def status(options: argparse.Namespace) -> int:
    """``streamlstm status``: 0 where the daemon is ready, else 1."""
    daemon = _daemon(options)
    try:
        before = daemon.scrape()
        time.sleep(EVERY)
        now = vitals(daemon.scrape(), before)
    except VitalsError as error:
        if not options.json:
            raise
        print(
            msgspec.json.encode({"url": daemon.url, "ready": False, "error": str(error)}).decode()
        )
        return 1
    if options.json:
        _print_json(daemon, now)
    else:
        _print(LeavingConsole(), [*_head(daemon, now), *_lines(now, brief=True)])
    return 0 if now.ready else 1


def _daemon(options: argparse.Namespace) -> Daemon:
    if options.user is None and options.password_file:
        raise ConfigError(f"--password-file {options.password_file}: give the name by --user")
    password = "" if options.user is None else password_of(options.user, options.password_file)
    return Daemon(
        options.url,
        user=options.user,
        password=password,
        ca=options.ca,
        cert=options.cert,
        cert_key=options.cert_key,
    )


def _next(daemon: Daemon, before: Scrape) -> tuple[Scrape, Vitals]:
    scrape = daemon.scrape()
    return scrape, vitals(scrape, before)


def _print_json(daemon: Daemon, now: Vitals) -> None:
    said: dict[str, Any] = {"url": daemon.url} | now._asdict()
    print(msgspec.json.encode(said).decode(), flush=True)  # NaN is null


def _print(console: Console, lines: list[Text]) -> None:
    for each in lines:
        console.print(each, soft_wrap=True)


def _one_line(now: Vitals) -> str:
    return (
        f"{datetime.now(UTC):%Y-%m-%d %H:%M:%S} {'ready' if now.ready else 'not ready'},"
        f" in {_count(now.received_rate)}/s, out {_count(now.published_rate)}/s,"
        f" p50 {short_time(now.p50)}, p99 {short_time(now.p99)},"
        f" dropped {_count(sum(now.dropped.values()))}, lag {short_time(now.lag)},"
        f" pending {_count(now.pending)}, series {_count(now.series)}"
    )


def _live(console: LeavingConsole, daemon: Daemon, before: Scrape) -> None:
    """Draw it each second; go on where the daemon is away for a while."""
    past = deque([vitals(before)], 120)
    lost, seen = "", time.monotonic()
    try:
        with Live(console=console, screen=True, auto_refresh=False) as live:
            due = time.monotonic()
            while True:
                size = console.size
                live.update(_screen(daemon, past, _away(lost, seen), size.width), refresh=True)
                due = max(due + EVERY, time.monotonic())
                while (left := due - time.monotonic()) > 0 and console.size == size:
                    time.sleep(min(left, _LOOK))
                if left > 0:
                    due -= EVERY
                    continue
                try:
                    before, now = _next(daemon, before)
                    past.append(now)
                    lost, seen = "", time.monotonic()
                except VitalsError as error:
                    lost = str(error).removeprefix(f"{daemon.url}: ")
    finally:
        _print(console, [*_head(daemon, past[-1], _away(lost, seen)), *_lines(past[-1])])


def _away(lost: str, seen: float) -> str:
    """For how long there was no answer, and why; "" where there is one."""
    return lost and f"no answer for {short_time(time.monotonic() - seen)}: {printable(lost)}"


def _screen(daemon: Daemon, past: "deque[Vitals]", away: str, width: int) -> Group:
    now = past[-1]
    room = width - _LABEL - _VALUE
    sparks = {
        "in": [each.received_rate for each in past],
        "out": [each.published_rate for each in past],
        "p99": [each.p99 for each in past],
    }
    drawn = {label: sparkline(values[-room:], 0.0) for label, values in sparks.items() if room > 0}
    lines = [*_head(daemon, now, away), *_lines(now, drawn)]
    for each in lines:
        each.no_wrap, each.overflow = True, "ellipsis"
    return Group(*lines)


def _head(daemon: Daemon, now: Vitals, away: str = "") -> list[Text]:
    said = Text(f"{daemon.url} ")
    if away:
        return [said.append("away", "bold red"), Text(away, "bold red")]
    said.append("ready" if now.ready else "not ready", "bold green" if now.ready else "bold red")
    if math.isfinite(now.since):
        started = when(round(now.since * 1e9))
        said.append(f", up {short_time(now.uptime)}, since {started} UTC", "dim")
    return [said]


def _lines(
    now: Vitals, sparks: Mapping[str, str] | None = None, *, brief: bool = False
) -> list[Text]:
    """What is told, a line each; a few of them where ``brief``."""
    told: dict[str, tuple[str, str]] = {
        "model": (_model(now.model), ""),
        "in": (f"{_count(now.received_rate)}/s", ""),
        "out": (f"{_count(now.published_rate)}/s", ""),
        "p50": (short_time(now.p50), ""),
        "p99": (short_time(now.p99), ""),
        "dropped": (_drops(now), "yellow" if now.dropped else ""),
        "waiting": (f"{_count(now.pending)} ticks, the latest is {short_time(now.lag)} old", ""),
        "series": (f"{_count(now.series)} in {byte_size(now.state_bytes)}", ""),
        "process": (f"{byte_size(now.resident_bytes)}, {100 * now.cores:.0f} % of a core", ""),
        "forecasts": (_quality(now), ""),
        "checkpoint": (f"{short_time(max(1.0, now.checkpoint_age))} ago", ""),
        "counted": (
            ", ".join(f"{_count(n)} {name.replace('_', ' ')}" for name, n in now.counted.items()),
            "yellow",
        ),
    }
    if not math.isfinite(now.checkpoint_age):
        told["checkpoint"] = ("none yet", "")
    if not math.isfinite(now.cores):
        told["process"] = (byte_size(now.resident_bytes), "")
    lines = []
    for label, (value, style) in told.items():
        if not value or (brief and label in ("waiting", "process", "forecasts", "counted")):
            continue
        said = Text().append(f"{label:<{_LABEL}}", "dim")
        spark = (sparks or {}).get(label, "")
        said.append(f"{printable(value):<{_VALUE if spark else 0}}", style).append(spark, "cyan")
        lines.append(said)
    return lines


def _count(value: float) -> str:
    return f"{value:,.0f}" if math.isfinite(value) else "–"


def _model(model: Mapping[str, str]) -> str:
    if not model:
        return "none yet"
    named = ("model", "layers", "cell", "hidden", "horizon", "backend")
    model_id, layers, cell, hidden, horizon, backend = (model.get(name, "?") for name in named)
    return f"{model_id}: {layers} x {cell.upper()} of {hidden}, {horizon} steps ahead, {backend}"


def _drops(now: Vitals) -> str:
    if not now.dropped:
        return "none"
    reasons = sorted(now.dropped.items(), key=lambda item: -item[1])
    told = ", ".join(f"{_count(count)} {reason}" for reason, count in reasons)
    return told + f" ({_count(now.dropped_rate)}/s)" * (now.dropped_rate > 0)


def _quality(now: Vitals) -> str:
    """Coverage and error of the first and the last step that are scored, since the start."""
    steps = sorted(now.coverage, key=int)
    told = []
    for step in dict.fromkeys([*steps[:1], *steps[-1:]]):
        said = f"{step} ahead: {now.coverage[step]:.1%} within the interval"
        if step in now.over_last_value:
            said += f", {now.over_last_value[step]:.3f} of the last value's error"
        told.append(said)
    return "; ".join(told)
