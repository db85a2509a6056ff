"""What outlives the process is made in time, and goes when nothing needs it."""

import errno
import time
from pathlib import Path

import numpy as np
import pytest

from streamlstm import checkpoint, logs, metrics
from streamlstm.checkpoint import CheckpointError
from streamlstm.config import Config
from streamlstm.journal import Journal
from streamlstm.kept import RETRY, Kept
from streamlstm.segments import JournalError
from tests.models import random_model_file


def opened(folder: Path, seed: int = 0, **journal: object) -> Kept:
    config = Config.model_validate(
        {
            "model": random_model_file(folder, seed),
            "engine": {"max_series": 10, "max_batch": 10},
            "checkpoint": {"path": folder / "c", "interval": 0, "keep": 1},
            "journal": journal,
        }
    )
    kept = Kept(config, np.zeros(1, metrics.LAYOUT), logs.Limited())
    kept.open_journal()
    return kept


def test_a_journal_that_is_suspended_is_tried_again_whatever_the_interval(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept, full = opened(tmp_path, durability="interval"), True

    def roll(journal: Journal) -> None:
        if full:
            raise JournalError("full")

    monkeypatch.setattr(Journal, "roll", roll)
    kept.miss(JournalError("full"))
    assert kept.due <= time.monotonic()
    for _ in range(2):  # there is no room yet
        kept._next = time.monotonic()
        kept.look(lambda: None)
        kept._saving.finish()
        kept.look(lambda: None)
        assert kept.journal.suspended
        assert time.monotonic() < kept.due <= time.monotonic() + RETRY
    full, kept._next = False, time.monotonic()
    kept.look(lambda: None)
    assert not kept.journal.suspended
    kept._saving.finish()
    kept.look(lambda: None)
    assert kept.due == np.inf  # none was asked for
    kept.close()


@pytest.mark.parametrize("durability", ["off", "interval"])
def test_two_do_not_go_on_from_one_checkpoint(tmp_path: Path, durability: str) -> None:
    first = opened(tmp_path, durability=durability)
    with pytest.raises(CheckpointError, match=r"c: another process writes there; stop it, or"):
        opened(tmp_path, durability=durability)
    first.close()
    opened(tmp_path, durability=durability).close()


def test_what_ends_before_it_serves_has_changed_nothing(tmp_path: Path) -> None:
    """A start with another model, that finds its ports taken, say."""
    opened(tmp_path, durability="interval").close()
    before = (tmp_path / "c").read_bytes()
    kept = opened(tmp_path, 1, durability="interval")
    kept.journal.close()
    kept.unlock()
    assert (tmp_path / "c").read_bytes() == before
    kept = opened(tmp_path, 1, durability="interval")
    kept.begin()
    assert (tmp_path / "c").read_bytes() != before
    assert checkpoint.models(tmp_path / "c") == {kept.engine.model.id}
    kept.close()


@pytest.mark.parametrize(("durability", "all_of_it"), [("off", False), ("interval", True)])
def test_a_last_checkpoint_that_fails_is_told(
    tmp_path: Path, durability: str, all_of_it: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = opened(tmp_path, durability=durability)

    def save(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "full", "c")

    monkeypatch.setattr(checkpoint, "save", save)
    assert kept.close() == all_of_it


@pytest.mark.parametrize("durability", ["off", "interval"])
def test_models_that_no_checkpoint_needs_go(tmp_path: Path, durability: str) -> None:
    kept = opened(tmp_path, durability=durability)
    for seed in (1, 2, 3):
        kept.close()
        kept = opened(tmp_path, seed, durability=durability)
        kept.begin()
    kept.save(kept.engine)
    kept.saved()
    kept.close()
    assert [path.stem for path in tmp_path.glob("c.models/*")] == [kept.engine.model.id]
