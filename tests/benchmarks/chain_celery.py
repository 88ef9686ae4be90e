"""A chain of three empty tasks on Celery as it comes: nothing is set but where its broker is."""

from __future__ import annotations

import os

from celery import Celery, chain

from tests.benchmarks.chain_end import BROKER, arrived

app = Celery("chain", broker=os.environ[BROKER])


@app.task
def extract(job_id: str) -> None:
    """Nothing."""


@app.task
def classify(job_id: str) -> None:
    """Nothing."""


@app.task
def render(job_id: str) -> None:
    """Nothing but to say so."""
    arrived(job_id)


def send(job_id: str) -> None:
    """Send one on its way."""
    chain(extract.si(job_id), classify.si(job_id), render.si(job_id)).apply_async()
