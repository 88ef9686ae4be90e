"""What a training needs to go on elsewhere, kept in the models bucket under `trainings/{id}/`.

Each time it is a set of files under a prefix of its own; the training's row names it, with every file's hash, once it is whole. So
what a worker leaves behind that is presumed dead, or dies half-way, is never taken for a checkpoint.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.card import sha256
from pipeline.settings import Settings
from pipeline.storage import Storage, StorageError
from workers.launching import CHECKPOINT_FILES

log = logging.getLogger(__name__)

CHECKPOINT = CHECKPOINT_FILES[-1]


class KeepingError(Exception):
    """What was kept of a training cannot be had again. `permanent`: nor later."""

    def __init__(self, sentence: str, *, permanent: bool = False) -> None:
        super().__init__(sentence)
        self.permanent = permanent


@dataclass(frozen=True)
class Snapshot:
    """A checkpoint as it lay in the trainer's folder at one moment. `mark` tells it from others; `stage`, `step`: what is done."""

    folder: Path
    mark: tuple[int, int]
    stage: int
    step: int


def mark_of(folder: Path) -> tuple[int, int] | None:
    """What changes whenever the trainer has written another checkpoint into its folder; None: there is none yet."""
    try:
        found = (folder / CHECKPOINT).stat()
    except OSError:
        return None
    return found.st_ino, found.st_mtime_ns


def snapshot(folder: Path) -> Snapshot | None:
    """The present checkpoint, held fast by links beside it while the trainer goes on; None: there is none, or it cannot be read.

    The trainer replaces files whole. The checkpoint is linked after the other files, and again if they changed meanwhile.
    """
    held = folder / "held"
    for _ in range(5):
        shutil.rmtree(held, ignore_errors=True)
        held.mkdir()
        before = _inodes(folder)
        if CHECKPOINT not in before:
            return None
        try:
            for name in CHECKPOINT_FILES:
                if name in before:
                    os.link(folder / name, held / name)
        except OSError:
            continue
        if _inodes(folder) == before and (place := position(held)) is not None:
            mark = mark_of(held)
            return None if mark is None else Snapshot(held, mark, *place)
    return None


def _inodes(folder: Path) -> dict[str, int]:
    found = {}
    for name in CHECKPOINT_FILES:
        try:
            found[name] = (folder / name).stat().st_ino
        except OSError:
            continue
    return found


def position(folder: Path) -> tuple[int, int] | None:
    """Stage and step of the checkpoint in a folder; None: there is none, or it is damaged."""
    import numpy as np

    try:
        with (folder / CHECKPOINT).open("rb") as file, np.load(file, allow_pickle=False) as content:
            facts = json.loads(str(content["facts"]))
        return int(facts["stage"]), int(facts["step"])
    except Exception as error:  # whatever a damaged file makes NumPy raise: then it is no checkpoint
        if not isinstance(error, FileNotFoundError):
            log.warning("The checkpoint in %s cannot be read: %s", folder, error)
        return None


def store(
    storage: Storage,
    settings: Settings,
    prefix: str,
    folder: Path,
    names: Iterable[str],
    told: Callable[[int], None] | None = None,
) -> dict[str, str]:
    """Upload files of a folder under `prefix`; returns the hash of each. `told`: as of `Storage.upload`. Raises StorageError."""
    hashes = {}
    for name in names:
        if (folder / name).is_file():
            hashes[name] = sha256(folder / name)
            storage.upload(settings.models_bucket, prefix + name, folder / name, told)
    return hashes


def acknowledge(folder: Path, held: Snapshot) -> None:
    """Tell the trainer in a folder that this checkpoint of it is stored: it may be waiting for that."""
    from pipeline.training import checkpoint

    checkpoint.acknowledge(folder, held.stage, held.step)


def restore(storage: Storage, settings: Settings, kept: Mapping[str, Any], folder: Path) -> None:
    """Bring what was kept into a folder, all of it or nothing; files that are there already are not fetched.

    Raises KeepingError where it is not what was stored, StorageError.
    """
    arriving = folder / "arriving"
    shutil.rmtree(arriving, ignore_errors=True)
    arriving.mkdir(parents=True)
    fetched = []
    for name, expected in kept["files"].items():
        place = folder / name
        if place.is_file() and sha256(place) == expected:
            continue
        storage.download(settings.models_bucket, kept["prefix"] + name, arriving / Path(name).name)
        if sha256(arriving / Path(name).name) != expected:
            raise KeepingError(f"{kept['prefix']}{name} in the models bucket is not what was stored: its SHA-256 differs.", permanent=True)
        fetched.append((arriving / Path(name).name, place))
    for source, place in fetched:
        place.parent.mkdir(parents=True, exist_ok=True)
        source.replace(place)
    shutil.rmtree(arriving, ignore_errors=True)


def forget(storage: Storage, settings: Settings, training_id: str, *, before: str = "") -> bool:
    """Delete what was kept of a training, or only what was before the set under that prefix. False: some of it stays for now."""
    try:
        for one in list(storage.listing(settings.models_bucket, home(training_id))):
            if not before or one.key < before:  # a later one may be that of a worker that has taken over
                storage.delete(settings.models_bucket, one.key)
    except StorageError as error:
        log.warning("Leftovers of training %s could not be deleted: %s", training_id, error)
        return False
    return True


def home(training_id: str) -> str:
    """The prefix of everything that is kept of a training."""
    return f"trainings/{training_id}/"
