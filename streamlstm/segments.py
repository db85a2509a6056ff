"""The files of the journal: what they look like, and how they are read.

A folder of segments, ``<20 digits>.seg``, numbered without a gap in the order of writing; each is
preallocated, so that a full disk shows when one is opened, and never used twice. A segment has a
header of 4,096 bytes and then entries, one a batch; zeros follow the last. All is little endian.

Header: magic ``STREAMLJ``; u32 format, byte order mark 0x01020304, inputs, bytes of the model id;
u64 first (0, or see ``Journal``); two u64, the segment's own random seed of the checksums; the
model id, padded to 200 bytes; the policies by which its ticks were judged, JSON, padded to 256 (or
none: not said); u64 SipHash-1-3 of all that with a zero seed.

Entry, a multiple of 8 bytes: u64 SipHash-1-3 of all the rest of it; u32 its length, u32 ticks; u64
number; u64 number up to which all was known to be on disk when this was written; i64 now; u32
events, bytes of their names, bytes of their states, 0. Then columns: of the ticks ts i64, values
f64 (ticks, inputs), slot i32; of the events slot i32, bytes of state u32, bytes of name u16, kind
u8; of the ticks flags u8; names; states, each with the id of its schema, u64, before it. All events
come before the ticks.

Numbers count from 1 without a gap. What says that an entry is missing or damaged, and not merely
torn off by a crash, is a later entry by which it was on disk.
"""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from streamlstm import hashing
from streamlstm.events import Event
from streamlstm.files import mend_of
from streamlstm.hashing import siphash
from streamlstm.jit import njit
from streamlstm.memory import load_u32, load_u64
from streamlstm.ticks import Ticks

FORMAT = 1
MAGIC = b"STREAMLJ"
ORDER = 0x01020304
HEADER = 4096
"""Bytes before the first entry: a page, so that no write of an entry touches the header."""
ID, POLICIES = 200, 256
"""Bytes that a model's id and the policies may have: the header lies in one sector of 512."""
HEAD = 56
"""Bytes of an entry before its columns."""
PAGE = 4096

HEAD_OF_SEGMENT = np.dtype(
    [
        ("magic", "S8"), ("format", "<u4"), ("order", "<u4"), ("inputs", "<u4"), ("id", "<u4"),
        ("first", "<u8"), ("seed", "<u8", 2), ("model", f"S{ID}"),
        ("policies", f"S{POLICIES}"), ("checksum", "<u8"),
    ]
)  # fmt: skip


class JournalError(OSError):
    """A journal that cannot be written or read; the message is one line and says the mend."""


class Entry(NamedTuple):
    """A batch of ticks as it was journalled; its arrays are the reader's to keep."""

    number: int
    now: int
    """as given to ``append``"""
    ticks: Ticks
    events: list[Event]
    """that came before them; one may be told again, of the same slot"""
    policies: str
    """by which it was to be judged, as ``Policies.to_text`` gives them; empty: not said"""


@dataclass
class Found:
    """What was met while reading; ``torn`` are the bytes that a crash left unfinished."""

    entries: int = 0
    last: int = 0
    """number of the last sound entry before the end or a torn tail; 0 where there is none"""
    torn: int = 0


class _Head(NamedTuple):
    inputs: int
    first: int
    seed: NDArray[np.uint64]
    model: str
    policies: str


def files_in(folder: Path) -> list[Path]:
    """The segments of a folder, in order."""
    return sorted(path for path in folder.glob("*.seg") if path.stem.isdecimal())


def read(folder: Path, after: int, found: Found | None = None) -> Iterator[Entry]:
    """Entries with numbers above ``after``, in order, over all segments.

    Args:
        folder: of the journal; where there is none, there is nothing to read.
        after: the number of the last entry that is not needed.
        found: counts what is met.

    Raises:
        JournalError: an entry that was on disk is damaged or missing, or a segment is of another
            version.
    """
    found = found if found is not None else Found()
    paths = files_in(folder)
    paths = paths[needed([first_of(path) for path in paths], after + 1) :]
    heads = [_head(path) for path in paths]
    expected, before, damage = after + 1, -1, ""
    for k, (path, head) in enumerate(zip(paths, heads, strict=True)):
        if head is None:
            continue
        # a segment that a start opened takes the place of all from its first number on
        limit = min((h.first for h in heads[k + 1 :] if h and h.first), default=1 << 63)
        if expected < head.first < limit:
            raise _lost(path, expected, damage)
        data, end = _load(path), HEADER
        for at, number, synced, length in _entries(data, head):
            if number >= limit or number < expected:
                end = at + length if number < limit else end
                continue
            if at > end and number > expected:
                damage = damage or f"damaged at byte {end} of {path.name}"
            alone = at == HEADER and before != int(path.stem) - 1 and not head.first
            if number > expected:
                if synced >= expected or alone:
                    raise _lost(path, expected, damage)
                continue  # a crash took what was before it
            yield _entry(data, at, head)
            found.entries, found.last, expected = found.entries + 1, number, number + 1
            end, damage = at + length, ""
        if (rest := _used(data) - end) > 0:
            damage = damage or f"damaged at byte {end} of {path.name}"
            found.torn += rest
        before = int(path.stem)


