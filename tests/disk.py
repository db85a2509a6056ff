"""A disk that keeps what was synced, and of all else whatever it likes.

A process that calls :func:`record` first of all leaves a list of what it did to files below one
folder: from Python by way of ``os`` and ``open``, from compiled code by the names of libc that
it is linked with. :class:`Disk` makes of that list what a power cut at any moment may leave (after
Pillai et al. 2014, "All file systems are not created equal", and Rebello et al. 2020, "Can
applications recover from fsync failures?"):

- of a file what was written before its last sync began; of what came later, for each sector of 512
  bytes what it was at any time since, and any of the sizes it had;
- of a folder the names that it had when its last sync began, and any of the later changes, each of
  which is made whole or not at all. A folder that was made is a name in the one above it.

What only ``open`` or a library writes is seen once it is synced; until then it counts as lost.
"""

import builtins
import ctypes
import io
import os
import pickle
import random
import signal
import threading
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple

SECTOR = 512
NAMES, DATA = "folders", "files"
"""What a mutation can leave unsynced."""


class Op(NamedTuple):
    """One thing done; times are ns of the monotonic clock."""

    kind: str
    """write, size, grow, sync of a node; make, move, unlink, mkdir, syncdir of a path"""
    begun: int
    ended: int
    node: tuple[int, int]
    """inode, and when it was made; what lay there before has 0"""
    path: str
    """below the folder"""
    to: str
    at: int
    data: bytes


# --- recording ------------------------------------------------------------------------------------


