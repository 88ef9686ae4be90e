"""The three stages, ingest and upkeep on real servers and both databases; only the worker processes are missing."""

from __future__ import annotations

import dataclasses
import errno
import io
import json
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from pathlib import Path
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
from celery.exceptions import Ignore
from kombu import pools
from PIL import Image
from redis import Redis
from skimage import data as pictures
from sqlalchemy import update

from pipeline import inquiry, ledger, registry
from pipeline.database import Database, EndpointRow, JobRow
from pipeline.jobs import Pixels, Queue, Reason, Stage, Status, Upload, Verdict
from pipeline.settings import Settings
from pipeline.storage import Storage
from tests.fixtures.jobs import advance, expire
from tests.fixtures.models import write_model
from workers import app as application
from workers import champion, ingest, scratch, stages, upkeep
from workers.champion import Champion
from workers.lease import Lease


def jpeg(pixels: Pixels) -> bytes:
    """A JPEG of (h, w, 3) uint8 RGB."""
    return cv2.imencode(".jpg", cv2.cvtColor(pixels, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_JPEG_QUALITY, 95])[1].tobytes()


def person(*, green: bool = False) -> Pixels:
    """A woman's face; `green`: so tinted that the tests' model finds it manipulated."""
    pixels = np.ascontiguousarray(pictures.astronaut()[:320, 60:380])
    return (pixels * np.array((0.4, 1.0, 0.4))).astype(np.uint8) if green else pixels


@dataclasses.dataclass(frozen=True)
class House:
    """What a worker works with, and the broker it is woken by."""

    settings: Settings
    db: Database
    store: Storage
    broker: Redis[bytes]

    def upload(self, key: str, data: bytes) -> Upload:
        """Put an object into the inbox; as what its event would tell."""
        self.store.put(self.settings.inbox_bucket, key, data, "image/jpeg")
        found = self.store.head(self.settings.inbox_bucket, key)
        return Upload(self.settings.inbox_bucket, key, "", found.etag, size=found.size, origin="seaweedfs", modified=found.modified)

    def accepted(self, key: str, data: bytes) -> str:
        """The same, with its job made."""
        return ledger.accept(self.db, self.upload(key, data)).job_id

    def through(self, job_id: str) -> JobRow:
        """Send a job through all stages; the job at the end."""
        for task in (stages.extract, stages.classify, stages.render):
            task.run(job_id)
        return self.job(job_id)

    def job(self, job_id: str) -> JobRow:
        """The job as it stands."""
        row = inquiry.job(self.db, job_id)
        assert row is not None
        return row

    def messages(self) -> dict[str, int]:
        """How many wait in each of the broker's queues, empty ones left out."""
        names = ("extract", "classify", "render", "interactive.extract", "interactive.classify", "interactive.render", "upkeep")
        return {name: count for name in names if (count := int(self.broker.llen(name)))}


