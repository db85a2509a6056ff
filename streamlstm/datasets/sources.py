"""What a table is read from: a CSV file whose dialect is recognised, a Parquet file, a frame.

A file is read once from its beginning to its end, so that a pipe will do. What it is shows in its
first bytes, whatever it is called.
"""

import codecs
import csv
import gzip
import io
import re
import warnings
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from pandas.api.types import infer_dtype, is_numeric_dtype

from streamlstm.datasets.numerals import (
    agrees,
    decimal_sign,
    evident,
    grouped,
    plain,
    rewritten,
    shown,
)
from streamlstm.datasets.times import MISSING, DataError, Where, is_date, is_number

_OTHER_FILES = (
    (b"ARROW1", "a Feather (Arrow) file; write it as Parquet"),
    (b"FEA1", "a Feather file; write it as Parquet"),
    (b"PK\x03\x04", "an Excel file (.xlsx) or a zip archive; save its sheet as CSV, or unpack it"),
    (b"\xd0\xcf\x11\xe0", "an Excel file (.xls); save its sheet as CSV"),
    (b"BZh", "compressed by bzip2; unpack it, or compress it by gzip"),
    (b"\xfd7zXZ", "compressed by xz; unpack it, or compress it by gzip"),
    (b"\x28\xb5\x2f\xfd", "compressed by Zstandard; unpack it, or compress it by gzip"),
    (b"\x89HDF", "an HDF5 file; write it as CSV or Parquet"),
    (b"SQLite format 3", "an SQLite database; write its table as CSV"),
    (b"<!DOCTYPE", "a web page; download the file that it shows"),
    (b"<html", "a web page; download the file that it shows"),
    (b"{", "JSON; write it as CSV or Parquet"),
    (b"[{", "JSON; write it as CSV or Parquet"),
)
"""First bytes of what people give in place of a CSV file, what it is, and the mend."""
_SEPARATOR = re.compile(rb'"?sep=([\t -~])"?[ \t]*\r?\n', re.IGNORECASE)
"""The first line by which Excel is told how columns are separated."""
_TRUTHS = {"True": "1", "TRUE": "1", "true": "1", "False": "0", "FALSE": "0", "false": "0"}


def source_of(path: Path) -> "Csv | Frame":
    """What is in a file, which may be a pipe.

    Raises:
        DataError: it is missing, damaged, empty, or no table.
    """
    data = _content(path)
    return Frame(_parquet(data, path), str(path)) if data[:4] == b"PAR1" else Csv(data, str(path))


