"""What is the same whatever the format: what is read, refused and counted, and written."""

import json
from collections.abc import Callable
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamlstm.ticks import END, FRAMES, RESET, WARM, Arrivals, Forecasts, Messages, Names
from streamlstm.watch import MEASURES
from streamlstm.wire.codec import Decoder, Encoder
from streamlstm.wire.format import ARRIVAL, NUMBERED, REASONS, Shape, WireError
from streamlstm.wire.maps import FIELDS
from streamlstm.wire.peer import decode_prediction, encode_tick, glance
from streamlstm.wire.publishers import CEILING, COUNTS, MOST
from tests.wire.ticks import binary

FORMATS = ("json", "msgpack", "binary")
BITS = {"warm": WARM, "reset": RESET, "end": END}
WHOLE = st.characters(codec="utf-8")
NOW = 1_700_000_000_000_000_000
PACK: dict[str, Callable[[Any], bytes]] = {
    "json": lambda tick: json.dumps(tick).encode(),
    "msgpack": msgspec.msgpack.encode,
}


def names(batch: Arrivals) -> list[bytes]:
    data, begin, end = batch.keys
    return [data[a:b].tobytes() for a, b in zip(begin, end, strict=True)]


def arrivals(decoder: Decoder, messages: list[list[bytes]], now: int = NOW) -> Arrivals:
    return decoder.decode(Messages.of(messages), len(messages), now)


def decode(decoder: Decoder, *messages: list[bytes]) -> list[tuple[bytes, int, list[float], int]]:
    batch = arrivals(decoder, list(messages))
    assert batch.values.shape == (len(messages) - dropped(decoder), decoder_inputs(batch))
    rows = zip(names(batch), batch.ts, batch.values, batch.flags, strict=True)
    return [(key, int(ts), row.tolist(), int(flag)) for key, ts, row, flag in rows]


def decoder_inputs(batch: Arrivals) -> int:
    return batch.values.shape[1]


def dropped(decoder: Decoder) -> int:
    return sum(decoder.drops.values())


# what a publisher may send


@pytest.mark.parametrize("format", ["json", "msgpack"])
def test_fields_of_a_map(format: str) -> None:
    pack = PACK[format]
    ticks = [
        [b"a", pack({"ts": 1718000000, "value": 3})],
        [b"b", pack({"ts": 1718000000.123456, "values": [3.5], "warm": True})],
        [b"c", pack({"ts": "2024-06-10T06:13:20.123456789Z", "value": None, "unit": "MW"})],
        [b"d", pack({"ts_ns": 1718000000123456789, "value": -1e300})],
        ["é".encode(), pack({"ts": None, "value": 0.1})],
        [b"f", pack({"value": 0.2})],
        [pack({"series": "g", "ts_ns": 5, "value": 1})],
        [pack({"series": "ключ", "ts": 5, "value": 1, "reset": False})],
        [b"h", pack({"ts": 5, "value": 2, "reset": True})],
        [b"i", pack({"ts": 5, "values": [], "end": True})],
    ]
    second = 10**9
    decoded = decode(Decoder(format, 1), *ticks)
    assert [row[:2] for row in decoded] == [
        (b"a", 1718000000 * second),
        (b"b", 1718000000123456000),
        (b"c", 1718000000123456789),
        (b"d", 1718000000123456789),
        ("é".encode(), NOW),
        (b"f", NOW + 1),
        (b"g", 5),
        ("ключ".encode(), 5 * second),
        (b"h", 5 * second),
        (b"i", 5 * second),
    ]
    values = [row[2][0] for row in decoded]
    assert values[:2] == [3, 3.5]
    assert np.isnan(values[2])
    assert values[3:-1] == [-1e300, 0.1, 0.2, 1, 1, 2]
    assert np.isnan(values[-1])
    assert [row[3] for row in decoded] == [0, WARM, 0, 0, ARRIVAL, ARRIVAL, 0, 0, RESET, END]


def test_json_seconds_keep_every_digit_of_their_text() -> None:
    message = [b"a", b'{"ts": 1718000000.123456789, "value": 1.0}']
    assert decode(Decoder("json", 1), message) == [(b"a", 1718000000123456789, [1.0], 0)]


def test_several_inputs() -> None:
    messages = [[b"a", b'{"ts": 1, "values": [1, null, 3]}'], [b"b", b'{"ts":2,"values":[4,5,6]}']]
    (_, _, first, _), (_, _, second, _) = decode(Decoder("json", 3), *messages)
    assert np.array_equal(first, [1, np.nan, 3], equal_nan=True)
    assert second == [4, 5, 6]


