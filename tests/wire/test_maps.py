"""What compiled code reads and writes is what msgspec would have read and written."""

import json
from collections.abc import Callable
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamlstm.decimals import WIDEST
from streamlstm.ticks import END, RESET, WARM, Forecasts, Messages, Names
from streamlstm.wire import maps
from streamlstm.wire.format import ARRIVAL, NUMBERED, SOUND, UNREAD, Format, Limits, Shape, Writer
from streamlstm.wire.json import JsonReader, JsonWriter
from streamlstm.wire.msgpack import MsgpackReader, MsgpackWriter

READER: dict[Format, type[maps.MapReader]] = {"json": JsonReader, "msgpack": MsgpackReader}
WRITERS: dict[Format, type[Writer]] = {"json": JsonWriter, "msgpack": MsgpackWriter}
PACK: dict[Format, Callable[[Any], bytes]] = {
    "json": msgspec.json.encode,
    "msgpack": msgspec.msgpack.encode,
}
FORMATS: tuple[Format, ...] = ("json", "msgpack")
LIMITS = Limits(16, 400)

Row = tuple[bytes, int, bytes, int, int | None, bytes]


def row(reader: maps.MapReader, messages: Messages) -> Row:
    """Key, ts, values, flags, number and publisher of the first row, to the bit."""
    begin, end, ts, values, flags, _, seq, publisher, _ = (column[0] for column in reader.columns)
    says = messages.data[begin:end].tobytes(), int(ts), values.tobytes(), int(flags)
    if not flags & NUMBERED:
        return *says, None, b""
    begin, end = publisher
    return *says, int(seq), messages.data[begin:end].tobytes()


def scanned(format: Format, message: list[bytes], inputs: int) -> Row | None:
    """What compiled code reads; None where it leaves the message to msgspec."""
    reader, messages = READER[format](inputs, LIMITS, 1), Messages.of([message])
    reader.compiled(messages, 1, reader.columns, LIMITS)
    if reader.columns.fault[0] == UNREAD:
        return None
    assert reader.columns.fault[0] == SOUND
    return row(reader, messages)


def by_msgspec(format: Format, message: list[bytes], inputs: int) -> Row | None:
    """What msgspec reads; None where it finds a fault."""
    reader, messages = READER[format](inputs, LIMITS, 1), Messages.of([message])
    return row(reader, messages) if reader.read_one(messages, 0) == SOUND else None


def check(format: Format, message: list[bytes], inputs: int) -> None:
    read = scanned(format, message, inputs)
    assert read is None or read == by_msgspec(format, message, inputs)


# ticks


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize(
    ("tick", "ts", "values", "flags"),
    [
        ({"value": 3.25}, 0, [3.25], ARRIVAL),
        ({"value": -3, "ts": None}, 0, [-3], ARRIVAL),
        ({"value": None, "ts_ns": -5, "ts": 7}, -5, [np.nan], 0),
        ({"ts": 1718000000.123456, "value": 1e-300}, 1718000000123456000, [1e-300], 0),
        ({"ts": -2.5, "values": [0.1], "warm": True}, -2500000000, [0.1], WARM),
        ({"ts": 5, "value": 2**53 + 1, "warm": False, "reset": False}, 5 * 10**9, [2.0**53], 0),
        ({"ts": 5, "unit": "MW", "quality": 3, "x": 1.5, "ok": True, "n": None, "value": 2},
         5 * 10**9, [2], 0),
        ({"ts_ns": 2**63 - 1, "value": 2, "a name of many letters": "é" * 20}, 2**63 - 1, [2], 0),
        ({"ts": -(2**31), "value": 2}, -(2**31) * 10**9, [2], 0),
        ({"ts_ns": 5, "series": "another", "values": [1, None, 3.5]}, 5, [1, np.nan, 3.5], 0),
        ({"ts_ns": 5, "value": 1, "reset": True, "end": True, "warm": True}, 5, [1],
         WARM | RESET | END),
        ({"ts_ns": 5, "end": True}, 5, [np.nan], END),
        ({"reset": True, "ts_ns": 5, "value": None}, 5, [np.nan], RESET),
        ({"ts_ns": 5, "value": 1, "seq": 2**63 - 1}, 5, [1], NUMBERED),
        ({"publisher": "hälle 7", "ts_ns": 5, "seq": 0, "value": 1, "publish": "x",
          "publishes": 1, "published": 2}, 5, [1], NUMBERED),
    ],
)  # fmt: skip
def test_a_plain_tick_is_read_in_compiled_code(
    format: Format, tick: dict[str, Any], ts: int, values: list[float], flags: int
) -> None:
    said = {name: what for name, what in tick.items() if name != "series"}
    messages = [["é".encode(), PACK[format](tick)], [PACK[format]({"series": "é", **said})]]
    for message in messages:
        bits = np.array(values, np.float64).tobytes()
        number = tick["seq"] if flags & NUMBERED else None
        expected = "é".encode(), ts, bits, flags, number, tick.get("publisher", "").encode()
        assert scanned(format, message, len(values)) == expected
        assert by_msgspec(format, message, len(values)) == expected


