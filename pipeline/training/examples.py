"""Pairs of a real and a fake face, made continuously: every index of every seed is another pair, and always the same one.

Real and fake of a pair share the photograph, the pose, the street they went through and the crop; only the manipulation
differs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import Literal

import cv2
import numpy as np
import numpy.typing as npt

from pipeline.extraction import crop
from pipeline.jobs import Box, Pixels
from pipeline.training import augmentation, manipulations
from pipeline.training.manipulations import ANCHORS, REGIONS, Manipulation, Mask, Points, Triangles, triangles
from pipeline.training.portraits import LARGEST_FACE, Portrait

Kind = Literal["self_blended", "face_swap", "region", "warp"]
KINDS: tuple[Kind, ...] = ("self_blended", "face_swap", "region", "warp")
Regions = Literal["either", "self_blended", "face_swap"]
"""How regions are changed: by a coin flip as self-blended faces are or as swaps, or as the one or the other alone."""
MESHES = 256
"""Triangles of so many faces are kept, 11 KB each: the fakes of an evaluation portrait share them, no two pairs of a training do."""


@dataclass(frozen=True)
class Recipe:
    """What pairs are made of. `size` and `margin` are the network's; shares sum to 1; `strength` scales the street."""

    size: int = 224
    margin: float = 0.05
    self_blended: float = 0.45
    face_swap: float = 0.27
    region: float = 0.28
    strength: float = 0.5
    own_donor: float = 0.5
    """How often a swap takes its face from another photograph of the same person: else a network learns who belongs to whom."""
    morph: float = 0.3
    """How often the photograph, real and fake alike, becomes one with another person's, features upon features: a few dozen people
    are soon known by heart."""
    bend: float = 0.5
    """How often the whole picture is bent smoothly, for the same reason."""
    smallest: int = 56
    """Crops are taken from faces of at least so many pixels a side (margin included)."""
    near: float = 2.4
    """Faces are manipulated at up to so many times the crop's size and then shrunk, as photographs are before they are judged."""
    window: float = 0.5
    """How often the crop is a part of the face, as far as `near` allows without enlarging it: seams are local, who somebody is is not."""
    regions: Regions = field(default="either", repr=False)
    """See `regions_without`. Not shown: checkpoints know their recipe by what it shows, and those of before it must still fit."""
    untoned: float = field(default=0.0, repr=False)
    """How often what is self-blended is only moved, in the same colours and sharpness: traces of resampling must do. Not shown either."""


@dataclass(frozen=True)
class Pair:
    """`real` and `fake` (s, s, 3) uint8 RGB crops; `mask` (s, s) float32, what was changed."""

    real: Pixels
    fake: Pixels
    mask: Mask
    kind: Kind


def regions_without(held_out: str) -> Regions:
    """How regions are to be made so that a kind that is held out is in none of them."""
    other: dict[str, Regions] = {"self_blended": "face_swap", "face_swap": "self_blended"}
    return other.get(held_out, "either")


def pair(portraits: Sequence[Portrait], index: int, seed: int, recipe: Recipe) -> Pair:
    """The training pair of an index: deterministic in (seed, index), independent of all others."""
    rng = np.random.default_rng((seed, index))
    portrait = portraits[int(rng.integers(len(portraits)))]
    kind: Kind = rng.choice(KINDS[:3], p=(recipe.self_blended, recipe.face_swap, recipe.region))
    other = portraits[int(rng.integers(len(portraits)))] if rng.random() < recipe.morph else None
    stage = _staged(portrait, other, rng, recipe)
    made = manipulate(kind, stage, portraits, rng, own_donor=recipe.own_donor, regions=recipe.regions, untoned=recipe.untoned)
    look = augmentation.draw(rng, recipe.strength)
    side = max(stage.box.w, stage.box.h) * (1 + 2 * recipe.margin)
    scale = 1.0
    if rng.random() < 0.5 * recipe.strength:
        scale = min(1.0, float(np.exp(rng.uniform(np.log(recipe.smallest), np.log(recipe.size)))) / side)
    box = _jittered(stage.box, rng)
    if rng.random() < recipe.window:
        box = _window(box, made.mask, rng, recipe)
    real, fake = (augmentation.apply(look, pixels, scale) for pixels in (made.real, made.fake))
    return Pair(
        crop(real, _scaled(box, scale), size=recipe.size, margin=recipe.margin),
        crop(fake, _scaled(box, scale), size=recipe.size, margin=recipe.margin),
        crop_mask(made.mask, box, recipe),
        kind,
    )


