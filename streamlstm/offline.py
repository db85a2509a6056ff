"""The daemon's engine without the daemon: a journal, a checkpoint or a table run through it.

Two such runs are compared bit by bit, series by series, whatever slots they lie in.
"""

import argparse
import hashlib
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from streamlstm import checkpoint, kept
from streamlstm.client import in_time_order
from streamlstm.config import Config, ConfigError
from streamlstm.console import check_table_out, write_table
from streamlstm.datasets.bundled import DATASETS, HOW, table_for
from streamlstm.datasets.frames import Table
from streamlstm.engine import Engine
from streamlstm.model_file import load_model
from streamlstm.replay import replay
from streamlstm.terminal import printable
from streamlstm.ticks import Arrivals, Forecasts, Keys

CLOCKS = frozenset({"heard"})
"""Fields that say when a tick came, not what it did: no part of what is compared."""


class Made(NamedTuple):
    """The forecasts of a batch, kept."""

    names: list[bytes]
    """(n,) of the series"""
    forecasts: Forecasts


class Run:
    """What a source came to.

    Attributes:
        engine: with the state of all its series.
        ticks: stepped, of the journal or the table.
        made: forecasts, where they were asked for.
        notes: what is to be known of the source.
    """

    def __init__(self, config: Config, keep: bool = False) -> None:
        """Open the engine, with what ``config.checkpoint`` brings back; ``keep`` the forecasts."""
        self.engine, self._after = kept.open_engine(config)
        self.ticks, self.made, self.notes = 0, list[Made](), list[str]()
        self._keep = keep

    def step_journal(self, folder: Path) -> None:
        """Step all that a journal has above what the checkpoint knows.

        Raises:
            JournalError: it is damaged, of other ticks, or entries before it are missing.
        """
        found = replay(self.engine, folder, self._after, made=self._take, counting=True)
        if found.torn:
            self.notes.append(f"{folder}: {found.torn:,} bytes at its end were never written whole")

    def step_table(self, table: Table) -> None:
        """Step all ticks of a table, in the order of their times, as if each came at its time.

        Raises:
            ConfigError: its names or its rows are longer than the engine takes.
        """
        engine = self.engine
        self.notes += table.notes
        names = [series.name.encode() for series in table.series]
        if len(max(names, key=len)) > engine.series.index.names.shape[1]:
            raise ConfigError(f"{table.name}: longer names than input.max_key; raise it")
        values = np.concatenate([series.values for series in table.series])
        if values.shape[1] != engine.model.spec.inputs:
            takes = engine.model.spec.inputs
            raise ConfigError(f"{table.name}: {values.shape[1]} values, the model takes {takes}")
        which, rows = in_time_order(table.series)
        at = np.cumsum([0, *(len(series.ts) for series in table.series)])[which] + rows
        ts = np.concatenate([series.ts for series in table.series])[at]
        data, begin, end = Keys.of(names)
        keys = Keys(data, begin[which], end[which])
        arrivals = Arrivals(keys, ts, values[at], np.zeros(len(at), np.uint8))
        for part in arrivals.parts(engine.max_batch):
            self._take(engine.step(engine.place(part), int(part.ts[-1])))

    def _take(self, forecasts: Forecasts) -> None:
        self.ticks += self.engine.taken
        if self._keep:
            names = self.engine.series.keys(forecasts.slot)
            slot, ts, seq, point, quantiles, _ = forecasts
            kept = (slot.copy(), ts.copy(), seq.copy(), point.copy(), quantiles.copy())
            self.made.append(Made(names, Forecasts(*kept)))


def run(config: Config, source: Path | Table, keep: bool = False) -> Run:
    """Run a folder of a journal, a checkpoint and its journal, or a table through an engine.

    Args:
        config: the daemon's; of its checkpoint nothing is taken.
        source: which of the three; a path that is no folder is a checkpoint's.
        keep: the forecasts.

    Raises:
        CheckpointError, JournalError, ModelError, ConfigError: each with one line.
    """
    base = None if isinstance(source, Table) or is_journal(source) else source
    made = Run(_on(config, base), keep)
    if isinstance(source, Table):
        made.step_table(source)
    else:
        made.step_journal(kept.journal_of(base) if base else source)
    return made


