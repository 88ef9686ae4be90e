"""From scored pictures to the document of `build/evaluate.json`: figures, curves, groups and the grid of conditions."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from pipeline.card import Thresholds
from pipeline.training import metrics

Condition = tuple[str, int]
"""What was done to a picture: `("jpeg", quality)`, `("size", pixels of the face's box)` or `CLEAN`."""
CLEAN: Condition = ("clean", 0)
Group = tuple[str, str]
"""An attribute and its value; `EVERYBODY` has neither."""
EVERYBODY: Group = ("", "")
GRID: tuple[Condition, ...] = (("jpeg", 95), ("jpeg", 75), ("jpeg", 50), ("size", 160), ("size", 96), ("size", 64))
SMALLEST_GROUP = 8
CURVE_POINTS = 200
OF_BOTH = ("auc", "auc_ci", "ap", "eer", "tpr_at_1fpr", "tpr_at_1fpr_ci", "ece15", "ece15_ci", "ece15_by_chance", "brier", "accuracy")
"""What needs fakes and reals."""
INTERVALS = (
    f"_ci: 95 %, percentiles over {metrics.ROUNDS} resamples of whole identities (of pictures where nobody is there twice); of a rate that "
    "is 0, up to the exact one-sided bound by people instead. Who lent a swap its face is not resampled, so intervals of swaps, and of "
    "the regions made by swapping, are somewhat too narrow. A resample is rougher than its sample: those of ece15 lean upward"
)


@dataclass(frozen=True)
class Scored:
    """Pictures with their scores: `scores` (n,) 0 to 1, `fake` (n,) bool, and for each who and which groups. `failed`:
    pictures without a score, by reason."""

    scores: npt.NDArray[np.float64]
    fake: npt.NDArray[np.bool_]
    people: tuple[str, ...] = ()
    groups: tuple[Mapping[str, str], ...] = ()
    failed: Mapping[str, int] = field(default_factory=dict)

    @property
    def fakes(self) -> npt.NDArray[np.float64]:
        """Scores of the fakes."""
        return self.scores[self.fake]

    @property
    def reals(self) -> npt.NDArray[np.float64]:
        """Scores of the reals."""
        return self.scores[~self.fake]


@dataclass(frozen=True)
class Judgement:
    """The score of a real picture under one condition."""

    condition: Condition
    score: float
    group: Mapping[str, str]
    person: str


Sets = dict[str, dict[Condition, Scored]]


def document(sets: Sets, thresholds: Thresholds, *, seed: int) -> dict[str, Any]:
    """The measured part of `build/evaluate.json` from scored sets.

    `sets`: figures and curves of each set, clean; `overall`: all fakes together against the distinct reals. `grid`: the same figures
    after compression and at small sizes, and how much AUC each costs. `false_positive_rate`: reals called manipulated, all
    conditions together (distinct pictures are few, so one condition alone hardly resolves 1 %); `groups`: the same for each
    self-reported group of at least 8 pictures, and the figures of its pictures in each set; `largest_over_overall`: the group
    that is called manipulated most often, beside everybody.
    """
    clean = {name: found[CLEAN] for name, found in sets.items()}
    reals = _distinct_reals(sets)
    at_once = [judgement.score >= thresholds.manipulated_from for judgement in reals if judgement.condition == CLEAN]
    rates = _rates(reals, thresholds.manipulated_from, seed)
    grid = _grid(sets, thresholds, seed)
    groups = _groups(rates, clean, thresholds, seed)
    return {
        "sets": {name: figures(scored, thresholds, seed=seed) | _at_jpeg_50(grid, name) for name, scored in clean.items()},
        "overall": figures(_together(clean), thresholds, seed=seed) if clean else None,
        **rates[EVERYBODY],
        "false_positive_rate_clean": float(np.mean(at_once)) if at_once else None,
        "real_judgements": len(reals),
        "real_people": len({judgement.person for judgement in reals}),
        "groups": groups,
        "largest_over_overall": _largest(groups),
        "grid": grid,
        "failed_faces": {name: dict(scored.failed) for name, scored in clean.items()},
        "intervals": INTERVALS,
    }


def figures(scored: Scored, thresholds: Thresholds, *, seed: int) -> dict[str, Any]:
    """All figures and curves of one set. What needs both sides is None where one is missing."""
    fakes, reals, at = scored.fakes, scored.reals, thresholds.manipulated_from
    found = numbers(scored, thresholds, seed=seed)
    found["verdicts"] = {
        side: {
            "manipulated": int((values >= at).sum()),
            "uncertain": int(((values < at) & (values >= thresholds.authentic_below)).sum()),
            "authentic": int(((values < at) & (values < thresholds.authentic_below)).sum()),
        }
        for side, values in (("real", reals), ("fake", fakes))
    }
    if not len(fakes) or not len(reals):
        return found
    fpr, tpr = metrics.roc(fakes, reals)
    some = np.unique(np.linspace(0, len(fpr) - 1, min(CURVE_POINTS, len(fpr))).round().astype(int))
    return found | {
        "roc": [[round(float(x), 5), round(float(y), 5)] for x, y in zip(fpr[some], tpr[some], strict=True)],
        "reliability": [[round(v, 5) for v in row] for row in metrics.reliability(fakes, reals, 15)],
        "risk_coverage": [[round(v, 5) for v in row] for row in metrics.risk_coverage(fakes, reals)],
    }


def numbers(scored: Scored, thresholds: Thresholds, *, seed: int) -> dict[str, Any]:
    """The figures of a set, of a cell of the grid or of a group: all alike. `fpr_resolution`: what one real is of the reals; where it is
    more than 1 %, TPR at 1 % FPR is TPR at none."""
    fakes, reals, at = scored.fakes, scored.reals, thresholds.manipulated_from
    found: dict[str, Any] = {"n": len(scored.scores), "n_real": len(reals), "n_fake": len(fakes)}
    found["fpr_resolution"] = 1 / len(reals) if len(reals) else None
    if not len(fakes) or not len(reals):
        return found | dict.fromkeys(OF_BOTH)
    who = _who(scored)
    several = [len(set(side)) for side in who] if who else [len(fakes), len(reals)]
    drawn = metrics.bootstrap(
        fakes,
        reals,
        {
            "auc": metrics.auc_drawn(fakes, reals),
            "tpr": metrics.tpr_drawn(fakes, reals, 0.01),
            "ece": metrics.ece_drawn(fakes, reals, 15),
            "fpr": metrics.share_drawn(reals, at),
        },
        seed=seed,
        people=who,
    )
    tpr, fpr = metrics.tpr_at_fpr(fakes, reals, 0.01), float((reals >= at).mean())
    coverage, risk = metrics.judged(fakes, reals, thresholds.authentic_below, at)
    return found | {
        "auc": metrics.auc(fakes, reals),
        "auc_ci": list(metrics.interval(drawn["auc"])),
        "ap": metrics.average_precision(fakes, reals),
        "eer": metrics.eer(fakes, reals),
        "tpr_at_1fpr": tpr,
        "tpr_at_1fpr_ci": list(metrics.rate_interval(tpr, drawn["tpr"], several[0])),
        "ece15": metrics.ece(fakes, reals, 15),
        "ece15_ci": list(metrics.interval(drawn["ece"])),
        "ece15_by_chance": metrics.ece_by_chance(fakes, reals, 15, seed=seed),
        "brier": metrics.brier(fakes, reals),
        "accuracy": metrics.accuracy(fakes, reals, at),
        "false_positive_rate": fpr,
        "false_positive_rate_ci": list(metrics.rate_interval(fpr, drawn["fpr"], several[1])),
        "coverage": coverage,
        "risk": risk,
    }


def _who(scored: Scored) -> tuple[list[str], list[str]] | None:
    """Who each fake and each real is, where somebody is there twice."""
    if not scored.people or len(set(scored.people)) == len(scored.people):
        return None
    names = np.array(scored.people)
    return names[scored.fake].tolist(), names[~scored.fake].tolist()


def _together(sets: Mapping[str, Scored]) -> Scored:
    """All fakes, and the reals of the set that has the fewest (see `_distinct_reals`)."""
    plain = min(sets.values(), key=lambda scored: len(scored.reals))
    parts = [(scored, scored.fake) for scored in sets.values()] + [(plain, ~plain.fake)]
    named = all(len(scored.people) == len(scored.scores) for scored, _ in parts)
    return Scored(
        np.concatenate([scored.scores[chosen] for scored, chosen in parts]),
        np.concatenate([scored.fake[chosen] for scored, chosen in parts]),
        tuple(str(name) for scored, chosen in parts for name in np.array(scored.people)[chosen]) if named else (),
    )


def _distinct_reals(sets: Sets) -> list[Judgement]:
    """The pictures as they are, under every condition: they are in every set, in some beside copies toned as their fakes are;
    the set with the fewest reals has them alone."""
    first = min(sets.values(), key=lambda found: len(found[CLEAN].reals), default={})
    found = []
    for condition, scored in first.items():
        groups = scored.groups or ({},) * len(scored.scores)
        people = scored.people or [f"picture {k}" for k in range(len(scored.scores))]
        rows = zip(scored.scores, scored.fake, groups, people, strict=True)
        found += [Judgement(condition, float(score), group, who) for score, fake, group, who in rows if not fake]
    return found


def _rates(reals: Sequence[Judgement], at: float, seed: int) -> dict[Group, dict[str, Any]]:
    """For everybody and for each group that is large enough the rate of reals called manipulated,
    and over the overall rate, with intervals of the same resamples of people."""
    if not reals:
        return {EVERYBODY: {"false_positive_rate": None, "false_positive_rate_ci": None}}
    calls = np.array([judgement.score >= at for judgement in reals], np.float64)
    _, who = np.unique([judgement.person for judgement in reals], return_inverse=True)
    masks = {EVERYBODY: np.ones(len(reals), bool)}
    sizes = Counter(item for judgement in reals if judgement.condition == CLEAN for item in judgement.group.items())
    for attribute, value in sorted(item for item, n in sizes.items() if n >= SMALLEST_GROUP):
        masks[attribute, value] = np.array([judgement.group.get(attribute) == value for judgement in reals])
    columns = [np.bincount(who, weights) for mask in masks.values() for weights in (mask * calls, mask.astype(np.float64))]
    sums = metrics.sums_drawn(np.stack(columns, axis=1), seed=seed)
    overall, found = float(calls.mean()), {}
    with np.errstate(invalid="ignore"):  # a resample without anybody of a group says nothing of it
        drawn = {name: sums[:, 2 * k] / sums[:, 2 * k + 1] for k, name in enumerate(masks)}
    for name, mask in masks.items():
        rate, people, seen = float(calls[mask].mean()), len(set(who[mask])), np.isfinite(drawn[name])
        low, high = metrics.rate_interval(rate, drawn[name][seen], people)
        found[name] = {"false_positive_rate": rate, "false_positive_rate_ci": [low, high]}
        if name != EVERYBODY:
            found[name] |= {"n": sum(reals[k].condition == CLEAN for k in np.flatnonzero(mask)), "people": people}
            found[name] |= _over(
                rate, high, overall, drawn[name][seen], drawn[EVERYBODY][seen], f"{len(reals)} judgements of {who.max() + 1} people"
            )
    return found


def _over(rate: float, high: float, overall: float, drawn: metrics.Values, everybody: metrics.Values, of: str) -> dict[str, Any]:
    """A group's rate over the overall one, from both and their resamples."""
    if not overall:
        why = f"not measurable: none of {of} was called manipulated, and no rate can be over none"
        return {"over_overall": None, "over_overall_ci": None, "over_overall_why": why}
    some = everybody > 0
    interval = metrics.interval(drawn[some] / everybody[some]) if rate else (0.0, high / overall)
    return {"over_overall": rate / overall, "over_overall_ci": list(interval)}


