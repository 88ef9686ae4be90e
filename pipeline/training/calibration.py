"""From raw logits to scores that mean something and thresholds that were measured, all on validation faces."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from pipeline.card import Thresholds

Values = npt.NDArray[np.float64] | npt.NDArray[np.float32]
TARGET_FPR = 0.01
MISSED = 0.10
COLDEST, HOTTEST = 0.05, 20.0


def scores(logits: Values, temperature: float) -> npt.NDArray[np.float64]:
    """Calibrated probabilities of manipulation, 0 to 1: sigmoid(logit / temperature)."""
    return np.asarray(0.5 * (1.0 + np.tanh(0.5 * np.asarray(logits, np.float64) / temperature)), np.float64)


def loss(fakes: Values, reals: Values, temperature: float, bias: float = 0.0) -> float:
    """The mean negative log-likelihood of validation logits at even odds (reals and fakes count half each)."""
    f, r = ((np.asarray(v, np.float64) + bias) / temperature for v in (fakes, reals))
    return float((np.logaddexp(0, -f).mean() + np.logaddexp(0, r).mean()) / 2)


def temperature(fakes: Values, reals: Values, bias: float = 0.0) -> float:
    """The temperature with the least loss on validation logits (Guo et al. 2017), between .05 and 20.

    The loss has one minimum in log temperature's neighbourhood; a grid finds it and golden sections refine it.
    """
    grid = np.geomspace(COLDEST, HOTTEST, 61)
    best = int(np.argmin([loss(fakes, reals, t, bias) for t in grid]))
    low, high = np.log(grid[max(0, best - 1)]), np.log(grid[min(len(grid) - 1, best + 1)])
    golden = (np.sqrt(5) - 1) / 2
    while high - low > 1e-6:
        a, b = high - golden * (high - low), low + golden * (high - low)
        if loss(fakes, reals, float(np.exp(a)), bias) < loss(fakes, reals, float(np.exp(b)), bias):
            high = b
        else:
            low = a
    return float(np.exp((low + high) / 2))


def bias(fakes: Values, reals: Values) -> float:
    """What to add to every logit so that, with the best temperature, validation loss is least (Platt scaling's other half).

    Meant to be added to the last layer's bias before a version is written, so that its scores need the temperature only.
    """
    everything = np.concatenate([np.asarray(fakes, np.float64), np.asarray(reals, np.float64)])
    low, high = -float(everything.max()), -float(everything.min())
    for _ in range(4):
        grid = np.linspace(low, high, 41)
        best = int(np.argmin([loss(fakes, reals, temperature(fakes, reals, b), b) for b in grid]))
        low, high = float(grid[max(0, best - 1)]), float(grid[min(len(grid) - 1, best + 1)])
    return (low + high) / 2


def thresholds(fakes: Values, reals: Values, *, target_fpr: float = TARGET_FPR, missed: float = MISSED) -> Thresholds:
    """The two thresholds from validation scores (0 to 1).

    `manipulated_from`: the least score that at most `target_fpr` of the reals reach; with fewer reals than that can resolve,
    just above the highest of them. `authentic_below`: the score below which a share `missed` of the fakes lies, but never
    above `manipulated_from`. Between them the verdict is `uncertain`.
    """
    if not len(fakes) or not len(reals):
        raise ValueError("Both fakes and reals are needed.")
    descending = np.sort(np.asarray(reals, np.float64))[::-1]
    allowed = int(target_fpr * len(descending) + 1e-9)
    upper = 1.0 if allowed >= len(descending) else min(1.0, float(np.nextafter(descending[allowed], 2.0)))
    lower = float(np.quantile(np.asarray(fakes, np.float64), missed, method="lower"))
    return Thresholds(authentic_below=min(lower, upper), manipulated_from=upper)


def by_person(reals: Values, people: Sequence[str], manipulated_from: float) -> dict[str, float]:
    """Of real scores, how many people they are of, how many of them are called manipulated at least once, and the false-positive rate
    when everybody counts alike, however many scores are theirs."""
    _, who = np.unique(np.asarray(people), return_inverse=True)
    rates = np.bincount(who, np.asarray(reals, np.float64) >= manipulated_from) / np.bincount(who)
    return {"people": len(rates), "called_manipulated": int((rates > 0).sum()), "false_positive_rate": float(rates.mean())}
