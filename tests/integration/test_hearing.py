"""Whether uploads are told of: what the doctor finds missing, and that the commands it prints put it right."""

from __future__ import annotations

import json
import shlex
import subprocess
from dataclasses import replace
from typing import Any

import pytest

from pipeline import inboxkeeping, ledger
from pipeline.database import Database
from pipeline.inboxes import Inbox, of_settings
from pipeline.jobs import Queue, Upload
from pipeline.settings import Settings
from tests.fixtures.web_services import Amazon
from workers import doctor, hearing, wiring
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


@pytest.mark.parametrize(
    ("prefix", "rule", "covered"),
    [
        ("press photos/", "press+photos/", True),
        ("press photos/", "press%20photos/", True),
        ("press photos/2026/", "press+photos/", True),
        ("press photos/", "press photos/", False),  # matches nothing
        ("day=1/", "day%3D1/", True),
        ("day=1/", "day%3d1/", True),
        ("day=1/", "day=1/", False),
        ("a+b/", "a%2Bb/", True),
        ("a+b/", "a+b/", False),  # the keys of "a b/"
        ("100%/", "100%/", False),
        ("~me/", "%7Eme/", True),
        ("é/", "%C3%A9/", True),
        ("é/", "%C3", True),  # half of it, which is a beginning all the same
        ("it's_(1)-a.b!/", "it's_(1)-a.b!/", True),  # nothing in it has to be encoded
        ("it's_(1)-a.b!/", "it%27s_%281%29-a.b%21/", True),
    ],
)
def test_a_rule_of_amazon_is_read_as_amazon_reads_it(prefix: str, rule: str, covered: bool) -> None:
    inbox, told = Inbox("press", "press-bucket", prefix), [notification(CREATED, prefix=rule)]
    found = uncovered(inbox, told)
    assert bool(found) != covered
    if not covered:
        assert f"under {prefix} (wanted: {CREATED}, and the prefix written as {wiring.encoded(prefix)})" in found
    assert uncovered(inbox, [notification(CREATED, prefix=wiring.encoded(prefix))]) == ""
    assert uncovered(inbox, [notification(CREATED, prefix=prefix)], plain=True) == ""


def test_a_rule_for_endings_is_read_as_amazon_reads_it() -> None:
    inbox = Inbox("press", "press-bucket", suffixes=(".jpg~",))
    assert uncovered(inbox, [notification(CREATED, suffix=".jpg%7E")]) == ""
    assert "only of keys that end in .jpg~" in uncovered(inbox, [notification(CREATED, suffix=".jpg~")])
    assert uncovered(inbox, [notification(CREATED, suffix=".jpg~")], plain=True) == ""


