"""One training step and one training loop, the same for every stage.

The step is step(trainable, opt_state, frozen, batch, step number): the gradient is taken for the trainable leaves only,
the first two arguments are donated, and no metric touches frozen leaves. Dropout depends on (seed, step) alone, and the
data on the number of batches consumed, so a run that is resumed equals one that was never stopped.
"""

import dataclasses
import functools
import math
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from absl import logging
from clu import metric_writers

from promot_t5x.checkpoints.saving import RunCheckpoints
from promot_t5x.models.encoder_decoder import EncoderDecoderModel
from promot_t5x.partitioning.optimizer_slots import slot_shardings
from promot_t5x.partitioning.partitioner import Partitioner
from promot_t5x.training import stages

Params = dict[str, Any]

Batches = Iterator[Mapping[str, np.ndarray]]


@dataclasses.dataclass(frozen=True)
class TrainState:
    """What changes during training. `step` counts the updates made in this run."""

    step: int
    trainable: Params
    opt_state: Any


@dataclasses.dataclass(frozen=True)
class LoopConfig:
    """The length and rhythm of a run.

    Attributes:
      total_steps: updates of this run (T5X counts pretraining steps too; this does not).
      log_period: steps between log lines.
      seed: of dropout.
      num_microbatches: parts of a batch whose gradients are computed one after the other and added: less memory for
        activations, the same update.
    """

    total_steps: int
    log_period: int = dataclasses.field(default=50, metadata={"may_change": True})
    seed: int = 0
    num_microbatches: int = 1

    def __post_init__(self):
        if min(self.total_steps, self.log_period, self.num_microbatches) < 1:
            raise ValueError(
                f"LoopConfig has total_steps={self.total_steps}, log_period={self.log_period}, num_microbatches="
                f"{self.num_microbatches}: expected at least 1."
            )


def make_step(
    model: EncoderDecoderModel,
    optimizer: optax.GradientTransformation,
    seed: int = 0,
    num_microbatches: int = 1,
    shardings: tuple[Any, Any] | None = None,
) -> Callable:
    """The jitted step (trainable, opt_state, frozen, batch, step) -> (trainable, opt_state, metrics).

    Args:
      model: the objective.
      optimizer: from `stages.staged_optimizer`.
      seed: of the dropout masks; each microbatch has a key of its own.
      num_microbatches: see LoopConfig.
      shardings: of the first two results; None leaves them to XLA.
    """

    def gradients_of(trainable, frozen, batch, dropout_rng):
        def loss_of(trainable):
            return model.loss_sum(stages.combine(trainable, frozen), batch, dropout_rng)

        (_, sums), gradients = jax.value_and_grad(loss_of, has_aux=True)(trainable)
        return gradients, sums

    def accumulated(trainable, frozen, batch, dropout_rng):
        def add(total, numbered):
            i, part = numbered
            found = gradients_of(trainable, frozen, part, jax.random.fold_in(dropout_rng, i))
            return jax.tree.map(lambda a, b: a + b.astype(a.dtype), total, found), None

        parts = jax.tree.map(lambda rows: _microbatches(rows, num_microbatches), batch)
        shapes = jax.eval_shape(gradients_of, trainable, frozen, jax.tree.map(lambda x: x[0], parts), dropout_rng)
        start = jax.tree.map(lambda x: jnp.zeros(x.shape, jnp.float32), shapes)
        if shardings is not None:
            start = (jax.lax.with_sharding_constraint(start[0], shardings[0]), start[1])
        (gradients, sums), _ = jax.lax.scan(add, start, (jnp.arange(num_microbatches), parts))
        return jax.tree.map(lambda g, leaf: g.astype(leaf.dtype), gradients, trainable), sums

    @functools.partial(jax.jit, donate_argnums=(0, 1), out_shardings=None if shardings is None else (*shardings, None))
    def train_step(trainable, opt_state, frozen, batch, step):
        dropout_rng = jax.random.fold_in(jax.random.key(seed), step)
        compute = gradients_of if num_microbatches == 1 else accumulated
        gradients, sums = compute(trainable, frozen, batch, dropout_rng)
        normalizer = model.loss_normalizer(sums)
        gradients = jax.tree.map(lambda g: (g / normalizer).astype(g.dtype), gradients)
        updates, opt_state = optimizer.update(gradients, opt_state, trainable)
        trainable = optax.apply_updates(trainable, updates)
        metrics = {"sums": sums, "gradient_norm": optax.tree.norm(gradients)}
        return trainable, opt_state, metrics

    return train_step


