"""What a series' state is, in words that outlive the process; and taking over one of other words.

A state is bytes: a record of the state table, and the recurrent state. Its schema says how they
lie, of models of which shape they are, and which settings its parts were made with. Of a state of
another schema those parts begin anew that were made with other settings, and the rest goes on; one
of models of another shape can begin with the latest ticks that it keeps.
"""

import json
import re
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from streamlstm import adapt, intervals, watch
from streamlstm.engine import Engine, unroll
from streamlstm.hashing import checksum
from streamlstm.work import Latest

Kind = tuple[str, tuple[int, ...]]
"""Type and shape of a field. (Of a dtype, float64 equals None.)"""
UNREADABLE = (ValueError, TypeError, LookupError, ArithmeticError, RecursionError)
"""What reading a text may raise that is no schema."""


class Part(NamedTuple):
    """A part of a series' state that can begin anew while the rest goes on."""

    fields: tuple[str, ...]
    """of the table, those of them that are there"""
    made: list[Any]
    """settings that it is made with, as JSON has them"""
    begun: Mapping[str, NDArray[Any]]
    """rows of those fields that are not all 0 where it begins"""


class Schema(NamedTuple):
    """What states are of; two engines with the same can exchange theirs as they are."""

    shape: list[Any]
    """what models have to have in common, as JSON has it"""
    made: Mapping[str, Any]
    """settings that each of :func:`parts` was made with"""
    record: np.dtype[np.void]
    """of the table's part"""
    floats: int
    """of the recurrent state"""

    @property
    def bytes(self) -> int:
        """Of one state."""
        return self.record.itemsize + 4 * self.floats

    def to_text(self) -> str:
        """JSON."""
        made = dict(self.made)
        return json.dumps([self.shape, made, fields_of(self.record), self.floats])

    @classmethod
    def from_text(cls, text: str) -> "Schema":
        """What :meth:`to_text` gave.

        Raises:
            ValueError: it is something else.
        """
        try:
            shape, made, fields, floats = json.loads(text)
            return cls(list(shape), dict(made), dtype_of(fields), int(floats))
        except UNREADABLE as error:
            raise ValueError("no schema of a state") from error

    @property
    def id(self) -> int:
        """64 bits of it, to name it by."""
        return checksum(self.to_text().encode())


def schema_of(engine: Engine) -> Schema:
    """What the states of an engine are of."""
    spec, series = engine.model.spec, engine.series
    roles = [[each.name, each.role, each.scale > 0] for each in spec.roles]
    grid = [spec.step_ns, spec.season, spec.scaling.kind]
    cell = [spec.cell, spec.layers, spec.hidden, spec.window]
    begin, end = series.index.begin, series.index.end
    record = np.dtype(
        {
            "names": list(series.state),
            "formats": [(array.dtype, array.shape[1:]) for array in series.state.values()],
            "offsets": [series.offsets[name] - begin for name in series.state],
            "itemsize": end - begin,
        }
    )
    made = {name: part.made for name, part in parts(engine).items()}
    return Schema([*grid, *cell, *roles], made, record, engine.work.told.shape[1])


def parts(engine: Engine) -> dict[str, Part]:
    """What of a series' state can begin anew while the rest goes on, by what it is for."""
    bands = engine.work.intervals
    coverages, steps = bands.coverages.tolist(), bands.steps.tolist()
    learned, watched = adapt.Learned._fields, tuple(watch.watched_fields())
    latest = tuple(name for name in Latest._fields if name != "kept")
    issued = tuple(name for name in intervals.Bands._fields if name != "mean_scale")
    nothing: Mapping[str, NDArray[Any]] = {}
    return {
        "intervals": Part(issued, [coverages, steps], intervals.begun_anew(bands)),
        "usual scale": Part(("mean_scale",), [], nothing),
        "corrections": Part(learned, engine.work.lessons.steps.tolist(), nothing),
        "watch": Part(watched, [coverages[:1], steps[:1]], nothing),
        "latest prediction": Part(latest, coverages, nothing),
    }


