"""Model features from the examples of seqio tasks, and lookups in seqio's registry.

The features are seqio's encoder-decoder features plus the prompt of each row, the rank-0 feature `soft_prompt_ids`.
Nothing is packed, since a prompt belongs to one example. Dimensions: B batch rows, T encoder length, U decoder length.
"""

import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import seqio
import tensorflow as tf

from promot_t5x.runtime.text import nearest
from promot_t5x.tasks import toy_world  # noqa: F401 (registers its tasks, which are then found as all others)

SOFT_PROMPT_IDS = "soft_prompt_ids"

TASK_FEATURES = ("inputs", "targets")

CHOICES = "choices"

"""Rank-1 feature: the targets to choose an example's answer from, as texts."""


def with_prompt(example: dict[str, Any], soft_prompt_id: int) -> dict[str, Any]:
    """An example's inputs, targets and prompt; `soft_prompt_id` is the prompt if the task has no such feature."""
    prompt_id = tf.cast(example.get(SOFT_PROMPT_IDS, soft_prompt_id), tf.int32)
    return {**{k: example[k] for k in TASK_FEATURES}, SOFT_PROMPT_IDS: prompt_id}


def converted(tokens: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Model features of padded rows, as seqio's EncDecFeatureConverter makes them one example at a time.

    Args:
      tokens: inputs BxT, targets BxU or with any number of axes in between, and optionally soft_prompt_ids B.

    Returns:
      encoder_input_tokens BxT, decoder_input_tokens BxU (the targets, shifted), decoder_target_tokens BxU,
      decoder_loss_weights BxU (float32, 0 on padding), and soft_prompt_ids B if `tokens` has them.
    """
    targets = tokens["targets"]
    shifted = np.zeros_like(targets)
    shifted[..., 1:] = targets[..., :-1]
    return {
        "encoder_input_tokens": tokens["inputs"],
        "decoder_input_tokens": shifted,
        "decoder_target_tokens": targets,
        "decoder_loss_weights": (targets != 0).astype(np.float32),
        **{name: ids_B for name, ids_B in tokens.items() if name == SOFT_PROMPT_IDS},
    }


def padded(rows: Sequence[Sequence[int] | np.ndarray], length: int) -> np.ndarray:
    """Token sequences as one array, padded with zeros.

    >>> padded([[5, 1], [6, 7, 1]], 4)
    array([[5, 1, 0, 0],
           [6, 7, 1, 0]], dtype=int32)
    """
    array = np.zeros((len(rows), length), np.int32)
    for row, tokens in zip(array, rows, strict=True):
        row[: len(tokens)] = tokens
    return array


def choices(example: Mapping[str, Any]) -> list[str]:
    """The targets to choose an example's answer from; empty if any text may be the answer.

    >>> choices({"choices": np.array([b"yes", b"no"])})
    ['yes', 'no']
    """
    return [tf.compat.as_text(choice) for choice in example.get(CHOICES, ())]


def check_ids(batch: Mapping[str, np.ndarray], vocab_size: int, num_prompts: int) -> None:
    """Refuses ids that the network has no row for; looking one up would give NaN.

    Args:
      batch: model features on the host, some or all of those of `converted`.
      vocab_size: number of rows of the embedding.
      num_prompts: number of soft prompts of the network.

    Raises:
      ValueError: an id is out of range; the sentence names it and the parameter that sets the range.

    >>> check_ids({"encoder_input_tokens": np.array([[31, 1, 0]]), "soft_prompt_ids": np.array([-1])}, 32, 1)
    """
    for key, name in (("encoder_input_tokens", "inputs"), ("decoder_target_tokens", "targets")):
        largest = int(batch[key].max(initial=0)) if key in batch else 0
        if largest >= vocab_size:
            raise ValueError(
                f"The {name} have the token {largest}, but the network's vocabulary has {vocab_size} "
                "(architecture.T5Config.vocab_size); use the vocabulary that the model was trained with."
            )
    prompt_ids_B = batch.get(SOFT_PROMPT_IDS, np.array([-1]))
    out_of_range = prompt_ids_B[(prompt_ids_B < -1) | (prompt_ids_B >= num_prompts)]
    if out_of_range.size:
        raise ValueError(
            f"A row has the soft prompt {int(out_of_range[0])}, but the network has {num_prompts}, counted from 0 "
            f"(architecture.T5Config.num_prompts), and -1 is none; correct the task's {SOFT_PROMPT_IDS} or "
            "training_batches.DatasetConfig.soft_prompt_id."
        )


def padded_batch(ds: tf.data.Dataset, lengths: Mapping[str, int], rows: int, drop_remainder: bool) -> tf.data.Dataset:
    """Batches of examples with inputs and targets padded with zeros to their lengths, and others as they are."""
    spec: Any = ds.element_spec
    shapes = {k: [lengths[k]] if k in TASK_FEATURES else spec[k].shape for k in spec}
    return ds.padded_batch(rows, padded_shapes=shapes, drop_remainder=drop_remainder)


def check_lengths(lengths: Mapping[str, int], parameter: str) -> None:
    """Raises ValueError unless both features have a positive length; `parameter` is the gin name of `lengths`."""
    has_both = isinstance(lengths, Mapping) and set(lengths) == set(TASK_FEATURES)
    if not has_both or any(isinstance(n, bool) or not isinstance(n, int) or n < 1 for n in lengths.values()):
        raise ValueError(
            f'{parameter} is {lengths!r}, expected positive token counts for both: {{"inputs": T, "targets": U}}.'
        )


def find(name: str, parameter: str) -> seqio.Task | seqio.Mixture:
    """Looks a task or mixture up in seqio's registry; the error for an unknown name lists the nearest ones."""
    names = sorted({*seqio.TaskRegistry.names(), *seqio.MixtureRegistry.names()})
    if name in names:
        return seqio.get_mixture_or_task(name)
    similar = nearest(name, names) or names[:5]
    hint = f"the nearest registered names are {', '.join(similar)}" if similar else "nothing is registered"
    raise ValueError(
        f"{parameter}={name!r} is not a registered seqio task or mixture; {hint}: "
        "correct the name, or import the module that registers it."
    )


def check_split(task: seqio.Task, split: str) -> None:
    """Raises ValueError, naming the task's splits, unless this is one of them."""
    if split not in task.splits:
        raise ValueError(
            f"Task {task.name!r} has no split {split!r}, only {', '.join(task.splits)}: name one of these."
        )


def cached_source(task: seqio.Task, split: str) -> seqio.DataSource | None:
    """A split of a task in the cache that `seqio_cache_tasks` wrote; None if the task is not cached.

    Raises:
      FileNotFoundError: the task is cached without this split.
    """
    if not task.supports_caching or not task.cache_dir:
        return None
    try:
        return task._get_cached_source(split)
    except tf.errors.NotFoundError as error:
        raise FileNotFoundError(
            f"The cache {task.cache_dir} of task {task.name!r} lacks the split {split!r}: cache the task again, or set "
            "USE_CACHED_TASKS=False."
        ) from error


def as_numpy(ds: tf.data.Dataset) -> Iterator[Any]:
    """Iterates in a fixed order, on few threads, which leave the cores to the model.

    More than one thread serves where there are cores enough: tokenization in TensorFlow then overlaps with Python's.
    """
    options = tf.data.Options()
    options.deterministic = True
    options.autotune.enabled = False  # tuning hundreds of small ops costs more than running them
    options.threading.private_threadpool_size = max(1, min(4, (os.cpu_count() or 1) // 2))
    options.experimental_optimization.apply_default_optimizations = False  # takes longer than the first epoch gains
    options.threading.max_intra_op_parallelism = 1
    iterator: Any = ds.with_options(options).as_numpy_iterator()
    return iterator
