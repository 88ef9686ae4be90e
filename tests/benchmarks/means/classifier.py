"""What speeds up the classifier: its runtime, its precision, and batches."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from pipeline import classification, extraction
from pipeline.batching import Batcher
from pipeline.classification import Classifier
from pipeline.jobs import Pixels
from pipeline.settings import Settings
from tests.benchmarks.means.measuring import ABSENT, Row, Way, measure
from tests.benchmarks.means.pictures import Known

FACES = 8
"""So many faces are a batch at most, and so many threads ask for one each."""


def crops(pictures: Sequence[Known], count: int, settings: Settings, model: Classifier) -> Pixels:
    """`count` crops as the classifier gets them, (n, s, s, 3); some come twice where the pictures have not so many."""
    detector, card = extraction.BlazeFace(settings.min_detection), model.card
    boxes = ((one.pixels, found.box) for one in pictures for found in detector(one.pixels))
    cut = [extraction.crop(pixels, box, size=card.input_size, margin=card.margin) for pixels, box in islice(boxes, count)]
    return np.stack([cut[number % len(cut)] for number in range(count)])


def keras_rows(rounds: int, folder: Path, cut: Pixels) -> list[Row]:
    """OpenVINO against Keras, called as the product's other runtime does and by `predict` as the paper does; one thread each."""
    names = [f"OpenVINO f32 instead of {how}, batch {batch}" for batch in (1, len(cut)) for how in ("Keras `predict`", "Keras called")]
    try:
        import tensorflow
    except ImportError:
        return [Row(name, notes=f"TensorFlow is {ABSENT}") for name in names]
    from pipeline.training import network

    tensorflow.config.threading.set_intra_op_parallelism_threads(1)
    openvino = classification.load(folder, runtime="openvino", precision="f32", threads=1)
    keras = network.build(openvino.card.input_size)
    network.load_weights(keras, folder / classification.WEIGHTS)

    def judged_by(run: Callable[[Any], Any]) -> Callable[[Pixels], list[float]]:
        probability, temperature = classification.probability, openvino.card.temperature
        return lambda batch: [probability(float(logit), temperature) for logit in np.asarray(run(classification.prepared(batch)))[:, 0]]

    predict = judged_by(lambda batch: keras.predict(batch, verbose=0))
    called = judged_by(lambda batch: keras(batch, training=False))
    judges = {"Keras `predict`": predict, "Keras called": called, "OpenVINO": _scores(openvino)}
    rows = []
    for batch in (1, len(cut)):
        ways = measure(rounds, len(cut), {name: _in_batches(judge, cut, batch) for name, judge in judges.items()})
        rows += [_judged(name, ways[how], ways["OpenVINO"]) for name, how in zip(names, list(judges)[:2], strict=False)]
        names = names[2:]
    return rows


def bf16_rows(rounds: int, folder: Path, cut: Pixels) -> list[Row]:
    """The starter's default precision against float32, where the processor has it; one thread each."""
    from pipeline.training.export import has_bf16

    rows = [Row(f"bf16 instead of f32, batch {batch}", notes="not on this processor") for batch in (1, len(cut))]
    if not has_bf16():
        return rows
    judges = {how: _scores(classification.load(folder, runtime="openvino", precision=how, threads=1)) for how in ("f32", "bf16")}
    for number, batch in enumerate((1, len(cut))):
        ways = measure(rounds, len(cut), {how: _in_batches(judge, cut, batch) for how, judge in judges.items()})
        rows[number] = _judged(rows[number].means, ways["f32"], ways["bf16"])
    return rows


def _scores(model: Classifier) -> Callable[[Pixels], list[float]]:
    return lambda batch: [score for score, _ in model.judge(batch)]


def _in_batches(judge: Callable[[Pixels], list[float]], cut: Pixels, batch: int) -> Callable[[], list[float]]:
    return lambda: [score for start in range(0, len(cut), batch) for score in judge(cut[start : start + batch])]


def _judged(means: str, before: Way, after: Way) -> Row:
    gap = max(abs(one - other) for one, other in zip(before.gave, after.gave, strict=True))
    return Row(
        means,
        before.ms,
        after.ms,
        f"{len(before.gave)} faces",
        f"one thread; scores differ by up to {gap:.1g}",
        {"largest_difference": gap},
    )


def batches_row(rounds: int, folder: Path, cut: Pixels, judged: int, settings: Settings) -> Row:
    """Micro-batches: threads that ask for a face each, `judged` in all, against the same faces one by one. The model has as many
    threads as it serves with."""
    model = classification.load(folder, runtime="openvino", precision="f32")
    asked = [cut[number % len(cut)] for number in range(judged)]
    sizes: list[int] = []

    def run(faces: list[Pixels]) -> list[float]:
        sizes.append(len(faces))
        return [score for score, _ in model.judge(np.stack(faces))]

    def together() -> list[float]:
        with (
            Batcher(run, max_items=settings.batch_max, max_wait_s=settings.batch_wait_ms / 1000) as batcher,
            ThreadPoolExecutor(len(cut)) as pool,
        ):
            return list(pool.map(lambda face: batcher.submit([face]).result()[0], asked))

    ways = measure(rounds, judged, {"alone": lambda: [model.judge(face[None])[0][0] for face in asked], "together": together})
    mean = statistics.mean(sizes)
    gap = max(abs(one - other) for one, other in zip(ways["alone"].gave, ways["together"].gave, strict=True))
    notes = f"f32, as many threads as cores; mean batch {mean:.1f} of {len(cut)} callers; scores differ by up to {gap:.1g}"
    found = {"mean_batch": mean, "largest_difference": gap}
    return Row("micro-batches instead of one face after the other", ways["alone"].ms, ways["together"].ms, f"{judged} faces", notes, found)
