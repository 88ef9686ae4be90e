"""`unmask demo`: pictures go through the real pipeline on this machine, and what comes out is left in a folder."""

from __future__ import annotations

import signal
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from threading import Event
from typing import Any

import click
from rich.markup import escape

from pipeline import images, registry, results
from pipeline.card import ModelError
from pipeline.database import Database, FaceRow, JobRow, database
from pipeline.events import IMAGE_SUFFIXES
from pipeline.images import ImageRefused, Limits
from pipeline.jobs import Pixels, Status
from pipeline.settings import Settings, from_environment
from pipeline.storage import Storage, storage
from workers import console, contactsheet, submission
from workers.sentences import CommandError

PATIENCE_S = 120.0
PATIENCE_PER_PICTURE_S = 10.0
"""How long the demo waits for its jobs, in seconds, before it says that something is wrong."""
OVERVIEW = "overview.png"
AROUND = 0.9
"""How much of a picture is shown around its faces on the overview, in sides of the largest face."""
SUMMARY = "results.json"


@dataclass(frozen=True)
class Result:
    """A picture and what became of it. `job` None: nobody took it. `annotated`: the PNG's bytes, if there is one."""

    path: Path
    job: JobRow | None
    faces: Sequence[FaceRow] = ()
    annotated: bytes | None = None
    result: bytes | None = None

    @property
    def well(self) -> bool:
        """Whether the pipeline did its work: judged, or refused with a reason."""
        return self.job is not None and Status(self.job.status).terminal and self.job.status != Status.FAILED.value

    @property
    def judged(self) -> bool:
        """Whether the job is done."""
        return self.job is not None and self.job.status == Status.DONE.value

    @property
    def verdict(self) -> str:
        """The verdict, or how else the job stands."""
        if self.job is None:
            return "not taken"
        return self.job.verdict or self.job.status if self.judged else self.job.status


def show(pictures: Path | None, target: Path, *, keep: bool) -> None:
    """Judge the samples, or the pictures in the folder `pictures`, and leave the results in `target`.

    Starts the embedded stack on the data directory unless it is up already; `keep` leaves it up until Ctrl-C. Ends with
    exit code 1 if a picture was not brought to its end, or failed.
    """
    with tempfile.TemporaryDirectory(prefix="unmask-demo-") as scratch, _stack() as (settings, ours):
        paths = _own(pictures) if pictures is not None else _samples(Path(scratch))
        store, db = storage(settings), database(settings.database)
        found = _collect(db, store, settings, paths, _judge(db, store, settings, paths))
        limits = _limits(db, found)
        _write(found, settings, target, limits)
        _print(found, settings, target, limits, kept=keep or not ours)
        if keep and ours:
            console.console().print(f"The dashboard is at {settings.url}; Ctrl-C stops the stack.")
            _until_interrupted()
    if not all(one.well for one in found):
        raise click.exceptions.Exit(1)


@contextmanager
def _stack() -> Iterator[tuple[Settings, bool]]:
    """Settings of the stack on the data directory, and whether it is ours to stop."""
    from workers import embedded

    given = from_environment()
    live = embedded.running(given.data_dir)
    if live is not None:
        console.console().print(f"Using the stack that is up on {given.data_dir.absolute()}.")
        yield live, False
        return
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)  # a polite end stops the stack as Ctrl-C does
    try:
        with embedded.stack(given, lambda line: console.console().print(f"[dim]{escape(line)}[/]")) as settings:
            yield settings, True
    finally:
        signal.signal(signal.SIGTERM, before)


def _until_interrupted() -> None:
    try:
        Event().wait()
    except KeyboardInterrupt:
        console.console().print("Stopping.")


def _samples(folder: Path) -> list[Path]:
    from workers import samples

    return samples.write(folder)


def _own(folder: Path) -> list[Path]:
    paths = sorted(path for path in folder.iterdir() if path.is_file() and path.suffix.lower() in IMAGE_SUFFIXES)
    if not paths:
        raise CommandError(f"There is no picture in {folder}: it takes {', '.join(sorted(IMAGE_SUFFIXES))}.")
    return paths


def _judge(db: Database, store: Storage, settings: Settings, paths: Sequence[Path]) -> dict[str, JobRow]:
    """Upload the pictures as anybody would, and wait for their jobs; by object key."""
    folder = submission.new_folder(settings, "demo")
    keys = submission.keys(paths, folder)
    standing: dict[str, JobRow] = {}
    with console.progress(console.console(error=True)) as shown:
        task = shown.add_task("uploading", total=len(paths), note="")
        for sent in submission.send(store, settings, paths, folder):
            shown.update(task, advance=1, note=escape(sent.path.name))
        shown.remove_task(task)
        task = shown.add_task("judging", total=len(paths), note="")
        timeout_s = PATIENCE_S + PATIENCE_PER_PICTURE_S * len(paths)
        for standing in submission.follow(lambda: submission.jobs_in(db, folder), keys, timeout_s=timeout_s):
            ended = sum(Status(job.status).terminal for job in standing.values())
            shown.update(task, completed=ended, note=console.tally(standing.values()))
    return {key: standing[key] for key in keys if key in standing}


