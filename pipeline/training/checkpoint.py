"""Everything a training needs to go on as if it had never stopped, in one file that is either whole or not there."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
import numpy.typing as npt

FILE = "checkpoint.npz"
STORED = "stored.json"
"""Beside it: which checkpoint whoever started the trainer has stored elsewhere."""
_FACTS = "facts"


class CheckpointError(Exception):
    """A checkpoint is damaged, or of another training. Always permanent."""

    permanent = True


@dataclass
class Progress:
    """How far a training is. `stage` and `step` (in the stage) count what is done; `lengths` are the stages' steps as decided;
    `seconds` of training before this start; `plan` identifies the training: a checkpoint of another one is refused;
    `losses` since the last look."""

    plan: str
    stage: int = 0
    step: int = 0
    seen: int = 0
    seconds: float = 0.0
    lengths: list[int] = field(default_factory=list)
    curve: list[dict[str, Any]] = field(default_factory=list)
    best: float = -1.0
    waited: int = 0
    losses: list[float] = field(default_factory=list)


def save(folder: Path, progress: Progress, arrays: dict[str, Sequence[npt.NDArray[Any]]]) -> None:
    """Write progress and named lists of arrays (weights, optimizer, generators), replacing the former checkpoint at once."""
    flat = {f"{name}/{k:05}": np.asarray(array) for name, listed in arrays.items() for k, array in enumerate(listed)}
    temporary = folder / f".{FILE}.{os.getpid()}.npz"
    try:
        np.savez(temporary, **flat, **{_FACTS: np.array(json.dumps(asdict(progress)))})
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        temporary.replace(folder / FILE)
    except OSError:  # half of it would keep a full disk full
        temporary.unlink(missing_ok=True)
        raise


def load(folder: Path, plan: str) -> tuple[Progress, dict[str, list[npt.NDArray[Any]]]] | None:
    """The checkpoint in a folder; None if there is none. Raises CheckpointError if it is damaged or belongs to another plan."""
    path = folder / FILE
    if not path.exists():
        return None
    try:
        # opened here: on a file that is no archive NumPy leaves its own handle open
        with path.open("rb") as file, np.load(file, allow_pickle=False) as content:
            progress = Progress(**json.loads(str(content[_FACTS])))
            arrays: dict[str, list[npt.NDArray[Any]]] = {}
            for key in sorted(set(content.files) - {_FACTS}):
                arrays.setdefault(key.rsplit("/", 1)[0], []).append(content[key])
    except (OSError, ValueError, KeyError, TypeError, EOFError, BadZipFile) as error:
        raise CheckpointError(f"{path} cannot be read: {error}. Delete it to start again.") from error
    if progress.plan != plan:
        raise CheckpointError(f"{path} belongs to a training with other settings. Choose another folder, or delete it to start again.")
    return progress, arrays


def acknowledge(folder: Path, stage: int, step: int) -> None:
    """Say that the checkpoint of this stage and step is stored where others find it, too; a trainer may be waiting for that."""
    temporary = folder / f".{STORED}.{os.getpid()}"
    temporary.write_text(json.dumps({"stage": stage, "step": step}))
    temporary.replace(folder / STORED)


def acknowledged(folder: Path) -> tuple[int, int]:
    """Stage and step of the last checkpoint that is said to be stored; (-1, -1): none is."""
    try:
        said = json.loads((folder / STORED).read_text())
        return int(said["stage"]), int(said["step"])
    except (OSError, ValueError, KeyError, TypeError):
        return -1, -1
