"""Scores of single runs -> one `results.json`: means and spreads over seeds, read, written and judged.

The file compares training methods on one target task and on in-context tasks that nobody trained on::

    {"methods": {"promot": {"learning_rates": {"0.0003": {
         "target": 0.99, "target_std": 0.01, "in_context": {"cb": 0.7}, "in_context_std": {"cb": 0.02},
         "in_context_mean": 0.7, "in_context_mean_std": 0.02, "in_context_with_prompt": {"cb": 0.3},
         "in_context_mean_with_prompt": 0.3, "in_context_mean_with_prompt_std": 0.03, "seeds": [0, 1, 2]}}}},
     "seeds": [0, 1, 2], "config": {}, "versions": {"python": "3.11.7"}, "runs": [...]}

All scores lie in [0, 1]. What does not apply is null (a spread of one seed, a mean of no tasks, scores with a prompt of
a method that has none). A method without a model learning rate has the one entry "none".
"""

import dataclasses
import json
import math
import os
import statistics
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from etils import epath

NO_RATE = "none"

"""Key of the only entry of a method that has no model learning rate (pretrained, prompt tuning)."""

TARGET_MARGIN = 0.02

"""How far ProMoT's target score may lie below standard fine-tuning's for the two to count as equally well trained."""

IN_CONTEXT_MARGIN = 0.05

"""How far ProMoT's in-context mean must lie above standard fine-tuning's for a difference worth the name."""

_ROUNDING = 1e-9  # 0.98 - 1.00 is a little more than 0.02 in binary


@dataclasses.dataclass(frozen=True)
class Run:
    """Test scores of one trained (or untouched) model.

    Attributes:
      method: "pretrained", "prompt_tuning", "fine_tuning", "random_prompt", "promot", or another method's name.
      learning_rate: learning rate of the model's own weights; None where these were not trained.
      seed: seed of the training run.
      target: score in [0, 1] on the task that was trained; None if it was not measured.
      in_context: score in [0, 1] per in-context task, without a prompt attached; may be empty.
      in_context_with_prompt: the same with the trained prompt attached; None for a method without a prompt.
      details: anything else worth keeping, JSON values only (chosen step, validation score, seconds).
    """

    method: str
    learning_rate: float | None
    seed: int
    target: float | None
    in_context: Mapping[str, float]
    in_context_with_prompt: Mapping[str, float] | None = None
    details: Mapping[str, Any] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Comparison:
    """ProMoT beside standard fine-tuning at one model learning rate; None where a score is missing.

    Attributes:
      learning_rate: key of the learning rate in the results.
      target_difference: ProMoT's target score minus fine-tuning's.
      in_context_difference: ProMoT's in-context mean minus fine-tuning's, prompt removed.
      target_kept: ProMoT's target is at most the margin below fine-tuning's.
      in_context_gained: ProMoT's in-context mean is at least the margin above fine-tuning's.
      nearer_to_pretrained: ProMoT's in-context mean is nearer to the pretrained model's than to fine-tuning's.
    """

    learning_rate: str
    target_difference: float | None
    in_context_difference: float | None
    target_kept: bool | None
    in_context_gained: bool | None
    nearer_to_pretrained: bool | None

    @property
    def holds(self) -> bool:
        """Whether all three conditions were measured and hold."""
        return bool(self.target_kept and self.in_context_gained and self.nearer_to_pretrained)


def rate_key(learning_rate: float | None) -> str:
    """Key of a learning rate in the results, which `float` reads back without loss.

    >>> rate_key(3e-4), rate_key(None)
    ('0.0003', 'none')
    """
    return NO_RATE if learning_rate is None else repr(float(learning_rate))


