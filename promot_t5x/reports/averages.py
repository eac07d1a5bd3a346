"""Rows of scores -> means and spreads, for both `scores.json` and `comparison.json`."""

import statistics
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

UNKNOWN: Mapping[str, Any] = {"value": None, "std": None, "n": 0}

"""The average of no rows."""


def grouped(rows: Iterable[Mapping[str, Any]], by: Sequence[str]) -> dict[tuple[Any, ...], list[Mapping[str, Any]]]:
    """Groups rows that agree in the keys `by`, in the order of first appearance.

    >>> grouped([{"k": 1, "value": 10.0}, {"k": 4, "value": 30.0}, {"k": 1, "value": 20.0}], ["k"])[(1,)]
    [{'k': 1, 'value': 10.0}, {'k': 1, 'value': 20.0}]
    """
    groups: dict[tuple[Any, ...], list[Mapping[str, Any]]] = {}
    for row in rows:
        groups.setdefault(tuple(row[name] for name in by), []).append(row)
    return groups


def summarize(rows: Iterable[Mapping[str, Any]], by: Sequence[str], value: str = "value") -> list[dict[str, Any]]:
    """Averages rows that agree in the keys `by`, over all others.

    The averages are rows again, so a mean of means takes a second call.

    Args:
      rows: have the keys in `by` and the key `value`.
      by: the keys that the rows of one average have in common.
      value: the key of the number to average.

    Returns:
      One row per group, in the order of first appearance: the keys in `by`, the mean as `value`, the sample standard
      deviation as `std` and the number of rows as `n`. `value` and `std` are None if a row's value is None; `std` is
      also None for a single row.

    >>> rows = [{"task": "cb", "seed": seed, "value": 60.0 + 2.0 * seed} for seed in range(3)]
    >>> summarize(rows, ["task"])
    [{'task': 'cb', 'value': 62.0, 'std': 2.0, 'n': 3}]
    """
    averages = []
    for key, members in grouped(rows, by).items():
        values = [row[value] for row in members]
        mean = std = None
        if None not in values:
            mean = statistics.fmean(values)
            std = statistics.stdev(map(float, values)) if len(values) > 1 else None
        averages.append({**dict(zip(by, key, strict=True)), "value": mean, "std": std, "n": len(values)})
    return averages


def overall(rows: Iterable[Mapping[str, Any]]) -> Mapping[str, Any]:
    """The average of all rows; UNKNOWN if there are none.

    >>> overall([{"value": 10.0}, {"value": 30.0}])["value"], overall([])["value"]
    (20.0, None)
    """
    return next(iter(summarize(rows, ())), UNKNOWN)
