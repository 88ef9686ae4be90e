"""Every route x every caller x whose it is, made from the application's own list of routes: what is added is covered.

Leaves the matrix in `build/access-matrix.md`, and holds the one in the guide against it.
"""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from flask.testing import FlaskClient
from pydantic import SecretStr
from sqlalchemy import select, update
from werkzeug.routing import AnyConverter, IntegerConverter, Rule
from werkzeug.test import TestResponse

from pipeline import feedback, keys, ledger, registry, users
from pipeline.access import Role
from pipeline.database import DeliveryRow, ModelRow
from pipeline.jobs import Stage
from pipeline.tables.access import ApiKeyRow
from pipeline.tables.inboxes import InboxRow
from pipeline.tables.learning import DecisionRow, ShadowRow
from tests.fixtures.jobs import MODEL, claimed, face, judged, upload
from tests.fixtures.web import EVENTS_TOKEN, Web, jpeg
from webhooks import endpoints, roles

ROOT = Path(__file__).resolve().parents[2]
DENIED = ("That takes the role", "That concerns the whole server")
PASSWORD = "correct horse battery"
MARK = "of-the-south"
_number = itertools.count()


@dataclass(frozen=True)
class Route:
    """One method of one rule."""

    rule: Rule
    method: str

    @property
    def endpoint(self) -> str:
        return str(self.rule.endpoint)

    @property
    def page(self) -> bool:
        return self.endpoint.startswith("dashboard.")

    @property
    def blanks(self) -> list[str]:
        """The arguments that name a thing."""
        converters = self.rule._converters
        return [name for name in sorted(self.rule.arguments) if not isinstance(converters[name], AnyConverter | IntegerConverter)]

    def path(self, filling: str = "x") -> str:
        converters = self.rule._converters
        values: dict[str, Any] = dict.fromkeys(self.rule.arguments, filling)
        for name in self.rule.arguments:
            if isinstance(converters[name], IntegerConverter):
                values[name] = 0
            elif isinstance(converters[name], AnyConverter):
                values[name] = sorted(converters[name].items)[0]
        built = self.rule.build(values)
        assert built is not None
        return built[1]

    def __str__(self) -> str:
        return f"{self.method} {self.rule.rule}"


def routes(web: Web) -> Iterator[Route]:
    """All of them, by path."""
    for rule in sorted(web.app.url_map.iter_rules(), key=lambda rule: rule.rule):
        for method in sorted((rule.methods or set()) - {"HEAD", "OPTIONS"}):
            yield Route(rule, method)


@dataclass
class House:
    """An application with two inboxes, and callers of every kind: a key and a user for each role, bound and not."""

    web: Web
    keys: dict[tuple[Role, str], str] = field(default_factory=dict)

    def ask(self, route: Route, role: Role, inbox: str = "", filling: str = "x", **extra: Any) -> TestResponse:
        """As a program with a key; on the dashboard as a person with a session."""
        client = self.client(role, inbox) if route.page else self.web.client
        if not route.page:
            extra["headers"] = {"Authorization": f"Bearer {self.keys[role, inbox]}"}
        if route.page and route.method != "GET":
            extra["data"] = {"csrf": "token", **extra.get("data", {})}
        return client.open(route.path(filling), method=route.method, **extra)

    def client(self, role: Role, inbox: str = "") -> FlaskClient:
        client = self.web.client
        with client.session_transaction() as session:
            session.update({"user": self.name(role, inbox), "generation": 0, "since": 9e9, "csrf": "token"})
        return client

    @staticmethod
    def name(role: Role, inbox: str) -> str:
        return f"{role.value}-{inbox or 'all'}"


