"""The way of a tick, from socket to socket, a batch at a time.

    receive -> read -> settle -> place -> wait their turn -> prepare -> step -> finish -> write -> send

:func:`_run` goes this way in compiled code for as long as nothing else is to be done, without the
interpreter: it even sleeps there. It comes back for a signal, for a subscription, at a given time,
and for messages that only a library can read. Formats and backends whose own code is not compiled
go the same way from Python, a stage after the other.
"""

import time
from typing import Any, NamedTuple

import numpy as np
import zmq
from numba import njit, types
from numpy.typing import NDArray

from streamlstm import backlog, transport
from streamlstm.backlog import BLOCK, Backlog, Queue
from streamlstm.engine import Engine, Work, finish, place, prepare
from streamlstm.memory import address_of, call, call_for_int
from streamlstm.metrics import Metrics, record
from streamlstm.ticks import Arrivals, Keys, Messages, Names
from streamlstm.transport import Publisher, Receiver, Sink, Source, drain, flush, wait
from streamlstm.wire.codec import Decoder, Encoder, settle
from streamlstm.wire.format import UNREAD, Columns, Layout, Limits

TURNS = 4
"""Times that the input is looked at between two batches, where ticks may be dropped."""
DUE, ASKED, ODD = range(3)
"""Why :func:`_run` came back: the time is over; something but ticks is there; unread messages."""


class Stages(NamedTuple):
    """Where the machine code of what differs by format and cell lies."""

    read: int
    step: int
    network: int
    write: int


class Way(NamedTuple):
    """All that a tick passes on its way."""

    stages: Stages
    items: NDArray[np.int64]
    source: Source
    columns: Columns
    limits: Limits
    latest_arrival: NDArray[np.int64]
    refused: NDArray[np.int64]
    sample: NDArray[np.int64]
    queue: Queue
    work: Work
    names: Names
    written: Messages
    layout: Layout
    sink: Sink
    metrics: NDArray[np.void]
    clock: NDArray[np.int64]
