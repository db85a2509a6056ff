"""One window of :mod:`benchmarks.stream`: feeder and sink joined to a system for a few seconds."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Iterator
from typing import Any, Protocol

import numpy as np
import psutil

from benchmarks.stream_ends import RECEIVED, SENT, Drained, End, Feeder, Sink, shared_counters
from benchmarks.stream_latency import Window, scraping, soon, window_of
from benchmarks.stream_systems import System
from benchmarks.stream_ticks import MANY

FOREVER = 1 << 62
LOOK = 64
"""Of so many predictions one is read, where only their number is asked for."""


class Meter(Protocol):
    """What measures a system."""

    def prime(self, system: System) -> None:
        """Send each series a tick, so that all exist."""

    def throughput(self, system: System, seconds: float) -> dict[str, Any]:
        """``rate``; ``cpu_us`` a tick; cores used by ``others``, who have no part in the run;
        ``sent``; ``lost`` and ``disorder``, which should be 0.
        """

    def latency(self, system: System, rate: float, seconds: float, scraped: bool) -> Window:
        """At ``rate`` ticks a second offered."""


class Load:
    """Cores used from here on: by a system, and by whatever has no part in the run."""

    def __init__(self, system: System, *ends: int) -> None:
        """Begin with a system and the processes at its ends, this one among them."""
        root = psutil.Process(system.pid)
        self._system = [root, *root.children(recursive=True)]
        self._ends = [psutil.Process(pid) for pid in (*ends, os.getpid())]
        self._begin = self._read()

    def _read(self) -> np.ndarray[Any, np.dtype[np.float64]]:
        every = psutil.cpu_times()
        busy = every.user + every.nice + every.system + every.steal  # interrupts are no one's
        times = [sum(sum(p.cpu_times()[:2]) for p in some) for some in (self._system, self._ends)]
        return np.array([time.monotonic(), busy, *times])

    def cores(self) -> tuple[float, float]:
        """Of the system and of others, since the beginning."""
        seconds, busy, own, ends = self._read() - self._begin
        return own / seconds, max(0.0, busy - own - ends) / seconds


class Ends:
    """Feeder and sink of ZeroMQ, processes of their own, and what they do together."""

    def __init__(self, window: int) -> None:
        """Allow ``window`` ticks on their way."""
        self.window = window
        memory = shared_counters()
        self.shared = np.frombuffer(memory, np.int64)
        self.feeder, self.sink = End(Feeder, memory), End(Sink, memory)

    @contextlib.contextmanager
    def joined(self, system: System, spoilt: bool = False) -> Iterator[None]:
        """Wake the system up, connect both ends to it, and wait until a tick comes through."""
        os.kill(system.pid, signal.SIGCONT)
        self.shared[SENT] = self.shared[RECEIVED] = 0
        case = system.case
        welcome = system.url is not None
        self.sink.call("open", system.output, system.reading, case.series, welcome)
        self.feeder.call("open", system.input, system.format, case.series, case.hot, spoilt)
        if not welcome:
            self._probe(system)
        try:
            yield
        finally:
            self.sink.call("close")
            self.feeder.call("close")
            os.kill(system.pid, signal.SIGSTOP)  # or its threads and timers disturb the others

    def _probe(self, system: System) -> None:
        for _ in range(50):
            self.feeder.call("closed", FOREVER, 1, FOREVER)
            if self.sink.call("drain", soon(0.2), 1, 1).taken:
                break
        else:
            raise TimeoutError(f"{system.name}: no tick comes through")
        self.sink.call("drain", soon(0.1), FOREVER, 1)
        self.shared[SENT] = self.shared[RECEIVED]  # the first may have come before the subscription

    def prime(self, system: System) -> None:
        """See :class:`Meter`."""
        with self.joined(system):
            self.feeder.start("closed", FOREVER, 2 * system.case.series, self._window(system))
            self.sink.call("drain", soon(60), 2 * system.case.series, LOOK)
            self.feeder.result()

    def throughput(self, system: System, seconds: float, warm: float = 0.5) -> dict[str, Any]:
        """See :class:`Meter`."""
        with self.joined(system):
            begin = soon(warm)
            end = begin + int(seconds * 1e9)
            self.feeder.start("closed", end + 100_000_000, FOREVER, self._window(system))
            self.sink.call("drain", begin, FOREVER, LOOK)
            load = Load(system, self.feeder.pid, self.sink.pid)
            counted: Drained = self.sink.call("drain", end, FOREVER, LOOK)
            cores, others = load.cores()
            self.feeder.result()
            self.settle()
            sent, received = int(self.shared[SENT]), int(self.shared[RECEIVED])
        rate = (counted.taken - 1) / max(counted.last - counted.first, 1) * 1e9
        return {
            "rate": rate,
            "cpu_us": 1e6 * cores / max(rate, 1),
            "others": others,
            "sent": sent,
            "lost": sent - received,
            "disorder": counted.disorder,
        }

    def latency(self, system: System, rate: float, seconds: float, scraped: bool) -> Window:
        """See :class:`Meter`."""
        with scraping(system.url if scraped else None):
            return self.lateness(system, rate, seconds)

    def lateness(self, system: System, rate: float, seconds: float, warm: float = 0.2) -> Window:
        """How late predictions are at ``rate`` ticks a second offered."""
        with self.joined(system):
            start = soon(0.05)
            begin = start + int(warm * 1e9)
            end = begin + int(seconds * 1e9)
            self.feeder.start("open_loop", start, end, rate)
            drained: list[Drained] = [self.sink.call("drain", end + 50_000_000, FOREVER, 1)]
            self.feeder.result()
            while self.shared[RECEIVED] < self.shared[SENT] and drained[-1].taken:
                drained.append(self.sink.call("drain", soon(0.5), FOREVER, 1))
            lost = int(self.shared[SENT] - self.shared[RECEIVED])
        lateness = np.concatenate([each.lateness for each in drained])
        return window_of(lateness, begin, end, rate, lost)

    def _window(self, system: System) -> int:
        """Ticks on their way: of large messages some tens, at least."""
        return max(self.window, 32 * MANY) if system.format == "arrow" else self.window

    def settle(self, patience: float = 1.0) -> None:
        """Take what is still on its way, until nothing came for a while."""
        while self.shared[RECEIVED] < self.shared[SENT]:
            drained: Drained = self.sink.call("drain", soon(patience), FOREVER, LOOK)
            if not drained.taken:
                return

    def stop(self) -> None:
        """End both processes."""
        self.feeder.stop()
        self.sink.stop()


class TritonMeter:
    """Measures Triton with its own client, in this process; ``on_the_way`` suits it best."""

    on_the_way = 256

    def prime(self, system: System) -> None:
        """See :class:`Meter`."""
        self._closed(system, 0, FOREVER, system.case.series)

    def throughput(self, system: System, seconds: float, warm: float = 0.5) -> dict[str, Any]:
        """See :class:`Meter`."""
        self._closed(system, 0, soon(warm), FOREVER)
        load, own = Load(system), time.process_time()
        counted = self._closed(system, 0, soon(seconds), FOREVER)
        cores, others = load.cores()
        rate = counted.taken / max(counted.last - counted.first, 1) * 1e9
        return {
            "rate": rate,
            "cpu_us": 1e6 * cores / max(rate, 1),
            "others": others,
            "sent": counted.taken,
            "lost": 0,
            "disorder": 0,
            "client_cores": (time.process_time() - own) / seconds,
        }

    def latency(
        self, system: System, rate: float, seconds: float, scraped: bool, warm: float = 0.2
    ) -> Window:
        """See :class:`Meter`."""
        assert system.client is not None
        start = soon(0.05)
        begin = start + int(warm * 1e9)
        end = begin + int(seconds * 1e9)
        drained = system.client.open_loop(start, end, rate)
        return window_of(drained.lateness, begin, end, rate, drained.taken - len(drained.lateness))

    def _closed(self, system: System, begin: int, end: int, most: int) -> Drained:
        assert system.client is not None
        return system.client.closed(begin, end, most, self.on_the_way)
