"""How well scores tell fakes from reals: the figures of the field, in NumPy alone.

`fakes` and `reals` are scores (n,) and (m,), higher means more manipulated. Ties count half, as in the trapezoid rule.
Where a figure depends on how many reals there are for each fake (ECE, Brier score, average precision, accuracy), reals and
fakes count half each, so that a set with four fakes to a real can be compared with one of even numbers.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import numpy.typing as npt

Scores = npt.NDArray[np.float64] | npt.NDArray[np.float32]
Values = npt.NDArray[np.float64]
Curve = tuple[Values, Values]
Figure = Callable[[Values, Values], Values]
"""Takes how often each fake (k, n) and each real (k, m) was drawn in k resamples, and returns the figure's values, (k,)."""
ROUNDS = 2000
BLOCK = 1_000_000
"""So many numbers a matrix of resamples may hold at once."""


def auc(fakes: Scores, reals: Scores) -> float:
    """The chance that a fake scores above a real: the area under the ROC curve, 0 to 1. Raises ValueError on an empty side."""
    _both(fakes, reals)
    order = np.sort(reals)
    below, upto = np.searchsorted(order, fakes, "left"), np.searchsorted(order, fakes, "right")
    return float((below + upto).sum() / (2 * len(fakes) * len(reals)))


def auc_interval(
    fakes: Scores,
    reals: Scores,
    *,
    seed: int,
    people: tuple[Sequence[str], Sequence[str]] | None = None,
    rounds: int = ROUNDS,
    level: float = 0.95,
) -> tuple[float, float]:
    """The bootstrap interval of the AUC: percentiles over seeded resamples (see `bootstrap`)."""
    found = bootstrap(fakes, reals, {"auc": auc_drawn(fakes, reals)}, seed=seed, people=people, rounds=rounds)
    return interval(found["auc"], level)


