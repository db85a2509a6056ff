"""Another model takes the place of the one that serves, and no tick waits for it or is lost.

It is opened in a thread of its own. Then, between two batches, series are handed over some at a
time (:mod:`streamlstm.handover`). Once all are, a checkpoint of the new engine is written, which
meanwhile follows the old one: so whenever the daemon is killed, it goes on from a state that is the
old model's or the new one's, and from there to the same bits. Only then does the new one serve.
"""

import math
import threading
import time
from collections.abc import Callable

from streamlstm.checkpoint import Saving
from streamlstm.config import Config
from streamlstm.copy_on_write import BEHIND, MORE, NOTHING, sweep
from streamlstm.handover import Handover
from streamlstm.kept import Kept, engine_of, fault_of
from streamlstm.loop import Loop
from streamlstm.model import ModelError
from streamlstm.model_file import load_model

_PATIENCE = {NOTHING: math.inf, BEHIND: 0.001, MORE: 0.0}
"""Seconds until a checkpoint is to be gone on with."""


class ReloadError(RuntimeError):
    """The model that serves goes on serving; the message is one line and says why."""


class Reload:
    """One such change.

    Attributes:
        due: when :meth:`advance` is to be called at the latest, seconds of the monotonic clock;
            where it waits for another thread, that one tells.
        engine: that of the new model, once there is one, and else the one that serves.
    """

    def __init__(self, config: Config, kept: Kept, loop: Loop, tell: Callable[[], object]) -> None:
        """Begin to open ``config.model``.

        Args:
            config: the daemon's.
            kept: what it keeps.
            loop: that which serves.
            tell: called by other threads when there is more to be done.
        """
        self._config, self._kept, self._loop, self._tell = config, kept, loop, tell
        self.due = math.inf
        self._old = self.engine = kept.engine
        self._handover: Handover | None = None
        self._saving: Saving | None = None
        self._error: Exception | None = None
        self._opened = threading.Event()
        self._thread = threading.Thread(target=self._open, name="reload", daemon=True)
        self._thread.start()

    def advance(self) -> Handover | None:
        """Do what can be done between two batches; once the new engine can serve, what led to it.

        Where its model is the one that serves already, so is the engine.

        Raises:
            ReloadError: it cannot.
        """
        if not self._opened.is_set():
            return None
        self._thread.join()
        try:
            return self._advance()
        except OSError as error:
            path = self._config.checkpoint.path or self._config.model
            raise ReloadError(fault_of(error, path)) from error
        except ModelError as error:
            raise ReloadError(f"{error}") from error

    def stop(self) -> None:
        """Have all as if nothing had been begun."""
        self._loop.handover = None
        if self._saving:
            self._saving.stop()
            self._saving = None

    def _advance(self) -> Handover | None:
        if self._error:
            why = str(self._error).partition("\n")[0]
            raise ReloadError(why or repr(self._error)) from self._error
        if self._handover is None:
            self._handover = Handover(self._old, self.engine)
        if self.engine is self._old:
            return self._handover
        self._loop.handover = self._handover
        if not self._handover.done:
            self._handover.advance()
            self.due = 0
        elif self._is_saved(self._handover):
            self._loop.handover = None
            return self._handover
        return None

    def _is_saved(self, handover: Handover) -> bool:
        """Whether there is a checkpoint of the new engine, if there is to be any."""
        self.due = math.inf
        if self._saving is None:
            if self._kept.saving:  # another is being written
                return False
            handover.lost = False
            self._saving = self._kept.begin_saving(self.engine, self._tell)
            if self._saving is None:
                return True
        left = sweep(self.engine.series.copies.shadow)
        if not self._saving.done():
            self.due = time.monotonic() + _PATIENCE[left]
            return False
        self._saving = None
        if handover.lost:  # since it began
            handover.prepare()
            self._kept.save(self.engine)
        self._kept.saved()
        return True

    def _open(self) -> None:
        """The thread: read and prove the model, and compile what it takes."""
        try:
            model = load_model(self._config.model)
            if model.id != self._old.model.id:
                new = engine_of(self._config, model)
                new.warm_up()
                self.engine = new
        except Exception as error:
            self._error = error
        finally:
            self._opened.set()
            self._tell()
