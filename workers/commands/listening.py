"""`unmask listen`: a webhook receiver for trying things out. It verifies what comes, prints it, and goes away again."""

from __future__ import annotations

import json
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import quote

import click
from rich.markup import escape
from standardwebhooks import Webhook, WebhookVerificationError

from pipeline.settings import Settings
from workers import console
from workers.commands.endpoints import ask
from workers.sentences import CommandError
from workers.surroundings import settings_in_force

MOST_BYTES = 65_536
PATIENCE_S = 20.0
"""For a request to come in completely."""


class Listener(ThreadingHTTPServer):
    """Takes webhooks on 127.0.0.1. `heard` is called with each event that verifies, once for each id; `refused` with a sentence."""

    daemon_threads = True
    request_queue_size = 128

    def __init__(self, port: int, status: int, as_json: bool, count: int) -> None:
        self.webhook: Webhook | None = None
        self.status = status
        self.over = threading.Event()
        self.wrong = 0
        self._as_json = as_json
        self._count = count
        self._seen: dict[str, int] = {}
        self._lock = threading.Lock()
        try:
            super().__init__(("127.0.0.1", port), _Handler)
        except OSError as error:
            raise CommandError(f"Port {port} cannot be listened on: {error.strerror}.") from error

    def take(self, headers: dict[str, str], body: bytes) -> int:
        """Verify a request, print what it says, and return the status to answer with."""
        try:
            if self.webhook is None:
                raise WebhookVerificationError("The secret is not known yet")
            event = self.webhook.verify(body, headers)
            kind, data = str(event["type"]), dict(event["data"])
        except (WebhookVerificationError, ValueError, KeyError, TypeError) as error:
            with self._lock:
                self.wrong += 1
            console.console(error=True).print(f"[red]Refused[/]: {escape(str(error) or type(error).__name__)}.")
            return 400
        with self._lock:
            event_id = {name.lower(): value for name, value in headers.items()}["webhook-id"]
            self._seen[event_id] = self._seen.get(event_id, 0) + 1
            self._print(event_id, kind, data, event)
            if self._count and len(self._seen) >= self._count:
                self.over.set()
        return self.status

    def _print(self, event_id: str, kind: str, data: dict[str, Any], event: dict[str, Any]) -> None:
        times = self._seen[event_id]
        if self._as_json:
            click.echo(json.dumps({"id": event_id, "times": times, **event}, ensure_ascii=False))
            return
        about = data.get("source", {}).get("key") or data.get("job_id") or data.get("version") or data.get("endpoint_id") or ""
        said = " ".join(str(data[name]) for name in ("verdict", "score", "reason", "message") if data.get(name) is not None)
        again = f" [yellow](time {times})[/]" if times > 1 else ""
        at = time.strftime("%H:%M:%S")
        console.console().print(
            f"{at} [green]verified[/] [bold]{escape(kind)}[/] {escape(str(about))} {escape(said)}{again} [dim]{event_id}[/]"
        )


class _Handler(BaseHTTPRequestHandler):
    timeout = PATIENCE_S
    server: Listener

    def do_POST(self) -> None:
        length = self.headers.get("Content-Length", "")
        if not length.isdecimal() or int(length) > MOST_BYTES:
            self._answer(413)
            return
        self._answer(self.server.take(dict(self.headers.items()), self.rfile.read(int(length))))

    def _answer(self, status: int) -> None:
        self.send_response(status)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, format: str, *arguments: object) -> None:
        """Nothing: what is worth a line has been printed."""


@click.command()
@click.option("--port", default=0, type=click.IntRange(0, 65535), help="Where to listen on 127.0.0.1; 0: a free port.")
@click.option("--event", "events", multiple=True, metavar="TYPE", help="Only events of this type, such as job.done; may be repeated.")
@click.option("--inbox", help="Only events of this inbox.")
@click.option("--secret", help="Register nothing, and verify with this secret what somebody sends here.", envvar="WEBHOOK_SECRET")
@click.option(
    "--answer", "status", default=204, show_default=True, type=click.IntRange(200, 599), help="What to answer: 500 to see it come again."
)
@click.option("--count", default=0, type=click.IntRange(0), help="End after so many events; 0: at Ctrl-C.")
@click.option(
    "--timeout", default=0.0, type=click.FloatRange(0), help="End after so many seconds, with exit code 1 if --count was not reached."
)
@click.option("--json", "as_json", is_flag=True, help="Print each event as a line of JSON.")
def listen(
    port: int, events: tuple[str, ...], inbox: str | None, secret: str | None, status: int, count: int, timeout: float, as_json: bool
) -> None:
    """Receive webhooks here, verify them and print them, until Ctrl-C.

    Registers an endpoint on this machine for as long as it runs, for which the stack must be allowed to send to it:
    UNMASK_WEBHOOK_ALLOW_HTTP=true and UNMASK_WEBHOOK_ALLOW_PRIVATE=true. Exit code 1 if anything did not verify.
    """
    listener = Listener(port, status, as_json, count)
    thread = threading.Thread(target=listener.serve_forever, name="listen", daemon=True)
    thread.start()
    url = f"http://127.0.0.1:{listener.server_port}/"
    notes = console.console(error=True)
    try:
        with _ended_like_ctrl_c(), _registered(settings_in_force(), url, events, inbox) if secret is None else _known(secret) as known:
            listener.webhook = _webhook(known)
            with suppress(KeyboardInterrupt):
                notes.print(
                    f"Listening at {url}" + (" for what is signed with your secret." if secret else "; Ctrl-C removes the endpoint again.")
                )
                listener.over.wait(timeout or None)
    finally:
        listener.shutdown()
        listener.server_close()
    if listener.wrong or (count and not listener.over.is_set()):
        raise click.exceptions.Exit(1)


def _webhook(secret: str) -> Webhook:
    try:
        return Webhook(secret)
    except (ValueError, RuntimeError) as error:
        raise CommandError("The secret is none: it looks like whsec_ and base64.") from error


@contextmanager
def _ended_like_ctrl_c() -> Iterator[None]:
    """SIGTERM does in the block what Ctrl-C does: whoever ends us does not leave an endpoint behind that nobody listens at."""
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


@contextmanager
def _known(secret: str) -> Iterator[str]:
    yield secret


@contextmanager
def _registered(settings: Settings, url: str, events: tuple[str, ...], inbox: str | None) -> Iterator[str]:
    """The secret of an endpoint that is there for as long as the block runs."""
    wanted = {"url": url, "events": list(events), "inbox": inbox, "description": "unmask listen, for as long as it runs"}
    try:
        made = ask(settings, "POST", "/v1/endpoints", wanted)
    except CommandError as error:
        if "UNMASK_WEBHOOK_ALLOW_" not in str(error):
            raise
        both = "UNMASK_WEBHOOK_ALLOW_HTTP=true and UNMASK_WEBHOOK_ALLOW_PRIVATE=true"
        raise CommandError(f"The stack does not send to this machine: start it with {both}.") from error
    try:
        yield str(made["secret"])
    finally:
        ask(settings, "DELETE", f"/v1/endpoints/{quote(made['id'], safe='')}")
