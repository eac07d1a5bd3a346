"""Rows of scores -> the `scores.json` of an evaluation, in percent; docs/results.md describes it.

A row is one task with one number of exemplars, one seed of these and the prompt removed or attached. Rows that differ
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

ROLES = ("target", "sister", "other")

"""What a task is to the training: its target, another task of the target's kind, or any other."""


@dataclasses.dataclass(frozen=True)
class Row:
    """One task, scored once.

    Attributes:
      run: the run whose checkpoint is scored.
      step: the checkpoint's training step; None of one that does not say.
      entry: the task, its number of exemplars and their seed.
      role: one of ROLES.
      prompt: id of the attached prompt, None for none.
      answering: "generate" or "rank".
      outcome: the scores.
      stderr: standard error of the score, None if unknown.
      n: how many examples were asked.
      truncated: how many prompts lost something to the length of inputs.
      cuts: what was lost, see `examples.EvalExamples`.
      task_version: the data that was asked about.
      prompts_sha256: a hash of all prompts and targets in their order: two rows with one hash asked the same questions.
      split: the split that was scored.
      answers: name of the file with every prompt, answer and score, beside scores.json.

    Raises:
      ValueError: a score outside [0, 100], or an unknown role.
    """

    run: str
    step: int | None
    entry: catalog.Entry
    role: str
    prompt: int | None
    answering: str
    outcome: Evaluation
    stderr: float | None
    n: int
    truncated: int
    cuts: Mapping[str, int]
    task_version: str
    prompts_sha256: str
    split: str
    answers: str

    def __post_init__(self):
        if self.role not in ROLES:
            raise ValueError(f"The role of task {self.entry.name} is {self.role!r}: expected {', '.join(ROLES)}.")
        if not 0 <= self.outcome.value <= 100:
            raise ValueError(
                f"Metric {self.outcome.metric} of task {self.entry.name} is {self.outcome.value!r}, expected 0 to 100: "
                f"results are in {comparison.UNIT}, as seqio's and T5's metrics are; let the metric function scale it."
            )

    @property
    def key(self) -> str:
        """The entry of the results that the row belongs to."""
        return f"{self.entry.task}_{self.group}"

    @property
    def group(self) -> str:
        """What the rows of a mean have in common."""
        return prompt_word(self.prompt) if self.entry.k is None else f"{self.entry.k}shot_{prompt_word(self.prompt)}"

    def as_json(self) -> dict[str, Any]:
        """The row as it is in scores.json and comparison.json."""
        return {
            "run": self.run,
            "step": self.step,
            "task": self.entry.task,
            "role": self.role,
            "k": self.entry.k,
            "exemplar_seed": self.entry.seed,
            "prompt": self.prompt,
            "metric": self.outcome.metric,
            "value": self.outcome.value,
            "stderr": self.stderr,
            "n": self.n,
            "truncated": self.truncated,
            "cuts": dict(self.cuts),
            "answers": self.answers,
            "answering": self.answering,
            "seqio_task": self.entry.name,
            "split": self.split,
            "metrics": {name: _finite_mean([value]) for name, value in self.outcome.metrics.items()},
            "prompts_sha256": self.prompts_sha256,
        }


def prompt_word(prompt: int | None) -> str:
    """What people and names of files say of the prompt.

    >>> prompt_word(None), prompt_word(0)
    ('removed', 'attached')
    """
    return REMOVED if prompt is None else ATTACHED


def row(
    checkpoint: Mapping[str, Any],
    entry: catalog.Entry,
    role: str,
    prompt: int | None,
    answering: str,
    examples: EvaluationExamples,
    outcome: Evaluation,
    stderr: float | None,
    answers: str,
) -> Row:
    """A row and what is worth keeping of its examples; see `Row`.

    Args:
      checkpoint: with its "run" and "step".
      entry, role, prompt, answering, outcome, stderr, answers: see `Row`.
      examples: what was asked.
    """
    lost = (len(examples.examples), examples.truncated, examples.cuts)
    version = _task_version(examples.task_name, examples.split)
    asked = (entry, role, prompt, answering, outcome, stderr, *lost, version, _prompts_hash(examples), examples.split)
    return Row(checkpoint["run"], checkpoint["step"], *asked, answers)


