"""The street: what cameras, phones, apps and platforms do to a photograph, real or not.

A `Look` is drawn once and put on the real and on the fake alike, so that it tells nothing about which is which and the
network has to look past it. None of it blends one picture into another inside the face.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cache

import cv2
import numpy as np

from pipeline.jobs import Pixels

_RESIZES = (cv2.INTER_AREA, cv2.INTER_LINEAR, cv2.INTER_CUBIC, cv2.INTER_LANCZOS4)


@dataclass(frozen=True)
class Look:
    """One draw of everything that may happen to a picture. Neutral by default."""

    seed: int = 0
    rgb: tuple[int, int, int] = (0, 0, 0)
    hue: float = 0.0
    saturation: float = 1.0
    contrast: float = 1.0
    brightness: float = 0.0
    gamma: float = 1.0
    grey: bool = False
    light: float = 0.0
    """How uneven the light is: 0 even, .6 from one side."""
    smooth: float = 0.0
    """Retouching of the whole picture by a bilateral filter: strength in grey levels."""
    blur: float = 0.0
    motion: int = 0
    sharpen: float = 0.0
    noise: float = 0.0
    chroma_noise: float = 0.0
    first_jpeg: int = 0
    """Quality of a first compression at full size, 0: none."""
    resize: int = cv2.INTER_AREA
    last: str = ""
    """The last compression, after scaling: "" none, "jpeg", "webp"."""
    quality: int = 90
    subsample: bool = True
    cover: float = 0.0
    """Share of the picture's side that an object in front of the face takes up."""


def draw(rng: np.random.Generator, strength: float = 1.0) -> Look:
    """Draw a look. `strength` 0 to 1 scales how often things happen."""

    def often(p: float) -> bool:
        return bool(rng.random() < p * strength)

    look = Look(seed=int(rng.integers(2**31)), resize=int(rng.choice(_RESIZES)))
    if often(0.35):
        look = replace(look, rgb=(int(rng.integers(-24, 25)), int(rng.integers(-24, 25)), int(rng.integers(-24, 25))))
    if often(0.3):
        look = replace(look, hue=float(rng.uniform(-6, 6)), saturation=float(rng.uniform(0.4, 1.5)))
    if often(0.05):
        look = replace(look, grey=True)
    if often(0.45):
        look = replace(look, contrast=float(rng.uniform(0.65, 1.35)), brightness=float(rng.uniform(-38, 38)))
    if often(0.25):
        look = replace(look, gamma=float(np.exp(rng.uniform(-0.6, 0.6))))
    if often(0.35):
        look = replace(look, light=float(rng.uniform(0.1, 0.65)))
    if often(0.1):
        look = replace(look, smooth=float(rng.uniform(10, 40)))
    if often(0.2):
        look = replace(look, blur=float(rng.uniform(0.3, 1.8)))
    elif often(0.06):
        look = replace(look, motion=int(rng.integers(3, 8)))
    if often(0.12):
        look = replace(look, sharpen=float(rng.uniform(0.2, 1.2)))
    if often(0.3):
        look = replace(look, noise=float(rng.uniform(1, 11)), chroma_noise=float(rng.uniform(0, 1)))
    if often(0.3):
        look = replace(look, first_jpeg=int(rng.integers(55, 98)))
    if often(0.62):
        look = replace(
            look, last="webp" if rng.random() < 0.08 else "jpeg", quality=int(rng.integers(38, 100)), subsample=bool(rng.random() < 0.75)
        )
    if often(0.08):
        look = replace(look, cover=float(rng.uniform(0.1, 0.35)))
    return look


