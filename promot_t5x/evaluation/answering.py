"""A model and examples -> answers, by generation or by ranking the given choices.

While the devices work on one batch, the next one is prepared and the answers of the one before are decoded.

Dimensions: B batch rows, T encoder length, U decoder length, N examples, C choices of one example.
"""

import dataclasses
import functools
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np
import seqio
from absl import logging
from jax.sharding import PartitionSpec

from promot_t5x.data import evaluation_batches, features
from promot_t5x.data.evaluation_batches import Batch, Room
from promot_t5x.data.evaluation_examples import EvaluationExamples
from promot_t5x.models import parameter_names
from promot_t5x.models.encoder_decoder import EncoderDecoderModel
from promot_t5x.partitioning.partitioner import Partitioner

WAYS = ("generate", "rank")


@dataclasses.dataclass(frozen=True)
class Answer:
    """A model's answer to one example.

    Attributes:
      output: the decoded text, or the text of the choice with the highest score.
      scores: log-likelihoods of the choices, in order (per token if length-normalised); None if generated.
    """

    output: str
    scores: tuple[float, ...] | None = None


def check_prompt(params: Mapping[str, Any], prompt_id: int | None) -> None:
    """Raises ValueError if the parameters lack the prompt that is to be attached."""
    if prompt_id is None:
        return
    if parameter_names.SOFT_PROMPT not in params:
        raise ValueError(
            "A soft prompt should be attached, but the checkpoint has none; evaluate with the prompt removed "
            "(--gin.PROMPTS=\"('removed',)\" in eval, PROMPT_ID=None in infer)."
        )
    count = parameter_names.flatten(params)[parameter_names.PROMPT].shape[0]
    if not 0 <= prompt_id < count:
        raise ValueError(
            f"Soft prompt {prompt_id} should be attached, but the checkpoint has {count}, numbered from 0; give one of "
            "these."
        )


@dataclasses.dataclass(frozen=True)
class _Runner:
    """Runs batches of one checkpoint with its prompt attached or removed."""

    model: EncoderDecoderModel
    params: Mapping[str, Any]
    prompt_id: int | None
    partitioner: Partitioner

    def __post_init__(self):
        check_prompt(self.params, self.prompt_id)
        if self.prompt_id is None:
            object.__setattr__(self, "params", parameter_names.split_adapters(self.params)[0])

    def __call__(
        self,
        function: Callable[..., jax.Array],
        arrays: Mapping[str, np.ndarray],
        batches: Sequence[Batch],
        rows: Sequence[int] | None,
    ) -> Iterator[tuple[list[int], np.ndarray]]:
        """Yields (row numbers, the results of `function` for these rows); runs the batches that hold one of `rows`."""
        features.check_ids(arrays, self.model.config.vocab_size, self.model.config.num_prompts)
        wanted = set(range(len(arrays["encoder_input_tokens"])) if rows is None else rows)
        batches = [batch for batch in batches if not wanted.isdisjoint(batch.numbers)]
        if batches:
            logging.info("%s", _described(batches, evaluation_batches.lengths(arrays["encoder_input_tokens"])))
        running: tuple[Batch, jax.Array] | None = None
        for batch in batches:
            placed = self._placed(arrays, batch)
            if running:
                running[1].block_until_ready()  # two batches at once would need the memory of both
            try:
                with self.partitioner.context():
                    upcoming = batch, function(self.model, self.params, placed, batch.numbers[0])
            finally:  # also if this batch cannot start, or its compilation is interrupted
                if running:
                    yield _of_rows(*running, wanted)
            running = upcoming
        if running:
            yield _of_rows(*running, wanted)

    def _placed(self, arrays: Mapping[str, np.ndarray], batch: Batch) -> dict[str, jax.Array]:
        gathered = evaluation_batches.gathered(arrays, batch)
        if self.prompt_id is not None:
            gathered[features.SOFT_PROMPT_IDS] = np.full(batch.shape.rows, self.prompt_id, np.int32)
        return self.partitioner.place_batch(gathered)


def _of_rows(batch: Batch, results: jax.Array, wanted: Collection[int]) -> tuple[list[int], np.ndarray]:
    """The wanted rows of a batch: (their numbers, their results)."""
    places = [place for place, number in enumerate(batch.numbers) if number in wanted]
    return [batch.numbers[place] for place in places], np.asarray(results)[places]


