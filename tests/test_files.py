"""A file is there whole or not at all."""

import errno
import os
from pathlib import Path

import pytest

from streamlstm.files import lock_folder, mend_of, whole, write_whole


def test_a_file_takes_its_place_once_it_is_written(tmp_path: Path) -> None:
    path = tmp_path / "some.csv"
    path.write_text("before")
    with whole(path) as file:
        file.write(b"after")
        file.flush()
        assert path.read_text() == "before"
    assert path.read_text() == "after"
    assert os.listdir(tmp_path) == ["some.csv"]


@pytest.mark.parametrize(
    ("umask", "asked", "mode"),
    [(0o022, None, 0o644), (0o077, None, 0o600), (0o077, 0o640, 0o640), (0, 0o600, 0o600)],
)
def test_its_mode_is_the_one_asked_for_or_what_the_umask_leaves(
    umask: int, asked: int | None, mode: int, tmp_path: Path
) -> None:
    before = os.umask(umask)
    try:
        write_whole(tmp_path / "some.csv", b"", asked)
    finally:
        os.umask(before)
    assert (tmp_path / "some.csv").stat().st_mode & 0o777 == mode


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError])
def test_what_was_there_stays_where_writing_ends_early(
    error: type[BaseException], tmp_path: Path
) -> None:
    path = tmp_path / "some.csv"
    write_whole(path, b"before")

    def write() -> None:
        with whole(path) as file:
            file.write(b"aft")
            raise error

    with pytest.raises(error):
        write()
    assert path.read_text() == "before"
    assert os.listdir(tmp_path) == ["some.csv"]


def test_a_link_stays_and_what_is_no_file_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to("some.csv")
    write_whole(tmp_path / "link", b"text")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "some.csv").read_bytes() == b"text"
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(OSError, match="is no regular file"):
        write_whole(tmp_path / "pipe", b"")
    assert (tmp_path / "pipe").is_fifo()
    assert len(os.listdir(tmp_path)) == 3


def test_an_error_names_the_file_that_was_asked_for(tmp_path: Path) -> None:
    path = tmp_path / "nowhere" / "some.csv"
    with pytest.raises(OSError, match=r"nowhere/some\.csv") as refused:
        write_whole(path, b"")
    assert refused.value.errno == errno.ENOENT


def test_a_folder_is_locked_until_its_descriptor_is_closed(tmp_path: Path) -> None:
    descriptor = lock_folder(tmp_path)
    with pytest.raises(BlockingIOError):
        lock_folder(tmp_path)
    os.close(descriptor)
    os.close(lock_folder(tmp_path))
    with pytest.raises(FileNotFoundError):
        lock_folder(tmp_path / "none")


def test_what_may_not_be_had_names_the_user_that_is_to_be_let_in(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    denied = PermissionError(errno.EACCES, "Permission denied")
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    assert mend_of(denied, "x").startswith("let user root in (chown, chmod), or run this as ")
    monkeypatch.setattr(os, "geteuid", lambda: 4_000_000_000)  # has no name
    assert mend_of(denied, "x").startswith("let user 4000000000 in ")
    assert "ReadWritePaths=" in mend_of(OSError(errno.EROFS, ""), "x")
    assert mend_of(OSError(errno.ENOSPC, ""), "x") == "free some space"
    assert mend_of(OSError(errno.EIO, ""), "x") == "x"
