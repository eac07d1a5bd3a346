"""seqio tasks from a folder of JSONL files: one JSON object a line, one file (or a slice of one) a split.

Nothing is read, and no vocabulary is opened, before a split is asked for.
"""

import functools
import json
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import seqio
import tensorflow as tf
from etils import epath

SPLITS = {"train": "train.jsonl", "validation": "validation.jsonl", "test": "test.jsonl"}

_SLICED_FILE = re.compile(r"(?P<file>[^\[\]]+)(?:\[(?P<start>-?\d+)?:(?P<stop>-?\d+)?\])?")
_registered: dict[str, dict[str, Any]] = {}


def accuracy(targets: Sequence[str], predictions: Sequence[str]) -> dict[str, float]:
    """The share of predictions that equal their target, spaces around the text aside; in [0, 1].

    >>> accuracy(["True", "False"], [" True", "Neither"])
    {'accuracy': 0.5}
    """
    pairs = list(zip(targets, predictions, strict=True))
    return {"accuracy": sum(t.strip() == p.strip() for t, p in pairs) / max(len(pairs), 1)}


def _parse(file: str) -> tuple[str, slice]:
    """Splits "train.jsonl[:2000]" into the file and the slice of its rows, which counts as Python's does."""
    match = _SLICED_FILE.fullmatch(file)
    if not match:
        raise ValueError(f"Split file {file!r} is not understood, expected a file name with or without [start:stop].")
    start, stop = (None if match[part] is None else int(match[part]) for part in ("start", "stop"))
    return match["file"], slice(start, stop)


def read_rows(path: epath.PathLike, columns: Mapping[str, Callable[[Any], Any]]) -> list[dict[str, Any]]:
    """Reads some columns of a JSONL file; blank lines are passed over.

    Args:
      path: the file.
      columns: for each column wanted, a function of its value; it raises ValueError for a value it does not take.

    Returns:
      One dict a line, of the converted values.

    Raises:
      FileNotFoundError: the folder or the file does not exist.
      ValueError: malformed JSON, a missing column, a value that is not taken (with the line), or a file without rows.
    """
    path = epath.Path(path)
    if not path.parent.is_dir():
        raise FileNotFoundError(f"Folder {path.parent} of the task's JSONL files is not found: correct its data_dir.")
    if not path.is_file():
        present = ", ".join(sorted(p.name for p in path.parent.glob("*.jsonl"))) or "none"
        raise FileNotFoundError(f"File {path} is not found; JSONL files beside it: {present}. Name one in `splits`.")
    rows = []
    for number, line in enumerate(path.read_text(encoding="utf-8").split("\n"), start=1):
        if line.strip():
            rows.append(_convert_row(line, columns, f"{path} line {number}"))
    if not rows:
        raise ValueError(f"File {path} is empty, expected one JSON object a line.")
    return rows


def _convert_row(line: str, columns: Mapping[str, Callable[[Any], Any]], where: str) -> dict[str, Any]:
    try:
        row = json.loads(line)
    except json.JSONDecodeError as error:
        raise ValueError(f"{where} is not valid JSON ({error}), expected one JSON object: mend the line.") from error
    if not isinstance(row, dict):
        raise ValueError(
            f"{where} is a {type(row).__name__}, expected a JSON object with columns {', '.join(columns)}."
        )
    converted = {}
    for column, convert in columns.items():
        if column not in row:
            raise ValueError(f"{where} has no column {column!r}, only {', '.join(row)}: name one of these columns.")
        try:
            converted[column] = convert(row[column])
        except ValueError as error:
            raise ValueError(f"{where}, column {column!r}: {error}.") from error
    return converted


def text(value: Any) -> str:
    """A column's value as text; numbers are written out, anything else but text is refused.

    >>> text("a"), text(3)
    ('a', '3')
    """
    if isinstance(value, bool) or not isinstance(value, (str, int, float)):
        raise ValueError(f"found {value!r}, expected text")
    return str(value)


def source(splits: Mapping[str, Callable[[], list[dict[str, Any]]]]) -> seqio.FunctionDataSource:
    """A seqio source whose splits are functions that read rows, called when the split is.

    Args:
      splits: for each split, a function that returns its rows: dicts of the same columns.
    """

    def dataset_fn(split: str, shuffle_files: bool = False, seed: int | None = None) -> tf.data.Dataset:
        del shuffle_files, seed  # rows keep the file's order; whoever trains shuffles them
        rows = splits[split]()
        columns: Any = {column: [row[column] for row in rows] for column in rows[0]}
        return tf.data.Dataset.from_tensor_slices(columns)

    return seqio.FunctionDataSource(dataset_fn, splits=tuple(splits))


