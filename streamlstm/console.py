"""What the commands that people look at share: notes, how to read a table, where to write."""

import argparse
import os
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from rich.console import Console

from streamlstm.config import ConfigError
from streamlstm.datasets.bundled import HOW
from streamlstm.datasets.frames import Table
from streamlstm.files import whole
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


def check_out(
    flag: str,
    path: Path,
    suffix: str = "",
    read: Sequence[str | Path] = (),
    *,
    pipes: bool = False,
) -> None:
    """Refuse before long work what could not be written after it, or is one of the files read.

    What is there and no file is refused too, but where ``pipes`` and their like are written to.
    """
    if suffix and path.suffix != suffix:
        raise ConfigError(f"{flag} {path}: name a file that ends in {suffix}")
    if path.is_dir():
        raise ConfigError(f"{flag} {path}: is a folder; name a file in it")
    if path.exists() and not path.is_file() and not pipes:
        raise ConfigError(f"{flag} {path}: is no regular file; name another")
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


def check_table_out(flag: str, path: Path, read: Sequence[str | Path] = ()) -> None:
    """The same of what :func:`write_table` is to write."""
    if path.suffix not in (".csv", ".parquet"):
        raise ConfigError(f"{flag} {path}: name a file that ends in .csv or .parquet")
    check_out(flag, path, read=read, pipes=path.suffix == ".csv")
    if path.suffix == ".parquet":
        try:
            import pyarrow  # noqa: F401
        except ImportError:
            raise ConfigError(
                f"{flag} {path}: Parquet needs pyarrow; pip install 'streamlstm[parquet]'"
            ) from None


def write_table(frames: Iterator[pd.DataFrame], path: Path | None) -> None:
    """To ``path``, whole or not at all unless that is a pipe, say; or as CSV to stdout."""
    if path is None:
        _write_csv(frames, sys.stdout.write)
    elif path.suffix == ".parquet":
        with whole(path) as file:
            pd.concat(frames, ignore_index=True).to_parquet(file, index=False)
    elif path.exists() and not path.is_file():
        with path.open("w") as pipe:
            _write_csv(frames, pipe.write)
    else:
        with whole(path) as file:
            _write_csv(frames, lambda text: file.write(text.encode()))


def _write_csv(frames: Iterator[pd.DataFrame], write: Callable[[str], object]) -> None:
    for number, frame in enumerate(frames):
        write(frame.to_csv(index=False, header=not number))  # the shortest text of the same bits
