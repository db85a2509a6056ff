"""Where compiled code is kept between runs: a folder of its own for each state of the sources.

Numba keeps a function's machine code until that function's own file changes, but a function holds
the code of those it calls in other files too. So the folder's name says what all the sources are,
and a changed source finds no stale code. Where it makes the first of its own, those of others go
that nobody has used for long.
"""

import contextlib
import os
import shutil
import tempfile
import time
import zlib
from pathlib import Path

UNUSED = 30 * 86_400.0
"""Seconds since the latest start after which the folder of other sources is removed."""

_PREFIX = "streamlstm-"
_MEND = "set NUMBA_CACHE_DIR to a folder of your own"


class NoFolderError(OSError):
    """There is no place for compiled code; the message is one line and says the mend."""


def choose_folder() -> Path:
    """Point Numba, if not yet imported, below ``$NUMBA_CACHE_DIR`` or the user's cache folder.

    The folder is made. Numba would pass over one that it cannot write to, and look for another
    place or none, so that every start would compile.

    Raises:
        NoFolderError: it cannot be written to, or none is set and the user has no home.
    """
    print_of_sources = 0
    for source in sorted(Path(__file__).parent.rglob("*.py")):
        print_of_sources = zlib.crc32(source.read_bytes(), print_of_sources)
    name = f"{_PREFIX}{print_of_sources:08x}"
    given = os.environ.get("NUMBA_CACHE_DIR")
    folder = Path(given) if given else _cache_home() / "streamlstm"
    if folder.name != name:  # a child process was given the folder by its parent
        folder /= name
    try:
        new = not folder.exists()
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
        os.utime(folder)  # says that it is in use
    except OSError as error:
        raise NoFolderError(
            f"{folder}: no compiled code can be kept there ({error.strerror}); {_MEND}"
        ) from None
    if new:
        _remove_unused(folder.parent)
    os.environ["NUMBA_CACHE_DIR"] = str(folder)
    return folder


def _remove_unused(parent: Path) -> None:
    """Remove what no start has used for ``UNUSED``; who runs has loaded what it needs."""
    for each in parent.glob(f"{_PREFIX}{8 * '[0-9a-f]'}"):
        with contextlib.suppress(OSError):  # another process removes it too, say
            if each.stat().st_mtime < time.time() - UNUSED:
                shutil.rmtree(each, ignore_errors=True)


def _cache_home() -> Path:
    if given := os.environ.get("XDG_CACHE_HOME"):
        return Path(given)
    try:
        return Path("~/.cache").expanduser()
    except RuntimeError:  # no folder that others can write to: compiled code is run
        raise NoFolderError(f"no home folder to keep compiled code in; {_MEND}") from None
