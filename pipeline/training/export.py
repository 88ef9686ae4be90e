"""From weights to what serving runs: `model.xml` and `model.bin` for OpenVINO, and a measure of how far each precision strays.

python -m pipeline.training.export --weights weights.h5 --out FOLDER [--mask]
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from pipeline.jobs import Pixels
from pipeline.training import weights as files
from pipeline.training.graph import resnet50
from pipeline.training.weights import WeightsError

Scores = npt.NDArray[np.float32]
BATCH = 16


class ExportError(Exception):
    """Something needed for an export is not there. Always permanent."""

    permanent = True


def to_openvino(weights: Path, folder: Path, *, input_size: int = 224, mask: bool = False, name: str = "model") -> Path:
    """Write `{name}.xml` and `{name}.bin` into `folder` from a weights-only file; returns the path of the `.xml`.

    Input `crops` (n, input_size, input_size, 3) uint8 RGB; output `logit` (n, 1), with `mask` also `mask`. Kernels stay in
    half precision on disk if they are in the weights file. Raises WeightsError.
    """
    import openvino as ov

    folder.mkdir(parents=True, exist_ok=True)
    target = folder / f"{name}.xml"
    ov.save_model(_graph(weights, input_size, mask=mask), target, compress_to_fp16=False)
    return target


def to_int8(
    weights: Path, folder: Path, calibration: Sequence[Pixels] | Pixels, *, input_size: int = 224, name: str = "model-int8"
) -> Path:
    """Write an 8-bit variant, quantised by NNCF on calibration crops (a few hundred training reals and fakes, mixed).

    Raises ExportError where NNCF is not installed, and WeightsError.
    """
    import openvino as ov

    try:
        import nncf
    except ImportError as error:
        raise ExportError("An int8 export needs NNCF, which is not installed: pip install 'unmask[int8]'.") from error
    folder.mkdir(parents=True, exist_ok=True)
    data = nncf.Dataset([np.asarray(crop)[None] for crop in calibration])
    graph = nncf.quantize(
        _graph(weights, input_size, fold=True),
        data,
        preset=nncf.QuantizationPreset.MIXED,
        subset_size=len(calibration),
        fast_bias_correction=False,
    )
    target = folder / f"{name}.xml"
    ov.save_model(graph, target, compress_to_fp16=False)
    return target


def _graph(weights: Path, input_size: int, **how: bool) -> Any:
    try:
        return resnet50(files.read(weights), input_size, **how)
    except (RuntimeError, ValueError) as error:  # OpenVINO's, and NumPy's: layers of these names, but of other shapes
        raise WeightsError(f"The weights in {weights} are of another network than this ResNet50: their shapes do not fit.") from error


def openvino_logits(model: Path, crops: Pixels, *, precision: str = "f32", threads: int = 0) -> Scores:
    """Logits (n,) of crops (n, s, s, 3) uint8 by an exported graph. `precision`: f32 or bf16, how float layers compute."""
    import openvino as ov

    options: dict[str, Any] = {"INFERENCE_PRECISION_HINT": precision, "PERFORMANCE_HINT": "LATENCY"}
    if threads:
        options["INFERENCE_NUM_THREADS"] = threads
    compiled = ov.Core().compile_model(model, "CPU", options)
    return np.concatenate([compiled(batch)["logit"][:, 0] for batch in _batches(crops)] or [np.empty(0, np.float32)])


def has_bf16() -> bool:
    """Whether this processor computes in bfloat16; on others OpenVINO takes float32 instead."""
    import openvino as ov

    return "BF16" in ov.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")


def keras_logits(weights: Path, crops: Pixels) -> Scores:
    """The reference: logits (n,) by Keras in float32."""
    from pipeline.training import network

    model = network.build(crops.shape[1])
    network.load_weights(model, weights)
    return np.concatenate([np.asarray(model(network.preprocess(batch), training=False))[:, 0] for batch in _batches(crops)])


def difference(reference: Scores, other: Scores, thresholds: tuple[float, float]) -> dict[str, float]:
    """How far scores (0 to 1) of another precision lie from the reference's.

    `largest` and `mean` absolute difference; `flips`: verdicts that changed at all; `hard_flips`: between authentic and
    manipulated, or out of either of these into the other's territory, not counting moves into or out of `uncertain`.
    """
    gap = np.abs(reference - other)
    ours, theirs = (np.digitize(s, thresholds) for s in (reference, other))
    return {
        "n": len(reference),
        "largest": float(gap.max(initial=0)),
        "mean": float(gap.mean()) if len(gap) else 0.0,
        "flips": int((ours != theirs).sum()),
        "hard_flips": int((np.abs(ours - theirs) == 2).sum()),
    }


def default_precision(measured: Mapping[str, Mapping[str, float]]) -> tuple[str, str]:
    """Which precision serves by default and why: the fastest without a verdict flip outside the uncertain band."""
    for precision in ("int8", "bf16"):
        if precision in measured and measured[precision]["hard_flips"] == 0 and measured[precision]["largest"] <= 0.02:
            return (
                precision,
                f"fastest precision without a flip between authentic and manipulated on {measured[precision]['n']:.0f} test crops",
            )
    return "f32", "no faster precision kept every verdict outside the uncertain band"


def _batches(crops: Pixels) -> Iterator[Pixels]:
    for start in range(0, len(crops), BATCH):
        yield crops[start : start + BATCH]


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description="Export weights to an OpenVINO graph.")
    parser.add_argument("--weights", type=Path, required=True, help="weights-only .h5")
    parser.add_argument("--out", type=Path, required=True, help="folder for model.xml and model.bin")
    parser.add_argument("--size", type=int, default=224, help="side of the crop in pixels")
    parser.add_argument("--mask", action="store_true", help="also export the mask head")
    chosen = parser.parse_args(arguments)
    try:
        print(to_openvino(chosen.weights, chosen.out, input_size=chosen.size, mask=chosen.mask))  # noqa: T201
    except WeightsError as error:
        parser.exit(2, f"{error}\n")


if __name__ == "__main__":
    main()
