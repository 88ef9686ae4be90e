"""Labelled pictures and videos of others: FaceForensics++ in its own layout, `real/` and `fake/` folders, or a manifest.

Everything becomes a list of `Record`s. What may be trained on what is checked here: an identity or a file that appears in two
splits is an error, because a network that has seen a face knows it again.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path

from pipeline.training import listing

log = logging.getLogger(__name__)

METHODS = ("Deepfakes", "Face2Face", "FaceSwap", "NeuralTextures", "FaceShifter")
"""FaceForensics++'s manipulations of its 1,000 YouTube videos."""
COMPRESSIONS = ("raw", "c23", "c40")
SPLITS = ("train", "val", "test")
FEWEST_CLIPS = 3
"""With fewer sub-folders of pictures these are collections, and not clips cut into frames."""
_COLUMNS = frozenset(("path", "label", "identity", "manipulation", "split", "sha256"))


class DatasetError(Exception):
    """A data set is not laid out as it should be, or would let training see the test. Always permanent."""

    permanent = True


@dataclass(frozen=True)
class Record:
    """One picture, or one video or folder of frames of which some frames are taken.

    `identity` names the people seen, several joined by `+`; empty: unknown, taken for somebody of their own. `split` is
    empty where the data set has none. `manipulation` is empty for reals.
    """

    path: Path
    fake: bool
    identity: str = ""
    manipulation: str = ""
    split: str = ""
    group: Mapping[str, str] = field(default_factory=dict)
    sha256: str = ""

    @property
    def people(self) -> frozenset[str]:
        """Everybody seen in it."""
        return frozenset(self.identity.split("+")) - {""}

    @property
    def moving(self) -> bool:
        """Whether it is a video or a folder of frames."""
        return self.path.is_dir() or self.path.suffix.lower() in listing.VIDEOS


def load(root: Path, *, compression: str = "c23") -> list[Record]:
    """The records of whatever `root` is: a manifest file, a FaceForensics++ tree, or a folder with `real/` and `fake/`.

    `compression` is which of FaceForensics++'s is taken; nothing else has any. Sorted by path, with identities and contents checked
    against the splits. Raises DatasetError.
    """
    if root.is_file():
        records = manifest(root)
    elif (root / "original_sequences").is_dir():
        records = faceforensics(root, compression=compression)
    elif _sides(root):
        records = folders(root)
    else:
        raise DatasetError(
            f"{root} is no data set: expected a .csv or .jsonl manifest, FaceForensics++'s original_sequences/, or folders real/ and fake/."
        )
    must_be_disjoint(records)
    must_not_repeat(records)
    if any(record.split and not record.people for record in records):
        _warn(f"{root} does not say of all pictures who is seen: that nobody is in two splits cannot be checked there.")
    return sorted(records, key=lambda record: str(record.path))


def in_splits(root: Path, *, compression: str = "c23") -> list[Record]:
    """The records of a data set; one without any splits is split by identity (seed 0), never by picture. Raises DatasetError."""
    records = load(root, compression=compression)
    if not any(record.split for record in records):
        records = split_by_identity(records, seed=0)
        must_not_repeat(records)
        if root.is_dir() or not all(record.people for record in records):
            _warn(f"Who is seen in {root} is guessed from names of files and folders: somebody may be in two splits. A manifest says it.")
    return records


def folders(root: Path) -> list[Record]:
    """Pictures and videos under `root/real` and `root/fake`, in any case; the sub-folders of `fake` name the manipulations. Hidden files
    and folders are left alone.

    Pictures in sub-folders (`real/clip`, `fake/method/clip`) are taken for frames of one clip each, and so for one identity: what shows
    one person must not be in two splits. One or two sub-folders are collections, of pictures by themselves. Where more of them hold
    many people, a manifest can say who they are. A fake named `a_b` is of the people a and b, if a clip or a file is named so.
    Raises DatasetError.
    """
    records = []
    for place in _sides(root):
        fake = place.name.lower() == "fake"
        for path in listing.files(place):
            inside = path.relative_to(place).parent.parts
            method = (inside[0] if inside else "fake") if fake else ""
            clip = inside[1:] if fake else inside
            # with the data set's name, as every other one may have a clip 1 as well
            identity = "/".join((root.resolve().name, *clip)).replace("+", " ") if clip and path.suffix.lower() in listing.PICTURES else ""
            records.append(Record(path, fake, identity, method))
    if len({record.identity for record in records} - {""}) < FEWEST_CLIPS:
        records = [replace(record, identity="") for record in records]
    if not records:
        others = passed_over(root)
        raise DatasetError(
            f"There are no pictures or videos under {root / 'real'} or {root / 'fake'}"
            + (f", only {others} file{'s' * (others > 1)} of other kinds." if others else ".")
        )
    return _paired(records, root.resolve().name)


