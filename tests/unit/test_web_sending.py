"""One request to a receiver that may be slow, wrong or hostile."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Iterator
from datetime import datetime, timezone

import pytest
from standardwebhooks import Webhook

from webhooks.lookups import PER_NAME
from webhooks.outcomes import JITTER, SCHEDULE_S, delay_after
from webhooks.secretbox import new_secret
from webhooks.sending import Answer, Receiver, address_allowed, body_of, headers_of, send

SECRET = new_secret()


@pytest.fixture
def server() -> Iterator[Callable[[Callable[[socket.socket], None]], str]]:
    """A function that starts a TCP server whose every connection is handled as told, and gives its address."""
    listening: list[socket.socket] = []

    def start(handle: Callable[[socket.socket], None]) -> str:
        listener = socket.create_server(("127.0.0.1", 0))
        listening.append(listener)

        def serve() -> None:
            while True:
                try:
                    connection, _ = listener.accept()
                except OSError:
                    return
                with connection:
                    try:
                        handle(connection)
                    except OSError:  # the other side hung up on us, which is what some of these want to see
                        continue

        threading.Thread(target=serve, daemon=True).start()
        return f"127.0.0.1:{listener.getsockname()[1]}"

    yield start
    for listener in listening:
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()


def answering(*parts: bytes, pause_s: float = 0.0) -> Callable[[socket.socket], None]:
    def handle(connection: socket.socket) -> None:
        connection.recv(65536)
        for part in parts:
            connection.sendall(part)
            time.sleep(pause_s)

    return handle


def to(address: str, *, deadline_s: float = 5.0, private: bool = True, scheme: str = "http") -> Answer:
    return send(Receiver(f"{scheme}://{address}/hook", [SECRET], private), "msg_1", "{}", deadline_s=deadline_s)


def test_the_signature_is_what_the_library_verifies() -> None:
    at, body = datetime.now(timezone.utc), '{"ü":1}'
    old, other = new_secret(), new_secret()
    headers = headers_of("msg_1", body, [SECRET, old], at)
    assert headers["webhook-id"] == "msg_1"
    for secret in (SECRET, old):
        assert Webhook(secret).verify(body, headers) == {"ü": 1}
    with pytest.raises(Exception, match="No matching signature"):
        Webhook(other).verify(body, headers)


def test_the_url_in_a_body_is_made_absolute_and_the_rest_left_alone() -> None:
    payload = {"type": "job.done", "timestamp": "2026-01-01T00:00:00Z", "data": {"job_id": "1", "url": "/v1/jobs/1"}}
    assert '"url":"https://u.example/v1/jobs/1"' in body_of(payload, "https://u.example")
    assert payload["data"]["url"] == "/v1/jobs/1"  # type: ignore[index]
    assert body_of({"type": "a", "data": {}}, "https://u.example") == '{"type":"a","data":{}}'


@pytest.mark.parametrize(
    ("status", "delivered"), [(200, True), (204, True), (301, False), (308, False), (400, False), (410, False), (500, False)]
)
def test_only_2xx_is_success_and_redirects_are_not_followed(
    server: Callable[[Callable[[socket.socket], None]], str], status: int, delivered: bool
) -> None:
    elsewhere = server(answering(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"))
    said = f"HTTP/1.1 {status} X\r\nLocation: http://{elsewhere}/\r\nContent-Length: 0\r\n\r\n".encode()
    answer = to(server(answering(said)))
    assert (answer.status_code, answer.delivered, answer.error is None) == (status, delivered, delivered)


def test_bytes_that_drip_do_not_outlast_the_deadline(server: Callable[[Callable[[socket.socket], None]], str]) -> None:
    address = server(answering(b"HTTP/1.1 200 OK\r\nX-A: ", *[b"a"] * 100, pause_s=0.1))
    answer = to(address, deadline_s=0.6)
    assert not answer.delivered
    assert answer.error == "127.0.0.1 did not answer completely within 0.6 seconds."
    assert answer.duration_ms < 2000


def test_a_status_counts_even_if_the_rest_never_comes(server: Callable[[Callable[[socket.socket], None]], str]) -> None:
    address = server(answering(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n", *[b"a"] * 100, pause_s=0.1))
    answer = to(address, deadline_s=0.6)
    assert answer.delivered
    assert answer.duration_ms < 2000


def test_a_tls_handshake_that_hangs_ends_too(server: Callable[[Callable[[socket.socket], None]], str]) -> None:
    released = threading.Event()
    answer = to(server(lambda connection: released.wait(5) and None), deadline_s=0.5, scheme="https")
    released.set()
    assert answer.status_code is None
    assert answer.duration_ms < 2000


def test_only_the_beginning_of_an_answer_is_kept(server: Callable[[Callable[[socket.socket], None]], str]) -> None:
    answer = to(server(answering(b"HTTP/1.1 500 X\r\n\r\n" + b"x" * 1_000_000)))
    assert answer.response == "x" * 4096


def test_what_is_not_http_is_a_failure_with_a_sentence(server: Callable[[Callable[[socket.socket], None]], str]) -> None:
    for said in (b"", b"garbage\r\n\r\n", b"HTTP/1.1 200\r\nBroken"):
        answer = to(server(answering(said)))
        assert answer.delivered or (answer.error or "").endswith("."), said
    nobody = socket.create_server(("127.0.0.1", 0))
    address = f"127.0.0.1:{nobody.getsockname()[1]}"
    nobody.close()
    assert to(address).error == "The connection to 127.0.0.1 failed."


@pytest.mark.parametrize(("value", "seconds"), [("7", 7.0), ("0", 0.0), ("-5", 0.0), ("--5", None), ("soon", None), ("", None)])
def test_retry_after_is_heard(server: Callable[[Callable[[socket.socket], None]], str], value: str, seconds: float | None) -> None:
    said = f"HTTP/1.1 503 X\r\nRetry-After: {value}\r\nContent-Length: 0\r\n\r\n".encode()
    answer = to(server(answering(said)))
    assert (answer.status_code, answer.retry_after_s) == (503, seconds)


def test_retry_after_may_be_a_date(server: Callable[[Callable[[socket.socket], None]], str]) -> None:
    at = time.strftime("%a, %d %b %Y %H:%M:%S GMT", time.gmtime(time.time() + 120))
    said = f"HTTP/1.1 503 X\r\nRetry-After: {at}\r\nContent-Length: 0\r\n\r\n".encode()
    wait = to(server(answering(said))).retry_after_s
    assert wait is not None
    assert 110 < wait <= 120


HOSTILE = """
127.0.0.1 127.1 127.0.1 0 0.0.0.0 2130706433 0x7f000001 0x7f.0.0.1 0177.0.0.1 localhost LOCALHOST 127.0.0.1.
10.0.0.1 10.255.255.255 172.16.0.1 172.31.255.254 192.168.0.1 169.254.169.254 100.64.0.1 198.18.0.1 192.0.0.1 192.0.2.1
198.51.100.1 203.0.113.1 224.0.0.1 239.255.255.255 240.0.0.1 255.255.255.255 168.63.129.16 192.88.99.1
[::] [::1] [::ffff:127.0.0.1] [::ffff:10.0.0.1] [::ffff:a9fe:a9fe] [::127.0.0.1] [::7f00:1] [fe80::1] [fc00::1] [fd00:ec2::254]
[fec0::1] [ff02::1] [64:ff9b::7f00:1] [64:ff9b:1::1] [2002:7f00:1::] [2001:db8::1] [2001::1] [5f00::1] [100::1]
""".split()  # noqa: SIM905


@pytest.mark.parametrize("host", HOSTILE)
def test_no_connection_is_made_to_an_address_that_is_not_public(host: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def connected(*arguments: object, **more: object) -> None:
        pytest.fail(f"a connection to {arguments} was tried")

    monkeypatch.setattr("urllib3.util.connection.create_connection", connected)
    answer = to(host, private=False)
    assert answer.status_code is None
    assert (answer.error or "").endswith(".")


def test_a_name_is_resolved_once_and_the_very_address_looked_at_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    """A name that is public when asked first and ours when asked again (DNS rebinding)."""
    asked: list[object] = []
    tried: list[object] = []
    real = socket.getaddrinfo

    def resolve(host: str, *rest: object, **more: object) -> object:
        asked.append(host)
        if host == "rebinding.example":
            address = "93.184.215.14" if asked.count(host) == 1 else "127.0.0.1"
            return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, 80))]
        return real(host, *rest, **more)  # type: ignore[arg-type]

    def connect(address: tuple[str, int], *_: object, **__: object) -> None:
        tried.append(address[0])
        raise ConnectionRefusedError

    monkeypatch.setattr(socket, "getaddrinfo", resolve)
    monkeypatch.setattr("urllib3.util.connection.create_connection", connect)
    answer = to("rebinding.example", private=False)
    assert (asked.count("rebinding.example"), tried) == (1, ["93.184.215.14"])
    assert answer.error == "The connection to rebinding.example failed."


@pytest.mark.parametrize("private", [True, False])
def test_a_name_that_nobody_answers_for_ends_with_the_deadline_and_holds_up_no_other(
    server: Callable[[Callable[[socket.socket], None]], str], monkeypatch: pytest.MonkeyPatch, private: bool
) -> None:
    released, asked, real = threading.Event(), [], socket.getaddrinfo

    def resolve(host: str, *rest: object, **more: object) -> object:
        if host != "silent.example":
            return real(host, *rest, **more)  # type: ignore[arg-type]
        asked.append(host)
        released.wait(30)
        raise socket.gaierror

    monkeypatch.setattr(socket, "getaddrinfo", resolve)
    for _ in range(PER_NAME + 1):
        answer = to("silent.example", deadline_s=0.2, private=private)
        assert answer.error == "The name silent.example could not be resolved."
        assert answer.duration_ms < 10_000
    assert len(asked) == PER_NAME, "more are not begun while those hang"
    address = server(answering(b"HTTP/1.1 204 X\r\n\r\n"))
    assert to(address.replace("127.0.0.1", "localhost")).delivered
    released.set()


def test_all_addresses_of_a_name_together_get_no_more_than_the_deadline(monkeypatch: pytest.MonkeyPatch) -> None:
    """Twenty that take no connection: each by itself would get the whole of it."""
    with socket.socket() as full, socket.socket() as first, socket.socket() as second:
        full.bind(("0.0.0.0", 0))  # noqa: S104
        full.listen(0)
        port = full.getsockname()[1]
        for filling in (first, second):  # so that there is no room for anybody else
            filling.setblocking(False)
            filling.connect_ex(("127.0.0.1", port))
        found = [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (f"127.0.0.{last}", port)) for last in range(2, 22)]
        real = socket.getaddrinfo
        monkeypatch.setattr(socket, "getaddrinfo", lambda host, *rest: found if host == "many.example" else real(host, *rest))
        answer = to(f"many.example:{port}", deadline_s=1.0)
    assert answer.error == "many.example did not answer completely within 1 seconds."
    assert answer.request_headers is None
    assert answer.duration_ms < 10_000


def test_public_addresses_are_allowed() -> None:
    for address in ("93.184.215.14", "8.8.8.8", "2606:4700::1111", "::ffff:8.8.8.8"):
        assert address_allowed(address), address


def test_no_proxy_of_the_environment_is_used(
    server: Callable[[Callable[[socket.socket], None]], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")
    assert to(server(answering(b"HTTP/1.1 204 X\r\n\r\n"))).delivered


def test_the_schedule_is_kept_with_its_jitter() -> None:
    """At once, 5 s, 5 and 30 minutes, 2, 5, 10, 14, 20 and 24 hours, give or take a fifth."""
    assert list(SCHEDULE_S) == [0, 5, 300, 1800, 7200, 18_000, 36_000, 50_400, 72_000, 86_400]
    assert JITTER == 0.2
    failed = Answer(500, "It failed.", 1.0)
    for attempt, wait in enumerate(SCHEDULE_S[1:], start=1):
        assert delay_after(attempt, failed, lambda: 0.0) == pytest.approx(wait * (1 - JITTER))
        assert delay_after(attempt, failed, lambda: 1.0) == pytest.approx(wait * (1 + JITTER))
    assert delay_after(len(SCHEDULE_S), failed) is None
    assert sum(SCHEDULE_S) < 5 * 86_400


def test_a_receiver_may_ask_for_more_time_but_not_for_ever() -> None:
    assert delay_after(1, Answer(503, "Later.", 1.0, retry_after_s=100.0), lambda: 0.5) == 100.0
    assert delay_after(1, Answer(503, "Later.", 1.0, retry_after_s=1.0), lambda: 0.5) == 5.0
    assert delay_after(1, Answer(503, "Later.", 1.0, retry_after_s=1e9), lambda: 0.5) == 86_400.0
