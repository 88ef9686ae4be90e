"""Portraits are found by serving's own functions, and remembered."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest

from pipeline.classification import load
from pipeline.extraction import detector
from pipeline.images import Limits, read
from pipeline.jobs import Pixels
from pipeline.settings import Settings
from pipeline.training import examples, fit, portraits, release, weights
from pipeline.training.crops import Cut
from pipeline.training.datasets import DatasetError
from pipeline.training.examples import Recipe
from tests.fixtures.models import write_model

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def folder(tmp_path: Path, astronaut: Pixels) -> Path:
    """An index of three photographs: a face, another split's face, and none."""
    cv2.imwrite(str(tmp_path / "a.png"), astronaut[..., ::-1])
    cv2.imwrite(str(tmp_path / "b.png"), astronaut[:, ::-1, ::-1])
    cv2.imwrite(str(tmp_path / "c.png"), np.full((64, 64, 3), 99, np.uint8))
    rows = ["path,identity,split,gender,ethnicity", "a.png,one,train,female,white", "b.png,two,val,,", "c.png,three,train,,"]
    (tmp_path / "faces.csv").write_text("\n".join(rows) + "\n")
    return tmp_path


def test_a_photograph_without_a_face_is_left_out(folder: Path) -> None:
    found = portraits.load(folder)
    assert [p.photo for p in found] == ["a.png", "b.png"]
    assert found[0].group == {"gender": "female", "ethnicity": "white"}
    assert [p.photo for p in portraits.load(folder, "val")] == ["b.png"]


def test_the_order_of_the_index_changes_nothing(folder: Path) -> None:
    before = [p.photo for p in portraits.load(folder)]
    first, *rows = (folder / "faces.csv").read_text().splitlines()
    (folder / "faces.csv").write_text("\n".join([first, *rows[::-1]]))
    assert [p.photo for p in portraits.load(folder)] == before == ["a.png", "b.png"]


@pytest.mark.parametrize("split", [None, "train"])
def test_somebody_in_two_splits_is_an_error(folder: Path, split: str | None) -> None:
    text = (folder / "faces.csv").read_text()
    (folder / "faces.csv").write_text(text.replace("c.png,three,train", "c.png,one,test"))
    with pytest.raises(DatasetError, match="identity one is in two splits, train and test"):
        portraits.load(folder, split)


@pytest.mark.parametrize("column", ["path", "identity", "split"])
def test_a_column_that_is_missing_is_named(folder: Path, column: str) -> None:
    text = (folder / "faces.csv").read_text()
    (folder / "faces.csv").write_text(text.replace(column, "other", 1))
    with pytest.raises(DatasetError, match=f"no column {column}"):
        portraits.load(folder, "val")


def test_an_index_may_come_out_of_a_spreadsheet(folder: Path) -> None:
    text = (folder / "faces.csv").read_text()
    (folder / "faces.csv").write_bytes(text.replace("b.png,two", "b.png,Zoë").encode("utf-8-sig"))
    assert [p.identity for p in portraits.load(folder, "val")] == ["Zoë"]
    (folder / "faces.csv").write_bytes(text.replace("b.png,two", "b.png,Zoë").encode("cp1252"))
    with pytest.raises(DatasetError, match="not written in UTF-8"):
        portraits.load(folder, "val")


