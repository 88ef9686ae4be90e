"""Trainings and schedules by API and on the dashboard's pages."""

from __future__ import annotations

import re
from typing import Any

import pytest

from pipeline import classroom, schedules, trainings
from pipeline.storage import StorageError
from tests.fixtures.trainings import asked, claimed
from tests.fixtures.web import Web
from webhooks.dashboard import curves


@pytest.fixture(autouse=True)
def woken(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The trainings that were woken, in place of messages."""
    found: list[str] = []
    monkeypatch.setattr("webhooks.lessons.wake_training", lambda training_id: found.append(training_id) is None)
    return found


def look(step: int, **more: Any) -> dict[str, Any]:
    told = {"event": "look", "stage": 0, "size": 96, "step": step, "steps": 100, "seen": 32 * step, "seconds": 9.0 * step}
    return {**told, "loss": 1.0 / step, "val_loss": 1.1 / step, "auc": 0.6, "auc_warp": 0.6, "images_per_s": 12.0, "eta_s": 90, **more}


def test_asked_for_it_is_queued_and_woken(web: Web, woken: list[str]) -> None:
    answer = web.client.post("/v1/trainings", json={"dataset": "s3://faces/", "params": {"steps": 5, "start": "champion"}})

    assert answer.status_code == 202
    made = answer.get_json()
    assert answer.headers["Location"] == made["url"] == f"{web.settings.url}/v1/trainings/{made['id']}"
    assert woken == [made["id"]]
    assert (made["status"], made["dataset"], made["device"]) == ("queued", "s3://faces/", "cpu")
    assert made["params"] == {"steps": 5, "start": "champion"}
    assert web.client.get(f"/v1/trainings/{made['id']}").get_json()["history"][0]["what"] == "asked"


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ({"params": {"out": "/etc"}}, "out"),
        ({"params": {"pairs": 0}}, "pairs"),
        ({"params": {"steps": 5, "hours": 1}}, "hours or steps"),
        ({"device": "tpu"}, "device"),
        ({"params": {"stages": "--faces=/etc"}}, "stages"),
    ],
)
def test_what_cannot_be_asked_for_is_said(web: Web, body: dict[str, Any], said: str, woken: list[str]) -> None:
    answer = web.client.post("/v1/trainings", json=body)
    assert answer.status_code == 422
    assert said in answer.get_json()["detail"]
    assert woken == []


def test_one_shows_its_curve_and_pages_lead_on(web: Web) -> None:
    first, second = asked(web.db), asked(web.db)
    claim = claimed(web.db, first)
    assert trainings.told(web.db, claim, [look(5), look(10)])

    one = web.client.get(f"/v1/trainings/{first}").get_json()
    assert (one["status"], one["progress"]["step"], one["progress"]["images_per_s"]) == ("running", 10, 12.0)
    assert [point["step"] for point in one["curve"]] == [5, 10]
    page = web.client.get("/v1/trainings?limit=1").get_json()
    assert [row["id"] for row in page["trainings"]] == [second]
    assert [row["id"] for row in web.client.get(f"/v1/trainings?after={page['next']}").get_json()["trainings"]] == [first]
    assert [row["id"] for row in web.client.get("/v1/trainings?status=running").get_json()["trainings"]] == [first]
    assert web.client.get("/v1/trainings/trn_none").status_code == 404


def test_cancelled_and_sent_on(web: Web, woken: list[str]) -> None:
    training_id = asked(web.db)
    assert web.client.post(f"/v1/trainings/{training_id}/retry").status_code == 409
    assert web.client.post(f"/v1/trainings/{training_id}/cancel").get_json()["status"] == "cancelled"
    again = web.client.post(f"/v1/trainings/{training_id}/cancel")
    assert (again.status_code, again.get_json()["detail"]) == (409, "The training is cancelled already.")
    assert web.client.post(f"/v1/trainings/{training_id}/retry").get_json()["status"] == "queued"
    assert woken == [training_id]


def test_a_broker_that_is_away_loses_no_training(web: Web, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("webhooks.lessons.wake_training", lambda training_id: False)
    made = web.client.post("/v1/trainings", json={}).get_json()
    assert trainings.due(web.db, wake_after_s=60, limit=5) == [made["id"]]


def test_a_schedule_is_made_changed_run_and_removed(web: Web, woken: list[str]) -> None:
    made = web.client.post(
        "/v1/schedules", json={"name": "weekly", "cron": "0 3 * * 0", "timezone": "Europe/Berlin", "params": {"hours": 2}}
    )
    assert (made.status_code, made.headers["Location"]) == (201, "/v1/schedules/weekly")
    assert made.get_json()["words"] == "At 03:00 on Sunday"
    assert web.client.post("/v1/schedules", json={"name": "weekly", "cron": "0 3 * * 0"}).status_code == 422

    changed = web.client.patch("/v1/schedules/weekly", json={"enabled": False, "missed": "skip"}).get_json()
    assert (changed["enabled"], changed["missed"], changed["next_at"], changed["params"]) == (False, "skip", None, {"hours": 2})

    run = web.client.post("/v1/schedules/weekly/run")
    assert (run.status_code, run.get_json()["schedule"], run.get_json()["slot"]) == (202, "weekly", None)
    assert woken == [run.get_json()["id"]]
    assert web.client.delete("/v1/schedules/weekly").status_code == 204
    assert web.client.get("/v1/schedules/weekly").status_code == 404
    assert web.client.get("/v1/schedules").get_json() == {"schedules": []}


@pytest.mark.parametrize("body", [{"name": "../x", "cron": "0 3 * * 0"}, {"name": "x", "cron": "often"}, {"name": "x"}])
def test_what_is_no_schedule_is_said(web: Web, body: dict[str, Any]) -> None:
    assert web.client.post("/v1/schedules", json=body).status_code == 422


class TestPages:
    def test_the_list_shows_what_runs_and_what_came_of_the_others(self, web: Web) -> None:
        running, failed = asked(web.db, dataset="s3://faces/2026/"), asked(web.db)
        claim = claimed(web.db, running)
        assert trainings.told(web.db, claim, [look(5), look(10)])
        trainings.retry(web.db, claimed(web.db, failed), "No <b>faces</b>.", permanent=True, max_attempts=3, first_wait_s=1)

        html = web.client.get("/trainings").get_data(as_text=True)

        assert html.count('<svg class="curve"') == 2
        assert "No &lt;b&gt;faces&lt;/b&gt;." in html
        assert "12.0" in html
        fragment = web.client.get("/trainings/fragment")
        assert fragment.headers["X-Unfinished"] == "1"
        assert re.search(r'style="|<script(?! src)', html) is None, "the policy forbids both"

    def test_asked_for_by_form_it_leads_to_its_page(self, web: Web, woken: list[str]) -> None:
        client = web.client
        form = {"csrf": web.csrf(client, "/trainings"), "dataset": "", "device": "cpu", "hours": "1.5", "params": "pairs=4 start=champion"}
        answer = client.post("/trainings", data=form)
        assert answer.status_code == 303
        assert answer.headers["Location"] == f"/trainings/{woken[0]}"
        row = classroom.one(web.db, woken[0])
        assert row is not None
        assert row.params == {"hours": 1.5, "pairs": 4, "start": "champion"}
        assert "Training from" in client.get(answer.headers["Location"]).get_data(as_text=True)

    def test_a_wrong_option_is_said_beside_the_form_which_keeps_what_was_typed(self, web: Web) -> None:
        client = web.client
        form = {"csrf": web.csrf(client, "/trainings"), "dataset": "/my/faces", "hours": "1", "params": "out=/etc"}
        answer = client.post("/trainings", data=form)
        assert answer.status_code == 422
        html = answer.get_data(as_text=True)
        assert "no option out" in html
        assert 'value="/my/faces"' in html

    def test_a_schedule_is_made_and_changed_by_form(self, web: Web) -> None:
        client = web.client
        csrf = web.csrf(client, "/trainings")
        form = {
            "csrf": csrf,
            "name": "weekly",
            "cron": "0 3 * * 0",
            "timezone": "Asia/Tokyo",
            "dataset": "",
            "missed": "latest",
            "params": "",
        }
        assert client.post("/schedules", data=form).status_code == 303
        assert client.post("/schedules", data={**form, "name": "bad", "timezone": "Mars"}).status_code == 422
        assert client.post("/schedules/weekly", data={**form, "cron": "0 5 * * 0", "on_drift": "on"}).status_code == 303
        assert client.post("/schedules/weekly/disable", data={"csrf": csrf}).status_code == 303
        row = schedules.get(web.db, "weekly")
        assert (row.cron, row.on_drift, row.enabled, row.next_at) == ("0 5 * * 0", True, False, None)
        assert 'value="0 5 * * 0"' in client.get("/trainings?edit=weekly").get_data(as_text=True)
        assert client.post("/schedules/weekly/remove", data={"csrf": csrf}).status_code == 303
        assert schedules.every(web.db) == []

    def test_a_form_without_its_token_changes_nothing(self, web: Web, woken: list[str]) -> None:
        assert web.client.post("/trainings", data={"dataset": ""}).status_code == 403
        assert woken == []


class TestCurves:
    def test_what_the_trainer_tells_cannot_break_the_drawing(self) -> None:
        strange = [look(1, loss=float("nan"), auc_warp="<script>"), look(2, loss=float("inf")), look(3, val_loss=None), look(4, seen="x")]
        drawing = str(curves.drawn(strange))
        assert "script" not in drawing
        assert "nan" not in drawing
        assert "inf" not in drawing.replace("infinity", "")

    def test_two_looks_make_a_line_and_one_makes_none(self) -> None:
        assert str(curves.drawn([look(1)])) == ""
        assert str(curves.spark([look(1)])) == ""
        assert "polyline" in str(curves.drawn([look(1), look(2)]))
        assert "polyline" in str(curves.spark([look(1), look(2)]))

    def test_a_new_stage_is_marked(self) -> None:
        drawing = str(curves.drawn([look(1), look(2), look(1, stage=1, seen=96), look(2, stage=1, seen=128)]))
        assert drawing.count('class="stage"') == 2, "one in each panel"


def test_storage_plays_no_part(web: Web) -> None:
    web.store.away = StorageError("away")
    assert web.client.get("/trainings").status_code == 200
