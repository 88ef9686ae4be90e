"""`unmask keys|users|audit`: who may come in, and who did what. They work on the database, so they are a way in when there is no other."""

from __future__ import annotations

import json
import sys
from typing import Any

import click
from rich.markup import escape

from pipeline import audit as audits
from pipeline import keys as api_keys
from pipeline import users as people
from pipeline.access import Role
from pipeline.tables.access import ApiKeyRow, UserRow
from workers import console
from workers.sentences import CommandError
from workers.surroundings import opened, settings_in_force

ACTOR = "cli"
ROLES = click.Choice([role.value for role in Role])
WHOLE = "the whole server"

_role = click.option("--role", type=ROLES, required=True, help="What they may do; each role may do what those before it may.")
_inboxes = click.option("--inbox", "inboxes", multiple=True, metavar="NAME", help="Only this inbox; may be repeated. Default: all.")
_json = click.option("--json", "as_json", is_flag=True, help="Print JSON.")


# -- keys


@click.group()
def keys() -> None:
    """API keys: what programs come in with."""


@keys.command("add")
@click.argument("name")
@_role
@_inboxes
@click.option("--days", type=float, help="How long it is good for. Default: until it is revoked.")
@_json
def add_key(name: str, role: str, inboxes: tuple[str, ...], days: float | None, as_json: bool) -> None:
    """Make a key; it is shown this once. NAME says what it is for."""
    with opened(settings_in_force()) as database:
        row, key = api_keys.add(database, name, Role(role), inboxes=inboxes, days=days, actor=ACTOR)
    if as_json:
        console.print_json(_key(row) | {"key": key})
        return
    shown = console.console()
    shown.print(f"{escape(row.name)}: {row.role} of {escape(', '.join(row.inboxes) or WHOLE)}. The key, shown this once:")
    click.echo(key)


@keys.command("list")
@_json
def list_keys(as_json: bool) -> None:
    """List the keys, newest first, those revoked or expired too."""
    with opened(settings_in_force()) as database:
        rows = api_keys.all_of_them(database)
        with database.read() as session:
            at = audits.clock(session)
    if as_json:
        console.print_json([_key(row) for row in rows])
        return
    made = console.table("API keys", "id", "name", "role", "inboxes", "state", "last used", "made")
    for row in rows:
        state = "[green]active[/]" if row.expires_at is None else f"[green]until[/] {console.local(row.expires_at)}"
        if row.revoked_at is not None:
            state = f"[red]revoked[/] {console.local(row.revoked_at)}"
        elif row.expires_at is not None and row.expires_at <= at:
            state = f"[red]expired[/] {console.local(row.expires_at)}"
        bound = escape(", ".join(row.inboxes) or "all")
        made.add_row(row.id, escape(row.name), row.role, bound, state, console.local(row.last_used_at), console.local(row.created_at))
    console.console().print(made if rows else "There is no key: `unmask keys add NAME --role ROLE` makes one.")


def _key(row: ApiKeyRow) -> dict[str, Any]:
    times = {name: console.moment(getattr(row, name)) for name in ("created_at", "expires_at", "revoked_at", "last_used_at")}
    return {"id": row.id, "name": row.name, "role": row.role, "inboxes": list(row.inboxes), **times}


@keys.command()
@click.argument("key_id", metavar="ID")
def revoke(key_id: str) -> None:
    """Let a key open nothing any more, from now on."""
    with opened(settings_in_force()) as database:
        row = api_keys.revoke(database, key_id, actor=ACTOR)
    console.console().print(f"{escape(row.name)} opens nothing any more.")


# -- users


@click.group()
def users() -> None:
    """People who log in to the dashboard."""


_stdin = click.option("--password-stdin", is_flag=True, help="Read the password from standard input instead of asking for it.")


@users.command("add")
@click.argument("name")
@_role
@_inboxes
@_stdin
def add_user(name: str, role: str, inboxes: tuple[str, ...], password_stdin: bool) -> None:
    """Make a user; asks for the password."""
    with opened(settings_in_force()) as database:
        row = people.add(database, name, _password(password_stdin), Role(role), inboxes=inboxes, actor=ACTOR)
    console.console().print(f"{escape(row.name)} may log in: {row.role} of {escape(', '.join(row.inboxes) or WHOLE)}.")


