"""What the pages of jobs and models say: by which thresholds a job was judged, and what is not for everybody."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from flask.testing import FlaskClient
from pydantic import SecretStr
from sqlalchemy import event, update

from pipeline import inboxkeeping, ledger, registry, users
from pipeline.access import Role
from pipeline.database import Database, JobRow, ModelRow
from pipeline.inboxes import Inbox
from pipeline.jobs import Judgement, ModelName, Stage, Upload, Verdict
from tests.fixtures.jobs import advance, claimed
from tests.fixtures.models import write_model
from tests.fixtures.web import Web

STRICT = Inbox("press", "press-bucket", authentic_below=0.2, manipulated_from=0.6)
OF_PRESS = "Score 0.70: authentic below 0.20, manipulated from 0.60"


def name(version: str) -> ModelName:
    return ModelName("green", version, "0" * 64)


@pytest.fixture
def web(make_web: Callable[..., Web], sqlite_url: str, tmp_path: Path) -> Web:
    """A server with two model versions, of which the second is champion, and an inbox with thresholds of its own."""
    web = make_web(sqlite_url)
    for version, low, high in (("1", 0.3, 0.8), ("2", 0.4, 0.9)):
        folder = write_model(tmp_path, version=version, thresholds={"authentic_below": low, "manipulated_from": high})
        registry.publish(web.db, web.store, web.settings, folder)  # type: ignore[arg-type]
    registry.promote(web.db, web.settings, "green", "2")
    inboxkeeping.add(web.db, web.settings, STRICT, by="test")
    return web


def judged(db: Database, version: str, inbox: str = "default", verdict: Verdict = Verdict.UNCERTAIN, key: str = "a.jpg") -> str:
    """The id of a job that is done, its one face given a score of .7."""
    bucket = STRICT.bucket if inbox == "press" else "inbox"
    job_id = ledger.accept(db, Upload(bucket, key, etag=f"{version}-{inbox}"), inbox=inbox).job_id
    assert advance(db, claimed(db, job_id))
    assert ledger.classified(db, claimed(db, job_id, Stage.CLASSIFY), [Judgement(0, 0.7, verdict)], name(version), 1.0)
    assert advance(db, claimed(db, job_id, Stage.RENDER))
    return job_id


def scales(html: str) -> list[str]:
    """What each scale of a page says."""
    return re.findall(r'<svg class="scale"[^>]*aria-label="([^"]*)"', html)


def read(web: Web, path: str, client: FlaskClient | None = None) -> str:
    answer = (client or web.client).get(path)
    assert answer.status_code == 200
    return answer.get_data(as_text=True)


def test_a_job_is_shown_by_the_thresholds_of_its_inbox(web: Web) -> None:
    job_id = judged(web.db, "1", "press", Verdict.MANIPULATED)
    for path in (f"/jobs/{job_id}", f"/fragments/jobs/{job_id}"):
        html = read(web, path)
        assert scales(html) == [OF_PRESS] * 2, "of the picture and of its face"
        assert '<rect class="zone manipulated" x="60.0" y="2" width="40.0"' in html
        assert "<dd>authentic below 0.20, manipulated from 0.60, those of the inbox press</dd>" in html


def test_a_job_is_shown_by_the_thresholds_of_its_own_model_where_the_inbox_has_none(web: Web) -> None:
    html = read(web, f"/jobs/{judged(web.db, '1')}")
    assert scales(html) == ["Score 0.70: authentic below 0.30, manipulated from 0.80"] * 2
    assert "<dd>authentic below 0.30, manipulated from 0.80</dd>" in html


def test_each_row_of_the_list_has_the_thresholds_that_it_was_judged_by(web: Web) -> None:
    judged(web.db, "1")
    judged(web.db, "2")
    judged(web.db, "1", "press", Verdict.MANIPULATED)
    for path in ("/", "/fragments/jobs"):
        assert scales(read(web, path)) == [
            OF_PRESS,
            "Score 0.70: authentic below 0.40, manipulated from 0.90",
            "Score 0.70: authentic below 0.30, manipulated from 0.80",
        ]


def test_no_zones_are_drawn_where_the_thresholds_are_not_known(web: Web) -> None:
    job_id, other = judged(web.db, "1"), judged(web.db, "2")
    with web.db.write() as session:
        session.delete(session.get_one(ModelRow, ("green", "1")))
        session.execute(update(JobRow).where(JobRow.id == other).values(inbox="gone"))
    html = read(web, f"/jobs/{job_id}")
    assert scales(html) == ["Score 0.70"] * 2
    assert "<dt>Thresholds</dt>" not in html
    assert scales(read(web, f"/jobs/{other}")) == ["Score 0.70"] * 2, "who knows what thresholds it had"
    assert scales(read(web, "/")) == ["Score 0.70"] * 2


def test_the_list_asks_the_database_as_often_for_many_rows_as_for_one(web: Web) -> None:
    judged(web.db, "1", "press")
    judged(web.db, "2")
    read(web, "/")
    with asked(web.db) as few:
        read(web, "/fragments/jobs")
    for number in range(10):
        judged(web.db, "1", "press", key=f"press-{number}.jpg")
        judged(web.db, "2", key=f"{number}.jpg")
    with asked(web.db) as many:
        assert len(scales(read(web, "/fragments/jobs"))) == 22
    assert len(many) == len(few)


@contextmanager
def asked(db: Database) -> Iterator[list[str]]:
    """What is read meanwhile, but for the counts, which are taken by the clock."""
    statements: list[str] = []

    def note(connection: Any, cursor: Any, statement: str, *_: Any) -> None:
        if statement.startswith("SELECT") and "count(" not in statement:
            statements.append(statement)

    event.listen(db.engine, "before_cursor_execute", note)
    try:
        yield statements
    finally:
        event.remove(db.engine, "before_cursor_execute", note)


# -- what is not for everybody


@pytest.fixture
def guarded(make_web: Callable[..., Web], sqlite_url: str, monkeypatch: pytest.MonkeyPatch) -> Web:
    """A server with a user for each of two roles, and one more who is bound to an inbox."""
    monkeypatch.setattr("pipeline.users._hash", lambda password: "$argon2id$not-to-be-used")
    web = make_web(sqlite_url, api_key=SecretStr("the bootstrap key"))
    for who, role, bound in (("viewer", Role.VIEWER, []), ("operator", Role.OPERATOR, []), ("bound", Role.OPERATOR, ["default"])):
        users.add(web.db, who, "correct horse battery", role, inboxes=bound, actor="cli")
    return web


def come_in(web: Web, who: str) -> FlaskClient:
    client = web.client
    with client.session_transaction() as session:
        session.update({"user": who, "generation": 0, "since": 9e9, "csrf": "token"})
    return client


def test_the_traceback_of_a_job_is_for_those_who_may_retry_it(guarded: Web) -> None:
    job_id = ledger.accept(guarded.db, Upload("inbox", "a.jpg", etag="e1")).job_id
    error = RuntimeError("at /opt/unmask/secret.py")
    claim = claimed(guarded.db, job_id)
    ledger.retry(guarded.db, claim, error, max_attempts=1, permanent=True, sentence="It could not be read.")
    for path in (f"/jobs/{job_id}", f"/fragments/jobs/{job_id}"):
        shown = {who: read(guarded, path, come_in(guarded, who)) for who in ("viewer", "operator", "bound")}
        assert {who for who, html in shown.items() if "/opt/unmask/secret.py" in html} == {"operator", "bound"}
        assert {who for who, html in shown.items() if "Last error" in html} == {"operator", "bound"}
        assert all("It could not be read." in html for html in shown.values())


def test_the_drift_is_offered_to_those_only_who_may_see_it(guarded: Web) -> None:
    offered = {who: 'href="/drift"' in read(guarded, "/models", come_in(guarded, who)) for who in ("viewer", "operator", "bound")}
    assert offered == {"viewer": True, "operator": True, "bound": False}
    assert {who: come_in(guarded, who).get("/drift").status_code for who in offered} == {"viewer": 200, "operator": 200, "bound": 403}
