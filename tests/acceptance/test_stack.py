"""The whole product by its front door: `up` in a process of its own, pictures put with boto3, results read from the bucket."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import requests
from redis import Redis
from skimage import data as pictures
from sqlalchemy import select

from pipeline import inquiry, ledger, registry
from pipeline.classification import load
from pipeline.database import Database, EventRow, JobRow
from pipeline.jobs import Pixels, Queue, Status, Upload
from pipeline.settings import Settings, to_environment
from pipeline.storage import Storage
from pipeline.training import datasets, evaluation
from pipeline.training.crops import Cut
from pipeline.training.figures import CLEAN
from tests.fixtures.models import write_model
from workers import embedded
from workers.orders import order

ROOT = Path(__file__).parents[2]
FACES = ROOT.parent / "shared" / "faces"
READY_S = 160.0
QUICK = {"UNMASK_LEASE_S": "2", "UNMASK_SWEEP_S": "1", "UNMASK_WAKE_AFTER_S": "3", "UNMASK_RECONCILE_S": "2"}

PROGRAM = """
from pathlib import Path
from pipeline import registry
registry.STARTER = Path("none")
from workers.embedded import main
raise SystemExit(main())
"""
"""`python -m workers.embedded`, without the model that comes with the product: the tests bring one they can steer by colour."""

pytestmark = pytest.mark.timeout(600)


def surroundings(data_dir: Path) -> dict[str, str]:
    """The environment without settings of another installation."""
    return {name: value for name, value in os.environ.items() if not name.startswith("UNMASK_")} | {"UNMASK_DATA_DIR": str(data_dir)}


class Up:
    """The stack on a data directory, and the way to what it runs."""

    def __init__(self, data_dir: Path, **environment: str) -> None:
        self.data_dir = data_dir
        self.lines: list[str] = []
        self._ready = threading.Event()
        self.process = subprocess.Popen(
            [sys.executable, "-c", PROGRAM],
            cwd=ROOT,
            env={**surroundings(data_dir), **QUICK, **environment},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.lines.append(line.rstrip())
            if line.startswith("Unmask is up"):
                self._ready.set()
        self._ready.set()

    @property
    def said(self) -> str:
        """All it has printed."""
        return "\n".join(self.lines)

    def ready(self) -> Up:
        """Wait until it says so; opens the stores."""
        assert self._ready.wait(READY_S), self.said
        settings = embedded.running(self.data_dir)
        assert settings is not None, self.said
        self.settings: Settings = settings
        self.store = Storage(settings)
        self.db = Database(settings.database)
        return self

    def ended(self, seconds: float = 60) -> int:
        """Wait for its end; its exit status."""
        status = self.process.wait(seconds)
        self._reader.join(5)
        assert self.process.stdout is not None
        self.process.stdout.close()
        if hasattr(self, "db"):
            self.db.dispose()  # opens again if it is asked once more
        return status

    def stopped(self, number: signal.Signals = signal.SIGTERM) -> int:
        """Signal it and wait for its end; its exit status."""
        self.process.send_signal(number)
        return self.ended()

    def tree(self) -> list[int]:
        """It and all that came of it, parents first."""
        parents = {}
        for entry in Path("/proc").glob("[0-9]*/stat"):
            try:
                fields = entry.read_text().rpartition(")")[2].split()
            except OSError:
                continue
            parents[int(entry.parent.name)] = int(fields[1])
        found = [self.process.pid]
        for pid in found:
            found += [child for child, parent in parents.items() if parent == pid]
        return found

    def order(self, what: str, *arguments: Any) -> Any:
        """Give its supervisor an order."""
        return order(self.data_dir / "run" / "supervisor.sock", what, *arguments)

    def broker(self) -> Redis[bytes]:
        """Its broker; to be closed."""
        return Redis.from_url(self.settings.broker_url)

    def wake(self, job_id: str, queue: Queue) -> None:
        """Wake a job from a process of its own: Celery keeps to the first broker that a process has spoken to."""
        program = "import sys, pipeline.jobs as j, workers.app as a; sys.exit(not a.wake(sys.argv[1], queue=j.Queue(sys.argv[2])))"
        command = [sys.executable, "-c", program, job_id, queue.value]
        subprocess.run(command, cwd=ROOT, env={**os.environ, **to_environment(self.settings)}, check=True)

    def put(self, key: str, data: bytes) -> None:
        """Drop a picture into the inbox."""
        self.store.put(self.settings.inbox_bucket, key, data, "image/jpeg")

    def jobs(self) -> list[JobRow]:
        """All jobs."""
        return inquiry.page(self.db, limit=1000)[0]

    def job(self, key: str) -> JobRow:
        """Wait for the end of the one job of a key."""
        wait_for(lambda: any(job.key == key and job.finished_at for job in self.jobs()), f"the end of {key}", self)
        [job] = [job for job in self.jobs() if job.key == key]
        return job


def wait_for(true: Callable[[], bool], what: str, live: Up, seconds: float = 60.0) -> None:
    """Look every 20 ms."""
    until = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < until, f"{what} did not come: {[(j.key, j.status, j.stage, j.error) for j in live.jobs()]}"
        time.sleep(0.02)


def jpeg(pixels: Pixels) -> bytes:
    return cv2.imencode(".jpg", cv2.cvtColor(pixels, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_JPEG_QUALITY, 95])[1].tobytes()


def photographs(number: int) -> list[bytes]:
    """So many different pictures of faces: the shared ones where they are at hand, else one in different sizes."""
    found = sorted(FACES.rglob("*.jp*g"))[:number]
    if len(found) == number:
        return [path.read_bytes() for path in found]
    return [jpeg(cv2.resize(pictures.astronaut(), (360 + 8 * step, 360 + 8 * step))) for step in range(number)]


def green(data: bytes) -> bytes:
    """The picture so tinted that the tests' model finds its faces manipulated."""
    pixels = cv2.cvtColor(cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR), cv2.COLOR_BGR2RGB)
    return jpeg((pixels * np.array((0.3, 1.0, 0.3))).astype(np.uint8))


