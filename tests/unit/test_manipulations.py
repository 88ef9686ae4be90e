"""What the manipulations, the street and the pairs promise, on a portrait that every checkout has."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import cv2
import numpy as np
import pytest

from pipeline.extraction import crop
from pipeline.jobs import Box, Pixels
from pipeline.rendering import landmarks as find_landmarks
from pipeline.training import augmentation, examples, manipulations
from pipeline.training.examples import KINDS, Recipe
from pipeline.training.manipulations import OVAL, REGIONS
from pipeline.training.portraits import Portrait

SMALL = Recipe(size=96, smallest=40)


@pytest.fixture(scope="module")
def portrait(astronaut: Pixels, astronaut_box: Box) -> Portrait:
    pixels = np.ascontiguousarray(astronaut[: 2 * astronaut_box.y + astronaut_box.h + 60, 60:400])
    box = Box(astronaut_box.x - 60, astronaut_box.y, astronaut_box.w, astronaut_box.h)
    points = find_landmarks(pixels, box)
    assert points is not None
    person = np.ones((96, 96), np.float32)
    return Portrait("astronaut.png", "one", "train", {}, "a" * 64, pixels, points.astype(np.float32), person, box)


@pytest.fixture(scope="module")
def people(portrait: Portrait) -> list[Portrait]:
    """The portrait and a mirrored, warmer stranger made of it."""
    pixels = np.ascontiguousarray(cv2.convertScaleAbs(portrait.pixels[:, ::-1], alpha=0.9, beta=12), np.uint8)
    box = Box(pixels.shape[1] - portrait.box.x - portrait.box.w, portrait.box.y, portrait.box.w, portrait.box.h)
    points = find_landmarks(pixels, box)
    assert points is not None
    stranger = Portrait("b.png", "two", "train", {}, "b" * 64, pixels, points.astype(np.float32), portrait.person, box)
    return [portrait, stranger]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("seed", range(6))
def test_a_manipulation_changes_the_picture_only_under_its_mask(people: list[Portrait], kind: examples.Kind, seed: int) -> None:
    made = examples.manipulate(kind, people[0], people, np.random.default_rng(seed))
    changed = (made.fake != made.real).any(axis=2)
    assert made.kind == kind
    assert made.mask.shape == made.fake.shape[:2]
    assert 0 <= made.mask.min() < made.mask.max() <= 1
    assert changed.any()
    # blending rounds: half a grey level at the mask's foot is no change
    assert not changed[cv2.dilate((made.mask > 0).astype(np.uint8), np.ones((3, 3))) == 0].any()


@pytest.mark.parametrize("kind", KINDS)
def test_the_inputs_stay_as_they_were(people: list[Portrait], kind: examples.Kind) -> None:
    before = [person.pixels.copy() for person in people]
    for seed in range(4):
        examples.manipulate(kind, people[0], people, np.random.default_rng(seed))
    assert all(np.array_equal(person.pixels, old) for person, old in zip(people, before, strict=True))


@pytest.mark.parametrize("region", REGIONS)
def test_a_region_lies_where_its_name_says(portrait: Portrait, region: manipulations.Region) -> None:
    face = portrait.landmarks[list(OVAL)]
    centres = []
    for seed in range(12):
        mask = manipulations.self_blend(portrait.pixels, portrait.landmarks, np.random.default_rng(seed), region=region).mask
        ys, xs = np.nonzero(mask > 0.5 * mask.max())
        centres.append(((xs.mean() - face[:, 0].min()) / np.ptp(face[:, 0]), (ys.mean() - face[:, 1].min()) / np.ptp(face[:, 1])))
    x, y = np.array(centres).T
    if region == "half":
        assert (np.abs(x - 0.5) > 0.1).all()
        assert (x < 0.5).any()
        assert (x > 0.5).any()
    else:
        low, high = {"eyes": (0.15, 0.5), "nose": (0.35, 0.7), "mouth": (0.6, 0.95)}[region]
        assert (y > low).all()
        assert (y < high).all()


def test_untoned_a_face_is_moved_and_keeps_its_colours(portrait: Portrait) -> None:
    shifts: dict[bool, list[float]] = {True: [], False: []}
    for seed in range(12):
        for toned in shifts:
            made = manipulations.self_blend(portrait.pixels, portrait.landmarks, np.random.default_rng(seed), toned=toned)
            inside = made.mask > 0.2 * made.mask.max()
            assert (made.fake != made.real).any()
            shifts[toned].append(float(np.abs((made.fake.astype(float) - made.real)[inside].mean(axis=0)).max()))
            assert toned or made.real is portrait.pixels
    assert np.median(shifts[False]) < 2 < 4 < np.median(shifts[True])


def test_as_much_is_untoned_as_is_asked_for(people: list[Portrait], monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[bool] = []
    own = manipulations.self_blend
    monkeypatch.setattr(manipulations, "self_blend", lambda *of, toned, **more: given.append(toned) or own(*of, toned=toned, **more))
    recipe = replace(SMALL, self_blended=1, face_swap=0, region=0)
    for share, least, most in ((0.0, 0, 0), (0.5, 5, 25), (1.0, 30, 30)):
        given.clear()
        for index in range(30):
            examples.pair(people, index, 1, replace(recipe, untoned=share))
        assert least <= given.count(False) <= most


def test_a_warp_leaves_everything_outside_the_face_alone(portrait: Portrait) -> None:
    outside = np.ones(portrait.pixels.shape[:2], np.uint8)
    hull = cv2.convexHull(np.round(portrait.landmarks[list(OVAL)]).astype(np.int32))
    cv2.fillConvexPoly(outside, hull, 0)
    for seed in range(8):
        made = manipulations.warp(portrait.pixels, portrait.landmarks, np.random.default_rng(seed))
        assert np.array_equal(made.fake[outside > 0], portrait.pixels[outside > 0])


def test_a_face_swapped_with_itself_is_the_same_face(portrait: Portrait) -> None:
    """The warp over triangles is the identity where donor and target agree: only interpolation and tone may differ."""
    mesh = manipulations.triangles(portrait.landmarks)
    warped = manipulations._warp_onto(portrait.pixels, portrait.landmarks, portrait.landmarks, portrait.pixels.shape, mesh)
    inside = np.zeros(portrait.pixels.shape[:2], np.uint8)
    cv2.fillConvexPoly(inside, cv2.convexHull(np.round(portrait.landmarks[list(OVAL)]).astype(np.int32)), 1)
    gap = np.abs(warped.astype(int) - portrait.pixels.astype(int))[inside > 0]
    assert np.quantile(gap, 0.99) <= 2


def test_poisson_blending_fills_the_mask_with_the_sources_slopes_and_leaves_the_rest() -> None:
    """The edges are the source's, the level is that of the surroundings (Perez et al., 2003)."""
    target = np.full((80, 90, 3), (90, 120, 150), np.uint8)
    source = np.full((80, 90, 3), (30, 200, 60), np.uint8)
    source[36:44, 40:50] += np.array([0, 40, 20], np.uint8)
    mask = np.zeros((80, 90), np.float32)
    cv2.ellipse(mask, (45, 40), (24, 18), 0, 0, 360, 1.0, -1)
    kept = mask.copy()

    fake = manipulations._poisson(source, target, mask)

    assert fake is not None
    np.testing.assert_array_equal(mask, kept)
    assert np.abs(fake.astype(int) - target)[mask == 0].max() <= 1, "what is solved for is rounded"
    x, y, w, h = cv2.boundingRect((mask > 0).astype(np.uint8))
    aside = np.ones(mask.shape, bool)
    aside[y - 1 : y + h + 1, x - 1 : x + w + 1] = False
    np.testing.assert_array_equal(fake[aside], target[aside])
    assert cv2.boundingRect((fake[..., 1] > target[0, 0, 1] + 20).astype(np.uint8)) == (40, 36, 10, 8), "nothing has moved"
    rise = fake[38:42, 43:47].astype(float).mean(axis=(0, 1)) - fake[39:41, 24:27].astype(float).mean(axis=(0, 1))
    assert (np.abs(rise - (0, 40, 20)) < 6).all(), rise
    assert np.abs(fake[39:41, 24:27].astype(int) - target[0, 0]).max() < 6, "the source's own colour is gone"


