"""Who judges a training is not learnt from: nobody of the splits val and test, also where the data of others lists them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from pipeline.card import sha256
from pipeline.training import datasets
from pipeline.training.datasets import DatasetError, Record

JUDGES = ("val", "test")
"""The splits by which weights are chosen, thresholds set and versions measured."""


def refuse(
    faces: Path,
    data: Path,
    records: Sequence[Record],
    *,
    watch: Callable[[Iterable[Record]], Iterable[Record]] = lambda records: records,
) -> None:
    """Raise DatasetError where training records of `data` show a photograph or a person of the splits val and test of `faces`.

    The same file is the same photograph, as a frame in a folder of frames too; videos are not looked into. The same name is the same
    person, and names joined by `+` are several. The records need their hashes (`datasets.hashed`). `watch` wraps the photographs of
    val and test while they are hashed. Raises FileNotFoundError where a photograph, or `faces.csv`, is not there.
    """
    rows = [row for row in datasets.index(faces) if row["split"] in JUDGES]
    kept = [Record(faces / row["path"], False, row["identity"], split=row["split"]) for row in rows]
    hashes = {sha256(record.path) for record in watch(kept)}
    sizes = {record.path.stat().st_size for record in kept}
    names = {name for record in kept for name in record.people}
    pictures = [path for record in records for path, digest in _files(record, sizes) if digest in hashes]
    persons = sorted({name for record in records for name in record.people} & names)
    if not pictures and not persons:
        return
    raise DatasetError(
        f"The training split of {data} has {counted(len(pictures), len(persons))} of the splits val and test of {faces}, such as "
        f"{pictures[0].name if pictures else persons[0]}: leave them out there, or give them the same split"
        f"{', or rename whoever is somebody else' * bool(persons)}."
    )


def counted(pictures: int, people: int) -> str:
    """So many pictures and people in words; what there is none of is left out."""
    words = [f"{pictures} picture{'s' * (pictures > 1)}"] * bool(pictures)
    return " and ".join(words + [f"{people} {'people' if people > 1 else 'person'}"] * bool(people))


def _files(record: Record, sizes: set[int]) -> Iterable[tuple[Path, str]]:
    """The pictures of a record with their hashes; of a folder of frames only those of one of the sizes, which may be a photograph's."""
    if not record.path.is_dir():
        return [(record.path, record.sha256)]
    frames = sorted(path for path in record.path.iterdir() if path.is_file() and path.stat().st_size in sizes)
    return [(path, sha256(path)) for path in frames]
