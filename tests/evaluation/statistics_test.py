"""Paired differences against scipy and closed forms."""

import math

import numpy as np
import pytest
import sacrebleu
from scipy import stats

from promot_t5x.evaluation import statistics

BASE = [100.0 * (i % 4 != 0) for i in range(40)]  # 30 of 40 are right


def changed(numbers):
    return [100.0 - score if i in numbers else score for i, score in enumerate(BASE)]


@pytest.mark.parametrize(
    "numbers, lost, gained, value, stderr, p",
    [
        ((), 0, 0, 0.0, 0.0, 1.0),
        ((1, 2, 3, 5, 6, 7), 6, 0, -15.0, 5.718, 0.03125),
        (range(8), 6, 2, -10.0, 6.980, 0.28906),
    ],
)
def test_right_and_wrong_answers(numbers, lost, gained, value, stderr, p):
    difference = statistics.paired(BASE, changed(numbers))
    assert (difference.lost, difference.gained, difference.n) == (lost, gained, 40)
    assert difference.value == pytest.approx(value)
    assert difference.stderr == pytest.approx(stderr, abs=5e-4)
    assert difference.p == pytest.approx(p, abs=5e-6)


def test_equal_scores_have_an_interval_of_zero():
    assert statistics.paired(BASE, BASE).interval == (0.0, 0.0)


def test_45_lost_and_20_gained_of_500():
    first = [100.0] * 45 + [0.0] * 20 + [100.0] * 435
    second = [0.0] * 45 + [100.0] * 20 + [100.0] * 435
    assert statistics.paired(first, second).interval == pytest.approx((-8.1, -1.9), abs=0.05)


def test_graded_scores_as_scipy_has_them():
    rng = np.random.default_rng(0)
    first, second = rng.uniform(0, 100, 30), rng.uniform(0, 100, 30)
    difference = statistics.paired(first, second)
    expected = stats.ttest_rel(second, first)
    assert difference.p == pytest.approx(expected.pvalue)
    assert difference.value / difference.stderr == pytest.approx(expected.statistic)


def test_one_example_has_no_error_bar():
    difference = statistics.paired([0.0], [100.0])
    assert (difference.value, difference.stderr, difference.interval, difference.p) == (100.0, None, None, None)


@pytest.mark.parametrize("first, second", [([], []), ([1.0], [1.0, 2.0])])
def test_scores_that_are_no_pairs(first, second):
    with pytest.raises(ValueError, match="one of each"):
        statistics.paired(first, second)


def test_guesses_alone_are_neither_lost_nor_gained():
    rng = np.random.default_rng(0)
    n, choices = 200_000, 4
    is_known, guesses = rng.random(n) < 0.4, rng.random((2, n)) < 1 / choices
    first, second = (np.where(is_known, True, guess) for guess in guesses)
    lost, gained = int((first & ~second).sum()), int((~first & second).sum())
    adjusted = statistics.chance_adjusted(lost, gained, n, (first.mean(), second.mean()), choices)
    # Knowledge that both share is not independent, so a part of the transitions by chance is left: u/k (1 - 1/k) in
    # truth, u^2/k (1 - 1/k) in the model, u = 0.6 the share that is not known.
    left = n * (0.6 - 0.6**2) * (1 / choices) * (1 - 1 / choices)
    assert adjusted == pytest.approx((left, left), rel=0.03)
    with pytest.raises(ValueError, match="at least 2"):
        statistics.chance_adjusted(1, 1, 10, (0.5, 0.5), choices=1)


def test_holm_steps_down():
    # Of five sorted p-values the factors are 5, 4, 3, 2, 1, and none may be below the one before.
    assert statistics.holm([0.2, 0.001, 0.02, 0.03, 0.011]) == pytest.approx([0.2, 0.005, 0.06, 0.06, 0.044])
    assert statistics.holm([0.9, 0.8]) == [1.0, 1.0]


def test_bootstrap_of_a_mean_has_the_error_of_the_mean():
    rng = np.random.default_rng(1)
    first, second = rng.normal(0, 1, (400, 1)), rng.normal(0.2, 1, (400, 1))
    value, stderr, p = statistics.bootstrapped(first, second, lambda sums: sums[0] / 400)
    d = second - first
    assert value == pytest.approx(d.mean())
    assert stderr == pytest.approx(d.std(ddof=1) / math.sqrt(400), rel=0.08)
    assert p == pytest.approx(stats.ttest_1samp(d[:, 0], 0).pvalue, abs=0.02)


def test_bleu_is_sacrebleus():
    targets = [
        "the cat sat on the mat",
        "a dog ran over the hill",
        "it is raining again today",
        "we like the old house",
    ]
    first = ["the cat sat on a mat", "the dog ran over the hill", "it rains again today", "we like the old house"]
    second = ["cat on the mat sat", "a dog ran up the hill", "it is raining today", "they like an old house"]
    difference = statistics.paired_bleu(targets, first, second, "13a")
    a, b = (sacrebleu.corpus_bleu(predictions, [targets]).score for predictions in (first, second))
    assert difference.value == pytest.approx(b - a)
    assert difference.lost >= 3 and difference.stderr > 0


def test_examples_are_matched_whatever_their_order():
    first = [("a", 0.0), ("b", 1.0), ("a", 1.0)]
    assert statistics.matched(first, first[::-1]) == ([0, 1, 2], [2, 1, 0])
    assert statistics.matched(first, [("a", 0.5), ("c", 0.0)]) == ([0], [0])