class Csv:
    """A CSV file whose dialect has been recognised."""

    def __init__(self, data: bytes, label: str) -> None:
        self.label, self.notes = label, list[str]()
        self._bytes = _utf8(data, label)
        said = _SEPARATOR.match(self._bytes)
        self._skipped = 1 if said else 0
        first = self._bytes[said.end() if said else 0 :].split(b"\n", 1)[0]
        line = first.decode("utf-8", "replace")
        self._separator = said[1].decode() if said else max(";\t|,", key=line.count)
        try:
            fields = next(csv.reader([line.strip("\r")], delimiter=self._separator), [])
        except csv.Error as error:
            raise DataError(f"{label}: line 1 is not CSV ({error}); give a text file") from error
        if not fields:
            raise DataError(f"{label}: begins with an empty line; remove it")
        fields = [_number(field) for field in fields]
        self._names: list[str] | None = None
        dated = is_date(fields[0])
        if all(is_number(field) for field in fields[dated:]) and (len(fields) > 1 or not dated):
            values = len(fields) - dated
            self._names = ["ds"] * dated + (["y"] if values == 1 else [])
            self._names += [str(n + 1) for n in range(values)] if values > 1 else []
            self.notes.append(f"no header line: columns named {listed(self._names)}")
        if self._separator != "," and len(fields) > 1:
            self.notes.append(f"columns are separated by {self._separator!r}")
        self._texts = self._frame(nrows=20, dtype=str).fillna("")
        if self._texts.empty:
            raise DataError(f"{label}: has a header line but no rows; give a file with data")
        self.sample = self._texts.map(_number)

    def read(
        self, texts: Sequence[str], values: Sequence[str], static: Sequence[str] = ()
    ) -> tuple[pd.DataFrame, Where]:
        """Some of the columns, and what to call row ``i`` of them.

        Args:
            texts: columns that are read as they are.
            values: columns of numbers.
            static: columns of which some texts may be numbers.
        """
        options = {"usecols": [*texts, *static, *values]}
        others = self._texts.drop(columns=[*texts])  # columns not asked for show it as well
        sign = evident([text for name in others for text in others[name]])
        for decimal in sign or ".,".replace(self._separator, ""):  # fast, by the parser itself
            as_texts = dict.fromkeys([*texts, *static], str)
            frame = self._frame(values, decimal=decimal, dtype=as_texts, **options)
            agreed = all(agrees(frame[name], decimal) for name in static)
            if agreed and all(_is_read(frame[name]) for name in values):
                break
        else:
            decimal, frame = "", self._frame(values, dtype=str, **options)
            frame[[*values]] = frame[[*values]].replace(_TRUTHS)  # as the parser takes them
        blank = frame[list(values)].isna().all(axis=1)
        for name in (*texts, *static):
            blank &= frame[name].isna() | (frame[name] == "")
        if texts or static:  # an empty line is no row
            frame = frame[~blank]
        elif blank.any():  # but without timestamps it is a missing value, unless it ends the file
            frame = frame.iloc[: len(blank) - int(np.argmin(blank.to_numpy()[::-1]))]
        lines = frame.index.to_numpy() + self._skipped + (2 if self._names is None else 1)
        frame = frame.reset_index(drop=True)

        def where(row: int) -> str:
            return f"{self.label}, line {lines[row]}"

        written = [*static] if decimal else [*values, *static]
        if not decimal:
            columns = [frame[name] for name in written]
            decimal = decimal_sign(columns, where, sign, self._separator)
            if set_apart := next(filter(None, (grouped(each, decimal) for each in columns)), ""):
                number = plain(set_apart, decimal)
                self.notes.append(f"numbers such as {set_apart!r} are read as {number}")
        for name in written:
            frame[name] = rewritten(frame[name], decimal)
        if decimal == ",":
            self.notes.append("numbers are read with a decimal comma")
        texts = [text for name in values for text in self._texts[name]]
        alike = [text for text in texts if shown(text) == f"?{decimal}"]
        if alike and not sign and any(text.isdecimal() for text in texts):
            self.notes.append(
                f"numbers such as {alike[0]!r} are read as decimals; if they are thousands, write"
                " them without that sign"
            )
        return frame, where

    def _frame(self, values: Sequence[str] = (), **options: Any) -> pd.DataFrame:
        header = {"header": 0} if self._names is None else {"header": None, "names": self._names}
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("error", pd.errors.ParserWarning)
                warnings.simplefilter("ignore", pd.errors.DtypeWarning)
                return pd.read_csv(
                    io.BytesIO(self._bytes),
                    sep=self._separator,
                    encoding="utf-8",
                    index_col=False,
                    skiprows=self._skipped,
                    skip_blank_lines=False,
                    keep_default_na=False,
                    na_values=dict.fromkeys(values, MISSING),
                    **header,
                    **options,
                )
        except UnicodeDecodeError as error:
            line = _strange_line(self._bytes)
            raise DataError(
                f"{self.label}, line {line}: is not UTF-8 text; save the file as UTF-8 CSV"
            ) from error
        except pd.errors.ParserWarning as error:
            raise DataError(
                f"{self.label}: rows have more fields than the header has names; name each column,"
                " and if numbers have a decimal comma, separate columns by semicolons"
            ) from error
        except pd.errors.ParserError as error:
            what = str(error).removeprefix("Error tokenizing data. C error: ").strip()
            raise DataError(f"{self.label}: damaged CSV: {what}; mend that line") from error


