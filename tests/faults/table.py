"""The table: every test, how much of it the short and the long form do, and what it is held against."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from tests.faults.house import House
from tests.faults.rows import alone, broker, clock, database, disk, kills, poison, soak, store
from tests.fixtures.databases import PostgresServer


@dataclass(frozen=True)
class Row:
    """One test. `run(house, n, seed)`, or with the server in second place where `server` is set."""

    name: str
    run: Callable[..., dict[str, Any]]
    short: int
    long: int
    minutes: float
    """What the long form takes on two idle cores, about."""
    postgres: bool = False
    """On PostgreSQL; else on SQLite, as the one-machine stack."""
    server: bool = False
    alone: bool = False
    """Needs no house: `run(n, seed, places)`, the places where a corpus lies."""
    naive: tuple[str, int] | None = None
    """The fault under which the naive chain is run beside it, and how often."""

    def on(self, house: House, server: PostgresServer | None, n: int, seed: int) -> dict[str, Any]:
        """Do it."""
        figures = self.run(house, server, n, seed) if self.server else self.run(house, n, seed)
        return {"test": self.name, "seed": seed, **figures, "database": "postgresql" if self.postgres else "sqlite"}


ROWS = (
    Row("worker-kill", kills.worker_kill, 6, 200, 9, naive=("worker", 20)),
    Row("worker-kill-postgres", kills.worker_kill, 0, 60, 3, postgres=True),
    Row("child-kill", kills.child_kill, 4, 100, 4, naive=("child", 20)),
    Row("poison", poison.poison, 20, 120, 2, naive=("poison", 60)),
    Row("drain", kills.drain, 3, 100, 6, naive=("drain", 10)),
    Row("broker-kill", broker.broker_kill, 1, 30, 4, naive=("broker", 10)),
    Row("broker-flush", broker.broker_flush, 1, 10, 1, naive=("flush", 5)),
    Row("broker-down", broker.broker_down, 0, 300, 6),
    Row("store-transient", store.store_transient, 1, 20, 4, postgres=True),
    Row("store-hang", store.store_hang, 0, 2, 1.5, postgres=True),
    Row("store-permanent", store.store_permanent, 1, 10, 0.5, postgres=True),
    Row("store-replaced", store.store_replaced, 1, 10, 1, postgres=True),
    Row("postgres-stop", database.postgres_stop, 1, 20, 3, postgres=True, server=True),
    Row("postgres-down", database.postgres_down, 3, 120, 3, postgres=True, server=True),
    Row("disk-scratch", disk.disk_scratch, 1, 20, 0.5, postgres=True),
    Row("disk-model", disk.disk_model, 0, 5, 1, postgres=True),
    Row("clock", clock.clock, 1, 10, 1, postgres=True),
    Row("soak", soak.soak, 0, 10_000, 12, postgres=True),
    Row("histories", alone.histories, 0, 2000, 40, alone=True),
    Row("hostile", alone.hostile, 300, 50_000, 5, alone=True),
)
