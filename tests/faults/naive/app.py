"""The chain as it is usually written: three Celery tasks with Celery's own settings, results in the object store, no ledger.

It does the same work with the same functions. What it lacks is what the faults are about. Each result object is written
under a name of its own run, so that a second run of the same upload is seen.
"""

from __future__ import annotations

import base64
import json
import os
import uuid
from typing import Any

from celery import Celery

app = Celery("naive", broker=os.environ["NAIVE_BROKER"])


def _settings() -> Any:
    from pipeline.settings import settings

    return settings()


@app.task
def extract(key: str) -> dict[str, Any]:
    """Fetch, decode, find the faces."""
    from pipeline import extraction, images
    from pipeline.images import Limits
    from pipeline.storage import storage

    chosen = _settings()
    if "segfault" in key:
        os.abort()
    if "hang" in key:
        import time

        time.sleep(10**6)
    data = storage(chosen).fetch(chosen.inbox_bucket, key, max_bytes=chosen.max_image_bytes)
    pixels = images.read(data, Limits.of(chosen)).pixels
    find = extraction.detector("mediapipe", 0.5)
    found = extraction.extract(pixels, detector=find, size=224, margin=0.25, min_face_px=48, min_blur=12, max_blocks=2.8)
    boxes = [[face.box.x, face.box.y, face.box.w, face.box.h] for face in found]
    return {"key": key, "data": base64.b64encode(data).decode(), "boxes": boxes}


@app.task
def classify(image: dict[str, Any]) -> dict[str, Any]:
    """Judge by colour: as heavy as the tests' model."""
    return {**image, "verdict": "manipulated" if image["boxes"] else "not_applicable"}


@app.task
def render(image: dict[str, Any]) -> None:
    """Draw, and put the result into the bucket."""
    from pipeline import images, rendering
    from pipeline.images import Limits
    from pipeline.jobs import Box
    from pipeline.storage import storage

    chosen = _settings()
    pixels = images.read(base64.b64decode(image["data"]), Limits.of(chosen)).pixels
    drawn = rendering.render(pixels, [Box(*box) for box in image["boxes"]], rendering.MeshStyle.of(chosen))
    run = uuid.uuid4().hex
    storage(chosen).put(chosen.results_bucket, f"naive/{image['key']}/{run}.png", images.encode_png(drawn, 1), "image/png")
    result = json.dumps({"key": image["key"], "verdict": image["verdict"]}).encode()
    storage(chosen).put(chosen.results_bucket, f"naive/{image['key']}/{run}.json", result, "application/json")
