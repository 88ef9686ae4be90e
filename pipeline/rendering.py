"""The mesh over manipulated faces: 468 MediaPipe landmarks, drawn into a copy of the image, which is otherwise left alone."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import cv2
import numpy as np

from pipeline import facenets
from pipeline.facenets import MESH_SCORE, Floats
from pipeline.images import resize
from pipeline.jobs import Box, Pixels

if TYPE_CHECKING:
    from pipeline.settings import Settings

EYE_RIGHT, EYE_LEFT = 33, 263
"""The outer corners of the eyes on the left and the right of the picture."""
FACE_PER_LINE = 400
"""A line of thickness 1 is so many times thinner than the face is wide."""
THINNEST = 0.25
"""In pixels."""
FINEST = 8
"""Thin lines are drawn at most so many times larger."""
SHADOW = 0.35
"""How dark the shadow under the lines is."""
_SHIFT = 4
"""Fraction bits of the coordinates that OpenCV draws from."""


@dataclass(frozen=True)
class MeshStyle:
    """How the mesh looks. `thickness`: 1 is a hairline, whatever the size of the face; `opacity` above 0, to 1; `colour` (r, g, b)."""

    thickness: int
    opacity: float
    colour: tuple[int, int, int]

    @classmethod
    def of(cls, settings: Settings) -> MeshStyle:
        """The style that the settings give."""
        digits = settings.mesh_colour.lstrip("#")
        red, green, blue = (int(digits[at : at + 2], 16) for at in (0, 2, 4))
        return cls(settings.mesh_thickness, settings.mesh_opacity, (red, green, blue))


def render(pixels: Pixels, boxes: list[Box], style: MeshStyle) -> Pixels:
    """A copy of (h, w, 3) uint8 RGB with a mesh over the face in each box; the image itself if there are no boxes.

    Pixels that no line touches keep their exact values. Where no mesh can be fitted, the box is outlined instead: a face that was
    found manipulated is never left unmarked.
    """
    if not boxes:
        return pixels
    drawn = pixels.copy()
    for box in boxes:
        points = landmarks(pixels, box)
        if points is None:
            corners = np.array(((box.x, box.y), (box.x + box.w, box.y), (box.x + box.w, box.y + box.h), (box.x, box.y + box.h)), np.float32)
            inset = np.clip(corners, (1, 1), (pixels.shape[1] - 1, pixels.shape[0] - 1)).astype(np.float32)
            _draw(drawn, inset[[[0, 1], [1, 2], [2, 3], [3, 0]]], 2 * _stroke(box.w, style), style)
        else:
            _draw(drawn, points[facenets.edges()], _stroke(float(np.ptp(points[:, 0])), style), style)
    return drawn


def landmarks(pixels: Pixels, box: Box) -> Floats | None:
    """The 468 FaceMesh landmarks of the face in a box, (468, 2) float32 x, y in pixels of the image; None if no mesh fits it."""
    face = facenets.near(pixels, (box.x, box.y, box.w, box.h), halve=True)
    if face is None:
        points, score = facenets.fit(pixels, (box.x + box.w / 2, box.y + box.h / 2), max(box.w, box.h), 0.0, halve=True)
    else:
        points, score = facenets.fit(pixels, face.centre, float(face.size.max()), face.angle, halve=True)
    if score < MESH_SCORE:
        return None
    # once more, upright and centred by what was found: the mesh is best there, and the detector's box no longer matters
    low, high = points.min(axis=0), points.max(axis=0)
    across, down = points[EYE_LEFT] - points[EYE_RIGHT]
    points, score = facenets.fit(pixels, (low + high) / 2, float((high - low).max()), math.atan2(down, across), halve=True)
    return points if score >= MESH_SCORE else None


def _stroke(width: float, style: MeshStyle) -> float:
    """The width of a line in pixels for a face of a width in pixels."""
    return style.thickness * max(THINNEST, width / FACE_PER_LINE)


def _draw(image: Pixels, lines: Floats, stroke: float, style: MeshStyle) -> None:
    """Draw lines (n, 2, 2) of a width into an image: the colour, on a faint shadow that sets it off from light skin."""
    pad = math.ceil(4 * stroke) + 4
    low, high = lines.min(axis=(0, 1)), lines.max(axis=(0, 1))
    left, top = np.clip(np.floor(low).astype(int) - pad, 0, None)
    right, bottom = np.clip(np.ceil(high).astype(int) + pad, 0, (image.shape[1], image.shape[0]))
    region = image[top:bottom, left:right]
    if not region.size:
        return
    ink = _ink(lines - np.array((left, top), np.float32), stroke, region.shape[1], region.shape[0])
    light = 255 - cv2.convertScaleAbs(_spread(ink, stroke), alpha=SHADOW * style.opacity)
    shaded = cv2.multiply(region, cv2.merge((light, light, light)), scale=1 / 255)
    cover = ink * np.float32(style.opacity / 255)
    colour = np.full_like(region, style.colour)
    region[:] = cv2.blendLinear(colour, shaded, cover, 1 - cover)


def _ink(lines: Floats, stroke: float, width: int, height: int) -> Pixels:
    """How much of each pixel the lines cover, (height, width) uint8. Thin lines are drawn larger and shrunk."""
    scale = min(FINEST, math.ceil(2 / stroke)) if stroke < 2 else 1
    ink: Pixels = np.zeros((height * scale, width * scale), np.uint8)
    # OpenCV counts from the middle of the first pixel
    at = np.rint((lines * scale - 0.5) * (1 << _SHIFT)).astype(np.int32)
    cv2.polylines(ink, list(at), False, (255,), max(1, round(stroke * scale)), cv2.LINE_AA, _SHIFT)
    return ink if scale == 1 else resize(ink, width, height)


def _spread(ink: Pixels, stroke: float) -> Pixels:
    """The ink, blurred a little beyond its lines; wide lines at a smaller scale, where it costs less."""
    height, width = ink.shape[:2]
    shrink = max(1, round(stroke))
    small = resize(ink, max(1, width // shrink), max(1, height // shrink))
    blurred = cv2.GaussianBlur(small, (0, 0), max(0.7, 1.1 * stroke / shrink))
    return np.asarray(cv2.resize(blurred, (width, height), interpolation=cv2.INTER_LINEAR), np.uint8)
