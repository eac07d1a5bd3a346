"""One training step and one training loop, the same for every stage.

The step is step(trainable, opt_state, frozen, batch, step number): the gradient is taken with respect to the trainable
leaves, the first two arguments are donated, and no metric reads frozen leaves. Dropout depends on (seed, step) alone,
and the data on the number of batches consumed, so a resumed run equals one that was never stopped.

The loop reads a step's metrics after it has dispatched the next one, so that the device always has work. Before a
validation and a checkpoint it reads the newest step too: what is saved has been checked.
"""

import dataclasses
import functools
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from absl import logging

from promot_t5x.checkpoints.saving import RunCheckpoints
from promot_t5x.data import cuts
from promot_t5x.models.encoder_decoder import EncoderDecoderModel
from promot_t5x.partitioning.optimizer_slots import slot_shardings
from promot_t5x.partitioning.partitioner import Partitioner
from promot_t5x.runtime import arguments, processes
from promot_t5x.training import stages
from promot_t5x.training.progress import Progress, announced, profiler
from promot_t5x.training.run_metrics import Writer

Params = dict[str, Any]

Batches = Iterator[Mapping[str, np.ndarray]]


@dataclasses.dataclass(frozen=True)
class TrainState:
    """What changes during training. `step` counts the updates made in this run."""

    step: int
    trainable: Params
    opt_state: Any


