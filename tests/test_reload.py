"""Another model takes the place of the one that serves: with SIGHUP, by its file, at a start."""

import signal
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from streamlstm.engine import Engine
from streamlstm.model_file import save_model
from streamlstm.state_schema import schema_of
from streamlstm.ticks import WARM, Arrivals, Keys
from tests.daemon import Client, Daemon, eventually, start
from tests.models import HOUR, random_model

HISTORY = 4
FIRST, RETRAINED = random_model(0), random_model(1)
WIDER = random_model(2, hidden=24, horizon=5)
NAMES = ["a", "b", "c"]


def running(folder: Path, **options: Any) -> Any:
    settings = {"engine.history": HISTORY, "engine.max_series": 10} | options
    return start(folder, folder / "m.safetensors", **settings)


def put(folder: Path, model: Any) -> None:
    save_model(model, folder / "m.safetensors")


def reload(daemon: Daemon, said: str = "reloaded") -> None:
    before = daemon.log.count(said)
    daemon.process.send_signal(signal.SIGHUP)
    eventually(lambda: daemon.log.count(said) > before)


def hours(client: Client, begin: int, end: int) -> list[dict[str, Any]]:
    """The forecasts of one tick of each series an hour."""
    for hour in range(begin, end):
        for name in NAMES:
            client.tick(name, ts=3600 * (1 + hour), value=value_of(name, hour))
    return client.predictions(len(NAMES) * (end - begin))


def value_of(name: str, hour: int) -> float:
    return len(name) + ord(name[-1]) + float(np.sin(0.3 * hour * hour))


def forecast(engine: Engine, name: str, hour: int, flags: int = 0) -> list[float]:
    arrivals = Arrivals(
        Keys.of([name.encode()]),
        np.array([HOUR * (1 + hour)]),
        np.array([[value_of(name, hour)]]),
        np.array([flags], np.uint8),
    )
    out = engine.step(engine.place(arrivals), 0)
    return out.point[0, :, 0].tolist() if len(out.slot) else []


def inherited(
    before: Engine, model: Any, begin: int, end: int, names: Sequence[str] = NAMES
) -> Engine:
    """What goes on from a model that saw hours ``begin`` to ``end``, and served until then."""
    after = Engine(model, max_series=10, history=HISTORY)
    if schema_of(before) == schema_of(after):
        slots = before.series.slots
        after.series.restore(before.series.index.names[slots], before.series.index.lengths[slots])
        after.set_records(slots, *before.records(slots))
        return after
    for hour in range(max(begin, end - HISTORY), end):
        for name in names:
            forecast(after, name, hour, int(WARM))
    return after


def check(said: list[dict[str, Any]], engine: Engine, begin: int, seq: int) -> None:
    """Forecasts of one tick of each series an hour are this engine's, and numbered on."""
    for k, prediction in enumerate(said):
        hour, name = begin + k // len(NAMES), NAMES[k % len(NAMES)]
        assert prediction["series"] == name
        assert prediction["model"] == engine.model.id
        assert prediction["seq"] == seq + 1 + hour - begin
        assert prediction["forecast"] == forecast(engine, name, hour)


@pytest.fixture(params=["alone", "kept"])
def options(request: pytest.FixtureRequest, tmp_path: Path) -> dict[str, Any]:
    kept = {"checkpoint.path": tmp_path / "state", "journal.durability": "strict"}
    return kept if request.param == "kept" else {}


