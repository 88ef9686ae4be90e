"""Free ports on the loopback address, the same as last time wherever possible, and nobody else's in the meantime."""

from __future__ import annotations

import random
import socket
from collections.abc import Iterable, Mapping
from types import TracebackType

LOOPBACK = "127.0.0.1"
_LOWEST, _HIGHEST = 20_000, 32_000
"""Below the ports that systems hand out to outgoing connections, so that a kept port stays free."""
ABOVE = 10_000
"""SeaweedFS' own workers expect a server's gRPC port this far above its HTTP port."""


def free(port: int) -> bool:
    """Whether a server could listen there now."""
    return _bound(port, socket.SOCK_STREAM, close=True) is not None


class Ports:
    """A port for each of `names`: that of `before` if it is free, else another. For `paired` the one 10,000 above is free too.

    Until they are given back, no other `Ports` of this machine has them, even before anybody listens there: as a sign the
    UDP port of the same number is held.
    """

    def __init__(self, names: Iterable[str], before: Mapping[str, int], *, paired: str) -> None:
        self._signs: list[socket.socket] = []
        self.numbers: dict[str, int] = {}
        for name in names:
            wanted = before.get(name, 0)
            while not self._take(wanted, *([wanted + ABOVE] if name == paired else [])):
                wanted = random.randrange(_LOWEST, _HIGHEST)
            self.numbers[name] = wanted

    def give_back(self) -> None:
        """Let others have them."""
        for sign in self._signs:
            sign.close()
        self._signs.clear()

    def __enter__(self) -> Ports:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.give_back()

    def _take(self, *ports: int) -> bool:
        if not all(port > 0 and free(port) for port in ports):
            return False
        signs = [sign for port in ports if (sign := _bound(port, socket.SOCK_DGRAM, close=False)) is not None]
        if len(signs) < len(ports):
            for sign in signs:
                sign.close()
            return False
        self._signs += signs
        return True


def choose(names: Iterable[str], before: Mapping[str, int], *, paired: str) -> dict[str, int]:
    """The same for whoever will listen there at once: chosen, and given back."""
    with Ports(names, before, paired=paired) as chosen:
        return chosen.numbers


def _bound(port: int, kind: socket.SocketKind, *, close: bool) -> socket.socket | None:
    bound = socket.socket(socket.AF_INET, kind)
    try:
        if kind == socket.SOCK_STREAM:
            bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # connections that have just ended are no hindrance
        bound.bind((LOOPBACK, port))
    except OSError:
        bound.close()
        return None
    if close:
        bound.close()
    return bound
