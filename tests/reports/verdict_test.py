"""promot_t5x.reports.verdict: the three conditions at their margins, worked out by hand."""

import pytest

from promot_t5x.recipes import methods
from promot_t5x.reports import comparison, verdict
from promot_t5x.reports.method_rows import Compared
from tests.reports.runs import run

HEADLINE = Compared(*methods.HEADLINE)


def _score(method, target, mean, rate=1e-3, seed=0):
    """A run whose two in-context tasks have the given mean."""
    return run(method, rate, seed, target, {"a": mean - 1, "b": mean + 1})


def _verdict(promot_target, promot_mean, tuned_target=100.0, tuned_mean=70.0):
    runs = [
        _score("pretrained", None, 90.0, None),
        _score("fine_tuning", tuned_target, tuned_mean),
        _score("promot", promot_target, promot_mean),
    ]
    (outcome,) = verdict.verdict(comparison.compare(runs, {}, {}, headline=HEADLINE))
    return outcome


@pytest.mark.parametrize(
    ("target", "mean", "kept", "gained", "nearer"),
    [
        (100, 88, True, True, True),
        (98, 88, True, True, True),  # exactly at the margin
        (97, 88, False, True, True),
        (100, 75, True, True, False),
        (100, 74, True, False, False),
        (100, 60, True, False, False),
        (100, 95, True, True, True),  # better than before counts as near
    ],
)
def test_verdict(target, mean, kept, gained, nearer):
    judged = _verdict(target, mean)
    assert judged.target_difference == pytest.approx(target - 100)
    assert judged.in_context_difference == pytest.approx(mean - 70)
    assert (judged.target_kept, judged.in_context_gained, judged.nearer_to_pretrained) == (
        kept,
        gained,
        nearer,
    )
    assert judged.holds == (kept and gained and nearer)


def test_verdict_takes_shared_learning_rates_in_rising_order_and_misses_nothing_silently():
    runs = [_score(method, 100.0, 50.0, rate) for rate in (1e-3, 1e-4, 3e-4) for method in ("promot", "fine_tuning")]
    runs.append(_score("promot", 100.0, 50.0, 1e-2))
    comparisons = verdict.verdict(comparison.compare(runs, {}, {}, headline=HEADLINE))
    assert [outcome.learning_rate for outcome in comparisons] == ["0.0001", "0.0003", "0.001"]
    assert comparisons[0].nearer_to_pretrained is None and not comparisons[0].holds
    assert verdict.verdict(comparison.compare(runs[:1], {}, {}, headline=HEADLINE)) == []
    assert verdict.verdict(comparison.compare(runs, {}, {})) == [], "nobody says what to compare"