@pytest.mark.parametrize("next_one", [RETRAINED, WIDER], ids=["same shape", "other shape"])
def test_it_goes_on_and_back(tmp_path: Path, options: dict[str, Any], next_one: Any) -> None:
    """Rollback is the same act."""
    put(tmp_path, FIRST)
    with running(tmp_path, **options) as daemon:
        with Client(daemon) as client:
            engine = Engine(FIRST, max_series=10, history=HISTORY)
            check(hours(client, 0, 6), engine, 0, 0)
            for begin, model in ((6, next_one), (12, FIRST)):
                put(tmp_path, model)
                reload(daemon)
                engine = inherited(engine, model, 0, begin)
                check(hours(client, begin, begin + 6), engine, begin, begin)
            assert daemon.metric("streamlstm_model_reloads_total") == 2
            assert daemon.metric("streamlstm_ticks_received_total") == 18 * len(NAMES)
            assert daemon.metric("streamlstm_series_started_total") == len(NAMES)
            assert f'model="{FIRST.id}"' in daemon.get("/metrics")
        if not options:
            return
        daemon.process.kill()
        daemon.wait()
    with running(tmp_path, **options) as daemon, Client(daemon) as client:
        check(hours(client, 18, 20), engine, 18, 18)


def test_a_file_that_is_of_no_use_leaves_the_model_that_serves(tmp_path: Path) -> None:
    put(tmp_path, FIRST)
    with running(tmp_path) as daemon, Client(daemon) as client:
        engine = Engine(FIRST, max_series=10, history=HISTORY)
        check(hours(client, 0, 3), engine, 0, 0)
        (tmp_path / "m.safetensors").write_bytes(b"not a model")
        reload(daemon, "goes on serving")
        put(tmp_path, random_model(4, inputs=2))
        reload(daemon, "goes on serving")
        (tmp_path / "m.safetensors").unlink()
        reload(daemon, "goes on serving")
        for why in (
            "no model file, or a damaged one",
            "takes 2 values a tick",
            "no such model file",
        ):
            assert why in daemon.log
        put(tmp_path, FIRST)
        reload(daemon)  # it is the same
        check(hours(client, 3, 5), engine, 3, 3)
        assert daemon.metric("streamlstm_model_reload_failures_total") == 3
        assert daemon.metric("streamlstm_model_reloads_total") == 0
        assert daemon.get("/-/ready")


def test_a_file_that_is_watched_needs_no_signal(tmp_path: Path) -> None:
    put(tmp_path, FIRST)
    with running(tmp_path, **{"service.watch_model": True}) as daemon, Client(daemon) as client:
        engine = Engine(FIRST, max_series=10, history=HISTORY)
        check(hours(client, 0, 3), engine, 0, 0)
        put(tmp_path, RETRAINED)
        eventually(lambda: daemon.metric("streamlstm_model_reloads_total") == 1)
        check(hours(client, 3, 5), inherited(engine, RETRAINED, 0, 3), 3, 3)


@pytest.mark.parametrize("next_one", [RETRAINED, WIDER], ids=["same shape", "other shape"])
@pytest.mark.parametrize("end", ["stopped", "killed"])
def test_a_start_with_another_model_goes_on_from_what_was_kept(
    tmp_path: Path, next_one: Any, end: str
) -> None:
    put(tmp_path, FIRST)
    options = {"checkpoint.path": tmp_path / "state", "journal.durability": "strict"}
    with running(tmp_path, **options) as daemon:
        with Client(daemon) as client:
            engine = Engine(FIRST, max_series=10, history=HISTORY)
            check(hours(client, 0, 6), engine, 0, 0)
        daemon.process.send_signal(signal.SIGTERM if end == "stopped" else signal.SIGKILL)
        daemon.wait()
    put(tmp_path, next_one)
    with running(tmp_path, **options) as daemon, Client(daemon) as client:
        if end == "stopped":
            engine = inherited(engine, next_one, 0, 6)
        else:  # no checkpoint was written: all ticks are there, for whichever model
            engine = Engine(next_one, max_series=10, history=HISTORY)
            for hour in range(6):
                for name in NAMES:
                    forecast(engine, name, hour)
        check(hours(client, 6, 8), engine, 6, 6)