class Migration:
    """From states of one schema to those of an engine.

    Attributes:
        misfit: what lies otherwise of that which cannot begin anew; empty: all of that goes on.
        anew: the parts that the engine keeps and that were made with other settings, or lie
            otherwise.
        ticks: whether the engine can step the latest ticks that are kept in a state.
    """

    def __init__(self, found: Schema, engine: Engine) -> None:
        """Compare; as long as the engine is what it is."""
        wanted, kept = schema_of(engine), parts(engine)
        ours, theirs = _kinds(wanted.record), _kinds(found.record)
        self.found, self._engine, self._alike = found, engine, found == wanted
        self.anew = {
            name: part
            for name, part in kept.items()
            if (fields := [field for field in part.fields if field in ours])
            and (
                found.made.get(name) != part.made
                or [theirs.get(field) for field in fields] != [ours[field] for field in fields]
            )
        }
        self._begun = {name: row for part in self.anew.values() for name, row in part.begun.items()}
        self._skipped = {name for part in self.anew.values() for name in part.fields}
        self.ticks = _tick_of(theirs) == _tick_of(ours)
        for name in {name for part in kept.values() for name in part.fields}:
            theirs.pop(name, None)
            ours.pop(name, None)
        if self.ticks:  # more of them, or fewer
            theirs["recent"] = ours["recent"]
        other = [name for name in theirs | ours if theirs.get(name) != ours.get(name)]
        if found.floats != wanted.floats:
            other.append("state")
        if found.shape != wanted.shape:
            other.append("model")
        self.misfit = other[0] if other else ""

    @property
    def lost(self) -> list[str]:
        """What of a state begins anew, in words."""
        if self.misfit:
            return ["all but the latest ticks" if self.ticks else "all"]
        return list(self.anew)

    def take_over(
        self,
        slots: NDArray[np.int32],
        records: NDArray[np.void],
        recurrent: NDArray[np.float32],
    ) -> None:
        """Give series just begun the states of others, where there is no misfit.

        Args:
            slots: (n,) theirs.
            records: (n,) of the states.
            recurrent: (n, floats) of the states.
        """
        engine = self._engine
        for name, array in engine.series.state.items():
            if name == "recent":
                array[slots] = _ring(records, engine.history)
            elif name in self._begun:
                array[slots] = self._begun[name]
            elif name not in self._skipped:
                array[slots] = records[name]
        shape = engine.kernels.to_host(engine.buffers, slots[:0]).shape[1:]
        states = np.ascontiguousarray(recurrent).reshape(len(slots), *shape)
        engine.kernels.from_host(engine.buffers, slots, states)

    def take_back(self, slot: NDArray[np.int32], state: bytes) -> None:
        """Give one series just begun, (1,), a state as far as it goes: :attr:`lost`.

        Raises:
            ValueError: the state is not of that schema.
        """
        if len(state) != self.found.bytes:
            raise ValueError(f"a state of {len(state)} bytes, of {self.found.bytes} by its schema")
        data = np.frombuffer(bytearray(state), np.uint8)
        record, rest = np.split(data, [self.found.record.itemsize])
        records, recurrent = record.view(self.found.record), rest.copy().view(np.float32)[None]
        if self._alike:
            shape = self._engine.records(slot)[1].shape
            self._engine.set_records(slot, record[None], recurrent.reshape(shape))
        elif not self.misfit:
            self.take_over(slot, records, recurrent)
        elif self.ticks:
            ticks = unroll(slot, records["recent"], records["recent_count"])
            self._engine.begin_with(slot, records["seq"], records["heard"], ticks)


def fields_of(row: np.dtype[Any]) -> list[Any]:
    """How the fields of a row lie: name, type or fields, shape, offset; then its bytes."""
    found: list[Any] = []
    for name, (kind, offset, *_) in (row.fields or {}).items():
        inner = fields_of(kind) if kind.fields else kind.base.str
        found.append([name, inner, list(kind.shape), offset])
    return [*found, row.itemsize]


def dtype_of(fields: list[Any]) -> np.dtype[np.void]:
    """What :func:`fields_of` gave.

    Raises:
        one of ``UNREADABLE``: it did not.
    """
    *named, itemsize = fields
    names, kinds, shapes, offsets = zip(*named, strict=True)
    formats = [
        (dtype_of(kind) if isinstance(kind, list) else _scalar(kind), tuple(shape))
        for kind, shape in zip(kinds, shapes, strict=True)
    ]
    return np.dtype({"names": names, "formats": formats, "offsets": offsets, "itemsize": itemsize})


def _scalar(code: str) -> np.dtype[Any]:
    """Of a type's code; numpy would take far more, and read some of it as Python."""
    if not re.fullmatch(r"[<>|][a-zA-Z]\d{1,9}", code):
        raise ValueError(f"no type: {code!r}")
    return np.dtype(code)


def _kinds(record: np.dtype[np.void]) -> dict[str, Kind]:
    return {name: (kind.base.str, kind.shape) for name, (kind, *_) in (record.fields or {}).items()}


def _tick_of(kinds: Mapping[str, Kind]) -> list[Any]:
    """What the latest ticks in a record are, and what goes with them."""
    code, shape = kinds.get("recent", ("", ()))
    return [code, shape[1:], *map(kinds.get, ("seq", "heard", "recent_count"))]


def _ring(records: NDArray[np.void], history: int) -> NDArray[np.int64]:
    """The latest ticks of some series, as many as there are to be: :class:`work.Recent`."""
    found, count = records["recent"], records["recent_count"]
    if found.shape[1] == history:
        return found
    ring, rows = np.zeros((len(found), history, found.shape[2]), np.int64), np.arange(len(found))
    for back in range(1, min(history, found.shape[1]) + 1):
        at = np.maximum(count - back, 0)
        ring[rows, at % history] = found[rows, at % found.shape[1]]
    return ring
