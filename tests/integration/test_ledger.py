"""The life of a job, step by step, on both databases."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from pipeline import audit, inquiry, ledger, pauses
from pipeline.database import Database
from pipeline.jobs import STAGES, Judgement, Queue, Reason, Stage, Status, Verdict
from tests.fixtures.jobs import (
    MAX_ATTEMPTS,
    MODEL,
    accepted,
    advance,
    brought_to,
    claimed,
    event_types,
    events,
    expire,
    face,
    judged,
    upload,
)


def stand(db: Database, job_id: str) -> Any:
    job = inquiry.job(db, job_id)
    assert job is not None
    return job


def try_claim(db: Database, job_id: str, stage: Stage = Stage.EXTRACT, max_attempts: int = MAX_ATTEMPTS) -> ledger.Claim | None:
    return ledger.claim(db, job_id, stage, worker="other", lease_s=15.0, max_attempts=max_attempts)


def test_a_job_goes_through_the_three_stages_and_ends_with_its_results(db: Database) -> None:
    job_id = ledger.accept(db, upload("Grüße/a+b%20.jpg", etag='"e1"'), queue=Queue.INTERACTIVE).job_id
    for stage in STAGES:
        assert ledger.position(db, job_id) == (Status.QUEUED, stage)
        claim = claimed(db, job_id, stage)
        assert (claim.stage, claim.attempt, claim.queue, claim.worker) == (stage, 1, Queue.INTERACTIVE, "worker-1")
        assert (claim.upload.key, claim.upload.etag) == ("Grüße/a+b%20.jpg", "e1")
        assert ledger.position(db, job_id) == (Status.RUNNING, stage)
        assert advance(db, claim)

    job = stand(db, job_id)
    assert (job.status, job.stage, job.verdict, job.score, job.reason) == ("done", "render", "manipulated", 0.97, None)
    assert (job.annotated_key, job.result_key) == ("out/annotated.png", "out/result.json")
    assert (job.sha256, job.width, job.height) == ("f" * 64, 640, 480)
    assert (job.model_name, job.model_version, job.model_sha256) == (MODEL.name, MODEL.version, MODEL.sha256)
    assert job.timings_ms.keys() == {"wait", "extract", "classify", "render"}
    assert job.timings_ms["extract"] == 10.0
    assert 0 <= job.timings_ms["wait"] < 60_000
    assert job.created_at <= job.started_at <= job.finished_at
    assert (job.lease_until, job.next_attempt_at) == (None, None)


def test_its_history_and_its_events_tell_the_way(db: Database) -> None:
    job_id = brought_to(db, None)

    told = [(row.what, row.stage) for row in inquiry.history(db, job_id)]
    assert told == [
        ("accepted", "extract"),
        ("claimed", "extract"),
        ("advanced", "classify"),
        ("claimed", "classify"),
        ("advanced", "render"),
        ("claimed", "render"),
        ("done", "render"),
    ]
    assert [(event.type, event.sequence) for event in events(db, job_id)] == [("job.started", 1), ("job.done", 2)]


def test_only_one_claim_is_to_be_had_and_only_for_the_present_stage(db: Database) -> None:
    job_id = accepted(db)

    assert try_claim(db, job_id, Stage.CLASSIFY) is None
    assert try_claim(db, "no such job") is None
    claimed(db, job_id)
    assert try_claim(db, job_id) is None


def test_crops_are_kept_from_extraction_to_the_end_and_no_longer(db: Database) -> None:
    job_id = accepted(db)
    small = face(1, Reason.FACE_TOO_SMALL)
    assert advance(db, claimed(db, job_id), [face(0), small, face(2)])

    kept = ledger.faces(db, job_id, crops=True)
    assert kept == [face(0), small, face(2)]
    assert [None if one.crop is None else (one.crop.shape, int(one.crop.max())) for one in kept] == [((8, 8, 3), 0), None, ((8, 8, 3), 2)]
    assert [one.crop for one in ledger.faces(db, job_id)] == [None, None, None]

    assert advance(db, claimed(db, job_id, Stage.CLASSIFY))
    assert advance(db, claimed(db, job_id, Stage.RENDER))
    assert [one.crop for one in ledger.faces(db, job_id, crops=True)] == [None, None, None]


def test_a_face_to_be_judged_needs_a_crop_and_a_bad_list_changes_nothing(db: Database) -> None:
    job_id = accepted(db)
    claim = claimed(db, job_id)
    broken = face(0)
    object.__setattr__(broken, "crop", None)

    with pytest.raises(ledger.LedgerError, match="Face 0 has no square"):
        advance(db, claim, [broken])

    assert ledger.position(db, job_id) == (Status.RUNNING, Stage.EXTRACT)


@pytest.mark.parametrize(
    ("faces", "reason"),
    [([], "no_face"), ([face(0, Reason.FACE_TOO_SMALL), face(1, Reason.BLURRED)], "blurred")],
    ids=["no face", "none good enough"],
)
def test_without_a_face_to_judge_the_job_goes_straight_to_render(db: Database, faces: list[Any], reason: str) -> None:
    job_id = accepted(db)
    assert advance(db, claimed(db, job_id), faces)

    assert ledger.position(db, job_id) == (Status.QUEUED, Stage.RENDER)
    assert try_claim(db, job_id, Stage.CLASSIFY) is None
    assert advance(db, claimed(db, job_id, Stage.RENDER))
    job = stand(db, job_id)
    assert (job.status, job.verdict, job.score, job.reason, job.model_version) == ("done", "not_applicable", None, reason, None)
    assert events(db, job_id)[-1].payload["data"]["faces"]["verdicts"] == ["not_applicable"] * len(faces)


def test_the_image_has_its_worst_faces_verdict_and_its_highest_score(db: Database) -> None:
    job_id = accepted(db)
    assert advance(db, claimed(db, job_id), [face(0), face(1, Reason.BLURRED), face(2)])
    claim = claimed(db, job_id, Stage.CLASSIFY)
    judgements = [Judgement(0, 0.02, Verdict.AUTHENTIC, evidence={"map": [1, 2]}), judged(2, 0.5, Verdict.UNCERTAIN)]
    assert ledger.classified(db, claim, judgements, MODEL, 5.0)

    job = stand(db, job_id)
    assert (job.verdict, job.score, job.reason) == ("uncertain", 0.5, None)


@pytest.mark.parametrize(("judgements", "said"), [([judged(0), judged(7)], "no face 7"), ([judged(1)], "no judgement of face 0")])
def test_judgements_that_do_not_fit_the_faces_change_nothing(db: Database, judgements: list[Judgement], said: str) -> None:
    job_id = accepted(db)
    assert advance(db, claimed(db, job_id), [face(0), face(1)])
    claim = claimed(db, job_id, Stage.CLASSIFY)

    with pytest.raises(ledger.LedgerError, match=said):
        ledger.classified(db, claim, judgements, MODEL, 5.0)

    assert ledger.position(db, job_id) == (Status.RUNNING, Stage.CLASSIFY)
    assert stand(db, job_id).verdict is None


def test_extracting_anew_replaces_the_faces(db: Database) -> None:
    job_id = accepted(db)
    assert advance(db, claimed(db, job_id), [face(0), face(1)])
    claim = claimed(db, job_id, Stage.CLASSIFY)
    assert ledger.retry(db, claim, ValueError("x"), max_attempts=3, permanent=True, sentence="No.") is Status.FAILED
    assert ledger.requeue(db, job_id)
    assert ledger.faces(db, job_id) == []

    assert advance(db, claimed(db, job_id), [face(0)])

    assert ledger.faces(db, job_id) == [face(0)]


# -- fencing


@pytest.mark.parametrize("stage", STAGES)
def test_a_claim_that_was_swept_changes_nothing_any_more(db: Database, stage: Stage) -> None:
    job_id = brought_to(db, stage)
    stale = claimed(db, job_id, stage)
    expire(db, job_id)
    assert ledger.sweep(db, max_attempts=3) == [job_id]
    fresh = claimed(db, job_id, stage, worker="worker-2")
    before = (dict(vars(stand(db, job_id))), len(inquiry.history(db, job_id)), event_types(db, job_id))

    assert not ledger.renew(db, stale, 15.0)
    assert not advance(db, stale, [])
    assert not ledger.refuse(db, stale, "No.")
    assert not ledger.source_gone(db, stale, "Gone.")
    assert ledger.retry(db, stale, ValueError(), max_attempts=3, permanent=True, sentence="No.") is Status.RUNNING

    after = (dict(vars(stand(db, job_id))), len(inquiry.history(db, job_id)), event_types(db, job_id))
    before[0].pop("_sa_instance_state"), after[0].pop("_sa_instance_state")
    assert after == before
    assert fresh.fence > stale.fence
    assert advance(db, fresh)


def test_a_worker_that_was_late_but_not_swept_may_still_finish(db: Database) -> None:
    job_id = accepted(db)
    claim = claimed(db, job_id)
    expire(db, job_id)

    assert advance(db, claim)


def test_renewing_moves_the_lease_on_by_the_databases_clock(db: Database) -> None:
    job_id = accepted(db)
    claim = claimed(db, job_id)
    expire(db, job_id)

    assert ledger.renew(db, claim, 15.0)

    assert ledger.sweep(db, max_attempts=3) == []
    assert ledger.position(db, job_id) == (Status.RUNNING, Stage.EXTRACT)


def test_a_workers_own_clock_decides_nothing(db: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    job_id = accepted(db)
    monkeypatch.setattr("time.time", lambda: 0.0)
    claimed(db, job_id)
    monkeypatch.setattr("time.time", lambda: 9e9)

    assert ledger.sweep(db, max_attempts=3) == []
    assert ledger.due(db, wake_after_s=30.0) == []


# -- going wrong


def test_a_failure_waits_longer_each_time_until_the_attempts_are_used_up(db: Database) -> None:
    job_id = accepted(db)
    waits = []
    for attempt in (1, 2):
        claim = claimed(db, job_id)
        assert claim.attempt == attempt
        assert ledger.retry(db, claim, ValueError("S3 says 503"), max_attempts=3, permanent=False, sentence="No answer.") is Status.QUEUED
        job = stand(db, job_id)
        waits.append(job.next_attempt_at - inquiry.history(db, job_id)[-1].at)
        assert "ValueError: S3 says 503" in job.error
        assert try_claim(db, job_id) is None, "it is backing off"
        expire(db, job_id)
    assert 0.7 < waits[0] < 1.3
    assert 3.9 < waits[1] < 6.1

    last = claimed(db, job_id)
    assert ledger.retry(db, last, ValueError("S3 says 503"), max_attempts=3, permanent=False, sentence="No answer.") is Status.FAILED

    job = stand(db, job_id)
    assert (job.status, job.reason, job.attempts) == ("failed", "No answer.", 3)
    assert event_types(db, job_id) == ["job.started", "job.failed"]
    assert events(db, job_id)[-1].payload["data"]["reason"] == "No answer."


def test_a_job_started_and_waited_once_however_often_it_is_claimed(db: Database) -> None:
    job_id = accepted(db)
    first = claimed(db, job_id)
    started = stand(db, job_id).started_at
    assert advance(db, first)

    second = claimed(db, job_id, Stage.CLASSIFY)

    assert stand(db, job_id).started_at == started
    assert second.timings_ms["wait"] == first.timings_ms["wait"]


def test_each_stage_has_attempts_of_its_own(db: Database) -> None:
    job_id = accepted(db)
    for stage in STAGES:
        claim = claimed(db, job_id, stage)
        assert ledger.retry(db, claim, OSError(), max_attempts=3, permanent=False, sentence="Again.") is Status.QUEUED
        expire(db, job_id)
        claim = claimed(db, job_id, stage)
        assert claim.attempt == 2
        assert advance(db, claim)


def test_a_permanent_failure_fails_at_once(db: Database) -> None:
    job_id = accepted(db)

    assert ledger.retry(db, claimed(db, job_id), KeyError("x"), max_attempts=3, permanent=True, sentence="Access denied.") is Status.FAILED
    assert event_types(db, job_id) == ["job.started", "job.failed"]


def test_a_refused_input_and_a_vanished_one_say_why(db: Database) -> None:
    refused, gone = accepted(db), accepted(db)

    assert ledger.refuse(db, claimed(db, refused), "This is no image.")
    assert ledger.source_gone(db, claimed(db, gone), "The object was replaced.")

    assert (stand(db, refused).status, stand(db, refused).reason) == ("refused", "This is no image.")
    assert (stand(db, gone).status, stand(db, gone).reason) == ("source_gone", "The object was replaced.")
    assert events(db, refused)[-1].payload["data"]["status"] == "refused"
    assert (events(db, gone)[-1].type, events(db, gone)[-1].payload["data"]["status"]) == ("job.refused", "source_gone")


def test_text_that_a_database_cannot_hold_is_cleaned(db: Database) -> None:
    job_id = accepted(db)
    claim = claimed(db, job_id, worker="host\0name" + "x" * 300)

    assert ledger.retry(db, claim, ValueError("a\0b \udcff"), max_attempts=3, permanent=True, sentence="Bad\0 \udcff.") is Status.FAILED

    assert stand(db, job_id).reason == "Bad ?."
    assert "\0" not in stand(db, job_id).error


def test_lowering_the_attempts_strands_no_job(db: Database) -> None:
    job_id = accepted(db)
    for _ in range(2):
        assert ledger.retry(db, claimed(db, job_id), OSError(), max_attempts=3, permanent=False, sentence="Again.") is Status.QUEUED
        expire(db, job_id)

    assert try_claim(db, job_id, max_attempts=2) is None

    assert (stand(db, job_id).status, stand(db, job_id).reason) == ("failed", "The extract stage was tried 2 times without success.")
    assert event_types(db, job_id)[-1] == "job.failed"


# -- people


def test_cancelling_takes_the_claim_from_the_worker(db: Database) -> None:
    queued, running, done = accepted(db), accepted(db), brought_to(db, None)
    claim = claimed(db, running)

    assert ledger.cancel(db, queued)
    assert ledger.cancel(db, running)
    assert not ledger.cancel(db, done)
    assert not ledger.cancel(db, running)
    assert not ledger.cancel(db, "no such job")

    assert not advance(db, claim)
    assert not ledger.renew(db, claim, 15.0)
    assert ledger.position(db, queued) == (Status.CANCELLED, Stage.EXTRACT)
    assert event_types(db, running) == ["job.started"]


def test_requeueing_starts_from_the_beginning_and_its_events_go_on_counting(db: Database) -> None:
    job_id = brought_to(db, Stage.RENDER)
    claim = claimed(db, job_id, Stage.RENDER)
    assert ledger.retry(db, claim, OSError(), max_attempts=3, permanent=True, sentence="Disk full.") is Status.FAILED

    assert ledger.requeue(db, job_id)

    job = stand(db, job_id)
    assert (job.status, job.stage, job.attempts, job.verdict, job.reason, job.finished_at) == ("queued", "extract", 0, None, None, None)
    assert not advance(db, claim)
    for stage in STAGES:
        assert advance(db, claimed(db, job_id, stage))
    assert [(event.type, event.sequence) for event in events(db, job_id)] == [("job.started", 1), ("job.failed", 2), ("job.done", 3)]


def test_only_what_ended_without_a_result_can_be_requeued(db: Database) -> None:
    queued, running, done = accepted(db), accepted(db), brought_to(db, None)
    claimed(db, running)

    assert not any(ledger.requeue(db, job_id) for job_id in (queued, running, done, "no such job"))

    assert event_types(db, done) == ["job.started", "job.done"]


def cancelled(db: Database) -> str:
    job_id = accepted(db)
    assert ledger.cancel(db, job_id)
    return job_id


def paused(db: Database) -> str:
    pauses.pause(db, "bulk")
    return "bulk"


@pytest.mark.parametrize(
    ("action", "given", "deed"),
    [
        ("job.cancel", accepted, ledger.cancel),
        ("job.retry", cancelled, ledger.requeue),
        ("queue.pause", lambda db: "bulk", pauses.pause),
        ("queue.resume", paused, pauses.resume),
    ],
    ids=["cancel", "retry", "pause", "resume"],
)
def test_what_somebody_does_and_the_note_of_it_come_together_or_not_at_all(
    db: Database, action: str, given: Callable[[Database], str], deed: Callable[..., object], monkeypatch: pytest.MonkeyPatch
) -> None:
    subject = given(db)

    def found() -> tuple[object, ...]:
        return ledger.position(db, subject), len(inquiry.history(db, subject)), pauses.paused(db)

    def notes() -> list[tuple[str, str, str]]:
        return [(row.actor, row.action, row.subject) for row in reversed(audit.page(db, limit=9)[0])]

    def note_and_fail(*what: Any, note: Callable[..., None] = audit.note) -> None:
        note(*what)
        raise RuntimeError("right after the note")

    done, noted = found(), notes()
    with monkeypatch.context() as patched:
        patched.setattr(audit, "note", note_and_fail)
        with pytest.raises(RuntimeError, match="right after the note"):
            deed(db, subject, actor="user:ann")
    assert (found(), notes()) == (done, noted)

    points: list[str] = []
    with monkeypatch.context() as patched:
        patched.setattr("pipeline.database.faults.point", lambda name, *more: points.append(name))
        deed(db, subject, actor="user:ann")
    assert points.count("committed") == 1
    assert found() != done
    assert notes() == [*noted, ("user:ann", action, subject)]
