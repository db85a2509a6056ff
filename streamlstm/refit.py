"""``streamlstm refit``: the model fitted anew to what the journal holds, and kept if it is better.

What came last is held out, from one moment on for all series. The rest makes a new model, with the
options and the spec of the old one, so that every series can go on with its state. Then both
forecast the part held out, tick by tick through the live engine. The one that was judged is the
one that serves, although it did not see the latest part: so what a judgement says holds for it, and
the next one finds neither model knowing what it is judged by.
"""

import argparse
import json
import math
import os
import stat
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from pydantic import ValidationError
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from streamlstm import children, rolling
from streamlstm.backtest import sparse
from streamlstm.config import Config, ConfigError
from streamlstm.datasets.frames import SeriesData, heads
from streamlstm.datasets.times import DataError
from streamlstm.features import grid_places
from streamlstm.files import sync_folder
from streamlstm.fit_options import FitOptions
from streamlstm.kept import journal_of
from streamlstm.model import Model
from streamlstm.model_file import load_model, save_model
from streamlstm.recorded import recorded
from streamlstm.refitting import KEPT, WON
from streamlstm.rolling import Backtest
from streamlstm.terminal import FitBar, LeavingConsole, printable
from streamlstm.train import fit

COVERAGE = 0.9
"""Of the intervals, which are not judged."""
FAR = math.log(10)
"""A series says no more than that one model errs ten times as much as the other."""


class RefitError(RuntimeError):
    """A model that cannot be fitted anew; the message is one line and says the mend."""


class Judgement(NamedTuple):
    """How the old and the new model did on what neither had seen."""

    error: float
    """of the new one over that of the old one: geometric mean over the series; NaN: not known"""
    mase: tuple[float, float]
    """of the old one, of the new one"""
    series: int
    """that were judged"""
    forecasts: int


def command(config: Config, options: argparse.Namespace) -> int:
    """``streamlstm refit``: 0 where the new model took the old one's place, else ``KEPT``."""
    if options.parent:
        children.end_with(options.parent)
    path = config.model.resolve()  # what a link leads to is replaced, not the link
    if not config.checkpoint.path:
        raise ConfigError("checkpoint.path: missing; the journal that is learned from lies there")
    if not (options.dry_run or os.access(path.parent, os.W_OK)):
        raise ConfigError(f"{path.parent}: no model can be written there; choose another folder")
    console = LeavingConsole(stderr=True, quiet=options.json)
    old, asked = load_model(path), config.refit
    chosen = options_of(path, old)
    folder = journal_of(config.checkpoint.path)
    series = recorded(
        folder,
        old.spec.inputs,
        ticks=asked.ticks,
        series=asked.series,
        max_ahead=config.ticks.max_ahead,
    )
    # one tick dated far ahead is not to be in the way of all
    series = [s for s in series if not sparse(grid_places(old.spec.step_ns, s.ts))]
    known = before_latest(series, asked.holdout)
    past = [s for s in heads(series, known) if len(s.ts)]
    new = _fit(old, chosen, folder, past, console)
    judged = judge(old, new, folder, series, known, config.engine.learning, console)
    won = judged.error <= 1 - asked.margin
    if won and not options.dry_run:
        _replace(path, old, new)
    _report(options, old, new, judged, won, folder)
    return WON if won else KEPT


def options_of(path: Path, model: Model) -> FitOptions:
    """By which a model was fitted.

    Raises:
        RefitError: it was not, or by another version.
    """
    said = model.provenance.get("options")
    if said is None:
        raise RefitError(f"{path}: does not say how it was fitted; make one with 'streamlstm fit'")
    try:
        return FitOptions.model_validate(said)
    except ValidationError as error:
        name = ".".join(map(str, error.errors()[0]["loc"]))
        raise RefitError(
            f"{path}: was fitted by another version (option {name}); fit it again with this one"
        ) from None


def before_latest(series: Sequence[SeriesData], share: float) -> list[int]:
    """How many ticks of each come before that moment from which on lies a ``share`` of all."""
    if not series:
        return []
    ts = np.concatenate([s.ts for s in series])
    at = int((1 - share) * len(ts))
    moment = np.partition(ts, at)[at]
    return [int(np.searchsorted(s.ts, moment)) for s in series]


