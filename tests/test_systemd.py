"""The service as an operator has it: installed by ``install.sh``, run by a real systemd.

One machine for all tests (tests/systemd.py), in their order: what one leaves the next one finds.
"""

import contextlib
import importlib.metadata
import math
import os
import re
import shutil
import signal
import stat
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from streamlstm.forecaster import Forecaster
from streamlstm.model import Model
from streamlstm.model_file import save_model
from tests.daemon import Client
from tests.models import random_model
from tests.systemd import PACKAGES, Machine, NotAllowedError, machine
from tests.test_compiled import bring_code
from tests.test_prometheus import Prometheus, needs

CHECKOUT = Path(__file__).parent.parent
SERVICE = "streamlstm.service"
STATE, CACHE, ETC = Path("/var/lib/streamlstm"), Path("/var/cache/streamlstm"), "/etc/streamlstm"
VERSION = importlib.metadata.version("streamlstm")
MODELS = [random_model(seed) for seed in range(3)]
AS_SHIPPED = SimpleNamespace(input="tcp://127.0.0.1:5555", output="tcp://127.0.0.1:5556")
METRICS = "http://127.0.0.1:9464"
STALL = """
import signal, time

def stall(*_):  # the main thread, no other
    open("/run/streamlstm/stalled", "w").close()
    time.sleep(1e6)

signal.signal(signal.SIGUSR1, stall)
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Seen by the machine too: the wheel, deploy/, and models."""
    folder = tmp_path_factory.mktemp("systemd")
    found = importlib.metadata.distributions(name="setuptools")
    if not any(int(of.version.partition(".")[0]) >= 77 for of in found):
        pytest.skip("setuptools 77, which makes the wheel, is not installed")
    for name in ("streamlstm", "deploy"):
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(CHECKOUT / name, folder / "checkout" / name, ignore=ignored)
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy2(CHECKOUT / name, folder / "checkout")
    subprocess.run(
        [
            sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-index",
            "--no-build-isolation", f"--wheel-dir={folder}", folder / "checkout",
        ],
        check=True,
    )  # fmt: skip
    for number, model in enumerate(MODELS):
        save_model(model, folder / f"{number}.safetensors")
    return folder


@pytest.fixture(scope="module")
def booted(folder: Path) -> Iterator[Machine]:
    try:
        with machine(folder) as booted:
            mine = booted.root / PACKAGES[1:]
            for at in [*mine.glob("streamlstm-*.dist-info"), *mine.glob("__editable__*")]:
                at.unlink() if at.is_file() else shutil.rmtree(at)
            (mine / "sitecustomize.py").write_text(STALL)
            yield booted
    except NotAllowedError as error:
        pytest.skip(str(error))


def install(
    booted: Machine, folder: Path, *options: str | Path, check: bool = True
) -> "subprocess.CompletedProcess[str]":
    (wheel,) = folder.glob("*.whl")
    script = folder / "checkout" / "deploy" / "install.sh"
    given = ("--package", wheel, "--python", booted.python)
    return booted.run(script, *given, *options, check=check)


def bring(booted: Machine, cache: Path) -> None:
    """What the tests have compiled so far, so that no minute is spent here."""
    (package,) = (booted.root / "opt/streamlstm").glob("lib/python*/site-packages/streamlstm")
    for source in (CHECKOUT / "streamlstm").rglob("*.py"):  # Numba looks at their times
        of = source.stat()
        at = package / source.relative_to(CHECKOUT / "streamlstm")
        os.utime(at, ns=(of.st_atime_ns, of.st_mtime_ns))
    to = booted.root / cache.relative_to("/")
    bring_code(Path("/") / package.relative_to(booted.root), to)
    booted.run("chown", "--recursive", "streamlstm:streamlstm", cache)


