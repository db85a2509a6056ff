"""Compile what the daemon needs before it starts: where nothing is compiled yet, on several cores.

Numba compiles one function at a time in a process. So a few processes lay the same daemon out
without compiling, which gives each the same list of what it requires; each takes the next of it
until nothing is left, and what they make goes to the folder of compiled code.
"""

import json
import logging
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from streamlstm import children, logs
from streamlstm.config import Config
from streamlstm.memory import postponing
from streamlstm.model_file import load_model
from streamlstm.service import Service, look
from streamlstm.systemd import notify
from streamlstm.web import listen

MOST = 4
"""Processes that compile at once, some 300 MB each: more would wait for the longest function."""
LAST = "_record"
"""What any daemon requires last, whatever its configuration."""

_log = logging.getLogger("streamlstm")


def compile_all(config: Config) -> None:
    """Compile, into the cache folder, all that the daemon would; one may serve meanwhile.

    Raises:
        the errors of :meth:`streamlstm.service.Service.prepare`.
    """
    with tempfile.TemporaryDirectory() as folder:
        parked = Path(folder, "parked") if config.engine.parking else None
        with _apart(config, parking=parked) as service:
            service.prepare()


def share(config: Config, *, serving: bool = False) -> None:
    """Where no daemon was compiled yet, compile most of it on several cores.

    What goes wrong in these processes is left for the daemon to say, or to compile; so is what it
    says at once, if it is to serve afterwards that its port is taken too.
    """
    processes = min(len(os.sched_getaffinity(0)), MOST)
    kept = Path(os.environ["NUMBA_CACHE_DIR"])
    python = "py{}{}".format(*sys.version_info)  # as Numba names what it keeps
    if processes == 1 or next(kept.rglob(f"loop.{LAST}-*.{python}*.nbi"), None):
        return
    try:
        look(config)
        load_model(config.model)
        if serving and config.metrics.enabled:
            listen(config.metrics.host, config.metrics.port).close()
    except (ValueError, OSError, RuntimeError):  # which the daemon says, and at once
        return
    notify("STATUS=compiling")
    logs.event(logging.INFO, "compiling", processes=processes, kept=kept)
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)  # what it asks for is yet to be opened
    try:
        _compile_on(processes, config)
    except OSError as error:
        _log.warning("no process could be begun that compiles: %s", error.strerror)
    finally:
        signal.signal(signal.SIGHUP, before)


def _compile_on(processes: int, config: Config) -> None:
    """Begin so many processes, and wait for them.

    Raises:
        OSError: one cannot be begun; all are ended.
    """
    numbers, write = os.pipe()
    os.write(write, bytes(range(256)))
    os.close(write)
    children: list[subprocess.Popen[bytes]] = []
    try:
        for _ in range(processes):
            children.append(_begun(numbers, config))
        for child in children:
            child.wait()
    finally:
        os.close(numbers)
        for child in children:
            child.kill()
            child.wait()


def _begun(numbers: int, config: Config) -> subprocess.Popen[bytes]:
    """A process that takes part."""
    env = children.environment()
    env.pop("NOTIFY_SOCKET", None)
    child = subprocess.Popen(
        [*children.command("streamlstm.ahead"), str(os.getpid()), str(numbers)],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        pass_fds=[numbers],
        env=env,
        process_group=0,  # Ctrl-C is for this process, which then ends it
    )
    assert child.stdin
    with suppress(BrokenPipeError), child.stdin as pipe:
        pipe.write(_said(config))
    return child


def _said(config: Config) -> bytes:
    """All options as JSON, paths that are no UTF-8 included."""
    return json.dumps(config.model_dump(), default=os.fspath).encode()


def _take_part(numbers: int) -> None:
    """Compile what the numbers read there stand for, a byte each, until they end."""
    config = Config.model_validate(json.load(sys.stdin))
    # a GPU is the daemon's alone, and what it compiles for the CPU is the same beside one
    with _apart(config, parking=None, backend="cpu") as service:
        with postponing() as wanted:
            service.lay_out()
        while (said := os.read(numbers, 1)) and said[0] < len(wanted):
            function, kinds = wanted[said[0]]
            function.compile(kinds)


@contextmanager
def _apart(config: Config, **engine: object) -> Iterator[Service]:
    """A daemon by the same configuration, apart from what another has on disk and serves."""
    apart: dict[str, dict[str, object]] = {
        "checkpoint": {"path": None},
        "engine": engine,
        "metrics": {"enabled": False},
        "service": {"cpus": ()},
    }
    tables = {
        table: getattr(config, table).model_copy(update=options) for table, options in apart.items()
    }
    service = Service(config.model_copy(update=tables))
    try:
        yield service
    finally:
        service.close()


if __name__ == "__main__":
    children.end_with(int(sys.argv[1]))
    _take_part(int(sys.argv[2]))
