"""What a request needs of the world: settings, database, storage. Made once per process by the application factory."""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

from flask import current_app

from pipeline.database import Database, database
from pipeline.settings import Settings
from pipeline.storage import Storage, storage

NAME = "unmask"


@dataclass(frozen=True)
class Context:
    """The settings, and what they lead to. Database and storage are opened on first use and shared by all threads."""

    settings: Settings

    @property
    def database(self) -> Database:
        """The process's database."""
        return database(self.settings.database)

    @property
    def storage(self) -> Storage:
        """The process's object storage."""
        return storage(self.settings)


def here() -> Context:
    """The context of the running application."""
    return cast(Context, current_app.extensions[NAME])