def manipulate(
    kind: Kind,
    portrait: Portrait,
    donors: Sequence[Portrait],
    rng: np.random.Generator,
    *,
    own_donor: float = 0.0,
    regions: Regions = "either",
    untoned: float = 0.0,
) -> Manipulation:
    """Make one manipulation of a kind from a portrait; swaps take a face from a donor of another identity and similar tone, or
    with probability `own_donor` from another photograph of the same person; self-blended faces and regions are with probability
    `untoned` moved only."""
    pixels, points = portrait.pixels, portrait.landmarks
    region = REGIONS[int(rng.integers(len(REGIONS)))] if kind == "region" else None
    if kind == "warp":
        return manipulations.warp(pixels, points, rng)
    sort = kind
    if kind == "region":
        sort = regions if regions != "either" else "self_blended" if rng.random() < 0.5 else "face_swap"
    if sort == "self_blended":
        toned = not untoned or rng.random() >= untoned
        return manipulations.self_blend(pixels, points, rng, region=region, toned=toned)
    own = [donor for donor in donors if donor.identity == portrait.identity and donor.sha256 != portrait.sha256] if own_donor else []
    donor = own[0] if own and rng.random() < own_donor else _donor(portrait, donors, rng)
    mesh = _mesh(points.tobytes())
    far = donor.box.w > 1.7 * portrait.box.w
    lent, lent_points = (donor.half, donor.landmarks / 2) if far else (donor.pixels, donor.landmarks)
    return manipulations.face_swap(pixels, points, lent, lent_points, rng, region=region, mesh=mesh)


def crop_mask(mask: Mask, box: Box, recipe: Recipe) -> Mask:
    """A mask cropped as its picture is; outside the picture nothing was changed. (size, size) float32."""
    shades = (np.pad(mask[1:-1, 1:-1], 1) * 255).astype(np.uint8)
    return crop(shades, box, size=recipe.size, margin=recipe.margin).astype(np.float32) / 255


@dataclass(frozen=True)
class Sample:
    """One labelled crop of an evaluation set."""

    crop: Pixels
    fake: bool
    photo: str
    identity: str
    group: dict[str, str]
    mask: Mask | None = None


