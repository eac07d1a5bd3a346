"""The training loop, the same for every stage.

Dropout depends on (seed, step) alone, and the data on the number of batches consumed, so a resumed run equals one that
was never stopped.

The loop reads a step's metrics after it has dispatched the next one, so that the device always has work. Before a
validation and a checkpoint it reads the newest step too: what is saved has been checked.
"""

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np
from absl import logging

from promot_t5x.checkpoints.saving import RunCheckpoints
from promot_t5x.data import cuts
from promot_t5x.models.encoder_decoder import EncoderDecoderModel
from promot_t5x.partitioning.partitioner import Partitioner
from promot_t5x.runtime import arguments, processes
from promot_t5x.training import stages
from promot_t5x.training.progress import Progress, announced, profiler
from promot_t5x.training.run_metrics import Writer
from promot_t5x.training.train_step import Optimizer, Params, TrainState, make_step, state_shardings

Batches = Iterator[Mapping[str, np.ndarray]]


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


def train(
    model: EncoderDecoderModel,
    optimizer: Optimizer,
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
      optimizer: such as `optimizers.Staged`.
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
    rows = partitioner.rows(batch_size)
    partitioner.check_rows(batch_size // config.num_microbatches)
    trainable, opt_state = state.trainable, state.opt_state
    progress = Progress(config.total_steps, config.log_period, state.step, writer)
    profile = profiler(profile_dir if config.profile and processes.speaks() else None, state.step, config.total_steps)
    eval_period = config.eval_period or save_period
    step = state.step
    try:
        with partitioner.context():
            train_step = make_step(model, optimizer, config.seed, config.num_microbatches, shardings)
            train_step = announced(train_step, "the training step")
            for step in range(state.step, config.total_steps):
                counts, features = cuts.separated(progress.fetched(batches))
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
