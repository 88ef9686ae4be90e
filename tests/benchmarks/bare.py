"""The work itself, without queue, database and S3: the stage functions in plain loops, one process per core.

`python -m tests.benchmarks.bare MODEL_FOLDER` reads file names from its standard input, a line each, does what the pipeline
does with such a picture, and answers each with a line of JSON: milliseconds of processor time by step.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from pipeline import classification, extraction, images, rendering
from pipeline.images import Limits
from pipeline.jobs import Verdict
from pipeline.settings import Settings
from workers.allocation import keep_memory

STEPS = ("decode", "detect", "classify", "draw", "encode")


def judge(data: bytes, settings: Settings, model: classification.Classifier) -> dict[str, Any]:
    """One picture from bytes to PNG; milliseconds of processor time by step, `scores`, and whether anything was drawn."""
    taken: dict[str, Any] = {}

    @contextmanager
    def step(name: str) -> Iterator[None]:
        began = time.process_time()
        yield
        taken[name] = (time.process_time() - began) * 1000

    with step("decode"):
        picture = images.read(data, Limits.of(settings))
    with step("detect"):
        faces = extraction.extract(
            picture.pixels,
            detector=extraction.detector(settings.detector, settings.min_detection),
            size=model.card.input_size,
            margin=model.card.margin,
            min_face_px=settings.min_face_px,
            min_blur=settings.min_blur,
            max_blocks=settings.max_blocks,
        )
    seen = [face for face in faces if face.crop is not None]
    with step("classify"):
        judged = model.judge(np.stack([face.crop for face in seen])) if seen else []
    boxes = [face.box for face, (_, verdict) in zip(seen, judged, strict=True) if verdict is Verdict.MANIPULATED]
    with step("draw"):
        drawn = rendering.render(picture.pixels, boxes, rendering.MeshStyle.of(settings))
    with step("encode"):
        png = images.encode_png(drawn, settings.png_level)
    return taken | {"scores": [score for score, _ in judged], "faces": len(faces), "drawn": len(boxes), "bytes": len(png)}


class Bare:
    """The loops, one per core, as processes of their own."""

    def __init__(self, model: Path, loops: int) -> None:
        command = [sys.executable, "-m", "tests.benchmarks.bare", str(model)]
        self.loops = [subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) for _ in range(loops)]
        for loop in self.loops:
            assert loop.stdout is not None
            loop.stdout.readline()

    @property
    def pids(self) -> list[int]:
        """Their process ids."""
        return [loop.pid for loop in self.loops]

    def run(self, paths: list[Path]) -> list[dict[str, Any]]:
        """Judge the pictures, shared out over the loops as each becomes free; what each gave."""
        from concurrent.futures import ThreadPoolExecutor

        waiting = iter(paths)

        def feed(loop: subprocess.Popen[str]) -> list[dict[str, Any]]:
            assert loop.stdin is not None
            assert loop.stdout is not None
            answers = []
            for path in waiting:  # CPython's iterators of lists may be shared
                loop.stdin.write(f"{path}\n")
                loop.stdin.flush()
                answers.append({"path": str(path)} | json.loads(loop.stdout.readline()))
            return answers

        with ThreadPoolExecutor(len(self.loops)) as pool:
            return [answer for answers in pool.map(feed, self.loops) for answer in answers]

    def close(self) -> None:
        """End them."""
        for loop in self.loops:
            loop.communicate()


def main(folder: Path) -> None:
    """Answer one picture after the other."""
    cv2.setNumThreads(1)
    keep_memory()
    settings = Settings()
    model = classification.load(folder, runtime="openvino", precision=settings.precision, threads=1)
    judge(cv2.imencode(".jpg", np.zeros((256, 256, 3), np.uint8))[1].tobytes(), settings, model)
    print("ready", flush=True)
    for line in sys.stdin:
        print(json.dumps(judge(Path(line.strip()).read_bytes(), settings, model)), flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
