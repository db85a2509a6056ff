"""A real systemd as the first process of a machine of its own: namespaces, nothing of the host's.

Its files are those of the host, in an overlay whose changes are kept in memory and forgotten; its
network has a loopback interface and nothing else, so that ports are free and nothing is
downloaded; its processes end with the one that began it, however that ends.
"""

import contextlib
import ctypes
import os
import shutil
import subprocess
import sys
import sysconfig
import time
from collections.abc import Callable, Iterator
from pathlib import Path

NEEDS = ("unshare", "nsenter", "setpriv", "pivot_root", "/lib/systemd/systemd")
PACKAGES = "/opt/packages"
"""Where the machine has the libraries that the tests run with."""
BOOT = """
set -eu
umask 022
mount --make-rprivate /
mount -t tmpfs tmpfs "$1"
mkdir "$1/upper" "$1/work" "$1/packages" "$1/packages-work" "$1/root"
mount -t overlay overlay -o "lowerdir=/,upperdir=$1/upper,workdir=$1/work" "$1/root"
mkdir -p "$1/root/$2" "$1/root$4"
mount -t overlay overlay \
    -o "lowerdir=$3,upperdir=$1/packages,workdir=$1/packages-work" "$1/root$4"
if [ -n "$5" ]; then  # the Python that the tests run with, where a service may read it
    mkdir -p "$1/root/opt/python"
    mount --bind "$5" "$1/root/opt/python"
    mount -o remount,bind,ro "$1/root/opt/python"
fi
cd "$1/root"
mount -t proc proc proc
for each in proc/sys sys; do  # the host's settings
    mount --bind "/$each" $each
    mount -o remount,bind,ro $each
done
if [ -z "$6" ]; then
    mount -t cgroup2 cgroup2 sys/fs/cgroup
else  # controllers of the first version, beside a tree of the second
    mount -t tmpfs -o mode=755 tmpfs sys/fs/cgroup
    mkdir sys/fs/cgroup/unified
    mount -t cgroup2 cgroup2 sys/fs/cgroup/unified
    for each in $6; do
        mkdir "sys/fs/cgroup/$each"
        mount -t cgroup -o "$each" cgroup "sys/fs/cgroup/$each"
    done
fi
mount -t tmpfs -o mode=755 tmpfs dev
mkdir dev/shm dev/pts
mount -t devpts -o newinstance,ptmxmode=0666,mode=620,gid=5 devpts dev/pts
ln -s pts/ptmx dev/ptmx
for each in null zero full random urandom tty; do
    touch dev/$each
    mount --bind /dev/$each dev/$each
done
mount -t tmpfs -o mode=755 tmpfs run
mount -t tmpfs -o mode=1777 tmpfs tmp
mkdir -p "./$2"
mount --bind "$2" "./$2"
: > etc/fstab
rm -rf etc/systemd/system/*.wants
mkdir -p etc/systemd/system etc/systemd/system.conf.d
for each in systemd-modules-load.service modprobe@.service sys-kernel-debug.mount \
    sys-kernel-tracing.mount dev-hugepages.mount dev-mqueue.mount dbus.socket; do
    ln -sf /dev/null etc/systemd/system/$each
done
printf '[Manager]\\nDefaultEnvironment=PYTHONPATH=%s\\n' "$4" > etc/systemd/system.conf.d/tests.conf
pivot_root . mnt
umount -l /mnt
[ -z "$5" ] || { echo /opt/python/lib > /etc/ld.so.conf.d/python.conf; ldconfig; }
exec env -i container=tests PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin \
    PYTHONPATH="$4" /lib/systemd/systemd --system --unit=basic.target --show-status=no
"""
ENTER = 'for group in $0; do echo 0 > "$group/cgroup.procs" || exit; done; exec "$@"'
CLONE_NEWNET = 0x40000000


class NotAllowedError(RuntimeError):
    """No such machine can be had here; the message says why."""


