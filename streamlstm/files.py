"""What files need beside their contents to outlive a crash."""

import contextlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO


@contextlib.contextmanager
def whole(path: Path) -> Iterator[IO[bytes]]:
    """A file to write that everybody may read, in the place of ``path`` once it is on disk.

    Raises:
        OSError: it cannot be written; then, and where anything else is raised, what was there is
            as it was.
    """
    try:
        descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from None
    try:
        with open(descriptor, "wb") as file:
            yield file
            file.flush()
            os.fsync(descriptor)
        os.chmod(name, 0o644)
        os.replace(name, path)
    except BaseException:
        os.unlink(name)
        raise


def write_whole(path: Path, data: bytes) -> None:
    """Write a file as :func:`whole` does."""
    with whole(path) as file:
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
