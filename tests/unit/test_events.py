import contextlib
import json
from collections import defaultdict
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from pipeline.events import EventError, from_queue, from_s3, from_s3_records, from_seaweedfs
from pipeline.inboxes import Directory, of_settings
from pipeline.jobs import Upload
from pipeline.settings import Settings

RECORDED: list[dict[str, Any]] = json.loads((Path(__file__).parents[1] / "data" / "seaweedfs_events.json").read_text())
"""Every notification a real `weed mini` 4.48 sent, named by the request it came after."""


def uploads_after() -> dict[str, list[Upload]]:
    found = defaultdict(list)
    for one in RECORDED:
        found[one["after"]] += from_seaweedfs(one["body"])
    return found


def test_each_recorded_upload_is_one_upload_and_nothing_else_is() -> None:
    found = {after: [(u.key, u.version_id, u.etag, u.size) for u in uploads] for after, uploads in uploads_after().items()}
    strange = "a b+c%20d/ünï ☃.jpg"
    assert found == {
        "put": [(strange, "", "a6bb7bde3251ca2d810d32dadd9e8ae7", 5000)],
        "overwrite with the same bytes": [(strange, "", "a6bb7bde3251ca2d810d32dadd9e8ae7", 5000)],
        "overwrite with other bytes": [(strange, "", "a1afb2336d5b67da1f874c942dcf58f3", 5000)],
        "multipart upload": [("multi.png", "", "b98203df40cb5356fc313d2a9be1e11e-3", 12_000_000)],
        "copy": [("copy.png", "", "2f46b63852d95993b5a1c16f523323af", 11_000_000)],
        "put tagging": [],
        "put folder/": [],
        "put of no bytes": [("empty.png", "", "d41d8cd98f00b204e9800998ecf8427e", 0)],
        "delete": [],
        "aborted multipart upload": [],
        "versioned put": [("v/ver.png", "67147a57eba3a6d7182b3f27fab68d2e", "6654c734ccab8f440ff0825eb443dc7f", 2)],
        "versioned overwrite": [("v/ver.png", "67147a57d961e1bc0cc1f383af1b14fd", "1b267619c4812cc46ee281747884ca50", 2)],
        "versioned delete": [],
    }


def test_sequencers_order_the_uploads_to_one_key() -> None:
    found = uploads_after()
    in_order = [found[name][0].sequencer for name in ("put", "overwrite with the same bytes", "overwrite with other bytes")]
    assert in_order == sorted(set(in_order))
    assert {len(sequencer) for sequencer in in_order} == {16}


def test_a_rename_into_the_inbox_is_an_upload_under_the_new_name() -> None:
    entry = RECORDED[0]["body"]["message"]["new_entry"]
    body = {
        "event_type": "rename",
        "key": "/buckets/other/old.jpg",
        "message": {"old_entry": entry, "new_entry": entry | {"name": "new.jpg"}, "new_parent_path": "/buckets/inbox/d"},
    }
    assert [(u.bucket, u.key) for u in from_seaweedfs(body)] == [("inbox", "d/new.jpg")]


@pytest.mark.parametrize(
    "body", [{}, {"event_type": "create", "key": "/buckets/inbox/a"}, {"event_type": "create", "key": 1, "message": 3}]
)
def test_a_malformed_seaweedfs_body_is_an_event_error(body: dict[str, Any]) -> None:
    with pytest.raises(EventError, match="SeaweedFS"):
        from_seaweedfs(body)


NAMES = ["event_type", "key", "message", "new_entry", "old_entry", "attributes", "extended", "chunks", "md5", "Records", "s3"]
RUBBISH = st.recursive(
    st.none() | st.integers() | st.text(max_size=8),
    lambda inner: st.dictionaries(st.sampled_from(NAMES), inner) | st.lists(inner, max_size=2),
    max_leaves=12,
)


