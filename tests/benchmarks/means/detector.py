"""What speeds up the detector: BlazeFace in one pass, against tiles and against other detectors."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from unittest.mock import patch

import cv2
import numpy as np

from pipeline import extraction, facenets
from pipeline.extraction import Detection, Detector
from pipeline.jobs import Box, Pixels
from pipeline.settings import Settings
from tests.benchmarks.means.measuring import ABSENT, Row, measure
from tests.benchmarks.means.pictures import Known, by_size

_in_one_pass = facenets.blazeface


def by_tiles(pixels: Pixels, min_score: float) -> facenets.Floats:
    """`facenets.blazeface`, shown 128 pixels at a time: each tile lies half over the next, so that a place is seen by 2 x 2 of them."""
    side = facenets.BLAZEFACE_PX
    height, width = pixels.shape[:2]
    if (height, width) == (side, side):
        return _in_one_pass(pixels, min_score)
    found = []
    for top in range(0, max(1, height - side // 2), side // 2):
        for left in range(0, max(1, width - side // 2), side // 2):
            tile = pixels[top : top + side, left : left + side]
            full = cv2.copyMakeBorder(tile, 0, side - tile.shape[0], 0, side - tile.shape[1], cv2.BORDER_CONSTANT, value=(0, 0, 0))
            corner = np.array((left, top, 0, 0, 0, left, top, left, top), np.float32)
            found.append(_in_one_pass(np.asarray(full, np.uint8), min_score) + corner)
    faces = np.concatenate(found)
    best: facenets.Floats = faces[np.argsort(-faces[:, 4], kind="stable")]
    return best  # the same face in several tiles: the detector merges its candidates


def tiled(detector: Detector) -> Detector:
    """The detector, with BlazeFace shown tiles wherever it is shown more than one of them."""

    def detect(pixels: Pixels) -> list[Detection]:
        with patch.object(facenets, "blazeface", by_tiles):
            return detector(pixels)

    return detect


def solution(model: int, min_score: float) -> Detector:
    """MediaPipe's own face detection: `model` 0 is short-range BlazeFace on the whole picture, 1 the full-range one.

    Raises ImportError where MediaPipe's solutions are not installed.
    """
    from pipeline.solutions import Solution

    own = Solution(
        lambda mp: mp.face_detection.FaceDetection(model_selection=model, min_detection_confidence=min_score),
        lambda result: bool(result.detections),
    )

    def detect(pixels: Pixels) -> list[Detection]:
        height, width = pixels.shape[:2]
        found = []
        for one in own(pixels).detections or ():
            box = one.location_data.relative_bounding_box
            upright = Box(round(box.xmin * width), round(box.ymin * height), round(box.width * width), round(box.height * height))
            found.append(Detection(upright, one.score[0]))
        return found

    return detect


def detector_rows(rounds: int, pictures: Sequence[Known], settings: Settings) -> list[Row]:
    """BlazeFace in one pass at each scale against everything it could have been."""
    ours = extraction.BlazeFace(settings.min_detection)
    detectors: dict[str, Detector] = {"128-px tiles": tiled(ours), "Haar": extraction.Haar()}
    missing = []
    for name, model in (("MediaPipe's short-range solution", 0), ("MediaPipe's full-range solution", 1)):
        try:
            detectors[name] = solution(model, settings.min_detection)
        except ImportError:
            missing.append(Row(f"BlazeFace in one pass instead of {name}", notes=f"MediaPipe's solutions are {ABSENT}"))
    rows = []
    for megapixels, these in by_size(pictures):
        ways = measure(rounds, len(these), {name: _over(detector, these) for name, detector in ({"ours": ours} | detectors).items()})
        here = found_of(these, ways["ours"].gave)
        for name in detectors:
            there = found_of(these, ways[name].gave)
            notes = f"faces found: {_said(there)} before, {_said(here)} after"
            means = f"BlazeFace in one pass instead of {name}, {megapixels} MP"
            figures = {f"{when}_{what}": value for when, of in (("before", there), ("after", here)) for what, value in of.items()}
            rows.append(Row(means, ways[name].ms, ways["ours"].ms, f"{len(these)} pictures", notes, figures))
    return rows + missing


def _over(detector: Detector, pictures: Sequence[Known]) -> Callable[[], list[list[Box]]]:
    return lambda: [[found.box for found in detector(one.pixels)] for one in pictures]


def _said(found: Mapping[str, float]) -> str:
    return f"{found['found']:.0f} of {found['faces']:.0f} and {found['more']:.0f} more boxes"


def found_of(pictures: Sequence[Known], boxes: Sequence[Sequence[Box]]) -> dict[str, float]:
    """How many faces there are and how many were found; and how many boxes there are beside one for each of these."""
    hits = sum(_hits(one, these) for one, these in zip(pictures, boxes, strict=True))
    return {"faces": sum(one.sample.faces for one in pictures), "found": hits, "more": sum(map(len, boxes)) - hits}


def _hits(picture: Known, boxes: Sequence[Box]) -> int:
    """The people found. The mix puts each into the middle of a cell of its own: a box of some size around there is the face's."""
    if not picture.sample.faces:
        return 0
    columns = 1 if picture.sample.kind == "one" else 4
    height, width = picture.pixels.shape[:2]
    cell = width / columns, height / -(-picture.sample.faces // columns)
    large = [box for box in boxes if box.w > min(cell) / 6]
    cells = {int((box.y + box.h / 2) // cell[1]) * columns + int((box.x + box.w / 2) // cell[0]) for box in large}
    return len(cells & set(range(picture.sample.faces)))
