"""Faces judged: crops go in, a calibrated probability of manipulation and a verdict come out."""

from __future__ import annotations

import math
import os
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from pipeline.card import Card, ModelError, verify
from pipeline.jobs import ModelName, Pixels, Verdict

Logits = npt.NDArray[np.float32]
WEIGHTS = "weights.h5"
GRAPH = "model"
"""`model.xml` and `model.bin`; of the int8 export `model-int8.xml` and `model-int8.bin`."""


class Classifier:
    """A loaded model version. Several threads may use one at once. Make it after a fork.

    Attributes:
        card: what the version says of itself.
        name: name, version and the sha256 of the file whose weights are run.
        precision: what the arithmetic is really done in: `f32`, `bf16` or `int8`.
    """

    def __init__(self, card: Card, name: ModelName, precision: str, run: Callable[[Pixels], Logits]) -> None:
        self.card = card
        self.name = name
        self.precision = precision
        self._run = run

    def logits(self, crops: Pixels) -> Logits:
        """Raw outputs, (n,) float32, for `crops` (n, s, s, 3) uint8 RGB with s the card's input size.

        Raises ValueError for another shape, ModelError if the model gives something that is not a number.
        """
        size = self.card.input_size
        if crops.dtype != np.uint8 or crops.ndim != 4 or crops.shape[1:] != (size, size, 3):
            raise ValueError(f"crops must be (n, {size}, {size}, 3) uint8, not {crops.shape} {crops.dtype}")
        if len(crops) == 0:
            return np.empty(0, np.float32)
        logits = self._run(crops)
        if not np.isfinite(logits).all():
            raise ModelError(f"{self.card.name} {self.card.version} gave a score that is not a number.")
        return logits

    def judge(self, crops: Pixels) -> list[tuple[float, Verdict]]:
        """For each crop the calibrated probability of manipulation, 0 to 1, and the verdict by the card's thresholds."""
        scores = [probability(logit, self.card.temperature) for logit in self.logits(crops).tolist()]
        return [(score, self.verdict(score)) for score in scores]

    def verdict(self, score: float) -> Verdict:
        """What the card's thresholds make of a score."""
        return self.card.thresholds.verdict(score)


def probability(logit: float, temperature: float) -> float:
    """Temperature scaling (Guo et al. 2017, 1706.04599): sigmoid(logit / temperature)."""
    return 0.5 * (1.0 + math.tanh(0.5 * logit / temperature))


def load(folder: Path, *, runtime: str, precision: str, threads: int | None = None) -> Classifier:
    """Verify the version in `folder` against its card, then load it.

    Args:
        folder: a version folder, as `registry.fetch` gives it.
        runtime: `openvino` (serving) or `tensorflow` (the reference; needs TensorFlow).
        precision: `f32`, `bf16`, `int8`, or `auto`: what the card names as its default (with TensorFlow: `f32`). `f32` is
            float32 throughout, even where the processor would offer less. `bf16` on a processor without it runs in float32.
            TensorFlow runs in `f32` only.
        threads: of one inference; None: as many as this process has cores.

    Raises ModelError if a file is missing or altered, if the version has no such precision, or if its graph does not
    take crops and give one logit each.
    """
    card = verify(folder)
    threads = threads or len(os.sched_getaffinity(0))
    if precision == "auto":
        precision = card.precision.get("default", "f32") if runtime == "openvino" else "f32"
    if runtime == "openvino":
        return _openvino(folder, card, precision, threads)
    if runtime == "tensorflow":
        return _tensorflow(folder, card, precision, threads)
    raise ModelError(f"There is no runtime {runtime}: take openvino or tensorflow.")


def _named(folder: Path, card: Card, file: str) -> Path:
    if file not in card.files:
        raise ModelError(f"{card.name} {card.version} has no {file}, which this runtime and precision need.")
    return folder / file


