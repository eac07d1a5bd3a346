"""Scores a run's best checkpoint; scores are kept in the run's folder, as `eval` writes them, and reused."""

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

from absl import logging
from etils import epath

from promot_t5x.checkpoints import saving, sources
from promot_t5x.data import definitions, vocabularies
from promot_t5x.evaluation import results, scoring, suite
from promot_t5x.models.encoder_decoder import EncoderDecoderModel
from promot_t5x.partitioning.partitioner import Partitioner
from promot_t5x.recipes.methods import PRETRAINED
from promot_t5x.recipes.recipe import PlannedRun, Recipe, planned_runs
from promot_t5x.reports import comparison, result_files
from promot_t5x.reports import scores as scores_file
from promot_t5x.reports.result_files import ANY, NUMBER, TEXT, Table
from promot_t5x.runtime import files, settings, strict_json
from promot_t5x.runtime.versions import versions
from promot_t5x.tasks import catalog

# What a comparison takes from a run's scores.json.
_ROW = {
    **{name: TEXT for name in ("role", "seqio_task", "split", "answers")},
    **{name: NUMBER for name in ("step", "k", "prompt", "value", "n", "truncated")},
    "cuts": Table(NUMBER),
}
_OF_RUN = {"rows": [_ROW], "checkpoints": [{"base_fingerprint": TEXT}], "details": Table(ANY)}
_KIND = dataclasses.replace(scores_file.KIND, contents={**scores_file.KIND.contents, **_OF_RUN})


def decided_by(recipe: Recipe, model: EncoderDecoderModel, config: scoring.EvaluationConfig) -> dict[str, Any]:
    """What the scores of all runs depend on, as JSON values: the network, the tasks, the evaluation's settings."""
    tasks: dict[str, Any] = {}
    splits = {task: [recipe.in_context_split] for task in recipe.in_context}
    splits.setdefault(recipe.target, []).append(recipe.target_split)
    for task, read in splits.items():
        tasks |= definitions.made_of(task, "pipeline.Recipe", read)
    return settings.describe({"model": model, "evaluation": config, "tasks": tasks})


def scores(
    recipe: Recipe,
    planned: PlannedRun,
    work_dir: epath.Path,
    decided_by: Mapping[str, Any],
    model: EncoderDecoderModel,
    config: scoring.EvaluationConfig,
    partitioner: Partitioner,
) -> dict[str, Any]:
    """Scores a run's checkpoint on the target and the in-context tasks, on splits that played no part in any choice.

    The target is scored with the run's prompt attached, the in-context tasks with it removed and, for comparison,
    attached. Prompts, answers and scores of single examples are kept next to scores.json.

    Args:
      recipe: names the tasks and splits.
      planned: the run.
      work_dir: the recipe's folder.
      decided_by: what else the scores depend on, JSON values only, including the path of the "checkpoint"; existing
        scores that depend on other values, or on other weights at this path, are measured again.
      model, config, partitioner: see `scoring.evaluate`.

    Returns:
      The contents of the run's scores.json.
    """
    folder = work_dir / planned.name
    file = folder / "scores.json"
    decided_by = {
        **decided_by,
        "target": recipe.target,
        "target_lengths": recipe.target_lengths and dict(recipe.target_lengths),
        "in_context": list(recipe.in_context),
        "prompt": planned.prompt,
    }
    decided_by["splits"] = [recipe.target_split, recipe.in_context_split]
    decided_by["weights"], checkpoint = _weights(planned, decided_by["checkpoint"], model, partitioner)
    if (kept := _kept(file)).get("decided_by") == decided_by:
        return kept
    checkpoint = checkpoint or suite.load(decided_by["checkpoint"], model, partitioner, run=planned.name)
    questions = list(_questions(recipe, planned, config))
    rows = []
    for number, (questions_suite, prompt) in enumerate(questions, start=1):
        (entry,) = questions_suite.entries
        examples = questions_suite.read(entry, config.limit)
        place = f"{number}/{len(questions)}"
        rows.append(suite.answer_task(checkpoint, questions_suite, entry, prompt, examples, folder, place)())
    summary = results.contents(rows, config={}, checkpoints=[checkpoint.origin], versions=versions())
    chosen = saving.read_metadata(decided_by["checkpoint"]) if planned.trains else {}
    details = {"chosen step": chosen["step"], "validation score": chosen["score"]} if chosen else {}
    summary = strict_json.sealed({**summary, "details": details, "decided_by": decided_by})
    files.write_json(file, summary)
    return summary