@arguments.checked
@dataclasses.dataclass(frozen=True)
class LoopConfig:
    """The length and rhythm of a run.

    Attributes:
      total_steps: updates of this run (T5X counts pretraining steps too; this does not).
      log_period: steps between log lines.
      eval_period: steps between validations, a divisor of the checkpoints' period; None for that period itself. Only
        saved steps can be chosen as the best.
      seed: of dropout.
      num_microbatches: parts of a batch whose gradients are computed one after the other and added: less memory for
        activations, the same update.
      profile: write a trace of a few steps into the run's folder, for TensorBoard or Perfetto.
    """

    total_steps: int
    log_period: int = dataclasses.field(default=50, metadata={"may_change": True})
    seed: int = 0
    num_microbatches: int = 1
    eval_period: int | None = None
    profile: bool = dataclasses.field(default=False, metadata={"may_change": True})

    def __post_init__(self):
        if (
            min(self.total_steps, self.log_period, self.num_microbatches, self.eval_period or 1) < 1
            or self.eval_period == 0
        ):
            raise ValueError(
                f"LoopConfig has total_steps={self.total_steps}, log_period={self.log_period}, "
                f"eval_period={self.eval_period}, num_microbatches={self.num_microbatches}: expected at least 1."
            )
        if self.total_steps >= 2**31:
            raise ValueError(f"LoopConfig.total_steps is {self.total_steps}: expected a number below 2^31.")
        arguments.check_seed(self.seed, "trainer.LoopConfig.seed")

    def check_eval_period(self, save_period: int) -> None:
        """Raises ValueError unless every checkpoint comes with a validation."""
        if self.eval_period is not None and save_period % self.eval_period:
            raise ValueError(
                f"trainer.LoopConfig.eval_period is {self.eval_period}, which does not divide "
                f"saving.CheckpointConfig.period, {save_period}; set EVAL_PERIOD to a divisor of CHECKPOINT_PERIOD."
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
      optimizer: from `optimizers.staged_optimizer`.
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
            of_part = gradients_of(trainable, frozen, part, jax.random.fold_in(dropout_rng, i))
            return jax.tree.map(lambda a, b: a + b.astype(a.dtype), total, of_part), None

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
    """[B, …] as [count, B / count, …]: part i has rows i, i + count, …, so that each device keeps the rows it has."""
    check_microbatches(rows.shape[0], count)
    return jnp.moveaxis(rows.reshape(rows.shape[0] // count, count, *rows.shape[1:]), 1, 0)


def check_microbatches(rows: int, count: int) -> None:
    """Raises ValueError unless the rows of a batch divide evenly over the microbatches."""
    if rows % count:
        raise ValueError(
            f"trainer.LoopConfig.num_microbatches is {count}, which does not divide the batch of {rows} rows; choose a "
            "divisor."
        )


def state_shardings(optimizer: optax.GradientTransformation, trainable: Params) -> tuple[Any, Any]:
    """Where the trainable leaves (arrays or ShapeDtypeStructs with a sharding) and their optimizer slots live."""
    slots = jax.eval_shape(optimizer.init, trainable)
    return jax.tree.map(lambda leaf: leaf.sharding, trainable), slot_shardings(slots, trainable)


def init_state(optimizer: optax.GradientTransformation, trainable: Params) -> TrainState:
    """The state before the first step, with optimizer slots sharded as their parameters."""
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
    writer: Writer,
    validation_loss: Callable[[Params], Mapping[str, float]] = lambda _: {},
    profile_dir: str | None = None,
) -> TrainState:
    """Runs the loop from `state.step` to `config.total_steps`.

    Args:
      model: the objective.
      optimizer: from `optimizers.staged_optimizer`.
      state: where to start.
      frozen: the leaves that do not train.
      batches: this process's rows of every batch, from batch number `state.step` on. Their cuts, if they have
        `cuts.FEATURE`, are counted in the metrics.
      batch_size: rows of a whole batch.
      config: length and rhythm.
      partitioner: places batches.
      save_period: steps between checkpoints; the last step always has one. Each is preceded by an evaluation.
      evaluate: whole parameters -> score on the validation split, None without one.
      save: called with the state and its score.
      writer: receives the metrics.
      validation_loss: whole parameters -> scalars that are written with the score.
      profile_dir: where a profile goes, if `config` wants one.

    Returns:
      The state after the last step.

    Raises:
      FloatingPointError: the loss or the gradient is no longer finite; the last checkpoint is from before.
    """
    shardings = state_shardings(optimizer, state.trainable)
    train_step = make_step(model, optimizer, config.seed, config.num_microbatches, shardings)
    train_step = announced(train_step, "the training step")
    rows = partitioner.rows(batch_size)
    partitioner.check_rows(batch_size // config.num_microbatches)
    trainable, opt_state = state.trainable, state.opt_state
    progress = Progress(config.total_steps, config.log_period, state.step, writer)
    profile = profiler(profile_dir if config.profile and processes.speaks() else None, state.step, config.total_steps)
    eval_period = config.eval_period or save_period
    step = state.step
    try:
        with partitioner.context():
            for step in range(state.step, config.total_steps):
                counts, features = cuts.separated(next(batches))
                batch = partitioner.place_batch(features, rows, batch_size)
                trainable, opt_state, metrics = train_step(trainable, opt_state, frozen, batch, jnp.int32(step))
                done = step + 1
                progress.follow(done, metrics, counts)
                profile(done)
                saves = done % save_period == 0 or done == config.total_steps
                if saves or done % eval_period == 0:
                    progress.settle()
                    score = _validate(done, stages.combine(trainable, frozen), evaluate, validation_loss, writer)
                    if saves:
                        writer.flush()  # first, so that the metrics up to a checkpoint are on disk when it is
                        save(TrainState(done, trainable, opt_state), score)
    except KeyboardInterrupt as interrupt:
        interrupt.add_note(f"it was in step {step + 1} of {config.total_steps}")
        raise
    finally:
        writer.flush()
    return TrainState(config.total_steps, trainable, opt_state)


def _validate(step: int, params: Params, evaluate, validation_loss, writer: Writer) -> float | None:
    """Writes the losses and the score of a validation; returns the score."""
    score = evaluate(params)
    scalars = {**validation_loss(params), **({} if score is None else {"validation/score": score})}
    if scalars:
        writer.write_scalars(step, scalars)
        logging.info("step %d: %s", step, ", ".join(f"{name.replace('/', ' ')} {x:.4f}" for name, x in scalars.items()))
    return score


def saver(
    checkpoints: RunCheckpoints, frozen: Params, metadata: dict[str, Any]
) -> Callable[[TrainState, float | None], None]:
    """Returns the function that saves a state of this run: the leaves of `stages.stored`."""

    def save(state: TrainState, score: float | None) -> None:
        stored = stages.stored(state.trainable, frozen)
        of_step = {**metadata, "batches_consumed": state.step}
        checkpoints.save(state.step, stored, state.opt_state, of_step, score)

    return save
