"""One training step, the same for every stage, and the state that it changes.

The step is step(trainable, opt_state, frozen, batch, step number): the gradient is taken with respect to the trainable
leaves, the first two arguments are donated, and no metric reads frozen leaves. The seed and a constant learning rate
are arguments of the compiled program, so that runs that differ in nothing else share it.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

from promot_t5x.models.encoder_decoder import EncoderDecoderModel
from promot_t5x.partitioning.optimizer_slots import slot_shardings
from promot_t5x.runtime import between_runs
from promot_t5x.training import stages
from promot_t5x.training.optimizers import Staged

Params = dict[str, Any]

Optimizer = Staged | optax.GradientTransformation


@dataclasses.dataclass(frozen=True)
class TrainState:
    """What changes during training. `step` counts the updates made in this run."""

    step: int
    trainable: Params
    opt_state: Any


@dataclasses.dataclass(frozen=True)
class Step:
    """A jitted program with what it is called with throughout a run; it is called, traced and lowered without that.

    Attributes:
      program: (trainable, opt_state, frozen, batch, step, *of_run) -> (trainable, opt_state, metrics).
      of_run: the seed of the dropout masks, and the constant learning rate, None for a schedule or an optimizer of your
        own.
    """

    program: Any
    of_run: tuple[np.uint32, float | None]

    def __call__(self, *arguments: Any) -> tuple[Params, Any, dict[str, Any]]:
        return self.program(*arguments, *self.of_run)

    def trace(self, *arguments: Any) -> Any:
        """The traced program, for arrays or ShapeDtypeStructs."""
        return self.program.trace(*arguments, *self.of_run)

    def lower(self, *arguments: Any) -> Any:
        """The lowered program, for arrays or ShapeDtypeStructs."""
        return self.program.lower(*arguments, *self.of_run)

    def _cache_size(self) -> int:
        return self.program._cache_size()


def make_step(
    model: EncoderDecoderModel,
    optimizer: Optimizer,
    seed: int = 0,
    num_microbatches: int = 1,
    shardings: tuple[Any, Any] | None = None,
) -> Step:
    """The step (trainable, opt_state, frozen, batch, step) -> (trainable, opt_state, metrics).

    Args:
      model: the objective.
      optimizer: such as `optimizers.Staged`.
      seed: of the dropout masks; each microbatch has a key of its own.
      num_microbatches: see LoopConfig.
      shardings: of the first two results; None leaves them to XLA.
    """
    rate = optimizer.learning_rate if isinstance(optimizer, Staged) else None
    updates = optimizer.with_any_rate if isinstance(optimizer, Staged) else optimizer
    rules = nn.get_logical_axis_rules()  # of the activations
    key = ("step", model, updates, num_microbatches, _hashable(shardings), rules)
    program = _kept(key, lambda: _program(model, updates, num_microbatches, shardings))
    return Step(program, (np.uint32(seed), rate))


def _kept(key: Any, make: Callable[[], Any]) -> Any:
    """A jitted function; within `between_runs.keeping` the one that an earlier run with an equal key has made."""
    kept = between_runs.kept("programs")
    if kept is None:
        return make()
    try:
        program = kept.get(key) or make()
        kept.put(key, program)
    except TypeError:  # settings of your own without a hash
        return make()
    return program


def _hashable(tree: Any) -> tuple[Any, ...]:
    leaves, structure = jax.tree.flatten(tree)
    return (*leaves, structure)


def _program(model: EncoderDecoderModel, optimizer: Any, num_microbatches: int, shardings: tuple[Any, Any] | None):
    """The jitted function of `Step`; see `make_step`."""

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
    def train_step(trainable, opt_state, frozen, batch, step, seed, learning_rate):
        dropout_rng = jax.random.fold_in(jax.random.key(seed), step)
        compute = gradients_of if num_microbatches == 1 else accumulated
        gradients, sums = compute(trainable, frozen, batch, dropout_rng)
        normalizer = model.loss_normalizer(sums)
        gradients = jax.tree.map(lambda g: (g / normalizer).astype(g.dtype), gradients)
        rate = {} if learning_rate is None else {"learning_rate": learning_rate}
        updates, opt_state = optimizer.update(gradients, opt_state, trainable, **rate)
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


def state_shardings(optimizer: Optimizer, trainable: Params) -> tuple[Any, Any]:
    """Where the trainable leaves (arrays or ShapeDtypeStructs with a sharding) and their optimizer slots live."""
    slots = jax.eval_shape(optimizer.init, trainable)
    return jax.tree.map(lambda leaf: leaf.sharding, trainable), slot_shardings(slots, trainable)


def init_state(optimizer: Optimizer, trainable: Params) -> TrainState:
    """The state before the first step, with optimizer slots sharded as their parameters."""
    _, slots = state_shardings(optimizer, trainable)
    any_rate = optimizer.with_any_rate if isinstance(optimizer, Staged) else optimizer

    def program():
        return jax.jit(lambda leaves: any_rate.init(leaves), out_shardings=slots)

    return TrainState(0, trainable, _kept(("init", any_rate, _hashable(slots)), program)(trainable))
