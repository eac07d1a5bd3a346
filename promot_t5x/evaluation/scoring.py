"""A model and a seqio task -> answers and scores, with the soft prompt attached or removed."""

import dataclasses
import itertools
import math
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import seqio
from absl import logging

from promot_t5x.data import features
from promot_t5x.data.evaluation_examples import EvaluationExamples, evaluation_examples
from promot_t5x.evaluation import answering, ties
from promot_t5x.evaluation.answering import Answer
from promot_t5x.models.encoder_decoder import EncoderDecoderModel
from promot_t5x.partitioning.partitioner import Partitioner
from promot_t5x.runtime import arguments
from promot_t5x.tasks import metrics


@arguments.checked
@dataclasses.dataclass(frozen=True)
class EvaluationConfig:
    """How much is evaluated, and how it is answered.

    Attributes:
      task_feature_lengths: most tokens of inputs and targets; longer inputs are cut.
      batch_size: rows of a batch of inputs of the full length. A batch of shorter ones has more, as many as need no
        more memory (`evaluation_batches.Room`). Only sampling depends on it.
      limit: number of examples, the first ones of a split; None for all.
      answering: "generate", or "rank": for tasks whose examples have choices, the likeliest choice is the answer.
      length_normalized: rank choices by their log-likelihood per token.
    """

    task_feature_lengths: Mapping[str, int]
    batch_size: int = dataclasses.field(default=64, metadata={"may_change": True})
    limit: int | None = None
    answering: str = "generate"
    length_normalized: bool = False

    def __post_init__(self):
        if self.batch_size < 1 or (self.limit is not None and self.limit < 1):
            raise ValueError(
                f"EvaluationConfig has batch_size={self.batch_size}, limit={self.limit}: expected at least 1 each, or "
                "None for limit."
            )
        if self.answering not in answering.WAYS:
            raise ValueError(f"EvaluationConfig.answering is {self.answering!r}: expected generate or rank.")


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """The outcome of one task.

    Attributes:
      metric: name of the task's first metric.
      value: that metric's value, from 0 to 100 for all tasks of this package.
      own_stderr: the standard error of `value`, if the metric itself computes one; else None.
      metrics: all numbers that the task's metrics computed.
      notes: texts that they returned, such as BLEU's signature.
      predictions: the postprocessed answers.
      tied: for the number of each example with several best choices, their postprocessed texts. The numbers above are
        those expected if one of them is chosen at random.
      of_examples: the values of the first metric on the single examples, if it is their mean and states them as
        `metrics.Mean` does; else None.
    """

    metric: str
    value: float
    own_stderr: float | None
    metrics: Mapping[str, float]
    notes: Mapping[str, str]
    predictions: list[Any]
    tied: Mapping[int, list[Any]] = dataclasses.field(default_factory=dict)
    of_examples: list[float] | None = None


def score(examples: EvaluationExamples, answers: Sequence[Answer]) -> Evaluation:
    """Postprocesses answers and computes the task's metrics.

    Args:
      examples: the examples that were answered.
      answers: one per example.

    Raises:
      ValueError: a task without metrics.
    """
    task = seqio.TaskRegistry.get(examples.task_name)

    def postprocessed(outputs: Sequence[str], example: Mapping[str, Any]) -> list[Any]:
        return [task.postprocess_fn(output, example=example, is_target=False) for output in outputs]

    predictions: list[Any] = []
    tied: dict[int, list[Any]] = {}
    for number, (example, answer) in enumerate(zip(examples.examples, answers, strict=True)):
        predictions += postprocessed([answer.output], example)
        best = ties.best_choices(features.choices(example), answer)
        if len(best) > 1:
            tied[number] = postprocessed(best, example)
    numbers: dict[str, Any] = {}
    notes: dict[str, str] = {}
    for metric_fn in task.predict_metric_fns:
        of_metric, texts = _expected(metric_fn, examples.targets, predictions, tied)
        numbers, notes = numbers | of_metric, notes | texts
    if not numbers:
        raise ValueError(f"The task {task.name} has no metric to score predictions with; give it a metric_fn.")
    metric = next(iter(numbers))
    of_examples = getattr(numbers[metric], "of_examples", None)
    values = {name: float(value) for name, value in numbers.items()}
    stderr = values.pop(f"{metric}_stderr", None)
    return Evaluation(metric, values[metric], stderr, values, notes, predictions, tied, of_examples)


def _expected(
    metric_fn: Callable[..., Mapping[str, Any]],
    targets: Sequence[Any],
    predictions: Sequence[Any],
    tied: Mapping[int, Sequence[Any]],
) -> tuple[dict[str, Any], dict[str, str]]:
    """The numbers and texts that a metric computes, for ties the expected numbers; see `ties`."""
    numbers, notes = _computed(metric_fn, targets, predictions)
    if not tied:
        return numbers, notes
    if all(isinstance(value, metrics.Mean) for value in numbers.values()):
        pairs = [(number, prediction) for number, several in tied.items() for prediction in several]
        alone, _ = _computed(metric_fn, [targets[number] for number, _ in pairs], [one for _, one in pairs])
        return {name: _with_ties(value, alone[name], tied) for name, value in numbers.items()}, notes
    draws = [_computed(metric_fn, targets, drawn) for drawn in ties.drawn(predictions, tied)]
    return {name: statistics.fmean(values[name] for values, _ in draws) for name in draws[0][0]}, draws[0][1]