def _collect(db: Database, store: Storage, settings: Settings, paths: Sequence[Path], jobs: Mapping[str, JobRow]) -> list[Result]:
    """What the results bucket has of each picture. Names of keys end as the paths do, in the same order."""
    by_path = dict(zip(paths, submission.keys(paths, ""), strict=True))
    by_name = {key.rpartition("/")[2]: job for key, job in jobs.items()}
    found = []
    for path in paths:
        job = by_name.get(by_path[path])
        if job is None or job.status != Status.DONE.value or job.annotated_key is None or job.result_key is None:
            found.append(Result(path, job))
            continue
        annotated, result = (
            store.fetch(settings.results_bucket, key, max_bytes=_MOST_BYTES) for key in (job.annotated_key, job.result_key)
        )
        found.append(Result(path, job, results.judged(db, job.id)[1], annotated, result))
    return found


_MOST_BYTES = 500_000_000


def _limits(db: Database, found: Sequence[Result]) -> list[str]:
    """What the models behind these scores say of themselves."""
    models = {(one.job.model_name, one.job.model_version) for one in found if one.job is not None and one.job.model_name}
    limits = []
    for name, version in sorted((str(name), str(version)) for name, version in models):
        try:
            said = registry.card(db, name, version).limits
            limits += [f"What {name} {version} says of itself:", *(f"  - {sentence}" for sentence in said)] if said else []
        except ModelError:
            continue
    return limits


def _write(found: Sequence[Result], settings: Settings, target: Path, limits: Sequence[str]) -> None:
    target.mkdir(parents=True, exist_ok=True)
    if (target / OVERVIEW).exists():  # an earlier demo's: what is not ours stays
        for old in (*target.glob("*.annotated.png"), *target.glob("*.result.json")):
            old.unlink()
    for name, one in zip(_names([one.path for one in found]), found, strict=True):
        if one.annotated is not None and one.result is not None:
            (target / f"{name}.annotated.png").write_bytes(one.annotated)
            (target / f"{name}.result.json").write_bytes(one.result)
    summary = [{"file": one.path.name, **(console.job_json(one.job, settings.url, one.faces) if one.job else {})} for one in found]
    (target / SUMMARY).write_text(console.json_text(summary) + "\n")
    limits_of_images = Limits.of(settings)
    cards = [_card(one, limits_of_images) for one in found]
    contactsheet.draw("Unmask: original and result, around the faces", cards, limits).save(target / OVERVIEW)


def _names(paths: Sequence[Path]) -> list[str]:
    """A name for each picture's results: without suffix where that tells them apart. The paths are of one folder."""
    stems = [path.stem for path in paths]
    names = [path.stem if stems.count(path.stem) == 1 else path.name for path in paths]
    # One's stem may be another's name: of a.jpg, a.jpg.png and a.png, two would be called a.jpg.
    return names if len(set(names)) == len(names) else [path.name for path in paths]


def _card(one: Result, limits: Limits) -> contactsheet.Card:
    def pixels(data: bytes | None) -> Pixels | None:
        try:
            return None if data is None else images.read(data, limits).pixels
        except ImageRefused:
            return None

    verdict, said = one.verdict, "no job was made of it"
    if one.job is not None:
        verdict = one.verdict
        said = console.REASONS.get(one.job.reason or "", one.job.reason or "")
        if one.judged and one.job.score is not None:
            said = f"{_faces(one)}, score {console.score(one.job.score)}"
    original, annotated = (_near(found, one.faces) for found in (pixels(one.path.read_bytes()), pixels(one.annotated)))
    return contactsheet.Card(one.path.name, original, annotated, verdict, said)


def _near(pixels: Pixels | None, faces: Sequence[FaceRow]) -> Pixels | None:
    """The part of a picture around its faces, so that they can be seen on the sheet; all of it where there are none."""
    if pixels is None or not faces:
        return pixels
    room = round(AROUND * max(max(face.w, face.h) for face in faces))
    left, top = (max(0, min(getattr(face, side) for face in faces) - room) for side in ("x", "y"))
    right, bottom = max(face.x + face.w for face in faces) + room, max(face.y + face.h for face in faces) + room
    return pixels[top:bottom, left:right]


def _faces(one: Result) -> str:
    return f"{len(one.faces)} face{'' if len(one.faces) == 1 else 's'}"


def _print(found: Sequence[Result], settings: Settings, target: Path, limits: Sequence[str], *, kept: bool) -> None:
    made = console.table("Verdicts", "picture", "faces", "verdict", "score", "why", "ms", right=("faces", "score", "ms"))
    for one in found:
        made.add_row(*_row(one))
    shown = console.console()
    shown.print(made)
    for sentence in limits:
        shown.print(f"[yellow]{escape(sentence)}[/]")
    shown.print(f"Pictures and JSON are in [bold]{escape(str(target))}[/]; look at {escape(str(target / OVERVIEW))} first.")
    if kept:
        shown.print(f"The same on the dashboard: {settings.url}")
    else:
        shown.print("The stack is stopped; `make up` shows the same jobs on its dashboard.")


def _row(one: Result) -> list[Any]:
    if one.job is None:
        return [escape(one.path.name), "", f"[bold red]{one.verdict}[/]", "", "no job was made of it", ""]
    took = console.milliseconds(one.job)
    said = console.coloured(one.verdict)
    faces = str(len(one.faces)) if one.judged else ""
    score = console.score(one.job.score) if one.judged and one.job.score is not None else ""
    return [escape(one.path.name), faces, said, score, console.explained(one.job.reason), "" if took is None else f"{took:.0f}"]
