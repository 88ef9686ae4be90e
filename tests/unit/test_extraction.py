"""Faces are found, all of them and nothing else; and one crop serves training and serving."""

from __future__ import annotations

import csv
import multiprocessing
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline import extraction
from pipeline.extraction import Detection, blocks, blur, crop, detector, extract
from pipeline.images import Limits, encode_png, read
from pipeline.jobs import Box, Face, Pixels, Reason
from pipeline.settings import Settings
from tests.fixtures.pictures import pasted, ready_made

EMPTY = (
    *("coffee.png", "chelsea.png", "rocket.jpg", "hubble_deep_field.jpg", "brick.png", "grass.png", "gravel.png", "coins.png"),
    *("moon.png", "cell.png", "motorcycle_left.png", "motorcycle_right.png", "ihc.png", "page.png", "color.png", "retina.jpg"),
)


def overlap(one: Box, other: Box) -> float:
    w = min(one.x + one.w, other.x + other.w) - max(one.x, other.x)
    h = min(one.y + one.h, other.y + other.h) - max(one.y, other.y)
    shared = max(0, w) * max(0, h)
    return shared / (one.w * one.h + other.w * other.h - shared)


def noise(height: int, width: int, seed: int = 1) -> Pixels:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


# --- the crop --------------------------------------------------------------------------------------------------------


def test_a_crop_of_its_own_size_is_the_pixels_themselves() -> None:
    image = noise(200, 300)

    cut = crop(image, Box(60, 50, 100, 80), size=140, margin=0.2)

    # a side of 100 * 1.4 around the centre (110, 90)
    assert np.array_equal(cut, image[20:160, 40:180])


def test_a_crop_shrinks_by_area() -> None:
    image = noise(200, 300)

    cut = crop(image, Box(60, 50, 100, 80), size=70, margin=0.2)

    blocks = image[20:160, 40:180].reshape(70, 2, 70, 2, 3).mean(axis=(1, 3))
    assert np.abs(cut - blocks).max() <= 0.5


def test_a_crop_grows_smoothly() -> None:
    image = noise(50, 50)

    expected = cv2.resize(image[10:30, 10:30], (60, 60), interpolation=cv2.INTER_CUBIC)

    assert np.array_equal(crop(image, Box(10, 10, 20, 20), size=60, margin=0.0), expected)


@pytest.mark.parametrize("box", [Box(0, 0, 40, 40), Box(80, 0, 40, 40), Box(0, 60, 40, 40), Box(80, 60, 40, 40), Box(0, 0, 120, 100)])
def test_beyond_the_border_the_edge_is_repeated(box: Box) -> None:
    image = noise(100, 120)
    side = round(max(box.w, box.h) * 1.5)
    padded = np.pad(image, ((200, 200), (200, 200), (0, 0)), mode="edge")
    left, top = round(box.x + box.w / 2 - side / 2) + 200, round(box.y + box.h / 2 - side / 2) + 200

    assert np.array_equal(crop(image, box, size=side, margin=0.25), padded[top : top + side, left : left + side])


def test_a_crop_does_not_depend_on_how_the_pixels_lie_in_memory() -> None:
    image = noise(100, 120)
    wide = np.zeros((100, 240, 3), np.uint8)
    wide[:, ::2] = image
    box = Box(90, 20, 30, 50)
    expected = crop(image, box, size=224, margin=0.15)

    assert np.array_equal(crop(wide[:, ::2], box, size=224, margin=0.15), expected)
    assert np.array_equal(crop(np.asfortranarray(image), box, size=224, margin=0.15), expected)
    assert expected.flags.c_contiguous


def test_a_box_outside_the_image_is_an_error() -> None:
    with pytest.raises(ValueError, match="outside the image of 120 x 100"):
        crop(noise(100, 120), Box(500, 0, 10, 10), size=64, margin=0.0)


@settings(deadline=None, max_examples=80)
@given(
    x=st.integers(-20, 119), y=st.integers(-20, 99), w=st.integers(21, 300), h=st.integers(21, 300),
    size=st.sampled_from((1, 31, 112, 224)), margin=st.floats(0, 1),
)  # fmt: skip
def test_any_box_that_touches_the_image_gives_a_crop(x: int, y: int, w: int, h: int, size: int, margin: float) -> None:
    cut = crop(noise(100, 120), Box(x, y, w, h), size=size, margin=margin)

    assert cut.shape == (size, size, 3)
    assert cut.dtype == np.uint8


