"""A report is a whole page that fetches nothing, and charts hold what they were given."""

import dataclasses
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from streamlstm.datasets.frames import SeriesData
from streamlstm.report import report, write_report
from streamlstm.rolling import Backtest, backtest
from streamlstm.svg import LEFT, RIGHT, WIDTH, Chart, round_numbers
from tests.models import HOUR, random_model

VOID = {"meta", "rect", "circle", "path"}
NAME = "</td><script>alert('x')</script>&amp;\"\x1b"


class Page(HTMLParser):
    """Its tags, that close in order, and the text within them."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.rows: list[list[str]] = []
        self.text = ""
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data
        if self.open and self.open[-1] in ("td", "th"):
            self.rows[-1][-1] += data


@pytest.fixture(scope="module")
def found() -> Backtest:
    hours, rng = np.arange(200), np.random.default_rng(0)
    wave = np.sin(2 * np.pi * hours / 24)
    series = [
        SeriesData(name, hours * HOUR, (20 + wave + noise * rng.normal(size=200))[:, None])
        for name, noise in ((NAME, 0.1), ("b", 0.2), ("c", 0.4), ("d", 0.8))
    ]
    series.append(SeriesData("flat", hours * HOUR, np.full((200, 1), 7.0)))
    model = random_model(season=24, base="seasonal", horizon=40)
    return backtest(model, "<data>.csv", series, [150] * 5, (0.9, 0.5, 0.8))


def test_a_report_is_well_formed_and_fetches_nothing(found: Backtest) -> None:
    text = report(found, "<MW>")
    page = Page(text)
    tags = {tag for tag, _ in page.tags}
    assert not tags & {"script", "link", "img", "iframe", "object", "image", "use", "base"}
    for _, attributes in page.tags:
        assert not attributes.keys() & {"href", "src", "xlink:href", "srcset", "action"}
        assert not any(name.startswith("on") for name in attributes)
    assert not re.search(r"https?:|url\(|@import|//\w", text)


def test_names_are_shown_as_they_are(found: Backtest) -> None:
    page = Page(report(found, "<MW>"))
    name = NAME.replace("\x1b", "\ufffd")
    assert name in [row[0] for row in page.rows if row]
    assert "Backtest of model" in page.text
    assert "on <data>.csv" in page.text
    assert "Mean absolute error, <MW>" in page.text


def test_tables_hold_the_measures(found: Backtest) -> None:
    page = Page(report(found))
    scores = found.scores
    rows = {row[0]: row[1:] for row in page.rows if row}
    mae = [f"{scores.mean('mae', name):#.4g}" for name in ("model", "last_value", "seasonal_naive")]
    assert rows["MAE"] == mae
    assert rows["within the interval"][0] == f"{scores.mean('coverage'):.1%}"
    assert rows["CRPS"][0] == f"{scores.mean('crps'):#.4g}"
    assert rows["40"][:1] == [f"{scores.by_step('mae')[39]:#.4g}"]
    steps = [int(first) for first in rows if first.isdigit()]
    assert len(steps) == 24
    assert steps[:1] + steps[-1:] == [1, 40]
    assert rows["flat"][6] == "–"  # no change in its history: no MASE
    order = [row[0] for row in page.rows if row and row[0] in ("b", "c", "d", "flat")]
    assert order == [one.name for one in found.worst_first() if one.name != NAME]


def test_without_a_season_nothing_is_said_of_one(found: Backtest) -> None:
    hours = np.arange(100)
    one = SeriesData("one", hours * HOUR, np.random.default_rng(0).normal(size=(100, 1)))
    text = Page(report(backtest(random_model(), "t", [one], [80], (0.9,)))).text
    assert "one season before" not in text
    assert "change of the history from one step to the next" in text
    text = Page(report(found)).text
    assert "one season before" in text
    assert "change of the history from one season to the next" in text


@pytest.mark.parametrize(
    ("step_ns", "said"),
    [(HOUR, "3 steps of 1 h"), (10**9 // 20, "3 steps of 50 ms"), (0, "3 ticks")],
)
def test_steps_are_said_in_words(step_ns: int, said: str) -> None:
    model = random_model(step_ns=step_ns)
    y = np.random.default_rng(0).normal(size=(100, 1))
    one = SeriesData("one", np.arange(100) * (step_ns or HOUR), y)
    page = Page(report(backtest(model, "t", [one], [80], (0.9,))))
    assert f"UTC, {said}" in page.text


def test_each_target_has_a_table_of_its_own() -> None:
    model = random_model(season=24, base="seasonal", inputs=2, targets=2)
    hours, rng = np.arange(200), np.random.default_rng(0)
    values = np.stack([rng.normal(10, 1, 200), rng.normal(1e5, 100, 200)], axis=1)
    found = backtest(model, "t", [SeriesData("a", hours * HOUR, values)], [150], (0.9,))
    page = Page(report(found))
    assert sum(row[0] == "MAE" for row in page.rows if row) == 2
    assert "where their units differ" in page.text
    assert "where their units differ" not in Page(report(_of_one(found))).text


def _of_one(found: Backtest) -> Backtest:
    name, scores = next(iter(found.by_target.items()))
    return dataclasses.replace(found, by_target={name: scores})


def test_there_is_a_fan_of_the_best_the_median_and_the_worst(found: Backtest) -> None:
    titles = [of["aria-label"] for tag, of in Page(report(found)).tags if tag == "svg"]
    order = [one for one in found.worst_first() if one.name != "flat"]
    assert len(titles) == 7
    for title, place, what in zip(titles[4:], (-1, 2, 0), ("best", "median", "worst"), strict=True):
        name, mase = order[place].name, order[place].scores.mean("mase")
        if name == NAME:
            name = NAME.replace("\x1b", "\ufffd")[:31] + "…"
        assert title == f"{name}: MASE {mase:.3f}, the {what}"


def test_one_series_has_one_fan(found: Backtest, tmp_path: Path) -> None:
    hours = np.arange(100)
    one = SeriesData("one", hours * HOUR, np.random.default_rng(0).normal(size=(100, 1)))
    path = tmp_path / "r.html"
    write_report(path, backtest(random_model(horizon=1), "t", [one], [80], (0.9,)))
    titles = [of["aria-label"] for tag, of in Page(path.read_text()).tags if tag == "svg"]
    assert [title for title in titles if title and title.startswith("one: MASE")] == titles[3:]
    assert "CRPS" not in path.read_text()


def points(svg: str, element: str) -> list[np.ndarray]:
    found = re.findall(rf'<{element}[^>]* points="([^"]*)"', svg)
    return [np.array([pair.split(",") for pair in one.split()], float) for one in found]


def test_a_curve_is_drawn_to_scale_and_broken_where_not_known() -> None:
    chart = Chart("t", "x")
    y = np.array([0.0, 10.0, np.nan, 5.0, 0.0, np.nan, 5.0])
    chart.line(np.arange(7.0), y, "red", "curve")
    first, second = points(chart.svg(), "polyline")
    assert (len(first), len(second)) == (2, 2)
    assert first[0, 0] == LEFT
    assert first[1, 1] < second[0, 1] < second[1, 1] == first[0, 1]
    assert second[0, 1] == pytest.approx((first[0, 1] + first[1, 1]) / 2, abs=0.11)
    assert f'cx="{WIDTH - RIGHT:.1f}"' in chart.svg()  # one that stands alone


def test_a_band_goes_there_and_back() -> None:
    chart = Chart("t", "x")
    x = np.arange(3.0)
    chart.band(x, x, x + 1, "red")
    (drawn,) = points(chart.svg(), "polygon")
    np.testing.assert_array_equal(drawn[:3, 0], drawn[:2:-1, 0])
    assert (drawn[:3, 1] < drawn[:2:-1, 1]).all()  # up is less


@pytest.mark.parametrize(
    "y", [[np.nan, np.nan], [3.0, 3.0], [0.0, 0.0], [1e300, -1e300], [1e-300, 0]]
)
def test_any_values_can_be_drawn(y: list[float]) -> None:
    chart = Chart("t", "x", from_zero=True)
    chart.line(np.array([1.0, 2.0]), np.array(y), "red")
    assert "nan" not in chart.svg()
    assert "inf" not in chart.svg()


def test_round_numbers() -> None:
    assert round_numbers(0, 10, 6) == [0, 2, 4, 6, 8, 10]
    assert round_numbers(-0.31, 0.42, 6) == pytest.approx([-0.2, 0, 0.2, 0.4])
    assert round_numbers(-72, 24, 8) == [-60, -40, -20, 0, 20]
    for low, high in np.random.default_rng(0).normal(size=(50, 2)).cumsum(axis=1):
        if low < high:
            found = round_numbers(low, high, 6)
            assert 2 <= len(found) <= 6
            assert low - 1e-9 <= found[0] <= found[-1] <= high + 1e-9
