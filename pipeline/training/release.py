"""From trained weights to a model version: calibrated on validation identities, exported, measured on test identities, described.

    python -m pipeline.training.release --weights weights.h5 --faces ../shared/faces --out versions --version 2026.1

Leaves `{out}/{name}/{version}/` with `weights.h5`, `model.xml`, `model.bin`, `card.json`, and beside it `evaluate.json`. Needs no
TensorFlow, unless how far each precision strays from it is to be measured (`--compare`).
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from pipeline.card import CARD, Card, ModelError, Thresholds, plain, sha256
from pipeline.classification import GRAPH, WEIGHTS, load
from pipeline.jobs import Pixels
from pipeline.training import calibration, evaluation, examples, export, portraits, report
from pipeline.training import weights as files
from pipeline.training.datasets import DatasetError
from pipeline.training.examples import KINDS, Recipe
from pipeline.training.figures import GRID
from pipeline.training.weights import WeightsError

Logits = npt.NDArray[np.float32]
LIMITS = [
    "It has learnt from manipulations made out of photographs of {people} people by this project alone: self-blended images, face swaps "
    "over landmarks, and the same within eyes, mouth, nose or half a face.",
    "It looks for traces of blending; a face that a generator drew whole, without a seam, is not what it was trained on.",
    "It has not been measured on FaceForensics++, Celeb-DF or any other public benchmark.",
    "Its photographs were taken in studios; other light, cameras and compression were only simulated.",
    "A score is a reason for a person to look closer, and no proof.",
]
KEPT = (
    *("n", "auc", "auc_ci", "ap", "eer", "tpr_at_1fpr", "ece15", "ece15_by_chance", "brier", "accuracy", "coverage", "risk"),
    *("tpr_at_1fpr_ci", "fpr_resolution", "ece15_ci", "auc_lost_jpeg50", "auc_lost_jpeg50_ci"),
    *("false_positive_rate", "false_positive_rate_ci"),
)
"""The figures of a set that its card keeps."""
KEPT_OF_GROUPS = ("n", "people", "false_positive_rate", "false_positive_rate_ci", "over_overall", "over_overall_ci", "over_overall_why")
STREET_PAIRS = 600
"""Augmented pairs of validation faces that thresholds are measured on, beside the faces as they are."""


def calibrate(
    run: Callable[[Pixels], Logits],
    people: Sequence[portraits.Portrait],
    recipe: Recipe,
    *,
    seed: int,
    target_fpr: float = calibration.TARGET_FPR,
    missed: float = calibration.MISSED,
    fold_bias: bool = False,
    street: int = STREET_PAIRS,
    watch: Callable[[Sequence[Any], str], Iterable[Any]] = evaluation.plainly,
) -> tuple[float, float, Thresholds, dict[str, Any]]:
    """Temperature, bias to be added to every logit (0 unless `fold_bias`), thresholds, and how they were found.

    Temperature and bias: least loss on the faces as they are, all kinds of fakes. `manipulated_from` is measured on reals as they are,
    compressed, small, and through the street of the training, so that a stranger's bad photograph is not called fake;
    `authentic_below` on the fakes as they are.
    """
    fakes, reals, who = [], [], []
    for kind in watch(KINDS, "validation faces"):
        samples = examples.evaluation_set(people, kind, seed=seed, per_portrait=2, recipe=recipe)
        found, fake = run(np.stack([sample.crop for sample in samples])), np.array([sample.fake for sample in samples])
        fakes.append(found[fake])
        reals.append(found[~fake])
        who += [sample.identity for sample in samples if not sample.fake]
    fake_logits, real_logits = np.concatenate(fakes), np.concatenate(reals)
    worse = []
    for condition, value in watch(GRID, "validation faces, worse"):
        how = {"jpeg": value} if condition == "jpeg" else {"face_px": value}
        samples = examples.evaluation_set(people, "warp", seed=seed, per_portrait=0, recipe=recipe, **how)
        worse.append(run(np.stack([sample.crop for sample in samples])))
        who += [sample.identity for sample in samples]
    plain = replace(recipe, morph=0.0, bend=0.0, window=0.0)  # what cameras do, not what only training does
    crops = [examples.pair(people, index, seed, plain).real for index in watch(range(street), "validation faces in the street")]
    if crops:
        worse.append(run(np.stack(crops)))
        who += [_whose(people, index, seed) for index in range(street)]
    bias = calibration.bias(fake_logits, real_logits) if fold_bias else 0.0
    temperature = calibration.temperature(fake_logits, real_logits, bias)
    everywhere = np.concatenate([real_logits, *worse])
    scores = calibration.scores(everywhere + bias, temperature)
    bounds = calibration.thresholds(
        calibration.scores(fake_logits + bias, temperature),
        scores,
        target_fpr=target_fpr,
        missed=missed,
    )
    how_found = {
        "split": "val",
        "identities": len({person.identity for person in people}),
        "photographs": len({person.sha256 for person in people}),
        "fakes": len(fake_logits),
        "reals": len(real_logits),
        "reals_everywhere": len(everywhere),
        "counted": "reals are crops: each photograph once for every kind of fake, as it is or toned as the fake is, and again in all that "
        "was done to it everywhere; so many photographs of so many identities are what is independent of each other",
        "by_person": calibration.by_person(scores, who, bounds.manipulated_from),
        "target_fpr": target_fpr,
        "missed": missed,
        "bias_added": bias,
        "rule": "manipulated_from: reached by at most target_fpr of validation reals (as they are, compressed, small, augmented); "
        "authentic_below: the share missed of validation fakes lies below it, and it is never above manipulated_from",
    }
    return temperature, bias, bounds, how_found


def _whose(people: Sequence[portraits.Portrait], index: int, seed: int) -> str:
    """Whose photograph `examples.pair` takes for an index: the first thing that it draws."""
    return people[int(np.random.default_rng((seed, index)).integers(len(people)))].identity


def limits(people: int, *, others: bool = False) -> list[str]:
    """What the scores of a network do not say that was trained on so many people, and perhaps on reals and fakes of `others` as well."""
    said = [sentence.format(people=people) for sentence in LIMITS]
    if others:
        said[0] = said[0].replace("It has learnt from", "Beside labelled faces of others, it has learnt from")
    return said


def with_bias(named: Mapping[str, files.Arrays], bias: float) -> dict[str, files.Arrays]:
    """Weights whose logit is higher by `bias`."""
    kernel, own = named["logit"]
    return {**named, "logit": [kernel, own + np.float32(bias)]}


def compare(folder: Path, crops: Pixels, card: Card) -> dict[str, Any]:
    """How far each exported precision strays from TensorFlow in float32 on these crops, and which one serves by default."""
    reference = calibration.scores(export.keras_logits(folder / WEIGHTS, crops), card.temperature).astype(np.float32)
    bounds = (card.thresholds.authentic_below, card.thresholds.manipulated_from)
    found: dict[str, Any] = {}
    for precision, graph in (("f32", GRAPH), ("bf16", GRAPH), ("int8", f"{GRAPH}-int8")):
        if precision == "bf16" and not export.has_bf16():
            continue  # it would run in float32 here, and nothing would have been measured
        if (folder / f"{graph}.xml").exists():
            logits = export.openvino_logits(folder / f"{graph}.xml", crops, precision="bf16" if precision == "bf16" else "f32")
            found[precision] = export.difference(reference, calibration.scores(logits, card.temperature).astype(np.float32), bounds)
    default, why = export.default_precision(found)
    return {"default": default, "why": why, **found}


def comparison_crops(people: Sequence[portraits.Portrait], recipe: Recipe, seed: int) -> Pixels:
    """One real and one fake of each kind from every portrait, as the test sets have them."""
    return np.stack([s.crop for kind in KINDS for s in examples.evaluation_set(people, kind, seed=seed, per_portrait=1, recipe=recipe)])


def measured(found: Mapping[str, Any]) -> dict[str, Any]:
    """What a card keeps of an evaluation's document: all but the curves, a few kilobytes.

    `metrics` and `failed_faces` by set; `grid`: the AUC that each set loses under each condition; `groups`: false positives and
    AUC of each self-reported group.
    """
    lost = {
        kind: {value: {name: round(row["auc_lost"], 4) for name, row in rows.items()} for value, rows in conditions.items()}
        for kind, conditions in found["grid"].items()
    }
    return {
        "metrics": {name: {key: values.get(key) for key in KEPT} for name, values in found["sets"].items()},
        "false_positive_rate": found["false_positive_rate"],
        "false_positive_rate_ci": found["false_positive_rate_ci"],
        "grid": lost,
        "groups": {
            attribute: {
                value: {key: row[key] for key in KEPT_OF_GROUPS if key in row}
                | {"auc": {name: round(auc, 4) for name, auc in row["auc"].items()}}
                for value, row in rows.items()
            }
            for attribute, rows in found["groups"].items()
        },
        "failed_faces": found["failed_faces"],
    }


def write_card(folder: Path, **facts: Any) -> Card:
    """Write `card.json` with the hash of every other file in the folder."""
    hashes = {path.name: sha256(path) for path in sorted(folder.iterdir()) if path.is_file() and path.name != CARD}
    card = Card(files=hashes, **facts)
    (folder / CARD).write_text(card.model_dump_json(indent=1, exclude_none=True) + "\n")
    return card


def told(training: Path) -> dict[str, Any]:
    """What a trainer said of itself in `training.json`. Raises ModelError, or OSError if the file cannot be read."""
    try:
        found = json.loads(training.read_bytes())
    except ValueError as error:
        raise ModelError(f"{training} is not the training.json of a trainer: it is not JSON.") from error
    if not isinstance(found, dict):
        raise ModelError(f"{training} is not the training.json of a trainer: it holds no object.")
    return found


def margin_of(training: Mapping[str, Any]) -> float:
    """The margin of the crops that a training learnt from, by its `training.json`; the trainer's default where it does not say."""
    recipe = training.get("recipe")
    said = recipe.get("margin") if isinstance(recipe, dict) else None
    return float(said) if isinstance(said, int | float) else Recipe.margin