def install(live: Up, folder: Path) -> None:
    """Make the tests' model champion."""
    registry.publish(live.db, live.store, live.settings, write_model(folder))
    registry.promote(live.db, live.settings, "green", "1")


@pytest.fixture(scope="module")
def live(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Up]:
    """A stack that is up, with the tests' model."""
    up = Up(tmp_path_factory.mktemp("live"), UNMASK_WEBHOOK_ALLOW_HTTP="true", UNMASK_WEBHOOK_ALLOW_PRIVATE="true").ready()
    install(up, tmp_path_factory.mktemp("model"))
    yield up
    assert up.stopped(signal.SIGINT) == 0, up.said


def test_a_dropped_picture_comes_back_judged(live: Up) -> None:
    [photograph] = photographs(1)
    live.put("plain ü+.jpg", photograph)
    live.put("tinted.jpg", green(photograph))

    plain, tinted = live.job("plain ü+.jpg"), live.job("tinted.jpg")

    assert [(job.status, job.verdict, job.origin) for job in (plain, tinted)] == [
        ("done", "authentic", "seaweedfs"),
        ("done", "manipulated", "seaweedfs"),
    ]
    for job in (plain, tinted):
        prefix = f"{job.key}/{job.id}/"
        assert [one.key for one in live.store.listing("results", prefix)] == [f"{prefix}annotated.png", f"{prefix}result.json"]
        result = json.loads(live.store.fetch("results", f"{prefix}result.json", max_bytes=100_000))
        assert (result["verdict"], result["source"]["key"], len(result["faces"])) == (job.verdict, job.key, 1)


def test_it_is_picked_up_within_a_second_of_the_upload(live: Up) -> None:
    [photograph] = photographs(1)
    live.put("warm.jpg", photograph)
    live.job("warm.jpg")
    began = time.time()
    live.put("quick.jpg", photograph)
    started = live.job("quick.jpg").started_at
    assert started is not None
    assert started - began < 1


