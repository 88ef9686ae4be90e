"""Every error is one sentence of problem JSON, whatever went wrong."""

from __future__ import annotations

import io

import pytest
from sqlalchemy.exc import OperationalError

from pipeline.storage import StorageError
from tests.fixtures.web import Web, jpeg


@pytest.mark.parametrize(
    ("method", "path", "sent", "status"),
    [
        ("GET", "/v1/jobs/none", {}, 404),
        ("GET", "/v1/nothing", {}, 404),
        ("GET", "/v1/jobs?limit=0", {}, 422),
        ("GET", "/v1/jobs?limit=x", {}, 422),
        ("GET", "/v1/jobs?status=odd", {}, 422),
        ("GET", "/v1/jobs?unknown=1", {}, 422),
        ("GET", "/v1/jobs?after=rubbish", {}, 422),
        ("PUT", "/v1/jobs", {}, 405),
        ("POST", "/predict", {}, 422),
        ("POST", "/predict", {"data": {"file": (io.BytesIO(b""), "a.jpg")}}, 422),
        ("POST", "/v1/jobs", {"json": {}}, 422),
        ("POST", "/v1/jobs", {"json": {"key": "not-there.jpg"}}, 404),
        ("POST", "/v1/jobs", {"json": {"key": "a.jpg", "extra": 1}}, 422),
        ("POST", "/v1/jobs", {"data": b"[", "content_type": "application/json"}, 422),
        ("POST", "/v1/jobs", {"data": {"text": "no file"}}, 422),
        ("POST", "/v1/jobs/none/retry", {}, 404),
        ("POST", "/v1/jobs/none/cancel", {}, 404),
        ("POST", "/v1/endpoints", {"json": {"url": "ftp://example.com"}}, 422),
        ("POST", "/v1/endpoints", {"json": {"url": "https://example.com", "events": ["job.eaten"]}}, 422),
        ("DELETE", "/v1/endpoints/none", {}, 404),
        ("POST", "/v1/deliveries/none/redeliver", {}, 404),
        ("POST", "/v1/models/none/1/promote", {}, 404),
        ("POST", "/v1/models/rollback", {}, 409),
        ("POST", "/v1/queues/none/pause", {}, 422),
    ],
)
def test_bad_requests_get_one_sentence(web: Web, method: str, path: str, sent: dict[str, object], status: int) -> None:
    response = web.client.open(path, method=method, **sent)  # type: ignore[arg-type]

    assert response.status_code == status, response.get_data(as_text=True)
    assert response.content_type == "application/problem+json"
    problem = response.get_json(force=True)
    assert problem.keys() == {"type", "title", "status", "detail"}
    assert problem["status"] == status
    assert problem["detail"].endswith(".")
    assert "\n" not in problem["detail"]


def test_a_database_that_is_away_is_503_and_says_when_to_come_back(web: Web, monkeypatch: pytest.MonkeyPatch) -> None:
    def away(*_: object, **__: object) -> None:
        raise OperationalError("select 1", {}, Exception("password=hunter2"))

    monkeypatch.setattr(web.db, "read", away)
    for path in ("/v1/jobs", "/v1/jobs/x", "/v1/endpoints", "/", "/metrics"):
        response = web.client.get(path)
        assert (response.status_code, response.headers["Retry-After"]) == (503, "5"), path
        assert b"hunter2" not in response.data


def test_an_object_store_that_is_away_is_503(web: Web) -> None:
    web.store.away = StorageError("The object store could not be reached.")
    response = web.client.post("/predict", data={"file": (io.BytesIO(jpeg()), "a.jpg")})
    assert (response.status_code, response.get_json(force=True)["detail"]) == (503, "The object store could not be reached.")


@pytest.mark.parametrize("path", ["/predict", "/v1/jobs"])
def test_an_upload_that_does_not_fit_into_memory_is_503_and_may_come_again(web: Web, monkeypatch: pytest.MonkeyPatch, path: str) -> None:
    def too_much(*_: object) -> None:
        raise MemoryError

    with monkeypatch.context() as short:
        short.setattr(web.store, "put", too_much)
        response = web.client.post(path, data={"file": (io.BytesIO(jpeg()), "a.jpg")})
    assert (response.status_code, response.content_type, response.headers["Retry-After"]) == (503, "application/problem+json", "5")
    assert response.get_json(force=True)["detail"] == "There is not enough memory for this at the moment; try again shortly."
    assert (web.store.objects, web.woken, "Location" in response.headers) == ({}, [], False)


def test_an_error_of_ours_is_500_without_a_traceback(web: Web, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setattr("pipeline.inquiry.page", lambda *_, **__: 1 / 0)
    response = web.client.get("/v1/jobs")
    assert response.status_code == 500
    assert b"ZeroDivision" not in response.data
    assert "ZeroDivisionError" in caplog.text


@pytest.mark.parametrize(("path", "data"), [("/predict", "file"), ("/v1/jobs", "file")])
def test_too_large_is_413_before_and_after_the_limit_of_the_request(web: Web, path: str, data: str) -> None:
    most = web.settings.max_image_bytes
    for size in (most + 1, most + 2_000_000):
        response = web.client.post(path, data={data: (io.BytesIO(bytes(size)), "a.jpg")})
        response.request.environ["wsgi.input"].close()
        assert (response.status_code, response.content_type) == (413, "application/problem+json"), size
    assert web.store.objects == {}


def test_people_get_a_page_and_machines_json(web: Web) -> None:
    page = web.client.get("/jobs/none", headers={"Accept": "text/html,application/xhtml+xml,*/*;q=0.8"})
    assert (page.status_code, page.mimetype) == (404, "text/html")
    assert "There is no job of that id." in page.get_data(as_text=True)
    assert web.client.get("/v1/jobs/none", headers={"Accept": "text/html"}).content_type == "application/problem+json"
