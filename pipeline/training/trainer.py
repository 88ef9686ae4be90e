"""The training loop in Keras: steps, looks at the validation sets, checkpoints, and an exact way back.

Two runs with the same settings give the same weights, and so does a run that was stopped and resumed, bit for bit on a CPU. The
batch of a step depends on its number alone, the optimizer and the dropout's generator are in the checkpoint, and TensorFlow's
operations are made deterministic.

Several ranks (see `devices`) run this same loop over their shares of the batches. Rank 0 alone looks, tells and writes; that it
is time to save or to stop is agreed between steps, so that all do the same at the same step.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from pipeline.jobs import Pixels
from pipeline.training import checkpoint, stepping
from pipeline.training.averaging import Average, measure_norms
from pipeline.training.checkpoint import Progress
from pipeline.training.devices import Rank
from pipeline.training.errors import TrainingError
from pipeline.training.feeding import Batch, mask_side
from pipeline.training.metrics import auc
from pipeline.training.plan import Plan

Validation = Mapping[str, tuple[Pixels, npt.NDArray[np.bool_]]]
"""Crops (n, s, s, 3) and which of them are fake (n,), by kind."""
Told = Callable[[dict[str, Any]], None]
"""Takes one line of progress."""
CALM_S = 1.0
SILENT_S = 30.0
"""Whoever looks after a trainer hears of it so often at least, where what it does between two steps takes long."""
SAVE_S = 120.0
HOLD_LOOK_S = 0.02


@dataclass
class Trainer:
    """One training into one folder: `checkpoint.npz` while it runs, then `weights.h5`, and the best so far in `best.h5`.

    Attributes:
        build: (size, dropout, mask head) to a Keras model with outputs `logit` and, with the head, `mask`.
        batches: (stage, batch numbers) to the batches, of which each rank makes its share.
        validation: stage to the validation sets.
        tell: takes progress lines.
        stopping: asked after every step; true: write a checkpoint and return.
        identity: what besides the plan must be the same for a checkpoint to fit (the data's hash).
        rank: this process's part.
        epoch: reals that there are to learn from, for counting; 0: unknown.
        save_s: seconds after which there is a new checkpoint, however far apart the looks are.
        hold_s: seconds that a checkpoint waits at most for being stored elsewhere (`checkpoint.acknowledge`) before there are more
            steps that only this machine knows of; 0: it does not wait.
    """

    plan: Plan
    folder: Path
    build: Callable[[int, float, bool], Any]
    batches: Callable[[int, Sequence[int]], Iterable[Batch]]
    validation: Callable[[int], Validation]
    tell: Told = lambda line: None
    stopping: Callable[[], bool] = lambda: False
    identity: str = ""
    rank: Rank = field(default_factory=Rank)
    epoch: int = 0
    save_s: float = SAVE_S
    hold_s: float = 0.0
    _began: float = field(default=0.0, repr=False)
    _said: float = field(default=0.0, repr=False)

    def run(self) -> bool:
        """Train to the end and write `weights.h5`; False when it was asked to stop before. Resumes where a checkpoint is."""
        import tensorflow as tf

        if self.rank.device != "hpu":
            tf.config.experimental.enable_op_determinism()
        tf.keras.backend.experimental.enable_tf_random_generator()
        tf.keras.mixed_precision.set_global_policy(self.plan.policy)
        self.folder.mkdir(parents=True, exist_ok=True)
        self._began = time.monotonic()
        found = checkpoint.load(self.folder, self.key)
        progress, arrays = found or (Progress(self.key), {})
        self.say(
            {
                "event": "device",
                "device": self.rank.device,
                "ranks": self.rank.world,
                "precision": self.rank.precision,
                "resumed": bool(found),
            }
        )
        before = progress.seconds
        for number in range(progress.stage, len(self.plan.stages)):
            tf.keras.utils.set_random_seed(self.plan.seed + number)
            stage = _Stage(self, progress, number, arrays)
            if not stage.run(before):
                return False
            arrays = {"weights": stage.model.get_weights()}
            progress.stage, progress.step, progress.best, progress.waited = number + 1, 0, -1.0, 0
        if self.rank.first:
            self._finish(arrays, before + time.monotonic() - self._began, progress)
        self.rank.agree(0)  # who leaves early would be missed as dead
        return True

    def _finish(self, arrays: Mapping[str, Sequence[npt.NDArray[Any]]], seconds: float, progress: Progress) -> None:
        from pipeline.training import network

        model = self.build(self.plan.stages[-1][0], self.plan.dropout, self.plan.mask_weight > 0)
        model.set_weights(arrays["weights"])
        best = self.folder / "best.h5"
        if best.exists():
            network.load_weights(model, best)
        steps = progress.lengths[-1]
        fresh = range(steps, steps + min(self.plan.norms, steps))
        self._said = time.monotonic()

        def measured() -> Iterator[Pixels]:
            for number, batch in enumerate(self.batches(len(self.plan.stages) - 1, fresh), 1):
                yield batch.crops
                self.still("norms", number, len(fresh))

        measure_norms(model, measured() if fresh else ())
        network.save_weights_half(model, self.folder / "weights.h5")
        self.tell({"event": "done", "seen": progress.seen, "hours": round(seconds / 3600, 3)})

    def say(self, line: dict[str, Any]) -> None:
        """Tell, if it is for this rank to tell."""
        if self.rank.first:
            self.tell(line)

    def still(self, what: str, done: int, total: int) -> None:
        """Tell that it goes on between two steps, if nothing was told for long: silence would be taken for a trainer that hangs."""
        if time.monotonic() - self._said >= SILENT_S:
            self._said = time.monotonic()
            self.say({"event": "preparing", "what": what, "done": done, "total": total})

    @property
    def key(self) -> str:
        """What a checkpoint must have been made with to fit."""
        plan = f"{self.plan}" if self.plan.mask_target == "area" else f"{self.plan} mask_target={self.plan.mask_target}"
        return f"{plan} {self.identity}"


class _Stage:
    """One size of crops: its model, its optimizer, its steps."""

    def __init__(self, trainer: Trainer, progress: Progress, number: int, arrays: dict[str, list[npt.NDArray[Any]]]) -> None:
        self.trainer, self.plan, self.progress, self.number = trainer, trainer.plan, progress, number
        self.rank = trainer.rank
        self.size, self.share, self.rate = self.plan.stages[number]
        self.model = trainer.build(self.size, self.plan.dropout, self.plan.mask_weight > 0)
        if "weights" in arrays:
            self.model.set_weights(arrays["weights"])
        self._arrays = arrays
        self._keys = [np.asarray(generator)[2] for generator in self._generators()]
        self.optimizer: Any = None
        self.average: Average | None = None
        self._step: Any = None

    def run(self, before: float) -> bool:
        """Train from where progress stands to the stage's end; False: asked to stop."""
        progress = self.progress
        sets = self.trainer.validation(self.number) if self.rank.first else {}
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
            enough = looked and self.rank.first and self._look(sets, losses, steps, speed)
            due = self.rank.first and now - saved > self.trainer.save_s
            enough, stop, due = map(bool, self.rank.agree(enough, self.trainer.stopping(), due))
            if enough:  # the stage is that long from now on: whoever comes back to it must not train any further
                steps = progress.lengths[self.number] = progress.step
            if looked or stop or due:
                self._save([] if looked else losses, steps, speed)
                if not stop:
                    self._hold()
                losses, saved = [], time.monotonic()
            if enough:
                break
            if stop:
                self.trainer.say({"event": "stopped", "stage": self.number, "step": progress.step})
                self.rank.agree(0)  # who ends early takes the others with it, and rank 0 may be writing still
                return False
            if not looked and now - said > CALM_S:
                said = now
                self.trainer.say(self._line("step", steps, speed))
        if self.average is not None:
            self.average.take()
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
        # rank 0's clock counts for all
        return int(self.rank.agree(self.rank.first * max(1, round(self.plan.hours * 3600 * self.share / each)))[0])

    def _prepare(self, steps: int) -> None:
        self.optimizer = stepping.optimizer(self.plan, self.rate, steps)
        self.optimizer.build(self.model.trainable_variables)
        self.average = Average(self.model, self.plan.average) if self.plan.average else None
        for variable, value in zip(self._state(), self._arrays.pop("state", ()), strict=False):
            variable.assign(value)
        for generator, key in zip(self._generators(), self._keys, strict=True):
            # what is saved is rank 0's; the others draw from streams of their own, as far along (counter, counter, key)
            generator.assign(np.array([*np.asarray(generator)[:2], key + self.rank.number]))
        self._step = stepping.compiled(self.model, self.optimizer, self.plan, self.rank, self.average)

    def _generators(self) -> list[Any]:
        found = [layer._random_generator._generator for layer in self.model.layers if hasattr(layer, "_random_generator")]
        return [generator.state for generator in found if generator is not None]

    def _state(self) -> list[Any]:
        """What besides the weights decides what comes next: the optimizer's variables, the dropouts' generators, the averages."""
        return [*self.optimizer.variables, *self._generators(), *(self.average.variables if self.average else ())]

    def _dataset(self, numbers: Sequence[int]) -> Any:
        import tensorflow as tf

        count, small = 2 * self.plan.pairs // self.rank.world, mask_side(self.size)
        shapes = ((count, self.size, self.size, 3), (count,), (count, small, small), (count,))
        kinds = (tf.uint8, tf.float32, tf.float32, tf.float32)
        signature = tuple(tf.TensorSpec(shape, kind) for shape, kind in zip(shapes, kinds, strict=True))
        stream = tf.data.Dataset.from_generator(lambda: map(tuple, self.trainer.batches(self.number, numbers)), output_signature=signature)
        return stream.prefetch(2)

    def _look(self, sets: Validation, losses: Sequence[Any], steps: int, speed: float) -> bool:
        """Measure, remember the best weights of the last stage, and say whether to end it."""
        with self.average.in_place() if self.average else nullcontext():
            return self._measure(sets, losses, steps, speed)

    def _measure(self, sets: Validation, losses: Sequence[Any], steps: int, speed: float) -> bool:
        from pipeline.training import network

        line = self._line("look", steps, speed)
        every = [*self.progress.losses, *(float(loss) for loss in losses)]
        self.progress.losses = []
        line["loss"] = float(np.mean(every))
        if not np.isfinite(line["loss"]):
            raise TrainingError(f"The loss is {line['loss']} at step {self.progress.step}: lower the learning rate.")
        self.trainer._said = time.monotonic()
        for number, (kind, (crops, fake)) in enumerate(sets.items(), 1):
            scores = stepping.logits(self.model, crops)
            self.trainer.still("validation sets", number, len(sets))
            line[f"auc_{kind}"] = round(auc(scores[fake], scores[~fake]), 5)
            if kind == self.plan.held_out:
                line["auc"], line["val_loss"] = (
                    line[f"auc_{kind}"],
                    round(float(np.mean(np.logaddexp(0, np.where(fake, -scores, scores)))), 5),
                )
        self.progress.curve.append({key: value for key, value in line.items() if key not in ("event", "eta_s")})
        self.trainer.say(line)
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
            "epoch": round(progress.seen / 2 / self.trainer.epoch, 2) if self.trainer.epoch else None,
            "seen": progress.seen,
            "rate": float(np.asarray(self.optimizer.learning_rate)),
            "images_per_s": round(2 * self.plan.pairs * speed, 1),
            "eta_s": round(self._left(steps, speed)) if speed else None,
            "seconds": round(progress.seconds, 1),
        }

    def _left(self, steps: int, speed: float) -> float:
        """Seconds to the end of the training; steps of later stages are taken to cost as much more as their crops are larger."""
        here = (steps - self.progress.step) / speed
        later = self.plan.stages[self.number + 1 :]
        if self.plan.hours:
            return here + sum(self.plan.hours * 3600 * share for _, share, _ in later)
        return here + sum(self.plan.steps * share / speed * (size / self.size) ** 2 for size, share, _ in later)

    def _save(self, losses: Sequence[Any], steps: int, speed: float) -> None:
        if not self.rank.first:
            return
        self.progress.losses += [float(loss) for loss in losses]
        state = [np.asarray(variable) for variable in self._state()]
        checkpoint.save(self.trainer.folder, self.progress, {"weights": self.model.get_weights(), "state": state})
        self.trainer.say({**self._line("checkpoint", steps, speed), "file": checkpoint.FILE})

    def _hold(self) -> None:
        """Wait until the checkpoint is stored; if that takes too long, the store is away, and training goes on without."""
        if not self.rank.first:  # the others wait for it in the next step
            return
        until = time.monotonic() + self.trainer.hold_s
        here = (self.number, self.progress.step)
        while time.monotonic() < until and checkpoint.acknowledged(self.trainer.folder) < here and not self.trainer.stopping():
            time.sleep(HOLD_LOOK_S)
