"""RTE, CB and WiC without exemplars, worded as in the ProMoT paper (arXiv 2211.00635, table of templates).

The label is spoken by its verbalizer: True, False or, in CB, Neither. Official data come through TFDS; JSONL folders
of the same columns (`<data_dir>/RTE/train.jsonl`, ...) work as well.
"""

import dataclasses
import functools
import re
from typing import Any

import seqio
import tensorflow as tf
from etils import epath

from promot_t5x.tasks import jsonl


@dataclasses.dataclass(frozen=True)
class _Task:
    """How one task is worded and read; labels and verbalizers stand in TFDS's order of the labels."""

    template: str
    labels: tuple[str, ...]
    verbalizers: tuple[str, ...]
    folder: str
    held_out: int  # rows at the end of train.jsonl that stand in for a validation or a test file that is absent

    @property
    def fields(self) -> list[str]:
        return re.findall(r"\{(\w+)\}", self.template)


TASKS = {
    "rte": _Task(
        template="{premise} question: {hypothesis} Is it true or false? answer:",
        labels=("entailment", "not_entailment"),
        verbalizers=("True", "False"),
        folder="RTE",
        held_out=245,
    ),
    "cb": _Task(
        template="{premise} question: {hypothesis} Is it true or false or neither? answer:",
        labels=("entailment", "contradiction", "neutral"),
        verbalizers=("True", "False", "Neither"),
        folder="CB",
        held_out=25,
    ),
    "wic": _Task(
        template=(
            "{sentence1} {sentence2} question: The word {word} is used in the same way in the two sentences. "
            "Is it true or False? answer:"
        ),
        labels=("false", "true"),
        verbalizers=("False", "True"),
        folder="WiC",
        held_out=5,
    ),
}


# The last tenth of train chooses checkpoints, because TFDS's test split has no labels and its validation split is what
# the paper reports.
_TFDS_SPLITS = {"train": "train[:90%]", "validation": "train[90%:]", "test": "validation"}


def _verbalize(ds: tf.data.Dataset, task: _Task) -> tf.data.Dataset:
    """From {fields, label: index} to {inputs, targets} as text."""
    pieces = re.split(r"\{(\w+)\}", task.template)  # literal, field, literal, field, ..., literal

    def verbalize(row: dict[str, tf.Tensor]) -> dict[str, tf.Tensor]:
        inputs = tf.strings.join([row[piece] if i % 2 else piece for i, piece in enumerate(pieces)])
        return {"inputs": inputs, "targets": tf.gather(tf.constant(task.verbalizers), row["label"])}

    return ds.map(verbalize)


def _label_index(value: Any, labels: tuple[str, ...]) -> int:
    """The index of a label given by its name, as true or false, or by its index."""
    if isinstance(value, bool):
        value = str(value).lower()
    if isinstance(value, str) and value.lower() in labels:
        return labels.index(value.lower())
    if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < len(labels):
        return value
    raise ValueError(f"found {value!r}, expected one of {', '.join(labels)} or an index below {len(labels)}")


def _read_split(data_dir: str, task: _Task, split: str) -> list[dict[str, Any]]:
    """Reads a split's file, or the rows of train.jsonl that stand in for it."""
    folder = epath.Path(data_dir) / task.folder
    columns: dict[str, Any] = {field: jsonl.text for field in task.fields}
    columns["label"] = functools.partial(_label_index, labels=task.labels)
    if split != "train" and (folder / f"{split}.jsonl").exists():
        return jsonl.read_rows(folder / f"{split}.jsonl", columns)
    rows = jsonl.read_rows(folder / "train.jsonl", columns)
    absent = [s for s in ("validation", "test") if not (folder / f"{s}.jsonl").exists()]
    kept = len(rows) - task.held_out * len(absent)
    if kept < 1:
        raise ValueError(
            f"File {folder / 'train.jsonl'} has {len(rows)} rows, too few to hold {task.held_out} out for each of "
            f"{' and '.join(absent)}: add {' and '.join(s + '.jsonl' for s in absent)} to the folder."
        )
    if split == "train":
        return rows[:kept]
    start = kept + absent.index(split) * task.held_out
    return rows[start : start + task.held_out]


def register_super_glue(vocabulary: str | seqio.Vocabulary, data_dir: str | None = None) -> None:
    """Registers `super_glue_rte`, `super_glue_cb` and `super_glue_wic`; nothing is read before a split is.

    Registering them again with the same arguments does nothing. The metric is accuracy in [0, 1].

    Args:
      vocabulary: a seqio vocabulary, or the path of a SentencePiece model.
      data_dir: None for TFDS (`super_glue/rte:1.0.2` and so on): its validation split, the labelled one that the paper
        reports, is the test split, and the last tenth of its train split is the validation split. Otherwise a folder
        with RTE/, CB/ and WiC/ of JSONL files named by their split, of TFDS's columns; labels are names, true or false,
        or TFDS's indices. Where validation.jsonl or test.jsonl is absent, the last rows of train.jsonl stand in for it
        and are left out of the train split: RTE 245 rows each, CB 25, WiC 5; validation's come before test's.

    Raises:
      ValueError: the names are registered with other arguments.

    >>> TASKS["cb"].template.format(premise="It rains.", hypothesis="It is wet.")
    'It rains. question: It is wet. Is it true or false or neither? answer:'
    >>> TASKS["cb"].verbalizers
    ('True', 'False', 'Neither')
    """
    vocabulary = jsonl.as_vocabulary(vocabulary)
    for key, task in TASKS.items():
        if data_dir is None:
            source = seqio.TfdsDataSource(f"super_glue/{key}:1.0.2", splits=_TFDS_SPLITS)
        else:
            splits = ("train", "validation", "test")
            source = jsonl.source({s: functools.partial(_read_split, str(data_dir), task, s) for s in splits})
        jsonl.add_task(
            f"super_glue_{key}",
            dict(data_dir=data_dir and str(data_dir)),
            vocabulary=vocabulary,
            source=source,
            preprocessors=[
                functools.partial(_verbalize, task=task),
                seqio.preprocessors.tokenize,
                seqio.preprocessors.append_eos_after_trim,
            ],
            metric_fns=[jsonl.accuracy],
        )


def super_glue_task(name: str, vocabulary: str | seqio.Vocabulary, data_dir: str | None = None) -> str:
    """Registers the three tasks and returns the seqio name of one, so that gin can name a task by its function.

    Args:
      name: "rte", "cb" or "wic".
      vocabulary: see `register_super_glue`.
      data_dir: see `register_super_glue`.

    Raises:
      ValueError: no such task.

    >>> super_glue_task("boolq", "sentencepiece.model")
    Traceback (most recent call last):
    ValueError: super_glue.super_glue_task.name is 'boolq': expected one of rte, cb, wic.
    """
    if name not in TASKS:
        raise ValueError(f"super_glue.super_glue_task.name is {name!r}: expected one of {', '.join(TASKS)}.")
    register_super_glue(vocabulary, data_dir)
    return f"super_glue_{name}"
