"""`unmask listen` and the other commands about webhooks, against a web process that really serves."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import pytest
import requests
from click.testing import CliRunner
from werkzeug.serving import make_server

from pipeline.settings import Settings, to_environment
from tests.fixtures.jobs import brought_to
from tests.fixtures.web import Web
from webhooks import endpoints
from webhooks.outbound import deliver_due, deliver_one
from webhooks.secretbox import new_secret
from webhooks.sending import Receiver, headers_of, send
from workers.cli import main

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def served(make_web: Callable[..., Web], sqlite_url: str) -> Iterator[Web]:
    """The web application on a port."""
    server = make_server("127.0.0.1", 0, make_web(sqlite_url).app, threaded=True)
    web = make_web(sqlite_url, web_port=server.server_port, webhook_allow_http=True, webhook_allow_private=True)
    server.app = web.app
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield web
    server.shutdown()
    thread.join()
    server.server_close()


class Listening:
    """`unmask listen` in a process of its own."""

    def __init__(self, settings: Settings, *arguments: str) -> None:
        command = [sys.executable, "-m", "workers.cli", "listen", *arguments]
        environment = {"PATH": "/usr/bin:/bin", **to_environment(settings)}
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        self.process = subprocess.Popen(command, cwd=ROOT, env=environment, text=True, **pipes)
        assert self.process.stderr is not None
        self.greeting = self.process.stderr.readline()
        self.url = self.greeting.split()[2].rstrip(";") if self.greeting.startswith("Listening") else ""

    def ended(self) -> tuple[int, list[str], str]:
        """Exit code, lines of output, and what was complained of."""
        out, err = self.process.communicate(timeout=30)
        return self.process.returncode, out.splitlines(), err


@pytest.fixture
def listening() -> Iterator[Callable[..., Listening]]:
    """A function that starts `unmask listen`."""
    started: list[Listening] = []

    def start(settings: Settings, *arguments: str) -> Listening:
        started.append(Listening(settings, *arguments))
        assert started[-1].url, started[-1].greeting
        return started[-1]

    yield start
    for one in started:
        if one.process.poll() is None:
            one.process.kill()
            one.process.communicate()


def test_it_registers_verifies_prints_and_leaves_nothing_behind(served: Web, listening: Callable[..., Listening]) -> None:
    listener = listening(served.settings, "--count", "3", "--timeout", "60", "--json")
    (row,) = endpoints.all_of_them(served.db)
    assert row.url == listener.url
    forged = send(Receiver(listener.url, [new_secret()], True), "msg_forged", '{"type":"job.done","data":{}}')
    assert forged.status_code == 400

    job_id = brought_to(served.db, None)
    assert deliver_due(served.db, served.settings) == 2
    answer = deliver_one(served.db, served.settings, endpoints.add_test(served.db, row.id))
    assert answer is not None
    assert answer.status_code == 204

    code, lines, complaints = listener.ended()
    events = sorted((json.loads(line) for line in lines), key=lambda event: event["type"])
    assert [(event["type"], event["times"]) for event in events] == [("job.done", 1), ("job.started", 1), ("webhook.test", 1)]
    assert events[0]["data"]["job_id"] == job_id
    assert "Refused" in complaints
    assert code == 1, "something did not verify"
    assert endpoints.all_of_them(served.db) == []


def test_whoever_ends_it_leaves_no_endpoint_behind(served: Web, listening: Callable[..., Listening]) -> None:
    listener = listening(served.settings)
    assert [row.url for row in endpoints.all_of_them(served.db)] == [listener.url]
    listener.process.send_signal(signal.SIGTERM)
    assert listener.ended() == (0, [], "")
    assert endpoints.all_of_them(served.db) == []


def test_with_a_secret_of_ones_own_it_asks_nobody(listening: Callable[..., Listening]) -> None:
    """And answers what it is told to; what comes again is said to."""
    secret, body = new_secret(), '{"type":"job.failed","data":{"source":{"key":"[red]a b.jpg"},"reason":"It is no picture."}}'
    listener = listening(Settings(web_port=1), "--secret", secret, "--answer", "503", "--count", "2", "--timeout", "60")
    to = Receiver(listener.url, [secret], True)
    assert [send(to, event_id, body).status_code for event_id in ("msg_1", "msg_1", "msg_2")] == [503] * 3
    code, lines, _ = listener.ended()
    assert (code, len(lines)) == (0, 3)
    assert all("verified job.failed [red]a b.jpg It is no picture." in line for line in lines)
    assert ["(time 2)" in line for line in lines] == [False, True, False]


def test_what_is_no_webhook_is_refused(served: Web, listening: Callable[..., Listening]) -> None:
    secret = new_secret()
    listener = listening(served.settings, "--secret", secret, "--timeout", "60", "--count", "1")
    at = datetime.now(timezone.utc)

    def post(body: bytes, headers: dict[str, str]) -> int:
        return requests.post(listener.url, data=body, headers=headers, timeout=10, proxies={"http": ""}).status_code

    for body in ("[]", "{}", '{"type":1}', "no json"):
        assert post(body.encode(), headers_of("msg_1", body, [secret], at)) == 400, body
    assert post(b"{}", {"webhook-id": "1", "webhook-timestamp": str(int(time.time())), "webhook-signature": "v1"}) == 400
    assert post(b"x" * 70_000, {}) == 413
    good = '{"type":"job.done","data":{}}'
    assert post(good.encode(), headers_of("msg_1", good, [secret], at)) == 204
    assert listener.ended()[0] == 1


@pytest.fixture
def run(served: Web, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    for name, value in to_environment(served.settings).items():
        monkeypatch.setenv(name, value)
    return lambda *arguments: CliRunner().invoke(main, list(arguments))


def test_the_stack_must_be_allowed_to_send_here(make_web: Callable[..., Web], served: Web, run: Callable[..., Any]) -> None:
    served.app.extensions["unmask"] = make_web(served.settings.database, web_port=served.settings.web_port).app.extensions["unmask"]
    result = run("listen", "--timeout", "5")
    assert result.exit_code == 2
    assert "UNMASK_WEBHOOK_ALLOW_HTTP=true and UNMASK_WEBHOOK_ALLOW_PRIVATE=true" in " ".join(result.stderr.split())
    assert "no secret" not in result.stderr
    assert run("listen", "--secret", "whsec_").exit_code == 2


def test_endpoints_on_the_command_line(served: Web, run: Callable[..., Any]) -> None:
    added = run("endpoints", "add", "http://127.0.0.1:9/hook", "--event", "job.done", "--inbox", "default", "--json")
    endpoint = json.loads(added.stdout)
    assert (endpoint["events"], endpoint["inbox"], endpoint["secret"][:6]) == (["job.done"], "default", "whsec_")
    brought_to(served.db, None)

    assert "0 events" in run("endpoints", "replay", endpoint["id"], "--since", "2026-01-01", "--until", "2026-01-02").stdout
    assert "1 event on" in run("endpoints", "replay", endpoint["id"], "--since", "2020-01-01").stdout
    assert "whsec_" in run("endpoints", "rotate", endpoint["id"]).stdout
    assert "disabled" in run("endpoints", "disable", endpoint["id"]).stdout
    refused = run("endpoints", "replay", endpoint["id"], "--since", "2020-01-01")
    assert (refused.exit_code, "enable it first" in refused.stderr) == (2, True)
    assert "enabled" in run("endpoints", "enable", endpoint["id"]).stdout
    assert "default" in run("endpoints", "list").stdout
    assert "There is no inbox" in run("endpoints", "add", "http://127.0.0.1:9/hook", "--inbox", "nowhere").stderr
