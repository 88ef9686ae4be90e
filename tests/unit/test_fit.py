"""The trainer: a stopped run goes on bit for bit, batches are the same whoever makes them, and something is learnt."""

from __future__ import annotations

import csv
import hashlib
import json
import os
import signal
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from pipeline.training import checkpoint, crops, feeding, fit, kept_out, network, stepping, weights
from pipeline.training.averaging import Average, measure_norms
from pipeline.training.checkpoint import CheckpointError, Progress
from pipeline.training.datasets import DatasetError
from pipeline.training.devices import Rank
from pipeline.training.errors import TrainingError
from pipeline.training.examples import Recipe
from pipeline.training.feeding import Batch
from pipeline.training.network import preprocess
from pipeline.training.plan import Plan
from pipeline.training.trainer import Trainer

tensorflow = [
    pytest.mark.tensorflow,
    # Keras 2.15 draws its seeds by random.randint(1, 1e9)
    pytest.mark.filterwarnings("ignore:non-integer arguments to randrange:DeprecationWarning"),
]
SIZE = 32
PLAN = Plan(stages=((16, 0.4, 0.003), (SIZE, 0.6, 0.002)), steps=20, pairs=4, look=4)


@dataclass
class Toned:
    """Batches in which fakes are greener than reals: learnt in a few steps."""

    size: int

    def batch(self, number: int) -> Batch:
        rng = np.random.default_rng((9, number))
        crops = rng.integers(60, 200, (8, self.size, self.size, 3), dtype=np.uint8)
        crops[4:, ..., 1] += 40
        small = feeding.mask_side(self.size)
        mask = np.concatenate([np.zeros((4, small, small)), np.ones((4, small, small))]).astype(np.float32)
        return Batch(crops, np.repeat(np.array([0, 1], np.float32), 4), mask, np.ones(8, np.float32))


def _small(size: int, dropout: float, mask: bool) -> Any:
    """The shape of the network at a thousandth of its cost: convolution, batch norm, dropout, both outputs."""
    from tensorflow import keras

    x = given = keras.Input((size, size, 3))
    x = keras.layers.Conv2D(6, 3, 16, "same", name="conv1_conv")(x)
    x = keras.layers.ReLU()(keras.layers.BatchNormalization(name="conv1_bn")(x))
    pooled = keras.layers.Dropout(dropout)(keras.layers.GlobalAveragePooling2D()(x))
    logit = keras.layers.Dense(1, name="logit", dtype="float32")(pooled)
    return keras.Model(given, [logit, keras.layers.Conv2D(1, 1, name="mask", dtype="float32")(x)] if mask else logit)


def _trainer(folder: Path, plan: Plan = PLAN, *, stop_after: int = 10**9, tell: Callable[[Any], None] = lambda line: None) -> Trainer:
    """A trainer that is asked to stop after so many steps of this run."""
    asked = iter(range(1, 10**9))
    sets = {"warp": (Toned(SIZE).batch(10**6).crops, np.repeat([False, True], 4))}

    def batches(stage: int, numbers: Any) -> Iterator[Batch]:
        return feeding.stream(Toned(plan.stages[stage][0]), numbers, 0)

    def validation(stage: int) -> Any:
        size = plan.stages[stage][0]
        return {kind: (crops[:, :size, :size], fake) for kind, (crops, fake) in sets.items()}

    return Trainer(plan, folder, _small, batches, validation, tell, lambda: next(asked) >= stop_after)


def _without_clock(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{key: value for key, value in row.items() if key not in ("seconds", "images_per_s")} for row in rows]


