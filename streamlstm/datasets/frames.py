"""Tables of time series, from CSV or Parquet, long or wide, to plain arrays.

The long format is the forecasting ecosystem's: a row is a value ``y`` of series ``unique_id`` at
time ``ds``. Nothing is repaired silently: what was guessed or left out stands in ``Table.notes``,
everything else that is not plain is a :class:`DataError`.
"""

import difflib
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from streamlstm.datasets.inputs import Columns, Held, assembled, static
from streamlstm.datasets.sources import Csv, Frame, listed, source_of
from streamlstm.datasets.times import (
    ENOUGH,
    DataError,
    Where,
    check_zone,
    counted,
    grid_of,
    is_date,
    ordered,
    spacing_of,
    timestamps,
)
from streamlstm.model import Input
from streamlstm.policies import LIMIT

_TIME_NAMES = re.compile(r"ds|ts|.*date.*|.*time.*|month|year", re.IGNORECASE)


@dataclass(frozen=True)
class SeriesData:
    """One series, oldest value first."""

    name: str
    ts: NDArray[np.int64]
    """(n,) nanoseconds since the Unix epoch, UTC, strictly rising"""
    values: NDArray[np.float64]
    """(n, inputs) finite, in the series' own unit, as :class:`streamlstm.model.Input` says"""


def heads(series: Sequence[SeriesData], counts: Sequence[int]) -> list[SeriesData]:
    """The first ticks of each series, so many."""
    pairs = zip(series, counts, strict=True)
    return [SeriesData(s.name, s.ts[:n], s.values[:n]) for s, n in pairs]


@dataclass(frozen=True)
class Table:
    """The series of one file, and what a reader of the file should know."""

    name: str
    series: list[SeriesData]
    step_ns: int
    """the usual spacing: the median over all series of their median spacing; 0: not known"""
    notes: list[str]
    """what was guessed, converted or left out, a sentence each"""
    inputs: tuple[Input, ...] = ()
    """what the values of a tick are, where columns were asked for by name"""
    zoned: bool = False
    """whether its times say how far they are off UTC"""


def read_table(
    path: Path,
    *,
    id: str | None = None,
    ds: str | None = None,
    y: str | None = None,
    wide: bool = False,
    start: str | None = None,
    freq: str | None = None,
    timezone: str = "UTC",
    columns: Columns | None = None,
) -> Table:
    """Read a CSV (``.gz`` too) or Parquet file of one or many series.

    Args:
        path: the file, or a pipe. A CSV without a header line is recognised by its first line
            being data, one with a decimal comma by its numbers.
        id: column of the series' names; by default ``unique_id`` if there is one, else the file
            is one series, named after it.
        ds: column of the timestamps; by default ``ds``, else what looks like a time.
        y: column of the values; by default ``y``, else the only other column.
        wide: one column a series, the first column being the time unless ``start`` is given.
        start: time of the first row, for a file without timestamps; needs ``freq``.
        freq: spacing of a file without timestamps, as pandas writes it: ``30min``, ``1h``, ``MS``.
        timezone: of timestamps that carry no zone themselves.
        columns: those that make the values of a tick, if more than ``y`` does.

    Raises:
        DataError: the file is missing, damaged, empty, or not as described; names line and column.
    """
    return _table(source_of(path), _stem(path), id, ds, y, wide, start, freq, timezone, columns)


def from_frame(
    frame: pd.DataFrame,
    name: str,
    *,
    id: str | None = None,
    ds: str | None = None,
    y: str | None = None,
    wide: bool = False,
    start: str | None = None,
    freq: str | None = None,
    timezone: str = "UTC",
    columns: Columns | None = None,
) -> Table:
    """The series of a DataFrame called ``name``; otherwise as :func:`read_table`."""
    return _table(Frame(frame, name), name, id, ds, y, wide, start, freq, timezone, columns)


