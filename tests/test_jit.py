"""Nothing is compiled once the daemon is ready, whatever it meets.

Seen in the real process, by the daemon's own count of Numba's compile events. Code in the cache
folder would hide what the warm-up forgot, so the folder is emptied when the daemon says it is
ready: what it needs from there on and does not have, it has to compile.
"""

import contextlib
import os
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from numba import njit, types

from streamlstm.engine import Engine
from streamlstm.jit import emitted
from streamlstm.model_file import load_model
from streamlstm.wire.format import Format
from streamlstm.wire.peer import encode_tick, encode_ticks
from tests.daemon import Client, Daemon, eventually, start
from tests.models import random_model_file

STEP = 3600 * 10**9
BEGIN = 1_700_000_000 * 10**9
SECOND = BEGIN // 10**9
COUNTER = "streamlstm_functions_compiled_total"
SERIES = 300

KINDS: dict[str, tuple[Format, Format, dict[str, object]]] = {
    "plain": ("json", "json", {}),
    "wide": ("binary", "binary", {"hidden": 96}),
    "deep": (
        "msgpack", "msgpack",
        {
            "layers": 2, "horizon": 6, "season": 4, "base": "seasonal", "lags": (1, 4),
            "calendar": ("hour", "week", "year"), "timezone": "Europe/Paris", "directions": 9,
        },
    ),
    "many targets": (
        "binary", "json",
        {
            "inputs": 3, "targets": 2, "lags": (1, 7), "base": "none", "directions": 4,
            "scaling": {"kind": "fixed", "loc": (0, 1, 2), "scale": (1, 2, 3)},
        },
    ),
    "many inputs": ("json", "msgpack", {"inputs": 2, "scaling": {"kind": "none"}}),
    "gru": ("json", "binary", {"cell": "gru"}),
    "gru, reset before": ("msgpack", "binary", {"cell": "gru", "reset_after": False, "layers": 2}),
    "rnn, blend": (
        "msgpack", "json",
        {
            "cell": "rnn", "activation": "relu", "base": "blend",
            "blend": {"short": 2, "long": 6, "weights": ((0.1, 0.2, 0.3),) * 3},
        },
    ),
    "smoothing": (
        "binary", "binary",
        {
            "base": "blend",
            "blend": {
                "short": 2, "long": 6, "weights": ((0.1, 0.2, 0.3, 0.4),) * 3,
                "smoothing": {"season": 6, "level": 0.1, "profile": 0.1},
            },
        },
    ),
    "window": ("binary", "msgpack", {"window": 5, "step_ns": 0}),
    "batches": ("arrow", "arrow", {}),
    "wide batches": ("arrow", "binary", {"inputs": 3, "targets": 2}),
}  # fmt: skip


def good(format: Format, series: str, ts_ns: int, inputs: int) -> list[bytes]:
    return encode_tick(format, series, ts_ns, [1.0 + k for k in range(inputs)])


def odd(format: Format, inputs: int) -> list[list[bytes]]:
    """Every way to say a tick, and every reason to refuse one; each of a series of its own."""
    numbers = [1.0 + k for k in range(inputs)]

    def plain(series: str, ts_ns: int | None, values: list[float] = numbers, **flags: bool) -> None:
        messages.append(encode_tick(format, series, ts_ns, values, **flags))

    messages: list[list[bytes]] = []
    plain("arrival", None)
    plain("warm", BEGIN, warm=True)
    plain("warm arrival", None, warm=True)
    plain("before 1970", -BEGIN)
    for hour in (5, 5, 4, 9, 6):  # duplicate, late, after a gap
        plain("out of order", BEGIN + hour * STEP)
    for value in (float("nan"), float("inf"), 1e38):
        plain("impossible", BEGIN, [value, *numbers[1:]])
    plain("far future", 2**63 - 1)
    plain("k" * 65, BEGIN)
    plain("", BEGIN)
    plain("é", BEGIN)
    plain("too many", BEGIN, [*numbers, 0.0])
    plain("too few", BEGIN, numbers[1:])
    messages += [[b"\xff\x00"], [b"bad", b"\x00"], [b"a", b"b", b"c"], [b""], [b"x" * 70_000]]
    if format == "binary":
        (frame,) = encode_tick(format, "series", BEGIN, numbers)
        head = len(b"series\0")
        messages += [
            [frame[:head] + b"\x02" + frame[head + 1 :]],  # another version
            [frame[: head + 1] + b"\x80" + frame[head + 2 :]],  # an unknown flag
            [frame[: head + 4]],
            [b"\xc3\x28" + frame[len(b"series") :]],
        ]
        return messages
    if format == "arrow":
        return messages + layouts(inputs)

    encode = msgspec.json.encode if format == "json" else msgspec.msgpack.encode
    values: dict[str, Any] = {"values": numbers} if inputs > 1 else {"value": 1.0}
    for at, ts in enumerate(
        (SECOND, SECOND + 0.25, f"{SECOND}", "2024-06-10T06:13:20.5Z", "2024-06-10 06:13:20+02:00",
         None, -1.5, "1.7e9", "today", 1e300, True, [1]),
    ):  # fmt: skip
        messages.append([b"ts %d" % at, encode({"ts": ts} | values)])
    messages += [
        [encode({"series": "one frame", "ts": SECOND, "seq": 7} | values)],
        [b"list", encode({"ts_ns": BEGIN, "values": numbers})],
        [b"missing", encode({"ts_ns": BEGIN, "values": [None] * inputs})],
        [b"no values", encode({"ts_ns": BEGIN})],
        [b"reset", encode({"reset": True} | values)],
        [b"\xc3\x28", encode(values)],
        [b"large", encode({"pad": "x" * 70_000} | values)],
    ]
    if format == "json":
        messages += [
            [b"exponent", b'{"ts": 17e8, "values": %s}' % encode(numbers)],
            [b"digits", b'{"ts": 1700000000.123456789012, "values": %s}' % encode(numbers)],
            [b"NaN", b'{"ts": 1, "value": NaN}'],
            [b"lines", b'{"ts":\n[1,\n2], "values": %s}' % encode(numbers)],
        ]
    return messages


