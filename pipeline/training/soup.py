"""Several trainings of the network as one: the mean of their weights, with the norms measured anew for it.

A model soup (Wortsman et al. 2022, 2203.05482): trainings that went on from the same weights end in the same valley, and their mean is
steadier than any of them and costs nothing in serving. Which of them go in is decided on validation people.

    python -m pipeline.training.soup --weights start.h5 one.h5 two.h5 --faces ../shared/faces --size 192 --out soup.h5
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.jobs import Pixels
from pipeline.training import examples, feeding, portraits
from pipeline.training import weights as files
from pipeline.training.datasets import DatasetError
from pipeline.training.examples import Recipe
from pipeline.training.metrics import auc
from pipeline.training.weights import Named, WeightsError

Measure = Callable[[Named], dict[str, float]]
"""AUC of each kind of fakes on validation people, by weights whose norms it may measure anew in place."""


def mean(several: Sequence[Named]) -> Named:
    """The mean of named weights, over the layers that all of them have (a mask head may be missing in some). Raises WeightsError."""
    common = [layer for layer in several[0] if all(layer in named for named in several)]
    made: Named = {}
    for layer in common:
        shapes = {tuple(array.shape for array in named[layer]) for named in several}
        if len(shapes) != 1:
            raise WeightsError(f"Layer {layer} has other shapes in some of the weights: they are of different networks.")
        made[layer] = [np.mean(arrays, axis=0, dtype=np.float32) for arrays in zip(*(named[layer] for named in several), strict=True)]
    return made


def greedy(several: Mapping[str, Named], measure: Measure, tell: Callable[[str, dict[str, float]], None]) -> tuple[list[str], Named]:
    """Who goes in, and their mean: the best alone, then each by its own mean AUC, if the soup is not worse with it."""
    alone = {name: measure(named) for name, named in several.items()}
    for name, found in alone.items():
        tell(name, found)
    order = sorted(several, key=lambda name: -_overall(alone[name]))
    chosen, best, soup = order[:1], _overall(alone[order[0]]), several[order[0]]
    for name in order[1:]:
        tried = mean([several[other] for other in [*chosen, name]])
        found = measure(tried)
        tell(" + ".join([*chosen, name]), found)
        if _overall(found) >= best:
            chosen, best, soup = [*chosen, name], _overall(found), tried
    return chosen, soup


def _overall(found: Mapping[str, float]) -> float:
    return float(np.mean(list(found.values())))


def _measure(model: Any, norms: Sequence[Pixels], sets: Mapping[str, tuple[Pixels, Any]]) -> Measure:
    from pipeline.training import network, stepping
    from pipeline.training.averaging import measure_norms

    def measure(named: Named) -> dict[str, float]:
        network.load_named(model, named)
        measure_norms(model, norms)
        named.update(network.named_weights(model))
        scores = {kind: (stepping.logits(model, crops), fake) for kind, (crops, fake) in sets.items()}
        return {kind: auc(found[fake], found[~fake]) for kind, (found, fake) in scores.items()}

    return measure


def make(chosen: argparse.Namespace) -> list[str]:
    """Write the soup, and beside it `.json` with what was measured; returns who is in it. Raises WeightsError or DatasetError."""
    from pipeline.training import network

    several = {str(path): files.read(path) for path in chosen.weights}
    recipe = Recipe(size=chosen.size, smallest=min(chosen.size, max(40, chosen.size // 4)))
    people = portraits.load(chosen.faces, "val", facts=chosen.facts)
    if not people:
        raise DatasetError(f"{chosen.faces} has no photographs with a face in the split val.")
    portraits.must_be_several(people, chosen.faces)
    sets = examples.evaluation_sets(people, seed=chosen.seed, per_portrait=chosen.per_portrait, recipe=recipe)
    source = feeding.Made(chosen.faces, chosen.facts, chosen.seed * 1000, recipe, 16)
    measure = _measure(network.build(chosen.size), [source.batch(number).crops for number in range(chosen.norms)], sets)
    rows: list[dict[str, Any]] = []

    def tell(name: str, found: dict[str, float]) -> None:
        rows.append({"of": name, "auc": found, "mean": _overall(found)})
        print(f"{_overall(found):.4f}", *(f"{kind} {value:.4f}" for kind, value in found.items()), name)  # noqa: T201

    taken, soup = greedy(several, measure, tell)
    files.write(chosen.out, soup, half=True)
    chosen.out.with_suffix(".json").write_text(
        json.dumps({"taken": taken, "people": len({p.identity for p in people}), "measured": rows}, indent=1) + "\n"
    )
    return taken


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns the exit code, 2 with one sentence if something is wrong."""
    parser = argparse.ArgumentParser(description="Make one of several trainings that went on from the same weights.")
    add = parser.add_argument
    add("--weights", type=Path, nargs="+", required=True, help="weights-only .h5 files, the ones they went on from among them")
    add("--faces", type=Path, required=True, help="folder with faces.csv")
    add("--out", type=Path, required=True, help="the soup, a weights-only .h5")
    add("--facts", type=Path, help="where findings in the photographs are kept (.npz)")
    add("--size", type=int, default=224, help="side of the crop in pixels")
    add("--norms", type=int, default=30, help="batches on which the norms are measured anew")
    add("--per-portrait", type=int, default=3, help="fakes of each kind made from a validation photograph")
    add("--seed", type=int, default=1)
    try:
        taken = make(parser.parse_args(arguments))
    except (WeightsError, DatasetError, FileNotFoundError) as error:
        print(error, file=sys.stderr)  # noqa: T201
        return 2
    print("in it:", *taken)  # noqa: T201
    return 0


if __name__ == "__main__":
    sys.exit(main())
