"""How many photographs it takes to see whether a model is calibrated.

    python -m tests.benchmarks.calibration_by_chance [--model FOLDER] [--faces ../shared/faces]

Scores a split's photographs and four fakes of each kind for each, as `make evaluate` does, and says what ECE(15) perfectly calibrated
scores that are spread as these would show with as many photographs, and with more. Writes `build/calibration-by-chance.json` and `.png`.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.classification import Classifier, load
from pipeline.training import calibration, metrics, portraits
from tests.benchmarks import known_people

WANTED = 0.05


def scored(classifier: Classifier, people: list[portraits.Portrait], *, per_portrait: int, seed: int) -> tuple[Any, Any]:
    """The scores of all kinds of fakes, and of the photographs as they are, each once."""
    found = known_people.measured(classifier, people, per_portrait=per_portrait, seed=seed)
    fakes = np.concatenate([row["fakes"] for row in found.values()])
    reals = np.array(found["warp"]["reals"])  # the photographs as they are, and nothing else
    return calibration.scores(fakes, classifier.card.temperature), calibration.scores(reals, classifier.card.temperature)


def curve(fakes: Any, reals: Any, photographs: list[int], *, seed: int, rounds: int) -> list[dict[str, float]]:
    """Per number of photographs: mean, 5 % and 95 % of the calibration error by chance, how often it is as wanted or less, and how often
    as much as that of these scores or more."""
    measured = metrics.ece(fakes, reals)
    rows = []
    each = len(fakes) / len(reals)
    for count in photographs:
        found = np.array(metrics.calibrated_eces(fakes, reals, (round(count * each), count), seed=seed, rounds=rounds))
        low, high = np.quantile(found, (0.05, 0.95))
        shares = {"as_wanted": float((found <= WANTED).mean()), "as_measured": float((found >= measured).mean())}
        rows.append({"photographs": count, "mean": float(found.mean()), "low": float(low), "high": float(high), **shares})
    return rows


def picture(rows: list[dict[str, float]], measured: tuple[int, float], path: Path) -> None:
    """The curve with its band, the wanted error and the measured one."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 3.8), layout="constrained")
    axes = figure.subplots()
    at = [row["photographs"] for row in rows]
    axes.fill_between(at, [row["low"] for row in rows], [row["high"] for row in rows], color="#2a9d6f", alpha=0.2, lw=0)
    axes.plot(at, [row["mean"] for row in rows], color="#2a9d6f", label="perfectly calibrated: mean, 5 to 95 %")
    axes.axhline(WANTED, color="#5a6562", ls="--", lw=1, label=f"wanted: {WANTED}")
    axes.plot(*measured, "o", color="#d1495b", label="measured")
    axes.set(xscale="log", xlabel="photographs of real faces", ylabel="ECE(15)", ylim=(0, None))
    axes.set_xticks(at, [str(count) for count in at])
    axes.minorticks_off()
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    figure.savefig(path, dpi=110, metadata={"Software": None})


def main() -> None:
    parser = known_people.options(__doc__)
    parser.add_argument("--split", default="test")
    parser.add_argument("--per-portrait", type=int, default=4)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=2000)
    chosen = parser.parse_args()
    classifier = load(chosen.model, runtime="openvino", precision="auto")
    people = portraits.load(chosen.faces, chosen.split, facts=chosen.facts)
    fakes, reals = scored(classifier, people, per_portrait=chosen.per_portrait, seed=chosen.seed)
    measured = metrics.ece(fakes, reals)
    photographs = [len(reals) * 2**k for k in range(7)]
    rows = curve(fakes, reals, photographs, seed=chosen.seed, rounds=chosen.rounds)
    chosen.out.mkdir(parents=True, exist_ok=True)
    told = {"measured": measured, "fakes": len(fakes), "reals": len(reals), "curve": rows}
    (chosen.out / "calibration-by-chance.json").write_text(json.dumps(told, indent=1) + "\n")
    picture(rows, (len(reals), measured), chosen.out / "calibration-by-chance.png")
    print(json.dumps(told, indent=1))


if __name__ == "__main__":
    main()
