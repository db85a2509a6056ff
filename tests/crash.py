"""A daemon that is killed again and again, beside an engine that never was.

Ticks of a series come hour by hour, and what each says follows from its series and hour, so that
the number of ticks that a series has seen tells which they were.
"""

import contextlib
import hashlib
import math
import os
import random
import shutil
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import zmq
from numpy.typing import NDArray

from streamlstm import offline
from streamlstm.checkpoint import CheckpointError
from streamlstm.config import Config
from streamlstm.engine import Engine
from streamlstm.model import Model
from streamlstm.model_file import load_model
from streamlstm.parking import Parking
from streamlstm.segments import JournalError
from streamlstm.ticks import END, Arrivals, Forecasts, Keys, Ticks
from streamlstm.wire.peer import decode_prediction, encode_tick
from tests.daemon import Client, Daemon, start
from tests.disk import Disk, operations
from tests.models import HOUR

NAMES = [b"s%d" % k for k in range(7)]
SERIES = 50
"""For which there is room."""

Published = dict[tuple[bytes, int], bytes]
"""Forecasts received: series, time of the tick -> the bits of its numbers."""
Take = tuple[int, tuple[bytes, int], bytes]
"""One with the time, ns of the monotonic clock, at which it was received."""
Takes = Sequence[Take]


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


IMAGES = """
import os
from streamlstm.parking import Parking
def shown(call):
    def called(self, *given, **more):
        made = call(self, *given, **more)
        self._file.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        with open({path!r} + ".new", "wb") as file:
            file.write(self.path.read_bytes())
            file.flush()
            os.fsync(file)
        os.replace({path!r} + ".new", {path!r})
        folder = os.open(os.path.dirname({path!r}), os.O_RDONLY)
        os.fsync(folder)
        os.close(folder)
        return made
    return called
for name in ("__init__", "park", "forget"):
    setattr(Parking, name, shown(getattr(Parking, name)))
"""
PARKS = {"engine.max_series": 4, "engine.max_batch": 3, "engine.when_full": "evict"}
"""A daemon with room for some of the series; ticks that wait take fewer slots than there are."""


def recover(model: Path, state: Path, parked: Path | None = None) -> Engine:
    """What a start makes of the files, in this process, with those who are parked."""
    config = Config.model_validate({
        "model": model,
        "engine": {"max_batch": 16, "max_series": SERIES, "threads": 1},
        "checkpoint": {"path": state},
    })  # fmt: skip
    engine = offline.run(config, state).engine
    if parked and parked.exists():
        parking, names = Parking(parked, engine), Keys.of(NAMES)
        messages = np.full((len(NAMES), 1), np.nan), np.full(len(NAMES), END)
        arrivals = Arrivals(names, np.zeros(len(NAMES), np.int64), *messages)
        parking.make_way(arrivals, 0, 0)
        assert (parking.refused, parking.failures) == (0, 0)
        parking.close()
    return engine


