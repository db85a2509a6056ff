"""Arrow in compiled code says what pyarrow says, bit for bit, or leaves the message to it."""

import ctypes
import mmap
import struct
from decimal import Decimal
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from streamlstm.ticks import WARM, Messages
from streamlstm.wire.codec import Decoder
from streamlstm.wire.format import ARRIVAL, NUMBERED, SOUND, UNREAD, Columns

pa = pytest.importorskip("pyarrow", reason="pyarrow is not installed")
schemas = pytest.importorskip("streamlstm.wire.schemas", reason="pyarrow is not installed")

Rows = list[tuple[Any, ...]]


def stream(*batches: Any, end: bool = True) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, batches[0].schema) as writer:
        for batch in batches:
            writer.write_batch(batch)
    return sink.getvalue().to_pybytes()[: None if end else -8]


def rows(columns: Columns, count: int) -> Rows:
    """All of each row that means something."""
    kept = []
    for row in range(count):
        fault = int(columns.fault[row])
        says = (columns.begin, columns.end, columns.ts, columns.values, columns.flags)
        bits = [each[row].tobytes() for each in says]
        if columns.flags[row] & ARRIVAL:
            bits[2] = b""
        if columns.flags[row] & NUMBERED:
            begin, end = columns.publisher[row]
            named = columns.publisher[row].tobytes() if begin < end else b""
            bits += [columns.seq[row].tobytes(), named]
        kept.append((fault, *bits) if fault == SOUND else (fault,))
    return kept


def compiled(decoder: Decoder, messages: Messages, m: int = 0) -> Rows | None:
    """Of one message; None where it is left to pyarrow."""
    reader = decoder.reader
    count = schemas.read_one(messages, m, reader.columns, 0, reader.limits)
    return None if count < 0 else rows(reader.columns, count)


def by_pyarrow(decoder: Decoder, messages: Messages, m: int = 0) -> Rows:
    reader: Any = decoder.reader
    return rows(reader.columns, reader.read_one(messages, m, 0))


def told(payload: bytes, inputs: int = 1, **limits: int) -> Decoder:
    """One that has read a message, and knows its schema."""
    decoder = Decoder("arrow", inputs, **limits)
    decoder.decode(Messages.of([[payload]]), 1, 0)
    assert decoder.reader.columns.scratch.any()
    return decoder


# what it reads

STAMPS = [pa.timestamp(u, z) for u in schemas.UNITS for z in (None, "UTC")] + [pa.int64()]
NAMES = st.text(st.characters(exclude_characters="\0", codec="utf-8"), min_size=1, max_size=20)
OTHERS: list[tuple[Any, st.SearchStrategy[Any]]] = [
    (pa.int8(), st.integers(-128, 127)),
    (pa.float32(), st.floats(width=32)),
    (pa.bool_(), st.booleans()),
    (pa.utf8(), st.text(max_size=3)),
    (pa.large_binary(), st.binary(max_size=3)),
    (pa.binary(2), st.binary(min_size=2, max_size=2)),
    (pa.decimal128(5, 2), st.integers(-99, 99).map(Decimal)),
    (pa.list_(pa.list_(pa.utf8())), st.lists(st.lists(st.text(max_size=2)), max_size=2)),
    (pa.list_(pa.int16(), 2), st.lists(st.integers(0, 9), min_size=2, max_size=2)),
    (pa.struct({"a": pa.utf8(), "b": pa.int32()}), st.just({"a": "x", "b": 1})),
]
STRANGE: list[tuple[Any, st.SearchStrategy[Any]]] = [
    (pa.null(), st.none()),
    (pa.string_view(), st.text(max_size=20)),
    (pa.map_(pa.utf8(), pa.int8()), st.just([("a", 1)])),
    (pa.dictionary(pa.int8(), pa.utf8()), st.sampled_from("abc")),
]