def bring_program(booted: Machine, folder: Path) -> None:
    """All but configuration, model and service, and what is compiled: installed once in vain."""
    config = folder / "wrong.toml"
    config.write_text("nonsense = 1\n")
    model = folder / "0.safetensors"
    done = install(booted, folder, "--model", model, "--config", config, check=False)
    assert done.returncode == 1
    *_, unknown, said = done.stderr.splitlines()
    assert "nonsense: unknown option" in unknown
    assert said.startswith("install.sh: streamlstm cannot be run so, see above")
    assert booted.show(SERVICE, "UnitFileState") == "disabled"
    bring(booted, CACHE)


@pytest.fixture(scope="module")
def service(booted: Machine, folder: Path) -> Machine:
    """Installed as README.md says, and running."""
    bring_program(booted, folder)
    said = install(booted, folder, "--model", folder / "0.safetensors").stdout
    assert f"streamlstm: serving model {MODELS[0].id}" in said
    return booted


def serves(service: Machine, model: Model, unit: str = SERVICE) -> bool:
    return (service.show(unit, "SubState"), service.show(unit, "StatusText")) == (
        "running", f"serving model {model.id}",
    )  # fmt: skip


@contextlib.contextmanager
def begun_anew(service: Machine) -> Iterator[None]:
    """What is done here ends the daemon; systemd starts it again."""
    run = service.show(SERVICE, "InvocationID")
    yield
    service.eventually(lambda: service.show(SERVICE, "InvocationID") not in ("", run))
    service.eventually(lambda: service.show(SERVICE, "SubState") == "running")


def value_of(hour: int) -> float:
    return 20 + 5 * np.sin(hour / 4)


def go_on(client: Client, offline: Forecaster, hours: range) -> None:
    """Tick by tick, as if nothing had ever ended the daemon."""
    for hour in hours:
        client.tick("boiler", ts=3600 * hour, value=value_of(hour))
        (made,) = client.predictions(1)
        asked = offline.step(value_of(hour), ts=np.datetime64(hour, "h"), series="boiler")
        for name, wanted in (
            ("forecast", asked.forecast), ("lower", asked.lower), ("upper", asked.upper),
        ):  # fmt: skip
            found = np.array(made[name], np.float32)
            assert np.array_equal(found, np.float32(wanted)), (name, hour)


def files(service: Machine) -> dict[str, str]:
    """What an installation consists of, with a checksum."""
    places = (
        "/opt/streamlstm", "/usr/local/lib/systemd", "/usr/local/lib/sysusers.d",
        "/usr/local/lib/tmpfiles.d", ETC, "/etc/systemd/system", "/etc/passwd", "/etc/group",
    )  # fmt: skip
    find = ("find", *places, "-type", "f", "-exec", "sha256sum", "{}", "+")
    found = service.run(*find, check=False).stdout  # some are not there yet
    return {path: of for of, path in (line.split(maxsplit=1) for line in found.splitlines())}


