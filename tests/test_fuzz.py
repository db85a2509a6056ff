"""What fuzzing found once, and a little more of it: benchmarks/fuzz.py in a few seconds."""

from pathlib import Path

import numpy as np
import pytest

from benchmarks import fuzz
from benchmarks.fuzz_memory import Arena, Fenced
from benchmarks.fuzz_mutate import Mutator
from streamlstm.ticks import Messages
from streamlstm.wire.format import Columns

INPUTS = {
    "binary": 4096, "json": 4096, "msgpack": 4096, "arrow": 512, "predictions": 256, "config": 512,
    "model": 512, "checkpoint": 256, "journal": 128, "parked": 64, "snapshot": 64,
}  # fmt: skip


@pytest.mark.parametrize("name", INPUTS)
def test_no_damage_does_more_than_be_refused(name: str) -> None:
    if name in ("arrow", "predictions"):
        pytest.importorskip("pyarrow", reason="pyarrow is not installed")
    batch, target = fuzz.TARGETS[name].batch, fuzz.TARGETS[name].make()
    corpus, seeds = fuzz.load(fuzz.CORPUS / f"{name}.msgpack"), target.seeds()
    inputs = [*corpus, *seeds]
    mutator = Mutator([*seeds, *corpus], target.tokens, seed=0)
    for begin in range(0, len(inputs), batch):
        assert list(fuzz.replay(target, inputs[begin : begin + batch])) == []
    size = min(batch, INPUTS[name])
    for number in range(INPUTS[name] // size):
        assert list(target.check(mutator.batch(number, size), number)) == []


def test_the_corpus_is_of_these_and_small() -> None:
    files = list(fuzz.CORPUS.iterdir())
    assert {path.stem for path in files} <= fuzz.TARGETS.keys()
    assert 0 < sum(path.stat().st_size for path in files) < 100_000


def test_the_same_seed_does_the_same_damage() -> None:
    seeds = [[b"key", b'{"value": 1}'], [b"one frame"]]
    batches = [Mutator(seeds, [b"token"], seed).messages(3, 100) for seed in (1, 1, 2)]
    assert batches[0] == batches[1] != batches[2]
    assert len({len(message) for message in batches[0]}) > 1
    assert sum(message in seeds for message in batches[0]) < 30


def test_what_lies_at_the_end_of_an_arena_ends_where_nothing_may_be_read() -> None:
    maps, arena = Path("/proc/self/maps"), Arena(100)
    placed = arena.put(np.arange(100, dtype=np.uint8))
    end = placed.ctypes.data + 100
    (after,) = (line for line in maps.read_text().splitlines() if line.startswith(f"{end:x}-"))
    assert after.split()[1].startswith("---")
    before = arena.put(placed.copy(), first=True).ctypes.data
    (line,) = (line for line in maps.read_text().splitlines() if f"-{before:x} " in line)
    assert line.split()[1].startswith("---")


def test_a_byte_written_before_a_column_is_seen() -> None:
    fenced = Fenced.like(Columns.room(3, 2))
    assert not fenced.touched()
    fenced.fences[3][-1] ^= 1
    assert fenced.touched()


def test_a_reader_that_reads_otherwise_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    target = fuzz.TARGETS["binary"].make()
    message = Messages.of(target.seeds()[:1])
    assert list(target.check(message, 0)) == []
    monkeypatch.setattr("benchmarks.fuzz_wire.read_binary", lambda *_: None)
    assert [which for which, _ in target.check(message, 0)] == [0]