class _Recorder:
    """Takes the place of all that changes files."""

    def __init__(
        self, root: Path, log: Path, omit: str, sync_seconds: float, die_at: int, late: bool
    ) -> None:
        self.root, self.omit, self.sync_seconds = os.path.realpath(root), omit, sync_seconds
        self.die_at, self.late, self.count, self.pid = die_at, late, 0, os.getpid()
        self.real: dict[str, Any] = {name: getattr(os, name) for name in _PATCHED}
        self.real["io"] = io.open
        self.log = log
        log.write_bytes(b"")
        self.made: dict[int, int] = {}
        self.content = threading.Lock()
        """held while what is told of a file's content becomes true"""

    def below(self, path: Any) -> str | None:
        """The path below the folder; None of what lies elsewhere."""
        if isinstance(path, int):
            path = os.readlink(f"/proc/self/fd/{path}")
        full = os.path.abspath(os.fspath(path))
        folder, name = os.path.split(full)
        full = os.path.join(os.path.realpath(folder), name)
        if full == self.root:
            return ""
        return os.path.relpath(full, self.root) if full.startswith(f"{self.root}/") else None

    def node(self, path: Any) -> tuple[int, int]:
        inode = (os.fstat(path) if isinstance(path, int) else os.stat(path)).st_ino
        return inode, self.made.get(inode, 0)

    def tell(self, kind: str, begun: int, node: tuple[int, int] = (0, 0), path: str = "",
             to: str = "", at: int = 0, data: bytes = b"") -> None:  # fmt: skip
        op = Op(kind, begun, time.monotonic_ns(), node, path, to, at, data)
        log = self.real["open"](self.log, os.O_CREAT | os.O_WRONLY | os.O_APPEND, 0o600)
        self.real["write"](log, pickle.dumps(tuple(op)))  # a child process may write there too
        os.close(log)

    def about_to(self) -> int:
        """The time; or the end, where it is to come at this operation."""
        self.count += 1
        if self.count == self.die_at:
            os.kill(self.pid, signal.SIGKILL)
        return time.monotonic_ns()

    def install(self) -> None:
        for name in _PATCHED:
            setattr(os, name, getattr(self, name))
        builtins.open = io.open = self.opened  # type: ignore[assignment]

    # --- in the place of those of os ---

    def open(self, path: Any, flags: int, mode: int = 0o777, *, dir_fd: None = None) -> int:
        assert dir_fd is None
        if not flags & (os.O_CREAT | os.O_TRUNC) or self.below(path) is None:
            return self.real["open"](path, flags, mode)
        begun, there = self.about_to(), os.path.lexists(path)
        descriptor = self.real["open"](path, flags, mode)
        self._begin(path, begun, there, bool(flags & os.O_TRUNC))
        return descriptor

    def _begin(self, path: Any, begun: int, there: bool, truncated: bool) -> None:
        name = self.below(path)
        assert name is not None
        if not there:
            self.made[os.stat(path).st_ino] = begun
            self.tell("make", begun, self.node(path), name)
        elif truncated:
            self.tell("size", begun, self.node(path), name)

    def opened(self, file: Any, mode: str = "r", *args: Any, **kwargs: Any) -> Any:
        writes = set(mode) & set("wxa") and not isinstance(file, int)
        if not writes or self.below(file) is None:
            return self.real["io"](file, mode, *args, **kwargs)
        begun, there = self.about_to(), os.path.lexists(file)
        made = self.real["io"](file, mode, *args, **kwargs)
        self._begin(file, begun, there, "w" in mode)
        return made

    def write(self, descriptor: int, data: Any) -> int:
        if self.below(descriptor) is None:
            return self.real["write"](descriptor, data)
        begun = self.about_to()
        at = os.lseek(descriptor, 0, os.SEEK_CUR)
        wrote = self.real["write"](descriptor, data)
        self.tell("write", begun, self.node(descriptor), at=at, data=bytes(data)[:wrote])
        return wrote

    def pwrite(self, descriptor: int, data: Any, at: int) -> int:
        if self.below(descriptor) is None:
            return self.real["pwrite"](descriptor, data, at)
        with self.content:
            begun = self.about_to()
            wrote = self.real["pwrite"](descriptor, data, at)
            self.tell("write", begun, self.node(descriptor), at=at, data=bytes(data)[:wrote])
        return wrote

    def writev(self, descriptor: int, parts: Iterable[Any]) -> int:
        return self.write(descriptor, b"".join(map(bytes, parts)))

    def pwritev(self, descriptor: int, parts: Iterable[Any], at: int, flags: int = 0) -> int:
        return self.pwrite(descriptor, b"".join(map(bytes, parts)), at)

    def ftruncate(self, descriptor: int, size: int) -> None:
        begun = self.about_to()
        self.real["ftruncate"](descriptor, size)
        if self.below(descriptor) is not None:
            self.tell("size", begun, self.node(descriptor), at=size)

    def truncate(self, path: Any, size: int) -> None:
        begun = self.about_to()
        self.real["truncate"](path, size)
        if self.below(path) is not None:
            self.tell("size", begun, self.node(path), at=size)

    def posix_fallocate(self, descriptor: int, begin: int, size: int) -> None:
        begun = self.about_to()
        self.real["posix_fallocate"](descriptor, begin, size)
        if self.below(descriptor) is not None:
            self.tell("grow", begun, self.node(descriptor), at=begin + size)

    def fsync(self, file: Any, behind_our_back: bool = True) -> None:
        descriptor = file if isinstance(file, int) else file.fileno()
        if (path := self.below(descriptor)) is None:
            return self.real["fsync"](descriptor)
        folder = os.path.isdir(descriptor)
        if self.omit == (NAMES if folder else DATA):
            return None
        if not folder and behind_our_back:  # what a library wrote
            with self.content, self.real["io"](f"/proc/self/fd/{descriptor}", "rb") as whole:
                data = whole.read()
                now = time.monotonic_ns()
                self.tell("size", now, self.node(descriptor), at=len(data))
                self.tell("write", now, self.node(descriptor), data=data)
        begun = self.about_to()
        if self.late and not folder:  # it says that all is done, and does it later
            timer = threading.Timer(0.05, self.tell, ("sync", begun, self.node(descriptor)))
            timer.daemon = True
            timer.start()
            return None
        time.sleep(self.sync_seconds)
        self.tell("syncdir" if folder else "sync", begun, self.node(descriptor), path)
        return None

    fdatasync = fsync

    def rename(self, source: Any, target: Any) -> None:
        names = self.below(source), self.below(target)
        if names[0] is None or names[1] is None:
            return self.real["rename"](source, target)
        assert os.path.dirname(names[0]) == os.path.dirname(names[1]), "from folder to folder"
        begun, node = self.about_to(), self.node(source)
        if os.path.lexists(target):
            self._bury(target)
        self.real["replace"](source, target)
        self.tell("move", begun, node, names[0], names[1])
        return None

    replace = rename

    def unlink(self, path: Any, *, dir_fd: None = None) -> None:
        assert dir_fd is None
        name = self.below(path)
        begun = self.about_to()
        self._bury(path)
        self.real["unlink"](path)
        if name is not None:
            self.tell("unlink", begun, path=name)

    remove = unlink

    def _bury(self, path: Any) -> None:
        """What has this inode from now on is another node."""
        self.made[os.lstat(path).st_ino] = time.monotonic_ns()

    def mkdir(self, path: Any, mode: int = 0o777, *, dir_fd: None = None) -> None:
        assert dir_fd is None
        name = self.below(path)
        begun = self.about_to()
        self.real["mkdir"](path, mode)
        if name is not None:
            self.tell("mkdir", begun, path=name)

    # --- in the place of libc's, for compiled code ---

    def compiled_pwrite(self, descriptor: int, address: int, size: int, at: int) -> int:
        try:
            return self.pwrite(descriptor, ctypes.string_at(address, size), at)
        except OSError as error:
            ctypes.set_errno(error.errno or 0)
            return -1

    def compiled_fdatasync(self, descriptor: int) -> int:
        try:
            self.fsync(descriptor, behind_our_back=False)
        except OSError as error:
            ctypes.set_errno(error.errno or 0)
            return -1
        return 0


