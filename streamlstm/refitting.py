"""The model is fitted anew now and then: by a child process, so that no tick waits for it.

The child is a ``streamlstm refit`` of the lowest priority. Where its model wins it has replaced
the file, and that is taken over as any other (:mod:`streamlstm.reload`).
"""

import contextlib
import json
import logging
import math
import os
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from streamlstm import children, logs
from streamlstm.config import PREFIX, Config
from streamlstm.fit_options import ticks_needed
from streamlstm.model import Model

WON, KEPT = 0, 3
"""Exit codes of ``streamlstm refit``: the new model serves from now on, or the old one does."""
OUTCOMES = {WON: "won", KEPT: "lost"}
"""All others: failed."""
LIBRARIES = ("NUMBA_NUM_THREADS", "OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
"""Environment variables that say how many threads may compute."""


class Refitting:
    """When and how a child fits the model anew.

    Attributes:
        counts: how many did, by outcome.
    """

    def __init__(self, config: Config, tell: Callable[[], object]) -> None:
        """Begin none yet.

        Args:
            config: the daemon's, which is not yet kept to the cores that it names.
            tell: called by another thread when one is over.
        """
        self._config, self._tell = config, tell
        cores = os.sched_getaffinity(0)
        self._cores = cores - {*config.service.cpus} or cores
        self.counts = dict.fromkeys((*OUTCOMES.values(), "failed"), 0)
        self._child: _Child | None = None
        self._plan()

    def look(self, *, begin: bool) -> bool:
        """Begin one where it is time and may be, or see to the one begun; whether that has won."""
        if self._child is None:
            if begin and time.monotonic() >= self._due:
                self._plan()
                self._child = _Child(self._config, self._cores, self._tell)
            return False
        if not self._child.over.is_set():
            return False
        child, self._child = self._child, None
        outcome = OUTCOMES.get(child.code, "failed")
        self.counts[outcome] += 1
        if outcome == "failed":
            logs.event(logging.ERROR, "refit", outcome=outcome, why=child.why)
        else:
            logs.event(logging.INFO, "refit", outcome=outcome, **child.said)
        return outcome == "won"

    def stop(self) -> None:
        """End the one begun, if any."""
        if self._child:
            self._child.stop()
            self._child = None

    def _plan(self) -> None:
        interval = self._config.refit.interval
        self._due = time.monotonic() + interval if interval else math.inf


def doubts(config: Config, model: Model) -> Iterator[str]:
    """Why refits would fail; each one line with the mend."""
    asked, spec = config.refit, model.spec
    least = math.ceil(ticks_needed(spec) / (1 - asked.holdout))
    seconds = math.ceil(least * spec.step_ns / 1e9)
    if not asked.interval:
        return
    if "options" not in model.provenance:
        yield f"{config.model}: does not say how to fit it anew; make one with 'streamlstm fit'"
    if not os.access(config.model.resolve().parent, os.W_OK):
        yield f"{config.model}: refits cannot replace it; put it where this user may write"
    if asked.ticks < least:
        yield f"refit.ticks: {asked.ticks:,} are too few to learn from; set {least:,} or more"
    if config.journal.retention < seconds:
        yield (
            f"journal.retention: {config.journal.retention:g} s may hold fewer ticks than can be"
            f" learned from; set {seconds:,} or, better, some times that"
        )


class _Child:
    """One refit, and the thread that waits for it.

    A child is killed, be it at work on a file: those are replaced whole or not at all.

    Attributes:
        over: once it is, what follows can be read.
        code: its exit code; below 0 where a signal ended it.
        said: what it found.
        why: it failed.
    """

    def __init__(self, config: Config, cores: set[int], tell: Callable[[], object]) -> None:
        self._command = [*children.command("streamlstm"), *_arguments(config)]
        ours = {k: v for k, v in children.environment().items() if not k.startswith(PREFIX)}
        self._environment = ours | dict.fromkeys(LIBRARIES, str(config.refit.threads))
        self._cores, self._tell = cores, tell
        self.over = threading.Event()
        self.code, self.why = -1, ""
        self.said: dict[str, Any] = {}
        self._lock, self._stopped = threading.Lock(), False
        self._process: subprocess.Popen[str] | None = None
        # lives as long as the child, whose parent is that thread (prctl(2))
        self._thread = threading.Thread(target=self._run, name="refit", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """End it, and wait until it is gone."""
        with self._lock:
            self._stopped = True
            if self._process:
                self._process.kill()
        self._thread.join()

    def _run(self) -> None:
        try:
            with self._lock:
                if self._stopped:
                    return
                self._process = subprocess.Popen(
                    self._command,
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.PIPE,
                    text=True,
                    errors="replace",
                    env=self._environment,
                    process_group=0,  # Ctrl-C is for the daemon, which then ends it
                )
            _put_last(self._process.pid, self._cores)
            said, complaint = self._process.communicate()
            self.code = self._process.returncode
            if self.code in OUTCOMES:
                self.said = json.loads(said)
            elif self.code < 0:
                self.why = f"ended by signal {-self.code}"
            else:
                self.why = complaint.strip().rpartition("\n")[2] or f"exit code {self.code}"
        except (OSError, ValueError) as error:
            self.code, self.why = -1, f"{error!r}"
        finally:
            self.over.set()
            self._tell()


def _put_last(pid: int, cores: set[int]) -> None:
    """Have a process run where nothing else would, and be the first to go where memory is short."""
    for put in (
        lambda: os.setpriority(os.PRIO_PROCESS, pid, 19),
        lambda: os.sched_setscheduler(pid, os.SCHED_IDLE, os.sched_param(0)),
        lambda: os.sched_setaffinity(pid, cores),
        lambda: Path(f"/proc/{pid}/oom_score_adj").write_text("1000"),
    ):
        with contextlib.suppress(OSError):  # where it may not, it does without
            put()


def _arguments(config: Config) -> list[str]:
    """Of the command: all that it has to know, whatever file or variable it came from."""
    said: dict[str, object] = {
        "model": config.model,
        "checkpoint.path": config.checkpoint.path,
        "engine.learning": config.engine.learning,
        "ticks.max_ahead": config.ticks.max_ahead,
    }
    tuned = config.refit.model_dump(exclude={"interval"})
    said |= {f"refit.{name}": value for name, value in tuned.items()}
    flags = [part for name, value in said.items() for part in ("--set", f"{name}={value}")]
    return ["refit", "--json", "--parent", str(os.getpid()), *flags]
