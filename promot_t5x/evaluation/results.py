"""Rows of scores -> the `scores.json` of an evaluation, in percent; docs/results.md describes it.

A row is one checkpoint's score on one task, for one number of exemplars, one exemplar seed, and the prompt removed or
attached. Rows that differ only in the seed are averaged into one entry.
"""

import dataclasses
import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import seqio

from promot_t5x.data.evaluation_examples import EvaluationExamples
from promot_t5x.evaluation.answer_store import input_text
from promot_t5x.evaluation.scoring import Evaluation
from promot_t5x.reports import result_files
from promot_t5x.reports.averages import grouped, overall, summarize
from promot_t5x.reports.scores import prompt_word
from promot_t5x.runtime import strict_json
from promot_t5x.tasks import catalog

ROLES = ("target", "sister", "other")

"""A task's relation to the training: its target, another task of the target's kind, or any other."""

# Keys in which the rows of one mean agree, and those of one entry.
_MEAN = ("step", "k", "prompt")
_ENTRY = (*_MEAN, "task")


@dataclasses.dataclass(frozen=True)
class Row:
    """One task, scored once.

    Attributes:
      run: the run whose checkpoint is scored.
      step: the checkpoint's training step; None if it does not state one.
      entry: the task, its number of exemplars and their seed.
      role: one of ROLES.
      prompt: id of the attached prompt, None for none.
      answering: "generate" or "rank".
      outcome: the scores.
      stderr: standard error of the score, None if unknown.
      n: number of examples.
      lengths: most tokens of inputs and targets.
      truncated: number of prompts that were cut to the length of inputs.
      cuts: what was lost, see `EvaluationExamples`.
      task_version: the version of the data.
      prompts_sha256: hash of all prompts and targets in order; rows with equal hashes are about the same questions.
      split: the split that was scored.
      answers: path of the file with every prompt, answer and score, relative to the folder of scores.json.
      batches: what `evaluation_batches.report` says.

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
    lengths: Mapping[str, int]
    truncated: int
    cuts: Mapping[str, int]
    task_version: str
    prompts_sha256: str
    split: str
    answers: str
    batches: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def __post_init__(self):
        if self.role not in ROLES:
            raise ValueError(f"The role of task {self.entry.name} is {self.role!r}: expected {', '.join(ROLES)}.")
        if not 0 <= self.outcome.value <= 100:
            raise ValueError(
                f"Metric {self.outcome.metric} of task {self.entry.name} is {self.outcome.value!r}, expected 0 to 100: "
                f"results are in {result_files.UNIT}, as seqio's and T5's metrics are; scale it in the metric function."
            )

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
            "lengths": dict(self.lengths),
            "truncated": self.truncated,
            "batches": dict(self.batches),
            "cuts": dict(self.cuts),
            "answers": self.answers,
            "answering": self.answering,
            "seqio_task": self.entry.name,
            "split": self.split,
            "metrics": strict_json.finite(dict(self.outcome.metrics)),
            "notes": dict(self.outcome.notes),
            "task_version": self.task_version,
            "prompts_sha256": self.prompts_sha256,
        }


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
    batches: Mapping[str, Any] | None = None,
) -> Row:
    """The row of one scored task; see `Row`.

    Args:
      checkpoint: has "run" and "step".
      entry, role, prompt, answering, outcome, stderr, answers, batches: see `Row`.
      examples: the examples that were answered.
    """
    return Row(
        run=checkpoint["run"],
        step=checkpoint["step"],
        entry=entry,
        role=role,
        prompt=prompt,
        answering=answering,
        outcome=outcome,
        stderr=stderr,
        n=len(examples.examples),
        lengths=examples.lengths,
        truncated=examples.truncated,
        cuts=examples.cuts,
        task_version=_task_version(examples.task_name, examples.split),
        prompts_sha256=_prompts_hash(examples),
        split=examples.split,
        answers=answers,
        batches=batches or {},
    )


def answer_rows(
    examples: EvaluationExamples, outcome: Evaluation, scores_alone: Sequence[float | None]
) -> list[dict[str, Any]]:
    """For each example, what the answers file has next to the answer."""
    columns = zip(examples.examples, outcome.predictions, examples.targets, scores_alone, strict=True)
    return [
        {"prompt": input_text(example), "prediction": prediction, "target": target, "score": score}
        for example, prediction, target, score in columns
    ]


def contents(
    rows: Iterable[Row],
    *,
    config: Mapping[str, Any],
    checkpoints: Sequence[Mapping[str, Any]],
    versions: Mapping[str, str],
) -> dict[str, Any]:
    """The contents of scores.json.

    Args:
      rows: all rows; entries and means keep the order of their first row.
      config: settings, JSON values only.
      checkpoints: for each scored checkpoint, where the parameters came from and their fingerprints.
      versions: versions of packages.
    """
    score_rows = [row.as_json() for row in rows]
    several = len({row["step"] for row in score_rows}) > 1
    entries = [_entry(members) for members in grouped(score_rows, _ENTRY).values()]
    means = [_mean(members) for members in grouped(score_rows, _MEAN).values()]
    return {
        "unit": result_files.UNIT,
        "results": {f"{entry['task']}_{_key(entry, several)}": entry for entry in entries},
        "mean": {_key(mean, several): mean for mean in means},
        "rows": score_rows,
        "config": dict(config),
        "checkpoints": [dict(checkpoint) for checkpoint in checkpoints],
        "versions": dict(versions),
    }


def _key(average: Mapping[str, Any], several: bool) -> str:
    """Such as "4shot_removed", with the step if several checkpoints were scored."""
    shots = [] if average["k"] is None else [f"{average['k']}shot"]
    step = [f"step{average['step']}"] if several else []
    return "_".join([*shots, prompt_word(average["prompt"]), *step])


def _entry(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The rows of one checkpoint, task, k and prompt; they differ in the seed of the exemplars."""
    first = rows[0]
    score = overall(rows)
    metrics = [{"name": name, "value": value} for row in rows for name, value in row["metrics"].items()]
    return {
        **{name: first[name] for name in ("step", "task", "role", "k", "prompt", "metric")},
        "value": score["value"],
        "stderr": overall({"value": row["stderr"]} for row in rows)["value"],
        "seed_std": score["std"],
        "n": first["n"],
        "truncated": sum(row["truncated"] for row in rows),
        "answering": first["answering"],
        "metrics": {metric["name"]: metric["value"] for metric in summarize(metrics, ("name",))},
        "notes": first["notes"],
        "task_version": first["task_version"],
    }


def _mean(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The plain mean over tasks (the paper's "Norm. Avg."), and the spread of the single seeds' means."""
    of_tasks, of_seeds = summarize(rows, ("task",)), summarize(rows, ("exemplar_seed",))
    same_seeds = all(mean["n"] == len(of_tasks) for mean in of_seeds)
    return {
        **{name: rows[0][name] for name in _MEAN},
        "value": overall(of_tasks)["value"],
        "seed_std": overall(of_seeds)["std"] if same_seeds else None,
        "tasks": [mean["task"] for mean in of_tasks],
    }


def _task_version(name: str, split: str) -> str:
    """Data set and version, or file and hash, of a task's split; the task's name if its source does not say."""
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