def _described(batches: Sequence[Batch], length_N: np.ndarray) -> str:
    report = evaluation_batches.report(batches, length_N)
    shapes = ", ".join("{batches} of {rows} rows x {width} tokens".format(**shape) for shape in report["shapes"])
    return f"batches of inputs: {shapes}; {100 * report['padding']:.0f} % padding"


@functools.partial(jax.jit, static_argnums=0)
def predict(model: EncoderDecoderModel, params, batch, first):
    """tokens_BxU of a placed batch, replicated on every device; call it within `Partitioner.context`.

    Args:
      model: its `decoding` says how to decode.
      params: placed on the mesh.
      batch: placed on the mesh.
      first: number of the batch's first row; affects sampling only. Which rows share a batch depends on the lengths of
        all of them, on their number and on the batch size.
    """
    # Only sampling uses the key, which differs between batches.
    tokens_BxU = model.predict_batch(params, batch, jax.random.fold_in(jax.random.key(0), first))
    return jax.lax.with_sharding_constraint(tokens_BxU, PartitionSpec())


@functools.partial(jax.jit, static_argnums=0)
def score(model: EncoderDecoderModel, params, batch, first):
    """scores_BxC of a placed batch, replicated on every device; takes the arguments of `predict`.

    The decoder's features are BxCxU: each input is encoded once for its C choices.
    """
    del first
    choices = batch["decoder_target_tokens"].shape[1]
    flat = {k: v.reshape(-1, v.shape[-1]) if v.ndim == 3 else v for k, v in batch.items()}
    scores_BxC = model.score_batch(params, flat).reshape(-1, choices)
    return jax.lax.with_sharding_constraint(scores_BxC, PartitionSpec())


def predict_tokens(
    model: EncoderDecoderModel,
    params: Mapping[str, Any],
    arrays: Mapping[str, np.ndarray],
    *,
    prompt_id: int | None,
    batch_size: int,
    partitioner: Partitioner,
    rows: Sequence[int] | None = None,
) -> Iterator[tuple[list[int], np.ndarray]]:
    """Decodes examples, batch by batch.

    Args:
      model: its `decoding` says how to decode.
      params: the network's parameters; a soft prompt that is not attached is ignored.
      arrays: encoder_input_tokens NxT and decoder_input_tokens NxU; predictions are U tokens wide.
      prompt_id: the soft prompt in front of every row; None runs the program of the plain (m)T5.
      batch_size: rows of a batch of the widest inputs; batches of shorter ones have more (`evaluation_batches.Room`).
      partitioner: places batches.
      rows: the rows to decode; None decodes all. Each is in the batch in which it is if all are decoded.

    Returns:
      An iterator over (row numbers, their tokens_BxU).

    Raises:
      ValueError: a token outside the network's vocabulary, or a prompt that the parameters lack.
    """
    inputs_NxT, decoder_NxU = arrays["encoder_input_tokens"], arrays["decoder_input_tokens"]
    room = _room(batch_size, inputs_NxT.shape[1], decoder_NxU.shape[1], partitioner)
    batches = evaluation_batches.batches(evaluation_batches.lengths(inputs_NxT), room)
    return _Runner(model, params, prompt_id, partitioner)(predict, arrays, batches, rows)


def _room(batch_size: int, inputs: int, decoder: int, partitioner: Partitioner) -> Room:
    partitioner.check_rows(batch_size)
    return Room(batch_size, inputs, decoder, partitioner.batch_devices())


def ways(examples: EvaluationExamples, way: str) -> str:
    """How a task is answered: `way` if every example has choices, otherwise "generate"."""
    return way if all(features.choices(example) for example in examples.examples) else "generate"