@pytest.mark.parametrize("place", [np.s_[:, :1], np.s_[:1, :], np.s_[:, -1:], np.s_[-1:, :]])
def test_poisson_blending_needs_surroundings(place: tuple[slice, slice]) -> None:
    """Where only the border is left of a mask there is nothing to blend, and where it reaches the border, that stays as it is."""
    rng = np.random.default_rng(4)
    source, target = (rng.integers(0, 256, (60, 60, 3), dtype=np.uint8) for _ in range(2))
    mask = np.zeros((60, 60), np.float32)
    mask[place] = 1
    assert manipulations._poisson(source, target, mask) is None

    fake = manipulations._poisson(source, target, np.ones((60, 60), np.float32))

    assert fake is not None
    np.testing.assert_array_equal(fake[place], target[place])
    assert (fake[5:-5, 5:-5] != target[5:-5, 5:-5]).any()


def test_a_swap_is_blended_by_poisson_now_and_then_and_its_mask_says_all_that_changed(
    people: list[Portrait], monkeypatch: pytest.MonkeyPatch
) -> None:
    """OpenCV lets the difference at the mask's edge fade over a rim outside, which the mask then has too."""
    target, donor = people
    own, solved = manipulations._poisson, []

    def poisson(*given: Any) -> Any:
        solved.append(own(*given))
        return solved[-1]

    monkeypatch.setattr(manipulations, "_poisson", poisson)
    for seed in range(30):
        before = len(solved)
        made = manipulations.face_swap(target.pixels, target.landmarks, donor.pixels, donor.landmarks, np.random.default_rng(seed))
        if len(solved) > before:
            assert made.fake is solved[-1]
            np.testing.assert_array_equal(made.fake[made.mask == 0], target.pixels[made.mask == 0])
            assert (made.fake[made.mask == 1] != target.pixels[made.mask == 1]).any(axis=1).mean() > 0.5
            assert ((made.mask > 0) & (made.mask < 0.2)).any(), "the rim"
    assert 3 <= len(solved) <= 16, "three of ten"


