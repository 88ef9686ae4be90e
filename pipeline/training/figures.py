"""From scored pictures to the document of `build/evaluate.json`: figures, curves, groups and the grid of conditions."""

from __future__ import annotations

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
GRID: tuple[Condition, ...] = (("jpeg", 95), ("jpeg", 75), ("jpeg", 50), ("size", 160), ("size", 96), ("size", 64))
SMALLEST_GROUP = 8
CURVE_POINTS = 200


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


Sets = dict[str, dict[Condition, Scored]]


def document(sets: Sets, thresholds: Thresholds, *, seed: int) -> dict[str, Any]:
    """The measured part of `build/evaluate.json` from scored sets.

    `sets`: figures and curves of each set, clean; `overall`: all fakes together against the distinct reals. `grid`: AUC and
    false positives after compression and at small sizes, and how much AUC each costs. `false_positive_rate`: reals called
    manipulated, all conditions together (distinct pictures are few, so one condition alone hardly resolves 1 %); `groups`: the
    same for each self-reported group of at least 8 pictures.
    """
    clean = {name: found[CLEAN] for name, found in sets.items()}
    reals = _distinct_reals(sets)
    calls = np.array([score >= thresholds.manipulated_from for _, score, _ in reals])
    overall = float(calls.mean()) if len(calls) else None
    at_once = np.array([score >= thresholds.manipulated_from for condition, score, _ in reals if condition == CLEAN])
    return {
        "sets": {name: figures(scored, thresholds, seed=seed) for name, scored in clean.items()},
        "overall": figures(_together(clean), thresholds, seed=seed) if clean else None,
        "false_positive_rate": overall,
        "false_positive_rate_clean": float(at_once.mean()) if len(at_once) else None,
        "real_judgements": len(calls),
        "groups": _groups(reals, calls, overall, clean),
        "grid": _grid(sets, thresholds),
        "failed_faces": {name: dict(scored.failed) for name, scored in clean.items()},
    }


def figures(scored: Scored, thresholds: Thresholds, *, seed: int) -> dict[str, Any]:
    """All figures of one set. What needs both sides is None where one is missing."""
    fakes, reals, at = scored.fakes, scored.reals, thresholds.manipulated_from
    found: dict[str, Any] = {"n": len(scored.scores), "n_real": len(reals), "n_fake": len(fakes)}
    found["verdicts"] = {
        side: {
            "manipulated": int((values >= at).sum()),
            "uncertain": int(((values < at) & (values >= thresholds.authentic_below)).sum()),
            "authentic": int(((values < at) & (values < thresholds.authentic_below)).sum()),
        }
        for side, values in (("real", reals), ("fake", fakes))
    }
    if not len(fakes) or not len(reals):
        return found | dict.fromkeys(("auc", "auc_ci", "ap", "eer", "tpr_at_1fpr", "ece15", "ece15_by_chance", "brier", "accuracy"))
    who = None
    if scored.people and len(set(scored.people)) < len(scored.people):
        names = np.array(scored.people)
        who = (names[scored.fake].tolist(), names[~scored.fake].tolist())
    coverage, risk = metrics.judged(fakes, reals, thresholds.authentic_below, at)
    fpr, tpr = metrics.roc(fakes, reals)
    some = np.unique(np.linspace(0, len(fpr) - 1, min(CURVE_POINTS, len(fpr))).round().astype(int))
    return found | {
        "auc": metrics.auc(fakes, reals),
        "auc_ci": list(metrics.auc_interval(fakes, reals, seed=seed, people=who)),
        "ap": metrics.average_precision(fakes, reals),
        "eer": metrics.eer(fakes, reals),
        "tpr_at_1fpr": metrics.tpr_at_fpr(fakes, reals, 0.01),
        "ece15": metrics.ece(fakes, reals, 15),
        "ece15_by_chance": metrics.ece_by_chance(fakes, reals, 15, seed=seed),
        "brier": metrics.brier(fakes, reals),
        "accuracy": metrics.accuracy(fakes, reals, at),
        "false_positive_rate": float((reals >= at).mean()),
        "coverage": coverage,
        "risk": risk,
        "roc": [[round(float(x), 5), round(float(y), 5)] for x, y in zip(fpr[some], tpr[some], strict=True)],
        "reliability": [[round(v, 5) for v in row] for row in metrics.reliability(fakes, reals, 15)],
        "risk_coverage": [[round(v, 5) for v in row] for row in metrics.risk_coverage(fakes, reals)],
    }


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


def _distinct_reals(sets: Sets) -> list[tuple[Condition, float, Mapping[str, str]]]:
    """The pictures as they are, under every condition: they are in every set, in some beside copies toned as their fakes are;
    the set with the fewest reals has them alone."""
    first = min(sets.values(), key=lambda found: len(found[CLEAN].reals), default={})
    found = []
    for condition, scored in first.items():
        groups = scored.groups or ({},) * len(scored.scores)
        found += [(condition, float(s), g) for s, f, g in zip(scored.scores, scored.fake, groups, strict=True) if not f]
    return found


def _groups(
    reals: Sequence[tuple[Condition, float, Mapping[str, str]]],
    calls: npt.NDArray[np.bool_],
    overall: float | None,
    clean: Mapping[str, Scored],
) -> dict[str, dict[str, dict[str, Any]]]:
    found: dict[str, dict[str, dict[str, Any]]] = {}
    values = sorted({item for _, _, group in reals for item in group.items()})
    for attribute, value in values:
        mine = np.array([group.get(attribute) == value for _, _, group in reals])
        n = sum(condition == CLEAN and group.get(attribute) == value for condition, _, group in reals)
        if n < SMALLEST_GROUP:
            continue
        rate = float(calls[mine].mean())
        row: dict[str, Any] = {"n": n, "false_positive_rate": rate, "over_overall": rate / overall if overall else None}
        row["auc"] = {}
        for name, scored in clean.items():
            inside = np.array([group.get(attribute) == value for group in scored.groups])
            fakes, own = scored.scores[inside & scored.fake], scored.scores[inside & ~scored.fake]
            if len(fakes) and len(own):
                row["auc"][name] = metrics.auc(fakes, own)
        found.setdefault(attribute, {})[value] = row
    return found


def _grid(sets: Sets, thresholds: Thresholds) -> dict[str, dict[str, dict[str, dict[str, float]]]]:
    found: dict[str, dict[str, dict[str, dict[str, float]]]] = {}
    for name, conditions in sets.items():
        base = conditions[CLEAN]
        for (kind, value), scored in conditions.items():
            if (kind, value) == CLEAN or not len(scored.fakes) or not len(scored.reals):
                continue
            auc = metrics.auc(scored.fakes, scored.reals)
            found.setdefault(kind, {}).setdefault(str(value), {})[name] = {
                "auc": auc,
                "auc_lost": metrics.auc(base.fakes, base.reals) - auc,
                "false_positive_rate": float((scored.reals >= thresholds.manipulated_from).mean()),
            }
    return found
