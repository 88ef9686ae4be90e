"""What each means is worth, in short: the table has its rows, and both sides of a row do the same work."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline import facenets
from pipeline.jobs import Box
from tests.benchmarks import mix
from tests.benchmarks.means.coding import moves
from tests.benchmarks.means.detector import by_tiles
from tests.benchmarks.means.measuring import Row
from tests.benchmarks.means.table import table

ROOT = Path(__file__).parents[2]
MEANS = ("bf16", "micro-batches", "128-px tiles", "Haar", "MediaPipe's", "cv2.line", "JPEG decoded", "original's bytes", "Keras `predict`")


@pytest.fixture(scope="module")
def figures(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The rows by name, of one turn with three small pictures and two faces."""
    out = tmp_path_factory.mktemp("means") / "means.json"
    small = ["--rounds", "1", "--largest", "1", "--pictures", "3", "--judged", "2", "--no-store", "--faces", "none"]
    command = [sys.executable, "-m", "tests.benchmarks.means", *small, "--json", str(out)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    rows = {row["means"]: row for row in json.loads(out.read_text())["rows"]}
    assert len([line for line in done.stdout.splitlines() if line.startswith("|")]) == 2 + len(rows)
    return rows


def test_every_means_has_its_row(figures: dict[str, Any]) -> None:
    for name in MEANS:
        assert any(name in means for means in figures), name
    for row in figures.values():
        assert (len(row["before"]), len(row["after"])) in ((1, 1), (0, 0))
        assert row["ratio"] is None or row["ratio"] > 0
        assert row["after"] or "not" in row["notes"]


def test_both_sides_give_the_same_scores(figures: dict[str, Any]) -> None:
    for name, row in figures.items():
        if row["after"] and name.startswith(("OpenVINO", "micro-batches")):
            assert row["found"]["largest_difference"] < 1e-4, name


def test_detectors_are_compared_on_the_same_faces(figures: dict[str, Any]) -> None:
    tiles, haar = (figures[f"BlazeFace in one pass instead of {name}, 1 MP"]["found"] for name in ("128-px tiles", "Haar"))

    assert tiles["before_faces"] == tiles["after_faces"] == haar["before_faces"] >= 6
    assert tiles["after_found"] == tiles["after_faces"]
    assert tiles["before_found"] >= haar["before_found"] > 0


def test_a_line_an_edge_draws_the_same_mesh(figures: dict[str, Any]) -> None:
    assert figures["one `polylines` instead of one `cv2.line` an edge, smooth with a shadow, 1 MP"]["found"]["same"]


def test_tiles_find_a_face_where_it_is_found_in_one_pass() -> None:
    portrait = mix._shipped("astronaut.png")[:256, 96:352]

    whole, tiles = facenets.blazeface(portrait, 0.5)[0], by_tiles(portrait, 0.5)

    assert np.abs(tiles[:, :4] - whole[:4]).max(axis=1).min() < 8


def test_boxes_that_move_are_told_from_those_that_are_lost() -> None:
    here = [[Box(0, 0, 40, 40), Box(100, 100, 40, 40)], [Box(7, 7, 30, 30)]]
    there = [[Box(103, 98, 40, 40)], [Box(7, 7, 30, 30), Box(300, 0, 50, 50)]]

    assert moves(here, there) == {"boxes": 3, "differ": 1, "px": 3, "lost": 1, "new": 1}


def test_a_row_says_how_much_less_it_is() -> None:
    row = Row("this instead of that", [4.0, 6.0, 5.0], [2.0, 2.5, 3.0], "2 faces", "noted")

    assert table([row]).splitlines()[2] == "| this instead of that | 5 ms (4 to 6) | 2.5 ms (2 to 3) | 2 | 3 turns of 2 faces | noted |"
    assert Row("another", notes="not here").ratio is None
