"""LARS against the paper, written a second time in NumPy in double precision."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytestmark = [
    pytest.mark.tensorflow,
    # Keras 2.15 draws its seeds by random.randint(1, 1e9)
    pytest.mark.filterwarnings("ignore:non-integer arguments to randrange:DeprecationWarning"),
]


@pytest.fixture(scope="module")
def lars() -> Any:
    pytest.importorskip("tensorflow")
    from pipeline.training import lars

    return lars


def _by_hand(
    weights: list[Any], gradients: list[list[Any]], rates: list[float], *, momentum: float, decay: float, coefficient: float
) -> list[Any]:
    """Algorithm 1 of 1708.03888, with the paper's local rate; vectors get plain momentum."""
    weights = [w.astype(np.float64) for w in weights]
    velocities = [np.zeros_like(w) for w in weights]
    for rate, step in zip(rates, gradients, strict=True):
        for k, (w, g) in enumerate(zip(weights, step, strict=True)):
            g = g.astype(np.float64)
            local = 1.0
            if w.ndim > 1:
                w_norm, g_norm = np.sqrt((w**2).sum()), np.sqrt((g**2).sum())
                if w_norm > 0 and g_norm > 0:
                    local = coefficient * w_norm / (g_norm + decay * w_norm)
                g = g + decay * w
            velocities[k] = momentum * velocities[k] + rate * local * g
            weights[k] = w - velocities[k]
    return weights


SHAPES = [(7, 7, 3, 8), (16, 4), (8,), ()]


def _problem(steps: int = 12) -> tuple[list[Any], list[list[Any]]]:
    rng = np.random.default_rng(2)
    return [rng.normal(size=s).astype(np.float32) for s in SHAPES], [
        [rng.normal(0, 3, s).astype(np.float32) for s in SHAPES] for _ in range(steps)
    ]


def test_it_is_the_papers_algorithm(lars: Any) -> None:
    import tensorflow as tf

    weights, gradients = _problem()
    variables = [tf.Variable(w) for w in weights]
    schedule = lars.WarmUpPolynomial(4.0, steps=12, warm_up=3, end=0.01)
    optimizer = lars.LARS(schedule, momentum=0.9, weight_decay=5e-4, trust_coefficient=0.02)
    for step in gradients:
        optimizer.apply_gradients(zip([tf.constant(g) for g in step], variables, strict=True))
    rates = [4.0 * k / 3 if k < 3 else 0.01 + 3.99 * (1 - (k - 3) / 9) ** 2 for k in range(12)]
    wanted = _by_hand(weights, gradients, rates, momentum=0.9, decay=5e-4, coefficient=0.02)
    for ours, theirs in zip(variables, wanted, strict=True):
        np.testing.assert_allclose(ours.numpy(), theirs, rtol=2e-5, atol=2e-5)
    assert np.abs(variables[0].numpy() - weights[0]).max() > 1e-2


def test_a_weight_of_zeros_and_a_gradient_of_zeros_do_no_harm(lars: Any) -> None:
    import tensorflow as tf

    zero, still = tf.Variable(tf.zeros((2, 2))), tf.Variable(tf.ones((2, 2)))
    optimizer = lars.LARS(0.1, momentum=0.0, weight_decay=0.0)
    optimizer.apply_gradients([(tf.ones((2, 2)), zero), (tf.zeros((2, 2)), still)])
    np.testing.assert_allclose(zero.numpy(), -0.1)
    np.testing.assert_allclose(still.numpy(), 1.0)


def test_in_resnet50_only_the_kernels_adapt(lars: Any) -> None:
    from pipeline.training import network

    ranks = [v.shape.rank for v in network.build(32).trainable_variables if not v.name.startswith("logit")]
    assert (len(ranks), sum(rank <= 1 for rank in ranks)) == (212, 159)


def test_saved_and_loaded_in_the_middle_it_goes_on_bit_for_bit(lars: Any, tmp_path: Path) -> None:
    from tensorflow import keras

    def model() -> Any:
        made = keras.Sequential([keras.layers.Dense(4, input_shape=(3,)), keras.layers.Dense(1)])
        made.compile(lars.LARS(lars.WarmUpPolynomial(1.0, 20, 2), trust_coefficient=0.1), "mse")
        return made

    x, y = np.random.default_rng(1).normal(size=(8, 3)).astype(np.float32), np.ones((8, 1), np.float32)
    # Given a training of four steps, saved whole after two
    keras.utils.set_random_seed(7)
    straight = model()
    straight.fit(x, y, batch_size=8, epochs=2, verbose=0)
    with pytest.warns(UserWarning, match="HDF5"):
        straight.save(tmp_path / "middle.h5")
    straight.fit(x, y, batch_size=8, epochs=2, verbose=0)
    # When it is loaded and goes on
    loaded = keras.models.load_model(tmp_path / "middle.h5")
    assert int(loaded.optimizer.iterations) == 2
    loaded.fit(x, y, batch_size=8, epochs=2, verbose=0)
    # Then nothing shows that it was interrupted
    for a, b in zip(straight.get_weights(), loaded.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)
    assert any(np.abs(v.numpy()).max() > 0 for v in loaded.optimizer.momentums)


def test_its_configuration_makes_it_again(lars: Any) -> None:
    first = lars.LARS(lars.WarmUpPolynomial(3.0, 10), momentum=0.8, weight_decay=0.1, trust_coefficient=0.5)
    again = lars.LARS.from_config(first.get_config())
    assert (again.momentum, again.decay, again.trust_coefficient) == (0.8, 0.1, 0.5)
    assert float(again.get_config()["learning_rate"]["config"]["rate"]) == 3.0


def test_cosine_climbs_stays_and_ends_at_nothing(lars: Any) -> None:
    schedule = lars.WarmUpCosine(2.0, steps=100, warm_up=10, flat=0.3)
    rates = [float(schedule(k)) for k in (0, 9, 29, 65, 100)]
    np.testing.assert_allclose(rates, [0.2, 2.0, 2.0, 1.0, 0.0], atol=1e-6)
