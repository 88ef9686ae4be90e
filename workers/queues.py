"""What the broker's queues are called: one per stage and urgency, and one for upkeep."""

from __future__ import annotations

from pipeline.jobs import Queue, Stage

UPKEEP = "upkeep"


def queue_of(stage: Stage, queue: Queue) -> str:
    """The queue of a stage: `extract`, `interactive.extract` and so on."""
    return f"interactive.{stage.value}" if queue is Queue.INTERACTIVE else stage.value


def queues(stage: Stage) -> tuple[str, str]:
    """Both queues of a stage, the one that goes first in front: what its worker is to be started with."""
    return queue_of(stage, Queue.INTERACTIVE), queue_of(stage, Queue.BULK)
