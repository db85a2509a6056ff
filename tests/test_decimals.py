import itertools
import json
import math
from decimal import Decimal

import msgspec
import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from numba import njit
from numpy.typing import NDArray

from streamlstm import decimals, timestamps
from streamlstm.decimals import INTEGER, MALFORMED, NUMBER, UNDECIDED, WIDEST, WIDEST_INT

INT64 = st.integers(-(2**63), 2**63 - 1)
NEWLINE = ord("\n")


@njit(cache=True)
def write_lines(data, values):
    at = 0
    for value in values:
        at = decimals.write(data, at, value)
        data[at] = NEWLINE
        at += 1
    return at


@njit(cache=True)
def read_lines(data, values, kinds):
    at = 0
    for i in range(len(values)):
        kinds[i], values[i], _, at = decimals.read(data, at, len(data))
        if data[at] != NEWLINE:
            return False
        at += 1
    return at == len(data)


def as_array(text: bytes) -> NDArray[np.uint8]:
    return np.frombuffer(bytearray(text), np.uint8)


def written(values: NDArray[np.float64]) -> list[str]:
    data = np.zeros(len(values) * (WIDEST + 1) + WIDEST, np.uint8)
    return bytes(data[: write_lines(data, values)]).decode().splitlines()


def read_all(texts: list[str]) -> tuple[NDArray[np.float64], NDArray[np.uint8]]:
    values, kinds = np.empty(len(texts)), np.empty(len(texts), np.uint8)
    assert read_lines(as_array("".join(f"{text}\n" for text in texts).encode()), values, kinds)
    return values, kinds


def read(text: str) -> tuple[int, float, int, int]:
    return decimals.read(as_array(text.encode()), 0, len(text))


def check_reading(texts: list[str]) -> float:
    """All that is decided is what Python reads; returns how much of it is undecided."""
    values, kinds = read_all(texts)
    decided = kinds >= NUMBER
    expected = np.array([float(text) for text in texts])
    assert (values.view(np.int64) == expected.view(np.int64))[decided].all()
    assert (kinds != MALFORMED).all()
    return 1 - decided.mean()


def check_round_trip(values: NDArray[np.float64]) -> None:
    """Written with the digits of repr, which are the shortest and closest; read back to the bit."""
    expected = [repr(value) for value in values.tolist()]
    for i in np.flatnonzero((abs(values) >= 1e-5) & (abs(values) < 1e-4)):
        expected[i] = f"{Decimal(expected[i]):f}"  # here repr has exponents
    texts = written(values)
    assert "\n".join(texts) == "\n".join(expected).replace("e+", "e").replace("e-0", "e-")
    back, kinds = read_all(texts)
    normal = (abs(values) >= 2.0**-1022) | (values == 0)
    assert (kinds[normal] == NUMBER).all()
    assert (kinds[~normal] == UNDECIDED).all()
    assert (back.view(np.int64) == values.view(np.int64))[normal].all()


def test_a_million_random_bit_patterns_go_out_and_come_back() -> None:
    values = np.random.default_rng(1).integers(-(2**63), 2**63, 1_000_000).view(np.float64)
    check_round_trip(values[np.isfinite(values)])


def test_numbers_as_feeds_have_them_go_out_and_come_back() -> None:
    rng = np.random.default_rng(2)
    normal = rng.normal(scale=100, size=50_000)
    whole = rng.integers(-(10**6), 10**6, 10_000) * 10.0 ** rng.integers(-8, 12, 10_000)
    check_round_trip(np.concatenate([normal, normal.round(2), normal.astype(np.float32), whole]))


def test_every_power_of_two_and_ten_and_their_neighbours() -> None:
    powers = np.array([2.0**n for n in range(-1074, 1024)] + [float(f"1e{n}") for n in range(309)])
    powers = np.concatenate([powers, 1 / powers[powers >= 1], [0.0, -0.0]])
    powers = powers[powers < np.finfo(float).max]
    around = [powers, np.nextafter(powers, 0), np.nextafter(powers, np.inf)]
    values = np.concatenate(
        [*around, 2.0**53 + np.arange(-9.0, 9.0), [1e22, 1e23, np.finfo(float).max]]
    )
    check_round_trip(values)


def test_a_number_written_by_python_is_never_undecided() -> None:
    values = np.random.default_rng(3).integers(0, 2**63, 110_000).view(np.float64)
    values = values[np.isfinite(values) & (values >= 2.0**-1022)]
    assert len(values) > 100_000
    assert check_reading([repr(value) for value in values.tolist()]) == 0