@pytest.fixture
def house(
    s3_settings: Settings, store: Storage, db: Database, db_url: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> Iterator[House]:
    """A house with the tests' model as champion and Haar's detector, which loads at once."""
    settings = s3_settings.model_copy(update={"database_url": db_url, "detector": "haar", "batch_wait_ms": 0.0})
    application.configure(settings)
    # a doctor whom another test of this process called may have spoken to another broker, and connections are kept
    pools.reset()
    application.app.amqp._producer_pool = application.app._pool = None
    for module in (stages, upkeep):
        monkeypatch.setattr(module, "settings", lambda: settings)
    registry.publish(db, store, settings, write_model(tmp_path))
    registry.promote(db, settings, "green", "1")
    with Redis.from_url(settings.broker_url) as broker:
        broker.flushdb()
        yield House(settings, db, store, broker)
        broker.flushdb()
    champion.judge(settings).close()


def test_a_picture_goes_all_the_way(house: House) -> None:
    job = house.through(job_id := house.accepted("in/a b.jpg", jpeg(person(green=True))))

    assert (job.status, job.verdict) == (Status.DONE.value, Verdict.MANIPULATED.value)
    assert (job.annotated_key, job.result_key) == (f"in/a b.jpg/{job_id}/annotated.png", f"in/a b.jpg/{job_id}/result.json")
    annotated = house.store.fetch(house.settings.results_bucket, job.annotated_key, max_bytes=10_000_000)
    result = json.loads(house.store.fetch(house.settings.results_bucket, job.result_key, max_bytes=100_000))
    [face] = result["faces"]
    assert (face["verdict"], face["score"]) == ("manipulated", job.score)
    assert face["score"] > 0.7
    assert result["source"]["sha256"] == job.sha256
    assert (result["source"]["width"], result["source"]["height"]) == (320, 320)
    assert result["model"] == {"name": "green", "version": "1", "sha256": job.model_sha256}
    assert result["annotated"] == f"s3://{house.settings.results_bucket}/{job.annotated_key}"
    assert list(result["timings_ms"]) == ["wait", "extract", "classify", "render"]
    assert min(result["timings_ms"].values()) >= 0
    assert result["created_at"] < result["finished_at"]
    x, y, w, h = face["box"]
    changed = np.any(np.asarray(Image.open(io.BytesIO(annotated))) != decoded(jpeg(person(green=True))), axis=-1)
    assert changed[y : y + h, x : x + w].mean() > 0.05
    assert not list(house.settings.scratch_dir.iterdir())
    assert house.messages() == {}, "nobody is there to hear of it"


def test_webhooks_leave_at_once_by_one_message_for_all(house: House) -> None:
    with house.db.write() as session:
        session.add(EndpointRow(id="ep_1", url="https://example.com", events=[], secret="", created_at=0.0))

    for number in range(3):
        house.through(house.accepted(f"{number}.jpg", jpeg(person())))

    assert house.messages() == {"upkeep": 1}
    application.delivering()
    house.through(house.accepted("later.jpg", jpeg(person())))
    assert house.messages() == {"upkeep": 2}, "what came after it was taken may be too late for it"


def decoded(data: bytes) -> Pixels:
    """The pixels of an encoded picture."""
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))


def test_an_authentic_face_is_given_back_to_the_byte(house: House) -> None:
    job = house.through(house.accepted("a.jpg", jpeg(person())))

    assert job.verdict == Verdict.AUTHENTIC.value
    annotated = house.store.fetch(house.settings.results_bucket, str(job.annotated_key), max_bytes=10_000_000)
    assert np.array_equal(decoded(annotated), decoded(jpeg(person())))


def test_without_a_face_the_chain_goes_past_classification(house: House) -> None:
    job = house.through(house.accepted("a.jpg", jpeg(np.full((300, 300, 3), 127, np.uint8))))

    assert (job.status, job.verdict, job.reason, job.score) == ("done", Verdict.NOT_APPLICABLE.value, Reason.NO_FACE.value, None)
    result = json.loads(house.store.fetch(house.settings.results_bucket, str(job.result_key), max_bytes=100_000))
    assert (result["faces"], result["model"], result["reason"]) == ([], None, "no_face")


def test_the_same_picture_drawn_again_is_the_same_to_the_byte(house: House) -> None:
    jobs = [house.through(house.accepted(key, jpeg(person(green=True)))) for key in ("a.jpg", "b.jpg")]
    one, other = (house.store.fetch(house.settings.results_bucket, str(job.annotated_key), max_bytes=10_000_000) for job in jobs)
    assert one == other


def test_render_fetches_again_what_another_machine_fetched(house: House) -> None:
    job_id = house.accepted("a.jpg", jpeg(person()))
    stages.extract.run(job_id)
    stages.classify.run(job_id)
    scratch.drop(house.settings, job_id)
    stages.render.run(job_id)
    assert house.job(job_id).status == Status.DONE.value


@pytest.mark.parametrize(
    ("spoil", "status", "says"),
    [
        (lambda house: house.store.put(house.settings.inbox_bucket, "a.jpg", b"other", "image/jpeg"), "source_gone", "deleted or replaced"),
        (lambda house: house.store.delete(house.settings.inbox_bucket, "a.jpg"), "source_gone", "deleted or replaced"),
    ],
    ids=["replaced", "deleted"],
)
def test_a_source_that_is_gone_ends_the_job(house: House, spoil: Callable[[House], None], status: str, says: str) -> None:
    job_id = house.accepted("a.jpg", jpeg(person()))
    spoil(house)
    with pytest.raises(Ignore):
        stages.extract.run(job_id)
    assert house.job(job_id).status == status
    assert says in str(house.job(job_id).reason)


