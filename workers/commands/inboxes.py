"""`unmask inboxes list|add|edit|remove|events`, and `unmask backfill`."""

from __future__ import annotations

import signal
from dataclasses import asdict
from threading import Event, Thread
from typing import Any

import click
from rich.markup import escape

from pipeline import inboxes as inboxes_of
from pipeline import inboxkeeping
from pipeline.backfills import Progress
from pipeline.database import Database
from pipeline.inboxes import DEFAULT, Inbox
from pipeline.jobs import Queue
from pipeline.settings import Settings
from pipeline.stopping import setting
from pipeline.storage import Storage, StorageError
from workers import console, hearing, wiring
from workers.sentences import CommandError
from workers.surroundings import object_store, opened, settings_in_force

ACTOR = "cli"
STEPS = [
    click.option("--prefix", help="Only keys that begin so."),
    click.option("--suffix", "suffixes", multiple=True, metavar=".END", help="Only keys that end so; may be repeated."),
    click.option("--results-bucket", help="Where its results go, if not where everybody's do."),
    click.option("--results-prefix", help="Put before every result's key."),
    click.option("--queue", type=click.Choice([queue.value for queue in Queue]), help="How urgent its jobs are; bulk if not said."),
    click.option("--authentic-below", type=click.FloatRange(0, 1), help="Threshold in place of the model's; with --manipulated-from."),
    click.option("--manipulated-from", type=click.FloatRange(0, 1), help="Threshold in place of the model's; with --authentic-below."),
    click.option("--source", type=click.Choice(inboxkeeping.SOURCES), help="How it is heard of, beside the listing; webhook if not said."),
    click.option("--sqs-url", help="The queue that tells of its uploads."),
]


def _with_fields(command: Any) -> Any:
    for option in reversed(STEPS):
        command = option(command)
    return command


@click.group("inboxes")
def inboxes() -> None:
    """The buckets that uploads come in by, and what is done differently for each."""


@inboxes.command("list")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def list_inboxes(as_json: bool) -> None:
    """List the inboxes; `default` is that of the settings."""
    settings = settings_in_force()
    with opened(settings) as database:
        found = inboxes_of.directory(settings, database).inboxes
    if as_json:
        console.print_json([_json(inbox) for inbox in found])
        return
    made = console.table("Inboxes", "name", "takes", "results", "urgency", "thresholds", "heard of by", "state")
    for inbox in found:
        made.add_row(
            escape(inbox.name),
            escape(f"{inbox.bucket}/{inbox.prefix}*{' or *'.join(inbox.suffixes)}"),
            escape(f"{inbox.results_bucket}/{inbox.results_prefix}"),
            inbox.queue.value,
            "the model's" if inbox.authentic_below is None else f"{inbox.authentic_below:.2f} and {inbox.manipulated_from:.2f}",
            escape(inbox.sqs_url or inbox.source),
            "[green]on[/]" if inbox.enabled else "[red]off[/]",
        )
    console.console().print(made)