@given(RUBBISH)
@example({"event_type": "create", "key": "/buckets/inbox/a", "message": {"new_entry": {"chunks": [1]}}})
def test_nothing_but_an_event_error_ever_comes_out_of_rubbish(body: Any) -> None:
    for reader in (from_seaweedfs, from_s3_records):
        with contextlib.suppress(EventError):
            assert isinstance(reader(body), list)


def record(key: str = "a.jpg", name: str = "ObjectCreated:Put", **more: Any) -> dict[str, Any]:
    about = {"key": key, "size": 7, "eTag": "0cc1", "sequencer": "0055AED6DCD90281E5", **more}
    return {"eventSource": "aws:s3", "eventName": name, "s3": {"bucket": {"name": "inbox"}, "object": about}}


def test_s3_keys_are_decoded_once_and_every_record_counts() -> None:
    body = {"Records": [record("a+b%2Bc%2520/%E2%98%83.jpg"), record("b.jpg", versionId="v1"), record("c.jpg", versionId="null")]}
    assert from_s3_records(body) == [
        Upload("inbox", "a b+c%20/☃.jpg", "", "0cc1", "0055AED6DCD90281E5", 7, "sqs"),
        Upload("inbox", "b.jpg", "v1", "0cc1", "0055AED6DCD90281E5", 7, "sqs"),
        Upload("inbox", "c.jpg", "", "0cc1", "0055AED6DCD90281E5", 7, "sqs"),
    ]


def test_when_it_was_written_is_told_where_the_sender_says_it() -> None:
    dated, undated = record() | {"eventTime": "2026-01-31T09:00:00.500Z"}, record() | {"eventTime": "yesterday"}
    assert [u.modified for u in from_s3_records({"Records": [dated, undated]})] == [1769850000.5, 0.0]
    assert [u.modified for u in from_seaweedfs(RECORDED[0]["body"])] == [pytest.approx(1795675828.158, abs=0.001)]


def test_minio_is_told_by_its_source() -> None:
    one = record(name="s3:ObjectCreated:CompleteMultipartUpload") | {"eventSource": "minio:s3"}
    assert [u.origin for u in from_s3_records({"EventName": "s3:ObjectCreated:Put", "Key": "inbox/a.jpg", "Records": [one]})] == ["minio"]


@pytest.mark.parametrize("name", ["ObjectRemoved:Delete", "s3:ObjectCreated:PutTagging", "s3:ObjectAccessed:Get", "ObjectTagging:Put"])
def test_what_brings_no_new_bytes_is_no_upload(name: str) -> None:
    assert from_s3_records({"Records": [record(name=name)]}) == []


def test_the_test_event_is_taken_without_complaint() -> None:
    assert from_s3_records({"Service": "Amazon S3", "Event": "s3:TestEvent", "Bucket": "inbox"}) == []


@pytest.mark.parametrize("size", [10**30, -1, float("inf"), float("nan"), "1e9"])
def test_a_number_that_is_none_is_an_event_error(size: Any) -> None:
    for said in ({"size": size}, {"size": 10**4000}):
        with pytest.raises(EventError, match="S3 event"):
            from_s3_records({"Records": [record(**said)]})
    for attributes in ({"file_size": size}, {"mtime": size}, {"mtime": 10**320}):
        message = {"new_entry": {"attributes": attributes}}
        with pytest.raises(EventError, match="SeaweedFS"):
            from_seaweedfs({"event_type": "create", "key": "/buckets/inbox/a.jpg", "message": message})


def test_a_message_nested_without_end_is_an_event_error() -> None:
    with pytest.raises(EventError, match="not JSON"):
        from_queue("[" * 200_000)


@pytest.mark.parametrize("body", [{}, {"Records": None}, {"Records": [{}]}, {"Records": [record("%ff.jpg")]}])
def test_a_malformed_s3_message_is_an_event_error(body: dict[str, Any]) -> None:
    with pytest.raises(EventError, match="S3 event"):
        from_s3_records(body)


