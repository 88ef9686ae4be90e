"""A chain of three empty tasks, as the product sends and takes it: its application, its settings, its own `wake`."""

from __future__ import annotations

import celery

from tests.benchmarks.chain_end import arrived
from workers.app import app, wake
from workers.bereavement import Bereaved


class _Stage(celery.Task):
    Request = Bereaved
    max_retries = 3


@app.task(base=_Stage, name="unmask.extract")
def extract(job_id: str) -> None:
    """Nothing."""


@app.task(base=_Stage, name="unmask.classify")
def classify(job_id: str) -> None:
    """Nothing."""


@app.task(base=_Stage, name="unmask.render")
def render(job_id: str) -> None:
    """Nothing but to say so."""
    arrived(job_id)


def send(job_id: str) -> None:
    """Send one on its way."""
    if not wake(job_id):
        raise ConnectionError("The broker did not take the message.")
