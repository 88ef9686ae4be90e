"""What the compose stack's `migrate` does to an empty PostgreSQL and an empty object store, before anything else starts."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner
from sqlalchemy.engine import make_url

from pipeline import registry
from pipeline.database import Database
from pipeline.settings import Settings, to_environment
from pipeline.storage import Storage
from tests.fixtures.models import write_model
from workers.cli import main


def test_an_empty_installation_gets_tables_buckets_and_a_champion(
    empty_postgresql_url: str, s3_settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Given an installation whose database address is in a file, as containers have it, and a model that comes with the product
    settings = s3_settings.model_copy(update={"models_bucket": f"{s3_settings.models_bucket}-new"})
    write_model(tmp_path / "starter", name="tiny", version="1")
    monkeypatch.setattr(registry, "STARTER", tmp_path / "starter")
    (tmp_path / "database_url").write_text(make_url(empty_postgresql_url).render_as_string(hide_password=False) + "\n")
    for name, value in to_environment(settings).items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("UNMASK_DATABASE_URL", raising=False)
    monkeypatch.setenv("UNMASK_DATABASE_URL_FILE", str(tmp_path / "database_url"))

    for _ in range(2):  # the second time there is nothing left to do
        for command in (["db", "upgrade"], ["models", "install"]):
            result = CliRunner().invoke(main, command)
            assert result.exit_code == 0, result.output

    database = Database(empty_postgresql_url)
    assert registry.champion(database) == ("tiny", "1")
    database.dispose()
    assert Storage(settings).ensure_buckets() == []
    Storage(settings).client.delete_bucket(Bucket=settings.models_bucket)
