"""The model is fitted anew to what the journal holds, and the better one serves."""

import argparse
import contextlib
import json
import os
import shutil
import signal
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from streamlstm import refit
from streamlstm.appending import FULL, append
from streamlstm.config import Config, ConfigError, load_config
from streamlstm.datasets.frames import SeriesData
from streamlstm.engine import Engine, events
from streamlstm.events import Events
from streamlstm.fit_options import FitOptions
from streamlstm.journal import Journal
from streamlstm.model import Model
from streamlstm.model_file import load_model, save_model
from streamlstm.policies import LIMIT
from streamlstm.recorded import recorded
from streamlstm.refit import RefitError, before_latest, relative_error
from streamlstm.refitting import KEPT, WON
from streamlstm.state_schema import schema_of
from streamlstm.ticks import END, RESET, Arrivals, Keys, Ticks
from streamlstm.train import fit
from tests.daemon import Client, Daemon, ended, eventually, start
from tests.models import HOUR, random_model
from tests.test_cli import complaint, streamlstm

SMALL = FitOptions(
    hidden=8, updates=30, batch=16, chunk=24, carried=2, horizon=3, season=0, lags=(1, 2, 3),
    calendar=(), memory=50,
)  # fmt: skip
NAMES = ["a", "b", "c"]
MANY = 10_000


def wave(k: int, hours: int, noise: float = 0.05) -> np.ndarray:
    """(hours,) of series ``k``: what a model of a few lags foresees."""
    rng = np.random.default_rng(k)
    return 10 * k + np.sin(0.26 * np.arange(hours) + k) + noise * rng.normal(size=hours)


@pytest.fixture(scope="module")
def bad() -> Model:
    """Fitted to noise, of which nothing can be foreseen."""
    rng = np.random.default_rng(0)
    series = [SeriesData("n", np.arange(600) * HOUR, rng.normal(size=(600, 1)))]
    return fit(series, SMALL)[0]


# --- the journal, read back -----------------------------------------------------------------------


class Writer:
    """An engine that journals, and what it was given."""

    def __init__(self, folder: Path, first: int = 1, **options: Any) -> None:
        self.engine = Engine(random_model(), max_series=20, **options)
        self.journal = Journal(
            folder, inputs=1, max_batch=64, max_key=64, model=self.engine.model.id,
            durability="interval", segment_bytes=1 << 16, fsync_interval=1000.0, first=first,
        )  # fmt: skip
        self.sent: dict[str, list[tuple[int, float]]] = {}

    def tick(self, name: str, hour: float, value: float, flags: int = 0, now: int = 0) -> None:
        """One, in a batch of its own."""
        ts = np.array([round(hour * HOUR)])
        arrivals = Arrivals(
            Keys.of([name.encode()]), ts, np.array([[value]]), np.array([flags], np.uint8)
        )
        self.put(self.engine.place(arrivals), now)
        self.sent.setdefault(name, []).append((int(ts[0]), value))

    def put(self, ticks: Ticks, now: int = 0) -> None:
        said: Events = events(self.engine.work)
        if append(self.journal.log, ticks, said, now) == FULL:
            self.journal.roll()
            assert append(self.journal.log, ticks, said, now) == 0
        self.engine.step(ticks, now)
        self.engine.series.release(self.engine.take_ended())


def back(folder: Path, **options: Any) -> list[list[tuple[int, float]]]:
    """The series that the journal is said to hold, sorted."""
    found = recorded(folder, 1, **{"ticks": MANY, "series": MANY} | options)
    rows = [(s.ts.tolist(), s.values[:, 0].tolist()) for s in found]
    return sorted(list(zip(*each, strict=True)) for each in rows)


def hours(writer: Writer, begin: int, end: int) -> None:
    for hour in range(begin, end):
        for k, name in enumerate(NAMES):
            writer.tick(name, hour, 100 * k + hour)


def test_what_came_is_read_back_while_it_is_written(tmp_path: Path) -> None:
    writer = Writer(tmp_path)
    hours(writer, 0, 1000)
    assert len([*tmp_path.glob("*.seg")]) > 2
    assert back(tmp_path) == sorted(writer.sent.values())
    writer.journal.close()
    assert back(tmp_path) == sorted(writer.sent.values())


