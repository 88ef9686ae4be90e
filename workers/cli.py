"""`unmask`: the command line. Every error is one sentence on standard error and exit code 2."""

from __future__ import annotations

import os
import sys
import traceback
from pathlib import Path
from typing import Any

import click

from workers import console
from workers.commands.cards import show_cards
from workers.commands.datasets import datasets, label_face, show_drift
from workers.commands.endpoints import endpoints
from workers.commands.inboxes import backfill, inboxes
from workers.commands.jobs import list_jobs, show_job, submit
from workers.commands.learning import evaluate, export, train
from workers.commands.listening import listen
from workers.commands.models import models
from workers.commands.people import audit, keys, users
from workers.commands.trainings import retrain, schedule, trainings_group
from workers.sentences import sentence_of
from workers.surroundings import settings_in_force

FAILED = 2
INTERRUPTED = 130


class Unmask(click.Group):
    """A group that turns whatever goes wrong into one sentence."""

    def main(self, *args: Any, **extra: Any) -> Any:
        """Run the command line and exit: 0, 1 where a command says so, 2 after an error, 130 after Ctrl-C."""
        try:
            sys.exit(super().main(*args, **{**extra, "standalone_mode": False}) or 0)
        except (click.Abort, KeyboardInterrupt):
            click.echo("Interrupted.", err=True)
            sys.exit(INTERRUPTED)
        except click.exceptions.NoArgsIsHelpError as error:
            error.show()
            sys.exit(FAILED)
        except BrokenPipeError:  # whoever read our output has seen enough
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            sys.exit(0)
        except Exception as error:
            click.echo(_told(error), err=True)
            sys.exit(FAILED)


def _told(error: Exception) -> str:
    if os.environ.get("UNMASK_LOG_LEVEL") == "debug":
        traceback.print_exc()
    said = sentence_of(error)
    if said is None:
        detail = f": {error}" if str(error) else ""
        said = f"Unexpected {type(error).__name__}{detail}. UNMASK_LOG_LEVEL=debug shows where."
    return f"unmask: {said}"


@click.group(cls=Unmask, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="unmask", message="%(prog)s %(version)s")
def main() -> None:
    """Finds manipulated faces in pictures that are put into a bucket.

    Begin with `unmask demo`, or start everything on this machine with `unmask up`. Settings are UNMASK_* variables:
    `unmask doctor --settings` lists them.
    """


@main.command()
def up() -> None:
    """Start the whole stack on this machine; Ctrl-C stops it."""
    from pipeline.settings import from_environment
    from workers import embedded

    embedded.up(from_environment(), click.echo)


@main.command()
@click.option("--images", type=click.Path(exists=True, file_okay=False, path_type=Path), help="Judge the pictures of this folder.")
@click.option(
    "--results",
    default="demo-results",
    show_default=True,
    type=click.Path(file_okay=False, path_type=Path),
    help="Where to put what comes out.",
)
@click.option("--keep", is_flag=True, help="Leave the stack running, to look at the dashboard, until Ctrl-C.")
def demo(images: Path | None, results: Path, keep: bool) -> None:
    """Judge sample pictures, or your own, by the real pipeline on this machine."""
    from workers.demo import show

    show(images, results, keep=keep)


@main.group()
def db() -> None:
    """The database."""


@db.command()
def upgrade() -> None:
    """Bring the database's tables up to date; harmless where they are."""
    import migrations

    settings = settings_in_force()
    migrations.upgrade(settings.database)
    console.console().print("The database is up to date.")


@main.command()
@click.option("--settings", "list_settings", is_flag=True, help="List every setting with its default.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def doctor(list_settings: bool, as_json: bool) -> None:
    """Check every setting and component, and say what to do; exit code 1 if something is wrong."""
    from workers import doctor as checks

    if list_settings:
        checks.print_settings(as_json)
    elif not checks.examine(as_json):
        raise click.exceptions.Exit(1)


for command in (
    submit,
    list_jobs,
    show_job,
    models,
    endpoints,
    listen,
    evaluate,
    train,
    export,
    inboxes,
    backfill,
    keys,
    users,
    audit,
    datasets,
    label_face,
    show_drift,
    retrain,
    trainings_group,
    schedule,
    show_cards,
):
    main.add_command(command)


if __name__ == "__main__":
    main()
