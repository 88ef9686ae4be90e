"""How an object store is made to tell of uploads into an inbox: the commands, for each kind of store."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote_plus, unquote_plus

from pipeline.inboxes import Inbox
from pipeline.settings import Settings

RETENTION_S = 1_209_600
"""How long SQS keeps what nobody reads: 14 days, the longest it can."""
VISIBILITY_S = 60
"""How long a message that was received is kept from other consumers."""
RECEIVES = 5
"""After so many receives without being deleted a message goes to the dead-letter queue."""
ANY_CREATED = "s3:ObjectCreated:"
CREATED = f"{ANY_CREATED}*"
ARN = {"TopicConfigurations": "TopicArn", "QueueConfigurations": "QueueArn", "LambdaFunctionConfigurations": "LambdaFunctionArn"}
"""The kinds of a bucket's notifications, and where each says whom it tells."""
ENCODED = re.compile(r"(?:[0-9A-Za-z/+!_.*'()-]|%[0-9A-Fa-f]{2})*")
"""What a rule of Amazon's filters is made of: what its user guide calls safe characters, a plus for each space, the rest by percent."""


@dataclass(frozen=True)
class Present:
    """What is set up already, and has to stay.

    `bucket`: the bucket's notification configuration; None: it could not be read. `queue`: the queue's attributes (`QueueArn`,
    and `Policy` and `RedrivePolicy` where it has them); empty: there is no queue yet; None: it could not be read. `told`:
    whether uploads reach the queue, so that all it lacks is a dead-letter queue.
    """

    bucket: Mapping[str, Any] | None = None
    queue: Mapping[str, str] | None = None
    told: bool = False


UNREAD = Present()


def ways(inbox: Inbox, settings: Settings, present: Present = UNREAD) -> dict[str, str]:
    """The commands by the kind of store they are for: `AWS CLI`, `Terraform`, `MinIO`, `SeaweedFS`.

    `present`: what there is. Amazon replaces a bucket's notifications and a queue's policy as a whole, so what it has is
    kept within the new ones; where it could not be read, a comment in the commands says so. Where only the dead-letter
    queue is missing, nothing but that is made, and only the first two kinds are there.
    """
    if present.told:
        return {"AWS CLI": _aws(inbox, present), "Terraform": _terraform_dead(inbox)}
    return {
        "AWS CLI": _aws(inbox, present),
        "Terraform": _terraform(inbox),
        "MinIO": _minio(inbox, settings),
        "SeaweedFS": _seaweedfs(inbox, settings),
    }


def queue_name(inbox: Inbox) -> str:
    """The name of its queue: as its URL has it, else one made of the inbox's name."""
    return inbox.sqs_url.rpartition("/")[2] or f"unmask-{inbox.name}"


def encoded(part: str) -> str:
    """The beginning or end of a key as Amazon wants it in the rule of a filter; other stores take it as it is."""
    return quote_plus(part, safe="/").replace("~", "%7E")  # Python leaves the tilde alone, which is none of the safe ones


def understood(rule: str) -> str:
    """A rule that somebody wrote, as `encoded` writes it, to compare it with what that gives.

    One that is not encoded stays as it is: Amazon takes it, but no key that has its space or special character matches it.
    """
    if ENCODED.fullmatch(rule):
        with suppress(UnicodeDecodeError):  # it may end amidst a character
            return encoded(unquote_plus(rule, errors="strict"))
    return rule


def policy(queue_arn: str, bucket: str) -> dict[str, Any]:
    """What lets S3 write to the queue, for this one bucket."""
    return {
        "Version": "2012-10-17",
        "Statement": [
            {
                "Effect": "Allow",
                "Principal": {"Service": "s3.amazonaws.com"},
                "Action": "sqs:SendMessage",
                "Resource": queue_arn,
                "Condition": {"ArnEquals": {"aws:SourceArn": f"arn:aws:s3:::{bucket}"}},
            }
        ],
    }