def test_nan_and_infinity_as_python_writes_them_are_missing_values() -> None:
    messages = [
        [b"a", json.dumps({"ts": 1.123456789, "value": float("nan")}).encode()],
        [b"b", json.dumps({"ts": 2, "value": -float("inf")}).encode()],
        [b"NaN", b'{"ts": 1718000000.123456789, "values": [NaN]}'],
        [b"c", b'{"ts": 3, "value": 1}'],
    ]
    decoded = decode(Decoder("json", 1), *messages)
    assert np.isnan([row[2][0] for row in decoded]).tolist() == [True, True, True, False]
    assert [row[1] for row in decoded][2] == 1718000000123456789


@pytest.mark.parametrize("format", FORMATS)
def test_arrival_times_rise_even_when_the_clock_steps_back(format: str) -> None:
    decoder = Decoder(format, 1)
    messages = [encode_tick(format, "a", None, [1.0])] * 3
    ts = np.concatenate(
        [arrivals(decoder, messages, now).ts.copy() for now in (NOW, NOW - 500, NOW + 50)]
    )
    assert ts.tolist() == [NOW + at for at in (0, 1, 2, 3, 4, 5, 50, 51, 52)]


@pytest.mark.parametrize("format", FORMATS)
def test_arrival_times_go_back_with_a_clock_that_was_far_ahead(format: str) -> None:
    decoder, far = Decoder(format, 1), NOW + 86_400 * 10**9
    messages = [encode_tick(format, "a", None, [1.0])] * 2
    ts = np.concatenate([arrivals(decoder, messages, now).ts.copy() for now in (far, NOW)])
    assert ts.tolist() == [far, far + 1, NOW, NOW + 1]


@pytest.mark.parametrize("format", FORMATS)
def test_nothing_makes_nothing(format: str) -> None:
    batch = arrivals(Decoder(format, 2), [])
    assert names(batch) == []
    assert batch.values.shape == (0, 2)


@given(
    st.sampled_from(FORMATS),
    st.lists(
        st.tuples(
            st.text(st.characters(exclude_characters="\0", codec="utf-8"), min_size=1, max_size=16),
            st.none() | st.integers(-(2**63), 2**63 - 1),
            st.lists(st.floats(allow_nan=False, allow_infinity=False), min_size=2, max_size=2),
            st.sets(st.sampled_from(["warm", "reset", "end"])),
            st.none() | st.tuples(st.integers(0, 2**63 - 1), st.text(WHOLE, max_size=8)),
        ),
        max_size=8,
    ),
)
def test_ticks_come_back_as_they_were_written(format: str, ticks: list[Any]) -> None:
    messages, decoder = [], Decoder(format, 2)
    for key, ts, row, flags, numbered in ticks:
        more = dict.fromkeys(flags, True) | dict(
            zip(("seq", "publisher"), numbered or (), strict=False)
        )
        messages.append(encode_tick(format, key, ts, row, **more))
    laid = Messages.of(messages)
    columns, _ = decoder.reader.read(laid, len(messages))
    for m, (*_, numbered) in enumerate(ticks):
        assert bool(columns.flags[m] & NUMBERED) == (numbered is not None)
        if numbered:
            begin, end = columns.publisher[m]
            assert (columns.seq[m], laid.data[begin:end].tobytes().decode()) == numbered
    decoded = decode(decoder, *messages)
    assert len(decoded) == len(ticks)
    for (key, ts, row, flags, _), got in zip(ticks, decoded, strict=True):
        said = sum(BITS[flag] for flag in flags) + ARRIVAL * (ts is None)
        assert (got[0], got[2], got[3]) == (key.encode(), row, said)
        assert ts in (None, got[1])


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("inputs", [1, 3])
def test_a_reset_or_an_end_needs_no_value(format: str, inputs: int) -> None:
    more: dict[str, Any]
    for more, flags in (
        ({"reset": True}, RESET),
        ({"end": True}, END),
        ({"reset": True, "end": True, "seq": 5, "publisher": "é"}, RESET | END),
    ):
        decoder = Decoder(format, inputs)
        ((key, ts, values, said),) = decode(decoder, encode_tick(format, "a", 7, [], **more))
        assert (key, ts, said) == (b"a", 7, flags)
        assert np.isnan(values).all()
        assert len(values) == inputs
        decode(decoder, encode_tick(format, "a", 7, []))
        assert decoder.drops["wrong_values"] == 1


