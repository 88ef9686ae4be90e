"""What the command line shows: tables, progress, times. Results go to standard output, everything else to standard error."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Sequence
from datetime import datetime, timezone
from typing import Any

import click
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table

from pipeline import results
from pipeline.database import FaceRow, HistoryRow, JobRow
from pipeline.jobs import Reason, Status, Verdict

PIPE_WIDTH = 400
"""Columns of a table that no terminal shows."""
COLOURS = {
    Verdict.MANIPULATED.value: "bold red",
    Verdict.UNCERTAIN.value: "yellow",
    Verdict.AUTHENTIC.value: "green",
    Verdict.NOT_APPLICABLE.value: "dim",
    Status.FAILED.value: "bold red",
    Status.REFUSED.value: "yellow",
    Status.SOURCE_GONE.value: "yellow",
}
REASONS = {
    Reason.NO_FACE.value: "no face found",
    Reason.FACE_TOO_SMALL.value: "face too small to judge",
    Reason.BLURRED.value: "face too blurred to judge",
    Reason.COMPRESSED.value: "face too compressed to judge",
}


def console(*, error: bool = False) -> Console:
    """Standard output, or standard error; wide where it is not a terminal, so that piped tables stay whole."""
    made = Console(stderr=error, highlight=False)
    return made if made.is_terminal else Console(stderr=error, highlight=False, width=PIPE_WIDTH)


def json_text(value: Any) -> str:
    """One JSON document, indented."""
    return json.dumps(value, indent=2, ensure_ascii=False)


def print_json(value: Any) -> None:
    """One JSON document on standard output."""
    click.echo(json_text(value))


def moment(seconds: float | None) -> str | None:
    """A time as RFC 3339, UTC, to the millisecond."""
    if seconds is None:
        return None
    return datetime.fromtimestamp(seconds, timezone.utc).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def local(seconds: float | None) -> str:
    """A time as people here read it, or a dash."""
    return "-" if seconds is None else datetime.fromtimestamp(seconds).astimezone().strftime("%Y-%m-%d %H:%M:%S")


def coloured(word: str | None) -> str:
    """A verdict or a status, in its colour."""
    if word is None:
        return "-"
    colour = COLOURS.get(word)
    return f"[{colour}]{word.replace('_', ' ')}[/]" if colour else word.replace("_", " ")


def score(value: float | None) -> str:
    """A score with two digits, never rounded up to certainty."""
    if value is None:
        return "-"
    return f"{min(max(value, 0.001), 0.999):.3f}" if value < 0.005 or value > 0.995 else f"{value:.2f}"


def explained(reason: str | None) -> str:
    """A reason in words."""
    return "" if reason is None else escape(REASONS.get(reason, reason))


def table(title: str, *columns: str, right: Sequence[str] = ()) -> Table:
    """An empty table; columns named in `right` are numbers."""
    made = Table(title=title, title_justify="left", title_style="bold", header_style="bold")
    for column in columns:
        made.add_column(column, justify="right" if column in right else "left", overflow="fold", no_wrap=column in ("job", *right))
    return made


def progress(console: Console) -> Progress:
    """A progress line that disappears when it is done."""
    parts = (SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    return Progress(*parts, TextColumn("{task.fields[note]}"), console=console, transient=True)


def tally(jobs: Iterable[JobRow]) -> str:
    """How many jobs stand where, in words: `2 queued, 1 running, 5 done`."""
    counted = Counter(job.status for job in jobs)
    return ", ".join(f"{counted[status.value]} {status.value.replace('_', ' ')}" for status in Status if counted[status.value])


def milliseconds(job: JobRow) -> float | None:
    """From acceptance to the job's end, in milliseconds."""
    return None if job.finished_at is None else 1000 * (job.finished_at - job.created_at)


def jobs_table(title: str, jobs: Sequence[JobRow]) -> Table:
    """Jobs, one a line."""
    made = table(title, "job", "object", "status", "verdict", "score", "reason", "ms", "uploaded", right=("score", "ms"))
    for job in jobs:
        took = milliseconds(job)
        made.add_row(
            job.id,
            escape(job.key),
            coloured(job.status),
            coloured(job.verdict),
            score(job.score),
            explained(job.reason),
            "-" if took is None else f"{took:.0f}",
            local(job.created_at),
        )
    return made


def job_json(job: JobRow, url: str, faces: Sequence[FaceRow] | None = None, history: Sequence[HistoryRow] | None = None) -> dict[str, Any]:
    """A job as `GET /v1/jobs/{id}` gives it; with `history` also what happened to it."""
    address = f"{url}/v1/jobs/{job.id}"
    fields = ("id", "status", "stage", "queue", "origin", "attempts", "verdict", "score", "reason", "timings_ms")
    found: dict[str, Any] = {name: getattr(job, name) for name in fields}
    found["source"] = {name: getattr(job, name) for name in ("bucket", "key", "version_id", "etag", "size", "sha256", "width", "height")}
    found["model"] = None
    if job.model_name is not None:
        found["model"] = {"name": job.model_name, "version": job.model_version, "sha256": job.model_sha256}
    for name in ("created_at", "started_at", "finished_at"):
        found[name] = moment(getattr(job, name))
    if faces is not None:
        found["faces"] = [results.face_document(face) for face in faces]
    if history is not None:
        found["history"] = [
            {"at": moment(row.at), "what": row.what, "stage": row.stage, "attempt": row.attempt, "worker": row.worker, "detail": row.detail}
            for row in history
        ]
    found["url"] = address
    found["annotated"] = f"{address}/annotated.png" if job.annotated_key else None
    found["result"] = f"{address}/result.json" if job.result_key else None
    return found
