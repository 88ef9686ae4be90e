"""What is done to weights beside training them: their moving average over the last steps, steadier than any one of them (Polyak &
Juditsky, 1992), and the statistics of the norms measured anew for the weights that are kept."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from pipeline.jobs import Pixels


class Average:
    """`variables` are the step counter and the averages in the order of the model's weights, its norms' statistics among them.

    The first steps count for more: after n of them one leaves at most (1 + n) / (10 + n) of what was.
    """

    def __init__(self, model: Any, decay: float) -> None:
        import tensorflow as tf

        self.model, self.decay = model, decay
        self._steps = tf.Variable(0.0, trainable=False)
        self._means = [tf.Variable(weight, trainable=False, dtype=weight.dtype) for weight in model.weights]

    @property
    def variables(self) -> list[Any]:
        """What has to be kept to go on exactly."""
        return [self._steps, *self._means]

    def update(self) -> None:
        """Take the model's present weights in; part of the compiled step."""
        import tensorflow as tf

        self._steps.assign_add(1.0)
        kept = tf.minimum(self.decay, (1 + self._steps) / (10 + self._steps))
        for mean, weight in zip(self._means, self.model.weights, strict=True):
            mean.assign_sub((1 - kept) * (mean - tf.cast(weight, mean.dtype)))

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """The model has the averages for weights meanwhile."""
        own = self.model.get_weights()
        self.take()
        try:
            yield
        finally:
            self.model.set_weights(own)

    def take(self) -> None:
        """Make the averages the model's weights."""
        self.model.set_weights([mean.numpy() for mean in self._means])


def measure_norms(model: Any, crops: Iterable[Pixels]) -> None:
    """Replace the statistics of a model's batch norms by their plain mean over batches of crops (n, s, s, 3) uint8.

    Those that training leaves are a moving average over weights that are no longer the model's, and that of averaged weights was never
    measured at all (Wu & Johnson 2021, 2105.07576, section 3; Izmailov et al. 2018, 1803.05407). The model is left otherwise as it was.
    """
    from tensorflow import keras

    from pipeline.training import network

    norms = [layer for layer in model.layers if isinstance(layer, keras.layers.BatchNormalization)]
    momenta = [norm.momentum for norm in norms]
    for number, batch in enumerate(crops):
        for norm in norms:
            norm.momentum = number / (number + 1)
        model(network.preprocess(batch), training=True)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
