"""Where webhooks must not go, observed at sockets that really listen and by a hook that sees every connection tried."""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr
from sqlalchemy import select

from pipeline.database import Database, DeliveryRow, EndpointRow, now
from pipeline.settings import Settings
from tests.fixtures.addresses import HOSTS, NAMES, PUBLIC, PUBLIC6, SILENT, URLS, Doors, tried
from tests.fixtures.jobs import accepted, claimed
from webhooks import endpoints
from webhooks.endpoints import EndpointError
from webhooks.outbound import deliver_due
from webhooks.secretbox import new_secret, seal

ROOT = Path(__file__).resolve().parents[2]
STRICT = Settings(secret_key=SecretStr("a secret key of the tests, long enough"), webhook_allow_http=True)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What happened in a network of our own, where every address leads to us."""
    if shutil.which("unshare") is None or shutil.which("ip") is None:
        pytest.skip("unshare and ip, which make a network of one's own, are missing.")
    alone = ["unshare", "--user", "--map-root-user", "--mount", "--net"]
    if subprocess.run([*alone, "true"], capture_output=True, check=False).returncode:
        pytest.skip("This machine does not let us make a network of our own.")
    program = [*alone, sys.executable, "-m", "tests.fixtures.addresses", str(tmp_path_factory.mktemp("world"))]
    done = subprocess.run(program, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def test_no_connection_comes_to_any_hostile_address(world: dict[str, Any]) -> None:
    assert len(world["hostile"]) == len(HOSTS) + len(NAMES) + len(URLS) >= 80
    assert [one for one in world["hostile"] if one["came"] or one["status"] or not one["error"].endswith(".")] == []


def test_the_same_sockets_are_reached_at_public_addresses_and_where_private_ones_are_allowed(world: dict[str, Any]) -> None:
    """Or the test before would prove nothing."""
    assert [(one["status"], one["came"]) for one in world["public"]] == [(204, [PUBLIC]), (204, [PUBLIC6])] * 2
    assert [(one["status"], one["came"]) for one in world["private"]] == [(204, ["127.0.0.1"]), (204, ["10.0.0.1"]), (204, ["::1"])]


def test_a_name_that_changes_between_looking_and_connecting_gains_nothing(world: dict[str, Any]) -> None:
    """By a real resolver: public and 127.0.0.1 in turn. Each attempt asks once, and goes where it looked or nowhere."""
    assert [one["came"] for one in world["rebinding"]] == [[PUBLIC], [], [], [PUBLIC]] * 3
    assert world["asked"] == {"rebinding-a.example": 6, "rebinding-b.example": 6}


def test_a_name_server_that_says_nothing_does_not_outlast_the_deadline(world: dict[str, Any]) -> None:
    """By a real resolver, which would wait for it twenty seconds; six attempts of half a second, and a name beside them."""
    assert {(one["status"], one["error"]) for one in world["silent"]} == {(None, f"The name {SILENT} could not be resolved.")}
    assert max(one["took_ms"] for one in world["silent"]) < 10_000
    assert (world["beside"]["status"], world["beside"]["came"]) == (204, [PUBLIC])


def test_a_redirect_to_a_private_address_is_not_followed(world: dict[str, Any]) -> None:
    assert (world["away"]["status"], world["away"]["came"]) == (302, [PUBLIC])


_watching: list[list[Any]] = []
"""Lists that take note of every connection tried."""


def _hook(event: str, arguments: tuple[Any, ...]) -> None:
    if event == "socket.connect" and _watching:
        address = arguments[1]
        for notes in _watching:
            notes.append(address)
        if isinstance(address, tuple) and address[0] not in ("127.0.0.1", "::1"):
            raise ConnectionRefusedError("no test speaks to the world")


@pytest.fixture(scope="module")
def watch() -> list[list[Any]]:
    sys.addaudithook(_hook)  # it cannot be taken away again, and does nothing while nobody watches
    return _watching


@pytest.fixture
def tries(watch: list[list[Any]]) -> Iterator[list[Any]]:
    """Every address that this process tries to connect to."""
    notes: list[Any] = []
    watch.append(notes)
    yield notes
    watch.remove(notes)


@pytest.fixture(scope="module")
def doors() -> Doors:
    """Sockets that listen at every address of this machine."""
    made = Doors()
    made.start()
    return made


def test_on_this_machine_none_is_even_tried(doors: Doors, tries: list[Any]) -> None:
    control = tried(doors, f"http://127.0.0.1:{doors.port}/hook", private=True)
    assert (control["status"], control["came"], tries) == (204, ["127.0.0.1"], [("127.0.0.1", doors.port)])
    tries.clear()

    for url in [f"http://{host}:{doors.port}/hook" for host in (*HOSTS, socket.gethostname())] + [
        url.format(port=doors.port) for url in URLS
    ]:
        if "@public.example" not in url or "\\" not in url:  # that one would ask a resolver of the world
            found = tried(doors, url)
            assert (found["status"], found["came"], tries) == (None, [], []), url


def test_what_was_registered_before_the_settings_became_strict_is_not_reached(db: Database, doors: Doors) -> None:
    """The whole way: endpoint rows with hostile URLs, events, the dispatcher."""
    hosts = [host for host in HOSTS if host.isascii()][:12]
    with db.write() as session:
        for host in hosts:
            url = f"http://{host}:{doors.port}/hook"
            session.add(EndpointRow(id=f"ep_{host}", url=url, secret=seal(STRICT, new_secret()), created_at=now()))
    before = len(doors.came)
    claimed(db, accepted(db))

    assert deliver_due(db, STRICT, patience_s=20.0) == len(hosts)

    with db.read() as session:
        assert {(row.status, row.attempts) for row in session.scalars(select(DeliveryRow))} == {("pending", 1)}
    assert len(doors.came) == before


def test_most_of_them_cannot_even_be_registered(db: Database) -> None:
    refused = []
    for url in [f"https://{host}/hook" for host in HOSTS] + [url.format(port=443) for url in URLS]:
        try:
            endpoints.register(db, STRICT, url)
        except EndpointError as error:
            refused.append(str(error))
    assert all(sentence.endswith(".") for sentence in refused)
    assert len(refused) >= 60, "the rest are numbers in notations that only a resolver reads: they are refused at every attempt"
