"""Runs rows of the table on as few houses as they need, and writes the report down after each."""

from __future__ import annotations

import shutil
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.faults.house import House
from tests.faults.naive.house import under
from tests.faults.outcome import entry, merge
from tests.faults.table import Row
from tests.fixtures.databases import PostgresServer, postgres_binaries


@contextmanager
def house_for(postgres: bool, seed: int, folder: Path, **given: Any) -> Iterator[tuple[House, PostgresServer | None]]:
    """A house on SQLite, or on a PostgreSQL server of its own."""
    if not postgres:
        with House(folder, seed=seed, **given) as house:
            yield house, None
        return
    binaries = postgres_binaries()
    if binaries is None:
        raise RuntimeError("PostgreSQL is missing: install it, or leave its tests out.")
    server = PostgresServer(binaries)
    try:
        server.start()
        with House(folder, database_url=server.url.render_as_string(hide_password=False), seed=seed, **given) as house:
            yield house, server
    finally:
        server.remove()


def run(
    rows: Sequence[tuple[Row, int]], seed: int, report: Path, say: Callable[[str], None], *, naive: bool, keep: bool, places: list[str]
) -> bool:
    """Run them, those of one database together; True if all passed."""
    passed = True
    for row, n in rows:
        if row.alone:
            figures = _tried(row, n, seed, lambda row=row, n=n: {"test": row.name, "seed": seed, **row.run(n, seed, places)})  # type: ignore[misc]
            merge(report, figures)
            say(_sentence(figures))
            passed = passed and bool(figures["passed"])
    for postgres in (False, True):
        waiting = [(row, n) for row, n in rows if row.postgres is postgres and not row.alone]
        while waiting:  # a house that a test has wrecked is left, and the rest go on in another
            folder = Path(tempfile.mkdtemp(prefix="unmask-faults-"))
            try:
                with house_for(postgres, seed, folder) as (house, server):
                    while waiting:
                        row, n = waiting.pop(0)
                        figures = _tried(row, n, seed, lambda row=row, n=n: row.on(house, server, n, seed))  # type: ignore[misc]
                        if naive and row.naive is not None and "error" not in figures:
                            figures["naive"] = _naive(house, row.naive, seed)
                        merge(report, figures)
                        say(_sentence(figures))
                        passed = passed and bool(figures["passed"])
                        if "error" in figures:
                            break
            finally:
                if keep:
                    say(f"kept: {folder}")
                else:
                    shutil.rmtree(folder, ignore_errors=True)
    return passed


def naive_alone(rows: Sequence[Row], seed: int, report: Path, say: Callable[[str], None]) -> None:
    """Run only the naive chain under the faults of these rows, and put its figures beside ours in the report."""
    with tempfile.TemporaryDirectory(prefix="unmask-faults-") as folder, house_for(False, seed, Path(folder)) as (house, _):
        for row in rows:
            if row.naive is not None:
                merge(report, {"test": row.name, "naive": _naive(house, row.naive, seed)}, onto=True)
                say(f"{row.name:<22} naive   {entry(report, row.name)['naive']}")


def _tried(row: Row, n: int, seed: int, run: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    began = time.time()
    try:
        figures = run()
    except Exception as error:
        traceback.print_exc()
        figures = {"test": row.name, "n": n, "seed": seed, "passed": False, "error": f"{type(error).__name__}: {error}"}
    return {**figures, "took_s": round(time.time() - began, 1)}


def _naive(house: House, what: tuple[str, int], seed: int) -> dict[str, Any]:
    try:
        return under(house, what[0], what[1], seed)
    except Exception as error:
        traceback.print_exc()
        return {"error": f"{type(error).__name__}: {error}"}


def _sentence(figures: dict[str, Any]) -> str:
    kept = {name: value for name, value in figures.items() if name not in ("test", "passed", "seed", "database", "kinds")}
    return f"{figures['test']:<22} {'passed' if figures['passed'] else 'FAILED'}  {kept}"
