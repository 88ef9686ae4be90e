"""The API on both databases; the object store is in memory, and workers are threads that go through the ledger."""

from __future__ import annotations

import base64
import io
import json
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import piexif
import pytest
from sqlalchemy import update

from pipeline import images, inquiry, ledger, registry
from pipeline.database import FaceRow, ModelRow
from pipeline.images import encode_png
from pipeline.jobs import Queue, Reason, Stage, Upload
from pipeline.storage import StorageError
from tests.fixtures.jobs import MODEL, accepted, advance, brought_to, claimed, face, judged
from tests.fixtures.models import LIMITS, write_model
from tests.fixtures.web import Receiver, Web, jpeg
from webhooks import health
from webhooks.api import predict

PNG = encode_png(np.full((40, 60, 3), 90, np.uint8), 1)


@pytest.fixture
def web(make_web: Callable[..., Web], db_url: str) -> Web:
    return make_web(db_url, webhook_allow_http=True, webhook_allow_private=True)


def finish(web: Web, job_id: str) -> None:
    """Do all three stages of a job, as workers would."""
    claim = claimed(web.db, job_id)
    assert ledger.extracted(web.db, claim, sha256="f" * 64, width=60, height=40, faces=[face()], milliseconds=10.0)
    assert ledger.classified(web.db, claimed(web.db, job_id, Stage.CLASSIFY), [judged()], MODEL, 20.0)
    for name, data in (("annotated.png", PNG), ("result.json", b'{"verdict": "manipulated"}')):
        web.store.put("results", f"{job_id}/{name}", data, "")
    rendering = claimed(web.db, job_id, Stage.RENDER)
    assert ledger.finished(
        web.db, rendering, annotated_key=f"{job_id}/annotated.png", result_key=f"{job_id}/result.json", milliseconds=30.0
    )


def refuse(web: Web, job_id: str) -> None:
    assert ledger.refuse(web.db, claimed(web.db, job_id), "This is not a picture.")


@pytest.fixture
def working(web: Web, monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[Web, str], None]], None]:
    """Have a worker do something with each job that is woken from now on, in a thread of its own."""

    def work(how: Callable[[Web, str], None]) -> None:
        def wake(job_id: str, stage: Stage, queue: Queue) -> bool:
            web.woken.append((job_id, stage, queue))
            threads.append(threading.Thread(target=how, args=(web, job_id)))
            threads[-1].start()
            return True

        monkeypatch.setattr("webhooks.acting.wake", wake)

    threads: list[threading.Thread] = []
    yield work  # type: ignore[misc]
    for thread in threads:
        thread.join(10)


def upload(data: bytes | None = None, name: str = "a.jpg") -> dict[str, Any]:
    return {"data": {"file": (io.BytesIO(jpeg() if data is None else data), name)}}


# -- POST /predict


def test_predict_answers_with_the_verdict_and_the_picture(web: Web, working: Callable[..., None]) -> None:
    working(finish)
    answer = web.client.post("/predict", **upload(name="me & you.jpg"))

    assert answer.status_code == 200, answer.get_data(as_text=True)
    said = answer.get_json()
    assert (said["verdict"], said["score"], said["reason"]) == ("manipulated", 0.97, None)
    assert [(one["box"], one["verdict"]) for one in said["faces"]] == [([0, 2, 30, 40], "manipulated")]
    assert said["model"]["version"] == MODEL.version
    assert base64.b64decode(said["annotated_png"]) == PNG
    [job] = inquiry.page(web.db, limit=10)[0]
    assert said["job_id"] == job.id
    assert (job.origin, job.queue, job.key.split("/")[0], job.key.split("/")[2]) == ("predict", "interactive", "predict", "me _ you.jpg")
    assert web.woken == [(job.id, Stage.EXTRACT, Queue.INTERACTIVE)]


