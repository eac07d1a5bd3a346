"""What length limits and the vocabulary took from the tasks of a comparison, from the counts in its rows."""

from collections.abc import Iterable, Mapping
from typing import Any

_WORDS = {
    "exemplars_dropped": "exemplars dropped",
    "input_cut": "inputs cut",
    "article_cut": "articles cut to the task's own limit",
    "target_cut": "targets cut",
    "target_unwritable": "targets that the vocabulary cannot write",
    "equal_choices": "examples with choices that the vocabulary cannot tell apart",
}


def of_rows(rows: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """One entry per task of which anything was lost; runs that read the same examples share it.

    Args:
      rows: as in `scores.json`; those without `cuts` are left out.

    >>> row = {"seqio_task": "cb", "split": "test", "n": 8, "truncated": 2, "cuts": {"exemplars_dropped": 3}}
    >>> of_rows([row, {**row, "run": "another"}, {**row, "seqio_task": "wic", "truncated": 0, "cuts": {}}]) == [row]
    True
    """
    names = ("seqio_task", "split", "n", "truncated", "cuts")
    entries = [{name: row[name] for name in names} for row in rows if any((row.get("cuts") or {}).values())]
    return [entry for place, entry in enumerate(entries) if entry not in entries[:place]]


def lines(results: Mapping[str, Any]) -> list[str]:
    """For each task of a comparison, what was lost, as text.

    >>> cuts = {"exemplars_dropped": 3, "input_cut": 0}
    >>> lines({"cuts": [{"seqio_task": "cb", "split": "test", "n": 8, "truncated": 2, "cuts": cuts}]})
    ['cb/test, 8 examples: prompts shortened: 2; exemplars dropped: 3']
    """
    return [
        f"{entry['seqio_task']}/{entry['split']}, {entry['n']} examples: "
        + "; ".join(
            f"{words}: {count}"
            for words, count in (
                ("prompts shortened", entry["truncated"]),
                *((_WORDS.get(name, name), count) for name, count in entry["cuts"].items()),
            )
            if count
        )
        for entry in results.get("cuts") or ()
    ]