def test_a_webhook_leaves_right_after_the_end(live: Up) -> None:
    arrived: list[tuple[float, dict[str, Any]]] = []

    class Receiver(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            arrived.append((time.time(), json.loads(self.rfile.read(int(self.headers["Content-Length"])))))
            self.send_response(204)
            self.end_headers()

        def log_message(self, format: str, *arguments: Any) -> None:
            pass

    from webhooks.endpoints import register

    with ThreadingHTTPServer(("127.0.0.1", 0), Receiver) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        register(live.db, live.settings, f"http://127.0.0.1:{server.server_port}/", events=["job.done"])
        live.put("told.jpg", photographs(1)[0])
        job = live.job("told.jpg")
        wait_for(lambda: any(body["data"]["job_id"] == job.id for _, body in arrived), "the webhook", live)
        server.shutdown()
    [at] = [at for at, body in arrived if body["data"]["job_id"] == job.id]
    assert job.finished_at is not None
    assert at - job.finished_at < 1


def test_a_second_stack_on_the_same_directory_is_refused(live: Up) -> None:
    second = Up(live.data_dir)
    assert second.ended() == 2
    assert second.lines == [f"A stack is up on {live.data_dir} already: stop it first, or choose another UNMASK_DATA_DIR."]


def test_an_upload_whose_event_was_lost_is_found(live: Up) -> None:
    live.order("stopProcess", "front:web")
    live.put("lost.jpg", photographs(1)[0])

    job = live.job("lost.jpg")

    live.order("startProcess", "front:web")
    assert (job.status, job.origin) == ("done", "sweep")


def test_somebody_who_waits_overtakes_those_who_do_not(live: Up) -> None:
    [photograph] = photographs(1)
    live.order("stopProcess", "workers:extract")
    for key in ("bulk1.jpg", "bulk2.jpg", "urgent.jpg"):
        live.put(key, photograph)
    wait_for(lambda: {"bulk1.jpg", "bulk2.jpg", "urgent.jpg"} <= {job.key for job in live.jobs()}, "the jobs", live)
    urgent = next(job for job in live.jobs() if job.key == "urgent.jpg")
    upload = Upload(urgent.bucket, urgent.key, etag=urgent.etag, sequencer=urgent.sequencer)
    assert ledger.accept(live.db, upload, queue=Queue.INTERACTIVE).job_id == urgent.id
    broker = live.broker()
    wait_for(lambda: broker.llen("extract") == 3, "the messages", live)  # each is sent after its row is there
    live.wake(urgent.id, Queue.INTERACTIVE)
    assert broker.llen("interactive.extract") == 1
    live.order("startProcess", "workers:extract")

    started = {key: live.job(key).started_at or 0 for key in ("bulk1.jpg", "bulk2.jpg", "urgent.jpg")}

    assert min(started, key=lambda key: started[key]) == "urgent.jpg"
    broker.close()


def test_a_process_that_dies_is_started_again_and_its_work_done(live: Up) -> None:
    before = {one["name"]: one["pid"] for one in live.order("getAllProcessInfo")}
    assert before["extract"] > 0  # 0 would be ourselves
    assert before["classify"] > 0
    for name in ("extract", "classify"):
        os.kill(before[name], signal.SIGKILL)
    live.put("after.jpg", photographs(1)[0])
    assert live.job("after.jpg").status == "done"
    assert "was started again" in live.said


def restarted(live: Up) -> None:
    """Workers that have read anew who is champion."""
    for name in ("workers:extract", "workers:classify"):
        live.order("stopProcess", name)
        live.order("startProcess", name)


@pytest.fixture
def shipped(live: Up) -> Iterator[Path]:
    """The folder of the model that comes with the product, champion of the stack for as long as it is wanted."""
    folder = registry.shipped()[-1]
    card = registry.publish(live.db, live.store, live.settings, folder)
    registry.promote(live.db, live.settings, card.name, card.version)
    restarted(live)
    yield folder
    registry.promote(live.db, live.settings, "green", "1")
    restarted(live)


def test_a_picture_has_one_score_whichever_way_it_is_asked_for(live: Up, shipped: Path, tmp_path: Path) -> None:
    # Given one picture of one face
    [photograph] = photographs(1)
    picture = tmp_path / "faces" / "real" / "picture.jpg"
    picture.parent.mkdir(parents=True)
    picture.write_bytes(photograph)

    # When it is submitted on the command line, asked about over HTTP, and measured as `unmask evaluate` does
    done = subprocess.run(
        [sys.executable, "-m", "workers.cli", "submit", str(picture), "--wait", "--json"],
        cwd=ROOT,
        env=surroundings(live.data_dir),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    [submitted] = json.loads(done.stdout)
    with requests.Session() as session:
        session.trust_env = False  # no proxy lies between
        answer = session.post(f"{live.settings.url}/predict", files={"file": ("picture.jpg", photograph, "image/jpeg")}, timeout=120)
    assert answer.status_code == 200, answer.text
    predicted = answer.json()
    classifier = load(shipped, runtime=live.settings.runtime, precision=live.settings.precision)
    cut = replace(Cut.of(live.settings), size=classifier.card.input_size, margin=classifier.card.margin)
    records = datasets.load(tmp_path / "faces")
    measured = evaluation.found_sets(evaluation.Scorer(classifier), records, cut, [CLEAN])["real"][CLEAN]

    # Then all three were judged by that model, and say the same
    assert [found["model"]["version"] for found in (submitted, predicted)] == [shipped.name] * 2
    assert (len(submitted["faces"]), len(predicted["faces"]), len(measured.scores)) == (1, 1, 1)
    assert submitted["verdict"] == predicted["verdict"]
    assert 0 < submitted["score"] < 1
    assert predicted["score"] == pytest.approx(submitted["score"], abs=1e-4)
    assert measured.scores[0] == pytest.approx(submitted["score"], abs=1e-4)


def test_whatever_is_killed_every_picture_has_one_result(tmp_path: Path) -> None:
    keys = [f"{number:02}.jpg" for number in range(20)]
    up = Up(tmp_path / "data").ready()
    install(up, tmp_path)
    ports = json.loads((up.data_dir / "stack.json").read_text())["ports"]
    for key, photograph in zip(keys, photographs(20), strict=True):
        up.put(key, photograph)
    wait_for(lambda: sum(job.status == "done" for job in up.jobs()) >= 3, "the first results", up)
    for pid in up.tree():
        os.kill(pid, signal.SIGKILL)
    up.ended(10)
    left = sum(job.status != "done" for job in up.jobs())
    assert left > 0, "the kill came too late to show anything"

    up = Up(up.data_dir).ready()
    wait_for(lambda: all(job.finished_at for job in up.jobs()) and len(up.jobs()) == 20, "the rest", up)
    os.kill(up.tree()[1], signal.SIGKILL)  # this time the supervisor alone
    assert up.ended(30) == 2
    assert "The supervisor of the stack has ended" in up.said

    up = Up(up.data_dir).ready()
    assert json.loads((up.data_dir / "stack.json").read_text())["ports"] == ports
    assert Counter((job.key, job.status) for job in up.jobs()) == Counter((key, "done") for key in keys)
    stored = sorted(one.key for one in up.store.listing("results"))
    assert stored == sorted(f"{job.key}/{job.id}/{name}" for job in up.jobs() for name in ("annotated.png", "result.json"))
    with up.db.read() as session:
        ends = session.scalars(select(EventRow.subject).where(EventRow.type == "job.done")).all()
    assert Counter(ends) == Counter(job.id for job in up.jobs())

    up.put("last.jpg", photographs(1)[0])
    wait_for(lambda: any(job.key == "last.jpg" and job.started_at for job in up.jobs()), "one more", up)
    assert up.stopped() == 0, up.said
    assert up.lines[-1] == "stopped"
    assert Status.RUNNING.value not in {job.status for job in up.jobs()}, "what was under way was to be finished"
    assert embedded.running(up.data_dir) is None
