"""Orders to the supervisor of a running stack, over its socket."""

from __future__ import annotations

from http.client import HTTPException
from pathlib import Path
from typing import Any
from xmlrpc.client import Error, ServerProxy

UNHEARD = (OSError, Error, HTTPException)
"""What comes of an order to a supervisor that is just starting or ending, or that cannot follow it."""


def order(socket: Path, what: str, *arguments: Any) -> Any:
    """Have the supervisor that listens on `socket` do something: a method of its RPC interface. Raises one of UNHEARD."""
    from supervisor.xmlrpc import SupervisorTransport

    transport = SupervisorTransport(None, None, f"unix://{socket}")
    try:
        return getattr(ServerProxy("http://localhost", transport=transport).supervisor, what)(*arguments)
    finally:
        transport.close()
