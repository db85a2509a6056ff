"""The other ends of the wire: a tick as a publisher writes it, a prediction as a subscriber reads.

No part of the daemon.
"""

import re
import struct
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

import msgspec
import numpy as np
from numpy.typing import NDArray

from streamlstm.watch import MEASURES
from streamlstm.wire import binary, maps
from streamlstm.wire.binary import SEQ, VERSION, prediction_layout
from streamlstm.wire.format import BATCH, TOPIC, Format, WireError


class Interval(NamedTuple):
    """An interval beside the main one."""

    coverage: float
    lower: NDArray[np.float64]
    """(horizon, targets); NaN where it is not known"""
    upper: NDArray[np.float64]
    """(horizon, targets); NaN where it is not known"""


class Prediction(NamedTuple):
    """A prediction as a subscriber reads it."""

    series: str
    ts_ns: int
    forecast: NDArray[np.float64]
    """(horizon, targets)"""
    lower: NDArray[np.float64]
    """(horizon, targets); NaN where no interval is known"""
    upper: NDArray[np.float64]
    """(horizon, targets); NaN where no interval is known"""
    model: str
    boot: int
    seq: int
    intervals: tuple[Interval, ...] = ()
    """of further coverages"""
    quality: Mapping[str, float] = MappingProxyType({})
    """numbers that :mod:`streamlstm.watch` explains, by name; NaN where one is not known"""


class Glance(NamedTuple):
    """What is seen of a prediction at once; to read all of it takes several times as long."""

    series: str
    boot: int
    seq: int
    next: float
    """the forecast of the first step ahead, of the first target"""
    format: Format
    message: Sequence[bytes] | Prediction

    def whole(self) -> Prediction:
        """Read the rest.

        Raises:
            WireError: it is not one.
        """
        if isinstance(self.message, Prediction):
            return self.message
        return decode_prediction(self.format, self.message)


class _Glanced(msgspec.Struct, gc=False):
    """Of a prediction as a map says it."""

    boot: int
    seq: int
    forecast: list[Any]


_GLANCE: Mapping[str, Callable[[bytes], _Glanced]] = {
    "json": msgspec.json.Decoder(_Glanced).decode,
    "msgpack": msgspec.msgpack.Decoder(_Glanced).decode,
}
_FIRST = re.compile(rb'"forecast":\[(-?[\d.eE+-]+)')
_NUMBERED = re.compile(rb'"boot":(\d+),"seq":(\d+)')
"""Where the daemon writes them so, they are found without reading all of a JSON text: between its
quotes no quote stands bare, so what looks like a name is one."""
_NUMBERS = struct.Struct("<IQqd")
"""boot, seq, ts and the first step of a prediction in binary."""
_BOOT = SEQ - 4
"""Where they lie."""


def encode_tick(
    format: Format,
    series: str,
    ts_ns: int | None,
    values: Sequence[float],
    *,
    warm: bool = False,
    reset: bool = False,
    end: bool = False,
    seq: int | None = None,
    publisher: str = "",
) -> list[bytes]:
    """Write one tick, as a publisher does; without ``ts_ns`` it has its arrival time.

    A ``reset`` or ``end`` may have no ``values``, but for the format arrow, where they are NaN.
    With ``seq`` it is numbered; ``publisher`` has at most 255 bytes.
    """
    if format == "arrow":
        ts = None if ts_ns is None else [ts_ns]
        columns = {"reset": reset, "end": end}
        more: dict[str, Any] = {name: [True] for name, said in columns.items() if said}
        if seq is not None:
            more |= {"seq": [seq], "publisher": [publisher]}
        return encode_ticks([series], ts, np.array([values], np.float64), warm=warm, **more)
    key = series.encode()
    if format == "binary":
        flags = warm * binary.SAYS_WARM | (ts_ns is None) * binary.SAYS_ARRIVAL
        flags |= reset * binary.SAYS_RESET | end * binary.SAYS_END
        numbered = b""
        if seq is not None:
            flags |= binary.SAYS_NUMBERED
            name = publisher.encode()
            numbered = struct.pack("<QB", seq, len(name)) + name
        head = struct.pack("<BBBq", 0, VERSION, flags, ts_ns or 0)
        return [key + head + numbered + struct.pack(f"<{len(values)}d", *values)]
    tick: dict[str, Any] = {} if ts_ns is None else {"ts_ns": ts_ns}
    numbers = list(map(float, values))
    if numbers:
        tick |= {"value": numbers[0]} if len(numbers) == 1 else {"values": numbers}
    said = {"warm": warm, "reset": reset, "end": end}
    tick |= {name: True for name, true in said.items() if true}
    if seq is not None:
        tick |= {"seq": seq} | ({"publisher": publisher} if publisher else {})
    return [key, msgspec.json.encode(tick) if format == "json" else msgspec.msgpack.encode(tick)]


