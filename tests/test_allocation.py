"""The daemon's process begins with a C library that keeps pieces of memory for messages."""

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

PROGRAM = """
import json, os, sys
from streamlstm import allocation
print("begun", os.getpid(), flush=True)
{before}
allocation.begin_anew()
print(json.dumps([os.getpid(), os.environ.get("GLIBC_TUNABLES"), sys.argv[1:], sys.flags.dev_mode]))
"""
SCRIPT = Path(sys.executable).parent / "streamlstm"
ALL = "glibc.malloc.tcache_count=256:glibc.malloc.mxfast=160"


def run(tunables: str | None, before: str = "") -> tuple[list[str], list[Any]]:
    """The beginnings of a process, each with its process ID, and what is so in the end."""
    env: Mapping[str, str] = {k: v for k, v in os.environ.items() if k != "GLIBC_TUNABLES"}
    if tunables is not None:
        env = {**env, "GLIBC_TUNABLES": tunables}
    program = [sys.executable, "-X", "dev", "-c", PROGRAM.format(before=before), "a b", "-c", ""]
    lines = subprocess.run(program, env=env, capture_output=True, text=True, check=True).stdout
    *begun, found = lines.splitlines()
    return begun, json.loads(found)


def test_the_same_process_begins_once_more_and_is_asked_the_same() -> None:
    begun, (pid, tunables, arguments, dev_mode) = run(None)
    assert begun == [f"begun {pid}"] * 2
    assert tunables == ALL
    assert (arguments, dev_mode) == (["a b", "-c", ""], True)


@pytest.mark.parametrize(
    ("given", "then", "times"),
    [
        (ALL, ALL, 1),
        ("glibc.malloc.tcache_count=7:glibc.malloc.mxfast=0", None, 1),
        ("glibc.malloc.mxfast=64", "glibc.malloc.mxfast=64:glibc.malloc.tcache_count=256", 2),
        ("glibc.malloc.check=3", f"glibc.malloc.check=3:{ALL}", 2),
        ("", ALL, 2),
    ],
)
def test_what_is_set_stays(given: str, then: str | None, times: int) -> None:
    begun, (_, tunables, *_) = run(given)
    assert tunables == (then or given)
    assert len(begun) == times


@pytest.mark.parametrize(
    "before",
    [
        "os.confstr = lambda name: None",
        "def refuse(*_): raise ValueError\nos.confstr = refuse",
        "sys.executable = ''",
        "def refuse(*_): raise PermissionError\nos.execv = refuse",
    ],
    ids=["another library", "one that does not say", "no interpreter", "forbidden"],
)
def test_where_it_cannot_be_the_process_goes_on(before: str) -> None:
    begun, _ = run(None, before)
    assert len(begun) == 1


@pytest.mark.parametrize(("command", "times"), [("run", 2), ("check", 1)])
@pytest.mark.parametrize("start", [("-m", "streamlstm"), (str(SCRIPT),)], ids=["module", "script"])
def test_the_daemon_begins_so_and_no_other_command(
    start: tuple[str, ...], command: str, times: int, tmp_path: Path
) -> None:
    (tmp_path / "sitecustomize.py").write_text("import sys; print('begun', file=sys.stderr)")
    env = {k: v for k, v in os.environ.items() if k != "GLIBC_TUNABLES"}
    path = os.pathsep.join(filter(None, [str(tmp_path), env.get("PYTHONPATH")]))
    done = subprocess.run(
        [sys.executable, *start, command, "--config", "none.toml"],
        env=env | {"PYTHONPATH": path},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert done.stderr.splitlines()[:-1] == ["begun"] * times
    assert "none.toml: no such file" in done.stderr
