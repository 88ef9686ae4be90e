"""The mesh marks the faces it is given, and nothing else."""

from __future__ import annotations

import cv2
import numpy as np
import numpy.typing as npt
import pytest

from pipeline import facenets, solutions
from pipeline.jobs import Box, Pixels
from pipeline.rendering import MeshStyle, landmarks, render
from pipeline.settings import Settings
from tests.fixtures.pictures import pasted

STYLE = MeshStyle.of(Settings())
Changed = npt.NDArray[np.bool_]


def changed(before: Pixels, after: Pixels) -> Changed:
    return (before != after).any(axis=2)


def face_region(pixels: Pixels, box: Box) -> Changed:
    """The hull of the mesh, and what a hairline and its shadow may add to it."""
    points = landmarks(pixels, box)
    assert points is not None
    hull = np.zeros(pixels.shape[:2], np.uint8)
    cv2.fillConvexPoly(hull, cv2.convexHull(np.rint(points).astype(np.int32)), 1)
    return cv2.dilate(hull, np.ones((2 * 5 + 1, 2 * 5 + 1), np.uint8)) > 0


# --- landmarks -------------------------------------------------------------------------------------------------------


def test_landmarks_are_where_mediapipe_finds_them(astronaut: Pixels, astronaut_box: Box) -> None:
    mesh = solutions.Solution(lambda mp: mp.face_mesh.FaceMesh(static_image_mode=True, max_num_faces=1), lambda result: True)
    reference = mesh(astronaut).multi_face_landmarks[0].landmark
    expected = np.array([(point.x * 512, point.y * 512) for point in reference])

    points = landmarks(astronaut, astronaut_box)

    assert points is not None
    assert points.shape == (468, 2)
    assert points.dtype == np.float32
    assert np.linalg.norm(points - expected, axis=1).mean() < 0.02 * astronaut_box.w


def test_the_edges_are_those_of_facemesh_each_once() -> None:
    from mediapipe.python.solutions.face_mesh_connections import FACEMESH_TESSELATION

    edges = {(int(a), int(b)) for a, b in facenets.edges()}

    assert edges == {(min(edge), max(edge)) for edge in FACEMESH_TESSELATION}
    assert len(facenets.edges()) == len(edges)


@pytest.mark.parametrize("degrees", [-90, -45, -20, 20, 45, 90])
def test_landmarks_turn_with_the_face(astronaut: Pixels, astronaut_box: Box, degrees: int) -> None:
    centre = (astronaut_box.x + astronaut_box.w / 2, astronaut_box.y + astronaut_box.h / 2)
    turn = cv2.getRotationMatrix2D(centre, degrees, 1.0)
    turned = cv2.warpAffine(astronaut, turn, (512, 512), borderMode=cv2.BORDER_REPLICATE)
    upright = landmarks(astronaut, astronaut_box)

    points = landmarks(turned, astronaut_box)

    assert upright is not None
    assert points is not None
    expected = upright @ turn[:, :2].T + turn[:, 2]
    assert np.linalg.norm(points - expected, axis=1).mean() < 0.03 * astronaut_box.w


def test_landmarks_hardly_depend_on_the_box(astronaut: Pixels, astronaut_box: Box) -> None:
    exact = landmarks(astronaut, astronaut_box)
    loose = landmarks(astronaut, Box(astronaut_box.x - 9, astronaut_box.y + 7, 115, 110))

    assert exact is not None
    assert loose is not None
    assert np.abs(exact - loose).mean() < 0.01 * astronaut_box.w


def test_where_no_face_is_there_are_no_landmarks(astronaut: Pixels) -> None:
    assert landmarks(astronaut, Box(300, 350, 100, 100)) is None
    assert landmarks(np.zeros((50, 50, 3), np.uint8), Box(0, 0, 50, 50)) is None


# --- render ----------------------------------------------------------------------------------------------------------


def test_without_boxes_the_image_itself_comes_back(astronaut: Pixels) -> None:
    assert render(astronaut, [], STYLE) is astronaut


def test_only_the_face_changes_and_the_input_never(astronaut: Pixels, astronaut_box: Box) -> None:
    before = astronaut.copy()

    after = render(astronaut, [astronaut_box], STYLE)

    assert np.array_equal(astronaut, before)
    touched = changed(before, after)
    region = face_region(before, astronaut_box)
    assert not touched[~region].any()
    assert touched[region].mean() > 0.5


