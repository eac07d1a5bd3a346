"""Differences between two checkpoints' scores on the same examples.

Both checkpoints answered the same N questions, so the difference is estimated from the N differences of an example's
two scores. What both find easy or hard then cancels, and the standard error is that of the change alone.
"""

import collections
import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from promot_t5x.tasks.metrics import NORMAL_97_5

_RESAMPLES = 1000


@dataclasses.dataclass(frozen=True)
class Difference:
    """The second checkpoint's score minus the first's, in percent.

    Attributes:
      value: the difference.
      stderr: its standard error over examples; None for fewer than two.
      n: number of examples.
      lost: examples whose score is lower with the second checkpoint; of right and wrong answers, right -> wrong.
      gained: examples whose score is higher.
      p: two-sided p-value of no difference; None where `stderr` is.
    """

    value: float
    stderr: float | None
    n: int
    lost: int
    gained: int
    p: float | None

    @property
    def interval(self) -> tuple[float, float] | None:
        """The 95 % interval of the value; None without a standard error."""
        return interval(self.value, self.stderr)


def interval(value: float | None, stderr: float | None) -> tuple[float, float] | None:
    """The 95 % interval, value -+ 1.96 stderr; None if one of the two is unknown.

    >>> interval(3.0, 1.0)
    (1.040036, 4.959964)
    """
    if value is None or stderr is None:
        return None
    return value - NORMAL_97_5 * stderr, value + NORMAL_97_5 * stderr


def paired(first: Sequence[float], second: Sequence[float]) -> Difference:
    """The difference of the means of two scores per example.

    With d = second - first, value = mean(d) and stderr = sd(d) / sqrt(N), sd with N - 1. If all scores are 0 or 100,
    p is that of the exact McNemar test (the lost among lost + gained are binomial with 1/2), else of the paired t-test.

    Args:
      first, second: N scores from 0 to 100, of the same examples in the same order.

    Raises:
      ValueError: different numbers of scores, or none.

    >>> difference = paired([100.0, 100.0, 0.0, 100.0], [100.0, 0.0, 0.0, 0.0])
    >>> difference.value, difference.lost, difference.gained, difference.p
    (-50.0, 2, 0, 0.5)
    """
    if len(first) != len(second) or not len(first):
        raise ValueError(f"There are {len(first)} and {len(second)} scores; expected one of each for every example.")
    first_N, second_N = np.asarray(first, float), np.asarray(second, float)
    d_N = second_N - first_N
    lost, gained, n = int((d_N < 0).sum()), int((d_N > 0).sum()), len(d_N)
    value = float(d_N.mean())
    if n < 2:
        return Difference(value, None, n, lost, gained, None)
    stderr = float(d_N.std(ddof=1) / math.sqrt(n))
    is_right_or_wrong = set(np.concatenate([first_N, second_N]).tolist()) <= {0.0, 100.0}
    return Difference(value, stderr, n, lost, gained, _p_value(value, stderr, n, lost, gained, is_right_or_wrong))


def _p_value(value: float, stderr: float, n: int, lost: int, gained: int, is_right_or_wrong: bool) -> float:
    from scipy import stats  # slow to import

    if not lost + gained:
        return 1.0
    if is_right_or_wrong:
        return float(stats.binomtest(lost, lost + gained, 0.5).pvalue)
    return float(2 * stats.t.sf(abs(value) / stderr, n - 1)) if stderr else 0.0


def chance_adjusted(lost: int, gained: int, n: int, accuracies: Sequence[float], choices: int) -> tuple[float, float]:
    """(lost, gained) without those that random guessing alone explains.

    Model: an example is known, or one of k choices is guessed (Harmon et al. 2025, arXiv 2510.17776). Then of accuracy
    a a share (1 - a) / (k - 1) is guessed right, and with independent guesses a share (1 - a_1) (1 - a_2) / (k - 1) of
    the examples is guessed right by one checkpoint and wrong by the other, in either direction.

    Args:
      lost, gained, n: see `Difference`.
      accuracies: of the two checkpoints, from 0 to 1.
      choices: the number k of choices, at least 2.

    Returns:
      Numbers of examples, at least 0.

    >>> chance_adjusted(20, 12, 100, (0.8, 0.7), choices=2)
    (14.0, 6.0)
    """
    if choices < 2:
        raise ValueError(f"There are {choices} choices to guess from; expected at least 2.")
    by_chance = round(n * (1 - accuracies[0]) * (1 - accuracies[1]) / (choices - 1), 9)
    return max(lost - by_chance, 0.0), max(gained - by_chance, 0.0)


