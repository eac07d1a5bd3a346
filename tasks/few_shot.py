"""seqio tasks whose prompts have k exemplars before the question.

A prompt is `x1 y1 x2 y2 ... xk yk x`, with single spaces between all parts, as the paper prints it (ProMoT, C.9). For a
checkpoint of span corruption ` <extra_id_0>` is appended, and the target begins with `<extra_id_0>` too. A prompt that
is too long loses exemplars from the left; the question itself is shortened only when no exemplar is left.
"""

import collections
import dataclasses
import functools
import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import seqio
import tensorflow as tf

from promot_t5x.tasks import answers, exemplars, vocabularies
from promot_t5x.tasks.metrics import Metric
from promot_t5x.tasks.vocabularies import SENTINEL
from promot_t5x.tasks.wording import Example, Wording

TEXT_FEATURES = ("inputs", "targets", "answers")
EXEMPLAR_SPLIT = "train"
COUNTS = ("exemplars_dropped", "input_cut", "article_cut")


@dataclasses.dataclass(frozen=True)
class TextTask:
    """A task whose exemplars and vocabulary are not chosen yet.

    Attributes:
      name: the name without suffixes.
      source: a source from `sources`.
      wording: turns rows into questions and answers.
      metrics: the first one is the headline.
      aliases: whether the metrics take all accepted answers.
      made_from: the arguments that made the task, to distinguish two tasks of the same name. Not recorded in settings,
        which have the data's contents and not their path.
    """

    name: str
    source: seqio.DataSource
    wording: Wording
    metrics: tuple[Metric, ...]
    aliases: bool = False
    made_from: object = dataclasses.field(default=None, metadata={"recorded": False})


@dataclasses.dataclass(frozen=True)
class Prompting:
    """How prompts for a checkpoint are built.

    Attributes:
      vocabulary: the checkpoint's vocabulary.
      sentinels: True for a checkpoint of span corruption (mT5, T5 1.1), False for an LM-adapted one.
      exemplars: "per_example" or "fixed", see `exemplars.Sampler`.
    """

    vocabulary: seqio.Vocabulary
    sentinels: bool = False
    exemplars: str = "per_example"


def task_name(name: str, shots: int, seed: int, mode: str = "per_example") -> str:
    """The seqio name of a task with exemplars.

    >>> task_name("cb", 0, 3), task_name("cb", 4, 0), task_name("cb", 4, 0, "fixed")
    ('cb', 'cb_4shot_seed0', 'cb_4shot_seed0_fixed')
    """
    if not shots:
        return name
    return f"{name}_{shots}shot_seed{seed}" + ("" if mode == "per_example" else f"_{mode}")


def prompt(
    example: Example, drawn: Sequence[Example], fits: Callable[[str], bool], sentinels: bool
) -> tuple[str, dict[str, int]]:
    """The prompt of a question.

    Args:
      example: the question.
      drawn: its exemplars, in order.
      fits: whether a text is short enough.
      sentinels: see `Prompting`.

    Returns:
      (text, counts): counts has `exemplars_dropped`, and `input_cut`, 1 if the question itself was shortened.

    >>> paris, rome = Example("Q: ", "Seine?", " A:", ("Paris",)), Example("Q: ", "Tiber?", " A:", ("Rome",))
    >>> prompt(rome, [paris], lambda text: True, sentinels=True)
    ('Q: Seine? A: Paris Q: Tiber? A: <extra_id_0>', {'exemplars_dropped': 0, 'input_cut': 0})
    """
    end = f" {SENTINEL}" if sentinels else ""
    shots = [f"{shot.inputs} {shot.target}" for shot in drawn]
    for dropped in range(len(shots) + 1):
        text = " ".join([*shots[dropped:], example.inputs]) + end
        if fits(text):
            return text, {"exemplars_dropped": dropped, "input_cut": 0}
    shortened = example.shortened(lambda inputs: fits(inputs + end))
    return shortened.inputs + end, {"exemplars_dropped": len(shots), "input_cut": 1}


class _Prompter:
    """Turns rows of a task into prompts."""

    def __init__(self, task: TextTask, prompting: Prompting, sampler: exemplars.Sampler, limit: int | None):
        self._task, self._prompting, self._sampler = task, prompting, sampler
        self._limit = limit
        self._shortened = functools.lru_cache(maxsize=exemplars.POOL_SIZE)(self._shorten)

    def _tokens(self, text: str) -> int:
        return len(self._prompting.vocabulary.encode(text))

    def _fits(self, text: str) -> bool:
        return self._limit is None or self._tokens(text) < self._limit  # leaves one token for the end of sequence

    def _shorten(self, example: Example) -> Example:
        """A question within the task's own limit: the paper cuts articles before anything else."""
        limit = self._task.wording.max_input_tokens
        return example if limit is None else example.shortened(lambda text: self._tokens(text) <= limit)

    def __call__(self, row: bytes, reading: int | None = None) -> list[Any]:
        """The values of TEXT_FEATURES, COUNTS and `choices` of a row; `reading` is that of `Sampler.draw`."""
        sentinels = self._prompting.sentinels
        whole = self._task.wording.example(json.loads(row))
        example = self._shortened(whole)
        drawn = [self._shortened(shot) for shot in self._sampler.draw(whole.inputs, reading)]
        text, counts = prompt(example, drawn, self._fits, sentinels)
        mark = f"{SENTINEL} " if sentinels else ""
        texts = (text, mark + example.target, json.dumps(example.answers))
        all_counts = collections.ChainMap(counts, {"article_cut": int(example != whole)})
        choices = np.array([(mark + choice).encode() for choice in example.choices], dtype=np.bytes_)
        return [*(t.encode() for t in texts), *(np.int32(all_counts[name]) for name in COUNTS), choices]


