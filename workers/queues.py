"""What the broker's queues are called: one per stage and urgency, and one for upkeep."""

from __future__ import annotations

from pipeline.jobs import Queue, Stage

UPKEEP = "upkeep"
TRAIN = "train"
"""Trainings, for workers that own cards and do nothing else."""


def queue_of(stage: Stage, queue: Queue) -> str:
    """The queue of a stage: `extract`, `interactive.extract` and so on."""
    return queue.of(stage)


def queues(stage: Stage) -> tuple[str, ...]:
    """The queues of a stage, the one that goes first in front: what its worker is to be started with."""
    return tuple(queue_of(stage, queue) for queue in Queue)
