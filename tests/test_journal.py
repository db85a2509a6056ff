"""The journal: what was appended is read back, whatever becomes of the file after it."""

import errno
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from streamlstm.appending import AT, BYTES, FULL, SYNC_ERRORS, SYNCS, append, commit
from streamlstm.events import (
    BACK,
    CREATE,
    EVICT,
    GONE,
    NEW,
    UNPARK,
    Changes,
    Event,
    Events,
    note,
)
from streamlstm.journal import Durability, Journal
from streamlstm.segments import Entry, Found, JournalError, models, read
from streamlstm.ticks import Names, Ticks

NONE = Events(
    Changes.none(0),
    Names(np.zeros((2, 8), np.uint8), np.zeros(2, np.uint16)),
    np.zeros((2, 8), np.uint8),
    0,
    0,
    np.zeros((2, 1), np.float32),
)
"""Of slots that never change."""
SCHEMA = 0xFEDCBA9876543210
"""Id of what the states are of."""
HEADER = 4096


def opened(folder: Path, first: int = 1, **options: object) -> Journal:
    """A small journal of 1 input, which the thread leaves alone unless asked."""
    given = {
        "inputs": 1, "max_batch": 100, "max_key": 64, "model": "abc", "durability": "strict",
        "segment_bytes": 1 << 14, "fsync_interval": 1000.0,
    }  # fmt: skip
    return Journal(folder, first=first, **given | options)  # type: ignore[arg-type]


def ticks(n: int, seed: int = 0, inputs: int = 1) -> Ticks:
    random = np.random.default_rng(seed)
    return Ticks(
        random.integers(0, 1000, n, np.int32),
        random.integers(0, 1 << 62, n),
        random.normal(size=(n, inputs)),
        random.integers(0, 2, n, np.uint8),
    )


def eventful(slots: int, state: int = 24) -> Events:
    """So many slots with names and states of their own, and no news yet."""
    random = np.random.default_rng(slots)
    lengths = random.integers(1, 65, slots).astype(np.uint16)
    return Events(
        Changes(np.zeros(slots, np.int32), np.zeros(1, np.int64), np.zeros(slots, np.uint8)),
        Names(random.integers(1, 256, (slots, 64)).astype(np.uint8), lengths),
        random.integers(0, 256, (slots, 16 + state)).astype(np.uint8),
        10,
        10 + state,
        random.normal(size=(slots, 5)).astype(np.float32),
    )


def told_of(events: Events, slot: int, mark: int) -> Event:
    """The event of a slot."""
    if mark == GONE:
        return Event(EVICT, slot, b"", b"")
    name = events.names.text[slot, : events.names.lengths[slot]].tobytes()
    if mark == NEW:
        return Event(CREATE, slot, name, b"")
    record = events.records[slot, events.begin : events.end]
    state = SCHEMA.to_bytes(8, "little") + record.tobytes() + events.recurrent[slot].tobytes()
    return Event(UNPARK, slot, name, state)


def change(events: Events, marks: dict[int, list[int]]) -> list[Event]:
    """Let slots change; in which order they are to be told."""
    for slot, each in marks.items():
        for mark in each:
            note(events.changes, slot, np.uint8(mark), np.uint8(0))
    gone = [told_of(events, slot, GONE) for slot, each in marks.items() if GONE in each]
    there = [
        told_of(events, slot, NEW | BACK if NEW | BACK in each else NEW)
        for slot, each in marks.items()
        if max(each) >= NEW
    ]
    return gone + there


def put(journal: Journal, batch: Ticks, events: Events = NONE) -> None:
    """Append and commit, in the next segment if need be."""
    error = append(journal.log, batch, events, 7)
    if error == FULL:
        journal.roll()
        error = append(journal.log, batch, events, 7)
    assert error == 0
    assert commit(journal.log) == 0


def same(entry: Entry, number: int, batch: Ticks) -> None:
    assert entry.number == number
    for ours, theirs in zip(entry.ticks, batch, strict=True):
        assert ours.dtype == theirs.dtype
        assert ours.tobytes() == theirs.tobytes()
        assert ours.shape == theirs.shape


