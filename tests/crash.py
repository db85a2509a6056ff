"""A daemon that is killed again and again, beside an engine that never was.

Ticks of a series come hour by hour, and what each says follows from its series and hour, so that
the number of ticks that a series has seen tells which they were.
"""

import contextlib
import random
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from streamlstm import offline
from streamlstm.config import Config
from streamlstm.engine import Engine
from streamlstm.model import load_model
from streamlstm.ticks import Keys, Ticks
from streamlstm.wire.peer import decode_prediction, encode_tick
from tests.daemon import Client, start
from tests.models import HOUR

NAMES = [b"s%d" % k for k in range(7)]
SERIES = 50
"""For which there is room."""

Published = dict[tuple[bytes, int], bytes]
"""Forecasts received: series, time of the tick -> the bits of its numbers."""


class DivergenceError(AssertionError):
    """A bit that is not as it would be had nothing happened; the message says which."""


def value_of(name: bytes, tick: int) -> float:
    return float(np.sin(NAMES.index(name) + 0.1 * tick * tick))


def message(name: bytes, tick: int) -> bytes:
    ts, values = (1 + tick) * HOUR, [value_of(name, tick)]
    (frame,) = encode_tick("binary", name.decode(), ts, values)
    return frame


def options_of(state: Path, **changed: Any) -> dict[str, Any]:
    """Of a daemon that checkpoints to ``state``, by dotted name; segments are short."""
    return {
        "checkpoint.path": state,
        "checkpoint.interval": 0.05,
        "input.format": "binary",
        "input.kind": "pull",
        "output.format": "binary",
        "engine.max_batch": 16,
        "engine.max_series": SERIES,
        "engine.threads": 1,
        "journal.durability": "strict",
        "journal.segment_bytes": 1 << 16,
    } | changed


def recover(model: Path, state: Path) -> Engine:
    """What a start makes of the files, in this process; they are only read."""
    config = Config.model_validate({
        "model": model,
        "engine": {"max_batch": 16, "max_series": SERIES, "threads": 1},
        "checkpoint": {"path": state},
    })  # fmt: skip
    return offline.run(config, state).engine


def seen_by(engine: Engine) -> dict[bytes, int]:
    """Ticks taken of each series."""
    names, fields = offline.state_of(engine)
    return dict(zip(names, fields["seen"].tolist(), strict=True))


class Truth:
    """An engine that takes the same ticks in the same order, and is never killed."""

    def __init__(self, model: Path) -> None:
        self._model = model
        self._restart()

    def _restart(self) -> None:
        self.engine = Engine(load_model(self._model), max_series=SERIES, max_batch=16, threads=1)
        self.taken: dict[bytes, int] = {}
        self.forecasts: Published = {}

    def reach(self, seen: Mapping[bytes, int]) -> None:
        """Step each series until it has seen so many ticks; back only by beginning anew."""
        if any(seen.get(name, 0) < count for name, count in self.taken.items()):
            self._restart()
        for name, count in seen.items():
            for tick in range(self.taken.get(name, 0), count):
                self._step(name, tick)

    def _step(self, name: bytes, tick: int) -> None:
        slots = self.engine.series.lookup(Keys.of([name]))
        values = np.array([[value_of(name, tick)]])
        ts = np.array([(1 + tick) * HOUR])
        out = self.engine.step(Ticks(slots, ts, values, np.zeros(1, np.uint8)), 0)
        bits = out.point[0].tobytes() + out.quantiles[0].tobytes() + out.seq.tobytes()
        self.forecasts[name, int(ts[0])] = bits
        self.taken[name] = tick + 1

    def check(
        self,
        recovered: Engine,
        sent: Mapping[bytes, int],
        published: Published,
        needed: Mapping[bytes, int],
    ) -> dict[bytes, int]:
        """Compare a recovered engine with this one; how many ticks it has seen of each series.

        Args:
            recovered: to be what this one is after as many ticks.
            sent: ticks of each series that there were to be taken.
            published: forecasts that were received, as :func:`forecast_of` gives them.
            needed: ticks of each series that must not have been lost.

        Raises:
            DivergenceError: it is not.
        """
        seen = seen_by(recovered)
        for name, count in seen.items():
            if count > sent.get(name, 0):
                raise DivergenceError(
                    f"{name!r} has seen {count} ticks of {sent.get(name, 0)} sent"
                )
        for name, count in needed.items():
            if count > seen.get(name, 0):
                raise DivergenceError(
                    f"{name!r} has {seen.get(name, 0)} ticks; {count} were on disk"
                )
        self.reach(seen)
        if found := offline.difference(recovered, self.engine):
            raise DivergenceError(found)
        for key, bits in published.items():
            if self.forecasts.get(key, bits) != bits:
                raise DivergenceError(f"the forecast of {key} differs")
        return seen


