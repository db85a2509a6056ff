"""The live page: what it is told, and the names that are searched for it.

    /live                the page; its files lie in ``page/`` and are served below /live/
    /live/now?of=...     how the daemon does, and the series named, as they are now
    /live/find?q=...     the series whose names hold a text, those first that begin with it

The page asks again each second, and for what it shows alone: ``of`` is ``KNOWN.TARGET.NAME``, of
which ``KNOWN`` is the number of ticks that it has of that series, so that it gets what came since;
``events`` is the number of the last line of the log that it has, and ``about`` what it was told of
the daemon that it knows. Times are seconds since the epoch; what is not known is null.

All of it is answered by the thread of the HTTP server, which only looks at the engine's arrays
while the loop goes on: nothing is asked of the loop, and nothing waits for another. A series is one
record, copied at once; where a tick is just moving it, it is looked at again, now or a second
later. Names are copied into one text, which is searched a piece at a time, so that the interpreter
is never held for long.
"""

import os
import secrets
import time
from collections.abc import Callable, Iterator
from http import HTTPStatus
from importlib import resources
from itertools import islice
from typing import Any
from urllib.parse import parse_qsl

import msgspec
import numpy as np
from numpy.typing import NDArray

from streamlstm import logs
from streamlstm.engine import Engine
from streamlstm.index import CLOSING
from streamlstm.metrics import LATENCIES, Metrics
from streamlstm.watch import INSIDE, LAST, MODEL, SEASONAL
from streamlstm.web import Answer

MOST_FOUND = 50
"""Names told of those found."""
MOST_SHOWN = 16
"""Series told at once."""
MOST_PAST = 512
"""Ticks told of a series' past, at first."""
MOST_SKETCHED = 24
"""Latest values told of a series that was found."""
TRIES = 3
"""How often a record is copied that ticks move meanwhile."""
REST = 20
"""Times as long as it took to take the names, until it is done again."""
ROWS, PIECE = 4096, 1 << 15
"""Names copied, and bytes searched, at once."""
FILES = {
    "": ("index.html", "text/html"),
    "/page.css": ("page.css", "text/css"),
    "/page.js": ("page.js", "text/javascript"),
    "/chart.js": ("chart.js", "text/javascript"),
    "/uPlot.css": ("uPlot.css", "text/css"),
    "/uPlot.js": ("uPlot.js", "text/javascript"),
    "/icon.svg": ("icon.svg", "image/svg+xml"),
}
"""Below /live, and where each lies in ``page/``."""
HEADERS = (
    "Content-Security-Policy: default-src 'none'; script-src 'self'; style-src 'self';"
    " connect-src 'self'; img-src 'self'; base-uri 'none'; form-action 'none';"
    " frame-ancestors 'none'\r\n"
    "X-Content-Type-Options: nosniff\r\n"
    "Referrer-Policy: no-referrer\r\n"
    "Cross-Origin-Opener-Policy: same-origin\r\n"
    "Cross-Origin-Resource-Policy: same-origin\r\n"
    "Cache-Control: no-cache\r\n"
)
COUNTED = ("ticks_received", "predictions_published", "pending_ticks", "event_lag_seconds",
           "series_quarantined", "anomalies", "drifts", "active_series")  # fmt: skip
"""Of the metrics those that the page is told."""