def _paired(records: Sequence[Record], root: str) -> list[Record]:
    """The records, with fakes named after two others as FaceForensics++ names them, `000_003`, being of the people of both."""
    names = [record.identity.rpartition("/")[2] or record.path.stem for record in records]
    clips: dict[str, set[str]] = {name: set() for name in names}
    for record, name in zip(records, names, strict=True):
        clips[name] |= {record.identity or f"{root}/{name}".replace("+", " ")}
    pairs = [name.split("_") if record.fake and name.count("_") == 1 else [] for record, name in zip(records, names, strict=True)]
    mixed = {name for pair in pairs for name in pair if name in clips}
    found = []
    for record, name, pair in zip(records, names, pairs, strict=True):
        people = [person for part in pair for person in sorted(clips.get(part, ()))]
        if not people and name in mixed:
            people = [record.identity] if record.identity else sorted(clips[name])
        found.append(replace(record, identity="+".join(dict.fromkeys(people))) if people else record)
    return found


def passed_over(root: Path) -> int:
    """How many files under `root/real` and `root/fake` are no records: of kinds that are not read. Hidden files do not count."""
    return sum(path.suffix.lower() not in listing.PICTURES | listing.VIDEOS for place in _sides(root) for path in listing.visible(place))


def manifest(path: Path) -> list[Record]:
    """The records of a `.csv` or `.jsonl` manifest; paths are relative to it.

    Columns: `path` and `label` (real or fake), and where known `identity`, `manipulation`, `split` (train, val, test) and
    `sha256`; every other column is a group, such as `gender`. Raises DatasetError, naming the line.
    """
    return parse(text(path), path.parent, lines=path.suffix.lower() != ".csv")


def text(path: Path) -> str:
    """The text of a manifest or an index in UTF-8, with or without the mark in front that spreadsheets write. Raises DatasetError."""
    try:
        return path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DatasetError(f"{path} is not written in UTF-8: save it again as CSV UTF-8.") from error


def parse(written: str, root: Path, *, lines: bool = False) -> list[Record]:
    """The records of a manifest's text, wherever it came from: CSV, or JSON `lines`. See `manifest`."""
    rows: Iterable[tuple[int, object]]
    try:
        if lines:
            rows = [(number, json.loads(line)) for number, line in enumerate(written.split("\n"), start=1) if line.strip()]
        else:
            rows = list(enumerate(csv.DictReader(io.StringIO(written, newline="")), start=2))
    except (json.JSONDecodeError, csv.Error) as error:
        raise DatasetError(f"The manifest cannot be read: {error}.") from error
    records = []
    for number, row in rows:
        if not isinstance(row, Mapping):
            raise DatasetError(f"Line {number} of the manifest is no JSON object with a path and a label.")
        values = {_column(key): str(value) for key, value in row.items() if key is not None and value not in (None, "")}
        label, split = values.get("label", "").lower(), values.get("split", "").lower()
        if "path" not in values or label not in ("real", "fake"):
            raise DatasetError(f"Line {number} of the manifest needs a path and a label, real or fake.")
        if split and split not in SPLITS:
            raise DatasetError(f"Line {number} of the manifest has the split {split!r}: train, val and test are known.")
        group = {key: value for key, value in values.items() if key not in _COLUMNS}
        method = values.get("manipulation", "fake") if label == "fake" else ""
        identity, sha256 = values.get("identity", ""), values.get("sha256", "")
        records.append(Record(root / values["path"], label == "fake", identity, method, split, group, sha256))
    return records


def _column(name: str) -> str:
    """A column's name; of one that is known, however it is written. Groups keep theirs."""
    plain = name.strip().lower()
    return plain if plain in _COLUMNS else name