def test_errors_are_one_line_and_change_nothing(booted: Machine, folder: Path) -> None:
    bare = booted.root / "tmp/bare"
    bare.write_text('#!/bin/sh\ncase "$*" in *ensurepip*) exit 1 ;; esac\n')
    bare.chmod(0o755)
    (folder / "typo.toml").write_text("model\n")
    before = files(booted)
    for options, code, why in (
        ((), 2, "no model at /var/lib/streamlstm/model.safetensors: give it --model FILE, or"),
        (("--modle", "x"), 2, "--modle: unknown"),
        (("--model",), 2, "--model wants a value"),
        (("--model", "/nowhere"), 1, "/nowhere: cannot be read"),
        (("--demo", "--python", "python2"), 1, "no python2: apt-get install python3-venv"),
        (("--demo", "--python", "false"), 1, "false is too old: Python 3.11"),
        (("--demo", "--python", "/tmp/bare"), 1, "apt-get install python3-venv"),
        (("--demo", "--instance", "a/b"), 2, "--instance a/b: letters, digits"),
        (("--instance", "--demo"), 2, "--instance --demo: letters, digits"),
        (("--demo", "--instance", "checkpoint"), 2, "a file of streamlstm.service has that name"),
        (("--demo", "--instance", "a", "--prometheus"), 2, "--prometheus is for streamlstm.serv"),
        (("--demo", "--config", folder / "typo.toml"), 1, "typo.toml: Expected '=' after a key"),
        (("--purge",), 2, "--purge goes with --uninstall"),
    ):
        done = install(booted, folder, *options, check=False)
        (line,) = done.stderr.splitlines()
        assert line.startswith("install.sh: ")
        assert why in line
        assert done.returncode == code
    script = shutil.copy(folder / "checkout" / "deploy" / "install.sh", booted.root / "tmp")
    at = f"/tmp/{Path(script).name}"
    for launcher, why in (
        (("setpriv", "--reuid=65534", "--clear-groups"), f"run it as root: sudo {at}"),
        (("unshare", "--mount", "sh", "-c", 'mount -t tmpfs none /run && exec "$0" "$@"'),
         "systemd does not run here"),
    ):  # fmt: skip
        done = booted.run(*launcher, at, "--demo", check=False)
        assert done.stderr.startswith(f"install.sh: {why}")
        assert done.returncode == 1
    assert files(booted) == before


def test_it_is_ready_when_its_start_returns(service: Machine) -> None:
    assert serves(service, MODELS[0])
    for name, value in (("Type", "notify"), ("UnitFileState", "enabled")):
        assert service.show(SERVICE, name) == value
    with service.network():
        for path in ("/-/ready", "/-/healthy", "/metrics"):
            assert urllib.request.urlopen(METRICS + path, timeout=30).status == 200
    assert service.run("streamlstm", "--version").stdout.strip() == VERSION


def test_shells_complete_its_commands(service: Machine) -> None:
    for shell, asked, said in (
        ("bash", ". /usr/local/share/bash-completion/completions/streamlstm; complete -p", "-F "),
        ("zsh", "autoload -Uz compinit; compinit -D; echo ${_comps[streamlstm]}", "_streamlstm"),
        ("fish", "complete -C 'streamlstm wat'", "watch"),
    ):
        if shutil.which(shell):
            assert said in service.run(shell, "-c", asked).stdout, shell


def test_systemd_finds_no_fault_with_what_is_installed(service: Machine) -> None:
    for unit in (SERVICE, "streamlstm@any.service"):
        found = service.run("systemd-analyze", "verify", "--man=no", unit)
        assert (found.stdout, found.stderr) == ("", "")


def test_the_log_has_priorities(service: Machine) -> None:
    ready, *_ = service.journal(SERVICE, "--grep=^ready model=", "--priority=info").splitlines()
    assert f'model="{MODELS[0].id}"' in ready, "no time, no level, no prefix"
    assert not service.journal(SERVICE, "--grep=^ready model=", "--priority=notice")


def test_the_process_may_do_what_it_must_and_no_more(service: Machine) -> None:
    pid = service.main(SERVICE)
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    status = {name: value.split() for name, value in (line.split(":", 1) for line in lines)}
    user = service.run("id", "--user", "streamlstm").stdout.strip()
    assert user != "0"
    assert status["Uid"] == [user] * 4
    for name in ("Inh", "Prm", "Eff", "Bnd", "Amb"):
        assert int(status[f"Cap{name}"][0], 16) == 0, name
    assert (status["NoNewPrivs"], status["Seccomp"]) == (["1"], ["2"])

    seen = Path(f"/proc/{pid}/root")
    for path, writable in {
        "etc": False, "usr": False, "opt/streamlstm": False, "var/log": False,
        "var/lib/streamlstm": True, "var/cache/streamlstm": True, "run/streamlstm": True,
    }.items():  # fmt: skip
        assert (os.statvfs(seen / path).f_flag & os.ST_RDONLY == 0) == writable, path
    assert not os.listdir(seen / "root"), "homes are hidden"
    assert not os.listdir(seen / "tmp"), "a folder of its own"