def test_triangles_cover_the_face_and_move_with_it(portrait: Portrait) -> None:
    mesh = manipulations.triangles(portrait.landmarks)
    turned = (portrait.landmarks @ np.array([[0.0, 0.7], [-0.7, 0.0]]) + 300).astype(np.float32)
    sorted_rows = [sorted(map(tuple, np.sort(triangles, axis=1).tolist())) for triangles in (mesh, manipulations.triangles(turned))]
    same = len(set(sorted_rows[0]) & set(sorted_rows[1]))
    assert same >= 0.97 * len(mesh)  # where four points lie on one circle either diagonal will do


def test_a_look_on_the_same_picture_is_the_same_picture(portrait: Portrait) -> None:
    for seed in range(20):
        look = augmentation.draw(np.random.default_rng(seed))
        first, second = (augmentation.apply(look, portrait.pixels, 0.7) for _ in range(2))
        assert np.array_equal(first, second)
        assert first.shape == (round(portrait.pixels.shape[0] * 0.7), round(portrait.pixels.shape[1] * 0.7), 3)


def test_no_strength_no_street(portrait: Portrait) -> None:
    look = augmentation.draw(np.random.default_rng(1), strength=0.0)
    assert np.array_equal(augmentation.apply(look, portrait.pixels), portrait.pixels)


def test_a_pair_is_a_function_of_seed_and_index(people: list[Portrait]) -> None:
    one, again = (examples.pair(people, 5, 3, SMALL) for _ in range(2))
    assert np.array_equal(one.real, again.real)
    assert np.array_equal(one.fake, again.fake)
    assert np.array_equal(one.mask, again.mask)
    assert not np.array_equal(one.real, examples.pair(people, 6, 3, SMALL).real)
    assert not np.array_equal(one.real, examples.pair(people, 5, 4, SMALL).real)


def test_triangles_are_kept_of_a_few_faces_only(people: list[Portrait], monkeypatch: pytest.MonkeyPatch) -> None:
    """No two training pairs share their landmarks; the fakes of an evaluation portrait do."""
    made = []
    own = manipulations.triangles
    monkeypatch.setattr(examples, "triangles", lambda points: made.append(points) or own(points))
    examples._mesh.cache_clear()
    swaps = Recipe(size=96, smallest=40, self_blended=0, face_swap=1, region=0)
    for index in range(8):
        examples.pair(people, index, 1, swaps)
    assert len(made) == 8
    made.clear()
    examples.evaluation_set(people, "face_swap", seed=1, per_portrait=3, recipe=swaps)
    assert len(made) == 2
    for shift in range(examples.MESHES + 8):
        examples._mesh((people[0].landmarks + np.float32(shift)).tobytes())
    assert examples._mesh.cache_info().currsize == examples.MESHES
    np.testing.assert_array_equal(examples._mesh(people[0].landmarks.tobytes()), own(people[0].landmarks))


def test_pairs_have_the_networks_shape_and_never_the_held_out_kind(people: list[Portrait]) -> None:
    kinds = set()
    for index in range(40):
        made = examples.pair(people, index, 1, SMALL)
        kinds.add(made.kind)
        assert made.real.shape == made.fake.shape == (96, 96, 3)
        assert made.real.dtype == made.fake.dtype == np.uint8
        assert made.mask.shape == (96, 96)
    assert kinds == {"self_blended", "face_swap", "region"}