@pytest.fixture
def house(make_web: Callable[..., Web], db_url: str, monkeypatch: pytest.MonkeyPatch) -> House:
    monkeypatch.setattr("pipeline.users._hash", lambda password: "$argon2id$not-to-be-used")
    web = make_web(db_url, api_key=SecretStr("the bootstrap key"), predict_wait_s=0, webhook_allow_http=True, webhook_allow_private=True)
    with web.db.write() as session:
        for name in ("north", "south"):
            session.add(InboxRow(name=name, bucket=name, created_at=0.0))
    house = House(web)
    for role in Role:
        for inbox in ("", "north"):
            house.keys[role, inbox] = keys.add(web.db, house.name(role, inbox), role, inboxes=[inbox] if inbox else [], actor="cli")[1]
            users.add(web.db, house.name(role, inbox), PASSWORD, role, inboxes=[inbox] if inbox else [], actor="cli")
    return house


@pytest.fixture
def db_url(sqlite_url: str) -> str:
    """One database: which roles are let in does not depend on it."""
    return sqlite_url


def denied(response: TestResponse) -> bool:
    return response.status_code == 403 and any(said in response.get_data(as_text=True) for said in DENIED)


def unknown(response: TestResponse) -> bool:
    return response.status_code == 401 or (response.status_code == 302 and response.location.startswith("/login"))


def ended(web: Web, how: str) -> str:
    """A key that was good once."""
    row, key = keys.add(web.db, how, Role.ADMIN, actor="cli")
    if how == "revoked":
        keys.revoke(web.db, row.id, actor="cli")
    else:
        with web.db.write() as session:
            session.execute(update(ApiKeyRow).where(ApiKeyRow.id == row.id).values(expires_at=1.0))
    return key


def test_every_route_lets_in_whom_it_says_and_nobody_else(house: House) -> None:
    matrix: list[tuple[Route, dict[str, str]]] = []
    for route in routes(house.web):
        cells: dict[str, str] = {}
        for role in Role:
            for inbox in ("", "north"):
                response = house.ask(route, role, inbox)
                allowed = route.endpoint in roles.OPEN or (
                    role.includes(roles.needed(route.endpoint)) and (not inbox or route.endpoint in roles.BY_INBOX)
                )
                who = f"{route} as {house.name(role, inbox)}: {response.status_code} {response.get_data(as_text=True)[:300]}"
                if route.endpoint in roles.OWN_TOKEN:
                    assert response.status_code == 401, who
                    allowed = False
                else:
                    assert denied(response) != allowed, who
                    assert route.endpoint in roles.OPEN or not unknown(response), who
                assert response.status_code != 500, who
                cells[house.name(role, inbox)] = "yes" if allowed else "no"
        matrix.append((route, cells))
    written = write(matrix)
    assert len(matrix) > 60
    guide = (ROOT / ".readme" / "access-matrix.md").read_text()
    assert written in guide, "the guide is out of date: put the table of build/access-matrix.md into it"


def test_nobody_comes_in_without_being_known(house: House) -> None:
    tokens = ["", "wrong", ended(house.web, "revoked"), ended(house.web, "expired"), EVENTS_TOKEN, house.keys[Role.ADMIN, ""][:-1]]
    for route in routes(house.web):
        if route.endpoint in roles.OPEN | roles.OWN_TOKEN:
            continue
        for token in tokens:
            headers = {"Authorization": f"Bearer {token}"} if token else {}
            response = house.web.client.open(route.path(), method=route.method, headers=headers)
            assert unknown(response), f"{route} with {token[:12]!r}: {response.status_code}"


def test_a_session_is_good_for_reading_and_for_pages_only(house: House) -> None:
    for route in routes(house.web):
        if route.page or route.endpoint in roles.OPEN | roles.OWN_TOKEN:
            continue
        response = house.client(Role.ADMIN).open(route.path(), method=route.method)
        assert unknown(response) == (route.method != "GET"), str(route)


def test_every_form_of_a_page_wants_its_token(house: House) -> None:
    seen = 0
    for route in routes(house.web):
        if route.page and route.method != "GET":
            seen += 1
            for token in ({}, {"csrf": ""}, {"csrf": "guess"}):
                response = house.client(Role.ADMIN).open(route.path(), method=route.method, data=token)
                assert response.status_code == 403, str(route)
                assert "too old or not ours" in response.get_data(as_text=True)
    assert seen > 20


