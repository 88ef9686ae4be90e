"""Logging in, being counted, being noted: the doors of the web process, on SQLite."""

from __future__ import annotations

import io
import re
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from argon2 import PasswordHasher
from flask.testing import FlaskClient
from pydantic import SecretStr
from redis import Redis
from werkzeug.test import TestResponse

from pipeline import audit, keys, ledger, passes, users
from pipeline.access import Role
from pipeline.database import Database
from tests.fixtures.jobs import upload
from tests.fixtures.web import Web, jpeg
from webhooks import roles

PASSWORD = "correct horse battery"


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.users._hasher", lambda: PasswordHasher(time_cost=1, memory_cost=64, parallelism=1))
    users._nobodys.cache_clear()


@pytest.fixture
def web(make_web: Callable[..., Web], sqlite_url: str) -> Web:
    """A server that knows Ann, an operator, and Bob, an admin."""
    web = make_web(sqlite_url)
    users.add(web.db, "ann", PASSWORD, Role.OPERATOR, actor="cli")
    users.add(web.db, "bob", PASSWORD, Role.ADMIN, actor="cli")
    return web


def log_in(web: Web, name: str = "ann", password: str = PASSWORD, client: FlaskClient | None = None, **more: str) -> TestResponse:
    client = client or web.client
    return client.post("/login", data={"csrf": web.csrf(client, "/login"), "name": name, "password": password, **more})


def came_in(web: Web, name: str = "ann") -> FlaskClient:
    client = web.client
    assert log_in(web, name, client=client).status_code == 303
    return client


def deeds(db: Database) -> list[tuple[str, str, str]]:
    rows, _ = audit.page(db, limit=500)
    return [(row.actor, row.action, row.subject) for row in reversed(rows)]


# -- sessions


def test_a_person_comes_in_by_name_and_password(web: Web) -> None:
    client = web.client
    wanted = client.get("/models", headers={"Accept": "text/html"})
    assert wanted.location == "/login?next=/models"
    done = client.post("/login", data={"csrf": web.csrf(client, wanted.location), "name": " Ann ", "password": PASSWORD, "next": "/models"})
    assert (done.status_code, done.location) == (303, "/models")
    page = client.get("/models")
    assert page.status_code == 200
    assert ">ann</a>" in page.get_data(as_text=True)
    assert client.get("/v1/me").get_json() == {"actor": "user:ann", "role": "operator", "inboxes": []}


@pytest.mark.parametrize(
    ("name", "password"), [("ann", "incorrect horse"), ("ann", ""), ("nobody", PASSWORD), ("", ""), ("ann\0", PASSWORD)]
)
def test_whoever_is_wrong_learns_nothing(web: Web, name: str, password: str) -> None:
    refused = log_in(web, name, password)
    assert refused.status_code == 401
    assert "The name or the password is wrong." in refused.get_data(as_text=True)
    assert password not in refused.get_data(as_text=True) or not password


def test_a_failed_attempt_keeps_no_password_that_was_typed_as_a_name(web: Web) -> None:
    log_in(web, "ann", "wrong")
    log_in(web, "my dear secret passphrase", "x")
    assert deeds(web.db)[-2:] == [("anonymous", "session.refuse", "user:ann"), ("anonymous", "session.refuse", "-")]


def test_the_page_shows_what_one_may_do_only(web: Web) -> None:
    job = ledger.accept(web.db, upload()).job_id
    users.add(web.db, "eve", PASSWORD, Role.VIEWER, actor="cli")
    seen = {name: came_in(web, name).get("/").get_data(as_text=True) for name in ("eve", "ann", "bob")}
    for name, cancels, decides in (("eve", False, False), ("ann", True, False), ("bob", True, True)):
        assert (f"/jobs/{job}/cancel" in seen[name]) == cancels, name
        assert ('action="/upload"' in seen[name]) == cancels, name
        assert ('href="/users"' in seen[name]) == decides, name


