"""Rows of single runs -> one `comparison.json`: means and spreads over seeds; reads, checks and judges it.

The file compares training methods on one target task and on in-context tasks that no method was trained on::

    {"title": "ProMoT on my_task", "unit": "percent",
     "methods": {"mine": {"label": "my method", "colour": "#0072b2", "learning_rates": {"0.0003": {
         "target": 99.0, "target_std": 1.0, "in_context": {"cb": 70.0}, "in_context_std": {"cb": 2.0},
         "in_context_mean": 70.0, "in_context_mean_std": 2.0, "in_context_with_prompt": {"cb": 30.0},
         "in_context_mean_with_prompt": 30.0, "in_context_mean_with_prompt_std": 3.0,
         "in_context_means": {"1shot": {...}}, "seeds": [0, 1, 2]}}}},
     "shots": {"1shot": ["cb"]}, "cuts": [...],
     "compared": {"method": "mine", "baseline": "usual", "reference": "before", "labels": {}},
     "seeds": [0, 1, 2], "config": {}, "versions": {"python": "3.11.7"}, "runs": [...], "rows": [...]}

All scores are percentages. What does not apply is null (the spread of one seed, the mean of no tasks, scores with the
prompt for a method without one). A method without a model learning rate has a single entry, "none". See
docs/results.md.
"""

import dataclasses
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from promot_t5x.reports import cut_counts, result_files, shots
from promot_t5x.reports.averages import overall, summarize
from promot_t5x.reports.method_rows import Compared, MethodRow
from promot_t5x.reports.result_files import ANY, NUMBER, TEXT, Table

_SCORES = Table(NUMBER)  # of tasks
_MEANS = {
    "in_context_mean?": NUMBER,
    "in_context_mean_std?": NUMBER,
    "in_context_mean_with_prompt?": NUMBER,
    "in_context_mean_with_prompt_std?": NUMBER,
}
_ENTRY = {**_MEANS, "target_std?": NUMBER, "in_context_std?": _SCORES, "in_context_with_prompt?": _SCORES}
_RUN = {
    "method": TEXT,
    **{name: NUMBER for name in ("learning_rate", "seed", "target", "in_context_mean", "in_context_mean_with_prompt")},
    **{"in_context?": _SCORES, "in_context_with_prompt?": _SCORES, "details?": Table(ANY)},
}
_METHOD: dict[str, result_files.Form] = {f"{field.name}?": TEXT for field in dataclasses.fields(MethodRow)}
_METHOD["learning_rates?"] = Table(_ENTRY)
_CUTS = {"seqio_task": TEXT, "split": TEXT, "n": NUMBER, "truncated": NUMBER, "cuts": Table(NUMBER)}

KIND = result_files.Kind(
    "comparison.json",
    "the pipeline or the demo",
    {
        "methods": Table(_METHOD),
        "seeds": [NUMBER],
        "versions": Table(ANY),
        "title?": TEXT,
        "shots?": Table([TEXT]),
        "cuts?": [_CUTS],
        "compared?": {"method?": TEXT, "baseline?": TEXT, "reference?": TEXT, "labels?": Table(TEXT)},
        "config?": Table(ANY),
        "runs?": [_RUN],
    },
)

_OF_SEVERAL_K = {"in_context_means": Table(_MEANS)}  # of entries and runs

NO_RATE = "none"

"""Key of the only entry of a method that has no model learning rate (pretrained, prompt tuning)."""

_TARGET, _IN_CONTEXT = "target", "other"  # roles of rows


@dataclasses.dataclass(frozen=True)
class Run:
    """One trained (or untouched) model and its scores.

    Attributes:
      method: its method's name.
      learning_rate: learning rate of the model's own weights; None if they were not trained.
      seed: seed of the training run.
      rows: every single score, as in `scores.json`; at least `role`, `seqio_task`, `prompt` and `value`.
      details: anything else worth keeping, JSON values only (chosen step, validation score, seconds).
    """

    method: str
    learning_rate: float | None
    seed: int
    rows: Sequence[Mapping[str, Any]]
    details: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    @property
    def target(self) -> float | None:
        """Score in percent on the target task; None if it was not measured."""
        return overall(row for row in self.rows if row["role"] == _TARGET)["value"]

    @property
    def in_context(self) -> dict[str, float]:
        """Score in percent per in-context task, with the prompt removed; may be empty."""
        return _by_task(self.in_context_rows(attached=False))

    @property
    def in_context_with_prompt(self) -> dict[str, float] | None:
        """The same with the prompt attached; None if no task was scored with a prompt."""
        if all(row["prompt"] is None for row in self.rows):
            return None
        return _by_task(self.in_context_rows(attached=True))

    def in_context_rows(self, attached: bool) -> list[Mapping[str, Any]]:
        """The rows of in-context tasks with the prompt attached, or those with it removed."""
        return [row for row in self.rows if row["role"] == _IN_CONTEXT and (row["prompt"] is not None) == attached]

    def in_context_mean(self, attached: bool) -> float | None:
        """The plain mean of the in-context tasks; None if there are none, or several numbers of exemplars."""
        return shots.only_mean(self.in_context_rows(attached))


