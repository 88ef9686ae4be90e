"""The database's schema over time, and how a running installation is brought up to date."""

from __future__ import annotations

from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory

from pipeline.database import Database

FOLDER = Path(__file__).parent


def configuration() -> Config:
    """Alembic's configuration as code, so that an installed package needs no alembic.ini."""
    config = Config()
    config.set_main_option("script_location", str(FOLDER).replace("%", "%%"))
    return config


def upgrade(url: str) -> None:
    """Bring the database at `url` (SQLAlchemy form) to the newest revision; nothing to do is no error.

    All revisions run in one transaction, so a failure leaves the schema as it was. Any number of processes may call this
    at once: one upgrades, the others wait up to a minute. On PostgreSQL a statement that cannot get its table lock within
    five seconds fails rather than queue up behind, and block, the living.
    """
    database = Database(url)
    try:
        with database.write() as session:
            config = configuration()
            config.attributes["connection"] = session.connection()
            command.upgrade(config, "head")
    finally:
        database.dispose()


def pending(database: Database) -> bool:
    """Whether the database lacks revisions that this code has."""
    with database.read() as session:
        current = MigrationContext.configure(session.connection()).get_current_heads()
    return set(current) != set(ScriptDirectory.from_config(configuration()).get_heads())