class Truth:
    """An engine that takes the same ticks in the same order, and is never killed.

    It remembers what each series was after each of its ticks, and each forecast.
    """

    def __init__(self, model: Path) -> None:
        self._model = model
        self.engine = self._open()
        self._after: dict[bytes, list[bytes]] = {}
        self._forecasts: Published = {}

    def _open(self) -> Engine:
        return Engine(load_model(self._model), max_series=SERIES, max_batch=16, threads=1)

    def after(self, name: bytes, count: int) -> bytes:
        """A hash of the state of a series that has seen so many ticks."""
        slots = self.engine.series.lookup(Keys.of([name]))
        known = self._after.setdefault(name, [])
        if not known:
            known.append(_hash(offline.fields_of(self.engine, slots)))
        while len(known) <= count:
            out = _step(self.engine, slots, name, len(known) - 1)
            self._forecasts[name, int(out.ts[0])] = _bits(out, 0)
            known.append(_hash(offline.fields_of(self.engine, slots)))
        return known[count]

    def check(
        self,
        recovered: Engine,
        sent: Mapping[bytes, int],
        takes: Takes,
        needed: Mapping[bytes, int],
    ) -> dict[bytes, int]:
        """Compare a recovered engine with this one; how many ticks it has seen of each series.

        Args:
            recovered: to be what this one is after as many ticks.
            sent: ticks of each series that there were to be taken.
            takes: forecasts that were received.
            needed: ticks of each series that must not have been lost.

        Raises:
            DivergenceError: it is not.
        """
        names, fields = offline.state_of(recovered)
        seen = dict(zip(names, fields["seen"].tolist(), strict=True))
        latest = dict(zip(names, (fields["last_ts"] // HOUR).tolist(), strict=True))
        for name, count in needed.items():
            if count > seen.get(name, 0):
                said = f"{name!r} has {seen.get(name, 0)} ticks, to hour {latest.get(name, 0)}"
                raise DivergenceError(f"{said}; there were {count} on disk")
        for row, (name, count) in enumerate(seen.items()):
            if count > sent.get(name, 0):
                raise DivergenceError(f"{name!r} has {count} ticks of {sent.get(name, 0)} sent")
            state = {field: rows[row : row + 1] for field, rows in fields.items()}
            if _hash(state) != self.after(name, count):
                differ = ", ".join(self._which(name, count, state))
                raise DivergenceError(f"{name!r} after {count} ticks: other bits in {differ}")
        for _, (name, ts), bits in takes:
            self.after(name, ts // HOUR)
            if self._forecasts[name, ts] != bits:
                raise DivergenceError(f"the forecast of {name!r} after {ts // HOUR} ticks differs")
        return seen

    def check_reloaded(
        self,
        recovered: Engine,
        sent: Mapping[bytes, int],
        takes: Takes,
        needed: Mapping[bytes, int],
    ) -> None:
        """Compare an engine of another model of the same shape that took over while ticks came.

        After how many ticks each series was handed over is not known; but there must be such a
        number from which on all is as it would be.

        Raises:
            DivergenceError: there is none.
        """
        names, fields = offline.state_of(recovered)
        received: dict[bytes, Published] = {name: {} for name in names}
        for _, (name, ts), bits in takes:
            received[name][name, ts] = bits
        for row, name in enumerate(names):
            count = int(fields["seen"][row])
            if not needed.get(name, 0) <= count <= sent.get(name, 0):
                raise DivergenceError(f"{name!r} has {count} ticks of {sent.get(name, 0)} sent")
            self.after(name, count)
            right = {key: self._forecasts[key] for key in received[name]}
            mine = _hash({field: rows[row : row + 1] for field, rows in fields.items()})
            for state, forecasts in self._handed_over(name, count, recovered.model):
                followed = {key: forecasts.get(key, bits) for key, bits in right.items()}
                served = [key for key in right if received[name][key] != right[key]]
                if state == mine and all(followed[key] == received[name][key] for key in served):
                    break
            else:
                raise DivergenceError(f"{name!r} after {count} ticks: no number that it went over")

    def _handed_over(
        self, name: bytes, count: int, model: Model
    ) -> Iterator[tuple[bytes, Published]]:
        """What a series is after so many ticks, and its forecasts, if it went over before each."""
        old, room = self._open(), count + 1
        new = Engine(model, max_series=room, max_batch=room, threads=1)
        mine = old.series.lookup(Keys.of([name]))
        new.series.lookup(Keys.of([b"%d" % k for k in range(room)]))
        forecasts: list[Published] = [{} for _ in range(room)]
        for tick in range(room):
            new.set_records(np.array([tick], np.int32), *old.records(mine))
            if tick == count:
                break
            _step(old, mine, name, tick)
            slots = np.arange(tick + 1, dtype=np.int32)
            out = _step(new, slots, name, tick)
            for k in range(len(out.slot)):
                forecasts[out.slot[k]][name, int(out.ts[k])] = _bits(out, k)
        fields = offline.fields_of(new, np.arange(room, dtype=np.int32))
        for slot in range(room):
            state = {name: rows[slot : slot + 1] for name, rows in fields.items()}
            yield _hash(state), forecasts[slot]

    def _which(self, name: bytes, count: int, state: dict[str, NDArray[Any]]) -> list[str]:
        """The fields that differ from those of a series that has seen so many ticks."""
        engine = self._open()
        slots = engine.series.lookup(Keys.of([name]))
        for tick in range(count):
            _step(engine, slots, name, tick)
        right = offline.fields_of(engine, slots)
        return [field for field in state if state[field].tobytes() != right[field].tobytes()]


def _step(engine: Engine, slots: NDArray[np.int32], name: bytes, tick: int) -> Forecasts:
    """Step so many series by the same tick."""
    n = len(slots)
    ts, values = np.full(n, (1 + tick) * HOUR), np.full((n, 1), value_of(name, tick))
    return engine.step(Ticks(slots, ts, values, np.zeros(n, np.uint8)), 0)


def _bits(out: Forecasts, row: int) -> bytes:
    return out.point[row].tobytes() + out.quantiles[row].tobytes() + out.seq[row].tobytes()


def _hash(state: Mapping[str, NDArray[Any]]) -> bytes:
    whole = b"".join(field.tobytes() for field in state.values())
    return hashlib.blake2b(whole, digest_size=16).digest()


def forecast_of(frame: bytes) -> tuple[tuple[bytes, int], bytes]:
    """Series and time of a prediction, and its numbers' bits."""
    said = decode_prediction("binary", [frame])
    interval = said.lower.tobytes() + said.upper.tobytes()
    bits = said.forecast.tobytes() + interval + np.int64(said.seq).tobytes()
    return (said.series.encode(), said.ts_ns), bits


def latest(takes: Takes, before: float = math.inf) -> dict[bytes, int]:
    """Ticks of each series up to the last that a forecast was received of before that time."""
    needed: dict[bytes, int] = {}
    for at, (name, ts), _ in takes:
        if at < before:
            needed[name] = max(needed.get(name, 0), ts // HOUR)
    return needed


class Victim:
    """A state on disk, the daemons that go on from it, and what was sent and received so far."""

    def __init__(
        self, folder: Path, model: Path, seed: int = 0, parks: bool = False, **options: Any
    ) -> None:
        """Begin with nothing in ``folder``; ``options`` of the daemon by dotted name.

        Where it ``parks`` there is less room than series, and they come and go.
        """
        self.folder, self.model = folder, model
        self.chance, self.names = random.Random(seed), NAMES
        self.truth = Truth(model)
        self._options, self._parks = options, parks
        (folder / "disk").mkdir()
        self.go_on(folder / "disk", {})

    def go_on(self, root: Path, seen: dict[bytes, int]) -> None:
        """From what is there now; what was lost on its way will come again."""
        self.root, self.state, self.seen, self.sent = root, root / "state", seen, dict(seen)
        self.parked = root / "parked" if self._parks else None
        parks = PARKS | {"engine.parking": self.parked} if self._parks else {}
        self.options = options_of(self.state, **self._options, **parks)

    def _park_elsewhere(self) -> str:
        """SQLite's own writes are not recorded, so its file lies elsewhere, and each state of it
        is put where it would be as what is on disk at once: SQLite's work is not ours to test.
        """
        there = self.folder / "parked"
        for each in self.folder.glob("parked*"):
            each.unlink()
        if self.parked and self.parked.exists():
            shutil.copy(self.parked, there)
        self.options["engine.parking"] = there
        return IMAGES.format(path=str(self.parked))

    @property
    def strict(self) -> bool:
        return self.options["journal.durability"] == "strict"

    def send(self, client: Client, count: int) -> None:
        """Ticks of random series, each series' in order."""
        for _ in range(count):
            name = self.chance.choice(self.names)
            client.send(message(name, self.sent.get(name, 0)))
            self.sent[name] = self.sent.get(name, 0) + 1

    def kill_under_load(self, within: float = 0.15) -> Takes:
        """Kill it at a random moment so many seconds from the first tick; what it published."""
        return self._load(self.chance.uniform(0, within))

    def kill_at_operation(self, most: int = 400) -> Takes:
        """Kill it where it would write, sync, make, rename or delete a file."""
        number = round(most ** self.chance.random())  # the first ones, of the start, are the rarest
        return self._load(30.0, self._recording(self.folder / "log", die_at=number))

    def kill_at_start(self) -> Takes:
        """Kill it at a random moment while it recovers, or soon after."""
        after = self.chance.uniform(0, 0.4)
        shot = f"import os, threading\nthreading.Timer({after}, os.kill, (os.getpid(), 9)).start()"
        return self._load(30.0, shot)

    def kill_at_reload(self, model: Path, within: float = 0.3) -> Takes:
        """Kill it at a random moment after it was asked to take another model, under load.

        Some series begin only then.
        """
        shutil.copy(self.model, kept := self.folder / "served.safetensors")
        self.truth = Truth(kept)
        after = self.chance.uniform(0, within)
        self.names = NAMES[:3]

        def reload(daemon: Daemon) -> None:
            self.names = NAMES
            shutil.copy(model, self.folder / "coming")
            os.replace(self.folder / "coming", self.model)
            daemon.process.send_signal(signal.SIGHUP)

        return self._load(0.1 + after, do=(0.1, reload))

    def verify_reloaded(self, takes: Takes) -> bool:
        """As :meth:`verify`, after that; whether the other model is the one that goes on."""
        needed = latest(takes)
        try:
            recovered = recover(self.model, self.state)
        except (JournalError, CheckpointError) as error:
            raise DivergenceError(f"refused: {error}") from error
        if recovered.model.id == self.truth.engine.model.id:
            self.truth.check(recovered, self.sent, takes, needed)
            return False
        self.truth.check_reloaded(recovered, self.sent, takes, needed)
        return True

    def record(self, log: Path, seconds: float = 0.3, **how: Any) -> tuple[Disk, Takes]:
        """Load it so long, and end it one way or the other, with what it does to the disk recorded.

        ``how`` as :func:`tests.disk.record` takes it.
        """
        stop, before = self.chance.random() < 0.5, self._recording(log, **how)
        if self._parks:
            before += "\n" + self._park_elsewhere()
        takes = self._load(seconds, before, stop=stop)
        return Disk(operations(log)), takes

    def _recording(self, log: Path, **how: Any) -> str:
        given = "".join(f", {name}={value!r}" for name, value in how.items())
        return (
            "from pathlib import Path; from tests import disk;"
            f" disk.record(Path({str(self.root)!r}), Path({str(log)!r}){given})"
        )

    def _load(
        self,
        seconds: float,
        before: str = "",
        stop: bool = False,
        do: tuple[float, Callable[[Daemon], None]] = (math.inf, lambda daemon: None),
    ) -> Takes:
        """Send ticks for so long, then kill it, or ``stop`` it; ``before`` as :func:`start`.

        After so many seconds ``do`` something with it.
        """
        takes: list[Take] = []
        over = threading.Event()

        def feed() -> None:
            # what comes around a reload is compared for each tick at which it may have been
            pause, count = (0.001, 50) if do[0] == math.inf else (0.01, 20)
            while not over.wait(pause):
                self.send(client, count)

        def take(milliseconds: float) -> bool:
            if there := client.sink.poll(milliseconds):
                frame = client.sink.recv()
                takes.append((time.monotonic_ns(), *forecast_of(frame)))
            return bool(there)

        with contextlib.ExitStack() as stack:
            options = self.options
            try:
                daemon = stack.enter_context(
                    start(self.folder, self.model, before=before, **options)
                )
            except AssertionError as error:
                if "exit code -9" in str(error):  # it was not ready yet
                    return takes
                raise
            try:
                client = stack.enter_context(Client(daemon, push=True, patience=5_000))
            except zmq.Again:
                if daemon.process.poll() is None:
                    raise
                return takes
            sender = threading.Thread(target=feed)
            sender.start()
            end, (when, what) = time.monotonic() + seconds, do
            when += end - seconds
            while (left := end - time.monotonic()) > 0 and daemon.process.poll() is None:
                take(1000 * min(left, 0.01))
                if time.monotonic() >= when:
                    when = math.inf
                    what(daemon)
            (daemon.process.terminate if stop else daemon.process.kill)()
            over.set()
            sender.join()
            while take(20) or daemon.process.poll() is None:
                pass
        return takes

    def verify(self, takes: Takes) -> int:
        """Recover what is on disk, compare, and go on from there; ticks that are there.

        Raises:
            DivergenceError: something is lost, or other than it would be.
        """
        needed = _all_of(self.seen, latest(takes) if self.strict else {})
        self.go_on(self.root, self._recovered(self.root, takes, needed))
        return sum(self.seen.values())

    def verify_cut(self, disk: Disk, takes: Takes, target: Path) -> dict[bytes, int]:
        """Cut the power at a random moment, and recover; ticks of each series that are there.

        Raises:
            DivergenceError: something is lost that must not be, or other than it would be.
        """
        moment = disk.moment(self.chance)
        target.mkdir()
        disk.cut(moment, self.chance, target)
        safe = moment if self.strict else disk.unsynced_since(moment)
        return self._recovered(target, takes, _all_of(self.seen, latest(takes, safe)))

    def _recovered(self, root: Path, takes: Takes, needed: dict[bytes, int]) -> dict[bytes, int]:
        try:
            parked = root / "parked" if self._parks else None
            recovered = recover(self.model, root / "state", parked)
        except (JournalError, CheckpointError) as error:
            raise DivergenceError(f"refused: {error}") from error
        return self.truth.check(recovered, self.sent, takes, needed)


def _all_of(*counts: Mapping[bytes, int]) -> dict[bytes, int]:
    names = {name for each in counts for name in each}
    return {name: max(each.get(name, 0) for each in counts) for name in names}