# --- quality ---------------------------------------------------------------------------------------------------------


def test_blur_falls_with_the_sharpness(astronaut: Pixels, astronaut_box: Box) -> None:
    softer = [cv2.GaussianBlur(astronaut, (0, 0), sigma) if sigma else astronaut for sigma in (0, 1, 2, 4)]

    measured = [blur(crop(pixels, astronaut_box, size=224, margin=0.15)) for pixels in softer]

    assert measured == sorted(measured, reverse=True)
    assert measured[0] > 20 * measured[-1]


def test_blur_means_the_same_at_every_network_size(astronaut: Pixels, astronaut_box: Box) -> None:
    image = cv2.resize(astronaut, None, fx=4, fy=4, interpolation=cv2.INTER_CUBIC)
    box = Box(*(4 * value for value in astronaut_box.as_list()))

    small, large = (blur(crop(image, box, size=size, margin=0.15)) for size in (224, 448))

    assert small == pytest.approx(large, rel=0.15)


def compressed(pixels: Pixels, quality: int) -> Pixels:
    """What is left of a picture after JPEG."""
    data = cv2.imencode(".jpg", cv2.cvtColor(pixels, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_JPEG_QUALITY, quality])[1]
    return read(data.tobytes(), Limits.of(Settings())).pixels


def test_blocks_grow_with_the_compression(astronaut: Pixels, astronaut_box: Box) -> None:
    measured = [blocks(compressed(astronaut, quality), astronaut_box) for quality in (75, 50, 30, 10, 5)]

    assert measured == sorted(measured)
    assert measured[0] < 1
    assert measured[-1] > 10 * measured[0]


@pytest.mark.parametrize("scale", [1, 3])
def test_blocks_are_found_wherever_the_grid_lies(astronaut: Pixels, astronaut_box: Box, scale: int) -> None:
    ruined = compressed(cv2.resize(astronaut, None, fx=scale, fy=scale, interpolation=cv2.INTER_CUBIC), 5)
    x, y, w, h = (scale * value for value in astronaut_box.as_list())
    whole = blocks(ruined, Box(x, y, w, h))

    cut = [blocks(np.ascontiguousarray(ruined[dy:, dx:]), Box(x - dx, y - dy, w, h)) for dx, dy in ((1, 0), (0, 3), (4, 4), (7, 5))]
    moved = [blocks(ruined, Box(x + dx, y + dy, w, h)) for dx, dy in ((1, 0), (0, 3), (4, 4), (7, 5))]

    assert cut == pytest.approx([whole] * 4, abs=1e-6), "the same face, and another picture around it"
    assert moved == pytest.approx([whole] * 4, rel=0.2)


