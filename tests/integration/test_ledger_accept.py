"""One job per upload, whoever tells of it, in whatever order, however many at once."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import func, select

from pipeline import inquiry, ledger
from pipeline.database import Database, JobRow
from pipeline.jobs import Queue, Upload
from tests.fixtures.jobs import advance, brought_to, claimed, upload

PUT = Upload("inbox", "a.jpg", etag="e1")


def jobs_of(db: Database, key: str) -> list[JobRow]:
    with db.read() as session:
        return list(session.scalars(select(JobRow).where(JobRow.key == key).order_by(JobRow.created_at, JobRow.id)))


def test_a_repeated_event_finds_its_job_even_when_that_is_done(db: Database) -> None:
    job_id = brought_to(db, None)
    job = inquiry.job(db, job_id)
    assert job is not None

    again = ledger.accept(db, Upload(job.bucket, job.key, etag="e1"))

    assert again == ledger.Accepted(job_id, created=False)
    assert [row.what for row in inquiry.history(db, job_id)].count("accepted") == 1


def test_what_adapters_know_comes_together_in_one_row(db: Database) -> None:
    told = [
        replace(PUT, origin="sweep", etag='"e1"'),
        replace(PUT, origin="minio", etag="", sequencer="17a0"),
        replace(PUT, origin="sqs", version_id="v1", sequencer="17A000"),
        replace(PUT, origin="submit", version_id="null"),
    ]
    accepted = [ledger.accept(db, news) for news in told]

    assert [one.created for one in accepted] == [True, False, False, False]
    (row,) = jobs_of(db, "a.jpg")
    assert (row.version_id, row.etag, row.sequencer, row.origin) == ("v1", "e1", "17A", "sweep")


def test_a_deliberate_upload_of_the_same_bytes_is_a_new_job_and_the_sweep_adds_none(db: Database) -> None:
    first = ledger.accept(db, replace(PUT, sequencer="01"))
    second = ledger.accept(db, replace(PUT, sequencer="02"))
    swept = ledger.accept(db, replace(PUT, origin="sweep"))

    assert (first.created, second.created, swept.created) == (True, True, False)
    assert swept.job_id == second.job_id


def test_outdated_news_makes_no_job(db: Database) -> None:
    newest = ledger.accept(db, replace(PUT, etag="e2", sequencer="05"))

    assert ledger.accept(db, replace(PUT, etag="e1", sequencer="03")) == ledger.Accepted(newest.job_id, created=False)
    (row,) = jobs_of(db, "a.jpg")
    assert (row.etag, row.sequencer) == ("e2", "05")


def test_an_upload_written_after_the_sweep_saw_the_same_bytes_is_a_new_one(db: Database) -> None:
    ledger.accept(db, replace(PUT, origin="sweep"))
    (row,) = jobs_of(db, "a.jpg")

    late_event = ledger.accept(db, replace(PUT, sequencer="01", modified=row.created_at - 1))
    new_upload = ledger.accept(db, replace(PUT, sequencer="02", modified=row.created_at + 3600))

    assert (late_event.created, new_upload.created) == (False, True)


def test_an_object_overwritten_all_the_time_still_finds_its_jobs(db: Database) -> None:
    ids = [ledger.accept(db, replace(PUT, etag=f"e{number}", sequencer=f"{number:04d}5")).job_id for number in range(130)]

    assert ledger.accept(db, replace(PUT, etag="e0", sequencer="00005")) == ledger.Accepted(ids[0], created=False)
    assert ledger.accept(db, replace(PUT, etag="e3", origin="sweep")) == ledger.Accepted(ids[3], created=False)
    assert ledger.accept(db, replace(PUT, etag="x", sequencer="00055")).job_id == ids[5]
    assert ledger.accept(db, replace(PUT, etag="x", sequencer="00056")) == ledger.Accepted(ids[129], created=False)


def test_keys_and_buckets_are_told_apart_to_the_byte(db: Database) -> None:
    keys = [
        "a.jpg",
        "A.jpg",
        "a.jpg ",
        "ä.jpg",
        "a\u0308.jpg",
        "a/b.jpg",
        "a%2Fb.jpg",
        "a+b.jpg",
        "a b.jpg",
        "日本.png",
        "😀.png",
        "'; drop table jobs; --",
    ]
    made = [ledger.accept(db, replace(PUT, bucket=bucket, key=key)) for bucket in ("inbox", "other") for key in keys]

    assert all(one.created for one in made)
    assert len({one.job_id for one in made}) == 2 * len(keys)


def test_somebody_who_waits_makes_a_waiting_job_interactive(db: Database) -> None:
    waiting, done = ledger.accept(db, PUT).job_id, brought_to(db, None)
    finished = inquiry.job(db, done)
    assert finished is not None

    ledger.accept(db, PUT, queue=Queue.INTERACTIVE)
    ledger.accept(db, Upload("inbox", finished.key, etag="e1"), queue=Queue.INTERACTIVE)

    assert claimed(db, waiting).queue is Queue.INTERACTIVE
    assert ledger.accept(db, PUT).job_id == waiting
    unchanged = inquiry.job(db, done)
    assert unchanged is not None
    assert unchanged.queue == "bulk"


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"key": ""}, "needs a bucket and a key"),
        ({"bucket": ""}, "needs a bucket and a key"),
        ({"key": "k" * 1025}, "key has 1025 characters; 1024"),
        ({"version_id": "v" * 256}, "version_id has 256 characters; 255"),
        ({"key": "a\0.jpg"}, "key has characters that are not text"),
        ({"key": "a\udcff.jpg"}, "key has characters that are not text"),
    ],
)
def test_what_cannot_be_stored_is_refused_in_one_sentence(db: Database, wrong: dict[str, str], said: str) -> None:
    with pytest.raises(ledger.LedgerError, match=said) as refusal:
        ledger.accept(db, replace(PUT, **wrong))  # type: ignore[arg-type]

    assert refusal.value.permanent
    assert sum(inquiry.counts(db).values()) == 0


def test_many_adapters_at_once_make_one_job_each(db: Database) -> None:
    """Twenty uploads, each told of in four ways by eight threads, shuffled so that all are at the same few keys at once."""
    told = [
        replace(PUT, key=f"{number}.jpg", **known)  # type: ignore[arg-type]
        for number in range(20)
        for known in ({"sequencer": "01"}, {"origin": "sweep"}, {"version_id": "v1"}, {"etag": "", "sequencer": "01"})
    ]
    with ThreadPoolExecutor(8) as threads:
        accepted = list(threads.map(lambda news: ledger.accept(db, news), told))

    assert sum(one.created for one in accepted) == 20
    assert len({one.job_id for one in accepted}) == 20
    with db.read() as session:
        assert session.scalar(select(func.count()).select_from(JobRow)) == 20


@st.composite
def histories(draw: st.DrawFn) -> tuple[int, list[Upload]]:
    """Uploads to one key of a bucket with versions; each told of by any of four adapters, repeated and shuffled."""
    versions = [f"v{number}" for number in range(draw(st.integers(1, 4)))]
    told = []
    for number, version in enumerate(versions):
        full = replace(PUT, etag=draw(st.sampled_from(["e1", "e2"])), version_id=version, sequencer=f"{number + 1:04x}")
        told += [full, replace(full, etag=""), replace(full, sequencer="", origin="submit")]
    return len(versions), draw(st.permutations(told + draw(st.lists(st.sampled_from(told), max_size=4))))


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(history=histories())
def test_shuffled_tellings_of_versions_make_one_job_each(db: Database, history: tuple[int, list[Upload]]) -> None:
    versions, told = history
    key = upload().key
    for news in told:
        ledger.accept(db, replace(news, key=key))

    assert sorted(row.version_id for row in jobs_of(db, key)) == [f"v{number}" for number in range(versions)]


def test_the_listing_of_a_page_is_compared_in_one_query(db: Database) -> None:
    known = [ledger.accept(db, Upload("inbox", f"{number}.jpg", etag="e1")).job_id for number in range(3)]
    assert advance(db, claimed(db, known[0]))
    listing = [Upload("inbox", f"{number}.jpg", etag='"e1"', origin="sweep") for number in range(5)]
    listing += [Upload("inbox", "0.jpg", etag="e9", origin="sweep"), Upload("elsewhere", "0.jpg", etag="e1", origin="sweep")]

    missing = inquiry.unknown(db, listing)

    assert missing == listing[3:]
    assert inquiry.unknown(db, []) == []
