"""journal -> engine: what was stepped since a checkpoint is stepped again, to the same bits."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from streamlstm.engine import Engine
from streamlstm.events import CREATE, EVICT, UNPARK, Event
from streamlstm.index import STARTED
from streamlstm.parking import Parking
from streamlstm.policies import Policies
from streamlstm.segments import Found, JournalError, read
from streamlstm.state_schema import Migration, schema_of
from streamlstm.ticks import Forecasts, rows_of

TakeBack = Callable[[NDArray[np.int32], int, bytes], None]
"""Gives a series just begun, (1,), a state of a schema with that id; or raises ValueError."""


def replay(
    engine: Engine,
    folder: Path,
    after: int,
    parking: Parking | None = None,
    made: Callable[[Forecasts], None] | None = None,
    *,
    counting: bool = False,
) -> Found:
    """Step all that the journal in ``folder`` has above number ``after``; publish nothing.

    Whichever model stepped them then: ticks are raw. Nor does it count, unless asked to: what the
    engine drops or scores was counted when it came first. Ticks are judged by the policies of their
    day, where the journal says them, not by the engine's. ``last`` of what is returned is ``after``
    where there was nothing to be read. Series that were parked are not parked once more, and those
    that came back bring their state along in the journal; out of ``parking`` go those that ended
    since; it is one of this engine. ``made`` is given the forecasts of each step, valid until it
    returns.

    Raises:
        JournalError: it is damaged, of ticks of another kind, or has more series than there is
            room for.
    """
    found = Found(last=after)
    work, started = engine.work, engine.series.index.counts[STARTED:]
    counts = *work.counts, *work.quality.sums, work.quality.alarms, started
    before = [kept.copy() for kept in counts]
    ended: dict[bytes, int] = {}
    asked, judged_by = engine.policies, ""
    take_back = parking.take_back if parking else _taking_back_own(engine)
    for entry in read(folder, after, found):
        if entry.ticks.values.shape[1] != engine.model.spec.inputs:
            raise _refused(folder, "of another number of inputs")
        if entry.policies and entry.policies != judged_by:
            _judge_by(engine, folder, entry.policies)
            judged_by = entry.policies
        for event in entry.events:
            _apply(engine, folder, event, ended, take_back)
        if not (entry.ticks.slot.view(np.uint32) < engine.series.capacity).all():
            raise _refused(
                folder, f"of more than max_series = {engine.series.capacity}", "raise it"
            )
        for begin in range(0, len(entry.ticks.slot), engine.max_batch):
            ticks = rows_of(entry.ticks, begin, begin + engine.max_batch)
            forecasts = engine.step(ticks, entry.now)
            if made:
                made(forecasts)
            slots = engine.take_ended()
            ended |= zip(engine.series.keys(slots), slots.tolist(), strict=True)
    if judged_by:
        engine.judge_by(asked)
    _end(engine, ended, parking)
    if not counting:
        for kept, counted in zip(counts, before, strict=True):
            kept[:] = counted
    engine.series.arrange()
    return found


def _judge_by(engine: Engine, folder: Path, policies: str) -> None:
    try:
        engine.judge_by(Policies.from_text(policies))
    except ValueError as error:
        raise _refused(folder, "of a version with other policies") from error


def _apply(
    engine: Engine,
    folder: Path,
    event: Event,
    ended: dict[bytes, int],
    take_back: TakeBack,
) -> None:
    """Do what was done to a slot; ``ended`` are series whose parked state is of no use."""
    series, slots = engine.series, np.array([event.slot], np.int32)
    if event.kind not in (CREATE, EVICT, UNPARK):
        raise _refused(folder, f"tells of a thing of kind {event.kind} that is unknown")
    if not 0 <= event.slot < series.capacity:
        raise _refused(folder, f"of more than max_series = {series.capacity}", "raise it")
    if event.kind == EVICT:
        if series.index.lengths[event.slot]:
            (name,) = series.keys(slots)
            if engine.moved(slots)[0]:  # since it ended: so it is what was parked
                ended.pop(name, None)
            series.release(slots)
        return
    if len(event.name) > series.index.names.shape[1]:
        raise _refused(folder, "with longer keys than input.max_key", "raise it")
    series.bind(event.slot, event.name)
    if event.name in ended:
        ended[event.name] = -1
    if event.kind == UNPARK:
        ended.pop(event.name, None)
        of, state = int.from_bytes(event.state[:8], "little"), event.state[8:]
        try:
            take_back(slots, of, state)
        except ValueError as error:
            mend = "start once with engine.parking as it was"
            raise _refused(folder, "of series parked with other settings", mend) from error


def _taking_back_own(engine: Engine) -> TakeBack:
    """Where no schema is known but the engine's own."""
    migration = Migration(schema_of(engine), engine)
    own = migration.found.id

    def take_back(slot: NDArray[np.int32], of: int, state: bytes) -> None:
        if of != own:
            raise ValueError("it is not known of what it is")
        migration.take_back(slot, state)

    return take_back


def _end(engine: Engine, ended: dict[bytes, int], parking: Parking | None) -> None:
    """Close the series that were about to be closed: nothing of theirs waits any more."""
    slots = np.array([slot for slot in ended.values() if slot >= 0], np.int32)
    slots = slots[engine.series.index.lengths[slots] > 0]
    engine.series.release(slots[~engine.moved(slots)])
    if parking and ended:
        parking.forget(list(ended))


def _refused(folder: Path, why: str, mend: str = "") -> JournalError:
    mends = f"{mend}, or move it away" if mend else "move it away"
    return JournalError(f"{folder}: journal {why}; {mends} to go on from the checkpoint alone")