def test_json_as_other_programs_lay_it_out() -> None:
    for text in (
        b'{\r\n\t"ts": 1718000000.1234567891,\n\t"value": 1.50\n}\n',
        b' { "value" : 1.5 , "ts" : 1718000000.123456789 } ',
        b'{"ts":1718000000.123456789,"value":0.15E+1,"unit":"\xc3\xa9","more":-0.0e-7}',
    ):
        read = scanned("json", [b"a", text], 1)
        assert read == (b"a", 1718000000123456789, np.array([1.5]).tobytes(), 0, None, b"")


Texts = st.SearchStrategy[str]
Blobs = st.SearchStrategy[bytes]

OTHER = {"publishe", "published", "unit", "ts ", "value\0", "a name of many letters", "é"}
SPACE = st.text(" \t\r\n", max_size=2)
WORDS = st.text(st.characters(codec="utf-8", exclude_categories=["Cc"]), min_size=1, max_size=5)
FINITE = st.floats(allow_nan=False, allow_infinity=False)
INSTANTS = st.integers(-(2**63), 2**63 - 1)
NUMBERS = st.one_of(
    FINITE.map(repr),
    st.integers(-(2**65), 2**65).map(str),
    st.from_regex(r"-?(0|[1-9][0-9]{0,20})(\.[0-9]{1,12})?([eE][+-]?[0-9]{1,2})?", fullmatch=True),
)
STRINGS = WORDS.map(lambda text: f'"{text}"')
TRUTHS = st.sampled_from(["false", "true"])
SCALARS = st.one_of(NUMBERS, STRINGS, TRUTHS, st.just("null"))
SECONDS = st.builds(
    "{}{}".format,
    st.integers(-(2**33), 2**33),
    st.from_regex(r"(\.[0-9]{1,13})?", fullmatch=True),
)


def listed(parts: Texts) -> Texts:
    return st.lists(parts, min_size=1, max_size=3).map(lambda each: f"[ {', '.join(each)}]")


JSON_PLAIN: dict[str, Texts] = {
    "value": NUMBERS | st.just("null"),
    "values": listed(NUMBERS | st.just("null")),
    "ts": SECONDS | st.just("null"),
    "ts_ns": INSTANTS.map(str),
    "series": STRINGS,
    "warm": TRUTHS,
    "reset": TRUTHS,
    "end": TRUTHS,
    "seq": st.integers(0, 2**63 - 1).map(str),
    "publisher": STRINGS,
}
JSON_ODD: Texts = st.one_of(
    SCALARS,
    listed(SCALARS),
    st.text(max_size=6).map(json.dumps),
    st.text(max_size=6).map(lambda text: f'"{text}"'),
    st.sampled_from(["", "nul", "NaN", "-Infinity", "01", "1.", "-", "+1", "1e", "[]", "{}", '"']),
    st.just('"2024-06-10T06:13:20.5Z"'),
)


@st.composite
def json_ticks(draw: st.DrawFn, fields: list[str], odd: int) -> bytes:
    """A map of which all is plain but ``odd`` fields at most."""
    parts = []
    for k, name in enumerate(fields):
        content = draw(JSON_ODD if k < odd else JSON_PLAIN.get(name, SCALARS))
        escaped = k < odd and draw(st.booleans())
        quoted = f'"\\u{ord(name[0]):04x}{name[1:]}"' if escaped else f'"{name}"'
        space = [draw(SPACE) for _ in range(4)]
        parts.append(space[0] + quoted + space[1] + ":" + space[2] + content + space[3])
    text = draw(SPACE) + "{" + ",".join(draw(st.permutations(parts))) + "}" + draw(SPACE)
    return text.encode("utf-8", "surrogatepass")


def packed_integer(value: int, head: int) -> bytes:
    """An integer under a head of its own choice, fitting or not."""
    size = 1 << (head & 3)
    return bytes([head]) + (value % 256**size).to_bytes(size, "big")


