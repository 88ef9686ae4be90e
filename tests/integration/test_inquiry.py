"""Pages of jobs that stay in place while jobs arrive, filters that mean what they say, and counts."""

from __future__ import annotations

import base64

import pytest
from sqlalchemy import update

from pipeline import inquiry, ledger
from pipeline.database import Database, JobRow
from pipeline.jobs import Queue, Reason, Stage, Status, Upload, Verdict
from tests.fixtures.jobs import accepted, advance, brought_to, claimed, face, upload


def walk(db: Database, limit: int) -> list[list[str]]:
    pages, after = [], None
    while True:
        rows, after = inquiry.page(db, limit=limit, after=after)
        pages.append([row.id for row in rows])
        if after is None:
            return pages


def test_pages_show_every_job_once_newest_first(db: Database) -> None:
    ids = [accepted(db) for _ in range(7)]

    assert walk(db, 3) == [ids[:3:-1], ids[3:0:-1], ids[0::-1]]
    assert walk(db, 7) == [ids[::-1]]


def test_jobs_of_the_same_moment_are_neither_lost_nor_repeated(db: Database) -> None:
    ids = [accepted(db) for _ in range(7)]
    with db.write() as session:
        session.execute(update(JobRow).values(created_at=1_700_000_000.123456))

    assert [job_id for page in walk(db, 2) for job_id in page] == sorted(ids, reverse=True)


def test_what_arrives_meanwhile_does_not_shift_the_next_page(db: Database) -> None:
    ids = [accepted(db) for _ in range(4)]
    first, after = inquiry.page(db, limit=2)
    accepted(db)

    second, _ = inquiry.page(db, limit=2, after=after)

    assert [row.id for row in first + second] == ids[::-1]


def test_filters_mean_what_they_say(db: Database) -> None:
    done = brought_to(db, None)
    blurred = accepted(db)
    assert advance(db, claimed(db, blurred), [face(0, Reason.BLURRED)])
    assert advance(db, claimed(db, blurred, Stage.RENDER))
    ledger.accept(db, Upload("inbox", "Team_A/1.jpg", etag="e", origin="sweep"))
    ledger.accept(db, Upload("inbox", "team_a/2.jpg", etag="e", origin="sweep"))
    ledger.accept(db, Upload("inbox", "TeamXA/3.jpg", etag="e", origin="minio"))

    def keys(**wanted: object) -> list[str]:
        return [row.key for row in inquiry.page(db, limit=50, **wanted)[0]]  # type: ignore[arg-type]

    assert keys(prefix="Team_A/") == ["Team_A/1.jpg"]
    assert keys(prefix="Team%") == []
    assert keys(origin="sweep") == ["team_a/2.jpg", "Team_A/1.jpg"]
    assert keys(origin="sweep", prefix="team") == ["team_a/2.jpg"]
    assert len(keys(status=Status.QUEUED)) == 3
    assert [row.id for row in inquiry.page(db, limit=50, verdict=Verdict.MANIPULATED)[0]] == [done]
    assert [row.id for row in inquiry.page(db, limit=50, status=Status.DONE, verdict=Verdict.NOT_APPLICABLE)[0]] == [blurred]
    assert keys(status=Status.FAILED) == []


@pytest.mark.parametrize(
    "cursor",
    [
        "",
        "x",
        "nonsense!",
        "====",
        "é",
        base64.urlsafe_b64encode(b"[1]").decode(),
        base64.urlsafe_b64encode(b'["a", "b"]').decode(),
        "bnVsbA",
        base64.urlsafe_b64encode(b'[1.5, "\\ud800"]').decode(),
        base64.urlsafe_b64encode(b'[1.5, "\\u0000"]').decode(),
    ],
)
def test_a_made_up_cursor_is_refused(db: Database, cursor: str) -> None:
    with pytest.raises(inquiry.InquiryError, match="cursor"):
        inquiry.page(db, limit=5, after=cursor)


def test_a_page_is_never_empty_by_asking_for_none_nor_endless_by_asking_for_all(db: Database) -> None:
    accepted(db)

    assert len(inquiry.page(db, limit=0)[0]) == 1
    assert len(inquiry.page(db, limit=10**9)[0]) == 1


def test_counts_name_every_status(db: Database) -> None:
    assert inquiry.counts(db) == {status.value: 0 for status in Status}
    accepted(db)
    accepted(db)
    brought_to(db, None)

    counts = inquiry.counts(db)
    assert (counts["queued"], counts["done"], counts["failed"]) == (2, 1, 0)


def test_the_backlog_is_counted_by_stage_and_urgency(db: Database) -> None:
    ledger.accept(db, upload(), queue=Queue.INTERACTIVE)
    accepted(db)
    accepted(db)
    brought_to(db, Stage.RENDER)
    claimed(db, brought_to(db, Stage.CLASSIFY), Stage.CLASSIFY)

    assert inquiry.backlog(db) == {
        (Stage.EXTRACT, Queue.INTERACTIVE): 1,
        (Stage.EXTRACT, Queue.BULK): 2,
        (Stage.RENDER, Queue.BULK): 1,
    }


def test_how_everything_stands_is_what_counts_and_backlog_say_each(db: Database) -> None:
    assert inquiry.standing(db) == inquiry.Standing(inquiry.counts(db), {}, 0)
    first, over = accepted(db), brought_to(db, None)
    accepted(db)
    ledger.accept(db, upload(), queue=Queue.INTERACTIVE)
    with db.write() as session:
        session.execute(update(JobRow).where(JobRow.id == first).values(created_at=JobRow.created_at - 1000))
        session.execute(update(JobRow).where(JobRow.id == over).values(created_at=JobRow.created_at - 5000))
    claimed(db, brought_to(db, Stage.CLASSIFY), Stage.CLASSIFY)

    standing = inquiry.standing(db)
    assert (standing.counts, standing.backlog) == (inquiry.counts(db), inquiry.backlog(db))
    assert (standing.counts["queued"], standing.counts["running"], standing.counts["done"]) == (3, 1, 1)
    assert 1000 <= standing.oldest_s < 1100, "the job that is done is older, and waits no more"


def test_an_unknown_job_has_no_row_and_no_history(db: Database) -> None:
    assert inquiry.job(db, "no such job") is None
    assert inquiry.history(db, "no such job") == []
    assert ledger.position(db, "no such job") is None
    assert ledger.faces(db, "no such job") == []


def test_rows_can_be_read_after_the_session_is_closed(db: Database) -> None:
    job_id = brought_to(db, None)

    job = inquiry.job(db, job_id)

    assert job is not None
    assert {column: getattr(job, column) for column in JobRow.__table__.columns.keys()}["id"] == job_id  # noqa: SIM118
    assert [row.what for row in inquiry.history(db, job_id)][-1] == "done"