def is_journal(path: Path) -> bool:
    """Whether this is a folder with segments of a journal."""
    return path.is_dir() and any(path.glob("*.seg"))


def _on(config: Config, base: Path | None) -> Config:
    """The same daemon, with this checkpoint."""
    table = config.checkpoint.model_copy(update={"path": base})
    return config.model_copy(update={"checkpoint": table})


# --- bits -----------------------------------------------------------------------------------------


def state_of(engine: Engine) -> tuple[list[bytes], dict[str, NDArray[Any]]]:
    """The names of all series, sorted, and :func:`fields_of` them in that order."""
    names, used = engine.series.keys(engine.series.slots), engine.series.slots
    order = sorted(range(len(names)), key=names.__getitem__)
    slots = used[order]
    return [names[k] for k in order], fields_of(engine, slots)


def fields_of(engine: Engine, slots: NDArray[np.int32]) -> dict[str, NDArray[Any]]:
    """All that some series are, by field, a row each."""
    state = engine.series.state
    fields = {name: rows[slots] for name, rows in state.items() if name not in CLOCKS}
    return fields | {"recurrent": engine.kernels.to_host(engine.buffers, slots)}


def digest(engine: Engine) -> str:
    """SHA-256 of the whole state: equal where, and only where, every bit of every series is."""
    names, fields = state_of(engine)
    whole = hashlib.sha256(json.dumps([name.hex() for name in names]).encode())
    for name, rows in fields.items():
        whole.update(f"{name} {rows.dtype.str} {rows.shape}".encode())
        whole.update(np.ascontiguousarray(rows).data)
    return whole.hexdigest()


def difference(one: Engine, other: Engine) -> str:
    """The first series, by name, whose bits differ, and its first such field; empty: none."""
    names, fields = state_of(one)
    others, theirs = state_of(other)
    if fields.keys() != theirs.keys():
        return f"fields differ: {', '.join(fields.keys() ^ theirs.keys())}"
    for name in sorted({*names} ^ {*others})[:1]:
        return f"series {_text(name)} is in the {'first' if name in names else 'second'} alone"
    differs = {name: _differs(fields[name], theirs[name]) for name in fields}
    rows = np.flatnonzero(np.any([*differs.values()], axis=0)).tolist()
    for row in rows[:1]:
        field = next(name for name, each in differs.items() if each[row])
        mine, its = fields[field][row], theirs[field][row]
        at = np.flatnonzero(_differs(np.atleast_1d(mine).ravel(), np.atleast_1d(its).ravel()))[0]
        where = f"{field}[{', '.join(map(str, np.unravel_index(at, mine.shape)))}]"
        return (
            f"{len(rows):,} of {len(names):,} series differ; the first, {_text(names[row])}, in"
            f" {where if mine.shape else field}: {mine.flat[at]!r} and {its.flat[at]!r}"
        )
    return ""


def _differs(one: NDArray[Any], other: NDArray[Any]) -> NDArray[np.bool_]:
    """Which rows are not the same bytes; (rows,)."""
    if one.dtype != other.dtype or one.shape != other.shape:
        return np.ones(len(one), np.bool_)
    size = one[:1].nbytes  # of a row
    a, b = (np.frombuffer(x.tobytes(), np.uint8).reshape(len(x), size) for x in (one, other))
    return np.any(a != b, axis=1)


def _text(name: bytes) -> str:
    return repr(printable(name.decode(errors="replace")))


def difference_of_forecasts(one: list[Made], other: list[Made]) -> str:
    """The first forecast that both made, of the same series and tick, with other bits."""
    known = dict(_forecasts(other))
    for key, bits in _forecasts(one):
        if known.get(key, bits) != bits:
            return f"series {_text(key[0])}: its forecasts at {key[1]} ns differ"
    return ""


def _forecasts(made: list[Made]) -> Iterator[tuple[tuple[bytes, int], bytes]]:
    for names, forecasts in made:
        for row, name in enumerate(names):
            bits = forecasts.point[row].tobytes() + forecasts.quantiles[row].tobytes()
            yield (name, int(forecasts.ts[row])), bits


# --- the command ----------------------------------------------------------------------------------