def _microbatches(rows: jax.Array, count: int) -> jax.Array:
    """[B, …] as [count, B / count, …]: every count-th row, so that each device keeps the rows it has."""
    if rows.shape[0] % count:
        raise ValueError(
            f"trainer.LoopConfig.num_microbatches is {count}, which does not divide the batch of {rows.shape[0]} rows; "
            "choose a divisor."
        )
    return jnp.moveaxis(rows.reshape(rows.shape[0] // count, count, *rows.shape[1:]), 1, 0)


def state_shardings(optimizer: optax.GradientTransformation, trainable: Params) -> tuple[Any, Any]:
    """Where the trainable leaves (arrays or ShapeDtypeStructs with a sharding) and their optimizer slots live."""
    slots = jax.eval_shape(optimizer.init, trainable)
    return jax.tree.map(lambda leaf: leaf.sharding, trainable), slot_shardings(slots, trainable)


def init_state(optimizer: optax.GradientTransformation, trainable: Params) -> TrainState:
    """The state before the first step, its optimizer slots placed by their parameters."""
    _, slots = state_shardings(optimizer, trainable)
    return TrainState(0, trainable, jax.jit(optimizer.init, out_shardings=slots)(trainable))


def train(
    model: EncoderDecoderModel,
    optimizer: optax.GradientTransformation,
    state: TrainState,
    frozen: Params,
    batches: Batches,
    config: LoopConfig,
    *,
    partitioner: Partitioner,
    batch_size: int,
    save_period: int,
    evaluate: Callable[[Params], float | None],
    save: Callable[[TrainState, float | None], None],
    writer: metric_writers.MetricWriter,
) -> TrainState:
    """Runs the loop from `state.step` to `config.total_steps`.

    Args:
      model: the objective.
      optimizer: from `stages.staged_optimizer`.
      state: where to start.
      frozen: the leaves that do not train.
      batches: batch number `state.step` and on, this process's rows of each.
      batch_size: rows of a whole batch.
      config: length and rhythm.
      partitioner: places batches.
      save_period: steps between evaluations and checkpoints; the last step always has one.
      evaluate: whole parameters -> score on the validation split, None without one.
      save: called with the state and its score.
      writer: receives the metrics.

    Returns:
      The state after the last step.

    Raises:
      FloatingPointError: the loss is no longer a finite number; the last checkpoint is from before.
    """
    shardings = state_shardings(optimizer, state.trainable)
    train_step = make_step(model, optimizer, config.seed, config.num_microbatches, shardings)
    rows = partitioner.rows(batch_size)
    partitioner.check_rows(batch_size // config.num_microbatches)
    trainable, opt_state = state.trainable, state.opt_state
    progress = _Progress(config, state.step)
    with partitioner.context():
        for step in range(state.step, config.total_steps):
            batch = partitioner.place_batch(next(batches), rows, batch_size)
            trainable, opt_state, metrics = train_step(trainable, opt_state, frozen, batch, jnp.int32(step))
            progress.add(metrics["sums"])
            done = step + 1
            if done % config.log_period == 0 or done == config.total_steps:
                progress.report(done, metrics, writer)
            if done % save_period == 0 or done == config.total_steps:
                progress.check_finite(done, metrics)
                score = evaluate(stages.combine(trainable, frozen))
                if score is not None:
                    writer.write_scalars(done, {"validation/score": score})
                    logging.info("step %d: validation score %.4f", done, score)
                save(TrainState(done, trainable, opt_state), score)
                writer.flush()
    return TrainState(config.total_steps, trainable, opt_state)


class _Progress:
    """Adds up the losses since the last report and times them; evaluations and checkpoints count as time too."""

    def __init__(self, config: LoopConfig, first_step: int):
        self._total, self._last_step = config.total_steps, first_step
        self._sums, self._started = None, time.monotonic()

    def add(self, sums) -> None:
        self._sums = sums if self._sums is None else jax.tree.map(jnp.add, self._sums, sums)

    def check_finite(self, step: int, metrics) -> None:
        # The loss is of the parameters before the step, the gradient decides what they are after it.
        found = {"loss": 0.0 if self._sums is None else float(self._sums.loss)}
        found["gradient's norm"] = float(metrics["gradient_norm"])
        for name, value in found.items():
            if not math.isfinite(value):
                raise FloatingPointError(
                    f"The {name} is {value} at or before step {step}; lower the learning rate or train in float32. "
                    "The last checkpoint is from before."
                )

    def report(self, step: int, metrics, writer: metric_writers.MetricWriter) -> None:
        self.check_finite(step, metrics)
        sums = jax.device_get(self._sums)
        seconds = max(time.monotonic() - self._started, 1e-9)
        rate = (step - self._last_step) / seconds
        scalars = {
            "train/loss": float(sums.loss / sums.weight_sum),
            "train/accuracy": float(sums.correct / sums.weight_sum),
            "train/gradient_norm": float(metrics["gradient_norm"]),
            "train/steps_per_second": rate,
            "train/target_tokens_per_second": float(sums.weight_sum) / seconds,
        }
        writer.write_scalars(step, scalars)
        logging.info(
            "step %d/%d  loss %.4f  accuracy %.3f  %.1f steps/s  %.0f target tokens/s  %.0f s left",
            step,
            self._total,
            scalars["train/loss"],
            scalars["train/accuracy"],
            rate,
            scalars["train/target_tokens_per_second"],
            (self._total - step) / rate,
        )
        self._sums, self._last_step, self._started = None, step, time.monotonic()


def saver(
    checkpoints: RunCheckpoints, frozen: Params, metadata: dict[str, Any]
) -> Callable[[TrainState, float | None], None]:
    """What saves a state of this run: the leaves that `stages.stored` names."""

    def save(state: TrainState, score: float | None) -> None:
        stored = stages.stored(state.trainable, frozen)
        facts = {**metadata, "batches_consumed": state.step}
        checkpoints.save(state.step, stored, state.opt_state, facts, score)

    return save
