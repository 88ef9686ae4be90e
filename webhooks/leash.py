"""A total deadline for an HTTP exchange.

The timeouts of requests are per socket operation: a receiver that drips a byte now and then would hold us for hours. So a
timer shuts down the socket itself when time is up, whoever waits on it, the TLS handshake included.
"""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

from requests.adapters import HTTPAdapter
from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.connectionpool import HTTPConnectionPool, HTTPSConnectionPool


class Leash:
    """Watches one exchange. `held`: a connection was made. `snapped`: time was up before it was released."""

    def __init__(self, seconds: float) -> None:
        self.held = self.snapped = False
        self._sockets: list[socket.socket] = []
        self._lock = threading.Lock()
        self._timer = threading.Timer(seconds, self._snap)
        self._timer.daemon = True
        self._timer.start()

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
            self.snapped = True
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


class _Connection(HTTPConnection):
    def _new_conn(self) -> socket.socket:
        sock = super()._new_conn()
        _current.get().hold(sock)
        return sock


class _TLSConnection(HTTPSConnection):
    def _new_conn(self) -> socket.socket:
        sock = super()._new_conn()
        _current.get().hold(sock)
        return sock


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