def summarize(
    rows: Iterable[Row], *, config: Mapping[str, Any], checkpoint: Mapping[str, Any], versions: Mapping[str, str]
) -> dict[str, Any]:
    """The whole of scores.json.

    Args:
      rows: all rows, in the order in which their entries are to stand.
      config: settings; JSON values only.
      checkpoint: where the parameters came from and their fingerprints.
      versions: of packages.

    """
    rows = list(rows)
    entries: dict[str, list[Row]] = {}
    groups: dict[str, list[Row]] = {}
    for row in rows:
        entries.setdefault(row.key, []).append(row)
        groups.setdefault(row.group, []).append(row)
    return {
        "unit": comparison.UNIT,
        "results": {key: _entry(of_entry) for key, of_entry in entries.items()},
        "mean": {group: _mean(of_group) for group, of_group in groups.items()},
        "rows": [row.as_json() for row in rows],
        "config": dict(config),
        "checkpoint": dict(checkpoint),
        "versions": dict(versions),
    }


def _entry(rows: Sequence[Row]) -> dict[str, Any]:
    """The rows of one task, k and prompt; they differ in the seed of the exemplars."""
    first = rows[0]
    stderr, _ = comparison.mean_and_std([row.stderr for row in rows])
    value, seed_std = comparison.mean_and_std([row.outcome.value for row in rows])
    return {
        "task": first.entry.task,
        "role": first.role,
        "k": first.entry.k,
        "prompt": first.prompt,
        "metric": first.outcome.metric,
        "value": value,
        "stderr": stderr,
        "seed_std": seed_std,
        "n": first.n,
        "truncated": sum(row.truncated for row in rows),
        "answering": first.answering,
        "metrics": {name: _finite_mean([r.outcome.metrics[name] for r in rows]) for name in first.outcome.metrics},
        "notes": dict(first.outcome.notes),
        "task_version": first.task_version,
    }


def _mean(rows: Sequence[Row]) -> dict[str, Any]:
    """The plain mean over tasks (the paper's "Norm. Avg."), and the spread over seeds of the means of single seeds."""
    by_task: dict[str, dict[int | None, float]] = {}
    for row in rows:
        by_task.setdefault(row.entry.task, {})[row.entry.seed] = row.outcome.value
    seeds = list(next(iter(by_task.values())))
    same_seeds = all(list(values) == seeds for values in by_task.values())
    of_seeds = [statistics.fmean([values[seed] for values in by_task.values()]) for seed in seeds] if same_seeds else []
    return {
        "k": rows[0].entry.k,
        "prompt": rows[0].prompt,
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
    source = identity(split)
    if "tfds" in source:
        return f"tfds {source['tfds']}/{source['split']}"
    return f"jsonl {source['jsonl']}, sha256 {source['content'][:16]}"


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
    lines: list[tuple[str, ...]] = [
        ("task", "k", "prompt", "metric", results["unit"], "stderr", "seed std", "examples", "truncated")
    ]
    for entry in results["results"].values():
        names = (entry["task"], _shown(entry["k"]), prompt_word(entry["prompt"]), entry["metric"])
        lines.append((*names, *(_shown(entry[name]) for name in ("value", "stderr", "seed_std", "n", "truncated"))))
    for mean in results["mean"].values():
        of, prompt = f"mean of {len(mean['tasks'])}", prompt_word(mean["prompt"])
        lines.append((of, _shown(mean["k"]), prompt, "", _shown(mean["value"]), "", "", "", ""))
    return aligned(lines)


def _shown(value: float | int | None) -> str:
    return "-" if value is None else f"{value:.2f}" if isinstance(value, float) else str(value)
