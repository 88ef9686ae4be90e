"""The ledger's page for processes that ended in the middle of a job, where somebody saw it happen.

Without a witness the lease expires and `ledger.sweep` takes the job back; a witness need not wait for that.
"""

from __future__ import annotations

from sqlalchemy import select, update

from pipeline.changes import QUEUED, change, end, record
from pipeline.database import Database, JobRow, now
from pipeline.jobs import Queue, Stage, Status


def died(db: Database, job_id: str, *, worker: str, why: str, max_attempts: int) -> tuple[Stage, Queue] | None:
    """The process `worker`, as the claim has it, is gone: queue its job again, or fail it where the attempts are used up.

    `why` completes the sentence "The process of the extract stage …". Returns the stage and the line in which to wake the
    job, which counts as woken now: also where the process had come through the stage, and could not hand the job on any
    more. None: there is nothing to wake, since it has failed or is over, or somebody else has it.
    """
    mine = (JobRow.status == Status.RUNNING.value, JobRow.worker == worker)
    with db.write() as session:
        found = session.execute(select(JobRow.fence, JobRow.stage, JobRow.attempts).where(JobRow.id == job_id, *mine)).one_or_none()
        if found is None:
            waits = (JobRow.id == job_id, JobRow.status == Status.QUEUED.value)
            woken = update(JobRow).where(*waits).values(woken_at=now()).returning(JobRow.stage, JobRow.queue, JobRow.attempts)
            left = session.execute(woken).one_or_none()
            return None if left is None else (Stage(left.stage), Queue(left.queue).line(left.attempts))
        as_seen = (*mine, JobRow.fence == found.fence)
        sentence = f"The process of the {found.stage} stage {why}."
        if found.attempts >= max_attempts:
            reason = f"The {found.stage} stage was tried {found.attempts} times. {sentence}"
            end(session, job_id, Status.FAILED, *as_seen, event="job.failed", reason=reason)
            return None
        job = change(session, job_id, *as_seen, **QUEUED, next_attempt_at=None, woken_at=now())
        if job is None:
            return None
        record(session, job_id, "swept", Stage(found.stage), found.attempts, worker, sentence)
        return Stage(job.stage), Queue(job.queue).line(found.attempts)
