"""The network and its weights files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from pipeline.training import network, weights
from pipeline.training.weights import WeightsError

pytestmark = pytest.mark.tensorflow


@pytest.fixture(scope="module")
def model() -> Any:
    pytest.importorskip("tensorflow")
    return network.build(32, mask_head=True)


def _crops(n: int = 3) -> np.ndarray[Any, Any]:
    return np.random.default_rng(5).integers(0, 256, (n, 32, 32, 3), dtype=np.uint8)


def test_layers_are_those_of_keras_applications(model: Any) -> None:
    from tensorflow import keras

    reference = keras.applications.ResNet50(include_top=False, weights=None, pooling="avg", input_shape=(32, 32, 3))
    names = {layer.name for layer in reference.layers if layer.weights}
    assert {layer.name for layer in model.layers if layer.weights} == names | {"logit", "mask"}


def test_outputs_have_the_contracted_shapes(model: Any) -> None:
    logit, mask = model.predict(network.preprocess(_crops()), verbose=0)
    assert logit.shape == (3, 1)
    assert mask.shape == (3, 2, 2, 1)


def test_every_block_starts_as_the_identity(model: Any) -> None:
    gammas = [layer.gamma.numpy() for layer in model.layers if layer.name.endswith("_3_bn")]
    assert len(gammas) == 16
    assert all((gamma == 0).all() for gamma in gammas)


def test_preprocess_spans_minus_one_to_one() -> None:
    assert network.preprocess(np.array([0, 255], np.uint8)).tolist() == [-1.0, 1.0]


@pytest.mark.parametrize("half", [False, True])
def test_weights_survive_the_file_and_keras_reads_it_too(model: Any, tmp_path: Path, half: bool) -> None:
    # Given a network with nothing at its start values
    rng = np.random.default_rng(1)
    for layer in model.layers:
        layer.set_weights([np.abs(rng.normal(0.02, 0.05, w.shape)).astype(np.float32) for w in layer.get_weights()])
    # When it is saved
    (network.save_weights_half if half else network.save_weights)(model, tmp_path / "weights.h5")
    # Then both readers find the same numbers
    ours, theirs = network.build(32, mask_head=True), network.build(32, mask_head=True)
    network.load_weights(ours, tmp_path / "weights.h5")
    theirs.load_weights(tmp_path / "weights.h5")
    for a, b, c in zip(model.get_weights(), ours.get_weights(), theirs.get_weights(), strict=True):
        np.testing.assert_array_equal(b, c)
        np.testing.assert_array_equal(b, a.astype(np.float16).astype(np.float32) if half and a.ndim > 1 else a)


def test_keras_own_weights_file_is_read(model: Any, tmp_path: Path) -> None:
    model.save_weights(tmp_path / "keras.h5")
    other = network.build(32, mask_head=True)
    network.load_weights(other, tmp_path / "keras.h5")
    for a, b in zip(model.get_weights(), other.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)


def test_starting_weights_without_a_logit_are_taken(model: Any, tmp_path: Path) -> None:
    # Given weights as published for ImageNet: no logit, no mask
    named = {name: arrays for name, arrays in network.named_weights(model).items() if name not in ("logit", "mask")}
    weights.write(tmp_path / "imagenet.h5", named, half=False)
    started = network.build(32, weights=tmp_path / "imagenet.h5")
    np.testing.assert_array_equal(started.get_layer("conv1_conv").get_weights()[0], named["conv1_conv"][0])
    with pytest.raises(WeightsError, match="no layer logit"):
        network.load_weights(started, tmp_path / "imagenet.h5")


def test_weights_of_another_shape_are_refused(model: Any) -> None:
    named = network.named_weights(model)
    named["logit"] = [np.zeros((7, 1), np.float32), np.zeros(1, np.float32)]
    with pytest.raises(WeightsError, match="logit"):
        network.load_named(model, named)


def test_a_damaged_file_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "weights.h5").write_bytes(b"\x89HDF\r\n\x1a\nnot really")
    with pytest.raises(WeightsError, match="not a Keras weights file"):
        weights.read(tmp_path / "weights.h5")


def test_the_same_weights_give_the_same_bytes(model: Any, tmp_path: Path) -> None:
    for name in ("a.h5", "b.h5"):
        network.save_weights_half(model, tmp_path / name)
    assert (tmp_path / "a.h5").read_bytes() == (tmp_path / "b.h5").read_bytes()


def test_npz_parts_of_the_port_are_joined(tmp_path: Path) -> None:
    np.savez(tmp_path / "weights-0.npz", **{"logit/1": np.ones(1, np.float32), "conv1_conv/0": np.ones((7, 7, 3, 64), np.float16)})
    np.savez(tmp_path / "weights-1.npz", **{"logit/0": np.ones((2048, 1), np.float16)})
    named = weights.read_any(tmp_path)
    assert [a.shape for a in named["logit"]] == [(2048, 1), (1,)]
    assert all(a.dtype == np.float32 for arrays in named.values() for a in arrays)


@pytest.mark.parametrize("how", ["a soft link", "a link to another file", "of many files", "beside the file", "a group"])
def test_numbers_that_are_not_in_the_file_itself_are_not_read(tmp_path: Path, how: str) -> None:
    """HDF5 can point into any file that the process may read; Keras followed it there (CVE-2026-9335, CVE-2026-12480)."""
    (tmp_path / "secret").write_bytes(np.arange(4, dtype=np.float32).tobytes())
    with h5py.File(tmp_path / "other.h5", "w") as other:
        other["kernel"] = np.arange(4, dtype=np.float32)
    path = tmp_path / "weights.h5"
    weights.write(path, {"logit": [np.zeros((2, 2), np.float32), np.zeros(2, np.float32)]})
    weights.read(path)
    with h5py.File(path, "a") as file:
        group = file["logit"]["logit"]
        del group["kernel:0"]
        if how == "a soft link":
            group["kernel:0"] = h5py.SoftLink("/logit/logit/bias:0")
        elif how == "a link to another file":
            group["kernel:0"] = h5py.ExternalLink("other.h5", "kernel")
        elif how == "of many files":
            layout = h5py.VirtualLayout((4,), np.float32)
            layout[:] = h5py.VirtualSource(str(tmp_path / "other.h5"), "kernel", (4,))
            group.create_virtual_dataset("kernel:0", layout)
        elif how == "beside the file":
            group.create_dataset("kernel:0", (4,), np.float32, external=[(str(tmp_path / "secret"), 0, 16)])
        else:
            group.create_group("kernel:0")
    with pytest.raises(WeightsError, match="kernel:0"):
        weights.read(path)


def test_a_layer_that_lies_in_another_file_is_not_read(tmp_path: Path) -> None:
    weights.write(tmp_path / "other.h5", {"logit": [np.zeros((2, 2), np.float32), np.zeros(2, np.float32)]})
    path = tmp_path / "weights.h5"
    weights.write(path, {"logit": [np.zeros((2, 2), np.float32), np.zeros(2, np.float32)]})
    with h5py.File(path, "a") as file:
        del file["logit"]
        file["logit"] = h5py.ExternalLink("other.h5", "/logit")
    with pytest.raises(WeightsError, match="logit is a link"):
        weights.read(path)
    with h5py.File(path, "w") as file:
        file["model_weights"] = h5py.ExternalLink("other.h5", "/")
    with pytest.raises(WeightsError, match="model_weights is a link"):
        weights.read(path)


def test_a_weight_below_another_weight_is_a_sentence(tmp_path: Path) -> None:
    path = tmp_path / "weights.h5"
    weights.write(path, {"logit": [np.zeros((2, 2), np.float32), np.zeros(2, np.float32)]})
    with h5py.File(path, "a") as file:
        file["logit"].attrs["weight_names"] = [b"logit/kernel:0/deeper"]
    with pytest.raises(WeightsError, match="deeper"):
        weights.read(path)
