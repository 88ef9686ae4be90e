"""Faces: found, measured, and cut out. `crop` is the one function that makes a classifier's input, in training and in serving."""

from __future__ import annotations

import math
import threading
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Protocol

import cv2
import numpy as np
import numpy.typing as npt

from pipeline import facenets, images
from pipeline.facenets import FloatBox, Floats
from pipeline.jobs import Box, Face, Pixels, Quality, Reason

LARGEST_PX = 768
"""The largest scale at which a picture is searched, its longer side in pixels: finds faces down to 1/55 of that side."""
PROPOSAL_SCORE = 0.4
"""What is found at first glance is a candidate from here on, or from a lower score if the setting is lower, down to LEAST_PROPOSAL."""
LEAST_PROPOSAL = 0.2
MOST_CANDIDATES = 250
BLUR_PX = 112
"""The scale at which blur is measured, so that the threshold means the same for every network size."""
BLOCK_PX = 8
"""JPEG compresses blocks of so many pixels a side."""
SEEN_PX = 2
"""A block that is smaller than this in the crop is no longer to be seen there: what is left of the face is fit to be judged."""
MOST_LINES = 256
"""So many rows and columns of a face are looked at for blocks, evenly spread: more say nothing new."""
FLAT = 0.25
"""In grey levels, added to what differs within the blocks: where nothing does, a step of one level is no ruin yet."""


@dataclass(frozen=True)
class Detection:
    """A face found: its box inside the image, and the detector's own score, 0 to 1."""

    box: Box
    score: float


class Detector(Protocol):
    """Finds faces in (h, w, 3) uint8 RGB, best first. Any thread may call it."""

    def __call__(self, pixels: Pixels) -> list[Detection]: ...


@cache
def detector(name: str, min_score: float) -> Detector:
    """The detector of a name: `mediapipe` (tiled short-range BlazeFace) or `haar` (OpenCV's frontal cascade on grey, the paper's).

    Nothing is loaded before the first call. `min_score`, 0 to 1: detections below are dropped; the cascade gives no score
    and ignores it. Raises ValueError for another name.
    """
    if name == "mediapipe":
        return BlazeFace(min_score)
    if name == "haar":
        return Haar()
    raise ValueError(f"There is no detector {name!r}: it is mediapipe or haar.")


def extract(
    pixels: Pixels, *, detector: Detector, size: int, margin: float, min_face_px: int, min_blur: float, max_blocks: float
) -> list[Face]:
    """Every face of an upright image, from left to right, `index` in that order.

    `size` and `margin` are the classifier's (see `crop`). A face smaller than `min_face_px`, less sharp than `min_blur` or
    with plainer blocks than `max_blocks` gets a reason instead of a crop. Blocks are no reason where the face is so large that
    they are smaller than `SEEN_PX` in its crop.
    """
    found = sorted(detector(pixels), key=lambda detection: (detection.box.x, detection.box.y))
    faces = []
    for index, detection in enumerate(found):
        box = detection.box
        cut = crop(pixels, box, size=size, margin=margin)
        blocky = round(blocks(pixels, box), 3)
        quality = Quality(size=min(box.w, box.h), blur=round(blur(cut), 3), blocks=blocky)
        reason = None
        if quality.size < min_face_px:
            reason = Reason.FACE_TOO_SMALL
        elif quality.blur < min_blur:
            reason = Reason.BLURRED
        elif blocky > max_blocks and BLOCK_PX * size >= SEEN_PX * _side(box, margin):
            reason = Reason.COMPRESSED
        faces.append(Face(index, box, detection.score, quality, reason, None if reason else cut))
    return faces


def crop(pixels: Pixels, box: Box, *, size: int, margin: float) -> Pixels:
    """The square around a box's centre, with `margin` of the box's longer side added on every side, as (size, size, 3) uint8.

    Where the square leaves the image, the image's edge is repeated. Shrunk by area, enlarged by cubic interpolation.
    """
    side = _side(box, margin)
    left = round(box.x + box.w / 2 - side / 2)
    top = round(box.y + box.h / 2 - side / 2)
    height, width = pixels.shape[:2]
    inside = pixels[max(0, top) : max(0, min(height, top + side)), max(0, left) : max(0, min(width, left + side))]
    if inside.shape[:2] != (side, side):
        if not inside.size:
            raise ValueError(f"The box {box.as_list()} lies outside the image of {width} x {height} pixels.")
        above, before = max(0, -top), max(0, -left)
        below, behind = side - inside.shape[0] - above, side - inside.shape[1] - before
        inside = np.asarray(cv2.copyMakeBorder(inside, above, below, before, behind, cv2.BORDER_REPLICATE), np.uint8)
    return np.ascontiguousarray(images.resize(inside, size, size))