def apply(look: Look, pixels: Pixels, scale: float = 1.0) -> Pixels:
    """Put a look on a picture; the same look on a picture of the same size draws the same light, noise and cover.

    `scale` up to 1 shrinks the picture before the last compression, as a platform does with an upload.
    """
    rng = np.random.default_rng(look.seed)
    if look.cover:
        pixels = _covered(pixels, look, rng)
    pixels = _toned(pixels, look, rng)
    if look.smooth:
        pixels = cv2.bilateralFilter(pixels, 5, look.smooth, 4)
    if look.blur:
        pixels = cv2.GaussianBlur(pixels, (0, 0), look.blur)
    if look.motion:
        pixels = cv2.filter2D(pixels, -1, _line(look.motion, int(rng.integers(180))))
    if look.noise:
        pixels = _noisy(pixels, look, rng)
    if look.first_jpeg:
        pixels = compress(pixels, look.first_jpeg)
    if scale < 1:
        size = (max(8, round(pixels.shape[1] * scale)), max(8, round(pixels.shape[0] * scale)))
        pixels = cv2.resize(pixels, size, interpolation=look.resize)
    if look.sharpen:
        soft = cv2.GaussianBlur(pixels, (0, 0), 1.0)
        pixels = cv2.addWeighted(pixels, 1 + look.sharpen, soft, -look.sharpen, 0)
    if look.last:
        pixels = compress(pixels, look.quality, webp=look.last == "webp", subsample=look.subsample)
    return np.asarray(pixels, np.uint8)


def compress(pixels: Pixels, quality: int, *, webp: bool = False, subsample: bool = True) -> Pixels:
    """Encode and decode again: JPEG (or WebP) of a quality from 1 to 100."""
    if webp:
        options = [cv2.IMWRITE_WEBP_QUALITY, quality]
    else:
        chroma = cv2.IMWRITE_JPEG_SAMPLING_FACTOR_420 if subsample else cv2.IMWRITE_JPEG_SAMPLING_FACTOR_444
        options = [cv2.IMWRITE_JPEG_QUALITY, quality, cv2.IMWRITE_JPEG_SAMPLING_FACTOR, chroma]
    _, data = cv2.imencode(".webp" if webp else ".jpg", pixels[..., ::-1], options)
    return np.asarray(cv2.imdecode(data, cv2.IMREAD_COLOR)[..., ::-1], np.uint8)


def _toned(pixels: Pixels, look: Look, rng: np.random.Generator) -> Pixels:
    if look.rgb != (0, 0, 0) or look.contrast != 1 or look.brightness or look.gamma != 1:
        levels = np.arange(256, dtype=np.float32)[:, None] + np.asarray(look.rgb, np.float32)
        levels = 255 * (np.clip(levels, 0, 255) / 255) ** look.gamma
        levels = (levels - 128) * look.contrast + 128 + look.brightness
        pixels = cv2.LUT(pixels, np.clip(np.round(levels), 0, 255).astype(np.uint8)[None])
    if look.hue or look.saturation != 1:
        hsv = cv2.cvtColor(pixels, cv2.COLOR_RGB2HSV)
        shift = ((np.arange(256) + round(look.hue)) % 180).astype(np.uint8)
        more = np.clip(np.arange(256) * look.saturation, 0, 255).astype(np.uint8)
        table = np.stack([shift, more, np.arange(256, dtype=np.uint8)], axis=1)[None]
        pixels = cv2.cvtColor(cv2.LUT(hsv, table), cv2.COLOR_HSV2RGB)
    if look.grey:
        pixels = cv2.cvtColor(cv2.cvtColor(pixels, cv2.COLOR_RGB2GRAY), cv2.COLOR_GRAY2RGB)
    if look.light:
        height, width = pixels.shape[:2]
        field = cv2.resize(rng.uniform(-1, 1, (3, 3)).astype(np.float32), (width, height), interpolation=cv2.INTER_CUBIC)
        pixels = np.clip(pixels * (1 + look.light * field)[..., None], 0, 255).astype(np.uint8)
    return pixels


