"""A chain of three empty tasks on dramatiq as it comes: its pipeline, its Redis broker, the middleware it brings."""

from __future__ import annotations

import os

import dramatiq
from dramatiq.brokers.redis import RedisBroker

from tests.benchmarks.chain_end import BROKER, arrived

dramatiq.set_broker(RedisBroker(url=os.environ[BROKER]))


@dramatiq.actor
def extract(job_id: str) -> None:
    """Nothing."""


@dramatiq.actor
def classify(job_id: str) -> None:
    """Nothing."""


@dramatiq.actor
def render(job_id: str) -> None:
    """Nothing but to say so."""
    arrived(job_id)


def send(job_id: str) -> None:
    """Send one on its way; as in the other chains no step is given what the one before returned."""
    steps = [step.message_with_options(args=(job_id,), pipe_ignore=True) for step in (extract, classify, render)]
    dramatiq.pipeline(steps).run()