def small(folder: Path, sizes: tuple[int, ...] = (3, 1, 4)) -> Path:
    """A closed journal of one segment; its file."""
    journal, events = opened(folder), eventful(len(sizes))
    for k, n in enumerate(sizes):
        change(events, {k: [NEW]})
        put(journal, ticks(n, k), events)
    journal.close()
    (segment,) = folder.glob("*.seg")
    return segment


def numbers(folder: Path, after: int = 0) -> list[int]:
    return [entry.number for entry in read(folder, after)]


MARKS = st.lists(st.sampled_from([GONE, NEW, NEW | BACK]), min_size=1, max_size=3)


@settings(max_examples=40)
@given(
    st.lists(
        st.tuples(st.integers(0, 100), st.dictionaries(st.integers(0, 30), MARKS)), max_size=12
    ),
    st.integers(1, 3),
    st.sampled_from(["strict", "interval"]),
)
def test_what_was_appended_is_read_back(
    tmp_path_factory: pytest.TempPathFactory,
    batches: list[tuple[int, dict[int, list[int]]]],
    inputs: int,
    durability: Durability,
) -> None:
    folder = tmp_path_factory.mktemp("journal") / "made"
    journal = opened(folder, inputs=inputs, durability=durability, state_bytes=1000, schema=SCHEMA)
    events, told = eventful(31), []
    for k, (n, marks) in enumerate(batches):
        told.append(change(events, marks))
        put(journal, ticks(n, k, inputs), events)
    assert journal.number == len(batches) + 1
    journal.close()
    assert journal.synced == len(batches)
    entries = list(read(folder, 0))
    for k, (entry, (n, _)) in enumerate(zip(entries, batches, strict=True)):
        same(entry, k + 1, ticks(n, k, inputs))
        assert entry.events == told[k]
        assert (entry.policies, entry.now) == ("", 7)
    assert models(folder) == {"abc"}
    assert folder.stat().st_mode & 0o777 == 0o700
    assert {path.stat().st_mode & 0o777 for path in folder.iterdir()} == {0o600}


def test_segments_follow_each_other_and_restarts_go_on(tmp_path: Path) -> None:
    for first in (1, 101, 201):
        journal = opened(tmp_path, first)
        for number in range(first, first + 100):
            put(journal, ticks(number % 60, number))
        journal.close()
    assert len(list(tmp_path.glob("*.seg"))) > 6
    for number, entry in enumerate(read(tmp_path, 0), 1):
        same(entry, number, ticks(number % 60, number))
    assert numbers(tmp_path, 250) == list(range(251, 301))
    found = Found()
    assert len([*read(tmp_path, 0, found)]) == 300
    assert (found.entries, found.last, found.torn) == (300, 300, 0)


def test_the_thread_prepares_the_next_segment_and_syncs(tmp_path: Path) -> None:
    journal = opened(tmp_path, durability="interval", fsync_interval=0.001)
    number = 0
    while len(list(tmp_path.glob("*.seg"))) < 4:
        if append(journal.log, ticks(100), NONE, 0) == 0:
            number += 1
    while journal.synced < number:
        os.sched_yield()
    journal.close()
    assert numbers(tmp_path) == list(range(1, number + 1))


def test_an_entry_that_a_segment_less_than_half_full_cannot_hold_gets_the_next(
    tmp_path: Path,
) -> None:
    journal = opened(tmp_path, inputs=120, max_batch=1000, fsync_interval=0.001)
    put(journal, ticks(300, inputs=120))
    assert 2 * journal.log.state[AT] < journal.log.size
    until = time.monotonic() + 10
    while append(journal.log, ticks(1000, inputs=120), NONE, 0) == FULL:
        assert time.monotonic() < until
        os.sched_yield()
    journal.close()
    assert numbers(tmp_path) == [1, 2]


