"""What outlives the process: checkpoints, the journal of what came since, parked series."""

import errno
import logging
import math
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from streamlstm import appending, checkpoint, logs, models, segments
from streamlstm.checkpoint import CheckpointError, Saving
from streamlstm.config import Config
from streamlstm.engine import Engine
from streamlstm.files import lock_folder, mend_of
from streamlstm.handover import Handover
from streamlstm.journal import Journal
from streamlstm.model import Model
from streamlstm.model_file import load_model
from streamlstm.parking import Parking
from streamlstm.policies import Policies
from streamlstm.replay import replay
from streamlstm.segments import JournalError
from streamlstm.state_schema import schema_of

_SPACE, _FILES = "free some space", "raise the limit of open files (LimitNOFILE=)"
_MENDS = {
    errno.ENOSPC: _SPACE, errno.EDQUOT: _SPACE, errno.EFBIG: _SPACE,
    errno.EMFILE: _FILES, errno.ENFILE: _FILES,
}  # fmt: skip
"""Error numbers of what is full, or as good as, and may have room again; what to do then."""
RETRY = 60.0
"""Seconds to the next checkpoint, at most, while the journal is suspended: it may go on then."""

_log = logging.getLogger("streamlstm")


class Kept:
    """An engine, and all that is on disk of it.

    Attributes:
        engine: with what was on disk.
        journal: to be written to, where there is to be one.
        parking: where series go to that are evicted, and come back from.
        due: when :meth:`look` is to be called at the latest, seconds of the monotonic clock.
    """

    def __init__(self, config: Config, values: NDArray[np.void], said: logs.Limited) -> None:
        """Open the engine, and bring back what a checkpoint has.

        Args:
            config: the daemon's.
            values: of the metrics, (1,) of :data:`streamlstm.metrics.LAYOUT`.
            said: through which is complained.

        Raises:
            ModelError, BackendError, CheckpointError, ParkingError: each with one line.
        """
        self._config, self._values, self._said = config, values, said
        self._lock = _lock(config.checkpoint.path) if config.checkpoint.path else -1
        self.engine, self._journalled = open_engine(config)
        self.journal: Journal | None = None
        path, full = config.engine.parking, config.engine.when_full
        self.parking = Parking(path, self.engine, evict=full == "evict") if path else None
        self._saving: Saving | None = None
        self._before = ""
        self._plan()

    def open_journal(self) -> None:
        """Replay what is there, and be ready to write: nothing is changed yet.

        Raises:
            JournalError: it is damaged, say.
            ModelError: the model asked for takes other ticks.
            CheckpointError: it cannot be kept.
        """
        asked, engine = self._config.journal, self.engine
        if not self._config.checkpoint.path:
            return
        folder = journal_of(self._config.checkpoint.path)
        found = replay(engine, folder, self._journalled, self.parking)
        self._journalled = found.last
        if found.entries or found.torn:
            batches, torn = found.entries, found.torn
            logs.event(logging.INFO, "replayed", journal=folder, batches=batches, torn=torn)
        self._take_over()
        engine = self.engine
        if asked.durability != "off":
            schema = schema_of(engine)
            self.journal = Journal(
                folder,
                inputs=engine.model.spec.inputs,
                max_batch=engine.max_batch,
                max_key=self._config.input.max_key,
                model=engine.model.id,
                policies=engine.policies.to_text(),
                durability=asked.durability,
                fsync_interval=asked.fsync_interval,
                segment_bytes=asked.segment_bytes,
                state_bytes=schema.bytes,
                schema=schema.id,
                first=found.last + 1,
            )

    def _take_over(self) -> None:
        """Go on with the model asked for, where what was kept is of another."""
        path = self._config.checkpoint.path
        assert path
        before, wanted = self.engine.model.id, load_model(self._config.model)
        try:
            models.keep(path, wanted)
        except OSError as error:
            raise CheckpointError(fault_of(error, path)) from error
        if before != wanted.id:
            handover = Handover(self.engine, engine_of(self._config, wanted))
            while not handover.done:
                handover.advance()
            handover.settle()
            self.adopt(handover.new)
            self._before = before

    def begin(self) -> None:
        """From here on this process serves: what it goes on from is kept, if that is new.

        Raises:
            CheckpointError: it cannot be.
        """
        asked, path = self._config.checkpoint, self._config.checkpoint.path
        if path and self._before:
            try:
                checkpoint.save(self.engine, path, self._journalled, keep=asked.keep)
            except OSError as error:
                raise CheckpointError(fault_of(error, path)) from error
            model = self.engine.model.id
            logs.event(logging.INFO, "model taken over", model=model, before=self._before)

    def adopt(self, engine: Engine) -> None:
        """Keep what this engine is from now on, in the place of the one before."""
        self.engine = engine
        if self.parking:
            self.parking.adopt(engine)
        if self.journal:
            schema = schema_of(engine)
            self.journal.adopt(engine.model.id, schema.bytes, schema.id)

    def begin_saving(self, engine: Engine, tell: Callable[[], object]) -> Saving | None:
        """A checkpoint of the engine that is about to be adopted; None where none is to be.

        Raises:
            OSError: its model cannot be kept.
        """
        asked = self._config.checkpoint
        if not asked.path:
            return None
        models.keep(asked.path, engine.model)
        return Saving(engine, asked.path, self._number, keep=asked.keep, tell=tell)

    def save(self, engine: Engine) -> None:
        """The same at once.

        Raises:
            OSError: it cannot be written.
        """
        asked = self._config.checkpoint
        assert asked.path
        checkpoint.save(engine, asked.path, self._number, keep=asked.keep)

    def saved(self) -> None:
        """One of these is written."""
        self._plan()
        self._saved()

    @property
    def saving(self) -> bool:
        """Whether a checkpoint is being written."""
        return self._saving is not None

    def warm_up(self) -> None:
        """Compile all that a checkpoint, or a start with a journal, can need."""
        checkpoint.warm_up(self.engine)
        segments.warm_up()

    @property
    def due(self) -> float:
        """When :meth:`look` is to be called; who waits is told of the end of a checkpoint."""
        return math.inf if self._saving else self._next

    def look(self, tell: Callable[[], object], *, begin: bool = True) -> None:
        """Begin a checkpoint where it is time, and may be, or see whether the one begun is written.

        Between two batches; ``tell`` is called by another thread when one is written.
        """
        asked = self._config.checkpoint
        try:
            if self._saving:
                if self._saving.done():
                    self._saving = None
                    self._saved()
            elif begin and asked.path and time.monotonic() >= self._next:
                self._resume()
                self._plan()
                self._saving = Saving(
                    self.engine, asked.path, self._number, keep=asked.keep, tell=tell
                )
        except OSError as error:
            self._saving = None
            self._miss_checkpoint(error)

    def miss(self, error: JournalError) -> Literal["go on", "wait", "stop"]:
        """A batch could not be journalled, and waits: what to do.

        Under ``strict`` to wait, for more room, or else to stop. Else to go on without: what is not
        there would be missing in all that follows, so nothing more is written before the next
        checkpoint, which is made as soon as it can be.
        """
        assert self.journal
        self._values["journal_failures"] += 1
        problem, mend = self.journal.problem, _MENDS.get(error.errno or 0, "look at the disk")
        ended = f"journal: its thread ended ({problem}); report this"
        why = ended if problem else f"{error}; {mend}"
        self.journal.problem = ""
        self._said.warn("journal", "journal", why=why)
        if self._config.journal.durability == "strict":
            return "wait" if error.errno in _MENDS else "stop"
        self.journal.suspend()
        self._next = time.monotonic()
        return "go on"

    def refresh(self) -> None:
        """Fetch what is counted here; it only reads, in whichever thread."""
        values = self._values
        if self.journal:
            values["journal_bytes"] = self.journal.log.state[appending.BYTES]
            values["ticks_not_journalled"] = self.journal.log.state[appending.MISSED]
        if self.parking:
            values["series_parked"] = self.parking.parked
            values["series_returned"] = self.parking.returned
            values["parked_series_refused"] = self.parking.refused
            values["parking_failures"] = self.parking.failures
            values["parking_bytes"] = self.parking.size

    def close(self) -> bool:
        """Write a last checkpoint, if asked for any, and close the files; whether all is kept."""
        asked, whole = self._config.checkpoint, True
        if self._saving:
            self._saving.stop()
        if asked.path:
            try:
                self.save(self.engine)
            except OSError as error:
                self._miss_checkpoint(error)
                whole = self.journal is not None and not self.journal.suspended
            else:
                self._saved()
        if self.journal:
            try:
                self.journal.close()
            except JournalError as error:
                _log.error("%s", error)
                whole = False
        if self.parking:
            self.parking.close()
        self.unlock()
        return whole

    def unlock(self) -> None:
        """Let others write there."""
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1

    @property
    def _number(self) -> int:
        """Of the last entry of the journal whose ticks were stepped."""
        return self.journal.number - 1 if self.journal else self._journalled

    def _plan(self) -> None:
        asked = self._config.checkpoint
        wait = asked.interval or math.inf
        if self.journal and self.journal.suspended:
            wait = min(wait, RETRY)
        self._next = time.monotonic() + wait if asked.path else math.inf

    def _saved(self) -> None:
        """A checkpoint is there: what the journal has of before the oldest is needed no more."""
        self._values["checkpoint_last_success_timestamp_seconds"] = time.time()
        path = self._config.checkpoint.path
        assert path
        needed = checkpoint.models(path) | {self.engine.model.id}
        try:
            if self.journal:
                before = checkpoint.journalled(path) + 1
                self.journal.forget(before, time.time() - self._config.journal.retention)
                needed |= segments.models(self.journal.folder)
            models.forget(path, needed)
        except JournalError as error:
            self._said.warn("journal", "journal", why=str(error))

    def _resume(self) -> None:
        """Write on where there is room again, from the checkpoint on that is to be made now."""
        if self.journal and self.journal.suspended:
            try:
                self.journal.roll()
            except JournalError as error:
                self._said.warn("journal", "journal", why=str(error))
            else:
                self.journal.resume()

    def _miss_checkpoint(self, error: OSError) -> None:
        """Log and count a failure; the next time it is tried again."""
        self._values["checkpoint_failures"] += 1
        assert self._config.checkpoint.path
        _log.error("no checkpoint: %s", fault_of(error, self._config.checkpoint.path))


