"""The models that checkpoints are of, kept beside them: ``<checkpoint>.models``.

So that whatever becomes of the file that the configuration names, what was kept can be gone on
from.
"""

import contextlib
from pathlib import Path

from streamlstm.checkpoint import CheckpointError
from streamlstm.files import sync_folder
from streamlstm.model import Model
from streamlstm.model_file import load_model, save_model

ENDING = ".safetensors"


def keep(checkpoint: Path, model: Model) -> None:
    """Have a model on disk, by its id, readable by its owner alone.

    Raises:
        OSError: it cannot be written.
    """
    path = _path(checkpoint, model.id)
    if path.exists():
        return
    path.parent.mkdir(mode=0o700, exist_ok=True)
    sync_folder(path.parent.parent)
    save_model(model, path, 0o600)
    sync_folder(path.parent)


def load(checkpoint: Path, model: str) -> Model:
    """The model with this id.

    Raises:
        CheckpointError: it is not there.
        ModelError: it is damaged.
    """
    path = _path(checkpoint, model)
    if not model.isalnum() or not path.exists():
        raise CheckpointError(
            f"{checkpoint}: checkpoint of model {model}, which is not at {path}; put its file"
            " there, or move the checkpoint away to start with no state"
        )
    found = load_model(path)
    if found.id != model:
        raise CheckpointError(f"{path}: is model {found.id}; put {model} there")
    return found


def forget(checkpoint: Path, needed: set[str]) -> None:
    """Delete all but these; one that cannot be is tried again the next time."""
    for path in folder(checkpoint).glob(f"*{ENDING}"):
        if path.stem not in needed:
            with contextlib.suppress(OSError):
                path.unlink()


def folder(checkpoint: Path) -> Path:
    """Where they are."""
    return checkpoint.with_name(f"{checkpoint.name}.models")


def _path(checkpoint: Path, model: str) -> Path:
    return folder(checkpoint) / f"{model}{ENDING}"
