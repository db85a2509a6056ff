"""How numbers are written: told from the numbers themselves, and against Python's formatting."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from streamlstm.datasets.frames import DataError, Table, read_table
from streamlstm.datasets.inputs import Columns
from streamlstm.datasets.numerals import plain, shown

SWAPPED = str.maketrans(",.", ".,")


def read(
    folder: Path,
    *texts: str,
    separator: str = ";",
    others: str = "",
    columns: Columns | None = None,
) -> Table:
    """A table of such values, quoted, from 2024-01-01 on; ``others`` is in a column of its own."""
    days = pd.date_range("2024-01-01", periods=len(texts))
    rows = [("ds", "y", "other")] + [
        (f"{day:%Y-%m-%d}", f'"{text}"', f'"{others}"')
        for day, text in zip(days, texts, strict=True)
    ]
    path = folder / "t.csv"
    path.write_text("".join(separator.join(row) + "\n" for row in rows))
    return read_table(path, y="y", columns=columns)


def values(folder: Path, *texts: str, **how: str) -> list[float]:
    found: list[float] = read(folder, *texts, **how).series[0].values[:, 0].tolist()  # type: ignore[arg-type]
    return found


def refusal(folder: Path, *texts: str, **how: str) -> str:
    with pytest.raises(DataError) as caught:
        values(folder, *texts, **how)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("separator", [",", ";", "\t"])
@pytest.mark.parametrize("european", [True, False])
@pytest.mark.parametrize("form", ["{:,.2f}", "{:,.3f}", "{:.3f}", "{:,.0f}", "{:e}"])
def test_what_was_formatted_is_read_again(
    tmp_path: Path, form: str, european: bool, separator: str
) -> None:
    numbers = np.random.default_rng(0).lognormal(5, 4, 300) * np.tile([1, -1], 150)
    texts = [form.format(number) for number in numbers]
    truth = [float(text.replace(",", "")) for text in texts]
    written = [text.translate(SWAPPED) if european else text for text in texts]
    np.testing.assert_allclose(values(tmp_path, *written, separator=separator), truth, rtol=1e-15)


@pytest.mark.parametrize(
    ("texts", "numbers"),
    [
        (("1.016", "1.016.233"), (1016, 1016233)),
        (("1.016", "1.016,5"), (1016, 1016.5)),
        (("1,016", "1,016.5"), (1016, 1016.5)),
        (("1,016", "2.5"), (1016, 2.5)),
        (("1.016", "2,5"), (1016, 2.5)),
        (("1.016", "0.016"), (1.016, 0.016)),  # no thousands begin with 0
        (("1.016", "1016.233"), (1.016, 1016.233)),
        (("1.016", "999"), (1.016, 999)),  # nothing shows: decimals
        (("1,016", "999"), (1.016, 999)),
        (("1 016,5", "1\u202f016\u202f000"), (1016.5, 1016000)),
        (("1'016.5", "-1'016"), (1016.5, -1016)),
        ((*["7"] * 40, "2,5"), (*[7] * 40, 2.5)),
        ((*["1,016"] * 40, "2.5"), (*[1016] * 40, 2.5)),
    ],
)
def test_numbers_show_how_they_are_written(
    tmp_path: Path, texts: tuple[str, ...], numbers: tuple[float, ...]
) -> None:
    assert values(tmp_path, *texts) == list(numbers)


def test_other_columns_of_the_file_show_it_too(tmp_path: Path) -> None:
    assert values(tmp_path, "1.016", "999", others="0,5") == [1016, 999]
    assert values(tmp_path, "1,016", "999", others="0.5", separator=",") == [1016, 999]
    assert values(tmp_path, "1.016", "2.5", others="0,5") == [1.016, 2.5]  # its own come first


def test_what_is_read_as_thousands_is_said(tmp_path: Path) -> None:
    notes = read(tmp_path, "5", "1.016", "1.016,5").notes
    assert "numbers such as '1.016' are read as 1016" in notes
    assert "numbers are read with a decimal comma" in notes


def test_decimals_that_look_like_thousands_are_said(tmp_path: Path) -> None:
    doubt = "numbers such as '1.016' are read as decimals; if they are thousands"
    assert any(note.startswith(doubt) for note in read(tmp_path, "1.016", "999").notes)
    assert not any("thousands" in note for note in read(tmp_path, "1.016", "1.5", "9").notes)
    assert not any("thousands" in note for note in read(tmp_path, "1.016", "9.120").notes)


def test_static_numbers_are_written_as_the_others(tmp_path: Path) -> None:
    columns = Columns.named(static=["other"])
    for others, texts in (("1.016", ("2,5", "3")), ("1.016,0", ("2", "3")), ("1016,0", ("2", "3"))):
        found = read(tmp_path, *texts, others=others, columns=columns)
        assert found.inputs[1].role == "number"
        assert found.series[0].values[:, 1].tolist() == [1016, 1016]
    found = read(tmp_path, "1.016,5", "3", others="a,b", columns=columns)
    assert found.inputs[1].categories == ("a,b",)


def test_a_static_number_far_down_shows_it_too(tmp_path: Path) -> None:
    days = [f"{day:%Y-%m-%d}" for day in pd.date_range("2024-01-01", periods=30)]
    rows = [f"{name};{day};7;{size}" for name, size in (("a", "2"), ("b", "2,5")) for day in days]
    (tmp_path / "t.csv").write_text("\n".join(["unique_id;ds;y;size", *rows]))
    found = read_table(tmp_path / "t.csv", columns=Columns.named(static=["size"]))
    assert [s.values[0].tolist() for s in found.series] == [[7, 2], [7, 2.5]]


def test_names_and_times_are_no_numbers(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("unique_id;ds;y\n1.5;2024-01-01;1,016\n1.5;2024-01-02;7\n")
    (one,) = read_table(tmp_path / "t.csv").series
    assert (one.name, one.values[:, 0].tolist()) == ("1.5", [1.016, 7])


def test_truths_with_gaps_are_numbers(tmp_path: Path) -> None:
    assert values(tmp_path, "True", "", "False") == [1, 0]


def test_truths_and_what_is_missing_among_such_numbers(tmp_path: Path) -> None:
    columns = Columns.named(features=["other"])
    found = read(tmp_path, "1.016,5", " NA ", "3", others="True", columns=columns)
    assert found.series[0].values.tolist() == [[1016.5, 1], [3, 1]]


def test_numbers_that_contradict_each_other_are_refused_by_their_line(tmp_path: Path) -> None:
    message = refusal(tmp_path, *["7"] * 30, "1.5", "7", "2,5")
    assert "line 34: '2,5' in column 'y' fits only a decimal comma, '1.5' in line 32" in message
    message = refusal(tmp_path, "1.016.233", "7", "0.5")
    assert "line 4: '0.5' in column 'y' fits only a decimal point, '1.016.233' in line 2" in message
    assert "line 3: '1,016' in column 'y' is 1016 or 1.016" in refusal(tmp_path, "1.016", "1,016")


def test_a_comma_in_a_file_separated_by_commas_is_not_guessed(tmp_path: Path) -> None:
    message = refusal(tmp_path, "7", "1,016", separator=",")
    assert "line 3: '1,016' in column 'y' is 1016 or 1.016, no other number shows" in message
    assert values(tmp_path, "1,016", "1,016,000", separator=",") == [1016, 1016000]
    assert values(tmp_path, "1,5", "1,016", separator=",") == [1.5, 1.016]


@pytest.mark.parametrize("word", ["k.A.", "1.01.233", "1.2.3", "1,01,233", "12 34", "1.016e3,5"])
def test_a_word_is_refused_by_its_own_line(tmp_path: Path, word: str) -> None:
    message = refusal(tmp_path, *["1.016,5"] * 30, word, "k.A.")
    assert f"line 32: {word!r} in column 'y' is not a number; mend it" in message


def test_a_row_with_more_fields_than_names_says_why(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("ds,y\n2024-01-01,1,5\n2024-01-02,2,5\n")
    with pytest.raises(DataError, match=r"more fields than .* separate columns by semicolons"):
        read_table(tmp_path / "t.csv")


@pytest.mark.parametrize(
    ("text", "sign"),
    [("1.016", "?."), ("1,016", "?,"), ("1.5", "."), ("1,5", ","), ("1 016", ""), ("7", ""),
     ("x", ""), ("", ""), ("1.016.000", ","), ("0.016", "."), (".5", "."), ("-,25", ","),
     ("1e3", "")],
)  # fmt: skip
def test_the_sign_that_a_text_shows(text: str, sign: str) -> None:
    assert shown(text) == sign


def test_plain_numbers() -> None:
    assert plain("+1.016,50", ",") == "+1016.50"
    assert plain(" -1'016.5 ", ".") == "-1016.5"
    assert plain("1.016,5", ".") is None
