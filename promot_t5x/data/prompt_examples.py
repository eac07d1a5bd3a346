"""The examples of few-shot tasks, read without seqio: the same ones, at a fraction of the cost.

seqio runs a dozen TensorFlow ops for each example, which take ten times as long as building and tokenizing its prompt.
What a task has besides its prompts goes through seqio: `few_shot.is_only_prompts` tells.
"""

import functools
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import seqio

from promot_t5x.data import cuts, kept_examples
from promot_t5x.data.columns import Collected, Columns
from promot_t5x.tasks import few_shot

_ROWS = 1000  # read from the source at once


def read(task: seqio.Task, lengths: Mapping[str, int], split: str, limit: int | None) -> Columns:
    """The examples of a task that is only prompts, from the cache folder if they are kept there.

    Args:
      task: `few_shot.is_only_prompts` holds.
      lengths: {"inputs": T, "targets": U}.
      split: the split to read.
      limit: the number of examples to take from the start; None for all.

    Returns:
      N examples with the features of the task and, as numbers, with those of `cuts.ALL`.

    Raises:
      FileNotFoundError, ValueError: see `few_shot.register`.
    """
    definition = kept_examples.made_of(task, lengths, split, limit)
    kept = None if definition is None else kept_examples.read(task.name, definition)
    if kept is not None:
        return kept
    examples = _made(task, lengths, split, limit)
    # Data that changed while they were read are of neither definition.
    unchanged = definition is not None and definition == kept_examples.made_of(task, lengths, split, limit)
    if definition is not None and unchanged and len(examples):
        kept_examples.write(task.name, definition, examples)
    return examples


def _made(task: seqio.Task, lengths: Mapping[str, int], split: str, limit: int | None) -> Columns:
    prompter = few_shot.prompter(task, lengths)
    vocabulary: Any = task.output_features["targets"].vocabulary

    @functools.lru_cache(maxsize=4096)  # answers repeat
    def target(text: str) -> tuple[list[int], bool]:
        tokens = list(vocabulary.encode(text))
        return tokens, cuts.is_other_text(vocabulary.decode(tokens), text)

    tokens = {key: Collected("i") for key in lengths}
    texts = {name: Collected("B") for name in ("inputs_pretokenized", "targets_pretokenized", "answers")}
    choices, choice_ends = Collected("B"), []
    numbers: dict[str, list[int]] = {name: [] for name in (*few_shot.COUNTS, *cuts.OF_TASKS)}
    for row in _rows(task.source, split, limit):
        prompt = prompter(row)
        target_tokens, unwritable = target(prompt.targets)
        of_feature = {"inputs": prompter.tokens(prompt.inputs), "targets": target_tokens}
        for key, column in tokens.items():
            column.add([*of_feature[key][: lengths[key] - 1], vocabulary.eos_id])
        for name, text in zip(texts, (prompt.inputs, prompt.targets, prompt.answers), strict=True):
            texts[name].add(text.encode())
        for choice in prompt.choices:
            choices.add(choice.encode())
        choice_ends.append(len(choices))
        is_cut = {"target_cut": int(len(target_tokens) >= lengths["targets"]), "target_unwritable": int(unwritable)}
        for name, number in {**prompt.counts, **is_cut}.items():
            numbers[name].append(number)
    return Columns(
        tokens={key: column.column() for key, column in tokens.items()},
        texts={name: column.column() for name, column in texts.items()},
        lists={"choices": (choices.column(), np.array(choice_ends, np.int64))},
        numbers={name: np.array(of_examples, np.int32) for name, of_examples in numbers.items()},
    )


def _rows(source: seqio.DataSource, split: str, limit: int | None) -> Iterator[bytes]:
    dataset = source.get_dataset(split, shuffle=False).take(-1 if limit is None else limit)
    for batch in dataset.map(lambda example: example["row"]).batch(_ROWS).as_numpy_iterator():
        yield from batch
