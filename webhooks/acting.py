"""What is done to a job from outside, by the API or on the dashboard: look it up, wake it, send it through again, stop it."""

from __future__ import annotations

from pipeline import inquiry, ledger
from pipeline.database import JobRow
from pipeline.jobs import Queue, Stage
from webhooks.access import principal
from webhooks.context import Context
from webhooks.problems import Problem
from workers.app import wake


def find(context: Context, job_id: str) -> JobRow:
    """The job of that id, if it is one that whoever asks may see. Raises Problem 404: what is not theirs is not there."""
    row = inquiry.job(context.database, job_id)
    if row is None or not principal().may_see(row.inbox):
        raise Problem(404, "There is no job of that id.")
    return row


def rouse(context: Context, job_id: str, stage: Stage, queue: Queue) -> None:
    """Send the wake-up message of a job; where the broker does not take it, have the next sweep do it."""
    if not wake(job_id, stage, queue):
        ledger.unwoken(context.database, [job_id])


def retry(context: Context, job_id: str) -> JobRow:
    """Send a job that ended without a result through again; returns it as it stands then. Raises Problem 404, 409."""
    row = find(context, job_id)
    if not ledger.requeue(context.database, row.id, actor=principal().actor):
        raise Problem(409, f"The job is {row.status}: only one that ended without a result can be sent through again.")
    rouse(context, row.id, Stage.EXTRACT, Queue(row.queue))
    return find(context, row.id)


def cancel(context: Context, job_id: str) -> JobRow:
    """Stop a job that is queued or running; returns it as it stands then. Raises Problem 404, 409."""
    row = find(context, job_id)
    if not ledger.cancel(context.database, row.id, actor=principal().actor):
        raise Problem(409, f"The job is {find(context, row.id).status} already.")
    return find(context, row.id)
