"""Parked series: back to the bit, or not at all."""

import contextlib
import sqlite3
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from streamlstm.admission import place
from streamlstm.engine import Engine
from streamlstm.index import FULL
from streamlstm.parking import Parking, ParkingError, look
from streamlstm.policies import Policies
from streamlstm.ticks import END, WARM, Arrivals, Keys, Ticks, rows_of
from tests.models import HOUR, random_model

MODEL = random_model(season=6, base="seasonal", lags=(1, 5))


def opened(most: int = 3, **options: object) -> Engine:
    return Engine(MODEL, max_series=most, ordered=True, **options)  # type: ignore[arg-type]


def arrivals(names: list[bytes], tick: int, flags: int = 0) -> Arrivals:
    n = len(names)
    values = np.array([[np.sin(tick + sum(name))] for name in names]).reshape(n, 1)
    moments = np.full(n, (tick + 1) * HOUR)
    return Arrivals(Keys.of(names), moments, values, np.full(n, flags, np.uint8))


def stepped(engine: Engine, parking: Parking | None, part: Arrivals, now: int) -> Ticks:
    """As the loop does it; the ticks that were placed."""
    if parking:
        parking.make_way(part, now, now)
    room = Ticks.room(len(part.ts), 1)
    ticks = rows_of(room, 0, place(engine.work, part, room, 0, now, now))
    engine.step(ticks, now)
    if parking and len(engine.ended):
        parking.forget(engine.series.keys(engine.ended))
    engine.close()
    return ticks


def state_of(engine: Engine) -> dict[bytes, bytes]:
    """All state of each series, but for when it was heard."""
    slots = engine.series.slots
    engine.series.state["heard"][slots] = 0
    parts = zip(engine.series.keys(slots), *engine.records(slots), strict=True)
    return {key: record.tobytes() + hidden.tobytes() for key, record, hidden in parts}


def test_nobody_makes_way_for_who_cannot_begin(tmp_path: Path) -> None:
    engine = opened(policies=Policies(max_ahead=1.0))
    parking = Parking(tmp_path / "parked", engine)
    stepped(engine, parking, arrivals([b"a", b"b", b"c"], 0), 9 * HOUR)
    early = arrivals([b"d", b"a"], 1)._replace(now=HOUR)
    assert len(stepped(engine, parking, early, 10 * HOUR).ts) == 1
    assert (parking.parked, engine.drops["future"], engine.series.active) == (0, 1, 3)
    stepped(engine, parking, early._replace(now=2 * HOUR), 11 * HOUR)
    assert (parking.parked, engine.series.active) == (1, 3)


@given(
    st.lists(st.lists(st.integers(0, 7), min_size=1, max_size=3, unique=True), max_size=40),
    st.sets(st.integers(0, 39)),
)
@settings(max_examples=12, deadline=None)
def test_evicted_and_back_is_as_never_evicted(
    tmp_path_factory: pytest.TempPathFactory, batches: list[list[int]], ends: set[int]
) -> None:
    path = tmp_path_factory.mktemp("parking") / "parked"
    few, all_ = opened(), opened(8)
    parking = Parking(path, few)
    for k, batch in enumerate(batches):
        names = [b"series %d" % which for which in batch]
        flags = int(END) if k in ends else 0
        for engine, file in ((few, parking), (all_, None)):
            assert len(stepped(engine, file, arrivals(names, k, flags), k + 1).ts) == len(names)
        assert few.series.active <= 3
    never = state_of(all_)
    for key, state in state_of(few).items():
        assert never[key] == state
    for name in never:  # whoever is parked, one after the other
        parking.make_way(arrivals([name], 0), 1000, 1000)
        place(few.work, arrivals([name], 0), Ticks.room(1, 1), 0, 1000, 1000)
        assert state_of(few)[name] == never[name]
        few.series.release(few.series.lookup(Keys.of([name])))
    assert parking.refused == parking.failures == 0
    before = few.series.started
    parking.make_way(arrivals([b"nobody"], 0), 1001, 1001)
    assert few.series.started == before
    parking.close()


def parked(path: Path, **options: object) -> None:
    """A file with a, b and c."""
    engine = opened(**options)
    parking = Parking(path, engine)
    for tick in range(5):
        stepped(engine, parking, arrivals([b"a", b"b", b"c"], tick), tick + 1)
    assert parking.park(engine.series.slots)
    assert (parking.parked, parking.rows) == (3, 3)
    parking.close()


