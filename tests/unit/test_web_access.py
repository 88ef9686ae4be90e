"""Who is let in, and what other sites cannot make a browser do."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from pydantic import SecretStr

from tests.fixtures.web import Web
from webhooks import roles

KEY = "the-api-key-of-these-tests"
BEARER = {"Authorization": f"Bearer {KEY}"}


@pytest.fixture
def locked(make_web: Callable[..., Web], sqlite_url: str) -> Web:
    return make_web(sqlite_url, api_key=SecretStr(KEY))


def test_every_route_says_which_role_it_asks_for(web: Web) -> None:
    there = {rule.endpoint for rule in web.app.url_map.iter_rules()}
    named = roles.OPEN | roles.OWN_TOKEN | set(roles.NEEDS)
    assert not there - named, "webhooks/roles.py does not name these"
    assert not named - there - {"static"}, "webhooks/roles.py names routes that are gone"
    assert set(roles.NEEDS) >= roles.BY_INBOX
    assert not (roles.OPEN | roles.OWN_TOKEN) & set(roles.NEEDS)


def test_the_key_opens_the_api(locked: Web) -> None:
    assert locked.client.get("/v1/jobs", headers=BEARER).status_code == 200
    assert locked.client.get("/metrics", headers=BEARER).status_code == 200
    assert locked.client.get("/healthz").status_code == 200


def test_a_person_logs_in_once_and_lands_where_they_wanted_to_go(locked: Web) -> None:
    client = locked.client
    first = client.get("/jobs/x?y=1", headers={"Accept": "text/html"})
    assert first.location == "/login?next=/jobs/x?y%3D1"
    token = locked.csrf(client, first.location)
    assert client.post("/login", data={"csrf": token, "key": "wrong", "next": "/endpoints"}).status_code == 401
    done = client.post("/login", data={"csrf": token, "key": KEY, "next": "/endpoints"})
    assert (done.status_code, done.location) == (303, "/endpoints")
    cookie = done.headers["Set-Cookie"]
    assert "HttpOnly" in cookie
    assert "SameSite=Lax" in cookie
    assert client.get("/endpoints").status_code == 200
    assert client.get("/v1/jobs").status_code == 200, "pictures on pages come from the API"
    assert client.post("/v1/models/rollback").status_code == 401, "a session is not the key"
    client.post("/logout", data={"csrf": locked.csrf(client)})
    assert client.get("/endpoints").status_code == 302


@pytest.mark.parametrize(
    "where", ["//evil.example", "https://evil.example", "/\\evil.example", "\\\\evil.example", "javascript:alert(1)", ""]
)
def test_the_login_leads_nowhere_else(locked: Web, where: str) -> None:
    client = locked.client
    done = client.post("/login", data={"csrf": locked.csrf(client, "/login"), "key": KEY, "next": where})
    assert done.location == "/"


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"Sec-Fetch-Site": "cross-site"}, 403),
        ({"Sec-Fetch-Site": "same-site"}, 403),
        ({"Origin": "https://evil.example"}, 403),
        ({"Origin": "null"}, 403),
        ({"Sec-Fetch-Site": "same-origin"}, 409),
        ({"Origin": "http://localhost"}, 409),
        ({}, 409),
    ],
)
def test_pages_of_other_sites_change_nothing(web: Web, headers: dict[str, str], status: int) -> None:
    assert web.client.post("/v1/models/rollback", headers=headers).status_code == status


def test_names_that_are_not_ours_get_nothing(web: Web, make_web: Callable[..., Web], sqlite_url: str) -> None:
    for path, accept in (("/v1/jobs", "*/*"), ("/", "text/html"), ("/nothing", "text/html")):
        assert web.client.get(path, headers={"Host": "rebound.example", "Accept": accept}).status_code == 400
    for host in ("localhost:8080", "127.0.0.1:8080"):
        assert web.client.get("/v1/jobs", headers={"Host": host}).status_code == 200, host
    public = make_web(sqlite_url, public_url="https://unmask.example", api_key=SecretStr(KEY))
    assert public.client.get("/v1/jobs", headers={"Host": "unmask.example", **BEARER}).status_code == 200
    container = make_web(sqlite_url, web_host="0.0.0.0", api_key=SecretStr(KEY))  # noqa: S104
    assert container.client.get("/v1/jobs", headers={"Host": "web:8080", **BEARER}).status_code == 200
    named = make_web(sqlite_url, web_host="0.0.0.0", trusted_hosts="web, unmask.example", api_key=SecretStr(KEY))  # noqa: S104
    for host, status in (("web:8080", 200), ("unmask.example", 200), ("localhost", 200), ("rebound.example", 400)):
        assert named.client.get("/v1/jobs", headers={"Host": host, **BEARER}).status_code == status, host


def test_no_page_has_script_or_style_of_its_own(web: Web) -> None:
    for path in ("/", "/endpoints", "/models", "/docs"):
        response = web.client.get(path)
        policy = response.headers["Content-Security-Policy"]
        assert "script-src 'self'" in policy
        assert "unsafe" not in policy
        html = response.get_data(as_text=True)
        assert " style=" not in html
        assert "<style" not in html
        assert " onclick=" not in html
        assert "<script>" not in html
        assert "//" not in html.replace("https://www.standardwebhooks.com", "").replace("https://example.com/webhooks", ""), "no other host"
        assert response.headers["X-Content-Type-Options"] == "nosniff"


def test_a_cookie_over_https_is_for_https_only(make_web: Callable[..., Web], sqlite_url: str) -> None:
    web = make_web(sqlite_url, public_url="https://unmask.example", api_key=SecretStr(KEY))
    cookie = web.client.get("/login", headers={"Host": "unmask.example"}).headers["Set-Cookie"]
    assert "Secure" in cookie


@pytest.mark.parametrize("headers", [{}, {"Authorization": "Bearer anything"}, {"Authorization": "Bearer "}])
@pytest.mark.parametrize("by", ["Forwarded", "X-Forwarded-For", "X-Forwarded-Host", "X-Real-Ip"])
def test_an_open_server_lets_in_nobody_through_a_proxy(web: Web, headers: dict[str, str], by: str) -> None:
    assert web.client.get("/v1/keys", headers=headers).status_code == 200
    assert web.client.get("/v1/keys", headers={**headers, by: "for=192.0.2.1"}).status_code == 401


def test_who_comes_to_an_open_server_through_a_proxy_sees_the_door_and_is_not_sent_in_circles(web: Web) -> None:
    assert web.client.get("/login").status_code == 302
    through = web.client.get("/login", headers={"X-Forwarded-For": "192.0.2.1"})
    assert through.status_code == 200
    assert "Nobody can come in yet" in through.get_data(as_text=True)


def test_an_open_server_that_cannot_check_its_name_is_open_under_names_of_this_machine_only(
    make_web: Callable[..., Web], sqlite_url: str
) -> None:
    client = make_web(sqlite_url, web_host="::1").client
    assert client.get("/v1/keys", headers={"Host": "[::1]:8080"}).status_code == 200
    assert client.get("/v1/keys", headers={"Host": "rebound.example:8080"}).status_code == 401