def open_engine(config: Config) -> tuple[Engine, int]:
    """The engine, with what a checkpoint brought back; the last entry of the journal in that.

    It is of the model that the checkpoint is of, where there is one.

    Raises:
        ModelError, BackendError, CheckpointError: each with one line.
    """
    engine = engine_of(config, load_model(config.model))
    if config.engine.backend == "auto":
        took, why = engine.backend, engine.backend_reason
        logs.event(logging.INFO, "backend", took=took, because=why)
    path = config.checkpoint.path
    if not path:
        return engine, 0
    if not path.parent.is_dir():
        raise CheckpointError(f"{path}: its folder does not exist; make it")
    restored = checkpoint.load(
        engine, path, lambda model: engine_of(config, models.load(path, model))
    )
    if restored is None:
        return engine, 0
    for each in restored.damaged:
        _log.error("%s; going on from %s", each.partition(";")[0], restored.path)
    series = restored.engine.series.active
    logs.event(logging.INFO, "restored", checkpoint=restored.path, series=series)
    for each in restored.anew:
        logs.event(logging.WARNING, "begins anew", what=each, because="made with other settings")
    return restored.engine, restored.journalled


def _lock(path: Path) -> int:
    """A descriptor by which no other process goes on from that checkpoint, until it is closed.

    Raises:
        CheckpointError: another one does, or its folder cannot be written to.
    """
    if not path.parent.is_dir():
        raise CheckpointError(f"{path}: its folder does not exist; make it")
    folder = models.folder(path)
    try:
        folder.mkdir(mode=0o700, exist_ok=True)
        return lock_folder(folder)
    except BlockingIOError as error:
        why = "another process writes there; stop it, or set another checkpoint.path"
        raise CheckpointError(f"{path}: {why}") from error
    except OSError as error:
        raise CheckpointError(fault_of(error, path)) from error