@st.composite
def senders(draw: st.DrawFn, inputs: int, others: list[Any]) -> list[bytes]:
    """Messages of one plain schema."""
    kinds: dict[str, tuple[Any, st.SearchStrategy[Any]]] = {
        "series": (draw(st.sampled_from([pa.utf8(), pa.large_utf8()])), NAMES)
    }
    number, value = pa.float64(), st.none() | st.floats()
    if inputs == 1 and draw(st.booleans()):
        kinds["value"] = number, value
    else:
        lists = [pa.list_(number), pa.large_list(number), pa.list_(number, inputs)]
        kinds["values"] = (
            draw(st.sampled_from(lists)),
            st.lists(value, min_size=inputs, max_size=inputs),
        )
    if draw(st.booleans()):
        kinds["ts"] = draw(st.sampled_from(STAMPS)), st.none() | st.integers(-(10**9), 10**9)
    if draw(st.booleans()):
        kinds["warm"] = pa.bool_(), st.none() | st.booleans()
    for name in draw(st.sets(st.sampled_from(["reset", "end"]))):
        kinds[name] = pa.bool_(), st.none() | st.booleans()
    for name in draw(st.sets(st.sampled_from(["seq", "publisher"]))):
        text = draw(st.sampled_from([pa.utf8(), pa.large_utf8()])), st.none() | st.text(max_size=9)
        kinds[name] = (pa.int64(), st.none() | st.integers(0, 9)) if name == "seq" else text
    for k, (kind, values) in enumerate(draw(st.lists(st.sampled_from(others), max_size=3))):
        kinds[f"other{k}"] = kind, st.none() | values
    order = draw(st.permutations(list(kinds)))
    payloads = []
    for _ in range(draw(st.integers(2, 4))):
        batches = []
        for size in draw(st.lists(st.integers(1, 20), min_size=1, max_size=3)):
            columns = {}
            for name in order:
                kind, values = kinds[name]
                drawn = draw(st.lists(values, min_size=size, max_size=size))
                columns[name] = pa.array(drawn, kind)
            batches.append(pa.record_batch(columns))
        payloads.append(stream(*batches, end=draw(st.booleans())))
    return payloads


@settings(suppress_health_check=[HealthCheck.too_slow], deadline=None)
@given(st.integers(1, 3), st.data())
def test_messages_of_a_plain_schema_are_read_as_by_pyarrow(
    inputs: int, data: st.DataObject
) -> None:
    payloads = data.draw(senders(inputs, OTHERS))
    topic = data.draw(st.binary(max_size=9))
    messages = Messages.of([data.draw(st.sampled_from([[topic, p], [p]])) for p in payloads])
    decoder = told(payloads[0], inputs)
    for m in range(len(payloads)):
        truth = by_pyarrow(decoder, messages, m)
        assert compiled(decoder, messages, m) == truth
        assert {row[0] for row in truth} == {SOUND}


@settings(suppress_health_check=[HealthCheck.too_slow], deadline=None)
@given(st.data())
def test_messages_of_another_schema_are_read_as_by_pyarrow_too(data: st.DataObject) -> None:
    payloads = data.draw(senders(1, OTHERS + STRANGE)) + data.draw(senders(1, OTHERS + STRANGE))
    payloads = data.draw(st.permutations(payloads))
    messages = Messages.of([[payload] for payload in payloads])
    decoder, reference = Decoder("arrow", 1), Decoder("arrow", 1)
    for m, payload in enumerate(payloads):
        truth = by_pyarrow(reference, messages, m)
        assert compiled(decoder, messages, m) in (None, truth)
        decoder.decode(Messages.of([[payload]]), 1, 0)
        assert not any(decoder.drops.values())
    columns, count = decoder.reader.read(messages, len(payloads))
    every = [row for m in range(len(payloads)) for row in by_pyarrow(reference, messages, m)]
    assert rows(columns, count) == every


