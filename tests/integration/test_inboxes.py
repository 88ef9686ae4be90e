"""Inboxes, on both databases: opened, changed, given up, and which of them an upload came through."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from pipeline import audit, inboxes, inboxkeeping, keys, ledger, users
from pipeline.access import Principal, Role
from pipeline.database import Database
from pipeline.inboxes import Inbox, InboxError
from pipeline.jobs import Queue, Upload, Verdict
from pipeline.settings import Settings
from tests.fixtures.web import Web

SETTINGS = Settings()
PRESS = Inbox("press", "press-bucket", "in/")


def add(db: Database, inbox: Inbox = PRESS, settings: Settings = SETTINGS) -> Inbox:
    return inboxkeeping.add(db, settings, inbox, by="test")


def test_an_inbox_that_somebody_is_bound_to_is_not_removed_for_its_name_could_be_given_to_others(db: Database) -> None:
    add(db)
    key, _ = keys.add(db, "a program", Role.VIEWER, inboxes=["press"], actor="test")
    users.add(db, "ann", "correct horse battery", Role.VIEWER, inboxes=["press"], actor="test")
    with pytest.raises(InboxError, match="bound to the inbox press"):
        inboxkeeping.remove(db, "press", by="test")
    keys.revoke(db, key.id, actor="test")
    with pytest.raises(InboxError, match="bound to the inbox press"):
        inboxkeeping.remove(db, "press", by="test")
    users.change(db, "ann", inboxes=["default"], actor="test")
    inboxkeeping.remove(db, "press", by="test")


def test_an_upload_belongs_to_the_inbox_it_lies_in(db: Database) -> None:
    add(db)
    add(db, Inbox("off", "off-bucket"))
    inboxkeeping.change(db, SETTINGS, "off", by="test", enabled=False)

    def name(bucket: str, key: str) -> str | None:
        found = inboxes.of(SETTINGS, db, Upload(bucket, key))
        return found and found.name

    assert name("inbox", "a.jpg") == "default"
    assert name("press-bucket", "in/a.jpg") == "press"
    assert name("press-bucket", "elsewhere/a.jpg") is None
    assert name("off-bucket", "a.jpg") is None
    assert name("results", "a.jpg") is None


def test_what_an_inbox_leaves_open_is_as_the_settings_have_it(db: Database) -> None:
    add(db)
    add(db, Inbox("own", "own-bucket", results_bucket="own-results", results_prefix="out/"))

    plain, own = (inboxes.effective(SETTINGS, db, name) for name in ("press", "own"))

    assert (plain.inbox_bucket, plain.inbox_prefix, plain.results_bucket, plain.results_prefix) == ("press-bucket", "in/", "results", "")
    assert (own.results_bucket, own.results_prefix) == ("own-results", "out/")
    assert inboxes.effective(SETTINGS, db, "default") is SETTINGS
    with pytest.raises(InboxError, match="There is no inbox gone"):
        inboxes.effective(SETTINGS, db, "gone")


@pytest.mark.parametrize(
    ("wanted", "why"),
    [
        (Inbox("Press", "b-1"), "named by"),
        (Inbox("a" * 65, "b-1"), "named by"),
        (Inbox("default", "b-1"), "already"),
        (Inbox("press", "b-1"), "already"),
        (Inbox("more", "press-bucket"), "overlap the inbox press, which is press-bucket/in/"),
        (Inbox("more", "press-bucket", "in/deeper/"), "overlap the inbox press"),
        (Inbox("more", "inbox", "x/"), "overlap the inbox default, which is all of inbox"),
        (Inbox("more", "results"), "The results of the inbox"),
        (Inbox("more", "models"), "bucket of the models"),
        (Inbox("more", "b-1", results_bucket="press-bucket"), "over the inbox press"),
        (Inbox("more", "b-1", results_bucket="b-1"), "The results of the inbox more"),
        (Inbox("more", "b-1", "/x"), "prefix"),
        (Inbox("more", "b-1", "x\0"), "prefix"),
        (Inbox("more", "b_/1"), "bucket"),
        (Inbox("more", "b-1", suffixes=("jpg",)), "suffix"),
        (Inbox("more", "b-1", authentic_below=0.5), "thresholds"),
        (Inbox("more", "b-1", authentic_below=0.7, manipulated_from=0.6), "thresholds"),
        (Inbox("more", "b-1", source="sqs"), "URL of a queue"),
        (Inbox("more", "b-1", sqs_url="https://x/y"), "URL of a queue"),
        (Inbox("more", "b-1", source="sqs", sqs_url="ftp://x/y"), "URL of the queue"),
        (Inbox("more", "b-1", source="telepathy"), "source"),
    ],
)
def test_an_inbox_that_makes_no_sense_is_refused_with_a_sentence(db: Database, wanted: Inbox, why: str) -> None:
    add(db)
    with pytest.raises(InboxError, match=why) as refused:
        add(db, wanted)
    assert str(refused.value).endswith(".")
    assert [inbox.name for inbox in inboxes.directory(SETTINGS, db).inboxes] == ["default", "press"]


def test_results_may_lie_within_the_bucket_but_are_never_taken_for_uploads(db: Database) -> None:
    made = add(db, Inbox("press", "press-bucket", results_bucket="press-bucket", results_prefix="out/"))
    among = inboxes.directory(SETTINGS, db)

    assert among.why_not(Upload("press-bucket", "out/a.jpg/1/annotated.png")) == "it is our own output"
    assert among.why_not(Upload("press-bucket", "a.jpg")) is None
    assert among.of(Upload("press-bucket", "a.jpg")) == made


@pytest.mark.parametrize(
    ("key", "suffixes", "why"),
    [
        ("a.jpg", (), None),
        ("A.JPG", (), None),
        ("no-suffix", (), None),
        ("notes.txt", (), ".txt is no image"),
        ("folder/", (), "it is a directory"),
        (".uploads/1/part", (), "it is a part of an unfinished upload"),
        ("a.orig.png", (".orig.png",), None),
        ("a.png", (".orig.png",), "it does not end in .orig.png"),
        ("a.raw", (".raw", ".dng"), None),
        ("no-suffix", (".raw", ".dng"), "it does not end in .raw or .dng"),
    ],
)
def test_only_keys_of_the_right_ending_are_taken(db: Database, key: str, suffixes: tuple[str, ...], why: str | None) -> None:
    add(db, Inbox("press", "press-bucket", suffixes=suffixes))
    assert inboxes.directory(SETTINGS, db).why_not(Upload("press-bucket", key)) == why


def test_thresholds_of_an_inbox_stand_in_for_the_models() -> None:
    strict = replace(PRESS, authentic_below=0.2, manipulated_from=0.4)
    assert [strict.verdict(score, Verdict.UNCERTAIN) for score in (0.19, 0.2, 0.39, 0.4)] == [
        Verdict.AUTHENTIC,
        Verdict.UNCERTAIN,
        Verdict.UNCERTAIN,
        Verdict.MANIPULATED,
    ]
    assert PRESS.verdict(0.99, Verdict.UNCERTAIN) is Verdict.UNCERTAIN


def test_a_change_is_checked_noted_and_leaves_the_rest(db: Database) -> None:
    add(db)
    changed = inboxkeeping.change(db, SETTINGS, "press", by="cli", queue=Queue.INTERACTIVE, suffixes=(".png",))
    assert (changed.prefix, changed.queue, changed.suffixes) == ("in/", Queue.INTERACTIVE, (".png",))
    with pytest.raises(InboxError, match="URL of a queue"):
        inboxkeeping.change(db, SETTINGS, "press", by="cli", source="sqs")
    with pytest.raises(InboxError, match="that of the settings"):
        inboxkeeping.change(db, SETTINGS, "default", by="cli", enabled=False)

    deeds = [(row.actor, row.action, row.subject, row.detail) for row in audit.page(db, limit=9)[0]]
    assert deeds[0] == ("cli", "inbox.change", "press", {"queue": "interactive", "suffixes": [".png"]})
    assert [deed[1] for deed in deeds] == ["inbox.change", "inbox.add"]


def test_an_inbox_with_jobs_keeps_its_results_and_is_turned_off_not_removed(db: Database) -> None:
    add(db)
    ledger.accept(db, Upload("press-bucket", "in/a.jpg", etag="e"), inbox="press")

    with pytest.raises(InboxError, match="turn it off instead"):
        inboxkeeping.remove(db, "press", by="test")
    with pytest.raises(InboxError, match="open another inbox"):
        inboxkeeping.change(db, SETTINGS, "press", by="test", results_bucket="other-results")

    add(db, Inbox("empty", "empty-bucket"))
    inboxkeeping.remove(db, "empty", by="test")
    assert [inbox.name for inbox in inboxes.directory(SETTINGS, db).inboxes] == ["default", "press"]


# -- over HTTP


def bound(web: Web, monkeypatch: pytest.MonkeyPatch, *names: str, role: Role = Role.ADMIN) -> None:
    who = Principal("key:1", role, frozenset(names))
    monkeypatch.setattr("webhooks.access._known", lambda context: who)


def ask(web: Web, method: str, path: str, **body: Any) -> tuple[int, Any]:
    answer = web.client.open(path, method=method, json=body or None)
    return answer.status_code, answer.get_json(force=True, silent=True)


def test_the_api_opens_changes_and_gives_up_inboxes(web: Web) -> None:
    status, made = ask(web, "POST", "/v1/inboxes", name="press", bucket="press-bucket", suffixes=[".JPG"], queue="interactive")
    assert (status, made["suffixes"], made["results_bucket"], made["enabled"]) == (201, [".jpg"], "results", True)
    assert ask(web, "POST", "/v1/inboxes", name="press", bucket="other")[0] == 422
    assert ask(web, "POST", "/v1/inboxes", name="x\0", bucket="other")[0] == 422
    status, changed = ask(web, "PATCH", "/v1/inboxes/press", enabled=False, authentic_below=0.1, manipulated_from=0.9)
    assert (status, changed["enabled"], changed["manipulated_from"], changed["queue"]) == (200, False, 0.9, "interactive")
    assert ask(web, "PATCH", "/v1/inboxes/press", model_thresholds=True)[1]["manipulated_from"] is None
    status, found = ask(web, "GET", "/v1/inboxes")
    assert [one["name"] for one in found["inboxes"]] == ["default", "press"]
    assert ask(web, "DELETE", "/v1/inboxes/press")[0] == 204
    assert ask(web, "GET", "/v1/inboxes/press")[0] == 404
    assert ask(web, "GET", "/v1/inboxes/%00")[0] == 404
    assert ask(web, "DELETE", "/v1/inboxes/default")[0] == 422
    assert {row.action for row in audit.page(web.db, subject="press", limit=9)[0]} == {"inbox.add", "inbox.change", "inbox.remove"}


def test_who_is_bound_to_an_inbox_sees_no_other(web: Web, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("mine", "theirs"):
        add(web.db, Inbox(name, f"bucket-of-{name}"), web.settings)
    bound(web, monkeypatch, "mine")

    assert [one["name"] for one in ask(web, "GET", "/v1/inboxes")[1]["inboxes"]] == ["mine"]
    assert ask(web, "GET", "/v1/inboxes/mine")[0] == 200
    assert ask(web, "GET", "/v1/inboxes/theirs") == ask(web, "GET", "/v1/inboxes/theirs")
    assert ask(web, "GET", "/v1/inboxes/theirs")[0] == 404
    assert ask(web, "PATCH", "/v1/inboxes/theirs", enabled=False)[0] in (403, 404)
    page = web.client.get("/inboxes").get_data(as_text=True)
    assert "bucket-of-mine" in page
    assert "theirs" not in page


def test_the_page_shows_inboxes_and_opens_one(web: Web) -> None:
    client = web.client
    form = {"csrf": web.csrf(client, "/inboxes"), "name": "press", "bucket": "press-bucket", "suffixes": ".png, .JPG", "queue": "bulk"}
    wrong = client.post("/inboxes", data=form | {"authentic_below": "high"})
    assert (wrong.status_code, "A threshold is a number" in wrong.get_data(as_text=True)) == (422, True)
    assert client.post("/inboxes", data=form).status_code == 303
    assert ".png, .jpg" in client.get("/inboxes").get_data(as_text=True)
    assert client.post("/inboxes/press/off", data=form).status_code == 303
    assert not inboxes.get(web.settings, web.db, "press").enabled
    assert client.post("/inboxes/press/remove", data=form).status_code == 303
    assert "press-bucket" not in client.get("/inboxes").get_data(as_text=True)
