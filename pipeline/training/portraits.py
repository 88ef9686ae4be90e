"""Photographs with one known face each: the raw material of the manipulations.

Found by the very detector and landmarks that serving uses. What was found is kept in a facts file, keyed by the
photograph's sha256, so that the photographs are looked at once, and a machine without MediaPipe can train from it.
"""

from __future__ import annotations

import hashlib
import os
import zipfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from pipeline import images, solutions
from pipeline.extraction import Detector, detector
from pipeline.jobs import Box, Pixels
from pipeline.rendering import landmarks as find_landmarks
from pipeline.training import datasets
from pipeline.training.datasets import DatasetError
from pipeline.training.manipulations import Mask, Points

CONTEXT = 2.2
"""How much of the photograph is kept: a square of so many face boxes around the face."""
LARGEST_MEASURED = 1024
"""To be measured on, faces stay as large as they are, as in serving; beyond so many pixels a side they are scaled down to them."""
LARGEST_FACE = 400
"""To train on, faces are scaled down to at most so many pixels, which is more than the network sees: pairs are made faster."""


@dataclass(frozen=True)
class Portrait:
    """The surroundings of one face. `pixels` (h, w, 3) uint8 RGB; `landmarks` (468, 2) and `box` in those pixels."""

    photo: str
    identity: str
    split: str
    group: dict[str, str]
    sha256: str
    pixels: Pixels = field(repr=False, compare=False)
    landmarks: Points = field(repr=False, compare=False)
    person: Mask = field(repr=False, compare=False)
    """(96, 96) float32 over the same surroundings: 1 the person, 0 the background."""
    box: Box

    @cached_property
    def half(self) -> Pixels:
        """The pixels at half size, for scaling down without aliasing."""
        return np.asarray(cv2.pyrDown(self.pixels), np.uint8)

    @cached_property
    def tone(self) -> Points:
        """Mean LAB of the inner face, (3,) float32: who may lend whom a face."""
        x, y, w, h = self.box.as_list()
        inner = self.pixels[y + h // 4 : y + 3 * h // 4, x + w // 4 : x + 3 * w // 4]
        return np.asarray(cv2.cvtColor(inner, cv2.COLOR_RGB2LAB).reshape(-1, 3).mean(axis=0), np.float32)


def load(
    folder: Path,
    split: str | None = None,
    *,
    facts: Path | None = None,
    largest: int = LARGEST_MEASURED,
    refused: list[str] | None = None,
    watch: Callable[[Iterable[dict[str, str]]], Iterable[dict[str, str]]] = lambda rows: rows,
) -> list[Portrait]:
    """Every photograph of `folder/faces.csv` (of one split, or all) in which exactly the expected face is found.

    `faces.csv` has the columns path, identity, split and, for groups, gender and ethnicity. `facts` names the `.npz` to read findings
    from and add new ones to. Faces larger than `largest` pixels a side are scaled down to that: to train on them give `LARGEST_FACE`.
    `watch` wraps the index's rows while they are gone through. A photograph without a detectable face is left out; one that cannot be
    read is an error, or where `refused` is given, left out and its path put there. In the order of their paths. Raises
    FileNotFoundError when the folder has no index or lacks a photograph, and DatasetError (see `datasets.index`).
    """
    rows = [row for row in datasets.index(folder) if split is None or row["split"] == split]
    known = _known(facts)
    before = len(known)
    found = []
    try:
        for row in watch(rows):
            data = (folder / row["path"]).read_bytes()
            sha256 = hashlib.sha256(data).hexdigest()
            try:
                pixels = images.read(data, images.Limits(bytes=1 << 27, pixels=1 << 27, side=1 << 15)).pixels
            except images.ImageRefused as error:
                if refused is None:
                    raise DatasetError(f"The photograph {folder / row['path']} cannot be used: {error}") from error
                refused.append(row["path"])
                continue
            if sha256 not in known:
                known[sha256] = _look(pixels, detector("mediapipe", 0.5))
            if not known[sha256].size:
                continue
            region = _region(pixels, known[sha256])
            if f"{sha256}/person" not in known:
                known[f"{sha256}/person"] = _person(pixels[region])
            found.append(_portrait(row, sha256, pixels, region, known[sha256], known[f"{sha256}/person"], largest))
    finally:  # what was looked at need not be again, even if a later photograph is broken
        if facts is not None and len(known) > before:
            facts.parent.mkdir(parents=True, exist_ok=True)
            whole = facts.with_name(f".{facts.stem}.{os.getpid()}.npz")
            np.savez_compressed(whole, **known)
            whole.replace(facts)
    return found


def must_be_several(people: Iterable[Portrait], folder: Path) -> None:
    """Raise DatasetError where portraits of a split show one person only: a face swap takes the face of another."""
    identities: dict[str, set[str]] = {}
    for person in people:
        identities.setdefault(person.split, set()).add(person.identity)
    for split, names in sorted(identities.items()):
        if len(names) < 2:
            raise DatasetError(f"{folder} has faces of only one person in the split {split}: a face swap needs two people.")


def _known(facts: Path | None) -> dict[str, Any]:
    if facts is None or not facts.exists():
        return {}
    try:
        if zipfile.is_zipfile(facts):
            with np.load(facts) as content:
                return dict(content)
    except (OSError, ValueError, EOFError, zipfile.BadZipFile):
        pass
    raise DatasetError(f"{facts} is not a file of findings in photographs, or is damaged: remove it, and they are looked for anew.")


def manifest(portraits: Iterable[Portrait]) -> str:
    """The data's hash: sha256 over the sorted (photograph, split, identity) triples."""
    lines = sorted(f"{p.sha256} {p.split} {p.identity}\n" for p in portraits)
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def _look(pixels: Pixels, find: Detector) -> Points:
    """The largest face as (470, 2) float32: its (x, y), its (w, h), then the landmarks. Empty where there is none."""
    detections = find(pixels)
    if not detections:
        return np.empty((0, 2), np.float32)
    box = max(detections, key=lambda d: d.box.w * d.box.h).box
    points = find_landmarks(pixels, box)
    if points is None:
        return np.empty((0, 2), np.float32)
    return np.concatenate([np.array([[box.x, box.y], [box.w, box.h]], np.float32), points.astype(np.float32)])


def _person(pixels: Pixels) -> Pixels:
    """Who is in front, by MediaPipe's selfie segmentation, as (96, 96) uint8."""
    segment = solutions.Solution(lambda mp: mp.selfie_segmentation.SelfieSegmentation(model_selection=0), lambda result: True)
    mask = np.clip(segment(np.ascontiguousarray(pixels)).segmentation_mask, 0, 1)
    return np.asarray(cv2.resize(mask, (96, 96), interpolation=cv2.INTER_AREA) * 255, np.uint8)


def _region(pixels: Pixels, facts: Points) -> tuple[slice, slice]:
    (x, y), (w, h) = facts[0], facts[1]
    side = CONTEXT * max(w, h)
    left, top = max(0, round(x + w / 2 - side / 2)), max(0, round(y + h / 2 - side / 2))
    right, bottom = min(pixels.shape[1], round(x + w / 2 + side / 2)), min(pixels.shape[0], round(y + h / 2 + side / 2))
    return slice(top, bottom), slice(left, right)


def _portrait(
    row: dict[str, str], sha256: str, pixels: Pixels, region: tuple[slice, slice], facts: Points, person: Pixels, largest: int
) -> Portrait:
    (w, h) = facts[1]
    surroundings = pixels[region]
    scale = min(1.0, largest / max(w, h))
    if scale < 1:
        size = (round(surroundings.shape[1] * scale), round(surroundings.shape[0] * scale))
        surroundings = cv2.resize(surroundings, size, interpolation=cv2.INTER_AREA)
    moved = (facts - np.array([region[1].start, region[0].start], np.float32)) * np.float32(scale)
    return Portrait(
        photo=row["path"],
        identity=row["identity"],
        split=row["split"],
        group={key: row[key] for key in ("gender", "ethnicity") if row.get(key)},
        sha256=sha256,
        pixels=np.ascontiguousarray(surroundings),
        landmarks=moved[2:],
        person=person.astype(np.float32) / 255,
        box=Box(round(moved[0, 0]), round(moved[0, 1]), round(w * scale), round(h * scale)),
    )