class Live:
    """Answers the page's questions.

    Attributes:
        engine: whose series are shown, with their latest predictions; None: not yet.
    """

    def __init__(self, metrics: Metrics, lines: Callable[[], list[logs.Line]]) -> None:
        """Tell of ``metrics`` and, as events, of the log's latest lines."""
        self.engine: Engine | None = None
        self._metrics, self._lines = metrics, lines
        self._names = Names()
        self._boot = secrets.token_hex(4)
        folder = resources.files("streamlstm") / "page"
        self._files = {
            f"/live{at}".encode(): Answer(
                HTTPStatus.OK, (folder / name).read_bytes(), f"{kind}; charset=utf-8", HEADERS
            )
            for at, (name, kind) in FILES.items()
        }

    def answer(self, path: bytes, query: bytes) -> Answer | None:
        """What is there; None: nothing."""
        if path not in (b"/live/now", b"/live/find"):
            return self._files.get(path)
        if (engine := self.engine) is None:
            return _say({"starting": True}, HTTPStatus.SERVICE_UNAVAILABLE)
        asked = parse_qsl(query.decode("utf-8", "replace"), keep_blank_values=True)
        return _say((self._now if path == b"/live/now" else self._find)(engine, asked))

    def _now(self, engine: Engine, asked: list[tuple[str, str]]) -> dict[str, Any]:
        """How the daemon does, and the series asked for."""
        self._metrics.refresh()
        values, last = self._metrics.values[0], dict(asked)
        seen = int(last["events"]) if _is_number(last.get("events", "")) else 0
        about, lines = f"{self._boot}.{engine.model.id}", self._lines()
        series = [each for name, each in asked if name == "of"][:MOST_SHOWN]
        return {
            "about": about,
            **({} if last.get("about") == about else self._about(engine)),
            "clock": time.monotonic(),
            "time": time.time(),
            "counts": {name: values[name].item() for name in COUNTED},
            "dropped": sum(self._metrics.dropped.values()),
            "evicted": sum(self._metrics.evicted.values()),
            "latency": values["tick_to_publish_seconds"]["counts"].tolist(),
            "scores": list(self._metrics.scores.values()),
            "events": [line for line in lines if line[0] > seen],
            "series": [self._series(engine, *_parts(each)) for each in series],
        }

    def _about(self, engine: Engine) -> dict[str, Any]:
        """What does not change as long as a model serves."""
        spec = engine.model.spec
        roles = [each.name for each in spec.roles[: spec.targets]]
        return {
            "model": engine.model.id,
            "network": f"{spec.layers} × {spec.cell.upper()} of {spec.hidden}",
            "step": spec.step_ns / 1e9,
            "horizon": spec.horizon,
            "season": spec.season,
            "targets": roles or [f"target {k + 1}" for k in range(spec.targets)],
            "coverages": [each for each in engine.coverages if each],
            "scored": list(self._metrics.scores),
            "bounds": LATENCIES,
        }

    def _series(self, engine: Engine, known: int, target: int, name: str) -> dict[str, Any] | None:
        """A series as it is now; None: there is none of that name, or no such target."""
        key, spec = name.encode(), engine.model.spec
        slot = self._names.slot(engine, key)
        if slot is None or not 0 <= target < spec.targets:
            return None
        row = _copied(engine, slot)
        if row is None:
            return {"count": known}
        told: dict[str, Any] = {
            "count": int(row["recent_count"]),
            "heard": int(row["heard"]) / 1e9,
            **_quality(row),
        }
        if known == told["count"] > 0:
            return told
        told["actual"] = _actual(engine, row, target, known)
        if row["latest_seq"] > 0 and row["latest_seq"] == row["seq"]:
            told["ts"] = int(row["latest_ts"]) / 1e9
            told["fan"] = row["latest"][:, :, target].tolist()
        return told

    def _find(self, engine: Engine, asked: list[tuple[str, str]]) -> dict[str, Any]:
        """Names that hold a text, and how those series went lately."""
        found = self._names.find(engine, dict(asked).get("q", "").encode(), MOST_FOUND + 1)
        shown = found[:MOST_FOUND]
        sketches = _sketches(engine, [slot for _, slot in shown])
        return {
            "found": [
                {"name": key.decode("utf-8", "replace"), "sketch": sketch}
                for (key, _), sketch in zip(shown, sketches, strict=True)
            ],
            "more": len(found) > MOST_FOUND,
            "active": engine.series.active,
        }