@pytest.mark.parametrize(
    "how",
    [
        lambda db: users.set_password(db, "ann", PASSWORD + "2", actor="cli"),
        lambda db: users.change(db, "ann", role=Role.VIEWER, actor="cli"),
        lambda db: users.switch(db, "ann", on=False, actor="cli"),
        lambda db: users.end_sessions(db, "ann", actor="cli"),
    ],
    ids=["password", "role", "turned off", "logged out"],
)
def test_a_session_ends_at_once_when_its_user_changes(web: Web, how: Callable[[Database], Any]) -> None:
    client = came_in(web)
    assert client.get("/").status_code == 200
    how(web.db)
    assert client.get("/").status_code == 302
    assert client.get("/v1/me").status_code == 401


def test_a_session_ends_after_a_week_however_much_it_is_used(web: Web, monkeypatch: pytest.MonkeyPatch) -> None:
    client = came_in(web)
    week = time.time() + 7 * 86_400
    monkeypatch.setattr("webhooks.sessions.time.time", lambda: week - 60)
    assert client.get("/v1/me").status_code == 200
    monkeypatch.setattr("webhooks.sessions.time.time", lambda: week + 60)
    assert client.get("/v1/me").status_code == 401


def test_a_cookie_that_somebody_made_up_is_no_session(web: Web, make_web: Callable[..., Web], sqlite_url: str) -> None:
    other = make_web(sqlite_url, secret_key=SecretStr("another installation's secret key, as long"))
    stranger = other.client
    with stranger.session_transaction() as session:
        session.update({"user": "bob", "generation": 0, "since": time.time()})
    [cookie] = [stranger.get_cookie("unmask")]
    assert cookie is not None
    client = web.client
    client.set_cookie("unmask", cookie.value)
    assert client.get("/v1/me").status_code == 401


def test_logging_in_begins_a_new_session(web: Web) -> None:
    client = web.client
    before = web.csrf(client, "/login")
    log_in(web, client=client)
    assert web.csrf(client) != before


def test_a_key_opens_the_dashboard_until_it_is_revoked(web: Web) -> None:
    row, key = keys.add(web.db, "a", Role.OPERATOR, actor="cli")
    client = web.client
    done = client.post("/login", data={"csrf": web.csrf(client, "/login"), "key": f" {key} "})
    assert done.status_code == 303
    assert client.get("/endpoints").status_code == 200
    with client.session_transaction() as session:
        assert key not in repr(dict(session)), "the cookie is signed, not encrypted"
    keys.revoke(web.db, row.id, actor="cli")
    assert client.get("/endpoints").status_code == 302


def test_one_changes_ones_own_password_and_nobody_ones_own_role(web: Web) -> None:
    elsewhere, client = came_in(web, "bob"), came_in(web, "bob")
    token = web.csrf(client)
    for old, new in (("wrong", PASSWORD + "2"), (PASSWORD, "short")):
        assert client.post("/account/password", data={"csrf": token, "old": old, "new": new}).status_code == 422
    assert client.post("/account/password", data={"csrf": token, "old": PASSWORD, "new": PASSWORD + "2"}).status_code == 200
    assert client.get("/account").status_code == 200, "this session goes on"
    assert elsewhere.get("/account").status_code == 302, "and no other"
    token = web.csrf(client)
    for path in ("/users/bob/change", "/users/bob/disable"):
        assert client.post(path, data={"csrf": token, "role": "viewer"}).status_code == 422
    assert users.get(web.db, "bob").role == "admin"


def test_keys_and_users_are_made_on_the_dashboard(web: Web) -> None:
    client = came_in(web, "bob")
    token = web.csrf(client)
    page = client.post("/keys", data={"csrf": token, "name": "scanner", "role": "reviewer", "days": "30"}).get_data(as_text=True)
    found = re.search(r"um_[0-9a-f]{16}_[A-Za-z0-9_-]{43}", page)
    assert found is not None
    who = keys.known(web.db, found[0])
    assert who is not None
    assert who.role is Role.REVIEWER
    assert found[0] not in client.get("/keys").get_data(as_text=True)
    assert client.post("/users", data={"csrf": token, "name": "eve", "password": PASSWORD, "role": "viewer"}).status_code == 303
    assert client.post("/users/eve/change", data={"csrf": token, "role": "operator", "inboxes": "default"}).status_code == 303
    assert users.get(web.db, "eve").inboxes == ["default"]
    assert client.post("/users/eve/password", data={"csrf": token, "password": "short"}).status_code == 422
    assert client.post("/users", data={"csrf": token, "name": "eve", "password": PASSWORD, "role": "viewer"}).status_code == 422
    log = client.get("/audit").get_data(as_text=True)
    for deed in ("session.begin", "key.add", "user.add", "user.change"):
        assert deed in log
    assert "user.add" not in client.get("/audit?action=key").get_data(as_text=True)


