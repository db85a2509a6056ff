"""The way of a tick, from socket to socket, a batch at a time.

    receive -> read -> settle -> place -> queue -> journal -> judge -> step -> write -> send

:func:`_run` goes this way in compiled code, without the interpreter, for as long as there is
nothing but sound ticks; it even sleeps there. It comes back for whatever else there is: a signal, a
subscription, the end of its time, a batch with a message that is faulty or that only a library can
read. A backend without compiled code of its own, or a second format of predictions, goes the same
way from Python, one stage after the other.
"""

import os
import time
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import zmq
from numba import types
from numpy.typing import NDArray

from streamlstm import metrics, transport
from streamlstm.admission import place
from streamlstm.appending import FULL, Log, append, commit, nowhere
from streamlstm.backlog import BLOCK, Backlog, Queue, add, make_room
from streamlstm.copy_on_write import BEHIND, MORE, sweep
from streamlstm.engine import Engine, events
from streamlstm.handover import Handover
from streamlstm.index import CLOSING, IDLE, WAITING, approach, close, seek
from streamlstm.jit import njit
from streamlstm.kernels.cell import Stages
from streamlstm.memory import call_for_int, require
from streamlstm.parking import Parking
from streamlstm.placed import placed, whole
from streamlstm.rounds import compute
from streamlstm.segments import JournalError
from streamlstm.ticks import Arrivals, Keys, Messages, Names, Ticks, first, rows_of
from streamlstm.transport import Publisher, Receiver, Sink, Source, drain, flush, wait
from streamlstm.wire.codec import Decoder, Encoder, settle
from streamlstm.wire.format import SOUND, Columns, Limits, MessageLayout
from streamlstm.wire.publishers import Publishers
from streamlstm.work import COUNT, Work

TURNS = 4
"""Batches taken from the input for one that is stepped, at most, where ticks may be dropped."""
JOURNAL = 1 << 32
"""What is added to an error number that is the journal's; a socket's are below."""
OTHER, ODD = range(2)
"""Why :func:`_run` came back: something but ticks; messages that are not all sound, or of series
that may be parked."""
MOST_EVICTED = 1024
"""Series that were idle for too long, evicted at once."""


class Code(NamedTuple):
    """Where the machine code of what differs by format and cell lies."""

    read: int
    step: int
    write: int


class Way(NamedTuple):
    """All that a tick passes on its way, for compiled code."""

    code: Code
    items: NDArray[np.int64]
    """what is waited for: the input, subscriptions, what wakes the daemon up, and others"""
    source: Source
    most: int
    """messages taken at once"""
    columns: Columns
    limits: Limits
    latest_arrival: NDArray[np.int64]
    refused: NDArray[np.int64]
    publishers: Publishers
    queue: Queue
    work: Work
    network: int
    beside: Stages
    """of the step"""
    names: Names
    written: Messages
    layout: MessageLayout
    together: bool
    """whether one message holds all predictions that are written at once"""
    sink: Sink
    log: Log
    parks: bool
    """whether a series that is not known may be parked"""
    values: NDArray[np.void]
    """of the metrics"""
    clock: NDArray[np.int64]
    """(3,) room for a time, and when the latest batch was served, ns of the monotonic clock"""
    wait_ns: int
    """for a batch to fill, once the first tick is there"""
    spin_ns: int
    """after a batch, in which the input is looked at without sleeping"""