class TestTrainer:
    pytestmark = tensorflow

    @pytest.mark.parametrize(
        "change",
        [
            {"optimizer": "adamw"},
            {"optimizer": "adamw", "average": 0.9},
            {"optimizer": "adamw", "policy": "mixed_bfloat16"},
            {"optimizer": "adamw", "sam": 0.05},
            {"optimizer": "lars", "trust": 0.1},
            {"optimizer": "sgd"},
        ],
        ids=lambda change: " ".join(str(value) for value in change.values()),
    )
    def test_a_run_stopped_twice_ends_with_the_very_weights_of_one_that_was_not(self, tmp_path: Path, change: dict[str, Any]) -> None:
        pytest.importorskip("tensorflow")
        plan = replace(PLAN, **change)
        assert _trainer(tmp_path / "straight", plan).run()
        # stopped in the first stage right at a look, and again in the second between two
        assert not _trainer(tmp_path / "broken", plan, stop_after=4).run()
        assert not _trainer(tmp_path / "broken", plan, stop_after=10).run()
        assert _trainer(tmp_path / "broken", plan).run()
        straight, broken = (checkpoint.load(tmp_path / name, _trainer(tmp_path, plan).key) for name in ("straight", "broken"))
        assert straight is not None
        assert broken is not None
        assert (straight[0].step, straight[0].stage, straight[0].seen) == (12, 1, 160)
        for part in ("weights", "state"):
            assert len(straight[1][part]) == len(broken[1][part]) > 0
            for one, other in zip(straight[1][part], broken[1][part], strict=True):
                np.testing.assert_array_equal(one, other)
        assert _without_clock(straight[0].curve) == _without_clock(broken[0].curve)
        assert (tmp_path / "straight/weights.h5").read_bytes() == (tmp_path / "broken/weights.h5").read_bytes()

    def test_the_average_is_looked_at_and_kept_and_training_goes_on_without_it(self, tmp_path: Path) -> None:
        pytest.importorskip("tensorflow")
        model = _small(SIZE, 0.0, False)
        average, rng, kept = Average(model, 0.9), np.random.default_rng(3), 0.0
        wanted = [np.array(weight) for weight in model.get_weights()]
        for step in range(1, 101):
            model.set_weights([rng.standard_normal(weight.shape) for weight in wanted])
            average.update()
            kept = min(0.9, (1 + step) / (10 + step))
            wanted = [kept * mean + (1 - kept) * weight for mean, weight in zip(wanted, model.get_weights(), strict=True)]
        assert kept == 0.9
        own = model.get_weights()
        with average.in_place():
            for mean, weight in zip(wanted, model.get_weights(), strict=True):
                np.testing.assert_allclose(weight, mean, atol=1e-5)
        for before, after in zip(own, model.get_weights(), strict=True):
            np.testing.assert_array_equal(before, after)

        assert _trainer(tmp_path / "average", replace(PLAN, average=0.9)).run()
        assert _trainer(tmp_path / "last", PLAN).run()
        curves = [
            checkpoint.load(tmp_path / name, _trainer(tmp_path, plan).key)
            for name, plan in (("average", replace(PLAN, average=0.9)), ("last", PLAN))
        ]
        first, second = ([row["loss"] for row in found[0].curve[:2]] for found in curves if found)
        assert first == second, "in the first stage both take the same steps"
        assert (tmp_path / "average/weights.h5").read_bytes() != (tmp_path / "last/weights.h5").read_bytes()

    def test_the_norms_statistics_are_those_of_the_weights_that_are_kept(self, tmp_path: Path) -> None:
        keras = pytest.importorskip("tensorflow").keras
        model = _small(SIZE, 0.0, False)
        batches = [Toned(SIZE).batch(number).crops for number in range(3)]
        seen = keras.Model(model.input, model.get_layer("conv1_conv").output)
        means = [np.asarray(seen(preprocess(crops))).mean(axis=(0, 1, 2)) for crops in batches]
        norm = model.get_layer("conv1_bn")
        momentum, trained = norm.momentum, [np.array(weight) for weight in model.trainable_weights]
        measure_norms(model, batches)
        np.testing.assert_allclose(norm.moving_mean, np.mean(means, axis=0), rtol=1e-4, atol=1e-6)
        assert norm.momentum == momentum
        for before, after in zip(trained, model.trainable_weights, strict=True):
            np.testing.assert_array_equal(before, after)

        for norms in (0, 2):
            assert _trainer(tmp_path / str(norms), replace(PLAN, norms=norms)).run()
        left, measured = (weights.read(tmp_path / norms / "weights.h5") for norms in ("0", "2"))
        assert not np.array_equal(left["conv1_bn"][2], measured["conv1_bn"][2]), "mean"
        np.testing.assert_array_equal(left["conv1_conv"][0], measured["conv1_conv"][0])

    def test_a_checkpoint_waits_until_it_is_said_to_be_stored(self, tmp_path: Path) -> None:
        pytest.importorskip("tensorflow")
        told: list[dict[str, Any]] = []
        waited: dict[int, int] = {}
        trainer = _trainer(tmp_path, tell=told.append)

        def asked() -> bool:
            if told and told[-1]["event"] == "checkpoint":
                number = len([line for line in told if line["event"] == "checkpoint"])
                waited[number] = waited.get(number, 0) + 1
                checkpoint.acknowledge(tmp_path, told[-1]["stage"], told[-1]["step"] - (waited[number] < 20))
            return False

        trainer.stopping, trainer.hold_s = asked, 600.0
        assert trainer.run()
        assert len(waited) == 5
        assert min(waited.values()) >= 20, "the word about an earlier step is not enough, and steps alone ask four times"

    def test_where_nobody_says_so_it_goes_on_after_a_while(self, tmp_path: Path) -> None:
        pytest.importorskip("tensorflow")
        trainer = _trainer(tmp_path)
        trainer.hold_s = 0.01
        assert trainer.run()

    def test_it_learns_and_its_best_weights_are_kept(self, tmp_path: Path) -> None:
        pytest.importorskip("tensorflow")
        told: list[dict[str, Any]] = []
        plan = replace(PLAN, steps=80, stages=((SIZE, 1.0, 0.02),), dropout=0.0)
        assert _trainer(tmp_path, plan, tell=told.append).run()
        looks = [line for line in told if line["event"] == "look"]
        assert looks[-1]["auc_warp"] == 1.0
        assert looks[-1]["loss"] < looks[0]["loss"] / 2
        assert told[-1]["event"] == "done"
        assert {"step", "steps", "images_per_s", "eta_s", "rate"} <= set(looks[0])

    def test_it_ends_early_when_the_held_out_kind_stops_improving(self, tmp_path: Path) -> None:
        pytest.importorskip("tensorflow")
        told: list[dict[str, Any]] = []
        plan = replace(PLAN, steps=400, stages=((SIZE, 1.0, 0.02),), patience=3)
        assert _trainer(tmp_path, plan, tell=told.append).run()
        assert told[-1]["seen"] < 400 * 8
        held = [line["auc_warp"] for line in told if line["event"] == "look"]
        assert held.index(max(held)) == len(held) - 1 - 3

    @pytest.mark.parametrize("average", [0.0, 0.9])
    def test_what_ended_early_is_not_trained_any_further(self, tmp_path: Path, average: float) -> None:
        pytest.importorskip("tensorflow")
        told: list[dict[str, Any]] = []
        plan = replace(PLAN, steps=200, stages=((SIZE, 1.0, 0.02),), patience=1, average=average)
        assert _trainer(tmp_path, plan).run()
        left = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
        (tmp_path / "weights.h5").unlink()  # as if it had been killed right before it wrote them

        assert _trainer(tmp_path, plan, stop_after=1, tell=told.append).run()

        assert [line["event"] for line in told] == ["device", "done"]
        assert told[-1]["seen"] < 200 * 8
        assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == left
        found = checkpoint.load(tmp_path, _trainer(tmp_path, plan).key)
        assert found is not None
        assert found[0].lengths == [found[0].step]

    def test_hours_become_steps_once_and_are_kept(self, tmp_path: Path) -> None:
        pytest.importorskip("tensorflow")
        plan = replace(PLAN, steps=0, hours=1e-4, stages=((SIZE, 1.0, 0.01),))
        assert not _trainer(tmp_path, plan, stop_after=1).run()
        found = checkpoint.load(tmp_path, _trainer(tmp_path, plan).key)
        assert found is not None
        length = found[0].lengths
        assert length[0] > 1
        assert _trainer(tmp_path, plan).run()
        again = checkpoint.load(tmp_path, _trainer(tmp_path, plan).key)
        assert again is not None
        assert (again[0].lengths, again[0].step) == (length, length[0])

    def test_a_loss_that_is_not_a_number_ends_it_with_a_sentence(self, tmp_path: Path) -> None:
        pytest.importorskip("tensorflow")
        with pytest.raises(TrainingError, match="lower the learning rate"):
            _trainer(tmp_path, replace(PLAN, optimizer="sgd", clip=0.0, stages=((SIZE, 1.0, 1e30),))).run()

    @pytest.mark.parametrize("change", [{"sam": 0.05}, {"policy": "mixed_bfloat16"}, {"mask_weight": 0.0}])
    def test_variants_run(self, tmp_path: Path, change: dict[str, Any]) -> None:
        pytest.importorskip("tensorflow")
        assert _trainer(tmp_path, replace(PLAN, steps=4, look=2, **change)).run()
        assert (tmp_path / "weights.h5").exists()