def forecast_of(frame: bytes) -> tuple[tuple[bytes, int], bytes]:
    """Series and time of a prediction, and its numbers' bits."""
    said = decode_prediction("binary", [frame])
    interval = said.lower.tobytes() + said.upper.tobytes()
    bits = said.forecast.tobytes() + interval + np.int64(said.seq).tobytes()
    return (said.series.encode(), said.ts_ns), bits


def latest(published: Published) -> dict[bytes, int]:
    """Ticks of each series up to the last that a forecast was received of."""
    needed: dict[bytes, int] = {}
    for name, ts in published:
        needed[name] = max(needed.get(name, 0), ts // HOUR)
    return needed


class Victim:
    """A state on disk, the daemons that go on from it, and what was sent and received so far."""

    def __init__(self, folder: Path, model: Path, seed: int = 0, **options: Any) -> None:
        self.folder, self.model = folder, model
        self.state = folder / "state"
        self.options = options_of(self.state, **options)
        self.chance = random.Random(seed)
        self.truth = Truth(model)
        self.seen: dict[bytes, int] = {}
        self.sent: dict[bytes, int] = {}

    def send(self, client: Client, count: int) -> None:
        """Ticks of random series, each series' in order."""
        for _ in range(count):
            name = self.chance.choice(NAMES)
            client.send(message(name, self.sent.get(name, 0)))
            self.sent[name] = self.sent.get(name, 0) + 1

    def kill_under_load(self, within: float = 0.15, before: str = "") -> Published:
        """Kill it at a random moment so many seconds from the first tick; what it had published.

        With ``before``, Python that it executes first, it may end earlier of itself.
        """
        published: Published = {}
        over = threading.Event()

        def feed() -> None:
            while not over.wait(0.001):
                self.send(client, 50)

        with (
            start(self.folder, self.model, before=before, **self.options) as daemon,
            Client(daemon, push=True) as client,
        ):
            sender = threading.Thread(target=feed)
            sender.start()
            killed = time.monotonic() + self.chance.uniform(0, within)
            while (left := killed - time.monotonic()) > 0 and daemon.process.poll() is None:
                if client.sink.poll(1000 * min(left, 0.01)):
                    published.update([forecast_of(client.sink.recv())])
            daemon.process.kill()
            over.set()
            sender.join()
            daemon.process.wait(10)
            while client.sink.poll(20):
                published.update([forecast_of(client.sink.recv())])
        return published

    def kill_at_start(self) -> None:
        """Kill it at a random moment while it recovers, or soon after."""
        after = self.chance.uniform(0, 0.4)
        shot = f"import os, threading\nthreading.Timer({after}, os.kill, (os.getpid(), 9)).start()"
        with (
            contextlib.suppress(AssertionError),  # it ended before it was ready
            start(self.folder, self.model, before=shot, **self.options) as daemon,
        ):
            daemon.process.wait(30)

    def verify(self, published: Published) -> int:
        """Recover what is on disk, compare, and go on from there; ticks that were new.

        Raises:
            DivergenceError: something is lost, or other than it would be.
        """
        before = sum(self.seen.values())
        strict = self.options["journal.durability"] == "strict"
        needed = dict(self.seen)
        for name, count in latest(published).items() if strict else ():
            needed[name] = max(count, needed.get(name, 0))
        recovered = recover(self.model, self.state)
        self.seen = self.truth.check(recovered, self.sent, published, needed)
        self.truth.forecasts.clear()
        self.sent = dict(self.seen)  # what was lost on its way comes again
        return sum(self.seen.values()) - before