pack = msgspec.msgpack.encode
INTEGERS: Blobs = INSTANTS.map(pack) | st.builds(
    packed_integer, st.integers(-300, 300) | INSTANTS, st.integers(0xCC, 0xD3)
)
DOUBLES: Blobs = st.floats().map(pack) | st.floats(width=32).map(
    lambda number: b"\xca" + np.array(number, ">f4").tobytes()
)
NIL, FALSE, TRUE = b"\xc0", b"\xc2", b"\xc3"
REALS: Blobs = st.one_of(INTEGERS, DOUBLES, st.just(NIL))
MSGPACK_SCALARS: Blobs = st.one_of(REALS, st.sampled_from([FALSE, TRUE]), WORDS.map(pack))
MSGPACK_PLAIN: dict[str, Blobs] = {
    "value": REALS,
    "values": st.lists(REALS, min_size=1, max_size=3).map(
        lambda parts: bytes([0x90 | len(parts)]) + b"".join(parts)
    ),
    "ts": st.one_of(
        st.floats(-1e10, 1e10).map(pack),
        st.integers(0, 2**33).map(lambda whole: pack(whole + 0.25)),
        st.integers(-(2**33), 2**33).map(pack),
    ),
    "ts_ns": INTEGERS,
    "series": WORDS.map(pack),
    "warm": st.sampled_from([FALSE, TRUE]),
    "reset": st.sampled_from([FALSE, TRUE]),
    "end": st.sampled_from([FALSE, TRUE]),
    "seq": INTEGERS,
    "publisher": WORDS.map(pack),
}
MSGPACK_ODD: Blobs = st.one_of(
    MSGPACK_SCALARS,
    st.text(max_size=300).map(pack),
    st.binary(max_size=3),
    st.sampled_from(
        [b"", b"\xc1", b"\xc4\x01x", b"\xd4\x01x", b"\xa2x", b"\xd9\2\xff\xff", b"\x90"]
    ),
    st.lists(st.floats(), max_size=20).map(pack),
    st.just(pack("2024-06-10T06:13:20.5Z")),
)


@st.composite
def msgpack_ticks(draw: st.DrawFn, fields: list[str], odd: int) -> bytes:
    """A map of which all is plain but ``odd`` fields at most."""
    parts = [
        pack(name) + draw(MSGPACK_ODD if k < odd else MSGPACK_PLAIN.get(name, MSGPACK_SCALARS))
        for k, name in enumerate(fields)
    ]
    return bytes([0x80 | len(fields)]) + b"".join(draw(st.permutations(parts)))


@st.composite
def cases(draw: st.DrawFn) -> tuple[Format, list[bytes], int]:
    """A format, a message and how many inputs there are."""
    format = draw(st.sampled_from(FORMATS))
    alone, inputs = draw(st.booleans()), draw(st.sampled_from([1, 1, 2]))
    optional = sorted(JSON_PLAIN.keys() - {"value", "values"} | OTHER)
    fields = draw(st.lists(st.sampled_from(optional), max_size=4, unique=True))
    fields.append(draw(st.sampled_from(["value", "values"])) if inputs == 1 else "values")
    if alone and "series" not in fields:
        fields.append("series")
    odd = draw(st.sampled_from([0, 0, 1]))
    if odd:
        fields = draw(st.permutations(fields))
        fields += draw(st.sampled_from([[], [], [fields[0]], ["value"]]))
    payload = draw((json_ticks if format == "json" else msgpack_ticks)(fields, odd))
    key = draw(st.sampled_from([b"k", b"k", "é".encode(), b"", b"\xff", b"a\0b", b"k" * 17]))
    frames = [payload] if alone else [key, payload]
    return format, [*frames, b""] if draw(st.integers(0, 20)) == 9 else frames, inputs


@given(cases())
def test_what_compiled_code_reads_msgspec_reads_too(case: tuple[Format, list[bytes], int]) -> None:
    check(*case)


PLAIN_TICKS: dict[Format, list[bytes]] = {
    format: [
        pack({"ts": 1718000000.25, "value": 12.345678901234567, "warm": True, "series": "é"}),
        pack({"ts_ns": 1718000000250000000, "values": [-5], "end": False, "unit": "MW"}),
        pack({"series": "ключ", "value": None, "reset": False, "x": -1e-7, "a longer name": 1}),
        pack({"series": "é", "end": True, "publisher": "hä", "seq": 7}),
    ]
    for format, pack in PACK.items()
}


@given(
    st.sampled_from(FORMATS),
    st.integers(0, 3),
    st.booleans(),
    st.lists(st.tuples(st.integers(0, 120), st.integers(0, 2), st.binary(max_size=2)), max_size=3),
)
def test_bytes_gone_wrong_are_read_as_msgspec_reads_them(
    format: Format, which: int, alone: bool, edits: list[tuple[int, int, bytes]]
) -> None:
    payload = PLAIN_TICKS[format][which]
    for at, cut, new in edits:
        at %= len(payload) + 1
        payload = payload[:at] + new + payload[at + cut :]
    check(format, [payload] if alone else [b"key", payload], 1)


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("which", range(3))
def test_any_one_byte_changed_or_cut(format: Format, which: int) -> None:
    payload = PLAIN_TICKS[format][which]
    reader = READER[format](1, LIMITS, 257)
    for at in range(len(payload)):
        changed = [payload[:at] + bytes([byte]) + payload[at + 1 :] for byte in range(256)]
        batch = [[b"key", each] for each in (*changed, payload[:at])]
        reader.compiled(Messages.of(batch), len(batch), reader.columns, LIMITS)
        read = reader.columns.fault == SOUND
        assert read[payload[at]]
        assert not read[256]
        for m in np.flatnonzero(read):
            check(format, batch[m], 1)


