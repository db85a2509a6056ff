"""What shells make of the scripts that complete a command."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from streamlstm.cli import _parser
from streamlstm.completion import commands
from tests.pseudo_terminal import Terminal, terminal
from tests.test_cli import COMMANDS, complaint, streamlstm


def shell(name: str) -> str:
    found = shutil.which(name)
    if not found:
        pytest.skip(f"{name} is not installed")
    return found


@pytest.fixture(scope="module")
def scripts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a script for each shell, and a file with a space in its name."""
    folder = tmp_path_factory.mktemp("scripts")
    for name in ("bash", "zsh", "fish"):
        (folder / name).write_text(streamlstm("completion", name).stdout)
    (folder / "my model.safetensors").touch()
    return folder


def test_all_commands_and_options_are_known() -> None:
    found = {each.name: each for each in commands(_parser())}
    assert set(COMMANDS) < set(found)
    for name in COMMANDS:
        text = streamlstm(name, "--help").stdout
        for option in found[name].options:
            assert option.flags[-1] in text
    assert {each.flags for each in found[""].options} == {("-h", "--help"), ("--version",)}
    (parent,) = [each for each in _parser()._subparsers._group_actions[0].choices["refit"]._actions
                 if each.dest == "parent"]  # fmt: skip
    assert parent.option_strings[0] not in str(found["refit"])  # which help does not tell


def test_another_shell() -> None:
    assert "choose from" in complaint("completion", "tcsh", code=2)


CASES = (
    ("ba", "backtest "),
    ("backtest --cov", "backtest --coverage"),
    ("publish x.csv --format m", "publish x.csv --format msgpack "),
    ("publish --format=bi", "publish --format=binary "),
    ("publish --to tcp://127.0.0.1:5555 elec", "publish --to tcp://127.0.0.1:5555 electricity "),
    ("completion f", "completion fish "),
    ("inspect my", "inspect my\\ model.safetensors "),
    ("export --to onnx m", "export --to onnx my\\ model.safetensors "),
    ("run --config my", "run --config my\\ model.safetensors "),
)


def completes(window: Terminal) -> None:
    """Every case, as it is typed."""
    for typed, completed in CASES:
        since = len(window.text)
        window.type(f"\x15streamlstm {typed}\t")
        window.until(re.escape(f"streamlstm {completed}"), since)


def test_bash_completes(scripts: Path) -> None:
    with terminal([shell("bash"), "--norc", "--noprofile", "-i"], columns=200) as window:
        window.type(
            f"cd '{scripts}'; PS1='> '; bind 'set bell-style none'; source ./bash; echo re''ady\r"
        )
        window.until("ready\n")
        completes(window)
        since = len(window.text)
        window.type("\x15streamlstm watch \t\t\x15echo do''ne\r")
        assert "my model" not in window.until("done\n", since)  # an endpoint is no file


def test_zsh_completes(scripts: Path) -> None:
    with terminal([shell("zsh"), "-f", "-i"], columns=200) as window:
        setup = "autoload -U compinit; compinit -u -D; unsetopt zle_bracketed_paste"
        window.type(
            f"cd '{scripts}'; PS1='> '; {setup}; unsetopt beep; source ./zsh; echo re''ady\r"
        )
        window.until("ready\n")
        completes(window)


def offered(scripts: Path, typed: str) -> list[str]:
    """What fish offers, each with what it is for."""
    done = subprocess.run(
        [shell("fish"), "--no-config", "-c", f"source fish; complete -C 'streamlstm {typed}'"],
        cwd=scripts, capture_output=True, text=True, timeout=60, check=True,
    )  # fmt: skip
    return done.stdout.splitlines()


@pytest.mark.parametrize(("typed", "completed"), CASES)
def test_fish_completes(scripts: Path, typed: str, completed: str) -> None:
    (found,) = offered(scripts, typed)
    last = completed.rstrip().replace("\\ ", "\0").split(" ")[-1].replace("\0", " ")
    assert found.split("\t")[0] == last


def test_fish_says_what_commands_and_options_are_for(scripts: Path) -> None:
    assert "watch\twatch predictions as they come" in offered(scripts, "")
    assert "\n--speed\ttimes the pace of the timestamps" in "\n".join(
        offered(scripts, "publish --")
    )
    assert offered(scripts, "watch ") == []  # an endpoint is no file
