"""The dependency audit, against a database that the test wrote and a service that it runs."""

from __future__ import annotations

import importlib.util
import json
import threading
import zipfile
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def advisories() -> ModuleType:
    spec = importlib.util.spec_from_file_location("advisories", ROOT / "docker" / "advisories.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def record(name: str, events: list[dict[str, str]], **more: Any) -> dict[str, Any]:
    affected = {"package": {"ecosystem": "PyPI", "name": name}, "ranges": [{"type": "ECOSYSTEM", "events": events}]}
    return {"id": "GHSA-1", "aliases": ["CVE-1"], "summary": "It leaks.", "affected": [affected], **more}


@pytest.fixture
def lock(tmp_path: Path) -> Path:
    path = tmp_path / "some.txt"
    path.write_text("# made\nPil_low==10.0.1 \\\n    --hash=sha256:00\ncelery[redis]==5.7.0 \\\n    --hash=sha256:11\n    # via x==1\n")
    return path


def run(advisories: ModuleType, tmp_path: Path, lock: Path, *records: dict[str, Any], accepted: str = "") -> int:
    database = tmp_path / "all.zip"
    with zipfile.ZipFile(database, "w") as archive:
        for number, one in enumerate(records):
            archive.writestr(f"{number}.json", json.dumps(one))
    (tmp_path / "accepted.txt").write_text(accepted)
    status: int = advisories.main([str(lock), "--database", str(database), "--accepted", str(tmp_path / "accepted.txt")])
    return status


def test_every_pin_of_the_real_locks_is_read(advisories: ModuleType) -> None:
    found = advisories.pins(sorted(advisories.LOCKS.glob("*.txt")))
    assert {"flask", "celery", "pillow", "tensorflow-cpu", "uv"} <= {pin.name for pin in found}
    lines = [line for path in advisories.LOCKS.glob("*.txt") for line in path.read_text().splitlines()]
    hashed = {line.split("==")[0] for line in lines if "==" in line and line[0].isalnum()}
    assert len({pin.name for pin in found}) == len({advisories.normal(name.split("[")[0]) for name in hashed})


@pytest.mark.parametrize(
    ("events", "hit"),
    [
        ([{"introduced": "0"}], True),
        ([{"introduced": "0"}, {"fixed": "10.0.1"}], False),
        ([{"introduced": "0"}, {"fixed": "10.0.2"}], True),
        ([{"introduced": "10.0.2"}], False),
        ([{"introduced": "9"}, {"last_affected": "10.0.1"}], True),
        ([{"introduced": "9"}, {"last_affected": "10.0.0"}], False),
        ([{"introduced": "0"}, {"fixed": "9"}, {"introduced": "10"}, {"fixed": "10.1"}], True),
        ([{"introduced": "0"}, {"fixed": "9"}, {"introduced": "10.1"}], False),
        ([{"introduced": "10"}, {"fixed": "10.1"}, {"introduced": "0"}, {"fixed": "9"}], True),
        ([{"introduced": "not a version"}], True),
    ],
)
def test_a_range_is_read_as_osv_means_it(
    advisories: ModuleType, tmp_path: Path, lock: Path, events: list[dict[str, str]], hit: bool
) -> None:
    assert run(advisories, tmp_path, lock, record("pil-low", events)) == hit


def test_other_packages_withdrawn_records_and_accepted_ones_do_not_fail_it(
    advisories: ModuleType, tmp_path: Path, lock: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    everything = [{"introduced": "0"}]
    assert run(advisories, tmp_path, lock, record("other", everything)) == 0
    assert run(advisories, tmp_path, lock, record("pil-low", everything, withdrawn="2026-01-01T00:00:00Z")) == 0
    assert run(advisories, tmp_path, lock, record("Pil.Low", everything), accepted="# known\nCVE-1 the path is not used\n") == 0
    assert "accepted (the path is not used): pil-low 10.0.1 in some.txt: GHSA-1, CVE-1: It leaks." in capsys.readouterr().out
    assert (
        run(
            advisories,
            tmp_path,
            lock,
            record("pil-low", [], affected=[{"package": {"ecosystem": "PyPI", "name": "pil-low"}, "versions": ["10.0.1"]}]),
        )
        == 1
    )


def test_the_service_is_asked_about_every_pin(
    advisories: ModuleType, lock: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    asked: list[Any] = []

    class Service(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            queries = json.loads(self.rfile.read(int(self.headers["Content-Length"])))["queries"]
            asked.extend(queries)
            self._answer({"results": [self._known(one) for one in queries]})

        @staticmethod
        def _known(query: Any) -> Any:
            if query["package"]["name"] != "celery":
                return {}
            if "page_token" in query:
                return {"vulns": [{"id": "GHSA-1"}]}
            return {"vulns": [{"id": "GHSA-0"}], "next_page_token": "on"}

        def do_GET(self) -> None:
            withdrawn = {"withdrawn": "2026-01-01T00:00:00Z"} if self.path.endswith("GHSA-0") else {}
            self._answer(record("celery", [], **withdrawn))

        def _answer(self, body: Any) -> None:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(json.dumps(body).encode())

        def log_message(self, *arguments: Any) -> None: ...

    with HTTPServer(("127.0.0.1", 0), Service) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        status = advisories.main([str(lock), "--api", f"http://127.0.0.1:{server.server_port}", "--accepted", str(tmp_path / "none")])
        server.shutdown()
    assert status == 1
    pinned = [("celery", "5.7.0"), ("pil-low", "10.0.1")]
    assert [(one["package"]["name"], one["version"]) for one in asked] == [*pinned, pinned[0]], "a second page of the first"
    said = capsys.readouterr().out
    assert "VULNERABLE: celery 5.7.0 in some.txt: GHSA-1, CVE-1" in said
    assert "2 pinned packages, 1 known vulnerabilities, 1 of them not accepted." in said


def test_nobody_to_ask_is_not_the_same_as_nothing_found(
    advisories: ModuleType, lock: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    nowhere = [str(lock), "--api", "http://127.0.0.1:1"]
    assert advisories.main(nowhere) == 3
    assert advisories.main([*nowhere, "--if-reachable"]) == 0
    assert capsys.readouterr().err.count("no vulnerability database could be asked about 2 packages") == 2
    (tmp_path / "broken.zip").write_bytes(b"no zip")
    assert advisories.main([str(lock), "--database", str(tmp_path / "broken.zip")]) == 3
