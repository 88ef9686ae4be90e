"""`unmask submit`, `unmask jobs`, `unmask job`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click
from rich.markup import escape

from pipeline import inboxes, inquiry, registry, results
from pipeline.card import ModelError
from pipeline.database import Database, JobRow
from pipeline.inboxes import DEFAULT
from pipeline.jobs import Status, Upload, Verdict
from pipeline.settings import Settings
from workers import console, submission
from workers.sentences import CommandError
from workers.surroundings import object_store, opened, settings_in_force


@click.command()
@click.argument("files", nargs=-1, required=True, type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--inbox", default=DEFAULT, help="Into this inbox, if not that of the settings.")
@click.option("--wait", is_flag=True, help="Wait until every picture is judged; exit code 1 if one could not be.")
@click.option("--timeout", type=click.FloatRange(min=0), metavar="SECONDS", help="Wait no longer than this.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def submit(files: tuple[Path, ...], inbox: str, wait: bool, timeout: float | None, as_json: bool) -> None:
    """Put pictures into an inbox to be judged."""
    settings = settings_in_force()
    store = object_store(settings)
    with opened(settings) as database:
        ids = _send(database, settings, store, files, inbox)
        if wait:
            jobs = _await(database, ids, timeout)
        else:
            jobs = {job_id: found for job_id in ids if (found := inquiry.job(database, job_id)) is not None}
        ordered = [jobs[job_id] for job_id in ids if job_id in jobs]
        if as_json:
            console.print_json([console.job_json(job, settings.url, results.judged(database, job.id)[1]) for job in ordered])
        else:
            console.console().print(console.jobs_table("Judged" if wait else "Submitted", ordered))
            _tell_limits(database, ordered)
    if wait and any(job.status != Status.DONE.value for job in ordered):
        raise click.exceptions.Exit(1)


def _send(database: Database, settings: Settings, store: Any, files: Sequence[Path], inbox: str) -> list[str]:
    from workers import app, ingest

    app.configure(settings)
    place = inboxes.effective(settings, database, inbox)
    among = inboxes.directory(settings, database)
    folder = submission.new_folder(place, "submit")
    ids = []
    with console.progress(console.console(error=True)) as shown:
        task = shown.add_task("uploading", total=len(files), note="")
        for sent in submission.send(store, place, files, folder):
            upload = Upload(
                place.inbox_bucket, sent.key, sent.version_id, sent.etag, size=sent.size, origin="submit", modified=sent.modified
            )
            if why := among.why_not(upload):
                raise CommandError(f"{sent.path} is uploaded, but no job is made of it: {why}.")
            if accepted := ingest.take(database, settings, upload, among=among):
                ids.append(accepted.job_id)
            shown.update(task, advance=1, note=escape(sent.path.name))
    return ids


def _await(database: Database, ids: Sequence[str], timeout: float | None) -> dict[str, JobRow]:
    def look() -> dict[str, JobRow]:
        return {job_id: found for job_id in ids if (found := inquiry.job(database, job_id)) is not None}

    standing: dict[str, JobRow] = {}
    with console.progress(console.console(error=True)) as shown:
        task = shown.add_task("judging", total=len(ids), note="")
        for standing in submission.follow(look, ids, timeout_s=timeout):
            ended = sum(Status(job.status).terminal for job in standing.values())
            shown.update(task, completed=ended, note=console.tally(standing.values()))
    return standing


@click.command("jobs")
@click.option("--status", type=click.Choice([status.value for status in Status]), help="Only jobs that stand so.")
@click.option("--verdict", type=click.Choice([verdict.value for verdict in Verdict]), help="Only jobs of this verdict.")
@click.option("--prefix", metavar="KEY", help="Only objects whose key begins so.")
@click.option("--limit", default=20, show_default=True, type=click.IntRange(1, inquiry.MAX_PAGE), help="How many, newest first.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def list_jobs(status: str | None, verdict: str | None, prefix: str | None, limit: int, as_json: bool) -> None:
    """List jobs, newest first."""
    settings = settings_in_force()
    with opened(settings) as database:
        rows, more = inquiry.page(
            database,
            status=Status(status) if status else None,
            verdict=Verdict(verdict) if verdict else None,
            prefix=prefix,
            limit=limit,
        )
        counts = inquiry.counts(database)
        if as_json:
            console.print_json([console.job_json(row, settings.url) for row in rows])
            return
        shown = console.console()
        shown.print(console.jobs_table("Jobs", rows))
        standing = ", ".join(f"{number} {name.replace('_', ' ')}" for name, number in counts.items() if number) or "no job yet"
        shown.print(f"[dim]In all: {standing}.{' There are older ones: raise --limit.' if more else ''}[/]")
        _tell_limits(database, rows)


@click.command("job")
@click.argument("job_id", metavar="ID")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def show_job(job_id: str, as_json: bool) -> None:
    """Show one job: its faces, timings and history."""
    settings = settings_in_force()
    with opened(settings) as database:
        row = inquiry.job(database, job_id)
        if row is None:
            raise CommandError(f"There is no job {job_id}: `unmask jobs` lists them.")
        faces, history = results.judged(database, job_id)[1], inquiry.history(database, job_id)
        if as_json:
            console.print_json(console.job_json(row, settings.url, faces, history))
            return
        shown = console.console()
        shown.print(console.jobs_table("Job", [row]))
        if faces:
            measured = ("size", "blur", "blocks")
            found = console.table("Faces", "face", "box", "verdict", "score", "reason", *measured, right=("score", *measured))
            for face in faces:
                box = f"{face.x}, {face.y}, {face.w} x {face.h}"
                verdict, reason = console.coloured(face.verdict), console.explained(face.reason)
                figures = str(face.size), f"{face.blur:.0f}", "" if face.blocks is None else f"{face.blocks:.1f}"
                found.add_row(str(face.index), box, verdict, console.score(face.score), reason, *figures)
            shown.print(found)
        if row.timings_ms:
            shown.print("Milliseconds: " + ", ".join(f"{name} {value:.0f}" for name, value in row.timings_ms.items()))
        told = console.table("History", "when", "what", "stage", "attempt", "worker", "detail")
        for line in history:
            told.add_row(console.local(line.at), line.what, line.stage, str(line.attempt or ""), escape(line.worker), escape(line.detail))
        shown.print(told)
        if row.error:
            shown.print(f"[dim]{escape(row.error)}[/]")
        shown.print(f"{settings.url}/jobs/{row.id}")
        _tell_limits(database, [row])


def _tell_limits(database: Database, jobs: Sequence[JobRow]) -> None:
    """What the models behind these scores say that they do not know."""
    scored = {(job.model_name, job.model_version) for job in jobs if job.score is not None and job.model_name and job.model_version}
    for name, version in sorted(scored):
        try:
            limits = registry.card(database, str(name), str(version)).limits
        except ModelError:
            continue
        for sentence in limits:
            console.console().print(f"[dim]{escape(str(name))} {escape(str(version))}: {escape(sentence)}[/]")
