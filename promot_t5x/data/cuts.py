"""What the length limits cut from training examples, noted where they are read and counted where they are trained on.

A cut is a rank-0 feature of an example: 1 if its inputs or targets were trimmed. Few-shot tasks, which shorten their
own prompts, count theirs (`features.CUTS`).
"""

import functools
from collections.abc import Mapping
from typing import Any

import seqio
import tensorflow as tf

from promot_t5x.data import features

ALL = (*features.CUTS, "target_cut")

_OF_FEATURE = {"inputs": "input_cut", "targets": "target_cut"}


def noting(task: seqio.Task) -> seqio.Task:
    """The task with the features `input_cut` and `target_cut`: whether tokens were trimmed to the feature's length.

    seqio trims in two places: in `append_eos_after_trim`, and after all preprocessors.
    """
    steps = []
    for step in task.preprocessors:
        if getattr(step, "func", step) is seqio.preprocessors.append_eos_after_trim:
            steps.append(functools.partial(_note, keeps_room_for_end=True))
        steps.append(step)
    return task.replace(preprocessors=[*steps, functools.partial(_note, keeps_room_for_end=False)])


def _note(
    dataset: tf.data.Dataset,
    sequence_length: Mapping[str, int],
    output_features: Mapping[str, Any],
    *,
    keeps_room_for_end: bool,
) -> tf.data.Dataset:
    def note(example: dict[str, Any]) -> dict[str, Any]:
        noted = {}
        for key, name in _OF_FEATURE.items():
            if key not in example or (name in features.CUTS and features.CUTS[0] in example):
                continue
            room = sequence_length[key] - int(keeps_room_for_end and output_features[key].add_eos)
            noted[name] = tf.maximum(example.get(name, 0), tf.cast(tf.size(example[key]) > room, tf.int32))
        return {**example, **noted}

    return dataset.map(note)


def of(example: Mapping[str, Any]) -> dict[str, Any]:
    """All cuts of an example, as int32; 0 for those that its task does not have."""
    return {name: tf.cast(example.get(name, 0), tf.int32) for name in ALL}


def sentence(counts: Mapping[str, int], examples: int, lengths: Mapping[str, int]) -> str:
    """What to say before training; empty if nothing was cut that longer features would keep.

    Args:
      counts: sums over the examples, for names of `ALL`.
      examples: how many examples were looked at.
      lengths: {"inputs": T, "targets": U}.

    >>> sentence({"target_cut": 7, "exemplars_dropped": 2}, 10, {"inputs": 64, "targets": 4})
    'Of 10 training examples 7 have their targets cut to 4 tokens, and 2 exemplars were dropped to fit 64 tokens'
    """
    parts = [
        f"{counts[name]} have their {key} cut to {lengths[key]} tokens"
        for key, name in _OF_FEATURE.items()
        if counts.get(name)
    ]
    if dropped := counts.get("exemplars_dropped"):
        parts.append(f"{dropped} exemplars were dropped to fit {lengths['inputs']} tokens")
    return f"Of {examples} training examples " + ", and ".join(parts) if parts else ""
