"""The latest prediction of each series, for those who join late: a ROUTER socket.

**Asking.** A subscriber that has subscribed to the output sends ``[prefix]`` from a DEALER socket,
or ``[prefix, token]`` (a token of 1 to ``LONGEST_TOKEN`` bytes), and gets

- the latest prediction of each series whose name begins with the prefix, each as the output writes
  it, with its ``boot`` and ``seq`` (in arrow, many in a message);
- at last ``[streamlstm.snapshot, count]``: how many predictions these were, in decimal digits; or
  ``[streamlstm.refused, why]``, and no more.

It drops from the output what has a ``seq`` up to that of the snapshot, series by series, and so
misses none and has none twice (the Clone pattern, ZeroMQ guide, chapter 5). All that was published
before the snapshot began has at most these numbers.

Whether its subscription had arrived before the snapshot began, a subscriber is told by the output
itself: first of all, ``streamlstm.joined.<token>`` is published there, to which it subscribed too.
Without that, it asks again.

**How.** Requests are served between batches, for ``TURN`` at a time, so that what is said of a
series is always the latest that was published. Where a requester does not keep up, its pipe of
messages fills, and it waits for its turn without holding up anybody.
"""

import contextlib
import math
import time
from collections import deque

import numpy as np
import zmq
from numpy.typing import NDArray

from streamlstm.engine import Engine
from streamlstm.ticks import Forecasts, Messages
from streamlstm.transport import Publisher, Responder
from streamlstm.wire.codec import Encoder
from streamlstm.wire.format import JOINED, LONGEST_TOKEN, REFUSED, SNAPSHOT

TURN = 0.001
"""Seconds for which requests are served between two batches."""
PAUSE = 0.0002
"""Seconds for ticks until the next turn."""
BLOCKED = 0.01
"""Seconds until the next turn where no requester takes more."""
PATIENCE = 30.0
"""Seconds in which a requester must take something."""
MOST = 64
"""Requests served at once, or taken in a turn; those beyond are refused."""
PIECE, SCANNED = 128, 4096
"""Predictions written at once, and series looked at for them."""


class _Request:
    """Who asked for what, and how far that is done."""

    def __init__(self, sender: bytes, prefix: bytes, token: bytes, now: float) -> None:
        self.sender, self.prefix, self.token = sender, np.frombuffer(prefix, np.uint8), token
        self.begun, self.next_slot, self.count, self.moved = False, 0, 0, now
        self.waiting: deque[list[bytes]] = deque()
        """messages written and not yet sent; the last of all ends it"""


class Snapshots:
    """Serves requests, a piece at a time.

    Attributes:
        responder: to be waited for, and opened.
        served, refused: requests served whole; refused or given up.
        due: when :meth:`serve` is to be called at the latest, seconds of the monotonic clock.
    """

    def __init__(
        self, responder: Responder, engine: Engine, encoder: Encoder, publisher: Publisher
    ) -> None:
        """Answer with what ``engine`` keeps, as ``encoder`` writes it."""
        self.responder = responder
        self.engine, self.encoder, self.publisher = engine, encoder, publisher
        self.served = self.refused = 0
        self.due = math.inf
        self._requests: deque[_Request] = deque()

    def serve_from(self, engine: Engine, encoder: Encoder) -> None:
        """Go on with another engine, whose series have the same slots."""
        self.engine, self.encoder = engine, encoder

    def serve(self) -> None:
        """Take requests, and go on with those there are, for a turn; waits for nobody."""
        now = time.monotonic()
        self._take(now)
        end, blocked = now + TURN, 0
        while self._requests and blocked < len(self._requests) and now < end:
            request = self._requests.popleft()
            moved = request.moved
            if self._serve(request, now):
                self._requests.append(request)  # each in its turn
                blocked = 0 if request.moved > moved else blocked + 1
            now = time.monotonic()
        if not self._requests:
            self.due = math.inf
        else:
            self.due = now + (BLOCKED if blocked == len(self._requests) else PAUSE)

    def _take(self, now: float) -> None:
        with contextlib.suppress(zmq.Again):
            for _ in range(MOST):
                sender, *frames = self.responder.socket.recv_multipart(zmq.NOBLOCK)
                if not 1 <= len(frames) <= 2 or len(b"".join(frames[1:])) > LONGEST_TOKEN:
                    self._refuse(sender, b"send [prefix] or [prefix, token]")
                elif len(self._requests) == MOST:
                    self._refuse(sender, b"busy; ask again later")
                elif any(request.sender == sender for request in self._requests):
                    self._refuse(sender, b"ask again when this one is served")
                else:
                    token = b"".join(frames[1:])
                    self._requests.append(_Request(sender, frames[0], token, now))

    def _refuse(self, sender: bytes, why: bytes) -> None:
        self.refused += 1
        with contextlib.suppress(zmq.ZMQError):
            self.responder.socket.send_multipart([sender, REFUSED, why], zmq.NOBLOCK)

    def _serve(self, request: _Request, now: float) -> bool:
        """Send the next piece; whether there is more to be done."""
        if not request.begun:
            request.begun = True
            if request.token:
                self.publisher.send(Messages.of([[JOINED + request.token]]), 1)
        if not request.waiting:
            self._write(request)
        try:
            while request.waiting:
                message = [request.sender, *request.waiting[0]]
                self.responder.socket.send_multipart(message, zmq.NOBLOCK)
                request.waiting.popleft()
                request.moved = time.monotonic()
                if message[1] == SNAPSHOT:
                    self.served += 1
                    return False
        except zmq.Again:
            if now < request.moved + PATIENCE:
                return True
        except zmq.ZMQError:  # gone
            pass
        else:
            request.moved = time.monotonic()
            return True
        self.refused += 1
        return False

    def _write(self, request: _Request) -> None:
        """Write the next predictions, or the end, to ``request.waiting``."""
        work, names = self.engine.work, self.engine.series.names
        used, begin = self.engine.series.used, request.next_slot
        if begin >= used:
            request.waiting.append([SNAPSHOT, b"%d" % request.count])
            return
        end = min(used, begin + SCANNED)
        slots = begin + _beginning(names.text[begin:end], request.prefix)
        seq = work.seq[slots]  # another one than is kept where that was taken back
        slots = slots[
            (work.latest.latest_seq[slots] == seq) & (seq > 0) & (names.lengths[slots] > 0)
        ]
        request.next_slot = end if len(slots) <= PIECE else int(slots[PIECE])
        slots = slots[:PIECE]
        latest = work.latest.latest[slots]
        forecasts = Forecasts(
            slots.astype(np.int32),
            work.latest.latest_ts[slots],
            work.latest.latest_seq[slots],
            latest[:, 0].copy(),
            latest[:, 1:].copy(),
            work.latest.latest_quality[slots],
        )
        sent = 0
        while sent < len(slots):
            sent = self.encoder.encode(forecasts, names, sent)
            messages = self.encoder.messages
            request.waiting.extend(messages.message(m) for m in range(self.encoder.count))
        request.count += len(slots)


def _beginning(names: NDArray[np.uint8], prefix: NDArray[np.uint8]) -> NDArray[np.int64]:
    """Which rows of ``names``, (n, bytes) zero-padded, begin with ``prefix``."""
    if len(prefix) > names.shape[1]:
        return np.zeros(0, np.int64)
    return np.flatnonzero((names[:, : len(prefix)] == prefix).all(axis=1))