def _table(
    source: Csv | Frame,
    title: str,
    id: str | None,
    ds: str | None,
    y: str | None,
    wide: bool,
    start: str | None,
    freq: str | None,
    timezone: str,
    columns: Columns | None,
) -> Table:
    if (start is None) != (freq is None):
        raise DataError("--start and --freq go together: the time of the first row and the spacing")
    if start is not None and ds is not None:
        raise DataError("give either --ds or --start and --freq, not both")
    check_zone(timezone)
    notes = source.notes
    roles = _roles(source.sample, source.label, id, ds, y, wide, start is not None, columns, notes)
    texts = [name for name in (roles.id, roles.ds) if name is not None]
    frame, where = source.read(texts, roles.values, roles.static)
    if frame.empty:
        raise DataError(f"{source.label}: has no rows; give a file with data")

    names, order, bounds = _groups(frame, roles, title, where)
    zoned = False
    if start is not None and freq is not None:
        ts = counted(start, freq, timezone, bounds, notes)
    else:
        assert roles.ds is not None
        stamps = timestamps(frame[roles.ds], timezone, where, notes)
        ts, zoned = ordered(stamps, order, bounds, names, roles.ds, where), stamps.zoned

    numbers = [_numbers(frame[column], column, where)[order] for column in roles.values]
    whole = np.stack(numbers, axis=1)
    held = []
    missing = touched = 0
    empty = []
    for name, rows, which in _lying(names, bounds, roles.values if wide else []):
        there = np.logical_and.reduce(np.isfinite(whole[rows, which][:, : roles.targets]), axis=1)
        missing += len(there) - int(there.sum())
        touched += not there.all()
        if there.any():
            held.append(Held(name, rows, which, there))
        else:
            empty.append(name)
    if missing:
        total = len(held) + len(empty)
        notes.append(f"{missing:,} missing values in {touched:,} of {total:,} series: left as gaps")
    if not held:
        raise DataError(
            f"{source.label}: column {roles.values[0]!r} holds no number; choose another with --y"
        )
    if empty:
        notes.append(f"{len(empty):,} series without a value left out: {listed(empty)}")
    times = {each.name: ts[each.rows][each.there] for each in held}
    spacing, step_ns = grid_of([*times.values()])
    if other := _spaced_otherwise(times, spacing):
        notes.append(
            f"{len(other):,} of {len(held):,} series spaced otherwise than the usual"
            f" {spacing / 1e9:g} s: {listed(other)}; they are stepped"
            " alike, so better fit a model for each spacing"
        )
    inputs: tuple[Input, ...] = ()
    if columns is None:
        values = [whole[each.rows, each.columns][each.there] for each in held]
    else:
        if columns.step_ns is not None:
            step_ns = columns.step_ns
        statics = {
            name: static(frame[name][order], name, roles.inputs, source.label, notes)
            for name in roles.static
        }
        moving = roles.inputs[: len(roles.values)]
        inputs, values = assembled(
            moving, statics, held, whole, ts, columns.horizon, step_ns, notes
        )
    series = [
        SeriesData(each.name, times[each.name][-len(of) :], of)
        for each, of in zip(held, values, strict=True)
    ]
    return Table(title, series, spacing, notes, inputs, zoned)


def _spaced_otherwise(times: Mapping[str, NDArray[np.int64]], usual: int) -> list[str]:
    """The series, and their spacing, that have half the usual one or less, or twice it or more."""
    spaced = {name: spacing_of(ts) for name, ts in times.items() if len(ts) >= ENOUGH}
    return [f"{name} ({ns / 1e9:g} s)" for name, ns in spaced.items() if not 0.5 < ns / usual < 2]


def _lying(
    names: Sequence[str], bounds: NDArray[np.int64], wide: Sequence[str]
) -> Iterator[tuple[str, slice, slice]]:
    """Name of each series, its rows, and its columns: one each of ``wide``, if any, or else all."""
    whose = [(column, slice(k, k + 1)) for k, column in enumerate(wide)] or [("", slice(None))]
    for column, which in whose:
        for name, begin, end in zip(names, bounds[:-1], bounds[1:], strict=True):
            yield column or name, slice(begin, end), which


@dataclass(frozen=True)
class _Roles:
    """Which column is what."""

    id: str | None
    ds: str | None
    values: list[str]
    """that hold numbers: of wide tables a series each, else targets, measured and known"""
    inputs: tuple[Input, ...] = ()
    static: tuple[str, ...] = ()
    targets: int = 1