def test_its_size_is_that_of_the_file_and_of_what_is_not_yet_in_it(tmp_path: Path) -> None:
    engine = opened()
    parking = Parking(tmp_path / "parked", engine)
    sizes = [parking.size]
    for tick in range(5):
        stepped(engine, parking, arrivals([b"a", b"b", b"c"], tick), tick + 1)
        assert parking.park(engine.series.slots)
        sizes.append(parking.size)
    assert sizes == sorted({*sizes})
    assert sizes[-1] == sum(
        f.stat().st_size for f in tmp_path.glob("parked*") if "shm" not in f.name
    )
    parking.close()


def back(path: Path, name: bytes, engine: Engine | None = None) -> tuple[Parking, int]:
    """Let it speak; and how many ticks it has seen then."""
    engine = engine or opened()
    parking = Parking(path, engine)
    ticks = stepped(engine, parking, arrivals([name], 9), 1)
    seen = int(engine.work.memory.seen[ticks.slot[0]])
    parking.close()
    return parking, seen


def test_another_process_goes_on_with_what_is_there(tmp_path: Path) -> None:
    parked(tmp_path / "p")
    for name in (b"a", b"c", b"a"):  # it stays there until it ends
        parking, seen = back(tmp_path / "p", name)
        assert (seen, parking.returned, parking.refused) == (6, 1, 0)
    assert (tmp_path / "p").stat().st_mode & 0o777 == 0o600


def test_whoever_ended_does_not_come_back(tmp_path: Path) -> None:
    parked(tmp_path / "p")
    engine = opened()
    parking = Parking(tmp_path / "p", engine)
    bare = arrivals([b"b"], 0, int(END))
    bare.values[:] = np.nan
    stepped(engine, parking, bare, 1)  # by a message alone
    stepped(engine, parking, arrivals([b"c"], 9, int(END)), 2)
    assert (parking.rows, engine.series.active) == (1, 0)
    parking.close()
    assert [back(tmp_path / "p", name)[1] for name in (b"a", b"b", b"c")] == [6, 1, 1]


@pytest.mark.parametrize("column", ["of", "state", "checksum"])
def test_a_damaged_row_is_refused_and_the_series_starts_anew(tmp_path: Path, column: str) -> None:
    parked(tmp_path / "p")
    for at in (0, 7):
        with contextlib.closing(sqlite3.connect(tmp_path / "p")) as file:
            ((value,),) = file.execute(f"SELECT {column} FROM parked WHERE key = ?", (b"a",))
            hurt = bytearray(value)
            hurt[at] ^= 4
            file.execute(f"UPDATE parked SET {column} = ? WHERE key = ?", (bytes(hurt), b"a"))
            file.commit()
        parking, seen = back(tmp_path / "p", b"a")
        assert (seen, parking.refused, parking.returned) == (1, 1, 0)
        assert "is damaged" in parking.problem
    assert back(tmp_path / "p", b"b")[1] == 6


def test_a_model_of_the_same_shape_goes_on_with_what_another_left(tmp_path: Path) -> None:
    parked(tmp_path / "p")
    trained_again = Engine(random_model(1, season=6, base="seasonal", lags=(1, 5)), max_series=3)
    parking, seen = back(tmp_path / "p", b"a", trained_again)
    assert (seen, parking.refused, parking.returned) == (6, 0, 1)


def test_one_of_another_shape_begins_from_the_latest_ticks(tmp_path: Path) -> None:
    parked(tmp_path / "p", history=3)
    wider = random_model(1, hidden=20)
    engine, fresh = (Engine(wider, max_series=3, history=3) for _ in range(2))
    parking, seen = back(tmp_path / "p", b"a", engine)
    assert (seen, parking.refused, parking.returned) == (4, 0, 1)
    for tick in range(2, 5):
        stepped(fresh, None, arrivals([b"a"], tick, int(WARM)), tick + 1)
    stepped(fresh, None, arrivals([b"a"], 9), 10)
    fresh.work.seq[fresh.series.slots] += 5
    assert state_of(engine)[b"a"] == state_of(fresh)[b"a"]


