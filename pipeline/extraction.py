"""Faces: found, measured, and cut out. `crop` is the one function that makes a classifier's input, in training and in serving."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import cv2
import numpy as np

from pipeline import images, solutions
from pipeline.jobs import Box, Face, Pixels, Quality, Reason

TILE_PX = 512
"""Tiles are scaled down to at most so many pixels a side before detection: far above BlazeFace's own 128."""
LARGE_PX = 2400
"""Pictures with a longer side than this are also looked at in 3x3 tiles."""
BLUR_PX = 112
"""The scale at which blur is measured, so that the threshold means the same for every network size."""


@dataclass(frozen=True)
class Detection:
    """A face found: its box inside the image, and the detector's own score, 0 to 1."""

    box: Box
    score: float


class Detector(Protocol):
    """Finds faces in (h, w, 3) uint8 RGB, best first. Any thread may call it."""

    def __call__(self, pixels: Pixels) -> list[Detection]: ...


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


def extract(pixels: Pixels, *, detector: Detector, size: int, margin: float, min_face_px: int, min_blur: float) -> list[Face]:
    """Every face of an upright image, from left to right, `index` in that order.

    `size` and `margin` are the classifier's (see `crop`). A face smaller than `min_face_px` or less sharp than `min_blur`
    gets a reason instead of a crop.
    """
    found = sorted(detector(pixels), key=lambda detection: (detection.box.x, detection.box.y))
    faces = []
    for index, detection in enumerate(found):
        box = detection.box
        cut = crop(pixels, box, size=size, margin=margin)
        quality = Quality(size=min(box.w, box.h), blur=round(blur(cut), 3))
        reason = None
        if quality.size < min_face_px:
            reason = Reason.FACE_TOO_SMALL
        elif quality.blur < min_blur:
            reason = Reason.BLURRED
        faces.append(Face(index, box, detection.score, quality, reason, None if reason else cut))
    return faces


def crop(pixels: Pixels, box: Box, *, size: int, margin: float) -> Pixels:
    """The square around a box's centre, with `margin` of the box's longer side added on every side, as (size, size, 3) uint8.

    Where the square leaves the image, the image's edge is repeated. Shrunk by area, enlarged by cubic interpolation.
    """
    side = max(1, round(max(box.w, box.h) * (1 + 2 * margin)))
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


@dataclass(frozen=True)
class _Tile:
    """A part of the image, in its pixels. `inner` names the sides (left, top, right, bottom) that are not the image's own."""

    x: int
    y: int
    w: int
    h: int
    inner: tuple[bool, bool, bool, bool]


class BlazeFace:
    """MediaPipe's short-range BlazeFace on the whole image and on overlapping tiles of it, merged.

    The network sees 128 pixels, so on a whole group picture it misses all but the largest faces; a tile shows it the small ones.
    """

    def __init__(self, min_score: float) -> None:
        self.min_score = min_score

    def __call__(self, pixels: Pixels) -> list[Detection]:
        found = [detection for tile in _tiles(pixels) for detection in self._look(pixels, tile)]
        return _merge(found)

    def _look(self, pixels: Pixels, tile: _Tile) -> Iterator[Detection]:
        height, width = pixels.shape[:2]
        part = pixels[tile.y : tile.y + tile.h, tile.x : tile.x + tile.w]
        scale = TILE_PX / max(tile.w, tile.h)
        if scale < 1:
            part = images.resize(part, max(1, round(tile.w * scale)), max(1, round(tile.h * scale)))
        result = solutions.face_detection(self.min_score)(np.ascontiguousarray(part))
        for found in result.detections or ():
            area = found.location_data.relative_bounding_box
            left, right = area.xmin, area.xmin + area.width
            top, bottom = area.ymin, area.ymin + area.height
            cut = (left < 0.01, top < 0.01, right > 0.99, bottom > 0.99)
            if any(inner and over for inner, over in zip(tile.inner, cut, strict=True)):
                continue  # part of a face at a tile's border: a neighbouring tile or the whole image shows all of it
            box = _clipped(tile.x + left * tile.w, tile.y + top * tile.h, tile.x + right * tile.w, tile.y + bottom * tile.h, width, height)
            if box is not None:
                yield Detection(box, float(found.score[0]))


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
        return [Detection(Box(*(int(value) for value in box)), 1.0) for box in boxes]


def _tiles(pixels: Pixels) -> list[_Tile]:
    height, width = pixels.shape[:2]
    tiles = [_Tile(0, 0, width, height, (False, False, False, False))]
    for grid in (2, 3) if max(height, width) > LARGE_PX else (2,):
        # overlapping by a third of a tile: every face up to that size lies whole in one of them
        w, h = -(-width * 3 // (2 * grid + 1)), -(-height * 3 // (2 * grid + 1))
        for row in range(grid):
            for column in range(grid):
                x, y = (width - w) * column // (grid - 1), (height - h) * row // (grid - 1)
                tiles.append(_Tile(x, y, w, h, (x > 0, y > 0, x + w < width, y + h < height)))
    return tiles


def _clipped(left: float, top: float, right: float, bottom: float, width: int, height: int) -> Box | None:
    x, y = max(0, round(left)), max(0, round(top))
    w, h = min(width, round(right)) - x, min(height, round(bottom)) - y
    return Box(x, y, w, h) if w > 0 and h > 0 else None


def _merge(found: list[Detection]) -> list[Detection]:
    """Non-maximum suppression, best first. A box mostly inside a better one is the same face seen in another tile."""
    kept: list[Detection] = []
    for detection in sorted(found, key=lambda d: (-d.score, d.box.x, d.box.y, d.box.w)):
        if all(_overlap(detection.box, other.box) < 0.5 for other in kept):
            kept.append(detection)
    return kept


def _overlap(one: Box, other: Box) -> float:
    """The shared area as a fraction of the smaller box."""
    w = min(one.x + one.w, other.x + other.w) - max(one.x, other.x)
    h = min(one.y + one.h, other.y + other.h) - max(one.y, other.y)
    return max(0, w) * max(0, h) / min(one.w * one.h, other.w * other.h)
