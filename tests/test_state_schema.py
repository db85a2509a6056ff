"""The schema of a state: its own words bring it back, and it tells settings apart."""

import json
from typing import Any

import numpy as np
import pytest

from streamlstm.engine import Engine
from streamlstm.state_schema import Migration, Schema, schema_of
from streamlstm.ticks import Keys
from tests.models import random_model
from tests.test_engine import ticks


def engine(coverage: float = 0.9, **options: Any) -> Engine:
    return Engine(random_model(**options), max_series=3, coverage=coverage)


def moved(engine: Engine, many: int = 5) -> Engine:
    engine.series.lookup(Keys.of([b"a"]))
    for hour in range(many):
        engine.step(ticks([0], [hour], np.array([hour % 3.0])), 0)
    return engine


def test_its_text_brings_it_back() -> None:
    found = schema_of(engine())
    again = Schema.from_text(found.to_text())
    assert again == found
    assert again.id == found.id
    states = engine().records(np.zeros(1, np.int32))
    assert found.bytes == sum(part.nbytes for part in states)


def test_states_of_as_many_bytes_are_told_apart() -> None:
    one, other = schema_of(engine(0.9)), schema_of(engine(0.8))
    assert one.bytes == other.bytes
    assert one.id != other.id


@pytest.mark.parametrize(
    "text",
    ["", "{}", "[1, 2, 3]", "[[], {}, [], 3]", "[[], {}, [8], 3]", '[[], {}, ["x", 8], 3]',
     '[[], {}, [["a", "O", [], 0], 8], 3]', '[[], {}, [["a", "<i8", [], 4], 8], 3]',
     '[[], {}, [["a", "<i8", [-1], 0], 8], 3]', '[[], 5, [["a", "<i8", [], 0], 8], 3]'],
)  # fmt: skip
def test_what_is_no_schema_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="no schema of a state"):
        Schema.from_text(text)


def test_a_state_that_is_not_of_its_schema_is_refused() -> None:
    other = engine()
    migration = Migration(schema_of(other), other)
    with pytest.raises(ValueError, match="a state of 3 bytes"):
        migration.take_back(other.series.lookup(Keys.of([b"a"])), b"abc")


def test_of_a_model_with_other_ticks_nothing_goes_on() -> None:
    old, new = moved(engine()), engine(inputs=2)
    migration = Migration(schema_of(old), new)
    assert migration.lost == ["all"]
    record, recurrent = old.records(np.zeros(1, np.int32))
    migration.take_back(new.series.lookup(Keys.of([b"a"])), record.tobytes() + recurrent.tobytes())
    assert new.work.seq[0] == new.work.memory.seen[0] == 0


def test_a_version_that_kept_a_part_otherwise_gives_all_else() -> None:
    old, new = moved(engine()), engine()
    words = json.loads(schema_of(old).to_text())
    (field,) = (field for field in words[2][:-1] if field[0] == "width")
    field[1] = "<i4"
    migration = Migration(Schema.from_text(json.dumps(words)), new)
    assert migration.lost == ["intervals"]
    words[2] = [field for field in words[2] if field == words[2][-1] or field[0] != "loc"]
    assert Migration(Schema.from_text(json.dumps(words)), new).misfit == "loc"
    record, recurrent = old.records(np.zeros(1, np.int32))
    migration.take_back(new.series.lookup(Keys.of([b"a"])), record.tobytes() + recurrent.tobytes())
    for name in ("seq", "seen", "loc", "mean", "averages", "recent"):
        np.testing.assert_array_equal(new.series.state[name][0], old.series.state[name][0])
    np.testing.assert_array_equal(new.records(np.zeros(1, np.int32))[1], recurrent)
