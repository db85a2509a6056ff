"""Arrow on the wire, against what pyarrow itself reads and writes."""

import datetime
import struct
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from streamlstm.ticks import ARRIVAL, END, RESET, WARM, Arrivals, Forecasts, Messages, Names
from streamlstm.watch import MEASURES
from streamlstm.wire.codec import Decoder, Encoder
from streamlstm.wire.format import FormatError, Shape, WireError
from streamlstm.wire.peer import (
    decode_prediction,
    decode_predictions,
    encode_tick,
    encode_ticks,
)
from tests.daemon import Client, Daemon, start
from tests.models import random_model_file

pa = pytest.importorskip("pyarrow", reason="pyarrow is not installed")
pc = pytest.importorskip("pyarrow.compute", reason="pyarrow is not installed")
arrow = pytest.importorskip("streamlstm.wire.arrow", reason="pyarrow is not installed")

NOW = 1_700_000_000_000_000_000
HOUR = 3600 * 10**9
DROPPED = 'streamlstm_ticks_dropped_total{reason="%s"}'


def stream(*batches: Any, schema: Any = None, **options: Any) -> bytes:
    sink = pa.BufferOutputStream()
    given = pa.ipc.IpcWriteOptions(**options)
    with pa.ipc.new_stream(sink, schema or batches[0].schema, options=given) as writer:
        for batch in batches:
            writer.write_batch(batch)
    return sink.getvalue().to_pybytes()


def table(**columns: Any) -> Any:
    return pa.record_batch(columns)


def decode(decoder: Decoder, *messages: list[bytes]) -> list[tuple[bytes, int, list[float], int]]:
    batch = decoder.decode(Messages.of(messages), len(messages), NOW)
    assert decoder.rows == len(batch.ts) + sum(decoder.drops.values())
    return rows(batch)


def rows(batch: Arrivals) -> list[tuple[bytes, int, list[float], int]]:
    data, begin, end = batch.keys
    names = [data[a:b].tobytes() for a, b in zip(begin, end, strict=True)]
    found = zip(names, batch.ts, batch.values, batch.flags, strict=True)
    return [(key, int(ts), row.tolist(), int(flag)) for key, ts, row, flag in found]


def refused(decoder: Decoder) -> dict[str, int]:
    return {reason: count for reason, count in decoder.drops.items() if count}


# ticks, as a publisher's library lays them out


def test_ticks_as_pandas_writes_them() -> None:
    pandas = pytest.importorskip("pandas")
    frame = pandas.DataFrame(
        {
            "series": ["a", "é", "a"],
            "ts": pandas.to_datetime(
                ["2024-06-10T06:13:20.5", None, "2024-06-10T07:00:00.0"], utc=True
            ),
            "value": [1.5, 2.5, None],
            "note": ["means", "nothing", "here"],
        }
    )
    message = [b"ticks.batch", stream(pa.RecordBatch.from_pandas(frame))]
    decoder = Decoder("arrow", 1)
    (first, second, third) = decode(decoder, message)
    assert first == (b"a", 1718000000_500000000, [1.5], 0)
    assert second == ("é".encode(), NOW, [2.5], ARRIVAL)
    assert third[:2] == (b"a", 1718002800 * 10**9)
    assert np.isnan(third[2])
    assert not refused(decoder)


UNITS = {"s": 10**9, "ms": 10**6, "us": 1000, "ns": 1}
TEXTS = [pa.utf8(), pa.large_utf8(), pa.string_view()]
CODES = [pa.int8(), pa.int32(), pa.uint16(), pa.int64(), pa.uint64()]
NUMBERS = [pa.float64(), pa.float32(), pa.int8(), pa.uint16(), pa.int32(), pa.int64(), pa.uint64()]
STAMPS = [pa.timestamp(u, z) for u in UNITS for z in (None, "UTC", "Europe/Paris")] + [pa.int64()]
NAMES = st.text(st.characters(exclude_characters="\0", codec="utf-8"), min_size=1, max_size=20)


