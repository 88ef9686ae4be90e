"""`unmask doctor`: every setting and component looked at, and for whatever is wrong a sentence that says what to do."""

from __future__ import annotations

import ast
import inspect
import json
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import Any

import click
import numpy as np
from pydantic import SecretStr
from rich.markup import escape
from sqlalchemy import literal, select
from sqlalchemy.engine import make_url

from pipeline import classification, extraction, reference, registry
from pipeline.card import ModelError
from pipeline.database import Database, now
from pipeline.groups import group
from pipeline.inboxes import directory
from pipeline.settings import PREFIX, Settings, may_be_in_a_file
from workers import console, environments, hearing, surroundings, wiring
from workers.queues import TRAIN
from workers.sentences import CommandError, sentence_of

ROOM_BYTES = 1_000_000_000
SKEW_S = 5.0
ANSWER_S = 2.0
PROBE = "unmask-doctor.txt"
"""Key of the object that shows whether a bucket can be written; its suffix keeps it from being judged."""


class Trouble(Exception):
    """What a check found wrong, and what to do about it."""

    def __init__(self, found: str, remedy: str) -> None:
        super().__init__(found)
        self.remedy = remedy


@dataclass(frozen=True)
class Finding:
    """What came of one check. `remedy`: what to do, empty where all is well."""

    name: str
    well: bool
    found: str
    remedy: str = ""


@dataclass(frozen=True)
class Patient:
    """What is examined."""

    settings: Settings

    @contextmanager
    def database(self) -> Iterator[Database]:
        """The database, as long as it is needed."""
        with surroundings.opened(self.settings) as database:
            yield database


def _data_dir(patient: Patient) -> str:
    folder = patient.settings.data_dir.absolute()
    place = next(one for one in (folder, *folder.parents) if one.exists())
    try:
        with tempfile.TemporaryFile(dir=place):
            pass
    except OSError as error:
        raise Trouble(f"{place} cannot be written ({error.strerror})", "Give it to this user, or set UNMASK_DATA_DIR.") from error
    free = shutil.disk_usage(place).free
    if free < ROOM_BYTES:
        raise Trouble(f"{free / 1e9:.1f} GB free at {place}", "Make room: at least 1 GB is needed for working copies and models.")
    return f"{folder}, {free / 1e9:.1f} GB free"


def _database(patient: Patient) -> str:
    import migrations

    with patient.database() as database:
        if migrations.pending(database):
            raise Trouble("its tables are older than this code", "Run `unmask db upgrade`.")
        with database.read() as session:
            session.execute(select(literal(1)))
    return make_url(patient.settings.database).render_as_string(hide_password=True)


def _clock(patient: Patient) -> str:
    with patient.database() as database, database.read() as session:
        before = time.time()
        theirs = float(session.execute(select(now())).scalar_one())
        skew = theirs - (before + time.time()) / 2
    if abs(skew) > SKEW_S:
        raise Trouble(f"this machine and the database differ by {skew:+.1f} s", "Let both keep time by NTP; signatures expire otherwise.")
    return f"{skew:+.3f} s from the database's"


def _broker(patient: Patient) -> str:
    import redis

    url = patient.settings.broker_url
    try:
        with redis.Redis.from_url(url, socket_timeout=ANSWER_S, socket_connect_timeout=ANSWER_S) as client:
            client.ping()
            told = client.info("server")
    except (redis.RedisError, ValueError, OSError) as error:
        raise Trouble(str(error), "Start Redis or Valkey there, or set UNMASK_BROKER_URL; `unmask up` brings its own.") from error
    kind, version = ("Valkey", told["valkey_version"]) if "valkey_version" in told else ("Redis", told.get("redis_version", "?"))
    return f"{kind} {version} at {url.rpartition('@')[2]}"


def _bucket(variable: str, name: Callable[[Settings], str], *, write: bool) -> Callable[[Patient], str]:
    def check(patient: Patient) -> str:
        bucket = name(patient.settings)
        remedy = f"Create the bucket {bucket} and let these credentials list, read{' and write' if write else ''} it, or set {variable}."
        try:
            store = surroundings.object_store(patient.settings)
            next(store.listing(bucket, start_after="\U0010ffff"), None)
            if write:
                store.put(bucket, PROBE, b"unmask doctor was here\n", "text/plain")
                store.delete(bucket, PROBE)
        except CommandError as error:
            raise Trouble(error.message, "Start `unmask up`, or set UNMASK_S3_ENDPOINT, _ACCESS_KEY and _SECRET_KEY.") from error
        except Exception as error:
            raise Trouble(str(error), remedy) from error
        return f"{bucket}, {'read and written' if write else 'read'}"

    return check


