"""What is left in the results bucket: the names of the two objects, and `result.json`."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import datetime, timezone
from typing import Any

from pipeline import steps
from pipeline.brief import brief
from pipeline.database import Database, FaceRow, JobRow
from pipeline.settings import Settings


def annotated_key(settings: Settings, key: str, job_id: str) -> str:
    """Where a job's annotated picture goes in the results bucket: `{results_prefix}{inbox key}/{job id}/annotated.png`."""
    return f"{settings.results_prefix}{key}/{job_id}/annotated.png"


def result_key(settings: Settings, key: str, job_id: str) -> str:
    """Where a job's `result.json` goes in the results bucket."""
    return f"{settings.results_prefix}{key}/{job_id}/result.json"


def judged(db: Database, job_id: str) -> tuple[JobRow, list[FaceRow]]:
    """A job and its faces by index, without their crops; detached, to read only."""
    with brief(db, write=False) as on:
        [job] = steps.THE_JOB.run(on, {"this": job_id})
        return job, list(steps.THE_FACES.run(on, {"this": job_id}))


def document(
    job: JobRow, faces: Sequence[FaceRow], settings: Settings, *, timings_ms: Mapping[str, float], finished_at: float
) -> dict[str, Any]:
    """The content of `result.json`.

    `timings_ms`: `wait`, `extract`, `classify` and `render`; a stage the job had no need of took 0. `finished_at`: seconds
    since the epoch. `model` is None where there was no face to judge.
    """
    model = {"name": job.model_name, "version": job.model_version, "sha256": job.model_sha256}
    return {
        "job_id": job.id,
        "source": {
            "bucket": job.bucket,
            "key": job.key,
            "version_id": job.version_id,
            "etag": job.etag,
            "sha256": job.sha256,
            "width": job.width,
            "height": job.height,
        },
        "model": model if job.model_name else None,
        "verdict": job.verdict,
        "score": job.score,
        "reason": job.reason,
        "faces": [face_document(face) for face in faces],
        "annotated": f"s3://{settings.results_bucket}/{annotated_key(settings, job.key, job.id)}",
        "timings_ms": {name: timings_ms.get(name, 0) for name in ("wait", "extract", "classify", "render")},
        "created_at": _iso(job.created_at),
        "finished_at": _iso(finished_at),
    }


def face_document(face: FaceRow) -> dict[str, Any]:
    """A face as `result.json`, the API and the command line give it."""
    return {
        "index": face.index,
        "box": [face.x, face.y, face.w, face.h],
        "detection": face.detection,
        "quality": {"size": face.size, "blur": face.blur, "blocks": face.blocks},
        "score": face.score,
        "verdict": face.verdict,
        "reason": face.reason,
        "evidence": face.evidence,
    }


def _iso(at: float) -> str:
    return datetime.fromtimestamp(at, timezone.utc).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def encoded(content: Mapping[str, Any]) -> bytes:
    """The document as it is stored: UTF-8, indented, the same bytes for the same content."""
    return (json.dumps(content, ensure_ascii=False, indent=2, allow_nan=False) + "\n").encode()
