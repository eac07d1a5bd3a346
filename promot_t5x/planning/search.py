"""The plan verb: what both stages of a recipe need and do on a TPU slice, compiled without a TPU and without weights.

promot-t5x plan --gin_file=recipes/promot_rte.gin --topology v4:4x4x4
"""

import dataclasses
from collections.abc import Collection, Iterator

import jax
from absl import logging

from promot_t5x.models import parameter_names
from promot_t5x.partitioning import meshes
from promot_t5x.partitioning.partitioner import PRESETS, Partitioner
from promot_t5x.planning import chips, measures, programs, tables
from promot_t5x.training import parameter_table, stages

EVALUATION = {"scoring": programs.scoring, "decoding": programs.decoding}

_OTHER_PLACES = ("--search: another mesh or preset", "a bigger slice")

_WIDEST = 16  # devices of a `model` axis that a search tries; wider ones exchange more at every layer


@dataclasses.dataclass(frozen=True)
class Asked:
    """What a command's gin files configure: the training steps by stage, and how answers are evaluated."""

    stages: dict[str, programs.Training]
    evaluation: programs.Answering | None


def plan_training(configured: Asked, topology: chips.Topology, only: Collection[str] = ()) -> tables.Plan:
    """Compiles and measures what a recipe runs.

    Args:
      configured: the recipe's programs.
      topology: the slice.
      only: names of the programs that are compiled, stages and what EVALUATION has; none means all.

    Raises:
      ValueError: a name of no program.
    """
    names = (*configured.stages, *(EVALUATION if configured.evaluation else ()))
    if unknown := sorted(set(only) - set(names)):
        raise ValueError(f"--programs has {', '.join(unknown)}: expected names among {', '.join(names)}.")
    measured, evaluation, groups, advice = {}, {}, {}, {}
    for name, training in configured.stages.items():
        params = stages.combine(*programs.parameters(training))
        stage = stages.stage(training.stage)
        groups[name] = parameter_table.parameter_groups(params, stage, training.partitioner, training.model)
        if name in (only or names):
            logging.info("compiling %s for %s", name, topology)
            measured[name] = measures.measure(programs.training_step(training), topology)
            if not measured[name].fits:
                advice[name] = training_advice(training)
    for name, program in EVALUATION.items():
        if configured.evaluation is not None and name in (only or names):
            logging.info("compiling %s for %s", name, topology)
            length = configured.evaluation.lengths["targets"]
            evaluation[name] = measures.measure(program(configured.evaluation), topology, unknown_trips=length)
            if not evaluation[name].fits:
                advice[name] = ["--gin.EVAL_BATCH_SIZE: fewer rows per batch", *_OTHER_PLACES]
    partitioner = next(iter(configured.stages.values())).partitioner
    return tables.Plan(topology, partitioner, groups, measured, evaluation, advice)


def training_advice(training: programs.Training) -> list[str]:
    """What to try where a step does not fit, the cheapest first."""
    steps, config = [], training.model.config
    if config.remat != "full":
        steps.append(
            f"--gin.T5Config.remat=full: compute activations again instead of keeping them (now {config.remat})"
        )
    rows = training.partitioner.batch_sharding().shard_shape((training.batch_size,))[0] // training.num_microbatches
    if rows > 1:
        parts = training.num_microbatches * meshes.divisors(rows)[1]
        steps.append(f"--gin.NUM_MICROBATCHES={parts}: the same update, fewer rows at once")
    trainable, frozen = (parameter_names.split_adapters(part)[0] for part in programs.parameters(training))
    model_is_frozen = jax.tree.leaves(frozen) and not jax.tree.leaves(trainable)
    if model_is_frozen and training.frozen_weights_dtype is None:
        steps.append("--gin.FROZEN_WEIGHTS_DTYPE=bfloat16: frozen weights in half the memory")
    return [*steps, *_OTHER_PLACES]


def search(training: programs.Training, topology: chips.Topology) -> list[tuple[Partitioner, measures.Measured]]:
    """Measures all presets and meshes that divide: the fastest bound first, those that do not fit last."""
    measured = []
    for partitioner in candidates(training):
        logging.info("compiling %s, %s", stages.stage(training.stage).name, tables.mesh_name(partitioner))
        traced = programs.training_step(dataclasses.replace(training, partitioner=partitioner))
        measured.append((partitioner, measures.measure(traced, topology)))
    return sorted(measured, key=lambda pair: (not pair[1].fits, pair[1].bound_seconds, pair[1].needed))


def candidates(training: programs.Training) -> Iterator[Partitioner]:
    """The partitioners over the same devices that a step divides over."""
    own = training.partitioner
    sizes = own.mesh().shape
    for preset in PRESETS:
        widths = meshes.divisors(sizes["data"] * sizes["model"]) if preset in ("mixed", "tensor") else [1]
        for model in (width for width in widths if width <= _WIDEST):
            partitioner = dataclasses.replace(own, preset=preset, num_partitions=model, model_parallel_submesh=None)
            try:
                programs.check_divides(dataclasses.replace(training, partitioner=partitioner))
            except ValueError:  # it does not divide
                continue
            yield partitioner
