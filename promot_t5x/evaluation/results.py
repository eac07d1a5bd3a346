"""Scores of single runs -> the `results.json` of an evaluation, in percent; docs/results.md describes it.

A run is one task with one number of exemplars, one seed of these and the prompt removed or attached. Runs that differ
in the seed alone make one entry.
"""

import dataclasses
import hashlib
import json
import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import seqio

from promot_t5x.data.evaluation_examples import EvaluationExamples
from promot_t5x.evaluation.answer_store import input_text
from promot_t5x.evaluation.scoring import Evaluation
from promot_t5x.reports import comparison
from promot_t5x.runtime.text import aligned
from promot_t5x.tasks import catalog

REMOVED, ATTACHED = "removed", "attached"

UNIT = "percent"


@dataclasses.dataclass(frozen=True)
class Run:
    """One task, scored once.

    Attributes:
      entry: the task, its number of exemplars and their seed.
      prompt: REMOVED or ATTACHED.
      answering: "generate" or "rank".
      outcome: the scores.
      stderr: standard error of the score, None if unknown.
      examples: how many were asked.
      truncated: how many prompts lost something to the length of inputs.
      cuts: what was lost, see `examples.EvalExamples`.
      task_version: the data that was asked about.
      prompts_sha256: a hash of all prompts and targets in their order: two runs with one hash asked the same questions.

    Raises:
      ValueError: a score outside [0, 100].
    """

    entry: catalog.Entry
    prompt: str
    answering: str
    outcome: Evaluation
    stderr: float | None
    examples: int
    truncated: int
    cuts: Mapping[str, int]
    task_version: str
    prompts_sha256: str

    def __post_init__(self):
        if not 0 <= self.outcome.value <= 100:
            raise ValueError(
                f"Metric {self.outcome.metric} of task {self.entry.name} is {self.outcome.value!r}, expected 0 to 100: "
                f"results are in {UNIT}, as seqio's and T5's metrics are; let the metric function scale its value."
            )

    @property
    def key(self) -> str:
        """The entry of the results that the run belongs to."""
        return f"{self.entry.task}_{self.group}"

    @property
    def group(self) -> str:
        """What the runs of a mean have in common."""
        return self.prompt if self.entry.k is None else f"{self.entry.k}shot_{self.prompt}"


def run(
    entry: catalog.Entry,
    prompt: str,
    answering: str,
    examples: EvaluationExamples,
    outcome: Evaluation,
    stderr: float | None,
) -> Run:
    """A run and what is worth keeping of its examples; see `Run`."""
    facts = (len(examples.examples), examples.truncated, examples.cuts)
    version = _task_version(examples.task_name, examples.split)
    return Run(entry, prompt, answering, outcome, stderr, *facts, version, _prompts_hash(examples))


def summarize(
    runs: Iterable[Run], *, config: Mapping[str, Any], checkpoint: Mapping[str, Any], versions: Mapping[str, str]
) -> dict[str, Any]:
    """The whole of results.json.

    Args:
      runs: all runs, in the order in which their entries are to stand.
      config: settings; JSON values only.
      checkpoint: where the parameters came from and their fingerprints.
      versions: of packages.

    """
    entries: dict[str, list[Run]] = {}
    groups: dict[str, list[Run]] = {}
    for run in runs:
        entries.setdefault(run.key, []).append(run)
        groups.setdefault(run.group, []).append(run)
    return {
        "results": {key: _entry(found) for key, found in entries.items()},
        "mean": {group: _mean(found) for group, found in groups.items()},
        "config": dict(config),
        "checkpoint": dict(checkpoint),
        "versions": dict(versions),
    }


