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

from promot_t5x import (
    answering,
    evaluation,
    evaluation_results,
    examples,
    features,
    flags,
    gin_checks,
    initialize,
    launcher,
    predictions,
    records,
    soft_prompt,
)
from promot_t5x.evaluation_results import ATTACHED, REMOVED, Run
from promot_t5x.model import EncoderDecoderModel
from promot_t5x.partitioning import Partitioner
from promot_t5x.tasks import catalog

_DECIDE_ANSWERS = ("jax", "flax", "promot_t5x")


@dataclasses.dataclass(frozen=True)
class Plan:
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
    config: evaluation.EvaluationConfig
    prompts: Sequence[str] = (REMOVED,)
    prompt_id: int = 0

    def __post_init__(self):
        if not self.prompts or not set(self.prompts) <= {REMOVED, ATTACHED}:
            raise ValueError(f"eval.Plan.prompts is {tuple(self.prompts)}: expected 'removed', 'attached' or both.")

    def read(self, entry: catalog.Entry, limit: int | None) -> examples.EvalExamples:
        """The first examples of an entry, or all."""
        return examples.eval_examples(entry.name, self.config.task_feature_lengths, self.split, limit=limit)


@dataclasses.dataclass(frozen=True)
class _Checkpoint:
    """A model with its parameters, and what tells them apart from others."""

    model: EncoderDecoderModel
    params: Mapping[str, Any]
    facts: Mapping[str, Any]
    partitioner: Partitioner


def evaluate(
    model: EncoderDecoderModel,
    checkpoint_path: str,
    plan: Plan,
    output_dir: str,
    partitioner: Partitioner = Partitioner(),
) -> dict[str, Any]:
    """Scores a checkpoint and writes results.json, and per run a JSONL of every prompt, prediction, target and score.

    Answers are kept as they are made: a second call with the same folder asks only for those that are missing, or were
    made by another checkpoint or decoded otherwise.

    Args:
      model: the network and how it decodes.
      checkpoint_path: a checkpoint or run folder of ours or of T5X.
      plan: the tasks, and how they are asked.
      output_dir: where the files go.
      partitioner: the mesh.

    Returns:
      The results, as in results.json.

    Raises:
      FileNotFoundError: no checkpoint, or no data.
      ValueError: an unknown or empty split, a vocabulary or checkpoint of another network, no prompt to attach.
    """
    folder = epath.Path(output_dir)
    _check(plan, model, folder)
    loaded = initialize.load(checkpoint_path, model, partitioner)
    if ATTACHED in plan.prompts:
        answering.check_prompt(loaded.params, plan.prompt_id)
    prompt = loaded.params.get("soft_prompt")
    facts = {
        "path": checkpoint_path,
        "base": loaded.base_path,
        "base_fingerprint": loaded.base_fingerprint,
        "prompt_fingerprint": None if prompt is None else soft_prompt.fingerprint(prompt["embedding"]),
    }
    checkpoint = _Checkpoint(model, loaded.params, facts, partitioner)
    prompts = tuple(dict.fromkeys(plan.prompts))
    runs, total = [], len(plan.entries) * len(prompts)
    for entry in plan.entries:
        runs += [_run(checkpoint, plan, entry, p, folder, f"{len(runs) + i}/{total}") for i, p in enumerate(prompts, 1)]
        examples.forget()  # a large task's examples take gigabytes
    found = evaluation_results.summarize(
        runs, config=_config(model, plan), checkpoint=facts, versions=records.versions()
    )
    records.write(folder / "results.json", found)
    print(f"\n{evaluation_results.table(found)}\n\nResults: {folder / 'results.json'}")
    return found


def _check(plan: Plan, model: EncoderDecoderModel, folder: epath.Path) -> None:
    """Finds mistakes before the checkpoint is read."""
    file = folder / "results.json"
    if file.exists() and '"methods"' in file.read_text()[:100]:
        raise ValueError(
            f"{file} holds the results of a pipeline, which would be lost; set OUTPUT_DIR to another folder."
        )
    for entry in plan.entries:
        vocabulary = _vocabulary(entry)
        features.open_vocabulary(vocabulary)
        features.check_vocabulary(vocabulary, model.config.vocab_size)
        plan.read(entry, limit=1)


def _vocabulary(entry: catalog.Entry) -> seqio.Vocabulary:
    return seqio.TaskRegistry.get(entry.name).output_features["targets"].vocabulary


def _config(model: EncoderDecoderModel, plan: Plan) -> dict[str, Any]:
    """The settings that go into the results; where these are written plays no part in them."""
    bindings = launcher.bindings(launcher.resolved_config())
    return {
        "decoding": dataclasses.asdict(model.decoding),
        "split": plan.split,
        **dataclasses.asdict(plan.config),
        "gin": [line for line in bindings if not line.lower().startswith(("output_dir", "eval.evaluate.output_dir"))],
    }


