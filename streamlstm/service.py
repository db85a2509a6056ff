"""The daemon: startup, main_loop, shutdown. Clocks, sockets and signals are known here alone."""

import gc
import json
import logging
import math
import os
import secrets
import signal
import socket
import sys
import time

import zmq
from numba.core import event

from streamlstm import checkpoint, transport
from streamlstm.checkpoint import CheckpointError
from streamlstm.config import Config
from streamlstm.engine import Engine
from streamlstm.kernels.cell import BackendError
from streamlstm.metrics import Metrics, MetricsError, Server
from streamlstm.model import Model, ModelError, load_model
from streamlstm.ticks import Arrivals, Forecasts, Messages
from streamlstm.transport import Publisher, Receiver, TransportError
from streamlstm.wire.codec import Decoder, Encoder
from streamlstm.wire.format import FormatError, Shape

QUIET_MS = 20
"""Milliseconds without a tick after which, at the end, no more are expected."""
COMPLAIN_EVERY = 10.0
"""Seconds between two lines in the log about ticks dropped for one reason."""

_log = logging.getLogger("streamlstm")


def run(config: Config, announce: bool = False) -> int:
    """Serve until SIGTERM or SIGINT and return the exit code; errors at start are logged.

    With ``announce``, one line of JSON on stdout says, once all is ready, ``input`` and ``output``
    (lists of endpoints, wildcards resolved), ``metrics`` (a URL, or null) and ``pid``.
    """
    _log_to_stderr(config.service.log_level)
    service = Service(config)
    try:
        service.startup()
    except (
        ModelError,
        BackendError,
        CheckpointError,
        FormatError,
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
    return 0


def check(config: Config) -> str:
    """Open all that :func:`run` would, but for the sockets, and say what was found.

    Raises:
        ModelError, BackendError, CheckpointError, FormatError: each with one line.
    """
    engine, restored = _open_engine(config)
    _open_wire(config, engine.model)
    each = sum(engine.bytes_per_series.values())
    return (
        f"{config.model}: model {engine.model.id} computes what it says;"
        f" {config.engine.max_series} series of {each} bytes fit;"
        f" {restored} series in the checkpoint"
    )


class Service:
    """One daemon in the main thread of its process."""

    def __init__(self, config: Config) -> None:
        """Do nothing yet but count what is compiled."""
        self.config = config
        self.stopping = False
        self.metrics = Metrics()
        self.server: Server | None = None
        self._context = zmq.Context()
        self._compiles = event.RecordingListener()
        event.register("numba:compile", self._compiles)
        self._complained: dict[str, float] = {}
        self._dropped: dict[str, int] = {}

    def startup(self) -> None:
        """Bring everything up, compiled and restored.

        Raises:
            ModelError, BackendError, CheckpointError, FormatError, TransportError, MetricsError:
                each with one line.
        """
        config = self.config
        if config.metrics.enabled:
            self.server = Server(self.metrics, config.metrics.host, config.metrics.port)
        notify("STATUS=opening the model")
        self.engine, self._restored = _open_engine(config)
        model = self.engine.model
        notify("STATUS=compiling")
        self.decoder, self.encoders = _open_wire(config, model)
        self._warm_up()
        self._open_sockets()
        self._heed_signals()
        self._describe()
        self._plan_checkpoint()
        gc.collect()
        gc.freeze()  # what is there now stays; only what a batch leaves is looked at
        if self.server:
            self.server.ready = True
        notify("READY=1", f"STATUS=serving model {model.id}")
        _event(
            logging.INFO,
            "ready",
            model=model.id,
            **self.whereabouts,
            functions_compiled=self.functions_compiled,
        )

    def main_loop(self) -> None:
        """Serve whatever waits, a batch at a time, until a signal."""
        while not self.stopping:
            due = max(0.0, self._next_checkpoint - time.monotonic())
            self._poller.poll(None if math.isinf(due) else math.ceil(1000 * due))
            self._serve_batch()
            self.publisher.forget_subscriptions()
            if time.monotonic() >= self._next_checkpoint:
                self._save()

    def shutdown(self) -> None:
        """Serve what has arrived, save, and let subscribers take what they are owed."""
        notify("STOPPING=1", "STATUS=stopping")
        began = time.monotonic()
        share = self.config.service.shutdown_timeout / 4
        if self.server:
            self.server.ready = False
        left = self.config.input.hwm  # more cannot have waited, but for several publishers
        while left > 0 and time.monotonic() < began + share:
            served = self._serve_batch()
            left -= served
            if not served and not self.receiver.socket.poll(QUIET_MS):
                break
        self.receiver.close()
        self._save()
        self.publisher.close(linger=share)
        self.close()
        _event(
            logging.INFO,
            "stopped",
            seconds=round(time.monotonic() - began, 3),
            functions_compiled=self.functions_compiled,
        )

    def close(self) -> None:
        """Let go of all sockets, however far startup came."""
        self._context.destroy(linger=0)
        if self.server:
            self.server.close()
        event.unregister("numba:compile", self._compiles)

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
            "metrics": self.server.url if self.server else None,
            "pid": os.getpid(),
        }

    def _serve_batch(self) -> int:
        """Receive -> decode -> step -> encode -> publish; returns how many messages there were."""
        received = time.perf_counter()
        count = self.receiver.receive(self.decoder.most)
        if not count:
            return 0
        now = time.time_ns()
        begun = time.perf_counter()
        arrivals = self.decoder.decode(self.receiver.messages, count, now)
        for part in arrivals.parts(self.config.engine.max_batch):
            self._serve(part, now, received, begun)
            begun = time.perf_counter()
        self._sample()
        self.metrics.counters["ticks_received"] += self.decoder.rows
        return count

    def _serve(self, arrivals: Arrivals, now: int, received: float, begun: float) -> None:
        """Step -> encode -> publish, for ticks received, and being decoded since, these times."""
        ticks = self.engine.place(arrivals)
        decoded = time.perf_counter()
        forecasts = self.engine.step(ticks, now)
        stepped = time.perf_counter()
        encoding = self._publish(forecasts)
        published = time.perf_counter()

        counters, histograms = self.metrics.counters, self.metrics.histograms
        predictions = len(forecasts.slot)
        counters["predictions_published"] += predictions
        counters["batches"] += 1
        histograms["batch_size"].observe(len(arrivals.ts))
        histograms["decode_duration_seconds"].observe(decoded - begun)
        histograms["step_duration_seconds"].observe(stepped - decoded)
        histograms["encode_duration_seconds"].observe(encoding)
        histograms["publish_duration_seconds"].observe(published - stepped - encoding)
        histograms["tick_to_publish_seconds"].observe(published - received, predictions)
        if len(ticks.ts):
            self.metrics.gauges["event_lag_seconds"] = (now - int(ticks.ts.max())) / 1e9

    def _publish(self, forecasts: Forecasts) -> float:
        """Encode and send, as many at once as there is room for; seconds that encoding took."""
        encoding, names = 0.0, self.engine.series.names
        for encoder in self.encoders:
            sent = 0
            while sent < len(forecasts.slot):
                begun = time.perf_counter()
                sent = encoder.encode(forecasts, names, sent)
                encoding += time.perf_counter() - begun
                self.publisher.send(encoder.messages, encoder.count)
        return encoding

    def _sample(self) -> None:
        """Log one of the ticks dropped."""
        if self.decoder.sample:
            self._complain(*self.decoder.sample)
            self.decoder.sample = None
        for reason, count in self.engine.drops.items():
            if count > self._dropped.get(reason, 0):
                self._dropped[reason] = count
                self._complain(
                    reason, "by the engine; of such ticks ticks_dropped_total counts all"
                )

    def _save(self) -> None:
        """Write a checkpoint, if asked for; a failure is logged and tried again next time."""
        path = self.config.checkpoint.path
        if not path:
            return
        try:
            checkpoint.save(self.engine, path)
        except OSError as error:
            self.metrics.counters["checkpoint_failures"] += 1
            _log.error("no checkpoint: %s; free space there or set checkpoint.path", error)
        else:
            self.metrics.gauges["checkpoint_last_success_timestamp_seconds"] = time.time()
        self._plan_checkpoint()

    def _plan_checkpoint(self) -> None:
        wanted = self.config.checkpoint.path and self.config.checkpoint.interval
        self._next_checkpoint = time.monotonic() + wanted if wanted else math.inf

    def _warm_up(self) -> None:
        """Compile all that a tick meets on its way; no series is begun or moved."""
        self.engine.warm_up()
        transport.warm_up()
        arrivals = self.decoder.decode(Messages.of([]), 0, 0)
        forecasts = self.engine.step(self.engine.place(arrivals), 0)
        for encoder in self.encoders:
            encoder.encode(forecasts, self.engine.series.names)

    def _open_sockets(self) -> None:
        wire_in, wire_out = self.config.input, self.config.output
        self.publisher = Publisher(
            self._context, bind=wire_out.bind, connect=wire_out.connect, hwm=wire_out.hwm
        )
        self.receiver = Receiver(
            self._context,
            bind=wire_in.bind,
            connect=wire_in.connect,
            topics=wire_in.topics,
            hwm=wire_in.hwm,
            max_frame=wire_in.max_frame,
            most=self.config.engine.max_batch,
        )
        self._poller = zmq.Poller()
        self._poller.register(self.receiver.socket, zmq.POLLIN)
        self._poller.register(self.publisher.socket, zmq.POLLIN)

    def _heed_signals(self) -> None:
        self._wakeup, sender = socket.socketpair()
        sender.setblocking(False)
        self._sender = sender  # kept open for as long as the poll may have to be woken
        signal.set_wakeup_fd(sender.fileno())
        self._poller.register(self._wakeup, zmq.POLLIN)
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._stop)

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
        self.metrics.refresh = self._refresh

    def _refresh(self) -> None:
        """Fetch what others count; runs in the thread of a scrape, and only reads."""
        active = self.engine.series.active
        self.metrics.dropped = self.decoder.drops | self.engine.drops
        self.metrics.counters["series_started"] = active - self._restored
        self.metrics.counters["input_gaps"] = self.engine.gaps
        self.metrics.counters["functions_compiled"] = self.functions_compiled
        self.metrics.gauges["active_series"] = active
        self.metrics.gauges["state_bytes"] = active * sum(self.engine.bytes_per_series.values())

    def _complain(self, reason: str, content: str) -> None:
        now = time.monotonic()
        if now >= self._complained.get(reason, -math.inf) + COMPLAIN_EVERY:
            self._complained[reason] = now
            _event(logging.WARNING, "tick dropped", reason=reason, content=content)