def _aws(inbox: Inbox, present: Present) -> str:
    name, there = queue_name(inbox), present.queue or {}
    arn = there.get("QueueArn", "@ARN@")
    arn_of = "aws sqs get-queue-attributes --attribute-names QueueArn --query Attributes.QueueArn --output text --queue-url"
    lines, attributes = [], dict[str, str]()
    if "RedrivePolicy" not in there:
        attributes["RedrivePolicy"] = json.dumps({"deadLetterTargetArn": "@DEAD@", "maxReceiveCount": str(RECEIVES)})
        lines += [
            f"dead=$(aws sqs create-queue --queue-name {shlex.quote(name + '-dead')} --query QueueUrl --output text)",
            f'aws sqs set-queue-attributes --queue-url "$dead" --attributes MessageRetentionPeriod={RETENTION_S}',
            f'dead_arn=$({arn_of} "$dead")',
        ]
    if there:
        lines.append(f"queue={shlex.quote(inbox.sqs_url)}")
    else:
        attributes |= {"VisibilityTimeout": str(VISIBILITY_S), "ReceiveMessageWaitTimeSeconds": "20"}
        attributes |= {"MessageRetentionPeriod": str(RETENTION_S)}
        lines.append(f"queue=$(aws sqs create-queue --queue-name {shlex.quote(name)} --query QueueUrl --output text)")
        lines.append(f'queue_arn=$({arn_of} "$queue")')
    if not present.told:
        wanted = _merged(there.get("Policy", ""), policy(arn, inbox.bucket))
        if wanted is not None:
            attributes["Policy"] = json.dumps(wanted)
    if present.queue is None:
        lines.append("# WARNING: the queue's policy could not be read. This replaces it: add the statements it has first.")
    if attributes:
        lines.append(f'aws sqs set-queue-attributes --queue-url "$queue" --attributes {_shell(attributes)}')
    return "\n".join(lines if present.told else [*lines, *_told(inbox, present, arn)])


def _told(inbox: Inbox, present: Present, arn: str) -> list[str]:
    """The lines that make the bucket tell the queue, and the product read it."""
    whole, clashing = _notifications(inbox, arn, present.bucket or {})
    lines = []
    if present.bucket is None:
        lines.append("# WARNING: the bucket's notifications could not be read. This replaces all of them: add those there are first.")
    for other in clashing:
        lines.append(f"# WARNING: Amazon refuses this while {other} is told of the same uploads: have a topic tell both.")
    lines.append(
        f"aws s3api put-bucket-notification-configuration --bucket {shlex.quote(inbox.bucket)} --notification-configuration {_shell(whole)}"
    )
    edit = f"unmask inboxes edit {inbox.name} --source sqs --sqs-url $queue" if inbox.name != "default" else "UNMASK_SQS_URL=$queue"
    return [*lines, f'echo "{edit}"']


