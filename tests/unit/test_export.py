"""The exported graph says what Keras says."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline.training import export, network
from pipeline.training.weights import WeightsError

SIZE = 64


def smooth_crops(n: int = 5) -> Any:
    """Smooth random pictures: nearer to faces than noise is."""
    import cv2

    rng = np.random.default_rng(3)
    return np.stack(
        [cv2.resize(rng.integers(0, 256, (8, 8, 3), dtype=np.uint8), (SIZE, SIZE), interpolation=cv2.INTER_CUBIC) for _ in range(n)]
    )


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A network whose weights, running means and variances are all away from their start values."""
    pytest.importorskip("tensorflow")
    model = network.build(SIZE, mask_head=True)
    rng = np.random.default_rng(1)
    for layer in model.layers:
        if layer.name.endswith("_bn"):
            n = layer.gamma.shape[0]
            values = [rng.uniform(0.5, 1.5, n), rng.normal(0, 0.1, n), rng.normal(0, 0.1, n), rng.uniform(0.5, 2, n)]
            layer.set_weights([v.astype(np.float32) for v in values])
    path = tmp_path_factory.mktemp("export") / "weights.h5"
    network.save_weights_half(model, path)
    return path


@pytest.mark.tensorflow
def test_openvino_gives_the_scores_of_keras(weights: Path, tmp_path: Path) -> None:
    model = export.to_openvino(weights, tmp_path, input_size=SIZE)
    reference, exported = export.keras_logits(weights, smooth_crops()), export.openvino_logits(model, smooth_crops())
    assert np.ptp(reference) > 1e-3
    np.testing.assert_allclose(exported, reference, rtol=1e-4, atol=1e-4)


@pytest.mark.tensorflow
def test_the_graph_is_half_precision_on_disk_and_takes_any_number_of_raw_crops(weights: Path, tmp_path: Path) -> None:
    import openvino as ov

    model = export.to_openvino(weights, tmp_path, input_size=SIZE)
    assert model.with_suffix(".bin").stat().st_size <= 48_000_000
    graph = ov.Core().read_model(model)
    assert graph.input(0).element_type == ov.Type.u8
    assert graph.input(0).partial_shape == ov.PartialShape([-1, SIZE, SIZE, 3])
    assert graph.output(0).get_names() == {"logit"}
    assert len(export.openvino_logits(model, smooth_crops(1))) == 1
    assert len(export.openvino_logits(model, smooth_crops(17))) == 17


@pytest.mark.tensorflow
def test_the_mask_comes_along_when_asked(weights: Path, tmp_path: Path) -> None:
    import openvino as ov

    keras = network.build(SIZE, mask_head=True)
    network.load_weights(keras, weights)
    compiled = ov.Core().compile_model(
        export.to_openvino(weights, tmp_path, input_size=SIZE, mask=True), "CPU", {"INFERENCE_PRECISION_HINT": "f32"}
    )
    wanted = keras.predict(network.preprocess(smooth_crops()), verbose=0)[1]
    np.testing.assert_allclose(compiled(smooth_crops())["mask"], wanted, rtol=1e-3, atol=1e-3)


def test_an_int8_export_without_nncf_says_how_to_get_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "nncf", None)
    with pytest.raises(export.ExportError, match=r"needs NNCF.*pip install 'unmask\[int8\]'"):
        export.to_int8(tmp_path / "weights.h5", tmp_path, smooth_crops(1))


def test_weights_of_something_else_are_refused(tmp_path: Path) -> None:
    from pipeline.training import weights as files

    files.write(tmp_path / "other.h5", {"dense": [np.zeros((2, 2), np.float32)]})
    with pytest.raises(WeightsError, match="conv1_conv"):
        export.to_openvino(tmp_path / "other.h5", tmp_path)


def test_the_command_ends_with_a_sentence_and_code_2(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        export.main(["--weights", str(tmp_path / "nothing.h5"), "--out", str(tmp_path)])
    assert ended.value.code == 2
    assert "not a Keras weights file" in capsys.readouterr().err


def test_difference_counts_only_flips_across_the_band_as_hard() -> None:
    reference = np.array([0.1, 0.1, 0.9, 0.5], np.float32)
    other = np.array([0.1, 0.5, 0.1, 0.5], np.float32)
    found = export.difference(reference, other, (0.3, 0.7))
    assert (found["flips"], found["hard_flips"], found["n"]) == (2, 1, 4)
    assert found["largest"] == pytest.approx(0.8)


def test_a_precision_that_flips_a_verdict_is_not_the_default() -> None:
    good, bad = {"n": 10, "hard_flips": 0, "largest": 0.004}, {"n": 10, "hard_flips": 1, "largest": 0.9}
    assert export.default_precision({"bf16": good, "int8": bad})[0] == "bf16"
    assert export.default_precision({"bf16": bad, "int8": bad})[0] == "f32"
