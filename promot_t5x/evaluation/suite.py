"""Scores checkpoints on seqio tasks, with the soft prompt removed, attached, or both, and keeps answers on disk."""

import concurrent.futures
import dataclasses
import functools
import itertools
import os
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import seqio
from etils import epath

from promot_t5x.data import definitions, evaluation_examples, features, vocabularies
from promot_t5x.data.evaluation_examples import EvaluationExamples
from promot_t5x.evaluation import answer_store, answering, results, scoring
from promot_t5x.evaluation.results import ROLES, Row
from promot_t5x.evaluation.scored_checkpoint import Checkpoint, kept, load
from promot_t5x.models.encoder_decoder import EncoderDecoderModel
from promot_t5x.partitioning.partitioner import Partitioner
from promot_t5x.reports import scores
from promot_t5x.reports.scores import ATTACHED, REMOVED, prompt_word
from promot_t5x.runtime import arguments, background, files, settings
from promot_t5x.runtime.versions import versions
from promot_t5x.tasks import catalog

CHECKPOINT_MODES = ("best", "all")

"""Which checkpoints of a run's folder are scored."""

_SCORES = "scores.json"

_DECIDE_ANSWERS = ("jax", "flax", "promot_t5x")


@arguments.checked
@dataclasses.dataclass(frozen=True)
class Suite:
    """The tasks that a checkpoint is scored on.

    Attributes:
      entries: what `catalog.entries` returned.
      split: the split to score, the same for every task.
      config: lengths, batch size, limit, way of answering.
      prompts: "removed", "attached", or both.
      prompt_id: the prompt that "attached" attaches.
      role: the tasks' relation to the checkpoint's training: "target", "sister" or "other".
    """

    entries: Sequence[catalog.Entry]
    split: str
    config: scoring.EvaluationConfig
    prompts: Sequence[str] = (REMOVED,)
    prompt_id: int = 0
    role: str = "other"

    def __post_init__(self):
        if self.role not in ROLES:
            raise ValueError(f"eval.Suite.role is {self.role!r}: expected one of {', '.join(ROLES)}.")
        if not self.prompts or not set(self.prompts) <= {REMOVED, ATTACHED}:
            raise ValueError(f"eval.Suite.prompts is {tuple(self.prompts)}: expected 'removed', 'attached' or both.")

    @property
    def prompt_ids(self) -> tuple[int | None, ...]:
        """`prompts` as ids without repetition: None for no prompt."""
        return tuple(None if word == REMOVED else self.prompt_id for word in dict.fromkeys(self.prompts))

    def answers_name(self, entry: catalog.Entry, prompt_id: int | None) -> str:
        """The name of an entry's files of answers."""
        return f"{entry.name}.{self.split}.{prompt_word(prompt_id)}"

    def read(self, entry: catalog.Entry, limit: int | None) -> EvaluationExamples:
        """Reads the first `limit` examples of an entry, or all."""
        return evaluation_examples.evaluation_examples(
            entry.name, self.config.task_feature_lengths, self.split, limit=limit
        )


