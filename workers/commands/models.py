"""`unmask models list|install|publish|promote|rollback`."""

from __future__ import annotations

from pathlib import Path

import click
from rich.markup import escape

from pipeline import registry
from pipeline.card import Metrics
from workers import console
from workers.sentences import CommandError
from workers.surroundings import object_store, opened, settings_in_force


@click.group()
def models() -> None:
    """The model versions: which there are, and which one judges."""


@models.command("list")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def list_models(as_json: bool) -> None:
    """List the published versions, newest first."""
    with opened(settings_in_force()) as database:
        found = registry.versions(database)
    if as_json:
        console.print_json(
            [
                {
                    "name": one.card.name,
                    "version": one.card.version,
                    "aliases": list(one.aliases),
                    "published_at": console.moment(one.created_at),
                    "card": one.card.model_dump(mode="json"),
                }
                for one in found
            ]
        )
        return
    made = console.table("Models", "name", "version", "is", "AUC (95 % interval)", "published")
    for one in found:
        metrics = ", ".join(f"{name.replace('_', ' ')} {_auc(value)}" for name, value in one.card.metrics.items())
        made.add_row(escape(one.card.name), escape(one.card.version), ", ".join(one.aliases), metrics or "-", console.local(one.created_at))
    shown = console.console()
    shown.print(made)
    for one in found:
        if registry.CHAMPION in one.aliases:
            for sentence in one.card.limits:
                shown.print(f"[dim]{escape(one.card.version)}: {escape(sentence)}[/]")


def _auc(metrics: Metrics) -> str:
    if metrics.auc is None:
        return "-"
    interval = "" if metrics.auc_ci is None else f" ({metrics.auc_ci[0]:.3f}-{metrics.auc_ci[1]:.3f})"
    return f"{metrics.auc:.3f}{interval}"


@models.command()
def install() -> None:
    """Make missing buckets, and where no model judges yet, let the one that comes with the product."""
    settings = settings_in_force()
    with opened(settings) as database:
        store = object_store(settings)
        made = store.ensure_buckets()
        card = registry.install_starter(database, store, settings)
    if made:
        console.console().print(f"Made the bucket{'' if len(made) == 1 else 's'} {escape(', '.join(made))}.")
    console.console().print(f"{escape(card.name)} {escape(card.version)} is champion.")


@models.command()
@click.argument("folder", type=click.Path(exists=True, file_okay=False, path_type=Path))
def publish(folder: Path) -> None:
    """Check the version in FOLDER and upload it; it judges only after `unmask models promote`."""
    settings = settings_in_force()
    with opened(settings) as database:
        card = registry.publish(database, object_store(settings), settings, folder)
    console.console().print(f"{escape(card.name)} {escape(card.version)} is published.")


@models.command()
@click.argument("version")
@click.option("--name", help="Only needed where several models have a version of that name.")
def promote(version: str, name: str | None) -> None:
    """Let VERSION judge from now on; workers follow within 30 seconds."""
    with opened(settings_in_force()) as database:
        names = [one.card.name for one in registry.versions(database) if one.card.version == version and name in (None, one.card.name)]
        if len(names) > 1:
            raise CommandError(f"Several models have a version {version}: choose one of {', '.join(names)} with --name.")
        chosen = names[0] if names else name or "of any name"
        registry.promote(database, chosen, version)
    console.console().print(f"{escape(chosen)} {escape(version)} is champion.")


@models.command()
def rollback() -> None:
    """Let the former champion judge again."""
    with opened(settings_in_force()) as database:
        name, version = registry.rollback(database)
    console.console().print(f"{escape(name)} {escape(version)} is champion again.")
