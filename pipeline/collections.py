"""Data sets: content-hashed manifests in the models bucket, over pictures that lie there by their hash.

The default one grows: photographs that were added by hand, and the faces whose label was accepted. Its hold-out, split `test`, is
only ever added to by hand; no picture and no person in it is trained on, and labelled faces never join it. What a data set was at one
moment is its manifest, named by its hash for good.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
import os
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sqlalchemy import delete, func, select, text
from sqlalchemy.orm import Session

from pipeline import audit, card, feedback, images
from pipeline.database import Database, FaceRow, JobRow, now
from pipeline.images import ImageRefused, Limits
from pipeline.jobs import Box, Pixels
from pipeline.png import encode
from pipeline.settings import Settings
from pipeline.storage import SourceGone, Storage, StorageError
from pipeline.tables.learning import CollectionRow, FaceLabelRow, ItemRow

DEFAULT = "default"
LEAST = 20
"""Reals, and fakes, labelled or added, from which on the trainer is shown them as they are: fewer would be learnt by heart."""
WIDE = Limits(bytes=1 << 27, pixels=1 << 27, side=1 << 15)
"""What a stored picture may have at most, the same as a photograph to train from: more than serving takes from strangers."""
CONTEXT = 2.2
"""Of a labelled face so many face boxes are kept, as of the photographs."""
VAL_SHARE = 0.15
GROUPS = ("gender", "ethnicity")
MAX_BYTES = 200_000_000
_LOCK = 0x64617461  # "data"


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
        data: `.jsonl` manifest of reals and fakes as they are, for `--data`: what was labelled, and where fakes were added, what was
            added. None while there are fewer than 20 of either to train on.
    """

    sha256: str
    faces: Path
    data: Path | None


def add(
    db: Database,
    store: Storage,
    settings: Settings,
    root: Path,
    *,
    actor: str,
    watch: Callable[[Sequence[Any]], Iterable[Any]] = lambda items: items,
) -> dict[str, int]:
    """Put the pictures of a folder into the default data set: `faces.csv`, `real/` and `fake/`, or a manifest.

    Returns how many of each split. Splits are the folder's own; where it has none they are drawn by person. Doing it again
    changes nothing. `watch` wraps the new pictures twice, while they are looked at and while they are stored. Raises CollectionError,
    with nothing added, for a folder that is no data set, for a picture that cannot be decoded, and where somebody would be in two
    splits; StorageError.
    """
    records = [record for record in _records(root) if record.split in ("train", "val", "test") and not record.moving]
    if not records:
        raise CollectionError(f"There are no pictures of the splits train, val and test in {root}.")
    with db.read() as session:
        before = {item.sha256: item for item in session.scalars(select(ItemRow).where(ItemRow.collection == DEFAULT))}
    _must_not_cross(before.values(), records)
    new = [record for record in records if record.sha256 not in before]
    for record in watch(new):  # all of them first: what is in the data set cannot be taken out again
        must_decode(record.path.read_bytes(), str(record.path))
    for record in watch(new):
        keep(store, settings, record.path.read_bytes(), record.path.suffix.lower())
    added: Counter[str] = Counter()
    with db.write() as session:
        _alone(session)
        at = session.execute(select(now())).scalar_one()
        # looked at again: while the pictures were stored, others may have been added, and labelled faces collected
        before = {item.sha256: item for item in session.scalars(select(ItemRow).where(ItemRow.collection == DEFAULT))}
        _must_not_cross(before.values(), records)
        for record in records:
            if record.sha256 not in before and session.get(ItemRow, (DEFAULT, record.sha256)) is None:
                session.add(_item(record, at))
                session.flush()
                added[record.split] += 1
        audit.note(session, actor, "dataset.add", DEFAULT, **dict(added))
    return dict(added)


def default(db: Database, store: Storage, settings: Settings, *, sha256: str = "") -> OnDisk:
    """The growing data set as it is now (or as it was, by its hash), brought to this machine and checked.

    Raises CollectionError: permanent while nobody has added any photographs, not so when the store does not answer.
    """
    try:
        if not sha256:
            collect(db, store, settings)
            sha256 = write(db, store, settings)
        return _brought(store, settings, sha256)
    except StorageError as error:
        raise CollectionError(f"The data set cannot be had: {error}", permanent=isinstance(error, SourceGone)) from error


