"""Averages against numpy, and means of means."""

import numpy as np
import pytest

from promot_t5x.reports import averages

RNG = np.random.default_rng(0)
VALUES = 100 * RNG.random((4, 3))  # task, seed
ROWS = [{"task": t, "seed": s, "value": float(VALUES[t, s]), "note": "n"} for s in range(3) for t in range(4)]


def test_groups_are_averaged_over_everything_else():
    tasks = averages.summarize(ROWS, ("task",))
    assert [set(task) for task in tasks] == [{"task", "value", "std", "n"}] * 4
    assert [task["task"] for task in tasks] == [0, 1, 2, 3] and {task["n"] for task in tasks} == {3}
    np.testing.assert_allclose([task["value"] for task in tasks], VALUES.mean(axis=1), rtol=1e-14)
    np.testing.assert_allclose([task["std"] for task in tasks], VALUES.std(axis=1, ddof=1), rtol=1e-14)


def test_averages_are_rows_again():
    of_seeds = averages.overall(averages.summarize(ROWS, ("seed",)))
    assert of_seeds["value"] == pytest.approx(VALUES.mean()) and of_seeds["n"] == 3
    assert of_seeds["std"] == pytest.approx(VALUES.mean(axis=0).std(ddof=1))


def test_what_is_unknown_stays_unknown():
    rows = [{"k": 1, "error": 2.0}, {"k": 1, "error": None}, {"k": 4, "error": 3.0}]
    assert averages.summarize(rows, ("k",), value="error") == [
        {"k": 1, "value": None, "std": None, "n": 2},
        {"k": 4, "value": 3.0, "std": None, "n": 1},
    ]
    assert averages.overall([]) == {"value": None, "std": None, "n": 0}


def test_several_keys_group_together_in_the_order_of_first_appearance():
    groups = averages.grouped(ROWS[::-1], ("seed", "task"))
    assert list(groups) == [(s, t) for s in (2, 1, 0) for t in (3, 2, 1, 0)]
    assert [members for members in groups.values()] == [[row] for row in ROWS[::-1]]
