"""The demo's samples: each is what its name says, and always the same."""

from __future__ import annotations

import importlib.util
import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipeline.events import IMAGE_SUFFIXES
from pipeline.extraction import detector, extract
from pipeline.images import ImageRefused, Limits, read
from pipeline.jobs import Face, Pixels
from pipeline.settings import Settings
from workers import samples
from workers.sentences import CommandError

SETTINGS = Settings()
SOFT = ("portrait-softened.jpg", "portrait-softened-and-blended.jpg")
CHANGED = ("portrait-face-blended.jpg", "portrait-mouth-blended.jpg", "portrait-expression-warped.jpg")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("samples") / "new"
    samples.write(folder)
    return folder


def pixels(path: Path) -> Pixels:
    return read(path.read_bytes(), Limits.of(SETTINGS)).pixels


def faces(path: Path) -> list[Face]:
    find = detector(SETTINGS.detector, SETTINGS.min_detection)
    gate = {"min_face_px": SETTINGS.min_face_px, "min_blur": SETTINGS.min_blur, "max_blocks": SETTINGS.max_blocks}
    return extract(pixels(path), detector=find, size=224, margin=0.15, **gate)


def test_the_same_bytes_every_time(folder: Path, tmp_path: Path) -> None:
    paths = samples.write(tmp_path)

    assert sorted(path.name for path in paths) == sorted(path.name for path in folder.iterdir())
    assert all(path.read_bytes() == (folder / path.name).read_bytes() for path in paths)
    assert all(path.suffix in IMAGE_SUFFIXES for path in paths)


@pytest.mark.parametrize("name", ["portrait.jpg", "portrait-16-bit.png", "portrait-on-its-side.jpg", *CHANGED, *SOFT])
def test_portraits_have_one_face_fit_to_be_judged(folder: Path, name: str) -> None:
    assert [face.reason for face in faces(folder / name)] == [None]


def test_the_group_is_six_faces_fit_to_be_judged(folder: Path) -> None:
    assert [face.reason for face in faces(folder / "group.jpg")] == [None] * len(samples.GROUP)


def test_the_photograph_without_a_face_has_none(folder: Path) -> None:
    assert faces(folder / "no-face.jpg") == []


def test_the_cut_off_file_is_refused(folder: Path) -> None:
    with pytest.raises(ImageRefused, match="ends too early"):
        pixels(folder / "cut-off.jpg")


def test_16_bits_hold_the_portrait_itself(folder: Path, astronaut: Pixels) -> None:
    assert (folder / "portrait-16-bit.png").read_bytes()[24] == 16  # IHDR's bit depth
    assert np.array_equal(pixels(folder / "portrait-16-bit.png"), astronaut)


def test_the_phone_lay_on_its_side(folder: Path, astronaut: Pixels) -> None:
    path = folder / "portrait-on-its-side.jpg"
    stored = np.asarray(Image.open(io.BytesIO(path.read_bytes())))

    assert np.abs(stored.astype(int) - np.rot90(astronaut)).mean() < 3
    assert np.abs(pixels(path).astype(int) - astronaut).mean() < 3


@pytest.mark.parametrize("name", CHANGED)
def test_a_manipulation_shows_and_stays_in_the_face(folder: Path, name: str) -> None:
    before, after = pixels(folder / "portrait.jpg").astype(int), pixels(folder / name).astype(int)
    box = samples.FACE
    outside = np.ones(before.shape[:2], bool)
    outside[box.y - 20 : box.y + box.h + 24, box.x - 16 : box.x + box.w + 16] = False

    difference = np.abs(before - after).mean(axis=2)

    assert difference[outside].max() < 3  # JPEG's own
    assert (difference > 15).sum() > 200


def test_without_scikit_image_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    real = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *rest: None if name == "skimage" else real(name, *rest))

    with pytest.raises(CommandError, match=r"unmask\[demo\]"):
        samples.write(tmp_path)


def test_a_blend_in_the_softened_portrait_is_in_the_face_alone(folder: Path) -> None:
    soft, blended = (pixels(folder / name).astype(int) for name in SOFT)
    box = samples.FACE
    inside = np.zeros(soft.shape[:2], bool)
    inside[box.y - 20 : box.y + box.h + 24, box.x - 16 : box.x + box.w + 16] = True

    difference = np.abs(soft - blended).mean(axis=2)

    assert difference[~inside].max() < 6  # JPEG's own, and the blend's soft edge
    assert difference[inside].max() > 12