def salvage(folder: Path) -> Iterator[Entry]:
    """Every sound entry there is, in order, whatever is missing or cannot be read between.

    For those who can do without some. Meanwhile the folder may be written to, and lose its oldest
    segments.
    """
    heads: list[tuple[Path, _Head]] = []
    for path in files_in(folder):
        with contextlib.suppress(JournalError):
            if head := _head(path):
                heads.append((path, head))
    last = 0
    for k, (path, head) in enumerate(heads):
        # as in read
        limit = min((later.first for _, later in heads[k + 1 :] if later.first), default=1 << 63)
        try:
            data = _load(path)
        except JournalError:
            continue
        for at, number, _, _ in _entries(data, head):
            if last < number < limit:
                last = number
                yield _entry(data, at, head)


def models(folder: Path) -> set[str]:
    """Ids of the models that were to step what is there."""
    heads = (_head(path) for path in files_in(folder))
    return {head.model for head in heads if head}


def error_at(path: Path, code: int | None, why: str, mend: str) -> JournalError:
    """What is wrong with a file or folder, in one line, and the error number."""
    error = JournalError(f"{path}: journal: {why}; {mend}")
    error.errno = code
    return error


def _lost(path: Path, number: int, damage: str) -> JournalError:
    why = f"entry {number} is {damage or 'missing'}"
    mend = "bring it back from a copy, or move the folder away to go on from a checkpoint alone"
    return error_at(path, None, why, mend)


def _load(path: Path) -> NDArray[np.uint8]:
    """All of a segment, whole words of it."""
    try:
        data = np.fromfile(path, np.uint8)
    except OSError as error:
        mend = "bring it back from a copy"
        raise error_at(path, error.errno, f"cannot be read ({error.strerror})", mend) from error
    return data[: len(data) & ~7]


def _head(path: Path) -> _Head | None:
    """What the header says; None where there is none and nothing else either."""
    try:
        with open(path, "rb") as file:
            raw = file.read(HEAD_OF_SEGMENT.itemsize)
    except OSError as error:
        mend = mend_of(error, "bring it back from a copy")
        raise error_at(path, error.errno, f"cannot be read ({error.strerror})", mend) from error
    if len(raw) == HEAD_OF_SEGMENT.itemsize:
        head = np.frombuffer(raw, HEAD_OF_SEGMENT)[0]
        if head["magic"] == MAGIC and head["order"] == ORDER and head["format"] != FORMAT:
            why = f"of format {head['format']}, this version reads {FORMAT}"
            raise error_at(path, None, why, "use the version that wrote it")
        if head["magic"] == MAGIC and head["checksum"] == checksum(head):
            seed, model = head["seed"].astype(np.uint64), bytes(head["model"])[: head["id"]]
            said = (bytes(text).decode(errors="replace") for text in (model, head["policies"]))
            return _Head(int(head["inputs"]), int(head["first"]), seed, *said)
    if _load(path)[HEADER:].any():
        mend = "bring it back from a copy, or move the folder away to go on from a checkpoint alone"
        raise error_at(path, None, "the header is damaged", mend)
    return None


def checksum(head: NDArray[np.void]) -> np.uint64:
    """Of a header, itself left out."""
    raw = np.frombuffer(head.tobytes(), np.uint8).copy()
    return np.uint64(hashing.checksum(raw[:-8]))


