"""A journal, a checkpoint or a table through the daemon's engine, and two runs compared."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from streamlstm import checkpoint
from streamlstm.config import Config, ConfigError
from streamlstm.datasets.frames import read_table
from streamlstm.engine import Engine
from streamlstm.model_file import load_model
from streamlstm.offline import command, difference, digest, run, state_of
from streamlstm.segments import JournalError
from streamlstm.ticks import Keys, Ticks
from tests.models import HOUR, random_model_file
from tests.test_cli import streamlstm
from tests.test_replay import journalled


def table_file(path: Path, series: list[str], hours: int, *, last: float = 0.0) -> Path:
    """Hourly series in the long format, the series one after the other."""
    rows = [
        (name, pd.Timestamp(hour * HOUR), float(np.sin(k + hour * hour)))
        for k, name in enumerate(series)
        for hour in range(1, hours + 1)
    ]
    frame = pd.DataFrame(rows, columns=["unique_id", "ds", "y"])
    frame.loc[len(frame) - 1, "y"] += last
    frame.to_parquet(path) if path.suffix == ".parquet" else frame.to_csv(path, index=False)
    return path


def config_of(model: Path, **changed: Any) -> Config:
    return Config.model_validate({"model": model, "engine": {"max_series": 50}} | changed)


def stepped(model: Path, order: list[tuple[str, int, float]], **options: Any) -> Engine:
    """An engine of its own that was given ticks one by one."""
    engine = Engine(load_model(model), max_series=9, **options)
    for name, hour, value in order:
        slots = engine.series.lookup(Keys.of([name.encode()]))
        tick = Ticks(slots, np.array([hour * HOUR]), np.array([[value]]), np.zeros(1, np.uint8))
        engine.step(tick, 0)
    return engine


@pytest.mark.parametrize("name", ["t.csv", "t.parquet"])
def test_a_table_gives_the_state_that_its_ticks_give_one_by_one(tmp_path: Path, name: str) -> None:
    model = random_model_file(tmp_path)
    table = read_table(table_file(tmp_path / name, ["b", "a"], 40))
    made = run(config_of(model), table)
    order = [
        (each.name, int(ts) // HOUR, float(value))
        for each in table.series
        for ts, value in zip(each.ts, each.values[:, 0], strict=True)
    ]
    alone = stepped(model, order)
    assert made.ticks == 80
    assert difference(made.engine, alone) == ""
    assert digest(made.engine) == digest(alone)
    assert state_of(made.engine)[0] == [b"a", b"b"]


def test_one_bit_in_one_series_is_found_and_named(tmp_path: Path) -> None:
    model = random_model_file(tmp_path)
    order = [(name, hour, 1.0) for hour in range(1, 9) for name in "ab"]
    one, other = stepped(model, order), stepped(model, order)
    assert difference(one, other) == ""
    slots = np.array([1], np.int32)
    hidden = other.kernels.to_host(other.buffers, slots)
    hidden.view(np.uint8).reshape(-1)[0] ^= 1
    other.kernels.from_host(other.buffers, slots, hidden)
    assert "1 of 2 series differ; the first, 'b', in recurrent[0" in difference(one, other)
    assert digest(one) != digest(other)
    zero, minus = stepped(model, order), stepped(model, order)
    for engine, value in ((zero, 0.0), (minus, -0.0)):
        engine.series.state["variance"][0] = value
    assert "'a'" in difference(zero, minus)
    assert "'c' is in the second alone" in difference(one, stepped(model, [*order, ("c", 1, 1.0)]))


def test_a_journal_on_top_of_a_checkpoint_is_the_whole_journal(tmp_path: Path) -> None:
    model = random_model_file(tmp_path)
    state, folder = tmp_path / "state", tmp_path / "state.journal"
    engine = Engine(load_model(model), max_series=5)
    journalled(folder, engine, range(20))
    whole = run(config_of(model), folder)
    assert whole.ticks == 40
    assert difference(whole.engine, engine) == ""
    checkpoint.save(engine, state, 20)
    journalled(folder, engine, range(20, 30))
    both = run(config_of(model), state)
    assert both.ticks == 20
    assert difference(both.engine, engine) == ""
    assert difference(run(config_of(model), folder).engine, engine) == ""
    sorted(folder.glob("*.seg"))[0].unlink()
    assert difference(run(config_of(model), state).engine, engine) == ""
    with pytest.raises(JournalError):
        run(config_of(model), folder)


def test_the_command_compares_and_writes(tmp_path: Path) -> None:
    model = random_model_file(tmp_path)
    one = table_file(tmp_path / "one.csv", ["a", "b"], 30)
    other = table_file(tmp_path / "other.parquet", ["a", "b"], 30)
    changed = table_file(tmp_path / "changed.csv", ["a", "b"], 30, last=1e-12)
    of = ("--set", f"model={model}", "--set", "interval.coverage=0.9,0.5")
    said = streamlstm("replay", one, *of, "--compare", other).stdout
    assert said.count("60 ticks stepped, 2 series, state ") == 2
    assert said.endswith("the same, bit by bit\n")
    output = tmp_path / "out.csv"
    done = streamlstm(
        "replay", one, *of, "--compare", changed, "--json", "--output", output, code=1
    )
    report = json.loads(done.stdout)
    assert "1 of 2 series differ; the first, 'b'" in report["compared"]["difference"]
    assert report["sha256"] != report["compared"]["sha256"]
    frame = pd.read_csv(output, dtype=str)
    config = config_of(model, interval={"coverage": (0.9, 0.5)})
    made = run(config, read_table(one), keep=True).made
    assert len(frame) == 60 * 3
    points = np.concatenate([part.forecasts.point.ravel() for part in made])
    assert np.array(list(map(float, frame["forecast"]))).tobytes() == points.tobytes()
    assert list(frame.columns[:4]) == ["unique_id", "ds", "seq", "step"]
    for level, name in enumerate(("lower", "upper", "lower_0.5", "upper_0.5")):
        ends = np.concatenate([part.forecasts.quantiles[:, level].ravel() for part in made])
        np.testing.assert_array_equal(frame[name].astype(float), ends)
    assert frame["ds"][0] == str(pd.Timestamp(HOUR))


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--output", "x.txt", "a.csv"], "ends in .csv or .parquet"),
        (["--output", "no/x.csv", "a.csv"], "--output no/x.csv: its folder does not exist"),
        (["--output", "a.csv", "a.csv"], "--output a.csv: is read from; name another file"),
        ([], "checkpoint.path"),
        (["nothing"], "nothing: no such file or folder"),
        (["a.csv", "--set", "input.max_key=1"], "longer names than input.max_key"),
    ],
)
def test_what_cannot_be_run_is_said(
    tmp_path: Path, arguments: list[str], says: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from streamlstm.cli import _load, _parser

    monkeypatch.chdir(tmp_path)
    model = random_model_file(tmp_path)
    table_file(Path("a.csv"), ["aa", "bb"], 3)
    options = _parser().parse_args(["replay", "--set", f"model={model}", *arguments])
    with pytest.raises(ConfigError, match=says):
        command(_load(options), options)
