"""The log: a line for each event, ``name key="value" ...``, but not the same again and again."""

import json
import logging
import math
import sys
import time
from collections import deque

EVERY = 10.0
"""Seconds between two lines about the same."""

KEPT = 50
"""Lines that :class:`Latest` keeps."""

Line = tuple[int, float, str, str]
"""Its number, from 1, when it was, in seconds since the epoch, its level and its text."""

_log = logging.getLogger("streamlstm")


class Limited:
    """Says the same once in a while only."""

    def __init__(self) -> None:
        """Nothing was said yet."""
        self._said: dict[str, float] = {}

    def warn(self, name: str, about: str, **fields: object) -> None:
        """Log what happened, unless something about the same was logged not long ago."""
        now = time.monotonic()
        if now >= self._said.get(about, -math.inf) + EVERY:
            self._said[about] = now
            event(logging.WARNING, name, **fields)


class Latest(logging.Handler):
    """Keeps the latest lines, for who wants to look at them."""

    def __init__(self) -> None:
        """Take what is logged from here on."""
        super().__init__()
        self._lines: deque[Line] = deque(maxlen=KEPT)
        self._count = 0
        _log.addHandler(self)

    def detach(self) -> None:
        """Take no more."""
        _log.removeHandler(self)

    def lines(self) -> list[Line]:
        """Those kept, the latest last; from whichever thread."""
        return list(self._lines)

    def emit(self, record: logging.LogRecord) -> None:
        """Keep a line."""
        self._count += 1
        line = self._count, record.created, record.levelname.lower(), record.getMessage()
        self._lines.append(line)


def event(level: int, name: str, /, **fields: object) -> None:
    """Log what happened on one line."""
    said = [f"{key}={json.dumps(value, default=str)}" for key, value in fields.items()]
    _log.log(level, "%s", " ".join([name, *said]))


def to_stderr(level: str) -> None:
    """Log events from ``level`` on: debug, info, warning or error."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    _log.handlers = [handler]
    _log.propagate = False
    _log.setLevel(level.upper())
