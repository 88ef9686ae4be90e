"""The programs that the docs give to receivers, run as the page gives them: in Python, JavaScript and Go."""

from __future__ import annotations

import html
import os
import re
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr
from sqlalchemy import update
from standardwebhooks import WebhookVerificationError

from pipeline.database import Database, DeliveryRow, EndpointRow, now
from pipeline.settings import Settings
from tests.fixtures.databases import missing_service
from tests.fixtures.jobs import brought_to
from tests.fixtures.web import Web
from webhooks import deliveries, endpoints
from webhooks.outbound import deliver_due, deliver_one
from webhooks.secretbox import new_secret
from webhooks.sending import headers_of

SETTINGS = Settings(secret_key=SecretStr("a secret key of the tests, long enough"), webhook_allow_http=True, webhook_allow_private=True)
LANGUAGES = ("python", "javascript", "go")


def programs(page: str) -> dict[str, str]:
    """The programs on the page, by language."""
    return {name: html.unescape(text) for name, text in re.findall(r'<code class="(\w+)">(.*?)</code>', page, re.DOTALL)}


def go() -> str:
    """The Go tool, on PATH or where Debian and go.dev put it."""
    places = [shutil.which("go"), "/usr/local/go/bin/go", *map(str, sorted(Path("/usr/lib").glob("go-*/bin/go"), reverse=True))]
    found = next((place for place in places if place and Path(place).exists()), None)
    if found is None:
        missing_service("Go")
    assert found is not None
    return found


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, str], list[str]]:
    """A function that makes a command of a program's text, once for each language."""
    folder = tmp_path_factory.mktemp("receivers")
    made: dict[str, list[str]] = {}

    def build(language: str, text: str) -> list[str]:
        if language in made:
            return made[language]
        if language == "python":
            (folder / "receiver.py").write_text(text)
            made[language] = [sys.executable, str(folder / "receiver.py")]
        elif language == "javascript":
            if (node := shutil.which("node")) is None:
                missing_service("Node.js")
            (folder / "receiver.mjs").write_text(text)
            made[language] = [str(node), str(folder / "receiver.mjs")]
        else:
            (folder / "receiver.go").write_text(text)
            environment = {**os.environ, "GOFLAGS": "-mod=mod", "GO111MODULE": "off", "GOTOOLCHAIN": "local"}
            tool = go()
            subprocess.run([tool, "vet", "receiver.go"], cwd=folder, env=environment, check=True)
            subprocess.run([tool, "build", "-o", "receiver", "receiver.go"], cwd=folder, env=environment, check=True)
            made[language] = [str(folder / "receiver")]
        return made[language]

    return build


@pytest.fixture(params=LANGUAGES)
def command(request: pytest.FixtureRequest, built: Callable[[str, str], list[str]], web: Web) -> list[str]:
    """Each program in turn, from the very text of the page."""
    text = programs(web.client.get("/docs/webhooks").get_data(as_text=True))[request.param]
    return built(request.param, text)


class Running:
    """A program that receives."""

    def __init__(self, command: list[str], secret: str, output: Path) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self.output = output
        environment = {"PATH": os.environ["PATH"], "WEBHOOK_SECRET": secret, "PORT": str(self.port)}
        with output.open("w") as file:
            self.process = subprocess.Popen(command, env=environment, stdout=file, stderr=subprocess.DEVNULL)
        until = time.monotonic() + 20
        while not self._listens():
            assert self.process.poll() is None
            assert time.monotonic() < until, "it does not listen"
            time.sleep(0.02)

    def _listens(self) -> bool:
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", self.port)) == 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/hook"

    def post(self, body: bytes, headers: dict[str, str]) -> int:
        """The status of its answer."""
        request = urllib.request.Request(self.url, body, {"Content-Type": "application/json", **headers})  # noqa: S310
        try:
            with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request, timeout=10) as response:
                return int(response.status)
        except urllib.error.HTTPError as error:
            return error.code

    @property
    def printed(self) -> list[str]:
        return self.output.read_text().splitlines()


@contextmanager
def running(command: list[str], secret: str, folder: Path) -> Iterator[Running]:
    made = Running(command, secret, folder / "printed")
    try:
        yield made
    finally:
        made.process.kill()
        made.process.wait()


BODY = '{"type":"job.done","data":{"source":{"key":"Grüße/a b.jpg"},"sequence":2}}'