def test_what_is_smooth_rough_or_striped_has_no_blocks() -> None:
    slope = np.broadcast_to(np.linspace(40, 200, 240).astype(np.uint8)[:, None, None], (240, 240, 3))
    lines = np.broadcast_to((np.arange(240) // 8 % 2 * 90).astype(np.uint8)[:, None, None], (240, 240, 3))
    pictures = {
        "flat": np.full((240, 240, 3), 90, np.uint8),
        "slope": slope,
        "noise": noise(240, 240),
        "grain": (120 + noise(240, 240) // 64).astype(np.uint8),
        "blinds": lines,
        "fence": np.ascontiguousarray(lines.transpose(1, 0, 2)),
    }

    measured = {name: blocks(pixels, Box(7, 3, 160, 200)) for name, pixels in pictures.items()}

    assert all(0 <= value < 0.8 for value in measured.values()), measured


def test_a_face_of_less_than_a_block_has_none() -> None:
    assert blocks(noise(40, 40), Box(3, 3, 8, 30)) == 0
    assert blocks(noise(40, 40), Box(3, 3, 1, 1)) == 0


# --- extract ---------------------------------------------------------------------------------------------------------


def found_by(*boxes: Box) -> extraction.Detector:
    return lambda pixels: [Detection(box, 0.9 - index / 10) for index, box in enumerate(boxes)]


def test_faces_come_from_left_to_right(astronaut: Pixels) -> None:
    find = found_by(Box(300, 50, 90, 80), Box(10, 200, 70, 75), Box(150, 0, 60, 60))

    faces = extract(astronaut, detector=find, size=224, margin=0.15, min_face_px=48, min_blur=0, max_blocks=99)

    assert [(face.index, face.box.x, face.detection) for face in faces] == [(0, 10, 0.8), (1, 150, 0.7), (2, 300, 0.9)]
    assert [face.quality.size for face in faces] == [70, 60, 80]
    for face in faces:
        assert face.crop is not None
        assert np.array_equal(face.crop, crop(astronaut, face.box, size=224, margin=0.15))


def test_a_face_too_small_or_too_blurred_has_a_reason_and_no_crop(astronaut: Pixels) -> None:
    half_blurred = astronaut.copy()
    half_blurred[:, 256:] = 90
    find = found_by(Box(10, 10, 47, 60), Box(300, 50, 90, 90), Box(180, 80, 60, 60))

    small, sharp, flat = extract(half_blurred, detector=find, size=224, margin=0.0, min_face_px=48, min_blur=12, max_blocks=99)

    assert (small.reason, small.crop) == (Reason.FACE_TOO_SMALL, None)
    assert (flat.reason, flat.crop) == (Reason.BLURRED, None)
    assert sharp.reason is None
    assert sharp.crop is not None


def gated(pixels: Pixels, box: Box, *, size: int = 224) -> Face:
    """The one face of a picture, as the gate leaves it when nothing is set."""
    chosen = Settings()
    limits = {"min_face_px": chosen.min_face_px, "min_blur": chosen.min_blur, "max_blocks": chosen.max_blocks}
    (face,) = extract(pixels, detector=found_by(box), size=size, margin=0.15, **limits)
    return face


def test_a_face_too_compressed_has_a_reason_and_no_crop(astronaut: Pixels, astronaut_box: Box) -> None:
    for quality in (95, 50, 30):
        face = gated(compressed(astronaut, quality), astronaut_box)
        assert (face.reason, face.crop is None) == (None, False), face

    ruined = compressed(astronaut, 5)
    face = gated(ruined, astronaut_box)
    assert (face.reason, face.crop) == (Reason.COMPRESSED, None)
    again = read(encode_png(ruined, 1), Limits.of(Settings())).pixels
    assert gated(again, astronaut_box) == face, "a picture of a ruined picture is as ruined"


def test_blocks_too_small_to_be_seen_in_the_crop_are_no_reason(astronaut: Pixels, astronaut_box: Box) -> None:
    ruined = compressed(cv2.resize(astronaut, None, fx=4, fy=4, interpolation=cv2.INTER_CUBIC), 5)
    box = Box(*(4 * value for value in astronaut_box.as_list()))

    coarse, fine = (gated(ruined, box, size=size) for size in (64, 448))

    assert coarse.quality.blocks == fine.quality.blocks
    assert (coarse.reason, fine.reason) == (None, Reason.COMPRESSED)


def test_the_whole_way_on_a_portrait(astronaut: Pixels, astronaut_box: Box) -> None:
    for name in ("mediapipe", "haar"):
        find = detector(name, 0.5)
        (face,) = extract(astronaut, detector=find, size=224, margin=0.15, min_face_px=48, min_blur=12, max_blocks=2.8)

        assert overlap(face.box, astronaut_box) > 0.7
        assert face.reason is None
        assert 0.5 <= face.detection <= 1


# --- the detectors ---------------------------------------------------------------------------------------------------


def test_an_unknown_detector_is_an_error() -> None:
    with pytest.raises(ValueError, match="mediapipe or haar"):
        detector("viola", 0.5)


@pytest.mark.parametrize("name", EMPTY)
def test_a_picture_without_a_face_has_none(name: str) -> None:
    assert detector("mediapipe", 0.5)(ready_made(name)) == []


@pytest.mark.parametrize("shape", [(1, 1), (1, 3000), (3000, 1), (7, 5), (64, 4000)])
def test_pictures_of_odd_shapes_have_no_face(shape: tuple[int, int]) -> None:
    for name in ("mediapipe", "haar"):
        assert detector(name, 0.5)(np.full((*shape, 3), 128, np.uint8)) == []


def test_the_least_score_is_honoured(astronaut: Pixels) -> None:
    (face,) = detector("mediapipe", 0.2)(astronaut)

    assert detector("mediapipe", face.score - 0.01)(astronaut) == [face]
    assert detector("mediapipe", min(1.0, face.score + 0.01))(astronaut) == []


def test_boxes_stay_inside_the_image(astronaut: Pixels) -> None:
    cut = np.ascontiguousarray(astronaut[90:, 190:])  # through the forehead and one cheek

    (face,) = detector("mediapipe", 0.5)(cut)

    assert face.box.x >= 0
    assert face.box.y == 0
    assert face.box.x + face.box.w <= cut.shape[1]
    assert overlap(face.box, Box(0, 0, 85, 84)) > 0.6


def test_a_box_hardly_depends_on_the_size_of_the_picture(astronaut: Pixels) -> None:
    find = detector("mediapipe", 0.5)
    (whole,) = find(astronaut)
    for scale in (0.6, 1.7, 3.0):
        (scaled,) = find(cv2.resize(astronaut, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA))

        box = Box(*(round(value / scale) for value in scaled.box.as_list()))
        assert overlap(whole.box, box) > 0.9, scale
        assert scaled.score == pytest.approx(whole.score, abs=0.05)


GROUP = [
    ((170, 170), 150, 0),
    ((430, 140), 90, 12),
    ((520, 460), 200, -12),
    ((800, 160), 60, 8),
    ((960, 600), 130, 15),
    ((150, 600), 48, -15),
]


def group(astronaut: Pixels, box: Box) -> Pixels:
    canvas = np.full((864, 1152, 3), (150, 160, 165), np.uint8)
    for number, (centre, size, degrees) in enumerate(GROUP):
        pasted(canvas, astronaut, box, centre, size, degrees, mirror=number % 2 == 1)
    return canvas


def test_everybody_in_a_group_is_found_once(astronaut: Pixels, astronaut_box: Box) -> None:
    faces = detector("mediapipe", 0.5)(group(astronaut, astronaut_box))

    assert len(faces) == len(GROUP)
    for (x, y), size, _ in GROUP:
        expected = Box(round(x - size / 2), round(y - size / 2), size, size)
        assert max(overlap(face.box, expected) for face in faces) > 0.6, size
    assert [face.score for face in faces] == sorted((face.score for face in faces), reverse=True)


def test_the_same_picture_gives_the_same_faces_in_every_thread(astronaut: Pixels, astronaut_box: Box) -> None:
    picture = group(astronaut, astronaut_box)
    for name in ("mediapipe", "haar"):
        find = detector(name, 0.5)
        expected = find(picture)
        with ThreadPoolExecutor(4) as pool:
            assert list(pool.map(find, [picture] * 8)) == [expected] * 8


def _in_child(pixels: Pixels) -> list[Detection]:
    return detector("mediapipe", 0.5)(pixels)


def test_a_forked_child_finds_what_its_parent_found(astronaut: Pixels) -> None:
    # Given a parent that has used the networks already, which would hang a child that inherited them
    expected = detector("mediapipe", 0.5)(astronaut)

    with multiprocessing.get_context("fork").Pool(1) as pool:
        assert pool.apply_async(_in_child, (astronaut,)).get(timeout=60) == expected


@pytest.mark.faces
def test_recall_on_photographs_of_people(faces_folder: Path) -> None:
    # Given groups of six different people, 48 to 250 pixels, turned up to 15 degrees
    with (faces_folder / "faces.csv").open() as index:
        paths = [row["path"] for row in csv.DictReader(index) if row["split"] == "test"]
    rng = np.random.default_rng(20260101)
    find = detector("mediapipe", 0.5)
    people = hits = extra = 0
    for number in range(0, 18, 6):
        canvas = np.full((900, 1500, 3), rng.integers(60, 220, 3), np.uint8)
        truth = []
        for place, path in enumerate(paths[number : number + 6]):
            photograph = read((faces_folder / path).read_bytes(), Limits(20_000_000, 50_000_000, 16_384)).pixels
            (portrait,) = find(photograph)
            size = float(np.exp(rng.uniform(np.log(48), np.log(220))))
            centre = (250 + 500 * (place % 3), 225 + 450 * (place // 3))
            pasted(canvas, photograph, portrait.box, centre, size, float(rng.uniform(-15, 15)))
            truth.append(Box(round(centre[0] - size / 2), round(centre[1] - size / 2), round(size), round(size)))

        found = find(canvas)

        people += len(truth)
        hits += sum(any(overlap(face.box, box) > 0.5 for face in found) for box in truth)
        extra += len(found) - sum(any(overlap(face.box, box) > 0.5 for box in truth) for face in found)
    assert hits >= 0.95 * people
    assert extra == 0
