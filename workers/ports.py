"""Free ports on the loopback address, the same as last time wherever possible."""

from __future__ import annotations

import random
import socket
from collections.abc import Iterable, Mapping

LOOPBACK = "127.0.0.1"
_LOWEST, _HIGHEST = 20_000, 32_000
"""Below the ports that systems hand out to outgoing connections, so that a kept port stays free."""
ABOVE = 10_000
"""SeaweedFS' own workers expect a server's gRPC port this far above its HTTP port."""


def free(port: int) -> bool:
    """Whether a server could listen there now."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((LOOPBACK, port))
        except OSError:
            return False
    return True


def choose(names: Iterable[str], before: Mapping[str, int], *, paired: str) -> dict[str, int]:
    """A port for each name: that of `before` if it is free, else another. For `paired` the port 10,000 above is free too."""
    chosen: dict[str, int] = {}
    for name in names:
        wanted = before.get(name, 0)
        while not _usable(wanted, chosen, both=name == paired):
            wanted = random.randrange(_LOWEST, _HIGHEST)
        chosen[name] = wanted
    return chosen


def _usable(port: int, chosen: Mapping[str, int], *, both: bool) -> bool:
    return port > 0 and port not in chosen.values() and free(port) and (not both or free(port + ABOVE))
