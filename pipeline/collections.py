"""Data sets: content-hashed manifests in the models bucket, over pictures that lie there by their hash."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from pipeline.database import Database
from pipeline.settings import Settings
from pipeline.storage import Storage

DEFAULT = "default"


class CollectionError(Exception):
    """A data set cannot be had. `permanent`: asking again changes nothing."""

    def __init__(self, sentence: str, *, permanent: bool = True) -> None:
        super().__init__(sentence)
        self.permanent = permanent


@dataclass(frozen=True)
class OnDisk:
    """A data set as files here, for the trainer.

    Attributes:
        sha256: the hash of its manifest, which names the data set for good.
        faces: folder with `faces.csv`, for `--faces`: reals from which pairs are made, split by person.
        data: `.jsonl` manifest of labelled reals and fakes, for `--data`; None while there are not both among the labels.
    """

    sha256: str
    faces: Path
    data: Path | None


def default(db: Database, store: Storage, settings: Settings, *, sha256: str = "") -> OnDisk:
    """The growing data set as it is now (or as it was, by its hash), brought to this machine and checked.

    Raises CollectionError: permanent while nobody has added any photographs, not so when the store does not answer.
    """
    raise CollectionError("There are no photographs to train from yet: add some with `unmask datasets add`.")
