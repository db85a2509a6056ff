"""A table is written whole or not at all, to a file or through a pipe."""

import os
from collections.abc import Iterator
from pathlib import Path

import pandas as pd
import pytest

from streamlstm.console import write_table


@pytest.mark.parametrize("suffix", ["csv", "parquet"])
def test_a_table_is_written_whole_or_not_at_all(suffix: str, tmp_path: Path) -> None:
    """Whoever reads it, from a link to it, say, while the next is made sees the one before."""
    target, path = tmp_path / f"of-monday.{suffix}", tmp_path / f"latest.{suffix}"
    path.symlink_to(target)

    def some(values: list[int], then: BaseException | None = None) -> Iterator[pd.DataFrame]:
        for value in values:
            yield pd.DataFrame({"value": [value]})
        if then:
            raise then

    def read() -> list[int]:
        read = pd.read_csv if suffix == "csv" else pd.read_parquet
        return read(path).value.to_list()

    write_table(some([1, 2]), path)
    assert read() == [1, 2]
    with pytest.raises(KeyboardInterrupt):
        write_table(some([3], KeyboardInterrupt()), path)
    assert read() == [1, 2]
    write_table(some([4]), path)
    assert read() == [4]
    assert path.is_symlink()
    assert sorted(tmp_path.iterdir()) == [path, target]


def test_a_table_goes_through_a_pipe() -> None:
    reading, writing = os.pipe()
    with open(reading) as pipe:
        write_table(iter([pd.DataFrame({"value": [1]})]), Path(f"/proc/self/fd/{writing}"))
        os.close(writing)
        assert pipe.read() == "value\n1\n"