@inboxes.command()
@click.argument("name")
@click.argument("bucket")
@_with_fields
@click.option("--create-bucket", is_flag=True, help="Make its buckets where they are missing.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def add(name: str, bucket: str, create_bucket: bool, as_json: bool, **given: Any) -> None:
    """Open an inbox NAME on BUCKET. What lies there already is left to `unmask backfill NAME`."""
    settings = settings_in_force()
    store = object_store(settings) if create_bucket else None  # before anything is done: there may be none
    with opened(settings) as database:
        made = inboxkeeping.add(database, settings, Inbox(name=name, bucket=bucket, **_fields(given)), by=ACTOR)
    if store is not None:
        _ensure_buckets(store, made)
    if as_json:
        console.print_json(_json(made))
        return
    shown = console.console()
    shown.print(f"{escape(made.name)} takes what is put into {escape(made.bucket)}/{escape(made.prefix)}.")
    if made.source != "none":
        shown.print("A stack that is up listens for it from its next start on; until then the listing finds its uploads.")
        shown.print(f"`unmask inboxes events {escape(made.name)}` shows how to have the store tell of them.")


@inboxes.command()
@click.argument("name")
@_with_fields
@click.option("--model-thresholds", is_flag=True, help="Judge by the model's own thresholds again.")
@click.option("--on/--off", "enabled", default=None, help="Take uploads, or none.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def edit(name: str, model_thresholds: bool, enabled: bool | None, as_json: bool, **given: Any) -> None:
    """Change an inbox; what is not named stays as it is."""
    settings = settings_in_force()
    changes = _fields(given)
    if model_thresholds:
        changes |= {"authentic_below": None, "manipulated_from": None}
    if enabled is not None:
        changes["enabled"] = enabled
    if given["source"] not in (None, "sqs"):
        changes["sqs_url"] = ""
    if not changes:
        raise CommandError("Nothing is to be changed: name a field.")
    with opened(settings) as database:
        made = inboxkeeping.change(database, settings, name, by=ACTOR, **changes)
    if as_json:
        console.print_json(_json(made))
    else:
        console.console().print(f"{escape(made.name)} is changed.")


@inboxes.command()
@click.argument("name")
def remove(name: str) -> None:
    """Give up an inbox that has no jobs."""
    with opened(settings_in_force()) as database:
        inboxkeeping.remove(database, name, by=ACTOR)
    console.console().print(f"{escape(name)} is removed.")


@inboxes.command()
@click.argument("name", default=DEFAULT)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def events(name: str, as_json: bool) -> None:
    """Print the commands that make the store tell of uploads into an inbox: AWS CLI, Terraform, MinIO, SeaweedFS."""
    settings = settings_in_force()
    with opened(settings) as database:
        inbox = inboxes_of.get(settings, database, name)
    try:
        present = hearing.present(inbox, settings, object_store(settings).client)
    except CommandError:  # no store is known yet
        present = wiring.UNREAD
    ways = wiring.ways(inbox, settings, present)
    if as_json:
        console.print_json(ways)
        return
    for way, text in ways.items():
        click.echo(f"# {way}\n\n{text}\n")


@click.command()
@click.argument("inbox", default=DEFAULT)
@click.option("--prefix", default="", help="Only keys that begin so.")
@click.option("--anew", is_flag=True, help="From the first key, even if an earlier run was not finished.")
@click.option("--window", type=click.IntRange(1), help="At most so many of its jobs wait at once.")
@click.option("--count/--no-count", default=True, help="Count the objects beforehand, for the progress bar.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def backfill(inbox: str, prefix: str, anew: bool, window: int | None, count: bool, as_json: bool) -> None:
    """Judge what lay in an inbox before anybody listened to it; goes on where it was stopped.

    Its jobs wait behind all others, so fresh uploads do not wait for them. Ctrl-C stops it; call it again to go on.
    """
    from workers import app, backfilling

    settings = settings_in_force()
    app.configure(settings)
    stopping = Event()
    store = object_store(settings)
    before = signal.signal(signal.SIGINT, setting(stopping))
    try:
        with opened(settings) as database, console.progress(console.console(error=True)) as shown:
            task = shown.add_task("back-filling", total=None, note="")

            def told(progress: Progress, waiting: int) -> None:
                note = f"{progress.made:,} new jobs, {waiting:,} wait"
                shown.update(task, completed=progress.seen, note=note)

            if count:
                Thread(target=lambda: shown.update(task, total=_count(database, store, settings, inbox, prefix)), daemon=True).start()
            most = backfilling.WINDOW if window is None else window
            done = backfilling.run(database, store, settings, inbox, prefix=prefix, anew=anew, window=most, stopping=stopping, told=told)
    finally:
        signal.signal(signal.SIGINT, before)
    if as_json:
        console.print_json(asdict(done))
    else:
        end = "The back-fill is through" if done.finished_at is not None else "The back-fill is stopped, and goes on when called again"
        console.console().print(f"{end}: {done.seen:,} objects seen, {done.made:,} jobs made, {done.left_alone:,} objects are no images.")
    if done.finished_at is None:
        raise click.exceptions.Exit(1)


def _count(database: Database, store: Storage, settings: Settings, name: str, prefix: str) -> int | None:
    try:
        inbox = inboxes_of.get(settings, database, name)
        return sum(1 for _ in store.listing(inbox.bucket, prefix or inbox.prefix))
    except Exception:  # only the bar lacks its end
        return None


def _ensure_buckets(store: Storage, inbox: Inbox) -> None:
    """Make the buckets of an inbox that was opened just now. Raises CommandError that names those that could not be made."""
    lacking, reason = [], ""
    for bucket in dict.fromkeys((inbox.bucket, inbox.results_bucket)):
        try:
            store.ensure_bucket(bucket)
        except StorageError as error:
            lacking.append(bucket)
            reason = reason or str(error)
    if lacking:  # to call it again would only say that there is such an inbox
        which, them = " and ".join(lacking), "them" if len(lacking) > 1 else "it"
        raise CommandError(f"The inbox {inbox.name} is open, but {which} could not be made: see to {them} in the store. {reason}")


def _fields(given: dict[str, Any]) -> dict[str, Any]:
    fields = {name: value for name, value in given.items() if value not in (None, ())}
    if "suffixes" in fields:
        fields["suffixes"] = tuple(suffix.lower() for suffix in fields["suffixes"])
    if "queue" in fields:
        fields["queue"] = Queue(fields["queue"])
    if fields.get("sqs_url") and "source" not in fields:
        fields["source"] = "sqs"
    return fields


def _json(inbox: Inbox) -> dict[str, Any]:
    return {**asdict(inbox), "queue": inbox.queue.value, "suffixes": list(inbox.suffixes), "created_at": console.moment(inbox.created_at)}
