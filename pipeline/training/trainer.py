"""The training loop in Keras: steps, looks at the validation sets, checkpoints, and an exact way back.

Two runs with the same settings give the same weights, and so does a run that was stopped and resumed, bit for bit on a CPU. The
batch of a step depends on its number alone, the optimizer and the dropout's generator are in the checkpoint, and TensorFlow's
operations are made deterministic.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from pipeline.jobs import Pixels
from pipeline.training import checkpoint
from pipeline.training.checkpoint import Progress
from pipeline.training.feeding import Batch, mask_side
from pipeline.training.metrics import auc

Validation = Mapping[str, tuple[Pixels, npt.NDArray[np.bool_]]]
"""Crops (n, s, s, 3) and which of them are fake (n,), by kind."""
Told = Callable[[dict[str, Any]], None]
"""Takes one line of progress."""
CALM_S = 1.0
SAVE_S = 120.0
"""A checkpoint is at most so old, however far apart the looks are."""


class TrainingError(Exception):
    """Training cannot go on. `permanent`: the same settings would fail again."""

    def __init__(self, sentence: str, *, permanent: bool = True) -> None:
        super().__init__(sentence)
        self.permanent = permanent


@dataclass(frozen=True)
class Plan:
    """What decides the outcome of a training, apart from the data.

    Attributes:
        stages: (crop size, share of the steps or of the time, learning rate) of each.
        optimizer: lars, sgd or adamw.
        weight_decay, momentum, trust: of the optimizer, where it has them.
        smoothing: of the labels: 0 becomes `smoothing`, 1 becomes 1 - `smoothing`.
        clip: the largest norm of all gradients together; 0: as they are (LARS needs none).
        mask_weight: of the mask's loss; 0: no mask head.
        sam: the radius of sharpness-aware minimisation (2010.01412); 0: off. A step costs twice.
        steps, hours: of the whole training; with hours the steps of a stage are decided by its first seconds.
        look: steps between two looks at the validation sets; checkpoints are written then.
        held_out: the kind that is never trained on and that chooses the weights of the last stage.
        patience: looks without a better held-out AUC after which the last stage ends; 0: never.
    """

    stages: tuple[tuple[int, float, float], ...]
    optimizer: str = "adamw"
    seed: int = 1
    pairs: int = 16
    weight_decay: float = 0.05
    momentum: float = 0.9
    trust: float = 1e-3
    dropout: float = 0.2
    smoothing: float = 0.02
    clip: float = 5.0
    mask_weight: float = 1.0
    sam: float = 0.0
    bf16: bool = False
    steps: int = 0
    hours: float = 0.0
    look: int = 200
    held_out: str = "warp"
    patience: int = 0


@dataclass
class Trainer:
    """One training into one folder: `checkpoint.npz` while it runs, then `weights.h5`, and the best so far in `best.h5`.

    Attributes:
        build: (size, dropout, mask head) to a Keras model with outputs `logit` and, with the head, `mask`.
        batches: (stage, batch numbers) to the batches.
        validation: stage to the validation sets.
        tell: takes progress lines.
        stopping: asked after every step; true: write a checkpoint and return.
        identity: what besides the plan must be the same for a checkpoint to fit (the data's hash).
    """

    plan: Plan
    folder: Path
    build: Callable[[int, float, bool], Any]
    batches: Callable[[int, Sequence[int]], Iterable[Batch]]
    validation: Callable[[int], Validation]
    tell: Told = lambda line: None
    stopping: Callable[[], bool] = lambda: False
    identity: str = ""
    _began: float = field(default=0.0, repr=False)

    def run(self) -> bool:
        """Train to the end and write `weights.h5`; False when it was asked to stop before. Resumes where a checkpoint is."""
        import tensorflow as tf

        tf.config.experimental.enable_op_determinism()
        tf.keras.backend.experimental.enable_tf_random_generator()
        tf.keras.mixed_precision.set_global_policy("mixed_bfloat16" if self.plan.bf16 else "float32")
        self.folder.mkdir(parents=True, exist_ok=True)
        self._began = time.monotonic()
        found = checkpoint.load(self.folder, self.key)
        progress, arrays = found or (Progress(self.key), {})
        before = progress.seconds
        for number in range(progress.stage, len(self.plan.stages)):
            tf.keras.utils.set_random_seed(self.plan.seed + number)
            stage = _Stage(self, progress, number, arrays)
            if not stage.run(before):
                return False
            arrays = {"weights": stage.model.get_weights()}
            progress.stage, progress.step, progress.best, progress.waited = number + 1, 0, -1.0, 0
        self._finish(arrays, before + time.monotonic() - self._began, progress)
        return True

    def _finish(self, arrays: Mapping[str, Sequence[npt.NDArray[Any]]], seconds: float, progress: Progress) -> None:
        from pipeline.training import network

        model = self.build(self.plan.stages[-1][0], self.plan.dropout, self.plan.mask_weight > 0)
        model.set_weights(arrays["weights"])
        best = self.folder / "best.h5"
        if best.exists():
            network.load_weights(model, best)
        network.save_weights_half(model, self.folder / "weights.h5")
        self.tell({"event": "done", "seen": progress.seen, "hours": round(seconds / 3600, 3)})

    @property
    def key(self) -> str:
        """What a checkpoint must have been made with to fit."""
        return f"{self.plan} {self.identity}"


class _Stage:
    """One size of crops: its model, its optimizer, its steps."""

    def __init__(self, trainer: Trainer, progress: Progress, number: int, arrays: dict[str, list[npt.NDArray[Any]]]) -> None:
        self.trainer, self.plan, self.progress, self.number = trainer, trainer.plan, progress, number
        self.size, self.share, self.rate = self.plan.stages[number]
        self.model = trainer.build(self.size, self.plan.dropout, self.plan.mask_weight > 0)
        if "weights" in arrays:
            self.model.set_weights(arrays["weights"])
        self._arrays = arrays
        self.optimizer: Any = None
        self._step: Any = None

    def run(self, before: float) -> bool:
        """Train from where progress stands to the stage's end; False: asked to stop."""
        progress = self.progress
        sets = self.trainer.validation(self.number)
        if self.number == len(progress.lengths):
            progress.lengths.append(self._length())
        steps = progress.lengths[self.number]
        self._prepare(steps)
        feed = iter(self._dataset(range(progress.step, steps)))
        losses: list[Any] = []
        saved = begun = said = time.monotonic()
        first = progress.step
        while progress.step < steps:
            losses.append(self._step(*next(feed)))
            progress.step += 1
            progress.seen += 2 * self.plan.pairs
            progress.seconds = before + time.monotonic() - self.trainer._began
            now = time.monotonic()
            looked = progress.step % self.plan.look == 0 or progress.step == steps
            speed = (progress.step - first) / (now - begun)
            enough = looked and self._look(sets, losses, steps, speed)
            stop = self.trainer.stopping()
            if looked or stop or now - saved > SAVE_S:
                self._save([] if looked else losses)
                losses, saved = [], time.monotonic()
            if enough:
                break
            if stop:
                self.trainer.tell({"event": "stopped", "stage": self.number, "step": progress.step})
                return False
            if not looked and now - said > CALM_S:
                said = now
                self.trainer.tell(self._line("step", steps, speed))
        return True

    def _length(self) -> int:
        if not self.plan.hours:
            return max(1, round(self.plan.steps * self.share))
        # the steps are decided once, by the clock, and kept in the checkpoint: the schedule then depends on steps alone
        self._prepare(1000)
        weights, state = self.model.get_weights(), [np.asarray(variable) for variable in self._state()]
        feed = iter(self._dataset(range(12)))
        for _ in range(4):
            self._step(*next(feed))
        begun = time.monotonic()
        for _ in range(8):
            self._step(*next(feed))
        each = (time.monotonic() - begun) / 8
        self.model.set_weights(weights)
        self._arrays["state"] = state
        return max(1, round(self.plan.hours * 3600 * self.share / each))

    def _prepare(self, steps: int) -> None:
        self.optimizer = optimizer(self.plan, self.rate, steps)
        self.optimizer.build(self.model.trainable_variables)
        for variable, value in zip(self._state(), self._arrays.pop("state", ()), strict=False):
            variable.assign(value)
        self._step = _compiled(self.model, self.optimizer, self.plan)

    def _state(self) -> list[Any]:
        """What besides the weights decides the next step: the optimizer's variables and the dropouts' generators."""
        generators = [layer._random_generator._generator for layer in self.model.layers if hasattr(layer, "_random_generator")]
        return [*self.optimizer.variables, *(generator.state for generator in generators if generator is not None)]

    def _dataset(self, numbers: Sequence[int]) -> Any:
        import tensorflow as tf

        count, small = 2 * self.plan.pairs, mask_side(self.size)
        shapes = ((count, self.size, self.size, 3), (count,), (count, small, small), (count,))
        kinds = (tf.uint8, tf.float32, tf.float32, tf.float32)
        signature = tuple(tf.TensorSpec(shape, kind) for shape, kind in zip(shapes, kinds, strict=True))
        stream = tf.data.Dataset.from_generator(lambda: map(tuple, self.trainer.batches(self.number, numbers)), output_signature=signature)
        return stream.prefetch(2)

    def _look(self, sets: Validation, losses: Sequence[Any], steps: int, speed: float) -> bool:
        """Measure, remember the best weights of the last stage, and say whether to end it."""
        from pipeline.training import network

        line = self._line("look", steps, speed)
        every = [*self.progress.losses, *(float(loss) for loss in losses)]
        self.progress.losses = []
        line["loss"] = float(np.mean(every))
        if not np.isfinite(line["loss"]):
            raise TrainingError(f"The loss is {line['loss']} at step {self.progress.step}: lower the learning rate.")
        for kind, (crops, fake) in sets.items():
            scores = logits(self.model, crops)
            line[f"auc_{kind}"] = round(auc(scores[fake], scores[~fake]), 5)
        self.progress.curve.append({key: value for key, value in line.items() if key not in ("event", "eta_s")})
        self.trainer.tell(line)
        if self.number < len(self.plan.stages) - 1 or (held := line.get(f"auc_{self.plan.held_out}")) is None:
            return False
        if held > self.progress.best:
            self.progress.best, self.progress.waited = held, 0
            network.save_weights(self.model, self.trainer.folder / "best.h5")
            return False
        self.progress.waited += 1
        return 0 < self.plan.patience <= self.progress.waited

    def _line(self, event: str, steps: int, speed: float) -> dict[str, Any]:
        progress = self.progress
        return {
            "event": event,
            "stage": self.number,
            "size": self.size,
            "step": progress.step,
            "steps": steps,
            "seen": progress.seen,
            "rate": float(np.asarray(self.optimizer.learning_rate)),
            "images_per_s": round(2 * self.plan.pairs * speed, 1),
            "eta_s": round((steps - progress.step) / speed) if speed else None,
            "seconds": round(progress.seconds, 1),
        }

    def _save(self, losses: Sequence[Any]) -> None:
        self.progress.losses += [float(loss) for loss in losses]
        state = [np.asarray(variable) for variable in self._state()]
        checkpoint.save(self.trainer.folder, self.progress, {"weights": self.model.get_weights(), "state": state})


def logits(model: Any, crops: Pixels, batch: int = 32) -> npt.NDArray[np.float32]:
    """Logits (n,) of crops (n, s, s, 3) uint8, in batches of one size (the last is padded: one shape, one graph)."""
    from pipeline.training import network

    found = []
    for start in range(0, len(crops), batch):
        part = crops[start : start + batch]
        padded = np.concatenate([part, np.repeat(part[-1:], batch - len(part), axis=0)])
        given = model(network.preprocess(padded), training=False)
        given = given[0] if isinstance(given, (list, tuple)) else given
        found.append(np.asarray(given, np.float32)[: len(part), 0])
    return np.concatenate(found)


def optimizer(plan: Plan, rate: float, steps: int) -> Any:
    """The plan's optimizer with its schedule over `steps`. LARS decays by a polynomial, the others by a cosine."""
    from tensorflow import keras

    from pipeline.training.lars import LARS, WarmUpCosine, WarmUpPolynomial

    warm_up = max(1, round(0.05 * steps))
    if plan.optimizer == "lars":
        schedule = WarmUpPolynomial(rate, steps, warm_up, end=min(1e-4, rate / 100))
        return LARS(schedule, momentum=plan.momentum, weight_decay=plan.weight_decay, trust_coefficient=plan.trust)
    flat = WarmUpCosine(rate, steps, warm_up)
    if plan.optimizer == "sgd":
        made = keras.optimizers.SGD(flat, momentum=plan.momentum, weight_decay=plan.weight_decay, jit_compile=False)
    elif plan.optimizer == "adamw":
        made = keras.optimizers.AdamW(flat, beta_2=0.99, weight_decay=plan.weight_decay, jit_compile=False)
    else:
        raise TrainingError(f"There is no optimizer {plan.optimizer!r}: lars, sgd and adamw are known.")
    made.exclude_from_weight_decay(var_names=["gamma", "beta", "bias"])
    return made


def _compiled(model: Any, optimizer: Any, plan: Plan) -> Any:
    import tensorflow as tf

    entropy = tf.nn.sigmoid_cross_entropy_with_logits

    def loss_of(x: Any, fake: Any, mask: Any, masked: Any) -> Any:
        given = model(x, training=True)
        logit, where = given if plan.mask_weight else (given, None)
        loss = tf.reduce_mean(entropy(fake * (1 - 2 * plan.smoothing) + plan.smoothing, logit[:, 0]))
        if where is not None:
            changed = tf.cast(mask > 0.2, tf.float32)
            each = tf.reduce_mean(entropy(changed, where[..., 0]), axis=(1, 2))
            loss += plan.mask_weight * tf.reduce_sum(each * masked) / tf.maximum(tf.reduce_sum(masked), 1)
        return loss

    def step(crops: Any, fake: Any, mask: Any, masked: Any) -> Any:
        x = tf.cast(crops, tf.float32) / 127.5 - 1
        variables = model.trainable_variables
        with tf.GradientTape() as tape:
            loss = loss_of(x, fake, mask, masked)
        gradients = tape.gradient(loss, variables)
        if plan.sam:
            far = plan.sam / (tf.linalg.global_norm(gradients) + 1e-12)
            away = [gradient * far for gradient in gradients]
            for variable, offset in zip(variables, away, strict=True):
                variable.assign_add(offset)
            with tf.GradientTape() as tape:
                sharp = loss_of(x, fake, mask, masked)
            gradients = tape.gradient(sharp, variables)
            for variable, offset in zip(variables, away, strict=True):
                variable.assign_sub(offset)
        if plan.clip:
            gradients, _ = tf.clip_by_global_norm(gradients, plan.clip)
        optimizer.apply_gradients(zip(gradients, variables, strict=True))
        return loss

    return tf.function(step, reduce_retracing=True)
