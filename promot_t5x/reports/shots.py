"""Several numbers of exemplars k in one comparison: a mean for each k, and each k is shown like a comparison alone.

Tasks that build their own prompts, whose k is None, count as one such number. Means are never taken over several k.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from promot_t5x.reports.averages import overall

Rows = Sequence[Mapping[str, Any]]


def key(k: int | None) -> str:
    """The key of a number of exemplars in results.

    >>> key(4), key(None)
    ('4shot', 'own prompts')
    """
    return "own prompts" if k is None else f"{k}shot"


def by_k(rows: Iterable[Mapping[str, Any]]) -> dict[str, list[Mapping[str, Any]]]:
    """Rows by `key`, in the order of their first appearance.

    >>> list(by_k([{"k": 1, "value": 10.0}, {"k": 4, "value": 30.0}, {"k": 1, "value": 20.0}]))
    ['1shot', '4shot']
    """
    groups: dict[str, list[Mapping[str, Any]]] = {}
    for row in rows:
        groups.setdefault(key(row.get("k")), []).append(row)
    return groups


def only_mean(rows: Rows) -> float | None:
    """The mean of rows of one k; None for no rows, and for rows of several k.

    >>> only_mean([{"k": 1, "value": 10.0}, {"k": 1, "value": 20.0}]), only_mean([{"k": 1, "value": 10.0}, {"k": 4}])
    (15.0, None)
    """
    return overall(rows)["value"] if len(by_k(rows)) == 1 else None


def means(removed: Sequence[Rows], attached: Sequence[Rows]) -> dict[str, dict[str, float | None]]:
    """For each k, the mean of the runs' means and its spread over runs.

    Args:
      removed: for each run, its rows of in-context tasks with the prompt removed.
      attached: the same with the prompt attached; may be empty.

    Returns:
      By `key`, the keys of an entry of results: in_context_mean, in_context_mean_with_prompt, and their `_std`.
    """
    keys = dict.fromkeys(k for rows in removed for k in by_k(rows))

    def of_runs(k: str, runs: Sequence[Rows]) -> Mapping[str, Any]:
        return overall({"value": overall(by_k(rows).get(k, ()))["value"]} for rows in runs)

    def entry(k: str) -> dict[str, float | None]:
        mean, with_prompt = of_runs(k, removed), of_runs(k, attached)
        return {
            "in_context_mean": mean["value"],
            "in_context_mean_std": mean["std"],
            "in_context_mean_with_prompt": with_prompt["value"],
            "in_context_mean_with_prompt_std": with_prompt["std"],
        }

    return {k: entry(k) for k in keys}


def views(results: Mapping[str, Any]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """For each k, its key and the results as if its tasks were the only in-context ones; ("", results) for one k.

    Args:
      results: what `comparison.compare` or `read` returned.
    """
    tasks_of = results.get("shots") or {}
    if len(tasks_of) < 2:
        yield "", results
        return
    for k, tasks in tasks_of.items():
        methods = {
            name: {**content, "learning_rates": {r: _of(e, k, tasks) for r, e in content["learning_rates"].items()}}
            for name, content in results["methods"].items()
        }
        runs = [_of(run, k, tasks) for run in results.get("runs") or ()]
        yield k, {**results, "methods": methods, "runs": runs, "shots": {k: tasks}}


def _of(scores: Mapping[str, Any], k: str, tasks: Sequence[str]) -> dict[str, Any]:
    """An entry or run with the tasks and means of one k."""

    def kept(name: str) -> dict[str, Any]:
        of_tasks = scores.get(name)
        if of_tasks is None:
            return {}
        return {name: {task: value for task, value in of_tasks.items() if task in tasks}}

    by_task = {**kept("in_context"), **kept("in_context_std"), **kept("in_context_with_prompt")}
    return {**scores, **by_task, **scores["in_context_means"].get(k, {})}
