"""`unmask inboxes` and `unmask backfill`, without a stack."""

from __future__ import annotations

import json
from types import SimpleNamespace
from typing import Any

import pytest

from pipeline import audit, inquiry
from pipeline.database import Database
from pipeline.settings import Settings
from pipeline.storage import StorageError
from tests.fixtures.old_objects import Made
from tests.unit.test_cli import Run, db, one_sentence, run
from workers import backfilling
from workers.commands import inboxes
from workers.sentences import CommandError

__all__ = ["db", "run"]


def test_an_inbox_is_opened_changed_listed_and_removed(run: Run, db: Database) -> None:
    added = run("inboxes", "add", "press", "press-uploads", "--suffix", ".JPG", "--sqs-url", "https://sqs.eu-west-1.amazonaws.com/1/up")
    assert "takes what is put into press-uploads/" in added.stdout
    assert "`unmask inboxes events press`" in added.stdout
    run("inboxes", "edit", "press", "--authentic-below", "0.2", "--manipulated-from", "0.6", "--queue", "interactive", "--off")

    default, press = json.loads(run("inboxes", "list", "--json").stdout)
    assert default["name"] == "default"
    assert (press["suffixes"], press["source"], press["queue"], press["enabled"]) == ([".jpg"], "sqs", "interactive", False)
    assert "0.20 and 0.60" in run("inboxes", "list").stdout
    run("inboxes", "edit", "press", "--model-thresholds", "--on", "--source", "webhook")
    changed = json.loads(run("inboxes", "list", "--json").stdout)[1]
    assert (changed["authentic_below"], changed["enabled"], changed["sqs_url"]) == (None, True, "")
    assert "removed" in run("inboxes", "remove", "press").stdout
    assert {row.actor for row in audit.page(db, limit=9)[0]} == {"cli"}


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["add", "Press", "press-uploads"], "An inbox is named by"),
        (["add", "press", "inbox"], "overlap the inbox default"),
        (["edit", "press"], "Nothing is to be changed"),
        (["edit", "press", "--off"], "There is no inbox press"),
        (["edit", "default", "--off"], "that of the settings"),
        (["events", "press"], "There is no inbox press"),
    ],
)
def test_what_cannot_be_is_said_in_a_sentence(run: Run, db: Database, arguments: list[str], said: str) -> None:
    assert said in one_sentence(run("inboxes", *arguments))


@pytest.mark.parametrize(
    ("refused", "said"),
    [
        ({"press-uploads", "press-results"}, "press-uploads and press-results could not be made: see to them in the store"),
        ({"press-results"}, "press-results could not be made: see to it in the store"),
    ],
)
def test_an_inbox_whose_buckets_cannot_be_made_is_said_to_be_open(
    run: Run, db: Database, monkeypatch: pytest.MonkeyPatch, refused: set[str], said: str
) -> None:
    made: list[str] = []

    def ensure(bucket: str) -> None:
        if bucket in refused:
            raise StorageError(f"The object store refused {bucket}: AccessDenied, no.")
        made.append(bucket)

    monkeypatch.setattr(inboxes, "object_store", lambda settings: SimpleNamespace(ensure_bucket=ensure))
    line = one_sentence(run("inboxes", "add", "press", "press-uploads", "--results-bucket", "press-results", "--create-bucket"))
    assert f"The inbox press is open, but {said}." in line
    assert "AccessDenied" in line
    assert made == sorted({"press-uploads", "press-results"} - refused)
    assert [inbox["name"] for inbox in json.loads(run("inboxes", "list", "--json").stdout)] == ["default", "press"]


def test_no_inbox_is_opened_where_its_buckets_cannot_be_because_no_store_is_known(
    run: Run, db: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    def nowhere(settings: Settings) -> None:
        raise CommandError("No object store is known.")

    monkeypatch.setattr(inboxes, "object_store", nowhere)
    assert "No object store is known" in one_sentence(run("inboxes", "add", "press", "press-uploads", "--create-bucket"))
    assert len(json.loads(run("inboxes", "list", "--json").stdout)) == 1


def test_the_commands_for_each_store_are_printed(run: Run, db: Database) -> None:
    text = run("inboxes", "events").stdout
    assert all(f"# {store}\n" in text for store in ("AWS CLI", "Terraform", "MinIO", "SeaweedFS"))
    assert json.loads(run("inboxes", "events", "--json").stdout).keys() == {"AWS CLI", "Terraform", "MinIO", "SeaweedFS"}


def test_the_printed_commands_keep_the_notifications_the_bucket_has(run: Run, db: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    theirs = {"QueueArn": "arn:aws:sqs:r:1:theirs", "Events": ["s3:ObjectRemoved:*"]}

    class Client:
        def head_bucket(self, Bucket: str) -> dict[str, Any]:
            return {"ResponseMetadata": {"HTTPHeaders": {"server": "AmazonS3"}}}

        def get_bucket_notification_configuration(self, Bucket: str) -> dict[str, Any]:
            return {"QueueConfigurations": [theirs], "ResponseMetadata": {}}

    monkeypatch.setattr(inboxes, "object_store", lambda settings: SimpleNamespace(client=Client()))
    assert "arn:aws:sqs:r:1:theirs" in json.loads(run("inboxes", "events", "--json").stdout)["AWS CLI"]


def test_a_back_fill_says_what_it_did(run: Run, db: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inboxes, "object_store", lambda settings: Made(450))
    monkeypatch.setattr(backfilling.run, "__kwdefaults__", {**(backfilling.run.__kwdefaults__ or {}), "send": lambda *_, **__: True})

    result = run("backfill")

    assert result.exit_code == 0, result.output
    assert "The back-fill is through: 450 objects seen, 405 jobs made, 45 objects are no images." in result.stdout
    assert sum(inquiry.counts(db).values()) == 405
    assert json.loads(run("backfill", "--json", "--no-count").stdout)["made"] == 0