def command(config: Config, options: argparse.Namespace) -> int:
    """``streamlstm replay``: 1 where two runs were to be compared and differ."""
    if options.output:
        read = [each for each in (options.source, options.compare, config.model) if each]
        check_table_out("--output", options.output, read=read)
    if not (options.source or config.checkpoint.path):
        raise ConfigError("name a journal's folder, a checkpoint or a table, or checkpoint.path")
    keep = bool(options.output or options.compare)
    name = options.source or str(config.checkpoint.path)
    made = run(config, _source(config, options, name), keep)
    report = {"source": name, **_report(made)}
    if options.output:
        write_table(_frames(made.made, made.engine.coverages[1:]), options.output)
    if options.compare:
        other = run(config, _source(config, options, options.compare), keep)
        said = difference(made.engine, other.engine)
        said = said or difference_of_forecasts(made.made, other.made)
        report["compared"] = {"source": options.compare, **_report(other), "difference": said}
    if options.json:
        print(json.dumps(report))
    else:
        _print(report)
    return int(bool(options.compare and said))


def _source(config: Config, options: argparse.Namespace, name: str) -> Path | Table:
    path = Path(name)
    if name not in DATASETS:
        if not path.exists() and not is_journal(kept.journal_of(path)):
            raise ConfigError(f"{name}: no such file or folder; check the path")
        if not path.is_file() or _is_checkpoint(path):
            return path
    spec = load_model(config.model).spec
    return table_for(spec, name, **{each: getattr(options, each) for each in HOW})


def _is_checkpoint(path: Path) -> bool:
    """Whether a file is of a checkpoint, or of one of an older version."""
    with path.open("rb") as file:
        head = file.read(9)
    return head.startswith(checkpoint.MAGIC) or head[8:] == b"{"  # that was a safetensors'


def _report(made: Run) -> dict[str, Any]:
    engine = made.engine
    return {
        "model": engine.model.id,
        "series": len(state_of(engine)[0]),
        "ticks": made.ticks,
        "dropped": {reason: count for reason, count in engine.drops.items() if count},
        "sha256": digest(engine),
        "notes": made.notes,
    }


def _print(report: dict[str, Any]) -> None:
    compared = report.get("compared")
    for each in (report, compared) if compared else (report,):
        for note in each["notes"]:
            print(f"note: {printable(note)}")
        dropped = ", ".join(f"{count:,} {reason}" for reason, count in each["dropped"].items())
        print(
            f"{printable(each['source'])}: {each['ticks']:,} ticks stepped"
            f"{f' ({dropped} dropped)' * bool(dropped)}, {each['series']:,} series,"
            f" state {each['sha256']}"
        )
    if compared:
        print(compared["difference"] or "the same, bit by bit")


def _frames(made: list[Made], further: Sequence[float]) -> Iterator[pd.DataFrame]:
    """A row for each step of each forecast, in the order in which they were made."""
    if not made:
        yield _frame(_NONE, ())
    for each in made:
        yield _frame(each, further)


_NONE = Made(
    [],
    Forecasts(
        np.zeros(0, np.int32), np.zeros(0, np.int64), np.zeros(0, np.int64),
        np.zeros((0, 1, 1)), np.zeros((0, 2, 1, 1)),
    ),
)  # fmt: skip


def _frame(made: Made, further: Sequence[float]) -> pd.DataFrame:
    """Of ``further`` coverages beside the main one the columns are named after them."""
    names, forecasts = made
    n, horizon, targets = forecasts.point.shape
    each = horizon * targets
    names_of = ("", *(f"_{coverage}" for coverage in further))
    ends = [f"{end}{of}" for of in names_of for end in ("lower", "upper")]
    return pd.DataFrame({
        "unique_id": np.repeat(np.array([name.decode() for name in names], object), each),
        "ds": pd.to_datetime(np.repeat(forecasts.ts, each)),
        "seq": np.repeat(forecasts.seq, each),
        "step": np.tile(np.repeat(np.arange(1, horizon + 1), targets), n),
        "target": np.tile(np.arange(targets), n * horizon),
        "forecast": forecasts.point.ravel(),
        **{end: forecasts.quantiles[:, level].ravel() for level, end in enumerate(ends)},
    })  # fmt: skip
