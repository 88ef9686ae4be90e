"""`unmask endpoints ...`: webhook receivers, by way of the web process, which keeps their secrets."""

from __future__ import annotations

import json
from datetime import datetime
from http.client import HTTPException
from typing import Any
from urllib.error import HTTPError, URLError
from urllib.parse import quote, urlsplit
from urllib.request import ProxyHandler, Request, build_opener

import click
from rich.markup import escape

from pipeline import passes
from pipeline.settings import Settings
from workers import console
from workers.sentences import CommandError
from workers.surroundings import settings_in_force

PATIENCE_S = 60.0
LOCAL = ("127.0.0.1", "localhost", "::1")


@click.group()
def endpoints() -> None:
    """Receivers of signed webhooks."""


@endpoints.command()
@click.argument("url")
@click.option("--event", "events", multiple=True, metavar="TYPE", help="Only events of this type, such as job.done; may be repeated.")
@click.option("--inbox", help="Only events of this inbox.")
@click.option("--description", default="", help="A note for people.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def add(url: str, events: tuple[str, ...], inbox: str | None, description: str, as_json: bool) -> None:
    """Register the receiver at URL; its secret is shown this once."""
    wanted = {"url": url, "events": list(events), "inbox": inbox, "description": description}
    made = ask(settings_in_force(), "POST", "/v1/endpoints", wanted)
    if as_json:
        console.print_json(made)
        return
    shown = console.console()
    shown.print(f"{escape(made['id'])} receives {', '.join(made['events']) or 'every event'} at {escape(made['url'])}.")
    shown.print(f"Its secret, shown this once: [bold]{escape(made['secret'])}[/]")


@endpoints.command("list")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def list_endpoints(as_json: bool) -> None:
    """List the receivers."""
    found = ask(settings_in_force(), "GET", "/v1/endpoints")["endpoints"]
    if as_json:
        console.print_json(found)
        return
    if not found:
        console.console().print("No endpoint is registered: `unmask endpoints add URL` does that.")
        return
    made = console.table("Webhook endpoints", "id", "url", "events", "inbox", "state", "description")
    for one in found:
        state = "[green]active[/]"
        if one["disabled_at"]:
            state = f"[red]disabled[/] {escape(one['disabled_reason'] or '')}"
        elif one["failing_since"]:
            state = f"[yellow]failing since {escape(one['failing_since'])}[/]"
        wanted = ", ".join(one["events"]) or "all"
        made.add_row(escape(one["id"]), escape(one["url"]), wanted, escape(one["inbox"] or "all"), state, escape(one["description"]))
    console.console().print(made)


@endpoints.command()
@click.argument("endpoint_id", metavar="ID")
def remove(endpoint_id: str) -> None:
    """Remove a receiver and everything that was to be sent to it."""
    ask(settings_in_force(), "DELETE", _path(endpoint_id))
    console.console().print(f"{escape(endpoint_id)} is removed.")


@endpoints.command()
@click.argument("endpoint_id", metavar="ID")
def rotate(endpoint_id: str) -> None:
    """Give a receiver a new secret, which is shown this once; for 24 hours requests are signed with both."""
    made = ask(settings_in_force(), "POST", _path(endpoint_id, "rotate"))
    console.console().print(f"Its new secret, shown this once: [bold]{escape(made['secret'])}[/]")


@endpoints.command()
@click.argument("endpoint_id", metavar="ID")
def enable(endpoint_id: str) -> None:
    """Send to a receiver again, beginning with what is pending."""
    ask(settings_in_force(), "POST", _path(endpoint_id, "enable"))
    console.console().print(f"{escape(endpoint_id)} is enabled.")


@endpoints.command()
@click.argument("endpoint_id", metavar="ID")
def disable(endpoint_id: str) -> None:
    """Send a receiver nothing more; what is pending waits."""
    ask(settings_in_force(), "POST", _path(endpoint_id, "disable"))
    console.console().print(f"{escape(endpoint_id)} is disabled.")


@endpoints.command()
@click.argument("endpoint_id", metavar="ID")
@click.option("--since", required=True, type=click.DateTime(), help="Events of then and later, by this machine's clock.")
@click.option("--until", type=click.DateTime(), help="And earlier than this; by default: up to now.")
@click.option("--all", "everything", is_flag=True, help="Those that it has taken, too.")
def replay(endpoint_id: str, since: datetime, until: datetime | None, everything: bool) -> None:
    """Send a receiver the events of a time range again: those that it has not taken, and those that it never heard of."""
    wanted = {"since": since.timestamp(), "until": None if until is None else until.timestamp(), "undelivered": not everything}
    count = ask(settings_in_force(), "POST", _path(endpoint_id, "replay"), wanted)["deliveries"]
    console.console().print(f"{count} event{'' if count == 1 else 's'} on the way again.")


@endpoints.command("test")
@click.argument("endpoint_id", metavar="ID")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def send_test(endpoint_id: str, as_json: bool) -> None:
    """Send a receiver a signed test event now; exit code 1 if it did not take it."""
    sent = ask(settings_in_force(), "POST", _path(endpoint_id, "test"))
    attempt = sent["attempts"][-1] if sent["attempts"] else {"status_code": None, "error": "it was not sent", "duration_ms": 0.0}
    taken = sent["status"] == "delivered"
    if as_json:
        console.print_json(sent)
    elif taken:
        console.console().print(f"[green]Delivered[/]: {attempt['status_code']} in {attempt['duration_ms']:.0f} ms.")
    else:
        console.console().print(f"[red]Not taken[/]: {escape(str(attempt['error'] or attempt['status_code']))}")
    if not taken:
        raise click.exceptions.Exit(1)


def _path(endpoint_id: str, deed: str = "") -> str:
    return f"/v1/endpoints/{quote(endpoint_id, safe='')}" + (f"/{deed}" if deed else "")


def ask(settings: Settings, method: str, path: str, body: Any = None) -> Any:
    """Ask the web process; returns the JSON it answers, None if it answers nothing. Raises CommandError with its sentence."""
    request = Request(settings.url + path, method=method, headers={"Accept": "application/json"})  # noqa: S310
    if body is not None:
        request.data = json.dumps(body).encode()
        request.add_header("Content-Type", "application/json")
    token = passes.issue(settings) if settings.api_key is None else settings.api_key.get_secret_value()
    if token is not None:
        request.add_header("Authorization", f"Bearer {token}")
    near = urlsplit(settings.url).hostname in LOCAL
    opener = build_opener(ProxyHandler({})) if near else build_opener()
    try:
        with opener.open(request, timeout=PATIENCE_S) as response:
            content = response.read()
        return json.loads(content) if content else None
    except HTTPError as error:
        raise CommandError(_detail(error)) from error
    except (URLError, HTTPException, OSError, ValueError) as error:
        reason = getattr(error, "reason", error)
        raise CommandError(f"The web process does not answer at {settings.url} ({reason}): start it with `unmask up`.") from error


def _detail(error: HTTPError) -> str:
    """The sentence of a problem document, or the bare status."""
    try:
        return str(json.loads(error.read())["detail"])
    except (ValueError, KeyError, TypeError, OSError):
        return f"The web process answered {error.code} {error.reason}."
