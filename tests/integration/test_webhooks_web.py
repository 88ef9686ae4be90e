"""Webhooks by the API and on the dashboard: filters, replay, the log with headers and answers."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import pytest
from sqlalchemy import update

from pipeline import audit
from pipeline.database import DeliveryRow, EndpointRow, now
from tests.fixtures.jobs import brought_to
from tests.fixtures.web import Receiver, Web
from webhooks.outbound import deliver_due, drain

Start = Callable[..., Receiver]


@pytest.fixture
def web(make_web: Callable[..., Web], sqlite_url: str) -> Web:
    return make_web(sqlite_url, webhook_allow_http=True, webhook_allow_private=True)


def registered(web: Web, receiver: Receiver, **wanted: Any) -> dict[str, Any]:
    answer = web.client.post("/v1/endpoints", json={"url": receiver.url, **wanted})
    assert answer.status_code == 201, answer.get_json()
    found: dict[str, Any] = answer.get_json()
    receiver.answer(secret=found["secret"], status=503, headers={"Retry-After": "60", "X-Server": "nginx"}, body="<b>come back later</b>")
    return found


def test_the_log_of_the_api_tells_everything_of_a_delivery(web: Web, receivers: Start) -> None:
    receiver = receivers()
    endpoint = registered(web, receiver, events=["job.done"], inbox="default")
    job_id = brought_to(web.db, None)
    deliver_due(web.db, web.settings)

    found = web.client.get("/v1/deliveries", query_string={"endpoint_id": endpoint["id"], "event_type": "job.done"}).get_json()
    (listed,) = found["deliveries"]
    assert listed["event"] is None, "the list is kept short"
    one = web.client.get(f"/v1/deliveries/{listed['id']}").get_json()
    (attempt,) = one["attempts"]
    assert one["event"]["data"]["job_id"] == job_id
    assert one["event"]["data"]["url"] == f"{web.settings.url}/v1/jobs/{job_id}"
    assert attempt["request_headers"]["webhook-signature"] == receiver.got[0]["signature"]
    assert attempt["response_headers"]["X-Server"] == "nginx"
    assert (attempt["status_code"], attempt["response"]) == (503, "<b>come back later</b>")
    shown = web.client.get(f"/v1/endpoints/{endpoint['id']}").get_json()
    assert shown["throttled_until"] is not None
    assert (shown["inbox"], shown["events"]) == ("default", ["job.done"])
    assert "secret" not in shown


def test_by_the_api_filters_change_and_ranges_are_replayed(web: Web, receivers: Start) -> None:
    receiver = receivers()
    endpoint = registered(web, receiver, events=["job.failed"])
    brought_to(web.db, None)
    path = f"/v1/endpoints/{endpoint['id']}"

    changed = web.client.patch(path, json={"events": ["job.done"]})
    assert (changed.status_code, changed.get_json()["events"], changed.get_json()["description"]) == (200, ["job.done"], "")
    assert web.client.patch(path, json={"events": ["job.lost"]}).status_code == 422
    assert web.client.patch(path, json={"url": "http://elsewhere.example"}).status_code == 422
    assert web.client.post(f"{path}/replay", json={"since": time.time() - 60}).get_json() == {"deliveries": 1}
    assert web.client.post(f"{path}/replay", json={"since": time.time() + 60}).get_json() == {"deliveries": 0}
    for wrong in ({}, {"since": "then"}, {"since": -1}, {"since": 1e300}, {"since": 0, "before": 1}):
        assert web.client.post(f"{path}/replay", json=wrong).status_code == 422, wrong
    assert web.client.post("/v1/endpoints/none/replay", json={"since": 0}).status_code == 404
    assert web.client.post("/v1/endpoints", json={"url": receiver.url, "inbox": "nowhere"}).status_code == 422
    deeds = [one.action for one in audit.page(web.db, subject=endpoint["id"], limit=20)[0]]
    assert deeds == ["endpoint.replay", "endpoint.replay", "endpoint.change", "endpoint.add"]


def test_the_dashboard_shows_headers_and_answers_and_sends_again(web: Web, receivers: Start) -> None:
    receiver = receivers()
    endpoint = registered(web, receiver)
    job_id = brought_to(web.db, None)
    deliver_due(web.db, web.settings)
    assert drain(5.0)
    client = web.client
    page = client.get(f"/endpoints/{endpoint['id']}").get_data(as_text=True)
    assert "It asked to be left alone until" in page
    (link,) = {part.split('"', 1)[0] for part in page.split('href="/deliveries/')[1:] if "job.done" in part[:120]}

    shown = client.get(f"/deliveries/{link}").get_data(as_text=True)
    (signature,) = (one["signature"] for one in receiver.got if '"job.done"' in one["body"])
    for part in (
        "webhook-signature",
        signature,
        "X-Server",
        "nginx",
        "&lt;b&gt;come back later&lt;/b&gt;",
        job_id,
        "503",
    ):
        assert part in shown, part
    assert "<b>come" not in shown
    receiver.answer(secret=endpoint["secret"])
    again = client.post(f"/deliveries/{link}/redeliver", data={"csrf": web.csrf(client), "to": "delivery"})
    assert (again.status_code, again.location) == (303, f"/deliveries/{link}")
    assert "204" in client.get(f"/deliveries/{link}").get_data(as_text=True)
    assert client.get("/deliveries/none").status_code == 404


def test_the_dashboard_changes_filters_and_replays(web: Web, receivers: Start) -> None:
    endpoint = registered(web, receivers(), events=["job.failed"])
    brought_to(web.db, None)
    client, path = web.client, f"/endpoints/{endpoint['id']}"
    csrf = web.csrf(client)
    assert client.post(f"{path}/change", data={"csrf": csrf, "events": ["job.done"], "description": "archive"}).status_code == 303
    page = client.get(path).get_data(as_text=True)
    assert "Wants job.done." in page
    assert 'value="archive"' in page
    replayed = client.post(f"{path}/replay", data={"csrf": csrf, "span": "3600", "which": "undelivered"})
    assert "1 event is on the way again." in client.get(replayed.location).get_data(as_text=True)
    assert client.post(f"{path}/replay", data={"csrf": csrf, "span": "nonsense"}).status_code == 303
    assert client.post(f"{path}/replay", data={"csrf": "wrong"}).status_code == 403
    with web.db.write() as session:
        session.execute(update(DeliveryRow).values(status="delivered"))
        gone = {"disabled_at": now(), "failing_since": now(), "disabled_reason": "The receiver answered 410 Gone."}
        session.execute(update(EndpointRow).values(**gone))
    assert "The receiver answered 410 Gone." in client.get("/").get_data(as_text=True), "the notice is on every page"
    assert client.post(f"{path}/replay", data={"csrf": csrf}).status_code == 422


def test_a_new_receivers_page_leads_to_how_to_verify(web: Web, receivers: Start) -> None:
    client = web.client
    page = client.post("/endpoints", data={"csrf": web.csrf(client), "url": receivers().url}).get_data(as_text=True)
    assert "whsec_" in page
    assert 'href="/docs/webhooks"' in page
    assert client.get("/docs/webhooks").status_code == 200