def test_its_memory_and_its_tasks_are_limited(service: Machine) -> None:
    group = service.show(SERVICE, "ControlGroup")
    at = "/sys/fs/cgroup"
    limits = [f"{at}{group}/{name}.max" for name in ("memory", "pids")]
    if not (service.root / limits[0][1:]).exists():
        limits = [f"{at}/memory{group}/memory.limit_in_bytes", f"{at}/pids{group}/pids.max"]
    if not (service.root / limits[0][1:]).exists():
        pytest.skip("this kernel's controllers of memory and tasks are with somebody else")
    memory, tasks = ((service.root / name[1:]).read_text() for name in limits)
    have = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    assert 0.79 * have < int(memory) < 0.81 * have
    assert int(tasks) == 1024

    pid = service.main(SERVICE)
    now = int(service.show(SERVICE, "MemoryCurrent"))
    service.run("systemctl", "set-property", "--runtime", SERVICE, f"MemoryMax={now + 2**26}")
    groups = " ".join(str(Path(name).parent / "cgroup.procs") for name in limits)
    enter = f"for each in {groups}; do echo $$ > $each; done; echo 1000 > /proc/self/oom_score_adj"
    greedy = f"exec {service.python} -c 'bytearray(2**28)'"  # a refit, say, which goes first
    said = service.run("sh", "-c", f"{enter}; {greedy}", check=False)
    assert said.returncode == -signal.SIGKILL, said.stderr
    assert serves(service, MODELS[0])
    assert service.main(SERVICE) == pid, "it goes on"
    service.run("systemctl", "revert", SERVICE)


def test_what_it_keeps_is_for_nobody_else(service: Machine) -> None:
    user = int(service.run("id", "--user", "streamlstm").stdout)
    kept = service.root / STATE.relative_to("/")
    found = {path.relative_to(kept).as_posix(): path.stat() for path in kept.rglob("*")}
    assert {"model.safetensors", "checkpoint.journal", "checkpoint.models"} <= found.keys()
    for name, of in [*found.items(), (".", kept.stat())]:
        assert of.st_uid == user, name
        assert stat.S_IMODE(of.st_mode) == (0o700 if stat.S_ISDIR(of.st_mode) else 0o600), name
    config = (service.root / "etc/streamlstm/streamlstm.toml").stat()
    assert (config.st_uid, stat.S_IMODE(config.st_mode)) == (0, 0o640)


def test_installing_again_keeps_the_configuration_and_changes_nothing(
    service: Machine, folder: Path
) -> None:
    config = service.root / "etc/streamlstm/streamlstm.toml"
    sockets = 'bind = ["tcp://127.0.0.1:5555", "ipc:///run/streamlstm/ticks"]'
    config.write_text(config.read_text().replace("[input]\n", f"[input]\n{sockets}\n"))
    before = files(service)
    kept = f"{CACHE}/streamlstm-*/*/series.*"
    service.run("sh", "-c", f"rm {kept}.nbc")
    service.run("chgrp", "root", ETC + "/streamlstm.toml")  # so that the service cannot read it
    install(service, folder)
    assert service.run("sh", "-c", f"ls {kept}.nbc").stdout, "compiled before it was started anew,"
    ready = service.journal(SERVICE, "--grep=^ready model=").splitlines()[-1]
    assert ready.endswith(" functions_compiled=0"), "which has nothing left to compile"
    assert files(service) == before
    assert serves(service, MODELS[0])
    socket = (service.root / "run/streamlstm/ticks").stat()
    assert stat.S_ISSOCK(socket.st_mode)
    assert stat.S_IMODE(socket.st_mode) & 0o077 == 0


