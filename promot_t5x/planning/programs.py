"""The programs of a run, traced from shapes alone: exactly the functions that training and evaluation call."""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding

from promot_t5x.checkpoints import loading
from promot_t5x.data import features
from promot_t5x.evaluation import answering
from promot_t5x.models import parameter_names
from promot_t5x.models.encoder_decoder import EncoderDecoderModel
from promot_t5x.partitioning.partitioner import Partitioner
from promot_t5x.training import optimizers, stages, train_step


@dataclasses.dataclass(frozen=True)
class Training:
    """What determines the program of one training step, all from the arguments of `run_stage`.

    Attributes:
      model: the network and its objective.
      stage: "prompt_tuning", "model_tuning", …, or a `stages.Stage`.
      optimizer: updates the leaves that train.
      lengths: {"inputs": T, "targets": U}.
      batch_size: rows of a global batch.
      partitioner: preset and mesh; its devices may be those of a slice that this machine does not have.
      num_microbatches: see `trainer.LoopConfig`.
      frozen_weights_dtype: see `run_stage`.
    """

    model: EncoderDecoderModel
    stage: str | stages.Stage
    optimizer: optimizers.Optimizer
    lengths: Mapping[str, int]
    batch_size: int
    partitioner: Partitioner
    num_microbatches: int = 1
    frozen_weights_dtype: str | None = None


@dataclasses.dataclass(frozen=True)
class Answering:
    """What determines the programs of evaluation; lengths and batch size are those of `EvaluationConfig`."""

    model: EncoderDecoderModel
    lengths: Mapping[str, int]
    batch_size: int
    partitioner: Partitioner


@dataclasses.dataclass(frozen=True)
class Traced:
    """A program before it is compiled.

    Attributes:
      traced: the traced jitted function; has `.jaxpr` and `.lower()`.
      larger: the jaxpr for a batch twice as large; None if nothing is trained.
      arguments: the abstract arguments, with their shardings.
      partitioner: the program is compiled in its context.
    """

    traced: Any
    larger: Any
    arguments: Any
    partitioner: Partitioner

    def compile(self) -> Any:
        """Compiles it for the partitioner's devices; takes about a minute for mT5-XXL."""
        with self.partitioner.context():
            return self.traced.lower().compile()


def parameters(training: Training) -> tuple[Any, Any]:
    """The (trainable, frozen) abstract parameters of a stage, as `run_stage` holds them."""
    stage = stages.stage(training.stage)
    flat = loading.wanted_params(training.model, training.partitioner)
    if not stage.attaches_prompt:
        flat.pop(parameter_names.PROMPT, None)
    trainable, frozen = stages.partition(parameter_names.unflatten(flat), stage)
    return trainable, stages.held_in(frozen, training.frozen_weights_dtype)


def check_divides(training: Training) -> None:
    """Raises ValueError if the rows or parameters of a step do not divide over the mesh; traces nothing."""
    training.partitioner.check_rows(training.batch_size // training.num_microbatches)
    parameters(training)


def training_step(training: Training) -> Traced:
    """Traces the training step of `trainer.train`."""
    stage, partitioner = stages.stage(training.stage), training.partitioner
    partitioner.check_rows(training.batch_size // training.num_microbatches)
    trainable, frozen = parameters(training)
    optimizer = optimizers.Staged(training.optimizer, stage)
    shardings = train_step.state_shardings(optimizer, trainable)
    slots = _abstract(jax.eval_shape(optimizer.init, trainable), shardings[1])
    step = train_step.make_step(training.model, optimizer, 0, training.num_microbatches, shardings)
    number = jax.ShapeDtypeStruct((), jnp.int32, sharding=partitioner.replicated())

    def trace(batch_size: int):
        prompts = {features.SOFT_PROMPT_IDS} if stage.attaches_prompt else set()
        batch = _batch(training, batch_size, _TRAINING_FEATURES | prompts)
        with partitioner.context():
            return step.trace(trainable, slots, frozen, batch, number), (trainable, slots, frozen, batch)

    traced, arguments = trace(training.batch_size)
    return Traced(traced, trace(2 * training.batch_size)[0].jaxpr.jaxpr, arguments, partitioner)


def decoding(evaluation: Answering) -> Traced:
    """Traces the program that answers by generation, without a prompt."""
    batch = _batch(evaluation, evaluation.batch_size, {"encoder_input_tokens", "decoder_input_tokens"})
    return _answering(evaluation, answering.predict, batch)


def scoring(evaluation: Answering) -> Traced:
    """Traces the program that scores choices, without a prompt: four for each input, the most of the paper's tasks."""
    batch = _batch(evaluation, evaluation.batch_size, _TRAINING_FEATURES)

    def for_each_choice(name: str, feature: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
        return feature if name.startswith("encoder") else feature.update(shape=(feature.shape[0], 4, feature.shape[1]))

    return _answering(evaluation, answering.score, {name: for_each_choice(name, batch[name]) for name in batch})


_TRAINING_FEATURES = {
    "encoder_input_tokens",
    "decoder_input_tokens",
    "decoder_target_tokens",
    "decoder_loss_weights",
}


def _answering(evaluation: Answering, function: Any, batch: dict[str, jax.ShapeDtypeStruct]) -> Traced:
    flat = loading.wanted_params(evaluation.model, evaluation.partitioner)
    flat.pop(parameter_names.PROMPT, None)
    params = parameter_names.unflatten(flat)
    first = jax.ShapeDtypeStruct((), jnp.int32, sharding=evaluation.partitioner.replicated())
    with evaluation.partitioner.context():
        traced = function.trace(evaluation.model, params, batch, first)
    return Traced(traced, None, (params, batch), evaluation.partitioner)


def _batch(program: Training | Answering, batch_size: int, names: set[str]) -> dict[str, jax.ShapeDtypeStruct]:
    program.partitioner.check_rows(batch_size)
    sharding = program.partitioner.batch_sharding()
    inputs, targets = program.lengths["inputs"], program.lengths["targets"]

    def feature(name: str) -> jax.ShapeDtypeStruct:
        width = () if name == features.SOFT_PROMPT_IDS else (inputs if name.startswith("encoder") else targets,)
        dtype = jnp.float32 if name.endswith("weights") else jnp.int32
        return jax.ShapeDtypeStruct((batch_size, *width), dtype, sharding=sharding)

    return {name: feature(name) for name in sorted(names)}


def _abstract(shapes: Any, shardings: Any) -> Any:
    return jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), shapes, shardings)


def bytes_per_device(tree: Any) -> int:
    """Bytes of a tree of abstract arrays on one device."""

    def size(leaf: Any) -> int:
        sharding = leaf.sharding
        shape = sharding.shard_shape(leaf.shape) if isinstance(sharding, NamedSharding) else leaf.shape
        return math.prod(shape) * leaf.dtype.itemsize

    return sum(map(size, jax.tree.leaves(tree)))