def _entry(runs: Sequence[Run]) -> dict[str, Any]:
    """The runs of one task, k and prompt; they differ in the seed of the exemplars."""
    first = runs[0]
    stderr, _ = comparison.mean_and_std([run.stderr for run in runs])
    value, seed_std = comparison.mean_and_std([run.outcome.value for run in runs])
    return {
        "task": first.entry.task,
        "k": first.entry.k,
        "prompt": first.prompt,
        "metric": first.outcome.metric,
        "unit": UNIT,
        "value": value,
        "stderr": stderr,
        "seed_std": seed_std,
        "examples": first.examples,
        "truncated": sum(run.truncated for run in runs),
        "answering": first.answering,
        "metrics": {name: _finite_mean([r.outcome.metrics[name] for r in runs]) for name in first.outcome.metrics},
        "notes": dict(first.outcome.notes),
        "task_version": first.task_version,
        "runs": [
            {
                "seed": run.entry.seed,
                "seqio_task": run.entry.name,
                "value": run.outcome.value,
                "stderr": run.stderr,
                "metrics": {name: _finite_mean([value]) for name, value in run.outcome.metrics.items()},
                "truncated": run.truncated,
                "cuts": dict(run.cuts),
                "prompts_sha256": run.prompts_sha256,
            }
            for run in runs
        ],
    }


def _mean(runs: Sequence[Run]) -> dict[str, Any]:
    """The plain mean over tasks (the paper's "Norm. Avg."), and the spread over seeds of the means of single seeds."""
    by_task: dict[str, dict[int | None, float]] = {}
    for run in runs:
        by_task.setdefault(run.entry.task, {})[run.entry.seed] = run.outcome.value
    seeds = list(next(iter(by_task.values())))
    same_seeds = all(list(values) == seeds for values in by_task.values())
    of_seeds = [statistics.fmean([values[seed] for values in by_task.values()]) for seed in seeds] if same_seeds else []
    return {
        "k": runs[0].entry.k,
        "prompt": runs[0].prompt,
        "unit": UNIT,
        "value": statistics.fmean([statistics.fmean(values.values()) for values in by_task.values()]),
        "seed_std": comparison.mean_and_std(of_seeds)[1],
        "tasks": list(by_task),
    }


def _finite_mean(values: Sequence[float]) -> float | None:
    """The mean of a metric that is not the headline; None for what JSON cannot hold."""
    mean = statistics.fmean(values)
    return mean if math.isfinite(mean) else None


def _task_version(name: str, split: str) -> str:
    """Data set and version, or file and its hash, of a task's split; the task's name where the source does not say."""
    identity = getattr(seqio.TaskRegistry.get(name).source, "identity", None)
    if identity is None:
        return f"seqio {name}/{split}"
    found = identity(split)
    if "tfds" in found:
        return f"tfds {found['tfds']}/{found['split']}"
    return f"jsonl {found['jsonl']}, sha256 {found['content'][:16]}"


def _prompts_hash(examples: EvaluationExamples) -> str:
    digest = hashlib.sha256()
    for example, target in zip(examples.examples, examples.targets, strict=True):
        digest.update(json.dumps([input_text(example), target], default=str).encode() + b"\n")
    return digest.hexdigest()[:16]


def table(results: Mapping[str, Any]) -> str:
    """The entries and means as aligned text.

    Args:
      results: what `summarize` returned.
    """
    rows: list[tuple[str, ...]] = [
        ("task", "k", "prompt", "metric", UNIT, "stderr", "seed std", "examples", "truncated")
    ]
    for entry in results["results"].values():
        names = (entry["task"], _shown(entry["k"]), entry["prompt"], entry["metric"])
        numbers = tuple(_shown(entry[name]) for name in ("value", "stderr", "seed_std", "examples", "truncated"))
        rows.append((*names, *numbers))
    for mean in results["mean"].values():
        of = f"mean of {len(mean['tasks'])}"
        rows.append((of, _shown(mean["k"]), mean["prompt"], "", *(_shown(mean[n]) for n in ("value",)), "", "", "", ""))
    return aligned(rows)


def _shown(value: float | int | None) -> str:
    return "-" if value is None else f"{value:.2f}" if isinstance(value, float) else str(value)