def layouts(inputs: int) -> list[list[bytes]]:
    """One tick each, of columns of every type."""
    pa = pytest.importorskip("pyarrow", reason="pyarrow is not installed")
    messages = []
    for at, (text, number, stamp) in enumerate(
        (
            (pa.utf8(), pa.float64(), pa.timestamp("ns", "UTC")),
            (pa.large_utf8(), pa.float32(), pa.timestamp("s")),
            (pa.string_view(), pa.int8(), pa.int64()),
        )
    ):
        for coded in (False, True):
            for kind in (pa.list_(number), pa.large_list(number), pa.list_(number, inputs)):
                series = pa.array([f"layout {at} {coded} {kind}"], text)
                columns = {
                    "series": series.dictionary_encode() if coded else series,
                    "ts": pa.array([SECOND], stamp),
                    "values": pa.array([list(range(inputs))], kind),
                    "warm": pa.array([None], pa.bool_()),
                }
                batch, sink = pa.record_batch(columns), pa.BufferOutputStream()
                with pa.ipc.new_stream(sink, batch.schema) as stream:
                    stream.write_batch(batch)
                messages.append([sink.getvalue().to_pybytes()])
    return messages


def batches(format: Format, inputs: int) -> list[tuple[int, list[list[bytes]]]]:
    """Of every size (which goes with each) and many series, one, or a few; then too many series."""
    found, hour = [], 10
    for size in (1, 2, 3, 7, 48, 1000):
        for series in (200, 1, 3):
            names = [f"s{i % series}" for i in range(size)]
            stamps = [BEGIN + (hour + i // series) * STEP for i in range(size)]
            found.append((size, waiting(format, names, stamps, inputs)))
            hour += size + 1
    new = [f"n{i}" for i in range(SERIES)]
    found.append((SERIES, waiting(format, new, [BEGIN] * SERIES, inputs)))
    return found


def waiting(format: Format, names: list[str], stamps: list[int], inputs: int) -> list[list[bytes]]:
    """Messages of good ticks that are to be a batch: where the format can, one."""
    if format == "arrow":
        values = np.tile(1.0 + np.arange(inputs), (len(names), 1))
        return [encode_ticks(names, stamps, values)]
    return [good(format, name, ts_ns, inputs) for name, ts_ns in zip(names, stamps, strict=True)]


def send_at_once(
    daemon: Daemon, client: Client, messages: list[list[bytes]], before: int, ticks: int
) -> int:
    """Have all of ``messages`` wait when the daemon looks next; returns how many ticks it took."""
    with daemon.stopped():
        for message in messages:
            client.send(*message)
    taken = before + ticks
    eventually(lambda: daemon.metric("streamlstm_ticks_received_total") == taken)
    return taken


@pytest.fixture(scope="module", autouse=True)
def cached(tmp_path_factory: pytest.TempPathFactory) -> None:
    """The cache of all tests has most of what a daemon needs."""
    folder = tmp_path_factory.mktemp("cached")
    model = random_model_file(folder)
    for format in ("json", "msgpack", "binary"):
        with start(folder, model, input__format=format, output__format=format):
            pass


@contextlib.contextmanager
def ready(folder: Path, model: Path, **options: Any) -> Iterator[Daemon]:
    """A daemon that is ready and finds no compiled code any more; it is to compile nothing."""
    Engine(load_model(model), max_series=1).warm_up()  # in the cache of all tests
    everything = Path(os.environ["NUMBA_CACHE_DIR"])
    cache = folder / everything.name
    being_written = shutil.ignore_patterns("*.tmp.*")  # by other tests
    shutil.copytree(everything, cache, ignore=being_written)
    with start(folder, model, env={"NUMBA_CACHE_DIR": str(cache)}, **options) as daemon:
        for file in list(cache.rglob("*.nb?")):
            file.unlink()
        compiled = daemon.metric(COUNTER)
        yield daemon
        assert daemon.metric(COUNTER) == compiled
        assert daemon.stop() == 0
        assert f"functions_compiled={compiled:.0f}\n" in daemon.log.splitlines(True)[-1]


@pytest.mark.parametrize("kind", KINDS)
def test_nothing_is_compiled_once_ready(kind: str, tmp_path: Path) -> None:
    given, wanted, spec = KINDS[kind]
    path = random_model_file(tmp_path, **spec)
    inputs = load_model(path).spec.inputs
    options = {
        "input__format": given,
        "output__format": wanted,
        "engine__max_series": SERIES,
        "checkpoint__path": tmp_path / "checkpoint",
        "checkpoint__interval": 0.05,
        "interval__coverage": {"many inputs": 0, "deep": "0.9,0.5"}.get(kind, 0.9),
    }
    with ready(tmp_path, path, **options) as daemon, Client(daemon) as client:
        storm = odd(given, inputs)
        taken = 0
        for message in storm:
            taken = send_at_once(daemon, client, [message], taken, 1)
        for ticks, batch in ((len(storm), storm), *batches(given, inputs)):
            taken = send_at_once(daemon, client, batch, taken, ticks)
        assert daemon.metric("streamlstm_decode_duration_seconds_count") >= len(storm)
        assert daemon.metric('streamlstm_batch_size_bucket{le="256.0"}') < daemon.metric(
            "streamlstm_batch_size_count"
        )
        assert daemon.metric("streamlstm_predictions_published_total") > 3000
        assert daemon.metric("streamlstm_active_series") == SERIES
        eventually(lambda: "checkpoint_last_success" in daemon.get("/metrics"))
        random_model_file(tmp_path, seed=1, **spec)
        daemon.process.send_signal(signal.SIGHUP)
        send_at_once(daemon, client, storm, taken, len(storm))  # the series go over meanwhile
        eventually(lambda: daemon.metric("streamlstm_model_reloads_total") == 1)


def test_nor_where_a_model_of_another_shape_takes_over(tmp_path: Path) -> None:
    shapes: list[dict[str, object]] = [
        {"directions": 0},
        {"directions": 9, "spread": True},
        {"directions": 1, "hidden": 24, "horizon": 5, "lags": (1, 2)},
        {"layers": 2, "season": 4, "base": "seasonal"},
    ]
    path = random_model_file(tmp_path, directions=3)
    with ready(tmp_path, path) as daemon, Client(daemon) as client:
        for hour, shape in enumerate(shapes, 1):
            client.tick("a", ts=3600 * hour, value=1.0)
            client.predictions(1)
            random_model_file(tmp_path, **shape)
            daemon.process.send_signal(signal.SIGHUP)
            eventually(lambda: daemon.metric("streamlstm_model_reloads_total") == hour)  # noqa: B023
        client.tick("a", ts=3600 * len(shapes) + 3600, value=1.0)
        client.predictions(1)


FEW = {"engine__max_batch": 16, "input__max_pending": 20}
WAYS: dict[str, dict[str, Any]] = {
    "drop_newest": {"input__overload": "drop_newest", **FEW},
    "drop_oldest": {"input__overload": "drop_oldest", **FEW},
    "coalesce": {"input__overload": "coalesce", **FEW},
    "waiting": {"input__kind": "pull", "engine__max_wait_us": 100, "service__busy_poll_us": 1000},
    "one by one": {"before": "service.transport._FUNCTIONS = ('zmq_of_another_time',)"},
    "in bulk too": {"output__batch": True},
}


@pytest.mark.parametrize("way", WAYS)
def test_nor_whatever_way_a_tick_goes(way: str, tmp_path: Path) -> None:
    if way == "in bulk too":
        pytest.importorskip("pyarrow", reason="pyarrow is not installed")
    options, path = WAYS[way], random_model_file(tmp_path)
    push = options.get("input__kind") == "pull"
    with ready(tmp_path, path, **options) as daemon, Client(daemon, push=push) as client:
        storm = odd("json", 1)
        taken = send_at_once(daemon, client, storm, 0, len(storm))
        names, stamps = [f"s{i % 50}" for i in range(3000)], [BEGIN + i * STEP for i in range(3000)]
        send_at_once(daemon, client, waiting("json", names, stamps, 1), taken, 3000)


@emitted(types.int64, types.int64, types.int64)
def minus(builder: Any, one: Any, other: Any) -> Any:
    """minus(one, other)"""
    return builder.sub(one, other)


@emitted(types.void, types.int64, types.int64)
def put(builder: Any, address: Any, value: Any) -> None:
    builder.store(value, builder.inttoptr(address, value.type.as_pointer()))


def test_what_is_emitted_takes_its_arguments_in_order_and_as_the_types_said() -> None:
    room = np.zeros(1, np.int64)
    njit(lambda at: put(at, minus(np.int8(7), np.int16(2))))(room.ctypes.data)
    assert room[0] == 5
    assert minus.__doc__ == "minus(one, other)"
