"""The training objective on a validation split, teacher-forced and without dropout."""

import functools
import operator
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np

from promot_t5x.data import evaluation_batches, evaluation_examples, features
from promot_t5x.models.encoder_decoder import EncoderDecoderModel
from promot_t5x.models.losses import LossSums
from promot_t5x.partitioning.partitioner import Partitioner


def validation_loss(
    model: EncoderDecoderModel,
    task: str,
    split: str,
    task_feature_lengths: Mapping[str, int],
    *,
    batch_size: int,
    steps: int,
    prompt_id: int | None,
    partitioner: Partitioner,
) -> Callable[[Mapping[str, Any]], dict[str, float]]:
    """Returns the function that computes loss and accuracy per target token over a split's first examples.

    Args:
      model: the objective, with its label smoothing and z-loss.
      task: a seqio task.
      split: its split, read now and kept in memory.
      task_feature_lengths: {"inputs": T, "targets": U}, in tokens.
      batch_size: rows of a batch of inputs of the full length; batches of shorter ones have more.
      steps: batch_size times this many examples are read, fewer where the split ends before.
      prompt_id: the soft prompt attached to every example, None for none.
      partitioner: places batches.

    Returns:
      A function of the whole parameters -> {"validation/loss", "validation/accuracy"}; called within
      `Partitioner.context`.

    Raises:
      ValueError: unknown task or split, or ids of tokens or prompts that the network does not have.
    """
    limit = batch_size * steps
    arrays = evaluation_examples.evaluation_examples(task, task_feature_lengths, split, limit=limit).features
    features.check_ids(arrays, model.config.vocab_size, model.config.num_prompts)
    partitioner.check_rows(batch_size)
    lengths = task_feature_lengths
    room = evaluation_batches.Room(batch_size, lengths["inputs"], lengths["targets"], partitioner.batch_devices())
    batches = evaluation_batches.batches(evaluation_batches.lengths(arrays["encoder_input_tokens"]), room)

    def loss_of(params: Mapping[str, Any]) -> dict[str, float]:
        total = LossSums._make([0.0] * 4)
        for batch in batches:
            gathered = evaluation_batches.gathered(arrays, batch)
            if prompt_id is not None:
                gathered[features.SOFT_PROMPT_IDS] = np.full(batch.shape.rows, prompt_id, np.int32)
            sums = jax.device_get(_loss_sums(model, params, partitioner.place_batch(gathered)))
            total = LossSums._make(map(operator.add, total, map(float, sums)))
        tokens = max(float(total.weight_sum), 1.0)
        return {"validation/loss": float(total.loss) / tokens, "validation/accuracy": float(total.correct) / tokens}

    return loss_of


@functools.partial(jax.jit, static_argnums=0)
def _loss_sums(model: EncoderDecoderModel, params: dict[str, Any], batch: dict[str, jax.Array]) -> LossSums:
    return model.loss_sum(params, batch, None)[1]
