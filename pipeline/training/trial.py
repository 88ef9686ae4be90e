"""A candidate beside the champion on the hold-out: the same faces, the same fakes, and a bootstrap that draws people for both at once.

Because both are measured on the same crops, what chance does to one it does to the other too, and the difference is known much better
than either figure.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from pipeline.card import Card
from pipeline.classification import Classifier
from pipeline.images import ImageRefused, Limits, read
from pipeline.settings import Settings
from pipeline.training import datasets, evaluation, metrics, portraits
from pipeline.training.crops import Cut
from pipeline.training.evaluation import Scorer
from pipeline.training.examples import KINDS, Recipe
from pipeline.training.figures import CLEAN, Condition, Scored, Sets
from pipeline.trials import Difference, Trial

Values = npt.NDArray[np.float64]
Flags = npt.NDArray[np.bool_]
ROUNDS = 2000
WORSE: tuple[Condition, ...] = (("jpeg", 75), ("jpeg", 50), ("size", 96), ("size", 64))
"""Conditions under which false positives are counted as well: distinct people are few."""
SMALLEST_GROUP = 8
TARGET_FPR = 0.01


@dataclass(frozen=True)
class Crops:
    """What one model made of the hold-out: (n,) scores of fakes and reals of each set, and of every real under all conditions."""

    sets: Sets
    reals: Values
    """Clean and worse, in an order that is the same for every model."""

    @property
    def clean_reals(self) -> Values:
        """Each photograph once, as it is."""
        return self.reals[: len(self.reals) // (1 + len(WORSE))]


@dataclass(frozen=True)
class Holdout:
    """Who is where: for each set `fake` (n,) and `people` (n,); for the reals under all conditions `people` and `groups`."""

    fake: dict[str, Flags]
    people: dict[str, npt.NDArray[np.int64]]
    real_people: npt.NDArray[np.int64]
    groups: tuple[dict[str, str], ...]
    names: tuple[str, ...]


def measured(
    classifier: Classifier,
    faces: Path,
    *,
    facts: Path | None,
    seed: int,
    per_portrait: int,
    check: Callable[[], None] = lambda: None,
) -> tuple[Crops, Holdout]:
    """The scores of a model on the hold-out (split `test`) of a folder with `faces.csv`. `check` may raise between the parts."""
    people = portraits.load(faces, "test", facts=facts)
    card = classifier.card
    recipe = Recipe(size=card.input_size, margin=card.margin)
    score = Scorer(classifier)
    clean: Sets = {}
    for kind in KINDS:
        check()
        clean |= evaluation.made_sets(score, people, recipe, (CLEAN,), seed=seed, per_portrait=per_portrait, kinds=(kind,))
    worse = evaluation.made_sets(score, people, recipe, WORSE, seed=seed, per_portrait=0, kinds=("warp",))["warp"]
    plain = min((found[CLEAN] for found in clean.values()), key=lambda found: len(found.reals))
    parts = [_reals(plain), *(_reals(found) for found in worse.values())]
    names = tuple(sorted({person.identity for person in people}))
    index = {name: number for number, name in enumerate(names)}
    where = {name: np.array([index[person] for person in found[CLEAN].people], np.int64) for name, found in clean.items()}
    return Crops(clean, np.concatenate([values for values, _, _ in parts])), Holdout(
        {name: found[CLEAN].fake for name, found in clean.items()},
        where,
        np.array([index[person] for _, who, _ in parts for person in who], np.int64),
        tuple(dict(group) for _, _, groups in parts for group in groups),
        names,
    )


def reals(classifier: Classifier, faces: Path, *, facts: Path | None) -> Values:
    """Of what `measured` finds only the scores of the reals as they are, without making any fakes."""
    people = portraits.load(faces, "test", facts=facts)
    recipe = Recipe(size=classifier.card.input_size, margin=classifier.card.margin)
    found = evaluation.made_sets(Scorer(classifier), people, recipe, (CLEAN,), seed=0, per_portrait=0, kinds=("warp",))["warp"]
    return found[CLEAN].scores


def _reals(found: Scored) -> tuple[Values, list[str], list[Any]]:
    real = np.flatnonzero(~found.fake)
    return found.scores[real], [found.people[k] for k in real], [found.groups[k] for k in real]


def compare(
    candidate: tuple[Crops, float], champion: tuple[Crops, float] | None, holdout: Holdout, *, seed: int, rounds: int = ROUNDS
) -> Trial:
    """The trial of a candidate's scores against a champion's on one hold-out; each with its model's `manipulated_from`."""
    draws = _draws(len(holdout.names), seed, rounds)
    sides = [candidate[0]] if champion is None else [candidate[0], champion[0]]
    aucs = {
        name: [_aucs(side.sets[name][CLEAN].scores, fake, holdout.people[name], draws) for side in sides]
        for name, fake in holdout.fake.items()
    }
    tprs = [_tprs(side, holdout, draws) for side in sides]
    per_set = {name: _difference(found) for name, found in aucs.items()}
    mean = [np.mean([found[k] for found in aucs.values()], axis=0) for k in range(len(sides))]
    thresholds = [candidate[1]] if champion is None else [candidate[1], champion[1]]
    rates = [float((side.reals >= at).mean()) for side, at in zip(sides, thresholds, strict=True)]
    return Trial(
        _difference(mean),
        _difference(tprs),
        per_set,
        _pair([metrics.ece(*_all(side, holdout)) for side in sides]),
        _pair(rates),
        _by_group(sides, thresholds, holdout),
        {word: _curve(side, holdout) for word, side in zip(("candidate", "champion"), sides, strict=False)},
        len(holdout.names),
        len(holdout.groups) // (1 + len(WORSE)),
        len(holdout.groups),
    )