class Machine:
    """One that runs. ``root`` is where its files are seen from outside."""

    def __init__(self, pid: int, python: str) -> None:
        self.pid, self.python = pid, python
        self.root = Path(f"/proc/{pid}/root")
        self._enter = [
            "nsenter", f"--target={pid}", "--mount", "--uts", "--ipc", "--net", "--pid", "--cgroup",
        ]  # fmt: skip

    def run(self, *command: str | Path, check: bool = True) -> "subprocess.CompletedProcess[str]":
        """As root, in it."""
        path = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
        done = subprocess.run(
            [*self._enter, *command], capture_output=True, text=True, stdin=subprocess.DEVNULL,
            env={"PATH": path, "PYTHONPATH": PACKAGES, "LANG": "C.UTF-8"}, umask=0o022,
        )  # fmt: skip
        assert not check or done.returncode == 0, done.stdout + done.stderr
        return done

    def show(self, unit: str, name: str) -> str:
        """A property of a unit."""
        return self.run("systemctl", "show", "--value", f"--property={name}", unit).stdout.strip()

    def journal(self, unit: str, *options: str) -> str:
        """What was logged of a unit, message by message."""
        self.run("journalctl", "--sync")
        asked = ("journalctl", f"--unit={unit}", "--output=cat", *options)
        return self.run(*asked, check=False).stdout  # nothing found is a failure to journalctl

    def main(self, unit: str) -> int:
        """The main process of a unit, as numbered outside."""
        inside = self.show(unit, "MainPID")
        for task in Path("/proc").glob("[0-9]*/status"):
            with contextlib.suppress(OSError):
                if f"\nNSpid:\t{task.parent.name}\t{inside}\n" in task.read_text():
                    return int(task.parent.name)
        raise ProcessLookupError(f"{unit}: {inside}")

    @contextlib.contextmanager
    def network(self) -> Iterator[None]:
        """This thread's sockets are in its network, and so are those of the threads it begins."""
        libc = ctypes.CDLL(None, use_errno=True)
        with open("/proc/thread-self/ns/net") as ours, open(f"/proc/{self.pid}/ns/net") as its:
            assert libc.setns(its.fileno(), CLONE_NEWNET) == 0, os.strerror(ctypes.get_errno())
            try:
                yield
            finally:
                assert libc.setns(ours.fileno(), CLONE_NEWNET) == 0

    def eventually(self, holds: Callable[[], bool], seconds: float = 60) -> None:
        """Wait until ``holds``, whatever it takes to ask."""
        deadline = time.monotonic() + seconds
        while not holds():
            assert time.monotonic() < deadline
            time.sleep(0.05)


@contextlib.contextmanager
def machine(folder: Path) -> Iterator[Machine]:
    """Boot one. It sees ``folder``, at the same path, where it may write too.

    Raises:
        NotAllowedError: as it says.
    """
    if missing := [name for name in NEEDS if not shutil.which(name)]:
        raise NotAllowedError(f"{missing[0]} is not installed")
    if os.geteuid():
        raise NotAllowedError("namespaces are not allowed: this is not root")
    base = folder / "machine"
    base.mkdir()
    with _cgroups() as (groups, controllers):
        prefix = sys.base_prefix if not sys.base_prefix.startswith("/usr") else ""
        python = f"{prefix and '/opt/python'}/bin/python{sysconfig.get_python_version()}"
        command = [
            "sh", "-c", ENTER, " ".join(map(str, groups)),
            "setpriv", "--pdeathsig=KILL", "--bounding-set=-sys_module,-sys_time",
            "unshare", "--kill-child", "--fork", "--pid", "--mount", "--cgroup", "--uts", "--ipc",
            "--net", "sh", "-c", BOOT, "boot",
            base, folder, sysconfig.get_path("purelib"), PACKAGES, prefix, " ".join(controllers),
        ]  # fmt: skip
        with (folder / "boot.log").open("w") as log:
            process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        try:
            yield _booted(process, log.name, python if prefix else sys._base_executable)
        finally:
            process.kill()
            process.wait()


def _booted(process: "subprocess.Popen[bytes]", log: str, python: str) -> Machine:
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    deadline = time.monotonic() + 60
    while process.poll() is None:
        with contextlib.suppress(OSError, ValueError):
            booted = Machine(int(children.read_text()), python)
            state = booted.run("systemctl", "is-system-running", check=False).stdout
            if state in ("running\n", "degraded\n"):
                return booted
        assert time.monotonic() < deadline, Path(log).read_text()
        time.sleep(0.05)
    why = Path(log).read_text().strip() or f"exit code {process.returncode}"
    raise NotAllowedError(f"namespaces are not allowed: {why}")


@contextlib.contextmanager
def _cgroups() -> Iterator[tuple[list[Path], list[str]]]:
    """Control groups of its own, which are gone at the end.

    One is of the second version; then one for each controller that is still of the first.
    """
    mounts = [line.split() for line in Path("/proc/self/mounts").read_text().splitlines()]
    roots = [Path(where) for _, where, kind, *_ in mounts if kind == "cgroup2"][:1]
    if not roots:
        raise NotAllowedError("namespaces are not allowed: there is no cgroup2")
    controllers = []
    for _, where, kind, options, *_ in mounts:
        if kind == "cgroup" and (found := set(options.split(",")) & {"memory", "pids"}):
            roots.append(Path(where))
            controllers.append(",".join(sorted(found)))
    name = "streamlstm-tests-"
    for old in (old for root in roots for old in root.glob(f"{name}*")):  # of killed tests
        if not Path("/proc", old.name.removeprefix(name)).exists():
            _remove(old)
    ours = [root / f"{name}{os.getpid()}" for root in roots]
    try:
        for group in ours:
            group.mkdir(exist_ok=True)
    except OSError as error:
        raise NotAllowedError(f"namespaces are not allowed: {error}") from None
    try:
        yield ours, controllers
    finally:
        deadline = time.monotonic() + 10
        for group in ours:
            while group.exists() and time.monotonic() < deadline:  # its processes are being ended
                _remove(group)


def _remove(group: Path) -> None:
    for at, *_ in os.walk(group, topdown=False):
        with contextlib.suppress(OSError):
            os.rmdir(at)
