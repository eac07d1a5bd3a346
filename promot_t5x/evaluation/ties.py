"""Choices with equal scores, such as two that the vocabulary writes with the same tokens: none is the model's answer.

Every metric of a task is then its mean over draws in which each such example answers with one of its best choices at
random.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from promot_t5x.evaluation.answering import Answer

_FEWEST_DRAWS = 20  # for metrics that are no mean over examples
_MOST_DRAWS = 840  # the least common multiple of 1 to 8


def best_choices(choices: Sequence[str], answer: Answer) -> list[str]:
    """The choices whose score is that of the answer, in order; only the answer's output if it was generated.

    >>> best_choices(["{", "}", "x"], Answer("{", (-1.0, -1.0, -2.0)))
    ['{', '}']
    """
    if answer.scores is None:
        return [answer.output]
    score_of_output = answer.scores[choices.index(answer.output)]
    best = [choice for choice, score in zip(choices, answer.scores, strict=True) if score == score_of_output]
    return best or [answer.output]  # nan equals nothing


def drawn(predictions: Sequence[Any], tied: Mapping[int, Sequence[Any]]) -> Iterator[list[Any]]:
    """The predictions of one draw after the other; a single one if there are no ties.

    Over all draws, each of an example's tied predictions occurs equally often, so the mean over the draws of a metric
    that is itself a mean over examples is the expected one, without sampling error. (If the numbers of tied predictions
    have no common multiple up to 840, some occur once more than others.) Other metrics' means are estimates.

    Args:
      predictions: one per example.
      tied: for the number of each example with ties, all its predictions.

    >>> sorted(set(map(tuple, drawn(["a", "b"], {0: ["a", "A"]}))))
    [('A', 'b'), ('a', 'b')]
    """
    multiple = math.lcm(*map(len, tied.values()))
    draws = 1 if not tied else _MOST_DRAWS if multiple > _MOST_DRAWS else multiple * -(-_FEWEST_DRAWS // multiple)
    rng = np.random.default_rng(0)
    picks = {
        number: rng.permutation((np.arange(draws) + rng.integers(len(several))) % len(several))
        for number, several in tied.items()
    }
    for draw in range(draws):
        answers = list(predictions)
        for number, several in tied.items():
            answers[number] = several[picks[number][draw]]
        yield answers