def test_no_page_offers_what_one_may_not_do(house: House) -> None:
    things = in_the_south(house.web)
    north = ledger.accept(house.web.db, upload("of-the-north.jpg"), inbox="north").job_id
    finder = house.web.app.url_map.bind("localhost")
    offered = dict.fromkeys(Role, 0)
    for route in routes(house.web):
        if not route.page or route.method != "GET" or route.endpoint == "dashboard.static":
            continue
        for role, inbox in itertools.product(Role, ("", "north")):
            for thing in (north,) if inbox else (things.waiting, things.endpoint):
                if not route.blanks and thing == things.endpoint:
                    continue
                page = house.ask(route, role, inbox, thing)
                if page.status_code != 200:
                    continue
                for method, path in re.findall(r'<form[^>]*method="(\w+)"[^>]*action="([^"?]+)', page.get_data(as_text=True)):
                    endpoint, _ = finder.match(path, method=method.upper())
                    allowed = role.includes(roles.needed(endpoint)) and (not inbox or endpoint in roles.BY_INBOX)
                    assert allowed or endpoint in roles.OPEN, f"{route} offers {house.name(role, inbox)} {path}"
                    offered[role] += method == "post"
    assert 0 < offered[Role.VIEWER] < offered[Role.OPERATOR] < offered[Role.ADMIN]


# -- whose it is


@dataclass(frozen=True)
class Things:
    """What somebody in the south has: a job that is done, one that is not, a receiver, a delivery to it, and the inbox itself."""

    done: str
    waiting: str
    failed: str
    endpoint: str
    delivery: str

    def __iter__(self) -> Iterator[str]:
        return iter((self.done, self.waiting, self.failed, self.endpoint, self.delivery, "south"))


def in_the_south(web: Web) -> Things:
    number = next(_number)
    endpoint, _ = endpoints.register(web.db, web.settings, f"http://127.0.0.1:1/{MARK}/{number}", inbox="south")
    done, waiting, failed = (
        ledger.accept(web.db, upload(f"{MARK}/{number}-{name}.jpg"), inbox="south").job_id for name in ("done", "waiting", "failed")
    )
    picture = jpeg(seed=number)
    claim = claimed(web.db, done)
    web.store.put(claim.upload.bucket, claim.upload.key, picture, "")
    etag = web.store.head(claim.upload.bucket, claim.upload.key).etag
    ledger.extracted(web.db, claim, sha256="f" * 64, width=60, height=40, faces=[face()], milliseconds=1.0)
    ledger.classified(web.db, claimed(web.db, done, Stage.CLASSIFY), [judged()], MODEL, 1.0)
    png = cv2.imencode(".png", np.full((40, 60, 3), number % 200, np.uint8))[1].tobytes()
    for name, data in (("annotated.png", png), ("result.json", b"{}")):
        web.store.put("results", f"{done}/{name}", data, "")
    rendering = claimed(web.db, done, Stage.RENDER)
    ledger.finished(web.db, rendering, annotated_key=f"{done}/annotated.png", result_key=f"{done}/result.json", milliseconds=1.0)
    ledger.refuse(web.db, claimed(web.db, failed), "This is not a picture.")
    with web.db.write() as session:
        from pipeline.database import JobRow

        session.execute(update(JobRow).where(JobRow.id == done).values(etag=etag))
        delivery = session.scalars(select(DeliveryRow).where(DeliveryRow.endpoint_id == endpoint.id).limit(1)).one()
    return Things(done, waiting, failed, endpoint.id, delivery.id)


def by_inbox(web: Web) -> list[Route]:
    return [route for route in routes(web) if route.endpoint in roles.BY_INBOX]


NOBODYS = {"models.listing", "dashboard.model_list", "events.schema"}
"""Routes whose arguments, or lists, name what belongs to nobody."""


