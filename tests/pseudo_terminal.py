"""A command in a terminal of its own, and what is seen there."""

import contextlib
import fcntl
import os
import pty
import re
import select
import signal
import struct
import subprocess
import termios
import time
from collections.abc import Iterator, Mapping, Sequence
from types import MappingProxyType

PATIENCE = 60.0
_CONTROL = re.compile(
    r"\x1b\][^\x07\x1b]*(?:\x07|\x1b\\)"  # titles
    r"|\x1b\[[0-?]*[ -/]*[@-~]"
    r"|\x1b[ -/]*[0-~]"
)
_ANEW = re.compile(r"\x1b\[H|\x1b\[2J|\x1b\[\?1049[hl]")
"""What begins another picture: the cursor goes home, the screen is cleared, or is another one."""


class Terminal:
    """What a process writes to its terminal, and reads from there."""

    def __init__(self, process: "subprocess.Popen[bytes]", fd: int) -> None:
        self.process, self._fd = process, fd
        self.written = ""

    def read(self, seconds: float = PATIENCE) -> bool:
        """Take what is written next; whether there was anything, within ``seconds``."""
        if not select.select([self._fd], [], [], seconds)[0]:
            return False
        try:
            came = os.read(self._fd, 1 << 16)
        except OSError:  # the last of it has gone
            came = b""
        self.written += came.decode(errors="replace")
        return bool(came)

    @property
    def text(self) -> str:
        """All that was written, without what steers the terminal."""
        return _CONTROL.sub("", self.written).replace("\r", "")

    @property
    def pictures(self) -> list[str]:
        """What was drawn one upon the other; the last one may not be whole."""
        return [_CONTROL.sub("", each).replace("\r", "") for each in _ANEW.split(self.written)]

    def until(self, what: str, since: int = 0) -> str:
        """Read until ``what``, a pattern, is there; the text since the character ``since``."""
        deadline = time.monotonic() + PATIENCE
        while not re.search(what, self.text[since:], re.DOTALL):
            assert time.monotonic() < deadline, self.text[since:]
            assert self.read(deadline - time.monotonic()), f"it ended: {self.text[since:]}"
        return self.text[since:]

    def drawn(self, what: str) -> str:
        """Read until a whole picture from now on has ``what``, a pattern; that picture."""
        seen = len(self.pictures)
        deadline = time.monotonic() + PATIENCE
        while True:
            for picture in self.pictures[seen:-1]:
                if re.search(what, picture, re.DOTALL):
                    return picture
            assert time.monotonic() < deadline, self.pictures[-2:]
            assert self.read(deadline - time.monotonic()), self.text

    def type(self, keys: str) -> None:
        os.write(self._fd, keys.encode())

    def resize(self, columns: int, rows: int) -> None:
        fcntl.ioctl(self._fd, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))

    def end(self, signal_number: int = signal.SIGINT) -> int:
        """Send it a signal, read what it still has to say, and return its exit code."""
        self.process.send_signal(signal_number)
        while self.read():
            pass
        return self.process.wait(PATIENCE)


@contextlib.contextmanager
def terminal(
    command: Sequence[str],
    *,
    columns: int = 100,
    rows: int = 24,
    env: Mapping[str, str] = MappingProxyType({}),
) -> Iterator[Terminal]:
    """Run ``command`` with all its ends in a terminal of that size."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(ours, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))
    unwanted = ("COLUMNS", "LINES", "NO_COLOR", "FORCE_COLOR")
    plain = {key: value for key, value in os.environ.items() if key not in unwanted}
    # that makes it the terminal of a session; where a test has imported JAX, no Python may fork
    process = subprocess.Popen(
        ["setsid", "--ctty", *command], stdin=theirs, stdout=theirs, stderr=theirs,
        env=plain | {"TERM": "xterm-256color"} | dict(env),
    )  # fmt: skip
    os.close(theirs)
    try:
        yield Terminal(process, ours)
    finally:
        process.kill()
        process.wait()
        os.close(ours)
