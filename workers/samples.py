"""The demo's sample pictures: one public-domain portrait, what can be done to it, and what phones and networks do to pictures.

The portrait is NASA's of Eileen Collins (public domain), which ships inside scikit-image, as does the cup of coffee (Pikolo
Espresso Bar, CC0). The manipulations are made here, by the code that training uses. The same versions give the same bytes.
"""

from __future__ import annotations

import importlib.util
import io
from pathlib import Path
from typing import Literal

import cv2
import numpy as np
from PIL import Image

from pipeline import images
from pipeline.facenets import Floats
from pipeline.images import Limits
from pipeline.jobs import Box, Pixels
from pipeline.rendering import landmarks
from workers.sentences import CommandError

FACE = Box(174, 73, 102, 102)
"""Where the face is in the portrait."""
WALL = (168, 176, 182)
PHONE = 6
"""The EXIF orientation of a phone held upright: the sensor lies on its side."""

Change = Literal["", "face", "mouth", "eyes", "expression", "soft", "soft face"]
SEEDS: dict[Change, int] = {"face": 301, "mouth": 24, "eyes": 6, "expression": 13, "soft": 446, "soft face": 446}
"""Chosen for what a person can see of them; all but the soft ones leave the portrait outside the face as it is.

`soft` is the portrait in softer focus and other light, `soft face` a blend within that. Both blends are of the draws that the
starter models recognise on this portrait (a third of them by now), and none calls the soft one manipulated.
"""
CANVAS = (1300, 676)
# Everybody in the group, the back row first: the change, middle and chin in pixels, scale, mirrored or not, gains of red, green and
# blue, and how far the colour of the suit is shifted.
GROUP: tuple[tuple[Change, int, int, float, bool, tuple[float, float, float], int], ...] = (
    ("", 330, 260, 1.25, False, (1.0, 0.98, 0.94), 95),
    ("soft face", 700, 240, 1.3, True, (0.97, 1.0, 1.04), 0),
    ("", 1080, 265, 1.25, False, (1.03, 0.99, 0.93), 60),
    ("expression", 150, 520, 1.35, True, (1.0, 1.0, 1.0), 18),
    ("", 530, 510, 1.45, False, (1.02, 1.0, 0.97), 110),
    ("eyes", 930, 530, 1.35, True, (0.96, 0.99, 1.03), 75),
)


