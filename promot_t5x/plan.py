"""The plan verb: what both stages of a recipe need and do on a TPU slice, compiled without a TPU and without weights.

promot-t5x plan --gin_file=recipes/promot_rte.gin --topology v4:4x4x4
"""

import dataclasses
import sys
from collections.abc import Collection, Iterator, Sequence
from typing import Any

from absl import logging
from etils import epath

from promot_t5x import flags, gin_checks, launcher, meshes, parameter_table, pipeline, records, stages, train
from promot_t5x.partitioning import PRESETS, Partitioner
from promot_t5x.planning import chips, measures, programs, tables

EVALUATION = {"scoring": programs.scoring, "decoding": programs.decoding}
_FOLDERS = ("WORK_DIR", "MODEL_DIR", "INITIAL_CHECKPOINT_PATH")
_OTHER_PLACES = ("--search: another mesh or preset", "a bigger slice")
_WIDEST = 16  # devices of a `model` axis that a search tries; wider ones exchange more at every layer


@dataclasses.dataclass(frozen=True)
class Asked:
    """What a command's gin files configure: the training steps by stage, and how answers are evaluated."""

    stages: dict[str, programs.Training]
    evaluation: programs.Answering | None


def configured(invocation: flags.Invocation, devices: tuple[Any, ...]) -> Asked:
    """Reads the configuration of a recipe's ProMoT stages, or of the one stage that the gin files describe.

    Args:
      invocation: the command; a recipe that binds pipeline.run, or files as for the train binary.
      devices: those of the slice.

    Raises:
      ConfigError: neither is configured, or a flag changes nothing.
    """
    # Where a run would read and write plays no part here; what the command says of it still wins.
    unread = tuple(f"{name} = 'not read'" for name in _FOLDERS)
    invocation = dataclasses.replace(invocation, gin_bindings=(*unread, *invocation.gin_bindings))
    launcher.configure(invocation)
    if not launcher.is_configured(pipeline.run):
        gin_checks.check_flags(gin_checks.unused_flag_macros() - set(_FOLDERS))
        bound = launcher.bound_arguments(train.train)
        training, validation = _training(bound, devices), bound.get("validation")
        return Asked({training.stage: training}, _answering(training, validation and validation.config))
    bound = launcher.bound_arguments(pipeline.run)
    recipe, found = bound["recipe"], {}
    pipeline.check_flags(invocation, recipe, epath.Path("not read"))
    for run in pipeline.planned_runs(recipe):
        if run.method in ("prompt_tuning", "promot"):
            pipeline.configure(invocation, recipe, run, epath.Path("not read"), "not read")
            training = _training(launcher.bound_arguments(train.train), devices)
            found.setdefault(training.stage, training)
    if not found:
        raise ValueError("The recipe has no ProMoT run to plan: pipeline.Recipe.methods has no prompt_tuning.")
    return Asked(found, _answering(next(iter(found.values())), bound.get("evaluation_config")))


def _training(bound: dict[str, Any], devices: tuple[Any, ...]) -> programs.Training:
    dataset = bound["dataset"]
    return programs.Training(
        bound["model"],
        bound["stage"],
        bound["optimizer"],
        dataset.task_feature_lengths,
        dataset.batch_size,
        dataclasses.replace(bound.get("partitioner", Partitioner()), devices=devices),
        bound["loop"].num_microbatches,
        bound.get("frozen_weights_dtype"),
    )


def _answering(training: programs.Training, config: Any) -> programs.Answering | None:
    if config is None:
        return None
    return programs.Answering(training.model, config.task_feature_lengths, config.batch_size, training.partitioner)


