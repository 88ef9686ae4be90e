"""Manipulated faces made here, from photographs and landmarks alone: nothing is downloaded, nobody's forgeries are needed.

Every function takes an upright picture of a face and its 468 MediaPipe landmarks and returns a `Manipulation`: the fake, the
real it was made from (possibly toned: see `self_blend`), and the true mask of what was changed. All randomness comes
from the generator given.

Sources: self-blended images, Shiohara & Yamasaki, CVPR 2022; graphics face swap with Delaunay triangles, colour match in LAB and
Poisson blending (Perez et al., SIGGRAPH 2003), as in FaceForensics++ (Roessler et al., ICCV 2019).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import cv2
import numpy as np
import numpy.typing as npt

from pipeline.jobs import Pixels

Points = npt.NDArray[np.float32]
Mask = npt.NDArray[np.float32]
Triangles = npt.NDArray[np.int64]
Region = Literal["eyes", "mouth", "nose", "half"]
REGIONS: tuple[Region, ...] = ("eyes", "mouth", "nose", "half")

# fmt: off
OVAL = (10, 338, 297, 332, 284, 251, 389, 356, 454, 323, 361, 288, 397, 365, 379, 378, 400, 377, 152, 148, 176, 149, 150, 136, 172, 58, 132,
        93, 234, 127, 162, 21, 54, 103, 67, 109)
LIPS = (61, 146, 91, 181, 84, 17, 314, 405, 321, 375, 291, 409, 270, 269, 267, 0, 37, 39, 40, 185)
LEFT_EYE = (263, 249, 390, 373, 374, 380, 381, 382, 362, 466, 388, 387, 386, 385, 384, 398)
RIGHT_EYE = (33, 7, 163, 144, 145, 153, 154, 155, 133, 246, 161, 160, 159, 158, 157, 173)
LEFT_BROW = (276, 283, 282, 295, 285, 300, 293, 334, 296, 336)
RIGHT_BROW = (46, 53, 52, 65, 55, 70, 63, 105, 66, 107)
NOSE = (168, 193, 417, 6, 197, 195, 5, 4, 1, 19, 94, 2, 98, 327, 129, 358, 49, 279, 45, 275)
CHEEKS = (50, 280, 205, 425, 187, 411, 123, 352, 147, 376, 207, 427, 192, 416, 214, 434, 210, 430, 200, 199, 151, 9, 108, 337, 69, 299, 104,
          333, 68, 298, 117, 346, 118, 347, 101, 330, 36, 266, 203, 423, 206, 426)
# fmt: on
ANCHORS = tuple(dict.fromkeys(OVAL + LIPS + LEFT_EYE + RIGHT_EYE + LEFT_BROW + RIGHT_BROW + NOSE + CHEEKS))
"""The landmarks that carry the swap's triangles: dense where faces differ, sparse elsewhere."""


POISSON_RIM = 16
"""Grey levels by which a pixel around the mask differs after Poisson blending when it counts as replaced; what differs less counts less."""


@dataclass(frozen=True)
class Manipulation:
    """`fake` and `real` are (h, w, 3) uint8 RGB; `mask` is (h, w) float32, 0 to 1, how much of each pixel was replaced."""

    fake: Pixels
    real: Pixels
    mask: Mask
    kind: str


def self_blend(
    pixels: Pixels, landmarks: Points, rng: np.random.Generator, *, region: Region | None = None, toned: bool = True
) -> Manipulation:
    """Blend the face onto a slightly altered copy of itself (SBI, steps 2 to 6 of the paper's section 3).

    The tone of either the source or the target is altered by a coin flip; the returned real is the target as altered, so
    that the colour alone tells nothing. Without `toned` neither is altered: what tells is only what was moved and resampled.
    """
    mask = _hull(pixels.shape, landmarks, region, rng)
    source = target = pixels
    if toned and rng.random() < 0.5:
        source = _tone(source, rng)
    elif toned:
        target = _tone(target, rng)
    source, mask = _shift(source, mask, landmarks, rng)
    mask = _soften(_elastic(mask, rng), rng)
    mask *= np.float32(rng.choice((0.25, 0.5, 0.75, 1.0, 1.0, 1.0)))
    return Manipulation(_mix(source, target, mask), target, mask, "self_blended" if region is None else "region")