def test_models_are_kept_as_long_as_what_is_of_them(tmp_path: Path) -> None:
    put(tmp_path, FIRST)
    options = {"checkpoint.path": tmp_path / "state", "checkpoint.keep": 1}
    folder = tmp_path / "state.models"
    with running(tmp_path, **options) as daemon, Client(daemon) as client:
        hours(client, 0, 3)
        put(tmp_path, RETRAINED)
        reload(daemon)
        assert daemon.stop() == 0
    both = {f"{model.id}.safetensors" for model in (FIRST, RETRAINED)}
    assert {path.name for path in folder.iterdir()} == both  # the journal names the first
    with running(tmp_path, **options) as daemon:
        assert daemon.stop() == 0
    assert [path.name for path in folder.iterdir()] == [f"{RETRAINED.id}.safetensors"]
    assert {path.stat().st_mode & 0o777 for path in (folder, *folder.iterdir())} == {0o700, 0o600}


def test_where_its_first_checkpoint_is_damaged_the_model_before_it_leads_there(
    tmp_path: Path,
) -> None:
    put(tmp_path, FIRST)
    options = {"checkpoint.path": tmp_path / "state", "journal.durability": "strict"}
    with running(tmp_path, **options) as daemon, Client(daemon) as client:
        hours(client, 0, 6)
        assert daemon.stop() == 0  # a checkpoint
    with running(tmp_path, **options) as daemon:
        with Client(daemon) as client:
            hours(client, 6, 8)
            put(tmp_path, WIDER)
            reload(daemon)
            hours(client, 8, 10)
        daemon.process.kill()
        daemon.wait()
    data = bytearray((tmp_path / "state").read_bytes())
    data[-9] ^= 1
    (tmp_path / "state").write_bytes(data)
    with running(tmp_path, **options) as daemon, Client(daemon) as client:
        engine = Engine(FIRST, max_series=10, history=HISTORY)
        for hour in range(10):
            for name in NAMES:
                forecast(engine, name, hour)
        check(hours(client, 10, 12), inherited(engine, WIDER, 0, 10), 10, 10)
        assert "checkpoint damaged" in daemon.log


@pytest.mark.parametrize("next_one", [RETRAINED, WIDER], ids=["same shape", "other shape"])
def test_no_tick_is_lost_and_each_series_goes_over_once(
    tmp_path: Path, options: dict[str, Any], next_one: Any
) -> None:
    """Under load; after which tick each is handed over is the daemon's to say."""
    put(tmp_path, FIRST)
    names = [f"s{k}" for k in range(300)]
    options |= {"engine.max_series": 300, "engine.max_batch": 64, "input.kind": "pull"}
    with running(tmp_path, **options) as daemon, Client(daemon, push=True) as client:
        said: dict[str, list[dict[str, Any]]] = {name: [] for name in names}
        hour, reloaded = 0, 0
        while reloaded < 10:
            for name in names:
                client.tick(name, ts=3600 * (1 + hour), value=value_of(name, hour))
            hour += 1
            if hour == 10:
                put(tmp_path, next_one)
                daemon.process.send_signal(signal.SIGHUP)
            for prediction in client.predictions(len(names)):
                said[prediction["series"]].append(prediction)
            reloaded += prediction["model"] == next_one.id
        assert daemon.metric("streamlstm_model_reloads_total") == 1
    for each in said.values():
        assert [one["seq"] for one in each] == [*range(1, hour + 1)]
        models = [one["model"] for one in each]
        assert models == sorted(models, key=[FIRST.id, next_one.id].index)
    for name in (names[0], names[150], names[-1]):
        published = [one["model"] for one in said[name]].index(next_one.id)
        assert any(
            goes_on(name, at, published, hour, next_one)
            == [one["forecast"] for one in said[name][published:]]
            for at in range(published, -1, -1)
        ), name


def goes_on(name: str, at: int, begin: int, end: int, model: Any) -> list[list[float]]:
    """Forecasts from hour ``begin`` on of a series handed over after ``at`` ticks."""
    engine = Engine(FIRST, max_series=10, history=HISTORY)
    for hour in range(at):
        forecast(engine, name, hour)
    after = inherited(engine, model, 0, at, [name])
    return [forecast(after, name, hour) for hour in range(at, end)][begin - at :]
