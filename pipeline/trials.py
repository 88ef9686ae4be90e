"""What a trial of a candidate against the champion found: the record that the gate judges by and the picture is drawn from."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Difference:
    """Candidate minus champion: the estimate, and what 95 % of the draws are above and below. `champion` is None where there is none."""

    candidate: float
    champion: float | None
    difference: float
    low: float
    high: float


@dataclass(frozen=True)
class Trial:
    """Everything that was measured; see `gate` for what is made of it."""

    auc: Difference
    """The mean over the sets."""
    tpr: Difference
    """Of all fakes, at 1 % false positives among all reals under all conditions."""
    per_set: dict[str, Difference]
    """AUC of each set."""
    ece: tuple[float, float | None]
    """Candidate's and champion's, all clean fakes against all clean reals."""
    false_positives: tuple[float, float | None]
    groups: dict[str, tuple[int, float, float | None]]
    """`gender: female` -> distinct photographs, the candidate's false positive rate, the champion's."""
    curves: dict[str, list[tuple[float, float]]]
    people: int
    photographs: int
    judgements: int