def batch(size: int, **columns: Any) -> Any:
    """A plain one, some columns of which are others."""
    plain = {"series": [f"s{i}" for i in range(size)], "value": np.arange(float(size))}
    return pa.record_batch(plain | columns)


def test_it_needs_no_nulls_to_have_been_seen() -> None:
    stamps = pa.array([1, 2, 3], pa.timestamp("s"))
    first = batch(3, ts=stamps, warm=pa.array([True, False, True]))
    second = batch(
        3,
        value=pa.array([1.0, None, 2.0]),
        ts=pa.array([None, 5, None], pa.timestamp("s")),
        warm=pa.array([None, True, None], pa.bool_()),
    )
    got = compiled(told(stream(first)), Messages.of([[stream(second)]]))
    assert got is not None
    assert [row[5][0] for row in got] == [ARRIVAL, WARM, ARRIVAL]
    assert got[1][3] == struct.pack("<q", 5 * 10**9)
    assert np.isnan(np.frombuffer(got[1][4])).all()


@pytest.mark.parametrize("size", [1, 7, 8, 9, 1000, 5000])
def test_any_number_of_rows_is_read(size: int) -> None:
    decoder = told(stream(batch(3)), max_frame=1 << 20)
    got = compiled(decoder, Messages.of([[stream(batch(size))]]))
    assert got is not None
    assert len(got) == size


FAULTS: dict[str, Any] = {
    "empty": {"series": ["a", ""]},
    "null": {"series": ["a", None]},
    "with a NUL": {"series": ["a", "b\0"]},
    "too long": {"series": ["a", "k" * 65]},
    "not UTF-8": {"series": pa.array([b"a", b"\xff"], pa.binary()).view(pa.utf8())},
    "no list": {"values": [[1.0], None]},
    "a short list": {"values": [[1.0], []]},
    "lists of other lengths": {"values": [[], [1.0, 2.0]]},
    "beyond 64 bits": {"ts": pa.array([1, 2**40], pa.timestamp("s"))},
    "a number below 0": {"seq": [1, -1]},
}


@pytest.mark.parametrize("wrong", FAULTS.values(), ids=FAULTS)
def test_a_message_with_a_faulty_row_is_left_to_pyarrow(wrong: dict[str, Any]) -> None:
    columns = {"series": ["a", "b"], "ts": pa.array([1, 2], pa.timestamp("s"))}
    columns |= {"values": [[1.0], [2.0]]} if "values" in wrong else {"value": [1.0, 2.0]}
    columns |= {"seq": [1, 2]} if "seq" in wrong else {}
    decoder = told(stream(pa.record_batch(columns)))
    messages = Messages.of([[stream(pa.record_batch(columns | wrong))]])
    assert compiled(decoder, messages) is None
    found, count = decoder.reader.read(messages, 1)
    assert count == 2
    assert (found.fault[:2] != SOUND).sum() in (1, 2)


def test_what_is_not_plain_is_never_taken_for_it() -> None:
    """Columns that pyarrow has to convert, or that lie in a dictionary."""
    for columns in (
        {"series": pa.array(["a"]).dictionary_encode()},
        {"series": pa.array(["a"], pa.string_view())},
        {"value": pa.array([1], pa.int64())},
        {"value": pa.array([1], pa.float32())},
        {"other": pa.array(["a"]).dictionary_encode()},
    ):
        payload = stream(batch(1, **columns))
        decoder, messages = Decoder("arrow", 1), Messages.of([[payload]])
        for _ in range(10):
            assert len(decoder.decode(messages, 1, 0).ts) == 1
            assert compiled(decoder, messages) is None
        assert not decoder.reader.columns.scratch.any()


