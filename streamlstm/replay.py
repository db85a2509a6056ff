"""journal -> engine: what was stepped since a checkpoint is stepped again, to the same bits."""

from pathlib import Path

import numpy as np

from streamlstm.engine import Engine
from streamlstm.journal import Found, JournalError, read
from streamlstm.ticks import Keys, rows_of


def replay(engine: Engine, folder: Path, after: int) -> Found:
    """Step all that the journal in ``folder`` has above number ``after``; publish nothing.

    Neither does it count: what the engine drops was counted when it came first. ``last`` of what is
    returned is ``after`` where there was nothing to be read.

    Raises:
        JournalError: it is damaged, of another model, or has more series than there is room for.
    """
    found = Found(last=after)
    counts = [count.copy() for count in engine.work.counts]
    for entry in read(folder, after, found):
        if entry.model != engine.model.id:
            raise _refused(folder, f"of model {entry.model}, this is {engine.model.id}")
        if entry.ticks.values.shape[1] != engine.model.spec.inputs:
            raise _refused(folder, "of another number of inputs")
        if entry.names and max(map(len, entry.names)) > engine.series.index.names.shape[1]:
            raise _refused(folder, "with longer keys than input.max_key; raise it")
        slots = engine.series.lookup(Keys.of(entry.names))
        if not np.array_equal(slots, entry.begun + np.arange(len(slots))):
            raise _refused(folder, f"of more than max_series = {engine.series.capacity} series")
        for begin in range(0, len(entry.ticks.slot), engine.max_batch):
            engine.step(rows_of(entry.ticks, begin, begin + engine.max_batch), entry.now)
    for kept, counted in zip(engine.work.counts, counts, strict=True):
        kept[:] = counted
    return found


def _refused(folder: Path, why: str) -> JournalError:
    return JournalError(f"{folder}: journal {why}; move it away to go on from the checkpoint alone")