# predictions


FURTHER = (0.5, 1e-05, 0.123456789012345678)


def shaped(rows: Forecasts, names: list[bytes]) -> Shape:
    longest, further = max(map(len, names)), FURTHER[: rows.quantiles.shape[1] // 2 - 1]
    horizon, targets = rows.point.shape[1:]
    return Shape("0123456789ab", 4_000_000_000, horizon, targets, longest, len(names), further)


def written(format: Format, rows: Forecasts, names: list[bytes], longest: int) -> list[list[bytes]]:
    """All messages, in as many goes as it takes."""
    text = np.frombuffer(bytearray().join(name.ljust(longest, b"\0") for name in names), np.uint8)
    table = Names(text.reshape(-1, longest), np.array([len(name) for name in names], np.uint16))
    writer = WRITERS[format](shaped(rows, names))
    begin, messages = 0, []
    while begin < len(rows.slot):
        end = writer.write(rows, table, begin)
        assert end > begin
        assert writer.messages.frames[2 * (end - begin)] <= len(writer.messages.data)
        messages += [writer.messages.message(m) for m in range(end - begin)]
        begin = end
    return messages


def expected(format: Format, rows: Forecasts, names: list[bytes]) -> list[list[bytes]]:
    flat = rows.point.shape[2] == 1
    messages = []
    for i, slot in enumerate(rows.slot):
        whole, nanos = divmod(int(rows.ts[i]), 10**9)
        exact = abs(int(rows.ts[i])) < 2**53
        parts = rows.point[i], *rows.quantiles[i]
        parts = [(part[:, 0] if flat else part).tolist() for part in parts]
        ends = zip(FURTHER, parts[3::2], parts[4::2], strict=False)
        prediction = maps.Prediction(
            names[slot].decode(),
            int(rows.ts[i]) / 1e9 if exact else whole + nanos / 1e9,
            int(rows.ts[i]),
            *parts[:3],
            "0123456789ab",
            4_000_000_000,
            int(rows.seq[i]),
            [maps.Interval(*each) for each in ends],
        )
        messages.append([b"prediction." + names[slot], PACK[format](prediction)])
    return messages


@given(
    st.sampled_from(FORMATS),
    st.sampled_from([1, 2, 17]),
    st.sampled_from([1, 2, 16]),
    st.lists(
        st.tuples(
            st.text(st.characters(exclude_characters="\0", codec="utf-8"), min_size=1, max_size=40)
            | st.text('\x01\x1f\x7f"\\/\b\f\n\r\té', min_size=1, max_size=12),
            st.integers(-(2**63), 2**63 - 1)
            | st.integers(-(2**53), 2**53)
            | st.integers(0, 2**32).map(lambda x: x * 10**9),
            st.integers(1, 2**63 - 1) | st.integers(1, 300),
        ),
        min_size=1,
        max_size=3,
    ),
    st.lists(st.floats(), min_size=1, max_size=7),
    st.integers(1, 4),
)
def test_predictions_are_the_very_bytes_of_msgspec(
    format: Format,
    horizon: int,
    targets: int,
    series: list[tuple[str, int, int]],
    numbers: list[float],
    coverages: int,
) -> None:
    names = [name.encode() for name, _, _ in series]
    count = len(names)
    cells = np.resize(numbers, (count, 1 + 2 * coverages, horizon, targets))
    rows = Forecasts(
        np.arange(count, dtype=np.int32)[::-1].copy(),
        np.array([ts for _, ts, _ in series]),
        np.array([seq for _, _, seq in series]),
        cells[:, 0].copy(),
        cells[:, 1:].copy(),
    )
    assert written(format, rows, names, 160) == expected(format, rows, names)


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize(("horizon", "targets", "count"), [(40_000, 1, 2), (7, 500, 40)])
@pytest.mark.parametrize("coverages", [1, 3])
def test_the_longest_predictions_there_can_be_fit(
    format: Format, horizon: int, targets: int, count: int, coverages: int
) -> None:
    """Also where all of them do not fit at once."""
    widest = -2.2250738585072014e-308
    assert len(repr(widest)) == WIDEST
    names = [b"\x01" * 300] * count
    rows = Forecasts(
        np.arange(count, dtype=np.int32),
        np.full(count, -(2**63)),
        np.full(count, 2**63 - 1),
        np.full((count, horizon, targets), widest),
        np.full((count, 2 * coverages, horizon, targets), widest),
    )
    assert written(format, rows, names, 300) == expected(format, rows, names)
