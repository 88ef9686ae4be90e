"""The product as it is deployed on one machine: real Valkey, SeaweedFS and PostgreSQL (or SQLite), every program of `unmask up`."""

from __future__ import annotations

import json
import shutil
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from queue import Queue
from typing import Any

import psycopg
import requests
from sqlalchemy import func, select

from pipeline import registry
from pipeline.database import Database, JobRow
from pipeline.jobs import Status
from pipeline.settings import Settings
from pipeline.storage import Storage
from tests.benchmarks import accounting
from tests.fixtures.databases import PostgresServer, postgres_binaries
from workers import embedded, orders
from workers.place import Place

SENDERS = 4
OVER = [status.value for status in Status if status.terminal]


@dataclass(frozen=True)
class Run:
    """What came of one run: seconds from the first upload to the last result row, of processor time by program, and the jobs."""

    images: int
    wall_s: float
    cpu_s: Counter[str]
    jobs: list[JobRow]

    @property
    def images_per_s(self) -> float:
        """Throughput."""
        return self.images / self.wall_s


class Product:
    """The stack on a data directory, and its database beside it. As a context: up, with `model` judging."""

    def __init__(self, folder: Path, model: Path, *, database: str, **changed: Any) -> None:
        self._folder, self._model, self._kind, self._changed = folder, model, database, changed
        self._postgres: PostgresServer | None = None
        self._numbers = iter(range(1_000_000))

    def __enter__(self) -> Product:
        url = ""
        if self._kind == "postgresql":
            binaries = postgres_binaries()
            assert binaries is not None, "There is no PostgreSQL here."
            self._postgres = PostgresServer(binaries)
            self._postgres.start()
            with psycopg.connect(self._postgres.url.set(drivername="postgresql").render_as_string(), autocommit=True) as connection:
                connection.execute("create database bench")
            url = self._postgres.url.set(database="bench").render_as_string()
        given = Settings(
            data_dir=self._folder, database_url=url, webhook_allow_http=True, webhook_allow_private=True, reconcile_s=600, **self._changed
        )
        self._stack = embedded.stack(given)
        self.settings = self._stack.__enter__()
        self.db, self.store = Database(self.settings.database), Storage(self.settings)
        card = registry.publish(self.db, self.store, self.settings, self._model)
        registry.promote(self.db, self.settings, card.name, card.version)
        return self

    def __exit__(self, *exception: object) -> None:
        self.db.dispose()
        self._stack.__exit__(*exception)
        if self._postgres is not None:
            self._postgres.remove()

    def look(self) -> list[accounting.Process]:
        """Every process of it, with what it has used."""
        supervisor = int((Place.at(self._folder).run / "supervisor.pid").read_text())
        roots = [supervisor]
        if self._postgres is not None:
            roots.append(int((self._postgres.data / "postmaster.pid").read_text().split()[0]))
        return accounting.look(roots)

    def order(self, what: str, *arguments: Any) -> Any:
        """Have its supervisor do something."""
        return orders.order(Place.at(self._folder).supervisor, what, *arguments)

    def put(self, name: str, data: bytes) -> str:
        """Drop one picture into the inbox; the key it has there."""
        key = f"bench/{next(self._numbers):06}-{name}"
        self.store.put(self.settings.inbox_bucket, key, data, "image/jpeg")
        return key

    def run(self, pictures: list[tuple[str, bytes]], *, patience_s: float = 600.0) -> Run:
        """Drop all pictures and wait for the last result row."""
        before, began = self.look(), time.time()
        with ThreadPoolExecutor(SENDERS) as pool:
            keys = list(pool.map(lambda one: self.put(*one), pictures))
        jobs = self.wait(keys, patience_s)
        ended = max(job.finished_at or 0.0 for job in jobs)
        return Run(len(keys), ended - began, accounting.used(before, self.look()), jobs)

    def wait(self, keys: list[str], patience_s: float) -> list[JobRow]:
        """The jobs of these keys once all are over; fails if that takes too long, or if one of them is not done."""
        until = time.monotonic() + patience_s
        these = JobRow.key.in_(keys)
        while True:
            with self.db.read() as session:
                if session.execute(select(func.count()).where(these, JobRow.status.in_(OVER))).scalar_one() == len(keys):
                    jobs = list(session.scalars(select(JobRow).where(these)))
                    break
            if time.monotonic() > until:
                raise TimeoutError(f"Not all of {len(keys)} pictures were judged within {patience_s:g} s.")
            time.sleep(0.1)
        if wrong := [job for job in jobs if job.status != Status.DONE.value]:
            raise RuntimeError(f"{len(wrong)} pictures were not judged, the first one: {wrong[0].reason}")
        return jobs

    def latency(self, picture: bytes, count: int, patience_s: float = 30.0) -> list[float]:
        """Milliseconds from the start of an upload to the arrival of its webhook at a receiver, one upload at a time."""
        from webhooks.endpoints import register, remove

        arrived: Queue[tuple[float, str]] = Queue()

        class Receiver(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                at, body = time.perf_counter(), json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                self.send_response(204)
                self.end_headers()
                arrived.put((at, body["data"]["source"]["key"]))

            def log_message(self, format: str, *arguments: Any) -> None:
                pass

        taken = []
        with ThreadingHTTPServer(("127.0.0.1", 0), Receiver) as server:
            threading.Thread(target=server.serve_forever, daemon=True).start()
            endpoint, _ = register(self.db, self.settings, f"http://127.0.0.1:{server.server_port}/", events=["job.done"])
            for number in range(count + 2):
                began = time.perf_counter()
                key = self.put("portrait.jpg", picture)
                while (told := arrived.get(timeout=patience_s))[1] != key:
                    pass
                if number >= 2:  # the first ones open connections
                    taken.append((told[0] - began) * 1000)
                time.sleep(0.25)  # idle means idle: the broker, the workers and the store have put their things away
            server.shutdown()
        remove(self.db, endpoint.id)
        return taken

    def overtaking(self, paths: list[Path], picture: bytes) -> dict[str, float]:
        """A backlog is dropped, then somebody waits for one picture: seconds until the answer, and until the backlog is through."""
        began = time.monotonic()
        with ThreadPoolExecutor(SENDERS) as pool:
            keys = list(pool.map(lambda path: self.put(path.name, path.read_bytes()), paths))
        asked = time.monotonic()
        headers = {} if self.settings.api_key is None else {"Authorization": f"Bearer {self.settings.api_key.get_secret_value()}"}
        answer = requests.post(f"{self.settings.url}/predict", files={"file": ("now.jpg", picture)}, headers=headers, timeout=120)
        answered = time.monotonic()
        answer.raise_for_status()
        self.wait(keys, 600)
        through = time.monotonic()
        return {
            "behind": len(keys),
            "answer_s": round(answered - asked, 3),
            "backlog_s": round(through - began, 3),
            "status": answer.status_code,
        }


def bench_model(folder: Path, manipulated_from: float | None = None) -> Path:
    """A copy of the model that comes with the product, with another threshold if one is given; the network is the same."""
    source = registry.shipped()[-1]
    shutil.copytree(source, folder)
    card = json.loads((folder / "card.json").read_text())
    if manipulated_from is not None:
        card["version"] = "bench"
        card["thresholds"] = {
            "authentic_below": min(card["thresholds"]["authentic_below"], manipulated_from),
            "manipulated_from": manipulated_from,
        }
    (folder / "card.json").write_text(json.dumps(card))
    return folder