def _read_slice(data_dir: str, file: str, columns: Mapping[str, Callable[[Any], Any]]) -> list[dict[str, Any]]:
    name, part = _parse(file)
    rows = read_rows(epath.Path(data_dir) / name, columns)
    if not rows[part]:
        raise ValueError(f"Split {file!r} of {data_dir} is empty: the file has {len(rows)} rows, choose another slice.")
    return rows[part]


def as_vocabulary(vocabulary: str | seqio.Vocabulary) -> seqio.Vocabulary:
    """A vocabulary, or the SentencePiece vocabulary of a path; the file is opened when first used."""
    return seqio.SentencePieceVocabulary(vocabulary) if isinstance(vocabulary, str) else vocabulary


def add_task(name: str, arguments: Mapping[str, Any], **task: Any) -> None:
    """Registers a task unless the same arguments have registered it before.

    Args:
      name: the task's name.
      arguments: what tells two registrations of a name apart.
      **task: arguments of seqio.TaskRegistry.add, with `vocabulary` in place of the output features.

    Raises:
      ValueError: the name is registered with other arguments.
    """
    vocabulary = as_vocabulary(task.pop("vocabulary"))
    known: dict[str, Any] = {**arguments, "vocabulary": vocabulary}
    if isinstance(vocabulary, seqio.SentencePieceVocabulary):  # comparing two may open their files
        known["vocabulary"] = (type(vocabulary), str(vocabulary.sentencepiece_model_file), vocabulary.extra_ids)
    if name in seqio.TaskRegistry.names():
        if _registered.get(name) != known:
            raise ValueError(f"Task {name!r} is already registered with other arguments: give this one another name.")
        return
    seqio.TaskRegistry.add(
        name, output_features={key: seqio.Feature(vocabulary) for key in ("inputs", "targets")}, **task
    )
    _registered[name] = known


def _rename(ds: tf.data.Dataset, input_column: str, target_column: str) -> tf.data.Dataset:
    return ds.map(lambda row: {"inputs": row[input_column], "targets": row[target_column]})


def jsonl_task(
    name: str,
    data_dir: str,
    *,
    vocabulary: str | seqio.Vocabulary,
    splits: Mapping[str, str] = SPLITS,
    input_column: str = "input",
    target_column: str = "target",
    metric: str | Callable[..., Mapping[str, float]] = "accuracy",
) -> str:
    """Registers a seqio task that reads JSONL files, each row an input text and the target text; returns its name.

    Registering the same task again does nothing, so that gin can name a task by this function.

    Args:
      name: the task's name.
      data_dir: the folder of the files.
      vocabulary: a seqio vocabulary, or the path of a SentencePiece model.
      splits: for each split its file in the folder, or a slice of a file's rows, counted as Python does:
        {"train": "train.jsonl[:2000]", "validation": "train.jsonl[2000:]"}.
      input_column: the column that holds the input.
      target_column: the column that holds the target.
      metric: "accuracy", or a function (targets, predictions) -> {name: value}.

    Raises:
      ValueError: an unknown metric, a split file that is not understood, or the name is taken by another task.
        Reading a split raises FileNotFoundError and ValueError as `read_rows` does.

    >>> jsonl_task("my_questions", "my_data", vocabulary=seqio.ByteVocabulary(), splits={"train": "all.jsonl[:-100]"})
    'my_questions'
    >>> seqio.TaskRegistry.get("my_questions").splits
    ('train',)
    >>> seqio.TaskRegistry.remove("my_questions")
    """
    if metric != "accuracy" and not callable(metric):
        raise ValueError(f'jsonl_task.metric={metric!r} is unknown, expected "accuracy" or a metric function.')
    for file in splits.values():
        _parse(file)
    columns = {input_column: text, target_column: text}
    add_task(
        name,
        dict(data_dir=str(data_dir), splits=dict(splits), columns=list(columns), metric=metric),
        vocabulary=vocabulary,
        source=source({k: functools.partial(_read_slice, data_dir, file, columns) for k, file in splits.items()}),
        preprocessors=[
            functools.partial(_rename, input_column=input_column, target_column=target_column),
            seqio.preprocessors.tokenize,
            seqio.preprocessors.append_eos_after_trim,
        ],
        metric_fns=[metric if callable(metric) else accuracy],
    )
    return name
