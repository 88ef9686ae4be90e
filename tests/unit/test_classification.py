"""Classifier, verdicts and precision, on real OpenVINO graphs; the Keras runtime where TensorFlow is installed."""

import threading
from pathlib import Path
from typing import Any

import numpy as np
import openvino
import pytest
from openvino import opset13 as op

from pipeline.card import ModelError
from pipeline.classification import Classifier, load, prepared, probability
from pipeline.jobs import Pixels, Verdict
from tests.fixtures.models import write_card, write_model

SIZE = 224
LONG_SUM = 5e-3
"""What rounding may do to the tiny model: it adds up 50,176 pixels in float32, one after the other."""


def crops(*colours: tuple[int, int, int], size: int = SIZE) -> Pixels:
    return np.stack([np.full((size, size, 3), colour, np.uint8) for colour in colours])


@pytest.fixture
def classifier(model_folder: Path) -> Classifier:
    return load(model_folder, runtime="openvino", precision="f32", threads=1)


def test_logits_are_what_the_graph_says(classifier: Classifier) -> None:
    found = classifier.logits(crops((0, 255, 0), (255, 0, 0), (90, 90, 90), (200, 150, 120)))
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, [8, -8, 0, 4 * (150 - 200) / 127.5], atol=LONG_SUM)


def test_scores_and_verdicts_follow_the_card(classifier: Classifier) -> None:
    judged = classifier.judge(crops((0, 255, 0), (90, 90, 90), (200, 150, 120)))
    assert [verdict for _, verdict in judged] == [Verdict.MANIPULATED, Verdict.UNCERTAIN, Verdict.AUTHENTIC]
    assert [score for score, _ in judged] == pytest.approx([0.99966, 0.5, 0.17244], abs=1e-4)


def test_temperature_softens_scores(tmp_path: Path) -> None:
    soft = load(write_model(tmp_path, temperature=4.0), runtime="openvino", precision="f32")
    [(score, _)] = soft.judge(crops((0, 255, 0)))
    assert score == pytest.approx(1 / (1 + np.exp(-2.0)), abs=1e-6)


@pytest.mark.parametrize(
    ("score", "verdict"),
    [
        (0.0, Verdict.AUTHENTIC),
        (0.4499, Verdict.AUTHENTIC),
        (0.45, Verdict.UNCERTAIN),
        (0.5499, Verdict.UNCERTAIN),
        (0.55, Verdict.MANIPULATED),
        (1.0, Verdict.MANIPULATED),
    ],
)
def test_a_threshold_belongs_to_the_verdict_above_it(classifier: Classifier, score: float, verdict: Verdict) -> None:
    assert classifier.verdict(score) is verdict


def test_one_threshold_leaves_nothing_uncertain(tmp_path: Path) -> None:
    folder = write_model(tmp_path, thresholds={"authentic_below": 0.5, "manipulated_from": 0.5})
    strict = load(folder, runtime="openvino", precision="f32")
    assert strict.verdict(0.5) is Verdict.MANIPULATED
    assert strict.verdict(np.nextafter(0.5, 0)) is Verdict.AUTHENTIC


@pytest.mark.parametrize("logit", [-1e4, -30.0, 0.0, 30.0, 1e4])
def test_extreme_logits_stay_probabilities(logit: float) -> None:
    assert 0.0 <= probability(logit, 0.5) <= 1.0
    assert probability(logit, 1.0) + probability(-logit, 1.0) == pytest.approx(1.0)


def test_the_score_of_a_crop_does_not_depend_on_its_batch(classifier: Classifier) -> None:
    many = np.random.default_rng(5).integers(0, 256, (9, SIZE, SIZE, 3), np.uint8)
    together = classifier.logits(many)
    alone = np.concatenate([classifier.logits(many[index : index + 1]) for index in range(9)])
    np.testing.assert_allclose(together, alone, atol=1e-6)