def first_of(path: Path) -> int:
    """Number of the first entry that a segment is for; 0 where it cannot be said."""
    try:
        head = _head(path)
        if head is None or head.first:
            return head.first if head else 0
        words = np.fromfile(path, np.uint64, count=(HEADER + HEAD) // 8)[HEADER // 8 :]
        length = int(words[1]) & 0xFFFFFFFF if len(words) > 1 else 0
        data = np.fromfile(path, np.uint8, count=HEADER + length)
    except OSError:
        return 0
    sound = _next(data, HEADER, head.seed, head.inputs) == HEADER
    return int(words[2]) if sound else 0


def needed(firsts: list[int], number: int) -> int:
    """Which is the first segment with anything from a number on, of those that begin so."""
    return max((k for k, first in enumerate(firsts) if 0 < first <= number), default=0)


def warm_up() -> None:
    """Compile all that reading takes."""
    _next(np.zeros(0, np.uint8), HEADER, np.zeros(2, np.uint64), 1)


def end_of(path: Path) -> int:
    """Bytes up to the end of the last entry, or of whatever else was written; 0: nothing was.

    An entry may end with zeros, as the rest of what was allocated does.
    """
    data, head = _load(path), _head(path)
    used = _used(data)
    ends = (at + length for at, _, _, length in _entries(data, head)) if head else iter(())
    return max([used, *ends]) if used > HEADER else 0


def _used(data: NDArray[np.uint8]) -> int:
    """Bytes up to the last one that is not zero."""
    used = np.flatnonzero(data.view(np.uint64))
    return 8 * int(used[-1]) + 8 if len(used) else 0


def _entries(data: NDArray[np.uint8], head: _Head) -> Iterator[tuple[int, int, int, int]]:
    """Where each sound entry lies, its number, what was synced then, its length."""
    words, at = data.view(np.uint64), HEADER
    while True:
        at = _next(data, at, head.seed, head.inputs)
        if at < 0:
            return
        length = int(words[at // 8 + 1] & np.uint64(0xFFFFFFFF))
        yield at, int(words[at // 8 + 2]), int(words[at // 8 + 3]), length
        at += length


def _entry(data: NDArray[np.uint8], at: int, head: _Head) -> Entry:
    n = int(data[at + 12 : at + 16].view(np.uint32)[0])
    number, _, now = data[at + 16 : at + 40].view(np.int64).tolist()
    count, _, _ = data[at + 40 : at + 52].view(np.uint32).tolist()
    at += HEAD

    def column(kind: type[np.generic], many: int) -> NDArray[Any]:
        nonlocal at
        begin, at = at, at + many * np.dtype(kind).itemsize
        return data[begin:at].view(kind)

    ts = column(np.int64, n)
    values = column(np.float64, n * head.inputs).reshape(n, head.inputs)
    slot = column(np.int32, n)
    whose, states = column(np.int32, count).tolist(), column(np.uint32, count).tolist()
    names, kinds = column(np.uint16, count).tolist(), column(np.uint8, count).tolist()
    flags = column(np.uint8, n)
    said = [column(np.uint8, length).tobytes() for length in (*names, *states)]
    events = [Event(*each) for each in zip(kinds, whose, said[:count], said[count:], strict=True)]
    return Entry(number, now, Ticks(slot, ts, values, flags), events, head.policies)


# --- compiled -------------------------------------------------------------------------------------


@njit(cache=True, error_model="numpy", _nrt=False)
def size_of_entry(ticks: int, inputs: int, events: int, said: int) -> int:
    """Bytes that so many ticks and events take, whose names and states are ``said`` bytes long."""
    return HEAD + ticks * (13 + 8 * inputs) + events * 11 + said


@njit(cache=True, error_model="numpy", _nrt=False)
def _next(data: NDArray[np.uint8], at: int, seed: NDArray[np.uint64], inputs: int) -> int:
    """Where the next sound entry lies, at ``at`` or later; -1: there is none."""
    begin, size = data.ctypes.data, len(data)
    while at + HEAD <= size:
        entry = begin + at
        length, n = np.int64(load_u32(entry + 8)), np.int64(load_u32(entry + 12))
        count, text = np.int64(load_u32(entry + 40)), np.int64(load_u32(entry + 44))
        states = np.int64(load_u32(entry + 48))
        whole = size_of_entry(n, inputs, count, text + states)
        if (
            length == (whole + 7) & ~7
            and at + length <= size
            and siphash(seed[0], seed[1], entry + 8, length - 8) == load_u64(entry)
        ):
            return at
        at += 8
    return -1
