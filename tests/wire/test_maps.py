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
from streamlstm.ticks import WARM, Forecasts, Messages, Names
from streamlstm.wire import maps
from streamlstm.wire.format import ARRIVAL, SOUND, UNREAD, Format, Limits, Shape, Writer
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

Row = tuple[bytes, int, bytes, int]


def row(reader: maps.MapReader, messages: Messages) -> Row:
    """Key, ts, values and flags of the first row, to the bit."""
    begin, end, ts, values, flags, *_ = (column[0] for column in reader.columns)
    return messages.data[begin:end].tobytes(), int(ts), values.tobytes(), int(flags)


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
        ({"ts_ns": 5, "series": "another", "values": [1, None, 3.5]}, 5, [1, np.nan, 3.5], 0),
    ],
)  # fmt: skip
def test_a_plain_tick_is_read_in_compiled_code(
    format: Format, tick: dict[str, Any], ts: int, values: list[float], flags: int
) -> None:
    said = {name: what for name, what in tick.items() if name != "series"}
    messages = [["é".encode(), PACK[format](tick)], [PACK[format]({"series": "é", **said})]]
    for message in messages:
        expected = "é".encode(), ts, np.array(values, np.float64).tobytes(), flags
        assert scanned(format, message, len(values)) == expected
        assert by_msgspec(format, message, len(values)) == expected


def test_json_as_other_programs_lay_it_out() -> None:
    for text in (
        b'{\r\n\t"ts": 1718000000.1234567891,\n\t"value": 1.50\n}\n',
        b' { "value" : 1.5 , "ts" : 1718000000.123456789 } ',
        b'{"ts":1718000000.123456789,"value":0.15E+1,"unit":"\xc3\xa9","more":-0.0e-7}',
    ):
        read = scanned("json", [b"a", text], 1)
        assert read == (b"a", 1718000000123456789, np.array([1.5]).tobytes(), 0)


SPACE = st.text(" \t\r\n", max_size=2)
DIGITS = st.integers(0, 20).flatmap(lambda n: st.text("0123456789", min_size=n, max_size=n))
NUMBERS = st.one_of(
    st.floats().map(repr),
    st.integers(-(2**65), 2**65).map(str),
    st.from_regex(r"-?(0|[1-9][0-9]{0,20})(\.[0-9]{1,12})?([eE][+-]?[0-9]{1,3})?", fullmatch=True),
)
STRINGS = st.one_of(
    st.text(max_size=6).map(json.dumps),
    st.text(st.characters(codec="utf-8"), max_size=12).map(lambda text: f'"{text}"'),
)
SCALARS = st.one_of(NUMBERS, STRINGS, st.sampled_from(["null", "true", "false", "nul", "NaN"]))
LISTS = st.lists(SCALARS, max_size=3).map(lambda parts: f"[{','.join(parts)}]")
PLAIN: dict[str, st.SearchStrategy[str]] = {
    "value": NUMBERS,
    "values": st.lists(NUMBERS | st.just("null"), max_size=3).map(lambda x: f"[ {', '.join(x)}]"),
    "ts": st.builds("{}.{}".format, st.integers(-(2**34), 2**34), DIGITS.filter(bool)) | NUMBERS,
    "ts_ns": st.integers(-(2**63), 2**63 - 1).map(str),
    "series": STRINGS,
    "warm": st.sampled_from(["true", "false"]),
    "end": st.just("false"),
    "other": SCALARS,
}


@st.composite
def json_ticks(draw: st.DrawFn) -> bytes:
    """A map that is plain, or nearly so."""
    names = draw(st.lists(st.sampled_from(sorted(PLAIN)), max_size=4, unique=draw(st.booleans())))
    parts = []
    for name in [draw(st.sampled_from(["value", "values"])), *names]:
        content = draw(st.one_of(PLAIN[name], PLAIN[name], PLAIN[name], SCALARS, LISTS))
        space = [draw(SPACE) for _ in range(4)]
        quoted = draw(st.sampled_from([f'"{name}"'] * 9 + [f'"\\u00{ord(name[0]):x}{name[1:]}"']))
        parts.append(space[0] + quoted + space[1] + ":" + space[2] + content + space[3])
    return (draw(SPACE) + "{" + ",".join(draw(st.permutations(parts))) + "}" + draw(SPACE)).encode(
        "utf-8", "surrogatepass"
    )


def packed_integer(value: int, head: int) -> bytes:
    """An integer under a head of its own choice, fitting or not."""
    size = 1 << (head & 3)
    return bytes([head]) + (value % 256**size).to_bytes(size, "big")