def engine_of(config: Config, model: Model) -> Engine:
    """An engine for a model, as the daemon wants it.

    Raises:
        ModelError, BackendError: each with one line.
    """
    evict = config.engine.when_full == "evict"
    return Engine(
        model,
        backend=config.engine.backend,
        max_series=config.engine.max_series,
        max_batch=config.engine.max_batch,
        coverage=config.interval.coverage,
        threads=config.engine.threads,
        max_key=config.input.max_key,
        ordered=evict or config.engine.idle_timeout > 0,
        evict=evict and not config.engine.parking,
        keep_latest=bool(config.snapshot.bind) or config.metrics.page,
        history=config.engine.history,
        policies=Policies(**config.ticks.model_dump()),
        scored=config.engine.scored,
        learning=config.engine.learning,
        watching=config.engine.watch,
        telling=config.output.quality,
    )


def fault_of(error: OSError, path: Path) -> str:
    """One line about what could not be written at that path, or beside it, with the mend."""
    mend = _MENDS.get(error.errno or 0) or mend_of(error, "see to its folder")
    return f"{error.filename or path}: {error.strerror}; {mend}"


def journal_of(checkpoint: Path) -> Path:
    """The folder of the journal that goes with a checkpoint."""
    return checkpoint.with_name(f"{checkpoint.name}.journal")
