"""`unmask models list|install|publish|promote|approve|rollback|consider|shadow|sign`."""

from __future__ import annotations

from pathlib import Path

import click
from rich.markup import escape

from pipeline import gate, registry
from pipeline import shadow as shadows
from pipeline.card import Metrics
from pipeline.database import Database
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
    if not found:
        console.console().print("No model is published yet: `unmask models install` publishes the one that comes with the product.")
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
        card = registry.publish(database, object_store(settings), settings, folder, actor="cli")
    console.console().print(f"{escape(card.name)} {escape(card.version)} is published.")


@models.command()
@click.argument("version")
@click.option("--name", help="Only needed where several models have a version of that name.")
def promote(version: str, name: str | None) -> None:
    """Let VERSION judge from now on; workers follow within 30 seconds."""
    settings = settings_in_force()
    with opened(settings) as database:
        chosen = _of_version(database, version, name)
        registry.promote(database, settings, chosen, version, actor="cli")
    console.console().print(f"{escape(chosen)} {escape(version)} is champion.")


def _of_version(database: Database, version: str, name: str | None) -> str:
    """The name of the model that has this version; of an unknown one, what will not be found. Raises CommandError for several."""
    names = [one.card.name for one in registry.versions(database) if one.card.version == version and name in (None, one.card.name)]
    if len(names) > 1:
        raise CommandError(f"Several models have a version {version}: choose one of {', '.join(names)} with --name.")
    return names[0] if names else name or "of any name"


@models.command()
@click.argument("version")
@click.option("--name", help="Only needed where several models have a version of that name.")
def approve(version: str, name: str | None) -> None:
    """Let a candidate judge that waits for a person: promotion is by hand, or a pinned verdict flips."""
    settings = settings_in_force()
    with opened(settings) as database:
        chosen = _of_version(database, version, name)
        gate.approve(database, settings, chosen, version, actor="cli")
    console.console().print(f"{escape(chosen)} {escape(version)} is champion.")


@models.command()
@click.argument("folder", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--picture", type=click.Path(dir_okay=False, path_type=Path), help="Also write the decision's picture to this file.")
def consider(folder: Path, picture: Path | None) -> None:
    """Put the version in FOLDER before the gate: measure it against the champion on the hold-out, and decide.

    Exit code 0 if it took over or waits for a person, 1 if it was refused.
    """
    settings = settings_in_force()
    with opened(settings) as database:
        store = object_store(settings)
        decision = gate.consider(database, store, settings, folder, training_id="")
        if picture is not None and decision.picture:
            picture.write_bytes(store.fetch(settings.models_bucket, decision.picture, max_bytes=gate.MAX_PICTURE_BYTES))
    shown = console.console()
    shown.print(f"{escape(decision.name)} {escape(decision.version)}: {decision.outcome.value}")
    for check in decision.checks:
        shown.print(f"  {'holds' if check.passed else 'fails'}  {escape(check.sentence)}")
    if decision.outcome is gate.Outcome.REFUSED:
        raise click.exceptions.Exit(1)


@models.command()
@click.argument("version", required=False)
@click.option("--name", help="Only needed where several models have a version of that name.")
@click.option("--hours", type=click.FloatRange(0, min_open=True), help="For how long.  [default: UNMASK_SHADOW_S]")
@click.option("--share", type=click.FloatRange(0, 1, min_open=True), help="Of the jobs.  [default: UNMASK_SHADOW_SHARE]")
@click.option("--stop", is_flag=True, help="Take it out of the shadow.")
def shadow(version: str | None, name: str | None, hours: float | None, share: float | None, stop: bool) -> None:
    """Have VERSION score live traffic unseen; without VERSION, show how what was in the shadow differs from the champion."""
    settings = settings_in_force()
    shown = console.console()
    with opened(settings) as database:
        if version is not None:
            chosen = _of_version(database, version, name)
            if stop:
                shadows.end(database, chosen, version, actor="cli")
                shown.print(f"{escape(chosen)} {escape(version)} is not in the shadow.")
                return
            seconds = hours * 3600 if hours is not None else settings.shadow_s or 86_400.0
            shadows.begin(database, chosen, version, seconds=seconds, share=share or settings.shadow_share, actor="cli")
            shown.print(f"{escape(chosen)} {escape(version)} is in the shadow for {seconds / 3600:g} hours.")
            return
        rows = shadows.every(database)
        if not rows:
            shown.print("Nothing has been in the shadow yet: `unmask models shadow VERSION` puts a version there.")
            return
        made = console.table("In the shadow", "version", "since", "until", "faces", "mean difference", "other verdicts")
        for row in rows:
            found = shadows.compared(database, row.id)
            until = console.local(row.ended_at or row.until)
            what = ("0", "-", "-") if found is None else (str(found.faces), f"{found.mean:+.3f}", str(found.changed))
            made.add_row(escape(row.version), console.local(row.started_at), until, *what)
    shown.print(made)


@models.command()
@click.argument("version")
@click.option("--name", help="Only needed where several models have a version of that name.")
def sign(version: str, name: str | None) -> None:
    """Sign VERSION anew, after its files were compared with the registry: for one of before signatures, or of another secret key."""
    settings = settings_in_force()
    with opened(settings) as database:
        chosen = _of_version(database, version, name)
        registry.sign(database, object_store(settings), settings, chosen, version, actor="cli")
    console.console().print(f"{escape(chosen)} {escape(version)} is signed.")


@models.command()
def rollback() -> None:
    """Let the former champion judge again."""
    settings = settings_in_force()
    with opened(settings) as database:
        name, version = registry.rollback(database, settings, actor="cli")
    console.console().print(f"{escape(name)} {escape(version)} is champion again.")