@pytest.mark.parametrize("digits", [1, 5, 15, 16, 17, 18, 19])
def test_random_digits_at_every_exponent_are_rounded_as_python_does(digits: int) -> None:
    rng = np.random.default_rng(digits)
    numbers = rng.integers(10 ** (digits - 1), 10**digits, 20_000, np.uint64).tolist()
    exponents = rng.integers(-307, 308 - digits, 20_000).tolist()
    pairs = zip(numbers, exponents, strict=True)
    assert check_reading([f"{number}e{exponent}" for number, exponent in pairs]) == 0


def test_next_to_halfway_it_is_rounded_rightly_or_undecided() -> None:
    rng = np.random.default_rng(4)
    values = rng.integers(0, 2**63, 3_000).view(np.float64)
    values = values[(values > 1e-300) & (values < 1e300)]
    texts = []
    for value in values.tolist():
        halfway = (Decimal(value) + Decimal(math.nextafter(value, math.inf))) / 2
        for digits in (17, 18, 19):
            _, number, exponent = Decimal(f"{halfway:.{digits - 1}e}").as_tuple()
            near = int("".join(map(str, number)))
            texts += [f"{near + more}e{exponent}" for more in (-1, 0, 1)]
    assert check_reading(texts) < 1e-3


def test_exactly_halfway_goes_to_the_even_one() -> None:
    rng = np.random.default_rng(5)
    odd = (2**53 + 1 + 2 * rng.integers(0, 2**52, 5_000)).tolist()
    whole = [str(number << shift) for number in odd for shift in range(9)]
    broken = [
        f"{number * 5**places}e-{places}"  # number / 2^places
        for number in odd
        for places in (1, 2, 3, 4)
        if number * 5**places < 10**19
    ]
    assert check_reading(whole + broken) == 0
    assert read("9007199254740993.0")[:2] == (NUMBER, 9007199254740992.0)
    assert read("9007199254740995.0")[:2] == (NUMBER, 9007199254740996.0)


@pytest.mark.parametrize(
    "text",
    ["5e-324", "2.2250738585072011e-308", "1.8e308", "1e400", "-1e99999999999999999999", "1e-400",
     "12345678901234567890", "1.0000000000000000000", "0.00012345678901234567890"],
)  # fmt: skip
def test_what_is_left_to_a_library_is_named_and_measured(text: str) -> None:
    assert read(text)[::3] == (UNDECIDED, len(text))
    assert read(f"{text},1")[::3] == (UNDECIDED, len(text))


@pytest.mark.parametrize(
    ("text", "value"),
    [("0", 0.0), ("-0", -0.0), ("-0.0", -0.0), ("0e9999999999", 0.0), ("-0.000e-5", -0.0),
     ("0.00000000000000000000001234567890123456789", 1.234567890123456789e-23),
     ("1e22", 1e22), ("1e23", 1e23), ("1.7976931348623157e308", 1.7976931348623157e308),
     ("2.2250738585072014e-308", 2.2250738585072014e-308), ("1E+2", 100.0),
     (f"0.{'0' * 20_000}12e20002", 12.0)],
)  # fmt: skip
def test_numbers_at_the_edges_are_read(text: str, value: float) -> None:
    kind, found, _, place = read(text)
    assert (kind >= NUMBER, found, place) == (True, value, len(text))
    assert math.copysign(1, found) == math.copysign(1, value)


@given(INT64)
@example(-(2**63))
@example(2**63 - 1)
def test_integers_keep_all_their_digits(number: int) -> None:
    data = np.full(WIDEST_INT + 8, 7, np.uint8)
    end = decimals.write_int(data, 4, number)
    assert bytes(data[4:end]).decode() == str(number)
    assert bytes(data[:4]) == bytes(data[-4:]) == b"\7" * 4
    assert decimals.read(data, 4, end) == (INTEGER, float(number), number, end)


@pytest.mark.parametrize("power", range(19))
def test_integers_of_every_length(power: int) -> None:
    data = np.zeros(WIDEST_INT, np.uint8)
    for number in (10**power - 1, 10**power, -(10**power), 10**power + 1):
        assert bytes(data[: decimals.write_int(data, 0, number)]).decode() == str(number)


def test_integers_beyond_64_bits_are_numbers_only() -> None:
    assert read("9223372036854775808")[:3] == (NUMBER, 2.0**63, 0)
    assert read("-9223372036854775809")[:3] == (NUMBER, -(2.0**63), 0)
    assert read("9999999999999999999")[:3] == (NUMBER, 1e19, 0)


