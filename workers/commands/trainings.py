"""`unmask retrain`, `unmask trainings` and `unmask schedule`: training in the background, by workers that own cards."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import click
from rich.markup import escape

from pipeline import classroom, options, schedules, trainings
from pipeline.cards import DEVICES
from pipeline.database import Database
from pipeline.settings import Settings
from pipeline.tables.training import ScheduleRow, TrainingRow
from workers import console
from workers.sentences import CommandError
from workers.surroundings import opened, settings_in_force

ACTOR = "cli"
LOOK_S = 0.5
COLOURS = {"done": "green", "failed": "bold red", "cancelled": "dim", "running": "blue", "queued": "dim"}
AS_JSON = click.option("--json", "as_json", is_flag=True, help="Print JSON.")
OPTION = click.option(
    "--option", "words", multiple=True, metavar="NAME=VALUE", help="An option of the trainer, such as pairs=16; may be repeated."
)
DATASET = click.option(
    "--dataset",
    "--faces",
    "dataset",
    default=None,
    help="A folder with faces.csv, or with real/ and fake/, a manifest, or one of these as s3://…  [default: the one that grows]",
)
DEVICE = click.option("--device", type=click.Choice(DEVICES), help="What to train on.  [default: UNMASK_TRAIN_DEVICE]")


@click.command()
@DATASET
@DEVICE
@click.option("--hours", type=float, help="How long to train.  [default: UNMASK_TRAIN_HOURS]")
@click.option("--steps", type=int, help="How many steps to train, instead.")
@OPTION
@click.option("--wait", is_flag=True, help="Stay until it is over; exit code 1 if it fails.")
@AS_JSON
def retrain(
    dataset: str | None, device: str | None, hours: float | None, steps: int | None, words: tuple[str, ...], wait: bool, as_json: bool
) -> None:
    """Ask for a training; a worker takes it up, and the gate decides about the version that comes of it."""
    settings = settings_in_force()
    params = _params(words, hours, steps) or {}
    with opened(settings) as database:
        training_id = trainings.ask(
            database, actor=ACTOR, device=device or settings.train_device, dataset=_absolute(dataset) or "", params=params
        )
        assert training_id is not None  # noqa: S101 - only a slot of a schedule can be taken
        _wake(database, settings, training_id)
        row = _follow(database, training_id, quiet=as_json) if wait else _row(database, training_id)
    _tell(row, as_json)
    if wait and row.status != "done":
        raise click.exceptions.Exit(1)


@click.group("trainings", invoke_without_command=True)
@click.option("--limit", default=20, show_default=True, type=click.IntRange(1, 1000), help="How many, newest first.")
@AS_JSON
@click.pass_context
def trainings_group(context: click.Context, limit: int, as_json: bool) -> None:
    """The trainings, newest first; `show`, `cancel` or `retry` one."""
    if context.invoked_subcommand is not None:
        return
    with opened(settings_in_force()) as database:
        rows, _ = classroom.page(database, limit=limit)
    if as_json:
        console.print_json([_json(row) for row in rows])
        return
    if not rows:
        console.console().print("Nothing has been trained here yet: `unmask retrain` asks for it.")
        return
    made = console.table("Trainings", "training", "data set", "status", "step", "AUC", "version", "asked for", right=("step", "AUC"))
    for row in rows:
        said = row.progress
        step = f"{said['step']}/{said['steps']}" if "steps" in said else "-"
        auc = "-" if said.get("auc") is None else f"{said['auc']:.3f}"
        status = f"[{COLOURS[row.status]}]{row.status}[/]" + (f" {escape(row.reason)}" if row.reason else "")
        made.add_row(row.id, escape(row.dataset or "default"), status, step, auc, row.result_version or "-", console.local(row.created_at))
    console.console().print(made)


@trainings_group.command()
@click.argument("training_id", metavar="ID")
@AS_JSON
def show(training_id: str, as_json: bool) -> None:
    """What became of a training, and what happened to it."""
    with opened(settings_in_force()) as database:
        row, history = _row(database, training_id), classroom.history(database, training_id)
        curve = classroom.curve(database, training_id)
    if as_json:
        happened = [{"at": console.moment(one.at), "what": one.what, "worker": one.worker, "detail": one.detail} for one in history]
        console.print_json({**_json(row), "curve": curve, "history": happened})
        return
    _tell(row, False)
    for one in history:
        console.console().print(f"  {console.local(one.at)}  {one.what:<10} {escape(one.detail)}")


@trainings_group.command()
@click.argument("training_id", metavar="ID")
def cancel(training_id: str) -> None:
    """Stop a training; its last checkpoint is kept."""
    with opened(settings_in_force()) as database:
        if not trainings.cancel(database, training_id, actor=ACTOR):
            row = _row(database, training_id)
            at_the_gate = "at the gate, which decides in a moment" if row.status == "running" else f"{row.status} already"
            raise CommandError(f"The training {training_id} is {at_the_gate}.")
    console.console().print(f"{escape(training_id)} is cancelled.")


@trainings_group.command()
@click.argument("training_id", metavar="ID")
def retry(training_id: str) -> None:
    """Let a failed or cancelled training go on from its last checkpoint."""
    settings = settings_in_force()
    with opened(settings) as database:
        if not trainings.requeue(database, training_id, actor=ACTOR):
            raise CommandError(
                f"The training {training_id} is {_row(database, training_id).status}: only a failed or cancelled one can go on."
            )
        _wake(database, settings, training_id)
    console.console().print(f"{escape(training_id)} is queued again.")


# -- schedules


@click.group()
def schedule() -> None:
    """When to train anew."""


RULES = click.option("--missed", type=click.Choice(schedules.MISSED), help="Of slots that nobody was up for, run the last, late, or none.")
ZONE = click.option("--timezone", help="IANA name, such as Europe/Berlin.  [default: UTC]")
DRIFT = click.option("--on-drift/--not-on-drift", default=None, help="Also when drift is found.")


@schedule.command("add")
@click.argument("name")
@click.option("--cron", required=True, help='Minute, hour, day, month and weekday, such as "0 3 * * 0".')
@ZONE
@DATASET
@DEVICE
@OPTION
@RULES
@DRIFT
def add_schedule(name: str, cron: str, device: str | None, words: tuple[str, ...], dataset: str | None, **values: Any) -> None:
    """Train at the times of a cron expression."""
    settings = settings_in_force()
    given = {key: value for key, value in values.items() if value is not None}
    with opened(settings) as database:
        row = schedules.add(
            database,
            name,
            actor=ACTOR,
            cron=cron,
            device=device or settings.train_device,
            dataset=_absolute(dataset) or "",
            params=options.parsed(words),
            **given,
        )
    _tell_next(row)


@schedule.command("edit")
@click.argument("name")
@click.option("--cron", help="Minute, hour, day, month and weekday.")
@ZONE
@DATASET
@DEVICE
@OPTION
@RULES
@DRIFT
@click.option("--on/--off", "enabled", default=None, help="Turn it on or off; none of the slots that lie behind is made up for.")
def edit_schedule(name: str, words: tuple[str, ...], dataset: str | None, **values: Any) -> None:
    """Change a schedule; what is not named stays."""
    given = {key: value for key, value in values.items() if value is not None}
    if dataset is not None:
        given["dataset"] = _absolute(dataset)
    if words:
        given["params"] = options.parsed(words)
    if not given:
        raise CommandError("Say what to change: `unmask schedule edit --help` lists it.")
    with opened(settings_in_force()) as database:
        row = schedules.edit(database, name, actor=ACTOR, **given)
    _tell_next(row)


@schedule.command("list")
@AS_JSON
def list_schedules(as_json: bool) -> None:
    """List the schedules."""
    with opened(settings_in_force()) as database:
        rows = schedules.every(database)
    if as_json:
        plain = ("name", "cron", "timezone", "dataset", "device", "params", "missed", "on_drift", "enabled")
        console.print_json(
            [{**{name: getattr(row, name) for name in plain}, "next_at": row.next_at and console.moment(row.next_at)} for row in rows]
        )
        return
    if not rows:
        console.console().print('There is no schedule yet: `unmask schedule add weekly --cron "0 3 * * 0"` makes one.')
        return
    made = console.table("Schedules", "name", "when", "time zone", "data set", "device", "options", "next")
    for row in rows:
        said = " ".join(f"{name.replace('_', '-')}={value}" for name, value in row.params.items())
        following = "[dim]off[/]" if not row.enabled else console.local(row.next_at) if row.next_at else "-"
        when = f"{schedules.words(row.cron)}{' and on drift' if row.on_drift else ''}"
        made.add_row(escape(row.name), when, row.timezone, escape(row.dataset or "default"), row.device, escape(said), following)
    console.console().print(made)


@schedule.command("remove")
@click.argument("name")
def remove_schedule(name: str) -> None:
    """Remove a schedule; its trainings stay."""
    with opened(settings_in_force()) as database:
        schedules.remove(database, name, actor=ACTOR)
    console.console().print(f"{escape(name)} is removed.")


@schedule.command("run")
@click.argument("name")
@AS_JSON
def run_schedule(name: str, as_json: bool) -> None:
    """Train now as the schedule would, beside its slots."""
    settings = settings_in_force()
    with opened(settings) as database:
        training_id = schedules.run(database, name, actor=ACTOR)
        _wake(database, settings, training_id)
        _tell(_row(database, training_id), as_json)


# -- smaller words


def _absolute(dataset: str | None) -> str | None:
    """A path as the worker understands it, whose working directory is another."""
    if not dataset or dataset.startswith("s3://"):
        return dataset
    path = Path(dataset).expanduser().absolute()
    if not path.exists():
        raise CommandError(f"{dataset} does not exist.")
    return str(path)


def _params(words: tuple[str, ...], hours: float | None, steps: int | None) -> dict[str, Any]:
    given = [*words, *([f"hours={hours}"] if hours is not None else []), *([f"steps={steps}"] if steps is not None else [])]
    return options.parsed(given)


def _wake(database: Database, settings: Settings, training_id: str) -> None:
    from workers.app import configure, wake_training

    configure(settings)
    if not wake_training(training_id):
        trainings.unwoken(database, training_id)


def _row(database: Database, training_id: str) -> TrainingRow:
    row = classroom.one(database, training_id)
    if row is None:
        raise CommandError(f"There is no training {training_id}: `unmask trainings` lists them.")
    return row


def _follow(database: Database, training_id: str, *, quiet: bool) -> TrainingRow:
    with console.progress(console.console(error=True)) as shown:
        task = shown.add_task("waiting", total=None, note="", visible=not quiet)
        while True:
            row = _row(database, training_id)
            if row.finished_at is not None:
                return row
            said = row.progress
            what = row.phase if row.status == "running" else row.status
            note = f"AUC {said['auc']:.3f}, {said['images_per_s']:g} images/s" if said.get("auc") is not None else row.reason or ""
            shown.update(task, description=what, completed=said.get("step", 0), total=said.get("steps"), note=note)
            time.sleep(LOOK_S)


def _json(row: TrainingRow) -> dict[str, Any]:
    plain = ("id", "status", "phase", "dataset", "device", "cards", "params", "schedule", "requested_by", "attempts", "runs", "worker")
    found = {name: getattr(row, name) for name in plain}
    found["progress"] = {name: value for name, value in row.progress.items() if name not in ("kept_s", "event")}
    found["model"] = None if row.result_version is None else {"name": row.result_name, "version": row.result_version}
    found |= {"decision": row.decision, "reason": row.reason}
    for name in ("slot", "created_at", "started_at", "finished_at"):
        value = getattr(row, name)
        found[name] = None if value is None else console.moment(value)
    return found


def _tell(row: TrainingRow, as_json: bool) -> None:
    if as_json:
        console.print_json(_json(row))
        return
    shown = console.console()
    shown.print(f"{escape(row.id)} is [{COLOURS[row.status]}]{row.status}[/]{f': {escape(row.reason)}' if row.reason else '.'}")
    if row.result_version is not None and row.decision is not None:
        said = {"promoted": "judges from now on", "waiting": "waits for a person", "refused": "stays a candidate"}
        shown.print(
            f"{escape(row.result_name or '')} {escape(row.result_version)} {said.get(row.decision['outcome'], row.decision['outcome'])}."
        )
        for check in row.decision.get("checks", ()):
            shown.print(f"  {'[green]holds[/]' if check['passed'] else '[red]fails[/]'}  {escape(check['sentence'])}")


def _tell_next(row: ScheduleRow) -> None:
    following = f"next {console.local(row.next_at)}" if row.next_at else "turned off"
    console.console().print(f"{escape(row.name)}: {schedules.words(row.cron)}, {row.timezone}; {following}.")
