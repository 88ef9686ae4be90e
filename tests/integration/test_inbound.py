"""Upload notifications over HTTP, on both databases."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr
from sqlalchemy import text
from sqlalchemy.exc import OperationalError
from werkzeug.test import TestResponse

from pipeline import inquiry
from pipeline.database import Database
from pipeline.jobs import Queue, Stage
from tests.fixtures.web import EVENTS_TOKEN, Web

RECORDED: list[dict[str, Any]] = json.loads((Path(__file__).parents[1] / "data" / "seaweedfs_events.json").read_text())
SIGNED = {"Authorization": f"Bearer {EVENTS_TOKEN}"}


@pytest.fixture
def web(make_web: Callable[..., Web], db_url: str) -> Web:
    return make_web(db_url)


def minio(key: str, *, bucket: str = "inbox", etag: str = "e1", sequencer: str = "1A") -> dict[str, Any]:
    about = {"key": key, "eTag": etag, "size": 5, "sequencer": sequencer}
    record = {"eventName": "s3:ObjectCreated:Put", "eventSource": "minio:s3", "s3": {"bucket": {"name": bucket}, "object": about}}
    return {"EventName": "s3:ObjectCreated:Put", "Key": f"{bucket}/{key}", "Records": [record]}


def post(web: Web, body: Any, *, path: str = "/events/minio", headers: dict[str, str] = SIGNED) -> TestResponse:
    return web.client.post(path, json=body, headers=headers)


def keys(web: Web) -> list[str]:
    return sorted(job.key for job in inquiry.page(web.db, limit=100)[0])


def test_what_a_real_seaweedfs_sent_becomes_one_job_per_upload(web: Web) -> None:
    for one in RECORDED + RECORDED:  # everything twice
        assert post(web, one["body"], path="/events/seaweedfs").status_code == 200
    expected = ["a b+c%20d/ünï ☃.jpg"] * 3 + ["copy.png", "empty.png", "multi.png", "v/ver.png", "v/ver.png"]
    bucket = RECORDED[0]["body"]["key"].split("/")[2]
    assert bucket == web.settings.inbox_bucket, "the recording is of another bucket"
    assert keys(web) == sorted(expected)
    assert len(web.woken) == len(expected), "each job is woken once"


def test_a_minio_event_makes_a_job_and_wakes_it(web: Web) -> None:
    answer = post(web, minio("a+b%2Bc.jpg"))
    [job_id] = answer.get_json()["jobs"]
    job = inquiry.job(web.db, job_id)
    assert job is not None
    assert (job.key, job.origin, job.queue, job.sequencer) == ("a b+c.jpg", "minio", "bulk", "1A")
    assert web.woken == [(job_id, Stage.EXTRACT, Queue.BULK)]
    assert post(web, minio("a+b%2Bc.jpg")).get_json()["jobs"] == [job_id]
    assert len(web.woken) == 1


def test_nothing_unsigned_is_taken(web: Web) -> None:
    for said in (None, "Bearer wrong", f"Basic {EVENTS_TOKEN}", EVENTS_TOKEN, "Bearer"):
        for path in ("/events/seaweedfs", "/events/minio"):
            answer = post(web, minio("a.jpg"), path=path, headers={"Authorization": said} if said else {})
            assert (answer.status_code, answer.content_type) == (401, "application/problem+json"), said
            assert answer.headers["WWW-Authenticate"] == "Bearer"
    assert keys(web) == []


def test_without_a_token_nothing_is_taken_at_all(make_web: Callable[..., Web], db_url: str) -> None:
    web = make_web(db_url, events_token=None)
    answer = post(web, minio("a.jpg"), headers={"Authorization": "Bearer "})
    assert answer.status_code == 401
    assert "UNMASK_EVENTS_TOKEN" in answer.get_json(force=True)["detail"]


def test_what_we_do_not_want_is_accepted_and_forgotten(web: Web) -> None:
    for body in (
        minio("out/annotated.png", bucket="results"),
        minio("a.jpg", bucket="elsewhere"),
        minio("folder/"),
        minio("notes.txt"),
        minio("predict/01a216be-9b57-79b6-aab1-b813bc57e6cb/a.jpg"),
        {"Event": "s3:TestEvent"},
        {"Records": []},
    ):
        answer = post(web, body)
        assert (answer.status_code, answer.get_json()) == (200, {"jobs": []}), body
    assert keys(web) == []


def test_nonsense_is_400_with_a_sentence(web: Web) -> None:
    for body in (b"", b"{", b"[]", b"3", b'"x"', b"null", b"{}", b'{"Records": 1}', b'{"Records": [1]}', b"\xff\xfe"):
        for path in ("/events/seaweedfs", "/events/minio"):
            answer = web.client.post(path, data=body, headers=SIGNED)
            assert (answer.status_code, answer.content_type) == (400, "application/problem+json"), (path, body)
            assert answer.get_json(force=True)["detail"].endswith(".")


def test_a_key_that_cannot_be_stored_is_refused_and_not_an_error_of_ours(web: Web) -> None:
    assert post(web, minio("a%00b.jpg")).status_code == 422
    assert keys(web) == []


def test_what_is_told_beside_a_key_that_cannot_be_stored_has_its_job(web: Web) -> None:
    body = minio("a%00b.jpg")
    body["Records"] += minio("good.jpg")["Records"]
    assert post(web, body).status_code == 422
    assert keys(web) == ["good.jpg"]


def test_while_the_database_is_away_the_sender_is_told_to_come_back(web: Web, monkeypatch: pytest.MonkeyPatch) -> None:
    def away(*_: object, **__: object) -> None:
        raise OperationalError("insert", {}, Exception("gone"))

    for way in ("read", "write"):
        monkeypatch.setattr(web.db, way, away)
    answer = post(web, minio("a.jpg"))
    assert (answer.status_code, answer.headers["Retry-After"]) == (503, "5")


def test_connections_that_have_just_died_are_503_once_and_replaced(web: Web) -> None:
    if web.db.engine.dialect.name == "sqlite":
        pytest.skip("has no server that could end a connection")
    with web.db.read() as one, web.db.read() as other:  # two of them in the pool, used a moment ago
        pids = [session.execute(text("select pg_backend_pid()")).scalar_one() for session in (one, other)]
    killer = Database(web.settings.database)
    with killer.read() as session:
        for pid in pids:
            session.execute(text("select pg_terminate_backend(:pid, 5000)"), {"pid": pid})
    killer.dispose()
    statuses = [post(web, minio("a.jpg")).status_code for _ in range(2)]
    assert statuses == [503, 200]
    assert keys(web) == ["a.jpg"]


def test_a_broker_that_is_away_loses_nothing(web: Web, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("webhooks.acting.wake", lambda *_: False)
    [job_id] = post(web, minio("a.jpg")).get_json()["jobs"]
    job = inquiry.job(web.db, job_id)
    assert job is not None
    assert job.woken_at == 0.0, "the next sweep wakes it at once"


def test_other_sites_and_api_keys_play_no_part(make_web: Callable[..., Web], db_url: str) -> None:
    web = make_web(db_url, api_key=SecretStr("the key of the API"))
    assert post(web, minio("a.jpg")).status_code == 200
    assert post(web, minio("b.jpg"), headers={"Authorization": "Bearer the key of the API"}).status_code == 401