def test_a_crash_costs_nothing_that_was_published(service: Machine, folder: Path) -> None:
    offline = Forecaster.load(folder / "0.safetensors")
    with service.network(), Client(AS_SHIPPED) as client:
        go_on(client, offline, range(8))
    service.run("systemctl", "restart", SERVICE)  # from a checkpoint
    with service.network(), Client(AS_SHIPPED) as client:
        go_on(client, offline, range(8, 16))
    with begun_anew(service):
        os.kill(service.main(SERVICE), signal.SIGKILL)
    log = service.journal(SERVICE)
    assert 'restored checkpoint="/var/lib/streamlstm/checkpoint" series=' in log
    assert "replayed journal=" in log.rpartition("restored")[2]
    with service.network(), Client(AS_SHIPPED) as client:
        go_on(client, offline, range(16, 24))


def test_a_reload_takes_another_model_or_keeps_the_one_it_has(
    service: Machine, folder: Path
) -> None:
    pid, at = service.main(SERVICE), STATE / "model.safetensors"

    def put(file: Path | str) -> None:
        service.run("install", "--owner=streamlstm", "--mode=600", file, f"{at}.new")
        service.run("mv", f"{at}.new", at)
        service.run("systemctl", "reload", SERVICE)

    put(folder / "1.safetensors")
    service.eventually(lambda: serves(service, MODELS[1]))
    put("/etc/hostname")
    service.eventually(lambda: "goes on serving" in service.journal(SERVICE, "--priority=err"))
    assert serves(service, MODELS[1])
    put(folder / "1.safetensors")
    save_model(random_model(3, inputs=2), folder / "two inputs.safetensors")
    for other, why in (("two inputs.safetensors", "takes 2 values"), ("wrong.toml", "damaged")):
        done = install(service, folder, "--model", folder / other, check=False)
        assert done.returncode == 1
        assert why in done.stderr
        assert "its configuration and model are as they were" in done.stderr
    assert service.main(SERVICE) == pid
    assert not [*(service.root / "var/lib/streamlstm").glob("*.new")]


def test_a_loop_that_stands_still_is_ended_and_begins_anew(service: Machine) -> None:
    assert service.show(SERVICE, "WatchdogUSec") == "30s"
    quick = service.root / "etc/systemd/system/streamlstm.service.d/quick.conf"
    quick.parent.mkdir(parents=True)
    quick.write_text("[Service]\nWatchdogSec=2\n")
    service.run("systemctl", "daemon-reload")
    service.run("systemctl", "restart", SERVICE)
    run, fed = service.show(SERVICE, "InvocationID"), set()
    while len(fed) < 5:  # idle, for longer than those two seconds
        fed.add(service.show(SERVICE, "WatchdogTimestampMonotonic"))
        time.sleep(0.05)
    assert service.show(SERVICE, "InvocationID") == run

    with begun_anew(service), service.network(), Client(AS_SHIPPED) as client:
        client.tick("boiler", ts=3600 * 24, value=value_of(24))
        client.predictions(1)
        os.kill(service.main(SERVICE), signal.SIGUSR1)
        service.eventually((service.root / "run/streamlstm/stalled").exists)
        client.tick("boiler", ts=3600 * 25, value=value_of(25))
        assert client.silent(500), "the loop stands still,"
        assert urllib.request.urlopen(f"{METRICS}/-/healthy", timeout=30).status == 200, (
            "and another thread does not"
        )
    log = service.journal(SERVICE)
    assert f"{SERVICE}: Watchdog timeout" in log
    assert " in main_loop" in log, "where it stood"
    with service.network(), Client(AS_SHIPPED) as client:
        client.tick("boiler", ts=3600 * 26, value=value_of(26))
        (made,) = client.predictions(1)
        assert made["seq"] > 20, "the series is the same"
    quick.unlink()
    quick.parent.rmdir()
    service.run("systemctl", "daemon-reload")