@st.composite
def batches(draw: st.DrawFn, inputs: int) -> list[Any]:
    """Record batches of one schema, of all types that are taken, with nulls where they may be."""
    sizes = draw(st.lists(st.integers(0, 5), min_size=1, max_size=3))
    number, stamp, text = (draw(st.sampled_from(kind)) for kind in (NUMBERS, STAMPS, TEXTS))
    code = draw(st.none() | st.sampled_from(CODES))
    single = inputs == 1 and draw(st.booleans())
    lists = draw(
        st.sampled_from([pa.list_(number), pa.large_list(number), pa.list_(number, inputs)])
    )
    floats = pa.types.is_floating(number)
    value = st.none() | (st.floats(width=32) if floats else st.integers(0, 100))
    optional = draw(st.sets(st.sampled_from(["ts", "warm", "other"])))
    order = draw(st.permutations(["series", "value", "ts", "warm", "other"]))
    made = []
    for size in sizes:

        def column(kind: Any, values: st.SearchStrategy[Any], size: int = size) -> Any:
            return pa.array(draw(st.lists(values, min_size=size, max_size=size)), kind)

        series = column(text, NAMES)
        columns = {
            "series": series.dictionary_encode().cast(pa.dictionary(code, text))
            if code
            else series,
            "value": column(number, value)
            if single
            else column(lists, st.lists(value, min_size=inputs, max_size=inputs)),
            "ts": column(pa.int64(), st.none() | st.integers(-(10**9), 10**9)).cast(stamp),
            "warm": column(pa.bool_(), st.none() | st.booleans()),
            "other": column(pa.list_(pa.utf8()), st.lists(st.text(max_size=2), max_size=2)),
        }
        named = {"value": "value" if single else "values"}
        kept = [n for n in order if n in optional or n in ("series", "value")]
        made.append(pa.record_batch({named.get(n, n): columns[n] for n in kept}))
    return made


def as_pyarrow_reads(payload: bytes) -> Iterator[tuple[bytes, int | None, list[float], int]]:
    """Series, ts, values and flags of each row."""
    read = pa.ipc.open_stream(payload).read_all()
    for at in range(read.num_rows):
        row = {name: read[name][at] for name in read.column_names}
        ts = row.get("ts", pa.scalar(None))
        unit = UNITS[ts.type.unit] if pa.types.is_timestamp(ts.type) else 1
        number = ts.cast(pa.int64()).as_py() if ts.is_valid else None
        values = row["values"].as_py() if "values" in row else [row["value"].as_py()]
        yield (
            row["series"].as_py().encode(),
            None if number is None else number * unit,
            [np.nan if value is None else float(value) for value in values],
            WARM * bool("warm" in row and row["warm"].as_py()),
        )


@given(st.integers(1, 3), st.data())
def test_ticks_are_what_pyarrow_reads(inputs: int, data: st.DataObject) -> None:
    payload = stream(*data.draw(batches(inputs)))
    topic = data.draw(st.binary(max_size=9))  # so that the stream begins at any address
    message = data.draw(st.sampled_from([[topic, payload], [payload]]))
    decoder = Decoder("arrow", inputs)
    got, truth = decode(decoder, message), list(as_pyarrow_reads(payload))
    assert not refused(decoder), decoder.sample
    arrival = NOW
    assert len(got) == len(truth)
    for (key, ts, values, flags), (named, stamped, numbers, warm) in zip(got, truth, strict=True):
        assert (key, flags) == (named, warm | ARRIVAL * (stamped is None))
        assert np.array_equal(values, numbers, equal_nan=True)
        if stamped is None:
            stamped, arrival = arrival, arrival + 1
        assert ts == stamped