def test_between_the_lines_of_a_large_face_the_pixels_stay(astronaut: Pixels, astronaut_box: Box) -> None:
    large = cv2.resize(astronaut[:300, 80:380], None, fx=6, fy=6, interpolation=cv2.INTER_CUBIC)
    box = Box((astronaut_box.x - 80) * 6, astronaut_box.y * 6, 612, 612)

    touched = changed(large, render(large, [box], STYLE))

    hull = face_region(large, box)
    assert 0.3 < touched[hull].mean() < 0.85


def test_an_unmarked_face_beside_a_marked_one_stays(astronaut: Pixels, astronaut_box: Box) -> None:
    canvas = np.full((300, 600, 3), 150, np.uint8)
    pasted(canvas, astronaut, astronaut_box, (150, 150), 120)
    pasted(canvas, astronaut, astronaut_box, (450, 150), 120)

    after = render(canvas, [Box(390, 90, 120, 120)], STYLE)

    assert np.array_equal(after[:, :300], canvas[:, :300])
    assert changed(canvas, after)[:, 300:].any()


def test_faces_are_fitted_on_the_picture_as_it_came(astronaut: Pixels, astronaut_box: Box) -> None:
    # Given two boxes on one face: the second mesh must not be fitted to the first one's lines
    once = render(astronaut, [astronaut_box], STYLE)
    twice = render(astronaut, [astronaut_box, astronaut_box], STYLE)

    assert np.array_equal(changed(astronaut, once), changed(astronaut, twice))


def test_the_style_is_the_settings() -> None:
    style = MeshStyle.of(Settings(mesh_thickness=3, mesh_opacity=0.5, mesh_colour="#ff8000"))

    assert style == MeshStyle(thickness=3, opacity=0.5, colour=(255, 128, 0))


def test_colour_opacity_and_thickness_show(astronaut: Pixels, astronaut_box: Box) -> None:
    def mean(style: MeshStyle) -> npt.NDArray[np.float64]:
        after = render(astronaut, [astronaut_box], style)
        return np.asarray(after[face_region(astronaut, astronaut_box)].mean(axis=0), np.float64)

    red, green = mean(MeshStyle(1, 1.0, (255, 0, 0))), mean(MeshStyle(1, 1.0, (0, 255, 0)))
    faint, thick = mean(MeshStyle(1, 0.2, (255, 0, 0))), mean(MeshStyle(3, 1.0, (255, 0, 0)))

    assert red[0] > green[0] + 50
    assert green[1] > red[1] + 50
    assert thick[1] < red[1] - 20
    assert faint[1] > red[1] + 20


def test_the_same_input_gives_the_same_bytes(astronaut: Pixels, astronaut_box: Box) -> None:
    first, second = (render(astronaut, [astronaut_box], STYLE) for _ in range(2))

    assert np.array_equal(first, second)


@pytest.mark.parametrize("box", [Box(20, 30, 50, 40), Box(0, 0, 100, 80), Box(60, 50, 40, 30), Box(0, 0, 8, 8)])
def test_where_no_mesh_fits_the_box_is_outlined(box: Box) -> None:
    blank = np.full((80, 100, 3), 90, np.uint8)

    touched = changed(blank, render(blank, [box], STYLE))

    for edge in (touched[box.y : box.y + 3], touched[box.y + box.h - 3 : box.y + box.h]):
        assert edge[:, box.x + 3 : box.x + box.w - 3].any(axis=0).all()
    for edge in (touched[:, box.x : box.x + 3], touched[:, box.x + box.w - 3 : box.x + box.w]):
        assert edge[box.y + 3 : box.y + box.h - 3].any(axis=1).all()
    if min(box.w, box.h) > 20:
        assert not touched[box.y + 10 : box.y + box.h - 10, box.x + 10 : box.x + box.w - 10].any()


def test_a_face_cut_by_the_border_is_marked_as_far_as_it_is_there(astronaut: Pixels) -> None:
    cut = np.ascontiguousarray(astronaut[95:, 180:])

    touched = changed(cut, render(cut, [Box(0, 0, 96, 80)], STYLE))

    assert touched[:90, :100].mean() > 0.4
    assert not touched[130:].any()