def test_more_events_than_an_entry_holds_are_told_before_it(tmp_path: Path) -> None:
    journal = opened(tmp_path, segment_bytes=1 << 15, state_bytes=44, schema=SCHEMA)
    events = eventful(1000)
    every = [[GONE], [GONE, NEW], [NEW], [GONE, NEW | BACK], [NEW | BACK]]
    told = change(events, {slot: every[slot % 5] for slot in range(1000)})
    errors = set()
    for _ in range(100):  # segments run out, and it is tried again from where it was left
        if (error := append(journal.log, ticks(100), events, 7)) == 0:
            break
        errors.add(error)
        journal.roll()
    assert errors == {FULL}
    assert not events.changes.marks.any()
    put(journal, ticks(3), events)
    journal.close()
    *before, last, after = read(tmp_path, 0)
    assert len(before) > 3
    assert all(len(entry.ticks.ts) == 0 for entry in before)
    same(last, len(before) + 1, ticks(100))
    again = [event for entry in (*before, last) for event in entry.events]
    assert [event for event in again if event.kind == EVICT] == told[:600]
    assert sorted(again) == sorted(told)
    assert not after.events


def test_a_batch_that_is_too_large_is_refused(tmp_path: Path) -> None:
    journal = opened(tmp_path)
    assert append(journal.log, ticks(2000), NONE, 0) == errno.EMSGSIZE
    assert append(journal.log, ticks(1, inputs=2), NONE, 0) == errno.EMSGSIZE
    put(journal, ticks(100))
    journal.close()
    assert numbers(tmp_path) == [1]


# --- damage ---------------------------------------------------------------------------------------