def test_a_verdict_that_memory_was_too_short_to_tell_of_is_there_to_be_fetched(
    web: Web, working: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    working(finish)

    def too_much(data: bytes) -> bytes:
        raise MemoryError

    monkeypatch.setattr(base64, "b64encode", too_much)
    answer = web.client.post("/predict", **upload())

    assert (answer.status_code, answer.content_type, answer.headers["Retry-After"]) == (503, "application/problem+json", "5")
    assert web.client.get(answer.headers["Location"]).get_json()["verdict"] == "manipulated"


def test_past_the_wait_predict_says_where_to_look(make_web: Callable[..., Web], db_url: str) -> None:
    web = make_web(db_url, predict_wait_s=0.05)
    answer = web.client.post("/predict", **upload())
    assert answer.status_code == 202
    assert answer.get_json()["status"] == "queued"
    assert answer.get_json()["id"] == answer.headers["Location"].removeprefix("/v1/jobs/")
    finish(web, answer.get_json()["id"])
    assert web.client.get(answer.headers["Location"]).get_json()["status"] == "done"


def test_more_callers_than_seats_are_answered_at_once(web: Web, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("webhooks.api.predict._seats", threading.BoundedSemaphore(1))
    with predict._seats:
        assert web.client.post("/predict", **upload()).status_code == 202


def test_an_image_that_can_never_be_judged_is_422_with_the_reason(web: Web, working: Callable[..., None]) -> None:
    working(refuse)
    answer = web.client.post("/predict", **upload(b"no image"))
    assert (answer.status_code, answer.content_type) == (422, "application/problem+json")
    assert answer.get_json(force=True)["detail"] == "This is not a picture."
    assert answer.headers["Location"].startswith("/v1/jobs/")


def test_a_job_that_fails_is_500_and_one_that_is_cancelled_409(web: Web, working: Callable[..., None]) -> None:
    def fail(web: Web, job_id: str) -> None:
        ledger.retry(web.db, claimed(web.db, job_id), ValueError("inside"), max_attempts=1, permanent=False, sentence="The worker broke.")

    working(fail)
    answer = web.client.post("/predict", **upload())
    assert (answer.status_code, answer.get_json(force=True)["detail"]) == (500, "The worker broke.")
    working(lambda web, job_id: ledger.cancel(web.db, job_id))
    assert web.client.post("/predict", **upload()).status_code == 409


def test_an_event_that_is_faster_makes_no_second_job(web: Web, working: Callable[..., None], monkeypatch: pytest.MonkeyPatch) -> None:
    """SeaweedFS may notify before it answers the put; then the job is made by the event, and becomes an urgent one."""
    working(finish)
    put = web.store.put

    def put_and_tell(bucket: str, key: str, data: bytes, content_type: str) -> None:
        put(bucket, key, data, content_type)
        if bucket == "inbox":
            ledger.accept(web.db, Upload(bucket, key, etag=web.store.head(bucket, key).etag, sequencer="18a", origin="sqs"))

    monkeypatch.setattr(web.store, "put", put_and_tell)
    assert web.client.post("/predict", **upload()).status_code == 200
    [job] = inquiry.page(web.db, limit=10)[0]
    assert (job.status, job.queue) == ("done", "interactive")
    assert web.woken == [(job.id, Stage.EXTRACT, Queue.INTERACTIVE)]


# -- jobs


def test_an_object_of_the_inbox_gets_one_job_however_often_it_is_asked_for(web: Web) -> None:
    web.store.put("inbox", "a/b ü.jpg", jpeg(), "")
    first = web.client.post("/v1/jobs", json={"key": "a/b ü.jpg"})
    again = web.client.post("/v1/jobs", json={"key": "a/b ü.jpg"})
    assert (first.status_code, again.status_code) == (202, 200)
    assert first.get_json()["id"] == again.get_json()["id"]
    assert first.headers["Location"] == f"/v1/jobs/{first.get_json()['id']}"
    assert first.get_json()["source"]["key"] == "a/b ü.jpg"
    assert len(web.woken) == 1


def test_no_job_is_made_of_what_is_no_image(web: Web) -> None:
    for key in ("notes.txt", "folder/", "a.svg"):
        web.store.put("inbox", key, b"x", "")
        answer = web.client.post("/v1/jobs", json={"key": key})
        assert answer.status_code == 422, key
        assert key in answer.get_json(force=True)["detail"]


def test_a_file_becomes_a_job_and_the_same_idempotency_key_the_same_one(web: Web) -> None:
    first = web.client.post("/v1/jobs", **upload(), headers={"Idempotency-Key": "k1"})
    again = web.client.post("/v1/jobs", **upload(), headers={"Idempotency-Key": "k1"})
    other = web.client.post("/v1/jobs", **upload(), headers={"Idempotency-Key": "k2"})
    none = web.client.post("/v1/jobs", **upload())
    assert [answer.status_code for answer in (first, again, other, none)] == [202, 200, 202, 202]
    assert first.get_json()["id"] == again.get_json()["id"]
    assert len({answer.get_json()["id"] for answer in (first, other, none)}) == 3
    clash = web.client.post("/v1/jobs", **upload(jpeg(seed=1, width=61)), headers={"Idempotency-Key": "k1"})
    assert (clash.status_code, "Idempotency-Key" in clash.get_json(force=True)["detail"]) == (422, True)


def test_an_idempotency_key_knows_its_file_by_the_bytes_not_by_name_and_size(web: Web) -> None:
    data, key = jpeg(), {"Idempotency-Key": "k1"}
    first = web.client.post("/v1/jobs", **upload(data), headers=key)
    clash = web.client.post("/v1/jobs", **upload(data[:-1] + bytes([data[-1] ^ 1])), headers=key)
    assert (clash.status_code, "Idempotency-Key" in clash.get_json(force=True)["detail"]) == (422, True)
    again = web.client.post("/v1/jobs", **upload(data), headers=key)
    assert (again.status_code, again.get_json()["id"]) == (200, first.get_json()["id"])
    assert len(web.store.objects) == len(web.woken) == 1


def test_one_job_is_told_whole(web: Web) -> None:
    job_id = brought_to(web.db, None)
    said = web.client.get(f"/v1/jobs/{job_id}").get_json()
    assert (said["id"], said["status"], said["verdict"], said["score"]) == (job_id, "done", "manipulated", 0.97)
    assert said["source"] == {
        "bucket": "inbox",
        "key": said["source"]["key"],
        "version_id": "",
        "etag": "e1",
        "size": 0,
        "sha256": "f" * 64,
        "width": 640,
        "height": 480,
    }
    [one] = said["faces"]
    assert (one["box"], one["detection"], one["quality"]) == ([0, 2, 30, 40], 0.9, {"size": 30.0, "blur": 55.5, "blocks": 0.25})
    assert said["annotated"] == f"http://127.0.0.1:8080/v1/jobs/{job_id}/annotated.png"
    assert said["created_at"].endswith("Z")
    assert set(said["timings_ms"]) == {"wait", "extract", "classify", "render"}


def test_a_face_that_is_not_judged_says_why_to_programs_and_on_the_page(web: Web) -> None:
    job_id = accepted(web.db)
    assert advance(web.db, claimed(web.db, job_id), [face(0, Reason.COMPRESSED)])
    assert advance(web.db, claimed(web.db, job_id, Stage.RENDER))
    said = web.client.get(f"/v1/jobs/{job_id}").get_json()
    assert (said["verdict"], said["reason"], said["faces"][0]["reason"]) == ("not_applicable", "compressed", "compressed")
    with web.db.write() as session:
        session.execute(update(FaceRow).values(blocks=None))
    assert web.client.get(f"/v1/jobs/{job_id}").get_json()["faces"][0]["quality"]["blocks"] is None
    page = web.client.get(f"/jobs/{job_id}")
    assert page.status_code == 200
    assert "The face is too compressed to judge." in page.text


def test_pages_hold_every_job_once_and_filters_narrow_them(web: Web) -> None:
    ids = [accepted(web.db) for _ in range(5)] + [brought_to(web.db, None) for _ in range(2)]
    seen: list[str] = []
    after = None
    while True:
        page = web.client.get("/v1/jobs", query_string={"limit": 3, **({"after": after} if after else {})}).get_json()
        seen += [job["id"] for job in page["jobs"]]
        after = page["next"]
        if after is None:
            break
    assert sorted(seen) == sorted(ids)
    assert len(web.client.get("/v1/jobs?status=done&verdict=manipulated").get_json()["jobs"]) == 2
    assert web.client.get("/v1/jobs?verdict=authentic").get_json()["jobs"] == []
    assert web.client.get("/v1/jobs?prefix=nowhere/").get_json()["jobs"] == []
    assert len(web.client.get("/v1/jobs?origin=submit").get_json()["jobs"]) == 7


def test_jobs_are_cancelled_and_sent_through_again_only_when_that_makes_sense(web: Web) -> None:
    job_id = accepted(web.db)
    assert web.client.post(f"/v1/jobs/{job_id}/retry").status_code == 409
    assert web.client.post(f"/v1/jobs/{job_id}/cancel").get_json()["status"] == "cancelled"
    assert web.client.post(f"/v1/jobs/{job_id}/cancel").status_code == 409
    again = web.client.post(f"/v1/jobs/{job_id}/retry")
    assert (again.status_code, again.get_json()["status"]) == (202, "queued")
    assert web.woken == [(job_id, Stage.EXTRACT, Queue.BULK)]
    done = brought_to(web.db, None)
    assert web.client.post(f"/v1/jobs/{done}/retry").status_code == 409


# -- pictures


def with_location() -> bytes:
    """A JPEG of a picture whose EXIF tells where it was taken, and a comment in its tail."""
    exif = piexif.dump({"0th": {piexif.ImageIFD.Artist: b"SECRET-ARTIST"}, "GPS": {piexif.GPSIFD.GPSAreaInformation: b"SECRET-PLACE"}})
    made = io.BytesIO()
    piexif.insert(exif, jpeg(), made)
    return made.getvalue() + b"SECRET-TAIL"


def test_pictures_on_pages_are_written_anew(web: Web, working: Callable[..., None]) -> None:
    working(finish)
    job_id = web.client.post("/predict", **upload(with_location())).get_json()["job_id"]
    for path in ("source.jpg", "source.jpg?side=128", "annotated.jpg", "faces/0.jpg"):
        answer = web.client.get(f"/v1/jobs/{job_id}/{path}")
        assert (answer.status_code, answer.mimetype) == (200, "image/jpeg"), path
        assert b"SECRET" not in answer.data
        assert cv2.imdecode(np.frombuffer(answer.data, np.uint8), cv2.IMREAD_COLOR) is not None
        assert "immutable" in answer.headers["Cache-Control"]
    assert web.client.get(f"/v1/jobs/{job_id}/annotated.png").data == PNG
    assert web.client.get(f"/v1/jobs/{job_id}/result.json").get_json() == {"verdict": "manipulated"}
    assert web.client.get(f"/v1/jobs/{job_id}/faces/1.jpg").status_code == 404
    assert web.client.get(f"/v1/jobs/{job_id}/source.jpg?side=7").status_code == 422


def test_a_picture_that_does_not_fit_into_memory_is_shown_when_it_does(
    web: Web, working: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    working(finish)
    job_id = web.client.post("/predict", **upload()).get_json()["job_id"]

    def too_much(data: bytes, limits: images.Limits) -> images.Picture:
        raise MemoryError

    with monkeypatch.context() as short:
        short.setattr(images, "read", too_much)
        for path in ("source.jpg", "annotated.jpg", "faces/0.jpg"):
            answer = web.client.get(f"/v1/jobs/{job_id}/{path}")
            assert (answer.status_code, answer.headers["Retry-After"]) == (503, "5"), path
            assert answer.get_json(force=True)["detail"] == "There is not enough memory for this at the moment; try again shortly."
            assert answer.headers["Cache-Control"] == "no-store"
    assert web.client.get(f"/v1/jobs/{job_id}/source.jpg").status_code == 200


def test_a_picture_that_is_shown_again_is_not_fetched_again(web: Web, working: Callable[..., None]) -> None:
    working(finish)
    job_id = web.client.post("/predict", **upload()).get_json()["job_id"]
    first = web.client.get(f"/v1/jobs/{job_id}/source.jpg")
    web.store.away = StorageError("The object store could not be reached.")
    assert web.client.get(f"/v1/jobs/{job_id}/source.jpg").data == first.data
    assert web.client.get(f"/v1/jobs/{job_id}/source.jpg?side=1280").status_code == 503


def test_what_is_not_there_yet_or_any_more_is_404(web: Web) -> None:
    job_id = web.client.post("/v1/jobs", **upload()).get_json()["id"]
    for path in ("annotated.png", "annotated.jpg", "result.json"):
        assert web.client.get(f"/v1/jobs/{job_id}/{path}").status_code == 404, path
    finish(web, job_id)
    web.store.objects.clear()
    assert web.client.get(f"/v1/jobs/{job_id}/source.jpg").status_code == 404


def test_bytes_that_no_worker_has_read_are_not_shown_and_what_is_no_picture_never(web: Web, working: Callable[..., None]) -> None:
    svg = b'<svg xmlns="http://www.w3.org/2000/svg"><script>alert(1)</script></svg>'
    job_id = web.client.post("/v1/jobs", **upload(svg, "x.jpg")).get_json()["id"]
    assert web.client.get(f"/v1/jobs/{job_id}/source.jpg").status_code == 404
    finish(web, job_id)  # as if a worker had believed it
    answer = web.client.get(f"/v1/jobs/{job_id}/source.jpg")
    assert (answer.status_code, b"<script>" in answer.data) == (422, False)


def test_many_pictures_may_come_in_one_form_of_the_dashboard(make_web: Callable[..., Web], db_url: str) -> None:
    web = make_web(db_url, max_image_bytes=1_000_000)
    client = web.client
    several = [(io.BytesIO(bytes([number]) * 900_000), f"{number}.jpg") for number in range(4)]
    answer = client.post("/upload", data={"csrf": web.csrf(client), "file": several})
    answer.request.environ["wsgi.input"].close()
    assert (answer.status_code, answer.location) == (303, "/")
    assert sorted(job.key.rpartition("/")[2] for job in inquiry.page(web.db, limit=10)[0]) == ["0.jpg", "1.jpg", "2.jpg", "3.jpg"]
    assert {queue for _, _, queue in web.woken} == {Queue.INTERACTIVE}
    assert client.post("/upload", data={"csrf": web.csrf(client)}).status_code == 422


# -- webhooks


def test_an_endpoint_is_registered_tested_rotated_and_removed(web: Web, receivers: Callable[[], Receiver]) -> None:
    receiver = receivers()
    made = web.client.post("/v1/endpoints", json={"url": receiver.url, "description": "ours", "events": ["job.done"]})
    assert made.status_code == 201
    endpoint, secret = made.get_json(), made.get_json()["secret"]
    receiver.answer(secret=secret)
    path = f"/v1/endpoints/{endpoint['id']}"
    assert made.headers["Location"] == path
    listed = web.client.get("/v1/endpoints")
    assert [one["url"] for one in listed.get_json()["endpoints"]] == [receiver.url]
    assert secret not in listed.get_data(as_text=True)
    assert "secret" not in web.client.get(path).get_json()

    tested = web.client.post(f"{path}/test").get_json()
    assert (tested["status"], tested["event_type"], tested["attempts"][0]["status_code"]) == ("delivered", "webhook.test", 204)
    assert receiver.got[-1]["verified"]

    assert web.client.post(f"{path}/rotate").get_json()["secret"] != secret
    assert web.client.post(f"{path}/disable").get_json()["disabled_reason"] == "Disabled by hand."
    assert web.client.post(f"{path}/test").status_code == 422
    assert web.client.post(f"{path}/enable").get_json()["disabled_at"] is None
    again = web.client.post(f"/v1/deliveries/{tested['id']}/redeliver")
    assert (again.status_code, again.get_json()["status"]) == (202, "pending")
    assert web.client.post(f"{path}/replay", json={"since": 0}).get_json() == {"deliveries": 1}
    assert web.client.delete(path).status_code == 204
    assert web.client.get(path).status_code == 404
    assert web.client.get("/v1/deliveries").get_json() == {"deliveries": [], "next": None}


def test_deliveries_are_found_by_job_endpoint_and_status(web: Web, receivers: Callable[[], Receiver]) -> None:
    one, other = (web.client.post("/v1/endpoints", json={"url": receivers().url}).get_json()["id"] for _ in range(2))
    job_id = brought_to(web.db, None)
    brought_to(web.db, None)

    def found(**query: Any) -> list[dict[str, Any]]:
        return list(web.client.get("/v1/deliveries", query_string=query).get_json()["deliveries"])

    assert len(found()) == 8
    assert {delivery["event_type"] for delivery in found(job_id=job_id)} == {"job.started", "job.done"}
    assert len(found(job_id=job_id, endpoint_id=one)) == len(found(job_id=job_id, endpoint_id=other)) == 2
    assert found(status="failed") == []
    page = web.client.get("/v1/deliveries?limit=5").get_json()
    assert len(page["deliveries"]) == 5
    assert len(found(after=page["next"])) == 3


# -- models, queues, figures


def test_models_are_listed_promoted_and_rolled_back(web: Web, tmp_path: Path) -> None:
    for version in ("1", "2"):
        registry.publish(web.db, web.store, web.settings, write_model(tmp_path, version=version))  # type: ignore[arg-type]
    assert web.client.post("/v1/models/green/1/promote").status_code == 200
    assert web.client.post("/v1/models/green/2/promote").get_json() == {"name": "green", "version": "2"}
    assert web.client.post("/v1/models/green/3/promote").status_code == 404
    listed = {one["version"]: one for one in web.client.get("/v1/models").get_json()["models"]}
    assert (listed["1"]["aliases"], listed["2"]["aliases"]) == ([], ["champion"])
    assert listed["2"]["card"]["limits"] == LIMITS
    assert web.client.post("/v1/models/rollback").get_json() == {"name": "green", "version": "1"}


def test_what_no_worker_would_use_is_refused_in_one_sentence(web: Web, tmp_path: Path) -> None:
    for version in ("1", "2"):
        registry.publish(web.db, web.store, web.settings, write_model(tmp_path, version=version))  # type: ignore[arg-type]
        registry.promote(web.db, web.settings, "green", version)
    with web.db.write() as session:
        session.get_one(ModelRow, ("green", "1")).signature = "v1," + "0" * 64
    for path in ("/v1/models/green/1/promote", "/v1/models/rollback"):
        answer = web.client.post(path)
        assert answer.status_code == 409
        assert "no worker would use it: `unmask models sign 1` first." in answer.get_json()["detail"]
    assert registry.champion(web.db) == ("green", "2")


def test_the_limits_of_the_model_are_said_beside_its_scores(web: Web, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write_model(tmp_path, name=MODEL.name, version=MODEL.version)
    registry.publish(web.db, web.store, web.settings, folder)  # type: ignore[arg-type]
    registry.promote(web.db, web.settings, MODEL.name, MODEL.version)
    job_id = brought_to(web.db, None)
    assert web.client.get(f"/v1/jobs/{job_id}").get_json()["model"]["limits"] == LIMITS
    for page in ("/", f"/jobs/{job_id}", "/models"):
        assert LIMITS[0] in web.client.get(page).get_data(as_text=True), page


def test_queues_are_paused_and_resumed(web: Web) -> None:
    job_id = accepted(web.db)
    assert web.client.post("/v1/queues/bulk/pause").get_json() == {"name": "bulk", "paused": True}
    assert web.client.get("/v1/queues").get_json() == {"paused": ["bulk"], "backlog": {"extract": 1}}
    assert ledger.claim(web.db, job_id, Stage.EXTRACT, worker="w", lease_s=5, max_attempts=3) is None
    assert web.client.post("/v1/queues/bulk/resume").get_json() == {"name": "bulk", "paused": False}
    assert ledger.claim(web.db, job_id, Stage.EXTRACT, worker="w", lease_s=5, max_attempts=3) is not None
    for deed in ("pause", "resume"):
        assert web.client.post(f"/v1/queues/none/{deed}").status_code == 422


def test_the_figures_tell_what_stands_in_the_database(web: Web, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("webhooks.metrics.SETTLED_S", 0.0)
    web.client.get("/metrics")  # from here on stage times are counted
    brought_to(web.db, None)
    accepted(web.db)
    said = web.client.get("/metrics").get_data(as_text=True).splitlines()
    for line in (
        'unmask_jobs{status="done"} 1.0',
        'unmask_jobs{status="queued"} 1.0',
        'unmask_backlog_jobs{queue="bulk",stage="extract"} 1.0',
        'unmask_stage_seconds_count{stage="classify"} 1.0',
        'unmask_stage_seconds_sum{stage="classify"} 0.02',
        'unmask_webhook_deliveries{status="pending"} 0.0',
        "unmask_webhook_endpoints_disabled 0.0",
    ):
        assert line in said, line
    assert any(line.startswith("unmask_oldest_queued_seconds ") for line in said)


def test_readiness_names_what_is_down(web: Web, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(health.PROBES, "broker", lambda context: None)
    assert web.client.get("/readyz").get_json() == {"status": "ok", "components": {"database": "ok", "broker": "ok", "storage": "ok"}}
    web.store.away = StorageError("The object store could not be reached.")
    answer = web.client.get("/readyz")
    assert (answer.status_code, answer.content_type) == (503, "application/problem+json")
    said = answer.get_json(force=True)
    assert said["components"] == {"database": "ok", "broker": "ok", "storage": "cannot be reached"}
    assert said["detail"] == "The storage cannot be reached."
    assert web.client.get("/healthz").status_code == 200


# -- the description


def test_every_route_of_the_api_is_described(web: Web) -> None:
    described = web.client.get("/docs/openapi.json").get_json()
    assert described["openapi"].startswith("3.1")
    missing = []
    for rule in web.app.url_map.iter_rules():
        if rule.rule.startswith(("/v1", "/predict")):
            path = rule.rule.replace("<string:", "{").replace("<int:", "{").replace(">", "}")
            for method in (rule.methods or set()) - {"HEAD", "OPTIONS"}:
                operation = described["paths"].get(path, {}).get(method.lower())
                if operation is None or not operation.get("summary"):
                    missing.append(f"{method} {path}")
    assert missing == []
    text = json.dumps(described)
    for part in text.split('"$ref": "#/components/schemas/')[1:]:
        assert part.split('"', 1)[0] in described["components"]["schemas"]


def test_swagger_ui_comes_from_here(web: Web) -> None:
    page = web.client.get("/docs").get_data(as_text=True)
    for path in ("/docs/assets/css/swagger-ui.css", "/docs/assets/js/swagger-ui-bundle.js", "/static/docs.js"):
        assert path in page
        with web.client.get(path) as answer:
            assert answer.status_code == 200
    assert web.client.get("/docs/assets/../plugins.py").status_code == 404