def _merged(present: str, ours: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """A queue's policy (JSON, or empty) with our statement added; None: it is there."""
    if not present:
        return ours
    whole, [statement] = json.loads(present), ours["Statement"]
    found = whole.get("Statement", [])
    statements = found if isinstance(found, list) else [found]
    if any({name: value for name, value in one.items() if name != "Sid"} == statement for one in statements):
        return None
    return {**whole, "Statement": [*statements, statement]}


def _notifications(inbox: Inbox, arn: str, present: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """A bucket's notifications with ours added, and whom it tells of the same uploads besides, which Amazon refuses.

    Those that went to our queue before and overlap with ours are part of it from now on: it is as wide as they were.
    """
    mine, queue = f"unmask-{inbox.name}", queue_name(inbox)
    others = [one for one in present.get("QueueConfigurations", ()) if one.get("Id") != mine]
    ours = [one for one in others if one["QueueArn"] == arn or (arn == "@ARN@" and one["QueueArn"].endswith(f":{queue}"))]
    wanted = encoded(inbox.prefix)
    prefix = min([wanted, *(_prefix(one) for one in ours if _overlaps(one, wanted))], key=len)
    kept = []
    for one in others:
        left = one["Events"]
        if one in ours and _overlaps(one, prefix):
            left = [event for event in left if not event.startswith(ANY_CREATED)]
        if left:
            kept.append({**one, "Events": left})
    told: dict[str, Any] = {"Id": mine, "QueueArn": arn, "Events": [CREATED]}
    if prefix:
        told["Filter"] = {"Key": {"FilterRules": [{"Name": "prefix", "Value": prefix}]}}
    whole = {kind: present[kind] for kind in (*ARN, "EventBridgeConfiguration") if kind in present} | {"QueueConfigurations": kept}
    clashing = [one[name] for kind, name in ARN.items() for one in whole.get(kind, ()) if _overlaps(one, prefix)]
    return whole | {"QueueConfigurations": [*kept, told]}, clashing


def _prefix(notification: Mapping[str, Any]) -> str:
    """The beginning of the keys it tells of, encoded."""
    rules = notification.get("Filter", {}).get("Key", {}).get("FilterRules", ())
    return next((understood(str(rule["Value"])) for rule in rules if rule["Name"].lower() == "prefix"), "")


def _overlaps(notification: Mapping[str, Any], prefix: str) -> bool:
    """Whether it tells of uploads of some keys that begin with `prefix`, which is encoded."""
    theirs = _prefix(notification)
    created = any(event.startswith(ANY_CREATED) for event in notification["Events"])
    return created and (theirs.startswith(prefix) or prefix.startswith(theirs))


def _shell(value: Mapping[str, Any]) -> str:
    """JSON as one word of a shell, with the addresses that the script finds out put in."""
    quoted = shlex.quote(json.dumps(value))
    return quoted.replace("@DEAD@", "'\"$dead_arn\"'").replace("@ARN@", "'\"$queue_arn\"'")


def _terraform(inbox: Inbox) -> str:
    name, label = queue_name(inbox), re.sub(r"\W", "_", f"unmask_{inbox.name}")
    document = _hcl(policy("@ARN@", inbox.bucket)).replace('"@ARN@"', f"aws_sqs_queue.{label}.arn")
    prefix = f"\n    filter_prefix = {_hcl(encoded(inbox.prefix))}" if inbox.prefix else ""
    return f"""resource "aws_sqs_queue" "{label}_dead" {{
  name                      = {_hcl(name + "-dead")}
  message_retention_seconds = {RETENTION_S}
}}

resource "aws_sqs_queue" "{label}" {{
  name                       = {_hcl(name)}
  visibility_timeout_seconds = {VISIBILITY_S}
  receive_wait_time_seconds  = 20
  message_retention_seconds  = {RETENTION_S}
  redrive_policy             = jsonencode({{ deadLetterTargetArn = aws_sqs_queue.{label}_dead.arn, maxReceiveCount = {RECEIVES} }})
}}

resource "aws_sqs_queue_policy" "{label}" {{
  queue_url = aws_sqs_queue.{label}.id
  policy    = jsonencode({document})
}}

# One bucket has one such resource: add the queue block to yours if there is one already.
resource "aws_s3_bucket_notification" "{label}" {{
  bucket = {_hcl(inbox.bucket)}
  queue {{
    queue_arn = aws_sqs_queue.{label}.arn
    events    = [{_hcl(CREATED)}]{prefix}
  }}
  depends_on = [aws_sqs_queue_policy.{label}]
}}"""


def _terraform_dead(inbox: Inbox) -> str:
    name, label = queue_name(inbox), re.sub(r"\W", "_", f"unmask_{inbox.name}")
    return f"""resource "aws_sqs_queue" "{label}_dead" {{
  name                      = {_hcl(name + "-dead")}
  message_retention_seconds = {RETENTION_S}
}}

# Where the queue is a resource of yours, make this its redrive_policy instead.
resource "aws_sqs_queue_redrive_policy" "{label}" {{
  queue_url      = {_hcl(inbox.sqs_url)}
  redrive_policy = jsonencode({{ deadLetterTargetArn = aws_sqs_queue.{label}_dead.arn, maxReceiveCount = {RECEIVES} }})
}}"""


def _hcl(value: Any) -> str:
    """A JSON value as Terraform reads it: its own templates inside of strings are escaped."""
    return json.dumps(value).replace("${", "$${").replace("%{", "%%{")


def _minio(inbox: Inbox, settings: Settings) -> str:
    prefix = f" --prefix {shlex.quote(inbox.prefix)}" if inbox.prefix else ""
    endpoint = shlex.quote(f"{settings.url}/events/minio")
    lines = [
        f'mc alias set store {shlex.quote(settings.s3_endpoint or "https://minio.example.com")} "$ACCESS_KEY" "$SECRET_KEY"',
        f'mc admin config set store notify_webhook:unmask endpoint={endpoint} auth_token="$UNMASK_EVENTS_TOKEN" '
        "queue_dir=/var/lib/minio/unmask-events queue_limit=100000",
        "mc admin service restart store",
        f"mc event add store/{shlex.quote(inbox.bucket)} arn:minio:sqs::unmask:webhook --event put{prefix}",
    ]
    return "\n".join(lines)


def _seaweedfs(inbox: Inbox, settings: Settings) -> str:
    lines = {
        "enabled": True,
        "endpoint": f"{settings.url}/events/seaweedfs",
        "bearer_token": "the value of UNMASK_EVENTS_TOKEN",
        "path_prefixes": [f"/buckets/{inbox.bucket}/{inbox.prefix}"],
    }
    body = "\n".join(f"{name} = {json.dumps(value)}" for name, value in lines.items())
    about = "# notification.toml of the filer: one for all inboxes, with each one's prefix. Start the filer anew afterwards."
    return f"{about}\n[notification.webhook]\n{body}"
