"""``streamlstm fit --budget``: looks for options under which a fit errs less on its unseen span.

From the defaults uphill: of what is near the best so far, the most promising is tried first, and
takes its place where it errs clearly less. Each candidate is the first of a fit's two trainings,
judged as a fit judges it; the best alone is then fitted on all of the span. What would end after
the budget, at the pace seen, is not begun.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from streamlstm.datasets.frames import SeriesData
from streamlstm.fit_options import FitOptions
from streamlstm.model import Input, Model, Spec
from streamlstm.train import Attempt, FitReport, Progress, attempt, finish

GAIN = 0.01
"""Share by which a candidate has to err less: seeds alone differ by about that."""
SEARCHED = ("hidden", "layers", "rate", "updates", "head_dropout")


@dataclass(frozen=True)
class Candidate:
    """Options that were tried."""

    changed: dict[str, Any]
    """what differs from the options that the search began with"""
    error: float
    """on the unseen span over that of the naive forecast, the mean over steps ahead"""
    seconds: float

    def __str__(self) -> str:
        changes = ", ".join(f"{name} {value:.4g}" for name, value in self.changed.items())
        return f"{changes or 'as given'}: {self.error:.4f} of the naive error"


def search(
    series: Sequence[SeriesData],
    options: FitOptions,
    budget: float,
    progress: Progress | None = None,
    on_tried: Callable[[Candidate], None] = lambda candidate: None,
    *,
    name: str = "data",
    inputs: Sequence[Input] = (),
) -> tuple[Model, FitReport]:
    """Fit a model as :func:`streamlstm.train.fit` does, with the best options found in time.

    An interrupt ends the search, another one the last training. The options that the search begins
    with are always fitted, however long that takes.

    Args:
        series: to learn from.
        options: to begin with; those that were set stay as they are.
        budget: seconds, in all.
        progress: called after each update, with those of one candidate.
        on_tried: called with each candidate when it is judged.
        name: of the data, for the model's provenance.
        inputs: what the values of a tick are, as :func:`streamlstm.train.fit` takes them.

    Raises:
        DataError: no series is long enough.
        KeyboardInterrupt: before the first update.
    """
    began = time.perf_counter()
    pace = _Pace(progress)
    best = attempt(series, options, pace, inputs=inputs)
    pace.learn(best)
    tried = [Candidate({}, _error(best), best.seconds)]
    on_tried(tried[0])
    seen = {_searched(options)}
    ended = "the search was interrupted" if best.interrupted else ""
    while not ended:
        left = budget - (time.perf_counter() - began)
        chosen = next(
            (
                near
                for near in _near(best.options, options.model_fields_set)
                if _searched(near) not in seen and pace.seconds(near, best.options) <= left
            ),
            None,
        )
        if chosen is None:
            if len(tried) == 1:
                ended = f"nothing else could be tried within {budget:g} s; raise --budget"
            break
        seen.add(_searched(chosen))
        found: Attempt | None
        try:
            found = attempt(series, chosen, pace, inputs=inputs)
        except KeyboardInterrupt:
            found = None
        if found is None or found.interrupted:
            ended = "the search was interrupted; the best so far is taken"
            break
        pace.learn(found)
        changed = {
            of: getattr(chosen, of)
            for of in SEARCHED
            if getattr(chosen, of) != getattr(options, of)
        }
        tried.append(Candidate(changed, _error(found), found.seconds))
        on_tried(tried[-1])
        if _error(found) < (1 - GAIN) * _error(best):
            best = found
    model, report = finish(best, progress, name=name)
    if ended:
        report.notes.append(ended)
    told = [
        {"error": one.error if np.isfinite(one.error) else None, "seconds": round(one.seconds, 3)}
        | one.changed
        for one in tried
    ]
    found_by = {"budget": budget, "tried": told}
    model = replace(model, provenance={**model.provenance, "search": found_by})
    return model, replace(report, seconds=time.perf_counter() - began)


def _error(tried: Attempt) -> float:
    known = tried.skill[np.isfinite(tried.skill)]
    return float(known.mean()) if len(known) else np.inf


def _searched(options: FitOptions) -> tuple[Any, ...]:
    return tuple(getattr(options, name) for name in SEARCHED)


def _near(best: FitOptions, fixed: set[str]) -> Iterator[FitOptions]:
    """What differs from ``best`` in one option that is not ``fixed``, the most promising first."""
    changes: tuple[tuple[str, float], ...] = (
        ("rate", best.rate * 2),
        ("hidden", best.hidden * 2),
        ("head_dropout", 0.2 if best.head_dropout > 0.2 else 0.5),
        ("rate", best.rate / 2),
        ("updates", best.updates * 2),
        ("layers", best.layers + 1),
        ("hidden", best.hidden // 2),
        ("updates", best.updates // 2),
        ("layers", best.layers - 1),
        ("head_dropout", 0.0),
    )
    for name, value in changes:
        low, high = LIMITS[name]
        if name not in fixed and low <= value <= high:
            yield best.model_copy(update={name: value})


LIMITS = {
    "rate": (1e-4, 0.1), "hidden": (4, 512), "head_dropout": (0, 0.5), "updates": (50, 20_000),
    "layers": (1, 4),
}  # fmt: skip
"""Of what is tried."""


class _Pace:
    """How long trainings take, from those that were made."""

    def __init__(self, progress: Progress | None) -> None:
        self._progress, self._first, self._last, self._updates = progress, 0.0, 0.0, 0
        self._beside = self._trained = 0.0
        self._work = 0
        self._spec: Spec

    def __call__(self, done: int, total: int, loss: float, unseen: float) -> None:
        self._last, self._updates = time.perf_counter(), done
        if done == 1:  # which may have had to compile
            self._first = self._last
        if self._progress:
            self._progress(done, total // 2, loss, unseen)

    def learn(self, made: Attempt) -> None:
        """Keep the pace of an attempt that was just made."""
        self._spec = made.spec
        training = self._last - self._first
        self._beside = made.seconds - training
        self._trained += training
        self._work += _products(made.spec, made.options) * max(1, self._updates - 1)

    def seconds(self, options: FitOptions, best: FitOptions) -> float:
        """Of an attempt with ``options`` and the last training, of those or of the ``best``."""
        train = self._training(options)
        return 2 * self._beside + train + max(train, self._training(best))

    def _training(self, options: FitOptions) -> float:
        return self._trained / self._work * options.updates * _products(self._spec, options)


def _products(spec: Spec, options: FitOptions) -> int:
    """Weights that a step of the network with ``options`` multiplies by."""
    sizes = {"hidden": options.hidden, "layers": options.layers}
    shapes = spec.model_copy(update=sizes).weight_shapes().values()
    return sum(int(np.prod(shape)) for shape in shapes)