def rate_key(learning_rate: float | None) -> str:
    """Key of a learning rate in the results; `float` restores it exactly.

    >>> rate_key(3e-4), rate_key(None)
    ('0.0003', 'none')
    """
    return NO_RATE if learning_rate is None else repr(float(learning_rate))


def compare(
    runs: Iterable[Run],
    versions: Mapping[str, str],
    config: Mapping[str, Any],
    methods: Mapping[str, MethodRow] | None = None,
    headline: Compared | None = None,
    title: str = "",
) -> dict[str, Any]:
    """The results described at the top of this module: means and sample standard deviations over seeds.

    The in-context mean of a run is the plain mean of its tasks; its spread is that of the runs' means. Several numbers
    of exemplars have one mean each, in `in_context_means`, and `in_context_mean` is null.

    Args:
      runs: single runs in any order; learning rates and tasks keep the order of their first appearance.
      versions: what `versions()` returned where the runs were made.
      config: settings to show next to the numbers, JSON values only.
      methods: how methods are shown, in the order of the tables; methods without a row come last.
      headline: which methods the headline compares.
      title: the report's heading; empty for the general one.

    Raises:
      ValueError: no runs, a run given twice, a score outside [0, 100], or seeds that were scored on different tasks.

    >>> cb = {"role": "other", "seqio_task": "cb", "prompt": None}
    >>> runs = [Run("mine", 1e-3, seed, [{**cb, "value": 60.0 + 20.0 * seed}]) for seed in (0, 1)]
    >>> entry = compare(runs, {}, {})["methods"]["mine"]["learning_rates"]["0.001"]
    >>> entry["in_context_mean"], round(entry["in_context_mean_std"], 1)
    (70.0, 14.1)
    """
    runs = list(runs)
    if not runs:
        raise ValueError("There is nothing to compare: expected at least one run, got none.")
    groups: dict[tuple[str, str], dict[int, Run]] = {}
    for run in runs:
        group = groups.setdefault((run.method, rate_key(run.learning_rate)), {})
        if run.seed in group:
            raise ValueError(f"{_name(run)} was given twice; give each method, learning rate and seed once.")
        group[run.seed] = run
    shown = methods or {}
    run_methods = {run.method for run in runs}
    names = dict.fromkeys([*(name for name in shown if name in run_methods), *(run.method for run in runs)])
    described = {name: dataclasses.asdict(shown[name]) if name in shown else {} for name in names}
    contents: dict[str, Any] = {name: {**described[name], "learning_rates": {}} for name in names}
    for (method, key), by_seed in groups.items():
        contents[method]["learning_rates"][key] = _entry([by_seed[seed] for seed in sorted(by_seed)])
    rows_of_tasks = [row for run in runs for row in run.in_context_rows(attached=False)]
    results = {
        "title": title,
        "unit": result_files.UNIT,
        "methods": contents,
        "shots": {k: list(_by_task(rows)) for k, rows in shots.by_k(rows_of_tasks).items()},
        "cuts": cut_counts.of_rows(row for run in runs for row in run.rows),
        "compared": None if headline is None else _compared(headline, shown),
        "seeds": sorted({run.seed for run in runs}),
        "config": dict(config),
        "versions": dict(versions),
        "runs": [_as_json(run) for run in runs],
        "rows": [dict(row) for run in runs for row in run.rows],
    }
    validate(results, "The comparison of these runs")
    return results


def _compared(headline: Compared, rows: Mapping[str, MethodRow]) -> dict[str, Any]:
    names = dataclasses.asdict(headline)
    return {**names, "labels": {name: rows[name].label for name in names.values() if name in rows}}