def write(db: Database, store: Storage, settings: Settings) -> str:
    """Write the manifest of the default data set as it is now; returns its hash. Raises CollectionError while it is empty."""
    with db.read() as session:
        items = list(session.scalars(select(ItemRow).where(ItemRow.collection == DEFAULT).order_by(ItemRow.sha256)))
    if not any(not item.fake for item in items):
        raise CollectionError("There are no photographs to train from yet: add some with `unmask datasets add FOLDER`.")
    data = "".join(json.dumps(_line(item), sort_keys=True) + "\n" for item in items).encode()
    digest = hashlib.sha256(data).hexdigest()
    with db.read() as session:
        if session.get(CollectionRow, digest) is not None:
            return digest
    store.put(settings.models_bucket, _manifest_key(digest), data, "application/jsonl")
    with db.write() as session:
        if session.get(CollectionRow, digest) is None:
            at = session.execute(select(now())).scalar_one()
            session.add(CollectionRow(sha256=digest, name=DEFAULT, counts=counts(items), created_at=at))
    return digest


def counts(items: Sequence[ItemRow]) -> dict[str, int]:
    """Pictures by split, people, labelled faces."""
    found = Counter(item.split for item in items)
    people = len({item.identity for item in items})
    return {
        **found,
        "fakes": sum(item.fake for item in items),
        "people": people,
        "labelled": sum(item.job_id is not None for item in items),
    }


def collect(db: Database, store: Storage, settings: Settings, *, limit: int = 200) -> int:
    """Fetch the pictures of labelled faces that are not in the data set yet, and take out those whose label no longer stands.

    Returns how many changed. A picture that is gone is noted beside its label. Raises StorageError.
    """
    with db.read() as session:
        waiting = list(
            session.scalars(select(FaceLabelRow).where(FaceLabelRow.collected_at.is_(None)).order_by(FaceLabelRow.at).limit(limit))
        )
    for row in waiting:
        cut, problem = None, None
        if row.state == feedback.ACCEPTED:
            try:
                cut = _cut(db, store, settings, row.job_id, row.face)
            except (StorageError, ImageRefused, ValueError) as error:
                if isinstance(error, StorageError) and not error.permanent:
                    raise
                problem = str(error)  # one picture that nobody may read any more must not hold up all trainings
        with db.write() as session:
            _take(session, settings, row, cut, problem)
    return len(waiting)


def _cut(db: Database, store: Storage, settings: Settings, job_id: str, face: int) -> tuple[str, str]:
    """Hash of the face's picture, which is kept, and of the whole picture it was in. Raises SourceGone, ImageRefused, StorageError."""
    with db.read() as session:
        job, found = session.get(JobRow, job_id), session.get(FaceRow, (job_id, face))
    if job is None or found is None:
        raise SourceGone("The job is no longer there.")
    data = store.fetch(job.bucket, job.key, version_id=job.version_id, etag=job.etag, max_bytes=settings.max_image_bytes)
    pixels = images.read(data, Limits.of(settings)).pixels
    kept = keep(store, settings, encode(surroundings(pixels, Box(found.x, found.y, found.w, found.h)), 6), ".png")
    return kept, hashlib.sha256(data).hexdigest()


def surroundings(pixels: Pixels, box: Box) -> Pixels:
    """The square of 2.2 face boxes around a face, cut off at the picture's edge, (h, w, 3) uint8 RGB."""
    side = CONTEXT * max(box.w, box.h)
    left, top = max(0, round(box.x + box.w / 2 - side / 2)), max(0, round(box.y + box.h / 2 - side / 2))
    right, bottom = round(box.x + box.w / 2 + side / 2), round(box.y + box.h / 2 + side / 2)
    return pixels[top:bottom, left:right].copy()


def _alone(session: Session) -> None:
    """Nobody else puts anything into the data set until the transaction ends."""
    if session.get_bind().dialect.name == "postgresql":  # on SQLite, writers are alone anyway
        session.execute(text("select pg_advisory_xact_lock(:key)"), {"key": _LOCK})


