"""One split of one seqio task for evaluation: in its source's order, every example once.

Dimensions: T encoder length, U decoder length, N examples.
"""

import collections
import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import seqio
import tensorflow as tf
from absl import logging

from promot_t5x.data import cuts, features, prompt_examples, text_examples, vocabularies
from promot_t5x.data.columns import Columns
from promot_t5x.tasks import few_shot


@dataclasses.dataclass(frozen=True)
class EvaluationExamples:
    """One split of one task, in the order of its source.

    Attributes:
      task_name: the seqio task.
      split: the split.
      examples: N examples as the task produces them for the given lengths, with inputs_pretokenized and
        targets_pretokenized if the task provides them.
      targets: N targets after the task's postprocessing, as its metrics take them.
      features: encoder_input_tokens NxT (T is the longest input's length), decoder_input_tokens,
        decoder_target_tokens and decoder_loss_weights NxU.
      truncated: number of prompts that were shortened to fit the length of inputs.
      cuts: what was lost: the number of examples with `input_cut`, with `target_cut`, which does not affect
        predictions, and with `target_unwritable`; for a task that shortens its own prompts also the sums of the other
        `cuts.OF_PROMPTS`; for a task with choices the number of examples in which two choices are equal as tokens.
      lengths: {"inputs": T, "targets": U}, to which longer examples were cut.
    """

    task_name: str
    split: str
    examples: Sequence[Mapping[str, Any]]
    targets: list[Any]
    features: dict[str, np.ndarray]
    truncated: int
    cuts: Mapping[str, int] = dataclasses.field(default_factory=dict)
    lengths: Mapping[str, int] = dataclasses.field(default_factory=dict)


def evaluation_examples(
    task_name: str, task_feature_lengths: Mapping[str, int], split: str, *, limit: int | None = None
) -> EvaluationExamples:
    """Reads a split for evaluation, unshuffled; the result is cached per task object.

    Args:
      task_name: a task of seqio's registry, not a mixture.
      task_feature_lengths: {"inputs": T, "targets": U}; longer examples are trimmed as seqio does, and counted.
      split: the split to read.
      limit: the number of examples to take from the start; None for all.

    Returns:
      The examples. `soft_prompt_ids` is not among the features: the evaluation chooses whether a prompt is attached.

    Raises:
      FileNotFoundError: a vocabulary file is missing.
      ValueError: the task or split is unknown, the split is empty, a length is invalid, or a vocabulary file cannot be
        read.
    """
    features.check_lengths(task_feature_lengths, "task_feature_lengths")
    if limit is not None and limit < 1:
        raise ValueError(f"limit is {limit!r}, expected a positive number of examples, or None for all of them.")
    task = features.find(task_name, "task_name")
    if not isinstance(task, seqio.Task):
        raise ValueError(f"task_name={task_name!r} is a mixture, expected one task: name its tasks one by one.")
    features.check_split(task, split)
    vocabularies.open_vocabularies(task)
    return _read(task, tuple(task_feature_lengths.items()), split, limit)


# A run evaluates the same splits at every checkpoint and a recipe for every method; reading takes longer than decoding.
@functools.lru_cache(maxsize=32)
def _read(task: seqio.Task, lengths: tuple[tuple[str, int], ...], split: str, limit: int | None) -> EvaluationExamples:
    task_feature_lengths = dict(lengths)

    examples, cuts_N = _read_with_cuts(task, task_feature_lengths, split, limit)
    if not examples:
        raise ValueError(f"Split {split!r} of task {task.name!r} is empty, expected examples: check the task's source.")
    counts = {name: int(cut_N.sum()) for name, cut_N in cuts_N.items()}
    truncated = int(((cuts_N.get("exemplars_dropped", 0) > 0) | (cuts_N["input_cut"] > 0)).sum())
    targets: list[Any] = []
    with_choices: collections.Counter[tuple[str, ...]] = collections.Counter()
    for example in examples:
        targets.append(_target(task, example))
        with_choices[tuple(features.choices(example))] += 1
    if any(with_choices):
        counts[cuts.EQUAL_CHOICES] = _equal_choices(with_choices, task.output_features["targets"].vocabulary)
    if len(examples) > 1:  # a single one is read to see whether the split is there
        where = f"Of {len(examples)} examples of {task.name}/{split}"
        if warning := cuts.warning(counts, where, task_feature_lengths, "the task's feature lengths"):
            logging.warning("%s", warning)
    tokens = {key: _tokens(examples, key) for key in task_feature_lengths}
    widths = {**task_feature_lengths, "inputs": max(1, *map(len, tokens["inputs"]))}
    arrays = features.converted({k: features.padded(tokens[k], n) for k, n in widths.items()})
    return EvaluationExamples(task.name, split, examples, targets, arrays, truncated, counts, task_feature_lengths)


def forget() -> None:
    """Drops what `evaluation_examples` has cached."""
    _read.cache_clear()


def _read_with_cuts(
    task: seqio.Task, lengths: Mapping[str, int], split: str, limit: int | None
) -> tuple[Sequence[Mapping[str, Any]], dict[str, np.ndarray]]:
    """The examples as the task produces them, and what was cut from each."""
    if few_shot.is_only_prompts(task):
        columns = prompt_examples.read(task, lengths, split, limit)
        return columns.with_numbers(cuts.OF_PROMPTS), {name: columns.numbers[name] for name in cuts.ALL}
    noted = text_examples.read(task, lengths, split, limit) if text_examples.only_tokenizes(task) else None
    if noted is None:
        dataset = cuts.noting(task).get_dataset(lengths, split=split, shuffle=False)
        noted = list(features.as_numpy(dataset.take(-1 if limit is None else limit)))
    own = cuts.OF_PROMPTS if noted and cuts.shortens_prompts(noted[0]) else ()
    cuts_N = {name: cut_N for name, cut_N in cuts.counts(noted).items() if name in (*own, *cuts.OF_TASKS)}
    hidden = set(cuts.ALL) - set(own)
    return tuple({k: v for k, v in example.items() if k not in hidden} for example in noted), cuts_N


def _tokens(examples: Sequence[Mapping[str, Any]], key: str) -> Sequence[np.ndarray]:
    """The tokens of all examples."""
    return examples.tokens[key] if isinstance(examples, Columns) else [example[key] for example in examples]


def _equal_choices(examples: Mapping[tuple[str, ...], int], vocabulary: seqio.Vocabulary) -> int:
    """The number of examples of which choices of different texts are the same tokens, from their number by choices."""
    encoded = functools.cache(lambda choice: tuple(vocabulary.encode(choice)))

    def has_equal(choices: set[str]) -> bool:
        return len({encoded(choice) for choice in choices}) < len(choices)

    return sum(count for choices, count in examples.items() if has_equal(set(choices)))


def _target(task: seqio.Task, example: Mapping[str, Any]) -> Any:
    if "targets_pretokenized" in example:
        text = tf.compat.as_text(example["targets_pretokenized"])
    else:
        text = task.output_features["targets"].vocabulary.decode([int(i) for i in example["targets"]])
    return task.postprocess_fn(text, example=example, is_target=True)