def face_swap(
    pixels: Pixels,
    landmarks: Points,
    donor: Pixels,
    donor_landmarks: Points,
    rng: np.random.Generator,
    *,
    region: Region | None = None,
    mesh: Triangles | None = None,
) -> Manipulation:
    """Put another person's face (or a region of it) onto this one: piecewise-affine warp over Delaunay triangles, colour
    matched in LAB, blended by Poisson's equation or a feathered edge. `mesh` saves time where `triangles(landmarks)` is known."""
    warped = _warp_onto(donor, donor_landmarks, landmarks, pixels.shape, triangles(landmarks) if mesh is None else mesh)
    mask = _hull(pixels.shape, landmarks, region, rng)
    inside = mask > 0.5
    warped = _match_tone(warped, pixels, inside, strength=float(rng.uniform(0.6, 1.0)))
    if rng.random() < 0.35:  # generators and phone apps hand back a face of another sharpness than its surroundings
        warped = _rescale(warped, float(rng.uniform(0.35, 0.8)))
    fake = _poisson(warped, pixels, mask) if rng.random() < 0.3 else None
    if fake is None:
        mask = _soften(mask, rng)
        fake = _mix(warped, pixels, mask)
    else:  # OpenCV's solver also changes a rim around the mask
        mask = np.maximum(mask, np.minimum(cv2.absdiff(fake, pixels).max(axis=2) / np.float32(POISSON_RIM), 1))
    return Manipulation(fake, pixels, mask, "face_swap" if region is None else "region")


