"""Counts of what the length limits cut from examples, in training and in evaluation.

A cut is a rank-0 feature of an example. `noting` adds `input_cut` and `target_cut` to any task; a few-shot task, which
shortens its own prompts, has those of `OF_PROMPTS`.
"""

import functools
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import seqio
import tensorflow as tf

FEATURE = "cuts"
"""Of a training batch: counts for each name of `ALL`, BxK."""

OF_TRIMMING = ("input_cut", "target_cut")
OF_PROMPTS = ("exemplars_dropped", "input_cut", "article_cut")
ALL: tuple[str, ...] = tuple(dict.fromkeys((*OF_TRIMMING, *OF_PROMPTS)))
"""The K kinds of cuts."""

_OF_FEATURE = dict(zip(("inputs", "targets"), OF_TRIMMING, strict=True))


def noting(task: seqio.Task) -> seqio.Task:
    """The task with the features `input_cut` and `target_cut`: 1 if tokens are trimmed to the feature's length, else 0.

    seqio trims in two places: in `append_eos_after_trim`, and after all preprocessors.
    """
    steps = []
    for step in task.preprocessors:
        if getattr(step, "func", step) is seqio.preprocessors.append_eos_after_trim:
            steps.append(functools.partial(_note, reserves_end=True))
        steps.append(step)
    return task.replace(preprocessors=[*steps, functools.partial(_note, reserves_end=False)])


def _note(
    dataset: tf.data.Dataset,
    sequence_length: Mapping[str, int],
    output_features: Mapping[str, Any],
    *,
    reserves_end: bool,
) -> tf.data.Dataset:
    def note(example: dict[str, Any]) -> dict[str, Any]:
        noted = {}
        for key, name in _OF_FEATURE.items():
            if key in example and not (name in OF_PROMPTS and shortens_prompts(example)):
                limit = sequence_length[key] - int(reserves_end and output_features[key].add_eos)
                is_cut = tf.cast(tf.size(example[key]) > limit, tf.int32)
                noted[name] = tf.maximum(example[name], is_cut) if name in example else is_cut
        return {**example, **noted}

    return dataset.map(note)


def shortens_prompts(example: Mapping[str, Any]) -> bool:
    """Whether an example is from a task that shortens its own prompts, and counts what it cuts from them."""
    return OF_PROMPTS[0] in example


def of(example: Mapping[str, Any]) -> tf.Tensor:
    """The cuts of an example in a dataset, K as int32; 0 for the kinds that its task does not have."""
    # One tensor instead of K: in a pipeline of small ops their number is what costs time.
    return tf.stack([tf.cast(example.get(name, 0), tf.int32) for name in ALL])


def counts(examples: Iterable[Mapping[str, Any]]) -> dict[str, np.ndarray]:
    """The cuts of each of N examples read from a dataset, for each name of `ALL`: N as int64.

    >>> {name: cut_N.tolist() for name, cut_N in counts([{"target_cut": 1}, {"exemplars_dropped": 2}]).items()}
    {'input_cut': [0, 0], 'target_cut': [1, 0], 'exemplars_dropped': [0, 2], 'article_cut': [0, 0]}
    """
    examples = list(examples)
    return {name: np.array([int(example.get(name, 0)) for example in examples], np.int64) for name in ALL}


def separated(batch: Mapping[str, np.ndarray]) -> tuple[dict[str, int], dict[str, np.ndarray]]:
    """The sums of the cuts in a batch, {} if it has none of `FEATURE`, and its other features.

    >>> separated({"cuts": np.array([[0, 1, 0, 0], [1, 1, 0, 0]]), "soft_prompt_ids": np.array([0, 0])})
    ({'input_cut': 1, 'target_cut': 2, 'exemplars_dropped': 0, 'article_cut': 0}, {'soft_prompt_ids': array([0, 0])})
    """
    sums = dict(zip(ALL, batch[FEATURE].sum(axis=0).tolist(), strict=True)) if FEATURE in batch else {}
    return sums, {name: array for name, array in batch.items() if name != FEATURE}


def sentence(counted: Mapping[str, int], examples: int, lengths: Mapping[str, int]) -> str:
    """The warning about the first training examples; empty if longer features would keep nothing more.

    Args:
      counted: sums over the examples, for names of `ALL`.
      examples: the number of examples.
      lengths: {"inputs": T, "targets": U}.

    >>> sentence({"target_cut": 7, "exemplars_dropped": 2}, 10, {"inputs": 64, "targets": 4})
    'In the first 10 training examples, targets cut to 4 tokens: 7; exemplars dropped to fit 64 tokens: 2'
    """
    parts = [
        f"{key} cut to {lengths[key]} tokens: {counted[name]}" for key, name in _OF_FEATURE.items() if counted.get(name)
    ]
    if dropped := counted.get("exemplars_dropped"):
        parts.append(f"exemplars dropped to fit {lengths['inputs']} tokens: {dropped}")
    return f"In the first {examples} training examples, {'; '.join(parts)}" if parts else ""