@users.command("list")
@_json
def list_users(as_json: bool) -> None:
    """List the users by name, those turned off too."""
    with opened(settings_in_force()) as database:
        rows = people.all_of_them(database)
    if as_json:
        console.print_json([_user(row) for row in rows])
        return
    made = console.table("Users", "name", "role", "inboxes", "state", "made")
    for row in rows:
        state = "[green]active[/]" if row.disabled_at is None else f"[red]off[/] since {console.local(row.disabled_at)}"
        made.add_row(escape(row.name), row.role, escape(", ".join(row.inboxes) or "all"), state, console.local(row.created_at))
    console.console().print(made if rows else "There is no user: `unmask users add NAME --role ROLE` makes one.")


def _user(row: UserRow) -> dict[str, Any]:
    times = {"created_at": console.moment(row.created_at), "disabled_at": console.moment(row.disabled_at)}
    return {"name": row.name, "role": row.role, "inboxes": list(row.inboxes), **times}


@users.command()
@click.argument("name")
@_stdin
def password(name: str, password_stdin: bool) -> None:
    """Give a user another password; whoever is logged in as them is out."""
    with opened(settings_in_force()) as database:
        people.get(database, name)
        people.set_password(database, name, _password(password_stdin), actor=ACTOR)
    console.console().print(f"{escape(name)} has another password.")


@users.command()
@click.argument("name")
@click.option("--role", type=ROLES, help="What they may do from now on.")
@click.option("--inbox", "inboxes", multiple=True, metavar="NAME", help="Only this inbox; may be repeated.")
@click.option("--every-inbox", is_flag=True, help="The whole server.")
def change(name: str, role: str | None, inboxes: tuple[str, ...], every_inbox: bool) -> None:
    """Give a user another role or other inboxes; whoever is logged in as them is out."""
    if inboxes and every_inbox:
        raise CommandError("Say either --inbox or --every-inbox.")
    bound = [] if every_inbox else list(inboxes) or None
    with opened(settings_in_force()) as database:
        row = people.change(database, name, role=None if role is None else Role(role), inboxes=bound, actor=ACTOR)
    console.console().print(f"{escape(row.name)}: {row.role} of {escape(', '.join(row.inboxes) or WHOLE)}.")


@users.command()
@click.argument("name")
def disable(name: str) -> None:
    """Turn a user off: they are out at once and cannot log in."""
    _switch(name, on=False)


@users.command()
@click.argument("name")
def enable(name: str) -> None:
    """Turn a user on again."""
    _switch(name, on=True)


def _switch(name: str, *, on: bool) -> None:
    with opened(settings_in_force()) as database:
        people.switch(database, name, on=on, actor=ACTOR)
    console.console().print(f"{escape(name)} may log in again." if on else f"{escape(name)} is out, and cannot log in.")


@users.command("logout")
@click.argument("name")
def end_sessions(name: str) -> None:
    """Log a user out wherever they are logged in."""
    with opened(settings_in_force()) as database:
        people.end_sessions(database, name, actor=ACTOR)
    console.console().print(f"{escape(name)} is logged out everywhere.")


def _password(from_stdin: bool) -> str:
    if from_stdin:
        return sys.stdin.readline().rstrip("\r\n")
    return str(click.prompt("Password", hide_input=True, confirmation_prompt=True, err=True))


# -- the audit


@click.command()
@click.option("--actor", help="Only what they did: user:NAME, key:ID, cli, anonymous, system, schedule:NAME.")
@click.option("--action", help="Only this deed, such as key.add, or this kind, such as key.")
@click.option("--subject", help="Only what was done to this.")
@click.option("--limit", type=click.IntRange(1, 100_000), default=50, show_default=True, help="So many, from the newest.")
@_json
def audit(actor: str | None, action: str | None, subject: str | None, limit: int, as_json: bool) -> None:
    """Show who did what, newest first."""
    with opened(settings_in_force()) as database:
        rows, _ = audits.page(database, actor=actor, action=action, subject=subject, limit=limit)
    if as_json:
        fields = ("id", "actor", "action", "subject", "detail")
        console.print_json([{"at": console.moment(row.at)} | {name: getattr(row, name) for name in fields} for row in rows])
        return
    made = console.table("Audit", "when", "who", "deed", "subject", "detail")
    for row in rows:
        detail = ", ".join(f"{name}: {_said(name, value)}" for name, value in row.detail.items())
        made.add_row(console.local(row.at), escape(row.actor), row.action, escape(row.subject), escape(detail))
    console.console().print(made if rows else "Nothing like that was done.")


def _said(name: str, value: object) -> str:
    if isinstance(value, float) and audits.is_time(name):
        return console.local(value)
    return json.dumps(value, ensure_ascii=False)
