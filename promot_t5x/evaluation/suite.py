"""The eval binary: scores one checkpoint on seqio tasks, with the soft prompt removed, attached, or both.

    python -m promot_t5x.eval --gin_file=models/mt5_xxl.gin --gin_file=suites/in_context.gin \
        --gin.CHECKPOINT_PATH=/path/to/run --gin.OUTPUT_DIR=/tmp/scores
"""

import dataclasses
import functools
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import seqio
import tqdm
from etils import epath

from promot_t5x.checkpoints import fingerprints, loading
from promot_t5x.configuration import gin_files
from promot_t5x.data import evaluation_examples, features, vocabularies
from promot_t5x.evaluation import answer_store, answering, results, scoring
from promot_t5x.evaluation.results import ATTACHED, REMOVED, Run
from promot_t5x.models.encoder_decoder import EncoderDecoderModel
from promot_t5x.partitioning.partitioner import Partitioner
from promot_t5x.runtime import files
from promot_t5x.runtime.versions import versions
from promot_t5x.tasks import catalog

_DECIDE_ANSWERS = ("jax", "flax", "promot_t5x")


@dataclasses.dataclass(frozen=True)
class Suite:
    """What is asked of a checkpoint.

    Attributes:
      entries: what `catalog.entries` returned.
      split: the split of every task.
      config: lengths, batch size, limit, way of answering.
      prompts: "removed", "attached", or both.
      prompt_id: the prompt that "attached" attaches.
    """

    entries: Sequence[catalog.Entry]
    split: str
    config: scoring.EvaluationConfig
    prompts: Sequence[str] = (REMOVED,)
    prompt_id: int = 0

    def __post_init__(self):
        if not self.prompts or not set(self.prompts) <= {REMOVED, ATTACHED}:
            raise ValueError(f"eval.Suite.prompts is {tuple(self.prompts)}: expected 'removed', 'attached' or both.")

    def read(self, entry: catalog.Entry, limit: int | None) -> evaluation_examples.EvaluationExamples:
        """The first examples of an entry, or all."""
        return evaluation_examples.evaluation_examples(
            entry.name, self.config.task_feature_lengths, self.split, limit=limit
        )


@dataclasses.dataclass(frozen=True)
class _Checkpoint:
    """A model with its parameters, and what tells them apart from others."""

    model: EncoderDecoderModel
    params: Mapping[str, Any]
    facts: Mapping[str, Any]
    partitioner: Partitioner


def evaluate_suite(
    model: EncoderDecoderModel,
    checkpoint_path: str,
    suite: Suite,
    output_dir: str,
    partitioner: Partitioner = Partitioner(),
) -> dict[str, Any]:
    """Scores a checkpoint and writes results.json, and per run a JSONL of every prompt, prediction, target and score.

    Answers are kept as they are made: a second call with the same folder asks only for those that are missing, or were
    made by another checkpoint or decoded otherwise.

    Args:
      model: the network and how it decodes.
      checkpoint_path: a checkpoint or run folder of ours or of T5X.
      suite: the tasks, and how they are asked.
      output_dir: where the files go.
      partitioner: the mesh.

    Returns:
      The results, as in results.json.

    Raises:
      FileNotFoundError: no checkpoint, or no data.
      ValueError: an unknown or empty split, a vocabulary or checkpoint of another network, no prompt to attach.
    """
    folder = epath.Path(output_dir)
    _check(suite, model, folder)
    loaded = loading.load(checkpoint_path, model, partitioner)
    if ATTACHED in suite.prompts:
        answering.check_prompt(loaded.params, suite.prompt_id)
    prompt = loaded.params.get("soft_prompt")
    facts = {
        "path": checkpoint_path,
        "base": loaded.base_path,
        "base_fingerprint": loaded.base_fingerprint,
        "prompt_fingerprint": None if prompt is None else fingerprints.of_prompt(prompt["embedding"]),
    }
    checkpoint = _Checkpoint(model, loaded.params, facts, partitioner)
    prompts = tuple(dict.fromkeys(suite.prompts))
    runs, total = [], len(suite.entries) * len(prompts)
    for entry in suite.entries:
        runs += [
            _run(checkpoint, suite, entry, p, folder, f"{len(runs) + i}/{total}") for i, p in enumerate(prompts, 1)
        ]
        evaluation_examples.forget()  # a large task's examples take gigabytes
    found = results.summarize(runs, config=_config(model, suite), checkpoint=facts, versions=versions())
    files.write_json(folder / "results.json", found)
    print(f"\n{results.table(found)}\n\nResults: {folder / 'results.json'}")
    return found


def _check(suite: Suite, model: EncoderDecoderModel, folder: epath.Path) -> None:
    """Finds mistakes before the checkpoint is read."""
    file = folder / "results.json"
    if file.exists() and '"methods"' in file.read_text()[:100]:
        raise ValueError(
            f"{file} holds the results of a pipeline, which would be lost; set OUTPUT_DIR to another folder."
        )
    for entry in suite.entries:
        vocabulary = _vocabulary(entry)
        vocabularies.open_vocabulary(vocabulary)
        vocabularies.check_vocabulary(vocabulary, model.config.vocab_size)
        suite.read(entry, limit=1)


