"""How good a model is, measured as the field measures, on faces it has never seen.

Two kinds of faces: a folder of photographs with an index (`faces.csv`), from which fakes of four kinds are made here for
held-out identities; or anybody's own `real/` and `fake/` pictures (or a manifest, or FaceForensics++). Faces are cut by
the functions of serving and scored by the classifier of serving, so it needs no TensorFlow. A picture's score is its highest
face's, as in `POST /predict`.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import platform
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any, TypeVar

import cv2
import numpy as np
import numpy.typing as npt

from pipeline.card import ModelError
from pipeline.classification import Classifier
from pipeline.extraction import Detection, crop, extract
from pipeline.jobs import Box, Pixels
from pipeline.training import augmentation, calibration, datasets, examples, portraits, report
from pipeline.training.crops import FRAMES, Cut, pictures
from pipeline.training.datasets import DatasetError, Record
from pipeline.training.examples import KINDS, Kind, Recipe
from pipeline.training.figures import CLEAN, GRID, Condition, Scored, Sets, document

T = TypeVar("T")
Watch = Callable[[Sequence[T], str], Iterable[T]]
BATCH = 16


class Scorer:
    """Calibrated scores of crops, in batches; a crop that came before (reals are in every set) is not run again."""

    def __init__(self, classifier: Classifier) -> None:
        self.classifier = classifier
        self._known: dict[bytes, float] = {}

    def __call__(self, crops: Sequence[Pixels]) -> npt.NDArray[np.float64]:
        """Scores (n,), 0 to 1, of crops (s, s, 3) uint8 RGB."""
        keys = [hashlib.blake2b(np.ascontiguousarray(crop).data, digest_size=16).digest() for crop in crops]
        fresh = list({key: crop for key, crop in zip(keys, crops, strict=True) if key not in self._known}.items())
        for start in range(0, len(fresh), BATCH):
            part = fresh[start : start + BATCH]
            logits = self.classifier.logits(np.stack([crop for _, crop in part]))
            found = calibration.scores(logits, self.classifier.card.temperature)
            self._known.update(zip((key for key, _ in part), found.tolist(), strict=True))
        return np.array([self._known[key] for key in keys], np.float64)


def plainly(items: Sequence[T], what: str) -> Iterable[T]:
    """A `watch` that shows nothing."""
    del what
    return items


def evaluate(
    classifier: Classifier,
    faces: Path,
    *,
    seed: int = 1,
    split: str = "test",
    per_portrait: int = 4,
    grid: bool = True,
    facts: Path | None = None,
    cut: Cut | None = None,
    compression: str = "c23",
    watch: Watch[Any] = plainly,
) -> dict[str, Any]:
    """Measure a classifier on the faces under a path and return the document of `build/evaluate.json`.

    Nothing here knows what a model was trained on: of a data set without splits everything is measured, and whoever was trained on is
    not held out then. The document says how many `pictures` were measured (videos count as one), and how many of them `without_split`.

    Args:
        faces: a folder with `faces.csv`, or whatever `datasets.load` takes.
        seed: of the fakes that are made here, and of the bootstrap.
        split: which identities; pictures without a split are always taken.
        per_portrait: fakes of each kind made from a photograph.
        grid: also measure after JPEG 95, 75 and 50 and at face sizes of 160, 96 and 64 px.
        facts: where findings in the photographs are kept between calls (see `portraits.load`).
        cut: how faces are found in other people's pictures; size and margin are always the model's.
        compression: of the videos, where they are FaceForensics++.
        watch: wraps what is worked through, with its name, for a progress bar.

    Raises FileNotFoundError or DatasetError for a folder without faces.
    """
    conditions = (CLEAN, *GRID) if grid else (CLEAN,)
    card = classifier.card
    how = Cut(**{**(cut or Cut()).__dict__, "size": card.input_size, "margin": card.margin})
    gate: dict[str, Any] | None = None
    if faces.name == "faces.csv":
        faces = faces.parent
    if (faces / "faces.csv").exists():
        refused: list[str] = []
        people = portraits.load(faces, split, facts=facts, refused=refused, watch=lambda rows: watch(list(rows), "photographs"))
        if not people:
            raise DatasetError(f"No face of the split {split} was found in {faces}.")
        portraits.must_be_several(people, faces)
        recipe = Recipe(size=card.input_size, margin=card.margin)
        sets = made_sets(Scorer(classifier), people, recipe, conditions, seed=seed, per_portrait=per_portrait, watch=watch)
        indexed = sum(row["split"] == split for row in datasets.index(faces))
        counted = {"no_face": indexed - len(people) - len(refused), "refused": len(refused)}
        failed = {why: number for why, number in counted.items() if number}
        sets = {name: {at: replace(scored, failed=failed) for at, scored in found.items()} for name, found in sets.items()}
        gate = refused_by_gate(people, how, conditions)
        manifest = portraits.manifest(people)
        measured, without_split = len(people), 0
    else:
        records = [record for record in datasets.load(faces, compression=compression) if record.split in ("", split)]
        if not records:
            raise DatasetError(f"Nothing in {faces} belongs to the split {split}.")
        records = datasets.hashed(watch(records, "hashes"))
        sets = found_sets(Scorer(classifier), records, how, conditions, watch=watch)
        manifest = datasets.content_hash(records)
        measured, without_split = len(records), sum(not record.split for record in records)
    name = classifier.name
    return {
        "model": {"name": name.name, "version": name.version, "sha256": name.sha256, "precision": classifier.precision},
        "seed": seed,
        "split": split,
        "pictures": measured,
        "without_split": without_split,
        "manifest": manifest,
        "thresholds": card.thresholds.model_dump(),
        "temperature": card.temperature,
        "limits": card.limits,
        "made_with": {"python": platform.python_version(), "openvino": version("openvino"), "machine": platform.machine()},
        "weighting": "ece15, brier, ap and accuracy count reals and fakes half each, however many there are of either",
        **document(sets, card.thresholds, seed=seed),
        "gate": gate,
    }


def made_sets(
    score: Scorer,
    people: Sequence[portraits.Portrait],
    recipe: Recipe,
    conditions: Sequence[Condition],
    *,
    seed: int,
    per_portrait: int,
    kinds: Sequence[Kind] = KINDS,
    watch: Watch[Any] = plainly,
) -> Sets:
    """The four sets of fakes made here from portraits (or some `kinds` of them), under every condition."""
    sets: Sets = {}
    for kind, condition in watch([(kind, condition) for kind in kinds for condition in conditions], "faces made here"):
        how = {"jpeg": {"jpeg": condition[1]}, "size": {"face_px": condition[1]}}.get(condition[0], {})
        samples = examples.evaluation_set(people, kind, seed=seed, per_portrait=per_portrait, recipe=recipe, **how)
        sets.setdefault(kind, {})[condition] = Scored(
            score([sample.crop for sample in samples]),
            np.array([sample.fake for sample in samples], bool),
            tuple(sample.identity for sample in samples),
            tuple(sample.group for sample in samples),
        )
    return sets


def refused_by_gate(people: Sequence[portraits.Portrait], cut: Cut, conditions: Sequence[Condition]) -> dict[str, dict[str, Any]]:
    """How many of the portraits serving would give no score under each condition, by reason: the sets made here score every one.

    The gate is extraction's own, at these settings, on the picture and the box that the crop is taken from."""
    found: dict[str, dict[str, Any]] = {}
    for condition in conditions:
        why: Counter[str] = Counter()
        for person in people:
            pixels, box = _worse(person.pixels, person.box, condition)
            faces = extract(
                pixels,
                detector=lambda _, box=box: [Detection(box, 1.0)],
                size=cut.size,
                margin=cut.margin,
                min_face_px=cut.min_face_px,
                min_blur=cut.min_blur,
                max_blocks=cut.max_blocks,
            )
            why.update(face.reason.value for face in faces if face.reason)
        found[" ".join(map(str, condition)) if condition != CLEAN else "as it is"] = {"n": len(people), "refused": dict(why)}
    return found