@pytest.mark.parametrize("format", [*FORMATS, "arrow"])
def test_what_a_publisher_numbered_and_is_missing_is_counted(format: str) -> None:
    if format == "arrow":
        pytest.importorskip("pyarrow", reason="pyarrow is not installed")
    decoder = Decoder(format, 1)

    def sent(publisher: str, *seqs: int | None) -> dict[str, int]:
        for seq in seqs:
            message = encode_tick(format, "s", 1, [1.0], seq=seq, publisher=publisher)
            assert len(arrivals(decoder, [message]).ts) == 1
        return dict(zip(COUNTS, decoder.publishers.counts.tolist(), strict=True))

    assert set(sent("a", 7, 8, None, 9).values()) == {0}
    assert set(sent("b", 1, 2).values()) == {0}
    assert sent("a", 12, 13)["gaps"] == 2
    assert sent("b", 4)["gaps"] == 3
    assert sent("", 0, 1, 1, 2) == {"gaps": 3, "repeats": 1, "restarts": 0, "unfollowed": 0}
    assert sent("a", 1, 2) == {"gaps": 3, "repeats": 1, "restarts": 1, "unfollowed": 0}
    for _ in range(3):  # whatever is claimed, it does not go round
        claimed = sent("liar", 0, 2**63 - 1)
    assert claimed["gaps"] == CEILING


def test_an_escaped_publisher_is_the_same_one() -> None:
    decoder = Decoder("json", 1)
    for text in ('"h\\u00e4 \\"x\\""', '"h\u00e4 \\"x\\""', '"h\\u00e4 \\u0022x\\u0022"'):
        for key, series in ((b"a", b""), (b"", b'"series": "\\u00e4", ')):
            seq = int(decoder.publishers.latest.max()) + 1
            payload = b'{%s"value": 1, "seq": %d, "publisher": %s}' % (series, seq, text.encode())
            decode(decoder, [key, payload] if key else [payload])
    assert decoder.publishers.used[0] == 1
    assert not decoder.publishers.counts.any()


def test_so_many_publishers_are_followed_and_no_more() -> None:
    decoder = Decoder("binary", 1)
    for turn in range(2):
        for k in range(MOST + 10):
            message = encode_tick("binary", "s", 1, [1.0], seq=2 * turn, publisher=f"p{k}")
            arrivals(decoder, [message])
    counts = dict(zip(COUNTS, decoder.publishers.counts.tolist(), strict=True))
    assert counts == {"gaps": MOST, "repeats": 0, "restarts": 0, "unfollowed": 20}


# what is refused, and counted by reason

GOOD = {
    "json": [b"good", b'{"ts": 1, "value": 2}'],
    "msgpack": [b"good", PACK["msgpack"]({"ts": 1, "value": 2})],
    "binary": [binary(b"good", 10**9, 2.0)],
}


def maps(
    reason: str, tick: dict[str, Any], key: bytes = b"k"
) -> list[tuple[str, str, list[bytes]]]:
    return [(format, reason, [key, pack(tick)]) for format, pack in PACK.items()]


