"""The fixed mix of pictures that everything is measured on: half one face, a quarter a group, a quarter nobody; 1 and 12 megapixels.

Faces are those of the held-out people of the face photographs where the folder is there, else scikit-image's portrait; what
stands behind them is scikit-image's. The same seed gives the same bytes.
"""

from __future__ import annotations

import csv
import importlib.util
import io
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from PIL import Image

from pipeline.jobs import Pixels

ROUND = 24
"""So many pictures are one round of the mix: each kind and size as often as it should be."""
SEED, PORTRAIT_SEED = 1, 7
KINDS = ("one", "one", "group", "none")
SIZES = {1: (1152, 864), 12: (4032, 3024)}
GROUNDS = ("coffee.png", "rocket.jpg", "grass.png", "brick.png", "gravel.png")


@dataclass(frozen=True)
class Sample:
    """One picture: its name, JPEG bytes, `kind` (`one`, `group` or `none`), megapixels, and how many faces were put into it."""

    name: str
    data: bytes
    kind: str
    megapixels: int
    faces: int


def mix(faces: Path | None, *, seed: int = SEED, count: int = ROUND, largest: int = 12) -> list[Sample]:
    """`count` pictures, of which every 8 hold each kind and size in its share. `largest`: 1 leaves out those of 12 megapixels."""
    rng = np.random.default_rng(seed)
    people, grounds = _people(faces), [_shipped(name) for name in GROUNDS]
    samples = []
    for number in range(count):
        kind, megapixels = KINDS[number % 4], min(largest, (1, 12)[number // 4 % 2])
        pixels, put_in = _picture(rng, kind, SIZES[megapixels], people, grounds)
        samples.append(Sample(f"{number:03}-{kind}-{megapixels}mp.jpg", _jpeg(pixels), kind, megapixels, put_in))
    return samples


def portrait(faces: Path | None, seed: int = PORTRAIT_SEED) -> bytes:
    """The photograph that latency is measured on: one face, one megapixel."""
    rng = np.random.default_rng(seed)
    return _jpeg(_picture(rng, "one", SIZES[1], _people(faces), [_shipped(GROUNDS[0])])[0])


def _people(faces: Path | None) -> list[Pixels]:
    if faces is None or not (faces / "faces.csv").exists():
        return [_shipped("astronaut.png")[:320, 60:380]]
    with (faces / "faces.csv").open() as index:
        held_out = [row["path"] for row in csv.DictReader(index) if row["split"] == "test"]
    return [_read(faces / path) for path in sorted(held_out)[:24]]


def _shipped(name: str) -> Pixels:
    spec = importlib.util.find_spec("skimage")
    if spec is None or not spec.submodule_search_locations:
        raise ImportError("The bench takes its pictures from scikit-image, which is not installed.")
    return _read(Path(spec.submodule_search_locations[0]) / "data" / name)


def _read(path: Path) -> Pixels:
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB"))


def _picture(rng: np.random.Generator, kind: str, size: tuple[int, int], people: list[Pixels], grounds: list[Pixels]) -> tuple[Pixels, int]:
    """A picture, and how many faces were put into it."""
    width, height = size
    canvas = np.asarray(cv2.resize(grounds[rng.integers(len(grounds))], size, interpolation=cv2.INTER_CUBIC), np.uint8)
    # what a camera adds: without it nothing in an enlarged picture would be hard to store
    canvas = np.clip(canvas.astype(np.int16) + rng.integers(-6, 7, canvas.shape, np.int16), 0, 255).astype(np.uint8)
    if kind == "none":
        return canvas, 0
    count = 1 if kind == "one" else int(rng.integers(4, 9))
    columns = 1 if kind == "one" else 4
    rows = -(-count // columns)
    for place in range(count):
        person = people[int(rng.integers(len(people)))]
        cell = (width // columns, height // rows)
        scale = 0.92 * min(cell[0] / person.shape[1], cell[1] / person.shape[0])
        figure = cv2.resize(person, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC)
        left = place % columns * cell[0] + (cell[0] - figure.shape[1]) // 2
        top = place // columns * cell[1] + (cell[1] - figure.shape[0]) // 2
        canvas[top : top + figure.shape[0], left : left + figure.shape[1]] = figure
    return canvas, count


def _jpeg(pixels: Pixels) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(pixels)).save(stream, "JPEG", quality=90)
    return stream.getvalue()
