"""A model version made from weights, without TensorFlow: calibrated, exported, measured, and taken by serving."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from pipeline.card import Thresholds, verify
from pipeline.classification import load
from pipeline.training import calibration, export, figures, release, report, weights
from pipeline.training.figures import CLEAN, GRID, Scored
from pipeline.training.graph import STAGES
from pipeline.training.weights import Named
from tests.unit.test_export import smooth_crops


def random_weights(seed: int = 1) -> Named:
    """ResNet50 with random weights of plausible size, in half precision's numbers."""
    rng = np.random.default_rng(seed)
    named: Named = {}

    def layer(name: str, norm: str, size: int, inside: int, outside: int) -> None:
        kernel = rng.normal(0, (2 / (size * size * inside)) ** 0.5, (size, size, inside, outside))
        named[name] = [kernel.astype(np.float16).astype(np.float32), np.zeros(outside, np.float32)]
        gain = 0.3 if norm.endswith("_3_bn") else 1.0
        named[norm] = [np.full(outside, v, np.float32) for v in (gain, 0.0, 0.0, 1.0)]

    layer("conv1_conv", "conv1_bn", 7, 3, 64)
    inside = 64
    for number, blocks, _ in STAGES:
        width = 2 ** (number + 4)
        for index in range(1, blocks + 1):
            block = f"conv{number}_block{index}"
            shapes = [(1, 1, inside, width), (2, 3, width, width), (3, 1, width, 4 * width)]
            for part, size, a, b in shapes + ([(0, 1, inside, 4 * width)] if index == 1 else []):
                layer(f"{block}_{part}_conv", f"{block}_{part}_bn", size, a, b)
            inside = 4 * width
    named["logit"] = [rng.normal(0, 0.02, (2048, 1)).astype(np.float16).astype(np.float32), np.zeros(1, np.float32)]
    return named