@pytest.mark.parametrize(
    ("bucket", "key", "why"),
    [
        ("inbox", "a.JPG", None),
        ("inbox", "no-suffix", None),
        ("inbox", "deep/er/a b.webp", None),
        ("inbox", "folder/", "it is a directory"),
        ("inbox", ".uploads/x/1.part", "it is a part of an unfinished upload"),
        ("inbox", "a.txt", ".txt is no image"),
        ("results", "a.jpg/1/annotated.png", "it is our own output"),
        ("elsewhere", "a.jpg", "it is in no inbox"),
    ],
)
def test_what_is_admitted(bucket: str, key: str, why: str | None) -> None:
    assert why_not(Upload(bucket, key), Settings()) == why


def why_not(upload: Upload, settings: Settings) -> str | None:
    return Directory((of_settings(settings),)).why_not(upload)


def test_own_output_is_refused_where_one_bucket_serves_both_ends() -> None:
    chosen = Settings(inbox_bucket="one", results_bucket="one", results_prefix="out/", inbox_prefix="")
    assert why_not(Upload("one", "out/a.jpg/1/annotated.png"), chosen) == "it is our own output"
    assert why_not(Upload("one", "in/a.jpg"), chosen) is None


def test_the_inbox_prefix_is_kept_to() -> None:
    chosen = Settings(inbox_prefix="in/")
    assert why_not(Upload("inbox", "in/a.jpg"), chosen) is None
    assert why_not(Upload("inbox", "a.jpg"), chosen) == "it is in no inbox"


# -- what comes by way of a queue

BUS = {
    "source": "aws.s3",
    "detail-type": "Object Created",
    "time": "2026-01-31T09:00:00Z",
    "detail": {
        "bucket": {"name": "inbox"},
        "object": {"key": "a b+c%20.jpg", "size": 5, "etag": "e1", "version-id": "v1", "sequencer": "0A"},
        "reason": "PutObject",
    },
}
"""An event of EventBridge: its keys are as they are, where those of S3's own records are form-encoded."""


def wrapped(body: object) -> dict[str, Any]:
    return {"Type": "Notification", "TopicArn": "arn:aws:sns:us-east-1:1:t", "Message": json.dumps(body)}


def test_eventbridge_tells_of_one_object_with_its_key_as_it_is() -> None:
    expected = [Upload("inbox", "a b+c%20.jpg", "v1", "e1", "0A", 5, "sqs", 1769850000.0)]
    assert from_queue(json.dumps(BUS)) == expected
    assert from_queue(json.dumps(wrapped(BUS))) == expected
    assert from_s3({**BUS, "detail-type": "Object Deleted"}) == []
    assert from_s3({**BUS, "source": "my.app"}) == []


def test_a_topic_wraps_what_s3_says_and_speaks_for_itself_now_and_then() -> None:
    two = {"Records": [record("a+b.jpg"), record("%2B.jpg")]}
    assert [upload.key for upload in from_queue(json.dumps(wrapped(two)))] == ["a b.jpg", "+.jpg"]
    assert from_queue(json.dumps(wrapped({"Event": "s3:TestEvent"}))) == []
    assert from_s3({"Type": "SubscriptionConfirmation", "TopicArn": "t", "Message": "You have chosen to subscribe"}) == []


@pytest.mark.parametrize("text", ["", "no JSON", "[]", "3", "null", json.dumps(wrapped("x")), json.dumps({**BUS, "detail": {}}), "{}"])
def test_a_message_that_cannot_be_read_is_an_event_error(text: str) -> None:
    with pytest.raises(EventError):
        from_queue(text)


@given(RUBBISH)
def test_rubbish_in_a_queue_is_uploads_or_an_event_error(body: Any) -> None:
    for shape in (body, wrapped(body), {"source": "aws.s3", "detail-type": "Object Created", "detail": body}):
        with contextlib.suppress(EventError):
            assert all(isinstance(upload, Upload) for upload in from_queue(json.dumps(shape)))
