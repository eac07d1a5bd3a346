"""Scores of single runs -> the `results.json` of an evaluation, in percent; docs/results.md describes it.

A run is one task with one number of exemplars, one seed of these and the prompt removed or attached. Runs that differ
in the seed alone make one entry.
"""

import dataclasses
import hashlib
import json
import statistics
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import seqio

from promot_t5x.evaluation import Evaluation
from promot_t5x.examples import EvalExamples
from promot_t5x.predictions import input_text

REMOVED, ATTACHED = "removed", "attached"
UNIT = "percent"


@dataclasses.dataclass(frozen=True)
class Run:
    """One task, scored once.

    Attributes:
      task: its name in the results.
      k: exemplars a prompt; None for a task whose prompts are its own.
      seed: of the exemplars; None where none are drawn.
      name: the seqio task.
      prompt: REMOVED or ATTACHED.
      answering: "generate" or "rank".
      examples: what was asked.
      outcome: the scores.
    """

    task: str
    k: int | None
    seed: int | None
    name: str
    prompt: str
    answering: str
    examples: EvalExamples
    outcome: Evaluation

    @property
    def key(self) -> str:
        """The entry that the run belongs to."""
        return f"{self.task}_{self.group}"

    @property
    def group(self) -> str:
        """What the runs of a mean have in common."""
        return self.prompt if self.k is None else f"{self.k}shot_{self.prompt}"


def summarize(
    runs: Iterable[Run], *, config: Mapping[str, Any], checkpoint: Mapping[str, Any], versions: Mapping[str, str]
) -> dict[str, Any]:
    """The whole of results.json.

    Args:
      runs: all runs, in the order in which their entries are to stand.
      config: settings; JSON values only.
      checkpoint: where the parameters came from and their fingerprints.
      versions: of packages.

    Raises:
      ValueError: a score outside [0, 100].
    """
    entries: dict[str, list[Run]] = {}
    groups: dict[str, list[Run]] = {}
    for run in runs:
        _check_percent(run)
        entries.setdefault(run.key, []).append(run)
        groups.setdefault(run.group, []).append(run)
    return {
        "results": {key: _entry(found) for key, found in entries.items()},
        "mean": {group: _mean(found) for group, found in groups.items()},
        "config": dict(config),
        "checkpoint": dict(checkpoint),
        "versions": dict(versions),
    }


def _check_percent(run: Run) -> None:
    for name, value in run.outcome.metrics.items():
        if not 0 <= value <= 100:
            raise ValueError(
                f"Metric {name} of task {run.name} is {value!r}, expected 0 to 100: results are in {UNIT}, as seqio's "
                "and T5's metrics are; let the metric function scale its value."
            )


def _entry(runs: Sequence[Run]) -> dict[str, Any]:
    """The runs of one task, k and prompt; they differ in the seed of the exemplars."""
    first = runs[0]
    errors = [run.outcome.stderr for run in runs if run.outcome.stderr is not None]
    value, seed_std = _mean_and_std([run.outcome.value for run in runs])
    return {
        "task": first.task,
        "k": first.k,
        "prompt": first.prompt,
        "metric": first.outcome.metric,
        "unit": UNIT,
        "value": value,
        "stderr": statistics.fmean(errors) if len(errors) == len(runs) else None,
        "seed_std": seed_std,
        "examples": len(first.examples.examples),
        "truncated": sum(run.examples.truncated for run in runs),
        "answering": first.answering,
        "metrics": {name: statistics.fmean([r.outcome.metrics[name] for r in runs]) for name in first.outcome.metrics},
        "notes": dict(first.outcome.notes),
        "task_version": _task_version(first.name, first.examples.split),
        "runs": [
            {
                "seed": run.seed,
                "seqio_task": run.name,
                "value": run.outcome.value,
                "stderr": run.outcome.stderr,
                "metrics": dict(run.outcome.metrics),
                "truncated": run.examples.truncated,
                "cuts": dict(run.examples.cuts),
                "prompts_sha256": _prompts_hash(run.examples),
            }
            for run in runs
        ],
    }


def _mean(runs: Sequence[Run]) -> dict[str, Any]:
    """The plain mean over tasks (the paper's "Norm. Avg."), and the spread over seeds of the means of single seeds."""
    by_task: dict[str, dict[int | None, float]] = {}
    for run in runs:
        by_task.setdefault(run.task, {})[run.seed] = run.outcome.value
    seeds = list(next(iter(by_task.values())))
    same_seeds = all(list(values) == seeds for values in by_task.values())
    of_seeds = [statistics.fmean([values[seed] for values in by_task.values()]) for seed in seeds] if same_seeds else []
    return {
        "k": runs[0].k,
        "prompt": runs[0].prompt,
        "unit": UNIT,
        "value": statistics.fmean([statistics.fmean(values.values()) for values in by_task.values()]),
        "seed_std": statistics.stdev(of_seeds) if len(of_seeds) > 1 else None,
        "tasks": list(by_task),
    }


def _mean_and_std(values: Sequence[float]) -> tuple[float, float | None]:
    return statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else None


def _task_version(name: str, split: str) -> str:
    """Data set and version, or file and its hash, of a task's split; the task's name where the source does not say."""
    identity = getattr(seqio.TaskRegistry.get(name).source, "identity", None)
    if identity is None:
        return f"seqio {name}/{split}"
    found = identity(split)
    if "tfds" in found:
        return f"tfds {found['tfds']}/{found['split']}"
    return f"jsonl {found['jsonl']}, sha256 {found['content'][:16]}"


def _prompts_hash(examples: EvalExamples) -> str:
    """A hash of all prompts and targets in their order: two runs with one hash asked the same questions."""
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
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = ("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows)
    return "\n".join(lines)


def _shown(value: float | int | None) -> str:
    return "-" if value is None else f"{value:.2f}" if isinstance(value, float) else str(value)
