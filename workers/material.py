"""What a training learns from, brought to this machine: a folder, a manifest, either of them in S3, or the data set that grows."""

from __future__ import annotations

import csv
import io
import json
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from urllib.parse import urlsplit

from pipeline import collections, holdout
from pipeline.database import Database
from pipeline.settings import Settings
from pipeline.storage import SourceGone, Storage

INDEX = "faces.csv"
HASHES = "hashes.json"
"""Beside what comes from S3: the hashes of the files of a data set that is not the growing one."""
MANIFESTS = (".csv", ".jsonl")
MAX_MANIFEST_BYTES = 200_000_000
MAX_FILE_BYTES = 4_000_000_000


class MaterialError(Exception):
    """There is nothing to learn from where the training was told to look. One sentence; `permanent`: it will not be there later."""

    def __init__(self, sentence: str, *, permanent: bool = True) -> None:
        super().__init__(sentence)
        self.permanent = permanent


@dataclass(frozen=True)
class Material:
    """`faces`: folder with `faces.csv`; `data`: reals and fakes of others to mix in. `sha256`: of the growing data set, if it is used."""

    faces: Path
    data: Path | None
    sha256: str = ""

    def arguments(self) -> list[str]:
        """What the trainer is told of it."""
        more = [] if self.data is None else ["--data", str(self.data.absolute())]
        return ["--faces", str(self.faces.absolute()), *more]


def bring(
    db: Database, storage: Storage, settings: Settings, dataset: str, folder: Path, *, sha256: str = "", compression: str = "c23"
) -> Material:
    """The data set of a training, in place. `folder`: where what comes from S3 is put. `sha256`: the state of the growing one.
    `compression`: which of FaceForensics++'s is learnt from.

    Reals and fakes of others have no photographs from which more are made: those are then of the growing one.
    Raises MaterialError, StorageError, and CollectionError also where somebody of the hold-out would be learnt from.
    """
    faces, data = (None, None) if not dataset else _found(storage, dataset, folder)
    if dataset:  # the growing one keeps its hold-out apart itself
        holdout.refuse(db, faces, data, said=dataset, known=folder.with_name(HASHES), compression=compression)
    if faces is not None:
        return Material(faces, data)
    found = collections.default(db, storage, settings, sha256=sha256)
    return Material(found.faces, data or found.data, found.sha256)


def fetched(storage: Storage, dataset: str, folder: Path) -> Path:
    """A data set on this machine, to be measured: where it is, or brought from S3 into `folder`. Raises MaterialError, StorageError."""
    faces, data = _found(storage, dataset, folder)
    place = faces or data
    assert place is not None  # noqa: S101 - one of the two is found, or there is an error
    return place


def _found(storage: Storage, dataset: str, folder: Path) -> tuple[Path | None, Path | None]:
    if not dataset.startswith("s3://"):
        return _here(Path(dataset), dataset)
    where = urlsplit(dataset)
    bucket, key = where.netloc, where.path.lstrip("/")
    if not bucket:
        raise MaterialError(f"{dataset} names no bucket: write s3://bucket/folder/ or s3://bucket/manifest.csv.")
    if key.endswith(MANIFESTS):
        return _here(_manifest(storage, bucket, key, folder), dataset)
    return _here(_tree(storage, bucket, key if not key or key.endswith("/") else f"{key}/", folder, dataset), dataset)


def _here(path: Path, said: str) -> tuple[Path | None, Path | None]:
    """The photographs and the reals and fakes that are at a path."""
    if path.is_file() and path.name == INDEX:
        return path.parent, None
    if path.is_dir() and (path / INDEX).is_file():
        return path, next((path / name for name in ("data.jsonl", "data.csv") if (path / name).is_file()), None)
    if path.is_dir() or (path.is_file() and path.suffix in MANIFESTS):
        return None, path
    raise MaterialError(
        f"{said} is not there, or no data set: give a folder with {INDEX}, with real/ and fake/ or of FaceForensics++, a .csv or .jsonl "
        "manifest, or one of these as s3://."
    )


def _manifest(storage: Storage, bucket: str, key: str, folder: Path) -> Path:
    """A manifest and all that it lists, relative to it."""
    try:
        text = storage.fetch(bucket, key, max_bytes=MAX_MANIFEST_BYTES).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise MaterialError(f"s3://{bucket}/{key} is not written in UTF-8: save it again as CSV UTF-8.") from error
    place = folder / PurePosixPath(key).name
    base = key.rpartition("/")[0]
    for listed in _paths(text, lines=key.endswith(".jsonl"), said=f"s3://{bucket}/{key}"):
        _fetch(storage, bucket, f"{base}/{listed}" if base else listed, folder, listed)
    folder.mkdir(parents=True, exist_ok=True)
    place.write_text(text, encoding="utf-8")
    return place


def _paths(text: str, *, lines: bool, said: str) -> list[str]:
    try:
        rows = [json.loads(line) for line in text.splitlines() if line.strip()] if lines else list(csv.DictReader(io.StringIO(text)))
        return [str(row["path"]) for row in rows]
    except (ValueError, KeyError, TypeError, csv.Error) as error:
        raise MaterialError(f"{said} is no manifest: every line needs a path and a label.") from error


def _tree(storage: Storage, bucket: str, prefix: str, folder: Path, said: str) -> Path:
    """Everything under a prefix."""
    found = 0
    for one in storage.listing(bucket, prefix):
        name = one.key[len(prefix) :]
        if name and not name.endswith("/"):
            _fetch(storage, bucket, one.key, folder, name, size=one.size)
            found += 1
    if not found:
        raise MaterialError(f"There is nothing under {said}.")
    return folder


def _fetch(storage: Storage, bucket: str, key: str, folder: Path, name: str, *, size: int | None = None) -> None:
    place = (folder / name).absolute()
    if ".." in PurePosixPath(name).parts or not place.is_relative_to(folder.absolute()):
        raise MaterialError(f"The data set names {name!r}, which lies outside of it.")
    if place.is_file() and (size is None or place.stat().st_size == size):
        return
    place.parent.mkdir(parents=True, exist_ok=True)
    half = place.with_name(f".{place.name}.part")
    try:
        storage.download(bucket, key, half)
    except SourceGone as error:
        raise MaterialError(f"The data set lists {name}, which is not in s3://{bucket}.") from error
    half.replace(place)
