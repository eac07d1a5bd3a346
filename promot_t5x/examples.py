"""One split of one seqio task, read for evaluation: in order, once, whole.

Dimensions: B batch rows, T encoder length, U decoder length, N examples.
"""

import dataclasses
import functools
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import seqio
import tensorflow as tf

from promot_t5x import features


@dataclasses.dataclass(frozen=True)
class EvalExamples:
    """One split of one task, in the order of its source.

    Args:
      task_name: the seqio task.
      split: the split.
      examples: N raw examples, whole, with inputs_pretokenized and targets_pretokenized where the task has them.
      targets: N targets after the task's postprocessing, as its metrics want them.
      features: encoder_input_tokens NxT, decoder_input_tokens, decoder_target_tokens and decoder_loss_weights NxU.
      truncated: number of examples with an input or target longer than its length, which were trimmed.
    """

    task_name: str
    split: str
    examples: tuple[dict[str, Any], ...]
    targets: list[Any]
    features: dict[str, np.ndarray]
    truncated: int


def eval_examples(
    task_name: str, task_feature_lengths: Mapping[str, int], split: str, *, limit: int | None = None
) -> EvalExamples:
    """Reads a split for evaluation, unshuffled; a second call for the same task object gives what the first one read.

    Args:
      task_name: a task, not a mixture, of seqio's registry.
      task_feature_lengths: {"inputs": T, "targets": U}; longer examples are trimmed as seqio does, and counted.
      split: the split to read.
      limit: take the first examples only; None takes all.

    Returns:
      The examples. `soft_prompt_ids` is not among the features: whether a prompt is attached is evaluation's choice.

    Raises:
      FileNotFoundError: no vocabulary file.
      ValueError: unknown task or split, an empty split, bad lengths, or a file that is no vocabulary.
    """
    features.check_lengths(task_feature_lengths, "task_feature_lengths")
    if limit is not None and limit < 1:
        raise ValueError(f"limit is {limit!r}, expected a positive number of examples, or None for all of them.")
    task = features.find(task_name, "task_name")
    if not isinstance(task, seqio.Task):
        raise ValueError(f"task_name={task_name!r} is a mixture, expected one task: name its tasks one by one.")
    features.check_split(task, split)
    features.open_vocabularies(task)
    return _read(task, tuple(task_feature_lengths.items()), split, limit)


# A run evaluates the same splits at every checkpoint, a recipe for every method; reading takes longer than decoding.
@functools.lru_cache(maxsize=32)
def _read(task: seqio.Task, lengths: tuple[tuple[str, int], ...], split: str, limit: int | None) -> EvalExamples:
    task_feature_lengths = dict(lengths)

    def read(lengths: Mapping[str, int] | None) -> tf.data.Dataset:
        return task.get_dataset(lengths, split=split, shuffle=False).take(-1 if limit is None else limit)

    # Preprocessors may trim by themselves when told the lengths, so what is whole is read without any.
    whole = list(features.as_numpy(read(None)))
    if not whole:
        raise ValueError(
            f"Split {split!r} of task {task.name!r} is empty, expected examples: look at the task's source."
        )
    prompted = read(task_feature_lengths).map(functools.partial(features.with_prompt, soft_prompt_id=-1))
    (tokens,) = features.as_numpy(features.padded_batch(prompted, task_feature_lengths, len(whole), False))
    arrays = features.converted(tokens)
    del arrays[features.SOFT_PROMPT_IDS]
    return EvalExamples(
        task_name=task.name,
        split=split,
        examples=tuple(whole),
        targets=[_target(task, example) for example in whole],
        features=arrays,
        truncated=sum(any(len(ex[k]) > task_feature_lengths[k] for k in features.TASK_FEATURES) for ex in whole),
    )


def _target(task: seqio.Task, example: dict[str, Any]) -> Any:
    if "targets_pretokenized" in example:
        text = tf.compat.as_text(example["targets_pretokenized"])
    else:
        text = task.output_features["targets"].vocabulary.decode([int(i) for i in example["targets"]])
    return task.postprocess_fn(text, example=example, is_target=True)


def eval_batches(examples: EvalExamples, batch_size: int) -> Iterator[tuple[int, dict[str, np.ndarray], int]]:
    """Cuts examples into batches of one shape; the last one is filled up with rows of zeros (padding).

    Args:
      examples: what `eval_examples` read.
      batch_size: rows of every batch.

    Returns:
      An iterator over (index of the batch's first example, the features with B rows, number of real rows).

    Raises:
      ValueError: batch_size is not positive.

    >>> ones = EvalExamples("t", "test", ({},) * 3, [None] * 3, {"decoder_input_tokens": np.ones((3, 1))}, 0)
    >>> [(i, b["decoder_input_tokens"][:, 0].tolist(), n) for i, b, n in eval_batches(ones, 2)]
    [(0, [1.0, 1.0], 2), (2, [1.0, 0.0], 1)]
    """
    if batch_size < 1:
        raise ValueError(f"batch_size is {batch_size!r}, expected at least 1.")

    def cut() -> Iterator[tuple[int, dict[str, np.ndarray], int]]:
        for start in range(0, len(examples.examples), batch_size):
            real = min(batch_size, len(examples.examples) - start)
            padding = batch_size - real
            batch = {
                k: np.pad(v[start : start + real], [(0, padding)] + [(0, 0)] * (v.ndim - 1))
                for k, v in examples.features.items()
            }
            yield start, batch, real

    return cut()