@arguments.checked
def evaluate_suite(
    model: EncoderDecoderModel,
    checkpoint_path: str | os.PathLike[str],
    suite: Suite,
    output_dir: str | os.PathLike[str],
    partitioner: Partitioner = Partitioner(),
    checkpoint_mode: str = "best",
) -> dict[str, Any]:
    """Scores checkpoints; writes scores.json and, per row, a JSONL of every prompt, prediction, target and score.

    Answers are stored as they are made: a second call with the same folder answers only what is missing, or was
    answered by another checkpoint or with other decoding settings.

    Args:
      model: the network and how it decodes.
      checkpoint_path: a checkpoint or run folder of ours or of T5X.
      suite: the tasks, and how they are answered.
      output_dir: the folder for the files.
      partitioner: the mesh.
      checkpoint_mode: "best" scores one checkpoint, the best one of a run's folder. "all" scores every checkpoint in a
        run's folder, one after the other, and writes the answers of each into a subfolder `checkpoint_<step>`; the data
        are read once, and the program is compiled once.

    Returns:
      The results, as in scores.json.

    Raises:
      FileNotFoundError: no checkpoint, or no data.
      ValueError: an unknown or empty split, another network's vocabulary or checkpoint, a prompt that the checkpoint
        lacks, or mode "all" for a path that is not a run's folder.
    """
    folder, checkpoint_path = check_output(suite, output_dir), os.fspath(checkpoint_path)
    if checkpoint_mode not in CHECKPOINT_MODES:
        raise ValueError(
            f"CHECKPOINT_MODE is {checkpoint_mode!r}: expected 'best' or 'all' (checkpoints of a run's folder)."
        )
    paths = [checkpoint_path] if checkpoint_mode == "best" else kept(checkpoint_path)
    if checkpoint_mode == "all" and folder == files.absolute(checkpoint_path):
        raise ValueError(
            f"EVAL_OUTPUT_DIR is {output_dir}, the run's own folder, whose checkpoints would get files of answers "
            "among their own; give another folder."
        )
    check(suite, model)
    rows: list[concurrent.futures.Future[Row]] = []
    origins: list[Mapping[str, Any]] = []
    examples: dict[str, EvaluationExamples] = {}

    def read(entry: catalog.Entry) -> EvaluationExamples:
        return examples.pop(entry.name, None) or suite.read(entry, suite.config.limit)

    total = len(paths) * len(suite.entries) * len(suite.prompt_ids)
    with background.Worker() as worker:
        for path in paths:
            subfolder = "" if checkpoint_mode == "best" else epath.Path(path).name
            is_last = len(origins) == len(paths) - 1
            checkpoint = load(path, model, partitioner, run=checkpoint_path)
            if ATTACHED in suite.prompts:
                answering.check_prompt(checkpoint.params, suite.prompt_id)
            # While the devices answer one task, the next one is read and the one before is scored.
            upcoming = worker.ahead([functools.partial(read, entry) for entry in suite.entries])
            for entry, task_examples in zip(suite.entries, upcoming, strict=True):
                for prompt_id in suite.prompt_ids:
                    place = f"{len(rows) + 1}/{total}"
                    answered = answer_task(checkpoint, suite, entry, prompt_id, task_examples, folder, place, subfolder)
                    if rows:
                        rows[-1].result()  # raises its errors; at most one task waits for its scores
                    rows.append(worker.submit(answered))
                if is_last:
                    evaluation_examples.forget()  # a large task's examples take gigabytes
                else:
                    examples[entry.name] = task_examples
            origins.append(checkpoint.origin)
            del checkpoint  # frees its parameters on the devices before the next ones are loaded
        scored = [row.result() for row in rows]
    summary = results.contents(scored, config=_config(model, suite), checkpoints=origins, versions=versions())
    files.write_json(folder / _SCORES, summary)
    print(f"\n{scores.text_table(summary)}\n\nResults: {folder / _SCORES}")
    return summary


def check_output(suite: Suite, output_dir: str | os.PathLike[str]) -> epath.Path:
    """The folder for scores and answers, checked before the work; raises what `answer_store.check` raises."""
    folder = files.writable_folder(output_dir, "EVAL_OUTPUT_DIR")
    files.writable_file(folder / _SCORES, "EVAL_OUTPUT_DIR")
    for entry, prompt_id in itertools.product(suite.entries, suite.prompt_ids):
        answer_store.check(folder, suite.answers_name(entry, prompt_id), "EVAL_OUTPUT_DIR")
    return folder


def check(suite: Suite, model: EncoderDecoderModel) -> None:
    """Finds mistakes in the suite before the checkpoint is read: opens its vocabularies, reads an example of each task.

    Raises:
      FileNotFoundError, ValueError: see `evaluate_suite`.
    """
    ways: dict[str, str] = {}
    for entry in suite.entries:
        vocabularies.check_task(entry.name, "eval.Suite.entries", model.config.vocab_size)
        ways[entry.task] = answering.ways(suite.read(entry, limit=1), suite.config.answering)
    if suite.config.answering not in ways.values():
        raise ValueError(
            f"ANSWERING is {suite.config.answering!r}, but no task has choices to rank: {', '.join(ways)}; set "
            "ANSWERING='generate'."
        )


def _vocabulary(entry: catalog.Entry) -> seqio.Vocabulary:
    return seqio.TaskRegistry.get(entry.name).output_features["targets"].vocabulary


def _config(model: EncoderDecoderModel, suite: Suite) -> dict[str, Any]:
    """The settings that are recorded in the results, without the output folder."""
    made_of = [definitions.made_of(entry.name, "eval.Suite.entries", [suite.split]) for entry in suite.entries]
    return {
        "decoding": dataclasses.asdict(model.decoding),
        "split": suite.split,
        **dataclasses.asdict(suite.config),
        "model": settings.describe(model),
        "suite": settings.describe(suite),
        "tasks": settings.describe({name: task for tasks in made_of for name, task in tasks.items()}),
    }