def bootstrap(
    fakes: Scores,
    reals: Scores,
    figures: Mapping[str, Figure],
    *,
    seed: int,
    people: tuple[Sequence[str], Sequence[str]] | None = None,
    rounds: int = ROUNDS,
) -> dict[str, Values]:
    """Of each figure its values in `rounds` seeded resamples, (rounds,): all figures are of the same resamples, and sets of the same
    people in the same order are resampled alike, so differences between them are paired.

    Stratified: fakes and reals are drawn apart. With `people` (an identity for each fake and for each real) whole
    identities are drawn with all their crops, because several crops of one person are not independent: wider, and true.
    """
    _both(fakes, reals)
    rng = np.random.default_rng(seed)
    n, m = len(fakes), len(reals)
    who = None if people is None else np.unique(np.concatenate([np.asarray(people[0]), np.asarray(people[1])]), return_inverse=True)[1]
    rows = max(1, min(rounds, BLOCK // (n + m)))  # a matrix of all rounds could outgrow the memory
    found: dict[str, list[Values]] = {name: [] for name in figures}
    done = 0
    while done < rounds:
        if who is None:
            each = [(_drawn(rng, n, 1), _drawn(rng, m, 1)) for _ in range(rows)]
            fake, real = (np.concatenate(side) for side in zip(*each, strict=True))
        else:
            drawn = _drawn(rng, int(who.max()) + 1, rows)
            fake, real = drawn[:, who[:n]], drawn[:, who[n:]]
        some = (fake.sum(axis=1) > 0) & (real.sum(axis=1) > 0)  # a draw of people who have only one side says nothing
        for name, figure in figures.items():
            found[name].append(figure(fake[some], real[some]))
        done += int(some.sum())
    return {name: np.concatenate(parts)[:rounds] for name, parts in found.items()}


def sums_drawn(table: Values, *, seed: int, rounds: int = ROUNDS) -> Values:
    """The sums of a table's columns (people, columns) in seeded resamples of its people, (rounds, columns)."""
    rng, rows = np.random.default_rng(seed), max(1, BLOCK // len(table))
    return np.concatenate([_drawn(rng, len(table), min(rows, rounds - done)) @ table for done in range(0, rounds, rows)])


def interval(values: Values, level: float = 0.95) -> tuple[float, float]:
    """The percentiles between which a share `level` of a bootstrap's values lies."""
    low, high = np.quantile(values, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def rate_interval(rate: float, values: Values, people: int) -> tuple[float, float]:
    """The interval of a rate from its bootstrap; where it is 0 or 1 every resample repeats it, and the exact bound stands instead."""
    if rate in (0, 1):
        return (0.0, none_of(people)) if rate == 0 else (1 - none_of(people), 1.0)
    return interval(values)


def none_of(people: int, level: float = 0.95) -> float:
    """The largest rate at which none of so many people would still be no surprise: the one-sided bound of Clopper and Pearson (1934)."""
    return float(1 - (1 - level) ** (1 / people))


def auc_drawn(fakes: Scores, reals: Scores) -> Figure:
    """`auc` of resamples."""
    order = np.argsort(reals, kind="stable")
    below, upto = np.searchsorted(reals[order], fakes, "left"), np.searchsorted(reals[order], fakes, "right")

    def figure(fake: Values, real: Values) -> Values:
        heap = np.pad(np.cumsum(real[:, order], axis=1), ((0, 0), (1, 0)))
        return np.asarray((fake * (heap[:, below] + heap[:, upto])).sum(axis=1) / (2 * fake.sum(axis=1) * real.sum(axis=1)))

    return figure


def tpr_drawn(fakes: Scores, reals: Scores, target: float = 0.01) -> Figure:
    """`tpr_at_fpr` of resamples."""
    steps = np.unique(np.concatenate([fakes, reals]))[::-1]
    own, others = (np.searchsorted(-steps, -np.asarray(side)) for side in (fakes, reals))

    def figure(fake: Values, real: Values) -> Values:
        tpr, fpr = _running(fake, own, len(steps)), _running(real, others, len(steps))
        return np.asarray(np.where(fpr <= target, tpr, 0.0).max(axis=1))

    return figure


def ece_drawn(fakes: Scores, reals: Scores, bins: int = 15) -> Figure:
    """`ece` of resamples. A resample is rougher than its sample, and what is rough counts as error: the interval leans upward."""
    sides = [np.clip(np.asarray(side, np.float64), 0, 1) for side in (fakes, reals)]
    own, others = (np.eye(bins)[np.minimum((side * bins).astype(int), bins - 1)] for side in sides)
    gap, score = own * (1 - sides[0])[:, None], others * sides[1][:, None]

    def figure(fake: Values, real: Values) -> Values:
        of_fakes, of_reals = fake @ gap / fake.sum(axis=1)[:, None], real @ score / real.sum(axis=1)[:, None]
        return np.asarray(np.abs(of_fakes - of_reals).sum(axis=1) / 2)

    return figure


def share_drawn(reals: Scores, threshold: float) -> Figure:
    """The share of the reals at or above a threshold, of resamples."""
    called = (np.asarray(reals, np.float64) >= threshold).astype(np.float64)
    return lambda fake, real: np.asarray(real @ called / real.sum(axis=1))


def roc(fakes: Scores, reals: Scores) -> Curve:
    """False and true positive rates at every threshold, from (0, 0) to (1, 1)."""
    _both(fakes, reals)
    scores = np.concatenate([fakes, reals]).astype(np.float64)
    fake = np.concatenate([np.ones(len(fakes)), np.zeros(len(reals))])
    order = np.argsort(-scores, kind="stable")
    last = np.append(np.diff(scores[order]) != 0, True)  # equal scores are one step
    tpr, fpr = np.cumsum(fake[order])[last] / len(fakes), np.cumsum(1 - fake[order])[last] / len(reals)
    return np.concatenate([[0.0], fpr]), np.concatenate([[0.0], tpr])


def average_precision(fakes: Scores, reals: Scores) -> float:
    """Average precision at even odds: the precision at every threshold, weighted by the fakes it adds."""
    fpr, tpr = roc(fakes, reals)
    precision = tpr[1:] / (tpr[1:] + fpr[1:])
    return float((np.diff(tpr) * precision).sum())


def eer(fakes: Scores, reals: Scores) -> float:
    """The equal error rate: where false positives and misses are as frequent, on the straight lines between thresholds."""
    fpr, tpr = roc(fakes, reals)
    gap = fpr - (1 - tpr)
    after = int(np.argmax(gap >= 0))
    before = max(0, after - 1)
    part = 0.0 if gap[after] == gap[before] else -gap[before] / (gap[after] - gap[before])
    return float(fpr[before] + part * (fpr[after] - fpr[before]))


def tpr_at_fpr(fakes: Scores, reals: Scores, target: float = 0.01) -> float:
    """The largest share of fakes found by a threshold that calls at most `target` of the reals fake."""
    fpr, tpr = roc(fakes, reals)
    return float(tpr[fpr <= target].max())


def accuracy(fakes: Scores, reals: Scores, threshold: float) -> float:
    """The share judged rightly by `score >= threshold` at even odds: the mean of both sides' shares."""
    _both(fakes, reals)
    return float(((fakes >= threshold).mean() + (reals < threshold).mean()) / 2)


def brier(fakes: Scores, reals: Scores) -> float:
    """The mean squared error of scores read as probabilities, at even odds; .25 is a coin."""
    _both(fakes, reals)
    return float((((1 - fakes) ** 2).mean() + (reals**2).mean()) / 2)


def reliability(fakes: Scores, reals: Scores, bins: int = 15) -> list[tuple[float, float, float]]:
    """For each bin of equal width that holds anything: (mean score, share of fakes, weight), at even odds; weights sum to 1."""
    _both(fakes, reals)
    scores = np.clip(np.concatenate([fakes, reals]).astype(np.float64), 0, 1)
    fake = np.concatenate([np.ones(len(fakes)), np.zeros(len(reals))])
    weight = np.where(fake == 1, 0.5 / len(fakes), 0.5 / len(reals))
    which = np.minimum((scores * bins).astype(int), bins - 1)
    found = []
    for number in range(bins):
        inside = which == number
        if inside.any():
            share = float(weight[inside].sum())
            found.append((float((weight * scores)[inside].sum()) / share, float((weight * fake)[inside].sum()) / share, share))
    return found


def ece(fakes: Scores, reals: Scores, bins: int = 15) -> float:
    """The expected calibration error: how far score and share of fakes lie apart, over bins of equal width (Guo et al. 2017)."""
    return float(sum(weight * abs(score - share) for score, share, weight in reliability(fakes, reals, bins)))


def ece_by_chance(fakes: Scores, reals: Scores, bins: int = 15, *, seed: int, rounds: int = 200) -> float:
    """The calibration error that perfectly calibrated scores would show with so many fakes and reals: what of `ece` may be chance.

    The mean of `calibrated_eces` with as many as are given.
    """
    return float(np.mean(calibrated_eces(fakes, reals, (len(fakes), len(reals)), bins, seed=seed, rounds=rounds)))


def calibrated_eces(fakes: Scores, reals: Scores, counts: tuple[int, int], bins: int = 15, *, seed: int, rounds: int = 200) -> list[float]:
    """The calibration errors of seeded draws of so many fakes and reals from perfectly calibrated scores that are spread as these.

    Drawn from the even-odds mixture m(s) of those given, fakes with chance proportional to s m(s) and reals to (1 - s) m(s), which
    makes the score the true share of fakes. Draws are independent, crops of one person are not: with several of each, chance does more.
    """
    _both(fakes, reals)
    rng = np.random.default_rng(seed)
    scores = np.clip(np.concatenate([fakes, reals]).astype(np.float64), 1e-9, 1 - 1e-9)  # all 0 or all 1 have chances too
    weight = np.concatenate([np.full(len(fakes), 0.5 / len(fakes)), np.full(len(reals), 0.5 / len(reals))])
    fake, real = scores * weight, (1 - scores) * weight
    found = []
    for _ in range(rounds):
        drawn_fakes = rng.choice(scores, size=counts[0], p=fake / fake.sum())
        drawn_reals = rng.choice(scores, size=counts[1], p=real / real.sum())
        found.append(ece(drawn_fakes, drawn_reals, bins))
    return found


def risk_coverage(fakes: Scores, reals: Scores, points: int = 50) -> list[tuple[float, float]]:
    """(coverage, risk) at even odds: the share judged when the least sure are left out, and the share of those judged wrongly.

    Judged by `score >= .5`, as a probability says; sure means far from .5.
    """
    _both(fakes, reals)
    scores = np.concatenate([fakes, reals]).astype(np.float64)
    fake = np.concatenate([np.ones(len(fakes)), np.zeros(len(reals))]) == 1
    weight = np.where(fake, 0.5 / len(fakes), 0.5 / len(reals))
    order = np.argsort(-np.abs(scores - 0.5), kind="stable")
    judged = np.cumsum(weight[order])
    wrong = np.cumsum((weight * ((scores >= 0.5) != fake))[order])
    some = np.unique(np.linspace(1, len(scores), min(points, len(scores))).round().astype(int)) - 1
    return [(float(judged[k]), float(wrong[k] / judged[k])) for k in some]


def judged(fakes: Scores, reals: Scores, authentic_below: float, manipulated_from: float) -> tuple[float, float | None]:
    """Coverage and risk of the verdicts at even odds: the share outside the uncertain band, and the share of it judged wrongly (None
    when nothing is)."""
    _both(fakes, reals)
    right = ((fakes >= manipulated_from).mean() + ((reals < authentic_below) & (reals < manipulated_from)).mean()) / 2
    wrong = (((fakes < authentic_below) & (fakes < manipulated_from)).mean() + (reals >= manipulated_from).mean()) / 2
    return float(right + wrong), float(wrong / (right + wrong)) if right + wrong else None


def _drawn(rng: np.random.Generator, count: int, rows: int) -> Values:
    """How often each of `count` is drawn when as many are drawn with replacement, (rows, count)."""
    which = rng.integers(count, size=(rows, count)) + count * np.arange(rows)[:, None]
    return np.bincount(which.ravel(), minlength=rows * count).reshape(rows, count).astype(np.float64)


def _running(drawn: Values, step: npt.NDArray[np.intp], steps: int) -> Values:
    """The share of what was drawn that has come by each step, (k, steps); `step` (n,) says with which each comes."""
    order = np.argsort(step, kind="stable")
    heap = np.pad(np.cumsum(drawn[:, order], axis=1), ((0, 0), (1, 0)))
    return np.asarray(heap[:, np.searchsorted(step[order], np.arange(steps), "right")] / heap[:, -1:])


def _both(fakes: Scores, reals: Scores) -> None:
    if not len(fakes) or not len(reals):
        raise ValueError("Both fakes and reals are needed.")