def _groups(
    rates: Mapping[Group, Mapping[str, Any]], clean: Mapping[str, Scored], thresholds: Thresholds, seed: int
) -> dict[str, dict[str, dict[str, Any]]]:
    found: dict[str, dict[str, dict[str, Any]]] = {}
    for attribute, value in (group for group in rates if group != EVERYBODY):
        of_sets = {}
        for name, scored in clean.items():
            inside = _part(scored, np.array([group.get(attribute) == value for group in scored.groups]))
            if len(inside.fakes) and len(inside.reals):
                of_sets[name] = numbers(inside, thresholds, seed=seed)
        row = {**rates[attribute, value], "auc": {name: of_set["auc"] for name, of_set in of_sets.items()}, "sets": of_sets}
        found.setdefault(attribute, {})[value] = row
    return found


def _part(scored: Scored, chosen: npt.NDArray[np.bool_]) -> Scored:
    return Scored(scored.scores[chosen], scored.fake[chosen], tuple(np.array(scored.people)[chosen].tolist()) if scored.people else ())


def _largest(groups: Mapping[str, Mapping[str, Mapping[str, Any]]]) -> dict[str, Any] | None:
    rows = [(f"{attribute}: {value}", row) for attribute, values in groups.items() for value, row in values.items()]
    if not rows:
        return None
    name, row = max(rows, key=lambda one: (one[1]["false_positive_rate"], one[1]["false_positive_rate_ci"][1]))
    return {"group": name, "value": row["over_overall"], "ci": row["over_overall_ci"], "why": row.get("over_overall_why")}