def _upload_events(patient: Patient) -> str:
    settings = patient.settings
    client = surroundings.object_store(settings).client
    with patient.database() as database:
        inboxes = directory(settings, database).enabled
        heard = {inbox: hearing.look(inbox, settings, database, client) for inbox in inboxes}
    remedies = []
    for inbox, found in heard.items():
        if found.well:
            continue
        ways = wiring.ways(inbox, settings, found.present) if found.wiring else {}
        remedies += [f"Inbox {inbox.name}: {found.found}.", *(f"{way}:\n{text}" for way, text in ways.items())]
    if remedies:
        raise Trouble("; ".join(f"{inbox.name}: {found.found}" for inbox, found in heard.items() if not found.well), "\n\n".join(remedies))
    return "; ".join(f"{inbox.name}: {found.found}" for inbox, found in heard.items())


def _champion(patient: Patient) -> str:
    settings = patient.settings
    with patient.database() as database:
        try:
            name, version = registry.champion(database)
        except ModelError as error:
            raise Trouble(str(error), "Start `unmask up` once, which installs the model that comes with the product.") from error
        store = surroundings.object_store(settings)
        folder = registry.fetch(database, store, settings, name, version)
        classifier = classification.load(folder, runtime=settings.runtime, precision=settings.precision, threads=1)
        lacking = reference.lacking(database)
    size = classifier.card.input_size
    began = time.monotonic()
    classifier.judge(np.zeros((1, size, size, 3), np.uint8))
    took = 1000 * (time.monotonic() - began)
    found = f"{name} {version}, verified, {settings.runtime} {classifier.precision}, {took:.0f} ms a face on one core"
    return f"{found}. {lacking}" if lacking else found


def _detector(patient: Patient) -> str:
    settings = patient.settings
    find = extraction.detector(settings.detector, settings.min_detection)
    began = time.monotonic()
    find(np.zeros((480, 640, 3), np.uint8))
    return f"{settings.detector} loads and answers, {1000 * (time.monotonic() - began):.0f} ms the first time"


def _workers(patient: Patient) -> str:
    from workers import app as celery

    celery.configure(patient.settings)
    expected = {queue.name for queue in celery.app.conf.task_queues}
    if environments.interpreter(patient.settings) is None:
        expected.discard(TRAIN)  # training is no part of judging: without its environment `unmask up` runs nobody for it
    try:
        answers = celery.app.control.inspect(timeout=ANSWER_S).active_queues() or {}
    except Exception as error:
        raise Trouble(f"they cannot be asked ({error})", "See what is said of the broker.") from error
    served = {queue["name"] for queues in answers.values() for queue in queues}
    if missing := sorted(expected - served):
        raise Trouble(f"nobody serves {', '.join(missing)}", "Start the workers: `unmask up`, or the containers of docker/compose.yaml.")
    return f"{len(answers)} workers serve all {len(expected)} queues"


def _training(patient: Patient) -> str:
    settings = patient.settings
    python = environments.interpreter(settings)
    if python is None:
        if settings.train_device == "cpu" and not settings.train_python:
            return "nothing trains on this machine; `make train-environment` brings what it takes"
        raise Trouble("there is no interpreter with TensorFlow", "Run `make train-environment`, or set UNMASK_TRAIN_PYTHON.")
    if settings.train_device != "hpu":
        chosen = group(settings.train_device, settings.train_cards or "0")
        return f"on {chosen.device}, {chosen.world} {'process' if chosen.world == 1 else 'processes'}, by {python}"
    wanted = ["--modules", settings.train_cards, "--device-root", str(settings.device_root), "--launcher", settings.train_launcher]
    looked = subprocess.run([python, "-m", "pipeline.gaudi", *wanted], cwd=environments.CODE, capture_output=True, text=True, check=False)
    if looked.returncode:
        raise Trouble(
            (looked.stderr.strip().splitlines() or ["its interpreter ended without a word"])[-1].rstrip("."),
            "`unmask cards` shows what is here.",
        )
    told = json.loads(looked.stdout)
    return f"Gaudi modules {', '.join(str(card['module']) for card in told['cards'])}, {told['versions']['habana-tensorflow']}"


def _web(patient: Patient) -> str:
    from workers.commands.endpoints import ask

    ask(patient.settings, "GET", "/readyz")
    return f"{patient.settings.url} answers"


