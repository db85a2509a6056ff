"""What the commands that people look at share: notes, how to read a table, where to write."""

import argparse
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from streamlstm.config import ConfigError
from streamlstm.datasets.bundled import HOW
from streamlstm.datasets.frames import Table
from streamlstm.model import Spec
from streamlstm.terminal import exact_time, print_lines


def say(console: Console, notes: list[str]) -> None:
    """Print notes, one a line."""
    for note in notes:
        print_lines(console, f"note: {note}", "dim")


def how(options: argparse.Namespace) -> dict[str, Any]:
    """How a table is to be read."""
    return {name: getattr(options, name) for name in HOW}


def spacing(table: Table, spec: Spec) -> list[str]:
    """A note where a table's ticks are not as far apart as a model's steps."""
    if table.step_ns and spec.step_ns and not 0.5 < table.step_ns / spec.step_ns < 2:
        return [
            f"the table's ticks are {exact_time(table.step_ns)} apart,"
            f" the model was made for {exact_time(spec.step_ns)}"
        ]
    return []


def check_out(flag: str, path: Path, suffix: str = "", read: Sequence[str | Path] = ()) -> None:
    """Refuse before long work what could not be written after it, or is one of the files read."""
    if suffix and path.suffix != suffix:
        raise ConfigError(f"{flag} {path}: name a file that ends in {suffix}")
    if path.is_dir():
        raise ConfigError(f"{flag} {path}: is a folder; name a file in it")
    if not path.parent.is_dir():
        raise ConfigError(f"{flag} {path}: its folder does not exist; make it")
    if path.exists() and any(Path(each).exists() and path.samefile(each) for each in read):
        raise ConfigError(f"{flag} {path}: is read from; name another file")
    if path.exists() and not os.access(path, os.W_OK):
        raise ConfigError(f"{flag} {path}: may not be written to; choose another")
    try:
        with tempfile.TemporaryFile(dir=path.parent):
            pass
    except OSError as error:
        raise ConfigError(
            f"{flag} {path}: its folder cannot be written to ({error.strerror}); choose another"
        ) from None
