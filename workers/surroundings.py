"""Where a command finds things: the stack that runs on the data directory, or what the environment says."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from sqlalchemy.engine import make_url
from sqlalchemy.exc import SQLAlchemyError

from pipeline.database import Database
from pipeline.settings import PREFIX, Settings, from_environment
from pipeline.storage import Storage, storage
from workers.sentences import CommandError

ELSEWHERE = ("DATABASE_URL", "DATABASE_URL_FILE", "BROKER_URL", "BROKER_URL_FILE", "S3_ENDPOINT")
"""Who sets one of these means an installation of their own, not the embedded stack."""


def settings_in_force() -> Settings:
    """The settings of the embedded stack that runs on the data directory; without one, those of the environment.

    Raises SettingsError.
    """
    from workers.embedded import running

    given = from_environment()
    if any(os.environ.get(PREFIX + name) for name in ELSEWHERE):
        return given
    return running(given.data_dir) or given


@contextmanager
def opened(settings: Settings) -> Iterator[Database]:
    """The database, for a command. Raises CommandError if there is none yet or its schema is older than this code."""
    url = make_url(settings.database)
    if url.get_backend_name() == "sqlite" and not Path(url.database or "").exists():
        raise CommandError(f"Nothing has run in {settings.data_dir} yet: start it with `unmask up`, or set UNMASK_DATABASE_URL.")
    database = Database(settings.database)
    try:
        yield database
    except SQLAlchemyError:
        if _lacks_migrations(database):
            raise CommandError("The database's tables are older than this code: run `unmask db upgrade`.") from None
        raise
    finally:
        database.dispose()


def _lacks_migrations(database: Database) -> bool:
    import migrations

    try:
        return migrations.pending(database)
    except SQLAlchemyError:
        return False


def object_store(settings: Settings) -> Storage:
    """The object store, for a command. Raises CommandError where nothing says how to reach one."""
    if settings.s3_endpoint is None and settings.s3_access_key is None and "AWS_PROFILE" not in os.environ:
        _ask_boto3()
    return storage(settings)


def _ask_boto3() -> None:
    import boto3

    if boto3.Session().get_credentials() is None:
        raise CommandError("No object store is known: start the stack with `unmask up`, or set UNMASK_S3_ENDPOINT and its keys.")