class Frame:
    """A table that is in memory already."""

    def __init__(self, frame: pd.DataFrame, label: str) -> None:
        if frame.empty:
            raise DataError(f"{label}: has no rows; give a table with data")
        self.label, self.notes = label, list[str]()
        self._frame = _flat(frame)
        self.sample = self._frame.head(20)

    def read(
        self, texts: Sequence[str], values: Sequence[str], static: Sequence[str] = ()
    ) -> tuple[pd.DataFrame, Where]:
        """All columns, and what to call row ``i`` of them."""
        return self._frame, lambda row: f"{self.label}, row {row + 1}"


def listed(names: Sequence[str]) -> str:
    """Names in a message, not too many of them."""
    shown = ", ".join(names[:12])
    return shown if len(names) <= 12 else f"{shown} and {len(names) - 12} more"


def _strange_line(data: bytes) -> int:
    """The number of the first line that is not UTF-8; 0: all are."""
    try:
        data.decode()
    except UnicodeDecodeError as error:
        return data.count(b"\n", 0, error.start) + 1
    return 0


def _number(text: str) -> str:
    """The text, plain if it is a number with a decimal point, or else a comma."""
    return plain(text, ".") or plain(text, ",") or text


def _is_read(column: "pd.Series[Any]") -> bool:
    """Whether the parser took all that a column holds for numbers, or truths with gaps."""
    return is_numeric_dtype(column.dtype) or infer_dtype(column) == "boolean"


def _flat(frame: pd.DataFrame) -> pd.DataFrame:
    """The frame with its index as columns, where that says the time or the series."""
    index = frame.index
    if isinstance(index, pd.DatetimeIndex) and index.name is None:
        frame = frame.rename_axis("ds")
    named = isinstance(index, pd.DatetimeIndex) or {"ds", "unique_id"} & {*index.names}
    return frame.reset_index(drop=not named or bool({*frame.index.names} & {*frame.columns}))


def _parquet(data: bytes, path: Path) -> pd.DataFrame:
    try:
        return pd.read_parquet(io.BytesIO(data))
    except ImportError as error:
        raise DataError(
            f"{path}: Parquet needs pyarrow; pip install 'streamlstm[parquet]'"
        ) from error
    except (OSError, ValueError) as error:
        what = str(error).splitlines()[0]
        raise DataError(f"{path}: damaged Parquet file ({what}); copy it again") from error


def _content(path: Path) -> bytes:
    """All of a file, unpacked."""
    try:
        data = path.read_bytes()
    except FileNotFoundError as error:
        raise DataError(f"{path}: no such file; check the path") from error
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})") from error
    if data[:2] == b"\x1f\x8b":
        try:
            data = gzip.decompress(data)
        except (EOFError, OSError, zlib.error) as error:
            raise DataError(f"{path}: damaged gzip file ({error}); copy it again") from error
    if not data.strip():
        raise DataError(f"{path}: is empty; give a file with data")
    for begin, what in _OTHER_FILES:
        if data.startswith(begin):
            raise DataError(f"{path}: is {what}")
    if data[:3] == data[-4:-1] == b"ORC":
        raise DataError(f"{path}: is an ORC file; write it as Parquet")
    return data


def _utf8(data: bytes, label: str) -> bytes:
    """Text in UTF-8 without a byte order mark, from that or from UTF-16 with one."""
    if data[:2] in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE):
        try:
            data = data.decode("utf-16").encode()
        except UnicodeDecodeError as error:
            raise DataError(
                f"{label}: damaged UTF-16 text ({error.reason}); save it as UTF-8 CSV"
            ) from error
    data = data.removeprefix(codecs.BOM_UTF8)
    if (nul := data.find(b"\0")) >= 0:
        line = data.count(b"\n", 0, nul) + 1
        raise DataError(
            f"{label}: is not text, line {line} has a NUL byte; give UTF-8 CSV or Parquet"
        )
    return data