def test_limits_are_those_of_pyarrow() -> None:
    small, most = batch(1), batch(schemas.MOST_ROWS)
    decoder = told(stream(small), max_frame=1 << 22)
    full = compiled(decoder, Messages.of([[stream(most)]]))
    assert full is not None
    assert len(full) == schemas.MOST_ROWS
    assert compiled(decoder, Messages.of([[stream(most, small)]])) is None
    assert compiled(decoder, Messages.of([[b"a", b"b", stream(small)]])) is None
    size = len(stream(small))
    for limit, taken in ((size, True), (size - 1, False)):
        reader = decoder.reader
        limits = reader.limits._replace(max_frame=limit)
        got = schemas.read_one(Messages.of([[stream(small)]]), 0, reader.columns, 0, limits)
        assert got == (1 if taken else -1)


def test_messages_among_others_keep_their_order() -> None:
    decoder = told(stream(batch(1)))
    messages = Messages.of([[stream(batch(2))], [b"odd"], [stream(batch(3))]])
    reader = decoder.reader
    assert reader.compiled(messages, 3, reader.columns, reader.limits) == 6
    assert reader.columns.fault[:6].tolist() == [SOUND] * 2 + [UNREAD] + [SOUND] * 3
    assert len(decoder.decode(messages, 3, 0).ts) == 5
    assert decoder.drops["malformed"] == 1


# which schemas it knows


def of_schema(k: int, size: int = 2) -> bytes:
    return stream(batch(size, **{f"other{k}": [k] * size}))


