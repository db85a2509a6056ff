"""What files need beside their contents to outlive a crash, and other processes."""

import contextlib
import errno
import fcntl
import os
import pwd
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import IO


def mend_of(error: OSError, otherwise: str) -> str:
    """What to do about a file or folder that cannot be had, in half a line."""
    match error.errno:
        case errno.EACCES | errno.EPERM:
            return f"let user {_user()} in (chown, chmod), or run this as the user whose it is"
        case errno.EROFS:
            return "choose another folder, or have it writable (for a service by ReadWritePaths=)"
        case errno.ENOSPC | errno.EDQUOT:
            return "free some space"
    return otherwise


def _user() -> str:
    with contextlib.suppress(KeyError):
        return pwd.getpwuid(os.geteuid()).pw_name
    return str(os.geteuid())


@contextlib.contextmanager
def whole(path: Path, mode: int | None = None) -> Iterator[IO[bytes]]:
    """A file to write, in the place of ``path`` once it is on disk.

    Its ``mode`` is what the process' umask leaves, unless one is given. A symbolic link stays, to
    what is written.

    Raises:
        OSError: it cannot be written, or what is there is no file; then, and where anything else is
            raised, what was there is as it was.
    """
    path = path.resolve()
    if path.exists() and not path.is_file():
        raise OSError(errno.EINVAL, "is no regular file", str(path))
    name = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    flags = os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC
    try:
        descriptor = os.open(name, flags, 0o666 if mode is None else 0o600)
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from None
    try:
        with open(descriptor, "wb") as file:
            if mode is not None:
                os.fchmod(descriptor, mode)
            yield file
            file.flush()
            os.fsync(descriptor)
        os.replace(name, path)
    except BaseException:
        os.unlink(name)
        raise


def write_whole(path: Path, data: bytes, mode: int | None = None) -> None:
    """Write a file as :func:`whole` does."""
    with whole(path, mode) as file:
        file.write(data)


def sync_folder(folder: Path) -> None:
    """Have the names in it on disk (fsync(2)).

    Raises:
        OSError: they cannot be.
    """
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def lock_folder(folder: Path) -> int:
    """A descriptor by which no other process locks it, until it is closed (flock(2)).

    Raises:
        BlockingIOError: another one does.
        OSError: it cannot be read.
    """
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(descriptor)
        raise
    return descriptor
