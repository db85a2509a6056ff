"""Decimal text <-> float64 and int64 in compiled code: JSON numbers (RFC 8259) in byte arrays.

What is read is the float64 nearest to the text (ties to even), what is written is the shortest
decimal that reads back as the same float64; neither calls a library or makes an object. Arrays are
of uint8 and contiguous.

Both directions are one product of an integer with a 128-bit power of ten. Reading follows Clinger
(1990), "How to read floating point numbers accurately", where float64 arithmetic is exact, else
Lemire (2021), "Number parsing at a gigabyte per second"; writing follows Giulietti (2020), "The
Schubfach way to render doubles". Digits are taken eight at a time, as the bytes of a uint64 (least
significant first, as all of Numba's hosts keep them).
"""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic
from numpy.typing import NDArray

from streamlstm.jit import emitted, njit

Bytes = NDArray[np.uint8]

MALFORMED, UNDECIDED, NUMBER, INTEGER = range(4)
"""What a text was: no number; one that is read elsewhere; a number; one that is also an int64."""

WIDEST, WIDEST_INT = 24, 20
"""The most bytes that `write` and `write_int` touch: -2.2250738585072014e-308 and -2^63."""

U = np.uint64
_ZEROS = U(int.from_bytes(b"00000000", "little"))
_NULL = U(int.from_bytes(b"null", "little"))
_TEN_8, _TEN_16 = U(10**8), U(10**16)
_TENS = np.array([10**n for n in range(20)], U)
_EXACT_TENS = 10.0 ** np.arange(23)  # all the powers of ten that are float64
_MINUS, _POINT, _ZERO, _NINE, _E, _LARGE_E, _PLUS = b"-.09eE+"
_LOWEST, _HIGHEST = -326, 324  # the first at which 19 digits are normal; the last written with


