"""The mesh over manipulated faces: 468 MediaPipe landmarks, drawn into a copy of the image."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from pipeline import images, solutions
from pipeline.jobs import Box, Pixels

Points = npt.NDArray[np.float32]
CONTEXT = 0.5
"""How much of the box's longer side FaceMesh is shown beyond the box on every side."""
LARGEST_PX = 640
"""The region is scaled down to at most so many pixels: FaceMesh itself sees 192."""


def landmarks(pixels: Pixels, box: Box) -> Points | None:
    """The 468 FaceMesh landmarks of the face in a box, (468, 2) float32 x, y in pixels of the image; None if no mesh fits it."""
    side = max(box.w, box.h) * (1 + 2 * CONTEXT)
    height, width = pixels.shape[:2]
    left, top = max(0, round(box.x + box.w / 2 - side / 2)), max(0, round(box.y + box.h / 2 - side / 2))
    right, bottom = min(width, round(box.x + box.w / 2 + side / 2)), min(height, round(box.y + box.h / 2 + side / 2))
    region = pixels[top:bottom, left:right]
    if not region.size:
        return None
    scale = LARGEST_PX / max(region.shape[:2])
    if scale < 1:
        region = images.resize(region, max(1, round(region.shape[1] * scale)), max(1, round(region.shape[0] * scale)))
    result = solutions.face_mesh(0.3)(np.ascontiguousarray(region))
    if not result.multi_face_landmarks:
        return None
    points = np.array([(point.x, point.y) for point in result.multi_face_landmarks[0].landmark], np.float32)
    return points * np.array((right - left, bottom - top), np.float32) + np.array((left, top), np.float32)