def carried_out(ministack: Amazon, script: str) -> str:
    """What a script for Amazon's command line prints; it must come through."""
    done = subprocess.run(
        ["sh", "-euc", ELSEWHERE + script], env=ministack.environment(), capture_output=True, text=True, check=False, timeout=240
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def configuration(ministack: Amazon, bucket: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = ministack.s3.get_bucket_notification_configuration(Bucket=bucket).get("QueueConfigurations", [])
    return found


def attributes(ministack: Amazon, queue: str) -> dict[str, str]:
    found: dict[str, str] = ministack.sqs.get_queue_attributes(QueueUrl=queue, AttributeNames=["All"])["Attributes"]
    return found


@pytest.mark.parametrize("source", ["sqs", "webhook"])
def test_what_the_doctor_prints_for_the_aws_command_line_makes_uploads_heard(
    ministack: Amazon, db: Database, db_url: str, monkeypatch: pytest.MonkeyPatch, source: str
) -> None:
    bucket, other = ministack.bucket(), ministack.queue()
    theirs = {"QueueArn": ministack.arn(other), "Events": ["s3:ObjectRemoved:*"]}  # of somebody else, which must stay
    ministack.s3.put_bucket_notification_configuration(Bucket=bucket, NotificationConfiguration={"QueueConfigurations": [theirs]})
    settings = Settings(inbox_bucket=bucket, inbox_prefix="it's ${in}/", database_url=db_url, **ministack.settings)
    inbox = replace(of_settings(settings), name=f"n{bucket[-6:]}", source=source)
    if source == "sqs":
        inbox = replace(inbox, sqs_url=f"{ministack.url}/000000000000/unmask-{bucket}")
    else:
        monkeypatch.setattr(hearing, "_maker", lambda s3, bucket: "AmazonS3")
    before = hearing.look(inbox, settings, db, ministack.s3)
    assert (before.well, before.wiring) == (False, True)
    assert ("cannot be looked at" if source == "sqs" else "posts to no webhook") in before.found
    assert hearing.present(inbox, settings, ministack.s3) == before.present

    told = carried_out(ministack, wiring.ways(inbox, settings, before.present)["AWS CLI"])

    url = inbox.sqs_url or f"{ministack.url}/000000000000/unmask-{inbox.name}"
    assert told == f"unmask inboxes edit {inbox.name} --source sqs --sqs-url {url}"
    inbox = replace(inbox, source="sqs", sqs_url=url)
    after = hearing.look(inbox, settings, db, ministack.s3)
    assert (after.well, after.found.startswith("told to arn:aws:sqs:")) == (True, True), after
    assert {one["QueueArn"] for one in configuration(ministack, bucket)} == {ministack.arn(other), ministack.arn(url)}
    dead = attributes(ministack, f"{url}-dead")
    assert dead["MessageRetentionPeriod"] == attributes(ministack, url)["MessageRetentionPeriod"] == str(wiring.RETENTION_S)
    # Amazon would tell of "it's ${in}/a.jpg"; MiniStack takes rules to be keys as they are.
    ministack.s3.put_object(Bucket=bucket, Key=f"{wiring.encoded(inbox.prefix)}a.jpg", Body=b"x")
    bodies = []
    while len(bodies) < 2:  # the test event comes first, and may come alone
        answer = ministack.sqs.receive_message(QueueUrl=url, MaxNumberOfMessages=10, WaitTimeSeconds=5)
        bodies += [json.loads(message["Body"]) for message in answer["Messages"]]
    assert any(body.get("Records", [{}])[0].get("s3", {}).get("bucket", {}).get("name") == bucket for body in bodies)


def test_two_inboxes_on_one_queue_are_both_heard(ministack: Amazon, db: Database, db_url: str) -> None:
    settings = Settings(database_url=db_url, **ministack.settings)
    buckets = [ministack.bucket(), ministack.bucket()]
    url = f"{ministack.url}/000000000000/unmask-{buckets[0]}"
    both = [Inbox(name, bucket, source="sqs", sqs_url=url) for name, bucket in zip(("one", "two"), buckets, strict=True)]

    for inbox in both:
        before = hearing.look(inbox, settings, db, ministack.s3)
        carried_out(ministack, wiring.ways(inbox, settings, before.present)["AWS CLI"])

    assert [hearing.look(inbox, settings, db, ministack.s3).well for inbox in both] == [True, True]
    statements = json.loads(attributes(ministack, url)["Policy"])["Statement"]
    let_in = [one["Condition"]["ArnEquals"]["aws:SourceArn"] for one in statements]
    assert let_in == [f"arn:aws:s3:::{bucket}" for bucket in buckets]


def test_a_queue_that_only_lacks_a_dead_letter_queue_gets_nothing_else(ministack: Amazon, db: Database, db_url: str) -> None:
    bucket, queue = ministack.bucket(), ministack.queue()
    ministack.tell_by_topic(bucket, queue)
    settings = Settings(inbox_bucket=bucket, sqs_url=queue, database_url=db_url, **ministack.settings)
    inbox, policy = of_settings(settings), attributes(ministack, queue)["Policy"]
    topic = ministack.s3.get_bucket_notification_configuration(Bucket=bucket)["TopicConfigurations"]
    present = wiring.Present({"TopicConfigurations": topic}, attributes(ministack, queue), told=True)
    found = hearing.look(inbox, settings, db, ministack.s3)
    assert "no dead-letter queue" in found.found
    assert found.present.told
    ways = wiring.ways(inbox, settings, found.present)

    assert ways == wiring.ways(inbox, settings, present)
    assert ways.keys() == {"AWS CLI", "Terraform"}
    assert "aws_s3_bucket_notification" not in ways["Terraform"]
    carried_out(ministack, ways["AWS CLI"])

    assert hearing.look(inbox, settings, db, ministack.s3).well
    assert attributes(ministack, queue)["Policy"] == policy, "the topic may still write"
    assert ministack.s3.get_bucket_notification_configuration(Bucket=bucket)["TopicConfigurations"] == topic


def test_an_incomplete_notification_is_replaced_and_not_joined_by_one_that_overlaps(ministack: Amazon, db: Database, db_url: str) -> None:
    bucket, queue = ministack.bucket(), ministack.queue()
    told = {"QueueArn": ministack.arn(queue), **notification(CREATED, suffix=".jpg")}
    ministack.s3.put_bucket_notification_configuration(Bucket=bucket, NotificationConfiguration={"QueueConfigurations": [told]})
    settings = Settings(inbox_bucket=bucket, sqs_url=queue, database_url=db_url, **ministack.settings)
    inbox = of_settings(settings)
    before = hearing.look(inbox, settings, db, ministack.s3)
    assert "only of keys that end in .jpg" in before.found

    carried_out(ministack, wiring.ways(inbox, settings, before.present)["AWS CLI"])

    [one] = configuration(ministack, bucket)
    assert (one["QueueArn"], one["Events"], one.get("Filter")) == (ministack.arn(queue), [CREATED], None)
    assert hearing.look(inbox, settings, db, ministack.s3).well


QUEUE = {"QueueUrl": "https://q/1/ours", "QueueArn": "arn:aws:sqs:r:1:ours", "RedrivePolicy": "{}"}


def printed(inbox: Inbox, *present: dict[str, Any], **kinds: Any) -> tuple[dict[str, Any], str]:
    """The configuration in the commands for a bucket that has these notifications of queues, and the commands."""
    script = wiring.ways(inbox, Settings(), wiring.Present({"QueueConfigurations": list(present), **kinds}, QUEUE))["AWS CLI"]
    line = next(line for line in script.splitlines() if "put-bucket-notification-configuration" in line)
    return json.loads(shlex.split(line)[-1]), script


def test_a_notification_that_served_others_as_well_stays_as_wide_as_it_was() -> None:
    inbox = Inbox("press", "press-bucket", "in/press/", source="sqs", sqs_url="https://q/1/ours")
    ours, theirs = {"QueueArn": QUEUE["QueueArn"]}, {"QueueArn": "arn:aws:sqs:r:1:theirs"}
    wide = {**ours, **notification(CREATED, "s3:ObjectRemoved:*", prefix="in/", suffix=".jpg")}
    deep = {**ours, **notification(CREATED, prefix="in/deep/")}
    apart = {**ours, **notification(CREATED, prefix="out/")}
    foreign = {**theirs, **notification("s3:ObjectRemoved:*")}

    whole, script = printed(inbox, wide, deep, apart, foreign, EventBridgeConfiguration={})

    assert "WARNING" not in script
    assert "set-queue-attributes" in script, "its policy does not let this bucket in yet"
    assert "RedrivePolicy" not in script
    assert whole["EventBridgeConfiguration"] == {}
    rest = {**wide, "Events": ["s3:ObjectRemoved:*"]}
    added = {"Id": "unmask-press", **ours, "Events": [CREATED], "Filter": {"Key": {"FilterRules": [{"Name": "prefix", "Value": "in/"}]}}}
    assert whole["QueueConfigurations"] == [rest, apart, foreign, added]


def test_a_prefix_is_written_as_amazon_wants_it_and_what_is_there_is_read_so() -> None:
    inbox = Inbox("press", "press-bucket", "press photos/day=1/", source="sqs", sqs_url="https://q/1/ours")
    ours = {"QueueArn": QUEUE["QueueArn"]}
    function = {"LambdaFunctionArn": "arn:aws:lambda:r:1:function:f"}

    def rules(one: dict[str, Any]) -> list[dict[str, str]]:
        found: list[dict[str, str]] = one["Filter"]["Key"]["FilterRules"]
        return found

    alone, _ = printed(inbox)
    [added] = alone["QueueConfigurations"]
    assert rules(added) == [{"Name": "prefix", "Value": "press+photos/day%3D1/"}]

    raw = {**ours, **notification(CREATED, prefix="press photos/")}  # tells of nothing, so there is nothing to keep as wide
    wide = {**ours, **notification(CREATED, prefix="press%20photos/")}
    beside, _ = printed(inbox, raw)
    assert beside["QueueConfigurations"] == [raw, added]
    [widened] = printed(inbox, wide)[0]["QueueConfigurations"]
    assert rules(widened) == [{"Name": "prefix", "Value": "press+photos/"}]

    same, other = ({**function, **notification(CREATED, prefix=prefix)} for prefix in ("press+photos/day%3d1/a/", "press photos/day=1/a/"))
    assert "Amazon refuses this while" in printed(inbox, LambdaFunctionConfigurations=[same])[1]
    assert "Amazon refuses this while" not in printed(inbox, LambdaFunctionConfigurations=[other])[1]
    assert "Amazon refuses this while" in printed(replace(inbox, prefix=""), LambdaFunctionConfigurations=[other])[1]


def test_whoever_is_told_of_the_same_uploads_already_is_named() -> None:
    inbox = Inbox("press", "press-bucket", source="sqs", sqs_url="https://q/1/ours")
    function = {"LambdaFunctionArn": "arn:aws:lambda:r:1:function:f", **notification("s3:ObjectCreated:Put", suffix=".png")}

    whole, script = printed(inbox, LambdaFunctionConfigurations=[function])

    assert whole["LambdaFunctionConfigurations"] == [function]
    assert "# WARNING: Amazon refuses this while arn:aws:lambda:r:1:function:f is told of the same uploads" in script


def test_what_could_not_be_read_is_warned_of_and_what_is_not_there_is_not() -> None:
    inbox = Inbox("press", "press-bucket", source="sqs", sqs_url="https://q/1/ours")
    assert wiring.ways(inbox, Settings())["AWS CLI"].count("# WARNING") == 2
    assert wiring.ways(inbox, Settings(), wiring.Present({}, {}))["AWS CLI"].count("# WARNING") == 0


@pytest.mark.parametrize("listed", [True, False])
def test_a_policy_keeps_its_statements_and_gets_ours_once(listed: bool) -> None:
    inbox = Inbox("press", "press-bucket", source="sqs", sqs_url="https://q/1/ours")
    topic = {"Sid": "topic", "Effect": "Allow", "Principal": {"Service": "sns.amazonaws.com"}, "Action": "sqs:SendMessage"}

    def policy(*statements: dict[str, Any]) -> dict[str, str]:
        one = statements[0] if len(statements) == 1 and not listed else list(statements)
        return {**QUEUE, "Policy": json.dumps({"Version": "2012-10-17", "Id": "mine", "Statement": one})}

    [ours] = wiring.policy(QUEUE["QueueArn"], "press-bucket")["Statement"]
    script = wiring.ways(inbox, Settings(), wiring.Present({}, policy(topic)))["AWS CLI"]
    line = next(line for line in script.splitlines() if "set-queue-attributes" in line)
    made = json.loads(json.loads(shlex.split(line)[-1])["Policy"])
    assert made == {"Version": "2012-10-17", "Id": "mine", "Statement": [topic, ours]}
    again = wiring.ways(inbox, Settings(), wiring.Present({}, policy(topic, {**ours, "Sid": "s3"})))["AWS CLI"]
    assert "set-queue-attributes" not in again


def test_an_inbox_that_cannot_be_looked_at_hides_no_other(ministack: Amazon, db: Database, db_url: str) -> None:
    bucket, queue = ministack.bucket(), ministack.queue()
    settings = Settings(inbox_bucket="no-such-bucket-at-all", sqs_url=queue, database_url=db_url, **ministack.settings)
    inboxkeeping.add(db, settings, Inbox("press", bucket, source="sqs", sqs_url=queue), by="test")

    finding = doctor.check("upload events", doctor.Patient(settings))

    assert not finding.well
    assert "default: bucket no-such-bucket-at-all cannot be looked at: " in finding.found
    assert f"press: bucket {bucket} does not tell the queue" in finding.found
    assert "Inbox default: bucket no-such-bucket-at-all cannot be looked at" in finding.remedy
    assert f"aws s3api put-bucket-notification-configuration --bucket {bucket} " in finding.remedy


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

    present = {"QueueConfigurations": [{"QueueArn": "arn:aws:sqs:r:1:theirs", "Events": ["s3:ObjectRemoved:*"]}]}
    amazon = hearing.look(inbox, settings, db, Client("AmazonS3", present))
    assert "Amazon posts to no webhook" in amazon.found
    assert amazon.present == wiring.Present(present, {})
    assert hearing.look(inbox, settings, db, Client("MinIO", {"QueueConfigurations": [hook]})).well
    spaced, rules = replace(inbox, prefix="press photos/"), notification(CREATED, prefix="press photos/")
    assert hearing.look(spaced, settings, db, Client("MinIO", {"QueueConfigurations": [hook | rules]})).well, "MinIO takes keys as they are"
    missing = hearing.look(inbox, settings, db, Client("MinIO", {}))
    assert (missing.well, missing.wiring, missing.found) == (False, True, "there is no notification for it")
    assert hearing.look(replace(inbox, source="none"), settings, db, Client("MinIO")).well


def test_the_other_ways_name_the_bucket_the_prefix_and_where_to_post() -> None:
    inbox = Inbox("press", "press-bucket", 'a "b" ${c}/')
    ways = wiring.ways(inbox, Settings(public_url="https://unmask.example.com", s3_endpoint="https://minio.example.com"))

    assert "mc event add store/press-bucket arn:minio:sqs::unmask:webhook --event put --prefix 'a \"b\" ${c}/'" in ways["MinIO"]
    assert "endpoint=https://unmask.example.com/events/minio" in ways["MinIO"]
    assert 'path_prefixes = ["/buckets/press-bucket/a \\"b\\" ${c}/"]' in ways["SeaweedFS"]
    assert 'filter_prefix = "a+%22b%22+%24%7Bc%7D/"' in ways["Terraform"]
    assert ways["Terraform"].count("{") == ways["Terraform"].count("}")
    assert "unmask inboxes edit press --source sqs --sqs-url $queue" in ways["AWS CLI"]