@pytest.mark.parametrize("cut", ["torn", "garbage"])
def test_an_end_that_was_not_written_whole_is_left_out(tmp_path: Path, cut: str) -> None:
    writer = Writer(tmp_path)
    hours(writer, 0, 5)
    end = int(writer.journal.log.state[1])
    writer.tick("a", 5, 5.0)
    writer.journal.close()
    (segment,) = tmp_path.glob("*.seg")
    data = bytearray(segment.read_bytes())
    data[end + 20 :] = b"" if cut == "torn" else b"\xff" * 500
    segment.write_bytes(data)
    del writer.sent["a"][-1]
    assert back(tmp_path) == sorted(writer.sent.values())


def test_what_a_start_did_not_go_on_from_never_was(tmp_path: Path) -> None:
    one = Writer(tmp_path)
    hours(one, 0, 4)
    one.journal.close()
    other = Writer(tmp_path, first=10)  # after the third hour
    hours(other, 7, 9)
    other.journal.close()
    assert back(tmp_path) == sorted(one.sent[name][:3] + other.sent[name] for name in NAMES)


def test_whatever_is_left_of_segments_tells_of_the_latest_ticks(tmp_path: Path) -> None:
    """The oldest are gone, and with them the names; one in the midst is damaged."""
    writer = Writer(tmp_path)
    hours(writer, 0, 1500)
    writer.journal.close()
    first, *rest = sorted(tmp_path.glob("*.seg"))
    first.unlink()
    found = back(tmp_path)
    assert len(found) == len(NAMES)
    latest = {whole[-1]: whole for whole in writer.sent.values()}
    for mine in found:
        assert 100 < len(mine) < 1400
        assert mine == latest.pop(mine[-1])[-len(mine) :]
    rest[1].write_bytes(rest[1].read_bytes()[:5000])
    pieces = back(tmp_path)
    assert len(pieces) == 2 * len(NAMES)  # whose slots are is not known beyond what is missing
    assert {tick for piece in pieces for tick in piece} < {tick for s in found for tick in s}


