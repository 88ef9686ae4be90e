"""The short form of the table: every kind of fault a few times, on one house for each database. `make faults` is the long one."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from pipeline.storage import Storage, StorageError
from tests.faults.house import House
from tests.faults.proxy import PASS, Spoil
from tests.faults.runner import house_for
from tests.faults.table import ROWS, Row
from tests.fixtures.databases import PostgresServer, missing_service, postgres_binaries

SEED = 7
SHORT = [row for row in ROWS if row.short]
pytestmark = pytest.mark.timeout(300)

Place = tuple[House, PostgresServer | None]


@pytest.fixture(scope="module")
def on_sqlite(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    """A house as on one machine."""
    with house_for(False, SEED, tmp_path_factory.mktemp("sqlite"), lease_s=3.0, wake_after_s=3.0) as place:
        yield place


@pytest.fixture(scope="module")
def on_postgres(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    """A house on a PostgreSQL server of its own."""
    if postgres_binaries() is None:
        missing_service("PostgreSQL")
    with house_for(True, SEED, tmp_path_factory.mktemp("postgres"), lease_s=3.0, wake_after_s=3.0) as place:
        yield place


def _holds(row: Row, place: Place) -> None:
    """What is counted must hold on any machine; how long it took is for the long form, on an idle one."""
    house, server = place
    figures = row.on(house, server, row.short, SEED)
    assert (figures["lost"], figures["duplicates"]) == (0, 0), figures
    assert set(figures["statuses"]) <= {"done", "failed", "403", "404", "source_gone"} if "statuses" in figures else True, figures
    for name in ("exits_not_0", "broken_outputs", "wrong", "left_behind", "stolen_leases"):
        assert not figures.get(name), figures
    if row.name == "drain":
        assert figures["reruns"] == 0, figures
    if row.name in ("poison", "store-permanent"):
        assert figures["attempts_max"] <= 3, figures
    if row.name == "postgres-down":
        assert figures["api_codes"] == [503], figures


@pytest.mark.parametrize("row", [row for row in SHORT if not row.postgres and not row.alone], ids=lambda row: row.name)
def test_on_sqlite(row: Row, on_sqlite: Place) -> None:
    _holds(row, on_sqlite)


@pytest.mark.parametrize("row", [row for row in SHORT if row.postgres], ids=lambda row: row.name)
def test_on_postgres(row: Row, on_postgres: Place) -> None:
    _holds(row, on_postgres)


@pytest.mark.parametrize("row", [row for row in SHORT if row.alone], ids=lambda row: row.name)
def test_alone(row: Row) -> None:
    figures = row.run(row.short, SEED, [])
    assert figures["passed"], figures


def test_a_refusal_of_access_is_final_and_others_are_not(on_sqlite: Place) -> None:
    house, _ = on_sqlite
    through = Storage(house.settings.model_copy(update={"s3_endpoint": f"http://127.0.0.1:{house.s3.port}"}))
    for status, permanent in ((403, True), (503, False)):
        house.s3.spoil(Spoil("status", status, match="GET /"))
        with pytest.raises(StorageError) as refused:
            next(through.listing(house.settings.inbox_bucket), None)
        assert refused.value.permanent is permanent
    house.s3.spoil(PASS)
    next(through.listing(house.settings.inbox_bucket), None)
