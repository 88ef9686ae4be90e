"""A data directory: what lies where in it, what is remembered from one start to the next, and who may use it."""

from __future__ import annotations

import fcntl
import json
import os
import secrets
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from workers.exclusion import locked, locked_within

SOCKET_PATH_MOST = 90
"""Unix sockets have no longer paths than about this."""
ORPHANS_S = 15.0
"""How long the processes of an earlier stack may take to vanish."""


@dataclass(frozen=True)
class Place:
    """The data directory `root`, absolute. Sockets lie in `sockets`, which is elsewhere if the path of `root` is too long."""

    root: Path
    sockets: Path

    @classmethod
    def at(cls, data_dir: Path) -> Place:
        """The place at a data directory, made where missing, for its owner alone."""
        root = data_dir.absolute()
        root.mkdir(parents=True, exist_ok=True, mode=0o700)
        for name in ("run", "logs", "valkey", "seaweedfs"):
            (root / name).mkdir(exist_ok=True, mode=0o700)
        run = root / "run"
        return cls(root, run if len(str(run)) < SOCKET_PATH_MOST else Path(tempfile.mkdtemp(prefix="unmask-")))

    @property
    def run(self) -> Path:
        """Configuration of the programs, written anew at every start."""
        return self.root / "run"

    @property
    def logs(self) -> Path:
        """One file per process."""
        return self.root / "logs"

    @property
    def supervisor(self) -> Path:
        """Where the supervisor takes orders."""
        return self.sockets / "supervisor.sock"

    @property
    def alive(self) -> Path:
        """Locked, shared, by every living process of the stack."""
        return self.run / "alive.lock"

    @property
    def state(self) -> Path:
        """Ports, and while the stack is up the environment to reach it with."""
        return self.root / "stack.json"

    def occupy(self) -> int | None:
        """Become the only one here: a descriptor to close at the end, or None if somebody is here already."""
        lock = os.open(self.root / "up.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        if locked_within(0.5, lock, fcntl.LOCK_EX):
            return lock
        os.close(lock)
        return None

    def deserted(self) -> bool:
        """Whether no process of an earlier stack is alive any more; waits a while for the last of them to vanish."""
        alive = os.open(self.alive, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            return locked_within(ORPHANS_S, alive, fcntl.LOCK_EX)
        finally:
            os.close(alive)

    def secrets(self) -> dict[str, str]:
        """Keys and passwords of this place: made at the first start and kept from then on, readable by the owner alone."""
        path = self.root / "secrets.json"
        kept: dict[str, str] = read(path)
        made = {
            "s3_access_key": secrets.token_hex(10).upper(),
            "s3_secret_key": secrets.token_urlsafe(30),
            "valkey_password": secrets.token_urlsafe(24),
            "secret_key": secrets.token_urlsafe(36),
            "events_token": secrets.token_urlsafe(24),
        }
        if not made.keys() <= kept.keys():
            kept = {**made, **kept}
            write(path, json.dumps(kept, indent=2))
        return kept


def environment_of(data_dir: Path) -> dict[str, str] | None:
    """The environment to reach the stack with that is up on a data directory; None if none is."""
    root = data_dir.absolute()
    try:
        with (root / "up.lock").open() as lock:
            if locked(lock.fileno(), fcntl.LOCK_SH):
                return None
    except OSError:
        return None
    return read(root / "stack.json").get("environment")


def read(path: Path) -> dict[str, Any]:
    """A JSON object kept in a file; empty if there is none, or if it is damaged."""
    try:
        content = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def write(path: Path, content: str) -> None:
    """Replace a file, all of it or nothing, readable by the owner alone."""
    half = path.with_name(f"{path.name}.new")
    descriptor = os.open(half, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "w") as file:
        file.write(content)
    half.replace(path)


def remember(place: Place, ports: Mapping[str, int], environment: Mapping[str, str] | None) -> None:
    """Write down the ports and, once the stack is ready, how to reach it."""
    write(place.state, json.dumps({"ports": dict(ports), "environment": environment and dict(environment)}, indent=2))
