"""LARS (You, Gitman & Ginsburg, "Large Batch Training of Convolutional Networks", 1708.03888) as trust-scaled momentum SGD,
and the learning-rate schedules of the trainer. Importing this module imports TensorFlow."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import tensorflow as tf
from tensorflow import keras


@keras.saving.register_keras_serializable("unmask")
class LARS(keras.optimizers.Optimizer):  # type: ignore[misc]
    """For every weight w with gradient g::

        trust = coefficient * |w| / (|g| + decay * |w|)
        v     = momentum * v + rate * trust * (g + decay * w)
        w     = w - v

    Norms are over the whole tensor. Tensors of rank 0 and 1 (biases, batch norms) are left out: trust 1, no decay; in ResNet50
    that is 159 of 212. A weight or gradient that is all zero has trust 1. These are the paper's equations, not the LAMB
    paper's restatement of them, which differs by 4e-3 over five steps.
    """

    def __init__(
        self,
        learning_rate: Any = 2.5,
        momentum: float = 0.9,
        weight_decay: float = 1e-4,
        trust_coefficient: float = 1e-3,
        name: str = "LARS",
        **more: Any,
    ) -> None:
        # Keras' own `weight_decay` shrinks weights apart from the gradient; here it is part of it, so it is kept from Keras
        super().__init__(name=name, jit_compile=False, **{key: value for key, value in more.items() if key != "jit_compile"})
        self._learning_rate = self._build_learning_rate(learning_rate)
        self.momentum = momentum
        self.decay = weight_decay
        self.trust_coefficient = trust_coefficient
        self.momentums: list[Any] = []

    def build(self, var_list: Sequence[Any]) -> None:
        """Make one velocity for each variable."""
        super().build(var_list)
        if getattr(self, "_built", False):
            return
        self.momentums = [self.add_variable_from_reference(model_variable=v, variable_name="m") for v in var_list]
        # Keras 2.15 drops an optimizer's state on loading unless this is set
        self._built = True

    def update_step(self, gradient: Any, variable: Any) -> None:
        """One step for one variable. Sparse gradients are made dense."""
        gradient = tf.convert_to_tensor(gradient)
        rate = tf.cast(self.learning_rate, variable.dtype)
        velocity = self.momentums[self._index_dict[self._var_key(variable)]]
        if variable.shape.rank > 1:
            size, slope = tf.norm(variable), tf.norm(gradient)
            trust = self.trust_coefficient * size / (slope + self.decay * size)
            rate = rate * tf.where((size > 0) & (slope > 0), trust, tf.ones_like(trust))
            gradient = gradient + self.decay * variable
        velocity.assign(self.momentum * velocity + rate * gradient)
        variable.assign_sub(velocity)

    def get_config(self) -> dict[str, Any]:
        """The arguments to make it again."""
        return {
            **super().get_config(),
            "learning_rate": self._serialize_hyperparameter(self._learning_rate),
            "momentum": self.momentum,
            "weight_decay": self.decay,
            "trust_coefficient": self.trust_coefficient,
        }

    @classmethod
    def from_config(cls, config: dict[str, Any], custom_objects: dict[str, Any] | None = None) -> LARS:
        """Make it again. Loading a `.h5`, Keras knows no schedules but its own: it is told of ours."""
        rate = config["learning_rate"]
        if isinstance(rate, dict):
            ours = {schedule.__name__: schedule for schedule in (WarmUpPolynomial, WarmUpCosine)}
            rate = keras.saving.deserialize_keras_object(rate, {**ours, **(custom_objects or {})})
        return cls(**{**config, "learning_rate": rate})


@keras.saving.register_keras_serializable("unmask")
class WarmUpPolynomial(keras.optimizers.schedules.LearningRateSchedule):  # type: ignore[misc]
    """From 0 straight up to `rate` in `warm_up` steps, then down to `end` at `steps` along (1 - progress) ** `power`.

    The reference recipe of ResNet50 with LARS warms up for 3 of 40 epochs and decays with power 2 to 1e-4.
    """

    def __init__(self, rate: float, steps: int, warm_up: int = 0, power: float = 2.0, end: float = 1e-4) -> None:
        super().__init__()
        self.rate, self.steps, self.warm_up, self.power, self.end = rate, steps, warm_up, power, end

    def __call__(self, step: Any) -> Any:
        """The rate of a step, counted from 0."""
        done = tf.cast(step, tf.float32)
        left = 1 - tf.clip_by_value((done - self.warm_up) / max(1, self.steps - self.warm_up), 0.0, 1.0)
        decayed = self.end + (self.rate - self.end) * left**self.power
        return tf.where(done < self.warm_up, self.rate * done / max(1, self.warm_up), decayed)

    def get_config(self) -> dict[str, Any]:
        """The arguments to make it again."""
        return {"rate": self.rate, "steps": self.steps, "warm_up": self.warm_up, "power": self.power, "end": self.end}


@keras.saving.register_keras_serializable("unmask")
class WarmUpCosine(keras.optimizers.schedules.LearningRateSchedule):  # type: ignore[misc]
    """From 0 straight up to `rate` in `warm_up` steps, flat until `flat` of the way, then half a cosine down to 0 at `steps`."""

    def __init__(self, rate: float, steps: int, warm_up: int = 0, flat: float = 0.3) -> None:
        super().__init__()
        self.rate, self.steps, self.warm_up, self.flat = rate, steps, warm_up, flat

    def __call__(self, step: Any) -> Any:
        """The rate of a step, counted from 0."""
        # the first step is not lost on a rate of 0
        done = tf.cast(step, tf.float32)
        climbed = tf.minimum(1.0, (done + 1) / max(1, self.warm_up))
        down = tf.clip_by_value((done / max(1, self.steps) - self.flat) / (1 - self.flat), 0.0, 1.0)
        return self.rate * climbed * 0.5 * (1 + tf.cos(math.pi * down))

    def get_config(self) -> dict[str, Any]:
        """The arguments to make it again."""
        return {"rate": self.rate, "steps": self.steps, "warm_up": self.warm_up, "flat": self.flat}