class Names:
    """The names of all series in one text, in lower case, to be searched."""

    def __init__(self) -> None:
        """Nothing was looked at."""
        self._counts: list[int] = []
        self._looked, self._took = -np.inf, 0.0
        self._text = b"\0"
        self._starts = self._slots = np.zeros(0, np.int64)
        self._known: dict[bytes, int | None] = {}

    def find(self, engine: Engine, text: bytes, most: int) -> list[tuple[bytes, int]]:
        """At most ``most`` names and slots, of names that hold ``text``, whatever its case.

        First those that begin with it, and in alphabetical order.
        """
        self._refresh(engine)
        begins = text.lower()
        if b"\0" in text:
            return []
        rows = [*islice(self._rows(begins), most)]
        if len(rows) == most:  # there may be more, of which those that begin with it come first
            rows = [*dict.fromkeys([*islice(self._rows(b"\0" + begins), most), *rows])][:most]
        named = ((_key(engine, slot), slot) for slot in self._slots[rows].tolist())
        return sorted(
            (each for each in named if each[0]),
            key=lambda each: (not each[0].lower().startswith(begins), each),
        )

    def slot(self, engine: Engine, key: bytes) -> int | None:
        """Where the series of that name is."""
        slot = self._known.get(key)
        if slot is not None and _key(engine, slot) == key:
            return slot
        self._refresh(engine)
        if slot is None and key in self._known:
            return None  # as it was before, and no name came since
        sought = b"\0" + key.lower() + b"\0"
        slots = (int(self._slots[row]) for row in self._rows(sought)) if b"\0" not in key else ()
        slot = next((slot for slot in slots if _key(engine, slot) == key), None)
        if len(self._known) > MOST_FOUND * MOST_SHOWN:
            self._known.clear()
        self._known[key] = slot
        return slot

    def _rows(self, sought: bytes) -> Iterator[int]:
        """Rows in which ``sought`` is found, each once."""
        text, at = self._text, 0
        while at < len(text) - 1:  # what ends the last name begins none
            os.sched_yield()  # the loop first, where both want one core
            end = at + PIECE + len(sought)
            found = text.find(sought, at, end)
            if found < 0:
                at += PIECE
            else:
                row = int(np.searchsorted(self._starts, found, "right")) - 1
                if 0 <= row < len(self._slots):
                    yield row
                at = text.find(b"\0", found + 1)  # the next row
                at = len(text) if at < 0 else at

    def _refresh(self, engine: Engine) -> None:
        """Take the names anew where some came or went, but not again and again."""
        counts, now = engine.series.index.counts.tolist(), time.monotonic()
        counts[CLOSING] = 0
        if counts == self._counts or now < self._looked + REST * self._took:
            return
        names, used = engine.series.names, engine.series.used
        parts, slots, lengths = [], [np.zeros(0, np.int64)], [np.zeros(0, np.int64)]
        for begin in range(0, used, ROWS):
            there = begin + np.flatnonzero(names.lengths[begin : min(begin + ROWS, used)])
            long = names.lengths[there].astype(np.int64)
            wide = int(long.max(initial=0))
            lines = np.zeros((len(there), 1 + wide), np.uint8)
            lines[:, 1:] = names.text[there, :wide]
            parts.append(lines[np.arange(1 + wide) <= long[:, None]].tobytes().lower())
            slots.append(there)
            lengths.append(long)
        after = np.cumsum(np.concatenate(lengths) + 1)
        self._text, self._slots = b"".join([*parts, b"\0"]), np.concatenate(slots)
        self._starts = np.concatenate([[0], after[:-1]])[: len(after)]
        self._known.clear()
        self._counts, self._looked, self._took = counts, now, time.monotonic() - now


def _say(told: dict[str, Any], status: HTTPStatus = HTTPStatus.OK) -> Answer:
    body = msgspec.json.encode(told)  # what is not finite is null
    return Answer(status, body, "application/json", HEADERS)