_PATCHED = (
    "open", "write", "pwrite", "writev", "pwritev", "ftruncate", "truncate", "posix_fallocate",
    "fsync", "fdatasync", "rename", "replace", "unlink", "remove", "mkdir",
)  # fmt: skip
_LINKED: list[Any] = []
"""What compiled code was given the address of."""


def record(
    root: Path, log: Path, *, omit: str = "", sync_seconds: float = 0.0, die_at: int = 0,
    late: bool = False,
) -> None:  # fmt: skip
    """From now on, write to ``log`` what this process does to files below ``root``.

    To be called before compiled code that does so is compiled or loaded: later it is linked.

    Args:
        root: a folder.
        log: a file elsewhere.
        omit: ``NAMES`` or ``DATA``: these are not synced, whatever is asked for.
        sync_seconds: that a sync takes.
        die_at: the number of the operation, from 1, in place of which the process is killed.
        late: syncs of files return before anything is synced.
    """
    import llvmlite.binding as llvm

    recorder = _Recorder(root, log, omit, sync_seconds, die_at, late)
    for folder, names, files in os.walk(recorder.root):
        for name in names:
            recorder.tell("mkdir", 0, path=recorder.below(os.path.join(folder, name)) or "")
        for name in files:
            path = os.path.join(folder, name)
            data, node = Path(path).read_bytes(), recorder.node(path)
            recorder.tell("make", 0, node, recorder.below(path) or "")
            recorder.tell("write", 0, node, data=data)
    recorder.tell("base", 0)
    recorder.install()
    kinds: list[tuple[str, Any, Callable[..., int]]] = [
        ("pwrite", ctypes.CFUNCTYPE(ctypes.c_ssize_t, ctypes.c_int, ctypes.c_void_p,
                                    ctypes.c_size_t, ctypes.c_int64, use_errno=True),
         recorder.compiled_pwrite),
        ("fdatasync", ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_int, use_errno=True),
         recorder.compiled_fdatasync),
    ]  # fmt: skip
    for name, kind, function in kinds:
        _LINKED.append(kind(function))
        llvm.add_symbol(name, ctypes.cast(_LINKED[-1], ctypes.c_void_p).value)


def operations(log: Path) -> list[Op]:
    """What :func:`record` wrote, in the order in which it was done with; a torn end is left out."""
    ops = []
    with log.open("rb") as file:
        while True:
            try:
                ops.append(Op(*pickle.load(file)))
            except (EOFError, pickle.UnpicklingError):
                break
    return sorted(ops, key=lambda op: op.ended if op.begun else 0)


# --- what a power cut leaves ----------------------------------------------------------------------


