"""The log: a line for each event, ``name key="value" ...``, but not the same again and again.

On a terminal or in a file a line begins with time and level. systemd's journal has the time itself,
and takes the level from a prefix (sd-daemon(3)), so that ``journalctl --priority=warning`` works.
"""

import contextlib
import json
import logging
import math
import os
import sys
import time
from collections import deque
from typing import TextIO

EVERY = 10.0
"""Seconds between two lines about the same."""

_PRIORITIES = {
    logging.DEBUG: 7, logging.INFO: 6, logging.WARNING: 4, logging.ERROR: 3, logging.CRITICAL: 2,
}  # fmt: skip
"""As syslog(3) numbers them."""

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
    plain = logging.Formatter("%(asctime)s %(levelname)s %(message)s")
    handler.setFormatter(_ForJournal() if _is_journal(sys.stderr) else plain)
    _log.handlers = [handler]
    _log.propagate = False
    _log.setLevel(level.upper())


class _ForJournal(logging.Formatter):
    """Begins each line with its priority, those of a traceback too."""

    def format(self, record: logging.LogRecord) -> str:
        """As text."""
        priority = _PRIORITIES[record.levelno]
        return "\n".join(f"<{priority}>{line}" for line in super().format(record).splitlines())


def _is_journal(stream: TextIO) -> bool:
    """Whether what is written there goes to systemd's journal."""
    with contextlib.suppress(OSError):
        found = os.fstat(stream.fileno())
        return os.environ.get("JOURNAL_STREAM") == f"{found.st_dev}:{found.st_ino}"
    return False