def summarize(runs: Iterable[Run], versions: Mapping[str, str], config: Mapping[str, Any]) -> dict[str, Any]:
    """The results that this module's head describes: means and sample standard deviations over seeds.

    The in-context mean of a run is the plain mean of its tasks; its spread over seeds is that of these means.

    Args:
      runs: single runs in any order; methods, learning rates and tasks keep the order of their first appearance.
      versions: what `versions()` returned where the runs were made.
      config: settings worth showing beside the numbers, JSON values only.

    Raises:
      ValueError: no runs, one run given twice, a score outside [0, 1], or seeds that measured different things.

    >>> runs = [Run("promot", 1e-3, seed, 1.0, {"cb": 0.6 + 0.2 * seed}) for seed in (0, 1)]
    >>> entry = summarize(runs, {}, {})["methods"]["promot"]["learning_rates"]["0.001"]
    >>> round(entry["in_context_mean"], 3), round(entry["in_context_mean_std"], 3)
    (0.7, 0.141)
    """
    runs = list(runs)
    if not runs:
        raise ValueError("There is nothing to summarize: no run was given, at least one was expected.")
    groups: dict[tuple[str, str], dict[int, Run]] = {}
    for run in runs:
        group = groups.setdefault((run.method, rate_key(run.learning_rate)), {})
        if run.seed in group:
            raise ValueError(f"{_name(run)} was given twice; give every method, learning rate and seed once.")
        group[run.seed] = run
    methods: dict[str, Any] = {}
    for (method, key), by_seed in groups.items():
        rates = methods.setdefault(method, {"learning_rates": {}})["learning_rates"]
        rates[key] = _entry([by_seed[seed] for seed in sorted(by_seed)])
    found = {
        "methods": methods,
        "seeds": sorted({run.seed for run in runs}),
        "config": dict(config),
        "versions": dict(versions),
        "runs": [_as_json(run) for run in runs],
    }
    validate(found, "The summary of these runs")
    return found


def _entry(runs: Sequence[Run]) -> dict[str, Any]:
    """Means and spreads of the runs of one method and learning rate, one run per seed."""
    first = runs[0]
    for run in runs[1:]:
        if _measured(run) != _measured(first):
            raise ValueError(
                f"{_name(run)} measured other scores than seed {first.seed} did; evaluate all seeds of a method alike."
            )
    attached = first.in_context_with_prompt
    target, target_std = mean_and_std([run.target for run in runs])
    removed = {task: mean_and_std([run.in_context[task] for run in runs]) for task in first.in_context}
    mean, mean_std = mean_and_std([_plain_mean(run.in_context) for run in runs])
    with_prompt, with_prompt_std = mean_and_std([_plain_mean(run.in_context_with_prompt) for run in runs])
    return {
        "target": target,
        "target_std": target_std,
        "in_context": {task: value for task, (value, _) in removed.items()},
        "in_context_std": {task: std for task, (_, std) in removed.items()},
        "in_context_mean": mean,
        "in_context_mean_std": mean_std,
        "in_context_with_prompt": None
        if attached is None
        else {task: mean_and_std([(run.in_context_with_prompt or {})[task] for run in runs])[0] for task in attached},
        "in_context_mean_with_prompt": with_prompt,
        "in_context_mean_with_prompt_std": with_prompt_std,
        "seeds": [run.seed for run in runs],
    }


def _name(run: Run) -> str:
    return f"The run {run.method}, learning rate {rate_key(run.learning_rate)}, seed {run.seed}"


def _measured(run: Run) -> tuple[Any, ...]:
    attached = run.in_context_with_prompt
    return run.target is None, set(run.in_context), None if attached is None else set(attached)


def _plain_mean(scores: Mapping[str, float] | None) -> float | None:
    return statistics.fmean(scores.values()) if scores else None


def mean_and_std(values: Sequence[float | None]) -> tuple[float | None, float | None]:
    """Mean and sample standard deviation; (None, None) where a value is missing, no spread for a single value."""
    known = [float(value) for value in values if value is not None]
    if not known or len(known) < len(values):
        return None, None
    return statistics.fmean(known), statistics.stdev(known) if len(known) > 1 else None


def _as_json(run: Run) -> dict[str, Any]:
    """One run as JSON values, its plain means beside its scores."""
    attached = None if run.in_context_with_prompt is None else dict(run.in_context_with_prompt)
    means = {"in_context_mean": _plain_mean(run.in_context), "in_context_mean_with_prompt": _plain_mean(attached)}
    scores = {"in_context": dict(run.in_context), "in_context_with_prompt": attached, **means}
    return {**vars(run), **scores, "details": dict(run.details)}