def test_threads_do_not_mix_up_their_answers(classifier: Classifier) -> None:
    wrong: list[float] = []

    def ask(green: int) -> None:
        expected = 4 * green / 127.5
        for _ in range(30):
            found = float(classifier.logits(crops((0, green, 0)))[0])
            if abs(found - expected) > LONG_SUM:
                wrong.append(found)

    threads = [threading.Thread(target=ask, args=(green,)) for green in (10, 120, 230)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_no_crops_no_logits(classifier: Classifier) -> None:
    assert classifier.logits(np.empty((0, SIZE, SIZE, 3), np.uint8)).shape == (0,)
    assert classifier.judge(np.empty((0, SIZE, SIZE, 3), np.uint8)) == []


@pytest.mark.parametrize("wrong", [np.zeros((1, 10, SIZE, 3), np.uint8), np.zeros((SIZE, SIZE, 3), np.uint8), np.zeros((1, SIZE, SIZE, 3))])
def test_crops_of_another_shape_are_refused(classifier: Classifier, wrong: Pixels) -> None:
    with pytest.raises(ValueError, match="crops must be"):
        classifier.logits(wrong)


def test_the_name_tells_which_weights_ran(classifier: Classifier) -> None:
    assert (classifier.name.name, classifier.name.version) == ("green", "1")
    assert classifier.name.sha256 == classifier.card.files["model.bin"]


def test_a_score_that_is_not_a_number_is_an_error(tmp_path: Path) -> None:
    broken = load(write_model(tmp_path, gain=float("nan")), runtime="openvino", precision="f32")
    with pytest.raises(ModelError, match="not a number"):
        broken.logits(crops((1, 2, 3)))


def convolutional(folder: Path, *, kernel: np.ndarray, **card: Any) -> Path:
    """A version whose graph is one wide convolution, summed: the kind of arithmetic that bfloat16 changes."""
    size = 32
    taken = op.parameter([-1, size, size, 3], np.uint8, name="crops")
    image = op.transpose(op.divide(op.convert(taken, np.float32), np.float32(255)), np.array([0, 3, 1, 2]))
    convolved = op.convolution(image, op.constant(kernel), [1, 1], [1, 1], [1, 1], [1, 1])
    logit = op.reduce_mean(convolved, np.array([2, 3]), keep_dims=False)
    logit = op.matmul(logit, op.constant(np.ones((len(kernel), 1), np.float32)), False, False)
    folder.mkdir(parents=True)
    openvino.save_model(openvino.Model([logit], [taken], "wide"), folder / "model.xml", compress_to_fp16=False)
    return write_card(folder, name="wide", version="1", input_size=size, **card)


def test_f32_is_float32_even_where_the_processor_prefers_less(tmp_path: Path) -> None:
    # Given a convolution whose float64 result is known
    random = np.random.default_rng(7)
    kernel = random.normal(size=(64, 3, 3, 3)).astype(np.float32)
    pictures = random.integers(0, 256, (4, 32, 32, 3), np.uint8)
    padded = np.pad(pictures.astype(np.float64) / 255, ((0, 0), (1, 1), (1, 1), (0, 0)))
    windows = np.lib.stride_tricks.sliding_window_view(padded, (3, 3), axis=(1, 2)).mean(axis=(1, 2))
    exact = np.einsum("ncij,kcij->n", windows, kernel.astype(np.float64))
    # When it is run in f32 and in bf16
    folder = convolutional(tmp_path / "wide", kernel=kernel)
    full = load(folder, runtime="openvino", precision="f32")
    half = load(folder, runtime="openvino", precision="bf16")
    # Then f32 is exact to float32's own rounding, and bf16, where there is such a thing, is not
    assert full.precision == "f32"
    assert np.abs(full.logits(pictures) - exact).max() < 1e-4
    if "BF16" in openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
        assert half.precision == "bf16"
        assert np.abs(half.logits(pictures) - exact).max() > 1e-3
    else:
        assert half.precision == "f32"


def test_auto_is_what_the_card_names(tmp_path: Path) -> None:
    kernel = np.random.default_rng(7).normal(size=(64, 3, 3, 3)).astype(np.float32)
    pictures = np.random.default_rng(8).integers(0, 256, (4, 32, 32, 3), np.uint8)
    for named in ("f32", "bf16"):
        folder = convolutional(tmp_path / named, kernel=kernel, precision={"default": named})
        found, wanted = (load(folder, runtime="openvino", precision=precision) for precision in ("auto", named))
        assert found.precision == wanted.precision
        np.testing.assert_array_equal(found.logits(pictures), wanted.logits(pictures))


def test_a_card_that_names_no_known_precision_is_refused(tmp_path: Path) -> None:
    folder = write_model(tmp_path, precision={"default": "fp4"})
    with pytest.raises(ModelError, match="precision's default must be one of f32, bf16, int8"):
        load(folder, runtime="openvino", precision="auto")


def test_float_input_graphs_get_prepared_crops(tmp_path: Path) -> None:
    taken = op.parameter([-1, 8, 8, 3], np.float32, name="crops")
    means = op.reduce_mean(taken, np.array([1, 2]), keep_dims=False)
    logit = op.matmul(means, op.constant(np.array([[0.0], [1.0], [0.0]], np.float32)), False, False)
    folder = tmp_path / "float"
    folder.mkdir()
    openvino.save_model(openvino.Model([logit], [taken]), folder / "model.xml", compress_to_fp16=False)
    write_card(folder, name="float", version="1", input_size=8)
    found = load(folder, runtime="openvino", precision="f32").logits(crops((9, 255, 9), (9, 0, 9), size=8))
    np.testing.assert_allclose(found, [1, -1], atol=1e-6)


def test_prepared_spans_minus_one_to_one() -> None:
    assert prepared(np.array([0, 255], np.uint8)).tolist() == [-1.0, 1.0]


def test_a_graph_of_another_size_is_refused(tmp_path: Path) -> None:
    folder = write_model(tmp_path, size=96)
    write_card(folder, name="green", version="1", input_size=SIZE)
    with pytest.raises(ModelError, match=r"takes .*96.* not \(n, 224, 224, 3\)"):
        load(folder, runtime="openvino", precision="f32")


def test_a_graph_with_many_outputs_per_crop_is_refused(tmp_path: Path) -> None:
    taken = op.parameter([-1, 8, 8, 3], np.uint8, name="crops")
    means = op.reduce_mean(op.convert(taken, np.float32), np.array([1, 2]), keep_dims=False)
    openvino.save_model(openvino.Model([means], [taken]), tmp_path / "model.xml")
    write_card(tmp_path, name="means", version="1", input_size=8)
    with pytest.raises(ModelError, match="not one logit"):
        load(tmp_path, runtime="openvino", precision="f32")


def test_a_precision_that_was_not_exported_is_refused(model_folder: Path) -> None:
    with pytest.raises(ModelError, match=r"has no model-int8\.xml"):
        load(model_folder, runtime="openvino", precision="int8")


def test_an_unknown_runtime_is_refused(model_folder: Path) -> None:
    with pytest.raises(ModelError, match="no runtime magic"):
        load(model_folder, runtime="magic", precision="f32")


@pytest.mark.parametrize("damage", ["altered", "truncated", "missing"])
@pytest.mark.parametrize("file", ["model.xml", "model.bin"])
def test_a_damaged_version_is_refused_before_openvino_sees_it(
    model_folder: Path, file: str, damage: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = (model_folder / file).read_bytes()
    if damage == "altered":
        (model_folder / file).write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    elif damage == "truncated":
        (model_folder / file).write_bytes(content[: len(content) // 2])
    else:
        (model_folder / file).unlink()
    opened: list[object] = []
    monkeypatch.setattr(openvino.Core, "read_model", lambda *given: opened.append(given))
    with pytest.raises(ModelError, match=file) as caught:
        load(model_folder, runtime="openvino", precision="f32")
    assert caught.value.permanent
    assert opened == []


def test_a_graph_that_openvino_cannot_read_is_one_sentence(model_folder: Path) -> None:
    (model_folder / "model.xml").write_text("<net>")
    write_card(model_folder, name="green", version="1")
    with pytest.raises(ModelError, match=r"OpenVINO cannot load green 1 from model\.xml: .+") as caught:
        load(model_folder, runtime="openvino", precision="f32")
    assert "\n" not in str(caught.value)


@pytest.mark.tensorflow
def test_tensorflow_gives_the_scores_of_the_exported_graph(tmp_path: Path) -> None:
    pytest.importorskip("tensorflow")
    from pipeline.training import export, network

    size = 64
    random = np.random.default_rng(11)
    model = network.build(size, zero_gamma=False)
    model.get_layer("logit").set_weights([random.normal(size=(2048, 1)).astype(np.float32), np.zeros(1, np.float32)])
    network.save_weights_half(model, tmp_path / "weights.h5")
    export.to_openvino(tmp_path / "weights.h5", tmp_path, input_size=size)
    write_card(tmp_path, name="random", version="1", input_size=size)
    pictures = random.integers(0, 256, (5, size, size, 3), np.uint8)
    served = load(tmp_path, runtime="openvino", precision="f32")
    reference = load(tmp_path, runtime="tensorflow", precision="f32")
    np.testing.assert_allclose([score for score, _ in served.judge(pictures)], [score for score, _ in reference.judge(pictures)], atol=1e-4)
    assert reference.name.sha256 == reference.card.files["weights.h5"]
    with pytest.raises(ModelError, match="f32 only"):
        load(tmp_path, runtime="tensorflow", precision="bf16")
