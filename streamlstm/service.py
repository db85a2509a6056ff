"""The daemon: startup, main_loop, shutdown. Clocks, sockets and signals are known here alone."""

import contextlib
import errno
import faulthandler
import gc
import json
import logging
import os
import secrets
import select
import signal
import socket
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from numba.core import event

from streamlstm import logs, parking, transport
from streamlstm.backlog import Backlog
from streamlstm.checkpoint import CheckpointError
from streamlstm.config import Config, exposures, without_effect
from streamlstm.ends import Ends, allow_files
from streamlstm.files import mend_of
from streamlstm.handover import Handover
from streamlstm.kept import Kept, engine_of, open_engine
from streamlstm.kernels.cell import BackendError
from streamlstm.live import Live
from streamlstm.loop import Loop
from streamlstm.metrics import Metrics
from streamlstm.model import Model, ModelError
from streamlstm.model_file import load_model
from streamlstm.parking import ParkingError
from streamlstm.refitting import Refitting, doubts
from streamlstm.reload import Reload, ReloadError
from streamlstm.security import SecurityError
from streamlstm.segments import JournalError
from streamlstm.snapshot import Snapshots
from streamlstm.systemd import Watchdog, notify
from streamlstm.transport import TransportError
from streamlstm.watch import MEASURES
from streamlstm.web import MetricsError, Server, Tls, Users
from streamlstm.wire.codec import SET_BACK, Decoder, Encoder
from streamlstm.wire.format import FormatError, Shape
from streamlstm.wire.publishers import COUNTS

QUIET = 0.02
"""Seconds without a tick after which, at the end, no more are expected."""
RETRY = 1.0
"""Seconds after which the journal is tried again."""
LOOK_ROUND = 1.0
"""Seconds after which it is seen at the latest what else there is to do."""
TURN = 0.0002
"""Seconds for which the thread that answers about series may hold the interpreter."""

_log = logging.getLogger("streamlstm")


class CoreError(ValueError):
    """A core that cannot be used; the message is one line and says the mend."""


def run(config: Config, announce: bool = False) -> int:
    """Serve until SIGTERM or SIGINT and return the exit code; errors at start are logged.

    With ``announce``, one line of JSON on stdout says, once all is ready, ``input`` and ``output``
    (lists of endpoints, wildcards resolved), ``snapshot`` (one too),
    ``metrics`` (a URL, or null) and ``pid``.
    """
    logs.to_stderr(config.service.log_level)
    if not faulthandler.is_enabled():  # a loop that stands still, or a crash, shows where it was
        faulthandler.enable()
    for doubt in (*exposures(config), *without_effect(config)):
        _log.warning("%s", doubt)
    service = Service(config)
    try:
        service.startup()
    except (
        ModelError,
        BackendError,
        CheckpointError,
        CoreError,
        FormatError,
        JournalError,
        ParkingError,
        SecurityError,
        TransportError,
        MetricsError,
    ) as error:
        _log.error("%s", error)
        service.close()
        return 1
    except KeyboardInterrupt:
        service.close()
        return 130
    if announce:
        print(json.dumps(service.whereabouts), flush=True)
    service.main_loop()
    service.shutdown()
    return 1 if service.failed else 0


def check(config: Config) -> tuple[str, list[str]]:
    """Open all that :func:`run` would, but for the sockets; what was found, and what is doubtful.

    Nothing is written, and a daemon may run by the same ``config`` meanwhile.

    Raises:
        ModelError, BackendError, CheckpointError, CoreError, FormatError, MetricsError,
            ParkingError, SecurityError: each with one line.
    """
    look(config)
    engine, _ = open_engine(config)
    model, before, restored = load_model(config.model), engine.model, engine.series.active
    if model.id != before.id:
        engine = Handover(engine, engine_of(config, model)).new
    _open_decoder(config, model)
    _open_encoders(config, model, 0)
    each = sum(engine.bytes_per_series.values())
    found = (
        f"{config.model}: model {model.id} computes what it says;"
        f" {config.engine.max_series} series of {each} bytes fit;"
        f" {restored} series in the checkpoint"
        f"{f', of model {before.id}, to be taken over' * (model.id != before.id)}"
    )
    return found, [*exposures(config), *without_effect(config), *doubts(config, model)]


