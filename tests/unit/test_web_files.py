"""Names of uploaded files, and how things read."""

from __future__ import annotations

import pytest

from webhooks.accepting import safe_name
from webhooks.dashboard import words


@pytest.mark.parametrize(
    ("given", "made"),
    [
        ("portrait.jpg", "portrait.jpg"),
        ("../../etc/passwd", "passwd"),
        ("C:\\Users\\me\\face.PNG", "face.PNG"),
        ("/", "image"),
        ("", "image"),
        ("...", "image"),
        ("a\x00b\r\n.jpg", "a_b__.jpg"),
        ("ünï ☃.jpg", "ünï _.jpg"),
        ("page.html", "page_html"),
        ("photo.jpg.svg", "photo_jpg_svg"),
        ("x" * 300 + ".jpg", "x" * 96 + ".jpg"),
    ],
)
def test_a_file_name_becomes_a_safe_end_of_a_key(given: str, made: str) -> None:
    assert safe_name(given) == made


@pytest.mark.parametrize(
    ("milliseconds", "said"),
    [(None, "–"), (0.4, "0 ms"), (8, "8 ms"), (999, "999 ms"), (3200, "3.2 s"), (240_000, "4 min"), (9_000_000, "2 h")],
)
def test_durations_read_well(milliseconds: float | None, said: str) -> None:
    assert words.ms(milliseconds) == said


@pytest.mark.parametrize(("value", "said"), [(None, "–"), (0.0, "< 0.01"), (1.0, "> 0.99"), (0.5, "0.50"), (0.974, "0.97")])
def test_a_score_is_never_certain(value: float | None, said: str) -> None:
    assert words.score(value) == said


def test_a_reason_reads_as_a_sentence_and_a_sentence_stays() -> None:
    assert words.reason("no_face") == "No face was found."
    assert words.reason("The file is empty.") == "The file is empty."
