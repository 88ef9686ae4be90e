"""The classifier: ResNet50 as in keras.applications with one logit, and optionally a mask that says where.

Layer names are those of `keras.applications.ResNet50`, so weights travel by name between this network, the exported graph
(`export`) and the PyTorch port. TensorFlow is imported when a network is built, not before.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from pipeline.jobs import Pixels
from pipeline.training import weights as files
from pipeline.training.weights import Arrays, WeightsError

INPUT_SIZE = 224
"""Side of the crop in pixels. The paper's is 244; any size from 32 works."""
MASK_LAYER = "conv4_block6_out"
"""The stage that the mask is read from: a sixteenth of the input's resolution."""
_LAST_NORM = re.compile(r"conv\d_block\d+_3_bn")


def preprocess(crops: Pixels) -> npt.NDArray[np.float32]:
    """uint8 RGB crops, any leading shape, to the network's input: x / 127.5 - 1, float32 in [-1, 1]."""
    return crops.astype(np.float32) / np.float32(127.5) - np.float32(1)


def build(
    input_size: int = INPUT_SIZE,
    *,
    mask_head: bool = False,
    dropout: float = 0.0,
    zero_gamma: bool = True,
    weights: Path | None = None,
) -> Any:
    """Build the network as a `keras.Model`.

    Input (n, input_size, input_size, 3) float32, preprocessed. Output `logit` (n, 1) float32; with `mask_head` a list of
    that and `mask` (n, s / 16, s / 16, 1) float32 logits: how likely each patch was changed. `dropout` before the logit.
    `zero_gamma` starts every residual block as the identity. `weights` names a weights-only file to start from: this
    network's own, or ImageNet's as published for keras.applications (with or without top; what has no place here is left
    out, and a missing logit or mask keeps its random start). Raises WeightsError.
    """
    from tensorflow import keras

    base = keras.applications.ResNet50(include_top=False, weights=None, pooling="avg", input_shape=(input_size, input_size, 3))
    if zero_gamma:
        for layer in base.layers:
            if _LAST_NORM.fullmatch(layer.name):
                layer.gamma.assign(np.zeros(layer.gamma.shape, np.float32))
    pooled = keras.layers.Dropout(dropout, name="dropout")(base.output) if dropout else base.output
    # under a mixed policy the outputs stay float32: a loss in bfloat16 has three digits
    logit = keras.layers.Dense(1, name="logit", dtype="float32")(pooled)
    if mask_head:
        mask = keras.layers.Conv2D(1, 1, name="mask", dtype="float32")(base.get_layer(MASK_LAYER).output)
        model = keras.Model(base.input, [logit, mask], name="unmask_resnet50")
    else:
        model = keras.Model(base.input, logit, name="unmask_resnet50")
    if weights is not None:
        load_named(model, files.read(weights), partial=True)
    return model


def named_weights(model: Any) -> dict[str, Arrays]:
    """The model's weights by layer name, float32, in the layers' own order."""
    return {layer.name: [np.asarray(w, np.float32) for w in layer.get_weights()] for layer in model.layers if layer.weights}


def load_named(model: Any, named: Mapping[str, Arrays], *, partial: bool = False) -> None:
    """Put named weights into a model. Extra layers in `named` (a mask that this model has not) are left out.

    Raises WeightsError when a layer is missing or has another shape; with `partial`, a missing logit or mask is allowed.
    """
    for layer in model.layers:
        if not layer.weights:
            continue
        if layer.name not in named:
            if partial and layer.name in ("logit", "mask"):
                continue
            raise WeightsError(f"The weights have no layer {layer.name}.")
        arrays, wanted = named[layer.name], [tuple(w.shape) for w in layer.weights]
        if [a.shape for a in arrays] != wanted:
            raise WeightsError(f"Layer {layer.name} has shapes {[a.shape for a in arrays]} in the weights, {wanted} here.")
        layer.set_weights(arrays)


def load_weights(model: Any, path: Path) -> None:
    """Load a weights-only file, float32 or half. Raises WeightsError."""
    load_named(model, files.read(path))


def save_weights(model: Any, path: Path) -> None:
    """Write the weights in full precision."""
    files.write(path, named_weights(model), half=False)


def save_weights_half(model: Any, path: Path) -> None:
    """Write the weights with kernels in half precision; `load_weights` and Keras' own both read them."""
    files.write(path, named_weights(model), half=True)
