"""A TCP proxy that spoils what goes through it, as it is told, from one request to the next. For HTTP, and for S3 above all."""

from __future__ import annotations

import random
import socket
import struct
import threading
import time
from contextlib import suppress
from dataclasses import dataclass

METHODS = (b"GET ", b"PUT ", b"HEAD ", b"POST ", b"DELETE ")
CODES = {403: "AccessDenied", 404: "NoSuchKey", 500: "InternalError", 503: "SlowDown"}
PIECE = 1 << 16


@dataclass(frozen=True)
class Spoil:
    """What happens to a request, by `chance` and where its head contains `match`.

    `how`: `pass`, `status` (that of `amount`, instead of an answer), `latency` (`amount` seconds before the answer), `slow`
    (`amount` bytes a second), `slice` (the answer in pieces of `amount` bytes), `reset` (RST after `amount` bytes of the
    answer), `cut` (an orderly end after `amount` bytes of it), `hang` (no answer until the proxy is told otherwise).
    """

    how: str = "pass"
    amount: float = 0.0
    chance: float = 1.0
    match: str = ""


PASS = Spoil()


class Proxy:
    """Listens on 127.0.0.1:`port`, forwards to 127.0.0.1:`target`. `spoiled` counts the requests that were spoilt."""

    def __init__(self, target: int, seed: int) -> None:
        self._target = target
        self._random = random.Random(seed)
        self._spoil = PASS
        self._let_go = threading.Event()
        self.spoiled = 0
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=256)
        self.port: int = self._listener.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def spoil(self, spoil: Spoil = PASS) -> None:
        """From the next request on; those that hang are let go."""
        self._let_go.set()
        self._let_go = threading.Event()
        self._spoil = spoil
        self.spoiled = 0

    def close(self) -> None:
        """Take no more connections."""
        self.spoil()
        self._listener.close()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            threading.Thread(target=self._forward, args=(client,), daemon=True).start()

    def _forward(self, client: socket.socket) -> None:
        try:
            server = socket.create_connection(("127.0.0.1", self._target), timeout=10)
        except OSError:
            client.close()
            return
        server.settimeout(None)
        now = [PASS]
        threading.Thread(target=self._answer, args=(server, client, now), daemon=True).start()
        with suppress(OSError):
            while data := client.recv(PIECE):
                if data.startswith(METHODS):
                    now[0] = self._chosen(data)
                    if now[0].how == "status":
                        client.sendall(_refusal(int(now[0].amount)))
                        break
                    if now[0].how == "hang":
                        self._let_go.wait(120)
                        break
                server.sendall(data)
        for one in (client, server):
            with suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)
            one.close()

    def _chosen(self, head: bytes) -> Spoil:
        spoil = self._spoil
        if spoil is PASS or spoil.match.encode() not in head or self._random.random() >= spoil.chance:
            return PASS
        self.spoiled += 1
        return spoil

    def _answer(self, server: socket.socket, client: socket.socket, now: list[Spoil]) -> None:
        told = 0
        with suppress(OSError):
            while data := server.recv(PIECE):
                spoil = now[0]
                if spoil.how == "latency":
                    time.sleep(spoil.amount)
                elif spoil.how in ("reset", "cut"):
                    room = max(0, int(spoil.amount) - told)
                    told += len(data)
                    if room < len(data):
                        client.sendall(data[:room])
                        if spoil.how == "reset":
                            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                        break
                elif spoil.how in ("slow", "slice"):
                    step = max(1, int(spoil.amount / 10 if spoil.how == "slow" else spoil.amount))
                    for start in range(0, len(data), step):
                        client.sendall(data[start : start + step])
                        time.sleep(0.1 if spoil.how == "slow" else 0)
                    continue
                client.sendall(data)
        if now[0].how == "reset":
            client.close()
        else:
            with suppress(OSError):
                client.shutdown(socket.SHUT_RDWR)
        with suppress(OSError):
            server.shutdown(socket.SHUT_RDWR)


def _refusal(status: int) -> bytes:
    body = f"<?xml version='1.0'?><Error><Code>{CODES[status]}</Code><Message>The proxy says so.</Message></Error>".encode()
    head = f"HTTP/1.1 {status} Spoilt\r\nContent-Type: application/xml\r\nContent-Length: {len(body)}\r\nConnection: close\r\n\r\n"
    return head.encode() + body