def _with_ties(value: metrics.Mean, of_tied: metrics.Mean, tied: Mapping[int, Sequence[Any]]) -> metrics.Mean:
    """A mean over examples in which each example with ties has the mean of its tied predictions' values."""
    of_examples, remaining = list(value.of_examples), iter(of_tied.of_examples)
    for number, several in tied.items():
        of_examples[number] = statistics.fmean(itertools.islice(remaining, len(several)))
    return metrics.Mean(of_examples)


def _computed(
    metric_fn: Callable[..., Mapping[str, Any]], targets: Sequence[Any], predictions: Sequence[Any]
) -> tuple[dict[str, Any], dict[str, str]]:
    """The numbers and texts that a metric computes."""
    numbers: dict[str, Any] = {}
    notes: dict[str, str] = {}
    for name, value in metric_fn(targets, predictions).items():
        if isinstance(value, seqio.metrics.Text):
            notes[name] = str(value.textdata)
        else:
            is_of_all = isinstance(value, metrics.Mean) and len(value.of_examples) == len(targets)
            numbers[name] = value if is_of_all else _number(value)
    return numbers, notes


def _number(value: Any) -> float:
    return float(getattr(value, "value", value))  # seqio.metrics.Scalar has a value


def example_scores(examples: EvaluationExamples, outcome: Evaluation) -> list[float | None]:
    """The task's first metric on each example alone, the expected one for ties.

    None where it is not defined for a single example.
    """
    if outcome.of_examples is not None:
        return [score if math.isfinite(score) else None for score in outcome.of_examples]
    metric_fn = seqio.TaskRegistry.get(examples.task_name).predict_metric_fns[0]

    def alone(target: Any, prediction: Any) -> float | None:
        try:
            value = _number(metric_fn([target], [prediction])[outcome.metric])
        except Exception:  # a user's metric may raise anything on too few examples
            return None
        return value if math.isfinite(value) else None

    def expected(number: int, target: Any, prediction: Any) -> float | None:
        several = outcome.tied.get(number, [prediction])
        scores = [score for tied in several if (score := alone(target, tied)) is not None]
        return statistics.fmean(scores) if len(scores) == len(several) else None

    pairs = zip(examples.targets, outcome.predictions, strict=True)
    return [expected(number, *pair) for number, pair in enumerate(pairs)]


def standard_error(outcome: Evaluation, alone: Sequence[float | None]) -> float | None:
    """The standard error of a score over examples.

    Args:
      outcome: the task's scores.
      alone: its `example_scores`.

    Returns:
      The metric's own, if it has one; else sample standard deviation / sqrt(n), if the metric is the mean of its values
      on single examples; None for any other metric or fewer than two examples.
    """
    if outcome.own_stderr is not None:
        return outcome.own_stderr
    scores_N = [score for score in alone if score is not None]
    is_mean = bool(scores_N) and math.isclose(np.mean(scores_N), outcome.value, rel_tol=1e-9, abs_tol=1e-6)
    if len(scores_N) < max(len(alone), 2) or not is_mean:
        return None
    return float(np.std(scores_N, ddof=1) / math.sqrt(len(scores_N)))


@arguments.checked
def evaluate(
    model: EncoderDecoderModel,
    params: Mapping[str, Any],
    task_name: str,
    split: str,
    config: EvaluationConfig,
    *,
    prompt_id: int | None,
    partitioner: Partitioner = Partitioner(),
) -> Evaluation:
    """Scores one task on one split.

    Args:
      model: its `decoding` says how to decode.
      params: the network's parameters.
      task_name: a seqio task with at least one metric.
      split: the split to score.
      config: lengths, batch size, limit.
      prompt_id: the soft prompt to attach, None to remove it (ProMoT, section 4: attached for the fine-tuned task,
        removed for all others).
      partitioner: places batches.

    Raises:
      ValueError: an unknown task or split, a task without metrics, or a prompt that the parameters lack.
    """
    started = time.monotonic()
    examples = evaluation_examples(task_name, config.task_feature_lengths, split, limit=config.limit)
    by_number: dict[int, Answer] = {}
    for numbers, answers in answering.answers(
        model,
        params,
        examples,
        answering.ways(examples, config.answering),
        length_normalized=config.length_normalized,
        prompt_id=prompt_id,
        batch_size=config.batch_size,
        partitioner=partitioner,
    ):
        by_number |= zip(numbers, answers, strict=True)
    outcome = score(examples, [by_number[number] for number in range(len(by_number))])
    logging.info(
        "%s/%s, prompt %s: %s %.2f on %d examples (%.0f examples/s)",
        task_name,
        split,
        "removed" if prompt_id is None else f"{prompt_id} attached",
        outcome.metric,
        outcome.value,
        len(by_number),
        len(by_number) / (time.monotonic() - started),
    )
    return outcome