def holm(p_values: Sequence[float | None]) -> list[float | None]:
    """Holm's (1979) adjusted p-values: of m sorted ones, p_(i) becomes max over j <= i of min(1, (m - j + 1) p_(j)).

    Args:
      p_values: one per comparison; None where there is no test, which does not count.

    >>> holm([0.01, 0.04, None, 0.03])
    [0.03, 0.06, None, 0.06]
    """
    tested = sorted((p, number) for number, p in enumerate(p_values) if p is not None)
    adjusted: list[float | None] = [None] * len(p_values)
    largest = 0.0
    for rank, (p, number) in enumerate(tested):
        largest = max(largest, min(1.0, (len(tested) - rank) * p))
        adjusted[number] = largest
    return adjusted


def bootstrapped(
    first: np.ndarray, second: np.ndarray, score: Callable[[np.ndarray], float], seed: int = 0
) -> tuple[float, float, float]:
    """The paired bootstrap of a corpus metric (Koehn 2004): both checkpoints are scored on the same drawn examples.

    Args:
      first, second: sufficient statistics of each example, NxS, whose sums determine the metric.
      score: the metric of such sums, S.
      seed: of the draws.

    Returns:
      (difference on all examples, its standard error, two-sided p-value): p is twice the share of draws in which the
      difference has the other sign or is 0, at most 1.
    """
    rng = np.random.default_rng(seed)
    n = len(first)
    difference = score(second.sum(axis=0)) - score(first.sum(axis=0))
    draws = np.empty(_RESAMPLES)
    for draw in range(_RESAMPLES):
        times_N = np.bincount(rng.integers(n, size=n), minlength=n)
        draws[draw] = score(times_N @ second) - score(times_N @ first)
    other_sign = np.mean(draws <= 0) if difference > 0 else np.mean(draws >= 0)
    return difference, float(draws.std(ddof=1)), float(min(1.0, 2 * other_sign))


def paired_bleu(targets: Sequence[str], first: Sequence[str], second: Sequence[str], tokenizer: str) -> Difference:
    """The difference of two checkpoints' corpus BLEU, by the paired bootstrap with 1,000 draws.

    Args:
      targets: N references.
      first, second: N predictions each.
      tokenizer: one of sacrebleu's.

    >>> round(paired_bleu(["the cat sat down here"] * 2, ["the cat sat down here"] * 2, ["a dog"] * 2, "13a").value)
    -100
    """
    import sacrebleu  # slow to import

    scorer = sacrebleu.BLEU(tokenize=tokenizer, effective_order=True)
    orders = scorer.max_ngram_order

    def statistics(predictions: Sequence[str]) -> tuple[np.ndarray, list[float]]:
        scored = [scorer.corpus_score([text], [[target]]) for text, target in zip(predictions, targets, strict=True)]
        return np.array([[*s.counts, *s.totals, s.sys_len, s.ref_len] for s in scored]), [s.score for s in scored]

    def bleu(sums_S: np.ndarray) -> float:
        *by_order, sys_len, ref_len = map(int, sums_S)
        counts, totals = by_order[:orders], by_order[orders:]
        return sacrebleu.BLEU.compute_bleu(counts, totals, sys_len, ref_len, smooth_method="exp").score

    (first_NxS, first_N), (second_NxS, second_N) = statistics(first), statistics(second)
    d_N = np.asarray(second_N) - np.asarray(first_N)
    n, lost, gained = len(d_N), int((d_N < 0).sum()), int((d_N > 0).sum())
    value, stderr, p = bootstrapped(first_NxS, second_NxS, bleu)
    return Difference(value, stderr, n, lost, gained, p) if n > 1 else Difference(value, None, n, lost, gained, None)


def corpus_bleu(targets: Sequence[str], predictions: Sequence[str], tokenizer: str) -> float:
    """Corpus BLEU as `paired_bleu` computes it.

    >>> corpus_bleu(["the cat sat down here"], ["the cat sat down here"], "13a")
    100.0
    """
    import sacrebleu

    return min(sacrebleu.corpus_bleu(predictions, [targets], tokenize=tokenizer).score, 100.0)


def matched(first: Sequence[Any], second: Sequence[Any]) -> tuple[list[int], list[int]]:
    """Which example of one evaluation is which of another: by identity and occurrence, never by position.

    Args:
      first, second: for each example (identity, order): identities are equal for the same prompt and target; several
        examples of one identity are matched in the order of `order`, so that the result does not depend on the order of
        either evaluation.

    Returns:
      Positions in `first` and in `second` of the examples that both have, in the order of `first`.

    >>> matched([("a", 0), ("b", 0), ("a", 1)], [("a", 1), ("a", 0)])
    ([0, 2], [1, 0])
    """

    def occurrences(examples: Sequence[Any]) -> dict[Any, int]:
        seen = collections.Counter()
        numbered: dict[Any, int] = {}
        for position in sorted(range(len(examples)), key=lambda position: examples[position][1]):
            identity = examples[position][0]
            numbered[identity, seen[identity]] = position
            seen[identity] += 1
        return numbered

    of_first, of_second = occurrences(first), occurrences(second)
    common = sorted((of_first[key], of_second[key]) for key in of_first if key in of_second)
    return [a for a, _ in common], [b for _, b in common]
