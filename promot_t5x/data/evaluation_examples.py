"""One split of one seqio task for evaluation: in its source's order, every example once.

Dimensions: B batch rows, T encoder length, U decoder length, N examples.
"""

import collections
import dataclasses
import functools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import seqio
import tensorflow as tf
from absl import logging

from promot_t5x.data import cuts, features, prompt_examples, text_examples, vocabularies
from promot_t5x.data.columns import Columns
from promot_t5x.tasks import few_shot

# Inputs are padded to the next of these widths: few programs serve all lengths, and short inputs cost little. An
# example's width depends on its own length alone, so it runs through the same program whatever batch it is in.
_NARROWEST = 128


@dataclasses.dataclass(frozen=True)
class EvaluationExamples:
    """One split of one task, in the order of its source.

    Attributes:
      task_name: the seqio task.
      split: the split.
      examples: N examples as the task produces them for the given lengths, with inputs_pretokenized and
        targets_pretokenized if the task provides them.
      targets: N targets after the task's postprocessing, as its metrics take them.
      features: encoder_input_tokens NxT (T as wide as the longest input's batch), decoder_input_tokens,
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
    longest = max(map(len, tokens["inputs"]))
    widths = {**task_feature_lengths, "inputs": min(int(_width(longest)), task_feature_lengths["inputs"])}
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


def _width(length: Any) -> Any:
    """The narrowest batch width for inputs of a length, or of an array of lengths."""
    doublings = np.ceil(np.log2(np.maximum(np.asarray(length) / _NARROWEST, 1))).astype(int)
    return _NARROWEST * 2**doublings


def _target(task: seqio.Task, example: Mapping[str, Any]) -> Any:
    if "targets_pretokenized" in example:
        text = tf.compat.as_text(example["targets_pretokenized"])
    else:
        text = task.output_features["targets"].vocabulary.decode([int(i) for i in example["targets"]])
    return task.postprocess_fn(text, example=example, is_target=True)


def evaluation_batches(
    arrays: Mapping[str, np.ndarray], batch_size: int, rows: Sequence[int] | None = None
) -> Iterator[tuple[list[int], dict[str, np.ndarray]]]:
    """Splits features into batches of few shapes; a batch that is not full is padded with rows of zeros.

    Inputs of similar length share a batch, which is no wider than necessary: 128 tokens, 256, 512, ... The widest
    batches come first, so that a lack of memory shows at once.

    Args:
      arrays: features, encoder_input_tokens NxT among them.
      batch_size: rows per batch.
      rows: the rows to take; None for all.

    Returns:
      An iterator over (indices of the batch's real rows, features with batch_size rows).

    Raises:
      ValueError: batch_size is not positive.

    >>> tokens_NxT = np.array([[5, 1, 0], [6, 1, 0], [7, 8, 1]])
    >>> batches = evaluation_batches({"encoder_input_tokens": tokens_NxT}, batch_size=2)
    >>> [(numbers, batch["encoder_input_tokens"][:, 0].tolist()) for numbers, batch in batches]
    [([0, 1], [5, 6]), ([2], [7, 0])]
    """
    if batch_size < 1:
        raise ValueError(f"batch_size is {batch_size!r}, expected at least 1.")
    tokens_NxT = arrays["encoder_input_tokens"]
    chosen = np.arange(len(tokens_NxT)) if rows is None else np.asarray(rows, int)
    used_N = (np.cumsum(tokens_NxT[chosen] != 0, axis=1).argmax(axis=1) if chosen.size else chosen) + 1
    width_N = np.minimum(_width(used_N), tokens_NxT.shape[1])

    def cut() -> Iterator[tuple[list[int], dict[str, np.ndarray]]]:
        for width in sorted(set(width_N.tolist()), reverse=True):
            together = chosen[width_N == width]
            for start in range(0, len(together), batch_size):
                taken = together[start : start + batch_size]
                batch = {k: v[taken] for k, v in arrays.items()}
                batch["encoder_input_tokens"] = batch["encoder_input_tokens"][:, :width]
                padding = batch_size - len(taken)
                yield (
                    taken.tolist(),
                    {k: np.pad(v, [(0, padding)] + [(0, 0)] * (v.ndim - 1)) for k, v in batch.items()},
                )

    return cut()
