"""`unmask evaluate`, `unmask train`, `unmask export`: the doors to `pipeline.training`."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NoReturn

import click
from rich.markup import escape

from pipeline import gaudi, registry
from pipeline.card import CARD
from pipeline.classification import load
from pipeline.groups import DEVICES, CardError, group
from pipeline.settings import Settings
from workers import console
from workers.launching import Launch, command_of, environment_of
from workers.sentences import CommandError
from workers.surroundings import object_store, opened, settings_in_force

FACES = Path("../shared/faces")
PASS_ON = {"ignore_unknown_options": True, "help_option_names": []}


@click.command()
@click.option(
    "--faces",
    metavar="PATH",
    help="Folders real/ and fake/ (or fake/ by method), a manifest, FaceForensics++, or a folder with faces.csv, here or as s3://…  "
    f"[default: {FACES}]",
)
@click.option("--model", metavar="VERSION", help="A published version, or the path of a version's folder.  [default: the champion]")
@click.option("--json", "target", type=click.Path(dir_okay=False, path_type=Path), help="Write all figures to this file.")
@click.option("--report", type=click.Path(file_okay=False, path_type=Path), help="Write plots and one HTML page into this folder.")
@click.option(
    "--split",
    default="test",
    show_default=True,
    type=click.Choice(["train", "val", "test"]),
    help="Whose faces; pictures without a split are all measured.",
)
@click.option(
    "--compression",
    default="c23",
    show_default=True,
    type=click.Choice(["raw", "c23", "c40"]),
    help="Of the videos, if it is FaceForensics++.",
)
@click.option("--seed", default=1, show_default=True, help="Of the fakes made here and of the intervals.")
@click.option("--per-portrait", default=4, show_default=True, type=click.IntRange(1), help="Fakes of each kind made from a photograph.")
@click.option("--grid/--no-grid", default=True, show_default=True, help="Also after compression and at small sizes.")
def evaluate(
    faces: str | None,
    model: str | None,
    target: Path | None,
    report: Path | None,
    split: str,
    compression: str,
    seed: int,
    per_portrait: int,
    grid: bool,
) -> None:
    """Measure a model on faces that it has not seen.

    Only you know which those are: where a data set has no splits, all of it is measured, also what the model was trained on.
    """
    settings = settings_in_force()
    with _learning("Evaluating", "demo"), _at_hand(settings, faces or str(FACES)) as place:
        from pipeline.training import evaluation
        from pipeline.training.crops import Cut
        from pipeline.training.datasets import passed_over

        cut = Cut.of(settings)
        classifier = load(_folder(settings, model), runtime=settings.runtime, precision=settings.precision)
        with console.progress(console.console(error=True)) as shown:

            def watch(items: Sequence[Any], what: str) -> Iterator[Any]:
                task = shown.add_task(what, total=len(items), note="")
                for item in items:
                    yield item
                    shown.update(task, advance=1)

            settled: dict[str, Any] = {"seed": seed, "split": split, "per_portrait": per_portrait, "grid": grid}
            settled |= {"compression": compression, "facts": settings.data_dir / "datasets" / "facts.npz"}
            found = evaluation.evaluate(classifier, place, cut=cut, watch=watch, **settled)
        others = passed_over(place)
    if target is not None:
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(json.dumps(found, indent=1) + "\n")
    _show(found, classifier.card.limits, others)
    if report is not None:
        with _learning("The report", "train"):
            from pipeline.training import report as reports

            page = reports.write(found, report)
        console.console().print(f"The report is {page}.")


def _folder(settings: Settings, model: str | None) -> Path:
    """The folder of the chosen version: a path, a published version, the champion, or the one that comes with the product."""
    if model is not None and Path(model, CARD).exists():
        return Path(model)
    shipped = {folder.name: folder for folder in registry.shipped()}
    if model in shipped:
        return shipped[model]
    try:
        with opened(settings) as database:
            known = {one.card.version: one.card.name for one in registry.versions(database)}
            if model is None:
                name, version = registry.champion(database)
            elif model in known:
                name, version = known[model], model
            else:
                raise CommandError(f"No model version {model} is published, and no folder of that name holds one.")
            return registry.fetch(database, object_store(settings), settings, name, version)
    except CommandError:
        if model is None and shipped:  # nothing has run here yet
            return max(shipped.items())[1]
        raise


@contextmanager
def _at_hand(settings: Settings, faces: str) -> Iterator[Path]:
    """The faces to measure on: where they are on this machine, or brought from S3 for as long as they are needed."""
    if not faces.startswith("s3://"):
        if not Path(faces).exists():
            raise CommandError(f"{faces} does not exist: name a folder with real/ and fake/ pictures by --faces.")
        yield Path(faces)
        return
    from workers import material

    with TemporaryDirectory(prefix="unmask-faces-") as folder:
        yield material.fetched(object_store(settings), faces, Path(folder, "data"))


def _show(found: Mapping[str, Any], limits: Sequence[str], others: int) -> None:
    model = found["model"]
    numbers = ("n", "AUC", "EER", "TPR at 1 % FPR", "ECE", "accuracy")
    made = console.table(f"{model['name']} {model['version']}, {model['precision']}", "set", *numbers, right=numbers)
    for name, figures in found["sets"].items():
        auc = _number(figures["auc"])
        if figures.get("auc_ci"):
            auc += f" ({_number(figures['auc_ci'][0])}-{_number(figures['auc_ci'][1])})"
        rest = (_number(figures[key]) for key in ("eer", "tpr_at_1fpr", "ece15", "accuracy"))
        made.add_row(escape(name.replace("_", " ")), str(figures["n"]), auc, *rest)
    shown = console.console()
    shown.print(made)
    if found["false_positive_rate"] is not None:
        shown.print(f"False positives: {100 * found['false_positive_rate']:.2f} % of {found['real_judgements']} judgements of real faces.")
    measured, apart = found["pictures"], found["without_split"]
    sentence = f"Measured on {measured} picture{'s' * (measured != 1)}"
    if apart:
        some = f", {apart} of them" if apart < measured else ""
        shown.print(f"{sentence}{some} without a split: nothing says that the model was not trained on them.")
    else:
        shown.print(f"{sentence} of the split {found['split']}.")
    if others:
        files = f"{others} files" if others > 1 else "1 file"
        kinds = "are of kinds that are not read, and were" if others > 1 else "is of a kind that is not read, and was"
        shown.print(f"{files} under real/ and fake/ {kinds} passed over.")
    for sentence in limits:
        shown.print(f"[dim]{escape(sentence)}[/]")


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


@click.command(context_settings=PASS_ON, add_help_option=False)
@click.argument("options", nargs=-1, type=click.UNPROCESSED)
def train(options: tuple[str, ...]) -> None:
    """Train the network; `unmask train --help` shows its options. Several ranks, or Gaudi cards, are started here."""
    if any(word.rpartition("=")[2].startswith("s3://") for word in options):
        raise CommandError("`unmask train` reads what is on this machine: `unmask retrain --dataset s3://…` trains on what is in S3.")
    with _learning("Training", "train"), _handed_on("unmask train"):
        from pipeline.training import fit

        launch, rest = _launch(options)
        if launch is not None:  # in this one's place, so that it hears the signals
            command = command_of(launch, rest)
            os.execve(command[0], command, environment_of(launch))  # noqa: S606
        code = fit.main(rest)
    raise click.exceptions.Exit(code)


def _launch(options: Sequence[str]) -> tuple[Launch | None, list[str]]:
    """What to start the trainer on, and its other options; None: it is this very process."""
    if {"-h", "--help"} & set(options):
        return None, list(options)
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--device", choices=DEVICES, default="cpu")
    parser.add_argument("--ranks", type=int)
    parser.add_argument("--modules", default="")
    parser.add_argument("--device-root", type=Path)
    chosen, rest = parser.parse_known_args(options)
    settings = settings_in_force()
    root = chosen.device_root or settings.device_root
    try:
        if chosen.device == "hpu":
            wanted = gaudi.preflight(chosen.modules or settings.train_cards, root)[0]
        else:
            wanted = group(chosen.device, chosen.modules or ",".join(map(str, range(chosen.ranks or 1))))
    except CardError as error:
        raise CommandError(str(error)) from error
    if chosen.ranks not in (None, wanted.world):
        raise CommandError(f"--ranks {chosen.ranks} does not go with {wanted.world} cards: name the cards by --modules.")
    if wanted.world == 1 and chosen.device == "cpu":
        return None, rest
    return Launch(wanted, settings.train_launcher, device_root=root), rest


@click.command(context_settings=PASS_ON, add_help_option=False)
@click.argument("options", nargs=-1, type=click.UNPROCESSED)
def export(options: tuple[str, ...]) -> None:
    """Make what serving runs from trained weights; `unmask export --help` shows its options."""
    with _learning("Exporting", "train"), _handed_on("unmask export"):
        from pipeline.training import export as exporting

        exporting.main(list(options))


@contextmanager
def _handed_on(program: str) -> Iterator[None]:
    """Let a command line of training speak as ours does: under the command's name, its errors one sentence."""

    def fail(self: argparse.ArgumentParser, message: str) -> NoReturn:
        raise CommandError(f"{message[:1].upper()}{message[1:]}: `{program} --help` shows how.")

    error, name = argparse.ArgumentParser.error, sys.argv[0]
    argparse.ArgumentParser.error = fail  # type: ignore[method-assign]
    sys.argv[0] = program
    try:
        yield
    finally:
        argparse.ArgumentParser.error = error  # type: ignore[method-assign]
        sys.argv[0] = name


@contextmanager
def _learning(what: str, extra: str) -> Iterator[None]:
    """Say what to install where a library of training is not there."""
    try:
        yield
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] in ("pipeline", "workers"):
            raise
        raise CommandError(f"{what} needs {error.name}, which is not installed: pip install 'unmask[{extra}]'.") from error
