"""A first start compiles on several cores, and nothing of that outlives the daemon or harms it."""

import contextlib
import os
import select
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from numba.core import event

from streamlstm import ahead, memory
from streamlstm.config import Config
from streamlstm.web import listen
from tests.models import random_model_file

several_cores = pytest.mark.skipif(
    len(os.sched_getaffinity(0)) == 1, reason="one core: there is nobody to share with"
)


@pytest.fixture
def config(tmp_path: Path) -> Config:
    return Config.model_validate({"model": random_model_file(tmp_path)})


@pytest.fixture
def cold(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of compiled code that has none, for processes begun from here on."""
    folder = tmp_path / "cold"
    monkeypatch.setenv("NUMBA_CACHE_DIR", str(folder))
    return folder


def required(config: Config) -> list[str]:
    with ahead._apart(config, parking=None) as service, memory.postponing() as wanted:
        service.lay_out()
    return [function.__name__ for function, _ in wanted]


def test_what_a_daemon_requires_is_known_before_it_is_compiled(config: Config) -> None:
    listener = event.RecordingListener()
    event.register("numba:compile", listener)
    try:
        names = required(config)
    finally:
        event.unregister("numba:compile", listener)
    compiled = {what.data["dispatcher"].__name__ for _, what in listener.buffer}
    assert {"_lstm_rows", "before_one", "after_one", "compute", "_read", "_write", "_run"} <= {
        *names
    }
    assert not compiled & {*names}
    assert not memory.is_postponing()


def test_that_one_was_compiled_is_told_by_what_any_daemon_requires(config: Config) -> None:
    said = {"model": config.model, "output": {"batch": True}}  # which has no compiled loop
    for each in config, Config.model_validate(said):
        assert required(each)[-1] == ahead.LAST


def test_each_process_compiles_what_falls_to_it(config: Config, cold: Path) -> None:
    numbers, write = os.pipe()
    os.write(write, bytes([required(config).index("_lookup"), 255]))
    os.close(write)
    try:
        done = subprocess.run(
            [sys.executable, "-m", "streamlstm.ahead", str(os.getpid()), str(numbers)],
            input=ahead._said(config), pass_fds=[numbers], capture_output=True,
        )  # fmt: skip
    finally:
        os.close(numbers)
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")
    kept = {path.name.partition("-")[0] for path in cold.rglob("*.nbi")}
    assert "series._lookup" in kept
    assert not {"series._bind", "stages.after", "cpu._lstm_rows"} & kept


def test_one_that_was_compiled_before_is_not_shared(
    config: Config, cold: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nor is it where there is one core."""

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("a process was begun")

    monkeypatch.setattr(subprocess, "Popen", refuse)
    cold.mkdir()
    with monkeypatch.context() as alone:
        alone.setattr(os, "sched_getaffinity", lambda pid: {0})
        ahead.share(config)
    (cold / f"loop.{ahead.LAST}-1.py{sys.version_info[0]}{sys.version_info[1]}.nbi").touch()
    ahead.share(config)


def children_of(pid: int) -> list[int]:
    return [int(n) for n in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


@several_cores
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_no_process_outlives_the_daemon(
    number: int, config: Config, cold: Path, tmp_path: Path
) -> None:
    model = config.model.rename(tmp_path / "m\udcff")  # a name that is no UTF-8
    (tmp_path / "secrets.py").write_text("raise SystemExit")  # no module of ours, if named like one
    daemon = subprocess.Popen(
        [
            sys.executable, "-P", "-m", "streamlstm", "run",
            "--set", f"model={model}", "--set", "metrics.port=0",
        ],
        cwd=tmp_path, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    with contextlib.ExitStack() as stack:
        stack.enter_context(daemon)
        stack.callback(daemon.kill)
        assert daemon.stderr
        assert " INFO compiling processes=" in daemon.stderr.readline()
        until = time.monotonic() + 60
        while not any(cold.rglob("*.nbi")):  # so both have long begun
            assert daemon.poll() is None
            assert time.monotonic() < until
            os.sched_yield()
        handles = [os.pidfd_open(pid) for pid in children_of(daemon.pid)]
        assert len(handles) > 1
        daemon.send_signal(signal.SIGHUP)  # the model, which is to be taken anew, is yet to be
        daemon.send_signal(number)
        assert daemon.wait(60) == {signal.SIGINT: 130, signal.SIGKILL: -9}[number]  # type: ignore[index]
        for handle in handles:
            poll = select.poll()
            poll.register(handle, select.POLLIN)
            assert poll.poll(10_000), "it goes on"
            os.close(handle)


@several_cores
@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"model": "none"}, "none: no such model file"),
        ({"metrics.cert_file": "none", "metrics.key_file": "none"}, "none: No such file"),
        ({"metrics.port": "taken"}, "Address already in use; set metrics.host and metrics.port"),
    ],
)
def test_what_is_wrong_is_said_by_the_daemon_at_once(
    options: dict[str, object], said: str, config: Config, cold: Path
) -> None:
    with listen("127.0.0.1", 0) as other:
        ports = {"taken": other.getsockname()[1]}
        named = {name: ports.get(str(value), value) for name, value in options.items()}
        _is_said_at_once({"model": config.model} | named, said, cold)


def _is_said_at_once(options: dict[str, object], said: str, cold: Path) -> None:
    flags = [part for name, value in options.items() for part in ("--set", f"{name}={value}")]
    done = subprocess.run(
        [sys.executable, "-m", "streamlstm", "run", *flags], capture_output=True, text=True
    )
    (error,) = done.stderr.splitlines()
    assert " ERROR " in error
    assert said in error
    assert done.returncode == 1
    assert not [*cold.rglob("*.nbi")]
