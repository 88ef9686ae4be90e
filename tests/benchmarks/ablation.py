"""What each ingredient of a training is worth: short trainings that differ in one thing, measured on validation identities.

    python -m tests.benchmarks.ablation [--steps 1500] [--faces ../shared/faces] [--seeds 1] [--only NAME ...]
    python -m tests.benchmarks.ablation --weights OLDER.h5 --stage 128:1:.0003 --steps 300

Writes `build/ablation/ablation.json` and prints a table. Each training is one of `VARIANTS` with every seed; those that are done
already are not done again, so that it may be stopped and called again. Nobody of the test split is looked at. From random weights a
training needs 1,500 steps before it says anything; from weights it says what an ingredient adds to what these have learnt already.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pipeline.training.examples import KINDS

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
}
SIZES = {"two thirds of the size": 2 / 3, "half as large again": 1.5}
BASE = ("--average", ".995", "--dropout", ".3", "--bf16", "--makers", "1")


def command(name: str, faces: Path, out: Path, steps: int, seed: int, stage: str, weights: Path | None) -> list[str]:
    """One training's command line; what a variant says comes last, and counts."""
    size, rest = stage.split(":", 1)
    stage = f"{32 * round(int(size) * SIZES.get(name, 1) / 32)}:{rest}"
    given = {"faces": faces, "facts": out.parent / "faces.npz", "out": out, "steps": steps, "seed": seed, "stages": stage}
    fixed = [word for key, value in given.items() for word in (f"--{key}", str(value))] + (["--weights", str(weights)] if weights else [])
    return [sys.executable, "-m", "pipeline.training.fit", *fixed, "--look", str(max(1, steps // 2)), *BASE, *VARIANTS[name]]


def measured(curve: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """The last look's AUC of each kind, what was seen, and how long it took."""
    last = curve[-1]
    return {kind: last[f"auc_{kind}"] for kind in KINDS} | {"images": last["seen"], "hours": round(last["seconds"] / 3600, 3)}


def table(found: Mapping[str, Sequence[Mapping[str, float]]]) -> str:
    """A row for each variant: the mean AUC over its seeds of each kind, and their mean's distance from the first variant's."""
    first = next(iter(found.values()), ())
    base = statistics.mean(row[kind] for row in first for kind in KINDS) if first else 0.0
    lines = ["| what differs | " + " | ".join(KINDS) + " | mean, against the first | images | n |", "| --- " * (len(KINDS) + 4) + "|"]
    for name, rows in found.items():
        means = [statistics.mean(row[kind] for row in rows) for kind in KINDS]
        cells = [f"{mean:.3f}" for mean in means] + [f"{statistics.mean(means) - base:+.3f}", f"{rows[0]['images']:.0f}", str(len(rows))]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


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
    found: dict[str, list[dict[str, float]]] = {}
    for seed in chosen.seeds:
        for name in chosen.only:
            out = chosen.out / f"{list(VARIANTS).index(name):02}-{chosen.steps}-{seed}"
            out.mkdir(parents=True, exist_ok=True)
            if not (out / "curve.json").exists():
                print(f"{name}, seed {seed}", file=sys.stderr)
                with (out / "log.jsonl").open("a") as log:
                    line = command(name, chosen.faces, out, chosen.steps, seed, chosen.stage, chosen.weights)
                    subprocess.run(line, stdout=log, check=True)
            found.setdefault(name, []).append(measured(json.loads((out / "curve.json").read_text())))
            (chosen.out / "ablation.json").write_text(json.dumps({"steps": chosen.steps, "found": found}, indent=1) + "\n")
    print(table(found))


if __name__ == "__main__":
    main()
