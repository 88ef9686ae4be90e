"""The mesh over manipulated faces: 468 MediaPipe landmarks, drawn into a copy of the image."""

from __future__ import annotations

import math

from pipeline import facenets
from pipeline.facenets import MESH_SCORE, Floats
from pipeline.jobs import Box, Pixels

EYE_RIGHT, EYE_LEFT = 33, 263
"""The outer corners of the eyes on the left and the right of the picture."""
NEAR_SCORE = 0.3
"""The detector has said that a face is there; how it is turned may be seen from less."""


def landmarks(pixels: Pixels, box: Box) -> Floats | None:
    """The 468 FaceMesh landmarks of the face in a box, (468, 2) float32 x, y in pixels of the image; None if no mesh fits it."""
    face = facenets.near(pixels, (box.x, box.y, box.w, box.h), NEAR_SCORE)
    if face is None:
        points, score = facenets.fit(pixels, (box.x + box.w / 2, box.y + box.h / 2), max(box.w, box.h), 0.0)
    else:
        points, score = facenets.fit(pixels, face.centre, float(face.size.max()), face.angle)
    if score < MESH_SCORE:
        return None
    # once more, upright and centred by what was found: the mesh is best there, and the detector's box no longer matters
    low, high = points.min(axis=0), points.max(axis=0)
    across, down = points[EYE_LEFT] - points[EYE_RIGHT]
    points, score = facenets.fit(pixels, (low + high) / 2, float((high - low).max()), math.atan2(down, across))
    return points if score >= MESH_SCORE else None