BODIES: dict[str, dict[str, Any]] = {
    "endpoints.change": {"json": {"description": "mine now"}},
    "endpoints.replay": {"json": {"since": 0}},
    "dashboard.change_endpoint": {"data": {"description": "mine now"}},
    "dashboard.replay_endpoint": {"data": {"span": "86400", "which": "all"}},
    "labels.label": {"json": {"label": "authentic"}},
    "dashboard.label_face": {"data": {"label": "authentic"}},
}
"""What a route has to be sent, so that it looks for the thing at all."""


def test_what_is_another_inboxs_is_not_there(house: House) -> None:
    seen = 0
    for route in by_inbox(house.web):
        if not route.blanks or route.endpoint in NOBODYS:
            continue
        seen += 1
        things = in_the_south(house.web)
        admin = keys.known(house.web.db, house.keys[Role.ADMIN, ""])
        assert admin is not None
        feedback.label(house.web.db, admin, things.done, 0, "authentic")
        for thing in things:
            theirs = house.ask(route, Role.ADMIN, "north", thing, **BODIES.get(route.endpoint, {}))
            nothing = house.ask(route, Role.ADMIN, "north", "x" * len(thing), **BODIES.get(route.endpoint, {}))
            assert theirs.status_code == nothing.status_code == 404, f"{route} of {thing}: {theirs.status_code}, {nothing.status_code}"
            assert theirs.data.replace(thing.encode(), b"") == nothing.data.replace(b"x" * len(thing), b""), f"{route} tells them apart"
            assert MARK not in theirs.get_data(as_text=True)
        ours = [house.ask(route, Role.ADMIN, "", thing, **BODIES.get(route.endpoint, {})).status_code for thing in things]
        assert set(ours) - {404, 422}, f"{route} finds nothing of these at all, so that no leak would be seen: {ours}"
    assert seen > 15


def test_lists_show_what_is_ones_own_only(house: House) -> None:
    things = in_the_south(house.web)
    mine = ledger.accept(house.web.db, upload("of-the-north.jpg"), inbox="north").job_id
    showing = set()
    for route in by_inbox(house.web):
        if route.method != "GET" or route.blanks or route.endpoint in NOBODYS:
            continue
        theirs = house.ask(route, Role.ADMIN, "north").get_data(as_text=True)
        everything = house.ask(route, Role.ADMIN).get_data(as_text=True)
        for secret in (MARK, *things):
            assert secret not in theirs, f"{route} shows {secret}"
        if MARK in everything:
            showing.add(route.endpoint)
        if route.endpoint in ("jobs.listing", "dashboard.index", "dashboard.jobs_fragment"):
            assert mine in theirs
    assert {"jobs.listing", "dashboard.index", "dashboard.jobs_fragment", "endpoints.listing", "deliveries.listing"} <= showing


def test_the_counts_are_of_ones_own_jobs(house: House) -> None:
    in_the_south(house.web)
    html = house.client(Role.VIEWER, "north").get("/").get_data(as_text=True)
    assert "<b>0</b>All" in html
    assert "<b>3</b>All" in house.client(Role.VIEWER).get("/").get_data(as_text=True)


def test_images_go_into_ones_own_inbox(house: House) -> None:
    import io

    bound = {"Authorization": f"Bearer {house.keys[Role.REVIEWER, 'north']}"}
    for path in ("/predict", "/v1/jobs"):
        made = house.web.client.post(path, headers=bound, data={"file": (io.BytesIO(jpeg()), "a.jpg")})
        assert made.status_code == 202
        assert made.get_json()["source"]["bucket"] == "north"
        elsewhere = house.web.client.post(path, headers=bound, data={"file": (io.BytesIO(jpeg()), "a.jpg"), "inbox": "south"})
        assert elsewhere.status_code == 404
    page = house.client(Role.REVIEWER, "north")
    assert page.post("/upload", data={"csrf": "token", "file": (io.BytesIO(jpeg()), "a.jpg")}).status_code == 303
    assert page.post("/upload", data={"csrf": "token", "inbox": "south", "file": (io.BytesIO(jpeg()), "a.jpg")}).status_code == 404
    assert {bucket for bucket, _ in house.web.store.objects} == {"north"}
    assert len(house.web.client.get("/v1/jobs", headers=bound).get_json()["jobs"]) == 3