def _take(session: Session, settings: Settings, row: FaceLabelRow, cut: tuple[str, str] | None, problem: str | None) -> None:
    _alone(session)
    known = session.get(FaceLabelRow, (row.job_id, row.face), with_for_update=True)
    if known is None or (known.state, known.label) != (row.state, row.label) or known.collected_at is not None:
        return  # somebody said something else meanwhile: next time; or another process was faster
    of_this = (ItemRow.collection == DEFAULT, ItemRow.job_id == row.job_id, ItemRow.face == row.face)
    session.execute(delete(ItemRow).where(*of_this))
    known.collected_at, known.problem = session.execute(select(now())).scalar_one(), problem
    if cut is None:
        return
    sha256, source = cut
    held_out = select(func.count()).where(ItemRow.collection == DEFAULT, ItemRow.split == "test", ItemRow.sha256.in_((sha256, source)))
    if session.scalar(held_out):
        known.problem = "The picture is in the hold-out, which nothing is trained on."
        return
    if session.get(ItemRow, (DEFAULT, sha256)) is not None:
        known.problem = "The very same face is in the data set already."
        return
    draw = int.from_bytes(hashlib.sha256(f"label {source}".encode()).digest()[:8], "big") / 2**64
    session.add(
        ItemRow(
            collection=DEFAULT,
            sha256=sha256,
            suffix=".png",
            fake=row.label == "manipulated",
            identity=_uploaded(source),  # all faces of a picture stay in one split
            manipulation="labelled" if row.label == "manipulated" else "",
            split="val" if draw < VAL_SHARE else "train",
            group={},
            job_id=row.job_id,
            face=row.face,
            added_at=known.collected_at,
        )
    )


# -- files


def _place(settings: Settings) -> Path:
    return settings.data_dir / "datasets"


def _manifest_key(digest: str) -> str:
    return f"datasets/{DEFAULT}/{digest}.jsonl"


def _name(sha256: str, suffix: str) -> str:
    return f"pictures/{sha256[:2]}/{sha256}{suffix}"


def keep(store: Storage, settings: Settings, data: bytes, suffix: str) -> str:
    """Store a picture under its hash, unless it is there; returns the hash. Raises StorageError."""
    sha256 = hashlib.sha256(data).hexdigest()
    key = f"datasets/{_name(sha256, suffix)}"
    try:
        if store.head(settings.models_bucket, key).size == len(data):
            return sha256
    except SourceGone:
        pass
    store.put(settings.models_bucket, key, data, "application/octet-stream")
    return sha256


def must_decode(data: bytes, name: str) -> None:
    """Raise CollectionError for a picture that every training, or the gate, would fail at once it is stored."""
    try:
        images.read(data, WIDE)
    except ImageRefused as error:
        raise CollectionError(f"{name} cannot be used: {error}") from error


def picture(store: Storage, settings: Settings, sha256: str, suffix: str) -> Path:
    """A stored picture as a file here. Raises CollectionError where it is not what was stored, StorageError."""
    path = _place(settings) / _name(sha256, suffix)
    if not path.exists() or card.sha256(path) != sha256:  # a crash may have cut it short, or the disk altered it
        data = store.fetch(settings.models_bucket, f"datasets/{_name(sha256, suffix)}", max_bytes=MAX_BYTES)
        if hashlib.sha256(data).hexdigest() != sha256:
            raise CollectionError(f"The picture {sha256[:16]} of the data set is not what it was: its SHA-256 differs.")
        path.parent.mkdir(parents=True, exist_ok=True)
        _put(path, data)
    return path


def _brought(store: Storage, settings: Settings, sha256: str) -> OnDisk:
    data = store.fetch(settings.models_bucket, _manifest_key(sha256), max_bytes=MAX_BYTES)
    if hashlib.sha256(data).hexdigest() != sha256:
        raise CollectionError(f"The manifest {sha256[:16]} is not what was written: its SHA-256 differs.")
    lines = [json.loads(line) for line in data.decode().splitlines()]
    folder = _place(settings) / sha256
    folder.mkdir(parents=True, exist_ok=True)
    for line in lines:
        found = picture(store, settings, line["sha256"], line["suffix"])
        line["path"] = f"../{found.relative_to(_place(settings))}"
    _write_faces(folder / "faces.csv", [line for line in lines if line["label"] == "real" and line["split"] in ("train", "val", "test")])
    mixed = _mixed(lines)
    sides = Counter(line["label"] for line in mixed if line["split"] == "train")
    return OnDisk(sha256, folder, _write_manifest(folder / "data.jsonl", mixed) if min(sides["real"], sides["fake"]) >= LEAST else None)


