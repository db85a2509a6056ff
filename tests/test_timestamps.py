from datetime import UTC, datetime, timedelta, timezone
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamlstm import timestamps


@given(st.integers(-(9 * 10**9), 9 * 10**9), st.text("0123456789", max_size=12))
def test_decimal_seconds_are_read_to_the_digit(whole: int, fraction: str) -> None:
    text = f"{whole}.{fraction}" if fraction else f"{whole}"
    assert timestamps.parse(text) == int(Fraction(text) * 10**9)


@pytest.mark.parametrize(
    ("text", "ns"),
    [
        ("1.7e9", 1_700_000_000 * 10**9),
        ("1e-9", 1),
        ("1718000000." + "9" * 40, 1718000000_999999999),
        ("9223372036.854775807", 2**63 - 1),
        ("-9223372036.854775808", -(2**63)),
        ("1970-01-01T00:00:00Z", 0),
        ("2024-06-10T06:13:20.123456789+02:00", 1717992800123456789),
        ("2024-06-10t06:13:20.5z", 1718000000500000000),
        ("2024-06-10 06:13:20-00:00", 1718000000000000000),
        ("1969-12-31T23:59:59.75Z", -250_000_000),
    ],
)
def test_other_notations(text: str, ns: int) -> None:
    assert timestamps.parse(text) == ns


@given(st.datetimes(datetime(1700, 1, 1), datetime(2250, 1, 1)), st.integers(-23 * 60, 23 * 60))
def test_rfc_3339_agrees_with_the_calendar_of_python(moment: datetime, minutes: int) -> None:
    moment = moment.replace(tzinfo=timezone(timedelta(minutes=minutes)))
    elapsed = moment - datetime(1970, 1, 1, tzinfo=UTC)
    assert timestamps.parse(moment.isoformat()) == elapsed // timedelta(microseconds=1) * 1000


@pytest.mark.parametrize(
    "text",
    [
        "", "x", "nan", "inf", "1_000", " 5", "5\n", "٥", "+5", ".5", "5.",
        "1e99999999999", "1718000000000", "-9223372036.854775809",
        "2024-06-10T06:13:20", "2024-06-10", "2024-13-10T00:00:00Z", "2024-06-10T25:00:00Z",
        "9999-01-01T00:00:00Z", "0000-01-01T00:00:00Z", "٢٠٢٤-06-10T06:13:20Z", "[1]",
    ],
)  # fmt: skip
def test_what_cannot_be_read_is_an_error(text: str) -> None:
    with pytest.raises((ValueError, ArithmeticError)):
        timestamps.parse(text)
