"""Tables for a terminal show the forecasters that there are."""

import numpy as np
import pytest
from rich.console import Console

from streamlstm.datasets.frames import SeriesData
from streamlstm.rolling import Backtest, backtest
from streamlstm.tables import intervals_line, scores_table, series_table
from tests.models import HOUR, random_model


def found(season: int) -> Backtest:
    hours = np.arange(200)
    y = 10 + np.sin(2 * np.pi * hours / 24) + np.random.default_rng(0).normal(size=200)
    model = random_model(season=season)
    return backtest(model, "t", [SeriesData("a", hours * HOUR, y[:, None])], [150], (0.9,))


def text(table: object) -> str:
    console = Console(width=200)
    with console.capture() as said:
        console.print(table)
    return said.get()


@pytest.mark.parametrize("season", [0, 24])
def test_what_was_one_season_before_is_shown_where_there_is_a_season(season: int) -> None:
    judged = found(season)
    naive = ("last_value", "seasonal_naive")[season > 0]
    for table in (scores_table(judged.scores, "MW"), series_table(judged.worst_first())):
        assert ("one season before" in text(table)) == (season > 0)
    scores = judged.scores
    assert f"{scores.by_step('mae', naive)[0]:,.4g} (" in text(scores_table(scores, "MW"))
    assert f"{scores.mean('mase', naive):.3f}" in text(series_table(judged.worst_first()))
    said = f"of the same around the naive forecast {scores.mean('winkler', naive):,.4g}"
    assert said in intervals_line(scores)