def test_a_program_of_the_docs_takes_what_is_signed_and_nothing_else(command: list[str], tmp_path: Path) -> None:
    secret, other = new_secret(), new_secret()
    at = datetime.now(timezone.utc)
    good = headers_of("msg_1", BODY, [secret], at)
    with running(command, secret, tmp_path) as receiver:
        assert receiver.post(BODY.encode(), good) == 204
        assert receiver.post(BODY.encode(), headers_of("msg_2", BODY, [other, secret], at)) == 204, "while a secret is changed"
        assert receiver.post(BODY.encode(), headers_of("msg_2", BODY, [secret, other], at)) == 204, "again, and printed once"
        refused = {
            "another secret": (BODY, headers_of("msg_3", BODY, [other], at)),
            "another body": (BODY.replace("done", "gone"), good),
            "another id": (BODY, good | {"webhook-id": "msg_9"}),
            "another time": (BODY, good | {"webhook-timestamp": str(int(at.timestamp()) + 1)}),
            "six minutes old": (BODY, headers_of("msg_4", BODY, [secret], at - timedelta(minutes=6))),
            "six minutes early": (BODY, headers_of("msg_4", BODY, [secret], at + timedelta(minutes=6))),
            "no time at all": (BODY, good | {"webhook-timestamp": "now"}),
            "a version to come": (BODY, good | {"webhook-signature": good["webhook-signature"].replace("v1,", "v2,")}),
            "nothing that is signed": (BODY, good | {"webhook-signature": "v1"}),
            "no base64": (BODY, good | {"webhook-signature": "v1,%%%"}),
            "an empty signature": (BODY, good | {"webhook-signature": "v1,"}),
            "no text": ("\udcff", good),
            "no headers": (BODY, {}),
            "no id": (BODY, {name: value for name, value in good.items() if name != "webhook-id"}),
        }
        answers = {why: receiver.post(body.encode("utf-8", "surrogateescape"), headers) for why, (body, headers) in refused.items()}
        assert answers == dict.fromkeys(refused, 400)
        assert receiver.post(BODY.encode(), headers_of("msg_5", BODY, [secret], at)) == 204, "it is still there"
    assert [line.split(" ", 1)[0] for line in receiver.printed] == ["job.done"] * 3
    assert all("Grüße/a b.jpg" in line for line in receiver.printed)


def test_a_program_of_the_docs_receives_what_is_really_sent_over_a_rotation(command: list[str], web: Web, tmp_path: Path) -> None:
    """Verified by code that is none of ours, with the old secret, with the new one, and after the old one is over."""
    db = web.db
    with running(command, new_secret(), tmp_path) as stranger:
        row, old = endpoints.register(db, SETTINGS, stranger.url)
    with running(command, old, tmp_path) as receiver:
        _move(db, row.id, receiver.url)
        answer = deliver_one(db, SETTINGS, endpoints.add_test(db, row.id))
        assert answer is not None
        assert (answer.status_code, answer.error) == (204, None)
        brought_to(db, None)
        assert deliver_due(db, SETTINGS) == 2
        new = endpoints.rotate(db, SETTINGS, row.id)
        answer = deliver_one(db, SETTINGS, endpoints.add_test(db, row.id))
        assert answer is not None
        assert answer.delivered, "the old secret is good for a day"
    assert sorted(line.split(" ", 1)[0] for line in receiver.printed) == ["job.done", "job.started", "webhook.test", "webhook.test"]

    with running(command, new, tmp_path) as receiver:
        _move(db, row.id, receiver.url)
        for _ in ("both sign", "only the new one signs"):
            answer = deliver_one(db, SETTINGS, endpoints.add_test(db, row.id))
            assert answer is not None
            assert answer.delivered
            with db.write() as session:
                session.execute(update(EndpointRow).values(previous_until=now() - 1))
    signatures = [
        attempt.request_headers["webhook-signature"].count("v1,")
        for one in reversed(deliveries.page(db, endpoint_id=row.id)[0])
        for attempt in one.tries
        if attempt.request_headers
    ]
    assert signatures == [1, 1, 1, 2, 2, 1]
    with db.read() as session:
        assert {one.status for one in session.query(DeliveryRow)} == {"delivered"}


def _move(db: Database, endpoint_id: str, url: str) -> None:
    with db.write() as session:
        session.execute(update(EndpointRow).where(EndpointRow.id == endpoint_id).values(url=url))


def test_what_the_readme_shows_verifies() -> None:
    secret = new_secret()
    blocks = re.findall(r"```python\n(.*?)```", (Path(__file__).resolve().parents[2] / "README.md").read_text(), re.DOTALL)
    (shown,) = (block for block in blocks if "standardwebhooks" in block)
    names: dict[str, Any] = {}
    exec(shown.replace("whsec_...", secret), names)  # noqa: S102
    headers = headers_of("msg_1", BODY, [secret], datetime.now(timezone.utc))
    assert names["receive"](BODY.encode(), headers)["type"] == "job.done"
    with pytest.raises(WebhookVerificationError):
        names["receive"](BODY.encode() + b" ", headers)


def test_the_page_names_every_event_and_its_schema(web: Web) -> None:
    page = web.client.get("/docs/webhooks").get_data(as_text=True)
    schemas = web.client.get("/v1/events/schemas").get_json()
    assert set(programs(page)) == set(LANGUAGES)
    for type in schemas:
        assert f'href="/v1/events/schemas/{type}"' in page
        one = web.client.get(f"/v1/events/schemas/{type}")
        assert one.mimetype == "application/schema+json"
        assert one.get_json() == schemas[type]
    assert web.client.get("/v1/events/schemas/job.gone").status_code == 404