def _run(checkpoint: _Checkpoint, plan: Plan, entry: catalog.Entry, prompt: str, folder: epath.Path, place: str) -> Run:
    """Answers one task, or the part of it that is not answered yet, and scores it."""
    asked = plan.read(entry, plan.config.limit)
    way = answering.ways(asked, plan.config.answering)
    prompt_id = plan.prompt_id if prompt == ATTACHED else None
    sampled = way == "generate" and checkpoint.model.decoding.method == "sample"
    keys = predictions.keys(asked, _made_by(checkpoint, plan.config, entry, way, prompt_id), numbered=sampled)
    kept = predictions.Answers(folder, f"{entry.name}.{plan.split}.{prompt}", keys)
    missing = [number for number in range(len(keys)) if number not in kept.known]
    if sampled and missing:  # which numbers a batch draws depends on its rows
        missing = list(range(len(keys)))
    answer = functools.partial(
        answering.answers,
        checkpoint.model,
        checkpoint.params,
        asked,
        way,
        length_normalized=plan.config.length_normalized,
        prompt_id=prompt_id,
        batch_size=plan.config.batch_size,
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
    outcome = evaluation.score(asked, [kept.known[number] for number in range(len(keys))])
    alone = evaluation.example_scores(asked, outcome)
    kept.finish(_rows(asked, outcome, alone))
    return evaluation_results.run(entry, prompt, way, asked, outcome, evaluation.standard_error(outcome, alone))


def _made_by(
    checkpoint: _Checkpoint,
    config: evaluation.EvaluationConfig,
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
        "vocabulary": features.vocabulary_name(_vocabulary(entry)),
        "answering": way,
        "versions": {name: version for name, version in records.versions().items() if name in _DECIDE_ANSWERS},
    }
    if way == "rank":
        return {**made_by, "length_normalized": config.length_normalized}
    decoding = dataclasses.asdict(checkpoint.model.decoding)
    made_by |= {"decoding": decoding, "length": config.task_feature_lengths["targets"]}
    # What is drawn for an example depends on its batch.
    batches = {"batch_size": config.batch_size, "limit": config.limit} if decoding["method"] == "sample" else {}
    return {**made_by, **batches}


def _rows(
    asked: examples.EvalExamples, outcome: evaluation.Evaluation, alone: Sequence[float | None]
) -> list[dict[str, Any]]:
    found = zip(asked.examples, outcome.predictions, asked.targets, alone, strict=True)
    return [
        {"prompt": predictions.input_text(example), "prediction": prediction, "target": target, "score": score}
        for example, prediction, target, score in found
    ]


def show(plan: Plan, count: int) -> None:
    """Prints the first prompts of every entry, with their targets; no model is made or loaded."""
    for entry in plan.entries:
        found = plan.read(entry, min(count, plan.config.limit or count))
        print(f"=== {entry.name}, {plan.split}: {len(found.examples)} prompts")
        for number, (example, target) in enumerate(zip(found.examples, found.targets, strict=True), start=1):
            length = int((found.features["encoder_input_tokens"][number - 1] != 0).sum())
            print(f"--- {number} ({length} tokens)\n{predictions.input_text(example)}\n--> {target}")
            if choices := features.choices(example):
                print(f"    of {', '.join(choices)}")


def parse(argv: Sequence[str]) -> flags.Invocation:
    """The command line, with what `--limit` and `--show` mean to gin among its bindings.

    >>> parse(["--limit=3"]).gin_bindings
    ('evaluation.EvaluationConfig.limit = 3',)
    """
    parser = flags.flag_parser("promot-t5x eval", "Scores a checkpoint on seqio tasks.")
    add = parser.add_argument
    add("--list", action="store_true", help="print all tasks and suites, with sizes and sources, and stop")
    add("--limit", type=int, metavar="N", help="score only the first N examples of every task")
    add("--show", type=int, metavar="N", help="print the first N prompts of every task, and stop")
    invocation = flags.parse_flags(argv, parser)
    bindings = list(invocation.gin_bindings)
    if invocation.extra["limit"] is not None:
        bindings.append(f"evaluation.EvaluationConfig.limit = {invocation.extra['limit']}")
    if invocation.extra["show"] is not None:  # what only a model needs may be left out
        if invocation.extra["show"] < 1:
            raise flags.ConfigError(f"--show={invocation.extra['show']} shows nothing: write a number from 1 on")
        bindings = ["CHECKPOINT_PATH = ''", "OUTPUT_DIR = ''", *bindings]
    return dataclasses.replace(invocation, gin_bindings=tuple(bindings))


def main(argv: Sequence[str]) -> None:
    """Runs `evaluate`, or `show`, as the gin files and flags say."""
    invocation = parse(argv)
    if invocation.extra["list"]:
        print(catalog.listing())
        return
    launcher.configure(invocation)
    gin_checks.check_flags()
    if invocation.dry_run:
        return
    if invocation.extra["show"] is not None:
        show(launcher.configurable(Plan)(), invocation.extra["show"])
    else:
        launcher.configurable(evaluate)()


if __name__ == "__main__":
    from promot_t5x import eval as binary

    sys.exit(launcher.run_main(binary.main))