def answers(
    model: EncoderDecoderModel,
    params: Mapping[str, Any],
    examples: EvaluationExamples,
    way: str,
    *,
    length_normalized: bool = False,
    prompt_id: int | None,
    batch_size: int,
    partitioner: Partitioner,
    rows: Sequence[int] | None = None,
) -> Iterator[tuple[list[int], list[Answer]]]:
    """Answers examples, batch by batch.

    Args:
      model: its `decoding` says how to decode.
      params: the network's parameters.
      examples: what `evaluation_examples` returned.
      way: "generate", or "rank" for the likeliest of the example's choices; if several are, `output` is the first one
        (scoring takes all of them into account, see `ties`). Choices of equal tokens have equal scores.
      length_normalized: compare log-likelihoods per token (end of sequence included) instead of their sums.
      prompt_id, batch_size, partitioner, rows: see `predict_tokens`.

    Returns:
      An iterator over (example numbers, their answers).

    Raises:
      ValueError: see `predict_tokens`.
    """
    run = _Runner(model, params, prompt_id, partitioner)
    if rows is not None and not rows:  # all answers are kept
        return
    batches = _planned(examples, way, batch_size, partitioner)
    if way == "generate":
        vocabulary = _vocabulary(examples)
        for numbers, tokens_BxU in run(predict, examples.features, batches, rows):
            yield numbers, [Answer(decode(vocabulary, tokens_U)) for tokens_U in tokens_BxU]
        return
    texts = [features.choices(example) for example in examples.examples]
    tokens = _choice_tokens(examples)
    # Equal tokens are scored once: rounding in another row could tell them apart.
    different = [list(dict.fromkeys(tokens[choice] for choice in choices)) for choices in texts]
    arrays = _with_choices(examples.features["encoder_input_tokens"], different)
    for numbers, sums_BxC in run(score, arrays, batches, rows):
        likeliest = []
        for number, sums_C in zip(numbers, sums_BxC.tolist(), strict=True):
            by_tokens = {
                choice: total / len(choice) if length_normalized else total
                for choice, total in zip(different[number], sums_C, strict=False)
            }
            likeliest.append(_likeliest(texts[number], [by_tokens[tokens[choice]] for choice in texts[number]]))
        yield numbers, likeliest


def _planned(examples: EvaluationExamples, way: str, batch_size: int, partitioner: Partitioner) -> tuple[Batch, ...]:
    """The batches in which `answers` runs all examples."""
    inputs_NxT, decoder_NxU = examples.features["encoder_input_tokens"], examples.features["decoder_input_tokens"]
    decoder = decoder_NxU.shape[1]
    if way == "rank":
        tokens, texts = _choice_tokens(examples), map(features.choices, examples.examples)
        most = max(len({tokens[choice] for choice in choices}) for choices in texts)
        decoder = most * max(map(len, tokens.values()))
    room = _room(batch_size, examples.lengths.get("inputs", inputs_NxT.shape[1]), decoder, partitioner)
    return evaluation_batches.batches(_lengths(examples), room)


def _lengths(examples: EvaluationExamples) -> list[int]:
    return [max(len(example["inputs"]), 1) for example in examples.examples]


def report(examples: EvaluationExamples, way: str, batch_size: int, partitioner: Partitioner) -> dict[str, Any]:
    """What `evaluation_batches.report` says of the batches in which `answers` runs all examples."""
    return evaluation_batches.report(_planned(examples, way, batch_size, partitioner), _lengths(examples))


def _vocabulary(examples: EvaluationExamples) -> seqio.Vocabulary:
    return seqio.TaskRegistry.get(examples.task_name).output_features["targets"].vocabulary


def _choice_tokens(examples: EvaluationExamples) -> dict[str, tuple[int, ...]]:
    """The tokens of every choice of a task, each with the end of sequence."""
    vocabulary = _vocabulary(examples)
    end = int(vocabulary.eos_id or 0)
    texts = dict.fromkeys(choice for example in examples.examples for choice in features.choices(example))
    return {choice: (*vocabulary.encode(choice), end) for choice in texts}


def _with_choices(inputs_NxT: np.ndarray, choices: Sequence[Sequence[Sequence[int]]]) -> dict[str, np.ndarray]:
    """The features of `score`, the same C and U for the whole task; fewer choices are followed by empty ones."""
    most, width = max(map(len, choices)), max(len(tokens) for of_example in choices for tokens in of_example)
    targets_NxCxU = np.zeros((len(choices), most, width), np.int32)
    for targets_CxU, of_example in zip(targets_NxCxU, choices, strict=True):
        targets_CxU[: len(of_example)] = features.padded(of_example, width)
    return features.converted({"inputs": inputs_NxT, "targets": targets_NxCxU})


def _likeliest(choices: Sequence[str], scores_C: Sequence[float]) -> Answer:
    return Answer(choices[int(np.argmax(scores_C))], tuple(scores_C))


def decode(vocabulary: seqio.Vocabulary, tokens: np.ndarray) -> str:
    """The text of decoded tokens without padding.

    >>> decode(seqio.ByteVocabulary(), np.array([107, 108, 1, 0]))
    'hi'
    """
    return vocabulary.decode([int(token) for token in tokens if token])