def _openvino(folder: Path, card: Card, precision: str, threads: int) -> Classifier:
    import openvino

    graph = f"{GRAPH}-int8" if precision == "int8" else GRAPH
    topology, weights = _named(folder, card, f"{graph}.xml"), _named(folder, card, f"{graph}.bin")
    options = {
        # Left to itself OpenVINO computes in bfloat16 wherever the processor has it, and scores change.
        "INFERENCE_PRECISION_HINT": "bf16" if precision == "bf16" else "f32",
        "INFERENCE_NUM_THREADS": threads,
        "NUM_STREAMS": 1,
        "ENABLE_CPU_PINNING": False,  # other processes use the same cores
    }
    try:
        core = openvino.Core()
        model = core.read_model(topology, weights)
        _check_signature(model, card)
        compiled = core.compile_model(model, "CPU", options)
    except RuntimeError as error:
        reason = str(error).strip().splitlines()[-1]
        raise ModelError(f"OpenVINO cannot load {card.name} {card.version} from {topology.name}: {reason}") from error
    real = "bf16" if compiled.get_property("INFERENCE_PRECISION_HINT") == openvino.Type.bf16 else "f32"
    takes_bytes = compiled.input(0).get_element_type() == openvino.Type.u8
    requests = threading.local()

    def run(crops: Pixels) -> Logits:
        if not hasattr(requests, "mine"):
            requests.mine = compiled.create_infer_request()
        requests.mine.infer([np.ascontiguousarray(crops) if takes_bytes else prepared(crops)])
        output: Logits = np.array(requests.mine.get_output_tensor(0).data, np.float32).reshape(-1)
        return output

    name = ModelName(card.name, card.version, card.files[weights.name])
    return Classifier(card, name, "int8" if precision == "int8" else real, run)


def _check_signature(model: Any, card: Card) -> None:
    """Raise ModelError unless the graph takes (n, s, s, 3) and its first output is (n, 1) or (n,)."""
    takes, gives = model.input(0).get_partial_shape(), model.output(0).get_partial_shape()
    fits = len(model.inputs) == 1 and takes.rank.is_static and len(takes) == 4 and takes[0].is_dynamic
    if not (fits and [str(side) for side in takes][1:] == [str(card.input_size), str(card.input_size), "3"]):
        raise ModelError(f"The graph of {card.name} {card.version} takes {takes}, not (n, {card.input_size}, {card.input_size}, 3).")
    if not (gives.rank.is_static and (len(gives) == 1 or (len(gives) == 2 and str(gives[1]) == "1"))):
        raise ModelError(f"The graph of {card.name} {card.version} gives {gives}, not one logit for each crop.")


def _tensorflow(folder: Path, card: Card, precision: str, threads: int) -> Classifier:
    weights = _named(folder, card, WEIGHTS)
    if precision != "f32":
        raise ModelError(f"The runtime tensorflow computes in f32 only, not in {precision}: use the runtime openvino for it.")
    from pipeline.training import network
    from pipeline.training.weights import WeightsError

    try:
        import tensorflow
    except ImportError as error:
        raise ModelError("The runtime tensorflow needs TensorFlow, which is not installed: pip install 'unmask[train]'.") from error
    with suppress(RuntimeError):  # it can be said once, before TensorFlow's first operation
        tensorflow.config.threading.set_intra_op_parallelism_threads(threads)
    try:
        model = network.build(card.input_size)
        network.load_weights(model, weights)
    except WeightsError as error:
        raise ModelError(f"TensorFlow cannot load {card.name} {card.version}: {error}") from error

    def run(crops: Pixels) -> Logits:
        return np.asarray(model(prepared(crops), training=False), np.float32).reshape(-1)

    return Classifier(card, ModelName(card.name, card.version, card.files[WEIGHTS]), "f32", run)


def prepared(crops: Pixels) -> npt.NDArray[np.float32]:
    """What a network sees of uint8 crops: float32, x / 127.5 - 1, so -1 to 1."""
    return crops.astype(np.float32) / np.float32(127.5) - np.float32(1)