def _entry(runs: Sequence[Run]) -> dict[str, Any]:
    """Means and spreads of the runs of one method and learning rate, one run per seed."""
    first = runs[0]
    for run in runs[1:]:
        if _measured(run) != _measured(first):
            raise ValueError(
                f"{_name(run)} was not scored on the same tasks as seed {first.seed}; evaluate all seeds of a method "
                "alike."
            )
    has_prompt = first.in_context_with_prompt is not None
    removed, attached = (
        summarize([row for run in runs for row in run.in_context_rows(prompt)], ("seqio_task",))
        for prompt in (False, True)
    )
    target = overall({"value": run.target} for run in runs)
    mean = overall({"value": run.in_context_mean(attached=False)} for run in runs)
    mean_with_prompt = overall({"value": run.in_context_mean(attached=True)} for run in runs)
    return {
        "target": target["value"],
        "target_std": target["std"],
        "in_context": _by_task(removed),
        "in_context_std": _by_task(removed, "std"),
        "in_context_mean": mean["value"],
        "in_context_mean_std": mean["std"],
        "in_context_with_prompt": _by_task(attached) if has_prompt else None,
        "in_context_mean_with_prompt": mean_with_prompt["value"],
        "in_context_mean_with_prompt_std": mean_with_prompt["std"],
        "in_context_means": shots.means(
            [run.in_context_rows(attached=False) for run in runs],
            [run.in_context_rows(attached=True) for run in runs] if has_prompt else [],
        ),
        "seeds": [run.seed for run in runs],
    }


def _by_task(rows: Iterable[Mapping[str, Any]], key: str = "value") -> dict[str, Any]:
    return {row["seqio_task"]: row[key] for row in rows}


def _name(run: Run) -> str:
    return f"The run {run.method}, learning rate {rate_key(run.learning_rate)}, seed {run.seed}"


def _measured(run: Run) -> tuple[Any, ...]:
    attached = run.in_context_with_prompt
    return run.target is None, set(run.in_context), None if attached is None else set(attached)


def _as_json(run: Run) -> dict[str, Any]:
    """One run as JSON values: its scores and their means."""
    return {
        "method": run.method,
        "learning_rate": run.learning_rate,
        "seed": run.seed,
        "target": run.target,
        "in_context": run.in_context,
        "in_context_with_prompt": run.in_context_with_prompt,
        "details": dict(run.details),
        "in_context_mean": run.in_context_mean(attached=False),
        "in_context_mean_with_prompt": run.in_context_mean(attached=True),
        "in_context_means": shots.means([run.in_context_rows(False)], [run.in_context_rows(True)]),
    }


def rates(results: Mapping[str, Any], method: str) -> Mapping[str, Any]:
    """A method's entries by learning rate; empty if it was not measured."""
    return results["methods"].get(method, {}).get("learning_rates", {})


def read(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Reads a `comparison.json` and checks it.

    Raises:
      FileNotFoundError: the file does not exist.
      ValueError: it is not such a file, is incomplete, or a score is outside [0, 100].
    """
    results = result_files.read(path, KIND)
    _validate_scores(results, os.fspath(path))
    return results


def validate(results: Any, source: str) -> None:
    """Checks that results have the keys described at the top of this module, and scores in [0, 100].

    Args:
      results: the dictionary, or anything else that a file contained.
      source: where it comes from; error messages begin with it.

    Raises:
      ValueError: a key is missing or has another type, or a score is outside [0, 100].
    """
    result_files.check(results, KIND, source)
    _validate_scores(results, source)


def _validate_scores(results: Mapping[str, Any], source: str) -> None:
    for method, content in results["methods"].items():
        rates = content.get("learning_rates")
        if not rates:
            raise ValueError(f'{source}: method "{method}" has no "learning_rates", expected at least one entry.')
        for key, entry in rates.items():
            _validate_entry(key, entry, f'{source}: method "{method}", learning rate "{key}"')
    if len(results.get("shots") or {}) > 1:
        form = {"methods": Table({"learning_rates": Table(_OF_SEVERAL_K)}), "runs?": [_OF_SEVERAL_K]}
        result_files.check_form(results, form, KIND, source)


def _validate_entry(key: str, entry: Mapping[str, Any], place: str) -> None:
    if key != NO_RATE and not _is_number(key):
        raise ValueError(f'{place} is neither a positive number nor "{NO_RATE}"; name it as rate_key does.')
    if not isinstance(entry.get("in_context"), dict):
        raise ValueError(f'{place} has no table "in_context", expected a score per task; compare the runs again.')
    scores = {f'in_context "{task}"': value for task, value in entry["in_context"].items()}
    for name in ("target", "in_context_mean", "in_context_mean_with_prompt"):
        if name not in entry:
            raise ValueError(f'{place} has no "{name}", expected a score in [0, 100] or null; compare the runs again.')
        scores[name] = entry[name]
    for name, value in scores.items():
        if value is not None and not (isinstance(value, int | float) and 0 <= value <= 100):
            raise ValueError(f"{place}: {name} is {value!r}, expected a percentage in [0, 100].")


def _is_number(key: str) -> bool:
    try:
        return 0 < float(key) < math.inf
    except ValueError:
        return False
