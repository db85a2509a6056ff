"""Killed, or cut off from its power, at any point the daemon goes on from the very same bits.

``benchmarks/crash.py`` does the same for longer.
"""

import contextlib
import sqlite3
from pathlib import Path

import pytest

from tests import disk
from tests.crash import DivergenceError, Victim
from tests.models import random_model_file


@pytest.mark.parametrize(("parks", "times", "least"), [(False, 4, 500), (True, 2, 30)])
def test_killed_at_random_moments_nothing_published_is_lost(
    tmp_path: Path, parks: bool, times: int, least: int
) -> None:
    victim = Victim(tmp_path, random_model_file(tmp_path, directions=6), parks=parks)
    published = 0
    for kill in (victim.kill_under_load, victim.kill_at_operation, victim.kill_at_start) * times:
        takes = kill()
        victim.verify(takes)
        published += len(takes)
    assert published > least
    if victim.parked:
        with contextlib.closing(sqlite3.connect(victim.parked)) as parked:
            assert parked.execute("SELECT count(*) FROM parked").fetchone()[0] >= 3


def test_killed_while_another_model_takes_over_it_goes_on_from_one_of_both(tmp_path: Path) -> None:
    """Whichever it was, and whichever forecasts were published: to the same bits."""
    (tmp_path / "next").mkdir()
    following = random_model_file(tmp_path / "next", seed=1, directions=6)
    outcomes = set()
    for attempt, within in ((0, 0.01), (2, 0.3), (3, 0.3), (5, 0.3), (6, 2.0), (7, 2.0)):
        folder = tmp_path / str(attempt)
        folder.mkdir()
        victim = Victim(folder, random_model_file(folder, directions=6), attempt)
        outcomes.add(victim.verify_reloaded(victim.kill_at_reload(following, within)))
    assert outcomes == {True, False}


@pytest.mark.parametrize("parks", [False, True])
@pytest.mark.parametrize("durability", ["strict", "interval"])
def test_cut_off_from_power_at_random_moments(tmp_path: Path, durability: str, parks: bool) -> None:
    """The second daemon goes on from what a power cut left of the first one's disk."""
    options = {"journal.durability": durability}
    victim = Victim(tmp_path, random_model_file(tmp_path, directions=6), parks=parks, **options)
    for session in "ab":
        recorded, takes = victim.record(tmp_path / f"log-{session}", sync_seconds=0.001)
        assert {"write", "sync", "syncdir", "make", "move"} <= {op.kind for op in recorded.ops}
        for cut in range(20):
            seen = victim.verify_cut(recorded, takes, tmp_path / f"{session}{cut}")
        victim.go_on(tmp_path / f"{session}{cut}", seen)


@pytest.mark.parametrize("mutation", [{"omit": disk.DATA}, {"omit": disk.NAMES}, {"late": True}])
def test_a_sync_that_is_left_out_or_comes_late_is_found(
    tmp_path: Path, mutation: dict[str, object]
) -> None:
    """The test above can fail."""
    victim = Victim(tmp_path, random_model_file(tmp_path, directions=6))
    recorded, takes = victim.record(tmp_path / "log", **mutation)

    def cut_often() -> None:
        for cut in range(50):
            victim.verify_cut(recorded, takes, tmp_path / str(cut))

    with pytest.raises(DivergenceError):
        cut_often()
