"""The simulated disk keeps what was synced, and loses in every way what was not."""

import random
import subprocess
import sys
from pathlib import Path

from tests.disk import SECTOR, Disk, Op, operations

FILE, OTHER = (1, 0), (2, 0)
SCRIPT = """
import sys
from pathlib import Path
from tests import disk
root = Path(sys.argv[1])
disk.record(root, root.parent / "log")
import os
(root / "a").mkdir()
path = root / "a" / "f"
fd = os.open(path, os.O_CREAT | os.O_RDWR)
os.pwrite(fd, b"new", 3)
os.fsync(fd)
path.rename(root / "a" / "g")
with open(root / "h", "w") as file:
    file.write("unseen until it is synced")
    file.flush()
    os.fsync(file)
(root / "old").unlink()
folder = os.open(root, os.O_RDONLY)
os.fsync(folder)
(root.parent / "elsewhere").write_text("")
"""


def op(kind: str, begun: int, node: tuple[int, int] = FILE, path: str = "", **more: object) -> Op:
    """An operation that takes 5."""
    rest = {"to": "", "at": 0, "data": b""} | more
    return Op(kind, begun, begun + 5, node, path, **rest)  # type: ignore[arg-type]


def outcomes(ops: list[Op], moment: int, folder: Path) -> list[dict[str, bytes]]:
    """What 100 cuts at one moment leave: content by path."""
    disk, chance = Disk([op("base", 0), *ops]), random.Random(0)
    found = []
    for k in range(100):
        target = folder / str(k)
        target.mkdir(parents=True)
        disk.cut(moment, chance, target)
        files = (path for path in target.rglob("*") if path.is_file())
        found.append({str(path.relative_to(target)): path.read_bytes() for path in files})
    return found


def test_what_was_synced_is_there_and_what_was_not_may_be_torn_anywhere(tmp_path: Path) -> None:
    before, after = b"a" * 2 * SECTOR, b"b" * 2 * SECTOR
    ops = [
        op("make", 10, path="f"),
        op("write", 20, data=before),
        op("sync", 30),
        op("syncdir", 40, path=""),
        op("write", 50, data=after),
    ]
    assert outcomes(ops, 50, tmp_path / "then") == [{"f": before}] * 100
    left = {found["f"] for found in outcomes(ops, 51, tmp_path / "later")}
    torn = {before[:SECTOR] + after[SECTOR:], after[:SECTOR] + before[SECTOR:]}
    assert left == {before, after, *torn}
    synced = [*ops, op("sync", 60)]
    assert len({found["f"] for found in outcomes(synced, 64, tmp_path / "early")}) == 4
    assert outcomes(synced, 65, tmp_path / "synced") == [{"f": after}] * 100


def test_a_sync_covers_only_what_was_over_when_it_began(tmp_path: Path) -> None:
    ops = [
        op("make", 10, path="f"),
        op("syncdir", 20, path=""),
        op("write", 30, data=b"x"),
        op("sync", 33),
    ]
    assert {found["f"] for found in outcomes(ops, 99, tmp_path)} == {b"", b"\0", b"x"}


def test_names_come_and_go_only_with_their_folder(tmp_path: Path) -> None:
    ops = [
        op("make", 10, path="new"),
        op("write", 20, data=b"n"),
        op("sync", 30),
        op("make", 40, OTHER, path="old"),
        op("syncdir", 50, path=""),
        op("move", 60, FILE, path="new", to="old"),
    ]
    left = {tuple(sorted(found.items())) for found in outcomes(ops, 99, tmp_path / "moved")}
    assert left == {(("new", b"n"), ("old", b"")), (("old", b"n"),)}
    ops += [op("mkdir", 70, path="folder"), op("make", 80, OTHER, path="folder/f")]
    ops += [op("syncdir", 90, path="folder")]
    found = outcomes(ops, 99, tmp_path / "folder")
    assert {"folder/f" in each for each in found} == {True, False}


def test_what_a_process_does_is_recorded(tmp_path: Path) -> None:
    root = tmp_path / "root"
    root.mkdir()
    (root / "old").write_bytes(b"old")
    subprocess.run([sys.executable, "-c", SCRIPT, root], check=True)
    ops = operations(tmp_path / "log")
    base = [each.kind for each in ops].index("base")
    assert [(each.kind, each.path) for each in ops[:base]] == [("make", "old"), ("write", "")]
    later = [(each.kind, each.path or each.data) for each in ops[base + 1 :]]
    assert later == [
        ("mkdir", "a"),
        ("make", "a/f"),
        ("write", b"new"),
        ("size", b""),
        ("write", b"\0\0\0new"),
        ("sync", "a/f"),
        ("move", "a/f"),
        ("make", "h"),
        ("size", b""),
        ("write", b"unseen until it is synced"),
        ("sync", "h"),
        ("unlink", "old"),
        ("syncdir", b""),
    ]
    (found,) = {
        tuple(sorted(each.items()))
        for each in outcomes([each for each in ops if each.kind != "base"], 1 << 62, tmp_path / "o")
        if "a/g" in each
    }
    assert found == (("a/g", b"\0\0\0new"), ("h", b"unseen until it is synced"))