@pytest.mark.tensorflow
@pytest.mark.parametrize("clip", [0.0, 0.05])
def test_a_sharpness_aware_step_goes_down_from_where_it_was_by_the_slope_farther_up(clip: float) -> None:
    """One logit over three numbers, whose gradients NumPy can take: w - rate g(w + rho g(w) / |g(w)|)."""
    keras = pytest.importorskip("tensorflow").keras
    rng = np.random.default_rng(5)
    crops = rng.integers(0, 256, (8, 1, 1, 3), dtype=np.uint8)
    fake = np.repeat(np.array([0, 1], np.float32), 4)
    rho, rate, smoothing = 0.7, 0.5, 0.1
    given = keras.Input((1, 1, 3))
    model = keras.Model(given, keras.layers.Dense(1)(keras.layers.Flatten()(given)))
    weights = np.array([0.3, -0.2, 0.5, 0.1])  # the last is the bias
    model.set_weights([weights[:3, None], weights[3:]])

    def losses_and_slope(at: Any) -> tuple[Any, Any]:
        x = np.column_stack([crops.reshape(8, 3) / 127.5 - 1, np.ones(8)])
        wanted, score = fake * (1 - 2 * smoothing) + smoothing, 1 / (1 + np.exp(-(x @ at)))
        return -(wanted * np.log(score) + (1 - wanted) * np.log(1 - score)), x.T @ (score - wanted) / 8

    before, slope = losses_and_slope(weights)
    _, sharp = losses_and_slope(weights + rho * slope / np.linalg.norm(slope))
    assert np.linalg.norm(sharp - slope) > 0.05, "a step that is not sharpness-aware is another"
    if clip:
        assert np.linalg.norm(sharp) > clip
        sharp = sharp * clip / np.linalg.norm(sharp)

    plan = Plan(stages=(), sam=rho, clip=clip, mask_weight=0.0, smoothing=smoothing)
    step = stepping.compiled(model, keras.optimizers.SGD(rate), plan, Rank())
    loss = step(crops, fake, np.zeros((8, 1, 1), np.float32), np.ones(8, np.float32))

    assert float(loss) == pytest.approx(before.mean(), rel=1e-5)
    found = np.concatenate([np.ravel(weight) for weight in model.get_weights()])
    np.testing.assert_allclose(found, weights - rate * sharp, atol=1e-5)


