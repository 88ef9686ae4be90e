"""One step of a training: the optimizer, the loss and its gradients as one TensorFlow function, and logits for a look."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from pipeline.jobs import Pixels
from pipeline.training.averaging import Average
from pipeline.training.devices import Rank
from pipeline.training.errors import TrainingError
from pipeline.training.plan import MaskTarget, Plan

CHANGED = 0.2
"""A pixel of which no more than so much was replaced counts as unchanged."""


def logits(model: Any, crops: Pixels, batch: int = 32) -> npt.NDArray[np.float32]:
    """Logits (n,) of crops (n, s, s, 3) uint8, in batches of one size (the last is padded: one shape, one graph)."""
    from pipeline.training import network

    found = []
    for start in range(0, len(crops), batch):
        part = crops[start : start + batch]
        padded = np.concatenate([part, np.repeat(part[-1:], batch - len(part), axis=0)])
        given = model.predict_on_batch(network.preprocess(padded))  # compiled once a model; called plainly, it would run op by op
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


def wanted(mask: Any, target: MaskTarget) -> Any:
    """What the mask head is to say of masks (n, m, m), 0 to 1: `area`, where something was changed; `boundary`, where changed and
    unchanged meet, 4 m (1 - m) of the soft mask (Face X-ray, Li et al. 2020, 1912.13458), whoever it is that lies inside."""
    import tensorflow as tf

    if target == "area":
        return tf.cast(mask > CHANGED, tf.float32)
    # a self-blend may let most of the face through: what it changes most is its inside, not its boundary
    inside = mask / tf.maximum(tf.reduce_max(mask, axis=(1, 2), keepdims=True), CHANGED)
    return 4 * inside * (1 - inside)


def compiled(model: Any, optimizer: Any, plan: Plan, rank: Rank, average: Average | None = None) -> Any:
    """The function (crops, fake, mask, masked) -> loss that makes one step on the mean gradient of all ranks, and averages the weights."""
    import tensorflow as tf

    entropy = tf.nn.sigmoid_cross_entropy_with_logits

    def loss_of(x: Any, fake: Any, mask: Any, masked: Any, known: Any) -> Any:
        given = model(x, training=True)
        logit, where = given if plan.mask_weight else (given, None)
        loss = tf.reduce_mean(entropy(fake * (1 - 2 * plan.smoothing) + plan.smoothing, logit[:, 0]))
        if where is not None:
            each = tf.reduce_mean(entropy(wanted(mask, plan.mask_target), where[..., 0]), axis=(1, 2))
            loss += plan.mask_weight * tf.reduce_sum(each * masked) / known
        return loss

    def step(crops: Any, fake: Any, mask: Any, masked: Any) -> Any:
        x = tf.cast(crops, tf.float32) / 127.5 - 1
        variables = model.trainable_variables
        # masks known in the whole batch, a rank's share of them: the mean over ranks is then that of the batch
        known = tf.maximum(rank.mean([tf.reduce_sum(masked)])[0], 1 / rank.world)
        with tf.GradientTape() as tape:
            loss = loss_of(x, fake, mask, masked, known)
        loss, *gradients = rank.mean([loss, *tape.gradient(loss, variables)])
        if plan.sam:
            far = plan.sam / (tf.linalg.global_norm(gradients) + 1e-12)
            away = [gradient * far for gradient in gradients]
            for variable, offset in zip(variables, away, strict=True):
                variable.assign_add(offset)
            with tf.GradientTape() as tape:
                sharp = loss_of(x, fake, mask, masked, known)
            gradients = rank.mean(tape.gradient(sharp, variables))
            for variable, offset in zip(variables, away, strict=True):
                variable.assign_sub(offset)
        if plan.clip:
            gradients, _ = tf.clip_by_global_norm(gradients, plan.clip)
        optimizer.apply_gradients(zip(gradients, variables, strict=True))
        if average is not None:
            average.update()
        return loss

    return tf.function(step, reduce_retracing=True)