def encode_ticks(
    series: Sequence[str],
    ts_ns: Sequence[int] | NDArray[np.int64] | None,
    values: NDArray[np.float64],
    *,
    warm: bool = False,
    **more: Sequence[Any],
) -> list[bytes]:
    """Write many ticks as one message of the format arrow; ``values`` are (ticks, inputs).

    ``more`` are further columns: ``reset``, ``end``, ``seq``, ``publisher``.
    """
    import pyarrow as pa

    columns: dict[str, Any] = {"series": pa.array(series, pa.utf8())}
    if ts_ns is not None:
        columns["ts"] = pa.array(ts_ns, pa.timestamp("ns", "UTC"))
    rows, inputs = values.shape
    flat = pa.array(np.ascontiguousarray(values).reshape(-1), pa.float64())
    if inputs == 1:
        columns["value"] = flat
    else:
        offsets = pa.array(np.arange(rows + 1, dtype=np.int32) * inputs)
        columns["values"] = pa.ListArray.from_arrays(offsets, flat)
    if warm:
        columns["warm"] = pa.array([True] * rows)
    columns |= {name: pa.array(column) for name, column in more.items()}
    batch, sink = pa.record_batch(columns), pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, batch.schema) as stream:
        stream.write_batch(batch)
    return [b"ticks.batch", sink.getvalue().to_pybytes()]


def decode_predictions(format: Format, message: Sequence[bytes]) -> list[Prediction]:
    """Read the predictions of one message, as a subscriber does: one, but for the format arrow.

    Raises:
        WireError: it has none, or not of this format.
    """
    if format != "arrow":
        return [decode_prediction(format, message)]
    import pyarrow as pa
    import pyarrow.compute as pc

    try:
        topic, payload = message
        if topic != BATCH:
            raise ValueError("another topic")
        table = pa.ipc.open_stream(payload).read_all()
        table.validate(full=True)  # pyarrow believes what a damaged one says of itself
        table = table.combine_chunks()
        rows, said = table.num_rows, table.schema.metadata or {}
        horizon = table.schema.field("forecast").type.list_size

        def steps(name: str) -> NDArray[np.float64]:
            numbers: NDArray[np.float64] = pc.list_flatten(table[name], recursive=True).to_numpy()
            return numbers.reshape(rows, horizon, -1)

        forecast, lower, upper = map(steps, ("forecast", "lower", "upper"))
        further = [
            (float(name[6:]), steps(name), steps(f"upper_{name[6:]}"))
            for name in table.column_names
            if name.startswith("lower_")
        ]
        measures = [name for name in MEASURES if name in table.column_names]
        quality = {name: table[name].to_pylist() for name in measures}
        series, seq = table["series"].to_pylist(), table["seq"].to_pylist()
        ts_ns = table["ts"].cast(pa.int64()).to_pylist()
        model, boot = said[b"model"].decode(), int(said[b"boot"])
        return [
            Prediction(
                series[i], ts_ns[i], forecast[i], lower[i], upper[i], model, boot, seq[i],
                tuple(Interval(each, low[i], high[i]) for each, low, high in further),
                {name: of[i] for name, of in quality.items()},
            )
            for i in range(rows)
        ]  # fmt: skip
    except (pa.ArrowException, OSError, ValueError, LookupError, AttributeError) as error:
        raise WireError(f"not predictions in arrow: {error}") from error


