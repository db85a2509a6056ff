"""Sound messages -> damaged ones, in compiled code; from the same seed, the same damage."""

from collections.abc import Sequence

import numpy as np
from numba import njit
from numpy.typing import NDArray

from streamlstm.ticks import FRAMES, Messages

LONGEST = 6144
"""Bytes of a frame at most."""
CHANGES, DRAWS = 6, 6
"""Changes of a message at most, and random numbers for each."""

Message = list[bytes]
"""Its frames."""

_EXTREME = np.array(
    [0, 1, -1, 2, 7, 8, 31, 32, 64, 127, 128, 255, 256, 1023, 1024, 4095, 4096, -128, -129]
    + [sign * (1 << bits) + by for bits in (15, 16, 31, 32, 53, 62) for by in (-1, 0, 1)
       for sign in (1, -1)] + [2**63 - 1, -(2**63), 0x7FF8 << 48, 0x7FF0 << 48, -(1 << 52)]
)  # fmt: skip
"""Integers at which something ends, and the bits of doubles that are none."""
_BYTES = np.frombuffer(b'\0\1\x7f\x80\xc2\xff"\\{}[]:,.-+eE019 \n/u', np.uint8)
_WORDS = [b"\xc3", b"\xe2\x82", b"\xed\xa0\x80", b"\xf4\x90\x80\x80", b"\xc0\x80", b"\xef\xbf\xbf"]
"""Halves of characters, and what is none."""


class Mutator:
    """Batches of damaged messages; batch ``k`` is the same whichever were made before it."""

    def __init__(self, seeds: Sequence[Message], tokens: Sequence[bytes], seed: int) -> None:
        """Begin from ``seeds``, of at most ``FRAMES`` frames each; ``tokens`` are put in."""
        self._pool = Messages.of([[frame[:LONGEST] for frame in seed] for seed in seeds])
        self._tokens = Messages.of([[token] for token in (*tokens, *_WORDS)])
        self._seed = seed

    def batch(self, number: int, count: int) -> Messages:
        """``count`` messages."""
        random = np.random.default_rng([self._seed, number])
        draws = random.integers(0, 1 << 62, (count, 4 + CHANGES * DRAWS))
        out = Messages.room(count, count * 2 * LONGEST)
        _mutate(self._pool, self._tokens, draws, out, *np.zeros((2, LONGEST), np.uint8))
        return out

    def messages(self, number: int, count: int) -> list[Message]:
        """The same, one by one."""
        out = self.batch(number, count)
        return [out.message(m) for m in range(count)]


# --- compiled -------------------------------------------------------------------------------------


@njit(cache=True, error_model="numpy", _nrt=False)
def _mutate(
    pool: Messages,
    tokens: Messages,
    draws: NDArray[np.int64],
    out: Messages,
    room: NDArray[np.uint8],
    spare: NDArray[np.uint8],
) -> None:
    at, frame = 0, 0
    for m in range(len(draws)):
        which = draws[m, 0] % (len(pool.first) - 1)
        begin, end = pool.first[which], pool.first[which + 1]
        # most messages have one or two changes, a few none, and most of these are in the last frame
        changes, left = 0 if draws[m, 1] % 61 == 0 else 1, draws[m, 1] // 61
        while left & 1 and changes < CHANGES:
            changes, left = changes + 1, left >> 1
        damaged = end - 1 if draws[m, 2] % 4 else begin + draws[m, 2] // 4 % (end - begin)
        cut = 1 if draws[m, 3] % 150 == 0 and end - begin > 1 else 0
        for f in range(begin + cut, end):
            length = _put(room, 0, pool.data, pool.frames[f], pool.frames[f + 1])
            if f == damaged:
                for k in range(changes):
                    length = _change(room, length, pool, tokens, draws, m, 4 + DRAWS * k, spare)
            if at + length <= len(out.data):
                at = _put(out.data, at, room, 0, length)
            frame += 1
            out.frames[frame] = at
        if draws[m, 3] % 151 == 0 and end - begin < FRAMES:
            frame += 1
            out.frames[frame] = at
        out.first[m + 1] = frame