def _mixed(lines: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """What the trainer is shown as it is: everything labelled, all fakes, and beside fakes that were added the reals that were too."""
    added = any(line["label"] == "fake" and not line["labelled"] and line["split"] == "train" for line in lines)
    # with labelled reals alone beside them, what tells real from fake would be where a picture came from
    splits = ("train", "val") if added else ()
    return [line for line in lines if line["labelled"] or line["label"] == "fake" or line["split"] in splits]


def _write_faces(path: Path, lines: Sequence[Mapping[str, Any]]) -> None:
    # a labelled real of split val would change what trainings are compared by: those stay in the manifest alone
    rows = [line for line in lines if not (line["labelled"] and line["split"] != "train")]
    written = io.StringIO()
    table = csv.DictWriter(written, ("path", "identity", "split", *GROUPS), restval="", extrasaction="ignore")
    table.writeheader()
    table.writerows({**line, **line["group"]} for line in rows)
    _put(path, written.getvalue().encode())


def _write_manifest(path: Path, lines: Sequence[Mapping[str, Any]]) -> Path:
    keep = ("path", "label", "identity", "manipulation", "split", "sha256")
    _put(path, "".join(json.dumps({key: line[key] for key in keep}, sort_keys=True) + "\n" for line in lines).encode())
    return path


def _put(path: Path, data: bytes) -> None:
    """Whole or not at all: a training, the gate and the measuring of a reference may read, and bring, the same data set here."""
    part = path.with_name(f".{path.name}.{os.getpid()}.{threading.get_ident()}")
    part.write_bytes(data)
    part.replace(path)


def _line(item: ItemRow) -> dict[str, Any]:
    told = {"sha256": item.sha256, "suffix": item.suffix, "label": "fake" if item.fake else "real", "labelled": item.job_id is not None}
    return told | {"identity": item.identity, "manipulation": item.manipulation, "split": item.split, "group": dict(item.group)}


def _item(record: Any, at: float) -> ItemRow:
    named = {"fake": record.fake, "identity": record.identity or f"file-{record.sha256[:24]}", "manipulation": record.manipulation}
    kept = {"sha256": record.sha256, "suffix": record.path.suffix.lower(), "split": record.split, "group": dict(record.group)}
    return ItemRow(collection=DEFAULT, added_at=at, **named, **kept)


def _records(root: Path) -> list[Any]:
    """`datasets.Record`s with their hashes. Raises CollectionError."""
    from pipeline.training import datasets
    from pipeline.training.datasets import DatasetError, Record

    try:
        if (root / "faces.csv").is_file():
            rows = datasets.index(root)
            groups = [{name: row[name] for name in GROUPS if row.get(name)} for row in rows]
            records = [
                Record(root / row["path"], False, row["identity"], "", row["split"], group) for row, group in zip(rows, groups, strict=True)
            ]
        else:
            records = datasets.in_splits(root)
        return datasets.hashed(records)
    except (DatasetError, OSError) as error:
        raise CollectionError(str(error)) from error


def _uploaded(sha256: str) -> str:
    """The identity of all labelled faces of a picture."""
    return f"upload-{sha256[:24]}"


def _must_not_cross(before: Iterable[ItemRow], records: Sequence[Any]) -> None:
    """Raise CollectionError where a person or a picture would be in two splits."""
    before = list(before)
    split_of = {key: item.split for item in before for key in (item.sha256, *item.identity.split("+"))}
    learnt = {item.identity for item in before if item.job_id is not None}
    for record in records:
        if record.split == "test" and _uploaded(record.sha256) in learnt:
            raise CollectionError(f"{record.path.name} cannot join the hold-out: a labelled face of this very picture is trained on.")
        for key in (record.sha256, *record.people):
            if split_of.setdefault(key, record.split) != record.split:
                raise CollectionError(f"{key} is in the split {split_of[key]} of the data set already, and would be in {record.split} too.")
