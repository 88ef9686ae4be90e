"""Evaluation by the serving classifier, on pictures found and on fakes made here; and its report."""

from __future__ import annotations

import csv
import json
import sys
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from pipeline.card import Thresholds
from pipeline.classification import load
from pipeline.extraction import Detection
from pipeline.jobs import Box
from pipeline.training import crops, evaluation, figures, report
from pipeline.training.datasets import DatasetError
from pipeline.training.figures import CLEAN, Scored
from tests.fixtures.models import write_model

BOUNDS = Thresholds(authentic_below=0.3, manipulated_from=0.7)


@pytest.fixture
def green(tmp_path: Path) -> Any:
    """A classifier that calls green faces fake."""
    return load(write_model(tmp_path / "models", size=64), runtime="openvino", precision="f32", threads=1)


@pytest.fixture
def somebody(monkeypatch: pytest.MonkeyPatch) -> None:
    """A detector that finds a face in the left half and one in the right half of every picture but wholly black ones."""

    def find(pixels: Any) -> list[Detection]:
        h, w = pixels.shape[:2]
        return [Detection(Box(4, 4, w // 2 - 8, h - 8), 0.9), Detection(Box(w // 2 + 4, 4, w // 2 - 8, h - 8), 0.8)] if pixels.any() else []

    monkeypatch.setattr(crops, "detector", lambda name, score: find)


def _faces(path: Path, left: tuple[int, int, int], right: tuple[int, int, int], seed: int = 0) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(seed).integers(0, 20, (120, 240, 3))
    picture = np.concatenate([np.full((120, 120, 3), left), np.full((120, 120, 3), right)], axis=1) + noise
    cv2.imwrite(str(path), picture[..., ::-1].astype(np.uint8))


SKIN, GREEN = (200, 120, 100), (20, 220, 30)


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """Six reals; four fakes of one method, of which one face of two is green; two of another that look real; one black."""
    root = tmp_path / "pictures"
    for k in range(6):
        _faces(root / f"real/{k}.png", SKIN, SKIN, k)
    for k in range(4):
        _faces(root / f"fake/swap/{k}.png", SKIN, GREEN, 10 + k)
    for k in range(2):
        _faces(root / f"fake/subtle/{k}.png", SKIN, SKIN, 20 + k)
    cv2.imwrite(str(root / "fake/swap/black.png"), np.zeros((50, 100, 3), np.uint8))
    (root / "real/broken.jpg").write_bytes(b"not a picture")
    return root


def test_folders_of_anybody_are_measured_one_set_for_each_method(green: Any, somebody: None, pictures: Path) -> None:
    # When
    found = evaluation.evaluate(green, pictures, cut=crops.Cut(min_face_px=20, min_blur=0))
    assert (found["pictures"], found["without_split"]) == (14, 14)
    # Then the worst face of each picture counted
    assert set(found["sets"]) == {"swap", "subtle"}
    swap, subtle = found["sets"]["swap"], found["sets"]["subtle"]
    assert (swap["n"], swap["auc"], swap["accuracy"], swap["tpr_at_1fpr"]) == (10, 1.0, 1.0, 1.0)
    assert swap["verdicts"]["fake"] == {"manipulated": 4, "uncertain": 0, "authentic": 0}
    assert subtle["accuracy"] == 0.5
    # and what could not be judged is counted
    assert found["failed_faces"] == {"swap": {"no_face": 1, "refused": 1}, "subtle": {"refused": 1}}
    assert found["false_positive_rate"] == 0
    assert set(found["grid"]) == {"jpeg", "size"}
    assert set(found["grid"]["jpeg"]) == {"95", "75", "50"}
    assert found["model"]["sha256"] == green.name.sha256


def test_the_scores_are_those_of_serving(green: Any, somebody: None, pictures: Path) -> None:
    found = evaluation.found_sets(
        evaluation.Scorer(green),
        [record for record in evaluation.datasets.load(pictures) if record.manipulation == "swap"],
        cut := crops.Cut(size=64, min_face_px=20, min_blur=0),
        (CLEAN,),
    )
    pixels = cv2.imread(str(pictures / "fake/swap/0.png"))[..., ::-1]
    faces = cut.faces(pixels, cut.find())
    served = max(score for score, _ in green.judge(np.stack([face.crop for face in faces])))
    assert found["swap"][CLEAN].scores[0] == pytest.approx(served, abs=1e-9)


def test_faceforensics_is_measured_at_the_compression_that_is_asked_for(
    green: Any, somebody: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    # Given a pair of videos as frames, at c40 alone
    for split, pairs in (("train", []), ("val", []), ("test", [["000", "001"]])):
        (tmp_path / f"{split}.json").write_text(json.dumps(pairs))
    for place, right in (("original_sequences/youtube/c40/images/000", SKIN), ("manipulated_sequences/FaceSwap/c40/images/001_000", GREEN)):
        for frame in range(2):
            _faces(tmp_path / place / f"{frame:04}.png", SKIN, right, frame)
    # Then it is measured there, and nowhere else
    found = evaluation.evaluate(green, tmp_path, compression="c40", grid=False, cut=crops.Cut(min_face_px=20, min_blur=0))
    assert (found["sets"]["FaceSwap"]["n_real"], found["sets"]["FaceSwap"]["n_fake"]) == (2, 2)
    assert (found["pictures"], found["without_split"]) == (2, 0)
    # and the module's own command line takes it too
    words = ["--model", str(next((tmp_path / "models").rglob("card.json")).parent), "--faces", str(tmp_path), "--no-grid"]
    words += ["--json", str(tmp_path / "found.json")]
    assert evaluation.main(words) == 2
    assert "compression c23" in capsys.readouterr().err
    assert evaluation.main([*words, "--compression", "c40"]) == 0
    assert list(json.loads((tmp_path / "found.json").read_text())["sets"]) == ["FaceSwap"]


def test_what_is_gone_through_is_told(green: Any, somebody: None, pictures: Path) -> None:
    seen: list[str] = []

    def watch(items: Any, what: str) -> Any:
        seen.append(f"{len(items)} {what}")
        return items

    evaluation.evaluate(green, pictures, grid=False, cut=crops.Cut(min_face_px=20, min_blur=0), watch=watch)
    assert seen == ["14 hashes", "14 pictures"]


def test_whoever_is_linked_by_a_fake_is_drawn_together(green: Any, somebody: None, tmp_path: Path) -> None:
    # Given the reals 000 and 001, fakes of one by the other, a second method's of which one has no face, a pair of others, and somebody
    rows = ["path,label,identity,manipulation", "a.png,real,000,", "b.png,real,001,", "c.png,fake,001+000,swap", "d.png,real,002,"]
    rows += ["e.png,fake,003+002,swap", "black.png,fake,000+001,neural", "f.png,real,,"]
    (tmp_path / "m.csv").write_text("\n".join(rows))
    for row in rows[1:]:
        _faces(tmp_path / row.partition(",")[0], SKIN, SKIN)
    cv2.imwrite(str(tmp_path / "black.png"), np.zeros((50, 100, 3), np.uint8))
    # When
    cut = crops.Cut(size=64, min_face_px=20, min_blur=0)
    found = evaluation.found_sets(evaluation.Scorer(green), evaluation.datasets.load(tmp_path / "m.csv"), cut, (CLEAN,))
    # Then each pair is one, in every set alike
    first, second, alone = "000", "002", f"file {tmp_path / 'f.png'}"
    assert found["swap"][CLEAN].people == (first, first, first, second, second, alone)
    assert found["neural"][CLEAN].people == (first, first, second, alone)


def test_reals_alone_give_a_false_positive_rate_and_no_auc(green: Any, somebody: None, tmp_path: Path) -> None:
    _faces(tmp_path / "real/a.png", SKIN, SKIN)
    _faces(tmp_path / "real/b.png", GREEN, SKIN)
    found = evaluation.evaluate(green, tmp_path, cut=crops.Cut(min_face_px=20, min_blur=0), grid=False)
    assert found["sets"]["real"]["auc"] is None
    assert found["false_positive_rate"] == 0.5
    assert found["sets"]["real"]["verdicts"]["real"]["manipulated"] == 1
    assert report.write(found, tmp_path / "report").exists()


def test_a_manifest_takes_only_the_split_asked_for(green: Any, somebody: None, tmp_path: Path) -> None:
    for k, name in enumerate(("a", "b")):
        _faces(tmp_path / f"{name}.png", SKIN, SKIN, k)
    (tmp_path / "m.csv").write_text("path,label,identity,split\na.png,real,anna,train\nb.png,real,ben,test\n")
    assert evaluation.evaluate(green, tmp_path / "m.csv", grid=False, cut=crops.Cut(min_blur=0))["sets"]["real"]["n"] == 1
    with pytest.raises(DatasetError, match="split val"):
        evaluation.evaluate(green, tmp_path / "m.csv", split="val")


def test_a_crop_seen_before_is_not_run_again() -> None:
    class Counting:
        class card:
            temperature = 1.0

        runs = 0

        def logits(self, crops: Any) -> Any:
            self.runs += len(crops)
            return crops.mean(axis=(1, 2, 3)).astype(np.float32)

    score = evaluation.Scorer(counting := Counting())  # type: ignore[arg-type]
    dark, light = np.zeros((8, 8, 3), np.uint8), np.ones((8, 8, 3), np.uint8)
    np.testing.assert_allclose(score([dark, light, dark]), [0.5, 0.731, 0.5], atol=1e-3)
    score([light, light])
    assert counting.runs == 2


def _scored(fakes: list[float], reals: list[float], groups: list[dict[str, str]] | None = None) -> Scored:
    n = len(fakes) + len(reals)
    return Scored(np.array(fakes + reals), np.array([True] * len(fakes) + [False] * len(reals)), (), tuple(groups or [{}] * n))


def test_groups_are_compared_with_all_and_small_ones_left_out() -> None:
    # Given nine women of whom three are called fake, nine men of whom none is, and two others
    women, men, others = [0.9] * 3 + [0.1] * 6, [0.1] * 9, [0.9] * 2
    groups = [{"gender": "female"}] * 9 + [{"gender": "male"}] * 9 + [{"gender": "other"}] * 2
    found = figures.document({"swap": {CLEAN: _scored([], women + men + others, groups)}}, BOUNDS, seed=1)
    assert set(found["groups"]["gender"]) == {"female", "male"}
    assert found["false_positive_rate"] == pytest.approx(5 / 20)
    assert found["groups"]["gender"]["female"]["over_overall"] == pytest.approx((3 / 9) / (5 / 20))
    assert found["groups"]["gender"]["male"]["false_positive_rate"] == 0


def test_the_grid_says_what_compression_costs() -> None:
    clean, squeezed = _scored([0.9, 0.8], [0.1, 0.2]), _scored([0.9, 0.1], [0.1, 0.2])
    found = figures.document({"swap": {CLEAN: clean, ("jpeg", 50): squeezed}}, BOUNDS, seed=1)
    assert found["grid"]["jpeg"]["50"]["swap"]["auc_lost"] == pytest.approx(1 - 2.5 / 4)


FIGURES = {"n", "auc", "auc_ci", "ap", "eer", "accuracy", "tpr_at_1fpr", "tpr_at_1fpr_ci", "ece15", "ece15_ci", "brier"}


def _of_people(seed: int, gap: float, people: int = 10) -> Scored:
    """For each person four fakes and two reals, all of one group."""
    rng = np.random.default_rng(seed)
    fake = np.tile([True] * 4 + [False] * 2, people)
    scores = np.clip(rng.normal(0.3 + gap * fake, 0.1), 0, 0.69)
    return Scored(scores, fake, tuple(f"person {k // 6}" for k in range(len(fake))), ({"gender": "female"},) * len(fake))


def test_cells_and_groups_have_the_figures_of_a_set() -> None:
    clean, squeezed = _of_people(1, 0.3), _of_people(2, 0.1)
    found = figures.document({"swap": {CLEAN: clean, ("jpeg", 50): squeezed}}, BOUNDS, seed=1)
    cell, group = found["grid"]["jpeg"]["50"]["swap"], found["groups"]["gender"]["female"]["sets"]["swap"]
    assert cell.keys() >= FIGURES
    assert {key: cell[key] for key in FIGURES} == {key: figures.figures(squeezed, BOUNDS, seed=1)[key] for key in FIGURES}
    assert {key: group[key] for key in FIGURES} == {key: found["sets"]["swap"][key] for key in FIGURES}
    for row in (cell, group):
        for name in ("auc", "tpr_at_1fpr", "ece15"):
            assert row[f"{name}_ci"][0] < row[f"{name}_ci"][1]


def test_what_compression_costs_is_resampled_in_pairs() -> None:
    # Given scores that compression changes little, though people differ much
    clean = _of_people(1, 0.12)
    squeezed = Scored(clean.scores + 0.01 * np.random.default_rng(3).normal(size=len(clean.scores)), clean.fake, clean.people, clean.groups)
    found = figures.document({"swap": {CLEAN: clean, ("jpeg", 50): squeezed}}, BOUNDS, seed=1)
    # Then the interval of what is lost is far narrower than that of what is left, and the set has it too
    cell, of_set = found["grid"]["jpeg"]["50"]["swap"], found["sets"]["swap"]
    low, high = cell["auc_lost_ci"]
    assert low <= cell["auc_lost"] <= high
    assert high - low < 0.5 * (cell["auc_ci"][1] - cell["auc_ci"][0])
    assert (of_set["auc_lost_jpeg50"], of_set["auc_lost_jpeg50_ci"]) == (cell["auc_lost"], cell["auc_lost_ci"])


def test_no_false_positive_has_an_exact_bound_and_no_ratio() -> None:
    # Given twenty reals of ten people, none called manipulated
    found = figures.document({"swap": {CLEAN: _of_people(1, 0.3)}}, BOUNDS, seed=1)
    bound = pytest.approx(1 - 0.05 ** (1 / 10))
    assert found["false_positive_rate_ci"] == [0, bound]
    assert found["sets"]["swap"]["false_positive_rate_ci"] == [0, bound]
    assert found["sets"]["swap"]["fpr_resolution"] == pytest.approx(1 / 20)
    # Then there is nothing that a group could be over, and that is said
    women = found["groups"]["gender"]["female"]
    assert (women["false_positive_rate_ci"], women["over_overall"]) == ([0, bound], None)
    assert women["over_overall_why"].startswith("not measurable: none of 20 judgements of 10 people")
    assert found["largest_over_overall"] == {"group": "gender: female", "value": None, "ci": None, "why": women["over_overall_why"]}


def test_a_group_over_all_has_an_interval_of_the_same_people() -> None:
    # Given sixteen people with a real each, of whom half of the women and one of the men are called fake
    groups = [{"gender": "female"}] * 8 + [{"gender": "male"}] * 8
    found = figures.document({"swap": {CLEAN: _scored([], [0.9] * 4 + [0.1] * 4 + [0.9] + [0.1] * 7, groups)}}, BOUNDS, seed=1)
    low, high = found["false_positive_rate_ci"]
    assert 0.05 < low < 5 / 16 < high < 0.6
    women = found["groups"]["gender"]["female"]
    low, high = women["over_overall_ci"]
    assert women["over_overall"] == pytest.approx(1.6)
    assert 0.5 < low < 1.6 < high
    assert found["largest_over_overall"]["group"] == "gender: female"


def test_the_report_says_what_few_reals_can_tell_and_all_figures_of_cells_and_groups(tmp_path: Path) -> None:
    found = figures.document({"face_swap": {CLEAN: _of_people(1, 0.3), ("jpeg", 50): _of_people(2, 0.1)}}, BOUNDS, seed=1)
    whole = {"model": {"name": "x", "version": "1", "precision": "f32"}, "seed": 1, "split": "test", "manifest": "0" * 64}
    gate = {"as it is": {"n": 20, "refused": {}}, "size 64": {"n": 20, "refused": {"face_too_small": 3}}}
    page = report.write(whole | {"thresholds": BOUNDS.model_dump(), "weighting": "even", "gate": gate} | found, tmp_path).read_text()
    assert "With 20 reals one is 5.0 %, so TPR at 1 % FPR is TPR at no false positive." in page
    assert "<td>not measurable</td>" in page
    assert "none of 40 judgements of 10 people was called manipulated" in page
    assert "Who lent a swap its face is not resampled" in page
    for row in ("<td>jpeg 50, face swap</td>", "<td>gender: female, face swap</td>"):
        assert row in page
    assert "<td>size 64</td><td>20</td><td>face too small: 3</td>" in page


def test_the_gate_of_serving_says_what_it_would_refuse() -> None:
    # Given a face of 100 pixels in noise, and one as large without any detail
    def portrait(pixels: Any) -> Any:
        return evaluation.portraits.Portrait(
            "a", "a", "test", {}, "", pixels, np.zeros((468, 2)), np.zeros((96, 96)), Box(50, 50, 100, 100)
        )

    noise = np.random.default_rng(1).integers(0, 256, (200, 200, 3), dtype=np.uint8)
    people = [portrait(noise), portrait(np.full((200, 200, 3), 90, np.uint8))]
    # Then the gate refuses the one, and both where they are smaller than it takes
    found = evaluation.refused_by_gate(people, crops.Cut(size=64, min_face_px=48), (CLEAN, ("jpeg", 50), ("size", 40)))
    assert found["as it is"] == {"n": 2, "refused": {"blurred": 1}}
    assert found["jpeg 50"]["refused"]["blurred"] == 1
    assert found["size 40"] == {"n": 2, "refused": {"face_too_small": 2}}


def test_the_document_has_the_promised_keys_and_the_report_stands_alone(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    sets = {
        name: {CLEAN: _scored(rng.uniform(0.3, 1, 50).tolist(), rng.uniform(0, 0.7, 20).tolist())}
        for name in ("self_blended", "face_swap", "region", "warp")
    }
    found = figures.document(sets, BOUNDS, seed=1)
    assert (found["overall"]["n_fake"], found["overall"]["n_real"]) == (200, 20)
    for values in found["sets"].values():
        assert {"n", "auc", "auc_ci", "eer", "tpr_at_1fpr", "ece15", "accuracy"} <= set(values)
    whole = {
        "model": {"name": "<b>x</b>", "version": "1", "sha256": "", "precision": "f32"},
        "seed": 1,
        "split": "test",
        "manifest": "0" * 64,
        "thresholds": BOUNDS.model_dump(),
        "weighting": "even",
        "limits": ["It knows little."],
        **json.loads(json.dumps(found)),
    }
    page = report.write(whole, tmp_path / "report").read_text()
    assert page.count("data:image/png;base64,") == 4
    assert "&lt;b&gt;x" in page
    assert "src='http" not in page
    assert "all together" in page
    assert "It knows little." in page
    for name in ("roc", "reliability", "sets", "risk_coverage"):
        assert cv2.imread(str(tmp_path / "report" / f"{name}.png")) is not None


def test_without_matplotlib_the_report_says_what_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(report.ReportError, match="need matplotlib"):
        report.training_curve([{"seen": 1, "loss": 1.0}], tmp_path / "curve.png")


@pytest.mark.timeout(120)
def test_fakes_made_here_from_portraits_are_measured_without_tensorflow(green: Any, tmp_path: Path) -> None:
    # Given one portrait, and its mirror image as a second person
    data = pytest.importorskip("skimage.data")
    portrait = data.astronaut()[..., ::-1]
    with (tmp_path / "faces.csv").open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(("path", "identity", "split", "gender"))
        for name, picture in (("one", portrait), ("two", portrait[:, ::-1])):
            cv2.imwrite(str(tmp_path / f"{name}.png"), picture)
            table.writerow((f"{name}.png", name, "test", "female"))
        cv2.imwrite(str(tmp_path / "nobody.png"), np.full((200, 200, 3), 90, np.uint8))
        table.writerow(("nobody.png", "nobody", "test", "female"))
        (tmp_path / "broken.png").write_bytes(b"no picture")
        table.writerow(("broken.png", "broken", "test", "female"))
    seen: list[str] = []

    def watch(items: Any, what: str) -> Any:
        seen.append(f"{len(items)} {what}")
        return items

    # When
    found = evaluation.evaluate(green, tmp_path, per_portrait=1, grid=False, facts=tmp_path / "facts.npz", watch=watch)
    # Then
    assert list(found["sets"]) == ["self_blended", "face_swap", "region", "warp"]
    assert all(values["n"] == 4 and 0 <= values["auc"] <= 1 for values in found["sets"].values())
    assert found["failed_faces"]["warp"] == {"no_face": 1, "refused": 1}
    assert found["gate"] == {"as it is": {"n": 2, "refused": {}}}
    assert seen == ["4 photographs", "4 faces made here"]
    again = evaluation.evaluate(green, tmp_path, per_portrait=1, grid=False, facts=tmp_path / "facts.npz")
    assert again == found
    # and where only one of them has a face, that is said before anything is made
    (tmp_path / "two.png").write_bytes(b"no picture")
    with pytest.raises(DatasetError, match="only one person in the split test"):
        evaluation.evaluate(green, tmp_path, facts=tmp_path / "facts.npz")
