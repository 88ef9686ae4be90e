"""Run by Alembic. `migrations.upgrade` hands over its connection; the `alembic` command uses the product's settings."""

from __future__ import annotations

from alembic import context
from sqlalchemy import Connection, text

from pipeline.database import Base, Database
from pipeline.settings import settings
from pipeline.tables import access, inboxes, learning, training

DECLARED = (access, inboxes, learning, training)
"""Importing them declares the tables that database.py does not."""

ADVISORY_LOCK = 0x756E6D61736B  # "unmask"


def run(connection: Connection) -> None:
    """Run what the command asks for, alone, within the transaction of `connection`."""
    if connection.dialect.name == "postgresql":
        connection.execute(text("set local lock_timeout = '60s'"))
        connection.execute(text("select pg_advisory_xact_lock(:key)"), {"key": ADVISORY_LOCK})
        connection.execute(text("set local lock_timeout = '5s'"))
    context.configure(
        connection=connection,
        target_metadata=Base.metadata,
        render_as_batch=connection.dialect.name == "sqlite",
        transactional_ddl=True,
    )
    context.run_migrations()


def main() -> None:
    """Find the connection, or print SQL for the settings' database (`alembic upgrade head --sql`)."""
    if context.is_offline_mode():
        context.configure(url=settings().database, target_metadata=Base.metadata, literal_binds=True)
        with context.begin_transaction():
            context.run_migrations()
    elif (connection := context.config.attributes.get("connection")) is not None:
        run(connection)
    else:
        database = Database(settings().database)
        with database.write() as session:
            run(session.connection())
        database.dispose()


main()
