"""Plans what training and evaluation need and do on a TPU slice, compiling without a TPU and without weights."""

import dataclasses
import time
from collections.abc import Collection, Iterator, Mapping

import jax
from absl import logging

from promot_t5x.models import parameter_names
from promot_t5x.models.encoder_decoder import EncoderDecoderModel
from promot_t5x.partitioning import meshes
from promot_t5x.partitioning.partitioner import PRESETS, Partitioner
from promot_t5x.planning import chips, measures, programs, tables
from promot_t5x.runtime import arguments
from promot_t5x.training import optimizers, parameter_table, stages

EVALUATION = {"scoring": programs.scoring, "decoding": programs.decoding}

_OTHER_PLACES = ("--search: another mesh or preset", "a bigger slice")

_FILLED = 0.9  # part of a device's memory that a proposed batch may take

_MOST_TIMES = 1024  # a proposed batch has at most so many times the rows of the configured one

_WIDEST = 16  # largest `model` axis that a search tries; wider ones exchange more at every layer


@dataclasses.dataclass(frozen=True)
class Planned:
    """The programs of a plan: training steps by the names of their stages, and the evaluation, if any."""

    stages: dict[str, programs.Training]
    evaluation: programs.Answering | None = None


@arguments.checked
def plan_training(
    model: EncoderDecoderModel,
    stage: str | stages.Stage,
    optimizer: optimizers.Optimizer,
    lengths: Mapping[str, int],
    batch_size: int,
    topology: str,
    slices: int = 1,
    partitioner: Partitioner = Partitioner(),
    num_microbatches: int = 1,
    frozen_weights_dtype: str | None = None,
) -> tables.Plan:
    """Compiles one training step for a TPU slice and measures it; needs the TPU compiler (libtpu), no TPU.

    No array is made and no data is read. For mT5-XXL it takes minutes and a few GB of memory.

    Args:
      model: the network and its objective.
      stage: as in `run_stage`.
      optimizer: as in `run_stage`.
      lengths: {"inputs": T, "targets": U}, in tokens.
      batch_size: rows of a global batch.
      topology: the slice, such as "v4:4x4x4" or "v5e:2x2".
      slices: number of slices, connected by the data-center network.
      partitioner: preset and mesh; its devices are replaced by those of the slices.
      num_microbatches: parts of a batch that are computed one after the other, as in `LoopConfig`.
      frozen_weights_dtype: as in `run_stage`.

    Returns:
      The plan, which prints as tables. Its `stages` maps the name of the stage to a `Measured`: memory, operations,
      traffic and seconds of a step, and whether the program fits. If it does not, `advice` says what to try.

    Raises:
      ValueError: no TPU compiler is installed, there is no such slice, or rows or parameters do not divide over it.

    >>> from promot_t5x.models.architecture import T5Config
    >>> from promot_t5x.training.optimizers import adafactor
    >>> config = T5Config(256, 128, num_heads=2, head_dim=64, mlp_dim=256, num_encoder_layers=1, num_decoder_layers=1,
    ...                   prompt_length=8)
    >>> lengths = {"inputs": 120, "targets": 128}
    >>> plan = plan_training(EncoderDecoderModel(config), "prompt_tuning", adafactor(0.3), lengths, 8, "v5e:2x2")
    >>> step = plan.stages["prompt_tuning"]
    >>> step.fits, step.devices, step.weight_gradient_flops
    (True, 4, 0)
    """
    place = chips.topology(topology, slices)
    training = programs.Training(
        model,
        stage,
        optimizer,
        lengths,
        batch_size,
        dataclasses.replace(partitioner, devices=place.devices()),
        num_microbatches,
        frozen_weights_dtype,
    )
    return plan_programs(Planned({stages.stage(stage).name: training}), place)