class Disk:
    """All that was done to a folder."""

    def __init__(self, ops: list[Op]) -> None:
        self.ops = ops
        base = next(k for k, op in enumerate(ops) if op.kind == "base")
        self._base, self._later = ops[:base], ops[base + 1 :]

    def moment(self, chance: random.Random) -> int:
        """Right after something began or ended; what is done rarely is as likely as the rest."""
        rare = [op for op in self._later if op.kind not in ("write", "sync", "size")]
        op = chance.choice(rare if rare and chance.random() < 0.5 else self._later)
        return 1 + chance.choice((op.begun, op.ended))

    def unsynced_since(self, moment: int) -> int:
        """When the oldest write began that was not on disk at that moment; else the moment."""
        synced = self._synced(moment)
        late = (
            op.begun for op in self._later
            if op.kind == "write" and op.begun < moment and op.ended > synced.get(op.node, 0)
        )  # fmt: skip
        return min(late, default=moment)

    def cut(self, moment: int, chance: random.Random, target: Path) -> None:
        """Lay out in ``target``, an empty folder, what a power cut at that moment may leave.

        The disk keeps all, nothing, or any part of what was not synced: of names and of data apart.
        """
        names, data = chance.choice((0.0, 0.5, 1.0)), chance.choice((0.0, 0.5, 1.0))
        tree = self._names(moment, chance, names)
        contents: dict[tuple[int, int], bytes] = {}
        for path, node in sorted(tree.items()):
            if node is None:
                (target / path).mkdir()
        synced = self._synced(moment)
        for path, node in tree.items():
            if node is not None and (target / path).parent.is_dir():
                if node not in contents:
                    contents[node] = self._content(node, moment, synced.get(node, 0), chance, data)
                (target / path).write_bytes(contents[node])

    def _synced(self, moment: int) -> dict[tuple[int, int], int]:
        """When each node's last sync began that was over by then."""
        syncs = (op for op in self._later if op.kind == "sync" and op.ended <= moment)
        synced: dict[tuple[int, int], int] = {}
        for op in syncs:
            synced[op.node] = max(op.begun, synced.get(op.node, 0))
        return synced

    def _names(
        self, moment: int, chance: random.Random, keep: float
    ) -> dict[str, tuple[int, int] | None]:
        """Path -> node, or None of a folder."""
        synced: dict[str, int] = {}
        for op in self._later:
            if op.kind == "syncdir" and op.ended <= moment:
                synced[op.path] = max(op.begun, synced.get(op.path, 0))
        tree: dict[str, tuple[int, int] | None] = {}
        for op in (*self._base, *self._later):
            if op.kind not in ("make", "mkdir", "move", "unlink") or op.begun >= moment:
                continue
            kept = not op.begun or op.ended <= synced.get(os.path.dirname(op.path), 0)
            if not kept and chance.random() >= keep:
                continue
            if op.kind in ("move", "unlink"):
                tree.pop(op.path, None)
            if op.kind != "unlink":
                tree[op.to or op.path] = None if op.kind == "mkdir" else op.node
        return tree

    def _content(
        self, node: tuple[int, int], moment: int, synced: int, chance: random.Random, keep: float
    ) -> bytes:
        image, versions, sizes = bytearray(), dict[int, list[bytes]](), list[int]()
        for op in (*self._base, *self._later):
            if op.node != node or op.kind not in ("write", "size", "grow") or op.begun >= moment:
                continue
            durable = not op.begun or op.ended <= synced
            if not durable and not sizes:
                sizes.append(len(image))
            if op.kind == "write":
                end = op.at + len(op.data)
                touched = range(op.at // SECTOR, -(-end // SECTOR))
                if not durable:
                    for sector in touched:
                        versions.setdefault(sector, [_sector(image, sector)])
                if len(image) < end:
                    image.extend(bytes(end - len(image)))
                image[op.at : end] = op.data
                if not durable:
                    for sector in touched:
                        versions[sector].append(_sector(image, sector))
            elif op.kind == "size" or len(image) < op.at:
                for sector in range(op.at // SECTOR, -(-len(image) // SECTOR)):
                    if not durable:
                        lost = _sector(image, sector)[: max(0, op.at - sector * SECTOR)]
                        held = versions.setdefault(sector, [_sector(image, sector)])
                        held.append(lost.ljust(SECTOR, b"\0"))
                del image[op.at :]
                image.extend(bytes(op.at - len(image)))
            if not durable:
                sizes.append(len(image))
        for sector, held in versions.items():
            which = _one_of(held, chance, keep)
            end = sector * SECTOR + SECTOR
            if len(image) < end:
                image.extend(bytes(end - len(image)))
            image[sector * SECTOR : end] = which
        if sizes:
            size = _one_of(sizes, chance, keep)
            del image[size:]
            image.extend(bytes(size - len(image)))
        return bytes(image)


def _sector(image: bytearray, sector: int) -> bytes:
    return bytes(image[sector * SECTOR : sector * SECTOR + SECTOR]).ljust(SECTOR, b"\0")


def _one_of(held: list[Any], chance: random.Random, keep: float) -> Any:
    """The first (nothing is kept), the last (all is), or any."""
    return held[0] if keep == 0 else held[-1] if keep == 1 else chance.choice(held)
