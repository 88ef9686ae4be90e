"""HTTPS, which is all that is sent over unless somebody allows more: the real sender, a real handshake, a pinned address."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest
from pydantic import SecretStr
from urllib3.util import connection as sockets

from pipeline.database import Database
from pipeline.settings import Settings
from tests.fixtures.addresses import PUBLIC
from tests.fixtures.tls import Authority, tls_door
from webhooks import deliveries, endpoints
from webhooks.outbound import deliver_one

SETTINGS = Settings(secret_key=SecretStr("a secret key of the tests, long enough"))
HOST = "hooks.example"


@pytest.mark.parametrize(
    ("made_out_to", "trusted", "complaint"),
    [
        (HOST, True, None),
        (HOST, False, f"The TLS certificate of {HOST} was not accepted: unable to get local issuer certificate."),
        ("other.example", True, f"The TLS certificate of {HOST} is made out to another name."),
    ],
    ids=["a good certificate", "an authority that nobody knows", "a certificate for another name"],
)
def test_only_a_receiver_with_a_good_certificate_gets_anything(
    db: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, made_out_to: str, trusted: bool, complaint: str | None
) -> None:
    authority, tried = Authority(tmp_path), []
    resolve, connect = socket.getaddrinfo, sockets.create_connection

    def resolved(host: str, *rest: object, **more: object) -> object:
        named = [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (PUBLIC, 443))]
        return named if host == HOST else resolve(host, *rest, **more)  # type: ignore[arg-type]

    with tls_door(authority.certificate(made_out_to)) as door:

        def connected(address: tuple[str, int], *rest: object, **more: object) -> socket.socket:
            tried.append(address)
            return connect(("127.0.0.1", door.port), *rest, **more)  # type: ignore[arg-type]

        monkeypatch.setattr(socket, "getaddrinfo", resolved)
        monkeypatch.setattr(sockets, "create_connection", connected)
        if trusted:
            monkeypatch.setattr("requests.adapters.DEFAULT_CA_BUNDLE_PATH", str(authority.bundle))
        row, _ = endpoints.register(db, SETTINGS, f"https://{HOST}/hook")
        answer = deliver_one(db, SETTINGS, endpoints.add_test(db, row.id))

    ((found,), _) = deliveries.page(db, endpoint_id=row.id)
    (attempt,) = found.tries
    assert answer is not None
    assert attempt.status_code == answer.status_code == (204 if complaint is None else None)
    assert attempt.error == complaint
    assert found.row.status == ("delivered" if complaint is None else "pending")
    assert (tried, door.names) == ([(PUBLIC, 443)], [HOST]), "the address that was looked at, and the name all the same"
    assert len(door.got) == (1 if complaint is None else 0)
    assert all(f"\r\nHost: {HOST}\r\n".encode() in asked for asked in door.got)
