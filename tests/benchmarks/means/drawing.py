"""What speeds up the drawing of the mesh: all lines in one call."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any
from unittest.mock import patch

import cv2
import numpy as np

from pipeline import extraction, facenets, rendering
from pipeline.jobs import Box, Pixels
from pipeline.rendering import MeshStyle
from pipeline.settings import Settings
from tests.benchmarks.means.measuring import ABSENT, Row, measure
from tests.benchmarks.means.pictures import Known, by_size

DRAWINGS = 10
"""The mesh is drawn so often in a turn."""
MESHES = (
    ("one `cv2.line` an edge", "whole", "smooth with a shadow"),
    ("MediaPipe's `drawing_utils`", "plain", "both in hard lines"),
    ("MediaPipe's `drawing_utils`", "whole", "smooth with a shadow"),
)
"""What the mesh is drawn by before and after, and what the lines look like after."""


def mesh_rows(rounds: int, pictures: Sequence[Known], settings: Settings) -> list[Row]:
    """One `polylines` over edges that each come once, against a call for each edge and against MediaPipe's own drawing. The landmarks
    are the same and known before; the copy of the picture that is drawn into is in all of them."""
    rows = []
    for megapixels, these in by_size([one for one in pictures if one.sample.kind == "one"]):
        pixels = these[0].pixels
        box = extraction.BlazeFace(settings.min_detection)(pixels)[0].box
        points = rendering.landmarks(pixels, box)
        assert points is not None
        whole = _mesh(pixels, box, points, MeshStyle.of(settings))
        drawings = {"whole": whole, "one `cv2.line` an edge": _line_by_line(whole), "plain": _plain(pixels, points)}
        try:
            drawings["MediaPipe's `drawing_utils`"] = _drawing_utils(pixels, points)
        except ImportError:
            rows.append(Row("one `polylines` instead of MediaPipe's `drawing_utils`", notes=f"MediaPipe is {ABSENT}"))
        ways = measure(rounds, DRAWINGS, {name: _often(draw) for name, draw in drawings.items()})
        for name, ours, notes in MESHES:
            if name in ways:
                same = bool(np.array_equal(ways[name].gave, ways[ours].gave))
                means = f"one `polylines` instead of {name}, {notes}, {megapixels} MP"
                said = "the very same pixels" if same else "other pixels"
                rows.append(Row(means, ways[name].ms, ways[ours].ms, f"{DRAWINGS} drawings", said, {"same": same}))
    return rows


def _often(draw: Callable[[], Pixels]) -> Callable[[], Pixels]:
    return lambda: [draw() for _ in range(DRAWINGS)][-1]


def _plain(pixels: Pixels, points: facenets.Floats) -> Callable[[], Pixels]:
    """Hard lines of one pixel, as MediaPipe draws: what the call alone is worth, without the product's look."""

    def draw() -> Pixels:
        drawn = pixels.copy()
        cv2.polylines(drawn, list(points[facenets.edges()].astype(np.int32)), False, (192, 192, 192), 1)
        return drawn

    return draw


def _mesh(pixels: Pixels, box: Box, points: facenets.Floats, style: MeshStyle) -> Callable[[], Pixels]:
    def draw() -> Pixels:
        with patch.object(rendering, "landmarks", lambda *_: points):
            return rendering.render(pixels, [box], style)

    return draw


def _line_by_line(draw: Callable[[], Pixels]) -> Callable[[], Pixels]:
    def lines(image: Pixels, several: Sequence[Any], closed: bool, *how: Any) -> None:
        for line in several:
            cv2.line(image, line[0], line[1], *how)

    def slowly() -> Pixels:
        with patch.object(cv2, "polylines", lines):
            return draw()

    return slowly


def _drawing_utils(pixels: Pixels, points: facenets.Floats) -> Callable[[], Pixels]:
    from mediapipe.framework.formats import landmark_pb2
    from mediapipe.python.solutions import drawing_styles, drawing_utils, face_mesh_connections

    height, width = pixels.shape[:2]
    marks = [landmark_pb2.NormalizedLandmark(x=float(x) / width, y=float(y) / height) for x, y in points]
    face = landmark_pb2.NormalizedLandmarkList(landmark=marks)
    style = drawing_styles.get_default_face_mesh_tesselation_style()

    def draw() -> Pixels:
        drawn = pixels.copy()
        drawing_utils.draw_landmarks(drawn, face, face_mesh_connections.FACEMESH_TESSELATION, None, style)
        return drawn

    return draw