BAD = [
    ("json", "malformed", [b"k", b""]),
    ("json", "malformed", [b"k", b'{"ts": 1, "value": 2']),
    ("json", "malformed", [b"k", b'{"ts": 01, "value": 2}']),
    ("json", "malformed", [b"k", b'{"ts": 1, "value": 1e999}']),
    ("json", "malformed", [b"k", b"\xff\xfe"]),
    ("json", "malformed", [b"k", b"[" * 60_000]),
    ("json", "malformed", [b"k", b'{"x": NaN, "value": ' + b"[" * 60_000]),
    ("json", "malformed", [b"k", b"NaN"]),
    ("json", "bad_timestamp", [b"k", b'{"value": NaN, "ts_ns": ' + b"9" * 30 + b"}"]),
    ("json", "malformed", [b"k", b'{"ts": 1, "value": 2}\n{"ts": 1, "value": 2}']),
    ("json", "malformed", [b"k", b'{"ts": 1, "value": 2}', b""]),
    ("json", "bad_key", [b'{"ts": 1, "value": 2}']),
    ("json", "bad_key", [b'{"series": "a\\u0000b", "ts": 1, "value": 2}']),
    ("json", "bad_timestamp", [b"k", b'{"ts": [1,\n2], "value": 2}']),
    ("json", "bad_timestamp", [b"k", b'{"ts": "\xff", "value": 2}']),
    ("json", "bad_timestamp", [b"k", b'{"ts": 1e999999999, "value": 2}']),
    ("json", "frame_too_large", [b"k", b'{"ts": 1, "value": 2}' + b" " * 65_536]),
    ("msgpack", "malformed", [b"k", b"\xc1"]),
    ("msgpack", "malformed", [b"k", PACK["msgpack"]({"ts": 1, "value": 2})[:-1]]),
    ("msgpack", "malformed", [b"k", b"\x91" * 60_000]),
    *maps("malformed", {"ts": 1, "value": "2"}),
    *maps("malformed", {"ts": 1, "value": True}),
    *maps("malformed", {"ts": 1, "value": 2, "warm": 1}),
    *maps("malformed", {"ts": 1, "value": 2, "ts_ns": 1.5}),
    *maps("wrong_values", {"ts": 1}),
    *maps("wrong_values", {"ts": 1, "values": []}),
    *maps("wrong_values", {"ts": 1, "values": [1, 2]}),
    *maps("bad_timestamp", {"ts": "yesterday", "value": 2}),
    *maps("bad_timestamp", {"ts": 1718000000000, "value": 2}),
    *maps("bad_timestamp", {"ts_ns": 2**63, "value": 2}),
    *maps("bad_key", {"ts": 1, "value": 2}, b""),
    *maps("bad_key", {"ts": 1, "value": 2}, b"\xff"),
    *maps("bad_key", {"ts": 1, "value": 2}, b"a\0b"),
    *maps("key_too_long", {"ts": 1, "value": 2}, b"k" * 65),
    *maps("malformed", {"ts": 1, "value": 2, "reset": 1}),
    *maps("malformed", {"ts": 1, "value": 2, "end": "yes"}),
    *maps("wrong_values", {"ts": 1, "values": [1, 2], "end": True}),
    *maps("malformed", {"ts": 1, "value": 2, "seq": -1}),
    *maps("malformed", {"ts": 1, "value": 2, "seq": 2**63}),
    *maps("malformed", {"ts": 1, "value": 2, "seq": 1, "publisher": 5}),
    ("binary", "malformed", [b""]),
    ("binary", "malformed", [b"no end"]),
    ("binary", "malformed", [b"k\0\1"]),
    ("binary", "malformed", [binary(b"k", 1, 2.0), b""]),
    ("binary", "wrong_values", [binary(b"k", 1)]),
    ("binary", "wrong_values", [binary(b"k", 1, 2.0, 3.0)]),
    # the bytes that a reader from the end would take for NUL, version and flags are right
    ("binary", "wrong_values", [binary(b"k", 0x0000_0100_0000_0000, 2.0, 3.0)]),
    ("binary", "wrong_values", [binary(b"k", 1, 2.0) + b"\n"]),
    ("binary", "unsupported", [binary(b"k", 1, 2.0, version=2)]),
    ("binary", "unsupported", [binary(b"k", 1, 2.0, flags=32)]),
    ("binary", "unsupported", [binary(b"k", 1, 2.0, flags=128)]),
    ("binary", "wrong_values", [binary(b"k", 1, flags=1)]),
    ("binary", "wrong_values", [binary(b"k", 1, 2.0, 3.0, flags=8)]),
    ("binary", "malformed", [binary(b"k", 1, flags=16)]),
    ("binary", "malformed", [binary(b"k", 1, 2.0, flags=16, numbered=b"\xff" * 8 + b"\0")]),
    ("binary", "wrong_values", [binary(b"k", 1, 2.0, flags=16, numbered=b"\0" * 8 + b"\xff")]),
    ("binary", "bad_key", [binary(b"\xc3", 1, flags=8)]),
    ("binary", "bad_key", [binary(b"", 1, 2.0)]),
    ("binary", "bad_key", [binary(b"\xc3", 1, 2.0)]),
    ("binary", "key_too_long", [binary(b"k" * 65, 1, 2.0)]),
    ("binary", "frame_too_large", [b"k" * 65_537]),
]


@pytest.mark.parametrize(("format", "reason", "message"), BAD)
def test_a_bad_message_is_counted_and_those_beside_it_are_taken(
    format: str, reason: str, message: list[bytes]
) -> None:
    decoder = Decoder(format, 1)
    good = GOOD[format]
    decoded = decode(decoder, good, message, good)
    assert decoded == [(b"good", 10**9, [2.0], 0)] * 2
    assert {key: count for key, count in decoder.drops.items() if count} == {reason: 1}
    assert decoder.sample is not None
    assert decoder.sample[0] == reason