# -- everything is noted


def test_whoever_changes_something_leaves_a_note(web: Web) -> None:
    _, key = keys.add(web.db, "a", Role.ADMIN, actor="cli")
    headers = {"Authorization": f"Bearer {key}"}
    who = f"key:{key.split('_')[1]}"
    made = web.client.post("/v1/jobs", headers=headers, data={"file": (io.BytesIO(jpeg()), "a.jpg")}).get_json()["id"]
    assert web.client.post(f"/v1/jobs/{made}/cancel", headers=headers).status_code == 200
    assert web.client.post(f"/v1/jobs/{made}/retry", headers=headers).status_code == 202
    assert web.client.post("/v1/queues/bulk/pause", headers=headers).status_code == 200
    assert web.client.post("/v1/queues/nowhere/pause", headers=headers).status_code == 422
    wanted = [("job.submit", made), ("job.cancel", made), ("job.retry", made), ("queue.pause", "bulk")]
    assert [(action, subject) for actor, action, subject in deeds(web.db) if actor == who] == wanted


def test_a_process_that_dies_right_after_a_deed_has_noted_it(web: Web) -> None:
    headers = {"Authorization": f"Bearer {passes.issue(web.settings)}"}
    job = ledger.accept(web.db, upload()).job_id
    before = len(deeds(web.db))
    web.app.after_request_funcs.clear()  # such a process runs none of them
    for address in (f"/v1/jobs/{job}/cancel", f"/v1/jobs/{job}/retry", "/v1/queues/bulk/pause", "/v1/queues/bulk/resume"):
        assert web.client.post(address, headers=headers).status_code in (200, 202)
    wanted = [("job.cancel", job), ("job.retry", job), ("queue.pause", "bulk"), ("queue.resume", "bulk")]
    assert deeds(web.db)[before:] == [("cli", *deed) for deed in wanted]


def test_a_deed_is_noted_once(web: Web) -> None:
    _, key = keys.add(web.db, "a", Role.ADMIN, actor="cli")
    before = len(deeds(web.db))
    web.client.post("/v1/keys", headers={"Authorization": f"Bearer {key}"}, json={"name": "b", "role": "viewer"})
    assert [action for _, action, _ in deeds(web.db)[before:]] == ["key.add"]


def test_the_command_line_has_a_pass_and_its_own_name(web: Web) -> None:
    token = passes.issue(web.settings)
    assert web.client.get("/v1/me", headers={"Authorization": f"Bearer {token}"}).get_json()["actor"] == "cli"


# -- counting


def test_passwords_are_not_tried_for_long(make_web: Callable[..., Web], sqlite_url: str) -> None:
    web = make_web(sqlite_url, login_limit="3/minute")
    users.add(web.db, "ann", PASSWORD, Role.ADMIN, actor="cli")
    statuses = [log_in(web, "ann", "wrong").status_code for _ in range(4)]
    assert statuses == [401, 401, 401, 429]
    held = log_in(web, "ann", PASSWORD)
    assert held.status_code == 429, "not even with the right one"
    assert 1 <= int(held.headers["Retry-After"]) <= 61


