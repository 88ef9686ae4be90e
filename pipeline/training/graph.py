"""The network as an OpenVINO graph, laid out operation by operation from its weights: no TensorFlow, no converter.

The kernels go in as they are on disk (half precision stays half precision) and are widened when the graph is compiled, so the
graph computes with exactly the numbers that TensorFlow reads from the same file.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from pipeline.training.weights import Arrays, WeightsError

EPSILON = 1.001e-5
"""Batch-norm epsilon of keras.applications' ResNets."""
STAGES = ((2, 3, 1), (3, 4, 2), (4, 6, 2), (5, 3, 2))
"""(Keras' stage number, blocks, stride of the first block)."""


def resnet50(named: Mapping[str, Arrays], input_size: int, *, mask: bool = False, fold: bool = False) -> Any:
    """The graph as an `openvino.Model`.

    Input `crops` (n, s, s, 3) uint8 RGB, n free; the preprocessing is inside. Output `logit` (n, 1) float32 and, with `mask`,
    `mask` (n, s / 16, s / 16, 1) float32 logits. `fold` merges each batch norm into its convolution in float32: for
    quantisation, not for exactness. Raises WeightsError when a layer is missing.
    """
    import openvino as ov
    from openvino import opset13 as ops

    def arrays(layer: str) -> Arrays:
        if layer not in named:
            raise WeightsError(f"The weights have no layer {layer}.")
        return named[layer]

    def constant(array: Any, name: str) -> Any:
        half = np.asarray(array, np.float16)
        if np.array_equal(half.astype(np.float32), array):
            return ops.convert(ops.constant(half, name=name), "f32")
        return ops.constant(np.asarray(array, np.float32), name=name)

    def convolution(x: Any, layer: str, norm: str, *, stride: int = 1, pad: int = 0) -> Any:
        kernel, bias = arrays(layer)
        kernel = np.ascontiguousarray(kernel.transpose(3, 2, 0, 1))  # OpenVINO reads the memory as it lies
        gamma, beta, mean, variance = arrays(norm) if norm else [np.empty(0, np.float32)] * 4
        if norm and fold:
            gain = gamma / np.sqrt(variance + np.float32(EPSILON))
            kernel, bias = kernel * gain[:, None, None, None], (bias - mean) * gain + beta
        weights = ops.constant(kernel, name=f"{layer}/kernel") if norm and fold else constant(kernel, f"{layer}/kernel")
        x = ops.convolution(x, weights, [stride] * 2, [pad] * 2, [pad] * 2, [1, 1], name=layer)
        x = ops.add(x, ops.constant(bias.reshape(1, -1, 1, 1)), name=f"{layer}/bias")
        if norm and not fold:
            x = ops.batch_norm_inference(x, *(ops.constant(a) for a in (gamma, beta, mean, variance)), EPSILON, name=norm)
        return x

    def block(x: Any, name: str, stride: int, project: bool) -> Any:
        short = convolution(x, f"{name}_0_conv", f"{name}_0_bn", stride=stride) if project else x
        x = ops.relu(convolution(x, f"{name}_1_conv", f"{name}_1_bn", stride=stride))
        x = ops.relu(convolution(x, f"{name}_2_conv", f"{name}_2_bn", pad=1))
        x = convolution(x, f"{name}_3_conv", f"{name}_3_bn")
        return ops.relu(ops.add(short, x), name=f"{name}_out")

    crops = ops.parameter([-1, input_size, input_size, 3], dtype=np.uint8, name="crops")
    x = ops.subtract(ops.divide(ops.convert(crops, "f32"), np.float32(127.5)), np.float32(1))
    x = ops.transpose(x, np.array([0, 3, 1, 2]))
    x = ops.relu(convolution(x, "conv1_conv", "conv1_bn", stride=2, pad=3))
    # Keras pads with zeros; after a ReLU that is the same as not looking there
    x = ops.max_pool(x, [2, 2], [1, 1], [1, 1], [1, 1], [3, 3]).output(0)
    where = x
    for number, blocks, stride in STAGES:
        for index in range(1, blocks + 1):
            x = block(x, f"conv{number}_block{index}", stride if index == 1 else 1, index == 1)
        where = x if number == 4 else where
    pooled = ops.reduce_mean(x, np.array([2, 3]), keep_dims=False, name="avg_pool")
    kernel, bias = arrays("logit")
    results = [ops.result(_named(ops.add(ops.matmul(pooled, constant(kernel, "logit/kernel"), False, False), bias), "logit"))]
    if mask:
        changed = ops.transpose(convolution(where, "mask", ""), np.array([0, 2, 3, 1]))
        results.append(ops.result(_named(changed, "mask")))
    crops.output(0).set_names({"crops"})
    return ov.Model(results, [crops], "unmask_resnet50")


def _named(node: Any, name: str) -> Any:
    node.set_friendly_name(name)
    node.output(0).set_names({name})
    return node
