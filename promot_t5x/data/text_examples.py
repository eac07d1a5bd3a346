"""The examples of tasks that only tokenize texts, such as the toy world's, read without seqio's TensorFlow ops.

For a few hundred examples, tracing the functions of seqio's pipeline takes ten times as long as tokenizing.
"""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import seqio
import tensorflow as tf

from promot_t5x.data import cuts, features
from promot_t5x.tasks.vocabularies import encodes_like_tensorflow

_ENDS = (seqio.preprocessors.append_eos, seqio.preprocessors.append_eos_after_trim)


def only_tokenizes(task: seqio.Task) -> bool:
    """Whether a task's preprocessors tokenize and end its texts and nothing else."""
    steps = tuple(task.preprocessors)
    outputs = task.output_features
    return (
        type(task) is seqio.Task
        and len(steps) == 2
        and steps[0] is seqio.preprocessors.tokenize
        and steps[1] in _ENDS
        and set(outputs) == set(features.TASK_FEATURES)
        and all(feature.dtype == tf.int32 and feature.rank == 1 for feature in outputs.values())
        and all(encodes_like_tensorflow(feature.vocabulary) for feature in outputs.values())
    )


def read(task: seqio.Task, lengths: Mapping[str, int], split: str, limit: int | None) -> list[dict[str, Any]] | None:
    """The examples of such a task with the cuts of `cuts.noting`; None if its source has other inputs than texts.

    Args:
      task: `only_tokenizes` holds.
      lengths: {"inputs": T, "targets": U}.
      split: the split to read.
      limit: the number of examples to take from the start; None for all.
    """
    dataset = task.source.get_dataset(split, shuffle=False)
    spec: Any = dataset.element_spec
    text = tf.TensorSpec([], tf.string)
    if any(spec.get(key) != text for key in lengths) or any(name in spec for name in cuts.ALL):
        return None
    of_feature = {key: _tokenizer(task, key, length) for key, length in lengths.items()}
    examples = []
    for example in features.as_numpy(dataset.take(-1 if limit is None else limit)):
        made = dict(example)
        for key, tokenized in of_feature.items():
            try:
                tokens, is_cut, is_other = tokenized(example[key].decode())
            except UnicodeDecodeError:  # seqio takes any bytes
                return None
            made |= {f"{key}_pretokenized": example[key], key: np.array(tokens, np.int32), cuts.OF_FEATURE[key]: is_cut}
            if key == "targets":
                made[cuts.UNWRITABLE] = is_other
        examples.append(made)
    return examples


def _tokenizer(task: seqio.Task, key: str, length: int) -> Callable[[str], tuple[Sequence[int], bool, bool]]:
    """A function of a text that returns its tokens, whether they were cut, and whether they are another text."""
    feature = task.output_features[key]
    vocabulary: Any = feature.vocabulary
    end = [vocabulary.eos_id] if feature.add_eos else []
    keeps_end = task.preprocessors[1] is seqio.preprocessors.append_eos_after_trim

    @functools.lru_cache(maxsize=4096)  # answers repeat
    def tokenized(text: str) -> tuple[Sequence[int], bool, bool]:
        tokens = list(vocabulary.encode(text))
        kept = [*tokens[: length - len(end)], *end] if keeps_end else [*tokens, *end][:length]
        is_other = key == "targets" and cuts.is_other_text(vocabulary.decode(tokens), text)
        return kept, len(tokens) + len(end) > length, is_other

    return tokenized
