"""What each of the larger means is worth: with it and without it, in turns on the same pictures, in this process's own processor time.

    python -m tests.benchmarks.means [--rounds 5] [--faces ../shared/faces] [--json build/means.json]

Prints a table of milliseconds an item: *before* is without the means, *after* with it. `--largest 1` leaves out the pictures of 12
megapixels, `--no-store` what needs an S3 server. A row whose library or processor is not there says so instead.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any
from unittest.mock import patch

import cv2
import numpy as np

from pipeline import classification, extraction, facenets, images, registry, rendering
from pipeline.batching import Batcher
from pipeline.classification import Classifier
from pipeline.extraction import Detection, Detector
from pipeline.images import Limits
from pipeline.jobs import Box, Pixels
from pipeline.rendering import MeshStyle
from pipeline.settings import Settings
from pipeline.storage import Storage
from tests.benchmarks import mix
from workers.allocation import keep_memory

FACES = 8
"""So many faces are a batch at most, and so many threads ask for one each."""
DRAWINGS = 10
"""The mesh is drawn so often in a turn."""
GETS = 20
OBJECT = 1_000_000
"""Bytes of the object that is fetched."""
REDUCED = {2: cv2.IMREAD_REDUCED_COLOR_2, 4: cv2.IMREAD_REDUCED_COLOR_4, 8: cv2.IMREAD_REDUCED_COLOR_8}
ABSENT = "not installed here"
MESHES = (
    ("one `cv2.line` an edge", "whole", "smooth with a shadow"),
    ("MediaPipe's `drawing_utils`", "plain", "both in hard lines"),
    ("MediaPipe's `drawing_utils`", "whole", "smooth with a shadow"),
)
"""What the mesh is drawn by before and after, and what the lines look like after."""

_in_one_pass = facenets.blazeface


@dataclass(frozen=True)
class Way:
    """One way to do something: milliseconds of processor time an item, turn by turn, and what it gave the first time."""

    ms: list[float]
    gave: Any = field(repr=False)


@dataclass(frozen=True)
class Row:
    """One means against its alternative: milliseconds an item, turn by turn (none: it could not be measured), how many items a
    turn, what is to be known about it, and the same in figures."""

    means: str
    before: list[float] = field(default_factory=list)
    after: list[float] = field(default_factory=list)
    items: str = ""
    notes: str = ""
    found: dict[str, float] = field(default_factory=dict)

    @property
    def ratio(self) -> float | None:
        """Before over after: above 1 the means pays."""
        return statistics.median(self.before) / statistics.median(self.after) if self.after else None


@dataclass(frozen=True)
class Known:
    """A picture of the mix whose faces have been counted where they were put in."""

    sample: mix.Sample
    pixels: Pixels = field(repr=False)
    faces: int


def measure(rounds: int, items: int, ways: Mapping[str, Callable[[], Any]]) -> dict[str, Way]:
    """Each way in its turn, `rounds` times. Each does it once before: whoever compiles, loads or allocates does so then."""
    gave = {name: do() for name, do in ways.items()}
    ms: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(rounds):
        for name, do in ways.items():
            began = time.process_time()
            do()
            ms[name].append((time.process_time() - began) * 1000 / items)
    return {name: Way(ms[name], gave[name]) for name in ways}


class _Asked(list[Pixels]):
    """People who count how often one of them is asked for."""

    asked = 0

    def __getitem__(self, place: Any) -> Any:
        self.asked += 1
        return super().__getitem__(place)


def known(faces: Path | None, count: int, largest: int, settings: Settings) -> list[Known]:
    """Pictures of the mix, decoded, with the number of faces in each; the mix itself does not tell."""
    paint, asked = mix._picture, []

    def counted(rng: np.random.Generator, kind: str, size: tuple[int, int], people: list[Pixels], grounds: list[Pixels]) -> Pixels:
        asked.append(_Asked(people))
        return paint(rng, kind, size, asked[-1], grounds)

    with patch.object(mix, "_picture", counted):
        samples = mix.mix(faces, count=count, largest=largest)
    limits = Limits.of(settings)
    return [Known(one, images.read(one.data, limits).pixels, people.asked) for one, people in zip(samples, asked, strict=True)]


def by_size(pictures: Sequence[Known]) -> Iterator[tuple[int, list[Known]]]:
    """The pictures of each size, the smallest first."""
    for megapixels in sorted({one.sample.megapixels for one in pictures}):
        yield megapixels, [one for one in pictures if one.sample.megapixels == megapixels]


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


def by_tiles(pixels: Pixels, min_score: float) -> facenets.Floats:
    """`facenets.blazeface`, shown 128 pixels at a time: each tile lies half over the next, so that a place is seen by 2 x 2 of them."""
    side = facenets.BLAZEFACE_PX
    height, width = pixels.shape[:2]
    if (height, width) == (side, side):
        return _in_one_pass(pixels, min_score)
    found = []
    for top in range(0, max(1, height - side // 2), side // 2):
        for left in range(0, max(1, width - side // 2), side // 2):
            tile = pixels[top : top + side, left : left + side]
            full = cv2.copyMakeBorder(tile, 0, side - tile.shape[0], 0, side - tile.shape[1], cv2.BORDER_CONSTANT, value=(0, 0, 0))
            corner = np.array((left, top, 0, 0, 0, left, top, left, top), np.float32)
            found.append(_in_one_pass(np.asarray(full, np.uint8), min_score) + corner)
    faces = np.concatenate(found)
    best: facenets.Floats = faces[np.argsort(-faces[:, 4], kind="stable")]
    return best  # the same face in several tiles: the detector merges its candidates


def tiled(detector: Detector) -> Detector:
    """The detector, with BlazeFace shown tiles wherever it is shown more than one of them."""

    def detect(pixels: Pixels) -> list[Detection]:
        with patch.object(facenets, "blazeface", by_tiles):
            return detector(pixels)

    return detect


def solution(model: int, min_score: float) -> Detector:
    """MediaPipe's own face detection: `model` 0 is short-range BlazeFace on the whole picture, 1 the full-range one.

    Raises ImportError where MediaPipe's solutions are not installed.
    """
    from pipeline.solutions import Solution

    own = Solution(
        lambda mp: mp.face_detection.FaceDetection(model_selection=model, min_detection_confidence=min_score),
        lambda result: bool(result.detections),
    )

    def detect(pixels: Pixels) -> list[Detection]:
        height, width = pixels.shape[:2]
        found = []
        for one in own(pixels).detections or ():
            box = one.location_data.relative_bounding_box
            upright = Box(round(box.xmin * width), round(box.ymin * height), round(box.width * width), round(box.height * height))
            found.append(Detection(upright, one.score[0]))
        return found

    return detect


def detector_rows(rounds: int, pictures: Sequence[Known], settings: Settings) -> list[Row]:
    """BlazeFace in one pass at each scale against everything it could have been."""
    ours = extraction.BlazeFace(settings.min_detection)
    detectors: dict[str, Detector] = {"128-px tiles": tiled(ours), "Haar": extraction.Haar()}
    missing = []
    for name, model in (("MediaPipe's short-range solution", 0), ("MediaPipe's full-range solution", 1)):
        try:
            detectors[name] = solution(model, settings.min_detection)
        except ImportError:
            missing.append(Row(f"BlazeFace in one pass instead of {name}", notes=f"MediaPipe's solutions are {ABSENT}"))
    rows = []
    for megapixels, these in by_size(pictures):
        ways = measure(rounds, len(these), {name: _over(detector, these) for name, detector in ({"ours": ours} | detectors).items()})
        here = found_of(these, ways["ours"].gave)
        for name in detectors:
            there = found_of(these, ways[name].gave)
            notes = f"faces found: {_said(there)} before, {_said(here)} after"
            means = f"BlazeFace in one pass instead of {name}, {megapixels} MP"
            figures = {f"{when}_{what}": value for when, of in (("before", there), ("after", here)) for what, value in of.items()}
            rows.append(Row(means, ways[name].ms, ways["ours"].ms, f"{len(these)} pictures", notes, figures))
    return rows + missing


def _over(detector: Detector, pictures: Sequence[Known]) -> Callable[[], list[list[Box]]]:
    return lambda: [[found.box for found in detector(one.pixels)] for one in pictures]


def _said(found: Mapping[str, float]) -> str:
    return f"{found['found']:.0f} of {found['faces']:.0f} and {found['more']:.0f} more boxes"


def found_of(pictures: Sequence[Known], boxes: Sequence[Sequence[Box]]) -> dict[str, float]:
    """How many faces there are and how many were found; and how many boxes there are beside one for each of these."""
    hits = sum(_hits(one, these) for one, these in zip(pictures, boxes, strict=True))
    return {"faces": sum(one.faces for one in pictures), "found": hits, "more": sum(map(len, boxes)) - hits}


def _hits(picture: Known, boxes: Sequence[Box]) -> int:
    """The people found. The mix puts each into the middle of a cell of its own: a box of some size around there is the face's."""
    if not picture.faces:
        return 0
    columns = 1 if picture.sample.kind == "one" else 4
    height, width = picture.pixels.shape[:2]
    cell = width / columns, height / -(-picture.faces // columns)
    large = [box for box in boxes if box.w > min(cell) / 6]
    cells = {int((box.y + box.h / 2) // cell[1]) * columns + int((box.x + box.w / 2) // cell[0]) for box in large}
    return len(cells & set(range(picture.faces)))


def mesh_rows(rounds: int, pictures: Sequence[Known], settings: Settings) -> list[Row]:
    """One `polylines` over edges that each come once, against a call for each edge and against MediaPipe's own drawing. The landmarks
    are the same and known before; the copy of the picture that is drawn into is in all of them."""
    rows = []
    for megapixels, these in by_size([one for one in pictures if one.sample.kind == "one"]):
        pixels = these[0].pixels
        box = extraction.BlazeFace(settings.min_detection)(pixels)[0].box
        points = rendering.landmarks(pixels, box)
        assert points is not None
        whole = _mesh(pixels, box, points, MeshStyle.of(settings))
        drawings = {"whole": whole, "one `cv2.line` an edge": _line_by_line(whole), "plain": _plain(pixels, points)}
        try:
            drawings["MediaPipe's `drawing_utils`"] = _drawing_utils(pixels, points)
        except ImportError:
            rows.append(Row("one `polylines` instead of MediaPipe's `drawing_utils`", notes=f"MediaPipe is {ABSENT}"))
        ways = measure(rounds, DRAWINGS, {name: _often(draw) for name, draw in drawings.items()})
        for name, ours, notes in MESHES:
            if name in ways:
                same = bool(np.array_equal(ways[name].gave, ways[ours].gave))
                means = f"one `polylines` instead of {name}, {notes}, {megapixels} MP"
                said = "the very same pixels" if same else "other pixels"
                rows.append(Row(means, ways[name].ms, ways[ours].ms, f"{DRAWINGS} drawings", said, {"same": same}))
    return rows


def _often(draw: Callable[[], Pixels]) -> Callable[[], Pixels]:
    return lambda: [draw() for _ in range(DRAWINGS)][-1]


def _plain(pixels: Pixels, points: facenets.Floats) -> Callable[[], Pixels]:
    """Hard lines of one pixel, as MediaPipe draws: what the call alone is worth, without the product's look."""

    def draw() -> Pixels:
        drawn = pixels.copy()
        cv2.polylines(drawn, list(points[facenets.edges()].astype(np.int32)), False, (192, 192, 192), 1)
        return drawn

    return draw


def _mesh(pixels: Pixels, box: Box, points: facenets.Floats, style: MeshStyle) -> Callable[[], Pixels]:
    def draw() -> Pixels:
        with patch.object(rendering, "landmarks", lambda *_: points):
            return rendering.render(pixels, [box], style)

    return draw


def _line_by_line(draw: Callable[[], Pixels]) -> Callable[[], Pixels]:
    def lines(image: Pixels, several: Sequence[Any], closed: bool, *how: Any) -> None:
        for line in several:
            cv2.line(image, line[0], line[1], *how)

    def slowly() -> Pixels:
        with patch.object(cv2, "polylines", lines):
            return draw()

    return slowly


def _drawing_utils(pixels: Pixels, points: facenets.Floats) -> Callable[[], Pixels]:
    from mediapipe.framework.formats import landmark_pb2
    from mediapipe.python.solutions import drawing_styles, drawing_utils, face_mesh_connections

    height, width = pixels.shape[:2]
    marks = [landmark_pb2.NormalizedLandmark(x=float(x) / width, y=float(y) / height) for x, y in points]
    face = landmark_pb2.NormalizedLandmarkList(landmark=marks)
    style = drawing_styles.get_default_face_mesh_tesselation_style()

    def draw() -> Pixels:
        drawn = pixels.copy()
        drawing_utils.draw_landmarks(drawn, face, face_mesh_connections.FACEMESH_TESSELATION, None, style)
        return drawn

    return draw


def decode_rows(rounds: int, pictures: Sequence[Known], settings: Settings) -> list[Row]:
    """Finding faces in a JPEG decoded at a fraction of its size, beside the full decode that crops need. Not kept.

    The detector's scales follow the size of what it is shown, so it also searches less, and misses the smallest faces.
    """
    detector, limits = extraction.BlazeFace(settings.min_detection), Limits.of(settings)

    def as_it_is(data: bytes) -> list[Box]:
        return [found.box for found in detector(images.read(data, limits).pixels)]

    def reduced(data: bytes, by: int) -> list[Box]:
        small = cv2.imdecode(np.frombuffer(data, np.uint8), REDUCED[by])
        found = detector(np.asarray(cv2.cvtColor(small, cv2.COLOR_BGR2RGB), np.uint8))
        images.read(data, limits)
        return [Box(*(by * value for value in one.box.as_list())) for one in found]

    def whole(by: int, these: Sequence[Known]) -> Callable[[], list[list[Box]]]:
        return lambda: [reduced(one.sample.data, by) if by > 1 else as_it_is(one.sample.data) for one in these]

    rows = []
    for megapixels, these in by_size(pictures):
        ways = measure(rounds, len(these), {str(by): whole(by, these) for by in (1, *REDUCED)})
        for by in REDUCED:
            moved = moves(ways["1"].gave, ways[str(by)].gave)
            notes = "not kept: {differ:.0f} of {boxes:.0f} boxes move, by up to {px:.0f} px; {lost:.0f} lost, {new:.0f} new".format(**moved)
            means = f"JPEG decoded at 1/{by} for detection, {megapixels} MP"
            rows.append(Row(means, ways["1"].ms, ways[str(by)].ms, f"{len(these)} pictures", notes, moved))
    return rows


def moves(before: Sequence[Sequence[Box]], after: Sequence[Sequence[Box]]) -> dict[str, float]:
    """How boxes differ: how many of how many, `px` by which an edge moved at most, and how many have no counterpart on either side."""
    gaps, lost, new = [], 0, 0
    for here, there in zip(before, after, strict=True):
        left = list(there)
        for box in here:
            nearest = min(left, key=lambda other: _gap(box, other), default=None)
            if nearest is None or _gap(box, nearest) > box.w / 2:
                lost += 1
                continue
            left.remove(nearest)
            gaps.append(_gap(box, nearest))
        new += len(left)
    boxes = sum(map(len, before))
    return {"boxes": boxes, "differ": sum(gap > 0 for gap in gaps), "px": max(gaps, default=0), "lost": lost, "new": new}


def _gap(one: Box, other: Box) -> int:
    """The furthest that one of four edges is from its counterpart, in pixels."""
    right, low = one.x + one.w - other.x - other.w, one.y + one.h - other.y - other.h
    return max(abs(one.x - other.x), abs(one.y - other.y), abs(right), abs(low))


def encode_rows(rounds: int, pictures: Sequence[Known], settings: Settings) -> list[Row]:
    """The original bytes where nothing was drawn, instead of a PNG of the pixels. Not kept."""
    rows = []
    for megapixels, these in by_size(pictures):
        ways = measure(rounds, len(these), {"png": _encoded(these, settings), "copy": _copied(these)})
        saved = statistics.median(ways["png"].ms) - statistics.median(ways["copy"].ms)
        mb = {name: statistics.mean(way.gave) / 1e6 for name, way in ways.items()}
        notes = f"not kept, metadata would pass: saves {saved:.1f} ms, and stores {mb['copy']:.2g} MB instead of {mb['png']:.2g}"
        means = f"the original's bytes where nothing was drawn, {megapixels} MP"
        found = {"saved_ms": saved, "png_mb": mb["png"], "copy_mb": mb["copy"]}
        rows.append(Row(means, ways["png"].ms, ways["copy"].ms, f"{len(these)} pictures", notes, found))
    return rows


def _encoded(pictures: Sequence[Known], settings: Settings) -> Callable[[], list[int]]:
    return lambda: [len(images.encode_png(one.pixels, settings.png_level)) for one in pictures]


def _copied(pictures: Sequence[Known]) -> Callable[[], list[int]]:
    return lambda: [len(bytearray(one.sample.data)) for one in pictures]


def pool_rows(rounds: int) -> list[Row]:
    """One pooled client for every get, against a client made for each. The server's time is not counted."""
    from workers import embedded

    means = "a pooled client instead of a fresh one for each get of 1 MB"
    try:
        with tempfile.TemporaryDirectory() as folder, embedded.stack(Settings(data_dir=Path(folder)), lambda line: None) as live:
            pooled, bucket = Storage(live), live.results_bucket
            pooled.put(bucket, "means", os.urandom(OBJECT), "image/png")

            def get(client: Callable[[], Storage]) -> Callable[[], list[int]]:
                return lambda: [len(client().fetch(bucket, "means", max_bytes=OBJECT)) for _ in range(GETS)]

            ways = measure(rounds, GETS, {"fresh": get(lambda: Storage(live)), "pooled": get(lambda: pooled)})
    except embedded.StackError as error:
        return [Row(means, notes=f"no S3 server here: {error}")]
    return [Row(means, ways["fresh"].ms, ways["pooled"].ms, f"{GETS} gets", "our side alone, SeaweedFS on the same machine")]


def every(chosen: argparse.Namespace, settings: Settings) -> Iterator[list[Row]]:
    """All rows, as they come."""
    rounds, folder = chosen.rounds, registry.shipped()[-1]
    pictures = known(chosen.faces, chosen.pictures, chosen.largest, settings)
    cut = crops(pictures, min(FACES, chosen.judged), settings, classification.load(folder, runtime="openvino", precision="f32", threads=1))
    yield bf16_rows(rounds, folder, cut)
    yield [batches_row(rounds, folder, cut, chosen.judged, settings)]
    yield detector_rows(rounds, pictures, settings)  # before TensorFlow is there, which MediaPipe would import
    yield mesh_rows(rounds, pictures, settings)
    yield decode_rows(rounds, pictures, settings)
    yield encode_rows(rounds, pictures, settings)
    yield keras_rows(rounds, folder, cut)
    if chosen.store:
        yield pool_rows(rounds)


def table(rows: Sequence[Row]) -> str:
    """The rows as markdown."""
    lines = ["| means | before (median, min to max) | after | ratio | n | notes |", "|---|---|---|---|---|---|"]
    for row in rows:
        turns = f"{len(row.after)} turns of {row.items}" if row.after else "-"
        ratio = "-" if row.ratio is None else _short(row.ratio)
        lines.append(f"| {row.means} | {_spread(row.before)} | {_spread(row.after)} | {ratio} | {turns} | {row.notes} |")
    return "\n".join(lines)


def _spread(ms: Sequence[float]) -> str:
    if not ms:
        return "-"
    return "{} ms ({} to {})".format(*(_short(value) for value in (statistics.median(ms), min(ms), max(ms))))


def _short(value: float) -> str:
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"


def machine() -> dict[str, Any]:
    """What the figures were taken on, and how busy it was."""
    told = [line.split(":")[1].strip() for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
    return {"processor": told[0] if told else "", "cores": len(os.sched_getaffinity(0)), "load": [round(one, 2) for one in os.getloadavg()]}


def busy(before: Mapping[str, Any], after: Mapping[str, Any]) -> str:
    """The sentence over the table."""
    loads = [" / ".join(f"{one:g}" for one in when["load"]) for when in (before, after)]
    return f"{before['processor']}, {before['cores']} cores; load over 1, 5 and 15 minutes {loads[0]} before, {loads[1]} after."


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5, help="turns that count")
    parser.add_argument("--faces", type=Path, default=Path("../shared/faces"))
    parser.add_argument("--pictures", type=int, default=16, help="of the mix; 8 hold each kind and size in its share")
    parser.add_argument("--judged", type=int, default=64, help="faces in a turn of the micro-batches; others take 8 of them at most")
    parser.add_argument("--largest", type=int, default=12, choices=tuple(mix.SIZES), help="megapixels")
    parser.add_argument("--no-store", dest="store", action="store_false", help="leave out what needs an S3 server")
    parser.add_argument("--json", type=Path, default=Path("build/means.json"))
    chosen = parser.parse_args()
    cv2.setNumThreads(1)
    keep_memory()  # as the stages' processes do
    before, rows = machine(), []
    for some in every(chosen, Settings()):
        rows += some
        print(f"{len(rows)} rows", file=sys.stderr)
    figures = {"before": before, "after": machine(), "rounds": chosen.rounds, "rows": [asdict(row) | {"ratio": row.ratio} for row in rows]}
    chosen.json.parent.mkdir(parents=True, exist_ok=True)
    chosen.json.write_text(json.dumps(figures, indent=1) + "\n")
    print(busy(figures["before"], figures["after"]), table(rows), sep="\n\n")


if __name__ == "__main__":
    main()
