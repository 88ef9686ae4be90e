"""Tables beside those of jobs and webhooks, one module per concern. Importing this package declares them all."""

from __future__ import annotations

from pipeline.tables import access, inboxes, learning, training

__all__ = ["access", "inboxes", "learning", "training"]