def warp(pixels: Pixels, landmarks: Points, rng: np.random.Generator) -> Manipulation:
    """Change the expression by a smooth local warp inside the face: mouth corners, jaw, brows or lids move by 3 to 9 % of the
    face's width. A stand-in for reenactment (Face2Face); no other picture is involved, so there is no seam to find."""
    width = float(np.ptp(landmarks[list(OVAL), 0]))
    height, wide = pixels.shape[:2]
    step = 4  # the field is smooth: a quarter of the resolution is exact enough
    ys, xs = np.mgrid[0:height:step, 0:wide:step].astype(np.float32)
    field = np.zeros((*ys.shape, 2), np.float32)
    for centre, direction, spread in _expression(landmarks, rng):
        fall = np.exp(-((xs - centre[0]) ** 2 + (ys - centre[1]) ** 2) / (2 * (spread * width) ** 2))
        field += fall[..., None] * np.asarray(direction, np.float32) * width
    inside = _polygon(pixels.shape, landmarks[list(OVAL)]).astype(np.uint8)
    # nothing moves at the face's outline, everything from a tenth of its width inwards
    face = np.clip(cv2.distanceTransform(inside, cv2.DIST_L2, 3) / (0.1 * width), 0, 1).astype(np.float32)
    field = cv2.resize(field, (wide, height), interpolation=cv2.INTER_LINEAR) * face[..., None]
    ys, xs = np.mgrid[0:height, 0:wide].astype(np.float32)
    fake = cv2.remap(pixels, xs - field[..., 0], ys - field[..., 1], cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
    moved = np.linalg.norm(field, axis=2)
    return Manipulation(fake, pixels, np.clip(moved / max(1.0, 0.02 * width), 0, 1).astype(np.float32), "warp")


def _expression(landmarks: Points, rng: np.random.Generator) -> list[tuple[Points, tuple[float, float], float]]:
    """A few pushes: (centre, direction in face widths, spread in face widths)."""
    pushes: list[tuple[Points, tuple[float, float], float]] = []
    much = float(rng.uniform(0.03, 0.09))
    for mood in rng.choice(("smile", "jaw", "brows", "lids", "pout"), size=int(rng.integers(1, 4)), replace=False):
        sign = 1.0 if rng.random() < 0.7 else -1.0
        if mood == "smile":
            pushes += [(landmarks[61], (-much * sign, -0.6 * much * sign), 0.10), (landmarks[291], (much * sign, -0.6 * much * sign), 0.10)]
        elif mood == "jaw":
            pushes += [(landmarks[17], (0.0, much * sign), 0.12), (landmarks[152], (0.0, 0.7 * much * sign), 0.15)]
        elif mood == "brows":
            pushes += [(landmarks[105], (0.0, -much * sign), 0.10), (landmarks[334], (0.0, -much * sign), 0.10)]
        elif mood == "lids":
            pushes += [(landmarks[159], (0.0, 0.5 * much * sign), 0.05), (landmarks[386], (0.0, 0.5 * much * sign), 0.05)]
        else:
            pushes += [(landmarks[13], (float(rng.uniform(-0.5, 0.5)) * much, -much * sign), 0.09)]
    return pushes


def _polygon(shape: tuple[int, ...], points: Points) -> Mask:
    mask = np.zeros(shape[:2], np.uint8)
    cv2.fillConvexPoly(mask, cv2.convexHull(np.round(points).astype(np.int32)), 1)
    return mask.astype(np.float32)


def _hull(shape: tuple[int, ...], landmarks: Points, region: Region | None, rng: np.random.Generator) -> Mask:
    """The hull to be replaced: of a named region, or one of several hulls of the whole face."""
    oval = list(OVAL)
    if region is None:
        form = rng.integers(4)
        points = landmarks[oval]
        if form == 1:  # without the forehead, where fringes give a swap away
            top = landmarks[[105, 334], 1].mean()
            points = points.copy()
            points[:, 1] = np.maximum(points[:, 1], top - rng.uniform(0, 0.12) * np.ptp(points[:, 1]))
        elif form == 2:  # the inner face: brows to chin
            points = landmarks[list(LEFT_BROW + RIGHT_BROW + LIPS + (152, 148, 377, 205, 425, 50, 280))]
        elif form == 3:  # a random hull
            points = landmarks[rng.choice(len(landmarks), size=40, replace=False)]
        return _polygon(shape, points)
    if region == "half":
        down = landmarks[152] - landmarks[10]
        across = np.array((-down[1], down[0]), np.float32) * float(rng.choice((-1.0, 1.0)))
        middle = landmarks[10] + across * float(rng.uniform(-0.08, 0.08))
        points = landmarks[oval]
        beyond = np.minimum((points - middle) @ across / float(across @ across), 0)
        return _polygon(shape, points - beyond[:, None] * across)
    members: Sequence[int] = {
        "eyes": LEFT_EYE + RIGHT_EYE + LEFT_BROW + RIGHT_BROW,
        "mouth": LIPS,
        "nose": NOSE,
    }[region]
    if region == "eyes" and rng.random() < 0.3:
        members = LEFT_EYE + LEFT_BROW if rng.random() < 0.5 else RIGHT_EYE + RIGHT_BROW
    points = landmarks[list(members)]
    centre = points.mean(axis=0)
    return _polygon(shape, centre + (points - centre) * np.float32(rng.uniform(1.1, 1.5)))


def _tone(pixels: Pixels, rng: np.random.Generator) -> Pixels:
    """A slight change of colour, then of sharpness (SBI's source-target transform)."""
    if rng.random() < 0.3:
        pixels = cv2.add(pixels, (*rng.integers(-20, 21, 3).tolist(), 0))
    if rng.random() < 0.7:
        hsv = cv2.cvtColor(pixels, cv2.COLOR_RGB2HSV)
        hsv = cv2.add(hsv, (float(rng.uniform(-3, 3)), float(rng.uniform(-20, 20)), float(rng.uniform(-20, 20)), 0.0))
        hsv[..., 0] = np.minimum(hsv[..., 0], 179)
        pixels = cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB)
    pixels = cv2.convertScaleAbs(pixels, alpha=float(rng.uniform(0.9, 1.1)), beta=float(rng.uniform(0, 13)))
    if rng.random() < 0.5:
        return _rescale(pixels, 1 / float(rng.choice((2, 4), p=(0.7, 0.3))))
    soft = cv2.GaussianBlur(pixels, (0, 0), 1.2)
    much = float(rng.uniform(0.2, 0.9))
    return np.asarray(cv2.addWeighted(pixels, 1 + much, soft, -much, 0), np.uint8)