@pytest.mark.parametrize("count", [1, 2, schemas.SCHEMAS])
def test_a_few_schemas_by_turns_are_each_read_by_pyarrow_once(
    count: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    decoder = Decoder("arrow", 1)
    reader: Any = decoder.reader
    opened, read_one = [], reader.read_one
    monkeypatch.setattr(reader, "read_one", lambda *args: opened.append(0) or read_one(*args))
    for turn in range(20 * count):
        assert len(decoder.decode(Messages.of([[of_schema(turn % count)]]), 1, 0).ts) == 2
    assert len(opened) == count


def test_a_schema_that_comes_late_is_known_too_and_many_cost_nothing() -> None:
    decoder = Decoder("arrow", 1)
    for turn in range(300):
        assert len(decoder.decode(Messages.of([[of_schema(turn)]]), 1, 0).ts) == 2
    late = Messages.of([[of_schema(1000)]])
    for _ in range(100):
        assert len(decoder.decode(late, 1, 0).ts) == 2
    assert compiled(decoder, late) is not None


# damaged messages, in memory around which nothing may be read


class Cage:
    """Memory between pages that must not be read; it holds one message, at its end or its begin."""

    def __init__(self, pages: int = 2) -> None:
        self.size = pages * mmap.PAGESIZE
        self.memory = mmap.mmap(-1, self.size + 2 * mmap.PAGESIZE)
        whole = np.frombuffer(self.memory, np.uint8)
        self.data = whole[mmap.PAGESIZE : -mmap.PAGESIZE]
        protect = ctypes.CDLL(None, use_errno=True).mprotect
        for at in (0, mmap.PAGESIZE + self.size):
            address = ctypes.c_void_p(whole.ctypes.data + at)
            assert protect(address, ctypes.c_size_t(mmap.PAGESIZE), 0) == 0

    def hold(self, payload: bytes, at_end: bool) -> Messages:
        at = self.size - len(payload) if at_end else 0
        self.data[at : at + len(payload)] = np.frombuffer(payload, np.uint8)
        data = self.data[at:] if at_end else self.data
        frames = np.array([0, len(payload)], np.int64)
        return Messages(data, frames, np.array([0, 1], np.int64))


@pytest.fixture(scope="module")
def cage() -> Cage:
    return Cage()


VICTIMS = {
    "value": [
        batch(
            9,
            ts=pa.array([None, *range(8)], pa.timestamp("ms")),
            warm=pa.array([True, None, False] * 3),
            value=pa.array([1.0, None, 2.0] * 3),
        )
    ],
    "numbered": [
        batch(
            3,
            publisher=pa.array(["ab", None, "c"]),
            seq=pa.array([1, None, 2]),
            reset=pa.array([True, None, False]),
            end=pa.array([None, False, True]),
        )
    ],
    "lists": [
        pa.record_batch(
            {
                "note": pa.array([["x"], None, ["y", "z"]]),
                "values": pa.array([[1.0, 2.0], [None, 3.0], [4.0, 5.0]]),
                "series": pa.array(["ab", "é", "c"], pa.large_utf8()),
            }
        )
    ]
    * 2,
    "fixed lists": [
        pa.record_batch(
            {
                "values": pa.array([[1.0, 2.0], [3.0, None]], pa.list_(pa.float64(), 2)),
                "series": ["a", "b"],
                "ts": pa.array([1, 2]),
            }
        )
    ],
}


def learned(decoder: Decoder) -> Any:
    """The one schema that it knows."""
    (only,) = (each for each in decoder.reader.columns.scratch.view(schemas.KNOWN) if each["size"])
    return only


def check(decoder: Decoder, reference: Decoder, cage: Cage, payload: bytes) -> bool:
    """Whether compiled code read it, and then as pyarrow does; it may have left it."""
    got = None
    for at_end in (True, False):
        messages = cage.hold(payload, at_end)
        got = compiled(decoder, messages)
        if got is not None:
            assert got == by_pyarrow(reference, messages)
    return got is not None


@pytest.mark.parametrize("name", VICTIMS)
def test_a_byte_that_is_wrong_is_seen_or_read_as_by_pyarrow(name: str, cage: Cage) -> None:
    payload = stream(*VICTIMS[name])
    inputs = 2 if "lists" in name else 1
    decoder, reference = told(payload, inputs), Decoder("arrow", inputs)
    head = int(learned(decoder)["head"])
    rng = np.random.default_rng(1)
    taken = 0
    for at in range(len(payload)):
        for bit in range(8) if at >= head else [int(rng.integers(8))]:
            wrong = bytearray(payload)
            wrong[at] ^= 1 << bit
            read = check(decoder, reference, cage, bytes(wrong))
            assert not (read and at < head)
            taken += read
    assert taken > 100  # those of names and numbers
    for end in range(len(payload)):
        check(decoder, reference, cage, payload[:end])


READERS: dict[str, tuple[Decoder, Decoder]] = {}


def known(name: str) -> tuple[Decoder, Decoder]:
    """Made once: each takes long."""
    if name not in READERS:
        inputs = 2 if "lists" in name else 1
        READERS[name] = told(stream(*VICTIMS[name]), inputs), Decoder("arrow", inputs)
    return READERS[name]


@settings(max_examples=1000, deadline=None, suppress_health_check=list(HealthCheck))
@given(name=st.sampled_from(list(VICTIMS)), data=st.data())
def test_numbers_that_lie_are_seen_or_read_as_by_pyarrow(
    name: str, data: st.DataObject, cage: Cage
) -> None:
    payload, (decoder, reference) = stream(*VICTIMS[name]), known(name)
    places = learned(decoder)
    head = int(places["head"])
    spots = [head + int(places["rows"]), head + int(places["body_size"])]
    for vector in (head + int(places["nodes"]), head + int(places["buffers"])):
        (count,) = struct.unpack_from("<I", payload, vector)
        spots += [vector + 4 + 8 * k for k in range(2 * count)]
    wrong = bytearray(payload)
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.sampled_from(spots))
        (was,) = struct.unpack_from("<q", payload, at)
        number = data.draw(
            st.sampled_from(
                [was - 8, was - 1, was + 1, was + 8, was + 64, 0, -1, -8, was ^ 1 << 62]
            )
            | st.integers(0, 256)
            | st.integers(-(2**63), 2**63 - 1)
        )
        wrong[at : at + 8] = struct.pack("<q", max(-(2**63), min(number, 2**63 - 1)))
    check(decoder, reference, cage, bytes(wrong))
