"""What systemd is told: that the daemon is ready, what it does, and that its loop goes on."""

import logging
import os
import socket
import time

PATIENCE = 1.0
"""Seconds that systemd is given to take what it is told; the loop waits for it."""

_log = logging.getLogger("streamlstm")


def notify(*states: str) -> None:
    """Tell systemd, if it asked to be told (sd_notify(3)); a failure is logged, no more."""
    address = os.environ.get("NOTIFY_SOCKET")
    if not address:
        return
    if address.startswith("@"):
        address = "\0" + address[1:]
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sender:
            sender.settimeout(PATIENCE)
            sender.sendto("\n".join(states).encode(), address)
    except OSError as error:
        _log.warning("systemd could not be told %s: %s", states[0], error)


class Watchdog:
    """Ends this process and starts it anew, unless the loop says in time that it goes on.

    That is systemd's part (``WatchdogSec=``). Here is what the loop says, in the loop's own
    thread, so that it is not said of one that stands still.

    Attributes:
        due: when :meth:`feed` is to be called at the latest, seconds of the monotonic clock.
    """

    def __init__(self) -> None:
        """Be due at once, if systemd asked for it (sd_watchdog_enabled(3)), or else never."""
        asked = os.environ.get("WATCHDOG_USEC", "")
        of = os.environ.get("WATCHDOG_PID", str(os.getpid()))
        meant = asked.isdigit() and of == str(os.getpid())
        self._every = int(asked) / 3e6 if meant else float("inf")
        self.due = time.monotonic() if meant else float("inf")

    def feed(self) -> None:
        """Say that the loop goes on, where it is time."""
        now = time.monotonic()
        if now >= self.due:
            self.due = now + self._every
            notify("WATCHDOG=1")
