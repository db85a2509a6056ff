"""What files need beside their contents to outlive a crash."""

import os
from pathlib import Path


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