def blur(crop: Pixels) -> float:
    """Variance of the Laplacian of the grey crop at 112 px; small is blurred."""
    grey = cv2.cvtColor(crop, cv2.COLOR_RGB2GRAY)
    if grey.shape != (BLUR_PX, BLUR_PX):
        grey = cv2.resize(grey, (BLUR_PX, BLUR_PX), interpolation=cv2.INTER_AREA if grey.shape[0] > BLUR_PX else cv2.INTER_CUBIC)
    return float(cv2.Laplacian(grey, cv2.CV_64F).var())


def blocks(pixels: Pixels, box: Box) -> float:
    """How plainly a face shows the blocks of JPEG, at the picture's own resolution: 0 not at all, above about 3 it is ruined.

    It is the mean step in grey across the blocks' borders, less that between neighbours within the blocks, over the root of the
    latter: texture hides blocks, but not in proportion. The two means are those that Wang, Sheikh and Bovik (2002, "No-reference
    perceptual quality assessment of JPEG compressed images") call blockiness and activity. Differing from them, the grid is looked
    for at all its phases, so a picture may have been cut since; a few strong edges count for little (the median of the lines); and
    the lesser of the two directions counts, so stripes are no blocks. Pixels alone are looked at: a PNG of a ruined JPEG is as
    ruined. What was scaled since has its grid no longer, nor have video and WebP, whose decoders smooth it: they pass.
    """
    grey = np.asarray(cv2.cvtColor(pixels[box.y : box.y + box.h, box.x : box.x + box.w], cv2.COLOR_RGB2GRAY), np.uint8)
    rows, columns = grey[:: max(1, box.h // MOST_LINES)], grey[:, :: max(1, box.w // MOST_LINES)].T
    return min(_excess(np.ascontiguousarray(rows)), _excess(np.ascontiguousarray(columns)))


def _excess(grey: npt.NDArray[np.uint8]) -> float:
    """What steps from left to right exceed the others by at the phase of the grid where they are largest; `grey` is (h, w)."""
    whole = (grey.shape[1] - 1) // BLOCK_PX
    if not whole:
        return 0.0
    steps = cv2.reduce(cv2.absdiff(grey[:, 1:], grey[:, :-1]), 0, cv2.REDUCE_AVG, dtype=cv2.CV_32F).ravel()
    by_phase = np.median(steps[: whole * BLOCK_PX].reshape(whole, BLOCK_PX), axis=0)
    across = float(by_phase.max())
    within = (float(by_phase.sum()) - across) / (BLOCK_PX - 1)
    return (across - within) / math.sqrt(within + FLAT)


def _side(box: Box, margin: float) -> int:
    """The side in pixels of the square that `crop` cuts out."""
    return max(1, round(max(box.w, box.h) * (1 + 2 * margin)))


class BlazeFace:
    """MediaPipe's short-range BlazeFace on a pyramid of the image; every candidate is looked at again from near.

    BlazeFace finds faces from a tenth to nearly all of the 128 pixels it was made for, so the image is shown in two or three scales.
    What it finds is then cut out at the one scale it knows best: that second look gives the box and the score, so both are as good for a
    small face in a group as for a portrait; and FaceMesh must agree that a face is there, which stones, planets and cats fail.
    """

    def __init__(self, min_score: float) -> None:
        self.min_score = min_score

    def __call__(self, pixels: Pixels) -> list[Detection]:
        height, width = pixels.shape[:2]
        first = max(LEAST_PROPOSAL, min(PROPOSAL_SCORE, self.min_score))
        candidates = np.concatenate([_glance(small, width, height, first)[:MOST_CANDIDATES] for small in _pyramid(pixels)])
        boxes = _merge([(_float_box(row), float(row[4])) for row in candidates])[:MOST_CANDIDATES]
        seen = [face for box, _ in boxes if (face := _look(pixels, box, self.min_score)) is not None]
        clipped = [(_clipped(box, width, height), score) for box, score in _merge(seen)]
        return [Detection(box, score) for box, score in clipped if box is not None]


class Haar:
    """OpenCV's `haarcascade_frontalface_default` on grey, as in the paper. It gives no score; 1.0 stands in for it."""

    def __init__(self) -> None:
        self._here = threading.local()

    def __call__(self, pixels: Pixels) -> list[Detection]:
        cascade = getattr(self._here, "cascade", None)
        if cascade is None:  # a cascade keeps scratch memory of its own: one per thread
            cascade = cv2.CascadeClassifier(str(Path(cv2.__file__).parent / "data" / "haarcascade_frontalface_default.xml"))
            self._here.cascade = cascade
        grey = cv2.cvtColor(pixels, cv2.COLOR_RGB2GRAY)
        boxes = cascade.detectMultiScale(grey, scaleFactor=1.1, minNeighbors=5, minSize=(30, 30))
        # found by several threads, so in any order
        found = sorted((tuple(int(value) for value in box) for box in boxes), key=lambda box: (-box[2], box))
        return [Detection(Box(*box), 1.0) for box in found]


def _pyramid(pixels: Pixels) -> list[Pixels]:
    """The image at the scales to look at: one for the smallest faces worth finding, down to one for faces that fill it."""
    height, width = pixels.shape[:2]
    largest = min(LARGEST_PX, -(-round(max(height, width) * 0.28) // 128) * 128)
    small = pixels
    while max(small.shape[:2]) >= 2 * largest and not (small.shape[0] | small.shape[1]) & 1:
        small = images.resize(small, small.shape[1] // 2, small.shape[0] // 2)  # exact halves are ten times as fast
    pyramid = []
    for side in (largest,) if largest == 128 else (largest, 128) if largest <= 512 else (largest, 256, 128):
        scale = side / max(height, width)
        small = images.resize(small, max(1, round(width * scale)), max(1, round(height * scale)))
        pyramid.append(small)
    return pyramid


def _glance(small: Pixels, width: int, height: int, min_score: float) -> Floats:
    """BlazeFace's answers on a scaled image, in pixels of the image of `width` and `height`, (n, 9)."""
    # the network takes a moment for every new shape: sides come in steps, so there are few
    padded = cv2.copyMakeBorder(small, 0, -small.shape[0] % 64, 0, -small.shape[1] % 64, cv2.BORDER_CONSTANT, value=(0, 0, 0))
    found = facenets.blazeface(np.asarray(padded, np.uint8), min_score)
    across, down = width / small.shape[1], height / small.shape[0]
    return found * np.array((across, down, across, down, 1, across, down, across, down), np.float32)


def _look(pixels: Pixels, box: FloatBox, min_score: float) -> tuple[FloatBox, float] | None:
    """The face that a candidate turns out to be, seen from near; None if it is none."""
    face = facenets.near(pixels, box)
    if (
        face is None
        or face.score < min_score
        or facenets.fit(pixels, face.centre, float(face.size.max()), face.angle, halve=True)[1] < facenets.MESH_SCORE
    ):
        return None
    return face.box, face.score


def _float_box(row: Floats) -> FloatBox:
    x, y, w, h = (float(value) for value in row[:4])
    return x, y, w, h


def _clipped(box: FloatBox, width: int, height: int) -> Box | None:
    left, top = max(0, round(box[0])), max(0, round(box[1]))
    w, h = min(width, round(box[0] + box[2])) - left, min(height, round(box[1] + box[3])) - top
    return Box(left, top, w, h) if w > 0 and h > 0 else None


def _merge(found: list[tuple[FloatBox, float]]) -> list[tuple[FloatBox, float]]:
    """Non-maximum suppression, best first: what shares a third with a better box, or lies nearly all inside it, is the same face."""
    kept: list[tuple[FloatBox, float]] = []
    for box, score in sorted(found, key=lambda one: (-one[1], one[0])):
        if not any(_same(box, other) for other, _ in kept):
            kept.append((box, score))
    return kept


def _same(one: FloatBox, other: FloatBox) -> bool:
    w = min(one[0] + one[2], other[0] + other[2]) - max(one[0], other[0])
    h = min(one[1] + one[3], other[1] + other[3]) - max(one[1], other[1])
    shared = max(0.0, w) * max(0.0, h)
    areas = one[2] * one[3], other[2] * other[3]
    return shared > 0.33 * (sum(areas) - shared) or shared > 0.8 * min(areas)
