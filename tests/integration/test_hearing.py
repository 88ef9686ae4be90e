"""Whether uploads are told of: what the doctor finds missing, and that the commands it prints put it right."""

from __future__ import annotations

import json
import subprocess
from dataclasses import replace
from typing import Any

import pytest

from pipeline import ledger
from pipeline.database import Database
from pipeline.inboxes import Inbox, of_settings
from pipeline.jobs import Queue, Upload
from pipeline.settings import Settings
from tests.fixtures.web_services import Amazon
from workers import hearing, wiring
from workers.hearing import uncovered

ELSEWHERE = 'aws() { command aws --endpoint-url "$AWS_ENDPOINT_URL" "$@"; }\n'  # the first version of the program takes no variable
CREATED = "s3:ObjectCreated:*"


def notification(*events: str, prefix: str = "", suffix: str = "") -> dict[str, Any]:
    rules = [{"Name": name, "Value": value} for name, value in (("Prefix", prefix), ("Suffix", suffix)) if value]
    return {"Events": list(events), "Filter": {"Key": {"FilterRules": rules}}}


@pytest.mark.parametrize(
    ("told", "missing"),
    [
        ([notification(CREATED)], ""),
        ([notification(CREATED, prefix="in/")], ""),
        ([notification(CREATED, prefix="in/deep/")], "or keys under in/"),
        ([notification("s3:ObjectCreated:Put")], "leaves out some ways"),
        ([notification(*(f"s3:ObjectCreated:{how}" for how in hearing.HOW))], ""),
        ([notification("s3:ObjectRemoved:*")], "leaves out some ways"),
        ([], "there is no notification"),
        ([notification(CREATED, suffix=".jpg")], "only of keys that end in .jpg"),
        ([notification(CREATED, suffix=".jpg"), notification(CREATED)], ""),
    ],
)
def test_a_notification_must_cover_what_the_inbox_takes(told: list[dict[str, Any]], missing: str) -> None:
    found = uncovered(Inbox("press", "press-bucket", "in/"), told)
    assert missing in found
    assert bool(found) == bool(missing)


def test_endings_that_are_told_are_enough_for_an_inbox_that_takes_no_others() -> None:
    told = [notification(CREATED, suffix=".jpg"), notification(CREATED, suffix=".png")]
    assert uncovered(Inbox("press", "press-bucket", suffixes=(".jpg", ".orig.png")), told) == ""
    assert "only of keys" in uncovered(Inbox("press", "press-bucket", suffixes=(".jpg", ".webp")), told)


def test_what_the_doctor_prints_for_the_aws_command_line_makes_uploads_heard(ministack: Amazon, db: Database, db_url: str) -> None:
    bucket, other = ministack.bucket(), ministack.queue()
    ministack.tell(bucket, other)  # a notification of somebody else, which must stay
    settings = Settings(inbox_bucket=bucket, inbox_prefix="it's ${in}/", database_url=db_url, **ministack.settings)
    inbox = replace(of_settings(settings), source="sqs", sqs_url=f"{ministack.url}/000000000000/unmask-{bucket}")
    before = hearing.look(inbox, settings, db, ministack.s3)
    assert (before.well, before.wiring) == (False, True)
    assert "cannot be looked at" in before.found

    present = ministack.s3.get_bucket_notification_configuration(Bucket=bucket)
    script = wiring.ways(inbox, settings, present)["AWS CLI"]
    done = subprocess.run(
        ["sh", "-euc", ELSEWHERE + script], env=ministack.environment(), capture_output=True, text=True, check=False, timeout=120
    )

    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == f"UNMASK_SQS_URL={inbox.sqs_url}"
    after = hearing.look(inbox, settings, db, ministack.s3)
    assert (after.well, after.found.startswith("told to arn:aws:sqs:")) == (True, True), after
    kept = ministack.s3.get_bucket_notification_configuration(Bucket=bucket)["QueueConfigurations"]
    assert {one["QueueArn"] for one in kept} == {ministack.arn(other), ministack.arn(inbox.sqs_url)}
    ministack.s3.put_object(Bucket=bucket, Key="it's ${in}/a.jpg", Body=b"x")
    bodies = []
    while len(bodies) < 2:  # the test event comes first, and may come alone
        answer = ministack.sqs.receive_message(QueueUrl=inbox.sqs_url, MaxNumberOfMessages=10, WaitTimeSeconds=5)
        bodies += [json.loads(message["Body"]) for message in answer["Messages"]]
    assert any(body.get("Records", [{}])[0].get("s3", {}).get("bucket", {}).get("name") == bucket for body in bodies)