def test_resets_ends_and_numbers_are_columns() -> None:
    columns = {
        "series": ["a", "b", "c", "d"],
        "value": [1.0, None, None, 2.0],
        "ts": [1, 2, 3, 4],
        "reset": [True, None, True, False],
        "end": pa.array([None, True, True, False]),
        "seq": pa.array([0, 1, None, 5], pa.uint64()),
        "publisher": ["p", "p", "p", "p"],
    }
    decoder = Decoder("arrow", 1)
    message = [stream(table(**columns))]
    for _ in range(3):  # by pyarrow, and then in compiled code where it can
        got = decode(decoder, message)
        assert [row[3] for row in got] == [RESET, END, RESET | END, 0]
        values = [row[2][0] for row in got]
        assert np.array_equal(values, [1, np.nan, np.nan, 2], equal_nan=True)
    assert decoder.publishers.counts.tolist() == [9, 0, 2, 0]
    lists = {"values": pa.array([None, []], pa.list_(pa.float64())), "end": [True, True]}
    (first, second) = decode(Decoder("arrow", 2), [stream(table(series=["a", "b"], **lists))])
    assert np.isnan(first[2] + second[2]).all()
    assert len(first[2]) == 2
    decoder = Decoder("arrow", 1)
    wrong = columns | {"seq": pa.array([0, 2**63, 2, 3], pa.uint64())}
    assert len(decode(decoder, [stream(table(**wrong))])) == 3
    assert refused(decoder) == {"malformed": 1}


def test_names_are_not_copied() -> None:
    for kind in TEXTS:
        series = pa.array(["short", "longer than twelve bytes"], kind)
        for column in (series, series.dictionary_encode()):
            messages = Messages.of([[stream(table(series=column, value=[1.0, 2.0]))]])
            batch = Decoder("arrow", 1).decode(messages, 1, NOW)
            assert batch.keys.data is messages.data
            assert [row[0] for row in rows(batch)] == [b"short", b"longer than twelve bytes"]


def test_a_dictionary_may_be_replaced_between_batches() -> None:
    parts = [
        table(series=pa.array(names).dictionary_encode(), value=[1.0, 2.0])
        for names in (["a", "b"], ["c", "a"])
    ]
    decoded = decode(Decoder("arrow", 1), [stream(*parts)])
    assert [row[0] for row in decoded] == [b"a", b"b", b"c", b"a"]


def test_a_stream_of_no_ticks_is_none() -> None:
    decoder = Decoder("arrow", 1)
    empty = table(series=pa.array([], pa.utf8()), value=pa.array([], pa.float64()))
    assert decode(decoder, [stream(empty)], [stream(schema=empty.schema)]) == []
    assert not refused(decoder)


def test_as_many_rows_as_are_promised() -> None:
    decoder = Decoder("arrow", 1, max_frame=1 << 22)
    for count, wanted in ((arrow.MOST_ROWS, {}), (arrow.MOST_ROWS + 1, {"frame_too_large": 1})):
        names = pa.DictionaryArray.from_arrays(
            pa.array(np.arange(count) % 7, pa.int8()), list("abcdefg")
        )
        values = np.arange(count, dtype=float)
        batch = decoder.decode(Messages.of([[stream(table(series=names, value=values))]]), 1, NOW)
        assert refused(decoder) == wanted
        if not wanted:
            assert np.array_equal(batch.values[:, 0], values)
    assert decoder.sample is not None
    assert f"{arrow.MOST_ROWS}" in decoder.sample[1]


def test_parts_keep_all_ticks_in_their_order() -> None:
    names, values = [f"s{i % 7}" for i in range(10)], np.arange(10.0)
    messages = Messages.of([[stream(table(series=names, ts=pa.array(range(10)), value=values))]])
    batch = Decoder("arrow", 1).decode(messages, 1, NOW)
    parts = list(batch.parts(4))
    assert [len(part.ts) for part in parts] == [4, 4, 2]
    assert [row for part in parts for row in rows(part)] == rows(batch)
    assert list(batch.parts(10)) == [batch]


# what is refused


def coded(*codes: int | None, texts: Sequence[str | None] = ("good",)) -> Any:
    """A dictionary that may not hold what its codes ask for."""
    return pa.DictionaryArray.from_arrays(
        pa.array(codes, pa.int32()), pa.array(texts, pa.utf8()), safe=False
    )