@pytest.fixture(scope="module")
def faces(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One portrait, cropped and mirrored into two people a split; to train on there is a third, and one of the three twice."""
    data = pytest.importorskip("skimage.data")
    folder = tmp_path_factory.mktemp("faces")
    portrait = data.astronaut()[..., ::-1]
    with (folder / "faces.csv").open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(("path", "identity", "split"))
        for k, split in enumerate(("train", "val", "test")):
            for mirrored in (False, True):
                name = f"{split}{'-mirrored' * mirrored}"
                picture = portrait[: 500 - 40 * k]
                cv2.imwrite(str(folder / f"{name}.png"), picture[:, ::-1] if mirrored else picture)
                table.writerow((f"{name}.png", name, split))
        for name, identity, picture in (("train-closer", "train", portrait[:480]), ("train-other", "other", portrait[:470, ::-1])):
            cv2.imwrite(str(folder / f"{name}.png"), picture)
            table.writerow((f"{name}.png", identity, "train"))
    return folder


@pytest.mark.timeout(180)
def test_weights_become_a_version_that_serving_takes(faces: Path, tmp_path: Path) -> None:
    # Given weights, and what the trainer said of itself
    weights.write(tmp_path / "w.h5", random_weights())
    told = {"seed": 7, "hours": 1.5, "command": "train", "code_version": "0.1", "recipe": {"margin": 0.21}}
    (tmp_path / "training.json").write_text(json.dumps(told))
    arguments = ["--weights", str(tmp_path / "w.h5"), "--faces", str(faces), "--out", str(tmp_path / "versions"), "--version", "1"]
    arguments += ["--size", "64", "--street", "8", "--no-grid", "--fold-bias", "--training", str(tmp_path / "training.json")]
    # When
    assert release.main(arguments) == 0
    # Then it is whole, and says how it was made and how good it is
    folder = tmp_path / "versions/unmask-resnet50/1"
    card = verify(folder)
    assert set(card.files) == {"weights.h5", "model.xml", "model.bin"}
    assert (card.seed, card.training["hours"], card.code_version) == (7, 1.5, "0.1")
    assert card.margin == 0.21, "faces are cut as they were in the training"
    assert set(card.metrics) == {"self_blended", "face_swap", "region", "warp"}
    found = json.loads((tmp_path / "versions/unmask-resnet50/1.evaluate.json").read_text())
    for name, of_set in card.metrics.items():
        assert of_set.model_dump()["coverage"] == found["sets"][name]["coverage"]
    assert card.model_dump()["failed_faces"] == {name: {} for name in card.metrics}
    assert "photographs of 3 people" in card.limits[0], "those it was trained on, and nobody else"
    assert "{" not in "".join(card.limits)
    assert card.thresholds.authentic_below <= card.thresholds.manipulated_from
    # and the bias went into the weights and the graph alike
    bias = json.loads((folder / "card.json").read_text())["calibration"]["bias_added"]
    assert weights.read(folder / "weights.h5")["logit"][1][0] == pytest.approx(bias)
    crops = np.random.default_rng(1).integers(0, 256, (2, 64, 64, 3), dtype=np.uint8)
    logits = load(folder, runtime="openvino", precision="f32").logits(crops)
    weights.write(tmp_path / "plain.h5", random_weights())
    plain = release.export.to_openvino(tmp_path / "plain.h5", tmp_path, input_size=64)
    np.testing.assert_allclose(logits, release.export.openvino_logits(plain, crops) + bias, atol=1e-4)
    assert found["model"]["sha256"] == card.files["model.bin"]


@pytest.fixture(scope="module")
def found() -> dict[str, Any]:
    """An evaluation's document of four sets under all conditions. Of 120 faces a set, women's fakes are found more easily."""
    rng = np.random.default_rng(1)
    fake = np.arange(120) % 2 == 1
    groups = tuple({"gender": ("female", "male")[k // 2 % 2], "ethnicity": f"group {k // 12}", "age": f"{k // 12}0s"} for k in range(120))

    def scored(noise: float) -> Scored:
        easy = np.array([0.4 if group["gender"] == "female" else 0.1 for group in groups])
        return Scored(np.clip(0.3 + easy * fake + rng.normal(0, noise, 120), 0, 1), fake, (), groups, {"no_face": 2})

    kinds = ("self_blended", "face_swap", "region", "warp")
    sets = {kind: {condition: scored(0.1 if condition == CLEAN else 0.4) for condition in (CLEAN, *GRID)} for kind in kinds}
    bounds = Thresholds(authentic_below=0.3, manipulated_from=0.6)
    return {
        "model": {"name": "x", "version": "1", "sha256": "", "precision": "f32"},
        "seed": 1,
        "split": "test",
        "manifest": "0" * 64,
        "thresholds": bounds.model_dump(),
        "weighting": "even",
        **figures.document(sets, bounds, seed=1),
    }


def test_a_card_keeps_all_that_was_measured_but_the_curves(found: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "model.bin").write_bytes(b"")
    card = release.write_card(
        tmp_path,
        name="x",
        version="1",
        created_at="2026-01-01T00:00:00Z",
        thresholds=found["thresholds"],
        limits=release.limits(99),
        **release.measured(found),
    )
    kept = json.loads((tmp_path / "card.json").read_text())
    assert kept["grid"]["jpeg"]["50"]["warp"] == pytest.approx(found["grid"]["jpeg"]["50"]["warp"]["auc_lost"], abs=1e-4)
    assert {kind: set(values) for kind, values in kept["grid"].items()} == {"jpeg": {"95", "75", "50"}, "size": {"160", "96", "64"}}
    women = kept["groups"]["gender"]["female"]
    assert women["n"] == found["groups"]["gender"]["female"]["n"]
    assert women["auc"]["warp"] == pytest.approx(found["groups"]["gender"]["female"]["auc"]["warp"], abs=1e-4)
    assert kept["failed_faces"] == {name: {"no_face": 2} for name in card.metrics}
    for name, values in kept["metrics"].items():
        assert {key: values[key] for key in release.KEPT} == {key: found["sets"][name][key] for key in release.KEPT}
        assert set(values) > {"tpr_at_1fpr_ci", "ece15_ci", "auc_lost_jpeg50_ci", "false_positive_rate_ci"}
        assert not {"roc", "reliability", "risk_coverage"} & set(values)
    assert (tmp_path / "card.json").stat().st_size < 20_000


def test_the_report_says_for_each_group_how_well_fakes_are_told(found: dict[str, Any], tmp_path: Path) -> None:
    page = report.write(found, tmp_path).read_text()
    women, men = (found["groups"]["gender"][value]["auc"] for value in ("female", "male"))
    assert women["face_swap"] > men["face_swap"] + 0.1
    titles = ("group", "n", "reals called fake", "over all", "AUC self blended", "AUC face swap", "AUC region", "AUC warp")
    assert "".join(f"<th>{title}</th>" for title in titles) in page
    for value, areas in (("female", women), ("male", men)):
        [row] = [line for line in page.split("<tr>") if line.startswith(f"<td>gender: {value}</td>")]
        assert row.count("<td>") == len(titles)
        assert "".join(f"<td>{area:.3f}</td>" for area in areas.values()) in row


def test_a_group_without_fakes_in_a_set_has_a_dash_there(found: dict[str, Any], tmp_path: Path) -> None:
    women = found["groups"]["gender"]["female"]
    lacking = {**women, "auc": {name: area for name, area in women["auc"].items() if name != "region"}}
    page = report.write({**found, "groups": {"gender": {"female": lacking}}}, tmp_path).read_text()
    [row] = [line for line in page.split("<tr>") if line.startswith("<td>gender: female</td>")]
    assert f"<td>{women['auc']['face_swap']:.3f}</td><td>–</td><td>{women['auc']['warp']:.3f}</td>" in row


@pytest.mark.tensorflow
def test_each_precision_is_measured_against_tensorflow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("tensorflow")
    # Given a version, and beside it an 8-bit graph that finds everything manipulated
    named = random_weights()
    weights.write(tmp_path / "weights.h5", named)
    export.to_openvino(tmp_path / "weights.h5", tmp_path, input_size=64)
    weights.write(tmp_path / "other.h5", release.with_bias(named, 9.0))
    export.to_openvino(tmp_path / "other.h5", tmp_path, input_size=64, name="model-int8")
    crops = smooth_crops(6)
    logits = export.openvino_logits(tmp_path / "model.xml", crops)
    low, high = calibration.scores(np.array([logits.max() + 0.5, logits.max() + 1.0]), 2.0)  # so all of them are authentic
    bounds = {"authentic_below": low, "manipulated_from": high}
    card = release.write_card(tmp_path, name="x", version="1", created_at="2026-01-01T00:00:00Z", thresholds=bounds, temperature=2.0)
    # When
    measured = release.compare(tmp_path, crops, card)
    # Then what is exact is found to be, and what is not is no default
    precisions = {"f32", "int8"} | ({"bf16"} if export.has_bf16() else set())
    assert set(measured) == {"default", "why", *precisions}
    assert all(measured[precision]["n"] == 6 for precision in precisions)
    assert (measured["f32"]["largest"] < 1e-4, measured["f32"]["flips"]) == (True, 0)
    assert (measured["int8"]["largest"] > 0.3, measured["int8"]["hard_flips"]) == (True, 6)
    assert (measured["default"], measured["why"]) == export.default_precision({p: measured[p] for p in precisions})
    assert measured["default"] != "int8"
    # and a processor that would take float32 instead measures no bf16
    monkeypatch.setattr(export, "has_bf16", lambda: False)
    monkeypatch.setattr(export, "keras_logits", lambda path, crops: logits)  # a second network would tell no more
    without = release.compare(tmp_path, crops, card)
    assert set(without) == {"default", "why", "f32", "int8"}
    assert without["default"] == "f32"


@pytest.mark.timeout(240)
def test_eight_bits_tell_crops_apart_as_float32_does(tmp_path: Path) -> None:
    """NNCF is in none of the environments: run it where there is one."""
    pytest.importorskip("nncf")
    # Given crops of many kinds: smooth, noisy, dark and light
    smooth, noisy = smooth_crops(40), np.random.default_rng(2).integers(0, 256, (40, 64, 64, 3), dtype=np.uint8)
    crops = np.concatenate([kind[k::4] for k, kind in enumerate((smooth, noisy, smooth // 4, 255 - noisy // 4))])
    weights.write(tmp_path / "weights.h5", random_weights())
    exact = export.to_openvino(tmp_path / "weights.h5", tmp_path, input_size=64)
    # When all but every fourth go into the quantisation
    measured = np.arange(len(crops)) % 4 > 0
    eight = export.to_int8(tmp_path / "weights.h5", tmp_path, crops[measured], input_size=64)
    # Then the others are scored by eight bits nearly as before
    reference, found = (export.openvino_logits(graph, crops[~measured]) for graph in (exact, eight))
    assert np.corrcoef(reference, found)[0, 1] > 0.7
    np.testing.assert_allclose(calibration.scores(found, 1.0), calibration.scores(reference, 1.0), rtol=0, atol=0.1)
    assert eight.with_suffix(".bin").stat().st_size < 0.6 * exact.with_suffix(".bin").stat().st_size


def test_a_card_says_whose_faces_a_network_was_trained_on() -> None:
    assert release.limits(7)[0].startswith("It has learnt from manipulations made out of photographs of 7 people by this project alone")
    assert release.limits(7, others=True)[0].startswith("Beside labelled faces of others, it has learnt from manipulations made")


def test_missing_weights_are_one_sentence(faces: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "empty").mkdir()
    arguments = ["--weights", str(tmp_path / "empty"), "--faces", str(faces), "--out", str(tmp_path), "--version", "1"]
    assert release.main(arguments) == 2
    assert capsys.readouterr().err.strip() == "The folder holds no weights*.npz."


@pytest.mark.parametrize(
    ("option", "value", "sentence"),
    [
        ("--version", "../1", "'../1' is not a plain name: letters, digits, dots, dashes and underscores"),
        ("--name", "", "'' is not a plain name: letters, digits, dots, dashes and underscores"),
        ("--size", "16", "--size must be 32 to 2048, not 16"),
        ("--margin", "nan", "--margin must be 0 to 2, not nan"),
        ("--target-fpr", "2", "--target-fpr must be 0 to 1, not 2.0"),
        ("--missed", "-0.1", "--missed must be 0 to 1, not -0.1"),
        ("--street", "-1", "--street must be 0 to 1000000, not -1"),
        ("--seed", "-1", "--seed must be 0 to 4294967295, not -1"),
    ],
)
def test_settings_that_cannot_be_are_refused_before_anything_is_done(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], option: str, value: str, sentence: str
) -> None:
    arguments = ["--weights", "none.h5", "--faces", str(tmp_path), "--out", str(tmp_path / "out"), "--version", "1", f"{option}={value}"]
    with pytest.raises(SystemExit) as ended:
        release.main(arguments)
    assert ended.value.code == 2
    assert capsys.readouterr().err.rstrip().endswith(f"error: {sentence}")
    assert not any(tmp_path.iterdir())


def a_logit(path: Path) -> None:
    weights.write(path, {"logit": [np.zeros((2, 2), np.float32), np.zeros(2, np.float32)]})


@pytest.mark.parametrize(
    ("what", "sentence"),
    [
        ("no training", "{}/training.json cannot be used: No such file or directory."),
        ("training is no JSON", "{}/training.json is not the training.json of a trainer: it is not JSON."),
        ("training is a list", "{}/training.json is not the training.json of a trainer: it holds no object."),
        ("no index", "{}/faces/faces.csv"),
        ("a broken photograph", "The photograph {}/faces/a.jpg cannot be used: "),
        ("out is a file", "{}/out"),
        ("a damaged part", "{}/weights-0.npz is not a part of weights as the PyTorch port writes them."),
        ("a part of something else", "{}/weights-0.npz is not a part of weights as the PyTorch port writes them."),
        ("other shapes", "are of another network than this ResNet50: their shapes do not fit."),
    ],
)
def test_what_cannot_be_used_is_one_sentence(
    faces: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], what: str, sentence: str
) -> None:
    # Given all that is needed, one thing of it wrong
    given = {"weights": tmp_path / "w.h5", "faces": faces, "out": tmp_path / "out"}
    a_logit(given["weights"])
    if "training" in what:
        given["training"] = tmp_path / "training.json"
        if what != "no training":
            given["training"].write_text("[1]" if what == "training is a list" else "seed 1")
    elif "part" in what:
        given["weights"] = tmp_path / "weights-0.npz"
        if what == "a damaged part":
            given["weights"].write_bytes(b"PK\x03\x04 and no more")
        else:
            np.savez(given["weights"], logit=np.zeros(2))
    elif what in ("no index", "a broken photograph"):
        given["faces"] = tmp_path / "faces"
        given["faces"].mkdir()
        if what == "a broken photograph":
            (given["faces"] / "a.jpg").write_bytes(b"\xff\xd8\xff\xe0 and no more")
            (given["faces"] / "faces.csv").write_text("path,identity,split\na.jpg,a,val\n")
    elif what == "out is a file":
        given["out"].write_text("")
    elif what == "other shapes":
        named = random_weights()
        named["conv1_conv"] = [np.zeros((7, 7, 4, 64), np.float32), np.zeros(64, np.float32)]
        weights.write(given["weights"], named)
    # When
    arguments = [word for name, path in given.items() for word in (f"--{name}", str(path))]
    code = release.main([*arguments, "--version", "1", "--size", "64"])
    # Then
    said = capsys.readouterr().err.strip()
    assert code == 2
    assert sentence.format(tmp_path) in said
    assert len(said.splitlines()) == 1


def test_whose_photograph_a_street_is_of_is_known(faces: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    people, taken = release.portraits.load(faces, "val"), []
    staged = release.examples._staged
    monkeypatch.setattr(release.examples, "_staged", lambda portrait, *rest: (taken.append(portrait.identity), staged(portrait, *rest))[1])
    for index in range(6):
        release.examples.pair(people, index, 4, release.Recipe(size=64, smallest=32))
    assert taken == [release._whose(people, index, 4) for index in range(6)]
    assert len(set(taken)) == 2


def test_thresholds_hold_the_target_on_everything_they_were_measured_on(faces: Path) -> None:
    """A stand-in for a model: its logit is the crop's mean of green minus red, which the street changes."""
    seen: list[Any] = []

    def run(crops: Any) -> Any:
        seen.append(len(crops))
        return ((crops[..., 1].astype(float) - crops[..., 0]).mean(axis=(1, 2)) / 8).astype(np.float32)

    people = release.portraits.load(faces, "val")
    recipe = release.Recipe(size=64, smallest=32)
    temperature, bias, bounds, how = release.calibrate(run, people, recipe, seed=1, target_fpr=0.1, street=40)
    assert bias == 0
    assert how["reals_everywhere"] > how["reals"] + 40
    assert (how["identities"], how["photographs"]) == (2, 2)
    assert how["by_person"]["people"] == 2
    assert 0 <= how["by_person"]["false_positive_rate"] <= 0.3
    assert calibration.COLDEST <= temperature <= calibration.HOTTEST
    assert 0 < bounds.authentic_below <= bounds.manipulated_from < 1
