"""Nothing secret is ever written into a log, an answer or a table: a whole stack, as talkative as it can be, and every file read."""

from __future__ import annotations

import base64
import json
import re
import secrets
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.parse import urlencode
from urllib.request import HTTPCookieProcessor, ProxyHandler, Request, build_opener

import pytest
from pydantic import SecretStr

from pipeline.jobs import Status
from pipeline.settings import to_environment
from tests.acceptance.test_stack import ROOT, Up, install, photographs, wait_for

pytestmark = pytest.mark.timeout(600)

LEAST = 8
"""So many characters of a secret are not found by chance."""


class Visitor:
    """Somebody who talks to the web process and keeps all that it answers."""

    def __init__(self, up: Up) -> None:
        self._url = up.settings.url
        self._opener = build_opener(ProxyHandler({}), HTTPCookieProcessor())
        self.answers: list[str] = []

    def ask(self, method: str, path: str, token: str = "", body: Any = None, form: dict[str, str] | None = None) -> tuple[int, str]:
        data = json.dumps(body).encode() if body is not None else urlencode(form).encode() if form is not None else None
        request = Request(self._url + path, data, method=method)  # noqa: S310
        if body is not None:
            request.add_header("Content-Type", "application/json")
        if token:
            request.add_header("Authorization", f"Bearer {token}")
        try:
            with self._opener.open(request, timeout=60) as response:
                status, said = response.status, response.read().decode(errors="replace")
        except HTTPError as error:
            status, said = error.code, error.read().decode(errors="replace")
        return status, said

    def refused(self, *arguments: Any, **more: Any) -> None:
        """Ask for what is not to be had; the answer must not repeat what was sent."""
        status, said = self.ask(*arguments, **more)
        assert 400 <= status < 500, said
        self.answers.append(said)