G = "good"
ROWS: list[tuple[str, dict[str, Any]]] = [
    ("bad_key", {"series": pa.array([b"good", b"\xc3\x28", b"good"], pa.binary()).view(pa.utf8())}),
    ("bad_key", {"series": [G, "", G]}),
    ("bad_key", {"series": [G, "a\0b", G]}),
    ("bad_key", {"series": [G, None, G]}),
    ("bad_key", {"series": pa.array([G, None, G], pa.string_view())}),
    ("bad_key", {"series": coded(0, None, 0)}),
    ("bad_key", {"series": coded(0, 1, 0, texts=(G, None))}),
    ("bad_key", {"series": coded(0, 1, 0)}),
    ("bad_key", {"series": coded(0, -1, 0)}),
    ("key_too_long", {"series": [G, "k" * 65, G]}),
    ("key_too_long", {"series": pa.array([G, "k" * 65, G], pa.string_view())}),
    ("wrong_values", {"values": [[2.0], [], [2.0]]}),
    ("wrong_values", {"values": [[2.0], [1.0, 2.0], [2.0]]}),
    ("wrong_values", {"values": pa.array([[2], None, [2]], pa.large_list(pa.int8()))}),
    ("wrong_values", {"values": pa.array([[2.0], None, [2.0]], pa.list_(pa.float64(), 1))}),
    ("bad_timestamp", {"ts": pa.array([1, 2**40, 1], pa.timestamp("s"))}),
    ("bad_timestamp", {"ts": pa.array([10**6, -(2**62), 10**6], pa.timestamp("us"))}),
]


@pytest.mark.parametrize(("reason", "wrong"), ROWS)
def test_a_bad_row_is_counted_and_those_beside_it_are_taken(
    reason: str, wrong: dict[str, Any]
) -> None:
    columns = {"series": [G] * 3, "ts": pa.array([1] * 3, pa.timestamp("s")), "value": [2.0] * 3}
    if "values" in wrong:
        del columns["value"]
    decoder = Decoder("arrow", 1)
    decoded = decode(decoder, [b"topic", stream(table(**columns | wrong))])
    assert decoded == [(b"good", 10**9, [2.0], 0)] * 2
    assert refused(decoder) == {reason: 1}
    assert decoder.sample == (reason, "row 1 of a batch")


@pytest.mark.parametrize("inputs", [1, 2, 3])
def test_all_rows_are_wrong_where_their_type_is(inputs: int) -> None:
    lists = pa.array([[1.0, 2.0]] * 4, pa.list_(pa.float64(), 2))
    for column, size in (({"values": lists}, 2), ({"value": [1.0] * 4}, 1)):
        decoder = Decoder("arrow", inputs)
        decoded = decode(decoder, [stream(table(series=["a"] * 4, **column))])
        assert len(decoded) == 4 * (inputs == size)
        assert decoder.drops["wrong_values"] == 4 - len(decoded)


def sparse(**columns: Any) -> list[bytes]:
    return [stream(table(**columns))]