def look(config: Config) -> None:
    """Open what is open at once.

    Raises:
        CheckpointError, CoreError, MetricsError, ParkingError, SecurityError: each with one line.
    """
    _refuse_lacking(config.service.cpus)
    path = config.checkpoint.path
    if path and path.parent.is_dir() and not os.access(path.parent, os.W_OK):
        mend = mend_of(PermissionError(errno.EACCES, ""), "")
        raise CheckpointError(f"{path.parent}: may not be written to; {mend}")
    _open_tls(config)
    Users(config.metrics.users)
    Ends(config).close()
    if config.engine.parking:  # to open it would be to own it
        parking.look(config.engine.parking)


class Service:
    """One daemon in the main thread of its process."""

    def __init__(self, config: Config) -> None:
        """Do nothing yet but count what is compiled."""
        self.config = config
        self.stopping = self.reloading = False
        self.metrics = Metrics()
        self._umask: int | None = None
        self.server: Server | None = None
        self.ends: Ends | None = None
        self._wakeup, self._sender = socket.socketpair()
        self._wakeup.setblocking(False)
        self._sender.setblocking(False)
        self.kept: Kept | None = None
        self.snapshots: Snapshots | None = None
        self.live: Live | None = None
        self.failed = False
        self._reload: Reload | None = None
        self._refitting = Refitting(config, self._wake)
        self._boot = secrets.randbits(32)
        self._model_file = _state_of(config.model)
        self._compiles = event.RecordingListener()
        event.register("numba:compile", self._compiles)
        self._said = logs.Limited()
        self._dropped: dict[str, int] = {}
        self._dropped_by_engine = self._quarantined = 0
        self._evicted: dict[str, int] = {}
        self._clock_ahead = time.time_ns() - time.monotonic_ns()

    def prepare(self) -> None:
        """Bring everything up, compiled and restored, but for the endpoints of the sockets.

        Raises:
            the errors of :meth:`lay_out`.
        """
        self.lay_out()
        assert self.kept
        self.loop.warm_up()
        self.kept.warm_up()
        if not transport.compiled():
            _log.warning(
                "libzmq's functions were not found: messages pass one by one through pyzmq, at a"
                " third of the speed; install pyzmq from a wheel"
            )

    def lay_out(self) -> None:
        """The same, but that some of what is short is not yet compiled.

        Raises:
            ModelError, BackendError, CheckpointError, CoreError, FormatError, JournalError,
                ParkingError, SecurityError, TransportError, MetricsError: each with one line.
        """
        config = self.config
        self._umask = os.umask(0o077)  # what is written here is for nobody else
        signal.signal(signal.SIGHUP, self._ask_for_reload)
        allow_files(config.security.max_connections)
        _keep_to(config.service.cpus)  # before there are threads, which inherit it
        if config.metrics.page:
            self.live = Live(self.metrics, logs.Latest().lines)
        if config.metrics.enabled:
            self.server = Server(
                self.metrics,
                config.metrics.host,
                config.metrics.port,
                tls=_open_tls(config),
                users=config.metrics.users,
                pages=self.live.answer if self.live else None,
            )
        self.ends = Ends(config, self._umask)
        self.receiver, self.publisher = self.ends.receiver, self.ends.publisher
        notify("STATUS=opening the model")
        self.kept = Kept(config, self.metrics.values, self._said)
        notify("STATUS=replaying the journal")
        self.kept.open_journal()
        self.engine = self.kept.engine
        model = self.engine.model
        notify("STATUS=compiling")
        self.decoder = _open_decoder(config, model)
        self.encoders = _open_encoders(config, model, self._boot)
        if self.ends.responder:
            self.snapshots = Snapshots(
                self.ends.responder, self.engine, self.encoders[0], self.publisher
            )
        self._make_loop(
            Backlog(
                config.input.overload,
                config.input.max_pending,
                config.engine.max_batch,
                model.spec.inputs,
                config.engine.max_series,
                len(self.decoder.reader.columns.ts),
            )
        )

    def startup(self) -> None:
        """Prepare, and be reached from here on.

        Raises:
            TransportError: an endpoint cannot be had, in one line.
            the errors of :meth:`prepare`.
        """
        self.prepare()
        assert self.ends
        model = self.engine.model
        assert self.kept
        self.ends.open(self._may_grow)
        self.kept.begin()
        self._heed_signals()
        self._describe()
        gc.collect()
        gc.freeze()  # what is there now stays; only what a batch leaves is looked at
        if self.server:
            self.server.ready = True
        if self.live:
            self.live.engine = self.engine
            sys.setswitchinterval(TURN)
        for doubt in doubts(self.config, model):
            _log.warning("%s", doubt)
        notify("READY=1", f"STATUS=serving model {model.id}")
        logs.event(
            logging.INFO,
            "ready",
            model=model.id,
            **self.whereabouts,
            functions_compiled=self.functions_compiled,
        )

    def main_loop(self) -> None:
        """Serve whatever waits, a batch at a time, until a signal."""
        assert self.kept
        more, watchdog = False, Watchdog()
        while not self.stopping:
            watchdog.feed()
            until = min(time.monotonic() + (0 if more else LOOK_ROUND), watchdog.due)
            if self.snapshots:
                until = min(until, self.snapshots.due)
            self._serve(min(until, self._reload.due if self._reload else self.kept.due))
            self._look_at_clock()
            more = self.loop.evict_idle()
            self.kept.look(self._wake, begin=self._reload is None)
            self.reloading |= self._refitting.look(begin=self._reload is None)
            self._look_at_model()

    def shutdown(self) -> None:
        """Serve what has arrived, save, and let subscribers take what they are owed."""
        assert self.kept
        notify("STOPPING=1", "STATUS=stopping")
        self._refitting.stop()
        if self._reload:
            self._reload.stop()
        began = time.monotonic()
        share = self.config.service.shutdown_timeout / 4
        if self.server:
            self.server.ready = False
        left = self.config.input.hwm  # more cannot have waited, but for several publishers
        while left > 0 and time.monotonic() < began + share:
            waited = len(self.loop.pending)
            taken = self._serve(time.monotonic() + QUIET)
            left -= taken
            if not taken and not waited:
                break
        self.receiver.close()
        try:
            while len(self.loop.pending) and time.monotonic() < began + share:
                self.loop.step()
        except JournalError as error:
            _log.error("%s; %d ticks that wait are lost", error, len(self.loop.pending))
            self.failed = True
        self.failed |= not self.kept.close()
        self.publisher.close(linger=share)
        self.close()
        logs.event(
            logging.INFO,
            "stopped",
            seconds=round(time.monotonic() - began, 3),
            functions_compiled=self.functions_compiled,
        )

    def _serve(self, until: float) -> int:
        """Serve ticks until something else is there, or the monotonic clock says ``until``.

        Returns how many messages were taken.
        """
        taken = 0
        try:
            taken = self.loop.run(round(1e9 * until))
        except JournalError as error:
            self._miss_journal(error)
        with contextlib.suppress(BlockingIOError):
            self._wakeup.recv(4096)
        self.publisher.forget_subscriptions()
        if self.snapshots:
            self.snapshots.serve()
        self._sample()
        return taken

    def _miss_journal(self, error: JournalError) -> None:
        """A batch could not be journalled: go on without, wait, or stop."""
        assert self.kept
        match self.kept.miss(error):
            case "wait":
                select.select([self._wakeup], [], [], RETRY)
            case "stop":
                self.stopping = self.failed = True

    def close(self) -> None:
        """Let go of all sockets, however far startup came."""
        if self.ends:
            self.ends.close()
        if self.kept:
            self.kept.unlock()
        if signal.getsignal(signal.SIGTERM) == self._stop:
            signal.set_wakeup_fd(-1)
        self._wakeup.close()
        self._sender.close()
        if self.server:
            self.server.close()
        event.unregister("numba:compile", self._compiles)
        if self._umask is not None:
            os.umask(self._umask)

    @property
    def functions_compiled(self) -> int:
        """Functions that Numba compiled for the CPU, those that it calls included."""
        return sum(what.is_start for _, what in self._compiles.buffer)

    @property
    def whereabouts(self) -> dict[str, object]:
        """Where this daemon is reached, to be written as JSON."""
        return {
            "input": self.receiver.endpoints,
            "output": self.publisher.endpoints,
            "snapshot": self.snapshots.responder.endpoints if self.snapshots else (),
            "metrics": self.server.url if self.server else None,
            "pid": os.getpid(),
        }

    def _sample(self) -> None:
        """Log one of the ticks dropped."""
        if self.decoder.sample:
            reason, content = self.decoder.sample
            self._complain(reason, content=content)
            self.decoder.sample = None
        self._sample_evicted()
        if (quarantined := self.engine.quarantined) > self._quarantined:
            self._said.warn("series quarantined", "quarantine", total=quarantined)
        self._quarantined = quarantined
        if (overload := self.loop.pending.dropped) > self._dropped.get("overload", 0):
            self._dropped["overload"] = overload
            self._complain("overload", because="more than input.max_pending waited")
        dropped = int(self.engine.work.counts.drops.sum())
        if dropped == self._dropped_by_engine:
            return
        self._dropped_by_engine = dropped
        names = self.engine.work.dropped
        for name, (reason, count) in zip(names, self.engine.drops.items(), strict=True):
            if count > self._dropped.get(reason, 0):
                self._dropped[reason] = count
                self._complain(reason, series=bytes(name).rstrip(b"\0").decode(errors="replace"))

    def _sample_evicted(self) -> None:
        """Log one of the series evicted, and what went wrong with the parked ones."""
        for reason, count in self.engine.series.evicted.items():
            if count > self._evicted.get(reason, 0):
                self._evicted[reason] = count
                key = bytes(self.engine.series.index.latest).rstrip(b"\0")
                self._said.warn(
                    "series evicted", reason, reason=reason, total=count, latest=repr(key)
                )
        parking = self.kept.parking if self.kept else None
        if parking and parking.problem:
            self._said.warn("series not kept", "parking", why=parking.problem)
            parking.problem = ""

    def _look_at_clock(self) -> None:
        """Log that it was set: ticks without a time of their own are dated by it."""
        ahead = time.time_ns() - time.monotonic_ns()
        if abs(leap := ahead - self._clock_ahead) >= SET_BACK:
            logs.event(logging.WARNING, "clock set", seconds=round(leap / 1e9, 3))
        self._clock_ahead = ahead

    def _look_at_model(self) -> None:
        """Begin to put another in the place of the one that serves, or go on with that."""
        assert self.kept
        if self._reload is None:
            if not (self.reloading or self._model_changed()):
                return
            self.reloading, self._model_file = False, _state_of(self.config.model)
            notify("RELOADING=1", f"MONOTONIC_USEC={time.monotonic_ns() // 1000}")
            self._reload = Reload(self.config, self.kept, self.loop, self._wake)
        try:
            handover = self._reload.advance()
        except ReloadError as error:
            self.metrics.values["model_reload_failures"] += 1
            _log.error("%s; model %s goes on serving", error, self.engine.model.id)
            self._reload.stop()
        else:
            if handover is None:
                return
            self._switch(handover)
        self._reload = None
        notify("READY=1", f"STATUS=serving model {self.engine.model.id}")

    def _switch(self, handover: Handover) -> None:
        """Let the new engine serve."""
        assert self.kept
        before, engine = self.engine, handover.new
        if engine is not before:
            self.kept.adopt(engine)
            handover.settle()  # first, so that no scrape sees counters fall
            self.engine = engine
            self.encoders = _open_encoders(self.config, engine.model, self._boot)
            if self.snapshots:
                self.snapshots.serve_from(engine, self.encoders[0])
            if self.live:
                self.live.engine = engine
            self._make_loop(self.loop.pending)
            self._describe()
            self.metrics.values["model_reloads"] += 1
        logs.event(
            logging.INFO,
            "reloaded",
            model=engine.model.id,
            before=before.model.id,
            states="kept" if handover.keeps else "warmed up",
        )

    def _model_changed(self) -> bool:
        """Whether it is to be watched, and did."""
        return self.config.service.watch_model and _state_of(self.config.model) not in (
            None,
            self._model_file,
        )

    def _make_loop(self, pending: Backlog) -> None:
        """Connect all stages."""
        assert self.kept
        config = self.config
        self.loop = Loop(
            self.receiver,
            self.decoder,
            pending,
            self.engine,
            self.encoders,
            self.publisher,
            self.metrics.values,
            self._wakeup.fileno(),
            *([self.snapshots.responder.socket] if self.snapshots else []),
            log=self.kept.journal.log if self.kept.journal else None,
            parking=self.kept.parking,
            idle_timeout=config.engine.idle_timeout,
            wait_ns=1000 * config.engine.max_wait_us,
            spin_ns=1000 * config.service.busy_poll_us,
        )

    def _may_grow(self) -> int:
        """Bytes that are taken as series come, and again for a checkpoint, by whichever model."""
        engines = [self.engine, *([self._reload.engine] if self._reload else [])]
        each = sum(sum(engine.bytes_per_series.values()) for engine in engines)
        return 2 * self.config.engine.max_series * each

    def _heed_signals(self) -> None:
        signal.set_wakeup_fd(self._sender.fileno())
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._stop)

    def _ask_for_reload(self, number: int, frame: object) -> None:
        self.reloading = True

    def _wake(self) -> None:
        """Have the loop come back, from whichever thread."""
        with contextlib.suppress(OSError):  # it is awake already, or gone
            self._sender.send(b"!")

    def _stop(self, number: int, frame: object) -> None:
        """Set a flag; from here on a second signal, or the timeout, ends the process at once."""
        self.stopping = True
        for each in (signal.SIGTERM, signal.SIGINT):
            signal.signal(each, signal.SIG_DFL)
        signal.setitimer(signal.ITIMER_REAL, self.config.service.shutdown_timeout)

    def _describe(self) -> None:
        spec = self.engine.model.spec
        self.metrics.model = {
            "model": self.engine.model.id,
            "cell": spec.cell,
            "layers": str(spec.layers),
            "hidden": str(spec.hidden),
            "horizon": str(spec.horizon),
            "backend": self.engine.backend,
        }
        self.metrics.refits = self._refitting.counts
        self.metrics.refresh = self._refresh

    def _refresh(self) -> None:
        """Fetch what others count; runs in the thread of a scrape, and only reads."""
        values, active = self.metrics.values, self.engine.series.active
        overload = {"overload": self.loop.pending.dropped}
        self.metrics.dropped = self.decoder.drops | self.engine.drops | overload
        self.metrics.changed = self.engine.changes
        self.metrics.scores = self.engine.scores
        values["ticks_coalesced"] = self.loop.pending.coalesced
        values["pending_ticks"] = len(self.loop.pending)
        self.metrics.evicted = self.engine.series.evicted
        values["series_started"] = self.engine.series.started
        values["input_gaps"] = self.engine.gaps
        values["anomalies"], values["drifts"] = self.engine.alarms.values()
        values["series_quarantined"] = self.engine.quarantined
        values["subscriber_overflows"] = self.publisher.overflows
        for name, count in zip(COUNTS, self.decoder.publishers.counts.tolist(), strict=True):
            values[f"publisher_{name}"] = count
        if self.snapshots:
            values["snapshots_served"] = self.snapshots.served
            values["snapshots_refused"] = self.snapshots.refused
        values["functions_compiled"] = self.functions_compiled
        if self.ends:
            values["connections_refused"] = self.ends.doors.refused
            values["connections_ended"] = self.ends.doors.ended
        if self.kept:
            self.kept.refresh()
        values["active_series"] = active
        values["state_bytes"] = active * sum(self.engine.bytes_per_series.values())

    def _complain(self, reason: str, **what: str) -> None:
        self._said.warn("tick dropped", reason, reason=reason, **what)


