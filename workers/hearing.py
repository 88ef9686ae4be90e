"""Whether uploads into an inbox are really told of: what its store and its queue are set up to do, and what came of it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from botocore.exceptions import BotoCoreError, ClientError
from sqlalchemy import select

from pipeline.database import Database, JobRow
from pipeline.inboxes import Inbox
from pipeline.jobs import Queue
from pipeline.settings import Settings
from workers import consuming

RECENT = 20
"""So many of the newest uploads are looked at."""
ENOUGH = 3
"""If at least so many came, and all of them by the listing alone, nothing tells of them."""
HOW = frozenset({"Put", "Post", "Copy", "CompleteMultipartUpload"})


@dataclass(frozen=True)
class Heard:
    """What was found. `wiring`: whether it is the bucket's notification that is missing; `present`: what the bucket has."""

    well: bool
    found: str
    wiring: bool = False
    present: Mapping[str, Any] | None = None


def look(inbox: Inbox, settings: Settings, db: Database, s3: Any) -> Heard:
    """Look at one inbox. `s3`: a client of its store. Nothing is changed, and stores that only pretend are not asked."""
    if inbox.source == "none":
        return Heard(True, "found by the listing only, as it is set up")
    maker = _maker(s3, inbox.bucket)
    if inbox.source == "sqs":
        return _queue(inbox, settings, s3, maker)
    if maker == "AmazonS3":
        return Heard(False, "Amazon posts to no webhook: have it tell a queue, and make the source sqs", wiring=True)
    if maker == "MinIO":
        present = _present(s3, inbox.bucket)
        told = [one for one in present.get("QueueConfigurations", ()) if one["QueueArn"].endswith(":webhook")]
        missing = uncovered(inbox, told)
        return Heard(not missing, missing or "its notification is there", wiring=bool(missing), present=present)
    return _by_experience(inbox, db)


def _queue(inbox: Inbox, settings: Settings, s3: Any, maker: str) -> Heard:
    try:
        wanted = ["QueueArn", "RedrivePolicy"]
        about = consuming.client(settings).get_queue_attributes(QueueUrl=inbox.sqs_url, AttributeNames=wanted)["Attributes"]
    except (BotoCoreError, ClientError) as error:
        return Heard(False, f"the queue {inbox.sqs_url} cannot be looked at: {str(error).rstrip('.')}", wiring=True)
    if maker == "SeaweedFS":
        return Heard(False, "SeaweedFS writes to no such queue: have it post to the webhook, and make the source webhook", wiring=True)
    present = _present(s3, inbox.bucket)
    told = [one for one in present.get("QueueConfigurations", ()) if one["QueueArn"] == about["QueueArn"]]
    missing = uncovered(inbox, told)
    if missing and "EventBridgeConfiguration" in present:
        missing, way = "", "by EventBridge, whose rules are not looked at"
    elif missing and not uncovered(inbox, topics := present.get("TopicConfigurations", ())):
        missing, way = "", f"by the topic {topics[0]['TopicArn']}, whose subscriptions are not looked at"
    else:
        way = f"told to {about['QueueArn']}"
    if missing:
        return Heard(False, f"bucket {inbox.bucket} does not tell the queue {about['QueueArn']} of uploads: {missing}", True, present)
    if "RedrivePolicy" not in about:
        return Heard(False, "the queue has no dead-letter queue: a message that cannot be read comes again for days", True, present)
    return Heard(True, way)


def uncovered(inbox: Inbox, told: Iterable[Mapping[str, Any]]) -> str:
    """Which uploads a bucket's notifications leave out, in words; empty: none. `told`: those that go to the right place."""
    some = list(told)
    if not some:
        return "there is no notification for it"
    suffixes: set[str] = set()
    for one in some:
        how = {event.removeprefix("s3:ObjectCreated:") for event in one["Events"] if event.startswith("s3:ObjectCreated:")}
        rules = {rule["Name"].lower(): rule["Value"] for rule in one.get("Filter", {}).get("Key", {}).get("FilterRules", ())}
        if ("*" in how or how >= HOW) and inbox.prefix.startswith(rules.get("prefix", "")):
            suffixes.add(rules.get("suffix", ""))
    if not suffixes:
        wanted = f" under {inbox.prefix}" if inbox.prefix else ""
        return f"its notification leaves out some ways to create an object, or keys{wanted} (wanted: s3:ObjectCreated:*)"
    if "" in suffixes or (inbox.suffixes and all(wanted.endswith(tuple(suffixes)) for wanted in inbox.suffixes)):
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


def _present(s3: Any, bucket: str) -> Mapping[str, Any]:
    answer: dict[str, Any] = s3.get_bucket_notification_configuration(Bucket=bucket)
    answer.pop("ResponseMetadata", None)
    return answer