# --- the grammar ----------------------------------------------------------------------------------


def check_grammar(text: str) -> None:
    try:
        expected = json.loads(text)
    except ValueError:
        expected = None
    kind, value, integer, place = read(text)
    accepted = kind != MALFORMED and place == len(text)
    assert accepted == (expected is not None), text
    if accepted and kind != UNDECIDED:
        assert value == float(expected)
        whole = isinstance(expected, int) and -(2**63) <= expected < 2**63
        assert (kind == INTEGER) == whole
        assert not whole or integer == expected


def test_every_short_text_is_a_number_or_not_as_json_has_it() -> None:
    for length in range(6):
        for letters in itertools.product("01+-.eE", repeat=length):
            check_grammar("".join(letters))


@given(st.text("0123456789+-.eE ", max_size=24).map(str.strip))
@example("-")
@example("01")
@example("1 2")
def test_longer_texts_are_numbers_or_not_as_json_has_it(text: str) -> None:
    check_grammar(text)


@given(
    st.from_regex(r"-?(0|[1-9][0-9]{0,18})(\.[0-9]{1,20})?([eE][+-]?[0-9]{1,3})?", fullmatch=True),
    st.binary(max_size=3),
    st.binary(max_size=16).filter(
        lambda after: after[:1] not in [*map(bytes, zip(b"0123456789.eE"))]
    ),
)
def test_a_number_ends_at_the_first_byte_that_does_not_belong(
    text: str, before: bytes, after: bytes
) -> None:
    kind, value, integer, place = read(text)
    data = as_array(before + text.encode() + after)
    at = len(before)
    assert decimals.read(data, at, len(data)) == (kind, value, integer, at + place)
    data = as_array(text.encode() + b"12345678")  # beyond the end nothing is read
    assert decimals.read(data, 0, len(text)) == (kind, value, integer, place)


# --- seconds --------------------------------------------------------------------------------------


def read_seconds(text: str) -> tuple[int, int, int]:
    return decimals.read_seconds(as_array(text.encode()), 0, len(text))


@given(
    st.integers(0, 10**10),
    st.text("0123456789", min_size=1, max_size=20),
    st.sampled_from(["", "-"]),
)
@example(1718000000, "1234567899", "")
@example(0, "000000001", "-")
def test_seconds_are_read_to_the_nanosecond(whole: int, fraction: str, sign: str) -> None:
    for text in (f"{sign}{whole}", f"{sign}{whole}.{fraction}"):
        kind, ns, place = read_seconds(text)
        assert place == len(text)
        assert kind == (NUMBER if whole < 9_223_372_036 else UNDECIDED)
        if kind == NUMBER:
            assert ns == timestamps.parse(text)


@given(st.text("0123456789+-.eE ", max_size=16))
@example("1e9")
@example("1.5E-3 ")
@example("1.")
def test_seconds_have_the_grammar_of_numbers(text: str) -> None:
    kind, _, place = read_seconds(text)
    number, *_, end = read(text)
    assert (kind == MALFORMED) == (number == MALFORMED)
    assert place == end
    assert kind != NUMBER or "e" not in text[:place].lower()


# --- writing --------------------------------------------------------------------------------------


def check_writing(value: float) -> None:
    data = np.full(WIDEST + 8, 7, np.uint8)
    end = decimals.write(data, 4, value)
    assert bytes(data[4:end]) == msgspec.json.encode(value)
    assert bytes(data[:4]) == bytes(data[-4:]) == b"\7" * 4


@given(st.floats())
@example(math.nan)
@example(-math.inf)
@example(-2.2250738585072014e-308)
@example(-1.2345678901234567e-5)
def test_a_float_is_written_as_msgspec_writes_it(value: float) -> None:
    check_writing(value)


def test_notations_change_where_those_of_msgspec_do() -> None:
    for exponent in range(-12, 24):
        for digits in (1, 9.5, 1.25, 12345678, 1 / 3, 9999999999999998, 9.999999999999999):
            check_writing(float(f"{digits}e{exponent}"))
            check_writing(-digits * 10.0**exponent)


def test_no_text_is_longer_than_is_said() -> None:
    data = np.zeros(WIDEST, np.uint8)
    assert decimals.write(data, 0, -2.2250738585072014e-308) == WIDEST
    assert decimals.write_int(data, 0, -(2**63)) == WIDEST_INT
