"""Killed, or cut off from its power, at any point the daemon goes on from the very same bits."""

from pathlib import Path

from tests.crash import Victim
from tests.models import random_model_file


def test_killed_at_random_moments_nothing_published_is_lost(tmp_path: Path) -> None:
    victim = Victim(tmp_path, random_model_file(tmp_path))
    for _ in range(5):
        published = victim.kill_under_load()
        print(len(published), victim.verify(published), flush=True)
    for _ in range(5):
        victim.kill_at_start()
        print(victim.verify({}), flush=True)
