"""How an object store is made to tell of uploads into an inbox: the commands, for each kind of store."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Mapping
from typing import Any

from pipeline.inboxes import Inbox
from pipeline.settings import Settings

RETENTION_S = 1_209_600
"""How long SQS keeps what nobody reads: 14 days, the longest it can."""
VISIBILITY_S = 60
"""How long a message that was received is kept from other consumers."""
RECEIVES = 5
"""After so many receives without being deleted a message goes to the dead-letter queue."""
CREATED = "s3:ObjectCreated:*"


def ways(inbox: Inbox, settings: Settings, present: Mapping[str, Any] | None = None) -> dict[str, str]:
    """The commands by the kind of store they are for: `AWS CLI`, `Terraform`, `MinIO`, `SeaweedFS`.

    `present`: the bucket's notification configuration as it is. Amazon replaces it as a whole, so it is kept within the new one.
    """
    return {
        "AWS CLI": _aws(inbox, present or {}),
        "Terraform": _terraform(inbox),
        "MinIO": _minio(inbox, settings),
        "SeaweedFS": _seaweedfs(inbox, settings),
    }


def queue_name(inbox: Inbox) -> str:
    """The name of its queue: as its URL has it, else one made of the inbox's name."""
    return inbox.sqs_url.rpartition("/")[2] or f"unmask-{inbox.name}"


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


def _aws(inbox: Inbox, present: Mapping[str, Any]) -> str:
    name = queue_name(inbox)
    attributes = {
        "VisibilityTimeout": str(VISIBILITY_S),
        "ReceiveMessageWaitTimeSeconds": "20",
        "MessageRetentionPeriod": str(RETENTION_S),
        "RedrivePolicy": json.dumps({"deadLetterTargetArn": "@DEAD@", "maxReceiveCount": str(RECEIVES)}),
        "Policy": json.dumps(policy("@ARN@", inbox.bucket)),
    }
    told: dict[str, Any] = {"Id": f"unmask-{inbox.name}", "QueueArn": "@ARN@", "Events": [CREATED]}
    if inbox.prefix:
        told["Filter"] = {"Key": {"FilterRules": [{"Name": "prefix", "Value": inbox.prefix}]}}
    kinds = ("TopicConfigurations", "QueueConfigurations", "LambdaFunctionConfigurations", "EventBridgeConfiguration")
    whole = {kind: present[kind] for kind in kinds if kind in present}
    whole["QueueConfigurations"] = [*(one for one in whole.get("QueueConfigurations", ()) if one.get("Id") != told["Id"]), told]
    arn_of = "aws sqs get-queue-attributes --attribute-names QueueArn --query Attributes.QueueArn --output text --queue-url"
    lines = [
        f"dead=$(aws sqs create-queue --queue-name {shlex.quote(name + '-dead')} --query QueueUrl --output text)",
        f'dead_arn=$({arn_of} "$dead")',
        f"queue=$(aws sqs create-queue --queue-name {shlex.quote(name)} --query QueueUrl --output text)",
        f'queue_arn=$({arn_of} "$queue")',
        f'aws sqs set-queue-attributes --queue-url "$queue" --attributes {_shell(attributes)}',
        f"aws s3api put-bucket-notification-configuration --bucket {shlex.quote(inbox.bucket)} "
        f"--notification-configuration {_shell(whole)}",
        f'echo "unmask inboxes edit {inbox.name} --source sqs --sqs-url $queue"'
        if inbox.name != "default"
        else 'echo "UNMASK_SQS_URL=$queue"',
    ]
    return "\n".join(lines)


def _shell(value: Mapping[str, Any]) -> str:
    """JSON as one word of a shell, with the addresses that the script finds out put in."""
    quoted = shlex.quote(json.dumps(value))
    return quoted.replace("@DEAD@", "'\"$dead_arn\"'").replace("@ARN@", "'\"$queue_arn\"'")


def _terraform(inbox: Inbox) -> str:
    name, label = queue_name(inbox), re.sub(r"\W", "_", f"unmask_{inbox.name}")
    document = _hcl(policy("@ARN@", inbox.bucket)).replace('"@ARN@"', f"aws_sqs_queue.{label}.arn")
    prefix = f"\n    filter_prefix = {_hcl(inbox.prefix)}" if inbox.prefix else ""
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