def index(folder: Path) -> list[dict[str, str]]:
    """The rows of `folder/faces.csv`, in the order of their paths, whatever order they were written in.

    Each has at least path, identity and split. Raises FileNotFoundError where there is no index, and DatasetError where a column is
    missing, or somebody or a file is in two splits.
    """
    place = folder / "faces.csv"
    try:
        table = csv.DictReader(io.StringIO(text(place), newline=""))
        table.fieldnames = [name.strip().lower() for name in table.fieldnames or ()]
        rows = [{key: value or "" for key, value in row.items() if key is not None} for row in table]
    except csv.Error as error:
        raise DatasetError(f"{place} cannot be read: {error}.") from error
    for column in ("path", "identity", "split"):
        if column not in (table.fieldnames or ()):
            raise DatasetError(f"{place} has no column {column}: it needs path, identity and split.")
    records = [Record(folder / row["path"], False, row["identity"], split=row["split"]) for row in rows]
    must_be_disjoint(records)
    must_not_repeat(records)
    return sorted(rows, key=lambda row: (row["path"], row["identity"]))


def faceforensics(root: Path, *, compression: str = "c23", splits: Path | None = None, methods: Sequence[str] = METHODS) -> list[Record]:
    """FaceForensics++ in its own layout: `original_sequences/youtube/{c}/videos`, `manipulated_sequences/{Method}/{c}/videos`.

    `splits` holds the official `train.json`, `val.json` and `test.json` (lists of pairs of video ids; default
    `root/splits`, or `root` itself). A pair [a, b] gives the reals a and b and the fakes a_b and b_a, all in one split. Where
    there are folders of frames (`images/`, or a folder for each video) instead of videos, these are taken. Methods that are
    not there are left out; so are Google's DeepFakeDetection and its `actors`, of which no official split speaks. Raises DatasetError.
    """
    if compression not in COMPRESSIONS:
        raise DatasetError(f"There is no compression {compression!r}: raw, c23 and c40 are known.")
    place = splits or next((p for p in (root / "splits", root) if (p / "train.json").exists()), None)
    if place is None:
        raise DatasetError(f"The official split files train.json, val.json and test.json are neither in {root / 'splits'} nor in {root}.")
    records: list[Record] = []
    for split in SPLITS:
        for a, b in _pairs(place / f"{split}.json"):
            for video in (a, b):
                path = _sequence(root / "original_sequences" / "youtube" / compression, video)
                if path is not None:
                    records.append(Record(path, False, video, "", split))
            for method in methods:
                for target, source in ((a, b), (b, a)):
                    path = _sequence(root / "manipulated_sequences" / method / compression, f"{target}_{source}")
                    if path is not None:
                        records.append(Record(path, True, f"{target}+{source}", method, split))
    if not records:
        raise DatasetError(f"None of the videos named by the split files are under {root} at compression {compression}.")
    taken = {"youtube", *METHODS, *methods}
    others = sorted(
        path for path in root.glob("*_sequences/*") if path.is_dir() and not path.name.startswith(".") and path.name not in taken
    )
    if others:
        names = ", ".join(str(path.relative_to(root)) for path in others)
        _warn(f"{root} also has {names}: left out, as the official split files name none of its videos.")
    return records


def must_be_disjoint(records: Iterable[Record]) -> None:
    """Raise DatasetError when an identity, or the same file by its hash, is in two splits."""
    seen: dict[str, str] = {}
    for record in records:
        if not record.split:
            continue
        for key in [f"the identity {person}" for person in sorted(record.people)] + [f"the file {record.sha256}"] * bool(record.sha256):
            other = seen.setdefault(key, record.split)
            if other != record.split:
                raise DatasetError(f"In the data set, {key} is in two splits, {other} and {record.split}: a test would know the face.")


def must_not_repeat(records: Iterable[Record]) -> None:
    """Raise DatasetError when the same file, or folder of frames, is in two splits, whatever it is called there.

    Only what is as large as something in another split is read. What is empty or not there is refused where it is opened.
    """
    sized = [(record, listing.size(record.path)) for record in records if record.split]
    splits: dict[int, set[str]] = {}
    for record, size in sized:
        splits.setdefault(size, set()).add(record.split)
    seen: dict[str, Record] = {}
    for record, size in sized:
        if not size or len(splits[size]) == 1:
            continue
        other = seen.setdefault(listing.digest(record.path), record)
        if other.split != record.split:
            raise DatasetError(
                f"In the data set, the file {record.path} of the split {record.split} is {other.path} of the split {other.split} again: "
                "a test would know the face."
            )