def test_a_session_is_not_good_for_trying_its_users_password(make_web: Callable[..., Web], sqlite_url: str) -> None:
    web = make_web(sqlite_url, login_limit="3/minute")
    users.add(web.db, "ann", PASSWORD, Role.ADMIN, actor="cli")
    client = came_in(web, "ann")
    form = {"csrf": web.csrf(client), "old": "wrong", "new": PASSWORD + "2"}
    assert [client.post("/account/password", data=form).status_code for _ in range(4)] == [422, 422, 422, 429]
    assert client.get("/account").status_code == 200


def test_one_name_is_not_tried_from_many_addresses(make_web: Callable[..., Web], sqlite_url: str) -> None:
    web = make_web(sqlite_url, login_limit="3/minute", proxies=1)
    users.add(web.db, "ann", PASSWORD, Role.ADMIN, actor="cli")

    def knock(name: str, number: int) -> int:
        client = web.client
        headers = {"X-Forwarded-For": f"203.0.113.{number}"}
        token = client.get("/login", headers=headers).get_data(as_text=True).split('name="csrf" value="', 1)[1].split('"', 1)[0]
        return client.post("/login", headers=headers, data={"csrf": token, "name": name, "password": "wrong"}).status_code

    assert [knock("ann", number) for number in range(4)] == [401, 401, 401, 429]
    assert knock("bob", 9) == 401


def test_a_key_is_counted_and_told_when_to_come_back(make_web: Callable[..., Web], sqlite_url: str) -> None:
    web = make_web(sqlite_url, rate_limit="5/minute")
    (_, one), (_, other) = (keys.add(web.db, name, Role.VIEWER, actor="cli") for name in "ab")
    statuses = [web.client.get("/v1/jobs", headers={"Authorization": f"Bearer {one}"}).status_code for _ in range(7)]
    assert statuses == [200] * 5 + [429] * 2
    held = web.client.get("/v1/me", headers={"Authorization": f"Bearer {one}"})
    assert held.status_code == 429, "whatever it asks for"
    assert held.content_type == "application/problem+json"
    assert 1 <= int(held.headers["Retry-After"]) <= 61
    assert web.client.get("/v1/me", headers={"Authorization": f"Bearer {other}"}).status_code == 200


def test_an_open_server_counts_nobody(make_web: Callable[..., Web], sqlite_url: str) -> None:
    web = make_web(sqlite_url, rate_limit="1/minute")
    assert [web.client.get("/v1/me").status_code for _ in range(3)] == [200] * 3


def test_an_address_that_guesses_keys_is_held_up_and_its_neighbours_are_not(
    make_web: Callable[..., Web], sqlite_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    web = make_web(sqlite_url)
    monkeypatch.setattr("webhooks.limits.UNKNOWN", "4 per minute")
    from webhooks.app import create_app

    web.app = create_app(web.settings)
    _, key = keys.add(web.db, "a", Role.VIEWER, actor="cli")
    guesses = [web.client.get("/v1/jobs", headers={"Authorization": f"Bearer {number}"}).status_code for number in range(6)]
    assert guesses == [401] * 4 + [429] * 2
    assert web.client.get("/v1/jobs", headers={"Authorization": f"Bearer {key}"}).status_code == 200
    assert web.client.get("/healthz").status_code == 200


def test_processes_count_together_through_the_broker(make_web: Callable[..., Web], sqlite_url: str, valkey_url: str) -> None:
    one, other = (make_web(sqlite_url, rate_limit="4/minute", broker_url=valkey_url) for _ in range(2))
    _, key = keys.add(one.db, "a", Role.VIEWER, actor="cli")
    headers = {"Authorization": f"Bearer {key}"}
    assert [web.client.get("/v1/me", headers=headers).status_code for web in (one, other) * 3] == [200] * 4 + [429] * 2
    with Redis.from_url(valkey_url) as broker:
        assert not [name for name in broker.keys("*") if key.split("_", 2)[2].encode() in name]


def test_while_the_broker_is_away_each_counts_by_itself_and_says_so(
    make_web: Callable[..., Web], sqlite_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    web = make_web(sqlite_url, rate_limit="2/minute")
    _, key = keys.add(web.db, "a", Role.VIEWER, actor="cli")
    headers = {"Authorization": f"Bearer {key}"}
    assert [web.client.get("/v1/me", headers=headers).status_code for _ in range(3)] == [200, 200, 429]
    assert [record.getMessage() for record in caplog.records if record.name == "flask-limiter" and record.levelname == "WARNING"]


# -- sizes and shapes


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (b'{"url": "' + b"x" * 1_000_001 + b'"}', 413),
        (b"[" * 100_000 + b"]" * 100_000, 400),
        (b'{"a":' * 100_000 + b"1" + b"}" * 100_000, 400),
        (b"1" * 100_000, 422),
        (b"\xff\xfe", 422),
        (b'"\\ud800"', 422),
        (b'{"url": "\\u0000"}', 422),
        (b"null", 422),
        (b"", 422),
    ],
)
def test_a_body_that_is_none_of_ours_is_refused(web: Web, body: bytes, status: int) -> None:
    headers = {"Authorization": f"Bearer {passes.issue(web.settings)}", "Content-Type": "application/json"}
    refused = web.client.post("/v1/endpoints", headers=headers, data=body)
    assert refused.status_code == status, refused.get_data(as_text=True)
    assert refused.content_type == "application/problem+json"


