"""The real daemon, as a process of its own, and what a client of it needs."""

import contextlib
import json
import os
import select
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import zmq

from streamlstm.web import Server

COMMAND = """
import sys
from streamlstm import allocation, compiled
allocation.begin_anew()
compiled.choose_folder()
from streamlstm import checkpoint, config, service
{before}
options = dict(option.split("=", 1) for option in sys.argv[1:])
sys.exit(service.run(config.load_config(None, options), announce=True))
"""
LOCAL = "tcp://127.0.0.1:*"


class Daemon:
    """A running daemon; ``wait`` for its exit code after ``process.terminate()``."""

    def __init__(self, process: "subprocess.Popen[str]", log: Path) -> None:
        self.process, self._log = process, log
        assert process.stdout is not None
        line = process.stdout.readline()
        assert line, f"exit code {process.wait(60)}: {self.log}"
        said = json.loads(line)
        self.input, self.output, self.url = said["input"][0], said["output"][0], said["metrics"]
        self.snapshot = "".join(said["snapshot"][:1])

    @property
    def log(self) -> str:
        return self._log.read_text()

    def wait(self) -> int:
        return self.process.wait(60)

    def stop(self) -> int:
        self.process.terminate()
        return self.wait()

    @contextlib.contextmanager
    def stopped(self) -> Iterator[None]:
        """It stands still, and all that is sent waits for it."""
        os.kill(self.process.pid, signal.SIGSTOP)
        try:
            yield
        finally:
            os.kill(self.process.pid, signal.SIGCONT)

    @property
    def children(self) -> list[int]:
        """Its child processes."""
        found: list[int] = []
        for task in Path(f"/proc/{self.process.pid}/task").iterdir():
            with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # it ended meanwhile
                found += map(int, (task / "children").read_text().split())
        return found

    def get(self, path: str) -> str:
        with urllib.request.urlopen(self.url + path, timeout=30) as answer:
            return answer.read().decode()

    def metric(self, name: str) -> float:
        """The value of one sample, its labels as exposed."""
        for line in self.get("/metrics").splitlines():
            if line.startswith(f"{name} "):
                return float(line.rpartition(" ")[2])
        raise KeyError(name)


def get(server: Server, path: str) -> tuple[int, str]:
    """Status and text of an answer."""
    try:
        with urllib.request.urlopen(server.url + path, timeout=30) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read().decode()


def eventually(holds: Callable[[], bool]) -> None:
    """Wait until ``holds``; it asks the daemon, which takes its time."""
    deadline = time.monotonic() + 30
    while not holds():
        assert time.monotonic() < deadline


def ended(pid: int, within: float = 300) -> bool:
    """Wait, without taking its time, until a process is gone that is not ours."""
    try:
        descriptor = os.pidfd_open(pid)
    except ProcessLookupError:
        return True
    try:
        return bool(select.select([descriptor], [], [], within)[0])
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def start(
    folder: Path,
    model: Path,
    *,
    env: Mapping[str, str] = MappingProxyType({}),
    before: str = "",
    launcher: Sequence[str] = (),
    cwd: Path | None = None,
    **options: object,
) -> Iterator[Daemon]:
    """Run the daemon on free local ports; ``options`` as ``input__format="binary"``.

    ``before`` is Python to execute first; ``launcher`` a command that starts a given one. The
    package is that in ``cwd``.
    """
    given = {"input.bind": LOCAL, "output.bind": LOCAL, "metrics.port": 0, "model": model}
    given |= {name.replace("__", "."): value for name, value in options.items()}
    log = folder / "daemon.log"
    with log.open("w") as stderr:
        process = subprocess.Popen(
            [
                *launcher,
                sys.executable,
                "-c",
                COMMAND.format(before=before),
                *(f"{name}={value}" for name, value in given.items()),
            ],
            stdout=subprocess.PIPE,
            stderr=stderr,
            text=True,
            cwd=cwd,
            env={k: v for k, v in os.environ.items() if not k.startswith("STREAMLSTM_")} | {**env},
        )
    try:
        yield Daemon(process, log)
    finally:
        process.kill()
        process.wait()
        assert process.stdout is not None
        process.stdout.close()


class Client:
    """A publisher and a subscriber of plain pyzmq, both known to be connected."""

    def __init__(
        self,
        daemon: Daemon,
        topic: bytes = b"prediction.",
        *,
        push: bool = False,
        patience: int = 30_000,
    ) -> None:
        """With ``push``, the daemon pulls; ``patience`` in milliseconds."""
        self.context = zmq.Context()
        try:
            self._connect(daemon, topic, push, patience)
        except BaseException:  # the daemon is gone, say
            self.close()
            raise

    def _connect(self, daemon: Daemon, topic: bytes, push: bool, patience: int) -> None:
        self.sink = self.context.socket(zmq.SUB)
        self.sink.rcvhwm = 0
        self.sink.rcvtimeo = patience
        self.sink.subscribe(topic)
        self.sink.subscribe(b"streamlstm.welcome")
        self.sink.connect(daemon.output)
        assert self.sink.recv() == b"streamlstm.welcome"
        self.feed = self.context.socket(zmq.PUSH if push else zmq.XPUB)
        self.feed.sndhwm = 0
        self.feed.connect(daemon.input)
        assert push or self.feed.poll(patience), "the daemon does not subscribe"

    def send(self, *frames: bytes) -> None:
        self.feed.send_multipart(frames)

    def tick(self, series: str, **payload: Any) -> None:
        self.send(series.encode(), json.dumps(payload).encode())

    def receive(self, count: int) -> list[list[bytes]]:
        return [self.sink.recv_multipart() for _ in range(count)]

    def predictions(self, count: int) -> list[dict[str, Any]]:
        return [json.loads(payload) for _, payload in self.receive(count)]

    def silent(self, milliseconds: int = 50) -> bool:
        """Whether nothing more comes for so long."""
        return not self.sink.poll(milliseconds)

    def close(self) -> None:
        self.context.destroy(linger=0)

    def __enter__(self) -> "Client":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