@pytest.mark.parametrize(
    ("options", "anew"),
    [({"coverage": 0.8}, "intervals, watch"), ({"learning": False}, ""), ({"history": 9}, "")],
)
def test_with_other_settings_all_goes_on_that_does_not_hang_on_them(
    tmp_path: Path, options: dict[str, object], anew: str, caplog: pytest.LogCaptureFixture
) -> None:
    parked(tmp_path / "p")
    engine, same = opened(**options), opened()
    for each in (engine, same):
        parking, seen = back(tmp_path / "p", b"a", each)
        back(tmp_path / "p", b"b", each)
        assert (seen, parking.refused, parking.returned) == (6, 0, 1)
    said = [record.getMessage() for record in caplog.records if "anew" in record.getMessage()]
    assert len(said) == (1 if anew else 0) * 2  # once for each time that it was opened
    assert all(f'what="{anew}"' in line for line in said)
    for field in ("seq", "seen", "past", "loc", "expected"):
        ours, theirs = engine.series.state[field][:2], same.series.state[field][:2]
        np.testing.assert_array_equal(ours, theirs)
    both = np.arange(2, dtype=np.int32)
    np.testing.assert_array_equal(engine.records(both)[1], same.records(both)[1])
    for ours, theirs in zip(engine.recent(both), same.recent(both), strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_where_none_can_be_parked_none_is_evicted(tmp_path: Path) -> None:
    engine = opened(2)
    parking = Parking(tmp_path / "p", engine)
    for tick in range(3):
        stepped(engine, parking, arrivals([b"a", b"b"], tick), tick + 1)
    before = state_of(engine)
    parking._file.execute("PRAGMA query_only = 1")  # as a disk that is full
    assert len(stepped(engine, parking, arrivals([b"c"], 3), 4).ts) == 0
    assert engine.drops["series_limit"] == 1
    assert state_of(engine) == before
    assert parking.failures == 1
    parking._file.execute("PRAGMA query_only = 0")
    assert len(stepped(engine, parking, arrivals([b"c"], 3), 5).ts) == 1
    assert engine.series.evicted["full"] == 1
    parking.close()


def test_without_eviction_those_parked_wait_for_a_free_slot(tmp_path: Path) -> None:
    parked(tmp_path / "p")
    engine = opened(1)
    parking = Parking(tmp_path / "p", engine, evict=False)
    assert len(stepped(engine, parking, arrivals([b"new"], 9), 1).ts) == 1
    assert len(stepped(engine, parking, arrivals([b"a"], 9), 2).ts) == 0
    engine.series.release(engine.series.slots, FULL)
    assert len(stepped(engine, parking, arrivals([b"a"], 9), 3).ts) == 1
    assert engine.work.memory.seen[0] == 6
    parking.close()


def test_a_batch_makes_way_for_itself_and_for_none_of_its_own(tmp_path: Path) -> None:
    engine = opened(3)
    parking = Parking(tmp_path / "p", engine)
    for tick in range(3):
        stepped(engine, parking, arrivals([b"a", b"b", b"c"], tick), tick + 1)
    ticks = stepped(engine, parking, arrivals([b"d", b"a", b"e", b"d", b"f"], 9), 9)
    assert engine.series.keys(ticks.slot) == [b"d", b"a", b"e", b"d"]
    assert engine.drops["series_limit"] == 1
    assert (parking.parked, engine.work.memory.seen[ticks.slot[1]]) == (2, 4)
    parking.close()


def test_a_file_that_cannot_be_used_is_told_in_one_line(tmp_path: Path) -> None:
    engine = opened()
    (tmp_path / "text").write_text("no database, but long enough to be seen as something else" * 9)
    with pytest.raises(ParkingError, match=r"^[^\n]*text: parking: [^\n]*; move it away$"):
        Parking(tmp_path / "text", engine)
    with pytest.raises(ParkingError, match=r"^[^\n]*text: parking: [^\n]*; move it away$"):
        look(tmp_path / "text")
    with pytest.raises(ParkingError, match=r"^[^\n]*; choose a path to write to$"):
        Parking(tmp_path / "no" / "folder", engine)
    parking = Parking(tmp_path / "p", engine)
    with pytest.raises(ParkingError, match=r"^[^\n]*; stop the other process$"):
        Parking(tmp_path / "p", engine)
    look(tmp_path / "p")
    parking.close()
    with contextlib.closing(sqlite3.connect(tmp_path / "p")) as file:
        file.execute("PRAGMA user_version = 9")
    with pytest.raises(ParkingError, match="of format 9, this version reads 3"):
        Parking(tmp_path / "p", engine)
    with pytest.raises(ParkingError, match="of format 9, this version reads 3"):
        look(tmp_path / "p")
    look(tmp_path / "none")
    assert not (tmp_path / "none").exists()
