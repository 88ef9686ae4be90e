"""Nobody is learnt from who judges, whatever the data set that shows them."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import pytest

from pipeline.training import feeding, kept_out
from pipeline.training.datasets import DatasetError
from tests.fixtures.made_up_people import listed


@pytest.fixture
def judged(tmp_path: Path) -> Path:
    """A folder whose faces.csv has somebody in each split; the files are no pictures."""
    folder = tmp_path / "judged"
    folder.mkdir()
    with (folder / "faces.csv").open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(("path", "identity", "split"))
        for name, split in (("ann", "train"), ("bob", "val"), ("cid+dan", "test"), ("eve", "demo")):
            (folder / name).write_bytes(f"picture of {name}".encode())
            table.writerow((name, name, split))
    return folder


@pytest.mark.parametrize(
    ("shown", "said"),
    [
        ([("zoe", b"picture of bob")], "1 picture of the splits val and test of .*, such as 0.png:"),
        ([("zoe", b"picture of bob"), ("", b"picture of cid+dan")], "2 pictures of"),
        ([("bob", b"another")], "1 person of .*, such as bob:"),
        ([("dan+zoe", b"another"), ("cid+ann", b"a third")], "2 people of .*, such as cid:"),
        ([("dan", b"picture of bob")], "1 picture and 1 person of"),
    ],
)
def test_nobody_is_learnt_from_who_judges(judged: Path, tmp_path: Path, shown: Any, said: str) -> None:
    rows = []
    for k, (identity, content) in enumerate(shown):
        (tmp_path / f"{k}.png").write_bytes(content)
        rows.append((f"{k}.png", "fake", identity, "train"))
    records = feeding.training_records(listed(tmp_path / "data.csv", *rows))
    with pytest.raises(DatasetError, match=f"has {said}"):
        kept_out.refuse(judged, tmp_path / "data.csv", records)


def test_a_frame_may_be_a_photograph_that_judges(judged: Path, tmp_path: Path) -> None:
    (tmp_path / "frames").mkdir()
    for name, content in (("0.png", b"picture of eve"), ("1.png", b"picture of bob")):
        (tmp_path / "frames" / name).write_bytes(content)
    records = feeding.training_records(listed(tmp_path / "data.csv", ("frames", "real", "zoe", "train")))
    with pytest.raises(DatasetError, match=r"1 picture of .* such as 1\.png:"):
        kept_out.refuse(judged, tmp_path / "data.csv", records)


def test_who_is_trained_on_may_be_in_both_and_who_judges_in_splits_that_are_not(judged: Path, tmp_path: Path) -> None:
    rows = []
    for k, (name, split) in enumerate((("ann", "train"), ("eve", "train"), ("bob", "val"), ("cid+dan", "test"))):
        (tmp_path / f"{k}.png").write_bytes(f"picture of {name}".encode())
        rows.append((f"{k}.png", "real", name, split))
    records = feeding.training_records(listed(tmp_path / "data.csv", *rows))
    assert len(records) == 2
    kept_out.refuse(judged, tmp_path / "data.csv", records)