def write(folder: Path) -> list[Path]:
    """Write the samples into a folder, which is made if it is missing; their paths in the order to be shown.

    Raises CommandError if scikit-image, whose pictures they are made from, is not installed.
    """
    portrait = _ready_made("astronaut.png")
    points = landmarks(portrait, FACE)
    if points is None:
        raise CommandError("No face is found in the sample portrait: the installed scikit-image has another one.")
    changed: dict[Change, Pixels] = {"": portrait}
    for change in SEEDS:
        changed[change] = _changed(portrait, points, change)
    whole = _jpeg(portrait)
    samples = {
        "portrait.jpg": whole,
        "portrait-face-blended.jpg": _jpeg(changed["face"]),
        "portrait-mouth-blended.jpg": _jpeg(changed["mouth"]),
        "portrait-expression-warped.jpg": _jpeg(changed["expression"]),
        "portrait-softened.jpg": _jpeg(changed["soft"]),
        "portrait-softened-and-blended.jpg": _jpeg(changed["soft face"]),
        "group.jpg": _jpeg(_group(changed, points)),
        "portrait-on-its-side.jpg": _jpeg(np.rot90(portrait), PHONE),
        "portrait-16-bit.png": _deep_png(portrait),
        "no-face.jpg": _jpeg(_ready_made("coffee.png")),
        "cut-off.jpg": whole[: len(whole) * 3 // 5],
    }
    folder.mkdir(parents=True, exist_ok=True)
    for name, data in samples.items():
        (folder / name).write_bytes(data)
    return [folder / name for name in samples]


def _ready_made(name: str) -> Pixels:
    spec = importlib.util.find_spec("skimage")  # only its file is wanted: importing it would take longer than reading it
    path = Path(spec.submodule_search_locations[0]) / "data" / name if spec and spec.submodule_search_locations else None
    if path is None or not path.exists():
        raise CommandError(
            "The sample pictures come with scikit-image, which is not installed: pip install 'unmask[demo]', or use --images."
        )
    return images.read(path.read_bytes(), Limits(bytes=10_000_000, pixels=10_000_000, side=10_000)).pixels


def _changed(portrait: Pixels, points: Floats, change: Change) -> Pixels:
    from pipeline.training import manipulations

    rng = np.random.default_rng(SEEDS[change])
    if change == "expression":
        return manipulations.warp(portrait, points, rng).fake
    region: manipulations.Region | None = change if change in ("mouth", "eyes") else None
    made = manipulations.self_blend(portrait, points, rng, region=region)
    return made.real if change == "soft" else made.fake


def _group(changed: dict[Change, Pixels], points: Floats) -> Pixels:
    """Copies of the portrait before a plain wall."""
    width, height = CANVAS
    canvas = np.full((height, width, 3), WALL, np.uint8)
    outline = _outline(changed[""], points)
    for change, middle, chin, scale, mirrored, gains, hue in GROUP:
        person = _toned(changed[change], gains, hue)
        size = (round(person.shape[1] * scale), round(person.shape[0] * scale))
        pixels = cv2.resize(person, size, interpolation=cv2.INTER_CUBIC)
        mask = cv2.resize(outline, size, interpolation=cv2.INTER_LINEAR)[..., None]
        x = FACE.x + FACE.w / 2
        if mirrored:
            pixels, mask, x = pixels[:, ::-1], mask[:, ::-1], person.shape[1] - x
        left, top = round(middle - x * scale), round(chin - (FACE.y + FACE.h) * scale)
        shown = (slice(max(0, top), min(height, top + size[1])), slice(max(0, left), min(width, left + size[0])))
        part = (slice(shown[0].start - top, shown[0].stop - top), slice(shown[1].start - left, shown[1].stop - left))
        canvas[shown] = np.rint(pixels[part] * mask[part] + canvas[shown] * (1 - mask[part])).astype(np.uint8)
    return canvas


def _outline(portrait: Pixels, points: Floats) -> Floats:
    """Who is in the portrait, (h, w) float32, 0 to 1: GrabCut (Rother et al., 2004) from a sketch of head and shoulders."""
    sketch = np.full(portrait.shape[:2], cv2.GC_PR_BGD, np.uint8)
    cv2.ellipse(sketch, (228, 110), (85, 110), 0, 0, 360, (int(cv2.GC_PR_FGD),), -1)
    cv2.fillPoly(sketch, [np.array([(60, 511), (90, 300), (150, 210), (300, 210), (400, 300), (440, 511)])], (int(cv2.GC_PR_FGD),))
    cv2.fillPoly(sketch, [np.array([(110, 511), (140, 330), (180, 240), (270, 240), (330, 330), (500, 511)])], (int(cv2.GC_FGD),))
    cv2.ellipse(sketch, (208, 222), (92, 64), 20, 0, 360, (int(cv2.GC_FGD),), -1)
    cv2.fillConvexPoly(sketch, cv2.convexHull(points.astype(np.int32)), (int(cv2.GC_FGD),))
    sketch[:8] = sketch[:190, :100] = sketch[:170, 330:] = sketch[:345, 365:] = cv2.GC_BGD
    cv2.fillPoly(sketch, [np.array([(0, 150), (85, 215), (30, 300), (12, 511), (0, 511)])], (int(cv2.GC_BGD),))
    cv2.setRNGSeed(1)
    models = np.zeros((1, 65)), np.zeros((1, 65))
    cv2.grabCut(cv2.cvtColor(portrait, cv2.COLOR_RGB2BGR), sketch, (0, 0, 0, 0), *models, 3, cv2.GC_INIT_WITH_MASK)
    inside = ((sketch == cv2.GC_FGD) | (sketch == cv2.GC_PR_FGD)).astype(np.float32)
    return np.asarray(cv2.GaussianBlur(inside, (0, 0), 1.2), np.float32)


def _toned(person: Pixels, gains: tuple[float, float, float], hue: int) -> Pixels:
    """Another light, and a suit of another colour below the collar."""
    hsv = cv2.cvtColor(person, cv2.COLOR_RGB2HSV)
    suit = (hsv[..., 0] < 14) & (hsv[..., 1] > 120)
    suit[: FACE.y + FACE.h + 25] = False
    hsv[..., 0] = np.where(suit, (hsv[..., 0].astype(np.int32) + hue) % 180, hsv[..., 0])
    recoloured = cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB)
    lit = np.where(suit[..., None], recoloured, person) * np.array(gains)
    return np.asarray(np.clip(lit, 0, 255).round(), np.uint8)


def _jpeg(pixels: Pixels, orientation: int = 1) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = orientation
    stream = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(pixels)).save(stream, "JPEG", quality=95, subsampling="4:4:4", exif=exif)
    return stream.getvalue()


def _deep_png(pixels: Pixels) -> bytes:
    done, data = cv2.imencode(".png", cv2.cvtColor(pixels, cv2.COLOR_RGB2BGR).astype(np.uint16) * 257)
    if not done:
        raise CommandError("OpenCV cannot write 16-bit PNG files here.")
    return data.tobytes()