def test_the_latest_ticks_of_some_series_are_kept(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr("streamlstm.recorded.ROOM", 64)  # sifted again and again
    writer = Writer(tmp_path)
    for hour in range(40):
        for k in range(20):
            writer.tick(f"s{k}", hour, 100 * k + hour)
    wanted = sorted(series[-7:] for series in writer.sent.values())
    assert back(tmp_path, ticks=7) == wanted
    some = back(tmp_path, ticks=7, series=6)
    assert len(some) == 6
    assert all(each in wanted for each in some)
    writer.journal.close()


def test_what_a_series_cannot_learn_from_is_left_out(tmp_path: Path) -> None:
    writer = Writer(tmp_path)
    now = 10 * HOUR
    for hour, value in enumerate([0.0, np.nan, 2.0, np.inf, 2 * LIMIT, 5.0]):
        writer.tick("a", hour, value, now=now)
    writer.tick("a", 5, 5.5, now=now)  # a duplicate
    writer.tick("a", 3, 3.5, now=now)  # late
    writer.tick("a", 99, 9.0, now=now)  # far ahead
    writer.tick("a", 6, 6.0, now=now)
    sound = [(0, 0.0), (2 * HOUR, 2.0), (5 * HOUR, 5.0), (6 * HOUR, 6.0)]
    assert back(tmp_path, max_ahead=7200.0) == [sound]
    assert back(tmp_path) == [[*sound[:-1], (99 * HOUR, 9.0)]]
    assert recorded(tmp_path, 2, ticks=MANY, series=MANY) == []
    writer.journal.close()


def test_a_series_that_begins_anew_is_another_one(tmp_path: Path) -> None:
    writer = Writer(tmp_path)
    for hour in range(12):
        flags = {4: int(RESET), 7: int(END)}.get(hour, 0)
        writer.tick("a", hour, float(hour), flags)
    parts = [range(4), range(4, 8), range(8, 12)]
    assert back(tmp_path) == [[(hour * HOUR, float(hour)) for hour in part] for part in parts]
    writer.journal.close()


def test_who_comes_back_goes_on_and_who_has_the_slot_now_is_another(tmp_path: Path) -> None:
    writer = Writer(tmp_path, evict=True, ordered=True)
    for round in range(3):
        for k in range(40):  # of which 20 have room
            for hour in range(3 * round, 3 * round + 3):
                writer.tick(f"s{k}", hour, float(1000 * k + hour))
    assert writer.engine.series.evicted["full"] > 50
    assert back(tmp_path) == sorted(writer.sent.values())
    writer.journal.close()


def test_while_nothing_was_written_slots_may_have_changed_hands(tmp_path: Path) -> None:
    writer = Writer(tmp_path)
    hours(writer, 0, 3)
    writer.journal.suspend()
    hours(writer, 3, 6)
    writer.journal.resume()
    hours(writer, 6, 9)
    whole = writer.sent.values()
    assert back(tmp_path) == sorted([each[:3] for each in whole] + [each[6:] for each in whole])
    writer.journal.close()


# --- the command ----------------------------------------------------------------------------------


def options(**changed: Any) -> argparse.Namespace:
    return argparse.Namespace(**{"dry_run": False, "json": True, "parent": 0} | changed)


@pytest.fixture
def folder(tmp_path: Path, bad: Model) -> Path:
    """A model, and a journal of a signal that it cannot forecast."""
    save_model(bad, tmp_path / "m.safetensors")
    writer = Writer(tmp_path / "state.journal")
    values = [wave(k, 500) for k in range(len(NAMES))]
    for hour in range(500):
        for k, name in enumerate(NAMES):
            writer.tick(name, hour, values[k][hour])
    writer.journal.close()
    return tmp_path


def config_of(folder: Path, **changed: Any) -> Config:
    tables = {"checkpoint": {"path": folder / "state"}}
    return Config.model_validate({"model": folder / "m.safetensors"} | tables | changed)


def test_a_better_model_takes_the_file_and_one_that_is_not_leaves_it(
    folder: Path, bad: Model, capsys: pytest.CaptureFixture[str]
) -> None:
    config, path = config_of(folder), folder / "m.safetensors"
    before = {each.name: each.read_bytes() for each in folder.glob("*.safetensors")}
    assert refit.command(config, options(dry_run=True)) == WON
    assert {each.name: each.read_bytes() for each in folder.glob("*.safetensors")} == before
    path.chmod(0o600)
    assert refit.command(config, options()) == WON
    said = json.loads(capsys.readouterr().out.splitlines()[-1])
    new = load_model(path)
    assert (said["model"], said["before"]) == (new.id, bad.id)
    assert said["error"] < 0.5
    assert said["mase"] < 0.5 * said["mase_before"]
    assert (said["series"], said["forecasts"]) == (3, 300 + 3)  # one more, of the tick before
    assert load_model(folder / "m.before.safetensors").id == bad.id
    assert path.stat().st_mode & 0o777 == 0o600
    assert schema_of(Engine(new, max_series=1)) == schema_of(Engine(bad, max_series=1))
    assert new.provenance["options"] == bad.provenance["options"]
    # the same again is no better
    before = {each.name: each.read_bytes() for each in folder.glob("*.safetensors")}
    assert refit.command(config, options()) == KEPT
    assert json.loads(capsys.readouterr().out)["error"] == 1.0
    assert {each.name: each.read_bytes() for each in folder.glob("*.safetensors")} == before


def test_the_new_model_knows_nothing_of_the_part_held_out(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Whatever comes there, it is the same."""
    refit.command(config_of(folder), options(dry_run=True))
    shutil.rmtree(folder / "state.journal")
    writer = Writer(folder / "state.journal")
    values = [wave(k, 500) for k in range(len(NAMES))]
    for hour in range(500):
        for k, name in enumerate(NAMES):
            writer.tick(name, hour, values[k][hour] * (1 if hour < 400 else -5))
    writer.journal.close()
    refit.command(config_of(folder), options(dry_run=True))
    one, other = map(json.loads, capsys.readouterr().out.splitlines())
    assert one["model"] == other["model"]
    assert one["error"] != other["error"]


def test_series_have_a_say_whatever_their_scale_and_none_has_too_much() -> None:
    def judged(*errors: float) -> Any:
        found = [
            SimpleNamespace(targets=1 + k, mean=lambda _, e=e: e) for k, e in enumerate(errors)
        ]
        return SimpleNamespace(series=[SimpleNamespace(scores=each) for each in found])

    before = judged(1e6, 1e-6, 3.0)
    assert relative_error(before, judged(1e6, 1e-6, 3.0)) == 1
    # 1 and 2 and 3 targets
    assert relative_error(before, judged(5e5, 1e-6, 3.0)) == pytest.approx(0.5 ** (1 / 6))
    assert relative_error(before, judged(1e6, 1e-6, 1.5)) == pytest.approx(0.5 ** (3 / 6))
    assert relative_error(before, judged(1e6, 1e-6, 1e9)) == pytest.approx(10 ** (3 / 6))
    assert relative_error(before, judged(1e6, 0.0, 1.5)) == pytest.approx(0.5 ** (3 / 4))
    assert np.isnan(relative_error(judged(0.0), judged(0.0)))


def test_all_is_held_out_from_one_moment_on() -> None:
    def one(*at: int) -> SeriesData:
        return SeriesData("", np.array(at), np.zeros((len(at), 1)))

    series = [one(*range(8)), one(6, 7, 8, 9), one(1, 2), one(8, 9)]
    known = before_latest(series, 0.25)  # of 16 ticks the latest 4
    assert known == [8, 2, 2, 0]
    assert before_latest([], 0.25) == []


def test_a_tick_dated_far_ahead_is_in_nobodys_way(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.rmtree(folder / "state.journal")
    writer = Writer(folder / "state.journal")
    for k in range(2):
        for hour, value in enumerate(wave(k, 500)):
            writer.tick(NAMES[k], hour, value)
    writer.tick("b", 1.1e6, 0.0)
    writer.journal.close()
    assert refit.command(config_of(folder), options()) == WON
    assert json.loads(capsys.readouterr().out)["series"] == 1


def test_another_model_that_comes_meanwhile_stays(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, others = folder / "m.safetensors", random_model(5)
    judge = refit.judge

    def replaced(*arguments: Any) -> Any:
        save_model(others, path)
        return judge(*arguments)

    monkeypatch.setattr(refit, "judge", replaced)
    with pytest.raises(RefitError, match="another model by now"):
        refit.command(config_of(folder), options())
    assert load_model(path).id == others.id
    assert not (folder / "m.before.safetensors").exists()


def test_what_cannot_be_is_said_in_one_line_with_the_mend(tmp_path: Path, bad: Model) -> None:
    model, state = tmp_path / "m.safetensors", f"checkpoint.path={tmp_path / 'state'}"
    save_model(bad, model)
    said = complaint("refit", "--set", f"model={model}", "--set", state)
    assert "state.journal: no series is long enough: 9 ticks are needed" in said
    assert said.endswith("; wait for more, or raise journal.retention")
    with pytest.raises(ConfigError, match=r"checkpoint\.path: missing"):
        refit.command(config_of(tmp_path, checkpoint={}), options())
    newer = {**bad.provenance, "options": {"of": "tomorrow"}}
    save_model(Model(bad.spec, bad.weights, bad.golden, bad.errors, newer), model)
    with pytest.raises(RefitError, match=r"fitted by another version \(option of\)"):
        refit.command(config_of(tmp_path), options())
    save_model(random_model(), model)
    with pytest.raises(RefitError, match="make one with 'streamlstm fit'"):
        refit.command(config_of(tmp_path), options())


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        ({"checkpoint.path": ""}, "set checkpoint.path"),
        ({"journal.durability": "off"}, "journal.durability to other than 'off'"),
        ({"journal.retention": "0"}, "set some days, such as 604800"),
    ],
)
def test_refits_without_anything_to_learn_from_are_refused(
    tmp_path: Path, changed: dict[str, str], says: str
) -> None:
    given = {"model": "m", "refit.interval": "60", "journal.retention": "1e6"}
    given |= {"checkpoint.path": "state"}
    load_config(None, given, {})
    with pytest.raises(ConfigError, match=says):
        load_config(None, given | changed, {})


def test_check_says_what_will_have_refits_fail(tmp_path: Path) -> None:
    save_model(random_model(), tmp_path / "m.safetensors")
    options = ["refit.interval=60", f"checkpoint.path={tmp_path / 's'}", "journal.retention=60"]
    flags = [part for each in options for part in ("--set", each)]
    done = streamlstm("check", "--set", f"model={tmp_path / 'm.safetensors'}", *flags)
    assert "does not say how to fit it anew" in done.stderr
    assert "journal.retention: 60 s may hold fewer ticks than can be learned from" in done.stderr
    assert done.stderr.count("\n") == 2


# --- the daemon -----------------------------------------------------------------------------------


def running(folder: Path, **changed: Any) -> Any:
    settings = {
        "engine.max_series": 10, "input.kind": "pull", "checkpoint.path": folder / "state",
        "journal.retention": 1e6, "checkpoint.interval": 1,
    }  # fmt: skip
    return start(folder, folder / "m.safetensors", **settings | changed)


def send(client: Client, begin: int, end: int) -> list[dict[str, Any]]:
    """Some hours of all series; the forecasts."""
    values = [wave(k, end) for k in range(len(NAMES))]
    for hour in range(begin, end):
        for k, name in enumerate(NAMES):
            client.tick(name, ts=3600 * (1 + hour), value=values[k][hour])
    return client.predictions(len(NAMES) * (end - begin))


@pytest.fixture
def taught(tmp_path: Path, bad: Model) -> Path:
    """The folder of a daemon that was stopped after some hundred ticks of each series."""
    save_model(bad, tmp_path / "m.safetensors")
    with running(tmp_path) as daemon:
        with Client(daemon, push=True) as client:
            send(client, 0, 400)
        assert daemon.stop() == 0
    return tmp_path


def refits(daemon: Daemon, outcome: str) -> float:
    return daemon.metric(f'streamlstm_refits_total{{outcome="{outcome}"}}')


def child_of(daemon: Daemon) -> int:
    """The process that fits; it is waited for, and until it is no copy of the daemon any more."""

    def arguments(pid: int) -> list[str]:
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # it ended meanwhile
            return Path(f"/proc/{pid}/cmdline").read_text().split("\0")
        return []

    found: list[int] = []
    eventually(
        lambda: bool(found.extend(c for c in daemon.children if "refit" in arguments(c)) or found)
    )
    return found[0]


def test_the_daemon_serves_the_better_model_and_keeps_it(taught: Path, bad: Model) -> None:
    with running(taught, **{"refit.interval": 0.1}) as daemon, Client(daemon, push=True) as client:
        assert ended(child_of(daemon))
        eventually(lambda: refits(daemon, "won") == 1)
        eventually(lambda: daemon.metric("streamlstm_model_reloads_total") == 1)
        new, file = load_model(taught / "m.safetensors"), (taught / "m.safetensors").stat()
        assert load_model(taught / "m.before.safetensors").id == bad.id
        (first, *_) = send(client, 400, 401)
        assert (first["model"], first["seq"]) == (new.id, 401)  # no series began anew
        assert 'states="kept"' in daemon.log
        # what is learned now is no better
        assert ended(child_of(daemon))
        eventually(lambda: refits(daemon, "lost") >= 1)
        assert (taught / "m.safetensors").stat() == file
        assert send(client, 401, 402)[0]["model"] == new.id
        assert daemon.metric("streamlstm_model_reloads_total") == 1
        assert (refits(daemon, "won"), refits(daemon, "failed")) == (1, 0)
        assert daemon.stop() == 0


def test_a_child_that_dies_leaves_the_model_that_serves_and_none_outlives_the_daemon(
    taught: Path, bad: Model
) -> None:
    allowed = os.sched_getaffinity(0)
    mine = min(allowed)
    asked = {"refit.interval": 0.1, "service.cpus": mine}
    with running(taught, **asked) as daemon, Client(daemon, push=True) as client:
        child = child_of(daemon)
        eventually(lambda: os.sched_getaffinity(child) == (allowed - {mine} or allowed))
        assert os.sched_getscheduler(child) == os.SCHED_IDLE
        assert os.getpriority(os.PRIO_PROCESS, child) == 19
        os.kill(child, signal.SIGKILL)
        eventually(lambda: refits(daemon, "failed") == 1)
        assert 'why="ended by signal 9"' in daemon.log
        assert send(client, 400, 401)[0]["model"] == bad.id
        child = child_of(daemon)
        os.kill(child, signal.SIGSTOP)  # be it where it may
        assert daemon.stop() == 0
        assert ended(child)
    with running(taught, **{"refit.interval": 0.1}) as daemon:
        child = child_of(daemon)
        daemon.process.kill()
        assert ended(child)
    assert load_model(taught / "m.safetensors").id == bad.id
