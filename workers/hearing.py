"""Whether uploads into an inbox are really told of: what its store and its queue are set up to do, and what came of it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from botocore.exceptions import BotoCoreError, ClientError
from sqlalchemy import select

from pipeline.database import Database, JobRow
from pipeline.inboxes import Inbox
from pipeline.jobs import Queue
from pipeline.settings import Settings
from workers import consuming
from workers.wiring import UNREAD, Present, encoded, understood

RECENT = 20
"""So many of the newest uploads are looked at."""
ENOUGH = 3
"""If at least so many came, and all of them by the listing alone, nothing tells of them."""
WANTED = ["QueueArn", "Policy", "RedrivePolicy"]
MISSING = frozenset({"AWS.SimpleQueueService.NonExistentQueue", "QueueDoesNotExist"})
HOW = frozenset({"Put", "Post", "Copy", "CompleteMultipartUpload"})


@dataclass(frozen=True)
class Heard:
    """What was found. `wiring`: whether something is to be set up; `present`: what is, which that has to leave as it is."""

    well: bool
    found: str
    wiring: bool = False
    present: Present = UNREAD


def look(inbox: Inbox, settings: Settings, db: Database, s3: Any) -> Heard:
    """Look at one inbox. `s3`: a client of its store. Nothing is changed, and stores that only pretend are not asked.

    What S3 or SQS refuse is a finding too, so that one inbox hides no other.
    """
    if inbox.source == "none":
        return Heard(True, "found by the listing only, as it is set up")
    try:
        return _look(inbox, settings, db, s3, _maker(s3, inbox.bucket))
    except (BotoCoreError, ClientError) as error:
        return Heard(False, f"bucket {inbox.bucket} cannot be looked at: {str(error).rstrip('.')}")


def present(inbox: Inbox, settings: Settings, s3: Any) -> Present:
    """What the bucket and the queue of an inbox are set up to do, as far as it can be read. Raises nothing of S3 or SQS."""
    try:
        return _as_it_is(inbox, settings, s3, _maker(s3, inbox.bucket))
    except (BotoCoreError, ClientError):
        return UNREAD


def _look(inbox: Inbox, settings: Settings, db: Database, s3: Any, maker: str) -> Heard:
    if inbox.source == "sqs":
        return _queue(inbox, settings, s3, maker)
    if maker == "AmazonS3":
        found = "Amazon posts to no webhook: have it tell a queue, and make the source sqs"
        return Heard(False, found, True, _as_it_is(inbox, settings, s3, maker))
    if maker == "MinIO":
        notifications = _notifications(s3, inbox.bucket)
        told = [one for one in notifications.get("QueueConfigurations", ()) if one["QueueArn"].endswith(":webhook")]
        missing = uncovered(inbox, told, plain=True)
        return Heard(not missing, missing or "its notification is there", bool(missing), Present(notifications, {}))
    return _by_experience(inbox, db)


def _queue(inbox: Inbox, settings: Settings, s3: Any, maker: str) -> Heard:
    try:
        about = _attributes(inbox, settings)
    except (BotoCoreError, ClientError) as error:
        found = f"the queue {inbox.sqs_url} cannot be looked at: {str(error).rstrip('.')}"
        return Heard(False, found, True, _as_it_is(inbox, settings, s3, maker))
    if maker == "SeaweedFS":
        return Heard(False, "SeaweedFS writes to no such queue: have it post to the webhook, and make the source webhook", wiring=True)
    notifications = _notifications(s3, inbox.bucket)
    told = [one for one in notifications.get("QueueConfigurations", ()) if one["QueueArn"] == about["QueueArn"]]
    missing = uncovered(inbox, told)
    if missing and "EventBridgeConfiguration" in notifications:
        missing, way = "", "by EventBridge, whose rules are not looked at"
    elif missing and not uncovered(inbox, topics := notifications.get("TopicConfigurations", ())):
        missing, way = "", f"by the topic {topics[0]['TopicArn']}, whose subscriptions are not looked at"
    else:
        way = f"told to {about['QueueArn']}"
    if missing:
        found = f"bucket {inbox.bucket} does not tell the queue {about['QueueArn']} of uploads: {missing}"
        return Heard(False, found, True, Present(notifications, about))
    if "RedrivePolicy" not in about:
        found = "the queue has no dead-letter queue: a message that cannot be read comes again for days"
        return Heard(False, found, True, Present(notifications, about, told=True))
    return Heard(True, way)


def _as_it_is(inbox: Inbox, settings: Settings, s3: Any, maker: str) -> Present:
    """What is set up. A store that does not say so, or says so without meaning it, is not asked."""
    bucket: Mapping[str, Any] | None = None
    queue: Mapping[str, str] | None = None if inbox.sqs_url else {}
    if maker in ("AmazonS3", "MinIO") or (inbox.source == "sqs" and maker != "SeaweedFS"):
        with suppress(BotoCoreError, ClientError):
            bucket = _notifications(s3, inbox.bucket)
    if inbox.sqs_url:
        try:
            queue = _attributes(inbox, settings)
        except ClientError as error:
            queue = {} if error.response.get("Error", {}).get("Code") in MISSING else None
        except BotoCoreError:
            queue = None
    return Present(bucket, queue)


def _attributes(inbox: Inbox, settings: Settings) -> Mapping[str, str]:
    answer = consuming.client(settings).get_queue_attributes(QueueUrl=inbox.sqs_url, AttributeNames=WANTED)
    found: Mapping[str, str] = answer["Attributes"]
    return found


def uncovered(inbox: Inbox, told: Iterable[Mapping[str, Any]], *, plain: bool = False) -> str:
    """Which uploads a bucket's notifications leave out, in words; empty: none. `told`: those that go to the right place.

    `plain`: their rules have keys as they are, like MinIO's; otherwise encoded, like Amazon's.
    """
    some = list(told)
    if not some:
        return "there is no notification for it"
    written, read = (str, str) if plain else (encoded, understood)
    prefix = written(inbox.prefix)
    suffixes: set[str] = set()
    for one in some:
        how = {event.removeprefix("s3:ObjectCreated:") for event in one["Events"] if event.startswith("s3:ObjectCreated:")}
        rules = {rule["Name"].lower(): rule["Value"] for rule in one.get("Filter", {}).get("Key", {}).get("FilterRules", ())}
        if ("*" in how or how >= HOW) and prefix.startswith(read(rules.get("prefix", ""))):
            suffixes.add(rules.get("suffix", ""))
    if not suffixes:
        wanted = f" under {inbox.prefix}" if inbox.prefix else ""
        rule = f", and the prefix written as {prefix}" if prefix != inbox.prefix else ""
        return f"its notification leaves out some ways to create an object, or keys{wanted} (wanted: s3:ObjectCreated:*{rule})"
    enough = tuple(map(read, suffixes))
    if "" in suffixes or (inbox.suffixes and all(written(wanted).endswith(enough) for wanted in inbox.suffixes)):
        return ""
    return f"it tells only of keys that end in {' or '.join(sorted(suffixes))}"


def _by_experience(inbox: Inbox, db: Database) -> Heard:
    recent = (
        select(JobRow.origin)
        .where(JobRow.inbox == inbox.name, JobRow.queue != Queue.BACKFILL.value, JobRow.origin.not_in(["submit", "predict"]))
        .order_by(JobRow.created_at.desc(), JobRow.id.desc())
        .limit(RECENT)
    )
    with db.read() as session:
        origins = Counter(session.scalars(recent))
    came = sum(origins.values())
    if came >= ENOUGH and origins["sweep"] == came:
        return Heard(
            False, f"the last {came} uploads were found by the listing only: no notification of {inbox.bucket} arrives", wiring=True
        )
    return Heard(True, f"{came - origins['sweep']} of the last {came} uploads were told of at once" if came else "nothing was uploaded yet")


def _maker(s3: Any, bucket: str) -> str:
    """Who made the store, as its answers say: `AmazonS3`, `MinIO`, `SeaweedFS`; or something else."""
    headers = s3.head_bucket(Bucket=bucket)["ResponseMetadata"]["HTTPHeaders"]
    return str(headers.get("server", "")).split(" ")[0].split("/")[0]


def _notifications(s3: Any, bucket: str) -> Mapping[str, Any]:
    answer: dict[str, Any] = s3.get_bucket_notification_configuration(Bucket=bucket)
    answer.pop("ResponseMetadata", None)
    return answer
