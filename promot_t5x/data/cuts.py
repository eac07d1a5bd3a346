"""Counts of what length limits and the vocabulary take from examples, in training and in evaluation.

A cut is a rank-0 feature of an example. `noting` adds those of `OF_TASKS` to any task; a few-shot task, which shortens
its own prompts, has those of `OF_PROMPTS`.
"""

import functools
import re
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import seqio
import tensorflow as tf

FEATURE = "cuts"
"""Of a training batch: counts for each name of `ALL`, BxK."""

OF_TASKS = ("input_cut", "target_cut", "target_unwritable")
OF_PROMPTS = ("exemplars_dropped", "input_cut", "article_cut")
ALL: tuple[str, ...] = tuple(dict.fromkeys((*OF_TASKS, *OF_PROMPTS)))
"""The K kinds of cuts."""

EQUAL_CHOICES = "equal_choices"
"""Counted in evaluation only: an example has choices of different texts and equal tokens."""

OF_FEATURE = {"inputs": "input_cut", "targets": "target_cut"}
UNWRITABLE = "target_unwritable"
_OF_VOCABULARY = {
    UNWRITABLE: "targets that the vocabulary cannot write",
    EQUAL_CHOICES: "choices that the vocabulary cannot tell apart",
}
_WHITE_SPACE = r"[\s\pZ]+"
_WHITE_SPACE_IN_PYTHON = re.compile("[\t\n\f\r \u00a0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000]+")


def noting(task: seqio.Task) -> seqio.Task:
    """The task with the features of `OF_TASKS`, each 0 or 1.

    `input_cut` and `target_cut` are 1 if tokens are trimmed to the feature's length. seqio trims in two places: in
    `append_eos_after_trim`, and after all preprocessors.

    `target_unwritable` is 1 if no output of a model equals the target: the tokens of the target decode to another text,
    apart from white space. A task that does not tokenize texts has 1 if the target has the unknown token.
    """
    steps = []
    for step in task.preprocessors:
        function = getattr(step, "func", step)
        if function is seqio.preprocessors.append_eos_after_trim:
            steps.append(functools.partial(_note, reserves_end=True))
        steps.append(step)
        if function is seqio.preprocessors.tokenize:
            steps.append(_note_other_texts)
    return task.replace(preprocessors=[*steps, functools.partial(_note, reserves_end=False)])


def _note_other_texts(dataset: tf.data.Dataset, output_features: Mapping[str, Any]) -> tf.data.Dataset:
    """Right after the tokenization, since later steps may change tokens."""
    decoded = output_features["targets"].vocabulary.decode_tf

    def note(example: dict[str, Any]) -> dict[str, Any]:
        text = example.get("targets_pretokenized")
        if text is None or text.dtype != tf.string or text.shape.rank != 0:
            return example
        is_other = tf.not_equal(_one_line(decoded(example["targets"])), _one_line(text))
        return {**example, UNWRITABLE: tf.cast(is_other, tf.int32)}

    return dataset.map(note)


def _one_line(text: tf.Tensor) -> tf.Tensor:
    return tf.strings.strip(tf.strings.regex_replace(text, _WHITE_SPACE, " "))


def is_other_text(decoded: str, text: str) -> bool:
    """Whether decoded tokens are another text than the one they were made of, apart from white space.

    >>> is_other_text("red cat", " red\\u3000cat"), is_other_text("red", "red cat")
    (False, True)
    """
    if decoded == text:
        return False
    one, other = (_WHITE_SPACE_IN_PYTHON.sub(" ", t).strip(" \t\n\v\f\r") for t in (decoded, text))
    return one != other


def _note(
    dataset: tf.data.Dataset,
    sequence_length: Mapping[str, int],
    output_features: Mapping[str, Any],
    *,
    reserves_end: bool,
) -> tf.data.Dataset:
    def note(example: dict[str, Any]) -> dict[str, Any]:
        noted = {}
        for key, name in OF_FEATURE.items():
            if key in example and not (name in OF_PROMPTS and shortens_prompts(example)):
                limit = sequence_length[key] - int(reserves_end and output_features[key].add_eos)
                is_cut = tf.cast(tf.size(example[key]) > limit, tf.int32)
                noted[name] = tf.maximum(example[name], is_cut) if name in example else is_cut
        unknown = output_features["targets"].vocabulary.unk_id
        if "targets" in example and UNWRITABLE not in example and unknown is not None:
            noted[UNWRITABLE] = tf.cast(tf.reduce_any(tf.equal(example["targets"], unknown)), tf.int32)
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

    >>> {name: cut_N.tolist() for name, cut_N in counts([{"target_cut": 1}, {"input_cut": 1}]).items() if cut_N.any()}
    {'input_cut': [0, 1], 'target_cut': [1, 0]}
    """
    examples = list(examples)
    return {name: np.array([int(example.get(name, 0)) for example in examples], np.int64) for name in ALL}


def separated(batch: Mapping[str, np.ndarray]) -> tuple[dict[str, int], dict[str, np.ndarray]]:
    """The sums of the cuts in a batch, {} if it has none of `FEATURE`, and its other features.

    >>> sums, rest = separated({"cuts": np.array([[0, 1, 0, 0, 0], [1, 1, 0, 0, 0]]), "soft_prompt_ids": np.array([0])})
    >>> sums["input_cut"], sums["target_cut"], rest
    (1, 2, {'soft_prompt_ids': array([0])})
    """
    sums = dict(zip(ALL, batch[FEATURE].sum(axis=0).tolist(), strict=True)) if FEATURE in batch else {}
    return sums, {name: array for name, array in batch.items() if name != FEATURE}


def warning(counted: Mapping[str, int], where: str, lengths: Mapping[str, int], setting: str) -> str:
    """The warning about what examples lost; empty if longer features or another vocabulary would keep nothing more.

    Args:
      counted: sums over the examples, for names of `ALL` and EQUAL_CHOICES.
      where: the beginning, such as "Of 10 examples of cb/test".
      lengths: {"inputs": T, "targets": U}.
      setting: what sets the lengths.

    >>> warning({"target_cut": 7, "exemplars_dropped": 2}, "Of 10 examples", {"inputs": 64, "targets": 4}, "LENGTHS")
    'Of 10 examples, targets cut to 4 tokens in 7; exemplars dropped to fit 64 tokens: 2. Raise LENGTHS to keep more.'
    >>> warning({"target_unwritable": 1}, "Of 10 examples", {"inputs": 64, "targets": 4}, "LENGTHS")
    'Of 10 examples, targets that the vocabulary cannot write in 1.'
    """
    of_lengths = [
        f"{key} cut to {lengths[key]} tokens in {counted[name]}"
        for key, name in OF_FEATURE.items()
        if counted.get(name)
    ]
    if dropped := counted.get("exemplars_dropped"):
        of_lengths.append(f"exemplars dropped to fit {lengths['inputs']} tokens: {dropped}")
    of_vocabulary = [f"{text} in {counted[name]}" for name, text in _OF_VOCABULARY.items() if counted.get(name)]
    if not of_lengths and not of_vocabulary:
        return ""
    advice = f" Raise {setting} to keep more." if of_lengths else ""
    return f"{where}, {'; '.join([*of_lengths, *of_vocabulary])}.{advice}"