def _rescale(pixels: Pixels, scale: float) -> Pixels:
    height, width = pixels.shape[:2]
    small = cv2.resize(pixels, (max(8, round(width * scale)), max(8, round(height * scale))), interpolation=cv2.INTER_AREA)
    return np.asarray(cv2.resize(small, (width, height), interpolation=cv2.INTER_LINEAR), np.uint8)


def _shift(source: Pixels, mask: Mask, landmarks: Points, rng: np.random.Generator) -> tuple[Pixels, Mask]:
    """Move and scale source and mask together by a little of the face's size."""
    face = landmarks[list(OVAL)]
    width, height = np.ptp(face, axis=0) * 1.6  # the paper's percentages are of the picture, its faces fill 5/8 of it
    scale = float(rng.uniform(0.95, 1 / 0.95))
    dx, dy = float(rng.uniform(-0.03, 0.03) * width), float(rng.uniform(-0.015, 0.015) * height)
    cx, cy = (float(v) for v in face.mean(axis=0))
    matrix = np.array([[scale, 0, cx - scale * cx + dx], [0, scale, cy - scale * cy + dy]], np.float32)
    size = (source.shape[1], source.shape[0])
    moved = cv2.warpAffine(source, matrix, size, flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
    return np.asarray(moved, np.uint8), np.asarray(cv2.warpAffine(mask, matrix, size, flags=cv2.INTER_LINEAR), np.float32)


def _elastic(mask: Mask, rng: np.random.Generator, grid: int = 40, pixels: float = 1.16) -> Mask:
    """Deform the mask's outline: the paper's alpha 50, sigma 7 is smooth noise of 1.16 px at 256 px, drawn here on a coarse grid."""
    height, width = mask.shape
    noise = rng.standard_normal((grid, grid, 2)).astype(np.float32)
    noise = cv2.GaussianBlur(noise, (0, 0), 1.1)
    noise *= pixels * max(height, width) / 256 / max(float(noise.std()), 1e-6)
    field = cv2.resize(noise, (width, height), interpolation=cv2.INTER_LINEAR)
    xs, ys = coordinates(height, width)
    return np.asarray(cv2.remap(mask, xs + field[..., 0], ys + field[..., 1], cv2.INTER_LINEAR), np.float32)


@lru_cache(maxsize=32)
def coordinates(height: int, width: int) -> tuple[Mask, Mask]:
    """The pixel grid of a picture, as maps for `cv2.remap`."""
    ys, xs = np.mgrid[0:height, 0:width].astype(np.float32)
    return xs, ys


def _soften(mask: Mask, rng: np.random.Generator) -> Mask:
    """Erode and feather by two Gaussians at about 224 px, as the paper does; here on 160 px, which looks the same."""
    height, width = mask.shape
    side = 160
    ratio = side / int(rng.integers(192, 257))
    small = cv2.resize(mask, (side, side), interpolation=cv2.INTER_AREA)
    first = int(rng.integers(2, 13)) * 2 + 1
    small = cv2.GaussianBlur(small, (0, 0), _sigma(first) * ratio)
    small = np.where(small >= 0.99 * max(float(small.max()), 1e-6), np.float32(1), np.float32(0))
    second = int(rng.integers(2, 13)) * 2 + 1
    sigma = min(float(rng.uniform(5, 45)), second / 3.4) * ratio  # the kernel's width cuts the Gaussian off
    small = cv2.GaussianBlur(small, (0, 0), max(sigma, 0.6))
    small /= max(float(small.max()), 1e-6)
    return np.asarray(cv2.resize(small, (width, height), interpolation=cv2.INTER_LINEAR), np.float32)


def _sigma(kernel: int) -> float:
    """OpenCV's own rule for the sigma of a kernel size."""
    return 0.3 * ((kernel - 1) * 0.5 - 1) + 0.8


def _mix(source: Pixels, target: Pixels, mask: Mask) -> Pixels:
    return np.asarray(cv2.blendLinear(source, target, mask, 1 - mask), np.uint8)


def _match_tone(source: Pixels, target: Pixels, inside: npt.NDArray[np.bool_], *, strength: float) -> Pixels:
    """Give `source` the mean and spread of `target` in LAB, measured inside the mask (Reinhard et al., 2001)."""
    if not inside.any():
        return source
    weight = inside.astype(np.uint8)
    ours, theirs = cv2.cvtColor(source, cv2.COLOR_RGB2LAB), cv2.cvtColor(target, cv2.COLOR_RGB2LAB)
    mean, deviation = (v.reshape(3) for v in cv2.meanStdDev(ours, mask=weight))
    wanted, spread = (v.reshape(3) for v in cv2.meanStdDev(theirs, mask=weight))
    gain = 1 + strength * (np.clip(spread / np.maximum(deviation, 1e-3), 0.6, 1.6) - 1)
    offset = mean + strength * (wanted - mean) - gain * mean
    levels = np.arange(256, dtype=np.float32)[:, None]
    table = np.clip(np.round(levels * gain + offset), 0, 255).astype(np.uint8)
    return np.asarray(cv2.cvtColor(cv2.LUT(ours, table[None]), cv2.COLOR_LAB2RGB), np.uint8)


def _poisson(source: Pixels, target: Pixels, mask: Mask) -> Pixels | None:
    """Poisson blending, or None where the mask touches the border and the equation has no boundary to stand on."""
    binary = (mask > 0.5).astype(np.uint8) * 255
    binary[[0, 1, -2, -1]] = 0
    binary[:, [0, 1, -2, -1]] = 0
    x, y, w, h = cv2.boundingRect(binary)
    if w < 8 or h < 8:
        return None
    # seamlessClone centres the mask's bounding box on the point given, and may write into the mask: hand it a copy
    return np.asarray(cv2.seamlessClone(source, target, binary.copy(), (x + w // 2, y + h // 2), cv2.NORMAL_CLONE), np.uint8)


def _warp_onto(donor: Pixels, donor_landmarks: Points, landmarks: Points, shape: tuple[int, ...], mesh: Triangles) -> Pixels:
    """Warp the donor so that its landmarks fall on ours; outside the face the nearest triangle's map goes on."""
    anchors = list(ANCHORS)
    ours, theirs = landmarks[anchors], donor_landmarks[anchors]
    index = np.full(shape[:2], -1, np.int16)
    corners = np.round(ours[mesh] * 8).astype(np.int32)
    for number, corner in enumerate(corners):
        cv2.fillConvexPoly(index, corner, number, cv2.LINE_8, shift=3)
    ones = np.ones((len(mesh), 3, 1), np.float32)
    affine = np.linalg.solve(np.concatenate([ours[mesh], ones], axis=2) + 1e-6 * np.eye(3, dtype=np.float32), theirs[mesh])
    whole, _ = cv2.estimateAffine2D(ours, theirs)
    affine = np.concatenate([affine, whole.T[None]]).astype(np.float32)  # index -1: everything outside the face
    maps = affine[index]
    xs, ys = coordinates(*shape[:2])
    fx = maps[..., 0, 0] * xs + maps[..., 1, 0] * ys + maps[..., 2, 0]
    fy = maps[..., 0, 1] * xs + maps[..., 1, 1] * ys + maps[..., 2, 1]
    return np.asarray(cv2.remap(donor, fx, fy, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE), np.uint8)


def triangles(landmarks: Points) -> Triangles:
    """Delaunay triangles over a face's anchors, (n, 3). They stay the same when the face is moved, turned, mirrored or scaled."""
    points = landmarks[list(ANCHORS)]
    low, high = points.min(axis=0) - 8, points.max(axis=0) + 8
    plane = cv2.Subdiv2D((int(low[0]), int(low[1]), int(high[0] - low[0]) + 1, int(high[1] - low[1]) + 1))
    plane.insert(points.tolist())
    corners = np.asarray(plane.getTriangleList(), np.float32).reshape(-1, 3, 2)
    distance = np.abs(points[None, None] - corners[:, :, None]).sum(axis=3)
    index = distance.argmin(axis=2)
    real = (distance.min(axis=2) < 0.01).all(axis=1)  # the others hang on the plane's own far corners
    index = index[real]
    whole: Triangles = index[(index[:, 0] != index[:, 1]) & (index[:, 1] != index[:, 2]) & (index[:, 0] != index[:, 2])]
    return whole