def _open_tls(config: Config) -> Tls | None:
    asked = config.metrics
    if not (asked.enabled and asked.cert_file and asked.key_file):
        return None
    return Tls(asked.cert_file, asked.key_file, asked.client_ca_file)


def _state_of(path: Path) -> tuple[int, ...] | None:
    """What is another once a file was written or replaced; None where there is none."""
    with contextlib.suppress(OSError):
        found = path.stat()
        return found.st_mtime_ns, found.st_size, found.st_ino
    return None


def _open_decoder(config: Config, model: Model) -> Decoder:
    return Decoder(
        config.input.format,
        model.spec.inputs,
        most=config.engine.max_batch,
        max_key=config.input.max_key,
        max_frame=config.input.max_frame,
    )


def _open_encoders(config: Config, model: Model, boot: int) -> list[Encoder]:
    """One for each format published."""
    shape = Shape(
        model.id,
        boot,
        model.spec.horizon,
        model.spec.targets,
        config.input.max_key,
        config.engine.max_batch,
        config.interval.coverage[1:],
        MEASURES if config.output.quality else (),
    )
    encoders = [Encoder(config.output.format, shape)]
    if config.output.batch and config.output.format != "arrow":
        encoders.append(Encoder("arrow", shape))
    return encoders


def _keep_to(cpus: Sequence[int]) -> None:
    """Run on these cores only, if any are named.

    Raises:
        CoreError: this process may not use one of them.
    """
    _refuse_lacking(cpus)
    if cpus:
        os.sched_setaffinity(0, cpus)


def _refuse_lacking(cpus: Sequence[int]) -> None:
    allowed = os.sched_getaffinity(0)
    if strange := sorted(set(cpus) - allowed):
        there = ", ".join(map(str, sorted(allowed)))
        raise CoreError(f"service.cpus: core {strange[0]} is not there; choose of {there}")
