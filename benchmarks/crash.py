"""What is lost, or other than it would be, after kill -9 and after power cuts: nothing, we say.

    python -m benchmarks.crash [--kills 200] [--disk 1000] [--seed 0] [--json FILE]

``--kills``: the daemon under ``durability = "strict"`` with a checkpoint each 50 ms is killed at
random moments under load, while it starts and recovers, and in place of a random file operation.
After each its files are recovered: every series must have the bits of an engine that took the same
ticks and was never killed, as must every forecast that a subscriber received, and no such forecast
may be without its tick. The next daemon goes on from there. Then the same of a daemon with room for
some of the series only: the others are parked, and come back. Then of daemons that were told to
take another model: what they left is of one of both, and where it is the next one's, each series
has the bits to which it comes if it goes over after some number of its ticks.

``--disk``: the file operations of a daemon are recorded, and the disk cut off from its power at
random moments: what was not synced is lost, or not, a name or a sector of 512 bytes at a time. Each
such disk is recovered. Under ``interval`` only what came after the oldest unsynced write may be
missing. The last of each ``CUTS`` is what the next daemon goes on from.

The exit code is 1 where anything diverged.
"""

import argparse
import collections
import itertools
import json
import shutil
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from tests.crash import DivergenceError, Victim
from tests.models import random_model_file

CUTS = 50
"""Power cuts of one recorded run of the daemon."""


def main() -> int:
    """Kill and cut, print what came of it."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        prog="python -m benchmarks.crash",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--disk", type=int, default=1000, metavar="CUTS")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", metavar="FILE")
    options = parser.parse_args()
    rows = [killed(options.kills, options.seed, parks) for parks in (False, True) if options.kills]
    if options.kills:
        rows.append(reloaded(options.kills, options.seed))
    for durability, parks in itertools.product(("strict", "interval"), (False, True)):
        if options.disk:
            rows.append(cut_off(durability, options.disk, options.seed, parks))
    if options.json:
        Path(options.json).write_text(json.dumps(rows, indent=1))
    return int(any(row["divergences"] for row in rows))


def killed(kills: int, seed: int, parks: bool) -> dict[str, Any]:
    """A row: so many kills of one daemon after the other; ``parks``: series come and go."""
    divergences: list[str] = []
    done: collections.Counter[str] = collections.Counter()
    ticks, forecasts, attempt, began = 0, 0, 0, time.monotonic()
    while sum(done.values()) < kills:
        with tempfile.TemporaryDirectory() as folder:
            attempt += 1
            victim = Victim(
                Path(folder), random_model_file(Path(folder), directions=6), seed + attempt, parks
            )
            ways = (victim.kill_under_load, victim.kill_at_operation, victim.kill_at_start)
            try:
                for way in ways * kills:
                    if sum(done.values()) == kills:
                        break
                    done[way.__name__.removeprefix("kill_")] += 1
                    takes = way()
                    forecasts += len(takes)
                    victim.verify(takes)
                    _say(f"{sum(done.values())} kills, {forecasts:,} forecasts received")
            except DivergenceError as error:
                divergences.append(f"seed {seed + attempt}, {dict(done)}: {error}")
                _say(divergences[-1], "\n")
            ticks += sum(victim.seen.values())
    what = "kill -9, strict, parking" if parks else "kill -9, strict"
    return _row(what, dict(done), ticks, forecasts, divergences, began)


def reloaded(kills: int, seed: int) -> dict[str, Any]:
    """A row: so many daemons killed while another model takes over."""
    divergences: list[str] = []
    done: collections.Counter[str] = collections.Counter()
    ticks, forecasts, began = 0, 0, time.monotonic()
    for attempt in range(kills):
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            (folder / "next").mkdir()
            following = random_model_file(folder / "next", seed=1, directions=6)
            victim = Victim(folder, random_model_file(folder, directions=6), seed + attempt)
            takes = victim.kill_at_reload(following, (0.03, 0.1, 0.3)[attempt % 3])
            forecasts, ticks = forecasts + len(takes), ticks + sum(victim.sent.values())
            try:
                changed = victim.verify_reloaded(takes)
            except DivergenceError as error:
                divergences.append(f"seed {seed + attempt}: {error}")
                _say(divergences[-1], "\n")
            else:
                done["with the next model" if changed else "with the one before"] += 1
            _say(f"{attempt + 1} kills, {forecasts:,} forecasts received")
    return _row("kill -9, strict, reload", dict(done), ticks, forecasts, divergences, began)


def cut_off(durability: str, cuts: int, seed: int, parks: bool) -> dict[str, Any]:
    """A row: so many power cuts of recorded disks; ``parks``: series come and go."""
    divergences: list[str] = []
    kinds: collections.Counter[str] = collections.Counter()
    ticks, forecasts, done, began = 0, 0, 0, time.monotonic()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        options = {"journal.durability": durability}
        victim = Victim(folder, random_model_file(folder, directions=6), seed, parks, **options)
        while done < cuts:
            disk, takes = victim.record(folder / "log", sync_seconds=0.001)
            kinds.update(op.kind for op in disk.ops if op.begun)
            forecasts += len(takes)
            seen = victim.seen
            target = victim.root
            for _ in range(min(CUTS, cuts - done)):
                done += 1
                following = folder / f"cut{done}"
                try:
                    seen = victim.verify_cut(disk, takes, following)
                except DivergenceError as error:
                    divergences.append(f"seed {seed}, cut {done}: {error}")
                    _say(divergences[-1], "\n")
                else:
                    if target != victim.root:
                        shutil.rmtree(target)
                    target = following
                _say(f"{done} power cuts, {durability}")
            ticks += sum(victim.sent.values()) - sum(victim.seen.values())
            if target != victim.root:
                shutil.rmtree(victim.root)
            victim.go_on(target, seen)
    done_by = {"power cuts": done} | {f"{kind} operations": n for kind, n in kinds.items()}
    what = f"power cuts, {durability}" + ", parking" * parks
    return _row(what, done_by, ticks, forecasts, divergences, began)


def _row(
    what: str,
    done: dict[str, int],
    ticks: int,
    forecasts: int,
    divergences: list[str],
    began: float,
) -> dict[str, Any]:
    row = {
        "what": what,
        "done": done,
        "ticks": ticks,
        "forecasts": forecasts,
        "divergences": divergences,
        "seconds": round(time.monotonic() - began, 1),
    }
    said = ", ".join(f"{count:,} {name}" for name, count in done.items())
    _say("")
    print(
        f"{what}: {said}; {ticks:,} ticks, {forecasts:,} forecasts compared,"
        f" {len(divergences)} divergences, {row['seconds']} s"
    )
    return row


def _say(text: str, end: str = "\r") -> None:
    if sys.stderr.isatty() or end == "\n":
        print(f"\x1b[K{text}", end=end, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
