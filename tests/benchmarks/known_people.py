"""Why a model stops getting better: the people it was trained on beside people it never saw.

    python -m tests.benchmarks.known_people [--model FOLDER] [--faces ../shared/faces]

For each split and kind of fakes: the AUC, the AUC within photographs (each fake against the real it was made from, so that whoever is in
it counts for nothing), and the standard deviation of the reals' logits. Where a model knows people by heart, reals of known people all
score alike and reals of others do not. Writes `build/known-people.json` and `.png`, and `build/by-photograph.png`, where every validation
photograph is a column: few photographs may be most of what is missing.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Collection
from pathlib import Path
from typing import Any

import numpy as np

from pipeline import registry
from pipeline.classification import Classifier, load
from pipeline.training import examples, portraits
from pipeline.training.examples import KINDS, Recipe
from pipeline.training.metrics import auc

BATCH = 32
OUTLIERS = 4
"""Photographs without which the AUC is said as well."""
COLOURS = {"self_blended": "#d1495b", "face_swap": "#b5651d", "region": "#6a4c93", "warp": "#8d99ae"}
NAMES = {"self_blended": "self-blended", "face_swap": "swap", "region": "region", "warp": "warp"}
SPLITS = {"train": "people it was trained on", "val": "people it never saw (validation)"}


def measured(classifier: Classifier, people: list[portraits.Portrait], *, per_portrait: int, seed: int = 1) -> dict[str, dict[str, Any]]:
    """For each kind `auc`, `within`, and the logits of `reals` and `fakes` with the photograph of each."""
    recipe = Recipe(size=classifier.card.input_size, margin=classifier.card.margin)
    found: dict[str, dict[str, Any]] = {}
    for kind in KINDS:
        samples = examples.evaluation_set(people, kind, seed=seed, per_portrait=per_portrait, recipe=recipe)
        crops = np.stack([sample.crop for sample in samples])
        logits = np.concatenate([classifier.logits(crops[start : start + BATCH]) for start in range(0, len(crops), BATCH)])
        fake, photo = np.array([sample.fake for sample in samples]), np.array([sample.photo for sample in samples])
        within = [auc(logits[fake & (photo == one)], logits[~fake & (photo == one)]) for one in np.unique(photo)]
        reals, fakes = logits[~fake], logits[fake]
        found[kind] = {
            "auc": auc(fakes, reals),
            "within": float(np.mean(within)),
            "reals": reals.tolist(),
            "fakes": fakes.tolist(),
            "photos_of_reals": photo[~fake].tolist(),
            "photos_of_fakes": photo[fake].tolist(),
        }
    return found


def picture(found: dict[str, dict[str, dict[str, Any]]], path: Path, kind: str = "self_blended") -> None:
    """Both splits above each other: how the logits of reals and of one kind of fakes are distributed."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4.6), layout="constrained")
    axes = figure.subplots(len(found), 1, sharex=True)
    bins = np.linspace(-4, 8, 49)
    for axis, (split, kinds) in zip(axes, found.items(), strict=True):
        for side, colour in (("reals", "#2a9d6f"), ("fakes", "#d1495b")):
            axis.hist(np.clip(kinds[kind][side], -4, 8), bins=bins, density=True, color=colour, alpha=0.6, label=side)
        axis.set_title(
            f"{SPLITS[split]}: AUC {kinds[kind]['auc']:.2f}, within photographs {kinds[kind]['within']:.2f}", loc="left", fontsize=10
        )
        axis.set_yticks([])
        axis.spines[["top", "right", "left"]].set_visible(False)
    axes[0].legend(frameon=False)
    axes[-1].set_xlabel(f"logit ({kind.replace('_', '-')} faces and the photographs they were made from)")
    figure.savefig(path, dpi=110, metadata={"Software": None})


def without(row: dict[str, Any], photographs: Collection[str]) -> float:
    """The AUC of one kind if some photographs, and the fakes made of them, were not there."""
    sides = [
        [logit for logit, photo in zip(row[side], row[f"photos_of_{side}"], strict=True) if photo not in photographs]
        for side in ("fakes", "reals")
    ]
    return auc(np.array(sides[0]), np.array(sides[1]))


def highest(kinds: dict[str, dict[str, Any]], count: int) -> list[str]:
    """The photographs whose real faces have the highest logits, the highest first."""
    row = kinds["warp"]  # its reals are the photographs as they are, and nothing else
    order = np.argsort(-np.array(row["reals"]))
    return [row["photos_of_reals"][place] for place in order[:count]]


def columns(kinds: dict[str, dict[str, Any]], path: Path) -> None:
    """Every photograph a column: its real face, and above or below it the fakes made of it. In the order of the reals."""
    from matplotlib.figure import Figure

    order = {photo: place for place, photo in enumerate(reversed(highest(kinds, len(kinds["warp"]["reals"]))))}
    figure = Figure(figsize=(9, 4.4), layout="constrained")
    axes = figure.subplots()
    for kind, colour in COLOURS.items():
        axes.scatter(
            [order[p] for p in kinds[kind]["photos_of_fakes"]], kinds[kind]["fakes"], s=9, color=colour, alpha=0.7, label=NAMES[kind]
        )
    axes.scatter(
        [order[p] for p in kinds["warp"]["photos_of_reals"]], kinds["warp"]["reals"], s=30, color="#2a9d6f", label="as it is", zorder=3
    )
    axes.set(xlabel="photographs of people it never saw (validation)", ylabel="logit", xticks=[])
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=8, loc="lower left", bbox_to_anchor=(0, 1), ncols=5)
    figure.savefig(path, dpi=110, metadata={"Software": None})


def options(said: str | None) -> argparse.ArgumentParser:
    """The options of a benchmark that measures a model on photographs: `--model`, `--faces`, `--facts`, `--out`."""
    parser = argparse.ArgumentParser(description=said, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, default=registry.shipped()[-1], help="a version's folder")
    parser.add_argument("--faces", type=Path, default=Path("../shared/faces"))
    parser.add_argument("--facts", type=Path, help="where findings in the photographs are kept (.npz)")
    parser.add_argument("--out", type=Path, default=Path("build"))
    return parser


def main() -> None:
    chosen = options(__doc__).parse_args()
    classifier = load(chosen.model, runtime="openvino", precision="auto")
    found = {}
    for split, per_portrait in (("train", 2), ("val", 4)):
        people = portraits.load(chosen.faces, split, facts=chosen.facts)
        found[split] = measured(classifier, people, per_portrait=per_portrait)
        for kind, row in found[split].items():
            print(
                f"{split} {kind}: AUC {row['auc']:.3f}, within {row['within']:.3f}, reals' deviation {np.std(row['reals']):.2f}", flush=True
            )
    chosen.out.mkdir(parents=True, exist_ok=True)
    (chosen.out / "known-people.json").write_text(json.dumps(found) + "\n")
    picture(found, chosen.out / "known-people.png")
    columns(found["val"], chosen.out / "by-photograph.png")
    worst = highest(found["val"], OUTLIERS)
    for kind, row in found["val"].items():
        print(f"val {kind}, without {', '.join(worst)}: AUC {without(row, worst):.3f}")


if __name__ == "__main__":
    main()