def evaluation_set(
    portraits: Sequence[Portrait],
    kind: Kind,
    *,
    seed: int,
    per_portrait: int,
    recipe: Recipe,
    jpeg: int | None = None,
    face_px: int | None = None,
) -> list[Sample]:
    """A fixed test set: each portrait as it is (and as a self-blend toned it), and `per_portrait` fakes of a kind made from it.

    No augmentation and no jitter: of portraits that were loaded to be measured on, the crops are the very ones serving takes.
    `jpeg` recompresses the whole picture at that quality first, `face_px` scales it so that the face's box has so many pixels.
    """
    samples = []
    for number, portrait in enumerate(portraits):
        whole: list[tuple[Pixels, Mask | None]] = [(portrait.pixels, None)]
        for fake in range(per_portrait):
            rng = np.random.default_rng((seed, KINDS.index(kind), number, fake))
            made = manipulate(kind, portrait, portraits, rng)
            whole.append((made.fake, made.mask))
            if made.real is not portrait.pixels:  # toned by the self-blending: the tone must not be what tells
                whole.append((made.real, None))
        for pixels, mask in whole:
            box = portrait.box
            if face_px is not None and face_px < max(box.w, box.h):
                scale = face_px / max(box.w, box.h)
                pixels = cv2.resize(pixels, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
                box = _scaled(box, scale)
            if jpeg is not None:
                pixels = augmentation.compress(pixels, jpeg)
            face = crop(pixels, box, size=recipe.size, margin=recipe.margin)
            changed = None if mask is None else crop_mask(mask, portrait.box, recipe)
            samples.append(Sample(face, mask is not None, portrait.photo, portrait.identity, portrait.group, changed))
    return samples


def evaluation_sets(
    portraits: Sequence[Portrait], *, seed: int, per_portrait: int, recipe: Recipe
) -> dict[str, tuple[Pixels, npt.NDArray[np.bool_]]]:
    """Of every kind the crops (n, s, s, 3) uint8 of its evaluation set, and (n,) bool, which of them are fakes."""
    sets: dict[str, tuple[Pixels, npt.NDArray[np.bool_]]] = {}
    for kind in KINDS:
        samples = evaluation_set(portraits, kind, seed=seed, per_portrait=per_portrait, recipe=recipe)
        sets[kind] = np.stack([sample.crop for sample in samples]), np.array([sample.fake for sample in samples], bool)
    return sets


def _staged(portrait: Portrait, other: Portrait | None, rng: np.random.Generator, recipe: Recipe) -> Portrait:
    """The portrait turned, mirrored, bent and scaled to the network's size or more, on another background half of the time."""
    largest = max(1.0, min(recipe.near, LARGEST_FACE * (1 + 2 * recipe.margin) / recipe.size))
    # the crop's side on the stage
    reach = recipe.size * float(rng.uniform(0.95, 1.12)) * float(np.exp(rng.uniform(0, np.log(largest))))
    angle = float(np.clip(rng.normal(0, 7), -20, 20))
    aspect = float(np.exp(rng.normal(0, 0.05)))
    mirrored = bool(rng.random() < 0.5)
    side = round(reach * 1.25)
    matrix, pixels = _placed(portrait, reach, side, angle, aspect, mirrored, recipe.margin)
    staged, moved = _warped(pixels, matrix, side), _moved(portrait, matrix, pixels)
    if other is not None:
        other_matrix, other_pixels = _placed(other, reach, side, angle, aspect, mirrored, recipe.margin)
        lent = _warped(other_pixels, other_matrix, side), _moved(other, other_matrix, other_pixels)
        staged, moved = _merged((staged, moved), lent, float(rng.uniform(0.4, 0.85)))
    if rng.random() < 0.5 * recipe.strength:
        staged = _elsewhere(staged, portrait.person, matrix, pixels.shape, rng)
    if rng.random() < recipe.bend:
        staged, moved = _bent(staged, moved, rng)
    face = reach / (1 + 2 * recipe.margin)
    start = round((side - face) / 2)
    return replace(portrait, pixels=staged, landmarks=moved, box=Box(start, start, round(face), round(face)))


def _placed(portrait: Portrait, reach: float, side: int, angle: float, aspect: float, mirrored: bool, margin: float) -> tuple[Mask, Pixels]:
    """The matrix that brings the face's box to the middle of a stage of `side` pixels, and the pixels it is for."""
    pixels, box = portrait.pixels, portrait.box
    scale = min(1.4, reach / (max(box.w, box.h) * (1 + 2 * margin)))
    if scale < 0.6:
        pixels, box, scale = portrait.half, _scaled(box, 0.5), scale * 2
    centre = (box.x + box.w / 2, box.y + box.h / 2)
    matrix = cv2.getRotationMatrix2D(centre, angle, scale)
    matrix[:, 2] += side / 2 - np.array(centre)
    stretch = np.array([[aspect, 0, side / 2 * (1 - aspect)], [0, 1 / aspect, side / 2 * (1 - 1 / aspect)], [0, 0, 1]])
    matrix = stretch[:2] @ np.vstack([matrix, [0, 0, 1]])
    if mirrored:
        matrix[0] = -matrix[0]
        matrix[0, 2] += side - 1
    return matrix, pixels


def _warped(pixels: Pixels, matrix: Mask, side: int) -> Pixels:
    return np.asarray(cv2.warpAffine(pixels, matrix, (side, side), flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE), np.uint8)


def _moved(portrait: Portrait, matrix: Mask, pixels: Pixels) -> Points:
    """The landmarks on the stage that `_placed` gave the matrix and the pixels for."""
    points = portrait.landmarks if pixels is portrait.pixels else portrait.landmarks / 2
    return np.asarray(points @ matrix[:, :2].T + matrix[:, 2], np.float32)


def _merged(ours: tuple[Pixels, Points], theirs: tuple[Pixels, Points], share: float) -> tuple[Pixels, Points]:
    """Two people as one: both pictures drawn smoothly to landmarks in between, then mixed; `share` of it is ours."""
    (pixels, points), (lent, lent_points) = ours, theirs
    between = points * np.float32(share) + lent_points * np.float32(1 - share)
    side = pixels.shape[0]
    drawn = [_drawn(some, at[list(ANCHORS)], between[list(ANCHORS)], side) for some, at in ((pixels, points), (lent, lent_points))]
    return np.asarray(cv2.addWeighted(drawn[0], share, drawn[1], 1 - share, 0), np.uint8), between


def _drawn(pixels: Pixels, at: Points, to: Points, side: int, cells: int = 32) -> Pixels:
    """A picture drawn so that what is at some points comes to others; far from all of them it stays where it is."""
    grid = ((np.arange(cells, dtype=np.float32) + 0.5) * side / cells - 0.5).astype(np.float32)
    away = (grid[None, :, None] - to[:, 0]) ** 2 + (grid[:, None, None] - to[:, 1]) ** 2
    weight = np.exp(-away / (2 * (0.05 * side) ** 2))
    field = (weight @ (at - to)) / (weight.sum(axis=2, keepdims=True) + 0.1)
    field = cv2.resize(field.astype(np.float32), (side, side), interpolation=cv2.INTER_CUBIC)
    xs, ys = manipulations.coordinates(side, side)
    drawn = cv2.remap(pixels, xs + field[..., 0], ys + field[..., 1], cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
    return np.asarray(drawn, np.uint8)


def _bent(pixels: Pixels, points: Points, rng: np.random.Generator) -> tuple[Pixels, Points]:
    """Bend the whole picture by a field that varies over a third of it: another head, the same camera."""
    side = pixels.shape[0]
    coarse = rng.standard_normal((5, 5, 2)).astype(np.float32) * np.float32(0.018 * side)
    field = cv2.resize(coarse, (side, side), interpolation=cv2.INTER_CUBIC)
    xs, ys = manipulations.coordinates(side, side)
    bent = cv2.remap(pixels, xs + field[..., 0], ys + field[..., 1], cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
    at = np.clip(np.round(points).astype(int), 0, side - 1)
    return np.asarray(bent, np.uint8), (points - field[at[:, 1], at[:, 0]]).astype(np.float32)


def _elsewhere(staged: Pixels, person: Mask, matrix: Mask, shape: tuple[int, ...], rng: np.random.Generator) -> Pixels:
    """The person before another background. The outline of the hair is then a seam that tells nothing."""
    whole = matrix @ np.diag([shape[1] / person.shape[1], shape[0] / person.shape[0], 1.0])
    side = staged.shape[0]
    mask = cv2.warpAffine(person, whole, (side, side), flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
    mask = np.clip(mask * 1.5 - 0.3, 0, 1).astype(np.float32)
    return np.asarray(cv2.blendLinear(staged, augmentation.background(side, side, rng), mask, 1 - mask), np.uint8)


def _jittered(box: Box, rng: np.random.Generator) -> Box:
    """A detector never draws the same box twice; now and then half the face is out of the picture."""
    much = 0.22 if rng.random() < 0.06 else 0.05
    dx, dy = rng.uniform(-much, much, 2) * box.w
    grow = float(np.exp(rng.uniform(-0.14, 0.14)))
    w, h = box.w * grow, box.h * grow
    return Box(round(box.x + box.w / 2 + dx - w / 2), round(box.y + box.h / 2 + dy - h / 2), max(8, round(w)), max(8, round(h)))


def _window(box: Box, mask: Mask, rng: np.random.Generator, recipe: Recipe) -> Box:
    """The box of a part of the face in which something was changed, or the face's own where none is found."""
    grown = 1 + 2 * recipe.margin
    whole = max(box.w, box.h) * grown
    least = max(0.4 * whole, min(whole, 0.8 * recipe.size))
    for _ in range(8):
        side = float(np.exp(rng.uniform(np.log(least), np.log(whole))))
        x, y = rng.uniform(-0.5, 0.5, 2) * (whole - side)
        inner = side / grown
        part = Box(round(box.x + box.w / 2 + x - inner / 2), round(box.y + box.h / 2 + y - inner / 2), round(inner), round(inner))
        if (crop_mask(mask, part, recipe) > 0.2).mean() > 0.05:
            return part
    return box


def _scaled(box: Box, scale: float) -> Box:
    return Box(round(box.x * scale), round(box.y * scale), max(1, round(box.w * scale)), max(1, round(box.h * scale)))


@lru_cache(maxsize=MESHES)
def _mesh(landmarks: bytes) -> Triangles:
    # By the landmarks themselves: those of one photograph differ with how it was scaled, and with what was found in it.
    return triangles(np.frombuffer(landmarks, np.float32).reshape(-1, 2))


def _donor(portrait: Portrait, donors: Sequence[Portrait], rng: np.random.Generator) -> Portrait:
    """One of the three that come closest in tone among a random few dozen of other identities."""
    some = rng.permutation(len(donors))
    others: list[Portrait] = [donors[k] for k in some[:48] if donors[k].identity != portrait.identity]
    others = others or [donors[k] for k in some if donors[k].identity != portrait.identity]
    if not others:
        raise ValueError("A face swap needs portraits of at least two identities.")
    distance = np.abs(np.stack([donor.tone for donor in others]) - portrait.tone).sum(axis=1)
    return others[int(rng.choice(np.argsort(distance)[:3]))]
