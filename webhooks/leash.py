"""A total deadline for an HTTP exchange.

The timeouts of requests are per socket operation: a receiver that drips a byte now and then would hold us for hours. So a
timer shuts down the socket itself when time is up, whoever waits on it, the TLS handshake included; and names are resolved,
and connections made, in what is left of the time.
"""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, cast

from requests.adapters import HTTPAdapter
from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.connectionpool import HTTPConnectionPool, HTTPSConnectionPool
from urllib3.exceptions import ConnectTimeoutError, NameResolutionError, NewConnectionError
from urllib3.util import connection as sockets

from webhooks.lookups import addresses


class Leash:
    """Watches one exchange. `held`: a connection was made."""

    def __init__(self, seconds: float) -> None:
        self.held = self._snapped = False
        self._until = time.monotonic() + seconds
        self._sockets: list[socket.socket] = []
        self._lock = threading.Lock()
        self._timer = threading.Timer(seconds, self._snap)
        self._timer.daemon = True
        self._timer.start()

    @property
    def snapped(self) -> bool:
        """Time is up."""
        return self._snapped or time.monotonic() >= self._until

    def left(self) -> float:
        """Seconds that are left. Raises TimeoutError if none are."""
        seconds = self._until - time.monotonic()
        if seconds <= 0:
            raise TimeoutError
        return seconds

    def hold(self, sock: socket.socket) -> None:
        """End this socket, too, when time is up. Raises TimeoutError if it is."""
        # A duplicate, since TLS takes the original away and shutting down either ends both.
        with self._lock:
            if self.snapped:
                raise TimeoutError
            self._sockets.append(sock.dup())
            self.held = True

    def _snap(self) -> None:
        with self._lock:
            self._snapped = True
            for sock in self._sockets:
                try:
                    sock.shutdown(socket.SHUT_RDWR)
                except OSError:  # closed by the other side already
                    continue

    def release(self) -> None:
        """The exchange is over."""
        self._timer.cancel()
        with self._lock:
            for sock in self._sockets:
                sock.close()
            self._sockets.clear()


_current: ContextVar[Leash] = ContextVar("leash")


@contextmanager
def leashed(seconds: float) -> Iterator[Leash]:
    """Whatever this thread sends through a `LeashedAdapter` in the block ends after so many seconds."""
    leash = Leash(seconds)
    token = _current.set(leash)
    try:
        yield leash
    finally:
        _current.reset(token)
        leash.release()


def seconds_left() -> float:
    """What the exchange of this thread has left. Raises TimeoutError if that is nothing."""
    return _current.get().left()


def _connected(connection: HTTPConnection) -> socket.socket:
    """As urllib3 connects, except that all of it, every address of the name, obeys the leash."""
    leash, trouble = _current.get(), OSError("it has no address")
    try:
        found = addresses(connection._dns_host, connection.port, leash.left())
    except socket.gaierror as error:
        raise NameResolutionError(connection.host, connection, error) from error
    for address in found:
        try:
            patience = min(cast(float, connection.timeout), leash.left())
            sock = sockets.create_connection((address, connection.port), patience, connection.source_address, connection.socket_options)
        except OSError as error:
            trouble = error
            continue
        leash.hold(sock)
        return sock
    if isinstance(trouble, TimeoutError):
        raise ConnectTimeoutError(connection, "None of its addresses accepted the connection in time.") from trouble
    raise NewConnectionError(connection, f"None of its addresses accepted the connection: {trouble}") from trouble


class _Connection(HTTPConnection):
    def _new_conn(self) -> socket.socket:
        return _connected(self)


class _TLSConnection(HTTPSConnection):
    def _new_conn(self) -> socket.socket:
        return _connected(self)


class _Pool(HTTPConnectionPool):
    ConnectionCls = _Connection


class _TLSPool(HTTPSConnectionPool):
    ConnectionCls = _TLSConnection


class LeashedAdapter(HTTPAdapter):
    """A transport for requests whose connections obey the leash of the thread that uses it."""

    def init_poolmanager(self, *args: Any, **kwargs: Any) -> None:
        """Make connections that tell the leash of their sockets."""
        super().init_poolmanager(*args, **kwargs)
        self.poolmanager.pool_classes_by_scheme = {"http": _Pool, "https": _TLSPool}