@njit(cache=True, _nrt=False)
def _put(to: NDArray[np.uint8], at: int, source: NDArray[np.uint8], begin: int, end: int) -> int:
    """Copy bytes, which may not overlap but towards the begin; the next place."""
    for k in range(begin, end):
        to[at] = source[k]
        at += 1
    return at


@njit(cache=True, error_model="numpy", _nrt=False)
def _change(
    room: NDArray[np.uint8],
    length: int,
    pool: Messages,
    tokens: Messages,
    draws: NDArray[np.int64],
    m: int,
    first: int,
    spare: NDArray[np.uint8],
) -> int:
    """Change a frame in one way, as the numbers from ``draws[m, first]`` on say; its length."""
    way, at = draws[m, first] % 16, draws[m, first + 1] % (length + 1)
    a, b, c, rare = (
        draws[m, first + 2], draws[m, first + 3], draws[m, first + 4], draws[m, first + 5],
    )  # fmt: skip
    left = length - at
    if way == 5:
        return at if a % 4 == 0 else max(0, length - a % 12)
    if way == 6:  # less of it
        gone = min(left, a % (9 if b % 4 else length + 1))
        return _put(room, at, room, at + gone, length)
    if way <= 8:
        if way >= 7:
            _put_number(room, at, min(1 << a % 4, left), length, b, c, way == 7)
        elif left:
            _change_byte(room, at, length, way, a, b)
        return length
    # all others put something in, or over what is there
    _put(spare, 0, room, 0, length)
    source, begin, end = spare, 0, 0
    if way <= 11:
        t = a % (len(tokens.first) - 1)
        source, begin, end = tokens.data, tokens.frames[t], tokens.frames[t + 1]
    elif way == 12 and length:  # of itself
        begin = a % length
        end = min(length, begin + 1 + b % 32)
    elif pool.first[-1]:
        f = a % pool.first[-1]
        source, begin, end = pool.data, pool.frames[f], pool.frames[f + 1]
        if end > begin:
            begin += b % (end - begin)
        if way != 13:
            end = min(end, begin + 1 + c % 16)
    size, many, tail = end - begin, 1, at
    if way == 11:
        tail = min(length, at + size)
    elif way == 13:  # and nothing after it
        tail = length
    if rare % 16 == 0:
        many = 1 + c % (LONGEST if rare % 512 == 0 else 40)
    for _ in range(many):
        if at + size <= LONGEST:
            at = _put(room, at, source, begin, end)
    return _put(room, at, spare, tail, min(length, tail + LONGEST - at))


@njit(cache=True, error_model="numpy", _nrt=False)
def _change_byte(room: NDArray[np.uint8], at: int, length: int, way: int, a: int, b: int) -> None:
    if way == 0:
        room[at] ^= np.uint8(1 << a % 8)
    elif way == 1:
        room[at] = a & 0xFF
    elif way == 2:
        room[at] = _BYTES[a % len(_BYTES)]
    else:  # digits stay digits, letters letters
        while at < length and not (48 <= room[at] < 58 or (97 <= room[at] < 123 and b % 8 == 0)):
            at += 1
        if at < length:
            room[at] = 48 + a % 10 if room[at] < 58 else 97 + a % 26


@njit(cache=True, error_model="numpy", _nrt=False)
def _put_number(
    room: NDArray[np.uint8], at: int, width: int, length: int, a: int, b: int, little: bool
) -> None:
    """Write an integer at which something ends, or about the length of the frame."""
    number = _EXTREME[a % len(_EXTREME)] if b % 4 else length + a % 9 - 4
    for k in range(width):
        room[at + k] = number >> (8 * (k if little else width - 1 - k)) & 0xFF