def _parts(asked: str) -> tuple[int, int, str]:
    """How many ticks of it are known, which target is asked for, and the name of a series."""
    known, _, rest = asked.partition(".")
    target, _, name = rest.partition(".")
    numbers = [int(each) if _is_number(each) else -1 for each in (known, target)]
    return numbers[0], numbers[1], name


def _is_number(asked: str) -> bool:
    return asked.isdecimal() and len(asked) < 18


def _key(engine: Engine, slot: int) -> bytes:
    """The name of whoever has a slot; of nobody, nothing."""
    names = engine.series.names
    return names.text[slot, : names.lengths[slot]].tobytes()


def _copied(engine: Engine, slot: int) -> Any:
    """A record as it is between two ticks; None: ticks were moving it whenever it was looked at."""
    table, recent = engine.series.table, engine.work.recent.recent_count
    for _ in range(TRIES):
        before = recent[slot]
        row = table[slot : slot + 1].copy()[0]
        if before == recent[slot] and not 0 < row["latest_seq"] == row["seq"] - 1:
            return row
    return None


def _sketches(engine: Engine, slots: list[int]) -> list[list[float]]:
    """The latest values of each series, at most ``MOST_SKETCHED``."""
    rings, counts = engine.work.recent.recent, engine.work.recent.recent_count[slots]
    most = min(rings.shape[1], MOST_SKETCHED)
    ticks = counts[:, None] - most + np.arange(most)
    rows = rings[np.asarray(slots, np.int64)[:, None], ticks % max(1, rings.shape[1]), 1]
    values = rows.view(np.float64).astype(np.float32).tolist()
    return [each[max(0, most - int(n)) :] for each, n in zip(values, counts, strict=True)]


def _recent(row: Any, target: int, most: int) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """When the latest ticks of a series were, ns since the epoch, and their values: (n,) each."""
    ring, count = row["recent"], int(row["recent_count"])
    many = min(count, len(ring), most)
    rows = ring[np.arange(count - many, count) % max(1, len(ring))]
    return rows[:, 0], rows[:, 1 + target].copy().view(np.float64)


def _actual(engine: Engine, row: Any, target: int, known: int) -> dict[str, Any]:
    """The ticks of a series that are not known: their times and values.

    Of a series of which nothing is known, also those before that the features remember, dated by
    their place on the grid, if none was ever missing.
    """
    count, step = int(row["recent_count"]), engine.model.spec.step_ns
    afresh = not 0 < known <= count
    ts, y = _recent(row, target, count if afresh else count - known)
    whole = row["seen"] == row["place"] + 1  # else what lies at a place may be of long before
    if afresh and step and row["seen"] > 0 and whole and len(row["past"]):
        last, place, past = int(row["last_ts"]), int(row["place"]), row["past"][:, target]
        end = place - round((last - int(ts[0])) / step) if len(ts) else place + 1
        places = np.arange(max(0, place + 1 - len(past), end + len(ts) - MOST_PAST), max(0, end))
        ts = np.concatenate([last - (place - places) * step, ts])
        y = np.concatenate([past[places % len(past)], y])
    return {"t": (ts / 1e9).tolist(), "y": y.tolist(), "afresh": afresh}


def _quality(row: Any) -> dict[str, float | None]:
    """How good the forecasts of a series are, as :mod:`streamlstm.watch` knows it."""
    if "watched" not in row.dtype.names:
        return {}
    averages = row["averages"].tolist()
    _, compared, scored = row["watched"].tolist()
    last, seasonal = averages[LAST], averages[SEASONAL]
    return {
        "scored": scored,
        "covered": averages[INSIDE] if scored else None,
        "over_last": averages[MODEL] / last if compared and last > 0 else None,
        "over_seasonal": averages[MODEL] / seasonal if compared and seasonal > 0 else None,
    }