def _open_engine(config: Config) -> tuple[Engine, int]:
    """The engine, and how many series a checkpoint brought back."""
    engine = Engine(
        load_model(config.model),
        backend=config.engine.backend,
        max_series=config.engine.max_series,
        max_batch=config.engine.max_batch,
        coverage=config.interval.coverage,
        threads=config.engine.threads,
        max_key=config.input.max_key,
    )
    if config.engine.backend == "auto":
        _event(logging.INFO, "backend", took=engine.backend, because=engine.backend_reason)
    path = config.checkpoint.path
    if path and not path.parent.is_dir():
        raise CheckpointError(f"{path}: its folder does not exist; make it")
    if path and checkpoint.load(engine, path):
        _event(logging.INFO, "restored", checkpoint=path, series=engine.series.active)
    return engine, engine.series.active


def _open_wire(config: Config, model: Model) -> tuple[Decoder, list[Encoder]]:
    """The decoder of ticks, and an encoder of predictions for each format published."""
    shape = Shape(
        model.id,
        secrets.randbits(32),
        model.spec.horizon,
        model.spec.targets,
        config.input.max_key,
        config.engine.max_batch,
    )
    decoder = Decoder(
        config.input.format,
        model.spec.inputs,
        most=config.engine.max_batch,
        max_key=config.input.max_key,
        max_frame=config.input.max_frame,
    )
    encoders = [Encoder(config.output.format, shape)]
    if config.output.batch and config.output.format != "arrow":
        encoders.append(Encoder("arrow", shape))
    return decoder, encoders


def notify(*states: str) -> None:
    """Tell systemd, if it asked to be told (sd_notify(3))."""
    address = os.environ.get("NOTIFY_SOCKET")
    if not address:
        return
    if address.startswith("@"):
        address = "\0" + address[1:]
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sender:
        sender.sendto("\n".join(states).encode(), address)


def _event(level: int, name: str, /, **fields: object) -> None:
    """Log what happened on one line: ``name key="value" ...``."""
    said = [f"{key}={json.dumps(value, default=str)}" for key, value in fields.items()]
    _log.log(level, "%s", " ".join([name, *said]))


def _log_to_stderr(level: str) -> None:
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    _log.handlers = [handler]
    _log.propagate = False
    _log.setLevel(level.upper())