def release(chosen: argparse.Namespace, watch: Callable[[Sequence[Any], str], Iterable[Any]]) -> Path:
    """Do all of it; returns the version's folder. Raises WeightsError, DatasetError, ModelError, ExportError or OSError."""
    named = files.read_any(*chosen.weights)
    training = told(chosen.training) if chosen.training else {}
    looking: dict[str, Any] = {"facts": chosen.facts, "watch": lambda rows: watch(list(rows), "photographs")}
    people = {split: portraits.load(chosen.faces, split, **looking) for split in ("val", "test")}
    people["train"] = portraits.load(chosen.faces, "train", largest=portraits.LARGEST_FACE, **looking)
    if not all(people.values()):
        raise DatasetError(f"{chosen.faces} lacks photographs with a face in one of the splits train, val and test.")
    portraits.must_be_several([person for found in people.values() for person in found], chosen.faces)
    margin = margin_of(training) if chosen.margin is None else chosen.margin
    recipe = Recipe(size=chosen.size, margin=margin, smallest=min(chosen.size, Recipe.smallest))

    folder: Path = chosen.out / chosen.name / chosen.version
    folder.mkdir(parents=True, exist_ok=True)
    files.write(folder / WEIGHTS, named)
    graph = export.to_openvino(folder / WEIGHTS, folder, input_size=chosen.size)
    temperature, bias, bounds, how = calibrate(
        lambda crops: export.openvino_logits(graph, crops),
        people["val"],
        recipe,
        seed=chosen.seed,
        target_fpr=chosen.target_fpr,
        missed=chosen.missed,
        fold_bias=chosen.fold_bias,
        street=chosen.street,
        watch=watch,
    )
    if bias:
        files.write(folder / WEIGHTS, with_bias(named, bias))
        export.to_openvino(folder / WEIGHTS, folder, input_size=chosen.size)
    if chosen.int8:
        pairs = [examples.pair(people["train"], index, chosen.seed, recipe) for index in watch(range(150), "calibration crops")]
        export.to_int8(folder / WEIGHTS, folder, [crop for pair in pairs for crop in (pair.real, pair.fake)], input_size=chosen.size)

    facts: dict[str, Any] = {
        "name": chosen.name,
        "version": chosen.version,
        "created_at": datetime.now(timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ"),
        "input_size": chosen.size,
        "margin": margin,
        "thresholds": bounds,
        "temperature": temperature,
        "manifest_sha256": portraits.manifest(people["train"] + people["val"]),
        "seed": training.get("seed", chosen.seed),
        "training": {key: value for key, value in training.items() if key not in ("seed", "manifest_sha256", "code_version")},
        "code_version": training.get("code_version", ""),
        "limits": limits(len({person.identity for person in people["train"]}), others=bool(training.get("other_data_sha256"))),
        "attribution": chosen.attribution,
        "calibration": how,
    }
    card = write_card(folder, **facts)
    if chosen.compare:
        facts["precision"] = compare(folder, comparison_crops(people["test"], recipe, chosen.seed), card)
        write_card(folder, **facts)
    classifier = load(folder, runtime="openvino", precision="f32")
    found = evaluation.evaluate(classifier, chosen.faces, seed=chosen.seed, grid=not chosen.no_grid, facts=chosen.facts, watch=watch)
    write_card(folder, **facts, **measured(found))
    (folder.parent / f"{chosen.version}.evaluate.json").write_text(json.dumps(found, indent=1) + "\n")
    if chosen.report:
        report.write(found, chosen.report)
    return folder


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line's settings."""
    parser = argparse.ArgumentParser(
        description="Make a model version from weights.", formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    add = parser.add_argument
    add("--weights", type=Path, nargs="+", required=True, help="weights-only .h5, or the .npz parts of the PyTorch port, or their folder")
    add("--faces", type=Path, required=True, help="folder with faces.csv")
    add("--out", type=Path, required=True, help="folder of versions")
    add("--name", default="unmask-resnet50")
    add("--version", required=True)
    add("--training", type=Path, help="training.json that the trainer left")
    add("--facts", type=Path, help="where findings in the photographs are kept (.npz)")
    add("--size", type=int, default=224)
    add("--margin", type=float, help=f"of a crop around the face; default: the training's, without one {Recipe.margin}")
    add("--seed", type=int, default=1)
    add("--target-fpr", type=float, default=calibration.TARGET_FPR)
    add("--missed", type=float, default=calibration.MISSED)
    add("--street", type=int, default=STREET_PAIRS, help="augmented validation faces that thresholds are also measured on")
    add("--fold-bias", action="store_true", help="also shift all logits by what validation asks for, inside the weights")
    add("--int8", action="store_true", help="also export 8-bit weights (needs NNCF: the extra int8)")
    add("--compare", action="store_true", help="measure each precision against TensorFlow")
    add("--no-grid", action="store_true", help="do not measure compression and small sizes")
    add("--report", type=Path, help="folder for the report")
    add("--attribution", default="", help="of the photographs")
    chosen = parser.parse_args(arguments)
    for option, value, least, most in (
        ("--size", chosen.size, 32, 2048),
        ("--margin", Recipe.margin if chosen.margin is None else chosen.margin, 0, 2),
        ("--seed", chosen.seed, 0, 2**32 - 1),
        ("--target-fpr", chosen.target_fpr, 0, 1),
        ("--missed", chosen.missed, 0, 1),
        ("--street", chosen.street, 0, 1_000_000),
    ):
        if not least <= value <= most:
            parser.error(f"{option} must be {least} to {most}, not {value}")
    for name in (chosen.name, chosen.version):
        try:
            plain(name)
        except ValueError as error:
            parser.error(str(error))
    return chosen


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns the exit code, 2 with one sentence if something is wrong."""
    from rich.progress import track

    try:
        print(release(parse(arguments), lambda items, what: track(items, description=what)))  # noqa: T201
    except (WeightsError, DatasetError, ModelError, export.ExportError, report.ReportError) as error:
        print(error, file=sys.stderr)  # noqa: T201
        return 2
    except OSError as error:
        print(f"{error.filename} cannot be used: {error.strerror}." if error.filename else error, file=sys.stderr)  # noqa: T201
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
