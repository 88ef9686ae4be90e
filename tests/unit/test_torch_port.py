"""The PyTorch port and the Keras network are one network. PyTorch is in none of the environments: run it where there is one."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from pipeline.training import network
from pipeline.training.calibration import scores
from tests.unit.test_export import smooth_crops

SIZE = 64


@pytest.fixture(scope="module")
def port() -> Any:
    """The port's network, with no number at its start value: neither weights nor biases nor running means and variances."""
    torch = pytest.importorskip("torch")
    from pipeline.training import torch_port

    torch.manual_seed(1)
    made = torch_port.Network()
    for name, module in made.named_modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            gain = 0.7 if name.endswith("n3") else 1.0  # what each block adds piles up
            for values, low, high in (
                (module.weight, 0.5 * gain, 1.5 * gain),
                (module.bias, -0.2, 0.2),
                (module.running_mean, -0.2, 0.2),
                (module.running_var, 0.5, 2.0),
            ):
                torch.nn.init.uniform_(values, low, high)
        elif isinstance(module, torch.nn.Conv2d | torch.nn.Linear):
            torch.nn.init.uniform_(module.bias, -0.1, 0.1)
    # scores around a half that differ from crop to crop, where a wrong logit shows most
    torch.nn.init.normal_(made.logit.weight, std=0.1)
    made.logit.bias.data -= float(torch_port.logits(made, smooth_crops(), "cpu").mean())
    return made


@pytest.mark.tensorflow
def test_both_give_the_same_scores_and_masks(port: Any) -> None:
    pytest.importorskip("tensorflow")
    import torch

    from pipeline.training import torch_port

    # Given the port's weights in the Keras network
    keras = network.build(SIZE, mask_head=True)
    network.load_named(keras, torch_port.to_keras(port))
    # When both see the same crops
    prepared = network.preprocess(smooth_crops())
    logit, mask = (np.asarray(found) for found in keras(prepared, training=False))
    own = torch_port.logits(port, smooth_crops(), "cpu", batch=2)
    with torch.no_grad():
        own_mask = port(torch.from_numpy(prepared).permute(0, 3, 1, 2))[1].numpy()
    # Then
    wanted = scores(logit[:, 0], 1.0)
    assert np.ptp(wanted) > 1e-2, "crops that all look alike would show nothing"
    np.testing.assert_allclose(scores(own, 1.0), wanted, rtol=0, atol=1e-4)
    assert np.ptp(mask) > 1e-2
    np.testing.assert_allclose(scores(own_mask, 1.0), scores(mask[..., 0], 1.0), rtol=0, atol=1e-4)


def test_weights_come_back_from_keras_as_they_went(port: Any) -> None:
    from pipeline.training import torch_port

    named = torch_port.to_keras(port)
    other = torch_port.Network()
    torch_port.from_keras(other, named)
    again = torch_port.to_keras(other)
    assert list(again) == list(named)
    for layer, arrays in named.items():
        for before, after in zip(arrays, again[layer], strict=True):
            np.testing.assert_array_equal(after, before, err_msg=layer)
    np.testing.assert_array_equal(torch_port.logits(other, smooth_crops(), "cpu"), torch_port.logits(port, smooth_crops(), "cpu"))
