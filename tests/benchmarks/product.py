"""The product as it is deployed on one machine: real Valkey, SeaweedFS and PostgreSQL (or SQLite), every program of `unmask up`."""

from __future__ import annotations

import json
import shutil
import statistics
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from queue import Queue
from typing import Any

import psycopg
import requests
from redis import Redis
from sqlalchemy import func, select

from pipeline import registry
from pipeline.database import Database, FaceRow, JobRow
from pipeline.jobs import Status, Verdict
from pipeline.settings import Settings
from pipeline.storage import Storage
from tests.benchmarks import accounting
from tests.fixtures.databases import PostgresServer, postgres_binaries
from workers import embedded, orders, programs
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


@dataclass(frozen=True)
class Result:
    """What the product says of one picture: its name, the scores of its faces in order, and how many of them were drawn on."""

    name: str
    scores: list[float]
    drawn: int


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
            self._postgres = PostgresServer(binaries, durable=True)
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

    def results(self, jobs: list[JobRow]) -> list[Result]:
        """What each job says of its picture."""
        named = {job.id: Path(job.key).name.partition("-")[2] for job in jobs}
        scores: dict[str, list[float]] = {job: [] for job in named}
        drawn: Counter[str] = Counter()
        with self.db.read() as session:
            for face in session.scalars(select(FaceRow).where(FaceRow.job_id.in_(named)).order_by(FaceRow.job_id, FaceRow.index)):
                if face.score is not None:
                    scores[face.job_id].append(face.score)
                drawn[face.job_id] += face.verdict == Verdict.MANIPULATED.value
        return [Result(named[job], scores[job], drawn[job]) for job in named]

    def servers(self) -> dict[str, str]:
        """The versions of the servers it runs on, and whether the database waits for the disk."""
        with Redis.from_url(self.settings.broker_url) as broker:
            told = broker.info("server")
        versions = {"valkey": str(told.get("valkey_version") or told["redis_version"])}
        said = subprocess.run([programs.weed_binary(), "version"], capture_output=True, text=True, check=False).stdout
        versions["seaweedfs"] = " ".join(said.split()[:4])
        if self._postgres is not None:
            with self.db.engine.connect() as connection:
                for name in ("server_version", "fsync", "synchronous_commit"):
                    value = str(connection.exec_driver_sql(f"show {name}").scalar_one())
                    versions["postgresql" if name == "server_version" else name] = value
        return versions

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

    def overtaking(self, paths: list[Path], picture: bytes, repeats: int) -> dict[str, Any]:
        """Somebody waits for one picture behind a backlog, so often; medians, each time itself, and the same with nobody ahead."""
        idle, times = [], []
        self._ask(picture)  # connections are open
        for _ in range(repeats):
            idle.append(round(self._ask(picture), 3))
            times.append(self._overtaken(paths, picture))
        middle = {name: statistics.median(one[name] for one in times) for name in ("behind", "answer_s", "backlog_s")}
        return middle | {"idle_s": statistics.median(idle), "each": times, "each_idle_s": idle}

    def _overtaken(self, paths: list[Path], picture: bytes) -> dict[str, float]:
        """Seconds until the answer and until the backlog is through, both from the asking; `behind`: what waited or was at work then."""
        self._post("/v1/queues/bulk/pause").raise_for_status()
        with ThreadPoolExecutor(SENDERS) as pool:
            keys = list(pool.map(lambda path: self.put(path.name, path.read_bytes()), paths))
        _await(lambda: self._open(keys) == len(keys), "Not every upload became a job.")
        self._post("/v1/queues/bulk/resume").raise_for_status()
        # the sweeper wakes them: the backlog is at work when somebody asks
        _await(lambda: self._open(keys, JobRow.fence > 0) > 0, "Nobody took a job of the backlog.")
        behind, asked = self._open(keys), time.time()
        answer_s = self._ask(picture)
        left = self._open(keys)
        ended = max(job.finished_at or 0.0 for job in self.wait(keys, 600))
        return {"behind": behind, "left": left, "answer_s": round(answer_s, 3), "backlog_s": round(ended - asked, 3)}

    def _open(self, keys: list[str], *which: Any) -> int:
        """How many of them are jobs that are not over, and `which` holds for."""
        with self.db.read() as session:
            return int(session.execute(select(func.count()).where(JobRow.key.in_(keys), JobRow.status.not_in(OVER), *which)).scalar_one())

    def _ask(self, picture: bytes) -> float:
        """Seconds until `/predict` answers."""
        began = time.monotonic()
        self._post("/predict", files={"file": ("now.jpg", picture)}).raise_for_status()
        return time.monotonic() - began

    def _post(self, route: str, **what: Any) -> requests.Response:
        headers = {} if self.settings.api_key is None else {"Authorization": f"Bearer {self.settings.api_key.get_secret_value()}"}
        return requests.post(f"{self.settings.url}{route}", headers=headers, timeout=120, **what)


def _await(true: Callable[[], bool], otherwise: str, patience_s: float = 120.0) -> None:
    until = time.monotonic() + patience_s
    while not true():
        if time.monotonic() > until:
            raise TimeoutError(otherwise)
        time.sleep(0.02)


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
