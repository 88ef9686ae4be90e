"""Two inboxes in one stack: one told of by a queue, one found by the listing; each judged and answered in its own way."""

from __future__ import annotations

import json
import signal
from pathlib import Path

import pytest

from pipeline import inboxkeeping
from pipeline.inboxes import Inbox
from tests.acceptance.test_stack import Up, install, photographs, wait_for
from tests.fixtures.web_services import KEYS, Amazon
from workers import backfilling

OLD = 60

pytestmark = pytest.mark.timeout(600)


def test_two_inboxes_of_one_stack_go_their_own_ways(ministack: Amazon, tmp_path: Path) -> None:
    queue = ministack.queue()
    keys = {"UNMASK_SQS_ACCESS_KEY": KEYS["aws_access_key_id"], "UNMASK_SQS_SECRET_KEY": KEYS["aws_secret_access_key"]}
    up = Up(tmp_path / "data", UNMASK_SQS_URL=queue, UNMASK_SQS_ENDPOINT=ministack.url, **keys).ready()
    try:
        install(up, tmp_path / "model")
        for bucket in ("strict-uploads", "strict-results"):
            up.store.ensure_bucket(bucket)
        strict = Inbox("strict", "strict-uploads", "in/", (".jpg",), "strict-results", "out/", authentic_below=0.0, manipulated_from=0.0)
        inboxkeeping.add(up.db, up.settings, strict, by="test")
        [photograph] = photographs(1)
        for bucket in (up.settings.inbox_bucket, "strict-uploads"):
            up.store.client.put_object(Bucket=bucket, Key="in/ü +.jpg", Body=photograph)
        up.store.client.put_object(Bucket="strict-uploads", Key="elsewhere/a.jpg", Body=photograph)
        tell(ministack, up, "in/%C3%BC+%2B.jpg")

        wait_for(lambda: sum(job.finished_at is not None for job in up.jobs()) == 2, "the end of both", up)
        found = {job.inbox: job for job in up.jobs()}

        plain, other = found["default"], found["strict"]
        assert (plain.origin, other.origin) == ("sqs", "sweep")
        assert plain.verdict != "manipulated"
        assert (other.verdict, other.score) == ("manipulated", plain.score)
        result = json.loads(up.store.fetch("strict-results", other.result_key or "", max_bytes=10**6))
        assert other.result_key == f"out/in/ü +.jpg/{other.id}/result.json"
        assert result["annotated"] == f"s3://strict-results/out/in/ü +.jpg/{other.id}/annotated.png"
        assert up.store.fetch(up.settings.results_bucket, plain.result_key or "", max_bytes=10**6)
        assert ministack.waiting(queue) == (0, 0)
        a_fresh_upload_overtakes_a_back_fill(ministack, up, photograph)
    finally:
        status = up.stopped(signal.SIGINT)
    assert status == 0, up.said


def tell(ministack: Amazon, up: Up, encoded: str) -> None:
    """Say by the queue what Amazon would say of an upload into the inbox of the settings."""
    record = {"eventName": "ObjectCreated:Put", "s3": {"bucket": {"name": up.settings.inbox_bucket}, "object": {"key": encoded}}}
    ministack.sqs.send_message(QueueUrl=up.settings.sqs_url, MessageBody=json.dumps({"Records": [record]}))


def a_fresh_upload_overtakes_a_back_fill(ministack: Amazon, up: Up, photograph: bytes) -> None:
    for number in range(OLD):
        up.store.client.put_object(Bucket=up.settings.inbox_bucket, Key=f"old/{number}.jpg", Body=photograph)
    done = backfilling.run(up.db, up.store, up.settings, "default", prefix="old/", send=lambda *_, **__: False)
    assert done.made == OLD, "they are woken by the upkeep"
    wait_for(lambda: any(job.finished_at for job in up.jobs() if job.queue == "backfill"), "the first of them", up)
    up.store.client.put_object(Bucket=up.settings.inbox_bucket, Key="fresh.jpg", Body=photograph)
    tell(ministack, up, "fresh.jpg")
    wait_for(lambda: all(job.finished_at for job in up.jobs()) and len(up.jobs()) == OLD + 3, "the end of all", up, 120)
    [fresh] = [job for job in up.jobs() if job.key == "fresh.jpg"]
    behind = [job for job in up.jobs() if job.queue == "backfill" and (job.finished_at or 0) > (fresh.finished_at or 0)]
    assert len(behind) >= OLD // 4, "in the order they came it would be the last"