def test_whoever_has_several_inboxes_chooses_one_on_the_page(house: House) -> None:
    import io

    users.add(house.web.db, "reviewer-two", PASSWORD, Role.REVIEWER, inboxes=["north", "south"], actor="cli")
    with house.web.db.write() as session:
        session.add(InboxRow(name="shut", bucket="shut", enabled=False, created_at=0.0))
    offered = {
        inbox: re.findall(
            r'<option value="(default|north|south|shut)">', house.client(Role.REVIEWER, inbox).get("/").get_data(as_text=True)
        )
        for inbox in ("", "north", "two")
    }
    assert offered == {"": ["default", "north", "south"], "north": [], "two": ["north", "south"]}
    page = house.client(Role.REVIEWER, "two")
    assert page.post("/upload", data={"csrf": "token", "inbox": "south", "file": (io.BytesIO(jpeg()), "a.jpg")}).status_code == 303
    assert page.post("/upload", data={"csrf": "token", "file": (io.BytesIO(jpeg()), "a.jpg")}).status_code == 422
    assert {bucket for bucket, _ in house.web.store.objects} == {"south"}


def test_an_object_of_another_inbox_is_not_there_either(house: House) -> None:
    with house.web.db.write() as session:
        session.add(InboxRow(name="cellar", bucket="north", prefix="cellar/", created_at=0.0))
    for bucket, key in (("south", "a.jpg"), ("north", "cellar/a.jpg"), ("north", "mine.jpg"), ("inbox", "a.jpg")):
        house.web.store.put(bucket, key, jpeg(), "")
    bound = {"Authorization": f"Bearer {house.keys[Role.REVIEWER, 'north']}"}

    def ask(**body: str) -> int:
        return house.web.client.post("/v1/jobs", headers=bound, json=body).status_code

    assert ask(key="mine.jpg") == 202
    assert ask(key="cellar/a.jpg") == 404
    assert ask(key="a.jpg") == ask(key="nothing.jpg") == 404
    assert ask(key="a.jpg", inbox="south") == ask(key="a.jpg", inbox="default") == ask(key="a.jpg", inbox="nowhere") == 404
    whole = {"Authorization": f"Bearer {house.keys[Role.REVIEWER, '']}"}
    made = house.web.client.post("/v1/jobs", headers=whole, json={"key": "cellar/a.jpg", "inbox": "north"})
    assert made.status_code == 202
    assert house.web.client.get(made.location, headers=bound).status_code == 404, "it came through the cellar, whoever named which"


def test_an_idempotency_key_of_somebody_elses_finds_nothing(house: House) -> None:
    import io

    def send(key: str) -> str:
        headers = {"Authorization": f"Bearer {key}", "Idempotency-Key": "1"}
        return str(house.web.client.post("/v1/jobs", headers=headers, data={"file": (io.BytesIO(jpeg()), "a.jpg")}).get_json()["id"])

    first, other = house.keys[Role.REVIEWER, ""], house.keys[Role.OPERATOR, ""]
    assert send(first) == send(first) != send(other)


