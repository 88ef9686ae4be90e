"""How times, sizes and scores read on a page."""

from __future__ import annotations

from datetime import datetime, timezone

from flask import Flask

VERDICTS = {"manipulated": "Manipulated", "uncertain": "Uncertain", "authentic": "Authentic", "not_applicable": "No verdict"}
STATUSES = {
    "queued": "Queued",
    "running": "Running",
    "done": "Done",
    "failed": "Failed",
    "refused": "Refused",
    "source_gone": "Source gone",
    "cancelled": "Cancelled",
}
REASONS = {
    "no_face": "No face was found.",
    "face_too_small": "The face is too small to judge.",
    "blurred": "The face is too blurred to judge.",
    "compressed": "The face is too compressed to judge.",
}
HISTORY = {
    "accepted": "Accepted",
    "claimed": "Taken by a worker",
    "advanced": "On to the next stage",
    "retried": "Went wrong, waiting to try again",
    "swept": "Taken back from a lost worker",
    "requeued": "Sent through again",
    **{name: word for name, word in STATUSES.items() if name not in ("queued", "running")},
}


def install(app: Flask) -> None:
    """Give the templates these words."""
    app.jinja_env.trim_blocks = app.jinja_env.lstrip_blocks = True
    app.jinja_env.filters.update(ms=ms, size=size, iso=iso, clock=clock, score=score, reason=reason)
    app.jinja_env.globals.update(VERDICTS=VERDICTS, STATUSES=STATUSES, HISTORY=HISTORY)


def ms(milliseconds: float | None) -> str:
    """`8 ms`, `240 ms`, `3.2 s`, `4 min`."""
    if milliseconds is None:
        return "–"
    if milliseconds < 1000:
        return f"{milliseconds:.0f} ms"
    if milliseconds < 120_000:
        return f"{milliseconds / 1000:.1f} s"
    if milliseconds < 7_200_000:
        return f"{milliseconds / 60_000:.0f} min"
    return f"{milliseconds / 3_600_000:.0f} h"


def size(count: int) -> str:
    """`512 B`, `84 kB`, `3.1 MB`."""
    if count < 1000:
        return f"{count} B"
    return f"{count / 1000:.0f} kB" if count < 1_000_000 else f"{count / 1_000_000:.1f} MB"


def iso(seconds: float) -> str:
    """RFC 3339, for `<time datetime>`."""
    return datetime.fromtimestamp(seconds, timezone.utc).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def clock(seconds: float) -> str:
    """`26 Nov, 06:44:12 UTC`: what is read before the script has made an age of it."""
    return datetime.fromtimestamp(seconds, timezone.utc).strftime("%-d %b, %H:%M:%S UTC")


def score(value: float | None) -> str:
    """Two digits; never a full 0 or 1, which nobody can know."""
    if value is None:
        return "–"
    return "> 0.99" if value >= 0.995 else "< 0.01" if value < 0.005 else f"{value:.2f}"


def reason(value: str | None) -> str:
    """The sentence of a reason; a sentence stays what it is."""
    return REASONS.get(value, value) if value else ""