def test_no_log_no_answer_and_no_table_holds_a_secret(tmp_path: Path) -> None:
    known = {name: f"{name}-{secrets.token_hex(16)}" for name in ("api_key", "secret_key", "events_token")}
    password, wrong, short = (f"{word} {secrets.token_hex(12)}" for word in ("password", "incorrect", "short"))
    environment = {f"UNMASK_{name.upper()}": value for name, value in known.items()}
    environment |= {"UNMASK_LOG_LEVEL": "debug", "UNMASK_WEBHOOK_ALLOW_HTTP": "true", "UNMASK_WEBHOOK_ALLOW_PRIVATE": "true"}
    up = Up(tmp_path / "data", **environment).ready()
    install(up, tmp_path / "model")
    admin = known["api_key"]
    visitor = Visitor(up)

    # Given everything that is secret, used rightly and wrongly
    status, said = visitor.ask("POST", "/v1/keys", admin, {"name": "a", "role": "operator"})
    assert status == 201, said
    key = json.loads(said)["key"]
    assert visitor.ask("POST", "/v1/users", admin, {"name": "ann", "password": password, "role": "admin"})[0] == 201
    assert visitor.ask("GET", "/v1/jobs", key)[0] == 200
    visitor.refused("POST", "/v1/users", admin, {"name": "bob", "password": short[:11], "role": "admin"})
    visitor.refused("POST", "/v1/users", admin, {"name": "bob", "password": [short], "role": 1})
    visitor.refused("POST", "/v1/keys", key, {"name": "b", "role": "admin"})
    visitor.refused("GET", "/v1/jobs", key[:-2] + "xx")
    visitor.refused("GET", "/v1/jobs?key=" + wrong.replace(" ", ""), "")
    visitor.refused("POST", "/events/seaweedfs", wrong, {"event_type": "create"})
    token = csrf(visitor.ask("GET", "/login")[1])
    visitor.refused("POST", "/login", form={"csrf": token, "name": "ann", "password": wrong})
    visitor.refused("POST", "/login", form={"csrf": token, "key": wrong})
    assert visitor.ask("POST", "/login", form={"csrf": token, "name": "ann", "password": password})[0] == 200
    status, said = visitor.ask("POST", "/v1/endpoints", key, {"url": "http://127.0.0.1:1/hook"})
    endpoint = json.loads(said)
    assert visitor.ask("POST", f"/v1/endpoints/{endpoint['id']}/test", key)[0] == 200
    status, said = visitor.ask("POST", f"/v1/endpoints/{endpoint['id']}/rotate", key)
    rotated = json.loads(said)["secret"]

    # When a picture goes all the way, another is refused, and the command line is used
    [photograph] = photographs(1)
    up.put("a.jpg", photograph)
    up.put("b.jpg", b"not a picture")
    assert up.job("a.jpg").status == Status.DONE.value
    assert up.job("b.jpg").status == Status.REFUSED.value
    heard: list[str] = []
    for command in (["doctor"], ["doctor", "--settings"], ["endpoints", "list"], ["keys", "list"]):
        heard.append(spoken(command, {"PATH": "/usr/bin:/bin", **to_environment(up.settings), "UNMASK_LOG_LEVEL": "debug"}))
    wait_for(lambda: up.db is not None and len(logs(up)) >= 8, "its logs", up)
    tables = b"".join(path.read_bytes() for path in up.data_dir.glob("unmask.db*"))
    assert up.stopped(signal.SIGINT) == 0, up.said

    # Then none of it is anywhere to be read
    hidden = {**known, "password": password, "wrong": wrong, "short": short[:11], "key": key}
    hidden |= {"endpoint": endpoint["secret"], "rotated": rotated}
    hidden |= {name: value.get_secret_value() for name, value in up.settings if isinstance(value, SecretStr)}
    hidden |= {f"kept {name}": value for name, value in json.loads((up.data_dir / "secrets.json").read_text()).items()}
    places = {path.name: path.read_text(errors="replace") for path in logs(up)}
    places |= {"standard output": up.said, "the command line": "\n".join(heard), "answers": "\n".join(visitor.answers)}
    assert sum(len(text) for text in places.values()) > 100_000, "it was talkative"
    for name, secret in hidden.items():
        forms = {secret, secret.replace(" ", "+"), secret.rsplit("_", 1)[-1], base64.b64encode(secret.encode()).decode()}
        for form in (form for form in forms if len(form) >= LEAST):  # what follows the last _ of a random key may be two letters
            for place, text in places.items():
                where = text.find(form)
                assert where < 0, f"{name} is in {place}: {text[max(0, where - 200) : where + 100]!r}"
            if name != "wrong":
                assert form.encode() not in tables, f"{name} is in the database"
    for private in ("secrets.json", "stack.json", "unmask.db"):
        assert (up.data_dir / private).stat().st_mode & 0o077 == 0 or up.data_dir.stat().st_mode & 0o077 == 0, private


def csrf(page: str) -> str:
    found = re.search(r'name="csrf" value="([^"]+)"', page)
    assert found is not None
    return found[1]


def logs(up: Up) -> list[Path]:
    """Every log that the stack keeps."""
    return [path for path in (up.data_dir / "logs").rglob("*") if path.is_file()]


def test_an_address_that_holds_a_password_is_told_without_it(tmp_path: Path) -> None:
    password = f"password-{secrets.token_hex(8)}"
    environment = {
        "PATH": "/usr/bin:/bin",
        "UNMASK_DATA_DIR": str(tmp_path),
        "UNMASK_DATABASE_URL": f"postgresql://unmask:{password}@127.0.0.1:1/unmask",
        "UNMASK_BROKER_URL": f"redis://:{password}@127.0.0.1:1/0",
        "UNMASK_S3_ENDPOINT": "http://127.0.0.1:1",
        "UNMASK_S3_ACCESS_KEY": "someone",
        "UNMASK_S3_SECRET_KEY": password,
        "UNMASK_LOG_LEVEL": "debug",
    }
    for command in (["keys", "list"], ["db", "upgrade"], ["doctor"]):
        assert password not in spoken(command, environment), command


def spoken(command: list[str], environment: dict[str, str]) -> str:
    """All that the command line prints."""
    program = [sys.executable, "-m", "workers.cli", *command]
    done = subprocess.run(program, cwd=ROOT, env=environment, capture_output=True, text=True, check=False, timeout=120)
    assert done.stdout + done.stderr, command
    return done.stdout + done.stderr