def prompts(
    dataset: tf.data.Dataset,
    sequence_length: Mapping[str, int] | None = None,
    *,
    task: TextTask,
    prompting: Prompting,
    shots: int,
    seed: int,
    training: bool = False,
) -> tf.data.Dataset:
    """A seqio preprocessor: turns a source's rows into inputs, targets, answers, choices and counts of cuts.

    Args:
      dataset: rows of `task.source`.
      sequence_length: seqio's; None builds prompts of any length.
      task, prompting: the task, and how its prompts are built.
      shots: exemplars per question.
      seed: seed of the exemplars.
      training: draw other exemplars every time that a question is read.
    """
    if prompting.sentinels:
        vocabularies.check_sentinel(prompting.vocabulary)
    pool = exemplars.pool(task.name, task.source, EXEMPLAR_SPLIT, task.wording) if shots else ()
    sampler = exemplars.Sampler(task.name, pool, shots, seed, prompting.exemplars)
    prompter = _Prompter(task, prompting, sampler, sequence_length["inputs"] if sequence_length else None)

    def build(row: tf.Tensor, *reading: tf.Tensor) -> dict[str, tf.Tensor]:
        types = [tf.string] * len(TEXT_FEATURES) + [tf.int32] * len(COUNTS) + [tf.string]
        *scalars, choices = tf.numpy_function(prompter, [row, *reading], types, stateful=False)
        named = {k: tf.ensure_shape(v, []) for k, v in zip((*TEXT_FEATURES, *COUNTS), scalars, strict=True)}
        return {**named, "choices": tf.ensure_shape(choices, [None])}

    if not training:
        return dataset.map(lambda example: build(example["row"]))
    # seqio repeats a source before its preprocessors, which cannot see where an epoch ends. The number of an example in
    # the endless stream serves as well: a question has another one in every epoch, and in a resumed run the same ones.
    return dataset.enumerate().map(lambda number, example: build(example["row"], number))


@dataclasses.dataclass(frozen=True)
class Registered:
    """The arguments that a seqio task was registered with.

    Attributes:
      task, prompting, shots, seed: see `register`.
    """

    task: TextTask
    prompting: Prompting
    shots: int
    seed: int


_registered: dict[str, Registered] = {}


def register(task: TextTask, prompting: Prompting, shots: int = 0, seed: int = 0) -> str:
    """Registers a task with k exemplars and returns its seqio name. Registering the same task again does nothing.

    Args:
      task, prompting: the task, and how its prompts are built.
      shots: exemplars per question, 0 or more.
      seed: seed of the exemplars.

    Raises:
      ValueError: the name is registered with other arguments. Building a dataset raises what the source and
        `exemplars` raise, and ValueError for a vocabulary without sentinels.
    """
    if shots < 0:
        raise ValueError(f"Task {task.name!r} has {shots} exemplars per prompt: expected 0 or more.")
    if not shots:  # nothing is drawn, so the mode does not matter
        prompting = dataclasses.replace(prompting, exemplars="per_example")
    name = task_name(task.name, shots, seed, prompting.exemplars)
    before = registered(name)
    if before or name in seqio.TaskRegistry.names():
        if before is None or before.task.made_from != task.made_from or not _same(before.prompting, prompting):
            raise ValueError(f"Task {name!r} is already registered with other arguments: give this one another name.")
        return name
    wording = task.wording
    seqio.TaskRegistry.add(
        name,
        source=task.source,  # pyright: ignore[reportArgumentType]  # seqio's own sources miss its protocol
        preprocessors=[
            functools.partial(prompts, task=task, prompting=prompting, shots=shots, seed=seed),
            seqio.preprocessors.tokenize,
            seqio.preprocessors.append_eos_after_trim,
        ],
        output_features={key: seqio.Feature(prompting.vocabulary) for key in ("inputs", "targets")},
        postprocess_fn=functools.partial(
            answers.postprocess,
            sentinels=prompting.sentinels,
            prefix=wording.prefix,
            one_word=bool(wording.verbalizers),
            aliases=task.aliases,
        ),
        metric_fns=list(task.metrics),
    )
    _registered[name] = Registered(task, prompting, shots, seed)
    return name


def _same(one: Prompting, other: Prompting) -> bool:
    """Whether two promptings are equal; opens no vocabulary."""
    same_vocabulary = vocabularies.identity(one.vocabulary) == vocabularies.identity(other.vocabulary)
    return same_vocabulary and dataclasses.replace(one, vocabulary=other.vocabulary) == other


def exemplar_splits(name: str) -> tuple[str, ...]:
    """The splits that a seqio task's exemplars are drawn from."""
    arguments = registered(name)
    return (EXEMPLAR_SPLIT,) if arguments is not None and arguments.shots else ()


def registered(name: str) -> Registered | None:
    """The arguments that a seqio task was registered with; None if it was not registered here, or was removed."""
    return _registered.get(name) if name in seqio.TaskRegistry.names() else None