GOOD = stream(table(series=["good"], ts=pa.array([1], pa.timestamp("s")), value=[2.0]))
BIG = np.zeros(1 << 21)
BOMB = table(series=pa.DictionaryArray.from_arrays(BIG.astype(np.int8), ["a"]), value=BIG)
WHOLE: list[tuple[str, str, list[bytes]]] = [
    ("malformed", "no tick", [b""]),
    ("malformed", "json", [b"k", b'{"ts": 1, "value": 2}']),
    ("malformed", "three frames", [b"a", b"b", GOOD]),
    ("malformed", "a topic behind", [GOOD, b"topic"]),
    ("malformed", "cut", [GOOD[:-40]]),
    ("malformed", "cut in the schema", [GOOD[:40]]),
    ("malformed", "a file", [b"ARROW1\0\0" + GOOD]),
    ("malformed", "no series", sparse(value=[1.0])),
    ("malformed", "no value", sparse(series=["a"])),
    ("malformed", "two series", [
        stream(pa.RecordBatch.from_arrays([pa.array(["a"])] * 2 + [pa.array([1.0])],
                                          ["series", "series", "value"]))]),
    ("malformed", "series of int", sparse(series=[1], value=[1.0])),
    ("malformed", "series of binary", sparse(series=[b"a"], value=[1.0])),
    ("malformed", "value of text", sparse(series=["a"], value=["1"])),
    ("malformed", "value of bool", sparse(series=["a"], value=[True])),
    ("malformed", "value of null", sparse(series=["a"], value=pa.nulls(1))),
    ("malformed", "values of text", sparse(series=["a"], values=[["1"]])),
    ("malformed", "values of a number", sparse(series=["a"], values=[1.0])),
    ("malformed", "ts of text", sparse(series=["a"], value=[1.0], ts=["2024-01-01"])),
    ("malformed", "ts of float", sparse(series=["a"], value=[1.0], ts=[1.0])),
    ("malformed", "ts of date", sparse(series=["a"], value=[1.0], ts=[datetime.date(2024, 1, 1)])),
    ("malformed", "warm of int", sparse(series=["a"], value=[1.0], warm=[1])),
    ("malformed", "run-ends", sparse(
        series=pa.RunEndEncodedArray.from_arrays(pa.array([1 << 30], pa.int32()), ["a"])[:1],
        value=[1.0])),
    ("frame_too_large", "large", [stream(table(series=["a"] * 9000, value=np.zeros(9000)))]),
    ("unsupported", "zstd", [stream(table(series=["a"], value=[1.0]), compression="zstd")]),
    ("unsupported", "lz4", [
        b"t", stream(table(series=pa.array(["a"]).dictionary_encode(), value=[1.0]),
                     compression="lz4")]),
    ("unsupported", "a bomb", [
        stream(BOMB, compression="zstd")]),
    ("unsupported", "deltas", [
        stream(
            *(table(series=pa.DictionaryArray.from_arrays([len(names) - 1], names), value=[1.0])
              for names in (["a"], ["a", "b"])),
            emit_dictionary_deltas=True)]),
]  # fmt: skip


@pytest.mark.parametrize(
    ("reason", "message"), [(w[0], w[2]) for w in WHOLE], ids=[w[1] for w in WHOLE]
)
def test_a_bad_message_counts_one_and_those_beside_it_are_taken(
    reason: str, message: list[bytes]
) -> None:
    decoder = Decoder("arrow", 1)
    decoded = decode(decoder, [GOOD], message, [GOOD])
    assert decoded == [(b"good", 10**9, [2.0], 0)] * 2
    assert refused(decoder) == {reason: 1}
    assert decoder.sample is not None
    assert decoder.sample[0] == reason
    assert decoder.sample[1].isprintable()


def test_a_reset_whose_values_lie_nowhere_is_none_without_a_value() -> None:
    columns = {"values": pa.array([[1.0, 2], [3.0, 4]]), "reset": pa.array([True, True])}
    sound, decoder = stream(table(series=pa.array(["a", "b"]), **columns)), Decoder("arrow", 2)
    offsets = struct.pack("<3i", 0, 2, 4)
    assert sound.count(offsets) == 1
    assert len(decode(decoder, [sound])) == 2
    for wrong, dropped in (((0, 2, 99), {"malformed": 1}), ((0, 99, 4), {"wrong_values": 2})):
        decoder.refused[:] = 0
        assert decode(decoder, [sound.replace(offsets, struct.pack("<3i", *wrong))]) == []
        assert refused(decoder) == dropped


