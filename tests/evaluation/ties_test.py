"""promot_t5x.evaluation.ties: every tied prediction is drawn equally often, and independently of the others."""

import collections
import math

import pytest

from promot_t5x.evaluation import ties
from promot_t5x.evaluation.answering import Answer


@pytest.mark.parametrize("counts", [(2,), (2, 2, 3), (4, 3, 2), (5, 7)])
def test_every_tied_prediction_occurs_equally_often(counts):
    tied = {2 * number: [f"{number}{i}" for i in range(count)] for number, count in enumerate(counts)}
    draws = list(ties.drawn(["x"] * (2 * len(counts)), tied))
    assert len(draws) >= 20 and all(draw[1::2] == ["x"] * len(counts) for draw in draws)
    for number, several in tied.items():
        assert collections.Counter(draw[number] for draw in draws) == dict.fromkeys(several, len(draws) / len(several))


def test_ties_are_broken_independently():
    draws = list(ties.drawn([0] * 200, {number: (0, 1) for number in range(200)}))
    assert all(abs(sum(draw) - 100) < 5 * math.sqrt(50) for draw in draws)
    assert len(set(map(tuple, draws))) == len(draws)


def test_without_ties_nothing_is_drawn_and_with_many_no_more_than_840():
    assert list(ties.drawn(["a", "b"], {})) == [["a", "b"]]
    draws = list(ties.drawn([0, 0], {0: range(29), 1: range(31)}))
    occurrences = collections.Counter(draw[0] for draw in draws).values()
    assert len(draws) == 840 and max(occurrences) - min(occurrences) == 1


def test_scores_that_are_not_numbers_are_no_ties():
    assert ties.best_choices(["a", "b"], Answer("a", (math.nan, math.nan))) == ["a"]
    assert ties.best_choices([], Answer("any text")) == ["any text"]