class Loop:
    """Takes ticks from a receiver, and gives predictions to a publisher."""

    def __init__(
        self,
        receiver: Receiver,
        decoder: Decoder,
        pending: Backlog,
        engine: Engine,
        encoders: Sequence[Encoder],
        publisher: Publisher,
        values: NDArray[np.void],
        *others: "zmq.Socket[bytes] | int",
        log: Log | None = None,
        parking: Parking | None = None,
        idle_timeout: float = 0,
        wait_ns: int = 0,
        spin_ns: int = 0,
    ) -> None:
        """Connect the stages.

        Args:
            receiver, decoder, pending, engine, encoders, publisher: in this order.
            values: of the metrics, (1,) of :data:`streamlstm.metrics.LAYOUT`.
            others: sockets and file descriptors; what arrives there makes :meth:`run` come back.
            log: the journal's, if there is one.
            parking: where series that are evicted go to, and come back from.
            idle_timeout: seconds after which a series that was not heard is evicted; 0: never. The
                engine's series are ordered where this or parking is given.
            wait_ns, spin_ns: see :class:`Way`.
        """
        self.receiver, self.decoder, self.pending = receiver, decoder, pending
        self.engine, self.encoders, self.publisher = engine, encoders, publisher
        self._log = log or nowhere()
        self._parking, self._idle_ns = parking, round(1e9 * idle_timeout)
        self._begun = time.monotonic_ns()
        self.handover: Handover | None = None
        """to be kept up to date, if there is one; what serves is Python then"""
        self._values, self._wait_ns, self._spin_ns = values, wait_ns, spin_ns
        waited_for = (receiver.socket, publisher.socket, *others)
        self._items = transport.poll_items(*waited_for)
        self._poller = zmq.Poller()
        for each in waited_for:
            self._poller.register(each, zmq.POLLIN)
        self._way = self._compiled_way()
        if self._way:
            require(_run, self._way, 0)
        require(_record, self._log, engine.work, pending.waiting, 0)

    @property
    def compiled(self) -> bool:
        """Whether ticks pass without the interpreter."""
        return self._way is not None

    def _compiled_way(self) -> Way | None:
        """What :func:`_run` is given; None where a stage has no compiled code."""
        engine, reader, writer = self.engine, self.decoder.reader, self.encoders[0].writer
        if not transport.compiled() or engine.code is None or len(self.encoders) > 1:
            return None
        work, names, messages = engine.work, engine.series.names, self.receiver.messages
        columns, written = reader.columns, writer.messages
        return placed(
            Way(
                Code(
                    require(reader.compiled, messages, 0, columns, reader.limits),
                    engine.code,
                    require(writer.compiled, written, writer.layout, work.forecasts, names, 0),
                ),
                self._items,
                self.receiver.source,
                self.decoder.most,
                columns,
                reader.limits,
                self.decoder.latest_arrival,
                self.decoder.refused,
                self.decoder.publishers,
                self.pending.queue,
                work,
                engine.buffers.plan,
                engine.stages,
                names,
                written,
                writer.layout,
                writer.batch,
                self.publisher.sink,
                self._log,
                self._parking is not None,
                self._values,
                np.zeros(3, np.int64),
                self._wait_ns,
                self._spin_ns,
            )
        )

    def warm_up(self) -> None:
        """Compile or load all that a tick meets on its way; none is taken or counted."""
        self.engine.warm_up()
        transport.warm_up()
        counted, self._values = self._values, self._values[:0]
        self._take(Messages.of([]), 0)
        self.step()
        self.evict_idle()
        self._values = counted
        if self._way:
            _run(self._way, 0)

    def _heed(self, error: int) -> None:
        if error:
            raise JournalError(error, f"journal: {os.strerror(error)}")

    def run(self, until: int) -> int:
        """Serve ticks until something else is there, or ``until``, ns of the monotonic clock.

        Returns how many messages were taken.

        Raises:
            zmq.ZMQError: a socket failed.
            JournalError: as :meth:`step`.
        """
        if self._way is None or self.handover:
            return self._run(until)
        why, count, taken = _run(self._way, until)
        if why < 0:
            self._heed(max(0, -why - JOURNAL))
            raise zmq.ZMQError(-why)
        self._close()
        if why == ODD:
            self._take(self.receiver.messages, count)
            if len(self.pending):
                self.step()
        return taken + count

    def _run(self, until: int) -> int:
        """The same, a batch at a time, from Python."""
        waiting, blocks = len(self.pending), self.pending.queue.policy == BLOCK
        copied = sweep(self.engine.work.slots.shadow)
        patience = 0 if waiting or copied == MORE else max(0, until - time.monotonic_ns())
        if copied == BEHIND:
            patience = min(patience, 1_000_000)
        ready = dict(self._poller.poll(-(-patience // 1_000_000)))
        taken = 0
        if self.receiver.socket in ready and not (blocks and waiting):
            if patience and self._wait_ns:
                time.sleep(self._wait_ns / 1e9)
            for _ in range(1 if blocks else TURNS):
                count = self.receiver.receive(self.decoder.most)
                if not count:
                    break
                self._take(self.receiver.messages, count)
                taken += count
        if len(self.pending):
            self.step()
        return taken

    def _take(self, messages: Messages, count: int) -> None:
        """Decode messages and let their ticks wait."""
        begun = time.monotonic_ns()
        self.let_wait(self.decoder.decode(messages, count, time.time_ns()), begun)
        metrics.took(self._values, self.decoder.rows, (time.monotonic_ns() - begun) / 1e9)

    def let_wait(self, arrivals: Arrivals, begun: int) -> None:
        """Find the series of ticks that were taken at ``begun``, ns of the monotonic clock."""
        queue, work = self.pending.queue, self.engine.work
        for part in arrivals.parts(queue.batch):
            oldest = _oldest(queue, begun)
            if self._parking:
                self._parking.make_way(part, begun, oldest)
            add(queue, place(work, part, queue.ticks, make_room(queue), begun, oldest), begun)

    def step(self) -> None:
        """Step a batch of those that wait, and publish.

        Raises:
            JournalError: it could not be journalled, and is the next one still.
        """
        ticks, taken = self.pending.first()
        begun, now = time.monotonic_ns(), time.time_ns()
        if self.handover:
            self.handover.prepare()
        self._heed(_record(self._log, self.engine.work, ticks, now))
        self.pending.drop(len(ticks.ts))
        forecasts = self.engine.step(ticks, now)
        if self.handover:
            self.handover.follow(ticks, now)
        self._heed(commit(self._log))
        stepped, encoding = time.monotonic_ns(), 0
        for encoder in self.encoders:
            sent = 0
            while sent < len(forecasts.slot):
                since = time.monotonic_ns()
                sent = encoder.encode(forecasts, self.engine.series.names, sent)
                encoding += time.monotonic_ns() - since
                self.publisher.send(encoder.messages, encoder.count)
            if not sent:
                encoder.encode(forecasts, self.engine.series.names)
        self._close()
        done = time.monotonic_ns()
        metrics.stepped(
            self._values,
            ticks.ts,
            len(forecasts.slot),
            self.engine.taken - len(forecasts.slot),
            time.time_ns(),
            (stepped - begun) / 1e9,
            encoding / 1e9,
            (done - stepped - encoding) / 1e9,
            (done - taken) / 1e9,
        )

    def _close(self) -> None:
        """Close the series that ended, those parked included."""
        if not len(self.engine.ended):
            return
        if self._parking:
            self._parking.forget(self.engine.series.keys(self.engine.ended))
        self.engine.close(self.pending.waiting)

    def evict_idle(self) -> bool:
        """Evict series that were idle for too long, between two batches; whether more are left."""
        # a clock that is set does not make series idle, and neither does a daemon that was down
        before = time.monotonic_ns() - self._idle_ns
        if not self._idle_ns or before <= self._begun:
            return False
        oldest = min(before, _oldest(self.pending.queue, WAITING))
        slots = self.engine.series.longest_idle(MOST_EVICTED, oldest)
        if self._parking and not self._parking.park(slots):
            return False
        self.engine.series.release(slots, IDLE)
        return len(slots) == MOST_EVICTED


# --- compiled -------------------------------------------------------------------------------------

_clock_gettime: Any = types.ExternalFunction("clock_gettime", types.int32(types.int32, types.intp))
_MONOTONIC, _REALTIME = time.CLOCK_MONOTONIC, time.CLOCK_REALTIME


@njit(cache=True, _nrt=False)
def _now(clock: NDArray[np.int64], which: int) -> int:
    """Nanoseconds of a clock."""
    _clock_gettime(which, clock.ctypes.data)
    return clock[0] * 1_000_000_000 + clock[1]


@njit(cache=True, nogil=True, error_model="numpy", _nrt=False)
def _run(way: Way, until: int) -> tuple[int, int, int]:
    """Serve ticks; why it came back (an error number below 0), messages unread, and those taken."""
    queue, taken = way.queue, 0
    while True:
        now = _now(way.clock, _MONOTONIC)
        waiting = queue.bounds[1] - queue.bounds[0]
        patience = 0
        if now >= until:
            if waiting == 0:
                return OTHER, 0, taken
        elif waiting == 0 and now >= way.clock[2] + way.spin_ns:
            patience = (until - now + 999_999) // 1_000_000
        copied = sweep(way.work.slots.shadow)
        if copied:
            patience = min(patience, 0 if copied == MORE else 1)
        ready = wait(way.items, patience)
        if ready < 0:
            return ready, 0, taken
        if ready & 1 and patience and way.wait_ns:
            _sleep(way.clock, way.wait_ns)
        if ready & 1 and (waiting == 0 or queue.policy != BLOCK):
            for _ in range(1 if queue.policy == BLOCK else TURNS):
                count = drain(way.source, way.most)
                if count < 0:
                    return count, 0, taken
                if count:
                    if not _take(way, count):
                        return ODD, count, taken
                    taken += count
                if count < way.most:
                    break
        if queue.bounds[1] > queue.bounds[0]:
            error = _step(way)
            if error:
                return -error, 0, taken
            way.clock[2] = _now(way.clock, _MONOTONIC)
        if ready & ~1 or now >= until or way.work.slots.counts[CLOSING] > 0:
            return OTHER, 0, taken


@njit(cache=True, error_model="numpy", _nrt=False, inline="always")
def _take(way: Way, count: int) -> bool:
    """Read messages and let their ticks wait; False, and nothing done, where one is not sound."""
    queue, columns, messages = way.queue, whole(way.columns), whole(way.source.messages)
    begun = _now(way.clock, _MONOTONIC)
    rows = call_for_int(way.code.read, messages, count, columns, whole(way.limits))
    for row in range(rows):
        if columns.fault[row] != SOUND:
            return False
    if way.parks and not _known(way, rows):
        return False
    arrived = _now(way.clock, _REALTIME)
    settle(
        columns,
        rows,
        arrived,
        way.latest_arrival,
        way.refused,
        whole(way.publishers),
        messages.data,
    )
    for begin in range(0, rows, queue.batch):
        end = min(rows, begin + queue.batch)
        keys = Keys(messages.data, columns.begin[begin:end], columns.end[begin:end])
        arrivals = Arrivals(
            keys,
            columns.ts[begin:end],
            columns.values[begin:end],
            columns.flags[begin:end],
            max(arrived, way.latest_arrival[0]),
        )
        oldest = _oldest(queue, begun)
        add(queue, place(way.work, arrivals, queue.ticks, make_room(queue), begun, oldest), begun)
    seconds = (_now(way.clock, _MONOTONIC) - begun) * 1e-9
    metrics.took(way.values, rows, seconds)
    return True


@njit(cache=True, error_model="numpy", _nrt=False, inline="always")
def _step(way: Way) -> int:
    """Step a batch of those that wait, and publish; 0, or an error number."""
    work, queue = way.work, way.queue
    begin = queue.bounds[0]
    end = min(queue.bounds[1], begin + queue.batch)
    ticks, taken_at = rows_of(queue.ticks, begin, end), queue.taken[begin]
    begun = _now(way.clock, _MONOTONIC)
    now = _now(way.clock, _REALTIME)
    error = _record(way.log, work, ticks, now)
    if error:
        return JOURNAL + error
    queue.bounds[0] = end
    published = compute(work, ticks, now, way.code.step, way.network, whole(way.beside))
    warm = work.schedule.progress[COUNT] - published
    error = commit(way.log)
    if error:
        return JOURNAL + error
    stepped = _now(way.clock, _MONOTONIC)
    forecasts, sent, encoding = first(work.forecasts, published), 0, 0
    messages, layout, names = whole(way.written), whole(way.layout), whole(way.names)
    since = stepped
    while sent < published:
        written = call_for_int(way.code.write, messages, layout, forecasts, names, sent)
        until = _now(way.clock, _MONOTONIC)
        encoding += until - since
        error = flush(way.sink, messages, 1 if way.together else written - sent)
        if error:
            return error
        since = _now(way.clock, _MONOTONIC)
        sent = written
    if work.slots.counts[CLOSING] > 0 and not way.parks:
        close(work.slots, queue.ticks.slot[end : queue.bounds[1]], work.clock.begun)
    metrics.stepped(
        way.values,
        ticks.ts,
        published,
        warm,
        _now(way.clock, _REALTIME),
        (stepped - begun) * 1e-9,
        encoding * 1e-9,
        (since - stepped - encoding) * 1e-9,
        (since - taken_at) * 1e-9,
    )
    return 0


@njit(cache=True, error_model="numpy", _nrt=False, inline="always")
def _known(way: Way, rows: int) -> bool:
    """Whether all series of the rows that were read have a slot."""
    columns, hashes, index = way.columns, way.work.hashes, way.work.slots
    data = way.source.messages.data
    for begin in range(0, rows, way.queue.batch):
        end = min(rows, begin + way.queue.batch)
        keys = Keys(data, columns.begin[begin:end], columns.end[begin:end])
        approach(index, keys, hashes)
        for i in range(end - begin):
            key, length = data.ctypes.data + keys.begin[i], keys.end[i] - keys.begin[i]
            if seek(index, hashes[i], key, length) < 0:
                return False
    return True


@njit(cache=True, error_model="numpy", _nrt=False)
def _oldest(queue: Queue, otherwise: int) -> int:
    """When the first of those that wait was taken; ``otherwise`` where none does."""
    begin = queue.bounds[0]
    return int(queue.taken[begin]) if begin < queue.bounds[1] else otherwise


@njit(cache=True, nogil=True, error_model="numpy", _nrt=False, inline="always")
def _record(log: Log, work: Work, ticks: Ticks, now: int) -> int:
    """Write a batch to the journal, and what became of slots before it; 0 or an error number."""
    told = events(work)
    error = append(log, ticks, told, now)
    while error == FULL:  # the next segment is being made
        _sleep(log.sleep, 1_000_000)
        error = append(log, ticks, told, now)
    return error


_nanosleep: Any = types.ExternalFunction("nanosleep", types.int32(types.intp, types.intp))


@njit(cache=True, _nrt=False)
def _sleep(clock: NDArray[np.int64], ns: int) -> None:
    clock[0], clock[1] = ns // 1_000_000_000, ns % 1_000_000_000
    _nanosleep(clock.ctypes.data, 0)