def glance(format: Format, message: Sequence[bytes]) -> list[Glance]:
    """Look at the predictions of one message: one, but for the format arrow.

    Raises:
        WireError: it has none, or not of this format.
    """
    if format == "arrow":
        return [glance_at(each) for each in decode_predictions(format, message)]
    try:
        if format == "binary":
            (frame,) = message
            end = frame.index(0)
            series = frame[len(TOPIC) : end].decode()
            boot, seq, _, first = _NUMBERS.unpack_from(frame, end + _BOOT)
            return [Glance(series, boot, seq, first, format, message)]
        topic, payload = message
        series = topic[len(TOPIC) :].decode()
        if format == "json":
            numbered = _NUMBERED.match(payload, payload.rfind(b'"boot":'))
            if numbered and (found := _FIRST.search(payload)):
                boot, seq = int(numbered[1]), int(numbered[2])
                return [Glance(series, boot, seq, float(found[1]), format, message)]
        seen = _GLANCE[format](payload)
        first = seen.forecast[0]
        first = first[0] if isinstance(first, list) else first
        number = np.nan if first is None else float(first)
        return [Glance(series, seen.boot, seen.seq, number, format, message)]
    except (msgspec.MsgspecError, struct.error, ValueError, TypeError, LookupError) as error:
        raise WireError(f"not a prediction in {format}: {error}") from error


def glance_at(prediction: Prediction) -> Glance:
    """Of one that was read already."""
    series, boot, seq = prediction.series, prediction.boot, prediction.seq
    return Glance(series, boot, seq, float(prediction.forecast[0, 0]), "arrow", prediction)


def decode_prediction(format: Format, message: Sequence[bytes]) -> Prediction:
    """Read one prediction, as a subscriber does.

    Raises:
        WireError: it is not one, or not of this format.
    """
    try:
        if format == "arrow":
            (prediction,) = decode_predictions(format, message)
            return prediction
        if format == "binary":
            return _read_binary_prediction(*message)
        _, payload = message
        decoder = msgspec.json if format == "json" else msgspec.msgpack
        read = decoder.decode(payload, type=maps.Prediction)
        forecast, lower, upper = map(_steps, (read.forecast, read.lower, read.upper))
        further = (Interval(i.coverage, _steps(i.lower), _steps(i.upper)) for i in read.intervals)
        quality = {name: np.nan if n is None else n for name, n in read.quality.items()}
        said = read.model, read.boot, read.seq, tuple(further), quality
        return Prediction(read.series, read.ts_ns, forecast, lower, upper, *said)
    except (msgspec.MsgspecError, ValueError, TypeError, RecursionError) as error:
        raise WireError(f"not a prediction in {format}: {error}") from error


def _steps(numbers: Sequence[Any]) -> NDArray[np.float64]:
    """(horizon, targets) of a list, or a list of lists."""
    return np.array(numbers, np.float64).reshape(len(numbers), -1)


def _read_binary_prediction(frame: bytes) -> Prediction:
    topic, _, rest = frame.partition(b"\0")
    head = np.frombuffer(b"\0" + rest, prediction_layout(0, 0), count=1)[0]
    pairs, odd = divmod(int(head["levels"]), 2)
    if not topic.startswith(TOPIC) or head["version"] != VERSION or odd or not pairs:
        raise ValueError("another topic, version or number of levels")
    shape = int(head["horizon"]), int(head["targets"]), pairs - 1
    longer = 1 + len(rest) > prediction_layout(*shape).itemsize
    (row,) = np.frombuffer(b"\0" + rest, prediction_layout(*shape, longer * len(MEASURES)))
    lower, upper = row["interval"]
    series = topic.removeprefix(TOPIC).decode()
    numbers = (int(row["boot"]), int(row["seq"]))
    return Prediction(
        series,
        int(row["ts"]),
        row["forecast"],
        lower,
        upper,
        row["model"].tobytes().hex(),
        *numbers,
        tuple(Interval(float(each["coverage"]), *each["interval"]) for each in row["further"]),
        dict(zip(MEASURES, row["quality"].tolist(), strict=False)),
    )
