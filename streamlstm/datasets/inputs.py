"""From the columns of a table to the values of a tick: targets, features, what is known ahead.

What a feature lacks is filled with its latest value, never with a later one; what is known ahead is
moved, so that a tick carries its value ``horizon`` steps later; texts become the places of
categories.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, Self

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from streamlstm.datasets.times import MISSING, DataError
from streamlstm.features import grid_places
from streamlstm.model import MOST_CATEGORIES, ROLES, Input, Spec

Floats = NDArray[np.float64]
_FLAGS = {"target": "--targets", "measured": "--features", "known": "--known"}


@dataclass(frozen=True)
class Columns:
    """Which columns make the values of a tick, where that is more than one column ``y``."""

    inputs: tuple[Input, ...]
    """by name; where no target is among them it is ``y``"""
    static: tuple[str, ...] = ()
    """columns that say what a series is; they follow, as numbers or, where they hold texts,
    categories"""
    horizon: int = 1
    """steps ahead for which a tick carries what is known"""
    step_ns: int | None = None
    """of the model that takes them, 0 where it counts ticks; None: as the table is spaced"""

    @classmethod
    def of_model(cls, spec: Spec) -> Self | None:
        """Those that a model takes; None where its inputs have no names."""
        if not spec.roles:
            return None
        return cls(spec.roles, (), spec.horizon, spec.step_ns)

    @classmethod
    def named(
        cls,
        *,
        targets: str | Sequence[str] = (),
        features: str | Sequence[str] = (),
        known: str | Sequence[str] = (),
        static: str | Sequence[str] = (),
        horizon: int = 1,
    ) -> Self | None:
        """Those that a fit is to learn from, a text being one name; None: nothing is named."""
        targets, features, known, static = (
            (names,) if isinstance(names, str) else names
            for names in (targets, features, known, static)
        )
        named: tuple[tuple[Literal["target", "measured", "known"], Sequence[str]], ...] = (
            ("target", targets), ("measured", features), ("known", known),
        )  # fmt: skip
        inputs = tuple(Input(name=name, role=role) for role, names in named for name in names)
        return cls(inputs, tuple(static), horizon) if inputs or static else None

    def asked(self) -> dict[str, str]:
        """Every column, and who asks for it."""
        if self.step_ns is not None:
            return {each.name: "an input of the model" for each in self.inputs}
        names = {each.name: _FLAGS[each.role] for each in self.inputs}
        return names | dict.fromkeys(self.static, "--static")

    def twice(self) -> str:
        """A column that is named twice; empty: none."""
        names = [*(each.name for each in self.inputs), *self.static]
        return next((name for name in names if names.count(name) > 1), "")


class Held(NamedTuple):
    """A series of a table that has a value."""

    name: str
    rows: slice
    columns: slice
    there: NDArray[np.bool_]
    """(rows,) whether all targets are"""


class Static(NamedTuple):
    """What a column that says what a series is became."""

    input: Input | None
    """None: a number whose scale is that over all series, not known yet"""
    values: Floats
    """(rows,) NaN where empty"""


def assembled(
    moving: Sequence[Input],
    statics: Mapping[str, Static],
    held: Sequence[Held],
    whole: Floats,
    ts: NDArray[np.int64],
    horizon: int,
    step_ns: int,
    notes: list[str],
) -> tuple[tuple[Input, ...], list[Floats]]:
    """What the values of a tick are, and those of each series, (ticks, inputs).

    The first ticks of a series, of which a feature is not known yet, are left out, as on the
    stream: those given are the latest ones.

    Args:
        moving: targets, measured and known, in this order; the columns of ``whole``.
        statics: by column.
        held: the series.
        whole: (rows, moving) of all of them, NaN where missing.
        ts: (rows,) ns.
        horizon: steps ahead that a tick carries what is known.
        step_ns: of the grid; 0: ticks are counted.
        notes: what was filled in or left out is said there.

    Raises:
        DataError: a series lacks a feature, or a static column changes.
    """
    targets, measured = (
        sum(each.role in roles for each in moving) for roles in (ROLES[:1], ROLES[:2])
    )
    names = [each.name for each in moving]
    values, constants, lacking = [], [], [0] * len(moving)
    early, late = 0, set[str]()
    for each in held:
        part = whole[each.rows].copy()
        for k in range(targets, len(moving)):
            lacking[k] += _fill(part[:, k], each.name, names[k])
        kept = part[each.there]
        if measured < len(moving):
            known = part[:, measured:]
            kept[:, measured:] = _ahead(known, ts[each.rows], each.there, horizon, step_ns)
        unknown = np.isnan(kept)
        if unknown[-1].any():
            name = names[int(np.argmax(unknown[-1]))]
            raise DataError(
                f"series {each.name!r} ends before the first value of column {name!r}; fill it, or"
                " leave the series out"
            )
        begin = int(unknown.any(axis=1).sum())  # what is known once stays so
        early, kept = early + begin, kept[begin:]
        late |= {name for name, column in zip(names, unknown.T, strict=True) if column.any()}
        of = [_constant(column, each, name) for name, column in statics.items()]
        values.append(np.concatenate([kept, np.tile(of, (len(kept), 1))], axis=1))
        constants.append(of)
    for name, count in zip(names, lacking, strict=True):
        if count:
            notes.append(f"column {name!r}: {count:,} missing values filled with the one before")
    if early:
        begun = " and ".join(map(repr, sorted(late)))
        notes.append(f"{early:,} ticks before the first value of {begun} left out")
    found = [
        column.input or _number(name, [of[k] for of in constants])
        for k, (name, column) in enumerate(statics.items())
    ]
    inputs = (*moving, *found)
    order = sorted(range(len(inputs)), key=lambda k: ROLES.index(inputs[k].role))
    return tuple(inputs[k] for k in order), [of.take(order, axis=1) for of in values]


def static(
    column: "pd.Series[Any]", name: str, inputs: Sequence[Input], where: str, notes: list[str]
) -> Static:
    """What a column that says what a series is becomes, where it is not among ``inputs`` already.

    Raises:
        DataError: texts where the model takes numbers, or too many of them.
    """
    given = next((each for each in inputs if each.name == name), None)
    texts = column.astype("string").str.strip()
    empty = (texts.isna() | texts.isin(MISSING)).to_numpy(bool)
    numbers = pd.to_numeric(texts.mask(empty), errors="coerce").to_numpy(
        np.float64, na_value=np.nan
    )
    plain = bool((np.isfinite(numbers) | empty).all())
    if given is None and plain and not empty.all():
        return Static(None, numbers)
    if given is not None and given.role == "number":
        if not plain:
            row = int(np.argmin(np.isfinite(numbers) | empty))
            raise DataError(
                f"{where}: column {name!r} holds {texts.iloc[row]!r}, the model takes numbers there"
            )
        return Static(given, numbers)
    if given is None:
        there = sorted({str(text) for text in texts[~empty]})
        if not 0 < len(there) <= MOST_CATEGORIES:
            raise DataError(
                f"{where}: column {name!r} holds {len(there):,} different texts; a static column"
                f" has 1 to {MOST_CATEGORIES:,} of them, or numbers"
            )
        given = Input(name=name, role="category", categories=tuple(there))
    codes = {text: float(code) for code, text in enumerate(given.categories)}
    found = texts.map(codes).to_numpy(np.float64, na_value=np.nan)
    if strange := sorted({str(text) for text in texts[np.isnan(found) & ~empty]}):
        notes.append(
            f"column {name!r}: not known to the model, and taken as of no category:"
            f" {', '.join(strange[:12])}{' and others' if len(strange) > 12 else ''}"
        )
    return Static(given, np.where(np.isnan(found) & ~empty, -1.0, found))


def _fill(values: Floats, of: str, name: str) -> int:
    """Give what is missing in a column of a series the value before, if there is; how many."""
    there = np.isfinite(values)
    if there.all():
        return 0
    if not there.any():
        raise DataError(
            f"series {of!r} has no value in column {name!r}; fill it, or leave the series out"
        )
    latest = np.maximum.accumulate(np.where(there, np.arange(len(there)), 0))
    values[:] = values[latest]
    return int((~there[np.argmax(there) :]).sum())


def _ahead(
    known: Floats, ts: NDArray[np.int64], kept: NDArray[np.bool_], horizon: int, step_ns: int
) -> Floats:
    """(ticks, known) what is known ``horizon`` steps after each tick that is kept.

    ``known`` (n, known) and ``ts`` (n,) ns are of all rows, also those that are no tick because
    their target is missing, as it is in rows that lie in the future. Where there is no row it is
    the value of the latest one before.
    """
    if step_ns:
        place = grid_places(step_ns, ts)  # of months, which are not equally long, too
        at = np.searchsorted(place, place[kept] + horizon, side="right") - 1
    else:
        rows = np.flatnonzero(kept)
        later = np.arange(len(rows)) + horizon
        beyond = later - len(rows) + 1  # rows after the last tick, if any, are ticks to come
        at = np.where(beyond > 0, rows[-1:] + beyond, rows[np.minimum(later, len(rows) - 1)])
        at = np.minimum(at, len(ts) - 1)
    found: Floats = known[at]
    return found


def _constant(column: Static, held: Held, name: str) -> float:
    """The one value of a series in a static column; of no category where it is empty."""
    values, of = column.values[held.rows], held.name
    there = np.unique(values[~np.isnan(values)])
    if len(there) > 1:
        raise DataError(
            f"series {of!r} has different values in column {name!r}, which is to say what the"
            " series is; use --features or --known"
        )
    if not len(there) and (column.input is None or column.input.role == "number"):
        raise DataError(f"series {of!r} has no value in column {name!r}; fill it in")
    return float(there[0]) if len(there) else -1.0


def _number(name: str, values: Sequence[float]) -> Input:
    """A number that series have, scaled by its mean and deviation over them."""
    deviation = float(np.std(values))
    return Input(name=name, role="number", loc=float(np.mean(values)), scale=deviation or 1.0)