def test_a_message_is_never_partly_taken() -> None:
    part = table(series=["a"], value=[1.0])
    whole = stream(part, part, part)
    decoder = Decoder("arrow", 1)
    for end in range(len(whole) - len(stream(schema=part.schema)) // 2, len(whole) - 8):
        decode(Decoder("arrow", 1), [whole[:end]])
    cut = whole[: len(stream(part, part)) + 20]
    assert decode(decoder, [cut]) == []
    assert refused(decoder) == {"malformed": 1}


def test_too_large_says_what_to_raise() -> None:
    decoder = Decoder("arrow", 1, max_frame=100)
    decode(decoder, [GOOD])
    assert decoder.sample is not None
    assert "input.max_frame" in decoder.sample[1]


@st.composite
def damaged(draw: st.DrawFn) -> bytes:
    """A stream with some of its bytes replaced: of its structure as well as of its columns."""
    payload = bytearray(stream(*draw(batches(1))))
    for at in draw(st.lists(st.integers(0, len(payload) - 1), min_size=1, max_size=4)):
        payload[at] = draw(st.integers(0, 255) | st.sampled_from([0, 1, 127, 128, 255]))
    return bytes(payload[: draw(st.just(len(payload)) | st.integers(0, len(payload)))])


@settings(max_examples=300)
@given(st.lists(damaged() | st.just(GOOD) | st.binary(max_size=40), max_size=3))
def test_no_bytes_raise_and_every_key_is_text_of_its_message(payloads: list[bytes]) -> None:
    decoder = Decoder("arrow", 1)
    messages = Messages.of([[b"t", payload] for payload in payloads])
    batch = decoder.decode(messages, len(payloads), NOW)
    assert decoder.rows == len(batch.ts) + sum(decoder.drops.values())
    kept = rows(batch)
    assert sum(row[0] == b"good" for row in kept) >= payloads.count(GOOD)
    for key, *_ in kept:
        assert 0 < len(key) <= 64
        assert any(key in payload for payload in payloads)
        key.decode()


# predictions


def forecasts(
    rows: int, horizon: int, targets: int, known: bool = True, coverages: int = 1, measures: int = 0
) -> Forecasts:
    rng = np.random.default_rng(rows)
    quantiles = rng.normal(size=(rows, 2 * coverages, horizon, targets))
    return Forecasts(
        rng.permutation(rows).astype(np.int32),
        rng.integers(-(2**62), 2**62, rows),
        rng.integers(1, 2**62, rows),
        rng.normal(size=(rows, horizon, targets)),
        quantiles if known else np.full_like(quantiles, np.nan),
        rng.normal(size=(rows, measures)),
    )


def names(count: int) -> tuple[Names, list[str]]:
    said = [f"é{i}" * (1 + i % 3) for i in range(count)]
    text = np.frombuffer(bytearray().join(s.encode().ljust(32, b"\0") for s in said), np.uint8)
    return Names(text.reshape(-1, 32), np.array([len(s.encode()) for s in said], np.uint16)), said


@pytest.mark.parametrize(("horizon", "targets"), [(1, 1), (3, 1), (2, 3), (1, 2)])
@pytest.mark.parametrize("known", [True, False])
@pytest.mark.parametrize(("further", "quality"), [((), ()), ((0.5, 0.95), ()), ((0.5,), MEASURES)])
def test_predictions_as_pyarrow_reads_them(
    horizon: int,
    targets: int,
    known: bool,
    further: tuple[float, ...],
    quality: tuple[str, ...],
) -> None:
    shape = Shape("0123456789ab", 4_000_000_000, horizon, targets, 32, 16, further, quality)
    encoder, coverages = Encoder("arrow", shape), 1 + len(further)
    for count in (16, 1, 5):  # of one size after another: nothing of the last is left
        out = forecasts(count, horizon, targets, known, coverages, len(quality))
        table_of_names, said = names(count)
        assert encoder.encode(out, table_of_names) == count
        assert encoder.count == 1
        topic, payload = encoder.messages.message(0)
        assert topic == b"predictions.batch"
        read = pa.ipc.open_stream(payload).read_all()
        read.validate(full=True)
        assert read.schema.metadata == {b"model": b"0123456789ab", b"boot": b"4000000000"}
        assert read["series"].to_pylist() == [said[slot] for slot in out.slot]
        assert read.schema.field("ts").type == pa.timestamp("ns", "UTC")
        assert read["ts"].cast(pa.int64()).to_pylist() == out.ts.tolist()
        assert read["seq"].to_pylist() == out.seq.tolist()
        ends = [f"{end}{of}" for of in ("", "_0.5", "_0.95") for end in ("lower", "upper")]
        ends = ends[: 2 * coverages]
        assert read.column_names == ["series", "ts", "forecast", *ends, *quality, "seq"]
        for name, of in zip(quality, out.quality.T, strict=True):
            assert read[name].to_pylist() == of.tolist()
        wanted = {"forecast": out.point}
        wanted |= {end: out.quantiles[:, level] for level, end in enumerate(ends)}
        for name, numbers in wanted.items():
            steps = np.array(read[name].to_pylist())
            assert steps.shape == (count, horizon) + (targets,) * (targets > 1)
            assert np.array_equal(steps.reshape(numbers.shape), numbers, equal_nan=True)
        for i, one in enumerate(decode_predictions("arrow", [topic, payload])):
            assert (one.series, one.ts_ns, one.seq) == (said[out.slot[i]], out.ts[i], out.seq[i])
            assert (one.model, one.boot) == ("0123456789ab", 4_000_000_000)
            assert np.array_equal(one.forecast, out.point[i])
            assert np.array_equal(one.upper, out.quantiles[i, 1], equal_nan=True)
            assert list(one.quality.values()) == out.quality[i].tolist()
            assert tuple(each.coverage for each in one.intervals) == further
            for k, each in enumerate(one.intervals, 1):
                found = each.lower, each.upper
                assert np.array_equal(found, out.quantiles[i, 2 * k : 2 * k + 2], equal_nan=True)


def test_more_predictions_than_a_message_takes_go_in_several() -> None:
    out, (table_of_names, said) = forecasts(10, 2, 1), names(10)
    encoder, end, found = Encoder("arrow", Shape("0123456789ab", 1, 2, 1, 32, 4)), 0, []
    while end < 10:
        end = encoder.encode(out, table_of_names, end)
        assert encoder.count == 1
        found.append([p.series for p in decode_predictions("arrow", encoder.messages.message(0))])
    assert [len(part) for part in found] == [4, 4, 2]
    assert [name for part in found for name in part] == [said[slot] for slot in out.slot]
    assert encoder.encode(out, table_of_names, 10) == 10
    assert encoder.count == 0


def test_names_as_long_as_they_may_be_have_room() -> None:
    text = np.full((64, 32), ord("k"), np.uint8)
    encoder = Encoder("arrow", Shape("0123456789ab", 2**32 - 1, 24, 3, 32, 64))
    out = forecasts(64, 24, 3)
    assert encoder.encode(out, Names(text, np.full(64, 32, np.uint16))) == 64
    assert len(decode_predictions("arrow", encoder.messages.message(0))) == 64


@pytest.mark.parametrize(
    "message",
    [
        [],
        [b""],
        [b"predictions.batch", b"x"],
        [b"prediction.a", GOOD],
        [b"predictions.batch", GOOD],
    ],
)
def test_what_is_no_batch_is_an_error(message: list[bytes]) -> None:
    for decode_message in (decode_prediction, decode_predictions):
        with pytest.raises(WireError):
            decode_message("arrow", message)


# in the daemon


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return random_model_file(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def daemon(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    wire = {"input__format": "arrow", "output__format": "arrow", "engine__max_batch": 32}
    with start(tmp_path_factory.mktemp("daemon"), model, **wire) as daemon:
        yield daemon


def ticks(count: int, prefix: str) -> tuple[list[str], list[int], np.ndarray]:
    rng = np.random.default_rng(count)
    series = [f"{prefix}{i}" for i in rng.integers(0, 7, count)]
    return (
        series,
        [hour * HOUR for hour in range(count)],
        rng.normal(size=(count, 1)).cumsum(axis=0),
    )


def received(client: Client, count: int) -> list[Any]:
    found: list[Any] = []
    while len(found) < count:
        found += decode_predictions("arrow", client.sink.recv_multipart())
    return found


def test_the_same_ticks_give_the_same_bits_as_in_binary(
    daemon: Daemon, model: Path, tmp_path: Path
) -> None:
    series, ts, values = ticks(300, "same")
    with Client(daemon, b"predictions.batch") as client:
        client.send(*encode_ticks(series[:1], ts[:1], values[:1]))
        client.send(*encode_ticks(series[1:290], ts[1:290], values[1:290]))
        client.send(*encode_ticks(series[290:], ts[290:], values[290:])[1:])
        batch = received(client, 300)
        assert client.silent()
    plain = {"input__format": "binary", "output__format": "binary", "output__batch": "true"}
    with start(tmp_path, model, **plain) as other, Client(other, b"prediction") as client:
        for row in zip(series, ts, values, strict=True):
            client.send(*encode_tick("binary", *row))
        single, beside = [], []
        while len(single) + len(beside) < 600:
            (message,) = client.receive(1)
            bulk = message[0] == b"predictions.batch"
            found = decode_predictions("arrow" if bulk else "binary", message)
            (beside if bulk else single).extend(found)
        assert client.silent()
    for other_rows in (single, beside):
        for a, b in zip(batch, other_rows, strict=True):
            assert (a.series, a.ts_ns, a.seq, a.model) == (b.series, b.ts_ns, b.seq, b.model)
            for mine, theirs in zip(a[2:5], b[2:5], strict=True):
                assert np.array_equal(mine, theirs, equal_nan=True)


def test_a_message_larger_than_a_batch_is_stepped_in_its_order(daemon: Daemon) -> None:
    taken = daemon.metric("streamlstm_ticks_received_total")
    with Client(daemon, b"predictions.batch") as client:
        client.send(*encode_ticks(["one"] * 100, [i * HOUR for i in range(100)], np.ones((100, 1))))
        sizes, found = [], []
        while len(found) < 100:
            found += decode_predictions("arrow", client.sink.recv_multipart())
            sizes.append(len(found))
    assert sizes == [32, 64, 96, 100]
    assert [p.seq for p in found] == list(range(1, 101))
    assert daemon.metric("streamlstm_ticks_received_total") == taken + 100


def test_nothing_a_peer_sends_stops_it_and_all_is_counted(daemon: Daemon) -> None:
    reasons = sorted({reason for reason, *_ in WHOLE} - {"frame_too_large"})
    before = [daemon.metric(DROPPED % reason) for reason in reasons]
    taken = daemon.metric("streamlstm_ticks_received_total")
    messages = [message for reason, _, message in WHOLE if reason != "frame_too_large"]
    with Client(daemon, b"predictions.batch") as client:
        for message in messages:
            client.send(*message)
        client.send(*encode_tick("arrow", "after the storm", None, [1.0]))
        (prediction,) = received(client, 1)
        assert (prediction.series, prediction.seq) == ("after the storm", 1)
    counts = [sum(reason == r for r, *_ in WHOLE) for reason in reasons]
    after = [daemon.metric(DROPPED % reason) for reason in reasons]
    assert [b - a for a, b in zip(before, after, strict=True)] == counts
    assert daemon.metric("streamlstm_ticks_received_total") == taken + len(messages) + 1
    assert 'reason="unsupported" content="a compressed body' in daemon.log


def test_ticks_that_warm_move_their_series_silently(daemon: Daemon) -> None:
    with Client(daemon, b"predictions.batch") as client:
        client.send(
            *encode_ticks(["warm"] * 5, [i * HOUR for i in range(5)], np.ones((5, 1)), warm=True)
        )
        client.send(*encode_ticks(["warm"], [5 * HOUR], np.ones((1, 1))))
        (prediction,) = received(client, 1)
        assert (prediction.ts_ns, prediction.seq) == (5 * HOUR, 1)
        assert client.silent()


# without pyarrow


@pytest.mark.parametrize(
    "option", ["input.format=arrow", "output.format=arrow", "output.batch=true"]
)
@pytest.mark.parametrize("command", ["check", "run"])
def test_without_pyarrow_one_line_says_what_to_install(
    command: str, option: str, model: Path
) -> None:
    code = (
        "import sys; sys.modules['pyarrow'] = None\n"
        "from streamlstm.cli import main\n"
        f"sys.exit(main(['{command}', '--set', 'model={model}', '--set', '{option}',"
        " '--set', 'metrics.port=0']))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 1
    assert len(done.stderr.splitlines()) == 1
    assert "pip install 'streamlstm[arrow]'" in done.stderr


def test_without_pyarrow_the_other_formats_work(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    Decoder("json", 1)
    with pytest.raises(FormatError, match="pip install"):
        Decoder("arrow", 1)
