"""`unmask datasets add|list|pin|unpin`, `unmask label`, `unmask drift`: what is learnt from, and what came in."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import click
from rich.markup import escape
from sqlalchemy import select

from pipeline import collections, drift, feedback, images, pins, reference
from pipeline.access import Principal, Role
from pipeline.images import Limits
from pipeline.tables.learning import CollectionRow, ItemRow
from workers import console
from workers.sentences import CommandError
from workers.surroundings import object_store, opened, settings_in_force


@click.group()
def datasets() -> None:
    """The data set that training and the gate take their faces from."""


@datasets.command()
@click.argument("folder", type=click.Path(exists=True, path_type=Path))
def add(folder: Path) -> None:
    """Add the pictures of FOLDER: faces.csv, real/ and fake/, or a manifest. Its split `test` joins the hold-out."""
    settings = settings_in_force()
    with opened(settings) as database, console.progress(console.console(error=True)) as shown:

        def watch(items: Sequence[Any]) -> Iterator[Any]:
            task = shown.add_task("pictures", total=len(items), note="")
            for item in items:
                yield item
                shown.update(task, advance=1)

        added = collections.add(database, object_store(settings), settings, folder, actor="cli", watch=watch)
    said = ", ".join(f"{number} to {split}" for split, number in sorted(added.items())) or "nothing that was not there"
    console.console().print(f"Added {said}.")


@datasets.command("list")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def list_datasets(as_json: bool) -> None:
    """What the data set holds now, and as what it was used."""
    with opened(settings_in_force()) as database, database.read() as session:
        present = collections.counts(list(session.scalars(select(ItemRow).where(ItemRow.collection == collections.DEFAULT))))
        rows = list(session.scalars(select(CollectionRow).order_by(CollectionRow.created_at.desc()).limit(50)))
        pinned = [{"sha256": row.sha256, "verdict": row.verdict, "what": row.what} for row in pins.every(database)]
    if as_json:
        used = [{"sha256": row.sha256, "at": console.moment(row.created_at), **row.counts} for row in rows]
        console.print_json({"now": present, "used": used, "pinned": pinned})
        return
    if not present["people"] and not rows and not pinned:
        console.console().print("The default data set is empty: `unmask datasets add FOLDER` adds photographs.")
        return
    made = console.table("The default data set", "as of", "train", "val", "hold-out", "people", "labelled", "hash")
    for when, counts, name in [("now", present, ""), *((console.local(row.created_at), row.counts, row.sha256[:16]) for row in rows)]:
        made.add_row(when, *(str(counts.get(key, 0)) for key in ("train", "val", "test", "people", "labelled")), name)
    console.console().print(made)
    for one in pinned:
        console.console().print(f"pinned: {escape(one['what'])} is {one['verdict']} ({one['sha256'][:16]})")


@datasets.command()
@click.argument("picture", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.argument("verdict", type=click.Choice(["manipulated", "uncertain", "authentic"]))
def pin(picture: Path, verdict: str) -> None:
    """Pin VERDICT on the largest face of PICTURE: no new model may change it unless a person agrees."""
    settings = settings_in_force()
    pixels = images.read(picture.read_bytes(), Limits.of(settings)).pixels
    with opened(settings) as database:
        kept = pins.pin(database, object_store(settings), settings, pixels, verdict, what=picture.name, actor="cli")
    console.console().print(f"Pinned {escape(picture.name)} as {verdict} ({kept[:16]}).")


@datasets.command()
@click.argument("sha256")
def unpin(sha256: str) -> None:
    """Let the verdict pinned under SHA256 (or its beginning) change again."""
    if not sha256:  # every hash begins so
        raise CommandError("Say which: `unmask datasets list` shows what is pinned, each with its hash.")
    with opened(settings_in_force()) as database:
        found = [row for row in pins.every(database) if row.sha256.startswith(sha256)]
        if not found:
            raise CommandError(f"No verdict is pinned under {sha256}: `unmask datasets list` shows what is.")
        if len(found) > 1:
            raise CommandError(f"{len(found)} pinned verdicts begin with {sha256}: say more of the hash.")
        [row] = found
        pins.unpin(database, row.sha256, actor="cli")
    console.console().print(f"Unpinned: {escape(row.what)} was {row.verdict} ({row.sha256[:16]}), and may change.")


@click.command("label")
@click.argument("job")
@click.argument("face", type=click.IntRange(0, 2**31 - 1))
@click.argument("label", type=click.Choice(feedback.LABELS))
@click.option("--note", default="", help="Why.")
def label_face(job: str, face: int, label: str, note: str) -> None:
    """Say of the FACE (counted from 0) of a JOB what it is; training learns from it."""
    with opened(settings_in_force()) as database:
        found = feedback.label(database, Principal("cli", Role.ADMIN), job, face, label, note=note)
    console.console().print(f"{found.state.capitalize()}{f': {found.label}' if found.label else ''}.")


@click.command("drift")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.option("--now", "at_once", is_flag=True, help="Compare the days that were not compared yet first.")
def show_drift(as_json: bool, at_once: bool) -> None:
    """How each day's faces compare with the hold-out."""
    settings = settings_in_force()
    with opened(settings) as database:
        if at_once:
            if reference.owed(database) is not None:
                reference.measure(database, object_store(settings), settings)
            drift.look(database, settings)
        found, lacking = drift.days(database), reference.lacking(database)
    if as_json:
        keys = ("measure", "n", "reference_n", "psi", "psi_limit", "ks", "p", "alarm")
        console.print_json({day: [{key: getattr(row, key) for key in keys} for row in rows] for day, rows in found.items()})
        return
    if not found:
        console.console().print(escape(f"No day was compared yet: a day is when it is over, if enough faces came in. {lacking}".rstrip()))
        return
    if lacking:
        console.console().print(escape(lacking))
    made = console.table("Against the hold-out", "day", "measure", "faces", "PSI", "limit", "KS", "p", "")
    for day, rows in found.items():
        for row in rows:
            figures = (f"{row.psi:.3f}", f"{row.psi_limit:.3f}", f"{row.ks:.3f}", f"{row.p:.2g}", "drifted" if row.alarm else "")
            made.add_row(day, row.measure, str(row.n), *figures)
    console.console().print(made)