def test_a_checkpoint_of_another_training_is_refused(tmp_path: Path) -> None:
    checkpoint.save(tmp_path, Progress("one"), {"weights": [np.ones(3)]})
    with pytest.raises(CheckpointError, match="other settings"):
        checkpoint.load(tmp_path, "two")


def test_a_damaged_checkpoint_is_one_sentence(tmp_path: Path) -> None:
    checkpoint.save(tmp_path, Progress("one"), {"weights": [np.ones(3)]})
    whole = (tmp_path / checkpoint.FILE).read_bytes()
    (tmp_path / checkpoint.FILE).write_bytes(whole[: len(whole) // 2])
    with pytest.raises(CheckpointError, match="cannot be read"):
        checkpoint.load(tmp_path, "one")


def test_a_checkpoint_comes_back_in_order(tmp_path: Path) -> None:
    arrays = [np.full(2, k, np.float32) for k in range(12)]
    checkpoint.save(tmp_path, Progress("one", step=7, curve=[{"loss": 0.5}]), {"weights": arrays, "state": [np.int64(3)]})
    found = checkpoint.load(tmp_path, "one")
    assert found is not None
    assert (found[0].step, found[0].curve) == (7, [{"loss": 0.5}])
    assert [int(a[0]) for a in found[1]["weights"]] == list(range(12))
    assert [path.name for path in tmp_path.iterdir()] == [checkpoint.FILE]


@dataclass
class Numbered:
    """Batches that say their number; one of them fails."""

    broken: int = -1

    def batch(self, number: int) -> Batch:
        if number == self.broken:
            raise ValueError(f"batch {number} is broken")
        return Batch(np.full((2, 1, 1, 3), number, np.uint8), *(np.zeros(2, np.float32),) * 3)


def test_processes_give_batches_in_order_and_their_errors() -> None:
    found = [int(batch.crops[0, 0, 0, 0]) for batch in feeding.stream(Numbered(), range(3, 15), makers=2)]
    assert found == list(range(3, 15))
    with pytest.raises(ValueError, match="batch 4 is broken"):
        list(feeding.stream(Numbered(broken=4), range(8), makers=1))


def test_a_stage_needs_size_share_and_rate(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        fit.parse(["--faces", "x", "--out", "y", "--steps", "3", "--stages", "96:1"])
    assert "size:share:rate" in capsys.readouterr().err


def test_a_preset_yields_to_what_is_given() -> None:
    chosen = fit.parse(["--faces", "x", "--out", "y", "--steps", "3", "--preset", "lars-imagenet", "--pairs", "8"])
    assert (chosen.optimizer, chosen.pairs, chosen.smoothing) == ("lars", 8, 0.1)


@pytest.fixture(scope="module")
def people(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with faces.csv: one portrait, and its mirror image as another person, for training and again for validation."""
    data = pytest.importorskip("skimage.data")
    folder = tmp_path_factory.mktemp("people")
    portrait = data.astronaut()[..., ::-1]
    with (folder / "faces.csv").open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(("path", "identity", "split"))
        for k, picture in enumerate((portrait, portrait[:, ::-1], portrait[:400], portrait[:400, ::-1])):
            cv2.imwrite(str(folder / f"{k}.png"), picture)
            table.writerow((f"{k}.png", f"person{k}", "train" if k < 2 else "val"))
    return folder


def test_batches_are_the_same_whoever_makes_them(people: Path, tmp_path: Path) -> None:
    made = feeding.Made(people, tmp_path / "facts.npz", seed=3, recipe=Recipe(size=48, smallest=32), pairs=2)
    here = list(feeding.stream(made, range(5, 8), makers=0))
    there = list(feeding.stream(made, range(5, 8), makers=2))
    for one, other in zip(here, there, strict=True):
        for part, same in zip(one, other, strict=True):
            np.testing.assert_array_equal(part, same)
    assert here[0].crops.shape == (4, 48, 48, 3)
    assert here[0].mask.shape == (4, 3, 3)
    assert not here[0].mask[:2].any()
    assert here[0].mask[2:].any()
    assert not np.array_equal(here[0].crops, here[1].crops)


def test_the_shares_of_the_ranks_are_the_batch(people: Path, tmp_path: Path) -> None:
    made = feeding.Made(people, tmp_path / "facts.npz", seed=3, recipe=Recipe(size=48, smallest=32), pairs=4)
    whole = made.batch(7)
    shares = [replace(made, rank=rank, world=2).batch(7) for rank in range(2)]
    for k, part in enumerate(whole):
        # the reals of both ranks, then the fakes of both
        halves = [(share[k][:2], share[k][2:]) for share in shares]
        np.testing.assert_array_equal(part, np.concatenate([half[0] for half in halves] + [half[1] for half in halves]))


def test_ranks_must_share_a_batch_evenly(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        fit.parse(["--faces", "x", "--out", "y", "--steps", "3", "--pairs", "6", "--ranks", "4"])
    assert "cannot be shared evenly" in capsys.readouterr().err


def test_going_on_from_nothing_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert fit.main(["--faces", "x", "--out", str(tmp_path), "--steps", "3", "--resume"]) == 2
    assert "no checkpoint.npz" in capsys.readouterr().err


def test_lines_of_progress_are_appended_to_a_file(tmp_path: Path) -> None:
    for number in range(2):
        with fit.Progress(tmp_path / "progress.jsonl") as progress:
            progress.tell({"event": "step", "step": number})
    assert [json.loads(line)["step"] for line in (tmp_path / "progress.jsonl").read_text().splitlines()] == [0, 1]


@pytest.fixture
def others(people: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two reals and two fakes of others, all to train on."""
    for k, side in enumerate(("real", "real", "fake", "fake")):
        place = tmp_path / "data" / side
        place.mkdir(parents=True, exist_ok=True)
        (place / f"{k}.png").write_bytes((people / f"{k % 2}.png").read_bytes())
    monkeypatch.setattr(feeding.datasets, "split_by_identity", lambda records, seed: [replace(r, split="train") for r in records])
    return tmp_path / "data"


def test_whatever_takes_long_before_the_first_step_is_told(
    people: Path, others: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def begin(*_: Any, **__: Any) -> None:
        raise TrainingError("all is prepared")

    monkeypatch.setattr(fit, "SAY_S", 0.0)
    monkeypatch.setattr(fit.devices, "check", lambda *_, **__: None)
    monkeypatch.setattr(fit.devices, "begin", begin)
    told = tmp_path / "progress.jsonl"
    words = ["--faces", str(people), "--data", str(others), "--out", str(tmp_path / "out"), "--progress", str(told), "--steps", "1"]

    with pytest.raises(TrainingError, match="all is prepared"):
        fit.train(fit.parse(words), threading.Event())

    lines = [json.loads(line) for line in told.read_text().splitlines()]
    assert {line["event"] for line in lines} == {"preparing"}
    assert Counter(line["what"] for line in lines) == {"faces": 4, "hashes": 4 + 2, "crops": 4}, "the data's, and those it must not share"
    assert lines[-1]["done"] == 4
    made = feeding.Made(
        people,
        tmp_path / "out/faces.npz",
        seed=3,
        recipe=Recipe(size=48, smallest=32),
        pairs=4,
        data=others,
        cache=tmp_path / "out/crops",
        records=feeding.training_records(others),
    )
    monkeypatch.setattr(feeding, "training_records", lambda data: pytest.fail("they were hashed again"))
    monkeypatch.setattr(crops, "cut_record", lambda *_, **__: pytest.fail("they were cut again"))
    assert made.batch(0).crops.shape == (8, 48, 48, 3)


def _listed(path: Path, *rows: tuple[Any, ...]) -> Path:
    """A manifest of (picture, label, identity, split)."""
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([("path", "label", "identity", "split"), *rows])
    return path


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ([("0.png", "real", "", "train"), ("1.png", "fake", "", "val")], "1 faces of reals and 0 of fakes"),
        ([("0.png", "real", "", "test"), ("1.png", "fake", "", "train")], "0 faces of reals and 1 of fakes"),
        ([("0.png", "real", "", "val"), ("1.png", "fake", "", "val")], "0 faces of reals and 0 of fakes"),
        ([("0.png", "real", "", "train"), ("2.png", "fake", "", "train")], "has 1 picture of the splits val and test"),
    ],
)
def test_data_that_cannot_be_trained_on_is_one_sentence_before_the_first_step(
    people: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], rows: Any, said: str
) -> None:
    monkeypatch.setattr(fit.devices, "check", lambda *_, **__: None)
    monkeypatch.setattr(fit.devices, "begin", lambda *_, **__: pytest.fail("it went on to train"))
    data = _listed(tmp_path / "data.csv", *((people / name, *rest) for name, *rest in rows))
    words = ["--faces", str(people), "--facts", str(people / "faces.npz"), "--data", str(data), "--out", str(tmp_path / "out")]

    assert fit.main([*words, "--steps", "1"]) == 2

    assert said in capsys.readouterr().err


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
    records = feeding.training_records(_listed(tmp_path / "data.csv", *rows))
    with pytest.raises(DatasetError, match=f"has {said}"):
        kept_out.refuse(judged, tmp_path / "data.csv", records)


def test_a_frame_may_be_a_photograph_that_judges(judged: Path, tmp_path: Path) -> None:
    (tmp_path / "frames").mkdir()
    for name, content in (("0.png", b"picture of eve"), ("1.png", b"picture of bob")):
        (tmp_path / "frames" / name).write_bytes(content)
    records = feeding.training_records(_listed(tmp_path / "data.csv", ("frames", "real", "zoe", "train")))
    with pytest.raises(DatasetError, match=r"1 picture of .* such as 1\.png:"):
        kept_out.refuse(judged, tmp_path / "data.csv", records)


def test_who_is_trained_on_may_be_in_both_and_who_judges_in_splits_that_are_not(judged: Path, tmp_path: Path) -> None:
    rows = []
    for k, (name, split) in enumerate((("ann", "train"), ("eve", "train"), ("bob", "val"), ("cid+dan", "test"))):
        (tmp_path / f"{k}.png").write_bytes(f"picture of {name}".encode())
        rows.append((f"{k}.png", "real", name, split))
    records = feeding.training_records(_listed(tmp_path / "data.csv", *rows))
    assert len(records) == 2
    kept_out.refuse(judged, tmp_path / "data.csv", records)


@pytest.fixture(scope="module")
def trained(people: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a training of two stages with a small network, from given weights, on faces of others as well."""
    pytest.importorskip("tensorflow")
    folder = tmp_path_factory.mktemp("trained")
    (folder / "start.h5").write_bytes(b"weights")
    rows = [(people / f"{k % 2}.png", ("real", "fake")[k // 2], "", "train") for k in range(4)]
    data = _listed(folder / "data.csv", *rows)
    words = ["--faces", str(people), "--facts", str(people / "faces.npz"), "--data", str(data), "--data-share", "1", "--out", str(folder)]
    words += ["--weights", str(folder / "start.h5"), "--stages", "32:.5:.001,244:.5:.001", "--steps", "2", "--pairs", "2", "--makers", "0"]
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(fit.devices, "begin", lambda *_, **__: Rank())
        patched.setattr(network, "build", lambda size, *, dropout, mask_head, weights: _small(size, dropout, mask_head))
        assert fit.train(fit.parse([*words, "--strength", ".25"]), threading.Event())
    return folder


@pytest.mark.tensorflow
@pytest.mark.filterwarnings("ignore:non-integer arguments to randrange:DeprecationWarning")
def test_the_account_says_what_it_began_with_and_what_pairs_were_made_of(trained: Path) -> None:
    account = json.loads((trained / "training.json").read_text())
    assert account["start_sha256"] == hashlib.sha256(b"weights").hexdigest()
    assert account["recipe"] == asdict(Recipe(size=244, smallest=61, strength=0.25))
    assert len(account["other_data_sha256"]) == 64


@pytest.mark.tensorflow
@pytest.mark.filterwarnings("ignore:non-integer arguments to randrange:DeprecationWarning")
def test_faces_of_others_are_cut_once_as_large_as_the_largest_stage(trained: Path) -> None:
    (place,) = (trained / "crops").iterdir()
    assert np.load(place / "00000.npy").shape == (4, 244, 244, 3)


def test_of_what_is_gone_through_only_so_much_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    now, told = [0.0], list[dict[str, Any]]()
    monkeypatch.setattr(fit.time, "monotonic", lambda: now[0])
    for number in fit.Preparing(told.append, "faces")(range(100)):
        now[0] = float(number)
    assert [line["done"] for line in told] == list(range(1, 101, 5))


def test_other_peoples_fakes_are_mixed_in(people: Path, others: Path, tmp_path: Path) -> None:
    made = feeding.Made(
        people,
        tmp_path / "facts.npz",
        seed=3,
        recipe=Recipe(size=48, smallest=32),
        pairs=4,
        data=others,
        share=0.5,
        cache=tmp_path / "cache",
    )
    masked = np.concatenate([made.batch(k).masked[4:] for k in range(8)])
    assert 0.2 < masked.mean() < 0.8
    assert made.batch(0).crops.shape == (8, 48, 48, 3)


@pytest.mark.tensorflow
@pytest.mark.timeout(240)
def test_the_command_trains_the_real_network_and_resumes_after_sigterm(people: Path, tmp_path: Path) -> None:
    """The whole command, with a network of 32 px: stopped by SIGTERM after its first step, and started again."""
    pytest.importorskip("tensorflow")
    command = [sys.executable, "-m", "pipeline.training.fit", "--faces", str(people), "--out", str(tmp_path), "--steps", "4"]
    command += ["--stages", "32:1:.001", "--pairs", "2", "--makers", "1", "--look", "2"]
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": "", "TF_CPP_MIN_LOG_LEVEL": "3"}
    first = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)
    assert first.stdout is not None
    said = (json.loads(line) for line in first.stdout)
    line = next(line for line in said if line["event"] not in ("preparing", "device"))
    first.send_signal(signal.SIGTERM)
    first.communicate()
    assert line["event"] in ("step", "look")
    assert first.returncode in (fit.STOPPED, 0)  # 0: it was through before the signal came
    second = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert second.returncode == 0, second.stderr
    account = json.loads((tmp_path / "training.json").read_text())
    assert account["images"] == 16
    assert account["plan"]["steps"] == 4
    assert len(account["manifest_sha256"]) == 64
    assert account["start_sha256"] is None
    assert (tmp_path / "weights.h5").stat().st_size < 50_000_000
    assert cv2.imread(str(tmp_path / "curve.png")) is not None
    assert [row["step"] for row in json.loads((tmp_path / "curve.json").read_text())] == [2, 4]
