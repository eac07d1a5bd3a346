"""A model and a seqio task -> predictions and scores, with the soft prompt attached or removed."""

import dataclasses
import functools
import time
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
import seqio
from absl import logging

from promot_t5x import features
from promot_t5x.examples import EvalExamples, eval_batches, eval_examples
from promot_t5x.model import EncoderDecoderModel
from promot_t5x.partitioning import Partitioner


@dataclasses.dataclass(frozen=True)
class EvaluationConfig:
    """What is evaluated.

    Attributes:
      task_feature_lengths: tokens of inputs and targets; longer inputs are cut, predictions are at most this long.
      batch_size: rows decoded together; only sampling depends on it.
      limit: only the first examples of a split; None for all.
    """

    task_feature_lengths: Mapping[str, int]
    batch_size: int = 64
    limit: int | None = None

    def __post_init__(self):
        if self.batch_size < 1 or (self.limit is not None and self.limit < 1):
            raise ValueError(
                f"EvaluationConfig has batch_size={self.batch_size}, limit={self.limit}: expected at least 1, and for "
                "limit also None."
            )


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """The outcome of one task.

    Attributes:
      task_name: the seqio task.
      split: its split.
      metric: name of the task's first metric, the one `value` is.
      value: the score, on the task's own scale.
      metrics: everything the task's metrics computed.
      inputs: the prompts as text.
      targets: the postprocessed targets.
      predictions: the postprocessed predictions.
      truncated: examples whose tokens were cut.
    """

    task_name: str
    split: str
    metric: str
    value: float
    metrics: Mapping[str, float]
    inputs: list[str]
    targets: list[Any]
    predictions: list[Any]
    truncated: int


@functools.partial(jax.jit, static_argnums=0)
def _predict(model: EncoderDecoderModel, params, batch, start):
    # Only sampling draws; each batch then has numbers of its own.
    return model.predict_batch(params, batch, jax.random.fold_in(jax.random.key(0), start))


def predict_tokens(
    model: EncoderDecoderModel,
    params: Mapping[str, Any],
    examples: EvalExamples,
    *,
    prompt_id: int | None,
    batch_size: int,
    partitioner: Partitioner,
) -> np.ndarray:
    """Decoded tokens_NxU of examples.

    Args:
      model: decodes as its `decoding` says.
      params: the network's parameters; a soft prompt that is not attached plays no part.
      examples: what `examples.eval_examples` read.
      prompt_id: the soft prompt in front of every row; None runs the plain (m)T5's program.
      batch_size: rows a call.
      partitioner: places batches.

    Raises:
      ValueError: a token outside the network's vocabulary, or no such prompt to attach.
    """
    features.check_ids(examples.features, model.config.vocab_size, model.config.num_prompts)
    if prompt_id is None:
        params = {name: subtree for name, subtree in params.items() if name != "soft_prompt"}
    elif "soft_prompt" not in params:
        raise ValueError("A prompt was to be attached, but the checkpoint has none; evaluate with the prompt removed.")
    else:
        count = params["soft_prompt"]["embedding"].shape[0]
        if not 0 <= prompt_id < count:
            raise ValueError(f"The prompt {prompt_id} was to be attached, but the checkpoint has {count}, from 0 on.")
    rows = []
    with partitioner.context():
        for start, batch, real in eval_batches(examples, batch_size):
            if prompt_id is not None:
                batch = {**batch, features.SOFT_PROMPT_IDS: np.full(batch_size, prompt_id, np.int32)}
            rows.append(np.asarray(_predict(model, params, partitioner.place_batch(batch), start))[:real])
    return np.concatenate(rows)


def evaluate(
    model: EncoderDecoderModel,
    params: Mapping[str, Any],
    task_name: str,
    split: str,
    config: EvaluationConfig,
    *,
    prompt_id: int | None,
    partitioner: Partitioner,
) -> Evaluation:
    """Scores one task on one split.

    Args:
      model: decodes as its `decoding` says.
      params: the network's parameters.
      task_name: a seqio task with at least one metric.
      split: the split to score.
      config: lengths, batch size, limit.
      prompt_id: the soft prompt to attach, None to remove it (ProMoT, section 4: attached for the fine-tuned task,
        removed for every other).
      partitioner: places batches.

    Raises:
      ValueError: unknown task or split, a task without metrics, or no prompt to attach.
    """
    started = time.monotonic()
    examples = eval_examples(task_name, config.task_feature_lengths, split, limit=config.limit)
    tokens_NxU = predict_tokens(
        model, params, examples, prompt_id=prompt_id, batch_size=config.batch_size, partitioner=partitioner
    )
    task = seqio.TaskRegistry.get(task_name)
    vocabulary = task.output_features["targets"].vocabulary
    predictions = [
        task.postprocess_fn(vocabulary.decode([int(t) for t in row if t]), example=example, is_target=False)
        for row, example in zip(tokens_NxU, examples.examples, strict=True)
    ]
    metrics: dict[str, float] = {}
    for metric_fn in task.predict_metric_fns:
        found: Mapping[str, Any] = metric_fn(examples.targets, predictions)
        metrics |= {name: float(value) for name, value in found.items()}
    if not metrics:
        raise ValueError(f"The task {task_name} has no metric to score predictions with; give it a metric_fn.")
    metric = next(iter(metrics))
    seconds = time.monotonic() - started
    logging.info(
        "%s/%s, prompt %s: %s %.4f on %d examples (%.0f examples/s)",
        task_name,
        split,
        "removed" if prompt_id is None else f"{prompt_id} attached",
        metric,
        metrics[metric],
        len(predictions),
        len(predictions) / seconds,
    )
    return Evaluation(
        task_name,
        split,
        metric,
        metrics[metric],
        metrics,
        [_input_text(example) for example in examples.examples],
        examples.targets,
        predictions,
        examples.truncated,
    )


def _input_text(example: Mapping[str, Any]) -> str:
    text = example.get("inputs_pretokenized", b"")
    return text.decode() if isinstance(text, bytes) else str(text)
