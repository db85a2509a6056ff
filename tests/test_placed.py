"""What compiled code finds at an address is what Python wrote there."""

from typing import Any, NamedTuple

import numpy as np
from numba import njit, typeof

from streamlstm.memory import call_for_int, records, require
from streamlstm.placed import At, address_of_placed, placed, replace, rewrite, whole


class Pair(NamedTuple):
    first: np.ndarray
    second: np.ndarray


class Flags(NamedTuple):
    a: bool
    b: bool
    c: bool


class Held(NamedTuple):
    flag: bool
    small: np.int16
    numbers: np.ndarray
    share: float
    other: bool
    flags: Flags
    pair: Pair
    rest: tuple[float, tuple[int, bool]]
    apart: Pair
    last: int


def held(factor: float = 1.0) -> Held:
    """Arrays that are not contiguous; flags that leave gaps; of one kind and of several."""
    return Held(
        True,
        np.int16(-3),
        factor * np.arange(12.0).reshape(3, 4)[::2, 1:],
        0.5,
        False,
        Flags(False, True, False),
        Pair(np.arange(4)[1:], np.arange(2)),
        (0.25, (1 << 40, True)),
        placed(Pair(np.arange(3, dtype=np.uint8), np.zeros((0, 2), np.float32))),
        -(1 << 62),
    )


@njit
def look(at: Held) -> Any:
    flags, pair, apart = at.flags, at.pair, at.apart
    return (
        (at.flag, at.small, at.share, at.other, flags.a, flags.b, flags.c, at.rest, at.last),
        (at.numbers[0, 0], at.numbers[1, 2], len(at.numbers), at.numbers.shape[1]),
        (pair.first[2], len(pair.second), apart.first[2], apart.second.shape[1]),
    )


WANTED = (
    (True, -3, 0.5, False, False, True, False, (0.25, (1 << 40, True)), -(1 << 62)),
    (1.0, 11.0, 2, 3),
    (3, 2, 2, 2),
)


def test_every_member_is_found() -> None:
    assert look(placed(held())) == WANTED


def test_so_is_the_whole() -> None:
    flags = njit(lambda at: whole(at.flags))
    assert flags(placed(held())) == held().flags
    first, second = njit(lambda at: (whole(at.pair).first[1], whole(at.apart).first[1]))(
        placed(held())
    )
    assert (first, second) == (2, 1)


def test_the_arrays_are_the_very_ones() -> None:
    value = held()

    @njit
    def write(at: Held) -> None:
        at.numbers[1, 1] = 7.0
        at.apart.first[0] = 9

    write(placed(value))
    assert value.numbers[1, 1] == 7.0
    assert value.apart.first[0] == 9


def test_in_python_it_is_what_it_was() -> None:
    value = held()
    at = placed(value)
    assert at.numbers is value.numbers
    assert at.pair is value.pair
    assert at._replace(last=1).last == 1


def test_it_is_called_by_its_address() -> None:
    value = placed(held())
    last = njit(lambda at: at.last)
    code = require(last, value)
    call = njit(lambda code, at: call_for_int(code, at))
    assert call(code, address_of_placed(value)) == -(1 << 62)


def test_another_is_written_over_it() -> None:
    two = placed(Pair(np.arange(3), np.arange(2)))
    njit(lambda address, value: replace(address, value))(
        address_of_placed(two), Pair(np.arange(9)[1:], np.arange(1))
    )
    assert njit(lambda at: (at.first[4], len(at.second)))(two) == (5, 1)


def test_members_are_replaced_for_both() -> None:
    value = placed(held())
    rewrite(value, last=5, numbers=np.full((2, 3), 4.0)[:, ::-1], flags=Flags(True, False, True))
    numbers = value.numbers
    assert (value.last, numbers[0, 0], value._replace(share=0.0).last) == (5, 4.0, 5)
    (_, _, _, _, *flags, rest, last), (first, *_), _ = look(value)
    assert (flags, rest, last, first) == ([True, False, True], held().rest, 5, 4.0)
    assert (value.flag, value.share) == (True, 0.5)


def test_what_lies_otherwise_is_of_another_type() -> None:
    one, same, other = held(), held(2.0), held()._replace(numbers=np.zeros((2, 3), np.float32))
    assert typeof(placed(one)) == typeof(placed(same)) == At(typeof(one))
    assert typeof(placed(one)) != typeof(placed(other))
    assert look(placed(same))[1] == (2.0, 22.0, 2, 3)


def test_fields_of_records_are_of_one_type_whatever_their_lengths() -> None:
    """Numpy calls contiguous what has no elements, or no other field beside it."""

    def kind(n: int, k: int) -> Any:
        fields = records({"first": (np.int64, ()), "second": (np.float32, (k, 2))}, n)
        return typeof(placed(Pair(**fields)))

    assert kind(9, 0) == kind(9, 1) == kind(9, 3) == kind(1, 3) == kind(1, 0)
    whole_records = records({"first": (np.int64, ())}, 9)["first"].base
    assert whole_records is not None
    of_their_bytes = placed(Pair(whole_records.view(np.uint8).reshape(9, 8), np.arange(3)))
    assert [each.layout for each in typeof(of_their_bytes).of.types] == ["C", "C"]