@pytest.mark.parametrize(("data", "says"), [(b"\xff\xd8\xff not a picture", "JPEG"), (bytes(20_000_001), "at most 20,000,000")])
def test_what_can_never_be_judged_is_refused_with_a_sentence(house: House, data: bytes, says: str) -> None:
    job_id = house.accepted("a.jpg", data)
    with pytest.raises(Ignore):
        stages.extract.run(job_id)
    assert house.job(job_id).status == Status.REFUSED.value
    assert says in str(house.job(job_id).reason)


def test_a_message_too_many_does_nothing(house: House) -> None:
    job_id = house.accepted("a.jpg", jpeg(person()))
    stages.extract.run(job_id)

    stages.extract.run(job_id)  # further on: its chain may go on
    with pytest.raises(Ignore):
        stages.render.run(job_id)  # not so far
    ledger.cancel(house.db, job_id)
    with pytest.raises(Ignore):
        stages.classify.run(job_id)  # over
    with pytest.raises(Ignore):
        stages.extract.run("no-such-job")


def test_what_fails_is_tried_again_and_in_the_end_gives_up(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise RuntimeError("boom")

    monkeypatch.setattr(stages.extraction, "extract", fail)
    job_id = house.accepted("a.jpg", jpeg(person()))
    for attempt in range(1, house.settings.max_attempts + 1):
        with pytest.raises(Ignore):
            stages.extract.run(job_id)
        assert house.job(job_id).attempts == attempt
        hurry(house, job_id)

    job = house.job(job_id)
    assert (job.status, job.reason) == ("failed", "The extract stage failed unexpectedly (RuntimeError).")
    assert "boom" in str(job.error)
    assert not list(house.settings.scratch_dir.iterdir())


def hurry(house: House, job_id: str) -> None:
    """Have the wait before the next attempt over."""
    with house.db.write() as session:
        session.get_one(JobRow, job_id).next_attempt_at = None


def test_a_store_that_is_away_costs_an_attempt_not_the_job(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    job_id = house.accepted("a.jpg", jpeg(person()))
    monkeypatch.setattr(stages, "settings", lambda: house.settings.model_copy(update={"s3_endpoint": "http://127.0.0.1:9"}))
    with pytest.raises(Ignore):
        stages.extract.run(job_id)
    assert house.job(job_id).status == Status.QUEUED.value
    assert "could not be reached" in str(house.job(job_id).error)


def test_a_judge_who_is_silent_is_told_from_a_file_system_that_is(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    """Python's error for ETIMEDOUT is the one that a future raises whose time is up."""
    job_id = house.accepted("a.jpg", jpeg(person()))
    stages.extract.run(job_id)
    monkeypatch.setattr(stages, "settings", lambda: house.settings.model_copy(update={"stage_limit_s": 0.2}))
    silent, failed = Future[list[champion.Judged]](), Future[list[champion.Judged]]()
    failed.set_exception(TimeoutError(errno.ETIMEDOUT, "Connection timed out", "/models/model.bin"))
    said = []
    for answer in (silent, failed):
        judge = SimpleNamespace(submit=lambda crops, answer=answer: answer)
        monkeypatch.setattr(stages, "judge", lambda chosen, judge=judge: judge)
        with pytest.raises(Ignore) as caught:
            stages.classify.run(job_id)
        said.append(stages._verdict_on(caught.value.__cause__, Stage.CLASSIFY, stages.settings()))
        hurry(house, job_id)

    assert said == [
        (False, "The classify stage took longer than 0.2 s."),
        (False, "The classify stage failed unexpectedly (TimeoutError)."),
    ]


def test_a_cancelled_job_leaves_nothing_behind(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    encode = stages.images.encode_png

    def cancel_meanwhile(pixels: Pixels, level: int) -> bytes:
        ledger.cancel(house.db, job_id)
        return encode(pixels, level)

    monkeypatch.setattr(stages.images, "encode_png", cancel_meanwhile)
    job_id = house.accepted("a.jpg", jpeg(person()))
    stages.extract.run(job_id)
    stages.classify.run(job_id)
    with pytest.raises(Ignore):
        stages.render.run(job_id)
    assert house.job(job_id).status == Status.CANCELLED.value


def test_a_lease_is_renewed_and_its_loss_is_noticed(house: House) -> None:
    job_id = house.accepted("a.jpg", b"x")
    claim = ledger.claim(house.db, job_id, Stage.EXTRACT, worker="w", lease_s=0.3, max_attempts=3)
    assert claim is not None
    with Lease(house.db, claim, 0.3) as lease:
        first = house.job(job_id).lease_until
        wait_for(lambda: house.job(job_id).lease_until != first)
        ledger.cancel(house.db, job_id)
        with pytest.raises(stages.LeaseLost):
            wait_for(lambda: lease.check() is not None)


def wait_for(true: Callable[[], bool]) -> None:
    """Look every 10 ms, for at most 5 s."""
    until = time.monotonic() + 5
    while not true():
        assert time.monotonic() < until
        time.sleep(0.01)


def test_a_wake_up_goes_to_the_queue_of_its_stage_and_urgency(house: House) -> None:
    assert application.wake("1")
    assert application.wake("2", Stage.CLASSIFY, Queue.INTERACTIVE)
    assert application.wake("3", Stage.RENDER)

    assert house.messages() == {"extract": 1, "interactive.classify": 1, "render": 1}
    message = json.loads(house.broker.lrange("extract", 0, 0)[0])
    assert message["headers"]["task"] == "unmask.extract"
    assert message["content-type"] == "application/json"


def test_an_upload_becomes_one_job_and_wakes_it_once(house: House) -> None:
    upload = house.upload("a.jpg", b"x")
    first, again = (ingest.take(house.db, house.settings, upload) for _ in range(2))

    assert first is not None
    assert again == dataclasses.replace(first, created=False)
    assert house.messages() == {"extract": 1}
    assert ingest.take(house.db, house.settings, dataclasses.replace(upload, bucket=house.settings.results_bucket)) is None


def test_while_the_broker_is_away_jobs_are_made_and_due_at_once(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ingest, "wake", lambda *_, **__: False)
    accepted = ingest.take(house.db, house.settings, house.upload("a.jpg", b"x"))

    assert accepted is not None
    assert ledger.due(house.db, wake_after_s=30) == [(accepted.job_id, Stage.EXTRACT, Queue.BULK)]


def test_upkeep_wakes_only_whom_the_broker_has_forgotten(house: House) -> None:
    jobs = [ingest.take(house.db, house.settings, house.upload(f"{number}.jpg", b"x")) for number in range(3)]
    ledger.unwoken(house.db, [job.job_id for job in jobs if job])
    assert upkeep.wake_due(house.db, house.settings) == 0, "a message for each is there"

    house.broker.rpop("extract")
    assert upkeep.wake_due(house.db, house.settings) == 1
    house.broker.flushdb()
    assert upkeep.wake_waiting() == 2, "the one just woken counts as on its way"
    assert house.messages() == {"extract": 2}


def test_a_message_that_waits_takes_less_than_a_kilobyte(house: House) -> None:
    """With what the server adds, as `make bench` measures it, about 30 bytes."""
    ingest.take(house.db, house.settings, house.upload("a.jpg", b"x"))
    message = house.broker.lindex("extract", 0)

    assert message is not None
    assert len(message) < 960
    assert json.loads(message)["headers"].keys() <= {"lang", "task", "id", "timelimit", "compression"}


def test_the_jobs_of_dead_workers_come_back(house: House) -> None:
    job_id = house.accepted("a.jpg", b"x")
    ledger.claim(house.db, job_id, Stage.EXTRACT, worker="dead", lease_s=5, max_attempts=3)
    expire(house.db, job_id)

    assert upkeep.sweep() == 1
    assert house.job(job_id).status == Status.QUEUED.value
    assert house.messages() == {"interactive.extract": 1}


def test_what_was_begun_does_not_wait_behind_a_backlog_once_more(house: House) -> None:
    for number in range(3):
        ingest.take(house.db, house.settings, house.upload(f"{number}.jpg", b"x"))
    (begun, *_), _ = inquiry.page(house.db, limit=3)
    ledger.claim(house.db, begun.id, Stage.EXTRACT, worker="dead", lease_s=5, max_attempts=3)
    house.broker.rpop("extract")
    expire(house.db, begun.id)

    assert upkeep.sweep() == 1
    assert house.messages() == {"interactive.extract": 1, "extract": 2}
    with house.db.write() as session:
        session.execute(update(JobRow).values(woken_at=1.0))
    assert upkeep.wake_due(house.db, house.settings) == 0, "a message for each is there, in whichever line"


def test_the_sweep_finds_uploads_whose_event_was_lost(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ingest, "GRACE_S", -10.0)
    ingest.take(house.db, house.settings, house.upload("known.jpg", b"x"))
    for key in ("lost/a b+ü.jpg", "lost/2.png", "folder/", "notes.txt"):
        house.store.put(house.settings.inbox_bucket, key, b"y", "image/jpeg")

    assert upkeep.reconcile() == 2
    assert upkeep.reconcile() == 0
    rows, _ = inquiry.page(house.db, origin="sweep", limit=10)
    assert {row.key for row in rows} == {"lost/a b+ü.jpg", "lost/2.png"}
    assert house.messages() == {"extract": 3}


def test_young_objects_are_left_to_their_events(house: House) -> None:
    house.upload("young.jpg", b"x")
    assert ingest.reconcile(house.db, house.store, house.settings) == ingest.Swept(seen=1, found=0, after="")


def test_a_sweep_that_runs_out_of_time_says_where_to_go_on(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ingest, "GRACE_S", -10.0)
    monkeypatch.setattr(ingest, "PAGE", 2)
    for number in range(5):
        house.upload(f"{number}.jpg", b"x")
    parts, after = [], ""
    while not parts or after:
        part = ingest.reconcile(house.db, house.store, house.settings, after=after, budget_s=0)
        parts.append((part.seen, part.found))
        after = part.after
    assert parts == [(2, 2), (2, 2), (1, 1)]


def test_a_new_champion_judges_from_the_next_look_on(house: House, tmp_path: Path) -> None:
    now = [0.0]
    one = Champion(house.db, house.settings, clock=lambda: now[0])
    assert one.classifier().card.version == "1"
    registry.publish(house.db, house.store, house.settings, write_model(tmp_path / "next", version="2"))
    registry.promote(house.db, house.settings, "green", "2")

    assert one.classifier().card.version == "1", "it does not ask the database for every batch"
    now[0] += champion.CHECK_S
    assert (one.classifier().card.version, one.card().version) == ("2", "2")


def test_a_champion_that_is_damaged_does_not_replace_the_old_one(house: House, tmp_path: Path) -> None:
    now = [0.0]
    one = Champion(house.db, house.settings, clock=lambda: now[0])
    one.classifier()
    registry.publish(house.db, house.store, house.settings, write_model(tmp_path / "next", version="2"))
    house.store.put(house.settings.models_bucket, "models/green/2/model.bin", b"tampered", "application/octet-stream")
    registry.promote(house.db, house.settings, "green", "2")
    now[0] += champion.CHECK_S

    assert one.classifier().card.version == "1"
    house.store.delete(house.settings.models_bucket, "models/green/2/model.bin")
    registry.publish(house.db, house.store, house.settings, tmp_path / "next" / "green" / "2")
    now[0] += champion.AGAIN_S
    assert one.classifier().card.version == "2"


def test_leftovers_are_removed_when_they_are_old(house: House) -> None:
    scratch.source(house.settings, "left", house.upload("a.jpg", b"x"))
    assert scratch.tidy(house.settings) == 0
    assert scratch.tidy(house.settings, older_s=-1) == 1


def test_a_lost_message_is_missed_however_many_another_stage_has(house: House) -> None:
    waiting = house.accepted("waiting.jpg", b"x")
    claim = ledger.claim(house.db, lost := house.accepted("lost.jpg", b"y"), Stage.EXTRACT, worker="w", lease_s=5, max_attempts=3)
    assert claim is not None
    assert advance(house.db, claim)
    for _ in range(3):  # one for the job, and two of jobs that went on meanwhile
        application.wake(waiting)
    ledger.unwoken(house.db, [lost])

    assert upkeep.wake_due(house.db, house.settings) == 1
    assert house.messages() == {"extract": 3, "classify": 1}
