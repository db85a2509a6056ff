"""What a table may be read from, and what is said of a file that is none."""

import bz2
import codecs
import gzip
import io
import lzma
import os
import sqlite3
import subprocess
import sys
import threading
import zipfile
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from streamlstm.datasets.frames import DataError, Table, read_table

TEXT = "ds;y\n2024-01-01;1,5\n2024-01-02;2\n"


def read(folder: Path, data: bytes, name: str = "t.csv") -> Table:
    (folder / name).write_bytes(data)
    return read_table(folder / name)


def refusal(folder: Path, data: bytes) -> str:
    with pytest.raises(DataError) as caught:
        read(folder, data)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def numbers(table: Table) -> list[float]:
    found: list[float] = table.series[0].values[:, 0].tolist()
    return found


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16-le", "utf-16-be"])
@pytest.mark.parametrize("begin", ["", "sep=;\n", "SEP=;\r\n", '"sep=;"\n'])
def test_what_excel_writes_is_read(tmp_path: Path, encoding: str, begin: str) -> None:
    mark = "" if encoding.startswith("utf-8") else "\ufeff"
    assert numbers(read(tmp_path, (mark + begin + TEXT).encode(encoding))) == [1.5, 2]


def test_the_separator_may_be_any_that_is_said(tmp_path: Path) -> None:
    for sign in "\t,:~":
        text = TEXT.replace(",", ".").replace(";", sign)
        assert numbers(read(tmp_path, f"sep={sign}\n{text}".encode())) == [1.5, 2]


def test_lines_are_counted_from_that_which_says_it(tmp_path: Path) -> None:
    assert "line 4: 'x'" in refusal(tmp_path, b"sep=;\n" + TEXT.replace("2\n", "x\n").encode())
    assert "line 4" in refusal(tmp_path, b"sep=;\n" + TEXT.replace("2\n", "2;3\n").encode())
    headless = b"sep=;\n2024-01-01;1\n2024-01-02;x\n"
    assert "line 3: 'x'" in refusal(tmp_path, headless)


def test_a_pipe_is_read_once(tmp_path: Path) -> None:
    pytest.importorskip("pyarrow", reason="pyarrow is not installed")
    frame = pd.DataFrame({"ds": pd.date_range("2024-01-01", periods=2), "y": [1.5, 2.0]})
    held = io.BytesIO()
    frame.to_parquet(held)
    for data in (TEXT.encode(), gzip.compress(TEXT.encode()), held.getvalue()):
        pipe = tmp_path / "pipe"
        os.mkfifo(pipe)
        writer = threading.Thread(target=pipe.write_bytes, args=(data,))
        writer.start()
        assert numbers(read_table(pipe)) == [1.5, 2]
        writer.join()
        pipe.unlink()


def test_standard_input_is_a_file_like_any_other() -> None:
    code = (
        "from streamlstm.datasets.bundled import table\n"
        "print(table('/dev/stdin').series[0].values.ravel())"
    )
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, input=TEXT.encode(), capture_output=True, check=True)
    assert done.stdout == b"[1.5 2. ]\n"


def zipped() -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("xl/workbook.xml", "<workbook/>")
    return file.getvalue()


def database() -> bytes:
    connection = sqlite3.connect(":memory:")
    connection.execute("create table t (y)")
    return connection.serialize()


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (zipped(), "an Excel file (.xlsx) or a zip archive; save its sheet as CSV"),
        (bytes.fromhex("d0cf11e0a1b11ae1") + bytes(500), "an Excel file (.xls); save"),
        (bz2.compress(TEXT.encode()), "compressed by bzip2; unpack it"),
        (lzma.compress(TEXT.encode()), "compressed by xz; unpack it"),
        (database(), "an SQLite database; write its table as CSV"),
        (b'{"ds": "2024-01-01", "y": 1}\n', "JSON; write it as CSV or Parquet"),
        (b'[{"ds": "2024-01-01", "y": 1}]\n', "JSON; write it as CSV or Parquet"),
        (b"<!DOCTYPE html>\n<html></html>\n", "a web page; download the file"),
        (TEXT.encode("utf-16-le"), "not text, line 1 has a NUL byte; give UTF-8 CSV or Parquet"),
        (TEXT.encode() + b"2024-01-03;\0\n", "not text, line 4 has a NUL byte"),
    ],
)
def test_what_is_no_table_is_named_with_the_mend(tmp_path: Path, data: bytes, said: str) -> None:
    assert f"t.csv: is {said}" in refusal(tmp_path, data)
    assert f"t.csv: is {said}" in refusal(tmp_path, gzip.compress(data))


def test_other_files_of_columns_are_to_be_parquet(tmp_path: Path) -> None:
    arrow = pytest.importorskip("pyarrow", reason="pyarrow is not installed")
    feather, orc = pytest.importorskip("pyarrow.feather"), pytest.importorskip("pyarrow.orc")
    table = arrow.table({"ds": ["2024-01-01"], "y": [1.0]})
    feather.write_feather(table, tmp_path / "feather")
    orc.write_table(table, tmp_path / "orc")
    for name, called in (("feather", "a Feather (Arrow) file"), ("orc", "an ORC file")):
        message = refusal(tmp_path, (tmp_path / name).read_bytes())
        assert f"is {called}; write it as Parquet" in message
    assert numbers(read(tmp_path, b"ORC;y\n2024-01-01;1\n")) == [1]  # a header, and no such file


def test_utf_16_that_is_cut_short_is_damaged(tmp_path: Path) -> None:
    data = codecs.BOM_UTF16_LE + TEXT.encode("utf-16-le")
    assert "damaged UTF-16 text (truncated data)" in refusal(tmp_path, data[:-1])


def test_parquet_is_known_by_its_content(tmp_path: Path) -> None:
    pytest.importorskip("pyarrow", reason="pyarrow is not installed")
    held = io.BytesIO()
    pd.DataFrame({"ds": ["2024-01-01"], "y": [1.5]}).to_parquet(held)
    for data in (held.getvalue(), gzip.compress(held.getvalue())):
        np.testing.assert_array_equal(numbers(read(tmp_path, data)), [1.5])
