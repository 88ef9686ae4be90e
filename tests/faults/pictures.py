"""Pictures to upload, each with different bytes: a face or none, small, so that the machine's time goes into the faults."""

from __future__ import annotations

import io
from functools import cache

import cv2
import numpy as np
from PIL import Image
from skimage import data as samples

from pipeline.jobs import Pixels


@cache
def _portrait(side: int) -> Pixels:
    return np.ascontiguousarray(cv2.resize(samples.astronaut()[:320, 60:380], (side, side), interpolation=cv2.INTER_AREA))


def portrait(number: int, *, side: int = 256, tinted: bool | None = None) -> bytes:
    """A JPEG with one face, unlike any other number's. Every third is tinted, so that the tests' model finds it manipulated."""
    pixels = _portrait(side).copy()
    if number % 3 == 0 if tinted is None else tinted:
        pixels = (pixels * np.array((0.4, 1.0, 0.4))).astype(np.uint8)
    return _jpeg(pixels, number)


def landscape(number: int) -> bytes:
    """A JPEG without a face."""
    return _jpeg(np.full((128, 128, 3), 90 + number % 100, np.uint8), number)


def _jpeg(pixels: Pixels, number: int) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "JPEG", quality=90, comment=f"number {number}".encode())
    return stream.getvalue()