def found_sets(
    score: Scorer,
    records: Sequence[Record],
    cut: Cut,
    conditions: Sequence[Condition],
    *,
    frames: int = FRAMES,
    watch: Watch[Any] = plainly,
) -> Sets:
    """One set for each manipulation in the records, with all reals in each; only `real` where there are no fakes."""
    find = cut.find()
    # A fake is of two people, its reals of one each: whoever is linked so is drawn together, else an interval would be too narrow.
    # Somebody unknown is somebody of their own.
    groups = datasets.linked([record.people or {f"file {record.path}"} for record in records])
    records = [replace(record, identity=group) for record, group in zip(records, groups, strict=True)]
    rows: dict[Condition, list[tuple[Record, float]]] = {condition: [] for condition in conditions}
    failed: dict[str, Counter[str]] = {}
    for record in watch(records, "pictures"):
        for pixels in pictures(record, cut, frames=frames):
            faces = [] if pixels is None else cut.faces(pixels, find)
            judged = [face for face in faces if face.crop is not None]
            if pixels is None or not judged:
                why = "refused" if pixels is None else next((face.reason.value for face in faces if face.reason), "no_face")
                failed.setdefault(record.manipulation, Counter())[why] += 1
                continue
            boxes = [face.box for face in judged]
            every = [_degraded(pixels, boxes, condition, cut) for condition in conditions]
            scores = score([crop for crops in every for crop in crops]).reshape(len(conditions), len(boxes)).max(axis=1)
            for condition, value in zip(conditions, scores.tolist(), strict=True):
                rows[condition].append((record, value))
    methods = sorted({record.manipulation for record in records if record.fake}) or ["real"]
    return {
        method: {
            condition: _scored(
                [row for row in rows[condition] if row[0].manipulation in ("", method)], failed.get(method, {}), failed.get("", {})
            )
            for condition in conditions
        }
        for method in methods
    }


