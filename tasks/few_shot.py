"""seqio tasks whose prompts have k exemplars before the question.

A prompt is `x1 y1 x2 y2 ... xk yk x`, with single spaces between all parts, as the paper prints it (ProMoT, C.9). For a
checkpoint of span corruption ` <extra_id_0>` is appended, and the target begins with `<extra_id_0>` too. A prompt that
is too long loses exemplars from the left; the question itself is shortened only when no exemplar is left.
"""

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


@dataclasses.dataclass(frozen=True)
class Prompt:
    """One row of a task as texts.

    Attributes:
      inputs: exemplars and question.
      targets: the answer to learn.
      answers: all accepted answers, a list as JSON.
      choices: the targets to choose from.
      counts: what was cut, for each name of COUNTS.
    """

    inputs: str
    targets: str
    answers: str
    choices: tuple[str, ...]
    counts: Mapping[str, int]


class Prompter:
    """Turns rows of a task into prompts.

    Args:
      task, prompting: the task, and how its prompts are built.
      sampler: draws the exemplars.
      limit: the most tokens of a prompt, with the end of sequence; None for any length.
    """

    def __init__(self, task: TextTask, prompting: Prompting, sampler: exemplars.Sampler, limit: int | None):
        self._task, self._prompting, self._sampler = task, prompting, sampler
        self._limit = limit
        # Exemplars occur again and again; telling that they do takes longer than keeping them whole.
        kept = functools.lru_cache(maxsize=exemplars.POOL_SIZE)(self._shorten)
        self._shortened = self._shorten if task.wording.max_input_tokens is None else kept
        # A prompt that fits was encoded to see that it does.
        self.tokens = functools.lru_cache(maxsize=32)(prompting.vocabulary.encode)

    def _fits(self, text: str) -> bool:
        return self._limit is None or self._has_at_most(self._limit - 1, text)  # and the end of sequence

    def _has_at_most(self, limit: int, text: str) -> bool:
        """Whether a text has at most so many tokens; of one that is far too long, only the beginning is encoded."""
        size = 16 * limit + 1024  # characters
        while size < len(text) // 2:
            # More text may change the last of these tokens, but does not halve their number.
            if len(self.tokens(text[:size])) > 2 * limit:
                return False
            size *= 4
        return len(self.tokens(text)) <= limit

    def _shorten(self, example: Example) -> Example:
        """A question within the task's own limit: the paper cuts articles before anything else."""
        limit = self._task.wording.max_input_tokens
        return example if limit is None else example.shortened(functools.partial(self._has_at_most, limit))

    def __call__(self, row: str | bytes, reading: int | None = None) -> Prompt:
        """The prompt of a row of the task's source; `reading` is that of `Sampler.draw`."""
        sentinels = self._prompting.sentinels
        whole = self._task.wording.example(json.loads(row))
        example = self._shortened(whole)
        drawn = [self._shortened(shot) for shot in self._sampler.draw(whole.inputs, reading)]
        text, counts = prompt(example, drawn, self._fits, sentinels)
        mark = f"{SENTINEL} " if sentinels else ""
        return Prompt(
            inputs=text,
            targets=mark + example.target,
            answers=json.dumps(example.answers),
            choices=tuple(mark + choice for choice in example.choices),
            counts={**counts, "article_cut": int(example != whole)},
        )


def _prompter(
    task: TextTask, prompting: Prompting, shots: int, seed: int, sequence_length: Mapping[str, int] | None
) -> Prompter:
    if prompting.sentinels:
        vocabularies.check_sentinel(prompting.vocabulary)
    with tf.init_scope():  # the pool is read now, even if the rest is traced
        pool = exemplars.pool(task.name, task.source, EXEMPLAR_SPLIT, task.wording) if shots else ()
    sampler = exemplars.Sampler(task.name, pool, shots, seed, prompting.exemplars)
    return Prompter(task, prompting, sampler, sequence_length["inputs"] if sequence_length else None)


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
    of_row = _prompter(task, prompting, shots, seed, sequence_length)

    def values(row: bytes, *reading: int) -> list[Any]:
        made = of_row(row, *reading)
        texts = [getattr(made, name).encode() for name in TEXT_FEATURES]
        choices = np.array([choice.encode() for choice in made.choices], dtype=np.bytes_)
        return [*texts, *(np.int32(made.counts[name]) for name in COUNTS), choices]

    def build(row: tf.Tensor, *reading: tf.Tensor) -> dict[str, tf.Tensor]:
        types = [tf.string] * len(TEXT_FEATURES) + [tf.int32] * len(COUNTS) + [tf.string]
        *scalars, choices = tf.numpy_function(values, [row, *reading], types, stateful=False)
        named = {k: tf.ensure_shape(v, []) for k, v in zip((*TEXT_FEATURES, *COUNTS), scalars, strict=True)}
        return {**named, "choices": tf.ensure_shape(choices, [None])}

    if not training:
        return dataset.map(lambda example: build(example["row"]))
    # seqio repeats a source before its preprocessors, which cannot see where an epoch ends. The number of an example in
    # the endless stream serves as well: a question has another one in every epoch, and in a resumed run the same ones.
    return dataset.enumerate().map(lambda number, example: build(example["row"], number))


_TOKENIZED = (seqio.preprocessors.tokenize, seqio.preprocessors.append_eos_after_trim)


def is_only_prompts(task: seqio.Task) -> bool:
    """Whether a task's examples are the tokenized prompts of its source and nothing else, as `register` makes it."""
    first, *others = task.preprocessors or (None,)
    if type(task) is not seqio.Task or not isinstance(first, functools.partial) or first.func is not prompts:
        return False
    vocabulary = first.keywords["prompting"].vocabulary
    as_registered = tuple(others) == _TOKENIZED and task.output_features == _features(vocabulary)
    known = vocabularies.encodes_like_tensorflow(vocabulary)
    return as_registered and known and not first.keywords.get("training")


def prompter(task: seqio.Task, sequence_length: Mapping[str, int] | None = None) -> Prompter:
    """What builds the prompts of a task for which `is_only_prompts` holds; takes and raises what `prompts` does."""
    first: Any = task.preprocessors[0]
    return _prompter(**first.keywords, sequence_length=sequence_length)


def _features(vocabulary: seqio.Vocabulary) -> dict[str, seqio.Feature]:
    return {key: seqio.Feature(vocabulary) for key in ("inputs", "targets")}


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
            *_TOKENIZED,
        ],
        output_features=_features(prompting.vocabulary),
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