def _draws(people: int, seed: int, rounds: int) -> Values:
    """(rounds + 1, people): how often each person is in each draw; the first row is everybody once."""
    rng = np.random.default_rng(seed)
    drawn = rng.multinomial(people, np.full(people, 1 / people), size=rounds).astype(np.float64)
    return np.concatenate([np.ones((1, people), np.float64), drawn])


def _aucs(scores: Values, fake: Flags, people: npt.NDArray[np.int64], draws: Values) -> Values:
    """(rounds + 1,) AUCs, ties counting half."""
    fakes, reals = scores[fake], np.sort(scores[~fake])
    order = np.argsort(scores[~fake], kind="stable")
    below, upto = np.searchsorted(reals, fakes, "left"), np.searchsorted(reals, fakes, "right")
    ours, theirs = draws[:, people[fake]], draws[:, people[~fake][order]]
    heap = np.concatenate([np.zeros((len(draws), 1)), np.cumsum(theirs, axis=1)], axis=1)
    return np.asarray((ours * (heap[:, below] + heap[:, upto])).sum(axis=1) / (2 * ours.sum(axis=1) * theirs.sum(axis=1)), np.float64)


def _tprs(side: Crops, holdout: Holdout, draws: Values) -> Values:
    """(rounds + 1,) shares of fakes above the highest threshold that at most 1 % of the reals reach."""
    order = np.argsort(-side.reals, kind="stable")
    reals, weights = side.reals[order], draws[:, holdout.real_people[order]]
    reached = np.cumsum(weights, axis=1) / weights.sum(axis=1, keepdims=True)
    first = np.argmax(reached > TARGET_FPR + 1e-12, axis=1)  # the threshold lies just above this real
    fakes = np.concatenate([side.sets[name][CLEAN].scores[fake] for name, fake in holdout.fake.items()])
    people = np.concatenate([holdout.people[name][fake] for name, fake in holdout.fake.items()])
    mine = draws[:, people]
    return np.asarray((mine * (fakes[None, :] > reals[first][:, None])).sum(axis=1) / mine.sum(axis=1), np.float64)


def _difference(found: Sequence[Values]) -> Difference:
    if len(found) == 1:
        low, high = np.quantile(found[0][1:], [0.05, 0.95])
        return Difference(float(found[0][0]), None, 0.0, float(low - found[0][0]), float(high - found[0][0]))
    apart = found[0] - found[1]
    low, high = np.quantile(apart[1:], [0.05, 0.95])
    return Difference(float(found[0][0]), float(found[1][0]), float(apart[0]), float(low), float(high))


def _pair(found: Sequence[float]) -> tuple[float, float | None]:
    return found[0], found[1] if len(found) > 1 else None


def _all(side: Crops, holdout: Holdout) -> tuple[Values, Values]:
    fakes = np.concatenate([side.sets[name][CLEAN].scores[fake] for name, fake in holdout.fake.items()])
    return fakes, side.reals[: len(side.reals) // (1 + len(WORSE))]


def _curve(side: Crops, holdout: Holdout) -> list[tuple[float, float]]:
    fpr, tpr = metrics.roc(*_all(side, holdout))
    return [(float(x), float(y)) for x, y in zip(fpr, tpr, strict=True)]


def _by_group(sides: Sequence[Crops], thresholds: Sequence[float], holdout: Holdout) -> dict[str, tuple[int, float, float | None]]:
    found = {}
    for attribute, value in sorted({item for group in holdout.groups for item in group.items()}):
        mine = np.array([group.get(attribute) == value for group in holdout.groups])
        distinct = int(mine.sum()) // (1 + len(WORSE))
        if distinct >= SMALLEST_GROUP:
            rates = [float((side.reals[mine] >= at).mean()) for side, at in zip(sides, thresholds, strict=True)]
            found[f"{attribute}: {value}"] = (distinct, *_pair(rates))
    return found


def cut(settings: Settings, card: Card) -> Cut:
    """How serving finds faces, and cuts them for a model."""
    return replace(Cut.of(settings), size=card.input_size, margin=card.margin)


def quality(faces: Path, *, limits: Limits, cut: Cut) -> dict[str, list[float]]:
    """Size, blur and detection of the faces in the hold-out's photographs, as extraction measures them in live traffic.

    A photograph beyond the `limits`, those of serving, is left out: no such picture gets that far there.
    """
    found: dict[str, list[float]] = {"size": [], "blur": [], "detection": []}
    find = cut.find()
    for row in (row for row in datasets.index(faces) if row["split"] == "test"):
        try:
            pixels = read((faces / row["path"]).read_bytes(), limits).pixels
        except ImageRefused:
            continue
        for face in (one for one in cut.faces(pixels, find) if one.crop is not None):
            found["size"].append(float(face.quality.size))
            found["blur"].append(float(face.quality.blur))
            found["detection"].append(float(face.detection))
    return found


def verdicts(classifier: Classifier, pictures: Sequence[Path], *, limits: Limits, cut: Cut) -> list[tuple[float, str] | None]:
    """Score and verdict of the largest face in each picture; None where no face can be judged.

    Raises ImageRefused, naming the picture, for one that cannot be read within the `limits`.
    """
    find = cut.find()
    found: list[tuple[float, str] | None] = []
    for path in pictures:
        try:
            pixels = read(path.read_bytes(), limits).pixels
        except ImageRefused as error:
            raise ImageRefused(f"The picture {path.name} cannot be judged: {error}") from error
        faces = cut.faces(pixels, find)
        judged = sorted((face for face in faces if face.crop is not None), key=lambda face: -face.box.w * face.box.h)
        if not judged or judged[0].crop is None:
            found.append(None)
            continue
        ((score, verdict),) = classifier.judge(judged[0].crop[None])
        found.append((score, verdict.value))
    return found
