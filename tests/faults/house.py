"""The real programs of the product on real servers, each of which a test may kill, stop, starve or spoil."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.error import HTTPError, URLError
from urllib.request import urlopen

from redis import Redis
from redis.exceptions import RedisError
from sqlalchemy.exc import SQLAlchemyError

import migrations
from pipeline import faults, registry
from pipeline.database import Database
from pipeline.settings import Settings, to_environment
from pipeline.storage import Storage, StorageError
from tests.faults.pictures import portrait
from tests.faults.proxy import Proxy
from tests.fixtures.models import write_model
from webhooks.endpoints import register
from workers import programs, tether
from workers.place import Place
from workers.ports import Ports, free

ROOT = Path(__file__).parents[2]
STAGES = ("extract", "classify", "render")
QUICK: dict[str, Any] = {"lease_s": 5.0, "sweep_s": 1.0, "wake_after_s": 4.0, "reconcile_s": 2.0, "log_level": "warning"}
"""Patience in seconds, as a test can wait; the rules are those of production."""


class Impatient(Exception):
    """Something did not come in time."""


def until(true: Callable[[], Any], what: str, seconds: float, *, look_s: float = 0.03) -> None:
    """Look every 30 ms. Raises Impatient after so many seconds."""
    end = time.monotonic() + seconds
    while not true():
        if time.monotonic() > end:
            raise Impatient(f"{what} did not happen within {seconds:g} s")
        time.sleep(look_s)


@dataclass
class Ended:
    """A process that ended, whoever wanted it."""

    name: str
    pid: int
    status: int
    at: float


@dataclass
class Keeper:
    """Starts a program, and starts it again whenever it ends, as the supervisor does."""

    name: str
    command: list[str]
    environment: dict[str, str]
    folder: Path
    log: Path
    limits: Callable[[], None] | None = None
    piped: bool = False
    """Its log goes to nobody: its own files are limited."""
    process: subprocess.Popen[bytes] | None = None
    wanted: bool = False
    ended: list[Ended] = field(default_factory=list)

    def start(self) -> None:
        self.wanted = True
        with Path(os.devnull).open("ab") if self.piped else self.log.open("ab") as log:
            self.process = subprocess.Popen(
                self.command, env=self.environment, stdout=log, stderr=log, cwd=self.folder, preexec_fn=self.limits
            )

    def look(self) -> None:
        if self.process is not None and self.process.poll() is not None:
            self.ended.append(Ended(self.name, self.process.pid, self.process.returncode, time.time()))
            self.process = None
            if self.wanted:
                self.start()

    def end(self, number: signal.Signals = signal.SIGKILL) -> None:
        """End it for good; `wanted` brings it back."""
        self.wanted = False
        if self.process is not None:
            self.process.send_signal(number)
            self.process.wait()
            self.ended.append(Ended(self.name, self.process.pid, self.process.returncode, time.time()))
            self.process = None

    @property
    def pid(self) -> int:
        assert self.process is not None
        return self.process.pid


class House:
    """A context: everything is up inside, with the tests' model, a webhook receiver, and S3 behind a proxy.

    `settings` reach everything directly, what the programs use goes through `s3`. `heard`: (webhook-id, type, job id).
    """

    def __init__(
        self, root: Path, *, database_url: str = "", seed: int = 7, environment: Mapping[str, str] | None = None, **given: Any
    ) -> None:
        self.root = root
        self._database_url = database_url
        self._environment = dict(environment or {})
        self._given = {**QUICK, **given}
        self._seed = seed
        self.heard: list[tuple[str, str, str]] = []
        self.keepers: dict[str, Keeper] = {}
        self._over = threading.Event()
        self._held = threading.RLock()

    def __enter__(self) -> House:
        self.began = time.time()
        place = self.place = Place.at(self.root)
        self._reserved = Ports(programs.PORTS, {}, paired=programs.PAIRED)
        ports = self.ports = self._reserved.numbers
        self.kept = place.secrets()
        self.s3 = Proxy(ports["s3"], self._seed)
        self.orders = self.root / "orders"
        self.orders.mkdir(exist_ok=True)
        self.settings = Settings(
            data_dir=place.root,
            database_url=self._database_url,
            broker_url=f"redis://:{self.kept['valkey_password']}@127.0.0.1:{ports['valkey']}/0",
            s3_endpoint=f"http://127.0.0.1:{ports['s3']}",
            s3_access_key=self.kept["s3_access_key"],
            s3_secret_key=self.kept["s3_secret_key"],
            secret_key=self.kept["secret_key"],
            web_port=ports["web"],
            events_token=self.kept["events_token"],
            webhook_allow_http=True,
            webhook_allow_private=True,
            faults=self.orders,
            faults_allowed=True,
            **self._given,
        )
        try:
            self._start()
        except BaseException:
            self.__exit__()
            raise
        return self

    def _start(self) -> None:
        programs.write_configuration(self.place, self.settings, self.ports, self.kept)
        spoilt = self.settings.model_copy(update={"s3_endpoint": f"http://127.0.0.1:{self.s3.port}"})
        for program in programs.programs(self.place, spoilt, self.ports):
            tied = [sys.executable, "-S", "-E", tether.__file__, str(self.place.alive), *program.command]
            environment = self.environment_of(spoilt) | dict(program.environment)
            folder = self.place.run if program.group == programs.SERVICES else ROOT
            self.keepers[program.name] = Keeper(program.name, tied, environment, folder, self.place.logs / f"{program.name}.log")
        threading.Thread(target=self._keep, daemon=True).start()
        for name in ("valkey", "seaweedfs"):
            self.keepers[name].start()
        migrations.upgrade(self.settings.database)
        self.db = Database(self.settings.database)
        self.await_broker()
        self.store = Storage(self.settings)
        until(lambda: not free(self.ports["s3"]) and self._stands(), "SeaweedFS' answer", 30)
        registry.publish(self.db, self.store, self.settings, write_model(self.root / "published"))
        registry.promote(self.db, self.settings, "green", "1")
        self._receive()
        for name in (*STAGES, "upkeep", "beat", "web"):
            self.keepers[name].start()
        self.await_ready()

    def environment_of(self, settings: Settings) -> dict[str, str]:
        """What a program is started with."""
        clean = {name: value for name, value in os.environ.items() if not name.startswith("UNMASK_")}
        paths = os.pathsep.join(filter(None, (self._environment.get("PYTHONPATH"), str(ROOT))))
        return {**clean, **self._environment, **to_environment(settings), "PYTHONPATH": paths}

    def __exit__(self, *exception: object) -> None:
        self._over.set()
        with self._held:
            for keeper in reversed(self.keepers.values()):
                keeper.end()
        self.s3.close()
        if hasattr(self, "_receiver"):
            self._receiver.shutdown()
            self._receiver.server_close()
        if hasattr(self, "db"):
            self.db.dispose()
        self._reserved.give_back()

    def _keep(self) -> None:
        while not self._over.wait(0.02):
            with self._held:
                if not self._over.is_set():
                    for keeper in self.keepers.values():
                        keeper.look()

    # -- what a test does

    def put(self, key: str, data: bytes) -> None:
        """Upload, past the proxy."""
        self.store.put(self.settings.inbox_bucket, key, data, "image/jpeg")

    def put_some(self, name: str, count: int, *, first: int) -> list[str]:
        """Upload `count` different portraits, `first` and those after it, as `{name}-{n}.jpg`; returns the keys."""
        keys = [f"{name}-{part}.jpg" for part in range(count)]
        for part, key in enumerate(keys):
            self.put(key, portrait(first + part))
        return keys

    def order(self, point: str, action: str, match: str = "", **more: Any) -> str:
        """Order a fault; its name."""
        return faults.give(self.orders, faults.Order(point, action, match, **more))

    def taken(self, order: str) -> dict[str, Any] | None:
        """Who took it."""
        return faults.taken(self.orders, order)

    def forget_orders(self) -> None:
        """Withdraw them all."""
        for path in self.orders.glob("*.order"):
            path.unlink(missing_ok=True)

    def kill(self, name: str, number: signal.Signals = signal.SIGKILL) -> None:
        """Signal a program; it is started again when it has ended."""
        with self._held:
            os.kill(self.keepers[name].pid, number)

    def stop(self, name: str) -> None:
        """Kill a program and leave it away."""
        with self._held:
            self.keepers[name].end()

    def start(self, name: str) -> None:
        """Bring it back."""
        with self._held:
            self.keepers[name].start()

    def broker(self) -> Redis[bytes]:
        """The broker; to be closed."""
        return Redis.from_url(self.settings.broker_url, socket_timeout=2)

    def await_broker(self) -> None:
        """Wait until it answers."""

        def answers() -> bool:
            try:
                with self.broker() as client:
                    return bool(client.ping())
            except (RedisError, OSError):
                return False

        until(answers, "Valkey's answer", 30)

    def await_ready(self, seconds: float = 200.0) -> None:
        """Wait until one upload has gone all the way, so that every program is up."""
        key = f"ready-{time.time_ns()}.jpg"
        from tests.faults.pictures import portrait

        self.put(key, portrait(time.time_ns() % 10**9))
        until(lambda: self.done(key), "the first result", seconds)

    def done(self, key: str) -> bool:
        """Whether the job of a key is over."""
        from tests.faults.outcome import over

        try:
            return bool(over(self.db, [key]))
        except SQLAlchemyError:
            return False

    def web(self, path: str) -> int:
        """The status of a GET; 0: no answer."""
        try:
            with urlopen(f"http://127.0.0.1:{self.ports['web']}{path}", timeout=15) as answer:
                return int(answer.status)
        except HTTPError as error:
            with error:
                return error.code
        except (URLError, OSError):
            return 0

    def worker(self, pid: int) -> str:
        """A worker process as the ledger calls it."""
        return f"{socket.gethostname()}:{pid}"

    def _stands(self) -> bool:
        try:
            self.store.ensure_buckets()
        except StorageError:
            return False
        return True

    def _receive(self) -> None:
        heard = self.heard

        class Receiver(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                heard.append((self.headers["webhook-id"], body["type"], body["data"].get("job_id", "")))
                self.send_response(204)
                self.end_headers()

            def log_message(self, format: str, *arguments: Any) -> None:
                pass

        self._receiver = ThreadingHTTPServer(("127.0.0.1", 0), Receiver)
        threading.Thread(target=self._receiver.serve_forever, daemon=True).start()
        register(self.db, self.settings, f"http://127.0.0.1:{self._receiver.server_port}/")