def verdict(
    results: Mapping[str, Any], target_margin: float = TARGET_MARGIN, in_context_margin: float = IN_CONTEXT_MARGIN
) -> list[Comparison]:
    """Compares ProMoT with standard fine-tuning at every model learning rate that both have, in rising order.

    Args:
      results: what `summarize` or `read` returned.
      target_margin: how far ProMoT's target score may lie below fine-tuning's.
      in_context_margin: how far ProMoT's in-context mean must lie above fine-tuning's.

    Returns:
      One comparison per shared learning rate; empty if one of the two methods is missing.
    """
    names = ("promot", "fine_tuning", "pretrained")
    promot, tuned, pretrained = (results["methods"].get(name, {}).get("learning_rates", {}) for name in names)
    before = next(iter(pretrained.values()))["in_context_mean"] if pretrained else None
    comparisons = []
    for key in sorted((key for key in promot if key in tuned and key != NO_RATE), key=float):
        kept, baseline = promot[key]["in_context_mean"], tuned[key]["in_context_mean"]
        on_target = _difference(promot[key]["target"], tuned[key]["target"])
        in_context = _difference(kept, baseline)
        nearer = None if None in (before, kept, baseline) else abs(kept - before) < abs(kept - baseline)
        comparisons.append(
            Comparison(
                learning_rate=key,
                target_difference=on_target,
                in_context_difference=in_context,
                target_kept=None if on_target is None else on_target >= -target_margin - _ROUNDING,
                in_context_gained=None if in_context is None else in_context >= in_context_margin - _ROUNDING,
                nearer_to_pretrained=nearer,
            )
        )
    return comparisons


def _difference(left: float | None, right: float | None) -> float | None:
    return None if left is None or right is None else left - right


def read(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Reads a file that `write` made from `summarize` and checks it.

    Raises:
      FileNotFoundError: there is no such file.
      ValueError: it is not such a file, or a score lies outside [0, 1].
    """
    source = os.fspath(path)
    if not epath.Path(path).is_file():
        raise FileNotFoundError(f"{source} does not exist; give the results.json of a finished pipeline or demo.")
    try:
        results = json.loads(epath.Path(path).read_text())
    except ValueError as error:
        raise ValueError(f"{source} is not JSON ({error}); make it again with the pipeline or the demo.") from error
    validate(results, source)
    return results


def validate(results: Any, source: str) -> None:
    """Checks that results have the keys of this module's head and scores in [0, 1].

    Args:
      results: the dictionary, or whatever a file held in its place.
      source: where it comes from, the first words of the error's sentence.

    Raises:
      ValueError: one sentence with what was found and what was expected.
    """
    for key, kind in (("methods", dict), ("seeds", list), ("versions", dict)):
        if not isinstance(results, dict) or not isinstance(results.get(key), kind):
            found = f"the keys {sorted(results)}" if isinstance(results, dict) else f"a {type(results).__name__}"
            raise ValueError(
                f'{source} holds {found}, but a {"list" if kind is list else "table"} "{key}" was expected; '
                "give the results.json of a pipeline or demo."
            )
    for method, content in results["methods"].items():
        rates = content.get("learning_rates") if isinstance(content, dict) else None
        if not isinstance(rates, dict) or not rates:
            raise ValueError(f'{source}: method "{method}" has no "learning_rates"; at least one entry was expected.')
        for key, entry in rates.items():
            _validate_entry(key, entry, f'{source}: method "{method}", learning rate "{key}"')


def _validate_entry(key: str, entry: Any, place: str) -> None:
    if key != NO_RATE and not _is_number(key):
        raise ValueError(f'{place} is neither a positive number nor "{NO_RATE}"; name it as rate_key does.')
    if not isinstance(entry, dict) or not isinstance(entry.get("in_context"), dict):
        raise ValueError(f'{place} has no table "in_context", expected a score per task; summarize the runs again.')
    scores = {f'in_context "{task}"': value for task, value in entry["in_context"].items()}
    for name in ("target", "in_context_mean", "in_context_mean_with_prompt"):
        if name not in entry:
            raise ValueError(f'{place} has no "{name}", expected a score in [0, 1] or null; summarize the runs again.')
        scores[name] = entry[name]
    for name, value in scores.items():
        if value is not None and not (isinstance(value, int | float) and 0 <= value <= 1):
            raise ValueError(f"{place}: {name} is {value!r}, expected a score in [0, 1]; divide percentages by 100.")


def _is_number(key: str) -> bool:
    try:
        return 0 < float(key) < math.inf
    except ValueError:
        return False
