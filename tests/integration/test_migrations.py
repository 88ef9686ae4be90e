"""The migrations make exactly the tables the code declares, on both databases, however many run them at once."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import cast

import pytest
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import Table, insert, inspect

import migrations
from pipeline import ledger, results
from pipeline.database import Base, Database, FaceRow
from pipeline.jobs import Quality
from pipeline.tables import access, inboxes, learning, training
from tests.fixtures.jobs import accepted

DECLARED = (access, inboxes, learning, training)
"""Importing them declares their tables."""


@pytest.fixture(params=["sqlite", "postgresql"])
def empty_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'empty.db'}"
    url: str = request.getfixturevalue("empty_postgresql_url")
    return url


@pytest.fixture
def empty(empty_url: str) -> Iterator[Database]:
    database = Database(empty_url)
    yield database
    database.dispose()


def test_an_upgrade_from_nothing_makes_the_tables_the_code_declares(empty: Database, empty_url: str) -> None:
    assert migrations.pending(empty)

    migrations.upgrade(empty_url)

    assert not migrations.pending(empty)
    with empty.read() as session:
        context = MigrationContext.configure(session.connection(), opts={"compare_type": True, "compare_server_default": True})
        assert compare_metadata(context, Base.metadata) == []
    assert set(inspect(empty.engine).get_table_names()) == {*Base.metadata.tables, "alembic_version"}


def test_a_missing_column_would_be_noticed(empty: Database, empty_url: str) -> None:
    migrations.upgrade(empty_url)
    with empty.write() as session:
        session.connection().exec_driver_sql("alter table faces drop column evidence")

    with empty.read() as session:
        (found,) = compare_metadata(MigrationContext.configure(session.connection()), Base.metadata)

    assert found[0] == "add_column"


def test_many_may_upgrade_at_once(empty: Database, empty_url: str) -> None:
    runs = [subprocess.Popen([sys.executable, "-c", f"import migrations; migrations.upgrade({empty_url!r})"]) for _ in range(3)]
    assert [run.wait(60) for run in runs] == [0, 0, 0]
    assert not migrations.pending(empty)


def test_every_revision_can_be_undone(empty: Database, empty_url: str) -> None:
    migrations.upgrade(empty_url)

    with empty.write() as session:
        config = migrations.configuration()
        config.attributes["connection"] = session.connection()
        command.downgrade(config, "base")

    assert inspect(empty.engine).get_table_names() == ["alembic_version"]
    migrations.upgrade(empty_url)
    assert not migrations.pending(empty)


def test_faces_of_before_blocks_were_measured_stay_and_say_so(empty: Database, empty_url: str) -> None:
    with empty.write() as session:
        config = migrations.configuration()
        config.attributes["connection"] = session.connection()
        command.upgrade(config, "0008")
    job_id = accepted(empty)
    with empty.write() as session:
        old = {"job_id": job_id, "index": 0, "x": 1, "y": 2, "w": 90, "h": 80, "detection": 0.9, "size": 80, "blur": 55.5}
        session.execute(insert(cast(Table, FaceRow.__table__)), old)

    migrations.upgrade(empty_url)

    (face,) = ledger.faces(empty, job_id)
    assert face.quality == Quality(80, 55.5, None)
    with empty.read() as session:
        assert results.face_document(session.get_one(FaceRow, (job_id, 0)))["quality"] == {"size": 80, "blur": 55.5, "blocks": None}


def test_an_upgrade_waits_for_no_lock_for_long(empty_postgresql_url: str) -> None:
    """A statement stuck behind a long transaction would block everyone who comes after it."""
    migrations.upgrade(empty_postgresql_url)
    database = Database(empty_postgresql_url)
    try:
        with database.write() as session:
            config = migrations.configuration()
            config.attributes["connection"] = session.connection()
            command.upgrade(config, "head")
            assert session.connection().exec_driver_sql("show lock_timeout").scalar() == "5s"
        with database.read() as session:
            assert session.connection().exec_driver_sql("show lock_timeout").scalar() == "0"
    finally:
        database.dispose()


def test_it_runs_from_a_plain_install(tmp_path: Path) -> None:
    """Elsewhere than in the checkout, without alembic.ini."""
    code = f"import migrations; migrations.upgrade('sqlite:///{tmp_path}/plain.db')"
    root = Path(migrations.__file__).parents[1]
    environment = {"PYTHONPATH": str(root), "PATH": "/usr/bin:/bin"}
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=environment, check=True)

    assert (tmp_path / "plain.db").exists()


def test_the_alembic_command_uses_the_settings(tmp_path: Path) -> None:
    root = Path(migrations.__file__).parents[1]
    environment = {"UNMASK_DATABASE_URL": f"sqlite:///{tmp_path}/cli.db", "PATH": "/usr/bin:/bin"}
    alembic = [sys.executable, "-m", "alembic"]
    subprocess.run([*alembic, "upgrade", "head"], cwd=root, env=environment, check=True, capture_output=True)
    checked = subprocess.run([*alembic, "check"], cwd=root, env=environment, check=True, capture_output=True, text=True)
    script = subprocess.run([*alembic, "upgrade", "head", "--sql"], cwd=root, env=environment, check=True, capture_output=True, text=True)

    assert "No new upgrade operations detected" in checked.stdout + checked.stderr
    assert "CREATE TABLE jobs" in script.stdout