def test_halves_of_a_character_in_two_keys_do_not_make_a_whole() -> None:
    first, second = "é".encode()[:1], "é".encode()[1:]
    for format, messages in {
        "json": [[half, b'{"value": 1}'] for half in (first, second)],
        "binary": [[binary(half, 1, 2.0)] for half in (first, second)],
    }.items():
        decoder = Decoder(format, 1)
        assert decode(decoder, *messages) == []
        assert decoder.drops["bad_key"] == 2


def test_every_reason_is_tried() -> None:
    assert {reason for _, reason, _ in BAD} == set(REASONS)


def mutated(message: list[bytes]) -> st.SearchStrategy[list[bytes]]:
    """A good message with some of its bytes replaced, cut or added."""

    def cut(frame: bytes) -> st.SearchStrategy[bytes]:
        at = st.integers(0, len(frame))
        return st.builds(lambda a, b, x: frame[:a] + x + frame[b:], at, at, st.binary(max_size=4))

    return st.tuples(*map(cut, message)).map(list)


@given(
    st.sampled_from(FORMATS),
    st.integers(1, 3),
    st.data(),
)
def test_no_bytes_raise_and_every_message_is_accounted_for(
    format: str, inputs: int, data: st.DataObject
) -> None:
    good = encode_tick(format, "key", 1, [1.0] * inputs)
    frames = st.lists(st.binary(max_size=64), min_size=1, max_size=FRAMES)
    messages = data.draw(st.lists(frames | mutated(good) | st.just(good), max_size=6))
    decoder = Decoder(format, inputs, max_key=16, max_frame=60)
    batch = arrivals(decoder, messages)
    kept = names(batch)
    assert len(kept) == len(messages) - dropped(decoder)
    assert kept.count(b"key") >= messages.count(good)
    for key in kept:
        assert 0 < len(key) <= 16
        assert b"\0" not in key
        key.decode()
    assert batch.values.shape == (len(kept), inputs)
    assert len(batch.ts) == len(batch.flags) == len(kept)


JSON_LIKE = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner),
    max_leaves=4,
)


@given(
    st.sampled_from(sorted(PACK)),
    st.lists(
        st.dictionaries(
            st.sampled_from(FIELDS),
            JSON_LIKE,
        ),
        max_size=4,
    ),
)
def test_fields_of_any_kind_raise_nothing(format: str, ticks: list[Any]) -> None:
    decoder = Decoder(format, 1)
    messages = []
    for tick in ticks:
        try:
            payload = PACK[format](tick)
        except OverflowError:  # msgpack has no such integer
            continue
        messages += [[b"k", payload], [payload]]
    batch = arrivals(decoder, messages)
    assert len(batch.ts) == len(messages) - dropped(decoder)


# predictions


def forecasts(
    horizon: int, targets: int, *, known: bool = True, coverages: int = 1, measures: int = 0
) -> tuple[Forecasts, list[bytes]]:
    rng = np.random.default_rng(horizon)
    quantiles = rng.normal(size=(3, 2 * coverages, horizon, targets))
    if not known:
        quantiles[:] = np.nan
    return Forecasts(
        np.arange(3, dtype=np.int32),
        np.array([1718000000123456789, -1, 1718000000_000000000]),
        np.array([1, 2, 2**40]),
        rng.normal(size=(3, horizon, targets)),
        quantiles,
        np.where(rng.random((3, measures)) < 0.2, np.nan, rng.normal(size=(3, measures))),
    ), [b"a", "é\n\"'".encode(), b"c"]