def _noisy(pixels: Pixels, look: Look, rng: np.random.Generator) -> Pixels:
    """Sensor noise: mostly in brightness, partly in colour, sometimes in grains larger than a pixel."""
    height, width = pixels.shape[:2]
    y, x = (int(v) for v in rng.integers(0, 256, 2))
    field = _noise_bank()
    # a picture that is larger than what is left of the field sees it again from its beginning
    again = [-(-(at + side) // whole) for at, side, whole in zip((y, x), (height, width), field.shape[:2], strict=True)]
    bank = (field if again == [1, 1] else np.tile(field, (*again, 1)))[y : y + height, x : x + width]
    grain = bank[..., :1] * (1 - 0.5 * look.chroma_noise)
    colour = bank * look.chroma_noise
    noise = (grain + colour) * look.noise
    if rng.random() < 0.4:
        noise = cv2.GaussianBlur(noise, (0, 0), float(rng.uniform(0.5, 1.0))) * 1.6
    return np.clip(pixels + noise, 0, 255).astype(np.uint8)


@cache
def _noise_bank() -> np.ndarray[tuple[int, int, int], np.dtype[np.float32]]:
    # drawing fresh Gaussian noise costs more than the rest of the look together; windows of one large field do
    return np.random.default_rng(7).standard_normal((1280, 1280, 3)).astype(np.float32)


def _line(length: int, angle: int) -> np.ndarray[tuple[int, int], np.dtype[np.float32]]:
    size = length | 1
    kernel = np.zeros((size, size), np.float32)
    kernel[size // 2] = 1
    turn = cv2.getRotationMatrix2D((size // 2, size // 2), angle, 1)
    kernel = cv2.warpAffine(kernel, turn, (size, size))
    return np.asarray(kernel / max(float(kernel.sum()), 1e-6), np.float32)


def _covered(pixels: Pixels, look: Look, rng: np.random.Generator) -> Pixels:
    """Something in front: a bar or a blob of one colour, hard-edged, as hands, cups, microphones and captions are."""
    height, width = pixels.shape[:2]
    pixels = pixels.copy()
    colour = tuple(int(v) for v in rng.integers(0, 256, 3))
    cx, cy = int(rng.uniform(0.1, 0.9) * width), int(rng.uniform(0.1, 0.9) * height)
    w, h = int(look.cover * width * rng.uniform(0.5, 1.6)), int(look.cover * height * rng.uniform(0.5, 1.6))
    if rng.random() < 0.5:
        cv2.ellipse(pixels, (cx, cy), (max(2, w // 2), max(2, h // 2)), float(rng.uniform(0, 180)), 0, 360, colour, -1, cv2.LINE_AA)
    else:
        cv2.rectangle(pixels, (cx - w // 2, cy - h // 2), (cx + w // 2, cy + h // 2), colour, -1)
    return pixels


def background(height: int, width: int, rng: np.random.Generator) -> Pixels:
    """Something to stand in front of: colours that drift at several scales, now and then with edges, bars and patches, mostly
    out of focus."""
    colour = rng.uniform(0, 255, 3).astype(np.float32)
    field = np.broadcast_to(colour, (height, width, 3)).astype(np.float32)
    for cells in (2, 4, 9, 25):
        much = float(rng.uniform(0, 55)) * (1.0 if cells < 9 else 0.4)
        field = field + much * cv2.resize(
            rng.standard_normal((cells, cells, 3)).astype(np.float32), (width, height), interpolation=cv2.INTER_CUBIC
        )
    picture = np.clip(field, 0, 255).astype(np.uint8)
    for _ in range(int(rng.integers(0, 9)) if rng.random() < 0.7 else 0):
        shade = tuple(int(v) for v in rng.integers(0, 256, 3))
        (x0, x1), (y0, y1) = rng.integers(0, width, 2).tolist(), rng.integers(0, height, 2).tolist()
        if rng.random() < 0.5:
            cv2.rectangle(picture, (x0, y0), (x1, y1), shade, -1)
        else:
            cv2.line(picture, (x0, y0), (x1, y1), shade, int(rng.integers(1, 14)), cv2.LINE_AA)
    focus = float(rng.uniform(0, 6))
    return np.asarray(cv2.GaussianBlur(picture, (0, 0), focus), np.uint8) if focus > 1 else picture