def _secret_key(patient: Patient) -> str:
    if patient.settings.secret_key is None:
        raise Trouble("UNMASK_SECRET_KEY is not set", "Set it to 32 or more random characters; webhooks cannot be registered without it.")
    return "set"


CHECKS: Mapping[str, Callable[[Patient], str]] = {
    "data directory": _data_dir,
    "database": _database,
    "clock": _clock,
    "broker": _broker,
    "inbox bucket": _bucket("UNMASK_INBOX_BUCKET", lambda settings: settings.inbox_bucket, write=True),
    "results bucket": _bucket("UNMASK_RESULTS_BUCKET", lambda settings: settings.results_bucket, write=True),
    "models bucket": _bucket("UNMASK_MODELS_BUCKET", lambda settings: settings.models_bucket, write=False),
    "upload events": _upload_events,
    "champion model": _champion,
    "face detector": _detector,
    "workers": _workers,
    "web process": _web,
    "training": _training,
    "secret key": _secret_key,
}
"""What is looked at, in this order; each says what it found or raises."""


def check(name: str, patient: Patient) -> Finding:
    """Do one check; whatever goes wrong in it is a finding."""
    try:
        return Finding(name, True, CHECKS[name](patient))
    except Trouble as trouble:
        return Finding(name, False, str(trouble), trouble.remedy)
    except Exception as error:
        return Finding(name, False, sentence_of(error) or f"{type(error).__name__}: {error}", _REMEDIES.get(name, ""))


_REMEDIES = {
    "database": "Start `unmask up`, or set UNMASK_DATABASE_URL to a database that answers.",
    "upload events": "See what is said of the database and of the object store.",
    "clock": "It is read from the database: see there.",
    "champion model": "`unmask models list` shows the versions; `unmask models rollback` returns to the one before.",
    "face detector": "Install the product anew: `make up` does.",
    "web process": "Start `unmask up`, or set UNMASK_PUBLIC_URL to where it answers.",
}


def examine(as_json: bool) -> bool:
    """Do all checks and print what they found. True: all is well. Raises SettingsError before any check."""
    patient = Patient(surroundings.settings_in_force())
    findings = [Finding("settings", True, "every UNMASK_ variable is known and makes sense")]
    with console.progress(console.console(error=True)) as shown:
        task = shown.add_task("checking", total=len(CHECKS), note="")
        for name in CHECKS:
            shown.update(task, note=name)
            findings.append(check(name, patient))
            shown.update(task, advance=1)
    well = all(finding.well for finding in findings)
    if as_json:
        console.print_json([asdict(finding) for finding in findings])
        return well
    made = console.table("Doctor", "what", "", "found", "what to do")
    for finding in findings:
        mark = "[green]ok[/]" if finding.well else "[bold red]wrong[/]"
        made.add_row(finding.name, mark, escape(finding.found), "see below" if "\n" in finding.remedy else escape(finding.remedy))
    console.console().print(made)
    for finding in findings:
        if "\n" in finding.remedy:  # commands, to be copied as they are
            click.echo(f"\n{finding.remedy}")
    return well


def print_settings(as_json: bool) -> None:
    """Print every setting: its variable, its default and what it is."""
    rows = described()
    if as_json:
        console.print_json(rows)
        return
    made = console.table("Settings", "variable", "default", "what it is")
    for row in rows:
        made.add_row(row["variable"], escape(row["default"]), escape(row["what"]))
    console.console().print(made)
    console.console().print("[dim]Secrets, and addresses that hold one, may be given as UNMASK_…_FILE, the path of a file.[/]")


def described() -> list[dict[str, Any]]:
    """Every setting: `variable`, `default` (as the environment would give it), `file` (whether `_FILE` works), `what`."""
    docs = _docstrings()
    return [
        {
            "variable": PREFIX + name.upper(),
            "default": _plain(field.default),
            "file": may_be_in_a_file(name),
            "what": docs.get(name, ""),
        }
        for name, field in Settings.model_fields.items()
    ]


def _plain(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, bool):
        return str(value).lower()
    return value.get_secret_value() if isinstance(value, SecretStr) else str(value)


def _docstrings() -> dict[str, str]:
    """The text below each field of Settings, which Python itself forgets."""
    body = next(node.body for node in ast.parse(inspect.getsource(Settings)).body if isinstance(node, ast.ClassDef))
    found = {}
    for field, after in pairwise(body):
        if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name) and isinstance(after, ast.Expr):
            found[field.target.id] = " ".join(str(ast.literal_eval(after.value)).split())
    return found