def test_a_tail_torn_at_any_byte_is_thrown_away(tmp_path: Path) -> None:
    segment = small(tmp_path)
    whole = segment.read_bytes()
    begin = whole.rindex((3).to_bytes(8, "little") + (2).to_bytes(8, "little")) - 16
    for cut in range(begin, len(whole)):
        segment.write_bytes(whole[:cut])
        assert numbers(tmp_path) == [1, 2], cut
        segment.write_bytes(whole[:cut] + bytes(1 << 12))  # as preallocated
        last_written = len(whole[:cut].rstrip(b"\0"))
        found = Found()
        assert [e.number for e in read(tmp_path, 0, found)] in ([1, 2], [1, 2, 3])
        assert found.torn in (0, -(-max(0, last_written - begin) // 8) * 8)
        if found.entries == 3:
            assert whole[cut:].strip(b"\0") == b""


def test_a_tail_of_which_sectors_are_missing_or_garbled_is_thrown_away(tmp_path: Path) -> None:
    segment = small(tmp_path, (3, 100))
    whole = segment.read_bytes()
    sectors = range(HEADER // 512, -(-len(whole) // 512))
    assert len(sectors) > 3
    random = np.random.default_rng(0)
    for sector in sectors[1:]:
        for stale in (bytes(512), random.bytes(512)):
            hurt = bytearray(whole)
            hurt[sector * 512 : sector * 512 + 512] = stale
            segment.write_bytes(hurt)
            assert numbers(tmp_path) == [1], sector


def test_every_flipped_byte_is_found(tmp_path: Path) -> None:
    segment = small(tmp_path)
    whole = segment.read_bytes()
    last = whole.rindex((3).to_bytes(8, "little") + (2).to_bytes(8, "little")) - 16
    said = "move the folder away"
    for at in (*range(512), *range(HEADER, len(whole))):
        hurt = bytearray(whole)
        hurt[at] ^= 0x10
        segment.write_bytes(hurt)
        if at >= last:
            assert numbers(tmp_path) == [1, 2], at
            continue
        with pytest.raises(JournalError) as raised:
            numbers(tmp_path)
        message = str(raised.value)
        assert segment.name in message
        assert "\n" not in message
        assert said in message or "use the version" in message
        if at >= HEADER:  # what a checkpoint has made needless harms nobody
            assert numbers(tmp_path, 2) == [3], at


def test_what_is_damaged_before_the_last_restart_is_found(tmp_path: Path) -> None:
    first = small(tmp_path)
    at = first.stat().st_size - 30
    opened(tmp_path, 4).close()
    hurt = bytearray(first.read_bytes())
    hurt[at] ^= 1
    first.write_bytes(hurt)
    with pytest.raises(JournalError, match="entry 3 is damaged"):
        numbers(tmp_path)


def test_a_torn_tail_before_a_restart_is_no_damage(tmp_path: Path) -> None:
    segment = small(tmp_path)
    segment.write_bytes(segment.read_bytes()[:-20])
    journal = opened(tmp_path, 3)
    put(journal, ticks(9, 9))
    journal.close()
    *_, last = read(tmp_path, 0)
    same(last, 3, ticks(9, 9))
    assert numbers(tmp_path) == [1, 2, 3]


def test_an_entry_that_ends_with_zeros_outlives_a_restart(tmp_path: Path) -> None:
    """It may reach into a page in which it has nothing but zeros."""
    for n in range(190, 200):
        folder = tmp_path / str(n)
        journal = opened(folder, max_batch=200)
        batch = ticks(n)
        batch.flags[:] = batch.slot[:] = 0
        put(journal, batch)
        os.close(journal._folder)  # it is killed: nobody tidies up
        opened(folder, 2).close()
        assert numbers(folder) == [1], n


def test_what_was_never_synced_may_be_lost_in_any_order(tmp_path: Path) -> None:
    """Power lost under ``interval``: a later page on disk, an earlier one not."""
    journal = opened(tmp_path, durability="interval")
    ends = []
    for k in range(4):
        put(journal, ticks(50, k))
        ends.append(HEADER + int(journal.log.state[BYTES]))
    journal.close()
    (segment,) = tmp_path.glob("*.seg")
    hurt = bytearray(segment.read_bytes())
    hurt[ends[0] : ends[1]] = bytes(ends[1] - ends[0])
    segment.write_bytes(hurt)
    assert numbers(tmp_path) == [1]
    journal = opened(tmp_path, 2)
    for k in range(8):
        put(journal, ticks(k, k))
    journal.close()
    entries = list(read(tmp_path, 0))
    assert [entry.number for entry in entries] == list(range(1, 10))
    same(entries[1], 2, ticks(0))


def many(folder: Path, **options: object) -> list[Path]:
    """A closed journal of several segments, 100 entries."""
    journal = opened(folder, **options)
    for k in range(100):
        put(journal, ticks(60, k))
    journal.close()
    return sorted(folder.glob("*.seg"))


@pytest.mark.parametrize("which", [0, 1, 3])
@pytest.mark.parametrize("durability", ["strict", "interval"])
def test_a_missing_segment_is_found(tmp_path: Path, which: int, durability: str) -> None:
    segments = many(tmp_path, durability=durability)
    segments[which].unlink()
    with pytest.raises(JournalError, match="missing"):
        numbers(tmp_path)
    assert numbers(tmp_path, 90) == list(range(91, 101))


def test_another_version_is_refused(tmp_path: Path) -> None:
    segment = small(tmp_path)
    hurt = bytearray(segment.read_bytes())
    hurt[8] = 9
    segment.write_bytes(hurt)
    with pytest.raises(JournalError, match="of format 9, this version reads 1"):
        numbers(tmp_path)


def test_where_nothing_is_nothing_is_read(tmp_path: Path) -> None:
    assert numbers(tmp_path / "none") == []


# --- segments that go, and disks that fail --------------------------------------------------------


def test_forget_keeps_what_is_needed(tmp_path: Path) -> None:
    journal = opened(tmp_path)
    for k in range(100):
        put(journal, ticks(60, k))
    for before in (1, 2, 37, 38, 39, 40, 101):
        sizes = sum(path.stat().st_size for path in tmp_path.glob("*.seg"))
        freed = journal.forget(before)
        assert sizes - freed == sum(path.stat().st_size for path in tmp_path.glob("*.seg"))
        assert numbers(tmp_path, before - 1) == list(range(before, 101))
    assert journal.forget(101) == 0
    put(journal, ticks(1))
    journal.close()
    assert numbers(tmp_path, 100) == [101]
    with pytest.raises(JournalError, match="entry 1 is missing"):
        numbers(tmp_path)


def test_what_was_written_to_of_late_stays_if_asked_for_and_all_after_it(tmp_path: Path) -> None:
    journal = opened(tmp_path)
    for k in range(100):
        put(journal, ticks(60, k))
    journal.close()
    journal = opened(tmp_path, first=101)  # which does not make the others any younger
    put(journal, ticks(1))
    files = sorted(tmp_path.glob("*.seg"))
    for age, path in zip((50, 40, 20, 30), files, strict=False):
        os.utime(path, (10**9 - age, 10**9 - age))
    assert len(files) > 5
    assert journal.forget(101, 10**9 - 60) == 0
    journal.forget(101, 10**9 - 30)
    assert sorted(tmp_path.glob("*.seg")) == files[2:]
    journal.forget(101)
    assert sorted(tmp_path.glob("*.seg")) == files[-1:]
    journal.close()


def test_a_start_leaves_the_times_of_what_is_there(tmp_path: Path) -> None:
    opened(tmp_path).close()
    journal = opened(tmp_path)
    put(journal, ticks(1))
    journal.close()
    (before,) = tmp_path.glob("*.seg")
    os.utime(before, (10**9, 10**9))
    opened(tmp_path, first=2).close()
    assert before.stat().st_mtime == 10**9


def test_what_a_start_prepared_and_never_used_goes_at_the_next(tmp_path: Path) -> None:
    for _ in range(3):
        journal = opened(tmp_path)
        journal.roll()
        for descriptor in journal.log.state[[0, 5]]:
            os.close(descriptor)  # as a crash does
        os.close(journal._folder)
    assert len(list(tmp_path.glob("*.seg"))) == 2


def test_two_do_not_share_a_folder(tmp_path: Path) -> None:
    journal = opened(tmp_path)
    with pytest.raises(JournalError, match="another process"):
        opened(tmp_path)
    journal.close()


def test_a_full_disk_loses_nothing_and_is_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    journal = opened(tmp_path)

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(os, "posix_fallocate", full)
        number = 0
        while append(journal.log, ticks(60, number + 1), NONE, 0) == 0:
            number += 1
        with pytest.raises(JournalError, match="free some space") as raised:
            journal.roll()
        assert raised.value.errno == errno.ENOSPC
        assert append(journal.log, ticks(60), NONE, 0) == errno.ENOSPC
        assert numbers(tmp_path) == list(range(1, number + 1))
        with pytest.raises(JournalError, match="free some space"):
            opened(tmp_path / "other")
    journal.roll()
    put(journal, ticks(60, number + 1))
    journal.close()
    for k, entry in enumerate(read(tmp_path, 0), 1):
        same(entry, k, ticks(60, k))
    assert k == number + 1


def test_an_error_of_the_disk_itself_is_returned(tmp_path: Path) -> None:
    """Every write to /dev/full fails as on a full disk."""
    journal = opened(tmp_path)
    put(journal, ticks(5))
    kept = os.dup(journal.log.state[0])
    with open("/dev/full", "r+b", buffering=0) as full:
        os.dup2(full.fileno(), journal.log.state[0])
        assert append(journal.log, ticks(6), NONE, 0) == errno.ENOSPC
        assert journal.number == 2
    os.dup2(kept, journal.log.state[0])
    os.close(kept)
    put(journal, ticks(6))
    journal.close()
    assert numbers(tmp_path) == [1, 2]


def failing(journal: Journal) -> Callable[[], None]:
    """Let fdatasync of the segment fail, as it does on a pipe; what ends that."""
    kept, (out, into) = os.dup(journal.log.state[0]), os.pipe()
    os.dup2(into, journal.log.state[0])

    def mend() -> None:
        os.dup2(kept, journal.log.state[0])
        for descriptor in (kept, out, into):
            os.close(descriptor)

    return mend


@pytest.mark.parametrize("durability", ["strict", "interval"])
def test_what_could_not_be_synced_is_never_said_to_be_on_disk(
    tmp_path: Path, durability: str
) -> None:
    journal = opened(tmp_path, durability=durability)
    put(journal, ticks(1))
    journal.sync()
    assert append(journal.log, ticks(2), NONE, 0) == 0
    mend = failing(journal)
    if durability == "strict":
        assert commit(journal.log) == errno.EINVAL
    else:
        with pytest.raises(JournalError, match="look after the disk"):
            journal.sync()
    mend()
    assert journal.log.state[SYNC_ERRORS] == 1
    assert append(journal.log, ticks(3), NONE, 0) == FULL
    journal.roll()
    assert append(journal.log, ticks(3), NONE, 0) == 0
    assert commit(journal.log) == (errno.EIO if durability == "strict" else 0)
    with pytest.raises(JournalError):
        journal.sync()
    assert journal.synced == 1
    assert journal.forget(3) > 0  # a checkpoint has it all
    journal.sync()
    put(journal, ticks(4))
    journal.close()
    assert journal.synced == 4
    assert numbers(tmp_path, 2) == [3, 4]


def test_a_thread_that_ends_by_a_bug_is_known_to_who_appends(tmp_path: Path) -> None:
    journal = opened(tmp_path, durability="interval", fsync_interval=0.001)
    put(journal, ticks(1))
    right, journal._sync = journal._sync, lambda: 1 // 0  # type: ignore[method-assign]
    journal._thread.join(30)
    assert append(journal.log, ticks(2), NONE, 0) == errno.EIO
    assert journal.problem == repr(ZeroDivisionError("integer division or modulo by zero"))
    journal._sync = right  # type: ignore[method-assign]
    journal.roll()
    put(journal, ticks(2))
    journal.close()
    assert journal.synced == 2
    assert numbers(tmp_path) == [1, 2]


def test_strict_syncs_each_commit_and_interval_none(tmp_path: Path) -> None:
    journal = opened(tmp_path / "a")
    for k in range(1, 6):
        put(journal, ticks(1))
        assert (journal.log.state[SYNCS], journal.synced) == (k, k)
        assert commit(journal.log) == 0
    assert journal.log.state[SYNCS] == 5
    journal.close()
    journal = opened(tmp_path / "b", durability="interval")
    put(journal, ticks(1))
    assert (journal.log.state[SYNCS], journal.synced) == (0, 0)
    journal.sync()
    assert (journal.log.state[SYNCS], journal.synced) == (1, 1)
    journal.close()


def test_a_folder_that_cannot_be_made_is_told_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(JournalError, match=r"^[^\n]*choose another folder$"):
        opened(tmp_path / "file" / "journal")


CHILD = """
import sys
from pathlib import Path
from tests.test_journal import opened, put, ticks
journal = opened(Path(sys.argv[1]), durability="interval", fsync_interval=0.001)
number = 0
while True:
    number += 1
    put(journal, ticks(number % 60, number))
    sys.stdout.write("\\n")
    sys.stdout.flush()
"""


def test_what_was_appended_outlives_a_kill(tmp_path: Path) -> None:
    random = np.random.default_rng()
    child = subprocess.Popen(
        [sys.executable, "-c", CHILD, str(tmp_path)], stdout=subprocess.PIPE, bufsize=0
    )
    assert child.stdout
    told = len(child.stdout.read(int(random.integers(1, 3000))))
    child.send_signal(signal.SIGKILL)
    told += len(child.stdout.read())
    child.wait()
    child.stdout.close()
    entries = list(read(tmp_path, 0))
    assert told <= len(entries) <= told + 1
    for number, entry in enumerate(entries, 1):
        same(entry, number, ticks(number % 60, number))