def encode(
    format: str,
    rows: Forecasts,
    names: list[bytes],
    boot: int = 7,
    further: tuple[float, ...] = (),
    quality: tuple[str, ...] = (),
) -> list[list[bytes]]:
    width = 16
    text = np.frombuffer(bytearray().join(name.ljust(width, b"\0") for name in names), np.uint8)
    table = Names(text.reshape(-1, width), np.array([len(name) for name in names], np.uint16))
    horizon, targets = rows.point.shape[1:]
    shape = Shape("0123456789ab", boot, horizon, targets, width, len(names), further, quality)
    encoder = Encoder(format, shape)
    assert encoder.encode(rows, table) == len(names)
    return [encoder.messages.message(m) for m in range(len(names))]


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("targets", [1, 2])
@pytest.mark.parametrize("known", [True, False])
@pytest.mark.parametrize("further", [(), (0.5,), (0.99, 1e-05, 0.8)])
@pytest.mark.parametrize("quality", [(), MEASURES])
def test_predictions_come_back_as_they_were(
    format: str, targets: int, known: bool, further: tuple[float, ...], quality: tuple[str, ...]
) -> None:
    many = {"coverages": 1 + len(further), "measures": len(quality)}
    rows, names = forecasts(4, targets, known=known, **many)
    messages = encode(format, rows, names, 4_000_000_000, further, quality)
    assert len(messages) == 3
    for i, message in enumerate(messages):
        read = decode_prediction(format, message)
        assert message[0].startswith(b"prediction." + names[i])
        assert (read.series.encode(), read.ts_ns) == (names[i], rows.ts[i])
        assert (read.model, read.boot, read.seq) == ("0123456789ab", 4_000_000_000, rows.seq[i])
        assert np.array_equal(read.forecast, rows.point[i])
        assert np.array_equal(read.lower, rows.quantiles[i, 0], equal_nan=True)
        assert np.array_equal(read.upper, rows.quantiles[i, 1], equal_nan=True)
        assert tuple(interval.coverage for interval in read.intervals) == further
        for k, interval in enumerate(read.intervals, 1):
            ends = interval.lower, interval.upper
            assert np.array_equal(ends, rows.quantiles[i, 2 * k : 2 * k + 2], equal_nan=True)
        assert tuple(read.quality) == quality
        assert np.array_equal([*read.quality.values()], rows.quality[i], equal_nan=True)
        (seen,) = glance(format, message)
        assert seen[:4] == (read.series, read.boot, read.seq, read.forecast[0, 0])
        assert seen.whole().ts_ns == read.ts_ns


def test_a_json_prediction_by_its_fields() -> None:
    rows, names = forecasts(2, 1)
    (topic, payload), *_ = encode("json", rows, names)
    assert topic == b"prediction.a"
    assert json.loads(payload) == {
        "series": "a",
        "ts": 1718000000.1234567,
        "ts_ns": 1718000000123456789,
        "forecast": rows.point[0, :, 0].tolist(),
        "lower": rows.quantiles[0, 0, :, 0].tolist(),
        "upper": rows.quantiles[0, 1, :, 0].tolist(),
        "model": "0123456789ab",
        "boot": 7,
        "seq": 1,
    }


def test_further_intervals_by_their_fields() -> None:
    rows, names = forecasts(2, 1, coverages=3)
    for format, read in (("json", json.loads), ("msgpack", msgspec.msgpack.decode)):
        (_, payload), *_ = encode(format, rows, names, further=(0.5, 0.8))
        said = read(payload)
        assert said["upper"] == rows.quantiles[0, 1, :, 0].tolist()
        ends = rows.quantiles[0, :, :, 0].tolist()
        assert said["intervals"] == [
            {"coverage": 0.5, "lower": ends[2], "upper": ends[3]},
            {"coverage": 0.8, "lower": ends[4], "upper": ends[5]},
        ]
        (_, payload), *_ = encode(format, *forecasts(2, 1))
        assert "intervals" not in read(payload)


def test_an_unknown_interval_is_null_in_json() -> None:
    rows, names = forecasts(2, 2, known=False)
    (_, payload), *_ = encode("json", rows, names)
    read = json.loads(payload, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))
    assert read["lower"] == read["upper"] == [[None, None], [None, None]]
    assert read["forecast"] == rows.point[0].tolist()


@given(st.integers(0, 4 * 10**15))
def test_seconds_of_a_microsecond_come_back_as_they_were_sent(microseconds: int) -> None:
    whole, fraction = divmod(microseconds, 10**6)
    sent = float(f"{whole}.{fraction:06d}")
    rows, names = forecasts(1, 1)
    rows.ts[0] = microseconds * 1000
    payload = encode("json", rows, names)[0][1]
    assert json.loads(payload)["ts"] == sent


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize(
    "message", [[b""], [b"prediction.a", b"{}"], [b"prediction.a\0\1"], [b"x", b"y", b"z"], []]
)
def test_what_is_no_prediction_is_an_error(format: str, message: list[bytes]) -> None:
    for read in (decode_prediction, glance):
        with pytest.raises(WireError):
            read(format, message)