def _vocabulary(entry: catalog.Entry) -> seqio.Vocabulary:
    return seqio.TaskRegistry.get(entry.name).output_features["targets"].vocabulary


def _config(model: EncoderDecoderModel, suite: Suite) -> dict[str, Any]:
    """The settings that go into the results; where these are written plays no part in them."""
    bindings = gin_files.bindings(gin_files.resolved_config())
    return {
        "decoding": dataclasses.asdict(model.decoding),
        "split": suite.split,
        **dataclasses.asdict(suite.config),
        "gin": [line for line in bindings if not line.lower().startswith(("output_dir", "eval.evaluate.output_dir"))],
    }


def _run(
    checkpoint: _Checkpoint, suite: Suite, entry: catalog.Entry, prompt: str, folder: epath.Path, place: str
) -> Run:
    """Answers one task, or the part of it that is not answered yet, and scores it."""
    asked = suite.read(entry, suite.config.limit)
    way = answering.ways(asked, suite.config.answering)
    prompt_id = suite.prompt_id if prompt == ATTACHED else None
    sampled = way == "generate" and checkpoint.model.decoding.method == "sample"
    keys = answer_store.keys(asked, _made_by(checkpoint, suite.config, entry, way, prompt_id), numbered=sampled)
    kept = answer_store.Answers(folder, f"{entry.name}.{suite.split}.{prompt}", keys)
    missing = [number for number in range(len(keys)) if number not in kept.known]
    if sampled and missing:  # which numbers a batch draws depends on its rows
        missing = list(range(len(keys)))
    answer = functools.partial(
        answering.answers,
        checkpoint.model,
        checkpoint.params,
        asked,
        way,
        length_normalized=suite.config.length_normalized,
        prompt_id=prompt_id,
        batch_size=suite.config.batch_size,
        partitioner=checkpoint.partitioner,
    )
    with tqdm.tqdm(
        desc=f"{place} {entry.name}, prompt {prompt}",
        total=len(keys),
        initial=len(keys) - len(missing),
        unit=" examples",
        mininterval=0.5 if sys.stderr.isatty() else 10.0,
    ) as bar:
        try:
            for numbers, answers in answer(rows=missing):
                kept.add(numbers, answers)
                bar.update(len(numbers))
        finally:
            kept.flush()
    outcome = scoring.score(asked, [kept.known[number] for number in range(len(keys))])
    alone = scoring.example_scores(asked, outcome)
    kept.finish(_rows(asked, outcome, alone))
    return results.run(entry, prompt, way, asked, outcome, scoring.standard_error(outcome, alone))


def _made_by(
    checkpoint: _Checkpoint,
    config: scoring.EvaluationConfig,
    entry: catalog.Entry,
    way: str,
    prompt_id: int | None,
) -> dict[str, Any]:
    """Everything but the prompt itself that decides an answer."""
    attached = None if prompt_id is None else [prompt_id, checkpoint.facts["prompt_fingerprint"]]
    made_by = {
        "checkpoint": checkpoint.facts["base_fingerprint"],
        "attached": attached,
        "network": dataclasses.asdict(checkpoint.model.config),
        "vocabulary": vocabularies.vocabulary_hash(_vocabulary(entry)),
        "answering": way,
        "versions": {name: version for name, version in versions().items() if name in _DECIDE_ANSWERS},
    }
    if way == "rank":
        return {**made_by, "length_normalized": config.length_normalized}
    decoding = dataclasses.asdict(checkpoint.model.decoding)
    made_by |= {"decoding": decoding, "length": config.task_feature_lengths["targets"]}
    # What is drawn for an example depends on its batch.
    batches = {"batch_size": config.batch_size, "limit": config.limit} if decoding["method"] == "sample" else {}
    return {**made_by, **batches}


def _rows(
    asked: evaluation_examples.EvaluationExamples, outcome: scoring.Evaluation, alone: Sequence[float | None]
) -> list[dict[str, Any]]:
    found = zip(asked.examples, outcome.predictions, asked.targets, alone, strict=True)
    return [
        {"prompt": answer_store.input_text(example), "prediction": prediction, "target": target, "score": score}
        for example, prediction, target, score in found
    ]


def show(suite: Suite, count: int) -> None:
    """Prints the first prompts of every entry, with their targets; no model is made or loaded."""
    for entry in suite.entries:
        found = suite.read(entry, min(count, suite.config.limit or count))
        print(f"=== {entry.name}, {suite.split}: {len(found.examples)} prompts")
        for number, (example, target) in enumerate(zip(found.examples, found.targets, strict=True), start=1):
            length = int((found.features["encoder_input_tokens"][number - 1] != 0).sum())
            print(f"--- {number} ({length} tokens)\n{answer_store.input_text(example)}\n--> {target}")
            if choices := features.choices(example):
                print(f"    of {', '.join(choices)}")