def _roles(
    sample: pd.DataFrame,
    label: str,
    id: str | None,
    ds: str | None,
    y: str | None,
    wide: bool,
    counted: bool,
    asked: Columns | None,
    notes: list[str],
) -> _Roles:
    """Decide from the column names and the first rows; what was guessed goes to ``notes``."""
    columns = [str(name) for name in sample.columns]
    flags = [(name, flag) for flag, name in (("--id", id), ("--ds", ds), ("--y", y)) if name]
    targets = [each for each in asked.inputs if each.role == "target"] if asked else []
    if y is not None and len(targets) > 1:
        raise DataError(f"--y names one column, there are {len(targets)} targets; leave it out")
    other = {} if asked is None else asked.asked()
    if y is not None and targets:
        other.pop(targets[0].name)  # it is called otherwise here
    for name, why in (*flags, *other.items()):
        if name not in columns:
            close = difflib.get_close_matches(name, columns, 1)
            hint = f"did you mean {close[0]!r}? " if close else ""
            raise DataError(
                f"{label}: has no column {name!r} ({why}); {hint}there are: {listed(columns)}"
            )
    if twice := y if y in other else asked.twice() if asked else None:
        raise DataError(f"{label}: column {twice!r} is asked for twice; name it once")
    if wide:
        if asked is not None:
            raise DataError(
                "--wide has one column a series, and no room for others beside it; write the table"
                " long: a row a tick, with columns unique_id, ds, and those of its values"
            )
        time = None if counted else ds or columns[0]
        values = [name for name in columns if name not in (time, id)]
        if not values:
            raise DataError(f"{label}: --wide wants a column a series beside the time")
        return _Roles(None, time, values)

    if id is None and "unique_id" in columns:
        id = "unique_id"
    left = [name for name in columns if name not in (id, y) and name not in other]
    said = "".join(f"; {flag} is {name!r}" for name, flag in flags)
    if not counted and ds is None:
        ds = "ds" if "ds" in left else _looks_like_time(sample, left)
        if ds is None:
            raise DataError(
                f"{label}: has no column 'ds' and none that looks like a time (there are:"
                f" {listed(columns)}{said}); name it with --ds, or give --start and --freq"
            )
        if ds != "ds":
            notes.append(f"column {ds!r} taken as the time")
    if y is None and not targets:
        y = _values_column(sample, label, [name for name in left if name != ds], said, notes)
    if asked is None:
        assert y is not None
        return _Roles(id, ds, [y])
    inputs = asked.inputs
    if not targets:
        assert y is not None
        inputs = (Input(name=y, role="target"), *inputs)
    moving = [each.name for each in inputs if each.role in ("target", "measured", "known")]
    if y is not None:
        moving[0] = y
    static = [*(each.name for each in inputs if each.role in ("number", "category")), *asked.static]
    return _Roles(id, ds, moving, inputs, tuple(static), max(1, len(targets)))


def _values_column(
    sample: pd.DataFrame, label: str, left: list[str], said: str, notes: list[str]
) -> str:
    """The column of ``left`` that holds the values; ``said`` is which the others are."""
    numeric = [name for name in left if pd.to_numeric(sample[name], errors="coerce").notna().any()]
    if "y" in left:
        return "y"
    if len(left) == 1 or len(numeric) == 1:
        y = left[0] if len(left) == 1 else numeric[0]
        notes.append(f"column {y!r} taken as the values")
        return y
    if not left:
        raise DataError(f"{label}: has a time but no values{said}; is it the right file?")
    raise DataError(
        f"{label}: which column is to be forecast? choose with --y among:"
        f" {listed(numeric or left)} (or --wide: each column is a series)"
    )


def _looks_like_time(sample: pd.DataFrame, columns: list[str]) -> str | None:
    named = [name for name in columns if _TIME_NAMES.fullmatch(name)]
    dated = [name for name in columns if is_date(str(sample[name].iloc[0]))]
    both = [name for name in dated if name in named]
    return next(iter(both + dated + named), None)


def _groups(
    frame: pd.DataFrame, roles: _Roles, title: str, where: Where
) -> tuple[list[str], NDArray[np.int64], NDArray[np.int64]]:
    """Names of the series, the row order that joins each, and the bounds of each in it."""
    if roles.id is None:
        return [title], np.arange(len(frame)), np.array([0, len(frame)])
    column = frame[roles.id]
    unnamed = (column.isna() | (column == "")).to_numpy()
    if unnamed.any():
        row = int(np.argmax(unnamed))
        raise DataError(f"{where(row)}: column {roles.id!r} is empty; name the series")
    codes, names = pd.factorize(column)
    order = np.argsort(codes, kind="stable")
    bounds = np.searchsorted(codes[order], np.arange(len(names) + 1))
    return [str(name) for name in names], order, bounds


def _numbers(column: "pd.Series[Any]", name: str, where: Where) -> NDArray[np.float64]:
    """Values as float64, NaN where missing (or infinite)."""
    if pd.api.types.is_complex_dtype(column.dtype):
        raise DataError(f"column {name!r} has complex numbers; name one of real numbers")
    if not pd.api.types.is_numeric_dtype(column.dtype):
        numbers = pd.to_numeric(column, errors="coerce")
        bad = (numbers.isna() & column.notna()).to_numpy()
        if bad.any():
            row = int(np.argmax(bad))
            raise DataError(
                f"{where(row)}: {str(column.iloc[row])!r} in column {name!r} is not a"
                " number; mend it, or leave it empty if it is missing"
            )
        column = numbers
    values = column.to_numpy(np.float64, na_value=np.nan)
    if (large := np.isfinite(values) & (np.abs(values) > LIMIT)).any():
        row = int(np.argmax(large))
        raise DataError(
            f"{where(row)}: {values[row]:g} in column {name!r} is beyond {LIMIT:g}, the largest"
            " that a model takes; write the series in another unit, or leave it empty"
        )
    return np.where(np.isfinite(values), values, np.nan)


def _stem(path: Path) -> str:
    name = path.name.removesuffix(".gz")
    return name.rsplit(".", 1)[0] or name
