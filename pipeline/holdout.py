"""The hold-out of the default data set, kept out of what is trained on: also where that comes from elsewhere."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sqlalchemy import select

from pipeline.card import sha256
from pipeline.collections import DEFAULT, CollectionError
from pipeline.database import Database
from pipeline.tables.learning import ItemRow

LEARNT = ("train", "val")
"""The splits from which a network, its best state and its thresholds are taken."""


def refuse(db: Database, faces: Path | None, data: Path | None, *, said: str, known: Path, compression: str = "c23") -> None:
    """Raise CollectionError where a picture or a person of the hold-out would be trained or calibrated on.

    Looked at are the splits train and val, as the trainer makes them, of `faces` (folder with `faces.csv`) and of `data` (see
    `datasets.load`). The same file is the same picture, as a frame too; videos are not in the hold-out, and are not read. The same name
    is the same person, whichever data set it stands in: that is how the growing one takes names as well. `said` is what the data set is
    called; `known` the JSON file that keeps the hashes, so that a file is read once. Not permanent where a file cannot be read now.
    """
    with db.read() as session:
        held_out = session.execute(select(ItemRow.sha256, ItemRow.identity).where(ItemRow.collection == DEFAULT, ItemRow.split == "test"))
        items = [(digest, identity.split("+")) for digest, identity in held_out]
    if not items:
        return
    files, people = {digest for digest, _ in items}, {name for _, names in items for name in names}
    hashes = _Hashes(known)
    pictures: list[Path] = []
    persons: set[str] = set()
    try:
        for record in _learnt(faces, data, compression):
            persons |= record.people & people
            pictures += [path for path in _pictures(record) if hashes.of(path) in files]
        hashes.keep()
    except FileNotFoundError as error:
        raise CollectionError(f"The data set lists {error.filename}, which does not exist.") from error
    except OSError as error:
        raise CollectionError(f"{error.filename} of the data set cannot be read: {error.strerror}.", permanent=False) from error
    if pictures or persons:
        raise CollectionError(_sentence(said, pictures, sorted(persons)))


def _sentence(said: str, pictures: Sequence[Path], persons: Sequence[str]) -> str:
    from pipeline.training.kept_out import counted

    example = pictures[0].name if pictures else persons[0]
    return (
        f"In the splits train and val of {said} there are {counted(len(pictures), len(persons))} of the hold-out, such as {example}, and "
        "nothing is trained on the hold-out: put them into the split test or leave them out, and rename whoever is not the person of that "
        "name."
    )


def _learnt(faces: Path | None, data: Path | None, compression: str) -> list[Any]:
    """The `datasets.Record`s of both that are learnt from. Raises CollectionError, OSError."""
    from pipeline.training import datasets
    from pipeline.training.datasets import DatasetError, Record

    found: list[Record] = []
    try:
        if faces is not None:
            found += [Record(faces / row["path"], False, row["identity"], split=row["split"]) for row in datasets.index(faces)]
        if data is not None:
            found += datasets.in_splits(data, compression=compression)
    except DatasetError as error:
        raise CollectionError(f"The data set cannot be read: {error}") from error
    return [record for record in found if record.split in LEARNT]


def _pictures(record: Any) -> list[Path]:
    """The files of a record that could be pictures of the hold-out."""
    if record.path.is_dir():
        return sorted(path for path in record.path.iterdir() if path.is_file())
    return [] if record.moving else [record.path]


class _Hashes:
    """SHA-256 of files, remembered with their size and time in a JSON file."""

    def __init__(self, place: Path) -> None:
        self._place = place
        try:
            self._known: dict[str, list[Any]] = json.loads(place.read_text(encoding="utf-8"))
        except (OSError, ValueError):  # there is none yet, or it was cut short: then they are hashed again
            self._known = {}
        self._new = False

    def of(self, path: Path) -> str:
        """The file's hash. Raises OSError."""
        found, name = path.stat(), str(path.absolute())
        mark = [found.st_size, found.st_mtime_ns]
        before = self._known.get(name)
        if before is None or before[:2] != mark:
            before = self._known[name] = [*mark, sha256(path)]
            self._new = True
        return str(before[2])

    def keep(self) -> None:
        """Write down what was hashed. Raises OSError."""
        if self._new:
            half = self._place.with_name(f".{self._place.name}.{os.getpid()}.{threading.get_ident()}")  # others may keep theirs now
            half.write_text(json.dumps(self._known), encoding="utf-8")
            half.replace(self._place)
