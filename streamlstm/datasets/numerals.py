"""How a file writes its numbers: with a decimal point or a comma, and with thousands set apart.

``1.016`` is little more than one or a thousand and sixteen, as the other numbers of its file show:
``1.016.233`` and ``1.016,5`` have points for thousands, ``0.016``, ``1016.2`` and ``1.5`` do not.
"""

import re
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from streamlstm.datasets.times import MISSING, DataError, Where

_OTHER = {".": ",", ",": "."}
_NAMES = {".": "point", ",": "comma"}
_SPACES = " \u00a0\u202f'\u2019"
"""What parts thousands whatever the decimal sign is: spaces and apostrophes."""


def _grammar(decimal: str) -> re.Pattern[str]:
    grouped = rf"[1-9][0-9]{{0,2}}([{_OTHER[decimal]}{_SPACES}])[0-9]{{3}}(?:\1[0-9]{{3}})*"
    plain = rf"(?:[0-9]+(?:[{decimal}][0-9]*)?|[{decimal}][0-9]+)(?:[eE][+-]?[0-9]+)?"
    return re.compile(rf"\s*[+-]?(?:{grouped}(?:[{decimal}][0-9]*)?|{plain})\s*")


_GRAMMARS = {decimal: _grammar(decimal) for decimal in _OTHER}
_PLAIN = {
    decimal: str.maketrans({other: None, decimal: "."} | dict.fromkeys(_SPACES))
    for decimal, other in _OTHER.items()
}


def plain(text: str, decimal: str) -> str | None:
    """A number with that decimal sign as ``float`` takes it; None: ``text`` is none."""
    if not _GRAMMARS[decimal].fullmatch(text):
        return None
    return text.strip().translate(_PLAIN[decimal])


def shown(text: str) -> str:
    """The decimal sign without which ``text`` is no number; "?" and the sign in it: either may be.

    Empty where it is none, or the same number either way.
    """
    point, comma = plain(text, "."), plain(text, ",")
    if point == comma:
        return ""
    if point is None or comma is None:
        return "," if point is None else "."
    return "?," if "," in text else "?."


def evident(texts: Sequence[str]) -> str:
    """The decimal sign that some of ``texts`` show and none belies; empty: none."""
    signs = {shown(text) for text in texts} & {".", ","}
    return signs.pop() if len(signs) == 1 else ""


def agrees(column: "pd.Series[Any]", decimal: str) -> bool:
    """Whether no text of the column has the other sign and may be a number."""
    return all(shown(text) in ("", decimal, f"?{decimal}") for text in column.dropna().unique())


def decimal_sign(
    columns: Sequence["pd.Series[Any]"], where: Where, otherwise: str, separator: str
) -> str:
    """The decimal sign of columns of texts: that which they show, else ``otherwise``, else theirs.

    Raises:
        DataError: some show one and some the other; or they may be thousands as well as decimals
            and have both signs, or the comma, where that is the ``separator`` too.
    """
    first: dict[str, tuple[int, str, str]] = {}
    for column in columns:
        codes, texts = pd.factorize(column)
        signs = np.array([*map(shown, texts), ""])[codes]  # of what is missing none
        for sign in np.unique(signs):
            row = int(np.argmax(signs == sign))
            here = row, str(column.iloc[row]), str(column.name)
            first[sign] = min(first.get(sign, here), here)
    if {".", ","} <= first.keys():
        before, after = sorted((".", ","), key=lambda sign: first[sign][0])
        row, text, name = first[after]
        line = where(first[before][0]).rpartition(", ")[2]
        raise DataError(
            f"{where(row)}: {text!r} in column {name!r} fits only a decimal {_NAMES[after]},"
            f" {first[before][1]!r} in {line} only a decimal {_NAMES[before]}; write all numbers"
            " alike"
        )
    for sign in (".", ","):
        if sign in first:
            return sign
    if otherwise:
        return otherwise
    if "?," in first and ("?." in first or separator == ","):
        row, text, name = first["?,"]
        raise DataError(
            f"{where(row)}: {text!r} in column {name!r} is {plain(text, '.')} or"
            f" {plain(text, ',')}, no other number shows which; write thousands without a comma"
        )
    return "," if "?," in first else "."


def rewritten(column: "pd.Series[Any]", decimal: str) -> "pd.Series[Any]":
    """Texts that are numbers with that decimal sign made plain, missing ones NaN; others stay."""
    codes, texts = pd.factorize(column)
    made = [None if text.strip() in MISSING else plain(text, decimal) or text for text in texts]
    return pd.Series(np.array([*made, None], object)[codes], column.index, name=column.name)


def grouped(column: "pd.Series[Any]", decimal: str) -> str:
    """The first text in which thousands are set apart; empty: there is none."""
    signs = re.compile(f"[0-9][{_OTHER[decimal]}{_SPACES}][0-9]")
    texts = pd.unique(column.dropna())
    return next((t for t in texts if signs.search(t) and plain(t, decimal)), "")