PACKED: st.SearchStrategy[bytes] = st.one_of(
    st.floats().map(msgspec.msgpack.encode),
    st.floats(width=32).map(lambda x: b"\xca" + np.array(x, ">f4").tobytes()),
    st.integers(0, 4 * 10**9).map(lambda x: msgspec.msgpack.encode(x + 0.25)),
    st.integers(-(2**63), 2**64 - 1).map(msgspec.msgpack.encode),
    st.builds(packed_integer, st.integers(-300, 2**64), st.integers(0xCC, 0xD3)),
    st.text(max_size=40).map(msgspec.msgpack.encode),
    st.sampled_from([b"\xc0", b"\xc2", b"\xc3", b"\xc1", b"\xc4\x01x", b"\xd4\x01x"]),
    st.lists(st.floats(), max_size=3).map(msgspec.msgpack.encode),
)


@st.composite
def msgpack_ticks(draw: st.DrawFn) -> bytes:
    """A map that is plain, or nearly so."""
    names = draw(st.lists(st.sampled_from(sorted(PLAIN)), max_size=4, unique=draw(st.booleans())))
    names = draw(st.permutations(["value", *names]))
    plain: dict[str, st.SearchStrategy[bytes]] = {
        name: st.sampled_from([b"\xc2", b"\xc3", b"\xc2", b"\xc2"]) for name in ("warm", "end")
    }
    parts = [
        msgspec.msgpack.encode(name) + draw(plain.get(name, PACKED) | PACKED) for name in names
    ]
    return bytes([0x80 | len(names)]) + b"".join(parts)


TICKS: dict[Format, st.SearchStrategy[bytes]] = {"json": json_ticks(), "msgpack": msgpack_ticks()}
KEYS = st.sampled_from([b"k", b"k", b"k", "é".encode(), b"", b"\xff", b"a\0b", b"k" * 17])


def messages(format: Format) -> st.SearchStrategy[list[bytes]]:
    """One frame or two, or rarely three."""
    return st.one_of(
        st.tuples(KEYS, TICKS[format]),
        st.tuples(TICKS[format]),
        st.tuples(KEYS, TICKS[format], st.just(b"")),
    ).map(list)


@given(st.sampled_from(FORMATS).flatmap(lambda f: st.tuples(st.just(f), messages(f))))
def test_what_compiled_code_reads_msgspec_reads_too(case: tuple[Format, list[bytes]]) -> None:
    check(*case, 1)
    check(*case, 2)


PLAIN_TICKS: dict[Format, list[bytes]] = {
    format: [
        pack({"ts": 1718000000.25, "value": 12.345678901234567, "warm": True, "series": "é"}),
        pack({"ts_ns": 1718000000250000000, "values": [-5], "end": False, "unit": "MW"}),
        pack({"series": "ключ", "value": None, "reset": False, "x": -1e-7, "a longer name": 1}),
    ]
    for format, pack in PACK.items()
}


@given(
    st.sampled_from(FORMATS),
    st.integers(0, 2),
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


def shaped(horizon: int, targets: int, names: list[bytes]) -> Shape:
    return Shape("0123456789ab", 4_000_000_000, horizon, targets, max(map(len, names)), len(names))


def written(format: Format, rows: Forecasts, names: list[bytes], longest: int) -> list[list[bytes]]:
    """All messages, in as many goes as it takes."""
    text = np.frombuffer(bytearray().join(name.ljust(longest, b"\0") for name in names), np.uint8)
    table = Names(text.reshape(-1, longest), np.array([len(name) for name in names], np.uint16))
    writer = WRITERS[format](shaped(*rows.point.shape[1:], names))
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
        prediction = maps.Prediction(
            names[slot].decode(),
            int(rows.ts[i]) / 1e9 if exact else whole + nanos / 1e9,
            int(rows.ts[i]),
            *((part[:, 0] if flat else part).tolist() for part in parts),
            "0123456789ab",
            4_000_000_000,
            int(rows.seq[i]),
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
)
def test_predictions_are_the_very_bytes_of_msgspec(
    format: Format,
    horizon: int,
    targets: int,
    series: list[tuple[str, int, int]],
    numbers: list[float],
) -> None:
    names = [name.encode() for name, _, _ in series]
    count = len(names)
    cells = np.resize(numbers, (3, count, horizon, targets))
    rows = Forecasts(
        np.arange(count, dtype=np.int32)[::-1].copy(),
        np.array([ts for _, ts, _ in series]),
        np.array([seq for _, _, seq in series]),
        cells[0],
        np.stack((cells[1], cells[2]), axis=1),
    )
    assert written(format, rows, names, 160) == expected(format, rows, names)


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize(("horizon", "targets", "count"), [(40_000, 1, 2), (7, 500, 40)])
def test_the_longest_predictions_there_can_be_fit(
    format: Format, horizon: int, targets: int, count: int
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
        np.full((count, 2, horizon, targets), widest),
    )
    assert written(format, rows, names, 300) == expected(format, rows, names)
