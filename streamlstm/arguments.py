"""What arguments of the command line may say."""

import argparse
import re
from typing import Any


def table(text: str) -> str:
    """A CSV or Parquet file, or the name of a bundled series."""
    return text


def count(text: str) -> int:
    """A whole number, 0 or more."""
    if not (text.isascii() and text.isdigit()):
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number, 0 or more")
    return int(text)


def number(text: str) -> int:
    """A whole number, 1 or more."""
    if not (text.isascii() and text.isdigit() and int(text)):
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number, 1 or more")
    return int(text)


def names(text: str) -> tuple[str, ...]:
    """Names with commas between them."""
    return tuple(dict.fromkeys(name.strip() for name in text.split(",") if name.strip()))


class Joined(argparse.Action):
    """Names with commas between them; said again, it adds to those of before."""

    def __call__(self, parser: Any, space: Any, said: Any, option: str | None = None) -> None:
        """Called by argparse."""
        before = getattr(space, self.dest)
        setattr(space, self.dest, f"{before},{said}" if before else said)


def share(text: str) -> float:
    """From 0 to less than 1."""
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a share from 0 to less than 1")
    return value


def part(text: str) -> float:
    """Above 0 and less than 1."""
    if not (value := share(text)):
        raise argparse.ArgumentTypeError(f"{text!r} is not a share above 0 and less than 1")
    return value


def parts(text: str) -> tuple[float, ...]:
    """Shares above 0 with commas between them; none of them by name."""
    return () if text in ("", "none") else tuple(map(part, text.split(",")))


def seconds(text: str) -> float:
    """A number of seconds, 0 or more."""
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value <= 1e6:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of seconds, 0 or more")
    return value


def duration(text: str) -> float:
    """A time above 0, in seconds: as 90, 90s, 5m or 1h."""
    found = re.fullmatch(r"(\d+(?:\.\d*)?)([smh]?)", text)
    seconds = float(found[1]) * {"m": 60, "h": 3600}.get(found[2], 1) if found else 0.0
    if not seconds:
        raise argparse.ArgumentTypeError(f"{text!r} is not a time above 0; write 90, 90s, 5m or 1h")
    return seconds


def speed(text: str) -> float:
    """Times the pace of the timestamps; 0 for ``max``."""
    if text == "max":
        return 0.0
    try:
        value = float(text.removesuffix("x"))
    except ValueError:
        value = 0.0
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text!r} is neither a number above 0 nor 'max'")
    return value