def _scored(rows: Sequence[tuple[Record, float]], *failed: Mapping[str, int]) -> Scored:
    together: Counter[str] = Counter()
    for part in failed:
        together.update(part)
    return Scored(
        np.array([score for _, score in rows], np.float64),
        np.array([record.fake for record, _ in rows], bool),
        tuple(record.identity for record, _ in rows),
        tuple(record.group for record, _ in rows),
        dict(together),
    )


def _degraded(pixels: Pixels, boxes: Sequence[Box], condition: Condition, cut: Cut) -> Iterator[Pixels]:
    """The crops of a picture's faces after compression of the whole picture, or scaled so that each face is so small."""
    kind, value = condition
    if kind == "jpeg":
        pixels = augmentation.compress(pixels, value)
    for box in boxes:
        small, less = _smaller(pixels, box, value) if kind == "size" else (pixels, box)
        yield crop(small, less, size=cut.size, margin=cut.margin)


def _worse(pixels: Pixels, box: Box, condition: Condition) -> tuple[Pixels, Box]:
    """A picture of one face and its box under a condition."""
    kind, value = condition
    if kind == "size":
        return _smaller(pixels, box, value)
    return (augmentation.compress(pixels, value) if kind == "jpeg" else pixels), box


def _smaller(pixels: Pixels, box: Box, side: int) -> tuple[Pixels, Box]:
    """A picture scaled so that the face's box has so many pixels, if it has more."""
    scale = side / max(box.w, box.h)
    if scale >= 1:
        return pixels, box
    small = cv2.resize(pixels, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
    less = Box(round(box.x * scale), round(box.y * scale), max(1, round(box.w * scale)), max(1, round(box.h * scale)))
    return np.asarray(small, np.uint8), less


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line: `python -m pipeline.training.evaluation --model FOLDER --faces DIR --json FILE [--report DIR]`.

    Returns the exit code, 2 with one sentence if something is wrong.
    """
    from rich.progress import track

    from pipeline.classification import load

    parser = argparse.ArgumentParser(description="Measure a model version on held-out faces.")
    parser.add_argument("--model", type=Path, required=True, help="a version folder with card.json")
    parser.add_argument("--faces", type=Path, required=True, help="faces.csv, real/ and fake/, a manifest, or FaceForensics++")
    parser.add_argument("--json", type=Path, required=True, help="where the figures go")
    parser.add_argument("--report", type=Path, help="folder for the report's pictures and report.html")
    parser.add_argument("--runtime", choices=("openvino", "tensorflow"), default="openvino")
    parser.add_argument("--precision", choices=("f32", "bf16", "int8"), default="f32")
    parser.add_argument("--split", choices=datasets.SPLITS, default="test")
    parser.add_argument("--compression", choices=datasets.COMPRESSIONS, default="c23", help="of the videos of FaceForensics++")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--per-portrait", type=int, default=4, help="fakes of each kind made from a photograph")
    parser.add_argument("--no-grid", action="store_true", help="leave out compression and small sizes")
    parser.add_argument("--facts", type=Path, help="where findings in the photographs are kept (.npz)")
    chosen = parser.parse_args(arguments)
    try:
        found = evaluate(
            load(chosen.model, runtime=chosen.runtime, precision=chosen.precision),
            chosen.faces,
            seed=chosen.seed,
            split=chosen.split,
            compression=chosen.compression,
            per_portrait=chosen.per_portrait,
            grid=not chosen.no_grid,
            facts=chosen.facts,
            watch=lambda items, what: track(items, description=what),
        )
        chosen.json.parent.mkdir(parents=True, exist_ok=True)
        chosen.json.write_text(json.dumps(found, indent=1) + "\n")
        if chosen.report:
            report.write(found, chosen.report)
    except (ModelError, DatasetError, report.ReportError, FileNotFoundError) as error:
        print(error, file=sys.stderr)  # noqa: T201
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