def test_a_body_is_refused_for_its_size_alone(make_web: Callable[..., Web], sqlite_url: str) -> None:
    web = make_web(sqlite_url, webhook_allow_http=True, webhook_allow_private=True)
    headers = {"Authorization": f"Bearer {passes.issue(web.settings)}", "Content-Type": "application/json"}
    body = b'{"url": "http://127.0.0.1:9/hook"}'

    def status(size: int) -> int:
        return web.client.post("/v1/endpoints", headers=headers, data=body.ljust(size)).status_code

    assert [status(size) for size in (len(body), 1_000_000, 1_000_001)] == [201, 201, 413]


def searches(web: Web, headers: dict[str, str], value: str) -> Iterator[tuple[str, str]]:
    """Method and address of every search for `value`: by each filter and id of the API's description, and on the pages."""
    for path, operations in web.client.get("/docs/openapi.json", headers=headers).get_json()["paths"].items():
        for method, operation in operations.items():
            given = operation.get("parameters", [])
            numbers = {one["name"] for one in given if one["schema"].get("type") == "integer"}
            address = re.sub(r"{(\w+)}", lambda found: "0" if found[1] in numbers else value, path)  # noqa: B023
            yield from [(method, address)] if value in address else []
            yield from ((method, f"{address}?{one['name']}={value}") for one in given if one["in"] == "query")
    for rule in web.app.url_map.iter_rules():
        if rule.endpoint.startswith("dashboard.") and "GET" in (rule.methods or ()) and rule.arguments:
            yield "get", re.sub("<[^>]*>", value, rule.rule)
    for filter in ("/?prefix", "/?after", "/audit?actor", "/audit?action", "/audit?subject", "/audit?before", "/trainings?after"):
        yield "get", f"{filter}={value}"


def test_nothing_is_found_by_a_value_that_no_database_can_hold(make_web: Callable[..., Web], db_url: str) -> None:
    """PostgreSQL takes no NUL, not even to look for it; SQLite does, and finds nothing."""
    web = make_web(db_url, rate_limit="")
    headers = {"Authorization": f"Bearer {passes.issue(web.settings)}"}
    body = {"label": "authentic", "since": "2026-01-01T00:00:00Z"}
    asked = sorted(set(searches(web, headers, "a%00b")))
    assert len(asked) > 80
    for method, address in asked:
        answer = web.client.open(address, method=method.upper(), headers=headers, **({"json": body} if method in ("post", "patch") else {}))
        said = f"{method} {address}: {answer.status_code} {answer.get_data(as_text=True)[:300]}"
        assert answer.status_code < 500, said
        assert answer.status_code not in (401, 403), said
        if method == "get" and address.startswith("/v1/") and answer.status_code == 200:
            assert [] in answer.get_json().values(), said


def test_every_role_is_needed_for_something() -> None:
    assert {roles.needed("a route that nobody named")} == {Role.ADMIN}
    assert set(roles.NEEDS.values()) == set(Role)
