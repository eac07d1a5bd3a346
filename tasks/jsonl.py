"""A task of your own from a folder of JSONL files: one JSON object per line, one file, or slice of it, per split."""

from collections.abc import Mapping
from typing import Any

import seqio

from promot_t5x.tasks import few_shot, metrics, sources, vocabularies
from promot_t5x.tasks.wording import Wording


def jsonl_task(
    name: str,
    data_dir: str,
    *,
    vocabulary: str | seqio.Vocabulary,
    splits: Mapping[str, str] = sources.JSONL_SPLITS,
    input_column: str = "input",
    target_column: str = "target",
    choices_column: str | None = None,
    metric: str | metrics.Metric = "accuracy",
    language: str | None = None,
    prefix: str = "",
    shots: int = 0,
    seed: int = 0,
    sentinels: bool = False,
) -> str:
    """Registers a seqio task that reads an input and a target text per line of JSONL files, and returns its name.

    Registering the same task again does nothing, so gin files can use this function in place of a task's name.

    Args:
      name: the task's name.
      data_dir: the folder of the files.
      vocabulary: a seqio vocabulary, or the path of a SentencePiece model.
      splits: the file of each split, or a slice of a file's rows as in Python: {"train": "train.jsonl[:2000]",
        "validation": "train.jsonl[2000:]"}.
      input_column: the column that holds the input.
      target_column: the column that holds the target.
      choices_column: the column that holds a list of answers to choose from, including the target; None for free text.
      metric: "accuracy", "exact_match", "bleu", "rouge", or a function (targets, predictions) -> {name: value from 0 to
        100}.
      language: the targets' language, a code of ISO 639-1 such as "hi" or "zh", which chooses the metric's tokenizer or
        normal form of answers (`metrics.in_language`); None for English.
      prefix: the beginning of every input; a predicted answer ends before it.
      shots: exemplars before each input, from the split `train`.
      seed: seed of the exemplars.
      sentinels: True for a checkpoint of span corruption, False for an LM-adapted one.

    Raises:
      ValueError: the metric or language is unknown, a split's file is malformed, or another task has the name. Reading
        a split raises FileNotFoundError and ValueError as `sources.JsonlRows` does.

    >>> jsonl_task("my_questions", "my_data", vocabulary=seqio.ByteVocabulary(), splits={"train": "all.jsonl[:-100]"})
    'my_questions'
    >>> seqio.TaskRegistry.get("my_questions").splits
    ('train',)
    >>> seqio.TaskRegistry.remove("my_questions")
    """
    if not (callable(metric) or (isinstance(metric, str) and metric in metrics.BY_NAME)):
        names = ", ".join(metrics.BY_NAME)
        raise ValueError(f"jsonl_task.metric={metric!r} is unknown, expected {names}, or a metric function.")
    if language is not None and not isinstance(metric, str):
        raise ValueError(f"jsonl_task.language={language!r} has no effect on a metric function: leave it out.")
    metric_fn = metrics.in_language(metric, language) if isinstance(metric, str) else metric
    columns: dict[str, Any] = {"input": (input_column, sources.text), "target": (target_column, sources.text)}
    if choices_column is not None:
        columns["choices"] = (choices_column, sources.texts)
    source = sources.JsonlRows(data_dir, splits, columns, _check_choices)
    made_from = (str(data_dir), dict(splits), input_column, target_column, choices_column, metric, language, prefix)
    task = few_shot.TextTask(name, source, Wording("{input}", prefix=prefix), (metric_fn,), made_from=made_from)
    prompting = few_shot.Prompting(vocabularies.as_vocabulary(vocabulary), sentinels)
    return few_shot.register(task, prompting, shots, seed)


def _check_choices(row: Mapping[str, Any]) -> None:
    if "choices" in row and row["target"] not in row["choices"]:
        raise ValueError(f"the target {row['target']!r} is not among the choices {row['choices']}")
