"""What each ingredient of a training is worth: short trainings that differ in one thing, measured on validation identities.

    python -m tests.benchmarks.ablation [--steps 1500] [--faces ../shared/faces] [--seeds 1] [--only NAME ...]
    python -m tests.benchmarks.ablation --weights OLDER.h5 --stage 128:1:.0003 --steps 300

Writes `build/ablation/ablation.json` and prints a table. Each training is one of `VARIANTS` with every seed; those that are done
already with the same settings, start and photographs are not done again, so that it may be stopped and called again. Nobody of the
test split is looked at. From random weights a training needs 1,500 steps before it says anything; from weights it says what an
ingredient adds to what these have learnt already.

What is measured is the `weights.h5` that a training leaves, on validation people as they are, at JPEG 50 and with faces of 64 px: the
AUC of each kind, and how many of the reals are called fake by the threshold that one in twenty of them reaches as they are. An
augmentation that costs a little on clean pictures shows its worth in the other two.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import statistics
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

from pipeline.training import calibration, fit, portraits
from pipeline.training.evaluation import Scorer, made_sets
from pipeline.training.examples import KINDS, Recipe
from pipeline.training.figures import CLEAN, Condition, Sets
from pipeline.training.metrics import auc

VARIANTS: dict[str, tuple[str, ...]] = {
    "as it is": (),
    "no swaps, self-blended faces instead": ("--face-swap", "0", "--self-blended", ".72"),
    "self-blended whole faces alone": ("--face-swap", "0", "--region", "0", "--self-blended", "1"),
    "swaps and regions alone": ("--self-blended", "0", "--face-swap", ".5", "--region", ".5"),
    "no augmentation": ("--strength", "0"),
    "all of the augmentation": ("--strength", "1"),
    "whole faces only": ("--window", "0"),
    "made at the crop's own size": ("--near", "1"),
    "not bent": ("--bend", "0"),
    "not one with others": ("--morph", "0"),
    "the people as they are": ("--bend", "0", "--morph", "0"),
    "donors are always others": ("--own-donor", "0"),
    "no mask head": ("--mask-weight", "0"),
    "the last weights, no average": ("--average", "0"),
    "two thirds of the size": (),
    "half as large again": (),
    "sharpness-aware": ("--sam", ".05"),
    "the mask's boundary": ("--mask-target", "boundary"),
}
SIZES = {"two thirds of the size": 2 / 3, "half as large again": 1.5}
CONDITIONS: dict[str, Condition] = {"clean": CLEAN, "jpeg 50": ("jpeg", 50), "64 px": ("size", 64)}
TARGET_FPR = 0.05
"""Validation people are some dozens: one in a hundred of them would be nobody."""
BASE = ("--average", ".995", "--dropout", ".3", "--bf16", "--makers", "1")


def command(name: str, faces: Path, out: Path, steps: int, seed: int, stage: str, weights: Path | None) -> list[str]:
    """One training's command line; what a variant says comes last, and counts."""
    size, rest = stage.split(":", 1)
    stage = f"{32 * round(int(size) * SIZES.get(name, 1) / 32)}:{rest}"
    given = {"faces": faces, "facts": out.parent / "faces.npz", "out": out, "steps": steps, "seed": seed, "stages": stage}
    fixed = [word for key, value in given.items() for word in (f"--{key}", str(value))] + (["--weights", str(weights)] if weights else [])
    return [sys.executable, "-m", "pipeline.training.fit", *fixed, "--look", str(max(1, steps // 2)), *BASE, *VARIANTS[name]]


def folder(name: str, faces: Path, out: Path, steps: int, seed: int, stage: str, weights: Path | None) -> Path:
    """Where a training is kept: what it was told, its start and its photographs are in the name, so that no other is taken for it."""
    words = command(name, Path("faces"), Path("out/one"), steps, seed, stage, Path("weights") if weights else None)
    files = [hashlib.sha256(path.read_bytes()).hexdigest() for path in (faces / "faces.csv", weights) if path is not None]
    told = json.dumps([words[words.index("pipeline.training.fit") :], files])
    return out / f"{list(VARIANTS).index(name):02}-{steps}-{seed}-{hashlib.sha256(told.encode()).hexdigest()[:8]}"


def measured(sets: Sets) -> dict[str, dict[str, float]]:
    """Of each condition the AUC of each kind, and the share of reals that reach the clean reals' threshold."""
    reals = sets["warp"]  # of this kind they are the photographs alone, without those that were toned
    bounds = calibration.thresholds(reals[CLEAN].fakes, reals[CLEAN].reals, target_fpr=TARGET_FPR)
    return {
        name: {kind: round(auc(sets[kind][condition].fakes, sets[kind][condition].reals), 5) for kind in KINDS}
        | {"false positives": round(float((reals[condition].reals >= bounds.manipulated_from).mean()), 5)}
        for name, condition in CONDITIONS.items()
    }


def measure(weights: Path, size: int, people: Sequence[portraits.Portrait], seed: int) -> dict[str, dict[str, float]]:
    """See `measured`: what these weights make of validation people."""
    from pipeline.training import network, stepping

    model = network.build(size, weights=weights)
    plain = SimpleNamespace(logits=lambda crops: stepping.logits(model, crops), card=SimpleNamespace(temperature=1.0))
    score = Scorer(cast(Any, plain))
    return measured(made_sets(score, people, Recipe(size=size), tuple(CONDITIONS.values()), seed=seed, per_portrait=2))


def table(found: Mapping[str, Sequence[Mapping[str, Any]]]) -> str:
    """A row for each variant, of means over its seeds: the AUC of each kind, clean; then for every condition the mean AUC with its
    distance from the first variant's, and the false positives."""

    def means(rows: Sequence[Mapping[str, Any]], at: str) -> list[float]:
        return [statistics.mean(row[at][kind] for row in rows) for kind in KINDS]

    first = next(iter(found.values()), ())
    heads = [head for at in CONDITIONS for head in (f"mean, {at}", f"false positives, {at}")]
    lines = ["| what differs | " + " | ".join([*KINDS, *heads]) + " | images | n |"]
    lines.append("| --- " * (len(KINDS) + len(heads) + 3) + "|")
    for name, rows in found.items():
        cells = [f"{mean:.3f}" for mean in means(rows, "clean")]
        for at in CONDITIONS:
            mean = statistics.mean(means(rows, at))
            cells.append(f"{mean:.3f} ({mean - statistics.mean(means(first, at)):+.3f})")
            cells.append(f"{statistics.mean(row[at]['false positives'] for row in rows):.3f}")
        lines.append(f"| {name} | " + " | ".join([*cells, str(rows[0]["images"]), str(len(rows))]) + " |")
    return "\n".join(lines)


def done(name: str, people: Sequence[portraits.Portrait], how: Mapping[str, Any], out: Path) -> dict[str, Any]:
    """What one training is worth; it is trained and measured only where that has not been done."""
    place = folder(name, out=out, **how)
    place.mkdir(parents=True, exist_ok=True)
    words = command(name, out=place, **how)
    if not (place / "training.json").exists():
        with (place / "log.jsonl").open("a") as log:
            subprocess.run(words, stdout=log, check=True)
    if not (place / "measured.json").exists():
        size = fit.parse(words[words.index("pipeline.training.fit") + 1 :]).sizes[-1][0]
        of = json.loads((place / "training.json").read_text())
        row = measure(place / "weights.h5", size, people, how["seed"]) | {"images": of["images"], "hours": of["hours"]}
        (place / "measured.json").write_text(json.dumps(row, indent=1) + "\n")
    found: dict[str, Any] = json.loads((place / "measured.json").read_text())
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--faces", type=Path, default=Path("../shared/faces"))
    parser.add_argument("--out", type=Path, default=Path("build/ablation"))
    parser.add_argument("--steps", type=int, default=1500, help="of 32 crops each")
    parser.add_argument("--stage", default="96:1:.001", help="crop size:1:learning rate")
    parser.add_argument("--weights", type=Path, help="weights-only .h5 that all start from; none: random")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1])
    parser.add_argument("--only", nargs="+", choices=list(VARIANTS), default=list(VARIANTS))
    chosen = parser.parse_args()
    chosen.out.mkdir(parents=True, exist_ok=True)
    people = portraits.load(chosen.faces, "val", facts=chosen.out / "faces.npz")
    found: dict[str, list[dict[str, Any]]] = {}
    for seed in chosen.seeds:
        for name in chosen.only:
            print(f"{name}, seed {seed}", file=sys.stderr)
            how = {"faces": chosen.faces, "steps": chosen.steps, "seed": seed, "stage": chosen.stage, "weights": chosen.weights}
            found.setdefault(name, []).append(done(name, people, how, chosen.out))
            (chosen.out / "ablation.json").write_text(json.dumps({"steps": chosen.steps, "found": found}, indent=1) + "\n")
    print(table(found))


if __name__ == "__main__":
    main()
