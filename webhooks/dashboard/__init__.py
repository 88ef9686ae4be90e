"""The dashboard: pages made on the server, one style sheet, one small script that keeps what is unfinished up to date."""

from __future__ import annotations

from webhooks.dashboard import endpoints, inboxes, jobs, learning, login, models, people, trainings, words
from webhooks.dashboard.blueprint import blueprint
from webhooks.dashboard.jobs import UPLOAD_BYTES, allow_many

__all__ = [
    "UPLOAD_BYTES",
    "allow_many",
    "blueprint",
    "endpoints",
    "inboxes",
    "jobs",
    "learning",
    "login",
    "models",
    "people",
    "trainings",
    "words",
]