@pytest.mark.parametrize("held_out", ["self_blended", "face_swap"])
def test_a_kind_that_is_held_out_is_no_region_either(people: list[Portrait], held_out: str, monkeypatch: pytest.MonkeyPatch) -> None:
    called: list[str] = []
    for made in ("self_blend", "face_swap"):
        own = getattr(manipulations, made)
        monkeypatch.setattr(manipulations, made, lambda *given, made=made, own=own, **more: called.append(made) or own(*given, **more))
    recipe = replace(SMALL, self_blended=0, face_swap=0, region=1)
    for index in range(12):
        examples.pair(people, index, 1, recipe)
    assert set(called) == {"self_blend", "face_swap"}
    called.clear()
    for index in range(12):
        assert examples.pair(people, index, 1, replace(recipe, regions=examples.regions_without(held_out))).kind == "region"
    assert set(called) == {"self_blend", "face_swap"} - {held_out.removesuffix("ed")}


def test_a_window_is_a_part_of_the_face_in_which_something_was_changed(people: list[Portrait]) -> None:
    recipe = replace(SMALL, window=1.0)
    box, small = people[0].box, 0
    mask = np.zeros(people[0].pixels.shape[:2], np.float32)
    cv2.circle(mask, (box.x + box.w // 4, box.y + box.h // 4), box.w // 10, 1.0, -1)
    for seed in range(30):
        part = examples._window(box, mask, np.random.default_rng(seed), recipe)
        grown = 1 + 2 * recipe.margin
        off = abs(part.x + part.w / 2 - box.x - box.w / 2)
        assert off + part.w * grown / 2 <= max(box.w, box.h) * grown / 2 + 2, "it stays within the face's own crop"
        if part != box:
            small += part.w < 0.8 * max(box.w, box.h)
            assert (examples.crop_mask(mask, part, recipe) > 0.2).any()
    assert small > 5
    nothing = np.zeros_like(mask)
    assert examples._window(box, nothing, np.random.default_rng(1), recipe) == box


def test_real_and_fake_of_a_pair_differ_by_the_manipulation_alone(people: list[Portrait]) -> None:
    plain = Recipe(size=96, strength=0.0, morph=0.0, bend=0.0)
    for index in range(12):
        made = examples.pair(people, index, 2, plain)
        untouched = cv2.dilate((made.mask > 0).astype(np.uint8), np.ones((7, 7))) == 0
        assert np.abs(made.fake.astype(int) - made.real.astype(int))[untouched].max(initial=0) <= 1


def test_an_evaluation_set_holds_the_crops_of_serving(people: list[Portrait]) -> None:
    samples = examples.evaluation_set(people, "warp", seed=1, per_portrait=2, recipe=SMALL)
    assert [sample.fake for sample in samples] == [False, True, True] * 2
    for person, sample in zip(people, samples[::3], strict=True):
        assert np.array_equal(sample.crop, crop(person.pixels, person.box, size=96, margin=SMALL.margin))


def test_a_self_blends_toned_target_is_a_real_of_its_set(people: list[Portrait]) -> None:
    samples = examples.evaluation_set(people, "self_blended", seed=1, per_portrait=6, recipe=SMALL)
    assert sum(sample.fake for sample in samples) == 12
    assert sum(not sample.fake for sample in samples) > 2


def test_a_swap_never_takes_its_own_person_unless_asked(people: list[Portrait]) -> None:
    rng = np.random.default_rng(1)
    assert {examples._donor(people[0], people, rng).identity for _ in range(20)} == {"two"}
    with pytest.raises(ValueError, match="two identities"):
        examples._donor(people[0], people[:1], rng)


def test_masks_scale_with_the_crop(portrait: Portrait) -> None:
    whole = np.ones(portrait.pixels.shape[:2], np.float32)
    mask = examples.crop_mask(whole, portrait.box, SMALL)
    assert mask.shape == (96, 96)
    assert mask.min() == mask.max() == 1


def test_a_look_fits_pictures_of_any_size() -> None:
    """Noise comes from one large field, which a larger picture sees again; what smaller ones get of it is as it was."""
    rng = np.random.default_rng(3)
    look = replace(augmentation.Look(seed=5), noise=6.0, chroma_noise=0.5)
    for side in (96, 1024, 1300, 2100):
        pixels = np.full((side, side // 2, 3), 128, np.uint8)
        noisy = augmentation._noisy(pixels, look, rng)
        assert noisy.shape == pixels.shape
        assert 3 < float(noisy.astype(float).std()) < 9