def _powers() -> NDArray[np.uint64]:
    """(high, low) words of 10^n / 2^m, rounded up to an integer of exactly 128 bits, for each n."""
    table = np.empty((_HIGHEST - _LOWEST + 1, 2), U)
    for row, n in enumerate(range(_LOWEST, _HIGHEST + 1)):
        above, below = 10 ** max(n, 0), 10 ** max(-n, 0)
        shift = 127 - (n * 1741647 >> 19)
        significand = -((above << max(shift, 0)) // -(below << max(-shift, 0)))
        table[row] = significand >> 64, significand & (2**64 - 1)
    return table


_POWERS = _powers()

# --- words ----------------------------------------------------------------------------------------

_WORD = ir.IntType(64)
_WIDE = ir.IntType(128)


def _pointer(context: Any, builder: Any, kind: Any, array: Any, at: Any) -> Any:
    """uint64* of the bytes from element `at` on."""
    data = context.make_array(kind)(context, builder, array).data
    return builder.bitcast(builder.gep(data, [at]), _WORD.as_pointer())


@intrinsic
def _load(typing: Any, data: Any, at: Any) -> Any:
    """_load(data, at) -> the eight bytes from element `at` on as a word."""

    def generate(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        return builder.load(_pointer(context, builder, data, *args), align=1)

    return types.uint64(data, types.intp), generate


@intrinsic
def _store(typing: Any, data: Any, at: Any, word: Any) -> Any:
    """_store(data, at, word): the eight bytes from element `at` on."""

    def generate(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        builder.store(args[2], _pointer(context, builder, data, *args[:2]), align=1)
        return context.get_dummy_value()

    return types.void(data, types.intp, types.uint64), generate


@emitted(types.int64, types.uint64)
def _leading_zeros(builder: Any, word: Any) -> Any:
    return builder.ctlz(word, ir.Constant(ir.IntType(1), 0))


@emitted(types.int64, types.uint64)
def _trailing_zeros(builder: Any, word: Any) -> Any:
    return builder.cttz(word, ir.Constant(ir.IntType(1), 0))


@emitted(types.int64, types.uint64)
def _signed(_: Any, word: Any) -> Any:
    return word


@emitted(types.uint64, types.float64)
def _bits(builder: Any, value: Any) -> Any:
    return builder.bitcast(value, _WORD)


@emitted(types.float64, types.uint64)
def _double(builder: Any, bits: Any) -> Any:
    return builder.bitcast(bits, ir.DoubleType())


@intrinsic
def _product(typing: Any, factor: Any, high: Any, low: Any) -> Any:
    """_product(factor, high, low) -> the upper two of the three words of factor * (high:low)."""
    words = types.UniTuple(types.uint64, 2)

    def generate(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        factor, high, low = (builder.zext(arg, _WIDE) for arg in args)
        sixty_four = ir.Constant(_WIDE, 64)
        carried = builder.lshr(builder.mul(factor, low), sixty_four)
        whole = builder.add(builder.mul(factor, high), carried)
        upper = builder.trunc(builder.lshr(whole, sixty_four), _WORD)
        return context.make_tuple(builder, words, [upper, builder.trunc(whole, _WORD)])

    return words(types.uint64, types.uint64, types.uint64), generate


@njit(cache=True, error_model="numpy", _nrt=False)
def _floor_log2_of_ten_to(n: int) -> int:
    return n * 1741647 >> 19  # for |n| <= 1233


# --- reading --------------------------------------------------------------------------------------


@njit(cache=True, error_model="numpy", _nrt=False)
def _digits(data: Bytes, at: int, end: int, number: np.uint64) -> tuple[np.uint64, int]:
    """(the number with the digits from `at` on appended, modulo 2^64; the place after them)."""
    while at + 8 <= end:
        word = _load(data, at)
        # a byte below "0" borrows, one above "9" carries: the lowest mark is the first such byte
        stray = ((word + U(0x4646464646464646)) | (word - _ZEROS)) & U(0x8080808080808080)
        count = _trailing_zeros(stray) >> 3
        if count == 0:
            return number, at
        word = (word & U(0x0F0F0F0F0F0F0F0F)) << U(64 - 8 * count)
        word = (word * U(10) + (word >> U(8))) & U(0x00FF00FF00FF00FF)
        word = (word * U(100) + (word >> U(16))) & U(0x0000FFFF0000FFFF)
        word = (word * U(10000) + (word >> U(32))) & U(0x00000000FFFFFFFF)
        number = number * _TENS[count] + word
        at += count
        if count < 8:
            return number, at
    while at < end and _ZERO <= data[at] <= _NINE:
        number = number * U(10) + U(data[at] - _ZERO)
        at += 1
    return number, at


@njit(cache=True, error_model="numpy", _nrt=False)
def _exponent(data: Bytes, at: int, end: int) -> tuple[int, int]:
    """The exponent whose "e" is at `at`, cut at +-10^15, and the place after it (-1: malformed)."""
    at += 1
    negative = at < end and data[at] == _MINUS
    if negative or (at < end and data[at] == _PLUS):
        at += 1
    first, exponent = at, 0
    while at < end and _ZERO <= data[at] <= _NINE:
        exponent = min(10 * exponent + data[at] - _ZERO, 10**15)  # no text has as many zeros
        at += 1
    return -exponent if negative else exponent, at if at > first else -1


@njit(cache=True, error_model="numpy", _nrt=False)
def _nearest(significand: np.uint64, exponent: int) -> tuple[float, bool]:
    """(significand * 10^exponent rounded; whether that is decided), with 0 < significand < 10^19.

    Undecided: too near to halfway, below the normal float64, above the largest.
    """
    if significand < U(2**53) and -22 <= exponent <= 22:
        value: float = np.float64(_signed(significand))
        if exponent < 0:
            return value / _EXACT_TENS[-exponent], True
        return value * _EXACT_TENS[exponent], True
    if not _LOWEST <= exponent <= 308:
        return 0.0, False
    zeros = _leading_zeros(significand)
    row = exponent - _LOWEST
    high, low = _product(significand << U(zeros), _POWERS[row, 0], _POWERS[row, 1])
    top = _signed(high >> U(63))
    drop = U(9 + top)
    mantissa = high >> drop  # 54 bits: what is kept, and whether at least half was cut
    # The table is rounded up by less than one, so the exact product is within +-1 of (high:low),
    # and on the same side of halfway unless (high:low) is halfway itself. Then it is exactly so
    # where the powers of five allow that, for then it could not be this near to it otherwise.
    if mantissa & U(1) and low == U(0) and mantissa << drop == high:
        if not -4 <= exponent <= 23:
            return 0.0, False
        mantissa -= (mantissa >> U(1) & U(1)) ^ U(1)  # down where the bit above is even
    mantissa = (mantissa + U(1)) >> U(1)
    biased = _floor_log2_of_ten_to(exponent) + 63 + top - zeros + 1023
    biased += _signed(mantissa >> U(53))  # rounded up to a power of two: its lower bits are 0
    if not 0 < biased < 2047:
        return 0.0, False
    return _double((mantissa & U(2**52 - 1)) | (U(biased) << U(52))), True


@njit(cache=True, error_model="numpy", _nrt=False)
def read(data: Bytes, at: int, end: int) -> tuple[int, float, int, int]:
    """(what it was, value, value as int64 where INTEGER, next place) of the number at data[at].

    It ends before the first byte that does not belong to it, or at `end`. UNDECIDED: a number,
    complete at the next place, that this does not round: of more than 19 significant digits, below
    the normal float64, above the largest, or too near to halfway between two. Where MALFORMED, the
    place says nothing.
    """
    negative = at < end and data[at] == _MINUS
    at += negative
    if at >= end or not _ZERO <= data[at] <= _NINE:
        return MALFORMED, 0.0, 0, at
    first = at
    significand = U(0)
    if data[at] == _ZERO:  # no digit may follow
        at += 1
        first = at
    else:
        significand, at = _digits(data, at, end, significand)
    count = at - first
    exponent = 0
    whole = True
    if at < end and data[at] == _POINT:
        whole = False
        point = at + 1
        at = point
        if count == 0:  # zeros before the first other digit do not count
            while at < end and data[at] == _ZERO:
                at += 1
        first = at
        significand, at = _digits(data, at, end, significand)
        if at == point:
            return MALFORMED, 0.0, 0, at
        count += at - first
        exponent = point - at
    if at < end and (data[at] == _E or data[at] == _LARGE_E):
        whole = False
        written, at = _exponent(data, at, end)
        if at < 0:
            return MALFORMED, 0.0, 0, end
        exponent += written
    if count > 19:
        return UNDECIDED, 0.0, 0, at
    if whole and significand < U(2**63) + U(negative):
        integer = _signed(significand)  # -2^63 wraps to itself
        value: float = np.float64(significand)
        return INTEGER, -value if negative else value, -integer if negative else integer, at
    value, decided = 0.0, True
    if significand != U(0):
        value, decided = _nearest(significand, exponent)
    return NUMBER if decided else UNDECIDED, -value if negative else value, 0, at


@njit(cache=True, error_model="numpy", _nrt=False)
def read_seconds(data: Bytes, at: int, end: int) -> tuple[int, int, int]:
    """(what it was, nanoseconds where NUMBER, next place) of decimal seconds at data[at].

    Digits beyond the ninth after the point are cut. UNDECIDED: a number, complete at the next
    place, with an exponent or of 9,223,372,036 seconds or more either way.
    """
    negative = at < end and data[at] == _MINUS
    at += negative
    if at >= end or not _ZERO <= data[at] <= _NINE:
        return MALFORMED, 0, at
    first = at
    whole = U(0)
    if data[at] == _ZERO:
        at += 1
    else:
        whole, at = _digits(data, at, end, whole)
    decided = at - first <= 10 and whole < U(9_223_372_036)
    nanos = U(0)
    if at < end and data[at] == _POINT:
        point = at + 1
        nanos, at = _digits(data, point, min(end, point + 9), nanos)
        if at == point:
            return MALFORMED, 0, at
        nanos *= _TENS[point + 9 - at]
        while at < end and _ZERO <= data[at] <= _NINE:
            at += 1
    if at < end and (data[at] == _E or data[at] == _LARGE_E):
        _, at = _exponent(data, at, end)
        if at < 0:
            return MALFORMED, 0, end
        decided = False
    if not decided:
        return UNDECIDED, 0, at
    ns = _signed(whole * U(10**9) + nanos)
    return NUMBER, -ns if negative else ns, at


# --- writing --------------------------------------------------------------------------------------


@njit(cache=True, error_model="numpy", _nrt=False)
def _eight(number: np.uint64) -> np.uint64:
    """The eight digits of a number below 10^8, as bytes 0 to 9, the first digit lowest."""
    word = number // U(10000)
    word |= (number - word * U(10000)) << U(32)
    hundreds = (word * U(5243) >> U(19)) & U(0x0000007F0000007F)
    word = hundreds | (word - hundreds * U(100)) << U(16)
    tens = (word * U(103) >> U(10)) & U(0x000F000F000F000F)
    return tens | (word - tens * U(10)) << U(8)


@njit(cache=True, error_model="numpy", _nrt=False)
def _with_point(word: np.uint64, before: int) -> np.uint64:
    """The first seven bytes of a word, with a point after as many of them."""
    point = U(8 * before)
    front = word & ((U(1) << point) - U(1))
    return front | (U(_POINT) << point) | ((word - front) << U(8))


@njit(cache=True, error_model="numpy", _nrt=False)
def _to_odd(factor: np.uint64, row: int) -> np.uint64:
    """factor * power / 2^128, rounded to odd: cut, the last bit set where anything was lost."""
    high, low = _product(factor, _POWERS[row, 0], _POWERS[row, 1])
    return high | U(low != U(0))


@njit(cache=True, error_model="numpy", _nrt=False)
def _shortest(bits: np.uint64) -> tuple[np.uint64, int]:
    """(digits, exponent) of the shortest decimal digits * 10^exponent within the rounding interval.

    bits: of a finite float64 above 0. Of equally short ones it is the closest. Figure 7 of the
    paper, with the power of ten of 128 instead of 126 bits.
    """
    mantissa = bits & U(2**52 - 1)
    biased = _signed(bits >> U(52))
    significand = mantissa | U(2**52) if biased else mantissa
    binary = max(biased, 1) - 1075
    odd = significand & U(1)  # then the ends of the interval round elsewhere
    # below a power of two the float64 lie closer
    narrow = mantissa == U(0) and biased > 1
    exponent = (binary * 1262611 - (524031 if narrow else 0)) >> 22
    shift = U(binary + _floor_log2_of_ten_to(-exponent) + 1)
    row = -exponent - _LOWEST
    # four times the value and the ends, in units of 10^exponent
    middle = _to_odd(significand << U(2) << shift, row)
    lower = _to_odd(((significand << U(2)) - U(1 if narrow else 2)) << shift, row) + odd
    upper = _to_odd(((significand << U(2)) + U(2)) << shift, row) - odd
    below = middle >> U(2)
    if below >= U(10):  # one digit fewer?
        tens = below // U(10)
        down, up = lower <= U(40) * tens, U(40) * tens + U(40) <= upper
        if down != up:
            return tens + U(up), exponent + 1
    down, up = lower <= U(4) * below, U(4) * below + U(4) <= upper
    if down == up:
        half = U(4) * below + U(2)
        up = middle > half or (middle == half and below & U(1) == U(1))
    return below + U(up), exponent


@njit(cache=True, error_model="numpy", _nrt=False)
def write(data: Bytes, at: int, value: float) -> int:
    """Write the shortest decimal of a float64 at data[at], of equally short ones the closest.

    Plain from 0.00001 to below 1e16 (0.1, 100.0), else as 1.5e300 or 1e-7; no number: `null`. So
    does msgspec. Returns the next place; up to WIDEST bytes are touched.
    """
    bits = _bits(value)
    if bits >> U(52) & U(0x7FF) == U(0x7FF):
        _store(data, at, _NULL)
        return at + 4
    data[at] = _MINUS  # a digit overwrites it where there is no sign: cheaper than a branch
    at += _signed(bits >> U(63))
    bits &= U(2**63 - 1)
    number, exponent = U(0), 1
    if bits:
        number, exponent = _shortest(bits)
    length = ((64 - _leading_zeros(number)) * 1233) >> 12
    length += number >= _TENS[length]
    exponent += length - 1  # of the first digit
    number *= _TENS[17 - length]
    first = number // _TEN_16
    number -= first * _TEN_16
    second = number // _TEN_8
    third = _eight(number - second * _TEN_8)
    second = _eight(second)
    count = 17 - (_leading_zeros(third) >> 3)
    if third == U(0):
        count -= _leading_zeros(second) >> 3
    second += _ZEROS
    third += _ZEROS
    plain = -5 <= exponent < 16
    if plain and exponent < 0:
        _store(data, at, _ZEROS)
        data[at + 1] = _POINT
        at += 1 - exponent
        data[at] = U(_ZERO) + first
        _store(data, at + 1, second)
        _store(data, at + 9, third)
        return at + count
    before = exponent if plain else 0  # digits before the point, beside the first
    data[at] = U(_ZERO) + first
    _store(data, at + 10, third)
    if before < 8:
        data[at + 9] = second >> U(56)
        _store(data, at + 1, _with_point(second, before))
    else:
        _store(data, at + 1, second)
        _store(data, at + 9, _with_point(third, before - 8))
    if plain:
        return at + 1 + max(count, exponent + 2)
    at += 1 + count if count > 1 else 1
    data[at] = _E
    at += 1
    if exponent < 0:
        data[at] = _MINUS
        at += 1
        exponent = -exponent
    if exponent >= 100:
        data[at] = _ZERO + exponent // 100
        at += 1
    if exponent >= 10:
        data[at] = _ZERO + exponent // 10 % 10
        at += 1
    data[at] = _ZERO + exponent % 10
    return at + 1


@njit(cache=True, error_model="numpy", _nrt=False)
def write_int(data: Bytes, at: int, value: int) -> int:
    """Write an int64 at data[at]. Returns the next place; up to WIDEST_INT bytes are touched."""
    number = U(value)
    if value < 0:
        data[at] = _MINUS
        at += 1
        number = U(0) - number
    more = 0  # words of eight digits after the leading one
    leading = number
    while leading >= _TEN_8:
        leading //= _TEN_8
        more += 1
    word = _eight(leading)
    zeros = min(_trailing_zeros(word) >> 3, 7)  # at the front; a lone 0 is written
    _store(data, at, (word + _ZEROS) >> U(8 * zeros))
    at += 8 - zeros
    if more == 2:
        _store(data, at, _eight(number // _TEN_8 % _TEN_8) + _ZEROS)
        at += 8
    if more:
        _store(data, at, _eight(number % _TEN_8) + _ZEROS)
        at += 8
    return at