def answer_task(
    checkpoint: Checkpoint,
    suite: Suite,
    entry: catalog.Entry,
    prompt_id: int | None,
    examples: EvaluationExamples,
    folder: epath.Path,
    place: str,
    subfolder: str = "",
) -> Callable[[], Row]:
    """Answers the examples of one task that have no answer yet.

    Args:
      checkpoint: what `load` returned.
      suite: the split and way of answering.
      entry: the task, one of the suite's.
      prompt_id: the prompt to attach, None to remove it.
      examples: the task's, as `Suite.read` returned them.
      folder: the folder of scores.json.
      place: the beginning of the progress bar's text.
      subfolder: subfolder of `folder` for the answers.

    Returns:
      The function that scores the task and stores its answers with their scores; it needs no device.
    """
    way = answering.ways(examples, suite.config.answering)
    sampled = way == "generate" and checkpoint.model.decoding.method == "sample"
    determined_by = made_by(checkpoint, suite.config, _vocabulary(entry), way, prompt_id)
    keys = answer_store.keys(examples.examples, determined_by, numbered=sampled)
    name = str(pathlib.PurePosixPath(subfolder, suite.answers_name(entry, prompt_id)))
    stored = answer_store.Answers(folder, name, keys)
    answer = functools.partial(
        answering.answers,
        checkpoint.model,
        checkpoint.params,
        examples,
        way,
        length_normalized=suite.config.length_normalized,
        prompt_id=prompt_id,
        batch_size=suite.config.batch_size,
        partitioner=checkpoint.partitioner,
    )
    description = f"{' '.join(filter(None, (place, subfolder, entry.name)))}, prompt {prompt_word(prompt_id)}"
    answers = stored.complete(lambda missing: answer(rows=missing), description, together=sampled)
    batches = answering.report(examples, way, suite.config.batch_size, checkpoint.partitioner)
    origin = checkpoint.origin  # not the checkpoint, whose parameters are freed while this task is scored

    def scored() -> Row:
        outcome = scoring.score(examples, answers)
        scores_alone = scoring.example_scores(examples, outcome)
        stored.finish(results.answer_rows(examples, outcome, scores_alone))
        stderr = scoring.standard_error(outcome, scores_alone)
        return results.row(
            origin, entry, suite.role, prompt_id, way, examples, outcome, stderr, f"{name}.jsonl", batches
        )

    return scored


def made_by(
    checkpoint: Checkpoint,
    config: scoring.EvaluationConfig,
    vocabulary: seqio.Vocabulary,
    way: str,
    prompt_id: int | None,
) -> dict[str, Any]:
    """Everything that determines an answer, except the example itself; see `answer_store.keys`."""
    attached = None if prompt_id is None else [prompt_id, checkpoint.origin["prompt_fingerprint"]]
    determined_by = {
        "checkpoint": checkpoint.origin["base_fingerprint"],
        "attached": attached,
        "network": dataclasses.asdict(checkpoint.model.config),
        "vocabulary": vocabularies.vocabulary_hash(vocabulary),
        "answering": way,
        "versions": {name: version for name, version in versions().items() if name in _DECIDE_ANSWERS},
    }
    if way == "rank":
        return {**determined_by, "length_normalized": config.length_normalized}
    decoding = dataclasses.asdict(checkpoint.model.decoding)
    determined_by |= {"decoding": decoding, "length": config.task_feature_lengths["targets"]}
    # A sampled answer depends on its batch.
    batches = {"batch_size": config.batch_size, "limit": config.limit} if decoding["method"] == "sample" else {}
    return {**determined_by, **batches}


def show(suite: Suite, count: int) -> None:
    """Prints the first prompts of every entry with their targets, without making or loading a model."""
    for entry in suite.entries:
        examples = suite.read(entry, min(count, suite.config.limit or count))
        print(f"=== {entry.name}, {suite.split}: {len(examples.examples)} prompts")
        for number, (example, target) in enumerate(zip(examples.examples, examples.targets, strict=True), start=1):
            length = int((examples.features["encoder_input_tokens"][number - 1] != 0).sum())
            print(f"--- {number} ({length} tokens)\n{answer_store.input_text(example)}\n--> {target}")
            if choices := features.choices(example):
                print(f"    of {', '.join(choices)}")
