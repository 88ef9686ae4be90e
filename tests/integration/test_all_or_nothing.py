"""A request that is refused has changed nothing, and what was done before one failed is noted: the web process, on SQLite."""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any

import pytest
from argon2 import PasswordHasher

from pipeline import audit, inboxkeeping, inquiry, passes, users
from pipeline.access import Role
from pipeline.inboxes import Inbox
from pipeline.storage import StorageError
from tests.fixtures.jobs import brought_to
from tests.fixtures.web import Web, jpeg

PASSWORD = "correct horse battery"
HUGE = "99999999999999999999"
"""More than any integer that SQLite or PostgreSQL can hold."""


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.users._hasher", lambda: PasswordHasher(time_cost=1, memory_cost=64, parallelism=1))
    users._nobodys.cache_clear()


@pytest.fixture
def small(make_web: Callable[..., Web], sqlite_url: str) -> Web:
    """A server that takes images of at most 100 kB."""
    return make_web(sqlite_url, max_image_bytes=100_000)


def send(web: Web, *files: tuple[bytes, str], **more: str) -> Any:
    client = web.client
    form = {"csrf": web.csrf(client), "file": [(io.BytesIO(data), name) for data, name in files], **more}
    answer = client.post("/upload", data=form)
    answer.request.environ["wsgi.input"].close()
    return answer


def jobs(web: Web) -> list[str]:
    return sorted(row.id for row in inquiry.page(web.db, limit=10)[0])


def submitted(web: Web) -> list[str]:
    return sorted(row.subject for row in audit.page(web.db, action="job.submit", limit=10)[0])


# -- several images in one form


@pytest.mark.parametrize(
    ("third", "name", "status", "said"),
    [
        (b"", "c.jpg", 422, "The file c.jpg is empty."),
        (b"x" * 100_001, "c.jpg", 413, "The file c.jpg has more than the 100,000 bytes that are accepted."),
        (jpeg(), "c.jpg", 422, "No job is made of c.jpg: it does not end in .png."),
    ],
)
def test_one_bad_image_among_several_is_refused_before_any_has_a_job(small: Web, third: bytes, name: str, status: int, said: str) -> None:
    inboxkeeping.add(small.db, small.settings, Inbox("press", "press-bucket", suffixes=(".png",)), by="cli")
    inbox, good = ("press", "png") if "png" in said else ("default", "jpg")

    answer = send(small, (jpeg(), f"a.{good}"), (jpeg(seed=1), f"b.{good}"), (third, name), inbox=inbox)

    assert (answer.status_code, answer.get_json(force=True)["detail"]) == (status, said)
    assert (small.store.objects, jobs(small), small.woken) == ({}, [], [])


def test_each_image_of_a_form_is_noted_once(small: Web) -> None:
    assert send(small, (jpeg(), "a.jpg"), (jpeg(seed=1), "b.jpg")).status_code == 303
    assert len(jobs(small)) == 2
    assert submitted(small) == jobs(small)


def test_what_was_made_before_the_store_went_away_is_noted(small: Web, monkeypatch: pytest.MonkeyPatch) -> None:
    put = small.store.put

    def put_two(*what: Any) -> None:
        if len(small.store.objects) == 2:
            raise StorageError("The object store could not be reached.")
        put(*what)

    monkeypatch.setattr(small.store, "put", put_two)
    assert send(small, *((jpeg(seed=number), f"{number}.jpg") for number in range(3))).status_code == 503
    assert len(jobs(small)) == 2
    assert submitted(small) == jobs(small)


# -- several changes of a user


@pytest.mark.parametrize(
    "refused",
    [
        {"password": PASSWORD + "2", "inboxes": ["typo"]},
        {"password": PASSWORD + "2", "inboxes": ["typo"], "role": "admin", "enabled": False},
        {"password": "aaaaaaaaaaaaaaaa", "role": "admin", "enabled": False},
    ],
)
def test_a_change_of_a_user_that_is_refused_has_changed_nothing(web: Web, refused: dict[str, Any]) -> None:
    users.add(web.db, "ann", PASSWORD, Role.VIEWER, actor="cli")
    headers = {"Authorization": f"Bearer {passes.issue(web.settings)}"}
    before, deeds = vars(users.get(web.db, "ann")), len(audit.page(web.db, limit=100)[0])

    assert web.client.patch("/v1/users/ann", headers=headers, json=refused).status_code == 422

    after = vars(users.get(web.db, "ann"))
    assert {name: after[name] for name in after if name[0] != "_"} == {name: before[name] for name in before if name[0] != "_"}
    assert len(audit.page(web.db, limit=100)[0]) == deeds
    assert web.client.patch("/v1/users/nobody", headers=headers, json=refused).status_code == 404


def test_a_user_is_changed_in_one_go(web: Web) -> None:
    users.add(web.db, "ann", PASSWORD, Role.VIEWER, actor="cli")
    headers = {"Authorization": f"Bearer {passes.issue(web.settings)}"}
    change = {"password": PASSWORD + "2", "inboxes": ["default"], "role": "operator", "enabled": False}

    answer = web.client.patch("/v1/users/ann", headers=headers, json=change)

    assert (answer.status_code, answer.json["role"], answer.json["inboxes"]) == (200, "operator", ["default"])
    assert answer.json["disabled_at"]
    assert [row.action for row in audit.page(web.db, action="user", limit=3)[0]] == ["user.disable", "user.change", "user.password"]
    assert web.client.patch("/v1/users/ann", headers=headers, json={"enabled": True}).json["disabled_at"] is None
    assert users.authenticated(web.db, "ann", PASSWORD + "2")


# -- a face that no database can look for


@pytest.mark.parametrize("index", [HUGE, str(2**31)])
def test_a_face_of_an_index_that_no_database_can_hold_is_not_there(make_web: Callable[..., Web], db_url: str, index: str) -> None:
    web = make_web(db_url)
    job, client = brought_to(web.db, None), web.client
    token = web.csrf(client, f"/jobs/{job}")

    for method, body in (("POST", {"label": "authentic"}), ("DELETE", None), ("GET", None)):
        assert client.open(f"/v1/jobs/{job}/faces/{index}/label", method=method, json=body).status_code in (404, 422), method
    for what in ("label", "pin"):
        answer = client.post(f"/jobs/{job}/faces/{index}/{what}", data={"csrf": token, "label": "authentic"})
        assert answer.status_code == 404, what