def test_what_is_wrong_is_said_before_it_starts_and_tried_again(service: Machine) -> None:
    config = service.root / "etc/streamlstm/streamlstm.toml"
    right = config.read_text()
    config.write_text(f"nonsense = 1\n{right}")
    assert service.run("systemctl", "restart", SERVICE, check=False).returncode
    (line, *_) = service.journal(SERVICE, "--grep=nonsense").splitlines()
    assert line.startswith("streamlstm check: ")
    config.write_text(right)
    service.eventually(lambda: serves(service, MODELS[1]))


def test_it_stops_in_time_and_goes_on_from_there(service: Machine) -> None:
    began = time.monotonic()
    service.run("systemctl", "stop", SERVICE)
    assert time.monotonic() - began < 10, "service.shutdown_timeout"
    for name, value in (
        ("Result", "success"), ("ExecMainStatus", "0"), ("ActiveState", "inactive"),
        ("StatusText", "stopping"),
    ):  # fmt: skip
        assert service.show(SERVICE, name) == value
    assert "stopped seconds=" in service.journal(SERVICE)
    assert not (service.root / "run/streamlstm").exists()
    service.run("systemctl", "start", SERVICE)
    assert serves(service, MODELS[1])
    log = service.journal(SERVICE).rpartition("stopped seconds=")[2]
    assert "restored checkpoint=" in log


INSTANCE = """
model = "/var/lib/streamlstm/{name}/model.safetensors"
[input]
bind = ["tcp://127.0.0.1:{port}0"]
[output]
bind = ["tcp://127.0.0.1:{port}1"]
[metrics]
port = {port}2
[checkpoint]
path = "/var/lib/streamlstm/{name}/checkpoint"
"""


def test_instances_run_side_by_side(service: Machine, folder: Path) -> None:
    ports = {"east": 600, "west": 700}
    model = folder / "2.safetensors"
    for name, given in (("east", ()), ("west", ("--gpu",))):
        service.run("mkdir", "-m", "700", CACHE / name)
        service.run("sh", "-c", f"cp -a {CACHE}/streamlstm-* {CACHE}/{name}")
        service.run("chown", "streamlstm:streamlstm", CACHE / name)
        config = folder / f"{name}.toml"
        config.write_text(INSTANCE.format(name=name, port=ports[name]))
        install(service, folder, "--instance", name, "--config", config, "--model", model, *given)
        assert serves(service, MODELS[2], f"streamlstm@{name}")
    assert serves(service, MODELS[1])
    with service.network():
        at = [
            SimpleNamespace(input=f"tcp://127.0.0.1:{p}0", output=f"tcp://127.0.0.1:{p}1")
            for p in ports.values()
        ]
        with Client(at[0]) as east, Client(at[1]) as west:
            east.tick("boiler", ts=0, value=1)
            (made,) = east.predictions(1)
            assert (made["model"], made["seq"]) == (MODELS[2].id, 1)
            assert west.silent()
            west.tick("boiler", ts=0, value=1)
            west.predictions(1)
    mounts = Path(f"/proc/{service.main('streamlstm@east')}/root")
    for path, writable in (("east", True), ("west", False), (".", False)):
        at_path = mounts / STATE.relative_to("/") / path
        assert (os.statvfs(at_path).f_flag & os.ST_RDONLY == 0) == writable, path
    service.run("systemctl", "stop", "streamlstm@east")
    assert serves(service, MODELS[1])
    assert service.show("streamlstm@west", "SubState") == "running"


def test_the_gpu_is_opened_by_a_drop_in(service: Machine) -> None:
    for unit in (SERVICE, "streamlstm@west"):
        assert service.show(unit, "PrivateDevices") == "no"
        assert "char-nvidia-uvm rw" in service.show(unit, "DeviceAllow")
    assert "nvidia" not in service.show("systemd-journald.service", "DeviceAllow")


