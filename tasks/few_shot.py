"""Questions with k exemplars before them, as seqio tasks.

A prompt is `x1 y1 x2 y2 ... xk yk x`, all parts separated by one space, as the paper prints one (ProMoT, C.9), with
` <extra_id_0>` behind it for a checkpoint of span corruption; then the target begins with `<extra_id_0>` too. A prompt
that is too long loses exemplars from the left; only when none is left is the question itself shortened.
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
    """A task before its exemplars and its vocabulary are chosen.

    Attributes:
      name: without any suffix.
      source: one of `sources`.
      wording: words its rows.
      metrics: the first one is the headline.
      aliases: whether the metrics take all accepted answers.
      made_from: the arguments that made the task, to tell two of one name apart.
    """

    name: str
    source: seqio.DataSource
    wording: Wording
    metrics: tuple[Metric, ...]
    aliases: bool = False
    made_from: object = None


@dataclasses.dataclass(frozen=True)
class Prompting:
    """How a checkpoint is asked.

    Attributes:
      vocabulary: the checkpoint's.
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
    """The text before a question's answer.

    Args:
      example: the question.
      drawn: its exemplars in their order.
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
    """Turns rows of a task into prompts; what it needs is read before the first of them."""

    def __init__(self, task: TextTask, prompting: Prompting, sampler: exemplars.Sampler, limit: int | None):
        self._task, self._prompting, self._sampler = task, prompting, sampler
        self._limit = limit
        self._shortened = functools.lru_cache(maxsize=exemplars.POOL_SIZE)(self._shorten)

    def _tokens(self, text: str) -> int:
        return len(self._prompting.vocabulary.encode(text))

    def _fits(self, text: str) -> bool:
        return self._limit is None or self._tokens(text) < self._limit  # one token is the end of sequence

    def _shorten(self, example: Example) -> Example:
        """A question as the task allows it: the paper cuts articles before anything else."""
        most = self._task.wording.max_input_tokens
        return example if most is None else example.shortened(lambda text: self._tokens(text) <= most)

    def __call__(self, row: bytes) -> list[Any]:
        """The values of TEXT_FEATURES, COUNTS and `choices` of a row."""
        sentinels = self._prompting.sentinels
        whole = self._task.wording.example(json.loads(row))
        example = self._shortened(whole)
        drawn = [self._shortened(shot) for shot in self._sampler.draw(whole.inputs)]
        text, counts = prompt(example, drawn, self._fits, sentinels)
        mark = f"{SENTINEL} " if sentinels else ""
        texts = (text, mark + example.target, json.dumps(example.answers))
        found = collections.ChainMap(counts, {"article_cut": int(example != whole)})
        choices = np.array([(mark + choice).encode() for choice in example.choices], dtype=np.bytes_)
        return [*(t.encode() for t in texts), *(np.int32(found[name]) for name in COUNTS), choices]


def prompts(
    dataset: tf.data.Dataset,
    sequence_length: Mapping[str, int] | None = None,
    *,
    task: TextTask,
    prompting: Prompting,
    shots: int,
    seed: int,
) -> tf.data.Dataset:
    """A seqio preprocessor: from a source's rows to inputs, targets, answers, choices and counts of what was cut.

    Args:
      dataset: rows of `task.source`.
      sequence_length: seqio's; None builds prompts of any length.
      task, prompting: what is asked, and how.
      shots: exemplars a question.
      seed: draws others.
    """
    if prompting.sentinels:
        vocabularies.check_sentinel(prompting.vocabulary)
    pool = exemplars.pool(task.name, task.source, EXEMPLAR_SPLIT, task.wording) if shots else ()
    sampler = exemplars.Sampler(task.name, pool, shots, seed, prompting.exemplars)
    prompter = _Prompter(task, prompting, sampler, sequence_length["inputs"] if sequence_length else None)

    def build(example: Mapping[str, tf.Tensor]) -> dict[str, tf.Tensor]:
        types = [tf.string] * len(TEXT_FEATURES) + [tf.int32] * len(COUNTS) + [tf.string]
        *scalars, choices = tf.numpy_function(prompter, [example["row"]], types, stateful=False)
        named = {k: tf.ensure_shape(v, []) for k, v in zip((*TEXT_FEATURES, *COUNTS), scalars, strict=True)}
        return {**named, "choices": tf.ensure_shape(choices, [None])}

    return dataset.map(build)


@dataclasses.dataclass(frozen=True)
class Registered:
    """What a seqio task was registered as.

    Attributes:
      task, prompting, shots, seed: see `register`.
    """

    task: TextTask
    prompting: Prompting
    shots: int
    seed: int


_registered: dict[str, Registered] = {}


def register(task: TextTask, prompting: Prompting, shots: int = 0, seed: int = 0) -> str:
    """Registers a task with k exemplars; returns its seqio name. Registering the same task again does nothing.

    Args:
      task, prompting: what is asked, and how.
      shots: exemplars a question, 0 or more.
      seed: draws others.

    Raises:
      ValueError: the name is registered with other arguments. Building a dataset raises what the source and
        `exemplars` raise, and ValueError for a vocabulary without sentinels.
    """
    if shots < 0:
        raise ValueError(f"Task {task.name!r} was to be asked with {shots} exemplars: expected 0 or more.")
    if not shots:  # then there is no way of drawing
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
    """Whether two ways of asking are equal; no vocabulary is opened."""
    same_vocabulary = vocabularies.identity(one.vocabulary) == vocabularies.identity(other.vocabulary)
    return same_vocabulary and dataclasses.replace(one, vocabulary=other.vocabulary) == other


def registered(name: str) -> Registered | None:
    """What a seqio task was registered as; None if it was not registered here, or is not any more."""
    return _registered.get(name) if name in seqio.TaskRegistry.names() else None