def _weights(
    planned: PlannedRun, path: str, model: EncoderDecoderModel, partitioner: Partitioner
) -> tuple[str | None, suite.Checkpoint | None]:
    """What tells a checkpoint from another one at its path, and the loaded checkpoint if it had to be read for that.

    A foreign checkpoint has to be read. Nothing is needed of the recipe's pretrained model, whose fingerprint is known,
    nor of a run's checkpoint from before checkpoints had digests.
    """
    if not planned.trains and planned.starts_from == (PRETRAINED,) and planned.prompt is None:
        return None, None
    if (recorded := sources.recorded_weights(path)) is not None or planned.trains:
        return recorded, None
    checkpoint = suite.load(path, model, partitioner, run=planned.name)
    return f"{checkpoint.origin['base_fingerprint']} {checkpoint.origin['prompt_fingerprint']}", checkpoint


def _kept(file: epath.Path) -> dict[str, Any]:
    """The contents of a scores.json; nothing of one that is missing, damaged or older, which is measured again."""
    try:
        kept = result_files.read(file, _KIND) if file.exists() else {}
    except ValueError as error:
        logging.warning("%s The run is scored again.", error)
        return {}
    if kept and not strict_json.is_sealed(kept):
        logging.warning("%s does not have its checksum; the run is scored again", file)
        return {}
    return kept if kept.get("checkpoints") else {}


def _questions(
    recipe: Recipe, planned: PlannedRun, config: scoring.EvaluationConfig
) -> Iterator[tuple[suite.Suite, int | None]]:
    """Yields suites of one task each, and the prompt to attach."""
    lengths = recipe.target_lengths or config.task_feature_lengths
    of_target = dataclasses.replace(config, task_feature_lengths=lengths)
    yield suite.Suite([catalog.entry(recipe.target)], recipe.target_split, of_target, role="target"), planned.prompt
    for prompt in dict.fromkeys((None, planned.prompt)):
        for task in recipe.in_context:
            yield suite.Suite([catalog.entry(task)], recipe.in_context_split, config, role="other"), prompt


def check(recipe: Recipe, model: EncoderDecoderModel) -> None:
    """Opens the vocabularies of a recipe's tasks; raises what `vocabularies.check_task` raises."""
    for task in (recipe.target, *recipe.in_context):
        vocabularies.check_task(task, "pipeline.Recipe", model.config.vocab_size)


def check_data(recipe: Recipe, model: EncoderDecoderModel, config: scoring.EvaluationConfig) -> None:
    """Makes the `check`, and reads an example of each task that a recipe's runs are scored on.

    Raises:
      FileNotFoundError, ValueError: see `check` and `evaluation_examples`.
    """
    check(recipe, model)
    unscored = planned_runs(recipe)[0]
    for questions_suite, _ in _questions(recipe, unscored, config):
        (entry,) = questions_suite.entries
        questions_suite.read(entry, limit=1)


def comparison_run(planned: PlannedRun, run_scores: Mapping[str, Any]) -> comparison.Run:
    """A run for the comparison, with paths of answers relative to WORK_DIR.

    Args:
      planned: the run.
      run_scores: what `scores` returned.
    """
    rows = [{**row, "answers": f"{planned.name}/{row['answers']}"} for row in run_scores["rows"]]
    return comparison.Run(planned.method, planned.learning_rate, planned.seed, rows, run_scores["details"])
