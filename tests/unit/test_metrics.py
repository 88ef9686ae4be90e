"""The figures, against scikit-learn and against cases worked out by hand."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.training import calibration, metrics


def _two(seed: int = 1, n: int = 300, m: int = 90, gap: float = 1.2, decimals: int = 2) -> tuple[Any, Any]:
    """Overlapping scores in 0 to 1 with many ties."""
    rng = np.random.default_rng(seed)
    squeeze = lambda x: np.round(1 / (1 + np.exp(-x)), decimals)  # noqa: E731
    return squeeze(rng.normal(gap / 2, 1, n)), squeeze(rng.normal(-gap / 2, 1, m))


def _joined(fakes: Any, reals: Any) -> tuple[Any, Any, Any]:
    labels = np.concatenate([np.ones(len(fakes)), np.zeros(len(reals))])
    weights = np.concatenate([np.full(len(fakes), 0.5 / len(fakes)), np.full(len(reals), 0.5 / len(reals))])
    return labels, np.concatenate([fakes, reals]), weights


def test_ranking_figures_agree_with_scikit_learn() -> None:
    sk = pytest.importorskip("sklearn.metrics")
    fakes, reals = _two()
    labels, scores, weights = _joined(fakes, reals)
    assert metrics.auc(fakes, reals) == pytest.approx(sk.roc_auc_score(labels, scores))
    assert metrics.average_precision(fakes, reals) == pytest.approx(sk.average_precision_score(labels, scores, sample_weight=weights))
    assert metrics.brier(fakes, reals) == pytest.approx(sk.brier_score_loss(labels, scores, sample_weight=weights))
    fpr, tpr, _ = sk.roc_curve(labels, scores, drop_intermediate=False)
    ours = metrics.roc(fakes, reals)
    np.testing.assert_allclose(ours[0], fpr)
    np.testing.assert_allclose(ours[1], tpr)
    assert metrics.tpr_at_fpr(fakes, reals, 0.05) == pytest.approx(tpr[fpr <= 0.05].max())


def test_eer_lies_where_both_errors_meet() -> None:
    fakes, reals = _two(n=4000, m=4000, decimals=6)
    rate = metrics.eer(fakes, reals)
    threshold = np.quantile(reals, 1 - rate)
    assert (fakes < threshold).mean() == pytest.approx(rate, abs=2e-3)


@pytest.mark.parametrize(("fakes", "reals", "wanted"), [([0.9, 0.8], [0.1, 0.2], 0.0), ([0.1], [0.9], 1.0), ([0.5, 0.5], [0.5], 0.5)])
def test_eer_of_the_extremes(fakes: list[float], reals: list[float], wanted: float) -> None:
    assert metrics.eer(np.array(fakes), np.array(reals)) == pytest.approx(wanted)


@given(st.lists(st.integers(0, 5), min_size=1, max_size=12), st.lists(st.integers(0, 5), min_size=1, max_size=12))
def test_auc_counts_pairs_and_ties_half(fakes: list[int], reals: list[int]) -> None:
    pairs = [1.0 if f > r else 0.5 if f == r else 0.0 for f in fakes for r in reals]
    assert metrics.auc(np.array(fakes, float), np.array(reals, float)) == pytest.approx(np.mean(pairs))


def test_ece_by_hand() -> None:
    # all fakes at .7, all reals at .1: two bins with half the weight each, .3 and .1 from the truth
    assert metrics.ece(np.full(8, 0.7), np.full(2, 0.1)) == pytest.approx(0.5 * 0.3 + 0.5 * 0.1)
    assert metrics.ece(np.ones(3), np.zeros(5)) == 0


def test_ece_of_true_probabilities_is_small_and_of_exaggerated_ones_is_not() -> None:
    rng = np.random.default_rng(4)
    probability = rng.uniform(0, 1, 40_000)
    fake = rng.uniform(size=len(probability)) < probability
    assert metrics.ece(probability[fake], probability[~fake]) < 0.015
    extreme = np.clip((probability - 0.5) * 3 + 0.5, 0, 1)
    assert metrics.ece(extreme[fake], extreme[~fake]) > 0.08


def test_what_of_the_calibration_error_is_chance() -> None:
    # Given true probabilities, of few and of many
    rng = np.random.default_rng(4)
    few, many = [], []
    for n, found in ((60, few), (6000, many)):
        for _ in range(20):
            probability = rng.beta(0.8, 0.8, n)
            fake = rng.random(n) < probability
            fakes, reals = probability[fake], probability[~fake]
            found.append((metrics.ece(fakes, reals), metrics.ece_by_chance(fakes, reals, seed=1, rounds=20)))
    # Then their calibration error is what chance alone would do, and less of it where there are more
    for found in (few, many):
        errors, chances = np.mean(found, axis=0)
        assert chances == pytest.approx(errors, rel=0.25)
    assert np.mean(many, axis=0)[1] < 0.25 * np.mean(few, axis=0)[1]
    # and scores that leave nothing to chance have none
    assert metrics.ece_by_chance(np.ones(5), np.zeros(5), seed=1) == pytest.approx(0, abs=1e-6)
    assert metrics.ece_by_chance(np.zeros(5), np.zeros(5), seed=1) == pytest.approx(0.5, abs=1e-6)


def test_accuracy_counts_both_sides_alike() -> None:
    assert metrics.accuracy(np.array([0.9, 0.9, 0.9, 0.1]), np.array([0.1]), 0.5) == pytest.approx((0.75 + 1) / 2)


def test_interval_is_repeatable_and_covers() -> None:
    # Given many samples of a known AUC, the interval holds the truth about as often as it says
    big_fakes, big_reals = _two(seed=0, n=100_000, m=100_000, decimals=6)
    truth, held = metrics.auc(big_fakes, big_reals), 0
    for seed in range(60):
        fakes, reals = _two(seed=seed + 10, n=60, m=60, decimals=6)
        low, high = metrics.auc_interval(fakes, reals, seed=1, rounds=300)
        held += low <= truth <= high
    assert held >= 52
    assert metrics.auc_interval(fakes, reals, seed=1, rounds=300) == (low, high)


def test_interval_over_people_is_wider_when_crops_repeat_people() -> None:
    fakes, reals = _two(n=40, m=40)
    repeated_fakes, repeated_reals = np.repeat(fakes, 5), np.repeat(reals, 5)
    people = ([str(k // 5) for k in range(200)], [str(k // 5) for k in range(200)])
    plain = metrics.auc_interval(repeated_fakes, repeated_reals, seed=2, rounds=400)
    honest = metrics.auc_interval(repeated_fakes, repeated_reals, seed=2, rounds=400, people=people)
    assert honest[1] - honest[0] > 1.6 * (plain[1] - plain[0])


@pytest.mark.parametrize("named", [True, False])
def test_each_resample_has_the_figures_of_what_was_drawn(named: bool) -> None:
    # Given scores with ties, of a few people
    fakes, reals = _two(n=60, m=20, decimals=1)
    people = ([str(k // 6) for k in range(60)], [str(k // 2) for k in range(20)]) if named else None
    # When all are resampled at once, and each draw is noted
    figures = {
        "fake": lambda fake, real: fake,
        "real": lambda fake, real: real,
        "auc": metrics.auc_drawn(fakes, reals),
        "tpr": metrics.tpr_drawn(fakes, reals, 0.1),
        "ece": metrics.ece_drawn(fakes, reals),
        "fpr": metrics.share_drawn(reals, 0.5),
    }
    found = metrics.bootstrap(fakes, reals, figures, seed=3, people=people, rounds=40)
    # Then each figure is that of the draw
    assert len(found["auc"]) == 40
    for k in range(40):
        drawn_fakes, drawn_reals = np.repeat(fakes, found["fake"][k].astype(int)), np.repeat(reals, found["real"][k].astype(int))
        wanted = (
            metrics.auc(drawn_fakes, drawn_reals),
            metrics.tpr_at_fpr(drawn_fakes, drawn_reals, 0.1),
            metrics.ece(drawn_fakes, drawn_reals),
            (drawn_reals >= 0.5).mean(),
        )
        assert tuple(found[name][k] for name in ("auc", "tpr", "ece", "fpr")) == pytest.approx(wanted)
    if named:
        assert (found["fake"][:, ::6] == found["fake"][:, 5::6]).all(), "somebody was drawn in part"


def test_many_pictures_are_resampled_in_blocks_that_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    fakes, reals = _two(n=30, m=30)
    people = ([str(k) for k in range(30)], [str(k) for k in range(30)])
    at_once, table = metrics.auc_interval(fakes, reals, seed=2, people=people), np.eye(9)
    sums = metrics.sums_drawn(table, seed=2, rounds=50)
    monkeypatch.setattr(metrics, "BLOCK", 100)
    assert metrics.auc_interval(fakes, reals, seed=2, people=people) == at_once
    np.testing.assert_array_equal(metrics.sums_drawn(table, seed=2, rounds=50), sums)


def test_where_nothing_was_counted_the_exact_bound_stands() -> None:
    stats = pytest.importorskip("scipy.stats")
    nothing = np.zeros(50)
    assert metrics.rate_interval(0.0, nothing, 22) == (0.0, pytest.approx(stats.beta.ppf(0.95, 1, 22)))
    assert metrics.rate_interval(1.0, nothing + 1, 22) == (pytest.approx(stats.beta.ppf(0.05, 22, 1)), 1.0)
    assert metrics.rate_interval(0.5, np.linspace(0, 1, 1001), 22) == pytest.approx((0.025, 0.975))


def test_leaving_out_the_unsure_lowers_the_risk() -> None:
    fakes, reals = _two(n=2000, m=500, decimals=6)
    curve = metrics.risk_coverage(fakes, reals)
    assert curve[-1] == pytest.approx((1.0, 1 - metrics.accuracy(fakes, reals, 0.5)))
    quarter, half = (min(curve, key=lambda point: abs(point[0] - share)) for share in (0.25, 0.5))
    assert quarter[1] < half[1] < curve[-1][1]
    assert quarter[1] < curve[-1][1] / 2


def test_verdicts_outside_the_band_are_what_is_judged() -> None:
    # one fake of four is found, two are uncertain, one is missed; one real of two is cleared, the other is called fake
    fakes, reals = np.array([0.9, 0.5, 0.5, 0.1]), np.array([0.1, 0.9])
    coverage, risk = metrics.judged(fakes, reals, 0.3, 0.7)
    assert coverage == pytest.approx((0.5 + 1.0) / 2)
    assert risk == pytest.approx((0.25 + 0.5) / 2 / 0.75)
    assert metrics.judged(np.array([0.5]), np.array([0.5]), 0.3, 0.7) == (0.0, None)


def test_empty_sides_are_refused() -> None:
    with pytest.raises(ValueError, match="Both"):
        metrics.auc(np.array([]), np.array([0.5]))


def test_temperature_finds_how_far_logits_exaggerate() -> None:
    # Given logits that are three times too sure
    rng = np.random.default_rng(8)
    logits = rng.normal(0, 2, 50_000)
    fake = rng.uniform(size=len(logits)) < calibration.scores(logits, 1.0)
    # Then the temperature is three
    assert calibration.temperature(3 * logits[fake], 3 * logits[~fake]) == pytest.approx(3, rel=0.05)


def test_temperature_stays_in_bounds_when_nothing_overlaps() -> None:
    found = calibration.temperature(np.array([5.0, 6.0]), np.array([-5.0]))
    assert calibration.COLDEST <= found <= calibration.COLDEST * 1.2


def test_bias_finds_a_shift() -> None:
    rng = np.random.default_rng(8)
    logits = rng.normal(0, 2, 4000)
    fake = rng.uniform(size=len(logits)) < calibration.scores(logits, 1.0)
    assert calibration.bias(logits[fake] - 1.5, logits[~fake] - 1.5) == pytest.approx(1.5, abs=0.2)


def test_thresholds_keep_the_target_on_validation() -> None:
    fakes, reals = _two(n=1000, m=1000, decimals=6)
    found = calibration.thresholds(fakes, reals, target_fpr=0.01, missed=0.1)
    assert (reals >= found.manipulated_from).mean() == pytest.approx(0.01)
    assert (fakes < found.authentic_below).mean() == pytest.approx(0.1, abs=2e-3)
    assert found.authentic_below < found.manipulated_from


def test_few_reals_put_the_threshold_above_all_of_them() -> None:
    reals = np.array([0.2, 0.6])
    found = calibration.thresholds(np.array([0.7, 0.9]), reals)
    assert 0.6 < found.manipulated_from < 0.6001
    assert found.authentic_below == found.manipulated_from


def test_ties_at_the_threshold_are_not_called_fake() -> None:
    reals = np.array([0.4] * 50 + [0.8] * 50)
    assert (reals >= calibration.thresholds(np.array([0.9]), reals).manipulated_from).sum() == 0


def test_scores_of_huge_logits_are_finite() -> None:
    assert calibration.scores(np.array([-1e6, 0, 1e6]), 0.5).tolist() == [0.0, 0.5, 1.0]


def test_false_positives_by_person_count_everybody_alike() -> None:
    # Anna is called manipulated in one of four, Ben never
    reals = np.array([0.9, 0.1, 0.1, 0.1, 0.2])
    found = calibration.by_person(reals, ["anna"] * 4 + ["ben"], 0.9)
    assert found == {"people": 2, "called_manipulated": 1, "false_positive_rate": pytest.approx(0.125)}