def test_uninstalling_leaves_what_is_the_operators_and_purging_nothing(
    service: Machine, folder: Path
) -> None:
    script = folder / "checkout" / "deploy" / "install.sh"
    service.run(script, "--uninstall", "--instance", "east", "--purge")
    assert not (service.root / "etc/streamlstm/east.toml").exists()
    assert not (service.root / "var/lib/streamlstm/east").exists()
    assert serves(service, MODELS[1])

    def left() -> set[str]:
        places = "/etc", "/opt/streamlstm", "/run", "/usr/local", "/var/cache", "/var/lib"
        found = service.run("find", *places, "-name", "*streamlstm*", check=False)
        return set(found.stdout.split())

    said = service.run(script, "--uninstall").stdout
    assert "stays, until --uninstall --purge" in said
    assert left() == {ETC, f"{ETC}/streamlstm.toml", str(STATE)}
    assert "0 loaded units" in service.run("systemctl", "list-units", "--all", "streamlstm*").stdout
    assert (service.root / "var/lib/streamlstm/checkpoint").exists()
    assert (service.root / "var/lib/streamlstm/west/checkpoint").exists()
    service.run(script, "--uninstall", "--purge")
    assert left() == set()
    assert service.run("id", "streamlstm", check=False).returncode
    service.run(script, "--uninstall", "--purge")  # once more is no error


def test_three_commands_of_the_readme_make_a_service_that_is_scraped_and_watched(
    booted: Machine, folder: Path
) -> None:
    """In their order, from nothing; what is added is what a machine without a network demands."""
    needs("prometheus")
    readme = (CHECKOUT / "deploy" / "README.md").read_text()
    first, second, third = readme.partition("```sh\n")[2].partition("\n```")[0].splitlines()
    booted.run("sed", "-i", "s/15s/1s/", "/etc/prometheus/prometheus.yml")
    assert first == "apt-get install -y python3-venv prometheus"
    booted.run("systemctl", "enable", "--quiet", "--now", "prometheus")  # as apt does
    (wheel,) = folder.glob("*.whl")
    script = folder / "checkout" / "deploy" / "install.sh"
    offline = ("--package", wheel, "--python", booted.python)
    begun = "/opt/streamlstm.begun"
    killed = f"""
        setsid {" ".join(map(str, (script, "--demo", *offline)))} &
        until [ -e {begun} ]; do sleep 0.02; done
        kill -KILL -$!"""
    booted.run("sh", "-c", killed)
    assert (booted.root / begun[1:]).exists()
    bring_program(booted, folder)
    assert not (booted.root / begun[1:]).exists()
    command = " ".join(map(str, (second.partition("#")[0], *offline)))
    for _ in range(2):  # the second time changes nothing
        booted.run("sh", "-c", f"cd {folder}/checkout && {command}")
        scrapes = (booted.root / "etc/prometheus/prometheus.yml").read_text()
        jobs = re.findall(r"^  - job_name: '?(\w+)", scrapes, re.MULTILINE)
        assert jobs == ["prometheus", "node", "streamlstm"]
    assert booted.show(SERVICE, "StatusText").startswith("serving model ")

    watching = "watching.service"
    booted.run("systemd-run", "--quiet", f"--unit={watching}", "bash", "-c", third)
    with booted.network():
        prometheus = Prometheus("http://127.0.0.1:9090")
        for query, holds in (
            ('up{job="streamlstm"}', lambda value: value == 1),
            ("instance:streamlstm_tick_to_publish_seconds:p99_1m", lambda value: 0 < value < 1),
            ('count(ALERTS{alertname="StreamlstmDown"})', math.isnan),
        ):
            booted.eventually(lambda asked=query, holds=holds: holds(prometheus.value(asked)))
    booted.eventually(
        lambda: bool(booted.journal(watching, r"--grep=^2000-06-\d\d .* electricity \d+"))
    )
    booted.run("systemctl", "stop", watching)
    booted.run(folder / "checkout" / "deploy" / "install.sh", "--uninstall", "--purge")
    assert not (booted.root / "etc/prometheus/streamlstm.rules.yml").exists()
