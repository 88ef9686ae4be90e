"""The trainer: a stopped run goes on bit for bit, and something is learnt."""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline.training import checkpoint, feeding, stepping, weights
from pipeline.training.averaging import Average, measure_norms
from pipeline.training.devices import Rank
from pipeline.training.errors import TrainingError
from pipeline.training.feeding import Batch
from pipeline.training.network import preprocess
from pipeline.training.plan import Plan
from pipeline.training.trainer import Trainer
from tests.fixtures.small_trainer import small

tensorflow = [
    pytest.mark.tensorflow,
    # Keras 2.15 draws its seeds by random.randint(1, 1e9)
    pytest.mark.filterwarnings("ignore:non-integer arguments to randrange:DeprecationWarning"),
]
SIZE = 32
PLAN = Plan(stages=((16, 0.4, 0.003), (SIZE, 0.6, 0.002)), steps=20, pairs=4, look=4)


def test_of_a_checkpoint_that_finds_the_disk_full_nothing_is_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Half of one would keep it full, whoever tries again; the former one stays."""
    checkpoint.save(tmp_path, checkpoint.Progress("one", step=3), {"weights": [np.ones(3)]})
    before = (tmp_path / checkpoint.FILE).read_bytes()

    def full(path: Path, **_: Any) -> None:
        path.write_bytes(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(checkpoint.np, "savez", full)
    with pytest.raises(OSError, match="No space left"):
        checkpoint.save(tmp_path, checkpoint.Progress("one", step=4), {"weights": [np.ones(3)]})
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == {checkpoint.FILE: before}


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


def _trainer(folder: Path, plan: Plan = PLAN, *, stop_after: int = 10**9, tell: Callable[[Any], None] = lambda line: None) -> Trainer:
    """A trainer that is asked to stop after so many steps of this run."""
    asked = iter(range(1, 10**9))
    sets = {"warp": (Toned(SIZE).batch(10**6).crops, np.repeat([False, True], 4))}

    def batches(stage: int, numbers: Any) -> Iterator[Batch]:
        return feeding.stream(Toned(plan.stages[stage][0]), numbers, 0)

    def validation(stage: int) -> Any:
        size = plan.stages[stage][0]
        return {kind: (crops[:, :size, :size], fake) for kind, (crops, fake) in sets.items()}

    return Trainer(plan, folder, small, batches, validation, tell, lambda: next(asked) >= stop_after)


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
        model = small(SIZE)
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
        model = small(SIZE)
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

    def test_what_is_done_between_steps_is_told(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        pytest.importorskip("tensorflow")
        monkeypatch.setattr("pipeline.training.trainer.SILENT_S", 0.0)
        told: list[dict[str, Any]] = []
        plan = replace(PLAN, steps=4, look=4, stages=((SIZE, 1.0, 0.02),), norms=3)
        assert _trainer(tmp_path, plan, tell=told.append).run()
        said = [(line["what"], line["done"], line["total"]) for line in told if line["event"] == "preparing"]
        assert said[-3:] == [("norms", 1, 3), ("norms", 2, 3), ("norms", 3, 3)]
        assert ("validation sets", 1, 1) in said or ("validation sets", 1, 4) in said

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

    @pytest.mark.parametrize("change", [{"sam": 0.05}, {"policy": "mixed_bfloat16"}, {"mask_weight": 0.0}, {"mask_target": "boundary"}])
    def test_variants_run(self, tmp_path: Path, change: dict[str, Any]) -> None:
        pytest.importorskip("tensorflow")
        assert _trainer(tmp_path, replace(PLAN, steps=4, look=2, **change)).run()
        assert (tmp_path / "weights.h5").exists()


@pytest.mark.tensorflow
def test_the_mask_head_learns_what_was_changed_or_its_seam() -> None:
    pytest.importorskip("tensorflow")
    whole = np.array([[0.0, 0.1, 0.5, 1.0, 0.9]], np.float32)
    mask = np.stack([whole, whole / 4, np.zeros_like(whole)])  # the second lets three quarters of the face through
    np.testing.assert_array_equal(np.asarray(stepping.wanted(mask, "area"))[:, 0], [[0, 0, 1, 1, 1], [0, 0, 0, 1, 1], [0] * 5])
    found = np.asarray(stepping.wanted(mask, "boundary"))[:, 0]
    np.testing.assert_allclose(found, [[0, 0.36, 1, 0, 0.36]] * 2 + [[0] * 5], atol=1e-6)


def test_checkpoints_of_before_the_masks_seam_fit_and_others_do_not(tmp_path: Path) -> None:
    shown = (
        "Plan(stages=((32, 1.0, 0.01),), optimizer='adamw', seed=1, pairs=16, weight_decay=0.05, momentum=0.9, trust=0.001, dropout=0.2, "
        "smoothing=0.02, clip=5.0, mask_weight=1.0, average=0.0, norms=30, sam=0.0, policy='float32', steps=0, hours=0.0, look=200, "
        "held_out='warp', patience=0)"
    )
    plan = Plan(stages=((SIZE, 1.0, 0.01),))
    assert _trainer(tmp_path, plan).key == f"{shown} "
    assert _trainer(tmp_path, replace(plan, mask_target="boundary")).key != f"{shown} "


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