def test_an_open_server_is_this_machines_only(make_web: Callable[..., Web], db_url: str) -> None:
    assert make_web(db_url).client.get("/v1/me").get_json()["actor"] == "anonymous"
    for elsewhere in ({"web_host": "0.0.0.0"}, {"web_host": "192.0.2.1"}, {"public_url": "https://unmask.example"}):  # noqa: S104
        web = make_web(db_url, **elsewhere)
        host = {"Host": "unmask.example"}
        answer = web.client.get("/v1/me", headers=host)
        assert answer.status_code == 401
        assert "unmask keys add" in answer.get_json()["detail"]
        assert web.client.get("/healthz", headers=host).status_code == 200
    for header in ("Forwarded", "X-Forwarded-For", "X-Real-IP"):
        assert make_web(db_url).client.get("/v1/me", headers={header: "203.0.113.9"}).status_code == 401, "it came through a proxy"


def test_the_first_to_be_known_closes_the_server_and_must_be_an_admin(make_web: Callable[..., Web], db_url: str) -> None:
    web = make_web(db_url)
    for role, inboxes in (("viewer", []), ("operator", []), ("admin", ["default"])):
        refused = web.client.post("/v1/keys", json={"name": "a", "role": role, "inboxes": inboxes})
        assert refused.status_code == 422
        assert "admin of the whole server" in refused.get_json()["detail"]
    made = web.client.post("/v1/keys", json={"name": "a", "role": "admin"}).get_json()
    assert web.client.get("/v1/me").status_code == 401
    headers = {"Authorization": f"Bearer {made['key']}"}
    assert web.client.get("/v1/me", headers=headers).get_json() == {"actor": f"key:{made['id']}", "role": "admin", "inboxes": []}
    web.client.post(f"/v1/keys/{made['id']}/revoke", headers=headers)
    assert web.client.get("/v1/me").status_code == web.client.get("/v1/me", headers=headers).status_code == 401


def write(matrix: list[tuple[Route, dict[str, str]]]) -> str:
    """As a table for people; returns it as well."""
    columns = [role.value for role in Role]
    lines = [
        "| route | nobody | " + " | ".join(columns) + " | bound to inboxes |",
        "| --- " * (len(columns) + 3) + "|",
    ]
    for route, cells in matrix:
        if route.endpoint in roles.OWN_TOKEN:
            allowed = ["events token"] + [""] * (len(columns) + 1)
        else:
            bound = "own only" if cells["admin-north"] == "yes" else "no"
            opened = route.endpoint in roles.OPEN
            allowed = ["yes" if opened else "no", *(cells[f"{role}-all"] for role in columns), "yes" if opened else bound]
        lines.append(f"| `{route}` | " + " | ".join(allowed) + " |")
    folder = ROOT / "build"
    folder.mkdir(exist_ok=True)
    table = "\n".join(lines) + "\n"
    (folder / "access-matrix.md").write_text(table)
    return table


def test_what_the_gate_and_the_shadow_say_of_everybodys_uploads_is_not_for_those_bound_to_an_inbox(house: House) -> None:
    said = "1 of 1 pinned verdicts would flip: south/private.jpg, face 1"
    with house.web.db.write() as session:
        card = json.loads((registry.shipped()[-1] / "card.json").read_text())
        session.add(ModelRow(name=card["name"], version=card["version"], files={}, card=card, created_at=1.0))
        check = {"name": "pinned", "passed": False, "sentence": said}
        told: dict[str, Any] = {"checks": [check], "figures": {}, "picture": "", "dataset": "", "training_id": ""}
        session.add(DecisionRow(id="dec_1", name=card["name"], version=card["version"], outcome="waiting", created_at=1.0, **told))
        session.add(ShadowRow(id="shd_1", name=card["name"], version=card["version"], share=0.1, started_at=1.0, until=2.0))

    page, bound = (house.client(Role.OPERATOR, inbox).get("/models").get_data(as_text=True) for inbox in ("", "north"))

    assert said in page
    assert "In the shadow" in page
    assert card["version"] in bound
    assert said not in bound
    assert "In the shadow" not in bound


def test_only_who_sees_the_whole_server_pins_verdicts_for_all_of_it(house: House) -> None:
    assert roles.needed("dashboard.pin_face") is Role.OPERATOR
    assert "dashboard.pin_face" not in roles.BY_INBOX