def judge(
    old: Model,
    new: Model,
    folder: Path,
    series: Sequence[SeriesData],
    known: Sequence[int],
    learning: bool,
    console: Console,
) -> Judgement:
    """Let both forecast what comes after the first ``known`` ticks of each series.

    Raises:
        BacktestError: nothing does.
    """
    columns = (TextColumn("judging"), BarColumn(), TimeRemainingColumn())
    with Progress(
        *columns, console=console, transient=True, disable=not console.is_terminal
    ) as bar:
        effort = sum(rolling.effort(series, model.spec) for model in (old, new))
        task = bar.add_task("judging", total=effort)
        before, after = (
            rolling.backtest(
                model,
                str(folder),
                series,
                known,
                (COVERAGE,),
                learning=learning,
                progress=lambda ticks: bar.advance(task, ticks),
            )
            for model in (old, new)
        )
    mase = before.scores.mean("mase"), after.scores.mean("mase")
    error = relative_error(before, after)
    return Judgement(error, mase, len(before.series), before.scores.forecasts)


def relative_error(before: Backtest, after: Backtest) -> float:
    """Mean absolute error of one model over that of another, on the same ticks; NaN: not known.

    The geometric mean over the series, each weighing as much as it has targets (Davydenko & Fildes
    2013): whatever their scales, and though one of them be hard to foresee, all have a say.
    """
    found = [
        (one.scores.targets, np.log(other.scores.mean("mae")) - np.log(one.scores.mean("mae")))
        for one, other in zip(before.series, after.series, strict=True)
        if one.scores.mean("mae") > 0 and other.scores.mean("mae") > 0
    ]
    if not found:
        return math.nan
    weights, logs = np.array(found).T
    return float(np.exp(np.average(np.clip(logs, -FAR, FAR), weights=weights)))


def _fit(
    old: Model, chosen: FitOptions, folder: Path, series: Sequence[SeriesData], console: Console
) -> Model:
    try:
        with FitBar(console) as bar:
            model, report = fit(series, chosen, bar, name=str(folder), like=old.spec)
    except DataError as error:
        why = str(error).partition(";")[0]
        raise RefitError(f"{folder}: {why}; wait for more, or raise journal.retention") from None
    if report.interrupted:
        raise KeyboardInterrupt
    return model


def _replace(path: Path, old: Model, new: Model) -> None:
    """Put the new model in the place of the old one, which stays beside it.

    Raises:
        RefitError: another one came there meanwhile.
    """
    if load_model(path).id != old.id:
        raise RefitError(f"{path}: is another model by now; it stays")
    mode = stat.S_IMODE(path.stat().st_mode)
    for model, to in ((old, path.with_name(f"{path.stem}.before{path.suffix}")), (new, path)):
        save_model(model, to, mode)
    sync_folder(path.parent)


def _report(
    options: argparse.Namespace,
    old: Model,
    new: Model,
    judged: Judgement,
    won: bool,
    folder: Path,
) -> None:
    if options.json:
        said: dict[str, Any] = {"model": new.id, "before": old.id, "error": judged.error}
        said |= {"mase": judged.mase[1], "mase_before": judged.mase[0]}
        said |= {"series": judged.series, "forecasts": judged.forecasts}
        print(json.dumps({key: _rounded(value) for key, value in said.items()}))
        return
    before, after = judged.mase
    place = "it took its place; SIGHUP has a daemon take it over"
    if options.dry_run:
        place = "it would take its place"
    print(
        f"{printable(str(folder))}: on the latest {judged.forecasts:,} ticks of {judged.series:,}"
        f" series, held out, model {new.id} errs {judged.error:.3f} times as much as {old.id} (MASE"
        f" {after:.3f}, was {before:.3f}): {place if won else 'that one stays'}"
    )


def _rounded(value: object) -> object:
    """To be read by people; None: not known."""
    if not isinstance(value, float):
        return value
    return round(value, 4) if math.isfinite(value) else None