def plan(asked: Asked, topology: chips.Topology, only: Collection[str] = ()) -> tables.Plan:
    """Compiles and measures what a recipe runs.

    Args:
      asked: the recipe.
      topology: the slice.
      only: names of the programs that are compiled, stages and what EVALUATION has; none means all.

    Raises:
      ValueError: a name of no program.
    """
    names = (*asked.stages, *(EVALUATION if asked.evaluation else ()))
    if unknown := sorted(set(only) - set(names)):
        raise ValueError(f"--programs has {', '.join(unknown)}: expected names among {', '.join(names)}.")
    measured, evaluation, groups, advice = {}, {}, {}, {}
    for stage, training in asked.stages.items():
        params = stages.combine(*programs.parameters(training))
        groups[stage] = parameter_table.parameter_groups(
            params, stages.stage(stage), training.partitioner, training.model
        )
        if stage in (only or names):
            logging.info("compiling %s for %s", stage, topology)
            measured[stage] = measures.measure(programs.training_step(training), topology)
            if not measured[stage].fits:
                advice[stage] = training_advice(training)
    for name, program in EVALUATION.items():
        if asked.evaluation is not None and name in (only or names):
            logging.info("compiling %s for %s", name, topology)
            length = asked.evaluation.lengths["targets"]
            evaluation[name] = measures.measure(program(asked.evaluation), topology, unknown_trips=length)
            if not evaluation[name].fits:
                advice[name] = ["--gin.EVAL_BATCH_SIZE: fewer rows a batch", *_OTHER_PLACES]
    partitioner = next(iter(asked.stages.values())).partitioner
    return tables.Plan(topology, partitioner, groups, measured, evaluation, advice)


def training_advice(training: programs.Training) -> list[str]:
    """What to try where a step does not fit, what costs least first."""
    steps, config = [], training.model.config
    if config.remat != "full":
        steps.append(
            f"--gin.T5Config.remat=full: compute activations again instead of keeping them (now {config.remat})"
        )
    rows = training.partitioner.batch_sharding().shard_shape((training.batch_size,))[0] // training.num_microbatches
    if rows > 1:
        parts = training.num_microbatches * meshes.divisors(rows)[1]
        steps.append(f"--gin.NUM_MICROBATCHES={parts}: the same update, fewer rows at once")
    if not stages.stage(training.stage).trains_model and training.frozen_weights_dtype is None:
        steps.append("--gin.FROZEN_WEIGHTS_DTYPE=bfloat16: frozen weights in half the memory")
    return [*steps, *_OTHER_PLACES]


def search(training: programs.Training, topology: chips.Topology) -> list[tuple[Partitioner, measures.Measured]]:
    """Tries all presets and meshes that divide, fastest bound first, what does not fit last."""
    found = []
    for partitioner in candidates(training):
        logging.info("compiling %s, %s", training.stage, tables.mesh_name(partitioner))
        traced = programs.training_step(dataclasses.replace(training, partitioner=partitioner))
        found.append((partitioner, measures.measure(traced, topology)))
    return sorted(found, key=lambda pair: (not pair[1].fits, pair[1].bound_seconds, pair[1].needed))


def candidates(training: programs.Training) -> Iterator[Partitioner]:
    """Partitioners over the same devices that a step divides over."""
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


def parse(argv: Sequence[str]) -> flags.Invocation:
    """The verb's command line; its own options are in `extra`."""
    parser = flags.flag_parser("promot-t5x plan", __doc__)
    parser.add_argument("--topology", required=True, help="a slice: v4:4x4x4, v5e:4x8, v5p:4x4x4, v6e:4x8, v3:8x8 …")
    parser.add_argument("--slices", type=int, default=1, help="slices of that kind, data parallel across (default: 1)")
    parser.add_argument("--programs", metavar="A,B", default="", help="compile only these: prompt_tuning, scoring …")
    parser.add_argument("--search", action="store_true", help="also try all presets and meshes, and rank them")
    parser.add_argument("--json", metavar="FILE", help="write the plan as JSON, too")
    return flags.parse_flags(argv, parser)


def main(argv: Sequence[str]) -> None:
    """Plans what the gin files and flags describe."""
    invocation = parse(argv)
    topology = chips.topology(invocation.extra["topology"], invocation.extra["slices"])
    asked = configured(invocation, topology.devices())
    if invocation.dry_run:
        return
    only = [name for name in invocation.extra["programs"].split(",") if name]
    found = plan(asked, topology, only)
    print(tables.text(found))
    written = tables.as_json(found)
    if invocation.extra["search"]:
        written["search"] = {}
        for stage, training in ((s, t) for s, t in asked.stages.items() if s in (only or asked.stages)):
            ranked = search(training, topology)
            print(f"\n{stage} on {topology}, fastest bound first\n{tables.comparison(ranked)}", flush=True)
            written["search"][stage] = [tables.candidate_json(*pair) for pair in ranked]
    if invocation.extra["json"]:
        records.write(invocation.extra["json"], written)


if __name__ == "__main__":
    from promot_t5x import plan as binary

    sys.exit(launcher.run_main(binary.main))
