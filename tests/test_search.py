"""A search never ends worse than where it began, nor after its budget, and says what it tried."""

import argparse
import math
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from streamlstm import search as room
from streamlstm.arguments import duration
from streamlstm.cli import main
from streamlstm.fit_options import FitOptions
from streamlstm.model import Model, Spec
from streamlstm.model_file import load_model
from streamlstm.search import GAIN, SEARCHED, Candidate, search
from streamlstm.train import Attempt, FitReport, fit
from tests.models import random_model
from tests.test_cli import FIT, series_file
from tests.test_train import SMALL, wave

SPEC = Spec(hidden=1, step_ns=0, horizon=2)


def multiplications(options: FitOptions) -> int:
    """Of a training with these options, with one input and two outputs."""
    H, layers = options.hidden, options.layers
    network = 4 * H * (1 + H + 1) + (layers - 1) * 4 * H * (2 * H + 1)
    return options.updates * (network + 2 * H + 2 + 2)


class Hill:
    """Trainings whose errors and times are known: nothing is trained, and the clock is ours.

    The error is least at a rate of 0.024 and 128 units, a training takes a second for each million
    multiplications.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch, interrupted: int = 0) -> None:
        self.now, self.attempts, self.finished = 0.0, list[FitOptions](), list[FitOptions]()
        self._interrupted = interrupted
        monkeypatch.setattr(room, "attempt", self.attempt)
        monkeypatch.setattr(room, "finish", self.finish)
        monkeypatch.setattr(room, "time", SimpleNamespace(perf_counter=lambda: self.now))

    def error(self, options: FitOptions) -> float:
        off = abs(math.log2(options.rate / 0.024)) + abs(math.log2(options.hidden / 128))
        return 0.5 + 0.05 * off

    def attempt(
        self, series: object, options: FitOptions, progress: room._Pace, *, inputs: object
    ) -> Attempt:
        self.attempts.append(options)
        if len(self.attempts) == self._interrupted:
            raise KeyboardInterrupt
        began = self.now
        for done in range(1, options.updates + 1):
            self.now += 1e-6 * multiplications(options) / options.updates
            progress(done, 2 * options.updates, 1.0, 1.0)
        skill = np.array([self.error(options), np.nan])
        none = SimpleNamespace()
        return Attempt(
            options, SPEC, None, False, True, [], 0, none, none, none, 1, skill, False,
            self.now - began, [],
        )  # type: ignore[arg-type]  # fmt: skip

    def finish(self, tried: Attempt, progress: object, *, name: str) -> tuple[Model, FitReport]:
        self.finished.append(tried.options)
        self.now += 1e-6 * multiplications(tried.options)
        none = SimpleNamespace()
        report = FitReport(1, 0, 1, 1, 1.0, tried.skill, none, 0.0, False, [])  # type: ignore[arg-type]
        return random_model(), report


def test_it_climbs_to_the_best_there_is_and_says_what_it_tried(monkeypatch) -> None:
    hill, told = Hill(monkeypatch), list[Candidate]()
    model, report = search([], FitOptions(), 1e9, on_tried=told.append)
    (best,) = hill.finished
    assert (best.rate, best.hidden) == (pytest.approx(0.024), 128)
    assert (best.layers, best.updates, best.head_dropout) == (1, 600, 0.5)
    assert told[0].changed == {}
    assert told[0].error == pytest.approx(0.5 + 0.05 * 4)
    assert min(one.error for one in told) == pytest.approx(0.5)
    kept = model.provenance["search"]["tried"]
    assert [one["error"] for one in kept] == [one.error for one in told]
    assert {"rate", "hidden", "layers", "updates", "head_dropout"} == {
        name for one in told for name in one.changed
    }
    assert model.provenance["made by"] == "tests"  # and what it was before
    assert len({tuple(one.changed.items()) for one in told}) == len(told)
    assert report.seconds == hill.now
    assert report.notes == []


@pytest.mark.parametrize("budget", [15.0, 30.0, 100.0, 400.0])
def test_it_ends_in_time(monkeypatch, budget: float) -> None:
    hill = Hill(monkeypatch)
    search([], FitOptions(), budget)
    assert len(hill.attempts) > 1
    assert hill.now <= budget


def test_what_it_begins_with_is_fitted_in_any_case(monkeypatch) -> None:
    hill = Hill(monkeypatch)
    _, report = search([], FitOptions(), 0.1)
    assert hill.attempts == hill.finished == [FitOptions()]
    assert report.notes == ["nothing else could be tried within 0.1 s; raise --budget"]


def test_what_was_given_stays(monkeypatch) -> None:
    hill = Hill(monkeypatch)
    search([], FitOptions(hidden=32, updates=600), 1e9)
    assert {(tried.hidden, tried.updates) for tried in hill.attempts} == {(32, 600)}
    assert len({tried.rate for tried in hill.attempts}) > 2


def test_an_interrupt_leaves_the_best_so_far(monkeypatch) -> None:
    hill = Hill(monkeypatch, interrupted=4)
    _, report = search([], FitOptions(), 1e9)
    assert report.notes == ["the search was interrupted; the best so far is taken"]
    assert len(hill.attempts) == 4
    assert hill.finished == [min(hill.attempts[:3], key=hill.error)]
    Hill(monkeypatch, interrupted=1)  # before there is anything
    with pytest.raises(KeyboardInterrupt):
        search([], FitOptions(), 1e9)


def test_what_is_hardly_better_is_not_taken(monkeypatch) -> None:
    hill = Hill(monkeypatch)
    hill.error = lambda options: 0.5 - 0.49 * GAIN * (options.hidden == 64)  # type: ignore[method-assign]
    search([], FitOptions(), 1e9)
    assert hill.finished == [FitOptions()]


def test_its_model_is_that_of_a_fit_with_the_options_found() -> None:
    begin = FitOptions.model_validate(SMALL | {"horizon": 2})
    begin.model_fields_set.difference_update(SEARCHED)  # as if they were the defaults
    told: list[Candidate] = []
    model, report = search([wave(600)], begin, 4.0, on_tried=told.append)
    chosen = FitOptions.model_validate(model.provenance["options"])
    (taken,) = [one for one in told if begin.model_copy(update=one.changed) == chosen]
    assert report.skill.mean() == pytest.approx(taken.error)
    assert (1 - GAIN) * taken.error <= min(one.error for one in told)
    assert taken.error <= told[0].error
    again, _ = fit([wave(600)], chosen)
    assert again.id == model.id


@pytest.mark.parametrize(
    ("text", "seconds"), [("90", 90), ("90s", 90), ("5m", 300), ("1h", 3600), ("1.5m", 90)]
)
def test_budgets_are_read(text: str, seconds: float) -> None:
    assert duration(text) == seconds


@pytest.mark.parametrize("text", ["", "0", "5 m", "m", "-3", "5d", "1e3", "inf"])
def test_what_is_no_budget_is_refused(text: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError, match="write 90, 90s, 5m or 1h"):
        duration(text)


def test_the_command_says_what_it_tries(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    data, out = series_file(tmp_path), tmp_path / "m.safetensors"
    assert main(["fit", str(data), "--out", str(out), "--budget", "3s", *FIT]) == 0
    assert "as given: 0." in capfd.readouterr().err
    found = load_model(out).provenance["search"]
    assert found["budget"] == 3.0
    assert {"rate", "layers", "head_dropout"} > {*found["tried"][-1]} - {"error", "seconds"}
