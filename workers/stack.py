"""One running stack: Valkey, SeaweedFS, workers, beat and web under supervisor, brought up in order and watched.

Everything lies in the data directory and survives restarts, the ports too where they are still free. Each process has
its own log, is started again if it dies, and does not outlive the supervisor, nor the supervisor whoever started it.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from threading import Event
from typing import Any
from urllib.error import HTTPError, URLError
from urllib.request import Request, urlopen

from pipeline import inboxes
from pipeline.inboxes import Inbox
from pipeline.settings import PREFIX, Settings, to_environment
from workers import tether
from workers.environments import interpreter
from workers.orders import UNHEARD, order
from workers.place import Place, read, remember
from workers.ports import LOOPBACK, Ports, free
from workers.programs import FRONT, PAIRED, PORTS, WORKERS, write_configuration

READY_S = 150.0
"""How long the stack may take to come up before it is given up."""
LOOK_S = 0.04
WATCH_S = 1.0
SLACK_S = 30.0
"""What stopping may take beyond the time a stage may take."""
NODES = ("extract", "classify", "render", "upkeep")


class StackError(Exception):
    """The stack cannot start, or cannot go on. One sentence that says what to do."""

    permanent = True


class Stack:
    """As a context: starts the stack and waits until it is ready, or until `stopping` is set; stops it at the end.

    `settings` are those to reach it with. Raises StackError.
    """

    def __init__(self, given: Settings, say: Callable[[str], None], stopping: Event) -> None:
        self.settings = given
        self._say = say
        self._stopping = stopping
        self._place: Place | None = None
        self._lock: int | None = None
        self._reserved: Ports | None = None
        self._supervisor: subprocess.Popen[bytes] | None = None
        self._began = time.monotonic()
        self._starts: dict[str, int] = {}

    def __enter__(self) -> Stack:
        try:
            self._start()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(self, *exception: object) -> None:
        self.stop()

    # -- coming up

    def _start(self) -> None:
        self._began = time.monotonic()
        place = self._place = Place.at(self.settings.data_dir)
        self._lock = place.occupy()
        if self._lock is None:
            raise StackError(f"A stack is up on {place.root} already: stop it first, or choose another UNMASK_DATA_DIR.")
        if not place.deserted():
            raise StackError(f"Processes of an earlier stack on {place.root} are still alive: end them, then start again.")
        given, kept = self.settings, place.secrets()
        self._reserved = _reserved(given, read(place.state).get("ports", {}))
        ports = self._reserved.numbers
        self.settings = _live(given, place, ports, kept)
        remember(place, ports, None)
        write_configuration(place, self.settings, ports, kept, _heard(self.settings))
        self._launch(place)
        _prepare(self.settings)
        self._await("valkey", self._valkey_answers, f"{LOOPBACK}:{ports['valkey']}")
        if self._stopping.is_set():
            return
        for group in (WORKERS, FRONT):
            self._order("startProcessGroup", group, False)
        self._await("seaweedfs", lambda: not free(ports["s3"]) and self._buckets_stand(), f"{self.settings.s3_endpoint}")
        self._install_model()
        self._say_who_trains()
        self._await("web", self._web_answers, self.settings.url)
        missing = set(NODES)
        self._await("workers", lambda: self._workers_answer(missing), ", ".join(NODES))
        self._await("beat", lambda: self._states().get("beat") == "RUNNING", "")
        if self._stopping.is_set():
            return
        self._starts = {one["name"]: one["start"] for one in self._processes()}
        remember(place, ports, to_environment(self.settings))

    def _launch(self, place: Place) -> None:
        environment = {name: value for name, value in os.environ.items() if not name.startswith(PREFIX)}
        environment |= to_environment(self.settings)
        environment["PYTHONPATH"] = os.pathsep.join(filter(None, (str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH"))))
        place.supervisor.unlink(missing_ok=True)
        supervisor = (sys.executable, "-m", "supervisor.supervisord", "-n", "-c", str(place.run / "supervisor.conf"))
        with (place.logs / "supervisor.log").open("ab") as log:
            self._supervisor = subprocess.Popen(
                [sys.executable, "-S", "-E", tether.__file__, str(place.alive), *supervisor],
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,  # Ctrl-C is for us, who stop the others in order
            )
        self._await("supervisor", lambda: self._order("getState")["statename"] == "RUNNING", f"logs in {place.logs}")

    def _await(self, name: str, ready: Callable[[], bool], where: str) -> None:
        looks = 0
        while not self._stopping.wait(LOOK_S if looks else 0):
            with suppress(*UNHEARD):
                if ready():
                    self._say(f"{name:<10} ready after {time.monotonic() - self._began:4.1f} s   {where}".rstrip())
                    return
            looks += 1
            if looks % 10 == 0:
                self._must_go_on()
            if time.monotonic() - self._began > READY_S:
                raise StackError(f"{name} was not ready within {READY_S:g} s: the logs in {self._logs} say why.")

    def _valkey_answers(self) -> bool:
        from redis import Redis
        from redis.exceptions import RedisError

        try:
            with Redis.from_url(self.settings.broker_url, socket_timeout=2) as client:
                return bool(client.ping())
        except RedisError:
            return False

    def _buckets_stand(self) -> bool:
        from pipeline.storage import StorageError, storage

        try:
            storage(self.settings).ensure_buckets()
        except StorageError as error:
            if error.permanent:
                raise StackError(str(error)) from error
            return False
        return True

    def _install_model(self) -> None:
        from pipeline import registry
        from pipeline.database import database
        from pipeline.storage import storage

        if self._stopping.is_set():
            return
        try:
            card = registry.install_starter(database(self.settings.database), storage(self.settings), self.settings)
        except registry.ModelError as error:
            self._say(f"{'model':<10} none: {error}")
        else:
            self._say(f"{'model':<10} {card.name} {card.version}")

    def _say_who_trains(self) -> None:
        python = interpreter(self.settings)
        none = "none: `make train-environment` brings what trainings need"
        self._say(f"{'training':<10} {none if python is None else f'by {python}, on {self.settings.train_device}'}")

    def _web_answers(self) -> bool:
        """Whether it is there, and ours: it takes our token, and only then sees that the notification is empty."""
        token = self.settings.events_token.get_secret_value() if self.settings.events_token else ""
        where = f"http://{LOOPBACK}:{self.settings.web_port}/events/seaweedfs"
        try:
            urlopen(Request(where, b"{}", {"Authorization": f"Bearer {token}"}), timeout=2).close()
        except HTTPError as answer:
            with answer:
                return answer.code == 400
        except URLError:
            return False
        return False

    def _workers_answer(self, missing: set[str]) -> bool:
        from kombu.exceptions import OperationalError

        from workers.app import app

        try:
            replies = app.control.ping(timeout=0.25, limit=len(NODES)) or ()
        except OperationalError:
            return False
        missing.difference_update(node.partition("@")[0] for reply in replies for node in reply)
        return not missing

    # -- staying up

    def watch(self) -> None:
        """Stay until `stopping` is set; say which process had to be started again. Raises StackError if one cannot be."""
        while not self._stopping.wait(WATCH_S):
            self._must_go_on()
            for one in self._processes():
                if one["start"] != self._starts.get(one["name"], one["start"]):
                    self._say(f"{one['name']} had ended and was started again; its log is in {self._logs}")
                self._starts[one["name"]] = one["start"]

    def _must_go_on(self) -> None:
        if self._supervisor is None or self._supervisor.poll() is not None:
            raise StackError(f"The supervisor of the stack has ended, and all with it: start again; its log is in {self._logs}.")
        for name, state in self._states().items():
            if state == "FATAL":
                raise StackError(f"{name} does not stay up: the end of {self._logs / name}.log says why.")

    def _states(self) -> dict[str, str]:
        return {one["name"]: one["statename"] for one in self._processes()}

    def _processes(self) -> list[dict[str, Any]]:
        try:
            return list(self._order("getAllProcessInfo"))
        except UNHEARD:  # just starting, or just ended: the next look tells
            return []

    def _order(self, what: str, *arguments: Any) -> Any:
        assert self._place is not None  # noqa: S101
        return order(self._place.supervisor, what, *arguments)

    @property
    def _logs(self) -> Path:
        return self.settings.data_dir.absolute() / "logs"

    # -- going down

    def kill(self) -> None:
        """End everything at once. Nothing is lost; what was under way is done again at the next start."""
        if self._supervisor is not None:
            self._supervisor.kill()

    def stop(self) -> None:
        """Let what is under way finish, stop in order, and leave the data directory to others."""
        if self._supervisor is not None:
            self._supervisor.terminate()
            answered_s = self.settings.predict_wait_s  # before the workers are asked to stop
            try:
                self._supervisor.wait(answered_s + max(self.settings.stage_limit_s, self.settings.train_stop_s) + SLACK_S)
            except subprocess.TimeoutExpired:
                self.kill()
                self._supervisor.wait()
            self._supervisor = None
        if self._lock is not None and self._place is not None:
            if self._reserved is not None:
                remember(self._place, self._reserved.numbers, None)
            self._place.deserted()
            os.close(self._lock)
            self._lock = None
        if self._reserved is not None:
            self._reserved.give_back()
        if self._place is not None and self._place.sockets != self._place.run:
            shutil.rmtree(self._place.sockets, ignore_errors=True)


def _reserved(given: Settings, before: Mapping[str, int]) -> Ports:
    wished = {"web": given.web_port} | {name: port for name, port in before.items() if name in PORTS}
    if "web_port" in given.model_fields_set:
        if not free(given.web_port):
            raise StackError(f"Port {given.web_port} is taken: choose another UNMASK_WEB_PORT, or leave it out to have one chosen.")
        wished["web"] = given.web_port
    return Ports(PORTS, wished, paired=PAIRED)


def _live(given: Settings, place: Place, ports: Mapping[str, int], kept: Mapping[str, str]) -> Settings:
    """The settings of the stack: those given, with everything that it brings itself."""
    own = {
        "data_dir": place.root,
        "broker_url": f"redis://:{kept['valkey_password']}@{LOOPBACK}:{ports['valkey']}/0",
        "s3_endpoint": f"http://{LOOPBACK}:{ports['s3']}",
        "s3_access_key": kept["s3_access_key"],
        "s3_secret_key": kept["s3_secret_key"],
        "web_port": ports["web"],
        "secret_key": given.secret_key or kept["secret_key"],
        "events_token": given.events_token or kept["events_token"],
    }
    return Settings.model_validate({**{name: getattr(given, name) for name in given.model_fields_set}, **own})


def _heard(settings: Settings) -> tuple[Inbox, ...]:
    """The inboxes to listen for. At the first start there are no tables to look into yet."""
    from sqlalchemy.exc import SQLAlchemyError

    from pipeline.database import database

    try:
        return inboxes.directory(settings, database(settings.database)).enabled
    except SQLAlchemyError:
        return (inboxes.of_settings(settings),)


def _prepare(settings: Settings) -> None:
    """What takes a moment in this process, while the servers start: the database, and the way to the workers."""
    import migrations
    from workers.app import configure

    migrations.upgrade(settings.database)
    configure(settings)