def plan_programs(planned: Planned, topology: chips.Topology, only: Collection[str] = ()) -> tables.Plan:
    """Compiles and measures several programs.

    Args:
      planned: the programs, for devices of the topology.
      topology: the slice.
      only: names of the programs to compile: stages, and keys of EVALUATION; empty for all.

    Raises:
      ValueError: an unknown name.
    """
    names = (*planned.stages, *(EVALUATION if planned.evaluation else ()))
    if unknown := sorted(set(only) - set(names)):
        raise ValueError(f"--programs has {', '.join(unknown)}: expected names among {', '.join(names)}.")
    measured, evaluation, groups, advice = {}, {}, {}, {}
    for name, training in planned.stages.items():
        params = stages.combine(*programs.parameters(training))
        stage = stages.stage(training.stage)
        groups[name] = parameter_table.parameter_groups(params, stage, training.partitioner, training.model)
        if name in (only or names):
            measured[name] = _measure(name, programs.training_step(training), topology)
            if not measured[name].fits:
                advice[name] = training_advice(training)
    for name, program in EVALUATION.items():
        if planned.evaluation is not None and name in (only or names):
            length = planned.evaluation.lengths["targets"]
            evaluation[name] = _measure(name, program(planned.evaluation), topology, unknown_trips=length)
            if not evaluation[name].fits:
                advice[name] = ["--gin.EVAL_BATCH_SIZE: fewer rows per batch", *_OTHER_PLACES]
    partitioner = next(iter(planned.stages.values())).partitioner
    rows = proposed_rows(planned.evaluation, evaluation.values()) if planned.evaluation else None
    return tables.Plan(topology, partitioner, groups, measured, evaluation, advice, rows)


def proposed_rows(evaluation: programs.Answering, measured: Collection[measures.Measured]) -> int | None:
    """An EVAL_BATCH_SIZE that fills the devices' memory: the configured one, doubled as often as there is room.

    None if not even that one fits. Temporaries grow at most in proportion to the rows, so this is a low estimate; a
    tenth of the memory stays free.

    Args:
      evaluation: the configured evaluation.
      measured: its programs as measured.
    """
    if not measured or not all(program.fits for program in measured):
        return None
    room = (
        (_FILLED * program.hbm - program.arguments) / max(program.needed - program.arguments, 1) for program in measured
    )
    times = min(max(int(min(room)), 1), _MOST_TIMES)
    return evaluation.batch_size << (times.bit_length() - 1)


def _measure(name: str, traced: programs.Traced, topology: chips.Topology, **options: int) -> measures.Measured:
    """Compiles and measures one program, with a line before, as that can take minutes, and its numbers after."""
    logging.info("compiling %s for %s", name, topology)
    began = time.monotonic()
    measured = measures.measure(traced, topology, **options)
    gib = f"{measured.needed / measures.GIB:.2f} of {measured.hbm / measures.GIB:.2f} GiB per device"
    result = f"fits, {gib}" if measured.fits else f"does not fit, {gib}"
    logging.info("compiled %s in %.0f s: %s", name, time.monotonic() - began, result)
    return measured


def training_advice(training: programs.Training) -> list[str]:
    """What to try if a step does not fit, cheapest first."""
    steps, config = [], training.model.config
    if config.remat != "full":
        steps.append(f"--gin.T5Config.remat=full: recompute activations instead of keeping them (now {config.remat})")
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
    """Measures a step with all presets and meshes that divide: fastest bound first, those that do not fit last."""
    measured = []
    for partitioner in candidates(training):
        logging.info("compiling %s, %s", stages.stage(training.stage).name, tables.mesh_name(partitioner))
        traced = programs.training_step(dataclasses.replace(training, partitioner=partitioner))
        measured.append((partitioner, measures.measure(traced, topology)))
    return sorted(measured, key=lambda pair: (not pair[1].fits, pair[1].bound_seconds, pair[1].needed))


def candidates(training: programs.Training) -> Iterator[Partitioner]:
    """Yields the partitioners of the same devices over which a step divides."""
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