def split_by_identity(records: Sequence[Record], *, seed: int, val: float = 0.15, test: float = 0.15) -> list[Record]:
    """Give every record without a split one, so that nobody is in two.

    People who are seen together go together. Who goes where depends on the seed and the names alone, so that a data set that
    grows keeps everybody in place, unless new records join two people of different splits (then DatasetError).
    """
    found = []
    for record, group in zip(records, linked([record.people or {f"file {record.path.name}"} for record in records]), strict=True):
        draw = int.from_bytes(hashlib.sha256(f"{seed} {group}".encode()).digest()[:8], "big") / 2**64
        split = "test" if draw < test else "val" if draw < test + val else "train"
        found.append(record if record.split else replace(record, split=split))
    must_be_disjoint(found)
    return found


def linked(seen: Iterable[Iterable[str]]) -> list[str]:
    """For each of several pictures, given who is seen in it, the group of everybody who is linked to them by pictures of two or more.

    The least name stands for the group, so the order changes nothing.
    """
    parent: dict[str, str] = {}

    def root(person: str) -> str:
        while parent.setdefault(person, person) != person:
            person = parent[person]
        return person

    named = [sorted(people) for people in seen]
    for people in named:
        for person in people[1:]:
            first, second = sorted((root(people[0]), root(person)))
            parent[second] = first
    return [root(people[0]) for people in named]


def hashed(records: Iterable[Record]) -> list[Record]:
    """The records with the sha256 of each file (of a folder of frames: of its files' hashes). Raises DatasetError when a
    manifest named another hash: the file has changed."""
    found = []
    for record in records:
        digest = listing.digest(record.path)
        if record.sha256 and record.sha256 != digest:
            raise DatasetError(f"{record.path} is not the file that the manifest describes: its SHA-256 differs.")
        found.append(replace(record, sha256=digest))
    must_be_disjoint(found)
    return found


def content_hash(records: Iterable[Record]) -> str:
    """The data set's hash: over contents, labels, identities and splits, not over places or order. Needs `hashed` records."""
    lines = []
    for record in records:
        if not record.sha256:
            raise DatasetError(f"{record.path} has no hash yet.")
        group = json.dumps(dict(record.group), sort_keys=True)
        lines.append(f"{record.sha256} {record.fake} {record.identity} {record.manipulation} {record.split} {group}\n")
    return hashlib.sha256("".join(sorted(lines)).encode()).hexdigest()


def write(records: Iterable[Record], path: Path) -> None:
    """Write a `.csv` or `.jsonl` manifest that `manifest` reads back; paths relative to it."""
    rows = []
    for record in records:
        where = record.path.relative_to(path.parent) if record.path.is_relative_to(path.parent) else record.path
        row = {"path": str(where), "label": "fake" if record.fake else "real", "identity": record.identity}
        row |= {"manipulation": record.manipulation, "split": record.split, "sha256": record.sha256}
        rows.append(row | dict(record.group))
    if path.suffix.lower() == ".csv":
        columns = list(dict.fromkeys(key for row in rows for key in row))
        with path.open("w", newline="", encoding="utf-8") as file:
            table = csv.DictWriter(file, columns, restval="")
            table.writeheader()
            table.writerows(rows)
    else:
        path.write_text("".join(json.dumps(row, sort_keys=True) + "\n" for row in rows), encoding="utf-8")


def _sides(root: Path) -> list[Path]:
    """The folders `real` and `fake`, however they are written."""
    named = (path for path in root.iterdir() if path.name.lower() in ("fake", "real")) if root.is_dir() else ()
    return sorted((path for path in named if path.is_dir()), key=lambda path: (path.name.lower() == "fake", path.name))


def _pairs(path: Path) -> list[tuple[str, str]]:
    try:
        pairs = [(str(a), str(b)) for a, b in json.loads(path.read_text())]
    except (OSError, ValueError, TypeError) as error:
        raise DatasetError(f"{path} is not a split file, a JSON list of pairs of video ids: {error}.") from error
    return pairs


def _sequence(place: Path, name: str) -> Path | None:
    for candidate in (place / "videos" / f"{name}.mp4", place / "images" / name, place / "frames" / name, place / name):
        if candidate.exists():
            return candidate
    return None


@cache
def _warn(sentence: str) -> None:
    """Into the log, once a process: a data set is read several times."""
    log.warning(sentence)