def test_each_thing_that_is_missing_is_said(ministack: Amazon, db: Database, db_url: str) -> None:
    bucket, queue = ministack.bucket(), ministack.queue()
    settings = Settings(inbox_bucket=bucket, sqs_url=queue, database_url=db_url, **ministack.settings)

    def look() -> hearing.Heard:
        return hearing.look(of_settings(settings), settings, db, ministack.s3)

    assert "there is no notification for it" in look().found
    ministack.tell(bucket, queue)
    assert look().found.startswith("the queue has no dead-letter queue")
    redrive = json.dumps({"deadLetterTargetArn": ministack.arn(ministack.queue()), "maxReceiveCount": "5"})
    ministack.sqs.set_queue_attributes(QueueUrl=queue, Attributes={"RedrivePolicy": redrive})
    assert look().well
    ministack.tell_by_bus(bucket, queue)
    assert look() == hearing.Heard(True, "by EventBridge, whose rules are not looked at")
    ministack.tell_by_topic(bucket, queue)
    assert look().found.startswith("by the topic arn:aws:sns:")


class Client:
    """A client of a store of some maker."""

    def __init__(self, server: str, present: dict[str, Any] | None = None) -> None:
        self.server = server
        self.present = present

    def head_bucket(self, Bucket: str) -> dict[str, Any]:
        return {"ResponseMetadata": {"HTTPHeaders": {"server": self.server}}}

    def get_bucket_notification_configuration(self, Bucket: str) -> dict[str, Any]:
        assert self.present is not None, "a store that only pretends was asked"
        return {**self.present, "ResponseMetadata": {}}


def test_a_store_that_posts_to_the_webhook_is_judged_by_what_came(db: Database) -> None:
    settings, inbox = Settings(), of_settings(Settings())

    def look() -> hearing.Heard:
        return hearing.look(inbox, settings, db, Client("SeaweedFS 30GB 4.48"))

    assert look() == hearing.Heard(True, "nothing was uploaded yet")
    for number in range(3):
        ledger.accept(db, Upload("inbox", f"{number}.jpg", etag="e", origin="sweep"))
        ledger.accept(db, Upload("inbox", f"old/{number}.jpg", etag="e", origin="sweep"), queue=Queue.BACKFILL)
        ledger.accept(db, Upload("inbox", f"mine/{number}.jpg", etag="e", origin="submit"))
    lost = look()
    assert (lost.well, lost.wiring) == (False, True)
    assert "the last 3 uploads were found by the listing only" in lost.found
    ledger.accept(db, Upload("inbox", "told.jpg", etag="e", origin="seaweedfs"))
    assert look() == hearing.Heard(True, "1 of the last 4 uploads were told of at once")


def test_of_other_makers_stores(db: Database) -> None:
    settings = Settings()
    inbox = of_settings(settings)
    hook = {"QueueArn": "arn:minio:sqs::unmask:webhook", "Events": [CREATED]}

    assert "Amazon posts to no webhook" in hearing.look(inbox, settings, db, Client("AmazonS3")).found
    assert hearing.look(inbox, settings, db, Client("MinIO", {"QueueConfigurations": [hook]})).well
    missing = hearing.look(inbox, settings, db, Client("MinIO", {}))
    assert (missing.well, missing.wiring, missing.found) == (False, True, "there is no notification for it")
    assert hearing.look(replace(inbox, source="none"), settings, db, Client("MinIO")).well


def test_the_other_ways_name_the_bucket_the_prefix_and_where_to_post() -> None:
    inbox = Inbox("press", "press-bucket", 'a "b" ${c}/')
    ways = wiring.ways(inbox, Settings(public_url="https://unmask.example.com", s3_endpoint="https://minio.example.com"))

    assert "mc event add store/press-bucket arn:minio:sqs::unmask:webhook --event put --prefix 'a \"b\" ${c}/'" in ways["MinIO"]
    assert "endpoint=https://unmask.example.com/events/minio" in ways["MinIO"]
    assert 'path_prefixes = ["/buckets/press-bucket/a \\"b\\" ${c}/"]' in ways["SeaweedFS"]
    assert 'filter_prefix = "a \\"b\\" $${c}/"' in ways["Terraform"]
    assert ways["Terraform"].count("{") == ways["Terraform"].count("}")
    assert "unmask inboxes edit press --source sqs --sqs-url $queue" in ways["AWS CLI"]
