"""The overview of a demo: whatever was said and however odd the pictures, everything stays in its place."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import ImageFont

from pipeline.database import FaceRow, JobRow
from workers import contactsheet, demo
from workers.contactsheet import MOST, THUMB, Card, draw

RED = np.full((90, 120, 3), (200, 0, 0), np.uint8)
BLUE = np.full((300, 20, 3), (0, 0, 200), np.uint8)


def test_the_original_is_left_and_the_result_right() -> None:
    sheet = np.asarray(draw("t", [Card("a.jpg", RED, BLUE, "manipulated", "1 face")], []))
    red, blue = (np.nonzero((sheet == colour).all(axis=2)) for colour in ((200, 0, 0), (0, 0, 200)))
    assert red[1].max() < blue[1].min()
    assert np.ptp(red[1]) < THUMB[0]
    assert np.ptp(blue[0]) < THUMB[1]


def test_each_card_has_room_of_its_own() -> None:
    one, two, three = (draw("t", [Card("a.jpg", RED, RED, "authentic", "")] * number, []).size for number in (1, 2, 3))
    assert one == two
    assert three[0] == two[0]
    assert three[1] > two[1]


def test_so_many_pictures_are_enough() -> None:
    full, more = (draw("t", [Card("a.jpg", None, None, "refused", "")] * number, []) for number in (MOST, MOST + 5))
    assert more.height - full.height == 21  # the line that says so


@pytest.mark.parametrize("text", ["", "x" * 500, "word " * 200, "ünï çödé 顔.jpg", "two\nlines"])
def test_no_text_leaves_its_card(text: str) -> None:
    plain = draw("t", [Card("a.jpg", None, None, "refused", "")], [])
    assert draw("t", [Card(text, None, None, "refused", text)], []).size == plain.size


def test_long_notes_are_wrapped() -> None:
    font = ImageFont.load_default(15)
    lines = contactsheet._wrapped("a sentence of several words " * 20, font, 300)
    assert len(lines) > 5
    assert all(font.getlength(line) <= 300 for line in lines)
    assert " ".join(lines).split() == ("a sentence of several words " * 20).split()


def test_results_are_named_as_shortly_as_tells_them_apart() -> None:
    assert demo._names([Path("a.jpg"), Path("a.png"), Path("b.jpg")]) == ["a.jpg", "a.png", "b"]


def test_no_result_is_named_as_another() -> None:
    paths = [Path("a.jpg"), Path("a.jpg.png"), Path("a.png")]
    assert demo._names(paths) == ["a.jpg", "a.jpg.png", "a.png"]


@pytest.mark.parametrize(
    ("status", "well"),
    [
        ("done", True),
        ("refused", True),
        ("source_gone", True),
        ("cancelled", True),
        ("failed", False),
        ("queued", False),
        ("running", False),
    ],
)
def test_a_demo_is_well_when_its_jobs_came_to_an_end_and_none_failed(status: str, well: bool) -> None:
    result = demo.Result(Path("a.jpg"), JobRow(status=status, verdict="authentic"))
    assert result.well is well
    assert result.verdict == ("authentic" if status == "done" else status)


def test_what_nobody_took_is_not_well() -> None:
    nobody = demo.Result(Path("a.jpg"), None)
    assert not nobody.well
    assert nobody.verdict == "not taken"


def test_the_overview_shows_what_lies_around_the_faces() -> None:
    pixels = np.zeros((500, 400, 3), np.uint8)
    faces = [FaceRow(x=100, y=200, w=40, h=50), FaceRow(x=200, y=10, w=20, h=20)]
    near = demo._near(pixels, faces)
    assert near is not None
    assert near.shape[:2] == (250 + 45, 220 + 45 - 55)  # cut at the upper edge
    assert demo._near(pixels, []) is pixels
    assert demo._near(None, faces) is None
