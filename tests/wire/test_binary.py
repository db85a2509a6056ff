"""The binary format, byte by byte as its tables say."""

import struct

import numpy as np

from streamlstm.ticks import ARRIVAL, END, RESET, WARM
from streamlstm.wire.codec import Decoder
from tests.wire.test_codec import NOW, decode, encode, forecasts
from tests.wire.ticks import binary


def test_binary_as_the_table_says() -> None:
    frames = [
        binary(b"a", 5, 1.5, np.nan),
        binary("Δ/é".encode(), -7, np.inf, 2.0, flags=1),
        binary(b"c", 99, 3.0, 4.0, flags=2),
        binary(b"d", 99, 3.0, 4.0, flags=3),
        binary(b"e", 99, 3.0, 4.0, flags=4),
        binary(b"f", 99, 3.0, 4.0, flags=9),
        binary(b"g", 99, 3.0, 4.0, flags=16, numbered=struct.pack("<QB", 7, 2) + b"\0x"),
    ]
    decoded = decode(Decoder("binary", 2), *([frame] for frame in frames))
    assert [(key, ts, flag) for key, ts, _, flag in decoded] == [
        (b"a", 5, 0), ("Δ/é".encode(), -7, WARM), (b"c", NOW, ARRIVAL),
        (b"d", NOW + 1, WARM | ARRIVAL),
        (b"e", 99, RESET), (b"f", 99, WARM | END), (b"g", 99, 0),
    ]  # fmt: skip
    assert np.array_equal(decoded[0][2], [1.5, np.nan], equal_nan=True)
    assert [row[2] for row in decoded[1:]] == [[np.inf, 2]] + 5 * [[3, 4]]


def test_a_binary_prediction_as_the_table_says() -> None:
    rows, names = forecasts(2, 3)
    (frame,) = encode("binary", rows, names)[1]
    topic, _, rest = frame.partition(b"\0")
    assert topic == b"prediction." + names[1]
    head = struct.unpack_from("<BBHHB6sIQq", b"\0" + rest)
    assert head == (0, 1, 2, 3, 2, bytes.fromhex("0123456789ab"), 7, 2, -1)
    floats = np.frombuffer(rest[32:], "<f8").reshape(3, 2, 3)
    assert np.array_equal(floats, [rows.point[1], *rows.quantiles[1]])


def test_further_intervals_follow_each_after_its_coverage() -> None:
    (plain,) = encode("binary", *forecasts(2, 3))[1]
    rows, names = forecasts(2, 3, coverages=3)
    (frame,) = encode("binary", rows, names, further=(0.5, 0.95))[1]
    rest, levels = frame.partition(b"\0")[2], 5
    head = rest[:32]
    assert head[:levels] + b"\2" + head[levels + 1 :] == plain.partition(b"\0")[2][:32]
    assert head[levels] == 6
    floats = np.frombuffer(rest[32:], "<f8")
    main = np.array([rows.point[1], *rows.quantiles[1, :2]]).ravel()
    first, second = (rows.quantiles[1, k : k + 2].ravel() for k in (2, 4))
    assert np.array_equal(floats, [*main, 0.5, *first, 0.95, *second])
