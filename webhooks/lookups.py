"""Names resolved within a time limit.

A resolver call cannot be interrupted: with name servers that say nothing it takes their timeout, times the tries, the servers
and the search domains. So it is made in a thread of its own, which is left behind when time is up. What is left behind is
bounded, for each name as well: a name whose servers hang holds up nobody but itself.
"""

from __future__ import annotations

import ipaddress
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import Future, wait
from typing import Any, TypeVar

from urllib3.util.connection import allowed_gai_family

MOST = 128
"""So many lookups of a process are under way at once, those included that nobody waits for any more."""
PER_NAME = 4

Found = TypeVar("Found")


class LookupTimeout(socket.gaierror):
    """A name was not resolved in time."""


class Lookups:
    """Lookups that are under way: at most `most`, and `per_name` of one name. Safe to share between threads."""

    def __init__(self, most: int = MOST, per_name: int = PER_NAME) -> None:
        self._most, self._per_name = most, per_name
        self._under_way: Counter[str] = Counter()
        self._changed = threading.Condition()

    def within(self, seconds: float, name: str, look: Callable[[], Found]) -> Found:
        """What `look` returns or raises, which asks for this name. Raises LookupTimeout if that takes more than so many seconds."""
        until = time.monotonic() + seconds
        with self._changed:
            if not self._changed.wait_for(lambda: self._room_for(name), max(0.0, seconds)):
                raise LookupTimeout
            self._under_way[name] += 1
        found: Future[Found] = Future()
        # No thread pool: the interpreter would wait for its threads when it ends.
        threading.Thread(target=self._run, args=(name, look, found), name="lookup", daemon=True).start()
        if not wait([found], max(0.0, until - time.monotonic())).done:
            raise LookupTimeout
        return found.result()

    def _room_for(self, name: str) -> bool:
        return self._under_way.total() < self._most and self._under_way[name] < self._per_name

    def _run(self, name: str, look: Callable[[], Found], found: Future[Found]) -> None:
        try:
            found.set_result(look())
        except Exception as error:
            found.set_exception(error)
        finally:
            with self._changed:
                self._under_way[name] -= 1
                self._under_way += Counter()  # forgets the names of which none is under way
                self._changed.notify_all()


LOOKUPS = Lookups()


def addresses(host: str, port: int, seconds: float) -> list[str]:
    """The IP addresses of a host, in the order to try them; an address is its own. Raises socket.gaierror if it has none, or
    none was found in so many seconds."""
    try:
        return [str(ipaddress.ip_address(host.strip("[]")))]
    except ValueError:
        found = LOOKUPS.within(seconds, host, lambda: socket.getaddrinfo(host, port, allowed_gai_family(), socket.SOCK_STREAM))
        return list(dict.fromkeys(_with_scope(address) for *_, address in found))


def _with_scope(address: tuple[Any, ...]) -> str:
    return f"{address[0]}%{address[3]}" if len(address) == 4 and address[3] else str(address[0])