def test_a_broken_photograph_is_named_and_what_was_found_before_is_kept(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Given an index of which the second photograph is broken
    (folder / "b.png").write_bytes(b"no picture")
    facts = folder / "facts.npz"
    # Then it is an error for good that names the file
    with pytest.raises(DatasetError, match=r"b\.png cannot be used: This is not a picture") as error:
        portraits.load(folder, facts=facts)
    assert error.value.permanent
    # and the first need not be looked at again
    monkeypatch.setattr(portraits, "_look", lambda pixels, find: np.empty((0, 2), np.float32))
    refused: list[str] = []
    assert [p.photo for p in portraits.load(folder, facts=facts, refused=refused)] == ["a.png"]
    assert refused == ["b.png"]


def test_one_person_alone_in_a_split_is_an_error(folder: Path) -> None:
    people = portraits.load(folder)
    both = [*people, *(replace(person, identity=f"{person.identity}'s sister") for person in people)]
    portraits.must_be_several(both, folder)
    with pytest.raises(DatasetError, match="only one person in the split val"):
        portraits.must_be_several(both[:3], folder)


def _command(program: str, folder: Path) -> int:
    """Run the trainer, or what makes a version of weights, with the folder's faces; returns the exit code."""
    where = ["--faces", str(folder), "--out", str(folder / "out")]
    if program == "fit":
        return fit.main([*where, "--steps", "1"])
    weights.write(folder / "w.h5", {"logit": [np.zeros((2048, 1), np.float32), np.zeros(1, np.float32)]})
    return release.main([*where, "--weights", str(folder / "w.h5"), "--version", "1"])


@pytest.mark.parametrize("program", ["fit", "release"])
def test_faces_that_nothing_can_be_made_of_are_said_before_any_work(
    folder: Path, program: str, astronaut: Pixels, capsys: pytest.CaptureFixture[str]
) -> None:
    # Given a face of one person in each split
    cv2.imwrite(str(folder / "c.png"), astronaut[:490, :, ::-1])
    text = (folder / "faces.csv").read_text().replace("c.png,three,train", "c.png,three,test")
    (folder / "faces.csv").write_text(text)
    # When something is made of them, then it says so, and that it is of no use to try again
    assert _command(program, folder) == 2
    assert capsys.readouterr().err.splitlines()[-1].endswith("a face swap needs two people.")
    # and likewise where a photograph is broken
    (folder / "b.png").write_bytes(b"no picture")
    assert _command(program, folder) == 2
    assert "b.png cannot be used" in capsys.readouterr().err
    # or somebody is in two splits
    (folder / "faces.csv").write_text(text.replace("three", "one"))
    assert _command(program, folder) == 2
    assert "identity one is in two splits" in capsys.readouterr().err


@pytest.mark.parametrize("times", [1, 5])
def test_what_is_measured_are_the_bytes_that_serving_sees(folder: Path, tmp_path: Path, times: int) -> None:
    # Given a photograph with a face of a hundred pixels, and one with a face of five hundred
    photograph = cv2.imread(str(folder / "b.png"))
    cv2.imwrite(str(folder / "b.png"), cv2.resize(photograph, None, fx=times, fy=times, interpolation=cv2.INTER_CUBIC))
    # When serving judges it, and evaluation does
    model = load(write_model(tmp_path / "models", size=64), runtime="openvino", precision="f32", threads=1)
    pixels = read((folder / "b.png").read_bytes(), Limits.of(Settings())).pixels
    (served,) = Cut(size=64, margin=model.card.margin, min_blur=0).faces(pixels, detector("mediapipe", 0.5))
    people = portraits.load(folder, "val")
    (measured,) = examples.evaluation_set(people, "warp", seed=1, per_portrait=0, recipe=Recipe(size=64, margin=model.card.margin))
    # Then both see the same bytes, and say the same
    assert served.crop is not None
    np.testing.assert_array_equal(measured.crop, served.crop)
    ((one, _), (other, _)) = model.judge(served.crop[None]) + model.judge(measured.crop[None])
    assert one == pytest.approx(other, abs=1e-4)


def test_to_train_on_large_faces_are_scaled_down(folder: Path) -> None:
    photograph = cv2.imread(str(folder / "b.png"))
    cv2.imwrite(str(folder / "b.png"), cv2.resize(photograph, None, fx=5, fy=5, interpolation=cv2.INTER_CUBIC))
    sides = {largest: max(portraits.load(folder, "val", largest=largest)[0].box.as_list()[2:]) for largest in (300, 1024)}
    assert sides[300] == 300
    assert 450 < sides[1024] < 600


def test_findings_are_kept_and_used(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    facts = folder / "facts" / "found.npz"
    first = portraits.load(folder, facts=facts)

    def refuse(*_: object) -> None:
        raise AssertionError("looked again")

    monkeypatch.setattr(portraits, "detector", refuse)
    again = portraits.load(folder, facts=facts)
    assert [p.box for p in again] == [p.box for p in first]
    assert all(np.array_equal(a.landmarks, b.landmarks) for a, b in zip(first, again, strict=True))


@pytest.mark.parametrize("content", [b"", b"no archive", b"PK\x03\x04 cut"])
def test_damaged_findings_are_one_sentence(folder: Path, content: bytes) -> None:
    (folder / "found.npz").write_bytes(content)
    with pytest.raises(DatasetError, match=r"found\.npz is not a file of findings in photographs"):
        portraits.load(folder, facts=folder / "found.npz")


def test_the_manifest_hangs_on_photographs_splits_and_identities_and_not_on_order(folder: Path) -> None:
    found = portraits.load(folder)
    assert portraits.manifest(found) == portraits.manifest(found[::-1])
    assert portraits.manifest(found) != portraits.manifest(found[:1])


def test_with_facts_a_machine_makes_pairs_that_has_numpy_opencv_and_pillow_only(folder: Path) -> None:
    """A borrowed accelerator rarely has more; what it lacks must not be needed by the way."""
    facts = folder / "facts.npz"
    portraits.load(folder, facts=facts)
    missing = ["pydantic", "isal", "sqlalchemy", "openvino", "mediapipe", "boto3", "h5py", "tensorflow", "celery", "flask"]
    code = (
        "import sys\nfrom pathlib import Path\n"
        f"sys.modules.update(dict.fromkeys({missing}))\n"
        "from pipeline.training import examples, metrics, portraits\n"
        f"people = portraits.load(Path({str(folder)!r}), facts=Path({str(facts)!r}))\n"
        "print(examples.pair(people, 1, 1, examples.Recipe(size=64)).fake.shape)\n"
    )
    made = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert made.stdout == "(64, 64, 3)\n", made.stderr