def _grid(sets: Sets, thresholds: Thresholds, seed: int) -> dict[str, dict[str, dict[str, dict[str, Any]]]]:
    found: dict[str, dict[str, dict[str, dict[str, Any]]]] = {}
    for name, conditions in sets.items():
        for (kind, value), scored in conditions.items():
            if (kind, value) == CLEAN or not len(scored.fakes) or not len(scored.reals):
                continue
            cell = numbers(scored, thresholds, seed=seed) | _lost(conditions[CLEAN], scored, seed)
            found.setdefault(kind, {}).setdefault(str(value), {})[name] = cell
    return found


def _lost(base: Scored, scored: Scored, seed: int) -> dict[str, Any]:
    """How much AUC a condition costs; its interval is of the same pictures with and without, drawn together."""
    same = {"auc": (base.fakes, base.reals), "worse": (scored.fakes, scored.reals)}
    before, after = (metrics.auc(*sides) for sides in same.values())
    of_each = {name: metrics.auc_drawn(*sides) for name, sides in same.items()}
    drawn = metrics.bootstrap(base.fakes, base.reals, of_each, seed=seed, people=_who(base))
    return {"auc_lost": before - after, "auc_lost_ci": list(metrics.interval(drawn["auc"] - drawn["worse"]))}


def _at_jpeg_50(grid: Mapping[str, Mapping[str, Mapping[str, Mapping[str, Any]]]], name: str) -> dict[str, Any]:
    cell = grid.get("jpeg", {}).get("50", {}).get(name)
    return {"auc_lost_jpeg50": cell["auc_lost"], "auc_lost_jpeg50_ci": cell["auc_lost_ci"]} if cell else {}
